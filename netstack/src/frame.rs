//! A frame is bytes plus what the link still owes them: offload metadata travels beside the bytes,
//! never inside them.

use crate::offload::Transport;

/// State of the transport checksum of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// The field holds what the sender wrote; whoever reads it verifies it.
    #[default]
    Complete,
    /// The field holds the folded pseudo-header sum only; the rest is left to the link
    /// (`VIRTIO_NET_HDR_F_NEEDS_CSUM`). The sender is trusted: the frame never crossed a wire.
    Partial,
    /// Somebody verified it already (`VIRTIO_NET_HDR_F_DATA_VALID`).
    Verified,
}

/// Segmentation that the link still has to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gso {
    /// The frame fits the MTU.
    #[default]
    None,
    /// TCP super-segment, to be cut into segments of this many payload bytes.
    Tcp(u16),
    /// UDP super-datagram, to be cut into datagrams of this many payload bytes.
    Udp(u16),
    /// One UDP datagram that holds a super-segment of another host's: a tunnel's, such as VXLAN.
    Tunnel(TunnelGso),
}

/// A super-segment inside a UDP tunnel. Each segment becomes a datagram with the tunnel's header in front. Offsets
/// count from the start of the frame, or of the datagram's payload where that stands alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelGso {
    /// First byte of the outer UDP payload: the tunnel's own header.
    pub payload: u16,
    /// First byte of the inner IP header.
    pub inner_l3: u16,
    /// First byte of the inner transport header.
    pub inner_l4: u16,
    /// First byte behind all headers.
    pub header_len: u16,
    /// Inner transport protocol.
    pub transport: Transport,
    /// Bytes behind the headers per segment.
    pub size: u16,
}

impl TunnelGso {
    /// The same where `by` bytes are put in front.
    pub fn behind(self, by: u16) -> Self {
        let add = |offset: u16| offset.saturating_add(by);
        TunnelGso {
            payload: add(self.payload),
            inner_l3: add(self.inner_l3),
            inner_l4: add(self.inner_l4),
            header_len: add(self.header_len),
            ..self
        }
    }

    /// Number of segments of `len` bytes in all, counted from the start of the outer payload.
    pub fn segments(&self, len: usize) -> usize {
        let headers = usize::from(self.header_len.saturating_sub(self.payload));
        len.saturating_sub(headers).div_ceil(usize::from(self.size).max(1)).max(1)
    }
}

/// What the link still owes a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Transport checksum.
    pub checksum: Checksum,
    /// Segmentation.
    pub gso: Gso,
}

/// What the TAP takes over. Probed at start, reported by the driver's statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCapabilities {
    /// The link completes partial checksums (virtio-net header present and `TUN_F_CSUM` accepted).
    pub checksum: bool,
    /// The link cuts TCP/IPv4 super-segments.
    pub tso4: bool,
    /// The link cuts TCP/IPv6 super-segments.
    pub tso6: bool,
    /// The link cuts UDP super-datagrams (`TUN_F_USO4` and `TUN_F_USO6`, Linux 6.2).
    pub uso: bool,
    /// Super-segments inside UDP tunnels travel whole in both directions (`TUN_F_UDP_TUNNEL_GSO`, Linux 6.17). Asked for
    /// with an [overlay](crate::config::OverlayConfig) only.
    pub tunnel: bool,
}

/// A frame from the child. `bytes` start with the Ethernet header.
#[derive(Debug)]
pub struct Frame<'a> {
    /// Ethernet frame without FCS. Mutable so that headers can be normalised in place.
    pub bytes: &'a mut [u8],
    /// What the child's kernel left to us.
    pub offload: Offload,
    /// Names the buffer: comes back in [`Payload::InFrame`](crate::action::Payload::InFrame).
    pub slot: u32,
}

/// A frame to the child, written into the caller's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameOut {
    /// Bytes written from the start of the buffer.
    pub len: usize,
    /// What the link has to complete.
    pub offload: Offload,
}
