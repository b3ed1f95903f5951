//! The program as pasta: called as Podman, RootlessKit and people call it.
//!
//! With `LAB_ENGINE=pasta` the original is judged by those tests in which it is expected to do the same.

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tests::engine::{Engine, ours};
use tests::locate;
use tests::process::{DEADLINE, Finished, Process, readable_before, run};
use tests::published::{SERVERS, expect_echo, peer_by_tcp, peer_by_udp, wait_for_servers};
use tests::servers::{Serve, Server, udp_echo};
use tests::sys;
use tests::unshared::Child;
use tests::world::{FAR4, FAR6, HOST4, ROUTER4, SERVICE4, Uplink, World, WorldConfig};

const NO_PORTS: [&str; 8] = ["-t", "none", "-u", "none", "-T", "none", "-U", "none"];

/// The program under test and the arguments that make it pasta.
fn program() -> Vec<String> {
    match Engine::under_test() {
        Engine::Pasta => vec![locate::program("pasta").to_string_lossy().into_owned()],
        _ => {
            let launcher = locate::rootless_launch().expect("rootless-launch is built");
            vec![launcher.to_string_lossy().into_owned(), "pasta".to_owned()]
        }
    }
}

fn command_line(words: &[&str]) -> Vec<String> {
    program().into_iter().chain(words.iter().map(ToString::to_string)).collect()
}

/// Runs to the end of the process that was called.
#[track_caller]
fn call(world: &World, words: &[&str]) -> Finished {
    run(world.host.command(&command_line(words)))
}

/// A shell's script behind it.
#[track_caller]
fn start(world: &World, options: &[&str], script: &str) -> Process {
    let words = [options, &["--", "/bin/sh", "-euc", script]].concat();
    Process::spawn(world.host.command(&command_line(&words)))
}

#[track_caller]
fn shell(world: &World, options: &[&str], script: &str) -> Finished {
    let mut process = start(world, options, script);
    process.close_stdin();
    process.finish()
}

/// The probe's path, for scripts.
fn probe() -> String {
    locate::probe_argv(&[]).remove(0)
}

/// A pasta in the background, which is killed at the end if it lives.
struct Background {
    pid: Pid,
    exited: std::os::fd::OwnedFd,
}

impl Background {
    /// Calls it with `--pid`; it is ready when the call returns.
    #[track_caller]
    fn call(world: &World, words: &[&str]) -> Self {
        let file = world.dir().join("pid");
        let option = format!("--pid={}", file.display());
        let done = call(world, &[&[&*option], words].concat()).success();
        assert_eq!(done.stdout, "", "{}", done.describe());
        Self::of(fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).expect("a PID"))
    }

    #[track_caller]
    fn of(pid: i32) -> Self {
        let exited = sys::pidfd_open(pid.unsigned_abs()).expect("it lives");
        Background { pid: Pid::from_raw(pid), exited }
    }

    fn has_ended(&self) -> bool {
        readable_before(&self.exited, Instant::now())
    }

    #[track_caller]
    fn wait_end(&self) {
        assert!(readable_before(&self.exited, Instant::now() + DEADLINE), "it goes on");
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if !self.has_ended() {
            let _ = nix::sys::signal::kill(self.pid, Signal::SIGKILL);
        }
    }
}

#[test]
fn a_command_gets_the_hosts_addresses_and_its_status_is_passed_on() {
    let world = World::new();
    let far = Server::start(world.far.listen(&format!("{FAR4}:0")), Serve::Sink);
    let far6 = Server::start(world.far.listen(&format!("[{FAR6}]:0")), Serve::Sink);
    let script = format!(
        "id -u; ip -brief address show up0; ip route; ip -6 route show default; cat /sys/class/net/up0/mtu >&2 || :
         {probe} connect {FAR4} {}; {probe} connect {FAR6} {}; exit 7",
        far.port(),
        far6.port(),
        probe = probe()
    );
    let options = [&["--config-net", "--quiet"][..], &NO_PORTS].concat();
    let done = shell(&world, &options, &script);
    assert_eq!(done.status.code(), Some(7), "{}", done.describe());
    // The packaged original cannot map ids where only one is mapped already.
    if Engine::under_test() == Engine::Ours {
        assert!(done.stdout.starts_with("0\n"), "{}", done.describe());
    }
    for text in [
        &format!("{HOST4}/24"),
        "2001:db8:1::2/64",
        &format!("default via {ROUTER4} dev up0"),
        "default via 2001:db8:1::1 dev up0",
    ] {
        assert!(done.stdout.contains(text), "{text}: {}", done.describe());
    }
    assert_eq!(done.stdout.matches("result=ok").count(), 2, "{}", done.describe());
    assert_eq!(far.accepted().ip().to_string(), HOST4);
}

#[test]
fn a_command_that_cannot_be_run_is_an_error() {
    let world = World::new();
    let done = call(&world, &[&["--quiet"][..], &NO_PORTS, &["--", "/no/such/program"]].concat());
    assert_eq!(done.status.code(), Some(1), "{}", done.describe());
    if Engine::under_test() == Engine::Ours {
        assert!(done.stderr.contains("/no/such/program: No such file"), "{}", done.describe());
    }
}

#[test]
fn what_a_command_leaves_running_ends_with_it() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let done = shell(&world, &[&["--quiet"][..], &NO_PORTS].concat(), "sleep 1000 & echo $!").success();
    let pid: i32 = done.stdout.trim().parse().unwrap();
    assert!(!PathBuf::from(format!("/proc/{pid}")).exists(), "{}", done.describe());
}

#[test]
fn signals_reach_the_command() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let script = "trap 'echo heard; exit 4' USR1; echo ready; while :; do read -r line; done";
    let mut process = start(&world, &[&["--quiet"][..], &NO_PORTS].concat(), script);
    process.wait_for_line("ready");
    process.signal(Signal::SIGUSR1);
    process.tell("go on");
    process.wait_for_line("heard");
    assert_eq!(process.finish().status.code(), Some(4));
}

#[test]
fn a_process_is_served_in_the_background_until_it_ends() {
    let world = World::new();
    let child = Child::new(&world);
    let far = Server::start(world.far.listen(&format!("{FAR4}:0")), Serve::Echo);
    let pid = child.pid();
    let words = [&["--config-net", "--quiet", "-4", "--mtu", "9000", "-I", "net7"][..], &NO_PORTS, &[&*pid]];
    let pasta = Background::call(&world, &words.concat());
    let link = child.stdout(&["ip", "addr", "show", "net7"]);
    assert!(link.contains(&format!("inet {HOST4}/24")) && link.contains("mtu 9000"), "{link}");
    assert!(child.stdout(&["ip", "link", "show", "lo"]).contains("UP"));
    assert_eq!(child.connecting(FAR4, &far.port()), "ok");
    assert!(!pasta.has_ended());
    drop(child);
    // The packaged original does not notice.
    if Engine::under_test() == Engine::Ours {
        pasta.wait_end();
    }
}

#[test]
fn in_the_foreground_the_process_that_was_called_serves() {
    let world = World::new();
    let child = Child::new(&world);
    let far = Server::start(world.far.listen(&format!("{FAR4}:0")), Serve::Echo);
    let file = world.dir().join("pid");
    let (userns, netns) = (format!("/proc/{}/ns/user", child.pid()), format!("/proc/{}/ns/net", child.pid()));
    let option = format!("--pid={}", file.display());
    let words = ["--config-net", "-q", "-f", &option, "--userns", &userns, "--netns", &netns];
    let process = Process::spawn(world.host.command(&command_line(&[&words[..], &NO_PORTS].concat())));
    let written = || fs::read_to_string(&file).ok().filter(|text| text.ends_with('\n'));
    let deadline = Instant::now() + DEADLINE;
    let text = std::iter::from_fn(|| (Instant::now() < deadline).then(written)).flatten().next();
    let pid = Pid::from_raw(text.expect("ready").trim().parse().unwrap());
    assert_eq!(child.connecting(FAR4, &far.port()), "ok");
    let _ = nix::sys::signal::kill(pid, Signal::SIGTERM);
    assert!(process.ends_before(Instant::now() + DEADLINE));
}

#[test]
fn nothing_is_left_of_a_caller_that_is_killed() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let file = world.dir().join("pid");
    let option = format!("--pid={}", file.display());
    let options = [&["--quiet", &option, "-t", "8080:80"][..], &NO_PORTS[2..]].concat();
    let mut process = start(&world, &options, "sleep 1000 & echo $! $$; read -r line");
    let line = process.wait_for_line(" ");
    let left: Vec<Background> = line.split(' ').map(|pid| Background::of(pid.parse().unwrap())).collect();
    assert!(world.host.connect("127.0.0.1:8080").is_ok(), "it listens");
    let caller = Background::of(fs::read_to_string(file).unwrap().trim().parse().unwrap());
    drop(caller);
    left.iter().for_each(Background::wait_end);
    let deadline = Instant::now() + DEADLINE;
    let free = || (Instant::now() < deadline).then(|| world.host.connect("127.0.0.1:8080").is_err());
    assert_eq!(std::iter::from_fn(free).find(|&free| free), Some(true));
}

#[test]
fn services_can_be_left_out() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let script = "ip link set up0 up; busybox udhcpc -f -q -n -t 1 -T 1 -i up0 -s /bin/true && echo lease || echo none";
    for (option, wanted) in [(&[][..], "lease"), (&["--no-dhcp"], "none")] {
        let done = shell(&world, &[&["--quiet"][..], option, &NO_PORTS].concat(), script);
        assert!(done.stdout.contains(wanted), "{}", done.describe());
    }
}

#[test]
fn a_path_is_served_until_it_vanishes() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let dir = world.dir().join("netns");
    fs::create_dir(&dir).unwrap();
    let (netns, other) = (dir.join("it"), dir.join("other"));
    // Any file will do: what counts is what it leads to when it is opened.
    let mut holder =
        Process::spawn(world.host.program(&["unshare", "-n", "sh", "-c", "echo ready; exec cat"]));
    holder.wait_for_line("ready");
    std::os::unix::fs::symlink(format!("/proc/{}/ns/net", holder.pid()), &netns).unwrap();
    fs::write(&other, "").unwrap();
    let path = netns.to_str().unwrap().to_owned();
    let words = [&["--config-net", "--quiet", "--netns-only"][..], &NO_PORTS, &["--netns", &path]].concat();
    let pasta = Background::call(&world, &words);
    let enter = format!("--net={path}");
    let address = world.host.run(&["nsenter", &enter, "ip", "addr", "show", "up0"]).success().stdout;
    assert!(address.contains(&format!("inet {HOST4}/24")), "{address}");
    fs::remove_file(&other).unwrap();
    assert!(!pasta.has_ended());
    fs::remove_file(&netns).unwrap();
    pasta.wait_end();
}

#[test]
fn without_config_net_the_child_is_configured_by_dhcp() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let child = Child::new(&world);
    let pid = child.pid();
    let dns = ["--dhcp-dns", "-D", "192.0.2.53", "--dhcp-search", "-S", "a.test"];
    let _pasta = Background::call(&world, &[&["--quiet"][..], &dns, &NO_PORTS, &[&*pid]].concat());
    let link = child.stdout(&["ip", "addr", "show", "up0"]);
    assert!(!link.contains("inet ") && !link.contains("UP"), "{link}");
    let _ = child.stdout(&["ip", "link", "set", "up0", "up"]);
    let script =
        "printf '#!/bin/sh\\nenv\\n' >$1 && chmod +x $1 && exec busybox udhcpc -f -q -n -O mtu -i up0 -s $1";
    let file = world.dir().join("script");
    let lease = child.run(&["sh", "-c", script, "sh", file.to_str().unwrap()]).success();
    for text in [
        format!("ip={HOST4}"),
        "subnet=255.255.255.0".into(),
        format!("router={ROUTER4}"),
        "dns=192.0.2.53".into(),
        "domain=a.test".into(),
        "mtu=65520".into(),
    ] {
        assert!(lease.stdout.contains(&text), "{text}: {}", lease.describe());
    }
}

#[test]
fn published_ports_keep_the_clients_address() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let ports = ["-t", "8080:80", "-t", "8082:82", "-u", "8081:81", "-T", "none", "-U", "none"];
    // Clients on the host's loopback are the child itself, or its loopback.
    for (option, local) in [(&[][..], HOST4), (&["--host-lo-to-ns-lo"], "127.0.0.1")] {
        let options = [&["--config-net", "--quiet"][..], option, &ports].concat();
        let mut process = start(&world, &options, SERVERS);
        wait_for_servers(&mut process);
        let tcp = |stream: std::io::Result<TcpStream>| peer_by_tcp(stream.expect("published"));
        assert_eq!(tcp(world.router.connect(&format!("{HOST4}:8080"))), ROUTER4);
        assert_eq!(tcp(world.host.connect("127.0.0.1:8080")), local);
        // The host's own address is the child's as well.
        assert_eq!(tcp(world.host.connect(&format!("{HOST4}:8080"))), ROUTER4);
        let socket = world.router.udp(&format!("{ROUTER4}:0"));
        assert_eq!(peer_by_udp(&socket, &format!("{HOST4}:8081")), ROUTER4);
        assert_eq!(peer_by_udp(&world.host.udp("127.0.0.1:0"), "127.0.0.1:8081"), local);
        expect_echo(world.far.connect(&format!("{HOST4}:8082")).expect("published"));
        expect_echo(world.host.connect("127.0.0.1:8082").expect("published"));
        process.close_stdin();
        let _ = process.finish();
    }
}

#[test]
fn what_listens_on_the_childs_loopback_is_reached_only_on_demand() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let script = "socat -d -d TCP-LISTEN:80,bind=127.0.0.1,fork EXEC:cat & read -r line || :; kill %1";
    for (option, reached) in [(&[][..], false), (&["--host-lo-to-ns-lo"], true)] {
        let ports = ["-t", "8080:80", "-u", "none", "-T", "none", "-U", "none"];
        let options = [&["--config-net", "--quiet"][..], option, &ports].concat();
        let mut process = start(&world, &options, script);
        process.wait_for(tests::process::Pipe::Stderr, "listening on");
        let mut stream = world.host.connect("127.0.0.1:8080").expect("it listens");
        if reached {
            expect_echo(stream);
        } else {
            let mut byte = [0];
            let end = std::io::Read::read(&mut stream, &mut byte);
            assert!(end.is_err(), "reset: {end:?}");
        }
        // Nobody else gets there in any case.
        let mut stream = world.router.connect(&format!("{HOST4}:8080")).expect("it listens");
        let mut byte = [0];
        let end = std::io::Read::read(&mut stream, &mut byte);
        assert!(end.is_err(), "reset: {end:?}");
        process.close_stdin();
        let _ = process.finish();
    }
}

#[test]
fn nothing_else_in_the_child_is_changed() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let look =
        "ip rule; ip -6 rule; cat /proc/sys/net/ipv4/tcp_fwmark_accept /proc/sys/net/ipv4/fwmark_reflect";
    let script =
        SERVERS.replace("while read -r line; do :; done", "read -r line\n{LOOK}\n").replace("{LOOK}", look);
    let options = ["--config-net", "--quiet", "-t", "8082:82", "-u", "none", "-T", "none", "-U", "none"];
    let mut process = start(&world, &options, &script);
    wait_for_servers(&mut process);
    expect_echo(world.host.connect("127.0.0.1:8082").expect("published"));
    expect_echo(world.router.connect(&format!("{HOST4}:8082")).expect("published"));
    process.tell("look");
    let done = process.finish();
    assert!(!done.stdout.contains("fwmark"), "{}", done.describe());
    assert!(done.stdout.ends_with("0\n0"), "{}", done.describe());
}

#[test]
fn ports_are_published_and_withdrawn_by_themselves() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let script = "pid=; while read -r port; do [ -z \"$pid\" ] || kill $pid; \
                  socat TCP-LISTEN:$port,fork EXEC:cat & pid=$!; done";
    let options = ["--config-net", "--quiet", "-t", "auto,~8002", "-u", "none", "-T", "none", "-U", "none"];
    let mut process = start(&world, &options, script);
    let connect = |port: u16| world.router.connect(&format!("{HOST4}:{port}"));
    let deadline = Instant::now() + DEADLINE;
    process.tell("8001");
    let published =
        std::iter::from_fn(|| (Instant::now() < deadline).then(|| connect(8001).ok())).flatten().next();
    expect_echo(published.expect("published in the end"));
    process.tell("8003");
    let published =
        std::iter::from_fn(|| (Instant::now() < deadline).then(|| connect(8003).ok())).flatten().next();
    assert!(published.is_some());
    let withdrawn =
        std::iter::from_fn(|| (Instant::now() < deadline).then(|| connect(8001).is_err())).find(|&gone| gone);
    assert_eq!(withdrawn, Some(true), "withdrawn in the end");
}

#[test]
fn all_ports_are_those_that_are_free() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let _taken = world.host.listen("0.0.0.0:8000");
    let script = "socat -d -d TCP-LISTEN:8001,fork EXEC:cat & read -r line || :; kill $!";
    let options =
        ["--config-net", "--quiet", "-t", "~1-7999,~8002-65535", "-u", "none", "-T", "none", "-U", "none"];
    let mut process = start(&world, &options, script);
    process.wait_for(tests::process::Pipe::Stderr, "listening on");
    expect_echo(world.router.connect(&format!("{HOST4}:8001")).expect("published"));
    assert!(world.router.connect(&format!("{HOST4}:8002")).is_err(), "not of these");
}

#[test]
fn ports_of_the_childs_loopback_lead_to_the_hosts() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let server = Server::start(world.host.listen("127.0.0.1:0"), Serve::Echo);
    let server6 = Server::start(world.host.listen("[::1]:0"), Serve::Echo);
    let udp = udp_echo(world.host.udp("127.0.0.1:7001"));
    let (tcp, tcp6) = (server.port(), server6.port());
    let spec = format!("7000:{tcp},7006:{tcp6}");
    let script = format!(
        "{probe} tcp-echo 127.0.0.1 7000 1000000 1; {probe} tcp-echo ::1 7006 100000 2
         {probe} udp-echo 127.0.0.1 {} 1 1 1000 9000",
        udp.port(),
        probe = probe()
    );
    let options = ["--config-net", "--quiet", "-t", "none", "-u", "none", "-T", &spec, "-U", "7001"];
    let done = shell(&world, &options, &script).success();
    assert_eq!(done.stdout.matches(" intact=1").count(), 2, "{}", done.describe());
    assert!(done.stdout.contains("intact=3 of=3"), "{}", done.describe());
    assert_eq!(server.served().peer.ip().to_string(), "127.0.0.1");
}

#[test]
fn what_listens_on_the_host_is_found_on_the_childs_loopback_by_itself() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let server = Server::start(world.host.listen("127.0.0.1:7000"), Serve::Echo);
    let script = format!(
        "until {probe} connect 127.0.0.1 7000 | grep -q result=ok; do :; done
         {probe} tcp-echo 127.0.0.1 {} 1000 1; {probe} connect 127.0.0.1 7002",
        server.port(),
        probe = probe()
    );
    let _excluded = world.host.listen("127.0.0.1:7002");
    // Everything automatic, with both loopbacks joined: nothing goes in circles.
    let options = ["--config-net", "--quiet", "--host-lo-to-ns-lo", "-T", "auto,~7002"];
    let done = shell(&world, &options, &script).success();
    assert_eq!(done.value("intact"), "1", "{}", done.describe());
    assert_eq!(done.value("result"), "ECONNREFUSED", "{}", done.describe());
}

#[test]
fn addresses_stand_for_the_host_as_ordered() {
    let world = World::new();
    let loopback = Server::start(world.host.listen("127.0.0.1:0"), Serve::Echo);
    let host = Server::start(world.host.listen(&format!("{HOST4}:0")), Serve::Echo);
    let router = Server::start(world.router.listen(&format!("{ROUTER4}:0")), Serve::Echo);
    let connecting = |options: &[&str], address: &str, server: &Server| {
        let script = format!("{} connect {address} {}", probe(), server.port());
        let options = [&["--config-net", "--quiet"][..], &NO_PORTS, options].concat();
        shell(&world, &options, &script).success().value("result")
    };
    assert_eq!(connecting(&[], ROUTER4, &loopback), "ok");
    assert_eq!(connecting(&["--no-map-gw"], ROUTER4, &router), "ok");
    if ours().is_err() {
        return;
    }
    assert_eq!(connecting(&["--no-map-gw"], ROUTER4, &loopback), "ECONNREFUSED");
    let podmans = ["--no-map-gw", "--map-guest-addr", "169.254.1.2"];
    assert_eq!(connecting(&podmans, "169.254.1.2", &host), "ok");
    assert_eq!(connecting(&podmans, "169.254.1.2", &loopback), "ECONNREFUSED");
    assert_eq!(connecting(&["--map-host-loopback", "192.0.2.99"], "192.0.2.99", &loopback), "ok");
    assert_eq!(connecting(&["--map-host-loopback", "none"], ROUTER4, &router), "ok");
    assert_eq!(connecting(&["--no-tcp"], SERVICE4, &loopback), "ECONNREFUSED");
}

#[test]
fn names_are_asked_for_at_the_forwarding_address() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let mut dnsmasq = Process::spawn(world.host.program(&[
        "dnsmasq",
        "--no-daemon",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--user=",
        "--pid-file=",
        "--bind-interfaces",
        "--except-interface=nonexistent",
        "--listen-address=127.0.0.54",
        "--local=/test/",
        "--host-record=a.test,192.0.2.77",
    ]));
    dnsmasq.wait_for(tests::process::Pipe::Stderr, "started");
    world.set_resolv_conf("nameserver 127.0.0.54\n");
    let script = "dig +short +tries=1 @169.254.1.1 a.test; dig +short +tcp +tries=1 @169.254.1.1 a.test";
    for server in [&[][..], &["--dns-host", "127.0.0.54"]] {
        let options =
            [&["--config-net", "--quiet", "--dns-forward", "169.254.1.1"][..], server, &NO_PORTS].concat();
        let done = shell(&world, &options, script).success();
        assert_eq!(done.stdout, "192.0.2.77\n192.0.2.77", "{}", done.describe());
    }
}

#[test]
fn a_host_without_network_is_reached_all_the_same() {
    let Ok(_) = ours() else { return };
    let world = World::with(&WorldConfig { uplink: Uplink::None, ..WorldConfig::default() });
    // The service addresses on lo are no way out.
    let loopback = Server::start(world.host.listen("127.0.0.1:0"), Serve::Echo);
    let loopback6 = Server::start(world.host.listen("[::1]:0"), Serve::Echo);
    let script = format!(
        "ip -brief -4 address show tap0; {probe} connect 169.254.2.2 {}; {probe} connect fe80::1%tap0 {}",
        loopback.port(),
        loopback6.port(),
        probe = probe()
    );
    let done = shell(&world, &[&["--config-net", "--quiet"][..], &NO_PORTS].concat(), &script).success();
    assert!(done.stdout.contains("169.254.2.1/16"), "{}", done.describe());
    assert_eq!(done.stdout.matches("result=ok").count(), 2, "{}", done.describe());
}

#[test]
fn what_cannot_be_done_is_said_before_the_call_returns() {
    let world = World::new();
    let child = Child::new(&world);
    let pid = child.pid();
    let ours = Engine::under_test() == Engine::Ours;
    let _holder = world.host.listen("0.0.0.0:8080");
    let taken = ["-q", "-t", "8080:80", "-u", "none", "-T", "none", "-U", "none", &pid];
    // The packaged original goes on without a port that is taken, and overlooks what is for virtual machines.
    let stricter = [(&taken[..], "Failed to bind port"), (&["--socket", "/x"][..], "virtual machines")];
    let wrong = [
        (&["--nonsense"][..], "unrecognized option '--nonsense'"),
        (&["--netns", "/no/such/netns"][..], "/no/such/netns"),
        (&["-t", "nonsense"], "Invalid port specifier nonsense"),
        (&["-4", "-6"], "ipv"),
    ];
    for (words, text) in stricter.into_iter().filter(|_| ours).chain(wrong) {
        let done = call(&world, words);
        assert_eq!(done.status.code(), Some(1), "{}", done.describe());
        if ours {
            assert!(done.stderr.contains(text), "{text}: {}", done.describe());
        }
    }
    // Nobody stays behind to hold the interface.
    if ours {
        assert!(!child.stdout(&["ip", "link"]).contains("up0"));
    }
}

#[test]
fn messages_and_frames_are_recorded() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let (log, pcap) = (world.dir().join("log"), world.dir().join("pcap"));
    let (log, pcap) = (log.to_str().unwrap(), pcap.to_str().unwrap());
    let options = [&["--config-net", "--log-file", log, "--debug", "--pcap", pcap][..], &NO_PORTS].concat();
    let _ = shell(&world, &options, &format!("ping -c 1 -w 20 {ROUTER4}")).success();
    assert!(fs::metadata(pcap).unwrap().len() > 24 + 2 * 16);
    assert!(!fs::read_to_string(log).unwrap().is_empty());
}

#[test]
fn the_engine_is_in_its_sandbox() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let child = Child::new(&world);
    let pid = child.pid();
    let pasta =
        Background::call(&world, &["-q", "-t", "8080:80", "-u", "none", "-T", "none", "-U", "none", &pid]);
    let status = fs::read_to_string(format!("/proc/{}/status", pasta.pid)).unwrap();
    assert!(status.contains("Seccomp:\t2") && status.contains("NoNewPrivs:\t1"), "{status}");
    assert!(
        status.contains("CapEff:\t0000000000000000") || status.contains("CapEff:\t0000000000000400"),
        "{status}"
    );
}

#[test]
fn version_and_help_are_as_others_parse_them() {
    let world = World::new();
    let version = call(&world, &["--version"]).success().stdout;
    assert!(version.lines().next().is_some_and(|line| line.starts_with("pasta ")), "{version}");
    let help = call(&world, &["--help"]);
    for option in ["--netns", "--config-net", "--tcp-ports", "--quiet", "--ns-ifname"] {
        assert!(
            help.stdout.contains(option) || help.stderr.contains(option),
            "{option}: {}",
            help.describe()
        );
    }
    if Engine::under_test() == Engine::Ours {
        let _ = call(&world, &["--host-lo-to-ns-lo", "--version"]).success();
        assert!(help.status.success());
    }
}
