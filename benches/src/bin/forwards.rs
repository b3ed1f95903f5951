//! Published ports: ours, pasta's, RootlessKit's and none (a veth pair) on the same machine in the same run, and the bars.
//!
//! The server is in the child, the client on the host. It comes by the host's loopback, or by another of the host's addresses, which is
//! the one that the server has to see where the client's address is kept.

use benches::{
    bars::{Bars, Verdict, difference, ratio},
    comparison::{Column as _, Comparison, Lab, Options, print_head},
    measure::{Sample, engine_cpu, engine_resident, iperf_length, line_with},
};
use clap::Parser;
use std::{
    cell::Cell,
    fs,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, UdpSocket},
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};
use tests::{
    engine as lab_engine, locate,
    process::{DEADLINE, Finished, Process, run},
    servers::{Serve, Server, udp_echo},
    session::{RUNTIME_DIR, Session},
    world::{SERVICE4, World},
};

/// Compare the published ports of rootless-launch with those of pasta and RootlessKit.
#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    TcpToChild,
    TcpToClient,
    TcpRr,
    TcpCrr,
    UdpToChild,
    UdpToClient,
    UdpRr,
    MemoryIdle,
    Memory5000,
    Add1000,
    Remove1000,
}

impl Row {
    const ALL: [Self; 11] = [
        Self::TcpToChild,
        Self::TcpToClient,
        Self::TcpRr,
        Self::TcpCrr,
        Self::UdpToChild,
        Self::UdpToClient,
        Self::UdpRr,
        Self::MemoryIdle,
        Self::Memory5000,
        Self::Add1000,
        Self::Remove1000,
    ];
}

impl benches::comparison::Row for Row {
    fn name(self) -> String {
        match self {
            Self::TcpToChild => "TCP client->child, Gb/s (engine CPU s/GB)",
            Self::TcpToClient => "TCP child->client, Gb/s (engine CPU s/GB)",
            Self::TcpRr => "TCP RR, 1/s (engine CPU us each)",
            Self::TcpCrr => "TCP CRR, 1/s (engine CPU us each)",
            Self::UdpToChild => "UDP 1400 B client->child, Gb/s received",
            Self::UdpToClient => "UDP 1400 B child->client, Gb/s received",
            Self::UdpRr => "UDP RR, 1/s (engine CPU us each)",
            Self::MemoryIdle => "RSS of all processes, idle, MB",
            Self::Memory5000 => "RSS of all processes, 5,000 idle connections, MB",
            Self::Add1000 => "1,000 forwards added, ms",
            Self::Remove1000 => "1,000 forwards removed, ms",
        }
        .to_owned()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Engine {
    Veth,
    Pasta,
    /// RootlessKit's own port driver, `builtin`.
    Builtin,
    /// slirp4netns's port forwarding, driven by RootlessKit.
    Hostfwd,
    Ours,
}

/// Where the client connects to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Client {
    Loopback,
    Address,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Column {
    engine: Engine,
    client: Client,
}

impl Column {
    const VETH: Self = Self { engine: Engine::Veth, client: Client::Address };
    /// Its shortcut: two sockets and splice(2).
    const PASTA_SPLICE: Self = Self { engine: Engine::Pasta, client: Client::Loopback };
    const PASTA_TAP: Self = Self { engine: Engine::Pasta, client: Client::Address };
    const BUILTIN: Self = Self { engine: Engine::Builtin, client: Client::Loopback };
    const HOSTFWD: Self = Self { engine: Engine::Hostfwd, client: Client::Loopback };
    const OURS_LOOPBACK: Self = Self { engine: Engine::Ours, client: Client::Loopback };
    const OURS_KEPT: Self = Self { engine: Engine::Ours, client: Client::Address };
    const ALL: [Self; 7] = [
        Self::VETH,
        Self::PASTA_SPLICE,
        Self::PASTA_TAP,
        Self::BUILTIN,
        Self::HOSTFWD,
        Self::OURS_LOOPBACK,
        Self::OURS_KEPT,
    ];

    /// The address that the client connects to.
    fn address(self) -> &'static str {
        match (self.engine, self.client) {
            (Engine::Veth, _) => "10.0.2.100",
            (_, Client::Loopback) => "127.0.0.1",
            (_, Client::Address) => SERVICE4,
        }
    }
}

impl benches::comparison::Column for Column {
    fn name(self) -> String {
        match self {
            Self::VETH => "veth",
            Self::PASTA_SPLICE => "pasta, loopback (splice)",
            Self::PASTA_TAP => "pasta, address kept (TAP)",
            Self::BUILTIN => "rootlesskit builtin",
            Self::HOSTFWD => "rootlesskit slirp4netns",
            Self::OURS_LOOPBACK => "rootless-launch, loopback",
            _ => "rootless-launch, address kept",
        }
        .to_owned()
    }

    fn is_ours(self) -> bool {
        self.engine == Engine::Ours
    }
}

fn main() -> ExitCode {
    if let Some(code) = benches::be_the_probe() {
        return code;
    }
    let args = std::env::args().collect::<Vec<_>>();
    if let ["serve", port, connections] = args.iter().skip(1).map(String::as_str).collect::<Vec<_>>()[..] {
        return match serve(port, connections) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("serve: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let options = Cli::parse().options.settled();
    let mut ground = Ground::new(&options);
    let (columns, absent): (Vec<_>, Vec<_>) =
        Column::ALL.into_iter().partition(|column| ground.has(column.engine));
    let mut comparison = Comparison::new(&options, &Row::ALL, &columns);
    comparison.run(&options, &mut ground);
    print_head(&options, &absent.iter().map(|column| column.name()).collect::<Vec<_>>());
    comparison.print();
    let bars = print_bars(&comparison);
    comparison.exit_code(&options, bars)
}

fn print_bars(comparison: &Comparison<Row, Column>) -> Verdict {
    let value = |row, column| comparison.value(row, column);
    let (ours, pasta) = (Column::OURS_KEPT, Column::PASTA_SPLICE);
    let mut bars = Bars::default();
    for (row, way) in [(Row::TcpToChild, "client->child"), (Row::TcpToClient, "child->client")] {
        let own = value(row, ours);
        bars.at_least(
            &format!("TCP {way}, address kept / pasta's splice"),
            ratio(own, value(row, pasta)),
            0.95,
        );
        bars.at_least(
            &format!("TCP {way}, address kept / RootlessKit builtin"),
            ratio(own, value(row, Column::BUILTIN)),
            1.3,
        );
        bars.at_most(
            &format!("TCP {way}, address kept, engine CPU per GB / pasta's splice"),
            ratio(comparison.cpu(row, ours), comparison.cpu(row, pasta)),
            1.0,
        );
    }
    let over = |row, peer| ratio(value(row, ours), value(row, peer));
    bars.at_least("TCP RR, address kept / RootlessKit builtin", over(Row::TcpRr, Column::BUILTIN), 1.3);
    bars.at_least("TCP CRR, address kept / pasta's splice", over(Row::TcpCrr, pasta), 1.0);
    bars.at_least("TCP CRR, address kept / RootlessKit builtin", over(Row::TcpCrr, Column::BUILTIN), 2.5);
    // Like with like: pasta has a shortcut for clients on the loopback here too.
    for (client, ours, pasta) in [
        ("address kept", Column::OURS_KEPT, Column::PASTA_TAP),
        ("loopback", Column::OURS_LOOPBACK, Column::PASTA_SPLICE),
    ] {
        for (row, way) in [(Row::UdpToChild, "client->child"), (Row::UdpToClient, "child->client")] {
            let over_pasta = ratio(value(row, ours), value(row, pasta));
            bars.at_least(&format!("UDP {way}, {client} / pasta, same client"), over_pasta, 1.5);
        }
        let over_pasta = ratio(value(Row::UdpRr, ours), value(Row::UdpRr, pasta));
        bars.at_least(&format!("UDP RR, {client} / pasta, same client"), over_pasta, 1.0);
    }
    let more = difference(value(Row::Memory5000, ours), value(Row::MemoryIdle, ours));
    bars.at_most("RSS of 5,000 idle forwarded connections, MB more", more, 12.0);
    bars.at_most("1,000 forwards added, ms", value(Row::Add1000, ours), 1000.0);
    bars.at_most("1,000 forwards removed, ms", value(Row::Remove1000, ours), 1000.0);
    bars.print()
}

/// The host, and the login on it that RootlessKit needs.
struct Ground {
    place: Place,
    seconds: f64,
    idle_connections: usize,
    forwards: u16,
    /// Every child has ports of its own: nothing that an earlier one left behind is in the way.
    port: Cell<u16>,
}

enum Place {
    Session(Box<Session>),
    World(Box<World>),
}

/// A child with its servers behind an engine that publishes their ports.
struct Running {
    process: Process,
    address: &'static str,
    echo: u16,
    hold: u16,
    iperf: u16,
    state_dir: String,
}

impl Ground {
    fn new(options: &Options) -> Self {
        let session = Session::new().map(|session| Place::Session(Box::new(session)));
        let place = session.unwrap_or_else(|_| Place::World(Box::new(World::new())));
        let (idle_connections, forwards) = if options.smoke { (500, 100) } else { (5000, 1000) };
        let ground =
            Self { place, seconds: options.seconds, idle_connections, forwards, port: Cell::new(10_000) };
        // A client that has closed waits for a minute; there have to be ports left for the others.
        ground.world().host.sysctl("net/ipv4/ip_local_port_range", "32768 65535");
        ground
    }

    fn world(&self) -> &World {
        match &self.place {
            Place::Session(session) => session.world(),
            Place::World(world) => world,
        }
    }

    fn has(&self, engine: Engine) -> bool {
        match engine {
            Engine::Veth => true,
            Engine::Pasta => lab_engine::Engine::Pasta.is_present(),
            Engine::Builtin | Engine::Hostfwd => {
                matches!(self.place, Place::Session(_))
                    && locate::find_program("rootlesskit").is_some()
                    && locate::find_program("slirp4netns").is_some()
            }
            Engine::Ours => lab_engine::Engine::Ours.is_present(),
        }
    }

    /// Returns when the published servers answer.
    fn start(&self, column: Column) -> Running {
        let echo = self.port.replace(self.port.get() + PORTS);
        let ports = format!("{echo}-{}", echo + PORTS - 1);
        let state_dir = format!("{}/{echo}", self.world().dir().display());
        let me = std::env::current_exe().expect("/proc is mounted").to_string_lossy().into_owned();
        let (port, connections) = (echo.to_string(), self.idle_connections.to_string());
        let serve = [me.as_str(), "serve", &port, &connections];
        let mut process = match column.engine {
            Engine::Veth => self.world().launch(&lab_engine::Engine::Veth.launch(), &serve),
            Engine::Ours => {
                let (tcp, udp) = (format!("-p{ports}:{echo}/tcp"), format!("-p{ports}:{echo}/udp"));
                let options = ["--state-dir", &state_dir, &tcp, &udp];
                self.world().launch(&lab_engine::Engine::Ours.launch().args(&options), &serve)
            }
            Engine::Pasta => {
                let pasta = locate::program("pasta").to_string_lossy().into_owned();
                let mut argv = vec![pasta.as_str(), "--quiet", "--config-net", "-t", &ports, "-u", &ports];
                argv.extend(["-T", "none", "-U", "none", "--"]);
                argv.extend(serve);
                match &self.place {
                    // The world's root with more than one id is root for pasta, and loses its rights.
                    Place::Session(session) => session.spawn(&argv),
                    Place::World(world) => Process::spawn(world.host.program(&argv)),
                }
            }
            Engine::Builtin => self.rootlesskit("builtin", echo, &serve),
            Engine::Hostfwd => self.rootlesskit("slirp4netns", echo, &serve),
        }
        .within(Duration::from_secs(120));
        process.wait_for_line("ready=1");
        let address = column.address();
        self.wait_until_published(&format!("{address}:{echo}"));
        let peer = process.wait_for_line("peer=");
        if column == Column::OURS_KEPT {
            assert_eq!(peer, format!("peer={SERVICE4}"), "the server sees the client's address");
        }
        Running { process, address, echo, hold: echo + 1, iperf: echo + 2, state_dir }
    }

    fn rootlesskit(&self, driver: &str, first: u16, command: &[&str]) -> Process {
        let Place::Session(session) = &self.place else { panic!("rootlesskit needs a login") };
        let slirp4netns = locate::program("slirp4netns");
        let mut argv = vec![
            "rootlesskit".to_owned(),
            format!("--state-dir={RUNTIME_DIR}/rootlesskit-{first}"),
            "--net=slirp4netns".to_owned(),
            format!("--slirp4netns-binary={}", slirp4netns.display()),
            "--copy-up=/etc".to_owned(),
            format!("--port-driver={driver}"),
        ];
        for port in first..first + PORTS {
            argv.extend(["tcp", "udp"].map(|proto| format!("--publish=127.0.0.1:{port}:{port}/{proto}")));
        }
        argv.extend(command.iter().map(ToString::to_string));
        session.spawn(&argv.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Asks the echo servers until they answer: RootlessKit publishes while the command runs already.
    fn wait_until_published(&self, address: &str) {
        let deadline = Instant::now() + DEADLINE;
        while !(self.tcp_answers(address).is_ok() && self.udp_answers(address).is_ok()) {
            assert!(Instant::now() < deadline, "nobody answers at {address}");
        }
    }

    fn tcp_answers(&self, address: &str) -> io::Result<()> {
        let mut stream = self.world().host.connect(address)?;
        stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])
    }

    fn udp_answers(&self, address: &str) -> io::Result<()> {
        let socket = self.world().host.udp("0.0.0.0:0");
        socket.connect(address)?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        socket.send(b"x")?;
        socket.recv(&mut [0]).map(drop)
    }

    /// Runs a client on the host; the engine's CPU seconds meanwhile, where there is an engine.
    fn client(&self, column: Column, running: &Running, command: Command) -> (Finished, Option<f64>) {
        let before = engine_cpu(&running.process);
        let finished = run(command);
        let cpu = engine_cpu(&running.process) - before;
        (finished, (column.engine != Engine::Veth).then_some(cpu))
    }

    fn iperf(&self, column: Column, args: &[&str]) -> Sample {
        let running = self.start(column);
        let (port, length) = (running.iperf.to_string(), iperf_length(self.seconds, args));
        let mut argv = vec!["iperf3", "-J", "-c", running.address, "-p", &port, &length];
        argv.extend(args);
        let (finished, cpu) = self.client(column, &running, self.world().host.program(&argv));
        running.end();
        Sample::of_iperf(&finished.stdout, cpu)
    }

    fn transactions(&self, column: Column, which: &str) -> Sample {
        let running = self.start(column);
        let seconds = self.seconds.to_string();
        let argv = locate::probe_argv(&[which, running.address, &running.echo.to_string(), &seconds]);
        let (finished, cpu) = self.client(column, &running, self.world().host.command(&argv));
        running.end();
        Sample::of_transactions(&line_with(finished, "per_second="), cpu)
    }

    /// Open connections that carry nothing, and what all of the engine's processes hold meanwhile.
    fn memory(&self, column: Column) -> Vec<(Row, Sample)> {
        let mut running = self.start(column);
        let resident = |process: &Process| Sample::plain(engine_resident(process).iter().sum());
        let idle = resident(&running.process);
        let count = self.idle_connections.to_string();
        let argv = locate::probe_argv(&["idle", &count, running.address, &running.hold.to_string()]);
        let mut client = Process::spawn(self.world().host.command(&argv));
        client.wait_for_line("open=");
        running.process.wait_for_line("held=");
        let full = resident(&running.process);
        client.tell("close");
        client.close_stdin();
        let _ = client.finish().success();
        running.end();
        vec![(Row::MemoryIdle, idle), (Row::Memory5000, full)]
    }

    /// Half of them TCP, half UDP, by one call of the command line tool each way.
    fn change_forwards(&self, column: Column) -> Vec<(Row, Sample)> {
        let running = self.start(column);
        let specs = (0..self.forwards).map(|n| {
            let (port, proto) = (FREE_PORTS + n / 2, if n % 2 == 0 { "tcp" } else { "udp" });
            format!("127.0.0.1:{port}:{port}/{proto}")
        });
        let call = |verb: &str, names: &[String]| {
            let program = locate::rootless_launch().expect("it runs already");
            let words = [&program.to_string_lossy(), "port", verb, "--state-dir", &running.state_dir];
            let mut argv = words.map(ToString::to_string).to_vec();
            argv.extend(names.iter().cloned());
            let command = self.world().host.command(&argv);
            let begin = Instant::now();
            let finished = run(command).success();
            (finished, Sample::plain(begin.elapsed().as_secs_f64() * 1e3))
        };
        let (added, adding) = call("add", &specs.collect::<Vec<_>>());
        let ids = added.stdout.lines().filter_map(|line| Some(line.split_once('\t')?.0.to_owned()));
        let ids = ids.collect::<Vec<_>>();
        assert_eq!(ids.len(), usize::from(self.forwards), "{}", added.describe());
        let (_, removing) = call("remove", &ids);
        running.end();
        vec![(Row::Add1000, adding), (Row::Remove1000, removing)]
    }
}

impl Lab for Ground {
    type Row = Row;
    type Column = Column;

    fn measures(&self, row: Row, column: Column) -> bool {
        match row {
            // Measured with the row before.
            Row::Memory5000 | Row::Remove1000 => false,
            // slirp4netns has not the descriptors for so many; pasta keeps no state but tables of fixed size, and loses some of a burst.
            Row::MemoryIdle => matches!(column.engine, Engine::Builtin | Engine::Ours),
            Row::Add1000 => column == Column::OURS_KEPT,
            _ => true,
        }
    }

    fn measure(&mut self, row: Row, column: Column) -> Vec<(Row, Sample)> {
        let sample = match row {
            Row::TcpToChild => self.iperf(column, &[]),
            Row::TcpToClient => self.iperf(column, &["-R"]),
            Row::UdpToChild => self.iperf(column, &["-u", "-b0", "-l1400"]),
            Row::UdpToClient => self.iperf(column, &["-u", "-b0", "-l1400", "-R"]),
            Row::TcpRr => self.transactions(column, "rr"),
            Row::TcpCrr => self.transactions(column, "crr"),
            Row::UdpRr => self.transactions(column, "udp-rr"),
            Row::MemoryIdle | Row::Memory5000 => return self.memory(column),
            Row::Add1000 | Row::Remove1000 => return self.change_forwards(column),
        };
        vec![(row, sample)]
    }
}

impl Running {
    fn end(mut self) {
        self.process.close_stdin();
        // Some peers do not pass the end on; they are killed.
        let _ = self.process.ends_before(Instant::now() + Duration::from_secs(2));
    }
}

/// Ports of a child: echo (TCP and UDP), hold, iperf3.
const PORTS: u16 = 3;
/// From here on nobody has any.
const FREE_PORTS: u16 = 30_000;

/// The servers of a child, until standard input ends.
fn serve(port: &str, connections: &str) -> io::Result<()> {
    let invalid = |_| io::Error::from(ErrorKind::InvalidInput);
    let port = port.parse::<u16>().map_err(invalid)?;
    let connections = connections.parse::<usize>().map_err(invalid)?;
    // As on the host; a socket that leaves BBR by an option goes on pacing.
    fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "reno")?;
    let any = |port| SocketAddr::from(([0, 0, 0, 0], port));
    let echo = listen(any(port))?;
    for _ in 0..ECHOES {
        let echo = echo.try_clone()?;
        thread::spawn(move || while echo_once(&echo).is_ok() {});
    }
    let _udp = udp_echo(UdpSocket::bind(any(port))?);
    let hold = Server::start(listen(any(port + 1))?, Serve::Hold);
    thread::spawn(move || {
        for _ in 0..connections {
            let _ = hold.accepted();
        }
        println!("held={connections}");
        thread::park();
    });
    let mut iperf = Command::new(locate::program("iperf3"));
    iperf.args(["-s", "-p", &(port + 2).to_string(), "--forceflush"]);
    let mut iperf = iperf.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut output = io::BufReader::new(iperf.stdout.take().ok_or(ErrorKind::BrokenPipe)?);
    let mut line = String::new();
    while !line.contains("Server listening") {
        line.clear();
        if io::BufRead::read_line(&mut output, &mut line)? == 0 {
            return Err(io::Error::other("iperf3 does not listen"));
        }
    }
    thread::spawn(move || io::copy(&mut output, &mut io::sink()));
    println!("ready=1");
    io::stdin().lock().read_to_end(&mut Vec::new())?;
    iperf.kill()?;
    iperf.wait().map(drop)
}

/// A listener whose queue takes bursts: what does not fit, the kernel may lose without telling the client.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(4096)?)?;
    Ok(listener)
}

/// One thread would do, if every engine closed every connection.
const ECHOES: usize = 4;

/// Serves one connection, without a thread of its own: the engine is what is measured.
fn echo_once(listener: &TcpListener) -> io::Result<()> {
    let (mut stream, peer) = listener.accept()?;
    static FIRST: std::sync::Once = std::sync::Once::new();
    FIRST.call_once(|| println!("peer={}", peer.ip()));
    stream.set_nodelay(true)?;
    let mut buffer = [0; 4096];
    // How a connection ends is not our business.
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    Ok(())
}
