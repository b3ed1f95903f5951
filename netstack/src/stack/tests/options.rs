//! What can be chosen beyond the defaults: refusals, maps, families, foreign addresses, settings at run-time.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;
use crate::action::{Action, ConnectError, DatagramError, DatagramErrorKind, OpenError};
use crate::config::{
    Access, AddressMap, Addressing, ConfigBuilder, DnsConfig, DnsService, Ipv4Mode, Ipv4Plan, Ipv6Mode,
    Ipv6Plan, MapTarget, Refusal,
};
use crate::error::{ConfigError, DropReason};
use crate::packet::Tcp;
use crate::stack::HostAddresses;
use crate::testing::frames::{DNS, GATEWAY, GATEWAY6, Seen, Segment};
use crate::testing::host::ConnectPlan;
use crate::testing::{Harness, config};

fn scripted(config: ConfigBuilder) -> Harness {
    Harness::scripted(config, ALL_OFFLOADS)
}

fn child_of(remote: SocketAddr) -> SocketAddr {
    if remote.is_ipv4() { socket(CHILD, 40_000) } else { socket(CHILD6, 40_000) }
}

fn syn(h: &mut Harness, remote: &str) -> Result<(), DropReason> {
    let remote = remote.parse().unwrap();
    h.inject(&Segment::syn(child_of(remote), remote, 1400).frame())
}

fn datagram(h: &mut Harness, remote: &str) -> Result<(), DropReason> {
    let remote = remote.parse().unwrap();
    h.inject(&frames::udp(child_of(remote), remote, b"x"))
}

fn ping(h: &mut Harness, remote: &str) -> Result<(), DropReason> {
    let remote: IpAddr = remote.parse().unwrap();
    h.inject(&frames::echo_request(child_of(socket(remote, 0)).ip(), remote, 1, 1, b""))
}

/// Where the host's sockets went since the last call.
fn went(h: &mut Harness) -> Vec<IpAddr> {
    let actions = std::mem::take(&mut h.host.actions);
    let remotes = actions.into_iter().filter_map(|action| match action {
        Action::Connect { remote, .. } | Action::SendDatagram { remote, .. } => Some(remote.ip()),
        _ => None,
    });
    remotes.collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

// === refusals ===

#[test]
fn a_gateway_without_a_route_says_that_the_network_is_unreachable() {
    let mut h = scripted(config().loopback_refusal(Refusal::NetUnreachable));
    for (gateway, kind) in [("10.0.42.2", (3, 0)), ("[fd42:10:42::2]", (1, 0))] {
        let there = format!("{gateway}:8080");
        assert_eq!(syn(&mut h, &there), Err(DropReason::PolicyRefused));
        assert!(matches!(h.seen_one(), Seen::Icmp { kind: seen, .. } if seen == kind), "TCP {gateway}");
        assert_eq!(datagram(&mut h, &there), Err(DropReason::PolicyRefused));
        assert!(matches!(h.seen_one(), Seen::Icmp { kind: seen, .. } if seen == kind), "UDP {gateway}");
        assert_eq!(ping(&mut h, gateway.trim_matches(['[', ']'])), Ok(()));
        assert!(matches!(h.seen_one(), Seen::Icmp { kind: (0 | 129, 0), .. }), "ping {gateway}");
    }
    assert!(went(&mut h).is_empty());
}

// === DNS ===

#[test]
fn dns_that_is_off_is_silent() {
    let dns =
        DnsConfig { service: DnsService::Off, addresses: vec![ip("169.254.1.1")], ..DnsConfig::default() };
    let mut h = scripted(config().dns(dns));
    for server in ["10.0.42.3:53", "169.254.1.1:53", "[fd42:10:42::3]:53"] {
        assert_eq!(syn(&mut h, server), Err(DropReason::DnsOff));
        assert_eq!(datagram(&mut h, server), Err(DropReason::DnsOff));
    }
    assert_eq!((h.seen(), went(&mut h)), (vec![], vec![]));
    assert_eq!(h.stack.stats().drops(DropReason::DnsOff), 6);
    assert_eq!(ping(&mut h, "10.0.42.3"), Ok(()));
    assert!(matches!(h.seen_one(), Seen::Icmp { kind: (0, 0), .. }));
}

#[test]
fn dns_is_served_at_every_address_that_was_named() {
    let addresses = vec![ip("169.254.1.1"), ip("192.0.2.200"), ip("fe80::5353"), ip("2001:db8:53::1")];
    let upstream = socket([192, 0, 2, 1], 53);
    let dns = DnsConfig { addresses: addresses.clone(), servers: vec![upstream], ..DnsConfig::default() };
    let mut h = scripted(config().dns(dns));
    // The header of a question to be forwarded: nobody looks further.
    let query = [0x12, 0x34, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for address in addresses {
        let server = SocketAddr::new(address, 53);
        h.inject(&frames::udp(child_of(server), server, &query)).unwrap();
        let sent = h.host.take_sent();
        assert_eq!(sent.len(), 1, "{server}");
        assert_eq!(sent[0].remote, upstream);
        let mut answer = sent[0].payload.clone();
        answer[2] |= 0x80;
        let flow = h.host.last_flow();
        h.datagram(flow, upstream, &answer, None).unwrap();
        assert!(matches!(h.seen_one(), Seen::Udp { src, .. } if src == server), "{server}");
        h.inject(&Segment::syn(child_of(server), server, 1400).frame()).unwrap();
        assert_eq!(h.seen_one().tcp().flags, Tcp::SYN | Tcp::ACK, "{server} by TCP");
    }
    // Other ports are as if there were no DNS.
    assert_eq!(syn(&mut h, "169.254.1.1:80"), Err(DropReason::PolicyRefused));
    went(&mut h);
    syn(&mut h, "192.0.2.200:80").unwrap();
    assert_eq!(went(&mut h), [ip("192.0.2.200")]);
}

#[test]
fn servers_on_the_hosts_loopback_are_asked_though_the_child_may_not_reach_it() {
    let mut h = scripted(config());
    h.stack.set_dns_servers(&[socket([127, 0, 0, 53], 53)]);
    let query = [0x12, 0x34, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    h.inject(&frames::udp(socket(CHILD, 40_000), socket(DNS, 53), &query)).unwrap();
    assert_eq!(h.host.take_sent()[0].remote, socket([127, 0, 0, 53], 53));
}

// === address maps ===

fn mapped() -> ConfigBuilder {
    let map = |child, host| AddressMap { child: ip(child), host };
    config().maps(vec![
        map("169.254.1.2", MapTarget::HostAddress),
        map("fe80::2:2", MapTarget::HostAddress),
        map("192.0.2.250", MapTarget::Loopback),
        map("2001:db8:99::1", MapTarget::Loopback),
        map("192.0.2.251", MapTarget::Address(ip("198.51.100.77"))),
    ])
}

fn host_addresses() -> HostAddresses {
    HostAddresses { v4: Some(Ipv4Addr::new(203, 0, 113, 5)), v6: Some("2001:db8:5::5".parse().unwrap()) }
}

#[test]
fn a_mapped_address_means_what_the_map_says() {
    for (written, meant) in [
        ("169.254.1.2", "203.0.113.5"),
        ("192.0.2.250", "127.0.0.1"),
        ("192.0.2.251", "198.51.100.77"),
        ("fe80::2:2", "2001:db8:5::5"),
        ("2001:db8:99::1", "::1"),
    ] {
        let mut h = scripted(mapped());
        h.stack.set_host_addresses(host_addresses());
        let (written, meant) = (ip(written), ip(meant));
        let there = SocketAddr::new(written, 8080).to_string();
        syn(&mut h, &there).unwrap();
        datagram(&mut h, &there).unwrap();
        let flow = h.host.last_flow();
        ping(&mut h, &written.to_string()).unwrap();
        let pings = h.host.last_flow();
        assert_eq!(went(&mut h), [meant; 3], "{written}");
        // Whoever answers has the name that the child knows.
        h.seen();
        h.datagram(flow, SocketAddr::new(meant, 8080), b"y", None).unwrap();
        assert!(matches!(h.seen_one(), Seen::Udp { src, .. } if src.ip() == written), "{written}");
        let reply = frames::echo(if written.is_ipv4() { 0 } else { 129 }, 1, 1, b"");
        h.datagram(pings, SocketAddr::new(meant, 0), &reply, None).unwrap();
        assert!(matches!(h.seen_one(), Seen::Icmp { src, .. } if src == written), "{written}");
        let error = DatagramError { offender: Some(meant), kind: DatagramErrorKind::PortUnreachable };
        h.datagram_error(flow, SocketAddr::new(meant, 8080), error, b"x");
        let Seen::Icmp { src, body, .. } = h.seen_one() else { panic!("no ICMP") };
        assert_eq!(src, written);
        let dst = if written.is_ipv4() {
            IpAddr::from(<[u8; 4]>::try_from(&body[4 + 16..4 + 20]).unwrap())
        } else {
            IpAddr::from(<[u8; 16]>::try_from(&body[4 + 24..4 + 40]).unwrap())
        };
        assert_eq!(dst, written, "the quoted packet is the child's");
    }
    // The gateway itself is still closed, and so is the rest of the link-local range.
    let mut h = scripted(mapped());
    assert_eq!(syn(&mut h, "10.0.42.2:80"), Err(DropReason::PolicyRefused));
    assert_eq!(syn(&mut h, "169.254.1.3:80"), Err(DropReason::PolicyRefused));
}

#[test]
fn the_name_that_was_used_last_counts_where_a_host_has_two() {
    let mut h = scripted(mapped());
    h.stack.set_host_addresses(host_addresses());
    datagram(&mut h, "169.254.1.2:9").unwrap();
    let flow = h.host.last_flow();
    datagram(&mut h, "203.0.113.5:9").unwrap();
    h.datagram(flow, "203.0.113.5:9".parse().unwrap(), b"y", None).unwrap();
    assert!(matches!(h.seen_one(), Seen::Udp { src, .. } if src.ip() == ip("203.0.113.5")));
    datagram(&mut h, "169.254.1.2:9").unwrap();
    h.datagram(flow, "203.0.113.5:9".parse().unwrap(), b"y", None).unwrap();
    assert!(matches!(h.seen_one(), Seen::Udp { src, .. } if src.ip() == ip("169.254.1.2")));
}

#[test]
fn each_flow_goes_to_the_address_that_the_host_has_by_then() {
    let mut h = scripted(mapped());
    assert_eq!(syn(&mut h, "169.254.1.2:80"), Err(DropReason::NoHostAddress));
    assert!(matches!(h.seen_one(), Seen::Icmp { kind: (3, 0), .. }));
    for last in [7, 8] {
        let v4 = Ipv4Addr::new(203, 0, 113, last);
        h.stack.set_host_addresses(HostAddresses { v4: Some(v4), v6: None });
        syn(&mut h, &format!("169.254.1.2:{last}")).unwrap();
        assert_eq!(went(&mut h), [IpAddr::from(v4)]);
    }
}

// === outbound ===

#[test]
fn a_missing_outbound_address_is_told_and_counted_per_flow() {
    let mut h = scripted(config());
    h.host.default_plan = ConnectPlan::Fail(ConnectError::NoOutbound);
    syn(&mut h, "198.51.100.7:80").unwrap();
    assert!(matches!(h.seen_one(), Seen::Icmp { kind: (3, 0), .. }));
    h.host.open_error = Some(OpenError::NoOutbound);
    datagram(&mut h, "198.51.100.7:80").unwrap();
    assert_eq!(h.stack.stats().drops(DropReason::NoOutbound), 2);
    assert_eq!(h.stack.flows().count(), 0);
}

// === addresses that are the host's ===

fn copied() -> ConfigBuilder {
    let ipv4 = Ipv4Plan {
        subnet: "192.0.2.0/24".parse().unwrap(),
        gateway: Ipv4Addr::new(192, 0, 2, 1),
        dns: Ipv4Addr::UNSPECIFIED,
        child: Ipv4Addr::new(192, 0, 2, 5),
    };
    let ipv6 = Ipv6Plan {
        subnet: "2001:db8:5::/48".parse().unwrap(),
        gateway: "fe80::1".parse().unwrap(),
        dns: Ipv6Addr::UNSPECIFIED,
        child: "2001:db8:5::5".parse().unwrap(),
    };
    config().addressing(Addressing::Copied).ipv4(ipv4).ipv6(ipv6)
}

#[test]
fn neighbours_of_a_copied_address_are_reached_through_the_host() {
    let mut h = scripted(copied());
    let child = socket([192, 0, 2, 5], 40_000);
    let syn = |remote: &str| Segment::syn(child, remote.parse().unwrap(), 1400).frame();
    for neighbour in ["192.0.2.77:80", "192.0.2.1:80", "198.51.100.7:80"] {
        h.inject(&syn(neighbour)).unwrap();
        assert_eq!(went(&mut h), [neighbour.parse::<SocketAddr>().unwrap().ip()]);
    }
    h.inject(&frames::echo_request(child.ip(), ip("192.0.2.1"), 1, 1, b"")).unwrap();
    assert_eq!(went(&mut h), [ip("192.0.2.1")], "the router answers its own ping");
    let itself = Segment::syn(socket([192, 0, 2, 6], 40_000), socket([192, 0, 2, 5], 80), 1400).frame();
    assert_eq!(h.inject(&itself), Err(DropReason::InvalidDestination), "the child itself");
    assert_eq!(h.inject(&syn("192.0.2.255:80")), Err(DropReason::Multicast));
    // The unspecified address is nobody's DNS server.
    assert_eq!(h.inject(&syn("0.0.0.0:53")), Err(DropReason::InvalidDestination));
    let child6 = socket("2001:db8:5::5".parse::<Ipv6Addr>().unwrap(), 40_000);
    let neighbour = "[2001:db8:5:1::7]:80".parse().unwrap();
    h.inject(&Segment::syn(child6, neighbour, 1400).frame()).unwrap();
    assert_eq!(went(&mut h), [neighbour.ip()]);
    h.seen();
    h.inject(&frames::echo_request(child6.ip(), ip("fe80::1"), 1, 1, b"")).unwrap();
    assert!(matches!(h.seen_one(), Seen::Icmp { kind: (129, 0), .. }), "the gateway on the link");
}

#[test]
fn a_copied_gateway_may_stand_for_the_loopback() {
    let mut h = scripted(copied().host_loopback(Access::Allow));
    let child = socket([192, 0, 2, 5], 40_000);
    h.inject(&Segment::syn(child, socket([192, 0, 2, 1], 80), 1400).frame()).unwrap();
    assert_eq!(went(&mut h), [ip("127.0.0.1")]);
    h.seen();
    h.inject(&frames::echo_request(child.ip(), ip("192.0.2.1"), 1, 1, b"")).unwrap();
    assert!(matches!(h.seen_one(), Seen::Icmp { kind: (0, 0), .. }));
}

// === families ===

#[test]
fn a_family_that_is_off_is_dropped_and_counted() {
    let mut h = scripted(config().ipv4_mode(Ipv4Mode::Off));
    assert_eq!(syn(&mut h, "198.51.100.7:80"), Err(DropReason::Ipv4Off));
    assert_eq!(h.inject(&frames::arp_request(CHILD, GATEWAY)), Err(DropReason::Ipv4Off));
    syn(&mut h, "[2001:db8::7]:80").unwrap();
    let mut h = scripted(config().ipv6_mode(Ipv6Mode::Off));
    syn(&mut h, "198.51.100.7:80").unwrap();
    assert_eq!(syn(&mut h, "[2001:db8::7]:80"), Err(DropReason::Ipv6Off));
    let to_gateway = SocketAddr::new(GATEWAY6.into(), 80).to_string();
    assert_eq!(syn(&mut h, &to_gateway), Err(DropReason::Ipv6Off));
}

#[test]
fn the_childs_own_choice_of_an_ipv6_address_is_learnt() {
    let mut h = scripted(config());
    assert_eq!(h.stack.child_ipv6(), None);
    let slaac: Ipv6Addr = "fd42:10:42::dead:beef".parse().unwrap();
    h.inject(&Segment::syn(socket(slaac, 40_000), socket(WORLD6, 80), 1400).frame()).unwrap();
    assert_eq!(h.stack.child_ipv6(), Some(slaac));
}

// === run-time ===

#[test]
fn a_new_policy_concerns_new_connections_and_every_datagram() {
    let mut h = scripted(config());
    syn(&mut h, "198.51.100.7:80").unwrap();
    datagram(&mut h, "198.51.100.7:80").unwrap();
    h.seen();
    h.stack.set_policy("allow tcp 198.51.100.0/24:443\ndeny 198.51.100.0/24".parse().unwrap());
    assert_eq!(h.stack.flows().count(), 2, "nothing is torn down");
    assert_eq!(syn(&mut h, "198.51.100.7:81"), Err(DropReason::PolicyRefused));
    assert_eq!(datagram(&mut h, "198.51.100.7:80"), Err(DropReason::PolicyRefused));
    syn(&mut h, "198.51.100.7:443").unwrap();
    syn(&mut h, "203.0.113.1:443").unwrap();
    assert_eq!(h.stack.policy_hits(), [1, 2]);
    assert_eq!(h.stack.policy().to_string(), "allow tcp 198.51.100.0/24:443\ndeny 198.51.100.0/24\n");
    h.stack.set_policy("deny any".parse().unwrap());
    assert_eq!(h.stack.policy_hits(), [0]);
}

#[test]
fn dns_servers_are_replaced_and_given_back() {
    let mut h = scripted(config());
    let (host, fixed) = (socket([192, 0, 2, 1], 53), socket([192, 0, 2, 2], 5353));
    let servers = |h: &Harness| h.stack.dns_servers().collect::<Vec<_>>();
    h.stack.set_dns_servers(&[host]);
    assert_eq!(servers(&h), [host]);
    h.stack.replace_dns_servers(vec![fixed]);
    h.stack.set_dns_servers(&[host]);
    assert_eq!(servers(&h), [fixed], "the host's do not count now");
    h.stack.replace_dns_servers(Vec::new());
    h.stack.set_dns_servers(&[host]);
    assert_eq!(servers(&h), [host]);
}

#[test]
fn static_names_come_and_go() {
    let mut h = scripted(config());
    let address = ip("192.0.2.99");
    h.stack.add_dns_name("db.test", address).unwrap();
    h.stack.add_dns_name("DB.test.", address).unwrap();
    h.stack.add_dns_name("db.test", ip("192.0.2.98")).unwrap();
    assert_eq!(h.stack.dns_names().len(), 2, "the same name is the same");
    assert!(matches!(h.stack.add_dns_name("a b", address), Err(ConfigError::DnsName(_))));
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    query.extend(b"\x02db\x04test\x00\x00\x01\x00\x01");
    let answers = |h: &mut Harness| {
        h.inject(&frames::udp(socket(CHILD, 40_000), socket(DNS, 53), &query)).unwrap();
        match h.seen_one() {
            Seen::Udp { payload, .. } => (payload[3] & 15, payload[7]),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(answers(&mut h), (0, 2));
    assert_eq!(h.stack.remove_dns_name("db.TEST", Some(address)), 1);
    assert_eq!(answers(&mut h), (0, 1));
    assert_eq!(h.stack.remove_dns_name("db.test", None), 1);
    assert_eq!(h.stack.remove_dns_name("db.test", None), 0);
    assert_eq!(answers(&mut h), (2, 0), "there are no servers to ask");
}
