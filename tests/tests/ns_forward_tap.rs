//! Published ports carried by frames: clients of a host, the engine, and servers on a real kernel behind a TAP.
//!
//! The engine runs in the test, on the TAP of a namespace of the world; connections and sockets come from the world's
//! host. Its egress rules refuse everything, which must not matter here.

use netstack::{
    Config, Driver, LinkCapabilities, Stats, Tap,
    config::{DnsConfig, Ipv6Mode, Limits},
    driver::DriverHandle,
    error::DropReason,
    flow::OpenedBy,
    forward::{ForwardId, ForwardSource, UdpForward, visible_source},
};
use nix::sys::socket::{Shutdown, shutdown};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{fd::AsRawFd, unix::net::UnixStream},
    thread::{self, JoinHandle},
    time::Instant,
};
use tests::{
    process::DEADLINE,
    servers::{Serve, Server, UdpServer, drain, pour, reset, udp_echo, verdict},
    stream::{Pattern, StreamHash},
    world::{HOST4, Netns, SERVICE4, SERVICE6, World},
};

const CHILD4: &str = "10.0.42.100";
const CHILD6: &str = "[fd42:10:42::100]";
const HOST6: &str = "[2001:db8:1::2]";
const ROUTER6: &str = "2001:db8:1::1";

/// A world whose host has a child behind our engine.
struct Published {
    world: World,
    child: Netns,
    config: Config,
    engine: DriverHandle,
    running: Option<JoinHandle<()>>,
    stop: Option<UnixStream>,
}

impl Published {
    fn new() -> Self {
        Self::with(1500, &|_| {}, Limits::default())
    }

    fn with(mtu: u16, prepare: &dyn Fn(&mut Tap), limits: Limits) -> Self {
        let world = World::new();
        let child = world.beside();
        let mut tap = Tap::from_fd(child.virtio_tap("tap0").into()).expect("a TAP");
        prepare(&mut tap);
        child.ip(&format!(
            "link set tap0 mtu {mtu}\naddr add {CHILD4}/24 dev tap0\naddr add fd42:10:42::100/64 dev tap0 nodad\n\
             link set tap0 up\nroute add default via 10.0.42.2\nroute add default via fd42:10:42::2 dev tap0\n"
        ));
        let mut dns = DnsConfig::default();
        // Nobody is asked; without it the machine's resolv.conf would be followed.
        dns.servers.push("127.0.0.1:9".parse().expect("an address"));
        let policy =
            netstack::flow::policy::EgressPolicy::from_rules(vec!["deny any".parse().expect("a rule")]);
        let config = Config::builder()
            .mtu(mtu)
            .ipv6_mode(Ipv6Mode::On)
            .dns(dns)
            .limits(limits)
            .policy(policy.expect("one rule"))
            .build()
            .expect("a configuration");
        let mut driver = Driver::new(tap, config.clone()).expect("a driver");
        let engine = driver.handle().expect("a handle");
        let (stop, stopped) = UnixStream::pair().expect("a socket pair");
        let running = thread::spawn(move || driver.run_until(&stopped).expect("the engine runs"));
        Self { world, child, config, engine, running: Some(running), stop: Some(stop) }
    }

    /// Publishes a TCP port: whoever connects to `listen` on the host reaches `child`.
    fn tcp(&self, listen: &str, child: &str) -> TcpForward {
        let (child, config) = (address(child), self.config.clone());
        let (listener, engine) = (self.world.host.listen(listen), self.engine.clone());
        let accepting = listener.try_clone().expect("descriptors are left");
        thread::spawn(move || {
            while let Ok((stream, client)) = accepting.accept() {
                let source = visible_source(&config, client, child.ip(), ForwardSource::Client);
                let adopted =
                    engine.call(move |engine| engine.adopt_stream(stream.into(), source, child).map(drop));
                adopted.expect("the engine runs").expect("the connection is taken over");
            }
        });
        TcpForward(listener)
    }

    fn udp(&self, bind: &str, child: &str, source: ForwardSource) -> (u16, ForwardId) {
        let socket = self.world.host.udp(bind);
        let port = socket.local_addr().expect("a bound socket").port();
        let forward = UdpForward { child: address(child), source };
        let added = self.engine.call(move |engine| engine.add_udp_forward(socket.into(), forward));
        (port, added.expect("the engine runs").expect("the forward is taken over"))
    }

    fn serve(&self, listen: &str, how: Serve) -> Server {
        Server::start(self.child.listen(listen), how)
    }

    /// Asks the engine until `done` says so.
    #[track_caller]
    fn until(&self, done: fn(&Driver) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !self.engine.call(move |engine| done(engine)).expect("the engine runs") {
            assert!(Instant::now() < deadline, "it never came true");
            thread::yield_now();
        }
    }

    fn stats(&self) -> Stats {
        self.engine.call(|engine| engine.stats()).expect("the engine runs")
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.running.take().map(JoinHandle::join);
        assert!(thread::panicking() || matches!(ended, Some(Ok(()))), "the engine failed");
    }
}

/// A listener of the host whose connections go to the engine.
struct TcpForward(TcpListener);

impl TcpForward {
    fn port(&self) -> u16 {
        self.0.local_addr().expect("a bound socket").port()
    }
}

impl Drop for TcpForward {
    fn drop(&mut self) {
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// A connection from `from` to `host:port`.
fn connect(from: &Netns, host: &str, port: u16) -> TcpStream {
    let stream = from.connect(&format!("{host}:{port}")).expect("the host accepts");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    stream
}

/// How reading from `stream` ends.
fn end_of(stream: &mut TcpStream) -> Option<i32> {
    drain(stream).1.and_then(|error| error.raw_os_error())
}

// TCP.

#[test]
fn a_server_sees_the_address_of_each_client() {
    let published = Published::new();
    let (world, server) = (&published.world, published.serve("[::]:8080", Serve::Sink));
    let (to4, to6) = (format!("{CHILD4}:8080"), format!("{CHILD6}:8080"));
    for (from, listen, reach, child, seen) in [
        (&world.router, "0.0.0.0:0", HOST4, &to4, "192.0.2.1"),
        (&world.far, "0.0.0.0:0", SERVICE4, &to4, "192.88.99.2"),
        (&world.router, "[::]:0", HOST6, &to6, ROUTER6),
        // The host's loopback appears as the gateway, the other family too; the host's other addresses as themselves.
        (&world.host, "127.0.0.1:0", "127.0.0.1", &to4, "10.0.42.2"),
        (&world.host, "[::1]:0", "[::1]", &to6, "fd42:10:42::2"),
        (&world.host, "0.0.0.0:0", HOST4, &to4, HOST4),
        (&world.router, "0.0.0.0:0", HOST4, &to6, "fd42:10:42::2"),
        (&world.router, "[::]:0", HOST6, &to4, "10.0.42.2"),
    ] {
        let forward = published.tcp(listen, child);
        let mut client = connect(from, reach, forward.port());
        let own = client.local_addr().expect("connected");
        client.write_all(b"hello").expect("taken");
        client.shutdown(std::net::Shutdown::Write).expect("connected");
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).expect("an answer");
        let mut hash = StreamHash::default();
        hash.update(b"hello");
        assert_eq!(answer, verdict(5, hash.sum()), "{reach} to {child}");
        let peer = server.served().peer;
        assert_eq!(peer.ip().to_canonical().to_string(), seen, "{reach} to {child}");
        assert_eq!(peer.port(), own.port(), "{reach} to {child}");
    }
    assert_eq!(published.stats().tcp_from_host, 8);
}

#[test]
fn a_server_that_binds_one_address_is_reached_by_it() {
    let published = Published::new();
    let server = published.serve(&format!("{CHILD4}:80"), Serve::Sink);
    let forward = published.tcp("0.0.0.0:0", &format!("{CHILD4}:80"));
    connect(&published.world.router, HOST4, forward.port())
        .shutdown(std::net::Shutdown::Write)
        .expect("connected");
    assert_eq!(server.served().peer.ip().to_string(), "192.0.2.1");
}

#[test]
fn a_closed_port_and_a_missing_host_reset_the_client() {
    let published = Published::new();
    published.child.sysctl("net/ipv4/ip_forward", "1");
    published.child.sysctl("net/ipv6/conf/all/forwarding", "1");
    published.child.ip("route add unreachable 172.31.0.0/16\nroute add unreachable fd31::/16\n");
    for child in [
        // A RST, an ICMP error, silence of ARP and neighbour discovery.
        format!("{CHILD4}:9"),
        format!("{CHILD6}:9"),
        "172.31.0.1:80".to_owned(),
        "[fd31::1]:80".to_owned(),
        "10.0.42.77:80".to_owned(),
        "[fd42:10:42::77]:80".to_owned(),
    ] {
        let forward = published.tcp("0.0.0.0:0", &child);
        let mut client = connect(&published.world.router, HOST4, forward.port());
        assert_eq!(end_of(&mut client), Some(libc::ECONNRESET), "{child}");
    }
    let stats = published.stats();
    assert_eq!((stats.tcp_from_host, stats.tcp_unanswered), (6, 6));
    assert_eq!(stats.drops(DropReason::NeighborUnknown), 2);
    assert_eq!(published.engine.call(|engine| engine.flows().count()), Ok(0));
}

#[test]
fn each_end_may_finish_first() {
    let published = Published::new();
    for child in [format!("{CHILD4}:80"), format!("{CHILD6}:80")] {
        let forward = published.tcp("0.0.0.0:0", &child);
        {
            let server = published.serve("[::]:80", Serve::Sink);
            let mut client = connect(&published.world.router, HOST4, forward.port());
            pour(&mut client, 100_000, 3).expect("taken");
            client.shutdown(std::net::Shutdown::Write).expect("connected");
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).expect("an answer after our end");
            assert_eq!(answer, verdict(100_000, StreamHash::of_pattern(3, 100_000)));
            assert_eq!(server.served().error, None);
        }
        let server = published.serve("[::]:80", Serve::SourceThenSink(100_000, 4));
        let mut client = connect(&published.world.router, HOST4, forward.port());
        let (hash, error) = drain(&mut client);
        assert!(error.is_none(), "{error:?}");
        assert_eq!(hash.sum(), StreamHash::of_pattern(4, 100_000));
        pour(&mut client, 100_000, 5).expect("taken after the server's end");
        drop(client);
        let served = server.served();
        assert_eq!((served.sum, served.error), (StreamHash::of_pattern(5, 100_000), None));
    }
}

#[track_caller]
fn ten_megabytes_each_way(published: &Published) {
    const BYTES: u64 = 10_000_000;
    let _server = published.serve("[::]:80", Serve::Echo);
    for child in [format!("{CHILD4}:80"), format!("{CHILD6}:80")] {
        let forward = published.tcp("0.0.0.0:0", &child);
        let mut client = connect(&published.world.router, HOST4, forward.port());
        let mut writer = client.try_clone().expect("descriptors are left");
        let sender = thread::spawn(move || {
            pour(&mut writer, BYTES, 7)?;
            writer.shutdown(std::net::Shutdown::Write)
        });
        let (hash, error) = drain(&mut client);
        assert!(error.is_none(), "{error:?}");
        sender.join().expect("no panic").expect("all was taken");
        assert_eq!((hash.bytes(), hash.sum()), (BYTES, StreamHash::of_pattern(7, BYTES)), "{child}");
    }
}

#[test]
fn ten_megabytes_go_each_way_at_once() {
    ten_megabytes_each_way(&Published::new());
}

#[test]
fn ten_megabytes_go_each_way_with_the_largest_mtu() {
    ten_megabytes_each_way(&Published::with(65_520, &|_| {}, Limits::default()));
}

#[test]
fn ten_megabytes_go_each_way_without_offloads() {
    let none = |tap: &mut Tap| tap.limit_offloads(LinkCapabilities::default());
    ten_megabytes_each_way(&Published::with(1500, &none, Limits::default()));
}

#[test]
fn resets_pass_both_ways() {
    let published = Published::new();
    for child in [format!("{CHILD4}:80"), format!("{CHILD6}:80")] {
        let forward = published.tcp("0.0.0.0:0", &child);
        {
            let _server = published.serve("[::]:80", Serve::ResetAfterByte);
            let mut client = connect(&published.world.router, HOST4, forward.port());
            client.write_all(b"x").expect("taken");
            assert_eq!(end_of(&mut client), Some(libc::ECONNRESET));
        }
        let server = published.serve("[::]:80", Serve::Echo);
        let mut client = connect(&published.world.router, HOST4, forward.port());
        client.write_all(b"x").expect("taken");
        client.read_exact(&mut [0]).expect("the echo");
        reset(client).expect("an option");
        assert_eq!(server.served().error, Some(std::io::ErrorKind::ConnectionReset));
    }
}

#[test]
fn a_client_that_reads_nothing_stops_the_server() {
    let published = Published::new();
    // More than all buffers on the way hold.
    const BYTES: u64 = 64 << 20;
    let server = published.serve("0.0.0.0:80", Serve::Source(BYTES, 2));
    let forward = published.tcp("0.0.0.0:0", &format!("{CHILD4}:80"));
    let mut stalled = connect(&published.world.router, HOST4, forward.port());
    let _ = server.accepted();
    // Another one is served meanwhile.
    let mut other = connect(&published.world.router, HOST4, forward.port());
    assert_eq!(drain(&mut other).0.sum(), StreamHash::of_pattern(2, BYTES));
    assert_eq!(drain(&mut stalled).0.sum(), StreamHash::of_pattern(2, BYTES));
}

#[test]
fn the_same_port_can_come_again_at_once_after_the_server_has_closed() {
    let published = Published::new();
    let server = published.serve("0.0.0.0:80", Serve::Source(1000, 1));
    let (source, child) = (address("192.0.2.77:7777"), address(&format!("{CHILD4}:80")));
    for round in 0..8 {
        // The old connection is in TIME-WAIT on the child's side.
        let (client, stream) = UnixStream::pair().expect("a socket pair");
        let adopted = published.engine.call(move |engine| engine.adopt_stream(stream.into(), source, child));
        adopted.expect("the engine runs").expect("taken over");
        let (hash, error) = drain(&mut &client);
        assert_eq!((hash.sum(), error.is_none()), (StreamHash::of_pattern(1, 1000), true), "round {round}");
        drop(client);
        let _ = server.served();
        // The engine's end is over when the flow is gone.
        published.until(|engine| engine.flows().count() == 0);
        let peer = server.accepted();
        assert_eq!(peer, source, "round {round}");
    }
}

#[test]
fn a_container_behind_the_child_sees_the_client() {
    let published = Published::new();
    let behind = published.world.beside();
    published.child.ip(&format!(
        "link add veth0 type veth peer name eth0 netns {}\naddr add 172.17.0.1/24 dev veth0\n\
         addr add fd17::1/64 dev veth0 nodad\nlink set veth0 up\n",
        behind.pid()
    ));
    behind.ip("addr add 172.17.0.2/24 dev eth0\naddr add fd17::2/64 dev eth0 nodad\nlink set eth0 up\n\
         route add default via 172.17.0.1\nroute add default via fd17::1 dev eth0\n");
    published.child.sysctl("net/ipv4/ip_forward", "1");
    published.child.sysctl("net/ipv6/conf/all/forwarding", "1");
    let server = Server::start(behind.listen("[::]:80"), Serve::Sink);
    for (child, listen, reach, seen) in
        [("172.17.0.2:80", "0.0.0.0:0", HOST4, "192.0.2.1"), ("[fd17::2]:80", "[::]:0", HOST6, ROUTER6)]
    {
        let forward = published.tcp(listen, child);
        let client = connect(&published.world.router, reach, forward.port());
        client.shutdown(std::net::Shutdown::Write).expect("connected");
        assert_eq!(server.served().peer.ip().to_canonical().to_string(), seen);
    }
}

#[test]
fn the_flow_list_says_who_opened_a_flow() {
    let published = Published::new();
    let server = published.serve("0.0.0.0:80", Serve::Echo);
    let forward = published.tcp("0.0.0.0:0", &format!("{CHILD4}:80"));
    let mut client = connect(&published.world.router, HOST4, forward.port());
    client.write_all(b"hello").expect("taken");
    client.read_exact(&mut [0; 5]).expect("the echo");
    let flow =
        published.engine.call(|engine| engine.flows().next()).expect("the engine runs").expect("a flow");
    assert_eq!(flow.opened_by, OpenedBy::Host);
    assert_eq!(flow.key.child, address(&format!("{CHILD4}:80")));
    assert_eq!(flow.key.remote, server.accepted());
    assert_eq!((flow.bytes_to_child, flow.bytes_from_child), (5, 5));
}

// UDP.

fn client(from: &Netns, to: &str, port: u16) -> UdpSocket {
    let socket = from.udp(if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" });
    // Connected: what comes from another address is not received.
    socket.connect(format!("{to}:{port}")).expect("an address");
    socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    socket
}

#[track_caller]
fn echoes(client: &UdpSocket, payload: &[u8]) {
    let mut buffer = vec![0; 65_536];
    client.send(payload).expect("sent");
    let n = client.recv(&mut buffer).expect("an answer");
    assert!(buffer[..n] == *payload, "{n} bytes came back of {}", payload.len());
}

fn echo(published: &Published, port: u16) -> [UdpServer; 2] {
    [format!("{CHILD4}:{port}"), format!("{CHILD6}:{port}")]
        .map(|address| udp_echo(published.child.udp(&address)))
}

#[test]
fn a_udp_server_sees_the_address_of_each_client() {
    let published = Published::new();
    let world = &published.world;
    let servers = [published.child.udp("0.0.0.0:9000"), published.child.udp(&format!("{CHILD6}:9000"))];
    for server in &servers {
        server.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    }
    let (to4, to6) = (format!("{CHILD4}:9000"), format!("{CHILD6}:9000"));
    let itself = ForwardSource::Client;
    for (from, bind, reach, child, source, seen) in [
        (&world.router, "0.0.0.0:0", HOST4, &to4, itself, "192.0.2.1"),
        (&world.far, "0.0.0.0:0", SERVICE4, &to4, itself, "192.88.99.2"),
        (&world.router, "[::]:0", HOST6, &to6, itself, ROUTER6),
        (&world.host, "127.0.0.1:0", "127.0.0.1", &to4, itself, "10.0.42.2"),
        (&world.host, "[::1]:0", "[::1]", &to6, itself, "fd42:10:42::2"),
        (&world.router, "0.0.0.0:0", HOST4, &to6, itself, "fd42:10:42::2"),
        (&world.router, "[::]:0", HOST6, &to4, itself, "10.0.42.2"),
        // One socket for both families.
        (&world.router, "[::]:0", HOST4, &to4, itself, "192.0.2.1"),
        (&world.router, "0.0.0.0:0", HOST4, &to4, ForwardSource::Gateway, "10.0.42.2"),
    ] {
        let (port, forward) = published.udp(bind, child, source);
        let client = client(from, reach, port);
        client.send(b"who am I?").expect("sent");
        let server = &servers[usize::from(child == &to6)];
        let mut buffer = [0; 64];
        let (n, peer) = server.recv_from(&mut buffer).expect("the datagram");
        assert_eq!(
            (&buffer[..n], peer.ip().to_string()),
            (&b"who am I?"[..], seen.to_owned()),
            "{reach} {child}"
        );
        assert_eq!(peer.port(), client.local_addr().expect("bound").port());
        server.send_to(b"you", peer).expect("answered");
        let n = client.recv(&mut buffer).expect("the answer");
        assert_eq!(&buffer[..n], b"you");
        assert_eq!(published.engine.call(move |engine| engine.remove_udp_forward(forward)), Ok(true));
    }
}

#[track_caller]
fn datagrams_of_every_size(published: &Published) {
    let _servers = echo(published, 9000);
    for (child, bind, reach) in [(CHILD4, "0.0.0.0:0", HOST4), (CHILD6, "[::]:0", HOST6)] {
        let (port, _) = published.udp(bind, &format!("{child}:9000"), ForwardSource::Client);
        let client = client(&published.world.router, reach, port);
        for size in [0, 1, 1400, 1452, 1453, 1472, 1473, 4000, 32_768, 65_507] {
            echoes(&client, &Pattern::bytes(1, size));
        }
    }
}

#[test]
fn datagrams_of_every_size_come_back_intact() {
    datagrams_of_every_size(&Published::new());
}

#[test]
fn datagrams_of_every_size_come_back_intact_with_the_largest_mtu() {
    datagrams_of_every_size(&Published::with(65_520, &|_| {}, Limits::default()));
}

#[test]
fn datagrams_of_every_size_come_back_intact_without_offloads() {
    let none = |tap: &mut Tap| tap.limit_offloads(LinkCapabilities::default());
    datagrams_of_every_size(&Published::with(1500, &none, Limits::default()));
}

#[test]
fn answers_leave_from_the_address_that_the_client_used() {
    let published = Published::new();
    let _servers = echo(&published, 9000);
    let (port, _) = published.udp("0.0.0.0:0", &format!("{CHILD4}:9000"), ForwardSource::Client);
    for address in [HOST4, SERVICE4, "203.0.113.2"] {
        echoes(&client(&published.world.router, address, port), address.as_bytes());
    }
    let (port, _) = published.udp("[::]:0", &format!("{CHILD6}:9000"), ForwardSource::Client);
    for address in [HOST6, &format!("[{SERVICE6}]")] {
        echoes(&client(&published.world.router, address, port), address.as_bytes());
    }
}

#[test]
fn bursts_of_one_client_arrive_in_order() {
    let published = Published::new();
    let server = published.child.udp("0.0.0.0:9000");
    server.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let (port, _) = published.udp("0.0.0.0:0", &format!("{CHILD4}:9000"), ForwardSource::Client);
    let client = client(&published.world.router, HOST4, port);
    echoing_once(&client, &server);
    for round in 0..20u32 {
        for n in 0..32u32 {
            client.send(&[n.to_be_bytes(), round.to_be_bytes()].concat().repeat(100)).expect("sent");
        }
        for n in 0..32u32 {
            let mut buffer = [0; 2048];
            let length = server.recv(&mut buffer).expect("nothing is lost");
            assert_eq!((length, &buffer[..8]), (800, &[n.to_be_bytes(), round.to_be_bytes()].concat()[..]));
        }
    }
}

#[track_caller]
fn echoing_once(client: &UdpSocket, server: &UdpSocket) {
    client.send(b"x").expect("sent");
    let (_, peer) = server.recv_from(&mut [0; 8]).expect("the datagram");
    server.send_to(b"y", peer).expect("answered");
    client.recv(&mut [0; 8]).expect("the answer");
}

#[test]
fn many_clients_are_kept_apart_and_the_idlest_make_room() {
    let mut limits = Limits::default();
    limits.udp_sessions = 50;
    let published = Published::with(1500, &|_| {}, limits);
    let _servers = echo(&published, 9000);
    let (port, _) = published.udp("0.0.0.0:0", &format!("{CHILD4}:9000"), ForwardSource::Client);
    let clients = (0..200).map(|_| client(&published.world.router, HOST4, port)).collect::<Vec<_>>();
    for round in 0..2 {
        for (n, client) in clients.iter().enumerate() {
            echoes(client, format!("client {n}, round {round}").as_bytes());
        }
    }
    assert_eq!(published.engine.call(|engine| engine.flows().count()), Ok(50));
    let stats = published.stats();
    assert_eq!((stats.udp_sessions, stats.drops(DropReason::UdpSessionsFull)), (400, 350));
}

#[test]
fn removing_a_forward_ends_its_sessions_and_frees_its_port() {
    let published = Published::new();
    let _servers = echo(&published, 9000);
    let (port, forward) = published.udp("0.0.0.0:0", &format!("{CHILD4}:9000"), ForwardSource::Client);
    let (other_port, _) = published.udp("0.0.0.0:0", &format!("{CHILD6}:9000"), ForwardSource::Client);
    let (first, other) =
        (client(&published.world.router, HOST4, port), client(&published.world.router, HOST4, other_port));
    echoes(&first, b"1");
    echoes(&other, b"2");
    assert_eq!(published.engine.call(move |engine| engine.remove_udp_forward(forward)), Ok(true));
    assert_eq!(published.engine.call(|engine| engine.flows().count()), Ok(1));
    assert_eq!(published.engine.call(move |engine| engine.remove_udp_forward(forward)), Ok(false));
    echoes(&other, b"2");
    let (port, _) =
        published.udp(&format!("0.0.0.0:{port}"), &format!("{CHILD4}:9000"), ForwardSource::Client);
    echoes(&client(&published.world.router, HOST4, port), b"again");
}

#[test]
fn a_closed_udp_port_is_counted_and_may_open_later() {
    let published = Published::new();
    let (port, _) = published.udp("0.0.0.0:0", &format!("{CHILD4}:9000"), ForwardSource::Client);
    let client = client(&published.world.router, HOST4, port);
    client.send(b"anybody?").expect("sent");
    published.until(|engine| engine.stats().udp_session_errors == 1);
    let _servers = echo(&published, 9000);
    echoes(&client, b"now");
}

#[test]
fn a_burst_of_connections_from_threads_is_served() {
    let published = Published::new();
    let _server = published.serve("0.0.0.0:80", Serve::Echo);
    let forward = published.tcp("0.0.0.0:0", &format!("{CHILD4}:80"));
    let mut clients =
        (0..200).map(|_| connect(&published.world.router, HOST4, forward.port())).collect::<Vec<_>>();
    for (n, client) in clients.iter_mut().enumerate() {
        client.write_all(format!("{n:08}").as_bytes()).expect("taken");
    }
    for (n, client) in clients.iter_mut().enumerate() {
        let mut back = [0; 8];
        client.read_exact(&mut back).expect("the echo");
        assert_eq!(back, *format!("{n:08}").as_bytes());
    }
}
