//! A link that delays, loses and reorders: every byte arrives once and in order all the same.

use smoltcp::socket::tcp::State;

use super::*;
use crate::testing::link::{Link, LinkConfig, Random};
use crate::testing::{Harness, config};
use crate::time::Duration;

/// 1 MB each way at once, compared byte by byte; returns the harness for further questions.
fn exchange(link: LinkConfig, capabilities: LinkCapabilities, remote: SocketAddr, len: usize) -> Harness {
    let mut h = Harness::new(config(), capabilities);
    h.link = Link::new(link);
    h.host.record = false;
    let socket = h.child.connect(remote);
    h.drive_until(|h| h.child.state(socket) == State::Established);
    h.drive_until(|h| !h.host.tcp.is_empty());
    let flow = h.host.last_flow();
    let to_host = Random::new(link.seed ^ 1).bytes(len);
    let to_child = Random::new(link.seed ^ 2).bytes(len);
    h.host.send(flow, &to_child);
    let (mut sent, mut got) = (0, Vec::with_capacity(len));
    h.drive_until(|h| {
        sent += h.child.write(socket, &to_host[sent..]);
        got.extend(h.child.read(socket));
        got.len() >= len && h.host.tcp(flow).received.len() >= len
    });
    assert!(got == to_child, "to the child");
    assert!(h.host.tcp(flow).received == to_host, "to the host");
    h.child.close(socket);
    h.host.finish(flow);
    h.drive_until(|h| h.stack.flows().count() == 0);
    assert_eq!(h.stack.buffer_bytes(), 0);
    h
}

#[test]
fn a_megabyte_each_way_survives_loss_and_reordering() {
    let mut lost = 0;
    for seed in 0..6 {
        let link = LinkConfig {
            delay: Duration::from_millis(2),
            jitter: Duration::from_millis(if seed % 2 == 0 { 0 } else { 3 }),
            loss_per_mille: [0, 5, 20][seed as usize % 3],
            seed,
        };
        let remote = families(80)[seed as usize / 3].1;
        lost += exchange(link, CAPABILITIES[seed as usize % 2], remote, 1 << 20).link.lost;
    }
    assert!(lost > 0);
}

#[test]
fn a_link_that_loses_a_fifth_still_delivers() {
    for seed in 10..13 {
        let link = LinkConfig {
            delay: Duration::from_millis(5),
            jitter: Duration::from_millis(10),
            loss_per_mille: 200,
            seed,
        };
        exchange(link, CAPABILITIES[seed as usize % 2], families(80)[0].1, 20_000);
    }
}

#[test]
fn runs_are_repeated_by_their_seeds() {
    let link = LinkConfig {
        delay: Duration::from_millis(1),
        jitter: Duration::from_millis(2),
        loss_per_mille: 30,
        seed: 9,
    };
    let run = || {
        let h = exchange(link, ALL_OFFLOADS, families(80)[0].1, 100_000);
        (h.now, h.stack.stats())
    };
    assert_eq!(run(), run());
}

#[test]
fn every_mtu_carries_both_directions() {
    for mtu in [1280, 1500, 9000, 65520] {
        for capabilities in CAPABILITIES {
            for (_, remote) in families(80) {
                let mut h = Harness::new(config().mtu(mtu), capabilities);
                h.host.echo = true;
                let socket = h.child.connect(remote);
                h.drive();
                let data = Random::new(u64::from(mtu)).bytes(200_000);
                let (mut sent, mut got) = (0, Vec::new());
                h.drive_until(|h| {
                    sent += h.child.write(socket, &data[sent..]);
                    got.extend(h.child.read(socket));
                    got.len() >= data.len()
                });
                assert!(got == data);
            }
        }
    }
}
