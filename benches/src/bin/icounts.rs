//! Instructions that each scenario of the pure core executes, counted by callgrind and kept in the repository.
//!
//! # Theory of operation
//! For every scenario valgrind runs this program again: it prepares the scenario, runs it once to warm it up and once more inside
//! [`counted_section`], the only function that callgrind collects. Time plays no part, and what could differ from machine to machine is
//! pinned: the environment is empty, and glibc takes its plain memcpy, whatever the CPU offers. Another compiler or architecture makes other
//! instructions, and so does an incremental build: then there is nothing to compare, which is said.

use ::tests::{locate, process::run};
use benches::scenarios::{self, Scenario};
use clap::{Parser, Subcommand};
use std::{
    collections::BTreeMap,
    env, fs,
    hint::black_box,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

/// Count the instructions of the pure core's scenarios.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    /// The counts that are kept in the repository
    #[arg(long, global = true, default_value_os_t = kept_file())]
    file: PathBuf,
}

#[derive(Debug, Clone, Subcommand)]
enum Verb {
    /// Compare with the file; fail where a scenario takes 5 % more
    Check,
    /// Write the file
    Update,
    /// (under valgrind) Run one scenario
    #[command(hide = true)]
    Run {
        /// Its name
        scenario: String,
    },
}

/// Instructions by scenario.
type Counts = BTreeMap<String, u64>;

/// Growth that fails, and shrinking that should be written down, in percent.
const TOLERANCE: u64 = 5;

/// The oldest string functions of glibc, and one size of cache.
const PLAIN_GLIBC: &str = "glibc.cpu.hwcaps=-AVX512VL,-AVX512F,-AVX2,-AVX2_Usable,-AVX_Fast_Unaligned_Load,-ERMS,-FSRM,-SSSE3,-SSE4_1,-SSE4_2:\
     glibc.cpu.x86_data_cache_size=32768:glibc.cpu.x86_shared_cache_size=1048576:glibc.cpu.x86_non_temporal_threshold=786432";

fn main() -> ExitCode {
    let cli = Cli::parse();
    match &cli.verb {
        Verb::Run { scenario } => {
            let scenario = scenarios::all().find(|known| known.name == scenario);
            let mut work = scenario.expect("a name of this program's list").prepare();
            work();
            counted_section(&mut *work);
            ExitCode::SUCCESS
        }
        Verb::Update => {
            fs::write(&cli.file, text_of(&built_by(), &count_all())).expect("the file can be written");
            println!("{} is written", cli.file.display());
            ExitCode::SUCCESS
        }
        Verb::Check => check(&cli.file),
    }
}

#[inline(never)]
fn counted_section(work: &mut dyn FnMut()) {
    work();
    // Not a tail call: callgrind has to see the return.
    black_box(());
}

fn check(file: &Path) -> ExitCode {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let (kept_by, kept) = parse(&text);
    let by = built_by();
    if kept_by != by {
        println!(
            "SKIPPED icounts: the file was counted with {kept_by}, this is {by}; `icounts update` writes it anew"
        );
        return ExitCode::SUCCESS;
    }
    let now = count_all();
    let mut failed = false;
    println!("| scenario | kept | now | % |\n|---|---|---|---|");
    for name in kept.keys().chain(now.keys().filter(|name| !kept.contains_key(*name))) {
        let (before, after) = (kept.get(name), now.get(name));
        let (change, remark) = judge(before.copied(), after.copied());
        failed |= remark.is_failure();
        let show = |count: Option<&u64>| count.map_or_else(String::new, ToString::to_string);
        println!("| {name} | {} | {} | {change:+.1} {} |", show(before), show(after), remark.text());
    }
    if failed {
        println!(
            "\nicounts: see FAIL. Where it is meant, in the same commit:\nCARGO_INCREMENTAL=0 cargo run --release -p benches --bin icounts -- update"
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// What a change means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remark {
    Same,
    Better,
    Worse,
    Unknown,
    Gone,
}

impl Remark {
    fn is_failure(self) -> bool {
        matches!(self, Self::Worse | Self::Unknown | Self::Gone)
    }

    fn text(self) -> &'static str {
        match self {
            Self::Same => "",
            Self::Better => "better: please update the file",
            Self::Worse => "FAIL: more instructions",
            Self::Unknown => "FAIL: not in the file",
            Self::Gone => "FAIL: in the file, but no scenario",
        }
    }
}

/// The change in percent, and what it means.
fn judge(before: Option<u64>, after: Option<u64>) -> (f64, Remark) {
    let (Some(before), Some(after)) = (before, after) else {
        return (0.0, if before.is_some() { Remark::Gone } else { Remark::Unknown });
    };
    let change = (after as f64 / before.max(1) as f64 - 1.0) * 100.0;
    let remark = match after * 100 {
        after if after > before * (100 + TOLERANCE) => Remark::Worse,
        after if after < before * (100 - TOLERANCE) => Remark::Better,
        _ => Remark::Same,
    };
    (change, remark)
}

/// As many at a time as there are CPUs.
fn count_all() -> Counts {
    let all = scenarios::all().collect::<Vec<_>>();
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut counts = Counts::new();
        while let Some(scenario) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            counts.insert(scenario.name.to_owned(), count(scenario));
        }
        counts
    };
    thread::scope(|scope| {
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        let workers = (0..cpus).map(|_| scope.spawn(worker)).collect::<Vec<_>>();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().expect("a worker that panicked has said why"))
            .collect()
    })
}

fn count(scenario: &Scenario) -> u64 {
    let mut command = Command::new(locate::program("valgrind"));
    command.args(["--tool=callgrind", "--vgdb=no", "--callgrind-out-file=/dev/null"]);
    command.arg("--toggle-collect=*counted_section*");
    command.arg(env::current_exe().expect("/proc is mounted")).args(["run", scenario.name]);
    command.env_clear().env("GLIBC_TUNABLES", PLAIN_GLIBC);
    let finished = run(command).success();
    let collected = finished.stderr.lines().find_map(|line| line.split_once("Collected :"));
    let count = collected.and_then(|(_, count)| count.trim().parse().ok());
    count
        .filter(|count| *count > 0)
        .unwrap_or_else(|| panic!("callgrind counted nothing: {}", finished.describe()))
}

fn kept_file() -> PathBuf {
    // cargo run says where the package is; without cargo it is asked for from the top of the repository.
    PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or("benches".into())).join("icounts.csv")
}

/// Compiler, architecture, and whether it inlined otherwise than it does for users.
fn built_by() -> String {
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let version = benches::measure::first_line_of(&rustc, &["--version"]);
    let version = version.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    let incremental = if option_env!("CARGO_INCREMENTAL") == Some("1") { " incremental" } else { "" };
    format!("{version} {}{incremental}", env::consts::ARCH)
}

fn text_of(by: &str, counts: &Counts) -> String {
    let lines = counts.iter().map(|(name, count)| format!("{name},{count}\n"));
    format!("# {by}\nscenario,instructions\n{}", lines.collect::<String>())
}

/// Who counted, and what; lines that are not `name,count` are passed over.
fn parse(text: &str) -> (String, Counts) {
    let by = text.lines().find_map(|line| line.strip_prefix("# ")).unwrap_or_default().to_owned();
    let counts = text.lines().filter_map(|line| {
        let (name, count) = line.split_once(',')?;
        Some((name.to_owned(), count.trim().parse().ok()?))
    });
    (by, counts.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_percent_more_is_tolerated_and_no_more() {
        assert_eq!(judge(Some(1000), Some(1050)).1, Remark::Same);
        assert_eq!(judge(Some(1000), Some(1051)).1, Remark::Worse);
        assert_eq!(judge(Some(1000), Some(949)).1, Remark::Better);
        assert_eq!(judge(None, Some(1)).1, Remark::Unknown);
        assert_eq!(judge(Some(1), None).1, Remark::Gone);
    }

    #[test]
    fn the_file_is_read_as_it_was_written() {
        let counts = Counts::from([("a/b".to_owned(), 7), ("a/c".to_owned(), 123_456_789_012)]);
        assert_eq!(parse(&text_of("rustc 1.2.3 z80", &counts)), ("rustc 1.2.3 z80".to_owned(), counts));
    }
}
