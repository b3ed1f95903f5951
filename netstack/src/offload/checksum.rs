//! Internet checksum, RFC 1071, and its incremental update, RFC 1624.
//!
//! # Theory of operation
//! The one's complement sum does not care about byte order (RFC 1071 section 2 B), so bytes are summed as
//! native words of 32 bits into 64-bit lanes that cannot overflow, and only the folded 16 bits are brought
//! into network order. Independent lanes let the compiler use vector registers.
//!
//! A *sum* here is folded and not inverted; a *checksum* is the inverted sum as it stands in a header.

use std::net::IpAddr;

use super::{HeaderOffsets, Transport};
use crate::error::DropReason;

/// One's complement sum of `data`, as if followed by a zero byte where its length is odd.
pub fn sum(data: &[u8]) -> u16 {
    let mut lanes = Lanes::default();
    let (chunks, rest) = data.as_chunks();
    for chunk in chunks {
        lanes.add(chunk);
    }
    lanes.finish(rest)
}

/// Copies `from` to `to`, which has the same length, and sums it as [`sum`] does.
pub fn copy(from: &[u8], to: &mut [u8]) -> u16 {
    let mut lanes = Lanes::default();
    let ((chunks, rest), (copies, rest_of_copy)) = (from.as_chunks(), to.as_chunks_mut());
    for (chunk, copy) in chunks.iter().zip(copies) {
        *copy = *chunk;
        lanes.add(chunk);
    }
    for (to, from) in rest_of_copy.iter_mut().zip(rest) {
        *to = *from;
    }
    lanes.finish(rest)
}

/// A sum under way.
#[derive(Default)]
struct Lanes([u64; LANES]);

const LANES: usize = 8;
/// Bytes added at once.
const CHUNK: usize = LANES * 4;

// Inlined, or a short header costs a fifth more than the work itself: the lanes would pass through memory.
impl Lanes {
    #[inline(always)]
    fn add(&mut self, chunk: &[u8; CHUNK]) {
        let (words, _) = chunk.as_chunks::<4>();
        for (lane, word) in self.0.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }

    /// The sum with the last bytes.
    #[inline(always)]
    fn finish(self, rest: &[u8]) -> u16 {
        let mut total: u64 = 0;
        for lane in self.0 {
            total += (lane & 0xffff_ffff) + (lane >> 32);
        }
        let (words, rest) = rest.as_chunks::<4>();
        for word in words {
            total += u64::from(u32::from_ne_bytes(*word));
        }
        let mut last = [0; 4];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        total += u64::from(u32::from_ne_bytes(last));
        u16::from_be(fold(total))
    }
}

/// The sum of data that holds its right checksum.
pub const RIGHT: u16 = 0xffff;

/// One's complement sum of two sums.
pub fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

/// The checksum of `data`, to be written into a header whose checksum field is zero in `data`.
/// `initial` is the sum of what is not in `data`: [`pseudo_header_sum`], or 0.
pub fn checksum(data: &[u8], initial: u16) -> u16 {
    !add(sum(data), initial)
}

/// Whether `data` that holds its checksum is intact. `initial` as for [`checksum`].
pub fn verify(data: &[u8], initial: u16) -> bool {
    add(sum(data), initial) == RIGHT
}

/// Sum of the pseudo-header: RFC 9293 section 3.1 for IPv4, RFC 8200 section 8.1 for IPv6. `len` is the
/// length of transport header and payload in bytes. This is also what a partial checksum field holds.
pub fn pseudo_header_sum(src: IpAddr, dst: IpAddr, protocol: u8, len: u32) -> u16 {
    let address = |address: IpAddr| match address {
        IpAddr::V4(v4) => sum(&v4.octets()),
        IpAddr::V6(v6) => sum(&v6.octets()),
    };
    let length = add((len >> 16) as u16, len as u16);
    add(add(address(src), address(dst)), add(length, u16::from(protocol)))
}

/// The checksum after a part of the summed data has changed from `old` to `new` (RFC 1624 equation 3).
/// Both have the same length and start at an even offset. UDP's "no checksum" is the caller's business.
pub fn update(checksum: u16, old: &[u8], new: &[u8]) -> u16 {
    !add(add(!checksum, !sum(old)), sum(new))
}

/// Finishes the partial TCP or UDP checksum of a frame. What follows the IP packet is not summed.
pub fn complete_partial(frame: &mut [u8]) -> Result<(), DropReason> {
    let offsets = HeaderOffsets::locate(frame).ok_or(DropReason::Malformed)?;
    let l4 = frame.get_mut(offsets.l4()).ok_or(DropReason::Truncated)?;
    // The field already holds the pseudo-header's sum.
    let value = for_wire(offsets.transport, checksum(l4, 0));
    let start = usize::from(offsets.transport.checksum_offset());
    let field = l4.get_mut(start..start + 2).ok_or(DropReason::Truncated)?;
    field.copy_from_slice(&value.to_be_bytes());
    Ok(())
}

/// The value to write: a UDP checksum that computes to zero is sent as all ones (RFC 768).
pub fn for_wire(transport: Transport, checksum: u16) -> u16 {
    match (transport, checksum) {
        (Transport::Udp, 0) => 0xffff,
        (_, checksum) => checksum,
    }
}

fn fold(total: u64) -> u16 {
    let total = (total & 0xffff_ffff) + (total >> 32);
    let total = (total & 0xffff) + ((total >> 16) & 0xffff) + (total >> 32);
    let total = (total & 0xffff) + (total >> 16);
    let total = (total & 0xffff) + (total >> 16);
    total as u16
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::offload::tests::{tcp4, tcp6, udp4, udp6};

    /// RFC 1071 section 4.1, word by word.
    fn naive(data: &[u8]) -> u16 {
        let mut total = 0u64;
        for pair in data.chunks(2) {
            total += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
        }
        while total > 0xffff {
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    #[test]
    fn the_example_of_rfc_1071() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    }

    #[test]
    fn nothing_sums_to_zero_and_ones_stay_ones() {
        assert_eq!(sum(&[]), 0);
        assert_eq!(sum(&[0; 1500]), 0);
        assert_eq!(sum(&[0xff; 1 << 20]), 0xffff);
    }

    #[test]
    fn etherparse_agrees_about_whole_frames() {
        for frame in [udp4(b"odd"), udp6(b"even"), tcp4(&[7; 1001]), tcp6(&[0xff; 1400])] {
            let offsets = HeaderOffsets::locate(&frame).unwrap();
            let sliced = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
            let (src, dst): (IpAddr, IpAddr) = match sliced.net.unwrap() {
                etherparse::NetSlice::Ipv4(ip) => {
                    (ip.header().source_addr().into(), ip.header().destination_addr().into())
                }
                etherparse::NetSlice::Ipv6(ip) => {
                    (ip.header().source_addr().into(), ip.header().destination_addr().into())
                }
                other => panic!("{other:?}"),
            };
            let protocol = if offsets.transport == Transport::Tcp { 6 } else { 17 };
            let pseudo = pseudo_header_sum(src, dst, protocol, offsets.l4().len() as u32);
            assert!(verify(&frame[offsets.l4()], pseudo));

            let mut partial = frame.clone();
            let at = usize::from(offsets.l4_start + offsets.transport.checksum_offset());
            partial[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
            complete_partial(&mut partial).unwrap();
            assert_eq!(partial, frame);
        }
    }

    #[test]
    fn a_udp_checksum_of_zero_is_sent_as_ones() {
        // Searched: the payload that makes the checksum compute to zero.
        let zero = (0..=u16::MAX).find(|word| {
            let mut frame = udp4(&[0, 0]);
            frame[42..44].copy_from_slice(&word.to_be_bytes());
            let pseudo = pseudo_header_sum(
                Ipv4Addr::new(10, 0, 42, 100).into(),
                Ipv4Addr::new(192, 0, 2, 1).into(),
                17,
                10,
            );
            frame[40..42].copy_from_slice(&pseudo.to_be_bytes());
            if checksum(&frame[34..], 0) != 0 {
                return false;
            }
            complete_partial(&mut frame).unwrap();
            assert_eq!(frame[40..42], [0xff, 0xff]);
            true
        });
        assert!(zero.is_some());
    }

    proptest! {
        #[test]
        fn sum_equals_the_naive_sum(data in proptest::collection::vec(any::<u8>(), 0..300), skip in 0..8usize) {
            let data = data.get(skip..).unwrap_or(&[]);
            prop_assert_eq!(sum(data), naive(data));
            let mut to = vec![1; data.len()];
            prop_assert_eq!(copy(data, &mut to), naive(data));
            prop_assert_eq!(to, data);
        }

        #[test]
        fn pseudo_header_equals_its_bytes(
            src: [u8; 16], dst: [u8; 16], src4: [u8; 4], dst4: [u8; 4], protocol: u8, len: u32,
        ) {
            let mut bytes = [&src[..], &dst[..]].concat();
            bytes.extend_from_slice(&len.to_be_bytes());
            bytes.extend_from_slice(&[0, 0, 0, protocol]);
            let v6 = |octets| IpAddr::from(Ipv6Addr::from(octets));
            prop_assert_eq!(pseudo_header_sum(v6(src), v6(dst), protocol, len), naive(&bytes));

            let mut bytes = [&src4[..], &dst4[..]].concat();
            bytes.extend_from_slice(&[0, protocol]);
            bytes.extend_from_slice(&(len as u16).to_be_bytes());
            let v4 = |octets| IpAddr::from(Ipv4Addr::from(octets));
            prop_assert_eq!(pseudo_header_sum(v4(src4), v4(dst4), protocol, len & 0xffff), naive(&bytes));
        }

        #[test]
        fn updated_equals_recomputed(
            mut data in proptest::collection::vec(any::<u8>(), 40..80), word in 1..8usize, new: [u8; 4],
        ) {
            data[0] |= 1; // one byte outside of the change is not zero, as in every real header
            let before = checksum(&data, 0);
            let at = word * 2..word * 2 + 4;
            let updated = update(before, &data[at.clone()], &new);
            data[at].copy_from_slice(&new);
            prop_assert_eq!(updated, checksum(&data, 0));
        }

        #[test]
        fn a_flipped_bit_is_seen(mut data in proptest::collection::vec(any::<u8>(), 2..200), at: usize, bit in 0..8u8) {
            data.resize(data.len() & !1, 0);
            let value = checksum(&data, 0);
            data.extend_from_slice(&value.to_be_bytes());
            prop_assert!(verify(&data, 0));
            let at = at % data.len();
            data[at] ^= 1u8 << bit;
            prop_assert!(!verify(&data, 0));
        }
    }
}
