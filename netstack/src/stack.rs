//! The engine's pure core: frames and host events in, frames and actions out.
//!
//! No file descriptor, no clock, no thread. The run loop of whoever owns a [`Stack`]:
//!
//! 1. Put in any number of facts with the **same** `now`: [`Stack::handle_frame`], [`Stack::handle_host`],
//!    [`Stack::handle_datagram`], [`Stack::handle_datagram_error`], settings.
//! 2. Then drain: [`Stack::poll_action`] until `None`, [`Stack::poll_frame`] until `None`, and again while either
//!    gave something. When every action is performed, [`Stack::release_slots`]; then read [`Stack::poll_timeout`].
//! 3. Time never goes back. When `poll_timeout` has passed, call [`Stack::handle_timeout`].
//!
//! Every input that is not handled is counted by its [`DropReason`]; nothing a packet contains makes the stack
//! panic or grow beyond [`Limits`](crate::config::Limits).

mod brief;
mod dns;
mod forward;
mod host_relay;
mod icmp;
mod overlay;
mod services;
mod settings;
mod sharing;
mod tcp;
mod udp;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::action::{Action, DatagramError, HostEvent};
use crate::arp::ArpResponder;
use crate::config::{Access, Addressing, Config, DnsService, Ipv4Mode, Ipv6Mode, Ipv6Plan, MapTarget};
use crate::dhcp::DhcpServer;
use crate::dhcp::v6::Dhcpv6Responder;
use crate::dns::{DnsForwarder, QueryId};
use crate::error::DropReason;
use crate::flow::lru::LruList;
use crate::flow::policy::{RefusalLog, Verdict};
use crate::flow::table::FlowTable;
use crate::flow::{FlowId, FlowKey, FlowPath, OpenedBy, Protocol};
use crate::forward::{SessionIndex, UdpForward};
use crate::frame::{Checksum, Frame, FrameOut, LinkCapabilities, Offload};
use crate::icmp::{self as icmp_wire, IcmpErrorKind, RateLimit};
use crate::ndp::NdpResponder;
use crate::neighbor::{Inquiries, NeighborTable};
use crate::offload::checksum;
use crate::packet::{self, Ethernet, IpPacket, Mac, ethertype, protocol};
use crate::stats::Stats;
use crate::tcp::endpoint::Network;
use crate::tcp::rings::RingPool;
use crate::tcp::{Memory, TcpFlow};
use crate::time::{Duration, Instant};
use crate::timer::TimerWheel;
use crate::udp::reassembly::{FragmentKey, MoreFragments, Reassembly};
use crate::udp::{Aliases, UdpBinding, UdpSession};

pub use self::forward::Session;
pub use self::host_relay::{RelayEnd, Relaying};
pub use self::overlay::OverlayPeer;
pub use self::settings::HostAddresses;
pub use self::sharing::{Claims, Handover};
pub use self::tcp::HostIo;
pub use self::udp::{Datagram, ToChild};

/// Smallest buffer for [`Stack::poll_frame`], in bytes.
pub const FRAME_BUFFER: usize = crate::tcp::endpoint::MAX_FRAME;

/// One flow as shown to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowInfo {
    /// Names the flow.
    pub id: FlowId,
    /// Protocol and addresses as the child sees them.
    pub key: FlowKey,
    /// Which side has opened it.
    pub opened_by: OpenedBy,
    /// How it is carried.
    pub path: FlowPath,
    /// State of a TCP flow.
    pub phase: Option<crate::tcp::Phase>,
    /// Payload bytes from the child by frames; of a relayed flow the relay knows.
    pub bytes_from_child: u64,
    /// Payload bytes to the child by frames.
    pub bytes_to_child: u64,
    /// Last packet in either direction; of a relayed flow, when it was joined.
    pub last_active: Instant,
}

/// The stack. See the [module](self) for the run loop.
#[derive(Debug)]
pub struct Stack {
    config: Config,
    link: LinkCapabilities,
    network: Network,
    rings: RingPool,
    flows: FlowTable<FlowState>,
    timers: TimerWheel,
    counts: Counts,
    udp_lru: LruList,
    sessions: SessionIndex,
    session_lru: LruList,
    overlay: Option<overlay::Overlay>,
    ping_lru: LruList,
    /// Flows whose relay has to be run, each at most once.
    relay_queue: VecDeque<FlowId>,
    /// Flows that may have frames for the child, each at most once; served in turn.
    egress_queue: VecDeque<FlowId>,
    actions: VecDeque<Action>,
    /// Frames of the engine's own making.
    control: VecDeque<Vec<u8>>,
    neighbors: NeighborTable,
    inquiries: Inquiries,
    /// Where the next search for a free source port begins.
    next_port: u16,
    arp: ArpResponder,
    ndp: NdpResponder,
    dhcp: DhcpServer,
    dhcpv6: Dhcpv6Responder,
    dns: DnsForwarder,
    dns_flows: std::collections::BTreeMap<QueryId, FlowId>,
    reassembly: Reassembly,
    icmp_limit: RateLimit,
    refusals: RefusalLog,
    /// By rule of the policy.
    policy_hits: Vec<u64>,
    ping_forbidden_told: bool,
    relaying: Relaying,
    brief: brief::BriefFlows,
    host_has_ipv6: bool,
    host_addresses: HostAddresses,
    trim_rings_at: Option<Instant>,
    fragment_id: u32,
    fragment_step: u32,
    /// Where other stacks serve the same child.
    share: Option<sharing::Share>,
    /// The latest frame that an action refers to.
    slot_in_use: Option<u32>,
    /// The `now` of the latest call, for what the polls decide.
    now: Instant,
    stats: Stats,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    tcp: usize,
    half_open: usize,
}

/// What the table holds for one flow.
#[derive(Debug)]
struct FlowState {
    kind: FlowKind,
    /// Where frames to the child go.
    mac: Mac,
    /// When its timer is set; it may be due earlier than needed, never later.
    wake_at: Option<Instant>,
    in_relay_queue: bool,
    in_egress_queue: bool,
}

#[derive(Debug)]
enum FlowKind {
    Tcp(Box<TcpFlow>),
    /// A TCP flow that is carried elsewhere.
    Relayed(self::host_relay::RelayedFlow),
    Udp(Box<UdpBinding>),
    Ping(Box<PingBinding>),
    /// A published UDP port: holds the socket that all its sessions share.
    UdpForward(UdpForward),
    /// A client of a published UDP port.
    UdpSession(Box<UdpSession>),
    /// The overlay's socket of one family.
    Overlay(overlay::OverlayFlow),
    /// A query to a host resolver.
    DnsQuery(Box<dns::Upstream>),
}

/// An echo identifier of the child, served by one ping socket.
#[derive(Debug)]
struct PingBinding {
    last_active: Instant,
    aliases: Aliases,
    bytes_from_child: u64,
    bytes_to_child: u64,
}

/// Where a packet of the child is going.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Destination {
    /// The world: the address to use on the host's side.
    Host(IpAddr),
    /// The engine's DNS address.
    Dns,
    /// The gateway address, which stands for the host's loopback but may not be used so.
    Gateway,
}

/// Why a destination is out of reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// Dropped without a word.
    Silent(DropReason),
    /// Told to the child, as a host behind a filter would.
    Prohibited(DropReason),
    /// Told to the child, as a router without a route would.
    Unreachable(DropReason),
}

/// What a received frame looks like once it is parsed.
#[derive(Debug)]
struct Received<'a> {
    frame: &'a [u8],
    slot: Option<u32>,
    offload: Offload,
    mac: Mac,
    ip: IpPacket,
}

impl Received<'_> {
    fn transport(&self) -> &[u8] {
        &self.frame[self.ip.transport.clone()]
    }

    fn packet(&self) -> &[u8] {
        &self.frame[self.ip.packet.clone()]
    }
}

impl Stack {
    /// A stack on a link that can do what `link` says. `now` is the first instant.
    pub fn new(config: Config, link: LinkCapabilities, now: Instant) -> Self {
        let region = |len| Some(crate::sys::region::Region::heap(len));
        Self::with_memory(config, link, now, Memory { region, trim: || {} })
    }

    /// Like [`Stack::new`], with memory from `memory`.
    pub(crate) fn with_memory(config: Config, link: LinkCapabilities, now: Instant, memory: Memory) -> Self {
        let limits = config.limits;
        let mut stack = Stack {
            network: Network::new(config.mtu, link, config.seed, now),
            rings: RingPool::new(limits.buffer_bytes, memory),
            flows: FlowTable::new(config.seed),
            timers: TimerWheel::new(),
            counts: Counts::default(),
            udp_lru: LruList::default(),
            sessions: SessionIndex::new(config.seed),
            session_lru: LruList::default(),
            overlay: None,
            ping_lru: LruList::default(),
            relay_queue: VecDeque::new(),
            egress_queue: VecDeque::new(),
            actions: VecDeque::new(),
            control: VecDeque::new(),
            neighbors: NeighborTable::default(),
            inquiries: Inquiries::default(),
            next_port: 0,
            arp: ArpResponder::new(config.mac, &config),
            ndp: NdpResponder::new(config.mac, &config),
            dhcp: DhcpServer::new(config.mac, &config),
            dhcpv6: Dhcpv6Responder::new(config.mac, &config),
            dns: DnsForwarder::new(&config),
            dns_flows: std::collections::BTreeMap::new(),
            reassembly: Reassembly::new(limits.reassembly_bytes, config.timeouts.reassembly),
            icmp_limit: RateLimit::default(),
            refusals: RefusalLog::default(),
            policy_hits: vec![0; config.policy.rules().len()],
            ping_forbidden_told: false,
            relaying: Relaying::Off,
            brief: brief::BriefFlows::new(config.seed),
            host_has_ipv6: false,
            host_addresses: HostAddresses::default(),
            trim_rings_at: None,
            fragment_id: config.seed as u32,
            fragment_step: 1,
            share: None,
            slot_in_use: None,
            now,
            stats: Stats::default(),
            link,
            config,
        };
        stack.dns.set_servers(&stack.config.dns.servers.clone());
        stack.apply_ipv6_offer(now);
        if let Some(overlay) = stack.config.overlay.clone() {
            stack.begin_overlay(overlay);
        }
        stack
    }

    /// Takes a frame from the child.
    ///
    /// # Errors
    /// Why it was not handled; it is counted already.
    pub fn handle_frame(&mut self, now: Instant, frame: Frame<'_>) -> Result<(), DropReason> {
        self.now = now;
        self.stats.frames.packets_from_child += 1;
        self.stats.frames.bytes_from_child += frame.bytes.len() as u64;
        let result = self.dispatch(now, frame.bytes, frame.offload, Some(frame.slot));
        self.counted(result)
    }

    /// Takes what happened to the host side of a flow. Events of flows that are gone are ignored.
    pub fn handle_host(&mut self, now: Instant, flow: FlowId, event: HostEvent) {
        self.now = now;
        match self.flows.get(flow).map(|entry| &entry.value.kind) {
            Some(FlowKind::Tcp(_)) => self.handle_tcp_host(now, flow, event),
            Some(FlowKind::DnsQuery(_)) => self.handle_dns_host(now, flow, event),
            Some(FlowKind::Udp(_) | FlowKind::Ping(_)) => self.handle_datagram_socket(flow, event),
            Some(
                FlowKind::Relayed(_)
                | FlowKind::UdpForward(_)
                | FlowKind::UdpSession(_)
                | FlowKind::Overlay(_),
            )
            | None => {}
        }
    }

    /// Takes an ICMP error, or an error of the host's own, for a datagram that the flow sent to `remote`.
    /// `quoted` is the beginning of its payload (for ping sockets, of the ICMP message).
    pub fn handle_datagram_error(
        &mut self,
        now: Instant,
        flow: FlowId,
        remote: SocketAddr,
        error: DatagramError,
        quoted: &[u8],
    ) {
        let result = match self.flows.get(flow).map(|entry| &entry.value.kind) {
            Some(FlowKind::Udp(_)) => self.udp_error_to_child(now, flow, remote, error, quoted),
            Some(FlowKind::Ping(_)) => self.ping_error_to_child(now, flow, remote, error, quoted),
            Some(FlowKind::DnsQuery(_)) => {
                self.handle_dns_failure(now, flow);
                Ok(())
            }
            Some(FlowKind::UdpForward(_)) => self.session_error_to_child(now, flow, remote, error, quoted),
            Some(FlowKind::Overlay(_)) => self.overlay_error_to_child(now, flow, remote, error, quoted),
            Some(FlowKind::Tcp(_) | FlowKind::Relayed(_) | FlowKind::UdpSession(_)) | None => Ok(()),
        };
        let _ = self.counted(result);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        while let Some(index) = self.timers.expire(now) {
            let Some(id) = self.flows.id_at(index) else { continue };
            let Some(entry) = self.flows.get_mut(id) else { continue };
            entry.value.wake_at = None;
            match entry.value.kind {
                FlowKind::Tcp(_) => self.handle_tcp_timeout(now, id),
                FlowKind::Udp(_) | FlowKind::UdpSession(_) | FlowKind::Ping(_) => {
                    self.handle_binding_timeout(now, id);
                }
                FlowKind::Relayed(_)
                | FlowKind::UdpForward(_)
                | FlowKind::Overlay(_)
                | FlowKind::DnsQuery(_) => {}
            }
        }
        for _ in 0..self.reassembly.handle_timeout(now) {
            self.stats.count_drop(DropReason::ReassemblyTimeout);
        }
        self.dns.handle_timeout(now);
        self.drain_dns();
        while let Some(message) = self.ndp.poll(now) {
            self.send_ndp(message);
        }
        self.poll_inquiries(now);
        if self.trim_rings_at.is_some_and(|at| at <= now) {
            self.rings.trim();
            self.trim_rings_at = None;
        }
    }

    /// The next thing the owner of the sockets has to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        while self.actions.is_empty() {
            let flow = self.relay_queue.pop_front()?;
            self.run_relay(flow);
        }
        self.actions.pop_front()
    }

    /// Writes the next frame for the child into `out`, which holds at least [`FRAME_BUFFER`] bytes.
    pub fn poll_frame(&mut self, now: Instant, out: &mut [u8]) -> Option<FrameOut> {
        let frame = match self.control.pop_front() {
            Some(frame) => {
                out[..frame.len()].copy_from_slice(&frame);
                FrameOut { len: frame.len(), offload: Offload::default() }
            }
            None => self.poll_tcp_frame(now, out)?,
        };
        self.count_frame_to_child(frame.len);
        Some(frame)
    }

    /// When [`Stack::handle_timeout`] has to be called at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [
            self.timers.next_deadline(),
            self.reassembly.poll_timeout(),
            self.dns.poll_timeout(),
            self.ndp.poll_timeout(),
            self.inquiries.poll_timeout(),
            self.trim_rings_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Sets the resolvers that queries are forwarded to, first choice first. Ignored where the configuration
    /// names servers.
    pub fn set_dns_servers(&mut self, servers: &[SocketAddr]) {
        if self.config.dns.servers.is_empty() {
            self.dns.set_servers(servers);
        }
    }

    /// Says whether the host has an IPv6 route to the world; matters in [`Ipv6Mode::Auto`].
    pub fn set_host_ipv6(&mut self, now: Instant, available: bool) {
        if self.host_has_ipv6 != available {
            self.host_has_ipv6 = available;
            self.apply_ipv6_offer(now);
        }
    }

    /// Whether an action that has not been taken for done refers to the frame handed in as `slot`; its buffer
    /// must not be reused until [`Stack::release_slots`].
    pub fn refers_to_slot(&self, slot: u32) -> bool {
        self.slot_in_use == Some(slot)
    }

    /// All actions that refer to frames have been performed.
    pub fn release_slots(&mut self) {
        self.slot_in_use = None;
    }

    /// Counts a frame that went to the child without passing [`Stack::poll_frame`].
    pub fn count_frame_to_child(&mut self, bytes: usize) {
        self.stats.frames.packets_to_child += 1;
        self.stats.frames.bytes_to_child += bytes as u64;
    }

    /// Counts a frame that the link did not take, or gave us spoilt.
    pub fn count_drop(&mut self, reason: DropReason) {
        self.stats.count_drop(reason);
    }

    /// Counters since the stack was made.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What the link does for the stack.
    pub fn link(&self) -> LinkCapabilities {
        self.link
    }

    /// Bytes of ring memory that TCP flows may use at this moment, those of other workers included.
    pub fn buffer_bytes(&self) -> usize {
        self.rings.lent()
    }

    /// Whether bytes that the child has sent by frames, or may still be sending, have not reached the host's kernel.
    pub fn has_undelivered(&self) -> bool {
        self.flows.iter().any(|(_, entry)| match &entry.value.kind {
            FlowKind::Tcp(tcp) => tcp.has_undelivered(),
            _ => false,
        })
    }

    /// All flows of the child, in no particular order.
    pub fn flows(&self) -> impl Iterator<Item = FlowInfo> + '_ {
        self.flows.iter().filter_map(|(id, entry)| {
            let (phase, bytes_from_child, bytes_to_child, last_active) = match &entry.value.kind {
                FlowKind::Tcp(tcp) => {
                    (Some(tcp.phase), tcp.bytes_from_child, tcp.bytes_to_child, tcp.last_active)
                }
                FlowKind::Relayed(flow) => (Some(crate::tcp::Phase::Open), 0, 0, flow.since),
                FlowKind::Udp(udp) => (None, udp.bytes_from_child, udp.bytes_to_child, udp.last_active),
                FlowKind::UdpSession(udp) => {
                    (None, udp.bytes_from_child, udp.bytes_to_child, udp.last_active)
                }
                FlowKind::Ping(ping) => (None, ping.bytes_from_child, ping.bytes_to_child, ping.last_active),
                FlowKind::Overlay(flow) if flow.bytes_from_child + flow.bytes_to_child == 0 => return None,
                FlowKind::Overlay(flow) => {
                    (None, flow.bytes_from_child, flow.bytes_to_child, flow.last_active)
                }
                FlowKind::UdpForward(_) | FlowKind::DnsQuery(_) => return None,
            };
            let opened_by = match &entry.value.kind {
                FlowKind::Tcp(tcp) => tcp.opened_by,
                FlowKind::UdpSession(_) => OpenedBy::Host,
                _ => OpenedBy::Child,
            };
            let relayed = matches!(entry.value.kind, FlowKind::Relayed(_));
            let path = if relayed { FlowPath::Relay } else { FlowPath::Tap };
            let key = entry.key;
            Some(FlowInfo { id, key, opened_by, path, phase, bytes_from_child, bytes_to_child, last_active })
        })
    }

    /// What the limits count is what the table holds.
    ///
    /// # Panics
    /// Where it is not.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn assert_counts(&self) {
        let mut counts = (0, 0, 0);
        for (_, entry) in self.flows.iter() {
            match &entry.value.kind {
                FlowKind::Tcp(tcp) => {
                    counts.0 += 1;
                    counts.1 += usize::from(tcp.is_half_open());
                }
                FlowKind::Relayed(_) => {
                    counts.0 += 1;
                    counts.2 += 1;
                }
                _ => {}
            }
        }
        assert_eq!((self.counts.tcp, self.counts.half_open, self.stats.relay.active), counts);
    }

    fn counted(&mut self, result: Result<(), DropReason>) -> Result<(), DropReason> {
        if let Err(reason) = result {
            self.stats.count_drop(reason);
        }
        result
    }

    fn dispatch(
        &mut self,
        now: Instant,
        frame: &[u8],
        offload: Offload,
        slot: Option<u32>,
    ) -> Result<(), DropReason> {
        let ethernet = Ethernet::parse(frame)?;
        if ethernet.dst != self.config.mac && ethernet.dst[0] & 1 == 0 {
            return Err(DropReason::NotForUs);
        }
        match ethernet.ethertype {
            ethertype::ARP | ethertype::IPV4 if self.config.ipv4_mode == Ipv4Mode::Off => {
                return Err(DropReason::Ipv4Off);
            }
            ethertype::ARP => return self.handle_arp(frame),
            ethertype::IPV4 | ethertype::IPV6 => {}
            _ => return Err(DropReason::UnknownEtherType),
        }
        let ip = IpPacket::parse(frame, ethernet.ethertype)?;
        let received = Received { frame, slot, offload, mac: ethernet.src, ip };
        self.handle_ip(now, &received)
    }

    fn handle_ip(&mut self, now: Instant, received: &Received<'_>) -> Result<(), DropReason> {
        match received.ip.fragment {
            Some(fragment) if fragment.offset != 0 || fragment.more => self.reassemble(now, received),
            _ => self.handle_packet(now, received),
        }
    }

    fn handle_packet(&mut self, now: Instant, received: &Received<'_>) -> Result<(), DropReason> {
        let ip = &received.ip;
        if received.offload.checksum == Checksum::Complete && ip.protocol != protocol::UDP {
            verify_transport(ip, received.transport())?;
        }
        match ip.protocol {
            // smoltcp does not know all extension headers.
            protocol::TCP if ip.src.is_ipv6() && ip.transport.start != ip.packet.start + packet::IPV6_LEN => {
                self.handle_bare(now, received, received.transport())
            }
            protocol::TCP => {
                self.check_source(received)?;
                self.tcp_from_child(now, received)
            }
            protocol::UDP => self.udp_from_child(now, received),
            protocol::ICMP if ip.src.is_ipv4() => self.icmp_from_child(now, received),
            protocol::ICMPV6 if ip.src.is_ipv6() => self.icmpv6_from_child(now, received),
            _ if self.is_for_first(received)? => Ok(()),
            _ => {
                self.check_source(received)?;
                self.tell(now, IcmpErrorKind::ProtocolUnreachable, received.packet(), received.mac);
                Err(DropReason::UnknownProtocol)
            }
        }
    }

    fn reassemble(&mut self, now: Instant, received: &Received<'_>) -> Result<(), DropReason> {
        if self.is_for_first(received)? {
            return Ok(());
        }
        self.check_source(received)?;
        let ip = &received.ip;
        let Some(fragment) = ip.fragment else { return Ok(()) };
        let key = FragmentKey { src: ip.src, dst: ip.dst, id: fragment.id, protocol: ip.protocol };
        let more = if fragment.more { MoreFragments::More } else { MoreFragments::Last };
        let inserted = self.reassembly.insert(now, key, fragment.offset, more, received.transport());
        for _ in 0..self.reassembly.take_evicted() {
            self.stats.count_drop(DropReason::ReassemblyFull);
        }
        let Some(payload) = inserted? else { return Ok(()) };
        // However its last fragment came here, the whole goes to whoever has its flow.
        self.set_handed(false);
        self.handle_bare(now, received, &payload)
    }

    /// Takes `payload` as if it had come behind a plain IP header.
    fn handle_bare(
        &mut self,
        now: Instant,
        received: &Received<'_>,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        let ip = &received.ip;
        let header = packet::IpHeader { src: ip.src, dst: ip.dst, protocol: ip.protocol, ttl: ip.ttl };
        // The IPv4 length field counts the header, the IPv6 one does not.
        let counted = if ip.src.is_ipv4() { packet::IPV4_LEN } else { 0 };
        if counted + payload.len() > usize::from(u16::MAX) {
            return Err(DropReason::BadFragment);
        }
        let frame = packet::ip_frame(received.mac, self.config.mac, &header, payload);
        let mut ip = IpPacket::parse(&frame, header.ethertype())?;
        let reassembled = received.ip.fragment.is_some_and(|fragment| fragment.offset != 0 || fragment.more);
        ip.dont_fragment = received.ip.dont_fragment && !reassembled;
        let offload = if reassembled { Offload::default() } else { received.offload };
        let whole = Received { frame: &frame, slot: None, offload, mac: received.mac, ip };
        self.handle_packet(now, &whole)
    }

    /// A source that may speak beyond the link, which also tells us where it lives.
    fn check_source(&mut self, received: &Received<'_>) -> Result<(), DropReason> {
        let valid = match received.ip.src {
            IpAddr::V4(src) => {
                let own = [self.config.ipv4.gateway, self.config.ipv4.dns];
                !(src.is_unspecified()
                    || src.is_loopback()
                    || src.is_multicast()
                    || src.is_broadcast()
                    || self.config.ipv4.subnet.is_broadcast(src)
                    || own.contains(&src))
            }
            IpAddr::V6(src) => {
                let own = [self.config.ipv6.gateway, self.config.ipv6.dns];
                !(src.is_unspecified() || src.is_loopback() || src.is_multicast() || own.contains(&src))
            }
        };
        if !valid {
            return Err(DropReason::InvalidSource);
        }
        self.learn_neighbor(received.ip.src, received.mac);
        Ok(())
    }

    /// Where a TCP segment or UDP datagram to `dst` goes, before any rule is asked.
    fn destination_at(&self, dst: SocketAddr) -> Result<Destination, Refusal> {
        let is_dns = dst.port() == 53
            && self.config.dns_addresses().any(|address| address == dst.ip())
            && (dst.is_ipv4() || self.is_ipv6_offered());
        match self.config.dns.service {
            _ if !is_dns => self.destination(dst.ip()),
            DnsService::On => Ok(Destination::Dns),
            DnsService::Off => Err(Refusal::Silent(DropReason::DnsOff)),
        }
    }

    /// Where a packet to `dst` goes, whatever its port.
    fn destination(&self, dst: IpAddr) -> Result<Destination, Refusal> {
        if let Some(map) = self.config.maps.iter().find(|map| map.child == dst)
            && (dst.is_ipv4() || self.is_ipv6_offered())
        {
            return self.mapped(dst, map.host);
        }
        match dst {
            IpAddr::V4(dst) => self.destination_v4(dst),
            IpAddr::V6(dst) => self.destination_v6(dst),
        }
    }

    fn mapped(&self, child: IpAddr, target: MapTarget) -> Result<Destination, Refusal> {
        let address = match (target, child) {
            (MapTarget::Loopback, IpAddr::V4(_)) => Some(Ipv4Addr::LOCALHOST.into()),
            (MapTarget::Loopback, IpAddr::V6(_)) => Some(Ipv6Addr::LOCALHOST.into()),
            (MapTarget::HostAddress, IpAddr::V4(_)) => self.host_addresses.v4.map(IpAddr::from),
            (MapTarget::HostAddress, IpAddr::V6(_)) => self.host_addresses.v6.map(IpAddr::from),
            (MapTarget::Address(address), _) => Some(address),
        };
        address.map(Destination::Host).ok_or(Refusal::Unreachable(DropReason::NoHostAddress))
    }

    /// Whether the gateway address is a host like any other: the router of the host, who is not ours.
    fn is_gateway_foreign(&self) -> bool {
        self.config.addressing == Addressing::Copied && self.config.host_loopback == Access::Deny
    }

    /// Whether the engine itself answers pings to `dst`.
    fn answers_echo(&self, dst: IpAddr) -> bool {
        let link_local = matches!(dst, IpAddr::V6(v6) if v6.is_unicast_link_local());
        dst == IpAddr::V6(Ipv6Plan::GATEWAY_LINK_LOCAL)
            || dst == self.gateway(dst.is_ipv4()) && (link_local || !self.is_gateway_foreign())
    }

    fn destination_v4(&self, dst: Ipv4Addr) -> Result<Destination, Refusal> {
        let plan = &self.config.ipv4;
        if dst == plan.dns && !dst.is_unspecified() {
            return Ok(Destination::Dns);
        }
        if dst == plan.gateway && !self.is_gateway_foreign() {
            return Ok(match self.config.host_loopback {
                Access::Allow => Destination::Host(Ipv4Addr::LOCALHOST.into()),
                Access::Deny => Destination::Gateway,
            });
        }
        if dst.is_multicast() || dst.is_broadcast() || plan.subnet.is_broadcast(dst) {
            return Err(Refusal::Silent(DropReason::Multicast));
        }
        // 0/8 "this network" reaches the host's loopback on Linux; 240/4 is reserved.
        let nobody = self.is_nobody(plan.subnet.contains(dst), dst == plan.child);
        if dst.octets()[0] == 0 || dst.is_loopback() || dst.octets()[0] >= 240 || nobody {
            return Err(Refusal::Silent(DropReason::InvalidDestination));
        }
        if dst.is_link_local() && self.config.link_local == Access::Deny {
            return Err(Refusal::Prohibited(DropReason::PolicyRefused));
        }
        Ok(Destination::Host(dst.into()))
    }

    fn destination_v6(&self, dst: Ipv6Addr) -> Result<Destination, Refusal> {
        let plan = &self.config.ipv6;
        if dst.is_multicast() {
            return Err(Refusal::Silent(DropReason::Multicast));
        }
        if !self.is_ipv6_offered() {
            return Err(Refusal::Unreachable(DropReason::Ipv6Off));
        }
        if dst == plan.dns && !dst.is_unspecified() {
            return Ok(Destination::Dns);
        }
        if dst == plan.gateway && !self.is_gateway_foreign() {
            return Ok(match self.config.host_loopback {
                Access::Allow => Destination::Host(Ipv6Addr::LOCALHOST.into()),
                Access::Deny => Destination::Gateway,
            });
        }
        // ::/96 and ::ffff:0:0/96 hold IPv4 addresses, the loopback among them, and are not for the wire
        // (RFC 4291 section 2.5.5); link-local addresses mean nothing beyond this link.
        let holds_v4 = matches!(dst.segments(), [0, 0, 0, 0, 0, 0 | 0xffff, _, _]);
        let nobody = self.is_nobody(plan.subnet.contains(dst), dst == plan.child);
        if holds_v4 || dst.is_unicast_link_local() || nobody {
            return Err(Refusal::Silent(DropReason::InvalidDestination));
        }
        Ok(Destination::Host(dst.into()))
    }

    /// Whether an address of the subnet that is not the engine's is nobody's on the host's side.
    fn is_nobody(&self, in_subnet: bool, is_child: bool) -> bool {
        is_child || (in_subnet && self.config.addressing == Addressing::Subnet)
    }

    /// Asks the egress rules. `dst` is what the child wrote.
    fn check_policy(&mut self, now: Instant, protocol: Protocol, dst: SocketAddr) -> Result<(), DropReason> {
        let rule = self.config.policy.deciding_rule(protocol, dst);
        if let Some(hits) = rule.and_then(|rule| self.policy_hits.get_mut(rule)) {
            *hits += 1;
        }
        match self.config.policy.verdict(rule) {
            Verdict::Allow => Ok(()),
            Verdict::Deny { rule } => {
                if let Some(suppressed) = self.refusals.should_log(now, rule) {
                    log::warn!(
                        "policy rule {} refuses {protocol:?} to {dst}{}",
                        rule + 1,
                        if suppressed > 0 { format!(" ({suppressed} more like it)") } else { String::new() }
                    );
                }
                Err(DropReason::PolicyRefused)
            }
        }
    }

    /// The address the child knows a host-side address by.
    fn address_for_child(&self, address: IpAddr) -> IpAddr {
        match address {
            IpAddr::V4(v4) if v4.is_loopback() => self.config.ipv4.gateway.into(),
            IpAddr::V6(v6) if v6.is_loopback() => self.config.ipv6.gateway.into(),
            other => other,
        }
    }

    fn gateway(&self, v4: bool) -> IpAddr {
        if v4 { self.config.ipv4.gateway.into() } else { self.config.ipv6.gateway.into() }
    }

    fn is_ipv6_offered(&self) -> bool {
        match self.config.ipv6_mode {
            Ipv6Mode::On => true,
            Ipv6Mode::Off => false,
            Ipv6Mode::Auto => self.host_has_ipv6,
        }
    }

    /// Tells the child by ICMP why `original`, its IP packet, was not delivered; from the gateway.
    fn tell(&mut self, now: Instant, kind: IcmpErrorKind, original: &[u8], mac: Mac) {
        let Some(first) = original.first() else { return };
        let from = self.gateway(first >> 4 == 4);
        self.tell_from(now, kind, from, original, mac);
    }

    /// Like [`Stack::tell`], on behalf of `from`.
    fn tell_from(&mut self, now: Instant, kind: IcmpErrorKind, from: IpAddr, original: &[u8], mac: Mac) {
        if !icmp_wire::may_report(original) || !self.icmp_limit.take(now) {
            return;
        }
        let (ethertype, error) = match (from, original.first().map(|first| first >> 4)) {
            (IpAddr::V4(from), Some(4)) if original.len() >= packet::IPV4_LEN => {
                let to = Ipv4Addr::new(original[12], original[13], original[14], original[15]);
                (ethertype::IPV4, icmp_wire::error_v4(kind, from, to, original))
            }
            (IpAddr::V6(from), Some(6)) if original.len() >= packet::IPV6_LEN => {
                let to: [u8; 16] = original[8..24].try_into().unwrap_or_default();
                (ethertype::IPV6, icmp_wire::error_v6(kind, from, to.into(), original))
            }
            _ => return,
        };
        let frame = packet::ethernet_frame(self.config.mac, mac, ethertype, &error);
        self.send_control(frame);
    }

    fn send_control(&mut self, frame: Vec<u8>) {
        if self.control.len() < self.config.limits.to_child_frames {
            self.control.push_back(frame);
        } else {
            self.stats.count_drop(DropReason::ToChildQueueFull);
        }
    }

    /// Sets the flow's timer unless it is due earlier anyway (then it is set anew when it fires).
    fn wake_flow_at(&mut self, id: FlowId, at: Instant) {
        let Some(entry) = self.flows.get_mut(id) else { return };
        if entry.value.wake_at.is_none_or(|set| at < set) {
            entry.value.wake_at = Some(at);
            self.timers.schedule(id.index, at);
        }
    }

    /// Takes a flow out of the table and its timer off the wheel.
    fn forget(&mut self, id: FlowId) -> Option<FlowKind> {
        self.give_up_claim(id);
        let entry = self.flows.remove(id)?;
        self.timers.cancel(id.index);
        Some(entry.value.kind)
    }

    fn trim_rings_later(&mut self, now: Instant) {
        if self.trim_rings_at.is_none() && self.rings.has_spare() {
            self.trim_rings_at = Some(now + Duration::from_secs(2));
        }
    }
}

/// Verifies a transport checksum that a sender has completed.
fn verify_transport(ip: &IpPacket, transport: &[u8]) -> Result<(), DropReason> {
    let pseudo = match ip.protocol {
        protocol::ICMP => 0,
        protocol => checksum::pseudo_header_sum(ip.src, ip.dst, protocol, transport.len() as u32),
    };
    if matches!(ip.protocol, protocol::TCP | protocol::UDP | protocol::ICMP | protocol::ICMPV6)
        && !checksum::verify(transport, pseudo)
    {
        return Err(DropReason::BadChecksum);
    }
    Ok(())
}

impl FlowState {
    fn new(kind: FlowKind, mac: Mac) -> Self {
        FlowState { kind, mac, wake_at: None, in_relay_queue: false, in_egress_queue: false }
    }
}

#[cfg(test)]
mod tests;
