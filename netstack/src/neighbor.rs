//! Ethernet addresses behind the TAP: one kernel in the common case, several clients on a bridge.
//!
//! # Theory of operation
//! Every packet and every ARP or NDP message names its sender; the table remembers the last
//! [`NeighborTable::CAPACITY`] of them. A full table forgets the entry that was learnt longest ago. For an
//! unknown address (a pod routed by the child) the sender of the last frame is used, which is the child's kernel.
//!
//! That answers who has just spoken. Who is to be spoken to first (published ports) may be unknown: `Inquiries`
//! holds what waits for the answer to ARP or neighbour discovery, asks `Inquiries::TRIES` times at intervals of a
//! second (the numbers of RFC 4861 section 10, which Linux uses for ARP as well), then gives up.

use std::net::IpAddr;

use crate::flow::FlowId;
use crate::packet::{BROADCAST, Mac};
use crate::time::{Duration, Instant};

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
        self.find(address).unwrap_or(self.last)
    }

    /// What was learnt of `address`.
    pub fn find(&self, address: IpAddr) -> Option<Mac> {
        self.entries.iter().find(|(known, _)| *known == address).map(|&(_, mac)| mac)
    }

    /// The sender of the last frame.
    pub fn last_sender(&self) -> Option<Mac> {
        (self.last != BROADCAST).then_some(self.last)
    }
}

/// An address that is being looked for, and what waits for it.
#[derive(Debug)]
pub(crate) struct Inquiry {
    pub(crate) address: IpAddr,
    /// TCP flows with a SYN to send.
    pub(crate) flows: Vec<FlowId>,
    /// Frames that lack their destination only.
    pub(crate) frames: Vec<Vec<u8>>,
    asked: u8,
    due: Instant,
}

/// What has become due.
#[derive(Debug)]
pub(crate) enum Due {
    /// Ask (again) for this address.
    Ask(IpAddr),
    /// Nobody has answered.
    GiveUp(Inquiry),
}

/// Addresses that are being looked for.
#[derive(Debug, Default)]
pub(crate) struct Inquiries(Vec<Inquiry>);

impl Inquiries {
    /// Addresses looked for at a time.
    pub(crate) const CAPACITY: usize = 64;
    /// Frames that wait for one address; further ones are dropped (Linux keeps about as many).
    pub(crate) const FRAMES: usize = 64;
    /// Questions before giving up.
    const TRIES: u8 = 3;
    const INTERVAL: Duration = Duration::from_secs(1);

    /// The inquiry for `address`, begun if there is none; `None` when there are too many.
    pub(crate) fn begin(&mut self, now: Instant, address: IpAddr) -> Option<&mut Inquiry> {
        let at = match self.0.iter().position(|inquiry| inquiry.address == address) {
            Some(at) => at,
            None if self.0.len() >= Self::CAPACITY => return None,
            None => {
                let (flows, frames) = (Vec::new(), Vec::new());
                self.0.push(Inquiry { address, flows, frames, asked: 0, due: now });
                self.0.len() - 1
            }
        };
        self.0.get_mut(at)
    }

    /// Somebody has spoken as `address`.
    pub(crate) fn handle_answer(&mut self, address: IpAddr) -> Option<Inquiry> {
        let at = self.0.iter().position(|inquiry| inquiry.address == address)?;
        Some(self.0.swap_remove(at))
    }

    /// What is to be done at `now`, one thing at a time.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Due> {
        let at = self.0.iter().position(|inquiry| inquiry.due <= now)?;
        let inquiry = self.0.get_mut(at)?;
        if inquiry.asked == Self::TRIES {
            return Some(Due::GiveUp(self.0.swap_remove(at)));
        }
        inquiry.asked += 1;
        inquiry.due = now + Self::INTERVAL;
        Some(Due::Ask(inquiry.address))
    }

    /// When [`Inquiries::poll`] has something to say.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.0.iter().map(|inquiry| inquiry.due).min()
    }

    /// Whether nothing is looked for.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
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
    fn an_address_is_asked_for_three_times_at_intervals_of_a_second() {
        let mut inquiries = Inquiries::default();
        let at = Instant::from_secs;
        let flow = FlowId { index: 1, generation: 1 };
        inquiries.begin(at(10), address(1)).unwrap().flows.push(flow);
        for second in 10..13 {
            assert!(matches!(inquiries.poll(at(second)), Some(Due::Ask(asked)) if asked == address(1)));
            assert!(inquiries.poll(at(second)).is_none());
            // Whoever joins does not shorten the interval.
            inquiries.begin(at(second), address(1)).unwrap();
            assert_eq!(inquiries.poll_timeout(), Some(at(second + 1)));
        }
        let Some(Due::GiveUp(inquiry)) = inquiries.poll(at(13)) else { panic!("{inquiries:?}") };
        assert_eq!(inquiry.flows, [flow]);
        assert!(inquiries.is_empty() && inquiries.poll_timeout().is_none());
    }

    #[test]
    fn an_answer_ends_the_inquiry_and_there_are_not_too_many() {
        let mut inquiries = Inquiries::default();
        for n in 0..Inquiries::CAPACITY as u32 {
            assert!(inquiries.begin(Instant::ZERO, address(n)).is_some());
        }
        assert!(inquiries.begin(Instant::ZERO, address(1000)).is_none());
        assert_eq!(inquiries.handle_answer(address(7)).unwrap().address, address(7));
        assert!(inquiries.handle_answer(address(7)).is_none());
        assert!(inquiries.begin(Instant::ZERO, address(1000)).is_some());
    }

    #[test]
    fn group_addresses_are_not_learnt() {
        let mut table = NeighborTable::default();
        table.learn(address(1), [1, 0, 0, 0, 0, 0]);
        assert_eq!(table.lookup(address(1)), BROADCAST);
    }
}
