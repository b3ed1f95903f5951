//! Bytes and connections through the stack, without a kernel.

use super::{
    Run, Scenario,
    player::{PARTIAL, Player},
};
use netstack::{
    frame::{Gso, Offload},
    testing::{ALL_OFFLOADS, NO_OFFLOADS},
};

pub(super) const ALL: &[Scenario] = &[
    Scenario::bytes("tcp_stream/to-host-tso", 45 * SUPER as u64, to_host_by_super_segments),
    Scenario::bytes("tcp_stream/to-host", 1440 * MSS as u64, to_host_by_segments),
    Scenario::bytes("tcp_stream/to-child-tso", STREAM as u64, || to_child(true)),
    Scenario::bytes("tcp_stream/to-child", STREAM as u64, || to_child(false)),
    Scenario::elements("tcp_stream/echo-1", ECHOES, || echo(1)),
    Scenario::elements("tcp_stream/echo-1k", ECHOES, || echo(1000)),
    Scenario::elements("tcp_stream/echo-10k", ECHOES, || echo(10_000)),
    Scenario::elements("tcp_stream/connect-echo-close", CONNECTIONS, connect_echo_close),
];

const MSS: usize = 1460;
const SUPER: usize = 44 * MSS;
const STREAM: usize = 2 << 20;
const ECHOES: u64 = 1000;
const CONNECTIONS: u64 = 200;
/// Frames that the driver reads before it looks what is to be done.
const BATCH: usize = 16;

fn to_host_by_super_segments() -> Run {
    let offload = Offload { gso: Gso::Tcp(MSS as u16), ..PARTIAL };
    to_host(Player::new(ALL_OFFLOADS), SUPER, 45, 1, offload)
}

fn to_host_by_segments() -> Run {
    to_host(Player::new(NO_OFFLOADS), MSS, 1440, BATCH, Offload::default())
}

fn to_host(mut player: Player, size: usize, frames: usize, batch: usize, offload: Offload) -> Run {
    let mut peer = player.open(0);
    let mut frame = peer.data(size);
    Box::new(move || {
        player.to_host = 0;
        for _ in 0..frames / batch {
            for _ in 0..batch {
                player.send(&mut peer, &mut frame, size, offload);
            }
            player.settle();
        }
        assert_eq!(player.to_host, frames * size, "every byte arrives");
    })
}

fn to_child(tso: bool) -> Run {
    let mut player = Player::new(if tso { ALL_OFFLOADS } else { NO_OFFLOADS });
    let mut peer = player.open(0);
    Box::new(move || player.receive(&mut peer, STREAM))
}

/// One byte there and back, by each of the flows in turn.
fn echo(flows: u16) -> Run {
    let mut player = Player::new(ALL_OFFLOADS);
    let mut peers = (0..flows)
        .map(|n| {
            let peer = player.open(n);
            let frame = peer.data(1);
            (peer, frame)
        })
        .collect::<Vec<_>>();
    let mut next = 0;
    Box::new(move || {
        for _ in 0..ECHOES {
            // Not in the order in which they were made.
            next = (next + 7919) % peers.len();
            let (peer, frame) = &mut peers[next];
            player.echo(peer, frame, PARTIAL);
        }
    })
}

fn connect_echo_close() -> Run {
    let mut player = Player::new(ALL_OFFLOADS);
    Box::new(move || {
        for n in 0..CONNECTIONS {
            let mut peer = player.open(n as u16);
            let mut frame = peer.data(1);
            player.echo(&mut peer, &mut frame, PARTIAL);
            player.close(peer);
        }
    })
}
