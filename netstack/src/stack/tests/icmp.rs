//! Echo, and who answers it.

use super::*;
use crate::action::{DatagramError, DatagramErrorKind, DatagramKind, OpenError};
use crate::config::{Limits, Timeouts};
use crate::error::DropReason;
use crate::testing::frames::{DNS, DNS6, GATEWAY, GATEWAY6, Seen, echo, echo_request};
use crate::testing::{Harness, config};
use crate::time::Duration;

const REQUEST: [u8; 2] = [8, 128];
const REPLY: [u8; 2] = [0, 129];

fn scripted() -> Harness {
    Harness::scripted(config(), ALL_OFFLOADS)
}

fn pairs() -> [(IpAddr, IpAddr); 2] {
    [(CHILD.into(), WORLD.into()), (CHILD6.into(), WORLD6.into())]
}

#[test]
fn a_request_goes_out_as_it_is_and_the_reply_gets_the_childs_identifier() {
    for (family, (child, remote)) in pairs().into_iter().enumerate() {
        let mut h = scripted();
        h.inject(&echo_request(child, remote, 0x1234, 5, b"are you there")).unwrap();
        let flow = h.host.last_flow();
        assert_eq!(h.host.datagram[&flow].kind, DatagramKind::Ping);
        let sent = h.host.take_sent().remove(0);
        assert_eq!((sent.remote, sent.hop.ttl), (SocketAddr::new(remote, 0), 63));
        assert_eq!(sent.payload[0], REQUEST[family]);
        assert_eq!(&sent.payload[8..], b"are you there");
        // The host's kernel has chosen another identifier.
        let reply = echo(REPLY[family], 0x9999, 5, b"are you there");
        h.datagram(flow, SocketAddr::new(remote, 0), &reply, None).unwrap();
        let Seen::Icmp { src, dst, kind, body } = h.seen_one() else { panic!() };
        assert_eq!((src, dst, kind), (remote, child, (REPLY[family], 0)));
        assert_eq!(body, echo(0, 0x1234, 5, b"are you there")[4..]);
    }
}

#[test]
fn nobody_but_the_engine_is_answered_without_a_reply_of_the_host() {
    for (child, remote) in pairs() {
        let mut h = scripted();
        h.inject(&echo_request(child, remote, 1, 1, b"")).unwrap();
        h.drive_for(Duration::from_secs(10));
        assert_eq!(h.seen(), []);
    }
    let own: [(IpAddr, IpAddr); 4] = [
        (CHILD.into(), GATEWAY.into()),
        (CHILD.into(), DNS.into()),
        (CHILD6.into(), GATEWAY6.into()),
        (CHILD6.into(), DNS6.into()),
    ];
    for (child, engine) in own {
        let mut h = scripted();
        h.inject(&echo_request(child, engine, 7, 8, b"hello")).unwrap();
        let Seen::Icmp { src, dst, kind, body } = h.seen_one() else { panic!() };
        assert_eq!((src, dst), (engine, child));
        assert!(kind == (0, 0) || kind == (129, 0));
        assert_eq!(body, echo(0, 7, 8, b"hello")[4..]);
        assert_eq!(h.host.actions, []);
    }
}

#[test]
fn only_replies_pass_from_the_host() {
    let mut h = scripted();
    let (child, remote) = pairs()[0];
    h.inject(&echo_request(child, remote, 1, 1, b"")).unwrap();
    let flow = h.host.last_flow();
    for message in [echo(8, 1, 1, b""), echo(13, 1, 1, b""), vec![0, 0, 0], vec![]] {
        let from = SocketAddr::new(remote, 0);
        assert_eq!(h.datagram(flow, from, &message, None), Err(DropReason::IcmpIgnored));
    }
    assert_eq!(h.seen(), []);
}

#[test]
fn identifiers_have_bindings_that_end_and_make_room() {
    let limits = Limits { icmp_bindings: 2, ..Limits::default() };
    let timeouts = Timeouts { icmp: Duration::from_secs(10), ..Timeouts::default() };
    let mut h = Harness::scripted(config().limits(limits).timeouts(timeouts), ALL_OFFLOADS);
    let (child, remote) = pairs()[0];
    for ident in 1..=3 {
        h.inject(&echo_request(child, remote, ident, 1, b"")).unwrap();
        h.inject(&echo_request(child, remote, ident, 2, b"")).unwrap();
    }
    assert_eq!(h.host.datagram.values().filter(|socket| !socket.closed).count(), 2);
    assert_eq!(h.stack.stats().drops(DropReason::IcmpBindingsFull), 1);
    h.drive_for(Duration::from_secs(11));
    assert_eq!(h.stack.flows().count(), 0);
}

#[test]
fn a_forbidden_ping_socket_is_found_out_once() {
    let mut h = scripted();
    h.host.open_error = Some(OpenError::PingForbidden);
    let (child, remote) = pairs()[0];
    h.inject(&echo_request(child, remote, 1, 1, b"")).unwrap();
    assert_eq!(h.stack.flows().count(), 0);
    let asked = h.host.actions.len();
    assert_eq!(h.inject(&echo_request(child, remote, 1, 2, b"")), Err(DropReason::PingForbidden));
    assert_eq!(h.host.actions.len(), asked);
    assert!(matches!(h.seen_one(), Seen::Icmp { kind: (3, 13), .. }), "and told");
}

#[test]
fn an_expired_ttl_is_told() {
    for (family, (child, remote)) in pairs().into_iter().enumerate() {
        let mut h = scripted();
        let frame = frames::icmp(child, remote, 1, &echo(REQUEST[family], 1, 1, b"trace"));
        assert_eq!(h.inject(&frame), Err(DropReason::TimeExceeded));
        let Seen::Icmp { kind, .. } = h.seen_one() else { panic!() };
        assert_eq!(kind, [(11, 0), (3, 0)][family]);
    }
}

#[test]
fn errors_about_requests_quote_the_childs_identifier() {
    for (family, (child, remote)) in pairs().into_iter().enumerate() {
        let mut h = scripted();
        h.inject(&echo_request(child, remote, 0x1234, 5, b"x")).unwrap();
        let flow = h.host.last_flow();
        let router: IpAddr =
            if family == 0 { [203, 0, 113, 9].into() } else { "2001:db8::99".parse().unwrap() };
        let error = DatagramError { offender: Some(router), kind: DatagramErrorKind::TimeExceeded };
        let quoted = echo(REQUEST[family], 0x9999, 5, b"x");
        h.datagram_error(flow, SocketAddr::new(remote, 0), error, &quoted);
        let Seen::Icmp { src, kind, body, .. } = h.seen_one() else { panic!() };
        assert_eq!((src, kind), (router, [(11, 0), (3, 0)][family]));
        let quote = &body[4 + [20, 40][family]..];
        assert_eq!((quote[0], &quote[4..8]), (REQUEST[family], &[0x12, 0x34, 0, 5][..]));
    }
}

#[test]
fn a_large_echo_comes_back_in_fragments() {
    for (family, (child, remote)) in pairs().into_iter().enumerate() {
        let mut h = scripted();
        let data = crate::testing::link::Random::new(1).bytes(8000);
        for piece in frames::fragments(&echo_request(child, remote, 1, 1, &data), 3, 1024) {
            h.inject(&piece).unwrap();
        }
        let sent = h.host.take_sent().remove(0);
        assert!(sent.payload[8..] == data);
        let flow = h.host.last_flow();
        h.datagram(flow, SocketAddr::new(remote, 0), &echo(REPLY[family], 1, 1, &data), None).unwrap();
        let seen = h.seen();
        assert!(seen.len() >= 6 && seen.iter().all(|seen| matches!(seen, Seen::Fragment(_))));
    }
}

#[test]
fn other_icmp_of_the_child_is_ignored() {
    let mut h = scripted();
    let [(child, remote), (child6, remote6)] = pairs();
    for icmp_type in [0, 3, 5, 11, 13, 17] {
        let frame = frames::icmp(child, remote, 64, &echo(icmp_type, 0, 0, b""));
        assert_eq!(h.inject(&frame), Err(DropReason::IcmpIgnored), "{icmp_type}");
    }
    for icmp_type in [1, 2, 3, 129, 130, 143] {
        let frame = frames::icmp(child6, remote6, 64, &echo(icmp_type, 0, 0, b""));
        assert_eq!(h.inject(&frame), Err(DropReason::IcmpIgnored), "{icmp_type}");
    }
    assert_eq!(h.seen(), []);
}
