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
//! *Not handled:* sources of another family than the child's address (the caller takes the gateway for them).

use std::net::{IpAddr, SocketAddr};

use super::{FlowKind, FlowState, Received, Stack};
use crate::config::Ipv6Mode;
use crate::error::{DropReason, ForwardError};
use crate::flow::{FlowId, FlowKey, Protocol};
use crate::neighbor::{Due, Inquiry};
use crate::packet::{self, BROADCAST, Mac, ethertype, protocol};
use crate::tcp::TcpFlow;
use crate::tcp::endpoint::Endpoint;
use crate::time::Instant;

/// First port of those taken in place of a client's own that is not free (RFC 6335 section 6: beyond the system's).
const FIRST_PORT: u16 = 1024;

impl Stack {
    /// Opens a TCP connection to `child` on behalf of a client that appears as `source`. The flow's host socket is
    /// the client's connection, which stands already; nothing is read from it until the child has accepted. If it
    /// does not, [`Action::Close`](crate::action::Action::Close) with `abort` follows.
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
        if self.counts.tcp >= self.config.limits.flows {
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
        let id = self.flows.insert(key, state);
        self.counts.tcp += 1;
        self.counts.half_open += 1;
        self.stats.tcp_from_host += 1;
        match hop {
            Ok(_) => self.queue_egress(id),
            Err(address) => {
                if let Some(inquiry) = self.inquiries.begin(now, address) {
                    inquiry.flows.push(id);
                }
                self.poll_inquiries(now);
            }
        }
        Ok(id)
    }

    /// The child has accepted a connection of the host.
    pub(super) fn handle_answered(&mut self, id: FlowId) {
        let Some(tcp) = self.tcp_mut(id) else { return };
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
        let connecting = self.tcp(id).is_some_and(TcpFlow::awaits_child);
        if !connecting {
            return Err(DropReason::IcmpIgnored);
        }
        self.close_tcp(now, id, true);
        Ok(())
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
                        self.stats.count_drop(DropReason::NeighborUnknown);
                        self.close_tcp(now, id, true);
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
    pub(super) fn check_ends(&self, source: SocketAddr, child: SocketAddr) -> Result<(), ForwardError> {
        if !self.may_be_child(child.ip()) || child.port() == 0 {
            return Err(ForwardError::Child(child));
        }
        if child.is_ipv6() && self.config.ipv6_mode == Ipv6Mode::Off {
            return Err(ForwardError::Ipv6Off);
        }
        let one_family = source.is_ipv4() == child.is_ipv4();
        if !one_family || source.port() == 0 || !self.may_be_source(source.ip()) {
            return Err(ForwardError::Source(source));
        }
        Ok(())
    }

    /// Whether the child answers to `address` by way of the gateway.
    pub(super) fn may_be_source(&self, address: IpAddr) -> bool {
        if address == self.gateway(address.is_ipv4()) {
            return true;
        }
        is_unicast(address)
            && match address {
                IpAddr::V4(v4) => !self.config.ipv4.subnet.contains(v4),
                IpAddr::V6(v6) => !(self.config.ipv6.subnet.contains(v6) || v6.is_unicast_link_local()),
            }
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

    fn may_be_child(&self, address: IpAddr) -> bool {
        let own = match address {
            IpAddr::V4(v4) => {
                let plan = &self.config.ipv4;
                [plan.gateway, plan.dns, plan.subnet.network(), plan.subnet.broadcast()].contains(&v4)
            }
            IpAddr::V6(v6) => {
                let plan = &self.config.ipv6;
                [plan.gateway, plan.dns, crate::config::Ipv6Plan::GATEWAY_LINK_LOCAL].contains(&v6)
            }
        };
        is_unicast(address) && !own
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
        if self.flows.find(&key).is_none() {
            return Ok(key);
        }
        for _ in FIRST_PORT..=u16::MAX {
            self.next_port = self.next_port.wrapping_add(1).max(FIRST_PORT);
            key.remote.set_port(self.next_port);
            if self.flows.find(&key).is_none() {
                return Ok(key);
            }
        }
        Err(ForwardError::PortsTaken(source.ip()))
    }
}

/// Whether packets may come from, and go to, `address` at all.
fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let reserved = v4.octets()[0] == 0 || v4.is_broadcast();
            !(reserved || v4.is_loopback() || v4.is_multicast())
        }
        IpAddr::V6(v6) => {
            // ::/96 and ::ffff:0:0/96, the unspecified address and the loopback among them.
            let holds_v4 = matches!(v6.segments(), [0, 0, 0, 0, 0, 0 | 0xffff, _, _]);
            !(holds_v4 || v6.is_multicast())
        }
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
