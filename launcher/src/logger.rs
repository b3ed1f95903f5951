//! Log lines on stderr, or in a file.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, OnceLock};

use log::{Level, LevelFilter, Log, Metadata, Record};

static LOGGER: Lines = Lines;
static FILE: OnceLock<LogFile> = OnceLock::new();

struct Lines;

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

/// Writes lines to `file` instead, which begins anew when it would have more than `limit` bytes.
pub fn install_to_file(verbosity: u8, file: File, limit: u64) {
    // There is one logger, installed once.
    let _ = FILE.set(LogFile { file, limit, written: Mutex::new(0) });
    install(verbosity);
}

/// The file that lines go to, if it is one.
pub fn file() -> Option<BorrowedFd<'static>> {
    FILE.get().map(|log| log.file.as_fd())
}

#[derive(Debug)]
struct LogFile {
    file: File,
    limit: u64,
    written: Mutex<u64>,
}

impl LogFile {
    fn write(&self, line: &[u8]) -> io::Result<()> {
        let mut written = self.written.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut file = &self.file;
        if *written + line.len() as u64 > self.limit {
            file.set_len(0)?;
            file.rewind()?;
            *written = 0;
        }
        *written += line.len() as u64;
        file.write_all(line)
    }
}

impl Log for Lines {
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
        let _ = match FILE.get() {
            Some(file) => file.write(line.as_bytes()),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_full_file_begins_anew() {
        let path = std::env::temp_dir().join(format!("rl-log-{}", std::process::id()));
        let log = LogFile { file: File::create(&path).unwrap(), limit: 10, written: Mutex::new(0) };
        for (line, content) in [("first\n", "first\n"), ("2nd\n", "first\n2nd\n"), ("3\n", "3\n")] {
            log.write(line.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        fs::remove_file(path).unwrap();
    }
}
