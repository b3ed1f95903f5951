//! Whether an engine that has died is started again. Pure.
//!
//! # Theory of operation
//! The first engine that dies in a minute has its successor at once, later ones have it after a while, and the one that dies as the
//! [`LIMIT`]th ends the launch: whatever kills them so fast will kill the next.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// So many deaths within [`WINDOW`] end the launch.
pub const LIMIT: usize = 5;
/// Deaths are counted for so long.
pub const WINDOW: Duration = Duration::from_mins(1);
/// How long the successor waits after the first, second, … death within [`WINDOW`].
const PAUSES: [Duration; LIMIT - 1] =
    [Duration::ZERO, Duration::from_millis(50), Duration::from_millis(250), Duration::from_secs(1)];

/// The deaths so far.
#[derive(Clone, Debug, Default)]
pub struct Restarts {
    lately: VecDeque<Instant>,
    count: u32,
}

/// What follows from a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The next engine is to be started then.
    Restart {
        /// When.
        at: Instant,
    },
    /// There have been too many.
    GiveUp,
}

impl Restarts {
    /// An engine has died, or could not be started.
    pub fn handle_death(&mut self, now: Instant) -> Verdict {
        self.lately.retain(|death| now.saturating_duration_since(*death) < WINDOW);
        let Some(pause) = PAUSES.get(self.lately.len()) else { return Verdict::GiveUp };
        self.lately.push_back(now);
        self.count += 1;
        Verdict::Restart { at: now + *pause }
    }

    /// How often an engine was to be started again.
    pub fn count(&self) -> u32 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fifth_death_within_a_minute_is_the_last() {
        let start = Instant::now();
        let mut restarts = Restarts::default();
        for (second, pause) in [(0, 0), (10, 50), (20, 250), (30, 1000)] {
            let now = start + Duration::from_secs(second);
            let at = now + Duration::from_millis(pause);
            assert_eq!(restarts.handle_death(now), Verdict::Restart { at });
        }
        assert_eq!(restarts.handle_death(start + Duration::from_secs(59)), Verdict::GiveUp);
        assert_eq!(restarts.count(), 4);
    }

    #[test]
    fn deaths_are_forgotten_after_a_minute() {
        let start = Instant::now();
        let mut restarts = Restarts::default();
        for minutes in 0..100 {
            let now = start + minutes * WINDOW;
            assert_eq!(restarts.handle_death(now), Verdict::Restart { at: now });
        }
    }
}
