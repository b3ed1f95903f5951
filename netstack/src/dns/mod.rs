//! DNS: the child's queries are forwarded raw to the host's servers; a few names are answered here.
//!
//! # Theory of operation
//! Goal: every query of the child gets the answer the host would get, of any record type, with EDNS, DNSSEC
//! bits and opcodes nobody knows yet. So messages are forwarded as they are; only the id is replaced on the
//! way out and restored on the way back, and only header and first question are read. A query that came by
//! UDP is asked by UDP, one that came by TCP by TCP; a truncated answer (TC) passes, the child then asks by
//! TCP itself.
//!
//! Not handled: caching, search lists (the child's resolver appends them), zone transfers of more than one
//! message, sessions (DSO), TSIG on messages of our own making.
//!
//! **Words.** A *query* is what the child wants to know; an *ask* is one attempt to learn it from one server
//! with an id and a socket of its own ([`QueryId`]). A query has one ask at first, more as servers fail.
//!
//! **Data flow.** [`handle_query`](DnsForwarder::handle_query) → static name, or an error to be told:
//! [`DnsAction::Answer`] at once; a retransmission of a pending query: nothing; else [`DnsAction::Ask`] →
//! the caller's socket → [`handle_answer`](DnsForwarder::handle_answer) → [`DnsAction::Answer`]. Every `Ask`
//! is followed by exactly one [`DnsAction::Abandon`], whatever ended it.
//!
//! **Servers** are asked in the order of resolv.conf, as glibc does, because the first may know names that
//! the second does not (VPN, split horizon); but one that let an ask time out is asked last for
//! [`SHUN_TIME`]. The next server is asked
//! - at once when the ask fails or the server answers SERVFAIL, NOTIMP or REFUSED (as glibc does); this
//!   server is not asked again. If nobody knows better in the end, the child gets the last such answer;
//! - when `timeouts.dns` has passed. The earlier ask stays open meanwhile: a slow answer is still good.
//!
//! By UDP each server is asked up to twice, as datagrams get lost (`attempts:2` of resolv.conf(5)); by TCP
//! once. At the end stands an answer of the engine's own with SERVFAIL.
//!
//! **Forgery.** An off-path attacker has to guess a 16-bit id and the port of a fresh connected socket; the
//! question has to match as well. Ids come from SipHash-2-4 of a counter under the secret seed: a
//! pseudo-random function, so that ids already seen say nothing about the next.
//!
//! **Limits.** At most `limits.dns_queries` asks are open, so as many queries and sockets; each holds the
//! child's message (at most 64 KiB).
//!
//! **Timer.** One per query: when to ask the next server or give up.

pub(crate) mod message;
pub mod records;
pub mod tcp;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::Hasher;
use std::net::SocketAddr;

use crate::config::{Config, Ipv6Mode};
use crate::error::DropReason;
use crate::flow::FlowId;
use crate::time::{Duration, Instant};

use message::{Edns, Message, Reply, opcode, rcode, with_id};
use records::StaticRecords;

/// How long a server that let an ask time out is asked after all others.
pub const SHUN_TIME: Duration = Duration::from_secs(10);

/// The forwarder. Pure: it decides, the caller owns the sockets.
///
/// 1. Put in any number of facts (`handle_*`, `set_*`) with the same `now`.
/// 2. Drain [`poll_action`](Self::poll_action), then read [`poll_timeout`](Self::poll_timeout).
/// 3. When that time comes, call [`handle_timeout`](Self::handle_timeout).
#[derive(Debug)]
pub struct DnsForwarder {
    records: StaticRecords,
    ipv6: Ipv6Offer,
    servers: Vec<Server>,
    timeout: Duration,
    limit: usize,
    ids: IdGenerator,
    /// Pending queries by number; numbers are never used again.
    queries: BTreeMap<u64, Query>,
    next_query: u64,
    /// The same by origin and the child's id: finds retransmissions and what a lost connection asked.
    by_origin: BTreeSet<(QueryOrigin, u16, u64)>,
    deadlines: BTreeSet<(Instant, u64)>,
    /// Asks that wait for an answer, of all queries.
    open_asks: usize,
    actions: VecDeque<DnsAction>,
}

/// Whether the child is offered IPv6 at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv6Offer {
    /// It is; static names have AAAA records.
    Offered,
    /// It is not; asked for AAAA, static names answer that there is none.
    Withheld,
}

/// Where a query came from and its answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum QueryOrigin {
    /// A datagram.
    Udp {
        /// The child's address and port.
        child: SocketAddr,
        /// The address and port the child sent to: the source of the answer.
        server: SocketAddr,
    },
    /// A message in a TCP connection of the child.
    Tcp {
        /// The connection.
        flow: FlowId,
    },
}

/// Names one ask. Never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueryId(u64);

/// How a server is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsTransport {
    /// One datagram from a fresh socket connected to the server.
    Udp,
    /// One framed message in a fresh connection.
    Tcp,
}

/// What the caller has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsAction {
    /// Send `message` to `server` from a socket of its own, connected to the server, on a port the kernel
    /// chose. Report what comes by [`handle_answer`](DnsForwarder::handle_answer), the failure of the socket
    /// by [`handle_failure`](DnsForwarder::handle_failure).
    Ask {
        /// Name of the ask.
        query: QueryId,
        /// Whom to ask.
        server: SocketAddr,
        /// How to ask.
        transport: DnsTransport,
        /// The message; for TCP without its length, see [`tcp::frame`].
        message: Vec<u8>,
    },
    /// Close the socket of an ask: answered, failed or no longer wanted. Comes exactly once for each `Ask`.
    Abandon {
        /// Name of the ask.
        query: QueryId,
    },
    /// Send `message` to the child.
    Answer {
        /// Where to.
        origin: QueryOrigin,
        /// The message; for TCP without its length, see [`tcp::frame`].
        message: Vec<u8>,
        /// Who made it.
        kind: AnswerKind,
    },
}

/// Who made an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AnswerKind {
    /// A server.
    Forwarded,
    /// The engine, from its static names.
    Static,
    /// The engine: no server answered, or there is none.
    Servfail,
    /// The engine: the query is not well-formed.
    FormErr,
}

#[derive(Clone, Copy, Debug)]
struct Server {
    address: SocketAddr,
    shunned_until: Option<Instant>,
}

#[derive(Debug)]
struct Query {
    origin: QueryOrigin,
    /// As the child sent it.
    message: Vec<u8>,
    /// In the order they were made, at most [`MAX_ASKS`].
    asks: Vec<Ask>,
    deadline: Instant,
    /// The last answer with which a server declined, id restored.
    declined: Option<Vec<u8>>,
}

#[derive(Clone, Copy, Debug)]
struct Ask {
    server: SocketAddr,
    id: u16,
    state: AskState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AskState {
    /// The socket is open; the time of the ask may be over.
    Waiting,
    /// The socket failed or the server declined: this server is not asked again.
    Failed,
    /// Closed early to keep the number of sockets within the limit.
    Closed,
}

impl DnsForwarder {
    /// A forwarder with the servers of `config.dns.servers`; without any, every query ends in SERVFAIL until
    /// [`set_servers`](Self::set_servers). AAAA of static names are offered if IPv6 is `On`.
    pub fn new(config: &Config) -> Self {
        let mut forwarder = DnsForwarder {
            records: StaticRecords::new(config),
            ipv6: match config.ipv6_mode() {
                Ipv6Mode::On => Ipv6Offer::Offered,
                Ipv6Mode::Auto | Ipv6Mode::Off => Ipv6Offer::Withheld,
            },
            servers: Vec::new(),
            timeout: config.timeouts().dns,
            limit: config.limits().dns_queries,
            ids: IdGenerator { seed: config.seed, counter: 0 },
            queries: BTreeMap::new(),
            next_query: 0,
            by_origin: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            open_asks: 0,
            actions: VecDeque::new(),
        };
        forwarder.set_servers(&config.dns().servers);
        forwarder
    }

    /// Whom to ask from now on, best first. Asks under way go on; the next ask of a pending query goes to one
    /// of these. What is known of servers that stay is kept.
    pub fn set_servers(&mut self, servers: &[SocketAddr]) {
        let mut next: Vec<Server> = Vec::with_capacity(servers.len());
        for &address in servers {
            if next.iter().any(|server| server.address == address) {
                continue;
            }
            let known = self.servers.iter().find(|server| server.address == address);
            next.push(known.copied().unwrap_or(Server { address, shunned_until: None }));
        }
        self.servers = next;
    }

    /// Takes the static names of `config`. Questions under way go on.
    pub fn set_records(&mut self, config: &Config) {
        self.records = StaticRecords::new(config);
    }

    /// Whether static names have AAAA records.
    pub fn set_ipv6_offered(&mut self, offer: Ipv6Offer) {
        self.ipv6 = offer;
    }

    /// A message of the child, without length prefix.
    ///
    /// # Errors
    /// [`Truncated`](DropReason::Truncated) and [`Malformed`](DropReason::Malformed) where no answer is safe
    /// (no header; a response, RFC 1035 section 7.3), [`DnsQueriesFull`](DropReason::DnsQueriesFull).
    pub fn handle_query(
        &mut self,
        now: Instant,
        origin: QueryOrigin,
        message: &[u8],
    ) -> Result<(), DropReason> {
        let query = Message::parse(message).ok_or(DropReason::Truncated)?;
        if query.is_response() {
            return Err(DropReason::Malformed);
        }
        let question = query.question();
        if query.opcode() == opcode::QUERY {
            // More than one question is an error (RFC 9619). None is not: it may ask for a DNS cookie
            // (RFC 7873 section 5.4).
            if query.question_count() > 1 || (query.question_count() == 1 && question.is_none()) {
                let reply = Reply::new(query, None, None, rcode::FORM_ERR.into(), tcp::MAX_MESSAGE);
                self.answer(origin, reply.finish(), AnswerKind::FormErr);
                return Ok(());
            }
            let limit = |edns| match origin {
                QueryOrigin::Udp { .. } => Edns::udp_limit(edns),
                QueryOrigin::Tcp { .. } => tcp::MAX_MESSAGE,
            };
            let reply = question.and_then(|question| self.records.answer(query, question, self.ipv6, limit));
            if let Some(reply) = reply {
                self.answer(origin, reply, AnswerKind::Static);
                return Ok(());
            }
        }
        if self.is_pending(origin, query.id(), message) {
            return Ok(());
        }
        if self.servers.is_empty() {
            self.answer(origin, servfail(message), AnswerKind::Servfail);
            return Ok(());
        }
        if self.open_asks >= self.limit {
            return Err(DropReason::DnsQueriesFull);
        }
        let number = self.next_query;
        self.next_query += 1;
        let (message, asks) = (message.to_vec(), Vec::new());
        self.by_origin.insert((origin, query.id(), number));
        self.deadlines.insert((now, number));
        self.queries.insert(number, Query { origin, message, asks, deadline: now, declined: None });
        self.advance(now, number);
        Ok(())
    }

    /// A message that came to the socket of `query`, without length prefix. The socket is connected, so the
    /// source is right.
    ///
    /// # Errors
    /// [`DnsMismatch`](DropReason::DnsMismatch) if it does not answer the ask, which goes on waiting.
    pub fn handle_answer(&mut self, now: Instant, query: QueryId, message: &[u8]) -> Result<(), DropReason> {
        let (number, index) = query.parts();
        let pending = self.queries.get_mut(&number).ok_or(DropReason::DnsMismatch)?;
        let ask = *pending.waiting(index).ok_or(DropReason::DnsMismatch)?;
        let (Some(asked), Some(answer)) = (Message::parse(&pending.message), Message::parse(message)) else {
            return Err(DropReason::DnsMismatch);
        };
        if answer.id() != ask.id || !answers(asked, answer) {
            return Err(DropReason::DnsMismatch);
        }
        if let Some(server) = self.servers.iter_mut().find(|server| server.address == ask.server) {
            server.shunned_until = None;
        }
        let restored = with_id(message, asked.id());
        if [rcode::SERV_FAIL, rcode::NOT_IMP, rcode::REFUSED].contains(&answer.rcode()) {
            pending.declined = Some(restored);
            self.fail(now, number, index);
        } else {
            self.finish(number, restored, AnswerKind::Forwarded);
        }
        Ok(())
    }

    /// The socket of `query` failed: refused, unreachable, closed before an answer came, or not to be had.
    /// An ask that is over is ignored.
    pub fn handle_failure(&mut self, now: Instant, query: QueryId) {
        let (number, index) = query.parts();
        if self.queries.get_mut(&number).is_some_and(|pending| pending.waiting(index).is_some()) {
            self.fail(now, number, index);
        }
    }

    /// A TCP connection of the child is gone: nobody waits for its answers.
    pub fn forget_origin(&mut self, flow: FlowId) {
        let origin = QueryOrigin::Tcp { flow };
        let numbers: Vec<u64> =
            self.by_origin.range((origin, 0, 0)..=(origin, u16::MAX, u64::MAX)).map(|&(_, _, n)| n).collect();
        for number in numbers {
            self.remove(number);
        }
    }

    /// Asks the next server, or gives up, for every query whose time has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(deadline, number)) = self.deadlines.first() {
            if deadline > now {
                return;
            }
            if let Some(ask) = self.queries.get(&number).and_then(|query| query.asks.last())
                && ask.state == AskState::Waiting
                && let Some(server) = self.servers.iter_mut().find(|server| server.address == ask.server)
            {
                server.shunned_until = Some(now + SHUN_TIME);
            }
            self.advance(now, number);
        }
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<DnsAction> {
        self.actions.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// Whom to ask, best first.
    pub fn servers(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.servers.iter().map(|server| server.address)
    }

    /// Queries under way.
    pub fn pending(&self) -> usize {
        self.queries.len()
    }

    /// Whether the very same message of the same origin waits for its answer.
    fn is_pending(&self, origin: QueryOrigin, id: u16, message: &[u8]) -> bool {
        let same_id = self.by_origin.range((origin, id, 0)..=(origin, id, u64::MAX));
        same_id.filter_map(|(_, _, number)| self.queries.get(number)).any(|query| query.message == message)
    }

    /// An ask is of no use any more: unless a younger one waits, the next server is due.
    fn fail(&mut self, now: Instant, number: u64, index: usize) {
        self.close(number, index, AskState::Failed);
        let Some(query) = self.queries.get(&number) else { return };
        if query.asks.iter().skip(index + 1).any(|ask| ask.state == AskState::Waiting) {
            return;
        }
        self.advance(now, number);
    }

    /// Asks the next server. With none left, waits for asks that still have time, or ends the query.
    fn advance(&mut self, now: Instant, number: u64) {
        let Some(query) = self.queries.get(&number) else { return };
        if let Some(server) = self.next_server(now, query) {
            self.ask(now, number, server);
        } else if query.deadline <= now || query.oldest_waiting().is_none() {
            match query.declined.clone() {
                Some(message) => self.finish(number, message, AnswerKind::Forwarded),
                None => {
                    let message = servfail(&query.message);
                    self.finish(number, message, AnswerKind::Servfail);
                }
            }
        }
    }

    /// The server asked least so far; of equals one that is not shunned; of equals the first.
    fn next_server(&self, now: Instant, query: &Query) -> Option<SocketAddr> {
        if query.asks.len() >= MAX_ASKS {
            return None;
        }
        let attempts = match query.origin {
            QueryOrigin::Udp { .. } => UDP_ATTEMPTS,
            QueryOrigin::Tcp { .. } => TCP_ATTEMPTS,
        };
        let candidates = self.servers.iter().filter_map(|server| {
            let asks = || query.asks.iter().filter(|ask| ask.server == server.address);
            let asked = asks().count();
            let failed = asks().any(|ask| ask.state == AskState::Failed);
            let shunned = server.shunned_until.is_some_and(|until| until > now);
            (asked < attempts && !failed).then_some((asked, shunned, server.address))
        });
        // `min_by_key` returns the first of equals.
        candidates.min_by_key(|&(asked, shunned, _)| (asked, shunned)).map(|(_, _, address)| address)
    }

    fn ask(&mut self, now: Instant, number: u64, server: SocketAddr) {
        if self.open_asks >= self.limit
            && let Some(oldest) = self.queries.get(&number).and_then(Query::oldest_waiting)
        {
            self.close(number, oldest, AskState::Closed);
        }
        let Some(query) = self.queries.get_mut(&number) else { return };
        let id = self.ids.next();
        let transport = match query.origin {
            QueryOrigin::Udp { .. } => DnsTransport::Udp,
            QueryOrigin::Tcp { .. } => DnsTransport::Tcp,
        };
        let name = QueryId::new(number, query.asks.len());
        query.asks.push(Ask { server, id, state: AskState::Waiting });
        self.open_asks += 1;
        self.deadlines.remove(&(query.deadline, number));
        query.deadline = now + self.timeout;
        self.deadlines.insert((query.deadline, number));
        let message = with_id(&query.message, id);
        self.actions.push_back(DnsAction::Ask { query: name, server, transport, message });
    }

    /// Ends an ask that waits.
    fn close(&mut self, number: u64, index: usize, state: AskState) {
        let Some(ask) = self.queries.get_mut(&number).and_then(|query| query.waiting(index)) else { return };
        ask.state = state;
        self.open_asks -= 1;
        self.actions.push_back(DnsAction::Abandon { query: QueryId::new(number, index) });
    }

    fn finish(&mut self, number: u64, message: Vec<u8>, kind: AnswerKind) {
        if let Some(origin) = self.remove(number) {
            self.answer(origin, message, kind);
        }
    }

    /// Takes a query out of all tables and ends its asks.
    fn remove(&mut self, number: u64) -> Option<QueryOrigin> {
        let asks = self.queries.get(&number)?.asks.len();
        for index in 0..asks {
            self.close(number, index, AskState::Closed);
        }
        let query = self.queries.remove(&number)?;
        self.deadlines.remove(&(query.deadline, number));
        if let Some(message) = Message::parse(&query.message) {
            self.by_origin.remove(&(query.origin, message.id(), number));
        }
        Some(query.origin)
    }

    fn answer(&mut self, origin: QueryOrigin, message: Vec<u8>, kind: AnswerKind) {
        self.actions.push_back(DnsAction::Answer { origin, message, kind });
    }
}

impl Query {
    /// The ask of that index if it still waits.
    fn waiting(&mut self, index: usize) -> Option<&mut Ask> {
        self.asks.get_mut(index).filter(|ask| ask.state == AskState::Waiting)
    }

    fn oldest_waiting(&self) -> Option<usize> {
        self.asks.iter().position(|ask| ask.state == AskState::Waiting)
    }
}

impl QueryId {
    fn new(number: u64, ask: usize) -> Self {
        QueryId(number * MAX_ASKS as u64 + ask as u64)
    }

    /// Number of the query and index of the ask in it.
    fn parts(self) -> (u64, usize) {
        (self.0 / MAX_ASKS as u64, (self.0 % MAX_ASKS as u64) as usize)
    }
}

/// Ids that nobody without the seed can foresee.
#[derive(Debug)]
struct IdGenerator {
    seed: u64,
    counter: u64,
}

impl IdGenerator {
    #[expect(
        deprecated,
        reason = "SipHash-2-4 under a key of ours; the successor DefaultHasher takes no key"
    )]
    fn next(&mut self) -> u16 {
        // The second half of the key keeps this use of the seed apart from others.
        let mut hasher = std::hash::SipHasher::new_with_keys(self.seed, u64::from_be_bytes(*b"DNS ids\0"));
        hasher.write_u64(self.counter);
        self.counter += 1;
        hasher.finish() as u16
    }
}

/// Whether `answer` answers `query`, ids apart.
fn answers(query: Message<'_>, answer: Message<'_>) -> bool {
    if !answer.is_response() || answer.opcode() != query.opcode() {
        return false;
    }
    match (query.question(), answer.question()) {
        (Some(asked), Some(answered)) => {
            asked.matches(answered) && answer.question_count() == query.question_count()
        }
        // Servers that did not read the question do not repeat it, nor need an answer to UPDATE (RFC 2136
        // section 3.8).
        (Some(_), None) => {
            let is_error = ![rcode::NO_ERROR, rcode::NX_DOMAIN].contains(&answer.rcode());
            answer.question_count() == 0 && (is_error || query.opcode() != opcode::QUERY)
        }
        // Nothing that we could compare.
        (None, _) => true,
    }
}

/// The end of a query that no server answered.
fn servfail(query: &[u8]) -> Vec<u8> {
    let Some(query) = Message::parse(query) else { return Vec::new() };
    // The question is copied only if it is the whole of that section.
    let question = query.question().filter(|_| query.question_count() == 1);
    let edns = question.and_then(|_| query.edns().ok()).flatten();
    Reply::new(query, question, edns, rcode::SERV_FAIL.into(), tcp::MAX_MESSAGE).finish()
}

/// Bound of asks per query, were resolv.conf to change all the time: 8 servers twice.
const MAX_ASKS: usize = 16;
const UDP_ATTEMPTS: usize = 2;
const TCP_ATTEMPTS: usize = 1;

#[cfg(test)]
mod tests;
