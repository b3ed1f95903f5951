//! Configuration. A [`Config`] that exists is valid: everything is checked by [`ConfigBuilder::build`].

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::error::ConfigError;
use crate::flow::policy::EgressPolicy;
use crate::time::Duration;

/// Smallest MTU that the engine serves (RFC 791 minimum reassembly size).
pub const MIN_MTU: u16 = 576;
/// Smallest MTU with IPv6 (RFC 8200 section 5).
pub const MIN_MTU_IPV6: u16 = 1280;
/// Largest MTU: what Linux allows on a TAP, whose frames have 65535 bytes with their Ethernet header.
pub const MAX_MTU: u16 = 65521;
/// Most address maps of one configuration; they are looked through for each flow.
pub const MAX_MAPS: usize = 64;

/// An IPv4 network, `10.0.42.0/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ipv4Net {
    network: Ipv4Addr,
    prefix: u8,
}

impl Ipv4Net {
    /// `network` must have no host bits set; `prefix` is 0..=32.
    pub fn new(network: Ipv4Addr, prefix: u8) -> Result<Self, ConfigError> {
        let net = Ipv4Net { network, prefix };
        if prefix > 32 {
            return Err(ConfigError::CidrSyntax(net.to_string()));
        }
        if u32::from(network) & !net.mask_bits() != 0 {
            return Err(ConfigError::CidrHostBits(net.to_string()));
        }
        Ok(net)
    }

    /// The network address.
    pub fn network(self) -> Ipv4Addr {
        self.network
    }

    /// Prefix length in bits, 0..=32.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The netmask.
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from(self.mask_bits())
    }

    /// The highest address: directed broadcast.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) | !self.mask_bits())
    }

    /// Whether `address` is the network's own or its directed broadcast, which no host may have. A /31 and a /32
    /// have neither (RFC 3021).
    pub fn is_reserved(self, address: Ipv4Addr) -> bool {
        self.prefix < 31 && (address == self.network || address == self.broadcast())
    }

    /// Whether `address` is the directed broadcast.
    pub fn is_broadcast(self, address: Ipv4Addr) -> bool {
        self.prefix < 31 && address == self.broadcast()
    }

    /// Whether `address` is in this network.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask_bits() == u32::from(self.network)
    }

    /// Network address plus `n`; the caller knows that it lies in the network.
    pub fn nth(self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network).wrapping_add(n))
    }

    fn mask_bits(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0)
    }
}

impl fmt::Display for Ipv4Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl FromStr for Ipv4Net {
    type Err = ConfigError;

    fn from_str(s: &str) -> Result<Self, ConfigError> {
        let syntax = || ConfigError::CidrSyntax(s.to_owned());
        let (address, prefix) = s.split_once('/').ok_or_else(syntax)?;
        Ipv4Net::new(address.parse().map_err(|_| syntax())?, prefix.parse().map_err(|_| syntax())?)
    }
}

/// An IPv6 network, `fd42:10:42::/64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ipv6Net {
    network: Ipv6Addr,
    prefix: u8,
}

impl Ipv6Net {
    /// `network` must have no host bits set; `prefix` is 0..=128.
    pub fn new(network: Ipv6Addr, prefix: u8) -> Result<Self, ConfigError> {
        let net = Ipv6Net { network, prefix };
        if prefix > 128 {
            return Err(ConfigError::CidrSyntax(net.to_string()));
        }
        if u128::from(network) & !net.mask_bits() != 0 {
            return Err(ConfigError::CidrHostBits(net.to_string()));
        }
        Ok(net)
    }

    /// The network address.
    pub fn network(self) -> Ipv6Addr {
        self.network
    }

    /// Prefix length in bits, 0..=128.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether `address` is in this network.
    pub fn contains(self, address: Ipv6Addr) -> bool {
        u128::from(address) & self.mask_bits() == u128::from(self.network)
    }

    /// Network address plus `n`.
    pub fn nth(self, n: u128) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(self.network).wrapping_add(n))
    }

    fn mask_bits(self) -> u128 {
        u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0)
    }
}

impl fmt::Display for Ipv6Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl FromStr for Ipv6Net {
    type Err = ConfigError;

    fn from_str(s: &str) -> Result<Self, ConfigError> {
        let syntax = || ConfigError::CidrSyntax(s.to_owned());
        let (address, prefix) = s.split_once('/').ok_or_else(syntax)?;
        Ipv6Net::new(address.parse().map_err(|_| syntax())?, prefix.parse().map_err(|_| syntax())?)
    }
}

/// A network of either family; an address alone is one of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IpNet {
    /// IPv4.
    V4(Ipv4Net),
    /// IPv6.
    V6(Ipv6Net),
}

impl IpNet {
    /// Whether `address` is in this network.
    pub fn contains(self, address: IpAddr) -> bool {
        match (self, address) {
            (IpNet::V4(net), IpAddr::V4(address)) => net.contains(address),
            (IpNet::V6(net), IpAddr::V6(address)) => net.contains(address),
            _ => false,
        }
    }
}

impl From<IpAddr> for IpNet {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(network) => IpNet::V4(Ipv4Net { network, prefix: 32 }),
            IpAddr::V6(network) => IpNet::V6(Ipv6Net { network, prefix: 128 }),
        }
    }
}

/// One address is written without its prefix.
impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IpNet::V4(Ipv4Net { network, prefix: 32 }) => network.fmt(f),
            IpNet::V6(Ipv6Net { network, prefix: 128 }) => network.fmt(f),
            IpNet::V4(net) => net.fmt(f),
            IpNet::V6(net) => net.fmt(f),
        }
    }
}

impl FromStr for IpNet {
    type Err = ConfigError;

    fn from_str(s: &str) -> Result<Self, ConfigError> {
        if let Ok(address) = s.parse::<IpAddr>() {
            return Ok(address.into());
        }
        if s.contains(':') { s.parse().map(IpNet::V6) } else { s.parse().map(IpNet::V4) }
    }
}

/// Most networks of an overlay's peers.
pub const MAX_OVERLAY_NETS: usize = 1024;

/// An overlay network between nodes, such as Flannel's VXLAN: a UDP port that the child shares with the host. See
/// [`mod@crate::stack`] for what is done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayConfig {
    /// The UDP port, the same on every node and not 0. Flannel's is [`OverlayConfig::FLANNEL`].
    pub port: u16,
    /// Who may send to the child, at most [`MAX_OVERLAY_NETS`] networks; none: those to whom the child has sent. Whom
    /// the child may send to is for the egress policy to say.
    pub peers: Vec<IpNet>,
}

impl OverlayConfig {
    /// Linux' own VXLAN port, and Flannel's.
    pub const FLANNEL: u16 = 8472;
}

/// The child's IPv4 subnet and who is who in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Plan {
    /// The subnet.
    pub subnet: Ipv4Net,
    /// The engine as router; also stands for the host. Default: network + 2.
    pub gateway: Ipv4Addr,
    /// The engine as DNS server. Default: network + 3. With [`Addressing::Copied`], 0.0.0.0 means none.
    pub dns: Ipv4Addr,
    /// The child's address. Default: network + 100.
    pub child: Ipv4Addr,
}

impl Ipv4Plan {
    /// The default plan of `subnet`: gateway .2, DNS .3, child .100.
    pub fn for_subnet(subnet: Ipv4Net) -> Self {
        Ipv4Plan { subnet, gateway: subnet.nth(2), dns: subnet.nth(3), child: subnet.nth(100) }
    }

    /// First and last address of the DHCP pool (network + 15 to + 30) beside the child's own.
    pub fn dhcp_pool(&self) -> (Ipv4Addr, Ipv4Addr) {
        (self.subnet.nth(15), self.subnet.nth(30))
    }
}

/// The child's IPv6 subnet and who is who in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6Plan {
    /// The subnet, a /64 (with [`Addressing::Copied`] any; SLAAC needs a /64).
    pub subnet: Ipv6Net,
    /// The engine as router; also stands for the host. Default: network::2.
    pub gateway: Ipv6Addr,
    /// The engine as DNS server. Default: network::3. With [`Addressing::Copied`], `::` means none.
    pub dns: Ipv6Addr,
    /// The child's address where it is configured statically; by SLAAC it chooses others. Default: network::100
    /// (hexadecimal, so that it reads like the IPv4 one).
    pub child: Ipv6Addr,
}

impl Ipv6Plan {
    /// The engine's link-local address, from which router advertisements come.
    pub const GATEWAY_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

    /// The default plan of `subnet`: gateway ::2, DNS ::3, child ::100.
    pub fn for_subnet(subnet: Ipv6Net) -> Self {
        Ipv6Plan { subnet, gateway: subnet.nth(2), dns: subnet.nth(3), child: subnet.nth(0x100) }
    }
}

/// Whether the child is offered IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ipv6Mode {
    /// Only while the host itself has an IPv6 default route.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never; the child's IPv6 packets are dropped and counted.
    Off,
}

/// Whether the child is offered IPv4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ipv4Mode {
    /// Always.
    #[default]
    On,
    /// Never; the child's IPv4 packets and ARP messages are dropped and counted.
    Off,
}

/// Whose addresses the child and the gateway have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Addressing {
    /// Those of a subnet of the engine's own: gateway, DNS and child are different hosts of it, nobody else is.
    #[default]
    Subnet,
    /// Any, such as the host's own. The child may have the address of the host, the gateway that of the host's
    /// router and lie outside the subnet, whose prefix may have any length. The engine answers ARP and neighbour
    /// solicitations for everybody but the child; other addresses of the subnet are reached through the host, and
    /// so is the gateway unless it stands for the host's loopback. DHCP knows the child's address only.
    Copied,
}

/// How the gateway address refuses TCP and UDP where it does not stand for the host's loopback. It answers pings
/// either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Refusal {
    /// As a host behind a filter: RST for TCP, "administratively prohibited" for UDP.
    #[default]
    Prompt,
    /// As a router without a route: "network unreachable" (ICMPv6: "no route"), for programs that tell the two
    /// apart.
    NetUnreachable,
}

/// An address that means something else on the host's side. Maps come before every other rule about destinations
/// but the egress policy, which sees the address that the child wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressMap {
    /// What the child writes.
    pub child: IpAddr,
    /// What is meant.
    pub host: MapTarget,
}

/// What a mapped address means on the host's side, always in the family of the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MapTarget {
    /// The host's loopback, 127.0.0.1 or ::1.
    Loopback,
    /// The host's own address at the time: the source address of its default route, else its first global one.
    /// Without any, the child hears "network unreachable".
    HostAddress,
    /// This address.
    Address(IpAddr),
}

/// What the host's sockets for the child are bound to, in one family. It does not concern questions to resolvers
/// on the host's loopback.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Outbound {
    /// Nothing: the host's kernel chooses.
    #[default]
    Any,
    /// An address of the host. Connections to the host's loopback come from it as well.
    Address(IpAddr),
    /// An interface of the host, by name (`SO_BINDTODEVICE`; without privilege since Linux 5.7). Connections to the
    /// host's loopback are not bound; a UDP port of the child that has sent anywhere else does not reach it any more.
    Interface(String),
}

/// A service of the engine's on the link, which may be left out. What asks for it is dropped without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkService {
    /// DHCP.
    Dhcp,
    /// DHCPv6.
    Dhcpv6,
    /// Answers to neighbour solicitations and router advertisements.
    NeighborDiscovery,
    /// Router advertisements alone.
    RouterAdvertisement,
}

/// Whom the DHCP server thinks of first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DhcpOrder {
    /// The first client gets the child's address, others get those of the pool.
    #[default]
    Child,
    /// All clients get addresses of the pool, the lowest first: the child's address is configured by somebody else.
    Pool,
}

/// Whether a class of destinations is open to the child.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Refused.
    #[default]
    Deny,
    /// Allowed (egress rules still apply).
    Allow,
}

/// UDP filtering behaviour, RFC 4787 section 5.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UdpFiltering {
    /// Only hosts that the child has sent to may answer (REQ-8, stricter choice).
    #[default]
    AddressDependent,
    /// Anybody may send to a binding (REQ-8, transparent choice).
    EndpointIndependent,
}

/// Limits of tables and memory. What happens when one is full stands with each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// TCP flows, whoever opened them; a further SYN of the child is answered by RST, a further connection of the
    /// host is reset. Default 32768.
    pub flows: usize,
    /// TCP flows whose other end has not answered yet; a further SYN of the child is dropped (the child repeats
    /// it), a further connection of the host is reset. Default 4096.
    pub half_open: usize,
    /// UDP bindings; the one idle for longest makes room. Default 16384.
    pub udp_bindings: usize,
    /// UDP sessions of published ports, one per client and forward; the one idle for longest makes room.
    /// Default 16384.
    pub udp_sessions: usize,
    /// Peers of an overlay that are counted; the one idle for longest makes room. Default 1024.
    pub overlay_peers: usize,
    /// ICMP echo bindings; the one idle for longest makes room. Default 256.
    pub icmp_bindings: usize,
    /// DNS queries under way; a further query is dropped, the child repeats it. Default 1024.
    pub dns_queries: usize,
    /// Bytes held for IP reassembly; the oldest incomplete datagram makes room. Default 4 MiB.
    pub reassembly_bytes: usize,
    /// Ring memory of all TCP flows; rings shrink as it fills, then a SYN is answered by RST. Default 2 GiB.
    pub buffer_bytes: usize,
    /// Frames of the engine's own making (ARP, DHCP, DNS, ICMP) that wait for the TAP; further ones are
    /// dropped. Default 1024.
    pub to_child_frames: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            flows: 32768,
            half_open: 4096,
            udp_bindings: 16384,
            udp_sessions: 16384,
            overlay_peers: 1024,
            icmp_bindings: 256,
            dns_queries: 1024,
            reassembly_bytes: 4 << 20,
            buffer_bytes: 2 << 30,
            to_child_frames: 1024,
        }
    }
}

/// Timeouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timeouts {
    /// Idle UDP binding. Default 300 s (RFC 4787 REQ-5 recommends 5 minutes).
    pub udp: Duration,
    /// Idle UDP session of a published port. Default 300 s (as for bindings).
    pub udp_session: Duration,
    /// Idle ICMP echo binding. Default 60 s (RFC 5508 REQ-2).
    pub icmp: Duration,
    /// One DNS server's time to answer before the next is asked. Default 2 s.
    pub dns: Duration,
    /// A connection to the child that gets no answer. Default 120 s (Linux gives up after 127 s).
    pub tcp_connect: Duration,
    /// A TCP flow that is closed in one direction and silent in the other. Default 7440 s
    /// (RFC 5382 REQ-5 for established flows: 2 h 4 min).
    pub tcp_half_closed: Duration,
    /// A TCP flow that waits for the child's last ACK or FIN after both sides are done. Default 60 s.
    pub tcp_closing: Duration,
    /// Silence after which a keepalive probe asks the child whether a flow is still alive. Default 7200 s.
    pub tcp_keepalive: Duration,
    /// An incomplete fragmented datagram. Default 30 s (RFC 1122 section 3.3.2 asks for a fixed value).
    pub reassembly: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            udp: Duration::from_secs(300),
            udp_session: Duration::from_secs(300),
            icmp: Duration::from_secs(60),
            dns: Duration::from_secs(2),
            tcp_connect: Duration::from_secs(120),
            tcp_half_closed: Duration::from_secs(7440),
            tcp_closing: Duration::from_secs(60),
            tcp_keepalive: Duration::from_secs(7200),
            reassembly: Duration::from_secs(30),
        }
    }
}

/// Settings of the DNS forwarder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DnsConfig {
    /// Servers to forward to; empty means the host's resolv.conf, followed as it changes.
    pub servers: Vec<SocketAddr>,
    /// Whether there is DNS at all.
    pub service: DnsService,
    /// Addresses beside the plans' at which the engine is a DNS server, of any kind: outside the subnets,
    /// link-local. Other ports there are as if it were not.
    pub addresses: Vec<IpAddr>,
    /// The servers that the child is told of by DHCP and router advertisements; `None`: the engine itself, wherever it
    /// is one.
    pub announced: Option<Vec<IpAddr>>,
    /// Names answered locally, beside `host.internal`, `gateway.internal` and `dns.internal`; at most
    /// [`DnsConfig::MAX_NAMES`].
    pub names: Vec<(String, IpAddr)>,
    /// Search domains handed to the child by DHCP and router advertisements.
    pub search: Vec<String>,
}

impl DnsConfig {
    /// Most static names.
    pub const MAX_NAMES: usize = 4096;
}

/// Whether the engine serves DNS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DnsService {
    /// Questions are answered or forwarded.
    #[default]
    On,
    /// Whatever goes to port 53 of a DNS address is dropped without a word and counted; nobody is told of a DNS
    /// server.
    Off,
}

/// A valid configuration of one stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub(crate) mac: [u8; 6],
    pub(crate) mtu: u16,
    pub(crate) addressing: Addressing,
    pub(crate) ipv4: Ipv4Plan,
    pub(crate) ipv6: Ipv6Plan,
    pub(crate) ipv4_mode: Ipv4Mode,
    pub(crate) ipv6_mode: Ipv6Mode,
    pub(crate) host_loopback: Access,
    pub(crate) loopback_refusal: Refusal,
    pub(crate) maps: Vec<AddressMap>,
    pub(crate) outbound_v4: Outbound,
    pub(crate) outbound_v6: Outbound,
    pub(crate) dhcp_order: DhcpOrder,
    pub(crate) without: Vec<LinkService>,
    pub(crate) link_local: Access,
    pub(crate) policy: EgressPolicy,
    pub(crate) udp_filtering: UdpFiltering,
    pub(crate) overlay: Option<OverlayConfig>,
    pub(crate) dns: DnsConfig,
    pub(crate) limits: Limits,
    pub(crate) timeouts: Timeouts,
    pub(crate) busy_poll: Duration,
    pub(crate) seed: u64,
}

impl Config {
    /// Starts from the defaults.
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder::default()
    }

    /// Ethernet address of the engine.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// MTU of the link in bytes.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// IPv4 addresses.
    pub fn ipv4(&self) -> &Ipv4Plan {
        &self.ipv4
    }

    /// IPv6 addresses.
    pub fn ipv6(&self) -> &Ipv6Plan {
        &self.ipv6
    }

    /// Whose addresses they are.
    pub fn addressing(&self) -> Addressing {
        self.addressing
    }

    /// Whether the child is offered IPv4.
    pub fn ipv4_mode(&self) -> Ipv4Mode {
        self.ipv4_mode
    }

    /// When the child is offered IPv6.
    pub fn ipv6_mode(&self) -> Ipv6Mode {
        self.ipv6_mode
    }

    /// Addresses with a meaning of their own.
    pub fn maps(&self) -> &[AddressMap] {
        &self.maps
    }

    /// Whom the DHCP server thinks of first.
    pub fn dhcp_order(&self) -> DhcpOrder {
        self.dhcp_order
    }

    /// Whether a service is there.
    pub fn serves(&self, service: LinkService) -> bool {
        let part_of = (service == LinkService::RouterAdvertisement).then_some(LinkService::NeighborDiscovery);
        !self.without.iter().any(|&without| without == service || Some(without) == part_of)
    }

    /// What the host's sockets are bound to: IPv4, IPv6.
    pub fn outbound(&self) -> (&Outbound, &Outbound) {
        (&self.outbound_v4, &self.outbound_v6)
    }

    /// The overlay between nodes, if there is one.
    pub fn overlay(&self) -> Option<&OverlayConfig> {
        self.overlay.as_ref()
    }

    /// DNS settings.
    pub fn dns(&self) -> &DnsConfig {
        &self.dns
    }

    /// The addresses at which the engine is a DNS server, the plans' first; also while DNS is off.
    pub fn dns_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let plans = [self.ipv4.dns.into(), self.ipv6.dns.into()];
        plans
            .into_iter()
            .filter(|address: &IpAddr| !address.is_unspecified())
            .chain(self.dns.addresses.iter().copied())
    }

    /// The DNS servers that the child is told of.
    pub(crate) fn announced_dns(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let own = self
            .dns_addresses()
            .filter(|_| self.dns.service == DnsService::On && self.dns.announced.is_none());
        own.chain(self.dns.announced.iter().flatten().copied())
    }

    /// The addresses that are the engine's on the link.
    pub(crate) fn own_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let gateways = [self.ipv4.gateway.into(), self.ipv6.gateway.into()];
        gateways.into_iter().chain(self.dns_addresses()).chain(self.maps.iter().map(|map| map.child))
    }

    /// Limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Timeouts.
    pub fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// How long the driver looks for events before it sleeps.
    pub fn busy_poll(&self) -> Duration {
        self.busy_poll
    }
}

/// Collects settings; [`build`](ConfigBuilder::build) checks them all.
#[derive(Clone, Debug)]
pub struct ConfigBuilder {
    config: Config,
}

impl Default for ConfigBuilder {
    fn default() -> Self {
        let subnet_v4 = Ipv4Net { network: Ipv4Addr::new(10, 0, 42, 0), prefix: 24 };
        let subnet_v6 = Ipv6Net { network: Ipv6Addr::new(0xfd42, 0x10, 0x42, 0, 0, 0, 0, 0), prefix: 64 };
        ConfigBuilder {
            config: Config {
                mac: [0x02, 0x72, 0x6c, 0x6e, 0x00, 0x02],
                mtu: 1500,
                addressing: Addressing::default(),
                ipv4: Ipv4Plan::for_subnet(subnet_v4),
                ipv6: Ipv6Plan::for_subnet(subnet_v6),
                ipv4_mode: Ipv4Mode::default(),
                ipv6_mode: Ipv6Mode::default(),
                host_loopback: Access::Deny,
                loopback_refusal: Refusal::default(),
                maps: Vec::new(),
                outbound_v4: Outbound::default(),
                outbound_v6: Outbound::default(),
                dhcp_order: DhcpOrder::default(),
                without: Vec::new(),
                link_local: Access::Deny,
                policy: EgressPolicy::default(),
                udp_filtering: UdpFiltering::default(),
                overlay: None,
                dns: DnsConfig::default(),
                limits: Limits::default(),
                timeouts: Timeouts::default(),
                busy_poll: Duration::from_micros(50),
                seed: 0,
            },
        }
    }
}

impl ConfigBuilder {
    /// Ethernet address of the engine (unicast). Default 02:72:6c:6e:00:02.
    pub fn mac(mut self, mac: [u8; 6]) -> Self {
        self.config.mac = mac;
        self
    }

    /// MTU of the link, 576..=65521 (1280.. unless IPv6 is off). Default 1500.
    pub fn mtu(mut self, mtu: u16) -> Self {
        self.config.mtu = mtu;
        self
    }

    /// IPv4 subnet with the default roles: gateway .2, DNS .3, child .100. Default 10.0.42.0/24.
    pub fn subnet_v4(mut self, subnet: Ipv4Net) -> Self {
        self.config.ipv4 = Ipv4Plan::for_subnet(subnet);
        self
    }

    /// IPv4 addresses, each chosen.
    pub fn ipv4(mut self, plan: Ipv4Plan) -> Self {
        self.config.ipv4 = plan;
        self
    }

    /// IPv6 subnet (/64) with the default roles. Default fd42:10:42::/64.
    pub fn subnet_v6(mut self, subnet: Ipv6Net) -> Self {
        self.config.ipv6 = Ipv6Plan::for_subnet(subnet);
        self
    }

    /// IPv6 addresses, each chosen.
    pub fn ipv6(mut self, plan: Ipv6Plan) -> Self {
        self.config.ipv6 = plan;
        self
    }

    /// Whose addresses the plans name. Default [`Addressing::Subnet`].
    pub fn addressing(mut self, addressing: Addressing) -> Self {
        self.config.addressing = addressing;
        self
    }

    /// Whether the child is offered IPv4. Default [`Ipv4Mode::On`].
    pub fn ipv4_mode(mut self, mode: Ipv4Mode) -> Self {
        self.config.ipv4_mode = mode;
        self
    }

    /// When the child is offered IPv6. Default [`Ipv6Mode::Auto`].
    pub fn ipv6_mode(mut self, mode: Ipv6Mode) -> Self {
        self.config.ipv6_mode = mode;
        self
    }

    /// Whether the gateway address reaches the host's loopback. Default [`Access::Deny`].
    pub fn host_loopback(mut self, access: Access) -> Self {
        self.config.host_loopback = access;
        self
    }

    /// What the child hears from the gateway where it is not the host's loopback. Default [`Refusal::Prompt`].
    pub fn loopback_refusal(mut self, refusal: Refusal) -> Self {
        self.config.loopback_refusal = refusal;
        self
    }

    /// Addresses with a meaning of their own, at most [`MAX_MAPS`], each once. Default: none.
    pub fn maps(mut self, maps: Vec<AddressMap>) -> Self {
        self.config.maps = maps;
        self
    }

    /// What the host's IPv4 sockets are bound to. Default [`Outbound::Any`].
    pub fn outbound_v4(mut self, outbound: Outbound) -> Self {
        self.config.outbound_v4 = outbound;
        self
    }

    /// What the host's IPv6 sockets are bound to. Default [`Outbound::Any`].
    pub fn outbound_v6(mut self, outbound: Outbound) -> Self {
        self.config.outbound_v6 = outbound;
        self
    }

    /// Whom the DHCP server thinks of first. Default [`DhcpOrder::Child`].
    pub fn dhcp_order(mut self, order: DhcpOrder) -> Self {
        self.config.dhcp_order = order;
        self
    }

    /// Services on the link that are left out. Default: none.
    pub fn without(mut self, services: Vec<LinkService>) -> Self {
        self.config.without = services;
        self
    }

    /// Whether link-local destinations (cloud metadata at 169.254.169.254) are reachable. Default
    /// [`Access::Deny`].
    pub fn link_local(mut self, access: Access) -> Self {
        self.config.link_local = access;
        self
    }

    /// Egress rules, first match wins. Default: everything else is allowed.
    pub fn policy(mut self, policy: EgressPolicy) -> Self {
        self.config.policy = policy;
        self
    }

    /// Who may send to a UDP binding. Default [`UdpFiltering::AddressDependent`].
    pub fn udp_filtering(mut self, filtering: UdpFiltering) -> Self {
        self.config.udp_filtering = filtering;
        self
    }

    /// An overlay between nodes. Default: none.
    pub fn overlay(mut self, overlay: Option<OverlayConfig>) -> Self {
        self.config.overlay = overlay;
        self
    }

    /// DNS settings.
    pub fn dns(mut self, dns: DnsConfig) -> Self {
        self.config.dns = dns;
        self
    }

    /// Limits.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.config.limits = limits;
        self
    }

    /// Timeouts.
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.config.timeouts = timeouts;
        self
    }

    /// How long the driver looks for events before it sleeps, where waits have been as short; other tasks are let
    /// through meanwhile. Default 50 microseconds, at most 1 ms; zero sleeps at once.
    pub fn busy_poll(mut self, limit: Duration) -> Self {
        self.config.busy_poll = limit.min(Duration::from_millis(1));
        self
    }

    /// Seed of sequence numbers, hash tables and DNS ids. The driver replaces 0 by kernel randomness;
    /// tests set it to repeat a run.
    pub fn seed(mut self, seed: u64) -> Self {
        self.config.seed = seed;
        self
    }

    /// Checks everything.
    ///
    /// # Errors
    /// The first setting that cannot work, with its value.
    pub fn build(self) -> Result<Config, ConfigError> {
        let config = self.config;
        match config.addressing {
            Addressing::Subnet => {
                check_ipv4(&config.ipv4)?;
                check_ipv6(&config.ipv6)?;
            }
            Addressing::Copied => check_copied(&config)?,
        }
        if config.ipv4_mode == Ipv4Mode::Off && config.ipv6_mode == Ipv6Mode::Off {
            return Err(ConfigError::NoFamily);
        }
        check_maps(&config.maps)?;
        check_outbound(&config.outbound_v4, |address| address.is_ipv4())?;
        check_outbound(&config.outbound_v6, |address| address.is_ipv6())?;
        if let Some(&address) = config.dns.addresses.iter().find(|&&address| !is_host(address)) {
            return Err(ConfigError::NotAHost(address));
        }
        let min_mtu = if config.ipv6_mode == Ipv6Mode::Off { MIN_MTU } else { MIN_MTU_IPV6 };
        if !(min_mtu..=MAX_MTU).contains(&config.mtu) {
            return Err(ConfigError::Mtu(config.mtu, min_mtu));
        }
        if let Some(overlay) = &config.overlay {
            if overlay.port == 0 {
                return Err(ConfigError::OverlayPort);
            }
            if overlay.peers.len() > MAX_OVERLAY_NETS {
                return Err(ConfigError::TooManyPeers(MAX_OVERLAY_NETS));
            }
        }
        check_limits(&config.limits)?;
        check_timeouts(&config.timeouts)?;
        if config.dns.names.len() > DnsConfig::MAX_NAMES {
            return Err(ConfigError::TooManyNames(DnsConfig::MAX_NAMES));
        }
        for name in config.dns.names.iter().map(|(name, _)| name).chain(&config.dns.search) {
            if !is_dns_name(name) {
                return Err(ConfigError::DnsName(name.clone()));
            }
        }
        Ok(config)
    }
}

/// An address that a packet may be sent to and come from.
fn is_host(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.octets()[0] == 0 || v4.octets()[0] >= 240);
    let disguised = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || broadcast || disguised)
}

/// Of an offered family, child and gateway have to be hosts, and not the same.
fn check_copied(config: &Config) -> Result<(), ConfigError> {
    let roles4 = [config.ipv4.gateway.into(), config.ipv4.child.into(), config.ipv4.dns.into()];
    let roles6 = [config.ipv6.gateway.into(), config.ipv6.child.into(), config.ipv6.dns.into()];
    let families = [(roles4, config.ipv4_mode != Ipv4Mode::Off), (roles6, config.ipv6_mode != Ipv6Mode::Off)];
    for ([gateway, child, dns], _) in families.into_iter().filter(|&(_, offered)| offered) {
        let roles = [Some(gateway), Some(child), Some(dns).filter(|dns: &IpAddr| !dns.is_unspecified())];
        if let Some(address) = roles.into_iter().flatten().find(|&address| !is_host(address)) {
            return Err(ConfigError::NotAHost(address));
        }
        if child == gateway || child == dns {
            return Err(ConfigError::AddressConflict(child));
        }
    }
    Ok(())
}

fn check_maps(maps: &[AddressMap]) -> Result<(), ConfigError> {
    if maps.len() > MAX_MAPS {
        return Err(ConfigError::TooManyMaps(MAX_MAPS));
    }
    for (index, map) in maps.iter().enumerate() {
        if !is_host(map.child) {
            return Err(ConfigError::NotAHost(map.child));
        }
        if maps[..index].iter().any(|other| other.child == map.child) {
            return Err(ConfigError::MappedTwice(map.child));
        }
        if let MapTarget::Address(target) = map.host {
            if target.is_ipv4() != map.child.is_ipv4() {
                return Err(ConfigError::OtherFamily(target));
            }
            if !is_host(target) && !target.is_loopback() {
                return Err(ConfigError::NotAHost(target));
            }
        }
    }
    Ok(())
}

fn check_outbound(outbound: &Outbound, is_family: impl Fn(&IpAddr) -> bool) -> Result<(), ConfigError> {
    match outbound {
        Outbound::Address(address) if !is_family(address) => Err(ConfigError::OtherFamily(*address)),
        Outbound::Address(address) if address.is_unspecified() || address.is_multicast() => {
            Err(ConfigError::NotAHost(*address))
        }
        // IFNAMSIZ with its final zero.
        Outbound::Interface(name)
            if !(1..=15).contains(&name.len()) || name.contains(['/', '\0', ' ', '%']) =>
        {
            Err(ConfigError::InterfaceName(name.clone()))
        }
        _ => Ok(()),
    }
}

fn check_ipv4(plan: &Ipv4Plan) -> Result<(), ConfigError> {
    let subnet = plan.subnet;
    if !(1..=25).contains(&subnet.prefix) {
        return Err(ConfigError::CidrTooSmall(subnet.to_string()));
    }
    let network = subnet.network;
    if network.is_loopback() || network.is_multicast() || network.is_link_local() || network.octets()[0] == 0
    {
        return Err(ConfigError::CidrReserved(subnet.to_string()));
    }
    let roles = [plan.gateway, plan.dns, plan.child];
    for (index, &address) in roles.iter().enumerate() {
        if !subnet.contains(address) || address == network || address == subnet.broadcast() {
            return Err(ConfigError::NotInSubnet { address: address.into(), subnet: subnet.to_string() });
        }
        if roles[..index].contains(&address) {
            return Err(ConfigError::AddressConflict(address.into()));
        }
    }
    Ok(())
}

fn check_ipv6(plan: &Ipv6Plan) -> Result<(), ConfigError> {
    let subnet = plan.subnet;
    if subnet.prefix != 64 {
        return Err(ConfigError::Ipv6Prefix(subnet.to_string()));
    }
    let network = subnet.network;
    if network.is_multicast() || network.is_unicast_link_local() || network.is_unspecified() {
        return Err(ConfigError::CidrReserved(subnet.to_string()));
    }
    let roles = [plan.gateway, plan.dns, plan.child];
    for (index, &address) in roles.iter().enumerate() {
        if !subnet.contains(address) || address == network {
            return Err(ConfigError::NotInSubnet { address: address.into(), subnet: subnet.to_string() });
        }
        if roles[..index].contains(&address) {
            return Err(ConfigError::AddressConflict(address.into()));
        }
    }
    Ok(())
}

fn check_limits(limits: &Limits) -> Result<(), ConfigError> {
    let checks = [
        ("flows", limits.flows, 1),
        ("half_open", limits.half_open, 1),
        ("udp_bindings", limits.udp_bindings, 1),
        ("udp_sessions", limits.udp_sessions, 1),
        ("overlay_peers", limits.overlay_peers, 1),
        ("icmp_bindings", limits.icmp_bindings, 1),
        ("dns_queries", limits.dns_queries, 1),
        ("reassembly_bytes", limits.reassembly_bytes, 1 << 16),
        ("buffer_bytes", limits.buffer_bytes, 1 << 20),
        ("to_child_frames", limits.to_child_frames, 16),
    ];
    match checks.into_iter().find(|&(_, value, least)| value < least) {
        Some((name, _, least)) => Err(ConfigError::LimitTooSmall(name, least)),
        None => Ok(()),
    }
}

fn check_timeouts(timeouts: &Timeouts) -> Result<(), ConfigError> {
    let checks = [
        ("udp", timeouts.udp),
        ("udp_session", timeouts.udp_session),
        ("icmp", timeouts.icmp),
        ("dns", timeouts.dns),
        ("tcp_connect", timeouts.tcp_connect),
        ("tcp_half_closed", timeouts.tcp_half_closed),
        ("tcp_closing", timeouts.tcp_closing),
        ("tcp_keepalive", timeouts.tcp_keepalive),
        ("reassembly", timeouts.reassembly),
    ];
    match checks.into_iter().find(|&(_, value)| value == Duration::ZERO) {
        Some((name, _)) => Err(ConfigError::TimeoutZero(name)),
        None => Ok(()),
    }
}

/// RFC 1035 lengths; letters, digits, hyphen and underscore.
pub(crate) fn is_dns_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_cidr(cidr: &str) -> Result<Config, ConfigError> {
        Config::builder().subnet_v4(cidr.parse()?).build()
    }

    #[test]
    fn defaults_are_valid() {
        let config = Config::builder().build().unwrap();
        assert_eq!(config.ipv4.gateway, Ipv4Addr::new(10, 0, 42, 2));
        assert_eq!(config.ipv4.dns, Ipv4Addr::new(10, 0, 42, 3));
        assert_eq!(config.ipv4.child, Ipv4Addr::new(10, 0, 42, 100));
        assert_eq!(config.ipv6.child, "fd42:10:42::100".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn cidr_faults_are_told_apart() {
        assert!(matches!(with_cidr("10.0.42"), Err(ConfigError::CidrSyntax(_))));
        assert!(matches!(with_cidr("10.0.42.0/33"), Err(ConfigError::CidrSyntax(_))));
        assert!(matches!(with_cidr("10.0.42.1/24"), Err(ConfigError::CidrHostBits(_))));
        assert!(matches!(with_cidr("10.0.42.0/26"), Err(ConfigError::CidrTooSmall(_))));
        assert!(matches!(with_cidr("0.0.0.0/0"), Err(ConfigError::CidrTooSmall(_))));
        assert!(matches!(with_cidr("127.0.0.0/8"), Err(ConfigError::CidrReserved(_))));
        assert!(matches!(with_cidr("169.254.0.0/16"), Err(ConfigError::CidrReserved(_))));
        assert!(with_cidr("192.168.1.0/25").is_ok());
    }

    #[test]
    fn roles_must_differ_and_lie_inside() {
        let mut plan = *Config::builder().build().unwrap().ipv4();
        plan.dns = plan.gateway;
        assert!(matches!(Config::builder().ipv4(plan).build(), Err(ConfigError::AddressConflict(_))));
        plan.dns = Ipv4Addr::new(10, 0, 43, 3);
        assert!(matches!(Config::builder().ipv4(plan).build(), Err(ConfigError::NotInSubnet { .. })));
    }

    #[test]
    fn mtu_floor_depends_on_ipv6() {
        assert_eq!(Config::builder().mtu(576).build().unwrap_err(), ConfigError::Mtu(576, 1280));
        assert!(Config::builder().mtu(576).ipv6_mode(Ipv6Mode::Off).build().is_ok());
        assert!(Config::builder().mtu(65521).build().is_ok());
        assert!(Config::builder().mtu(65522).build().is_err());
    }

    #[test]
    fn copied_addresses_need_no_subnet() {
        let plan = |child: [u8; 4], gateway: [u8; 4], prefix| Ipv4Plan {
            subnet: Ipv4Net::new(
                Ipv4Addr::from(u32::from_be_bytes(child) & u32::MAX << (32 - prefix)),
                prefix,
            )
            .unwrap(),
            gateway: gateway.into(),
            dns: Ipv4Addr::UNSPECIFIED,
            child: child.into(),
        };
        let build = |plan| Config::builder().addressing(Addressing::Copied).ipv4(plan).build();
        for prefix in 1..=32 {
            let config = build(plan([192, 0, 2, 7], [198, 51, 100, 1], prefix)).unwrap();
            assert!(config.dns_addresses().all(|address| address.is_ipv6()));
        }
        let same = plan([192, 0, 2, 7], [192, 0, 2, 7], 24);
        assert_eq!(build(same).unwrap_err(), ConfigError::AddressConflict([192, 0, 2, 7].into()));
        let none = plan([192, 0, 2, 7], [0; 4], 24);
        assert_eq!(build(none).unwrap_err(), ConfigError::NotAHost([0; 4].into()));
        let only_v6 = Config::builder().addressing(Addressing::Copied).ipv4(none).ipv4_mode(Ipv4Mode::Off);
        assert!(only_v6.clone().build().is_ok(), "a family that is off has no addresses");
        assert_eq!(only_v6.ipv6_mode(Ipv6Mode::Off).build().unwrap_err(), ConfigError::NoFamily);
    }

    #[test]
    fn maps_and_outbound_addresses_are_checked() {
        let map = |child: &str, host| AddressMap { child: child.parse().unwrap(), host };
        let maps = |maps: &[AddressMap]| Config::builder().maps(maps.to_vec()).build().map(drop);
        let good = map("169.254.1.2", MapTarget::HostAddress);
        assert_eq!(maps(&[good, map("fe80::2:2", MapTarget::Loopback)]), Ok(()));
        assert_eq!(maps(&[good, good]), Err(ConfigError::MappedTwice(good.child)));
        let other = "::1".parse().unwrap();
        let across = map("169.254.1.2", MapTarget::Address(other));
        assert_eq!(maps(&[across]), Err(ConfigError::OtherFamily(other)));
        assert!(maps(&[map("224.0.0.1", MapTarget::Loopback)]).is_err());
        let outbound = |outbound| Config::builder().outbound_v4(outbound).build().map(drop);
        assert_eq!(outbound(Outbound::Address([192, 0, 2, 1].into())), Ok(()));
        assert_eq!(outbound(Outbound::Address(other)), Err(ConfigError::OtherFamily(other)));
        assert_eq!(outbound(Outbound::Interface("eth0".into())), Ok(()));
        assert!(outbound(Outbound::Interface("a-name-too-long-by-far".into())).is_err());
    }

    #[test]
    fn dns_names_are_checked() {
        let dns = DnsConfig { names: vec![("a b".into(), Ipv4Addr::LOCALHOST.into())], ..Default::default() };
        assert_eq!(Config::builder().dns(dns).build().unwrap_err(), ConfigError::DnsName("a b".into()));
    }
}
