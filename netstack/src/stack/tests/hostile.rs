//! Malformed frames at each layer: the exact reason, its counter, and nothing said or done.

use super::*;
use crate::config::Limits;
use crate::error::DropReason;
use crate::packet::Tcp;
use crate::testing::frames::{IP, L4_V4, Segment, complete_ipv4};
use crate::testing::{Harness, config};

#[track_caller]
fn dropped(frame: &[u8], reason: DropReason) {
    let mut h = Harness::scripted(config(), ALL_OFFLOADS);
    assert_eq!(h.inject(frame), Err(reason), "{frame:02x?}");
    let counted: Vec<_> = h.stack.stats().all_drops().collect();
    assert_eq!(counted, [(reason, 1)]);
    assert_eq!(h.host.actions, []);
    assert_eq!(h.stack.flows().count(), 0);
}

fn udp4() -> Vec<u8> {
    let (child, remote) = families(9)[0];
    frames::udp(child, remote, b"payload")
}

fn udp6() -> Vec<u8> {
    let (child, remote) = families(9)[1];
    frames::udp(child, remote, b"payload")
}

fn syn4() -> Vec<u8> {
    let (child, remote) = families(9)[0];
    Segment::syn(child, remote, 1460).frame()
}

fn with(mut frame: Vec<u8>, edit: impl FnOnce(&mut [u8])) -> Vec<u8> {
    edit(&mut frame);
    if frame[12..14] == [0x08, 0x00] && frame[IP] >> 4 == 4 && frame[IP] & 15 >= 5 {
        complete_ipv4(&mut frame);
    }
    frame
}

#[test]
fn ethernet() {
    for len in 0..14 {
        dropped(&udp4()[..len], DropReason::Truncated);
    }
    for ethertype in [[0x81, 0x00], [0x88, 0xcc], [0, 46]] {
        dropped(&with(udp4(), |f| f[12..14].copy_from_slice(&ethertype)), DropReason::UnknownEtherType);
    }
}

#[test]
fn ipv4() {
    let frame = udp4();
    for len in 14..frame.len() {
        dropped(&frame[..len], DropReason::Truncated);
    }
    dropped(&with(udp4(), |f| f[IP] = 0x65), DropReason::Malformed);
    dropped(&with(udp4(), |f| f[IP] = 0x44), DropReason::Malformed);
    dropped(&with(udp4(), |f| f[IP + 3] = 19), DropReason::Malformed);
    let mut spoilt = udp4();
    spoilt[IP + 10] ^= 1;
    dropped(&spoilt, DropReason::BadChecksum);
    let mut long_header = udp4();
    long_header[IP] = 0x4f;
    dropped(&long_header, DropReason::Malformed);
}

#[test]
fn ipv6() {
    let frame = udp6();
    for len in 14..frame.len() {
        dropped(&frame[..len], DropReason::Truncated);
    }
    dropped(&with(udp6(), |f| f[IP] = 0x40), DropReason::Malformed);
    // A chain of extension headers that runs out of the packet.
    dropped(&with(udp6(), |f| f[IP + 6] = 60), DropReason::Truncated);
    dropped(&with(udp6(), |f| f[IP + 6] = 43), DropReason::Truncated);
    let (child, remote) = families(9)[1];
    let twice = [44, 0, 0, 0, 0, 0, 0, 1, 17, 0, 0, 0, 0, 0, 0, 1];
    dropped(&frames::ip(child.ip(), remote.ip(), 44, &twice), DropReason::Malformed);
    let mut long_chain = Vec::new();
    for _ in 0..1000 {
        long_chain.extend_from_slice(&[60, 0, 1, 4, 0, 0, 0, 0]);
    }
    dropped(&frames::ip(child.ip(), remote.ip(), 60, &long_chain), DropReason::Truncated);
}

#[test]
fn sources() {
    let remote = socket(WORLD, 9);
    for src in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4], [10, 0, 42, 255], [10, 0, 42, 2]] {
        let src = socket(src, 9);
        dropped(&frames::udp(src, remote, b"x"), DropReason::InvalidSource);
        dropped(&Segment::syn(src, remote, 1460).frame(), DropReason::InvalidSource);
        dropped(&frames::echo_request(src.ip(), remote.ip(), 1, 1, b""), DropReason::InvalidSource);
        let fragment = frames::fragments(&frames::udp(src, remote, &[0; 64]), 1, 32).remove(0);
        dropped(&fragment, DropReason::InvalidSource);
    }
    let remote = socket(WORLD6, 9);
    for src in ["::", "::1", "ff02::1", "fd42:10:42::2", "fd42:10:42::3"] {
        let src = socket(src.parse::<std::net::Ipv6Addr>().unwrap(), 9);
        dropped(&frames::udp(src, remote, b"x"), DropReason::InvalidSource);
        dropped(&Segment::syn(src, remote, 1460).frame(), DropReason::InvalidSource);
    }
}

#[test]
fn transports() {
    let (child, remote) = families(9)[0];
    let short = |protocol, bytes: &[u8]| frames::ip(child.ip(), remote.ip(), protocol, bytes);
    // What is too short to have a checksum has a bad one.
    dropped(&short(6, &[]), DropReason::BadChecksum);
    dropped(&short(17, &[0; 7]), DropReason::Truncated);
    dropped(&with(udp4(), |f| f[L4_V4 + 5] = 7), DropReason::Malformed);
    dropped(&with(udp4(), |f| f[L4_V4 + 5] = 200), DropReason::Truncated);
    dropped(&with(udp4(), |f| f[L4_V4 + 9] ^= 1), DropReason::BadChecksum);
    dropped(&with(syn4(), |f| f[L4_V4 + 16] ^= 1), DropReason::BadChecksum);
    dropped(&frames::icmp(child.ip(), remote.ip(), 64, &[8, 0, 0, 0, 0]), DropReason::Truncated);
    for protocol in [2, 41, 47, 50, 132] {
        dropped(&short(protocol, &[0; 40]), DropReason::UnknownProtocol);
    }
}

#[test]
fn tcp_headers() {
    let (child, remote) = families(9)[0];
    let segment = |offset: u8, options: &[u8]| {
        let mut frame =
            Segment { options: options.to_vec(), ..Segment::new(child, remote, Tcp::SYN) }.frame();
        frame[L4_V4 + 12] = offset << 4;
        let transport = L4_V4..frame.len();
        frame[L4_V4 + 16..L4_V4 + 18].fill(0);
        let len = transport.len() as u32;
        let pseudo = crate::offload::checksum::pseudo_header_sum(child.ip(), remote.ip(), 6, len);
        let sum = crate::offload::checksum::checksum(&frame[transport], pseudo);
        frame[L4_V4 + 16..L4_V4 + 18].copy_from_slice(&sum.to_be_bytes());
        frame
    };
    dropped(&segment(4, &[]), DropReason::Malformed);
    dropped(&segment(0, &[]), DropReason::Malformed);
    dropped(&segment(6, &[]), DropReason::Truncated);
    dropped(&segment(15, &[0; 8]), DropReason::Truncated);
    // Options that contradict themselves.
    for options in [[2, 0, 0, 0], [2, 1, 0, 0], [2, 40, 0, 0], [3, 255, 0, 0]] {
        dropped(&segment(6, &options), DropReason::Malformed);
    }
}

#[test]
fn ipv4_options_are_read_over() {
    let (child, remote) = families(9)[0];
    for frame in [syn4(), udp4(), frames::echo_request(child.ip(), remote.ip(), 1, 1, b"")] {
        let mut h = Harness::scripted(config(), ALL_OFFLOADS);
        // Router alert and three no-operations.
        let mut long = frame[..L4_V4].to_vec();
        long.extend_from_slice(&[0x94, 4, 0, 0, 1, 1, 1, 0]);
        long.extend_from_slice(&frame[L4_V4..]);
        long[IP] = 0x47;
        let total = (long.len() - IP) as u16;
        long[IP + 2..IP + 4].copy_from_slice(&total.to_be_bytes());
        complete_ipv4(&mut long);
        h.inject(&long).unwrap();
        assert!(!h.host.actions.is_empty());
    }
}

#[test]
fn fragments() {
    let (child, remote) = families(9)[0];
    let whole = frames::udp(child, remote, &[7; 2000]);
    let mut h = Harness::scripted(config(), ALL_OFFLOADS);
    let pieces = frames::fragments(&whole, 1, 512);
    h.inject(&pieces[0]).unwrap();
    // Overlap (RFC 5722), and beyond 65535 bytes.
    let overlapping = with(pieces[1].clone(), |f| f[IP + 7] -= 1);
    assert_eq!(h.inject(&overlapping), Err(DropReason::BadFragment));
    let beyond = with(pieces[1].clone(), |f| f[IP + 6..IP + 8].copy_from_slice(&0x1fff_u16.to_be_bytes()));
    assert_eq!(h.inject(&beyond), Err(DropReason::BadFragment));
}

#[test]
fn reassembly_memory_is_bounded() {
    let limits = Limits { reassembly_bytes: 1 << 16, ..Limits::default() };
    let mut h = Harness::scripted(config().limits(limits), ALL_OFFLOADS);
    let (child, remote) = families(9)[0];
    let first = frames::fragments(&frames::udp(child, remote, &[7; 2800]), 1, 1400).remove(0);
    for id in 0..1000u16 {
        let frame = with(first.clone(), |f| f[IP + 4..IP + 6].copy_from_slice(&id.to_be_bytes()));
        let _ = h.inject(&frame);
    }
    assert!(h.stack.stats().drops(DropReason::ReassemblyFull) > 900);
    // A whole datagram still passes.
    for piece in frames::fragments(&frames::udp(child, remote, &[7; 2800]), 5000, 1400) {
        let _ = h.inject(&piece);
    }
    assert_eq!(h.host.take_sent().len(), 1);
}

#[test]
fn every_single_byte_may_be_anything() {
    let [(child, remote), (child6, remote6)] = families(53);
    let mut samples = vec![
        udp4(),
        udp6(),
        syn4(),
        Segment::syn(child6, remote6, 1440).frame(),
        frames::arp_request(CHILD, frames::GATEWAY),
        frames::neighbor_solicitation(CHILD6, frames::GATEWAY6),
        frames::router_solicitation(CHILD6),
        frames::echo_request(child.ip(), remote.ip(), 1, 1, b"x"),
        frames::echo_request(child6.ip(), frames::GATEWAY6.into(), 1, 1, b"x"),
    ];
    samples.extend(frames::fragments(&frames::udp(child6, remote6, &[1; 100]), 1, 64));
    let mut h = Harness::scripted(config(), ALL_OFFLOADS);
    h.host.record = false;
    // Believed without a checksum, so that the value reaches the inner layers.
    let offload = Offload { checksum: crate::frame::Checksum::Partial, ..Offload::default() };
    for sample in samples {
        for at in 0..sample.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff, sample[at] ^ 1, sample[at].wrapping_add(1)] {
                let frame = with(sample.clone(), |f| f[at] = value);
                let _ = h.inject_with(&frame, offload);
                let _ = h.inject_with(&frame[..at], offload);
            }
        }
        h.child.received.clear();
    }
    h.drive_for(crate::time::Duration::from_secs(1000));
}
