//! splice(2) through a pipe, with exact accounting of what is inside, and a pool of such pipes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

use super::length;

/// Bytes asked for; what the kernel gives when the user's share of pipe memory (pipe-user-pages-soft) is used up
/// is 64 KiB or less, which works too.
const CAPACITY: usize = 256 << 10;

/// A pipe between two sockets.
#[derive(Debug)]
pub(crate) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
    held: usize,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
        let capacity = fcntl(&write, FcntlArg::F_SETPIPE_SZ(CAPACITY as i32))
            .or_else(|_| fcntl(&write, FcntlArg::F_GETPIPE_SZ))?;
        Ok(Pipe { read, write, capacity: usize::try_from(capacity).unwrap_or(0).max(4096), held: 0 })
    }

    /// Bytes inside.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Moves bytes from a socket into the pipe; 0 at the end of the stream. `WouldBlock` means an empty socket
    /// only if the pipe is empty: it may also be out of slots.
    pub(crate) fn fill(&mut self, from: BorrowedFd<'_>) -> io::Result<usize> {
        let moved = splice(from, self.write.as_fd(), self.capacity)?;
        self.held += moved;
        Ok(moved)
    }

    /// Moves bytes from the pipe into a socket.
    pub(crate) fn drain(&mut self, to: BorrowedFd<'_>) -> io::Result<usize> {
        let moved = splice(self.read.as_fd(), to, self.held)?;
        self.held -= moved.min(self.held);
        Ok(moved)
    }
}

fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    let none = std::ptr::null_mut();
    // SAFETY: takes descriptors and null offsets.
    length(unsafe { libc::splice(from.as_raw_fd(), none, to.as_raw_fd(), none, len, flags) })
}

/// Empty pipes, ready for use.
#[derive(Debug)]
pub(crate) struct PipePool {
    free: Vec<Pipe>,
    lent: usize,
    limit: usize,
}

impl PipePool {
    /// Pipes kept when nobody uses them.
    const KEPT: usize = 16;

    pub(crate) fn new(limit: usize) -> Self {
        PipePool { free: Vec::new(), lent: 0, limit }
    }

    /// A pipe, unless there are too many already or no descriptors are left.
    pub(crate) fn take(&mut self) -> Option<Pipe> {
        if self.lent >= self.limit {
            return None;
        }
        let pipe = self.free.pop().or_else(|| Pipe::new().ok())?;
        self.lent += 1;
        Some(pipe)
    }

    /// Takes a pipe back; one with something inside is closed.
    pub(crate) fn give(&mut self, pipe: Pipe) {
        self.lent -= 1;
        if pipe.held == 0 && self.free.len() < Self::KEPT {
            self.free.push(pipe);
        }
    }

    /// Closes the pipes that nobody uses; says whether there were any.
    pub(crate) fn close_free(&mut self) -> bool {
        let any = !self.free.is_empty();
        self.free.clear();
        any
    }

    pub(crate) fn lent(&self) -> usize {
        self.lent
    }
}
