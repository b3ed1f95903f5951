//! Offloads: on where the kernel has them, and streams stay intact when the child or the user turns them off.

use std::net::SocketAddr;
use tests::{
    engine::ours,
    locate,
    servers::{Serve, Server},
    stream::StreamHash,
    world::{SERVICE4, SERVICE6, World},
};

#[test]
fn checksum_and_segmentation_offload_are_on_where_the_kernel_has_them() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    let ethtool = locate::program("ethtool").to_string_lossy().into_owned();
    let features = world.launch(&launch, &[&ethtool, "-k", "tap0"]).finish().success();
    let without = world.launch(&launch.clone().args(&["--offload=none"]), &[&ethtool, "-k", "tap0"]);
    let without = without.finish().success();
    for feature in ["tx-checksumming: off", "tcp-segmentation-offload: off"] {
        assert!(without.stdout.contains(feature), "{feature}: {}", without.describe());
    }
    for feature in ["tx-checksumming: on", "tcp-segmentation-offload: on", "tx-tcp6-segmentation: on"] {
        assert!(features.stdout.contains(feature), "{feature}: {}", features.describe());
    }
}

#[test]
fn every_mtu_works_with_the_childs_offloads_turned_off() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    let ethtool = locate::program("ethtool").to_string_lossy().into_owned();
    let probe = locate::probe_argv(&[]).join(" ");
    for mtu in [576, 1280, 1500, 9000, 65520] {
        let launch = if mtu < 1280 { launch.clone().args(&["--ipv6=off"]) } else { launch.clone() }.mtu(mtu);
        for off in ["tso off", "tx off tso off", "gro off gso off tso off tx off"] {
            let sink = Server::start(world.host.listen(&format!("{SERVICE4}:0")), Serve::Sink);
            let echo = Server::start(world.host.listen(&format!("{SERVICE4}:0")), Serve::Echo);
            let (sink, echo) = (sink.port(), echo.port());
            let script = format!(
                "{ethtool} -K tap0 {off} && {probe} tcp-send {SERVICE4} {sink} 1000000 1 && {probe} tcp-echo {SERVICE4} {echo} 1000000 2"
            );
            let done = world.launch(&launch, &["/bin/sh", "-c", &script]).finish().success();
            assert_eq!(done.stdout.matches("intact=1").count(), 2, "MTU {mtu}, {off}: {}", done.describe());
        }
    }
}

#[test]
fn every_mtu_works_in_both_directions_with_and_without_offloads() {
    const BYTES: u64 = 1_000_000;
    let Ok(launch) = ours() else { return };
    let world = World::new();
    let sum = format!("{:016x}", StreamHash::of_pattern(4, BYTES));
    for offload in ["--offload=auto", "--offload=none"] {
        for mtu in [576, 1280, 1500, 9000, 65520] {
            let launch = launch.clone().mtu(mtu).args(&[offload]);
            let launch = if mtu < 1280 { launch.args(&["--ipv6=off"]) } else { launch };
            for address in [SERVICE4, SERVICE6] {
                if mtu < 1280 && address == SERVICE6 {
                    continue;
                }
                let listen = SocketAddr::new(address.parse().expect("an address"), 0).to_string();
                let start = |how| Server::start(world.host.listen(&listen), how);
                let case = format!("{offload}, MTU {mtu}, {address}");
                let bytes = BYTES.to_string();

                let sink = start(Serve::Sink);
                let sent = world.probe(&launch, &["tcp-send", address, &sink.port(), &bytes, "3"]);
                let sent = sent.finish().success();
                assert_eq!(sent.value("intact"), "1", "{case}: {}", sent.describe());

                let source = start(Serve::Source(BYTES, 4));
                let received = world.probe(&launch, &["tcp-recv", address, &source.port()]);
                let received = received.finish().success();
                assert_eq!(received.value("sum"), sum, "{case}: {}", received.describe());
                assert_eq!(received.value("end"), "EOF", "{case}");

                let echo = start(Serve::Echo);
                let echoed = world.probe(&launch, &["tcp-echo", address, &echo.port(), &bytes, "5"]);
                let echoed = echoed.finish().success();
                assert_eq!(echoed.value("intact"), "1", "{case}: {}", echoed.describe());
            }
        }
    }
}
