//! TCP segment by segment: what a child's kernel rarely does.

use super::*;
use crate::action::{Action, ConnectError, HostEvent};
use crate::error::DropReason;
use crate::flow::FlowId;
use crate::frame::{Checksum, Gso};
use crate::packet::Tcp;
use crate::testing::frames::{ENGINE_MAC, Seen, Segment};
use crate::testing::host::ConnectPlan;
use crate::testing::{Harness, config};
use crate::time::Duration;

const PSH: u8 = 0x08;

/// The child's end of a connection, played by hand.
pub(super) struct Peer {
    child: SocketAddr,
    remote: SocketAddr,
    pub(super) sequence: u32,
    pub(super) acknowledgement: u32,
    pub(super) flow: FlowId,
}

impl Peer {
    /// Opens a connection with an MSS of 1460 and no other options.
    #[track_caller]
    pub(super) fn open(h: &mut Harness, child: SocketAddr, remote: SocketAddr) -> Peer {
        h.inject(&Segment::syn(child, remote, 1460).frame()).unwrap();
        let syn_ack = h.seen_one().tcp();
        assert_eq!(syn_ack.flags, Tcp::SYN | Tcp::ACK);
        assert_eq!(syn_ack.acknowledgement, 1001);
        let peer = Peer {
            child,
            remote,
            sequence: 1001,
            acknowledgement: syn_ack.sequence.wrapping_add(1),
            flow: h.host.last_flow(),
        };
        h.inject(&peer.segment(Tcp::ACK, b"").frame()).unwrap();
        assert_eq!(h.seen(), []);
        peer
    }

    pub(super) fn segment(&self, flags: u8, payload: &[u8]) -> Segment {
        Segment {
            sequence: self.sequence,
            acknowledgement: self.acknowledgement,
            payload: payload.to_vec(),
            ..Segment::new(self.child, self.remote, flags)
        }
    }

    /// Sends payload and counts it as sent.
    pub(super) fn send(&mut self, h: &mut Harness, payload: &[u8]) {
        h.inject(&self.segment(Tcp::ACK | PSH, payload).frame()).unwrap();
        self.sequence = self.sequence.wrapping_add(payload.len() as u32);
    }
}

fn scripted() -> Harness {
    Harness::scripted(config(), ALL_OFFLOADS)
}

#[test]
fn builders_are_judged_by_another_parser() {
    for (child, remote) in families(80) {
        let syn = Segment::syn(child, remote, 1460).frame();
        let packet = etherparse::SlicedPacket::from_ethernet(&syn).unwrap();
        let Some(etherparse::TransportSlice::Tcp(tcp)) = packet.transport else { panic!() };
        assert!(tcp.syn() && !tcp.ack());
        let datagram = frames::udp(child, remote, b"x");
        let packet = etherparse::SlicedPacket::from_ethernet(&datagram).unwrap();
        assert!(matches!(packet.transport, Some(etherparse::TransportSlice::Udp(_))));
    }
}

// Connecting.

#[test]
fn failed_connects_are_told_as_what_they_are() {
    // ICMP and ICMPv6 type and code: RFC 792, RFC 1812 section 5.2.7.1, RFC 4443 section 3.1.
    let cases = [
        (ConnectError::HostUnreachable, Some([(3, 1), (1, 3)])),
        (ConnectError::NetUnreachable, Some([(3, 0), (1, 0)])),
        (ConnectError::Forbidden, Some([(3, 13), (1, 1)])),
        (ConnectError::TimedOut, None),
        (ConnectError::Resources, None),
    ];
    for (error, told) in cases {
        for (family, (child, remote)) in families(80).into_iter().enumerate() {
            let mut h = scripted();
            h.host.default_plan = ConnectPlan::Fail(error);
            let syn = Segment::syn(child, remote, 1460).frame();
            h.inject(&syn).unwrap();
            match told {
                None => assert_eq!(h.seen(), [], "{error:?}"),
                Some(kinds) => {
                    let Seen::Icmp { dst, kind, body, .. } = h.seen_one() else { panic!("{error:?}") };
                    assert_eq!((dst, kind), (child.ip(), kinds[family]), "{error:?}");
                    // The quote begins with an IP header, and names the ports and the sequence number.
                    let ip_len = if family == 0 { 20 } else { 40 };
                    let ports_and_sequence = &syn[14 + ip_len..14 + ip_len + 8];
                    assert_eq!(&body[4 + ip_len..4 + ip_len + 8], ports_and_sequence);
                }
            }
            assert_eq!(h.stack.flows().count(), 0, "{error:?}");
            assert_eq!(h.stack.stats().tcp_connect_failed, 1);
        }
    }
    let mut h = scripted();
    h.host.default_plan = ConnectPlan::Fail(ConnectError::Resources);
    let (child, remote) = families(80)[0];
    h.inject(&Segment::syn(child, remote, 1460).frame()).unwrap();
    assert_eq!(h.stack.stats().drops(DropReason::HostResources), 1);
}

#[test]
fn a_refusal_acknowledges_the_syn() {
    for (child, remote) in families(80) {
        let mut h = scripted();
        h.host.default_plan = ConnectPlan::Fail(ConnectError::Refused);
        h.inject(&Segment::syn(child, remote, 1460).frame()).unwrap();
        let rst = h.seen_one().tcp();
        assert_eq!(rst.flags, Tcp::RST | Tcp::ACK);
        assert_eq!(rst.acknowledgement, 1001);
    }
}

#[test]
fn a_repeated_syn_while_connecting_changes_nothing() {
    let mut h = scripted();
    h.host.default_plan = ConnectPlan::Hold;
    let (child, remote) = families(80)[0];
    let syn = Segment::syn(child, remote, 1460).frame();
    for _ in 0..3 {
        h.inject(&syn).unwrap();
    }
    assert_eq!(h.seen(), []);
    let connects = h.host.actions.iter().filter(|a| matches!(a, Action::Connect { .. })).count();
    assert_eq!(connects, 1);
    let flow = h.host.last_flow();
    h.host.finish_connect(flow, Ok(()));
    assert_eq!(h.seen_one().tcp().flags, Tcp::SYN | Tcp::ACK);
}

#[test]
fn a_reset_while_connecting_closes_the_host_socket_and_the_late_answer_is_ignored() {
    for (child, remote) in families(80) {
        let mut h = scripted();
        h.host.default_plan = ConnectPlan::Hold;
        h.inject(&Segment::syn(child, remote, 1460).frame()).unwrap();
        let flow = h.host.last_flow();
        let rst = Segment { sequence: 1001, ..Segment::new(child, remote, Tcp::RST) };
        h.inject(&rst.frame()).unwrap();
        assert_eq!(h.host.tcp(flow).closed, Some(true));
        assert_eq!(h.stack.flows().count(), 0);
        h.host.report(flow, HostEvent::Connected);
        assert_eq!(h.seen(), []);
        // The half-open place is free again.
        h.host.default_plan = ConnectPlan::Accept;
        Peer::open(&mut h, child, remote);
    }
}

#[test]
fn the_mss_of_the_answer_is_what_the_link_carries() {
    for capabilities in CAPABILITIES {
        for mtu in [1280, 1500, 9000, 65520] {
            for (family, (child, remote)) in families(80).into_iter().enumerate() {
                let mut h = Harness::scripted(config().mtu(mtu), capabilities);
                h.inject(&Segment::syn(child, remote, 65000).frame()).unwrap();
                let Seen::Tcp(_, mss) = h.seen_one() else { panic!() };
                assert_eq!(mss, Some(mtu - [40, 60][family]));
            }
        }
    }
}

#[test]
fn data_in_a_syn_is_not_lost() {
    let mut h = scripted();
    let (child, remote) = families(80)[0];
    let syn = Segment { payload: b"early".to_vec(), ..Segment::syn(child, remote, 1460) };
    h.inject(&syn.frame()).unwrap();
    let syn_ack = h.seen_one().tcp();
    // Not acknowledged, so the child repeats it.
    assert_eq!(syn_ack.acknowledgement, 1001);
    let acknowledgement = syn_ack.sequence.wrapping_add(1);
    let flow = h.host.last_flow();
    let mut peer = Peer { child, remote, sequence: 1001, acknowledgement, flow };
    peer.send(&mut h, b"early");
    assert_eq!(h.host.tcp(flow).received, b"early");
}

#[test]
fn an_unfinished_handshake_is_given_up() {
    let mut h = scripted();
    let (child, remote) = families(80)[0];
    h.inject(&Segment::syn(child, remote, 1460).frame()).unwrap();
    let flow = h.host.last_flow();
    h.drive_for(Duration::from_secs(120));
    assert_eq!(h.stack.flows().count(), 0);
    assert_eq!(h.host.tcp(flow).closed, Some(true));
}

#[test]
fn port_zero_is_no_port() {
    for (child, remote) in families(80) {
        let mut h = scripted();
        for (src, dst) in [(child, socket(remote.ip(), 0)), (socket(child.ip(), 0), remote)] {
            assert_eq!(h.inject(&Segment::syn(src, dst, 1460).frame()), Err(DropReason::Malformed));
            assert_eq!(h.inject(&Segment::new(src, dst, Tcp::ACK).frame()), Err(DropReason::Malformed));
        }
        assert_eq!(h.seen(), []);
        assert_eq!(h.stack.flows().count(), 0);
    }
}

// Segments of no flow.

#[test]
fn a_segment_of_no_flow_is_reset_and_a_reset_is_not() {
    for (child, remote) in families(80) {
        let mut h = scripted();
        let stray = Segment { acknowledgement: 777, ..Segment::new(child, remote, Tcp::ACK) };
        assert_eq!(h.inject(&stray.frame()), Err(DropReason::NoFlow));
        let rst = h.seen_one().tcp();
        assert_eq!((rst.flags, rst.sequence), (Tcp::RST, 777));
        let stray = Segment::new(child, remote, Tcp::RST);
        assert_eq!(h.inject(&stray.frame()), Err(DropReason::NoFlow));
        assert_eq!(h.seen(), []);
        for flags in [Tcp::SYN | Tcp::FIN, Tcp::SYN | Tcp::RST, 0, 0x3f] {
            let odd = Segment::new(child, remote, flags);
            assert_eq!(h.inject(&odd.frame()), Err(DropReason::NoFlow));
        }
        assert_eq!(h.stack.flows().count(), 0);
    }
}

// Acknowledgements.

#[test]
fn a_full_sized_segment_is_acknowledged_at_once() {
    for (child, remote) in families(80) {
        let mut h = scripted();
        let mut peer = Peer::open(&mut h, child, remote);
        peer.send(&mut h, &[0; 20_000]);
        assert_eq!(h.seen_one().tcp().acknowledgement, peer.sequence);
    }
}

#[test]
fn a_small_segment_is_acknowledged_late() {
    let mut h = scripted();
    let (child, remote) = families(80)[0];
    let mut peer = Peer::open(&mut h, child, remote);
    peer.send(&mut h, b"tick");
    assert_eq!(h.seen(), []);
    h.drive();
    let ack = h.seen_one().tcp();
    assert_eq!((ack.acknowledgement, ack.payload.len()), (peer.sequence, 0));
}

#[test]
fn an_answer_carries_the_acknowledgement() {
    let mut h = scripted();
    h.host.echo = true;
    let (child, remote) = families(80)[0];
    let mut peer = Peer::open(&mut h, child, remote);
    peer.send(&mut h, b"tick");
    let answer = h.seen_one().tcp();
    assert_eq!((answer.acknowledgement, answer.payload.as_slice()), (peer.sequence, &b"tick"[..]));
    h.drive();
    // Unacknowledged, it may be sent again, but no separate ACK was.
    assert!(h.seen().iter().all(|seen| matches!(seen, Seen::Tcp(s, _) if !s.payload.is_empty())));
}

#[test]
fn urgent_data_stays_in_the_stream() {
    let mut h = scripted();
    let (child, remote) = families(80)[0];
    let mut peer = Peer::open(&mut h, child, remote);
    for urgent in [0, 1, 3, 5, 9000, u16::MAX] {
        let segment = Segment { urgent, ..peer.segment(Tcp::ACK | Tcp::URG, b"abc") };
        h.inject(&segment.frame()).unwrap();
        peer.sequence += 3;
    }
    assert_eq!(h.host.tcp(peer.flow).received, b"abc".repeat(6));
}

#[test]
fn a_segment_that_comes_twice_or_late_is_written_once() {
    let mut h = scripted();
    let (child, remote) = families(80)[0];
    let peer = Peer::open(&mut h, child, remote);
    let at = |offset: u32, payload: &[u8]| {
        let segment = peer.segment(Tcp::ACK, payload);
        Segment { sequence: segment.sequence.wrapping_add(offset), ..segment }.frame()
    };
    h.inject(&at(3, b"def")).unwrap();
    assert_eq!(h.host.tcp(peer.flow).received, b"");
    h.inject(&at(0, b"abc")).unwrap();
    h.inject(&at(0, b"abc")).unwrap();
    h.inject(&at(2, b"cdefgh")).unwrap();
    assert_eq!(h.host.tcp(peer.flow).received, b"abcdefgh");
}

// Closing.

#[test]
fn the_last_ack_is_sent_before_the_flow_is_forgotten() {
    for (child, remote) in families(80) {
        let mut h = scripted();
        let mut peer = Peer::open(&mut h, child, remote);
        h.host.finish(peer.flow);
        let fin = h.seen_one().tcp();
        assert_eq!(fin.flags & Tcp::FIN, Tcp::FIN);
        peer.acknowledgement += 1;
        h.inject(&peer.segment(Tcp::ACK, b"").frame()).unwrap();
        assert_eq!(h.seen(), []);
        h.inject(&peer.segment(Tcp::FIN | Tcp::ACK, b"").frame()).unwrap();
        let last = h.seen_one().tcp();
        assert_eq!((last.flags, last.acknowledgement), (Tcp::ACK, peer.sequence + 1));
        assert_eq!(h.host.tcp(peer.flow).closed, Some(false));
        assert_eq!(h.stack.flows().count(), 0);
    }
}

#[test]
fn the_last_ack_is_sent_where_data_came_with_the_fin() {
    let mut h = scripted();
    let (child, remote) = families(80)[0];
    let mut peer = Peer::open(&mut h, child, remote);
    h.host.finish(peer.flow);
    h.seen_one();
    peer.acknowledgement += 1;
    h.inject(&peer.segment(Tcp::FIN | Tcp::ACK, b"bye").frame()).unwrap();
    let last = h.seen_one().tcp();
    assert_eq!((last.flags, last.acknowledgement), (Tcp::ACK, peer.sequence + 4));
    assert_eq!(h.host.tcp(peer.flow).received, b"bye");
    assert_eq!(h.host.tcp(peer.flow).closed, Some(false));
}

#[test]
fn the_last_ack_is_sent_where_the_acknowledgement_of_data_was_delayed() {
    let mut h = scripted();
    let (child, remote) = families(80)[0];
    let mut peer = Peer::open(&mut h, child, remote);
    h.host.finish(peer.flow);
    h.seen_one();
    peer.acknowledgement += 1;
    peer.send(&mut h, b"bye");
    assert_eq!(h.seen(), []);
    h.inject(&peer.segment(Tcp::FIN | Tcp::ACK, b"").frame()).unwrap();
    assert_eq!(h.seen_one().tcp().acknowledgement, peer.sequence + 1);
    assert_eq!(h.host.tcp(peer.flow).closed, Some(false));
}

#[test]
fn a_reset_of_the_host_is_a_reset_with_the_right_numbers() {
    for (child, remote) in families(80) {
        let mut h = scripted();
        let peer = Peer::open(&mut h, child, remote);
        h.host.reset(peer.flow);
        let rst = h.seen_one().tcp();
        assert_eq!(rst.flags & Tcp::RST, Tcp::RST);
        assert_eq!(rst.sequence, peer.acknowledgement);
    }
}

// Frames to the child.

#[test]
fn with_offloads_data_travels_in_super_segments() {
    for (child, remote) in families(80) {
        let mut h = scripted();
        let syn = Segment {
            options: vec![2, 4, 5, 0xb4, 1, 3, 3, 10],
            window: u16::MAX,
            ..Segment::syn(child, remote, 1460)
        };
        h.inject(&syn.frame()).unwrap();
        let syn_ack = h.seen_one().tcp();
        let acknowledgement = syn_ack.sequence.wrapping_add(1);
        let flow = h.host.last_flow();
        let peer = Peer { child, remote, sequence: 1001, acknowledgement, flow };
        h.inject(&peer.segment(Tcp::ACK, b"").frame()).unwrap();
        h.host.send(flow, &[7; 100_000]);
        h.settle();
        // Checks of lengths and checksums are the harness's own.
        let mss = if child.is_ipv4() { 1460 } else { 1440 };
        let gso = |frame: &crate::testing::link::InFlight| frame.offload.gso == Gso::Tcp(mss);
        assert!(h.child.received.iter().any(gso), "no super-segment: {:?}", h.child.received.len());
        let partial = |f: &crate::testing::link::InFlight| f.offload.checksum == Checksum::Partial;
        assert!(h.child.received.iter().all(partial));
        assert!(
            h.child
                .received
                .iter()
                .all(|f| f.bytes[..6] == frames::CHILD_MAC && f.bytes[6..12] == ENGINE_MAC)
        );
    }
}

#[test]
fn a_small_mss_of_the_child_is_kept_to() {
    for capabilities in CAPABILITIES {
        let mut h = Harness::scripted(config(), capabilities);
        let (child, remote) = families(80)[0];
        h.inject(&Segment::syn(child, remote, 600).frame()).unwrap();
        let syn_ack = h.seen_one().tcp();
        let acknowledgement = syn_ack.sequence.wrapping_add(1);
        let peer = Peer { child, remote, sequence: 1001, acknowledgement, flow: h.host.last_flow() };
        h.inject(&peer.segment(Tcp::ACK, b"").frame()).unwrap();
        h.host.send(peer.flow, &[1; 5000]);
        h.settle();
        for frame in h.child.received.drain(..) {
            let payload = Seen::read(&frame.bytes).tcp().payload.len();
            match frame.offload.gso {
                Gso::None => assert!(payload <= 600),
                gso => assert_eq!(gso, Gso::Tcp(600)),
            }
        }
    }
}

#[test]
fn frames_go_where_the_child_was_last_seen() {
    let mut h = scripted();
    let (child, remote) = families(80)[0];
    let peer = Peer::open(&mut h, child, remote);
    let mut moved = peer.segment(Tcp::ACK, b"here now").frame();
    moved[6..12].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
    h.inject(&moved).unwrap();
    h.host.send(peer.flow, b"ok");
    h.settle();
    assert_eq!(h.child.received.pop_front().unwrap().bytes[..6], [2, 9, 9, 9, 9, 9]);
}

#[test]
fn lost_data_is_sent_again() {
    for (child, remote) in families(80) {
        let mut h = scripted();
        let peer = Peer::open(&mut h, child, remote);
        h.host.send(peer.flow, b"precious");
        let first = h.seen_one().tcp();
        h.drive_for(Duration::from_secs(2));
        let again = h.seen().remove(0).tcp();
        assert_eq!((first.sequence, first.payload), (again.sequence, again.payload));
    }
}

/// IPv6 extension headers before TCP are legal (RFC 8200 section 4); smoltcp does not know all of them.
#[test]
fn ipv6_extension_headers_before_tcp_are_read_over() {
    let (child, remote) = families(80)[1];
    // Destination options, routing (no segments left), hop-by-hop: a pad option of four bytes each.
    for header in [60, 43, 0] {
        let mut h = scripted();
        let plain = Segment::syn(child, remote, 1440).frame();
        let mut payload = vec![6, 0, 1, 4, 0, 0, 0, 0];
        payload.extend_from_slice(&plain[frames::L4_V6..]);
        let frame = frames::ip(child.ip(), remote.ip(), header, &payload);
        h.inject(&frame).unwrap();
        assert_eq!(h.seen_one().tcp().flags, Tcp::SYN | Tcp::ACK, "header {header}");
        // Nor is a stray one answered by anything but a RST.
        let stray = Segment { dst: socket(WORLD6, 81), ..Segment::new(child, remote, Tcp::ACK) }.frame();
        let mut payload = vec![6, 0, 1, 4, 0, 0, 0, 0];
        payload.extend_from_slice(&stray[frames::L4_V6..]);
        let frame = frames::ip(child.ip(), remote.ip(), header, &payload);
        assert_eq!(h.inject(&frame), Err(DropReason::NoFlow));
        assert_eq!(h.seen_one().tcp().flags, Tcp::RST);
    }
}

#[test]
fn tcp_fragments_are_reassembled() {
    for (child, remote) in families(80) {
        let mut h = scripted();
        let mut peer = Peer::open(&mut h, child, remote);
        let data = crate::testing::link::Random::new(5).bytes(4000);
        for fragment in frames::fragments(&peer.segment(Tcp::ACK, &data).frame(), 9, 1024) {
            h.inject(&fragment).unwrap();
        }
        peer.sequence += 4000;
        assert_eq!(h.host.tcp(peer.flow).received, data);
    }
}
