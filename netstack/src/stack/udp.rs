//! UDP as the stack sees it. The theory stands in [`crate::udp`].

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use super::{Destination, FlowKind, FlowState, Received, Refusal, Stack};
use crate::action::{Action, DatagramError, DatagramKind, Hop, HostEvent, OpenError, Payload};
use crate::config;
use crate::error::DropReason;
use crate::flow::{FlowId, FlowKey, Protocol};
use crate::frame::{Checksum, Gso, Offload};
use crate::icmp::{self as icmp_wire, IcmpErrorKind};
use crate::offload::checksum;
use crate::packet::{self, ETHERNET_LEN, IpHeader, MAX_HEADERS, UDP_LEN, Udp, protocol};
use crate::time::{Duration, Instant};
use crate::udp::UdpBinding;
use crate::udp::fragment::{self, FragmentedPacket};

/// A datagram from the host, or several equal ones.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// Its source on the host's side.
    pub from: SocketAddr,
    /// UDP payload, or for ping sockets the ICMP message. Of several datagrams the first, unless the link
    /// leaves checksums to us: then all of it.
    pub payload: &'a [u8],
    /// Payload bytes of all datagrams.
    pub total: usize,
    /// How several are told apart: [`Gso::Udp`] names the payload bytes of each but the last. With [`Gso::Tunnel`], whose
    /// offsets count from the start of the payload, it is one super-segment; the link has to take it
    /// ([`LinkCapabilities::tunnel`](crate::frame::LinkCapabilities::tunnel)).
    pub gso: Gso,
}

impl Datagram<'_> {
    /// Number of datagrams.
    pub(super) fn count(&self) -> usize {
        match self.gso {
            Gso::Udp(size) => self.total.div_ceil(usize::from(size).max(1)),
            Gso::Tunnel(gso) => gso.segments(self.total),
            Gso::None | Gso::Tcp(_) => 1,
        }
    }

    /// Payload bytes of the longest.
    fn longest(&self) -> usize {
        match self.gso {
            Gso::Udp(size) => usize::from(size),
            Gso::Tunnel(gso) => usize::from(gso.header_len) + usize::from(gso.size),
            Gso::None | Gso::Tcp(_) => self.total,
        }
    }
}

/// How a datagram from the host travels to the child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToChild {
    /// As one frame: headers stand in `headers[start..]`, the payload follows them.
    Frame {
        /// Where the headers begin.
        start: usize,
        /// What the link has to complete.
        offload: Offload,
    },
    /// The stack made frames of its own (fragments, an echo reply); they come by
    /// [`Stack::poll_frame`].
    Queued,
}

/// Bindings are refreshed at most this often, so that busy ones do not pay for it per packet.
pub(super) const REFRESH: Duration = Duration::from_secs(1);

impl Stack {
    pub(super) fn udp_from_child(&mut self, now: Instant, received: &Received<'_>) -> Result<(), DropReason> {
        let ip = &received.ip;
        let udp = Udp::parse(received.transport())?;
        let datagram = &received.transport()[..udp.len];
        if received.offload.checksum == Checksum::Complete {
            verify_udp(ip.src, ip.dst, &udp, datagram)?;
        }
        let payload = &datagram[UDP_LEN..];
        if let Some(served) = self.serve_link_local(now, received, &udp, payload) {
            return served;
        }
        self.check_source(received)?;
        let child = SocketAddr::new(ip.src, udp.src);
        let written = SocketAddr::new(ip.dst, udp.dst);
        if self.is_datagram_elsewhere(child, written, received, &udp)? {
            return Ok(());
        }
        self.stats.udp.packets_from_child += 1;
        self.stats.udp.bytes_from_child += payload.len() as u64;
        let range = received.ip.transport.start + UDP_LEN..received.ip.transport.start + udp.len;
        if let Some(id) = self.find_session(child, written) {
            return self.session_from_child(now, id, received, range);
        }
        let key = FlowKey { protocol: Protocol::Udp, child, remote: unspecified(ip.src) };
        let known = self.flows.find(&key);
        let address = match self.destination_at(written) {
            Ok(Destination::Host(address)) => address,
            Ok(Destination::Dns) if udp.dst == 53 => {
                self.stats.udp.packets_from_child -= 1;
                self.stats.udp.bytes_from_child -= payload.len() as u64;
                return self.dns_datagram_from_child(now, child, written, payload);
            }
            Ok(Destination::Dns) => {
                self.tell(now, IcmpErrorKind::PortUnreachable, received.packet(), received.mac);
                return Err(DropReason::NoSuchService);
            }
            Ok(Destination::Gateway) => {
                return Err(self.refuse_datagram(now, self.gateway_refusal(), received));
            }
            Err(refusal) => return Err(self.refuse_datagram(now, refusal, received)),
        };
        if let Err(reason) = self.check_policy(now, Protocol::Udp, written) {
            self.tell(now, IcmpErrorKind::AdminProhibited, received.packet(), received.mac);
            return Err(reason);
        }
        let hop = self.next_hop(now, received)?;
        if self.is_overlay(udp.dst) {
            return self.overlay_from_child(now, received, address, range, hop);
        }
        let id = match known {
            Some(id) => id,
            None => self.open_binding(key, received.mac, FlowKind::Udp(Box::new(UdpBinding::new(now))))?,
        };
        let Some(entry) = self.flows.get_mut(id) else { return Ok(()) };
        entry.value.mac = received.mac;
        let FlowKind::Udp(binding) = &mut entry.value.kind else { return Ok(()) };
        binding.handle_sent(address, written.ip());
        binding.bytes_from_child += payload.len() as u64;
        let remote = SocketAddr::new(address, udp.dst);
        self.send_datagram(id, remote, None, received, range, hop);
        self.refresh_binding(now, id);
        Ok(())
    }

    /// Has the bytes at `range` of a frame sent from the flow's socket.
    pub(super) fn send_datagram(
        &mut self,
        flow: FlowId,
        remote: SocketAddr,
        local: Option<IpAddr>,
        received: &Received<'_>,
        range: Range<usize>,
        hop: Hop,
    ) {
        let gso = match received.offload.gso {
            Gso::Udp(size) if range.len() <= usize::from(size) => Gso::None,
            Gso::Tcp(_) => Gso::None,
            gso => gso,
        };
        let payload = match received.slot {
            Some(slot) => Payload::InFrame { slot, range: range.start as u32..range.end as u32 },
            None => Payload::Owned(received.frame[range].to_vec()),
        };
        self.actions.push_back(Action::SendDatagram { flow, remote, payload, gso, hop, local });
        self.slot_in_use = received.slot.or(self.slot_in_use);
    }

    /// Takes what a flow's datagram socket received, and writes the headers for the child into the end of
    /// `headers`.
    ///
    /// # Errors
    /// Why it is dropped; it is counted already.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        flow: FlowId,
        datagram: Datagram<'_>,
        headers: &mut [u8; MAX_HEADERS],
    ) -> Result<ToChild, DropReason> {
        self.now = now;
        let result = match self.flows.get(flow).map(|entry| &entry.value.kind) {
            Some(FlowKind::Udp(_)) => self.udp_to_child(now, flow, &datagram, headers),
            Some(FlowKind::UdpSession(_)) => self.session_to_child(now, flow, &datagram, headers),
            Some(FlowKind::Overlay(_)) => self.overlay_to_child(now, flow, &datagram, headers),
            Some(FlowKind::Ping(_)) => self.echo_to_child(now, flow, datagram.from, datagram.payload),
            Some(FlowKind::DnsQuery(_)) => self.handle_dns_answer(now, flow, datagram.payload),
            Some(FlowKind::Tcp(_) | FlowKind::Relayed(_) | FlowKind::UdpForward(_)) | None => {
                Err(DropReason::NoFlow)
            }
        };
        if let Err(reason) = result {
            self.stats.count_drop(reason);
        }
        result
    }

    fn udp_to_child(
        &mut self,
        now: Instant,
        flow: FlowId,
        datagram: &Datagram<'_>,
        headers: &mut [u8; MAX_HEADERS],
    ) -> Result<ToChild, DropReason> {
        let Datagram { from, total, .. } = *datagram;
        let source = self.address_for_child(from.ip());
        let Some(entry) = self.flows.get_mut(flow) else { return Err(DropReason::NoFlow) };
        let (child, mac) = (entry.key.child, entry.value.mac);
        let FlowKind::Udp(binding) = &mut entry.value.kind else { return Err(DropReason::NoFlow) };
        if !binding.accepts(from.ip(), self.config.udp_filtering) {
            return Err(DropReason::UnexpectedSource);
        }
        let source = binding.aliases.name_of(from.ip()).unwrap_or(source);
        binding.bytes_to_child += total as u64;
        self.refresh_binding(now, flow);
        let source = SocketAddr::new(source, from.port());
        Ok(self.frame_datagram(source, child, mac, datagram, headers))
    }

    /// Writes the headers of a datagram, or several, from `source` to `child`.
    pub(super) fn frame_datagram(
        &mut self,
        source: SocketAddr,
        child: SocketAddr,
        mac: packet::Mac,
        datagram: &Datagram<'_>,
        headers: &mut [u8; MAX_HEADERS],
    ) -> ToChild {
        let Datagram { payload, total, gso, .. } = *datagram;
        self.stats.udp.packets_to_child += datagram.count() as u64;
        self.stats.udp.bytes_to_child += total as u64;
        let ip =
            IpHeader { src: source.ip(), dst: child.ip(), protocol: protocol::UDP, ttl: packet::DEFAULT_TTL };
        let ports = (source.port(), child.port());
        if ip.header_len() + UDP_LEN + datagram.longest() > usize::from(self.config.mtu) {
            self.send_fragments(&ip, ports, payload, mac);
            return ToChild::Queued;
        }
        let start = MAX_HEADERS - UDP_LEN - ip.header_len() - ETHERNET_LEN;
        let frame = &mut headers[start..];
        packet::emit_ethernet(frame, self.config.mac, mac, ip.ethertype());
        ip.emit(UDP_LEN + total, &mut frame[ETHERNET_LEN..]);
        let udp = &mut frame[ETHERNET_LEN + ip.header_len()..];
        packet::emit_udp(ports.0, ports.1, total, udp);
        let pseudo = checksum::pseudo_header_sum(ip.src, ip.dst, protocol::UDP, (UDP_LEN + total) as u32);
        if self.link.checksum {
            udp[6..8].copy_from_slice(&pseudo.to_be_bytes());
            let gso = match gso {
                Gso::Udp(size) if total <= usize::from(size) => Gso::None,
                Gso::Tunnel(gso) => {
                    if ip.src.is_ipv4() {
                        // None, as tunnels have it over IPv4: the inner one covers all there is.
                        udp[6..8].fill(0);
                    }
                    Gso::Tunnel(gso.behind((MAX_HEADERS - start) as u16))
                }
                gso => gso,
            };
            return ToChild::Frame { start, offload: Offload { checksum: Checksum::Partial, gso } };
        }
        debug_assert_eq!(payload.len(), total, "a checksum in software needs the whole payload");
        let sum = checksum::checksum(payload, checksum::add(pseudo, checksum::sum(udp)));
        let sum = if sum == 0 { 0xffff } else { sum };
        udp[6..8].copy_from_slice(&sum.to_be_bytes());
        ToChild::Frame { start, offload: Offload::default() }
    }

    /// Sends a datagram that exceeds the MTU in fragments.
    pub(super) fn send_fragments(
        &mut self,
        ip: &IpHeader,
        ports: (u16, u16),
        payload: &[u8],
        mac: packet::Mac,
    ) {
        let mut datagram = vec![0; UDP_LEN + payload.len()];
        packet::emit_udp(ports.0, ports.1, payload.len(), &mut datagram);
        datagram[UDP_LEN..].copy_from_slice(payload);
        packet::complete_udp(ip, &mut datagram);
        self.send_ip_fragments(ip, &datagram, mac);
    }

    /// Sends a transport payload in as many IP fragments as the MTU asks for.
    pub(super) fn send_ip_fragments(&mut self, ip: &IpHeader, transport: &[u8], mac: packet::Mac) {
        for frame in self.ip_fragments(ip, transport, mac) {
            self.send_control(frame);
        }
    }

    /// Frames of a transport payload in as many IP fragments as the MTU asks for.
    pub(super) fn ip_fragments(&mut self, ip: &IpHeader, transport: &[u8], mac: packet::Mac) -> Vec<Vec<u8>> {
        self.fragment_id = self.fragment_id.wrapping_add(self.fragment_step);
        let (ident, mtu, own) = (self.fragment_id, self.config.mtu, self.config.mac);
        let mut frames = Vec::new();
        let mut push = |packet: &[u8]| {
            frames.push(packet::ethernet_frame(own, mac, ip.ethertype(), packet));
        };
        match (ip.src, ip.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let header = FragmentedPacket { src, dst, protocol: ip.protocol, ttl: ip.ttl, ident };
                fragment::fragment_v4(&header, transport, mtu, &mut push);
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let header = FragmentedPacket { src, dst, protocol: ip.protocol, ttl: ip.ttl, ident };
                fragment::fragment_v6(&header, transport, mtu, &mut push);
            }
            _ => debug_assert!(false, "mixed address families: {ip:?}"),
        }
        frames
    }

    pub(super) fn udp_error_to_child(
        &mut self,
        now: Instant,
        id: FlowId,
        remote: SocketAddr,
        error: DatagramError,
        quoted: &[u8],
    ) -> Result<(), DropReason> {
        let written = SocketAddr::new(self.name_of(id, remote.ip()), remote.port());
        self.tell_datagram_error(now, id, written, error, quoted)
    }

    /// Tells the child what became of a datagram that it sent to `written`.
    pub(super) fn tell_datagram_error(
        &mut self,
        now: Instant,
        id: FlowId,
        written: SocketAddr,
        error: DatagramError,
        quoted: &[u8],
    ) -> Result<(), DropReason> {
        let Some(entry) = self.flows.get(id) else { return Err(DropReason::NoFlow) };
        let (child, mac) = (entry.key.child, entry.value.mac);
        let original = icmp_wire::udp_original(child, written, packet::DEFAULT_TTL, quoted, quoted.len());
        let from = self.error_source(id, error, child.is_ipv4());
        self.tell_from(now, error.kind.into(), from, &original, mac);
        Ok(())
    }

    /// What the child of a binding calls a host-side address.
    pub(super) fn name_of(&self, id: FlowId, address: IpAddr) -> IpAddr {
        let alias = match self.flows.get(id).map(|entry| &entry.value.kind) {
            Some(FlowKind::Udp(binding)) => binding.aliases.name_of(address),
            Some(FlowKind::Ping(binding)) => binding.aliases.name_of(address),
            _ => None,
        };
        alias.unwrap_or_else(|| self.address_for_child(address))
    }

    /// Who an ICMP error to the child comes from.
    pub(super) fn error_source(&self, id: FlowId, error: DatagramError, v4: bool) -> IpAddr {
        match error.offender {
            Some(offender) if offender.is_ipv4() == v4 && !offender.is_unspecified() => {
                self.name_of(id, offender)
            }
            _ => self.gateway(v4),
        }
    }

    pub(super) fn handle_datagram_socket(&mut self, id: FlowId, event: HostEvent) {
        let HostEvent::OpenFailed(error) = event else { return };
        self.stats.count_drop(match error {
            OpenError::PingForbidden => DropReason::PingForbidden,
            OpenError::Unreachable => DropReason::HostSendFailed,
            OpenError::NoOutbound => DropReason::NoOutbound,
            OpenError::Resources => DropReason::HostResources,
        });
        if error == OpenError::PingForbidden && !self.ping_forbidden_told {
            self.ping_forbidden_told = true;
            log::warn!(
                "ping is not permitted: this user's groups are outside net.ipv4.ping_group_range; root can \
                 permit it with: sysctl -w net.ipv4.ping_group_range='0 2147483647'"
            );
        }
        self.close_binding(id);
    }

    pub(super) fn handle_binding_timeout(&mut self, now: Instant, id: FlowId) {
        let timeouts = &self.config.timeouts;
        let Some(entry) = self.flows.get(id) else { return };
        let until = match &entry.value.kind {
            FlowKind::Udp(binding) => binding.last_active + timeouts.udp,
            FlowKind::UdpSession(session) => session.last_active + timeouts.udp_session,
            FlowKind::Ping(binding) => binding.last_active + timeouts.icmp,
            FlowKind::Tcp(_)
            | FlowKind::Relayed(_)
            | FlowKind::UdpForward(_)
            | FlowKind::Overlay(_)
            | FlowKind::DnsQuery(_) => return,
        };
        if until <= now {
            self.close_binding(id);
        } else {
            self.wake_flow_at(id, until);
        }
    }

    /// Adds a UDP or ping binding; when there are too many, the longest idle makes room.
    pub(super) fn open_binding(
        &mut self,
        key: FlowKey,
        mac: packet::Mac,
        kind: FlowKind,
    ) -> Result<FlowId, DropReason> {
        let limits = &self.config.limits;
        let (lru, limit, timeout, socket) = match kind {
            FlowKind::Udp(_) => {
                (&self.udp_lru, limits.udp_bindings, self.config.timeouts.udp, DatagramKind::Udp)
            }
            _ => (&self.ping_lru, limits.icmp_bindings, self.config.timeouts.icmp, DatagramKind::Ping),
        };
        if lru.len() >= limit {
            let full = match kind {
                FlowKind::Udp(_) => DropReason::UdpBindingsFull,
                _ => DropReason::IcmpBindingsFull,
            };
            self.stats.count_drop(full);
            let oldest = lru.oldest().and_then(|index| self.flows.id_at(index));
            self.close_binding(oldest.ok_or(full)?);
        }
        let is_udp = matches!(kind, FlowKind::Udp(_));
        if !self.claim(key) {
            return Err(DropReason::WorkerBusy);
        }
        let id = self.flows.insert(key, FlowState::new(kind, mac));
        if is_udp {
            self.udp_lru.insert(id.index)
        } else {
            self.ping_lru.insert(id.index)
        }
        self.wake_flow_at(id, self.now + timeout);
        self.actions.push_back(Action::OpenDatagram { flow: id, kind: socket, ipv6: key.child.is_ipv6() });
        Ok(id)
    }

    pub(super) fn close_binding(&mut self, id: FlowId) {
        match self.forget(id) {
            Some(FlowKind::UdpSession(session)) => {
                self.session_lru.remove(id.index);
                return self.sessions.remove(&session.ends);
            }
            Some(FlowKind::Udp(_)) => self.udp_lru.remove(id.index),
            Some(FlowKind::Ping(_)) => self.ping_lru.remove(id.index),
            _ => return,
        }
        self.actions.push_back(Action::Close { flow: id, abort: false });
    }

    /// Notes that a binding is in use.
    pub(super) fn refresh_binding(&mut self, now: Instant, id: FlowId) {
        let Some(entry) = self.flows.get_mut(id) else { return };
        let (last_active, lru) = match &mut entry.value.kind {
            FlowKind::Udp(binding) => (&mut binding.last_active, &mut self.udp_lru),
            FlowKind::UdpSession(session) => (&mut session.last_active, &mut self.session_lru),
            FlowKind::Ping(binding) => (&mut binding.last_active, &mut self.ping_lru),
            FlowKind::Tcp(_)
            | FlowKind::Relayed(_)
            | FlowKind::UdpForward(_)
            | FlowKind::Overlay(_)
            | FlowKind::DnsQuery(_) => return,
        };
        if now >= *last_active + REFRESH {
            *last_active = now;
            lru.touch(id.index);
        }
    }

    /// TTL handling of a router: one less, and an answer when it runs out.
    pub(super) fn next_hop(&mut self, now: Instant, received: &Received<'_>) -> Result<Hop, DropReason> {
        if received.ip.ttl <= 1 {
            self.tell(now, IcmpErrorKind::TimeExceeded, received.packet(), received.mac);
            return Err(DropReason::TimeExceeded);
        }
        Ok(Hop { ttl: received.ip.ttl - 1, dont_fragment: received.ip.dont_fragment })
    }

    /// Says what the child should hear about a destination that is out of reach as such.
    pub(super) fn refuse_datagram(
        &mut self,
        now: Instant,
        refusal: Refusal,
        received: &Received<'_>,
    ) -> DropReason {
        let (kind, reason) = match refusal {
            Refusal::Silent(reason) => return reason,
            Refusal::Prohibited(reason) => (IcmpErrorKind::AdminProhibited, reason),
            Refusal::Unreachable(reason) => (IcmpErrorKind::NetUnreachable, reason),
        };
        self.tell(now, kind, received.packet(), received.mac);
        reason
    }

    /// What the child hears where the gateway address is not the host's loopback.
    pub(super) fn gateway_refusal(&self) -> Refusal {
        match self.config.loopback_refusal {
            config::Refusal::Prompt => Refusal::Prohibited(DropReason::PolicyRefused),
            config::Refusal::NetUnreachable => Refusal::Unreachable(DropReason::PolicyRefused),
        }
    }
}

/// The address that stands for "any remote" in the keys of bindings.
pub(super) fn unspecified(like: IpAddr) -> SocketAddr {
    match like {
        IpAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
        IpAddr::V6(_) => SocketAddr::from(([0; 16], 0)),
    }
}

/// RFC 768 and RFC 8200 section 8.1: a checksum of zero means none in IPv4 and is forbidden in IPv6.
fn verify_udp(src: IpAddr, dst: IpAddr, udp: &Udp, datagram: &[u8]) -> Result<(), DropReason> {
    if udp.checksum == 0 && src.is_ipv4() {
        return Ok(());
    }
    let pseudo = checksum::pseudo_header_sum(src, dst, protocol::UDP, datagram.len() as u32);
    if udp.checksum == 0 || !checksum::verify(datagram, pseudo) {
        return Err(DropReason::BadChecksum);
    }
    Ok(())
}
