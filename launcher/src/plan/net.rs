//! The child's network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netstack::LinkCapabilities;
use netstack::config::{Access, Config, DnsConfig, Ipv4Plan, Ipv6Mode, Ipv6Plan, OverlayConfig};
use netstack::error::ConfigError;
use netstack::flow::policy::EgressPolicy;

use super::facts::HostFacts;
use crate::cli::{EgressArg, NetArg, OffloadArg, RunArgs};
use crate::egress::EgressMode;
use crate::error::UsageError;

/// Name of the child's network device.
pub const TAP_NAME: &str = "tap0";
/// Frames that the kernel holds for the engine. Four times the default: one burst of 64 KiB segments and the
/// acknowledgements of a thousand flows fit.
pub const TAP_QUEUE: u32 = 4096;

/// What network the child gets.
#[derive(Clone, Debug)]
pub enum NetPlan {
    /// A TAP behind the engine.
    Engine(Box<EnginePlan>),
    /// Loopback only.
    Loopback,
    /// The host's network.
    Host,
}

/// A network behind the engine.
#[derive(Clone, Debug)]
pub struct EnginePlan {
    /// Settings of the engine, which say also what the child's addresses are.
    pub config: Config,
    /// Whether the child waits for its IPv6 default route.
    pub ipv6: Ipv6Offer,
    /// The most that the TAP may do for the engine.
    pub link: LinkCapabilities,
    /// How outbound TCP connections are carried.
    pub egress: EgressMode,
    /// Queues of the TAP, each with a worker.
    pub queues: u8,
}

/// What the child knows beforehand about IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv6Offer {
    /// It is offered at the start: the engine's first router advertisement brings the default route.
    Now,
    /// The host has none yet; a later router advertisement may bring the route.
    Later,
    /// Switched off.
    Never,
}

impl NetPlan {
    /// Checks the settings.
    ///
    /// # Errors
    /// Settings that cannot work, or that need the engine when there is none.
    pub fn new(args: &RunArgs, policy: &str, facts: &HostFacts) -> Result<Self, UsageError> {
        match args.net {
            NetArg::Engine => {
                EnginePlan::new(args, policy, facts).map(|plan| NetPlan::Engine(Box::new(plan)))
            }
            NetArg::None => needs_no_engine(args, "none").map(|()| NetPlan::Loopback),
            NetArg::Host => needs_no_engine(args, "host").map(|()| NetPlan::Host),
        }
    }

    /// A sentence for each host network that the child's addresses hide.
    pub fn overlaps(&self, facts: &HostFacts) -> Vec<String> {
        let NetPlan::Engine(plan) = self else { return Vec::new() };
        let ours = plan.config.ipv4().subnet;
        let ipv4 = facts.ipv4_routes().filter(|route| route.prefix > 0).filter_map(|route| {
            let network = netstack::config::Ipv4Net::new(route.network, route.prefix).ok()?;
            let overlap = network.contains(ours.network()) || ours.contains(route.network);
            overlap.then(|| warning("--cidr", &ours.to_string(), &network.to_string(), &route.interface))
        });
        let ours6 = plan.config.ipv6().subnet;
        let ipv6 = facts.ipv6_routes().filter(|route| route.prefix > 0).filter_map(|route| {
            let network = netstack::config::Ipv6Net::new(route.network, route.prefix).ok()?;
            let overlap = network.contains(ours6.network()) || ours6.contains(route.network);
            let wanted = overlap && plan.ipv6 != Ipv6Offer::Never;
            wanted.then(|| warning("--cidr6", &ours6.to_string(), &network.to_string(), &route.interface))
        });
        ipv4.chain(ipv6).collect()
    }
}

impl EnginePlan {
    fn new(args: &RunArgs, policy: &str, facts: &HostFacts) -> Result<Self, UsageError> {
        let access = |allowed| if allowed { Access::Allow } else { Access::Deny };
        let mut dns = DnsConfig::default();
        dns.servers.clone_from(&args.dns);
        dns.names.clone_from(&args.dns_name);
        dns.search = if args.dns_search.is_empty() { usable_search(facts) } else { args.dns_search.clone() };
        let (ipv4, ipv6) = roles(args)?;
        let config = Config::builder()
            .ipv4(ipv4)
            .ipv6(ipv6)
            .mtu(args.mtu)
            .ipv6_mode(args.ipv6.into())
            .host_loopback(access(args.allow_host_loopback))
            .link_local(access(args.allow_link_local))
            .udp_filtering(args.udp_filtering.into())
            .policy(parse_policy(policy)?)
            .overlay(args.overlay_port.map(|port| OverlayConfig { port, peers: args.overlay_peer.clone() }))
            .dns(dns)
            .build()?;
        let ipv6 = match config.ipv6_mode() {
            Ipv6Mode::On => Ipv6Offer::Now,
            Ipv6Mode::Auto if facts.has_ipv6_default_route() => Ipv6Offer::Now,
            Ipv6Mode::Auto => Ipv6Offer::Later,
            Ipv6Mode::Off => Ipv6Offer::Never,
        };
        if args.egress == EgressArg::Relay && args.pcap.is_some() {
            return Err(UsageError::RelayWithCapture);
        }
        Ok(EnginePlan {
            config,
            ipv6,
            link: args.offload.into(),
            egress: args.egress.into(),
            queues: args.queues,
        })
    }

    /// The child's IPv6 address, if it gets one.
    pub fn ipv6_address(&self) -> Option<(Ipv6Addr, u8)> {
        let plan = self.config.ipv6();
        (self.ipv6 != Ipv6Offer::Never).then(|| (plan.child, plan.subnet.prefix()))
    }
}

/// Who is who in the child's networks: what the options name, else the networks' defaults.
fn roles(args: &RunArgs) -> Result<(Ipv4Plan, Ipv6Plan), UsageError> {
    let (mut ipv4, mut ipv6) = (Ipv4Plan::for_subnet(args.cidr), Ipv6Plan::for_subnet(args.cidr6));
    let given = [
        ("--address", &args.address, &mut ipv4.child, &mut ipv6.child),
        ("--gateway", &args.gateway, &mut ipv4.gateway, &mut ipv6.gateway),
        ("--dns-address", &args.dns_address, &mut ipv4.dns, &mut ipv6.dns),
    ];
    for (option, addresses, role4, role6) in given {
        let (first4, first6) = one_of_each_family(option, addresses)?;
        *role4 = first4.unwrap_or(*role4);
        *role6 = first6.unwrap_or(*role6);
    }
    Ok((ipv4, ipv6))
}

fn one_of_each_family(
    option: &'static str,
    addresses: &[IpAddr],
) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>), UsageError> {
    let (mut ipv4, mut ipv6) = (None, None);
    for &second in addresses {
        let (family, first) = match second {
            IpAddr::V4(address) => ("IPv4", ipv4.replace(address).map(IpAddr::from)),
            IpAddr::V6(address) => ("IPv6", ipv6.replace(address).map(IpAddr::from)),
        };
        if let Some(first) = first {
            return Err(UsageError::AddressTwice { option, family, first, second });
        }
    }
    Ok((ipv4, ipv6))
}

/// The egress rules, one per line; empty lines and lines that begin with # are left out.
fn parse_policy(text: &str) -> Result<EgressPolicy, ConfigError> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    EgressPolicy::from_rules(lines.map(str::parse).collect::<Result<_, _>>()?)
}

/// The host's search list is not the user's doing: a domain that the engine would refuse is left out.
fn usable_search(facts: &HostFacts) -> Vec<String> {
    let is_usable = |domain: &String| {
        let mut dns = DnsConfig::default();
        dns.search = vec![domain.clone()];
        Config::builder().dns(dns).build().is_ok()
    };
    facts.search_domains().into_iter().filter(is_usable).collect()
}

fn needs_no_engine(args: &RunArgs, net: &'static str) -> Result<(), UsageError> {
    let given = [
        ("--address", !args.address.is_empty()),
        ("--gateway", !args.gateway.is_empty()),
        ("--dns-address", !args.dns_address.is_empty()),
        ("--dns", !args.dns.is_empty()),
        ("--dns-name", !args.dns_name.is_empty()),
        ("--dns-search", !args.dns_search.is_empty()),
        ("--publish", !args.publish.is_empty()),
        ("--publish-file", !args.publish_file.is_empty()),
        ("--policy", !args.policy.is_empty()),
        ("--allow-host-loopback", args.allow_host_loopback),
        ("--allow-link-local", args.allow_link_local),
        ("--overlay-port", args.overlay_port.is_some()),
        ("--offload", args.offload != OffloadArg::Auto),
        ("--egress", args.egress != EgressArg::Auto),
        ("--queues", args.queues != 1),
        ("--pcap", args.pcap.is_some()),
        ("--stats", args.stats),
    ];
    match given.into_iter().find(|&(_, given)| given) {
        Some((option, _)) => Err(UsageError::NeedsEngine { option, net }),
        None => Ok(()),
    }
}

fn warning(option: &str, ours: &str, theirs: &str, interface: &str) -> String {
    format!(
        "the child's network {ours} overlaps the host's {theirs} on {interface}; \
         the command will not reach hosts there (choose another {option})"
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    fn plan(options: &[&str], facts: &HostFacts) -> Result<NetPlan, UsageError> {
        let args = ["rootless-launch"].iter().chain(options).chain(&["--", "true"]);
        NetPlan::new(&Cli::try_parse_from(args).unwrap().run, "", facts)
    }

    fn engine(options: &[&str], facts: &HostFacts) -> EnginePlan {
        match plan(options, facts) {
            Ok(NetPlan::Engine(plan)) => *plan,
            other => panic!("{other:?}"),
        }
    }

    const ROUTE6: &str = "\
        00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd000000000000000000000000000001 \
        00000400 00000001 00000000 00000003     eth0\n";

    #[test]
    fn ipv6_is_waited_for_only_if_it_comes() {
        let none = HostFacts::default();
        let host = HostFacts { ipv6_routes: ROUTE6.into(), ..HostFacts::default() };
        assert_eq!(engine(&[], &none).ipv6, Ipv6Offer::Later);
        assert_eq!(engine(&[], &host).ipv6, Ipv6Offer::Now);
        assert_eq!(engine(&["--ipv6=on"], &none).ipv6, Ipv6Offer::Now);
        assert_eq!(engine(&["--ipv6=off"], &host).ipv6, Ipv6Offer::Never);
        assert_eq!(engine(&["--ipv6=off"], &host).ipv6_address(), None);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_hidden_host_network_is_named() {
        let ipv4_routes =
            "head\neth0\t000200C0\t0\t1\t0\t0\t0\t00FFFFFF\nwg0\t00002A0A\t0\t1\t0\t0\t0\t0000FFFF\n";
        let facts = HostFacts { ipv4_routes: ipv4_routes.into(), ..HostFacts::default() };
        let plan = |cidr: &str| NetPlan::Engine(Box::new(engine(&[cidr], &facts)));
        assert!(plan("--cidr=10.0.42.0/24").overlaps(&facts).is_empty());
        let warnings = plan("--cidr=10.42.7.0/24").overlaps(&facts);
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("10.42.0.0/16 on wg0"), "{warnings:?}");
        assert_eq!(plan("--cidr=192.0.0.0/16").overlaps(&facts).len(), 1);
    }

    #[test]
    fn engine_options_without_engine_are_refused() {
        let fault = |options: &[&str]| plan(options, &HostFacts::default()).unwrap_err().to_string();
        assert!(fault(&["--net=none", "--dns=9.9.9.9"]).contains("--dns has no meaning with --net=none"));
        assert!(fault(&["--net=host", "--stats"]).contains("--stats"));
        assert!(fault(&["--net=none", "--egress=tap"]).contains("--egress"));
        assert!(fault(&["--net=none", "--queues=2"]).contains("--queues"));
        assert!(matches!(plan(&["--net=none"], &HostFacts::default()), Ok(NetPlan::Loopback)));
    }

    #[test]
    fn a_capture_wants_the_packets_that_the_relay_does_not_make() {
        let egress = |options: &[&str]| engine(options, &HostFacts::default()).egress;
        assert_eq!(egress(&["--pcap=x"]), EgressMode::Auto);
        assert_eq!(egress(&["--egress=tap", "--pcap=x"]), EgressMode::Tap);
        assert_eq!(egress(&["--egress=relay"]), EgressMode::Relay);
        let refused = plan(&["--egress=relay", "--pcap=x"], &HostFacts::default());
        assert!(matches!(refused, Err(UsageError::RelayWithCapture)), "{refused:?}");
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let fault = |option: &str| plan(&[option], &HostFacts::default()).unwrap_err().to_string();
        assert!(fault("--cidr=10.0.42.0/30").contains("from 1 to 25"));
        assert!(fault("--mtu=576").contains("1280"));
        assert!(fault("--dns-search=a..b").contains("not a DNS name"));
    }

    #[test]
    fn roles_are_those_that_the_options_name() {
        let options = [
            "--address=10.0.42.20",
            "--address=fd42:10:42::20",
            "--gateway=10.0.42.1",
            "--dns-address=fd42:10:42::53",
        ];
        let config = engine(&options, &HostFacts::default()).config;
        let (ipv4, ipv6) =
            (Ipv4Plan::for_subnet(config.ipv4().subnet), Ipv6Plan::for_subnet(config.ipv6().subnet));
        let (child, gateway) = (Ipv4Addr::new(10, 0, 42, 20), Ipv4Addr::new(10, 0, 42, 1));
        assert_eq!(config.ipv4(), &Ipv4Plan { child, gateway, ..ipv4 });
        let (child, dns) = (ipv6.subnet.nth(0x20), ipv6.subnet.nth(0x53));
        assert_eq!(config.ipv6(), &Ipv6Plan { child, dns, ..ipv6 });
    }

    #[test]
    fn roles_that_cannot_work_are_refused_with_their_address() {
        for (options, wanted) in [
            (&["--address=10.0.43.5"][..], "10.0.43.5 is not a host address of 10.0.42.0/24"),
            (
                &["--cidr=10.9.0.0/24", "--gateway=10.0.42.2"],
                "10.0.42.2 is not a host address of 10.9.0.0/24",
            ),
            (&["--gateway=fd00::1"], "fd00::1 is not a host address of fd42:10:42::/64"),
            (&["--dns-address=10.0.42.2"], "10.0.42.2 has more than one role"),
            (
                &["--address=10.0.42.5", "--address=::5", "--address=10.0.42.6"],
                "--address 10.0.42.6: the IPv4 one is 10.0.42.5",
            ),
            (&["--gateway=fd42:10:42::5", "--gateway=fd42:10:42::6"], "the IPv6 one is fd42:10:42::5"),
            (&["--net=none", "--address=10.0.42.5"], "--address has no meaning with --net=none"),
        ] {
            let fault = plan(options, &HostFacts::default()).unwrap_err().to_string();
            assert!(fault.contains(wanted), "{options:?}: {fault}");
        }
    }

    #[test]
    fn rules_are_read_line_by_line() {
        let policy = parse_policy("# comment\n\n deny tcp any:25\nallow any\n").unwrap();
        assert_eq!(policy.rules().len(), 2);
        assert!(matches!(parse_policy("permit all\n"), Err(ConfigError::PolicyRule { .. })));
    }

    #[test]
    fn odd_search_domains_of_the_host_do_not_stop_the_launch() {
        let facts = HostFacts { resolv_conf: "search good.example b@d\n".into(), ..HostFacts::default() };
        assert_eq!(engine(&[], &facts).config.dns().search, ["good.example"]);
        assert_eq!(engine(&["--dns-search=x"], &facts).config.dns().search, ["x"]);
    }
}
