//! Whether to look for events a little longer before sleeping, when to give way to others, and how much to do in one turn.
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
//! A bulk of datagrams is another matter. Whoever takes them often shares a CPU with us, and has a buffer for some
//! ninety of them: a driver that passes on what comes as fast as it can only makes more of them be dropped at the end of
//! the way, after all the work, and takes the receiver's time for it. Therefore [`Courtesy`] has the driver
//!
//! - yield after each [`BULK`], which costs nothing where nobody waits for the CPU. Where it takes long, somebody with
//!   work of his own has got it, and the next yield is put off so that no more than a quarter of the time goes that
//!   way;
//! - pause when it has caught up ([`PAUSE`]): what gathers meanwhile costs one wake-up, one system call and one frame
//!   instead of many. Not while streams move bytes too, and never after a few datagrams: those want an answer.
//!
//! Streams in bulk fill turns of the loop, and whoever sends a message of a few bytes beside them waits for the end of a turn on
//! its way out and once more on its way back. While messages come, [`Turns`] are short: the bulk pays for it with some of its rate,
//! which it has back as soon as it is alone.
//!
//! Not handled: how busy the other CPUs are. Yielding gives way on this one only.

use std::time::Duration as StdDuration;

use crate::time::{Duration, Instant};

/// The shortest polling worth its while.
const FIRST: Duration = Duration::from_micros(8);

/// Bytes moved in one turn of the loop up to which the turn counts as a message.
pub(super) const MESSAGE: usize = 8 << 10;

/// How long to poll, learnt from how long the latest waits were.
#[derive(Debug)]
pub(super) struct Polling {
    limit: Duration,
    budget: Duration,
}

impl Polling {
    /// Never polls for longer than `limit`; zero switches it off.
    pub(super) fn new(limit: Duration) -> Self {
        Polling { limit, budget: Duration::ZERO }
    }

    /// How long to poll now, after a turn that moved `bytes`.
    pub(super) fn budget(&self, bytes: usize) -> Duration {
        if bytes <= MESSAGE { self.budget } else { Duration::ZERO }
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

/// Datagrams between two yields.
const BULK: usize = 32;

/// Datagrams since the last wait that make a pause worth its while.
const SEVERAL: usize = 8;

/// The pause; the kernel makes it longer by the slack of its timers, 50 us by default (`PR_SET_TIMERSLACK`).
pub(super) const PAUSE: StdDuration = StdDuration::from_micros(10);

/// A yield that took longer went to somebody who does more than take what was sent.
const LONG: Duration = Duration::from_micros(500);

/// So many times its length pass before the next.
const ABSTINENCE: u32 = 3;

/// When to give way during a bulk of datagrams.
#[derive(Debug)]
pub(super) struct Courtesy {
    /// Datagrams since the last wait.
    several: usize,
    /// Datagrams since the last yield.
    bulk: usize,
    /// Bytes of streams were moved since the last wait.
    streams: bool,
    no_yield_before: Instant,
}

impl Courtesy {
    pub(super) fn new() -> Self {
        Courtesy { several: 0, bulk: 0, streams: false, no_yield_before: Instant::ZERO }
    }

    /// Notes datagrams that were passed on.
    pub(super) fn handle_datagrams(&mut self, count: usize) {
        self.several += count;
        self.bulk += count;
    }

    /// Notes that bytes of a stream were moved.
    pub(super) fn handle_stream(&mut self) {
        self.streams = true;
    }

    /// Notes that a yield took from `start` to `end`.
    pub(super) fn handle_yield(&mut self, start: Instant, end: Instant) {
        let took = end - start;
        if took > LONG {
            self.no_yield_before = end + took * ABSTINENCE;
        }
    }

    /// Whether enough was passed on to think of a yield: asked before the clock is.
    pub(super) fn is_bulk(&self) -> bool {
        self.bulk >= BULK
    }

    /// Whether to yield now.
    pub(super) fn take_yield(&mut self, now: Instant) -> bool {
        let wanted = self.is_bulk() && now >= self.no_yield_before;
        if self.is_bulk() {
            self.bulk = 0;
        }
        wanted
    }

    /// Whether to pause before the wait that begins now.
    pub(super) fn take_pause(&mut self) -> bool {
        let streams = std::mem::take(&mut self.streams);
        std::mem::take(&mut self.several) >= SEVERAL && !streams
    }
}

/// How much of streams is moved in one turn of the loop.
#[derive(Debug)]
pub(super) struct Turns {
    /// Turns are short until then.
    short_until: Instant,
}

impl Turns {
    /// Bytes read from streams of the host between two looks at all of them: a bulk stream is not to keep others waiting for its
    /// whole window.
    const SHARE: usize = 256 << 10;
    /// The same while messages come.
    const SHORT_SHARE: usize = 32 << 10;
    /// Batches of the TAP between two looks at the sockets.
    const TAP_BATCHES: usize = 2;
    /// The most bytes of a message.
    const MESSAGE: usize = 2 << 10;
    /// How long after a message the next is expected.
    const PATIENCE: Duration = Duration::from_millis(10);

    pub(super) fn new() -> Self {
        Turns { short_until: Instant::ZERO }
    }

    /// Notes that `bytes`, all that there were, went from one end of a stream to the other.
    pub(super) fn handle_message(&mut self, now: Instant, bytes: usize) {
        if (1..=Self::MESSAGE).contains(&bytes) {
            self.short_until = now + Self::PATIENCE;
        }
    }

    /// Bytes that may be read from streams of the host in the turn that begins now.
    pub(super) fn share(&self, now: Instant) -> usize {
        if self.are_short(now) { Self::SHORT_SHARE } else { Self::SHARE }
    }

    /// Batches that may be read from the TAP in it.
    pub(super) fn tap_batches(&self, now: Instant) -> usize {
        if self.are_short(now) { 1 } else { Self::TAP_BATCHES }
    }

    fn are_short(&self, now: Instant) -> bool {
        now < self.short_until
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
        assert_eq!(polling.budget(MESSAGE + 1), Duration::ZERO);
    }

    #[test]
    fn a_limit_of_zero_switches_it_off() {
        let mut polling = Polling::new(Duration::ZERO);
        (0..9).for_each(|_| polling.handle_wait(Duration::ZERO));
        assert_eq!(polling.budget(0), Duration::ZERO);
    }
    #[test]
    fn a_bulk_of_datagrams_yields_and_a_few_do_not() {
        let mut courtesy = Courtesy::new();
        courtesy.handle_datagrams(BULK - 1);
        assert!(!courtesy.take_yield(Instant::ZERO));
        courtesy.handle_datagrams(1);
        assert!(courtesy.take_yield(Instant::ZERO));
        assert!(!courtesy.take_yield(Instant::ZERO), "once for each bulk");
    }

    #[test]
    fn a_long_yield_puts_the_next_one_off() {
        let mut courtesy = Courtesy::new();
        let (start, end) = (Instant::from_millis(10), Instant::from_millis(14));
        let yields = |courtesy: &mut Courtesy, at| {
            courtesy.handle_datagrams(BULK);
            courtesy.take_yield(at)
        };
        courtesy.handle_yield(start, start + LONG);
        assert!(yields(&mut courtesy, start + LONG));
        courtesy.handle_yield(start, end);
        assert!(!yields(&mut courtesy, Instant::from_micros(25_999)));
        assert!(yields(&mut courtesy, Instant::from_millis(26)));
    }

    #[test]
    fn messages_make_turns_short_and_a_bulk_alone_has_long_ones() {
        let mut turns = Turns::new();
        let at = Instant::from_millis;
        let parts = |turns: &Turns, now| (turns.share(now), turns.tap_batches(now));
        turns.handle_message(at(1), Turns::SHARE);
        turns.handle_message(at(1), 0);
        assert_eq!(parts(&turns, at(1)), (Turns::SHARE, Turns::TAP_BATCHES));
        turns.handle_message(at(5), 1);
        assert_eq!(parts(&turns, at(14)), (Turns::SHORT_SHARE, 1));
        assert_eq!(parts(&turns, at(15)), (Turns::SHARE, Turns::TAP_BATCHES), "nothing came for a while");
    }

    #[test]
    fn several_datagrams_make_a_pause_unless_streams_move_too() {
        let mut courtesy = Courtesy::new();
        courtesy.handle_datagrams(SEVERAL - 1);
        assert!(!courtesy.take_pause());
        courtesy.handle_datagrams(SEVERAL);
        assert!(courtesy.take_pause());
        assert!(!courtesy.take_pause());
        courtesy.handle_datagrams(SEVERAL);
        courtesy.handle_stream();
        assert!(!courtesy.take_pause());
        courtesy.handle_datagrams(SEVERAL);
        assert!(courtesy.take_pause());
    }
}
