//! The egress relay: connections that begin in the child, joined with ones that were made for them on the host.
//!
//! # Theory of operation
//! Whoever serves the child's SYN (the engine on the TAP) decides about it and connects on the host. Instead of answering the
//! SYN it then offers us the connected socket. We take a socket of the child's namespace from the agent's stock, give it the
//! address that the child connects to, and connect it to the child: both ends have sent a SYN, and a simultaneous open makes one
//! connection of them (RFC 9293 section 3.5). Its packets stay in the child ([`crate::netfilter`]). From then on it is a
//! pair like any other.
//!
//! | offer | led to by | answer |
//! |---|---|---|
//! | waiting | the agent has not said yet what is possible, or the stock is empty; it was asked | [`EgressError::NotPrepared`], [`EgressError::NoSocket`] after [`STOCK`] or what the agent says |
//! | opening | bound and connecting | [`EgressError::Bind`], [`EgressError::Connect`], [`EgressError::TimedOut`] |
//! | joined | the child's kernel has answered | [`EgressEvents::joined`], later [`EgressEvents::ended`] |
//!
//! Nothing is read from the host's socket before it is joined, so whoever offered it can go on with it when it comes back.
//!
//! A handshake that never ends is one whose answers go astray: rules of somebody in the child. Each such one closes the
//! relay for a time, twice as long as before, so that few connections suffer from it.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollEvent;
use thiserror::Error;

use super::agent::Agent;
use super::pair::{Origin as PairOrigin, Pair};
use super::stats::EgressStats;
use super::token::{GENERATIONS, Token};
use super::{Engine, STREAM_EVENTS, WAITING};
use crate::protocol::{EgressAbility, EgressStep, Reach, SocketKind};
use crate::relay::Side;
use crate::spec::{Family, Transport};
use crate::sys::socket;

/// When the agent inside the child prepares it for relaying.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EgressMode {
    /// Never: all offers come back.
    #[default]
    Off,
    /// At the first offer, which waits for the agent's answer as others do. A child that connects to nothing costs nothing.
    WhenOffered,
    /// At once.
    AtOnce,
}

/// A connection that began in the child, and the one that was made for it on the host.
#[derive(Debug)]
pub struct Egress {
    /// Connected, non-blocking, registered nowhere; closing it is a reset (`SO_LINGER`, socket(7)).
    pub stream: OwnedFd,
    /// Who connects, as the packets on the TAP say; its SYN has no answer yet.
    pub child: SocketAddr,
    /// Where to, in the child's words.
    pub destination: SocketAddr,
    /// The name by which [`EgressEvents`] speaks of it.
    pub id: u64,
}

/// What becomes of offers; called on the driver's thread.
pub trait EgressEvents: Send {
    /// The child is connected, and bytes move.
    fn joined(&self, id: u64);

    /// It cannot be relayed: here is the host's socket as it was.
    fn refused(&self, id: u64, stream: OwnedFd, why: EgressError);

    /// A joined connection has ended, after so many bytes.
    fn ended(&self, id: u64, to_host: u64, from_host: u64);

    /// One of the others was called, and it is time to wake whoever waits: at the end of the turn, but for what has ended only
    /// before the driver waits, or a little later while it does not.
    fn flush(&self) {}
}

/// Why a connection is not relayed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EgressError {
    /// The namespace is not prepared, or cannot be.
    #[error("the child is not prepared for relaying: {0}")]
    NotPrepared(EgressAbility),
    /// [`Limits::connections`](super::Limits::connections) or the descriptors of the process.
    #[error("the limit of relayed connections is reached")]
    Limit,
    /// The agent has made no socket in time.
    #[error("no socket of the child's namespace is there")]
    NoSocket(#[source] io::Error),
    /// The destination's address cannot be had: a server of the child listens on this port at all addresses, perhaps.
    #[error("cannot take the destination's address in the child's namespace")]
    Bind(#[source] io::Error),
    /// Nobody waits any more, or addresses and ports are those of a connection that has only just ended.
    #[error("cannot connect to the child")]
    Connect(#[source] io::Error),
    /// epoll_ctl(2) failed.
    #[error("epoll_ctl failed")]
    Register(#[source] io::Error),
    /// The child's kernel does not answer.
    #[error("the child does not answer")]
    TimedOut,
    /// Others did not get an answer lately.
    #[error("relaying pauses")]
    Paused,
    /// The driver ends.
    #[error("the forwarder has stopped")]
    Stopped,
}

/// What the driver knows about offers.
pub(super) struct EgressState {
    events: Option<Box<dyn EgressEvents>>,
    pub(super) gate: Arc<Gate>,
    /// Exchanged for the gate's list.
    spare: Vec<Egress>,
    /// No socket is there for these.
    waiting: VecDeque<(Egress, Instant)>,
    /// Where the pairs are.
    keys: HashMap<u64, usize>,
    /// Their handshakes are under way.
    opening: VecDeque<(usize, u32, Instant)>,
    /// Who wants to know whether relaying is possible.
    askers: Vec<SyncSender<[EgressAbility; 2]>>,
    pub(super) stats: EgressStats,
    /// When the first thing was told that is not flushed.
    told: Option<Instant>,
    /// Somebody waits for it.
    urgent: bool,
    pause: Pause,
}

/// When what was told is to be heard.
#[derive(Clone, Copy, Debug)]
pub(super) enum Flush {
    /// At once: nothing else is to be done.
    Now,
    /// There is more to do: if somebody waits for it, or it is old.
    At(Instant),
}

/// Times without offers after handshakes that never ended, in seconds of the driver's clock.
#[derive(Clone, Copy, Debug, Default)]
struct Pause {
    until: u32,
    next: u32,
}

/// What the handles and the driver share.
#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<Offers>);

#[derive(Debug, Default)]
struct Offers {
    list: Vec<Egress>,
    state: GateState,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum GateState {
    /// All come back.
    #[default]
    Closed,
    /// IPv4, IPv6 are taken.
    Open([bool; 2]),
}

/// What became of an offer at the gate.
#[derive(Debug)]
pub(super) enum Offered {
    /// It waits behind others.
    Queued,
    /// It is the first: wake the driver.
    First,
    /// Not taken.
    Back(Egress),
}

impl Gate {
    pub(super) fn offer(&self, egress: Egress) -> Offered {
        let mut offers = self.lock();
        match offers.state {
            GateState::Closed => Offered::Back(egress),
            GateState::Open(families) => {
                let [v4, v6] = families;
                let taken = match (egress.child, egress.destination) {
                    (SocketAddr::V4(_), SocketAddr::V4(_)) => v4,
                    (SocketAddr::V6(_), SocketAddr::V6(_)) => v6,
                    _ => false,
                };
                if !taken {
                    return Offered::Back(egress);
                }
                offers.list.push(egress);
                if offers.list.len() == 1 { Offered::First } else { Offered::Queued }
            }
        }
    }

    fn set(&self, state: GateState) {
        self.lock().state = state;
    }

    /// A list of offers is whole whatever its holder did.
    fn lock(&self) -> MutexGuard<'_, Offers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EgressState {
    pub(super) fn new(gate: Arc<Gate>) -> Self {
        EgressState {
            events: None,
            gate,
            spare: Vec::new(),
            waiting: VecDeque::new(),
            keys: HashMap::new(),
            opening: VecDeque::new(),
            askers: Vec::new(),
            stats: EgressStats::default(),
            told: None,
            urgent: false,
            pause: Pause::default(),
        }
    }

    /// When something has to be looked at.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let opening = self.opening.front().map(|(_, _, since)| *since + HANDSHAKE);
        let waiting = self.waiting.front().map(|(_, since)| *since + STOCK);
        opening.into_iter().chain(waiting).min()
    }

    /// After many connections there are none.
    pub(super) fn give_memory_back(&mut self) {
        self.keys = HashMap::new();
        self.spare = Vec::new();
        self.opening.clear();
        self.opening.shrink_to_fit();
    }

    fn tell(&mut self, event: impl FnOnce(&dyn EgressEvents)) {
        if let Some(events) = &self.events {
            event(events.as_ref());
            self.told.get_or_insert_with(Instant::now);
        }
    }

    /// Has what was told heard, if it is time: waking somebody else costs as much as all the rest.
    pub(super) fn flush(&mut self, when: Flush) {
        let due = match (when, self.told) {
            (_, None) => false,
            (Flush::Now, Some(_)) => true,
            (Flush::At(now), Some(since)) => self.urgent || now >= since + UNHEARD,
        };
        if due && let Some(events) = &self.events {
            events.flush();
            (self.told, self.urgent) = (None, false);
        }
    }

    fn refuse(&mut self, id: u64, stream: OwnedFd, why: EgressError) {
        log::trace!("egress {id} goes by the TAP: {why}");
        self.stats.refused += 1;
        self.urgent = true;
        self.tell(|events| events.refused(id, stream, why));
    }
}

impl Engine {
    pub(super) fn set_egress_events(&mut self, events: Box<dyn EgressEvents>) {
        if self.agent.is_none() || self.config.egress == EgressMode::Off {
            return;
        }
        self.egress.events = Some(events);
        if self.config.egress == EgressMode::AtOnce {
            self.agent.iter_mut().for_each(Agent::greet);
        }
        // What comes before the agent has said anything waits for it.
        self.egress.gate.set(GateState::Open([true; 2]));
    }

    /// Whether relaying is possible, now or when the agent has said.
    pub(super) fn tell_egress_abilities(&mut self, asker: SyncSender<[EgressAbility; 2]>) {
        if self.egress.events.is_none() || self.agent.as_ref().is_none_or(|agent| agent.abilities().is_some())
        {
            // Whoever asked may have gone.
            let _ = asker.send([self.egress.stats.ipv4, self.egress.stats.ipv6]);
            return;
        }
        self.egress.askers.push(asker);
        self.agent.iter_mut().for_each(Agent::greet);
    }

    /// The agent has said what is possible.
    pub(super) fn open_egress_gate(&mut self) {
        let Some(agent) = &mut self.agent else { return };
        let Some(abilities) = agent.abilities() else { return };
        if self.egress.events.is_none() {
            return;
        }
        let found = [abilities.egress_v4, abilities.egress_v6];
        [self.egress.stats.ipv4, self.egress.stats.ipv6] = found;
        let state = match found.map(|ability| ability == EgressAbility::Possible) {
            [false, false] => GateState::Closed,
            families => GateState::Open(families),
        };
        self.egress.gate.set(state);
        for (family, ability) in [Family::V4, Family::V6].into_iter().zip(found) {
            match ability {
                EgressAbility::Possible => agent.stock_up(kind(family)),
                ability => log::info!("egress: {family:?} connections go by the TAP: {ability}"),
            }
        }
        for asker in self.egress.askers.drain(..) {
            let _ = asker.send(found);
        }
        self.serve_waiting_egress();
    }

    /// The agent could not be started.
    pub(super) fn close_egress_gate(&mut self) {
        let found = EgressAbility::Impossible { step: EgressStep::Agent, errno: libc::ESRCH };
        [self.egress.stats.ipv4, self.egress.stats.ipv6] = [found; 2];
        self.egress.gate.set(GateState::Closed);
        self.take_offers();
        self.serve_waiting_egress();
        for asker in self.egress.askers.drain(..) {
            let _ = asker.send([found; 2]);
        }
    }

    /// Takes what lies at the gate.
    pub(super) fn take_offers(&mut self) {
        let mut offers = std::mem::take(&mut self.egress.spare);
        std::mem::swap(&mut offers, &mut self.egress.gate.lock().list);
        if !offers.is_empty() {
            let now = Instant::now();
            offers.drain(..).for_each(|egress| self.open_egress(egress, now));
        }
        self.egress.spare = offers;
    }

    /// New sockets are there.
    pub(super) fn serve_waiting_egress(&mut self) {
        if self.egress.waiting.is_empty() {
            return;
        }
        for (egress, since) in std::mem::take(&mut self.egress.waiting) {
            self.open_egress(egress, since);
        }
    }

    /// Whoever offered it has no use for it any more: both ends see RST.
    pub(super) fn withdraw_egress(&mut self, id: u64) {
        self.take_offers();
        self.egress.waiting.retain(|(egress, _)| {
            if egress.id == id {
                socket::reset_on_close(egress.stream.as_fd());
            }
            egress.id != id
        });
        if let Some(&key) = self.egress.keys.get(&id) {
            self.egress.stats.reset += 1;
            self.reset(key);
        }
    }

    /// Has the socket in the child say something: connection tracking learns from it whose the connection is.
    pub(super) fn recall_egress(&mut self, id: u64) {
        let pair = self.egress.keys.get(&id).and_then(|&key| self.pairs.get_mut(key));
        let Some(pair) = pair.filter(|pair| !pair.relay.is_connecting()) else { return };
        pair.recalled = Some(self.now);
        pair.set_keepalive(AT_ONCE);
    }

    /// There are none to be had.
    pub(super) fn refuse_waiting_egress(&mut self, errno: i32) {
        for (Egress { id, stream, .. }, _) in std::mem::take(&mut self.egress.waiting) {
            let why = EgressError::NoSocket(io::Error::from_raw_os_error(errno));
            self.egress.refuse(id, stream, why);
        }
    }

    fn open_egress(&mut self, egress: Egress, since: Instant) {
        if self.now < self.egress.pause.until {
            return self.egress.refuse(egress.id, egress.stream, EgressError::Paused);
        }
        let waiting = self.egress.waiting.len();
        let relayed = usize::try_from(self.egress.stats.connections).unwrap_or(usize::MAX);
        if self.pairs.len() + waiting >= self.connection_limit || relayed + waiting >= self.egress_limit {
            return self.egress.refuse(egress.id, egress.stream, EgressError::Limit);
        }
        let family = Family::of(egress.destination.ip());
        let (ability, socket) = match &mut self.agent {
            Some(agent) if agent.abilities().is_none() => {
                agent.greet();
                (EgressAbility::Possible, None)
            }
            agent => {
                let EgressStats { ipv4, ipv6, .. } = &self.egress.stats;
                let ability = if family == Family::V4 { *ipv4 } else { *ipv6 };
                let possible = agent.as_mut().filter(|_| ability == EgressAbility::Possible);
                (ability, possible.and_then(|agent| agent.take(kind(family))))
            }
        };
        if ability != EgressAbility::Possible {
            return self.egress.refuse(egress.id, egress.stream, EgressError::NotPrepared(ability));
        }
        match socket {
            Some(socket) => self.connect_egress(egress, socket),
            None if waiting < WAITING => self.egress.waiting.push_back((egress, since)),
            None => {
                let why = EgressError::NoSocket(io::ErrorKind::QuotaExceeded.into());
                self.egress.refuse(egress.id, egress.stream, why);
            }
        }
    }

    fn connect_egress(&mut self, egress: Egress, socket: OwnedFd) {
        let Egress { stream, child, destination, id } = egress;
        if let Err(error) = socket::bind(socket.as_fd(), without_scope(destination)) {
            return self.egress.refuse(id, stream, EgressError::Bind(error));
        }
        match socket::connect(socket.as_fd(), child) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(error) => return self.egress.refuse(id, stream, EgressError::Connect(error)),
        }
        self.generation = self.generation.wrapping_add(1) & GENERATIONS;
        let generation = self.generation;
        let entry = self.pairs.vacant_entry();
        let key = entry.key();
        let event = |side| EpollEvent::new(STREAM_EVENTS, Token::Pair(key, generation, side).into());
        // Both at once: the child's kernel answers within the call or so, and one wait serves for all.
        let registered = self.epoll.add(&socket, event(Side::Opened)).and_then(|()| {
            self.epoll.add(&stream, event(Side::Accepted)).inspect_err(|_| {
                // It may be connected already.
                socket::reset_on_close(socket.as_fd());
            })
        });
        if let Err(error) = registered {
            return self.egress.refuse(id, stream, EgressError::Register(error.into()));
        }
        let mut pair = Pair::new(stream, child, PairOrigin::Egress { id }, generation, self.now);
        pair.to = destination;
        pair.opened = Some(socket);
        entry.insert(pair);
        self.egress.keys.insert(id, key);
        self.egress.stats.connections += 1;
        self.egress.opening.push_back((key, generation, Instant::now()));
    }

    /// The child has answered.
    pub(super) fn egress_joined(&mut self, id: u64) {
        self.egress.stats.joined += 1;
        self.egress.pause.next = 0;
        // Not later: a new SYN with the same ports is told from a repeated one by it.
        self.egress.urgent = true;
        self.egress.tell(|events| events.joined(id));
    }

    /// The child's kernel says that nobody waits for the connection.
    pub(super) fn egress_failed(&mut self, key: usize) {
        let error = self.pairs.get(key).and_then(|pair| pair.socket(Side::Opened)).map(socket::take_error);
        let error = match error {
            Some(Ok(Some(error)) | Err(error)) => error,
            _ => io::ErrorKind::ConnectionAborted.into(),
        };
        self.give_egress_back(key, EgressError::Connect(error));
    }

    /// A pair that has ended.
    pub(super) fn egress_ended(&mut self, id: u64, pair: &Pair) {
        self.egress.keys.remove(&id);
        let stats = &mut self.egress.stats;
        let (to_host, from_host) = (pair.to_accepted, pair.to_opened);
        stats.connections -= 1;
        stats.bytes_to_host += to_host;
        stats.bytes_from_host += from_host;
        self.egress.tell(|events| events.ended(id, to_host, from_host));
    }

    /// Ends handshakes and waits that took too long.
    pub(super) fn finish_egress_turn(&mut self) {
        if self.egress.next_timeout().is_some() {
            self.expire_egress();
        }
    }

    /// Ends what is published, and takes no more offers.
    pub(super) fn close_all_but_egress(&mut self) {
        self.egress.gate.set(GateState::Closed);
        self.auto = None;
        self.listeners.clear();
        self.udp.clear();
        self.waiting.clear();
        for (key, origin) in self.pairs.iter().map(|(key, pair)| (key, pair.origin)).collect::<Vec<_>>() {
            if !matches!(origin, PairOrigin::Egress { .. }) {
                self.reset(key);
            }
        }
    }

    /// Whether something of what the child has sent may not have reached the host's sockets.
    pub(super) fn owes_the_host(&self) -> bool {
        self.pairs.iter().any(|(_, pair)| {
            matches!(pair.origin, PairOrigin::Egress { .. }) && !pair.relay.has_finished(Side::Opened)
        })
    }

    /// The driver ends.
    pub(super) fn close_egress(&mut self) {
        self.egress.gate.set(GateState::Closed);
        let delivered = self.pairs.iter().filter(|(_, pair)| {
            matches!(pair.origin, PairOrigin::Egress { .. }) && pair.relay.has_finished(Side::Opened)
        });
        for key in delivered.map(|(key, _)| key).collect::<Vec<_>>() {
            // To the child an end would look like the end of the data; the host has got its own, which a reset would revoke.
            if let Some(pair) = self.pairs.get(key) {
                pair.socket(Side::Opened).into_iter().for_each(socket::reset_on_close);
                pair.socket(Side::Accepted).into_iter().for_each(socket::finish_on_close);
            }
            self.close(key);
        }
        let offers = std::mem::take(&mut self.egress.gate.lock().list);
        let waiting = std::mem::take(&mut self.egress.waiting).into_iter().map(|(egress, _)| egress);
        for Egress { id, stream, .. } in offers.into_iter().chain(waiting) {
            self.egress.refuse(id, stream, EgressError::Stopped);
        }
        let opening = self.pairs.iter().filter(|(_, pair)| {
            matches!(pair.origin, PairOrigin::Egress { .. }) && pair.relay.is_connecting()
        });
        for key in opening.map(|(key, _)| key).collect::<Vec<_>>() {
            self.give_egress_back(key, EgressError::Stopped);
        }
    }

    fn expire_egress(&mut self) {
        let now = Instant::now();
        while let Some(&(key, generation, since)) = self.egress.opening.front() {
            let opening = self.pairs.get(key).filter(|pair| pair.generation == generation);
            let opening = opening.is_some_and(|pair| pair.relay.is_connecting());
            if opening && now < since + HANDSHAKE {
                break;
            }
            self.egress.opening.pop_front();
            if opening {
                let pause = &mut self.egress.pause;
                pause.next = (pause.next * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
                pause.until = self.now + pause.next;
                self.give_egress_back(key, EgressError::TimedOut);
            }
        }
        while self.egress.waiting.front().is_some_and(|(_, since)| now >= *since + STOCK) {
            let Some((Egress { id, stream, .. }, _)) = self.egress.waiting.pop_front() else { break };
            self.egress.refuse(id, stream, EgressError::NoSocket(io::ErrorKind::TimedOut.into()));
        }
    }

    /// Takes a pair apart whose handshake has not ended.
    fn give_egress_back(&mut self, key: usize, why: EgressError) {
        let Some(pair) = self.pairs.try_remove(key) else { return };
        let PairOrigin::Egress { id } = pair.origin else { return };
        // Its descriptor lives on, and with it the registration.
        let _ = self.epoll.delete(&pair.accepted);
        if let Some(opened) = &pair.opened {
            // If the child has answered after all, it is not to wait for data.
            socket::reset_on_close(opened.as_fd());
        }
        self.egress.keys.remove(&id);
        self.egress.stats.connections -= 1;
        self.egress.refuse(id, pair.accepted, why);
    }
}

impl fmt::Debug for EgressState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EgressState").field("stats", &self.stats).finish_non_exhaustive()
    }
}

/// How long others may do without knowing what has ended.
const UNHEARD: Duration = Duration::from_micros(300);
/// Seconds of silence after which a socket that has to speak does so; no fewer can be asked for.
const AT_ONCE: i32 = 1;
/// How long the agent may take to make a socket.
const STOCK: Duration = Duration::from_secs(1);
/// How long the child's kernel may take to answer: one packet may be lost, SYNs are repeated after a second.
const HANDSHAKE: Duration = Duration::from_millis(2500);
/// Seconds without offers after the first handshake that never ended ...
const FIRST_PAUSE: u32 = 10;
/// ... and at most.
const LONGEST_PAUSE: u32 = 640;

fn kind(family: Family) -> SocketKind {
    SocketKind { transport: Transport::Tcp, family, reach: Reach::World }
}

/// The scope is the host's, or the TAP's in the child.
fn without_scope(mut address: SocketAddr) -> SocketAddr {
    if let SocketAddr::V6(v6) = &mut address {
        v6.set_scope_id(0);
    }
    address
}
