//! UDP of a real kernel through the engine.

use tests::{
    engine::{Engine, Launch, ours},
    servers::udp_echo,
    world::{FAR4, FAR6, SERVICE4, SERVICE6, World},
};

#[test]
fn datagrams_of_every_size_come_back_intact() {
    let (world, launch) = (World::new(), Launch::under_test());
    let echo = udp_echo(world.host.udp(&format!("{SERVICE4}:0")));
    let sizes = ["0", "1", "512", "1400", "1472", "1473", "4000", "9000", "32768", "65507"];
    // The peers do not return an empty datagram, and slirp4netns none above its MTU.
    let sizes = if launch.engine == Engine::Ours { &sizes[..] } else { &sizes[1..5] };
    let port = echo.port();
    let args = ["udp-echo", SERVICE4, &port, "3"].iter().chain(sizes).copied().collect::<Vec<_>>();
    let finished = world.probe(&launch, &args).finish().success();
    assert_eq!(finished.value("intact"), sizes.len().to_string(), "{}", finished.describe());
}

#[test]
fn datagrams_of_every_size_come_back_intact_over_ipv6() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    let echo = udp_echo(world.host.udp(&format!("[{SERVICE6}]:0")));
    let sizes = ["1", "1232", "1452", "1453", "9000", "65507"];
    let port = echo.port();
    let args = ["udp-echo", SERVICE6, &port, "3"].iter().chain(&sizes).copied().collect::<Vec<_>>();
    let finished = world.probe(&launch, &args).finish().success();
    assert_eq!(finished.value("intact"), sizes.len().to_string(), "{}", finished.describe());
}

/// The child's interface takes what the uplink does not. Its kernel forbids fragments as it does by default.
#[test]
fn a_datagram_longer_than_the_uplinks_mtu_arrives_at_the_first_try() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    for (far, bind) in [(FAR4, format!("{FAR4}:0")), (FAR6, format!("[{FAR6}]:0"))] {
        let echo = udp_echo(world.far.udp(&bind));
        let finished = world.probe(&launch, &["udp-echo", far, &echo.port(), "3", "9000"]).finish().success();
        assert_eq!(finished.value("intact"), "1", "{far}: {}", finished.describe());
    }
}

#[test]
fn a_closed_port_is_reported_to_the_child() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    for address in [SERVICE4, SERVICE6] {
        let result = world.probe(&launch, &["udp-error", address, "9"]).finish().success().value("result");
        assert_eq!(result, "ECONNREFUSED", "{address}");
    }
}

#[test]
fn two_peers_see_one_socket_of_the_child_as_one_address() {
    let (world, launch) = (World::new(), Launch::under_test());
    let (first, second) =
        (world.host.udp(&format!("{SERVICE4}:0")), world.host.udp(&format!("{SERVICE4}:0")));
    let port = |socket: &std::net::UdpSocket| socket.local_addr().expect("bound").port().to_string();
    let ports = [port(&first), port(&second)];
    let mut child = world.probe(&launch, &["udp-from-one-socket", SERVICE4, &ports[0], &ports[1]]);
    let mut seen = Vec::new();
    for socket in [&first, &second] {
        socket.set_read_timeout(Some(tests::process::DEADLINE)).expect("a timeout");
        let (n, from) = socket.recv_from(&mut [0; 64]).expect("the child's hello");
        assert_eq!(n, 5);
        socket.send_to(b"hi", from).expect("the reply");
        seen.push(from);
    }
    child.wait_for_line("ready=1");
    assert_eq!(seen[0], seen[1], "endpoint-independent mapping, RFC 4787 REQ-1");
    child.close_stdin();
    let _ = child.finish().success();
}

#[test]
fn five_hundred_sockets_are_kept_apart() {
    let (world, launch) = (World::new(), Launch::under_test());
    let echo = udp_echo(world.host.udp(&format!("{SERVICE4}:0")));
    let mut child = world.probe(&launch, &["udp-idle", "500", SERVICE4, &echo.port()]);
    child.wait_for_line("open=500");
    child.tell("close");
    child.close_stdin();
    let _ = child.finish().success();
}
