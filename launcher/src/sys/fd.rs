//! Ownership of descriptors.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::check;

/// Closes every descriptor above stderr except `keep`.
///
/// Meant for a process that was just forked and that never returns to code which owns the others.
///
/// # Errors
/// close_range(2); a kernel older than 5.9 does not have it.
pub(crate) fn close_all_except(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut keep: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    keep.sort_unstable();
    let mut first = libc::STDERR_FILENO + 1;
    for fd in keep {
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = first.max(fd + 1);
    }
    close_range(first, RawFd::MAX)
}

/// Takes over a descriptor that the caller of this program names by its number; it is closed by exec from now on.
///
/// To be called before anything else is opened, once for each number: a number above stderr that is open then is
/// the caller's, and nobody else here owns it. Standard input, output and error are the runtime's; of them the
/// result is a duplicate.
///
/// # Errors
/// `EBADF` if nothing is open under this number.
pub(crate) fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: integers only.
    let fcntl =
        |command, argument: libc::c_int| check(unsafe { libc::fcntl(number, command, argument) }.into());
    let fd = if number <= libc::STDERR_FILENO {
        fcntl(libc::F_DUPFD_CLOEXEC, libc::STDERR_FILENO + 1)? as RawFd
    } else {
        let flags = fcntl(libc::F_GETFD, 0)? as libc::c_int;
        fcntl(libc::F_SETFD, flags | libc::FD_CLOEXEC)?;
        number
    };
    // SAFETY: it is open, and it is new or, by the contract above, no object of this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Waits for somebody who connects to `listener`, and takes that connection; it is closed by exec.
///
/// # Errors
/// accept4(2).
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    loop {
        // SAFETY: a null address says that the peer's is not wanted.
        let fd = unsafe {
            libc::accept4(
                listener.as_raw_fd(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                libc::SOCK_CLOEXEC,
            )
        };
        match check(fd.into()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // SAFETY: the system call has just returned this descriptor; nobody else owns it.
            other => return Ok(unsafe { OwnedFd::from_raw_fd(other? as RawFd) }),
        }
    }
}

fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    // SAFETY: the caller gives up the descriptors of this range; no object that owns one runs again in this
    // process (see `close_all_except`).
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}
