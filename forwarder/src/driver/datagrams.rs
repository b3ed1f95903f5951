//! UDP forwards in the event loop: where their sessions' sockets come from.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use super::agent::Agent;
use super::target::{Manner, Target};
use super::token::Token;
use super::udp::{Opened, UdpForward};
use super::{Config, Engine};
use crate::protocol::{Reach, SocketKind};
use crate::spec::{Family, Transport};
use crate::sys::datagram::Batch;
use crate::sys::socket;
use crate::udp_session::{Client, SessionId};

/// A UDP forward and where it leads.
#[derive(Debug)]
pub(super) struct UdpEntry {
    pub(super) forward: UdpForward,
    pub(super) via: Via,
}

/// Where a UDP forward leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Via {
    /// To the child.
    Child(Target),
    /// From the child to the host.
    Host(SocketAddr),
}

impl Engine {
    pub(super) fn hear_clients(&mut self, key: usize) {
        let now = self.start.elapsed();
        let Engine { udp, batch, agent, config, epoll, .. } = self;
        let Some(entry) = udp.get_mut(key) else { return };
        let batch = batch.get_or_insert_with(Batch::new);
        let via = entry.via;
        entry.forward.hear_clients(
            now,
            batch,
            |client| open(via, agent.as_mut(), config, client),
            |id, socket| watch(epoll, key, id, socket),
        );
    }

    pub(super) fn hear_server(&mut self, key: usize, id: SessionId) {
        let now = self.start.elapsed();
        let Some(entry) = self.udp.get_mut(key) else { return };
        entry.forward.hear_server(now, id, self.batch.get_or_insert_with(Batch::new));
    }

    /// Sockets of the agent have come.
    pub(super) fn flush_datagrams(&mut self) {
        let now = self.start.elapsed();
        let Engine { udp, agent, config, epoll, .. } = self;
        for (key, entry) in udp {
            let via = entry.via;
            entry.forward.flush(
                now,
                |client| open(via, agent.as_mut(), config, client),
                |id, socket| watch(epoll, key, id, socket),
            );
        }
    }
}

fn watch(epoll: &Epoll, key: usize, id: SessionId, socket: &OwnedFd) -> bool {
    let event = EpollEvent::new(EpollFlags::EPOLLIN, Token::UdpSession(key, id).into());
    epoll.add(socket, event).is_ok()
}

/// A socket for a new client.
fn open(via: Via, agent: Option<&mut Agent>, config: &Config, client: &Client) -> Opened {
    let (socket, to) = match via {
        Via::Host(to) => match socket::open(Transport::Udp, Family::of(to.ip())) {
            Ok(socket) => {
                socket::prepare_udp(socket.as_fd());
                (socket, to)
            }
            Err(_) => return Opened::Failed,
        },
        Via::Child(target) => {
            let Some(agent) = agent else { return Opened::Failed };
            if agent.abilities().is_none() {
                return Opened::Later;
            }
            let to = server(agent, config, target, client);
            let family = Family::of(to.ip());
            let kind = SocketKind { transport: Transport::Udp, family, reach: Reach::Plain };
            match agent.take(kind) {
                Some(socket) => (socket, to),
                None => return Opened::Later,
            }
        }
    };
    match socket::connect(socket.as_fd(), to) {
        Ok(()) => Opened::Socket(socket),
        Err(_) => Opened::Failed,
    }
}

/// Who in the child a new client's datagrams go to: the one of its addresses, its own first and then its loopback, where
/// somebody listens.
fn server(agent: &mut Agent, config: &Config, target: Target, client: &Client) -> SocketAddr {
    let network = &config.child;
    let asked = match config.manner {
        Manner::Relay => target.ip,
        Manner::Apart(local) => network.local_target(local, target.ip, Family::of(client.address.ip())),
    };
    if let Some(ip) = asked {
        return SocketAddr::new(ip, target.port);
    }
    let candidates = network.candidates(Family::of(client.address.ip()));
    let mut addresses = candidates.into_iter().flatten().map(|ip: IpAddr| SocketAddr::new(ip, target.port));
    let first = addresses.clone().next();
    let heard = agent.diag.as_mut().and_then(|diag| {
        addresses.find(|address| matches!(diag.listener(Transport::Udp, *address), Ok(Some(_))))
    });
    heard.or(first).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], target.port)))
}
