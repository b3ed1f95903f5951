//! Back-pressure and half-close between the child's endpoint and the host's socket: a table, no I/O.
//!
//! # Theory of operation
//! | state | what happens |
//! |---|---|
//! | bytes from the child wait, the host takes some | [`Step::Write`] |
//! | the child finished and nothing waits | [`Step::Shutdown`], once |
//! | the host has bytes and there is room for them | [`Step::Read`] |
//! | the host finished and everything is acknowledged | [`Step::CloseToChild`], once (not earlier: smoltcp's LAST-ACK ignores window updates) |
//! | the child reset | [`Step::Abort`] |
//! | both directions are closed and acknowledged | [`Step::Finish`] |
//!
//! Nothing is read without room and nothing is written without readiness, so a stalled reader on either side
//! stops the other after one ring and no memory grows.

use super::endpoint::ChildSide;

/// What the relay has to know of the child's side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) child: ChildSide,
    /// Bytes of the child that wait for the host.
    pub(crate) recv_queue: usize,
    /// Bytes for the child that it has not acknowledged.
    pub(crate) send_queue: usize,
    /// Further bytes that the ring to the child takes now.
    pub(crate) room: usize,
}

/// The next thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Write,
    Shutdown,
    Read,
    CloseToChild,
    Abort,
    Finish,
}

/// The host's side of one connection.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Relay {
    readable: bool,
    writable: bool,
    finished: bool,
    shutdown: bool,
    closed_to_child: bool,
}

impl Relay {
    /// A relay whose host socket has just connected. Bytes of the host are announced by an event, even those that
    /// came with the connection.
    pub(crate) fn connected() -> Self {
        Relay { writable: true, ..Relay::default() }
    }

    /// The host socket has bytes or an end of file.
    pub(crate) fn handle_readable(&mut self) {
        self.readable = true;
    }

    /// The host socket takes bytes.
    pub(crate) fn handle_writable(&mut self) {
        self.writable = true;
    }

    /// Reading found nothing more.
    pub(crate) fn handle_read_blocked(&mut self) {
        self.readable = false;
    }

    /// Writing found no room.
    pub(crate) fn handle_write_blocked(&mut self) {
        self.writable = false;
    }

    /// Reading found the end of file.
    pub(crate) fn handle_eof(&mut self) {
        self.finished = true;
    }

    /// Whether everything of the child has been written, its FIN included.
    pub(crate) fn is_shut_down(&self) -> bool {
        self.shutdown
    }

    /// Whether exactly one direction is closed.
    pub(crate) fn is_half_closed(&self) -> bool {
        self.shutdown != self.finished
    }

    /// Whether both directions are closed as far as we can tell.
    pub(crate) fn is_closing(&self) -> bool {
        self.shutdown && self.finished
    }

    /// What to do next; each step changes the state so that it is not repeated without an event.
    pub(crate) fn next(&mut self, view: View) -> Option<Step> {
        match view.child {
            ChildSide::Gone => return Some(Step::Abort),
            ChildSide::Done if view.recv_queue == 0 && self.shutdown => return Some(Step::Finish),
            _ => {}
        }
        if view.recv_queue > 0 && self.writable {
            return Some(Step::Write);
        }
        if view.recv_queue == 0
            && !self.shutdown
            && matches!(view.child, ChildSide::Finished | ChildSide::Done)
        {
            self.shutdown = true;
            return Some(Step::Shutdown);
        }
        if self.finished && !self.closed_to_child && view.send_queue == 0 {
            self.closed_to_child = true;
            return Some(Step::CloseToChild);
        }
        if !self.finished && self.readable && view.room > 0 {
            return Some(Step::Read);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: View = View { child: ChildSide::Open, recv_queue: 0, send_queue: 0, room: 100 };

    #[test]
    fn nothing_is_written_to_a_host_that_takes_nothing() {
        let mut relay = Relay::connected();
        let view = View { recv_queue: 5, ..IDLE };
        assert_eq!(relay.next(view), Some(Step::Write));
        relay.handle_write_blocked();
        assert_eq!(relay.next(view), None);
        relay.handle_writable();
        assert_eq!(relay.next(view), Some(Step::Write));
    }

    #[test]
    fn nothing_is_read_without_room() {
        let mut relay = Relay::connected();
        relay.handle_readable();
        assert_eq!(relay.next(View { room: 0, ..IDLE }), None);
        assert_eq!(relay.next(IDLE), Some(Step::Read));
    }

    #[test]
    fn shutdown_follows_the_last_byte_of_a_finished_child_once() {
        let mut relay = Relay::connected();
        let finished = View { child: ChildSide::Finished, ..IDLE };
        assert_eq!(relay.next(View { recv_queue: 1, ..finished }), Some(Step::Write));
        assert_eq!(relay.next(finished), Some(Step::Shutdown));
        assert_eq!(relay.next(finished), None);
        assert!(relay.is_half_closed());
    }

    #[test]
    fn the_child_is_closed_only_when_it_has_acknowledged_everything() {
        let mut relay = Relay::connected();
        relay.handle_eof();
        assert_eq!(relay.next(View { send_queue: 1, ..IDLE }), None);
        assert_eq!(relay.next(IDLE), Some(Step::CloseToChild));
        assert_eq!(relay.next(IDLE), None);
    }

    #[test]
    fn both_directions_closed_is_the_end() {
        let mut relay = Relay::connected();
        relay.handle_eof();
        assert_eq!(relay.next(IDLE), Some(Step::CloseToChild));
        let done = View { child: ChildSide::Done, ..IDLE };
        assert_eq!(relay.next(done), Some(Step::Shutdown));
        assert_eq!(relay.next(done), Some(Step::Finish));
    }

    #[test]
    fn a_reset_child_aborts_whatever_is_queued() {
        let mut relay = Relay::connected();
        assert_eq!(relay.next(View { child: ChildSide::Gone, recv_queue: 9, ..IDLE }), Some(Step::Abort));
    }
}
