//! `check` on this machine, and on machines that lack something: each is made by the test for itself.

use std::collections::BTreeMap;
use std::env;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::thread;

use launcher::check::finding::Purpose;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use serde_json::Value;

use crate::support::{LAUNCHER, has_namespaces, has_program, has_tap, stderr, stdout};

/// What a test tells to a copy of itself.
const TASK: &str = "CHECK_TEST_TASK";

#[derive(Debug)]
struct Finding {
    verdict: String,
    finding: String,
    fix: String,
    group: String,
}

/// The report by name; of several with one name, the worst.
fn findings(output: &Output) -> BTreeMap<String, Finding> {
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(&text).unwrap_or_else(|error| {
        panic!("{error}: {text}{}", stderr(output));
    });
    let mut findings = BTreeMap::new();
    for one in report.as_array().unwrap() {
        let text = |key: &str| one[key].as_str().unwrap_or_else(|| panic!("no {key} in {one}")).to_owned();
        let finding = Finding {
            verdict: text("verdict"),
            finding: text("finding"),
            fix: text("fix"),
            group: text("group"),
        };
        assert!(["pass", "warn", "fail"].contains(&finding.verdict.as_str()), "{one}");
        if finding.verdict == "fail" || !findings.contains_key(&text("name")) {
            findings.insert(text("name"), finding);
        }
    }
    findings
}

fn check(arguments: &[&str]) -> Command {
    let mut command = Command::new(LAUNCHER);
    command.arg("check").args(arguments);
    command
}

/// Runs a shell script as root of new namespaces, with `$LAUNCHER` set.
fn on_machine(script: &str) -> Option<Output> {
    if !has_tap() {
        return None;
    }
    let output =
        Command::new("unshare").args(["-Urmn", "sh", "-ec", script]).env("LAUNCHER", LAUNCHER).output();
    Some(output.unwrap())
}

/// Runs the test `name` of this file once more, with a task of its own.
fn copy_of_this_test(command: &mut Command, name: &str, task: &str) -> Output {
    let name = format!("check::{name}");
    command.args(["--exact", &name, "--nocapture", "--quiet"]).env(TASK, task).output().unwrap()
}

/// The part of a test harness's output that is the report.
fn report_in(output: Output) -> Output {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let start = text.find("[\n").unwrap_or_else(|| panic!("no report in {text}{}", stderr(&output)));
    let end = text.find("\n]\n").map_or(text.len(), |end| end + 3);
    Output { stdout: text.as_bytes()[start..end].to_vec(), ..output }
}

#[test]
fn what_is_missing_is_found() {
    let script = "mount -t tmpfs none /dev/net; $LAUNCHER check && exit 9; $LAUNCHER check --json || true";
    let Some(output) = on_machine(script) else { return };
    let text = stdout(&output);
    assert!(text.contains("pass  namespaces: "), "{text}");
    assert!(text.contains("fail  tap: cannot open /dev/net/tun"), "{text}");
    assert!(text.contains("      as root: modprobe tun\n"), "{text}");
    assert!(text.contains("/etc/modules-load.d/rootless-launch.conf && modprobe -a "), "{text}");
    assert!(text.contains("{\"name\": \"tap\", \"verdict\": \"fail\""), "{text}");
}

#[test]
fn where_a_launch_works_nothing_fails() {
    if !has_tap() {
        return;
    }
    let text = stdout(&check(&["--for=launch"]).output().unwrap());
    assert!(!text.contains("fail"), "{text}");
    assert!(text.ends_with("launch: works\n"), "{text}");
}

#[test]
fn the_report_is_json_and_its_status_follows_the_purpose() {
    if !has_tap() {
        return;
    }
    for (purpose, word) in Purpose::ALL.map(|purpose| (purpose, purpose.word())) {
        let output = check(&["--json", "--for", word]).output().unwrap();
        let findings = findings(&output);
        let fails = findings.values().any(|finding| finding.verdict == "fail");
        assert_eq!(output.status.code(), Some(i32::from(fails)), "{word}: {findings:#?}");
        let has = |name: &str| findings.contains_key(name);
        assert!(has("namespaces") && has("subordinate ids"), "{findings:#?}");
        assert_eq!(has("kubelet"), purpose >= Purpose::Node, "{findings:#?}");
        assert_eq!(has("vxlan"), purpose == Purpose::Cluster, "{findings:#?}");
    }
    // Without a purpose all is shown, and a launch is what counts.
    let output = check(&["--json"]).output().unwrap();
    let findings = findings(&output);
    assert!(output.status.success(), "{findings:#?}");
    assert_eq!(findings["vxlan"].group, "cluster");
}

#[test]
fn the_commands_alone_are_a_script() {
    if !has_tap() {
        return;
    }
    let script = check(&["--commands"]).output().unwrap();
    let text = stdout(&script);
    // Nothing here calls sudo, and a shell can read it.
    assert!(!text.contains("sudo"), "{text}");
    let read = Command::new("sh").args(["-n", "-c", &text]).output().unwrap();
    assert!(read.status.success(), "{}{text}", stderr(&read));
}

#[test]
fn what_is_tried_leaves_nothing_behind() {
    let directory = env::temp_dir().join(format!("check-data-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let output = check(&["--json", "--data-dir"]).arg(directory.join("not/there/yet")).output().unwrap();
    let findings = findings(&output);
    assert!(findings["data directory"].finding.contains("not/there/yet"), "{findings:#?}");
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
    std::fs::remove_dir(directory).unwrap();
}

#[test]
fn without_newuidmap_a_launch_works_and_a_node_does_not() {
    if !has_tap() {
        return;
    }
    if nix::unistd::geteuid().is_root() {
        crate::support::skipped("root needs no subordinate ids");
        return;
    }
    // Programs of the system's own directories are found all the same, newuidmap is taken from PATH.
    let output = check(&["--json"]).env("PATH", "/nowhere").output().unwrap();
    let findings = findings(&output);
    assert!(output.status.success(), "{findings:#?}");
    assert_eq!(findings["subordinate ids"].verdict, "fail");
    assert_eq!(findings["subordinate ids"].fix, "apt-get install uidmap");
}

#[test]
fn no_new_privileges_are_told() {
    if !has_tap() || !has_program("setpriv") {
        return;
    }
    let mut command = Command::new("setpriv");
    let output =
        command.args(["--no-new-privs", LAUNCHER, "check", "--json", "--for=node"]).output().unwrap();
    let findings = findings(&output);
    assert_eq!(findings["no_new_privs"].verdict, "fail", "{findings:#?}");
    assert_eq!(findings["no_new_privs"].fix, "");
    if !nix::unistd::geteuid().is_root() {
        assert!(findings["subordinate ids"].finding.contains("NoNewPrivs"), "{findings:#?}");
    }
}

#[test]
fn a_limit_of_namespaces_is_named() {
    let script = "echo 0 > /proc/sys/user/max_user_namespaces; $LAUNCHER check --json || true";
    let Some(output) = on_machine(script) else { return };
    let findings = findings(&output);
    for name in ["namespaces", "node namespaces"] {
        assert_eq!(findings[name].verdict, "fail", "{findings:#?}");
        assert!(findings[name].fix.contains("user.max_user_namespaces=28633"), "{findings:#?}");
    }
}

#[test]
fn a_covered_proc_stops_a_node_only() {
    // The kernel lets nobody mount a proc that shows more than the one he sees (mount_too_revealing).
    let script = "mount -t tmpfs none /proc/bus || mount -t tmpfs none /proc/fs; $LAUNCHER check --json";
    let Some(output) = on_machine(script) else { return };
    let findings = findings(&output);
    assert!(output.status.success(), "{findings:#?}");
    assert_eq!(findings["proc"].verdict, "fail", "{findings:#?}");
}

#[test]
fn programs_that_are_there_but_no_good_are_told() {
    let directory = env::temp_dir().join(format!("check-programs-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    // Another process writes them: what is open for writing in any copy of ours cannot be executed.
    let write = "cd \"$1\"; p() { printf '#!/bin/sh\\n%s\\n' \"$2\" > $1; chmod 755 $1; }; \
        p containerd 'echo containerd github.com/containerd/containerd 1.6.20~ds1'; p containerd-shim-runc-v2 'exit 1'; \
        p kubelet 'echo kubelet: libc is too old; exit 1'; p flanneld 'echo v0.28.0'";
    assert!(Command::new("sh").args(["-ec", write, "sh"]).arg(&directory).status().unwrap().success());
    let output = check(&["--json", "--for=cluster", "--bin-dir"]).arg(&directory).output().unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
    let findings = findings(&output);
    let runtime = &findings["container runtime"];
    assert_eq!(runtime.verdict, "fail");
    assert!(
        runtime.finding.contains("1.6.20") && runtime.finding.contains("older than 1.7.0"),
        "{runtime:?}"
    );
    assert!(findings["kubelet"].finding.ends_with("does not run: kubelet: libc is too old"), "{findings:#?}");
    assert!(findings["flannel"].finding.contains("0.28.0"), "{findings:#?}");
}

#[test]
fn a_port_that_is_taken_is_told_with_its_owner() {
    const NAME: &str = "a_port_that_is_taken_is_told_with_its_owner";
    if env::var_os(TASK).is_some() {
        let _listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 10250)).unwrap();
        let _ = check(&["--json", "--for=node"]).status().unwrap();
        return;
    }
    if !has_namespaces() {
        return;
    }
    let mut command = Command::new("unshare");
    command.arg("-Urn").arg(env::current_exe().unwrap());
    let findings = findings(&report_in(copy_of_this_test(&mut command, NAME, "listen")));
    let port = &findings["10250/tcp"];
    assert_eq!(port.verdict, "fail");
    assert!(port.finding.starts_with("taken by "), "{port:?}");
    assert!(port.finding.contains("(process "), "{port:?}");
}

/// Security modules and filters answer with one errno or the other: AppArmor by clone, or later by mount.
#[test]
fn a_refusal_is_told_whatever_its_errno_and_its_place() {
    const NAME: &str = "a_refusal_is_told_whatever_its_errno_and_its_place";
    if let Some(task) = env::var_os(TASK) {
        become_check_behind_filter(task.to_str().unwrap());
    }
    if !has_tap() {
        return;
    }
    let cases = [
        ("clone3", libc::EPERM, "namespaces", "namespaces are forbidden here"),
        ("clone3", libc::EACCES, "namespaces", "namespaces are forbidden here"),
        ("clone3", libc::ENOSYS, "namespaces", "a seccomp filter forbids"),
        ("mount", libc::EPERM, "mounts", "mounts are forbidden here"),
        ("mount", libc::EACCES, "mounts", "mounts are forbidden here"),
    ];
    for (call, errno, name, cause) in cases {
        let mut command = Command::new(env::current_exe().unwrap());
        let output = copy_of_this_test(&mut command, NAME, &format!("{call} {errno}"));
        let findings = findings(&report_in(output));
        let finding = &findings[name];
        assert_eq!(finding.verdict, "fail", "{call} {errno}: {findings:#?}");
        assert!(finding.finding.contains(cause), "{call} {errno}: {finding:?}");
    }
}

/// A filter belongs to a thread; execve(2) ends all others.
fn become_check_behind_filter(task: &str) -> ! {
    let (call, errno) = task.split_once(' ').unwrap();
    let call = if call == "mount" { libc::SYS_mount } else { libc::SYS_clone3 };
    let rules = BTreeMap::from([(call, Vec::new())]);
    let refuse = SeccompAction::Errno(errno.parse().unwrap());
    let filter =
        SeccompFilter::new(rules, SeccompAction::Allow, refuse, env::consts::ARCH.try_into().unwrap());
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    let filtered = thread::spawn(move || {
        apply_filter(&program).unwrap();
        check(&["--json", "--for=launch"]).exec()
    });
    panic!("{:?}", filtered.join());
}
