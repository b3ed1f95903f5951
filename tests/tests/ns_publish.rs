//! Published ports of the real program: clients of the host, launcher, engine and agent, and servers in the child.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    os::unix::process::ExitStatusExt,
    thread,
    time::Instant,
};
use tests::{
    client::{ask, connect, ping},
    instance::{CHILD4, CHILD6, GATEWAY4, GATEWAY6, Instance, ask_who, eventually, udp_who},
    locate,
    process::{DEADLINE, Process, run},
    servers::{Serve, Server, drain, pour, reset, udp_echo, verdict},
    stream::StreamHash,
    world::{HOST4, Netns, SERVICE4, SERVICE6, World},
};

const FAR_CLIENT4: &str = "192.88.99.2";
const FAR_CLIENT6: &str = "2001:db8:4::2";
const HOST6: &str = "2001:db8:1::2";

/// A world, an instance with these options in it, and the instance's network namespace.
fn lab(args: &[&str]) -> (World, Instance, Netns) {
    let world = World::new();
    let instance = Instance::start(&world, args);
    let child = instance.child(&world);
    (world, instance, child)
}

/// The kernel has completed the handshake already: RST follows at once, before or after connect(2) has returned.
#[track_caller]
fn is_refused(from: &Netns, address: &str) {
    let error = match from.connect(address) {
        Err(error) => error,
        Ok(mut stream) => {
            stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
            stream.read(&mut [0]).expect_err("no end, a reset")
        }
    };
    assert!(
        matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused),
        "{address}: {error}"
    );
}

/// Whom `server` has served last, the question being echoed.
#[track_caller]
fn seen(server: &Server, stream: TcpStream) -> String {
    assert_eq!(ask(stream, b"question"), b"question");
    server.served().peer.ip().to_canonical().to_string()
}

fn statistic(instance: &Instance, key: &str) -> u64 {
    let stats = instance.client(&["stats", "--json"]);
    let (_, forwards) = stats.split_once("\"forwards\":{").expect("ports are published");
    let (_, rest) = forwards.split_once(&format!("\"{key}\":")).unwrap_or_else(|| panic!("{key}: {stats}"));
    rest.split([',', '}']).next().expect("a number").parse().expect("a number")
}

// Who is seen.

#[test]
fn tcp_clients_are_seen_by_their_address_whatever_the_server_binds() {
    let (world, _instance, child) = lab(&["-p", "8080:80"]);
    for bound in ["0.0.0.0", CHILD4, "[::]"] {
        let server = Server::start(child.listen(&format!("{bound}:80")), Serve::Echo);
        let stream = connect(&world.far, &format!("{HOST4}:8080"));
        let own = stream.local_addr().unwrap();
        assert_eq!(seen(&server, stream), FAR_CLIENT4, "{bound}");
        assert_eq!(server.accepted().port(), own.port(), "{bound}: the port is kept too");
        let local = connect(&world.host, "127.0.0.1:8080");
        assert_eq!(seen(&server, local), GATEWAY4, "{bound}");
    }
    for bound in ["[::]", &format!("[{CHILD6}]")] {
        let server = Server::start(child.listen(&format!("{bound}:80")), Serve::Echo);
        assert_eq!(seen(&server, connect(&world.far, &format!("[{HOST6}]:8080"))), FAR_CLIENT6, "{bound}");
        assert_eq!(seen(&server, connect(&world.host, "[::1]:8080")), GATEWAY6, "{bound}");
    }
    for (bound, reached) in [("127.0.0.1", HOST4), ("[::1]", &format!("[{HOST6}]"))] {
        let server = Server::start(child.listen(&format!("{bound}:80")), Serve::Echo);
        let peer = seen(&server, connect(&world.far, &format!("{reached}:8080")));
        assert!(peer == "127.0.0.1" || peer == "::1", "{bound}: {peer}");
    }
}

#[test]
fn udp_clients_are_seen_by_their_address_whatever_the_server_binds() {
    let (world, _instance, child) =
        lab(&["-p", "5300:53/udp", "-p", "5301:53/udp,source=gateway", "-p", "5302:127.0.0.1:53/udp"]);
    for bound in ["0.0.0.0", CHILD4, "[::]"] {
        let _server = udp_who(child.udp(&format!("{bound}:53")));
        let far = world.far.udp("0.0.0.0:0");
        let peer = ask_who(&far, &format!("{HOST4}:5300"));
        assert_eq!(peer.ip().to_canonical().to_string(), FAR_CLIENT4, "{bound}");
        assert_eq!(peer.port(), far.local_addr().unwrap().port(), "{bound}: the port is kept too");
        let hidden = ask_who(&world.far.udp("0.0.0.0:0"), &format!("{HOST4}:5301"));
        assert_eq!(hidden.ip().to_canonical().to_string(), GATEWAY4, "{bound}");
        let local = ask_who(&world.host.udp("127.0.0.1:0"), "127.0.0.1:5300");
        assert_eq!(local.ip().to_canonical().to_string(), GATEWAY4, "{bound}");
    }
    for bound in ["[::]", &format!("[{CHILD6}]")] {
        let _server = udp_who(child.udp(&format!("{bound}:53")));
        let peer = ask_who(&world.far.udp("[::]:0"), &format!("[{HOST6}]:5300"));
        assert_eq!(peer.ip().to_string(), FAR_CLIENT6, "{bound}");
        let local = ask_who(&world.host.udp("[::1]:0"), "[::1]:5300");
        assert_eq!(local.ip().to_string(), GATEWAY6, "{bound}");
    }
    // Only there by its own word: the engine on the TAP, which carries the others, does not see the child's loopback.
    let _server = udp_who(child.udp("127.0.0.1:53"));
    assert!(ask_who(&world.far.udp("0.0.0.0:0"), &format!("{HOST4}:5302")).ip().is_loopback());
}

#[test]
fn families_are_crossed_as_the_gateway() {
    let (world, _instance, child) = lab(&[
        "-p",
        &format!("{HOST4}:8080:[{CHILD6}]:80"),
        "-p",
        &format!("[{HOST6}]:8080:{CHILD4}:80"),
        "-p",
        &format!("{HOST4}:5300:[{CHILD6}]:53/udp"),
        "-p",
        &format!("[{HOST6}]:5300:{CHILD4}:53/udp"),
    ]);
    let server = Server::start(child.listen(&format!("[{CHILD6}]:80")), Serve::Echo);
    assert_eq!(seen(&server, connect(&world.far, &format!("{HOST4}:8080"))), GATEWAY6);
    let server = Server::start(child.listen(&format!("{CHILD4}:80")), Serve::Echo);
    assert_eq!(seen(&server, connect(&world.far, &format!("[{HOST6}]:8080"))), GATEWAY4);
    let _six = udp_who(child.udp(&format!("[{CHILD6}]:53")));
    let peer = ask_who(&world.far.udp("0.0.0.0:0"), &format!("{HOST4}:5300"));
    assert_eq!(peer.ip().to_string(), GATEWAY6);
    let _four = udp_who(child.udp(&format!("{CHILD4}:53")));
    let peer = ask_who(&world.far.udp("[::]:0"), &format!("[{HOST6}]:5300"));
    assert_eq!(peer.ip().to_string(), GATEWAY4);
}

#[test]
fn source_gateway_hides_the_client() {
    let (world, _instance, child) = lab(&["-p", "8080:80,source=gateway"]);
    let server = Server::start(child.listen("0.0.0.0:80"), Serve::Echo);
    assert_eq!(seen(&server, connect(&world.far, &format!("{HOST4}:8080"))), GATEWAY4);
}

#[test]
fn the_child_reaches_its_own_ports_through_addresses_of_the_host() {
    let (world, _instance, child) = lab(&["-p", "8080:80", "-p", "5300:53/udp"]);
    let _ = &world;
    let server = Server::start(child.listen("[::]:80"), Serve::Echo);
    let _who = udp_who(child.udp("[::]:53"));
    for host in [HOST4, SERVICE4, &format!("[{HOST6}]"), &format!("[{SERVICE6}]")] {
        assert_eq!(ask(connect(&child, &format!("{host}:8080")), b"me"), b"me", "{host}");
        let _ = server.served();
        let any = if host.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        let _ = ask_who(&child.udp(any), &format!("{host}:5300"));
    }
}

// What is published.

#[test]
fn ranges_keep_their_offset() {
    let (world, instance, child) = lab(&["-p", "9000-9003:80", "-p", "127.0.0.1:9000-9003:80/udp"]);
    let servers =
        [80, 83].map(|port| (port, Server::start(child.listen(&format!("0.0.0.0:{port}")), Serve::Echo)));
    for (port, server) in servers {
        let stream = connect(&world.far, &format!("{HOST4}:{}", 9000 + port - 80));
        assert_eq!(seen(&server, stream), FAR_CLIENT4);
    }
    let _who = udp_who(child.udp("0.0.0.0:82"));
    let peer = ask_who(&world.host.udp("127.0.0.1:0"), "127.0.0.1:9002");
    assert_eq!(peer.ip().to_string(), GATEWAY4);
    is_refused(&world.far, &format!("{HOST4}:9001"));
    instance.client(&["port", "remove", "1", "2"]);
    is_refused(&world.far, &format!("{HOST4}:9000"));
}

#[test]
fn a_port_that_the_system_picks_is_reported() {
    let (world, instance, child) = lab(&["-p", "0:80"]);
    let _server = Server::start(child.listen("0.0.0.0:80"), Serve::Echo);
    let list = instance.client(&["port", "list", "--json"]);
    let (_, rest) = list.split_once("\"parentPort\":").unwrap();
    let port = rest.split([',', '}']).next().unwrap().parse::<u16>().unwrap();
    assert_ne!(port, 0, "{list}");
    assert_eq!(ask(connect(&world.far, &format!("{HOST4}:{port}")), b"x"), b"x");
    let added = instance.client(&["port", "add", "127.0.0.1:0:80"]);
    let spec = added.split_whitespace().nth(1).unwrap();
    let port = spec.split(':').nth(1).unwrap().parse::<u16>().unwrap();
    assert_eq!(ask(connect(&world.host, &format!("127.0.0.1:{port}")), b"x"), b"x", "{added}");
}

#[test]
fn a_child_port_may_be_published_many_times_and_the_same_forward_is_the_same() {
    let (world, instance, child) = lab(&["-p", "8080:80", "-p", "8081:80"]);
    let _server = Server::start(child.listen("0.0.0.0:80"), Serve::Echo);
    let id = instance.publish("8082:80");
    assert_eq!(instance.publish("8082:80"), id, "the same forward");
    for port in 8080..=8082 {
        assert_eq!(ask(connect(&world.far, &format!("{HOST4}:{port}")), b"x"), b"x");
    }
    let told = instance.refusal(&["port", "add", "8082:81"]);
    assert!(told.contains(&format!("conflict with ID {id}")), "{told}");
    instance.client(&["port", "remove", &id]);
    is_refused(&world.far, &format!("{HOST4}:8082"));
    let told = instance.refusal(&["port", "remove", &id]);
    assert!(told.contains(&format!("ID {id}")), "{told}");
}

#[test]
fn an_interface_is_the_only_one_served_and_may_vanish() {
    let (world, instance, child) = lab(&["-p", "%up0:8080:80", "-p", "8081:80"]);
    let server = Server::start(child.listen("0.0.0.0:80"), Serve::Echo);
    assert_eq!(seen(&server, connect(&world.far, &format!("{HOST4}:8080"))), FAR_CLIENT4);
    is_refused(&world.host, "127.0.0.1:8080");
    let mut open = connect(&world.far, &format!("{HOST4}:8080"));
    ping(&mut open);
    world.host.ip("link del up0\n");
    assert_eq!(ask(connect(&world.host, "127.0.0.1:8081"), b"x"), b"x", "others are served as before");
    let told = instance.refusal(&["port", "add", "%up0:8082:80"]);
    assert!(told.contains("no network interface \"up0\""), "{told}");
    instance.client(&["port", "remove", "1", "2"]);
    let _ = instance.finish().success();
}

#[test]
fn where_nobody_listens_clients_see_a_reset_until_a_server_comes() {
    let (world, _instance, child) = lab(&["-p", "8080:80"]);
    for _ in 0..3 {
        is_refused(&world.far, &format!("{HOST4}:8080"));
        is_refused(&world.host, "127.0.0.1:8080");
        is_refused(&world.far, &format!("[{HOST6}]:8080"));
        // A server that is started anew is reached by the same forward.
        let server = Server::start(child.listen("[::]:80"), Serve::Echo);
        assert_eq!(seen(&server, connect(&world.far, &format!("{HOST4}:8080"))), FAR_CLIENT4);
    }
}

#[test]
fn a_port_in_use_names_its_holder() {
    let world = World::new();
    let argv = locate::program("socat");
    let argv = [argv.to_str().unwrap(), "-d", "-d", "TCP-LISTEN:8080,fork", "EXEC:cat"].map(String::from);
    let mut holder = Process::spawn(world.host.command(&argv));
    holder.wait_for(tests::process::Pipe::Stderr, "listening on");
    let held = format!("in use on the host, held by PID {} (socat)", holder.pid());
    let directory = world.dir().join("state");
    let failed = Instance::running(&world, &directory, &["-p", "8080:80"], &["true"]).finish();
    assert_eq!(failed.status.code(), Some(1), "{}", failed.describe());
    assert!(
        failed.stderr.contains("publish 8080:80/tcp") && failed.stderr.contains(&held),
        "{}",
        failed.stderr
    );
    let instance = Instance::start(&world, &[]);
    let told = instance.refusal(&["port", "add", "127.0.0.1:8080:80"]);
    assert!(told.contains(&held), "{told}");
    // Another instance may be the holder as well: its engine, or its launcher, which keeps the port for the next engine.
    let other = Instance::at(&world, &world.dir().join("other"), &["-p", "8081:80/udp"]);
    let told = instance.refusal(&["port", "add", "8081:80/udp"]);
    let held = format!("held by PID {} (rootless-launch)", other.process.pid());
    assert!(told.contains(&held), "{told}");
}

#[test]
fn a_port_of_the_privileged_names_the_sysctl() {
    let world = World::new();
    let directory = world.dir().join("state");
    // A world's user may do what root may.
    let wrapper = ["setpriv", "--bounding-set=-net_bind_service"];
    let failed = Instance::behind(&world, &directory, &wrapper, &["-p", "80:80"], &["true"]).finish();
    assert!(failed.stderr.contains("net.ipv4.ip_unprivileged_port_start=80"), "{}", failed.describe());
    let wait = locate::probe_argv(&["wait"]);
    let command: Vec<_> = wait.iter().map(String::as_str).collect();
    let mut instance = Instance::behind(&world, &directory, &wrapper, &[], &command);
    instance.process.wait_for_line("ready=1");
    let told = instance.refusal(&["port", "add", "80:80"]);
    assert!(told.contains("net.ipv4.ip_unprivileged_port_start=80"), "{told}");
}

// What is carried.

#[test]
fn a_hundred_megabytes_arrive_intact_in_both_directions() {
    let (world, _instance, child) = lab(&["-p", "8080:80"]);
    let address = format!("{HOST4}:8080");
    let server = Server::start(child.listen("0.0.0.0:80"), Serve::Sink);
    let mut stream = connect(&world.far, &address);
    pour(&mut stream, 100_000_000, 1).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, verdict(100_000_000, StreamHash::of_pattern(1, 100_000_000)));
    drop(server);
    let _server = Server::start(child.listen("0.0.0.0:80"), Serve::Source(100_000_000, 2));
    let (hash, error) = drain(&mut connect(&world.far, &address));
    assert!(error.is_none(), "{error:?}");
    assert_eq!((hash.bytes(), hash.sum()), (100_000_000, StreamHash::of_pattern(2, 100_000_000)));
}

#[test]
fn each_side_may_finish_first() {
    let (world, _instance, child) = lab(&["-p", "8080:80"]);
    let address = format!("{HOST4}:8080");
    let server = Server::start(child.listen("0.0.0.0:80"), Serve::Sink);
    let mut hash = StreamHash::default();
    hash.update(b"all");
    assert_eq!(ask(connect(&world.far, &address), b"all"), verdict(3, hash.sum()));
    drop(server);
    let server = Server::start(child.listen("0.0.0.0:80"), Serve::SourceThenSink(1_000_000, 4));
    let mut stream = connect(&world.far, &address);
    let (got, error) = drain(&mut stream);
    assert!(error.is_none() && got.sum() == StreamHash::of_pattern(4, 1_000_000));
    stream.write_all(b"all").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let served = server.served();
    assert_eq!((served.bytes, served.sum, served.error), (3, hash.sum(), None));
}

#[test]
fn resets_are_passed_on_both_ways() {
    let (world, _instance, child) = lab(&["-p", "8080:80"]);
    let address = format!("{HOST4}:8080");
    let server = Server::start(child.listen("0.0.0.0:80"), Serve::Echo);
    let mut stream = connect(&world.far, &address);
    ping(&mut stream);
    reset(stream).unwrap();
    assert_eq!(server.served().error, Some(ErrorKind::ConnectionReset));
    drop(server);
    let _server = Server::start(child.listen("0.0.0.0:80"), Serve::ResetAfterByte);
    let mut stream = connect(&world.far, &address);
    stream.write_all(b"x").unwrap();
    let (_, error) = drain(&mut stream);
    assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::ConnectionReset));
}

#[test]
fn who_does_not_read_costs_neither_memory_nor_others() {
    let (world, instance, child) = lab(&["-p", "8080:80", "-p", "8081:81"]);
    let _source = Server::start(child.listen("0.0.0.0:80"), Serve::Source(u64::MAX >> 1, 3));
    let _echo = Server::start(child.listen("0.0.0.0:81"), Serve::Echo);
    assert_eq!(ask(connect(&world.far, &format!("{HOST4}:8081")), b"x"), b"x");
    let engine = instance.pid_of("rl-engine");
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{engine}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let before = resident();
    // They begin to read, so that the stream is under way, and stop.
    let silent: Vec<_> = (0..20)
        .map(|_| {
            let mut stream = connect(&world.far, &format!("{HOST4}:8080"));
            stream.read_exact(&mut [0; 1000]).unwrap();
            stream
        })
        .collect();
    // They send and never read: what the server returns has nowhere to go.
    let argv = locate::probe_argv(&["tcp-flood", HOST4, "8081"]);
    let mut flood = Process::spawn(world.far.command(&argv));
    flood.wait_for_line("taken=");
    for _ in 0..100 {
        assert_eq!(ask(connect(&world.far, &format!("{HOST4}:8081")), b"x"), b"x");
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 8 << 10, "{grown} kB more");
    drop((silent, flood));
    eventually("connections end", || statistic(&instance, "connections") == 0);
}

#[test]
fn of_ten_thousand_short_connections_none_is_lost_and_no_descriptor_stays() {
    // The descriptors of a process in its sandbox cannot be counted.
    let (world, instance, child) = lab(&["--sandbox=off", "-p", "8080:80"]);
    let _server = Server::start(child.listen("0.0.0.0:80"), Serve::Echo);
    assert_eq!(ask(connect(&world.far, &format!("{HOST4}:8080")), b"x"), b"x");
    let engine = instance.pid_of("rl-engine");
    let descriptors = || std::fs::read_dir(format!("/proc/{engine}/fd")).expect("no sandbox").count();
    let before = descriptors();
    let argv = locate::probe_argv(&["short", "10000", HOST4, "8080"]);
    let burst = Process::spawn(world.far.command(&argv)).finish().success();
    assert_eq!(burst.value("answered"), "10000", "{}", burst.describe());
    eventually("connections end", || statistic(&instance, "connections") == 0);
    assert_eq!(statistic(&instance, "accepted"), 10_001);
    assert_eq!(statistic(&instance, "refused"), 0);
    // What is left are sockets in stock and pipes in reserve.
    let after = descriptors();
    assert!(after < before + 700, "{before} descriptors before, {after} after");
}

#[test]
fn at_the_limit_of_descriptors_some_are_refused_and_service_goes_on() {
    let world = World::new();
    let directory = world.dir().join("state");
    let wait = locate::probe_argv(&["wait"]);
    let command: Vec<_> = wait.iter().map(String::as_str).collect();
    let wrapper = ["prlimit", "--nofile=128:128"];
    let mut instance = Instance::behind(&world, &directory, &wrapper, &["-p", "8080:80"], &command);
    instance.process.wait_for_line("ready=1");
    let child = instance.child(&world);
    let _server = Server::start(child.listen("0.0.0.0:80"), Serve::Echo);
    // As many as there are descriptors for are served, the others wait, or see a reset.
    let streams: Vec<_> = (0..150).map(|_| connect(&world.far, &format!("{HOST4}:8080"))).collect();
    let (mut served, mut refused) = (0, 0);
    for mut stream in streams {
        match stream.write_all(b"x").and_then(|()| stream.read_exact(&mut [0])) {
            Ok(()) => served += 1,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(served >= 30, "{served} served, {refused} refused");
    eventually("connections end", || statistic(&instance, "connections") == 0);
    assert_eq!(ask(connect(&world.far, &format!("{HOST4}:8080")), b"again"), b"again");
}

#[test]
fn datagrams_of_all_sizes_go_there_and_back() {
    let (world, _instance, child) = lab(&["-p", "5300:53/udp", "-p", "5301:127.0.0.1:53/udp"]);
    let _server = udp_echo(child.udp("0.0.0.0:53"));
    let client = world.far.udp("0.0.0.0:0");
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    for port in [5300, 5301] {
        client.connect(format!("{HOST4}:{port}")).unwrap();
        for size in [0, 1, 1400, 1473, 9000, 60_000] {
            let sent = vec![7; size];
            client.send(&sent).unwrap();
            let mut buffer = vec![0; 65_536];
            let n = client.recv(&mut buffer).unwrap_or_else(|error| panic!("{port} {size}: {error}"));
            assert!(buffer[..n] == sent, "{port} {size}");
        }
    }
}

// How it ends.

/// Sends as long as it is taken.
fn load(from: &Netns, address: &str) -> thread::JoinHandle<()> {
    let mut stream = connect(from, address);
    thread::spawn(move || while stream.write_all(&[7; 16 << 10]).is_ok() {})
}

/// A server that is the instance's command, and its descendants, and ends with standard input.
const SINK: &str =
    "socat -d -d -u TCP-LISTEN:80,fork,backlog=100 OPEN:/dev/null & while read -r line; do :; done";

#[test]
fn when_the_child_ends_under_load_the_launcher_ends_and_nobody_listens() {
    let world = World::new();
    let directory = world.dir().join("state");
    let mut instance = Instance::running(&world, &directory, &["-p", "8080:80"], &["sh", "-c", SINK]);
    instance.process.wait_for(tests::process::Pipe::Stderr, "listening on");
    let loads: Vec<_> = (0..4).map(|_| load(&world.far, &format!("{HOST4}:8080"))).collect();
    let stderr = instance.finish().success().stderr;
    for line in stderr.lines() {
        assert!(line.contains("socat["), "{line}");
    }
    loads.into_iter().for_each(|load| load.join().unwrap());
    is_refused(&world.far, &format!("{HOST4}:8080"));
    assert!(!directory.exists(), "the state directory is removed");
}

/// Kills the process of this name, or the launcher, under load: nothing is left, and the next instance starts.
#[track_caller]
fn nothing_survives(name: &str) {
    let world = World::new();
    let directory = world.dir().join("state");
    let mut instance = Instance::running(
        &world,
        &directory,
        &["-p", "8080:80", "--engine-restart=never"],
        &["sh", "-c", SINK],
    );
    instance.process.wait_for(tests::process::Pipe::Stderr, "listening on");
    let load = load(&world.far, &format!("{HOST4}:8080"));
    // Names come after birth.
    let mut processes = instance.processes();
    let has = |processes: &[(String, _)], wanted: &str| processes.iter().any(|(name, _)| name == wanted);
    eventually("all are there", || {
        processes = instance.processes();
        ["rl-engine", "rl-agent", "rl-guard", "sh"].iter().all(|name| has(&processes, name))
    });
    let target = if name == "launcher" { instance.process.pid() } else { instance.pid_of(name) };
    instance.kill(target);
    load.join().expect("no panic");
    let finished = instance.process.finish();
    if name == "launcher" {
        assert_eq!(finished.status.signal(), Some(9));
    } else {
        assert_eq!(finished.status.code(), Some(1), "{}", finished.describe());
    }
    eventually("everybody is gone", || {
        processes.iter().all(|(_, pid)| !std::path::Path::new(&format!("/proc/{pid}")).exists())
    });
    is_refused(&world.far, &format!("{HOST4}:8080"));
    eventually("the state directory is removed", || !directory.exists());
    let again = Instance::at(&world, &directory, &["-p", "8080:80"]);
    let _ = again.finish().success();
}

#[test]
fn nothing_survives_the_engine() {
    nothing_survives("rl-engine");
}

#[test]
fn nothing_survives_the_guard() {
    nothing_survives("rl-guard");
}

#[test]
fn nothing_survives_the_launcher() {
    nothing_survives("launcher");
}

#[test]
fn a_restart_after_a_kill_need_not_wait() {
    let world = World::new();
    let directory = world.dir().join("state");
    for _ in 0..5 {
        let instance = Instance::at(&world, &directory, &["-p", "8080:80"]);
        instance.kill(instance.process.pid());
        eventually("the launcher is dead", || instance.process.ends_before(Instant::now()));
    }
    let _ = Instance::at(&world, &directory, &["-p", "8080:80"]).finish().success();
}

#[test]
fn without_the_agent_ports_are_lost_and_said_to_be() {
    let (world, mut instance, child) = lab(&["-p", "8080:80"]);
    let _server = Server::start(child.listen("0.0.0.0:80"), Serve::Echo);
    assert_eq!(ask(connect(&world.far, &format!("{HOST4}:8080")), b"x"), b"x");
    instance.kill(instance.pid_of("rl-agent"));
    instance.process.wait_for(tests::process::Pipe::Stderr, "no more published ports");
    is_refused(&world.far, &format!("{HOST4}:8080"));
    let _ = instance.finish().success();
}

// Auto mode.

#[test]
fn what_listens_is_published_and_withdrawn_by_itself() {
    let (world, instance, child) = lab(&["-p", "auto,exclude=8022"]);
    let list = ["port", "list"];
    let server = Server::start(child.listen("0.0.0.0:8080"), Serve::Echo);
    let hidden = Server::start(child.listen("0.0.0.0:8022"), Serve::Echo);
    let udp = udp_who(child.udp("0.0.0.0:5300"));
    let local = Server::start(child.listen("127.0.0.1:8081"), Serve::Echo);
    instance.until(&list, |list| ["8080", "8081", "5300"].iter().all(|port| list.contains(port)));
    assert_eq!(seen(&server, connect(&world.far, &format!("{HOST4}:8080"))), FAR_CLIENT4);
    let peer = ask_who(&world.far.udp("0.0.0.0:0"), &format!("{HOST4}:5300"));
    assert_eq!(peer.ip().to_canonical().to_string(), FAR_CLIENT4);
    assert_eq!(ask(connect(&world.host, "127.0.0.1:8081"), b"x"), b"x");
    is_refused(&world.far, &format!("{HOST4}:8081"));
    is_refused(&world.far, &format!("{HOST4}:8022"));
    drop((server, hidden, udp, local));
    instance.until(&list, |list| !["8080", "8081", "5300"].iter().any(|port| list.contains(port)));
    is_refused(&world.far, &format!("{HOST4}:8080"));
}

#[test]
fn a_taken_port_does_not_keep_others_from_being_published() {
    let world = World::new();
    let taken = world.host.listen("0.0.0.0:8080");
    let instance = Instance::start(&world, &["-p", "auto,tcp,include=8080-8090"]);
    let child = instance.child(&world);
    let _wanted = Server::start(child.listen("0.0.0.0:8080"), Serve::Echo);
    let _other = Server::start(child.listen("0.0.0.0:8081"), Serve::Echo);
    let _outside = Server::start(child.listen("0.0.0.0:9000"), Serve::Echo);
    let list = instance.until(&["port", "list"], |list| list.contains("8081"));
    assert!(!list.contains("8080") && !list.contains("9000"), "{list}");
    drop(taken);
    instance.until(&["port", "list"], |list| list.contains("8080"));
    assert_eq!(ask(connect(&world.far, &format!("{HOST4}:8080")), b"x"), b"x");
}

// As containers are reached.

#[test]
fn a_namespace_behind_the_child_sees_the_client() {
    let (world, instance, child) = lab(&[]);
    let nested = world.child();
    child.ip(&format!(
        "link add veth0 type veth peer name eth0 netns {}\naddr add 172.31.0.1/24 dev veth0\nlink set veth0 up\n",
        nested.pid()
    ));
    nested.ip("addr add 172.31.0.2/24 dev eth0\nlink set eth0 up\nroute add default via 172.31.0.1\n");
    child.sysctl("net/ipv4/ip_forward", "1");
    instance.publish("8080:172.31.0.2:80");
    instance.publish("5300:172.31.0.2:53/udp");
    let server = Server::start(nested.listen("0.0.0.0:80"), Serve::Echo);
    let _who = udp_who(nested.udp("0.0.0.0:53"));
    assert_eq!(seen(&server, connect(&world.far, &format!("{HOST4}:8080"))), FAR_CLIENT4);
    assert_eq!(seen(&server, connect(&world.host, "127.0.0.1:8080")), GATEWAY4);
    let peer = ask_who(&world.far.udp("0.0.0.0:0"), &format!("{HOST4}:5300"));
    assert_eq!(peer.ip().to_string(), FAR_CLIENT4);
    is_refused(&world.far, &format!("{HOST4}:8081"));
    drop(server);
    is_refused(&world.far, &format!("{HOST4}:8080"));
    // As a container network publishes it: a rule in the child leads to the nested namespace.
    let rules = "table ip nat { chain prerouting { type nat hook prerouting priority -100; tcp dport 8088 dnat to 172.31.0.2:80; }; }";
    let set = child.run(&["nft", rules]);
    if !set.status.success() {
        let _ = tests::skip::Skipped::because(&format!("no NAT in this kernel: {}", set.stderr));
        return;
    }
    instance.publish("8088:8088");
    let server = Server::start(nested.listen("0.0.0.0:80"), Serve::Echo);
    assert_eq!(seen(&server, connect(&world.far, &format!("{HOST4}:8088"))), FAR_CLIENT4);
    let _ = run(instance.command(&["info"])).success();
}
