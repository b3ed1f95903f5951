//! The host's network changes under a running engine: what is new uses what is now.

use std::net::{IpAddr, UdpSocket};
use tests::{
    engine::{Launch, ours},
    process::DEADLINE,
    servers::{Serve, Server},
    talk::Talk,
    world::{FAR4, FAR6, HOST4, ROUTER4, World},
};

/// How long the child tries a connect that has to succeed, in milliseconds.
const PATIENCE: &str = "20000";
/// The host's side of its second uplink.
const SECOND4: &str = "198.18.0.2";

/// Servers two hops away, which see where the child's traffic comes from.
struct Far {
    tcp: Server,
    udp: UdpSocket,
}

impl Far {
    fn new(world: &World) -> Self {
        let udp = world.far.udp(&format!("{FAR4}:0"));
        udp.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        Self { tcp: Server::start(world.far.listen(&format!("{FAR4}:0")), Serve::Echo), udp }
    }

    /// A new TCP connection and the child's one UDP socket both reach us, from `source`, and hear the answer.
    #[track_caller]
    fn is_reached(&self, child: &mut Talk, source: &str) {
        let source: IpAddr = source.parse().expect("an address");
        assert_eq!(child.ask(&format!("connect {FAR4} {} {PATIENCE}", self.tcp.port())), "ok");
        assert_eq!(self.tcp.accepted().ip(), source, "TCP");
        child.tell(&format!("udp {FAR4} {}", self.udp.local_addr().expect("bound").port()));
        let (_, from) = self.udp.recv_from(&mut [0; 64]).expect("the child's datagram");
        self.udp.send_to(b"yes", from).expect("the reply");
        assert_eq!((from.ip(), child.answer()), (source, "ok".to_owned()), "UDP");
    }
}

#[test]
fn flows_use_the_address_that_replaced_the_hosts() {
    let (world, launch) = (World::new(), Launch::under_test());
    let far = Far::new(&world);
    let mut child = Talk::start(&world, &launch);
    far.is_reached(&mut child, HOST4);
    world.host.ip(&format!(
        "addr del {HOST4}/24 dev up0\naddr add 192.0.2.9/24 dev up0\nroute replace default via {ROUTER4}\n"
    ));
    far.is_reached(&mut child, "192.0.2.9");
}

#[test]
fn flows_follow_the_default_route_to_another_gateway() {
    let (world, launch) = (World::new(), Launch::under_test());
    let far = Far::new(&world);
    let mut child = Talk::start(&world, &launch);
    far.is_reached(&mut child, HOST4);
    // As a VPN does: the new way is there first, then everything goes over it.
    world
        .host
        .ip(&format!("link add up1 type veth peer name side0\nlink set side0 netns {}\n", world.far.pid()));
    world.far.ip("addr add 198.18.0.1/24 dev side0\nlink set side0 up\n");
    world.host.ip(&format!(
        "addr add {SECOND4}/24 dev up1\nlink set up1 up\nroute replace default via 198.18.0.1\n"
    ));
    far.is_reached(&mut child, SECOND4);
    // And back, because the new one is gone.
    world.host.ip(&format!("link del up1\nroute replace default via {ROUTER4}\n"));
    far.is_reached(&mut child, HOST4);
}

#[test]
fn ipv6_comes_and_goes_with_the_hosts_default_route() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    world.host.ip("route del default via 2001:db8:1::1\n");
    let server = Server::start(world.far.listen(&format!("[{FAR6}]:0")), Serve::Echo);
    let connect = format!("connect {FAR6} {} {PATIENCE}", server.port());
    let mut child = Talk::start(&world, &launch.args(&["--ipv6=auto"]));
    for _ in 0..2 {
        assert_eq!(child.ask("default6 absent"), "ok", "a route while the host has none");
        assert_eq!(child.ask(&connect), "ENETUNREACH", "without a route");
        world.host.ip("route add default via 2001:db8:1::1\n");
        assert_eq!(child.ask("default6 present"), "ok", "no route while the host has one");
        assert_eq!(child.ask(&connect), "ok", "with a route");
        world.host.ip("route del default via 2001:db8:1::1\n");
    }
    assert_eq!(child.ask("default6 absent"), "ok", "a route that the host has lost");
    assert_eq!(child.ask(&connect), "ENETUNREACH", "after the loss");
}

#[test]
fn a_host_without_network_gets_one_later() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    world.host.ip("link set up0 down\naddr flush dev up0\n");
    let far = Far::new(&world);
    let server6 = Server::start(world.far.listen(&format!("[{FAR6}]:0")), Serve::Echo);
    let connect6 = format!("connect {FAR6} {} {PATIENCE}", server6.port());
    let mut child = Talk::start(&world, &launch);
    assert_eq!(child.ask(&format!("connect {FAR4} {} {PATIENCE}", far.tcp.port())), "ENETUNREACH", "TCP");
    assert_eq!(child.ask(&connect6), "ENETUNREACH", "IPv6");
    assert_eq!(child.ask(&format!("udp {FAR4} 9")), "ENETUNREACH", "UDP");
    world.host.ip(&format!(
        "addr add {HOST4}/24 dev up0\nlink set up0 up\nroute add default via {ROUTER4}\n\
         addr add 2001:db8:1::2/64 dev up0 nodad\nroute add default via 2001:db8:1::1\n"
    ));
    far.is_reached(&mut child, HOST4);
    assert_eq!(child.ask("default6 present"), "ok");
    assert_eq!(child.ask(&connect6), "ok");
}
