//! The program as slirp4netns: called as Podman, RootlessKit, k3s and scripts call it.
//!
//! With `LAB_ENGINE=slirp4netns` the original is judged by the same tests, but for what it does not do.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket};
use tests::engine::{Engine, ours};
use tests::locate;
use tests::process::{DEADLINE, Finished, Pipe, Process, readable_before, run};
use tests::servers::{Serve, Server};
use tests::unshared::Child;
use tests::world::{FAR4, FAR6, HOST4, SERVICE4, World};

/// The program under test and the arguments that make it slirp4netns.
fn program() -> Vec<String> {
    match Engine::under_test() {
        Engine::Slirp4netns => vec![locate::program("slirp4netns").to_string_lossy().into_owned()],
        _ => {
            let launcher = locate::rootless_launch().expect("rootless-launch is built");
            vec![launcher.to_string_lossy().into_owned(), "slirp4netns".to_owned()]
        }
    }
}

/// A running slirp4netns that has said that it is ready: by descriptor 3, and it ends by descriptor 4.
struct Slirp(Process);

impl Slirp {
    #[track_caller]
    fn start(world: &World, words: &[&str]) -> Self {
        let mut process = Process::spawn(world.host.command(&with_descriptors(words)));
        process.wait_for_line("1");
        Slirp(process)
    }

    #[track_caller]
    fn serve(child: &Child<'_>, options: &[&str]) -> Self {
        let pid = child.pid();
        let words: Vec<&str> = options.iter().copied().chain([pid.as_str(), "tap0"]).collect();
        Self::start(child.world(), &words)
    }

    /// Hangs up.
    #[track_caller]
    fn end(mut self) -> Finished {
        self.0.close_stdin();
        self.0.finish()
    }
}

/// A command line with the ready and exit descriptors; what is said goes to stderr.
fn with_descriptors(words: &[&str]) -> Vec<String> {
    let script = r#"exec 3>&1 4<&0 5<&0 >&2 </dev/null; exec "$@" -r 3"#;
    let script = ["sh", "-c", script, "sh"].map(String::from);
    let words = words.iter().map(ToString::to_string);
    script.into_iter().chain(program()).chain(words).chain(["-e".to_owned(), "4".to_owned()]).collect()
}

/// Runs to the end, in the host's namespace.
fn call(world: &World, words: &[&str]) -> Finished {
    let words = words.iter().map(ToString::to_string);
    run(world.host.command(&program().into_iter().chain(words).collect::<Vec<_>>()))
}

/// One request to the API socket.
#[track_caller]
fn ask(socket: &Path, request: &str) -> String {
    let exchange = || {
        let mut stream = UnixStream::connect(socket)?;
        stream.write_all(request.as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).map(|_| reply)
    };
    exchange().expect("the API socket answers")
}

fn api_socket(world: &World) -> (PathBuf, String) {
    let path = world.dir().join("api.sock");
    let option = format!("--api-socket={}", path.display());
    (path, option)
}

fn add(proto: &str, host_port: u16, guest_port: u16) -> String {
    format!(
        r#"{{"execute":"add_hostfwd","arguments":{{"proto":"{proto}","host_addr":"0.0.0.0","host_port":{host_port},"guest_addr":"","guest_port":{guest_port}}}}}"#
    ) + "\n"
}

#[test]
fn a_process_is_served_and_its_interface_configured() {
    let world = World::new();
    let child = Child::new(&world);
    let far = Server::start(world.far.listen(&format!("{FAR4}:0")), Serve::Echo);
    let local = Server::start(world.host.listen("127.0.0.1:0"), Serve::Echo);
    let _slirp = Slirp::serve(&child, &["-c", "--mtu=9000"]);
    let link = child.stdout(&["ip", "addr", "show", "tap0"]);
    assert!(
        link.contains("inet 10.0.2.100/24 ") && link.contains("mtu 9000") && link.contains("UP"),
        "{link}"
    );
    assert!(child.stdout(&["ip", "link", "show", "lo"]).contains("UP"));
    assert!(child.stdout(&["ip", "route"]).contains("default via 10.0.2.2 dev tap0"));
    let _ = child.run(&["ping", "-c", "1", "-w", "20", "10.0.2.2"]).success();
    assert_eq!(child.connecting(FAR4, &far.port()), "ok");
    assert_eq!(child.connecting("10.0.2.2", &local.port()), "ok", "the gateway is the host's loopback");
}

#[test]
fn namespaces_are_found_by_their_paths() {
    let world = World::new();
    let far = Server::start(world.far.listen(&format!("{FAR4}:0")), Serve::Echo);
    // Of another user namespace.
    let child = Child::new(&world);
    let (netns, userns) = (format!("/proc/{}/ns/net", child.pid()), format!("/proc/{}/ns/user", child.pid()));
    let options = ["-c", "--netns-type=path", "--userns-path", &userns, &netns, "tap7"];
    let slirp = Slirp::start(&world, &options);
    assert!(child.stdout(&["ip", "addr", "show", "tap7"]).contains("10.0.2.100/24"));
    assert_eq!(child.connecting(FAR4, &far.port()), "ok");
    assert!(slirp.end().status.success());
    // Of our own, as Podman does it.
    let bare = world.host.program(&["unshare", "-n", "sh", "-c", "echo ready; exec cat"]);
    let mut holder = Process::spawn(bare);
    holder.wait_for_line("ready");
    let netns = format!("/proc/{}/ns/net", holder.pid());
    let _slirp = Slirp::start(&world, &["-c", "--netns-type=path", &netns, "tap0"]);
    let enter = format!("--net={netns}");
    let link = world.host.run(&["nsenter", &enter, "ip", "addr", "show", "tap0"]).success().stdout;
    assert!(link.contains("10.0.2.100/24"), "{link}");
}

#[test]
fn a_tap_that_somebody_else_opened_is_served() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let local = Server::start(world.host.listen("127.0.0.1:0"), Serve::Echo);
    let tap = world.far.tap("tap9");
    world.far.ip("addr add 10.0.2.100/24 dev tap9\nlink set tap9 up\n");
    // Descriptor 4 is the TAP as well; it never hangs up.
    let mut command = world.host.command(&with_descriptors(&["--netns-type=tapfd", "5"]));
    command.stdin(Stdio::from(OwnedFd::from(tap)));
    let mut slirp = Process::spawn_with_stdin(command);
    slirp.wait_for_line("1");
    let connection = world.far.connect(&format!("10.0.2.2:{}", local.port()));
    assert!(connection.is_ok(), "{connection:?}");
}

#[test]
fn an_interface_that_rootlesskit_made_is_left_as_it_is() {
    let world = World::new();
    let far = Server::start(world.far.listen(&format!("{FAR4}:0")), Serve::Echo);
    let child = Child::new(&world);
    for line in [
        "tuntap add name tap0 mode tap",
        "link set tap0 address 02:50:00:00:00:01",
        "link set tap0 mtu 65520",
        "link set tap0 up",
        "addr add 10.0.2.100/24 dev tap0",
        "route add default via 10.0.2.2 dev tap0",
    ] {
        let words: Vec<&str> = std::iter::once("ip").chain(line.split(' ')).collect();
        child.stdout(&words);
    }
    let before = child.stdout(&["ip", "-4", "addr", "show", "tap0"]);
    for _ in 0..2 {
        let slirp = Slirp::serve(&child, &["--mtu", "65520", "--disable-host-loopback"]);
        assert_eq!(child.connecting(FAR4, &far.port()), "ok");
        slirp.0.signal(Signal::SIGKILL);
        let _ = slirp.0.finish();
    }
    let strip = |text: String| {
        text.replace("NO-CARRIER,", "")
            .replace(",LOWER_UP", "")
            .replace("state UP", "")
            .replace("state DOWN", "")
            .replace("state UNKNOWN", "")
    };
    assert_eq!(strip(before), strip(child.stdout(&["ip", "-4", "addr", "show", "tap0"])));
}

#[test]
fn data_on_the_exit_descriptor_means_nothing_and_a_hangup_ends() {
    let world = World::new();
    let child = Child::new(&world);
    let (socket, option) = api_socket(&world);
    let mut slirp = Slirp::serve(&child, &["-c", &option]);
    slirp.0.tell("not a hang-up");
    let _ = child.run(&["ping", "-c", "1", "-w", "20", "10.0.2.2"]).success();
    assert!(socket.exists());
    let ended = slirp.end();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.describe());
    if Engine::under_test() == Engine::Ours {
        assert!(!socket.exists(), "the API socket is gone");
    }
}

#[test]
fn it_ends_when_nobody_is_left_to_serve() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let child = Child::new(&world);
    let mut slirp = Slirp::serve(&child, &["-c"]);
    let mut other = child.start(&["sh", "-c", "echo ready; exec cat"]);
    other.wait_for_line("ready");
    child.end();
    // The namespace lives on with somebody else.
    let net = format!("--net=/proc/{}/ns/net", other.pid());
    let user = format!("--user=/proc/{}/ns/user", other.pid());
    let ping = ["nsenter", &user, "--preserve-credentials", &net, "ping", "-c", "1", "-w", "20", "10.0.2.2"];
    let _ = world.host.run(&ping).success();
    slirp.0.tell("still there");
    other.close_stdin();
    assert!(other.ends_before(Instant::now() + DEADLINE));
    assert_eq!(slirp.0.finish().status.code(), Some(0));
}

#[test]
fn a_tap_that_is_deleted_ends_it_with_a_message() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let child = Child::new(&world);
    let slirp = Slirp::serve(&child, &["-c"]);
    child.stdout(&["ip", "link", "delete", "tap0"]);
    let ended = slirp.0.finish();
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr.contains("is gone"), "{}", ended.describe());
}

#[test]
fn nothing_is_left_after_a_kill() {
    let world = World::new();
    let child = Child::new(&world);
    let (socket, option) = api_socket(&world);
    let slirp = Slirp::serve(&child, &["-c", &option]);
    assert_eq!(ask(&socket, &add("tcp", 8080, 80)), r#"{"return":{"id":1}}"#);
    let group = slirp.0.pid();
    slirp.0.signal(Signal::SIGKILL);
    let _ = slirp.0.finish();
    assert_eq!(processes_of_group(group.as_raw()), 0);
    assert!(!child.run(&["ip", "link", "show", "tap0"]).status.success(), "the TAP is gone");
    drop(world.host.listen("0.0.0.0:8080"));
    // The stale socket is no obstacle.
    let _slirp = Slirp::serve(&child, &["-c", &option]);
    assert_eq!(ask(&socket, &add("tcp", 8080, 80)), r#"{"return":{"id":1}}"#);
}

fn processes_of_group(group: i32) -> usize {
    let stats = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let stats = stats.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let groups = stats.filter_map(|stat| stat.rsplit_once(") ")?.1.split(' ').nth(2)?.parse().ok());
    groups.filter(|&other: &i32| other == group).count()
}

#[test]
fn the_api_answers_as_the_original_does() {
    let world = World::new();
    let child = Child::new(&world);
    let (socket, option) = api_socket(&world);
    let _slirp = Slirp::serve(&child, &["-c", &option]);
    let failed = |text: &str| format!(r#"{{"error":{{"desc":"bad request: {text}"}}}}"#);
    for (request, tail) in [
        ("", "cannot parse JSON"),
        ("badjson\n", "cannot parse JSON"),
        ("[]", "json_object() failed"),
        (r#"{"unexpectedjson": 42}"#, "no execute found"),
        (r#"{"execute": "bad"}"#, "unknown execute"),
        (r#"{"execute":"add_hostfwd","arguments":{"proto":"bad"}}"#, "add_hostfwd: bad arguments.proto"),
        (r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp"}}"#, "add_hostfwd: bad arguments.host_port"),
        (
            r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":8080,"guest_port":80,"host_addr":"z"}}"#,
            "add_hostfwd: bad arguments.host_addr",
        ),
        (
            r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":8080,"guest_port":80,"guest_addr":"z"}}"#,
            "add_hostfwd: bad arguments.guest_addr",
        ),
        (
            r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":8080}}"#,
            "add_hostfwd: bad arguments.guest_port",
        ),
        (r#"{"execute":"remove_hostfwd","arguments":{"id":"1"}}"#, "remove_hostfwd: bad arguments.id"),
        (r#"{"execute":"remove_hostfwd","arguments":{"id":9}}"#, "remove_hostfwd: bad arguments.id"),
        (&" ".repeat(4096), "too large message"),
    ] {
        assert_eq!(ask(&socket, request), failed(tail), "{request}");
    }
    let list = r#"{"execute":"list_hostfwd"}"#;
    assert!(ask(&socket, list).contains(r#""entries":[]"#));
    assert_eq!(ask(&socket, &add("tcp", 8080, 80)), r#"{"return":{"id":1}}"#);
    let again = ask(&socket, &add("tcp", 8080, 80));
    assert!(again.contains("bad request: add_hostfwd: slirp_add_hostfwd failed"), "{again}");
    let listed = ask(&socket, list);
    let entry = concat!(
        r#""entries":[{"id":1,"proto":"tcp","host_addr":"0.0.0.0","host_port":8080,"#,
        r#""guest_addr":"10.0.2.100","guest_port":80}]"#
    );
    assert!(listed.contains(entry), "{listed}");
    assert!(listed.contains(r#"}]},"entries":[{"#) || Engine::under_test() != Engine::Ours, "{listed}");
    assert_eq!(ask(&socket, r#"{"execute":"remove_hostfwd","arguments":{"id":1}}"#), r#"{"return":{}}"#);
    drop(world.host.listen("0.0.0.0:8080"));
    assert_eq!(ask(&socket, &add("udp", 8080, 80)), r#"{"return":{"id":2}}"#);
}

#[test]
fn a_port_that_cannot_be_had_says_why() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let child = Child::new(&world);
    let (socket, option) = api_socket(&world);
    let _slirp = Slirp::serve(&child, &["-c", &option]);
    let _taken = world.host.listen("0.0.0.0:8081");
    let reply = ask(&socket, &add("tcp", 8081, 80));
    assert!(reply.contains("slirp_add_hostfwd failed") && reply.contains("in use on the host"), "{reply}");
    let missing = r#"{"execute":"add_hostfwd","arguments":{"host_port":1,"guest_port":1}}"#;
    assert!(ask(&socket, missing).contains("bad arguments.proto"), "the original crashes here");
    assert!(ask(&socket, r#"{"execute":"add_hostfwd"}"#).contains("bad arguments.proto"));
    let chosen = ask(&socket, &add("tcp", 0, 80));
    assert!(chosen.contains(r#","host_port":"#), "{chosen}");
}

#[test]
fn a_silent_client_of_the_api_delays_nobody() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let child = Child::new(&world);
    let (socket, option) = api_socket(&world);
    let _slirp = Slirp::serve(&child, &["-c", &option]);
    let _silent: Vec<_> = (0..100).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    assert_eq!(ask(&socket, &add("tcp", 8080, 80)), r#"{"return":{"id":1}}"#);
    let _ = child.run(&["ping", "-c", "1", "-w", "20", "10.0.2.2"]).success();
}

#[test]
fn published_ports_keep_the_clients_address() {
    let world = World::new();
    let child = Child::new(&world);
    let (socket, option) = api_socket(&world);
    let _slirp = Slirp::serve(&child, &["-c", &option]);
    let serve = |transport: &str| {
        let listen = format!("{transport}-LISTEN:80,fork,reuseaddr");
        let mut server = child.start(&["socat", "-d", "-d", &listen, "SYSTEM:echo from=$SOCAT_PEERADDR"]);
        server.wait_for(Pipe::Stderr, if transport == "TCP4" { "listening on" } else { "socat" });
        server
    };
    let _tcp = serve("TCP4");
    // A foreign client of the API.
    let unix = format!("UNIX-CONNECT:{}", socket.display());
    let mut client = Process::spawn(world.host.program(&["socat", "-t", "20", "-", &unix]));
    client.tell(add("tcp", 8080, 80).trim_end());
    client.close_stdin();
    assert_eq!(client.finish().success().stdout, r#"{"return":{"id":1}}"#);
    let from_far = world.far.run(&["socat", "-u", &format!("TCP4:{HOST4}:8080"), "-"]).success();
    assert_eq!(from_far.value("from"), "192.88.99.2");
    let from_host = world.host.run(&["socat", "-u", "TCP4:127.0.0.1:8080", "-"]).success();
    assert_eq!(from_host.value("from"), "10.0.2.2", "the host's loopback is the gateway");
    let from_service = format!("TCP4:{HOST4}:8080,bind={SERVICE4}");
    let from_service = world.host.run(&["socat", "-u", &from_service, "-"]).success();
    assert_eq!(from_service.value("from"), SERVICE4);
}

#[test]
fn published_udp_ports_keep_the_clients_address() {
    let world = World::new();
    let child = Child::new(&world);
    let (socket, option) = api_socket(&world);
    let _slirp = Slirp::serve(&child, &["-c", &option]);
    let server = r#"use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalPort => 53, Proto => "udp") or die;
        $| = 1; print "ready\n"; while (defined $s->recv(my $m, 999)) { $s->send("from=" . $s->peerhost . "\n") }"#;
    let mut server = child.start(&["perl", "-e", server]);
    server.wait_for_line("ready");
    assert_eq!(ask(&socket, &add("udp", 5353, 53)), r#"{"return":{"id":1}}"#);
    for (from, to, seen) in [
        (&world.far, HOST4, "192.88.99.2"),
        (&world.host, "127.0.0.1", "10.0.2.2"),
        (&world.host, SERVICE4, SERVICE4),
    ] {
        // The original's answers to clients on the host itself do not arrive.
        if to != HOST4 && Engine::under_test() != Engine::Ours {
            continue;
        }
        let mut client = Process::spawn(from.program(&["socat", "-", &format!("UDP4:{to}:5353")]));
        client.tell("who am I?");
        assert_eq!(client.wait_for_line("from="), format!("from={seen}"), "{to}");
    }
}

#[test]
fn an_address_by_slaac_and_a_route_with_ipv6() {
    let world = World::new();
    let child = Child::new(&world);
    let far = Server::start(world.far.listen(&format!("[{FAR6}]:0")), Serve::Echo);
    let mut events = child.start(&["ip", "-6", "monitor", "address", "route"]);
    let _slirp = Slirp::serve(&child, &["-c", "-6", "--mtu=65520", "--enable-sandbox", "--enable-seccomp"]);
    events.wait_for_line("inet6 fd00::");
    if !child.stdout(&["ip", "-6", "route"]).contains("default via fe80::") {
        events.wait_for_line("default via fe80::");
    }
    let _ = child.run(&["ping", "-6", "-c", "1", "-w", "20", "fd00::2"]).success();
    let probe = locate::probe_argv(&["tcp-echo", FAR6, &far.port(), "1000000", "1"]);
    let echo = child.run(&probe.iter().map(String::as_str).collect::<Vec<_>>()).success();
    assert_eq!(echo.value("intact"), "1");
}

#[test]
fn a_mac_address_is_set() {
    let world = World::new();
    let child = Child::new(&world);
    let _slirp = Slirp::serve(&child, &["-c", "--macaddress=0e:d4:18:d9:38:fb"]);
    assert!(child.stdout(&["ip", "link", "show", "tap0"]).contains("0e:d4:18:d9:38:fb"));
}

#[test]
fn without_host_loopback_the_gateway_is_unreachable_but_answers_pings() {
    let world = World::new();
    let child = Child::new(&world);
    let local = Server::start(world.host.listen("127.0.0.1:0"), Serve::Echo);
    let _slirp = Slirp::serve(&child, &["-c", "--disable-host-loopback"]);
    assert_eq!(child.connecting("10.0.2.2", &local.port()), "ENETUNREACH");
    let _ = child.run(&["ping", "-c", "1", "-w", "20", "10.0.2.2"]).success();
}

#[test]
fn disabled_dns_is_silent() {
    let world = World::new();
    let child = Child::new(&world);
    let _slirp = Slirp::serve(&child, &["-c", "--disable-dns"]);
    let refused = child.run(&["socat", "-", "TCP4:10.0.2.3:53,connect-timeout=1"]);
    assert!(refused.stderr.contains("timed out"), "{}", refused.describe());
}

#[test]
fn connections_come_from_the_outbound_address() {
    let world = World::new();
    let child = Child::new(&world);
    let listen = format!("TCP4-LISTEN:7000,bind={FAR4},fork,reuseaddr");
    let server = ["socat", "-d", "-d", &listen, "SYSTEM:echo from=$SOCAT_PEERADDR"];
    let mut server = Process::spawn(world.far.program(&server));
    server.wait_for(Pipe::Stderr, "listening on");
    let to = format!("TCP4:{FAR4}:7000");
    // The host's loopback sees it as well.
    let listen = "TCP4-LISTEN:7000,bind=127.0.0.1,fork,reuseaddr";
    let local = ["socat", "-d", "-d", listen, "SYSTEM:echo from=$SOCAT_PEERADDR"];
    let mut local = Process::spawn(world.host.program(&local));
    local.wait_for(Pipe::Stderr, "listening on");
    for (option, seen_far, seen_local) in [
        ("--outbound-addr=203.0.113.2", Some("203.0.113.2"), Some("203.0.113.2")),
        ("--outbound-addr=127.0.0.1", None, Some("127.0.0.1")),
        ("--outbound-addr=up0", Some(HOST4), None),
        ("--mtu=1500", Some(HOST4), Some("127.0.0.1")),
    ] {
        let slirp = Slirp::serve(&child, &["-c", option]);
        for (to, seen) in [(to.as_str(), seen_far), ("TCP4:10.0.2.2:7000", seen_local)] {
            let Some(seen) = seen else { continue };
            assert_eq!(child.run(&["socat", "-u", to, "-"]).success().value("from"), seen, "{option} {to}");
        }
        slirp.end();
    }
}

#[test]
fn mounts_of_the_caller_stay_whatever_the_sandbox_does() {
    let world = World::new();
    let script = r#"
        mount -t tmpfs tmpfs /run; mkdir /run/foo; mount -t tmpfs tmpfs /run/foo; mount --make-rshared /run
        unshare -n sh -c 'echo > /run/there; exec tail -f /dev/null' & child=$!
        until [ -e /run/there ]; do :; done
        mkfifo /run/ready; exec 5<>/run/ready
        "$@" --enable-sandbox --netns-type=path -r 3 /proc/$child/ns/net tap0 3>&5 5<&- >&2 & engine=$!
        head -c1 <&5; echo
        mountpoint /run/foo
        kill $engine $child"#;
    let words = ["unshare", "-m", "sh", "-euc", script, "sh"].map(String::from);
    let words: Vec<String> = words.into_iter().chain(program()).collect();
    let ended = run(world.host.program(&words.iter().map(String::as_str).collect::<Vec<_>>()));
    assert!(ended.stdout.contains("/run/foo is a mountpoint"), "{}", ended.describe());
}

#[test]
fn dhcp_hands_out_the_pool_from_its_start() {
    let world = World::new();
    let child = Child::new(&world);
    let _slirp = Slirp::serve(&child, &[]);
    child.stdout(&["ip", "link", "set", "tap0", "up"]);
    let lease = child.run(&["busybox", "udhcpc", "-i", "tap0", "-n", "-q", "-f", "-s", "/bin/true"]);
    assert!(lease.stderr.contains("10.0.2.15"), "{}", lease.describe());
}

#[test]
fn the_sandbox_has_an_empty_root_and_one_capability() {
    let world = World::new();
    let child = Child::new(&world);
    let (socket, option) = api_socket(&world);
    let far = Server::start(world.far.listen(&format!("{FAR4}:0")), Serve::Echo);
    let slirp = Slirp::serve(&child, &["-c", "--enable-sandbox", "--enable-seccomp", &option]);
    let pid = slirp.0.pid().to_string();
    let status = world.host.run(&["cat", &format!("/proc/{pid}/status")]).success().stdout;
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(field("CapEff:"), "0000000000000400");
    assert_eq!(field("CapPrm:"), "0000000000000400");
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    let root = world.host.run(&["ls", "-A", &format!("/proc/{pid}/root")]).success().stdout;
    if Engine::under_test() == Engine::Ours {
        assert_eq!(root.split_whitespace().collect::<Vec<_>>(), ["etc", "run"]);
    }
    let write = format!("echo x > /proc/{pid}/root/etc/written-by-a-test");
    assert!(!world.host.run(&["sh", "-c", &write]).status.success(), "/etc is read-only");
    // It works in there.
    assert_eq!(child.connecting(FAR4, &far.port()), "ok");
    assert_eq!(ask(&socket, &add("tcp", 8080, 80)), r#"{"return":{"id":1}}"#);
    let ended = slirp.end();
    assert!(ended.status.success(), "{}", ended.describe());
    if Engine::under_test() == Engine::Ours {
        assert!(!socket.exists(), "the API socket is gone");
    }
}

#[test]
fn bess_carries_one_frame_per_message() {
    let world = World::new();
    let path = world.dir().join("bess.sock");
    let name = path.to_string_lossy().into_owned();
    let mut slirp = Process::spawn(world.host.command(&with_descriptors(&["--target-type=bess", &name])));
    let peer = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let address = UnixAddr::new(&path).unwrap();
    let deadline = Instant::now() + DEADLINE;
    // There is no event for a name that appears in a directory but inotify; connecting is as cheap.
    while let Err(error) = connect(peer.as_raw_fd(), &address) {
        assert!(Instant::now() < deadline, "{error}");
        std::thread::yield_now();
    }
    slirp.wait_for_line("1");
    let our_mac = [2, 0, 0, 0, 0, 1];
    let mut request = vec![0xff; 6];
    request.extend(our_mac);
    request.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    request.extend(our_mac);
    request.extend([10, 0, 2, 100, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
    send(peer.as_raw_fd(), &request, MsgFlags::empty()).unwrap();
    let mut frame = [0; 2048];
    loop {
        assert!(readable_before(&peer, deadline), "no ARP reply");
        let length = recv(peer.as_raw_fd(), &mut frame, MsgFlags::empty()).unwrap();
        assert!(length > 0, "the link is closed");
        if frame[..length].starts_with(&our_mac) && frame[12..14] == [0x08, 0x06] {
            assert_eq!(frame[28..32], [10, 0, 2, 2]);
            break;
        }
    }
}

#[test]
fn version_and_help_are_as_others_parse_them() {
    let world = World::new();
    let version = call(&world, &["--version"]).success().stdout;
    // Docker: every line with the word counts, the last wins.
    let lines: Vec<&str> = version.lines().filter(|line| line.contains("version")).collect();
    assert!(lines.len() == 1 && lines[0].starts_with("slirp4netns version "), "{version}");
    assert!(version.lines().any(|line| line.starts_with("commit: ")));
    assert_eq!(version.lines().count(), 5);
    let level = version.lines().find_map(|line| line.strip_prefix("SLIRP_CONFIG_VERSION_MAX: "));
    assert!(level.unwrap().parse::<u32>().unwrap() >= 4);
    let help = call(&world, &["--help"]).success();
    for option in ["--netns-type", "--enable-ipv6", "--cidr", "--disable-host-loopback", "--enable-seccomp"] {
        assert!(help.stdout.contains(option) || help.stderr.contains(option), "{option}");
    }
}

#[test]
fn wrong_command_lines_end_with_a_message_and_status_1() {
    let world = World::new();
    let host_bits = "CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24";
    let long = format!("{}/{}", world.dir().display(), "x".repeat(108));
    for (words, wanted) in [
        (&["--cidr=24", "1", "tap0"][..], "invalid CIDR"),
        (&["--cidr=foo", "1", "tap0"], "invalid CIDR"),
        (&["1", "tap0", "--cidr", "10.0.2.0"], "invalid CIDR"),
        (&["--cidr=10.0.2.0/26", "1", "tap0"], "prefix length needs to be 1-25"),
        (&["--cidr=10.0.2.100/24", "1", "tap0"], host_bits),
        (&["--mtu=0", "1", "tap0"], "MTU must be a positive integer"),
        (&["--nonsense"], "unrecognized option '--nonsense'"),
        (&["--enable", "1", "tap0"], "option '--enable' is ambiguous"),
        (&["--netns-type=path", "/nonexistent", "tap0"], "No such file or directory"),
        (&["--userns-path=/nonexistent", "1", "tap0"], "userns path doesn't exist"),
        (&["2000000000", "tap0"], "No such file or directory"),
        (&["--target-type=bess", "-c", "/x"], "--configure conflicts with --target-type=bess"),
    ] {
        let ended = call(&world, words);
        assert_eq!(ended.status.code(), Some(1), "{}", ended.describe());
        assert!(ended.stderr.contains(wanted), "{}", ended.describe());
    }
    assert!(call(&world, &["--mtu=0", "1", "tap0"]).stdout.starts_with("Usage: "));
    let child = Child::new(&world);
    let too_long = call(&world, &["-c", "--api-socket", &long, &child.pid(), "tap0"]);
    assert!(!too_long.status.success(), "{}", too_long.describe());
    let failed = call(&world, &["-c", "--mtu=1", &child.pid(), "tap0"]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(failed.stderr.contains("child failed(1)"), "{}", failed.describe());
}

#[test]
fn a_link_by_that_name_is_the_program() {
    let Ok(_) = ours() else { return };
    let world = World::new();
    let link = world.dir().join("slirp4netns");
    std::os::unix::fs::symlink(&program()[0], &link).unwrap();
    let version = run(world.host.command(&[link.to_string_lossy().into_owned(), "-v".to_owned()]));
    assert!(version.success().stdout.starts_with("slirp4netns version "));
}
