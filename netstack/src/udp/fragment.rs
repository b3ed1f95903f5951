//! Fragmentation of datagrams to the child, RFC 791 section 2.3 and RFC 8200 section 4.5.
//!
//! # Theory of operation
//! A host socket delivers datagrams whole, however long they are; those beyond the child's MTU are cut here
//! as a router (IPv4) or the sender (IPv6) would. All fragments but the last carry a multiple of 8 bytes.
//! Whoever calls has completed the transport checksum: it spans the fragments.
//!
//! Not handled: options and extension headers, "don't fragment" (the host's kernel has already applied it).

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::offload::checksum;

/// What the IP headers of all fragments share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentedPacket<A> {
    /// Source.
    pub src: A,
    /// Destination.
    pub dst: A,
    /// Transport protocol.
    pub protocol: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Identification, unique per addresses and protocol for the lifetime of a packet; with IPv4 its lower
    /// 16 bits count.
    pub ident: u32,
}

/// Cuts `payload` (transport header and data) into IPv4 packets of at most `mtu` bytes and hands each to
/// `emit`. A payload that fits makes one packet that is no fragment. Returns the number of packets: 0 where
/// `payload` is longer than IPv4's 65515 bytes or `mtu` is less than 28.
pub fn fragment_v4(
    packet: &FragmentedPacket<Ipv4Addr>,
    payload: &[u8],
    mtu: u16,
    mut emit: impl FnMut(&[u8]),
) -> usize {
    const HEADER: usize = 20;
    const MORE_FRAGMENTS: u16 = 0x2000;
    let room = usize::from(mtu).saturating_sub(HEADER);
    if payload.len() > 65535 - HEADER || room < 8 {
        return 0;
    }
    let mut buffer = Vec::with_capacity(HEADER + room.min(payload.len()));
    let mut count = 0;
    for piece in pieces(payload, room, room) {
        let more = if piece.is_last() { 0 } else { MORE_FRAGMENTS };
        buffer.clear();
        buffer.extend_from_slice(&[0x45, 0]);
        buffer.extend_from_slice(&((HEADER + piece.bytes.len()) as u16).to_be_bytes());
        buffer.extend_from_slice(&(packet.ident as u16).to_be_bytes());
        buffer.extend_from_slice(&(more | (piece.offset / 8) as u16).to_be_bytes());
        buffer.extend_from_slice(&[packet.ttl, packet.protocol, 0, 0]);
        buffer.extend_from_slice(&packet.src.octets());
        buffer.extend_from_slice(&packet.dst.octets());
        let sum = checksum::checksum(&buffer, 0);
        buffer[10..12].copy_from_slice(&sum.to_be_bytes());
        buffer.extend_from_slice(piece.bytes);
        emit(&buffer);
        count += 1;
    }
    count
}

/// Cuts `payload` (transport header and data) into IPv6 packets of at most `mtu` bytes and hands each to
/// `emit`. A payload that fits makes one packet without fragment header. Returns the number of packets: 0
/// where `payload` is longer than 65535 bytes or `mtu` is less than 56.
pub fn fragment_v6(
    packet: &FragmentedPacket<Ipv6Addr>,
    payload: &[u8],
    mtu: u16,
    mut emit: impl FnMut(&[u8]),
) -> usize {
    const HEADER: usize = 40;
    const FRAGMENT_HEADER: usize = 8;
    const FRAGMENT: u8 = 44;
    let whole_room = usize::from(mtu).saturating_sub(HEADER);
    let room = whole_room.saturating_sub(FRAGMENT_HEADER);
    if payload.len() > 65535 || room < 8 {
        return 0;
    }
    let mut buffer = Vec::with_capacity(HEADER + whole_room.min(payload.len()));
    let mut count = 0;
    for piece in pieces(payload, whole_room, room) {
        let is_fragment = piece.bytes.len() < payload.len();
        let extension = if is_fragment { FRAGMENT_HEADER } else { 0 };
        buffer.clear();
        buffer.extend_from_slice(&[0x60, 0, 0, 0]);
        buffer.extend_from_slice(&((extension + piece.bytes.len()) as u16).to_be_bytes());
        buffer.extend_from_slice(&[if is_fragment { FRAGMENT } else { packet.protocol }, packet.ttl]);
        buffer.extend_from_slice(&packet.src.octets());
        buffer.extend_from_slice(&packet.dst.octets());
        if is_fragment {
            let more = u16::from(!piece.is_last());
            buffer.extend_from_slice(&[packet.protocol, 0]);
            buffer.extend_from_slice(&(piece.offset as u16 | more).to_be_bytes());
            buffer.extend_from_slice(&packet.ident.to_be_bytes());
        }
        buffer.extend_from_slice(piece.bytes);
        emit(&buffer);
        count += 1;
    }
    count
}

struct Piece<'a> {
    offset: usize,
    bytes: &'a [u8],
    total: usize,
}

impl Piece<'_> {
    fn is_last(&self) -> bool {
        self.offset + self.bytes.len() == self.total
    }
}

/// One piece if `payload` fits `whole_room`, else pieces of `room` rounded down to 8 bytes (`room >= 8`).
fn pieces(payload: &[u8], whole_room: usize, room: usize) -> impl Iterator<Item = Piece<'_>> {
    let size = if payload.len() <= whole_room { payload.len().max(1) } else { room & !7 };
    let total = payload.len();
    payload.chunks(size).enumerate().map(move |(n, bytes)| Piece { offset: n * size, bytes, total })
}

#[cfg(test)]
mod tests {
    use etherparse::{IpPayloadSlice, NetSlice, SlicedPacket};
    use proptest::prelude::*;

    use super::super::reassembly::{FragmentKey, MoreFragments, Reassembly};
    use super::*;
    use crate::time::{Duration, Instant};

    const V4: FragmentedPacket<Ipv4Addr> = FragmentedPacket {
        src: Ipv4Addr::new(192, 0, 2, 1),
        dst: Ipv4Addr::new(10, 0, 42, 100),
        protocol: 17,
        ttl: 61,
        ident: 0x1234_5678,
    };

    const V6: FragmentedPacket<Ipv6Addr> = FragmentedPacket {
        src: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
        dst: Ipv6Addr::new(0xfd42, 0x10, 0x42, 0, 0, 0, 0, 0x100),
        protocol: 17,
        ttl: 61,
        ident: 0x1234_5678,
    };

    fn v4(payload: &[u8], mtu: u16) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        let count = fragment_v4(&V4, payload, mtu, |packet| packets.push(packet.to_vec()));
        assert_eq!(count, packets.len());
        packets
    }

    fn v6(payload: &[u8], mtu: u16) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        let count = fragment_v6(&V6, payload, mtu, |packet| packets.push(packet.to_vec()));
        assert_eq!(count, packets.len());
        packets
    }

    /// etherparse reads the packet; what it says about the fragment goes into our own store.
    fn reassemble(store: &mut Reassembly, packet: &[u8]) -> Option<Vec<u8>> {
        let sliced = SlicedPacket::from_ip(packet).unwrap();
        let net = sliced.net.unwrap();
        let ip: IpPayloadSlice<'_> = net.ip_payload_ref().unwrap().clone();
        let (src, dst, id, offset, more) = match &net {
            NetSlice::Ipv4(slice) => {
                let header = slice.header();
                assert_eq!(header.ttl(), 61);
                assert_eq!(header.to_header().calc_header_checksum(), header.header_checksum());
                (
                    header.source_addr().into(),
                    header.destination_addr().into(),
                    u32::from(header.identification()),
                    header.fragments_offset().byte_offset(),
                    header.more_fragments(),
                )
            }
            NetSlice::Ipv6(slice) => {
                let header = slice.header();
                assert_eq!(header.hop_limit(), 61);
                let fragment = slice.extensions().clone().into_iter().find_map(|extension| match extension {
                    etherparse::Ipv6ExtensionSlice::Fragment(fragment) => Some(fragment.to_header()),
                    _ => None,
                });
                let fragment = fragment.expect("a fragment header");
                (
                    header.source_addr().into(),
                    header.destination_addr().into(),
                    fragment.identification,
                    fragment.fragment_offset.byte_offset(),
                    fragment.more_fragments,
                )
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(ip.ip_number, etherparse::IpNumber::UDP);
        let key = FragmentKey { src, dst, id, protocol: 17 };
        let more = if more { MoreFragments::More } else { MoreFragments::Last };
        store.insert(Instant::ZERO, key, offset as usize, more, ip.payload).unwrap()
    }

    #[test]
    fn what_fits_is_not_fragmented() {
        for len in [1, 8, 1459, 1460, 1480] {
            let packets = v4(&vec![7; len], 1500);
            assert_eq!((packets.len(), &packets[0][6..8]), (1, &[0, 0][..]));
        }
        for len in [1, 8, 1459, 1460] {
            let packets = v6(&vec![7; len], 1500);
            assert_eq!((packets.len(), packets[0][6]), (1, 17));
        }
        assert_eq!(v4(&[7; 1481], 1500).len(), 2);
        assert_eq!(v6(&[7; 1461], 1500).len(), 2);
    }

    #[test]
    fn what_no_ip_packet_holds_is_not_sent() {
        assert_eq!(v4(&vec![0; 65516], 1500).len(), 0);
        assert_eq!(v6(&vec![0; 65536], 1500).len(), 0);
        assert_eq!(v4(&[0; 100], 27).len(), 0);
        assert_eq!(v6(&[0; 100], 55).len(), 0);
        assert_eq!(v4(&vec![0; 65515], 1500).len(), 45);
        assert_eq!(v6(&vec![0; 65535], 1500).len(), 46);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn fragments_fit_the_mtu_and_reassemble(
            payload in proptest::collection::vec(any::<u8>(), 1600..20_000), mtu in 1280..1500u16,
        ) {
            for packets in [v4(&payload, mtu), v6(&payload, mtu)] {
                let mut store = Reassembly::new(1 << 20, Duration::from_secs(30));
                let mut whole = None;
                for packet in packets.iter().rev() {
                    prop_assert!(packet.len() <= usize::from(mtu));
                    prop_assert_eq!(&whole, &None);
                    whole = reassemble(&mut store, packet);
                }
                prop_assert_eq!(whole.as_ref(), Some(&payload));
            }
        }
    }
}
