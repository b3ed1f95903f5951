//! The binary's own commands against a server with a stand-in.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};

use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::{Bench, full_flow, skipped, wait_for};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rootless-launch");

fn command(bench: &Bench, args: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(args).env("ROOTLESSKIT_STATE_DIR", bench.directory()).stdin(Stdio::null());
    command
}

fn run(bench: &Bench, args: &[&str]) -> Output {
    command(bench, args).output().unwrap()
}

#[track_caller]
fn text(bench: &Bench, args: &[&str]) -> String {
    let output = run(bench, args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Status and complaint.
fn complaint(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn ports_are_published_listed_and_taken_back() {
    let bench = Bench::new();
    let added = text(&bench, &["port", "add", "127.0.0.1:8080:80", "[::1]:53:53/udp"]);
    assert_eq!(added, "1\t127.0.0.1:8080:80/tcp\n2\t[::1]:53:53/udp\n");
    let added = text(&bench, &["port", "add", "--json", "9000:9"]);
    assert_eq!(added, "{\"id\":3,\"spec\":{\"proto\":\"tcp\",\"parentPort\":9000,\"childPort\":9}}\n");
    let list = text(&bench, &["port", "list"]);
    assert_eq!(list.lines().count(), 4);
    assert!(list.contains("2   udp    [::1]:53        :53"), "{list}");
    assert_eq!(text(&bench, &["port", "remove", "1", "[::1]:53:53/udp"]), "1\n2\n");
    let list: Value = serde_json::from_str(&text(&bench, &["port", "list", "--json"])).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 1);
}

#[test]
fn refusals_are_told_with_the_servers_words() {
    let bench = Bench::new();
    text(&bench, &["port", "add", "8080:80"]);
    let (status, told) = complaint(&run(&bench, &["port", "add", "8080:81"]));
    assert_eq!((status, told.as_str()), (Some(1), "rootless-launch: error: the port is in use\n"));
    let (status, told) = complaint(&run(&bench, &["port", "remove", "7:7"]));
    assert_eq!(
        (status, told.as_str()),
        (Some(1), "rootless-launch: error: no port is published as 7:7/tcp\n")
    );
    assert_eq!(run(&bench, &["port", "add", "nonsense"]).status.code(), Some(2));
    assert_eq!(run(&bench, &["capture", "stop"]).status.code(), Some(1));
}

#[test]
fn changes_are_watched_until_the_instance_ends() {
    let mut bench = Bench::new();
    text(&bench, &["port", "add", "8080:80"]);
    let mut watch = command(&bench, &["port", "watch"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "added    1  8080:80/tcp");
    text(&bench, &["port", "remove", "1"]);
    assert_eq!(lines.next().unwrap().unwrap(), "removed  1  8080:80/tcp");
    bench.stop();
    assert!(lines.next().is_none());
    watch.wait().unwrap();
}

#[test]
fn what_an_instance_is_and_does_is_shown() {
    let bench = Bench::new();
    let info = text(&bench, &["info"]);
    assert!(info.contains("\ncommand          process 42\n"), "{info}");
    let outbound = "IPv4 by the relay; IPv6 by the TAP (nftables table: no)";
    assert!(info.contains(&format!("\n  outbound TCP   {outbound}\n")), "{info}");
    let stats = text(&bench, &["stats"]);
    assert!(stats.contains("dropped 1: bad checksum\n"), "{stats}");
    let relay = "on the relay: 1 connections, 2 since the start; 3 took the TAP instead; 4 B from child, 5 B to child\n";
    assert!(stats.contains(relay), "{stats}");
    let info: Value = serde_json::from_str(&text(&bench, &["info", "--json"])).unwrap();
    assert_eq!(info["apiVersion"], "1.1.1");
    std::thread::scope(|scope| {
        let flows =
            scope.spawn(|| text(&bench, &["flows", "--protocol=tcp", "--remote=192.0.2.1", "--limit=7"]));
        wait_for(|| !bench.fake.waiting.lock().unwrap().is_empty());
        bench.fake.waiting.lock().unwrap().pop().unwrap().send(Ok(full_flow()));
        let flows = flows.join().unwrap();
        let words: Vec<_> = flows.lines().nth(1).unwrap().split_whitespace().collect();
        let expected = "tcp 10.0.42.100:40000 -> 192.0.2.1:443 open relay 1.5 KiB 7 B 2 s";
        assert_eq!(words.join(" "), expected);
    });
}

#[test]
fn rules_and_names_are_shown_and_changed() {
    let bench = Bench::new();
    assert_eq!(text(&bench, &["policy", "get"]), "no rules: everything is allowed\n");
    let mut set = command(&bench, &["policy", "set", "-"]);
    let mut set = set.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    set.stdin.take().unwrap().write_all(b"# none\n\ndeny any:25\n").unwrap();
    assert!(set.wait().unwrap().success());
    text(&bench, &["policy", "add", "--first", "allow 192.0.2.1"]);
    let policy: Value = serde_json::from_str(&text(&bench, &["policy", "get", "--json"])).unwrap();
    assert_eq!(policy, json!({"rules": ["allow 192.0.2.1", "deny any:25"]}));
    let (status, told) = complaint(&run(&bench, &["policy", "add", "forbid any"]));
    assert_eq!((status, told.contains("allow or deny")), (Some(1), true), "{told}");
    let dns = text(&bench, &["dns", "set", "--server=9.9.9.9", "--dns-name=a.b=::2"]);
    assert_eq!(dns, "servers: 9.9.9.9:53\na.b ::2\n");
    assert_eq!(text(&bench, &["dns", "get"]), dns);
    assert_eq!(run(&bench, &["dns", "set"]).status.code(), Some(2));
}

#[test]
fn peers_of_the_overlay_are_shown_and_changed() {
    let bench = Bench::new();
    let listed = text(&bench, &["overlay", "list"]);
    let mut lines = listed.lines();
    assert_eq!(lines.next(), Some("UDP port 8472; peers that may send: those that the child sends to"));
    assert_eq!(lines.next(), Some("5 datagrams refused, the latest of 198.51.100.1"));
    let words: Vec<_> = lines.nth(1).unwrap().split_whitespace().collect();
    assert_eq!(words.join(" "), "192.0.2.7 3 1.5 KiB 2 7 B 2 s");
    text(&bench, &["overlay", "add", "192.0.2.0/24", "2001:db8::7"]);
    let left = text(&bench, &["overlay", "remove", "192.0.2.0/24"]);
    assert!(left.starts_with("UDP port 8472; peers that may send: 2001:db8::7\n"), "{left}");
    assert_eq!(run(&bench, &["overlay", "add", "192.0.2.1/24"]).status.code(), Some(2));
}

#[test]
fn frames_are_captured_to_a_file_of_the_caller() {
    let bench = Bench::new();
    let path = std::env::temp_dir().join(format!("rootless-launch-commands-{}.pcap", std::process::id()));
    std::fs::write(&path, "longer than what comes").unwrap();
    text(&bench, &["capture", "start", path.to_str().unwrap()]);
    assert_eq!(run(&bench, &["capture", "start", path.to_str().unwrap()]).status.code(), Some(1));
    assert_eq!(text(&bench, &["capture", "stop"]), "no capture runs; 0 frames, 0 B written\n");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "frames");
    std::fs::remove_file(path).unwrap();
}

#[test]
fn the_instance_that_is_meant_has_to_run() {
    let (one, two) = (Bench::new(), Bench::new());
    let directory = one.directory().to_str().unwrap();
    // An option counts more than the environment.
    text(&one, &["port", "add", "8080:80"]);
    assert_eq!(text(&two, &["port", "list", "--state-dir", directory]).lines().count(), 2);
    let (status, told) = complaint(&run(&one, &["info", "--state-dir=/nonexistent"]));
    assert_eq!((status, told.contains("no instance runs in \"/nonexistent\"")), (Some(2), true), "{told}");
}

#[test]
fn one_instance_among_several_is_chosen_by_name() {
    let runtime = std::env::temp_dir().join(format!("rootless-launch-runtime-{}", std::process::id()));
    std::fs::create_dir(&runtime).unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command
            .args(args)
            .env("XDG_RUNTIME_DIR", &runtime)
            .env_remove("ROOTLESSKIT_STATE_DIR")
            .output()
            .unwrap()
    };
    assert_eq!(complaint(&run(&["info"])), (Some(2), "rootless-launch: error: no instance runs\n".into()));
    let base = runtime.join("rootless-launch");
    let open = |name: &str| Bench::at(base.join(name));
    let _a = open("a");
    assert_eq!(run(&["port", "list"]).status.code(), Some(0), "the only one");
    let b = open("b");
    let (status, told) = complaint(&run(&["info"]));
    assert_eq!((status, told.ends_with("choose one by --name: a, b\n")), (Some(2), true), "{told}");
    assert_eq!(run(&["info", "--name=b"]).status.code(), Some(0));
    b.state_dir().publish(Pid::from_raw(77)).unwrap();
    let all = run(&["instances", "--json"]);
    let all: Value = serde_json::from_slice(&all.stdout).unwrap();
    let expected = json!([
        {"name": "a", "stateDir": base.join("a"), "launcherPID": std::process::id(), "childPID": null},
        {"name": "b", "stateDir": base.join("b"), "launcherPID": std::process::id(), "childPID": 77},
    ]);
    assert_eq!(all, expected);
    assert_eq!(String::from_utf8(run(&["instances"]).stdout).unwrap().lines().count(), 3);
    drop((_a, b));
    std::fs::remove_dir_all(&runtime).unwrap();
}

/// A process in namespaces of its own that stands for CMD, and ends with its standard input.
fn namespaced() -> Option<std::process::Child> {
    let script = "echo ready; exec cat";
    let mut command = Command::new("unshare");
    command.args(["-Urmn", "--uts", "sh", "-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::null()).spawn().ok()?;
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    if line == "ready\n" {
        return Some(child);
    }
    skipped("no user namespaces here");
    None
}

#[test]
fn a_command_enters_the_namespaces_of_an_instance() {
    let bench = Bench::new();
    let (status, told) = complaint(&run(&bench, &["enter", "true"]));
    assert_eq!((status, told.contains("is not ready yet")), (Some(1), true), "{told}");
    let Some(mut child) = namespaced() else { return };
    bench.state_dir().publish(Pid::from_raw(child.id().cast_signed())).unwrap();

    let inside = |kind: &str| {
        let link = std::fs::read_link(format!("/proc/{}/ns/{kind}", child.id())).unwrap();
        link.to_str().unwrap().to_owned()
    };
    let script =
        "readlink /proc/self/ns/user /proc/self/ns/mnt /proc/self/ns/net /proc/self/ns/uts; id -u; pwd
        echo $ROOTLESSKIT_STATE_DIR $ROOTLESSKIT_PARENT_EUID; exit 7";
    let mut enter = command(&bench, &["enter", "sh", "-c", script]);
    let output = enter.current_dir("/usr").output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    let about = format!("{} {}", bench.directory().display(), nix::unistd::geteuid());
    let expected = [&inside("user"), &inside("mnt"), &inside("net"), &inside("uts"), "0", "/usr", &about];
    assert_eq!(told.lines().collect::<Vec<_>>(), expected);
    assert_eq!(output.status.code(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));

    // A shell by default, here fed by a pipe; and what a shell says of what it cannot run.
    let mut shell =
        command(&bench, &["enter"]).env("SHELL", "/bin/sh").stdin(Stdio::piped()).spawn().unwrap();
    shell.stdin.take().unwrap().write_all(b"exit 9\n").unwrap();
    assert_eq!(shell.wait().unwrap().code(), Some(9));
    assert_eq!(run(&bench, &["enter", "no-such-program"]).status.code(), Some(127));
    assert_eq!(run(&bench, &["enter", "/etc/passwd"]).status.code(), Some(126));

    drop(child.stdin.take());
    child.wait().unwrap();
    let (status, told) = complaint(&run(&bench, &["enter", "true"]));
    assert_eq!((status, told.contains("has ended")), (Some(1), true), "{told}");
}

#[test]
fn completions_and_manual_pages_are_made() {
    let made =
        |args: &[&str]| String::from_utf8(Command::new(PROGRAM).args(args).output().unwrap().stdout).unwrap();
    for shell in ["bash", "zsh", "fish"] {
        assert!(made(&["completions", shell]).contains("instances"), "{shell}");
    }
    assert!(made(&["man"]).contains(".TH rootless-launch 1"));
    let directory = std::env::temp_dir().join(format!("rootless-launch-man-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    made(&["man", directory.to_str().unwrap()]);
    for page in ["rootless-launch.1", "rootless-launch-port-add.1"] {
        assert!(directory.join(page).exists(), "{page}");
    }
    std::fs::remove_dir_all(&directory).unwrap();
}
