//! What a command line of pasta means for our engine, on this host. Pure.
//!
//! # Theory of operation
//! The child gets copies of the host's address, prefix, gateway and interface name, unless the command line says
//! otherwise. A family that the host has no way out for is not offered; without any, pasta's *local mode* takes over:
//! both families are offered at link-local addresses, so that the host is reached at least.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use forwarder::auto::{AutoRules, Match, Target as MatchTarget};
use forwarder::driver::{ChildAddress, ChildNetwork, LocalClients, Manner, ToHost};
use forwarder::error::{SpecError, SpecFault};
use forwarder::spec::{InterfaceName, PortFields, PortSpec, Proto, Transport};
use netstack::config::{
    Access, AddressMap, Addressing, Config, DnsConfig, Ipv4Mode, Ipv4Net, Ipv4Plan, Ipv6Mode, Ipv6Net,
    Ipv6Plan, LinkService, MIN_MTU, MIN_MTU_IPV6, MapTarget, Outbound, UdpFiltering,
};
use netstack::error::ConfigError;
use netstack::flow::policy::EgressPolicy;
use thiserror::Error;

use super::cli::{Families, Request};
use super::host::{Host, Uplink, Wanted};
use super::ports::{PortRule, Ports, Strength};
use crate::join::{LinkSetup, TapSetup};
use crate::netlink::message::Route;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The engine's settings.
    pub config: Config,
    /// The interface.
    pub tap: TapSetup,
    /// Ports, both ways.
    pub forwards: Forwards,
}

/// Ports, both ways.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwards {
    /// From the host to the child.
    pub to_child: Vec<Forward<PortSpec>>,
    /// The same for what listens in the child.
    pub auto: Option<AutoRules>,
    /// From the child's loopback to the host's.
    pub to_host: Vec<Forward<ToHost>>,
    /// The same for what listens on the host.
    pub auto_to_host: Option<AutoRules>,
}

/// A port, or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward<S> {
    /// Which.
    pub spec: S,
    /// Whether there is no going on without it.
    pub strength: Strength,
}

/// Why there is no plan.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// The engine cannot do this.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A port that cannot be forwarded.
    #[error(transparent)]
    Port(#[from] SpecError),
    /// An interface that is not one.
    #[error(transparent)]
    Interface(#[from] SpecFault),
    /// `-i` names an interface without addresses.
    #[error("External interface {0} not usable")]
    NoInterface(String),
    /// More than one where there can be one.
    #[error("{option}: one address for each IP version")]
    Twice {
        /// The option.
        option: &'static str,
    },
    /// An interface cannot be bound to in the child.
    #[error("{0}: addresses and interfaces are not for ports of the namespace's own")]
    ToHostPlace(&'static str),
}

/// The child's addresses in local mode, and the gateways: pasta's for IPv4, and its gateway for IPv6.
const LOCAL4: (Ipv4Addr, u8, Ipv4Addr) = (Ipv4Addr::new(169, 254, 2, 1), 16, Ipv4Addr::new(169, 254, 2, 2));
const LOCAL6: (Ipv6Addr, u8, Ipv6Addr) =
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0x0201), 64, Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
/// The interface's name where there is none to copy.
const LOCAL_NAME: &str = "tap0";
/// MTU of a TAP that nobody has set.
const DEVICE_MTU: u16 = 1500;

/// Which interfaces of the host have to be used.
pub fn wanted(request: &Request) -> Wanted<'_> {
    let any = request.interface.as_deref();
    Wanted { ipv4: any.or(request.outbound_if4.as_deref()), ipv6: any.or(request.outbound_if6.as_deref()) }
}

impl Plan {
    /// Plans for this host.
    ///
    /// # Errors
    /// What cannot be done.
    pub fn new(request: &Request, host: &Host) -> Result<Self, PlanError> {
        let sides = Sides::new(request, host)?;
        let config = config(request, host, &sides)?;
        let tap = tap(request, host, &config);
        Ok(Plan { config, tap, forwards: forwards(request)? })
    }

    /// The child as the forwarder has to know it. Neighbours of the host keep their addresses, though they have those
    /// of the child's subnet.
    pub fn child_network(&self) -> ChildNetwork {
        let (ipv4, ipv6) = (self.config.ipv4(), self.config.ipv6());
        ChildNetwork {
            ipv4: (self.config.ipv4_mode() == Ipv4Mode::On).then_some(ChildAddress {
                address: ipv4.child,
                prefix: 32,
                gateway: ipv4.gateway,
            }),
            ipv6: (self.config.ipv6_mode() == Ipv6Mode::On).then_some(ChildAddress {
                address: ipv6.child,
                prefix: 128,
                gateway: ipv6.gateway,
            }),
        }
    }
}

impl Forwards {
    /// Whether there is nothing to forward, now or later.
    pub fn is_empty(&self) -> bool {
        *self == Forwards::default()
    }
}

/// How clients of the host get to the child.
pub fn manner(request: &Request) -> Manner {
    Manner::Apart(if request.host_lo_to_ns_lo { LocalClients::ToLoopback } else { LocalClients::ToAddress })
}

/// What people read at the start.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ipv4, ipv6) = (self.config.ipv4(), self.config.ipv6());
        writeln!(f, "Namespace interface: {}, MTU {}", self.tap.name, self.config.mtu())?;
        if self.config.ipv4_mode() == Ipv4Mode::On {
            writeln!(f, "IPv4: {}/{}, router {}", ipv4.child, ipv4.subnet.prefix(), ipv4.gateway)?;
        }
        if self.config.ipv6_mode() == Ipv6Mode::On {
            writeln!(f, "IPv6: {}/{}, router {}", ipv6.child, ipv6.subnet.prefix(), ipv6.gateway)?;
        }
        for address in &self.config.dns().addresses {
            writeln!(f, "DNS: {address}")?;
        }
        Ok(())
    }
}

/// Addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Side<A> {
    address: A,
    prefix: u8,
    gateway: A,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sides {
    ipv4: Option<Side<Ipv4Addr>>,
    ipv6: Option<Side<Ipv6Addr>>,
}

impl Sides {
    fn new(request: &Request, host: &Host) -> Result<Self, PlanError> {
        let given4 =
            one("--address", request.addresses.iter().filter_map(|&(ip, prefix)| Some((v4(ip)?, prefix))))?;
        let given6 =
            one("--address", request.addresses.iter().filter_map(|&(ip, prefix)| Some((v6(ip)?, prefix))))?;
        let gateway4 = one("--gateway", request.gateways.iter().copied().filter_map(v4))?;
        let gateway6 = one("--gateway", request.gateways.iter().copied().filter_map(v6))?;
        if let Some(name) = &request.interface
            && host.ipv4.is_none()
            && host.ipv6.is_none()
        {
            return Err(PlanError::NoInterface(name.clone()));
        }
        let asked4 = request.families != Families::V6;
        let asked6 = request.families != Families::V4;
        let way4 = asked4 && (host.ipv4.is_some() || given4.is_some());
        let way6 = asked6 && (host.ipv6.is_some() || given6.is_some());
        let local = !way4 && !way6;
        let ipv4 = (way4 || local && asked4).then(|| {
            let (address, prefix) = match (given4, &host.ipv4) {
                (Some((address, given)), host) => {
                    let hosts = host.as_ref().filter(|up| up.address == address).map(|up| up.prefix);
                    (address, given.or(request.netmask).or(hosts).unwrap_or_else(|| class(address)))
                }
                (None, Some(up)) => (up.address, request.netmask.unwrap_or(up.prefix)),
                (None, None) => (LOCAL4.0, request.netmask.unwrap_or(LOCAL4.1)),
            };
            Side { address, prefix, gateway: gateway4.or(hosts_gateway(&host.ipv4)).unwrap_or(LOCAL4.2) }
        });
        let ipv6 = (way6 || local && asked6).then(|| {
            let (address, prefix) = match (given6, &host.ipv6) {
                (Some((address, given)), host) => {
                    let hosts = host.as_ref().filter(|up| up.address == address).map(|up| up.prefix);
                    (address, given.or(hosts).unwrap_or(64))
                }
                (None, Some(up)) => (up.address, up.prefix),
                (None, None) => (LOCAL6.0, LOCAL6.1),
            };
            Side { address, prefix, gateway: gateway6.or(hosts_gateway(&host.ipv6)).unwrap_or(LOCAL6.2) }
        });
        Ok(Sides { ipv4, ipv6 })
    }
}

fn hosts_gateway<A: Copy>(uplink: &Option<Uplink<A>>) -> Option<A> {
    uplink.as_ref().and_then(|up| up.gateway)
}

/// The prefix that an address had before there were any (RFC 4632 section 2).
fn class(address: Ipv4Addr) -> u8 {
    match address.octets()[0] {
        0..128 => 8,
        128..192 => 16,
        _ => 24,
    }
}

fn config(request: &Request, host: &Host, sides: &Sides) -> Result<Config, PlanError> {
    let mut builder = Config::builder().addressing(Addressing::Copied);
    if let Some(mac) = request.mac.or(host.mac.filter(|mac| mac[0] & 1 == 0 && *mac != [0; 6])) {
        builder = builder.mac(mac);
    }
    let mtu = if request.mtu == 0 { DEVICE_MTU } else { request.mtu };
    builder = match sides.ipv4 {
        Some(Side { address, prefix, gateway }) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            let subnet = Ipv4Net::new((u32::from(address) & mask).into(), prefix)?;
            builder.ipv4(Ipv4Plan { subnet, gateway, dns: Ipv4Addr::UNSPECIFIED, child: address })
        }
        None => builder.ipv4_mode(Ipv4Mode::Off),
    };
    builder = match sides.ipv6.filter(|_| mtu >= MIN_MTU_IPV6 || sides.ipv4.is_none()) {
        Some(Side { address, prefix, gateway }) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            let subnet = Ipv6Net::new((u128::from(address) & mask).into(), prefix)?;
            let plan = Ipv6Plan { subnet, gateway, dns: Ipv6Addr::UNSPECIFIED, child: address };
            builder.ipv6(plan).ipv6_mode(Ipv6Mode::On)
        }
        None => builder.ipv6_mode(Ipv6Mode::Off),
    };
    let host_loopback = if request.map_host_loopback.is_none() { Access::Allow } else { Access::Deny };
    let config = builder
        .mtu(mtu.max(MIN_MTU))
        .host_loopback(host_loopback)
        .maps(maps(request))
        .outbound_v4(outbound(request, true, request.outbound_if4.as_ref())?)
        .outbound_v6(outbound(request, false, request.outbound_if6.as_ref())?)
        .link_local(Access::Allow)
        .udp_filtering(UdpFiltering::EndpointIndependent)
        .policy(policy(request)?)
        .dns(dns(request, host))
        .without(without(request))
        .build()?;
    Ok(config)
}

fn maps(request: &Request) -> Vec<AddressMap> {
    let loopback = request.map_host_loopback.iter().flatten().map(|&child| (child, MapTarget::Loopback));
    let host = request.map_guest_addr.iter().map(|&child| (child, MapTarget::HostAddress));
    loopback.chain(host).map(|(child, host)| AddressMap { child, host }).collect()
}

fn outbound(request: &Request, is_v4: bool, interface: Option<&String>) -> Result<Outbound, PlanError> {
    let address =
        one("--outbound", request.outbound.iter().copied().filter(|address| address.is_ipv4() == is_v4))?;
    Ok(match (address, interface) {
        (Some(address), _) => Outbound::Address(address),
        (None, Some(name)) => Outbound::Interface(name.clone()),
        (None, None) => Outbound::Any,
    })
}

/// Protocols that are switched off are refused.
fn policy(request: &Request) -> Result<EgressPolicy, ConfigError> {
    let without = &request.without;
    let rules = [("tcp", without.tcp), ("udp", without.udp), ("icmp", without.icmp)];
    let text: String =
        rules.into_iter().filter(|&(_, off)| off).map(|(name, _)| format!("deny {name} any\n")).collect();
    text.parse()
}

fn without(request: &Request) -> Vec<LinkService> {
    let without = &request.without;
    let services = [
        (LinkService::Dhcp, without.dhcp),
        (LinkService::Dhcpv6, without.dhcpv6),
        (LinkService::NeighborDiscovery, without.ndp),
        (LinkService::RouterAdvertisement, without.ra),
    ];
    services.into_iter().filter(|&(_, off)| off).map(|(service, _)| service).collect()
}

fn dns(request: &Request, host: &Host) -> DnsConfig {
    let mut dns = DnsConfig::default();
    dns.addresses = request.dns_forward.clone();
    dns.servers = request.dns_host.iter().map(|&server| (server, 53).into()).collect();
    dns.announced = Some(match (&request.dns, request.dhcp_dns) {
        (_, false) => Vec::new(),
        (Some(servers), true) => servers.clone(),
        (None, true) if !request.dns_forward.is_empty() => request.dns_forward.clone(),
        (None, true) => host.resolver.servers.clone(),
    });
    if request.dhcp_search {
        dns.search = request.search.clone().unwrap_or_else(|| host.resolver.search.clone());
    }
    dns
}

fn tap(request: &Request, host: &Host, config: &Config) -> TapSetup {
    let copied = host.ipv4.as_ref().map(|up| &up.interface).or(host.ipv6.as_ref().map(|up| &up.interface));
    let name = request.ns_ifname.as_ref().or(copied).map_or(LOCAL_NAME, String::as_str);
    let mut link = LinkSetup {
        mtu: config.mtu().into(),
        mac: request.ns_mac,
        addresses: Vec::new(),
        routes: Vec::new(),
    };
    if request.mtu != 0 {
        link.mtu = request.mtu.into();
    }
    if !request.config_net {
        // Somebody else configures it; only an address of its own needs somebody with rights, now.
        return TapSetup { name: name.to_owned(), link: request.ns_mac.map(|_| link) };
    }
    if config.ipv4_mode() == Ipv4Mode::On {
        let plan = config.ipv4();
        link.addresses.push((plan.child.into(), plan.subnet.prefix()));
        link.routes.extend(routes(plan.gateway.into(), plan.subnet.contains(plan.gateway), 32));
    }
    if config.ipv6_mode() == Ipv6Mode::On {
        let plan = config.ipv6();
        link.addresses.push((plan.child.into(), plan.subnet.prefix()));
        let on_link = plan.subnet.contains(plan.gateway) || plan.gateway.is_unicast_link_local();
        link.routes.extend(routes(plan.gateway.into(), on_link, 128));
    }
    TapSetup { name: name.to_owned(), link: Some(link) }
}

/// Everything through `gateway`, which is made a neighbour if it is none.
fn routes(gateway: IpAddr, on_link: bool, whole: u8) -> impl Iterator<Item = Route> {
    let neighbour = (!on_link).then_some(Route { network: gateway, prefix: whole, gateway: None });
    neighbour.into_iter().chain([Route::default_through(gateway)])
}

fn forwards(request: &Request) -> Result<Forwards, PlanError> {
    let without = &request.without;
    let off = Some(vec![Ports::None]);
    let pick = |list: &Option<Vec<Ports>>, is_off: bool| if is_off { off.clone() } else { list.clone() };
    let lists = [
        (Transport::Tcp, pick(&request.tcp, without.tcp), pick(&request.tcp_ns, without.tcp)),
        (Transport::Udp, pick(&request.udp, without.udp), pick(&request.udp_ns, without.udp)),
    ];
    let mut forwards = Forwards::default();
    let (mut auto, mut auto_to_host) = (Vec::new(), Vec::new());
    for (transport, to_child, to_host) in lists {
        for ports in to_child.unwrap_or_else(|| vec![Ports::Auto(Vec::new())]) {
            match ports {
                Ports::None => {}
                Ports::Auto(excluded) => auto.push((transport, excluded)),
                Ports::These(rules) => {
                    for rule in rules.iter().flat_map(PortRule::chunks) {
                        forwards.to_child.push(to_child_spec(transport, &rule, request)?);
                    }
                }
            }
        }
        for ports in to_host.unwrap_or_else(|| vec![Ports::Auto(Vec::new())]) {
            match ports {
                Ports::None => {}
                Ports::Auto(excluded) => auto_to_host.push((transport, excluded)),
                Ports::These(rules) => {
                    for rule in &rules {
                        forwards.to_host.extend(to_host_specs(transport, rule)?);
                    }
                }
            }
        }
    }
    let loopback = (!request.host_lo_to_ns_lo).then_some(MatchTarget::Loopback);
    forwards.auto = auto_rules(&auto, loopback);
    forwards.auto_to_host = auto_rules(&auto_to_host, None);
    Ok(forwards)
}

fn to_child_spec(
    transport: Transport,
    rule: &PortRule,
    request: &Request,
) -> Result<Forward<PortSpec>, PlanError> {
    let interface = rule.interface.as_deref().map(str::parse::<InterfaceName>).transpose()?;
    let proto = match (transport, request.families) {
        (Transport::Tcp, Families::V4) if rule.address.is_none() => Proto::Tcp4,
        (Transport::Tcp, Families::V6) if rule.address.is_none() => Proto::Tcp6,
        (Transport::Tcp, _) => Proto::Tcp,
        (Transport::Udp, Families::V4) if rule.address.is_none() => Proto::Udp4,
        (Transport::Udp, Families::V6) if rule.address.is_none() => Proto::Udp6,
        (Transport::Udp, _) => Proto::Udp,
    };
    let (first, last) = (*rule.listen.start(), *rule.listen.end());
    let spec = PortSpec::try_from(PortFields {
        parent_ip: rule.address,
        parent_interface: interface,
        parent_port_end: Some(last),
        ..PortFields::new(proto, first, rule.target)
    })?;
    Ok(Forward { spec, strength: rule.strength })
}

/// The same ports without `taken`, one of the host's.
pub fn without_port(spec: &PortSpec, taken: u16) -> Vec<PortSpec> {
    let fields = spec.fields();
    let (first, last) = (fields.parent_port, fields.parent_port_end.unwrap_or(fields.parent_port));
    let piece = |from: u16, to: u16| {
        let child_port = fields.child_port + (from - first);
        let fields =
            PortFields { parent_port: from, parent_port_end: Some(to), child_port, ..fields.clone() };
        PortSpec::try_from(fields).ok()
    };
    let before = (first < taken && taken <= last).then(|| piece(first, taken - 1));
    let behind = (first <= taken && taken < last).then(|| piece(taken + 1, last));
    before.into_iter().chain(behind).flatten().collect()
}

fn to_host_specs(transport: Transport, rule: &PortRule) -> Result<Vec<Forward<ToHost>>, PlanError> {
    if rule.interface.is_some() || rule.address.is_some_and(|address| !address.is_loopback()) {
        return Err(PlanError::ToHostPlace(if transport == Transport::Tcp {
            "--tcp-ns"
        } else {
            "--udp-ns"
        }));
    }
    let both = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let places = match rule.address {
        Some(address) => vec![(address, rule.strength)],
        // The namespace may lack IPv6.
        None => vec![(both[0], rule.strength), (both[1], Strength::IfFree)],
    };
    let forward = |port: u16, (address, strength): (IpAddr, Strength)| Forward {
        spec: ToHost {
            transport,
            listen: (address, port).into(),
            connect: (both[usize::from(address.is_ipv6())], rule.target_of(port)).into(),
        },
        strength,
    };
    Ok(rule.listen.clone().flat_map(|port| places.iter().map(move |&place| forward(port, place))).collect())
}

/// One set of rules for the protocols that are followed.
fn auto_rules(
    wanted: &[(Transport, Vec<RangeInclusive<u16>>)],
    never: Option<MatchTarget>,
) -> Option<AutoRules> {
    let has = |transport| wanted.iter().any(|(other, _)| *other == transport);
    let transport = match (has(Transport::Tcp), has(Transport::Udp)) {
        (false, false) => return None,
        (true, true) => None,
        (true, false) => Some(Transport::Tcp),
        (false, true) => Some(Transport::Udp),
    };
    let ports = wanted.iter().flat_map(|(transport, excluded)| {
        let rule = |range: &RangeInclusive<u16>| Match {
            target: MatchTarget::Ports(range.clone()),
            transport: Some(*transport),
        };
        excluded.iter().map(rule)
    });
    let never = never.map(|target| Match { target, transport: None });
    Some(AutoRules { transport, exclude: ports.chain(never).collect(), ..AutoRules::default() })
}

fn one<T>(option: &'static str, mut values: impl Iterator<Item = T>) -> Result<Option<T>, PlanError> {
    let first = values.next();
    match values.next() {
        None => Ok(first),
        Some(_) => Err(PlanError::Twice { option }),
    }
}

fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

fn v6(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::personality::pasta::cli::{Call, parse};
    use crate::personality::pasta::host::Resolver;

    fn request(line: &str) -> Request {
        match parse(line.split_whitespace().map(Into::into).collect()) {
            Ok(Call::Serve(request)) => *request,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn host() -> Host {
        Host {
            ipv4: Some(Uplink {
                interface: "eth0".into(),
                address: [192, 0, 2, 2].into(),
                prefix: 24,
                gateway: Some([192, 0, 2, 1].into()),
            }),
            ipv6: Some(Uplink {
                interface: "eth0".into(),
                address: "2001:db8:1::2".parse().unwrap(),
                prefix: 64,
                gateway: Some("fe80::1".parse().unwrap()),
            }),
            mac: Some([2, 0, 0, 0, 0, 9]),
            resolver: Resolver {
                servers: vec!["192.0.2.53".parse().unwrap()],
                search: vec!["a.test".into()],
            },
        }
    }

    fn plan(line: &str) -> Plan {
        Plan::new(&request(line), &host()).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    const NO_PORTS: &str = "-t none -u none -T none -U none";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn podmans_child_is_a_copy_of_the_host() {
        let plan = plan(
            "--config-net -t 0.0.0.0/8080-8080:80-80 --dns-forward 169.254.1.1 -u none -T none -U none \
             --no-map-gw --quiet --netns /run/x --map-guest-addr 169.254.1.2",
        );
        let link = plan.tap.link.clone().unwrap();
        assert_eq!(plan.tap.name, "eth0");
        assert_eq!((link.mtu, plan.config.mtu(), plan.config.mac()), (65_520, 65_520, [2, 0, 0, 0, 0, 9]));
        assert_eq!(link.addresses, [(ip("192.0.2.2"), 24), (ip("2001:db8:1::2"), 64)]);
        let routes = ["192.0.2.1", "fe80::1"].map(|gateway| Route::default_through(ip(gateway)));
        assert_eq!(link.routes, routes);
        let map = AddressMap { child: ip("169.254.1.2"), host: MapTarget::HostAddress };
        assert_eq!(plan.config.maps(), [map]);
        assert_eq!(plan.config.dns().addresses, [ip("169.254.1.1")]);
        let specs: Vec<String> =
            plan.forwards.to_child.iter().map(|forward| forward.spec.to_string()).collect();
        assert_eq!(specs, ["0.0.0.0:8080:80/tcp"]);
        assert_eq!((plan.forwards.auto, plan.forwards.auto_to_host), (None, None));
    }

    #[test]
    fn rootlesskits_child_has_addresses_of_its_own() {
        let plan = plan(
            "--stderr --ns-ifname=tap0 --mtu=65520 --config-net --address=10.0.2.100 --netmask=24 --gateway=10.0.2.2 \
             --dns-forward=10.0.2.3 --ipv4-only --tcp-ports=auto --udp-ports=auto --host-lo-to-ns-lo 1",
        );
        let link = plan.tap.link.clone().unwrap();
        assert_eq!(plan.tap.name, "tap0");
        assert_eq!(link.addresses, [(ip("10.0.2.100"), 24)]);
        assert_eq!(link.routes, [Route::default_through(ip("10.0.2.2"))]);
        assert_eq!(plan.config.ipv6_mode(), Ipv6Mode::Off);
        assert_eq!(plan.forwards.auto, Some(AutoRules::default()));
        assert!(plan.child_network().ipv6.is_none());
    }

    #[test]
    fn a_host_without_network_gets_local_mode() {
        let local = Plan::new(&request(&format!("--config-net {NO_PORTS} 1")), &Host::default()).unwrap();
        let link = local.tap.link.unwrap();
        assert_eq!(local.tap.name, "tap0");
        assert_eq!(link.addresses[0], (ip("169.254.2.1"), 16));
        let gateways = ["169.254.2.2", "fe80::1"].map(|gateway| Route::default_through(ip(gateway)));
        assert_eq!(link.routes, gateways);
        let v4 = Plan::new(&request(&format!("-4 {NO_PORTS} 1")), &Host::default()).unwrap();
        assert_eq!((v4.config.ipv6_mode(), v4.tap.link), (Ipv6Mode::Off, None));
        let missing = Plan::new(&request("-i eth7 1"), &Host::default());
        assert_eq!(missing, Err(PlanError::NoInterface("eth7".into())));
    }

    #[test]
    fn a_family_without_a_way_out_is_off() {
        let host = Host { ipv6: None, ..host() };
        let plan = Plan::new(&request("1"), &host).unwrap();
        assert_eq!((plan.config.ipv4_mode(), plan.config.ipv6_mode()), (Ipv4Mode::On, Ipv6Mode::Off));
        let six = Plan::new(&request("-6 1"), &super::tests::host()).unwrap();
        assert_eq!((six.config.ipv4_mode(), six.config.ipv6_mode()), (Ipv4Mode::Off, Ipv6Mode::On));
    }

    #[test]
    fn a_gateway_outside_the_subnet_is_made_a_neighbour() {
        let link = plan("--config-net -4 -a 10.9.8.7/32 1").tap.link.unwrap();
        let neighbour = Route { network: ip("192.0.2.1"), prefix: 32, gateway: None };
        assert_eq!(link.routes, [neighbour, Route::default_through(ip("192.0.2.1"))]);
    }

    #[test]
    fn prefixes_are_given_or_the_hosts_or_the_classes() {
        for (line, prefix) in [
            ("-a 192.0.2.2", 24),
            ("-a 10.1.1.1", 8),
            ("-a 172.16.0.9", 16),
            ("-a 10.1.1.1/12", 12),
            ("-a 10.1.1.1 -n 255.255.255.0", 24),
            ("-n 20", 20),
        ] {
            assert_eq!(plan(&format!("{line} 1")).config.ipv4().subnet.prefix(), prefix, "{line}");
        }
        assert!(Plan::new(&request("-a 10.0.0.1 -a 10.0.0.2 1"), &host()).is_err());
    }

    #[test]
    fn everything_is_automatic_unless_given() {
        let forwards = plan("-t 22 -T none 1").forwards;
        assert_eq!(forwards.to_child.len(), 1);
        let auto = forwards.auto.unwrap();
        assert_eq!(auto.to_string(), "auto,udp,exclude=loopback");
        assert_eq!(forwards.auto_to_host.unwrap().to_string(), "auto,udp");
        let forwards = plan("-t auto,~22 -u none -U none -T none --host-lo-to-ns-lo 1").forwards;
        assert_eq!(forwards.auto.unwrap().to_string(), "auto,tcp,exclude=22/tcp");
        assert!(plan(&format!("{NO_PORTS} 1")).forwards.is_empty());
    }

    #[test]
    fn ports_of_the_child_lead_to_the_same_family_of_the_hosts_loopback() {
        let forwards = plan("-t none -u none -U none -T 8000-8001:9000-9001 1").forwards;
        let told: Vec<String> = forwards
            .to_host
            .iter()
            .map(|forward| format!("{} {} {:?}", forward.spec.listen, forward.spec.connect, forward.strength))
            .collect();
        assert_eq!(
            told,
            [
                "127.0.0.1:8000 127.0.0.1:9000 Wanted",
                "[::1]:8000 [::1]:9000 IfFree",
                "127.0.0.1:8001 127.0.0.1:9001 Wanted",
                "[::1]:8001 [::1]:9001 IfFree",
            ]
        );
        assert!(Plan::new(&request("-T 192.0.2.1/80 1"), &host()).is_err());
    }

    #[test]
    fn the_host_is_reached_at_the_gateway_unless_it_is_not_to_be() {
        assert_eq!(plan("1").config.maps(), []);
        let map = AddressMap { child: ip("192.0.2.200"), host: MapTarget::Loopback };
        assert_eq!(plan("--no-map-gw --map-host-loopback 192.0.2.200 1").config.maps(), [map]);
    }

    #[test]
    fn a_taken_port_splits_a_range() {
        let pieces = |text: &str, taken| -> Vec<String> {
            without_port(&text.parse().unwrap(), taken).iter().map(ToString::to_string).collect()
        };
        assert_eq!(pieces("80-90:180/tcp", 85), ["80-84:180/tcp", "86-90:186/tcp"]);
        assert_eq!(pieces("80-90:180/tcp", 80), ["81-90:181/tcp"]);
        assert_eq!(pieces("80-90:180/tcp", 90), ["80-89:180/tcp"]);
        assert_eq!(pieces("80-81:180/tcp", 81), ["80:180/tcp"]);
        assert_eq!(pieces("80:180/tcp", 80), Vec::<String>::new());
    }

    #[test]
    fn services_are_left_out() {
        let config = plan("--no-dhcp --no-ra 1").config;
        let services = [
            LinkService::Dhcp,
            LinkService::Dhcpv6,
            LinkService::NeighborDiscovery,
            LinkService::RouterAdvertisement,
        ];
        assert_eq!(services.map(|service| config.serves(service)), [false, true, true, false]);
        assert!(!plan("--no-ndp 1").config.serves(LinkService::RouterAdvertisement));
    }

    #[test]
    fn dhcp_tells_of_servers_only_when_asked_to() {
        let announced = |line: &str| plan(line).config.dns().announced.clone().unwrap();
        assert_eq!(announced("--dns-forward 192.0.2.9 1"), Vec::<IpAddr>::new());
        assert_eq!(announced("--dhcp-dns --dns-forward 192.0.2.9 1"), [ip("192.0.2.9")]);
        assert_eq!(announced("--dhcp-dns -D 192.0.2.8 1"), [ip("192.0.2.8")]);
        assert_eq!(announced("--dhcp-dns 1"), [ip("192.0.2.53")]);
        assert_eq!(plan("--dhcp-search 1").config.dns().search, ["a.test"]);
    }
}
