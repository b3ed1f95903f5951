//! Leases: which DHCP client has which address.
//!
//! # Theory of operation
//! *Goal:* never the same address to two live clients, the same address again to a client that returns,
//! and memory bounded by the number of addresses.
//!
//! *Not handled:* persistence. After a restart of the engine a client that asks to keep its address gets it
//! if it is free.
//!
//! *States* of a slot (one per address):
//!
//! | State    | Meaning                              | Ends by                             |
//! |----------|--------------------------------------|-------------------------------------|
//! | free     | nobody's; the last client is known   | offer, bind                         |
//! | offered  | promised to a client                 | bind, withdrawal, expiry            |
//! | bound    | a client's                           | release, decline, expiry            |
//! | declined | in use by somebody outside the table | expiry                              |
//!
//! *Timers:* none. A slot whose time has passed is free when it is looked at next.

use std::net::Ipv4Addr;

use crate::time::{Duration, Instant};

/// Names a DHCP client (RFC 2131 section 4.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientKey {
    /// The client identifier option, 2..=255 bytes.
    Identifier(Box<[u8]>),
    /// The hardware address of a client that sends no identifier.
    Hardware([u8; 6]),
}

/// The table of leases. The first address is preferred whenever it is free.
#[derive(Clone, Debug)]
pub struct LeaseTable {
    slots: Vec<Slot>,
}

#[derive(Clone, Debug)]
struct Slot {
    address: Ipv4Addr,
    /// Whoever had the address last; its owner while the slot is live.
    client: Option<ClientKey>,
    state: State,
    /// When the slot falls free; for a free slot, when it did.
    until: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Offered,
    Bound,
    Declined,
}

impl LeaseTable {
    /// A table of free addresses; repeated ones count once.
    pub fn new(addresses: impl IntoIterator<Item = Ipv4Addr>) -> Self {
        let mut slots: Vec<Slot> = Vec::new();
        for address in addresses {
            if !slots.iter().any(|slot| slot.address == address) {
                slots.push(Slot { address, client: None, state: State::Free, until: Instant::ZERO });
            }
        }
        LeaseTable { slots }
    }

    /// Promises an address to `client` for the time `hold`: its current one, else its previous one, else
    /// `requested`, else the first address, else the one unused for longest (RFC 2131 section 4.3.1).
    /// `None` when no address is free. A current lease is never shortened.
    pub fn offer(
        &mut self,
        now: Instant,
        client: &ClientKey,
        requested: Option<Ipv4Addr>,
        hold: Duration,
    ) -> Option<Ipv4Addr> {
        if let Some(slot) = self.owned_mut(now, client) {
            slot.until = slot.until.max(now + hold);
            return Some(slot.address);
        }
        let free = |slot: &&mut Slot| slot.state_at(now) == State::Free;
        let rank = |index: usize, slot: &Slot| {
            if slot.client.as_ref() == Some(client) {
                0
            } else if Some(slot.address) == requested {
                1
            } else if index == 0 {
                2
            } else {
                3
            }
        };
        let (_, slot) = self
            .slots
            .iter_mut()
            .enumerate()
            .filter(|(_, slot)| free(slot))
            .min_by_key(|(index, slot)| (rank(*index, slot), slot.until))?;
        slot.set(State::Offered, client, now + hold);
        Some(slot.address)
    }

    /// Gives `address` to `client` for `duration` and takes any other address back from it.
    ///
    /// # Errors
    /// [`NotAvailable`] when the address is not in the table, another client's, or declined.
    pub fn bind(
        &mut self,
        now: Instant,
        client: &ClientKey,
        address: Ipv4Addr,
        duration: Duration,
    ) -> Result<(), NotAvailable> {
        let index = self.slots.iter().position(|slot| slot.address == address).ok_or(NotAvailable)?;
        match self.slots[index].state_at(now) {
            State::Free => {}
            State::Offered | State::Bound if self.slots[index].client.as_ref() == Some(client) => {}
            State::Offered | State::Bound | State::Declined => return Err(NotAvailable),
        }
        if let Some(other) = self.owned_mut(now, client).filter(|slot| slot.address != address) {
            other.free(now);
        }
        self.slots[index].set(State::Bound, client, now + duration);
        Ok(())
    }

    /// Frees `address` if it is `client`'s; it stays the first choice for this client.
    pub fn release(&mut self, now: Instant, client: &ClientKey, address: Ipv4Addr) {
        if let Some(slot) = self.owned_mut(now, client).filter(|slot| slot.address == address) {
            slot.free(now);
        }
    }

    /// Frees what was offered to `client` but not what is bound to it.
    pub fn withdraw_offer(&mut self, now: Instant, client: &ClientKey) {
        if let Some(slot) = self.owned_mut(now, client).filter(|slot| slot.state == State::Offered) {
            slot.free(now);
        }
    }

    /// Keeps `address`, if it is `client`'s, from everybody for the time `quarantine`.
    pub fn decline(&mut self, now: Instant, client: &ClientKey, address: Ipv4Addr, quarantine: Duration) {
        if let Some(slot) = self.owned_mut(now, client).filter(|slot| slot.address == address) {
            slot.client = None;
            slot.state = State::Declined;
            slot.until = now + quarantine;
        }
    }

    /// The address offered or bound to `client`.
    pub fn address_of(&self, now: Instant, client: &ClientKey) -> Option<Ipv4Addr> {
        self.slots.iter().find(|slot| slot.is_owned_by(now, client)).map(|slot| slot.address)
    }

    fn owned_mut(&mut self, now: Instant, client: &ClientKey) -> Option<&mut Slot> {
        self.slots.iter_mut().find(|slot| slot.is_owned_by(now, client))
    }
}

/// The address asked for cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAvailable;

impl Slot {
    fn set(&mut self, state: State, client: &ClientKey, until: Instant) {
        self.state = state;
        self.until = until;
        if self.client.as_ref() != Some(client) {
            self.client = Some(client.clone());
        }
    }

    fn free(&mut self, now: Instant) {
        self.state = State::Free;
        self.until = now;
    }

    fn state_at(&self, now: Instant) -> State {
        if self.until <= now { State::Free } else { self.state }
    }

    fn is_owned_by(&self, now: Instant, client: &ClientKey) -> bool {
        matches!(self.state_at(now), State::Offered | State::Bound) && self.client.as_ref() == Some(client)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 42, 100);
    const SECOND: Ipv4Addr = Ipv4Addr::new(10, 0, 42, 15);
    const THIRD: Ipv4Addr = Ipv4Addr::new(10, 0, 42, 16);
    const MINUTE: Duration = Duration::from_secs(60);
    const DAY: Duration = Duration::from_secs(86_400);

    fn table() -> LeaseTable {
        LeaseTable::new([FIRST, SECOND, THIRD, FIRST])
    }

    fn client(n: u8) -> ClientKey {
        ClientKey::Hardware([2, 0, 0, 0, 0, n])
    }

    fn at(seconds: i64) -> Instant {
        Instant::from_secs(seconds)
    }

    #[test]
    fn the_first_client_gets_the_first_address_and_others_get_others() {
        let mut table = table();
        assert_eq!(table.offer(at(0), &client(1), None, MINUTE), Some(FIRST));
        assert_eq!(table.offer(at(0), &client(2), None, MINUTE), Some(SECOND));
        assert_eq!(table.offer(at(0), &client(3), None, MINUTE), Some(THIRD));
        assert_eq!(table.offer(at(0), &client(4), None, MINUTE), None);
    }

    #[test]
    fn an_expired_offer_is_given_to_the_next() {
        let mut table = table();
        assert_eq!(table.offer(at(0), &client(1), None, MINUTE), Some(FIRST));
        assert_eq!(table.offer(at(60), &client(2), None, MINUTE), Some(FIRST));
        assert_eq!(table.bind(at(60), &client(1), FIRST, DAY), Err(NotAvailable));
        assert_eq!(table.bind(at(60), &client(2), FIRST, DAY), Ok(()));
    }

    #[test]
    fn a_bound_client_is_offered_its_own_address_whatever_it_asks() {
        let mut table = table();
        table.bind(at(0), &client(1), SECOND, DAY).unwrap();
        assert_eq!(table.offer(at(1), &client(1), Some(THIRD), MINUTE), Some(SECOND));
        assert_eq!(table.address_of(at(86_399), &client(1)), Some(SECOND));
        assert_eq!(table.address_of(at(86_400), &client(1)), None);
    }

    #[test]
    fn a_returning_client_gets_its_previous_address() {
        let mut table = table();
        table.bind(at(0), &client(1), THIRD, DAY).unwrap();
        table.release(at(1), &client(1), THIRD);
        assert_eq!(table.offer(at(2), &client(1), Some(SECOND), MINUTE), Some(THIRD));
    }

    #[test]
    fn addresses_unused_for_longest_are_reused_first() {
        let mut table = table();
        table.bind(at(0), &client(1), FIRST, DAY).unwrap();
        table.bind(at(1), &client(2), SECOND, DAY).unwrap();
        table.release(at(2), &client(2), SECOND);
        assert_eq!(table.offer(at(3), &client(3), None, MINUTE), Some(THIRD));
        assert_eq!(table.offer(at(3), &client(4), None, MINUTE), Some(SECOND));
    }

    #[test]
    fn a_client_that_moves_gives_its_old_address_back() {
        let mut table = table();
        table.bind(at(0), &client(1), FIRST, DAY).unwrap();
        table.bind(at(0), &client(1), SECOND, DAY).unwrap();
        assert_eq!(table.address_of(at(1), &client(1)), Some(SECOND));
        assert_eq!(table.offer(at(1), &client(2), None, MINUTE), Some(FIRST));
    }

    #[test]
    fn a_declined_address_is_nobodys_until_the_quarantine_ends() {
        let mut table = LeaseTable::new([FIRST]);
        table.bind(at(0), &client(1), FIRST, DAY).unwrap();
        table.decline(at(1), &client(1), FIRST, MINUTE);
        assert_eq!(table.offer(at(2), &client(1), Some(FIRST), MINUTE), None);
        assert_eq!(table.bind(at(2), &client(2), FIRST, DAY), Err(NotAvailable));
        assert_eq!(table.offer(at(61), &client(2), None, MINUTE), Some(FIRST));
    }

    #[test]
    fn only_the_owner_releases_and_declines() {
        let mut table = table();
        table.bind(at(0), &client(1), FIRST, DAY).unwrap();
        table.release(at(1), &client(2), FIRST);
        table.decline(at(1), &client(2), FIRST, MINUTE);
        table.withdraw_offer(at(1), &client(1));
        assert_eq!(table.address_of(at(2), &client(1)), Some(FIRST));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Offer(u8, Option<u8>),
        Bind(u8, u8),
        Release(u8, u8),
        Decline(u8, u8),
        Withdraw(u8),
        Wait(u8),
    }

    fn op() -> impl Strategy<Value = Op> {
        let (c, a) = (0..6u8, 0..5u8);
        prop_oneof![
            (c.clone(), proptest::option::of(a.clone())).prop_map(|(c, a)| Op::Offer(c, a)),
            (c.clone(), a.clone()).prop_map(|(c, a)| Op::Bind(c, a)),
            (c.clone(), a.clone()).prop_map(|(c, a)| Op::Release(c, a)),
            (c.clone(), a).prop_map(|(c, a)| Op::Decline(c, a)),
            c.prop_map(Op::Withdraw),
            (0..40u8).prop_map(Op::Wait),
        ]
    }

    proptest! {
        /// The model keeps only what clients were told: address -> (client, end), and quarantines.
        #[test]
        fn no_address_is_ever_given_to_two_live_clients(ops in proptest::collection::vec(op(), 1..120)) {
            let address = |n: u8| Ipv4Addr::new(10, 0, 0, n);
            let [hold, lease, quarantine] = [5, 60, 30].map(Duration::from_secs);
            let mut table = LeaseTable::new((0..4).map(address));
            let mut told: BTreeMap<Ipv4Addr, (Option<u8>, Instant)> = BTreeMap::new();
            let mut now = at(0);
            for op in ops {
                told.retain(|_, &mut (_, until)| until > now);
                match op {
                    Op::Offer(c, wish) => {
                        let offered = table.offer(now, &client(c), wish.map(address), hold);
                        match offered {
                            Some(a) => {
                                let (owner, until) = told.get(&a).copied().unwrap_or((Some(c), now));
                                prop_assert_eq!(owner, Some(c));
                                told.insert(a, (Some(c), until.max(now + hold)));
                            }
                            None => prop_assert_eq!(told.len(), 4),
                        }
                    }
                    Op::Bind(c, n) => {
                        let a = address(n);
                        let may = n < 4 && told.get(&a).is_none_or(|&(owner, _)| owner == Some(c));
                        prop_assert_eq!(table.bind(now, &client(c), a, lease).is_ok(), may);
                        if may {
                            told.retain(|_, &mut (owner, _)| owner != Some(c));
                            told.insert(a, (Some(c), now + lease));
                        }
                    }
                    Op::Release(c, n) => {
                        table.release(now, &client(c), address(n));
                        if told.get(&address(n)).is_some_and(|&(owner, _)| owner == Some(c)) {
                            told.remove(&address(n));
                        }
                    }
                    Op::Decline(c, n) => {
                        table.decline(now, &client(c), address(n), quarantine);
                        if let Some(entry) = told.get_mut(&address(n)).filter(|entry| entry.0 == Some(c)) {
                            *entry = (None, now + quarantine);
                        }
                    }
                    Op::Withdraw(c) => {
                        // The model does not tell offers from leases; ask the table what became of it.
                        table.withdraw_offer(now, &client(c));
                        if table.address_of(now, &client(c)).is_none() {
                            told.retain(|_, &mut (owner, _)| owner != Some(c));
                        }
                    }
                    Op::Wait(seconds) => now += Duration::from_secs(u64::from(seconds)),
                }
                told.retain(|_, &mut (_, until)| until > now);
                for c in 0..6 {
                    let expected = told.iter().find(|(_, entry)| entry.0 == Some(c)).map(|(&a, _)| a);
                    prop_assert_eq!(table.address_of(now, &client(c)), expected);
                }
            }
        }
    }
}
