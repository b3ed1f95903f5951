//! Super-segments inside UDP tunnels: cut on the way to the host, joined on the way to the child.
//!
//! # Theory of operation
//! *Goal:* a pod's TCP stream to another node is VXLAN (RFC 7348) when it reaches us. Frame by frame each segment costs a
//! system call at the TAP; as a super-segment (`TUN_F_UDP_TUNNEL_GSO`, Linux 6.17) forty-odd of them cost one. Hosts
//! want datagrams, though, each with headers and checksum of its own.
//!
//! *To the host*, [`split`] does to the inner segment what a network card would: lengths, IPv4 identification and
//! checksum, sequence number, flags, transport checksum. The datagrams are written one behind the other, as
//! `UDP_SEGMENT` wants them: the payload is copied while it is summed, which costs little more, and the kernel takes one
//! long piece of memory much faster than headers and payloads in turn. Any tunnel will do: what lies between the outer
//! UDP header and the inner IP header is copied as it is.
//!
//! *To the child*, [`Join`] takes datagrams that follow each other, as generic receive offload would: VXLAN without
//! extensions; Ethernet; IPv4 without options or fragments, or IPv6 without extension headers; TCP with ACK and nothing
//! else but PSH or FIN at the end; the same headers but for length, identification, sequence number and those flags. The
//! inner checksums are verified, for nobody does it after us.
//!
//! *Not joined:* inner UDP (the child's kernel cuts what it gets by `UDP_GRO` itself), tunnels other than VXLAN, segments
//! without payload. They go as they came.

use std::ops::Range;

use super::{IpVersion, Transport, checksum};
use crate::error::DropReason;
use crate::frame::TunnelGso;

/// Cuts the super-segment at `datagram`, an outer UDP payload within `frame`: writes its datagrams to `out`, which grows
/// where it has to, from `start` on, and hands where each lies to `emit`. Returns where the last one ends.
///
/// The only error is [`DropReason::Malformed`]: offsets that do not fit the frame.
pub fn split(
    frame: &[u8],
    datagram: Range<usize>,
    gso: TunnelGso,
    out: &mut Vec<u8>,
    start: usize,
    mut emit: impl FnMut(Range<usize>),
) -> Result<usize, DropReason> {
    let header_range = usize::from(gso.payload)..usize::from(gso.header_len);
    let template = frame.get(header_range.clone()).ok_or(DropReason::Malformed)?;
    let payload = frame.get(header_range.end..datagram.end).ok_or(DropReason::Malformed)?;
    let inner = Inner::of(gso, template).ok_or(DropReason::Malformed)?;
    if gso.size == 0 || datagram.start != header_range.start {
        return Err(DropReason::Malformed);
    }
    let constant = Constant::of(inner, template);
    let count = payload.len().div_ceil(usize::from(gso.size));
    let end = start + payload.len() + count * template.len();
    if out.len() < end {
        out.resize(end, 0);
    }
    let mut at = start;
    for (nth, piece) in payload.chunks(usize::from(gso.size)).enumerate() {
        let range = at..at + template.len() + piece.len();
        let (headers, copy) = out[range.clone()].split_at_mut(template.len());
        headers.copy_from_slice(template);
        let place = Place { nth, is_last: nth + 1 == count, size: gso.size };
        inner.renumber(headers, constant, place, piece.len(), checksum::copy(piece, copy));
        at = range.end;
        emit(range);
    }
    Ok(end)
}

/// Which of the segments.
#[derive(Clone, Copy)]
struct Place {
    nth: usize,
    is_last: bool,
    size: u16,
}

/// Sums of what the headers of all segments have in common: of the inner IPv4 header all but its length, identification
/// and checksum; of the pseudo-header and the transport header all but length, sequence number, flags and checksum.
#[derive(Clone, Copy, Debug)]
struct Constant {
    ip: u16,
    transport: u16,
}

impl Constant {
    /// Of headers that begin with the tunnel's. Whatever they hold of what differs is taken out again.
    fn of(inner: Inner, headers: &[u8]) -> Self {
        let (ip, transport) = headers[inner.l3..].split_at(inner.l4 - inner.l3);
        let without = |header: &[u8], fields: &[Range<usize>]| {
            let all = checksum::sum(header);
            fields.iter().fold(all, |sum, field| checksum::add(sum, !number16(header, field.clone())))
        };
        let (v4, addresses) = match inner.version {
            IpVersion::V4 => (without(ip, &[v4::TOTAL_LENGTH, v4::IDENT, v4::CHECKSUM]), &ip[v4::ADDRESSES]),
            IpVersion::V6 => (0, &ip[v6::ADDRESSES]),
        };
        let (rest, protocol) = match inner.transport {
            Transport::Tcp => {
                let [high, low] = tcp::SEQUENCE_WORDS;
                (without(transport, &[high, low, tcp::FLAGS_WORD, tcp::CHECKSUM]), tcp::PROTOCOL)
            }
            Transport::Udp => (without(transport, &[udp::LENGTH, udp::CHECKSUM]), udp::PROTOCOL),
        };
        let pseudo = checksum::add(checksum::sum(addresses), u16::from(protocol));
        Constant { ip: v4, transport: checksum::add(rest, pseudo) }
    }
}

/// Where the inner headers lie, from the start of the tunnel's header. Whoever has one may slice at it.
#[derive(Clone, Copy, Debug)]
struct Inner {
    l3: usize,
    l4: usize,
    version: IpVersion,
    transport: Transport,
}

impl Inner {
    fn of(gso: TunnelGso, headers: &[u8]) -> Option<Self> {
        let l3 = usize::from(gso.inner_l3.checked_sub(gso.payload)?);
        let l4 = usize::from(gso.inner_l4.checked_sub(gso.payload)?);
        let (version, l3_min) = match headers.get(l3)? >> 4 {
            4 => (IpVersion::V4, v4::LEN),
            6 => (IpVersion::V6, v6::LEN),
            _ => return None,
        };
        let l4_min = match gso.transport {
            Transport::Tcp => tcp::LEN,
            Transport::Udp => udp::LEN,
        };
        let fits = l4 >= l3 + l3_min && headers.len() >= l4 + l4_min;
        fits.then_some(Inner { l3, l4, version, transport: gso.transport })
    }

    /// Writes what differs from segment to segment, and the checksums, before `len` bytes of the sum `payload`.
    fn renumber(self, headers: &mut [u8], constant: Constant, place: Place, len: usize, payload: u16) {
        let add = checksum::add;
        let l4_len = (headers.len() - self.l4 + len) as u16;
        let (ip, transport) = headers[self.l3..].split_at_mut(self.l4 - self.l3);
        match self.version {
            IpVersion::V4 => {
                let ident = number16(ip, v4::IDENT).wrapping_add(place.nth as u16);
                let total = ip.len() as u16 + l4_len;
                ip[v4::TOTAL_LENGTH].copy_from_slice(&total.to_be_bytes());
                ip[v4::IDENT].copy_from_slice(&ident.to_be_bytes());
                let value = !add(constant.ip, add(total, ident));
                ip[v4::CHECKSUM].copy_from_slice(&value.to_be_bytes());
            }
            IpVersion::V6 => {
                let payload = (ip.len() - v6::LEN) as u16 + l4_len;
                ip[v6::PAYLOAD_LENGTH].copy_from_slice(&payload.to_be_bytes());
            }
        }
        // The pseudo-header's length; every transport header is even in length, so the payload's sum can be added.
        let mut sum = add(add(constant.transport, l4_len), payload);
        match self.transport {
            Transport::Tcp => {
                let offset = (place.nth as u32).wrapping_mul(u32::from(place.size));
                let seq = tcp::sequence(transport).wrapping_add(offset);
                transport[tcp::SEQUENCE].copy_from_slice(&seq.to_be_bytes());
                if !place.is_last {
                    transport[tcp::FLAGS] &= !tcp::END;
                }
                if place.nth > 0 {
                    transport[tcp::FLAGS] &= !tcp::CWR;
                }
                sum = add(sum, add((seq >> 16) as u16, seq as u16));
                sum = add(sum, number16(transport, tcp::FLAGS_WORD));
            }
            Transport::Udp => {
                transport[udp::LENGTH].copy_from_slice(&l4_len.to_be_bytes());
                sum = add(sum, l4_len);
            }
        }
        let at = usize::from(self.transport.checksum_offset());
        let value = checksum::for_wire(self.transport, !sum);
        transport[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }

    /// Sum of the pseudo-header.
    fn pseudo(self, ip: &[u8], l4_len: u16) -> u16 {
        let (addresses, protocol) = match self.version {
            IpVersion::V4 => (&ip[v4::ADDRESSES], self.transport),
            IpVersion::V6 => (&ip[v6::ADDRESSES], self.transport),
        };
        let protocol = match protocol {
            Transport::Tcp => tcp::PROTOCOL,
            Transport::Udp => udp::PROTOCOL,
        };
        checksum::add(checksum::add(checksum::sum(addresses), u16::from(protocol)), l4_len)
    }
}

/// Datagrams of a VXLAN tunnel that become one super-segment.
#[derive(Debug)]
pub struct Join {
    headers: [u8; MAX_HEADERS],
    header_len: usize,
    inner: Inner,
    constant: Constant,
    /// See [`shared`].
    mask: [u8; MAX_HEADERS],
    size: u16,
    count: usize,
    /// Payload bytes of the segments so far.
    total: usize,
    next_sequence: u32,
    /// Nothing may follow: the last segment was short or had PSH or FIN.
    complete: bool,
}

impl Join {
    /// Begins with an outer UDP payload, where it is a segment that others may follow.
    pub fn begin(datagram: &[u8]) -> Option<Self> {
        let segment = Segment::parse(datagram)?;
        let header_len = segment.header_len;
        let mut headers = [0; MAX_HEADERS];
        headers.get_mut(..header_len)?.copy_from_slice(datagram.get(..header_len)?);
        let size = datagram.len() - header_len;
        Some(Join {
            headers,
            header_len,
            inner: segment.inner,
            constant: Constant::of(segment.inner, datagram.get(..header_len)?),
            mask: shared(segment.inner),
            size: u16::try_from(size).ok()?,
            count: 1,
            total: size,
            next_sequence: segment.sequence.wrapping_add(size as u32),
            complete: segment.is_end,
        })
    }

    /// Adds the next datagram; says whether it belonged here. Its payload is what lies behind the first
    /// [`Join::header_len`] bytes.
    pub fn push(&mut self, datagram: &[u8]) -> bool {
        let Some((headers, payload)) = datagram.split_at_checked(self.header_len) else { return false };
        let len = payload.len();
        if self.complete
            || len == 0
            || len > usize::from(self.size)
            || self.header_len + self.total + len > MAX_DATAGRAM
            || !self.is_next(headers, payload)
        {
            return false;
        }
        let flags = headers.get(self.inner.l4 + tcp::FLAGS).map_or(0, |flags| flags & tcp::END);
        self.count += 1;
        self.total += len;
        self.next_sequence = self.next_sequence.wrapping_add(len as u32);
        self.complete = flags != 0 || len < usize::from(self.size);
        if let Some(ours) = self.headers.get_mut(self.inner.l4 + tcp::FLAGS) {
            *ours |= flags;
        }
        true
    }

    /// Length of the headers in front of every segment.
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// Number of segments.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The headers of the whole, whose checksum is left to the link, and what it is; offsets count from the start of the
    /// outer payload.
    pub fn finish(&mut self) -> (&[u8], TunnelGso, IpVersion) {
        let Inner { l3, l4, version, transport } = self.inner;
        let headers = &mut self.headers[..self.header_len];
        let l4_len = headers.len() - l4 + self.total;
        let (ip, tcp) = headers[l3..].split_at_mut(l4 - l3);
        match version {
            IpVersion::V4 => {
                let total = (ip.len() + l4_len) as u16;
                ip[v4::TOTAL_LENGTH].copy_from_slice(&total.to_be_bytes());
                write_v4_checksum(ip);
            }
            IpVersion::V6 => ip[v6::PAYLOAD_LENGTH].copy_from_slice(&(l4_len as u16).to_be_bytes()),
        }
        let pseudo = self.inner.pseudo(ip, l4_len as u16);
        tcp[tcp::CHECKSUM].copy_from_slice(&pseudo.to_be_bytes());
        let gso = TunnelGso {
            payload: 0,
            inner_l3: l3 as u16,
            inner_l4: l4 as u16,
            header_len: self.header_len as u16,
            transport,
            size: self.size,
        };
        (headers, gso, version)
    }

    /// Whether headers of the same length, and the payload behind them, are the next segment's: the lengths are right, and
    /// so are the checksums.
    fn is_next(&self, headers: &[u8], payload: &[u8]) -> bool {
        let Inner { l3, l4, version, .. } = self.inner;
        let (Some(ip), Some(tcp)) = (headers.get(l3..l4), headers.get(l4..)) else { return false };
        if tcp.len() < tcp::LEN || tcp::sequence(tcp) != self.next_sequence || !self.is_alike(headers) {
            return false;
        }
        let add = checksum::add;
        let l4_len = (tcp.len() + payload.len()) as u16;
        let ip_is_right = match version {
            IpVersion::V4 => {
                let total = number16(ip, v4::TOTAL_LENGTH);
                let varying = add(add(total, number16(ip, v4::IDENT)), number16(ip, v4::CHECKSUM));
                total == ip.len() as u16 + l4_len && add(self.constant.ip, varying) == checksum::RIGHT
            }
            IpVersion::V6 => number16(ip, v6::PAYLOAD_LENGTH) == l4_len,
        };
        let varying =
            [tcp::SEQUENCE_WORDS[0].clone(), tcp::SEQUENCE_WORDS[1].clone(), tcp::FLAGS_WORD, tcp::CHECKSUM];
        let varying = varying.into_iter().fold(l4_len, |sum, field| add(sum, number16(tcp, field)));
        ip_is_right && add(add(self.constant.transport, varying), checksum::sum(payload)) == checksum::RIGHT
    }

    /// Whether headers of the same length differ from ours only where segments of one stream do.
    fn is_alike(&self, other: &[u8]) -> bool {
        let (Some(ours), Some(mask)) = (self.headers.get(..other.len()), self.mask.get(..other.len())) else {
            return false;
        };
        let ((ours, last), (masks, last_mask), (others, last_other)) =
            (ours.as_chunks(), mask.as_chunks(), other.as_chunks());
        // Words at once, and without a branch for each.
        let words = ours.iter().zip(masks).zip(others).fold(0, |differs, ((ours, mask), other)| {
            let word = |bytes: &[u8; 8]| u64::from_ne_bytes(*bytes);
            differs | (word(ours) ^ word(other)) & word(mask)
        });
        let bytes = last.iter().zip(last_mask).zip(last_other);
        words == 0 && bytes.fold(0, |differs, ((ours, mask), other)| differs | (ours ^ other) & mask) == 0
    }
}

/// What of the headers all segments share, bit by bit; what lies behind the headers does not matter.
fn shared(inner: Inner) -> [u8; MAX_HEADERS] {
    let Inner { l3, l4, version, .. } = inner;
    let mut mask = [0xff; MAX_HEADERS];
    let varying = match version {
        IpVersion::V4 => {
            [v4::TOTAL_LENGTH, v4::IDENT, v4::CHECKSUM].map(|field| l3 + field.start..l3 + field.end)
        }
        IpVersion::V6 => [l3 + v6::PAYLOAD_LENGTH.start..l3 + v6::PAYLOAD_LENGTH.end, l4..l4, l4..l4],
    };
    let tcp = [tcp::SEQUENCE, tcp::CHECKSUM].map(|field| l4 + field.start..l4 + field.end);
    for range in varying.into_iter().chain(tcp) {
        if let Some(field) = mask.get_mut(range) {
            field.fill(0);
        }
    }
    if let Some(flags) = mask.get_mut(l4 + tcp::FLAGS) {
        *flags = !tcp::END;
    }
    mask
}

/// A TCP segment in VXLAN that may be joined with others.
struct Segment {
    inner: Inner,
    header_len: usize,
    sequence: u32,
    is_end: bool,
}

impl Segment {
    fn parse(datagram: &[u8]) -> Option<Self> {
        let header = datagram.first_chunk::<{ vxlan::LEN }>()?;
        if header[0] != vxlan::HAS_ID || header[1..4] != [0; 3] || header[7] != 0 {
            return None;
        }
        let l3 = vxlan::LEN + super::ETHERNET_LEN;
        let ip = datagram.get(l3..)?;
        let (version, ip_len) = match datagram.get(l3 - 2..l3)? {
            [0x08, 0x00] => {
                let header = ip.first_chunk::<{ v4::LEN }>()?;
                let fragment = number16(header, v4::FRAGMENT) & !v4::DONT_FRAGMENT;
                let is_plain =
                    header[0] == v4::PLAIN && fragment == 0 && header[v4::PROTOCOL] == tcp::PROTOCOL;
                let whole = usize::from(number16(header, v4::TOTAL_LENGTH)) == ip.len();
                (is_plain && whole && checksum::verify(header, 0)).then_some((IpVersion::V4, v4::LEN))?
            }
            [0x86, 0xdd] => {
                let header = ip.first_chunk::<{ v6::LEN }>()?;
                let is_plain = header[0] >> 4 == 6 && header[v6::NEXT_HEADER] == tcp::PROTOCOL;
                let whole = usize::from(number16(header, v6::PAYLOAD_LENGTH)) + v6::LEN == ip.len();
                (is_plain && whole).then_some((IpVersion::V6, v6::LEN))?
            }
            _ => return None,
        };
        let (ip, segment) = ip.split_at_checked(ip_len)?;
        let header = segment.first_chunk::<{ tcp::LEN }>()?;
        let tcp_len = usize::from(header[tcp::DATA_OFFSET] >> 4) * 4;
        let flags = header[tcp::FLAGS];
        if flags & !(tcp::END | tcp::ECE) != tcp::ACK || tcp_len < tcp::LEN || segment.len() <= tcp_len {
            return None;
        }
        let inner = Inner { l3, l4: l3 + ip_len, version, transport: Transport::Tcp };
        if !checksum::verify(segment, inner.pseudo(ip, u16::try_from(segment.len()).ok()?)) {
            return None;
        }
        Some(Segment {
            inner,
            header_len: inner.l4 + tcp_len,
            sequence: tcp::sequence(header),
            is_end: flags & tcp::END != 0,
        })
    }
}

/// Longest outer UDP payload: 65535 bytes hold the IPv6 and UDP headers too, and the inner length is shorter.
const MAX_DATAGRAM: usize = 65535 - 48;
/// VXLAN, Ethernet, IPv6, TCP with all options.
const MAX_HEADERS: usize = vxlan::LEN + super::ETHERNET_LEN + v6::LEN + 60;

fn number16(header: &[u8], field: Range<usize>) -> u16 {
    u16::from_be_bytes([header[field.start], header[field.start + 1]])
}

fn write_v4_checksum(ip: &mut [u8]) {
    ip[v4::CHECKSUM].fill(0);
    let value = checksum::checksum(ip, 0);
    ip[v4::CHECKSUM].copy_from_slice(&value.to_be_bytes());
}

/// RFC 7348 section 5.
mod vxlan {
    pub(super) const LEN: usize = 8;
    /// The flag I: the network identifier is valid.
    pub(super) const HAS_ID: u8 = 0x08;
}

mod v4 {
    use std::ops::Range;

    pub(super) const LEN: usize = 20;
    /// Version 4, no options.
    pub(super) const PLAIN: u8 = 0x45;
    pub(super) const DONT_FRAGMENT: u16 = 0x4000;
    pub(super) const TOTAL_LENGTH: Range<usize> = 2..4;
    pub(super) const IDENT: Range<usize> = 4..6;
    pub(super) const FRAGMENT: Range<usize> = 6..8;
    pub(super) const PROTOCOL: usize = 9;
    pub(super) const CHECKSUM: Range<usize> = 10..12;
    pub(super) const ADDRESSES: Range<usize> = 12..20;
}

mod v6 {
    use std::ops::Range;

    pub(super) const LEN: usize = 40;
    pub(super) const PAYLOAD_LENGTH: Range<usize> = 4..6;
    pub(super) const NEXT_HEADER: usize = 6;
    pub(super) const ADDRESSES: Range<usize> = 8..40;
}

mod tcp {
    use std::ops::Range;

    pub(super) const PROTOCOL: u8 = 6;
    pub(super) const LEN: usize = 20;
    pub(super) const SEQUENCE: Range<usize> = 4..8;
    pub(super) const SEQUENCE_WORDS: [Range<usize>; 2] = [4..6, 6..8];
    pub(super) const DATA_OFFSET: usize = 12;
    pub(super) const FLAGS: usize = 13;
    /// The data offset and the flags.
    pub(super) const FLAGS_WORD: Range<usize> = 12..14;
    pub(super) const CHECKSUM: Range<usize> = 16..18;
    pub(super) const FIN: u8 = 0x01;
    pub(super) const PSH: u8 = 0x08;
    /// The last segment of several.
    pub(super) const END: u8 = FIN | PSH;
    pub(super) const ACK: u8 = 0x10;
    pub(super) const ECE: u8 = 0x40;
    pub(super) const CWR: u8 = 0x80;

    pub(super) fn sequence(header: &[u8]) -> u32 {
        u32::from_be_bytes([header[4], header[5], header[6], header[7]])
    }
}

mod udp {
    use std::ops::Range;

    pub(super) const PROTOCOL: u8 = 17;
    pub(super) const LEN: usize = 8;
    pub(super) const LENGTH: Range<usize> = 4..6;
    pub(super) const CHECKSUM: Range<usize> = 6..8;
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    use super::*;
    use crate::offload::tests::{tcp4, tcp6, udp4, udp6};

    const VXLAN: [u8; 8] = [8, 0, 0, 0, 0, 0, 1, 0];

    /// A tunnel's super-segment as an outer payload, and what it is.
    fn tunnelled(inner: &[u8], size: u16) -> (Vec<u8>, TunnelGso) {
        let offsets = super::super::HeaderOffsets::locate(inner).unwrap();
        let by = VXLAN.len() as u16;
        let gso = TunnelGso {
            payload: 0,
            inner_l3: by + 14,
            inner_l4: by + offsets.l4_start,
            header_len: by + offsets.header_len,
            transport: offsets.transport,
            size,
        };
        ([&VXLAN[..], inner].concat(), gso)
    }

    fn cut(datagram: &[u8], gso: TunnelGso) -> Vec<Vec<u8>> {
        let (mut bytes, mut cuts) = (vec![9; 100], Vec::new());
        let end = split(datagram, 0..datagram.len(), gso, &mut bytes, 50, |cut| cuts.push(cut)).unwrap();
        assert_eq!((cuts[0].start, cuts[cuts.len() - 1].end), (50, end));
        assert!(cuts.is_sorted_by(|one, next| one.end == next.start), "one behind the other");
        cuts.into_iter().map(|cut| bytes[cut].to_vec()).collect()
    }

    /// Sequence number, flags and payload of a datagram that etherparse finds correct down to the checksums.
    fn judged(datagram: &[u8]) -> (u32, bool, Vec<u8>) {
        assert_eq!(datagram[..8], VXLAN);
        let sliced = SlicedPacket::from_ethernet(&datagram[8..]).unwrap();
        let v4 = match sliced.net.as_ref().unwrap() {
            NetSlice::Ipv4(ip) => {
                let header = ip.header().to_header();
                assert_eq!(header.calc_header_checksum(), header.header_checksum);
                Some(header)
            }
            _ => None,
        };
        let v6 = match sliced.net.as_ref().unwrap() {
            NetSlice::Ipv6(ip) => Some(ip.header().to_header()),
            _ => None,
        };
        match sliced.transport.unwrap() {
            TransportSlice::Tcp(tcp) => {
                let header = tcp.to_header();
                let checksum = match (&v4, &v6) {
                    (Some(ip), _) => header.calc_checksum_ipv4(ip, tcp.payload()),
                    (_, Some(ip)) => header.calc_checksum_ipv6(ip, tcp.payload()),
                    _ => panic!("no IP"),
                };
                assert_eq!(checksum.unwrap(), header.checksum);
                (header.sequence_number, header.psh, tcp.payload().to_vec())
            }
            TransportSlice::Udp(udp) => {
                let header = udp.to_header();
                let checksum = match (&v4, &v6) {
                    (Some(ip), _) => header.calc_checksum_ipv4(ip, udp.payload()),
                    (_, Some(ip)) => header.calc_checksum_ipv6(ip, udp.payload()),
                    _ => panic!("no IP"),
                };
                assert_eq!(checksum.unwrap(), header.checksum);
                (0, false, udp.payload().to_vec())
            }
            other => panic!("{other:?}"),
        }
    }

    fn join(datagrams: &[Vec<u8>]) -> Option<Join> {
        let mut join = Join::begin(&datagrams[0])?;
        datagrams[1..].iter().all(|datagram| join.push(datagram)).then_some(join)
    }

    #[test]
    fn offsets_beyond_the_frame_are_refused() {
        let (datagram, gso) = tunnelled(&tcp4(&[1; 100]), 50);
        let fails = |gso, len: usize| split(&datagram, 0..len, gso, &mut Vec::new(), 0, |_| ()).is_err();
        assert!(!fails(gso, datagram.len()));
        assert!(fails(gso, datagram.len() + 1));
        assert!(fails(TunnelGso { size: 0, ..gso }, datagram.len()));
        assert!(fails(TunnelGso { inner_l4: gso.inner_l4 - 1, ..gso }, datagram.len()));
        assert!(fails(TunnelGso { inner_l3: 9999, ..gso }, datagram.len()));
        assert!(fails(TunnelGso { header_len: gso.inner_l4 + 8, ..gso }, datagram.len()));
    }

    #[test]
    fn segments_that_do_not_follow_are_not_joined() {
        let (datagram, gso) = tunnelled(&tcp4(&[1; 3000]), 1000);
        let cuts = cut(&datagram, gso);
        assert!(join(&cuts).is_some());
        assert!(join(&[cuts[0].clone(), cuts[2].clone()]).is_none(), "a gap");
        assert!(join(&[cuts[2].clone(), cuts[0].clone()]).is_none(), "PSH ends it");
        let ip = [1, 3, 5, 6, 8, 10].map(|at| 22 + at);
        let tcp = [1, 7, 11, 13, 14, 16, 24].map(|at| 42 + at);
        for at in [4, 8, 80].into_iter().chain(ip).chain(tcp) {
            let mut other = cuts[1].clone();
            other[at] ^= 4;
            assert!(join(&[cuts[0].clone(), other]).is_none(), "byte {at} differs");
        }
        let short = &cuts[1][..cuts[1].len() - 1];
        assert!(join(&[cuts[0].clone(), short.to_vec()]).is_none(), "shorter than its length field");
    }

    #[test]
    fn what_is_no_plain_segment_in_vxlan_is_left_alone() {
        let begins = |inner: &[u8], change: &dyn Fn(&mut Vec<u8>)| {
            let mut datagram = [&VXLAN[..], inner].concat();
            change(&mut datagram);
            Join::begin(&datagram).is_some()
        };
        let tcp = |flags: fn(etherparse::PacketBuilderStep<etherparse::TcpHeader>) -> _, payload: &[u8]| {
            let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
            let builder: etherparse::PacketBuilderStep<etherparse::TcpHeader> =
                flags(builder.tcp(1, 2, 3, 4));
            let mut frame = Vec::new();
            builder.write(&mut frame, payload).unwrap();
            frame
        };
        assert!(begins(&tcp(|tcp| tcp.ack(1), b"x"), &|_| ()));
        assert!(!begins(&tcp(|tcp| tcp.ack(1), b""), &|_| ()), "no payload");
        assert!(!begins(&tcp(|tcp| tcp.ack(1).syn(), b"x"), &|_| ()));
        assert!(!begins(&tcp(|tcp| tcp.ack(1).rst(), b"x"), &|_| ()));
        assert!(!begins(&tcp(|tcp| tcp.ack(1).urg(1), b"x"), &|_| ()));
        assert!(!begins(&tcp(|tcp| tcp.ack(1), b"x"), &|datagram| datagram[0] = 0x0c));
        assert!(!begins(&tcp(|tcp| tcp.ack(1), b"x"), &|datagram| datagram.push(0)), "padding");
        assert!(!begins(&udp4(b"x"), &|_| ()) && !begins(&udp6(b"x"), &|_| ()));
        let whole = [&VXLAN[..], &tcp4(b"x")].concat();
        assert!((0..whole.len()).all(|len| Join::begin(&whole[..len]).is_none()));
    }

    proptest! {
        #[test]
        fn cut_segments_are_correct_and_join_to_what_they_were(
            payload in proptest::collection::vec(any::<u8>(), 1..5000), size in 40..1460u16,
        ) {
            // A segment needs ACK to be joined again; the builder's IPv6 one has none.
            for (inner, joins) in [(tcp4(&payload), true), (tcp6(&payload), false)] {
                let (datagram, gso) = tunnelled(&inner, size);
                let cuts = cut(&datagram, gso);
                let mut whole = Vec::new();
                for (nth, piece) in cuts.iter().enumerate() {
                    let (sequence, psh, payload) = judged(piece);
                    prop_assert_eq!(sequence as usize, 1000 + nth * usize::from(size));
                    prop_assert_eq!(psh, joins && nth + 1 == cuts.len());
                    whole.extend(payload);
                }
                prop_assert_eq!(&whole, &payload);
                if !joins {
                    continue;
                }
                let mut joined = join(&cuts).unwrap();
                prop_assert_eq!((joined.count(), joined.header_len()), (cuts.len(), usize::from(gso.header_len)));
                let (headers, found, version) = joined.finish();
                let one = payload.len().min(usize::from(size)) as u16;
                prop_assert_eq!((found, version), (TunnelGso { size: one, ..gso }, IpVersion::V4));
                // With the checksum completed, it is what was cut.
                let mut again = [headers, &payload].concat();
                let tcp = usize::from(gso.inner_l4);
                let value = checksum::checksum(&again[tcp..], 0);
                again[tcp + 16..tcp + 18].copy_from_slice(&value.to_be_bytes());
                prop_assert_eq!(again, datagram);
            }
        }

        #[test]
        fn inner_datagrams_are_cut_too(
            payload in proptest::collection::vec(any::<u8>(), 1..5000), size in 40..1460u16,
        ) {
            for inner in [udp4(&payload), udp6(&payload)] {
                let (datagram, gso) = tunnelled(&inner, size);
                let whole: Vec<u8> = cut(&datagram, gso).iter().flat_map(|piece| judged(piece).2).collect();
                prop_assert_eq!(&whole, &payload);
            }
        }

        #[test]
        fn any_bytes_are_survived(
            mut datagram in proptest::collection::vec(any::<u8>(), 0..200), v6: bool,
            offsets: (u16, u16, u16, u16), size: u16, tcp: bool,
        ) {
            if let Some(start) = datagram.get_mut(..8) {
                start.copy_from_slice(&VXLAN);
            }
            if let Some([a, b]) = datagram.get_mut(20..22) {
                (*a, *b) = if v6 { (0x86, 0xdd) } else { (0x08, 0x00) };
            }
            if let Some(mut join) = Join::begin(&datagram) {
                let _ = join.push(&datagram);
                let _ = join.finish();
            }
            let near = |offset: u16| offset % 256;
            let gso = TunnelGso {
                payload: near(offsets.0),
                inner_l3: near(offsets.1),
                inner_l4: near(offsets.2),
                header_len: near(offsets.3),
                transport: if tcp { Transport::Tcp } else { Transport::Udp },
                size,
            };
            let range = usize::from(gso.payload)..datagram.len();
            let _ = split(&datagram, range, gso, &mut Vec::new(), 0, |_| ());
        }
    }
}
