//! UDP bindings (RFC 768, RFC 4787).
//!
//! # Theory of operation
//! Goal: *endpoint-independent mapping* (RFC 4787 REQ-1): all datagrams from one address and port of the child
//! leave through one host socket, whatever their destination. That socket is unconnected, so the kernel routes
//! each datagram anew and the host's addresses and routes may change under it. *Filtering* (section 5) is by
//! configuration: answers come from addresses the child has sent to (default), or from anywhere.
//! Not handled: multicast, UDP-Lite, port preservation.
//!
//! States: a binding exists or does not. It is made by a datagram of the child, refreshed by datagrams in either
//! direction (REQ-6 asks for outbound at least, so that one-way receivers are not starved we take both), and
//! removed after `timeouts.udp` of silence or, when `limits.udp_bindings` are in use, as the longest idle.
//!
//! Data from the child: frame → [`Action::SendDatagram`](crate::action::Action) naming the bytes in the frame →
//! `sendmmsg`. To the child: `recvmmsg` into a buffer with headroom → headers written in front → TAP. No copy.

pub mod fragment;
pub mod reassembly;

use std::net::IpAddr;

use crate::config::UdpFiltering;
use crate::forward::SessionEnds;
use crate::time::Instant;

/// A session of a published port (see [`mod@crate::forward`]).
#[derive(Debug)]
pub(crate) struct UdpSession {
    pub(crate) ends: SessionEnds,
    pub(crate) last_active: Instant,
    pub(crate) bytes_from_child: u64,
    pub(crate) bytes_to_child: u64,
}

/// One binding.
#[derive(Debug)]
pub(crate) struct UdpBinding {
    pub(crate) last_active: Instant,
    remotes: Remotes,
    pub(crate) aliases: Aliases,
    pub(crate) bytes_from_child: u64,
    pub(crate) bytes_to_child: u64,
}

impl UdpBinding {
    pub(crate) fn new(now: Instant) -> Self {
        UdpBinding {
            last_active: now,
            remotes: Remotes::default(),
            aliases: Aliases::default(),
            bytes_from_child: 0,
            bytes_to_child: 0,
        }
    }

    /// The child sends to `remote`, as the host sees it; `written` is what the child wrote.
    pub(crate) fn handle_sent(&mut self, remote: IpAddr, written: IpAddr) {
        self.remotes.insert(remote);
        self.aliases.handle_sent(remote, written);
    }

    /// Whether a datagram from `remote` may pass to the child.
    pub(crate) fn accepts(&self, remote: IpAddr, filtering: UdpFiltering) -> bool {
        match filtering {
            UdpFiltering::EndpointIndependent => true,
            UdpFiltering::AddressDependent => self.remotes.contains(remote),
        }
    }
}

/// The addresses a binding has sent to, latest last; the earliest are forgotten when there are too many.
#[derive(Debug, Default)]
struct Remotes(Vec<IpAddr>);

impl Remotes {
    const CAPACITY: usize = 256;

    fn insert(&mut self, remote: IpAddr) {
        if self.0.last() == Some(&remote) || self.contains(remote) {
            return;
        }
        if self.0.len() == Self::CAPACITY {
            self.0.remove(0);
        }
        self.0.push(remote);
    }

    fn contains(&self, remote: IpAddr) -> bool {
        self.0.iter().rev().any(|&known| known == remote)
    }
}

/// What the child calls hosts that it reaches by another address than their own; of several names for one host the
/// one that was used last.
#[derive(Debug, Default)]
pub(crate) struct Aliases(Vec<(IpAddr, IpAddr)>);

impl Aliases {
    /// As for [`Remotes`]; only addresses of maps get here.
    const CAPACITY: usize = 256;

    pub(crate) fn handle_sent(&mut self, remote: IpAddr, written: IpAddr) {
        if remote == written && self.0.is_empty() {
            return;
        }
        self.0.retain(|&(known, _)| known != remote);
        if remote != written {
            self.0.truncate(Self::CAPACITY - 1);
            self.0.insert(0, (remote, written));
        }
    }

    /// The child's name for `remote`.
    pub(crate) fn name_of(&self, remote: IpAddr) -> Option<IpAddr> {
        self.0.iter().find(|&&(known, _)| known == remote).map(|&(_, written)| written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn filtering_is_by_address() {
        let mut binding = UdpBinding::new(Instant::ZERO);
        let remote = Ipv4Addr::new(192, 0, 2, 1).into();
        binding.handle_sent(remote, remote);
        let stranger = Ipv4Addr::new(192, 0, 2, 2).into();
        assert!(binding.accepts(Ipv4Addr::new(192, 0, 2, 1).into(), UdpFiltering::AddressDependent));
        assert!(!binding.accepts(stranger, UdpFiltering::AddressDependent));
        assert!(binding.accepts(stranger, UdpFiltering::EndpointIndependent));
    }

    #[test]
    fn the_name_used_last_counts() {
        let [host, first, second] = [1, 2, 3].map(|n| Ipv4Addr::new(192, 0, 2, n).into());
        let mut aliases = Aliases::default();
        assert_eq!(aliases.name_of(host), None);
        aliases.handle_sent(host, first);
        aliases.handle_sent(host, second);
        assert_eq!(aliases.name_of(host), Some(second));
        aliases.handle_sent(host, host);
        assert_eq!(aliases.name_of(host), None);
        assert!(aliases.0.is_empty());
    }

    #[test]
    fn the_set_of_remotes_is_bounded_and_forgets_the_earliest() {
        let mut remotes = Remotes::default();
        for n in 0..=Remotes::CAPACITY as u32 {
            remotes.insert(Ipv4Addr::from(n).into());
        }
        assert_eq!(remotes.0.len(), Remotes::CAPACITY);
        assert!(!remotes.contains(Ipv4Addr::from(0).into()));
        assert!(remotes.contains(Ipv4Addr::from(Remotes::CAPACITY as u32).into()));
    }
}
