//! Ring memory of TCP endpoints: lent, never zeroed by us, given back.
//!
//! # Theory of operation
//! smoltcp cannot resize a ring, so "growing with use" is left to the kernel: rings are mapped at their full
//! size and a page costs memory only once it is touched; pages of idle flows are given back
//! ([`Endpoint::release_pages`](super::endpoint::Endpoint::release_pages)). What is bounded here is the worst
//! case, the sum of all ring sizes: as `limits.buffer_bytes` fills, new flows get smaller rings, and none
//! when it is full. A few regions are kept warm for the next connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::sys::region::Region;

/// Sizes of one endpoint's rings in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingSize {
    /// Ring of bytes from the child. Larger than 256 KiB loses to cache misses: smoltcp walks through all of it.
    pub(crate) from_child: usize,
    /// Ring of bytes to the child: also the retransmission buffer.
    pub(crate) to_child: usize,
}

impl RingSize {
    /// While at most 40 % of the memory is taken.
    pub(crate) const LARGE: RingSize = RingSize { from_child: 256 << 10, to_child: 1 << 20 };
    /// While at most 60 % is taken.
    pub(crate) const MEDIUM: RingSize = RingSize { from_child: 64 << 10, to_child: 128 << 10 };
    /// The rest.
    pub(crate) const SMALL: RingSize = RingSize { from_child: 16 << 10, to_child: 16 << 10 };

    /// Both rings together.
    pub(crate) fn total(self) -> usize {
        self.from_child + self.to_child
    }
}

/// Where memory comes from and goes to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Zeroed memory for rings, or `None` when it is exhausted.
    pub(crate) region: fn(usize) -> Option<Region>,
    /// Called when connections stopped coming: what the allocator holds back may go.
    pub(crate) trim: fn(),
}

/// Lends ring memory within a limit.
#[derive(Debug)]
pub(crate) struct RingPool {
    limit: usize,
    /// By all pools that share the limit.
    lent: Arc<AtomicUsize>,
    memory: Memory,
    /// Regions of [`RingSize::LARGE`] only, the size that busy connections come and go with.
    spare: Vec<Region>,
}

impl RingPool {
    /// Regions kept for reuse.
    const SPARE: usize = 32;

    /// A pool that lends at most `limit` bytes at a time.
    pub(crate) fn new(limit: usize, memory: Memory) -> Self {
        RingPool { limit, lent: Arc::default(), memory, spare: Vec::new() }
    }

    /// Counts what is lent together with others from now on; nothing is lent yet.
    pub(crate) fn share(&mut self, lent: Arc<AtomicUsize>) {
        self.lent = lent;
    }

    /// Memory for one endpoint, or `None` when the limit is reached.
    pub(crate) fn lend(&mut self) -> Option<(Region, RingSize)> {
        let size = self.size_now()?;
        let region = match self.spare.pop() {
            Some(region) if size == RingSize::LARGE => region,
            other => {
                self.spare.extend(other);
                (self.memory.region)(size.total())?
            }
        };
        self.lent.fetch_add(size.total(), Ordering::Relaxed);
        Some((region, size))
    }

    /// Takes memory back.
    pub(crate) fn give_back(&mut self, region: Region) {
        self.lent.fetch_sub(region.len(), Ordering::Relaxed);
        if region.len() == RingSize::LARGE.total() && self.spare.len() < Self::SPARE {
            self.spare.push(region);
        }
    }

    /// Lets go of the regions kept for reuse. Called when connections stopped coming.
    pub(crate) fn trim(&mut self) {
        self.spare.clear();
        (self.memory.trim)();
    }

    /// Whether regions are kept for reuse.
    pub(crate) fn has_spare(&self) -> bool {
        !self.spare.is_empty()
    }

    /// Bytes lent now.
    pub(crate) fn lent(&self) -> usize {
        self.lent.load(Ordering::Relaxed)
    }

    fn size_now(&self) -> Option<RingSize> {
        let steps = [(RingSize::LARGE, 40), (RingSize::MEDIUM, 60), (RingSize::SMALL, 100)];
        let lent = self.lent();
        let fits = |&(size, percent): &(RingSize, usize)| lent + size.total() <= self.limit / 100 * percent;
        steps.iter().find(|step| fits(step)).map(|&(size, _)| size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_shrink_as_memory_fills_and_then_none_is_lent() {
        let mut pool = RingPool::new(8 << 20, Memory { region: |len| Some(Region::heap(len)), trim: || {} });
        let mut sizes = Vec::new();
        let mut regions = Vec::new();
        while let Some((region, size)) = pool.lend() {
            sizes.push(size);
            regions.push(region);
        }
        assert!(sizes.is_sorted_by_key(|size| std::cmp::Reverse(size.total())));
        assert!(sizes.contains(&RingSize::LARGE) && sizes.contains(&RingSize::SMALL));
        assert!(pool.lent() <= 8 << 20);
        for region in regions {
            pool.give_back(region);
        }
        assert_eq!(pool.lent(), 0);
        assert_eq!(pool.lend().unwrap().1, RingSize::LARGE);
    }

    #[test]
    fn exhausted_memory_lends_nothing() {
        let mut pool = RingPool::new(8 << 20, Memory { region: |_| None, trim: || {} });
        assert!(pool.lend().is_none());
        assert_eq!(pool.lent(), 0);
    }
}
