//! Facts about the host, as text. [`crate::apply::facts`] collects them.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

/// What the plan needs to know about the host. A file that is missing is an empty text.
#[derive(Clone, Debug, Default)]
pub struct HostFacts {
    /// The caller's effective user id.
    pub uid: u32,
    /// The caller's effective group id.
    pub gid: u32,
    /// The caller's login name.
    pub user: Option<String>,
    /// /etc/subuid, subuid(5).
    pub subuid: String,
    /// /etc/subgid, subgid(5).
    pub subgid: String,
    /// /proc/self/uid_map: which user ids exist here.
    pub uid_map: String,
    /// /proc/self/gid_map.
    pub gid_map: String,
    /// newuidmap(1).
    pub newuidmap: Option<PathBuf>,
    /// newgidmap(1).
    pub newgidmap: Option<PathBuf>,
    /// /proc/net/route.
    pub ipv4_routes: String,
    /// /proc/net/ipv6_route.
    pub ipv6_routes: String,
    /// /etc/resolv.conf, resolv.conf(5).
    pub resolv_conf: String,
    /// /etc/hosts, hosts(5).
    pub hosts: String,
    /// Whether /etc/resolv.conf and /etc/hosts are there and no dangling links.
    pub name_files_exist: bool,
    /// Whether /dev/kmsg can be opened for reading.
    pub kmsg_opens: bool,
    /// Whether the host has CNI plugins where runtimes look for them.
    pub cni_plugins_exist: bool,
    /// The caller's home directory; empty if unknown.
    pub home: PathBuf,
    /// Where the caller's programs keep their data (XDG Base Directory Specification).
    pub data_home: PathBuf,
    /// The state directory of the instance, absolute.
    pub state_dir: PathBuf,
}

/// A route of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route<A> {
    /// Network.
    pub network: A,
    /// Prefix length; 0 is the default route.
    pub prefix: u8,
    /// Interface.
    pub interface: String,
}

impl HostFacts {
    /// IPv4 routes through an interface; lines that cannot be read are left out.
    pub fn ipv4_routes(&self) -> impl Iterator<Item = Route<Ipv4Addr>> + '_ {
        self.ipv4_routes.lines().skip(1).filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let interface = fields.next()?.to_owned();
            // Both in the kernel's byte order, in which the address reads like in memory.
            let network = u32::from_str_radix(fields.next()?, 16).ok()?;
            let mask = u32::from_str_radix(fields.nth(5)?, 16).ok()?;
            let network = Ipv4Addr::from(network.to_ne_bytes());
            Some(Route { network, prefix: mask.count_ones() as u8, interface })
        })
    }

    /// IPv6 routes through an interface other than `lo`; lines that cannot be read are left out.
    pub fn ipv6_routes(&self) -> impl Iterator<Item = Route<Ipv6Addr>> + '_ {
        self.ipv6_routes.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let [network, prefix, .., interface] = fields[..] else { return None };
            let network = Ipv6Addr::from(u128::from_str_radix(network, 16).ok()?);
            let prefix = u8::from_str_radix(prefix, 16).ok()?;
            (interface != "lo").then(|| Route { network, prefix, interface: interface.to_owned() })
        })
    }

    /// Whether the host has an IPv6 default route.
    pub fn has_ipv6_default_route(&self) -> bool {
        self.ipv6_routes().any(|route| route.prefix == 0)
    }

    /// The search list of resolv.conf: the last `search` or `domain` line.
    pub fn search_domains(&self) -> Vec<String> {
        let mut lines = self.resolv_conf.lines().rev().filter_map(|line| {
            let (keyword, rest) = line.split_once([' ', '\t'])?;
            matches!(keyword, "search" | "domain").then_some(rest)
        });
        let domains = lines.next().unwrap_or_default().split_ascii_whitespace();
        domains.filter(|&domain| domain != ".").map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IPV4: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
torn line
";
    const IPV6: &str = "\
fd000000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd000000000000000000000000000001 00000400 00000001 00000000 00000003     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
";

    #[test]
    #[cfg(target_endian = "little")]
    fn ipv4_routes_are_read() {
        let facts = HostFacts { ipv4_routes: IPV4.into(), ..HostFacts::default() };
        let routes: Vec<_> =
            facts.ipv4_routes().map(|r| (r.network.to_string(), r.prefix, r.interface)).collect();
        assert_eq!(
            routes,
            [("0.0.0.0".to_owned(), 0, "eth0".to_owned()), ("192.0.2.0".to_owned(), 24, "eth0".to_owned())]
        );
    }

    #[test]
    fn the_unreachable_default_on_lo_is_no_default_route() {
        let facts = HostFacts { ipv6_routes: IPV6.into(), ..HostFacts::default() };
        assert!(facts.has_ipv6_default_route());
        let without: String =
            IPV6.lines().filter(|line| !line.contains("fd0000000000000000000000000000001")).collect();
        let facts = HostFacts { ipv6_routes: without, ..HostFacts::default() };
        assert_eq!(facts.ipv6_routes().filter(|route| route.interface == "lo").count(), 0);
        let only_lo = IPV6.lines().last().unwrap().to_owned();
        assert!(!HostFacts { ipv6_routes: only_lo, ..HostFacts::default() }.has_ipv6_default_route());
    }

    #[test]
    fn the_last_search_line_counts() {
        let resolv_conf =
            "domain old\n# search no\nnameserver 1.2.3.4\nsearch a.example \tb.example\n".to_owned();
        let facts = HostFacts { resolv_conf, ..HostFacts::default() };
        assert_eq!(facts.search_domains(), ["a.example", "b.example"]);
        let facts = HostFacts { resolv_conf: "search .\n".to_owned(), ..HostFacts::default() };
        assert!(facts.search_domains().is_empty());
    }
}
