//! Whether to look for events a little longer before sleeping.
//!
//! # Theory of operation
//! Where somebody answers within microseconds, most of a round trip is the price of putting a CPU to sleep and of
//! waking it. A driver that has just moved little (a message, not a bulk transfer) therefore asks for events without
//! sleeping, and yields the CPU to whoever wants it between two questions. It does so only while its latest waits
//! were shorter than the limit, and never for longer than that: one long wait after the other, and it sleeps at
//! once, as a silent network wants.
//!
//! | wait ended | the next may be polled for |
//! |---|---|
//! | within the limit | twice as long as before, at least [`FIRST`], at most the limit |
//! | later | a quarter of that; nothing below [`FIRST`] |
//!
//! After a turn that moved more than a message the next [`BULK_TURNS`] are not polled for: a bulk transfer has turns
//! that move little or nothing, and waiting lets more come together. Beside streams that gather nobody polls.
//!
//! Not handled: how busy the other CPUs are. Yielding gives way on this one only.

use std::time::Duration;

/// The shortest polling worth its while.
const FIRST: Duration = Duration::from_micros(8);

/// Bytes moved in one turn of the loop up to which the turn counts as a message.
pub(super) const MESSAGE: usize = 2 << 10;

/// Turns that a bulk transfer is remembered for.
const BULK_TURNS: u8 = 16;

/// How long to poll, learnt from how long the latest waits were.
#[derive(Debug)]
pub(super) struct Polling {
    limit: Duration,
    budget: Duration,
    /// Turns until polling may begin again.
    bulk: u8,
}

impl Polling {
    /// Never polls for longer than `limit`; zero switches it off.
    pub(super) fn new(limit: Duration) -> Self {
        Polling { limit, budget: Duration::ZERO, bulk: 0 }
    }

    /// How long to poll now, after a turn that moved `bytes`.
    pub(super) fn budget(&mut self, bytes: usize) -> Duration {
        if bytes > MESSAGE {
            self.bulk = BULK_TURNS;
        } else if self.bulk == 0 {
            return self.budget;
        } else {
            self.bulk -= 1;
        }
        Duration::ZERO
    }

    /// Learns how long a wait was.
    pub(super) fn handle_wait(&mut self, waited: Duration) {
        self.budget = if waited <= self.limit {
            (self.budget * 2).max(FIRST).min(self.limit)
        } else {
            let less = self.budget / 4;
            if less < FIRST { Duration::ZERO } else { less }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(50);

    fn after(waits: &[u64]) -> Duration {
        let mut polling = Polling::new(LIMIT);
        waits.iter().for_each(|&waited| polling.handle_wait(Duration::from_micros(waited)));
        polling.budget(1)
    }

    #[test]
    fn short_waits_are_polled_for_up_to_the_limit() {
        assert_eq!(after(&[]), Duration::ZERO);
        assert_eq!(after(&[10]), FIRST);
        assert_eq!(after(&[10, 10]), FIRST * 2);
        assert_eq!(after(&[10; 9]), LIMIT);
    }

    #[test]
    fn two_long_waits_end_it() {
        assert_eq!(after(&[10, 10, 10, 10, 51]), LIMIT / 4);
        assert_eq!(after(&[10, 10, 10, 10, 51, 1_000_000]), Duration::ZERO);
    }

    #[test]
    fn a_bulk_transfer_is_not_polled_for() {
        let mut polling = Polling::new(LIMIT);
        polling.handle_wait(FIRST);
        assert_eq!(polling.budget(MESSAGE), FIRST);
        for bytes in std::iter::once(MESSAGE + 1).chain([0; BULK_TURNS as usize]) {
            assert_eq!(polling.budget(bytes), Duration::ZERO);
        }
        assert_eq!(polling.budget(0), FIRST);
    }

    #[test]
    fn a_limit_of_zero_switches_it_off() {
        let mut polling = Polling::new(Duration::ZERO);
        (0..9).for_each(|_| polling.handle_wait(Duration::ZERO));
        assert_eq!(polling.budget(0), Duration::ZERO);
    }
}
