//! The child's end of a TCP connection: a façade over smoltcp, and the only file that names its sockets.
//!
//! # Theory of operation
//! One [`Network`] (smoltcp `Interface`, any-IP, medium IP) serves all flows; each flow has a `SocketSet` of one
//! socket, chosen by our flow table, so that a segment never walks other flows. Frames arrive one at a time
//! through [`Endpoint::ingress`]; answers that smoltcp makes on the spot (RST, challenge ACK, SACK) come back as
//! packets, everything else leaves through [`Endpoint::egress`], one frame per call, straight into the
//! caller's buffer.
//!
//! Traps of smoltcp 0.14 and what is done about them here:
//! * super-segments: the segment size for the link is our own (`mss`), for IPv4 and IPv6 alike, because the IPv6
//!   arm of `dispatch_ip` neither passes the metadata on nor sends more than the MTU. The device therefore
//!   claims an MTU of 65535 where the link segments, and the MSS option of our SYN-ACK is corrected to the
//!   link's MTU on the way out;
//! * delayed ACKs: a single super-segment starts the delay although it is many segments long, which stalls slow
//!   start for 10 ms. Delay is therefore switched off while full-sized segments arrive;
//! * LAST-ACK ignores window updates: [`Endpoint::close`] is for an empty send queue only (see `relay.rs`);
//! * TIME-WAIT answers a new SYN by a challenge ACK: the flow is removed on entering it instead
//!   ([`ChildSide::Done`]), and where bytes still wait for the host, time stands still in it, because its end
//!   throws them away;
//! * a RST in SYN-RECEIVED returns to LISTEN: reported as [`ChildSide::Gone`];
//! * CLOSED after LAST-ACK looks like CLOSED after a RST: remembered in `ended`;
//! * `poll_at` says "now" for as long as the SYN-ACK is withheld: not asked then;
//! * a SYN to a child whose old connection of the same ports is in TIME-WAIT may be answered by an ACK (its sequence
//!   number is random, not later than the old ones); the RST that smoltcp sends ends the old connection, but the SYN
//!   would be repeated a second later only: it is begun anew at once.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;

use smoltcp::iface::{Config as InterfaceConfig, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum as Caps, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::{HardwareAddress, IpListenEndpoint};

use super::rings::RingSize;
use crate::frame::{Checksum, Gso, LinkCapabilities, Offload};
use crate::offload::checksum;
use crate::packet::{ETHERNET_LEN, IPV4_LEN, IPV6_LEN, Tcp, protocol};
use crate::sys::region::{Loan, Region};
use crate::time::{Duration, Instant};

/// Longest delay of an ACK that may ride on data (RFC 9293 section 3.8.6.3 allows 500 ms).
pub(crate) const ACK_DELAY: Duration = Duration::from_millis(10);
/// MSS of a peer that does not say (RFC 9293 section 3.7.1).
const DEFAULT_MSS_V4: u16 = 536;
const DEFAULT_MSS_V6: u16 = 1220;
/// Smallest MSS that is taken seriously, as Linux and smoltcp do.
const MIN_MSS: u16 = 48;
const TCP_LEN: usize = 20;
const SEGMENT_MAX: usize = 65535;

/// What all endpoints share.
pub(crate) struct Network {
    interface: Interface,
    caps: DeviceCapabilities,
    link: LinkCapabilities,
    mtu: u16,
}

impl Network {
    pub(crate) fn new(mtu: u16, link: LinkCapabilities, seed: u64, now: Instant) -> Self {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ip;
        caps.max_transmission_unit = if link.tso4 || link.tso6 { SEGMENT_MAX } else { usize::from(mtu) };
        // Received sums are verified before a segment comes here.
        caps.checksum.ipv4 = Caps::Tx;
        caps.checksum.tcp = if link.checksum { Caps::None } else { Caps::Tx };
        caps.segmentation.tcpv4 = NonZeroUsize::new(SEGMENT_MAX).filter(|_| link.tso4);
        caps.segmentation.tcpv6 = NonZeroUsize::new(SEGMENT_MAX).filter(|_| link.tso6);
        let mut config = InterfaceConfig::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut Wire { caps: &caps, from: None, to: None }, now);
        interface.set_any_ip(true);
        Network { interface, caps, link, mtu }
    }

    /// What a closed port says to `packet`: a RST, or nothing to a RST.
    pub(crate) fn reject(&mut self, now: Instant, packet: &[u8]) -> Option<Vec<u8>> {
        self.ingress(now, packet, &mut SocketSet::new(Vec::new()))
    }

    fn ingress(&mut self, now: Instant, packet: &[u8], set: &mut SocketSet<'_>) -> Option<Vec<u8>> {
        let mut reply = Vec::new();
        let mut wire = Wire { caps: &self.caps, from: Some(packet), to: Some(Sink::Reply(&mut reply)) };
        self.interface.poll_ingress_single(now, &mut wire, set);
        if reply.is_empty() {
            return None;
        }
        self.finish(&mut reply, u16::MAX);
        // The few packets that come this way are queued as they are: with a complete checksum.
        if self.link.checksum {
            complete(&mut reply);
        }
        Some(reply)
    }

    /// Corrects what smoltcp could not know, and says what is left to the link.
    fn finish(&self, packet: &mut [u8], mss: u16) -> Offload {
        let ip_len = ip_len(packet);
        let Some(tcp) = packet.get(ip_len..).and_then(|segment| Tcp::parse(segment).ok()) else {
            return Offload::default();
        };
        if tcp.flags & Tcp::SYN != 0 {
            let link_mss = usize::from(self.mtu) - ip_len - TCP_LEN;
            tcp.set_mss(&mut packet[ip_len..], link_mss as u16);
            if !self.link.checksum {
                complete(packet);
            }
        }
        let payload = packet.len() - ip_len - tcp.header_len;
        let gso = if payload > usize::from(mss) { Gso::Tcp(mss) } else { Gso::None };
        if !self.link.checksum {
            return Offload { checksum: Checksum::Complete, gso };
        }
        let (src, dst) = addresses(packet);
        let sum = checksum::pseudo_header_sum(src, dst, protocol::TCP, (packet.len() - ip_len) as u32);
        packet[ip_len + 16..ip_len + 18].copy_from_slice(&sum.to_be_bytes());
        Offload { checksum: Checksum::Partial, gso }
    }
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").field("link", &self.link).field("mtu", &self.mtu).finish_non_exhaustive()
    }
}

/// How far the child's side has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChildSide {
    /// It may send more.
    Open,
    /// It has sent FIN; what is queued is all.
    Finished,
    /// Both directions are closed and acknowledged.
    Done,
    /// It has reset the connection, or stopped answering.
    Gone,
}

/// The child's end of one connection.
#[derive(Debug)]
pub(crate) struct Endpoint {
    sockets: Loan<SocketSet<'static>>,
    handle: SocketHandle,
    size: RingSize,
    /// Payload bytes per segment on the link.
    mss: u16,
    acks: Acks,
    held: bool,
    ended: Ended,
    /// When TIME-WAIT began.
    time_wait: Option<Instant>,
    /// Our address and the child's, where the SYN is ours.
    ends: Option<(SocketAddr, SocketAddr)>,
}

/// How a connection came to CLOSED; smoltcp does not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    No,
    /// The child acknowledged our FIN after its own.
    InOrder,
    /// We sent, or are about to send, RST.
    Aborted,
}

/// Whether ACKs may wait for data to ride on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Acks {
    Delayed,
    AtOnce,
}

impl Endpoint {
    /// An endpoint that expects the SYN `syn`, a TCP segment to `local`, and will withhold the SYN-ACK.
    pub(crate) fn new(
        network: &Network,
        region: Region,
        size: RingSize,
        local: SocketAddr,
        syn: &[u8],
        keepalive: Duration,
    ) -> Self {
        let mut endpoint = Self::prepare(region, size, keepalive, |socket| {
            socket.pause_synack(true);
            let listening =
                socket.listen(IpListenEndpoint { addr: Some(local.ip().into()), port: local.port() });
            debug_assert!(listening.is_ok(), "listening on {local}");
        });
        endpoint.mss = segment_size(network.mtu, local.is_ipv4(), syn);
        endpoint.held = true;
        endpoint
    }

    /// An endpoint that sends a SYN from `local` to `child`.
    pub(crate) fn connect(
        network: &mut Network,
        region: Region,
        size: RingSize,
        local: SocketAddr,
        child: SocketAddr,
        keepalive: Duration,
    ) -> Self {
        let mut endpoint = Self::prepare(region, size, keepalive, |socket| {
            let connecting = socket.connect(network.interface.context(), child, local);
            debug_assert!(connecting.is_ok(), "connecting {local} to {child}");
        });
        endpoint.ends = Some((local, child));
        endpoint
    }

    fn prepare(
        region: Region,
        size: RingSize,
        keepalive: Duration,
        open: impl FnOnce(&mut Socket<'static>),
    ) -> Self {
        let mut handle = None;
        let sockets = Loan::new(region, |bytes| {
            let (from_child, to_child) = bytes.split_at_mut(size.from_child);
            let mut socket = Socket::new(SocketBuffer::new(from_child), SocketBuffer::new(to_child));
            socket.set_nagle_enabled(false);
            socket.set_ack_delay(Some(ACK_DELAY));
            socket.set_keep_alive(Some(keepalive));
            socket.set_timeout(Some(keepalive + Duration::from_secs(600)));
            open(&mut socket);
            let mut set = SocketSet::new(Vec::with_capacity(1));
            handle = Some(set.add(socket));
            set
        });
        Endpoint {
            sockets,
            handle: handle.expect("the closure above has run"),
            size,
            mss: MIN_MSS,
            acks: Acks::Delayed,
            held: false,
            ended: Ended::No,
            time_wait: None,
            ends: None,
        }
    }

    /// Hands in a packet of the child with `payload_len` bytes in its segment; returns an immediate answer.
    pub(crate) fn ingress(
        &mut self,
        network: &mut Network,
        now: Instant,
        packet: &[u8],
        tcp: &Tcp,
        payload_len: usize,
    ) -> Option<Vec<u8>> {
        if payload_len >= usize::from(self.mss) {
            self.set_acks(Acks::AtOnce);
        }
        let in_last_ack = self.socket().state() == State::LastAck;
        let connecting = self.ends.filter(|_| self.socket().state() == State::SynSent);
        let reply = network.ingress(now, packet, self.sockets.get_mut());
        if let Some(ends) = connecting {
            self.after_syn(network, ends, packet, tcp, reply.is_some());
        }
        if in_last_ack && self.socket().state() == State::Closed && tcp.flags & Tcp::RST == 0 {
            self.ended = Ended::InOrder;
        }
        if self.time_wait.is_none() && self.socket().state() == State::TimeWait {
            self.time_wait = Some(now);
        }
        reply
    }

    /// Looks at what came in answer to our SYN.
    fn after_syn(
        &mut self,
        network: &mut Network,
        (local, child): (SocketAddr, SocketAddr),
        packet: &[u8],
        tcp: &Tcp,
        rejected: bool,
    ) {
        match self.socket().state() {
            State::SynSent if rejected => {
                let socket = self.socket_mut();
                socket.abort();
                let again = socket.connect(network.interface.context(), child, local);
                debug_assert!(again.is_ok(), "connecting {local} to {child} again");
            }
            State::SynSent | State::Closed => {}
            _ if tcp.flags & Tcp::SYN != 0 => {
                let syn = packet.get(ip_len(packet)..).unwrap_or_default();
                self.mss = segment_size(network.mtu, local.is_ipv4(), syn);
            }
            _ => {}
        }
    }

    /// Writes the next packet to the child into `out`, if there is one.
    pub(crate) fn egress(
        &mut self,
        network: &mut Network,
        now: Instant,
        out: &mut [u8],
    ) -> Option<(usize, Offload)> {
        let mut len = 0;
        let now = self.time_wait.map_or(now, |since| now.min(since + ACK_DELAY));
        let mut wire =
            Wire { caps: &network.caps, from: None, to: Some(Sink::Frame { out: &mut *out, len: &mut len }) };
        let result = network.interface.poll_egress(now, &mut wire, self.sockets.get_mut());
        if result == PollResult::None || len == 0 {
            self.set_acks(Acks::Delayed);
            return None;
        }
        Some((len, network.finish(&mut out[..len], self.mss)))
    }

    /// When [`Endpoint::egress`] has something to do without an event.
    pub(crate) fn poll_at(&self, network: &mut Network, now: Instant) -> Option<Instant> {
        if self.held {
            return None;
        }
        let at = network.interface.poll_at(now, self.sockets.get());
        at.filter(|&at| self.time_wait.is_none_or(|since| at <= since + ACK_DELAY))
    }

    /// Lets the SYN-ACK go.
    pub(crate) fn accept(&mut self) {
        self.held = false;
        self.socket_mut().pause_synack(false);
    }

    /// Sends FIN after what is queued, which should be nothing (see the module's text).
    pub(crate) fn close(&mut self) {
        debug_assert_eq!(self.send_queue(), 0, "LAST-ACK would ignore window updates");
        self.socket_mut().close();
    }

    /// Sends RST.
    pub(crate) fn abort(&mut self) {
        self.held = false;
        self.ended = Ended::Aborted;
        self.socket_mut().abort();
    }

    /// How far the child's side has come.
    pub(crate) fn child_side(&self) -> ChildSide {
        match self.socket().state() {
            State::Listen => ChildSide::Gone,
            State::Closed if self.ended == Ended::InOrder => ChildSide::Done,
            State::Closed => ChildSide::Gone,
            State::TimeWait => ChildSide::Done,
            State::CloseWait | State::LastAck | State::Closing => ChildSide::Finished,
            _ => ChildSide::Open,
        }
    }

    /// Whether the three-way handshake is complete.
    pub(crate) fn is_established(&self) -> bool {
        !matches!(self.socket().state(), State::Listen | State::SynSent | State::SynReceived | State::Closed)
    }

    /// Bytes of the child that wait for the host.
    pub(crate) fn recv_queue(&self) -> usize {
        self.socket().recv_queue()
    }

    /// Bytes for the child that are not acknowledged.
    pub(crate) fn send_queue(&self) -> usize {
        self.socket().send_queue()
    }

    /// Whether bytes for the child are taken at all.
    pub(crate) fn may_send(&self) -> bool {
        self.socket().may_send()
    }

    /// Ring sizes.
    pub(crate) fn ring_size(&self) -> RingSize {
        self.size
    }

    /// Lends the next contiguous bytes of the child; `take` says how many it took.
    pub(crate) fn recv<R>(&mut self, take: impl FnOnce(&[u8]) -> (usize, R)) -> Option<R> {
        self.socket_mut().recv(|bytes| take(bytes)).ok()
    }

    /// Lends contiguous room for at most `limit` bytes; `fill` says how many it wrote.
    pub(crate) fn send<R>(&mut self, limit: usize, fill: impl FnOnce(&mut [u8]) -> (usize, R)) -> Option<R> {
        self.socket_mut()
            .send(|room| {
                let limit = limit.min(room.len());
                fill(&mut room[..limit])
            })
            .ok()
    }

    /// Gives the memory of empty rings back to the kernel; says whether it did.
    pub(crate) fn release_pages(&mut self) -> bool {
        let empty = self.recv_queue() == 0 && self.send_queue() == 0;
        if empty {
            self.sockets.release_pages();
        }
        empty
    }

    /// Ends the connection without a word and returns the ring memory.
    pub(crate) fn into_region(self) -> Region {
        self.sockets.end()
    }

    fn set_acks(&mut self, acks: Acks) {
        if self.acks != acks {
            self.acks = acks;
            self.socket_mut().set_ack_delay((acks == Acks::Delayed).then_some(ACK_DELAY));
        }
    }

    fn socket(&self) -> &Socket<'static> {
        self.sockets.get().get(self.handle)
    }

    fn socket_mut(&mut self) -> &mut Socket<'static> {
        let handle = self.handle;
        self.sockets.get_mut().get_mut(handle)
    }
}

/// The device smoltcp sees: one packet in, one packet out.
struct Wire<'a> {
    caps: &'a DeviceCapabilities,
    from: Option<&'a [u8]>,
    to: Option<Sink<'a>>,
}

enum Sink<'a> {
    Reply(&'a mut Vec<u8>),
    Frame { out: &'a mut [u8], len: &'a mut usize },
}

impl Device for Wire<'_> {
    type RxToken<'t>
        = Packet<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Sink<'t>
    where
        Self: 't;

    fn receive(&mut self, _: Instant) -> Option<(Packet<'_>, Sink<'_>)> {
        let packet = self.from.take()?;
        Some((Packet(packet), self.to.as_mut()?.lend()))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sink<'_>> {
        self.to.as_mut().map(Sink::lend)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.caps.clone()
    }
}

struct Packet<'a>(&'a [u8]);

impl RxToken for Packet<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl Sink<'_> {
    fn lend(&mut self) -> Sink<'_> {
        match self {
            Sink::Reply(reply) => Sink::Reply(reply),
            Sink::Frame { out, len } => Sink::Frame { out, len },
        }
    }
}

impl TxToken for Sink<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        match self {
            Sink::Reply(reply) => {
                reply.resize(len, 0);
                f(reply)
            }
            Sink::Frame { out, len: written } => {
                *written = len;
                f(&mut out[..len])
            }
        }
    }
}

/// Payload bytes per segment that both the sender of `syn` and the link take.
fn segment_size(mtu: u16, v4: bool, syn: &[u8]) -> u16 {
    let (header, default) = if v4 { (IPV4_LEN, DEFAULT_MSS_V4) } else { (IPV6_LEN, DEFAULT_MSS_V6) };
    let said = Tcp::parse(syn).ok().and_then(|tcp| tcp.mss(syn)).filter(|&mss| mss != 0);
    said.unwrap_or(default).max(MIN_MSS).min(mtu - (header + TCP_LEN) as u16)
}

fn ip_len(packet: &[u8]) -> usize {
    if packet.first().is_some_and(|first| first >> 4 == 4) { IPV4_LEN } else { IPV6_LEN }
}

/// Addresses of a packet that smoltcp made: its header is complete and has no options.
fn addresses(packet: &[u8]) -> (IpAddr, IpAddr) {
    let v4 = |at: usize| <[u8; 4]>::try_from(&packet[at..at + 4]).unwrap_or_default();
    let v6 = |at: usize| <[u8; 16]>::try_from(&packet[at..at + 16]).unwrap_or_default();
    if ip_len(packet) == IPV4_LEN { (v4(12).into(), v4(16).into()) } else { (v6(8).into(), v6(24).into()) }
}

/// Computes the TCP checksum of a packet that smoltcp made.
fn complete(packet: &mut [u8]) {
    let ip_len = ip_len(packet);
    let (src, dst) = addresses(packet);
    let segment = &mut packet[ip_len..];
    segment[16..18].fill(0);
    let pseudo = checksum::pseudo_header_sum(src, dst, protocol::TCP, segment.len() as u32);
    let sum = checksum::checksum(segment, pseudo);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
}

/// Room for the largest frame to the child.
pub(crate) const MAX_FRAME: usize = ETHERNET_LEN + SEGMENT_MAX;
