//! Frames of the child, built field by field, and a reader of the frames it gets.
//!
//! The builders complete every checksum and length; what a test wants to be wrong it overwrites afterwards. The
//! reader is for asserting on one line; it panics on frames that no stack may send.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::frame::{Checksum, Gso, Offload};
use crate::offload::checksum;
use crate::packet::{
    self, ETHERNET_LEN, Ethernet, IPV4_LEN, IPV6_LEN, IpHeader, IpPacket, Mac, Tcp, UDP_LEN, Udp, ethertype,
    protocol,
};

/// Ethernet address of the scripted child.
pub const CHILD_MAC: Mac = [0x02, 0, 0, 0, 0, 0x64];
/// Ethernet address of the engine as [`Config`](crate::Config) has it by default.
pub const ENGINE_MAC: Mac = [0x02, 0x72, 0x6c, 0x6e, 0x00, 0x02];
/// The child's addresses, the engine's, and a host in the world, as the defaults have them.
pub const CHILD: Ipv4Addr = Ipv4Addr::new(10, 0, 42, 100);
/// The gateway.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 42, 2);
/// The DNS address.
pub const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 42, 3);
/// Somebody in the world (RFC 5737).
pub const WORLD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// The child, IPv6.
pub const CHILD6: Ipv6Addr = Ipv6Addr::new(0xfd42, 0x10, 0x42, 0, 0, 0, 0, 0x100);
/// The gateway, IPv6.
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd42, 0x10, 0x42, 0, 0, 0, 0, 2);
/// The DNS address, IPv6.
pub const DNS6: Ipv6Addr = Ipv6Addr::new(0xfd42, 0x10, 0x42, 0, 0, 0, 0, 3);
/// Somebody in the world (RFC 3849).
pub const WORLD6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);

/// A TCP segment; [`Segment::frame`] makes it a frame of the child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sender.
    pub src: SocketAddr,
    /// Receiver.
    pub dst: SocketAddr,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// Control bits of [`Tcp`].
    pub flags: u8,
    /// Window as written, before scaling.
    pub window: u16,
    /// Urgent pointer.
    pub urgent: u16,
    /// Options, padded to a multiple of four bytes by the builder.
    pub options: Vec<u8>,
    /// Payload.
    pub payload: Vec<u8>,
    /// TTL or hop limit.
    pub ttl: u8,
}

impl Segment {
    /// A segment with nothing but `flags` set, and a window of 64240 bytes.
    pub fn new(src: SocketAddr, dst: SocketAddr, flags: u8) -> Self {
        Segment {
            src,
            dst,
            sequence: 1000,
            acknowledgement: 0,
            flags,
            window: 64240,
            urgent: 0,
            options: Vec::new(),
            payload: Vec::new(),
            ttl: packet::DEFAULT_TTL,
        }
    }

    /// A SYN with an MSS option.
    pub fn syn(src: SocketAddr, dst: SocketAddr, mss: u16) -> Self {
        let [high, low] = mss.to_be_bytes();
        Segment { options: vec![2, 4, high, low], ..Segment::new(src, dst, Tcp::SYN) }
    }

    /// The frame.
    pub fn frame(&self) -> Vec<u8> {
        let mut options = self.options.clone();
        options.resize(options.len().next_multiple_of(4), 0);
        let header_len = 20 + options.len();
        let mut tcp = vec![0; header_len];
        tcp[0..2].copy_from_slice(&self.src.port().to_be_bytes());
        tcp[2..4].copy_from_slice(&self.dst.port().to_be_bytes());
        tcp[4..8].copy_from_slice(&self.sequence.to_be_bytes());
        tcp[8..12].copy_from_slice(&self.acknowledgement.to_be_bytes());
        tcp[12] = ((header_len / 4) as u8) << 4;
        tcp[13] = self.flags;
        tcp[14..16].copy_from_slice(&self.window.to_be_bytes());
        tcp[18..20].copy_from_slice(&self.urgent.to_be_bytes());
        tcp[20..].copy_from_slice(&options);
        tcp.extend_from_slice(&self.payload);
        let sum = transport_checksum(self.src.ip(), self.dst.ip(), protocol::TCP, &tcp);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        ip_with_ttl(self.src.ip(), self.dst.ip(), protocol::TCP, self.ttl, &tcp)
    }
}

/// A UDP datagram of the child.
pub fn udp(src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Vec<u8> {
    packet::udp_frame(CHILD_MAC, ENGINE_MAC, src, dst, payload)
}

/// An ICMP or ICMPv6 message of the child; its checksum is completed.
pub fn icmp(src: IpAddr, dst: IpAddr, ttl: u8, message: &[u8]) -> Vec<u8> {
    let protocol = if src.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 };
    let mut message = message.to_vec();
    if let Some(field) = message.get_mut(2..4) {
        field.fill(0);
        let sum = transport_checksum(src, dst, protocol, &message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    ip_with_ttl(src, dst, protocol, ttl, &message)
}

/// An echo request of the child.
pub fn echo_request(src: IpAddr, dst: IpAddr, ident: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
    icmp(src, dst, packet::DEFAULT_TTL, &echo(if src.is_ipv4() { 8 } else { 128 }, ident, sequence, payload))
}

/// An echo message without its checksum, as ping sockets give and take it.
pub fn echo(icmp_type: u8, ident: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let mut message = vec![icmp_type, 0, 0, 0];
    message.extend_from_slice(&ident.to_be_bytes());
    message.extend_from_slice(&sequence.to_be_bytes());
    message.extend_from_slice(payload);
    message
}

/// An ARP request of the child for `target`.
pub fn arp_request(sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut message = vec![0, 1, 8, 0, 6, 4, 0, 1];
    message.extend_from_slice(&CHILD_MAC);
    message.extend_from_slice(&sender.octets());
    message.extend_from_slice(&[0; 6]);
    message.extend_from_slice(&target.octets());
    packet::ethernet_frame(CHILD_MAC, packet::BROADCAST, ethertype::ARP, &message)
}

/// A neighbour solicitation of the child for `target`.
pub fn neighbor_solicitation(sender: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = target.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(&target.octets());
    message.extend_from_slice(&[1, 1]);
    message.extend_from_slice(&CHILD_MAC);
    icmp(sender.into(), group.into(), 255, &message)
}

/// A router solicitation of the child.
pub fn router_solicitation(sender: Ipv6Addr) -> Vec<u8> {
    let all_routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
    icmp(sender.into(), all_routers.into(), 255, &[133, 0, 0, 0, 0, 0, 0, 0])
}

/// An IP packet of the child around a transport payload that is complete.
pub fn ip(src: IpAddr, dst: IpAddr, protocol: u8, transport: &[u8]) -> Vec<u8> {
    ip_with_ttl(src, dst, protocol, packet::DEFAULT_TTL, transport)
}

/// Like [`ip`], with a TTL.
pub fn ip_with_ttl(src: IpAddr, dst: IpAddr, protocol: u8, ttl: u8, transport: &[u8]) -> Vec<u8> {
    packet::ip_frame(CHILD_MAC, ENGINE_MAC, &IpHeader { src, dst, protocol, ttl }, transport)
}

/// Cuts the packet of `frame` into fragments with at most `piece` bytes of payload each, a multiple of eight.
pub fn fragments(frame: &[u8], ident: u16, piece: usize) -> Vec<Vec<u8>> {
    let parsed = parse_ip(frame);
    let transport = &frame[parsed.transport.clone()];
    let count = transport.len().div_ceil(piece);
    transport
        .chunks(piece)
        .enumerate()
        .map(|(index, part)| {
            let more = index + 1 < count;
            let field = (index * piece / 8) as u16;
            match (parsed.src, parsed.dst) {
                (IpAddr::V4(_), _) => {
                    let mut frame = ip(parsed.src, parsed.dst, parsed.protocol, part);
                    let header = &mut frame[ETHERNET_LEN..ETHERNET_LEN + IPV4_LEN];
                    header[4..6].copy_from_slice(&ident.to_be_bytes());
                    header[6..8].copy_from_slice(&(field | u16::from(more) << 13).to_be_bytes());
                    complete_ipv4(&mut frame);
                    frame
                }
                _ => {
                    let mut payload = vec![parsed.protocol, 0];
                    payload.extend_from_slice(&(field << 3 | u16::from(more)).to_be_bytes());
                    payload.extend_from_slice(&u32::from(ident).to_be_bytes());
                    payload.extend_from_slice(part);
                    ip(parsed.src, parsed.dst, 44, &payload)
                }
            }
        })
        .collect()
}

/// Computes the header checksum of an IPv4 frame anew, after a test has changed the header.
pub fn complete_ipv4(frame: &mut [u8]) {
    let len = usize::from(frame[ETHERNET_LEN] & 0x0f) * 4;
    let header = &mut frame[ETHERNET_LEN..ETHERNET_LEN + len];
    header[10..12].fill(0);
    let sum = checksum::checksum(header, 0);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// A frame that the child got, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A TCP segment, with its MSS option if it has one.
    Tcp(Segment, Option<u16>),
    /// A UDP datagram.
    Udp {
        /// Sender.
        src: SocketAddr,
        /// Receiver.
        dst: SocketAddr,
        /// Payload.
        payload: Vec<u8>,
    },
    /// An ICMP or ICMPv6 message.
    Icmp {
        /// Sender.
        src: IpAddr,
        /// Receiver.
        dst: IpAddr,
        /// Type and code.
        kind: (u8, u8),
        /// What follows the checksum.
        body: Vec<u8>,
    },
    /// A fragment of a datagram.
    Fragment(packet::Fragment),
    /// An ARP message.
    Arp(Vec<u8>),
}

impl Seen {
    /// Reads a frame.
    ///
    /// # Panics
    /// Where it is not one a stack may send.
    #[track_caller]
    pub fn read(frame: &[u8]) -> Seen {
        let ethernet = Ethernet::parse(frame).expect("an Ethernet header");
        if ethernet.ethertype == ethertype::ARP {
            return Seen::Arp(frame[ETHERNET_LEN..].to_vec());
        }
        let ip = parse_ip(frame);
        if let Some(fragment) = ip.fragment {
            return Seen::Fragment(fragment);
        }
        let transport = &frame[ip.transport.clone()];
        match ip.protocol {
            protocol::TCP => {
                let tcp = Tcp::parse(transport).expect("a TCP header");
                let mss = tcp.mss(transport);
                let segment = Segment {
                    src: SocketAddr::new(ip.src, tcp.src),
                    dst: SocketAddr::new(ip.dst, tcp.dst),
                    sequence: tcp.sequence,
                    acknowledgement: tcp.acknowledgement,
                    flags: tcp.flags,
                    window: u16::from_be_bytes([transport[14], transport[15]]),
                    urgent: u16::from_be_bytes([transport[18], transport[19]]),
                    options: transport[20..tcp.header_len].to_vec(),
                    payload: transport[tcp.header_len..].to_vec(),
                    ttl: ip.ttl,
                };
                Seen::Tcp(segment, mss)
            }
            protocol::UDP => {
                let udp = Udp::parse(transport).expect("a UDP header");
                Seen::Udp {
                    src: SocketAddr::new(ip.src, udp.src),
                    dst: SocketAddr::new(ip.dst, udp.dst),
                    payload: transport[UDP_LEN..udp.len].to_vec(),
                }
            }
            protocol::ICMP | protocol::ICMPV6 => Seen::Icmp {
                src: ip.src,
                dst: ip.dst,
                kind: (transport[0], transport[1]),
                body: transport[4..].to_vec(),
            },
            other => panic!("protocol {other} to the child"),
        }
    }

    /// The segment, where it is one.
    #[track_caller]
    pub fn tcp(self) -> Segment {
        match self {
            Seen::Tcp(segment, _) => segment,
            other => panic!("not TCP: {other:?}"),
        }
    }
}

/// Checks what every frame to the child has to fulfil: lengths, MTU, and checksums as `offload` says.
///
/// # Panics
/// With the frame, where it does not.
pub fn check(frame: &[u8], offload: Offload, mtu: u16) {
    let ethernet = Ethernet::parse(frame).expect("an Ethernet header");
    assert_eq!(ethernet.src, ENGINE_MAC, "source of {frame:02x?}");
    if ethernet.ethertype == ethertype::ARP {
        return;
    }
    let ip = IpPacket::parse(frame, ethernet.ethertype)
        .unwrap_or_else(|reason| panic!("{reason} in a frame to the child: {frame:02x?}"));
    assert_eq!(ip.packet.end, frame.len(), "the IP length is the frame's");
    let transport = &frame[ip.transport.clone()];
    let headers = match ip.protocol {
        protocol::TCP => {
            ip.transport.start - ETHERNET_LEN + Tcp::parse(transport).expect("a TCP header").header_len
        }
        _ => ip.transport.start - ETHERNET_LEN + UDP_LEN,
    };
    match offload.gso {
        Gso::None => assert!(ip.packet.len() <= usize::from(mtu), "{} bytes exceed the MTU", ip.packet.len()),
        Gso::Tcp(size) => {
            assert_eq!(ip.protocol, protocol::TCP);
            assert!(headers + usize::from(size) <= usize::from(mtu), "segments of {size} exceed the MTU");
            assert!(ip.packet.len() > headers + usize::from(size), "nothing to cut");
        }
        Gso::Udp(size) => {
            assert_eq!(ip.protocol, protocol::UDP);
            assert!(headers + usize::from(size) <= usize::from(mtu), "datagrams of {size} exceed the MTU");
        }
        Gso::Tunnel(gso) => {
            let longest = usize::from(gso.header_len) - ETHERNET_LEN + usize::from(gso.size);
            assert!(longest <= usize::from(mtu), "segments of {longest} bytes exceed the MTU");
        }
    }
    if ip.fragment.is_some() {
        return;
    }
    let pseudo = match ip.protocol {
        protocol::ICMP => 0,
        other => checksum::pseudo_header_sum(ip.src, ip.dst, other, transport.len() as u32),
    };
    match offload.checksum {
        Checksum::Complete => assert!(checksum::verify(transport, pseudo), "bad checksum: {frame:02x?}"),
        Checksum::Partial => {
            let at = if ip.protocol == protocol::TCP { 16 } else { 6 };
            let field = u16::from_be_bytes([transport[at], transport[at + 1]]);
            assert_eq!(field, pseudo, "a partial checksum is the pseudo-header's sum");
        }
        Checksum::Verified => panic!("nobody has verified a frame that was just made"),
    }
}

#[track_caller]
fn parse_ip(frame: &[u8]) -> IpPacket {
    let ethernet = Ethernet::parse(frame).expect("an Ethernet header");
    IpPacket::parse(frame, ethernet.ethertype).expect("an IP packet")
}

fn transport_checksum(src: IpAddr, dst: IpAddr, protocol: u8, transport: &[u8]) -> u16 {
    let pseudo = match protocol {
        protocol::ICMP => 0,
        _ => checksum::pseudo_header_sum(src, dst, protocol, transport.len() as u32),
    };
    checksum::checksum(transport, pseudo)
}

/// Offset of the IP header in a frame.
pub const IP: usize = ETHERNET_LEN;
/// Offset of the transport header in an IPv4 frame without options.
pub const L4_V4: usize = ETHERNET_LEN + IPV4_LEN;
/// Offset of the transport header in an IPv6 frame without extension headers.
pub const L4_V6: usize = ETHERNET_LEN + IPV6_LEN;
