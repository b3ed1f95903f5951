//! What the crates may depend on (ARCHITECTURE.md), asked of cargo.

use std::collections::BTreeSet;
use std::process::Command;

/// `cargo tree` of a package: one name per line, build and dev dependencies left out.
fn tree(arguments: &[&str]) -> BTreeSet<String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "--offline", "--locked", "--prefix", "none", "--format", "{p}"])
        .args(arguments)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("cargo writes UTF-8");
    text.lines()
        .filter_map(|line| line.split(' ').next())
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

const NETSTACK: [&str; 6] = ["-p", "netstack", "--edges", "normal", "--target", "x86_64-unknown-linux-gnu"];

#[test]
fn the_pure_stack_depends_on_six_crates() {
    let mut direct = tree(&[&NETSTACK[..], &["--no-default-features", "--depth", "1"]].concat());
    direct.remove("netstack");
    let allowed = ["foldhash", "hashbrown", "log", "slab", "smoltcp", "thiserror"];
    assert_eq!(direct, allowed.map(str::to_owned).into());
}

#[test]
fn what_the_pure_stack_brings_along_is_known() {
    let all = tree(&[&NETSTACK[..], &["--no-default-features"]].concat());
    for name in ["libc", "nix", "mio", "getrandom", "rand", "bytes"] {
        assert!(!all.contains(name), "{name} came in: {all:?}");
    }
    // A crate that is new here is a decision: whoever makes it names it.
    let known = [
        "bitflags",
        "byteorder",
        "cfg-if",
        "defmt-macros",
        "foldhash",
        "hash32",
        "hashbrown",
        "heapless",
        "log",
        "managed",
        "netstack",
        "proc-macro2",
        "quote",
        "slab",
        "smoltcp",
        "stable_deref_trait",
        "syn",
        "thiserror",
        "thiserror-impl",
        "unicode-ident",
    ];
    let new: Vec<_> = all.iter().filter(|name| !known.contains(&name.as_str())).collect();
    assert!(new.is_empty(), "new in the tree: {new:?}");
}

#[test]
fn the_stack_knows_nothing_of_the_other_crates() {
    let all = tree(&[&NETSTACK[..], &["--all-features"]].concat());
    for name in ["forwarder", "rootless-launch"] {
        assert!(!all.contains(name));
    }
}

#[test]
fn only_the_launcher_brings_a_runtime_and_nobody_openssl() {
    for package in ["netstack", "forwarder"] {
        let all = tree(&["-p", package, "--edges", "normal", "--all-features"]);
        for name in ["tokio", "hyper", "futures", "async-std", "smol"] {
            assert!(!all.contains(name), "{name} came into {package}");
        }
    }
    let lock = include_str!("../../Cargo.lock");
    for name in ["async-std", "smol", "openssl", "openssl-sys", "native-tls"] {
        assert!(!lock.contains(&format!("name = \"{name}\"\n")), "{name} came in");
    }
    assert!(lock.contains("name = \"smoltcp\"\n"), "a lock file as it is read here");
}

#[test]
fn the_forwarder_depends_on_nothing_of_ours() {
    let mut direct = tree(&["-p", "forwarder", "--edges", "normal", "--depth", "1"]);
    direct.remove("forwarder");
    let allowed = ["libc", "log", "nix", "serde", "slab", "thiserror"];
    let new: Vec<_> = direct.iter().filter(|name| !allowed.contains(&name.as_str())).collect();
    assert!(new.is_empty(), "new in the tree: {new:?}");
}
