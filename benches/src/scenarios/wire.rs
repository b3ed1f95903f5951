//! Reading and writing headers, and checksums.

use super::{Run, Scenario};
use netstack::{
    frame::{Checksum, Gso, Offload},
    offload::{HeaderOffsets, checksum, vnet_hdr},
    packet::{Ethernet, IpHeader, IpPacket, Tcp, UDP_LEN, Udp, emit_ethernet, emit_udp, ethertype, protocol},
    testing::frames::{self, CHILD, CHILD_MAC, CHILD6, ENGINE_MAC, L4_V4, Segment, WORLD, WORLD6},
};
use std::{hint::black_box, net::SocketAddr};

pub(super) const ALL: &[Scenario] = &[
    Scenario::elements("wire/parse-tcp4", TIMES, || parse_tcp(CHILD.into(), WORLD.into())),
    Scenario::elements("wire/parse-tcp6", TIMES, || parse_tcp(CHILD6.into(), WORLD6.into())),
    Scenario::elements("wire/parse-udp4", TIMES, parse_udp),
    Scenario::elements("wire/emit-udp4", TIMES, emit),
    Scenario::elements("wire/vnet-header", TIMES, vnet_header),
    Scenario::bytes("wire/checksum-1460", TIMES * 1460, || sum(1460)),
    Scenario::bytes("wire/checksum-64K", TIMES * 65_535, || sum(65_535)),
];

const TIMES: u64 = 1000;

fn parse_tcp(child: std::net::IpAddr, remote: std::net::IpAddr) -> Run {
    let (child, remote) = (SocketAddr::new(child, 40_000), SocketAddr::new(remote, 80));
    let frame = Segment { payload: vec![7; 100], ..Segment::new(child, remote, Tcp::ACK) }.frame();
    Box::new(move || {
        for _ in 0..TIMES {
            let frame = black_box(&frame[..]);
            let ethernet = Ethernet::parse(frame).expect("Ethernet");
            let ip = IpPacket::parse(frame, ethernet.ethertype).expect("IP");
            black_box(Tcp::parse(&frame[ip.transport.clone()]).expect("TCP"));
            black_box(ip);
        }
    })
}

fn parse_udp() -> Run {
    let frame =
        frames::udp(SocketAddr::new(CHILD.into(), 40_000), SocketAddr::new(WORLD.into(), 53), &[7; 64]);
    Box::new(move || {
        for _ in 0..TIMES {
            let frame = black_box(&frame[..]);
            let ethernet = Ethernet::parse(frame).expect("Ethernet");
            let ip = IpPacket::parse(frame, ethernet.ethertype).expect("IP");
            black_box(Udp::parse(&frame[ip.transport.clone()]).expect("UDP"));
            black_box(ip);
        }
    })
}

fn emit() -> Run {
    let mut frame = [7; L4_V4 + UDP_LEN + 64];
    let ip = IpHeader { src: WORLD.into(), dst: CHILD.into(), protocol: protocol::UDP, ttl: 64 };
    Box::new(move || {
        for _ in 0..TIMES {
            let frame = black_box(&mut frame[..]);
            emit_ethernet(frame, ENGINE_MAC, CHILD_MAC, ethertype::IPV4);
            ip.emit(UDP_LEN + 64, &mut frame[frames::IP..]);
            emit_udp(53, 40_000, 64, &mut frame[L4_V4..]);
        }
    })
}

/// To the child and back from it, of a super-segment.
fn vnet_header() -> Run {
    let (child, remote) = (SocketAddr::new(CHILD.into(), 40_000), SocketAddr::new(WORLD.into(), 80));
    let mut frame = Segment { payload: vec![7; 9000], ..Segment::new(child, remote, Tcp::ACK) }.frame();
    let offload = Offload { checksum: Checksum::Partial, gso: Gso::Tcp(1460) };
    Box::new(move || {
        for _ in 0..TIMES {
            let offsets = HeaderOffsets::locate(black_box(&frame)).expect("TCP");
            let header = vnet_hdr::emit(offload, &offsets);
            black_box(vnet_hdr::accept(black_box(&header), &mut frame).expect("our own header"));
        }
    })
}

fn sum(len: usize) -> Run {
    let bytes = (0..len).map(|n| (n * 7) as u8).collect::<Vec<_>>();
    Box::new(move || {
        for _ in 0..TIMES {
            black_box(checksum::sum(black_box(&bytes)));
        }
    })
}
