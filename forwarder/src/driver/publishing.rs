//! What listens where: forwards come and go, asked for, by themselves, and from the child to the host.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::Instant;

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::datagrams::{UdpEntry, Via};
use super::keeping::{Keeper, Then};
use super::pair::Origin as PairOrigin;
use super::stats::Counters;
use super::target::Target;
use super::token::Token;
use super::udp::UdpForward;
use super::{Accepting, Connection, Engine, ForwardStats, Listening};
use crate::auto::{AutoPublisher, AutoRules, AutoWatch, Change, DEFAULT_LOCAL_PORT_RANGE, Pace};
use crate::error::PortError;
use crate::manager::{self, Added, Listener, ListenerId};
use crate::protocol::Request;
use crate::spec::{Family, Origin, PortSpec, PortStatus, Transport};
use crate::sys::socket;

/// What is published by itself, and how often to look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Auto {
    /// What.
    pub rules: AutoRules,
    /// How often.
    pub pace: Pace,
}

/// A port of the child's that leads to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToHost {
    /// TCP or UDP.
    pub transport: Transport,
    /// Where to listen in the child; an IPv6 address hears IPv6 only. Port 0: the child's kernel picks.
    pub listen: SocketAddr,
    /// Where to connect on the host.
    pub connect: SocketAddr,
}

/// A port of the child's that leads to the host, and exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToHostStatus {
    /// Its number; it is no number of a forward to the child.
    pub id: u64,
    /// What it is; the port that the child's kernel picked stands in place of 0.
    pub to_host: ToHost,
}

/// What became of a forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortEvent {
    /// It exists.
    Added(PortStatus),
    /// It is gone.
    Removed {
        /// Its number.
        id: u64,
    },
}

/// Numbers of [`ToHost`] begin behind those of any forward.
pub(super) const FIRST_TO_HOST: u64 = 1 << 32;

/// One of them, on its way or there.
#[derive(Debug)]
pub(super) struct Reverse {
    to_host: ToHost,
    /// Who waits for it; `None` when it is there.
    asker: Option<SyncSender<Result<ToHostStatus, PortError>>>,
    slot: Option<Slot>,
}

/// Where a listener is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    Tcp(usize),
    Udp(usize),
    /// With the engine on the TAP.
    Tap(u64),
    /// With the engine on the TAP, and beside it for clients on the host's loopback.
    Parted {
        tap: u64,
        udp: usize,
    },
}

impl Engine {
    pub(super) fn add(&mut self, spec: PortSpec, origin: Origin) -> Result<PortStatus, PortError> {
        let id = self.add_as(spec, origin)?.id();
        self.manager.status(id).ok_or(PortError::NotFound { id })
    }

    fn add_as(&mut self, spec: PortSpec, origin: Origin) -> Result<Added, PortError> {
        self.agent.iter_mut().for_each(super::agent::Agent::greet);
        let added = self.manager.add(spec, origin)?;
        let id = added.id();
        if let Some(error) = self.perform(id) {
            self.keeper.iter_mut().for_each(Keeper::give_up);
            return Err(error);
        }
        if matches!(added, Added::New(_)) || origin == Origin::Asked {
            self.keep(id);
        }
        self.forwards.entry(id).or_default();
        if let (Added::New(_), Some(status)) = (added, self.manager.status(id)) {
            self.tell(&PortEvent::Added(status));
        }
        Ok(added)
    }

    /// Tells the watchers that are still there.
    fn tell(&mut self, event: &PortEvent) {
        self.watchers.retain(|watcher| watcher.send(event.clone()).is_ok());
    }

    pub(super) fn watch(&mut self) -> Receiver<PortEvent> {
        let (watcher, events) = mpsc::channel();
        for status in self.manager.list() {
            let _ = watcher.send(PortEvent::Added(status));
        }
        self.watchers.push(watcher);
        events
    }

    /// Does what the manager wants; returns why forward `id` failed, if it did.
    pub(super) fn perform(&mut self, id: u64) -> Option<PortError> {
        let mut failure = None;
        while let Some(action) = self.manager.poll_action() {
            match action {
                manager::Action::Listen(listener) => match self.listen(&listener) {
                    Ok(port) => self.manager.handle_listening(listener.id, port),
                    Err(error) => self.manager.handle_listen_failed(listener.id, error),
                },
                manager::Action::Unlisten(listener) => self.unlisten(listener),
                manager::Action::Failed { id: failed, error } if failed == id => failure = Some(error),
                _ => {}
            }
        }
        failure
    }

    /// Removes a forward; `then` hears so when its ports are free.
    pub(super) fn remove(&mut self, id: u64, then: impl FnOnce(Result<(), PortError>) + Send + 'static) {
        if let Err(error) = self.manager.remove(id) {
            return then(Err(error));
        }
        self.withdrawn(id, Box::new(|| then(Ok(()))));
        if let Some(auto) = &mut self.auto {
            auto.publisher().handle_removed(id);
        }
    }

    fn withdrawn(&mut self, id: u64, then: Then) {
        self.perform(id);
        self.forget(id, then);
        self.tell(&PortEvent::Removed { id });
        if let Some(forward) = self.forwards.get_mut(&id) {
            forward.removed = true;
        }
        self.forget_if_over(id);
    }

    pub(super) fn reset_connections(&mut self, forward: u64) {
        let of_it = self.pairs.iter().filter(|(_, pair)| pair.origin.forward() == forward);
        for key in of_it.map(|(key, _)| key).collect::<Vec<_>>() {
            self.reset(key);
        }
    }

    pub(super) fn reset_all(&mut self) {
        for key in self.pairs.iter().map(|(key, _)| key).collect::<Vec<_>>() {
            self.reset(key);
        }
    }

    pub(super) fn list(&self) -> Vec<PortStatus> {
        self.manager.list()
    }

    pub(super) fn stats(&self) -> ForwardStats {
        let mut forwards: BTreeMap<u64, Counters> =
            self.forwards.iter().map(|(id, forward)| (*id, forward.counters)).collect();
        let mut egress = self.egress.stats;
        for (_, pair) in &self.pairs {
            if let PairOrigin::Egress { .. } = pair.origin {
                egress.bytes_to_host += pair.to_accepted;
                egress.bytes_from_host += pair.to_opened;
            } else if let Some(counters) = forwards.get_mut(&pair.origin.forward()) {
                counters.bytes_to_server += pair.to_opened;
                counters.bytes_to_client += pair.to_accepted;
            }
        }
        for (_, entry) in &self.udp {
            forwards.entry(entry.forward.forward).or_default().add(&entry.forward.counted());
        }
        let mut total = self.past;
        forwards.values().for_each(|counters| total.add(counters));
        ForwardStats {
            total,
            forwards: forwards.into_iter().collect(),
            out_of_descriptors: self.out_of_descriptors,
            pipes: self.mover.pipes.lent() as u64,
            egress,
        }
    }

    pub(super) fn connections(&self) -> Vec<Connection> {
        let joined = self.pairs.iter().filter(|(_, pair)| !pair.relay.is_connecting());
        joined
            .map(|(_, pair)| {
                let (egress, to_server, to_client) = match pair.origin {
                    PairOrigin::Egress { id } => (Some(id), pair.to_accepted, pair.to_opened),
                    _ => (None, pair.to_opened, pair.to_accepted),
                };
                Connection {
                    forward: pair.origin.forward(),
                    egress,
                    client: pair.client,
                    server: pair.to,
                    bytes_to_server: to_server,
                    bytes_to_client: to_client,
                    age: self.now.saturating_sub(pair.since),
                    idle: self.now.saturating_sub(pair.active),
                }
            })
            .collect()
    }

    fn listen(&mut self, listener: &Listener) -> io::Result<u16> {
        let mut address = listener.address;
        let interface = listener.interface.as_ref().map(|name| name.as_str());
        if let (SocketAddr::V6(v6), Some(name)) = (&mut address, interface)
            && v6.ip().is_unicast_link_local()
        {
            v6.set_scope_id(nix::net::if_::if_nametoindex(name)?);
        }
        let socket = match self.keeper.as_mut().and_then(|keeper| keeper.inherit(listener)) {
            Some(socket) => socket,
            None => {
                let socket = socket::listener(listener.transport, address, interface)?;
                self.keeper.iter_mut().for_each(|keeper| keeper.handle_made(listener.id, &socket));
                socket
            }
        };
        let port = match address.port() {
            0 => socket::local_address(socket.as_fd())?.port(),
            port => port,
        };
        let target = Target { ip: listener.child_ip, port: listener.child_port, source: listener.source };
        let slot = match listener.transport {
            Transport::Tcp => {
                self.serve_tcp(socket, PairOrigin::Host { forward: listener.forward, target })?
            }
            Transport::Udp => match self.udp_by_tap(&socket, address.ip(), target)? {
                Some(tap) => {
                    match self.listen_apart(&socket, SocketAddr::new(address.ip(), port), interface)? {
                        Some((socket, bound)) => Slot::Parted {
                            tap,
                            udp: self.serve_udp_at(listener.forward, socket, bound, Via::Child(target))?,
                        },
                        None => Slot::Tap(tap),
                    }
                }
                None => self.serve_udp(listener.forward, socket, address.ip(), Via::Child(target))?,
            },
        };
        self.by_id.insert(listener.id, slot);
        Ok(port)
    }

    /// A socket beside `everybody`, which is bound to all addresses, for clients on the host's loopback, if those
    /// are not led through the TAP.
    fn listen_apart(
        &self,
        everybody: &OwnedFd,
        bound: SocketAddr,
        interface: Option<&str>,
    ) -> io::Result<Option<(OwnedFd, IpAddr)>> {
        let loopback = match bound.ip() {
            IpAddr::V4(any) if any.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(any) if any.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            _ => return Ok(None),
        };
        if interface.is_some() || self.agent.is_none() || !self.config.manner.parts(loopback) {
            return Ok(None);
        }
        let socket = socket::listener_beside(everybody.as_fd(), SocketAddr::new(loopback, bound.port()))?;
        Ok(Some((socket, loopback)))
    }

    /// Hands a socket to the engine on the TAP, if that is the way to `target`.
    fn udp_by_tap(&self, socket: &OwnedFd, host: IpAddr, target: Target) -> io::Result<Option<u64>> {
        let Some(tap) = &self.tap else { return Ok(None) };
        if self.agent.is_some() && self.config.manner.parts(host) {
            return Ok(None);
        }
        let child = target.ip.or_else(|| self.config.child.best_address(Family::of(host)));
        match child {
            Some(ip) if !ip.is_loopback() => {
                let child = SocketAddr::new(ip, target.port);
                tap.add_udp(socket.try_clone()?, child, target.source).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn serve_tcp(&mut self, socket: OwnedFd, origin: PairOrigin) -> io::Result<Slot> {
        let entry = self.listeners.vacant_entry();
        let key = entry.key();
        let events = if self.accepting == Accepting::Yes { EpollFlags::EPOLLIN } else { EpollFlags::empty() };
        self.epoll.add(&socket, EpollEvent::new(events, Token::Listener(key).into()))?;
        entry.insert(Listening { socket, origin });
        Ok(Slot::Tcp(key))
    }

    fn serve_udp(&mut self, forward: u64, socket: OwnedFd, bound: IpAddr, via: Via) -> io::Result<Slot> {
        self.serve_udp_at(forward, socket, bound, via).map(Slot::Udp)
    }

    fn serve_udp_at(&mut self, forward: u64, socket: OwnedFd, bound: IpAddr, via: Via) -> io::Result<usize> {
        let entry = self.udp.vacant_entry();
        let key = entry.key();
        self.epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, Token::UdpListener(key).into()))?;
        let (limit, idle) = (self.config.limits.udp_sessions, self.config.timeouts.udp);
        entry.insert(UdpEntry { forward: UdpForward::new(forward, socket, bound, limit, idle), via });
        Ok(key)
    }

    fn unlisten(&mut self, id: ListenerId) {
        self.keeper.iter_mut().for_each(|keeper| keeper.handle_closed(id));
        if let Some(slot) = self.by_id.remove(&id) {
            self.end(slot);
        }
    }

    /// Copies of a socket may live on, and its registration with them: it is taken out of the epoll set.
    fn end(&mut self, slot: Slot) {
        match slot {
            Slot::Tcp(key) => {
                if let Some(listening) = self.listeners.try_remove(key) {
                    let _ = self.epoll.delete(&listening.socket);
                }
            }
            Slot::Udp(key) => {
                if let Some(entry) = self.udp.try_remove(key) {
                    let _ = self.epoll.delete(&entry.forward.socket);
                    let counters = Counters { sessions: 0, ..entry.forward.counted() };
                    match self.forwards.get_mut(&entry.forward.forward) {
                        Some(forward) => forward.counters.add(&counters),
                        None => self.past.add(&counters),
                    }
                }
            }
            Slot::Parted { tap, udp } => {
                self.end(Slot::Udp(udp));
                self.end(Slot::Tap(tap));
            }
            Slot::Tap(id) => {
                if let Some(tap) = &self.tap {
                    tap.remove_udp(id);
                }
            }
        }
    }

    /// Begins to publish by itself, if that is wanted and the agent could help.
    pub(super) fn start_auto(&mut self) {
        let Some(Auto { rules, pace }) = self.config.auto.clone() else { return };
        let Some(agent) = &mut self.agent else { return };
        let Some(socket) = agent.spare_diag.take() else {
            log::warn!("forwards: cannot see what listens in the child; nothing is published by itself");
            return;
        };
        let ephemeral = match agent.abilities().map(|abilities| abilities.ephemeral) {
            Some((first, last)) if last > 0 => RangeInclusive::new(first, last),
            _ => DEFAULT_LOCAL_PORT_RANGE,
        };
        let mut publisher = AutoPublisher::new(rules, ephemeral);
        for (id, spec) in self.inherited_by_auto() {
            publisher.handle_inherited(spec, id);
        }
        let watch = AutoWatch::new(socket, publisher, pace, Instant::now());
        // Without events the timer alone has to do.
        let _ = self.register(&watch, Token::Auto, EpollFlags::EPOLLIN);
        self.auto = Some(watch);
    }

    pub(super) fn publish_by_itself(&mut self) {
        let Some(auto) = &mut self.auto else { return };
        let now = Instant::now();
        for change in auto.poll(now) {
            match change {
                Change::Add(spec) => {
                    let result = match self.leads_back(&spec) {
                        Some(conflict) => Err(conflict),
                        None => self.add_as(spec.clone(), Origin::Auto),
                    };
                    let Some(auto) = &mut self.auto else { return };
                    match result {
                        Ok(added) => auto.publisher().handle_added(now, &spec, added),
                        Err(error) => {
                            if auto.publisher().handle_refused(now, &spec, &error) == crate::auto::Tell::Yes {
                                log::warn!("forwards: {spec} is not published: {error}");
                            }
                        }
                    }
                }
                Change::Withdraw(id) => {
                    self.manager.withdraw(id);
                    if self.manager.status(id).is_none() {
                        self.withdrawn(id, Box::new(|| ()));
                    }
                }
            }
        }
    }

    /// Why something that listens in the child must not be published: it is a port of ours that leads to the host, and
    /// both together would be a circle.
    fn leads_back(&self, spec: &PortSpec) -> Option<PortError> {
        let (transport, fields) = (spec.proto().transport(), spec.fields());
        let found = self.to_host.iter().find(|(_, reverse)| {
            let ToHost { transport: own, listen, .. } = reverse.to_host;
            own == transport && fields.child_ip == Some(listen.ip()) && fields.child_port == listen.port()
        });
        found.map(|(&id, reverse)| PortError::Conflict { id, address: reverse.to_host.listen, transport })
    }

    /// Asks the agent for a listener; the answer goes to `asker`.
    pub(super) fn add_to_host(
        &mut self,
        to_host: ToHost,
        asker: SyncSender<Result<ToHostStatus, PortError>>,
    ) {
        let Some(agent) = &mut self.agent else {
            let source = io::Error::from_raw_os_error(libc::EOPNOTSUPP);
            let _ = asker.send(Err(listen_error(&to_host, source)));
            return;
        };
        self.last_to_host += 1;
        let id = self.last_to_host;
        agent.greet();
        agent.listen(Request::Listen { id, transport: to_host.transport, address: to_host.listen });
        self.to_host.insert(id, Reverse { to_host, asker: Some(asker), slot: None });
    }

    pub(super) fn listening_in_child(&mut self, id: u64, socket: io::Result<OwnedFd>) {
        let Some(reverse) = self.to_host.get_mut(&id) else { return };
        let mut to_host = reverse.to_host;
        let Some(asker) = reverse.asker.take() else { return };
        let served = socket.and_then(|socket| {
            to_host.listen = socket::local_address(socket.as_fd())?;
            match to_host.transport {
                Transport::Tcp => {
                    self.serve_tcp(socket, PairOrigin::Child { forward: id, to: to_host.connect })
                }
                Transport::Udp => self.serve_udp(id, socket, to_host.listen.ip(), Via::Host(to_host.connect)),
            }
        });
        let answer = match served {
            Ok(slot) => {
                self.to_host.insert(id, Reverse { to_host, asker: None, slot: Some(slot) });
                self.forwards.entry(id).or_default();
                Ok(ToHostStatus { id, to_host })
            }
            Err(source) => {
                self.to_host.remove(&id);
                Err(listen_error(&to_host, source))
            }
        };
        // Whoever asked may have gone.
        let _ = asker.send(answer);
    }

    pub(super) fn remove_to_host(&mut self, id: u64) -> Result<(), PortError> {
        let reverse = self.to_host.remove(&id).ok_or(PortError::NotFound { id })?;
        if let Some(slot) = reverse.slot {
            self.end(slot);
        }
        if let Some(forward) = self.forwards.get_mut(&id) {
            forward.removed = true;
        }
        self.forget_if_over(id);
        Ok(())
    }

    pub(super) fn list_to_host(&self) -> Vec<ToHostStatus> {
        let there = self.to_host.iter().filter(|(_, reverse)| reverse.asker.is_none());
        there.map(|(&id, reverse)| ToHostStatus { id, to_host: reverse.to_host }).collect()
    }
}

fn listen_error(to_host: &ToHost, source: io::Error) -> PortError {
    PortError::Listen { address: to_host.listen, transport: to_host.transport, source }
}
