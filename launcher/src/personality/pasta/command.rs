//! A command in namespaces of its own.
//!
//! The process that was called stays outside: it maps the caller's id to root, starts the engine for the new namespace,
//! lets the command run when that is ready, hands signals on, and ends with the command's status. What the command
//! leaves running is killed.

use std::convert::Infallible;
use std::env;
use std::ffi::{CString, OsString};
use std::fs;
use std::io::{self, PipeWriter};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use log::{debug, warn};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::{Pid, execvp, getegid, geteuid};

use super::cli::Request;
use super::end::End;
use super::engine::{Engine, Ready};
use super::plan::Plan;
use super::{Outputs, RunError};
use crate::apply;
use crate::child::is_anywhere;
use crate::egress::EgressMode;
use crate::engine::detach;
use crate::error::{Ending, Failure, Step, with_causes};
use crate::guard::Guard;
use crate::handshake::channel::{Channel, Received};
use crate::handshake::message::Message;
use crate::join;
use crate::logger;
use crate::signals::Signals;
use crate::sweep::UserNamespace;
use crate::sys::clone::{self, ExitSignal, Fork, exit_now};
use crate::sys::signal::{inherited_sigpipe, set_disposition};
use crate::sys::wait::{self, Event};

/// Namespaces of the command, beside its user namespace.
const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWUSER
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWNS)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS);

/// Runs `words`, or a shell.
pub(super) fn run(
    request: &Request,
    plan: &Plan,
    egress: EgressMode,
    words: &[OsString],
    outputs: Outputs,
) -> Result<ExitCode, RunError> {
    let words = command_line(words)?;
    let Outputs { pid, pcap, .. } = outputs;
    let signals = Signals::block().map_err(RunError::Prepare)?;
    // Orphans of the command become ours, so that none is left, not even dead.
    prctl::set_child_subreaper(true).map_err(|error| RunError::Prepare(error.into()))?;
    let mut command = Child::start(&words, signals.inherited_mask())?;
    let target = join::Target::of_process(command.pid, None)?;
    let guard = Guard::start(&command.namespace, None)?;
    guard.wait_ready()?;
    let engine = RunningEngine::start(Engine { request, plan, target: &target, egress, pcap })?;
    drop(target);
    super::write_pid(pid).map_err(RunError::Prepare)?;
    command.tell(&Message::Execute);
    let ending = command.supervise(&signals, &engine)?;
    if let Err(error) = command.namespace.kill_all(None) {
        warn!("cannot kill what the command left: {error}");
    }
    guard.dismiss();
    engine.end();
    while matches!(wait::next_change(), Ok(Event::Ended(..) | Event::Stopped(..))) {}
    Ok(ExitCode::from(match ending {
        Ending::Exited(status) => status as u8,
        Ending::Killed(signal) => 128 + signal as u8,
    }))
}

/// The words as exec takes them; without any a login shell, as the user has it.
fn command_line(words: &[OsString]) -> Result<Vec<CString>, RunError> {
    let shell = || vec![env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into())];
    let words = if words.is_empty() { shell() } else { words.to_vec() };
    let words = words.iter().map(|word| CString::new(word.as_bytes()));
    words.collect::<Result<_, _>>().map_err(|_| RunError::CommandName)
}

/// The command. Dropping it kills it.
struct Child {
    pid: Pid,
    alive: bool,
    channel: Option<Channel>,
    namespace: UserNamespace,
}

impl Child {
    /// Makes the namespaces, with a process that waits in them.
    fn start(words: &[CString], mask: SigSet) -> Result<Self, RunError> {
        let (ours, theirs) = Channel::pair().map_err(RunError::Prepare)?;
        let fork = clone::fork(NAMESPACES, ExitSignal::Child);
        let pid = match fork.map_err(|error| Failure::new(Step::CloneNamespaces, "", error))? {
            Fork::Parent(pid) => pid,
            Fork::Child => {
                drop(ours);
                wait_and_execute(&theirs, words, mask)
            }
        };
        drop(theirs);
        let namespace = UserNamespace::of(pid).map_err(RunError::Prepare);
        let child = namespace.inspect_err(|_| kill(pid))?;
        let child = Child { pid, alive: true, channel: Some(ours), namespace: child };
        child.map_ids().map_err(|error| Failure::new(Step::MapIds, "", error))?;
        child.tell(&Message::IdsMapped { last_gid: 0 });
        Ok(child)
    }

    /// The caller's ids become root's; there are no others.
    fn map_ids(&self) -> io::Result<()> {
        let write = |file: &str, text: String| fs::write(format!("/proc/{}/{file}", self.pid), text);
        write("uid_map", format!("0 {} 1\n", geteuid()))?;
        write("setgroups", "deny\n".to_owned())?;
        write("gid_map", format!("0 {} 1\n", getegid()))
    }

    /// A command that is dead is noticed by its end.
    fn tell(&self, message: &Message) {
        if let Some(channel) = &self.channel {
            let _ = channel.send(message, None);
        }
    }

    /// Waits for its end; hands on what others signal to this process.
    fn supervise(&mut self, signals: &Signals, engine: &RunningEngine) -> Result<Ending, RunError> {
        loop {
            let sources = [Some(signals.as_fd()), self.channel.as_ref().map(AsFd::as_fd)];
            let mut fds: Vec<PollFd<'_>> =
                sources.iter().flatten().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                other => other.map(drop).map_err(|error| RunError::Prepare(error.into()))?,
            }
            let has_spoken = fds.get(1).and_then(PollFd::any).unwrap_or(false);
            if has_spoken && let Some(channel) = self.channel.take() {
                // Closed by exec, or the reason why there is none.
                if let Ok(Some(Received { message: Message::Failed(failure), .. })) = channel.receive() {
                    return Err(failure.into());
                }
            }
            while let Some(received) = signals.next().map_err(RunError::Prepare)? {
                // The terminal's signals reach the command as well.
                if received.signal != libc::SIGCHLD && !received.by_kernel && received.sender != self.pid {
                    let _ = wait::kill(self.pid, received.signal);
                }
            }
            loop {
                match wait::next_change().map_err(RunError::Prepare)? {
                    Event::Ended(pid, ending) if pid == self.pid => {
                        self.alive = false;
                        return Ok(ending);
                    }
                    Event::Ended(pid, ending) if pid == engine.pid => return Err(RunError::Died(ending)),
                    Event::Ended(..) | Event::Stopped(..) | Event::Continued(_) => {}
                    Event::Nothing | Event::NoChild => break,
                }
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.alive {
            kill(self.pid);
        }
    }
}

/// Fails only for a process that is dead already.
fn kill(pid: Pid) {
    let _ = wait::kill(pid, libc::SIGKILL);
    let _ = wait::wait_end(pid);
}

/// The process in the namespaces, until it is the command.
fn wait_and_execute(channel: &Channel, words: &[CString], mask: SigSet) -> ! {
    let run = || -> Result<Infallible, Failure> {
        let guard = |error: nix::Error| Failure::new(Step::Guard, "", error);
        prctl::set_pdeathsig(Signal::SIGKILL).map_err(guard)?;
        for expected in [Message::IdsMapped { last_gid: 0 }, Message::Execute] {
            match channel.receive().map_err(|error| Failure::new(Step::Talk, "", error))? {
                Some(Received { message, .. }) if message == expected => {}
                // Whoever called is gone.
                _ => exit_now(1),
            }
            if let Message::IdsMapped { last_gid } = expected {
                apply::net::allow_ping(last_gid);
            }
        }
        set_disposition(Signal::SIGPIPE, inherited_sigpipe());
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)
            .map_err(|error| Failure::new(Step::Prepare, "signal mask", error))?;
        let program = &words[0];
        let Err(error) = execvp(program, words);
        let error = if error == Errno::EACCES && !is_anywhere(program) { Errno::ENOENT } else { error };
        Err(Failure::new(Step::Execute, program.to_string_lossy(), error))
    };
    let Err(failure) = run();
    // If nobody listens any more there is nobody to tell.
    let _ = channel.send(&Message::Failed(failure), None);
    exit_now(127)
}

/// The engine's process, which serves while its line is open.
struct RunningEngine {
    pid: Pid,
    line: PipeWriter,
}

impl RunningEngine {
    /// Starts it; returns when it is ready.
    fn start(engine: Engine<'_>) -> Result<Self, RunError> {
        let (told, teller) = io::pipe().map_err(RunError::Prepare)?;
        let (held, line) = io::pipe().map_err(RunError::Prepare)?;
        let pid = match clone::fork(CloneFlags::empty(), ExitSignal::Child).map_err(RunError::Fork)? {
            Fork::Parent(pid) => pid,
            Fork::Child => {
                drop((told, line));
                exit_now(serve(engine, held, Ready::in_back(None, teller)))
            }
        };
        drop((teller, held));
        let engine = RunningEngine { pid, line };
        match super::hear(told) {
            Some(heard) => heard.map(|()| engine),
            None => Err(wait::wait_end(pid).map_or_else(RunError::Fork, RunError::Died)),
        }
    }

    /// Lets it deliver what is under way, and waits.
    fn end(self) {
        drop(self.line);
        if let Err(error) = wait::wait_end(self.pid) {
            debug!("the engine: {error}");
        }
    }
}

/// The engine's process; returns its status.
fn serve(engine: Engine<'_>, held: io::PipeReader, mut ready: Ready) -> i32 {
    let logs = logger::file();
    let run = |ready: &mut Ready| {
        let end = End::of_line(held).map_err(RunError::Watch)?;
        let kept = [ready.fds(), end.fds(), engine.fds(), logs.iter().copied().collect()].concat();
        detach(c"pasta", &kept, &SigSet::empty()).map_err(RunError::Prepare)?;
        engine.serve_telling(end, ready)
    };
    match run(&mut ready) {
        Ok(()) => 0,
        Err(error) => {
            let text = with_causes(&error);
            ready.tell_failure(&text);
            log::error!("{text}");
            1
        }
    }
}
