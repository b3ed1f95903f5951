//! A frame is bytes plus what the link still owes them: offload metadata travels beside the bytes,
//! never inside them.

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
