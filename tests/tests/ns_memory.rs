//! The memory of the engine: bounded by configuration, given back after use.

use std::time::{Duration, Instant};
use tests::{
    engine::ours,
    process::Process,
    servers::{Serve, Server},
    world::{SERVICE4, World},
};

/// Resident megabytes of the largest descendant of the launcher that is our program too, the launcher included.
fn resident(process: &Process) -> f64 {
    let mut tree = vec![process.pid().as_raw()];
    let mut largest: f64 = 0.0;
    while let Some(pid) = tree.pop() {
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        tree.extend(children.split_whitespace().filter_map(|child| child.parse::<i32>().ok()));
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field = |name: &str| {
            status.lines().find_map(|line| line.strip_prefix(name)).map(|rest| rest.trim().to_owned())
        };
        if field("Name:").is_some_and(|name| name == "probe") {
            continue;
        }
        let kilobytes =
            field("VmRSS:").and_then(|text| text.trim_end_matches(" kB").trim().parse::<f64>().ok());
        largest = largest.max(kilobytes.unwrap_or(0.0) / 1024.0);
    }
    largest
}

#[test]
fn five_thousand_idle_connections_take_little_and_give_it_back() {
    let Ok(launch) = ours() else { return };
    tests::probe::raise_descriptor_limit();
    let world = World::new();
    let server = Server::start(world.host.listen(&format!("{SERVICE4}:0")), Serve::Hold);
    let port = server.port();
    let mut child = world.probe(&launch, &["gate", "idle", "5000", SERVICE4, &port]);
    child.wait_for_line("ready=1");
    let idle = resident(&child);
    child.tell("go");
    child.wait_for_line("open=5000");
    let full = resident(&child);
    assert!(idle > 0.0 && idle <= 8.0, "idle: {idle} MB");
    assert!(full - idle <= 40.0, "5,000 connections: {} MB more than {idle}", full - idle);
    child.tell("close");
    child.wait_for_line("closed=1");
    // The host's ends close with the server.
    drop(server);
    let deadline = Instant::now() + Duration::from_secs(30);
    // What the tables of 5,000 flows have grown to may stay, little more than a hundred bytes a flow.
    while resident(&child) > idle + 2.0 {
        assert!(Instant::now() < deadline, "{} MB kept, {idle} MB before", resident(&child));
        // Nothing announces it; look again when the child has not ended for a moment.
        assert!(!child.ends_before(Instant::now() + Duration::from_millis(20)), "the child ended");
    }
}

#[test]
fn a_stalled_reader_does_not_grow_the_engine() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    let server = Server::start(world.host.listen(&format!("{SERVICE4}:0")), Serve::StalledSink);
    let mut flood = world.probe(&launch, &["tcp-flood", SERVICE4, &server.port()]);
    flood.wait_for_line("taken=");
    let held = resident(&flood);
    assert!(held <= 24.0, "{held} MB for one stalled flow");
}
