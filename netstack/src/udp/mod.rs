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
    pub(crate) bytes_from_child: u64,
    pub(crate) bytes_to_child: u64,
}

impl UdpBinding {
    pub(crate) fn new(now: Instant) -> Self {
        UdpBinding { last_active: now, remotes: Remotes::default(), bytes_from_child: 0, bytes_to_child: 0 }
    }

    /// The child sends to `remote`, as the host sees it.
    pub(crate) fn handle_sent(&mut self, remote: IpAddr) {
        self.remotes.insert(remote);
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn filtering_is_by_address() {
        let mut binding = UdpBinding::new(Instant::ZERO);
        binding.handle_sent(Ipv4Addr::new(192, 0, 2, 1).into());
        let stranger = Ipv4Addr::new(192, 0, 2, 2).into();
        assert!(binding.accepts(Ipv4Addr::new(192, 0, 2, 1).into(), UdpFiltering::AddressDependent));
        assert!(!binding.accepts(stranger, UdpFiltering::AddressDependent));
        assert!(binding.accepts(stranger, UdpFiltering::EndpointIndependent));
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
