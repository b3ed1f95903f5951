//! Joins the namespaces of a running instance and becomes a command there.

use std::convert::Infallible;
use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::{SigmaskHow, Signal, sigprocmask};
use nix::unistd::{Pid, chdir, execve, getpid};
use thiserror::Error;

use crate::error::Ending;
use crate::signals::{Received, Signals, die_of};
use crate::state_dir::{self, Instance};
use crate::sys::clone::{self, ExitSignal, Fork, exit_now};
use crate::sys::pidfd;
use crate::sys::signal::{Disposition, inherited_sigpipe, set_disposition};
use crate::sys::wait::{self, AfterStop, Event};

/// Why an instance was not entered.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EnterError {
    /// It has no command to join yet.
    #[error("{0} is not ready yet")]
    NotReady(String),
    /// It has ended meanwhile.
    #[error("{0} has ended")]
    Gone(String),
    /// pidfd_open(2), or a look at /proc.
    #[error("cannot look at process {pid}")]
    Process {
        /// CMD.
        pid: Pid,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The state directory cannot be written.
    #[error("cannot tell {0} that it is entered")]
    Announce(String, #[source] io::Error),
    /// setns(2).
    #[error("cannot join the namespaces of process {pid}")]
    Join {
        /// CMD.
        pid: Pid,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// fork(2) into the pid namespace.
    #[error("cannot start a process in the pid namespace")]
    Fork(#[source] io::Error),
    /// A word of the command holds a NUL.
    #[error("a word of the command holds a NUL byte")]
    Nul,
    /// execve(2).
    #[error("cannot execute {program}")]
    Execute {
        /// What was to be executed.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl EnterError {
    /// Exit status: as a shell's if the command cannot run, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            EnterError::Execute { source, .. } => match source.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => 127,
                _ => 126,
            },
            _ => 1,
        }
    }
}

/// Becomes `cmd`, or a shell if that is empty, inside `instance`. Returns only if that fails.
///
/// The command keeps terminal, descriptors and environment; the directory too, if there is one of this name inside.
pub fn enter(instance: &Instance, cmd: &[OsString]) -> EnterError {
    match run(instance, cmd) {
        Err(error) => error,
    }
}

fn run(instance: &Instance, cmd: &[OsString]) -> Result<Infallible, EnterError> {
    let pid = instance.child.ok_or_else(|| EnterError::NotReady(instance.name.clone()))?;
    let shell = || env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
    let cmd = if cmd.is_empty() { vec![shell()] } else { cmd.to_vec() };
    let words: Vec<CString> = cmd.iter().map(|word| c_string(word)).collect::<Result<_, _>>()?;
    // Said by our ids outside, which change their names on the way.
    let environment = environment(instance)?;
    let directory = env::current_dir().ok();

    let process = pidfd::open(pid).map_err(|source| match source.raw_os_error() {
        Some(libc::ESRCH) => EnterError::Gone(instance.name.clone()),
        _ => EnterError::Process { pid, source },
    })?;
    // The lock is held still, so this process is the command of this instance and no later one.
    if Instance::at(&instance.path).and_then(|instance| instance.child) != Some(pid) {
        return Err(EnterError::Gone(instance.name.clone()));
    }
    // Before CMD is looked at for the last time: a launcher that sees its end later sees this too.
    instance.announce_entry().map_err(|source| EnterError::Announce(instance.name.clone(), source))?;
    let namespaces = namespaces(pid).map_err(|source| EnterError::Process { pid, source })?;
    // None differs for somebody who is inside already.
    let joined = if namespaces.is_empty() { Ok(()) } else { setns(process.as_fd(), namespaces) };
    joined.map_err(|error| EnterError::Join { pid, source: error.into() })?;
    if pidfd::is_dead(process.as_fd()) {
        return Err(EnterError::Gone(instance.name.clone()));
    }

    let is_there = |directory: &PathBuf| chdir(directory).is_ok();
    if !directory.as_ref().is_some_and(is_there) {
        // Exists always.
        let _ = chdir("/");
    }
    if namespaces.contains(CloneFlags::CLONE_NEWPID) {
        // Joined for children only.
        fork_and_follow().map_err(EnterError::Fork)?;
    }
    set_disposition(Signal::SIGPIPE, inherited_sigpipe());
    execute(&cmd, &words, &environment)
}

/// Returns in a child, which is in the pid namespace; the caller follows it: it passes signals on, stops and ends as the child
/// does.
fn fork_and_follow() -> io::Result<()> {
    let sigchld = set_disposition(Signal::SIGCHLD, Disposition::Default);
    let signals = Signals::block()?;
    let parent = pidfd::open(getpid())?;
    match clone::fork(CloneFlags::empty(), ExitSignal::Child)? {
        Fork::Parent(child) => match follow(child, &signals)? {
            Ending::Exited(status) => exit_now(status),
            Ending::Killed(signal) => die_of(signal),
        },
        Fork::Child => {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            if pidfd::is_dead(parent.as_fd()) {
                exit_now(1);
            }
            set_disposition(Signal::SIGCHLD, sigchld);
            Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&signals.inherited_mask()), None)?)
        }
    }
}

fn follow(child: Pid, signals: &Signals) -> io::Result<Ending> {
    let pass_on = |swallowed: i32| -> io::Result<()> {
        while let Some(Received { signal, by_kernel, .. }) = signals.next()? {
            // The terminal's reach the child as well.
            if !by_kernel && signal != libc::SIGCHLD && signal != swallowed {
                // Fails only for a process that is dead already.
                let _ = wait::kill(child, signal);
            }
        }
        Ok(())
    };
    loop {
        match poll(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => drop(other?),
        }
        pass_on(0)?;
        loop {
            match wait::next_change()? {
                Event::Ended(pid, ending) if pid == child => return Ok(ending),
                Event::Stopped(pid, mut signal) if pid == child => loop {
                    Signals::stop_self(signal)?;
                    pass_on(libc::SIGCONT)?;
                    match wait::after_stop(child)? {
                        AfterStop::StoppedAgain(again) => signal = again,
                        AfterStop::Continued => break,
                        AfterStop::StillStopped => {
                            let _ = wait::kill(child, libc::SIGCONT);
                            break;
                        }
                    }
                },
                Event::Nothing | Event::NoChild => break,
                _ => {}
            }
        }
    }
}

/// Tries the program as it is, or in each directory of PATH, as execvp(3).
fn execute(cmd: &[OsString], words: &[CString], environment: &[CString]) -> Result<Infallible, EnterError> {
    let Some(program) = cmd.first() else { return Err(EnterError::Nul) };
    let candidates: Vec<PathBuf> = if program.as_bytes().contains(&b'/') {
        vec![program.into()]
    } else {
        let path = env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        env::split_paths(&path).map(|directory| directory.join(program)).collect()
    };
    let mut last = Errno::ENOENT;
    for candidate in candidates {
        let Err(error) = execve(&c_string(candidate.as_os_str())?, words, environment);
        match error {
            Errno::ENOENT | Errno::ENOTDIR => {}
            // There may be another one that is ours to execute. In a directory that is closed to us there is none.
            Errno::EACCES => {
                if candidate.symlink_metadata().is_ok() {
                    last = Errno::EACCES;
                }
            }
            error => {
                last = error;
                break;
            }
        }
    }
    Err(EnterError::Execute { program: program.to_string_lossy().into_owned(), source: last.into() })
}

/// Those of our own, with what CMD's says about the instance.
fn environment(instance: &Instance) -> Result<Vec<CString>, EnterError> {
    let about = state_dir::environment(&instance.path);
    let ours = env::vars_os().filter(|(name, _)| about.iter().all(|(known, _)| name != known));
    let about_owned = about.clone().map(|(name, value)| (OsString::from(name), value));
    ours.chain(about_owned)
        .map(|(mut entry, value)| {
            entry.push("=");
            entry.push(value);
            c_string(&entry)
        })
        .collect()
}

fn c_string(text: &OsStr) -> Result<CString, EnterError> {
    CString::new(text.as_bytes()).map_err(|_| EnterError::Nul)
}

/// The kinds of namespaces in which a process is and we are not.
fn namespaces(pid: Pid) -> io::Result<CloneFlags> {
    let kinds = [
        ("user", CloneFlags::CLONE_NEWUSER),
        ("mnt", CloneFlags::CLONE_NEWNS),
        ("net", CloneFlags::CLONE_NEWNET),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("cgroup", CloneFlags::CLONE_NEWCGROUP),
        ("pid", CloneFlags::CLONE_NEWPID),
    ];
    let mut differing = CloneFlags::empty();
    for (name, flag) in kinds {
        let theirs = fs::read_link(format!("/proc/{pid}/ns/{name}"))?;
        if theirs != fs::read_link(format!("/proc/self/ns/{name}"))? {
            differing |= flag;
        }
    }
    Ok(differing)
}
