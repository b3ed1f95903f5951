//! What is said over the control socket.
//!
//! # Theory of operation
//! As much of HTTP/1.1 as the API's client speaks, one request for each connection, without a body. Everything here
//! is bytes to values and back; [`run`](super::run) moves the bytes.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/node` | [`NodeStatus`] |
//! | `GET /v1/node/units/UNIT/log?lines=N&follow=true` | the last N lines; with `follow`, later ones too, until the connection or the supervisor ends |
//! | `POST /v1/node/units/UNIT/restart` | [`UnitStatus`], once the unit is ready again, or has failed |
//! | `POST /v1/node/stop` | 202; the supervisor ends when everything is stopped. The second one does not wait for pods |
//!
//! Errors are the API's `{"message": ...}`. A head is at most [`MAX_HEAD`] long.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::log::utc;
use super::unit::{PlannedProgram, Readiness, Unit};
use super::{State, View};
use crate::api::model::ErrorBody;
use crate::error::Ending;

/// Longest head of a request, in bytes.
pub const MAX_HEAD: usize = 8 << 10;
/// Lines of a log where none are asked for.
pub const DEFAULT_LINES: usize = 100;

/// What somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// How things are.
    Status,
    /// A unit's lines.
    Log {
        /// Its name.
        unit: String,
        /// How many of those there are.
        lines: usize,
        /// Whether later ones are wanted too.
        follow: Follow,
    },
    /// Stop a unit and start it again.
    Restart {
        /// Its name.
        unit: String,
    },
    /// Stop everything.
    Stop,
}

/// Whether somebody waits for more lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// What there is will do.
    No,
    /// Until one of both ends.
    Yes,
}

/// Why a request is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP's status.
    pub status: u16,
    /// Why.
    pub message: String,
}

impl Refusal {
    /// A refusal with a status.
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        Refusal { status, message: message.into() }
    }
}

/// Reads a request from what has come so far; nothing while its head is not complete.
///
/// # Errors
/// It will never be one that can be done.
pub fn parse(bytes: &[u8]) -> Result<Option<Command>, Refusal> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let Some(head) = end.and_then(|end| bytes.get(..end)).filter(|head| head.len() <= MAX_HEAD) else {
        return match bytes.len() > MAX_HEAD {
            true => Err(Refusal::new(431, format!("a head has at most {MAX_HEAD} bytes"))),
            false => Ok(None),
        };
    };
    let bad = |message: &str| Refusal::new(400, message);
    let head = std::str::from_utf8(head).map_err(|_| bad("the head is not UTF-8"))?;
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(bad("the request line is not METHOD TARGET VERSION"));
    };
    if !matches!(version, "HTTP/1.0" | "HTTP/1.1") {
        return Err(Refusal::new(505, "only HTTP/1.0 and HTTP/1.1 are spoken here"));
    }
    for line in lines {
        let (name, value) = line.split_once(':').ok_or_else(|| bad("a header is not NAME: VALUE"))?;
        let has_body = name.eq_ignore_ascii_case("transfer-encoding")
            || (name.eq_ignore_ascii_case("content-length") && value.trim() != "0");
        if has_body {
            return Err(Refusal::new(413, "no request here has a body"));
        }
    }
    command(method, target).map(Some)
}

fn command(method: &str, target: &str) -> Result<Command, Refusal> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let parts: Vec<&str> = path.split('/').collect();
    let wanted = match parts.as_slice() {
        ["", "v1", "node"] => ("GET", Command::Status),
        ["", "v1", "node", "stop"] => ("POST", Command::Stop),
        ["", "v1", "node", "units", unit, "restart"] => {
            ("POST", Command::Restart { unit: (*unit).to_owned() })
        }
        ["", "v1", "node", "units", unit, "log"] => {
            let (lines, follow) = log_query(query)?;
            ("GET", Command::Log { unit: (*unit).to_owned(), lines, follow })
        }
        _ => return Err(Refusal::new(404, format!("there is no {path} here"))),
    };
    match wanted {
        (allowed, command) if allowed == method => Ok(command),
        (allowed, _) => Err(Refusal::new(405, format!("{path} takes {allowed}"))),
    }
}

fn log_query(query: &str) -> Result<(usize, Follow), Refusal> {
    let (mut lines, mut follow) = (DEFAULT_LINES, Follow::No);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=').unwrap_or((pair, "")) {
            ("lines", number) => {
                lines = number.parse().map_err(|_| Refusal::new(400, "lines has to be a number"))?;
            }
            ("follow", "true") => follow = Follow::Yes,
            ("follow", "false") => follow = Follow::No,
            ("follow", _) => return Err(Refusal::new(400, "follow has to be true or false")),
            // As the API does.
            _ => {}
        }
    }
    Ok((lines, follow))
}

/// The head of an answer whose body ends with the connection.
pub fn head(status: u16, content: Content) -> Vec<u8> {
    start(status, content, "")
}

/// A whole answer.
pub fn answer(status: u16, content: Content, body: &[u8]) -> Vec<u8> {
    let mut bytes = start(status, content, &format!("Content-Length: {}\r\n", body.len()));
    bytes.extend_from_slice(body);
    bytes
}

/// A whole answer that says no.
pub fn refuse(refusal: &Refusal) -> Vec<u8> {
    let body = ErrorBody { message: refusal.message.clone(), in_use: None };
    answer(refusal.status, Content::Json, &json(&body))
}

/// What a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// JSON.
    Json,
    /// Lines as a unit wrote them.
    Lines,
}

fn start(status: u16, content: Content, length: &str) -> Vec<u8> {
    let reason = match status {
        200 => "OK",
        202 => "Accepted",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    };
    let content = match content {
        Content::Json => "application/json",
        Content::Lines => "text/plain",
    };
    format!("HTTP/1.1 {status} {reason}\r\nContent-Type: {content}\r\n{length}Connection: close\r\n\r\n")
        .into_bytes()
}

/// A value as JSON.
pub fn json(value: &impl Serialize) -> Vec<u8> {
    // Only maps with odd keys cannot be written, and there are none.
    serde_json::to_vec(value).unwrap_or_default()
}

/// How a node is.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Version of the program that supervises.
    pub version: String,
    /// Its process, in the numbers of its own namespace.
    pub pid: i32,
    /// Whether everything is ready.
    pub ready: bool,
    /// Whether everything is being stopped.
    pub stopping: bool,
    /// Longest time that stopping everything can take, in seconds.
    pub stop_seconds: u64,
    /// Every unit, in the order of starting.
    pub units: Vec<UnitStatus>,
    /// The programs that they are made of, as they were when the node started.
    #[serde(default)]
    pub programs: Vec<PlannedProgram>,
}

/// How a unit is.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UnitStatus {
    /// Its name.
    pub name: String,
    /// A word for its state: waiting, starting, ready, done, paused, stopping, killing, failed or stopped.
    pub state: String,
    /// What it is waited for while it starts, to follow "until".
    pub ready_when: String,
    /// Since when it is in this state (RFC 3339).
    pub since: String,
    /// The same in seconds before now.
    pub for_seconds: u64,
    /// Its process, in the numbers of the supervisor's namespace.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pid: Option<i32>,
    /// How often it was started anew.
    pub restarts: u32,
    /// How its latest process ended.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_exit: Option<LastExit>,
    /// Why it failed, if it is not ready since.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub failure: Option<String>,
    /// What it says of itself (STATUS of sd_notify(3)).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub says: Option<String>,
    /// Its log file.
    pub log: String,
}

/// How a process ended.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LastExit {
    /// Its exit status.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub status: Option<i32>,
    /// The signal that killed it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub signal: Option<i32>,
}

impl From<Ending> for LastExit {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Exited(status) => LastExit { status: Some(status), signal: None },
            Ending::Killed(signal) => LastExit { status: None, signal: Some(signal) },
        }
    }
}

impl LastExit {
    /// For people.
    pub fn ending(&self) -> Option<Ending> {
        self.status.map(Ending::Exited).or(self.signal.map(Ending::Killed))
    }
}

impl UnitStatus {
    /// What is shown of a unit that has been in its state for `age` at `now`.
    pub fn new(unit: &Unit, view: &View<'_>, now: SystemTime, age: Duration, log: String) -> Self {
        UnitStatus {
            name: unit.name.clone(),
            state: view.state.name().to_owned(),
            ready_when: match &unit.ready {
                Readiness::Exited => "it has ended with status 0".to_owned(),
                other => other.to_string(),
            },
            since: utc(now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH)),
            for_seconds: age.as_secs(),
            pid: view.pid,
            restarts: view.runs.saturating_sub(1),
            last_exit: view.last_ending.map(LastExit::from),
            failure: view.why.map(ToString::to_string),
            says: None,
            log,
        }
    }

    /// Whether it is as it should be.
    pub fn is_good(&self) -> bool {
        [State::Ready, State::Done].iter().any(|state| state.name() == self.state)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn get(request: &str) -> Result<Option<Command>, u16> {
        parse(request.as_bytes()).map_err(|refusal| refusal.status)
    }

    #[test]
    fn requests_are_read() {
        let head = |line: &str| get(&format!("{line} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"));
        assert_eq!(head("GET /v1/node"), Ok(Some(Command::Status)));
        assert_eq!(head("POST /v1/node/stop"), Ok(Some(Command::Stop)));
        let restart = Command::Restart { unit: "kubelet".into() };
        assert_eq!(head("POST /v1/node/units/kubelet/restart"), Ok(Some(restart)));
        let log = |lines, follow| Ok(Some(Command::Log { unit: "a.b".into(), lines, follow }));
        assert_eq!(head("GET /v1/node/units/a.b/log"), log(DEFAULT_LINES, Follow::No));
        assert_eq!(head("GET /v1/node/units/a.b/log?follow=true&lines=7&x"), log(7, Follow::Yes));
        assert_eq!(get("GET /v1/node HTTP/1.0\r\n\r\n"), Ok(Some(Command::Status)));
        assert_eq!(get("GET /v1/node HTTP/1.0\r\n\r"), Ok(None));
        assert_eq!(get(""), Ok(None));
    }

    #[test]
    fn what_is_no_request_is_refused_by_status() {
        for (request, status) in [
            ("GET /v1/node\r\n\r\n", 400),
            ("GET  /v1/node HTTP/1.1\r\n\r\n", 400),
            ("GET /v1/node HTTP/2\r\n\r\n", 505),
            ("\r\n\r\n", 400),
            ("GET /v1/node HTTP/1.1\r\nHost\r\n\r\n", 400),
            ("GET /v1/node HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 413),
            ("GET /v1/node HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 413),
            ("GET /v1/ports HTTP/1.1\r\n\r\n", 404),
            ("GET /v1/node/units/../../x/log/y HTTP/1.1\r\n\r\n", 404),
            ("POST /v1/node HTTP/1.1\r\n\r\n", 405),
            ("GET /v1/node/stop HTTP/1.1\r\n\r\n", 405),
            ("GET /v1/node/units/a/log?lines=-1 HTTP/1.1\r\n\r\n", 400),
            ("GET /v1/node/units/a/log?follow=1 HTTP/1.1\r\n\r\n", 400),
        ] {
            assert_eq!(get(request), Err(status), "{request:?}");
        }
        assert_eq!(parse(b"GET /\xff HTTP/1.1\r\n\r\n").unwrap_err().status, 400);
        assert_eq!(parse(&[b'a'; MAX_HEAD + 1]).unwrap_err().status, 431);
        assert_eq!(parse(&[b'a'; MAX_HEAD]), Ok(None));
    }

    #[test]
    fn answers_are_http() {
        let refused = refuse(&Refusal::new(404, "there is no unit x"));
        let text = String::from_utf8(refused).unwrap();
        assert_eq!(
            text,
            "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 32\r\n\
             Connection: close\r\n\r\n{\"message\":\"there is no unit x\"}"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
            let _ = parse(&[&b"GET /v1/node/units/"[..], &bytes, b" HTTP/1.1\r\n\r\n"].concat());
        }

        #[test]
        fn more_bytes_never_change_a_request(cut in 0usize..60) {
            let whole = b"GET /v1/node/units/kubelet/log?lines=3 HTTP/1.1\r\nA: b\r\n\r\n";
            let cut = cut.min(whole.len() - 1);
            prop_assert_eq!(parse(&whole[..cut]), Ok(None));
            prop_assert!(parse(whole).unwrap().is_some());
        }
    }
}
