//! An overlay's port, shared with the host.

use super::*;
use crate::action::{DatagramError, DatagramErrorKind};
use crate::config::{Limits, OverlayConfig};
use crate::error::{ConfigError, DropReason};
use crate::frame::{Checksum, Gso, TunnelGso};
use crate::offload::{IpVersion, Transport, vnet_hdr};
use crate::packet::MAX_HEADERS;
use crate::stack::{Datagram, ToChild};
use crate::testing::frames::{CHILD_MAC, L4_V4, Seen};
use crate::testing::{Harness, config};
use crate::time::Duration;

const PORT: u16 = 8472;

fn overlay(peers: &[&str]) -> Option<OverlayConfig> {
    let peers = peers.iter().map(|peer| peer.parse().unwrap()).collect();
    Some(OverlayConfig { port: PORT, peers })
}

fn scripted(peers: &[&str]) -> Harness {
    Harness::scripted(config().overlay(overlay(peers)), ALL_OFFLOADS)
}

/// Child and peer, with a source port per inner flow.
fn ends(flow: u16) -> [(SocketAddr, SocketAddr); 2] {
    families(PORT).map(|(child, peer)| (SocketAddr::new(child.ip(), 32_768 + flow), peer))
}

#[test]
fn thousands_of_one_way_flows_share_one_socket_per_family() {
    let mut h = scripted(&[]);
    let sockets = h.host.datagram.len();
    for flow in 0..3000 {
        for (child, peer) in ends(flow) {
            h.inject(&frames::udp(child, peer, b"inner")).unwrap();
        }
    }
    assert_eq!(h.host.take_sent().len(), 6000);
    assert_eq!(h.host.datagram.len(), sockets, "no socket was opened");
    let flows: Vec<_> = h.stack.flows().map(|flow| (flow.key.child.port(), flow.bytes_from_child)).collect();
    assert_eq!(flows, [(PORT, 15_000); 2], "and no flow");
    let due = h.stack.poll_timeout();
    assert!(due.is_none_or(|at| at > h.now + Duration::from_secs(1)), "and no timer");
    let mut peers: Vec<_> = h.stack.overlay_peers().collect();
    peers.sort_by_key(|peer| peer.address);
    assert_eq!(
        peers.iter().map(|peer| peer.address).collect::<Vec<_>>(),
        [IpAddr::from(WORLD), WORLD6.into()]
    );
    let traffic = peers[0].traffic;
    assert_eq!((traffic.packets_from_child, traffic.bytes_from_child), (3000, 15_000));
    assert_eq!(h.stack.stats().overlay.packets_from_child, 6000);
    assert_eq!(h.stack.stats().udp.packets_from_child, 6000);
}

#[test]
fn dont_fragment_stays_behind_and_other_ports_are_bindings() {
    let mut h = scripted(&[]);
    let (child, peer) = ends(0)[0];
    let mut frame = frames::udp(child, peer, b"inner");
    frame[frames::IP + 6] = 0x40;
    frames::complete_ipv4(&mut frame);
    h.inject(&frame).unwrap();
    assert!(!h.host.take_sent()[0].hop.dont_fragment);
    let before = h.host.datagram.len();
    h.inject(&frames::udp(child, SocketAddr::new(peer.ip(), 4789), b"x")).unwrap();
    assert_eq!(h.host.datagram.len(), before + 1);
}

#[test]
fn a_wrong_outer_checksum_goes_nowhere() {
    let mut h = scripted(&[]);
    let (child, peer) = ends(0)[0];
    let mut frame = frames::udp(child, peer, b"inner");
    *frame.last_mut().unwrap() ^= 1;
    assert_eq!(h.inject(&frame), Err(DropReason::BadChecksum));
    // None at all is what tunnels over IPv4 have.
    frame[L4_V4 + 6..L4_V4 + 8].fill(0);
    h.inject(&frame).unwrap();
    assert_eq!(h.host.take_sent().len(), 1);
}

#[test]
fn a_listed_peer_reaches_the_child_at_its_own_address() {
    for capabilities in CAPABILITIES {
        for (child, peer) in ends(0) {
            let lists = overlay(&["198.51.100.0/24", "2001:db8::7"]);
            let mut h = Harness::scripted(config().overlay(lists), capabilities);
            h.stack.learn_neighbor(child.ip(), CHILD_MAC);
            let from = SocketAddr::new(peer.ip(), 55_555);
            h.overlay_datagram(from, b"inner").unwrap();
            let to = SocketAddr::new(child.ip(), PORT);
            assert_eq!(h.seen_one(), Seen::Udp { src: from, dst: to, payload: b"inner".to_vec() });
            let listed = h.stack.overlay_peers().next().unwrap();
            assert_eq!((listed.address, listed.traffic.packets_to_child), (peer.ip(), 1));
        }
    }
}

#[test]
fn strangers_are_dropped_and_counted() {
    for (lists, stranger) in [(vec!["192.0.2.0/24"], WORLD.into()), (vec![], IpAddr::from(WORLD6))] {
        let mut h = scripted(&lists);
        let from = SocketAddr::new(stranger, PORT);
        assert_eq!(h.overlay_datagram(from, b"inner"), Err(DropReason::OverlayStranger));
        assert!(h.seen().is_empty());
        assert_eq!(h.stack.stats().drops(DropReason::OverlayStranger), 1);
        assert_eq!(h.stack.overlay_stranger(), Some(stranger));
        assert_eq!(h.stack.overlay_peers().count(), 0, "nobody is remembered for it");
    }
}

#[test]
fn without_a_list_the_peers_are_those_that_the_child_sends_to() {
    for (child, peer) in ends(0) {
        let mut h = scripted(&[]);
        h.stack.learn_neighbor(child.ip(), CHILD_MAC);
        assert_eq!(h.overlay_datagram(peer, b"early"), Err(DropReason::OverlayStranger));
        h.inject(&frames::udp(child, peer, b"x")).unwrap();
        h.overlay_datagram(peer, b"answer").unwrap();
        assert!(matches!(h.seen_one(), Seen::Udp { payload, .. } if payload == b"answer"));
    }
}

#[test]
fn the_list_changes_while_datagrams_flow() {
    let (child, peer) = ends(0)[0];
    let mut h = scripted(&["192.0.2.1"]);
    h.stack.learn_neighbor(child.ip(), CHILD_MAC);
    h.inject(&frames::udp(child, peer, b"x")).unwrap();
    assert_eq!(h.overlay_datagram(peer, b"x"), Err(DropReason::OverlayStranger), "sending is not enough");
    let net = "198.51.100.0/24".parse().unwrap();
    assert_eq!(h.stack.allow_overlay_peers(net), Ok(true));
    assert_eq!(h.stack.allow_overlay_peers(net), Ok(false));
    h.overlay_datagram(peer, b"x").unwrap();
    assert!(h.stack.forbid_overlay_peers(net));
    assert!(!h.stack.forbid_overlay_peers(net));
    assert_eq!(h.overlay_datagram(peer, b"x"), Err(DropReason::OverlayStranger));
    let mut none = Harness::scripted(config(), ALL_OFFLOADS);
    assert_eq!(none.stack.allow_overlay_peers(net), Err(ConfigError::NoOverlay));
}

#[test]
fn rules_are_asked_before_anything_leaves() {
    let (child, peer) = ends(0)[0];
    let policy = "deny udp 198.51.100.0/24:8472".parse().unwrap();
    let mut h = Harness::scripted(config().overlay(overlay(&[])).policy(policy), ALL_OFFLOADS);
    assert_eq!(h.inject(&frames::udp(child, peer, b"x")), Err(DropReason::PolicyRefused));
    assert!(h.host.take_sent().is_empty());
    assert_eq!(h.overlay_datagram(peer, b"x"), Err(DropReason::OverlayStranger), "it was not sent to");
}

#[test]
fn the_longest_idle_peer_makes_room() {
    let limits = Limits { overlay_peers: 2, ..Limits::default() };
    let mut h = Harness::scripted(config().overlay(overlay(&[])).limits(limits), ALL_OFFLOADS);
    let peer = |n: u8| socket([198, 51, 100, n], PORT);
    let child = socket(CHILD, 40_000);
    for n in [1, 2, 1, 3] {
        h.inject(&frames::udp(child, peer(n), b"x")).unwrap();
        h.drive_for(Duration::from_secs(2));
    }
    let mut left: Vec<_> = h.stack.overlay_peers().map(|peer| peer.address).collect();
    left.sort_unstable();
    assert_eq!(left, [peer(1).ip(), peer(3).ip()]);
    assert_eq!(h.stack.overlay_session(h.now, peer(2)), Err(DropReason::OverlayStranger));
    assert!(h.stack.overlay_session(h.now, peer(3)).is_ok());
}

#[test]
fn a_path_that_is_too_narrow_is_told_with_the_tunnels_port() {
    let mut h = scripted(&[]);
    let (child, peer) = ends(7)[0];
    h.inject(&frames::udp(child, peer, b"x")).unwrap();
    let flow = h.stack.overlay_flow(IpVersion::V4).unwrap();
    let error = DatagramError { offender: None, kind: DatagramErrorKind::TooBig(1400) };
    h.datagram_error(flow, peer, error, b"quoted");
    let Seen::Icmp { kind, body, .. } = h.seen_one() else { panic!("no ICMP") };
    assert_eq!((kind, &body[2..4]), ((3, 4), &1400u16.to_be_bytes()[..]));
    let quoted = &body[4..];
    assert_eq!(quoted[16..20], [198, 51, 100, 7], "about the peer");
    assert_eq!(quoted[22..24], PORT.to_be_bytes());
}

#[test]
fn a_super_segment_of_the_child_is_counted_by_segments_and_cut_by_the_host() {
    let (child, peer) = ends(0)[0];
    let mut h = scripted(&[]);
    let inner = crate::offload::tests::tcp4(&[7; 2500]);
    let payload = [&[8, 0, 0, 0, 0, 0, 1, 0][..], &inner].concat();
    let frame = frames::udp(child, peer, &payload);
    let start = (L4_V4 + 8) as u16;
    let gso = TunnelGso {
        payload: start,
        inner_l3: start + 22,
        inner_l4: start + 42,
        header_len: start + 74,
        transport: Transport::Tcp,
        size: 1000,
    };
    h.inject_with(&frame, Offload { checksum: Checksum::Partial, gso: Gso::Tunnel(gso) }).unwrap();
    let sent = h.host.take_sent();
    assert_eq!((sent.len(), sent[0].gso, &sent[0].payload), (1, Gso::Tunnel(gso), &payload));
    assert_eq!(h.stack.overlay_peers().next().unwrap().traffic.packets_from_child, 3);
}

#[test]
fn a_joined_super_segment_reaches_the_child_with_headers_that_its_kernel_accepts() {
    for (version, (child, peer)) in [IpVersion::V4, IpVersion::V6].into_iter().zip(ends(0)) {
        let mut h = scripted(&[]);
        h.inject(&frames::udp(child, peer, b"x")).unwrap();
        let inner = crate::offload::tests::tcp4(&[7; 2500]);
        let payload = [&[8, 0, 0, 0, 0, 0, 1, 0][..], &inner].concat();
        let gso = TunnelGso {
            payload: 0,
            inner_l3: 22,
            inner_l4: 42,
            header_len: 74,
            transport: Transport::Tcp,
            size: 1000,
        };
        let mut headers = [0; MAX_HEADERS];
        let session = h.stack.overlay_session(h.now, peer).unwrap();
        let datagram = Datagram { from: peer, payload: &[], total: payload.len(), gso: Gso::Tunnel(gso) };
        let taken = h.stack.handle_datagram(h.now, session.flow, datagram, &mut headers);
        let Ok(ToChild::Frame { start, offload }) = taken else { panic!("{taken:?}") };
        let Gso::Tunnel(gso) = offload.gso else { panic!("{offload:?}") };
        let mut frame = [&headers[start..], &payload].concat();
        let vnet = vnet_hdr::emit_tunnel(gso, IpVersion::V4, version);
        assert_eq!(vnet_hdr::accept_tunnel(&vnet, &mut frame), Ok(offload));
        assert_eq!(h.stack.overlay_peers().next().unwrap().traffic.packets_to_child, 3);
    }
}
