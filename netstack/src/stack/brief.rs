//! Which destinations have flows so many and so brief that a relay is not worth its while.
//!
//! # Theory of operation
//! *Goal:* the cheaper path. To join two sockets in the child's kernel costs half as much again as a whole connection with one message by
//! frames; a relay makes good for it after some hundred kilobytes. What a flow will carry nobody knows when it begins, but flows to one
//! destination (address and port) are alike. Each destination has a level:
//!
//! | event | level |
//! |---|---|
//! | a flow has ended, with at most [`BRIEF`] bytes both ways | + 1, at most [`FULL`] |
//! | a flow has ended, with more | 0 |
//! | [`LEAK`] has passed | - 1 |
//!
//! From [`MANY`] on, its new flows go by frames: it has had more than four brief ones a second for a while, and nothing else.
//!
//! Memory is fixed: [`SETS`] times [`WAYS`] destinations, known by a keyed hash. One that finds no place takes a level from the least of
//! those that are there: destinations that come often stay.

use std::hash::BuildHasher;
use std::net::SocketAddr;

use crate::time::{Duration, Instant};

/// Payload bytes of a brief flow.
const BRIEF: u64 = 64 << 10;
/// The level from which flows go by frames.
const MANY: u8 = 16;
/// The highest level.
const FULL: u8 = 2 * MANY;
/// In which a level falls by one.
const LEAK: Duration = Duration::from_millis(250);
const SETS: usize = 64;
const WAYS: usize = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct BriefFlows {
    hasher: foldhash::fast::FixedState,
    /// Made with the first flow that ends.
    places: Vec<[Place; WAYS]>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    destination: u64,
    level: u8,
    /// When the level was right.
    at: Instant,
}

impl BriefFlows {
    pub(super) fn new(seed: u64) -> Self {
        BriefFlows { hasher: foldhash::fast::FixedState::with_seed(seed), places: Vec::new() }
    }

    /// A flow to `destination` has ended, having carried so many bytes.
    pub(super) fn handle_end(&mut self, now: Instant, destination: SocketAddr, bytes: u64) {
        let hash = self.hasher.hash_one(destination);
        if self.places.is_empty() {
            self.places = vec![[Place { destination: 0, level: 0, at: Instant::ZERO }; WAYS]; SETS];
        }
        let Some(set) = self.places.get_mut(set_of(hash)) else { return };
        set.iter_mut().for_each(|place| place.leak(now));
        let own = set.iter_mut().find(|place| place.destination == hash);
        if bytes > BRIEF {
            own.into_iter().for_each(|place| place.level = 0);
            return;
        }
        let place = match own {
            Some(place) => Some(place),
            None => set.iter_mut().min_by_key(|place| place.level),
        };
        match place {
            Some(place) if place.destination == hash => place.level = (place.level + 1).min(FULL),
            Some(place) if place.level > 0 => place.level -= 1,
            Some(place) => *place = Place { destination: hash, level: 1, at: now },
            None => {}
        }
    }

    /// Whether `destination` has many brief flows.
    pub(super) fn are_many(&self, now: Instant, destination: SocketAddr) -> bool {
        let hash = self.hasher.hash_one(destination);
        let set = self.places.get(set_of(hash)).into_iter().flatten();
        set.copied().filter(|place| place.destination == hash).any(|mut place| {
            place.leak(now);
            place.level >= MANY
        })
    }
}

impl Place {
    fn leak(&mut self, now: Instant) {
        let passed = (now.total_micros() - self.at.total_micros()).max(0) as u64;
        let levels = passed / LEAK.total_micros();
        if levels >= u64::from(self.level) {
            (self.level, self.at) = (0, now);
        } else {
            self.level -= levels as u8;
            self.at += LEAK * levels as u32;
        }
    }
}

fn set_of(hash: u64) -> usize {
    (hash >> 32) as usize % SETS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination(port: u16) -> SocketAddr {
        ([192, 0, 2, 1], port).into()
    }

    fn end(flows: &mut BriefFlows, at: i64, port: u16, count: u8) {
        (0..count).for_each(|_| flows.handle_end(Instant::from_millis(at), destination(port), 2));
    }

    fn are_many(flows: &BriefFlows, at: i64, port: u16) -> bool {
        flows.are_many(Instant::from_millis(at), destination(port))
    }

    #[test]
    fn many_brief_flows_count_for_their_destination() {
        let mut flows = BriefFlows::new(1);
        end(&mut flows, 0, 80, MANY - 1);
        assert!(!are_many(&flows, 0, 80));
        end(&mut flows, 0, 80, 1);
        assert!(are_many(&flows, 0, 80));
        assert!(!are_many(&flows, 0, 81));
    }

    #[test]
    fn one_that_carried_much_ends_it() {
        let mut flows = BriefFlows::new(1);
        end(&mut flows, 0, 80, FULL);
        flows.handle_end(Instant::ZERO, destination(80), BRIEF);
        assert!(are_many(&flows, 0, 80));
        flows.handle_end(Instant::ZERO, destination(81), BRIEF + 1);
        assert!(are_many(&flows, 0, 80), "another's");
        flows.handle_end(Instant::ZERO, destination(80), BRIEF + 1);
        assert!(!are_many(&flows, 0, 80));
    }

    #[test]
    fn few_in_a_time_are_not_many() {
        let mut flows = BriefFlows::new(1);
        for at in 0..100 {
            end(&mut flows, at * 250, 80, 1);
            assert!(!are_many(&flows, at * 250, 80));
        }
    }

    #[test]
    fn a_while_without_any_ends_it() {
        let mut flows = BriefFlows::new(1);
        end(&mut flows, 100, 80, 255);
        let leaks = i64::from(FULL - MANY) * 250;
        assert!(are_many(&flows, 100 + leaks + 249, 80));
        assert!(!are_many(&flows, 100 + leaks + 250, 80));
        assert!(!are_many(&flows, i64::MAX / 1000, 80));
        // Pieces of a leak are not lost where it is looked at often.
        let mut flows = BriefFlows::new(1);
        end(&mut flows, 0, 80, MANY + 2);
        [100, 200, 300, 400, 500]
            .into_iter()
            .for_each(|at| flows.handle_end(Instant::from_millis(at), destination(80), 0));
        assert!(are_many(&flows, 500, 80));
        assert_eq!(flows.places.iter().flatten().map(|place| place.level).max(), Some(MANY + 5));
    }

    #[test]
    fn who_comes_often_keeps_the_place() {
        let mut flows = BriefFlows::new(1);
        end(&mut flows, 0, 80, FULL);
        for port in 1000..9000 {
            end(&mut flows, 0, port, 1);
            end(&mut flows, 0, 80, 1);
        }
        assert!(are_many(&flows, 0, 80));
        assert!(!are_many(&flows, 0, 1000));
        // A crowd of others in their turn, after a while.
        (0..200).for_each(|_| (1..=64).for_each(|port| end(&mut flows, 60_000, port, 1)));
        let crowded = (1..=64).filter(|&port| are_many(&flows, 60_000, port)).count();
        assert!(crowded > 56, "{crowded} of 64");
    }
}
