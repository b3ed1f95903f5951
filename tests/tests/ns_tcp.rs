//! TCP of a real kernel through the engine.

use std::time::{Duration, Instant};
use tests::{
    engine::{Engine, Launch, ours},
    link::LinkConfig,
    servers::{Serve, Server},
    stream::StreamHash,
    world::{FAR4, FAR6, SERVICE4, SERVICE6, SILENT4, UNREACHABLE4, Uplink, World, WorldConfig},
};

fn both_families() -> Vec<(&'static str, String)> {
    let mut families = vec![(SERVICE4, format!("{SERVICE4}:0"))];
    if Engine::under_test() == Engine::Ours {
        families.push((SERVICE6, format!("[{SERVICE6}]:0")));
    }
    families
}

#[track_caller]
fn sends_intact(world: &World, launch: &Launch, address: &str, listen: &str, bytes: u64) {
    let server = Server::start(world.host.listen(listen), Serve::Sink);
    let sent = world
        .probe(launch, &["tcp-send", address, &server.port(), &bytes.to_string(), "5"])
        .finish()
        .success();
    assert_eq!(sent.value("intact"), "1", "{}", sent.describe());
    assert_eq!(server.served().sum, StreamHash::of_pattern(5, bytes), "{bytes} bytes to {address}");
}

#[track_caller]
fn receives_intact(world: &World, launch: &Launch, address: &str, listen: &str, bytes: u64) {
    let server = Server::start(world.host.listen(listen), Serve::Source(bytes, 6));
    let received = world.probe(launch, &["tcp-recv", address, &server.port()]).finish().success();
    assert_eq!(
        received.value("sum"),
        format!("{:016x}", StreamHash::of_pattern(6, bytes)),
        "{}",
        received.describe()
    );
    assert_eq!(received.value("end"), "EOF");
}

#[test]
fn streams_of_every_size_arrive_intact_in_both_directions_and_families() {
    let (world, launch) = (World::new(), Launch::under_test());
    for (address, listen) in both_families() {
        for bytes in [0, 1, 1459, 1460, 1461, 65_535, 65_536, 1_000_003] {
            sends_intact(&world, &launch, address, &listen, bytes);
            receives_intact(&world, &launch, address, &listen, bytes);
        }
    }
}

#[test]
fn a_hundred_megabytes_arrive_intact_in_both_directions() {
    let (world, launch) = (World::new(), Launch::under_test());
    sends_intact(&world, &launch, SERVICE4, &format!("{SERVICE4}:0"), 100_000_000);
    receives_intact(&world, &launch, SERVICE4, &format!("{SERVICE4}:0"), 100_000_000);
}

#[test]
fn both_directions_flow_at_the_same_time() {
    let (world, launch) = (World::new(), Launch::under_test());
    for (address, listen) in both_families() {
        let server = Server::start(world.host.listen(&listen), Serve::Echo);
        let echoed =
            world.probe(&launch, &["tcp-echo", address, &server.port(), "20000000", "9"]).finish().success();
        assert_eq!(echoed.value("intact"), "1");
    }
}

#[test]
fn a_thousand_connections_at_once_keep_their_bytes_apart() {
    tests::probe::raise_descriptor_limit();
    let (world, launch) = (World::new(), Launch::under_test());
    let server = Server::start(world.host.listen(&format!("{SERVICE4}:0")), Serve::Echo);
    let many =
        world.probe(&launch, &["many", "1000", SERVICE4, &server.port(), "3000", "1"]).finish().success();
    assert_eq!((many.value("open"), many.value("intact")), ("1000".to_owned(), "1000".to_owned()));
}

#[test]
fn after_the_child_ended_its_direction_the_host_can_still_answer() {
    let (world, launch) = (World::new(), Launch::under_test());
    for (address, listen) in both_families() {
        sends_intact(&world, &launch, address, &listen, 100_000);
    }
}

#[test]
fn after_the_host_ended_its_direction_the_child_can_still_send() {
    let (world, launch) = (World::new(), Launch::under_test());
    for (address, listen) in both_families() {
        let server = Server::start(world.host.listen(&listen), Serve::SourceThenSink(50_000, 3));
        let args = ["tcp-recv-then-send", address, &server.port(), "70000", "4"];
        let exchanged = world.probe(&launch, &args).finish().success();
        assert_eq!(exchanged.value("received_sum"), format!("{:016x}", StreamHash::of_pattern(3, 50_000)));
        let served = server.served();
        assert_eq!((served.bytes, served.sum), (70_000, StreamHash::of_pattern(4, 70_000)));
    }
}

#[test]
fn a_reset_by_the_host_reaches_the_child() {
    let (world, launch) = (World::new(), Launch::under_test());
    let server = Server::start(world.host.listen(&format!("{SERVICE4}:0")), Serve::ResetAfterByte);
    let finished = world.probe(&launch, &["rr", SERVICE4, &server.port(), "30"]).finish();
    assert_eq!(finished.value("error"), "ECONNRESET", "{}", finished.describe());
}

#[test]
fn a_reset_by_the_child_reaches_the_host() {
    // slirp4netns makes an ordinary end of it.
    let Ok(launch) = ours() else { return };
    let world = World::new();
    let server = Server::start(world.host.listen(&format!("{SERVICE4}:0")), Serve::Sink);
    let _ = world.probe(&launch, &["tcp-reset", SERVICE4, &server.port(), "1000"]).finish().success();
    assert_eq!(server.served().error, Some(std::io::ErrorKind::ConnectionReset));
}

#[test]
fn a_refused_connection_is_refused_in_the_child() {
    let (world, launch) = (World::new(), Launch::under_test());
    for (address, _) in both_families() {
        let refused = world.probe(&launch, &["connect", address, "9"]).finish().success();
        assert_eq!(refused.value("result"), "ECONNREFUSED", "{}", refused.describe());
    }
}

#[test]
fn an_unreachable_host_is_unreachable_in_the_child() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    // The kernel's router says "no route" for IPv6, RFC 4443 code 0.
    for (address, expected) in [(UNREACHABLE4, "EHOSTUNREACH"), ("2001:db8:2::67", "ENETUNREACH")] {
        let result = world.probe(&launch, &["connect", address, "80"]).finish().success().value("result");
        assert_eq!(result, expected, "{address}");
    }
}

#[test]
fn without_a_route_on_the_host_the_network_is_unreachable_in_the_child() {
    let Ok(launch) = ours() else { return };
    let world = World::with(&WorldConfig { uplink: Uplink::None, ..WorldConfig::default() });
    let result = world.probe(&launch, &["connect", FAR4, "80"]).finish().success().value("result");
    assert_eq!(result, "ENETUNREACH");
}

#[test]
fn a_syn_is_not_answered_while_the_host_is_still_connecting() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    // Nobody answers there, so the child's own patience must run out.
    let result = world.probe(&launch, &["connect", SILENT4, "80"]).finish().success().value("result");
    assert_eq!(result, "TIMEOUT");
}

#[test]
fn a_host_that_does_not_read_stops_the_child_and_nothing_is_lost() {
    let (world, launch) = (World::new(), Launch::under_test());
    let mut server = Server::start(world.host.listen(&format!("{SERVICE4}:0")), Serve::StalledSink);
    let mut flood = world.probe(&launch, &["tcp-flood", SERVICE4, &server.port()]);
    let taken = flood.wait_for_line("taken=");
    let taken: u64 = taken.trim_start_matches("taken=").parse().expect("a number");
    // Two kernels' socket buffers (tcp_wmem and tcp_rmem at most 38 MB together, twice) and ours; without back-pressure it never ends.
    assert!(taken < 160_000_000, "{taken} bytes went into a connection that nobody reads");
    server.resume();
    flood.tell("end");
    assert_eq!(flood.finish().success().value("intact"), "1");
}

#[test]
fn a_child_that_does_not_read_stops_the_host_and_nothing_is_lost() {
    let (world, launch) = (World::new(), Launch::under_test());
    let server = Server::start(world.host.listen(&format!("{SERVICE4}:0")), Serve::Source(30_000_000, 2));
    let mut stalled = world.probe(&launch, &["tcp-stall", SERVICE4, &server.port()]);
    stalled.wait_for_line("ready=1");
    let _ = server.accepted();
    stalled.tell("read");
    let finished = stalled.finish().success();
    assert_eq!(
        finished.value("sum"),
        format!("{:016x}", StreamHash::of_pattern(2, 30_000_000)),
        "{}",
        finished.describe()
    );
}

#[test]
fn a_killed_child_ends_its_connections_on_the_host() {
    let (world, launch) = (World::new(), Launch::under_test());
    let server = Server::start(world.host.listen(&format!("{SERVICE4}:0")), Serve::Sink);
    let mut child = world.probe(&launch, &["idle", "1", SERVICE4, &server.port()]);
    child.wait_for_line("open=1");
    drop(child);
    // How it ends (end or reset) depends on who dies first; that it ends does not.
    assert_eq!(server.served().bytes, 0);
}

#[test]
fn urgent_data_disturbs_nothing() {
    let (world, launch) = (World::new(), Launch::under_test());
    let server = Server::start(world.host.listen(&format!("{SERVICE4}:0")), Serve::Sink);
    let urgent = world.probe(&launch, &["tcp-urgent", SERVICE4, &server.port()]).finish().success();
    // The urgent byte may come in line or not at all.
    assert!((2.0..=3.0).contains(&urgent.number("received_by_peer")), "{}", urgent.describe());
}

#[test]
fn every_mtu_carries_streams_intact() {
    let world = World::new();
    for mtu in [576, 1280, 1500, 9000, 65520] {
        // Below 1280 bytes there is no IPv6.
        let launch =
            if mtu < 1280 { Launch::under_test().args(&["--ipv6=off"]) } else { Launch::under_test() }
                .mtu(mtu);
        sends_intact(&world, &launch, SERVICE4, &format!("{SERVICE4}:0"), 3_000_000);
        receives_intact(&world, &launch, SERVICE4, &format!("{SERVICE4}:0"), 3_000_000);
    }
}

#[test]
fn a_lossy_slow_uplink_delivers_intact_in_both_directions_and_families() {
    let bad = |seed| LinkConfig {
        delay: Duration::from_millis(3),
        jitter: Duration::from_millis(1),
        loss_ppm: 10_000,
        reorder_ppm: 5_000,
        repeat_ppm: 1_000,
        seed,
        ..LinkConfig::default()
    };
    let world =
        World::with(&WorldConfig { uplink: Uplink::Emulated(bad(11), bad(12)), ..WorldConfig::default() });
    let launch = Launch::under_test();
    let mut families = vec![(FAR4, format!("{FAR4}:0"))];
    if launch.engine == Engine::Ours {
        families.push((FAR6, format!("[{FAR6}]:0")));
    }
    for (address, listen) in families {
        let server = Server::start(world.far.listen(&listen), Serve::Sink);
        let sent =
            world.probe(&launch, &["tcp-send", address, &server.port(), "500000", "5"]).finish().success();
        assert_eq!(sent.value("intact"), "1", "{}", sent.describe());
        let server = Server::start(world.far.listen(&listen), Serve::Source(500_000, 6));
        let received = world.probe(&launch, &["tcp-recv", address, &server.port()]).finish().success();
        assert_eq!(received.value("sum"), format!("{:016x}", StreamHash::of_pattern(6, 500_000)));
    }
    let (_, lost) = world.link().expect("emulated").carried_and_lost();
    assert!(lost > 0, "the link was good");
}

#[test]
fn connections_can_be_opened_and_closed_without_end() {
    let (world, launch) = (World::new(), Launch::under_test());
    let server = Server::start(world.host.listen(&format!("{SERVICE4}:0")), Serve::Echo);
    let begin = Instant::now();
    let crr = world.probe(&launch, &["crr", SERVICE4, &server.port(), "1"]).finish().success();
    assert!(crr.number("transactions") >= 1.0, "none in {:?}", begin.elapsed());
}
