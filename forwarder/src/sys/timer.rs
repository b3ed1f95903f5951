//! A timerfd(2). Unlike the time-out of a wait it is programmed once, not for every wait: that is an exit of a virtual machine.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// Readable after the time that it was started for.
#[derive(Debug)]
pub(crate) struct Timer(TimerFd);

impl Timer {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        Ok(Timer(TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?))
    }

    /// Expires once, `after` from now.
    pub(crate) fn start(&self, after: Duration) {
        // A valid time for a valid timer.
        let _ = self.0.set(Expiration::OneShot(after.into()), TimerSetTimeFlags::empty());
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
