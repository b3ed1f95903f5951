//! Software segmentation of UDP super-datagrams, for a link that cannot do it.
//!
//! TCP super-segments have no counterpart here: the TCP endpoint makes them only for a link that cuts them
//! itself, and is bound to the child's MSS otherwise.

use super::{HeaderOffsets, IpVersion, Transport, checksum};
use crate::error::DropReason;
use crate::frame::Checksum;

/// Cuts the super-datagram `frame` into frames with `size` bytes of payload each (the last may have less)
/// and hands each to `emit`. Returns their number.
///
/// The transport checksum of `frame` is not looked at. Those of the frames are as `checksum` says:
/// [`Checksum::Partial`] leaves them to the link, anything else computes them. IPv4 identifications count up
/// from that of `frame`. `buffer` is scratch space, to be reused between calls.
///
/// The only error is [`DropReason::Malformed`]: `frame` is not UDP, or `size` is 0.
pub fn split_udp(
    frame: &[u8],
    size: u16,
    checksum: Checksum,
    buffer: &mut Vec<u8>,
    mut emit: impl FnMut(&[u8]),
) -> Result<usize, DropReason> {
    let offsets = HeaderOffsets::locate(frame)
        .filter(|offsets| offsets.transport == Transport::Udp && size > 0)
        .ok_or(DropReason::Malformed)?;
    let (headers, payload) = (&frame[..usize::from(offsets.header_len)], &frame[offsets.payload()]);
    let l4_start = usize::from(offsets.l4_start);
    let mut count = 0;
    for piece in payload.chunks(usize::from(size)) {
        buffer.clear();
        buffer.extend_from_slice(headers);
        buffer.extend_from_slice(piece);
        let (ip, udp) = buffer[super::ETHERNET_LEN..].split_at_mut(l4_start - super::ETHERNET_LEN);
        let udp_len = udp.len() as u16;
        let pseudo = match offsets.ip_version {
            IpVersion::V4 => renumber_v4(ip, udp_len, count as u16),
            IpVersion::V6 => {
                ip[v6::PAYLOAD_LENGTH].copy_from_slice(&udp_len.to_be_bytes());
                checksum::sum(&ip[v6::ADDRESSES])
            }
        };
        let pseudo = checksum::add(checksum::add(pseudo, UDP), udp_len);
        udp[udp::LENGTH].copy_from_slice(&udp_len.to_be_bytes());
        udp[udp::CHECKSUM].copy_from_slice(&pseudo.to_be_bytes());
        if checksum != Checksum::Partial {
            // With the pseudo-header's sum in the field, the sum of all is the rest of the work.
            let value = checksum::for_wire(Transport::Udp, checksum::checksum(udp, 0));
            udp[udp::CHECKSUM].copy_from_slice(&value.to_be_bytes());
        }
        emit(buffer);
        count += 1;
    }
    Ok(count)
}

/// Length, identification and checksum of an IPv4 header; returns the sum of its addresses.
fn renumber_v4(ip: &mut [u8], udp_len: u16, nth: u16) -> u16 {
    let ident = u16::from_be_bytes([ip[v4::IDENT.start], ip[v4::IDENT.start + 1]]).wrapping_add(nth);
    let total = ip.len() as u16 + udp_len;
    ip[v4::TOTAL_LENGTH].copy_from_slice(&total.to_be_bytes());
    ip[v4::IDENT].copy_from_slice(&ident.to_be_bytes());
    ip[v4::CHECKSUM].fill(0);
    let value = checksum::checksum(ip, 0);
    ip[v4::CHECKSUM].copy_from_slice(&value.to_be_bytes());
    checksum::sum(&ip[v4::ADDRESSES])
}

const UDP: u16 = 17;

mod v4 {
    use std::ops::Range;

    pub(super) const TOTAL_LENGTH: Range<usize> = 2..4;
    pub(super) const IDENT: Range<usize> = 4..6;
    pub(super) const CHECKSUM: Range<usize> = 10..12;
    pub(super) const ADDRESSES: Range<usize> = 12..20;
}

mod v6 {
    use std::ops::Range;

    pub(super) const PAYLOAD_LENGTH: Range<usize> = 4..6;
    pub(super) const ADDRESSES: Range<usize> = 8..40;
}

mod udp {
    use std::ops::Range;

    pub(super) const LENGTH: Range<usize> = 4..6;
    pub(super) const CHECKSUM: Range<usize> = 6..8;
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    use super::*;
    use crate::offload::tests::{tcp4, udp4, udp6};

    fn split(frame: &[u8], size: u16, checksum: Checksum) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let count = split_udp(frame, size, checksum, &mut Vec::new(), |frame| frames.push(frame.to_vec()));
        assert_eq!(count, Ok(frames.len()));
        frames
    }

    /// Payload of a frame that etherparse finds correct down to the checksums.
    fn judged(frame: &[u8], ident: u16) -> Vec<u8> {
        let sliced = SlicedPacket::from_ethernet(frame).unwrap();
        let Some(TransportSlice::Udp(udp)) = sliced.transport else { panic!("not UDP") };
        let checksum = match sliced.net.unwrap() {
            NetSlice::Ipv4(ip) => {
                let header = ip.header().to_header();
                assert_eq!(header.calc_header_checksum(), header.header_checksum);
                assert_eq!(header.identification, ident);
                udp.to_header().calc_checksum_ipv4(&header, udp.payload()).unwrap()
            }
            NetSlice::Ipv6(ip) => {
                udp.to_header().calc_checksum_ipv6(&ip.header().to_header(), udp.payload()).unwrap()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(udp.checksum(), checksum);
        udp.payload().to_vec()
    }

    #[test]
    fn only_udp_is_cut() {
        let cut = |frame: &[u8], size| split_udp(frame, size, Checksum::Complete, &mut Vec::new(), |_| ());
        assert_eq!(cut(&tcp4(b"abc"), 2), Err(DropReason::Malformed));
        assert_eq!(cut(&udp4(b"abc"), 0), Err(DropReason::Malformed));
        assert_eq!(cut(&[], 2), Err(DropReason::Malformed));
    }

    proptest! {
        #[test]
        fn pieces_are_correct_datagrams(
            payload in proptest::collection::vec(any::<u8>(), 1..3000), size in 40..1472u16, ident in 0..3u16,
        ) {
            for mut frame in [udp4(&payload), udp6(&payload)] {
                let ident = 0xffff - ident;
                if frame[12] == 0x08 {
                    frame[18..20].copy_from_slice(&ident.to_be_bytes());
                }
                let mut whole = Vec::new();
                for (n, piece) in split(&frame, size, Checksum::Complete).iter().enumerate() {
                    whole.extend(judged(piece, ident.wrapping_add(n as u16)));
                }
                prop_assert_eq!(&whole, &payload);

                let mut partial = split(&frame, size, Checksum::Partial);
                partial.iter_mut().for_each(|piece| checksum::complete_partial(piece).unwrap());
                prop_assert_eq!(partial, split(&frame, size, Checksum::Complete));
            }
        }
    }
}
