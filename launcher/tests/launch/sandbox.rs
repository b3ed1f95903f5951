//! The engine's sandbox, looked at from outside.

use std::fs;
use std::io::ErrorKind;

use crate::support::{Running, has_tap, run, stderr, stdout};

/// Runs until the test ends it.
const WAIT: &str = "echo ready; exec sleep 1000";

fn start(options: &[&str]) -> (Running, String) {
    let mut running = Running::start(options, WAIT);
    assert_eq!(running.line(), "ready");
    let status = fs::read_to_string(format!("/proc/{}/status", running.engine())).unwrap();
    (running, status)
}

fn stop(mut running: Running) {
    running.launcher.kill().unwrap();
    running.end();
}

#[track_caller]
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
}

#[test]
fn the_engine_is_confined_unless_told_otherwise() {
    if !has_tap() {
        return;
    }
    let (running, status) = start(&[]);
    assert_eq!(field(&status, "Seccomp"), "2");
    assert_eq!(field(&status, "NoNewPrivs"), "1");
    // Who may bind low ports, as root, keeps that.
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = u64::from_str_radix(&field(&own, "CapEff"), 16).unwrap();
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(u64::from_str_radix(&field(&status, set), 16), Ok(own & 1 << 10), "{set}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&field(&status, set), 16), Ok(0), "{set}");
    }
    match fs::read_to_string(format!("/proc/{}/mountinfo", running.engine())) {
        Err(error) => assert_eq!(error.kind(), ErrorKind::PermissionDenied, "only root may look"),
        Ok(mounts) => {
            let (mut root_seen, mut others) = (false, Vec::new());
            for mount in mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()) {
                assert!(mount[5].starts_with("ro,nosuid,nodev,noexec"), "{mount:?}");
                match mount[4] {
                    "/" => root_seen = mount.contains(&"tmpfs"),
                    path => others.push(path),
                }
            }
            let is_allowed = |path: &&str| path.starts_with("/etc") || path.starts_with("/run");
            // Where resolv.conf leads elsewhere its directory is there too.
            let elsewhere = fs::canonicalize("/etc/resolv.conf")
                .is_ok_and(|path| !path.starts_with("/etc") && !path.starts_with("/run"));
            assert!(root_seen && (elsewhere || others.iter().all(is_allowed)), "{mounts}");
        }
    }
    stop(running);
}

#[test]
fn without_sandbox_nothing_is_given_up() {
    if !has_tap() {
        return;
    }
    let (running, status) = start(&["--sandbox=off"]);
    let own = fs::read_to_string("/proc/self/status").unwrap();
    for name in ["Seccomp", "NoNewPrivs", "CapEff", "CapBnd"] {
        assert_eq!(field(&status, name), field(&own, name), "{name}");
    }
    stop(running);
}

#[test]
fn a_layer_that_is_missing_is_told_or_an_error() {
    if !has_tap() {
        return;
    }
    let auto = run(&["-v"], &["true"]);
    assert!(auto.status.success(), "{}", stderr(&auto));
    let missing = stderr(&auto).contains("sandbox: ");
    let on = run(&["--sandbox=on"], &["true"]);
    assert_eq!(on.status.success(), !missing, "{}", stderr(&on));
    if missing {
        assert!(stderr(&on).contains("cannot confine the engine: "), "{}", stderr(&on));
        assert!(stderr(&on).contains("--sandbox=auto"), "{}", stderr(&on));
    }
}

#[test]
fn names_are_still_resolved() {
    if !has_tap() {
        return;
    }
    let text = stdout(&run(&["--sandbox=auto", "--dns-name=db=192.0.2.7"], &["getent", "ahostsv4", "db"]));
    assert!(text.contains("192.0.2.7"), "{text}");
}
