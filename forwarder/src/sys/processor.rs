//! On which processor the calling thread runs, and where the bytes of a socket come from.

use std::io;
use std::os::fd::BorrowedFd;

use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

use super::socket;

/// Processors that the calling thread may use (sched_setaffinity(2)), within its cpuset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Affinity(CpuSet);

const CALLER: Pid = Pid::from_raw(0);

impl Affinity {
    /// What it may use at the moment.
    pub(crate) fn usable() -> io::Result<Self> {
        Ok(Affinity(sched_getaffinity(CALLER)?))
    }

    /// What affinity limits it to, found out by lifting the limit for a moment: all there may ever be, where only its cpuset
    /// limits it. To set what it may use at the moment would limit it to that for good, however its cpuset grows.
    pub(crate) fn own_limit() -> io::Result<Self> {
        let (usable, all) = (Self::usable()?, Self::all()?);
        all.apply()?;
        if Self::usable()? == usable {
            return Ok(all);
        }
        usable.apply()?;
        Ok(usable)
    }

    /// All that a set has room for.
    pub(crate) fn all() -> io::Result<Self> {
        let mut all = CpuSet::new();
        (0..CpuSet::count()).try_for_each(|processor| all.set(processor))?;
        Ok(Affinity(all))
    }

    /// # Errors
    /// EINVAL: more processors than the set has room for (1,024).
    pub(crate) fn one(processor: usize) -> io::Result<Self> {
        let mut set = CpuSet::new();
        set.set(processor)?;
        Ok(Affinity(set))
    }

    pub(crate) fn contains(&self, processor: usize) -> bool {
        self.0.is_set(processor).unwrap_or(false)
    }

    pub(crate) fn apply(&self) -> io::Result<()> {
        Ok(sched_setaffinity(CALLER, &self.0)?)
    }
}

/// The processor that the calling thread runs on.
pub(crate) fn current() -> Option<usize> {
    sched_getcpu().ok()
}

/// The processor that handled the latest packet of the socket (SO_INCOMING_CPU, socket(7)).
pub(crate) fn incoming(fd: BorrowedFd<'_>) -> Option<usize> {
    usize::try_from(socket::int(fd, libc::SOL_SOCKET, libc::SO_INCOMING_CPU).ok()?).ok()
}

/// Whether the packets of the socket come from this machine: no device with a queue brought them (SO_INCOMING_NAPI_ID, socket(7)).
pub(crate) fn is_local(fd: BorrowedFd<'_>) -> bool {
    socket::int(fd, libc::SOL_SOCKET, libc::SO_INCOMING_NAPI_ID).is_ok_and(|id| id == 0)
}
