//! Every file of the corpus, on stable.

use std::path::Path;

#[test]
fn the_corpus_is_replayed() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, harness) in fuzz::ALL {
        let directory = std::fs::read_dir(corpus.join(name)).expect("a directory for each harness");
        let mut files: Vec<_> = directory.map(|entry| entry.expect("a file").path()).collect();
        files.sort();
        assert!(!files.is_empty(), "{name} has no seeds");
        for file in files {
            println!("{}", file.display());
            harness(&std::fs::read(&file).expect("a readable file"));
        }
    }
}

/// A short walk around the seeds, so that a harness that breaks at once is noticed without a fuzzer. The walk is
/// seeded; `FUZZ_ROUNDS` makes it longer.
#[test]
fn mutated_seeds_are_survived() {
    let rounds: u64 = std::env::var("FUZZ_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let seed: u64 = std::env::var("FUZZ_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let only = std::env::var("FUZZ_ONLY").ok();
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut random = netstack::testing::link::Random::new(seed);
    for (name, harness) in
        fuzz::ALL.into_iter().filter(|(name, _)| only.as_ref().is_none_or(|only| only == name))
    {
        let directory = std::fs::read_dir(corpus.join(name)).expect("a directory for each harness");
        let mut files: Vec<_> = directory.map(|entry| entry.expect("a file").path()).collect();
        files.sort();
        let seeds: Vec<_> = files.iter().map(|file| std::fs::read(file).expect("a readable file")).collect();
        for _ in 0..rounds {
            let mut data = seeds[random.below(seeds.len() as u64) as usize].clone();
            for _ in 0..1 + random.below(6) {
                mutate(&mut data, &mut random);
            }
            // Kept where a panic shows it.
            let shown = data.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            if let Err(panic) = std::panic::catch_unwind(|| harness(&data)) {
                eprintln!("{name}: {shown}");
                std::panic::resume_unwind(panic);
            }
        }
    }
}

fn mutate(data: &mut Vec<u8>, random: &mut netstack::testing::link::Random) {
    let at = random.below(data.len() as u64 + 1) as usize;
    match random.below(6) {
        0 if at < data.len() => data[at] = random.number() as u8,
        1 if at < data.len() => data[at] ^= 1 << random.below(8),
        2 => data.insert(at, random.number() as u8),
        3 if at < data.len() => drop(data.remove(at)),
        4 => data.truncate(at),
        _ => {
            let more = random.below(32) as usize;
            data.extend(random.bytes(more));
        }
    }
}
