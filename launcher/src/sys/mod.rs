//! System calls that no safe wrapper offers. All `unsafe` of this crate lives here.

pub mod clone;
pub mod fd;
pub(crate) mod memory;
pub mod mount;
pub mod pidfd;
pub mod sched;
pub mod scm;
pub mod signal;
pub mod spawn;
pub mod wait;
pub mod xattr;

use std::io;

/// Turns the result of a raw system call into a value or `errno`.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
