//! How cost and memory grow with the number of flows, how long the rate of connections lasts, and what a bulk stream does to others.

mod client;
mod echo;

use benches::{
    bars::{Bars, Verdict},
    comparison::{Column as _, Comparison, Options, print_head},
    measure::{Sample, engine_cpu, engine_descriptors, engine_resident, number_in},
    subject::Subject,
};
use clap::Parser;
use echo::{BulkServer, EchoServer, drain, pour};
use nix::sys::resource::{Resource, getrlimit};
use std::{collections::BTreeSet, process::ExitCode, time::Duration};
use tests::{
    process::Process,
    world::{SERVICE4, World},
};

/// Measure many flows, many connections, and many bytes beside few.
#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
    /// Numbers of flows, growing
    #[arg(long, value_delimiter = ',', default_value = "1,10,100,1000,10000,20000")]
    flows: Vec<u32>,
    /// Seconds of connections one after the other; measured once per column
    #[arg(long, default_value_t = 60.0)]
    sustained: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    Busy(u32),
    Cost,
    PacketCost,
    MemoryIdle(u32),
    MemoryBusy,
    Descriptors,
    Connects,
    ConnectsLast,
    Alone,
    BesideToHost,
    FairToHost,
    BesideToChild,
    FairToChild,
    AsideToHost,
    AsideToChild,
}

impl Row {
    fn all(flows: &[u32]) -> Vec<Self> {
        let mut rows = flows.iter().copied().map(Self::Busy).collect::<Vec<_>>();
        rows.extend([Self::Cost, Self::PacketCost]);
        rows.extend(flows.iter().copied().filter(|flows| *flows >= MANY).map(Self::MemoryIdle));
        rows.extend([Self::MemoryBusy, Self::Descriptors, Self::Connects, Self::ConnectsLast]);
        rows.extend([
            Self::Alone,
            Self::BesideToHost,
            Self::FairToHost,
            Self::BesideToChild,
            Self::FairToChild,
            Self::AsideToHost,
            Self::AsideToChild,
        ]);
        rows
    }
}

impl benches::comparison::Row for Row {
    fn name(self) -> String {
        match self {
            Self::Busy(flows) => format!("messages by {} in turn, 1/s (engine CPU us each)", of(flows)),
            Self::Cost => "time of a message by most flows / by one (engine CPU likewise)".to_owned(),
            Self::PacketCost => "engine CPU per packet of the child's devices, most flows / one".to_owned(),
            Self::MemoryIdle(flows) => format!("RSS per flow, {} that never spoke, KB", of(flows)),
            Self::MemoryBusy => "RSS per flow, most flows after their messages, KB".to_owned(),
            Self::Descriptors => "engine's descriptors per flow, most flows".to_owned(),
            Self::Connects => "connections, eight at a time, 1/s (engine CPU us each)".to_owned(),
            Self::ConnectsLast => "rate of connections, last tenth of the time / first".to_owned(),
            Self::Alone => "RR p99 alone, us".to_owned(),
            Self::BesideToHost => "RR p99 beside a stream child->host, us".to_owned(),
            Self::FairToHost => "RR p99 beside a stream child->host / alone".to_owned(),
            Self::BesideToChild => "RR p99 beside a stream host->child, us".to_owned(),
            Self::FairToChild => "RR p99 beside a stream host->child / alone".to_owned(),
            Self::AsideToHost => {
                "the same on the child's loopback: RR p99 beside child->host / alone".to_owned()
            }
            Self::AsideToChild => {
                "the same on the child's loopback: RR p99 beside host->child / alone".to_owned()
            }
        }
    }
}

/// Below it, an engine's memory says nothing about flows.
const MANY: u32 = 100;

fn of(flows: u32) -> String {
    match flows {
        1 => "one flow".to_owned(),
        flows if flows >= 1000 => format!("{},{:03} flows", flows / 1000, flows % 1000),
        flows => format!("{flows} flows"),
    }
}

fn main() -> ExitCode {
    if let Some(code) = benches::be_the_probe() {
        return code;
    }
    let args = std::env::args().skip(1).collect::<Vec<_>>();
    if let ["client", words @ ..] = &args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        return match client::main(words) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                println!("error={error}");
                ExitCode::FAILURE
            }
        };
    }
    let mut cli = Cli::parse();
    if cli.options.smoke {
        (cli.flows, cli.sustained) = (vec![1, 10, MANY], 0.3);
    }
    let options = cli.options.settled();
    let (flows, clipped) = within_descriptors(&cli.flows);
    let rows = Row::all(&flows);
    let (columns, absent): (Vec<_>, Vec<_>) =
        Subject::ALL.into_iter().chain([Subject::Auto]).partition(|subject| subject.is_present());
    let mut comparison = Comparison::new(&options, &rows, &columns);
    let mut lab = Lab::new(&options, flows, cli.sustained, comparison.rows());
    comparison.run(&options, &mut lab);
    print_head(&options, &absent.iter().map(|column| column.name()).collect::<Vec<_>>());
    println!("connections one after the other for {} s, once", cli.sustained);
    for note in clipped.iter().chain(&lab.notes) {
        println!("{note}");
    }
    println!();
    comparison.print();
    let bars = print_bars(&comparison);
    comparison.exit_code(&options, bars)
}

/// As many flows as one process may have descriptors for, and what to say about that.
fn within_descriptors(wanted: &[u32]) -> (Vec<u32>, Option<String>) {
    let hard = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(_, hard)| hard);
    let most = u32::try_from(hard.saturating_sub(RESERVE)).unwrap_or(u32::MAX).max(1);
    let greatest = wanted.iter().copied().max().unwrap_or(1);
    let is_less = greatest > most;
    // The greatest as it fits, and what would need two descriptors per flow and does not fit then in proportion.
    let fitted = |flows: u32| match flows {
        0 => 1,
        flows if is_less && flows.saturating_mul(2) > most => {
            (u64::from(flows) * u64::from(most) / u64::from(greatest)) as u32
        }
        flows => flows,
    };
    let mut flows = wanted.iter().copied().map(fitted).collect::<Vec<_>>();
    flows.sort_unstable();
    flows.dedup();
    (flows, is_less.then(|| format!("a process may have {hard} descriptors here: no more than {most} flows")))
}

/// Descriptors for everything that is no flow.
const RESERVE: u64 = 500;

struct Lab {
    world: World,
    options: Options,
    flows: Vec<u32>,
    sustained: f64,
    /// The rows that one measurement brings are asked for by the first of them.
    asked: BTreeSet<Row>,
    sustained_done: BTreeSet<Subject>,
    notes: BTreeSet<String>,
}

impl Lab {
    fn new(options: &Options, flows: Vec<u32>, sustained: f64, rows: &[Row]) -> Self {
        let world = World::new();
        // Room for all of them on the way from the engine to the server, too.
        world.host.sysctl("net/ipv4/ip_local_port_range", "16384 65535");
        let mut asked = BTreeSet::new();
        let mut kinds = BTreeSet::new();
        for row in rows {
            if kinds.insert(kind(*row)) {
                asked.insert(*row);
            }
        }
        let (sustained_done, notes) = (BTreeSet::new(), BTreeSet::new());
        Self { world, options: options.clone(), flows, sustained, asked, sustained_done, notes }
    }

    /// The client in a child behind `subject`, ready.
    fn client(&self, subject: Subject, words: &[String], limit: Duration) -> Process {
        let me = std::env::current_exe().expect("/proc is mounted").to_string_lossy().into_owned();
        let mut argv = vec![me.as_str(), "client"];
        argv.extend(words.iter().map(String::as_str));
        let mut process = self.world.launch(&subject.launch(), &argv).within(limit);
        process.wait_for_line("ready=1");
        process
    }

    fn listeners(&self, count: usize) -> Vec<std::net::TcpListener> {
        (0..count).map(|_| self.world.host.listen(&format!("{SERVICE4}:0"))).collect()
    }

    fn ramp(&mut self, subject: Subject) -> Vec<(Row, Sample)> {
        let server = EchoServer::start(self.listeners(1));
        let seconds = self.options.seconds.to_string();
        let mut words = ["ramp", SERVICE4, &server.ports()[0], &seconds].map(String::from).to_vec();
        words.extend(self.flows.iter().map(ToString::to_string));
        let mut process = self.client(subject, &words, Duration::from_secs(300));
        let empty = Held::by_engine(&process);
        let (mut samples, mut turns) = (Vec::new(), Vec::new());
        for flows in &self.flows {
            match Turn::take(&mut process, *flows) {
                Ok(turn) => turns.push(turn),
                // The child's limits and the engine's end a ramp; that is an answer as well.
                Err(line) => {
                    self.notes.insert(format!("{} gave up before {}: {line}", subject.name(), of(*flows)));
                    break;
                }
            }
        }
        end(process);
        for turn in &turns {
            samples.push((Row::Busy(turn.flows), turn.sample(subject)));
            if subject.is_engine() && turn.flows >= MANY {
                samples.push((Row::MemoryIdle(turn.flows), turn.idle.more_per_flow(&empty, turn.flows)));
            }
        }
        if let [one, .., most] = &turns[..] {
            let (first, last) = (one.sample(subject), most.sample(subject));
            let cpu = last.cpu.zip(first.cpu).map(|(many, one)| many / one);
            samples.push((Row::Cost, Sample { value: first.value / last.value, cpu }));
            if subject.is_engine() {
                let ratio = most.cpu_per_packet() / one.cpu_per_packet();
                samples.push((Row::PacketCost, Sample::plain(ratio)));
                samples.push((Row::MemoryBusy, most.busy.more_per_flow(&empty, most.flows)));
                let more =
                    most.busy.descriptors.zip(empty.descriptors).map(|(now, then)| now.saturating_sub(then));
                let each = more.map(|more| Sample::plain(more as f64 / f64::from(most.flows)));
                samples.extend(each.map(|each| (Row::Descriptors, each)));
            }
        }
        samples
    }

    fn connects(&self, subject: Subject) -> Vec<(Row, Sample)> {
        // Each takes about as many connections a minute as there are ports in the child.
        let server = EchoServer::start(self.listeners(64));
        let mut words = ["connects", SERVICE4, &self.sustained.to_string()].map(String::from).to_vec();
        words.extend(server.ports().iter().cloned());
        let mut process = self.client(subject, &words, Duration::from_secs_f64(self.sustained + 60.0));
        let before = engine_cpu(&process);
        process.tell("go");
        let line = process.wait_for_line("per_second=");
        let cpu = subject.is_engine().then(|| engine_cpu(&process) - before);
        end(process);
        let (count, failed) = (number_in(&line, "transactions="), number_in(&line, "failed="));
        assert!(failed <= count / 1000.0, "{failed} of {count} connections failed");
        let ratio = number_in(&line, "last=") / number_in(&line, "first=").max(1.0);
        vec![(Row::Connects, Sample::of_transactions(&line, cpu)), (Row::ConnectsLast, Sample::plain(ratio))]
    }

    fn fairness(&self, subject: Subject) -> Vec<(Row, Sample)> {
        let server = EchoServer::start(self.listeners(1));
        let [sink, source] = [drain as fn(_) -> _, pour]
            .map(|each| BulkServer::start(self.world.host.listen(&format!("{SERVICE4}:0")), each));
        let seconds = self.options.seconds.to_string();
        let words = ["fair", SERVICE4, &server.ports()[0], &sink.port(), &source.port(), &seconds];
        let mut process = self.client(subject, &words.map(String::from), Duration::from_secs(60));
        process.tell("go");
        let mut value = |key: &str| number_in(&process.wait_for_line(key), key);
        let (alone, aside_alone) = (value("alone="), value("aside_alone="));
        let (to_host, aside_to_host) = (value("to_host="), value("aside_to_host="));
        let (to_child, aside_to_child) = (value("to_child="), value("aside_to_child="));
        end(process);
        [
            (Row::Alone, alone),
            (Row::BesideToHost, to_host),
            (Row::FairToHost, to_host / alone),
            (Row::BesideToChild, to_child),
            (Row::FairToChild, to_child / alone),
            (Row::AsideToHost, aside_to_host / aside_alone),
            (Row::AsideToChild, aside_to_child / aside_alone),
        ]
        .map(|(row, value)| (row, Sample::plain(value)))
        .to_vec()
    }
}

impl benches::comparison::Lab for Lab {
    type Row = Row;
    type Column = Subject;

    fn measures(&self, row: Row, subject: Subject) -> bool {
        let wanted = match kind(row) {
            Kind::Connects => !self.sustained_done.contains(&subject),
            // Few connections: what by default goes by the relay.
            Kind::Ramp | Kind::Fairness => subject != Subject::Auto,
        };
        self.asked.contains(&row) && wanted
    }

    fn measure(&mut self, row: Row, subject: Subject) -> Vec<(Row, Sample)> {
        match kind(row) {
            Kind::Ramp => self.ramp(subject),
            Kind::Connects => {
                self.sustained_done.insert(subject);
                self.connects(subject)
            }
            Kind::Fairness => self.fairness(subject),
        }
    }
}

/// One step of a ramp.
struct Turn {
    flows: u32,
    /// What the client says of it.
    line: String,
    /// Seconds of the engine.
    cpu: f64,
    idle: Held,
    busy: Held,
}

impl Turn {
    /// Opens, warms up, measures; or what the client says when it cannot.
    fn take(process: &mut Process, flows: u32) -> Result<Self, String> {
        let step = |process: &mut Process| {
            process.tell("go");
            let line = process.wait_for_line("=");
            if line.starts_with("stopped=") { Err(line) } else { Ok(line) }
        };
        step(process)?;
        let idle = Held::by_engine(process);
        step(process)?;
        let before = engine_cpu(process);
        let line = step(process)?;
        let cpu = engine_cpu(process) - before;
        Ok(Self { flows, line, cpu, idle, busy: Held::by_engine(process) })
    }

    fn sample(&self, subject: Subject) -> Sample {
        Sample::of_transactions(&self.line, subject.is_engine().then_some(self.cpu))
    }

    fn cpu_per_packet(&self) -> f64 {
        self.cpu / number_in(&self.line, "packets=").max(1.0)
    }
}

/// What an engine holds.
struct Held {
    kilobytes: f64,
    descriptors: Option<u64>,
}

impl Held {
    fn by_engine(process: &Process) -> Self {
        let kilobytes = engine_resident(process).iter().sum::<f64>() * 1024.0;
        Self { kilobytes, descriptors: engine_descriptors(process) }
    }

    fn more_per_flow(&self, empty: &Self, flows: u32) -> Sample {
        Sample::plain((self.kilobytes - empty.kilobytes) / f64::from(flows))
    }
}

/// Rows that are measured together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Ramp,
    Connects,
    Fairness,
}

fn kind(row: Row) -> Kind {
    match row {
        Row::Connects | Row::ConnectsLast => Kind::Connects,
        Row::Alone
        | Row::BesideToHost
        | Row::FairToHost
        | Row::BesideToChild
        | Row::FairToChild
        | Row::AsideToHost
        | Row::AsideToChild => Kind::Fairness,
        _ => Kind::Ramp,
    }
}

/// Ends the client; a peer that does not pass the end on is killed.
fn end(mut process: Process) {
    process.close_stdin();
    let _ = process.ends_before(std::time::Instant::now() + Duration::from_secs(5));
}

fn print_bars(comparison: &Comparison<Row, Subject>) -> Verdict {
    let mut bars = Bars::default();
    for subject in [Subject::Tap, Subject::Relay] {
        let (name, value) = (subject.name(), |row| comparison.value(row, subject));
        // A flow whose turn comes seldom has more of them per message.
        let cost = value(Row::PacketCost);
        bars.at_most(&format!("{name}: engine CPU per packet, most flows / one"), cost, 1.2);
        for (row, way) in [(Row::FairToHost, "child->host"), (Row::FairToChild, "host->child")] {
            bars.at_most(&format!("{name}: RR p99 beside a stream {way} / alone"), value(row), 3.0);
        }
    }
    let value = |subject| comparison.value(Row::Connects, subject);
    let peers = [Subject::Slirp4netns, Subject::Pasta].into_iter().filter_map(value);
    if let (Some(ours), Some(best)) = (value(Subject::Auto), peers.reduce(f64::max)) {
        let name = format!("{}: connections, eight at a time / the best peer", Subject::Auto.name());
        bars.at_least(&name, Some(ours / best), 1.0);
        let lasts = comparison.value(Row::ConnectsLast, Subject::Auto);
        bars.at_least("the same: last tenth of the time / first", lasts, 0.8);
    }
    bars.print()
}
