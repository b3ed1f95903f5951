//! Rows, columns, and the loop that fills the cells in turn.

use crate::bars::Verdict;
use crate::measure::{Sample, first_line_of, median, short};
use clap::Args;
use std::{
    collections::BTreeMap,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    process,
    process::ExitCode,
    sync::mpsc::{RecvTimeoutError, Sender, channel},
    thread,
    time::Duration,
};

/// What every comparison can be told.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Runs per cell; the median is shown
    #[arg(long, default_value_t = 5)]
    pub runs: usize,
    /// Length of one timed measurement in seconds
    #[arg(long, default_value_t = 1.5)]
    pub seconds: f64,
    /// Only rows whose name contains one of these
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
    /// Only columns whose name contains one of these
    #[arg(long, value_delimiter = ',')]
    pub engines: Vec<String>,
    /// Print only the tables, no progress
    #[arg(long)]
    pub markdown: bool,
    /// Everything once and short, only veth and ours: does it still work?
    #[arg(long)]
    pub smoke: bool,
}

impl Options {
    /// The same, with what `--smoke` stands for put in.
    #[must_use]
    pub fn settled(mut self) -> Self {
        if self.smoke {
            (self.runs, self.seconds) = (1, 0.2);
            self.engines = vec!["veth".to_owned(), "rootless-launch".to_owned()];
        }
        self
    }
}

/// What is measured.
pub trait Row: Copy + Ord {
    /// The figure and its unit.
    fn name(self) -> String;
}

/// Whom it is measured of.
pub trait Column: Copy + Ord {
    /// As the head of the table shows it.
    fn name(self) -> String;
    /// Whether a measurement that fails is our failure.
    fn is_ours(self) -> bool;
}

/// Where measurements happen.
pub trait Lab {
    /// The rows.
    type Row: Row;
    /// The columns.
    type Column: Column;

    /// Whether the cell is measured for itself: some belong together, and some would take too long.
    fn measures(&self, row: Self::Row, column: Self::Column) -> bool;

    /// Measures once. Panics when that fails, which is noted.
    fn measure(&mut self, row: Self::Row, column: Self::Column) -> Vec<(Self::Row, Sample)>;
}

/// A table of measurements.
#[derive(Debug)]
pub struct Comparison<R, C> {
    rows: Vec<R>,
    columns: Vec<C>,
    samples: BTreeMap<(R, C), Vec<Sample>>,
    failures: Vec<(R, C)>,
}

impl<R: Row, C: Column> Comparison<R, C> {
    /// An empty table of those that `options` want.
    #[must_use]
    pub fn new(options: &Options, rows: &[R], columns: &[C]) -> Self {
        let wanted = |name: &str, filter: &[String]| {
            filter.is_empty() || filter.iter().any(|part| name.contains(part))
        };
        Self {
            rows: rows.iter().copied().filter(|row| wanted(&row.name(), &options.only)).collect(),
            columns: columns
                .iter()
                .copied()
                .filter(|column| wanted(&column.name(), &options.engines))
                .collect(),
            samples: BTreeMap::new(),
            failures: Vec::new(),
        }
    }

    /// The rows that are wanted.
    #[must_use]
    pub fn rows(&self) -> &[R] {
        &self.rows
    }

    /// Measures every cell in turn, again and again.
    pub fn run(&mut self, options: &Options, lab: &mut impl Lab<Row = R, Column = C>) {
        let watch = watch();
        for run in 0..options.runs {
            for row in self.rows.clone() {
                for column in self.columns.clone() {
                    if !lab.measures(row, column) {
                        continue;
                    }
                    if !options.markdown {
                        eprintln!("run {} of {}: {}, {}", run + 1, options.runs, row.name(), column.name());
                    }
                    // The watch ends only when we do.
                    let _ = watch.send(format!("{}, {}", row.name(), column.name()));
                    match catch_unwind(AssertUnwindSafe(|| lab.measure(row, column))) {
                        Ok(samples) => {
                            for (row, sample) in samples {
                                self.samples.entry((row, column)).or_default().push(sample);
                            }
                        }
                        Err(_) => self.failures.push((row, column)),
                    }
                }
            }
        }
    }

    /// The median of a cell.
    #[must_use]
    pub fn value(&self, row: R, column: C) -> Option<f64> {
        let samples = self.samples.get(&(row, column))?;
        Some(median(&samples.iter().map(|sample| sample.value).collect::<Vec<_>>()))
    }

    /// The median of a cell's engine CPU.
    #[must_use]
    pub fn cpu(&self, row: R, column: C) -> Option<f64> {
        let cpus = self.samples.get(&(row, column))?.iter().filter_map(|s| s.cpu).collect::<Vec<_>>();
        (!cpus.is_empty()).then(|| median(&cpus))
    }

    /// Prints the table and what failed.
    pub fn print(&self) {
        let names = self.columns.iter().map(|column| column.name()).collect::<Vec<_>>();
        println!("| | {} |\n|---{}|", names.join(" | "), "|---".repeat(self.columns.len()));
        for row in &self.rows {
            let cells = self.columns.iter().map(|column| cell(self.samples.get(&(*row, *column))));
            println!("| {} | {} |", row.name(), cells.collect::<Vec<_>>().join(" | "));
        }
        println!();
        for (row, column) in &self.failures {
            println!("failed: {}, {}", row.name(), column.name());
        }
    }

    /// How the program ends: the peers may fail, that is theirs; ours may not, and a smoke run is too short for bars.
    #[must_use]
    pub fn exit_code(&self, options: &Options, bars: Verdict) -> ExitCode {
        let failed = self.failures.iter().any(|(_, column)| column.is_ours());
        if failed || (!options.smoke && bars == Verdict::Missed) {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        }
    }
}

/// Prints machine, versions and length of the runs.
pub fn print_head(options: &Options, left_out: &[String]) {
    let first = |path: &str| {
        fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
    };
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or(": unknown")
        .trim_start_matches([':', '\t', ' ']);
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    println!(
        "{}, Linux {}, {cpus} CPUs ({model}){}",
        first_line_of("date", &["-u", "+%F %H:%M UTC"]),
        first("/proc/sys/kernel/osrelease"),
        idle(&first("/sys/devices/system/cpu/cpuidle/current_driver"), &first(HALT_POLL))
    );
    println!(
        "{}, pasta {}, {}, {}",
        first_line_of("slirp4netns", &["--version"]),
        first_line_of("dpkg-query", &["-W", "-f", "${Version}", "passt"]),
        first_line_of("rootlesskit", &["--version"]),
        first_line_of("iperf3", &["--version"])
    );
    println!("median of {} runs [least..greatest], {} s each, reno", options.runs, options.seconds);
    for name in left_out {
        println!("left out, not to be had here: {name}");
    }
    println!();
}

/// How long processors of a virtual machine look for work before they halt, in nanoseconds (haltpoll's parameter).
const HALT_POLL: &str = "/sys/module/haltpoll/parameters/guest_halt_poll_ns";

/// What idle processors do: to wake one that has halted costs a virtual machine more than most of what is measured here.
fn idle(driver: &str, halt_poll: &str) -> String {
    match (driver, halt_poll) {
        ("haltpoll", polls) if !polls.is_empty() => format!(", idle ones poll for {polls} ns, then halt"),
        ("" | "none", _) => String::new(),
        (driver, _) => format!(", idle by {driver}"),
    }
}

/// Longer than all deadlines inside one measurement.
const LONGEST: Duration = Duration::from_secs(600);

/// Wants to hear what is measured, until it is dropped; what takes too long ends the program, with a name.
fn watch() -> Sender<String> {
    let (sender, names) = channel::<String>();
    thread::spawn(move || {
        let mut name = "nothing".to_owned();
        loop {
            match names.recv_timeout(LONGEST) {
                Ok(next) => name = next,
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    eprintln!("hangs: {name}");
                    process::exit(124);
                }
            }
        }
    });
    sender
}

fn cell(samples: Option<&Vec<Sample>>) -> String {
    let Some(samples) = samples else { return String::new() };
    let values = samples.iter().map(|sample| sample.value).collect::<Vec<_>>();
    let (least, greatest) = values.iter().fold((f64::MAX, f64::MIN), |(a, b), v| (a.min(*v), b.max(*v)));
    let cpus = samples.iter().filter_map(|sample| sample.cpu).collect::<Vec<_>>();
    let cpu = if cpus.is_empty() { String::new() } else { format!(" cpu {}", short(median(&cpus))) };
    format!("{} [{}..{}]{cpu}", short(median(&values)), short(least), short(greatest))
}
