//! As much of an HTTP client as a Unix socket needs.
//!
//! Requests are HTTP/1.0: the server then marks the end of an answer by closing, and sends nothing in chunks.

use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use thiserror::Error;

/// Why there is no answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HttpError {
    /// connect(2).
    #[error("cannot connect to {path}")]
    Connect {
        /// The socket.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The request could not be written.
    #[error("cannot send the request")]
    Send(#[source] io::Error),
    /// The answer could not be read.
    #[error("cannot read the answer")]
    Receive(#[source] io::Error),
    /// The other side does not speak HTTP.
    #[error("the answer is not HTTP")]
    NotHttp,
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The verb.
    pub method: &'a str,
    /// Path and query.
    pub target: &'a str,
    /// JSON; empty if there is none.
    pub body: &'a [u8],
    /// A descriptor to pass along.
    pub file: Option<BorrowedFd<'a>>,
}

impl<'a> Request<'a> {
    /// A request without a body.
    pub fn new(method: &'a str, target: &'a str) -> Self {
        Request { method, target, body: &[], file: None }
    }
}

/// An answer.
#[derive(Debug)]
pub struct Response {
    /// Its status.
    pub status: u16,
    /// Its body, until the end.
    pub body: BufReader<UnixStream>,
    length: Option<u64>,
}

/// Longest wait for the next bytes of an answer. The server gives up the engine earlier.
pub const PATIENCE: Duration = Duration::from_secs(30);
const MAX_HEAD: u64 = 64 << 10;

/// Sends a request to the server at `socket` and reads the head of the answer.
///
/// # Errors
/// There is no server, or it does not answer in HTTP.
pub fn send(socket: &Path, request: &Request<'_>) -> Result<Response, HttpError> {
    let connect = |source| HttpError::Connect { path: socket.display().to_string(), source };
    let stream = UnixStream::connect(socket).map_err(connect)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(connect)?;
    // A server that refuses before it has read everything closes; its answer is there to be read all the same.
    let sent = write(&stream, request);
    let response = head(BufReader::new(stream));
    match (response, sent) {
        (Err(_), Err(error)) => Err(HttpError::Send(error)),
        (response, _) => response,
    }
}

impl Response {
    /// Reads the body.
    ///
    /// # Errors
    /// It cannot be read, or is cut short.
    pub fn read(self) -> Result<Vec<u8>, HttpError> {
        let mut body = Vec::new();
        match self.length {
            None => self.body.take(u64::MAX).read_to_end(&mut body),
            Some(length) => self.body.take(length).read_to_end(&mut body),
        }
        .map_err(HttpError::Receive)?;
        match self.length {
            Some(length) if (body.len() as u64) < length => {
                Err(HttpError::Receive(io::ErrorKind::UnexpectedEof.into()))
            }
            _ => Ok(body),
        }
    }
}

fn write(mut stream: &UnixStream, request: &Request<'_>) -> io::Result<()> {
    let Request { method, target, body, file } = request;
    let head = format!(
        "{method} {target} HTTP/1.0\r\nHost: rootless-launch\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    let mut sent = 0;
    if let Some(file) = file {
        let files = [file.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&files)];
        let slices = [IoSlice::new(&bytes)];
        sent = sendmsg::<()>(stream.as_raw_fd(), &slices, &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    }
    stream.write_all(bytes.get(sent..).unwrap_or_default())
}

fn head(mut body: BufReader<UnixStream>) -> Result<Response, HttpError> {
    let mut lines = (&mut body).take(MAX_HEAD);
    let mut line = || {
        let mut line = String::new();
        lines.read_line(&mut line).map_err(HttpError::Receive)?;
        Ok(line)
    };
    let first = line()?;
    let mut words = first.split_ascii_whitespace();
    let status = match (words.next(), words.next().and_then(|status| status.parse().ok())) {
        (Some(version), Some(status)) if version.starts_with("HTTP/1.") => status,
        _ => return Err(HttpError::NotHttp),
    };
    let mut length = None;
    loop {
        let line = line()?;
        match line.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = Some(value.trim().parse().map_err(|_| HttpError::NotHttp)?);
            }
            Some(_) => {}
            None if line.trim_end().is_empty() && line.ends_with('\n') => break,
            None => return Err(HttpError::NotHttp),
        }
    }
    Ok(Response { status, body, length })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses an answer.
    fn parse(answer: &[u8]) -> Result<(u16, Vec<u8>), HttpError> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&theirs).write_all(answer).unwrap();
        drop(theirs);
        let response = head(BufReader::new(ours))?;
        Ok((response.status, response.read()?))
    }

    #[test]
    fn answers_are_read_to_their_end() {
        let answer = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nX: y\r\n\r\nokmore";
        assert_eq!(parse(answer).unwrap(), (200, b"ok".to_vec()));
        assert_eq!(parse(b"HTTP/1.1 404 Not Found\r\n\r\nall").unwrap(), (404, b"all".to_vec()));
    }

    #[test]
    fn what_is_cut_short_is_no_answer() {
        for answer in [
            &b""[..],
            b"HTTP/1.0",
            b"HTTP/1.0 200 OK\r\nContent-",
            b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nok",
            b"SSH-2.0-x\r\n\r\n",
        ] {
            assert!(parse(answer).is_err(), "{answer:?}");
        }
    }
}
