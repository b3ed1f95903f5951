//! What a new process does between fork(2) and exec(3).

use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::{Pid, getppid, setsid};

/// Lets the program of `command` lead a session of its own, without a terminal, with no signal blocked, and die with
/// the calling thread.
pub(crate) fn detach(command: &mut Command) {
    let parent = Pid::this();
    let prepare = move || {
        setsid()?;
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // Too late for a parent that was dead already.
        if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
    };
    // SAFETY: nothing but async-signal-safe system calls; nothing is allocated and no lock is taken.
    unsafe { command.pre_exec(prepare) };
}
