//! Connections to the control socket: bytes until there is a request, bytes until the answer is out.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::poll::PollFlags;

use super::Moment;
use super::control::{self, Command, Refusal};
use super::unit::UnitId;

/// Longest time for a request to come.
const TO_ASK: Duration = Duration::from_secs(10);
/// Longest time in which somebody takes nothing of an answer; with `| less` that is a reader's pause.
const TO_TAKE: Duration = Duration::from_secs(600);
/// Bytes that wait for somebody who follows; what comes meanwhile stays in the log.
const ENOUGH: usize = 64 << 10;

/// Somebody who is connected.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    state: Waiting,
    out: Vec<u8>,
    /// When patience ends.
    deadline: Option<Moment>,
}

/// What a client and we wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// The rest of a request, of which this has come.
    Request(Vec<u8>),
    /// That the answer is taken; then it is over.
    Taking,
    /// Lines of a unit from this number on.
    Lines {
        /// The unit.
        unit: UnitId,
        /// The number of the next one.
        next: u64,
    },
    /// That a unit is ready after this many starts.
    Restart {
        /// The unit.
        unit: UnitId,
        /// Its starts before.
        runs: u32,
    },
}

impl Client {
    /// Somebody who has just connected; the stream does not block.
    ///
    /// # Errors
    /// fcntl(2).
    pub fn new(stream: UnixStream, now: Moment) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let deadline = Some(now.saturating_add(TO_ASK));
        Ok(Client { stream, state: Waiting::Request(Vec::new()), out: Vec::new(), deadline })
    }

    /// What to wait for. Whoever has asked says nothing any more, so that bytes of his tell that he is gone.
    pub fn interest(&self) -> PollFlags {
        let reading = if self.state == Waiting::Taking { PollFlags::empty() } else { PollFlags::POLLIN };
        let writing = if self.out.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
        reading | writing
    }

    /// Takes what has come of a request.
    ///
    /// # Errors
    /// The client is gone, or says what he should not.
    pub fn receive(&mut self) -> io::Result<Option<Result<Command, Refusal>>> {
        let mut bytes = [0; 1024];
        loop {
            let count = match self.stream.read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let Waiting::Request(received) = &mut self.state else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            received.extend_from_slice(bytes.get(..count).unwrap_or_default());
            if let Some(request) = control::parse(received).transpose() {
                return Ok(Some(request));
            }
        }
    }

    /// Puts an answer, or its beginning, on its way; what is waited for then.
    pub fn answer(&mut self, now: Moment, bytes: &[u8], then: Waiting) {
        self.out.extend_from_slice(bytes);
        self.state = then;
        self.deadline = Some(now.saturating_add(TO_TAKE));
    }

    /// Sends what can be sent.
    ///
    /// # Errors
    /// The client is gone.
    pub fn send(&mut self, now: Moment) -> io::Result<()> {
        while !self.out.is_empty() {
            match self.stream.write(&self.out) {
                Ok(count) => {
                    self.out.drain(..count);
                    self.deadline = Some(now.saturating_add(TO_TAKE));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // Whoever waits for news may do so for ever.
        if matches!(self.state, Waiting::Lines { .. } | Waiting::Restart { .. }) {
            self.deadline = None;
        }
        Ok(())
    }

    /// Whether it is over: everything is said, or patience has ended.
    pub fn is_over(&self, now: Moment) -> bool {
        let has_all = self.state == Waiting::Taking && self.out.is_empty();
        has_all || self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Whether more may be put into the answer.
    pub fn has_room(&self) -> bool {
        self.out.len() < ENOUGH
    }

    /// What is waited for.
    pub fn waiting(&self) -> &Waiting {
        &self.state
    }

    /// When patience ends.
    pub fn deadline(&self) -> Option<Moment> {
        self.deadline
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
