//! waitpid(2) and kill(2) with plain signal numbers: CMD may die of a real-time signal, which has no name.

use std::io;

use nix::unistd::Pid;

use super::check;
use crate::error::Ending;

/// What waitpid(2) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// There is no child of the kind asked for.
    NoChild,
    /// No child has changed.
    Nothing,
    /// This child is dead and reaped.
    Ended(Pid, Ending),
    /// This child was stopped by this signal.
    Stopped(Pid, i32),
    /// This child goes on after it was stopped.
    Continued(Pid),
}

/// Takes the next change of any child that reports with SIGCHLD. Does not wait.
///
/// # Errors
/// waitpid(2).
pub(crate) fn next_change() -> io::Result<Event> {
    wait(-1, libc::WNOHANG | libc::WUNTRACED)
}

/// As [`next_change`], and a child that goes on after a stop is a change; [`after_stop`] does not see that any more.
///
/// # Errors
/// waitpid(2).
pub(crate) fn next_change_or_continue() -> io::Result<Event> {
    wait(-1, libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED)
}

/// A child that is dead and not reaped. Does not wait, and does not reap: its id stays its own.
///
/// # Errors
/// waitid(2).
pub(crate) fn peek_ended() -> io::Result<Option<Pid>> {
    // SAFETY: all-zero is a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` outlives the call.
    match check(unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) }.into()) {
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(None),
        other => other?,
    };
    // SAFETY: waitid(2) fills this member, or leaves it 0 if there is nothing to tell.
    let pid = unsafe { info.si_pid() };
    Ok((pid != 0).then(|| Pid::from_raw(pid)))
}

/// Waits until `pid`, whatever signal it reports with, is dead, and reaps it.
///
/// # Errors
/// waitpid(2).
pub(crate) fn wait_end(pid: Pid) -> io::Result<Ending> {
    loop {
        match wait(pid.as_raw(), libc::__WALL)? {
            Event::Ended(_, ending) => return Ok(ending),
            Event::NoChild => return Err(io::Error::from_raw_os_error(libc::ECHILD)),
            Event::Nothing | Event::Stopped(..) | Event::Continued(_) => {}
        }
    }
}

/// What became of a child that was reported as stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterStop {
    /// Nothing yet.
    StillStopped,
    /// It runs, or has ended.
    Continued,
    /// It went on and was stopped anew, by this signal.
    StoppedAgain(i32),
}

/// Asks what became of a stopped child. Does not reap.
///
/// # Errors
/// waitid(2).
pub(crate) fn after_stop(pid: Pid) -> io::Result<AfterStop> {
    // SAFETY: all-zero is a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WSTOPPED | libc::WCONTINUED | libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    let ask = |info: &mut libc::siginfo_t, flags| {
        // SAFETY: `info` outlives the call.
        check(unsafe { libc::waitid(libc::P_PID, pid.as_raw().cast_unsigned(), info, flags) }.into())
    };
    ask(&mut info, flags)?;
    // SAFETY: waitid(2) fills these members, or leaves them 0 if there is nothing to tell.
    let (reported, status) = unsafe { (info.si_pid() != 0, info.si_status()) };
    if !reported {
        return Ok(AfterStop::StillStopped);
    }
    if info.si_code != libc::CLD_STOPPED {
        return Ok(AfterStop::Continued);
    }
    // Takes the report, so that it is not seen twice.
    ask(&mut info, libc::WSTOPPED | libc::WNOHANG)?;
    Ok(AfterStop::StoppedAgain(status))
}

/// Sends a signal to a process. A child that is not reaped yet keeps its id, so this cannot hit another one.
///
/// # Errors
/// kill(2).
pub(crate) fn kill(pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: two integers.
    check(unsafe { libc::kill(pid.as_raw(), signal) }.into()).map(drop)
}

fn wait(pid: libc::pid_t, flags: libc::c_int) -> io::Result<Event> {
    let mut status = 0;
    let pid = loop {
        // SAFETY: `status` outlives the call.
        match check(unsafe { libc::waitpid(pid, &raw mut status, flags) }.into()) {
            Ok(pid) => break Pid::from_raw(pid as libc::pid_t),
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(Event::NoChild),
            Err(error) => return Err(error),
        }
    };
    Ok(if pid.as_raw() == 0 {
        Event::Nothing
    } else if libc::WIFEXITED(status) {
        Event::Ended(pid, Ending::Exited(libc::WEXITSTATUS(status)))
    } else if libc::WIFSIGNALED(status) {
        Event::Ended(pid, Ending::Killed(libc::WTERMSIG(status)))
    } else if libc::WIFSTOPPED(status) {
        Event::Stopped(pid, libc::WSTOPSIG(status))
    } else if libc::WIFCONTINUED(status) {
        Event::Continued(pid)
    } else {
        Event::Nothing
    })
}
