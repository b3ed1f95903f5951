//! What the link does for us or we for the link: checksums and segmentation.

pub mod checksum;
pub mod coalesce;
pub mod segment;
pub mod tunnel;
pub mod vnet_hdr;

use std::ops::Range;

/// IP version of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpVersion {
    /// IPv4, RFC 791.
    V4,
    /// IPv6, RFC 8200.
    V6,
}

/// Transport protocols the link knows how to checksum and cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// Bytes from the start of the transport header to its checksum field.
    pub fn checksum_offset(self) -> u16 {
        match self {
            Transport::Tcp => 16,
            Transport::Udp => 6,
        }
    }
}

/// Where the headers of a TCP or UDP frame lie. All offsets count from the start of the Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderOffsets {
    /// IP version.
    pub ip_version: IpVersion,
    /// Transport protocol.
    pub transport: Transport,
    /// First byte of the transport header.
    pub l4_start: u16,
    /// Length of all headers: first byte of the payload.
    pub header_len: u16,
    /// End of the packet by its IP length field; at most the frame's length. Padding follows.
    pub l4_end: u32,
}

impl HeaderOffsets {
    /// Finds the headers of an Ethernet frame. `None` where there is no whole TCP or UDP header: other
    /// protocols, VLAN tags, IPv4 fragments, IPv6 with extension headers, or a frame shorter than it claims.
    pub fn locate(frame: &[u8]) -> Option<Self> {
        let l3 = frame.get(ETHERNET_LEN..)?;
        let (ip_version, protocol, ip_header_len, ip_len) = match frame.get(field::ETHERTYPE)? {
            [0x08, 0x00] => {
                let header = l3.first_chunk::<20>()?;
                let header_len = usize::from(header[0] & 0x0f) * 4;
                let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
                if header[0] >> 4 != 4 || header_len < 20 || fragment != 0 {
                    return None;
                }
                let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
                (IpVersion::V4, header[9], header_len, total)
            }
            [0x86, 0xdd] => {
                let header = l3.first_chunk::<40>()?;
                if header[0] >> 4 != 6 {
                    return None;
                }
                let payload = usize::from(u16::from_be_bytes([header[4], header[5]]));
                (IpVersion::V6, header[6], 40, 40 + payload)
            }
            _ => return None,
        };
        let l4 = l3.get(..ip_len)?.get(ip_header_len..)?;
        let (transport, l4_header_len) = match protocol {
            6 => {
                let data_offset = usize::from(l4.get(12)? >> 4) * 4;
                if data_offset < 20 {
                    return None;
                }
                (Transport::Tcp, data_offset)
            }
            17 => (Transport::Udp, 8),
            _ => return None,
        };
        if l4.len() < l4_header_len {
            return None;
        }
        let l4_start = ETHERNET_LEN + ip_header_len;
        Some(HeaderOffsets {
            ip_version,
            transport,
            l4_start: l4_start as u16,
            header_len: (l4_start + l4_header_len) as u16,
            l4_end: (ETHERNET_LEN + ip_len) as u32,
        })
    }

    /// Transport header and payload.
    pub fn l4(&self) -> Range<usize> {
        usize::from(self.l4_start)..self.l4_end as usize
    }

    /// Payload of the transport.
    pub fn payload(&self) -> Range<usize> {
        usize::from(self.header_len)..self.l4_end as usize
    }
}

/// Length of an Ethernet header without VLAN tag.
pub(crate) const ETHERNET_LEN: usize = 14;

/// Fields of the Ethernet header.
mod field {
    use std::ops::Range;

    pub(super) const ETHERTYPE: Range<usize> = 12..14;
}

#[cfg(test)]
pub(crate) mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn udp4(payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 42, 100], [192, 0, 2, 1], 64)
            .udp(4000, 53)
            .write(&mut frame, payload)
            .unwrap();
        frame
    }

    pub(crate) fn udp6(payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv6([0xfd; 16], [0x20; 16], 64)
            .udp(4000, 53)
            .write(&mut frame, payload)
            .unwrap();
        frame
    }

    pub(crate) fn tcp4(payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 42, 100], [192, 0, 2, 1], 64)
            .tcp(4000, 80, 1000, 2000)
            .ack(7)
            .psh()
            .options(&[etherparse::TcpOptionElement::Timestamp(1, 2)])
            .unwrap()
            .write(&mut frame, payload)
            .unwrap();
        frame
    }

    pub(crate) fn tcp6(payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv6([0xfd; 16], [0x20; 16], 64)
            .tcp(4000, 80, 1000, 2000)
            .write(&mut frame, payload)
            .unwrap();
        frame
    }

    #[test]
    fn headers_are_found_where_they_are() {
        for (frame, ip_version, transport, l4_start, header_len) in [
            (udp4(b"abc"), IpVersion::V4, Transport::Udp, 34, 42),
            (udp6(b"abc"), IpVersion::V6, Transport::Udp, 54, 62),
            (tcp4(b"abc"), IpVersion::V4, Transport::Tcp, 34, 66),
            (tcp6(b"abc"), IpVersion::V6, Transport::Tcp, 54, 74),
        ] {
            let offsets = HeaderOffsets::locate(&frame).unwrap();
            assert_eq!((offsets.ip_version, offsets.transport), (ip_version, transport));
            assert_eq!((offsets.l4_start, offsets.header_len), (l4_start, header_len));
            assert_eq!(&frame[offsets.payload()], b"abc");
            for len in 0..frame.len() {
                assert_eq!(HeaderOffsets::locate(&frame[..len]), None);
            }
        }
    }

    #[test]
    fn padding_is_not_payload() {
        let mut frame = udp4(b"abc");
        frame.resize(60, 0);
        assert_eq!(&frame[HeaderOffsets::locate(&frame).unwrap().payload()], b"abc");
    }

    #[test]
    fn a_fragment_has_no_transport_header() {
        let mut frame = udp4(b"abc");
        frame[20] = 0x20;
        assert_eq!(HeaderOffsets::locate(&frame), None);
    }

    proptest! {
        #[test]
        fn offsets_lie_in_the_frame(mut frame in proptest::collection::vec(any::<u8>(), 0..120), v6: bool) {
            if let Some([a, b]) = frame.get_mut(12..14) {
                (*a, *b) = if v6 { (0x86, 0xdd) } else { (0x08, 0x00) };
            }
            if let Some(offsets) = HeaderOffsets::locate(&frame) {
                prop_assert!(frame.get(offsets.payload()).is_some());
                prop_assert!(usize::from(offsets.l4_start + offsets.transport.checksum_offset()) + 2 <= frame.len());
            }
        }
    }
}
