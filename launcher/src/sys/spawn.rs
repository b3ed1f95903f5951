//! What a new process does between fork(2) and exec(3).

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::{Pid, getppid, setsid};

use super::check;

/// Lets the program of `command` lead a session of its own, without a terminal, with no signal blocked, without our
/// caller's descriptors above standard error, and die with the calling thread.
pub(crate) fn detach(command: &mut Command) {
    let parent = Pid::this();
    let prepare = move || {
        setsid()?;
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
        close_on_exec_above_stderr()?;
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // Too late for a parent that was dead already.
        if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
    };
    // SAFETY: nothing but async-signal-safe system calls; nothing is allocated and no lock is taken.
    unsafe { command.pre_exec(prepare) };
}

/// Gives up the calling process's controlling terminal (TIOCNOTTY, ioctl_tty(2)), if it has one and does not lead the session, whose
/// other processes keep theirs.
///
/// # Errors
/// What open(2) and ioctl(2) say, but for "there is none".
pub(crate) fn leave_terminal() -> io::Result<()> {
    let terminal = match OpenOptions::new().read(true).custom_flags(libc::O_NOCTTY).open("/dev/tty") {
        Ok(terminal) => terminal,
        // None, or no such file in this tree.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENOENT)) => return Ok(()),
        Err(error) => return Err(error),
    };
    let result = {
        // SAFETY: the request has no argument.
        unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCNOTTY) }
    };
    check(result.into()).map(drop)
}

/// Not at once: the parent learns through one of them why exec(3) failed.
fn close_on_exec_above_stderr() -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;
    let result = {
        // SAFETY: three integers; nothing is closed before this process becomes another program.
        unsafe { libc::syscall(libc::SYS_close_range, libc::STDERR_FILENO + 1, libc::c_int::MAX, flags) }
    };
    match check(result) {
        // A kernel before 5.11 does not know the flag; ours are closed by exec anyway.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        other => other.map(drop),
    }
}
