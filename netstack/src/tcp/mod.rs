//! TCP: the child's connection and the host's stream stitched together (RFC 9293).
//!
//! # Theory of operation
//! Goal: each end sees what it would see if it had connected to the other itself: refusals, unreachable hosts,
//! half-close, resets, back-pressure. Not handled: urgent data (the bytes stay in the stream), TCP Fast Open (data in a SYN
//! is ignored and repeated by the child), ECN, options beyond MSS, window scale and SACK.
//!
//! | phase | entered by | left by |
//! |---|---|---|
//! | [`Phase::Connecting`] | a SYN of the child: the SYN-ACK is withheld, the host connects | the host's answer |
//! | | a connection of the host: a SYN goes to the child, nothing is read from the host | the child's answer |
//! | [`Phase::Offered`] | the host connected, and a relay may carry the flow | the relay's answer |
//! | [`Phase::Open`] | connected (the SYN-ACK goes out) | both directions closed, or a reset |
//! | [`Phase::Resetting`] | refused, or the host's side was reset | the RST is sent |
//! | [`Phase::Finishing`] | both directions are closed | the last ACK is sent |
//!
//! Timers, one wheel entry per flow: smoltcp's own (delayed ACK, retransmission, zero-window probe, keepalive);
//! idle memory (`TRIM_AFTER`); `timeouts.tcp_connect`, `timeouts.tcp_half_closed` and `timeouts.tcp_closing`.
//!
//! Data from the child: frame → ring (one copy, by smoltcp) → `write` by the driver. Data to the child: `read` by
//! the driver into the ring → frame in the driver's buffer (one copy, by smoltcp) → TAP.

pub(crate) mod endpoint;
pub(crate) mod relay;
pub(crate) mod rings;
pub(crate) mod window;

use std::net::SocketAddr;

use self::endpoint::{ChildSide, Endpoint};
use self::relay::{Relay, View};
use self::window::SendWindow;
use crate::config::Timeouts;
use crate::dns::tcp::LengthPrefix;
use crate::flow::OpenedBy;
use crate::time::{Duration, Instant};

pub(crate) use self::rings::Memory;

/// Silence after which a flow's empty rings give their pages back.
pub(crate) const TRIM_AFTER: Duration = Duration::from_secs(1);

/// Silence after which a DNS connection is closed (RFC 7766 section 6.2.3 asks for seconds).
const DNS_IDLE: Duration = Duration::from_secs(30);

/// Where a flow is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// One end has asked, the other has not answered: the host's connect is under way, or the child's SYN-ACK is
    /// awaited.
    Connecting,
    /// The host has connected and a relay was offered the flow; the child waits.
    Offered,
    /// Both sides are connected, at least in one direction.
    Open,
    /// A RST is on its way to the child.
    Resetting,
    /// The last ACK is on its way to the child.
    Finishing,
}

/// Who is at the other end.
#[derive(Debug)]
pub(crate) enum Peer {
    /// A host socket, connected to this address; of a flow opened by the host, to a client that appears as it.
    Host(SocketAddr),
    /// The engine's own DNS service.
    Dns(Box<DnsStream>),
}

/// A child's TCP connection to the DNS address (RFC 7766).
#[derive(Debug, Default)]
pub(crate) struct DnsStream {
    pub(crate) decoder: LengthPrefix,
    /// Framed answers that wait for room in the ring.
    pub(crate) answers: Vec<u8>,
    /// Queries that are not answered yet.
    pub(crate) pending: usize,
}

impl DnsStream {
    /// Queries of one connection that are under way at a time; further ones wait in its ring.
    pub(crate) const MAX_PENDING: usize = 64;
}

/// One TCP flow.
#[derive(Debug)]
pub(crate) struct TcpFlow {
    pub(crate) endpoint: Endpoint,
    pub(crate) phase: Phase,
    pub(crate) opened_by: OpenedBy,
    pub(crate) peer: Peer,
    pub(crate) relay: Relay,
    pub(crate) window: SendWindow,
    /// Sequence number of the child's SYN, for quoting it in ICMP errors.
    pub(crate) syn: u32,
    /// The child's SYN offered Multipath TCP.
    pub(crate) multipath: bool,
    pub(crate) last_active: Instant,
    /// Whether ring pages may have been touched since they were last given back.
    pub(crate) touched: bool,
    pub(crate) bytes_from_child: u64,
    pub(crate) bytes_to_child: u64,
}

impl TcpFlow {
    /// Patience with a relay that a flow was offered to. Its own is less: it answers as long as it lives.
    pub(crate) const RELAY_ANSWER: Duration = Duration::from_secs(5);

    pub(crate) fn new(now: Instant, endpoint: Endpoint, peer: Peer, syn: u32) -> Self {
        let window = SendWindow::new(endpoint.ring_size().to_child);
        TcpFlow {
            endpoint,
            phase: Phase::Connecting,
            opened_by: OpenedBy::Child,
            peer,
            relay: Relay::default(),
            window,
            syn,
            multipath: false,
            last_active: now,
            touched: false,
            bytes_from_child: 0,
            bytes_to_child: 0,
        }
    }

    /// A flow whose SYN goes to the child, for a host socket that is connected already to a client known as
    /// `source`.
    pub(crate) fn opened_by_host(now: Instant, endpoint: Endpoint, source: SocketAddr) -> Self {
        TcpFlow {
            opened_by: OpenedBy::Host,
            relay: Relay::connected(),
            ..TcpFlow::new(now, endpoint, Peer::Host(source), 0)
        }
    }

    /// Whether the child's answer is awaited.
    pub(crate) fn awaits_child(&self) -> bool {
        self.phase == Phase::Connecting && self.opened_by == OpenedBy::Host
    }

    /// Whether one end has not heard of the other yet.
    pub(crate) fn is_half_open(&self) -> bool {
        matches!(self.phase, Phase::Connecting | Phase::Offered)
    }

    /// What the relay decides on.
    pub(crate) fn view(&self) -> View {
        let queued = self.endpoint.send_queue();
        View {
            child: self.endpoint.child_side(),
            recv_queue: self.endpoint.recv_queue(),
            send_queue: queued,
            room: if self.endpoint.may_send() { self.window.room(queued) } else { 0 },
        }
    }

    /// Whether bytes of the child, or the end of them, are still to come or to be written.
    pub(crate) fn has_undelivered(&self) -> bool {
        self.phase == Phase::Open && matches!(self.peer, Peer::Host(_)) && !self.relay.is_shut_down()
    }

    /// The earliest instant at which the flow itself has something to do, beside smoltcp's timers.
    pub(crate) fn deadline(&self, timeouts: &Timeouts) -> Option<Instant> {
        let trim = self.touched.then_some(self.last_active + TRIM_AFTER);
        let ending = self.silence_allowed(timeouts).map(|allowed| self.last_active + allowed);
        [trim, ending].into_iter().flatten().min()
    }

    /// Whether the flow has been silent for longer than its state allows.
    pub(crate) fn is_overdue(&self, now: Instant, timeouts: &Timeouts) -> bool {
        self.silence_allowed(timeouts).is_some_and(|allowed| now >= self.last_active + allowed)
    }

    fn silence_allowed(&self, timeouts: &Timeouts) -> Option<Duration> {
        let child_finished = self.endpoint.child_side() == ChildSide::Finished;
        match self.phase {
            Phase::Connecting if self.opened_by == OpenedBy::Host => Some(timeouts.tcp_connect),
            Phase::Connecting => None,
            Phase::Offered => Some(Self::RELAY_ANSWER),
            Phase::Open if matches!(self.peer, Peer::Dns(_)) => Some(DNS_IDLE),
            _ if self.relay.is_closing() => Some(timeouts.tcp_closing),
            _ if self.relay.is_half_closed() || child_finished => Some(timeouts.tcp_half_closed),
            Phase::Open if self.endpoint.is_established() => None,
            _ => Some(timeouts.tcp_closing),
        }
    }
}
