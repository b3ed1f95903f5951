//! UDP by sessions of sockets: for servers on the child's loopback, for children without a TAP, and from the child to the host.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::stats::Counters;
use crate::sys::datagram::{Batch, To};
use crate::sys::socket;
use crate::udp_session::{Client, SessionId, SessionTable};

/// A socket that clients send to, and a socket for each of them.
#[derive(Debug)]
pub(super) struct UdpForward {
    pub(super) forward: u64,
    pub(super) socket: OwnedFd,
    /// Its own address, if it is bound to one.
    bound: Option<IpAddr>,
    table: SessionTable,
    sessions: BTreeMap<SessionId, OwnedFd>,
    /// First datagrams of clients whose socket is on its way.
    pending: VecDeque<(Client, Box<[u8]>)>,
    pub(super) counters: Counters,
}

/// Datagrams that may wait for sockets.
const PENDING: usize = 256;
/// Batches from one socket before others have their turn.
const ROUNDS: usize = 8;

/// What a new client needs.
#[derive(Debug)]
pub(super) enum Opened {
    /// A socket that is connected to the server.
    Socket(OwnedFd),
    /// It comes later: [`UdpForward::flush`].
    Later,
    /// There is none to be had.
    Failed,
}

impl UdpForward {
    pub(super) fn new(forward: u64, socket: OwnedFd, bound: IpAddr, limit: usize, idle: Duration) -> Self {
        UdpForward {
            forward,
            socket,
            bound: (!bound.is_unspecified()).then_some(bound),
            table: SessionTable::new(limit, idle),
            sessions: BTreeMap::new(),
            pending: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// Clients have sent something. `open` makes a socket for a new one, `watch` is told of every new session.
    pub(super) fn hear_clients(
        &mut self,
        now: Duration,
        batch: &mut Batch,
        mut open: impl FnMut(&Client) -> Opened,
        mut watch: impl FnMut(SessionId, &OwnedFd) -> bool,
    ) {
        for _ in 0..ROUNDS {
            let more = match batch.receive(self.socket.as_fd()) {
                Ok(more) => more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // What an ICMP error says about an earlier reply: the client has gone.
                Err(_) => continue,
            };
            let mut start = 0;
            while start < batch.incoming.len() {
                let client = self.client(batch, start);
                let mut end = start + 1;
                while end < batch.incoming.len() && self.client(batch, end) == client {
                    end += 1;
                }
                let Some(client) = client else {
                    self.counters.datagrams_dropped += 1;
                    start = end;
                    continue;
                };
                match self.session(now, client, &mut open, &mut watch) {
                    Ok(id) => self.send_to_server(id, batch, start, end),
                    Err(Opened::Later) => {
                        for index in start..end {
                            self.keep(client, batch, index);
                        }
                    }
                    Err(_) => self.drop_all(batch, start, end),
                }
                start = end;
            }
            if !more {
                return;
            }
        }
    }

    /// Sockets have come: what waited for them goes out.
    pub(super) fn flush(
        &mut self,
        now: Duration,
        mut open: impl FnMut(&Client) -> Opened,
        mut watch: impl FnMut(SessionId, &OwnedFd) -> bool,
    ) {
        for (client, bytes) in std::mem::take(&mut self.pending) {
            match self.session(now, client, &mut open, &mut watch) {
                Ok(id) => {
                    let sent = self.sessions.get(&id).map(|fd| socket::send(fd.as_fd(), &bytes));
                    if let Some(Ok(_)) = sent {
                        self.counters.bytes_to_server += bytes.len() as u64;
                        self.counters.datagrams_to_server += 1;
                    } else {
                        self.counters.datagrams_dropped += 1;
                    }
                }
                Err(Opened::Later) => self.pending.push_back((client, bytes)),
                Err(_) => self.counters.datagrams_dropped += 1,
            }
        }
    }

    /// The server of a session has sent something, or its kernel has refused something.
    pub(super) fn hear_server(&mut self, now: Duration, id: SessionId, batch: &mut Batch) {
        let (Some(fd), Some(client)) = (self.sessions.get(&id), self.table.client(id)) else { return };
        for _ in 0..ROUNDS {
            let more = match batch.receive(fd.as_fd()) {
                Ok(more) => more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.counters.datagrams_refused += 1;
                    continue;
                }
            };
            self.table.touch(now, id);
            let to = To::Address { remote: client.address, local: client.local };
            let (counters, run) = (&mut self.counters, 0..batch.incoming.len());
            let unsent = send_all(self.socket.as_fd(), batch, run, to, |bytes, datagrams| {
                counters.bytes_to_client += bytes;
                counters.datagrams_to_client += datagrams;
            });
            self.counters.datagrams_dropped += unsent;
            if !more {
                return;
            }
        }
    }

    /// Ends idle sessions.
    pub(super) fn expire(&mut self, now: Duration) {
        while let Some(id) = self.table.poll_expired(now) {
            self.sessions.remove(&id);
        }
    }

    /// Whether nothing will have to be ended.
    pub(super) fn is_idle(&self) -> bool {
        self.table.is_empty()
    }

    /// The counters, with the number of sessions.
    pub(super) fn counted(&self) -> Counters {
        Counters { sessions: self.table.len() as u64, ..self.counters }
    }

    fn client(&self, batch: &Batch, index: usize) -> Option<Client> {
        let incoming = batch.incoming.get(index)?;
        let local = incoming.local.or(self.bound)?;
        Some(Client { address: incoming.from?, local })
    }

    fn session(
        &mut self,
        now: Duration,
        client: Client,
        open: &mut impl FnMut(&Client) -> Opened,
        watch: &mut impl FnMut(SessionId, &OwnedFd) -> bool,
    ) -> Result<SessionId, Opened> {
        if let Some(id) = self.table.find(&client) {
            self.table.touch(now, id);
            return Ok(id);
        }
        let socket = match open(&client) {
            Opened::Socket(socket) => socket,
            other => return Err(other),
        };
        let (id, ended) = self.table.insert(now, client);
        if let Some(ended) = ended {
            self.sessions.remove(&ended);
        }
        if !watch(id, &socket) {
            self.table.remove(id);
            return Err(Opened::Failed);
        }
        self.counters.sessions_total += 1;
        self.sessions.insert(id, socket);
        Ok(id)
    }

    fn send_to_server(&mut self, id: SessionId, batch: &mut Batch, start: usize, end: usize) {
        let Some(fd) = self.sessions.get(&id) else { return };
        let counters = &mut self.counters;
        let unsent = send_all(fd.as_fd(), batch, start..end, To::Peer, |bytes, datagrams| {
            counters.bytes_to_server += bytes;
            counters.datagrams_to_server += datagrams;
        });
        self.counters.datagrams_dropped += unsent;
    }

    fn keep(&mut self, client: Client, batch: &Batch, index: usize) {
        let Some(incoming) = batch.incoming.get(index) else { return };
        let bytes = batch.bytes(incoming);
        let segment = incoming.segment.map_or(bytes.len(), usize::from).max(1);
        let mut pieces = bytes.chunks(segment).collect::<Vec<_>>();
        if pieces.is_empty() {
            pieces.push(&[]);
        }
        for piece in pieces {
            if self.pending.len() >= PENDING {
                self.counters.datagrams_dropped += 1;
            } else {
                self.pending.push_back((client, piece.into()));
            }
        }
    }

    fn drop_all(&mut self, batch: &Batch, start: usize, end: usize) {
        let dropped = batch.incoming.get(start..end).unwrap_or_default();
        self.counters.datagrams_dropped +=
            dropped.iter().map(|incoming| incoming.count() as u64).sum::<u64>();
    }
}

/// Sends a run of what was received; returns how many datagrams the kernel did not take.
fn send_all(
    fd: BorrowedFd<'_>,
    batch: &mut Batch,
    run: Range<usize>,
    to: To,
    mut sent: impl FnMut(u64, u64),
) -> u64 {
    let mut next = run.start;
    let mut unsent = 0;
    // An error that the socket noted earlier is told by the next send, which does nothing else: once more then.
    let mut again = true;
    while next < run.end {
        match batch.send(fd, next..run.end, to) {
            Ok(count) => {
                for incoming in batch.incoming.get(next..next + count).unwrap_or_default() {
                    sent(incoming.len() as u64, incoming.count() as u64);
                }
                // Nothing taken and no error does not happen; it must not loop.
                next += count.max(1);
                again = true;
            }
            Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) && again => again = false,
            Err(error) => {
                let Some(&incoming) = batch.incoming.get(next) else { break };
                let split = matches!(error.raw_os_error(), Some(libc::EMSGSIZE | libc::EINVAL))
                    && incoming.segment.is_some();
                match split.then(|| batch.send_split(fd, next, to)) {
                    Some(Ok(count)) => sent(incoming.len() as u64, count as u64),
                    _ => unsent += incoming.count() as u64,
                }
                next += 1;
                again = true;
            }
        }
    }
    unsent
}
