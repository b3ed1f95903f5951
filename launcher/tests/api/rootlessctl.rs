//! The client of RootlessKit, as Debian has it, against our server.

use std::process::{Command, Output};

use crate::support::{Bench, skipped};

/// Runs it; nothing if it is not installed.
fn rootlessctl(bench: &Bench, args: &[&str]) -> Option<Output> {
    let mut command = Command::new("rootlessctl");
    command.env("ROOTLESSKIT_STATE_DIR", bench.directory()).args(args);
    match command.output() {
        Ok(output) => Some(output),
        Err(error) => {
            skipped(&format!("no rootlessctl: {error}"));
            None
        }
    }
}

#[track_caller]
fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[test]
fn rootlessctl_adds_lists_and_removes_ports() {
    let bench = Bench::new();
    let Some(added) = rootlessctl(&bench, &["add-ports", "127.0.0.1:8080:80/tcp", "0.0.0.0:5353:53/udp"])
    else {
        return;
    };
    assert_eq!(text(&added), "1\n2\n");
    let list = text(&rootlessctl(&bench, &["list-ports"]).unwrap());
    let lines: Vec<_> = list.lines().collect();
    assert_eq!(words(lines[0]), ["ID", "PROTO", "PARENTIP", "PARENTPORT", "CHILDIP", "CHILDPORT"]);
    assert_eq!(words(lines[1]), ["1", "tcp", "127.0.0.1", "8080", "80"]);
    assert_eq!(words(lines[2]), ["2", "udp", "0.0.0.0", "5353", "53"]);
    let json = text(&rootlessctl(&bench, &["list-ports", "--json"]).unwrap());
    assert!(
        json.starts_with(
            r#"{"id":1,"spec":{"proto":"tcp","parentIP":"127.0.0.1","parentPort":8080,"childPort":80}}"#
        ),
        "{json}"
    );
    assert_eq!(text(&rootlessctl(&bench, &["remove-ports", "1", "2"]).unwrap()), "1\n2\n");
    assert_eq!(text(&rootlessctl(&bench, &["list-ports", "--json"]).unwrap()), "");
}

#[test]
fn rootlessctl_shows_our_refusals() {
    let bench = Bench::new();
    let Some(_) = rootlessctl(&bench, &["add-ports", "127.0.0.1:8080:80/tcp"]) else { return };
    let again = rootlessctl(&bench, &["add-ports", "127.0.0.1:8080:81/tcp"]).unwrap();
    assert!(!again.status.success());
    assert!(String::from_utf8_lossy(&again.stderr).contains("the port is in use"), "{again:?}");
    let unknown = rootlessctl(&bench, &["remove-ports", "7"]).unwrap();
    assert!(!unknown.status.success());
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("there is no port 7"), "{unknown:?}");
}

#[test]
fn rootlessctl_shows_what_the_instance_is() {
    let bench = Bench::new();
    let Some(info) = rootlessctl(&bench, &["info"]) else { return };
    let expected = "- REST API version: 1.1.1\n\
                    - Implementation version: 0.1.0\n\
                    - State Directory: /run/user/1000/rootless-launch/x\n\
                    - Child PID: 42\n\
                    - Network Driver: rootless-launch\n  - DNS: [10.0.42.3]\n  - IP: 10.0.42.100\n\
                    - Port Driver: rootless-launch\n  - Supported protocols: [tcp tcp4 tcp6 udp udp4 udp6]\n";
    assert_eq!(text(&info), expected);
    let json = text(&rootlessctl(&bench, &["info", "--json"]).unwrap());
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["childPID"], 42);
    assert_eq!(json["networkDriver"]["childIP"], "10.0.42.100");
}
