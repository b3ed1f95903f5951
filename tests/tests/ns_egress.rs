//! Outbound TCP of the real program on both of its ways: joined in the kernel (`--egress=relay`) and as packets (`--egress=tap`). What
//! the child sees is the same; most tests here run once for each.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
};
use tests::{
    client::{connect, ping, urgent_stays_in_place},
    instance::{CHILD4, GATEWAY4, Instance, eventually},
    locate,
    outbound::{BOTH_WAYS, Lab, nft, outbound, pod, probe_in, relayed, way_to},
    process::Process,
    published::expect_echo,
    servers::{Serve, Server, drain},
    stream::StreamHash,
    unshared::Child,
    world::{FAR4, FAR6, HOST4, PROHIBITED4, SERVICE4, SERVICE6, SILENT4, UNREACHABLE4, World},
};

// Bytes.

#[test]
fn a_hundred_megabytes_arrive_intact_in_both_directions_and_families() {
    for way in BOTH_WAYS {
        let lab = Lab::new(way, &[]);
        for (address, listen) in [(SERVICE4, format!("{SERVICE4}:0")), (SERVICE6, format!("[{SERVICE6}]:0"))]
        {
            let server = Server::start(lab.world.host.listen(&listen), Serve::Sink);
            let sent = lab.probe(&["tcp-send", address, &server.port(), "100000000", "5"]).success();
            assert_eq!(sent.value("intact"), "1", "{way}: {}", sent.describe());
            assert_eq!(server.served().sum, StreamHash::of_pattern(5, 100_000_000));
            let server = Server::start(lab.world.host.listen(&listen), Serve::Source(100_000_000, 6));
            let received = lab.probe(&["tcp-recv", address, &server.port()]).success();
            let sum = format!("{:016x}", StreamHash::of_pattern(6, 100_000_000));
            assert_eq!((received.value("sum"), received.value("end")), (sum, "EOF".to_owned()), "{way}");
            let server = Server::start(lab.world.host.listen(&listen), Serve::Echo);
            let echoed = lab.probe(&["tcp-echo", address, &server.port(), "20000000", "9"]).success();
            assert_eq!(echoed.value("intact"), "1", "{way}: {}", echoed.describe());
        }
    }
}

#[test]
fn destinations_beyond_the_host_are_reached_in_both_families() {
    for way in BOTH_WAYS {
        let lab = Lab::new(way, &[]);
        for (address, listen) in [(FAR4, format!("{FAR4}:0")), (FAR6, format!("[{FAR6}]:0"))] {
            let server = Server::start(lab.world.far.listen(&listen), Serve::Echo);
            let to = listen.replace(":0", "").trim_end_matches(':').to_owned();
            assert!(to.contains(address));
            let mut stream = connect(&lab.child, &format!("{to}:{}", server.port()));
            ping(&mut stream);
            assert_eq!(stream.peer_addr().unwrap().ip().to_string(), address, "who was asked answers");
            assert_eq!(lab.way_of(&stream), way);
        }
    }
}

#[test]
fn urgent_bytes_stay_in_their_place() {
    for way in BOTH_WAYS {
        let lab = Lab::new(way, &[]);
        let listener = lab.world.host.listen(&format!("{SERVICE4}:0"));
        let address = listener.local_addr().unwrap().to_string();
        for bytes in [1, 300_000] {
            for to_child in [true, false] {
                let client = connect(&lab.child, &address);
                let (server, _) = listener.accept().unwrap();
                let (from, to) = if to_child { (server, client) } else { (client, server) };
                assert!(
                    urgent_stays_in_place(from, to, bytes),
                    "{way}: {bytes} bytes, to the child: {to_child}"
                );
            }
        }
    }
}

#[test]
fn clients_may_be_tied_to_the_interface() {
    for way in BOTH_WAYS {
        let lab = Lab::new(way, &[]);
        for host in [SERVICE4.to_owned(), format!("[{SERVICE6}]")] {
            let server = Server::start(lab.world.host.listen(&format!("{host}:0")), Serve::Echo);
            let mut stream = lab.child.connect_by("tap0", &format!("{host}:{}", server.port())).unwrap();
            ping(&mut stream);
            assert_eq!(lab.way_of(&stream), way, "{host}");
        }
    }
}

#[test]
fn either_side_may_end_its_direction_first() {
    for way in BOTH_WAYS {
        let lab = Lab::new(way, &[]);
        let server = lab.serve(Serve::Sink);
        let sent = lab.probe(&["tcp-send", SERVICE4, &server.port(), "100000", "5"]).success();
        assert_eq!(sent.value("intact"), "1", "{way}: the answer comes after the end of the question");
        let server = lab.serve(Serve::SourceThenSink(50_000, 3));
        let args = ["tcp-recv-then-send", SERVICE4, &server.port(), "70000", "4"];
        let exchanged = lab.probe(&args).success();
        assert_eq!(exchanged.value("received_sum"), format!("{:016x}", StreamHash::of_pattern(3, 50_000)));
        let served = server.served();
        assert_eq!((served.bytes, served.sum), (70_000, StreamHash::of_pattern(4, 70_000)), "{way}");
    }
}

#[test]
fn a_server_that_speaks_first_is_heard() {
    for way in BOTH_WAYS {
        let lab = Lab::new(way, &[]);
        // Its words are there before the child's connection is.
        let server = lab.serve(Serve::Source(10, 8));
        for _ in 0..20 {
            let mut stream = lab.connect(&server);
            let (hash, error) = drain(&mut stream);
            assert_eq!((hash.bytes(), error.map(|error| error.kind())), (10, None), "{way}");
        }
    }
}

#[test]
fn resets_are_passed_on_both_ways() {
    for way in BOTH_WAYS {
        let lab = Lab::new(way, &[]);
        let server = lab.serve(Serve::ResetAfterByte);
        let finished = lab.probe(&["rr", SERVICE4, &server.port(), "30"]);
        assert_eq!(finished.value("error"), "ECONNRESET", "{way}: {}", finished.describe());
        let server = lab.serve(Serve::Sink);
        let _ = lab.probe(&["tcp-reset", SERVICE4, &server.port(), "1000"]).success();
        assert_eq!(server.served().error, Some(ErrorKind::ConnectionReset), "{way}");
    }
}

#[test]
fn who_does_not_read_stops_the_other_and_nothing_is_lost() {
    for way in BOTH_WAYS {
        let lab = Lab::new(way, &[]);
        let mut server = lab.serve(Serve::StalledSink);
        let argv = locate::probe_argv(&["tcp-flood", SERVICE4, &server.port()]);
        let mut flood = Process::spawn(lab.child.command(&argv));
        let taken = flood.wait_for_line("taken=");
        let taken: u64 = taken.trim_start_matches("taken=").parse().expect("a number");
        assert!(taken < 160_000_000, "{way}: {taken} bytes went into a connection that nobody reads");
        server.resume();
        flood.tell("end");
        assert_eq!(flood.finish().success().value("intact"), "1", "{way}");
        let server = lab.serve(Serve::Source(30_000_000, 2));
        let argv = locate::probe_argv(&["tcp-stall", SERVICE4, &server.port()]);
        let mut stalled = Process::spawn(lab.child.command(&argv));
        stalled.wait_for_line("ready=1");
        let _ = server.accepted();
        stalled.tell("read");
        let finished = stalled.finish().success();
        assert_eq!(finished.value("sum"), format!("{:016x}", StreamHash::of_pattern(2, 30_000_000)), "{way}");
    }
}

#[test]
fn what_the_command_left_behind_is_delivered_after_its_end() {
    let world = World::new();
    for way in BOTH_WAYS {
        let server = Server::start(world.host.listen(&format!("{SERVICE4}:0")), Serve::Sink);
        let script = format!("head -c 3000000 /dev/zero >/dev/tcp/{SERVICE4}/{}", server.port());
        let state = world.dir().join("state");
        let egress = format!("--egress={way}");
        let ended = Instance::running(&world, &state, &[&egress], &["bash", "-c", &script]).finish();
        let _ = ended.success();
        assert_eq!(server.served().bytes, 3_000_000, "{way}");
    }
}

// What a connect says.

#[test]
fn connects_are_truthful() {
    for way in BOTH_WAYS {
        let lab = Lab::new(way, &[]);
        for (address, port, expected) in [
            (SERVICE4, "9", "ECONNREFUSED"),
            (SERVICE6, "9", "ECONNREFUSED"),
            (PROHIBITED4, "80", "EHOSTUNREACH"),
            (UNREACHABLE4, "80", "EHOSTUNREACH"),
            ("2001:db8:2::67", "80", "ENETUNREACH"),
            (SILENT4, "80", "TIMEOUT"),
        ] {
            let result = lab.probe(&["connect", address, port]).success().value("result");
            assert_eq!(result, expected, "{way}: {address}");
        }
        let server = lab.serve(Serve::Echo);
        lab.goes_its_way(&server);
    }
}

#[test]
fn the_policy_refuses_on_both_ways() {
    for way in BOTH_WAYS {
        let lab = Lab::new(
            way,
            &["--policy", &format!("deny tcp {SERVICE4}:7-9"), "--policy", "deny tcp 203.0.113.2"],
        );
        let expected = match way {
            "relay" => Lab::new("tap", &["--policy", "deny tcp 203.0.113.2"])
                .probe(&["connect", "203.0.113.2", "80"])
                .success()
                .value("result"),
            _ => lab.probe(&["connect", "203.0.113.2", "80"]).success().value("result"),
        };
        let _listens = lab.world.host.listen("203.0.113.2:80");
        let result = lab.probe(&["connect", "203.0.113.2", "80"]).success().value("result");
        assert_eq!(result, expected, "{way}");
        assert_ne!(result, "ok", "{way}");
        let server = lab.serve(Serve::Echo);
        lab.goes_its_way(&server);
        // Rules that come later concern new connections, as ever.
        lab.instance.client(&["policy", "add", &format!("deny tcp {SERVICE4}")]);
        let result = lab.probe(&["connect", SERVICE4, &server.port()]).success().value("result");
        assert_eq!(result, expected, "{way}");
    }
}

#[test]
fn without_descriptors_new_connections_wait_and_open_ones_go_on() {
    for way in BOTH_WAYS {
        let world = World::new();
        let server = Server::start(world.host.listen(&format!("{SERVICE4}:0")), Serve::Echo);
        let wait = locate::probe_argv(&["wait"]);
        let command: Vec<_> = wait.iter().map(String::as_str).collect();
        let (state, egress) = (world.dir().join("state"), format!("--egress={way}"));
        let mut instance =
            Instance::behind(&world, &state, &["prlimit", "--nofile=128:128"], &[&egress], &command);
        instance.process.wait_for_line("ready=1");
        let child = instance.child(&world);
        let address = format!("{SERVICE4}:{}", server.port());
        let mut open: Vec<TcpStream> = (0..40).map(|_| connect(&child, &address)).collect();
        open.iter_mut().for_each(ping);
        // More than there are descriptors for: they get through when there is room.
        let argv = locate::probe_argv(&["short", "200", SERVICE4, &server.port()]);
        let burst = Process::spawn(child.command(&argv)).finish().success();
        assert_eq!(burst.value("answered"), "200", "{way}: {}", burst.describe());
        open.iter_mut().for_each(ping);
    }
}

// Which way.

#[test]
fn flows_statistics_and_info_tell_the_way() {
    for way in BOTH_WAYS {
        let lab = Lab::new(way, &[]);
        let server = lab.serve(Serve::Echo);
        let mut stream = lab.connect(&server);
        ping(&mut stream);
        assert_eq!(lab.way_of(&stream), way);
        let expected = match way {
            "relay" => "IPv4 by the relay; IPv6 by the relay",
            _ => "IPv4 by the TAP (--egress=tap); IPv6 by the TAP (--egress=tap)",
        };
        assert!(outbound(&lab.instance).ends_with(expected), "{}", outbound(&lab.instance));
        let json = lab.instance.client(&["info", "--json"]);
        assert!(
            json.contains(&format!("\"egress\":{{\"mode\":\"{way}\",\"ipv4\":{{\"path\":\"{way}\"")),
            "{json}"
        );
        stream.write_all(&[7; 10_000]).unwrap();
        stream.read_exact(&mut [0; 10_000]).unwrap();
        let flows = lab.instance.client(&["flows", "--json"]);
        assert!(flows.contains(&format!("\"path\":\"{way}\"")), "{flows}");
        let (joined, connections) = if way == "relay" { (1, 1) } else { (0, 0) };
        assert_eq!(relayed(&lab.instance, "joined"), joined, "{way}");
        assert_eq!(relayed(&lab.instance, "connections"), connections, "{way}");
        drop(stream);
        eventually("the flow ends", || !lab.instance.client(&["flows"]).contains(SERVICE4));
        assert_eq!(relayed(&lab.instance, "connections"), 0, "{way}");
        assert_eq!(relayed(&lab.instance, "bytesFromChild"), joined * 10_001, "{way}");
        assert_eq!(relayed(&lab.instance, "bytesToChild"), joined * 10_001, "{way}");
    }
}

#[test]
fn a_launch_pays_for_the_relay_when_it_connects() {
    let lab = Lab::new("auto", &[]);
    let has_agent = || lab.instance.processes().iter().any(|(name, _)| name == "rl-agent");
    let _udp = tests::servers::udp_echo(lab.world.host.udp(&format!("{SERVICE4}:5300")));
    let _ = lab.probe(&["udp-echo", SERVICE4, "5300", "1", "100"]).success();
    assert!(!has_agent(), "{:?}", lab.instance.processes());
    assert!(
        outbound(&lab.instance).contains("the first connection will tell"),
        "{}",
        outbound(&lab.instance)
    );
    let server = lab.serve(Serve::Echo);
    let mut first = lab.connect(&server);
    ping(&mut first);
    assert!(has_agent(), "{:?}", lab.instance.processes());
    lab.instance.until(&["info"], |info| info.contains("IPv4 by the relay; IPv6 by the relay"));
    assert_eq!(lab.way_of(&first), "relay", "it waited for the agent");
}

#[test]
fn while_a_capture_runs_new_connections_are_packets() {
    let lab = Lab::new("auto", &[]);
    let server = lab.serve(Serve::Echo);
    let mut before = lab.connect(&server);
    ping(&mut before);
    lab.instance.until(&["info"], |info| info.contains("by the relay;"));
    let mut relayed = lab.connect(&server);
    ping(&mut relayed);
    assert_eq!(lab.way_of(&relayed), "relay");
    let file = lab.world.dir().join("capture.pcap");
    let path = file.to_str().expect("paths are UTF-8");
    lab.instance.client(&["capture", "start", path]);
    assert!(
        outbound(&lab.instance).contains("by the TAP (a capture is running)"),
        "{}",
        outbound(&lab.instance)
    );
    let mut during = lab.connect(&server);
    during.write_all(b"seen by the capture").unwrap();
    during.read_exact(&mut [0; 19]).unwrap();
    assert_eq!(lab.way_of(&during), "tap");
    ping(&mut relayed);
    assert_eq!(lab.way_of(&relayed), "relay", "what was joined stays so");
    lab.instance.client(&["capture", "stop"]);
    let bytes = fs::read(&file).unwrap();
    assert!(bytes.windows(19).any(|window| window == b"seen by the capture"));
    let mut after = lab.connect(&server);
    ping(&mut after);
    assert_eq!(lab.way_of(&after), "relay");
}

#[test]
fn addresses_that_the_engine_serves_are_not_the_relays() {
    let lab = Lab::new("relay", &["--allow-host-loopback"]);
    let server = Server::start(lab.world.host.listen("127.0.0.1:0"), Serve::Echo);
    let mut stream = connect(&lab.child, &format!("{GATEWAY4}:{}", server.port()));
    ping(&mut stream);
    assert_eq!(lab.way_of(&stream), "tap");
    let resolver = lab.world.host.listen(&format!("{SERVICE4}:53"));
    let dns = connect(&lab.child, "10.0.42.3:53");
    assert_eq!(lab.way_of(&dns), "tap");
    drop(resolver);
    let server = lab.serve(Serve::Echo);
    lab.goes_its_way(&server);
}

#[test]
fn what_the_child_talks_to_itself_is_not_caught() {
    for way in BOTH_WAYS {
        let lab = Lab::new(way, &[]);
        let outside = lab.serve(Serve::Echo);
        lab.goes_its_way(&outside);
        for address in ["127.0.0.1", CHILD4] {
            let server = Server::start(lab.child.listen(&format!("{address}:0")), Serve::Echo);
            let mut stream = connect(&lab.child, &format!("{address}:{}", server.port()));
            ping(&mut stream);
            assert!(
                !lab.instance.client(&["flows"]).contains(&format!("{address}:{}", server.port())),
                "{way}"
            );
        }
    }
}

// Who else is there.

#[test]
fn a_container_behind_the_child_takes_the_same_way() {
    for way in BOTH_WAYS {
        for masquerade in [true, false] {
            let lab = Lab::new(way, &[]);
            let pod = pod(&lab, masquerade);
            let server = lab.serve(Serve::Echo);
            let address = format!("{SERVICE4}:{}", server.port());
            let mut stream = connect(&pod, &address);
            ping(&mut stream);
            assert_eq!(way_to(&lab.instance, &address), way, "masquerade: {masquerade}");
            expect_echo(stream);
            // The child's own go on beside it.
            lab.goes_its_way(&server);
            let result = probe_in(&pod, &["connect", SERVICE4, "9"]).success().value("result");
            assert_eq!(result, "ECONNREFUSED", "{way}");
            let server = lab.serve(Serve::Sink);
            let sent = probe_in(&pod, &["tcp-send", SERVICE4, &server.port(), "20000000", "5"]).success();
            assert_eq!(sent.value("intact"), "1", "{way}");
        }
    }
}

#[test]
fn who_flushes_all_rules_does_not_break_new_connections() {
    let lab = Lab::new("auto", &[]);
    let server = lab.serve(Serve::Echo);
    let _first = lab.connect(&server);
    lab.instance.until(&["info"], |info| info.contains("by the relay;"));
    for _ in 0..3 {
        nft(&lab.child, "flush ruleset");
        for _ in 0..10 {
            let mut stream = lab.connect(&server);
            ping(&mut stream);
            expect_echo(stream);
        }
    }
}

#[test]
fn our_rules_are_a_table_of_their_own_and_leave_others_alone() {
    let lab = Lab::new("relay", &[]);
    nft(
        &lab.child,
        "add table inet theirs; add chain inet theirs out { type filter hook output priority 0; }; \
         add rule inet theirs out counter",
    );
    let server = lab.serve(Serve::Echo);
    lab.goes_its_way(&server);
    let tables = nft(&lab.child, "list tables");
    let mut tables: Vec<_> = tables.lines().collect();
    tables.sort_unstable();
    assert_eq!(tables, ["table inet rootless-launch", "table inet theirs"]);
}

#[test]
fn published_ports_are_not_disturbed() {
    for way in BOTH_WAYS {
        let lab = Lab::new(way, &["-p", "8080:80", "-p", "8081:172.30.0.2:80"]);
        let outside = lab.serve(Serve::Echo);
        lab.goes_its_way(&outside);
        let first = Server::start(lab.child.listen("0.0.0.0:80"), Serve::Echo);
        let client = connect(&lab.world.far, &format!("{HOST4}:8080"));
        expect_echo(client);
        assert_eq!(first.served().peer.ip().to_string(), "192.88.99.2", "{way}: seen by its address");
        let pod = pod(&lab, true);
        let server = Server::start(pod.listen("0.0.0.0:80"), Serve::Echo);
        expect_echo(connect(&lab.world.far, &format!("{HOST4}:8081")));
        assert_eq!(server.served().peer.ip().to_string(), "192.88.99.2", "{way}: the container's");
        // The child meets itself by way of the host.
        drop((first, server));
        let _server = Server::start(lab.child.listen("0.0.0.0:80"), Serve::Echo);
        expect_echo(connect(&lab.child, &format!("{HOST4}:8080")));
        lab.goes_its_way(&outside);
    }
}

#[test]
fn a_port_that_the_childs_rules_lead_to_a_container_keeps_the_clients_address() {
    let lab = Lab::new("relay", &["-p", "8080:80", "-p", "8080:80/udp"]);
    let pod = pod(&lab, true);
    // As Docker and CNI's portmap write them.
    nft(
        &lab.child,
        "add table ip ports; add chain ip ports before { type nat hook prerouting priority -100; }; \
         add chain ip ports own { type nat hook output priority -100; }; \
         add rule ip ports before fib daddr type local tcp dport 80 dnat to 172.30.0.2:81; \
         add rule ip ports own fib daddr type local tcp dport 80 dnat to 172.30.0.2:81; \
         add rule ip ports before fib daddr type local udp dport 80 dnat to 172.30.0.2:81",
    );
    let published = format!("{HOST4}:8080");
    let server = Server::start(pod.listen("0.0.0.0:81"), Serve::Echo);
    for _ in 0..5 {
        let streams: Vec<_> = (0..20).map(|_| connect(&lab.world.far, &published)).collect();
        for mut stream in streams {
            ping(&mut stream);
            expect_echo(stream);
            assert_eq!(server.served().peer.ip().to_string(), "192.88.99.2");
        }
    }
    drop(server);
    let refused = connect(&lab.world.far, &published).read(&mut [0]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionReset);
    // By the TAP.
    let socket = pod.udp("0.0.0.0:81");
    let client = lab.world.far.udp("0.0.0.0:0");
    client.send_to(b"question", &published).unwrap();
    let mut buffer = [0; 16];
    let (len, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..len], from.ip().to_string().as_str()), (&b"question"[..], "192.88.99.2"));
    socket.send_to(b"answer", from).unwrap();
    let (len, from) = client.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..len], from.to_string()), (&b"answer"[..], published));
}

// Where it cannot be.

/// A launch in which nobody can open a socket for nf_tables.
fn without_nf_tables(world: &World, args: &[&str], command: &[&str]) -> Process {
    let launch = tests::engine::Engine::Ours.launch().args(args).argv(command);
    let mut argv = locate::probe_argv(&["without-nf-tables", "--"]);
    argv.extend(launch);
    Process::spawn(world.host.command(&argv))
}

#[test]
fn without_nf_tables_connections_are_packets_and_info_says_why() {
    let world = World::new();
    let server = Server::start(world.host.listen(&format!("{SERVICE4}:0")), Serve::Echo);
    let state = world.dir().join("state");
    let program = locate::rootless_launch().expect("it is built");
    let script = format!(
        "exec 3<>/dev/tcp/{SERVICE4}/{port} && echo x >&3 && read -r x <&3 && \
         {program} flows && {program} info && \
         exec 4<>/dev/tcp/{SERVICE4}/{port} && echo x >&4 && read -r x <&4",
        port = server.port(),
        program = program.display(),
    );
    let arg = format!("--state-dir={}", state.display());
    let told = without_nf_tables(&world, &[&arg], &["bash", "-c", &script]).finish().success();
    assert!(told.stdout.contains(" tap "), "{}", told.describe());
    assert!(told.stdout.contains("by the TAP (") && told.stdout.contains("netfilter"), "{}", told.describe());
    let refused = without_nf_tables(&world, &["--egress=relay"], &["true"]).finish();
    assert_eq!(refused.status.code(), Some(1), "{}", refused.describe());
    assert!(
        refused.stderr.contains("cannot carry outbound connections by the relay"),
        "{}",
        refused.describe()
    );
    assert!(refused.stderr.contains("modprobe nf_tables"), "{}", refused.describe());
}

#[test]
fn a_relay_that_was_asked_for_with_a_capture_is_refused() {
    let world = World::new();
    let pcap = format!("--pcap={}", world.dir().join("x.pcap").display());
    let state = world.dir().join("state");
    let refused = Instance::running(&world, &state, &["--egress=relay", &pcap], &["true"]).finish();
    assert_eq!(refused.status.code(), Some(2), "{}", refused.describe());
    assert!(refused.stderr.contains("--pcap records packets"), "{}", refused.describe());
}

// How it ends.

#[test]
fn without_its_agent_new_connections_are_packets() {
    let lab = Lab::new("auto", &[]);
    let server = lab.serve(Serve::Echo);
    let _first = lab.connect(&server);
    lab.instance.until(&["info"], |info| info.contains("by the relay;"));
    let mut relayed = lab.connect(&server);
    ping(&mut relayed);
    assert_eq!(lab.way_of(&relayed), "relay");
    lab.instance.kill(lab.instance.pid_of("rl-agent"));
    // It is reset: an end would look like the end of the data.
    let error = relayed.read(&mut [0]).expect_err("no end, a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let mut stream = lab.connect(&server);
    ping(&mut stream);
    assert_eq!(lab.way_of(&stream), "tap");
    assert!(outbound(&lab.instance).contains("by the TAP ("), "{}", outbound(&lab.instance));
    assert_eq!(relayed_connections(&lab), 0);
    let _ = lab.instance.finish().success();
}

fn relayed_connections(lab: &Lab) -> u64 {
    relayed(&lab.instance, "connections")
}

#[test]
fn two_thousand_connections_at_once_leave_nothing_behind() {
    tests::probe::raise_descriptor_limit();
    // The descriptors of a process in its sandbox cannot be counted.
    let lab = Lab::new("relay", &["--sandbox=off"]);
    let server = lab.serve(Serve::Echo);
    lab.goes_its_way(&server);
    let engine = lab.instance.pid_of("rl-engine");
    let descriptors = || fs::read_dir(format!("/proc/{engine}/fd")).expect("no sandbox").count();
    eventually("the first connection ends", || relayed_connections(&lab) == 0);
    let before = descriptors();
    let many = lab.probe(&["many", "2000", SERVICE4, &server.port(), "3000", "1"]).success();
    assert_eq!((many.value("open"), many.value("intact")), ("2000".to_owned(), "2000".to_owned()));
    eventually("connections end", || !lab.instance.client(&["flows"]).contains(SERVICE4));
    assert_eq!(relayed_connections(&lab), 0);
    assert!(relayed(&lab.instance, "joined") > 1000, "{}", lab.instance.client(&["stats"]));
    // What is left are sockets in stock and pipes in reserve.
    let after = descriptors();
    assert!(after < before + 700, "{before} descriptors before, {after} after");
    let short = lab.probe(&["short", "3000", SERVICE4, &server.port()]).success();
    assert_eq!(short.value("answered"), "3000", "{}", short.describe());
    eventually("connections end", || !lab.instance.client(&["flows"]).contains(SERVICE4));
    assert!(descriptors() < before + 700);
}

#[test]
fn a_server_of_many_brief_connections_is_left_to_the_tap_until_one_carries_much() {
    let lab = Lab::new("auto", &[]);
    let [often, seldom] = [(); 2].map(|()| lab.serve(Serve::Echo));
    let connect = |server| {
        let mut stream = lab.connect(server);
        ping(&mut stream);
        stream
    };
    assert_eq!(lab.way_of(&connect(&often)), "relay");
    let brief = lab.probe(&["short", "100", SERVICE4, &often.port()]).success();
    assert_eq!(brief.value("answered"), "100");
    let much = connect(&often);
    assert_eq!(lab.way_of(&much), "tap");
    assert_eq!(lab.way_of(&connect(&seldom)), "relay");
    expect_echo(much);
    eventually("the relay has it again", || lab.way_of(&connect(&often)) == "relay");
}

#[test]
fn a_killed_child_ends_its_connections_on_the_host() {
    for way in BOTH_WAYS {
        let world = World::new();
        let server = Server::start(world.host.listen(&format!("{SERVICE4}:0")), Serve::Sink);
        let launch = tests::engine::Engine::Ours.launch().args(&[&format!("--egress={way}")]);
        let mut child = world.probe(&launch, &["idle", "1", SERVICE4, &server.port()]);
        child.wait_for_line("open=1");
        drop(child);
        assert_eq!(server.served().bytes, 0, "{way}");
    }
}

// Other programs' names.

/// Calls the program by another's name, in the background if that is its way, and waits until it is ready.
#[track_caller]
fn personality(child: &Child<'_>, name: &str, environment: &[(&str, &str)]) -> Process {
    let program = locate::rootless_launch().expect("it is built").to_string_lossy().into_owned();
    let script = match name {
        "slirp4netns" => r#"exec 3>&1 4<&0; exec "$0" slirp4netns -c -r 3 -e 4 "$1" tap0 >&2"#,
        _ => {
            r#""$0" pasta --quiet --config-net -I tap0 -t none -u none -T none -U none --pid "$2" "$1" || exit
               echo 1; read -r line; kill "$(cat "$2")""#
        }
    };
    let pid_file = child.world().dir().join("pasta.pid").display().to_string();
    let argv = ["sh", "-c", script, &program, &child.pid(), &pid_file];
    let mut command = child.world().host.program(&argv);
    command.envs(environment.iter().copied());
    Process::spawn(command)
}

/// Bytes that left by the TAP.
#[track_caller]
fn tap_bytes(child: &Child<'_>) -> u64 {
    let devices = child.stdout(&["cat", "/proc/net/dev"]);
    let row = devices.lines().find(|line| line.contains("tap0:")).expect("a TAP");
    row.split_whitespace().nth(9).and_then(|bytes| bytes.parse().ok()).expect("a number")
}

#[test]
fn personalities_leave_the_namespace_alone_unless_told_otherwise() {
    let world = World::new();
    for name in ["slirp4netns", "pasta"] {
        for way in BOTH_WAYS {
            let child = Child::new(&world);
            let told = [("ROOTLESS_LAUNCH_EGRESS", "relay")];
            let mut process = personality(&child, name, if way == "relay" { &told } else { &[] });
            process.wait_for_line("1");
            let server = Server::start(world.host.listen(&format!("{SERVICE4}:0")), Serve::Sink);
            let argv = locate::probe_argv(&["tcp-send", SERVICE4, &server.port(), "20000000", "5"]);
            let argv: Vec<_> = argv.iter().map(String::as_str).collect();
            assert_eq!(child.run(&argv).success().value("intact"), "1", "{name}: {way}");
            assert_eq!(server.served().sum, StreamHash::of_pattern(5, 20_000_000), "{name}: {way}");
            let tables = child.stdout(&["nft", "list", "tables"]);
            assert_eq!(tables.contains("rootless-launch"), way == "relay", "{name}: {way}: {tables}");
            assert_eq!(tap_bytes(&child) < 1_000_000, way == "relay", "{name}: {way}");
            process.close_stdin();
            let _ = process.finish();
        }
        let child = Child::new(&world);
        let refused = personality(&child, name, &[("ROOTLESS_LAUNCH_EGRESS", "always")]).finish();
        assert!(!refused.status.success(), "{}", refused.describe());
        let complaint = r#"ROOTLESS_LAUNCH_EGRESS="always" is not auto, relay or tap"#;
        assert!(refused.stderr.contains(complaint), "{}", refused.describe());
    }
}
