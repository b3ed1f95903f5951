//! Several stacks for one child, each on a thread and a queue of the TAP of its own: which of them has a packet.
//!
//! # Theory of operation
//! *Goal:* flows of the child are served by all workers, without a lock on the established path, and everything is as if there
//! were one stack.
//!
//! The kernel spreads the child's packets over the queues by a hash of their addresses and ports, the same for both directions, and
//! remembers for three seconds by which queue we have answered a flow (tun.c, "automq"). A flow is had by the worker that saw
//! its first packet; as it answers by its own queue, the flow's packets come there. Mostly: flows whose hashes are equal, a flow
//! that was silent after it had begun on another queue, a UDP socket of the child that sends to several hosts, and whatever the host
//! opens come by any queue. Therefore each flow that is made is written down in the [`Claims`], and a packet that finds no flow of
//! its worker's is looked up there ([`place`]):
//!
//! | packet | goes to |
//! |---|---|
//! | ARP, NDP, ICMP, fragments, DHCP, unknown protocols | the first worker |
//! | DNS, the overlay's port, datagrams of a published port | the first worker, who alone has the sockets for it |
//! | SYN, datagram; somebody has the flow | whoever has it |
//! | SYN, datagram; nobody has | stays here, and makes the flow |
//! | any other segment; nobody has the flow | the first worker, who resets it |
//!
//! A UDP binding is claimed for all remotes: one socket of the child stays one socket of the host. What goes to another worker
//! is copied ([`Stack::poll_handover`]); its answers lead the kernel to the right queue.
//!
//! A packet is handed over once, a reassembled one once more; only the first worker may get one for the second time. What is in the way then (a flow that ended
//! meanwhile) is dropped, and the sender repeats it.
//!
//! *Limits:* `flows` and `buffer_bytes` count for all together; half-open flows and UDP bindings are divided by the number of
//! workers; everything else is the first's.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use super::{Destination, FlowKind, Received, Stack};
use crate::config::{Config, LinkService};
use crate::error::DropReason;
use crate::flow::{FlowId, FlowKey, Protocol, WorkerId};
use crate::frame::Offload;
use crate::packet::{Ethernet, IpPacket, Udp, ethertype};
use crate::time::Instant;

/// A frame of the child for another worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover {
    /// Who has to handle it.
    pub to: WorkerId,
    /// The frame; whole, if it came in fragments.
    frame: Vec<u8>,
    offload: Offload,
    dont_fragment: bool,
}

/// Who has which flow, and what the workers have taken together.
#[derive(Debug)]
pub struct Claims {
    owners: Mutex<HashMap<FlowKey, WorkerId, foldhash::fast::FixedState>>,
    /// TCP flows among them.
    tcp: AtomicUsize,
    ring_bytes: Arc<AtomicUsize>,
    workers: usize,
}

impl Claims {
    /// For so many workers, at most [`WorkerId::MOST`]. The hash is keyed by `seed`.
    pub fn new(workers: usize, seed: u64) -> Self {
        let hasher = foldhash::fast::FixedState::with_seed(seed);
        Claims {
            owners: Mutex::new(HashMap::with_hasher(hasher)),
            tcp: AtomicUsize::new(0),
            ring_bytes: Arc::default(),
            workers: workers.clamp(1, WorkerId::MOST),
        }
    }

    /// Who has the flow.
    fn owner(&self, key: &FlowKey) -> Option<WorkerId> {
        self.lock().get(key).copied()
    }

    /// Who has the flow: `worker`, if nobody had.
    fn claim(&self, key: FlowKey, worker: WorkerId) -> WorkerId {
        match self.lock().entry(key) {
            Entry::Occupied(owner) => *owner.get(),
            Entry::Vacant(free) => {
                if key.protocol == Protocol::Tcp {
                    self.tcp.fetch_add(1, Ordering::Relaxed);
                }
                *free.insert(worker)
            }
        }
    }

    /// Gives a flow up that `worker` has.
    fn give_up(&self, key: &FlowKey, worker: WorkerId) {
        let mut owners = self.lock();
        if owners.get(key) == Some(&worker) {
            owners.remove(key);
            if key.protocol == Protocol::Tcp {
                self.tcp.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FlowKey, WorkerId, foldhash::fast::FixedState>> {
        // Nothing that is done under the lock can leave it half done.
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stack's part in the common work.
#[derive(Debug)]
pub(super) struct Share {
    own: WorkerId,
    claims: Arc<Claims>,
    /// The child's ends of published UDP ports.
    published: BTreeSet<SocketAddr>,
    handovers: VecDeque<Handover>,
    /// What is handled came from another worker.
    handed: bool,
}

/// What a packet is that no flow of its worker's expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Of the link or for what only the first worker has.
    First,
    /// It may open a flow.
    Opens,
    /// It may not.
    Stray,
}

/// Who handles a packet that has come to `own`, if `owner` has its flow.
fn place(own: WorkerId, kind: Kind, owner: Option<WorkerId>) -> WorkerId {
    match (kind, owner) {
        (Kind::First, _) | (Kind::Stray, None) => WorkerId::FIRST,
        (Kind::Opens | Kind::Stray, Some(owner)) => owner,
        (Kind::Opens, None) => own,
    }
}

impl Stack {
    /// What the stacks beside the first are to be made with: the link's services are the first's.
    pub fn config_of_others(mut config: Config) -> Config {
        config.without.push(LinkService::RouterAdvertisement);
        config
    }

    /// Serves the child together with the other stacks that have `claims`, as `own` among them, from now on; there is no flow yet.
    pub fn share(&mut self, own: WorkerId, claims: Arc<Claims>) {
        let limits = &mut self.config.limits;
        limits.half_open = limits.half_open.div_ceil(claims.workers);
        limits.udp_bindings = limits.udp_bindings.div_ceil(claims.workers);
        self.rings.share(claims.ring_bytes.clone());
        self.flows.set_worker(own);
        // Never the same as another worker's: their fragments meet in the child.
        self.fragment_id = (self.fragment_id & !(WorkerId::MOST as u32 - 1)) | u32::from(own.0);
        self.fragment_step = WorkerId::MOST as u32;
        let (published, handovers) = (BTreeSet::new(), VecDeque::new());
        self.share = Some(Share { own, claims, published, handovers, handed: false });
    }

    /// Which worker this is.
    pub fn worker(&self) -> WorkerId {
        self.share.as_ref().map_or(WorkerId::FIRST, |share| share.own)
    }

    /// The next frame for another worker.
    pub fn poll_handover(&mut self) -> Option<Handover> {
        self.share.as_mut()?.handovers.pop_front()
    }

    /// Takes a frame that came to another worker, who has counted it.
    ///
    /// # Errors
    /// Why it was not handled; it is counted already.
    pub fn handle_handover(&mut self, now: Instant, handover: Handover) -> Result<(), DropReason> {
        self.now = now;
        self.set_handed(true);
        let result = self.dispatch_handover(now, &handover);
        self.set_handed(false);
        self.counted(result)
    }

    /// Says which addresses of the child are published by UDP: only the first worker has the sockets that answers leave by. What it had
    /// itself of them ends.
    pub fn set_published(&mut self, published: BTreeSet<SocketAddr>) {
        let Some(share) = &mut self.share else { return };
        share.published = published;
        if share.own == WorkerId::FIRST {
            return;
        }
        let is_published =
            |key: &FlowKey| key.protocol == Protocol::Udp && share.published.contains(&key.child);
        let ended: Vec<FlowId> = self
            .flows
            .iter()
            .filter(|(_, entry)| matches!(entry.value.kind, FlowKind::Udp(_)) && is_published(&entry.key))
            .map(|(id, _)| id)
            .collect();
        ended.into_iter().for_each(|id| self.close_binding(id));
    }

    /// The child's ends of published UDP ports.
    pub fn published(&self) -> BTreeSet<SocketAddr> {
        let forward = |entry: &super::FlowState| match &entry.kind {
            FlowKind::UdpForward(forward) => Some(forward.child),
            _ => None,
        };
        self.flows.iter().filter_map(|(_, entry)| forward(&entry.value)).collect()
    }

    fn dispatch_handover(&mut self, now: Instant, handover: &Handover) -> Result<(), DropReason> {
        let frame = handover.frame.as_slice();
        let ethernet = Ethernet::parse(frame)?;
        if ethernet.ethertype == ethertype::ARP {
            return self.handle_arp(frame);
        }
        let mut ip = IpPacket::parse(frame, ethernet.ethertype)?;
        ip.dont_fragment = handover.dont_fragment;
        let received = Received { frame, slot: None, offload: handover.offload, mac: ethernet.src, ip };
        self.handle_ip(now, &received)
    }

    /// Whether a packet of the link, or of no flow, is the first worker's, who has it then.
    pub(super) fn is_for_first(&mut self, received: &Received<'_>) -> Result<bool, DropReason> {
        let place = |share: &Share| place(share.own, Kind::First, None);
        match self.share.as_ref().map(place) {
            Some(to) => self.hand_over(to, received.frame, received.offload, received.ip.dont_fragment),
            None => Ok(false),
        }
    }

    /// The same for ARP.
    pub(super) fn is_arp_for_first(&mut self, frame: &[u8]) -> Result<bool, DropReason> {
        match self.share {
            Some(_) => self.hand_over(WorkerId::FIRST, frame, Offload::default(), false),
            None => Ok(false),
        }
    }

    /// Whether a segment that no flow here expects is another worker's, who has it then.
    pub(super) fn is_segment_elsewhere(
        &mut self,
        key: FlowKey,
        opens: bool,
        received: &Received<'_>,
    ) -> Result<bool, DropReason> {
        let Some(share) = &self.share else { return Ok(false) };
        let own = share.own;
        let is_dns = || matches!(self.destination_at(key.remote), Ok(Destination::Dns));
        let to = match opens {
            true if is_dns() => place(own, Kind::First, None),
            true => place(own, Kind::Opens, share.claims.owner(&key)),
            false => place(own, Kind::Stray, share.claims.owner(&key)),
        };
        self.hand_over(to, received.frame, received.offload, received.ip.dont_fragment)
    }

    /// Whether a datagram is another worker's, who has it then.
    pub(super) fn is_datagram_elsewhere(
        &mut self,
        child: SocketAddr,
        remote: SocketAddr,
        received: &Received<'_>,
        udp: &Udp,
    ) -> Result<bool, DropReason> {
        let Some(share) = &self.share else { return Ok(false) };
        let own = share.own;
        // Before anybody is asked who has the sender's binding: it is not what carries these.
        let first = share.published.contains(&child)
            || self.is_overlay(udp.dst)
            || udp.dst == 53 && matches!(self.destination_at(remote), Ok(Destination::Dns));
        let key = FlowKey { protocol: Protocol::Udp, child, remote: super::udp::unspecified(child.ip()) };
        let to = if first {
            place(own, Kind::First, None)
        } else if self.flows.find(&key).is_some() || self.find_session(child, remote).is_some() {
            own
        } else {
            place(own, Kind::Opens, share.claims.owner(&key))
        };
        self.hand_over(to, received.frame, received.offload, received.ip.dont_fragment)
    }

    /// Writes down that a flow is to be had here; `false` if another worker has it.
    pub(super) fn claim(&self, key: FlowKey) -> bool {
        self.share.as_ref().is_none_or(|share| share.claims.claim(key, share.own) == share.own)
    }

    /// Whether no other worker has the flow.
    pub(super) fn is_unclaimed(&self, key: &FlowKey) -> bool {
        self.share.as_ref().is_none_or(|share| share.claims.owner(key).is_none())
    }

    /// Gives the claim of a flow up that ends, unless it has given its key to another.
    pub(super) fn give_up_claim(&self, id: FlowId) {
        if let Some(share) = &self.share
            && let Some(entry) = self.flows.get(id)
            && self.flows.find(&entry.key).is_none_or(|other| other == id)
        {
            share.claims.give_up(&entry.key, share.own);
        }
    }

    /// TCP flows of all workers.
    pub(super) fn tcp_flows(&self) -> usize {
        self.share.as_ref().map_or(self.counts.tcp, |share| share.claims.tcp.load(Ordering::Relaxed))
    }

    /// Whether `to` is another worker, who gets the frame then.
    fn hand_over(
        &mut self,
        to: WorkerId,
        frame: &[u8],
        offload: Offload,
        dont_fragment: bool,
    ) -> Result<bool, DropReason> {
        let Some(share) = self.share.as_mut().filter(|share| share.own != to) else { return Ok(false) };
        if share.handed && to != WorkerId::FIRST {
            return Err(DropReason::WorkerBusy);
        }
        share.handovers.push_back(Handover { to, frame: frame.to_vec(), offload, dont_fragment });
        Ok(true)
    }

    pub(super) fn set_handed(&mut self, handed: bool) {
        if let Some(share) = &mut self.share {
            share.handed = handed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: WorkerId = WorkerId(1);
    const THIRD: WorkerId = WorkerId(2);

    #[test]
    fn a_packet_goes_to_whoever_has_its_flow() {
        for own in [WorkerId::FIRST, SECOND, THIRD] {
            for kind in [Kind::Opens, Kind::Stray] {
                assert_eq!(place(own, kind, Some(THIRD)), THIRD);
                assert_eq!(place(own, kind, Some(WorkerId::FIRST)), WorkerId::FIRST);
            }
            assert_eq!(place(own, Kind::Opens, None), own, "a flow is made where its first packet came");
            assert_eq!(place(own, Kind::Stray, None), WorkerId::FIRST);
            assert_eq!(place(own, Kind::First, None), WorkerId::FIRST);
        }
    }

    #[test]
    fn a_flow_is_claimed_once_until_it_is_given_up_by_its_owner() {
        let claims = Claims::new(3, 7);
        let child = ([10, 0, 42, 100], 1).into();
        let key = FlowKey { protocol: Protocol::Tcp, child, remote: ([192, 0, 2, 1], 80).into() };
        assert_eq!(claims.claim(key, SECOND), SECOND);
        assert_eq!((claims.claim(key, THIRD), claims.claim(key, SECOND)), (SECOND, SECOND));
        claims.give_up(&key, THIRD);
        assert_eq!((claims.owner(&key), claims.tcp.load(Ordering::Relaxed)), (Some(SECOND), 1));
        claims.give_up(&key, SECOND);
        assert_eq!((claims.owner(&key), claims.tcp.load(Ordering::Relaxed)), (None, 0));
        assert_eq!(claims.claim(key, THIRD), THIRD);
    }
}
