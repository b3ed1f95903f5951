//! Table of flows: O(1) from key to flow and from id to flow, whatever their number.
//!
//! # Theory of operation
//! Flows live in a slab; a hash index over their keys holds slab indices. The hash is keyed by the
//! configuration's seed, because the remote end chooses addresses and ports. A [`FlowId`] carries the
//! generation of its slot, so that events for a flow that is gone find nothing.

use std::hash::BuildHasher;

use hashbrown::HashTable;
use slab::Slab;

use super::{FlowId, FlowKey, WORKER_SHIFT, WorkerId};

/// One entry: the caller's value with its key.
#[derive(Debug)]
pub struct Entry<T> {
    /// Key the entry is found by.
    pub key: FlowKey,
    /// The value.
    pub value: T,
    generation: u32,
}

/// Flows by id and by key.
#[derive(Debug)]
pub struct FlowTable<T> {
    entries: Slab<Entry<T>>,
    index: HashTable<u32>,
    hasher: foldhash::fast::FixedState,
    generation: u32,
    worker: WorkerId,
}

impl<T> FlowTable<T> {
    /// An empty table whose hash is keyed by `seed`.
    pub fn new(seed: u64) -> Self {
        FlowTable {
            entries: Slab::new(),
            index: HashTable::new(),
            hasher: foldhash::fast::FixedState::with_seed(seed),
            generation: 0,
            worker: WorkerId::FIRST,
        }
    }

    /// Has ids name `worker` from now on.
    pub fn set_worker(&mut self, worker: WorkerId) {
        self.worker = worker;
    }

    /// Adds a flow. The key must not be in the table.
    pub fn insert(&mut self, key: FlowKey, value: T) -> FlowId {
        let id = self.insert_hidden(key, value);
        let (entries, hasher) = (&self.entries, &self.hasher);
        self.index.insert_unique(hash(hasher, &key), id.index, |&at| hash_of(hasher, entries, at));
        id
    }

    /// Adds a flow that is never found by its key: one of the engine's own.
    pub fn insert_hidden(&mut self, key: FlowKey, value: T) -> FlowId {
        self.generation = (self.generation + 1) & ((1 << WORKER_SHIFT) - 1);
        let generation = u32::from(self.worker.0) << WORKER_SHIFT | self.generation;
        let index = self.entries.insert(Entry { key, value, generation }) as u32;
        FlowId { index, generation }
    }

    /// Takes a flow's key from it: it is not found by it any more, and another may have it.
    pub fn hide(&mut self, id: FlowId) {
        let Some(entry) = self.get(id) else { return };
        let hash = hash(&self.hasher, &entry.key);
        if let Ok(found) = self.index.find_entry(hash, |&at| at == id.index) {
            found.remove();
        }
    }

    /// Removes a flow.
    pub fn remove(&mut self, id: FlowId) -> Option<Entry<T>> {
        self.get(id)?;
        self.hide(id);
        self.entries.try_remove(id.index as usize)
    }

    /// The flow of that key.
    pub fn find(&self, key: &FlowKey) -> Option<FlowId> {
        let hash = hash(&self.hasher, key);
        let found = self.index.find(hash, |&at| self.entries.get(at as usize).is_some_and(|e| e.key == *key));
        found.and_then(|&at| self.id_at(at))
    }

    /// The flow of that id.
    pub fn get(&self, id: FlowId) -> Option<&Entry<T>> {
        self.entries.get(id.index as usize).filter(|entry| entry.generation == id.generation)
    }

    /// The flow of that id.
    pub fn get_mut(&mut self, id: FlowId) -> Option<&mut Entry<T>> {
        self.entries.get_mut(id.index as usize).filter(|entry| entry.generation == id.generation)
    }

    /// The id of the flow in slot `index`, for timers keyed by slot.
    pub fn id_at(&self, index: u32) -> Option<FlowId> {
        self.entries.get(index as usize).map(|entry| FlowId { index, generation: entry.generation })
    }

    /// Number of flows.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no flow.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All flows in slot order.
    pub fn iter(&self) -> impl Iterator<Item = (FlowId, &Entry<T>)> {
        self.entries
            .iter()
            .map(|(index, entry)| (FlowId { index: index as u32, generation: entry.generation }, entry))
    }
}

fn hash(hasher: &foldhash::fast::FixedState, key: &FlowKey) -> u64 {
    hasher.hash_one(key)
}

fn hash_of<T>(hasher: &foldhash::fast::FixedState, entries: &Slab<Entry<T>>, at: u32) -> u64 {
    entries.get(at as usize).map_or(0, |entry| hash(hasher, &entry.key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Protocol;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn key(n: u16) -> FlowKey {
        FlowKey {
            protocol: Protocol::Tcp,
            child: ([10, 0, 42, 100], n).into(),
            remote: ([192, 0, 2, 1], 80).into(),
        }
    }

    #[test]
    fn a_stale_id_finds_nothing() {
        let mut table = FlowTable::new(1);
        let old = table.insert(key(1), ());
        assert!(table.remove(old).is_some());
        let new = table.insert(key(1), ());
        assert_eq!(old.index, new.index);
        assert!(table.get(old).is_none());
        assert!(table.remove(old).is_none());
        assert_eq!(table.find(&key(1)), Some(new));
        assert_eq!(FlowId::from_bits(new.to_bits()), new);
        table.set_worker(WorkerId(7));
        let other = table.insert(key(2), ());
        assert_eq!((FlowId::from_bits(other.to_bits()), other.worker()), (other, WorkerId(7)));
    }

    #[test]
    fn a_hidden_flow_leaves_its_key_to_another() {
        let mut table = FlowTable::new(1);
        let old = table.insert(key(1), 'a');
        table.hide(old);
        assert_eq!(table.find(&key(1)), None);
        let new = table.insert(key(1), 'b');
        assert_eq!(table.find(&key(1)), Some(new));
        assert_eq!(table.remove(old).map(|entry| entry.value), Some('a'));
        assert_eq!(table.find(&key(1)), Some(new));
    }

    proptest! {
        #[test]
        fn behaves_like_a_map(steps in prop::collection::vec((any::<bool>(), 0u16..64), 1..400)) {
            let mut table = FlowTable::new(7);
            let mut model = BTreeMap::new();
            for (insert, n) in steps {
                match (insert, model.get(&n).copied()) {
                    (true, None) => { model.insert(n, table.insert(key(n), n)); }
                    (false, Some(id)) => {
                        prop_assert_eq!(table.remove(id).map(|e| e.value), Some(n));
                        model.remove(&n);
                    }
                    _ => {}
                }
                prop_assert_eq!(table.len(), model.len());
                for n in 0..64 {
                    prop_assert_eq!(table.find(&key(n)), model.get(&n).copied());
                }
            }
        }
    }
}
