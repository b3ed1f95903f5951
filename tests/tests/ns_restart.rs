//! The engine process dies while the command runs, and another takes its place: what stays, what is reset, and when it is enough.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    path::Path,
    process::Command,
    thread,
    time::Instant,
};
use tests::{
    client::{ask, connect, ping},
    instance::{CHILD4, GATEWAY4, Instance, ask_who, eventually, udp_who},
    locate,
    overlay::{Devices, PODS, nodes},
    process::{DEADLINE, Pipe, run},
    servers::{Serve, Server, pour, udp_echo},
    world::{FAR4, HOST4, Netns, SERVICE4, World},
};

const FAR_CLIENT4: &str = "192.88.99.2";

/// A world, an instance with these options in it, and the instance's network namespace.
fn lab(args: &[&str]) -> (World, Instance, Netns) {
    let world = World::new();
    let instance = Instance::start(&world, args);
    let child = instance.child(&world);
    (world, instance, child)
}

/// Kills the engine, and waits until another one answers.
#[track_caller]
fn replace_engine(instance: &Instance) {
    let before = restarts(instance);
    instance.kill(instance.pid_of("rl-engine"));
    // The API's socket is the launcher's: whoever asks waits.
    instance.until(&["stats", "--json"], |stats| restarts_in(stats) == before + 1);
}

#[track_caller]
fn restarts(instance: &Instance) -> u64 {
    restarts_in(&instance.client(&["stats", "--json"]))
}

fn restarts_in(stats: &str) -> u64 {
    let (_, rest) = stats.split_once("\"engineRestarts\":").expect("they are counted");
    rest.split([',', '}']).next().expect("a number").parse().expect("a number")
}

/// The launcher, stopped: an engine that dies has no successor until it goes on.
struct Pause(Pid);

impl Pause {
    fn begin(instance: &Instance) -> Self {
        let launcher = instance.process.pid();
        kill(launcher, Signal::SIGSTOP).expect("it runs");
        let state = format!("/proc/{launcher}/stat");
        let is_stopped = || std::fs::read_to_string(&state).is_ok_and(|stat| stat.contains(") T "));
        eventually("the launcher stops", is_stopped);
        instance.kill(instance.pid_of("rl-engine"));
        Pause(launcher)
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// The stream ends by a reset, whatever is still read before.
#[track_caller]
fn is_reset(mut stream: TcpStream) {
    stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
    let mut buffer = vec![0; 1 << 16];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => panic!("an end, where the data were cut off"),
            Ok(_) => {}
            Err(error) => return assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
}

#[track_caller]
fn dig(child: &Netns, name: &str) -> String {
    child.run(&["dig", "+short", "+tries=1", "@10.0.42.3", name]).success().stdout.trim().to_owned()
}

// What stays.

#[test]
fn published_ports_stay_with_their_numbers_under_load() {
    let (world, instance, child) = lab(&["-p", "8080:80", "-p", "5300:53/udp", "-p", "8082:82"]);
    assert_eq!(instance.publish("8081:81"), "4");
    instance.client(&["port", "remove", "3"]);
    let list = instance.client(&["port", "list"]);
    let _sink = Server::start(child.listen("0.0.0.0:80"), Serve::Sink);
    let echo = Server::start(child.listen("0.0.0.0:81"), Serve::Echo);
    let _who = udp_who(child.udp("0.0.0.0:53"));
    let client = world.far.udp("0.0.0.0:0");
    let seen = ask_who(&client, &format!("{HOST4}:5300"));
    for round in 0..3 {
        let load: Vec<_> = (0..2)
            .map(|_| {
                let mut stream = connect(&world.far, &format!("{HOST4}:8080"));
                thread::spawn(move || pour(&mut stream, u64::MAX, 1).expect_err("it ends").kind())
            })
            .collect();
        let mut idle = connect(&world.far, &format!("{HOST4}:8081"));
        ping(&mut idle);
        replace_engine(&instance);
        is_reset(idle);
        for stream in load {
            let end = stream.join().expect("no panic");
            assert!(matches!(end, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{end}");
        }
        assert_eq!(instance.client(&["port", "list"]), list, "round {round}");
        let stream = connect(&world.far, &format!("{HOST4}:8081"));
        assert_eq!(ask(stream, b"question"), b"question");
        while echo.served().error.is_some() {}
        assert_eq!(ask_who(&client, &format!("{HOST4}:5300")), seen, "datagrams go on");
    }
    assert_eq!(instance.publish("8082:82"), "5", "no number comes twice, and what was removed is free");
    let local = connect(&world.host, "127.0.0.1:8081");
    let _ = ask(local, b"x");
    assert_eq!(echo.served().peer.ip().to_string(), GATEWAY4);
    assert!(instance.client(&["info"]).contains("started again 3 times"));
    let finished = instance.finish().success();
    assert_eq!(finished.stderr.matches("the engine process was killed by SIGKILL; another one").count(), 3);
}

#[test]
fn who_comes_during_the_pause_is_served_after_it() {
    let (world, instance, child) = lab(&["-p", "8080:80", "-p", "5300:53/udp"]);
    let echo = Server::start(child.listen("0.0.0.0:80"), Serve::Echo);
    let _who = udp_who(child.udp("0.0.0.0:53"));
    let pause = Pause::begin(&instance);
    let link = child.run(&["ip", "-o", "link", "show", "tap0"]).success().stdout;
    assert!(link.contains("LOWER_UP"), "{link}");
    let stream = connect(&world.far, &format!("{HOST4}:8080"));
    let own = stream.local_addr().expect("a socket");
    let client = world.far.udp("0.0.0.0:0");
    client.send_to(b"who am I", format!("{HOST4}:5300")).expect("sent");
    let command = instance.command(&["port", "list", "--json"]);
    let list = thread::spawn(move || run(command).success().stdout);
    drop(pause);
    assert_eq!(ask(stream, b"question"), b"question");
    assert_eq!(echo.served().peer, own, "address and port are kept");
    client.set_read_timeout(Some(DEADLINE)).expect("a socket");
    let (count, _) = client.recv_from(&mut [0; 100]).expect("an answer");
    assert!(count > 0);
    assert!(list.join().expect("no panic").contains("8080"));
    assert_eq!(child.run(&["ip", "-o", "link", "show", "tap0"]).success().stdout, link, "the same interface");
    let _ = instance.finish().success();
}

#[test]
fn outbound_connections_are_reset_and_new_ones_go_the_same_way() {
    for way in ["relay", "tap"] {
        let egress = format!("--egress={way}");
        let (world, instance, child) = lab(&[&egress]);
        let far = Server::start(world.far.listen(&format!("{FAR4}:0")), Serve::Echo);
        let udp = udp_echo(world.far.udp(&format!("{FAR4}:0")));
        let to = format!("{FAR4}:{}", far.port());
        let sender = child.udp("0.0.0.0:0");
        sender.set_read_timeout(Some(DEADLINE)).expect("a socket");
        for _ in 0..2 {
            let mut stream = connect(&child, &to);
            ping(&mut stream);
            let mut bulk = connect(&child, &to);
            let mut reader = bulk.try_clone().expect("a descriptor");
            let load = thread::spawn(move || {
                thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
                pour(&mut bulk, u64::MAX, 1).expect_err("it ends").kind()
            });
            replace_engine(&instance);
            if way == "tap" {
                // Nobody knows it any more, which is told when it speaks.
                let _ = stream.write_all(b"x");
            }
            is_reset(stream);
            let end = load.join().expect("no panic");
            assert!(matches!(end, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{way}: {end}");
            while far.served().error != Some(ErrorKind::ConnectionReset) {}

            let path = if way == "tap" { "IPv4 by the TAP" } else { "IPv4 by the relay;" };
            instance.until(&["info"], |info| info.contains(path));
            let mut stream = connect(&child, &to);
            ping(&mut stream);
            let own = stream.local_addr().expect("a socket").to_string();
            let flows = instance.client(&["flows"]);
            let row = flows.lines().find(|row| row.contains(&own)).unwrap_or_else(|| panic!("{flows}"));
            assert!(row.contains(way), "{way}: {row}");
            sender.send_to(b"x", format!("{FAR4}:{}", udp.port())).expect("sent");
            sender.recv_from(&mut [0; 10]).expect("the same socket is answered");
        }
        let _ = instance.finish().success();
    }
}

#[test]
fn what_was_changed_by_the_api_stays() {
    let (world, instance, child) = lab(&[
        "--policy=deny udp 192.0.2.9",
        "--dns-name=first.test=192.0.2.1",
        "--overlay-port=8472",
        "--overlay-peer=192.0.2.0/24",
    ]);
    let server = udp_echo(world.host.udp(&format!("{SERVICE4}:0")));
    let upstream = format!("{SERVICE4}:{}", server.port());
    instance.client(&["dns", "set", "--dns-name=name.test=192.0.2.7", "--server", &upstream]);
    instance.client(&["overlay", "remove", "192.0.2.0/24"]);
    instance.client(&["overlay", "add", "198.51.100.0/24"]);
    let overlay = instance.client(&["overlay", "list"]);
    instance.client(&["policy", "add", "deny tcp 198.51.100.0/24"]);
    let (dns, policy) = (instance.client(&["dns", "get"]), instance.client(&["policy", "get", "--json"]));
    for _ in 0..2 {
        replace_engine(&instance);
        assert_eq!(instance.client(&["dns", "get"]), dns);
        assert_eq!(instance.client(&["policy", "get", "--json"]), policy);
        assert_eq!(instance.client(&["overlay", "list"]), overlay);
        assert_eq!(dig(&child, "name.test"), "192.0.2.7");
        let far = world.far.listen(&format!("{FAR4}:0")).local_addr().expect("a socket");
        let refused = child.connect(&far.to_string()).expect_err("the policy forbids it");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }
    let _ = instance.finish().success();
}

#[test]
fn connections_between_the_pods_of_two_nodes_live_on() {
    let world = World::new();
    let [a, b] = nodes(&world, Devices::default(), &[]);
    let echo = Server::start(b.pod.listen("0.0.0.0:80"), Serve::Echo);
    let mut stream = connect(&a.pod, &format!("{}:80", PODS[1]));
    ping(&mut stream);
    for node in [&a, &b, &a] {
        replace_engine(&node.instance);
        ping(&mut stream);
    }
    drop(stream);
    assert_eq!(echo.served().error, None);
}

#[test]
fn auto_publishing_goes_on() {
    let (world, instance, child) = lab(&["-p", "auto,tcp"]);
    let stays = Server::start(child.listen("0.0.0.0:8080"), Serve::Echo);
    let goes = child.listen(&format!("{CHILD4}:8081"));
    let list = instance.until(&["port", "list"], |list| list.contains("8080") && list.contains("8081"));
    let pause = Pause::begin(&instance);
    drop(goes);
    drop(pause);
    let left = instance.until(&["port", "list"], |list| !list.contains("8081"));
    let row = |list: &str| {
        let row = list.lines().find(|line| line.contains("8080")).expect("it is published");
        row.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(row(&left), row(&list));
    assert_eq!(ask(connect(&world.far, &format!("{HOST4}:8080")), b"x"), b"x");
    assert_eq!(stays.served().peer.ip().to_string(), FAR_CLIENT4);
    drop(child.listen("0.0.0.0:8081"));
    let _ = instance.finish().success();
}

#[test]
fn captures_of_the_command_line_go_on_and_metrics_count() {
    let world = World::new();
    let file = world.dir().join("frames.pcap");
    let file = file.to_str().expect("paths are UTF-8");
    let instance = Instance::start(&world, &["--pcap", file, "--metrics=9100"]);
    let child = instance.child(&world);
    let pings = |count: usize| {
        let _ = child.run(&["ping", "-c1", "-W20", GATEWAY4]).success();
        // A frame is recorded when it has been sent.
        eventually("every frame is recorded once", || {
            let mut tcpdump = Command::new(locate::program("tcpdump"));
            tcpdump.args(["-nr", file, "icmp"]);
            run(tcpdump).success().stdout.lines().count() == 2 * count
        });
    };
    pings(1);
    replace_engine(&instance);
    pings(2);
    let mut metrics = connect(&world.host, "127.0.0.1:9100");
    metrics.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("sent");
    let mut text = String::new();
    metrics.read_to_string(&mut text).expect("an answer");
    assert!(text.contains("\nrootless_launch_engine_restarts_total 1\n"), "{text}");
    let _ = instance.finish().success();
}

// When it is enough.

#[test]
fn an_engine_that_keeps_dying_ends_the_launch() {
    let (_world, instance, _child) = lab(&[]);
    let mut last = None;
    for _ in 0..5 {
        let engine =
            || instance.processes().into_iter().find(|(name, _)| name == "rl-engine").map(|(_, pid)| pid);
        eventually("an engine runs", || engine().is_some_and(|pid| Some(pid) != last));
        last = engine();
        instance.kill(last.expect("it runs"));
    }
    let finished = instance.process.finish();
    assert_eq!(finished.status.code(), Some(1), "{}", finished.describe());
    let end = "the engine process was killed by SIGKILL, the 5th within a minute; the command was killed";
    assert!(finished.stderr.contains(end), "{}", finished.stderr);
}

#[test]
fn a_reason_that_stays_is_told_at_the_end() {
    let (_world, instance, child) = lab(&[]);
    child.ip("link delete tap0\n");
    let finished = instance.process.finish();
    assert_eq!(finished.status.code(), Some(1), "{}", finished.describe());
    assert!(finished.stderr.contains("cannot run the network engine: "), "{}", finished.stderr);
    assert_eq!(finished.stderr.matches("another one takes its place").count(), 4, "{}", finished.stderr);
}

#[test]
fn before_the_command_runs_and_where_nobody_wants_another_death_is_the_end() {
    let end = "the engine process was killed by SIGKILL; the command was killed";
    let world = World::new();
    let instance = Instance::start(&world, &["--engine-restart=never"]);
    instance.kill(instance.pid_of("rl-engine"));
    let finished = instance.process.finish();
    assert_eq!(
        (finished.status.code(), finished.stderr.contains(end)),
        (Some(1), true),
        "{}",
        finished.stderr
    );

    // An engine that is stopped as soon as it is seen has seldom got further.
    for _ in 0..50 {
        let directory = world.dir().join("early");
        let instance = Instance::running(&world, &directory, &[], &["sleep", "1000"]);
        let engine =
            || instance.processes().into_iter().find(|(name, _)| name == "rl-engine").map(|(_, pid)| pid);
        let deadline = Instant::now() + DEADLINE;
        let engine = loop {
            if let Some(engine) = engine() {
                break engine;
            }
            assert!(Instant::now() < deadline, "no engine");
        };
        kill(engine, Signal::SIGSTOP).expect("it runs");
        // It is ready after it has started its threads.
        if std::fs::read_dir(format!("/proc/{engine}/task")).expect("it is there").count() > 1 {
            instance.process.signal(Signal::SIGKILL);
            let _ = instance.process.finish();
            continue;
        }
        instance.kill(engine);
        let finished = instance.process.finish();
        assert_eq!(
            (finished.status.code(), finished.stderr.contains(end)),
            (Some(1), true),
            "{}",
            finished.stderr
        );
        return;
    }
    panic!("the engine was always ready at once");
}

#[test]
fn everything_ends_with_the_launcher_also_after_a_restart() {
    let (_world, mut instance, child) = lab(&["-p", "8080:80"]);
    replace_engine(&instance);
    let _ = child.connect("127.0.0.1:1");
    let processes = instance.processes();
    assert!(processes.iter().any(|(name, _)| name == "rl-engine"), "{processes:?}");
    instance.process.signal(Signal::SIGKILL);
    for (name, pid) in processes {
        let path = format!("/proc/{pid}");
        eventually(&format!("{name} ends"), || !Path::new(&path).exists());
    }
    eventually("the directory is removed", || !instance.directory().exists());
    instance.process.wait_for(Pipe::Stderr, "");
}

#[test]
fn a_command_that_ends_during_the_pause_ends_the_launch_as_ever() {
    let world = World::new();
    let directory = world.dir().join("state");
    let wait = locate::probe_argv(&["wait"]);
    let wait: Vec<&str> = wait.iter().map(String::as_str).collect();
    let mut instance = Instance::running(&world, &directory, &["-p", "8080:80"], &wait);
    instance.process.wait_for_line("ready=1");
    let pause = Pause::begin(&instance);
    instance.process.close_stdin();
    let child = format!("/proc/{}/stat", instance.child_pid());
    let is_dead = || std::fs::read_to_string(&child).map_or(true, |stat| stat.contains(") Z "));
    eventually("the command ends", is_dead);
    drop(pause);
    let _ = instance.finish().success();
    assert!(world.host.connect("127.0.0.1:8080").is_err());
}
