//! The whole comparison by one command: runs every program of it, writes one report with all tables, and draws them.

use benches::{
    measure::{first_line_of, output_of},
    report::{Table, chart, tables},
};
use clap::Parser;
use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};
use tests::locate;

/// Run all comparisons and write a report with charts.
#[derive(Debug, Parser)]
struct Cli {
    /// Runs per cell; each program has a default of its own
    #[arg(long)]
    runs: Option<usize>,
    /// Length of one timed measurement in seconds; likewise
    #[arg(long)]
    seconds: Option<f64>,
    /// Only these programs
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Where the report goes
    #[arg(long, default_value_os_t = kept_reports())]
    out: PathBuf,
    /// Everything once and short, the report to a temporary directory: does it still work?
    #[arg(long)]
    smoke: bool,
    /// Measure nothing, draw the charts of this report again
    #[arg(long, conflicts_with_all = ["runs", "seconds", "only", "smoke"])]
    plot: Option<PathBuf>,
}

/// A program that prints tables of measurements.
struct Part {
    name: &'static str,
    title: &'static str,
}

const PARTS: [Part; 5] = [
    Part { name: "compare", title: "From the child to the world and back" },
    Part { name: "forwards", title: "Published ports" },
    Part { name: "overlay", title: "Pods of two nodes over VXLAN" },
    Part { name: "distance", title: "Over distance and loss" },
    Part { name: "scale", title: "Many flows" },
];

/// Longest that one program may take, in seconds, in full and by `--smoke`.
const LIMITS: [u32; 2] = [4 * 3600, 180];

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.plot {
        Some(report) => fs::read_to_string(report)
            .and_then(|text| draw(&text, report.parent().unwrap_or(Path::new("")), &stem(report)))
            .map(|()| Outcome::Good),
        None => run(&cli),
    };
    match done {
        Ok(Outcome::Good) => ExitCode::SUCCESS,
        Ok(Outcome::Bad) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("all: {error}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Good,
    /// A program failed, or a bar was missed.
    Bad,
}

fn run(cli: &Cli) -> io::Result<Outcome> {
    if !cli.smoke {
        build()?;
    }
    let date = first_line_of("date", &["-u", "+%F"]);
    let temporary = env::temp_dir().join(format!("rootless-launch-benchmarks-{}", std::process::id()));
    let out = if cli.smoke { &temporary } else { &cli.out };
    fs::create_dir_all(out)?;
    let report = out.join(format!("{date}.md"));
    let mut text = head(&date);
    let mut outcome = Outcome::Good;
    for part in
        PARTS.iter().filter(|part| cli.only.is_empty() || cli.only.iter().any(|name| name == part.name))
    {
        let Some(printed) = part.run(cli, &mut outcome)? else {
            text.push_str(&format!("\n## {}\nleft out: `{}` is not built\n", part.title, part.name));
            continue;
        };
        if tables(&printed).is_empty() {
            eprintln!("{}: no table", part.name);
            outcome = Outcome::Bad;
        }
        text.push_str(&format!("\n## {}\n", part.title));
        if !tables(&printed).is_empty() {
            text.push_str(&format!("![{}]({date}-{}.svg)\n\n", part.title, part.name));
        }
        text.push_str(printed.trim_end());
        text.push('\n');
        // What was measured is kept, whatever becomes of the next program.
        fs::write(&report, &text)?;
    }
    draw(&text, out, &date)?;
    eprintln!("{} and its charts are written", report.display());
    if cli.smoke {
        fs::remove_dir_all(out)?;
    }
    Ok(outcome)
}

impl Part {
    /// What the program prints; `None` when it is not there.
    fn run(&self, cli: &Cli, outcome: &mut Outcome) -> io::Result<Option<String>> {
        let program = env::current_exe()?.with_file_name(self.name);
        if !program.exists() {
            return Ok(None);
        }
        eprintln!("== {}", self.name);
        let mut command = Command::new(locate::program("timeout"));
        command.args(["--kill-after=10", &LIMITS[usize::from(cli.smoke)].to_string()]).arg(program);
        command.args(cli.runs.map(|runs| format!("--runs={runs}")));
        command.args(cli.seconds.map(|seconds| format!("--seconds={seconds}")));
        command.args(cli.smoke.then_some("--smoke"));
        let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
        if !output.status.success() {
            eprintln!("{}: {}", self.name, output.status);
            *outcome = Outcome::Bad;
        }
        Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
    }
}

/// Cargo built this program; the others and the engine are built by it as well. Without cargo they have to be there.
fn build() -> io::Result<()> {
    let Some(cargo) = env::var_os("CARGO") else { return Ok(()) };
    let status = Command::new(cargo)
        .args(["build", "--release", "--locked", "--bins", "-p", "benches", "-p", "rootless-launch"])
        .status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("cargo build: {status}"))) }
}

/// One chart per program, and one for the front page: the rates of the first.
fn draw(report: &str, out: &Path, stem: &str) -> io::Result<()> {
    for part in &PARTS {
        let section = report.split("\n## ").find(|section| section.starts_with(part.title));
        let Some(table) = section.and_then(|section| tables(section).into_iter().next()) else { continue };
        fs::write(out.join(format!("{stem}-{}.svg", part.name)), chart::svg(part.title, &table))?;
        if part.name == PARTS[0].name {
            fs::write(
                out.join(format!("{stem}.svg")),
                chart::svg(&format!("{}: more is better", part.title), &rates(table)),
            )?;
        }
    }
    Ok(())
}

fn rates(mut table: Table) -> Table {
    table.rows.retain(|row| row.name.contains("/s"));
    table
}

fn head(date: &str) -> String {
    let engine = locate::rootless_launch().map(|path| path.to_string_lossy().into_owned());
    let version =
        engine.map_or_else(|| "not built".to_owned(), |engine| first_line_of(&engine, &["--version"]));
    let commit = first_line_of("git", &["describe", "--always", "--dirty"]);
    let memory = output_of("grep", &["MemTotal", "/proc/meminfo"]);
    let kilobytes = memory.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    format!(
        "# Benchmarks of {date}\n\n{version}, commit {}, {} MB of memory. Repeat with `cargo run --release -p benches --bin all`; ratios inside a\n\
         table mean something, absolute figures do not travel.\n",
        if commit.is_empty() { "unknown" } else { &commit },
        kilobytes / 1024
    )
}

fn kept_reports() -> PathBuf {
    // cargo run says where the package is; without cargo it is run from the top of the repository.
    env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(PathBuf::new, |package| PathBuf::from(package).join(".."))
        .join("docs/benchmarks")
}

fn stem(report: &Path) -> String {
    report.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}
