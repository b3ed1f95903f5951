//! The complete vocabulary between the pure [`Stack`](crate::stack::Stack) and whoever owns the sockets.
//!
//! Read this file second. [`Action`]s come out of [`Stack::poll_action`](crate::stack::Stack::poll_action)
//! and are performed by the driver; [`HostEvent`]s are what it observed.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use crate::flow::FlowId;
use crate::frame::Gso;

/// Where the bytes of an outgoing datagram are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// In the frame that was handed in as `slot`; valid until that buffer is reused.
    InFrame {
        /// [`Frame::slot`](crate::frame::Frame::slot).
        slot: u32,
        /// Byte range in the frame.
        range: Range<u32>,
    },
    /// In memory of their own (reassembled or rewritten).
    Owned(Vec<u8>),
}

/// How an IP packet of the child wants to travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// TTL or hop limit to send with (already decremented by us).
    pub ttl: u8,
    /// IPv4 "don't fragment"; IPv6 packets always have it.
    pub dont_fragment: bool,
}

/// Kind of datagram socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatagramKind {
    /// Unconnected UDP socket: a NAT binding.
    Udp,
    /// UDP socket connected to one server: one DNS query.
    UdpConnected(SocketAddr),
    /// Ping socket (`SOCK_DGRAM`, `IPPROTO_ICMP` or `IPPROTO_ICMPV6`).
    Ping,
}

/// What the driver has to do. Actions of one flow are ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Start a TCP connection; answer with [`HostEvent::Connected`] or [`HostEvent::ConnectFailed`].
    Connect {
        /// The flow.
        flow: FlowId,
        /// Destination on the host's side.
        remote: SocketAddr,
    },
    /// Bytes wait for the host socket: call [`Stack::with_host_tx`](crate::stack::Stack::with_host_tx).
    HostWrite {
        /// The flow.
        flow: FlowId,
    },
    /// There is room for bytes of the host socket: call
    /// [`Stack::with_host_rx`](crate::stack::Stack::with_host_rx).
    HostRead {
        /// The flow.
        flow: FlowId,
    },
    /// Offer the flow's host socket, which is connected, to the relay; answer with
    /// [`Stack::relay_joined`](crate::stack::Stack::relay_joined) or
    /// [`Stack::relay_refused`](crate::stack::Stack::relay_refused).
    OfferRelay {
        /// The flow.
        flow: FlowId,
        /// The child's end.
        child: SocketAddr,
        /// The other end as the child named it.
        destination: SocketAddr,
    },
    /// The child does not want an offered flow any more, or nobody has answered for it: the relay resets what it has.
    /// The flow is gone.
    WithdrawRelay {
        /// The flow.
        flow: FlowId,
    },
    /// Frames of a relayed flow come here instead of to the relay: its socket is to speak, which leads them back. Told once a
    /// second at most.
    RecallRelay {
        /// The flow.
        flow: FlowId,
    },
    /// The child has finished sending: `shutdown(SHUT_WR)`.
    ShutdownWrite {
        /// The flow.
        flow: FlowId,
    },
    /// Close the host socket; `abort` asks for RST instead of FIN. The flow is gone afterwards.
    Close {
        /// The flow.
        flow: FlowId,
        /// RST instead of FIN.
        abort: bool,
    },
    /// Open a datagram socket for `flow`.
    OpenDatagram {
        /// The flow.
        flow: FlowId,
        /// Which kind.
        kind: DatagramKind,
        /// Whether the socket is IPv6.
        ipv6: bool,
    },
    /// Send a datagram, or with `gso` several, from the flow's datagram socket.
    SendDatagram {
        /// The flow.
        flow: FlowId,
        /// Destination on the host's side; for ping sockets the port is 0.
        remote: SocketAddr,
        /// UDP payload, or for ping sockets the ICMP message.
        payload: Payload,
        /// How it is to be cut: by size ([`Gso::Udp`]) or as a tunnel's super-segment ([`Gso::Tunnel`], whose offsets
        /// count from the start of the frame).
        gso: Gso,
        /// TTL and fragmentation.
        hop: Hop,
        /// Source address on the host's side, where it is not the kernel's to choose.
        local: Option<IpAddr>,
    },
}

/// Why the host could not connect (or lost a connection).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectError {
    /// ECONNREFUSED: the peer sent a RST.
    Refused,
    /// EHOSTUNREACH.
    HostUnreachable,
    /// ENETUNREACH, or no address of that family.
    NetUnreachable,
    /// ETIMEDOUT.
    TimedOut,
    /// EACCES or EPERM: a firewall of the host forbids it.
    Forbidden,
    /// EMFILE, ENFILE, ENOBUFS, ENOMEM, EADDRNOTAVAIL.
    Resources,
    /// The address or interface that the socket was to be bound to is not there.
    NoOutbound,
}

/// An ICMP error the host received for a datagram (`IP_RECVERR`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramError {
    /// Who reported it; `None` where the host's own kernel did.
    pub offender: Option<IpAddr>,
    /// What it says.
    pub kind: DatagramErrorKind,
}

/// Kinds of errors on datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DatagramErrorKind {
    /// Nothing listens there.
    PortUnreachable,
    /// No such host.
    HostUnreachable,
    /// No route.
    NetUnreachable,
    /// A filter on the way, or the host's own.
    Prohibited,
    /// Longer than the path takes; the MTU of the path in bytes.
    TooBig(u32),
    /// TTL or hop limit ran out on the way.
    TimeExceeded,
    /// Any other ICMP error, type and code as received.
    Other(u8, u8),
}

/// What happened on the host's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostEvent {
    /// The TCP connection stands.
    Connected,
    /// It does not.
    ConnectFailed(ConnectError),
    /// The host socket has bytes, or an end of file.
    Readable,
    /// The host socket takes bytes again.
    Writable,
    /// The host socket was reset or failed.
    Reset,
    /// A datagram socket could not be opened.
    OpenFailed(OpenError),
}

/// Why a datagram socket could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpenError {
    /// `net.ipv4.ping_group_range` forbids ping sockets.
    PingForbidden,
    /// The host has no such address family, or connecting it found no route.
    Unreachable,
    /// EMFILE, ENFILE, ENOBUFS, ENOMEM.
    Resources,
    /// The address or interface that the socket was to be bound to is not there.
    NoOutbound,
}
