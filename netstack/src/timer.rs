//! Timers of many flows: a hierarchical timing wheel (Varghese and Lauck, "Hashed and Hierarchical Timing
//! Wheels", 1987).
//!
//! # Theory of operation
//! Each key (the index of a slab) has at most one timer. Deadlines are rounded *up* to ticks of one
//! millisecond, so that none fires early. A deadline is filed by the highest group of six bits in which its
//! tick differs from the current one: group *n* is the level, its value the slot. Nine levels cover every
//! representable instant, there is no overflow list.
//!
//! Two facts follow. All timers of a level are due before those of the levels above. And within a level,
//! occupied slots only lie ahead of the current one, so that the lowest set bit of the level's bitmap is the
//! next to be due. On reaching a slot of an upper level its timers are filed anew, lower; a timer is touched
//! at most once per level.
//!
//! Slots are doubly linked lists threaded through one `Vec` by key: nothing is allocated once the largest
//! key was seen.

use crate::time::Instant;

/// One timer per key, O(1) to set and to cancel.
#[derive(Debug)]
pub struct TimerWheel {
    /// The tick up to which everything has been expired.
    current: u64,
    occupied: [u64; LEVELS],
    heads: [u32; LEVELS * SLOTS],
    entries: Vec<Entry>,
}

impl Default for TimerWheel {
    fn default() -> Self {
        TimerWheel::new()
    }
}

impl TimerWheel {
    /// A wheel without timers.
    pub fn new() -> Self {
        TimerWheel { current: 0, occupied: [0; LEVELS], heads: [NIL; LEVELS * SLOTS], entries: Vec::new() }
    }

    /// Sets the timer of `key` to `at`, instead of where it was. An `at` in the past is due at once.
    ///
    /// `key` is an index: memory grows to the largest one seen, 24 bytes each. `u32::MAX` is not a key.
    pub fn schedule(&mut self, key: u32, at: Instant) {
        debug_assert_ne!(key, NIL);
        let index = key as usize;
        if index >= self.entries.len() {
            self.entries.resize(index + 1, Entry::UNUSED);
        }
        self.unlink(key);
        let micros = u64::try_from(at.total_micros()).unwrap_or(0);
        self.entries[index].tick = micros.div_ceil(TICK_MICROS).max(self.current);
        self.link(key);
    }

    /// Takes the timer of `key` out, if there is one.
    pub fn cancel(&mut self, key: u32) {
        if (key as usize) < self.entries.len() {
            self.unlink(key);
        }
    }

    /// A key whose timer is due; the timer is gone. Call until `None`, with the same `now`. Who sets a timer
    /// again meanwhile should set it later than `now`, or the loop does not end.
    pub fn expire(&mut self, now: Instant) -> Option<u32> {
        let now = u64::try_from(now.total_micros()).unwrap_or(0) / TICK_MICROS;
        while let Some(next) = self.next_slot() {
            if next.tick > now {
                break;
            }
            self.current = self.current.max(next.tick);
            let key = self.heads[next.slot];
            if next.slot < SLOTS {
                self.unlink(key);
                return Some(key);
            }
            self.cascade(next.slot);
        }
        self.current = self.current.max(now);
        None
    }

    /// When to call [`TimerWheel::expire`] next: the earliest deadline (rounded up to a millisecond), or
    /// less where timers have to be filed anew first, at most once per level.
    pub fn next_deadline(&self) -> Option<Instant> {
        let micros = self.next_slot()?.tick.saturating_mul(TICK_MICROS);
        Some(Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX)))
    }

    /// The earliest occupied slot.
    fn next_slot(&self) -> Option<NextSlot> {
        let level = self.occupied.iter().position(|&slots| slots != 0)?;
        let slot = self.occupied[level].trailing_zeros() as usize;
        let shift = level as u32 * BITS;
        let above = self.current >> (shift + BITS) << (shift + BITS);
        Some(NextSlot { slot: level * SLOTS + slot, tick: above | (slot as u64) << shift })
    }

    /// Files all timers of a slot of an upper level anew; `current` is the slot's first tick.
    fn cascade(&mut self, slot: usize) {
        let mut key = std::mem::replace(&mut self.heads[slot], NIL);
        self.occupied[slot / SLOTS] &= !(1 << (slot % SLOTS));
        while key != NIL {
            let next = self.entries[key as usize].next;
            self.link(key);
            key = next;
        }
    }

    fn link(&mut self, key: u32) {
        let tick = self.entries[key as usize].tick;
        let differing = (tick ^ self.current) | (SLOTS as u64 - 1);
        let level = (differing.ilog2() / BITS) as usize;
        let in_level = (tick >> (level as u32 * BITS)) as usize % SLOTS;
        let slot = level * SLOTS + in_level;

        let head = std::mem::replace(&mut self.heads[slot], key);
        if head != NIL {
            self.entries[head as usize].prev = key;
        }
        self.occupied[level] |= 1 << in_level;
        self.entries[key as usize] = Entry { tick, prev: NIL, next: head, slot: slot as u32 };
    }

    fn unlink(&mut self, key: u32) {
        let Entry { prev, next, slot, .. } = self.entries[key as usize];
        if slot == NIL {
            return;
        }
        self.entries[key as usize].slot = NIL;
        if next != NIL {
            self.entries[next as usize].prev = prev;
        }
        if prev != NIL {
            self.entries[prev as usize].next = next;
            return;
        }
        let slot = slot as usize;
        self.heads[slot] = next;
        if next == NIL {
            self.occupied[slot / SLOTS] &= !(1 << (slot % SLOTS));
        }
    }
}

/// Timer of one key, and its place in a list.
#[derive(Clone, Copy, Debug)]
struct Entry {
    tick: u64,
    prev: u32,
    next: u32,
    /// `level * SLOTS + slot`, or [`NIL`] while the timer is not set.
    slot: u32,
}

impl Entry {
    const UNUSED: Entry = Entry { tick: 0, prev: NIL, next: NIL, slot: NIL };
}

struct NextSlot {
    slot: usize,
    tick: u64,
}

const TICK_MICROS: u64 = 1000;
const BITS: u32 = 6;
const SLOTS: usize = 1 << BITS;
/// 54 bits: all milliseconds that an [`Instant`] of 63 bits of microseconds has.
const LEVELS: usize = 9;
const NIL: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn ms(millis: i64) -> Instant {
        Instant::from_millis(millis)
    }

    fn expired(wheel: &mut TimerWheel, now: Instant) -> Vec<u32> {
        let mut keys: Vec<u32> = std::iter::from_fn(|| wheel.expire(now)).collect();
        keys.sort_unstable();
        keys
    }

    #[test]
    fn an_empty_wheel_has_no_deadline() {
        let mut wheel = TimerWheel::new();
        assert_eq!(wheel.next_deadline(), None);
        assert_eq!(wheel.expire(ms(1000)), None);
        wheel.cancel(7);
    }

    #[test]
    fn a_timer_fires_at_its_deadline_and_not_before() {
        let mut wheel = TimerWheel::new();
        wheel.schedule(3, Instant::from_micros(1500));
        assert_eq!(wheel.next_deadline(), Some(ms(2)));
        assert_eq!(wheel.expire(Instant::from_micros(1999)), None);
        assert_eq!(expired(&mut wheel, ms(2)), [3]);
        assert_eq!(wheel.next_deadline(), None);
    }

    #[test]
    fn the_past_is_due_at_once() {
        let mut wheel = TimerWheel::new();
        assert_eq!(wheel.expire(ms(5000)), None);
        wheel.schedule(1, ms(10));
        wheel.schedule(2, Instant::from_micros(-5));
        assert!(wheel.next_deadline().unwrap() <= ms(5000));
        assert_eq!(expired(&mut wheel, ms(5000)), [1, 2]);
    }

    #[test]
    fn rescheduling_replaces() {
        let mut wheel = TimerWheel::new();
        wheel.schedule(1, ms(10));
        wheel.schedule(1, ms(300_000));
        assert_eq!(wheel.expire(ms(299_999)), None);
        wheel.schedule(1, ms(299_999));
        assert_eq!(expired(&mut wheel, ms(299_999)), [1]);
        assert_eq!(wheel.expire(ms(400_000)), None);
    }

    #[test]
    fn the_farthest_instant_has_a_place() {
        let mut wheel = TimerWheel::new();
        wheel.schedule(0, Instant::from_micros(i64::MAX));
        assert_eq!(wheel.expire(Instant::from_micros(i64::MAX - 1000)), None);
        assert!(wheel.next_deadline().is_some());
    }

    #[test]
    fn wakeups_before_a_far_deadline_are_few() {
        for deadline in [ms(63), ms(64), ms(4095), ms(300_000), ms(7_200_000), ms(604_800_001)] {
            let mut wheel = TimerWheel::new();
            wheel.expire(ms(12_345));
            let deadline = deadline + crate::time::Duration::from_millis(12_345);
            wheel.schedule(0, deadline);
            let mut wakeups = 0;
            let mut now = ms(12_345);
            loop {
                let next = wheel.next_deadline().unwrap();
                assert!(now < next && next <= deadline, "progress without busy loop");
                now = next;
                wakeups += 1;
                if wheel.expire(now).is_some() {
                    break;
                }
            }
            assert_eq!(now, deadline);
            assert!(wakeups <= LEVELS);
        }
    }

    #[test]
    fn nothing_is_allocated_once_the_largest_key_was_seen() {
        let mut wheel = TimerWheel::new();
        wheel.schedule(999, ms(1));
        let capacity = wheel.entries.capacity();
        for round in 0..10 {
            for key in 0..1000 {
                wheel.schedule(key, ms(round * 1000 + i64::from(key)));
            }
            expired(&mut wheel, ms(round * 1000 + 500));
        }
        assert_eq!(wheel.entries.capacity(), capacity);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Schedule(u32, i64),
        Cancel(u32),
        Advance(i64),
        AdvanceToNext,
    }

    fn op() -> impl Strategy<Value = Op> {
        let micros = prop_oneof![-5_000..100_000i64, 0..10_000_000i64, 0..100_000_000_000i64];
        prop_oneof![
            4 => (0..40u32, micros.clone()).prop_map(|(key, delta)| Op::Schedule(key, delta)),
            1 => (0..40u32).prop_map(Op::Cancel),
            2 => micros.prop_map(|delta| Op::Advance(delta.abs())),
            2 => Just(Op::AdvanceToNext),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_a_sorted_map(start in 0..10_000_000_000_000i64, ops in proptest::collection::vec(op(), 1..200)) {
            let mut wheel = TimerWheel::new();
            let mut model: BTreeMap<u32, i64> = BTreeMap::new(); // key -> deadline, rounded up, in µs
            let mut now = start;
            for op in ops {
                match op {
                    Op::Schedule(key, delta) => {
                        let at = (now + delta).max(0);
                        wheel.schedule(key, Instant::from_micros(at));
                        model.insert(key, (at + 999) / 1000 * 1000);
                    }
                    Op::Cancel(key) => {
                        wheel.cancel(key);
                        model.remove(&key);
                    }
                    Op::Advance(delta) => now += delta,
                    Op::AdvanceToNext => {
                        if let Some(next) = wheel.next_deadline() {
                            now = now.max(next.total_micros());
                        }
                    }
                }
                if matches!(op, Op::Advance(_) | Op::AdvanceToNext) {
                    let due: Vec<u32> =
                        model.iter().filter(|&(_, &at)| at <= now).map(|(&key, _)| key).collect();
                    model.retain(|_, at| *at > now);
                    prop_assert_eq!(expired(&mut wheel, Instant::from_micros(now)), due);
                    // Everything due is gone, so the next wake-up lies ahead.
                    prop_assert!(wheel.next_deadline().is_none_or(|next| next.total_micros() > now));
                }
                match (wheel.next_deadline(), model.values().min()) {
                    (None, None) => {}
                    (Some(next), Some(&earliest)) => {
                        // A deadline of the past counts as due at the last tick that was expired.
                        prop_assert!(next.total_micros() <= earliest.max(now));
                    }
                    other => prop_assert!(false, "{:?}", other),
                }
            }
        }
    }
}
