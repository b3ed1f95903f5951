//! System calls. The only place of the crate with `unsafe`.

pub(crate) mod datagram;
pub(crate) mod netfilter;
pub(crate) mod processor;
pub(crate) mod rtnetlink;
pub(crate) mod scm;
pub(crate) mod sock_diag;
pub(crate) mod socket;
pub(crate) mod splice;
pub(crate) mod timer;

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// # Safety
/// A non-negative `fd` must be a descriptor that nobody else owns.
unsafe fn owned(fd: i32) -> io::Result<OwnedFd> {
    let fd = check(fd)?;
    // SAFETY: the caller's promise.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn length(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
