//! A launch on a terminal, under a shell with job control.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command};

use crate::support::{LAUNCHER, has_namespaces, has_program};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};

const CTRL_C: &str = "\x03";
const CTRL_Z: &str = "\x1a";
const CTRL_BACKSLASH: &str = "\x1c";
/// With and without an init between the launcher and the command.
const KINDS: [&str; 2] = ["", "--pidns"];

/// An interactive bash on a terminal of its own.
struct Terminal {
    master: File,
    shell: Child,
    path: String,
    seen: String,
    kind: String,
}

impl Terminal {
    fn open(kind: &str) -> Option<Self> {
        if !has_namespaces() || !has_program("setsid") || !has_program("bash") {
            return None;
        }
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let path = ptsname_r(&master).unwrap();
        let slave =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&path).unwrap();
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait", "bash", "--norc", "--noprofile", "--noediting", "-i"]);
        command.env("PS1", "PROMPT> ").env("HISTFILE", "");
        command.env("LAUNCH", format!("{LAUNCHER} --net=none {kind} --"));
        command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
        let shell = command.spawn().unwrap();
        let mut terminal = Terminal {
            master: File::from(OwnedFd::from(master)),
            shell,
            path,
            seen: String::new(),
            kind: kind.to_owned(),
        };
        terminal.expect("PROMPT> ");
        // What is typed shall not be mistaken for what is printed.
        terminal.type_in("stty -echo\n");
        terminal.expect("PROMPT> ");
        Some(terminal)
    }

    fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until the terminal shows `text`; returns what came before and forgets both.
    #[track_caller]
    fn expect(&mut self, text: &str) -> String {
        loop {
            if let Some((before, after)) = self.seen.split_once(text) {
                let before = before.to_owned();
                self.seen = after.to_owned();
                return before;
            }
            let ready = poll(
                &mut [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)],
                PollTimeout::from(20_000u16),
            );
            assert_eq!(ready, Ok(1), "{}: {text:?} does not come after {:?}", self.kind, self.seen);
            let mut bytes = [0; 4096];
            let length = self.master.read(&mut bytes).unwrap_or(0);
            assert!(length > 0, "the terminal closed; {text:?} did not come after {:?}", self.seen);
            self.seen.push_str(&String::from_utf8_lossy(&bytes[..length]));
        }
    }

    fn resize(&self, columns: u16) {
        let status = Command::new("stty").args(["-F", &self.path, "cols", &columns.to_string()]).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.master.write_all(b"exit\nexit\n");
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

#[test]
fn interrupt_and_quit_end_the_command() {
    for kind in KINDS {
        let Some(mut terminal) = Terminal::open(kind) else { return };
        for (key, status) in [(CTRL_C, 130), (CTRL_BACKSLASH, 131)] {
            terminal.type_in("$LAUNCH sh -c 'echo up; exec sleep 1000'\n");
            terminal.expect("up\r\n");
            terminal.type_in(key);
            terminal.expect("PROMPT> ");
            terminal.type_in("echo status=$?\n");
            terminal.expect(&format!("status={status}\r\n"));
        }
    }
}

#[test]
fn the_terminals_interrupt_comes_once() {
    for kind in KINDS {
        let Some(mut terminal) = Terminal::open(kind) else { return };
        // A command that lives on counts its interrupts; the second one shows that the launcher has passed on what it would have of the
        // first. Each is waited for: dash runs the trap of a key that comes at once before the commands of the trap before.
        let script = "n=0; trap 'n=$((n+1)); echo interrupted' INT; trap 'echo count=$n; exit' QUIT; echo up; while :; do sleep 1000 & wait; done";
        terminal.type_in(&format!("$LAUNCH sh -c '{}'\n", script.replace('\'', "'\\''")));
        terminal.expect("up\r\n");
        for _ in 0..2 {
            terminal.type_in(CTRL_C);
            terminal.expect("interrupted\r\n");
        }
        terminal.type_in(CTRL_BACKSLASH);
        terminal.expect("count=2\r\n");
        terminal.expect("PROMPT> ");
    }
}

#[test]
fn stop_and_go_on_with_job_control() {
    for kind in KINDS {
        let Some(mut terminal) = Terminal::open(kind) else { return };
        terminal.type_in("$LAUNCH cat\n");
        terminal.type_in("one\n");
        terminal.expect("one\r\n");
        for text in ["two", "three"] {
            terminal.type_in(CTRL_Z);
            terminal.expect("Stopped");
            terminal.expect("PROMPT> ");
            terminal.type_in("jobs -s | wc -l | sed s/^/stopped=/\n");
            terminal.expect("stopped=1\r\n");
            terminal.type_in("fg\n");
            terminal.expect("$LAUNCH cat\r\n");
            terminal.type_in(&format!("{text}\n"));
            terminal.expect(&format!("{text}\r\n"));
        }
        terminal.type_in("\x04");
        terminal.expect("PROMPT> ");
        terminal.type_in("echo status=$?\n");
        terminal.expect("status=0\r\n");
    }
}

#[test]
fn in_the_background_it_stops_when_it_reads() {
    for kind in KINDS {
        let Some(mut terminal) = Terminal::open(kind) else { return };
        terminal.type_in("$LAUNCH cat &\n");
        terminal.expect("PROMPT> ");
        terminal.type_in("wait %1; echo waited=$?\n");
        // 128 + SIGTTIN
        terminal.expect("waited=149\r\n");
        terminal.type_in("fg\n");
        terminal.expect("$LAUNCH cat\r\n");
        terminal.type_in("text\n");
        terminal.expect("text\r\n");
        terminal.type_in(CTRL_C);
        terminal.expect("PROMPT> ");
    }
}

#[test]
fn a_shell_inside_has_job_control_of_its_own() {
    for kind in KINDS {
        let Some(mut terminal) = Terminal::open(kind) else { return };
        terminal.type_in("PS1='INNER> ' $LAUNCH bash --norc --noprofile --noediting -i\n");
        terminal.expect("INNER> ");
        terminal.type_in("cat\n");
        terminal.type_in("hello\n");
        terminal.expect("hello\r\n");
        terminal.type_in(CTRL_Z);
        terminal.expect("Stopped");
        terminal.expect("INNER> ");
        terminal.type_in("fg\n");
        terminal.expect("cat\r\n");
        // The shell shows the name before it hands over the terminal.
        terminal.type_in("again\n");
        terminal.expect("again\r\n");
        terminal.type_in(CTRL_C);
        terminal.expect("INNER> ");
        terminal.type_in("exit 5\n");
        terminal.expect("PROMPT> ");
        terminal.type_in("echo status=$?\n");
        terminal.expect("status=5\r\n");
    }
}

#[test]
fn window_size_and_its_change_reach_the_command() {
    for kind in KINDS {
        let Some(mut terminal) = Terminal::open(kind) else { return };
        terminal.resize(91);
        let script = "trap 'stty size; exit' WINCH; stty size; while :; do sleep 1000 & wait; done";
        terminal.type_in(&format!("$LAUNCH sh -c '{}'\n", script.replace('\'', "'\\''")));
        terminal.expect(" 91\r\n");
        terminal.resize(77);
        terminal.expect(" 77\r\n");
        terminal.expect("PROMPT> ");
    }
}

/// The scheduler divides processors among sessions first (sched_autogroup_enabled, sched(7)): the engine is to be one of the command's
/// processes there, and nobody's on the terminal.
#[test]
fn the_engine_is_in_the_commands_session_without_its_terminal() {
    let Some(mut terminal) = Terminal::open("") else { return };
    terminal.type_in(&format!(
        "{LAUNCHER} --net=engine --ipv6=off -- sh -c 'echo launcher=$PPID.; read x; exit 3'\n"
    ));
    terminal.expect("launcher=");
    let launcher = terminal.expect(".");
    let stat = |pid: &str| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let (_, fields) = text.rsplit_once(") ").unwrap();
        let fields = fields.split(' ').skip(1).take(4).map(|field| field.parse().unwrap());
        // Parent, process group, session, terminal.
        <[i32; 4]>::try_from(fields.collect::<Vec<_>>()).unwrap()
    };
    let children = std::fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).unwrap();
    let is_engine =
        |pid: &&str| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim() == "rl-engine";
    let engine = children.split_whitespace().find(is_engine).unwrap();
    let ([_, _, session, tty], [_, group, engine_session, engine_tty]) = (stat(&launcher), stat(engine));
    assert_eq!((engine_session, group.to_string().as_str(), engine_tty), (session, engine, 0));
    assert_ne!(tty, 0);
    // And no signal of the terminal's.
    terminal.type_in(CTRL_Z);
    terminal.expect("Stopped");
    terminal.expect("PROMPT> ");
    let state = std::fs::read_to_string(format!("/proc/{engine}/status")).unwrap();
    assert!(!state.contains("T (stopped)"), "{state}");
    terminal.type_in("fg\n\n");
    terminal.expect("PROMPT> ");
    terminal.type_in("echo status=$?\n");
    terminal.expect("status=3\r\n");
}

#[test]
fn hangup_ends_everything() {
    let Some(mut terminal) = Terminal::open("") else { return };
    terminal.type_in("$LAUNCH sh -c 'echo pid=$$; exec sleep 1000'\n");
    terminal.expect("pid=");
    let pid = terminal.expect("\r\n");
    let command = crate::support::Watched::new(pid.parse().unwrap());
    // The terminal goes away.
    terminal.master = File::open("/dev/null").unwrap();
    command.assert_dies();
}
