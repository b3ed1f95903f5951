//! What programs that are not packaged here run, word for word, and what they then expect.
//!
//! k3s, Docker, nerdctl and BuildKit come by RootlessKit, whose packaged version knows neither `--detach-netns` nor `--net=pasta`; the
//! packaged Podman does not know `--network=pasta`. For these a shell makes the same calls.

use tests::{
    engine::Engine,
    locate,
    process::Process,
    published::{SERVERS, expect_echo, peer_by_tcp, peer_by_udp, wait_for_servers},
    rootlesskit::RootlessKit,
    servers::{Serve, Server, udp_echo},
    session::{HOME, RUNTIME_DIR, Session},
    world::{FAR4, FAR6, HOST4, ROUTER4},
};

/// Servers in the far net, and the script that judges a child's way there.
struct Far {
    tcp: Server,
    tcp6: Server,
    udp: tests::servers::UdpServer,
    _resolver: Process,
}

impl Far {
    fn new(session: &Session) -> Self {
        let far = &session.world().far;
        Self {
            tcp: Server::start(far.listen(&format!("{FAR4}:0")), Serve::Echo),
            tcp6: Server::start(far.listen(&format!("[{FAR6}]:0")), Serve::Echo),
            udp: udp_echo(far.udp(&format!("{FAR4}:0"))),
            _resolver: session.resolver(),
        }
    }

    /// Shell functions for the child: `judge DNS` and `judge6`.
    fn functions(&self) -> String {
        self.functions_with("tcp-echo", "1000000 1")
    }

    /// The same for pasta, whose packaged version loses what follows a half-close by the child.
    fn functions_for_pasta(&self) -> String {
        match Engine::under_test() {
            Engine::Ours => self.functions(),
            _ => self.functions_with("many 1", "100000 1"),
        }
    }

    fn functions_with(&self, verb: &str, args: &str) -> String {
        let probe = &locate::probe_argv(&[])[0];
        let (tcp, tcp6, udp) = (self.tcp.port(), self.tcp6.port(), self.udp.port());
        format!(
            "judge() {{ {probe} {verb} {FAR4} {tcp} {args}; {probe} udp-echo {FAR4} {udp} 2 1 1000 9000\n\
             echo name=$(dig +short +tries=1 @$1 a.test); }}\n\
             judge6() {{ {probe} {verb} {FAR6} {tcp6} {args}; }}\n"
        )
    }
}

#[track_caller]
fn expect_judged(done: &tests::process::Finished) {
    for text in [" intact=1", "intact=3 of=3", "name=192.0.2.77"] {
        assert!(done.stdout.contains(text), "{text}: {}", done.describe());
    }
}

#[test]
fn probes_find_what_they_look_for() {
    let Ok(session) = Session::new() else { return };
    let help = session.run(&["slirp4netns", "--help"]).success();
    for option in [
        "--netns-type",
        "--enable-ipv6",
        "--cidr",
        "--disable-host-loopback",
        "--api-socket",
        "--enable-sandbox",
        "--enable-seccomp",
        "--mtu",
        "--outbound-addr",
    ] {
        assert!(format!("{}{}", help.stdout, help.stderr).contains(option), "{option}: {}", help.describe());
    }
    // dockerd-rootless.sh, containerd-rootless.sh.
    let _ = session.shell("set -o pipefail; slirp4netns --help | grep -qw -- --netns-type").success();
    // Docker takes the last line with "version" in it for the version, and the line that begins with "commit: ".
    let version = session.run(&["slirp4netns", "--version"]).success();
    let lines = version.stdout.lines().filter(|line| line.contains("version")).collect::<Vec<_>>();
    assert_eq!(lines.len(), 1, "{}", version.describe());
    let number = lines[0].rsplit(' ').next().unwrap_or_default();
    let parts = number.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok()).collect::<Vec<_>>();
    assert!(parts.len() >= 3 && parts >= vec![1, 1, 7], "{}", version.describe());
    assert!(
        version.stdout.lines().any(|line| line.starts_with("commit: ") && line.len() > 8),
        "{}",
        version.describe()
    );
    assert!(version.stdout.lines().next().is_some_and(|line| line.starts_with("slirp4netns version ")));
    assert!(version.stdout.lines().any(|line| line.starts_with("SLIRP_CONFIG_VERSION_MAX: ")));
}

#[test]
fn podmans_call_with_ready_and_exit_pipes_and_api_socket() {
    let Ok(session) = Session::new() else { return };
    let far = Far::new(&session);
    let script = format!(
        r#"{functions}
        cd {RUNTIME_DIR}; >netns; unshare --net=netns true
        nsenter --net=netns sh -c 'echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad'
        mkfifo ready exit; exec 5<>ready 6<>exit
        slirp4netns --disable-host-loopback --mtu=65520 --enable-sandbox --enable-seccomp --enable-ipv6 -c -r 3 -e 4 \
            --api-socket {RUNTIME_DIR}/api --netns-type=path {RUNTIME_DIR}/netns tap0 3>ready 4<exit 5<&- 6>&- >log 2>&1 &
        engine=$!
        [ "$(head -c1 <&5)" = 1 ]
        [ -S api ]
        call() {{ printf '%s\n' "$1" | socat -t5 - UNIX-CONNECT:api; echo; }}
        call '{{"execute":"add_hostfwd","arguments":{{"proto":"tcp","host_addr":"","host_port":8080,"guest_addr":"","guest_port":80}}}}'
        call '{{"execute":"add_hostfwd","arguments":{{"proto":"udp","host_addr":"0.0.0.0","host_port":8081,"guest_addr":"","guest_port":81}}}}'
        call '{{"execute":"add_hostfwd","arguments":{{"proto":"tcp","host_addr":"0.0.0.0","host_port":8082,"guest_addr":"10.0.2.100","guest_port":82}}}}'
        call '{{"execute":"add_hostfwd","arguments":{{"proto":"tcp","host_addr":"0.0.0.0","host_port":8082,"guest_addr":"","guest_port":82}}}}'
        call '{{"execute":"list_hostfwd"}}'
        child() {{ nsenter --net=netns bash -euc "$1"; }}
        export -f judge judge6
        child 'judge 10.0.2.3; ip -brief -4 address show tap0; until judge6; do :; done' 5<&- 6>&-
        child '{SERVERS}' 5<&- 6>&-
        call '{{"execute":"remove_hostfwd","arguments":{{"id":1}}}}'
        call '{{"execute":"remove_hostfwd","arguments":{{"id":1}}}}'
        kill -0 $engine
        exec 6>&-
        wait $engine && echo status=$?
        "#,
        functions = far.functions(),
        SERVERS = SERVERS.replace('\'', r"'\''"),
    );
    let mut shell =
        session.spawn(&["unshare", "--user", "--map-root-user", "--mount", "bash", "-euc", &script]);
    wait_for_servers(&mut shell);
    let world = session.world();
    assert_eq!(peer_by_tcp(world.router.connect(&format!("{HOST4}:8080")).expect("published")), ROUTER4);
    let socket = world.router.udp(&format!("{ROUTER4}:0"));
    assert_eq!(peer_by_udp(&socket, &format!("{HOST4}:8081")), ROUTER4);
    expect_echo(world.far.connect(&format!("{HOST4}:8082")).expect("published"));
    shell.close_stdin();
    let done = shell.finish().success();
    expect_judged(&done);
    for text in [
        r#"{"return":{"id":1}}"#,
        r#"{"return":{"id":2}}"#,
        r#"{"return":{"id":3}}"#,
        r#"{"error":{"desc":"bad request: add_hostfwd: slirp_add_hostfwd failed"}}"#,
        r#"{"return":{}}"#,
        r#"{"error":{"desc":"bad request: remove_hostfwd: bad arguments.id"}}"#,
        r#""host_addr":"0.0.0.0","host_port":8081,"guest_addr":"10.0.2.100","guest_port":81"#,
        "10.0.2.100/24",
        "status=0",
    ] {
        assert!(
            done.stdout.replace(": ", ":").contains(&text.replace(": ", ":")),
            "{text}: {}",
            done.describe()
        );
    }
}

/// What RootlessKit does before and after a call: a child with a TAP that it made itself, which it configures when the engine is ready.
const ROOTLESSKIT_CHILD: &str = r#"
ip tuntap add name tap0 mode tap
ip link set tap0 address 02:00:00:00:00:01
ip link set lo up; ip link set tap0 up
echo child; read -r ready
ip link set tap0 mtu 65520; ip addr add $ADDRESS/$PREFIX dev tap0; ip route add default via $GATEWAY
judge $DNS
"#;

/// RootlessKit's calls of slirp4netns: `call CHILD_PID` has to be defined; the rest is what it does around.
fn like_rootlesskit(far: &Far, [address, prefix, gateway, dns]: [&str; 4], call: &str) -> String {
    format!(
        r#"{functions}
        call() {{ {call}; }}
        export ADDRESS={address} PREFIX={prefix} GATEWAY={gateway} DNS={dns}
        export -f judge
        cd {RUNTIME_DIR}; mkfifo ready; exec 5<>ready
        coproc CHILD {{ exec unshare --user --map-root-user --net --mount bash -euc '{ROOTLESSKIT_CHILD}'; }}
        read -r line <&${{CHILD[0]}}; [ "$line" = child ]
        call $CHILD_PID 3>ready 5<&- >log 2>&1 &
        engine=$!
        [ "$(head -c1 <&5)" = 1 ]
        tr '\0' ' ' </proc/$engine/cmdline >&2
        echo ready >&${{CHILD[1]}}
        cat <&${{CHILD[0]}}
        "#,
        functions = far.functions(),
    )
}

#[test]
fn k3ss_calls() {
    let Ok(session) = Session::new() else { return };
    let far = Far::new(&session);
    let call = "exec slirp4netns --mtu 65520 -r 3 --disable-host-loopback --cidr 10.41.0.0/16 $1 tap0";
    let script = like_rootlesskit(&far, ["10.41.0.100", "16", "10.41.0.2", "10.41.0.3"], call);
    expect_judged(&session.shell(&script).success());

    // The same by RootlessKit with what k3s sets in its library, and a privileged port as its controller publishes it.
    let kit = RootlessKit::new(
        &session,
        &[
            "--mtu=65520",
            "--cidr=10.41.0.0/16",
            "--disable-host-loopback",
            "--port-driver=builtin",
            "--copy-up=/var/lib",
            "--pidns",
            "--cgroupns",
            "--utsns",
            "--ipcns",
            "--reaper=true",
        ],
    );
    let mut child = kit.start(&format!("{} judge 10.41.0.3; {SERVERS}", far.functions()));
    wait_for_servers(&mut child);
    kit.wait_for_ports(0);
    let add = format!("rootlessctl --socket={} add-ports 0.0.0.0:10080:80/tcp", kit.socket());
    let _ = session.shell(&add).success();
    let _ = peer_by_tcp(session.world().router.connect(&format!("{HOST4}:10080")).expect("published"));
    let engines = session.shell("pgrep -a -f '^[^ ]*slirp4netns '").success();
    let words = " --mtu 65520 -r 3 --disable-host-loopback --cidr 10.41.0.0/16 ";
    assert!(engines.stdout.contains(words), "{}", engines.describe());
    child.close_stdin();
    expect_judged(&child.finish());
}

#[test]
fn dockers_call() {
    let Ok(session) = Session::new() else { return };
    let far = Far::new(&session);
    // What dockerd-rootless.sh does, to the point where it would become dockerd.
    let script = format!(
        r#"if [ -z "${{_DOCKERD_ROOTLESS_CHILD:-}}" ]; then
            slirp4netns --help | grep -qw -- --netns-type && net=slirp4netns mtu=65520
            export _DOCKERD_ROOTLESS_CHILD=1
            exec rootlesskit --net=$net --mtu=$mtu --slirp4netns-sandbox=auto --slirp4netns-seccomp=auto \
                --disable-host-loopback --port-driver=builtin --copy-up=/etc --copy-up=/run --propagation=rslave $0
        fi
        rm -f /run/docker /run/containerd /run/xtables.lock
        [ "$(stat -c %T -f /etc)" = tmpfs ]
        {} judge 10.0.2.3; cat /etc/resolv.conf; {SERVERS}"#,
        far.functions()
    );
    session.write("dockerd-rootless.sh", &format!("#!/bin/bash\nset -eu\n{script}\n"));
    let _ = session.shell("chmod 755 dockerd-rootless.sh").success();
    let mut child = session.spawn(&[&format!("{HOME}/dockerd-rootless.sh")]);
    wait_for_servers(&mut child);
    // rootlesskit-docker-proxy asks by the API whose directory is in the environment of dockerd.
    let publish = r"child=$(pgrep -n -x socat)
        state=$(tr '\0' '\n' </proc/$child/environ | sed -n s/^ROOTLESSKIT_STATE_DIR=//p)
        until [ -S $state/api.sock ]; do :; done
        rootlessctl --socket=$state/api.sock add-ports 0.0.0.0:8082:82/tcp";
    let _ = session.shell(publish).success();
    expect_echo(session.world().far.connect(&format!("{HOST4}:8082")).expect("published"));
    child.close_stdin();
    let done = child.finish().success();
    expect_judged(&done);
    assert!(done.stdout.contains("nameserver 10.0.2.3"), "{}", done.describe());
}

#[test]
fn nerdctls_call() {
    let Ok(session) = Session::new() else { return };
    let far = Far::new(&session);
    let judge = format!("{} judge 10.0.2.3", far.functions());
    let state = format!("--state-dir={RUNTIME_DIR}/containerd-rootless");
    let mut argv = vec!["rootlesskit", &state, "--net=slirp4netns", "--mtu=65520"];
    argv.extend(["--slirp4netns-sandbox=auto", "--slirp4netns-seccomp=auto", "--disable-host-loopback"]);
    argv.extend(["--port-driver=builtin", "--copy-up=/etc", "--copy-up=/run", "--copy-up=/var/lib"]);
    argv.extend(["--propagation=rslave", "bash", "-euc", &judge]);
    expect_judged(&session.run(&argv).success());
}

/// RootlessKit 2 with `--detach-netns`, which containerd-rootless.sh asks for: the child stays in the host's network namespace and
/// keeps the other one as a file of its mount namespace.
#[test]
fn nerdctls_call_with_a_detached_namespace() {
    let Ok(session) = Session::new() else { return };
    let far = Far::new(&session);
    let script = format!(
        r#"{functions}
        export -f judge
        cd {RUNTIME_DIR}; mkfifo ready; exec 5<>ready
        coproc CHILD {{ exec unshare --user --map-root-user --mount bash -euc '
            >netns; unshare --net=netns true; echo child; read -r ready
            inside() {{ nsenter --net=netns "$@"; }}
            inside ip addr add 10.0.2.100/24 dev tap0; inside ip route add default via 10.0.2.2
            inside bash -euc "judge 10.0.2.3"
        '; }}
        exec 7<&${{CHILD[0]}} 8>&${{CHILD[1]}}
        read -r line <&7; [ "$line" = child ]
        netns=/proc/$CHILD_PID/root{RUNTIME_DIR}/netns
        inside() {{ nsenter -t $CHILD_PID -U --preserve-credentials -m --net=$netns "$@"; }}
        inside ip tuntap add name tap0 mode tap
        inside ip link set lo up; inside ip link set tap0 mtu 65520 up
        slirp4netns --mtu 65520 -r 3 --disable-host-loopback --enable-seccomp \
            --userns-path=/proc/$CHILD_PID/ns/user --netns-type=path $netns tap0 3>ready 5<&- 7<&- 8>&- >log 2>&1 &
        [ "$(head -c1 <&5)" = 1 ]
        echo ready >&8
        cat <&7
        "#,
        functions = far.functions(),
    );
    expect_judged(&session.shell(&script).success());
}

#[test]
fn buildkits_call() {
    let Ok(session) = Session::new() else { return };
    let far = Far::new(&session);
    let judge = format!("{} judge 10.0.2.3", far.functions());
    let mut argv = vec!["rootlesskit", "--net=slirp4netns", "--copy-up=/etc", "--disable-host-loopback"];
    argv.extend(["bash", "-euc", &judge]);
    expect_judged(&session.run(&argv).success());
}

#[test]
fn podmans_call_of_pasta() {
    let Ok(session) = Session::new() else { return };
    let far = Far::new(&session);
    let script = format!(
        r#"{functions}
        export -f judge judge6
        cd {RUNTIME_DIR}; mkdir netns; >netns/it; unshare --net=netns/it true
        call() {{ pasta --config-net --pid {RUNTIME_DIR}/pid \
            -t 0.0.0.0/8080-8080:80-80 -u 0.0.0.0/8081-8081:81-81 -t 0.0.0.0/8082-8082:82-82 --dns-forward 169.254.1.1 \
            -T none -U none --no-map-gw --quiet --netns {RUNTIME_DIR}/netns/it "$@" 2>&1; }}
        # It is ready when the call returns, and the pipe that its words go to is closed then.
        if ! said=$(call --map-guest-addr 169.254.1.2); then
            grep -F "unrecognized option '--map-guest-addr" <<<"$said"
            said=$(call)
        fi
        [ -z "$said" ]
        child() {{ nsenter --net=netns/it bash -euc "$1"; }}
        child 'judge 169.254.1.1; judge6; ip -brief address'
        child '{SERVERS}'
        pid=$(cat pid)
        umount -l netns/it; rm netns/it
        tail -s 0.1 --pid=$pid -f /dev/null && echo gone
        "#,
        functions = far.functions_for_pasta(),
        SERVERS = SERVERS.replace('\'', r"'\''"),
    );
    let mut shell =
        session.spawn(&["unshare", "--user", "--map-root-user", "--mount", "bash", "-euc", &script]);
    wait_for_servers(&mut shell);
    let world = session.world();
    // The packaged pasta loses what a server says if that ends first.
    if Engine::under_test() == Engine::Ours {
        let stream = world.router.connect(&format!("{HOST4}:8080")).expect("published");
        assert_eq!(peer_by_tcp(stream), ROUTER4);
    }
    let socket = world.router.udp(&format!("{ROUTER4}:0"));
    assert_eq!(peer_by_udp(&socket, &format!("{HOST4}:8081")), ROUTER4);
    expect_echo(world.far.connect(&format!("{HOST4}:8082")).expect("published"));
    shell.close_stdin();
    let done = shell.finish().success();
    expect_judged(&done);
    // The host's own address is the child's.
    for text in [&format!("{HOST4}/24"), "gone"] {
        assert!(done.stdout.contains(text), "{text}: {}", done.describe());
    }
    let too_old = done.stdout.contains("unrecognized option");
    assert!(!too_old || Engine::under_test() != Engine::Ours, "{}", done.describe());
}

#[test]
fn rootlesskits_call_of_pasta() {
    let Ok(session) = Session::new() else { return };
    let far = Far::new(&session);
    let _ = session.run(&["pasta", "--version"]).success();
    let knows = session.run(&["pasta", "--host-lo-to-ns-lo", "--version"]).status.success();
    assert!(knows || Engine::under_test() != Engine::Ours);
    let script = format!(
        r#"{functions}
        export -f judge
        cd {RUNTIME_DIR}
        coproc CHILD {{ exec unshare --user --map-root-user --net --mount bash -euc '
            ip link set lo up; echo child; read -r ready
            judge 10.0.2.3; ip -brief -4 address show tap0; {SERVERS}'; }}
        exec 7<&${{CHILD[0]}} 8>&${{CHILD[1]}}
        eval "exec ${{CHILD[0]}}<&- ${{CHILD[1]}}>&-"
        read -r line <&7; [ "$line" = child ]
        pasta --stderr --ns-ifname=tap0 --mtu=65520 --config-net --address=10.0.2.100 --netmask=24 --gateway=10.0.2.2 \
            --dns-forward=10.0.2.3 --no-map-gw --ipv4-only --tcp-ports=auto --udp-ports=auto {host_lo} $CHILD_PID 7<&- 8>&-
        echo ready >&8
        read -r line || :
        exec 8>&-
        cat <&7
        "#,
        functions = far.functions_for_pasta(),
        host_lo = if knows { "--host-lo-to-ns-lo" } else { "" },
        // Ports that an ordinary user may listen on.
        SERVERS = SERVERS.replace('\'', r"'\''").replace(":8", ":808"),
    );
    let mut shell = session.spawn(&["bash", "-euc", &script]);
    wait_for_servers(&mut shell);
    // It looks for listeners from time to time: a refusal is no answer yet.
    let router = &session.world().router;
    let published = (0..200_000).find_map(|_| router.connect(&format!("{HOST4}:8082")).ok());
    expect_echo(published.expect("published in the end"));
    shell.close_stdin();
    let done = shell.finish().success();
    expect_judged(&done);
    assert!(done.stdout.contains("10.0.2.100/24"), "{}", done.describe());
}
