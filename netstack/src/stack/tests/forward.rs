//! Flows that the host opens: published ports.

use smoltcp::socket::tcp::State;

use super::*;
use crate::action::{Action, DatagramError, DatagramErrorKind};
use crate::config::{Ipv6Mode, Limits};
use crate::error::{DropReason, ForwardError};
use crate::flow::{FlowId, OpenedBy};
use crate::forward::{ForwardId, ForwardSource, UdpForward};
use crate::frame::Gso;
use crate::packet::{BROADCAST, Ethernet, Tcp};
use crate::tcp::Phase;
use crate::testing::child::{ChildMode, ChildTcp};
use crate::testing::frames::{CHILD_MAC, DNS, ENGINE_MAC, GATEWAY, GATEWAY6, Seen, Segment};
use crate::testing::link::Random;
use crate::testing::{Harness, config};
use crate::time::Duration;
use std::net::Ipv4Addr;

/// A server of the child and a client of the world, both families.
fn ends() -> [(SocketAddr, SocketAddr); 2] {
    [(socket(WORLD, 50_000), socket(CHILD, 8080)), (socket(WORLD6, 50_000), socket(CHILD6, 8080))]
}

fn on_every_link(test: impl Fn(Harness, SocketAddr, SocketAddr)) {
    for capabilities in CAPABILITIES {
        for (source, child) in ends() {
            test(Harness::new(config(), capabilities), source, child);
        }
    }
}

/// A client is connected to a server of the child.
fn connected(h: &mut Harness, source: SocketAddr, child: SocketAddr) -> (ChildTcp, FlowId) {
    let server = h.child.listen(child.is_ipv6(), child.port());
    let flow = h.open_to_child(source, child).unwrap();
    h.drive();
    assert_eq!(h.child.state(server), State::Established);
    (server, flow)
}

/// A harness whose child the test plays by frames, and knows the Ethernet address of.
fn scripted() -> Harness {
    let mut h = Harness::scripted(config(), ALL_OFFLOADS);
    for child in [IpAddr::from(CHILD), CHILD6.into()] {
        h.stack.learn_neighbor(child, CHILD_MAC);
    }
    h
}

// Opening.

#[test]
fn the_server_sees_the_clients_address() {
    on_every_link(|mut h, source, child| {
        let (server, flow) = connected(&mut h, source, child);
        assert_eq!(h.child.socket(server).remote_endpoint(), Some(source.into()));
        let info = h.stack.flows().next().unwrap();
        assert_eq!((info.id, info.key.child, info.key.remote), (flow, child, source));
        assert_eq!((info.opened_by, info.phase), (OpenedBy::Host, Some(Phase::Open)));
        assert_eq!(h.stack.stats().tcp_from_host, 1);
        assert_eq!(h.stack.stats().tcp_unanswered, 0);
    });
}

#[test]
fn nothing_is_read_from_the_client_before_the_child_has_accepted() {
    for (source, child) in ends() {
        let mut h = scripted();
        let flow = h.open_to_child(source, child).unwrap();
        h.host.send(flow, b"early");
        let syn = h.seen_one().tcp();
        assert_eq!((syn.src, syn.dst, syn.flags), (source, child, Tcp::SYN));
        assert_eq!(h.host.unread(flow), 5);
        let options = vec![2, 4, 5, 0xa0];
        let syn_ack = Segment {
            acknowledgement: syn.sequence.wrapping_add(1),
            options,
            ..Segment::new(child, source, Tcp::SYN | Tcp::ACK)
        };
        h.inject(&syn_ack.frame()).unwrap();
        assert_eq!(h.host.unread(flow), 0);
        let seen: Vec<Segment> = h.seen().into_iter().map(Seen::tcp).collect();
        assert!(seen.iter().any(|segment| segment.payload == b"early"), "{seen:?}");
    }
}

#[test]
fn a_refusal_resets_the_client() {
    on_every_link(|mut h, source, child| {
        let flow = h.open_to_child(source, child).unwrap();
        let began = h.now;
        h.drive();
        assert_eq!(h.host.tcp(flow).closed, Some(true));
        assert!(h.now - began < Duration::from_millis(300));
        assert_eq!(h.stack.flows().count(), 0);
        assert_eq!(h.stack.buffer_bytes(), 0);
        assert_eq!(h.stack.stats().tcp_unanswered, 1);
        // The table has room again, half-open flows too.
        connected(&mut h, source, child);
    });
}

#[test]
fn a_child_that_does_not_answer_is_given_up() {
    for (source, child) in ends() {
        let mut h = scripted();
        let flow = h.open_to_child(source, child).unwrap();
        h.drive_for(Duration::from_secs(119));
        assert_eq!(h.host.tcp(flow).closed, None);
        let syns = h.seen().into_iter().filter(|seen| matches!(seen, Seen::Tcp(..))).count();
        assert!(syns >= 4, "{syns} SYNs");
        h.drive_for(Duration::from_secs(2));
        assert_eq!(h.host.tcp(flow).closed, Some(true));
        assert_eq!(h.stack.flows().count(), 0);
    }
}

#[test]
fn a_child_that_answers_nonsense_is_given_up_all_the_same() {
    for (source, child) in ends() {
        let mut h = scripted();
        let flow = h.open_to_child(source, child).unwrap();
        let syn = h.seen_one().tcp();
        // The FIN of a connection that the child takes for open (RFC 9293 section 3.10.7.3 drops it).
        let fin = Segment {
            acknowledgement: syn.sequence.wrapping_add(1),
            ..Segment::new(child, source, Tcp::FIN | Tcp::ACK)
        };
        for _ in 0..130 {
            let _ = h.inject(&fin.frame());
            h.drive_for(Duration::from_secs(1));
        }
        assert_eq!(h.host.tcp(flow).closed, Some(true));
        assert_eq!(h.stack.flows().count(), 0);
    }
}

#[test]
fn an_icmp_error_about_the_syn_resets_the_client() {
    for (source, child) in ends() {
        for (kind, ends) in [((3, 1), true), ((3, 13), true), ((3, 4), false), ((11, 0), false)] {
            let v4 = child.is_ipv4();
            let kind = if v4 { kind } else { (if kind == (3, 1) { 1 } else { 3 }, 0) };
            let ends = if v4 { ends } else { kind.0 == 1 };
            let mut h = scripted();
            let flow = h.open_to_child(source, child).unwrap();
            h.settle();
            let syn = h.child.received.pop_front().unwrap().bytes;
            let mut message = vec![kind.0, kind.1, 0, 0, 0, 0, 0, 0];
            message.extend_from_slice(&syn[14..]);
            let result = h.inject(&frames::icmp(child.ip(), source.ip(), 64, &message));
            assert_eq!(result.is_ok(), ends, "{kind:?}");
            assert_eq!(h.host.tcp(flow).closed.is_some(), ends, "{kind:?}");
        }
    }
}

#[test]
fn an_icmp_error_about_an_open_connection_changes_nothing() {
    let (source, child) = ends()[0];
    let mut h = Harness::default();
    let (_, flow) = connected(&mut h, source, child);
    let quoted = Segment::syn(source, child, 1460).frame();
    let mut message = vec![3, 1, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(&quoted[14..]);
    let frame = frames::icmp(child.ip(), source.ip(), 64, &message);
    assert_eq!(h.inject(&frame), Err(DropReason::IcmpIgnored));
    assert_eq!(h.host.tcp(flow).closed, None);
}

#[test]
fn a_client_that_goes_away_early_leaves_nothing() {
    for (source, child) in ends() {
        let mut h = scripted();
        let flow = h.open_to_child(source, child).unwrap();
        let syn = h.seen_one().tcp();
        h.host.reset(flow);
        h.settle();
        assert_eq!(h.stack.flows().count(), 0);
        let late = Segment {
            acknowledgement: syn.sequence.wrapping_add(1),
            ..Segment::new(child, source, Tcp::SYN | Tcp::ACK)
        };
        assert_eq!(h.inject(&late.frame()), Err(DropReason::NoFlow));
        assert_eq!(h.seen_one().tcp().flags & Tcp::RST, Tcp::RST);
    }
}

#[test]
fn an_old_connection_in_time_wait_delays_nothing() {
    for (source, child) in ends() {
        let mut h = scripted();
        h.open_to_child(source, child).unwrap();
        let first = h.seen_one().tcp();
        // RFC 9293 section 3.10.7.4: an unacceptable segment is answered by an ACK.
        let challenge = Segment {
            sequence: 77,
            acknowledgement: first.sequence.wrapping_sub(1000),
            ..Segment::new(child, source, Tcp::ACK)
        };
        h.inject(&challenge.frame()).unwrap();
        let seen: Vec<Segment> = h.seen().into_iter().map(Seen::tcp).collect();
        assert_eq!(seen.len(), 2, "{seen:?}");
        assert_eq!((seen[0].flags, seen[0].sequence), (Tcp::RST, challenge.acknowledgement));
        assert_eq!(seen[1].flags, Tcp::SYN);
    }
}

#[test]
fn a_taken_port_makes_way_for_another_of_the_same_client() {
    on_every_link(|mut h, source, child| {
        connected(&mut h, source, child);
        let (server, _) = connected(&mut h, source, child);
        let remote = h.child.socket(server).remote_endpoint().unwrap();
        assert_eq!(IpAddr::from(remote.addr), source.ip());
        assert_ne!(remote.port, source.port());
        // Towards another port of the child the client's own is free.
        let elsewhere = SocketAddr::new(child.ip(), child.port() + 1);
        let (server, _) = connected(&mut h, source, elsewhere);
        assert_eq!(h.child.socket(server).remote_endpoint(), Some(source.into()));
    });
}

#[test]
fn a_child_may_reach_its_own_port_by_the_hosts_address() {
    on_every_link(|mut h, source, child| {
        // Out, to the port that the host publishes; and in again, from the host's own address.
        let outer = h.child.connect(SocketAddr::new(source.ip(), 8080));
        h.drive();
        let out_flow = h.host.last_flow();
        let (inner, in_flow) = connected(&mut h, source, child);
        assert_eq!(h.stack.flows().count(), 2);
        h.child.write(outer, b"question");
        h.child.write(inner, b"answer");
        h.drive();
        assert_eq!(h.host.tcp(out_flow).received, b"question");
        assert_eq!(h.host.tcp(in_flow).received, b"answer");
    });
}

/// RFC 9293 section 3.5, figure 7.
#[test]
fn a_simultaneous_open_makes_one_connection() {
    for (source, child) in ends() {
        let mut h = scripted();
        h.open_to_child(source, child).unwrap();
        let syn = h.seen_one().tcp();
        h.inject(&Segment::syn(child, source, 1460).frame()).unwrap();
        let syn_ack = h.seen_one().tcp();
        assert_eq!((syn_ack.flags, syn_ack.acknowledgement), (Tcp::SYN | Tcp::ACK, 1001));
        let ack = Segment {
            sequence: 1001,
            acknowledgement: syn.sequence.wrapping_add(1),
            ..Segment::new(child, source, Tcp::ACK)
        };
        h.inject(&ack.frame()).unwrap();
        let flows: Vec<_> = h.stack.flows().map(|flow| flow.phase).collect();
        assert_eq!(flows, [Some(Phase::Open)]);
        assert!(!h.host.actions.iter().any(|action| matches!(action, Action::Connect { .. })));
    }
}

#[test]
fn addresses_that_cannot_work_are_refused() {
    let mut h = scripted();
    let (source, child) = ends()[0];
    let (source6, child6) = ends()[1];
    for wrong in [
        socket(Ipv4Addr::LOCALHOST, 5),
        socket(Ipv4Addr::UNSPECIFIED, 5),
        socket(Ipv4Addr::new(224, 0, 0, 1), 5),
        socket(CHILD, 5),
        socket(DNS, 5),
        socket(WORLD, 0),
        source6,
    ] {
        assert_eq!(h.open_to_child(wrong, child), Err(ForwardError::Source(wrong)));
    }
    for wrong in ["[::1]:5", "[ff02::1]:5", "[::ffff:1.2.3.4]:5", "[fe80::9]:5", "[fd42:10:42::9]:5"] {
        let wrong = wrong.parse().unwrap();
        assert_eq!(h.open_to_child(wrong, child6), Err(ForwardError::Source(wrong)));
    }
    for wrong in [
        socket(Ipv4Addr::LOCALHOST, 80),
        socket(GATEWAY, 80),
        socket(DNS, 80),
        socket(Ipv4Addr::new(10, 0, 42, 255), 80),
        socket(CHILD, 0),
    ] {
        assert_eq!(h.open_to_child(source, wrong), Err(ForwardError::Child(wrong)));
    }
    assert!(h.open_to_child(socket(GATEWAY, 5), child).is_ok());
    assert!(h.open_to_child(socket(GATEWAY6, 5), child6).is_ok());
    let mut h = Harness::scripted(config().ipv6_mode(Ipv6Mode::Off), ALL_OFFLOADS);
    assert_eq!(h.open_to_child(source6, child6), Err(ForwardError::Ipv6Off));
}

#[test]
fn full_tables_refuse_and_count() {
    let (source, child) = ends()[0];
    let limits = |flows, half_open| Limits { flows, half_open, ..Limits::default() };
    let cases = [
        (limits(1, 8), ForwardError::FlowTableFull, DropReason::FlowTableFull),
        (limits(8, 1), ForwardError::HalfOpenFull, DropReason::HalfOpenFull),
    ];
    for (limits, error, reason) in cases {
        let mut h = Harness::scripted(config().limits(limits), ALL_OFFLOADS);
        h.open_to_child(source, child).unwrap();
        assert_eq!(h.open_to_child(source, child), Err(error));
        assert_eq!(h.stack.stats().drops(reason), 1);
        // The limit counts both kinds.
        let result = h.inject(&Segment::syn(socket(CHILD, 9), socket(WORLD, 9), 1460).frame());
        assert_eq!(result, Err(reason));
    }
}

#[test]
fn egress_rules_do_not_concern_replies() {
    let policy = crate::flow::policy::EgressPolicy::from_rules(vec!["deny any".parse().unwrap()]).unwrap();
    for (source, child) in ends() {
        for source in [source, SocketAddr::new(gateway_of(child), 700)] {
            let mut h = Harness::new(config().policy(policy.clone()), ALL_OFFLOADS);
            h.host.echo = true;
            let (server, flow) = connected(&mut h, source, child);
            h.child.write(server, b"reply");
            h.drive();
            assert_eq!(h.host.tcp(flow).received, b"reply");
            assert_eq!(h.child.read(server), b"reply");
        }
    }
}

fn gateway_of(child: SocketAddr) -> IpAddr {
    if child.is_ipv4() { GATEWAY.into() } else { GATEWAY6.into() }
}

// The link.

#[test]
fn an_unknown_neighbour_is_asked_for_and_the_syn_waits() {
    for (source, child) in ends() {
        let mut h = Harness::scripted(config(), ALL_OFFLOADS);
        h.open_to_child(source, child).unwrap();
        h.open_to_child(source, child).unwrap();
        h.settle();
        let question = h.child.received.pop_front().unwrap().bytes;
        assert!(h.child.received.is_empty(), "one question, no SYN");
        let dst = Ethernet::parse(&question).unwrap().dst;
        if child.is_ipv4() {
            assert_eq!(dst, BROADCAST);
            let Seen::Arp(arp) = Seen::read(&question) else { panic!() };
            assert_eq!((&arp[14..18], &arp[24..28]), (&GATEWAY.octets()[..], &CHILD.octets()[..]));
        } else {
            assert_eq!(dst, [0x33, 0x33, 0xff, 0, 1, 0]);
            let Seen::Icmp { kind, .. } = Seen::read(&question) else { panic!() };
            assert_eq!(kind, (135, 0));
        }
        // Any packet of that address is an answer.
        h.inject(&frames::udp(SocketAddr::new(child.ip(), 9), source, b"x")).unwrap();
        let syns: Vec<_> =
            h.child.received.iter().map(|frame| Ethernet::parse(&frame.bytes).unwrap()).collect();
        assert_eq!(syns.len(), 2);
        assert!(syns.iter().all(|ethernet| (ethernet.dst, ethernet.src) == (CHILD_MAC, ENGINE_MAC)));
    }
}

#[test]
fn a_living_child_is_found_without_having_spoken() {
    on_every_link(|mut h, source, child| {
        let (server, _) = connected(&mut h, source, child);
        assert_eq!(h.child.socket(server).remote_endpoint(), Some(source.into()));
    });
}

#[test]
fn an_address_that_nobody_has_resets_the_client() {
    for (source, child) in [
        (socket(WORLD, 1), socket(Ipv4Addr::new(10, 0, 42, 77), 80)),
        (socket(WORLD6, 1), "[fd42:10:42::77]:80".parse().unwrap()),
    ] {
        let mut h = scripted();
        let flow = h.open_to_child(source, child).unwrap();
        h.drive_for(Duration::from_millis(2900));
        assert_eq!(h.host.tcp(flow).closed, None);
        assert_eq!(h.seen().len(), 3, "three questions");
        h.drive_for(Duration::from_millis(200));
        assert_eq!(h.host.tcp(flow).closed, Some(true));
        assert_eq!(h.stack.stats().drops(DropReason::NeighborUnknown), 1);
        assert_eq!(h.stack.flows().count(), 0);
    }
}

#[test]
fn what_lies_behind_the_child_goes_to_the_child() {
    for (source, child) in [
        (socket(WORLD, 1), socket(Ipv4Addr::new(172, 17, 0, 2), 80)),
        (socket(WORLD6, 1), "[fd00:17::2]:80".parse().unwrap()),
    ] {
        let mut h = scripted();
        h.open_to_child(source, child).unwrap();
        h.settle();
        let syn = &h.child.received[0].bytes;
        assert_eq!(Ethernet::parse(syn).unwrap().dst, CHILD_MAC);
        assert_eq!(Seen::read(syn).tcp().dst, child);
    }
}

#[test]
fn a_child_that_was_made_anew_gets_the_next_syn() {
    let (source, child) = ends()[0];
    let mut h = scripted();
    h.stack.learn_neighbor(child.ip(), [2, 0, 0, 0, 0, 0x99]);
    h.open_to_child(source, child).unwrap();
    h.child.mode = ChildMode::Alive;
    let server = h.child.listen(false, child.port());
    h.drive_for(Duration::from_secs(10));
    assert_eq!(h.child.state(server), State::Established);
}

// Data.

#[test]
fn a_megabyte_each_way_and_an_orderly_end() {
    on_every_link(|mut h, source, child| {
        let (server, flow) = connected(&mut h, source, child);
        let (to_child, to_host) = (Random::new(1).bytes(1 << 20), Random::new(2).bytes(1 << 20));
        h.host.send(flow, &to_child);
        h.host.finish(flow);
        let mut got = Vec::new();
        h.drive_until(|h| {
            got.extend(h.child.read(server));
            h.child.at_eof(server)
        });
        assert!(got == to_child);
        // Half closed: the other direction goes on.
        let mut sent = 0;
        h.drive_until(|h| {
            sent += h.child.write(server, &to_host[sent..]);
            h.host.tcp(flow).received.len() == to_host.len()
        });
        assert!(h.host.tcp(flow).received == to_host);
        assert!(!h.host.tcp(flow).shutdown);
        h.child.close(server);
        h.drive();
        assert_eq!((h.host.tcp(flow).shutdown, h.host.tcp(flow).closed), (true, Some(false)));
        assert_eq!(h.stack.flows().count(), 0);
        assert_eq!(h.stack.buffer_bytes(), 0);
    });
}

#[test]
fn the_child_may_finish_first() {
    on_every_link(|mut h, source, child| {
        let (server, flow) = connected(&mut h, source, child);
        h.child.write(server, b"hello");
        h.child.close(server);
        h.drive();
        assert_eq!(h.host.tcp(flow).received, b"hello");
        assert!(h.host.tcp(flow).shutdown);
        h.host.send(flow, b"late");
        h.host.finish(flow);
        h.drive();
        assert_eq!(h.child.read(server), b"late");
        assert_eq!(h.host.tcp(flow).closed, Some(false));
    });
}

#[test]
fn resets_pass_both_ways() {
    on_every_link(|mut h, source, child| {
        let (server, flow) = connected(&mut h, source, child);
        h.child.abort(server);
        h.drive();
        assert_eq!(h.host.tcp(flow).closed, Some(true));
        let (server, flow) = connected(&mut h, source, child);
        h.host.reset(flow);
        h.drive();
        assert_eq!(h.child.state(server), State::Closed);
        assert_eq!(h.stack.stats().tcp_unanswered, 0);
    });
}

#[test]
fn a_client_that_reads_nothing_stops_the_child() {
    on_every_link(|mut h, source, child| {
        h.host.appetite = 1000;
        let (server, flow) = connected(&mut h, source, child);
        let bytes = Random::new(3).bytes(2 << 20);
        let mut sent = 0;
        h.drive_until(|h| {
            let taken = h.child.write(server, &bytes[sent..]);
            sent += taken;
            taken == 0
                && h.child.socket(server).send_queue() == h.child.socket(server).send_capacity()
                && !h.step()
        });
        assert!(sent < 1 << 20, "{sent}");
        assert_eq!(h.host.tcp(flow).received.len(), 1000);
    });
}

#[test]
fn super_segments_are_cut_as_the_childs_syn_ack_says() {
    for (source, child) in ends() {
        let mut h = scripted();
        let flow = h.open_to_child(source, child).unwrap();
        let syn = h.seen_one().tcp();
        let answer = Segment {
            acknowledgement: syn.sequence.wrapping_add(1),
            options: vec![2, 4, 0x03, 0xe8],
            window: 60_000,
            ..Segment::new(child, source, Tcp::SYN | Tcp::ACK)
        };
        h.inject(&answer.frame()).unwrap();
        h.child.received.clear();
        h.host.send(flow, &[7; 20_000]);
        h.settle();
        let sizes: Vec<_> = h.child.received.iter().map(|frame| frame.offload.gso).collect();
        assert!(sizes.contains(&Gso::Tcp(1000)), "{sizes:?}");
    }
}

// UDP.

/// An address of the host that clients send to.
const LOCAL: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)));

fn published(h: &mut Harness, child: SocketAddr) -> ForwardId {
    h.publish_udp(UdpForward { child, source: ForwardSource::Client }).unwrap()
}

fn udp_seen(h: &mut Harness) -> (SocketAddr, SocketAddr, Vec<u8>) {
    match h.seen_one() {
        Seen::Udp { src, dst, payload } => (src, dst, payload),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_datagram_comes_from_its_client_and_the_answer_goes_back_by_the_same_socket() {
    for (client, child) in ends() {
        let mut h = scripted();
        let forward = published(&mut h, child);
        let session = h.client_datagram(forward, client, LOCAL, b"question").unwrap();
        assert_eq!(udp_seen(&mut h), (client, child, b"question".to_vec()));
        h.inject(&frames::udp(child, client, b"answer")).unwrap();
        let sent = h.host.take_sent();
        assert_eq!(sent.len(), 1);
        assert_eq!((sent[0].remote, sent[0].local), (client, LOCAL));
        assert_eq!((&sent[0].payload[..], sent[0].hop.ttl), (&b"answer"[..], 63));
        let info = h.stack.flows().next().unwrap();
        assert_eq!((info.id, info.key.child, info.key.remote), (session, child, client));
        assert_eq!((info.opened_by, info.phase), (OpenedBy::Host, None));
        assert_eq!((info.bytes_to_child, info.bytes_from_child), (8, 6));
        assert_eq!(h.stack.flows().count(), 1, "no binding was made");
        // The same session again.
        assert_eq!(h.client_datagram(forward, client, LOCAL, b"more"), Ok(session));
        assert_eq!(h.stack.stats().udp_sessions, 1);
    }
}

#[test]
fn clients_that_appear_as_the_gateway_are_told_apart_by_their_ports() {
    let (_, child) = ends()[0];
    let mut h = scripted();
    let forward = published(&mut h, child);
    let (first, second) = (socket(Ipv4Addr::LOCALHOST, 7000), socket(WORLD6, 7000));
    h.client_datagram(forward, first, None, b"1").unwrap();
    let (visible_first, ..) = udp_seen(&mut h);
    h.client_datagram(forward, second, None, b"2").unwrap();
    let (visible_second, ..) = udp_seen(&mut h);
    assert_eq!(visible_first, socket(GATEWAY, 7000), "preserved while free");
    assert_eq!(visible_second.ip(), IpAddr::from(GATEWAY));
    assert_ne!(visible_second.port(), 7000);
    for (visible, client) in [(visible_first, first), (visible_second, second)] {
        h.inject(&frames::udp(child, visible, b"x")).unwrap();
        assert_eq!(h.host.take_sent()[0].remote, client);
    }
}

#[test]
fn a_client_of_two_addresses_of_the_host_is_answered_from_each() {
    let (client, child) = ends()[0];
    let mut h = scripted();
    let forward = published(&mut h, child);
    let locals = [LOCAL, Some(Ipv4Addr::new(192, 0, 2, 2).into())];
    let visible = locals.map(|local| {
        h.client_datagram(forward, client, local, b"x").unwrap();
        udp_seen(&mut h).0
    });
    assert_eq!(visible[0], client);
    for (visible, local) in visible.into_iter().zip(locals) {
        h.inject(&frames::udp(child, visible, b"x")).unwrap();
        let sent = h.host.take_sent();
        assert_eq!((sent[0].remote, sent[0].local), (client, local));
    }
}

#[test]
fn a_server_that_speaks_to_others_has_an_ordinary_binding() {
    let (client, child) = ends()[0];
    let mut h = scripted();
    let forward = published(&mut h, child);
    h.client_datagram(forward, client, LOCAL, b"x").unwrap();
    h.seen();
    let other = socket(Ipv4Addr::new(198, 51, 100, 200), 53);
    h.inject(&frames::udp(child, other, b"hello")).unwrap();
    let binding = h.host.last_flow();
    assert_ne!(binding, forward.flow());
    assert_eq!(h.host.datagram[&binding].sent[0].remote, other);
    assert_eq!(h.host.datagram[&binding].sent[0].local, None);
    h.datagram(binding, other, b"and back", None).unwrap();
    assert_eq!(udp_seen(&mut h), (other, child, b"and back".to_vec()));
}

#[test]
fn egress_rules_do_not_concern_answers_but_the_hop_limit_does() {
    let policy = crate::flow::policy::EgressPolicy::from_rules(vec!["deny any".parse().unwrap()]).unwrap();
    let (client, child) = ends()[0];
    let mut h = Harness::scripted(config().policy(policy), ALL_OFFLOADS);
    h.stack.learn_neighbor(child.ip(), CHILD_MAC);
    let forward = published(&mut h, child);
    h.client_datagram(forward, client, LOCAL, b"x").unwrap();
    h.seen();
    h.inject(&frames::udp(child, client, b"x")).unwrap();
    assert_eq!(h.host.take_sent().len(), 1);
    assert_eq!(h.inject(&frames::udp(child, socket(WORLD, 50_001), b"x")), Err(DropReason::PolicyRefused));
    h.seen();
    let mut last = frames::udp(child, client, b"x");
    last[frames::IP + 8] = 1;
    frames::complete_ipv4(&mut last);
    assert_eq!(h.inject(&last), Err(DropReason::TimeExceeded));
}

#[test]
fn the_first_datagrams_wait_for_the_neighbour() {
    for (client, child) in ends() {
        let mut h = Harness::scripted(config(), ALL_OFFLOADS);
        let forward = published(&mut h, child);
        let large = Random::new(1).bytes(4000);
        assert!(!h.stack.session(h.now, forward, client, LOCAL).unwrap().ready);
        h.client_datagram(forward, client, LOCAL, b"first").unwrap();
        h.client_datagram(forward, client, LOCAL, &large).unwrap();
        assert_eq!(h.seen().len(), 1, "the question");
        h.inject(&frames::udp(child, client, b"x")).unwrap();
        let seen = h.seen();
        assert!(matches!(&seen[0], Seen::Udp { payload, .. } if payload == b"first"));
        assert_eq!(seen.len(), 4, "and three fragments");
        assert!(h.stack.session(h.now, forward, client, LOCAL).unwrap().ready);
    }
    // Nobody answers, and nothing grows.
    let (client, child) = (socket(WORLD, 1), socket(Ipv4Addr::new(10, 0, 42, 77), 80));
    let mut h = Harness::scripted(config(), ALL_OFFLOADS);
    let forward = published(&mut h, child);
    let taken = (0..100).filter(|_| h.client_datagram(forward, client, LOCAL, b"x").is_ok()).count();
    assert_eq!(taken, 64);
    h.drive_for(Duration::from_secs(4));
    assert_eq!(h.stack.stats().drops(DropReason::NeighborUnknown), 100);
}

#[test]
fn datagrams_beyond_the_mtu_arrive_in_fragments_and_super_datagrams_whole() {
    for (client, child) in ends() {
        let mut h = scripted();
        let forward = published(&mut h, child);
        h.client_datagram(forward, client, LOCAL, &[7; 65_507]).unwrap();
        let fragments = h.seen();
        assert!(fragments.len() > 40 && fragments.iter().all(|seen| matches!(seen, Seen::Fragment(_))));
        let session = h.stack.session(h.now, forward, client, LOCAL).unwrap();
        h.datagram(session.flow, client, &[8; 3000], Some(1000)).unwrap();
        assert_eq!(h.child.received[0].offload.gso, Gso::Udp(1000));
        assert_eq!(h.stack.stats().udp.packets_to_child, 4);
    }
}

#[test]
fn the_longest_idle_session_makes_room() {
    let (client, child) = ends()[0];
    let limits = Limits { udp_sessions: 2, ..Limits::default() };
    let mut h = Harness::scripted(config().limits(limits), ALL_OFFLOADS);
    h.stack.learn_neighbor(child.ip(), CHILD_MAC);
    let forward = published(&mut h, child);
    let clients = [0, 1, 2].map(|n| SocketAddr::new(client.ip(), 6000 + n));
    for &client in &clients[..2] {
        h.client_datagram(forward, client, LOCAL, b"x").unwrap();
        h.drive_for(Duration::from_secs(2));
    }
    // The older one is used again, by the child.
    h.inject(&frames::udp(child, clients[0], b"x")).unwrap();
    h.client_datagram(forward, clients[2], LOCAL, b"x").unwrap();
    let mut ports: Vec<u16> = h.stack.flows().map(|flow| flow.key.remote.port()).collect();
    ports.sort_unstable();
    assert_eq!(ports, [6000, 6002]);
    assert_eq!(h.stack.stats().drops(DropReason::UdpSessionsFull), 1);
}

#[test]
fn idle_sessions_end_and_the_forward_stays() {
    let (client, child) = ends()[0];
    let mut h = scripted();
    let forward = published(&mut h, child);
    h.client_datagram(forward, client, LOCAL, b"x").unwrap();
    h.drive_for(Duration::from_secs(200));
    h.inject(&frames::udp(child, client, b"x")).unwrap();
    h.drive_for(Duration::from_secs(299));
    assert_eq!(h.stack.flows().count(), 1);
    h.drive_for(Duration::from_secs(2));
    assert_eq!(h.stack.flows().count(), 0);
    h.client_datagram(forward, client, LOCAL, b"x").unwrap();
    assert_eq!(h.stack.stats().udp_sessions, 2);
}

#[test]
fn removing_a_forward_ends_its_sessions_only() {
    let (client, child) = ends()[0];
    let mut h = scripted();
    let (first, second) = (published(&mut h, child), published(&mut h, socket(CHILD, 9090)));
    h.client_datagram(first, client, LOCAL, b"x").unwrap();
    h.client_datagram(second, client, LOCAL, b"x").unwrap();
    assert!(h.stack.remove_udp_forward(first));
    assert!(!h.stack.remove_udp_forward(first));
    h.settle();
    assert!(h.host.datagram[&first.flow()].closed && !h.host.datagram[&second.flow()].closed);
    assert_eq!(h.stack.flows().map(|flow| flow.key.child.port()).collect::<Vec<_>>(), [9090]);
    assert_eq!(h.client_datagram(first, client, LOCAL, b"x"), Err(DropReason::NoFlow));
    // A session's id is no forward's.
    let session = h.stack.flows().next().unwrap().id;
    assert!(!h.stack.remove_udp_forward(ForwardId(session)));
}

#[test]
fn errors_of_the_hosts_side_reach_the_child() {
    for (client, child) in ends() {
        let mut h = scripted();
        let forward = published(&mut h, child);
        h.client_datagram(forward, client, LOCAL, b"x").unwrap();
        h.seen();
        let error = DatagramError { offender: None, kind: DatagramErrorKind::TooBig(1280) };
        h.datagram_error(forward.flow(), client, error, b"the answer");
        let Seen::Icmp { dst, kind, .. } = h.seen_one() else { panic!() };
        assert_eq!((dst, kind), (child.ip(), if child.is_ipv4() { (3, 4) } else { (2, 0) }));
    }
}

#[test]
fn a_childs_closed_port_is_counted() {
    for (client, child) in ends() {
        let mut h = scripted();
        let forward = published(&mut h, child);
        h.client_datagram(forward, client, LOCAL, b"x").unwrap();
        let datagram = h.child.received.pop_front().unwrap().bytes;
        let kind = if child.is_ipv4() { [3, 3] } else { [1, 4] };
        let mut message = vec![kind[0], kind[1], 0, 0, 0, 0, 0, 0];
        message.extend_from_slice(&datagram[14..]);
        h.inject(&frames::icmp(child.ip(), client.ip(), 64, &message)).unwrap();
        assert_eq!(h.stack.stats().udp_session_errors, 1);
        assert_eq!(h.stack.flows().count(), 1, "the server may come back");
    }
}

#[test]
fn what_cannot_be_published_is_refused() {
    let mut h = scripted();
    for wrong in ["127.0.0.1:5", "10.0.42.2:5", "[::1]:5", "10.0.42.100:0"] {
        let child = wrong.parse().unwrap();
        let refused = h.publish_udp(UdpForward { child, source: ForwardSource::Client });
        assert_eq!(refused, Err(ForwardError::Child(child)));
    }
}
