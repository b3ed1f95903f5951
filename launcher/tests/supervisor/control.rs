//! The control socket, well and badly used.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use launcher::supervisor::control::UnitStatus;
use launcher::supervisor::unit::{Readiness, Restart, Unit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Node, PATIENCE, Scratch, after, daemon, unit};

const SCRIPT: &str = "[ -e $D/broken ] && exit 5; touch $D/a.ready; exec sleep 1000";

fn node(scratch: &Scratch) -> Node {
    let node = Node::start(
        scratch,
        vec![daemon(scratch, "a", SCRIPT), after("a", unit(scratch, "b", "exec sleep 1000"))],
    );
    node.wait_ready();
    node
}

/// What comes back for some bytes, after which our side is shut.
fn talk(node: &Node, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(node.control()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    // A server that refuses early may reset what it did not read.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_unit_is_started_again_on_request() {
    let scratch = Scratch::new();
    let node = node(&scratch);
    let (before, other) = (node.pid("a"), node.pid("b"));
    let restart = || {
        let (status, body) = node.ask("POST", "/v1/node/units/a/restart");
        assert_eq!(status, 200);
        serde_json::from_str::<UnitStatus>(&body).unwrap()
    };
    let unit = restart();
    assert_eq!((unit.state.as_str(), unit.restarts), ("ready", 1));
    assert!(unit.pid.is_some_and(|pid| pid != before));
    assert_eq!(node.pid("b"), other);
    std::fs::write(scratch.path("broken"), "").unwrap();
    std::fs::remove_file(scratch.path("a.ready")).unwrap();
    let unit = restart();
    assert_eq!((unit.state.as_str(), unit.failure.as_deref()), ("paused", Some("exited with status 5")));
    std::fs::remove_file(scratch.path("broken")).unwrap();
    assert_eq!(restart().state, "ready");
    let (status, body) = node.ask("POST", "/v1/node/units/c/restart");
    assert_eq!((status, body.as_str()), (404, r#"{"message":"there is no unit \"c\"; there are a, b"}"#));
    assert!(node.stop().0.success());
}

#[test]
fn everything_is_stopped_on_request() {
    let scratch = Scratch::new();
    let node = node(&scratch);
    assert_eq!(node.ask("POST", "/v1/node/stop"), (202, "{}".into()));
    let (ended, text) = node.end();
    assert!(ended.success(), "{text}");
}

#[test]
fn what_is_there_for_the_stop_is_run_then_unless_somebody_is_in_a_hurry() {
    let scratch = Scratch::new();
    let start = |script: &str| {
        let farewell = after("a", unit(&scratch, "bye", script));
        let farewell = Unit { ready: Readiness::AtStop, restart: Restart::Never, ..farewell };
        let keeper = "trap 'echo a >>$D/diary; exit' TERM; touch $D/a.ready; sleep 1000 & wait";
        let node = Node::start(&scratch, vec![daemon(&scratch, "a", keeper), farewell]);
        node.wait_ready();
        let bye = node.unit("bye");
        assert_eq!((bye.state.as_str(), bye.pid, scratch.read("diary")), ("ready", None, String::new()));
        assert_eq!(node.ask("POST", "/v1/node/stop").0, 202);
        node
    };
    assert!(start("echo bye >>$D/diary").end().0.success());
    assert_eq!(scratch.read("diary"), "bye\na\n");

    std::fs::remove_file(scratch.path("diary")).unwrap();
    std::fs::remove_file(scratch.path("a.ready")).unwrap();
    let node = start("exec sleep 1000");
    node.wait_told("STATUS=1 of 2 units ready; not bye");
    assert_eq!(node.ask("POST", "/v1/node/stop").0, 202);
    assert!(node.end().0.success());
    assert_eq!(scratch.read("diary"), "a\n");
    assert!(scratch.read("log/bye.log").contains("killed"), "{}", scratch.read("log/bye.log"));
}

#[test]
fn nonsense_is_refused_and_does_no_harm() {
    let scratch = Scratch::new();
    let node = node(&scratch);
    for (bytes, status) in [
        (&b"\r\n\r\n"[..], "400"),
        (b"GET /v1/node\r\n\r\n", "400"),
        (b"GET /v1/node HTTP/3\r\n\r\n", "505"),
        (b"POST /v1/node HTTP/1.1\r\n\r\n", "405"),
        (b"GET /v1/ports HTTP/1.1\r\n\r\n", "404"),
        (b"POST /v1/node/stop HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "413"),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", "400"),
        (&[b'x'; 9000], "431"),
    ] {
        let answer = talk(&node, bytes);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{:?}: {answer}",
            &bytes[..bytes.len().min(40)]
        );
    }
    // Half a request, and nothing at all.
    for bytes in [&b"GET /v1/no"[..], b""] {
        let mut stream = UnixStream::connect(node.control()).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0; 100]).unwrap_or(0), 0);
    }
    assert!(node.status().ready);
    assert!(node.stop().0.success());
}

#[test]
fn clients_that_vanish_or_crowd_keep_nobody_away() {
    let scratch = Scratch::new();
    let node = node(&scratch);
    for request in
        ["GET /v1/node/units/a/log?follow=true HTTP/1.1\r\n\r\n", "GET /v1/node HTTP/1.1\r\n\r\n", "GET"]
    {
        for _ in 0..100 {
            let mut stream = UnixStream::connect(node.control()).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
        }
    }
    assert!(node.status().ready);
    let crowd: Vec<UnixStream> = (0..32).map(|_| UnixStream::connect(node.control()).unwrap()).collect();
    let answer = talk(&node, b"");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    drop(crowd);
    assert!(node.status().ready);
    // Somebody who waits for a unit that will not come is told at the end.
    std::fs::write(scratch.path("broken"), "").unwrap();
    kill(Pid::from_raw(node.pid("a")), Signal::SIGKILL).unwrap();
    node.wait_told("STATUS=1 of 2 units ready; not a");
    assert!(node.stop().0.success());
}
