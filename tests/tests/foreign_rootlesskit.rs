//! RootlessKit with the slirp4netns under test, and its client against both APIs.

use tests::{
    engine::ours,
    locate,
    process::Process,
    published::{SERVERS, expect_echo, peer_by_tcp, peer_by_udp, wait_for_servers},
    rootlesskit::RootlessKit,
    servers::{Serve, Server, udp_echo},
    session::{RUNTIME_DIR, Session},
    world::{FAR4, FAR6, HOST4, ROUTER4, SERVICE4, World},
};

const PUBLISH: [&str; 3] =
    ["--publish=0.0.0.0:8080:80/tcp", "--publish=0.0.0.0:8081:81/udp", "--publish=0.0.0.0:8082:82/tcp"];

/// Asks all three servers from the router; `client` is who they have to take it for.
#[track_caller]
fn expect_published(world: &World, client: &str) {
    let stream = world.router.connect(&format!("{HOST4}:8080")).expect("published");
    assert_eq!(peer_by_tcp(stream), client);
    let socket = world.router.udp(&format!("{ROUTER4}:0"));
    assert_eq!(peer_by_udp(&socket, &format!("{HOST4}:8081")), client);
    expect_echo(world.far.connect(&format!("{HOST4}:8082")).expect("published"));
}

/// A RootlessKit with [`SERVERS`], which listen and are published when it returns.
#[track_caller]
fn publishing(kit: &RootlessKit<'_>) -> Process {
    let mut process = kit.start(SERVERS);
    wait_for_servers(&mut process);
    kit.wait_for_ports(3);
    process
}

#[test]
fn every_sandbox_reaches_the_world_by_tcp_and_udp_and_by_name() {
    let Ok(session) = Session::new() else { return };
    let (world, _resolver) = (session.world(), session.resolver());
    let near = Server::start(world.host.listen(&format!("{SERVICE4}:0")), Serve::Echo);
    let far = Server::start(world.far.listen(&format!("{FAR4}:0")), Serve::Sink);
    let loopback = Server::start(world.host.listen("127.0.0.1:0"), Serve::Echo);
    let udp = udp_echo(world.far.udp(&format!("{FAR4}:0")));
    let probe = &locate::probe_argv(&[])[0];
    let script = format!(
        "{probe} tcp-echo {SERVICE4} {} 1000000 1; {probe} tcp-send {FAR4} {} 1000000 2\n\
         {probe} udp-echo {FAR4} {} 4 1 1000 9000; {probe} connect 10.0.2.2 {}\n\
         echo name=$(dig +short +tries=1 a.test) mtu=$(cat /sys/class/net/tap0/mtu); cat /etc/resolv.conf\n\
         engine=$(pgrep -f '^[^ ]*slirp4netns .*tap0')\n\
         echo $(grep -E '^(NoNewPrivs|Seccomp):' /proc/$engine/status)",
        near.port(),
        far.port(),
        udp.port(),
        loopback.port()
    );
    for (sandbox, seccomp, options, result) in [
        ("auto", "auto", &["--disable-host-loopback"][..], "ENETUNREACH"),
        ("true", "true", &["--disable-host-loopback", "--mtu=1400"], "ENETUNREACH"),
        ("false", "false", &[], "ok"),
    ] {
        let how = [format!("--slirp4netns-sandbox={sandbox}"), format!("--slirp4netns-seccomp={seccomp}")];
        let options = [options, &how.each_ref().map(String::as_str)].concat();
        let done = RootlessKit::new(&session, &options).start(&script).finish().success();
        assert_eq!(done.stdout.matches("intact=1").count(), 2, "{sandbox}: {}", done.describe());
        let mtu = if options.contains(&"--mtu=1400") { "1400" } else { "65520" };
        for text in ["intact=3 of=3", "name=192.0.2.77", "nameserver 10.0.2.3", &format!("mtu={mtu}")] {
            assert!(done.stdout.contains(text), "{sandbox}: {text}: {}", done.describe());
        }
        assert_eq!(done.value("result"), result, "{sandbox}: {}", done.describe());
        assert_eq!(far.served().peer.ip().to_string(), HOST4, "{sandbox}");
        if seccomp != "false" {
            assert!(done.stdout.contains("NoNewPrivs: 1 Seccomp: 2"), "{sandbox}: {}", done.describe());
        }
    }
}

#[test]
fn ipv6_comes_by_router_advertisement() {
    let Ok(session) = Session::new() else { return };
    let world = session.world();
    let far = Server::start(world.far.listen(&format!("[{FAR6}]:0")), Serve::Echo);
    let probe = &locate::probe_argv(&[])[0];
    // With the original there is no route at first, and nothing here turns the detection of duplicates off.
    let script = format!(
        "until {probe} connect {FAR6} {port} | tee /dev/stderr | grep -q result=ok; do :; done\n\
         {probe} tcp-echo {FAR6} {port} 1000000 1; ip -6 -brief address show tap0; ip -6 route",
        port = far.port()
    );
    let done =
        RootlessKit::new(&session, &["--ipv6", "--disable-host-loopback"]).start(&script).finish().success();
    // A route without a usable address would let connections hang that could have been made by IPv4.
    assert!(!done.stderr.contains("result=TIMEOUT"), "{}", done.describe());
    assert_eq!(done.value("intact"), "1", "{}", done.describe());
    assert!(
        done.stdout.contains(" fd00:") && done.stdout.contains("default via fe80::"),
        "{}",
        done.describe()
    );
}

#[test]
fn its_builtin_port_driver_works_beside_the_engine() {
    let Ok(session) = Session::new() else { return };
    let options = [&["--port-driver=builtin"][..], &PUBLISH].concat();
    let _kit = publishing(&RootlessKit::new(&session, &options));
    // It connects from inside: the client's address is lost, whoever the engine is.
    expect_published(session.world(), "127.0.0.1");
}

#[test]
fn the_engines_port_driver_keeps_the_clients_address_in_every_sandbox() {
    let Ok(session) = Session::new() else { return };
    for sandbox in ["auto", "false"] {
        let how = [format!("--slirp4netns-sandbox={sandbox}"), format!("--slirp4netns-seccomp={sandbox}")];
        let mut options = vec!["--port-driver=slirp4netns"];
        options.extend(how.iter().map(String::as_str));
        options.extend(PUBLISH);
        let mut kit = publishing(&RootlessKit::new(&session, &options));
        expect_published(session.world(), ROUTER4);
        let stream = session.world().host.connect("127.0.0.1:8080").expect("published");
        assert_eq!(peer_by_tcp(stream), "10.0.2.2");
        kit.close_stdin();
        let _ = kit.finish();
    }
}

#[test]
fn rootlessctl_adds_lists_and_removes_ports_of_the_engine() {
    let Ok(session) = Session::new() else { return };
    let kit = RootlessKit::new(&session, &["--port-driver=slirp4netns"]);
    let mut process = kit.start(SERVERS);
    wait_for_servers(&mut process);
    kit.wait_for_ports(0);
    expect_rootlessctl_to_manage_ports(&session, &kit.socket(), "slirp4netns");
}

#[test]
fn rootlessctl_adds_lists_and_removes_ports_of_rootless_launch() {
    if ours().is_err() {
        return;
    }
    let Ok(session) = Session::new() else { return };
    let program = locate::rootless_launch().expect("rootless-launch is built, or $ROOTLESS_LAUNCH names it");
    let state = format!("--state-dir={RUNTIME_DIR}/ours");
    // Inside it finds the socket by the environment.
    let script = format!("rootlessctl info >&2; {SERVERS}");
    let argv = [&program.to_string_lossy(), &*state, "--", "bash", "-euc", &script];
    let mut process = session.spawn(&argv);
    wait_for_servers(&mut process);
    expect_rootlessctl_to_manage_ports(&session, &format!("{RUNTIME_DIR}/ours/api.sock"), "rootless-launch");
}

#[track_caller]
fn expect_rootlessctl_to_manage_ports(session: &Session, socket: &str, driver: &str) {
    let rootlessctl = |args: &[&str]| {
        let socket = format!("--socket={socket}");
        session.run(&[&["rootlessctl", &socket], args].concat())
    };
    let world = session.world();
    let specs = ["0.0.0.0:8080:80/tcp", "0.0.0.0:8081:81/udp", "0.0.0.0:8082:82/tcp"];
    let ids = rootlessctl(&[&["add-ports"], &specs[..]].concat()).success().stdout;
    assert_eq!(ids, "1\n2\n3");
    expect_published(world, ROUTER4);

    let list = rootlessctl(&["list-ports", "--json"]).success();
    for part in ["\"id\":1", "\"parentIP\":\"0.0.0.0\"", "\"parentPort\":8081", "\"childPort\":82"] {
        assert!(list.stdout.contains(part), "{part}: {}", list.describe());
    }
    let table = rootlessctl(&["list-ports"]).success();
    assert_eq!(table.stdout.lines().count(), 4, "{}", table.describe());

    // A port that is in use is an error and takes nothing away.
    let again = rootlessctl(&["add-ports", "0.0.0.0:8080:82/tcp"]);
    assert!(!again.status.success(), "{}", again.describe());
    expect_published(world, ROUTER4);

    let _ = rootlessctl(&["remove-ports", "1", "2"]).success();
    let refused = world.router.connect(&format!("{HOST4}:8080")).expect_err("removed");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let missing = rootlessctl(&["remove-ports", "1"]);
    assert!(!missing.status.success(), "{}", missing.describe());
    let left = rootlessctl(&["list-ports"]).success();
    assert_eq!(left.stdout.lines().count(), 2, "{}", left.describe());

    let info = rootlessctl(&["info", "--json"]).success();
    let wanted = format!("\"driver\":\"{driver}\"");
    for part in ["\"apiVersion\":\"1.", "\"stateDir\":", "\"childPID\":", "\"networkDriver\":", &wanted] {
        assert!(info.stdout.replace(": ", ":").contains(part), "{part}: {}", info.describe());
    }
}

#[test]
fn it_starts_again_in_its_state_directory_after_kill_9() {
    let Ok(session) = Session::new() else { return };
    let options = [
        &["--port-driver=slirp4netns", "--slirp4netns-sandbox=auto", "--slirp4netns-seccomp=auto"][..],
        &PUBLISH,
    ]
    .concat();
    let kit = RootlessKit::new(&session, &options);
    for victim in ["^[^ ]*slirp4netns .*tap0", "^rootlesskit --state-dir"] {
        let mut process = publishing(&kit);
        expect_published(session.world(), ROUTER4);
        let _ = session.shell(&format!("kill -9 $(pgrep -o -f '{victim}')")).success();
        process.close_stdin();
        let _ = process.finish();
        // What the victim leaves behind has to end too, by itself, and to release the ports.
        let wait = "for pid in $(pgrep -f '^[^ ]*(slirp4netns|rootlesskit) '); do tail -s 0.1 --pid=$pid -f /dev/null; done";
        let _ = session.shell(wait).success();
    }
    let _process = publishing(&kit);
    expect_published(session.world(), ROUTER4);
}
