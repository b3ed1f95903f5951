//! The wire between child and stack: seeded delay, loss and reordering.
//!
//! One queue per direction, ordered by the time of arrival, then of sending. The same seed and the same calls
//! give the same fate to every frame.

use std::collections::BTreeMap;

use crate::frame::Offload;
use crate::time::{Duration, Instant};

/// What the link does to frames. The default is a perfect link: no delay, nothing lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkConfig {
    /// Time from one end to the other.
    pub delay: Duration,
    /// Up to this much is added to the delay of each frame, so that frames overtake each other.
    pub jitter: Duration,
    /// Frames lost per thousand.
    pub loss_per_mille: u32,
    /// Seed of all chance.
    pub seed: u64,
}

/// A frame under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// What the receiver has to do, or not to do.
    pub offload: Offload,
}

/// The link.
#[derive(Debug)]
pub struct Link {
    /// What is done to frames sent from now on.
    pub config: LinkConfig,
    random: Random,
    sent: u64,
    from_child: BTreeMap<(Instant, u64), InFlight>,
    to_child: BTreeMap<(Instant, u64), InFlight>,
    /// Frames that were lost.
    pub lost: u64,
}

impl Link {
    /// An empty link.
    pub fn new(config: LinkConfig) -> Self {
        Link {
            config,
            random: Random::new(config.seed),
            sent: 0,
            from_child: BTreeMap::new(),
            to_child: BTreeMap::new(),
            lost: 0,
        }
    }

    /// The child sends.
    pub fn send_from_child(&mut self, now: Instant, frame: InFlight) {
        if let Some(at) = self.fate(now) {
            self.from_child.insert(at, frame);
        }
    }

    /// The stack sends.
    pub fn send_to_child(&mut self, now: Instant, frame: InFlight) {
        if let Some(at) = self.fate(now) {
            self.to_child.insert(at, frame);
        }
    }

    /// The next frame of the child that has arrived.
    pub fn receive_from_child(&mut self, now: Instant) -> Option<InFlight> {
        arrived(&mut self.from_child, now)
    }

    /// The next frame to the child that has arrived.
    pub fn receive_to_child(&mut self, now: Instant) -> Option<InFlight> {
        arrived(&mut self.to_child, now)
    }

    /// When the next frame arrives.
    pub fn next_arrival(&self) -> Option<Instant> {
        [&self.from_child, &self.to_child]
            .into_iter()
            .filter_map(|queue| queue.keys().next().map(|&(at, _)| at))
            .min()
    }

    fn fate(&mut self, now: Instant) -> Option<(Instant, u64)> {
        self.sent += 1;
        if self.random.below(1000) < u64::from(self.config.loss_per_mille) {
            self.lost += 1;
            return None;
        }
        let jitter = Duration::from_micros(self.random.below(self.config.jitter.total_micros() + 1));
        Some((now + self.config.delay + jitter, self.sent))
    }
}

fn arrived(queue: &mut BTreeMap<(Instant, u64), InFlight>, now: Instant) -> Option<InFlight> {
    let entry = queue.first_entry()?;
    (entry.key().0 <= now).then(|| entry.remove())
}

/// SplitMix64: small, seeded, good enough to choose fates and contents.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A sequence that `seed` determines.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    /// `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.number().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}
