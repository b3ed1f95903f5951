//! The only clock of the crate.

use crate::time::Instant;

/// `CLOCK_MONOTONIC`, counted from the clock's creation.
#[derive(Clone, Copy, Debug)]
pub struct MonotonicClock {
    start: std::time::Instant,
}

impl MonotonicClock {
    /// A clock that shows zero.
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn new() -> Self {
        MonotonicClock { start: std::time::Instant::now() }
    }

    /// Time since the clock was made.
    pub fn now(&self) -> Instant {
        Instant::from_micros(self.start.elapsed().as_micros() as i64)
    }
}

impl Default for MonotonicClock {
    fn default() -> Self {
        Self::new()
    }
}
