//! Outbound TCP while somebody disturbs it: connection tracking that forgets, rules that come and go, ports that are used again at once,
//! servers that come late, children that are killed, a relay that gives back what it was offered.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::Instant,
};

use nix::sys::signal::{Signal, kill};
use tests::{
    client::{connect, ping},
    instance::{CHILD4, CHILD6, eventually},
    locate,
    outbound::{BOTH_WAYS, Lab, nft, pod, relayed, way_to},
    process::{DEADLINE, Process},
    published::expect_echo,
    servers::{Serve, Server, reset},
    world::{FAR4, SERVICE4, SERVICE6},
};

// Connection tracking.

#[test]
fn connections_live_on_when_connection_tracking_has_forgotten_them() {
    for way in BOTH_WAYS {
        let lab = Lab::new(way, &[]);
        let echo = lab.serve(Serve::Echo);
        let sink = lab.serve(Serve::Sink);
        // Who speaks first afterwards: the child, the server, or the child by its end.
        let mut child_first = lab.connect(&echo);
        let mut ending = lab.connect(&sink);
        let listener = lab.world.host.listen(&format!("{SERVICE4}:0"));
        let mut server_first = connect(&lab.child, &listener.local_addr().unwrap().to_string());
        let (mut server, _) = listener.accept().unwrap();
        ping(&mut child_first);
        ending.write_all(b"x").unwrap();
        server.write_all(b"x").unwrap();
        server_first.read_exact(&mut [0]).unwrap();
        for _ in 0..2 {
            lab.child.forget_connections();
            server.write_all(b"x").unwrap();
            server_first.read_exact(&mut [0]).unwrap();
            server_first.write_all(b"y").unwrap();
            server.read_exact(&mut [0]).unwrap();
            ping(&mut child_first);
        }
        lab.child.forget_connections();
        drop(ending);
        assert_eq!(sink.served().bytes, 1, "{way}");
        assert_eq!(lab.way_of(&child_first), way);
        expect_echo(child_first);
        lab.goes_its_way(&echo);
    }
}

#[test]
fn connections_that_have_ended_do_not_fill_its_table() {
    let lab = Lab::new("relay", &[]);
    let server = lab.serve(Serve::Echo);
    lab.goes_its_way(&server);
    // Two minutes, as the kernel has it by itself, are too long for thousands a second: the table is full in half a minute, and all
    // that begins is dropped then.
    let file = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait";
    let seconds = lab.probe(&["file", file]).success().stdout;
    assert!(seconds.trim().parse::<u32>().unwrap() <= 2, "{seconds}");
}

#[test]
fn bulk_and_containers_survive_it_too() {
    for (way, masquerade) in BOTH_WAYS.into_iter().flat_map(|way| [(way, true), (way, false)]) {
        let lab = Lab::new(way, &[]);
        let pod = pod(&lab, masquerade);
        // Behind NAT nobody but the container can say whose the connection is: there the server must not speak first.
        for from in [Some(&lab.child), (!masquerade).then_some(&pod)].into_iter().flatten() {
            let mut server = lab.serve(Serve::StalledSink);
            let argv = locate::probe_argv(&["tcp-flood", SERVICE4, &server.port()]);
            let mut flood = Process::spawn(from.command(&argv));
            flood.wait_for_line("taken=");
            lab.child.forget_connections();
            server.resume();
            flood.tell("end");
            assert_eq!(flood.finish().success().value("intact"), "1", "{way}");
        }
        let server = lab.serve(Serve::Echo);
        let mut stream = connect(&pod, &format!("{SERVICE4}:{}", server.port()));
        for _ in 0..2 {
            ping(&mut stream);
            lab.child.forget_connections();
        }
        ping(&mut stream);
        assert_eq!(way_to(&lab.instance, &format!("{SERVICE4}:{}", server.port())), way);
    }
}

#[test]
fn rules_of_others_that_come_and_go_leave_open_connections_alone() {
    // As a proxy of services writes its tables: all at once, again and again; and one that takes the connection's mark for its own.
    const THEIRS: &str = "table ip theirs {
        chain post { type nat hook postrouting priority 100; oifname != lo masquerade; }
        chain out { type nat hook output priority -100; ip daddr 10.96.0.1 tcp dport 80 dnat to 172.30.0.9:80; }
        chain forward { type filter hook forward priority 0; ct state invalid drop; ct mark 0x4000 accept; }
    }";
    for way in BOTH_WAYS {
        let lab = Lab::new(way, &[]);
        let server = lab.serve(Serve::Echo);
        let mut stream = lab.connect(&server);
        ping(&mut stream);
        for _ in 0..3 {
            nft(&lab.child, THEIRS);
            ping(&mut stream);
            lab.goes_its_way(&server);
            nft(&lab.child, "flush ruleset");
            ping(&mut stream);
            lab.goes_its_way(&server);
        }
        nft(
            &lab.child,
            "table ip theirs { chain out { type filter hook output priority 0; meta l4proto tcp ct mark set 0x1; }; }",
        );
        stream.write_all(b"x").unwrap();
        nft(&lab.child, "delete table ip theirs");
        stream.read_exact(&mut [0]).unwrap();
        ping(&mut stream);
        assert_eq!(lab.way_of(&stream), way);
    }
}

// Ports that are used again at once.

/// What ends a connection before its port is used again.
#[derive(Clone, Copy, Debug)]
enum Ending {
    ServerFirst,
    ChildResets,
    ServerResets,
}

/// A connection from `own`, whose last one may wait for the acknowledgement of its end still.
#[track_caller]
fn connect_from(lab: &Lab, own: &str, server: &str, told: &str) -> TcpStream {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match lab.child.connect_from(own, server) {
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable && Instant::now() < deadline => {}
            result => return result.unwrap_or_else(|error| panic!("{told}: {error}")),
        }
    }
}

#[test]
fn a_port_is_used_again_at_once() {
    for way in BOTH_WAYS {
        let lab = Lab::new(way, &[]);
        for (own, service, port) in [(CHILD4, SERVICE4, 4001), (CHILD6, SERVICE6, 4002)] {
            let [own, service] =
                [own, service].map(|ip| if ip.contains(':') { format!("[{ip}]") } else { ip.into() });
            let listener = lab.world.host.listen(&format!("{service}:0"));
            let (own, server) = (format!("{own}:{port}"), listener.local_addr().unwrap().to_string());
            for ending in [Ending::ServerFirst, Ending::ChildResets, Ending::ServerResets] {
                for round in 0..15 {
                    let told = format!("{way}: {ending:?} {round} {own}");
                    let mut stream = connect_from(&lab, &own, &server, &told);
                    stream.set_read_timeout(Some(DEADLINE)).unwrap();
                    let (mut accepted, _) = listener.accept().unwrap();
                    stream.write_all(&[round]).unwrap();
                    let mut byte = [0];
                    accepted.read_exact(&mut byte).unwrap();
                    assert_eq!(byte, [round], "{told}");
                    match ending {
                        Ending::ServerFirst => {
                            drop(accepted);
                            assert_eq!(stream.read(&mut byte).unwrap(), 0, "{told}");
                        }
                        Ending::ChildResets => reset(stream).unwrap(),
                        Ending::ServerResets => {
                            reset(accepted).unwrap();
                            let error = stream.read(&mut byte).unwrap_err();
                            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{told}");
                        }
                    }
                }
            }
        }
        let server = lab.serve(Serve::Echo);
        lab.goes_its_way(&server);
    }
}

// Who answers.

#[test]
fn a_server_may_come_late_and_go_early() {
    for way in BOTH_WAYS {
        let lab = Lab::new(way, &[]);
        let port = lab.serve(Serve::Echo).port();
        let address = format!("{SERVICE4}:{port}");
        eventually("it does not listen", || lab.world.host.connect(&address).is_err());
        let result = || lab.probe(&["connect", SERVICE4, &port]).success().value("result");
        for _ in 0..5 {
            assert_eq!(result(), "ECONNREFUSED", "{way}");
            let server = Server::start(lab.world.host.listen(&address), Serve::Echo);
            lab.goes_its_way(&server);
            // Open connections do not mind that nobody listens any more.
            let mut open = lab.connect(&server);
            // Closing a listener resets who waits there.
            let _ = [server.accepted(), server.accepted()];
            drop(server);
            eventually("it does not listen", || lab.world.host.connect(&address).is_err());
            assert_eq!(result(), "ECONNREFUSED", "{way}");
            ping(&mut open);
            expect_echo(open);
        }
    }
}

#[test]
fn what_the_relay_gives_back_is_answered_by_the_tap() {
    let lab = Lab::new("relay", &[]);
    let server = lab.serve(Serve::Echo);
    lab.goes_its_way(&server);
    let agent = lab.instance.pid_of("rl-agent");
    // Its stock is used up soon; who waits for more is given back.
    kill(agent, Signal::SIGSTOP).unwrap();
    let mut open: Vec<TcpStream> = (0..40).map(|_| lab.connect(&server)).collect();
    open.iter_mut().for_each(ping);
    assert_eq!(lab.way_of(&open[0]), "relay");
    assert_eq!(lab.way_of(&open[39]), "tap");
    kill(agent, Signal::SIGCONT).unwrap();
    eventually("the relay serves again", || {
        let mut stream = lab.connect(&server);
        ping(&mut stream);
        lab.way_of(&stream) == "relay"
    });
    // It may go while somebody waits for it, and rules that come meanwhile are for others.
    kill(agent, Signal::SIGSTOP).unwrap();
    let argv = locate::probe_argv(&["many", "200", SERVICE4, &server.port(), "3000", "1"]);
    let many = Process::spawn(lab.child.command(&argv));
    eventually("some wait", || lab.instance.client(&["flows"]).matches(&format!("{SERVICE4}:")).count() > 80);
    lab.instance.client(&["policy", "add", "deny tcp 198.51.100.0/24"]);
    lab.instance.kill(agent);
    let many = many.finish();
    // Those that were joined already are reset with it; every other one works.
    assert!(many.stdout.contains("open=200") || many.stdout.contains("ECONNRESET"), "{}", many.describe());
    let mut after = lab.connect(&server);
    ping(&mut after);
    assert_eq!(lab.way_of(&after), "tap");
    open[39].write_all(b"x").unwrap();
    open[39].read_exact(&mut [0]).unwrap();
}

#[test]
fn a_child_that_is_killed_before_the_answer_leaves_nothing() {
    for way in BOTH_WAYS {
        let lab = Lab::new(way, &[]);
        let listener = lab.world.far.listen(&format!("{FAR4}:0"));
        let port = listener.local_addr().unwrap().port().to_string();
        nft(
            &lab.world.far,
            "table ip hold { chain in { type filter hook input priority 0; meta l4proto tcp drop; }; }",
        );
        let argv = locate::probe_argv(&["connect", FAR4, &port]);
        let waiting = Process::spawn(lab.child.command(&argv));
        let address = format!("{FAR4}:{port}");
        lab.instance.until(&["flows"], |flows| flows.contains(&address));
        kill(waiting.pid(), Signal::SIGKILL).unwrap();
        drop(waiting);
        let refused = relayed(&lab.instance, "refused");
        nft(&lab.world.far, "delete table ip hold");
        // The host's SYN is repeated, and answered: for nobody.
        let (mut accepted, _) = listener.accept().unwrap();
        accepted.set_read_timeout(Some(DEADLINE)).unwrap();
        let error = accepted.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{way}");
        eventually("the flow ends", || !lab.instance.client(&["flows"]).contains(&address));
        let expected = refused + u64::from(way == "relay");
        assert_eq!(relayed(&lab.instance, "refused"), expected, "{way}");
        let server = lab.serve(Serve::Echo);
        lab.goes_its_way(&server);
    }
}

#[test]
fn beyond_the_limit_of_unanswered_connections_others_wait() {
    for way in BOTH_WAYS {
        let lab = Lab::new(way, &[]);
        let server = lab.serve(Serve::Echo);
        lab.goes_its_way(&server);
        nft(
            &lab.world.far,
            "table ip hold { chain in { type filter hook input priority 0; meta l4proto tcp drop; }; }",
        );
        // One more than `half_open` of the engine's limits.
        let argv = locate::probe_argv(&["half-open", "4097", FAR4, "9"]);
        let mut held = Process::spawn(lab.child.command(&argv));
        held.wait_for_line("ready=1");
        let dropped = |text: &str| text.contains("half-open");
        lab.instance.until(&["stats"], dropped);
        let argv = locate::probe_argv(&["short", "1", SERVICE4, &server.port()]);
        let late = Process::spawn(lab.child.command(&argv));
        nft(&lab.world.far, "delete table ip hold");
        held.tell("go");
        let held = held.finish().success();
        assert_eq!((held.value("refused"), held.value("other")), ("4097".into(), "0".into()), "{way}");
        assert_eq!(late.finish().success().value("answered"), "1", "{way}");
        lab.goes_its_way(&server);
    }
}
