//! How a launch ends: exit status, signals, sudden deaths, and that nothing is left.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use crate::support::{
    Running, Watched, has_namespaces, has_tap, launcher, run, shell_status, stderr, stdout,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Every kind of launch that the death tests go through.
const KINDS: [&[&str]; 3] = [&["--net=engine", "--ipv6=off"], &["--net=none"], &["--net=host"]];

/// Children of the command that a kill of the command alone would leave: in its process group, in a session of
/// its own, and deaf to polite signals.
const FAMILY: &str =
    "sleep 1000 & setsid sleep 1000 & (trap '' TERM HUP INT; sleep 1000; sleep 1000) & echo $$; wait";

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

#[test]
fn exit_status_is_the_commands_own() {
    if !has_namespaces() {
        return;
    }
    for status in [0, 1, 2, 7, 126, 127, 128, 255] {
        let output = run(&["--net=none"], &["sh", "-c", &format!("exit {status}")]);
        assert_eq!(output.status.code(), Some(status), "{}", stderr(&output));
        assert_eq!(stderr(&output), "");
    }
}

#[test]
fn death_by_signal_is_the_commands_own() {
    if !has_namespaces() {
        return;
    }
    // The last one is a real-time signal.
    for number in [1, 2, 3, 6, 9, 10, 11, 13, 14, 15, 40] {
        let output = run(&["--net=none"], &["sh", "-c", &format!("kill -{number} $$")]);
        assert_eq!(output.status.signal(), Some(number), "{}", stderr(&output));
        assert_eq!(shell_status(output.status), 128 + number);
        assert!(!output.status.core_dumped());
    }
}

#[test]
fn signals_to_the_launcher_reach_the_command() {
    if !has_namespaces() {
        return;
    }
    for name in
        [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGWINCH]
    {
        // The shell's name of the signal has no SIG.
        let script = format!("trap 'exit 42' {}; sleep 1000 & echo ready; wait", &name.as_str()[3..]);
        let mut running = Running::start(&["--net=none"], &script);
        assert_eq!(running.line(), "ready");
        signal(running.launcher.id().cast_signed(), name);
        let (status, text) = running.end();
        assert_eq!(status.code(), Some(42), "{name}: {text}");
    }
}

#[test]
fn an_untrapped_signal_to_the_launcher_kills_both_with_it() {
    if !has_namespaces() {
        return;
    }
    let mut running = Running::start(&["--net=none"], "echo ready; exec sleep 1000");
    assert_eq!(running.line(), "ready");
    signal(running.launcher.id().cast_signed(), Signal::SIGTERM);
    let (status, _) = running.end();
    assert_eq!(status.signal(), Some(15));
}

#[test]
fn what_the_command_leaves_ends_with_it() {
    if !has_namespaces() {
        return;
    }
    let script = "trap 'exit 3' TERM; sleep 1000 & echo $!; setsid sleep 1000 & echo $!; wait";
    let mut running = Running::start(&["--net=none"], script);
    let left = [(); 2].map(|()| Watched::new(running.line().parse().unwrap()));
    signal(running.launcher.id().cast_signed(), Signal::SIGTERM);
    let (status, text) = running.end();
    assert_eq!(status.code(), Some(3), "{text}");
    assert!(left.iter().all(|process| !process.is_alive()));
}

#[test]
fn killing_the_launcher_ends_everything() {
    if !has_tap() {
        return;
    }
    for options in KINDS {
        let mut running = Running::start(options, FAMILY);
        let cmd = Watched::new(running.line().parse().unwrap());
        let helpers: Vec<Watched> = running.helpers().map(Watched::new).collect();
        signal(running.launcher.id().cast_signed(), Signal::SIGKILL);
        let (status, text) = running.end();
        assert_eq!(status.signal(), Some(9), "{options:?}: {text}");
        cmd.assert_dies();
        helpers.iter().for_each(Watched::assert_dies);
    }
}

#[test]
fn killing_engine_or_guard_ends_everything_and_is_told() {
    if !has_tap() {
        return;
    }
    let killed = |options: &[&str], helper: &str| {
        let mut running = Running::start(options, FAMILY);
        let cmd = Watched::new(running.line().parse().unwrap());
        let Some(pid) = running.helper(helper) else { return false };
        signal(pid, Signal::SIGKILL);
        let (status, text) = running.end();
        assert_eq!(status.code(), Some(1), "{options:?}: {text}");
        let wanted = format!("the {} process was killed by SIGKILL", &helper[3..]);
        assert!(text.contains(&wanted), "{options:?}: {text}");
        assert!(!cmd.is_alive(), "{options:?}");
        true
    };
    for options in KINDS {
        assert!(killed(options, "rl-guard"), "{options:?}");
    }
    assert!(killed(&["--net=engine", "--ipv6=off", "--engine-restart=never"], "rl-engine"));
}

#[test]
fn killing_the_command_ends_everything() {
    if !has_tap() {
        return;
    }
    for options in KINDS {
        let mut running = Running::start(options, FAMILY);
        let cmd = running.line().parse().unwrap();
        let helpers: Vec<Watched> = running.helpers().map(Watched::new).collect();
        signal(cmd, Signal::SIGKILL);
        let (status, text) = running.end();
        assert_eq!(status.signal(), Some(9), "{options:?}: {text}");
        assert!(helpers.iter().all(|helper| !helper.is_alive()), "{options:?}");
    }
}

#[test]
fn other_children_of_the_caller_are_left_alone() {
    if !has_namespaces() {
        return;
    }
    // The launcher takes the place of a shell that has a child already.
    let script = format!("sleep 1000 & echo $!; exec {} --net=none -- true", crate::support::LAUNCHER);
    let mut child =
        Command::new("sh").args(["-c", &script]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line)
        .unwrap();
    let other: i32 = line.trim().parse().unwrap();
    assert!(child.wait().unwrap().success());
    assert!(Watched::new(other).is_alive());
    signal(other, Signal::SIGKILL);
}

#[test]
fn no_mount_and_no_file_is_left() {
    if !has_tap() {
        return;
    }
    let mounts = || fs::read_to_string("/proc/self/mounts").unwrap();
    let before = mounts();
    stdout(&run(&["--ipv6=off"], &["true"]));
    assert_eq!(mounts(), before);
}

#[test]
fn signal_mask_dispositions_and_descriptors_are_the_callers() {
    if !has_namespaces() {
        return;
    }
    let show = "grep -E '^(SigBlk|SigIgn|ShdPnd|SigPnd)' /proc/self/status; ls /proc/self/fd | wc -l";
    for trap in ["true", "trap '' PIPE USR1 CHLD"] {
        let script = |prefix: &str| format!("{trap}; exec {prefix} bash -c \"{show}\" 5</dev/null");
        let direct = Command::new("bash").args(["-c", &script("")]).output().unwrap();
        let prefix = format!("{} --net=none --", crate::support::LAUNCHER);
        let launched = Command::new("bash").args(["-c", &script(&prefix)]).output().unwrap();
        assert_eq!(stdout(&launched), stdout(&direct), "{trap}");
    }
}

#[test]
fn a_command_that_cannot_run_is_told_as_a_shell_does() {
    if !has_tap() {
        return;
    }
    for (cmd, status) in [("no-such-command", 127), ("/no/such/file", 127), ("/etc/passwd", 126), ("/", 126)]
    {
        let output = run(&["--ipv6=off"], &[cmd]);
        assert_eq!(output.status.code(), Some(status), "{cmd}");
        assert!(stderr(&output).contains(&format!("cannot execute {cmd}: ")), "{}", stderr(&output));
    }
}

#[test]
fn many_launches_at_once_do_not_disturb_each_other() {
    if !has_tap() {
        return;
    }
    let spawn = |status: i32| {
        launcher(&["--ipv6=off"], &["sh", "-c", &format!("setsid sleep 1000 & exit {status}")])
            .spawn()
            .unwrap()
    };
    let mut all: Vec<_> = (0..16).map(|status| (status, spawn(status))).collect();
    let ended: BTreeSet<_> =
        all.iter_mut().map(|(status, child)| (*status, child.wait().unwrap().code())).collect();
    assert!(ended.iter().all(|&(status, code)| code == Some(status)), "{ended:?}");
}
