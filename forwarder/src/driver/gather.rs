//! When a bulk stream is to be carried on: not for every segment.
//!
//! # Theory of operation
//! Waking up costs more than moving what has come by then, so a relay that is woken for every segment is slower than its peers and
//! takes their CPU. A stream that has proved to be bulk *gathers*: its socket counts as readable only when [`LOW_WATER`] bytes have
//! come (SO_RCVLOWAT), when its window is about to close, or at its end. What is less than that would lie there for ever, so whatever
//! a stream has is moved when [`LOOK`] has passed without a byte; if that is little, the stream is not bulk any more.
//!
//! | stream | led to by |
//! |---|---|
//! | gathers | [`STEADY`] bytes in reads of [`BULK`] |
//! | does not any more | a look after which less than [`BULK`] was read |
//! | loses its pipe, bytes are copied | [`SMALL_READS`] reads below [`SMALL`] in a row |
//!
//! A message of that many bytes is the least whose last ones wait, for at most twice [`LOOK`]; the end of the stream does not.

use std::time::Duration;

use super::placing::Sender;

/// Bytes that wake the relay of a stream that gathers: 170 us at 50 Gb/s. More gains nothing.
pub(super) const LOW_WATER: i32 = 1 << 20;
/// Time between two looks. A shorter one is felt: a timer costs a virtual machine as much as moving a megabyte.
pub(super) const LOOK: Duration = Duration::from_millis(10);
/// A read of so many bytes gets a stream its pipe: below, copying is cheaper than two splices.
pub(super) const BULK: usize = 32 << 10;
/// Bytes in reads of [`BULK`] and more, one after the other, until a stream gathers: they take longer than a look, so that what waits is
/// little to what went before.
const STEADY: usize = 64 << 20;
/// Reads below this count as small ...
const SMALL: usize = 16 << 10;
/// ... and so many in a row lose the stream its pipe.
const SMALL_READS: u8 = 4;

/// What is known of a stream that has a pipe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Gather {
    small: u8,
    steady: usize,
    state: State,
    /// Of a stream that gathers and comes from this machine.
    pub(super) sender: Option<Sender>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Off,
    /// Bytes that came since the last look.
    On(usize),
    /// The last look found that nothing had come, and had what there was moved: so much.
    Asked(usize),
}

/// What a read leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Go on.
    Go,
    /// Gather from now on.
    Gather,
    /// Copy from now on.
    Copy,
}

/// What a look leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looked {
    /// The stream flows by itself.
    Flows,
    /// What there is is to be moved.
    Waits,
    /// The stream does not gather any more.
    Over,
}

impl Gather {
    /// Whether the socket has its low-water mark.
    pub(super) fn is_on(&self) -> bool {
        self.state != State::Off
    }

    /// Whether the latest reads were small.
    pub(super) fn is_small(&self) -> bool {
        self.small >= SMALL_READS
    }

    /// Learns that `count` bytes were read; 0 stands for a read without a result too.
    pub(super) fn handle_read(&mut self, count: usize) -> Verdict {
        match &mut self.state {
            State::On(bytes) | State::Asked(bytes) => {
                *bytes = bytes.saturating_add(count);
                return Verdict::Go;
            }
            State::Off => {}
        }
        self.small = if count < SMALL { self.small.saturating_add(1) } else { 0 };
        // The read that finds a socket empty says nothing.
        if count > 0 {
            self.steady = if count < BULK { 0 } else { self.steady + count };
        }
        if self.steady >= STEADY {
            *self = Gather { state: State::On(count), ..Gather::default() };
            return Verdict::Gather;
        }
        if self.is_small() { Verdict::Copy } else { Verdict::Go }
    }

    /// A look, [`LOOK`] after the one before.
    pub(super) fn look(&mut self) -> Looked {
        let (state, looked) = match self.state {
            State::On(0) => (State::Asked(0), Looked::Waits),
            State::Asked(bytes) if bytes < BULK => (State::Off, Looked::Over),
            State::On(_) | State::Asked(_) => (State::On(0), Looked::Flows),
            State::Off => (State::Off, Looked::Over),
        };
        self.state = state;
        if looked == Looked::Over {
            self.sender = None;
        }
        looked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathering() -> Gather {
        let mut gather = Gather::default();
        for _ in 1..STEADY / BULK {
            assert_eq!(gather.handle_read(BULK), Verdict::Go);
            assert_eq!(gather.handle_read(0), Verdict::Go);
        }
        assert_eq!(gather.handle_read(BULK), Verdict::Gather);
        gather
    }

    #[test]
    fn a_stream_that_flows_is_left_alone() {
        let mut gather = gathering();
        for _ in 0..9 {
            assert_eq!(gather.look(), Looked::Flows);
            assert_eq!(gather.handle_read(1 << 20), Verdict::Go);
        }
    }

    #[test]
    fn what_waits_is_asked_for_and_a_little_ends_it() {
        let mut gather = gathering();
        assert_eq!(gather.look(), Looked::Flows);
        assert_eq!(gather.look(), Looked::Waits);
        assert_eq!(gather.handle_read(BULK), Verdict::Go);
        assert_eq!(gather.look(), Looked::Flows, "it was enough");
        assert_eq!(gather.look(), Looked::Waits);
        assert_eq!(gather.handle_read(BULK - 1), Verdict::Go);
        assert_eq!(gather.look(), Looked::Over);
        assert!(!gather.is_on());
        assert_eq!(gather, Gather::default());
    }

    #[test]
    fn small_reads_lose_the_pipe() {
        let mut gather = Gather::default();
        for _ in 1..SMALL_READS {
            assert_eq!(gather.handle_read(SMALL - 1), Verdict::Go);
        }
        assert_eq!(gather.handle_read(0), Verdict::Copy);
        assert!(gather.is_small());
        assert_eq!(gather.handle_read(SMALL), Verdict::Go);
    }
}
