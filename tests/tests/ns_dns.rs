//! DNS through the engine, judged by dig; the host's resolver is a dnsmasq of the test.

use tests::{
    engine::{Engine, Launch, ours},
    process::{Finished, Pipe, Process},
    world::{SERVICE4, World},
};

/// dnsmasq on the host's service address, which the host's resolv.conf names.
fn dnsmasq(world: &World, address: &str) -> Process {
    let text = "x".repeat(200);
    let listen = format!("--listen-address={address}");
    let mut argv = vec![
        "dnsmasq",
        "--no-daemon",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--log-facility=-",
        "--user=",
    ];
    argv.extend([
        "--bind-interfaces",
        "--except-interface=nonexistent",
        &listen,
        "--local=/test/",
        "--pid-file=",
    ]);
    argv.extend([
        "--host-record=a.test,192.0.2.77,2001:db8::77",
        "--cname=alias.test,a.test",
        "--edns-packet-max=4096",
    ]);
    let big = (0..10).map(|i| format!("--txt-record=big.test,{i}{text}")).collect::<Vec<_>>();
    argv.extend(big.iter().map(String::as_str));
    let mut process = Process::spawn(world.host.program(&argv));
    process.wait_for(Pipe::Stderr, "started");
    process
}

#[track_caller]
fn dig(world: &World, launch: &Launch, args: &[&str]) -> Finished {
    world.launch(launch, &[&["dig", "+tries=1", "+time=8"], args].concat()).finish().success()
}

#[test]
fn addresses_aliases_and_absence_are_told_as_they_are() {
    let (world, launch) = (World::new(), Launch::under_test());
    let _server = dnsmasq(&world, SERVICE4);
    assert_eq!(dig(&world, &launch, &["+short", "a.test", "A"]).stdout, "192.0.2.77");
    assert_eq!(dig(&world, &launch, &["+short", "a.test", "AAAA"]).stdout, "2001:db8::77");
    assert_eq!(dig(&world, &launch, &["+short", "alias.test", "A"]).stdout, "a.test.\n192.0.2.77");
    assert!(dig(&world, &launch, &["nothing.test"]).stdout.contains("status: NXDOMAIN"));
    assert_eq!(dig(&world, &launch, &["+short", "-x", "192.0.2.77"]).stdout, "a.test.");
}

#[test]
fn a_large_answer_comes_by_edns_and_by_tcp() {
    let (world, launch) = (World::new(), Launch::under_test());
    let _server = dnsmasq(&world, SERVICE4);
    for how in ["+bufsize=4096", "+tcp"] {
        let answer = dig(&world, &launch, &["+noall", "+answer", how, "big.test", "TXT"]);
        assert_eq!(answer.stdout.lines().count(), 10, "{how}: {}", answer.describe());
    }
}

#[test]
fn a_truncated_answer_says_so_and_is_repeated_over_tcp() {
    let (world, launch) = (World::new(), Launch::under_test());
    let _server = dnsmasq(&world, SERVICE4);
    let truncated = dig(&world, &launch, &["+noedns", "+ignore", "big.test", "TXT"]);
    assert!(truncated.stdout.contains(" tc "), "{}", truncated.describe());
    let repeated = dig(&world, &launch, &["+noedns", "+noall", "+answer", "big.test", "TXT"]);
    assert_eq!(
        repeated.stdout.lines().filter(|line| line.starts_with("big.test")).count(),
        10,
        "{}",
        repeated.describe()
    );
}

#[test]
fn a_resolver_on_the_hosts_loopback_is_reached() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    world.set_resolv_conf("nameserver 127.0.0.53\n");
    let _server = dnsmasq(&world, "127.0.0.53");
    assert_eq!(dig(&world, &launch, &["+short", "a.test"]).stdout, "192.0.2.77");
}

#[test]
fn a_dead_resolver_is_passed_over_for_the_next() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    // Nothing listens on the first: an ICMP error at once.
    world.set_resolv_conf(&format!("nameserver 203.0.113.2\nnameserver {SERVICE4}\n"));
    let _server = dnsmasq(&world, SERVICE4);
    assert_eq!(dig(&world, &launch, &["+short", "a.test"]).stdout, "192.0.2.77");
}

#[test]
fn without_a_living_resolver_the_answer_is_servfail() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    assert!(dig(&world, &launch, &["+time=20", "a.test"]).stdout.contains("status: SERVFAIL"));
}

#[test]
fn a_changed_resolv_conf_is_followed() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    world.set_resolv_conf("nameserver 203.0.113.2\n");
    let _server = dnsmasq(&world, SERVICE4);
    let script = "echo ready; read x; for i in $(seq 100); do a=$(dig +tries=1 +time=8 +short a.test); [ \"$a\" = 192.0.2.77 ] && echo found && exit; done";
    let mut child = world.launch(&launch, &["/bin/sh", "-c", script]);
    child.wait_for_line("ready");
    world.set_resolv_conf(&format!("nameserver {SERVICE4}\n"));
    child.tell("go");
    child.wait_for_line("found");
}

#[test]
fn static_names_are_answered_locally() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    assert_eq!(dig(&world, &launch, &["+short", "host.internal"]).stdout, "10.0.42.2");
    let named = launch.args(&["--dns-name=db.example=192.0.2.99"]);
    assert_eq!(dig(&world, &named, &["+short", "db.example"]).stdout, "192.0.2.99");
    assert_eq!(named.engine, Engine::Ours);
}
