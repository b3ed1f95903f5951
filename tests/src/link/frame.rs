//! What travels on a link: a frame behind a virtio-net header, perhaps a super-segment.
//!
//! Theory of operation. A kernel that leaves segmentation to its TAP hands out up to 64 KiB of TCP payload in one frame; on a real
//! link that is dozens of segments with a fate each. [`Frame`] knows how many there are and what each takes on the line, and
//! [`Frame::part`] is what is left when some of them are lost: a shorter frame with sequence number, lengths, identification and flags
//! put right (RFC 9293, RFC 791, RFC 8200). What is not TCP is one segment.

use netstack::offload::{HeaderOffsets, IpVersion, Transport, checksum, vnet_hdr::VirtioNetHdr};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Range,
};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The virtio-net header first.
    bytes: Vec<u8>,
    cut: Option<Cut>,
}

/// Where a super-segment is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    offsets: HeaderOffsets,
    /// Payload bytes per segment, at least one.
    size: usize,
}

impl Frame {
    /// A frame as a TAP hands it over, the virtio-net header first; `None` when it is shorter than that.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Option<Self> {
        let (header, frame) = bytes.split_first_chunk::<{ VirtioNetHdr::LEN }>()?;
        let size = usize::from(VirtioNetHdr::from_bytes(header).gso_size);
        let cut = HeaderOffsets::locate(frame)
            .filter(|offsets| {
                offsets.transport == Transport::Tcp && size > 0 && !offsets.payload().is_empty()
            })
            .map(|offsets| Cut { offsets, size });
        Some(Self { bytes, cut })
    }

    /// As it goes to a TAP.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many frames it is on the line.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.cut.map_or(1, |cut| cut.offsets.payload().len().div_ceil(cut.size))
    }

    /// Bytes of the `nth` segment on the line, headers included.
    #[must_use]
    pub fn line_bytes(&self, nth: usize) -> usize {
        match self.cut {
            None => self.bytes.len() - VirtioNetHdr::LEN,
            Some(cut) => usize::from(cut.offsets.header_len) + cut.payload(&(nth..nth + 1)).len(),
        }
    }

    /// What is left when only `segments` arrive.
    #[must_use]
    pub fn part(&self, segments: &Range<usize>) -> Self {
        let Some(cut) = self.cut.filter(|_| *segments != (0..self.segments())) else { return self.clone() };
        let (header, frame) = self.bytes.split_at(VirtioNetHdr::LEN);
        let (headers, payload) = (&frame[..usize::from(cut.offsets.header_len)], cut.payload(segments));
        let mut bytes = Vec::with_capacity(VirtioNetHdr::LEN + headers.len() + payload.len());
        bytes.extend_from_slice(header);
        bytes.extend_from_slice(headers);
        bytes.extend_from_slice(&frame[payload.clone()]);
        if segments.len() == 1 {
            let fields = VirtioNetHdr::from_bytes(header.first_chunk().expect("split off above"));
            let fields = VirtioNetHdr { gso_type: VirtioNetHdr::GSO_NONE, gso_size: 0, ..fields };
            bytes[..VirtioNetHdr::LEN].copy_from_slice(&fields.to_bytes());
        }
        let is_last = segments.end == self.segments();
        cut.renumber(&mut bytes[VirtioNetHdr::LEN..], segments.start, is_last);
        Self::new(bytes).expect("there is a header")
    }
}

impl Cut {
    /// Where in the frame the payload of `segments` is.
    fn payload(&self, segments: &Range<usize>) -> Range<usize> {
        let whole = self.offsets.payload();
        let at = |nth: usize| whole.end.min(whole.start + nth * self.size);
        at(segments.start)..at(segments.end)
    }

    /// Makes headers that were the whole frame's those of a frame that begins with the segment `first`.
    fn renumber(&self, frame: &mut [u8], first: usize, is_last: bool) {
        let l4_start = usize::from(self.offsets.l4_start);
        let (headers, tcp) = frame.split_at_mut(l4_start);
        let ip = &mut headers[ETHERNET_LEN..];
        let (source, destination) = match self.offsets.ip_version {
            IpVersion::V4 => renumber_v4(ip, tcp.len(), first),
            IpVersion::V6 => {
                ip[4..6].copy_from_slice(&short(tcp.len()).to_be_bytes());
                let address = |at| *ip[at..].first_chunk::<16>().expect("located");
                (Ipv6Addr::from(address(8)).into(), Ipv6Addr::from(address(24)).into())
            }
        };
        let sequence = u32::from_be_bytes(*tcp[SEQUENCE..].first_chunk().expect("located"));
        let sequence = sequence.wrapping_add(u32::try_from(first * self.size).expect("within a packet"));
        tcp[SEQUENCE..SEQUENCE + 4].copy_from_slice(&sequence.to_be_bytes());
        if first > 0 {
            tcp[FLAGS] &= !CWR;
        }
        if !is_last {
            tcp[FLAGS] &= !(FIN | PSH);
        }
        // What a super-segment's checksum field holds, and that of each part: the rest is left to the receiving kernel.
        let length = u32::try_from(tcp.len()).expect("within a packet");
        let sum = checksum::pseudo_header_sum(source, destination, TCP, length);
        tcp[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Length, identification and checksum of an IPv4 header; returns its addresses.
fn renumber_v4(ip: &mut [u8], payload: usize, first: usize) -> (IpAddr, IpAddr) {
    let total = short(ip.len() + payload);
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    // Linux counts up by one per segment.
    let identification = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(short(first));
    ip[4..6].copy_from_slice(&identification.to_be_bytes());
    ip[10..12].fill(0);
    let sum = checksum::checksum(ip, 0);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let address = |at: usize| *ip[at..].first_chunk::<4>().expect("located");
    (Ipv4Addr::from(address(12)).into(), Ipv4Addr::from(address(16)).into())
}

/// A length or count within one packet.
fn short(n: usize) -> u16 {
    u16::try_from(n).expect("within a packet")
}

const ETHERNET_LEN: usize = 14;
const TCP: u8 = 6;
/// Of the TCP header.
const SEQUENCE: usize = 4;
const FLAGS: usize = 13;
const CHECKSUM: usize = 16;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A super-segment of `payload` bytes, cut every `size` ones, with all flags set.
    pub(crate) fn super_segment(version: IpVersion, payload: usize, size: u16) -> Vec<u8> {
        let mut frame = vec![0; 12];
        let tcp_len = 20 + payload;
        match version {
            IpVersion::V4 => {
                frame.extend([0x08, 0x00, 0x45, 0]);
                frame.extend(short(20 + tcp_len).to_be_bytes());
                frame.extend([0xff, 0xfe, 0x40, 0, 64, TCP, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
                let sum = checksum::checksum(&frame[14..34], 0);
                frame[24..26].copy_from_slice(&sum.to_be_bytes());
            }
            IpVersion::V6 => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend(short(tcp_len).to_be_bytes());
                frame.extend([TCP, 64]);
                frame.extend([[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]; 2].concat());
            }
        }
        let csum_start = short(frame.len());
        frame.extend([0, 80, 0, 81, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0x50, 0xff, 0, 0, 0, 0, 0, 0]);
        frame.extend((0..payload).map(|n| (n % 251) as u8));
        // Only the sum of the pseudo-header, as the kernel leaves it: there the addresses stand just before TCP.
        let addresses = usize::from(csum_start) - if version == IpVersion::V4 { 8 } else { 32 };
        let addresses = checksum::sum(&frame[addresses..usize::from(csum_start)]);
        let rest = checksum::add(u16::from(TCP), short(tcp_len));
        let field = usize::from(csum_start) + CHECKSUM;
        frame[field..field + 2].copy_from_slice(&checksum::add(addresses, rest).to_be_bytes());
        let header = VirtioNetHdr {
            flags: VirtioNetHdr::NEEDS_CSUM,
            gso_type: if version == IpVersion::V4 {
                VirtioNetHdr::GSO_TCPV4
            } else {
                VirtioNetHdr::GSO_TCPV6
            },
            hdr_len: csum_start + 20,
            gso_size: size,
            csum_start,
            csum_offset: 16,
        };
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend(frame);
        bytes
    }

    /// A frame that is not TCP, with a number in it and so many bytes on the line.
    pub(crate) fn numbered(number: u32, line_bytes: usize) -> Frame {
        let mut bytes = vec![0; VirtioNetHdr::LEN];
        bytes.extend(number.to_be_bytes());
        bytes.resize(VirtioNetHdr::LEN + line_bytes, 0);
        Frame::new(bytes).unwrap()
    }

    fn sequence(frame: &Frame) -> u32 {
        let start = usize::from(frame.cut_or_located().l4_start);
        u32::from_be_bytes(*frame.bytes[VirtioNetHdr::LEN + start + SEQUENCE..].first_chunk().unwrap())
    }

    impl Frame {
        fn cut_or_located(&self) -> HeaderOffsets {
            HeaderOffsets::locate(&self.bytes[VirtioNetHdr::LEN..]).expect("TCP")
        }

        /// That of [`numbered`].
        pub(crate) fn number(&self) -> u32 {
            u32::from_be_bytes(*self.bytes[VirtioNetHdr::LEN..].first_chunk().unwrap())
        }

        fn flags(&self) -> u8 {
            self.bytes[VirtioNetHdr::LEN + usize::from(self.cut_or_located().l4_start) + FLAGS]
        }
    }

    proptest! {
        #[test]
        fn parts_hold_every_byte_where_it_belongs(
            v6: bool, payload in 1usize..60_000, size in 100u16..9_000, at in any::<prop::sample::Index>(), many in 1usize..5
        ) {
            let version = if v6 { IpVersion::V6 } else { IpVersion::V4 };
            let whole = Frame::new(super_segment(version, payload, size)).unwrap();
            let segments = whole.segments();
            prop_assert_eq!(segments, payload.div_ceil(usize::from(size)));
            let first = at.index(segments);
            let range = first..segments.min(first + many);
            let part = whole.part(&range);
            let line: usize = range.clone().map(|nth| whole.line_bytes(nth)).sum();
            let headers = usize::from(part.cut_or_located().header_len);
            prop_assert_eq!(part.bytes.len() - VirtioNetHdr::LEN, line - (range.len() - 1) * headers);
            let skipped = first * usize::from(size);
            prop_assert_eq!(sequence(&part), sequence(&whole).wrapping_add(skipped as u32));
            let offsets = part.cut_or_located();
            let frame = &part.bytes[VirtioNetHdr::LEN..];
            let expected = (skipped..payload.min(range.end * usize::from(size))).map(|n| (n % 251) as u8);
            prop_assert!(frame[offsets.payload()].iter().copied().eq(expected));
            prop_assert_eq!(part.segments(), range.len());
            prop_assert_eq!(part.flags() & CWR != 0, first == 0);
            prop_assert_eq!(part.flags() & (FIN | PSH) != 0, range.end == segments);
            if !v6 {
                prop_assert!(checksum::verify(&frame[14..34], 0));
            }
            // The kernel that gets it finishes the checksum; what it then is must be right.
            let mut finished = frame.to_vec();
            checksum::complete_partial(&mut finished).unwrap();
            let address = |at: usize| -> IpAddr { if v6 {
                Ipv6Addr::from(*finished[at..].first_chunk::<16>().unwrap()).into()
            } else {
                Ipv4Addr::from(*finished[at..].first_chunk::<4>().unwrap()).into()
            }};
            let (source, destination) = if v6 { (address(22), address(38)) } else { (address(26), address(30)) };
            let tcp = &finished[offsets.l4()];
            let pseudo = checksum::pseudo_header_sum(source, destination, TCP, tcp.len() as u32);
            prop_assert!(checksum::verify(tcp, pseudo));
        }
    }

    #[test]
    fn a_frame_that_is_not_cut_is_one_segment() {
        let frame = Frame::new(vec![0; VirtioNetHdr::LEN + 60]).unwrap();
        assert_eq!((frame.segments(), frame.line_bytes(0)), (1, 60));
        assert_eq!(frame.part(&(0..1)), frame);
        assert!(Frame::new(vec![0; VirtioNetHdr::LEN - 1]).is_none());
    }
}
