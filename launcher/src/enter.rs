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
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, chdir, execve};
use thiserror::Error;

use crate::state_dir::{self, Instance};
use crate::sys::pidfd;
use crate::sys::signal::{inherited_sigpipe, set_disposition};

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
    set_disposition(Signal::SIGPIPE, inherited_sigpipe());
    execute(&cmd, &words, &environment)
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

/// The kinds of namespaces in which a process is and we are not. The pid namespace is not among them: it would take
/// a fork, and CMD is never in one of its own.
fn namespaces(pid: Pid) -> io::Result<CloneFlags> {
    let kinds = [
        ("user", CloneFlags::CLONE_NEWUSER),
        ("mnt", CloneFlags::CLONE_NEWNS),
        ("net", CloneFlags::CLONE_NEWNET),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("cgroup", CloneFlags::CLONE_NEWCGROUP),
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
