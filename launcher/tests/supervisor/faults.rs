//! Units that fail, and supervisors that are treated badly.

use std::io::{BufRead, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use launcher::client::http::{self, Request};
use launcher::supervisor::unit::{PlannedFile, Readiness, Restart, Unit};
use nix::sys::signal::Signal;

use crate::support::{LAUNCHER, Node, Scratch, Watched, after, daemon, plan, unit};

/// Ready, and ends when asked.
const GOOD: &str = "touch $D/good.ready; exec sleep 1000";

#[test]
fn a_crash_at_start_is_told_with_the_last_lines() {
    let scratch = Scratch::new();
    let bad = daemon(&scratch, "bad", "echo run >>$D/runs; echo why it fails >&2; exit 3");
    let node = Node::start(&scratch, vec![daemon(&scratch, "good", GOOD), after("good", bad)]);
    let (ended, text) = node.end();
    assert_eq!(ended.code(), Some(1));
    assert_eq!(scratch.read("runs").lines().count(), 5, "{text}");
    let last = text.rsplit_once("error: ").unwrap().1;
    assert!(last.starts_with("unit bad exited with status 3\nthe last lines of its log, /"), "{text}");
    assert!(last.contains("/log/bad.log:\n    ") && last.contains("\n    why it fails\n"), "{text}");
}

#[test]
fn a_unit_that_is_never_ready_is_told_with_what_was_seen() {
    let scratch = Scratch::new();
    let bad = Unit {
        start_timeout: Duration::from_millis(300),
        ..daemon(&scratch, "bad", "echo I think about it; exec sleep 1000")
    };
    let (ended, text) = Node::start(&scratch, vec![daemon(&scratch, "good", GOOD), after("good", bad)]).end();
    assert_eq!(ended.code(), Some(1));
    assert!(text.contains("unit bad was not ready within 300ms (it is ready when /"), "{text}");
    assert!(text.contains("/bad.ready is there); last seen: "), "{text}");
    assert!(text.contains("\n    I think about it\n"), "{text}");
}

#[test]
fn a_program_that_is_missing_is_named() {
    let scratch = Scratch::new();
    let bad = Unit { argv: vec!["/nowhere/kubelet".into()], ..unit(&scratch, "kubelet", "") };
    let (ended, text) = Node::start(&scratch, vec![bad]).end();
    assert_eq!(ended.code(), Some(1));
    let why = "unit kubelet cannot be started: /nowhere/kubelet: No such file or directory";
    assert!(text.contains(why), "{text}");
}

#[test]
fn what_is_deaf_to_sigterm_is_killed() {
    let scratch = Scratch::new();
    let deaf = Unit {
        stop_timeout: Duration::from_millis(100),
        ..daemon(&scratch, "deaf", "trap '' TERM; touch $D/deaf.ready; while :; do sleep 1000; done")
    };
    let stopped = daemon(&scratch, "stopped", "touch $D/stopped.ready; kill -STOP $$");
    let node = Node::start(&scratch, vec![deaf, stopped]);
    node.wait_ready();
    let deaf = Watched::new(node.pid("deaf"));
    let (ended, text) = node.stop();
    assert!(ended.success(), "{text}");
    assert!(!deaf.is_alive());
    assert!(scratch.read("log/deaf.log").contains("did not end when asked; killed"));
    assert!(!scratch.read("log/stopped.log").contains("killed\n"), "one that was stopped hears it");
}

#[test]
fn a_second_interrupt_is_an_order_and_a_second_sigterm_is_not() {
    let scratch = Scratch::new();
    let deaf = "trap 'echo asked' TERM; touch $D/deaf.ready; while :; do sleep 1000 & wait $!; done";
    let last = "trap 'sleep 0.1; exit 0' TERM; touch $D/last.ready; while :; do sleep 1000 & wait $!; done";
    let units = vec![daemon(&scratch, "deaf", deaf), after("deaf", daemon(&scratch, "last", last))];
    let node = Node::start(&scratch, units);
    node.wait_ready();
    let target = "/v1/node/units/deaf/log?lines=0&follow=true";
    let follower = http::send(node.control(), &Request::new("GET", target)).unwrap();
    node.signal(Signal::SIGTERM);
    node.signal(Signal::SIGTERM);
    // It is asked when the other one has ended, which was not killed.
    assert_eq!(follower.body.lines().next().unwrap().unwrap(), "asked");
    assert!(scratch.read("log/last.log").contains("exited with status 0"));
    node.signal(Signal::SIGINT);
    let (ended, text) = node.end();
    assert!(ended.success(), "{text}");
    assert!(scratch.read("log/deaf.log").contains("did not end when asked; killed"));
}

#[test]
fn units_die_with_a_supervisor_that_is_killed_and_the_next_one_starts() {
    let scratch = Scratch::new();
    let units = || vec![daemon(&scratch, "good", GOOD)];
    let node = Node::start(&scratch, units());
    node.wait_ready();
    let unit = Watched::new(node.pid("good"));
    node.signal(Signal::SIGKILL);
    assert_eq!(node.end().0.signal(), Some(9));
    unit.assert_dies();
    assert!(scratch.path("node.sock").exists(), "left behind");
    let node = Node::start(&scratch, units());
    node.wait_ready();
    assert!(node.status().ready);
    assert!(node.stop().0.success());
}

#[test]
fn one_that_is_killed_at_any_step_of_its_start_starts_again() {
    let scratch = Scratch::new();
    let once =
        Unit { ready: Readiness::Exited, restart: Restart::OnFailure, ..unit(&scratch, "once", "exec true") };
    let units = || {
        vec![
            once.clone(),
            after("once", daemon(&scratch, "good", GOOD)),
            after("good", unit(&scratch, "last", "exec sleep 1000")),
        ]
    };
    for steps in 0..6 {
        let node = Node::start(&scratch, units());
        (0..steps).for_each(|_| node.wait_any());
        node.signal(Signal::SIGKILL);
        assert_eq!(node.end().0.signal(), Some(9));
    }
    let node = Node::start(&scratch, units());
    node.wait_ready();
    assert!(node.stop().0.success());
}

#[test]
fn a_second_supervisor_is_refused_and_harms_nothing() {
    let scratch = Scratch::new();
    let first = Node::start(&scratch, vec![daemon(&scratch, "good", GOOD)]);
    first.wait_ready();
    let mut second = plan(&scratch, vec![daemon(&scratch, "good", GOOD)]);
    let file = PlannedFile { path: scratch.path("file"), mode: 0o600, text: String::new() };
    second.files.push(file);
    let (ended, text) = Node::start_plan(&scratch, &second, Command::new(LAUNCHER)).end();
    assert_eq!(ended.code(), Some(1));
    assert!(text.contains("a supervisor runs already with the logs in"), "{text}");
    assert!(!scratch.path("file").exists(), "nothing was touched");
    second.log_dir = scratch.path("other");
    let (_, text) = Node::start_plan(&scratch, &second, Command::new(LAUNCHER)).end();
    assert!(text.contains("somebody else listens on"), "{text}");
    assert!(first.status().ready);
    assert!(first.stop().0.success());
}

#[test]
fn mistakes_of_a_plan_are_named_before_anything_is_done() {
    let scratch = Scratch::new();
    let refused = |text: &str| {
        let mut command = Command::new(LAUNCHER);
        command.args(["node-supervisor", "--plan-fd=0"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        // It may have refused before it has read all.
        let _ = process.stdin.take().unwrap().write_all(text.as_bytes());
        let output = process.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refused("").contains("the plan is not the JSON that it should be: EOF"));
    assert!(refused("[").contains("the plan is not the JSON"));
    let mut plan =
        plan(&scratch, vec![after("b", unit(&scratch, "a", "")), after("a", unit(&scratch, "b", ""))]);
    let text = refused(&serde_json::to_string(&plan).unwrap());
    assert!(text.contains("the plan cannot be done: units wait for each other: a after b after a"), "{text}");
    assert!(!plan.log_dir.exists());
    plan.units.clear();
    plan.files.push(PlannedFile { path: scratch.path("no/file"), mode: 0o600, text: String::new() });
    let text = refused(&serde_json::to_string(&plan).unwrap());
    assert!(text.contains("cannot write the file \"") && text.contains("no/file\": No such file"), "{text}");
    let output = Command::new(LAUNCHER).args(["node-supervisor", "--plan-fd=99"]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("cannot read the plan from descriptor 99: Bad file descriptor"), "{text}");
}

#[test]
fn a_unit_that_may_not_come_back_is_told_and_the_rest_goes_on() {
    let scratch = Scratch::new();
    let never = Unit {
        ready: Readiness::Started,
        restart: Restart::Never,
        ..unit(&scratch, "never", "trap 'exit 4' USR1; while :; do sleep 1000 & wait $!; done")
    };
    let node = Node::start(&scratch, vec![daemon(&scratch, "good", GOOD), never]);
    node.wait_ready();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(node.pid("never")), Signal::SIGKILL).unwrap();
    node.wait_told("STATUS=1 of 2 units ready; not never");
    let unit = node.unit("never");
    assert_eq!((unit.state.as_str(), unit.failure.as_deref()), ("failed", Some("was killed by SIGKILL")));
    assert!(node.unit("good").is_good() && !node.status().ready);
    let (_, text) = node.stop();
    assert!(text.contains("unit never was killed by SIGKILL; it stays down"), "{text}");
}
