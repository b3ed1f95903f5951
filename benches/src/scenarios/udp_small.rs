//! Datagrams through the stack, one by one and by super-datagrams.

use super::{
    Run, Scenario,
    player::{PARTIAL, Player},
};
use netstack::{
    flow::FlowId,
    frame::{Gso, LinkCapabilities, Offload},
    packet::MAX_HEADERS,
    stack::Datagram,
    testing::{
        ALL_OFFLOADS, NO_OFFLOADS,
        frames::{self, CHILD, WORLD},
    },
};
use std::net::SocketAddr;

pub(super) const ALL: &[Scenario] = &[
    Scenario::elements("udp_small/to-host-64", TIMES, || to_host(1, 64, 1, NO_OFFLOADS, Offload::default())),
    Scenario::elements("udp_small/to-host-64-partial", TIMES, || to_host(1, 64, 1, ALL_OFFLOADS, PARTIAL)),
    Scenario::elements("udp_small/to-host-64-of-10k", TIMES, || {
        to_host(10_000, 64, 1, ALL_OFFLOADS, PARTIAL)
    }),
    Scenario::elements("udp_small/to-host-gso", TIMES, || {
        to_host(1, SIZE, RUN, ALL_OFFLOADS, Offload { gso: Gso::Udp(SIZE as u16), ..PARTIAL })
    }),
    Scenario::elements("udp_small/to-child-64", TIMES, || to_child(64, 1, ALL_OFFLOADS)),
    Scenario::elements("udp_small/to-child-64-complete", TIMES, || to_child(64, 1, NO_OFFLOADS)),
    Scenario::elements("udp_small/to-child-gso", TIMES, || to_child(SIZE, RUN, ALL_OFFLOADS)),
    Scenario::elements("udp_small/bind", BINDS, bind),
];

/// Datagrams of a run.
const TIMES: u64 = 2040;
/// Datagrams in a super-datagram, and the size of each.
const RUN: usize = 40;
const SIZE: usize = 1400;
const BATCH: usize = 16;
const BINDS: u64 = 200;

fn remote() -> SocketAddr {
    SocketAddr::new(WORLD.into(), 4433)
}

fn from_port(port: u16, payload: &[u8]) -> Vec<u8> {
    frames::udp(SocketAddr::new(CHILD.into(), port), remote(), payload)
}

/// `bindings` sockets of the child send in turn.
fn to_host(bindings: u16, size: usize, run: usize, link: LinkCapabilities, offload: Offload) -> Run {
    let mut player = Player::new(link);
    let mut frames = (0..bindings).map(|n| from_port(10_000 + n, &vec![7; size * run])).collect::<Vec<_>>();
    for frame in &mut frames {
        player.give(frame, offload);
        player.settle();
    }
    let mut next = 0;
    let super_datagrams = TIMES as usize / run;
    Box::new(move || {
        player.to_host = 0;
        for n in 1..=super_datagrams {
            next = (next + 7919) % frames.len();
            player.give(&mut frames[next], offload);
            if n % BATCH == 0 {
                player.settle();
            }
        }
        player.settle();
        assert_eq!(player.to_host, super_datagrams, "every datagram is sent on");
    })
}

fn to_child(size: usize, run: usize, link: LinkCapabilities) -> Run {
    let mut player = Player::new(link);
    let flow = bound(&mut player, 10_000);
    let payload = vec![7; size * run];
    let mut headers = [0; MAX_HEADERS];
    let gso = if run > 1 { Gso::Udp(size as u16) } else { Gso::None };
    Box::new(move || {
        for _ in 0..TIMES as usize / run {
            let datagram = Datagram { from: remote(), payload: &payload, total: payload.len(), gso };
            player.datagram(flow, datagram, &mut headers);
        }
        player.settle();
    })
}

/// The first datagram of a socket of the child, for ever new sockets: in the end each takes the place of the one idle for longest.
fn bind() -> Run {
    let mut player = Player::new(ALL_OFFLOADS);
    let mut port = 1024;
    Box::new(move || {
        for _ in 0..BINDS {
            port = if port == 65_000 { 1024 } else { port + 1 };
            bound(&mut player, port);
        }
    })
}

fn bound(player: &mut Player, port: u16) -> FlowId {
    player.give(&mut from_port(port, b"hello"), Offload::default());
    player.settle();
    player.socket.take().expect("a binding")
}
