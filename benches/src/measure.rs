//! One measurement: programs, and what their engine spends meanwhile.

use std::{collections::BTreeMap, fs};
use tests::process::{Finished, Process};

/// What one measurement says.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    /// The figure itself, in the unit of its row.
    pub value: f64,
    /// Engine CPU per unit of work, where it was measured.
    pub cpu: Option<f64>,
}

impl Sample {
    /// A figure without CPU time.
    #[must_use]
    pub fn plain(value: f64) -> Self {
        Self { value, cpu: None }
    }

    /// Gb/s received, as `iperf3 -J` says in `json`; `cpu` are the seconds that the engine spent, which become s/GB for TCP.
    ///
    /// # Panics
    /// When iperf3 failed.
    #[must_use]
    pub fn of_iperf(json: &str, cpu: Option<f64>) -> Self {
        let json: serde_json::Value = serde_json::from_str(json).expect("iperf3 -J prints JSON");
        let is_udp = json["start"]["test_start"]["protocol"] == "UDP";
        let sum = &json["end"][if is_udp { "sum" } else { "sum_received" }];
        let sent = sum["bits_per_second"].as_f64().unwrap_or_else(|| panic!("iperf3: {}", json["error"]));
        if is_udp {
            let arrived = 1.0 - sum["lost_percent"].as_f64().unwrap_or(0.0) / 100.0;
            return Self::plain(sent * arrived / 1e9);
        }
        let gigabytes = sum["bytes"].as_f64().unwrap_or(0.0) / 1e9;
        let cpu = cpu.filter(|_| gigabytes > 0.0).map(|cpu| cpu / gigabytes);
        Self { value: sent / 1e9, cpu }
    }

    /// Transactions per second, as the probe says in `line`; `cpu` are the seconds that the engine spent, which become us each.
    ///
    /// # Panics
    /// When the probe did not say.
    #[must_use]
    pub fn of_transactions(line: &str, cpu: Option<f64>) -> Self {
        let each = 1e6 / number_in(line, "transactions=").max(1.0);
        Self { value: number_in(line, "per_second="), cpu: cpu.map(|cpu| cpu * each) }
    }
}

/// How long `iperf3 -c` with `args` runs: whole seconds, or so little that it only shows that it works. What gets lost does not count for
/// its end, so that there has to be a time for datagrams.
#[must_use]
pub fn iperf_length(seconds: f64, args: &[&str]) -> String {
    if seconds < 1.0 && !args.contains(&"-u") { "-n32M".to_owned() } else { format!("-t{}", seconds.ceil()) }
}

/// User and system seconds of the engine behind `process` so far.
#[must_use]
pub fn engine_cpu(process: &Process) -> f64 {
    let ticks: u64 =
        engine_processes(process).iter().map(|pid| stat(*pid).map_or(0, |stat| stat.ticks)).sum();
    // USER_HZ is 100 on every Linux this runs on.
    ticks as f64 / 100.0
}

/// Resident megabytes of each process of the engine.
#[must_use]
pub fn engine_resident(process: &Process) -> Vec<f64> {
    let sizes = engine_processes(process).into_iter().filter_map(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.trim().trim_end_matches(" kB").parse::<f64>().ok()? / 1024.0)
    });
    sizes.collect()
}

/// Descriptors that all processes of the engine have open; `None` where the kernel does not say (before Linux 6.2).
#[must_use]
pub fn engine_descriptors(process: &Process) -> Option<u64> {
    // The directory may be closed to us, its size is not.
    let sizes = engine_processes(process)
        .into_iter()
        .filter_map(|pid| Some(fs::metadata(format!("/proc/{pid}/fd")).ok()?.len()));
    Some(sizes.sum::<u64>()).filter(|sum| *sum > 0)
}

/// The number behind `key`, `name=`, in a line of words.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn number_in(line: &str, key: &str) -> f64 {
    let word = line.split_whitespace().find_map(|word| word.strip_prefix(key));
    word.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no {key} in {line}"))
}

/// The median; NaN of nothing.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// A figure with about three digits.
#[must_use]
pub fn short(value: f64) -> String {
    match value {
        v if v >= 10_000.0 => format!("{:.1}k", v / 1000.0),
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

/// What a program of the host prints; empty when it is not there.
#[must_use]
pub fn output_of(program: &str, args: &[&str]) -> String {
    let output = std::process::Command::new(program).args(args).output();
    String::from_utf8_lossy(&output.map(|output| output.stdout).unwrap_or_default()).into_owned()
}

/// The first line of that.
#[must_use]
pub fn first_line_of(program: &str, args: &[&str]) -> String {
    output_of(program, args).lines().next().unwrap_or_default().to_owned()
}

/// The line with `key` of a program that ended well.
///
/// # Panics
/// When it did not, or printed none.
#[track_caller]
#[must_use]
pub fn line_with(finished: Finished, key: &str) -> String {
    let finished = finished.success();
    let line = finished.stdout.lines().find(|line| line.contains(key));
    line.unwrap_or_else(|| panic!("no {key} from {}", finished.describe())).to_owned()
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
    let word = |index: usize| words.get(index).map_or("", AsRef::as_ref);
    // The command is the process whose own first words are those of the gate, of the servers, of the client or of the shell.
    let is_command = word(0) == "/bin/sh"
        || matches!(word(1), "serve" | "client")
        || (word(1) == "probe" && word(2) == "gate");
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
        let mut at = pid;
        for _ in 0..64 {
            let Some(stat) = stats.get(&at) else { return false };
            if stat.is_command && (at != root || pid == root) {
                return false;
            }
            if at == root {
                return true;
            }
            at = stat.parent;
        }
        false
    };
    stats.keys().copied().filter(|pid| belongs(*pid)).collect()
}
