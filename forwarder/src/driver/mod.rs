//! The event loop that owns listeners, connections and pipes.
//!
//! # Theory of operation
//! One thread, one epoll(7) instance. Listeners are level-triggered and accepted from in batches, so that a burst at one forward
//! starves nobody; the sockets of a connection are registered once, edge-triggered, for everything ([`crate::relay`] remembers).
//! A connection goes through these steps:
//!
//! 1. accept4(2) gives socket and client.
//! 2. The ways to the child are tried in order ([`ChildNetwork`]): a socket of the agent's, from a stock, is bound to the client's
//!    address and connected to the child's, then its loopback; or the engine on the TAP takes the connection over ([`TapPath`]).
//!    Nothing is read from the client meanwhile. If nobody takes it, the client sees RST.
//! 3. Bytes move: small messages through one buffer that all connections share, bulk through a pipe by splice(2). An idle
//!    connection has neither.
//! 4. Ends and resets are passed on; when both streams have ended, both sockets are closed.
//!
//! A stream that carries much wakes the driver for a megabyte at a time (`gather`), which then runs beside the stream's sender
//! (`placing`).
//!
//! After a turn that moved no more than messages, the next event is waited for without sleeping for as long as it has lately taken to
//! come, if that is short (`polling`).
//!
//! Should the process die, both ends of every joined connection see RST: an end would look like the end of the data.
//! Listeners may outlive it ([`crate::store`]).
//!
//! Limits: see [`Limits`]. Without descriptors the driver stops accepting until a connection ends; clients wait in the kernel's
//! queue meanwhile.
//!
//! When the agent goes, the child's namespace is taken for dead: listeners and connections are closed and
//! [`ForwardDriver::run_until`] returns.

mod agent;
mod config;
mod datagrams;
mod egress;
mod gather;
mod handle;
#[cfg(test)]
mod hostile;
mod keeping;
mod opening;
mod pair;
mod placing;
mod polling;
mod publishing;
mod shortcut;
mod stats;
mod target;
mod token;
mod udp;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use slab::Slab;
use thiserror::Error;

pub use self::agent::ChildLine;
pub use self::config::{Config, Limits, Timeouts};
pub use self::egress::{Egress, EgressError, EgressEvents, EgressMode};
pub use self::handle::Handle;
pub use self::publishing::{Auto, PortEvent, ToHost, ToHostStatus};
pub use self::stats::{Connection, Counters, EgressStats, ForwardStats};
pub use self::target::{ChildAddress, ChildNetwork, LocalClients, Manner};
pub use crate::protocol::{EgressAbility, EgressStep};

use self::agent::{Agent, Lost, News};
use self::datagrams::UdpEntry;
use self::egress::{EgressState, Flush, Gate};
use self::gather::{LOOK, Looked};
use self::handle::Inbox;
use self::keeping::Keeper;
use self::opening::HANDSHAKE;
use self::pair::{Mover, Origin as PairOrigin, Pair, Turn};
use self::placing::Placing;
use self::polling::Polling;
use self::publishing::Slot;
use self::token::Token;
use crate::auto::AutoWatch;
use crate::child::RELAY_KEEPALIVE;
use crate::manager::{ListenerId, PortManager};
use crate::protocol::{self, ProtocolError};
use crate::relay::{Action, Readiness, Side};
use crate::spec::Source;
use crate::store::{Inheritance, StoreLine};
use crate::sys::datagram::Batch;
use crate::sys::socket;
use crate::sys::timer::Timer;

/// The engine on the TAP, as a way to the child for what sockets cannot do: destinations beyond the child itself.
pub trait TapPath: Send {
    /// Takes over an accepted connection and opens one to `child` that comes from `source`.
    ///
    /// # Errors
    /// The engine is gone or at its limit; the client sees RST.
    fn tcp(&self, stream: OwnedFd, source: SocketAddr, child: SocketAddr) -> io::Result<()>;

    /// Takes over a bound UDP socket; its datagrams go to `child`.
    ///
    /// # Errors
    /// The engine is gone or at its limit.
    fn add_udp(&self, socket: OwnedFd, child: SocketAddr, source: Source) -> io::Result<u64>;

    /// Closes what [`TapPath::add_udp`] returned.
    fn remove_udp(&self, id: u64);
}

/// Why the driver could not be made, or ended.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DriverError {
    /// epoll_create1(2) failed.
    #[error("epoll_create1 failed")]
    CreateEpoll(#[source] io::Error),
    /// eventfd(2) failed.
    #[error("eventfd failed")]
    CreateWaker(#[source] io::Error),
    /// timerfd_create(2) failed.
    #[error("timerfd_create failed")]
    CreateTimer(#[source] io::Error),
    /// epoll_ctl(2) failed.
    #[error("epoll_ctl failed")]
    Register(#[source] io::Error),
    /// epoll_wait(2) failed.
    #[error("epoll_wait failed")]
    Wait(#[source] io::Error),
    /// The agent ended: the child's namespaces are going.
    #[error("the agent inside the child's namespace has ended")]
    ChildGone,
    /// The agent is another program.
    #[error(transparent)]
    Protocol(ProtocolError),
}

/// See the module.
#[derive(Debug)]
pub struct ForwardDriver {
    engine: Engine,
    inbox: Inbox,
    handle: Handle,
    polling: Polling,
}

impl ForwardDriver {
    /// A driver without forwards. `child` is the agent, `tap` the engine; without either, every client is refused.
    ///
    /// The process has to ignore SIGPIPE, as Rust's programs do: splice(2) cannot do without. Its soft limit of open files is raised to
    /// the hard one.
    ///
    /// # Errors
    /// The system gives no epoll instance or eventfd.
    pub fn new(
        config: Config,
        child: Option<ChildLine>,
        tap: Option<Box<dyn TapPath>>,
    ) -> Result<Self, DriverError> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(|error| DriverError::CreateEpoll(error.into()))?;
        let (handle, inbox) = Inbox::new().map_err(DriverError::CreateWaker)?;
        let rules = config.manner.rules();
        let egress = match config.egress {
            EgressMode::Off => protocol::Egress::Leave,
            EgressMode::WhenOffered | EgressMode::AtOnce => protocol::Egress::Prepare,
        };
        let agent = child.map(|line| Agent::new(line, rules, egress));
        let timer = Timer::new().map_err(DriverError::CreateTimer)?;
        let mut engine = Engine::new(epoll, timer, config, agent, tap, handle.gate());
        if engine.config.auto.is_some() {
            engine.agent.iter_mut().for_each(Agent::greet);
        }
        engine.register(&inbox, Token::Inbox, EpollFlags::EPOLLIN).map_err(DriverError::Register)?;
        let once = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        engine.register(&engine.look, Token::Look, once).map_err(DriverError::Register)?;
        if let Some(agent) = &engine.agent {
            engine.register(agent, Token::Agent, EpollFlags::EPOLLIN).map_err(DriverError::Register)?;
        }
        let polling = Polling::new(engine.config.timeouts.busy_poll);
        Ok(ForwardDriver { engine, inbox, handle, polling })
    }

    /// Who hears what becomes of the connections that [`Handle::relay`] offers. Without somebody all come back.
    pub fn set_egress_events(&mut self, events: Box<dyn EgressEvents>) {
        self.engine.set_egress_events(events);
    }

    /// Has forwards and their sockets kept at the other end of `line`, and takes over, as soon as it runs, what another driver has
    /// left there.
    pub fn set_store(&mut self, line: StoreLine, inheritance: Inheritance) {
        self.engine.keeper = Some(Keeper::new(line, inheritance));
    }

    /// A way in for other threads.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs until `stop` is readable or hung up; connections that are left are reset. Handles get [`PortError::Stopped`](crate::error::PortError::Stopped) afterwards.
    ///
    /// While a stream in bulk is carried the calling thread may be bound to one processor of those that it may use.
    ///
    /// What the child has sent on the egress relay is delivered before, as far as [`Timeouts::linger`] lets it: processes that
    /// have ended leave bytes with their kernel, which goes on sending them.
    ///
    /// # Errors
    /// The child is gone, or the event loop is broken.
    pub fn run_until(mut self, stop: impl AsFd) -> Result<(), DriverError> {
        let mut ended = self.run(&stop);
        self.engine.keeper.iter_mut().for_each(Keeper::clear);
        if ended.is_ok() {
            // It stays readable.
            let _ = self.engine.epoll.delete(&stop);
            self.engine.close_all_but_egress();
            ended = self.linger();
        }
        self.engine.close_egress();
        // An end would look like the end of the data.
        self.engine.reset_all();
        self.engine.finish_egress_turn();
        self.engine.egress.flush(Flush::Now);
        ended
    }

    fn run(&mut self, stop: impl AsFd) -> Result<(), DriverError> {
        self.engine.register(stop, Token::Stop, EpollFlags::EPOLLIN).map_err(DriverError::Register)?;
        self.engine.adopt();
        let mut events = vec![EpollEvent::empty(); EVENTS];
        loop {
            let count = match self.wait(&mut events) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => return Err(DriverError::Wait(error.into())),
            };
            self.engine.look_at_the_clock();
            for event in events.get(..count).unwrap_or_default() {
                match Token::from(event.data()) {
                    Token::Stop => return Ok(()),
                    Token::Inbox => {
                        self.inbox.clear();
                        while let Some(job) = self.inbox.next() {
                            job(&mut self.engine);
                        }
                        self.engine.take_offers();
                    }
                    Token::Agent => self.engine.hear_agent()?,
                    Token::Addresses => self.engine.hear_addresses(),
                    Token::Auto => {}
                    Token::Look => self.engine.look_at_gathering(),
                    Token::Store => self.engine.hear_store(),
                    Token::Listener(key) => self.engine.accept(key),
                    Token::UdpListener(key) => self.engine.hear_clients(key),
                    Token::UdpSession(key, id) => self.engine.hear_server(key, id),
                    Token::Pair(key, generation, side) => {
                        self.engine.handle_ready(key, generation, side, event.events());
                    }
                }
            }
            self.engine.finish_turn();
        }
    }

    /// Delivers what the child has sent.
    fn linger(&mut self) -> Result<(), DriverError> {
        let Timeouts { linger, linger_in_all, .. } = self.engine.config.timeouts;
        let start = Instant::now();
        let mut progress = start;
        let mut events = vec![EpollEvent::empty(); EVENTS];
        while self.engine.owes_the_host() {
            let now = Instant::now();
            if std::mem::take(&mut self.engine.mover.moved) > 0 {
                progress = now;
            }
            let end = (progress + linger).min(start + linger_in_all);
            let Some(left) = end.checked_duration_since(now).filter(|left| !left.is_zero()) else { break };
            let left = EpollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(EpollTimeout::MAX);
            let timeout = if self.engine.busy.is_empty() { left } else { EpollTimeout::ZERO };
            self.engine.egress.flush(Flush::Now);
            let count = match self.engine.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => return Err(DriverError::Wait(error.into())),
            };
            self.engine.look_at_the_clock();
            for event in events.get(..count).unwrap_or_default() {
                match Token::from(event.data()) {
                    // Whoever asks hears that nobody answers any more.
                    Token::Inbox => {
                        self.inbox.clear();
                        while self.inbox.next().is_some() {}
                    }
                    Token::Agent => self.engine.hear_agent()?,
                    Token::Addresses => self.engine.hear_addresses(),
                    Token::Pair(key, generation, side) => {
                        self.engine.handle_ready(key, generation, side, event.events());
                    }
                    Token::Look => self.engine.look_at_gathering(),
                    Token::Stop | Token::Auto | Token::Store => {}
                    Token::Listener(_) | Token::UdpListener(_) | Token::UdpSession(..) => {}
                }
            }
            self.engine.finish_turn();
        }
        Ok(())
    }

    /// Waits for events, or until there is something to do without one.
    fn wait(&mut self, events: &mut [EpollEvent]) -> nix::Result<usize> {
        let moved = std::mem::take(&mut self.engine.mover.moved);
        let timeout = self.engine.timeout();
        let start = Instant::now();
        // Every turn is told of, also those after which nothing is waited for.
        let learnt = self.polling.budget(moved);
        let budget = if self.engine.gathering.is_empty() { learnt } else { Duration::ZERO };
        self.engine.egress.flush(Flush::At(start));
        if timeout == EpollTimeout::ZERO {
            return self.engine.epoll.wait(events, timeout);
        }
        let until = start + budget;
        while Instant::now() < until {
            let count = self.engine.epoll.wait(events, EpollTimeout::ZERO)?;
            if count > 0 {
                self.polling.handle_wait(start.elapsed());
                return Ok(count);
            }
            std::thread::yield_now();
        }
        self.engine.egress.flush(Flush::Now);
        let result = self.engine.epoll.wait(events, timeout);
        self.polling.handle_wait(start.elapsed());
        result
    }
}

/// Events per epoll_wait(2).
const EVENTS: usize = 512;
/// Connections accepted from one listener before others have their turn.
const ACCEPTS: usize = 64;
/// Connections that may wait for sockets of the agent before accepting pauses.
const WAITING: usize = 1024;
/// Descriptors that are not for connections.
const RESERVED_DESCRIPTORS: u64 = 512;
/// Which are at most this part of all.
const RESERVED_PART: u64 = 8;

/// Connections whose places stay when there are none.
const KEPT_PAIRS: usize = 256;
/// Connections of the egress relay, two descriptors each, are at most this part of all descriptors.
const EGRESS_PART: u64 = 4;

/// What the handle's jobs and the loop work on.
pub(super) struct Engine {
    epoll: Epoll,
    config: Config,
    tap: Option<Box<dyn TapPath>>,
    agent: Option<Agent>,
    manager: PortManager,
    listeners: Slab<Listening>,
    udp: Slab<UdpEntry>,
    /// Made for the first UDP forward.
    batch: Option<Batch>,
    by_id: BTreeMap<ListenerId, Slot>,
    to_host: BTreeMap<u64, publishing::Reverse>,
    last_to_host: u64,
    watchers: Vec<std::sync::mpsc::Sender<PortEvent>>,
    auto: Option<AutoWatch>,
    keeper: Option<Keeper>,
    egress: EgressState,
    forwards: BTreeMap<u64, Forward>,
    /// What forwards that are gone did.
    past: Counters,
    pairs: Slab<Pair>,
    generation: u32,
    mover: Mover,
    /// Pairs that wait for a socket of the agent.
    waiting: VecDeque<(usize, u32)>,
    /// Pairs whose turn was over before their work.
    busy: VecDeque<(usize, u32)>,
    /// Streams that gather, and what tells when to look at them.
    gathering: Vec<(usize, u32, Side)>,
    look: Timer,
    /// Pairs with a route of their own.
    shortcuts: Vec<usize>,
    placing: Placing,
    /// Relays that are connecting and may have gone astray, where there is a TAP to turn to, and since when.
    connecting: VecDeque<(usize, u32, Instant)>,
    accepting: Accepting,
    out_of_descriptors: u64,
    connection_limit: usize,
    egress_limit: usize,
    start: Instant,
    now: u32,
    next_sweep: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accepting {
    Yes,
    /// Too many wait for sockets of the agent.
    PausedForSockets,
    /// No descriptor is left.
    PausedForDescriptors,
}

#[derive(Debug)]
struct Listening {
    socket: OwnedFd,
    origin: PairOrigin,
}

#[derive(Debug, Default)]
struct Forward {
    counters: Counters,
    removed: bool,
    /// The way that led to the child the last time, and when: good for a second.
    hint: (u8, u32),
    /// When a connection of the relay was last seen to have arrived where it was going.
    verified: Option<u32>,
    /// Until then the child's own rules lead connections elsewhere, which the TAP can follow.
    by_tap_until: u32,
}

impl Engine {
    fn new(
        epoll: Epoll,
        timer: Timer,
        config: Config,
        mut agent: Option<Agent>,
        tap: Option<Box<dyn TapPath>>,
        gate: Arc<Gate>,
    ) -> Self {
        let descriptors = socket::raise_file_limit().unwrap_or(1024);
        agent.iter_mut().for_each(|agent| agent.keep_stock_below(descriptors));
        let affordable = (descriptors - RESERVED_DESCRIPTORS.min(descriptors / RESERVED_PART)) / 2;
        let connection_limit =
            config.limits.connections.min(usize::try_from(affordable).unwrap_or(usize::MAX).max(16));
        // What comes back needs one descriptor still.
        let egress_limit =
            connection_limit.min(usize::try_from(descriptors / EGRESS_PART).unwrap_or(usize::MAX).max(4));
        Engine {
            epoll,
            tap,
            agent,
            manager: PortManager::new(config.limits.forwards),
            listeners: Slab::new(),
            udp: Slab::new(),
            batch: None,
            by_id: BTreeMap::new(),
            to_host: BTreeMap::new(),
            last_to_host: publishing::FIRST_TO_HOST,
            watchers: Vec::new(),
            auto: None,
            keeper: None,
            egress: EgressState::new(gate),
            forwards: BTreeMap::new(),
            past: Counters::default(),
            pairs: Slab::new(),
            generation: 0,
            mover: Mover::new(config.limits.pipes),
            waiting: VecDeque::new(),
            busy: VecDeque::new(),
            gathering: Vec::new(),
            look: timer,
            shortcuts: Vec::new(),
            placing: Placing::default(),
            connecting: VecDeque::new(),
            accepting: Accepting::Yes,
            out_of_descriptors: 0,
            connection_limit,
            egress_limit,
            config,
            start: Instant::now(),
            now: 0,
            next_sweep: 0,
        }
    }

    fn register(&self, fd: impl AsFd, token: Token, flags: EpollFlags) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(flags, token.into()))?)
    }

    /// Until something is to be done without an event.
    fn timeout(&self) -> EpollTimeout {
        if !self.busy.is_empty() {
            return EpollTimeout::ZERO;
        }
        let sessions = self.udp.iter().any(|(_, entry)| !entry.forward.is_idle());
        let sweeps = !self.pairs.is_empty() || sessions || self.accepting != Accepting::Yes;
        let seconds = self.next_sweep.saturating_sub(self.now).max(1);
        let sweep = sweeps.then(|| Duration::from_secs(seconds.into()));
        let look = self.auto.as_ref().map(|auto| {
            // Rounded up, or it would be waited for in vain just before.
            auto.next_timeout().saturating_duration_since(Instant::now()) + Duration::from_millis(1)
        });
        let stray = self.connecting.front().map(|(_, _, since)| {
            (*since + HANDSHAKE).saturating_duration_since(Instant::now()) + Duration::from_millis(1)
        });
        let egress = self
            .egress
            .next_timeout()
            .map(|due| due.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        match sweep.into_iter().chain(look).chain(stray).chain(egress).min() {
            None => EpollTimeout::NONE,
            Some(timeout) => EpollTimeout::try_from(timeout).unwrap_or(EpollTimeout::MAX),
        }
    }

    fn look_at_the_clock(&mut self) {
        self.now = u32::try_from(self.start.elapsed().as_secs()).unwrap_or(u32::MAX);
    }

    fn finish_turn(&mut self) {
        for _ in 0..self.busy.len() {
            let Some((key, generation)) = self.busy.pop_front() else { break };
            if let Some(pair) = self.pairs.get_mut(key)
                && pair.generation == generation
            {
                pair.queued = false;
                self.advance(key);
            }
        }
        self.publish_by_itself();
        self.look_for_strays();
        self.finish_egress_turn();
        if self.now >= self.next_sweep {
            self.sweep();
        }
    }

    /// Moves what lies in the sockets of streams that gather and is not going to wake anybody; sees to their routes and to where this
    /// thread runs.
    fn look_at_gathering(&mut self) {
        let mut still = std::mem::take(&mut self.gathering);
        let now = self.now;
        let mut seen = Vec::new();
        still.retain(|&(key, generation, side)| {
            let pair = self.pairs.get_mut(key).filter(|pair| pair.generation == generation);
            let looked = pair.map_or(Looked::Over, |pair| {
                let looked = pair.look(side, &mut seen);
                // What is moved by looks alone comes without an event.
                if looked == Looked::Flows {
                    pair.active = now;
                }
                looked
            });
            if looked == Looked::Waits {
                self.advance(key);
            }
            looked != Looked::Over
        });
        self.gathering.append(&mut still);
        self.look_at_shortcuts();
        if self.gathering.is_empty() {
            self.placing.end();
            return;
        }
        self.look.start(LOOK);
        self.placing.look(&seen, std::mem::take(&mut self.mover.messages));
    }

    /// Ends what took too long, takes pipes back from streams that fell silent, and tries to accept again.
    fn sweep(&mut self) {
        let (now, timeouts) = (self.now, self.config.timeouts);
        self.next_sweep = now + SWEEP;
        let silent = |pair: &Pair, timeout: Duration| {
            u64::from(now.saturating_sub(pair.active)) >= timeout.as_secs().max(1)
        };
        let mut slow = Vec::new();
        let mut dead = Vec::new();
        for (key, pair) in &mut self.pairs {
            if pair.relay.is_connecting() {
                // The egress relay has a time of its own.
                if !matches!(pair.origin, PairOrigin::Egress { .. }) && silent(pair, timeouts.connect) {
                    slow.push(key);
                }
            } else if pair.relay.is_half_closed() && silent(pair, timeouts.half_closed) {
                dead.push(key);
            }
            if pair.active + SWEEP <= now {
                pair.give_pipes(&mut self.mover.pipes);
            }
            if pair.recalled.is_some_and(|at| at + RECALLED <= now) {
                pair.recalled = None;
                pair.set_keepalive(RELAY_KEEPALIVE);
            }
        }
        // An agent that does not answer, stopped perhaps: whoever waits goes another way, and makes room for others.
        self.waiting.retain(|&(key, generation)| {
            let waits = |pair: &&Pair| pair.generation == generation && pair.opened.is_none();
            self.pairs.get(key).filter(waits).is_some_and(|pair| !silent(pair, timeouts.connect))
        });
        for key in slow {
            match self.agent.as_ref().is_some_and(|agent| agent.abilities().is_none()) {
                true => self.leave_to_tap(key),
                false => self.try_next_way(key),
            }
        }
        self.resume_if_few_wait();
        for key in dead {
            match self.pairs.get(key).map(|pair| pair.origin) {
                Some(PairOrigin::Egress { .. }) => self.egress.stats.timed_out += 1,
                _ => self.count(key, |counters| counters.timed_out += 1),
            }
            self.reset(key);
        }
        let elapsed = self.start.elapsed();
        for (_, entry) in &mut self.udp {
            entry.forward.expire(elapsed);
        }
        if self.accepting == Accepting::PausedForDescriptors {
            self.resume_accepting();
        }
    }

    fn hear_agent(&mut self) -> Result<(), DriverError> {
        loop {
            let Some(agent) = &mut self.agent else { return Ok(()) };
            let news = match agent.receive() {
                Ok(Some(news)) => news,
                Ok(None) => return Ok(()),
                Err(Lost::Gone) if agent.abilities().is_none() && self.can_do_without_agent() => {
                    self.do_without_agent();
                    return Ok(());
                }
                Err(Lost::Gone) => return Err(DriverError::ChildGone),
                Err(Lost::Protocol(error)) => return Err(DriverError::Protocol(error)),
            };
            match news {
                News::Ready => {
                    if let Some(local) = &agent.local {
                        let event = EpollEvent::new(EpollFlags::EPOLLIN, Token::Addresses.into());
                        // Without events the addresses stay as they are now.
                        let _ = self.epoll.add(local, event);
                    }
                    self.start_auto();
                    self.open_egress_gate();
                    self.serve_waiting();
                    self.flush_datagrams();
                }
                News::Stocked(0) => {
                    self.serve_waiting_egress();
                    self.serve_waiting();
                    self.flush_datagrams();
                }
                News::Stocked(errno) => {
                    let error = io::Error::from_raw_os_error(errno);
                    log::debug!("forwards: no sockets from the child's namespace: {error}");
                    if matches!(errno, libc::EMFILE | libc::ENFILE) {
                        self.pause_for_descriptors();
                    }
                    self.refuse_waiting_egress(errno);
                    // Whoever waits tries its next way.
                    for (key, generation) in std::mem::take(&mut self.waiting) {
                        let waits = |pair: &Pair| pair.generation == generation && pair.opened.is_none();
                        if self.pairs.get(key).is_some_and(waits) {
                            self.try_next_way(key);
                        }
                    }
                    self.resume_if_few_wait();
                }
                News::Listening(id, socket) => self.listening_in_child(id, socket),
                News::Routed(0) => {}
                News::Routed(errno) => {
                    let error = io::Error::from_raw_os_error(errno);
                    log::debug!("forwards: no route of its own for a connection: {error}");
                }
            }
        }
    }

    /// Whether an agent that never was is no reason to end: everything that was begun has another way.
    fn can_do_without_agent(&self) -> bool {
        let tap = self.tap.is_some() && self.config.manner == Manner::Relay;
        tap && self.config.auto.is_none() && self.to_host.is_empty()
    }

    /// It could not be started, and nothing is known of the child's end.
    fn do_without_agent(&mut self) {
        let Some(agent) = self.agent.take() else { return };
        let _ = self.epoll.delete(&agent);
        self.close_egress_gate();
        self.serve_waiting();
        self.flush_datagrams();
    }

    fn hear_addresses(&mut self) {
        if let Some(local) = self.agent.as_mut().and_then(|agent| agent.local.as_mut())
            && let Err(error) = local.read_changes()
        {
            log::debug!("forwards: cannot follow the child's addresses: {error}");
        }
    }

    fn accept(&mut self, key: usize) {
        for _ in 0..ACCEPTS {
            if self.accepting != Accepting::Yes {
                return;
            }
            let Some(listening) = self.listeners.get(key) else { return };
            let origin = listening.origin;
            match socket::accept(listening.socket.as_fd()) {
                Ok((stream, client)) => self.begin(stream, client, origin),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                        // Pipes in reserve are descriptors too.
                        if !self.mover.pipes.close_free() {
                            self.pause_for_descriptors();
                        }
                    }
                    // A connection that ended before it was accepted.
                    Some(libc::ECONNABORTED | libc::EINTR) => {}
                    _ => return,
                },
            }
        }
    }

    fn handle_ready(&mut self, key: usize, generation: u32, side: Side, flags: EpollFlags) {
        let Some(pair) = self.pairs.get_mut(key).filter(|pair| pair.generation == generation) else {
            return;
        };
        pair.relay.handle_ready(side, readiness(flags));
        pair.urgent |= flags.contains(EpollFlags::EPOLLPRI);
        pair.active = self.now;
        if flags.contains(EpollFlags::EPOLLIN) && pair.mutes(side) {
            self.listen_to(key, side, STREAM_EVENTS.difference(EpollFlags::EPOLLIN | EpollFlags::EPOLLPRI));
        }
        self.advance(key);
    }

    /// Chooses the events of one socket of a pair.
    fn listen_to(&self, key: usize, side: Side, events: EpollFlags) {
        if let Some(pair) = self.pairs.get(key)
            && let Some(socket) = pair.socket(side)
        {
            let token = Token::Pair(key, pair.generation, side);
            // A registered socket can be modified.
            let _ = self.epoll.modify(socket, &mut EpollEvent::new(events, token.into()));
        }
    }

    fn advance(&mut self, key: usize) {
        loop {
            let Some(pair) = self.pairs.get_mut(key) else { return };
            let turn = pair.advance(&mut self.mover);
            if !self.mover.gathering.is_empty() {
                if self.gathering.is_empty() {
                    self.mover.messages = 0;
                    self.look.start(LOOK);
                }
                let sides = self.mover.gathering.drain(..);
                self.gathering.extend(sides.map(|side| (key, pair.generation, side)));
            }
            match turn {
                Turn::Idle => {
                    while let Some(side) = self.pairs.get_mut(key).and_then(Pair::unmuted) {
                        self.listen_to(key, side, STREAM_EVENTS);
                    }
                    return;
                }
                Turn::More => {
                    if !pair.queued {
                        pair.queued = true;
                        self.busy.push_back((key, pair.generation));
                    }
                    return;
                }
                Turn::Ask(Action::Join) => {
                    if !self.join(key) {
                        return;
                    }
                }
                Turn::Ask(Action::Fail) => {
                    match pair.origin {
                        PairOrigin::Egress { .. } => self.egress_failed(key),
                        PairOrigin::Host { .. } | PairOrigin::Child { .. } => self.try_next_way(key),
                    }
                    return;
                }
                Turn::Ask(Action::Reset) => {
                    match pair.origin {
                        PairOrigin::Egress { .. } => self.egress.stats.reset += 1,
                        _ => self.count(key, |counters| counters.reset += 1),
                    }
                    self.reset(key);
                    return;
                }
                Turn::Ask(_) => {
                    self.finish(key);
                    return;
                }
            }
        }
    }

    /// From now on the end of this process is a reset to both ends; [`finish`](Self::finish) undoes it.
    fn reset_if_killed(&self, key: usize) {
        self.pairs.get(key).into_iter().flat_map(Pair::sockets).for_each(socket::reset_on_close);
    }

    fn reset(&mut self, key: usize) {
        self.reset_if_killed(key);
        self.close(key);
    }

    /// Closes a pair that has come to its end.
    fn finish(&mut self, key: usize) {
        self.pairs.get(key).into_iter().flat_map(Pair::sockets).for_each(socket::finish_on_close);
        self.close(key);
    }

    fn close(&mut self, key: usize) {
        self.end_shortcut(key);
        let Some(mut pair) = self.pairs.try_remove(key) else { return };
        pair.close_pipes(&mut self.mover.pipes);
        if let PairOrigin::Egress { id } = pair.origin {
            self.egress_ended(id, &pair);
        }
        let id = pair.origin.forward();
        if let Some(forward) = self.forwards.get_mut(&id) {
            forward.counters.connections -= 1;
            forward.counters.bytes_to_server += pair.to_opened;
            forward.counters.bytes_to_client += pair.to_accepted;
        }
        drop(pair);
        if self.pairs.is_empty() && self.pairs.capacity() > KEPT_PAIRS {
            self.pairs = Slab::new();
            self.egress.give_memory_back();
        }
        self.forget_if_over(id);
        if self.accepting == Accepting::PausedForDescriptors {
            self.resume_accepting();
        }
    }

    fn forget_if_over(&mut self, id: u64) {
        if let Some(forward) = self.forwards.get(&id)
            && forward.removed
            && forward.counters.connections == 0
        {
            self.past.add(&forward.counters);
            self.forwards.remove(&id);
        }
    }

    fn count(&mut self, key: usize, count: impl FnOnce(&mut Counters)) {
        if let Some(pair) = self.pairs.get(key)
            && let Some(forward) = self.forwards.get_mut(&pair.origin.forward())
        {
            count(&mut forward.counters);
        }
    }

    fn pause_for_descriptors(&mut self) {
        self.out_of_descriptors += 1;
        if self.accepting != Accepting::PausedForDescriptors {
            log::warn!("forwards: no file descriptor is left; new clients wait until a connection ends");
            self.set_accepting(Accepting::PausedForDescriptors);
            self.next_sweep = self.now + 1;
        }
    }

    fn resume_accepting(&mut self) {
        self.set_accepting(Accepting::Yes);
    }

    fn set_accepting(&mut self, accepting: Accepting) {
        self.accepting = accepting;
        let events = if accepting == Accepting::Yes { EpollFlags::EPOLLIN } else { EpollFlags::empty() };
        for (key, listening) in &self.listeners {
            let mut event = EpollEvent::new(events, Token::Listener(key).into());
            // A registered socket can be modified.
            let _ = self.epoll.modify(&listening.socket, &mut event);
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("pairs", &self.pairs.len()).finish_non_exhaustive()
    }
}

/// Seconds until a socket that was told to say something has done so.
const RECALLED: u32 = 3;
/// Seconds between two looks at what is silent.
const SWEEP: u32 = 5;

/// Both sockets of a pair, for good.
const STREAM_EVENTS: EpollFlags = EpollFlags::EPOLLIN
    .union(EpollFlags::EPOLLPRI)
    .union(EpollFlags::EPOLLOUT)
    .union(EpollFlags::EPOLLRDHUP)
    .union(EpollFlags::EPOLLET);

fn readiness(flags: EpollFlags) -> Readiness {
    Readiness {
        readable: flags.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLPRI),
        writable: flags.contains(EpollFlags::EPOLLOUT),
        ended: flags.intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP),
        failed: flags.contains(EpollFlags::EPOLLERR),
    }
}
