//! Podman with the slirp4netns under test: an ordinary user's containers in a world.

use tests::{
    engine::Engine,
    podman::Podman,
    process::{Process, run},
    published::{SERVERS, expect_echo, peer_by_tcp, peer_by_udp, wait_for_servers},
    servers::{Serve, Server, udp_echo},
    session::{HOME, Session},
    skip::Skipped,
    world::{FAR4, FAR6, HOST4, ROUTER4, SERVICE4, SERVICE6},
};

/// A container with [`SERVERS`], all published at 80xx; they listen when it returns.
#[track_caller]
fn servers(podman: &Podman<'_>, network: &str) -> Process {
    let publish = ["--publish=8080:80", "--publish=8081:81/udp", "--publish=8082:82/tcp"];
    let mut container = podman.container(&[&[network][..], &publish].concat(), SERVERS);
    wait_for_servers(&mut container);
    container
}

#[test]
fn info_tells_the_path_and_what_version_says() {
    let Ok(session) = Session::new() else { return };
    let podman = Podman::new(&session);
    let info = run(podman.command(&["info", "--format", "{{json .Host.Slirp4NetNS}}"])).success();
    assert!(info.stdout.contains(&format!("{HOME}/bin/slirp4netns")), "{}", info.describe());
    assert!(info.stdout.contains("slirp4netns version 1."), "{}", info.describe());
    assert!(info.stdout.contains("\\nSLIRP_CONFIG_VERSION_MAX: "), "{}", info.describe());
}

#[test]
fn a_container_reaches_the_world_by_tcp_and_udp_of_both_families_and_by_name() {
    let Ok(session) = Session::new() else { return };
    let (podman, _resolver) = (Podman::new(&session), session.resolver());
    let world = session.world();
    let near = Server::start(world.host.listen(&format!("{SERVICE4}:0")), Serve::Echo);
    let far = Server::start(world.far.listen(&format!("{FAR4}:0")), Serve::Sink);
    let far6 = Server::start(world.far.listen(&format!("[{FAR6}]:0")), Serve::Sink);
    let udp = udp_echo(world.far.udp(&format!("{FAR4}:0")));
    let udp6 = udp_echo(world.host.udp(&format!("[{SERVICE6}]:0")));
    let script = format!(
        "set -e; /probe tcp-echo {SERVICE4} {} 1000000 1; /probe tcp-send {FAR4} {} 1000000 2\n\
         /probe tcp-send {FAR6} {} 1000000 3\n\
         /probe udp-echo {FAR4} {} 4 1 1000 1472 9000; /probe udp-echo {SERVICE6} {} 5 1000\n\
         echo name=$(dig +short +tries=1 a.test) >&2; cat /etc/resolv.conf >&2",
        near.port(),
        far.port(),
        far6.port(),
        udp.port(),
        udp6.port()
    );
    let done = podman.container(&["--network=slirp4netns"], &script).finish().success();
    assert_eq!(done.stdout.matches("intact=1").count(), 4, "{}", done.describe());
    assert!(done.stdout.contains("intact=4 of=4"), "{}", done.describe());
    assert!(done.stderr.contains("name=192.0.2.77"), "{}", done.describe());
    assert!(done.stderr.contains("nameserver 10.0.2.3"), "{}", done.describe());
    assert_eq!(far.served().peer.ip().to_string(), HOST4);
}

#[test]
fn the_hosts_loopback_is_reached_only_when_allowed() {
    let Ok(session) = Session::new() else { return };
    let podman = Podman::new(&session);
    let server = Server::start(session.world().host.listen("127.0.0.1:0"), Serve::Echo);
    let script = format!("/probe connect 10.0.2.2 {}", server.port());
    for (network, result) in [
        ("--network=slirp4netns", "ENETUNREACH"),
        ("--network=slirp4netns:allow_host_loopback=false", "ENETUNREACH"),
        ("--network=slirp4netns:allow_host_loopback=true", "ok"),
    ] {
        let done = podman.container(&[network], &script).finish().success();
        assert_eq!(done.value("result"), result, "{network}: {}", done.describe());
    }
}

#[test]
fn mtu_addresses_and_families_are_as_ordered() {
    let Ok(session) = Session::new() else { return };
    let podman = Podman::new(&session);
    let script = "echo mtu=$(cat /sys/class/net/tap0/mtu) $(ip -brief -4 address show tap0) global6=$(ip -6 address show tap0 scope global | grep -c inet6)
                  ip route show default; cat /etc/resolv.conf";
    for (network, mtu, address, gateway, dns, global6) in [
        ("slirp4netns", "65520", "10.0.2.100/24", "10.0.2.2", "10.0.2.3", None),
        (
            "slirp4netns:mtu=1400,enable_ipv6=false",
            "1400",
            "10.0.2.100/24",
            "10.0.2.2",
            "10.0.2.3",
            Some("0"),
        ),
        ("slirp4netns:mtu=9000,cidr=10.77.4.0/22", "9000", "10.77.4.100/22", "10.77.4.2", "10.77.4.3", None),
    ] {
        let done = podman.container(&[&format!("--network={network}")], script).finish().success();
        assert_eq!(done.value("mtu"), mtu, "{network}: {}", done.describe());
        for text in [address, &format!("default via {gateway} dev tap0"), &format!("nameserver {dns}")] {
            assert!(done.stdout.contains(text), "{network}: {text}: {}", done.describe());
        }
        if let Some(count) = global6 {
            assert_eq!(done.value("global6"), count, "{network}: {}", done.describe());
        }
    }
}

#[test]
fn enable_ipv6_gives_an_address_a_route_and_a_gateway() {
    let Ok(session) = Session::new() else { return };
    let podman = Podman::new(&session);
    let server = Server::start(session.world().far.listen(&format!("[{FAR6}]:0")), Serve::Echo);
    let loopback = Server::start(session.world().host.listen("[::1]:0"), Serve::Echo);
    // Podman waits for readiness with duplicate address detection off: the address is usable at once.
    let script = format!(
        "/probe tcp-echo {FAR6} {} 100000 1; ip -6 -brief address show tap0; ip -6 route; /probe connect fd00::2 {}",
        server.port(),
        loopback.port()
    );
    let network = "--network=slirp4netns:enable_ipv6=true,allow_host_loopback=true";
    let done = podman.container(&[network], &script).finish().success();
    assert_eq!(done.value("intact"), "1", "{}", done.describe());
    assert!(done.stdout.contains(" fd00:"), "{}", done.describe());
    assert!(done.stdout.contains("default via fe80::"), "{}", done.describe());
    assert_eq!(done.value("result"), "ok", "{}", done.describe());
}

#[test]
fn outbound_addresses_are_used() {
    let Ok(session) = Session::new() else { return };
    let (podman, world) = (Podman::new(&session), session.world());
    world.host.ip("addr add 2001:db8:3::2/128 dev lo nodad\n");
    let far = Server::start(world.far.listen(&format!("{FAR4}:0")), Serve::Echo);
    let far6 = Server::start(world.far.listen(&format!("[{FAR6}]:0")), Serve::Echo);
    for (option, peer, server, expected) in [
        ("outbound_addr=203.0.113.2", FAR4, &far, "203.0.113.2"),
        ("outbound_addr=up0", FAR4, &far, HOST4),
        ("outbound_addr6=2001:db8:3::2", FAR6, &far6, "2001:db8:3::2"),
    ] {
        let script = format!("/probe tcp-echo {peer} {} 1000 1", server.port());
        let network = format!("--network=slirp4netns:{option}");
        let done = podman.container(&[&network], &script).finish().success();
        assert_eq!(done.value("intact"), "1", "{option}: {}", done.describe());
        assert_eq!(server.served().peer.ip().to_string(), expected, "{option}");
    }
}

#[test]
fn ports_published_by_the_engine_keep_the_clients_address() {
    let Ok(session) = Session::new() else { return };
    let (podman, world) = (Podman::new(&session), session.world());
    let _container = servers(&podman, "--network=slirp4netns:port_handler=slirp4netns");
    assert_eq!(peer_by_tcp(world.router.connect(&format!("{HOST4}:8080")).expect("published")), ROUTER4);
    assert_eq!(
        peer_by_tcp(world.far.connect(&format!("{SERVICE4}:8080")).expect("published")),
        "192.88.99.2"
    );
    assert_eq!(peer_by_tcp(world.host.connect("127.0.0.1:8080").expect("published")), "10.0.2.2");
    let socket = world.router.udp(&format!("{ROUTER4}:0"));
    assert_eq!(peer_by_udp(&socket, &format!("{HOST4}:8081")), ROUTER4);
    // The original drops the answer to a client on the loopback as long as that is closed to the child.
    if Engine::under_test() == Engine::Ours {
        let socket = world.host.udp("127.0.0.1:0");
        assert_eq!(peer_by_udp(&socket, "127.0.0.1:8081"), "10.0.2.2");
    }
    expect_echo(world.far.connect(&format!("{HOST4}:8082")).expect("published"));
}

#[test]
fn ports_published_by_rootlesskits_handler_work_beside_the_engine() {
    let Ok(session) = Session::new() else { return };
    let (podman, world) = (Podman::new(&session), session.world());
    let _container = servers(&podman, "--network=slirp4netns:port_handler=rootlesskit");
    // It connects from inside: the client's address is lost, whoever the engine is.
    let client = peer_by_tcp(world.router.connect(&format!("{HOST4}:8080")).expect("published"));
    assert_eq!(client, "10.0.2.100");
    let socket = world.router.udp(&format!("{ROUTER4}:0"));
    assert_eq!(peer_by_udp(&socket, &format!("{HOST4}:8081")), "10.0.2.100");
    expect_echo(world.far.connect(&format!("{HOST4}:8082")).expect("published"));
}

#[test]
fn a_taken_port_is_an_error_of_podman_run() {
    let Ok(session) = Session::new() else { return };
    let (podman, world) = (Podman::new(&session), session.world());
    let _holder = world.host.listen("0.0.0.0:8080");
    let network = "--network=slirp4netns:port_handler=slirp4netns";
    let done = podman.container(&[network, "--publish=8080:80"], "echo started").finish();
    assert!(!done.status.success() && !done.stdout.contains("started"), "{}", done.describe());
    assert!(done.stderr.contains("add_hostfwd: slirp_add_hostfwd failed"), "{}", done.describe());
}

#[test]
fn the_engine_ends_with_its_container() {
    let Ok(session) = Session::new() else { return };
    let podman = Podman::new(&session);
    let mut container = podman.container(&["--network=slirp4netns"], "echo started; read -r end; exit 5");
    container.wait_for_line("started");
    let engine = session.run(&["pgrep", "-f", "--", "--netns-type=path"]).success().stdout;
    assert_eq!(engine.lines().count(), 1, "one engine: {engine}");
    container.close_stdin();
    assert_eq!(container.finish().status.code(), Some(5));
    let _ = session.run(&["tail", "-s", "0.1", "--pid", &engine, "-f", "/dev/null"]).success();
}

#[test]
fn a_build_step_reaches_the_world_by_name() {
    let Ok(session) = Session::new() else { return };
    let (podman, _resolver) = (Podman::new(&session), session.resolver());
    let server = Server::start(session.world().far.listen(&format!("{FAR4}:0")), Serve::Echo);
    session.write(
        "build/Containerfile",
        &format!(
            "FROM scratch\nCOPY busybox /bin/sh\nRUN [\"/bin/sh\", \"-c\", \"exec 2>&1; ip addr show dev tap0; nslookup a.test; nc {FAR4} {} </bin/sh | cmp - /bin/sh && echo same\"]\n",
            server.port()
        ),
    );
    let _ = session.shell("cp /bin/busybox build/busybox").success();
    let build = podman.command(&["build", "build"]);
    let done = run(build).success();
    for text in ["inet 10.0.2.100/24", "192.0.2.77", "same"] {
        assert!(done.stdout.contains(text), "{text}: {}", done.describe());
    }
}

/// Podman's bridges are in a namespace of their own that slirp4netns joins to the host.
#[test]
fn two_containers_of_a_bridge_reach_each_other_and_the_world() {
    let Ok(session) = Session::new() else { return };
    let nat = session.run(&["unshare", "--user", "--map-root-user", "--net", "iptables", "-t", "nat", "-L"]);
    if !nat.status.success() {
        let _ = Skipped::because("the kernel has no NAT for Podman's bridges");
        return;
    }
    let (podman, world) = (Podman::new(&session), session.world());
    let server = Server::start(world.far.listen(&format!("{FAR4}:0")), Serve::Echo);
    let _ = run(podman.command(&["network", "create", "--disable-dns", "--subnet=10.99.7.0/24", "bridge7"]))
        .success();
    let mut first = podman.container(&["--network=bridge7:ip=10.99.7.10", "--publish=8080:80"], SERVERS);
    wait_for_servers(&mut first);
    let script =
        format!("/probe tcp-echo {FAR4} {} 1000000 1; /probe tcp-echo 10.99.7.10 82 1000 2", server.port());
    let done = podman.container(&["--network=bridge7"], &script).finish().success();
    assert_eq!(done.stdout.matches("intact=1").count(), 2, "{}", done.describe());
    assert_eq!(server.served().peer.ip().to_string(), HOST4);
    let _ = peer_by_tcp(world.router.connect(&format!("{HOST4}:8080")).expect("published"));
}

#[test]
fn pasta_reaches_the_world_and_publishes_ports() {
    let Ok(session) = Session::new() else { return };
    let podman = Podman::new(&session);
    let version = run(podman.command(&["version", "--format", "{{.Client.Version}}"])).success().stdout;
    let number =
        version.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok()).collect::<Vec<_>>();
    if number < vec![4, 4] {
        let _ =
            Skipped::because(&format!("Podman {version} knows no pasta; foreign_callers makes its calls"));
        return;
    }
    let (world, _resolver) = (session.world(), session.resolver());
    let far = Server::start(world.far.listen(&format!("{FAR4}:0")), Serve::Echo);
    let script =
        format!("/probe many 1 {FAR4} {} 100000 1; echo name=$(dig +short +tries=1 a.test)", far.port());
    let done = podman.container(&["--network=pasta"], &script).finish().success();
    assert_eq!((done.value("intact"), done.value("name")), ("1".to_owned(), "192.0.2.77".to_owned()));
    let _container = servers(&podman, "--network=pasta");
    let socket = world.far.udp("0.0.0.0:0");
    assert_eq!(peer_by_udp(&socket, &format!("{HOST4}:8081")), "192.88.99.2");
    expect_echo(world.far.connect(&format!("{HOST4}:8082")).expect("published"));
}
