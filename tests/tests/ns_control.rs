//! Running instances of the real program and those who ask them: state directory, API socket, command line, foreign clients.

use nix::sys::signal::Signal;
use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};
use tests::{
    engine::Engine,
    instance::{CHILD4, GATEWAY4, Instance, eventually},
    locate,
    process::{DEADLINE, Process, run},
    servers::{Serve, Server},
    world::{HOST4, SERVICE4, World},
};

fn lab(args: &[&str]) -> (World, Instance) {
    let world = World::new();
    let instance = Instance::start(&world, args);
    (world, instance)
}

/// curl(1) on the API's socket; headers and body.
fn curl(instance: &Instance, args: &[&str], path: &str) -> String {
    let socket = instance.directory().join("api.sock");
    let url = format!("http://localhost{path}");
    let mut argv = vec!["curl", "--silent", "--show-error", "--include", "--max-time", "50", "--unix-socket"];
    argv.push(socket.to_str().expect("paths are UTF-8"));
    argv.extend(args);
    argv.push(&url);
    run(instance.foreign(&argv)).success().stdout.replace('\r', "")
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|error| panic!("{path:?}: {error}")).permissions().mode() & 0o7777
}

// The state directory.

#[test]
fn the_state_directory_is_laid_out_as_rootlesskits_and_for_its_owner_only() {
    let (world, instance) = lab(&[]);
    let directory = instance.directory().to_owned();
    assert_eq!(mode(&directory), 0o700);
    assert_eq!(mode(&directory.join("api.sock")), 0o600);
    assert_eq!(mode(&directory.join("lock")), 0o600);
    let mut names: Vec<_> =
        fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["api.sock", "child_pid", "lock"]);
    let comm = fs::read_to_string(format!("/proc/{}/comm", instance.child_pid())).unwrap();
    assert_eq!(comm.trim(), "probe");
    let second = Instance::running(&world, &directory, &[], &["true"]).finish();
    assert_eq!(second.status.code(), Some(1));
    let holder = format!("in use by a running instance, process {}", instance.process.pid());
    assert!(second.stderr.contains(&holder), "{}", second.stderr);
    assert_eq!(mode(&directory.join("api.sock")), 0o600, "the first one is not disturbed");
    let _ = instance.finish().success();
    assert!(!directory.exists());
}

#[test]
fn the_command_is_told_of_the_directory_and_of_the_caller() {
    let world = World::new();
    let directory = world.dir().join("state");
    let script = "echo $ROOTLESSKIT_STATE_DIR $ROOTLESSKIT_PARENT_EUID $ROOTLESSKIT_PARENT_EGID";
    let told = Instance::running(&world, &directory, &[], &["sh", "-c", script]).finish().success();
    // In a world its user is root.
    assert_eq!(told.stdout, format!("{} 0 0", directory.display()));
}

#[test]
fn readiness_comes_with_ports_that_answer() {
    let world = World::new();
    let directory = world.dir().join("state");
    // The command finds itself served when it begins: its own forward is there, and so is child_pid.
    let script = "cat $ROOTLESSKIT_STATE_DIR/child_pid && echo && echo $$ && \
                  curl --silent --unix-socket $ROOTLESSKIT_STATE_DIR/api.sock http://x/v1/health && read -r line";
    let ports: Vec<String> = (0..50).flat_map(|n| ["-p".to_owned(), format!("{}:80", 8000 + n)]).collect();
    let ports: Vec<_> = ports.iter().map(String::as_str).collect();
    let instance = Instance::running(&world, &directory, &ports, &["sh", "-c", script]);
    eventually("it becomes ready", || directory.join("child_pid").exists());
    for n in 0..50 {
        let stream = world.far.connect(&format!("{HOST4}:{}", 8000 + n));
        // Nobody serves inside; that somebody listened outside is what counts.
        drop(stream);
    }
    let list = instance.client(&["port", "list"]);
    assert_eq!(list.lines().count(), 51, "{list}");
    let finished = instance.finish();
    let lines: Vec<_> = finished.stdout.lines().collect();
    assert_eq!(lines[0], lines[1], "child_pid is the command's: {}", finished.stdout);
    assert!(lines[2].contains("ready"), "{}", finished.stdout);
}

#[test]
fn an_api_that_is_asked_before_readiness_says_so() {
    let world = World::new();
    let directory = world.dir().join("state");
    let wait = locate::probe_argv(&["wait"]);
    let command: Vec<_> = wait.iter().map(String::as_str).collect();
    let mut instance = Instance::running(&world, &directory, &[], &command);
    eventually("the socket is there", || directory.join("api.sock").exists());
    // Answered sooner or later, never refused.
    let health = curl(&instance, &[], "/v1/health");
    assert!(health.contains("\"starting\"") || health.contains("\"ready\""), "{health}");
    instance.process.wait_for_line("ready=1");
    assert!(curl(&instance, &[], "/v1/health").contains("\"ready\""));
}

#[test]
fn directories_that_cannot_be_are_refused_with_the_reason() {
    let world = World::new();
    let long = world.dir().join("d".repeat(100));
    let failed = Instance::running(&world, &long, &[], &["true"]).finish();
    assert!(failed.stderr.contains("use a shorter --state-dir"), "{}", failed.stderr);
    let open = world.dir().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let failed = Instance::running(&world, &open, &[], &["true"]).finish();
    assert!(failed.stderr.contains("nobody else may write"), "{}", failed.stderr);
    // The longest that fits.
    let room = 107 - "/api.sock".len() - world.dir().as_os_str().len() - 1;
    let longest = world.dir().join("d".repeat(room));
    let instance = Instance::at(&world, &longest, &[]);
    assert!(instance.client(&["info"]).contains("command"));
    let _ = instance.finish().success();
    assert!(!longest.exists());
}

/// Launchers with default state directories below a runtime directory of the test's.
struct Login<'a> {
    world: &'a World,
    runtime: PathBuf,
}

impl<'a> Login<'a> {
    fn new(world: &'a World) -> Self {
        let runtime = world.dir().join("run");
        fs::create_dir(&runtime).expect("a directory of ours");
        Self { world, runtime }
    }

    fn command(&self, argv: &[String]) -> Command {
        let mut command = self.world.host.command(argv);
        command.env("XDG_RUNTIME_DIR", &self.runtime);
        command
    }

    fn launch(&self, name: &str) -> Process {
        let wait = locate::probe_argv(&["wait"]);
        let command: Vec<_> = wait.iter().map(String::as_str).collect();
        let argv = Engine::Ours.launch().args(&["--name", name]).argv(&command);
        let mut process = Process::spawn(self.command(&argv));
        process.wait_for_line("ready=1");
        process
    }

    fn client(&self, args: &[&str]) -> tests::process::Finished {
        let program = locate::rootless_launch().expect("paths are UTF-8").to_string_lossy().into_owned();
        let argv: Vec<_> = std::iter::once(program).chain(args.iter().map(ToString::to_string)).collect();
        run(self.command(&argv))
    }
}

#[test]
fn instances_are_told_apart_by_name() {
    let world = World::new();
    let login = Login::new(&world);
    let none = login.client(&["info"]);
    assert_eq!(
        (none.status.code(), none.stderr.contains("no instance runs")),
        (Some(2), true),
        "{}",
        none.stderr
    );
    let one = login.launch("one");
    assert!(
        login.client(&["info"]).success().stdout.contains("rootless-launch/one"),
        "the only one is meant"
    );
    let two = login.launch("two");
    let list = login.client(&["instances"]).success().stdout;
    assert!(list.contains("one") && list.contains("two"), "{list}");
    let which = login.client(&["port", "list"]);
    assert_eq!(which.status.code(), Some(2));
    assert!(
        which.stderr.contains("several instances run, choose one by --name: one, two"),
        "{}",
        which.stderr
    );
    let _ = login.client(&["port", "add", "--name=one", "8080:80"]).success();
    assert!(!login.client(&["port", "list", "--name=two"]).success().stdout.contains("8080"));
    assert!(login.client(&["port", "list", "--name=one"]).success().stdout.contains("8080"));
    // Two instances are two holders.
    let taken = login.client(&["port", "add", "--name=two", "8080:80"]);
    assert!(taken.stderr.contains("(rootless-launch)"), "{}", taken.stderr);
    for mut process in [one, two] {
        process.close_stdin();
        let _ = process.finish().success();
    }
    assert_eq!(fs::read_dir(&login.runtime).unwrap().count(), 0, "nothing is left");
}

// Foreign clients, and ours.

#[test]
fn rootlessctl_publishes_lists_and_takes_back() {
    let (world, instance) = lab(&[]);
    let ctl = |args: &[&str]| {
        let mut argv = vec!["rootlessctl"];
        argv.extend(args);
        run(instance.foreign(&argv))
    };
    let info = ctl(&["info"]).success().stdout;
    assert!(info.contains(&format!("- Child PID: {}", instance.child_pid())), "{info}");
    assert!(info.contains(&format!("- IP: {CHILD4}")), "{info}");
    let added = ctl(&["add-ports", "0.0.0.0:8080:80/tcp", "127.0.0.1:5300:53/udp"]).success();
    assert_eq!(added.stdout, "1\n2");
    let child = instance.child(&world);
    let server = Server::start(child.listen("0.0.0.0:80"), Serve::Echo);
    let mut stream = world.far.connect(&format!("{HOST4}:8080")).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    let _ = server.accepted();
    let list = ctl(&["list-ports"]).success().stdout;
    let words: Vec<_> = list.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(words, ["1", "tcp", "0.0.0.0", "8080", "80"], "{list}");
    let taken = ctl(&["add-ports", "127.0.0.1:8080:81/tcp"]);
    assert!(!taken.status.success() && taken.stderr.contains("conflict with ID 1"), "{}", taken.describe());
    assert_eq!(ctl(&["remove-ports", "1", "2"]).success().stdout, "1\n2");
    assert_eq!(ctl(&["list-ports", "--json"]).success().stdout, "");
}

#[test]
fn changes_are_watched() {
    let (world, instance) = lab(&["-p", "8080:80"]);
    let mut watch = Process::spawn(instance.command(&["port", "watch"]));
    assert!(watch.wait_for_line("added").contains("8080:80/tcp"));
    let id = instance.publish("8081:81");
    assert!(watch.wait_for_line("added").contains("8081:81/tcp"));
    instance.client(&["port", "remove", &id]);
    assert!(watch.wait_for_line("removed").contains("8081:81/tcp"));
    let _ = instance.finish().success();
    let _ = watch.finish();
    drop(world);
}

#[test]
fn a_policy_that_is_set_holds_for_new_flows() {
    let (world, instance) = lab(&[]);
    let server = Server::start(world.host.listen(&format!("{SERVICE4}:7000")), Serve::Echo);
    let child = instance.child(&world);
    let address = format!("{SERVICE4}:7000");
    let mut open = child.connect(&address).unwrap();
    open.set_read_timeout(Some(DEADLINE)).unwrap();
    let _ = server.accepted();
    instance.client(&["policy", "add", "--first", &format!("deny tcp {SERVICE4}:7000")]);
    let denied = child.connect(&address).unwrap_err();
    assert_ne!(denied.kind(), std::io::ErrorKind::TimedOut, "a refusal is prompt: {denied}");
    open.write_all(b"x").unwrap();
    open.read_exact(&mut [0]).expect("what was open stays open");
    let policy = instance.client(&["policy", "get", "--json"]);
    assert!(policy.contains("\"hits\":[1]"), "{policy}");
    let mut set = Process::spawn(instance.command(&["policy", "set", "-"]));
    set.tell("# nothing");
    set.close_stdin();
    let _ = set.finish().success();
    let _ = child.connect(&address).expect("allowed again");
}

#[test]
fn a_name_that_is_added_resolves_at_once() {
    let (_world, instance) = lab(&[]);
    instance.client(&[
        "dns",
        "set",
        "--dns-name=db.internal=192.0.2.77",
        "--dns-name=db.internal=2001:db8::77",
    ]);
    let dig =
        |kind| instance.client(&["enter", "dig", "+short", "+tries=1", "@10.0.42.3", kind, "db.internal"]);
    assert_eq!(dig("A"), "192.0.2.77");
    assert_eq!(dig("AAAA"), "2001:db8::77");
    instance.client(&["dns", "set", "--no-names"]);
    assert_ne!(dig("A"), "192.0.2.77");
}

#[test]
fn a_capture_is_read_by_tcpdump() {
    let (world, instance) = lab(&[]);
    let _server = Server::start(world.host.listen(&format!("{SERVICE4}:7000")), Serve::Echo);
    let file = world.dir().join("frames.pcap");
    let path = file.to_str().unwrap();
    instance.client(&["capture", "start", path]);
    let again = instance.refusal(&["capture", "start", path]);
    assert!(again.contains("a capture runs already"), "{again}");
    drop(instance.child(&world).connect(&format!("{SERVICE4}:7000")).unwrap());
    instance.until(&["capture", "status"], |status| !status.contains(" 0 frames"));
    let stopped = instance.client(&["capture", "stop"]);
    assert!(stopped.contains("no capture runs"), "{stopped}");
    // Outside, where it does not take itself for root.
    let mut tcpdump = Command::new(locate::program("tcpdump"));
    tcpdump.args(["-n", "-r", path, "tcp port 7000"]);
    let text = run(tcpdump).success().stdout;
    assert!(
        text.contains(&format!("{CHILD4}.")) && text.contains(&format!("> {SERVICE4}.7000: Flags [S]")),
        "{text}"
    );
}

#[test]
fn flows_and_counters_tell_what_happens() {
    let (world, instance) = lab(&[]);
    let _server = Server::start(world.host.listen(&format!("{SERVICE4}:7000")), Serve::Echo);
    let mut open = instance.child(&world).connect(&format!("{SERVICE4}:7000")).unwrap();
    open.write_all(&[7; 1000]).unwrap();
    open.read_exact(&mut [0; 1000]).unwrap();
    let flows = instance.client(&["flows", "--protocol=tcp", &format!("--remote={SERVICE4}:7000"), "--json"]);
    assert!(flows.contains("\"total\":1") && flows.contains("\"bytesFromChild\":1000"), "{flows}");
    assert!(flows.contains("\"bytesToChild\":1000"), "{flows}");
    assert!(
        instance
            .client(&["flows", "--protocol=udp", "--remote=192.0.2.99", "--json"])
            .contains("\"total\":0")
    );
    assert!(instance.client(&["stats", "--json"]).contains("\"tcpOpened\":1"));
    drop(open);
    instance.until(&["flows", "--protocol=tcp", "--json"], |flows| flows.contains("\"total\":0"));
}

// Entering.

#[test]
fn entering_joins_the_network_and_keeps_the_rest() {
    let (world, instance) = lab(&[]);
    let enter = |words: &[&str]| {
        let mut args = vec!["enter", "--"];
        args.extend(words);
        let mut command = instance.command(&args);
        command.current_dir(world.dir()).env("ANSWER", "42");
        run(command)
    };
    let addresses = enter(&["ip", "-o", "addr"]).success().stdout;
    assert!(addresses.contains("tap0") && addresses.contains(CHILD4), "{addresses}");
    let route = enter(&["ip", "route", "show", "default"]).success().stdout;
    assert!(route.contains(GATEWAY4), "{route}");
    let script = "pwd; echo $ANSWER $ROOTLESSKIT_STATE_DIR; id -u; exit 7";
    let told = enter(&["sh", "-c", script]);
    assert_eq!(told.status.code(), Some(7), "{}", told.describe());
    let expected =
        [world.dir().display().to_string(), format!("42 {}", instance.directory().display()), "0".into()];
    assert_eq!(told.stdout.lines().collect::<Vec<_>>(), expected);
    assert_eq!(enter(&["no-such-program"]).status.code(), Some(127));
    assert_eq!(enter(&["/etc/passwd"]).status.code(), Some(126));
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(enter(&["sh", "-c", "kill -TERM $$"]).status.signal(), Some(15));
}

#[test]
fn a_shell_inside_has_the_callers_terminal_and_ends_with_the_instance() {
    let (world, instance) = lab(&[]);
    let program = locate::rootless_launch().unwrap();
    let enter = format!("SHELL=/bin/sh exec {} enter", program.display());
    let mut terminal = Process::spawn(instance.foreign(&["script", "-qec", &enter, "/dev/null"]));
    terminal.tell("tty; ip -o addr show tap0; echo do''ne");
    terminal.wait_for_line("/dev/pts/");
    terminal.wait_for_line(CHILD4);
    terminal.wait_for_line("done");
    terminal.tell("exit 9");
    assert_eq!(terminal.finish().status.code(), Some(9));
    let mut left = Process::spawn(instance.command(&["enter", "sh", "-c", "echo here; read -r line"]));
    left.wait_for_line("here");
    let _ = instance.finish().success();
    assert!(!left.finish().status.success(), "it ends with the instance");
    drop(world);
}

// Prometheus.

/// Checks a page line by line as the specification of OpenMetrics wants it; returns the samples.
fn check_metrics(page: &str) -> Vec<(String, f64)> {
    let is_name = |name: &str| {
        !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
    };
    let lines: Vec<_> = page.lines().collect();
    assert_eq!(lines.last(), Some(&"# EOF"), "{page}");
    let (mut samples, mut family, mut seen) = (Vec::new(), (String::new(), String::new()), Vec::new());
    for line in &lines[..lines.len() - 1] {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (what, name, rest) = (
                words.next().expect("what and a name"),
                words.next().expect("what and a name"),
                words.next().unwrap_or(""),
            );
            assert!(is_name(name) && ["HELP", "TYPE", "UNIT"].contains(&what), "{line}");
            if name != family.0 {
                assert!(!seen.contains(&name.to_owned()), "a family comes in one piece: {line}");
                seen.push(name.to_owned());
                family = (name.to_owned(), String::new());
            }
            if what == "TYPE" {
                assert!(["counter", "gauge", "info", "histogram"].contains(&rest), "{line}");
                family.1 = rest.to_owned();
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
        let (name, labels) = series.split_once('{').map_or((series, ""), |(name, rest)| {
            (name, rest.strip_suffix('}').unwrap_or_else(|| panic!("{line}")))
        });
        for label in labels.split("\",").filter(|label| !label.is_empty()) {
            let (key, text) = label.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
            assert!(is_name(key) && !text.trim_end_matches('"').contains('"'), "{line}");
        }
        let suffix = if family.1 == "counter" { "_total" } else { "" };
        assert_eq!(name, format!("{}{suffix}", family.0), "{line}");
        assert!(value >= 0.0 && !samples.iter().any(|(other, _)| other == series), "{line}");
        samples.push((series.to_owned(), value));
    }
    samples
}

#[test]
fn counters_are_served_for_prometheus_on_the_socket_and_on_tcp() {
    let (world, instance) = lab(&["--metrics", "127.0.0.1:9100", "-p", "8080:80"]);
    let _server = Server::start(world.host.listen(&format!("{SERVICE4}:7000")), Serve::Echo);
    drop(instance.child(&world).connect(&format!("{SERVICE4}:7000")).unwrap());
    let answer = curl(&instance, &[], "/metrics");
    let (head, page) = answer.split_once("\n\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("application/openmetrics-text"), "{head}");
    let samples = check_metrics(page);
    let opened = samples.iter().find(|(name, _)| name == "rootless_launch_tcp_connections_total");
    assert_eq!(opened.map(|(_, value)| *value), Some(1.0), "{page}");
    let argv = ["curl", "--silent", "--fail", "http://127.0.0.1:9100/metrics"];
    assert_eq!(check_metrics(&run(instance.foreign(&argv)).success().stdout).len(), samples.len());
    // Nothing else is there for everybody on the machine.
    for path in ["/v1/info", "/v1/ports", "/"] {
        let url = format!("http://127.0.0.1:9100{path}");
        let code = run(instance.foreign(&["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", &url]));
        assert_eq!(code.success().stdout, "404", "{path}");
    }
    let second =
        Instance::running(&world, &world.dir().join("b"), &["--metrics", "9100"], &["true"]).finish();
    assert_eq!(second.status.code(), Some(2), "{}", second.describe());
}

// Bad clients.

#[test]
fn bad_requests_get_a_4xx_and_delay_nobody() {
    let (_world, instance) = lab(&["-p", "8080:80"]);
    let socket = instance.directory().join("api.sock");
    // Slow ones: half a request line, half a head, half a body.
    let slow: Vec<_> = [
        "GE",
        "GET /v1/info HTTP/1.1\r\nHost: x\r\n",
        "POST /v1/ports HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
    ]
    .iter()
    .cycle()
    .take(30)
    .map(|text| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    })
    .collect();
    // Some that vanish in the middle of an answer.
    for _ in 0..50 {
        let mut stream = UnixStream::connect(&socket).unwrap();
        // At its limit of connections the server may have closed this one already.
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    // Those are noticed one after the other; until then they count as connections.
    eventually("the server has places again", || {
        curl(&instance, &[], "/v1/info").starts_with("HTTP/1.1 200")
    });
    let huge = "x".repeat(4 << 20);
    let file = instance.directory().with_extension("huge");
    fs::write(&file, &huge).unwrap();
    let upload = format!("@{}", file.display());
    let post = |body: &str, path: &str| {
        curl(&instance, &["--header", "Expect:", "--request", "POST", "--data-binary", body], path)
    };
    for (answer, status) in [
        (post("{", "/v1/ports"), "400"),
        (post("[]", "/v1/ports"), "400"),
        (post(r#"{"proto":"tcp","parentPort":70000,"childPort":1}"#, "/v1/ports"), "400"),
        (post(r#"{"proto":"sctp","parentPort":70,"childPort":1}"#, "/v1/ports"), "400"),
        (post(&upload, "/v1/ports"), "413"),
        (curl(&instance, &["--request", "PATCH"], "/v1/ports"), "405"),
        (curl(&instance, &["--request", "BREW"], "/v1/info"), "405"),
        (curl(&instance, &["--request", "DELETE"], "/v1/ports/99"), "400"),
        (curl(&instance, &[], "/v2/info"), "404"),
    ] {
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{status}: {answer}");
        assert!(answer.contains("{\"message\":"), "{answer}");
    }
    // Many at once, each answered.
    let many: Vec<_> = (0..20).map(|_| Process::spawn(instance.command(&["port", "list"]))).collect();
    for process in many {
        assert!(process.finish().success().stdout.contains("8080"));
    }
    drop(slow);
    let _ = instance.finish().success();
}

#[test]
fn a_launcher_that_is_told_to_end_does_not_wait_for_clients() {
    let world = World::new();
    let directory = world.dir().join("state");
    let instance = Instance::running(&world, &directory, &["-p", "8080:80"], &["sleep", "1000"]);
    eventually("it becomes ready", || directory.join("child_pid").exists());
    let mut watch = Process::spawn(instance.command(&["port", "watch"]));
    watch.wait_for_line("added");
    let mut idle = UnixStream::connect(directory.join("api.sock")).unwrap();
    idle.write_all(b"GET /v1/").unwrap();
    let begin = Instant::now();
    instance.process.signal(Signal::SIGTERM);
    use std::os::unix::process::ExitStatusExt;
    let finished = instance.process.finish();
    assert_eq!(finished.status.signal(), Some(15), "as the command ended: {}", finished.describe());
    assert!(begin.elapsed() < DEADLINE / 2, "nobody was waited for");
    assert_eq!(finished.stderr, "");
    let _ = watch.finish();
    idle.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(idle.read(&mut [0; 64]).unwrap_or(0), 0);
    assert!(!directory.exists());
}
