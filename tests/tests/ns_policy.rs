//! What the child may reach.

use tests::{
    engine::{Launch, ours},
    servers::{Serve, Server},
    world::{SERVICE4, World},
};

#[track_caller]
fn connecting(world: &World, launch: &Launch, address: &str, port: &str) -> String {
    world.probe(launch, &["connect", address, port]).finish().success().value("result")
}

#[test]
fn the_hosts_loopback_is_reached_only_when_allowed() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    let server = Server::start(world.host.listen("127.0.0.1:0"), Serve::Echo);
    assert_ne!(connecting(&world, &launch, "10.0.42.2", &server.port()), "ok");
    let allowed = launch.args(&["--allow-host-loopback"]);
    assert_eq!(connecting(&world, &allowed, "10.0.42.2", &server.port()), "ok");
}

#[test]
fn the_loopback_of_the_child_is_its_own() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    let server = Server::start(world.host.listen("127.0.0.1:0"), Serve::Echo);
    assert_eq!(connecting(&world, &launch, "127.0.0.1", &server.port()), "ECONNREFUSED");
}

#[test]
fn link_local_metadata_services_are_denied_at_once_unless_allowed() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    world.host.ip("addr add 169.254.169.254/32 dev lo\n");
    let server = Server::start(world.host.listen("169.254.169.254:0"), Serve::Echo);
    let denied = connecting(&world, &launch, "169.254.169.254", &server.port());
    assert!(denied != "ok" && denied != "TIMEOUT", "{denied}");
    let allowed = launch.args(&["--allow-link-local"]);
    assert_eq!(connecting(&world, &allowed, "169.254.169.254", &server.port()), "ok");
}

#[test]
fn the_first_matching_rule_decides() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    let (open, shut) = (
        Server::start(world.host.listen(&format!("{SERVICE4}:0")), Serve::Echo),
        Server::start(world.host.listen(&format!("{SERVICE4}:0")), Serve::Echo),
    );
    let allow = format!("allow tcp {SERVICE4}:{}", open.port());
    let launch = launch.args(&["--policy", &allow, "--policy", "deny tcp any"]);
    assert_eq!(connecting(&world, &launch, SERVICE4, &open.port()), "ok");
    let denied = connecting(&world, &launch, SERVICE4, &shut.port());
    assert!(denied != "ok" && denied != "TIMEOUT", "a refusal is prompt: {denied}");
}
