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
//! Where super-segments inside UDP tunnels are asked for (`TUN_F_UDP_TUNNEL_GSO`, Linux 6.17), the header is a
//! `struct virtio_net_hdr_v1_hash_tunnel` of 24 bytes: behind the ten come `num_buffers` and a hash, which a TAP does
//! not use, and two offsets. [`accept_tunnel`] and [`emit_tunnel`] know both forms.
//!
//! Not handled: legacy UDP fragmentation offload (`TUN_F_UFO` is never asked for). Integers are in the machine's byte
//! order, the TAP's default as long as nobody calls `TUNSETVNETLE`; the two offsets are little-endian always.

use super::{HeaderOffsets, IpVersion, Transport, checksum};
use crate::error::DropReason;
use crate::frame::{Checksum, Gso, Offload, TunnelGso};

/// Bytes of the header with the offsets of tunnels.
pub const TUNNEL_LEN: usize = 24;

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
    /// The tunnel's own UDP checksum is left to the receiver, too.
    pub const UDP_TUNNEL_CSUM: u8 = 8;
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
    /// It is inside a UDP tunnel over IPv4.
    pub const GSO_TUNNEL_V4: u8 = 0x20;
    /// It is inside a UDP tunnel over IPv6.
    pub const GSO_TUNNEL_V6: u8 = 0x40;

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

/// [`accept`] for a header that may speak of a tunnel. The tunnel's own checksum of a super-segment is not looked at:
/// whoever sends the segments on computes it anew.
pub fn accept_tunnel(header: &[u8; TUNNEL_LEN], frame: &mut [u8]) -> Result<Offload, DropReason> {
    const TUNNEL: u8 = VirtioNetHdr::GSO_TUNNEL_V4 | VirtioNetHdr::GSO_TUNNEL_V6;
    let (plain, _) = header.split_first_chunk::<{ VirtioNetHdr::LEN }>().ok_or(DropReason::BadVnetHeader)?;
    let fields = VirtioNetHdr::from_bytes(plain);
    if fields.gso_type & TUNNEL == 0 {
        return accept(plain, frame);
    }
    locate_tunnel(fields, offset_at(header, OUTER_L4), offset_at(header, INNER_L3), frame)
        .map(|gso| Offload { checksum: Checksum::Partial, gso: Gso::Tunnel(gso) })
        .ok_or(DropReason::BadVnetHeader)
}

/// Checks a tunnel's offsets against the frame.
fn locate_tunnel(fields: VirtioNetHdr, outer_l4: u16, inner_l3: u16, frame: &[u8]) -> Option<TunnelGso> {
    let offsets = HeaderOffsets::locate(frame)?;
    let tunnel = match offsets.ip_version {
        IpVersion::V4 => VirtioNetHdr::GSO_TUNNEL_V4,
        IpVersion::V6 => VirtioNetHdr::GSO_TUNNEL_V6,
    };
    let inner_l4 = fields.csum_start;
    let version = frame.get(usize::from(inner_l3))? >> 4;
    let l3_min = if version == 4 { 20 } else { 40 };
    let is_tunnel = offsets.transport == Transport::Udp
        && offsets.l4_start == outer_l4
        && inner_l3 >= offsets.header_len
        && inner_l4 >= inner_l3.checked_add(l3_min)?
        && fields.flags & VirtioNetHdr::NEEDS_CSUM != 0
        && fields.gso_size > 0;
    let inner = fields.gso_type & !(tunnel | VirtioNetHdr::GSO_ECN);
    let (transport, header_len) = match (inner, version) {
        (VirtioNetHdr::GSO_TCPV4, 4) | (VirtioNetHdr::GSO_TCPV6, 6) => {
            let data_offset = u16::from(frame.get(usize::from(inner_l4) + 12)? >> 4) * 4;
            (Transport::Tcp, Some(data_offset).filter(|&len| len >= 20)?)
        }
        (VirtioNetHdr::GSO_UDP_L4, 4 | 6) => (Transport::Udp, 8),
        _ => return None,
    };
    let header_len = inner_l4.checked_add(header_len)?;
    let fits = usize::from(header_len) < offsets.l4_end as usize
        && fields.csum_offset == transport.checksum_offset();
    let payload = offsets.header_len;
    (is_tunnel && fits).then_some(TunnelGso {
        payload,
        inner_l3,
        inner_l4,
        header_len,
        transport,
        size: fields.gso_size,
    })
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

/// The header of a super-segment to the child inside a tunnel over `outer`. The inner checksum field holds the
/// pseudo-header sum, and so does the outer one over IPv6; over IPv4 there is none.
pub fn emit_tunnel(gso: TunnelGso, inner: IpVersion, outer: IpVersion) -> [u8; TUNNEL_LEN] {
    let (tunnel, checksum) = match outer {
        IpVersion::V4 => (VirtioNetHdr::GSO_TUNNEL_V4, 0),
        IpVersion::V6 => (VirtioNetHdr::GSO_TUNNEL_V6, VirtioNetHdr::UDP_TUNNEL_CSUM),
    };
    let segment = match (gso.transport, inner) {
        (Transport::Udp, _) => VirtioNetHdr::GSO_UDP_L4,
        (Transport::Tcp, IpVersion::V4) => VirtioNetHdr::GSO_TCPV4,
        (Transport::Tcp, IpVersion::V6) => VirtioNetHdr::GSO_TCPV6,
    };
    let header = VirtioNetHdr {
        flags: VirtioNetHdr::NEEDS_CSUM | checksum,
        gso_type: segment | tunnel,
        hdr_len: gso.header_len,
        gso_size: gso.size,
        csum_start: gso.inner_l4,
        csum_offset: gso.transport.checksum_offset(),
    };
    let mut bytes = padded(header.to_bytes());
    let outer_l4 = gso.payload.saturating_sub(8);
    bytes[OUTER_L4..OUTER_L4 + 2].copy_from_slice(&outer_l4.to_le_bytes());
    bytes[INNER_L3..INNER_L3 + 2].copy_from_slice(&gso.inner_l3.to_le_bytes());
    bytes
}

/// A plain header with the room that tunnels need behind it.
pub fn padded(header: [u8; VirtioNetHdr::LEN]) -> [u8; TUNNEL_LEN] {
    let mut bytes = [0; TUNNEL_LEN];
    bytes[..VirtioNetHdr::LEN].copy_from_slice(&header);
    bytes
}

/// Offsets of `outer_th_offset` and `inner_nh_offset`.
const OUTER_L4: usize = 20;
const INNER_L3: usize = 22;

fn offset_at(header: &[u8; TUNNEL_LEN], at: usize) -> u16 {
    u16::from_le_bytes([header[at], header[at + 1]])
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
