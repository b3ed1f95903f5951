//! The lines that units write: a file each, the last ones in memory, and the journal if asked.
//!
//! # Theory of operation
//! Bytes go to `UNIT.log` as they come, so that a file is what the program wrote, with remarks of the supervisor
//! (starts and ends, with the time) between. A file that would have more than [`Bounds::file_bytes`] becomes `UNIT.log.1` at
//! the end of a line, that one `UNIT.log.2`, up to [`Bounds::kept_files`]. A disk that is full costs lines of the
//! file, never the unit's pace: what was lost is remarked as soon as there is room again. The last lines stay in
//! memory, numbered, for those who ask for them or follow.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// How much of a unit's lines is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of a file before the next one begins.
    pub file_bytes: u64,
    /// Full files that are kept besides the current one.
    pub kept_files: u32,
    /// Lines in memory.
    pub lines: usize,
    /// Bytes in memory.
    pub bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds { file_bytes: 8 << 20, kept_files: 2, lines: 1000, bytes: 128 << 10 }
    }
}

/// A longer line is cut in pieces.
pub const MAX_LINE: usize = 8 << 10;

/// The lines of one unit.
#[derive(Debug)]
pub struct Log {
    unit: String,
    file: LogFile,
    tail: Tail,
    /// The line that is being written.
    partial: Vec<u8>,
}

impl Log {
    /// The log `UNIT.log` in `directory`, which goes on where it ended.
    pub fn new(directory: &Path, unit: &str, bounds: Bounds) -> Self {
        let path = directory.join(format!("{unit}.log"));
        Log {
            unit: unit.to_owned(),
            file: LogFile { path, bounds, open: None, lost: 0, why: None, at_line_start: true },
            tail: Tail { bounds, lines: VecDeque::new(), bytes: 0, first: 0 },
            partial: Vec::new(),
        }
    }

    /// Takes what the unit wrote.
    pub fn handle_output(&mut self, bytes: &[u8], journal: Option<&Journal>) {
        self.file.write(bytes);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            match piece.strip_suffix(b"\n") {
                Some(end) => {
                    self.partial.extend_from_slice(end);
                    self.end_line(journal);
                }
                None => self.partial.extend_from_slice(piece),
            }
            while self.partial.len() > MAX_LINE {
                let rest = self.partial.split_off(MAX_LINE);
                self.end_line(journal);
                self.partial = rest;
            }
        }
    }

    /// Adds a line of our own.
    pub fn remark(&mut self, now: SystemTime, text: &str, journal: Option<&Journal>) {
        if !self.partial.is_empty() {
            self.end_line(journal);
        }
        let line = format!("{} rootless-launch: {text}", utc(now));
        self.file.write_line(&line);
        self.partial.extend_from_slice(line.as_bytes());
        self.end_line(journal);
    }

    /// The last `count` lines, from memory.
    pub fn last(&self, count: usize) -> impl Iterator<Item = &[u8]> {
        let skipped = self.tail.lines.len().saturating_sub(count);
        self.tail.lines.iter().skip(skipped).map(|line| &**line)
    }

    /// The number that the next line will have.
    pub fn end(&self) -> u64 {
        self.tail.first + self.tail.lines.len() as u64
    }

    /// The number of the line from which `count` are left.
    pub fn place_of_last(&self, count: usize) -> u64 {
        self.end().saturating_sub(count as u64).max(self.tail.first)
    }

    /// The line with this number, or the first one after it that is in memory, with its number.
    pub fn line(&self, number: u64) -> Option<(u64, &[u8])> {
        let number = number.max(self.tail.first);
        let place = usize::try_from(number - self.tail.first).ok()?;
        self.tail.lines.get(place).map(|line| (number, &**line))
    }

    /// Where its file is.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    fn end_line(&mut self, journal: Option<&Journal>) {
        let line = std::mem::take(&mut self.partial);
        if let Some(journal) = journal {
            journal.send(&self.unit, &line);
        }
        self.tail.push(line.into());
    }
}

/// The last lines.
#[derive(Debug)]
struct Tail {
    bounds: Bounds,
    lines: VecDeque<Box<[u8]>>,
    bytes: usize,
    /// Number of the first one.
    first: u64,
}

impl Tail {
    fn push(&mut self, line: Box<[u8]>) {
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.lines.len() > self.bounds.lines || self.bytes > self.bounds.bytes {
            let Some(gone) = self.lines.pop_front() else { break };
            self.bytes -= gone.len();
            self.first += 1;
        }
    }
}

/// A file, and its predecessors.
#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    bounds: Bounds,
    /// With the bytes it has.
    open: Option<(File, u64)>,
    /// Bytes that could not be written, since one could.
    lost: u64,
    why: Option<io::Error>,
    at_line_start: bool,
}

impl LogFile {
    /// Writes bytes; what would make the file too large goes to the next one, after the line that is being written.
    fn write(&mut self, bytes: &[u8]) {
        let has = self.open.as_ref().map_or(0, |(_, has)| *has);
        if has == 0 || has + bytes.len() as u64 <= self.bounds.file_bytes {
            return self.append(bytes);
        }
        let end = match self.at_line_start {
            true => Some(0),
            false => bytes.iter().position(|byte| *byte == b'\n').map(|place| place + 1),
        };
        match end.and_then(|end| bytes.split_at_checked(end)) {
            Some((ended, begun)) => {
                self.append(ended);
                self.rotate();
                self.append(begun);
            }
            None => self.append(bytes),
        }
    }

    /// Writes a line that begins at the left.
    fn write_line(&mut self, text: &str) {
        let start = if self.at_line_start { "" } else { "\n" };
        self.write(format!("{start}{text}\n").as_bytes());
    }

    fn append(&mut self, bytes: &[u8]) {
        let Some(&last) = bytes.last() else { return };
        let mut count = 0;
        match self.try_append(bytes, &mut count) {
            Ok(()) => self.at_line_start = last == b'\n',
            Err(error) => {
                self.lost += bytes.len().saturating_sub(count) as u64;
                if self.why.is_none() {
                    log::warn!("cannot write {}: {error}; its lines are lost meanwhile", self.path.display());
                }
                self.why = Some(error);
                self.at_line_start = false;
            }
        }
    }

    fn try_append(&mut self, bytes: &[u8], written: &mut usize) -> io::Result<()> {
        let (mut file, mut has) = match self.open.take() {
            Some(open) => open,
            None => {
                let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?;
                let has = file.metadata()?.len();
                (file, has)
            }
        };
        let result = (|| {
            if let Some(why) = &self.why {
                let note = format!("\nrootless-launch: {} bytes are missing here: {why}\n", self.lost);
                // All or nothing: a note cut short would be written again.
                let before = has;
                if let Err(error) = write_counted(&mut file, note.as_bytes(), &mut has) {
                    file.set_len(before)?;
                    has = before;
                    return Err(error);
                }
                (self.why, self.lost) = (None, 0);
            }
            let before = has;
            let result = write_counted(&mut file, bytes, &mut has);
            *written = usize::try_from(has - before).unwrap_or(usize::MAX);
            result
        })();
        self.open = Some((file, has));
        result
    }

    /// Begins the next file. Failing that, the file grows on.
    fn rotate(&mut self) {
        let numbered = |number: u32| match number {
            0 => self.path.clone(),
            number => {
                let mut name = self.path.clone().into_os_string();
                name.push(format!(".{number}"));
                name.into()
            }
        };
        for number in (0..self.bounds.kept_files).rev() {
            match fs::rename(numbered(number), numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return,
                _ => {}
            }
        }
        if self.bounds.kept_files == 0 && fs::remove_file(&self.path).is_err() {
            return;
        }
        self.open = None;
    }
}

fn write_counted(file: &mut File, mut bytes: &[u8], has: &mut u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                *has += count as u64;
                bytes = bytes.get(count..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// systemd's journal, by its native protocol.
///
/// See <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>. A journal that does not keep up loses lines; they are in the files.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    instance: String,
}

/// Where systemd-journald listens.
pub const JOURNAL: &str = "/run/systemd/journal/socket";

impl Journal {
    /// The journal of this machine, for the lines of an instance.
    ///
    /// # Errors
    /// There is none.
    pub fn connect(instance: &str) -> io::Result<Self> {
        Journal::connect_to(Path::new(JOURNAL), instance)
    }

    fn connect_to(path: &Path, instance: &str) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.connect(path)?;
        // A field ends at the end of the line.
        Ok(Journal { socket, instance: instance.replace('\n', " ") })
    }

    fn send(&self, unit: &str, line: &[u8]) {
        let fields = format!(
            "PRIORITY=6\nSYSLOG_IDENTIFIER={unit}\nROOTLESS_LAUNCH_INSTANCE={}\nROOTLESS_LAUNCH_UNIT={unit}\nMESSAGE=",
            self.instance
        );
        let _ = self.socket.send(&[fields.as_bytes(), line, b"\n"].concat());
    }
}

/// A time as RFC 3339 has it, in UTC, to the second.
pub fn utc(time: SystemTime) -> String {
    const DAY: u64 = 24 * 3600;
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (mut days, second) = (seconds / DAY, seconds % DAY);
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) && year < 9999 {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year}-{month:02}-{:02}T{hour:02}:{minute:02}:{:02}Z", days + 1, second % 60)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A directory that is gone at the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("rl-log-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Scratch(path)
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.0.join(name)).unwrap()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn lines(log: &Log, count: usize) -> Vec<String> {
        log.last(count).map(|line| String::from_utf8_lossy(line).into_owned()).collect()
    }

    fn noon() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(12 * 3600)
    }

    #[test]
    fn files_have_what_was_written_and_remarks_on_lines_of_their_own() {
        let scratch = Scratch::new("written");
        let mut log = Log::new(&scratch.0, "a", Bounds::default());
        log.handle_output(b"one\ntw", None);
        log.handle_output(b"o\nthree", None);
        log.remark(noon(), "ended", None);
        log.handle_output(b"four\n", None);
        let remark = "1970-01-01T12:00:00Z rootless-launch: ended";
        assert_eq!(lines(&log, 9), ["one", "two", "three", remark, "four"]);
        assert_eq!(lines(&log, 1), ["four"]);
        assert_eq!(scratch.read("a.log"), format!("one\ntwo\nthree\n{remark}\nfour\n"));
        drop(log);
        Log::new(&scratch.0, "a", Bounds::default()).handle_output(b"five\n", None);
        assert!(scratch.read("a.log").ends_with("four\nfive\n"));
    }

    #[test]
    fn full_files_make_room_at_the_end_of_a_line() {
        let scratch = Scratch::new("rotation");
        let bounds = Bounds { file_bytes: 10, ..Bounds::default() };
        let mut log = Log::new(&scratch.0, "a", bounds);
        for text in ["lost\n", "1\n", "2\nthi", "rd\n", "fourth\n", "5\n", "sixth and seventh\n", "8\n"] {
            log.handle_output(text.as_bytes(), None);
        }
        assert_eq!(scratch.read("a.log.2"), "fourth\n5\n");
        assert_eq!(scratch.read("a.log.1"), "sixth and seventh\n");
        assert_eq!(scratch.read("a.log"), "8\n");
        assert!(!scratch.0.join("a.log.3").exists());
    }

    #[test]
    fn memory_is_bounded_and_lines_keep_their_numbers() {
        let scratch = Scratch::new("tail");
        let bounds = Bounds { lines: 3, bytes: 100, ..Bounds::default() };
        let mut log = Log::new(&scratch.0, "a", bounds);
        (0..5).for_each(|number| log.handle_output(format!("{number}\n").as_bytes(), None));
        assert_eq!(lines(&log, 9), ["2", "3", "4"]);
        assert_eq!((log.place_of_last(2), log.place_of_last(9), log.end()), (3, 2, 5));
        assert_eq!(log.line(0), Some((2, &b"2"[..])));
        assert_eq!(log.line(4), Some((4, &b"4"[..])));
        assert_eq!(log.line(5), None);
        log.handle_output(&[b'x'; 3 * MAX_LINE], None);
        assert_eq!(log.partial.len(), MAX_LINE);
        assert!(log.tail.bytes <= 100, "what is too long for memory is in the file");
    }

    #[test]
    fn what_could_not_be_written_is_told_when_it_can_be_again() {
        let scratch = Scratch::new("full");
        let directory = scratch.0.join("later");
        let mut log = Log::new(&directory, "a", Bounds::default());
        log.handle_output(b"one\n", None);
        log.handle_output(b"two\n", None);
        assert_eq!(lines(&log, 9), ["one", "two"]);
        fs::create_dir(&directory).unwrap();
        log.handle_output(b"three\n", None);
        let text = scratch.read("later/a.log");
        assert!(text.starts_with("\nrootless-launch: 8 bytes are missing here: No such file"), "{text}");
        assert!(text.ends_with(")\nthree\n"), "{text}");
    }

    #[test]
    fn the_journal_gets_fields() {
        let scratch = Scratch::new("journal");
        let path = scratch.0.join("socket");
        let journald = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::connect_to(&path, "no\nde").unwrap();
        let mut log = Log::new(&scratch.0, "kubelet", Bounds::default());
        log.handle_output(b"ready\n", Some(&journal));
        let mut bytes = [0; 1000];
        let length = journald.recv(&mut bytes).unwrap();
        assert_eq!(
            std::str::from_utf8(&bytes[..length]).unwrap(),
            "PRIORITY=6\nSYSLOG_IDENTIFIER=kubelet\nROOTLESS_LAUNCH_INSTANCE=no de\nROOTLESS_LAUNCH_UNIT=kubelet\n\
             MESSAGE=ready\n"
        );
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        let at = |seconds| utc(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_795_361_422), "2026-11-22T15:30:22Z");
        assert_eq!(at(4_107_542_399), "2100-02-28T23:59:59Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00Z");
        assert!(at(u64::MAX >> 8).starts_with("9999-"));
    }
}
