//! A bad link: frames are delayed, lost, repeated and reordered, and there is only so much bandwidth.
//!
//! Theory of operation. [`Link`] is one direction and pure: frames go in with a time, come out at or after their due time; all chance
//! comes from a seed. A frame first waits for the line (rate), then travels (delay, plus jitter). Frames keep their order unless chance
//! picks one to be overtaken. [`LinkEmulator`] drives two of them between two TAP files with poll(2). Not handled: corruption (the
//! kernel's checksums would only make it loss), rate above what one thread can copy.

use crate::stream::Pattern;
use nix::poll::{PollFd, PollFlags, ppoll};
use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fs::File,
    io::{ErrorKind, Read, Write},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// What one direction does to frames. Chances are in parts per million.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// Travel time.
    pub delay: Duration,
    /// At most so much more, evenly spread.
    pub jitter: Duration,
    /// Chance that a frame is lost.
    pub loss_ppm: u32,
    /// Chance that a frame comes twice.
    pub repeat_ppm: u32,
    /// Chance that a frame is held back for another `delay` and so is overtaken.
    pub reorder_ppm: u32,
    /// Bytes per second; `None`: no limit.
    pub rate: Option<u64>,
    /// Frames that may be inside; more are lost.
    pub queue: usize,
    /// What chance depends on.
    pub seed: u64,
}

impl Default for LinkConfig {
    /// A perfect link.
    fn default() -> Self {
        let (delay, jitter) = (Duration::ZERO, Duration::ZERO);
        Self { delay, jitter, loss_ppm: 0, repeat_ppm: 0, reorder_ppm: 0, rate: None, queue: 4096, seed: 1 }
    }
}

/// One direction of a link. Times are counted from any fixed point and never go back.
#[derive(Debug)]
pub struct Link {
    config: LinkConfig,
    chance: Pattern,
    inside: BinaryHeap<Reverse<Travelling>>,
    count: u64,
    line_free: Duration,
    last_due: Duration,
}

/// What became of a frame that was put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It will come out.
    Travels,
    /// It will come out twice.
    TravelsTwice,
    /// Chance took it.
    Lost,
    /// There was no room.
    Overflowed,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Travelling {
    due: Duration,
    number: u64,
    frame: Vec<u8>,
}

impl Link {
    /// An empty link.
    #[must_use]
    pub fn new(config: LinkConfig) -> Self {
        let chance = Pattern::new(config.seed);
        let (line_free, last_due) = (Duration::ZERO, Duration::ZERO);
        Self { config, chance, inside: BinaryHeap::new(), count: 0, line_free, last_due }
    }

    /// Puts a frame in.
    pub fn push(&mut self, now: Duration, frame: Vec<u8>) -> Fate {
        // Always the same number of draws: what happens to one frame does not change the luck of those behind it.
        let (lost, twice, late) = (
            self.draw(self.config.loss_ppm),
            self.draw(self.config.repeat_ppm),
            self.draw(self.config.reorder_ppm),
        );
        let jitter = self.jitter();
        if lost {
            return Fate::Lost;
        }
        let copies = if twice { 2 } else { 1 };
        if self.inside.len() + copies > self.config.queue {
            return Fate::Overflowed;
        }
        let bytes = frame.len() as u64;
        let line = self
            .config
            .rate
            .map_or(Duration::ZERO, |rate| Duration::from_nanos(bytes * 1_000_000_000 / rate.max(1)));
        self.line_free = self.line_free.max(now) + line;
        let mut due = self.line_free + self.config.delay + jitter;
        if late {
            due += self.config.delay.max(Duration::from_micros(1));
        } else {
            due = due.max(self.last_due);
            self.last_due = due;
        }
        if twice {
            self.enter(due, frame.clone());
        }
        self.enter(due, frame);
        if twice { Fate::TravelsTwice } else { Fate::Travels }
    }

    /// Takes the next frame that is due.
    pub fn pop(&mut self, now: Duration) -> Option<Vec<u8>> {
        if self.next_due()? > now {
            return None;
        }
        self.inside.pop().map(|Reverse(travelling)| travelling.frame)
    }

    /// When the next frame is due.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        self.inside.peek().map(|Reverse(travelling)| travelling.due)
    }

    fn enter(&mut self, due: Duration, frame: Vec<u8>) {
        self.count += 1;
        self.inside.push(Reverse(Travelling { due, number: self.count, frame }));
    }

    fn draw(&mut self, ppm: u32) -> bool {
        self.chance.next_u64() % 1_000_000 < u64::from(ppm)
    }

    fn jitter(&mut self) -> Duration {
        let most = u64::try_from(self.config.jitter.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.chance.next_u64() % most.saturating_add(1).max(1))
    }
}

/// Two TAPs joined by a [`Link`] each way, until dropped.
#[derive(Debug)]
pub struct LinkEmulator {
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    carried: AtomicU64,
    lost: AtomicU64,
}

impl LinkEmulator {
    /// Starts the thread that carries frames.
    ///
    /// # Panics
    /// When there are no descriptors left.
    #[must_use]
    pub fn start(left: File, right: File, rightwards: LinkConfig, leftwards: LinkConfig) -> Self {
        let (stopped, stop) = nix::unistd::pipe().expect("descriptors are left");
        let counts = Arc::new(Counts::default());
        let counting = Arc::clone(&counts);
        let thread = std::thread::spawn(move || {
            carry([&left, &right], [Link::new(rightwards), Link::new(leftwards)], &stopped, &counting);
        });
        Self { stop: Some(stop), thread: Some(thread), counts }
    }

    /// Frames that came out so far, and frames that chance or a full queue took: both directions together.
    #[must_use]
    pub fn carried_and_lost(&self) -> (u64, u64) {
        (self.counts.carried.load(Ordering::Relaxed), self.counts.lost.load(Ordering::Relaxed))
    }
}

impl Drop for LinkEmulator {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // If it panicked the test has failed by now, for want of frames.
            let _ = thread.join();
        }
    }
}

fn carry(ends: [&File; 2], mut links: [Link; 2], stopped: &OwnedFd, counts: &Counts) {
    for end in ends {
        let flags = nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(end, nix::fcntl::FcntlArg::F_SETFL(flags)).expect("fcntl of a TAP");
    }
    let start = Instant::now();
    let mut buffer = vec![0; 65536 + 64];
    loop {
        let now = start.elapsed();
        let due = links.iter().filter_map(Link::next_due).min();
        let timeout = due.map(|due| due.saturating_sub(now).into());
        let mut fds = [
            PollFd::new(ends[0].as_fd(), PollFlags::POLLIN),
            PollFd::new(ends[1].as_fd(), PollFlags::POLLIN),
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        ];
        if let Err(error) = ppoll(&mut fds, timeout, None) {
            assert_eq!(error, nix::errno::Errno::EINTR, "ppoll");
            continue;
        }
        if fds[2].any().unwrap_or(true) {
            return;
        }
        for (from, link) in links.iter_mut().enumerate() {
            let mut reader = ends[from];
            // A bounded batch, so that a flood one way does not starve the other.
            for _ in 0..64 {
                match reader.read(&mut buffer) {
                    Ok(n) => match link.push(start.elapsed(), buffer[..n].to_vec()) {
                        Fate::Lost | Fate::Overflowed => drop(counts.lost.fetch_add(1, Ordering::Relaxed)),
                        Fate::Travels | Fate::TravelsTwice => {}
                    },
                    // EIO: the interface is down, which is no concern of a cable's.
                    Err(error)
                        if error.kind() == ErrorKind::WouldBlock
                            || error.raw_os_error() == Some(libc::EIO) =>
                    {
                        break;
                    }
                    Err(_) => return,
                }
            }
            let mut writer = ends[1 - from];
            while let Some(frame) = link.pop(start.elapsed()) {
                if writer.write_all(&frame).is_ok() {
                    counts.carried.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config() -> impl Strategy<Value = LinkConfig> {
        let chance = || prop_oneof![Just(0u32), 0u32..1_000_000];
        let rate = prop_oneof![Just(None), (1_000u64..10_000_000).prop_map(Some)];
        (0u64..50, 0u64..20, chance(), chance(), chance(), rate, 1usize..64, any::<u64>()).prop_map(
            |(delay, jitter, loss_ppm, repeat_ppm, reorder_ppm, rate, queue, seed)| LinkConfig {
                delay: Duration::from_millis(delay),
                jitter: Duration::from_millis(jitter),
                loss_ppm,
                repeat_ppm,
                reorder_ppm,
                rate,
                queue,
                seed,
            },
        )
    }

    /// Pushes frame i at the i-th time and pops whatever is due in between; the (time, number) of what came out, and the fates.
    fn play(config: &LinkConfig, gaps: &[u64]) -> (Vec<(Duration, u32)>, Vec<Fate>) {
        let mut link = Link::new(config.clone());
        let (mut now, mut out, mut fates) = (Duration::ZERO, Vec::new(), Vec::new());
        let take = |link: &mut Link, until: Duration, out: &mut Vec<_>| {
            while let Some(due) = link.next_due().filter(|due| *due <= until) {
                assert!(
                    link.pop(due.saturating_sub(Duration::from_nanos(1))).is_none() || due.is_zero(),
                    "before its time"
                );
                let frame = link.pop(due).expect("is due");
                out.push((due, u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]])));
            }
        };
        for (i, gap) in gaps.iter().enumerate() {
            now += Duration::from_micros(*gap);
            take(&mut link, now, &mut out);
            let mut frame = u32::try_from(i).expect("few").to_be_bytes().to_vec();
            frame.resize(100, 0);
            fates.push(link.push(now, frame));
        }
        take(&mut link, Duration::MAX, &mut out);
        (out, fates)
    }

    proptest! {
        #[test]
        fn every_frame_comes_out_as_often_as_its_fate_says(config in config(), gaps in prop::collection::vec(0u64..5_000, 0..100)) {
            let (out, fates) = play(&config, &gaps);
            for (i, fate) in fates.iter().enumerate() {
                let times = out.iter().filter(|(_, number)| *number as usize == i).count();
                let expected = match fate { Fate::Travels => 1, Fate::TravelsTwice => 2, Fate::Lost | Fate::Overflowed => 0 };
                prop_assert_eq!(times, expected);
            }
        }

        #[test]
        fn nothing_arrives_before_its_delay_or_faster_than_the_rate(config in config(), gaps in prop::collection::vec(0u64..5_000, 1..100)) {
            let (out, fates) = play(&config, &gaps);
            let mut now = Duration::ZERO;
            let sent = gaps.iter().map(|gap| { now += Duration::from_micros(*gap); now }).collect::<Vec<_>>();
            for (due, number) in &out {
                prop_assert!(*due >= sent[*number as usize] + config.delay);
            }
            if let Some(rate) = config.rate {
                // All that travelled was on the line between the first push and the last arrival.
                let travelled = fates.iter().filter(|fate| matches!(fate, Fate::Travels | Fate::TravelsTwice)).count() as u64;
                if let Some(last) = out.iter().map(|(due, _)| *due).max() {
                    let line = Duration::from_nanos(100 * 1_000_000_000 / rate);
                    prop_assert!(last >= sent[0] + line * u32::try_from(travelled).expect("few"));
                }
            }
        }

        #[test]
        fn order_is_kept_unless_reordering_is_asked_for(mut config in config(), gaps in prop::collection::vec(0u64..5_000, 0..100)) {
            config.reorder_ppm = 0;
            let (out, _) = play(&config, &gaps);
            prop_assert!(out.is_sorted_by_key(|(_, number)| *number));
        }

        #[test]
        fn the_same_seed_gives_the_same_history(config in config(), gaps in prop::collection::vec(0u64..5_000, 0..100)) {
            prop_assert_eq!(play(&config, &gaps), play(&config, &gaps));
        }
    }

    #[test]
    fn loss_is_about_what_was_asked_for() {
        let mut link =
            Link::new(LinkConfig { loss_ppm: 100_000, queue: usize::MAX, ..LinkConfig::default() });
        let lost = (0..10_000).filter(|_| link.push(Duration::ZERO, vec![0; 4]) == Fate::Lost).count();
        assert!((900..1100).contains(&lost), "{lost} of 10000 at 10 %");
    }
}
