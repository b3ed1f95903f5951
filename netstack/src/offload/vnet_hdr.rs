//! `struct virtio_net_hdr`, the ten bytes in front of every frame of a TAP opened with `IFF_VNET_HDR`
//! (virtio 1.2 section 5.1.6, Linux `include/uapi/linux/virtio_net.h`).
//!
//! # Theory of operation
//! From the child, [`accept`] turns the header into an [`Offload`]. The header may name *any* checksum of
//! the frame: where the child itself encapsulates (VXLAN between nodes), it is that of the inner segment,
//! which leaves here as UDP payload and has to be finished first. `accept` does that, so that
//! [`Checksum::Partial`] always speaks of the outermost transport header.
//!
//! To the child, [`emit`] and [`emit_for_frame`] build the header.
//!
//! Not handled: the 12-byte form with `num_buffers` (we do not use `TUNSETVNETHDRSZ`), legacy UDP
//! fragmentation offload (`TUN_F_UFO` is never asked for), tunnel segmentation. Integers are in the
//! machine's byte order, the TAP's default as long as nobody calls `TUNSETVNETLE`.

use super::{HeaderOffsets, IpVersion, Transport, checksum};
use crate::error::DropReason;
use crate::frame::{Checksum, Gso, Offload};

/// The header, field by field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioNetHdr {
    /// [`NEEDS_CSUM`](Self::NEEDS_CSUM), [`DATA_VALID`](Self::DATA_VALID).
    pub flags: u8,
    /// One of the `GSO_*` constants, perhaps with [`GSO_ECN`](Self::GSO_ECN).
    pub gso_type: u8,
    /// Length of all headers; a hint.
    pub hdr_len: u16,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// Where summing starts, from the start of the Ethernet header.
    pub csum_start: u16,
    /// Where the sum goes, from `csum_start`.
    pub csum_offset: u16,
}

impl VirtioNetHdr {
    /// Bytes in front of the frame.
    pub const LEN: usize = 10;

    /// The checksum from `csum_start` on is left to the receiver.
    pub const NEEDS_CSUM: u8 = 1;
    /// The checksum was verified.
    pub const DATA_VALID: u8 = 2;
    /// Not a super-segment.
    pub const GSO_NONE: u8 = 0;
    /// TCP over IPv4.
    pub const GSO_TCPV4: u8 = 1;
    /// TCP over IPv6.
    pub const GSO_TCPV6: u8 = 4;
    /// UDP super-datagram over either.
    pub const GSO_UDP_L4: u8 = 5;
    /// The super-segment has CWR set.
    pub const GSO_ECN: u8 = 0x80;

    /// Reads the fields.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = *bytes;
        VirtioNetHdr {
            flags,
            gso_type,
            hdr_len: u16::from_ne_bytes([h0, h1]),
            gso_size: u16::from_ne_bytes([g0, g1]),
            csum_start: u16::from_ne_bytes([s0, s1]),
            csum_offset: u16::from_ne_bytes([o0, o1]),
        }
    }

    /// Writes the fields.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let [h0, h1] = self.hdr_len.to_ne_bytes();
        let [g0, g1] = self.gso_size.to_ne_bytes();
        let [s0, s1] = self.csum_start.to_ne_bytes();
        let [o0, o1] = self.csum_offset.to_ne_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1]
    }

    /// What the header says about a frame of `frame_len` bytes. The only error is
    /// [`DropReason::BadVnetHeader`]. Where the frame is at hand, [`accept`] is the better choice.
    pub fn parse(bytes: &[u8; Self::LEN], frame_len: usize) -> Result<Offload, DropReason> {
        let header = Self::from_bytes(bytes);
        let checksum = if header.flags & Self::NEEDS_CSUM != 0 {
            let field = usize::from(header.csum_start) + usize::from(header.csum_offset);
            if field + 2 > frame_len {
                return Err(DropReason::BadVnetHeader);
            }
            Checksum::Partial
        } else if header.flags & Self::DATA_VALID != 0 {
            Checksum::Verified
        } else {
            Checksum::Complete
        };
        // CWR of a super-segment needs no care from somebody who does not resegment.
        let gso = match (header.gso_type & !Self::GSO_ECN, header.gso_size) {
            (Self::GSO_NONE, _) => Gso::None,
            // A super-segment carries one checksum for many segments: nobody can verify it as it stands.
            (_, 0) => return Err(DropReason::BadVnetHeader),
            _ if checksum == Checksum::Complete => return Err(DropReason::BadVnetHeader),
            (Self::GSO_TCPV4 | Self::GSO_TCPV6, size) => Gso::Tcp(size),
            (Self::GSO_UDP_L4, size) => Gso::Udp(size),
            _ => return Err(DropReason::BadVnetHeader),
        };
        Ok(Offload { checksum, gso })
    }
}

/// Takes a frame from the child: checks the header against the frame and finishes a checksum that is not
/// the outermost transport's. The only error is [`DropReason::BadVnetHeader`].
pub fn accept(header: &[u8; VirtioNetHdr::LEN], frame: &mut [u8]) -> Result<Offload, DropReason> {
    let mut offload = VirtioNetHdr::parse(header, frame.len())?;
    if offload == Offload::default() {
        return Ok(offload);
    }
    let fields = VirtioNetHdr::from_bytes(header);
    let offsets = HeaderOffsets::locate(frame);
    let gso_fits = match (fields.gso_type & !VirtioNetHdr::GSO_ECN, offsets) {
        (VirtioNetHdr::GSO_NONE, _) => true,
        (gso_type, Some(offsets)) => gso_type == gso_type_of(offsets),
        (_, None) => false,
    };
    if !gso_fits {
        return Err(DropReason::BadVnetHeader);
    }
    let is_outermost = offsets.is_some_and(|offsets| {
        offsets.l4_start == fields.csum_start && offsets.transport.checksum_offset() == fields.csum_offset
    });
    if offload.checksum == Checksum::Partial && !is_outermost {
        if offload.gso != Gso::None {
            return Err(DropReason::BadVnetHeader);
        }
        finish(frame, fields)?;
        offload.checksum = Checksum::Complete;
    }
    Ok(offload)
}

/// The header of a frame to the child. A super-segment has to be [`Checksum::Partial`]; the kernel then
/// computes the checksum of each segment from the pseudo-header sum in the field. `DATA_VALID` is never
/// written, Linux does not heed it.
pub fn emit(offload: Offload, offsets: &HeaderOffsets) -> [u8; VirtioNetHdr::LEN] {
    let mut header = VirtioNetHdr::default();
    if offload.checksum == Checksum::Partial {
        header.flags = VirtioNetHdr::NEEDS_CSUM;
        header.csum_start = offsets.l4_start;
        header.csum_offset = offsets.transport.checksum_offset();
    }
    if let Gso::Tcp(size) | Gso::Udp(size) = offload.gso {
        header.gso_type = gso_type_of(*offsets);
        header.gso_size = size;
        header.hdr_len = offsets.header_len;
    }
    header.to_bytes()
}

/// [`emit`] for a frame of our own making, whose headers are found by reading it. A frame that is neither
/// TCP nor UDP gets the empty header.
pub fn emit_for_frame(offload: Offload, frame: &[u8]) -> [u8; VirtioNetHdr::LEN] {
    if offload.checksum != Checksum::Partial && offload.gso == Gso::None {
        return [0; VirtioNetHdr::LEN];
    }
    HeaderOffsets::locate(frame).map_or([0; VirtioNetHdr::LEN], |offsets| emit(offload, &offsets))
}

fn gso_type_of(offsets: HeaderOffsets) -> u8 {
    match (offsets.transport, offsets.ip_version) {
        (Transport::Udp, _) => VirtioNetHdr::GSO_UDP_L4,
        (Transport::Tcp, IpVersion::V4) => VirtioNetHdr::GSO_TCPV4,
        (Transport::Tcp, IpVersion::V6) => VirtioNetHdr::GSO_TCPV6,
    }
}

/// Sums from `csum_start` to the end of the frame and writes the result, as a network card would.
fn finish(frame: &mut [u8], fields: VirtioNetHdr) -> Result<(), DropReason> {
    let summed = frame.get_mut(usize::from(fields.csum_start)..).ok_or(DropReason::BadVnetHeader)?;
    let transport = match fields.csum_offset {
        6 => Transport::Udp,
        _ => Transport::Tcp,
    };
    let value = checksum::for_wire(transport, checksum::checksum(summed, 0));
    let at = usize::from(fields.csum_offset);
    summed.get_mut(at..at + 2).ok_or(DropReason::BadVnetHeader)?.copy_from_slice(&value.to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::offload::tests::{tcp4, tcp6, udp4, udp6};

    fn parse(header: VirtioNetHdr, frame_len: usize) -> Result<Offload, DropReason> {
        VirtioNetHdr::parse(&header.to_bytes(), frame_len)
    }

    const PARTIAL_TCP4: VirtioNetHdr =
        VirtioNetHdr { flags: 1, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 34, csum_offset: 16 };

    #[test]
    fn an_empty_header_asks_for_nothing() {
        assert_eq!(parse(VirtioNetHdr::default(), 0), Ok(Offload::default()));
    }

    #[test]
    fn data_valid_is_verified() {
        let header = VirtioNetHdr { flags: VirtioNetHdr::DATA_VALID, ..Default::default() };
        assert_eq!(parse(header, 60), Ok(Offload { checksum: Checksum::Verified, gso: Gso::None }));
    }

    #[test]
    fn the_checksum_field_has_to_lie_in_the_frame() {
        assert!(parse(PARTIAL_TCP4, 52).is_ok());
        assert_eq!(parse(PARTIAL_TCP4, 51), Err(DropReason::BadVnetHeader));
        let far = VirtioNetHdr { csum_start: u16::MAX, csum_offset: u16::MAX, ..PARTIAL_TCP4 };
        assert_eq!(parse(far, 70000), Err(DropReason::BadVnetHeader));
    }

    #[test]
    fn segmentation_types_of_linux() {
        let gso = |gso_type, gso_size| {
            parse(VirtioNetHdr { gso_type, gso_size, ..PARTIAL_TCP4 }, 3000).map(|offload| offload.gso)
        };
        assert_eq!(gso(1, 1448), Ok(Gso::Tcp(1448)));
        assert_eq!(gso(4, 1428), Ok(Gso::Tcp(1428)));
        assert_eq!(gso(0x81, 1448), Ok(Gso::Tcp(1448)));
        assert_eq!(gso(5, 1400), Ok(Gso::Udp(1400)));
        assert_eq!(gso(0, 1400), Ok(Gso::None));
        for (gso_type, size) in [(1, 0), (5, 0), (3, 1400), (2, 1400), (0x7f, 1400)] {
            assert_eq!(gso(gso_type, size), Err(DropReason::BadVnetHeader));
        }
    }

    #[test]
    fn a_super_segment_needs_a_partial_or_verified_checksum() {
        let header = VirtioNetHdr { gso_type: 1, gso_size: 1448, ..Default::default() };
        assert_eq!(parse(header, 3000), Err(DropReason::BadVnetHeader));
        assert!(parse(VirtioNetHdr { flags: VirtioNetHdr::DATA_VALID, ..header }, 3000).is_ok());
    }

    #[test]
    fn what_is_emitted_is_accepted_again() {
        for mut frame in [udp4(&[1; 3000]), udp6(&[1; 3000]), tcp4(&[1; 3000]), tcp6(&[1; 3000])] {
            let offsets = HeaderOffsets::locate(&frame).unwrap();
            let gso = match offsets.transport {
                Transport::Tcp => Gso::Tcp(1400),
                Transport::Udp => Gso::Udp(1400),
            };
            for offload in [
                Offload::default(),
                Offload { checksum: Checksum::Partial, gso: Gso::None },
                Offload { checksum: Checksum::Partial, gso },
            ] {
                let header = emit_for_frame(offload, &frame);
                assert_eq!(accept(&header, &mut frame), Ok(offload));
            }
            let fields = VirtioNetHdr::from_bytes(&emit_for_frame(
                Offload { checksum: Checksum::Partial, gso },
                &frame,
            ));
            assert_eq!(fields.hdr_len, offsets.header_len);
            assert_eq!(fields.csum_start, offsets.l4_start);
        }
    }

    #[test]
    fn segmentation_of_another_protocol_is_refused() {
        let mut frame = udp4(&[1; 3000]);
        let header = VirtioNetHdr {
            gso_type: VirtioNetHdr::GSO_TCPV4,
            gso_size: 1448,
            csum_offset: 6,
            ..PARTIAL_TCP4
        };
        assert_eq!(accept(&header.to_bytes(), &mut frame), Err(DropReason::BadVnetHeader));
    }

    #[test]
    fn the_inner_checksum_of_an_encapsulated_segment_is_finished() {
        let inner = tcp4(b"from a pod to a pod");
        let mut vxlan = vec![0x08, 0, 0, 0, 0, 0, 1, 0];
        let inner_at = 42 + vxlan.len();
        vxlan.extend_from_slice(&inner);
        let whole = udp4(&vxlan);

        // What the child's kernel hands over: the inner field holds the pseudo-header sum.
        let mut frame = whole.clone();
        let ip = |octets: [u8; 4]| IpAddr::from(octets);
        let pseudo = checksum::pseudo_header_sum(
            ip([10, 0, 42, 100]),
            ip([192, 0, 2, 1]),
            6,
            (inner.len() - 34) as u32,
        );
        let csum_start = inner_at + 34;
        frame[csum_start + 16..csum_start + 18].copy_from_slice(&pseudo.to_be_bytes());
        assert_ne!(frame, whole);

        let header = VirtioNetHdr { csum_start: csum_start as u16, ..PARTIAL_TCP4 };
        assert_eq!(accept(&header.to_bytes(), &mut frame), Ok(Offload::default()));
        assert_eq!(frame, whole);
    }

    proptest! {
        #[test]
        fn any_header_is_survived(
            header: [u8; 10], mut frame in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = accept(&header, &mut frame);
        }

        #[test]
        fn fields_survive_the_bytes(header: [u8; 10]) {
            prop_assert_eq!(VirtioNetHdr::from_bytes(&header).to_bytes(), header);
        }
    }
}
