//! The only clock of the crate.

use crate::time::Instant;

/// `CLOCK_MONOTONIC`, counted from the clock's creation.
#[derive(Clone, Copy, Debug)]
pub struct MonotonicClock {
    start: std::time::Instant,
    unix_micros_at_zero: i64,
}

impl MonotonicClock {
    /// A clock that shows zero.
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn new() -> Self {
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let unix_micros_at_zero = since_1970.map_or(0, |since| since.as_micros() as i64);
        MonotonicClock { start: std::time::Instant::now(), unix_micros_at_zero }
    }

    /// The wall clock when this clock showed zero, in microseconds since 1970.
    pub fn unix_micros_at_zero(&self) -> i64 {
        self.unix_micros_at_zero
    }

    /// Time since the clock was made.
    pub fn now(&self) -> Instant {
        Instant::from_micros(self.start.elapsed().as_micros() as i64)
    }
}

/// Lets other tasks of this CPU run (sched_yield(2)); returns at once if there are none.
pub(super) fn yield_now() {
    std::thread::yield_now();
}

/// Sleeps for `duration`, and for as much longer as the kernel's timers are slack.
#[expect(clippy::disallowed_methods, reason = "no event tells that enough has gathered")]
pub(super) fn pause(duration: std::time::Duration) {
    std::thread::sleep(duration);
}

impl Default for MonotonicClock {
    fn default() -> Self {
        Self::new()
    }
}
