//! Pods of two nodes, whose VXLAN the engines carry between the hosts.

use std::{net::UdpSocket, thread};

use tests::{
    instance::eventually,
    overlay::{Devices, HOSTS, PODS, node, nodes, transfer},
    process::DEADLINE,
    stream::Pattern,
    world::{Netns, ROUTER4, World},
};

const MIB: usize = 1 << 20;

/// The counter of /proc/net/snmp of a host.
#[track_caller]
fn ip_counter(host: &Netns, name: &str) -> u64 {
    let text = host.run(&["cat", "/proc/net/snmp"]).success().stdout;
    let mut lines = text.lines().filter(|line| line.starts_with("Ip:")).map(str::split_whitespace);
    let (names, values) = (lines.next().expect("a counter"), lines.next().expect("a counter"));
    let (_, value) = names.zip(values).find(|(other, _)| *other == name).expect("a counter");
    value.parse().expect("a counter")
}

#[test]
fn pods_of_two_nodes_reach_each_other() {
    let world = World::new();
    let [a, b] = nodes(&world, Devices::default(), &[]);
    let _ = a.ping(PODS[1], &["-c3"]).success();
    let _ = b.ping(PODS[0], &["-c3"]).success();
    transfer(&a.pod, &b.pod, PODS[1], 100 * MIB);
    transfer(&b.pod, &a.pod, PODS[0], 10 * MIB);

    let listed = a.instance.client(&["overlay", "list", "--json"]);
    assert!(listed.contains(&format!("\"address\":\"{}\"", HOSTS[1])), "{listed}");
    // The longest packet of a pod fits the link between the hosts, and nothing was ever cut.
    let _ = a.ping(PODS[1], &["-c1", "-Mdo", "-s1422"]).success();
    assert!(!a.ping(PODS[1], &["-c1", "-Mdo", "-s1423"]).status.success(), "the pod's MTU");
    for host in [&world.host, &world.far, &world.router] {
        assert_eq!((ip_counter(host, "FragCreates"), ip_counter(host, "ReasmReqds")), (0, 0));
    }
    let flows = a.instance.client(&["flows", "--protocol=udp"]);
    assert!(flows.contains(":8472"), "{flows}");
}

#[test]
fn segments_are_intact_however_the_tunnel_and_the_tap_leave_checksums() {
    // Outer checksums are Linux' default for IPv6; pods do not know of either.
    for (vxlan, args) in
        [("udpcsum", &[][..]), ("", &["--offload=checksum"]), ("udpcsum", &["--offload=none"])]
    {
        let world = World::new();
        let [a, b] = nodes(&world, Devices { vxlan, ..Devices::default() }, args);
        transfer(&a.pod, &b.pod, PODS[1], 4 * MIB);
        let drops = b.instance.client(&["stats", "--json"]);
        assert!(!drops.contains("checksum"), "{drops}");
    }
}

#[test]
fn datagrams_of_pods_come_back_intact() {
    let world = World::new();
    let [a, b] = nodes(&world, Devices::default(), &[]);
    let server: UdpSocket = b.pod.udp(&format!("{}:0", PODS[1]));
    let address = server.local_addr().unwrap();
    server.set_read_timeout(Some(DEADLINE)).unwrap();
    let echo = thread::spawn(move || {
        let mut buffer = [0; 2048];
        for _ in 0..100 {
            let (n, from) = server.recv_from(&mut buffer).unwrap();
            server.send_to(&buffer[..n], from).unwrap();
        }
    });
    // A port each: a flow of its own in the tunnel.
    for size in 0..100usize {
        let client: UdpSocket = a.pod.udp(&format!("{}:0", PODS[0]));
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        let sent = Pattern::bytes(size as u64, size * 14);
        client.send_to(&sent, address).unwrap();
        let mut buffer = [0; 2048];
        let (n, from) = client.recv_from(&mut buffer).unwrap();
        assert_eq!((from, &buffer[..n]), (address, &sent[..]));
    }
    echo.join().unwrap();
    let flows = a.instance.client(&["flows", "--protocol=udp"]);
    assert_eq!(flows.matches(":8472").count(), 1, "one socket for all of them: {flows}");
}

#[test]
fn a_strangers_datagram_is_refused_until_it_is_allowed() {
    let world = World::new();
    let a = node(&world, Devices::default(), 0, &[]);
    let stranger = world.router.udp(&format!("{ROUTER4}:0"));
    let vxlan = [&[8, 0, 0, 0, 0, 0, 1, 0][..], &[0xff; 60]].concat();
    let send = || stranger.send_to(&vxlan, format!("{}:8472", HOSTS[0])).unwrap();
    send();
    let listed = a.instance.until(&["overlay", "list"], |listed| listed.contains("refused"));
    assert!(listed.contains(&format!("1 datagrams refused, the latest of {ROUTER4}")), "{listed}");
    let listed = a.instance.client(&["overlay", "add", ROUTER4]);
    assert!(listed.contains(&format!("may send: {}, {ROUTER4}", HOSTS[1])), "{listed}");
    send();
    a.instance.until(&["overlay", "list"], |listed| listed.contains(&format!("\n{ROUTER4}  ")));
    a.instance.client(&["overlay", "remove", ROUTER4]);
    send();
    a.instance.until(&["overlay", "list"], |listed| listed.contains("2 datagrams refused"));
    assert!(a.instance.refusal(&["overlay", "remove", ROUTER4]).contains("is not listed"));
}

#[test]
fn a_path_that_is_too_narrow_is_told_to_the_pods() {
    let world = World::new();
    // Somebody has set the devices for jumbo frames that the hosts do not have.
    let devices = Devices { mtu: 8950, ..Devices::default() };
    let [a, _b] = nodes(&world, devices, &["--mtu=9000"]);
    // Else Linux does not tell those behind it what it has learnt (ip-sysctl.rst).
    a.child.sysctl("net/ipv4/ip_forward_use_pmtu", "1");
    let _ = a.ping(PODS[1], &["-c1", "-s100"]).success();
    // In fragments at first, whole when the pod knows.
    let learnt = || {
        let told = a.ping(PODS[1], &["-c1", "-Mdo", "-s3000"]);
        told.stdout.contains("mtu") || told.stderr.contains("mtu")
    };
    eventually("the pod hears of the MTU between the hosts", learnt);
    let _ = a.ping(PODS[1], &["-c1", "-s3000"]).success();
}

#[test]
fn an_engine_that_was_killed_is_back_with_its_port_and_its_peers() {
    let world = World::new();
    let [a, b] = nodes(&world, Devices::default(), &["--overlay-peer=203.0.113.99"]);
    for (node, peer) in [(&a, HOSTS[1]), (&b, HOSTS[0])] {
        node.instance.client(&["overlay", "add", peer]);
    }
    let _ = a.ping(PODS[1], &["-c1"]).success();
    b.instance.kill(b.instance.pid_of("rl-engine"));
    b.instance.until(&["stats", "--json"], |stats| stats.contains("\"engineRestarts\":1"));
    let listed = b.instance.client(&["overlay", "list"]);
    assert!(listed.contains(&format!("may send: 203.0.113.99, {}", HOSTS[0])), "{listed}");
    let _ = a.ping(PODS[1], &["-c3"]).success();
    transfer(&a.pod, &b.pod, PODS[1], 4 * MIB);
}

#[test]
fn a_taken_port_ends_the_launch_with_a_sentence() {
    let world = World::new();
    let _taken = world.host.udp("0.0.0.0:8472");
    let launch = tests::engine::Engine::Ours.launch().args(&["--overlay-port=8472"]);
    let finished = world.launch(&launch, &["true"]).finish();
    assert!(!finished.status.success());
    assert!(finished.stderr.contains("UDP port 8472 of the host cannot be bound"), "{}", finished.describe());
}
