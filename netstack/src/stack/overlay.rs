//! An overlay between nodes (VXLAN): one UDP port of the child and of the host, and whom it is shared with.
//!
//! # Theory of operation
//! *Goal:* a tunnel's datagrams come from a port per inner flow and go to one port of the other node, whose kernel
//! answers in the same way: thousands of one-way flows that never see a reply. As bindings of a NAT each would need a
//! socket and a timer. None of them needs anything: the receiver of a tunnel does not look at the source port (RFC 7348
//! section 5: it is there for load balancing).
//!
//! *From the child:* what goes to the overlay's port of any host leaves by one socket per family, which is bound to that
//! same port. Rules of the egress policy apply, address maps too. "Don't fragment" is not passed on: the owner of the
//! socket tells the child of a path that is too narrow, and the datagram goes in fragments.
//!
//! *To the child:* what that socket receives goes to the child's own address, the overlay's port, from the peer's address
//! and port. Nobody vouches for the sender of a tunnel's datagram, and whoever can send one is in the pods' network.
//! Therefore peers are listed, or, where the list is empty, those to whom the child has sent; everybody else is dropped
//! and counted ([`DropReason::OverlayStranger`]).
//!
//! *State:* a peer is counters. There are at most `limits.overlay_peers`; the one idle for longest makes room, and where
//! peers are not listed it then has to be sent to again. No timers.
//!
//! *Not handled:* an address map that names a peer otherwise: its datagrams come from the address it has on the host's
//! side. What a tunnel carries is looked at only to cut and join super-segments ([`crate::offload::tunnel`]).

use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use hashbrown::HashTable;

use super::udp::{Datagram, REFRESH, ToChild, unspecified};
use super::{FlowKind, FlowState, Received, Stack};
use crate::action::{DatagramError, Hop};
use crate::config::{IpNet, MAX_OVERLAY_NETS, OverlayConfig};
use crate::error::{ConfigError, DropReason};
use crate::flow::lru::LruList;
use crate::flow::{FlowId, FlowKey, Protocol};
use crate::forward::{ForwardSource, visible_source};
use crate::frame::Gso;
use crate::offload::IpVersion;
use crate::packet::{BROADCAST, MAX_HEADERS};
use crate::stack::forward::Session;
use crate::stats::Traffic;
use crate::time::Instant;

/// A node at the other end of the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverlayPeer {
    /// Its address on the host's side.
    pub address: IpAddr,
    /// Datagrams and their payload bytes; of a super-segment each segment counts.
    pub traffic: Traffic,
    /// When the latest datagram passed, in either direction; exact to a second.
    pub last_active: Instant,
}

/// What the overlay holds.
#[derive(Debug)]
pub(super) struct Overlay {
    port: u16,
    allowed: Vec<IpNet>,
    /// The flows that its sockets belong to: IPv4, IPv6.
    flows: [FlowId; 2],
    peers: Vec<Peer>,
    /// Indices of `peers` by address.
    index: HashTable<u32>,
    hasher: foldhash::fast::FixedState,
    /// Of indices.
    lru: LruList,
    most: usize,
    stranger: Option<IpAddr>,
}

#[derive(Debug)]
struct Peer {
    info: OverlayPeer,
    /// It is on the list.
    listed: bool,
}

/// The counters of one family's socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct OverlayFlow {
    pub(super) last_active: Instant,
    pub(super) bytes_from_child: u64,
    pub(super) bytes_to_child: u64,
}

impl Overlay {
    fn find(&self, address: IpAddr) -> Option<usize> {
        let is_it = |&index: &u32| self.peers[index as usize].info.address == address;
        self.index.find(self.hasher.hash_one(address), is_it).map(|&index| index as usize)
    }

    /// The peer's entry, made if there is none.
    fn enter(&mut self, now: Instant, address: IpAddr) -> &mut Peer {
        let index = match self.find(address) {
            Some(index) => index,
            None => self.insert(now, address),
        };
        let peer = &mut self.peers[index];
        if now >= peer.info.last_active + REFRESH {
            peer.info.last_active = now;
            self.lru.touch(index as u32);
        }
        peer
    }

    fn insert(&mut self, now: Instant, address: IpAddr) -> usize {
        let info = OverlayPeer { address, traffic: Traffic::default(), last_active: now };
        let peer = Peer { info, listed: is_listed(&self.allowed, address) };
        let index = match self.lru.oldest().filter(|_| self.peers.len() >= self.most) {
            Some(oldest) => {
                let gone = self.peers[oldest as usize].info.address;
                if let Ok(found) = self.index.find_entry(self.hasher.hash_one(gone), |&at| at == oldest) {
                    found.remove();
                }
                self.lru.remove(oldest);
                self.peers[oldest as usize] = peer;
                oldest
            }
            None => {
                self.peers.push(peer);
                self.peers.len() as u32 - 1
            }
        };
        self.lru.insert(index);
        let (peers, hasher) = (&self.peers, &self.hasher);
        self.index.insert_unique(hasher.hash_one(address), index, |&at| {
            hasher.hash_one(peers[at as usize].info.address)
        });
        index as usize
    }

    /// Whether datagrams from `address` reach the child.
    fn accepts(&self, address: IpAddr) -> bool {
        match self.find(address).map(|index| &self.peers[index]) {
            Some(peer) if self.allowed.is_empty() => peer.info.traffic.packets_from_child > 0,
            Some(peer) => peer.listed,
            None => is_listed(&self.allowed, address),
        }
    }

    fn flow(&self, v4: bool) -> FlowId {
        self.flows[usize::from(!v4)]
    }
}

impl Stack {
    /// The overlay's UDP port, where there is an overlay.
    pub fn overlay_port(&self) -> Option<u16> {
        self.overlay.as_ref().map(|overlay| overlay.port)
    }

    /// The flow that the overlay's socket of the family belongs to: hand in what it receives for that, after
    /// [`Stack::overlay_session`].
    pub fn overlay_flow(&self, version: IpVersion) -> Option<FlowId> {
        self.overlay.as_ref().map(|overlay| overlay.flow(version == IpVersion::V4))
    }

    /// Peers with their counters, in no particular order.
    pub fn overlay_peers(&self) -> impl Iterator<Item = OverlayPeer> + '_ {
        self.overlay.iter().flat_map(|overlay| overlay.peers.iter().map(|peer| peer.info))
    }

    /// Who may send to the child by the overlay; empty: those to whom it has sent.
    pub fn overlay_allowed(&self) -> &[IpNet] {
        self.overlay.as_ref().map_or(&[], |overlay| &overlay.allowed)
    }

    /// The latest sender that was refused.
    pub fn overlay_stranger(&self) -> Option<IpAddr> {
        self.overlay.as_ref().and_then(|overlay| overlay.stranger)
    }

    /// Adds a network to those that may send; says whether it is new.
    ///
    /// # Errors
    /// There is no overlay, or the list is full.
    pub fn allow_overlay_peers(&mut self, net: IpNet) -> Result<bool, ConfigError> {
        let overlay = self.overlay.as_mut().ok_or(ConfigError::NoOverlay)?;
        if overlay.allowed.contains(&net) {
            return Ok(false);
        }
        if overlay.allowed.len() >= MAX_OVERLAY_NETS {
            return Err(ConfigError::TooManyPeers(MAX_OVERLAY_NETS));
        }
        overlay.allowed.push(net);
        overlay.relist();
        Ok(true)
    }

    /// Removes a network from those that may send; says whether it was there. After the last one those may send to whom
    /// the child has sent.
    pub fn forbid_overlay_peers(&mut self, net: IpNet) -> bool {
        let Some(overlay) = &mut self.overlay else { return false };
        let before = overlay.allowed.len();
        overlay.allowed.retain(|&other| other != net);
        overlay.relist();
        overlay.allowed.len() < before
    }

    /// Replaces the networks that may send.
    ///
    /// # Errors
    /// There is no overlay, or they are too many: the list stays what it was.
    pub fn set_overlay_peers(&mut self, nets: Vec<IpNet>) -> Result<(), ConfigError> {
        let overlay = self.overlay.as_mut().ok_or(ConfigError::NoOverlay)?;
        if nets.len() > MAX_OVERLAY_NETS {
            return Err(ConfigError::TooManyPeers(MAX_OVERLAY_NETS));
        }
        overlay.allowed = nets;
        overlay.relist();
        Ok(())
    }

    pub(super) fn begin_overlay(&mut self, config: OverlayConfig) {
        let OverlayConfig { port, peers } = config;
        let children = [IpAddr::from(self.config.ipv4.child), self.config.ipv6.child.into()];
        let flows = children.map(|child| {
            let mut remote = unspecified(child);
            remote.set_port(port);
            let key = FlowKey { protocol: Protocol::Udp, child: SocketAddr::new(child, port), remote };
            let flow = OverlayFlow { last_active: self.now, bytes_from_child: 0, bytes_to_child: 0 };
            self.flows.insert_hidden(key, FlowState::new(FlowKind::Overlay(flow), BROADCAST))
        });
        self.overlay = Some(Overlay {
            port,
            allowed: peers,
            flows,
            peers: Vec::new(),
            index: HashTable::new(),
            hasher: foldhash::fast::FixedState::with_seed(self.config.seed.wrapping_add(2)),
            lru: LruList::default(),
            most: self.config.limits.overlay_peers,
            stranger: None,
        });
    }

    /// Whether a datagram to `port` belongs to the overlay.
    pub(super) fn is_overlay(&self, port: u16) -> bool {
        self.overlay.as_ref().is_some_and(|overlay| overlay.port == port)
    }

    /// Takes a datagram of the child, which rules permit, to the host-side address `peer`; its payload is at `range` of
    /// the frame.
    pub(super) fn overlay_from_child(
        &mut self,
        now: Instant,
        received: &Received<'_>,
        peer: IpAddr,
        range: Range<usize>,
        hop: Hop,
    ) -> Result<(), DropReason> {
        let Some(overlay) = &mut self.overlay else { return Err(DropReason::NoFlow) };
        let (port, flow) = (overlay.port, overlay.flow(peer.is_ipv4()));
        let count = match received.offload.gso {
            Gso::Tunnel(gso) => gso.segments(range.len()),
            Gso::Udp(size) => range.len().div_ceil(usize::from(size).max(1)).max(1),
            Gso::None | Gso::Tcp(_) => 1,
        };
        let traffic = &mut overlay.enter(now, peer).info.traffic;
        for counted in [traffic, &mut self.stats.overlay] {
            counted.packets_from_child += count as u64;
            counted.bytes_from_child += range.len() as u64;
        }
        if let Some(entry) = self.flows.get_mut(flow)
            && let FlowKind::Overlay(state) = &mut entry.value.kind
        {
            entry.value.mac = received.mac;
            state.last_active = now;
            state.bytes_from_child += range.len() as u64;
        }
        let hop = Hop { dont_fragment: false, ..hop };
        self.send_datagram(flow, SocketAddr::new(peer, port), None, received, range, hop);
        Ok(())
    }

    /// Whether a datagram that came by the overlay's socket reaches the child, and how. Hand it in by
    /// [`Stack::handle_datagram`] as one of [`Session::flow`].
    ///
    /// # Errors
    /// Why it does not; it is counted already.
    pub fn overlay_session(&mut self, now: Instant, from: SocketAddr) -> Result<Session, DropReason> {
        self.now = now;
        let address = from.ip().to_canonical();
        let session = match &mut self.overlay {
            None => Err(DropReason::NoFlow),
            Some(overlay) if !overlay.accepts(address) => {
                overlay.stranger = Some(address);
                Err(DropReason::OverlayStranger)
            }
            Some(overlay) => Ok(overlay.flow(address.is_ipv4())),
        };
        let flow = session.inspect_err(|&reason| self.stats.count_drop(reason))?;
        let version = if address.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 };
        let ready = self.hop_to(self.overlay_child(version)).is_ok();
        Ok(Session { flow, version, ready })
    }

    /// Takes what the overlay's socket received from a peer that may send.
    pub(super) fn overlay_to_child(
        &mut self,
        now: Instant,
        flow: FlowId,
        datagram: &Datagram<'_>,
        headers: &mut [u8; MAX_HEADERS],
    ) -> Result<ToChild, DropReason> {
        let peer = datagram.from.ip().to_canonical();
        let Some(overlay) = &mut self.overlay else { return Err(DropReason::NoFlow) };
        let traffic = &mut overlay.enter(now, peer).info.traffic;
        let count = datagram.count();
        for counted in [traffic, &mut self.stats.overlay] {
            counted.packets_to_child += count as u64;
            counted.bytes_to_child += datagram.total as u64;
        }
        let port = overlay.port;
        if let Some(entry) = self.flows.get_mut(flow)
            && let FlowKind::Overlay(state) = &mut entry.value.kind
        {
            state.last_active = now;
            state.bytes_to_child += datagram.total as u64;
        }
        let version = if peer.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 };
        let child = SocketAddr::new(self.overlay_child(version), port);
        let source = visible_source(&self.config, datagram.from, child.ip(), ForwardSource::Client);
        match self.hop_to(child.ip()) {
            Ok(mac) => Ok(self.frame_datagram(source, child, mac, datagram, headers)),
            Err(address) => self.hold_datagram(now, address, source, child, datagram),
        }
    }

    /// Tells the child what became of a datagram that it sent to `remote`. From which port it came is not known any more;
    /// a kernel finds its tunnel by the destination's.
    pub(super) fn overlay_error_to_child(
        &mut self,
        now: Instant,
        flow: FlowId,
        remote: SocketAddr,
        error: DatagramError,
        quoted: &[u8],
    ) -> Result<(), DropReason> {
        let written = SocketAddr::new(self.address_for_child(remote.ip()), remote.port());
        self.tell_datagram_error(now, flow, written, error, quoted)
    }

    /// Where the child's end of the tunnel is.
    fn overlay_child(&self, version: IpVersion) -> IpAddr {
        match version {
            IpVersion::V4 => self.config.ipv4.child.into(),
            IpVersion::V6 => self.child_ipv6().unwrap_or(self.config.ipv6.child).into(),
        }
    }
}

impl Overlay {
    fn relist(&mut self) {
        for peer in &mut self.peers {
            peer.listed = is_listed(&self.allowed, peer.info.address);
        }
    }
}

fn is_listed(allowed: &[IpNet], address: IpAddr) -> bool {
    allowed.iter().any(|net| net.contains(address))
}
