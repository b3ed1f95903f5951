//! A bad link: frames are delayed, lost, repeated and reordered, and there is only so much bandwidth.
//!
//! Theory of operation. [`Link`] is one direction and pure: frames go in with a time, come out at or after their due time; all chance
//! comes from a seed. A frame first waits for the line (rate), then travels (delay, plus jitter). Frames keep their order unless chance
//! picks one to be overtaken. A super-segment is one frame for the kernels at both ends and many on the line: each of its segments takes
//! its time, has to find room in the queue and may be lost, and what survives side by side arrives together. The fate of the n-th segment
//! depends on the seed and on n alone, so that whoever is compared meets the same luck. [`LinkEmulator`] drives two links between two TAP
//! files with poll(2). Not handled: corruption (the kernel's checksums would only make it loss), segmentation of UDP (the kernels do that).

pub mod frame;

use crate::{stream::Pattern, sys};
use frame::Frame;
use nix::poll::{PollFd, PollFlags, ppoll};
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    fs::File,
    io::{ErrorKind, Read, Write},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, Sender, channel},
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
    /// Chance that a segment is lost.
    pub loss_ppm: u32,
    /// Chance that a frame comes twice.
    pub repeat_ppm: u32,
    /// Chance that a frame is held back for another `delay` and so is overtaken.
    pub reorder_ppm: u32,
    /// Bytes per second; `None`: no limit.
    pub rate: Option<u64>,
    /// Bytes that may wait for the line; more are lost. Without a rate nothing waits.
    pub queue: usize,
    /// What chance depends on.
    pub seed: u64,
}

impl Default for LinkConfig {
    /// A perfect link.
    fn default() -> Self {
        let (delay, jitter) = (Duration::ZERO, Duration::ZERO);
        Self {
            delay,
            jitter,
            loss_ppm: 0,
            repeat_ppm: 0,
            reorder_ppm: 0,
            rate: None,
            queue: 4 << 20,
            seed: 1,
        }
    }
}

/// One direction of a link. Times are counted from any fixed point and never go back.
#[derive(Debug)]
pub struct Link {
    config: LinkConfig,
    /// Which segments are lost.
    loss: Pattern,
    /// What else happens to frames.
    chance: Pattern,
    in_order: VecDeque<Travelling>,
    overtaken: BinaryHeap<Reverse<Travelling>>,
    count: u64,
    line_free: Duration,
    last_due: Duration,
}

/// What became of the segments of a frame that was put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fate {
    /// So many will come out, those that come twice counted twice.
    pub travelling: usize,
    /// Chance took them.
    pub lost: usize,
    /// There was no room.
    pub overflowed: usize,
}

#[derive(Debug)]
struct Travelling {
    due: Duration,
    number: u64,
    frame: Frame,
}

impl Travelling {
    fn turn(&self) -> (Duration, u64) {
        (self.due, self.number)
    }
}

impl PartialEq for Travelling {
    fn eq(&self, other: &Self) -> bool {
        self.turn() == other.turn()
    }
}

impl Eq for Travelling {}

impl PartialOrd for Travelling {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Travelling {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.turn().cmp(&other.turn())
    }
}

impl Link {
    /// An empty link.
    #[must_use]
    pub fn new(config: LinkConfig) -> Self {
        let (loss, chance) = (Pattern::new(config.seed), Pattern::new(!config.seed));
        let (in_order, overtaken) = (VecDeque::new(), BinaryHeap::new());
        let (line_free, last_due) = (Duration::ZERO, Duration::ZERO);
        Self { config, loss, chance, in_order, overtaken, count: 0, line_free, last_due }
    }

    /// Puts a frame in.
    pub fn push(&mut self, now: Duration, frame: Frame) -> Fate {
        // Always the same number of draws: what happens to one frame does not change the luck of those behind it.
        let twice = happens(&mut self.chance, self.config.repeat_ppm);
        let late = happens(&mut self.chance, self.config.reorder_ppm);
        let jitter = self.jitter();
        let copies = if twice { 2 } else { 1 };
        let (mut fate, segments) = (Fate::default(), frame.segments());
        let mut arrives = 0..0;
        for nth in 0..segments {
            let lost = happens(&mut self.loss, self.config.loss_ppm);
            if !lost && self.takes(now, frame.line_bytes(nth)) {
                fate.travelling += copies;
                arrives.end = nth + 1;
                continue;
            }
            fate.lost += usize::from(lost);
            fate.overflowed += usize::from(!lost);
            if !arrives.is_empty() {
                self.enter(frame.part(&arrives), jitter, twice, late);
            }
            arrives = nth + 1..nth + 1;
        }
        if arrives == (0..segments) {
            self.enter(frame, jitter, twice, late);
        } else if !arrives.is_empty() {
            self.enter(frame.part(&arrives), jitter, twice, late);
        }
        fate
    }

    /// Takes the next frame that is due.
    pub fn pop(&mut self, now: Duration) -> Option<Frame> {
        if self.next_due()? > now {
            return None;
        }
        let (first, late) = (self.in_order.front(), self.overtaken.peek());
        let is_late = late.is_some_and(|Reverse(late)| first.is_none_or(|first| late < first));
        let next =
            if is_late { self.overtaken.pop().map(|Reverse(late)| late) } else { self.in_order.pop_front() };
        next.map(|travelling| travelling.frame)
    }

    /// When the next frame is due.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        let late = self.overtaken.peek().map(|Reverse(travelling)| travelling.due);
        self.in_order.front().map(|travelling| travelling.due).into_iter().chain(late).min()
    }

    /// Whether the queue has room for so many bytes more, which are on the line then.
    fn takes(&mut self, now: Duration, bytes: usize) -> bool {
        let Some(rate) = self.config.rate else {
            self.line_free = now;
            return true;
        };
        let rate = u128::from(rate.max(1));
        let waiting = self.line_free.saturating_sub(now).as_nanos() * rate / 1_000_000_000;
        // An empty queue takes a frame of any size.
        if waiting > 0 && waiting + bytes as u128 > self.config.queue as u128 {
            return false;
        }
        let line = u64::try_from(bytes as u128 * 1_000_000_000 / rate).unwrap_or(u64::MAX);
        self.line_free = self.line_free.max(now) + Duration::from_nanos(line);
        true
    }

    /// The last of its bytes has just left the line.
    fn enter(&mut self, frame: Frame, jitter: Duration, twice: bool, late: bool) {
        let mut due = self.line_free + self.config.delay + jitter;
        if late {
            due += self.config.delay.max(Duration::from_micros(1));
        } else {
            due = due.max(self.last_due);
            self.last_due = due;
        }
        if twice {
            self.travel(due, frame.clone(), late);
        }
        self.travel(due, frame, late);
    }

    fn travel(&mut self, due: Duration, frame: Frame, late: bool) {
        self.count += 1;
        let travelling = Travelling { due, number: self.count, frame };
        if late {
            self.overtaken.push(Reverse(travelling));
        } else {
            self.in_order.push_back(travelling);
        }
    }

    fn jitter(&mut self) -> Duration {
        let most = u64::try_from(self.config.jitter.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.chance.next_u64() % most.saturating_add(1).max(1))
    }
}

fn happens(chance: &mut Pattern, ppm: u32) -> bool {
    chance.next_u64() % 1_000_000 < u64::from(ppm)
}

/// Two TAPs joined by a [`Link`] each way, until dropped.
#[derive(Debug)]
pub struct LinkEmulator {
    /// A byte announces an order, the end is the end.
    wake: Option<File>,
    orders: Sender<Order>,
    thread: Option<JoinHandle<()>>,
    counts: Arc<Counts>,
}

/// What the link is to be from now on.
#[derive(Debug)]
struct Order {
    links: [LinkConfig; 2],
    done: Sender<()>,
}

#[derive(Debug, Default)]
struct Counts {
    carried: AtomicU64,
    lost: AtomicU64,
}

impl LinkEmulator {
    /// Starts the thread that carries frames between two TAPs with virtio-net headers.
    ///
    /// # Panics
    /// When there are no descriptors left, or the files are no such TAPs.
    #[must_use]
    pub fn start(left: File, right: File, rightwards: LinkConfig, leftwards: LinkConfig) -> Self {
        for end in [&left, &right] {
            let flags = nix::fcntl::OFlag::O_NONBLOCK;
            nix::fcntl::fcntl(end, nix::fcntl::FcntlArg::F_SETFL(flags)).expect("fcntl of a TAP");
            sys::take_super_segments(end).expect("a TAP with virtio-net headers");
        }
        let (woken, wake) = nix::unistd::pipe().expect("descriptors are left");
        let (orders, ordered) = channel();
        let counts = Arc::new(Counts::default());
        let counting = Arc::clone(&counts);
        let thread = std::thread::spawn(move || {
            // The default slack of 50 us is much of a short way.
            let _ = nix::sys::prctl::set_timerslack(1);
            let links = [Link::new(rightwards), Link::new(leftwards)];
            carry([&left, &right], links, &woken, &ordered, &counting);
        });
        Self { wake: Some(wake.into()), orders, thread: Some(thread), counts }
    }

    /// Makes it another link. What travels is lost.
    ///
    /// # Panics
    /// When the thread has panicked.
    pub fn replace(&self, rightwards: LinkConfig, leftwards: LinkConfig) {
        let (done, is_done) = channel();
        self.orders
            .send(Order { links: [rightwards, leftwards], done })
            .expect("the thread lives as long as we");
        let mut wake = self.wake.as_ref().expect("taken on drop only");
        wake.write_all(&[0]).expect("the thread holds the other end");
        is_done.recv().expect("the thread answers");
    }

    /// Segments that came out so far, and those that chance or a full queue took: both directions together.
    #[must_use]
    pub fn carried_and_lost(&self) -> (u64, u64) {
        (self.counts.carried.load(Ordering::Relaxed), self.counts.lost.load(Ordering::Relaxed))
    }
}

impl Drop for LinkEmulator {
    fn drop(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            // If it panicked the test has failed by now, for want of frames.
            let _ = thread.join();
        }
    }
}

fn carry(ends: [&File; 2], mut links: [Link; 2], woken: &OwnedFd, orders: &Receiver<Order>, counts: &Counts) {
    let start = Instant::now();
    let mut buffer = vec![0; 65536 + 64];
    loop {
        let due = links.iter().filter_map(Link::next_due).min();
        let timeout = due.map(|due| due.saturating_sub(start.elapsed()).into());
        let mut fds = [
            PollFd::new(ends[0].as_fd(), PollFlags::POLLIN),
            PollFd::new(ends[1].as_fd(), PollFlags::POLLIN),
            PollFd::new(woken.as_fd(), PollFlags::POLLIN),
        ];
        if let Err(error) = ppoll(&mut fds, timeout, None) {
            assert_eq!(error, nix::errno::Errno::EINTR, "ppoll");
            continue;
        }
        if fds[2].any().unwrap_or(true) {
            if nix::unistd::read(woken, &mut [0]) != Ok(1) {
                return;
            }
            if let Ok(order) = orders.recv() {
                links = order.links.map(Link::new);
                // Who asked waits, unless the wait was given up.
                let _ = order.done.send(());
            }
        }
        for (from, link) in links.iter_mut().enumerate() {
            let mut reader = ends[from];
            // A bounded batch, so that a flood one way does not starve the other.
            for _ in 0..64 {
                match reader.read(&mut buffer) {
                    Ok(n) => {
                        let Some(frame) = Frame::new(buffer[..n].to_vec()) else { continue };
                        let fate = link.push(start.elapsed(), frame);
                        counts.lost.fetch_add((fate.lost + fate.overflowed) as u64, Ordering::Relaxed);
                    }
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
                if writer.write_all(frame.as_bytes()).is_ok() {
                    counts.carried.fetch_add(frame.segments() as u64, Ordering::Relaxed);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        frame::tests::{numbered, super_segment},
        *,
    };
    use netstack::offload::IpVersion;
    use proptest::prelude::*;

    fn config() -> impl Strategy<Value = LinkConfig> {
        let chance = || prop_oneof![Just(0u32), 0u32..1_000_000];
        let rate = prop_oneof![Just(None), (1_000u64..10_000_000).prop_map(Some)];
        (0u64..50, 0u64..20, chance(), chance(), chance(), rate, 1usize..6_400, any::<u64>()).prop_map(
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
                out.push((due, link.pop(due).expect("is due").number()));
            }
        };
        for (i, gap) in gaps.iter().enumerate() {
            now += Duration::from_micros(*gap);
            take(&mut link, now, &mut out);
            fates.push(link.push(now, numbered(u32::try_from(i).expect("few"), 100)));
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
                prop_assert_eq!(times, fate.travelling);
                prop_assert_eq!(times.min(1) + fate.lost + fate.overflowed, 1);
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
                let travelled = fates.iter().filter(|fate| fate.travelling > 0).count() as u64;
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

        #[test]
        fn each_segment_of_a_super_segment_has_a_fate(mut config in config(), payloads in prop::collection::vec(1usize..60_000, 1..10)) {
            config.queue *= 100;
            let mut link = Link::new(config);
            for payload in payloads {
                let frame = Frame::new(super_segment(IpVersion::V4, payload, 1448)).expect("a header");
                let segments = frame.segments();
                let fate = link.push(Duration::ZERO, frame);
                let out = std::iter::from_fn(|| link.pop(Duration::MAX)).map(|frame| frame.segments()).sum::<usize>();
                prop_assert_eq!(out, fate.travelling);
                let arriving = segments - fate.lost - fate.overflowed;
                prop_assert!(fate.travelling == arriving || fate.travelling == 2 * arriving);
            }
        }

        #[test]
        fn luck_is_the_same_however_segments_are_joined(loss_ppm in 0u32..1_000_000, cuts in prop::collection::vec(1usize..40, 1..10)) {
            let config = LinkConfig { loss_ppm, ..LinkConfig::default() };
            let (mut joined, mut single) = (Link::new(config.clone()), Link::new(config));
            for segments in cuts {
                let frame = Frame::new(super_segment(IpVersion::V6, segments * 1000, 1000)).expect("a header");
                let alone = (0..segments).map(|_| single.push(Duration::ZERO, numbered(0, 1000)).lost).sum::<usize>();
                prop_assert_eq!(joined.push(Duration::ZERO, frame).lost, alone);
            }
        }
    }

    #[test]
    fn loss_is_about_what_was_asked_for() {
        let mut link = Link::new(LinkConfig { loss_ppm: 100_000, ..LinkConfig::default() });
        let lost = (0..10_000).map(|n| link.push(Duration::ZERO, numbered(n, 4)).lost).sum::<usize>();
        assert!((900..1100).contains(&lost), "{lost} of 10000 at 10 %");
    }

    #[test]
    fn a_super_segment_that_does_not_fit_loses_its_tail() {
        let config = LinkConfig { rate: Some(1_000_000), queue: 10_000, ..LinkConfig::default() };
        let mut link = Link::new(config);
        let frame = Frame::new(super_segment(IpVersion::V4, 20_000, 946)).expect("a header");
        // A thousand bytes each on the line, the first of which does not wait.
        let fate = link.push(Duration::ZERO, frame);
        assert_eq!(fate, Fate { travelling: 10, lost: 0, overflowed: 12 });
        assert_eq!(link.next_due(), Some(Duration::from_millis(10)));
        assert_eq!(link.pop(Duration::from_millis(10)).expect("is due").segments(), 10);
    }
}
