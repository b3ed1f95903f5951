//! Published ports: the forwarder alone between real kernels.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;

use tests::{
    client::{ask, connect, urgent_stays_in_place},
    forward::{CHILD4, CHILD6, Forwarder, GATEWAY4, GATEWAY6},
    process::DEADLINE,
    servers::{Serve, Server, drain, pour, reset},
    stream::StreamHash,
    world::{HOST4, Netns, SERVICE4, SERVICE6, World},
};

const FAR_CLIENT4: &str = "192.88.99.2";
const FAR_CLIENT6: &str = "2001:db8:4::2";
const HOST6: &str = "2001:db8:1::2";

fn lab() -> (World, Netns) {
    let world = World::new();
    let child = world.child();
    (world, child)
}

#[test]
fn servers_see_the_clients_address_whatever_they_bind() {
    let (world, child) = lab();
    let mut forwarder = Forwarder::start(&world, &child);
    forwarder.add("8080:80");
    for bound in ["0.0.0.0", CHILD4, "[::]"] {
        let server = Server::start(child.listen(&format!("{bound}:80")), Serve::Echo);
        assert_eq!(ask(connect(&world.far, &format!("{HOST4}:8080")), b"question"), b"question");
        assert_eq!(server.served().peer.ip().to_canonical().to_string(), FAR_CLIENT4, "{bound}");
    }
    for bound in ["[::]", &format!("[{CHILD6}]")] {
        let server = Server::start(child.listen(&format!("{bound}:80")), Serve::Echo);
        assert_eq!(ask(connect(&world.far, &format!("[{HOST6}]:8080")), b"question"), b"question");
        assert_eq!(server.served().peer.ip().to_string(), FAR_CLIENT6, "{bound}");
    }
}

#[test]
fn the_clients_port_is_kept_too() {
    let (world, child) = lab();
    let mut forwarder = Forwarder::start(&world, &child);
    forwarder.add("8080:80");
    let server = Server::start(child.listen("0.0.0.0:80"), Serve::Echo);
    let stream = connect(&world.far, &format!("{HOST4}:8080"));
    assert_eq!(server.accepted(), stream.local_addr().unwrap());
}

#[test]
fn clients_on_the_hosts_loopback_appear_as_the_gateway() {
    let (world, child) = lab();
    let mut forwarder = Forwarder::start(&world, &child);
    forwarder.add("8080:80");
    let server = Server::start(child.listen("[::]:80"), Serve::Echo);
    for (host, appears) in [("127.0.0.1", GATEWAY4), ("[::1]", GATEWAY6)] {
        assert_eq!(ask(connect(&world.host, &format!("{host}:8080")), b"x"), b"x");
        assert_eq!(server.served().peer.ip().to_canonical().to_string(), appears);
    }
}

#[test]
fn source_gateway_hides_the_client() {
    let (world, child) = lab();
    let mut forwarder = Forwarder::start(&world, &child);
    forwarder.add("8080:80,source=gateway");
    let server = Server::start(child.listen("0.0.0.0:80"), Serve::Echo);
    assert_eq!(ask(connect(&world.far, &format!("{HOST4}:8080")), b"x"), b"x");
    assert_eq!(server.served().peer.ip().to_string(), GATEWAY4);
}

#[test]
fn servers_on_the_childs_loopback_are_reached() {
    let (world, child) = lab();
    let mut forwarder = Forwarder::start(&world, &child);
    forwarder.add("8080:80");
    for (bound, host) in [
        ("127.0.0.1", HOST4),
        ("[::1]", HOST4),
        ("127.0.0.1", "[2001:db8:1::2]"),
        ("[::1]", "[2001:db8:1::2]"),
    ] {
        let server = Server::start(child.listen(&format!("{bound}:80")), Serve::Echo);
        for _ in 0..3 {
            assert_eq!(ask(connect(&world.far, &format!("{host}:8080")), b"x"), b"x", "{bound} {host}");
            assert!(server.served().peer.ip().is_loopback());
        }
    }
}

#[test]
fn families_are_crossed_where_the_server_has_only_the_other() {
    let (world, child) = lab();
    let mut forwarder = Forwarder::start(&world, &child);
    forwarder.add("8080:80");
    forwarder.add("8081:[fd00::100]:81");
    let server = Server::start(child.listen("0.0.0.0:80"), Serve::Echo);
    assert_eq!(ask(connect(&world.far, &format!("[{HOST6}]:8080")), b"x"), b"x");
    assert_eq!(server.served().peer.ip().to_string(), GATEWAY4);
    let server = Server::start(child.listen(&format!("[{CHILD6}]:81")), Serve::Echo);
    assert_eq!(ask(connect(&world.far, &format!("{HOST4}:8081")), b"x"), b"x");
    assert_eq!(server.served().peer.ip().to_string(), GATEWAY6);
}

#[track_caller]
fn is_refused(world: &World, address: &str) {
    // The kernel has completed the handshake already: RST follows at once, before or after connect(2) has returned.
    let error = match world.far.connect(address) {
        Err(error) => error,
        Ok(mut stream) => {
            stream.set_read_timeout(Some(DEADLINE)).expect("the socket works");
            stream.read(&mut [0]).expect_err("no end, a reset")
        }
    };
    assert!(
        matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused),
        "{address}: {error}"
    );
}

#[test]
fn where_nobody_listens_the_client_sees_a_reset_and_a_server_that_comes_later_is_reached() {
    let (world, child) = lab();
    let mut forwarder = Forwarder::start(&world, &child);
    forwarder.add("8080:80");
    for address in [format!("{HOST4}:8080"), format!("[{HOST6}]:8080")] {
        for bound in ["0.0.0.0:80", "127.0.0.1:80"] {
            is_refused(&world, &address);
            let server = Server::start(child.listen(bound), Serve::Echo);
            assert_eq!(ask(connect(&world.far, &address), b"x"), b"x");
            drop(server);
        }
    }
    assert!(forwarder.ask("stats").contains("refused: 4"), "{}", forwarder.ask("stats"));
}

#[test]
fn a_hundred_megabytes_arrive_intact_in_both_directions() {
    const BYTES: u64 = 100_000_000;
    let (world, child) = lab();
    let mut forwarder = Forwarder::start(&world, &child);
    forwarder.add("8080:80");
    for address in [format!("{HOST4}:8080"), "127.0.0.1:8080".to_owned(), format!("[{HOST6}]:8080")] {
        let from = if address.starts_with("127") { &world.host } else { &world.far };
        let server = Server::start(child.listen("[::]:80"), Serve::Sink);
        let mut stream = connect(from, &address);
        pour(&mut stream, BYTES, 5).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut verdict = Vec::new();
        stream.read_to_end(&mut verdict).unwrap();
        assert_eq!(verdict.len(), 16);
        assert_eq!(server.served().sum, StreamHash::of_pattern(5, BYTES));
        drop(server);
        let _server = Server::start(child.listen("[::]:80"), Serve::Source(BYTES, 6));
        let (hash, error) = drain(&mut connect(from, &address));
        assert!(error.is_none(), "{error:?}");
        assert_eq!(hash.sum(), StreamHash::of_pattern(6, BYTES));
    }
    let stats = forwarder.ask("stats");
    assert!(stats.contains("connections: 0"), "{stats}");
}

#[test]
fn urgent_bytes_stay_in_their_place() {
    let (world, child) = lab();
    let mut forwarder = Forwarder::start(&world, &child);
    forwarder.add("8080:80");
    let listener = child.listen("0.0.0.0:80");
    // By the buffer and by a pipe.
    for bytes in [1, 300_000] {
        for to_child in [true, false] {
            let client = connect(&world.far, &format!("{HOST4}:8080"));
            let (server, _) = listener.accept().unwrap();
            let (from, to) = if to_child { (client, server) } else { (server, client) };
            assert!(urgent_stays_in_place(from, to, bytes), "{bytes} bytes, to the child: {to_child}");
        }
    }
}

#[test]
fn each_side_may_finish_first() {
    const BYTES: u64 = 3_000_000;
    let (world, child) = lab();
    let mut forwarder = Forwarder::start(&world, &child);
    forwarder.add("8080:80");
    let server = Server::start(child.listen("0.0.0.0:80"), Serve::SourceThenSink(BYTES, 7));
    let mut stream = connect(&world.far, &format!("{HOST4}:8080"));
    let (hash, error) = drain(&mut stream);
    assert!(error.is_none());
    assert_eq!(hash.sum(), StreamHash::of_pattern(7, BYTES));
    pour(&mut stream, BYTES, 8).unwrap();
    drop(stream);
    let served = server.served();
    assert_eq!((served.sum, served.error), (StreamHash::of_pattern(8, BYTES), None));
}

#[test]
fn resets_are_passed_on_both_ways() {
    let (world, child) = lab();
    let mut forwarder = Forwarder::start(&world, &child);
    forwarder.add("8080:80");
    let address = format!("{HOST4}:8080");
    let server = Server::start(child.listen("0.0.0.0:80"), Serve::ResetAfterByte);
    let mut stream = connect(&world.far, &address);
    stream.write_all(b"x").unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    drop(server);
    let server = Server::start(child.listen("0.0.0.0:80"), Serve::Echo);
    let mut stream = connect(&world.far, &address);
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    reset(stream).unwrap();
    assert_eq!(server.served().error, Some(ErrorKind::ConnectionReset));
}

#[test]
fn a_client_that_reads_nothing_delays_nobody() {
    let (world, child) = lab();
    let mut forwarder = Forwarder::start(&world, &child);
    forwarder.add("8080:80");
    let address = format!("{HOST4}:8080");
    let _server = Server::start(child.listen("0.0.0.0:80"), Serve::Source(50_000_000, 9));
    let mut silent = connect(&world.far, &address);
    let (hash, _) = drain(&mut connect(&world.far, &address));
    assert_eq!(hash.bytes(), 50_000_000);
    let (hash, _) = drain(&mut silent);
    assert_eq!(hash.sum(), StreamHash::of_pattern(9, 50_000_000));
}

#[test]
fn a_thousand_connections_at_once_and_none_leaves_a_descriptor_behind() {
    let (world, child) = lab();
    let mut forwarder = Forwarder::start(&world, &child);
    forwarder.add("8080:80");
    let server = Server::start(child.listen("0.0.0.0:80"), Serve::Echo);
    assert_eq!(ask(connect(&world.far, &format!("{HOST4}:8080")), b"x"), b"x");
    let _ = server.served();
    let before: u32 = forwarder.ask("fds").parse().unwrap();
    for address in [HOST4, SERVICE4, &format!("[{SERVICE6}]")] {
        let address = format!("{address}:8080");
        let streams: Vec<_> = (0..1000).map(|_| connect(&world.far, &address)).collect();
        assert!(forwarder.ask("stats").contains("refused: 0"));
        if !address.starts_with('[') {
            for stream in streams {
                assert_eq!(ask(stream, b"hello"), b"hello");
            }
        }
    }
    forwarder.wait_until_idle();
    // What is left are sockets in stock and pipes in reserve.
    let after: u32 = forwarder.ask("fds").parse().unwrap();
    assert!(after < before + 700, "{before} {after}");
}

#[test]
fn a_removed_forward_lets_nobody_in_and_its_connections_live() {
    let (world, child) = lab();
    let mut forwarder = Forwarder::start(&world, &child);
    let id = forwarder.add("8080:80");
    let _server = Server::start(child.listen("0.0.0.0:80"), Serve::Echo);
    let mut stream = connect(&world.far, &format!("{HOST4}:8080"));
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    assert_eq!(forwarder.ask(&format!("remove {id}")), "ok");
    is_refused(&world, &format!("{HOST4}:8080"));
    assert_eq!(ask(stream, b"still there"), b"still there");
    let id = forwarder.add("8080:80");
    let mut stream = connect(&world.far, &format!("{HOST4}:8080"));
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    assert_eq!(forwarder.ask(&format!("cut {id}")), "ok");
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn what_the_child_itself_does_is_not_disturbed() {
    let (world, child) = lab();
    let mut forwarder = Forwarder::start(&world, &child);
    forwarder.add("8080:80");
    let server = Server::start(child.listen("0.0.0.0:80"), Serve::Echo);
    assert_eq!(ask(connect(&world.far, &format!("{HOST4}:8080")), b"x"), b"x");
    let _ = server.served();
    // Its own connections, and where its other packets go.
    assert_eq!(ask(connect(&child, &format!("{CHILD4}:80")), b"x"), b"x");
    assert_eq!(server.served().peer.ip().to_string(), CHILD4);
    assert_eq!(ask(connect(&child, "127.0.0.1:80"), b"x"), b"x");
    assert!(server.served().peer.ip().is_loopback());
    let route = child.run(&["ip", "-4", "route", "get", FAR_CLIENT4]).success().stdout;
    assert!(route.contains(GATEWAY4) && route.contains("tap0"), "{route}");
    let route = child.run(&["ip", "-6", "route", "get", FAR_CLIENT6]).success().stdout;
    assert!(route.contains(GATEWAY6) && route.contains("tap0"), "{route}");
}

#[test]
fn addresses_behind_the_child_are_reached_by_the_tap() {
    let (world, child) = lab();
    let mut forwarder = Forwarder::start_with_tap(&world, &child);
    forwarder.add("8080:172.17.0.2:80");
    // Which would take it, were it delivered to the child itself.
    let _server = Server::start(child.listen("0.0.0.0:80"), Serve::Echo);
    let answer = ask(connect(&world.far, &format!("{HOST4}:8080")), b"");
    let answer = String::from_utf8(answer).unwrap();
    assert!(
        answer.starts_with(&format!("tap {FAR_CLIENT4}:")) && answer.ends_with(" 172.17.0.2:80"),
        "{answer}"
    );
}

#[test]
fn where_nobody_listens_in_the_child_the_tap_may_know_better() {
    let (world, child) = lab();
    let mut forwarder = Forwarder::start_with_tap(&world, &child);
    forwarder.add("8080:80");
    let answer = ask(connect(&world.far, &format!("{HOST4}:8080")), b"");
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.ends_with(&format!(" {CHILD4}:80")), "{answer}");
    let server = Server::start(child.listen("0.0.0.0:80"), Serve::Echo);
    assert_eq!(ask(connect(&world.far, &format!("{HOST4}:8080")), b"x"), b"x", "the relay");
    assert_eq!(server.served().peer.ip().to_string(), FAR_CLIENT4);
}

#[test]
fn a_rule_of_the_childs_that_leads_elsewhere_is_followed_by_the_tap() {
    let (world, child) = lab();
    let rules = "table ip nat {\n chain output { type nat hook output priority -100; ip daddr 10.0.2.100 tcp dport 80 dnat to 172.17.0.2:81\n }\n}\n";
    let file = world.dir().join("rules");
    std::fs::write(&file, rules).unwrap();
    let _ = child.run(&["nft", "-f", file.to_str().unwrap()]).success();
    let mut forwarder = Forwarder::start_with_tap(&world, &child);
    forwarder.add("8080:80");
    // As docker-proxy, which holds the port, and a server that has the port to which the rule leads, on all addresses.
    let _proxy = Server::start(child.listen("0.0.0.0:80"), Serve::Echo);
    let _wrong = Server::start(child.listen("0.0.0.0:81"), Serve::Echo);
    for _ in 0..3 {
        let answer = String::from_utf8(ask(connect(&world.far, &format!("{HOST4}:8080")), b"")).unwrap();
        assert!(answer.starts_with("tap ") && answer.ends_with(&format!(" {CHILD4}:80")), "{answer}");
    }
}

#[track_caller]
fn exchange(socket: &std::net::UdpSocket, to: &str, datagram: &[u8]) {
    socket.set_read_timeout(Some(DEADLINE)).expect("the socket works");
    socket.send_to(datagram, to).expect("the socket works");
    let mut buffer = vec![0; 65536];
    let (count, from) = socket.recv_from(&mut buffer).expect("the socket works");
    assert_eq!(&buffer[..count], datagram);
    assert_eq!(from, to.parse().expect("the socket works"), "from the address that was used");
}

#[test]
fn datagrams_go_there_and_back_and_replies_leave_from_the_address_that_was_used() {
    let (world, child) = lab();
    let mut forwarder = Forwarder::start(&world, &child);
    for (bound, port) in [("0.0.0.0", 5301), ("127.0.0.1", 5302), ("[::]", 5303), ("[::1]", 5304)] {
        forwarder.add(&format!("{port}:{port}/udp"));
        let _server = tests::servers::udp_echo(child.udp(&format!("{bound}:{port}")));
        let (client4, client6) = (world.far.udp("0.0.0.0:0"), world.far.udp("[::]:0"));
        for size in [0, 1, 1400, 9000, 60_000] {
            exchange(&client4, &format!("{SERVICE4}:{port}"), &vec![7; size]);
            exchange(&client4, &format!("{HOST4}:{port}"), &vec![8; size]);
            exchange(&client6, &format!("[{SERVICE6}]:{port}"), &vec![9; size]);
        }
    }
    let stats = forwarder.ask("stats");
    assert!(stats.contains("datagrams_dropped: 0"), "{stats}");
    assert!(stats.contains("sessions_total: 12"), "{stats}");
}

#[test]
fn the_child_reaches_the_host_by_ports_of_its_own() {
    let (world, child) = lab();
    let mut forwarder = Forwarder::start(&world, &child);
    let server = Server::start(world.host.listen("127.0.0.1:0"), Serve::Echo);
    let added = forwarder.ask(&format!("to-host tcp 127.0.0.1:0 127.0.0.1:{}", server.port()));
    let address = added.split_once(' ').unwrap_or_else(|| panic!("{added}")).1;
    assert_eq!(ask(connect(&child, address), b"from the child"), b"from the child");
    let server = tests::servers::udp_echo(world.host.udp("127.0.0.1:0"));
    let added = forwarder.ask(&format!("to-host udp 127.0.0.1:0 127.0.0.1:{}", server.port()));
    let address = added.split_once(' ').unwrap_or_else(|| panic!("{added}")).1;
    exchange(&child.udp("127.0.0.1:0"), address, b"from the child");
    let refused = forwarder.ask("to-host tcp 198.51.100.200:80 127.0.0.1:80");
    assert!(refused.starts_with("error "), "{refused}");
}

#[test]
fn what_listens_in_the_child_is_published_by_itself_and_withdrawn() {
    let (world, child) = lab();
    let mut forwarder = Forwarder::start_auto(&world, &child);
    let server = Server::start(child.listen("0.0.0.0:8081"), Serve::Echo);
    forwarder.wait_for_list(|list| list.contains("8081"));
    assert_eq!(ask(connect(&world.far, &format!("{HOST4}:8081")), b"x"), b"x");
    assert_eq!(server.served().peer.ip().to_string(), FAR_CLIENT4);
    drop(server);
    forwarder.wait_for_list(|list| !list.contains("8081"));
}

#[test]
fn a_burst_of_ten_thousand_short_connections_starves_nobody() {
    let (world, child) = lab();
    let mut forwarder = Forwarder::start(&world, &child);
    forwarder.add("8080:80");
    forwarder.add("8081:81");
    let _server = Server::start(child.listen("0.0.0.0:80"), Serve::Echo);
    let _other = Server::start(child.listen("0.0.0.0:81"), Serve::Echo);
    let mut old = connect(&world.far, &format!("{HOST4}:8081"));
    old.write_all(b"x").unwrap();
    old.read_exact(&mut [0]).unwrap();
    let argv = tests::locate::probe_argv(&["crr", HOST4, "8080", "2"]);
    let burst: Vec<_> = (0..4).map(|_| tests::process::Process::spawn(world.far.command(&argv))).collect();
    for _ in 0..50 {
        old.write_all(b"y").unwrap();
        old.read_exact(&mut [0]).unwrap();
        assert_eq!(ask(connect(&world.far, &format!("{HOST4}:8081")), b"z"), b"z");
    }
    for process in burst {
        let _ = process.finish().success();
    }
    forwarder.wait_until_idle_but(1);
    assert!(forwarder.ask("stats").contains("refused: 0"), "{}", forwarder.ask("stats"));
}

#[test]
fn at_the_limit_of_descriptors_clients_wait_and_nothing_is_lost() {
    let (world, child) = lab();
    let mut forwarder = Forwarder::start_with_descriptors(&world, &child, 128);
    forwarder.add("8080:80");
    let _server = Server::start(child.listen("0.0.0.0:80"), Serve::Echo);
    let streams: Vec<_> = (0..100).map(|_| connect(&world.far, &format!("{HOST4}:8080"))).collect();
    let (mut served, mut refused) = (0, 0);
    for mut stream in streams {
        match stream.write_all(b"x").and_then(|()| stream.read_exact(&mut [0])) {
            Ok(()) => served += 1,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => refused += 1,
            Err(error) => panic!("{error} after {served}: {}", forwarder.ask("stats")),
        }
    }
    assert!(served >= 30, "{served} served, {refused} refused: {}", forwarder.ask("stats"));
    forwarder.wait_until_idle();
    assert_eq!(ask(connect(&world.far, &format!("{HOST4}:8080")), b"again"), b"again");
}

#[test]
fn the_driver_ends_with_the_agent_and_closes_everything() {
    let (world, child) = lab();
    let mut forwarder = Forwarder::start(&world, &child);
    forwarder.add("8080:80");
    let _server = Server::start(child.listen("0.0.0.0:80"), Serve::Source(u64::MAX >> 1, 3));
    let mut busy = connect(&world.far, &format!("{HOST4}:8080"));
    busy.read_exact(&mut [0; 100_000]).unwrap();
    forwarder.kill_agent();
    assert!(forwarder.wait_for_end().contains("ChildGone"));
    let (_, error) = drain(&mut busy);
    assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::ConnectionReset));
    is_refused(&world, &format!("{HOST4}:8080"));
    assert!(forwarder.ask("list").contains("stopped"));
}
