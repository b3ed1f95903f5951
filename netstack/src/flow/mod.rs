//! Flows: one tracked conversation each.

pub(crate) mod lru;
pub mod policy;
pub mod table;

use std::net::SocketAddr;

/// Transport protocol of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP, RFC 9293.
    Tcp,
    /// UDP, RFC 768.
    Udp,
    /// ICMP echo, RFC 792.
    Icmp,
    /// ICMPv6 echo, RFC 4443.
    Icmpv6,
}

/// Which side a flow was opened from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OpenedBy {
    /// The child: egress.
    #[default]
    Child,
    /// The host: a published port.
    Host,
}

/// How a flow is carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FlowPath {
    /// As frames, by this stack.
    #[default]
    Tap,
    /// By a relay of sockets: what is moved are bytes, and this stack sees none of them.
    Relay,
}

/// One of the workers that serve a child together, each with a stack and a queue of the TAP of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub(crate) u8);

impl WorkerId {
    /// Most workers of one child.
    pub const MOST: usize = 8;
    /// The one that serves all that is no flow of another's.
    pub const FIRST: WorkerId = WorkerId(0);

    /// Counted from 0, below [`WorkerId::MOST`].
    pub fn index(self) -> usize {
        self.0.into()
    }
}

/// Where the worker stands in a generation of 30 bits.
pub(crate) const WORKER_SHIFT: u32 = 27;
/// More than there are flows; in [`FlowId::to_bits`] the worker stands above them, which keeps the number short.
const INDEX_BITS: u32 = 29;

/// Names one flow. The generation makes a stale id of a reused slot harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl FlowId {
    /// The id as one integer, for use as an event token. At most 59 bits are used.
    pub fn to_bits(self) -> u64 {
        let generation = self.generation & ((1 << WORKER_SHIFT) - 1);
        u64::from(generation) << 32 | u64::from(self.worker().0) << INDEX_BITS | u64::from(self.index)
    }

    /// The worker that has it, where there are several.
    pub fn worker(self) -> WorkerId {
        WorkerId((self.generation >> WORKER_SHIFT) as u8)
    }

    /// The inverse of [`FlowId::to_bits`].
    pub fn from_bits(bits: u64) -> Self {
        let (generation, low) = ((bits >> 32) as u32 & ((1 << WORKER_SHIFT) - 1), bits as u32);
        FlowId {
            index: low & ((1 << INDEX_BITS) - 1),
            generation: low >> INDEX_BITS << WORKER_SHIFT | generation,
        }
    }
}

/// Protocol and addresses of a flow as seen from the child.
///
/// UDP and ICMP flows are *bindings* (RFC 4787, endpoint-independent mapping): their `remote` is the
/// unspecified address of the family, and for ICMP the port is the echo identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Transport protocol.
    pub protocol: Protocol,
    /// The child's address and port.
    pub child: SocketAddr,
    /// The address and port the child wrote; of a flow opened by the host, the address and port that the client
    /// appears as.
    pub remote: SocketAddr,
}
