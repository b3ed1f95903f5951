//! An init between the launcher and the command.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use crate::support::{
    LAUNCHER, Running, Scratch, Watched, has_namespaces, has_program, has_tap, launcher, run, stderr, stdout,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PIDNS: [&str; 2] = ["--net=none", "--pidns"];

/// Children that a kill of the command alone would leave, and a line when all run.
const FAMILY: &str =
    "sleep 1000 & setsid sleep 1000 & (trap '' TERM HUP INT; sleep 1000; sleep 1000) & echo up; wait";

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

#[test]
fn the_command_sees_only_its_own_processes() {
    if !has_namespaces() {
        return;
    }
    let script = "cat /proc/1/comm; echo $$; for process in /proc/[0-9]*; do echo ${process#/proc/}; done";
    let text = stdout(&run(&PIDNS, &["sh", "-c", script]));
    assert_eq!(text.lines().collect::<Vec<_>>(), ["rl-init", "2", "1", "2"]);
}

#[test]
fn every_end_of_the_command_is_told_exactly() {
    if !has_namespaces() {
        return;
    }
    for status in [0, 1, 7, 126, 127, 128, 255] {
        let output = run(&PIDNS, &["sh", "-c", &format!("exit {status}")]);
        assert_eq!(output.status.code(), Some(status), "{}", stderr(&output));
        assert_eq!(stderr(&output), "");
    }
    for number in [1, 2, 6, 9, 11, 15, 40] {
        let output = run(&PIDNS, &["sh", "-c", &format!("kill -{number} $$")]);
        assert_eq!(output.status.signal(), Some(number), "{}", stderr(&output));
        assert!(!output.status.core_dumped());
    }
    for (cmd, status) in [("no-such-command", 127), ("/no/such/file", 127), ("/etc/passwd", 126)] {
        let output = run(&PIDNS, &[cmd]);
        assert_eq!(output.status.code(), Some(status), "{cmd}");
        assert!(stderr(&output).contains(&format!("cannot execute {cmd}: ")), "{}", stderr(&output));
    }
}

#[test]
fn orphans_are_reaped_and_do_not_end_the_launch() {
    if !has_namespaces() {
        return;
    }
    // Bounded: an init that reaps nothing shows as a list that never gets short.
    let script = "for i in 1 2 3 4 5 6 7 8 9 10; do (setsid true &); done
        for i in $(seq 100000); do
            set -- /proc/[0-9]*
            [ $# = 2 ] && break
        done
        echo $#; exit 3";
    let output = run(&PIDNS, &["sh", "-c", script]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "2\n");
}

#[test]
fn signals_reach_the_command_by_the_launcher_and_by_the_init() {
    if !has_namespaces() {
        return;
    }
    let script = "trap 'exit 42' USR1; sleep 1000 & echo ready; wait";
    for by_init in [false, true] {
        let mut running = Running::start(&PIDNS, script);
        assert_eq!(running.line(), "ready");
        let target = match by_init {
            false => running.launcher.id().cast_signed(),
            true => running.helper("rl-init").unwrap(),
        };
        signal(target, Signal::SIGUSR1);
        let (status, text) = running.end();
        assert_eq!(status.code(), Some(42), "{text}");
    }
}

#[test]
fn a_signal_to_the_group_from_inside_comes_once() {
    if !has_namespaces() {
        return;
    }
    // The command signals its whole group, which is the launcher's, and then ends by another signal that tells how many came.
    let script = "n=0; trap 'n=$((n+1))' USR1; trap 'exit $n' TERM; kill -USR1 0; kill -TERM 0; sleep 1000 & wait; wait";
    let mut command = Command::new("setsid");
    command.args(["--wait", LAUNCHER]).args(PIDNS).args(["--", "sh", "-c", script]);
    assert_eq!(command.status().unwrap().code(), Some(1));
}

#[test]
fn whoever_is_killed_everything_ends() {
    if !has_tap() {
        return;
    }
    for options in [&["--net=engine", "--ipv6=off", "--pidns"][..], &PIDNS, &["--net=host", "--pidns"]] {
        let start = || {
            let mut running = Running::start(options, FAMILY);
            assert_eq!(running.line(), "up");
            let inside = running.descendants();
            // The init, the shell, three of its children and a grandchild; a session's leader may not have forked yet.
            assert!(inside.len() >= 5, "{options:?}: {}", inside.len());
            let command = inside.iter().find(|process| process.name == "sh").unwrap().pid;
            let watched: Vec<Watched> = inside.iter().map(|process| Watched::new(process.pid)).collect();
            (running, command, watched)
        };
        let (running, _, inside) = start();
        let helpers: Vec<Watched> = running.helpers().map(Watched::new).collect();
        signal(running.launcher.id().cast_signed(), Signal::SIGKILL);
        assert_eq!(running.end().0.signal(), Some(9), "{options:?}");
        inside.iter().chain(&helpers).for_each(Watched::assert_dies);

        let (running, _, inside) = start();
        signal(running.helper("rl-init").unwrap(), Signal::SIGKILL);
        assert_eq!(running.end().0.signal(), Some(9), "{options:?}");
        assert!(inside.iter().all(|process| !process.is_alive()), "{options:?}");

        let (running, command, inside) = start();
        signal(command, Signal::SIGKILL);
        assert_eq!(running.end().0.signal(), Some(9), "{options:?}");
        assert!(inside.iter().all(|process| !process.is_alive()), "{options:?}");

        let (running, _, inside) = start();
        signal(running.helper("rl-guard").unwrap(), Signal::SIGKILL);
        let (status, text) = running.end();
        assert_eq!(status.code(), Some(1), "{options:?}: {text}");
        assert!(inside.iter().all(|process| !process.is_alive()), "{options:?}");
    }
}

#[test]
fn passed_sockets_are_the_commands() {
    if !has_namespaces() {
        return;
    }
    let show = "echo $LISTEN_PID $$ $LISTEN_FDS $LISTEN_FDNAMES; readlink /proc/self/fd/3";
    for pidns in ["--pidns=false", "--pidns"] {
        let passed = |pid: &str| {
            let script = format!(
                "LISTEN_PID={pid} LISTEN_FDS=1 LISTEN_FDNAMES=web exec \"$0\" --net=none {pidns} -- sh -c '{show}' 3</dev/zero"
            );
            stdout(&Command::new("sh").args(["-c", &script, LAUNCHER]).output().unwrap())
        };
        let text = passed("$$");
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(words[0], words[1], "{pidns}: {text}");
        assert_eq!(words[2..], ["1", "web", "/dev/zero"], "{pidns}: {text}");
        // Sockets of somebody else are none of ours.
        let text = passed("1");
        assert!(text.starts_with("1 "), "{pidns}: {text}");
    }
}

#[test]
fn names_and_ipc_are_its_own() {
    if !has_namespaces() {
        return;
    }
    let options = ["--net=none", "--hostname=inside-1", "--ipcns", "--cgroupns"];
    let script =
        "cat /proc/sys/kernel/hostname; readlink /proc/self/ns/uts /proc/self/ns/ipc /proc/self/ns/cgroup";
    let text = stdout(&run(&options, &["sh", "-c", script]));
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("inside-1"));
    for kind in ["uts", "ipc", "cgroup"] {
        let ours = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(lines.next(), ours.to_str(), "{kind}");
    }
    assert!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap() != "inside-1\n");
}

#[test]
fn entering_joins_the_pid_namespace_and_ends_with_it() {
    if !has_tap() {
        return;
    }
    let (runtime, name) = (Scratch::new(), "--name=entered");
    let fifo = runtime.fifo("end");
    let enter = |cmd: &[&str]| {
        let mut command = Command::new(LAUNCHER);
        command.args(["enter", name, "--"]).args(cmd).env("XDG_RUNTIME_DIR", runtime.path(""));
        command
    };
    let mut command = launcher(
        &["--ipv6=off", "--pidns", "--ipcns", "--utsns", "--cgroupns", name],
        &["sh", "-c", &format!("echo up; cat {fifo}; exit 5")],
    );
    command.env("XDG_RUNTIME_DIR", runtime.path(""));
    let mut running = Running::of(command);
    assert_eq!(running.line(), "up");

    let kinds = ["user", "mnt", "net", "pid", "ipc", "uts", "cgroup"];
    let of_init = |kind: &&str| {
        let init = running.helper("rl-init").unwrap();
        fs::read_link(format!("/proc/{init}/ns/{kind}")).unwrap().to_str().unwrap().to_owned()
    };
    let script = "for kind in user mnt net pid ipc uts cgroup; do readlink /proc/self/ns/$kind; done; exit 9";
    let output = enter(&["sh", "-c", script]).output().unwrap();
    assert_eq!(output.status.code(), Some(9), "{}", stderr(&output));
    let expected: Vec<String> = kinds.iter().map(of_init).collect();
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().collect::<Vec<_>>(), expected);

    let output = enter(&["sh", "-c", "kill -9 $$"]).output().unwrap();
    assert_eq!(output.status.signal(), Some(9));
    assert_eq!(enter(&["no-such-program"]).output().unwrap().status.code(), Some(127));
    // A signal for who entered is for what it entered with. dash loses a SIGTERM for a child that has not begun to be sleep.
    let mut other =
        Running::of(enter(&["sh", "-c", "trap 'kill -9 $!; exit 6' TERM; sleep 1000 & echo in; wait"]));
    assert_eq!(other.line(), "in");
    signal(other.launcher.id().cast_signed(), Signal::SIGTERM);
    assert_eq!(other.end().0.code(), Some(6));

    let mut left = Running::of(enter(&["sh", "-c", "echo in; exec sleep 1000"]));
    assert_eq!(left.line(), "in");
    fs::write(&fifo, "").unwrap();
    assert_eq!(running.end().0.code(), Some(5));
    assert_eq!(left.end().0.signal(), Some(9));
}

#[test]
fn a_process_may_make_such_namespaces_inside() {
    if !has_namespaces() || !has_program("unshare") {
        return;
    }
    // What a container runtime does: a proc of its own needs one that is wholly visible.
    let nested = "unshare --mount --pid --fork --mount-proc sh -c 'echo $$'";
    assert_eq!(stdout(&run(&PIDNS, &["sh", "-c", nested])), "1\n");
}
