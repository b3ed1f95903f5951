//! Two joined sockets and what is between them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::gather::{BULK, Gather, LOW_WATER, Looked, Verdict};
use super::placing::{Seen, Sender};
use super::polling::MESSAGE;
use super::stats::Connection;
use super::target::Target;
use crate::relay::{Action, Drained, Filled, Readiness, Relay, Side};
use crate::sys::splice::{Pipe, PipePool};
use crate::sys::{processor, socket};

/// One connection of a forward.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) accepted: OwnedFd,
    /// Absent while a socket is waited for.
    pub(super) opened: Option<OwnedFd>,
    pub(super) relay: Relay,
    from_accepted: Carrier,
    from_opened: Carrier,
    /// Sources that are not to tell of bytes before there is room for them.
    muted: Vec<Side>,
    pub(super) origin: Origin,
    pub(super) client: SocketAddr,
    pub(super) to: SocketAddr,
    /// Which way was tried first, and how many were tried since.
    pub(super) first: u8,
    pub(super) attempt: u8,
    /// The client's port cannot be had in the child.
    pub(super) port_taken: bool,
    /// The relay has led astray.
    pub(super) only_tap: bool,
    /// The way follows the child's rules ([`Reach::Tracked`](crate::protocol::Reach::Tracked)).
    pub(super) tracked: bool,
    /// Urgent data has come by one of the streams: reads stop before it, as if there were nothing more.
    pub(super) urgent: bool,
    /// Waits in the queue of pairs that have more to do.
    pub(super) queued: bool,
    /// Tells this pair from others that had its slot.
    pub(super) generation: u32,
    /// Seconds of the driver's clock.
    pub(super) since: u32,
    pub(super) active: u32,
    pub(super) to_opened: u64,
    pub(super) to_accepted: u64,
    /// When the opened socket was last told to say something.
    pub(super) recalled: Option<u32>,
}

/// What the connection came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A listener on the host.
    Host { forward: u64, target: Target },
    /// A listener in the child.
    Child { forward: u64, to: SocketAddr },
    /// The child's SYN: `accepted` is the host's socket, `opened` the one in the child.
    Egress { id: u64 },
}

impl Origin {
    pub(super) fn forward(&self) -> u64 {
        match *self {
            Origin::Host { forward, .. } | Origin::Child { forward, .. } => forward,
            Origin::Egress { .. } => Connection::EGRESS,
        }
    }
}

/// How the bytes of one stream get across.
#[derive(Debug, Default)]
enum Carrier {
    /// By the driver's buffer, which holds nothing between two events.
    #[default]
    Copy,
    /// What the sink did not take of the buffer, from this byte on.
    Rest(Box<[u8]>, usize),
    /// By a pipe.
    Splice(Pipe, Gather),
}

/// What moves bytes; lent to one pair at a time.
#[derive(Debug)]
pub(super) struct Mover {
    /// Bytes since somebody took the count.
    pub(super) moved: usize,
    /// Reads of no more than a message since somebody took the count.
    pub(super) messages: u32,
    pub(super) buffer: Box<[u8]>,
    pub(super) pipes: PipePool,
    /// Streams of the pair that have begun to gather.
    pub(super) gathering: Vec<Side>,
}

/// Bytes of the shared buffer.
const BUFFER: usize = 64 << 10;
/// Bytes of a pair's turn: others are not to wait for all that a stream in bulk has gathered.
const TURN: usize = 256 << 10;

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing more to do before the next event.
    Idle,
    /// There is more to do; others first.
    More,
    /// Something that the driver has to do.
    Ask(Action),
}

impl Mover {
    pub(super) fn new(pipes: usize) -> Self {
        Mover {
            moved: 0,
            messages: 0,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            pipes: PipePool::new(pipes),
            gathering: Vec::new(),
        }
    }
}

impl Pair {
    pub(super) fn new(
        accepted: OwnedFd,
        client: SocketAddr,
        origin: Origin,
        generation: u32,
        now: u32,
    ) -> Self {
        Pair {
            accepted,
            opened: None,
            relay: Relay::new(),
            from_accepted: Carrier::Copy,
            from_opened: Carrier::Copy,
            muted: Vec::new(),
            origin,
            client,
            to: client,
            first: 0,
            attempt: 0,
            port_taken: false,
            only_tap: false,
            tracked: false,
            urgent: false,
            queued: false,
            generation,
            since: now,
            active: now,
            to_opened: 0,
            to_accepted: 0,
            recalled: None,
        }
    }

    /// Does what the relay wants, as far as it goes and for at most one turn.
    pub(super) fn advance(&mut self, mover: &mut Mover) -> Turn {
        let mut moved = 0;
        while moved < TURN {
            match self.relay.poll_action() {
                None => return Turn::Idle,
                Some(Action::Fill(from)) => {
                    let count = self.fill(from, mover);
                    mover.moved += count;
                    moved += count;
                }
                Some(Action::Drain(from)) => moved += self.drain(from, mover),
                Some(Action::Finish(side)) => {
                    if let Some(fd) = self.socket(side) {
                        socket::shutdown_write(fd);
                    }
                }
                Some(action @ (Action::Join | Action::Fail | Action::Reset | Action::Close)) => {
                    return Turn::Ask(action);
                }
            }
        }
        Turn::More
    }

    pub(super) fn socket(&self, side: Side) -> Option<BorrowedFd<'_>> {
        match side {
            Side::Accepted => Some(self.accepted.as_fd()),
            Side::Opened => self.opened.as_ref().map(AsFd::as_fd),
        }
    }

    /// Both, or what there is.
    pub(super) fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [Side::Accepted, Side::Opened].into_iter().filter_map(|side| self.socket(side))
    }

    /// Has the socket in the child look for its peer after so many seconds of silence.
    pub(super) fn set_keepalive(&self, seconds: i32) {
        if let Some(opened) = &self.opened {
            // A socket that has ended looks for nobody.
            let _ = socket::set_keepalive_idle(opened.as_fd(), seconds);
        }
    }

    /// Whether a source that has just told of bytes is to be silent: each segment that came while the sink is full would wake us for
    /// nothing, at the expense of the sender's processor.
    pub(super) fn mutes(&mut self, from: Side) -> bool {
        let mutes = self.relay.is_blocked(from) && !self.muted.contains(&from);
        if mutes {
            self.muted.push(from);
        }
        mutes
    }

    /// A muted source for whose bytes there is room again.
    pub(super) fn unmuted(&mut self) -> Option<Side> {
        let position = self.muted.iter().position(|&from| !self.relay.is_blocked(from))?;
        Some(self.muted.swap_remove(position))
    }

    /// Gives pipes back that hold nothing.
    pub(super) fn give_pipes(&mut self, pool: &mut PipePool) {
        let Pair { accepted, opened: Some(opened), from_accepted, from_opened, .. } = self else { return };
        for (carrier, source) in [(from_accepted, accepted), (from_opened, opened)] {
            if matches!(carrier, Carrier::Splice(pipe, _) if pipe.held() == 0) {
                carrier.give_pipe(source.as_fd(), pool);
            }
        }
    }

    /// Gives all pipes back, at the end.
    pub(super) fn close_pipes(&mut self, pool: &mut PipePool) {
        for carrier in [&mut self.from_accepted, &mut self.from_opened] {
            if let Carrier::Splice(pipe, _) = std::mem::take(carrier) {
                pool.give(pipe);
            }
        }
    }

    /// Looks at a stream that gathers, a while after the last look: what has come since, however little, is to go on. What is known of
    /// its sender goes to `seen`.
    pub(super) fn look(&mut self, from: Side, seen: &mut Vec<Seen>) -> Looked {
        let Pair { accepted, opened: Some(opened), relay, from_accepted, from_opened, .. } = self else {
            return Looked::Over;
        };
        let (carrier, source) = match from {
            Side::Accepted => (from_accepted, accepted),
            Side::Opened => (from_opened, opened),
        };
        let Carrier::Splice(_, gather) = carrier else { return Looked::Over };
        seen.extend(gather.sender.as_mut().and_then(Sender::take));
        let looked = gather.look();
        match looked {
            Looked::Over => socket::set_receive_low_water(source.as_fd(), 1),
            Looked::Flows => {}
            Looked::Waits => {
                relay.handle_ready(from, Readiness { readable: true, ..Readiness::default() });
            }
        }
        looked
    }

    fn fill(&mut self, from: Side, mover: &mut Mover) -> usize {
        let Pair { accepted, opened, relay, from_accepted, from_opened, urgent, .. } = self;
        let Some(opened) = opened else { return 0 };
        let (source, sink, carrier, total) = match from {
            Side::Accepted => (accepted.as_fd(), opened.as_fd(), from_accepted, &mut self.to_opened),
            Side::Opened => (opened.as_fd(), accepted.as_fd(), from_opened, &mut self.to_accepted),
        };
        if let Carrier::Splice(pipe, gather) = carrier
            && !*urgent
            && let filled = read_outcome(pipe.fill(source), usize::MAX)
            && filled != Filled::End
        {
            let count = if let Filled::Bytes(count) = filled { count } else { 0 };
            if count > 0
                && let Some(sender) = &mut gather.sender
                && let (Some(processor), Some(here)) = (processor::incoming(source), processor::current())
            {
                sender.handle_read(count as u64, processor, here);
            }
            match gather.handle_read(count) {
                Verdict::Go => {}
                Verdict::Gather => {
                    socket::set_receive_low_water(source, LOW_WATER);
                    gather.sender = processor::is_local(source).then(Sender::default);
                    mover.gathering.push(from);
                }
                Verdict::Copy if pipe.held() == 0 => carrier.give_pipe(source, &mut mover.pipes),
                Verdict::Copy => {}
            }
            relay.filled(from, filled);
            return count;
        }
        // splice(2) never gets past an urgent byte, and calls it the end of the stream if that has come; recv(2) does.
        if let Carrier::Splice(..) = carrier {
            carrier.give_pipe(source, &mut mover.pipes);
        }
        let full = if *urgent { 1 } else { mover.buffer.len() };
        let filled = read_outcome(socket::recv(source, &mut mover.buffer), full);
        relay.filled(from, filled);
        let (Filled::Bytes(count) | Filled::Last(count)) = filled else { return 0 };
        mover.messages = mover.messages.saturating_add(u32::from(count <= MESSAGE));
        let bytes = mover.buffer.get(..count).unwrap_or_default();
        let drained = write_outcome(socket::send(sink, bytes));
        relay.drained(from, drained);
        let sent = if let Drained::Bytes(sent) = drained { sent } else { 0 };
        *total += sent as u64;
        if sent < count {
            if drained != Drained::Failed {
                *carrier = Carrier::Rest(bytes.get(sent..).unwrap_or_default().into(), 0);
            }
        } else if count >= BULK
            && !*urgent
            && let Some(pipe) = mover.pipes.take()
        {
            *carrier = Carrier::Splice(pipe, Gather::default());
        }
        count
    }

    fn drain(&mut self, from: Side, mover: &mut Mover) -> usize {
        let Pair { accepted, opened, relay, from_accepted, from_opened, .. } = self;
        let Some(opened) = opened else { return 0 };
        let (source, sink, carrier, total) = match from {
            Side::Accepted => (accepted.as_fd(), opened.as_fd(), from_accepted, &mut self.to_opened),
            Side::Opened => (opened.as_fd(), accepted.as_fd(), from_opened, &mut self.to_accepted),
        };
        let drained = match carrier {
            Carrier::Copy => Drained::Bytes(0),
            Carrier::Rest(bytes, start) => {
                let drained = write_outcome(socket::send(sink, bytes.get(*start..).unwrap_or_default()));
                if let Drained::Bytes(sent) = drained {
                    *start += sent;
                    if *start >= bytes.len() {
                        // A sink that is slower than its source is bulk.
                        *carrier = match mover.pipes.take() {
                            Some(pipe) => Carrier::Splice(pipe, Gather::default()),
                            None => Carrier::Copy,
                        };
                    }
                }
                drained
            }
            Carrier::Splice(pipe, gather) => {
                let drained = write_outcome(pipe.drain(sink));
                if gather.is_small() && pipe.held() == 0 {
                    carrier.give_pipe(source, &mut mover.pipes);
                }
                drained
            }
        };
        relay.drained(from, drained);
        let sent = if let Drained::Bytes(sent) = drained { sent } else { 0 };
        *total += sent as u64;
        sent
    }
}

impl Carrier {
    fn give_pipe(&mut self, source: BorrowedFd<'_>, pool: &mut PipePool) {
        if let Carrier::Splice(pipe, gather) = std::mem::take(self) {
            if gather.is_on() {
                socket::set_receive_low_water(source, 1);
            }
            pool.give(pipe);
        }
    }
}

/// `full`: a read of fewer bytes found the socket empty.
fn read_outcome(result: io::Result<usize>, full: usize) -> Filled {
    match result {
        Ok(0) => Filled::End,
        Ok(count) if full == usize::MAX || count >= full => Filled::Bytes(count),
        Ok(count) => Filled::Last(count),
        Err(error) if is_would_block(&error) => Filled::WouldBlock,
        // Not a word about the socket: again.
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Filled::Bytes(0),
        Err(_) => Filled::Failed,
    }
}

fn write_outcome(result: io::Result<usize>) -> Drained {
    match result {
        Ok(count) => Drained::Bytes(count),
        Err(error) if is_would_block(&error) => Drained::WouldBlock,
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Drained::Bytes(0),
        Err(_) => Drained::Failed,
    }
}

fn is_would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Readiness = Readiness { readable: false, writable: true, ended: false, failed: false };
    const BYTES: Readiness = Readiness { readable: true, ..ROOM };

    #[test]
    fn a_source_whose_bytes_wait_is_muted_once_until_there_is_room() {
        let client = SocketAddr::from(([127, 0, 0, 1], 1));
        let origin = Origin::Egress { id: 0 };
        let nothing = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let mut pair = Pair::new(nothing, client, origin, 0, 0);
        pair.relay.handle_ready(Side::Opened, ROOM);
        assert_eq!(pair.relay.poll_action(), Some(Action::Join));
        pair.relay.handle_ready(Side::Accepted, BYTES);
        assert!(!pair.mutes(Side::Accepted), "nothing waits yet");
        assert_eq!(pair.relay.poll_action(), Some(Action::Fill(Side::Accepted)));
        pair.relay.filled(Side::Accepted, Filled::Bytes(1));
        assert_eq!(pair.relay.poll_action(), Some(Action::Drain(Side::Accepted)));
        pair.relay.drained(Side::Accepted, Drained::WouldBlock);

        assert!(!pair.mutes(Side::Opened), "the other stream flows");
        assert!(pair.mutes(Side::Accepted));
        assert!(!pair.mutes(Side::Accepted), "it is silent already");
        assert_eq!(pair.unmuted(), None);

        pair.relay.handle_ready(Side::Opened, ROOM);
        assert_eq!(pair.unmuted(), Some(Side::Accepted));
        assert_eq!(pair.unmuted(), None);
    }
}
