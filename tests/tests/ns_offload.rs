//! Offloads: on where the kernel has them, and streams stay intact when the child turns them off.

use tests::{
    engine::ours,
    locate,
    servers::{Serve, Server},
    world::{SERVICE4, World},
};

#[test]
fn checksum_and_segmentation_offload_are_on_where_the_kernel_has_them() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    let ethtool = locate::program("ethtool").to_string_lossy().into_owned();
    let features = world.launch(&launch, &[&ethtool, "-k", "tap0"]).finish().success();
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
