//! Ours, slirp4netns, pasta and veth on the same machine in the same run: one table, and the bars of the project with pass or fail.
//!
//! Every cell is measured in turn with the others (A B C A B C ..), so that drift of the machine hits all alike; a cell is the median
//! of the runs with the least and the greatest. Everything happens in namespaces of an ordinary user and nothing leaves the machine.

use clap::Parser;
use std::{
    collections::BTreeMap,
    fs,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};
use tests::{
    engine::{Engine, Launch},
    locate,
    process::{Process, run},
    servers::{Serve, Server, UdpServer, udp_echo},
    world::{SERVICE4, World},
};

/// Compare rootless-launch with slirp4netns, pasta and veth.
#[derive(Debug, Parser)]
struct Options {
    /// Runs per cell; the median is shown
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Length of one timed measurement in seconds
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Only rows whose name contains one of these
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only columns whose name contains one of these
    #[arg(long, value_delimiter = ',')]
    engines: Vec<String>,
    /// Print only the tables, no progress
    #[arg(long)]
    markdown: bool,
    /// Everything once and short, only veth and ours: does it still work?
    #[arg(long)]
    smoke: bool,
}

/// What one measurement says.
#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    value: f64,
    /// Engine CPU per unit of work, where it was measured.
    cpu: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    TcpToHost,
    TcpToChild,
    TcpRr,
    TcpRrBusy,
    TcpCrr,
    UdpRr,
    UdpToHost,
    UdpToChild,
    UdpSmall,
    RssIdle,
    Rss1000,
    Rss5000,
    RssAfter,
    LaunchTrue,
}

impl Row {
    const ALL: [Self; 14] = [
        Self::TcpToHost,
        Self::TcpToChild,
        Self::TcpRr,
        Self::TcpRrBusy,
        Self::TcpCrr,
        Self::UdpRr,
        Self::UdpToHost,
        Self::UdpToChild,
        Self::UdpSmall,
        Self::RssIdle,
        Self::Rss1000,
        Self::Rss5000,
        Self::RssAfter,
        Self::LaunchTrue,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::TcpToHost => "TCP child->host, Gb/s (engine CPU s/GB)",
            Self::TcpToChild => "TCP host->child, Gb/s (engine CPU s/GB)",
            Self::TcpRr => "TCP RR, 1/s (engine CPU us each)",
            Self::TcpRrBusy => "TCP RR with 10,000 idle flows, 1/s (engine CPU us each)",
            Self::TcpCrr => "TCP CRR, 1/s (engine CPU us each)",
            Self::UdpRr => "UDP RR, 1/s (engine CPU us each)",
            Self::UdpToHost => "UDP 1400 B child->host, Gb/s received",
            Self::UdpToChild => "UDP 1400 B host->child, Gb/s received",
            Self::UdpSmall => "UDP 64 B child->host, received/s",
            Self::RssIdle => "RSS idle, MB",
            Self::Rss1000 => "RSS 1,000 idle connections, MB",
            Self::Rss5000 => "RSS 5,000 idle connections, MB",
            Self::RssAfter => "RSS after closing them, MB",
            Self::LaunchTrue => "launch of `true`, ms",
        }
    }

    fn needs_fresh_engine(self) -> bool {
        matches!(self, Self::RssIdle | Self::Rss1000 | Self::Rss5000 | Self::RssAfter)
    }
}

/// A column: an engine with an MTU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Column {
    engine: Engine,
    mtu: u32,
}

impl Column {
    const ALL: [Self; 7] = [
        Self { engine: Engine::Veth, mtu: 1500 },
        Self { engine: Engine::Slirp4netns, mtu: 65520 },
        Self { engine: Engine::Slirp4netns, mtu: 1500 },
        Self { engine: Engine::Pasta, mtu: 65520 },
        Self { engine: Engine::Pasta, mtu: 1500 },
        Self { engine: Engine::Ours, mtu: 65520 },
        Self { engine: Engine::Ours, mtu: 1500 },
    ];

    fn name(self) -> String {
        format!("{} {}", self.engine.name(), self.mtu)
    }

    fn launch(self) -> Launch {
        self.engine.launch().mtu(self.mtu)
    }
}

type Table = BTreeMap<(Row, Column), Vec<Sample>>;

fn main() -> ExitCode {
    let args = std::env::args().collect::<Vec<_>>();
    let me = std::env::current_exe().expect("/proc is mounted");
    locate::use_as_probe(me, &["probe"]);
    if args.get(1).is_some_and(|word| word == "probe") {
        return tests::probe::main(args[2..].to_vec());
    }
    tests::probe::raise_descriptor_limit();
    let mut options = Options::parse();
    if options.smoke {
        (options.runs, options.seconds) = (1, 0.2);
        options.engines = vec!["veth".to_owned(), "rootless-launch".to_owned()];
    }
    let wanted =
        |name: &str, filter: &[String]| filter.is_empty() || filter.iter().any(|part| name.contains(part));
    let absent = Engine::ALL.into_iter().filter(|engine| !engine.is_present()).collect::<Vec<_>>();
    let columns = Column::ALL.into_iter().filter(|column| wanted(&column.name(), &options.engines));
    let columns = columns.filter(|column| !absent.contains(&column.engine)).collect::<Vec<_>>();
    let rows = Row::ALL.into_iter().filter(|row| wanted(row.name(), &options.only)).collect::<Vec<_>>();
    let lab = Lab::new(&options);
    let mut table = Table::new();
    let mut launcher = Vec::new();
    let mut failures = Vec::new();
    for run in 0..options.runs {
        for row in &rows {
            if *row == Row::LaunchTrue {
                launcher.extend(rootlesskit_true());
            }
            for column in &columns {
                if *row == Row::LaunchTrue && column.engine != Engine::Ours {
                    continue;
                }
                // The same fresh engine answers the four memory rows, in order.
                if row.needs_fresh_engine() && *row != first_memory_row(&rows) {
                    continue;
                }
                // The others need up to minutes to open them.
                if *row == Row::TcpRrBusy && !matches!(column.engine, Engine::Veth | Engine::Ours) {
                    continue;
                }
                if !options.markdown {
                    eprintln!("run {} of {}: {}, {}", run + 1, options.runs, row.name(), column.name());
                }
                let measured =
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| lab.measure(*row, *column)));
                match measured {
                    Ok(samples) => {
                        for (row, sample) in samples {
                            table.entry((row, *column)).or_default().push(sample);
                        }
                    }
                    Err(_) => failures.push((row.name(), column.name())),
                }
            }
        }
    }
    print_head(&options, &absent);
    print_table(&table, &rows, &columns);
    let bars = print_bars(&table, &launcher);
    for (row, column) in &failures {
        println!("failed: {row}, {column}");
    }
    // The peers may fail, that is theirs; ours may not.
    let ours_failed = failures.iter().any(|(_, column)| column.starts_with(Engine::Ours.name()));
    if ours_failed || (!options.smoke && bars == Verdict::Missed) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn first_memory_row(rows: &[Row]) -> Row {
    rows.iter().copied().find(|row| row.needs_fresh_engine()).unwrap_or(Row::RssIdle)
}

/// The world and its servers, shared by all columns.
struct Lab {
    world: World,
    echo: Server,
    udp: UdpServer,
    iperf: Process,
    seconds: f64,
    idle_flows: usize,
}

impl Lab {
    fn new(options: &Options) -> Self {
        let world = World::new();
        let any = format!("{SERVICE4}:0");
        let echo = Server::start(world.host.listen(&any), Serve::Echo);
        let udp = udp_echo(world.host.udp(&any));
        // Bound, or it answers UDP over veth from another of the host's addresses.
        let mut iperf = Process::spawn(world.host.program(&["iperf3", "-s", "-B", SERVICE4, "--forceflush"]))
            .within(Duration::from_secs(86_400));
        iperf.wait_for_line("Server listening");
        let idle_flows = if options.smoke { 500 } else { 10_000 };
        Self { world, echo, udp, iperf, seconds: options.seconds, idle_flows }
    }

    fn measure(&self, row: Row, column: Column) -> Vec<(Row, Sample)> {
        assert!(!self.iperf.ends_before(Instant::now()), "the iperf3 server is gone");
        let seconds = self.seconds.to_string();
        let sample = match row {
            Row::TcpToHost => self.iperf(column, &[]),
            Row::TcpToChild => self.iperf(column, &["-R"]),
            Row::UdpToHost => self.iperf(column, &["-u", "-b0", "-l1400"]),
            Row::UdpToChild => self.iperf(column, &["-u", "-b0", "-l1400", "-R"]),
            Row::UdpSmall => {
                let sample = self.iperf(column, &["-u", "-b0", "-l64"]);
                Sample { value: sample.value * 1e9 / 8.0 / 64.0, cpu: None }
            }
            Row::TcpRr => self.transactions(column, &["rr", SERVICE4, &self.echo.port(), &seconds]),
            Row::TcpCrr => {
                // A port of its own: the TIME-WAITs of the cell before would make the kernel search for free ones.
                let echo = Server::start(self.world.host.listen(&format!("{SERVICE4}:0")), Serve::Echo);
                self.transactions(column, &["crr", SERVICE4, &echo.port(), &seconds])
            }
            Row::UdpRr => self.transactions(column, &["udp-rr", SERVICE4, &self.udp.port(), &seconds]),
            Row::TcpRrBusy => {
                let (idle, hold) = (self.idle_flows.to_string(), self.hold());
                self.transactions(
                    column,
                    &["rr-among", &idle, SERVICE4, &hold.port(), &self.echo.port(), &seconds],
                )
            }
            Row::LaunchTrue => launch_true(column),
            Row::RssIdle | Row::Rss1000 | Row::Rss5000 | Row::RssAfter => return self.memory(column),
        };
        vec![(row, sample)]
    }

    /// iperf3 in the child against the one server; the engine's CPU time is that of the whole of it.
    fn iperf(&self, column: Column, args: &[&str]) -> Sample {
        // A shell waits for a line first and after, so that the engine's CPU can be read on a quiet, living process.
        // iperf3 takes whole seconds only.
        let time = self.seconds.max(1.0).ceil();
        let iperf = locate::program("iperf3").to_string_lossy().into_owned();
        // Reno as on the host, for the whole namespace: a socket that leaves BBR by an option goes on pacing.
        let script = format!(
            "echo reno >/proc/sys/net/ipv4/tcp_congestion_control; echo ready; read x; {iperf} -J -c {SERVICE4} -t {time} {} | tr -d '\\n'; echo; echo over; read x",
            args.join(" ")
        );
        let mut process =
            self.world.launch(&column.launch(), &["/bin/sh", "-c", &script]).within(Duration::from_secs(60));
        process.wait_for_line("ready");
        let before = engine_cpu(&process);
        process.tell("go");
        let json = process.wait_for_line("{");
        process.wait_for_line("over");
        let cpu = engine_cpu(&process) - before;
        process.tell("end");
        process.finish();
        let json: serde_json::Value = serde_json::from_str(&json).expect("iperf3 -J prints JSON");
        let udp = args.contains(&"-u");
        let sum = &json["end"][if udp { "sum" } else { "sum_received" }];
        let mut bits = sum["bits_per_second"].as_f64().unwrap_or_else(|| panic!("iperf3: {}", json["error"]));
        if udp {
            bits *= 1.0 - sum["lost_percent"].as_f64().unwrap_or(0.0) / 100.0;
        }
        let gigabytes = sum["bytes"].as_f64().unwrap_or(0.0) / 1e9;
        let has_engine = column.engine != Engine::Veth && !udp && gigabytes > 0.0;
        Sample { value: bits / 1e9, cpu: has_engine.then(|| cpu / gigabytes) }
    }

    fn transactions(&self, column: Column, args: &[&str]) -> Sample {
        let mut argv = locate::probe_argv(&["gate"]);
        argv.extend(args.iter().map(ToString::to_string));
        let argv = argv.iter().map(String::as_str).collect::<Vec<_>>();
        let mut process = self.world.launch(&column.launch(), &argv).within(Duration::from_secs(120));
        process.wait_for_line("ready=1");
        let before = engine_cpu(&process);
        process.tell("go");
        let line = process.wait_for_line("per_second=");
        let cpu = engine_cpu(&process) - before;
        process.close_stdin();
        process.finish();
        let value = |key: &str| {
            let word = line.split(' ').find_map(|word| word.strip_prefix(key)).expect("the probe prints it");
            word.parse::<f64>().expect("a number")
        };
        let per = cpu * 1e6 / value("transactions=").max(1.0);
        Sample { value: value("per_second="), cpu: (column.engine != Engine::Veth).then_some(per) }
    }

    /// A server of its own for each measurement: it keeps what it accepted until it is dropped.
    fn hold(&self) -> Server {
        Server::start(self.world.host.listen(&format!("{SERVICE4}:0")), Serve::Hold)
    }

    fn memory(&self, column: Column) -> Vec<(Row, Sample)> {
        if column.engine == Engine::Veth {
            return Vec::new();
        }
        let mut samples = Vec::new();
        let mut note = |row, megabytes| samples.push((row, Sample { value: megabytes, cpu: None }));
        for (row, n) in [(Row::Rss1000, "1000"), (Row::Rss5000, "5000")] {
            let hold = self.hold();
            let argv = locate::probe_argv(&["gate", "idle", n, SERVICE4, &hold.port()]);
            let argv = argv.iter().map(String::as_str).collect::<Vec<_>>();
            let mut process = self.world.launch(&column.launch(), &argv).within(Duration::from_secs(120));
            process.wait_for_line("ready=1");
            let idle = engine_rss(&process);
            process.tell("go");
            process.wait_for_line("open=");
            let full = engine_rss(&process);
            note(row, full);
            process.tell("close");
            process.wait_for_line("closed=1");
            // Both ends have to close before an engine may forget.
            drop(hold);
            if row == Row::Rss5000 {
                note(Row::RssIdle, idle);
                note(Row::RssAfter, least_rss(&process, Duration::from_secs(3), idle + 1.0));
            }
            process.close_stdin();
            process.finish();
        }
        samples
    }
}

/// Wall time of `rootless-launch -- true` in milliseconds.
fn launch_true(column: Column) -> Sample {
    // Straight from here, as RootlessKit is: both make their own user namespace.
    let argv = column.launch().argv(&["true"]);
    Sample { value: wall(&argv), cpu: None }
}

/// Wall time of the same by RootlessKit, where it runs.
fn rootlesskit_true() -> Option<f64> {
    let program = locate::find_program("rootlesskit")?;
    locate::find_program("slirp4netns")?;
    let mut argv = vec![program.to_string_lossy().into_owned()];
    argv.extend(["--net=slirp4netns", "--copy-up=/etc", "true"].map(String::from));
    let works = Command::new(&argv[0]).args(&argv[1..]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    works.is_ok_and(|status| status.success()).then(|| wall(&argv))
}

fn wall(argv: &[String]) -> f64 {
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]);
    let begin = Instant::now();
    let _ = run(command).success();
    begin.elapsed().as_secs_f64() * 1e3
}

/// User and system seconds of every process below (and including) the launcher that is not the command itself.
fn engine_cpu(process: &Process) -> f64 {
    let ticks: u64 =
        engine_processes(process).iter().map(|pid| stat(*pid).map_or(0, |stat| stat.ticks)).sum();
    // USER_HZ is 100 on every Linux this runs on.
    ticks as f64 / 100.0
}

/// Resident megabytes of the largest process of the engine.
fn engine_rss(process: &Process) -> f64 {
    let sizes = engine_processes(process).into_iter().filter_map(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().trim_end_matches(" kB").parse::<f64>().ok()
    });
    sizes.fold(0.0, f64::max) / 1024.0
}

/// The least resident size seen within `limit`, or the first one that is small enough.
fn least_rss(process: &Process, limit: Duration, enough: f64) -> f64 {
    let deadline = Instant::now() + limit;
    let mut least = engine_rss(process);
    while Instant::now() < deadline && least > enough {
        // Nothing tells when memory was given back; a bench may look again.
        let _ = process.ends_before(Instant::now() + Duration::from_millis(20));
        least = least.min(engine_rss(process));
    }
    least
}

struct Stat {
    parent: i32,
    ticks: u64,
    is_command: bool,
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything.
    let fields = text.rsplit_once(')')?.1.split_whitespace().collect::<Vec<_>>();
    let number = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
    let ticks = [11, 12, 13, 14].into_iter().filter_map(number).sum();
    let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = cmdline.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect::<Vec<_>>();
    // The command is the process whose own first words are those of the gate or of the shell.
    let is_command = words.first().is_some_and(|word| word == "/bin/sh")
        || (words.get(1).is_some_and(|word| word == "probe")
            && words.get(2).is_some_and(|word| word == "gate"));
    Some(Stat { parent: fields.get(1)?.parse().ok()?, ticks, is_command })
}

/// The processes of launcher and engine: all descendants of `process` and itself, without the command and what it started.
fn engine_processes(process: &Process) -> Vec<i32> {
    let all = fs::read_dir("/proc")
        .expect("/proc is mounted")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let stats = all.filter_map(|pid| Some((pid, stat(pid)?))).collect::<BTreeMap<_, _>>();
    let root = process.pid().as_raw();
    let belongs = |pid: i32| {
        let (mut at, mut below_root) = (pid, false);
        for _ in 0..64 {
            let Some(stat) = stats.get(&at) else { return false };
            if stat.is_command && (at != root || pid == root) {
                return false;
            }
            if at == root {
                below_root = true;
                break;
            }
            at = stat.parent;
        }
        below_root
    };
    stats.keys().copied().filter(|pid| belongs(*pid)).collect()
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

fn print_head(options: &Options, absent: &[Engine]) {
    let first = |path: &str| {
        fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
    };
    let output = |program: &str, args: &[&str]| {
        let text = Command::new(program).args(args).output().map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
    };
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or(": unknown")
        .trim_start_matches([':', '\t', ' ']);
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    println!(
        "{}, Linux {}, {cpus} CPUs ({model})",
        output("date", &["-u", "+%F %H:%M UTC"]),
        first("/proc/sys/kernel/osrelease")
    );
    let pasta = output("dpkg-query", &["-W", "-f", "${Version}", "passt"]);
    println!(
        "{}, pasta {pasta}, {}, {}",
        output("slirp4netns", &["--version"]),
        output("rootlesskit", &["--version"]),
        output("iperf3", &["--version"])
    );
    println!("median of {} runs [least..greatest], {} s each, reno", options.runs, options.seconds);
    for engine in absent {
        println!("left out, not installed: {}", engine.name());
    }
    println!();
}

fn print_table(table: &Table, rows: &[Row], columns: &[Column]) {
    let names = columns.iter().map(|column| column.name()).collect::<Vec<_>>();
    println!("| | {} |\n|---{}|", names.join(" | "), "|---".repeat(columns.len()));
    for row in rows {
        let cells = columns.iter().map(|column| cell(table.get(&(*row, *column)))).collect::<Vec<_>>();
        println!("| {} | {} |", row.name(), cells.join(" | "));
    }
    println!();
}

fn cell(samples: Option<&Vec<Sample>>) -> String {
    let Some(samples) = samples else { return String::new() };
    let values = samples.iter().map(|sample| sample.value).collect::<Vec<_>>();
    let (least, greatest) = values.iter().fold((f64::MAX, f64::MIN), |(a, b), v| (a.min(*v), b.max(*v)));
    let cpus = samples.iter().filter_map(|sample| sample.cpu).collect::<Vec<_>>();
    let cpu = if cpus.is_empty() { String::new() } else { format!(" cpu {}", short(median(&cpus))) };
    format!("{} [{}..{}]{cpu}", short(median(&values)), short(least), short(greatest))
}

fn short(value: f64) -> String {
    match value {
        v if v >= 10_000.0 => format!("{:.1}k", v / 1000.0),
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Met,
    Missed,
}

/// The bars: what was promised, what was measured.
fn print_bars(table: &Table, rootlesskit: &[f64]) -> Verdict {
    let samples = |row, engine, mtu| table.get(&(row, Column { engine, mtu }));
    let value = |row, engine, mtu| {
        samples(row, engine, mtu).map(|s| median(&s.iter().map(|s| s.value).collect::<Vec<_>>()))
    };
    let cpu = |row, engine, mtu| {
        let cpus = samples(row, engine, mtu)?.iter().filter_map(|s| s.cpu).collect::<Vec<_>>();
        (!cpus.is_empty()).then(|| median(&cpus))
    };
    let (ours, slirp, pasta) = (Engine::Ours, Engine::Slirp4netns, Engine::Pasta);
    let over = |a: Option<f64>, b: Option<f64>| Some(a? / b?);
    let better = |a: Option<f64>, b: Option<f64>| Some(a?.max(b?));
    let pasta_best = better(value(Row::TcpToHost, pasta, 65520), value(Row::TcpToChild, pasta, 65520));
    let mut bars: Vec<(String, Option<f64>, f64, bool)> = Vec::new();
    let mut at_least = |name: &str, measured, bar| bars.push((name.to_owned(), measured, bar, true));
    for (row, way) in [(Row::TcpToHost, "child->host"), (Row::TcpToChild, "host->child")] {
        let large = value(row, ours, 65520);
        at_least(&format!("TCP {way} 65520 / slirp4netns"), over(large, value(row, slirp, 65520)), 2.0);
        at_least(&format!("TCP {way} 65520 / pasta's better direction"), over(large, pasta_best), 1.1);
        at_least(&format!("TCP {way} 1500 / own 65520"), over(value(row, ours, 1500), large), 0.9);
    }
    for (row, name, bar) in
        [(Row::TcpRr, "TCP RR", 1.3), (Row::TcpCrr, "TCP CRR", 1.2), (Row::UdpRr, "UDP RR", 1.1)]
    {
        at_least(&format!("{name} / pasta"), over(value(row, ours, 65520), value(row, pasta, 65520)), bar);
    }
    let mut at_most = |name: &str, measured, bar| bars.push((name.to_owned(), measured, bar, false));
    let wall_cost = over(value(Row::TcpRr, ours, 65520), value(Row::TcpRrBusy, ours, 65520));
    at_most("RR time with 10,000 idle flows / with one", wall_cost, 1.2);
    let cpu_cost = over(cpu(Row::TcpRrBusy, ours, 65520), cpu(Row::TcpRr, ours, 65520));
    at_most("RR engine CPU with 10,000 idle flows / with one", cpu_cost, 1.2);
    let idle = value(Row::RssIdle, ours, 65520);
    let minus = |a: Option<f64>, b: Option<f64>| Some(a? - b?);
    at_most("RSS idle, MB", idle, 8.0);
    at_most("RSS of 5,000 idle connections, MB more", minus(value(Row::Rss5000, ours, 65520), idle), 40.0);
    // An engine that gave everything back is an idle one again.
    at_most("RSS after closing them, MB more than idle", minus(value(Row::RssAfter, ours, 65520), idle), 2.0);
    let launch = (!rootlesskit.is_empty()).then(|| median(rootlesskit));
    let kit = launch.map_or_else(|| "not run".to_owned(), |ms| format!("{} ms", short(ms)));
    at_most(
        &format!("launch of `true` / rootlesskit ({kit})"),
        over(value(Row::LaunchTrue, ours, 65520), launch),
        0.8,
    );
    println!("| bar | measured | wanted | |\n|---|---|---|---|");
    let mut verdict = Verdict::Met;
    for (name, measured, bar, is_floor) in bars {
        let sign = if is_floor { ">=" } else { "<=" };
        let Some(measured) = measured else { continue };
        let met = if is_floor { measured >= bar } else { measured <= bar };
        if !met {
            verdict = Verdict::Missed;
        }
        println!("| {name} | {} | {sign} {bar} | {} |", short(measured), if met { "pass" } else { "FAIL" });
    }
    println!();
    verdict
}
