//! What the child may reach, and how it hears of what it may not.

use super::*;
use crate::action::Action;
use crate::config::{Access, ConfigBuilder};
use crate::error::DropReason;
use crate::flow::policy::EgressPolicy;
use crate::packet::Tcp;
use crate::testing::frames::{DNS, GATEWAY, Seen, Segment};
use crate::testing::{Harness, config};

fn scripted(config: ConfigBuilder) -> Harness {
    Harness::scripted(config, ALL_OFFLOADS)
}

fn child_of(remote: SocketAddr) -> SocketAddr {
    if remote.is_ipv4() { socket(CHILD, 40_000) } else { socket(CHILD6, 40_000) }
}

/// Tries TCP, UDP and ping; returns where the host would have sent each.
fn tries(h: &mut Harness, remote: &str) -> [Result<Option<IpAddr>, DropReason>; 3] {
    let remote: SocketAddr = remote.parse().unwrap();
    let child = child_of(remote);
    let attempts = [
        Segment::syn(child, remote, 1400).frame(),
        frames::udp(child, remote, b"x"),
        frames::echo_request(child.ip(), remote.ip(), 1, 1, b""),
    ];
    attempts.map(|frame| {
        h.host.actions.clear();
        h.inject(&frame).map(|()| {
            h.host.actions.iter().find_map(|action| match action {
                Action::Connect { remote, .. } | Action::SendDatagram { remote, .. } => Some(remote.ip()),
                _ => None,
            })
        })
    })
}

#[test]
fn the_gateway_is_not_the_hosts_loopback_unless_asked() {
    for gateway in ["10.0.42.2:8080", "[fd42:10:42::2]:8080"] {
        let mut h = scripted(config());
        let [tcp, udp, ping] = tries(&mut h, gateway);
        assert_eq!(tcp, Err(DropReason::PolicyRefused));
        assert_eq!(udp, Err(DropReason::PolicyRefused));
        assert_eq!(ping, Ok(None), "the engine answers its own ping");
        let seen = h.seen();
        assert!(matches!(&seen[0], Seen::Tcp(s, _) if s.flags == Tcp::RST | Tcp::ACK), "{seen:?}");
        assert!(matches!(seen[1], Seen::Icmp { kind: (3, 13) | (1, 1), .. }), "{seen:?}");
    }
}

#[test]
fn the_gateway_is_the_hosts_loopback_if_asked() {
    let mut h = scripted(config().host_loopback(Access::Allow));
    let loopback4: IpAddr = [127, 0, 0, 1].into();
    let [tcp, udp, _] = tries(&mut h, "10.0.42.2:8080");
    assert_eq!((tcp, udp), (Ok(Some(loopback4)), Ok(Some(loopback4))));
    // Answers of the loopback come from the gateway.
    h.seen();
    let udp_flow = *h.host.datagram.keys().next().unwrap();
    h.datagram(udp_flow, socket(loopback4, 8080), b"y", None).unwrap();
    assert!(matches!(h.seen_one(), Seen::Udp { src, .. } if src == socket(GATEWAY, 8080)));
    let [tcp, _, _] = tries(&mut h, "[fd42:10:42::2]:8080");
    assert_eq!(tcp, Ok(Some("::1".parse().unwrap())));
}

#[test]
fn no_disguise_of_the_loopback_passes() {
    for allowed in [Access::Deny, Access::Allow] {
        let mut h = scripted(config().host_loopback(allowed).link_local(Access::Allow));
        for remote in [
            "127.0.0.1:80",
            "127.1.2.3:80",
            "0.0.0.0:80",
            "0.1.2.3:80",
            "[::1]:80",
            "[::]:80",
            "[::ffff:127.0.0.1]:80",
            "[::ffff:10.1.2.3]:80",
            "[::127.0.0.1]:80",
        ] {
            for result in tries(&mut h, remote) {
                assert_eq!(result, Err(DropReason::InvalidDestination), "{remote}");
            }
        }
        assert_eq!(h.seen(), []);
    }
}

#[test]
fn addresses_that_are_nobodys_are_dropped() {
    let mut h = scripted(config());
    for remote in ["240.0.0.1:80", "10.0.42.77:80", "[fd42:10:42::77]:80", "[fe80::99]:80"] {
        for result in tries(&mut h, remote) {
            assert_eq!(result, Err(DropReason::InvalidDestination), "{remote}");
        }
    }
    for remote in ["224.0.0.251:5353", "255.255.255.255:9", "10.0.42.255:137", "[ff02::fb]:5353"] {
        for result in tries(&mut h, remote) {
            assert_eq!(result, Err(DropReason::Multicast), "{remote}");
        }
    }
    assert_eq!(h.seen(), []);
}

#[test]
fn link_local_is_refused_promptly_unless_asked() {
    let mut h = scripted(config());
    for result in tries(&mut h, "169.254.169.254:80") {
        assert_eq!(result, Err(DropReason::PolicyRefused));
    }
    let seen = h.seen();
    assert!(matches!(&seen[0], Seen::Tcp(s, _) if s.flags & Tcp::RST != 0));
    assert!(matches!(seen[1], Seen::Icmp { kind: (3, 13), .. }));
    assert!(matches!(seen[2], Seen::Icmp { kind: (3, 13), .. }));
    let mut h = scripted(config().link_local(Access::Allow));
    let there: IpAddr = [169, 254, 169, 254].into();
    assert_eq!(tries(&mut h, "169.254.169.254:80"), [Ok(Some(there)); 3]);
}

#[test]
fn the_first_matching_rule_decides() {
    let rules = ["allow tcp 198.51.100.7:80", "deny 198.51.100.0/24", "deny tcp 2001:db8::/32"];
    let rules: Result<Vec<_>, _> = rules.iter().map(|rule| rule.parse()).collect();
    let policy = EgressPolicy::from_rules(rules.expect("rules")).unwrap();
    let mut h = scripted(config().policy(policy));
    let [tcp, udp, ping] = tries(&mut h, "198.51.100.7:80");
    assert_eq!(tcp, Ok(Some(WORLD.into())));
    assert_eq!((udp, ping), (Err(DropReason::PolicyRefused), Err(DropReason::PolicyRefused)));
    assert_eq!(tries(&mut h, "198.51.100.7:81")[0], Err(DropReason::PolicyRefused));
    assert!(tries(&mut h, "203.0.113.1:81").iter().all(Result::is_ok));
    let [tcp, udp, ping] = tries(&mut h, "[2001:db8::7]:80");
    assert_eq!(tcp, Err(DropReason::PolicyRefused));
    assert!(udp.is_ok() && ping.is_ok());
    assert_eq!(h.stack.stats().drops(DropReason::PolicyRefused), 6);
}

#[test]
fn the_dns_address_serves_port_53_only() {
    let mut h = scripted(config());
    let child = socket(CHILD, 40_000);
    let syn = Segment::syn(child, socket(DNS, 80), 1400).frame();
    assert_eq!(h.inject(&syn), Err(DropReason::NoSuchService));
    assert!(h.seen_one().tcp().flags & Tcp::RST != 0);
    assert_eq!(h.inject(&frames::udp(child, socket(DNS, 80), b"x")), Err(DropReason::NoSuchService));
    assert!(matches!(h.seen_one(), Seen::Icmp { kind: (3, 3), .. }));
}
