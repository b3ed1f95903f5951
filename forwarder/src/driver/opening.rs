//! From a client that was accepted to a connection with the child: the ways are tried in order until one leads there.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollEvent;

use super::pair::{Origin as PairOrigin, Pair};
use super::target::{Manner, Means, Way};
use super::token::{GENERATIONS, Token};
use super::{Accepting, Engine, STREAM_EVENTS, WAITING};
use crate::protocol::{Reach, SocketKind};
use crate::relay::Side;
use crate::spec::{Family, Transport};
use crate::sys::socket;

impl Engine {
    pub(super) fn begin(&mut self, stream: OwnedFd, client: SocketAddr, origin: PairOrigin) {
        let forward = self.forwards.entry(origin.forward()).or_default();
        forward.counters.connections_total += 1;
        if self.pairs.len() >= self.connection_limit
            || forward.counters.connections >= self.config.limits.connections_per_forward as u64
        {
            forward.counters.limited += 1;
            socket::reset_on_close(stream.as_fd());
            return;
        }
        forward.counters.connections += 1;
        let (hint, when) = forward.hint;
        let first = if self.now.saturating_sub(when) <= HINT { hint } else { 0 };
        self.generation = self.generation.wrapping_add(1) & GENERATIONS;
        let mut pair = Pair::new(stream, client, origin, self.generation, self.now);
        pair.first = first;
        pair.only_tap = self.now < forward.by_tap_until;
        let key = self.pairs.insert(pair);
        self.open(key);
    }

    /// Opens the way to the child that is next, or refuses.
    pub(super) fn open(&mut self, key: usize) {
        loop {
            match self.try_way(key) {
                Tried::Under => return,
                Tried::Again => {}
                Tried::Failed => {
                    let Some(pair) = self.pairs.get_mut(key) else { return };
                    pair.attempt += 1;
                }
                Tried::NoMore => {
                    self.count(key, |counters| counters.refused += 1);
                    self.reset(key);
                    return;
                }
            }
        }
    }

    pub(super) fn try_next_way(&mut self, key: usize) {
        let Some(pair) = self.pairs.get_mut(key) else { return };
        pair.opened = None;
        pair.attempt += 1;
        pair.active = self.now;
        pair.relay = crate::relay::Relay::new();
        self.open(key);
    }

    fn try_way(&mut self, key: usize) -> Tried {
        let Some(pair) = self.pairs.get_mut(key) else { return Tried::Under };
        let generation = pair.generation;
        let target = match pair.origin {
            PairOrigin::Host { target, .. } => target,
            // It has one way, which was tried.
            PairOrigin::Egress { .. } => return Tried::NoMore,
            PairOrigin::Child { to, .. } => {
                if pair.attempt > 0 {
                    return Tried::NoMore;
                }
                let opened = socket::open(Transport::Tcp, Family::of(to.ip()));
                return match opened {
                    Ok(socket) => {
                        socket::prepare_tcp(socket.as_fd());
                        self.connect(key, socket, to)
                    }
                    Err(_) => Tried::Failed,
                };
            }
        };
        let abilities = match &self.agent {
            Some(agent) => match agent.abilities() {
                Some(abilities) => Some(abilities),
                None if pair.only_tap => None,
                None => {
                    self.wait(key, generation);
                    return Tried::Under;
                }
            },
            None => None,
        };
        let local = self.agent.as_ref().and_then(|agent| agent.local.as_ref());
        let contains = |address: IpAddr| local.is_some_and(|local| local.contains(address));
        let means = Means {
            manner: self.config.manner,
            network: &self.config.child,
            abilities,
            local: if local.is_some() { Some(&contains) } else { None },
            tap: self.tap.is_some(),
        };
        let mut ways = means.ways(target, pair.client);
        if pair.only_tap && ways.iter().flatten().any(|way| matches!(way, Way::Tap { .. })) {
            ways = ways.map(|way| way.filter(|way| matches!(way, Way::Tap { .. })));
        }
        let Some(way) = nth_way(&ways, pair.first, pair.attempt) else { return Tried::NoMore };
        match way {
            Way::Tap { source, to } => self.hand_over(key, source, to),
            Way::Relay { reach, from, to } => {
                let kind = SocketKind { transport: Transport::Tcp, family: Family::of(to.ip()), reach };
                let Some(agent) = &mut self.agent else { return Tried::Failed };
                let Some(socket) = agent.take(kind) else {
                    self.wait(key, generation);
                    return Tried::Under;
                };
                if let Some(from) = from
                    && bind_as(&socket, from, pair.port_taken).is_err()
                {
                    return Tried::Failed;
                }
                pair.tracked = reach == Reach::Tracked;
                let tried = self.connect(key, socket, to);
                let strays = reach != Reach::Tracked && !to.ip().is_loopback() && self.tap.is_some();
                if strays && matches!(tried, Tried::Under) {
                    self.connecting.push_back((key, generation, Instant::now()));
                }
                tried
            }
        }
    }

    fn connect(&mut self, key: usize, socket: OwnedFd, to: SocketAddr) -> Tried {
        let Some(pair) = self.pairs.get_mut(key) else { return Tried::Under };
        match socket::connect(socket.as_fd(), to) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            // The client's address and port are those of a connection that has only just ended: another port, once.
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) && !pair.port_taken => {
                pair.port_taken = true;
                return Tried::Again;
            }
            Err(_) => return Tried::Failed,
        }
        let token = Token::Pair(key, pair.generation, Side::Opened);
        if self.epoll.add(&socket, EpollEvent::new(STREAM_EVENTS, token.into())).is_err() {
            return Tried::Failed;
        }
        pair.to = to;
        pair.opened = Some(socket);
        Tried::Under
    }

    /// Without [`Reach::Tracked`] a relay's handshake does not leave the child's kernel. If it takes time, rules of the child
    /// lead it elsewhere, or the server's queue is full: both are matters for the TAP.
    pub(super) fn look_for_strays(&mut self) {
        if self.connecting.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some(&(key, generation, since)) = self.connecting.front() {
            let connects = self.pairs.get(key).is_some_and(|pair| {
                pair.generation == generation && pair.relay.is_connecting() && pair.opened.is_some()
            });
            if connects && now < since + HANDSHAKE {
                return;
            }
            self.connecting.pop_front();
            if connects {
                self.leave_to_tap(key);
            }
        }
    }

    pub(super) fn leave_to_tap(&mut self, key: usize) {
        let Some(pair) = self.pairs.get_mut(key) else { return };
        (pair.only_tap, pair.first, pair.attempt) = (true, 0, 0);
        pair.opened = None;
        pair.active = self.now;
        pair.relay = crate::relay::Relay::new();
        if let Some(forward) = self.forwards.get_mut(&pair.origin.forward()) {
            forward.by_tap_until = self.now + BY_TAP;
        }
        self.open(key);
    }

    fn hand_over(&mut self, key: usize, source: SocketAddr, to: SocketAddr) -> Tried {
        let Some(tap) = &self.tap else { return Tried::Failed };
        let forward = self.pairs.get(key).map_or(0, |pair| pair.origin.forward());
        let Some(pair) = self.pairs.try_remove(key) else { return Tried::Under };
        let result = tap.tcp(pair.accepted, source, to);
        if let Some(forward) = self.forwards.get_mut(&forward) {
            forward.counters.connections -= 1;
            match result {
                Ok(()) => forward.counters.by_tap += 1,
                Err(_) => forward.counters.refused += 1,
            }
        }
        self.forget_if_over(forward);
        Tried::Under
    }

    fn wait(&mut self, key: usize, generation: u32) {
        self.waiting.push_back((key, generation));
        if self.waiting.len() >= WAITING && self.accepting == Accepting::Yes {
            self.set_accepting(Accepting::PausedForSockets);
        }
    }

    pub(super) fn serve_waiting(&mut self) {
        for (key, generation) in std::mem::take(&mut self.waiting) {
            let waits = |pair: &Pair| pair.generation == generation && pair.opened.is_none();
            if self.pairs.get(key).is_some_and(waits) {
                self.open(key);
            }
        }
        self.resume_if_few_wait();
    }

    pub(super) fn resume_if_few_wait(&mut self) {
        if self.accepting == Accepting::PausedForSockets && self.waiting.len() < WAITING / 2 {
            self.resume_accepting();
        }
    }

    /// Starts to hear of the accepted socket; says whether the pair still exists.
    pub(super) fn join(&mut self, key: usize) -> bool {
        if let Some(PairOrigin::Egress { id }) = self.pairs.get(key).map(|pair| pair.origin) {
            // The host's socket came with it.
            self.pairs.get(key).and_then(|pair| pair.socket(Side::Opened)).iter().for_each(|opened| {
                socket::reset_on_close(*opened);
            });
            self.egress_joined(id);
            return true;
        }
        if !self.arrived(key) {
            self.leave_to_tap(key);
            return false;
        }
        let Some(pair) = self.pairs.get(key) else { return false };
        let token = Token::Pair(key, pair.generation, Side::Accepted);
        if self.epoll.add(&pair.accepted, EpollEvent::new(STREAM_EVENTS, token.into())).is_err() {
            self.reset(key);
            return false;
        }
        self.reset_if_killed(key);
        let Some(pair) = self.pairs.get(key) else { return false };
        // What a hint led to does not prolong it: the best way is tried again from time to time.
        if pair.attempt > 0
            && let Some(forward) = self.forwards.get_mut(&pair.origin.forward())
        {
            forward.hint = (way_index(pair.first, pair.attempt), self.now);
        }
        true
    }

    /// Whether a connection of the relay has come to where it was going. The child may have rules of its own (DNAT to a
    /// container behind it) that lead it elsewhere, where it must not end: the TAP follows such rules as they were meant, and so
    /// does a tracked connection. Asked once a second for each forward; without a TAP there would be no choice.
    fn arrived(&mut self, key: usize) -> bool {
        let (Some(pair), Some(_), Manner::Relay) = (self.pairs.get(key), &self.tap, self.config.manner)
        else {
            return true;
        };
        let Some(forward) = self.forwards.get_mut(&pair.origin.forward()) else { return true };
        if pair.tracked || pair.to.ip().is_loopback() || forward.verified == Some(self.now) {
            return true;
        }
        let (Some(opened), Some(diag)) =
            (&pair.opened, self.agent.as_mut().and_then(|agent| agent.diag.as_mut()))
        else {
            return true;
        };
        let Ok(from) = socket::local_address(opened.as_fd()) else { return true };
        match diag.is_connected(pair.to, from) {
            // A server that has ended the connection already was there.
            Ok(false) if !socket::has_ended(opened.as_fd()) => false,
            _ => {
                forward.verified = Some(self.now);
                true
            }
        }
    }
}

/// What trying a way came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tried {
    /// It is under way, or the pair has left.
    Under,
    /// The same once more.
    Again,
    /// This one does not lead there.
    Failed,
    /// There is no further one.
    NoMore,
}

/// How long the handshake of a relay may take before the TAP is tried.
pub(super) const HANDSHAKE: Duration = Duration::from_millis(100);

/// Seconds without the relay after a connection went astray.
const BY_TAP: u32 = 10;

/// Seconds that a hint is good for.
const HINT: u32 = 1;

/// The ways in the order in which they are tried: `first`, then the others.
fn nth_way(ways: &[Option<Way>], first: u8, attempt: u8) -> Option<Way> {
    ways.iter().flatten().nth(way_index(first, attempt).into()).copied()
}

fn way_index(first: u8, attempt: u8) -> u8 {
    match attempt {
        0 => first,
        attempt if attempt <= first => attempt - 1,
        attempt => attempt,
    }
}

/// Binds to `address`, or to another port of it if that one is taken.
fn bind_as(socket: &OwnedFd, address: SocketAddr, port_taken: bool) -> io::Result<()> {
    let any_port = SocketAddr::new(address.ip(), 0);
    if port_taken {
        return socket::bind(socket.as_fd(), any_port);
    }
    match socket::bind(socket.as_fd(), address) {
        Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) => {
            socket::bind(socket.as_fd(), any_port)
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_moves_one_way_to_the_front() {
        let way = |port| Way::Tap {
            source: SocketAddr::from(([127, 0, 0, 1], 1)),
            to: SocketAddr::from(([127, 0, 0, 1], port)),
        };
        let ways = [Some(way(0)), None, Some(way(1)), Some(way(2))];
        let order = |first| (0..5).map_while(|n| nth_way(&ways, first, n)).collect::<Vec<_>>();
        assert_eq!(order(0), [way(0), way(1), way(2)]);
        assert_eq!(order(1), [way(1), way(0), way(2)]);
        assert_eq!(order(2), [way(2), way(0), way(1)]);
    }
}
