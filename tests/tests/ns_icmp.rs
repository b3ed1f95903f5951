//! ICMP of a real kernel through the engine.

use tests::{
    engine::ours,
    world::{FAR4, FAR6, PingSockets, UNREACHABLE4, World, WorldConfig},
};

#[test]
fn echo_reaches_far_hosts_in_both_families() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    for address in [FAR4, FAR6] {
        let _ = world.launch(&launch, &["ping", "-n", "-c3", "-i0.2", "-W5", address]).finish().success();
    }
}

#[test]
fn the_gateway_answers_its_own_ping() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    for address in ["10.0.42.2", "fd42:10:42::2"] {
        let _ = world.launch(&launch, &["ping", "-n", "-c1", "-W5", address]).finish().success();
    }
}

#[test]
fn no_echo_reply_is_made_up() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    let ping = world.launch(&launch, &["ping", "-n", "-c1", "-W2", UNREACHABLE4]).finish();
    assert!(!ping.status.success() && !ping.stdout.contains("bytes from"), "{}", ping.describe());
}

#[test]
fn a_large_echo_comes_back_whole() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    let _ =
        world.launch(&launch, &["ping", "-n", "-c1", "-W5", "-s8000", "-M", "dont", FAR4]).finish().success();
}

#[test]
fn forbidden_ping_sockets_are_explained_with_the_sysctl() {
    let Ok(launch) = ours() else { return };
    let world = World::with(&WorldConfig { ping: PingSockets::Forbidden, ..WorldConfig::default() });
    let ping = world.launch(&launch, &["ping", "-n", "-c1", "-W2", FAR4]).finish();
    assert!(ping.stderr.contains("ping_group_range"), "{}", ping.describe());
    assert!(!ping.stdout.contains("bytes from"), "{}", ping.describe());
}
