//! Published ports: the forwarder alone between real kernels.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use tests::{
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

#[track_caller]
fn connect(from: &Netns, address: &str) -> TcpStream {
    let stream = from.connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Sends, ends, reads the answer; returns it.
#[track_caller]
fn ask(mut stream: TcpStream, question: &[u8]) -> Vec<u8> {
    stream.write_all(question).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
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
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
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
