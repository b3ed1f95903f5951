//! What the tests of the binary share.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use launcher::sys::pidfd;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

/// The program under test.
pub(crate) const LAUNCHER: &str = env!("CARGO_BIN_EXE_rootless-launch");

/// Says that the running test cannot run here, and why: past the capture of the test harness, so that CI counts it.
pub(crate) fn skipped(reason: &str) {
    let thread = std::thread::current();
    let line = format!("SKIPPED {}: {reason}\n", thread.name().unwrap_or("unnamed"));
    std::io::stderr().write_all(line.as_bytes()).expect("standard error is writable");
}

/// Whether this machine lets an ordinary user make namespaces; says SKIPPED and why if not.
///
/// The judge is not our program, so that a fault of ours is no reason to skip.
pub(crate) fn has_namespaces() -> bool {
    let Ok(output) = Command::new("unshare").args(["-Urn", "true"]).output() else { return true };
    if !output.status.success() {
        skipped(&format!("no user namespaces here: {}", String::from_utf8_lossy(&output.stderr)));
    }
    output.status.success()
}

/// As [`has_namespaces`], and the TAP's device node can be opened.
pub(crate) fn has_tap() -> bool {
    if let Err(error) = fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        skipped(&format!("cannot open /dev/net/tun: {error}"));
        return false;
    }
    has_namespaces()
}

/// Whether a program is there.
pub(crate) fn has_program(name: &str) -> bool {
    let there = Command::new(name).arg("--version").output().is_ok();
    if !there {
        skipped(&format!("no {name} here"));
    }
    there
}

/// The launcher with options, then `--` and the command.
pub(crate) fn launcher(options: &[&str], cmd: &[&str]) -> Command {
    let mut command = Command::new(LAUNCHER);
    command.args(options).arg("--").args(cmd).stdin(Stdio::null());
    command
}

/// Runs to the end.
pub(crate) fn run(options: &[&str], cmd: &[&str]) -> Output {
    launcher(options, cmd).output().unwrap()
}

/// Standard output as text; the run has to have succeeded.
#[track_caller]
pub(crate) fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}: {}", output.status, stderr(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Standard error as text.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// As a shell's `$?`.
pub(crate) fn shell_status(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap())
}

/// A launch under way, with its output as pipes.
pub(crate) struct Running {
    /// The launcher.
    pub(crate) launcher: Child,
    stdout: BufReader<ChildStdout>,
}

impl Running {
    /// Starts a shell script.
    pub(crate) fn start(options: &[&str], script: &str) -> Self {
        Running::of(launcher(options, &["sh", "-c", script]))
    }

    /// Starts a command of the launcher.
    pub(crate) fn of(mut command: Command) -> Self {
        let mut launcher =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(launcher.stdout.take().unwrap());
        Running { launcher, stdout }
    }

    /// The script's next line.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The engine process.
    pub(crate) fn engine(&self) -> i32 {
        self.helper("rl-engine").unwrap()
    }

    /// The launcher's helper of that name.
    pub(crate) fn helper(&self, name: &str) -> Option<i32> {
        self.children().find(|process| process.name == name).map(|process| process.pid)
    }

    /// The guard, and the engine if there is one.
    pub(crate) fn helpers(&self) -> impl Iterator<Item = i32> {
        self.children().filter(|process| process.name.starts_with("rl-")).map(|process| process.pid)
    }

    /// Everything that descends from the launcher but its guard and its engine: an init, the command and what that started.
    pub(crate) fn descendants(&self) -> Vec<Process> {
        let all = processes();
        let mut known = vec![self.launcher.id().cast_signed()];
        let mut found = Vec::new();
        let is_helper = |process: &Process| ["rl-guard", "rl-engine", "rl-agent"].contains(&&*process.name);
        while let Some(parent) = known.pop() {
            for process in all.iter().filter(|process| process.parent == parent && !is_helper(process)) {
                known.push(process.pid);
                found.push(process.clone());
            }
        }
        found
    }

    fn children(&self) -> impl Iterator<Item = Process> {
        let launcher = self.launcher.id().cast_signed();
        processes().into_iter().filter(move |process| process.parent == launcher)
    }

    /// Waits until every process that holds our standard error is gone: launcher, engine, command, and all that
    /// the command started. Returns what they said and how the launcher ended.
    pub(crate) fn end(mut self) -> (ExitStatus, String) {
        let mut text = String::new();
        self.launcher.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        (self.launcher.wait().unwrap(), text)
    }
}

/// A directory of the test's own, which goes with it.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// A new one.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("rl-launch-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    /// A path in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// As [`path`](Scratch::path), as text.
    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A new named pipe.
    pub(crate) fn fifo(&self, name: &str) -> String {
        nix::unistd::mkfifo(&self.path(name), nix::sys::stat::Mode::S_IRWXU).unwrap();
        self.text(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// One process of this machine.
#[derive(Clone)]
pub(crate) struct Process {
    /// Its id.
    pub(crate) pid: i32,
    /// Its parent.
    pub(crate) parent: i32,
    /// Its name, 15 bytes at most.
    pub(crate) name: String,
}

/// Every process.
pub(crate) fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| {
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let (head, tail) = stat.rsplit_once(") ")?;
            let (pid, name) = head.split_once(" (")?;
            let parent = tail.split(' ').nth(1)?.parse().ok()?;
            Some(Process { pid: pid.parse().ok()?, parent, name: name.to_owned() })
        })
        .collect()
}

/// A process whose end is waited for.
pub(crate) struct Watched(OwnedFd);

impl Watched {
    /// A process that runs.
    pub(crate) fn new(pid: i32) -> Self {
        Watched(pidfd::open(Pid::from_raw(pid)).unwrap())
    }

    /// Waits for its end; fails if it does not come.
    #[track_caller]
    pub(crate) fn assert_dies(&self) {
        let ready = poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], PollTimeout::from(20_000u16));
        assert_eq!(ready, Ok(1), "still alive");
    }

    /// Whether it runs now.
    pub(crate) fn is_alive(&self) -> bool {
        poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(0)
    }
}
