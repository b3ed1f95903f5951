//! Operation sequences against a reference NAT: what any mixture of frames, host events and time must not break.
//!
//! [`run`] reads operations from bytes, so that proptest and fuzzers share it. The reference knows three things: who
//! may talk to whom (a datagram leaves only where the child sent it, and arrives only if the child has sent to that
//! address before, or by the port it is published at), that every byte of a stream arrives once and in order, and that
//! everything comes to rest.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::child::ChildTcp;
use super::frames::{self, CHILD, CHILD6, WORLD, WORLD6};
use super::host::{ConnectPlan, RelayPlan};
use super::link::{Link, LinkConfig, Random};
use super::{ALL_OFFLOADS, Harness, NO_OFFLOADS, config};
use crate::action::{ConnectError, DatagramError, DatagramErrorKind, HostEvent};
use crate::config::{Limits, OverlayConfig};
use crate::error::DropReason;
use crate::flow::FlowId;
use crate::forward::{ForwardId, ForwardSource, UdpForward};
use crate::frame::{Checksum, Gso, Offload, TunnelGso};
use crate::offload::Transport;
use crate::stack::{FlowInfo, RelayEnd, Relaying};
use crate::time::Duration;

/// Steps between two operations after which the stack is taken for livelocked.
const STEPS: usize = 20_000;
/// Connections of one run.
const CONNECTIONS: usize = 24;
/// UDP sessions of published ports.
const SESSIONS: usize = 3;
/// Some tunnel's super-segment.
const TUNNEL: TunnelGso = TunnelGso {
    payload: 42,
    inner_l3: 64,
    inner_l4: 84,
    header_len: 116,
    transport: Transport::Tcp,
    size: 100,
};
/// Room for one connection's bytes at either end.
const CHILD_RING: usize = 16 << 10;

/// A connection as it should be.
struct Connection {
    socket: ChildTcp,
    /// The host's end, from the moment it was asked to connect.
    flow: Option<FlowId>,
    remote: SocketAddr,
    to_host: Vec<u8>,
    to_child: Vec<u8>,
    got: usize,
    child_finished: bool,
    host_finished: bool,
    /// Somebody has reset it, or garbage may have: nothing more is promised.
    broken: bool,
}

impl Connection {
    /// The child closes; before the handshake that is giving up. (A server cannot: it does not know yet.)
    fn close(&mut self, harness: &mut Harness) {
        use smoltcp::socket::tcp::State;
        self.broken |=
            matches!(harness.child.state(self.socket), State::SynSent | State::SynReceived | State::Listen);
        harness.child.close(self.socket);
    }
}

struct Model {
    harness: Harness,
    connections: Vec<Connection>,
    /// Addresses that each port of the child has sent to.
    sent_to: BTreeMap<SocketAddr, BTreeSet<IpAddr>>,
    /// Published UDP ports of the child, IPv4 and IPv6, in runs that have some.
    published: Option<[ForwardId; 2]>,
    /// Whom the child has sent to by the overlay, in runs that have one.
    overlay: Option<BTreeSet<IpAddr>>,
    random: Random,
}

/// Runs the operations that `bytes` spell.
///
/// # Panics
/// Where the stack does what the reference forbids.
pub fn run(bytes: &[u8]) {
    let mut bytes = bytes.iter().copied();
    let setup = bytes.next().unwrap_or(0);
    let limits = Limits { udp_bindings: 8, udp_sessions: SESSIONS, icmp_bindings: 4, ..Limits::default() };
    let capabilities = if setup & 1 == 0 { ALL_OFFLOADS } else { NO_OFFLOADS };
    let overlay =
        (setup & 0x40 != 0).then(|| OverlayConfig { port: OverlayConfig::FLANNEL, peers: Vec::new() });
    let mut harness = Harness::new(config().limits(limits).overlay(overlay.clone()), capabilities);
    harness.host.record = false;
    harness.child.set_rings(CHILD_RING);
    harness.link = Link::new(LinkConfig {
        delay: Duration::from_micros(u64::from(setup >> 4) * 100),
        jitter: Duration::from_micros(if setup & 2 == 0 { 0 } else { 500 }),
        loss_per_mille: if setup & 4 == 0 { 0 } else { 50 },
        seed: u64::from(setup),
    });
    let published = (setup & 8 != 0).then(|| {
        [0, 1].map(|family| {
            let forward = UdpForward { child: datagram_ends(family).0, source: ForwardSource::Client };
            harness.publish_udp(forward).expect("an address of the child")
        })
    });
    let mut model = Model {
        harness,
        published,
        overlay: overlay.map(|_| BTreeSet::new()),
        connections: Vec::new(),
        sent_to: BTreeMap::new(),
        random: Random::new(u64::from(setup)),
    };
    while let (Some(operation), Some(argument)) = (bytes.next(), bytes.next()) {
        model.apply(operation, argument, &mut bytes);
        model.harness.drive_bounded(STEPS);
        model.check();
    }
    model.finish();
}

impl Model {
    fn apply(&mut self, operation: u8, argument: u8, bytes: &mut impl Iterator<Item = u8>) {
        match operation % 16 {
            0 => self.connect(argument),
            1 | 2 => self.child_writes(argument),
            3 | 4 => self.host_writes(argument),
            5 => self.on(argument, |h, c| {
                c.child_finished = true;
                c.close(h);
            }),
            6 => self.on(argument, |h, c| {
                if let Some(flow) = c.flow.filter(|_| !c.host_finished) {
                    c.host_finished = true;
                    h.host.finish(flow);
                }
            }),
            7 => self.on(argument, |h, c| {
                c.broken = true;
                if argument & 0x80 == 0 {
                    h.child.abort(c.socket);
                } else if let Some(flow) = c.flow {
                    h.host.reset(flow);
                }
            }),
            8 => self.on(argument, |h, c| {
                if let Some(flow) = c.flow {
                    h.host.report(
                        flow,
                        if argument & 0x80 == 0 { HostEvent::Readable } else { HostEvent::Writable },
                    );
                }
            }),
            9 => self.child_sends_datagram(argument),
            10 => self.host_sends_datagram(argument),
            12 if argument & 2 != 0 => self.relay_acts(argument),
            11 => {
                self.harness.drive_for(Duration::from_millis(u64::from(argument) * 32));
            }
            12 => {
                let child = if argument & 1 == 0 { IpAddr::from(CHILD) } else { CHILD6.into() };
                let dst = if argument & 1 == 0 { IpAddr::from(WORLD) } else { WORLD6.into() };
                let frame = frames::echo_request(child, dst, u16::from(argument >> 4), 1, b"model");
                let _ = self.harness.inject(&frame);
            }
            13 => self.on(argument, |h, c| {
                if let Some(flow) = c.flow {
                    h.host.tcp(flow).appetite = 0;
                    h.host.feed_appetite(flow, usize::from(argument) * 40);
                }
            }),
            14 => {
                let frame: Vec<u8> = bytes.take(usize::from(argument)).collect();
                self.garbage(&frame);
            }
            _ => self.datagram_error(argument),
        }
    }

    fn connect(&mut self, argument: u8) {
        if self.connections.len() == CONNECTIONS {
            return;
        }
        if self.published.is_some() && argument & 2 != 0 {
            return self.connect_from_host(argument);
        }
        let address = if argument & 1 == 0 { IpAddr::from(WORLD) } else { WORLD6.into() };
        let remote = SocketAddr::new(address, 1000 + self.connections.len() as u16);
        let plan = match argument >> 4 {
            0 => ConnectPlan::Fail(ConnectError::Refused),
            1 => ConnectPlan::Fail(ConnectError::HostUnreachable),
            2 => ConnectPlan::Hold,
            _ => ConnectPlan::Accept,
        };
        self.harness.host.plans.insert(remote, plan);
        let (relaying, relay) = match argument >> 2 & 3 {
            0 => (Relaying::Off, RelayPlan::Refuse),
            1 => (Relaying::All, RelayPlan::Refuse),
            2 => (Relaying::All, RelayPlan::Join),
            _ => (Relaying::All, RelayPlan::Hold),
        };
        // Of connections under way, too.
        self.harness.stack.set_relaying(relaying);
        self.harness.host.relay_plans.insert(remote, relay);
        let socket = self.harness.child.connect(remote);
        self.connections.push(Connection {
            socket,
            flow: None,
            remote,
            to_host: Vec::new(),
            to_child: Vec::new(),
            got: 0,
            child_finished: false,
            host_finished: false,
            // What is relayed is not seen here.
            broken: plan != ConnectPlan::Accept || relay != RelayPlan::Refuse,
        });
    }

    /// The relay answers, or ends what it has; it may have been too late, or have done so already.
    fn relay_acts(&mut self, argument: u8) {
        let Harness { stack, host, now, .. } = &mut self.harness;
        let count = host.offers.len().max(1);
        let Some(offer) = host.offers.get(usize::from(argument >> 4) % count).copied() else { return };
        match argument >> 2 & 3 {
            0 => drop(host.join(*now, stack, offer.flow)),
            1 => drop(host.refuse(*now, stack, offer.flow)),
            _ => stack.relay_ended(*now, offer.flow, RelayEnd { to_host: 1, from_host: 2 }),
        }
    }

    /// A client connects to a port of the child; sometimes nothing listens there.
    fn connect_from_host(&mut self, argument: u8) {
        let ipv6 = argument & 1 != 0;
        let port = 2000 + self.connections.len() as u16;
        let (source, child) =
            if ipv6 { (IpAddr::from(WORLD6), IpAddr::from(CHILD6)) } else { (WORLD.into(), CHILD.into()) };
        let refused = argument >> 4 == 0;
        let socket = self.harness.child.listen(ipv6, if refused { port + 1000 } else { port });
        // Clients share a port now and then.
        let source = SocketAddr::new(source, 4000 + u16::from(argument >> 2 & 3));
        let flow = self.harness.open_to_child(source, SocketAddr::new(child, port)).expect("a flow");
        self.connections.push(Connection {
            socket,
            flow: Some(flow),
            remote: source,
            to_host: Vec::new(),
            to_child: Vec::new(),
            got: 0,
            child_finished: false,
            host_finished: false,
            broken: refused,
        });
    }

    /// A client sends to a published port, or the child's binding gets a datagram.
    fn client_sends_datagram(&mut self, forwards: [ForwardId; 2], argument: u8) {
        let (_, client) = datagram_ends(argument);
        let forward = forwards[usize::from(argument & 1)];
        let before = self.harness.stack.stats().udp.packets_to_child;
        match self.harness.client_datagram(forward, client, None, b"from a client") {
            Ok(session) => {
                let info = self.harness.stack.flows().find(|flow| flow.id == session);
                assert!(info.is_some_and(|flow| flow.key.remote == client), "the client appears as itself");
                assert_eq!(self.harness.stack.stats().udp.packets_to_child, before + 1);
            }
            // The link loses questions too.
            Err(reason) => assert_eq!(reason, DropReason::NeighborUnknown),
        }
    }

    fn child_writes(&mut self, argument: u8) {
        let bytes = self.random.bytes(usize::from(argument) * usize::from(argument) / 4 + 1);
        self.on(argument, |h, c| {
            if !c.child_finished {
                let taken = h.child.write(c.socket, &bytes);
                c.to_host.extend_from_slice(&bytes[..taken]);
            }
        });
    }

    fn host_writes(&mut self, argument: u8) {
        let bytes = self.random.bytes(usize::from(argument) * usize::from(argument) / 4 + 1);
        self.on(argument, |h, c| {
            if let Some(flow) = c.flow.filter(|_| !c.host_finished) {
                h.host.send(flow, &bytes);
                c.to_child.extend_from_slice(&bytes);
            }
        });
    }

    fn child_sends_datagram(&mut self, argument: u8) {
        let (child, mut dst) = datagram_ends(argument);
        if let Some(peers) = self.overlay.as_mut().filter(|_| argument & 0x20 != 0) {
            dst.set_port(OverlayConfig::FLANNEL);
            peers.insert(dst.ip());
        }
        let payload = self.random.bytes(usize::from(argument) * 16);
        let known: Vec<FlowId> = self.harness.host.datagram.keys().copied().collect();
        let before = self.harness.host.take_sent().len();
        debug_assert_eq!(before, 0, "taken after each operation");
        let frame = frames::udp(child, dst, &payload);
        if frame.len() > 1514 {
            for piece in frames::fragments(&frame, u16::from(argument), 1024) {
                let _ = self.harness.inject(&piece);
            }
        } else {
            let _ = self.harness.inject(&frame);
        }
        let sent = self.harness.host.take_sent();
        assert_eq!(sent.len(), 1, "exactly once; bindings before: {known:?}");
        assert_eq!((sent[0].remote, &sent[0].payload), (dst, &payload));
        if dst.port() != OverlayConfig::FLANNEL || self.overlay.is_none() {
            self.sent_to.entry(child).or_default().insert(dst.ip());
        }
    }

    /// A node of the overlay sends, or somebody who is none.
    fn peer_sends_datagram(&mut self, argument: u8) {
        let (child, mut from) = datagram_ends(argument);
        from.set_port(u16::from(argument) + 1);
        let may = self.overlay.as_ref().is_some_and(|peers| peers.contains(&from.ip()));
        // The link loses questions too, and what waits for an answer is bounded.
        match self.harness.overlay_datagram(from, b"from a peer") {
            Ok(()) => assert!(may, "{from} has not been sent to by {child}"),
            Err(DropReason::OverlayStranger) => assert!(!may, "{from} has been sent to"),
            Err(reason) => assert_eq!(reason, DropReason::NeighborUnknown),
        }
    }

    fn host_sends_datagram(&mut self, argument: u8) {
        if let Some(forwards) = self.published.filter(|_| argument & 0x80 != 0) {
            return self.client_sends_datagram(forwards, argument);
        }
        if self.overlay.is_some() && argument & 0x20 != 0 {
            return self.peer_sends_datagram(argument);
        }
        let (child, from) = datagram_ends(argument);
        let open =
            self.harness.stack.flows().find(|flow| flow.key.child == child && flow.key.remote.port() == 0);
        let Some(flow) = open.filter(|flow| flow.key.protocol == crate::flow::Protocol::Udp) else { return };
        let strange = argument & 0x40 != 0;
        let from = match (strange, from.ip()) {
            (false, _) => from,
            (true, IpAddr::V4(_)) => "203.0.113.250:9".parse().expect("an address"),
            (true, IpAddr::V6(_)) => "[2001:db8:ffff::1]:9".parse().expect("an address"),
        };
        let may = self.sent_to.get(&child).is_some_and(|remotes| remotes.contains(&from.ip()));
        let result = self.harness.datagram(flow.id, from, b"from the host", None);
        match result {
            Ok(()) => assert!(may, "{from} has not been sent to by {child}"),
            // A binding that was evicted and made anew has forgotten its remotes.
            Err(reason) => assert_eq!(reason, DropReason::UnexpectedSource),
        }
    }

    fn datagram_error(&mut self, argument: u8) {
        let (child, remote) = datagram_ends(argument);
        let flow = self.harness.stack.flows().find(|flow| flow.key.child == child);
        let Some(flow) = flow.filter(|flow| flow.key.protocol == crate::flow::Protocol::Udp) else { return };
        let kind = match argument >> 5 {
            0 => DatagramErrorKind::PortUnreachable,
            1 => DatagramErrorKind::TooBig(1280),
            2 => DatagramErrorKind::Other(12, 1),
            _ => DatagramErrorKind::TimeExceeded,
        };
        let error = DatagramError { offender: None, kind };
        self.harness.datagram_error(flow.id, remote, error, b"quoted");
    }

    /// A frame that means nothing, or anything.
    fn garbage(&mut self, frame: &[u8]) {
        for offload in [
            Offload::default(),
            Offload { checksum: Checksum::Partial, gso: Gso::None },
            Offload { checksum: Checksum::Partial, gso: Gso::Udp(100) },
            Offload { checksum: Checksum::Partial, gso: Gso::Tunnel(TUNNEL) },
        ] {
            let _ = self.harness.inject(frame);
            let _ = self.harness.inject_with(frame, offload);
        }
        // It may have been a datagram, or hit a connection.
        self.harness.host.take_sent();
        for connection in &mut self.connections {
            connection.broken |= frame.len() >= 54;
        }
    }

    /// Bytes that have reached the child.
    fn delivered(&self) -> usize {
        self.connections.iter().map(|connection| connection.got).sum()
    }

    fn on(&mut self, argument: u8, act: impl FnOnce(&mut Harness, &mut Connection)) {
        let count = self.connections.len().max(1);
        if let Some(connection) = self.connections.get_mut(usize::from(argument & 0x3f) % count) {
            act(&mut self.harness, connection);
        }
    }

    fn check(&mut self) {
        let harness = &mut self.harness;
        harness.host.take_sent();
        for connection in &mut self.connections {
            if connection.flow.is_none() {
                let found = harness.host.tcp.iter().find(|(_, tcp)| tcp.remote == Some(connection.remote));
                connection.flow = found.map(|(&flow, _)| flow);
            }
            let got = harness.child.read(connection.socket);
            let expected = &connection.to_child[connection.got..];
            assert!(expected.starts_with(&got), "bytes to the child that nobody sent");
            connection.got += got.len();
            if let Some(tcp) = connection.flow.and_then(|flow| harness.host.tcp.get(&flow)) {
                assert!(connection.to_host.starts_with(&tcp.received), "bytes to the host that nobody sent");
            }
        }
        let stack = &harness.stack;
        assert!(stack.flows().count() <= CONNECTIONS + 8 + 4 + SESSIONS, "flows beyond every limit");
        assert!(stack.buffer_bytes() <= stack.config().limits().buffer_bytes);
        stack.assert_counts();
    }

    /// Everything that is not broken ends in order, whatever the link has lost.
    fn finish(mut self) {
        for connection in &mut self.connections {
            let flow = connection.flow;
            if let Some(flow) = flow.filter(|flow| self.harness.host.tcp[flow].closed.is_none()) {
                self.harness.host.feed_appetite(flow, usize::MAX);
            }
            if !connection.broken {
                connection.close(&mut self.harness);
            }
            if connection.broken {
                self.harness.child.abort(connection.socket);
                if let Some(flow) = flow.filter(|flow| self.harness.host.tcp[flow].closed.is_none()) {
                    self.harness.host.reset(flow);
                }
                continue;
            }
            if let Some(flow) = flow.filter(|_| !connection.host_finished) {
                self.harness.host.finish(flow);
            }
        }
        for offer in &self.harness.host.offers {
            self.harness.stack.relay_ended(self.harness.now, offer.flow, RelayEnd::default());
        }
        let lossy =
            self.harness.link.config.loss_per_mille > 0 || self.harness.link.config.jitter > Duration::ZERO;
        let mut late = Vec::new();
        // smoltcp forgets what was not read when TIME-WAIT ends: not long at a time, at the beginning.
        let mut quiet = 0;
        while quiet < 100 {
            self.harness.drive_for(Duration::from_secs(if quiet < 60 { 1 } else { 30 }));
            let before = self.delivered();
            self.check();
            quiet = if self.delivered() == before { quiet + 1 } else { 0 };
            for connection in &mut self.connections {
                if let Some(flow) = connection.flow.filter(|_| !connection.host_finished) {
                    connection.host_finished = true;
                    late.push(flow);
                }
            }
            for flow in late.drain(..) {
                self.harness.host.finish(flow);
            }
        }
        for connection in self.connections.iter().filter(|connection| !connection.broken) {
            let Some(flow) = connection.flow else { continue };
            let tcp = &self.harness.host.tcp[&flow];
            assert_eq!(tcp.received.len(), connection.to_host.len(), "to the host, all of it");
            assert_eq!(connection.got, connection.to_child.len(), "to the child, all of it");
            assert!(lossy || tcp.closed == Some(false), "closed in order: {:?}", tcp.closed);
        }
        // smoltcp, which plays the child, does not repeat a FIN of which only the data were acknowledged.
        if lossy {
            return;
        }
        // The overlay's sockets stay.
        let is_transient = |flow: &FlowInfo| flow.key.child.port() != OverlayConfig::FLANNEL;
        assert_eq!(
            self.harness.stack.flows().filter(is_transient).count(),
            0,
            "{:#?}",
            self.harness.stack.flows().collect::<Vec<_>>()
        );
        assert_eq!(self.harness.stack.buffer_bytes(), 0);
    }
}

/// One of a few sockets of the child, and one of a few remotes.
fn datagram_ends(argument: u8) -> (SocketAddr, SocketAddr) {
    let port = 5000 + u16::from(argument >> 1 & 7);
    let remote = u16::from(argument >> 4 & 3);
    if argument & 1 == 0 {
        (SocketAddr::new(CHILD.into(), port), SocketAddr::from(([198, 51, 100, 10 + remote as u8], 9)))
    } else {
        let remote = SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10 + remote], 9));
        (SocketAddr::new(CHILD6.into(), port), remote)
    }
}
