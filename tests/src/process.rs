//! Programs under a deadline: lines are events, an exit is an event, and a guard kills what is left.

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

/// How long anything in a test may take before it is a failure. Generous: a busy machine is no defect.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A running program with its own process group, killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    exited: OwnedFd,
    what: String,
    lines: Receiver<Line>,
    stdout: Vec<String>,
    stderr: Vec<String>,
    deadline: Instant,
}

/// What a program that ended left behind.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output, without the last newline.
    pub stdout: String,
    /// Its standard error, without the last newline.
    pub stderr: String,
    what: String,
}

/// Which pipe a line came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pipe {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

#[derive(Debug)]
struct Line(Pipe, String);

impl Process {
    /// Starts `command` with pipes for its three standard streams (a stdin set before is replaced: use [`Process::spawn_with_stdin`]).
    ///
    /// # Panics
    /// When the program cannot be started.
    #[track_caller]
    pub fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::piped());
        Self::spawn_with_stdin(command)
    }

    /// Like [`Process::spawn`], with the stdin that `command` has.
    ///
    /// # Panics
    /// When the program cannot be started.
    #[track_caller]
    pub fn spawn_with_stdin(mut command: Command) -> Self {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let what = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {what}: {error}"));
        let exited = crate::sys::pidfd_open(child.id()).expect("pidfd_open of our own child");
        let (sender, lines) = channel();
        let pipes: [(Pipe, Option<Box<dyn Read + Send>>); 2] = [
            (Pipe::Stdout, child.stdout.take().map(|pipe| Box::new(pipe) as _)),
            (Pipe::Stderr, child.stderr.take().map(|pipe| Box::new(pipe) as _)),
        ];
        for (pipe, reader) in pipes {
            let sender = sender.clone();
            let reader = BufReader::new(reader.expect("was piped"));
            thread::spawn(move || {
                for line in reader.split(b'\n').map_while(Result::ok) {
                    let line = String::from_utf8_lossy(&line).into_owned();
                    if sender.send(Line(pipe, line)).is_err() {
                        break;
                    }
                }
            });
        }
        let deadline = Instant::now() + DEADLINE;
        Self { child, exited, what, lines, stdout: Vec::new(), stderr: Vec::new(), deadline }
    }

    /// Gives it a deadline of its own, counted from now.
    #[must_use]
    pub fn within(mut self, limit: Duration) -> Self {
        self.deadline = Instant::now() + limit;
        self
    }

    /// Waits for the next line of standard output that contains `text`.
    ///
    /// # Panics
    /// When the program ends or the deadline passes before.
    #[track_caller]
    pub fn wait_for_line(&mut self, text: &str) -> String {
        self.wait_for(Pipe::Stdout, text)
    }

    /// Waits for the next line of one pipe that contains `text`.
    ///
    /// # Panics
    /// When the program ends or the deadline passes before.
    #[track_caller]
    pub fn wait_for(&mut self, from: Pipe, text: &str) -> String {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(Line(pipe, line)) => {
                    self.keep(Line(pipe, line.clone()));
                    if pipe == from && line.contains(text) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.fail(&format!("no line with {text:?} in time")),
                Err(RecvTimeoutError::Disconnected) => {
                    self.fail(&format!("ended without a line with {text:?}"))
                }
            }
        }
    }

    /// Writes one line to its standard input.
    ///
    /// # Panics
    /// When it does not read any more.
    #[track_caller]
    pub fn tell(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("stdin is piped and open");
        stdin
            .write_all(format!("{line}\n").as_bytes())
            .and_then(|()| stdin.flush())
            .expect("it reads its stdin");
    }

    /// Closes its standard input.
    pub fn close_stdin(&mut self) {
        self.child.stdin = None;
    }

    /// Takes its standard input away, for a thread that writes.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Sends a signal to the program itself (not to its children).
    pub fn signal(&self, signal: Signal) {
        // It may have ended already: then there is nothing to tell.
        let _ = kill(self.pid(), signal);
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Waits for the end. The standard input is left as it is: close it before if the program waits for that.
    ///
    /// # Panics
    /// When the deadline passes before.
    #[track_caller]
    pub fn finish(mut self) -> Finished {
        if !self.ends_before(self.deadline) {
            self.fail("did not end in time");
        }
        let status = self.child.wait().expect("wait for our own child");
        // What it wrote is in the pipes; whoever inherited them may keep them open, so this wait is bounded too.
        let drained = Instant::now() + Duration::from_secs(2);
        while let Ok(line) = self.lines.recv_timeout(drained.saturating_duration_since(Instant::now())) {
            self.keep(line);
        }
        Finished {
            status,
            stdout: self.stdout.join("\n"),
            stderr: self.stderr.join("\n"),
            what: self.what.clone(),
        }
    }

    /// Waits for the end until `deadline`; says whether it came.
    #[must_use]
    pub fn ends_before(&self, deadline: Instant) -> bool {
        readable_before(&self.exited, deadline)
    }

    /// What it has written so far, to both streams.
    pub fn said(&mut self) -> String {
        while let Ok(line) = self.lines.try_recv() {
            self.keep(line);
        }
        [self.stdout.join("\n"), self.stderr.join("\n")].join("\n")
    }

    fn keep(&mut self, Line(pipe, line): Line) {
        match pipe {
            Pipe::Stdout => self.stdout.push(line),
            Pipe::Stderr => self.stderr.push(line),
        }
    }

    #[track_caller]
    fn fail(&mut self, why: &str) -> ! {
        while let Ok(line) = self.lines.try_recv() {
            self.keep(line);
        }
        let (what, out, err) = (&self.what, self.stdout.join("\n"), self.stderr.join("\n"));
        panic!("{what}\n{why}\n--- stdout\n{out}\n--- stderr\n{err}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A group or a process that is gone needs no killing; the wait only reaps.
        let _ = killpg(self.pid(), Signal::SIGKILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Finished {
    /// The same, having checked that it ended with status 0.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    #[must_use]
    pub fn success(self) -> Self {
        assert!(self.status.success(), "{}", self.describe());
        self
    }

    /// The values of `key=value` words of its standard output; a later one replaces an earlier one.
    #[must_use]
    pub fn values(&self) -> BTreeMap<String, String> {
        let pairs = self.stdout.split_whitespace().filter_map(|word| word.split_once('='));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    /// The value of `key`.
    ///
    /// # Panics
    /// When it was not printed.
    #[track_caller]
    #[must_use]
    pub fn value(&self, key: &str) -> String {
        self.values().remove(key).unwrap_or_else(|| panic!("no {key}= from {}", self.describe()))
    }

    /// The value of `key` as a number.
    ///
    /// # Panics
    /// When it was not printed or is no number.
    #[track_caller]
    #[must_use]
    pub fn number(&self, key: &str) -> f64 {
        self.value(key).parse().unwrap_or_else(|_| panic!("{key} is no number: {}", self.describe()))
    }

    /// Command, status and both streams, for messages.
    #[must_use]
    pub fn describe(&self) -> String {
        let Self { status, stdout, stderr, what } = self;
        format!("{what}\n{status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}

/// Runs `command` to its end within [`DEADLINE`], its standard input closed.
///
/// # Panics
/// When it cannot be started or does not end.
#[track_caller]
pub fn run(command: Command) -> Finished {
    let mut process = Process::spawn(command);
    process.close_stdin();
    process.finish()
}

/// Waits until `fd` is readable or `deadline` passes; says whether it is.
///
/// # Panics
/// When poll(2) fails.
#[must_use]
pub fn readable_before(fd: impl AsFd, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, so that the last poll does not spin.
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) if Instant::now() >= deadline => return false,
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return true,
            Err(error) => panic!("poll: {error}"),
        }
    }
}
