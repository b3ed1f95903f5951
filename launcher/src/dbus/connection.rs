//! A connection to a bus, or to a service directly.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::unistd::geteuid;

use super::message::{Body, Call, Incoming, Malformed, Writer, length_of, parse};

/// How long an answer may take, the start of a unit included: systemd's own limit for a method call.
const PATIENCE: Duration = Duration::from_secs(25);

/// Whether there is a bus in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A bus: one has to say hello, to name whom a call is for and which signals one wants.
    Bus,
    /// The service itself.
    Service,
}

/// Blocks until what it waits for has come.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
    serial: u32,
}

impl Connection {
    /// Connects and says who we are.
    ///
    /// # Errors
    /// Nobody listens there, or we are not let in.
    pub fn open(path: &Path, peer: Peer) -> io::Result<Self> {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let uid: String = geteuid().to_string().bytes().map(|byte| format!("{byte:02x}")).collect();
        stream.write_all(format!("\0AUTH EXTERNAL {uid}\r\n").as_bytes())?;
        let mut connection = Connection { stream, received: Vec::new(), serial: 0 };
        let line = connection.line()?;
        if !line.starts_with("OK ") {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, line));
        }
        connection.stream.write_all(b"BEGIN\r\n")?;
        if peer == Peer::Bus {
            connection.call(&bus("Hello"), "", &Writer::default())?;
        }
        Ok(connection)
    }

    /// Asks the bus for the signals that a rule describes.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn subscribe(&mut self, rule: &str) -> io::Result<()> {
        let mut body = Writer::default();
        body.string(rule);
        self.call(&bus("AddMatch"), "s", &body).map(drop)
    }

    /// Calls a method and waits for its answer.
    ///
    /// # Errors
    /// It refuses (the text is its own), does not answer in time, or is gone.
    pub fn call(&mut self, call: &Call<'_>, signature: &str, body: &Writer) -> io::Result<Body> {
        self.serial += 1;
        self.stream.write_all(&call.message(self.serial, signature, body))?;
        loop {
            match self.next()? {
                Incoming::Return { serial, body } if serial == self.serial => return Ok(body),
                Incoming::Error { serial, text } if serial == self.serial => {
                    return Err(io::Error::other(text));
                }
                _ => {}
            }
        }
    }

    /// Waits for the signal `member` for which `wanted` returns something.
    ///
    /// # Errors
    /// It does not come in time, or the peer is gone.
    pub fn wait_for<T>(&mut self, member: &str, mut wanted: impl FnMut(&Body) -> Option<T>) -> io::Result<T> {
        loop {
            if let Incoming::Signal { member: name, body } = self.next()?
                && name == member
                && let Some(found) = wanted(&body)
            {
                return Ok(found);
            }
        }
    }

    fn next(&mut self) -> io::Result<Incoming> {
        loop {
            if let Some(length) = length_of(&self.received).map_err(malformed)?
                && let Some(message) = self.received.get(..length)
            {
                let message = parse(message).map_err(malformed)?;
                self.received.drain(..length);
                return Ok(message);
            }
            self.receive()?;
        }
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.received.windows(2).position(|pair| pair == b"\r\n") {
                let line: Vec<u8> = self.received.drain(..end + 2).take(end).collect();
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            self.receive()?;
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let count = loop {
            match self.stream.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer"));
                }
                other => break other?,
            }
        };
        match buffer.get(..count) {
            Some([]) | None => Err(io::ErrorKind::UnexpectedEof.into()),
            Some(bytes) => {
                self.received.extend(bytes);
                Ok(())
            }
        }
    }
}

fn bus(member: &str) -> Call<'_> {
    Call {
        destination: "org.freedesktop.DBus",
        path: "/org/freedesktop/DBus",
        interface: "org.freedesktop.DBus",
        member,
    }
}

fn malformed(_: Malformed) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "no message of D-Bus")
}
