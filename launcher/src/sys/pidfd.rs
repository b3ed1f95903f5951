//! pidfd_open(2), pidfd_send_signal(2) and the parent of a user namespace (ioctl_ns(2)).

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::check;

/// How long [`end`] waits, in milliseconds.
const GRACE: u16 = 1000;

const NS_GET_PARENT: libc::c_ulong = 0xb702;

/// A descriptor of the process that has this id now; readable once that process is dead.
///
/// # Errors
/// pidfd_open(2); `ESRCH` if there is none.
pub fn open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: two integers; returns a new descriptor.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })? as libc::c_int;
    // SAFETY: the system call has just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal to exactly that process, never to one that took over its id.
///
/// # Errors
/// pidfd_send_signal(2).
pub(crate) fn signal(process: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    send(process, signal as libc::c_int)
}

/// As [`signal`], by the signal's number: real-time signals have no name.
///
/// # Errors
/// pidfd_send_signal(2).
pub(crate) fn send(process: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let info: *const libc::siginfo_t = ptr::null();
    // SAFETY: a null siginfo means "as kill(2)".
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, info, 0) })
        .map(drop)
}

/// Whether a process is dead, a zombie counting as dead.
pub(crate) fn is_dead(process: BorrowedFd<'_>) -> bool {
    poll(&mut [PollFd::new(process, PollFlags::POLLIN)], PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Whether a process is stopped by a signal (proc_pid_stat(5), proc_pid_fdinfo(5)); need not be a child.
pub(crate) fn is_stopped(process: &OwnedFd) -> bool {
    let read = || {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd())).ok()?;
        let pid: i32 = info.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(stat.rsplit_once(") ")?.1.starts_with('T'))
    };
    read().unwrap_or(false)
}

/// Waits until a process is dead.
///
/// # Errors
/// poll(2).
pub(crate) fn wait_dead(process: BorrowedFd<'_>) -> io::Result<()> {
    loop {
        match poll(&mut [PollFd::new(process, PollFlags::POLLIN)], PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            other => return Ok(other.map(drop)?),
        }
    }
}

/// Waits until a process is dead, and kills it if that takes longer than [`GRACE`].
///
/// # Errors
/// poll(2), pidfd_send_signal(2).
pub(crate) fn end(process: &OwnedFd) -> io::Result<()> {
    let process = process.as_fd();
    let mut fds = [PollFd::new(process, PollFlags::POLLIN)];
    if !poll(&mut fds, GRACE).is_ok_and(|ready| ready > 0) {
        signal(process, Signal::SIGKILL)?;
    }
    wait_dead(process)
}

/// The user namespace above `namespace`.
///
/// # Errors
/// ioctl_ns(2); `EPERM` if it is outside of what this process may see.
pub(crate) fn parent_namespace(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: NS_GET_PARENT takes no argument and returns a new descriptor.
    let fd = check(libc::c_long::from(unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_PARENT) }))?;
    // SAFETY: the ioctl has just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}
