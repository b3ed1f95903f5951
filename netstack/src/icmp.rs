//! ICMP (RFC 792) and ICMPv6 (RFC 4443) error messages to the child.
//!
//! # Theory of operation
//! *Goal.* The child's kernel learns what became of its packets exactly as from a router: unreachable, too
//! big, time exceeded. An error quotes the packet it is about, so that the kernel finds the socket.
//!
//! *Data flow.* Where the packet is at hand (policy, TTL), it is quoted. Where the host's kernel reports an
//! error about a datagram sent earlier (`IP_RECVERR`), the quoted packet is rebuilt from the flow's addresses
//! by [`udp_original`] or [`echo_original`]. [`may_report`] decides whether an error is allowed at all,
//! [`RateLimit`] how many.
//!
//! *Not handled.* Redirects, source quench, multi-part messages (RFC 4884). The stack decides who the error
//! comes from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::action::DatagramErrorKind;
use crate::offload::checksum;
use crate::time::Instant;

/// What an error says; becomes type and code of either protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IcmpErrorKind {
    /// No route: 3/0; ICMPv6 1/0.
    NetUnreachable,
    /// No such host: 3/1; ICMPv6 1/3.
    HostUnreachable,
    /// The destination does not know the transport: 3/2; ICMPv6 4/1 with the pointer at the next header.
    ProtocolUnreachable,
    /// Nothing listens there: 3/3; ICMPv6 1/4.
    PortUnreachable,
    /// A filter forbids it: 3/13 (RFC 1812 section 5.2.7.1); ICMPv6 1/1.
    AdminProhibited,
    /// Longer than the next link takes: 3/4 (RFC 1191); ICMPv6 2/0.
    TooBig {
        /// MTU of that link in bytes; 16 bits with IPv4.
        mtu: u32,
    },
    /// TTL or hop limit ran out: 11/0; ICMPv6 3/0.
    TimeExceeded,
    /// Not all fragments came in time: 11/1; ICMPv6 3/1.
    ReassemblyTimeExceeded,
    /// Any other, passed on as the host received it.
    Other {
        /// Type of the address family's protocol.
        icmp_type: u8,
        /// Code.
        code: u8,
    },
}

impl From<DatagramErrorKind> for IcmpErrorKind {
    fn from(kind: DatagramErrorKind) -> Self {
        match kind {
            DatagramErrorKind::PortUnreachable => IcmpErrorKind::PortUnreachable,
            DatagramErrorKind::HostUnreachable => IcmpErrorKind::HostUnreachable,
            DatagramErrorKind::NetUnreachable => IcmpErrorKind::NetUnreachable,
            DatagramErrorKind::Prohibited => IcmpErrorKind::AdminProhibited,
            DatagramErrorKind::TooBig(mtu) => IcmpErrorKind::TooBig { mtu },
            DatagramErrorKind::TimeExceeded => IcmpErrorKind::TimeExceeded,
            DatagramErrorKind::Other(icmp_type, code) => IcmpErrorKind::Other { icmp_type, code },
        }
    }
}

/// A whole IPv4 packet with an ICMP error about `original`, the child's IPv4 packet. As much of it is quoted
/// as 576 bytes allow (RFC 1812 section 4.3.2.3).
pub fn error_v4(kind: IcmpErrorKind, from: Ipv4Addr, to: Ipv4Addr, original: &[u8]) -> Vec<u8> {
    let (icmp_type, code, rest) = match kind {
        IcmpErrorKind::NetUnreachable => (3, 0, 0),
        IcmpErrorKind::HostUnreachable => (3, 1, 0),
        IcmpErrorKind::ProtocolUnreachable => (3, 2, 0),
        IcmpErrorKind::PortUnreachable => (3, 3, 0),
        IcmpErrorKind::AdminProhibited => (3, 13, 0),
        IcmpErrorKind::TooBig { mtu } => (3, 4, mtu.min(u32::from(u16::MAX))),
        IcmpErrorKind::TimeExceeded => (11, 0, 0),
        IcmpErrorKind::ReassemblyTimeExceeded => (11, 1, 0),
        IcmpErrorKind::Other { icmp_type, code } => (icmp_type, code, 0),
    };
    let message = error_message(icmp_type, code, rest, original, MAX_ERROR_V4 - V4_HEADER, 0);
    let mut packet = header_v4(from, to, ICMP, OWN_TTL, message.len());
    packet.extend_from_slice(&message);
    packet
}

/// A whole IPv6 packet with an ICMPv6 error about `original`, the child's IPv6 packet. As much of it is
/// quoted as the minimum MTU of 1280 bytes allows (RFC 4443 section 2.4 c).
pub fn error_v6(kind: IcmpErrorKind, from: Ipv6Addr, to: Ipv6Addr, original: &[u8]) -> Vec<u8> {
    let (icmp_type, code, rest) = match kind {
        IcmpErrorKind::NetUnreachable => (1, 0, 0),
        IcmpErrorKind::HostUnreachable => (1, 3, 0),
        IcmpErrorKind::ProtocolUnreachable => (4, 1, v6::NEXT_HEADER as u32),
        IcmpErrorKind::PortUnreachable => (1, 4, 0),
        IcmpErrorKind::AdminProhibited => (1, 1, 0),
        IcmpErrorKind::TooBig { mtu } => (2, 0, mtu),
        IcmpErrorKind::TimeExceeded => (3, 0, 0),
        IcmpErrorKind::ReassemblyTimeExceeded => (3, 1, 0),
        IcmpErrorKind::Other { icmp_type, code } => (icmp_type, code, 0),
    };
    let room = MAX_ERROR_V6 - V6_HEADER;
    let len = room.min(ICMP_HEADER + original.len());
    let pseudo = checksum::pseudo_header_sum(from.into(), to.into(), ICMPV6, len as u32);
    let message = error_message(icmp_type, code, rest, original, room, pseudo);
    let mut packet = header_v6(from, to, ICMPV6, OWN_TTL, message.len());
    packet.extend_from_slice(&message);
    packet
}

/// Whether an ICMP error about this packet of the child is allowed: RFC 1122 section 3.2.2 and RFC 4443
/// section 2.4 e. Never about ICMP errors, non-first fragments, packets to multicast or broadcast, packets
/// from an address that names no single host, nor about what cannot be read. A subnet's directed broadcast
/// looks like any address here.
pub fn may_report(original: &[u8]) -> bool {
    match original.first().map(|byte| byte >> 4) {
        Some(4) => may_report_v4(original),
        Some(6) => may_report_v6(original),
        _ => false,
    }
}

/// The IP and UDP headers of a datagram that is no longer at hand, with as much of its payload as is known,
/// to be quoted in an error. `payload_len` is that of the whole datagram in bytes. The UDP checksum is that
/// of the datagram where `payload_prefix` is all of it, else 0: it cannot be known, and no kernel looks.
pub fn udp_original(
    src: SocketAddr,
    dst: SocketAddr,
    ttl: u8,
    payload_prefix: &[u8],
    payload_len: usize,
) -> Vec<u8> {
    let len = u16::try_from(UDP_HEADER + payload_len).unwrap_or(u16::MAX);
    let mut datagram = Vec::with_capacity(UDP_HEADER + payload_prefix.len());
    for word in [src.port(), dst.port(), len, 0] {
        datagram.extend_from_slice(&word.to_be_bytes());
    }
    datagram.extend_from_slice(payload_prefix);
    let (src, dst) = same_family(src.ip(), dst.ip());
    if payload_prefix.len() == payload_len {
        let pseudo = checksum::pseudo_header_sum(src, dst, UDP, u32::from(len));
        let value = match checksum::checksum(&datagram, pseudo) {
            0 => 0xffff,
            value => value,
        };
        datagram[6..8].copy_from_slice(&value.to_be_bytes());
    }
    original(src, dst, [UDP, UDP], ttl, &datagram, usize::from(len))
}

/// The packet of an echo request that is no longer at hand, to be quoted in an error. `message` is as much as
/// is known of it, from its type on, and holds the child's identifier; `message_len` is the length of all of
/// it in bytes. The checksum is computed where `message` is all of it, and left as it is otherwise.
pub fn echo_original(src: IpAddr, dst: IpAddr, ttl: u8, message: &[u8], message_len: usize) -> Vec<u8> {
    let (src, dst) = same_family(src, dst);
    let pseudo = match src {
        IpAddr::V4(_) => 0,
        IpAddr::V6(_) => checksum::pseudo_header_sum(src, dst, ICMPV6, message_len as u32),
    };
    let mut message = message.to_vec();
    if message.len() == message_len
        && let Some(field) = message.get_mut(2..4)
    {
        field.fill(0);
        let value = checksum::checksum(&message, pseudo);
        message[2..4].copy_from_slice(&value.to_be_bytes());
    }
    original(src, dst, [ICMP, ICMPV6], ttl, &message, message_len)
}

/// Token bucket for errors of our own making, as RFC 4443 section 2.4 f demands and RFC 1812 section 4.3.2.8
/// advises.
#[derive(Clone, Debug)]
pub struct RateLimit {
    per_second: u64,
    /// In millionths of a message.
    capacity: u64,
    tokens: u64,
    refilled: Option<Instant>,
}

impl Default for RateLimit {
    /// 1000 messages per second, bursts of 1000: the link is local, all there is to bound is our own work.
    fn default() -> Self {
        RateLimit::new(1000, 1000)
    }
}

impl RateLimit {
    /// `per_second` messages in the long run, `burst` at once.
    pub fn new(per_second: u32, burst: u32) -> Self {
        let capacity = u64::from(burst) * MESSAGE;
        RateLimit { per_second: per_second.into(), capacity, tokens: capacity, refilled: None }
    }

    /// Takes a token. Whether there was one: the message may be sent.
    pub fn take(&mut self, now: Instant) -> bool {
        let last = self.refilled.replace(now).unwrap_or(now);
        let micros = u64::try_from(now.total_micros().saturating_sub(last.total_micros())).unwrap_or(0);
        // A token per second is one millionth per microsecond.
        let earned = micros.saturating_mul(self.per_second);
        self.tokens = self.tokens.saturating_add(earned).min(self.capacity);
        let Some(left) = self.tokens.checked_sub(MESSAGE) else {
            return false;
        };
        self.tokens = left;
        true
    }
}

fn error_message(icmp_type: u8, code: u8, rest: u32, original: &[u8], room: usize, pseudo: u16) -> Vec<u8> {
    let quoted = original.get(..room - ICMP_HEADER).unwrap_or(original);
    let mut message = Vec::with_capacity(ICMP_HEADER + quoted.len());
    message.extend_from_slice(&[icmp_type, code, 0, 0]);
    message.extend_from_slice(&rest.to_be_bytes());
    message.extend_from_slice(quoted);
    let value = checksum::checksum(&message, pseudo);
    message[2..4].copy_from_slice(&value.to_be_bytes());
    message
}

/// `protocols` are IPv4's and IPv6's; `len` may exceed what is left of the payload.
fn original(src: IpAddr, dst: IpAddr, protocols: [u8; 2], ttl: u8, payload: &[u8], len: usize) -> Vec<u8> {
    let mut packet = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => header_v4(src, dst, protocols[0], ttl, len),
        (src, dst) => header_v6(v6_of(src), v6_of(dst), protocols[1], ttl, len),
    };
    packet.extend_from_slice(payload);
    packet
}

fn header_v4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, ttl: u8, payload_len: usize) -> Vec<u8> {
    const DONT_FRAGMENT: u8 = 0x40;
    let total = u16::try_from(V4_HEADER + payload_len).unwrap_or(u16::MAX);
    let [len0, len1] = total.to_be_bytes();
    // With "don't fragment" the identification may be anything (RFC 6864).
    let mut header = vec![0x45, 0, len0, len1, 0, 0, DONT_FRAGMENT, 0, ttl, protocol, 0, 0];
    header.extend_from_slice(&src.octets());
    header.extend_from_slice(&dst.octets());
    let value = checksum::checksum(&header, 0);
    header[10..12].copy_from_slice(&value.to_be_bytes());
    header
}

fn header_v6(src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, ttl: u8, payload_len: usize) -> Vec<u8> {
    let [len0, len1] = u16::try_from(payload_len).unwrap_or(u16::MAX).to_be_bytes();
    let mut header = vec![0x60, 0, 0, 0, len0, len1, protocol, ttl];
    header.extend_from_slice(&src.octets());
    header.extend_from_slice(&dst.octets());
    header
}

/// A flow has addresses of one family; should they differ, IPv6 can write both.
fn same_family(src: IpAddr, dst: IpAddr) -> (IpAddr, IpAddr) {
    match src.is_ipv4() == dst.is_ipv4() {
        true => (src, dst),
        false => (v6_of(src).into(), v6_of(dst).into()),
    }
}

fn v6_of(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

fn may_report_v4(packet: &[u8]) -> bool {
    let Some(header) = packet.first_chunk::<V4_HEADER>() else {
        return false;
    };
    let [.., s0, s1, s2, s3, d0, d1, d2, d3] = *header;
    let (src, dst) = (Ipv4Addr::new(s0, s1, s2, s3), Ipv4Addr::new(d0, d1, d2, d3));
    let is_host = |a: Ipv4Addr| !(a.is_multicast() || a.is_broadcast() || a.octets()[0] >= 240);
    if !is_host(dst) || !is_host(src) || src.octets()[0] == 0 || src.is_loopback() {
        return false;
    }
    let fragment_offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    if fragment_offset != 0 {
        return false;
    }
    if header[v4::PROTOCOL] != ICMP {
        return true;
    }
    // Queries only: an unknown type might be an error.
    let header_len = usize::from(header[0] & 0x0f) * 4;
    matches!(packet.get(header_len.max(V4_HEADER)), Some(0 | 8..=10 | 13..=18))
}

fn may_report_v6(packet: &[u8]) -> bool {
    let Some(header) = packet.first_chunk::<V6_HEADER>() else {
        return false;
    };
    let address = |range| <[u8; 16]>::try_from(&header[range]).map(Ipv6Addr::from);
    let (Ok(src), Ok(dst)) = (address(v6::SRC), address(v6::DST)) else {
        return false;
    };
    if dst.is_multicast() || src.is_multicast() || src.is_unspecified() || src.is_loopback() {
        return false;
    }
    let mut next_header = header[v6::NEXT_HEADER];
    let mut rest = &packet[V6_HEADER..];
    // Every round consumes 8 bytes or more.
    loop {
        let len = match (next_header, rest) {
            (ICMPV6, _) => return rest.first().is_some_and(|&kind| kind >= 128 && kind != REDIRECT_V6),
            (HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS, [_, len, ..]) => 8 + usize::from(*len) * 8,
            (FRAGMENT, [_, _, o0, o1, ..]) if u16::from_be_bytes([*o0, *o1]) >> 3 == 0 => 8,
            (HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | FRAGMENT, _) => return false,
            _ => return true,
        };
        let Some((extension, behind)) = rest.split_at_checked(len) else {
            return false;
        };
        next_header = extension[0];
        rest = behind;
    }
}

const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;
const ICMP_HEADER: usize = 8;
const MAX_ERROR_V4: usize = 576;
const MAX_ERROR_V6: usize = 1280;
const OWN_TTL: u8 = 64;

const HOP_BY_HOP: u8 = 0;
const ICMP: u8 = 1;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const ICMPV6: u8 = 58;
const DESTINATION_OPTIONS: u8 = 60;

/// ICMPv6 type of a redirect.
const REDIRECT_V6: u8 = 137;

/// One message in the units of [`RateLimit`].
const MESSAGE: u64 = 1_000_000;

mod v4 {
    pub(super) const PROTOCOL: usize = 9;
}

mod v6 {
    use std::ops::Range;

    pub(super) const NEXT_HEADER: usize = 6;
    pub(super) const SRC: Range<usize> = 8..24;
    pub(super) const DST: Range<usize> = 24..40;
}

#[cfg(test)]
mod tests {
    use etherparse::{
        Icmpv4Type, Icmpv6Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice, icmpv4, icmpv6,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::time::Duration;

    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 42, 2);
    const CHILD: Ipv4Addr = Ipv4Addr::new(10, 0, 42, 100);
    const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd42, 0x10, 0x42, 0, 0, 0, 0, 2);
    const CHILD6: Ipv6Addr = Ipv6Addr::new(0xfd42, 0x10, 0x42, 0, 0, 0, 0, 0x100);

    /// With a checksum that has to be replaced.
    const ECHO: [u8; 12] = [8, 0, 0xab, 0xcd, 0, 7, 0, 9, b'p', b'i', b'n', b'g'];
    const ECHO6: [u8; 12] = [128, 0, 0xab, 0xcd, 0, 7, 0, 9, b'p', b'i', b'n', b'g'];

    fn udp_v4(payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        PacketBuilder::ipv4(CHILD.octets(), [192, 0, 2, 1], 5)
            .udp(4000, 53)
            .write(&mut packet, payload)
            .unwrap();
        packet
    }

    fn udp_v6(payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        PacketBuilder::ipv6(CHILD6.octets(), [0x20; 16], 5)
            .udp(4000, 53)
            .write(&mut packet, payload)
            .unwrap();
        packet
    }

    /// Type and quoted bytes, after etherparse has found everything in order.
    fn judged_v4(packet: &[u8]) -> (Icmpv4Type, Vec<u8>) {
        let sliced = SlicedPacket::from_ip(packet).unwrap();
        let Some(NetSlice::Ipv4(ip)) = &sliced.net else { panic!("not IPv4") };
        let header = ip.header().to_header();
        assert_eq!(header.calc_header_checksum(), header.header_checksum);
        assert_eq!((header.source, header.destination), (GATEWAY.octets(), CHILD.octets()));
        assert_eq!(header.time_to_live, 64);
        assert_eq!(usize::from(header.total_len), packet.len());
        let Some(TransportSlice::Icmpv4(icmp)) = &sliced.transport else { panic!("not ICMP") };
        assert_eq!(icmp.icmp_type().calc_checksum(icmp.payload()), icmp.checksum());
        (icmp.icmp_type(), icmp.payload().to_vec())
    }

    fn judged_v6(packet: &[u8]) -> (Icmpv6Type, Vec<u8>) {
        let sliced = SlicedPacket::from_ip(packet).unwrap();
        let Some(NetSlice::Ipv6(ip)) = &sliced.net else { panic!("not IPv6") };
        assert_eq!(usize::from(ip.header().payload_length()), packet.len() - 40);
        let Some(TransportSlice::Icmpv6(icmp)) = &sliced.transport else { panic!("not ICMPv6") };
        assert!(icmp.is_checksum_valid(GATEWAY6.octets(), CHILD6.octets()));
        (icmp.icmp_type(), icmp.payload().to_vec())
    }

    #[test]
    fn every_kind_of_icmp_error_is_what_its_rfc_says() {
        use icmpv4::{DestUnreachableHeader as Unreachable, TimeExceededCode};
        let original = udp_v4(b"hello");
        for (kind, expected) in [
            (IcmpErrorKind::NetUnreachable, Icmpv4Type::DestinationUnreachable(Unreachable::Network)),
            (IcmpErrorKind::HostUnreachable, Icmpv4Type::DestinationUnreachable(Unreachable::Host)),
            (IcmpErrorKind::ProtocolUnreachable, Icmpv4Type::DestinationUnreachable(Unreachable::Protocol)),
            (IcmpErrorKind::PortUnreachable, Icmpv4Type::DestinationUnreachable(Unreachable::Port)),
            (
                IcmpErrorKind::AdminProhibited,
                Icmpv4Type::DestinationUnreachable(Unreachable::FilterProhibited),
            ),
            (
                IcmpErrorKind::TooBig { mtu: 1400 },
                Icmpv4Type::DestinationUnreachable(Unreachable::FragmentationNeeded { next_hop_mtu: 1400 }),
            ),
            (
                IcmpErrorKind::TooBig { mtu: 100_000 },
                Icmpv4Type::DestinationUnreachable(Unreachable::FragmentationNeeded { next_hop_mtu: 65535 }),
            ),
            (IcmpErrorKind::TimeExceeded, Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit)),
            (
                IcmpErrorKind::ReassemblyTimeExceeded,
                Icmpv4Type::TimeExceeded(TimeExceededCode::FragmentReassemblyTimeExceeded),
            ),
            (
                IcmpErrorKind::Other { icmp_type: 3, code: 9 },
                Icmpv4Type::DestinationUnreachable(Unreachable::NetworkProhibited),
            ),
        ] {
            let packet = error_v4(kind, GATEWAY, CHILD, &original);
            assert_eq!(judged_v4(&packet), (expected, original.clone()));
            assert!(!may_report(&packet), "no error about an error");
        }
    }

    #[test]
    fn every_kind_of_icmpv6_error_is_what_its_rfc_says() {
        use icmpv6::{DestUnreachableCode as Unreachable, TimeExceededCode};
        let original = udp_v6(b"hello");
        for (kind, expected) in [
            (IcmpErrorKind::NetUnreachable, Icmpv6Type::DestinationUnreachable(Unreachable::NoRoute)),
            (IcmpErrorKind::HostUnreachable, Icmpv6Type::DestinationUnreachable(Unreachable::Address)),
            (IcmpErrorKind::PortUnreachable, Icmpv6Type::DestinationUnreachable(Unreachable::Port)),
            (IcmpErrorKind::AdminProhibited, Icmpv6Type::DestinationUnreachable(Unreachable::Prohibited)),
            (IcmpErrorKind::TooBig { mtu: 1400 }, Icmpv6Type::PacketTooBig { mtu: 1400 }),
            (IcmpErrorKind::TimeExceeded, Icmpv6Type::TimeExceeded(TimeExceededCode::HopLimitExceeded)),
            (
                IcmpErrorKind::ReassemblyTimeExceeded,
                Icmpv6Type::TimeExceeded(TimeExceededCode::FragmentReassemblyTimeExceeded),
            ),
            (
                IcmpErrorKind::ProtocolUnreachable,
                Icmpv6Type::ParameterProblem(icmpv6::ParameterProblemHeader {
                    code: icmpv6::ParameterProblemCode::UnrecognizedNextHeader,
                    pointer: 6,
                }),
            ),
        ] {
            let packet = error_v6(kind, GATEWAY6, CHILD6, &original);
            assert_eq!(judged_v6(&packet), (expected, original.clone()));
            assert!(!may_report(&packet), "no error about an error");
        }
    }

    #[test]
    fn long_packets_are_quoted_in_part() {
        let packet = error_v4(IcmpErrorKind::PortUnreachable, GATEWAY, CHILD, &udp_v4(&[1; 1400]));
        assert_eq!(packet.len(), 576);
        assert_eq!(judged_v4(&packet).1, udp_v4(&[1; 1400])[..548]);
        let packet = error_v6(IcmpErrorKind::PortUnreachable, GATEWAY6, CHILD6, &udp_v6(&[1; 1400]));
        assert_eq!(packet.len(), 1280);
        assert_eq!(judged_v6(&packet).1, udp_v6(&[1; 1400])[..1232]);
    }

    #[test]
    fn ordinary_packets_may_be_reported() {
        assert!(may_report(&udp_v4(b"x")));
        assert!(may_report(&udp_v6(b"x")));
        let echo = echo_original(CHILD.into(), [192, 0, 2, 1].into(), 1, &ECHO, ECHO.len());
        assert!(may_report(&echo));
        let echo = echo_original(CHILD6.into(), [0x20u8; 16].into(), 1, &ECHO6, ECHO6.len());
        assert!(may_report(&echo));
    }

    #[test]
    fn nobody_is_told_about_packets_without_a_single_sender_and_receiver() {
        let v4 = |src: [u8; 4], dst: [u8; 4]| {
            may_report(&udp_original((src, 1).into(), (dst, 2).into(), 9, b"x", 1))
        };
        let host = [10, 0, 42, 100];
        assert!(v4(host, [192, 0, 2, 1]));
        for bad in [[224, 0, 0, 251], [255; 4], [240, 0, 0, 1]] {
            assert!(!v4(host, bad));
            assert!(!v4(bad, [192, 0, 2, 1]));
        }
        assert!(!v4([0; 4], [192, 0, 2, 1]));
        assert!(!v4([127, 0, 0, 1], [192, 0, 2, 1]));
        let v6 = |src: Ipv6Addr, dst: Ipv6Addr| {
            may_report(&udp_original((src, 1).into(), (dst, 2).into(), 9, b"x", 1))
        };
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        assert!(v6(CHILD6, GATEWAY6));
        assert!(!v6(CHILD6, all_nodes));
        assert!(!v6(all_nodes, GATEWAY6));
        assert!(!v6(Ipv6Addr::UNSPECIFIED, GATEWAY6));
        assert!(!v6(Ipv6Addr::LOCALHOST, GATEWAY6));
    }

    #[test]
    fn only_the_first_fragment_is_reported() {
        let mut packet = udp_v4(b"x");
        packet[6] = 0x20;
        assert!(may_report(&packet));
        packet[7] = 1;
        assert!(!may_report(&packet));

        let fragment = |offset: u16| {
            let mut packet = udp_v6(&[]);
            packet[6] = FRAGMENT;
            let [o0, o1] = (offset << 3).to_be_bytes();
            packet.splice(40..40, [UDP, 0, o0, o1, 0, 0, 0, 1]);
            packet
        };
        assert!(may_report(&fragment(0)));
        assert!(!may_report(&fragment(1)));
    }

    #[test]
    fn an_error_behind_extension_headers_is_seen() {
        let mut packet = error_v6(IcmpErrorKind::TimeExceeded, CHILD6, GATEWAY6, &udp_v6(b"x"));
        packet[6] = DESTINATION_OPTIONS;
        packet.splice(40..40, [ICMPV6, 0, 1, 4, 0, 0, 0, 0]);
        assert!(!may_report(&packet));
        packet[48] = 128;
        assert!(may_report(&packet));
        assert!(!may_report(&packet[..44]));
    }

    #[test]
    fn rebuilt_datagrams_equal_the_original() {
        // Apart from what the flow does not know: identification and "don't fragment".
        let rebuilt = udp_original((CHILD, 4000).into(), ([192, 0, 2, 1], 53).into(), 5, b"hello", 5);
        let original = udp_v4(b"hello");
        assert_eq!(rebuilt[20..], original[20..]);
        assert_eq!(rebuilt[..4], original[..4]);
        assert_eq!(rebuilt[8..10], original[8..10]);
        assert_eq!(rebuilt[12..20], original[12..20]);
        assert!(checksum::verify(&rebuilt[..20], 0));
        let rebuilt = udp_original((CHILD6, 4000).into(), ([0x20u8; 16], 53).into(), 5, b"hello", 5);
        assert_eq!(rebuilt, udp_v6(b"hello"));
    }

    #[test]
    fn a_part_of_the_payload_keeps_the_length_of_the_whole() {
        let rebuilt = udp_original((CHILD, 4000).into(), ([192, 0, 2, 1], 53).into(), 5, b"he", 1400);
        assert_eq!(rebuilt.len(), 30);
        assert_eq!(u16::from_be_bytes([rebuilt[2], rebuilt[3]]), 1428);
        assert_eq!(u16::from_be_bytes([rebuilt[24], rebuilt[25]]), 1408);
        assert_eq!(rebuilt[26..28], [0, 0]);
    }

    #[test]
    fn rebuilt_echo_requests_are_correct() {
        let v4 = echo_original(GATEWAY.into(), CHILD.into(), 64, &ECHO, ECHO.len());
        let header = etherparse::IcmpEchoHeader { id: 7, seq: 9 };
        assert_eq!(judged_v4(&v4), (Icmpv4Type::EchoRequest(header), b"ping".to_vec()));
        let v6 = echo_original(GATEWAY6.into(), CHILD6.into(), 64, &ECHO6, ECHO6.len());
        assert_eq!(judged_v6(&v6), (Icmpv6Type::EchoRequest(header), b"ping".to_vec()));
    }

    #[test]
    fn a_part_of_an_echo_request_keeps_the_length_of_the_whole() {
        for known in 0..ECHO.len() {
            let part = echo_original(GATEWAY.into(), CHILD.into(), 64, &ECHO[..known], ECHO.len());
            assert_eq!(u16::from_be_bytes([part[2], part[3]]), 32);
            assert_eq!(part[20..], ECHO[..known]);
        }
    }

    #[test]
    fn a_burst_is_allowed_and_then_the_rate() {
        let mut limit = RateLimit::new(10, 3);
        let mut now = Instant::from_secs(5);
        assert_eq!((0..5).filter(|_| limit.take(now)).count(), 3);
        now += Duration::from_millis(99);
        assert!(!limit.take(now));
        now += Duration::from_millis(1);
        assert!(limit.take(now));
        assert!(!limit.take(now));
        now += Duration::from_secs(1_000_000);
        assert_eq!((0..5).filter(|_| limit.take(now)).count(), 3);
    }

    proptest! {
        #[test]
        fn no_packet_makes_it_panic(mut packet in proptest::collection::vec(any::<u8>(), 0..120), v6: bool) {
            if let Some(first) = packet.first_mut() {
                *first = if v6 { 0x60 } else { 0x40 | *first & 0x0f };
            }
            let _ = may_report(&packet);
            prop_assert!(error_v4(IcmpErrorKind::TimeExceeded, GATEWAY, CHILD, &packet).len() <= 576);
            prop_assert!(error_v6(IcmpErrorKind::TimeExceeded, GATEWAY6, CHILD6, &packet).len() <= 1280);
        }

        #[test]
        fn the_rate_is_never_exceeded(steps in proptest::collection::vec(0..500_000u64, 1..200)) {
            let mut limit = RateLimit::new(20, 5);
            let mut now = Instant::ZERO;
            let mut sent = 0;
            for step in steps {
                now += Duration::from_micros(step);
                sent += i64::from(limit.take(now));
                prop_assert!(sent <= 5 + now.total_micros() * 20 / 1_000_000);
            }
        }
    }
}
