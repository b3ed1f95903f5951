//! Which ways lead from a client to the child, in the order in which they are tried. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::protocol::{Abilities, EgressAbility, Reach, Rules};
use crate::spec::{Family, Source};

/// The child's side of the network between host and child.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChildNetwork {
    /// The child's IPv4 side, if it has one.
    pub ipv4: Option<ChildAddress<Ipv4Addr>>,
    /// The child's IPv6 side, if it has one.
    pub ipv6: Option<ChildAddress<Ipv6Addr>>,
}

/// The child's address of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChildAddress<A> {
    /// The child's own.
    pub address: A,
    /// Length of its network's prefix, in bits.
    pub prefix: u8,
    /// The gateway's, as which clients appear whose own cannot be shown.
    pub gateway: A,
}

impl ChildNetwork {
    fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.ipv4.map(|side| side.address.into()),
            Family::V6 => self.ipv6.map(|side| side.address.into()),
        }
    }

    /// The child's address, of `family` if it has one of it.
    pub(super) fn best_address(&self, family: Family) -> Option<IpAddr> {
        self.address(family).or_else(|| self.address(other(family)))
    }

    /// Where servers in the child may listen, the best for clients of `family` first.
    pub(super) fn candidates(&self, family: Family) -> [Option<IpAddr>; 4] {
        let families = [family, other(family)];
        let [a, b] = families.map(|family| self.address(family));
        let [c, d] = families.map(|family| Some(loopback(family)));
        [a, b, c, d]
    }

    /// Where clients of `family` on the host's loopback are led.
    pub(super) fn local_target(
        &self,
        local: LocalClients,
        asked: Option<IpAddr>,
        family: Family,
    ) -> Option<IpAddr> {
        match local {
            _ if asked.is_some() => asked,
            LocalClients::ToAddress => self.best_address(family),
            LocalClients::ToLoopback => Some(loopback(family)),
        }
    }

    fn gateway(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.ipv4.map(|side| side.gateway.into()),
            Family::V6 => self.ipv6.map(|side| side.gateway.into()),
        }
    }

    fn subnet_contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.ipv4.is_some_and(|side| {
                let differ = u32::from(address) ^ u32::from(side.address);
                differ.checked_shr(32 - u32::from(side.prefix.min(32))).unwrap_or(0) == 0
            }),
            IpAddr::V6(address) => self.ipv6.is_some_and(|side| {
                let differ = u128::from(address) ^ u128::from(side.address);
                differ.checked_shr(128 - u32::from(side.prefix.min(128))).unwrap_or(0) == 0
            }),
        }
    }

    /// Who a client appears as to a server of family `family`: itself where that address can be shown to the child, otherwise the
    /// gateway, with the client's port. `None`: the gateway is needed and there is none.
    pub fn appears_as(&self, client: SocketAddr, family: Family, source: Source) -> Option<SocketAddr> {
        let address = client.ip();
        let unusable = address.is_loopback()
            || address.is_unspecified()
            || address.is_multicast()
            || address == IpAddr::V4(Ipv4Addr::BROADCAST)
            || is_link_local_v6(address)
            || Family::of(address) != family
            || self.subnet_contains(address);
        if source == Source::Client && !unusable {
            // Without the scope of the host.
            return Some(SocketAddr::new(address, client.port()));
        }
        Some(SocketAddr::new(self.gateway(family)?, client.port()))
    }
}

/// The other end of such an address is found on one link of the host only.
fn is_link_local_v6(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// Which ways clients are led.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manner {
    /// The fastest that keeps their address, for which the child gets routing rules of ours; the child is ours.
    #[default]
    Relay,
    /// The TAP for everybody but clients on the host's loopback, who get ordinary sockets of the child; nothing about
    /// the child is changed. As pasta does.
    Apart(LocalClients),
}

/// Who clients on the host's loopback are to the child, with [`Manner::Apart`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalClients {
    /// The child itself by its own address: what listens on its loopback only stays out of reach.
    ToAddress,
    /// The child itself by its loopback.
    ToLoopback,
}

impl Manner {
    pub(super) fn rules(self) -> Rules {
        match self {
            Manner::Relay => Rules::Add,
            Manner::Apart(_) => Rules::Leave,
        }
    }

    /// Whether the TAP is not the way for `client`, which it is for others.
    pub(super) fn parts(self, client: IpAddr) -> bool {
        matches!(self, Manner::Apart(_)) && client.is_loopback()
    }
}

/// Where a forward leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) ip: Option<IpAddr>,
    pub(super) port: u16,
    pub(super) source: Source,
}

/// One way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// A socket in the child's namespace, bound to `from` if given.
    Relay { reach: Reach, from: Option<SocketAddr>, to: SocketAddr },
    /// The engine on the TAP.
    Tap { source: SocketAddr, to: SocketAddr },
}

/// What there is to make ways of.
pub(super) struct Means<'a> {
    pub(super) manner: Manner,
    pub(super) network: &'a ChildNetwork,
    /// `None` without an agent.
    pub(super) abilities: Option<Abilities>,
    /// The child's addresses, if they are known.
    pub(super) local: Option<&'a dyn Fn(IpAddr) -> bool>,
    pub(super) tap: bool,
}

/// Most ways there can be.
pub(super) const MOST_WAYS: usize = 5;

impl Means<'_> {
    /// The ways to `target` for `client`, the best first.
    pub(super) fn ways(&self, target: Target, client: SocketAddr) -> [Option<Way>; MOST_WAYS] {
        let own = Family::of(client.ip());
        if let Manner::Apart(local) = self.manner {
            let way = if self.manner.parts(client.ip()) {
                let to = self
                    .network
                    .local_target(local, target.ip, own)
                    .map(|ip| SocketAddr::new(ip, target.port));
                to.and_then(|to| self.direct(to))
            } else {
                let to = target.ip.or_else(|| self.network.best_address(own));
                to.and_then(|to| self.tap(to, target, client))
            };
            return [way, None, None, None, None];
        }
        let families = [own, other(own)];
        let loopback = |family| self.loopback(family, target.port);
        match target.ip {
            None => {
                let [a, b] = families.map(|family| {
                    let to = self.network.address(family)?;
                    self.relay(to, target, client)
                });
                let [c, d] = families.map(loopback);
                let tap = self.network.best_address(own).and_then(|to| self.tap(to, target, client));
                [a, b, c, d, tap]
            }
            Some(ip) if ip.is_loopback() => {
                let to = SocketAddr::new(ip, target.port);
                [self.direct(to), None, None, None, None]
            }
            Some(ip) if self.is_local(ip) => {
                [self.relay(ip, target, client), self.tap(ip, target, client), None, None, None]
            }
            // The child's routes lead there; a slow machine is waited for.
            Some(ip) if self.tracked(Family::of(ip)) => {
                [self.relay(ip, target, client), None, None, None, None]
            }
            Some(ip) => {
                let to = SocketAddr::new(ip, target.port);
                let plain = || self.abilities.map(|_| Way::Relay { reach: Reach::Plain, from: None, to });
                [self.tap(ip, target, client).or_else(plain), None, None, None, None]
            }
        }
    }

    fn is_local(&self, address: IpAddr) -> bool {
        match self.local {
            Some(local) => local(address),
            None => self.network.address(Family::of(address)) == Some(address),
        }
    }

    /// Whether rules of the child may lead elsewhere what we send, and its answers still come back.
    fn tracked(&self, family: Family) -> bool {
        self.abilities.is_some_and(|abilities| {
            abilities.tracked
                && abilities.transparent(family)
                && abilities.egress(family) == EgressAbility::Possible
        })
    }

    fn relay(&self, to: IpAddr, target: Target, client: SocketAddr) -> Option<Way> {
        let family = Family::of(to);
        let abilities = self.abilities?;
        let port = target.port;
        let tracked = self.tracked(family);
        if tracked || abilities.transparent(family) && self.is_local(to) {
            let from = self.network.appears_as(client, family, target.source)?;
            let reach = if tracked { Reach::Tracked } else { Reach::Transparent };
            let to = SocketAddr::new(to, port);
            return Some(Way::Relay { reach, from: Some(from), to });
        }
        // The TAP keeps the client's address where sockets cannot.
        if self.tap {
            return None;
        }
        Some(Way::Relay { reach: Reach::Plain, from: None, to: SocketAddr::new(to, port) })
    }

    fn loopback(&self, family: Family, port: u16) -> Option<Way> {
        self.direct(SocketAddr::new(loopback(family), port))
    }

    /// To the child's loopback: servers that listen there expect their own machine.
    fn direct(&self, to: SocketAddr) -> Option<Way> {
        let able = self.abilities?.transparent(Family::of(to.ip()));
        let reach = if able { Reach::Transparent } else { Reach::Plain };
        Some(Way::Relay { reach, from: None, to })
    }

    fn tap(&self, to: IpAddr, target: Target, client: SocketAddr) -> Option<Way> {
        let source = self.network.appears_as(client, Family::of(to), target.source)?;
        self.tap.then_some(Way::Tap { source, to: SocketAddr::new(to, target.port) })
    }
}

fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

fn other(family: Family) -> Family {
    match family {
        Family::V4 => Family::V6,
        Family::V6 => Family::V4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> ChildNetwork {
        ChildNetwork {
            ipv4: Some(ChildAddress {
                address: Ipv4Addr::new(10, 0, 2, 100),
                prefix: 24,
                gateway: Ipv4Addr::new(10, 0, 2, 2),
            }),
            ipv6: Some(ChildAddress {
                address: "fd00::100".parse().unwrap(),
                prefix: 64,
                gateway: "fd00::2".parse().unwrap(),
            }),
        }
    }

    fn appears(client: &str, family: Family, source: Source) -> String {
        network().appears_as(client.parse().unwrap(), family, source).unwrap().to_string()
    }

    #[test]
    fn a_client_appears_as_itself_or_as_the_gateway() {
        let (v4, v6, keep) = (Family::V4, Family::V6, Source::Client);
        assert_eq!(appears("203.0.113.9:40000", v4, keep), "203.0.113.9:40000");
        assert_eq!(appears("[2001:db8::9]:40000", v6, keep), "[2001:db8::9]:40000");
        assert_eq!(appears("203.0.113.9:40000", v4, Source::Gateway), "10.0.2.2:40000");
        assert_eq!(appears("127.0.0.5:40000", v4, keep), "10.0.2.2:40000");
        assert_eq!(appears("[::1]:40000", v6, keep), "[fd00::2]:40000");
        assert_eq!(appears("203.0.113.9:40000", v6, keep), "[fd00::2]:40000", "other family");
        assert_eq!(appears("10.0.2.7:40000", v4, keep), "10.0.2.2:40000", "the child's own subnet");
        assert_eq!(appears("10.0.3.7:40000", v4, keep), "10.0.3.7:40000");
        assert_eq!(appears("[fe80::1]:40000", v6, keep), "[fd00::2]:40000", "link-local");
    }

    fn able() -> Option<Abilities> {
        Some(Abilities {
            transparent_v4: true,
            transparent_v6: true,
            addresses: true,
            ..Abilities::default()
        })
    }

    fn ways(means: &Means<'_>, ip: Option<&str>, client: &str) -> Vec<Way> {
        let ip = ip.map(|ip| ip.parse().unwrap());
        let target = Target { ip, port: 80, source: Source::Client };
        means.ways(target, client.parse().unwrap()).into_iter().flatten().collect()
    }

    #[test]
    fn the_childs_address_comes_first_then_its_loopback_then_the_tap() {
        let network = network();
        let local = |ip: IpAddr| ip.is_loopback() || ip.to_string().ends_with("100");
        let means = Means {
            manner: Manner::Relay,
            network: &network,
            abilities: able(),
            local: Some(&local),
            tap: true,
        };
        let found = ways(&means, None, "203.0.113.9:4000");
        let targets: Vec<String> = found
            .iter()
            .map(|way| match way {
                Way::Relay { to, .. } => to.to_string(),
                Way::Tap { source, to } => format!("{source} by tap {to}"),
            })
            .collect();
        let expected = [
            "10.0.2.100:80",
            "[fd00::100]:80",
            "127.0.0.1:80",
            "[::1]:80",
            "203.0.113.9:4000 by tap 10.0.2.100:80",
        ];
        assert_eq!(targets, expected);
    }

    #[test]
    fn an_address_beyond_the_child_is_reached_by_the_tap_alone() {
        let network = network();
        let local = |ip: IpAddr| ip.to_string().ends_with("100");
        let means = Means {
            manner: Manner::Relay,
            network: &network,
            abilities: able(),
            local: Some(&local),
            tap: true,
        };
        let found = ways(&means, Some("172.17.0.2"), "203.0.113.9:4000");
        assert!(matches!(found[..], [Way::Tap { .. }]), "{found:?}");
        let without = Means { tap: false, ..means };
        let found = ways(&without, Some("172.17.0.2"), "203.0.113.9:4000");
        assert!(matches!(found[..], [Way::Relay { reach: Reach::Plain, from: None, .. }]), "{found:?}");
    }

    #[test]
    fn tracked_sockets_reach_what_is_beyond_the_child_from_the_clients_address() {
        let network = network();
        let local = |ip: IpAddr| ip.to_string().ends_with("100");
        let abilities =
            able().map(|able| Abilities { tracked: true, egress_v4: EgressAbility::Possible, ..able });
        let means =
            Means { manner: Manner::Relay, network: &network, abilities, local: Some(&local), tap: true };
        let client = "203.0.113.9:4000";
        for ip in [Some("172.17.0.2"), None] {
            let found = ways(&means, ip, client);
            let Some(Way::Relay { reach: Reach::Tracked, from: Some(from), .. }) = found.first() else {
                panic!("{found:?}")
            };
            assert_eq!(from.to_string(), client);
        }
        assert_eq!(ways(&means, Some("172.17.0.2"), client).len(), 1);
        // Of the other family nothing is tracked.
        assert!(matches!(ways(&means, Some("2001:db8::5"), client)[..], [Way::Tap { .. }]));
    }

    #[test]
    fn apart_the_hosts_loopback_gets_sockets_and_all_others_the_tap() {
        let network = network();
        let plain = Some(Abilities::default());
        for (local, expected) in [
            (LocalClients::ToAddress, ["10.0.2.100:80", "[fd00::100]:80"]),
            (LocalClients::ToLoopback, ["127.0.0.1:80", "[::1]:80"]),
        ] {
            let manner = Manner::Apart(local);
            let means = Means { manner, network: &network, abilities: plain, local: None, tap: true };
            for (client, expected) in ["127.0.0.1:4000", "[::1]:4000"].into_iter().zip(expected) {
                let to = expected.parse().unwrap();
                let way = Way::Relay { reach: Reach::Plain, from: None, to };
                assert_eq!(ways(&means, None, client), [way]);
            }
            let (source, to) = ("203.0.113.9:4000".parse().unwrap(), "10.0.2.100:80".parse().unwrap());
            assert_eq!(ways(&means, None, "203.0.113.9:4000"), [Way::Tap { source, to }]);
        }
    }

    #[test]
    fn without_an_agent_only_the_tap_is_left() {
        let network = network();
        let means =
            Means { manner: Manner::Relay, network: &network, abilities: None, local: None, tap: true };
        for ip in [None, Some("10.0.2.100"), Some("172.17.0.2")] {
            let found = ways(&means, ip, "203.0.113.9:4000");
            assert!(matches!(found[..], [Way::Tap { .. }]), "{found:?}");
        }
        assert_eq!(ways(&means, Some("127.0.0.1"), "203.0.113.9:4000"), []);
    }
}
