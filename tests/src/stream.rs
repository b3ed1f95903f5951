//! Byte streams that can be made from a seed and compared by a 64-bit sum.

/// An endless stream of pseudo-random bytes that depends on the seed alone. xorshift64* (Vigna 2016).
#[derive(Debug, Clone)]
pub struct Pattern {
    state: u64,
    word: [u8; 8],
    used: usize,
}

impl Pattern {
    /// The stream of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: mix(seed) | 1, word: [0; 8], used: 8 }
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Fills `buffer` with the bytes that come next; the cuts between calls do not matter.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        let mut rest = buffer;
        while !rest.is_empty() {
            if self.used == 8 && rest.len() >= 8 {
                let (head, tail) = rest.split_at_mut(8);
                head.copy_from_slice(&self.next_u64().to_le_bytes());
                rest = tail;
                continue;
            }
            if self.used == 8 {
                self.word = self.next_u64().to_le_bytes();
                self.used = 0;
            }
            let n = rest.len().min(8 - self.used);
            let (head, tail) = rest.split_at_mut(n);
            head.copy_from_slice(&self.word[self.used..self.used + n]);
            self.used += n;
            rest = tail;
        }
    }

    /// The first `n` bytes of `seed`'s stream.
    #[must_use]
    pub fn bytes(seed: u64, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        Self::new(seed).fill(&mut bytes);
        bytes
    }
}

/// A fast 64-bit sum over a byte stream that notices lost, repeated, swapped and changed bytes; not for adversaries.
#[derive(Debug, Clone, Default)]
pub struct StreamHash {
    state: u64,
    carry: [u8; 8],
    held: usize,
    bytes: u64,
}

impl StreamHash {
    /// Takes the bytes that come next; the cuts between calls do not matter.
    pub fn update(&mut self, mut data: &[u8]) {
        self.bytes += data.len() as u64;
        if self.held > 0 {
            let n = data.len().min(8 - self.held);
            self.carry[self.held..self.held + n].copy_from_slice(&data[..n]);
            self.held += n;
            data = &data[n..];
            if self.held < 8 {
                return;
            }
            self.absorb(u64::from_le_bytes(self.carry));
            self.held = 0;
        }
        let (words, rest) = data.as_chunks::<8>();
        for word in words {
            self.absorb(u64::from_le_bytes(*word));
        }
        self.carry[..rest.len()].copy_from_slice(rest);
        self.held = rest.len();
    }

    /// How many bytes were taken.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The sum of all bytes taken so far.
    #[must_use]
    pub fn sum(&self) -> u64 {
        let mut last = [0; 8];
        last[..self.held].copy_from_slice(&self.carry[..self.held]);
        mix(self.state ^ u64::from_le_bytes(last)) ^ mix(self.bytes)
    }

    /// The sum of the first `n` bytes of [`Pattern::new(seed)`](Pattern::new).
    #[must_use]
    pub fn of_pattern(seed: u64, n: u64) -> u64 {
        let mut pattern = Pattern::new(seed);
        let mut hash = Self::default();
        let mut buffer = vec![0; 64 << 10];
        let mut left = n;
        while left > 0 {
            let len = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            pattern.fill(&mut buffer[..len]);
            hash.update(&buffer[..len]);
            left -= len as u64;
        }
        hash.sum()
    }

    fn absorb(&mut self, word: u64) {
        self.state = (self.state ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

/// The finaliser of splitmix64.
fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn cuts_change_neither_pattern_nor_sum(seed: u64, cuts in prop::collection::vec(0usize..40, 0..20)) {
            let total: usize = cuts.iter().sum();
            let whole = Pattern::bytes(seed, total);
            let mut pattern = Pattern::new(seed);
            let mut hash = StreamHash::default();
            let mut parts = Vec::new();
            for cut in cuts {
                let mut part = vec![0; cut];
                pattern.fill(&mut part);
                hash.update(&part);
                parts.extend(part);
            }
            prop_assert_eq!(&parts, &whole);
            prop_assert_eq!(hash.sum(), StreamHash::of_pattern(seed, total as u64));
        }

        #[test]
        fn a_changed_lost_or_swapped_byte_changes_the_sum(seed: u64, n in 2usize..200, at in 0usize..199) {
            let good = Pattern::bytes(seed, n);
            let at = at % n;
            let sum = |bytes: &[u8]| { let mut hash = StreamHash::default(); hash.update(bytes); hash.sum() };
            let mut changed = good.clone();
            changed[at] ^= 1;
            prop_assert_ne!(sum(&changed), sum(&good));
            let mut lost = good.clone();
            lost.remove(at);
            prop_assert_ne!(sum(&lost), sum(&good));
            let mut swapped = good.clone();
            swapped.swap(at, (at + 1) % n);
            prop_assert!(swapped == good || sum(&swapped) != sum(&good));
        }
    }
}
