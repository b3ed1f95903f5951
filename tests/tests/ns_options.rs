//! Settings of the engine that its own command line does not offer in these combinations: refusals, maps, foreign
//! addresses, outbound binding, other links, an empty root. The engine is `lab-engine`, the child a real kernel.

use std::net::{IpAddr, UdpSocket};
use tests::{
    engine::ours,
    locate,
    process::{DEADLINE, Finished, Pipe, Process},
    servers::{Serve, Server, udp_echo},
    world::{FAR4, FAR6, HOST4, Netns, ROUTER4, SERVICE4, SERVICE6, World},
};

/// `argv` behind an engine with `settings`.
#[track_caller]
fn start(world: &World, settings: &[&str], argv: &[String]) -> Process {
    let probe = locate::probe_argv(&[]).remove(0);
    let engine = std::path::Path::new(&probe).with_file_name("lab-engine").to_string_lossy().into_owned();
    let settings = settings.iter().map(ToString::to_string);
    let whole = [engine].into_iter().chain(settings).chain(["--".to_owned()]).chain(argv.iter().cloned());
    Process::spawn(world.host.command(&whole.collect::<Vec<_>>()))
}

#[track_caller]
fn probe(world: &World, settings: &[&str], args: &[&str]) -> Finished {
    start(world, settings, &locate::probe_argv(args)).finish().success()
}

/// Runs a foreign program.
#[track_caller]
fn run(world: &World, settings: &[&str], args: &[&str]) -> Finished {
    let mut argv = args.iter().map(ToString::to_string).collect::<Vec<_>>();
    argv[0] = locate::program(args[0]).to_string_lossy().into_owned();
    start(world, settings, &argv).finish()
}

/// A child that does what it is told.
struct Child(Process);

impl Child {
    #[track_caller]
    fn start(world: &World, settings: &[&str]) -> Self {
        Child(start(world, settings, &locate::probe_argv(&["talk"])))
    }

    #[track_caller]
    fn ask(&mut self, request: &str) -> String {
        self.0.tell(request);
        self.0.wait_for_line("answer=").trim_start_matches("answer=").to_owned()
    }

    /// The address that a server sees when the child connects to it.
    #[track_caller]
    fn source(&mut self, host: &str, server: &Server) -> IpAddr {
        assert_eq!(self.ask(&format!("connect {host} {} 20000", server.port())), "ok");
        server.accepted().ip()
    }

    /// The address that a UDP socket sees when the child sends to it by the name `host`.
    #[track_caller]
    fn udp_source(&mut self, host: &str, socket: &UdpSocket) -> IpAddr {
        self.0.tell(&format!("udp {host} {}", socket.local_addr().expect("bound").port()));
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let (_, from) = socket.recv_from(&mut [0; 64]).expect("the child's datagram");
        socket.send_to(b"yes", from).expect("the reply");
        assert_eq!(self.0.wait_for_line("answer="), "answer=ok", "the answer from {host}");
        from.ip()
    }

    /// The sentences that the engine ends with.
    fn finish(mut self) -> Finished {
        self.0.close_stdin();
        self.0.finish().success()
    }
}

fn listen(netns: &Netns, address: &str) -> Server {
    let address: IpAddr = address.parse().expect("an address");
    Server::start(netns.listen(&std::net::SocketAddr::new(address, 0).to_string()), Serve::Echo)
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn dnsmasq(world: &World, address: &str) -> Process {
    let listen = format!("--listen-address={address}");
    let name = format!("--host-record=who.test,{address}");
    let mut process = Process::spawn(world.host.program(&[
        "dnsmasq",
        "--no-daemon",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--log-facility=-",
        "--user=",
        "--bind-interfaces",
        "--except-interface=nonexistent",
        &listen,
        &name,
        "--local=/test/",
        "--pid-file=",
    ]));
    process.wait_for(Pipe::Stderr, "started");
    process
}

// === refusals, DNS ===

#[test]
fn the_loopback_that_is_closed_is_an_unreachable_network_with_a_living_gateway() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let mut child = Child::start(&world, &["refusal=unreachable"]);
    for gateway in ["10.0.42.2", "fd42:10:42::2"] {
        assert_eq!(child.ask(&format!("connect {gateway} 8080 20000")), "ENETUNREACH", "{gateway}");
        assert_eq!(child.ask(&format!("run ping -n -c1 -W5 {gateway} >&2")), "0", "{gateway}");
    }
    assert_eq!(child.ask("udp 10.0.42.2 8080"), "ENETUNREACH");
}

#[test]
fn dns_that_is_off_does_not_answer_at_all() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let _server = dnsmasq(&world, SERVICE4);
    let mut child = Child::start(&world, &["dns=off"]);
    assert_eq!(child.ask("connect 10.0.42.3 53 300"), "TIMEOUT");
    let ended = child.finish();
    assert!(ended.stderr.contains("DNS is off"), "{}", ended.describe());
}

#[test]
fn dns_is_served_at_a_link_local_address_and_asked_where_the_settings_say() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    world.set_resolv_conf("nameserver 203.0.113.2\n");
    let _server = dnsmasq(&world, SERVICE4);
    let settings = ["dns-at=169.254.1.1", &format!("dns={SERVICE4}:53")];
    for how in ["+notcp", "+tcp"] {
        let found = run(
            &world,
            &settings,
            &["dig", "+tries=1", "+time=8", "+short", how, "@169.254.1.1", "who.test"],
        );
        assert_eq!(found.success().stdout, SERVICE4, "{how}");
    }
}

// === maps ===

#[test]
fn an_address_stands_for_the_host_whatever_its_address_is_by_then() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let server = listen(&world.host, "0.0.0.0");
    let udp = world.host.udp("0.0.0.0:0");
    let mut child = Child::start(&world, &["map=169.254.1.2=host"]);
    assert_eq!(child.source("169.254.1.2", &server), ip(HOST4));
    assert_eq!(child.udp_source("169.254.1.2", &udp), ip(HOST4));
    world.host.ip(&format!(
        "addr del {HOST4}/24 dev up0\naddr add 192.0.2.9/24 dev up0\nroute replace default via {ROUTER4}\n"
    ));
    assert_eq!(child.source("169.254.1.2", &server), ip("192.0.2.9"));
    assert_eq!(child.udp_source("169.254.1.2", &udp), ip("192.0.2.9"));
    // Without a default route it is the address of an interface.
    world.host.ip(&format!("route del default via {ROUTER4}\n"));
    assert_eq!(child.source("169.254.1.2", &server), ip("192.0.2.9"));
    world.host.ip("addr flush dev up0\n");
    assert_eq!(child.ask(&format!("connect 169.254.1.2 {} 20000", server.port())), "ENETUNREACH");
}

#[test]
fn an_address_stands_for_the_loopback_in_both_families() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let mut child = Child::start(&world, &["map=192.0.2.250=loopback", "map=2001:db8:99::1=loopback"]);
    for (name, loopback) in [("192.0.2.250", "127.0.0.1"), ("2001:db8:99::1", "::1")] {
        let server = listen(&world.host, loopback);
        assert_eq!(child.source(name, &server), ip(loopback));
        assert_eq!(child.ask(&format!("connect {name} 9 20000")), "ECONNREFUSED");
    }
    let udp = world.host.udp("127.0.0.1:0");
    assert_eq!(child.udp_source("192.0.2.250", &udp), ip("127.0.0.1"));
    assert_eq!(child.ask("udp 192.0.2.250 9"), "ECONNREFUSED", "the error comes from the name that was used");
    assert_eq!(child.ask("run ping -n -c1 -W5 192.0.2.250 >&2"), "0");
}

// === outbound ===

#[test]
fn everything_leaves_from_the_outbound_address() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let (far, local) = (listen(&world.far, FAR4), listen(&world.host, "127.0.0.1"));
    let (udp, local_udp) = (world.far.udp(&format!("{FAR4}:0")), world.host.udp("127.0.0.1:0"));
    let far6 = listen(&world.far, FAR6);
    let mut child =
        Child::start(&world, &["out4=203.0.113.2", &format!("out6={SERVICE6}"), "loopback=allow"]);
    assert_eq!(child.source(FAR4, &far), ip("203.0.113.2"));
    assert_eq!(child.source(FAR6, &far6), ip(SERVICE6));
    assert_eq!(child.udp_source(FAR4, &udp), ip("203.0.113.2"));
    assert_eq!(child.source("10.0.42.2", &local), ip("203.0.113.2"));
    assert_eq!(child.udp_source("10.0.42.2", &local_udp), ip("203.0.113.2"));
    assert_eq!(child.ask(&format!("run ping -n -c1 -W5 {FAR4} >&2")), "0");
}

#[test]
fn everything_leaves_by_the_outbound_interface_but_not_to_the_loopback() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let (far, local) = (listen(&world.far, FAR4), listen(&world.host, "127.0.0.1"));
    let udp = world.far.udp(&format!("{FAR4}:0"));
    world.set_resolv_conf("nameserver 127.0.0.53\n");
    let _server = dnsmasq(&world, "127.0.0.53");
    // The default route leads elsewhere; the interface has one of a larger metric.
    world.host.ip(&format!(
        "link add side0 type veth peer name side1\naddr add 198.18.0.1/24 dev side0\nlink set side0 up\nlink set side1 up\n\
         route del default via {ROUTER4}\nroute add default via 198.18.0.2 metric 1\nroute add default via {ROUTER4} metric 9\n"
    ));
    let mut child = Child::start(&world, &["out4=up0", "loopback=allow"]);
    assert_eq!(child.source(FAR4, &far), ip(HOST4));
    assert_eq!(child.udp_source(FAR4, &udp), ip(HOST4));
    assert_eq!(child.source("10.0.42.2", &local), ip("127.0.0.1"));
    assert_eq!(child.ask(&format!("run ping -n -c1 -W5 {FAR4} >&2")), "0");
    let dig = "test $(dig +tries=1 +time=8 +short @10.0.42.3 who.test) = 127.0.0.53";
    assert_eq!(child.ask(&format!("run {dig}")), "0", "a resolver on the loopback");
    // The interface goes, and everything that is asked for afterwards is refused and counted.
    world.host.ip("link del up0\n");
    assert_eq!(child.ask(&format!("connect {FAR4} {} 20000", far.port())), "ENETUNREACH");
    assert_eq!(child.ask(&format!("udp {FAR4} 9")), "ENETUNREACH", "the socket that was bound to it");
    let ended = child.finish();
    assert!(ended.stderr.contains("outbound address or interface"), "{}", ended.describe());
}

// === addresses of the host's ===

#[test]
fn a_child_with_the_hosts_own_address_reaches_neighbours_and_the_world() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    for prefix in ["24", "32", "31", "1"] {
        let settings = [
            &format!("copied={HOST4}/{prefix},{ROUTER4}"),
            "copied=2001:db8:1::2/64,fe80::1",
            "map=169.254.1.2=host",
        ];
        let mut child = Child::start(&world, &settings);
        let (far, neighbour) = (listen(&world.far, FAR4), listen(&world.router, ROUTER4));
        assert_eq!(child.source(FAR4, &far), ip(HOST4), "/{prefix}");
        assert_eq!(child.source(ROUTER4, &neighbour), ip(HOST4), "/{prefix}");
        assert_eq!(child.ask(&format!("run ping -n -c1 -W5 {ROUTER4} >&2")), "0", "/{prefix}");
        let (far6, neighbour6) = (listen(&world.far, FAR6), listen(&world.router, "2001:db8:1::1"));
        let host6 = ip("2001:db8:1::2");
        assert_eq!(child.source(FAR6, &far6), host6, "/{prefix}");
        assert_eq!(child.source("2001:db8:1::1", &neighbour6), host6, "/{prefix}");
        let host = listen(&world.host, "0.0.0.0");
        assert_eq!(child.source("169.254.1.2", &host), ip(HOST4), "/{prefix}");
    }
}

#[test]
fn a_child_may_have_one_family_only() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let (far, far6) = (listen(&world.far, FAR4), listen(&world.far, FAR6));
    let (connect, connect6) =
        (format!("connect {FAR4} {} 20000", far.port()), format!("connect {FAR6} {} 20000", far6.port()));
    let mut child = Child::start(&world, &["ipv4=off"]);
    assert_eq!((child.ask(&connect6), child.ask(&connect)), ("ok".into(), "ENETUNREACH".into()));
    let mut child = Child::start(&world, &["ipv6=off"]);
    assert_eq!((child.ask(&connect), child.ask(&connect6)), ("ok".into(), "ENETUNREACH".into()));
}

#[test]
fn a_child_that_chooses_its_own_ipv6_address_is_served() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let far6 = listen(&world.far, FAR6);
    let mut child = Child::start(&world, &["ipv6=slaac"]);
    assert_eq!(child.ask("default6 present"), "ok");
    assert_eq!(child.ask(&format!("connect {FAR6} {} 20000", far6.port())), "ok");
}

#[test]
fn the_first_lease_is_of_the_pool_where_the_childs_address_is_somebody_elses_business() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let script = world.dir().join("lease");
    std::fs::write(&script, "#!/bin/sh\n[ \"$1\" = bound ] && echo ip=$ip router=$router dns=$dns\nexit 0\n")
        .expect("write in our directory");
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    let script = script.to_string_lossy().into_owned();
    let client = ["busybox", "udhcpc", "-f", "-n", "-q", "-i", "tap0", "-s", &script];
    let lease = run(&world, &["dhcp=pool"], &client).success();
    assert_eq!(lease.value("ip"), "10.0.42.15", "{}", lease.describe());
    let silent = run(&world, &["dhcp=pool", "dns=off"], &client).success();
    assert_eq!(silent.value("dns"), "", "nobody is told of a server that does not answer");
}

// === links ===

#[test]
fn every_kind_of_link_carries_every_kind_of_packet() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let echo = udp_echo(world.host.udp(&format!("{SERVICE4}:0")));
    let server = listen(&world.host, SERVICE4);
    let port = echo.port();
    for (link, offloads) in [("tap", true), ("persistent", true), ("plain", false), ("packet", false)] {
        for mtu in ["mtu=1500", "mtu=65521"] {
            let settings = [&format!("link={link}"), mtu];
            let done = probe(&world, &settings, &["tcp-echo", SERVICE4, &server.port(), "1000000", "5"]);
            assert_eq!(done.value("intact"), "1", "{link} {mtu}: {}", done.describe());
            let told = done.stderr.contains("checksum: true, tso4: true, tso6: true");
            assert_eq!(told, offloads, "{link}: {}", done.describe());
            let sizes = ["1", "1472", "9000", "65493", "65507"];
            let args = [&["udp-echo", SERVICE4, &port, "3"][..], &sizes].concat();
            let done = probe(&world, &settings, &args);
            assert_eq!(done.value("intact"), sizes.len().to_string(), "{link} {mtu}: {}", done.describe());
        }
    }
}

// === an empty root ===

#[test]
fn an_engine_in_an_empty_root_serves_and_follows_resolv_conf() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    world.set_resolv_conf("nameserver 203.0.113.2\n");
    let _server = dnsmasq(&world, SERVICE4);
    let far = listen(&world.far, FAR4);
    let dig = "dig +tries=1 +time=8 +short @10.0.42.3 who.test";
    // The child asks until the engine has noticed.
    let found = format!(
        "run i=0; while [ $i -lt 100 ]; do i=$((i+1)); [ \"$({dig})\" = {SERVICE4} ] && exit 0; done; exit 1"
    );
    let settings = ["root=empty", "map=169.254.1.2=host"];
    let mut child = Child::start(&world, &settings);
    assert_eq!(child.source(FAR4, &far), ip(HOST4));
    assert_eq!(child.source("169.254.1.2", &listen(&world.host, "0.0.0.0")), ip(HOST4));
    // Written in place, through the source of the bind mount.
    world.set_resolv_conf(&format!("nameserver {SERVICE4}\n"));
    assert_eq!(child.ask(&found), "0");
    drop(child);
    // As systemd-resolved does it: a link into /run, and a new file renamed over the old one. The child has the same
    // /run, though not the engine's mount of it.
    world.set_resolv_conf("nameserver 203.0.113.2\n");
    let mut child = Child::start(&world, &["root=empty", "resolv=linked"]);
    assert_eq!(child.source(FAR4, &far), ip(HOST4));
    for _ in 0..2 {
        let replace = |server: &str| {
            format!(
                "run cd /run/systemd/resolve && echo nameserver {server} >new && mv new stub-resolv.conf && cd /"
            )
        };
        assert_eq!(child.ask(&replace(SERVICE4)), "0");
        assert_eq!(child.ask(&found), "0");
        // Back to a server that does not answer, which is noticed by a refusal.
        assert_eq!(child.ask(&replace("203.0.113.2")), "0");
        let lost = format!(
            "run i=0; while [ $i -lt 100 ]; do i=$((i+1)); {dig} | grep -q {SERVICE4} || exit 0; done; exit 1"
        );
        assert_eq!(child.ask(&lost), "0");
    }
}
