//! TCP over real distances: ours, slirp4netns, pasta and none (a veth pair) over the same long, lossy line, and the bars.
//!
//! The far end is behind an emulated line on the host's side of the engine: child, engine, host, line, far. The line carries 1 Gb/s (or what
//! `--rate` says) each way with a queue of one bandwidth-delay product, and in one run the n-th segment meets the same luck whoever sent it.
//! Everybody uses reno, the one congestion control that an unprivileged namespace may choose everywhere, and nobody remembers the path.

use benches::{
    bars::{Bars, Verdict, ratio},
    comparison::{Column as _, Comparison, Options, print_head},
    measure::Sample,
};
use clap::Parser;
use std::{
    cell::Cell,
    collections::BTreeMap,
    fmt, fs,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::ExitCode,
    str::FromStr,
    thread,
    time::{Duration, Instant},
};
use tests::{
    engine::{Engine, Launch},
    link::LinkConfig,
    process::Process,
    world::{FAR4, HOST4, Uplink, World, WorldConfig},
};

/// Compare TCP through rootless-launch with slirp4netns, pasta and veth over long and lossy lines.
#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
    /// Megabits per second that the line carries each way
    #[arg(long, default_value_t = 1000)]
    rate: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    what: What,
    /// Round trip time of the line.
    rtt_ms: u64,
    loss_ppm: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    ToFar,
    ToChild,
    /// A message of so many bytes each way, one after the other: are the last of them held back?
    Messages(usize),
}

impl Row {
    fn all() -> Vec<Self> {
        let mut rows = Vec::new();
        for what in [What::ToFar, What::ToChild] {
            for rtt_ms in [0, 1, 10, 50, 100] {
                rows.extend([0, 100, 1000, 10_000].map(|loss_ppm| Self { what, rtt_ms, loss_ppm }));
            }
        }
        for bytes in MESSAGES {
            rows.extend([1, 50].map(|rtt_ms| Self { what: What::Messages(bytes), rtt_ms, loss_ppm: 0 }));
        }
        rows
    }

    /// Those of `--smoke`.
    fn few() -> Vec<Self> {
        let row = |what, loss_ppm| Self { what, rtt_ms: 10, loss_ppm };
        vec![row(What::ToFar, 1000), row(What::ToChild, 1000), row(What::Messages(MESSAGES[0]), 0)]
    }

    /// One direction of the line; the directions have luck of their own.
    fn line(self, rate: u64, seed: u64) -> LinkConfig {
        let rate = rate * 1_000_000 / 8;
        let queue = usize::try_from(rate * self.rtt_ms / 1000).expect("fits").max(LEAST_QUEUE);
        let delay = Duration::from_millis(self.rtt_ms) / 2;
        LinkConfig { delay, loss_ppm: self.loss_ppm, rate: Some(rate), queue, seed, ..LinkConfig::default() }
    }
}

impl benches::comparison::Row for Row {
    fn name(self) -> String {
        let Self { what, rtt_ms, loss_ppm } = self;
        let loss = f64::from(loss_ppm) / 1e4;
        match what {
            What::ToFar => format!("child->far {rtt_ms} ms {loss} %, Mb/s"),
            What::ToChild => format!("far->child {rtt_ms} ms {loss} %, Mb/s"),
            What::Messages(bytes) => format!("{bytes} bytes each way {rtt_ms} ms {loss} %, ms"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Column {
    Veth,
    Slirp4netns,
    Pasta,
    /// Ours, packets by the TAP.
    Tap,
    /// Ours, sockets joined on the way out.
    Relay,
    /// Ours, sockets joined on the way in: a published port.
    Published,
}

impl Column {
    const ALL: [Self; 6] =
        [Self::Veth, Self::Slirp4netns, Self::Pasta, Self::Tap, Self::Relay, Self::Published];

    fn engine(self) -> Engine {
        match self {
            Self::Veth => Engine::Veth,
            Self::Slirp4netns => Engine::Slirp4netns,
            Self::Pasta => Engine::Pasta,
            Self::Tap | Self::Relay | Self::Published => Engine::Ours,
        }
    }

    fn launch(self) -> Launch {
        let launch = self.engine().launch();
        match self {
            Self::Tap => launch.args(&["--egress=tap"]),
            Self::Relay => launch.args(&["--egress=relay"]),
            _ => launch,
        }
    }

    fn is_present(self) -> bool {
        self.engine().is_present()
    }
}

impl benches::comparison::Column for Column {
    fn name(self) -> String {
        match self {
            Self::Veth | Self::Slirp4netns | Self::Pasta => self.engine().name(),
            Self::Tap => "rootless-launch, TAP",
            Self::Relay => "rootless-launch, relay",
            Self::Published => "rootless-launch, published",
        }
        .to_owned()
    }

    fn is_ours(self) -> bool {
        self.engine() == Engine::Ours
    }
}

fn main() -> ExitCode {
    if let Some(code) = benches::be_the_probe() {
        return code;
    }
    let args = std::env::args().skip(1).collect::<Vec<_>>();
    if let ["end", opening, address, task, seconds] = args.iter().map(String::as_str).collect::<Vec<_>>()[..]
    {
        return match be_the_child(opening, address, task, seconds) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{args:?}: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let Cli { options, rate } = Cli::parse();
    let options = options.settled();
    let (columns, absent): (Vec<_>, Vec<_>) = Column::ALL.into_iter().partition(|column| column.is_present());
    let rows = if options.smoke { Row::few() } else { Row::all() };
    let mut comparison = Comparison::new(&options, &rows, &columns);
    comparison.run(&options, &mut Lab::new(&options, rate));
    print_head(&options, &absent.iter().map(|column| column.name()).collect::<Vec<_>>());
    println!("a line of {rate} Mb/s; each measurement takes {START_RTTS} round trips more\n");
    comparison.print();
    let bars = print_bars(&comparison);
    comparison.exit_code(&options, bars)
}

fn print_bars(comparison: &Comparison<Row, Column>) -> Verdict {
    let mut bars = Bars::default();
    for (column, name) in [(Column::Tap, "TAP"), (Column::Relay, "relay"), (Column::Published, "published")] {
        let over_veth = |row| ratio(comparison.value(row, column), comparison.value(row, Column::Veth));
        for (what, way) in [(What::ToFar, "child->far"), (What::ToChild, "far->child")] {
            let row = Row { what, rtt_ms: 50, loss_ppm: 1000 };
            bars.at_least(&format!("{way}, 50 ms, 0.1 %, {name} / veth"), over_veth(row), 0.9);
        }
        for bytes in MESSAGES {
            let row = Row { what: What::Messages(bytes), rtt_ms: 50, loss_ppm: 0 };
            bars.at_most(&format!("{bytes} bytes each way, 50 ms, time, {name} / veth"), over_veth(row), 1.1);
        }
    }
    bars.print()
}

/// The world with its line, shared by all columns.
struct Lab {
    world: World,
    seconds: f64,
    rate: u64,
    /// How often a cell was measured: runs differ in their luck, columns do not.
    runs: BTreeMap<(Row, Column), u64>,
    /// Every child publishes a port of its own: nothing that an earlier one left behind is in the way.
    port: Cell<u16>,
}

impl Lab {
    fn new(options: &Options, rate: u64) -> Self {
        let line = LinkConfig::default;
        let world =
            World::with(&WorldConfig { uplink: Uplink::Emulated(line(), line()), ..WorldConfig::default() });
        for netns in [&world.host, &world.far] {
            netns.sysctl("net/ipv4/tcp_no_metrics_save", "1");
        }
        // For veth, whose child has no address that the far end knows.
        world.host.sysctl("net/ipv4/ip_forward", "1");
        world.router.ip(&format!("route add 10.0.2.0/24 via {HOST4}\n"));
        Self { world, seconds: options.seconds, rate, runs: BTreeMap::new(), port: Cell::new(10_000) }
    }

    /// Both ends and what they measure. The end in the child is a process, the other one a thread of ours.
    fn between_ends(&self, row: Row, column: Column) -> f64 {
        let me = std::env::current_exe().expect("/proc is mounted").to_string_lossy().into_owned();
        let seconds = self.seconds + (START_RTTS * row.rtt_ms) as f64 / 1e3;
        let (task, far_task) = match row.what {
            What::ToFar => (Task::Send, Task::Receive),
            What::ToChild => (Task::Receive, Task::Send),
            What::Messages(bytes) => (Task::Ask(bytes), Task::Answer(bytes)),
        };
        let (far, text) = (&self.world.far, seconds.to_string());
        let start = |opening: &str, address: &str, launch: &Launch| {
            let argv = [&me, "end", opening, address, &task.to_string(), &text];
            self.world.launch(launch, &argv).within(Duration::from_secs_f64(seconds + 60.0))
        };
        let (mut child, stream);
        if column == Column::Published {
            let port = self.port.replace(self.port.get() + 1);
            let launch = column.launch().args(&[&format!("-p{port}:{port}/tcp")]);
            child = start("listen", &format!("0.0.0.0:{port}"), &launch);
            child.wait_for_line("ready=1");
            stream = far.connect(&format!("{HOST4}:{port}")).expect("the port is published");
        } else {
            let listener = far.listen(&format!("{FAR4}:0"));
            let address = listener.local_addr().expect("a listener").to_string();
            child = start("connect", &address, &column.launch());
            stream = accept(&listener, &mut child).expect("the child connects");
        }
        let far = thread::spawn(move || far_task.perform(stream, seconds));
        let of_child = (task != Task::Send).then(|| child.wait_for_line("measured="));
        let of_far = of_child.is_none().then(|| far.join().expect("no panic").expect("the far end works"));
        drop(child);
        of_far.unwrap_or_else(|| {
            let line = of_child.unwrap_or_default();
            line.trim_start_matches("measured=").parse().expect("a number")
        })
    }
}

impl benches::comparison::Lab for Lab {
    type Row = Row;
    type Column = Column;

    fn measures(&self, _: Row, _: Column) -> bool {
        true
    }

    fn measure(&mut self, row: Row, column: Column) -> Vec<(Row, Sample)> {
        let run = self.runs.entry((row, column)).or_default();
        *run += 1;
        let line = |seed| row.line(self.rate, seed);
        let link = self.world.link().expect("the uplink is emulated");
        link.replace(line(2 * *run), line(2 * *run + 1));
        vec![(row, Sample::plain(self.between_ends(row, column)))]
    }
}

/// Accepts the one connection of `child`, or fails when it has ended.
fn accept(listener: &TcpListener, child: &mut Process) -> io::Result<TcpStream> {
    listener.set_nonblocking(true)?;
    while !tests::process::readable_before(listener, Instant::now() + Duration::from_millis(100)) {
        if child.ends_before(Instant::now()) {
            return Err(ErrorKind::BrokenPipe.into());
        }
    }
    let (stream, _) = listener.accept()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// What one end of the connection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Task {
    /// Writes until the other end is gone.
    Send,
    /// Reads for so many seconds from the first byte on: Mb/s.
    Receive,
    /// Sends a message and awaits one, again and again: median time in ms.
    Ask(usize),
    /// Sends a message for each that came.
    Answer(usize),
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Send => f.write_str("send"),
            Self::Receive => f.write_str("receive"),
            Self::Ask(bytes) => write!(f, "ask={bytes}"),
            Self::Answer(bytes) => write!(f, "answer={bytes}"),
        }
    }
}

impl FromStr for Task {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        let invalid = || io::Error::from(ErrorKind::InvalidInput);
        match text.split_once('=') {
            None if text == "send" => Ok(Self::Send),
            None if text == "receive" => Ok(Self::Receive),
            Some(("ask", bytes)) => bytes.parse().map(Self::Ask).map_err(|_| invalid()),
            Some(("answer", bytes)) => bytes.parse().map(Self::Answer).map_err(|_| invalid()),
            _ => Err(invalid()),
        }
    }
}

impl Task {
    /// What was measured; nothing by ends that only serve.
    fn perform(self, mut stream: TcpStream, seconds: f64) -> io::Result<f64> {
        let time = Duration::from_secs_f64(seconds);
        let mut buffer = vec![0; 256 << 10];
        stream.set_nodelay(true)?;
        match self {
            Self::Send => {
                while stream.write_all(&buffer).is_ok() {}
                Ok(f64::NAN)
            }
            Self::Receive => {
                stream.read_exact(&mut [0])?;
                // Silence has to end the measurement as well.
                stream.set_read_timeout(Some(Duration::from_millis(20)))?;
                let (begin, mut bytes) = (Instant::now(), 0);
                while begin.elapsed() < time {
                    match stream.read(&mut buffer) {
                        Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                        Ok(n) => bytes += n,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(bytes as f64 * 8.0 / 1e6 / begin.elapsed().as_secs_f64())
            }
            Self::Ask(bytes) => {
                buffer.resize(bytes, 0);
                let (begin, mut times) = (Instant::now(), Vec::new());
                while begin.elapsed() < time || times.is_empty() {
                    let asked = Instant::now();
                    stream.write_all(&buffer)?;
                    stream.read_exact(&mut buffer)?;
                    times.push(asked.elapsed().as_secs_f64() * 1e3);
                }
                Ok(benches::measure::median(&times))
            }
            Self::Answer(bytes) => {
                buffer.resize(bytes, 0);
                while stream.read_exact(&mut buffer).is_ok() {
                    stream.write_all(&buffer)?;
                }
                Ok(f64::NAN)
            }
        }
    }
}

/// The end in the child: opens the connection, performs and says what it measured.
fn be_the_child(opening: &str, address: &str, task: &str, seconds: &str) -> io::Result<()> {
    let invalid = || io::Error::from(ErrorKind::InvalidInput);
    let address = address.parse::<SocketAddr>().map_err(|_| invalid())?;
    let task = task.parse::<Task>()?;
    let seconds = seconds.parse().map_err(|_| invalid())?;
    // pasta forbids it; its child's TCP does not reach the line, and remembers nothing in a namespace that is new.
    let _ = fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "reno");
    let stream = if opening == "listen" {
        let listener = TcpListener::bind(address)?;
        println!("ready=1");
        listener.accept()?.0
    } else {
        TcpStream::connect(address)?
    };
    let measured = task.perform(stream, seconds)?;
    println!("measured={measured}");
    Ok(())
}

/// Bytes of the queue of a short line: a few super-segments.
const LEAST_QUEUE: usize = 256 << 10;
/// Round trips that slow start may take until the line is full.
const START_RTTS: u64 = 40;
/// Two windows of a fresh connection, and what every relay takes for bulk; no multiples of anything.
const MESSAGES: [usize; 2] = [30_001, 1_000_003];
