//! Ethernet addresses behind the TAP: one kernel in the common case, several clients on a bridge.
//!
//! # Theory of operation
//! Every packet and every ARP or NDP message names its sender; the table remembers the last
//! [`NeighborTable::CAPACITY`] of them. A full table forgets the entry that was learnt longest ago. For an
//! unknown address (a pod routed by the child) the sender of the last frame is used, which is the child's kernel.

use std::net::IpAddr;

use crate::packet::{BROADCAST, Mac};

/// Addresses learnt from the child.
#[derive(Debug)]
pub struct NeighborTable {
    entries: Vec<(IpAddr, Mac)>,
    /// Round-robin position of the next replacement.
    oldest: usize,
    last: Mac,
}

impl Default for NeighborTable {
    fn default() -> Self {
        NeighborTable { entries: Vec::new(), oldest: 0, last: BROADCAST }
    }
}

impl NeighborTable {
    /// Number of addresses remembered.
    pub const CAPACITY: usize = 64;

    /// Remembers that `address` is at `mac`; group addresses are not learnt.
    pub fn learn(&mut self, address: IpAddr, mac: Mac) {
        if mac[0] & 1 != 0 {
            return;
        }
        self.last = mac;
        if let Some(entry) = self.entries.iter_mut().find(|(known, _)| *known == address) {
            entry.1 = mac;
        } else if self.entries.len() < Self::CAPACITY {
            self.entries.push((address, mac));
        } else {
            self.entries[self.oldest] = (address, mac);
            self.oldest = (self.oldest + 1) % Self::CAPACITY;
        }
    }

    /// The addresses remembered, earliest first until the table was full.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.entries.iter().map(|&(address, _)| address)
    }

    /// Where frames for `address` go.
    pub fn lookup(&self, address: IpAddr) -> Mac {
        self.entries.iter().find(|(known, _)| *known == address).map_or(self.last, |&(_, mac)| mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn address(n: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + n).into()
    }

    #[test]
    fn unknown_addresses_go_to_the_last_sender() {
        let mut table = NeighborTable::default();
        assert_eq!(table.lookup(address(1)), BROADCAST);
        table.learn(address(1), [2; 6]);
        assert_eq!(table.lookup(address(9)), [2; 6]);
    }

    #[test]
    fn a_full_table_forgets_the_oldest() {
        let mut table = NeighborTable::default();
        for n in 0..=NeighborTable::CAPACITY as u32 {
            table.learn(address(n), [n as u8 & !1, 0, 0, 0, 0, 1]);
        }
        assert_eq!(table.entries.len(), NeighborTable::CAPACITY);
        assert_eq!(table.lookup(address(1)), [0, 0, 0, 0, 0, 1]);
        assert_eq!(table.entries[0].0, address(NeighborTable::CAPACITY as u32));
    }

    #[test]
    fn group_addresses_are_not_learnt() {
        let mut table = NeighborTable::default();
        table.learn(address(1), [1, 0, 0, 0, 0, 0]);
        assert_eq!(table.lookup(address(1)), BROADCAST);
    }
}
