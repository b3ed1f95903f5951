//! Errors and drop reasons, never mixed: an error is somebody's mistake, a drop is a packet's fate.

use std::net::{IpAddr, SocketAddr};

use thiserror::Error;

/// Why a frame, packet or datagram was not handled. Indexes a counter in [`Stats`](crate::stats::Stats).
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum DropReason {
    /// The bytes end before the header they announce.
    #[error("truncated")]
    Truncated,
    /// A header field has a value that no sender may write.
    #[error("malformed")]
    Malformed,
    /// An EtherType other than ARP, IPv4 and IPv6.
    #[error("unknown ethertype")]
    UnknownEtherType,
    /// A transport protocol other than TCP, UDP, ICMP and ICMPv6.
    #[error("unknown IP protocol")]
    UnknownProtocol,
    /// IP header, TCP, UDP or ICMP checksum does not match.
    #[error("bad checksum")]
    BadChecksum,
    /// The virtio-net header contradicts the frame.
    #[error("bad vnet header")]
    BadVnetHeader,
    /// Source address is unspecified, loopback, multicast or broadcast.
    #[error("invalid source address")]
    InvalidSource,
    /// Destination address is unspecified, loopback or otherwise never routed.
    #[error("invalid destination address")]
    InvalidDestination,
    /// Multicast or broadcast destination that the engine does not serve.
    #[error("multicast not relayed")]
    Multicast,
    /// IPv6 while the child is not offered IPv6.
    #[error("IPv6 is off")]
    Ipv6Off,
    /// The egress policy refused it (the child was told).
    #[error("refused by policy")]
    PolicyRefused,
    /// TTL or hop limit ran out here (the child was told).
    #[error("time exceeded")]
    TimeExceeded,
    /// The destination is neither our Ethernet address nor a group.
    #[error("not for us")]
    NotForUs,
    /// Fragment overlaps another one (RFC 5722) or exceeds 65535 bytes.
    #[error("bad fragment")]
    BadFragment,
    /// The reassembly store is full.
    #[error("reassembly memory full")]
    ReassemblyFull,
    /// Not all fragments came in time.
    #[error("reassembly timed out")]
    ReassemblyTimeout,
    /// The flow table is full (`limits.flows`).
    #[error("flow table full")]
    FlowTableFull,
    /// Too many connections wait for the host's connect (`limits.half_open`).
    #[error("too many half-open flows")]
    HalfOpenFull,
    /// The UDP binding table is full (`limits.udp_bindings`).
    #[error("UDP binding table full")]
    UdpBindingsFull,
    /// The ICMP echo table is full (`limits.icmp_bindings`).
    #[error("ICMP binding table full")]
    IcmpBindingsFull,
    /// Too many DNS queries are under way (`limits.dns_queries`).
    #[error("too many DNS queries")]
    DnsQueriesFull,
    /// Ring memory is used up (`limits.buffer_bytes`).
    #[error("buffer memory full")]
    BufferMemoryFull,
    /// The host is out of file descriptors or memory for a socket.
    #[error("host resources exhausted")]
    HostResources,
    /// The host's socket did not take the datagram (queue full).
    #[error("host socket busy")]
    HostBusy,
    /// The host refused the datagram (no route, administratively forbidden, ...).
    #[error("host send failed")]
    HostSendFailed,
    /// TCP segment of no flow (answered by RST).
    #[error("no such flow")]
    NoFlow,
    /// A datagram from the host that no binding expects.
    #[error("unexpected source")]
    UnexpectedSource,
    /// A DNS answer whose id, server or question does not match its query.
    #[error("DNS answer mismatch")]
    DnsMismatch,
    /// A DHCP message the server does not answer (wrong server id, malformed option, ...).
    #[error("DHCP message ignored")]
    DhcpIgnored,
    /// A neighbour discovery or ICMP message the engine does not answer.
    #[error("ICMP message ignored")]
    IcmpIgnored,
    /// An ARP message the engine does not answer.
    #[error("ARP message ignored")]
    ArpIgnored,
    /// `net.ipv4.ping_group_range` does not let this user open a ping socket.
    #[error("ping not permitted")]
    PingForbidden,
    /// The queue of frames to the child is full.
    #[error("queue to child full")]
    ToChildQueueFull,
    /// The TAP refused the frame (interface down or out of memory).
    #[error("TAP write failed")]
    TapWriteFailed,
    /// The engine itself is the destination and serves nothing on that port.
    #[error("no such service on the gateway")]
    NoSuchService,
    /// IPv4 while the child is not offered IPv4.
    #[error("IPv4 is off")]
    Ipv4Off,
    /// A question while DNS is switched off.
    #[error("DNS is off")]
    DnsOff,
    /// A map means the host's own address, and the host has none of that family (the child was told).
    #[error("the host has no address")]
    NoHostAddress,
    /// The address or interface that the host's sockets are to be bound to is not there.
    #[error("outbound address or interface is not there")]
    NoOutbound,
    /// Nobody on the child's link answers for the address that a packet to the child goes to.
    #[error("no answer to ARP or neighbour discovery")]
    NeighborUnknown,
    /// The table of UDP sessions is full (`limits.udp_sessions`).
    #[error("UDP session table full")]
    UdpSessionsFull,
    /// TCP segment of a flow that a relay carries, or is about to: a SYN repeated while it was joined (never answered).
    #[error("segment of a relayed flow")]
    RelayedFlow,
    /// A datagram of an overlay whose sender is none of the child's peers.
    #[error("not a peer of the overlay")]
    OverlayStranger,
    /// A frame for another worker, whose inbox was full, or that no worker takes for its own (the sender repeats it).
    #[error("inbox of another worker full")]
    WorkerBusy,
}

impl DropReason {
    /// Every reason, in counter order.
    pub const ALL: [DropReason; 44] = [
        DropReason::Truncated,
        DropReason::Malformed,
        DropReason::UnknownEtherType,
        DropReason::UnknownProtocol,
        DropReason::BadChecksum,
        DropReason::BadVnetHeader,
        DropReason::InvalidSource,
        DropReason::InvalidDestination,
        DropReason::Multicast,
        DropReason::Ipv6Off,
        DropReason::PolicyRefused,
        DropReason::TimeExceeded,
        DropReason::NotForUs,
        DropReason::BadFragment,
        DropReason::ReassemblyFull,
        DropReason::ReassemblyTimeout,
        DropReason::FlowTableFull,
        DropReason::HalfOpenFull,
        DropReason::UdpBindingsFull,
        DropReason::IcmpBindingsFull,
        DropReason::DnsQueriesFull,
        DropReason::BufferMemoryFull,
        DropReason::HostResources,
        DropReason::HostBusy,
        DropReason::HostSendFailed,
        DropReason::NoFlow,
        DropReason::UnexpectedSource,
        DropReason::DnsMismatch,
        DropReason::DhcpIgnored,
        DropReason::IcmpIgnored,
        DropReason::ArpIgnored,
        DropReason::PingForbidden,
        DropReason::ToChildQueueFull,
        DropReason::TapWriteFailed,
        DropReason::NoSuchService,
        DropReason::Ipv4Off,
        DropReason::DnsOff,
        DropReason::NoHostAddress,
        DropReason::NoOutbound,
        DropReason::NeighborUnknown,
        DropReason::UdpSessionsFull,
        DropReason::RelayedFlow,
        DropReason::OverlayStranger,
        DropReason::WorkerBusy,
    ];
}

/// Why something of the host's cannot be carried to the child.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ForwardError {
    /// Nobody can appear to the child as this: unspecified, loopback, a group, on the child's own link but not the
    /// gateway, of another family than the destination, or port 0.
    #[error("{0} cannot be a source for the child")]
    Source(SocketAddr),
    /// Not an address that packets to the child may carry: unspecified, loopback, a group, one of the engine's own,
    /// or port 0.
    #[error("{0} is no address of the child")]
    Child(SocketAddr),
    /// The child has no IPv4.
    #[error("IPv4 is off")]
    Ipv4Off,
    /// The child has no IPv6.
    #[error("IPv6 is off")]
    Ipv6Off,
    /// `limits.flows` is reached.
    #[error("the flow table is full")]
    FlowTableFull,
    /// `limits.half_open` is reached.
    #[error("too many connections wait for the child")]
    HalfOpenFull,
    /// `limits.buffer_bytes` is reached.
    #[error("the memory for buffers is used up")]
    BufferMemoryFull,
    /// No port of the source is free towards that destination.
    #[error("every port of {0} is taken")]
    PortsTaken(IpAddr),
    /// Nobody can be asked for the Ethernet address: too many questions are open.
    #[error("too many neighbours are being looked for")]
    TooManyNeighbors,
}

/// A configuration that cannot work; each variant carries the offending value.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// `IP/PREFIX` could not be read.
    #[error("{0:?} is not a CIDR such as 10.0.42.0/24")]
    CidrSyntax(String),
    /// Host bits are set.
    #[error("{0} is not a network address (host bits are set)")]
    CidrHostBits(String),
    /// The subnet does not hold gateway, DNS, child and a DHCP pool, or it is everything.
    #[error("{0}: the IPv4 prefix has to be from 1 to 25")]
    CidrTooSmall(String),
    /// Only /64 works for SLAAC.
    #[error("{0}: the IPv6 prefix has to be /64")]
    Ipv6Prefix(String),
    /// Not a subnet that a child may have (loopback, multicast, link-local, unspecified).
    #[error("{0} is not usable as a child's subnet")]
    CidrReserved(String),
    /// Address is not a host address of the subnet.
    #[error("{address} is not a host address of {subnet}")]
    NotInSubnet {
        /// The address.
        address: IpAddr,
        /// The subnet it should belong to.
        subnet: String,
    },
    /// Two roles share an address.
    #[error("{0} has more than one role (gateway, DNS, child)")]
    AddressConflict(IpAddr),
    /// MTU outside 576..=65521 (1280 with IPv6).
    #[error("MTU {0} is outside {1} to 65521 (576 to 65521 with IPv6 off)")]
    Mtu(u16, u16),
    /// Neither IPv4 nor IPv6.
    #[error("IPv4 and IPv6 cannot both be off")]
    NoFamily,
    /// Not an address that one machine can have.
    #[error("{0} is not the address of a host")]
    NotAHost(IpAddr),
    /// An address of the other family than is needed here.
    #[error("{0} is of the wrong address family")]
    OtherFamily(IpAddr),
    /// Two maps for one address.
    #[error("{0} is mapped twice")]
    MappedTwice(IpAddr),
    /// More address maps than this.
    #[error("there are more than {0} address maps")]
    TooManyMaps(usize),
    /// More static names than this.
    #[error("there are more than {0} static names")]
    TooManyNames(usize),
    /// An overlay without a port.
    #[error("0 is no port of an overlay")]
    OverlayPort,
    /// More networks of peers than this.
    #[error("there are more than {0} networks of overlay peers")]
    TooManyPeers(usize),
    /// Peers without an overlay.
    #[error("there is no overlay")]
    NoOverlay,
    /// Not the name of a network interface.
    #[error("{0:?} is not the name of a network interface")]
    InterfaceName(String),
    /// A limit of zero.
    #[error("limit {0} has to be at least {1}")]
    LimitTooSmall(&'static str, usize),
    /// A timeout of zero.
    #[error("timeout {0} has to be positive")]
    TimeoutZero(&'static str),
    /// A name that is not a DNS name.
    #[error("{0:?} is not a DNS name")]
    DnsName(String),
    /// An egress rule that could not be read.
    #[error("policy rule {rule:?}: {problem}")]
    PolicyRule {
        /// The rule as given.
        rule: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// More egress rules than are looked through for a flow: how many, and the most there may be.
    #[error("{0} policy rules are more than {1}")]
    PolicyTooLong(usize, usize),
}
