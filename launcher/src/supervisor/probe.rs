//! Whether a unit is ready, decided from what was seen; looks at nothing itself.

use std::io;
use std::time::Duration;

use super::Moment;
use super::unit::Readiness;

/// What was seen when somebody looked at a unit that starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// The socket took a connection.
    Connected,
    /// It did not.
    NotConnected {
        /// connect(2).
        errno: i32,
    },
    /// The first bytes of an answer, as far as they came.
    Answered(Vec<u8>),
    /// The connection broke, or nothing came within [`PATIENCE`].
    Silent,
    /// The file is there.
    Present,
    /// It is not.
    Absent {
        /// stat(2).
        errno: i32,
    },
}

/// What an observation means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is ready.
    Ready,
    /// Not yet; what there is instead, for people.
    NotYet(String),
}

/// Longest wait for one look.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// As many bytes of an answer decide.
pub const ENOUGH: usize = 12;

/// Judges one look at a unit.
pub fn judge(readiness: &Readiness, seen: &Observation) -> Verdict {
    let not_yet = |text: String| Verdict::NotYet(text);
    let reason = |errno: i32| io::Error::from_raw_os_error(errno);
    match (readiness, seen) {
        (Readiness::UnixSocket { .. }, Observation::Connected)
        | (Readiness::File { .. }, Observation::Present) => Verdict::Ready,
        (Readiness::Http { .. }, Observation::Answered(head)) => match status(head) {
            Some(200..=399) => Verdict::Ready,
            Some(status) => not_yet(format!("it answers with status {status}")),
            None => not_yet("what answers there does not speak HTTP".to_owned()),
        },
        (Readiness::UnixSocket { path }, Observation::NotConnected { errno }) => {
            not_yet(format!("{}: {}", path.display(), reason(*errno)))
        }
        (Readiness::Http { address, .. }, Observation::NotConnected { errno }) => {
            not_yet(format!("{address}: {}", reason(*errno)))
        }
        (Readiness::Http { address, .. }, Observation::Silent) => {
            not_yet(format!("{address} does not answer"))
        }
        (Readiness::File { path }, Observation::Absent { errno }) => {
            not_yet(format!("{}: {}", path.display(), reason(*errno)))
        }
        // An observation of something else says nothing.
        _ => not_yet(format!("nobody saw whether {readiness}")),
    }
}

/// The status of `HTTP/1.x NNN`.
fn status(head: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(head.get(..ENOUGH)?).ok()?;
    let (version, status) = line.split_once(' ')?;
    version.starts_with("HTTP/1.").then_some(())?;
    status.parse().ok()
}

/// When to look at one start of a unit: soon, then at growing distances, one look at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// `None` while a look is under way.
    due: Option<Moment>,
    pause: Duration,
}

/// Before the first look; doubled from look to look.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// What a start can be late by because nobody looked.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

impl Probe {
    /// For a unit that is started now.
    pub fn new(now: Moment) -> Self {
        let mut probe = Probe { due: None, pause: FIRST_PAUSE };
        probe.handle_not_yet(now);
        probe
    }

    /// Whether somebody has to look; says so once for each look.
    pub fn poll(&mut self, now: Moment) -> bool {
        self.due.take_if(|due| *due <= now).is_some()
    }

    /// A look has not found it ready.
    pub fn handle_not_yet(&mut self, now: Moment) {
        self.due = Some(now.saturating_add(self.pause));
        self.pause = self.pause.saturating_mul(2).min(LONGEST_PAUSE);
    }

    /// When the next look is due; nothing while one is under way.
    pub fn due(&self) -> Option<Moment> {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_http_unit_is_ready_by_its_status() {
        let http = Readiness::Http { address: "127.0.0.1:10248".parse().unwrap(), path: "/healthz".into() };
        let judged = |head: &[u8]| judge(&http, &Observation::Answered(head.into()));
        assert_eq!(judged(b"HTTP/1.1 200 OK\r\n"), Verdict::Ready);
        assert_eq!(judged(b"HTTP/1.0 302 Found"), Verdict::Ready);
        assert_eq!(judged(b"HTTP/1.1 500 No"), Verdict::NotYet("it answers with status 500".into()));
        for nonsense in [
            &b"HTTP/1.1 2"[..],
            b"SSH-2.0-dropbear",
            b"",
            b"HTTP/1.1 +99 \r\n",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            assert!(matches!(judged(nonsense), Verdict::NotYet(_)), "{nonsense:?}");
        }
        let refused = judge(&http, &Observation::NotConnected { errno: libc::ECONNREFUSED });
        assert_eq!(refused, Verdict::NotYet("127.0.0.1:10248: Connection refused (os error 111)".into()));
    }

    #[test]
    fn sockets_and_files_are_ready_when_they_are_there() {
        let socket = Readiness::UnixSocket { path: "/run/x.sock".into() };
        assert_eq!(judge(&socket, &Observation::Connected), Verdict::Ready);
        assert!(matches!(judge(&socket, &Observation::Present), Verdict::NotYet(_)));
        let file = Readiness::File { path: "/run/x".into() };
        assert_eq!(judge(&file, &Observation::Present), Verdict::Ready);
        let Verdict::NotYet(why) = judge(&file, &Observation::Absent { errno: libc::ENOENT }) else {
            panic!("absent is not ready")
        };
        assert!(why.starts_with("/run/x: No such file"), "{why}");
    }

    #[test]
    fn looks_grow_rarer_and_never_overlap() {
        let mut probe = Probe::new(Moment::ZERO);
        let mut now = Moment::ZERO;
        let mut pauses = Vec::new();
        for _ in 0..7 {
            let due = probe.due().unwrap();
            assert!(!probe.poll(due - Duration::from_millis(1)));
            pauses.push((due - now).as_millis());
            now = due;
            assert!(probe.poll(now));
            assert!(!probe.poll(now), "a look is under way");
            assert_eq!(probe.due(), None);
            probe.handle_not_yet(now);
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 250, 250]);
    }
}
