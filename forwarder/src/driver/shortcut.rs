//! Routes of their own for connections of the egress relay that carry bulk.
//!
//! # Theory of operation
//! The child has made its connection for the TAP: it cuts segments for the TAP's MTU, and each of its packets is routed a second time,
//! since it is to stay in the child after all ([`crate::netfilter`], (1)). A routing rule for these two addresses and ports makes the
//! connection one of the loopback device (measured: 58 Gb/s instead of 46). Rules are looked at one after the other, and each change
//! has all sockets of the child look for their routes anew, so they are for bulk only, and few.
//!
//! | | led to by |
//! |---|---|
//! | a rule is added | a stream gathers ([`super::gather`]), the child itself is the client, and fewer than [`SHORTCUTS`] are there |
//! | it is removed | no stream of the connection gathers any more, or the connection has ended |
//!
//! Connections that do not get one, and those from behind the child, are carried as before.

use std::net::IpAddr;

use super::Engine;
use super::pair::{Origin, Pair};
use crate::protocol::Change;

/// Connections with a route of their own.
const SHORTCUTS: usize = 16;

impl Engine {
    /// Gives routes to what carries bulk, and takes them from what does not any more.
    pub(super) fn look_at_shortcuts(&mut self) {
        let gathers = |key, generation| {
            self.gathering.iter().any(|&(other, since, _)| (other, since) == (key, generation))
        };
        let over: Vec<usize> = self
            .shortcuts
            .iter()
            .filter(|&&key| !self.pairs.get(key).is_some_and(|pair| gathers(key, pair.generation)))
            .copied()
            .collect();
        over.into_iter().for_each(|key| self.end_shortcut(key));
        for (key, generation, _) in self.gathering.clone() {
            if self.shortcuts.len() >= SHORTCUTS {
                break;
            }
            if !self.shortcuts.contains(&key)
                && let Some(pair) = self.pairs.get(key).filter(|pair| pair.generation == generation)
                && self.route(Change::Add, pair)
            {
                self.shortcuts.push(key);
            }
        }
    }

    /// The connection ends, or is no bulk any more.
    pub(super) fn end_shortcut(&mut self, key: usize) {
        let Some(position) = self.shortcuts.iter().position(|&other| other == key) else { return };
        self.shortcuts.swap_remove(position);
        if let Some(pair) = self.pairs.get(key) {
            self.route(Change::Remove, pair);
        }
    }

    /// Whether the connection is one that can have a route, or has one; the agent was asked then.
    fn route(&self, change: Change, pair: &Pair) -> bool {
        let Some(agent) = &self.agent else { return false };
        let possible = match change {
            Change::Add => {
                let local = agent.local.as_ref().is_some_and(|local| local.contains(pair.client.ip()));
                let is_egress = matches!(pair.origin, Origin::Egress { .. });
                is_egress && local && !is_link_local(pair.to.ip()) && agent.routes_asked() < SHORTCUTS
            }
            // The child may have lost the address meanwhile.
            Change::Remove => true,
        };
        if possible {
            agent.route(change, pair.client, pair.to);
        }
        possible
    }
}

/// An address that means nothing without an interface.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
