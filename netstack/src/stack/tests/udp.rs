//! UDP datagram by datagram.

use super::*;
use crate::action::{Action, DatagramError, DatagramErrorKind, DatagramKind, OpenError};
use crate::config::{Limits, Timeouts, UdpFiltering};
use crate::error::DropReason;
use crate::frame::{Checksum, Gso};
use crate::testing::frames::{L4_V4, L4_V6, Seen};
use crate::testing::link::Random;
use crate::testing::{Harness, config};
use crate::time::Duration;

fn scripted() -> Harness {
    Harness::scripted(config(), ALL_OFFLOADS)
}

fn udp(src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Vec<u8> {
    frames::udp(src, dst, payload)
}

// Mapping.

#[test]
fn one_binding_serves_all_remotes() {
    let mut h = scripted();
    let (child, remote) = families(53)[0];
    for n in 0..50u8 {
        let dst = socket([198, 51, 100, n], 1000 + u16::from(n));
        h.inject(&udp(child, dst, &[n])).unwrap();
    }
    h.inject(&udp(child, remote, b"x")).unwrap();
    assert_eq!(h.host.datagram.len(), 1);
    let binding = h.host.datagram.values().next().unwrap();
    assert_eq!((binding.kind, binding.ipv6), (DatagramKind::Udp, false));
    assert_eq!(h.host.take_sent().len(), 51);
    // Another port, and the other family, are other bindings.
    h.inject(&udp(socket(CHILD, 1), remote, b"x")).unwrap();
    let (child6, remote6) = families(53)[1];
    h.inject(&udp(child6, remote6, b"x")).unwrap();
    assert_eq!(h.host.datagram.len(), 3);
}

#[test]
fn a_datagram_goes_out_with_ttl_and_df_of_the_child() {
    let mut h = scripted();
    let (child, remote) = families(9)[0];
    let mut frame = udp(child, remote, b"payload");
    frame[frames::IP + 8] = 7;
    frame[frames::IP + 6] = 0;
    frames::complete_ipv4(&mut frame);
    h.inject(&frame).unwrap();
    let sent = h.host.take_sent().remove(0);
    assert_eq!((sent.remote, sent.payload.as_slice()), (remote, &b"payload"[..]));
    assert_eq!((sent.hop.ttl, sent.hop.dont_fragment, sent.gso), (6, false, Gso::None));
}

#[test]
fn an_answer_reaches_the_child() {
    for capabilities in CAPABILITIES {
        for (child, remote) in families(9) {
            let mut h = Harness::scripted(config(), capabilities);
            h.inject(&udp(child, remote, b"ping")).unwrap();
            let flow = h.host.last_flow();
            h.datagram(flow, remote, b"pong", None).unwrap();
            assert_eq!(h.seen_one(), Seen::Udp { src: remote, dst: child, payload: b"pong".to_vec() });
            h.datagram(flow, remote, b"", None).unwrap();
            assert_eq!(h.seen_one(), Seen::Udp { src: remote, dst: child, payload: vec![] });
        }
    }
}

#[test]
fn padding_of_short_frames_is_no_payload() {
    let mut h = scripted();
    let (child, remote) = families(9)[0];
    let mut frame = udp(child, remote, b"a");
    frame.resize(60, 0xee);
    h.inject(&frame).unwrap();
    assert_eq!(h.host.take_sent()[0].payload, b"a");
}

// Filtering.

#[test]
fn strangers_are_filtered_by_address_unless_asked() {
    for (child, remote) in families(9) {
        let stranger: SocketAddr =
            if remote.is_ipv4() { "203.0.113.1:9".parse() } else { "[2001:db8::99]:9".parse() }.unwrap();
        let other_port = SocketAddr::new(remote.ip(), 1234);
        let mut h = scripted();
        h.inject(&udp(child, remote, b"x")).unwrap();
        let flow = h.host.last_flow();
        assert_eq!(h.datagram(flow, stranger, b"y", None), Err(DropReason::UnexpectedSource));
        assert_eq!(h.stack.stats().drops(DropReason::UnexpectedSource), 1);
        h.datagram(flow, other_port, b"y", None).unwrap();
        assert!(matches!(h.seen_one(), Seen::Udp { src, .. } if src == other_port));

        let filtering = UdpFiltering::EndpointIndependent;
        let mut h = Harness::scripted(config().udp_filtering(filtering), ALL_OFFLOADS);
        h.inject(&udp(child, remote, b"x")).unwrap();
        let flow = h.host.last_flow();
        h.datagram(flow, stranger, b"y", None).unwrap();
        assert!(matches!(h.seen_one(), Seen::Udp { src, .. } if src == stranger));
    }
}

// Life of a binding.

#[test]
fn a_silent_binding_ends_and_traffic_in_either_direction_keeps_it() {
    let timeouts = Timeouts { udp: Duration::from_secs(30), ..Timeouts::default() };
    let mut h = Harness::scripted(config().timeouts(timeouts), ALL_OFFLOADS);
    let (child, remote) = families(9)[0];
    h.inject(&udp(child, remote, b"x")).unwrap();
    let flow = h.host.last_flow();
    for _ in 0..5 {
        h.drive_for(Duration::from_secs(20));
        h.inject(&udp(child, remote, b"x")).unwrap();
    }
    for _ in 0..5 {
        h.drive_for(Duration::from_secs(20));
        h.datagram(flow, remote, b"y", None).unwrap();
    }
    assert!(!h.host.datagram[&flow].closed);
    h.drive_for(Duration::from_secs(29));
    assert!(!h.host.datagram[&flow].closed);
    h.drive_for(Duration::from_secs(3));
    assert!(h.host.datagram[&flow].closed);
    assert_eq!(h.stack.flows().count(), 0);
    assert_eq!(h.datagram(flow, remote, b"late", None), Err(DropReason::NoFlow));
}

#[test]
fn the_longest_idle_binding_makes_room() {
    let limits = Limits { udp_bindings: 2, ..Limits::default() };
    let mut h = Harness::scripted(config().limits(limits), ALL_OFFLOADS);
    let (_, remote) = families(9)[0];
    let open = |h: &mut Harness, port: u16| {
        h.inject(&udp(socket(CHILD, port), remote, b"x")).unwrap();
        h.drive_for(Duration::from_secs(2));
        h.host.last_flow()
    };
    let first = open(&mut h, 1);
    let second = open(&mut h, 2);
    open(&mut h, 1);
    let third = open(&mut h, 3);
    assert!(h.host.datagram[&second].closed, "the first was used since");
    assert!(!h.host.datagram[&first].closed && !h.host.datagram[&third].closed);
    assert_eq!(h.stack.stats().drops(DropReason::UdpBindingsFull), 1);
    assert_eq!(h.stack.flows().count(), 2);
}

#[test]
fn a_socket_that_cannot_be_opened_leaves_no_binding() {
    for (error, reason) in [
        (OpenError::Resources, DropReason::HostResources),
        (OpenError::Unreachable, DropReason::HostSendFailed),
    ] {
        let mut h = scripted();
        h.host.open_error = Some(error);
        let (child, remote) = families(9)[0];
        h.inject(&udp(child, remote, b"x")).unwrap();
        assert_eq!(h.stack.stats().drops(reason), 1);
        assert_eq!(h.stack.flows().count(), 0);
        h.host.open_error = None;
        h.inject(&udp(child, remote, b"x")).unwrap();
        assert_eq!(h.host.take_sent().len(), 1);
    }
}

// Checksums.

#[test]
fn no_checksum_is_allowed_in_ipv4_only() {
    let mut h = scripted();
    let [(child, remote), (child6, remote6)] = families(9);
    let mut frame = udp(child, remote, b"x");
    frame[L4_V4 + 6..L4_V4 + 8].fill(0);
    h.inject(&frame).unwrap();
    let mut frame = udp(child6, remote6, b"x");
    frame[L4_V6 + 6..L4_V6 + 8].fill(0);
    assert_eq!(h.inject(&frame), Err(DropReason::BadChecksum));
    for (child, remote) in families(9) {
        let mut frame = udp(child, remote, b"x");
        *frame.last_mut().unwrap() ^= 1;
        assert_eq!(h.inject(&frame), Err(DropReason::BadChecksum));
        // A partial checksum is the link's business.
        let offload = Offload { checksum: Checksum::Partial, gso: Gso::None };
        h.inject_with(&frame, offload).unwrap();
    }
}

// Fragments.

#[test]
fn fragments_of_the_child_are_reassembled_in_any_order() {
    for (child, remote) in families(9) {
        let mut h = scripted();
        let data = Random::new(11).bytes(9000);
        let mut pieces = frames::fragments(&udp(child, remote, &data), 77, 1024);
        pieces.reverse();
        let middle = pieces.len() / 2;
        pieces.swap(0, middle);
        for piece in &pieces {
            h.inject(piece).unwrap();
        }
        let sent = h.host.take_sent();
        assert_eq!(sent.len(), 1);
        assert!(sent[0].payload == data);
        assert!(!sent[0].hop.dont_fragment, "what came in fragments may go in fragments");
    }
}

#[test]
fn the_largest_datagram_passes_both_ways() {
    for capabilities in CAPABILITIES {
        for (child, remote) in families(9) {
            // 65535 less the headers that the length field counts.
            let data = Random::new(12).bytes(if child.is_ipv4() { 65507 } else { 65527 });
            let mut h = Harness::scripted(config(), capabilities);
            for piece in frames::fragments(&udp(child, remote, &data), 1, 1408) {
                h.inject(&piece).unwrap();
            }
            assert!(h.host.take_sent()[0].payload == data);
            let flow = h.host.last_flow();
            h.datagram(flow, remote, &data, None).unwrap();
            // Each fits the MTU: the harness has checked. Fed back, they are the datagram again.
            let pieces: Vec<_> = h.child.received.drain(..).collect();
            assert!(pieces.len() > 40);
            let mut judge = crate::udp::reassembly::Reassembly::new(1 << 20, Duration::from_secs(30));
            let mut whole = None;
            for piece in pieces {
                let ethertype = if child.is_ipv4() { 0x0800 } else { 0x86dd };
                let ip = crate::packet::IpPacket::parse(&piece.bytes, ethertype).unwrap();
                let fragment = ip.fragment.unwrap();
                let key = crate::udp::reassembly::FragmentKey {
                    src: ip.src,
                    dst: ip.dst,
                    id: fragment.id,
                    protocol: ip.protocol,
                };
                let more = if fragment.more {
                    crate::udp::reassembly::MoreFragments::More
                } else {
                    crate::udp::reassembly::MoreFragments::Last
                };
                whole = judge.insert(h.now, key, fragment.offset, more, &piece.bytes[ip.transport]).unwrap();
            }
            let whole = whole.expect("all fragments");
            assert!(whole[8..] == data);
            let pseudo = crate::offload::checksum::pseudo_header_sum(
                remote.ip(),
                child.ip(),
                crate::packet::protocol::UDP,
                whole.len() as u32,
            );
            assert!(crate::offload::checksum::verify(&whole, pseudo));
        }
    }
}

#[test]
fn an_incomplete_datagram_is_given_up_and_counted() {
    let mut h = scripted();
    let (child, remote) = families(9)[0];
    let pieces = frames::fragments(&udp(child, remote, &[0; 3000]), 5, 1024);
    h.inject(&pieces[0]).unwrap();
    h.drive_for(Duration::from_secs(31));
    assert_eq!(h.stack.stats().drops(DropReason::ReassemblyTimeout), 1);
    assert!(h.inject(&pieces[1]).is_ok() && h.inject(&pieces[2]).is_ok());
    assert_eq!(h.host.take_sent(), []);
}

// Super-datagrams.

#[test]
fn super_datagrams_pass_both_ways() {
    for (child, remote) in families(9) {
        let mut h = scripted();
        let offload = Offload { checksum: Checksum::Partial, gso: Gso::Udp(1000) };
        h.inject_with(&udp(child, remote, &[3; 4500]), offload).unwrap();
        let sent = h.host.take_sent().remove(0);
        assert_eq!((sent.gso, sent.payload.len()), (Gso::Udp(1000), 4500));
        let flow = h.host.last_flow();
        h.datagram(flow, remote, &[4; 4500], Some(1000)).unwrap();
        let frame = h.child.received.pop_front().unwrap();
        assert_eq!(frame.offload, offload);
        assert_eq!(h.stack.stats().udp.packets_to_child, 5);
        // One that fits a single datagram is not a super-datagram.
        h.inject_with(&udp(child, remote, &[3; 900]), offload).unwrap();
        assert_eq!(h.host.take_sent()[0].gso, Gso::None);
    }
}

// Errors.

#[test]
fn errors_about_datagrams_reach_the_child_with_their_quote() {
    use DatagramErrorKind::*;
    let cases = [
        (PortUnreachable, [(3, 3), (1, 4)]),
        (HostUnreachable, [(3, 1), (1, 3)]),
        (NetUnreachable, [(3, 0), (1, 0)]),
        (Prohibited, [(3, 13), (1, 1)]),
        (TooBig(1300), [(3, 4), (2, 0)]),
        (TimeExceeded, [(11, 0), (3, 0)]),
    ];
    for (kind, told) in cases {
        for (family, (child, remote)) in families(9).into_iter().enumerate() {
            let mut h = scripted();
            h.inject(&udp(child, remote, b"question")).unwrap();
            let flow = h.host.last_flow();
            let router: IpAddr =
                if family == 0 { [203, 0, 113, 9].into() } else { "2001:db8::99".parse().unwrap() };
            for offender in [None, Some(router)] {
                h.datagram_error(flow, remote, DatagramError { offender, kind }, b"question");
                let Seen::Icmp { src, dst, kind: told_kind, body } = h.seen_one() else { panic!("{kind:?}") };
                assert_eq!(told_kind, told[family], "{kind:?}");
                let gateway = [IpAddr::from(frames::GATEWAY), IpAddr::from(frames::GATEWAY6)][family];
                assert_eq!((src, dst), (offender.unwrap_or(gateway), child.ip()));
                if let TooBig(mtu) = kind {
                    assert_eq!(u16::from_be_bytes([body[2], body[3]]), mtu as u16);
                }
                // The quote: an IP packet from child to remote with the ports and the payload.
                let ip_len = [20, 40][family];
                let quote = &body[4..];
                assert_eq!(quote[0] >> 4, [4, 6][family]);
                assert_eq!(quote[ip_len..ip_len + 2], child.port().to_be_bytes());
                assert_eq!(quote[ip_len + 2..ip_len + 4], remote.port().to_be_bytes());
                assert_eq!(&quote[ip_len + 8..], b"question");
            }
        }
    }
}

#[test]
fn an_expired_ttl_is_told_and_not_sent_on() {
    for (family, (child, remote)) in families(9).into_iter().enumerate() {
        for ttl in [0, 1] {
            let mut h = scripted();
            let frame = udp(child, remote, b"trace");
            let transport = &frame[[L4_V4, L4_V6][family]..];
            let frame = frames::ip_with_ttl(child.ip(), remote.ip(), 17, ttl, transport);
            assert_eq!(h.inject(&frame), Err(DropReason::TimeExceeded));
            let Seen::Icmp { src, kind, .. } = h.seen_one() else { panic!() };
            assert_eq!(kind, [(11, 0), (3, 0)][family]);
            assert!(src == IpAddr::from(frames::GATEWAY) || src == IpAddr::from(frames::GATEWAY6));
            assert_eq!(h.host.actions, []);
        }
    }
}

#[test]
fn errors_to_the_child_are_limited_in_rate() {
    let mut h = scripted();
    let (child, _) = families(9)[0];
    for n in 0..5000u16 {
        let _ = h.inject(&udp(child, socket(frames::DNS, 1000 + n), b"x"));
    }
    let told = h.seen().len();
    assert!((1..=1000).contains(&told), "{told} errors at one instant");
    assert_eq!(h.stack.stats().drops(DropReason::NoSuchService), 5000);
}

#[test]
fn what_is_sent_before_a_close_is_sent() {
    let limits = Limits { udp_bindings: 1, ..Limits::default() };
    let mut h = Harness::scripted(config().limits(limits), ALL_OFFLOADS);
    let (_, remote) = families(9)[0];
    for port in 1..50 {
        h.inject(&udp(socket(CHILD, port), remote, &port.to_be_bytes())).unwrap();
    }
    let sent: usize = h.host.datagram.values().map(|socket| socket.sent.len()).sum();
    assert_eq!(sent, 49);
    let opened = h.host.actions.iter().filter(|a| matches!(a, Action::OpenDatagram { .. })).count();
    let closed = h.host.actions.iter().filter(|a| matches!(a, Action::Close { .. })).count();
    assert_eq!((opened, closed), (49, 48));
}
