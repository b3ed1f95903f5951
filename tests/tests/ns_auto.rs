//! What listens inside the child, as seen from outside it.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use forwarder::auto::{AutoPublisher, AutoWatch, Change, DEFAULT_LOCAL_PORT_RANGE, Pace};
use forwarder::manager::{Action, Added, PortManager};
use forwarder::sock_diag::{Reach, Socket};
use forwarder::spec::{Origin, Transport};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tests::process::{DEADLINE, readable_before};
use tests::world::World;

fn places(sockets: &[Socket]) -> Vec<(Transport, String, Reach)> {
    sockets.iter().map(|socket| (socket.transport, socket.address.to_string(), socket.reach)).collect()
}

#[test]
fn sockets_of_another_namespace_are_seen_by_its_netlink_socket() {
    let world = World::new();
    let mut diag = world.host.diag();
    assert_eq!(places(&diag.listening().unwrap()), []);
    let _servers = [
        world.host.listen("0.0.0.0:80"),
        world.host.listen("127.0.0.1:81"),
        world.host.listen("[::]:82"),
        world.host.listen("[::1]:83"),
    ];
    let _bound = [world.host.udp("0.0.0.0:53"), world.host.udp("[::1]:54")];
    let client = world.host.udp("127.0.0.1:55");
    client.connect("127.0.0.1:53").unwrap();
    let _here = TcpListener::bind("127.0.0.1:0").unwrap();
    let _connection = world.host.connect("127.0.0.1:81").unwrap();
    let own = Reach::OwnFamily;
    let expected = [
        (Transport::Tcp, "0.0.0.0:80", own),
        (Transport::Tcp, "127.0.0.1:81", own),
        (Transport::Tcp, "[::]:82", Reach::BothFamilies),
        (Transport::Tcp, "[::1]:83", own),
        (Transport::Udp, "0.0.0.0:53", own),
        (Transport::Udp, "[::1]:54", own),
    ]
    .map(|(transport, address, reach)| (transport, address.to_owned(), reach));
    let sockets = diag.listening().unwrap();
    let mut seen = places(&sockets);
    // Whether the library that made it sets IPV6_V6ONLY is its matter; the rest is exact.
    for place in &mut seen {
        if place.1 == "[::1]:83" || place.1 == "[::1]:54" {
            place.2 = own;
        }
    }
    assert_eq!(seen, expected);
    assert!(sockets.iter().all(|socket| socket.inode != 0));
}

#[test]
fn one_listener_is_found_without_the_whole_list() {
    let world = World::new();
    let mut diag = world.host.diag();
    let _servers = [world.host.listen("0.0.0.0:80"), world.host.listen("[::1]:83")];
    let _bound = world.host.udp("0.0.0.0:53");
    let mut find = |transport, address: &str| {
        let found = diag.listener(transport, address.parse::<SocketAddr>().unwrap()).unwrap();
        found.map(|socket| socket.address.to_string())
    };
    assert_eq!(find(Transport::Tcp, "127.0.0.1:80").as_deref(), Some("0.0.0.0:80"));
    assert_eq!(find(Transport::Tcp, "192.0.2.2:80").as_deref(), Some("0.0.0.0:80"));
    assert_eq!(find(Transport::Tcp, "[::1]:83").as_deref(), Some("[::1]:83"));
    assert_eq!(find(Transport::Udp, "127.0.0.1:53").as_deref(), Some("0.0.0.0:53"));
    assert_eq!(find(Transport::Tcp, "127.0.0.1:81"), None);
    assert_eq!(find(Transport::Udp, "127.0.0.1:80"), None);
}

#[test]
fn a_thousand_listeners_fit_in_one_list() {
    let world = World::new();
    let mut diag = world.host.diag();
    let start = Instant::now();
    assert_eq!(places(&diag.listening().unwrap()), []);
    println!("nothing listed in {:?}", start.elapsed());
    let servers: Vec<_> = (0..1000).map(|n| world.host.listen(&format!("127.0.0.1:{}", 2000 + n))).collect();
    let start = Instant::now();
    let sockets = diag.listening().unwrap();
    println!("{} sockets listed in {:?}", sockets.len(), start.elapsed());
    assert_eq!(sockets.len(), servers.len());
}

#[test]
fn forwards_follow_the_servers_of_the_child() {
    let world = World::new();
    // Hours between looks: what is seen in time was told by the kernel.
    let pace = Pace { shortest: Duration::from_secs(3600), longest: Duration::from_secs(3600) };
    let start = Instant::now();
    let publisher = AutoPublisher::new("auto".parse().unwrap(), DEFAULT_LOCAL_PORT_RANGE);
    let mut watch = AutoWatch::new(world.host.diag(), publisher, pace, start);
    let mut manager = PortManager::default();
    let mut now = start;

    let server = world.host.listen("0.0.0.0:8080");
    let mut perform = |watch: &mut AutoWatch, now: Instant| -> Vec<String> {
        for change in watch.poll(now) {
            match change {
                Change::Add(spec) => {
                    let added = manager.add(spec.clone(), Origin::Auto).unwrap();
                    assert!(matches!(added, Added::New(_)));
                    watch.publisher().handle_added(now, &spec, added);
                }
                Change::Withdraw(id) => manager.withdraw(id),
            }
            while let Some(action) = manager.poll_action() {
                if let Action::Listen(listener) = action {
                    manager.handle_listening(listener.id, listener.address.port());
                }
            }
        }
        manager.list().iter().map(|status| status.spec.to_string()).collect()
    };
    assert_eq!(watch.next_timeout(), start, "the first look is due at once");
    assert_eq!(perform(&mut watch, now), ["8080:8080/tcp4"]);

    // A connection's end is nobody's concern: it wakes nobody up.
    let connection = world.host.connect("127.0.0.1:8080").unwrap();
    let (accepted, _) = server.accept().unwrap();
    drop((connection, accepted));
    assert!(!readable(&watch));

    // That of a listener is told.
    let other = world.host.listen("127.0.0.1:9090");
    drop(server);
    assert!(readable_before(&watch, Instant::now() + DEADLINE), "the kernel does not tell");
    now += Duration::from_secs(1800);
    assert_eq!(perform(&mut watch, now), ["127.0.0.1:9090:127.0.0.1:9090/tcp4"]);
    drop(other);
    assert!(readable_before(&watch, Instant::now() + DEADLINE));
    now += Duration::from_secs(1800);
    assert!(perform(&mut watch, now).is_empty());
}

fn readable(watch: &AutoWatch) -> bool {
    let mut fds = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).expect("poll") != 0
}
