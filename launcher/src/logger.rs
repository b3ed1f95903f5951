//! Log lines on stderr.

use std::io::Write;

use log::{Level, LevelFilter, Log, Metadata, Record};

static LOGGER: Stderr = Stderr;

struct Stderr;

/// Shows warnings and errors; more with each `-v`.
pub fn install(verbosity: u8) {
    let level = match verbosity {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    // Fails only if a logger is there already, which then does the work.
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(level);
    }
}

impl Log for Stderr {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let kind = match record.level() {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            Level::Info => "",
            Level::Debug => "debug: ",
            Level::Trace => "trace: ",
        };
        // One write per line: launcher, child and engine share this stderr. A closed stderr is no reason to stop.
        let line = format!("rootless-launch: {kind}{}\n", record.args());
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}
