//! Hand-over of a child's TCP flow to a relay of sockets, which carries it past this stack.
//!
//! # Theory of operation
//! *Goal:* bulk at the kernel's speed, truthful connects. The child's SYN comes here as any other: rules, limits and
//! the host's answer are the same on both paths. Only when the host has connected, and before the child is answered,
//! the connected socket is offered to a relay ([`Action::OfferRelay`]), which joins it with a socket of its own in the
//! child's namespace. The child's kernel completes the connection with that one (simultaneous open, RFC 9293
//! section 3.5), and its frames of this flow stop coming here.
//!
//! | state | entered by | left by |
//! |---|---|---|
//! | [`Phase::Offered`] | the host connected | [`Stack::relay_joined`], [`Stack::relay_refused`], a RST of the child, `RELAY_ANSWER` |
//! | [`FlowPath::Relay`](crate::flow::FlowPath::Relay) | joined: the endpoint and its memory are given back | [`Stack::relay_ended`] |
//!
//! *Offered:* the endpoint is kept as it was, its SYN-ACK withheld; repeated SYNs are ignored. Refused, the flow goes on
//! by frames. A RST of the child or silence of the relay ends the flow without a word to the child, because its socket
//! is away: [`Action::WithdrawRelay`] says so.
//!
//! *Relayed:* the flow counts and is listed until its end is told. Frames of it that still come are dropped: a RST would
//! hit the connection that they are no longer part of. Only a SYN that is not the first one repeated says that the
//! child's kernel uses the port anew: the flow gives up its key, and the SYN opens another. Others come when the child's
//! connection tracking has forgotten the connection (somebody has flushed it): what the relay's socket sends next marks it
//! again, and [`Action::RecallRelay`] has it send something.
//!
//! *Not offered:* flows of published ports; what the engine serves itself (gateway, DNS, maps of the host's
//! loopback); with [`Relaying::Lasting`] those to destinations whose flows are many and brief (`brief`); SYNs that offer Multipath
//! TCP, because such sockets of Linux (6.18) never learn of a simultaneous open that they are connected; anything while
//! [`Relaying::Off`].

use std::net::SocketAddr;

use super::{FlowKind, Stack};
use crate::action::Action;
use crate::flow::{FlowId, OpenedBy};
use crate::packet::Tcp;
use crate::tcp::endpoint::ChildSide;
use crate::tcp::relay::Relay;
use crate::tcp::{Peer, Phase, TcpFlow};
use crate::time::{Duration, Instant};

/// Whether connected flows are offered to a relay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Relaying {
    /// All flows go by frames: there is no relay, or somebody looks at the frames and is to see everything.
    #[default]
    Off,
    /// Flows of the child to the world are offered, but for those to destinations whose flows are many and brief.
    Lasting,
    /// Flows of the child to the world are offered.
    All,
}

/// Payload bytes that a relay has carried for a flow, told at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelayEnd {
    /// From the child to the host.
    pub to_host: u64,
    /// From the host to the child.
    pub from_host: u64,
}

/// What is known of a flow that is carried elsewhere.
#[derive(Debug)]
pub(super) struct RelayedFlow {
    /// Sequence number of the SYN that opened it.
    syn: u32,
    pub(super) since: Instant,
    /// When the relay was last told of frames that went astray.
    recalled: Option<Instant>,
}

impl RelayedFlow {
    /// Between two times that the relay is told.
    const RECALL: Duration = Duration::from_secs(1);

    /// A frame has come here; says whether the relay is to be told. A SYN is the first one, repeated, and a RST ends nothing here.
    pub(super) fn handle_stray(&mut self, now: Instant, flags: u8) -> bool {
        let quiet = self.recalled.is_some_and(|at| now < at + Self::RECALL);
        let tell = flags & (Tcp::SYN | Tcp::RST) == 0 && !quiet;
        if tell {
            self.recalled = Some(now);
        }
        tell
    }
}

impl Stack {
    /// Says whether flows are offered from now on; those that were, and those that are relayed, stay so.
    pub fn set_relaying(&mut self, relaying: Relaying) {
        self.relaying = relaying;
    }

    /// The relay has joined an offered flow with the child. `false` if the flow was not waiting for that (any more):
    /// what was joined is nobody's then, and has to be reset.
    pub fn relay_joined(&mut self, now: Instant, flow: FlowId) -> bool {
        self.now = now;
        let Some(entry) = self.flows.get_mut(flow) else { return false };
        let syn = match &entry.value.kind {
            FlowKind::Tcp(tcp) if tcp.phase == Phase::Offered => tcp.syn,
            _ => return false,
        };
        entry.value.wake_at = None;
        let relayed = FlowKind::Relayed(RelayedFlow { syn, since: now, recalled: None });
        if let FlowKind::Tcp(tcp) = std::mem::replace(&mut entry.value.kind, relayed) {
            self.rings.give_back(tcp.endpoint.into_region());
        }
        self.timers.cancel(flow.index);
        self.trim_rings_later(now);
        self.counts.half_open -= 1;
        self.stats.relay.joined += 1;
        self.stats.relay.active += 1;
        true
    }

    /// The relay does not take an offered flow, whose host socket is back: the child is answered by frames. `false` if
    /// the flow was not waiting for that (any more): the socket is nobody's then, and has to be reset.
    pub fn relay_refused(&mut self, now: Instant, flow: FlowId) -> bool {
        self.now = now;
        if !self.is_offered(flow) {
            return false;
        }
        self.stats.relay.refused += 1;
        self.accept_from_child(flow);
        true
    }

    /// A relayed flow has ended, in whatever way. Flows that are gone are ignored.
    pub fn relay_ended(&mut self, now: Instant, flow: FlowId, end: RelayEnd) {
        self.now = now;
        let Some(entry) = self.flows.get(flow) else { return };
        if !matches!(entry.value.kind, FlowKind::Relayed(_)) {
            return;
        }
        let destination = entry.key.remote;
        self.handle_carried(now, destination, end.to_host + end.from_host);
        self.forget(flow);
        self.counts.tcp -= 1;
        self.stats.relay.active -= 1;
        self.stats.relay.bytes_from_child += end.to_host;
        self.stats.relay.bytes_to_child += end.from_host;
    }

    /// A flow to the world has ended, on either path.
    pub(super) fn handle_carried(&mut self, now: Instant, destination: SocketAddr, bytes: u64) {
        if self.relaying == Relaying::Lasting {
            self.brief.handle_end(now, destination, bytes);
        }
    }

    /// Whether a flow waits for the relay's answer.
    pub fn is_offered(&self, flow: FlowId) -> bool {
        self.tcp(flow).is_some_and(|tcp| tcp.phase == Phase::Offered)
    }

    /// The host has connected: offers the flow, or has the child answered.
    pub(super) fn handle_connected(&mut self, now: Instant, id: FlowId) {
        let Some(child) = self.relay_would_help(now, id) else { return self.accept_from_child(id) };
        let Some(entry) = self.flows.get_mut(id) else { return };
        let destination = entry.key.remote;
        let FlowKind::Tcp(tcp) = &mut entry.value.kind else { return };
        tcp.phase = Phase::Offered;
        tcp.last_active = now;
        tcp.relay = Relay::connected();
        self.wake_flow_at(id, now + TcpFlow::RELAY_ANSWER);
        self.actions.push_back(Action::OfferRelay { flow: id, child, destination });
    }

    /// The child's end of a flow that may be offered.
    fn relay_would_help(&mut self, now: Instant, id: FlowId) -> Option<SocketAddr> {
        if self.relaying == Relaying::Off {
            return None;
        }
        let key = self.flows.get(id)?.key;
        let tcp = self.tcp(id)?;
        let Peer::Host(remote) = tcp.peer else { return None };
        let named = key.remote.ip();
        let own = named == self.gateway(named.is_ipv4())
            || self.config.dns_addresses().any(|address| address == named)
            || remote.ip().is_loopback();
        if tcp.opened_by != OpenedBy::Child || tcp.multipath || own {
            return None;
        }
        if self.relaying == Relaying::Lasting && self.brief.are_many(now, key.remote) {
            self.stats.relay.brief += 1;
            return None;
        }
        Some(key.child)
    }

    /// Whether a SYN with that sequence number takes the key from the flow that has it: a relayed one whose end was not
    /// told yet, or one that the child has ended, whose end was not looked at yet or is not delivered to the host.
    pub(super) fn yields_key(&mut self, id: FlowId, sequence: u32) -> bool {
        let yields = match self.flows.get(id).map(|entry| &entry.value.kind) {
            Some(FlowKind::Relayed(relayed)) => relayed.syn != sequence,
            Some(FlowKind::Tcp(tcp)) => {
                !tcp.is_half_open() && matches!(tcp.endpoint.child_side(), ChildSide::Gone | ChildSide::Done)
            }
            _ => false,
        };
        if yields {
            self.flows.hide(id);
        }
        yields
    }
}
