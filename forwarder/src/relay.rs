//! Half-close, back-pressure and reset of two joined TCP sockets, as a table.
//!
//! # Theory of operation
//! Two sockets are joined: the *accepted* one, which somebody connected to, and the *opened* one, which we connected because
//! of it. Each [`Side`] is the source of one stream and the sink of the other. What edge-triggered epoll(7) tells is remembered
//! here and used up by doing: a socket counts as readable until a read said "nothing now", as writable until a write did.
//!
//! | stream | led to by | what is done |
//! |---|---|---|
//! | nothing held, source readable, sink writable | | [`Action::Fill`] |
//! | something held, sink writable | a short write | [`Action::Drain`] |
//! | something held, sink not writable | a full sink | nothing: the source's window closes (back-pressure) |
//! | source ended, nothing held | a read of 0 | [`Action::Finish`]: the sink's peer sees the end, the other stream goes on |
//! | both ended, nothing held | | [`Action::Close`]: tells the second sink's peer of the end as well |
//! | a read or a write failed | RST, keepalive | [`Action::Reset`]: the other peer sees RST as well |
//!
//! Before the opened side is connected nothing is read: the client's bytes wait in its socket.
//!
//! The end of a stream may reach us in the same event as its last bytes. A read that returned less than it could is
//! then no proof of an empty socket, so the end that the event told of ([`Readiness::ended`]) keeps the source readable
//! until the end is read. A source that failed is read to its end too: its last bytes come before the error.

/// One of the two sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one somebody connected to.
    Accepted,
    /// The one we connected because of it.
    Opened,
}

impl Side {
    /// The opposite side.
    pub fn other(self) -> Self {
        match self {
            Side::Accepted => Side::Opened,
            Side::Opened => Side::Accepted,
        }
    }
}

/// What an event says about a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// There is something to read (EPOLLIN).
    pub readable: bool,
    /// There is room to write (EPOLLOUT).
    pub writable: bool,
    /// The peer has ended its stream (EPOLLRDHUP).
    pub ended: bool,
    /// The socket has an error (EPOLLERR).
    pub failed: bool,
}

/// What has to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The opened side is connected: start to hear of the accepted one.
    Join,
    /// The opened side could not be connected.
    Fail,
    /// Read from this side; answer by [`Relay::filled`].
    Fill(Side),
    /// Write what is held from this side to the other; answer by [`Relay::drained`].
    Drain(Side),
    /// Send the end to this side (shutdown(2)); the other stream goes on.
    Finish(Side),
    /// Close both so that the peers see RST.
    Reset,
    /// Close both, in order: whoever has not got the end gets it by that.
    Close,
}

/// What a read came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// So many bytes are held now; there may be more.
    Bytes(usize),
    /// So many bytes are held now; for the moment there are no more.
    Last(usize),
    /// Nothing now.
    WouldBlock,
    /// The end of the stream.
    End,
    /// The connection is lost.
    Failed,
}

/// What a write came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// So many bytes went out.
    Bytes(usize),
    /// None now.
    WouldBlock,
    /// The connection is lost.
    Failed,
}

/// See the module. Facts in by `handle_ready`, `filled` and `drained`; then [`Relay::poll_action`] until `None`. Every
/// `Fill` and `Drain` is answered before the next question.
#[derive(Clone, Debug)]
pub struct Relay {
    phase: Phase,
    from_accepted: Stream,
    from_opened: Stream,
    /// Whose turn it is, so that neither stream starves the other.
    turn: Side,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Connecting,
    Connected,
    Joined,
    Failed,
    Broken,
    Over,
}

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    held: usize,
    /// Of the source: may be read.
    readable: bool,
    /// Of the source: its end will follow.
    ending: bool,
    /// Of the source: its end was read.
    ended: bool,
    /// Of the source: it has an error.
    failed: bool,
    /// Of the sink: may be written.
    writable: bool,
    /// Of the sink: the end was sent.
    finished: bool,
}

impl Relay {
    /// A pair whose opened side is connecting.
    pub fn new() -> Self {
        Relay {
            phase: Phase::Connecting,
            from_accepted: Stream::default(),
            from_opened: Stream::default(),
            turn: Side::Accepted,
        }
    }

    /// An event of one socket.
    pub fn handle_ready(&mut self, side: Side, readiness: Readiness) {
        if self.phase == Phase::Connecting && side == Side::Opened {
            if readiness.failed {
                self.phase = Phase::Failed;
            } else if readiness.writable {
                self.phase = Phase::Connected;
            }
        }
        let source = self.stream(side);
        source.readable |= readiness.readable || readiness.ended || readiness.failed;
        source.ending |= readiness.ended;
        source.failed |= readiness.failed;
        self.stream(side.other()).writable |= readiness.writable;
    }

    /// What the read of [`Action::Fill`] came to.
    pub fn filled(&mut self, from: Side, filled: Filled) {
        let stream = self.stream(from);
        match filled {
            Filled::Bytes(bytes) => stream.held += bytes,
            Filled::Last(bytes) => {
                stream.held += bytes;
                stream.readable = stream.ending || stream.failed;
            }
            Filled::WouldBlock => stream.readable = false,
            Filled::End => stream.ended = true,
            Filled::Failed => self.phase = Phase::Broken,
        }
    }

    /// What the write of [`Action::Drain`] came to.
    pub fn drained(&mut self, from: Side, drained: Drained) {
        let stream = self.stream(from);
        match drained {
            Drained::Bytes(bytes) => stream.held = stream.held.saturating_sub(bytes),
            Drained::WouldBlock => stream.writable = false,
            Drained::Failed => self.phase = Phase::Broken,
        }
    }

    /// What has to be done next.
    pub fn poll_action(&mut self) -> Option<Action> {
        match self.phase {
            Phase::Connecting | Phase::Over => return None,
            Phase::Connected => {
                self.phase = Phase::Joined;
                return Some(Action::Join);
            }
            Phase::Failed => return self.last(Action::Fail),
            Phase::Broken => return self.last(Action::Reset),
            Phase::Joined => {}
        }
        for from in [self.turn, self.turn.other()] {
            let stream = self.stream(from);
            if stream.held > 0 {
                if stream.writable {
                    return Some(Action::Drain(from));
                }
            } else if stream.ended {
                if !stream.finished {
                    stream.finished = true;
                    return if self.has_finished(from.other()) {
                        self.last(Action::Close)
                    } else {
                        Some(Action::Finish(from.other()))
                    };
                }
            } else if stream.readable && stream.writable {
                self.turn = from.other();
                return Some(Action::Fill(from));
            }
        }
        // Nothing moves any more, and one side is lost.
        if self.from_accepted.failed || self.from_opened.failed {
            return self.last(Action::Reset);
        }
        None
    }

    /// Whether the opened side is not connected yet.
    pub fn is_connecting(&self) -> bool {
        self.phase == Phase::Connecting
    }

    /// Whether exactly one stream has ended.
    pub fn is_half_closed(&self) -> bool {
        self.from_accepted.finished != self.from_opened.finished
    }

    /// Whether the stream from a side has ended, and its end was passed on.
    pub fn has_finished(&self, from: Side) -> bool {
        match from {
            Side::Accepted => self.from_accepted.finished,
            Side::Opened => self.from_opened.finished,
        }
    }

    /// Bytes read from a side that are not yet written to the other.
    pub fn held(&self, from: Side) -> usize {
        match from {
            Side::Accepted => self.from_accepted.held,
            Side::Opened => self.from_opened.held,
        }
    }

    /// Whether bytes of a side wait for room at the other: what comes meanwhile is not read.
    pub fn is_blocked(&self, from: Side) -> bool {
        let stream = match from {
            Side::Accepted => &self.from_accepted,
            Side::Opened => &self.from_opened,
        };
        stream.held > 0 && !stream.writable
    }

    fn last(&mut self, action: Action) -> Option<Action> {
        self.phase = Phase::Over;
        Some(action)
    }

    fn stream(&mut self, from: Side) -> &mut Stream {
        match from {
            Side::Accepted => &mut self.from_accepted,
            Side::Opened => &mut self.from_opened,
        }
    }
}

impl Default for Relay {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Readiness = Readiness { readable: false, writable: true, ended: false, failed: false };
    const DATA: Readiness = Readiness { readable: true, writable: true, ended: false, failed: false };
    const DATA_AND_END: Readiness = Readiness { readable: true, writable: true, ended: true, failed: false };
    const LOST: Readiness = Readiness { readable: true, writable: true, ended: true, failed: true };

    fn joined() -> Relay {
        let mut relay = Relay::new();
        relay.handle_ready(Side::Opened, IDLE);
        assert_eq!(relay.poll_action(), Some(Action::Join));
        relay.handle_ready(Side::Accepted, IDLE);
        assert_eq!(relay.poll_action(), None);
        relay
    }

    #[test]
    fn nothing_is_read_before_the_opened_side_is_connected() {
        let mut relay = Relay::new();
        relay.handle_ready(Side::Accepted, DATA);
        assert_eq!(relay.poll_action(), None);
        assert!(relay.is_connecting());
        relay.handle_ready(Side::Opened, IDLE);
        assert_eq!(relay.poll_action(), Some(Action::Join));
        assert_eq!(relay.poll_action(), Some(Action::Fill(Side::Accepted)));
    }

    #[test]
    fn a_refusal_is_told_once() {
        let mut relay = Relay::new();
        relay.handle_ready(Side::Opened, LOST);
        assert_eq!(relay.poll_action(), Some(Action::Fail));
        assert_eq!(relay.poll_action(), None);
    }

    #[test]
    fn what_a_full_sink_left_is_held_and_nothing_more_is_read() {
        let mut relay = joined();
        relay.handle_ready(Side::Accepted, DATA);
        assert_eq!(relay.poll_action(), Some(Action::Fill(Side::Accepted)));
        relay.filled(Side::Accepted, Filled::Bytes(100));
        assert_eq!(relay.poll_action(), Some(Action::Drain(Side::Accepted)));
        relay.drained(Side::Accepted, Drained::Bytes(60));
        assert_eq!(relay.poll_action(), Some(Action::Drain(Side::Accepted)));
        relay.drained(Side::Accepted, Drained::WouldBlock);
        assert_eq!(relay.poll_action(), None, "back-pressure");
        assert!(relay.is_blocked(Side::Accepted) && !relay.is_blocked(Side::Opened));
        relay.handle_ready(Side::Opened, IDLE);
        assert_eq!(relay.poll_action(), Some(Action::Drain(Side::Accepted)));
        relay.drained(Side::Accepted, Drained::Bytes(40));
        assert!(!relay.is_blocked(Side::Accepted));
        assert_eq!(relay.poll_action(), Some(Action::Fill(Side::Accepted)));
        relay.filled(Side::Accepted, Filled::WouldBlock);
        assert_eq!(relay.poll_action(), None);
    }

    #[test]
    fn the_end_that_came_with_the_last_bytes_is_not_lost() {
        let mut relay = joined();
        relay.handle_ready(Side::Opened, DATA_AND_END);
        assert_eq!(relay.poll_action(), Some(Action::Fill(Side::Opened)));
        relay.filled(Side::Opened, Filled::Last(5));
        assert_eq!(relay.poll_action(), Some(Action::Drain(Side::Opened)));
        relay.drained(Side::Opened, Drained::Bytes(5));
        assert_eq!(relay.poll_action(), Some(Action::Fill(Side::Opened)), "the end is still to be read");
        relay.filled(Side::Opened, Filled::End);
        assert_eq!(relay.poll_action(), Some(Action::Finish(Side::Accepted)));
        assert_eq!(relay.poll_action(), None);
        assert!(relay.is_half_closed());
    }

    #[test]
    fn each_side_may_end_first_and_the_other_goes_on() {
        for first in [Side::Accepted, Side::Opened] {
            let mut relay = joined();
            relay.handle_ready(first, DATA_AND_END);
            assert_eq!(relay.poll_action(), Some(Action::Fill(first)));
            relay.filled(first, Filled::End);
            assert_eq!(relay.poll_action(), Some(Action::Finish(first.other())));
            relay.handle_ready(first.other(), DATA_AND_END);
            assert_eq!(relay.poll_action(), Some(Action::Fill(first.other())));
            relay.filled(first.other(), Filled::Last(3));
            assert_eq!(relay.poll_action(), Some(Action::Drain(first.other())));
            relay.drained(first.other(), Drained::Bytes(3));
            assert_eq!(relay.poll_action(), Some(Action::Fill(first.other())));
            relay.filled(first.other(), Filled::End);
            assert_eq!(relay.poll_action(), Some(Action::Close), "which tells the end");
            assert!(relay.has_finished(first) && relay.has_finished(first.other()));
            assert_eq!(relay.poll_action(), None);
        }
    }

    #[test]
    fn a_lost_side_resets_the_other_after_its_last_bytes() {
        let mut relay = joined();
        relay.handle_ready(Side::Opened, LOST);
        assert_eq!(relay.poll_action(), Some(Action::Fill(Side::Opened)));
        relay.filled(Side::Opened, Filled::Last(7));
        assert_eq!(relay.poll_action(), Some(Action::Drain(Side::Opened)));
        relay.drained(Side::Opened, Drained::Bytes(7));
        assert_eq!(relay.poll_action(), Some(Action::Fill(Side::Opened)));
        relay.filled(Side::Opened, Filled::Failed);
        assert_eq!(relay.poll_action(), Some(Action::Reset));
        assert_eq!(relay.poll_action(), None);
    }

    #[test]
    fn a_lost_side_does_not_wait_for_a_sink_that_takes_nothing() {
        let mut relay = joined();
        relay.handle_ready(Side::Accepted, DATA);
        assert_eq!(relay.poll_action(), Some(Action::Fill(Side::Accepted)));
        relay.filled(Side::Accepted, Filled::Bytes(10));
        assert_eq!(relay.poll_action(), Some(Action::Drain(Side::Accepted)));
        relay.drained(Side::Accepted, Drained::WouldBlock);
        assert_eq!(relay.poll_action(), None);
        relay.handle_ready(Side::Accepted, LOST);
        // The error is taken from the socket by reading the other way, or at once.
        let mut actions = std::iter::from_fn(|| {
            let action = relay.poll_action()?;
            if action == Action::Fill(Side::Opened) {
                relay.filled(Side::Opened, Filled::WouldBlock);
            }
            Some(action)
        });
        assert_eq!(actions.find(|action| *action == Action::Reset), Some(Action::Reset));
    }

    #[test]
    fn streams_take_turns() {
        let mut relay = joined();
        relay.handle_ready(Side::Accepted, DATA);
        relay.handle_ready(Side::Opened, DATA);
        let mut fills = Vec::new();
        for _ in 0..6 {
            match relay.poll_action() {
                Some(Action::Fill(side)) => {
                    fills.push(side);
                    relay.filled(side, Filled::Bytes(1));
                }
                Some(Action::Drain(side)) => relay.drained(side, Drained::Bytes(1)),
                other => panic!("{other:?}"),
            }
        }
        assert!(fills.contains(&Side::Accepted) && fills.contains(&Side::Opened), "{fills:?}");
    }
}
