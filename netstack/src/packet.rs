//! Views of received frames and writers of our own, one pass each.
//!
//! # Theory of operation
//! [`Ethernet::parse`] and [`IpPacket::parse`] check lengths once and return offsets; whoever holds them may
//! slice the frame at them. Nothing is judged here beyond what is needed to find the next header: policy,
//! checksums of the transport and address rules belong to the stack.
//!
//! Not handled: VLAN tags (802.1Q frames are of an unknown EtherType to us), jumbograms (RFC 2675).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use crate::error::DropReason;
use crate::offload::checksum;

/// Length of an Ethernet header.
pub const ETHERNET_LEN: usize = 14;
/// Length of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// Length of the fixed IPv6 header.
pub const IPV6_LEN: usize = 40;
/// Length of a UDP header.
pub const UDP_LEN: usize = 8;
/// Room for every header that precedes a UDP payload.
pub const MAX_HEADERS: usize = ETHERNET_LEN + IPV6_LEN + UDP_LEN;

/// TTL and hop limit of packets the engine makes.
pub const DEFAULT_TTL: u8 = 64;

/// EtherTypes (IEEE 802).
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
}

/// IP protocol numbers (IANA).
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const DESTINATION: u8 = 60;
}

/// Ethernet address.
pub type Mac = [u8; 6];
/// The Ethernet broadcast address.
pub const BROADCAST: Mac = [0xff; 6];

/// An Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// Destination.
    pub dst: Mac,
    /// Source.
    pub src: Mac,
    /// Protocol of the payload.
    pub ethertype: u16,
}

impl Ethernet {
    const DST: Range<usize> = 0..6;
    const SRC: Range<usize> = 6..12;
    const TYPE: Range<usize> = 12..14;

    /// Reads the first 14 bytes.
    pub fn parse(frame: &[u8]) -> Result<Self, DropReason> {
        let header: &[u8; ETHERNET_LEN] = frame.first_chunk().ok_or(DropReason::Truncated)?;
        let mut dst = [0; 6];
        let mut src = [0; 6];
        dst.copy_from_slice(&header[Self::DST]);
        src.copy_from_slice(&header[Self::SRC]);
        Ok(Ethernet { dst, src, ethertype: u16::from_be_bytes([header[12], header[13]]) })
    }

    /// Writes the header.
    pub fn emit(&self, header: &mut [u8; ETHERNET_LEN]) {
        header[Self::DST].copy_from_slice(&self.dst);
        header[Self::SRC].copy_from_slice(&self.src);
        header[Self::TYPE].copy_from_slice(&self.ethertype.to_be_bytes());
    }
}

/// Place of a fragment in its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification, 16 bits in IPv4.
    pub id: u32,
    /// Offset of its first byte.
    pub offset: usize,
    /// Whether others follow.
    pub more: bool,
}

/// An IP packet inside a frame: what the stack wants to know, and where things are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpPacket {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Protocol of the transport header, extension headers skipped.
    pub protocol: u8,
    /// TTL or hop limit as received.
    pub ttl: u8,
    /// IPv4 DF; always true for IPv6.
    pub dont_fragment: bool,
    /// Set for fragments (also for an IPv6 atomic fragment, RFC 6946, which then is whole).
    pub fragment: Option<Fragment>,
    /// The packet in the frame, padding cut off.
    pub packet: Range<usize>,
    /// Transport header and payload in the frame.
    pub transport: Range<usize>,
}

impl IpPacket {
    /// Parses the packet that starts at `frame[14]`.
    pub fn parse(frame: &[u8], ethertype: u16) -> Result<Self, DropReason> {
        match ethertype {
            ethertype::IPV4 => Self::parse_v4(frame),
            ethertype::IPV6 => Self::parse_v6(frame),
            _ => Err(DropReason::UnknownEtherType),
        }
    }

    fn parse_v4(frame: &[u8]) -> Result<Self, DropReason> {
        let ip = frame.get(ETHERNET_LEN..).unwrap_or_default();
        let header: &[u8; IPV4_LEN] = ip.first_chunk().ok_or(DropReason::Truncated)?;
        if header[0] >> 4 != 4 {
            return Err(DropReason::Malformed);
        }
        let header_len = usize::from(header[0] & 0x0f) * 4;
        let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header_len < IPV4_LEN || total_len < header_len {
            return Err(DropReason::Malformed);
        }
        let options = ip.get(..header_len).ok_or(DropReason::Truncated)?;
        if ip.len() < total_len {
            return Err(DropReason::Truncated);
        }
        if checksum::checksum(options, 0) != 0 {
            return Err(DropReason::BadChecksum);
        }
        let flags = u16::from_be_bytes([header[6], header[7]]);
        let offset = usize::from(flags & 0x1fff) * 8;
        let more = flags & 0x2000 != 0;
        let fragment = (offset != 0 || more).then(|| Fragment {
            id: u32::from(u16::from_be_bytes([header[4], header[5]])),
            offset,
            more,
        });
        Ok(IpPacket {
            src: Ipv4Addr::new(header[12], header[13], header[14], header[15]).into(),
            dst: Ipv4Addr::new(header[16], header[17], header[18], header[19]).into(),
            protocol: header[9],
            ttl: header[8],
            dont_fragment: flags & 0x4000 != 0,
            fragment,
            packet: ETHERNET_LEN..ETHERNET_LEN + total_len,
            transport: ETHERNET_LEN + header_len..ETHERNET_LEN + total_len,
        })
    }

    fn parse_v6(frame: &[u8]) -> Result<Self, DropReason> {
        let ip = frame.get(ETHERNET_LEN..).unwrap_or_default();
        let header: &[u8; IPV6_LEN] = ip.first_chunk().ok_or(DropReason::Truncated)?;
        if header[0] >> 4 != 6 {
            return Err(DropReason::Malformed);
        }
        let total_len = IPV6_LEN + usize::from(u16::from_be_bytes([header[4], header[5]]));
        let ip = ip.get(..total_len).ok_or(DropReason::Truncated)?;
        let mut next = header[6];
        let mut at = IPV6_LEN;
        let mut fragment = None;
        // Each extension header is at least 8 bytes long, so the packet bounds the loop.
        loop {
            match next {
                protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION => {
                    let &[following, len] =
                        ip.get(at..).and_then(|h| h.first_chunk()).ok_or(DropReason::Truncated)?;
                    next = following;
                    at += (usize::from(len) + 1) * 8;
                }
                protocol::FRAGMENT if fragment.is_none() => {
                    let header: &[u8; 8] =
                        ip.get(at..).and_then(|h| h.first_chunk()).ok_or(DropReason::Truncated)?;
                    let field = u16::from_be_bytes([header[2], header[3]]);
                    fragment = Some(Fragment {
                        id: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
                        offset: usize::from(field & 0xfff8),
                        more: field & 1 != 0,
                    });
                    next = header[0];
                    at += 8;
                    if fragment.is_some_and(|f| f.offset != 0) {
                        break;
                    }
                }
                protocol::FRAGMENT => return Err(DropReason::Malformed),
                _ => break,
            }
        }
        if at > total_len {
            return Err(DropReason::Truncated);
        }
        let mut src = [0; 16];
        let mut dst = [0; 16];
        src.copy_from_slice(&header[8..24]);
        dst.copy_from_slice(&header[24..40]);
        Ok(IpPacket {
            src: Ipv6Addr::from(src).into(),
            dst: Ipv6Addr::from(dst).into(),
            protocol: next,
            ttl: header[7],
            dont_fragment: true,
            fragment,
            packet: ETHERNET_LEN..ETHERNET_LEN + total_len,
            transport: ETHERNET_LEN + at..ETHERNET_LEN + total_len,
        })
    }
}

/// A UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Udp {
    /// Source port.
    pub src: u16,
    /// Destination port.
    pub dst: u16,
    /// Checksum field; 0 in IPv4 means none.
    pub checksum: u16,
    /// Length of header and payload.
    pub len: usize,
}

impl Udp {
    /// Reads the header; the length has to fit `datagram`, which may be longer (padding).
    pub fn parse(datagram: &[u8]) -> Result<Self, DropReason> {
        let h: &[u8; UDP_LEN] = datagram.first_chunk().ok_or(DropReason::Truncated)?;
        let len = usize::from(u16::from_be_bytes([h[4], h[5]]));
        if len < UDP_LEN {
            return Err(DropReason::Malformed);
        }
        if len > datagram.len() {
            return Err(DropReason::Truncated);
        }
        Ok(Udp {
            src: u16::from_be_bytes([h[0], h[1]]),
            dst: u16::from_be_bytes([h[2], h[3]]),
            checksum: u16::from_be_bytes([h[6], h[7]]),
            len,
        })
    }
}

/// The fields of a TCP header that are needed before the endpoint sees the segment (RFC 9293 section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Source port.
    pub src: u16,
    /// Destination port.
    pub dst: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// Length of header and options.
    pub header_len: usize,
    /// Control bits, see [`Tcp::SYN`] and others.
    pub flags: u8,
}

impl Tcp {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// The acknowledgement number is significant.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer is significant.
    pub const URG: u8 = 0x20;

    /// Reads the header.
    pub fn parse(segment: &[u8]) -> Result<Self, DropReason> {
        let h: &[u8; 20] = segment.first_chunk().ok_or(DropReason::Truncated)?;
        let header_len = usize::from(h[12] >> 4) * 4;
        if header_len < 20 {
            return Err(DropReason::Malformed);
        }
        if header_len > segment.len() {
            return Err(DropReason::Truncated);
        }
        Ok(Tcp {
            src: u16::from_be_bytes([h[0], h[1]]),
            dst: u16::from_be_bytes([h[2], h[3]]),
            sequence: u32::from_be_bytes([h[4], h[5], h[6], h[7]]),
            acknowledgement: u32::from_be_bytes([h[8], h[9], h[10], h[11]]),
            header_len,
            flags: h[13],
        })
    }

    /// The MSS option of a SYN, if there is a well-formed one (RFC 9293 section 3.7.1).
    pub fn mss(&self, segment: &[u8]) -> Option<u16> {
        let at = self.mss_at(segment)?;
        Some(u16::from_be_bytes([segment[at], segment[at + 1]]))
    }

    /// Overwrites the MSS option of a SYN. The checksum is left to the caller.
    pub fn set_mss(&self, segment: &mut [u8], mss: u16) {
        if let Some(at) = self.mss_at(segment) {
            segment[at..at + 2].copy_from_slice(&mss.to_be_bytes());
        }
    }

    /// Whether a SYN offers Multipath TCP (RFC 8684 section 3).
    pub fn offers_multipath(&self, segment: &[u8]) -> bool {
        self.option(segment, 30).is_some()
    }

    /// Offset of the MSS value; two bytes at it are in bounds.
    fn mss_at(&self, segment: &[u8]) -> Option<usize> {
        let at = self.option(segment, 2)?;
        (segment.get(at + 1) == Some(&4) && at + 4 <= self.header_len).then_some(at + 2)
    }

    /// Offset of the first option of a kind, which may be cut short.
    fn option(&self, segment: &[u8], wanted: u8) -> Option<usize> {
        let options = segment.get(..self.header_len)?;
        let mut at = 20;
        while let Some(&kind) = options.get(at) {
            match kind {
                0 => return None,
                kind if kind == wanted => return Some(at),
                1 => at += 1,
                _ => match options.get(at + 1) {
                    Some(&len) if len >= 2 => at += usize::from(len),
                    _ => return None,
                },
            }
        }
        None
    }
}

/// What every packet to the child needs.
#[derive(Clone, Copy, Debug)]
pub struct IpHeader {
    /// Source address; the family decides the header.
    pub src: IpAddr,
    /// Destination address of the same family.
    pub dst: IpAddr,
    /// Protocol number.
    pub protocol: u8,
    /// TTL or hop limit.
    pub ttl: u8,
}

impl IpHeader {
    /// Length of the header in bytes.
    pub fn header_len(&self) -> usize {
        if self.dst.is_ipv4() { IPV4_LEN } else { IPV6_LEN }
    }

    /// EtherType of the packet.
    pub fn ethertype(&self) -> u16 {
        if self.dst.is_ipv4() { ethertype::IPV4 } else { ethertype::IPV6 }
    }

    /// Writes the header for `payload_len` bytes into the first [`IpHeader::header_len`] bytes of `out`, with DF set
    /// (RFC 6864: the identification of such a packet may be anything).
    ///
    /// Both addresses must be of one family; the stack's own addresses decide it.
    pub fn emit(&self, payload_len: usize, out: &mut [u8]) {
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let out = &mut out[..IPV4_LEN];
                out.copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                out[2..4].copy_from_slice(&((IPV4_LEN + payload_len) as u16).to_be_bytes());
                out[8] = self.ttl;
                out[9] = self.protocol;
                out[12..16].copy_from_slice(&src.octets());
                out[16..20].copy_from_slice(&dst.octets());
                let sum = checksum::checksum(out, 0);
                out[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let out = &mut out[..IPV6_LEN];
                out[..4].copy_from_slice(&[0x60, 0, 0, 0]);
                out[4..6].copy_from_slice(&(payload_len as u16).to_be_bytes());
                out[6] = self.protocol;
                out[7] = self.ttl;
                out[8..24].copy_from_slice(&src.octets());
                out[24..40].copy_from_slice(&dst.octets());
            }
            _ => debug_assert!(false, "mixed address families: {self:?}"),
        }
    }
}

/// Builds a whole frame around `payload` with a complete checksum: for the engine's own, rare datagrams.
pub fn udp_frame(src_mac: Mac, dst_mac: Mac, src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let ip = IpHeader { src: src.ip(), dst: dst.ip(), protocol: protocol::UDP, ttl: DEFAULT_TTL };
    let mut udp = vec![0; UDP_LEN + payload.len()];
    emit_udp(src.port(), dst.port(), payload.len(), &mut udp);
    udp[UDP_LEN..].copy_from_slice(payload);
    complete_udp(&ip, &mut udp);
    ip_frame(src_mac, dst_mac, &ip, &udp)
}

/// Builds a whole frame around a transport payload whose checksum is complete.
pub fn ip_frame(src_mac: Mac, dst_mac: Mac, ip: &IpHeader, transport: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET_LEN + ip.header_len() + transport.len()];
    ip.emit(transport.len(), &mut frame[ETHERNET_LEN..]);
    frame[ETHERNET_LEN + ip.header_len()..].copy_from_slice(transport);
    emit_ethernet(&mut frame, src_mac, dst_mac, ip.ethertype());
    frame
}

/// Builds a frame around a complete IP packet or ARP message.
pub fn ethernet_frame(src_mac: Mac, dst_mac: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET_LEN + payload.len()];
    frame[ETHERNET_LEN..].copy_from_slice(payload);
    emit_ethernet(&mut frame, src_mac, dst_mac, ethertype);
    frame
}

/// Writes the Ethernet header of `frame`, which is at least that long.
pub fn emit_ethernet(frame: &mut [u8], src: Mac, dst: Mac, ethertype: u16) {
    if let Some(header) = frame.first_chunk_mut() {
        Ethernet { dst, src, ethertype }.emit(header);
    }
}

/// Writes the Ethernet destination of `frame`, which is at least that long.
pub(crate) fn set_destination(frame: &mut [u8], dst: Mac) {
    if let Some(field) = frame.get_mut(Ethernet::DST) {
        field.copy_from_slice(&dst);
    }
}

/// Writes a UDP header with a checksum of zero into the first 8 bytes of `out`.
pub fn emit_udp(src: u16, dst: u16, payload_len: usize, out: &mut [u8]) {
    out[0..2].copy_from_slice(&src.to_be_bytes());
    out[2..4].copy_from_slice(&dst.to_be_bytes());
    out[4..6].copy_from_slice(&((UDP_LEN + payload_len) as u16).to_be_bytes());
    out[6..8].fill(0);
}

/// Completes the checksum of a UDP datagram whose checksum field is zero.
pub fn complete_udp(ip: &IpHeader, datagram: &mut [u8]) {
    let pseudo = checksum::pseudo_header_sum(ip.src, ip.dst, protocol::UDP, datagram.len() as u32);
    let sum = match checksum::checksum(datagram, pseudo) {
        0 => 0xffff, // RFC 768: a computed zero is sent as all ones, zero means none.
        sum => sum,
    };
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
}
