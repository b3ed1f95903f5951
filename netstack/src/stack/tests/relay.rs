//! Flows handed to a relay of sockets: who is offered, what becomes of them, and what their frames meet meanwhile.

use super::*;
use crate::action::{Action, ConnectError};
use crate::config::{Access, Limits};
use crate::error::DropReason;
use crate::flow::{FlowId, FlowPath};
use crate::packet::Tcp;
use crate::stack::{RelayEnd, Relaying};
use crate::tcp::Phase;
use crate::testing::frames::{DNS, GATEWAY, Seen, Segment};
use crate::testing::host::{ConnectPlan, Offered, RelayPlan};
use crate::testing::{Harness, config};
use crate::time::Duration;

/// A harness whose flows are offered, with a child played by frames.
fn scripted(plan: RelayPlan) -> Harness {
    relaying(Harness::scripted(config(), ALL_OFFLOADS), plan)
}

fn relaying(mut h: Harness, plan: RelayPlan) -> Harness {
    h.stack.set_relaying(Relaying::All);
    h.host.relay_plan = plan;
    h
}

fn syn(child: SocketAddr, remote: SocketAddr, sequence: u32) -> Vec<u8> {
    Segment { sequence, ..Segment::syn(child, remote, 1460) }.frame()
}

/// Opens a flow that the relay joins.
#[track_caller]
fn joined(h: &mut Harness, child: SocketAddr, remote: SocketAddr) -> FlowId {
    h.host.relay_plan = RelayPlan::Join;
    h.inject(&syn(child, remote, 1000)).unwrap();
    assert_eq!(h.seen(), []);
    h.host.last_flow()
}

fn stray(h: &Harness) -> u64 {
    h.stack.assert_counts();
    h.stack.stats().drops(DropReason::RelayedFlow)
}

// Offers.

#[test]
fn a_connected_flow_is_offered_before_the_child_is_answered() {
    for (child, remote) in families(80) {
        let mut h = scripted(RelayPlan::Hold);
        h.host.default_plan = ConnectPlan::Hold;
        h.inject(&syn(child, remote, 1000)).unwrap();
        let flow = h.host.last_flow();
        assert_eq!(h.host.offers, []);
        h.host.finish_connect(flow, Ok(()));
        assert_eq!(h.seen(), []);
        assert_eq!(h.host.offers, [Offered { flow, child, destination: remote }]);
        let info = h.stack.flows().next().unwrap();
        assert_eq!((info.path, info.phase), (FlowPath::Tap, Some(Phase::Offered)));
    }
}

#[test]
fn without_a_relay_nothing_is_offered() {
    let (child, remote) = families(80)[0];
    let mut h = Harness::scripted(config(), ALL_OFFLOADS);
    super::tcp_script::Peer::open(&mut h, child, remote);
    assert_eq!(h.host.offers, []);
}

#[test]
fn where_flows_are_many_and_brief_they_go_by_frames_until_one_is_not() {
    for (child, remote) in families(80) {
        let mut h = scripted(RelayPlan::Join);
        h.stack.set_relaying(Relaying::Lasting);
        let mut ports = 1000..;
        let mut next = || SocketAddr::new(child.ip(), ports.next().unwrap());
        let brief = |h: &mut Harness, child| {
            let flow = joined(h, child, remote);
            h.stack.relay_ended(h.now, flow, RelayEnd { to_host: 100, from_host: 200 });
        };
        (0..16).for_each(|_| brief(&mut h, next()));
        // By frames, as brief: it ends by the child's RST.
        for _ in 0..8 {
            let peer = super::tcp_script::Peer::open(&mut h, next(), remote);
            h.inject(&peer.segment(Tcp::RST, b"").frame()).unwrap();
        }
        assert_eq!(h.host.offers.len(), 16);
        assert_eq!(h.stack.stats().relay.brief, 8);
        let other = SocketAddr::new(remote.ip(), 81);
        joined(&mut h, next(), other);
        // A larger one, whatever way it went.
        let mut peer = super::tcp_script::Peer::open(&mut h, next(), remote);
        (0..50).for_each(|_| peer.send(&mut h, &[7; 1400]));
        h.seen();
        h.inject(&peer.segment(Tcp::RST, b"").frame()).unwrap();
        joined(&mut h, next(), remote);
        // Others want all of them.
        (0..16).for_each(|_| brief(&mut h, next()));
        h.stack.set_relaying(Relaying::All);
        joined(&mut h, next(), remote);
    }
}

#[test]
fn a_failed_connect_is_told_as_ever() {
    let (child, remote) = families(80)[0];
    let mut h = scripted(RelayPlan::Join);
    h.host.default_plan = ConnectPlan::Fail(ConnectError::Refused);
    h.inject(&syn(child, remote, 1000)).unwrap();
    assert_eq!(h.seen_one().tcp().flags & Tcp::RST, Tcp::RST);
    assert_eq!(h.host.offers, []);
}

#[test]
fn the_policy_is_asked_first() {
    let (child, remote) = families(80)[0];
    let policy = "deny tcp 0.0.0.0/0".parse().unwrap();
    let mut h = relaying(Harness::scripted(config().policy(policy), ALL_OFFLOADS), RelayPlan::Join);
    assert_eq!(h.inject(&syn(child, remote, 1000)), Err(DropReason::PolicyRefused));
    assert_eq!(h.host.offers, []);
}

#[test]
fn what_the_engine_serves_itself_is_not_offered() {
    let config = config().host_loopback(Access::Allow);
    let mut h = relaying(Harness::scripted(config, ALL_OFFLOADS), RelayPlan::Join);
    for (port, remote) in [(1, socket(GATEWAY, 80)), (2, socket(DNS, 53))] {
        h.inject(&syn(socket(CHILD, port), remote, 1000)).unwrap();
        assert_eq!(h.seen_one().tcp().flags, Tcp::SYN | Tcp::ACK, "{remote}");
    }
    assert_eq!(h.host.offers, []);
}

#[test]
fn a_child_that_offers_multipath_tcp_is_answered_by_frames() {
    let (child, remote) = families(80)[0];
    let mut h = scripted(RelayPlan::Join);
    // MP_CAPABLE, version 1, as Linux sends it: RFC 8684 section 3.1.
    let options = vec![2, 4, 5, 0xb4, 1, 3, 3, 7, 30, 4, 1, 1];
    h.inject(&Segment { options, ..Segment::new(child, remote, Tcp::SYN) }.frame()).unwrap();
    assert_eq!(h.seen_one().tcp().flags, Tcp::SYN | Tcp::ACK);
    assert_eq!(h.host.offers, []);
}

#[test]
fn flows_of_published_ports_are_not_offered() {
    let (child, remote) = families(80)[0];
    let mut h = relaying(Harness::default(), RelayPlan::Join);
    let server = h.child.listen(false, 80);
    h.open_to_child(remote, SocketAddr::new(child.ip(), 80)).unwrap();
    h.drive();
    assert_eq!(h.child.state(server), smoltcp::socket::tcp::State::Established);
    assert_eq!(h.host.offers, []);
}

// Refused.

#[test]
fn a_refused_flow_goes_on_by_frames() {
    for plan in [RelayPlan::Refuse, RelayPlan::Hold] {
        for (_, remote) in families(80) {
            let mut h = relaying(Harness::default(), plan);
            h.host.echo = true;
            let child = h.child.connect(remote);
            h.drive();
            let flow = h.host.last_flow();
            h.host.send(flow, b"greeting");
            h.drive();
            if plan == RelayPlan::Hold {
                assert_eq!(h.child.state(child), smoltcp::socket::tcp::State::SynSent);
                assert!(h.host.refuse(h.now, &mut h.stack, flow));
            }
            h.drive();
            h.child.write(child, b"request");
            h.drive();
            assert_eq!(h.child.read(child), b"greetingrequest");
            h.child.close(child);
            h.drive();
            assert_eq!(h.host.tcp(flow).closed, Some(false));
            let relay = h.stack.stats().relay;
            assert_eq!((relay.refused, relay.joined), (1, 0));
            assert_eq!(h.stack.flows().count(), 0);
        }
    }
}

#[test]
fn a_connection_that_failed_meanwhile_is_reset_when_it_is_back() {
    let (_, remote) = families(80)[0];
    let mut h = relaying(Harness::default(), RelayPlan::Hold);
    let child = h.child.connect(remote);
    h.drive();
    let flow = h.host.last_flow();
    h.host.reset(flow);
    h.drive();
    assert!(h.host.refuse(h.now, &mut h.stack, flow));
    h.drive();
    assert_eq!(h.child.state(child), smoltcp::socket::tcp::State::Closed);
    assert_eq!(h.stack.flows().count(), 0);
}

// Joined.

#[test]
fn a_joined_flow_costs_no_memory_is_listed_and_counts_until_its_end() {
    let (child, remote) = families(80)[0];
    let limits = Limits { flows: 2, ..Limits::default() };
    let mut h = relaying(Harness::scripted(config().limits(limits), ALL_OFFLOADS), RelayPlan::Join);
    let flow = joined(&mut h, child, remote);
    assert_eq!(h.stack.buffer_bytes(), 0);
    let info = h.stack.flows().next().unwrap();
    assert_eq!((info.id, info.path, info.phase), (flow, FlowPath::Relay, Some(Phase::Open)));
    let other = |port| SocketAddr::new(child.ip(), port);
    joined(&mut h, other(2), remote);
    assert_eq!(h.inject(&syn(other(3), remote, 1000)), Err(DropReason::FlowTableFull));
    assert_eq!(h.seen_one().tcp().flags & Tcp::RST, Tcp::RST);

    h.stack.relay_ended(h.now, flow, RelayEnd { to_host: 10, from_host: 20 });
    let relay = h.stack.stats().relay;
    assert_eq!((relay.active, relay.joined), (1, 2));
    assert_eq!((relay.bytes_from_child, relay.bytes_to_child), (10, 20));
    assert_eq!(h.stack.flows().count(), 1);
    joined(&mut h, other(3), remote);
    assert!(!h.host.actions.iter().any(|action| matches!(action, Action::Close { .. })));
}

#[test]
fn offered_flows_are_half_open_and_relayed_ones_are_not() {
    let (child, remote) = families(80)[0];
    let limits = Limits { half_open: 1, ..Limits::default() };
    let mut h = relaying(Harness::scripted(config().limits(limits), ALL_OFFLOADS), RelayPlan::Hold);
    h.inject(&syn(child, remote, 1000)).unwrap();
    let flow = h.host.last_flow();
    let other = SocketAddr::new(child.ip(), 2);
    assert_eq!(h.inject(&syn(other, remote, 1000)), Err(DropReason::HalfOpenFull));
    assert!(h.host.join(h.now, &mut h.stack, flow));
    h.inject(&syn(other, remote, 1000)).unwrap();
    assert_eq!(h.host.offers.len(), 2);
}

#[test]
fn frames_of_a_relayed_flow_are_dropped_without_a_word() {
    for (child, remote) in families(80) {
        let mut h = scripted(RelayPlan::Join);
        let flow = joined(&mut h, child, remote);
        h.inject(&syn(child, remote, 1000)).unwrap_err();
        for flags in [Tcp::ACK, Tcp::ACK | Tcp::FIN, Tcp::RST, Tcp::SYN | Tcp::ACK] {
            let segment = Segment { payload: b"x".to_vec(), ..Segment::new(child, remote, flags) };
            assert_eq!(h.inject(&segment.frame()), Err(DropReason::RelayedFlow));
        }
        assert_eq!(stray(&h), 5);
        assert_eq!(h.seen(), []);
        assert_eq!(h.stack.flows().map(|info| info.id).collect::<Vec<_>>(), [flow]);
        h.stack.relay_ended(h.now, flow, RelayEnd::default());
        // What comes after the end finds no flow.
        assert_eq!(h.inject(&Segment::new(child, remote, Tcp::ACK).frame()), Err(DropReason::NoFlow));
    }
}

#[test]
fn a_relayed_flow_lasts_until_its_end_is_told() {
    let (child, remote) = families(80)[0];
    let mut h = scripted(RelayPlan::Join);
    let flow = joined(&mut h, child, remote);
    h.drive_for(Duration::from_secs(100_000));
    assert_eq!(h.stack.flows().map(|info| info.id).collect::<Vec<_>>(), [flow]);
}

#[test]
fn a_port_used_anew_before_the_end_was_told_opens_another_flow() {
    for (child, remote) in families(80) {
        let mut h = scripted(RelayPlan::Join);
        let old = joined(&mut h, child, remote);
        h.inject(&syn(child, remote, 7000)).unwrap();
        let new = h.host.last_flow();
        assert_ne!(new, old);
        assert_eq!(h.stack.flows().count(), 2, "the old one counts until its end");
        assert_eq!(h.host.withdrawn, [], "it may be delivering still");
        h.stack.relay_ended(h.now, old, RelayEnd { to_host: 1, from_host: 2 });
        assert_eq!(h.stack.flows().map(|info| info.id).collect::<Vec<_>>(), [new]);
        assert_eq!(h.inject(&Segment::new(child, remote, Tcp::ACK).frame()), Err(DropReason::RelayedFlow));
        h.stack.relay_ended(h.now, new, RelayEnd::default());
        assert_eq!((h.stack.flows().count(), h.stack.stats().relay.active), (0, 0));
        assert_eq!(h.seen(), []);
    }
}

#[test]
fn a_port_used_anew_may_go_by_frames() {
    let (child, remote) = families(80)[0];
    let mut h = scripted(RelayPlan::Join);
    let old = joined(&mut h, child, remote);
    h.host.relay_plan = RelayPlan::Refuse;
    h.inject(&syn(child, remote, 7000)).unwrap();
    let answer = h.seen_one().tcp();
    assert_eq!((answer.flags, answer.acknowledgement), (Tcp::SYN | Tcp::ACK, 7001));
    h.stack.relay_ended(h.now, old, RelayEnd::default());
    let segment = Segment {
        sequence: 7001,
        acknowledgement: answer.sequence + 1,
        payload: b"hello".to_vec(),
        ..Segment::new(child, remote, Tcp::ACK)
    };
    h.inject(&segment.frame()).unwrap();
    let flow = h.host.last_flow();
    assert_eq!(h.host.tcp(flow).received, b"hello");
}

// What happens while the relay thinks.

#[test]
fn repeated_syns_are_ignored_while_offered() {
    for (child, remote) in families(80) {
        let mut h = scripted(RelayPlan::Hold);
        h.inject(&syn(child, remote, 1000)).unwrap();
        for _ in 0..3 {
            assert_eq!(h.inject(&syn(child, remote, 1000)), Err(DropReason::RelayedFlow));
        }
        // The other half of a simultaneous open that went astray.
        let crossed = Segment { sequence: 1000, ..Segment::new(child, remote, Tcp::SYN | Tcp::ACK) };
        assert_eq!(h.inject(&crossed.frame()), Err(DropReason::RelayedFlow));
        assert_eq!(h.seen(), []);
        assert_eq!((h.host.offers.len(), h.host.tcp.len(), stray(&h)), (1, 1, 4));
        let flow = h.host.last_flow();
        assert!(h.host.refuse(h.now, &mut h.stack, flow));
        assert_eq!(h.seen_one().tcp().acknowledgement, 1001);
    }
}

#[test]
fn a_child_that_gives_up_while_offered_has_the_offer_withdrawn() {
    for late in [RelayPlan::Join, RelayPlan::Refuse] {
        for (child, remote) in families(80) {
            let mut h = scripted(RelayPlan::Hold);
            h.inject(&syn(child, remote, 1000)).unwrap();
            let flow = h.host.last_flow();
            let reset = Segment { sequence: 1001, ..Segment::new(child, remote, Tcp::RST) };
            h.inject(&reset.frame()).unwrap();
            assert_eq!(h.host.withdrawn, [flow]);
            assert_eq!((h.stack.flows().count(), h.stack.buffer_bytes()), (0, 0));
            assert!(match late {
                RelayPlan::Join => !h.host.join(h.now, &mut h.stack, flow),
                _ => !h.host.refuse(h.now, &mut h.stack, flow),
            });
            h.stack.relay_ended(h.now, flow, RelayEnd { to_host: 1, from_host: 1 });
            assert_eq!(h.seen(), []);
            assert_eq!(h.stack.stats().relay, crate::stats::RelayStats::default());
            // The port is free.
            h.inject(&syn(child, remote, 5000)).unwrap();
            assert_eq!(h.host.offers.len(), 2);
        }
    }
}

#[test]
fn a_reset_that_is_not_the_childs_changes_nothing() {
    let (child, remote) = families(80)[0];
    let mut h = scripted(RelayPlan::Hold);
    h.inject(&syn(child, remote, 1000)).unwrap();
    let reset = Segment { sequence: 900_000_000, ..Segment::new(child, remote, Tcp::RST) };
    h.inject(&reset.frame()).unwrap();
    assert_eq!(h.seen(), []);
    let flow = h.host.last_flow();
    assert!(h.stack.is_offered(flow));
}

#[test]
fn a_relay_that_does_not_answer_is_not_waited_for() {
    let (child, remote) = families(80)[0];
    let mut h = scripted(RelayPlan::Hold);
    h.inject(&syn(child, remote, 1000)).unwrap();
    let flow = h.host.last_flow();
    // Repeated SYNs do not prolong it.
    h.drive_for(Duration::from_secs(3));
    h.inject(&syn(child, remote, 1000)).unwrap_err();
    h.drive_for(Duration::from_secs(3));
    assert_eq!(h.host.withdrawn, [flow]);
    assert_eq!((h.stack.flows().count(), h.stack.buffer_bytes()), (0, 0));
    assert_eq!(h.stack.stats().relay.unanswered, 1);
    assert!(!h.host.join(h.now, &mut h.stack, flow));
    assert_eq!(h.seen(), []);
    // The child's next SYN tries again.
    h.inject(&syn(child, remote, 1000)).unwrap();
    assert_eq!(h.host.offers.len(), 2);
}

#[test]
fn relaying_that_ends_keeps_what_was_offered() {
    let (child, remote) = families(80)[0];
    let mut h = scripted(RelayPlan::Hold);
    h.inject(&syn(child, remote, 1000)).unwrap();
    let flow = h.host.last_flow();
    h.stack.set_relaying(Relaying::Off);
    assert!(h.host.join(h.now, &mut h.stack, flow));
    let other = SocketAddr::new(child.ip(), 2);
    h.inject(&syn(other, remote, 1000)).unwrap();
    assert!(matches!(h.seen_one(), Seen::Tcp(..)));
    assert_eq!(h.host.offers.len(), 1);
}

#[test]
fn answers_that_make_no_sense_change_nothing() {
    let (child, remote) = families(80)[0];
    let mut h = scripted(RelayPlan::Refuse);
    let peer = super::tcp_script::Peer::open(&mut h, child, remote);
    assert!(!h.host.join(h.now, &mut h.stack, peer.flow));
    assert!(!h.host.refuse(h.now, &mut h.stack, peer.flow));
    h.stack.relay_ended(h.now, peer.flow, RelayEnd { to_host: 1, from_host: 1 });
    assert_eq!(h.stack.flows().count(), 1);
    let flow = joined(&mut h, SocketAddr::new(child.ip(), 2), remote);
    assert!(!h.host.join(h.now, &mut h.stack, flow));
    assert_eq!(h.stack.stats().relay.active, 1);
}

#[test]
fn the_relay_hears_of_frames_that_go_astray_once_a_second() {
    for (child, remote) in families(80) {
        let mut h = scripted(RelayPlan::Join);
        let flow = joined(&mut h, child, remote);
        let send = |h: &mut Harness, flags| {
            let segment =
                Segment { sequence: 1001, acknowledgement: 1, ..Segment::new(child, remote, flags) };
            assert_eq!(h.inject(&segment.frame()), Err(DropReason::RelayedFlow));
        };
        // The first SYN repeated, and a RST: nothing is to be led back.
        h.inject(&syn(child, remote, 1000)).unwrap_err();
        send(&mut h, Tcp::RST);
        assert_eq!(h.host.recalled, []);
        send(&mut h, Tcp::ACK);
        send(&mut h, Tcp::ACK);
        assert_eq!(h.host.recalled, [flow]);
        h.drive_for(Duration::from_secs(1));
        send(&mut h, Tcp::ACK | Tcp::FIN);
        assert_eq!(h.host.recalled, [flow; 2]);
        assert_eq!(h.seen(), []);
    }
}
