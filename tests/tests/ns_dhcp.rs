//! DHCP and router advertisements, judged by foreign clients in the child.

use tests::{engine::ours, locate, world::World};

#[test]
fn udhcpc_gets_a_lease_with_router_and_dns() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    let script = world.dir().join("lease");
    std::fs::write(&script, "#!/bin/sh\n[ \"$1\" = bound ] && echo ip=$ip mask=$mask router=$router dns=$dns mtu=$mtu lease=$lease\nexit 0\n")
        .expect("write in our directory");
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    let busybox = locate::program("busybox").to_string_lossy().into_owned();
    let script = script.to_string_lossy().into_owned();
    let argv = [&busybox, "udhcpc", "-f", "-n", "-q", "-i", "tap0", "-O", "mtu", "-s", &script];
    let lease = world.launch(&launch, &argv).finish().success();
    assert_eq!(lease.value("ip"), "10.0.42.100", "{}", lease.describe());
    assert_eq!(lease.value("mask"), "24");
    assert_eq!(lease.value("router"), "10.0.42.2");
    assert_eq!(lease.value("dns"), "10.0.42.3");
    assert_eq!(lease.value("mtu"), "1500");
    assert!(lease.number("lease") >= 60.0);
}

#[test]
fn dhclient_gets_the_same_lease() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    let dhclient = locate::program("dhclient").to_string_lossy().into_owned();
    let leases = world.dir().join("leases").to_string_lossy().into_owned();
    let argv = [&dhclient, "-v", "-1", "-sf", "/bin/true", "-lf", &leases, "-pf", "/dev/null", "-d", "tap0"];
    let mut client = world.launch(&launch, &argv);
    client.wait_for(tests::process::Pipe::Stderr, "bound to 10.0.42.100");
}

#[test]
fn the_router_advertisement_names_prefix_dns_and_mtu() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    let rdisc6 = locate::program("rdisc6").to_string_lossy().into_owned();
    let seen = world.launch(&launch, &[&rdisc6, "-1", "tap0"]).finish().success();
    for part in ["Prefix", "fd42:10:42::/64", "Recursive DNS server", "fd42:10:42::3", "MTU", "1500"] {
        assert!(seen.stdout.contains(part), "{part}: {}", seen.describe());
    }
}

#[test]
fn ipv6_is_not_offered_while_the_host_has_none() {
    let Ok(launch) = ours() else { return };
    let families = tests::world::Families::V4;
    let world = World::with(&tests::world::WorldConfig { families, ..Default::default() });
    let routes = world.launch(&launch, &["ip", "-6", "route", "show", "default"]).finish().success();
    assert_eq!(routes.stdout.trim(), "");
}
