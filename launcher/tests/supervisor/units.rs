//! Units start in order, come back when they die, and end in order.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use launcher::supervisor::unit::{PlannedDirectory, PlannedFile, Readiness, Restart, Unit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{LAUNCHER, Node, Scratch, Watched, after, daemon, plan, skipped, unit};

/// Notes its start and its end, and is ready in between.
fn diary(name: &str) -> String {
    format!(
        "trap 'echo {name} ends >>$D/diary; exit 0' TERM; echo {name} starts >>$D/diary; touch $D/{name}.ready; \
         while :; do sleep 1000 & wait $!; done"
    )
}

#[test]
fn units_run_after_each_other_and_end_backwards() {
    let scratch = Scratch::new();
    let once = Unit {
        ready: Readiness::Exited,
        restart: Restart::Never,
        ..unit(&scratch, "once", "cat $D/made/file >$D/copy; echo once >>$D/diary")
    };
    let [a, b, c] = ["a", "b", "c"].map(|name| daemon(&scratch, name, &diary(name)));
    let mut plan = plan(&scratch, vec![after("b", c), after("a", b), after("once", a), once]);
    plan.directories.push(PlannedDirectory { path: scratch.path("made/deep"), mode: 0o750 });
    let file = PlannedFile { path: scratch.path("made/file"), mode: 0o604, text: "content\n".into() };
    plan.files.push(file);
    let node = Node::start_plan(&scratch, &plan, Command::new(LAUNCHER));
    node.wait_ready();
    let mode = |name: &str| scratch.path(name).metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("made/deep"), mode("made/file"), mode("log")), (0o750, 0o604, 0o700));
    assert_eq!((mode("node.sock"), mode("log/a.log")), (0o600, 0o600));
    assert_eq!(scratch.read("copy"), "content\n");
    let status = node.status();
    assert!(status.ready && !status.stopping);
    let states: Vec<_> = status.units.iter().map(|unit| (unit.name.as_str(), unit.state.as_str())).collect();
    assert_eq!(states, [("once", "done"), ("a", "ready"), ("b", "ready"), ("c", "ready")]);

    let (ended, text) = node.stop();
    assert!(ended.success(), "{text}");
    assert_eq!(text, "");
    assert_eq!(scratch.read("diary"), "once\na starts\nb starts\nc starts\nc ends\nb ends\na ends\n");
    assert!(!scratch.path("node.sock").exists());
}

#[test]
fn every_kind_of_readiness_is_seen() {
    if Command::new("socat").arg("-V").output().is_err() {
        return skipped("no socat here");
    }
    let scratch = Scratch::new();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let socat = |name: &str, from: &str, to: &str| Unit {
        argv: ["socat", from, to].map(String::from).into(),
        ..unit(&scratch, name, "")
    };
    let path = scratch.path("x.sock");
    // socat would take some of its characters for its own.
    let text = "read line; printf 'HTTP/1.1 200 OK\\r\\n\\r\\n'";
    let answer = PlannedFile { path: scratch.path("answer"), mode: 0o700, text: text.into() };
    let units = vec![
        Unit {
            ready: Readiness::Notify,
            ..unit(
                &scratch,
                "notify",
                "printf 'STATUS=x\\nREADY=1' | socat -u - ABSTRACT-SENDTO:${NOTIFY_SOCKET#@}; exec sleep 1000",
            )
        },
        Unit {
            ready: Readiness::Notify,
            restart: Restart::OnFailure,
            ..unit(&scratch, "brief", "printf READY=1 | socat -u - ABSTRACT-SENDTO:${NOTIFY_SOCKET#@}")
        },
        Unit {
            ready: Readiness::UnixSocket { path: path.clone() },
            ..socat("socket", &format!("UNIX-LISTEN:{},fork", path.display()), "OPEN:/dev/null")
        },
        Unit {
            ready: Readiness::Http { address, path: "/healthz".into() },
            ..socat(
                "http",
                &format!("TCP-LISTEN:{},bind=127.0.0.1,reuseaddr,fork", address.port()),
                &format!("SYSTEM:sh {}", answer.path.display()),
            )
        },
    ];
    let mut plan = plan(&scratch, units);
    plan.files.push(answer);
    let node = Node::start_plan(&scratch, &plan, Command::new(LAUNCHER));
    node.wait_ready();
    let status = node.status();
    assert!(
        status.units.iter().all(|unit| unit.state == if unit.name == "brief" { "done" } else { "ready" })
    );
    let says = status.units.iter().find(|unit| unit.name == "notify").and_then(|unit| unit.says.clone());
    assert_eq!(says.as_deref(), Some("x"));
    assert!(node.stop().0.success());
}

#[test]
fn a_unit_that_dies_comes_back_and_what_comes_after_it_stays() {
    let scratch = Scratch::new();
    let node = Node::start(
        &scratch,
        vec![
            daemon(&scratch, "a", "echo run; touch $D/a.ready; exec sleep 1000"),
            after("a", unit(&scratch, "b", "exec sleep 1000")),
        ],
    );
    node.wait_ready();
    let before = node.pid("a");
    let other = node.pid("b");
    kill(Pid::from_raw(before), Signal::SIGSEGV).unwrap();
    node.wait_told("STATUS=1 of 2 units ready; not a");
    node.wait_told("STATUS=every unit is ready");
    let unit = node.unit("a");
    assert_ne!(unit.pid, Some(before));
    assert_eq!((unit.restarts, unit.last_exit.unwrap().signal), (1, Some(11)));
    assert_eq!(unit.failure, None, "that is over");
    assert_eq!((node.pid("b"), node.unit("b").restarts), (other, 0));
    let (_, text) = node.stop();
    let told =
        "rootless-launch: warning: unit a was killed by SIGSEGV; it will be started again; its log is ";
    assert!(text.starts_with(told), "{text}");
    let log = scratch.read("log/a.log");
    let lines: Vec<&str> = log.lines().map(|line| line.rsplit(": ").next().unwrap()).collect();
    assert_eq!(lines.iter().filter(|line| **line == "run").count(), 2, "{log}");
    assert!(log.contains(&format!("process {before} was killed by SIGSEGV")), "{log}");
}

#[test]
fn helpers_end_with_their_unit_and_those_that_left_it_with_the_supervisor() {
    let scratch = Scratch::new();
    let script = "sleep 1000 & echo $! >$D/helper; setsid sh -c 'echo $$ >$D/escaped; touch $D/a.ready; exec sleep 1000' & wait";
    let node = Node::start(&scratch, vec![daemon(&scratch, "a", script)]);
    node.wait_ready();
    let helper = Watched::named_by(&scratch, "helper");
    let escaped = Watched::named_by(&scratch, "escaped");
    let unit = Watched::new(node.pid("a"));
    std::fs::remove_file(scratch.path("a.ready")).unwrap();
    kill(Pid::from_raw(node.pid("a")), Signal::SIGKILL).unwrap();
    unit.assert_dies();
    helper.assert_dies();
    assert!(escaped.is_alive(), "it is not of the unit's group any more");
    assert!(node.stop().0.success());
    assert!(!escaped.is_alive());
}

#[test]
fn a_forking_daemon_is_told_to_stay() {
    let scratch = Scratch::new();
    let script = "setsid sleep 1000 & echo $! >$D/daemon; exit 0";
    let node = Node::start(&scratch, vec![Unit { restart: Restart::Never, ..daemon(&scratch, "a", script) }]);
    let (ended, text) = node.end();
    assert_eq!(ended.code(), Some(1));
    assert!(
        text.contains("unit a exited with status 0 before it was ready; it has to stay in the foreground"),
        "{text}"
    );
    let pid: i32 = scratch.read("daemon").trim().parse().unwrap();
    assert_eq!(kill(Pid::from_raw(pid), None), Err(nix::errno::Errno::ESRCH), "nobody is left");
}

#[test]
fn units_have_no_terminal_no_input_and_no_blocked_signal() {
    let scratch = Scratch::new();
    let script = "cat; grep -E '^Sig(Blk|Ign)' /proc/self/status; cut -d' ' -f5-7 /proc/self/stat; echo $$; pwd; \
                  ls /proc/self/fd | wc -l; touch $D/a.ready; exec sleep 1000";
    let node = Node::start(&scratch, vec![daemon(&scratch, "a", script)]);
    node.wait_ready();
    let pid = node.pid("a");
    let (_, log) = node.ask("GET", "/v1/node/units/a/log?lines=20");
    let lines: Vec<&str> = log.lines().skip(1).collect();
    let signals = |line: &str| u64::from_str_radix(line.split_once('\t').unwrap().1, 16).unwrap();
    // What the C library keeps for itself (32, 33) may be ignored by whoever runs the tests.
    assert_eq!([0, 1].map(|line| signals(lines[line]) & 0x7fff_ffff), [0, 0], "{log}");
    // Process group, session, terminal.
    assert_eq!(lines[2..5], [format!("{pid} {pid} 0"), pid.to_string(), "/".into()], "{log}");
    assert_eq!(lines[5].trim(), "4", "standard ones and the directory that ls reads: {log}");
    assert!(node.stop().0.success());
}
