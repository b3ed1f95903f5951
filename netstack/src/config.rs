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
/// Largest MTU: a 64 KiB frame with its Ethernet header must fit the TAP's 65535 bytes.
pub const MAX_MTU: u16 = 65520;

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

/// The child's IPv4 subnet and who is who in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Plan {
    /// The subnet.
    pub subnet: Ipv4Net,
    /// The engine as router; also stands for the host. Default: network + 2.
    pub gateway: Ipv4Addr,
    /// The engine as DNS server. Default: network + 3.
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
    /// The subnet, a /64.
    pub subnet: Ipv6Net,
    /// The engine as router; also stands for the host. Default: network::2.
    pub gateway: Ipv6Addr,
    /// The engine as DNS server. Default: network::3.
    pub dns: Ipv6Addr,
    /// The child's address. Default: network::100 (hexadecimal, so that it reads like the IPv4 one).
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
    /// Names answered locally, beside `host.internal`, `gateway.internal` and `dns.internal`.
    pub names: Vec<(String, IpAddr)>,
    /// Search domains handed to the child by DHCP and router advertisements.
    pub search: Vec<String>,
}

/// A valid configuration of one stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub(crate) mac: [u8; 6],
    pub(crate) mtu: u16,
    pub(crate) ipv4: Ipv4Plan,
    pub(crate) ipv6: Ipv6Plan,
    pub(crate) ipv6_mode: Ipv6Mode,
    pub(crate) host_loopback: Access,
    pub(crate) link_local: Access,
    pub(crate) policy: EgressPolicy,
    pub(crate) udp_filtering: UdpFiltering,
    pub(crate) dns: DnsConfig,
    pub(crate) limits: Limits,
    pub(crate) timeouts: Timeouts,
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

    /// When the child is offered IPv6.
    pub fn ipv6_mode(&self) -> Ipv6Mode {
        self.ipv6_mode
    }

    /// DNS settings.
    pub fn dns(&self) -> &DnsConfig {
        &self.dns
    }

    /// Limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Timeouts.
    pub fn timeouts(&self) -> &Timeouts {
        &self.timeouts
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
                ipv4: Ipv4Plan::for_subnet(subnet_v4),
                ipv6: Ipv6Plan::for_subnet(subnet_v6),
                ipv6_mode: Ipv6Mode::default(),
                host_loopback: Access::Deny,
                link_local: Access::Deny,
                policy: EgressPolicy::default(),
                udp_filtering: UdpFiltering::default(),
                dns: DnsConfig::default(),
                limits: Limits::default(),
                timeouts: Timeouts::default(),
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

    /// MTU of the link, 576..=65520 (1280.. unless IPv6 is off). Default 1500.
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
        check_ipv4(&config.ipv4)?;
        check_ipv6(&config.ipv6)?;
        let min_mtu = if config.ipv6_mode == Ipv6Mode::Off { MIN_MTU } else { MIN_MTU_IPV6 };
        if !(min_mtu..=MAX_MTU).contains(&config.mtu) {
            return Err(ConfigError::Mtu(config.mtu, min_mtu));
        }
        check_limits(&config.limits)?;
        check_timeouts(&config.timeouts)?;
        for name in config.dns.names.iter().map(|(name, _)| name).chain(&config.dns.search) {
            if !is_dns_name(name) {
                return Err(ConfigError::DnsName(name.clone()));
            }
        }
        Ok(config)
    }
}

fn check_ipv4(plan: &Ipv4Plan) -> Result<(), ConfigError> {
    let subnet = plan.subnet;
    if !(8..=25).contains(&subnet.prefix) {
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
fn is_dns_name(name: &str) -> bool {
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
        assert!(Config::builder().mtu(65521).build().is_err());
    }

    #[test]
    fn dns_names_are_checked() {
        let dns = DnsConfig { names: vec![("a b".into(), Ipv4Addr::LOCALHOST.into())], ..Default::default() };
        assert_eq!(Config::builder().dns(dns).build().unwrap_err(), ConfigError::DnsName("a b".into()));
    }
}
