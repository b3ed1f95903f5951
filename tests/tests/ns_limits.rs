//! The engine at its limits: no descriptors left, and a TAP that the child takes away.

use std::time::Instant;
use tests::{
    engine::ours,
    locate,
    servers::{Serve, Server, udp_echo},
    talk::Talk,
    world::{SERVICE4, World},
};

/// Descriptors that launcher, engine and child may each have: the engine has more of its own than the child.
const DESCRIPTORS: usize = 64;

#[test]
fn without_descriptors_new_flows_wait_and_open_ones_go_on() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    let server = Server::start(world.host.listen(&format!("{SERVICE4}:0")), Serve::Echo);
    let udp = udp_echo(world.host.udp(&format!("{SERVICE4}:0")));
    // Long enough for the child's kernel to repeat its SYN once.
    let connect = format!("connect {SERVICE4} {} 2000", server.port());
    let limit = format!("--nofile={DESCRIPTORS}:{DESCRIPTORS}");
    let mut child = Talk::behind(&world, &launch, &["prlimit", &limit]);

    let mut open = 0;
    let refusal = loop {
        assert!(open < DESCRIPTORS, "more connections than descriptors");
        match child.ask(&connect) {
            answer if answer == "ok" => open += 1,
            answer => break answer,
        }
    };
    // The rest are the engine's own: loops, timers, the API, what it hears of both networks by; a relayed connection has two.
    assert!(open >= DESCRIPTORS / 4, "only {open} connections");
    // Not EMFILE, which would be the child's own limit.
    assert_eq!(refusal, "TIMEOUT", "after {open} connections");

    let (engine, begin) = (child.engine(), Instant::now());
    let before = engine.processor_time();
    assert_eq!(child.ask(&connect), "TIMEOUT");
    let (used, passed) = (engine.processor_time() - before, begin.elapsed());
    assert!(used * 2 < passed, "the engine used {used:?} of {passed:?} for nothing");
    for n in 0..open {
        assert_eq!(child.ask(&format!("echo {n}")), "ok", "connection {n} of {open}");
    }

    // The engine hears of the host's routes all the same.
    world.host.ip("route del default via 2001:db8:1::1\n");
    assert_eq!(child.ask("default6 absent"), "ok", "the host has lost its IPv6 route");

    // One that waits gets through by itself when there is room.
    assert_eq!(child.ask(&format!("begin {SERVICE4} {}", server.port())), "ok");
    for n in 0..open / 2 {
        assert_eq!(child.ask(&format!("close {n}")), "ok");
    }
    assert_eq!(child.ask("end"), "ok", "the connection that waited");
    assert_eq!(child.ask(&connect), "ok", "a new connection");
    assert_eq!(child.ask(&format!("udp {SERVICE4} {}", udp.port())), "ok", "a new binding");
    for n in open / 2..open + 2 {
        assert_eq!(child.ask(&format!("echo {n}")), "ok", "connection {n}");
    }
    let _ = child.finish().success();
}

#[test]
fn a_tap_that_was_down_carries_on_where_it_stopped() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    let server = Server::start(world.host.listen(&format!("{SERVICE4}:0")), Serve::Echo);
    let connect = format!("connect {SERVICE4} {} 20000", server.port());
    let mut child = Talk::start(&world, &launch);
    assert_eq!(child.ask(&connect), "ok");
    assert_eq!(child.ask("echo 0"), "ok");
    for _ in 0..3 {
        assert_eq!(child.ask("run ip link set tap0 down"), "0");
        assert_eq!(child.ask(&connect), "ENETUNREACH");
        // The child's kernel forgets the routes of an interface that goes down.
        assert_eq!(child.ask("run ip link set tap0 up && ip route add default via 10.0.42.2"), "0");
        assert_eq!(child.ask("echo 0"), "ok", "the connection from before");
        assert_eq!(child.ask(&connect), "ok", "a new connection");
    }
    let _ = child.finish().success();
}

#[test]
fn a_deleted_tap_ends_the_launch_with_an_error_that_names_it() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    let probe = locate::probe_argv(&["wait"]).join(" ");
    // The command itself would go on.
    let ended =
        world.launch(&launch, &["/bin/sh", "-c", &format!("ip link del tap0 && exec {probe}")]).finish();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.describe());
    assert!(ended.stderr.contains("TAP"), "{}", ended.describe());
}
