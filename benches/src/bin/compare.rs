//! Ours, slirp4netns, pasta and veth on the same machine in the same run: one table, and the bars of the project with pass or fail.
//!
use benches::subject::Subject;
use benches::{
    bars::{Bars, Verdict, difference, ratio},
    comparison::{Column as _, Comparison, Options, print_head},
    measure::{Sample, engine_cpu, engine_resident, iperf_length, median, short},
};
use clap::Parser;
use std::{
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};
use tests::{
    engine::Launch,
    locate,
    process::{Process, run},
    servers::{Serve, Server, UdpServer, udp_echo},
    world::{SERVICE4, World},
};

/// Compare rootless-launch with slirp4netns, pasta and veth.
#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    TcpToHost,
    TcpToChild,
    Tcp4ToHost,
    Tcp4ToChild,
    TcpRr,
    TcpRrBusy,
    TcpRrCost,
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
    const ALL: [Self; 17] = [
        Self::TcpToHost,
        Self::TcpToChild,
        Self::Tcp4ToHost,
        Self::Tcp4ToChild,
        Self::TcpRr,
        Self::TcpRrBusy,
        Self::TcpRrCost,
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

    fn needs_fresh_engine(self) -> bool {
        matches!(self, Self::RssIdle | Self::Rss1000 | Self::Rss5000 | Self::RssAfter)
    }
}

impl benches::comparison::Row for Row {
    fn name(self) -> String {
        match self {
            Self::TcpToHost => "TCP child->host, Gb/s (engine CPU s/GB)",
            Self::TcpToChild => "TCP host->child, Gb/s (engine CPU s/GB)",
            Self::Tcp4ToHost => "TCP four streams child->host, Gb/s (engine CPU s/GB)",
            Self::Tcp4ToChild => "TCP four streams host->child, Gb/s (engine CPU s/GB)",
            Self::TcpRr => "TCP RR, 1/s (engine CPU us each)",
            Self::TcpRrBusy => "TCP RR with 10,000 idle flows, 1/s (engine CPU us each)",
            Self::TcpRrCost => "the same / alone before, time each (engine CPU each)",
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
        .to_owned()
    }
}

/// A column: an engine with an MTU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Column {
    subject: Subject,
    mtu: u32,
}

impl Column {
    const ALL: [Self; 11] = [
        Self::new(Subject::Veth, 1500),
        Self::new(Subject::Slirp4netns, 65520),
        Self::new(Subject::Slirp4netns, 1500),
        Self::new(Subject::Pasta, 65520),
        Self::new(Subject::Pasta, 1500),
        Self::new(Subject::Tap, 65520),
        Self::new(Subject::Tap, 1500),
        Self::new(Subject::TapQueues, 65520),
        Self::new(Subject::TapQueues, 1500),
        Self::new(Subject::Relay, 65520),
        Self::new(Subject::Relay, 1500),
    ];

    const fn new(subject: Subject, mtu: u32) -> Self {
        Self { subject, mtu }
    }

    fn launch(self) -> Launch {
        self.subject.launch().mtu(self.mtu)
    }
}

impl benches::comparison::Column for Column {
    fn name(self) -> String {
        format!("{} {}", self.subject.name(), self.mtu)
    }

    fn is_ours(self) -> bool {
        self.subject.is_ours()
    }
}

fn main() -> ExitCode {
    if let Some(code) = benches::be_the_probe() {
        return code;
    }
    let options = Cli::parse().options.settled();
    let (columns, absent): (Vec<_>, Vec<_>) =
        Column::ALL.into_iter().partition(|column| column.subject.is_present());
    let mut comparison = Comparison::new(&options, &Row::ALL, &columns);
    let mut lab = Lab::new(&options, first_memory_row(comparison.rows()));
    comparison.run(&options, &mut lab);
    print_head(&options, &absent.iter().map(|column| column.name()).collect::<Vec<_>>());
    comparison.print();
    let bars = print_bars(&comparison, &lab.rootlesskit);
    comparison.exit_code(&options, bars)
}

fn first_memory_row(rows: &[Row]) -> Option<Row> {
    rows.iter().copied().find(|row| row.needs_fresh_engine())
}

/// The world and its servers, shared by all columns.
struct Lab {
    world: World,
    echo: Server,
    udp: UdpServer,
    iperf: Process,
    seconds: f64,
    idle_flows: usize,
    first_memory_row: Option<Row>,
    /// Milliseconds that RootlessKit takes to launch `true`.
    rootlesskit: Vec<f64>,
}

impl Lab {
    fn new(options: &Options, first_memory_row: Option<Row>) -> Self {
        let world = World::new();
        let any = format!("{SERVICE4}:0");
        let echo = Server::start(world.host.listen(&any), Serve::Echo);
        let udp = udp_echo(world.host.udp(&any));
        // Bound, or it answers UDP over veth from another of the host's addresses.
        let mut iperf = Process::spawn(world.host.program(&["iperf3", "-s", "-B", SERVICE4, "--forceflush"]))
            .within(Duration::from_secs(86_400));
        iperf.wait_for_line("Server listening");
        let idle_flows = if options.smoke { 500 } else { 10_000 };
        let seconds = options.seconds;
        Self { world, echo, udp, iperf, seconds, idle_flows, first_memory_row, rootlesskit: Vec::new() }
    }

    /// iperf3 in the child against the one server; the engine's CPU time is that of the whole of it.
    fn iperf(&self, column: Column, args: &[&str]) -> Sample {
        // A shell waits for a line first and after, so that the engine's CPU can be read on a quiet, living process.
        let length = iperf_length(self.seconds, args);
        let iperf = locate::program("iperf3").to_string_lossy().into_owned();
        // Reno as on the host, for the whole namespace: a socket that leaves BBR by an option goes on pacing.
        let script = format!(
            "echo reno >/proc/sys/net/ipv4/tcp_congestion_control; echo ready; read x; {iperf} -J -c {SERVICE4} {length} {} | tr -d '\\n'; echo; echo over; read x",
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
        Sample::of_iperf(&json, column.subject.is_engine().then_some(cpu))
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
        Sample::of_transactions(&line, column.subject.is_engine().then_some(cpu))
    }

    /// The same transactions on the same engine, alone and then among thousands of idle flows.
    fn among_idle_flows(&self, column: Column) -> Vec<(Row, Sample)> {
        let (idle, hold) = (self.idle_flows.to_string(), self.hold());
        // Longer than others: a small difference, and what opening so many leaves to do belongs to it in proportion only.
        let seconds = (self.seconds * 4.0).to_string();
        let argv = locate::probe_argv(&[
            "gate",
            "rr-among",
            &idle,
            SERVICE4,
            &hold.port(),
            &self.echo.port(),
            &seconds,
        ]);
        let argv = argv.iter().map(String::as_str).collect::<Vec<_>>();
        let mut process = self.world.launch(&column.launch(), &argv).within(Duration::from_secs(120));
        process.wait_for_line("ready=1");
        let is_engine = column.subject.is_engine();
        let measure = |process: &mut Process| {
            let before = engine_cpu(process);
            process.tell("go");
            let line = process.wait_for_line("per_second=");
            let cpu = engine_cpu(process) - before;
            Sample::of_transactions(&line, is_engine.then_some(cpu))
        };
        let alone = measure(&mut process);
        process.wait_for_line("open=");
        let among = measure(&mut process);
        process.close_stdin();
        process.finish();
        let cpu = among.cpu.zip(alone.cpu).map(|(among, alone)| among / alone);
        let cost = Sample { value: alone.value / among.value, cpu };
        vec![(Row::TcpRrBusy, among), (Row::TcpRrCost, cost)]
    }

    /// A server of its own for each measurement: it keeps what it accepted until it is dropped.
    fn hold(&self) -> Server {
        Server::start(self.world.host.listen(&format!("{SERVICE4}:0")), Serve::Hold)
    }

    fn memory(&self, column: Column) -> Vec<(Row, Sample)> {
        if !column.subject.is_engine() {
            return Vec::new();
        }
        let mut samples = Vec::new();
        let mut note = |row, megabytes| samples.push((row, Sample::plain(megabytes)));
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

impl benches::comparison::Lab for Lab {
    type Row = Row;
    type Column = Column;

    fn measures(&self, row: Row, column: Column) -> bool {
        match row {
            Row::Tcp4ToHost | Row::Tcp4ToChild => true,
            // One stream has one queue.
            _ if column.subject == Subject::TapQueues => false,
            Row::LaunchTrue => column.subject == Subject::Tap,
            // The others need up to minutes to open them.
            Row::TcpRrBusy => matches!(column.subject, Subject::Veth | Subject::Tap),
            // Comes with the row before.
            Row::TcpRrCost => false,
            // The same fresh engine answers the four memory rows, in order.
            row if row.needs_fresh_engine() => Some(row) == self.first_memory_row,
            _ => true,
        }
    }

    fn measure(&mut self, row: Row, column: Column) -> Vec<(Row, Sample)> {
        assert!(!self.iperf.ends_before(Instant::now()), "the iperf3 server is gone");
        let seconds = self.seconds.to_string();
        let sample = match row {
            Row::TcpToHost => self.iperf(column, &[]),
            Row::TcpToChild => self.iperf(column, &["-R"]),
            Row::Tcp4ToHost => self.iperf(column, &["-P4"]),
            Row::Tcp4ToChild => self.iperf(column, &["-P4", "-R"]),
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
            Row::TcpRrBusy | Row::TcpRrCost => return self.among_idle_flows(column),
            Row::LaunchTrue => {
                self.rootlesskit.extend(rootlesskit_true());
                launch_true(column)
            }
            Row::RssIdle | Row::Rss1000 | Row::Rss5000 | Row::RssAfter => return self.memory(column),
        };
        vec![(row, sample)]
    }
}

/// Wall time of `rootless-launch -- true` in milliseconds.
fn launch_true(column: Column) -> Sample {
    // Straight from here, as RootlessKit is: both make their own user namespace.
    let argv = column.launch().argv(&["true"]);
    Sample::plain(wall(&argv))
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

/// Resident megabytes of the largest process of the engine.
fn engine_rss(process: &Process) -> f64 {
    engine_resident(process).into_iter().fold(0.0, f64::max)
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

fn print_bars(comparison: &Comparison<Row, Column>, rootlesskit: &[f64]) -> Verdict {
    let value = |row, subject, mtu| comparison.value(row, Column { subject, mtu });
    let cpu = |row, subject, mtu| comparison.cpu(row, Column { subject, mtu });
    let (ours, slirp, pasta) = (Subject::Tap, Subject::Slirp4netns, Subject::Pasta);
    let better = |a: Option<f64>, b: Option<f64>| Some(a?.max(b?));
    let pasta_best = better(value(Row::TcpToHost, pasta, 65520), value(Row::TcpToChild, pasta, 65520));
    let best_peer = |row| better(value(row, slirp, 65520), value(row, pasta, 65520));
    let mut bars = Bars::default();
    for (row, way) in [(Row::TcpToHost, "child->host"), (Row::TcpToChild, "host->child")] {
        let large = value(row, ours, 65520);
        bars.at_least(&format!("TCP {way} 65520 / slirp4netns"), ratio(large, value(row, slirp, 65520)), 2.0);
        for mtu in [65520, 1500] {
            let over_pasta = ratio(value(row, ours, mtu), pasta_best);
            bars.at_least(&format!("TCP {way} {mtu} / pasta's better direction"), over_pasta, 1.25);
        }
        bars.at_least(&format!("TCP {way} 1500 / own 65520"), ratio(value(row, ours, 1500), large), 0.9);
    }
    let (four_up, four_down) = (Row::Tcp4ToHost, Row::Tcp4ToChild);
    let pasta_four = better(value(four_up, pasta, 65520), value(four_down, pasta, 65520));
    for (row, way) in [(four_up, "child->host"), (four_down, "host->child")] {
        let over_pasta = ratio(value(row, Subject::TapQueues, 65520), pasta_four);
        bars.at_least(
            &format!("four TCP streams on two queues {way} / pasta's better direction"),
            over_pasta,
            1.5,
        );
    }
    for (row, name, bar) in
        [(Row::TcpRr, "TCP RR", 1.3), (Row::TcpCrr, "TCP CRR", 1.2), (Row::UdpRr, "UDP RR", 1.1)]
    {
        let over_pasta = ratio(value(row, ours, 65520), value(row, pasta, 65520));
        bars.at_least(&format!("{name} / pasta"), over_pasta, bar);
    }
    for (row, name, bar) in [
        (Row::UdpToHost, "UDP 1400 B child->host", 1.5),
        (Row::UdpToChild, "UDP 1400 B host->child", 2.0),
        (Row::UdpSmall, "UDP 64 B child->host", 1.3),
    ] {
        let over_pasta = ratio(value(row, ours, 1500), value(row, pasta, 1500));
        bars.at_least(&format!("{name} / pasta, 1500"), over_pasta, bar);
    }
    let (relay, veth) = (Subject::Relay, Subject::Veth);
    for (row, way) in [(Row::TcpToHost, "child->host"), (Row::TcpToChild, "host->child")] {
        let relayed = value(row, relay, 1500);
        bars.at_least(&format!("relay: TCP {way} / veth"), ratio(relayed, value(row, veth, 1500)), 0.85);
        bars.at_least(
            &format!("relay: TCP {way} / pasta's better direction"),
            ratio(relayed, pasta_best),
            1.9,
        );
        bars.at_least(
            &format!("relay: TCP {way} / slirp4netns"),
            ratio(relayed, value(row, slirp, 65520)),
            3.5,
        );
        let cost = ratio(cpu(row, relay, 1500), cpu(row, pasta, 65520));
        bars.at_most(&format!("relay: TCP {way}, engine CPU per GB / pasta"), cost, 0.3);
    }
    for (row, name, bar) in [(Row::TcpRr, "TCP RR", 1.3), (Row::TcpCrr, "TCP CRR", 1.0)] {
        let over_best = ratio(value(row, relay, 1500), best_peer(row));
        bars.at_least(&format!("relay: {name} / the best peer"), over_best, bar);
    }
    let wall_cost = value(Row::TcpRrCost, ours, 65520);
    bars.at_most("RR time with 10,000 idle flows / with one", wall_cost, 1.2);
    let cpu_cost = cpu(Row::TcpRrCost, ours, 65520);
    bars.at_most("RR engine CPU with 10,000 idle flows / with one", cpu_cost, 1.2);
    let idle = value(Row::RssIdle, ours, 65520);
    bars.at_most("RSS idle, MB", idle, 8.0);
    let more = difference(value(Row::Rss5000, ours, 65520), idle);
    bars.at_most("RSS of 5,000 idle connections, MB more", more, 40.0);
    // An engine that gave everything back is an idle one again.
    let left = difference(value(Row::RssAfter, ours, 65520), idle);
    bars.at_most("RSS after closing them, MB more than idle", left, 2.0);
    let launch = (!rootlesskit.is_empty()).then(|| median(rootlesskit));
    let kit = launch.map_or_else(|| "not run".to_owned(), |ms| format!("{} ms", short(ms)));
    bars.at_most(
        &format!("launch of `true` / rootlesskit ({kit})"),
        ratio(value(Row::LaunchTrue, ours, 65520), launch),
        0.8,
    );
    bars.print()
}
