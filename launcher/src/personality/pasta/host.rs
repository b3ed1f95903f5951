//! What pasta copies from the host: the interface with the first default route of each family, its address and gateway.
//!
//! The parsers are pure; [`Host::look`] reads.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::ifaddrs::getifaddrs;

use crate::apply::facts::read_text;

/// The network of the host, as far as it is copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// The IPv4 side; `None` without an interface that leads anywhere.
    pub ipv4: Option<Uplink<Ipv4Addr>>,
    /// The IPv6 side, likewise.
    pub ipv6: Option<Uplink<Ipv6Addr>>,
    /// MAC address of the interface, the IPv4 one first.
    pub mac: Option<[u8; 6]>,
    /// What resolv.conf says.
    pub resolver: Resolver,
}

/// One family's way out of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink<A> {
    /// The interface.
    pub interface: String,
    /// Its address.
    pub address: A,
    /// Length of its network's prefix, in bits.
    pub prefix: u8,
    /// The router; `None` if there is none on this link.
    pub gateway: Option<A>,
}

/// resolv.conf(5), as far as others are told of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    /// Servers that are not on the host's loopback.
    pub servers: Vec<IpAddr>,
    /// Search list.
    pub search: Vec<String>,
}

/// An interface that has to be used, by family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// For IPv4.
    pub ipv4: Option<&'a str>,
    /// For IPv6.
    pub ipv6: Option<&'a str>,
}

/// A route of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRoute<A> {
    interface: String,
    prefix: u8,
    gateway: Option<A>,
    metric: u32,
}

/// An address of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostAddress<A> {
    interface: String,
    address: A,
    prefix: u8,
}

impl Host {
    /// Looks at the network namespace of the calling process.
    ///
    /// # Errors
    /// getifaddrs(3). Without /proc/net there are no routes.
    pub fn look(wanted: Wanted<'_>) -> io::Result<Self> {
        let mut macs = Vec::new();
        let mut addresses = Vec::new();
        for found in getifaddrs()? {
            let Some(address) = found.address else { continue };
            if let Some(mac) = address.as_link_addr().and_then(|link| link.addr()) {
                macs.push((found.interface_name, mac));
            } else if let Some(inet) = address.as_sockaddr_in() {
                let mask =
                    found.netmask.and_then(|mask| mask.as_sockaddr_in().map(|mask| u32::from(mask.ip())));
                addresses.push(HostAddress {
                    interface: found.interface_name,
                    address: inet.ip(),
                    prefix: mask.map_or(32, |mask| mask.leading_ones() as u8),
                });
            }
        }
        let ipv4 = uplink(&routes_v4(&read_text("/proc/net/route")), &addresses, wanted.ipv4);
        let ipv6 = uplink(
            &routes_v6(&read_text("/proc/net/ipv6_route")),
            &addresses_v6(&read_text("/proc/net/if_inet6")),
            wanted.ipv6,
        );
        let names = [ipv4.as_ref().map(|up| &up.interface), ipv6.as_ref().map(|up| &up.interface)];
        let mac_of = |name: &String| macs.iter().find(|(other, _)| other == name).map(|&(_, mac)| mac);
        let mac = names.into_iter().flatten().find_map(mac_of);
        Ok(Host { ipv4, ipv6, mac, resolver: resolver(&read_text("/etc/resolv.conf")) })
    }
}

/// The interface with the first default route, or with the first route at all, that has an address; if one is wanted,
/// no other will do, and it needs no route.
fn uplink<A: Copy + PartialEq>(
    routes: &[HostRoute<A>],
    addresses: &[HostAddress<A>],
    wanted: Option<&str>,
) -> Option<Uplink<A>> {
    let fits = |name: &str| wanted.is_none_or(|wanted| wanted == name);
    let mut candidates: Vec<&HostRoute<A>> = routes.iter().filter(|route| fits(&route.interface)).collect();
    // Stable: of equals the kernel's order decides.
    candidates.sort_by_key(|route| (route.prefix != 0, route.metric));
    let by_route = candidates.into_iter().map(|route| (route.interface.as_str(), route));
    let found = by_route.into_iter().find_map(|(name, route)| {
        let address = addresses.iter().find(|address| address.interface == name)?;
        Some((address, route.gateway.filter(|_| route.prefix == 0)))
    });
    let by_name = || addresses.iter().find(|address| wanted == Some(&address.interface)).map(|a| (a, None));
    let (address, gateway) = found.or_else(by_name)?;
    Some(Uplink {
        interface: address.interface.clone(),
        address: address.address,
        prefix: address.prefix,
        gateway,
    })
}

/// Reads /proc/net/route: unicast routes that are up, loopback's left out. Numbers are hexadecimal, addresses in the
/// byte order of the machine.
pub fn routes_v4(text: &str) -> Vec<HostRoute<Ipv4Addr>> {
    let route = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let &[interface, _, gateway, flags, _, _, metric, mask, ..] = columns.as_slice() else { return None };
        let number = |text| u32::from_str_radix(text, 16).ok();
        let flags = number(flags)?;
        let gateway = Ipv4Addr::from(number(gateway)?.to_ne_bytes());
        is_usable(flags, interface).then(|| {
            Some(HostRoute {
                interface: interface.to_owned(),
                prefix: number(mask)?.count_ones() as u8,
                gateway: (flags & GATEWAY != 0).then_some(gateway),
                metric: metric.parse().ok()?,
            })
        })?
    };
    text.lines().skip(1).filter_map(route).collect()
}

/// Reads /proc/net/ipv6_route, likewise; multicast and link-local networks lead nowhere either.
pub fn routes_v6(text: &str) -> Vec<HostRoute<Ipv6Addr>> {
    let route = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let &[network, prefix, _, _, gateway, metric, _, _, flags, interface] = columns.as_slice() else {
            return None;
        };
        let number = |text| u32::from_str_radix(text, 16).ok();
        let (network, flags) = (address_v6(network)?, number(flags)?);
        let local = flags & LOCAL != 0 || network.is_multicast() || network.is_unicast_link_local();
        (is_usable(flags, interface) && !local).then(|| {
            Some(HostRoute {
                interface: interface.to_owned(),
                prefix: u8::from_str_radix(prefix, 16).ok()?,
                gateway: address_v6(gateway).filter(|gateway| !gateway.is_unspecified()),
                metric: number(metric)?,
            })
        })?
    };
    text.lines().filter_map(route).collect()
}

/// Reads /proc/net/if_inet6: global addresses, those first that stay.
pub fn addresses_v6(text: &str) -> Vec<HostAddress<Ipv6Addr>> {
    let address = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let &[address, _, prefix, scope, flags, interface] = columns.as_slice() else { return None };
        let number = |text| u8::from_str_radix(text, 16).ok();
        let (address, prefix, flags) = (address_v6(address)?, number(prefix)?, number(flags)?);
        let usable = number(scope)? == 0 && flags & UNUSABLE == 0 && interface != "lo";
        let interface = interface.to_owned();
        usable.then_some((flags & PASSING, HostAddress { interface, address, prefix }))
    };
    let mut found: Vec<_> = text.lines().filter_map(address).collect();
    found.sort_by_key(|&(flags, _)| flags);
    found.into_iter().map(|(_, address)| address).collect()
}

/// Reads resolv.conf(5).
pub fn resolver(text: &str) -> Resolver {
    let mut resolver = Resolver::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                let server = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                resolver.servers.extend(server.filter(|server| !server.is_loopback()));
            }
            Some("search" | "domain") => resolver.search = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    resolver
}

fn is_usable(flags: u32, interface: &str) -> bool {
    flags & UP != 0 && flags & REJECT == 0 && interface != "lo"
}

fn address_v6(text: &str) -> Option<Ipv6Addr> {
    (text.len() == 32).then(|| u128::from_str_radix(text, 16).ok())?.map(Ipv6Addr::from)
}

/// RTF_UP, RTF_GATEWAY, RTF_REJECT, RTF_LOCAL of linux/route.h and linux/ipv6_route.h.
const UP: u32 = 1;
const GATEWAY: u32 = 2;
const REJECT: u32 = 0x200;
const LOCAL: u32 = 0x8000_0000;
/// IFA_F_DADFAILED and IFA_F_TENTATIVE of linux/if_addr.h.
const UNUSABLE: u8 = 0x08 | 0x40;
/// IFA_F_TEMPORARY and IFA_F_DEPRECATED.
const PASSING: u8 = 0x01 | 0x20;

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0100000A\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
*\t000200C0\t00000000\t0200\t0\t0\t100\t00FFFFFF\t0\t0\t0
";
    const ROUTES6: &str = "\
20010db8000100000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0
fe800000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth0
00000000000000000000000000000001 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000000 00000003 00000000 80200001       lo
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
";
    const ADDRESSES6: &str = "\
00000000000000000000000000000001 01 80 10 80       lo
20010db8000100000000000000000bad 02 40 00 21     eth0
20010db8000100000000000000000002 02 40 00 80     eth0
fe80000000000000f8c12afffe2792a9 02 40 20 80     eth0
";

    fn address(interface: &str, address: [u8; 4]) -> HostAddress<Ipv4Addr> {
        HostAddress { interface: interface.into(), address: address.into(), prefix: 24 }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_first_default_route_is_that_of_the_lowest_metric() {
        let routes = routes_v4(ROUTES);
        assert_eq!(routes.len(), 3);
        let addresses = [address("wlan0", [10, 0, 0, 7]), address("eth0", [192, 0, 2, 2])];
        let found = uplink(&routes, &addresses, None).unwrap();
        assert_eq!((found.interface.as_str(), found.address), ("eth0", Ipv4Addr::new(192, 0, 2, 2)));
        assert_eq!(found.gateway, Some(Ipv4Addr::new(192, 0, 2, 1)));
        let found = uplink(&routes, &addresses, Some("wlan0")).unwrap();
        assert_eq!(found.gateway, Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(uplink(&routes, &addresses, Some("tun0")), None);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn without_a_default_route_any_route_will_do() {
        let routes: Vec<_> = routes_v4(ROUTES).into_iter().filter(|route| route.prefix > 0).collect();
        let addresses = [address("eth0", [192, 0, 2, 2])];
        assert_eq!(uplink(&routes, &addresses, None).map(|up| up.gateway), Some(None));
        assert_eq!(uplink(&[], &addresses, None), None);
        assert_eq!(uplink(&[], &addresses, Some("eth0")).map(|up| up.gateway), Some(None));
    }

    #[test]
    fn ipv6_addresses_that_stay_come_first() {
        let found = uplink(&routes_v6(ROUTES6), &addresses_v6(ADDRESSES6), None).unwrap();
        assert_eq!((found.interface.as_str(), found.prefix), ("eth0", 64));
        assert_eq!(found.address, "2001:db8:1::2".parse::<Ipv6Addr>().unwrap());
        assert_eq!(found.gateway, "fe80::1".parse().ok());
    }

    #[test]
    fn nonsense_is_left_out() {
        for text in ["", "\n\n", "a b c", "eth0 x y z 0 0 0 0 0\neth0 x y z 0 0 0 0 0"] {
            assert_eq!(routes_v4(text), []);
            assert_eq!(routes_v6(text), []);
            assert_eq!(addresses_v6(text), []);
        }
    }

    #[test]
    fn servers_on_the_loopback_are_not_told_of() {
        let found = resolver("nameserver 127.0.0.53\nnameserver 192.0.2.53\n# x\nsearch a.test b.test\n");
        assert_eq!(found.servers, ["192.0.2.53".parse::<IpAddr>().unwrap()]);
        assert_eq!(found.search, ["a.test", "b.test"]);
    }
}
