//! The driver's end of the agent: a stock of sockets that live in the child's namespace.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::socket::MsgFlags;

use crate::protocol::{
    Abilities, Change, Egress, MAX_MESSAGE, MAX_SOCKETS, ProtocolError, Reply, Request, Rules, SocketKind,
};
use crate::sock_diag::DiagSocket;
use crate::sys::rtnetlink::LocalAddresses;
use crate::sys::scm;

/// A channel to the agent inside the child's namespace, [`child::run`](crate::child::run).
#[derive(Debug)]
pub struct ChildLine(OwnedFd);

impl ChildLine {
    /// The driver's end, and the agent's.
    ///
    /// # Errors
    /// socketpair(2) failed.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = scm::pair()?;
        Ok((ChildLine(ours), theirs))
    }
}

impl From<OwnedFd> for ChildLine {
    /// The driver's end, made by [`ChildLine::pair`] and passed on as a descriptor.
    fn from(socket: OwnedFd) -> Self {
        ChildLine(socket)
    }
}

impl From<ChildLine> for OwnedFd {
    fn from(line: ChildLine) -> Self {
        line.0
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Agent {
    line: OwnedFd,
    rules: Rules,
    egress: Egress,
    greeted: bool,
    abilities: Option<Abilities>,
    stocks: BTreeMap<SocketKind, Stock>,
    /// Requests for routes, or for their end, without an answer so far.
    routes_asked: Cell<usize>,
    /// The most sockets of one request.
    largest: u8,
    pub(super) local: Option<LocalAddresses>,
    /// Tells what sockets the child has.
    pub(super) diag: Option<DiagSocket>,
    /// One more, for the auto mode.
    pub(super) spare_diag: Option<DiagSocket>,
}

#[derive(Debug)]
struct Stock {
    sockets: Vec<OwnedFd>,
    /// A request is under way.
    asked: bool,
    /// How many the next request is for: rises when the stock ran out.
    batch: u8,
}

/// Sockets of the first request for a kind.
const FIRST_BATCH: u8 = 16;
/// A request is for at most this part of the descriptors that there may be.
const STOCK_PART: u64 = 32;

/// What a message of the agent brought.
#[derive(Debug)]
pub(super) enum News {
    /// The abilities are known.
    Ready,
    /// The stock of a kind grew, or could not: errno(3).
    Stocked(i32),
    /// A socket that listens in the child.
    Listening(u64, io::Result<OwnedFd>),
    /// A route was changed, or could not be: errno(3).
    Routed(i32),
}

/// The agent is gone, or it is another program.
#[derive(Debug)]
pub(super) enum Lost {
    Gone,
    Protocol(ProtocolError),
}

impl Agent {
    pub(super) fn new(line: ChildLine, rules: Rules, egress: Egress) -> Self {
        Agent {
            line: line.0,
            rules,
            egress,
            greeted: false,
            abilities: None,
            stocks: BTreeMap::new(),
            routes_asked: Cell::new(0),
            largest: MAX_SOCKETS,
            local: None,
            diag: None,
            spare_diag: None,
        }
    }

    /// Of so many descriptors that the process may have, a stock is to take few.
    pub(super) fn keep_stock_below(&mut self, descriptors: u64) {
        let part = descriptors / STOCK_PART;
        self.largest = u8::try_from(part).unwrap_or(MAX_SOCKETS).clamp(1, MAX_SOCKETS);
    }

    /// Says the first word, which may be what starts the agent: nobody needs one before there is a forward.
    pub(super) fn greet(&mut self) {
        if !self.greeted {
            self.greeted = true;
            self.ask(Request::Hello { rules: self.rules, egress: self.egress });
        }
    }

    /// What is possible in the child; `None` before the agent has said.
    pub(super) fn abilities(&self) -> Option<Abilities> {
        self.abilities
    }

    /// Asks for sockets that will be wanted.
    pub(super) fn stock_up(&mut self, kind: SocketKind) {
        let stock = self.stock(kind);
        if stock.sockets.is_empty() && !stock.asked {
            stock.asked = true;
            let count = stock.batch;
            self.ask(Request::Sockets { kind, count });
        }
    }

    /// A socket from the stock. `None`: more were asked for, [`News::Stocked`] follows.
    pub(super) fn take(&mut self, kind: SocketKind) -> Option<OwnedFd> {
        let largest = self.largest;
        let stock = self.stock(kind);
        let socket = stock.sockets.pop();
        if socket.is_none() && !stock.asked {
            stock.batch = stock.batch.saturating_mul(4).min(largest);
        }
        let low = usize::from(stock.batch) / 2;
        if stock.sockets.len() <= low && !stock.asked {
            stock.asked = true;
            let count = stock.batch;
            self.ask(Request::Sockets { kind, count });
        }
        socket
    }

    /// Asks for a listening socket; [`News::Listening`] follows.
    pub(super) fn listen(&self, request: Request) {
        self.ask(request);
    }

    /// Asks for a route of a connection or for its end; [`News::Routed`] follows.
    pub(super) fn route(&self, change: Change, child: SocketAddr, destination: SocketAddr) {
        self.routes_asked.set(self.routes_asked.get() + 1);
        self.ask(Request::Route { change, child, destination });
    }

    /// Requests for routes that are not answered yet. An agent that answers none is not to be asked for more.
    pub(super) fn routes_asked(&self) -> usize {
        self.routes_asked.get()
    }

    /// The next message, if there is one.
    pub(super) fn receive(&mut self) -> Result<Option<News>, Lost> {
        let mut buffer = [0; MAX_MESSAGE];
        let mut fds = Vec::new();
        let len = match scm::receive(self.line.as_fd(), &mut buffer, &mut fds, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return Err(Lost::Gone),
            Ok(len) => len,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(None);
            }
            Err(_) => return Err(Lost::Gone),
        };
        let reply = Reply::decode(buffer.get(..len).unwrap_or_default()).map_err(Lost::Protocol)?;
        self.handle(reply, fds).map(Some)
    }

    /// What was not asked for is no answer: who speaks for an agent may not fill this process with descriptors.
    fn handle(&mut self, reply: Reply, fds: Vec<OwnedFd>) -> Result<News, Lost> {
        let mut fds = fds.into_iter();
        Ok(match reply {
            Reply::Hello { mut abilities } => {
                if self.abilities.is_some() {
                    return Err(Lost::Protocol(ProtocolError::Malformed));
                }
                if abilities.addresses {
                    self.local = fds.next().and_then(|fd| LocalAddresses::new(fd).ok());
                    abilities.addresses = self.local.is_some();
                }
                if abilities.diag {
                    self.diag = fds.next().map(DiagSocket::adopt);
                    self.spare_diag = fds.next().map(DiagSocket::adopt);
                }
                self.abilities = Some(abilities);
                News::Ready
            }
            Reply::Sockets { kind, count, errno } => {
                let stock = self.stock(kind);
                if !stock.asked || count > stock.batch || fds.len() > usize::from(count) {
                    return Err(Lost::Protocol(ProtocolError::Malformed));
                }
                stock.asked = false;
                // Fewer than were sent: no descriptor was left here.
                let arrived = fds.len();
                let errno = if arrived < usize::from(count) { libc::EMFILE } else { errno };
                stock.sockets.extend(fds);
                News::Stocked(if arrived > 0 { 0 } else { errno })
            }
            Reply::Listening { id, errno: 0 } => {
                let socket = fds.next().ok_or_else(|| io::Error::from_raw_os_error(libc::EMFILE));
                News::Listening(id, socket)
            }
            Reply::Listening { id, errno } => News::Listening(id, Err(io::Error::from_raw_os_error(errno))),
            Reply::Routed { errno } => {
                self.routes_asked.set(self.routes_asked.get().saturating_sub(1));
                News::Routed(errno)
            }
        })
    }

    fn stock(&mut self, kind: SocketKind) -> &mut Stock {
        let batch = FIRST_BATCH.min(self.largest);
        self.stocks.entry(kind).or_insert_with(|| Stock { sockets: Vec::new(), asked: false, batch })
    }

    /// Requests are few and short: at most one for each kind, and two for each of the routes that there may be, are under way. The
    /// socket's buffer takes them. If the agent is gone the next receive says so.
    fn ask(&self, request: Request) {
        let _ = scm::send(self.line.as_fd(), &request.encode(), &[], MsgFlags::MSG_DONTWAIT);
    }
}

impl AsFd for Agent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.line.as_fd()
    }
}
