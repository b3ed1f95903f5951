//! Order of last use among slab indices: intrusive list, O(1) everything.

const NIL: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Links {
    older: u32,
    newer: u32,
}

/// Keys from least to most recently used.
#[derive(Debug)]
pub(crate) struct LruList {
    links: Vec<Links>,
    oldest: u32,
    newest: u32,
    len: usize,
}

impl Default for LruList {
    fn default() -> Self {
        LruList { links: Vec::new(), oldest: NIL, newest: NIL, len: 0 }
    }
}

impl LruList {
    /// Adds `key`, which must not be in the list, as the most recently used.
    pub(crate) fn insert(&mut self, key: u32) {
        let needed = key as usize + 1;
        if self.links.len() < needed {
            self.links.resize(needed, Links { older: NIL, newer: NIL });
        }
        self.links[key as usize] = Links { older: self.newest, newer: NIL };
        match self.newest {
            NIL => self.oldest = key,
            newest => self.links[newest as usize].newer = key,
        }
        self.newest = key;
        self.len += 1;
    }

    /// Removes `key`, which must be in the list.
    pub(crate) fn remove(&mut self, key: u32) {
        let Links { older, newer } = self.links[key as usize];
        match older {
            NIL => self.oldest = newer,
            older => self.links[older as usize].newer = newer,
        }
        match newer {
            NIL => self.newest = older,
            newer => self.links[newer as usize].older = older,
        }
        self.len -= 1;
    }

    /// Makes `key`, which must be in the list, the most recently used.
    pub(crate) fn touch(&mut self, key: u32) {
        if self.newest != key {
            self.remove(key);
            self.insert(key);
        }
    }

    /// The least recently used key.
    pub(crate) fn oldest(&self) -> Option<u32> {
        (self.oldest != NIL).then_some(self.oldest)
    }

    /// Number of keys.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn behaves_like_a_vector(steps in prop::collection::vec((0u8..3, 0u32..16), 1..300)) {
            let mut list = LruList::default();
            let mut model: Vec<u32> = Vec::new();
            for (step, key) in steps {
                let at = model.iter().position(|&k| k == key);
                match (step, at) {
                    (0, None) => { list.insert(key); model.push(key); }
                    (1, Some(at)) => { list.remove(key); model.remove(at); }
                    (2, Some(at)) => { list.touch(key); model.remove(at); model.push(key); }
                    _ => {}
                }
                prop_assert_eq!(list.oldest(), model.first().copied());
                prop_assert_eq!(list.len(), model.len());
            }
        }
    }
}
