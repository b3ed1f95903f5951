//! Counters. Plain `u64`, no metrics system is imposed; [`Stats`] is `Copy`, so a snapshot is an assignment.

use crate::error::DropReason;

/// Traffic of one kind in both directions, in packets (TCP: frames) and payload bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets received from the child.
    pub packets_from_child: u64,
    /// Payload bytes received from the child.
    pub bytes_from_child: u64,
    /// Packets sent to the child.
    pub packets_to_child: u64,
    /// Payload bytes sent to the child.
    pub bytes_to_child: u64,
}

impl Traffic {
    /// Adds what another has counted.
    fn add(&mut self, other: &Traffic) {
        self.packets_from_child += other.packets_from_child;
        self.bytes_from_child += other.bytes_from_child;
        self.packets_to_child += other.packets_to_child;
        self.bytes_to_child += other.bytes_to_child;
    }
}

/// TCP connections that were handed to a relay of sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelayStats {
    /// Connections that it carries now: the only figure here that falls.
    pub active: u64,
    /// Connections that it took.
    pub joined: u64,
    /// Connections that it gave back, to be carried by frames.
    pub refused: u64,
    /// Connections that it was not offered, because their destination has many brief ones.
    pub brief: u64,
    /// Connections that it did not answer for in time, and that were forgotten.
    pub unanswered: u64,
    /// Payload bytes from the child, of connections that have ended.
    pub bytes_from_child: u64,
    /// Payload bytes to the child, of connections that have ended.
    pub bytes_to_child: u64,
}

/// Counters of one stack since its creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// TCP segments and payload.
    pub tcp: Traffic,
    /// UDP datagrams and payload.
    pub udp: Traffic,
    /// ICMP and ICMPv6 echo.
    pub icmp: Traffic,
    /// DNS messages.
    pub dns: Traffic,
    /// DHCPv4 and DHCPv6 messages.
    pub dhcp: Traffic,
    /// TCP connections that are not frames; not among `tcp`.
    pub relay: RelayStats,
    /// Datagrams of the overlay; among `udp`, too.
    pub overlay: Traffic,
    /// Frames of any kind.
    pub frames: Traffic,
    /// TCP connections whose host side was asked to connect.
    pub tcp_opened: u64,
    /// TCP connections that the host could not connect.
    pub tcp_connect_failed: u64,
    /// TCP connections of the host that were opened towards the child.
    pub tcp_from_host: u64,
    /// TCP connections of the host that ended before the child had accepted them: refused, unreachable, silent.
    pub tcp_unanswered: u64,
    /// TCP connections that ended by a RST from either side.
    pub tcp_reset: u64,
    /// UDP sessions of published ports that were begun.
    pub udp_sessions: u64,
    /// ICMP errors of the child about datagrams of such sessions: mostly that nothing listens.
    pub udp_session_errors: u64,
    /// DNS answers served from static names.
    pub dns_static: u64,
    /// DNS queries that ended in SERVFAIL because no server answered.
    pub dns_servfail: u64,
    drops: [u64; DropReason::ALL.len()],
}

impl Default for Stats {
    fn default() -> Self {
        Stats {
            tcp: Traffic::default(),
            udp: Traffic::default(),
            icmp: Traffic::default(),
            dns: Traffic::default(),
            dhcp: Traffic::default(),
            relay: RelayStats::default(),
            overlay: Traffic::default(),
            frames: Traffic::default(),
            tcp_opened: 0,
            tcp_connect_failed: 0,
            tcp_from_host: 0,
            tcp_unanswered: 0,
            tcp_reset: 0,
            udp_sessions: 0,
            udp_session_errors: 0,
            dns_static: 0,
            dns_servfail: 0,
            drops: [0; DropReason::ALL.len()],
        }
    }
}

impl Stats {
    /// Counts one drop.
    pub fn count_drop(&mut self, reason: DropReason) {
        self.drops[reason as usize] += 1;
    }

    /// Adds what another stack of the same child has counted.
    pub fn add(&mut self, other: &Stats) {
        let Stats { tcp, udp, icmp, dns, dhcp, relay, overlay, frames, drops, .. } = other;
        self.tcp.add(tcp);
        self.udp.add(udp);
        self.icmp.add(icmp);
        self.dns.add(dns);
        self.dhcp.add(dhcp);
        self.overlay.add(overlay);
        self.frames.add(frames);
        self.relay.active += relay.active;
        self.relay.joined += relay.joined;
        self.relay.refused += relay.refused;
        self.relay.brief += relay.brief;
        self.relay.unanswered += relay.unanswered;
        self.relay.bytes_from_child += relay.bytes_from_child;
        self.relay.bytes_to_child += relay.bytes_to_child;
        self.tcp_opened += other.tcp_opened;
        self.tcp_connect_failed += other.tcp_connect_failed;
        self.tcp_from_host += other.tcp_from_host;
        self.tcp_unanswered += other.tcp_unanswered;
        self.tcp_reset += other.tcp_reset;
        self.udp_sessions += other.udp_sessions;
        self.udp_session_errors += other.udp_session_errors;
        self.dns_static += other.dns_static;
        self.dns_servfail += other.dns_servfail;
        for (sum, drops) in self.drops.iter_mut().zip(drops) {
            *sum += drops;
        }
    }

    /// How often `reason` was counted.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// The reasons that were counted at least once.
    pub fn all_drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|&reason| (reason, self.drops(reason))).filter(|&(_, n)| n > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter() {
        let mut stats = Stats::default();
        for (index, &reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason as usize, index);
            stats.count_drop(reason);
            assert_eq!(stats.drops(reason), 1);
        }
        assert_eq!(stats.all_drops().count(), DropReason::ALL.len());
        stats.add(&stats.clone());
        assert!(stats.all_drops().all(|(_, count)| count == 2));
    }
}
