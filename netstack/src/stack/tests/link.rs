//! What is served on the link itself: ARP, neighbour discovery, router advertisements, DHCP.

use dhcproto::{Decodable, Encodable, v4, v6};

use super::*;
use crate::config::Ipv6Mode;
use crate::error::DropReason;
use crate::packet::Tcp;
use crate::testing::frames::{CHILD_MAC, DNS, ENGINE_MAC, GATEWAY, GATEWAY6, Seen, Segment};
use crate::testing::{Harness, config};
use crate::time::Duration;

fn scripted() -> Harness {
    Harness::scripted(config(), ALL_OFFLOADS)
}

#[test]
fn arp_names_the_engine_for_its_own_addresses_only() {
    let mut h = scripted();
    for target in [GATEWAY, DNS] {
        h.inject(&frames::arp_request(CHILD, target)).unwrap();
        let Seen::Arp(reply) = h.seen_one() else { panic!() };
        assert_eq!(reply[6..8], [0, 2]);
        assert_eq!(reply[8..14], ENGINE_MAC);
        assert_eq!(reply[14..18], target.octets());
        assert_eq!(reply[18..24], CHILD_MAC);
    }
    for target in [CHILD, WORLD] {
        let _ = h.inject(&frames::arp_request(CHILD, target));
        assert_eq!(h.seen(), []);
    }
}

#[test]
fn neighbor_solicitations_are_answered_for_the_gateway() {
    let mut h = scripted();
    h.inject(&frames::neighbor_solicitation(CHILD6, GATEWAY6)).unwrap();
    let Seen::Icmp { src, dst, kind, body } = h.seen_one() else { panic!() };
    assert_eq!((src, dst, kind), (GATEWAY6.into(), CHILD6.into(), (136, 0)));
    assert_eq!(body[4..20], GATEWAY6.octets());
    assert_eq!(
        body[20..28],
        [2, 1, ENGINE_MAC[0], ENGINE_MAC[1], ENGINE_MAC[2], ENGINE_MAC[3], ENGINE_MAC[4], ENGINE_MAC[5]]
    );
    let _ = h.inject(&frames::neighbor_solicitation(CHILD6, WORLD6));
    assert_eq!(h.seen(), []);
}

#[test]
fn a_router_solicitation_is_answered_by_an_advertisement() {
    let mut h = scripted();
    h.drive_for(Duration::from_secs(100));
    h.seen();
    h.inject(&frames::router_solicitation("fe80::64".parse().unwrap())).unwrap();
    h.drive_for(Duration::from_secs(4));
    let seen = h.seen();
    assert!(seen.iter().any(|seen| matches!(seen, Seen::Icmp { kind: (134, 0), .. })), "{seen:?}");
}

#[test]
fn ipv6_comes_and_goes_with_the_hosts_route() {
    let mut h = Harness::scripted(config().ipv6_mode(Ipv6Mode::Auto), ALL_OFFLOADS);
    let (child, remote) = families(80)[1];
    let is_ra = |seen: &Seen| matches!(seen, Seen::Icmp { kind: (134, 0), .. });
    h.drive_for(Duration::from_secs(10));
    assert!(!h.seen().iter().any(is_ra));
    // Without a route the child hears so, and at once.
    let syn = Segment::syn(child, remote, 1440).frame();
    assert_eq!(h.inject(&syn), Err(DropReason::Ipv6Off));
    assert!(matches!(h.seen_one(), Seen::Icmp { kind: (1, 0), .. }));
    assert_eq!(h.inject(&frames::udp(child, remote, b"x")), Err(DropReason::Ipv6Off));
    assert!(matches!(h.seen_one(), Seen::Icmp { kind: (1, 0), .. }));

    h.stack.set_host_ipv6(h.now, true);
    h.drive_for(Duration::from_secs(4));
    let lifetimes = |h: &mut Harness| -> Vec<u16> {
        let seen = h.seen();
        seen.into_iter()
            .filter_map(|seen| match seen {
                Seen::Icmp { kind: (134, 0), body, .. } => Some(u16::from_be_bytes([body[2], body[3]])),
                _ => None,
            })
            .collect()
    };
    let said = lifetimes(&mut h);
    assert!(!said.is_empty() && said.iter().all(|&lifetime| lifetime > 0), "{said:?}");
    h.inject(&syn).unwrap();
    assert_eq!(h.seen_one().tcp().flags, Tcp::SYN | Tcp::ACK);

    h.stack.set_host_ipv6(h.now, false);
    h.drive_for(Duration::from_secs(4));
    assert!(lifetimes(&mut h).contains(&0), "the route is taken back");
}

#[test]
fn ipv6_that_is_off_is_silent() {
    let mut h = Harness::scripted(config().ipv6_mode(Ipv6Mode::Off), ALL_OFFLOADS);
    let link_local = "fe80::64".parse().unwrap();
    assert_eq!(h.inject(&frames::router_solicitation(link_local)), Err(DropReason::Ipv6Off));
    assert_eq!(h.inject(&frames::neighbor_solicitation(CHILD6, GATEWAY6)), Err(DropReason::Ipv6Off));
    h.drive_for(Duration::from_secs(1000));
    assert_eq!(h.seen(), []);
}

#[test]
fn dhcp_leads_to_the_childs_address() {
    let mut h = scripted();
    let ask = |h: &mut Harness, kind: v4::MessageType, requested: Option<std::net::Ipv4Addr>| {
        let mut message = v4::Message::default();
        message.set_xid(77).set_flags(v4::Flags::default().set_broadcast()).set_chaddr(&CHILD_MAC);
        message.opts_mut().insert(v4::DhcpOption::MessageType(kind));
        if let Some(address) = requested {
            message.opts_mut().insert(v4::DhcpOption::RequestedIpAddress(address));
            message.opts_mut().insert(v4::DhcpOption::ServerIdentifier(GATEWAY));
        }
        let payload = message.to_vec().unwrap();
        h.inject(&frames::udp(socket([0, 0, 0, 0], 68), socket([255; 4], 67), &payload)).unwrap();
        let Seen::Udp { src, dst, payload } = h.seen_one() else { panic!() };
        assert_eq!((src, dst), (socket(GATEWAY, 67), socket([255; 4], 68)));
        v4::Message::decode(&mut dhcproto::Decoder::new(&payload)).unwrap()
    };
    let offer = ask(&mut h, v4::MessageType::Discover, None);
    assert_eq!(offer.opts().msg_type(), Some(v4::MessageType::Offer));
    assert_eq!(offer.yiaddr(), CHILD);
    let ack = ask(&mut h, v4::MessageType::Request, Some(CHILD));
    assert_eq!(ack.opts().msg_type(), Some(v4::MessageType::Ack));
    let stats = h.stack.stats();
    assert_eq!((stats.dhcp.packets_from_child, stats.dhcp.packets_to_child), (2, 2));
    assert_eq!(h.host.actions, []);
}

#[test]
fn dhcpv6_tells_the_dns_address() {
    let mut h = scripted();
    let mut message = v6::Message::new(v6::MessageType::InformationRequest);
    message.opts_mut().insert(v6::DhcpOption::ClientId(vec![0, 3, 0, 1, 2, 0, 0, 0, 0, 0x64]));
    message.opts_mut().insert(v6::DhcpOption::ORO(v6::ORO { opts: vec![v6::OptionCode::DomainNameServers] }));
    let payload = message.to_vec().unwrap();
    let src = "[fe80::64]:546".parse().unwrap();
    h.inject(&frames::udp(src, "[ff02::1:2]:547".parse().unwrap(), &payload)).unwrap();
    let Seen::Udp { dst, payload, .. } = h.seen_one() else { panic!() };
    assert_eq!(dst, src);
    let reply = v6::Message::decode(&mut dhcproto::Decoder::new(&payload)).unwrap();
    assert_eq!(reply.msg_type(), v6::MessageType::Reply);
    let servers = reply.opts().iter().find_map(|option| match option {
        v6::DhcpOption::DomainNameServers(servers) => Some(servers.clone()),
        _ => None,
    });
    assert_eq!(servers, Some(vec![frames::DNS6]));
}

#[test]
fn services_that_are_left_out_are_silent() {
    use crate::config::LinkService::{Dhcp, Dhcpv6, NeighborDiscovery, RouterAdvertisement};
    let link_local = "fe80::64".parse().unwrap();
    let solicitation = frames::router_solicitation(link_local);
    let mut h = Harness::scripted(config().without(vec![Dhcp, Dhcpv6, RouterAdvertisement]), ALL_OFFLOADS);
    assert_eq!(h.inject(&solicitation), Ok(()));
    h.drive_for(Duration::from_secs(1000));
    assert_eq!(h.seen(), []);
    h.inject(&frames::neighbor_solicitation(CHILD6, GATEWAY6)).unwrap();
    assert_eq!(h.seen().len(), 1, "who is asked by name answers");
    let discover = frames::udp(socket([0, 0, 0, 0], 68), socket([255; 4], 67), &[0; 300]);
    assert_eq!(h.inject(&discover), Err(DropReason::DhcpIgnored));
    let request =
        frames::udp("[fe80::64]:546".parse().unwrap(), "[ff02::1:2]:547".parse().unwrap(), &[11, 0, 0, 1]);
    assert_eq!(h.inject(&request), Err(DropReason::DhcpIgnored));

    let mut h = Harness::scripted(config().without(vec![NeighborDiscovery]), ALL_OFFLOADS);
    assert_eq!(h.inject(&solicitation), Err(DropReason::IcmpIgnored));
    h.drive_for(Duration::from_secs(1000));
    assert_eq!(h.seen(), []);
}

#[test]
fn a_full_queue_to_the_child_drops_and_counts() {
    let limits = crate::config::Limits { to_child_frames: 16, ..crate::config::Limits::default() };
    let config = config().limits(limits).build().unwrap();
    let now = crate::time::Instant::from_secs(1000);
    let mut stack = crate::Stack::new(config, ALL_OFFLOADS, now);
    for _ in 0..20 {
        let mut bytes = frames::arp_request(CHILD, GATEWAY);
        let frame = crate::Frame { bytes: &mut bytes, offload: Offload::default(), slot: 0 };
        stack.handle_frame(now, frame).unwrap();
    }
    assert_eq!(stack.stats().drops(DropReason::ToChildQueueFull), 4);
}
