//! The host's uplink at its worst: the engine's own sockets are the kernel's, so what is judged is that errors and delays are passed on.

use std::time::Duration;
use tests::{
    engine::Launch,
    link::LinkConfig,
    servers::{Serve, Server, udp_echo},
    world::{FAR4, Uplink, World, WorldConfig},
};

fn world(there: LinkConfig, back: LinkConfig) -> World {
    World::with(&WorldConfig { uplink: Uplink::Emulated(there, back), ..WorldConfig::default() })
}

#[test]
fn a_narrow_uplink_slows_the_child_down_and_loses_nothing() {
    let narrow = |seed| LinkConfig {
        rate: Some(2_000_000),
        queue: 100_000,
        delay: Duration::from_millis(2),
        seed,
        ..LinkConfig::default()
    };
    let world = world(narrow(1), narrow(2));
    let server = Server::start(world.far.listen(&format!("{FAR4}:0")), Serve::Sink);
    let sent = world
        .probe(&Launch::under_test(), &["tcp-send", FAR4, &server.port(), "1000000", "5"])
        .finish()
        .success();
    assert_eq!(sent.value("intact"), "1", "{}", sent.describe());
}

#[test]
fn a_lost_syn_is_sent_again() {
    // Of ten first SYNs some are lost at any seed; all connections open in the end.
    let bad = |seed| LinkConfig { loss_ppm: 300_000, seed, ..LinkConfig::default() };
    let world = world(bad(21), bad(22));
    let server = Server::start(world.far.listen(&format!("{FAR4}:0")), Serve::Hold);
    let mut child = world.probe(&Launch::under_test(), &["idle", "10", FAR4, &server.port()]);
    child.wait_for_line("open=10");
}

#[test]
fn datagrams_that_survive_are_intact() {
    let late = |seed| LinkConfig { delay: Duration::from_millis(10), seed, ..LinkConfig::default() };
    let world = world(late(31), late(32));
    let echo = udp_echo(world.far.udp(&format!("{FAR4}:0")));
    let port = echo.port();
    let done = world
        .probe(&Launch::under_test(), &["udp-echo", FAR4, &port, "1", "100", "1000", "1400"])
        .finish()
        .success();
    assert_eq!(done.value("intact"), "3", "{}", done.describe());
}
