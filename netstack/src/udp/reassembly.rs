//! Reassembly of IPv4 (RFC 791, RFC 815) and IPv6 fragments (RFC 8200 section 4.5), in bounded memory.
//!
//! # Theory of operation
//! *Goal.* A child sends a UDP datagram or an echo request longer than its MTU. Its fragments arrive in
//! order on a TAP, but nothing here relies on that. What comes out is the whole payload of the IP packet.
//!
//! *States of a datagram.* *Open*: fragments are collected. *Discarded*: an overlap was seen; RFC 5722 wants
//! the whole datagram dropped "including those not yet received", so an empty entry stays behind and
//! swallows them. IPv4 is treated alike: no sender makes overlaps by accident. An exact duplicate is no
//! overlap. Either state ends with its timer.
//!
//! *Timer.* One per datagram, from its first fragment on and never extended. All are equally long, so the
//! datagrams stand in the order of their deadlines.
//!
//! *Limits.* Bytes (payload plus bookkeeping) over all datagrams, datagrams, fragments per datagram. When
//! the store is full, the oldest datagram makes room: fragments of one datagram follow each other closely,
//! so the oldest is the least likely to become whole. Only the child itself can fill the store.
//!
//! *Not handled.* No ICMP "reassembly time exceeded" is sent: it takes the first fragment's header, which is
//! not kept.

use std::mem::size_of;
use std::net::IpAddr;

use crate::error::DropReason;
use crate::time::{Duration, Instant};

/// What fragments of one datagram share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentKey {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Identification; 16 bits with IPv4.
    pub id: u32,
    /// Transport protocol (with IPv6: the fragment header's next header).
    pub protocol: u8,
}

/// The "more fragments" flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoreFragments {
    /// More follow.
    More,
    /// The last one.
    Last,
}

/// Bounded store of fragments.
#[derive(Debug)]
pub struct Reassembly {
    limit_bytes: usize,
    timeout: Duration,
    bytes: usize,
    evicted: usize,
    /// Oldest first.
    datagrams: Vec<Datagram>,
}

impl Reassembly {
    /// Most datagrams under reassembly.
    pub const MAX_DATAGRAMS: usize = 64;
    /// Most fragments of one datagram; 64 KiB in fragments for an MTU of 576 are 119.
    pub const MAX_FRAGMENTS: usize = 128;

    /// A store of `limit_bytes` (bookkeeping included) that gives a datagram up after `timeout`. RFC 8200
    /// says 60 s, RFC 1122 section 3.3.2 60 to 120 s; Linux takes 30 s for IPv4.
    pub fn new(limit_bytes: usize, timeout: Duration) -> Self {
        Reassembly { limit_bytes, timeout, bytes: 0, evicted: 0, datagrams: Vec::new() }
    }

    /// Takes a fragment whose payload starts at byte `offset` of the IP payload. Gives the whole payload
    /// when this was the missing piece.
    ///
    /// Errors: [`DropReason::BadFragment`] for a fragment that cannot be (not a multiple of 8, too long) or
    /// belongs to a datagram with overlaps; [`DropReason::ReassemblyFull`] where even an otherwise empty
    /// store has no room. See [`Reassembly::take_evicted`] for the others that made room.
    pub fn insert(
        &mut self,
        now: Instant,
        key: FragmentKey,
        offset: usize,
        more: MoreFragments,
        payload: &[u8],
    ) -> Result<Option<Vec<u8>>, DropReason> {
        let end = offset.saturating_add(payload.len());
        if end > max_payload(key.src) || !offset.is_multiple_of(8) {
            return Err(DropReason::BadFragment);
        }
        match more {
            // RFC 6946: an "atomic fragment" is whole, whatever else is stored under its key.
            MoreFragments::Last if offset == 0 => return Ok(Some(payload.to_vec())),
            _ if payload.is_empty() => return Err(DropReason::BadFragment),
            MoreFragments::More if !payload.len().is_multiple_of(8) => return Err(DropReason::BadFragment),
            _ => {}
        }
        match self.position(key).map_or(Fit::Fits, |at| self.datagrams[at].fit(offset, more, payload)) {
            Fit::Fits => {}
            Fit::Duplicate => return Ok(None),
            Fit::Contradicts => {
                self.discard(key);
                return Err(DropReason::BadFragment);
            }
        }
        let at = self.make_room(now, key, payload.len() + FRAGMENT_OVERHEAD)?;
        let datagram = &mut self.datagrams[at];
        self.bytes += payload.len() + FRAGMENT_OVERHEAD;
        if !datagram.add(offset, more, payload) {
            return Ok(None);
        }
        Ok(Some(self.remove(at).concat()))
    }

    /// Gives up what was not completed in time; call when [`Reassembly::poll_timeout`] has passed. Returns
    /// how many datagrams that were (to be counted as [`DropReason::ReassemblyTimeout`]).
    pub fn handle_timeout(&mut self, now: Instant) -> usize {
        let mut given_up = 0;
        while self.datagrams.first().is_some_and(|datagram| datagram.deadline <= now) {
            given_up += usize::from(self.remove(0).is_open());
        }
        given_up
    }

    /// Incomplete datagrams that made room for others since the last call (to be counted as
    /// [`DropReason::ReassemblyFull`]).
    pub fn take_evicted(&mut self) -> usize {
        std::mem::take(&mut self.evicted)
    }

    /// When to call [`Reassembly::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.datagrams.first().map(|datagram| datagram.deadline)
    }

    /// Bytes held, bookkeeping included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn position(&self, key: FragmentKey) -> Option<usize> {
        self.datagrams.iter().position(|datagram| datagram.key == key)
    }

    /// Finds or opens the datagram and makes room for `bytes` more of it.
    fn make_room(&mut self, now: Instant, key: FragmentKey, bytes: usize) -> Result<usize, DropReason> {
        loop {
            let position = self.position(key);
            let opening = if position.is_some() { 0 } else { DATAGRAM_OVERHEAD };
            let has_slot = position.is_some() || self.datagrams.len() < Self::MAX_DATAGRAMS;
            if has_slot && self.bytes + opening + bytes <= self.limit_bytes {
                return Ok(position.unwrap_or_else(|| {
                    self.bytes += opening;
                    self.datagrams.push(Datagram::new(key, now + self.timeout));
                    self.datagrams.len() - 1
                }));
            }
            // Its own earlier fragments go last, and then there is no point in going on.
            let oldest_other = self.datagrams.iter().position(|datagram| datagram.key != key);
            let victim = oldest_other.or(position).ok_or(DropReason::ReassemblyFull)?;
            self.evicted += usize::from(self.remove(victim).is_open());
            if oldest_other.is_none() {
                return Err(DropReason::ReassemblyFull);
            }
        }
    }

    /// Drops the fragments of a datagram; its entry stays to swallow those still to come.
    fn discard(&mut self, key: FragmentKey) {
        if let Some(at) = self.position(key) {
            let datagram = &mut self.datagrams[at];
            self.bytes -= datagram.bytes() - DATAGRAM_OVERHEAD;
            datagram.fragments = Vec::new();
            datagram.state = State::Discarded;
        }
    }

    fn remove(&mut self, at: usize) -> Datagram {
        let datagram = self.datagrams.remove(at);
        self.bytes -= datagram.bytes();
        datagram
    }
}

#[derive(Debug)]
struct Datagram {
    key: FragmentKey,
    deadline: Instant,
    state: State,
    /// Known once the last fragment is here.
    total: Option<usize>,
    /// By offset, without overlaps.
    fragments: Vec<Fragment>,
}

#[derive(Debug)]
struct Fragment {
    offset: usize,
    payload: Box<[u8]>,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Open,
    Discarded,
}

/// How a fragment goes with those already here.
enum Fit {
    Fits,
    Duplicate,
    Contradicts,
}

impl Datagram {
    fn new(key: FragmentKey, deadline: Instant) -> Self {
        Datagram { key, deadline, state: State::Open, total: None, fragments: Vec::new() }
    }

    /// Takes a fragment that fits. Whether all are here now.
    fn add(&mut self, offset: usize, more: MoreFragments, payload: &[u8]) -> bool {
        if more == MoreFragments::Last {
            self.total = Some(offset + payload.len());
        }
        let at = self.fragments.partition_point(|fragment| fragment.offset < offset);
        self.fragments.insert(at, Fragment { offset, payload: payload.into() });
        self.total == Some(self.payload_len())
    }

    fn fit(&self, offset: usize, more: MoreFragments, payload: &[u8]) -> Fit {
        if self.state == State::Discarded {
            return Fit::Contradicts;
        }
        let end = offset + payload.len();
        let next = self.fragments.partition_point(|fragment| fragment.offset < offset);
        if let Some(same) = self.fragments.get(next)
            && same.offset == offset
            && *same.payload == *payload
            && (more == MoreFragments::Last) == (self.total == Some(end))
        {
            return Fit::Duplicate;
        }
        let before = next.checked_sub(1).and_then(|at| self.fragments.get(at));
        let overlaps = before.is_some_and(|before| before.end() > offset)
            || self.fragments.get(next).is_some_and(|after| after.offset < end);
        let furthest = self.fragments.last().map_or(0, Fragment::end);
        let wrong_end = match (more, self.total) {
            (MoreFragments::Last, Some(_)) => true,
            (MoreFragments::Last, None) => furthest > end,
            (MoreFragments::More, total) => total.is_some_and(|total| end >= total),
        };
        if overlaps || wrong_end || self.fragments.len() >= Reassembly::MAX_FRAGMENTS {
            return Fit::Contradicts;
        }
        Fit::Fits
    }

    fn is_open(&self) -> bool {
        self.state == State::Open
    }

    fn payload_len(&self) -> usize {
        self.fragments.iter().map(|fragment| fragment.payload.len()).sum()
    }

    fn bytes(&self) -> usize {
        DATAGRAM_OVERHEAD + self.fragments.len() * FRAGMENT_OVERHEAD + self.payload_len()
    }

    fn concat(self) -> Vec<u8> {
        let mut whole = Vec::with_capacity(self.payload_len());
        for fragment in &self.fragments {
            whole.extend_from_slice(&fragment.payload);
        }
        whole
    }
}

impl Fragment {
    fn end(&self) -> usize {
        self.offset + self.payload.len()
    }
}

/// The longest IP payload: IPv4's length field counts the header too.
fn max_payload(src: IpAddr) -> usize {
    match src {
        IpAddr::V4(_) => 65535 - 20,
        IpAddr::V6(_) => 65535,
    }
}

/// An entry may take twice its size in a growing `Vec`; the allocator has two words of its own.
const FRAGMENT_OVERHEAD: usize = 2 * size_of::<Fragment>() + 16;
const DATAGRAM_OVERHEAD: usize = 2 * size_of::<Datagram>() + 16;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::MoreFragments::{Last, More};
    use super::*;

    fn key(id: u32) -> FragmentKey {
        let ip = |last| IpAddr::V4(Ipv4Addr::new(10, 0, 42, last));
        FragmentKey { src: ip(100), dst: ip(2), id, protocol: 17 }
    }

    fn store() -> Reassembly {
        Reassembly::new(1 << 20, Duration::from_secs(30))
    }

    const T0: Instant = Instant::ZERO;

    #[test]
    fn two_fragments_in_either_order_make_a_datagram() {
        let mut store = store();
        assert_eq!(store.insert(T0, key(1), 0, More, &[1; 8]), Ok(None));
        assert_eq!(store.insert(T0, key(2), 8, Last, &[2; 3]), Ok(None));
        let whole = |second| Ok(Some([&[1; 8][..], second].concat()));
        assert_eq!(store.insert(T0, key(1), 8, Last, &[9; 5]), whole(&[9; 5]));
        assert_eq!(store.insert(T0, key(2), 0, More, &[1; 8]), whole(&[2; 3]));
        assert_eq!((store.bytes(), store.poll_timeout()), (0, None));
    }

    #[test]
    fn keys_are_told_apart() {
        let mut store = store();
        assert_eq!(store.insert(T0, key(1), 0, More, &[1; 8]), Ok(None));
        let other = FragmentKey { protocol: 1, ..key(1) };
        assert_eq!(store.insert(T0, other, 8, Last, &[2; 8]), Ok(None));
    }

    #[test]
    fn an_atomic_fragment_is_whole() {
        let mut store = store();
        assert_eq!(store.insert(T0, key(1), 0, More, &[1; 8]), Ok(None));
        assert_eq!(store.insert(T0, key(1), 0, Last, b"all"), Ok(Some(b"all".to_vec())));
        assert_eq!(store.insert(T0, key(1), 8, Last, b"").err(), Some(DropReason::BadFragment));
    }

    #[test]
    fn an_overlap_discards_all_including_what_is_still_to_come() {
        let mut store = store();
        assert_eq!(store.insert(T0, key(1), 0, More, &[1; 16]), Ok(None));
        assert_eq!(store.insert(T0, key(1), 8, More, &[1; 16]), Err(DropReason::BadFragment));
        assert_eq!(store.insert(T0, key(1), 16, Last, &[1; 16]), Err(DropReason::BadFragment));
        assert_eq!(store.insert(T0, key(1), 0, More, &[1; 16]), Err(DropReason::BadFragment));
        // It was counted as overlap, not as timeout; afterwards the id is free again.
        let later = T0 + Duration::from_secs(30);
        assert_eq!(store.handle_timeout(later), 0);
        assert_eq!(store.insert(later, key(1), 0, More, &[1; 16]), Ok(None));
    }

    #[test]
    fn an_exact_duplicate_is_not_an_overlap() {
        let mut store = store();
        assert_eq!(store.insert(T0, key(1), 8, Last, &[2; 5]), Ok(None));
        assert_eq!(store.insert(T0, key(1), 8, Last, &[2; 5]), Ok(None));
        assert!(store.insert(T0, key(1), 0, More, &[1; 8]).unwrap().is_some());
    }

    #[test]
    fn a_duplicate_with_other_bytes_is_an_overlap() {
        let mut store = store();
        assert_eq!(store.insert(T0, key(1), 0, More, &[1; 8]), Ok(None));
        assert_eq!(store.insert(T0, key(1), 0, More, &[2; 8]), Err(DropReason::BadFragment));
    }

    #[test]
    fn there_is_one_end() {
        for (offset, more, len) in [(24, Last, 8), (8, Last, 8), (24, More, 8), (8, More, 8)] {
            let mut store = store();
            assert_eq!(store.insert(T0, key(1), 16, Last, &[0; 8]), Ok(None));
            let result = store.insert(T0, key(1), offset, more, &vec![0; len]);
            let expected = if (offset, more) == (8, More) { Ok(None) } else { Err(DropReason::BadFragment) };
            assert_eq!(result, expected, "{offset} {more:?}");
        }
    }

    #[test]
    fn impossible_fragments_are_refused() {
        let mut store = store();
        for (offset, more, len) in [
            (0, More, 7),
            (4, More, 8),
            (0, More, 0),
            (65512, Last, 8),
            (65536, Last, 1),
            (usize::MAX, Last, 9),
        ] {
            let result = store.insert(T0, key(1), offset, more, &vec![0; len]);
            assert_eq!(result, Err(DropReason::BadFragment));
        }
        assert_eq!(store.bytes(), 0);
    }

    #[test]
    fn an_incomplete_datagram_is_given_up_after_its_timeout() {
        let mut store = store();
        store.insert(T0, key(1), 0, More, &[1; 8]).unwrap();
        let later = T0 + Duration::from_secs(10);
        store.insert(later, key(1), 8, More, &[1; 8]).unwrap();
        store.insert(later, key(2), 8, More, &[1; 8]).unwrap();
        let deadline = T0 + Duration::from_secs(30);
        assert_eq!(store.poll_timeout(), Some(deadline));
        assert_eq!(store.handle_timeout(deadline - Duration::from_micros(1)), 0);
        assert_eq!(store.handle_timeout(deadline), 1);
        assert_eq!(store.poll_timeout(), Some(deadline + Duration::from_secs(10)));
    }

    #[test]
    fn the_oldest_makes_room_for_the_newest() {
        let mut store = store();
        let most = Reassembly::MAX_DATAGRAMS as u32;
        for id in 0..=most {
            store.insert(T0, key(id), 0, More, &[1; 8]).unwrap();
        }
        assert_eq!(store.take_evicted(), 1);
        assert!(store.insert(T0, key(most), 8, Last, &[1; 8]).unwrap().is_some());
        assert!(store.insert(T0, key(1), 8, Last, &[1; 8]).unwrap().is_some());
        assert_eq!(store.insert(T0, key(0), 8, Last, &[1; 8]), Ok(None));
        assert_eq!(store.take_evicted(), 0);
    }

    #[test]
    fn a_datagram_larger_than_the_store_is_given_up() {
        let mut store = Reassembly::new(4000, Duration::from_secs(30));
        store.insert(T0, key(9), 0, More, &[1; 8]).unwrap();
        store.insert(T0, key(1), 0, More, &[1; 1480]).unwrap();
        store.insert(T0, key(1), 1480, More, &[1; 1480]).unwrap();
        assert_eq!(store.insert(T0, key(1), 2960, More, &[1; 1480]), Err(DropReason::ReassemblyFull));
        assert_eq!((store.bytes(), store.take_evicted()), (0, 2));
    }

    #[test]
    fn too_many_fragments_are_refused() {
        let mut store = store();
        for n in 0..Reassembly::MAX_FRAGMENTS {
            store.insert(T0, key(1), n * 8, More, &[1; 8]).unwrap();
        }
        let next = Reassembly::MAX_FRAGMENTS * 8;
        assert_eq!(store.insert(T0, key(1), next, More, &[1; 8]), Err(DropReason::BadFragment));
        assert_eq!(store.bytes(), DATAGRAM_OVERHEAD);
    }

    proptest! {
        #[test]
        fn any_permutation_of_any_cut_gives_the_original(
            original in proptest::collection::vec(any::<u8>(), 9..4000),
            cuts in proptest::collection::btree_set(1..500usize, 1..20),
            order in proptest::collection::vec(any::<usize>(), 20),
            repeated in 0..20usize,
        ) {
            let mut starts = vec![0];
            starts.extend(cuts.into_iter().map(|cut| cut * 8).filter(|&start| start < original.len()));
            prop_assume!(starts.len() > 1);
            let mut fragments: Vec<(usize, usize)> = Vec::new();
            for (n, &start) in starts.iter().enumerate() {
                fragments.push((start, starts.get(n + 1).copied().unwrap_or(original.len())));
            }
            for (n, &with) in order.iter().enumerate().take(fragments.len()) {
                let len = fragments.len();
                fragments.swap(n, with % len);
            }
            let last = fragments.len() - 1;
            fragments.insert(0, fragments[repeated % last]); // a duplicate on the way
            let mut store = store();
            let mut whole = None;
            for (start, end) in fragments {
                prop_assert_eq!(&whole, &None);
                let more = if end == original.len() { Last } else { More };
                whole = store.insert(T0, key(1), start, more, &original[start..end]).unwrap();
            }
            prop_assert_eq!(whole, Some(original));
            prop_assert_eq!(store.bytes(), 0);
        }

        #[test]
        fn a_hostile_child_stays_within_the_limits(
            limit in 0..20_000usize,
            fragments in proptest::collection::vec((0..100u32, 0..40usize, any::<bool>(), 0..300usize, 0..2000u64), 1..300),
        ) {
            let mut store = Reassembly::new(limit, Duration::from_secs(30));
            let mut now = T0;
            for (id, offset, last, len, passed) in fragments {
                now += Duration::from_millis(passed);
                store.handle_timeout(now);
                let len = if id % 3 == 0 { len } else { len & !7 };
                let more = if last { Last } else { More };
                let _ = store.insert(now, key(id), offset * 8, more, &vec![id as u8; len]);
                prop_assert!(store.bytes() <= limit);
                prop_assert!(store.datagrams.len() <= Reassembly::MAX_DATAGRAMS);
                let counted: usize = store.datagrams.iter().map(Datagram::bytes).sum();
                prop_assert_eq!(store.bytes(), counted);
                prop_assert!(store.datagrams.is_sorted_by_key(|datagram| datagram.deadline));
            }
            store.handle_timeout(now + Duration::from_secs(31));
            prop_assert_eq!(store.bytes(), 0);
        }
    }
}
