//! Flows that the host opens towards the child: published ports, carried by frames.
//!
//! # Theory of operation
//! *Goal:* a server of the child sees a connection from the client's own address, wherever it runs: in the child's
//! namespace or behind it (a container that the child routes or translates to). Whoever accepts connections on the
//! host hands them in ([`Stack::open_to_child`]) and has decided already who the client appears as.
//!
//! *TCP:* a flow with the same key, endpoint and relay as one of the child's; only the SYN goes the other way. Its
//! key is found before any rule is asked, so that answers of the child pass whatever its policy says, even to the
//! gateway's address. A four-tuple that is taken makes way to another port of the same source.
//!
//! *Link:* an address on the link is asked for by ARP or neighbour discovery unless it is known; what lies beyond
//! goes to the child, which routes. The SYN waits for the answer; without one the flow ends.
//!
//! *Ends early:* the child's RST, an ICMP "unreachable" that quotes the SYN, no answer within
//! `timeouts.tcp_connect`, nobody with that address: the host's connection is reset.
//!
//! *UDP:* a forward holds one bound socket of the host; each client makes a session ([`mod@crate::forward`]), whose
//! source is decided here. A session is made by a client's datagram, refreshed by datagrams in either direction, and
//! removed after `timeouts.udp_session`, with its forward, or as the longest idle when there are
//! `limits.udp_sessions`. What the child sends to a session's client leaves by the forward's socket, from the address
//! that the client used; what it sends to anybody else from the same port is an ordinary binding. Errors of the
//! host's side are told to the child; those of the child are counted only, for a client of an unconnected socket
//! cannot be told.
//!
//! *Not handled:* TCP sources of another family than the child's address (the caller takes the gateway for them).

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use super::udp::{Datagram, REFRESH, ToChild};
use super::{FlowKind, FlowState, Received, Stack};
use crate::action::{Action, DatagramError};
use crate::config::{Ipv4Mode, Ipv6Mode};
use crate::error::{DropReason, ForwardError};
use crate::flow::{FlowId, FlowKey, Protocol};
use crate::forward::{ForwardId, SessionEnds, UdpForward, may_be_child, may_be_source, visible_source};
use crate::frame::Gso;
use crate::neighbor::{Due, Inquiries, Inquiry};
use crate::offload::IpVersion;
use crate::packet::{self, BROADCAST, IpHeader, MAX_HEADERS, Mac, ethertype, protocol};
use crate::tcp::TcpFlow;
use crate::tcp::endpoint::Endpoint;
use crate::time::Instant;
use crate::udp::UdpSession;

/// Where a datagram of a client belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// The flow to hand it in for.
    pub flow: FlowId,
    /// Family of the child's address.
    pub version: IpVersion,
    /// Whether the way to the child is known. If not, hand in one datagram at a time, whole.
    pub ready: bool,
}

/// First port of those taken in place of a client's own that is not free (RFC 6335 section 6: beyond the system's).
const FIRST_PORT: u16 = 1024;

impl Stack {
    /// Opens a TCP connection to `child` on behalf of a client that appears as `source`. The flow's host socket is
    /// the client's connection, which stands already; nothing is read from it until the child has accepted. If it
    /// does not, [`Action::Close`] with `abort` follows.
    ///
    /// Another port of `source` is taken where that one is in use towards `child`.
    ///
    /// # Errors
    /// Why it cannot be; full tables are counted as drops.
    pub fn open_to_child(
        &mut self,
        now: Instant,
        source: SocketAddr,
        child: SocketAddr,
    ) -> Result<FlowId, ForwardError> {
        self.now = now;
        self.check_ends(source, child)?;
        if self.tcp_flows() >= self.config.limits.flows {
            self.stats.count_drop(DropReason::FlowTableFull);
            return Err(ForwardError::FlowTableFull);
        }
        if self.counts.half_open >= self.config.limits.half_open {
            self.stats.count_drop(DropReason::HalfOpenFull);
            return Err(ForwardError::HalfOpenFull);
        }
        let key = self.free_key(Protocol::Tcp, source, child)?;
        let hop = self.hop_to(child.ip());
        if let Err(address) = hop
            && self.inquiries.begin(now, address).is_none()
        {
            return Err(ForwardError::TooManyNeighbors);
        }
        let Some((region, size)) = self.rings.lend() else {
            self.stats.count_drop(DropReason::BufferMemoryFull);
            return Err(ForwardError::BufferMemoryFull);
        };
        let keepalive = self.config.timeouts.tcp_keepalive;
        let endpoint = Endpoint::connect(&mut self.network, region, size, key.remote, child, keepalive);
        let flow = TcpFlow::opened_by_host(now, endpoint, source);
        let state = FlowState::new(FlowKind::Tcp(Box::new(flow)), hop.unwrap_or(BROADCAST));
        // A SYN of the child's own that came meanwhile between the same ends is answered by this one.
        self.claim(key);
        let id = self.flows.insert(key, state);
        self.counts.tcp += 1;
        self.counts.half_open += 1;
        self.stats.tcp_from_host += 1;
        match hop {
            Ok(_) => self.queue_egress(id),
            Err(address) => {
                let most = self.config.limits.half_open;
                if let Some(inquiry) = self.inquiries.begin(now, address) {
                    // Clients that have gone are still in the list.
                    if inquiry.flows.len() >= most {
                        inquiry.flows.retain(|&id| self.flows.get(id).is_some());
                    }
                    inquiry.flows.push(id);
                }
                self.poll_inquiries(now);
            }
        }
        Ok(id)
    }

    /// The child has accepted a connection of the host.
    pub(super) fn handle_answered(&mut self, now: Instant, id: FlowId) {
        let Some(tcp) = self.tcp_mut(id) else { return };
        tcp.last_active = now;
        tcp.phase = crate::tcp::Phase::Open;
        self.counts.half_open -= 1;
    }

    /// Takes an ICMP or ICMPv6 error of the child about a packet that we have sent.
    ///
    /// A connection that is being opened ends by it: whatever cannot be reached now is no better later for a client
    /// that waits (Linux does the same in SYN-SENT; RFC 1122 section 4.2.3.9 leaves it to the implementation).
    pub(super) fn icmp_error_from_child(
        &mut self,
        now: Instant,
        received: &Received<'_>,
    ) -> Result<(), DropReason> {
        let key = quoted_key(received.transport()).ok_or(DropReason::IcmpIgnored)?;
        let id = self.flows.find(&key).ok_or(DropReason::IcmpIgnored)?;
        match self.flows.get(id).map(|entry| &entry.value.kind) {
            Some(FlowKind::Tcp(tcp)) if tcp.awaits_child() => self.close_tcp(now, id, true),
            Some(FlowKind::UdpSession(_)) => self.stats.udp_session_errors += 1,
            _ => return Err(DropReason::IcmpIgnored),
        }
        Ok(())
    }

    /// Publishes a UDP port: its socket is that of the flow [`ForwardId::flow`], for which
    /// [`Stack::session`] is asked with every datagram.
    ///
    /// # Errors
    /// That the child's address cannot be one.
    pub fn add_udp_forward(&mut self, forward: UdpForward) -> Result<ForwardId, ForwardError> {
        self.check_child(forward.child)?;
        let key = FlowKey { protocol: Protocol::Udp, child: forward.child, remote: forward.child };
        Ok(ForwardId(self.flows.insert_hidden(key, FlowState::new(FlowKind::UdpForward(forward), BROADCAST))))
    }

    /// Ends the sessions of a published UDP port, and itself; says whether there was one of that name. Its socket is
    /// closed by [`Action::Close`].
    pub fn remove_udp_forward(&mut self, id: ForwardId) -> bool {
        if !matches!(self.flows.get(id.0).map(|entry| &entry.value.kind), Some(FlowKind::UdpForward(_))) {
            return false;
        }
        let of_this = |kind: &FlowKind| matches!(kind, FlowKind::UdpSession(s) if s.ends.forward == id);
        let sessions: Vec<FlowId> =
            self.flows.iter().filter(|(_, entry)| of_this(&entry.value.kind)).map(|(id, _)| id).collect();
        for session in sessions {
            self.close_binding(session);
        }
        self.forget(id.0);
        self.actions.push_back(Action::Close { flow: id.0, abort: false });
        true
    }

    /// The session of a datagram that came by a published port, from `client` to the address `local` of the host; made
    /// if there is none. Hand the datagram in by [`Stack::handle_datagram`] as one of [`Session::flow`].
    ///
    /// # Errors
    /// Why there is none; it is counted already.
    pub fn session(
        &mut self,
        now: Instant,
        forward: ForwardId,
        client: SocketAddr,
        local: Option<IpAddr>,
    ) -> Result<Session, DropReason> {
        self.now = now;
        let ends = SessionEnds { forward, client, local };
        let known = self.sessions.find(&ends);
        let opened = known.map_or_else(|| self.open_session(now, ends), Ok);
        let flow = opened.inspect_err(|&reason| self.stats.count_drop(reason))?;
        let Some(entry) = self.flows.get(flow) else { return Err(DropReason::NoFlow) };
        let version = if entry.key.child.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 };
        Ok(Session { flow, version, ready: entry.value.mac != BROADCAST })
    }

    fn open_session(&mut self, now: Instant, ends: SessionEnds) -> Result<FlowId, DropReason> {
        let forward = match self.flows.get(ends.forward.0).map(|entry| &entry.value.kind) {
            Some(&FlowKind::UdpForward(forward)) => forward,
            _ => return Err(DropReason::NoFlow),
        };
        let source = visible_source(&self.config, ends.client, forward.child.ip(), forward.source);
        if source.port() == 0 {
            return Err(DropReason::InvalidSource);
        }
        if self.sessions.len() >= self.config.limits.udp_sessions {
            self.stats.count_drop(DropReason::UdpSessionsFull);
            let oldest = self.session_lru.oldest().and_then(|index| self.flows.id_at(index));
            self.close_binding(oldest.ok_or(DropReason::UdpSessionsFull)?);
        }
        let key =
            self.free_key(Protocol::Udp, source, forward.child).map_err(|_| DropReason::UdpSessionsFull)?;
        let session = UdpSession { ends, last_active: now, bytes_from_child: 0, bytes_to_child: 0 };
        let mac = self.hop_to(forward.child.ip()).unwrap_or(BROADCAST);
        let state = FlowState::new(FlowKind::UdpSession(Box::new(session)), mac);
        let id = self.flows.insert(key, state);
        self.sessions.insert(ends, id);
        self.session_lru.insert(id.index);
        self.wake_flow_at(id, now + self.config.timeouts.udp_session);
        self.stats.udp_sessions += 1;
        Ok(id)
    }

    /// The session by which the child answers, if `remote` is the client of one.
    pub(super) fn find_session(&self, child: SocketAddr, remote: SocketAddr) -> Option<FlowId> {
        if self.sessions.len() == 0 {
            return None;
        }
        self.flows.find(&FlowKey { protocol: Protocol::Udp, child, remote })
    }

    /// Takes a datagram of the child to the client of a session; its payload is at `range` of the frame.
    pub(super) fn session_from_child(
        &mut self,
        now: Instant,
        id: FlowId,
        received: &Received<'_>,
        range: Range<usize>,
    ) -> Result<(), DropReason> {
        let hop = self.next_hop(now, received)?;
        let Some(entry) = self.flows.get_mut(id) else { return Err(DropReason::NoFlow) };
        entry.value.mac = received.mac;
        let FlowKind::UdpSession(session) = &mut entry.value.kind else { return Err(DropReason::NoFlow) };
        session.bytes_from_child += range.len() as u64;
        let SessionEnds { forward, client, local } = session.ends;
        self.send_datagram(forward.0, client, local, received, range, hop);
        self.refresh_binding(now, id);
        Ok(())
    }

    /// Takes a datagram of the client of a session.
    pub(super) fn session_to_child(
        &mut self,
        now: Instant,
        id: FlowId,
        datagram: &Datagram<'_>,
        headers: &mut [u8; MAX_HEADERS],
    ) -> Result<ToChild, DropReason> {
        let Some(entry) = self.flows.get_mut(id) else { return Err(DropReason::NoFlow) };
        let (FlowKey { child, remote, .. }, mut mac) = (entry.key, entry.value.mac);
        let FlowKind::UdpSession(session) = &mut entry.value.kind else { return Err(DropReason::NoFlow) };
        session.bytes_to_child += datagram.total as u64;
        let was_active = session.last_active;
        self.refresh_binding(now, id);
        // The child's interface may have been made anew; a look per datagram would cost too much.
        if mac == BROADCAST || now >= was_active + REFRESH {
            match self.hop_to(child.ip()) {
                Ok(found) => mac = found,
                Err(address) => return self.hold_datagram(now, address, remote, child, datagram),
            }
            if let Some(entry) = self.flows.get_mut(id) {
                entry.value.mac = mac;
            }
        }
        Ok(self.frame_datagram(remote, child, mac, datagram, headers))
    }

    /// Keeps a datagram until `address`, the next hop to `child`, is known.
    pub(super) fn hold_datagram(
        &mut self,
        now: Instant,
        address: IpAddr,
        source: SocketAddr,
        child: SocketAddr,
        datagram: &Datagram<'_>,
    ) -> Result<ToChild, DropReason> {
        if datagram.gso != Gso::None || datagram.payload.len() != datagram.total {
            // Against the agreement of [`Session::ready`].
            return Err(DropReason::NeighborUnknown);
        }
        let ip =
            IpHeader { src: source.ip(), dst: child.ip(), protocol: protocol::UDP, ttl: packet::DEFAULT_TTL };
        let mut udp = vec![0; packet::UDP_LEN + datagram.total];
        packet::emit_udp(source.port(), child.port(), datagram.total, &mut udp);
        udp[packet::UDP_LEN..].copy_from_slice(datagram.payload);
        packet::complete_udp(&ip, &mut udp);
        let frames = if ip.header_len() + udp.len() > usize::from(self.config.mtu) {
            self.ip_fragments(&ip, &udp, BROADCAST)
        } else {
            vec![packet::ip_frame(self.config.mac, BROADCAST, &ip, &udp)]
        };
        let inquiry = self.inquiries.begin(now, address).ok_or(DropReason::NeighborUnknown)?;
        if inquiry.frames.len() + frames.len() > Inquiries::FRAMES {
            return Err(DropReason::NeighborUnknown);
        }
        inquiry.frames.extend(frames);
        self.stats.udp.packets_to_child += 1;
        self.stats.udp.bytes_to_child += datagram.total as u64;
        self.poll_inquiries(now);
        Ok(ToChild::Queued)
    }

    /// Takes an error of the host's side for a datagram that the child sent to the client `remote` of a session.
    pub(super) fn session_error_to_child(
        &mut self,
        now: Instant,
        forward: FlowId,
        remote: SocketAddr,
        error: DatagramError,
        quoted: &[u8],
    ) -> Result<(), DropReason> {
        let session = self.sessions.find_client(ForwardId(forward), remote).ok_or(DropReason::NoFlow)?;
        let Some(entry) = self.flows.get(session) else { return Err(DropReason::NoFlow) };
        let written = entry.key.remote;
        self.tell_datagram_error(now, session, written, error, quoted)
    }

    /// Notes where `address` lives; what waits for it goes out.
    pub(super) fn learn_neighbor(&mut self, address: IpAddr, mac: Mac) {
        self.neighbors.learn(address, mac);
        if self.inquiries.is_empty() || mac[0] & 1 != 0 {
            return;
        }
        let Some(Inquiry { flows, frames, .. }) = self.inquiries.handle_answer(address) else { return };
        for id in flows {
            if let Some(entry) = self.flows.get_mut(id) {
                entry.value.mac = mac;
                self.queue_egress(id);
            }
        }
        for mut frame in frames {
            packet::set_destination(&mut frame, mac);
            self.send_control(frame);
        }
    }

    /// A SYN that is repeated goes to where the child lives now: its interface may have been made anew.
    pub(super) fn refresh_neighbor(&mut self, id: FlowId) {
        let Some(address) = self.flows.get(id).map(|entry| entry.key.child.ip()) else { return };
        if let (Ok(mac), Some(entry)) = (self.hop_to(address), self.flows.get_mut(id)) {
            entry.value.mac = mac;
        }
        self.ask_for(self.link_address(address));
    }

    /// Asks for what is looked for, and gives up what nobody has.
    pub(super) fn poll_inquiries(&mut self, now: Instant) {
        while let Some(due) = self.inquiries.poll(now) {
            match due {
                Due::Ask(address) => self.ask_for(address),
                Due::GiveUp(Inquiry { flows, frames, .. }) => {
                    for id in flows {
                        if self.tcp(id).is_some() {
                            self.stats.count_drop(DropReason::NeighborUnknown);
                            self.close_tcp(now, id, true);
                        }
                    }
                    for _ in frames {
                        self.stats.count_drop(DropReason::NeighborUnknown);
                    }
                }
            }
        }
    }

    /// Where frames to `address` go, or the address on the link that has to be asked for first.
    pub(super) fn hop_to(&self, address: IpAddr) -> Result<Mac, IpAddr> {
        let on_link = self.link_address(address);
        match self.neighbors.find(on_link) {
            Some(mac) => Ok(mac),
            // The child may have another address than planned; whoever speaks is it.
            None if on_link != address => self.neighbors.last_sender().ok_or(on_link),
            None => Err(on_link),
        }
    }

    /// Whether packets from `source` to `child` are such that the child's kernel takes them and answers to us.
    fn check_ends(&self, source: SocketAddr, child: SocketAddr) -> Result<(), ForwardError> {
        self.check_child(child)?;
        let one_family = source.is_ipv4() == child.is_ipv4();
        if !one_family || source.port() == 0 || !may_be_source(&self.config, source.ip()) {
            return Err(ForwardError::Source(source));
        }
        Ok(())
    }

    fn check_child(&self, child: SocketAddr) -> Result<(), ForwardError> {
        if !may_be_child(&self.config, child.ip()) || child.port() == 0 {
            return Err(ForwardError::Child(child));
        }
        if child.is_ipv4() && self.config.ipv4_mode == Ipv4Mode::Off {
            return Err(ForwardError::Ipv4Off);
        }
        if child.is_ipv6() && self.config.ipv6_mode == Ipv6Mode::Off {
            return Err(ForwardError::Ipv6Off);
        }
        Ok(())
    }

    /// Asks for the Ethernet address of `address`, which is on the link.
    fn ask_for(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => {
                let request = self.arp.request(address);
                let frame = packet::ethernet_frame(self.config.mac, BROADCAST, ethertype::ARP, &request);
                self.send_control(frame);
            }
            IpAddr::V6(address) => self.send_ndp(self.ndp.solicit(address)),
        }
    }

    /// Who on the link takes packets to `address`: itself, or the child, which routes.
    fn link_address(&self, address: IpAddr) -> IpAddr {
        match address {
            IpAddr::V4(v4) if !self.config.ipv4.subnet.contains(v4) => self.config.ipv4.child.into(),
            IpAddr::V6(v6) if !(self.config.ipv6.subnet.contains(v6) || v6.is_unicast_link_local()) => {
                self.config.ipv6.child.into()
            }
            on_link => on_link,
        }
    }

    /// The key of a flow from `source` to `child`, from another port if that one is taken.
    pub(super) fn free_key(
        &mut self,
        protocol: Protocol,
        source: SocketAddr,
        child: SocketAddr,
    ) -> Result<FlowKey, ForwardError> {
        let mut key = FlowKey { protocol, child, remote: SocketAddr::new(source.ip(), source.port()) };
        // The scope and flow label that a host's IPv6 address may carry mean nothing to the child.
        key.child = SocketAddr::new(child.ip(), child.port());
        if self.flows.find(&key).is_none() && self.is_unclaimed(&key) {
            return Ok(key);
        }
        for _ in FIRST_PORT..=u16::MAX {
            self.next_port = self.next_port.wrapping_add(1).max(FIRST_PORT);
            key.remote.set_port(self.next_port);
            if self.flows.find(&key).is_none() && self.is_unclaimed(&key) {
                return Ok(key);
            }
        }
        Err(ForwardError::PortsTaken(source.ip()))
    }
}

/// The flow that an ICMP error "unreachable" speaks of: it quotes a packet of ours, whose destination is the child.
fn quoted_key(icmp: &[u8]) -> Option<FlowKey> {
    let (header, quoted) = icmp.split_first_chunk::<8>()?;
    let first = *quoted.first()?;
    let (next, src, dst, transport): (u8, IpAddr, IpAddr, &[u8]) = match (first >> 4, header[0], header[1]) {
        // "Fragmentation needed" is no end.
        (4, 3, code) if code != 4 => {
            let ip = quoted.first_chunk::<{ packet::IPV4_LEN }>()?;
            let transport = quoted.get(usize::from(first & 0x0f) * 4..)?;
            let [src, dst] = [12, 16].map(|at| [ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]);
            (ip[9], src.into(), dst.into(), transport)
        }
        (6, 1, _) => {
            let (ip, transport) = quoted.split_first_chunk::<{ packet::IPV6_LEN }>()?;
            let src: [u8; 16] = ip[8..24].try_into().ok()?;
            let dst: [u8; 16] = ip[24..40].try_into().ok()?;
            (ip[6], src.into(), dst.into(), transport)
        }
        _ => return None,
    };
    let protocol = match next {
        protocol::TCP => Protocol::Tcp,
        protocol::UDP => Protocol::Udp,
        _ => return None,
    };
    let &[a, b, c, d] = transport.first_chunk()?;
    Some(FlowKey {
        protocol,
        child: SocketAddr::new(dst, u16::from_be_bytes([c, d])),
        remote: SocketAddr::new(src, u16::from_be_bytes([a, b])),
    })
}
