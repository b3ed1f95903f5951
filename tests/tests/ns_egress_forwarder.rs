//! The egress relay: the forwarder alone between real kernels.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::OwnedFd;

use forwarder::driver::{Config, Egress, EgressAbility, EgressError, EgressMode, Limits};
use tests::{
    client::connect,
    egress::{CHILD4, EgressLab, Outcome},
    locate,
    process::Process,
    servers::{Serve, Server, drain, pour, reset, verdict},
    stream::StreamHash,
    world::{Netns, SERVICE4, SERVICE6, World},
};

fn lab() -> (World, Netns, EgressLab) {
    let world = World::new();
    let child = world.child();
    let lab = EgressLab::start(&world, &child);
    assert_eq!(lab.handle.egress_abilities().expect("it works"), [EgressAbility::Possible; 2]);
    (world, child, lab)
}

/// A server's two names.
fn addresses(server: &Server) -> [String; 2] {
    [format!("{SERVICE4}:{}", server.port()), format!("[{SERVICE6}]:{}", server.port())]
}

const MUCH: u64 = 100 << 20;

#[test]
fn a_hundred_megabytes_arrive_whole_in_both_directions() {
    let (world, child, lab) = lab();
    let sink = Server::start(world.host.listen("[::]:0"), Serve::Sink);
    let source = Server::start(world.host.listen("[::]:0"), Serve::Source(MUCH, 7));
    for address in addresses(&sink) {
        let mut stream = connect(&child, &address);
        assert_eq!(stream.peer_addr().unwrap().to_string(), address);
        pour(&mut stream, MUCH, 5).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, verdict(MUCH, StreamHash::of_pattern(5, MUCH)));
        lab.joined();
        assert_eq!(lab.ended(), (MUCH, 16));
    }
    for address in addresses(&source) {
        let (hash, error) = drain(&mut connect(&child, &address));
        assert!(error.is_none(), "{error:?}");
        assert_eq!((hash.bytes(), hash.sum()), (MUCH, StreamHash::of_pattern(7, MUCH)));
        lab.joined();
        assert_eq!(lab.ended(), (0, MUCH));
    }
    assert_eq!(lab.strays(), 0, "nothing but handshakes leaves by the TAP");
}

#[test]
fn either_side_may_end_first() {
    let (world, child, lab) = lab();
    let server = Server::start(world.host.listen("[::]:0"), Serve::SourceThenSink(1 << 20, 3));
    for address in addresses(&server) {
        let mut stream = connect(&child, &address);
        let (hash, error) = drain(&mut stream);
        assert!(error.is_none(), "{error:?}");
        assert_eq!(hash.sum(), StreamHash::of_pattern(3, 1 << 20));
        // The server has ended its direction; ours goes on.
        pour(&mut stream, 1 << 20, 4).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let served = server.served();
        assert_eq!((served.sum, served.error), (StreamHash::of_pattern(4, 1 << 20), None));
        lab.joined();
        assert_eq!(lab.ended(), (1 << 20, 1 << 20));
    }
}

#[test]
fn resets_are_passed_on_both_ways() {
    let (world, child, lab) = lab();
    let resetting = Server::start(world.host.listen("[::]:0"), Serve::ResetAfterByte);
    let echo = Server::start(world.host.listen("[::]:0"), Serve::Echo);
    for address in addresses(&resetting) {
        let mut stream = connect(&child, &address);
        stream.write_all(b"x").unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        lab.joined();
        lab.ended();
    }
    for address in addresses(&echo) {
        let mut stream = connect(&child, &address);
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        reset(stream).unwrap();
        assert_eq!(echo.served().error, Some(ErrorKind::ConnectionReset));
        lab.joined();
        lab.ended();
    }
    assert_eq!(lab.handle.stats().unwrap().egress.reset, 4);
}

#[test]
fn a_thousand_connections_at_once() {
    let (world, child, lab) = lab();
    let server = Server::start(world.host.listen("[::]:0"), Serve::Echo);
    for host in [SERVICE4, SERVICE6] {
        let many = locate::probe_argv(&["many", "1000", host, &server.port(), "3000", "1"]);
        let probe = Process::spawn(child.command(&many)).finish().success();
        assert_eq!((probe.value("open"), probe.value("intact")), ("1000".to_owned(), "1000".to_owned()));
    }
    let mut ends = 0;
    while ends < 2000 {
        match lab.outcome() {
            Outcome::Joined(_) => {}
            Outcome::Ended(_, to_host, from_host) => {
                assert_eq!((to_host, from_host), (3000, 3000));
                ends += 1;
            }
            Outcome::Refused(_, _, why) => panic!("{why:?}"),
        }
    }
    let stats = lab.handle.stats().unwrap();
    assert_eq!((stats.egress.joined, stats.egress.connections), (2000, 0));
    assert_eq!((stats.egress.bytes_to_host, stats.egress.bytes_from_host), (6_000_000, 6_000_000));
    assert_eq!(stats.total.connections_total, 0, "published ports are counted apart");
}

#[test]
fn privileged_ports_are_reached_and_connections_listed() {
    let (world, child, lab) = lab();
    let _server = Server::start(world.host.listen(&format!("{SERVICE4}:80")), Serve::Echo);
    let stream = connect(&child, &format!("{SERVICE4}:80"));
    let id = lab.joined();
    let list = lab.handle.connections().unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!((list[0].egress, list[0].client), (Some(id), stream.local_addr().unwrap()));
    assert_eq!(list[0].server, stream.peer_addr().unwrap());
}

/// Offers a connection to `server` that nobody in the child has asked for.
fn offer(world: &World, lab: &EgressLab, child: &str, server: &str) {
    let stream = connect(&world.host, server);
    stream.set_nonblocking(true).expect("it works");
    let (child, destination) =
        (child.parse().expect("it works"), server.parse::<SocketAddr>().expect("it works"));
    let offer = Egress { stream: OwnedFd::from(stream), child, destination, id: 77 };
    lab.handle.relay(offer).expect("it works");
}

#[test]
fn the_hosts_socket_comes_back_as_it_was_when_nobody_waits_any_more() {
    let (world, _child, lab) = lab();
    let server = Server::start(world.host.listen("[::]:0"), Serve::Source(1000, 9));
    let [ipv4, ipv6] = addresses(&server);
    for (child, address) in [(format!("{CHILD4}:4000"), ipv4), ("[fd00::100]:4000".to_owned(), ipv6)] {
        offer(&world, &lab, &child, &address);
        let (mut stream, why) = lab.refused();
        assert!(
            matches!(&why, EgressError::Connect(error) if error.kind() == ErrorKind::ConnectionRefused),
            "{why:?}"
        );
        stream.set_nonblocking(false).unwrap();
        assert_eq!(drain(&mut stream).0.sum(), StreamHash::of_pattern(9, 1000));
    }
    assert_eq!(lab.handle.stats().unwrap().egress.refused, 2);
}

#[test]
fn a_port_on_which_the_child_listens_is_left_to_the_tap() {
    let (world, child, lab) = lab();
    let server = Server::start(world.host.listen("[::]:0"), Serve::Hold);
    let _listener = child.listen(&format!("0.0.0.0:{}", server.port()));
    let [address, _] = addresses(&server);
    offer(&world, &lab, &format!("{CHILD4}:4000"), &address);
    let (_, why) = lab.refused();
    assert!(matches!(&why, EgressError::Bind(error) if error.kind() == ErrorKind::AddrInUse), "{why:?}");
}

#[test]
fn offers_beyond_the_limit_come_back() {
    let world = World::new();
    let child = world.child();
    let limits = Limits { connections: 1, ..Limits::default() };
    let config = Config { egress: EgressMode::WhenOffered, limits, ..Config::default() };
    let lab = EgressLab::start_with(&world, &child, config);
    assert_eq!(lab.handle.egress_abilities().unwrap(), [EgressAbility::Possible; 2]);
    let server = Server::start(world.host.listen("[::]:0"), Serve::Echo);
    let [address, _] = addresses(&server);
    let first = connect(&child, &address);
    lab.joined();
    offer(&world, &lab, &format!("{CHILD4}:4000"), &address);
    assert!(matches!(lab.refused().1, EgressError::Limit));
    drop(first);
    lab.ended();
    let _second = connect(&child, &address);
    lab.joined();
}

/// What nft(8) says about our table.
const TABLE: &str = "\
table inet rootless-launch { # progname probe
\tflags owner

\tchain output {
\t\ttype route hook output priority mangle; policy accept;
\t\toif \"lo\" meta mark 0x00000000 tcp flags != syn / syn,ack accept
\t\tmeta l4proto tcp meta mark 0x726c0002 ct mark set ct mark | 0x01000000 accept
\t\tmeta l4proto tcp meta mark 0x726c0003 ct mark set ct mark | 0x02000000 accept
\t\tct mark & 0x03000000 != 0x00000000 tcp flags != syn / syn,ack meta mark set 0x726c0001
\t\tmeta l4proto tcp oif \"lo\" meta mark 0x00000000 fib daddr type != local meta mark set 0x726c0004
\t}

\tchain prerouting {
\t\ttype filter hook prerouting priority mangle; policy accept;
\t\tiif \"lo\" meta mark 0x726c0002 meta mark set 0x726c0001
\t\tiif \"lo\" meta mark 0x726c0003 meta mark set 0x726c0001
\t\tiif \"lo\" accept
\t\tct mark & 0x01000000 == 0x01000000 ct direction reply tcp flags syn,rst ct mark set ct mark & 0xfeffffff accept
\t\tmeta l4proto tcp ct mark & 0x02000000 == 0x02000000 ct direction original ct mark set ct mark & 0xfdffffff accept
\t\tct mark & 0x03000000 != 0x00000000 tcp flags != syn / syn,ack meta mark set 0x726c0001
\t}

\tchain postrouting {
\t\ttype nat hook postrouting priority srcnat - 1; policy accept;
\t\tmeta l4proto tcp fib saddr . oif type local snat ip to ip saddr
\t\tmeta l4proto tcp fib saddr . oif type local snat ip6 to ip6 saddr
\t}
}";

#[test]
fn the_table_is_what_nft_reads_and_others_cannot_flush_it() {
    let (_world, child, lab) = lab();
    let ruleset = || child.run(&["nft", "list", "ruleset"]).success().stdout;
    assert_eq!(ruleset(), TABLE);
    let _ = child.run(&["nft", "flush", "ruleset"]).success();
    assert_eq!(ruleset(), TABLE);
    drop(lab);
    assert_eq!(ruleset(), "", "it goes with its owner");
}

/// A machine behind the child: a namespace at a bridge of it, whose packets the child forwards.
fn pod(world: &World, child: &Netns) -> Netns {
    let pod = world.beside();
    child.ip(&format!(
        "link add cni0 type bridge\naddr add 10.88.0.1/16 dev cni0\naddr add fd88::1/64 dev cni0 nodad\n\
         link set cni0 up\nlink add veth0 type veth peer name eth0\nlink set eth0 netns {}\n\
         link set veth0 master cni0\nlink set veth0 up\n",
        pod.pid()
    ));
    pod.ip("addr add 10.88.0.5/16 dev eth0\naddr add fd88::5/64 dev eth0 nodad\nlink set eth0 up\n\
         route add default via 10.88.0.1\nroute add default via fd88::1\n");
    child.sysctl("net/ipv4/ip_forward", "1");
    child.sysctl("net/ipv6/conf/all/forwarding", "1");
    pod
}

#[track_caller]
fn nft(netns: &Netns, rules: &str) {
    let mut nft = Process::spawn(netns.program(&["nft", "-f", "-"]));
    nft.tell(rules);
    nft.close_stdin();
    let _ = nft.finish().success();
}

const MASQUERADE: &str = "table inet nat {
    chain postrouting { type nat hook postrouting priority srcnat; oifname tap0 masquerade; }
}";

#[track_caller]
fn assert_relayed(world: &World, from: &Netns, lab: &EgressLab, clients: [&str; 2]) {
    let echo = Server::start(world.host.listen("[::]:0"), Serve::Sink);
    let resetting = Server::start(world.host.listen("[::]:0"), Serve::ResetAfterByte);
    let source = Server::start(world.host.listen("[::]:0"), Serve::Source(1 << 20, 8));
    let strays = lab.strays();
    for (address, client) in addresses(&echo).into_iter().zip(clients) {
        let mut stream = connect(from, &address);
        lab.joined();
        let listed = lab.handle.connections().expect("it works");
        assert_eq!(listed[0].client.ip().to_string(), client);
        pour(&mut stream, 10 << 20, 5).expect("it works");
        stream.shutdown(Shutdown::Write).expect("it works");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("it works");
        assert_eq!(answer, verdict(10 << 20, StreamHash::of_pattern(5, 10 << 20)));
        lab.ended();
    }
    for address in addresses(&source) {
        assert_eq!(drain(&mut connect(from, &address)).0.sum(), StreamHash::of_pattern(8, 1 << 20));
        lab.joined();
        lab.ended();
    }
    for address in addresses(&resetting) {
        let mut stream = connect(from, &address);
        stream.write_all(b"x").expect("it works");
        assert!(stream.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
        lab.joined();
        lab.ended();
    }
    assert_eq!(lab.strays(), strays);
}

#[test]
fn machines_behind_the_child_are_relayed_under_their_own_addresses() {
    let (world, child, lab) = lab();
    let pod = pod(&world, &child);
    assert_relayed(&world, &pod, &lab, ["10.88.0.5", "fd88::5"]);
    assert_relayed(&world, &child, &lab, [CHILD4, "fd00::100"]);
}

#[test]
fn masqueraded_machines_behind_the_child_are_relayed() {
    let (world, child, lab) = lab();
    let pod = pod(&world, &child);
    nft(&child, MASQUERADE);
    assert_relayed(&world, &pod, &lab, [CHILD4, "fd00::100"]);
    assert_relayed(&world, &child, &lab, [CHILD4, "fd00::100"]);
}

#[test]
fn translated_destinations_are_relayed() {
    let (world, child, lab) = lab();
    let server = Server::start(world.host.listen("[::]:0"), Serve::Sink);
    let pod = pod(&world, &child);
    nft(
        &child,
        &format!(
            "table ip service {{
                chain output {{ type nat hook output priority -100; ip daddr 10.96.0.1 tcp dport 443 dnat to {SERVICE4}:{port}; }}
                chain prerouting {{ type nat hook prerouting priority -100; ip daddr 10.96.0.1 tcp dport 443 dnat to {SERVICE4}:{port}; }}
            }}\n{MASQUERADE}",
            port = server.port()
        ),
    );
    for from in [&child, &pod] {
        let mut stream = connect(from, "10.96.0.1:443");
        pour(&mut stream, 1 << 20, 5).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, verdict(1 << 20, StreamHash::of_pattern(5, 1 << 20)));
        lab.joined();
        lab.ended();
    }
    assert_eq!(lab.strays(), 0);
}
