//! What the forwards did, counted.

use std::net::SocketAddr;

use crate::protocol::EgressAbility;

/// Counters since the driver began, of every forward together and of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ForwardStats {
    /// All of them, removed ones included.
    pub total: Counters,
    /// Each forward that exists, or still has connections, by id.
    pub forwards: Vec<(u64, Counters)>,
    /// Times that accepting paused because no file descriptor was left.
    pub out_of_descriptors: u64,
    /// Pipes in use at the moment.
    pub pipes: u64,
    /// The egress relay.
    pub egress: EgressStats,
}

/// What the egress relay did, and whether it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EgressStats {
    /// Whether it is possible for IPv4.
    pub ipv4: EgressAbility,
    /// The same for IPv6.
    pub ipv6: EgressAbility,
    /// Connections at the moment, those included whose handshake is under way.
    pub connections: u64,
    /// Connections that were joined so far.
    pub joined: u64,
    /// Offers that were given back.
    pub refused: u64,
    /// Connections that were reset by one of their ends.
    pub reset: u64,
    /// Connections that ended because nothing came for too long after one end had finished.
    pub timed_out: u64,
    /// Bytes from the child to the host.
    pub bytes_to_host: u64,
    /// Bytes from the host to the child.
    pub bytes_from_host: u64,
}

/// Counters of a forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// TCP connections at the moment.
    pub connections: u64,
    /// TCP connections so far, refused and failed ones included.
    pub connections_total: u64,
    /// Connections that nobody in the child took: their clients saw RST.
    pub refused: u64,
    /// Connections beyond a limit: their clients saw RST.
    pub limited: u64,
    /// Connections that were reset by one of their ends.
    pub reset: u64,
    /// Connections that ended because nothing came for too long after one end had finished.
    pub timed_out: u64,
    /// Connections handed to the engine on the TAP.
    pub by_tap: u64,
    /// UDP sessions at the moment.
    pub sessions: u64,
    /// UDP sessions so far.
    pub sessions_total: u64,
    /// Bytes of TCP and UDP from clients to servers.
    pub bytes_to_server: u64,
    /// Bytes of TCP and UDP from servers to clients.
    pub bytes_to_client: u64,
    /// Datagrams from clients to servers.
    pub datagrams_to_server: u64,
    /// Datagrams from servers to clients.
    pub datagrams_to_client: u64,
    /// Datagrams that could not be sent on.
    pub datagrams_dropped: u64,
    /// ICMP errors that the child answered datagrams with.
    pub datagrams_refused: u64,
}

impl Counters {
    pub(super) fn add(&mut self, other: &Counters) {
        let Counters {
            connections,
            connections_total,
            refused,
            limited,
            reset,
            timed_out,
            by_tap,
            sessions,
            sessions_total,
            bytes_to_server,
            bytes_to_client,
            datagrams_to_server,
            datagrams_to_client,
            datagrams_dropped,
            datagrams_refused,
        } = other;
        self.connections += connections;
        self.connections_total += connections_total;
        self.refused += refused;
        self.limited += limited;
        self.reset += reset;
        self.timed_out += timed_out;
        self.by_tap += by_tap;
        self.sessions += sessions;
        self.sessions_total += sessions_total;
        self.bytes_to_server += bytes_to_server;
        self.bytes_to_client += bytes_to_client;
        self.datagrams_to_server += datagrams_to_server;
        self.datagrams_to_client += datagrams_to_client;
        self.datagrams_dropped += datagrams_dropped;
        self.datagrams_refused += datagrams_refused;
    }
}

/// A TCP connection that the relay carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Connection {
    /// The forward it came by, [`Connection::EGRESS`] if it began in the child by itself.
    pub forward: u64,
    /// The name under which it was offered, if it began in the child.
    pub egress: Option<u64>,
    /// Who connected.
    pub client: SocketAddr,
    /// Where it was connected to.
    pub server: SocketAddr,
    /// Bytes from client to server.
    pub bytes_to_server: u64,
    /// Bytes from server to client.
    pub bytes_to_client: u64,
    /// How long it has been there, in seconds.
    pub age: u32,
    /// How long nothing has come, in seconds; looked at when something does, so up to the pace of that too long.
    pub idle: u32,
}

impl Connection {
    /// No forward: a connection of the egress relay.
    pub const EGRESS: u64 = u64::MAX;
}
