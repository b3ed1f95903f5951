//! Several workers for one child: a thread, a driver and a queue of the TAP each.
//!
//! # Theory of operation
//! Which worker has a packet decides the stack ([`crate::stack`], `sharing`). Here is what lies between their threads:
//!
//! - *Frames* for another worker go into its inbox, a bounded channel; one that is full drops them
//!   ([`DropReason::WorkerBusy`]). The worker is woken once for all that it has not looked at yet.
//! - *Jobs*: the first worker is the driver that everybody knows. What concerns all (policy, published UDP ports, counters, flows)
//!   it asks of the others and waits; they never wait for it, nor for each other. What concerns one flow goes to its worker
//!   directly ([`DriverHandle::post_for`]).
//! - *Observers* are shared, see [`super::observers`].
//! - *The end*: the first sends the others home; each delivers what its flows have left and gives its driver back, whose counters are
//!   counted on. One that fails ends the first with its error.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};

use mio::Events;

use super::clock::MonotonicClock;
use super::handle::DriverHandle;
use super::observers::Observers;
use super::{Driver, DriverError, Duties, HostRelay};
use crate::config::Config;
use crate::error::DropReason;
use crate::flow::WorkerId;
use crate::flow::policy::EgressPolicy;
use crate::stack::{Claims, FlowInfo, Handover, Stack};
use crate::stats::Stats;
use crate::sys::link::Link;
use crate::sys::random;
use crate::sys::tap::Tap;
use crate::time::Instant;

/// Frames in the inbox of a worker; the memory of all of them is bounded by 64 KiB each.
const INBOX: usize = 512;

/// A worker beside the first, to be run on a thread of its own.
#[derive(Debug)]
pub struct Worker(Driver);

impl Worker {
    /// Which one.
    pub fn id(&self) -> WorkerId {
        self.0.stack.worker()
    }

    /// As [`Driver::set_relay`], for the flows of this worker.
    pub fn set_relay(&mut self, relay: Option<Box<dyn HostRelay>>) {
        self.0.set_relay(relay);
    }

    /// Serves until the first worker ends or this one fails, which ends the first.
    pub fn run(self) {
        let Worker(mut driver) = self;
        if let Some(Crew { doors, .. }) = &driver.crew
            && let Some(own) = doors.get(driver.stack.worker().index())
        {
            own.runs.store(true, Ordering::SeqCst);
        }
        let result = driver.work();
        // Whoever waits for an answer gets none.
        driver.close_handles();
        let Some(Crew { doors, place: Place::Other { back, .. }, .. }) = &driver.crew else { return };
        let (doors, back) = (doors.clone(), back.clone());
        if let (Err(error), Some(first)) = (result, doors.first()) {
            // The first may have ended for the same reason.
            let _ = first.handle.post(move |first| first.failed = Some(error));
        }
        let _ = back.send(driver);
        if let Some(first) = doors.first() {
            first.handle.wake();
        }
    }
}

/// A driver's part in the common work.
pub(super) struct Crew {
    inbox: Receiver<Handover>,
    /// By worker.
    doors: Arc<[Door]>,
    place: Place,
}

/// How others reach a worker.
#[derive(Clone)]
struct Door {
    frames: SyncSender<Handover>,
    /// It was woken and has not looked yet.
    called: Arc<AtomicBool>,
    /// Its thread is there.
    runs: Arc<AtomicBool>,
    handle: DriverHandle,
}

impl Door {
    fn runs(&self) -> bool {
        self.runs.load(Ordering::SeqCst)
    }
}

enum Place {
    First {
        /// The others, as they come home.
        home: Receiver<Driver>,
        /// Those that have.
        ended: Vec<Driver>,
    },
    Other {
        back: Sender<Driver>,
        dismissed: Option<Dismissal>,
    },
}

/// How a worker is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dismissal {
    /// When what the child has sent is delivered.
    Finish,
    /// At once.
    Stop,
}

impl Driver {
    /// Serves the child behind the queues of one TAP, made by [`Tap::open_queues_in_current_netns`]: the first by this driver, each
    /// further one by a [`Worker`], which the caller runs on a thread of its own. This driver stands for all: what is set, asked
    /// and observed here concerns every worker, and [`Driver::finish`] is the end of them all.
    ///
    /// With one queue it is what [`Driver::new`] makes.
    ///
    /// # Errors
    /// As [`Driver::new`]; no queue, or more than [`WorkerId::MOST`], or several of a TAP without queues.
    pub fn with_queues(taps: Vec<Tap>, config: Config) -> Result<(Self, Vec<Worker>), DriverError> {
        let count = taps.len();
        let multi = taps.iter().all(Tap::is_multi_queue);
        if !(count == 1 || multi) {
            return Err(DriverError::Queues { count, multi });
        }
        Self::with_links(taps.into_iter().map(Link::from), config)
    }

    fn with_links(
        mut links: impl ExactSizeIterator<Item = Link>,
        config: Config,
    ) -> Result<(Self, Vec<Worker>), DriverError> {
        let count = links.len();
        let first = links.next().filter(|_| count <= WorkerId::MOST);
        let first = first.ok_or(DriverError::Queues { count, multi: true })?;
        if count == 1 {
            return Ok((Driver::new(first, config)?, Vec::new()));
        }
        let clock = MonotonicClock::new();
        let mut drivers = vec![Driver::build(first, config.clone(), clock, Duties::All)?];
        for mut link in links {
            if let (Link::Tap(tap), Some(Driver { link: Link::Tap(first), .. })) =
                (&mut link, drivers.first())
            {
                tap.adopt_header_of(first);
            }
            let mut config = Stack::config_of_others(config.clone());
            config.seed = random::seed().map_err(DriverError::Random)?;
            drivers.push(Driver::build(link, config, clock, Duties::Flows)?);
        }
        let claims = Arc::new(Claims::new(count, random::seed().map_err(DriverError::Random)?));
        let (back, home) = mpsc::channel();
        let mut doors = Vec::with_capacity(count);
        let mut inboxes = Vec::with_capacity(count);
        for driver in &mut drivers {
            let (frames, inbox) = mpsc::sync_channel(INBOX);
            doors.push(Door {
                frames,
                called: Arc::default(),
                runs: Arc::default(),
                handle: driver.handle()?,
            });
            inboxes.push(inbox);
        }
        let doors: Arc<[Door]> = doors.into();
        let mut home = Some(home);
        let observers = Observers::default();
        for ((index, driver), inbox) in drivers.iter_mut().enumerate().zip(inboxes) {
            let place = match home.take() {
                Some(home) => Place::First { home, ended: Vec::new() },
                None => Place::Other { back: back.clone(), dismissed: None },
            };
            driver.stack.share(WorkerId(index as u8), claims.clone());
            driver.observers = observers.clone();
            driver.crew = Some(Crew { inbox, doors: doors.clone(), place });
        }
        let mut drivers = drivers.into_iter();
        let mut first = drivers.next().ok_or(DriverError::Queues { count, multi: true })?;
        let handles = doors.iter().map(|door| door.handle.clone()).collect();
        first.handle = first.handle.take().map(|handle| handle.among(handles));
        Ok((first, drivers.map(Worker).collect()))
    }

    /// Replaces the egress rules of every worker; see [`Stack::set_policy`].
    pub fn set_policy(&mut self, policy: EgressPolicy) {
        let others = policy.clone();
        self.stack.set_policy(policy);
        self.tell_others(move |driver| driver.stack.set_policy(others.clone()));
    }

    /// How often each rule decided, by all workers; see [`Stack::policy_hits`].
    pub fn policy_hits(&self) -> Vec<u64> {
        let mut sum = self.stack.policy_hits().to_vec();
        for hits in self.ask_others(|driver| driver.stack.policy_hits().to_vec()) {
            sum.iter_mut().zip(hits).for_each(|(sum, hits)| *sum += hits);
        }
        sum
    }

    /// Counters so far, of all workers.
    pub fn stats(&self) -> Stats {
        let mut sum = self.stack.stats();
        self.ask_others(|driver| driver.stack.stats()).iter().for_each(|stats| sum.add(stats));
        sum
    }

    /// Flows of the child at this moment, of all workers.
    pub fn flows(&self) -> impl Iterator<Item = FlowInfo> + '_ {
        let others = self.ask_others(|driver| driver.stack.flows().collect::<Vec<_>>());
        self.stack.flows().chain(others.into_iter().flatten())
    }

    /// Tells the others which UDP ports are published.
    pub(super) fn tell_published(&mut self) {
        if self.crew.is_some() {
            let published = self.stack.published();
            self.stack.set_published(published.clone());
            self.tell_others(move |driver| driver.stack.set_published(published.clone()));
        }
    }

    /// Takes the frames that others have handed over.
    pub(super) fn take_handovers(&mut self, now: Instant) {
        let Some(crew) = &self.crew else { return };
        let own = self.stack.worker();
        if let Some(door) = crew.doors.get(own.index()) {
            door.called.store(false, Ordering::SeqCst);
        }
        for taken in 1.. {
            let Ok(handover) = crew.inbox.try_recv() else { break };
            // The reason is counted.
            let _ = self.stack.handle_handover(now, handover);
            if taken == INBOX {
                // The rest in the next turn.
                crew.wake(own);
                break;
            }
        }
        self.pass_handovers();
    }

    /// Hands frames of others over.
    pub(super) fn pass_handovers(&mut self) {
        let Some(crew) = &self.crew else { return };
        while let Some(handover) = self.stack.poll_handover() {
            let to = handover.to;
            let Some(door) = crew.doors.get(to.index()) else { continue };
            match door.frames.try_send(handover) {
                Ok(()) => crew.wake(to),
                Err(_) => self.stack.count_drop(DropReason::WorkerBusy),
            }
        }
    }

    /// Sends the others home, where they were not.
    pub(super) fn dismiss_others(&self) {
        if let Some(crew) = &self.crew {
            crew.dismiss(Dismissal::Finish);
        }
    }

    /// Serves on until all others are home: packets of theirs come here, too.
    pub(super) fn await_others(&mut self) -> Result<(), DriverError> {
        if !self.are_others_out() {
            return Ok(());
        }
        let mut events = Events::with_capacity(256);
        while self.are_others_out() {
            match self.turn(&mut events) {
                Ok(_) => {}
                // They notice it, too.
                Err(DriverError::TapGone(_)) => {
                    while self.are_others_out() && self.let_one_in() {}
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits until one is home; says whether one is.
    fn let_one_in(&mut self) -> bool {
        let Some(Crew { place: Place::First { home, ended }, .. }) = &mut self.crew else { return false };
        home.recv().map(|driver| ended.push(driver)).is_ok()
    }

    /// Lets in who is back.
    fn are_others_out(&mut self) -> bool {
        let Some(Crew { doors, place: Place::First { home, ended }, .. }) = &mut self.crew else {
            return false;
        };
        ended.extend(home.try_iter());
        ended.len() < doors.iter().skip(1).filter(|door| door.runs()).count()
    }

    /// Workers that have ended.
    pub(super) fn ended_others(&self) -> &[Driver] {
        match &self.crew {
            Some(Crew { place: Place::First { ended, .. }, .. }) => ended,
            _ => &[],
        }
    }

    /// Asks every other worker, the ended ones here.
    fn ask_others<R: Send + 'static>(&self, ask: impl Fn(&Driver) -> R + Clone + Send + 'static) -> Vec<R> {
        let Some(Crew { doors, place: Place::First { ended, .. }, .. }) = &self.crew else {
            return Vec::new();
        };
        let running = |door: &Door| {
            let ask = ask.clone();
            door.handle.call(move |driver| ask(driver)).ok()
        };
        doors
            .iter()
            .skip(1)
            .filter(|door| door.runs())
            .filter_map(running)
            .chain(ended.iter().map(&ask))
            .collect()
    }

    /// Has every other worker do `job`, and waits until it is done.
    fn tell_others(&self, job: impl Fn(&mut Driver) + Clone + Send + 'static) {
        let Some(Crew { doors, place: Place::First { .. }, .. }) = &self.crew else { return };
        for door in doors.iter().skip(1) {
            // It may have ended. One that does not run yet does it before it reads a frame.
            let _ = if door.runs() { door.handle.call(job.clone()) } else { door.handle.post(job.clone()) };
        }
    }

    /// The loop of a worker beside the first.
    fn work(&mut self) -> Result<(), DriverError> {
        let mut events = Events::with_capacity(256);
        self.drain(self.clock.now());
        loop {
            self.turn(&mut events)?;
            match &self.crew {
                Some(Crew { place: Place::Other { dismissed: None, .. }, .. }) => {}
                Some(Crew { place: Place::Other { dismissed: Some(Dismissal::Finish), .. }, .. }) => {
                    return self.finish_alone();
                }
                _ => return Ok(()),
            }
        }
    }
}

impl Crew {
    fn wake(&self, worker: WorkerId) {
        if let Some(door) = self.doors.get(worker.index())
            && !door.called.swap(true, Ordering::SeqCst)
        {
            door.handle.wake();
        }
    }

    fn dismiss(&self, how: Dismissal) {
        if let Place::First { .. } = self.place {
            for door in self.doors.iter().skip(1) {
                // It may have ended.
                let _ = door.handle.post(move |driver| driver.handle_dismissal(how));
            }
        }
    }
}

impl Driver {
    fn handle_dismissal(&mut self, how: Dismissal) {
        if let Some(Crew { place: Place::Other { dismissed, .. }, .. }) = &mut self.crew {
            *dismissed = Some(how);
        }
    }
}

/// Nobody works on without the first.
impl Drop for Crew {
    fn drop(&mut self) {
        self.dismiss(Dismissal::Stop);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::thread::{self, JoinHandle};

    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

    use super::*;
    use crate::config::Ipv6Mode;
    use crate::sys::link::PacketSocket;
    use crate::testing::frames::{CHILD, GATEWAY, Seen, arp_request, echo_request};

    /// Two workers, whose queues are sockets: the test chooses which one a frame comes by.
    fn two() -> (Driver, Worker, [OwnedFd; 2]) {
        let pair =
            || socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let ((first, a), (second, b)) = (pair(), pair());
        let links = [first, second].map(|link| Link::from(PacketSocket::new(link).unwrap()));
        let config = Config::builder().ipv6_mode(Ipv6Mode::Off).build().unwrap();
        let (driver, mut workers) = Driver::with_links(links.into_iter(), config).unwrap();
        (driver, workers.remove(0), [a, b])
    }

    #[expect(clippy::disallowed_methods, reason = "workers are for threads")]
    fn run(worker: Worker) -> JoinHandle<()> {
        thread::spawn(|| worker.run())
    }

    fn write(queue: &OwnedFd, frame: &[u8]) {
        send(queue.as_raw_fd(), frame, MsgFlags::empty()).unwrap();
    }

    /// The next frame to the child, which has to be there.
    #[track_caller]
    fn read(queue: &OwnedFd) -> Seen {
        let mut frame = [0; 2048];
        let len = recv(queue.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT).unwrap();
        Seen::read(&frame[..len])
    }

    #[test]
    fn one_queue_has_no_workers_and_none_is_refused() {
        let config = Config::builder().build().unwrap();
        let error = Driver::with_queues(Vec::new(), config).unwrap_err();
        assert!(matches!(error, DriverError::Queues { count: 0, .. }), "{error}");
    }

    #[test]
    fn frames_of_the_link_are_answered_by_the_first_whichever_queue_they_come_by() {
        let (mut first, worker, [queue, other]) = two();
        let thread = run(worker);
        write(&other, &arp_request(CHILD, GATEWAY));
        write(&other, &echo_request(CHILD.into(), GATEWAY.into(), 1, 1, b"ping"));
        // Until the worker has read them, who then is sent home.
        while first.stats().frames.packets_from_child < 2 {}
        first.finish().unwrap();
        thread.join().unwrap();
        assert!(matches!(read(&queue), Seen::Arp(_)));
        assert!(matches!(read(&queue), Seen::Icmp { kind: (0, 0), .. }));
        let stats = first.stats();
        assert_eq!((stats.frames.packets_from_child, stats.frames.packets_to_child), (2, 2), "each once");
    }

    #[test]
    fn an_inbox_that_is_full_takes_no_more_and_counts_it() {
        let (mut first, worker, [queue, other]) = two();
        let thread = run(worker);
        for _ in 0..INBOX + 88 {
            write(&other, &arp_request(CHILD, GATEWAY));
        }
        // The first does not look.
        while first.stats().drops(DropReason::WorkerBusy) < 88 {}
        for _ in 0..2 {
            first.finish().unwrap();
        }
        thread.join().unwrap();
        assert_eq!(first.stats().drops(DropReason::WorkerBusy), 88);
        let answers = first.stats().frames.packets_to_child;
        assert!(answers > 0 && matches!(read(&queue), Seen::Arp(_)), "{answers}");
    }

    #[test]
    fn what_is_set_before_the_threads_are_there_is_set_for_all() {
        let (mut first, worker, _queues) = two();
        first.set_policy("deny any".parse().unwrap());
        let thread = run(worker);
        assert_eq!(first.policy_hits(), [0]);
        let rules = first.ask_others(|driver| driver.stack.policy().rules().len());
        assert!(rules.iter().all(|&rules| rules == 1), "{rules:?}");
        first.finish().unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn a_worker_whose_queue_is_gone_ends_the_first() {
        let (mut first, worker, [_queue, other]) = two();
        let (stop, _never) = std::io::pipe().unwrap();
        drop(other);
        let thread = run(worker);
        assert!(matches!(first.run_until(&stop), Err(DriverError::TapGone(_))));
        thread.join().unwrap();
    }

    #[test]
    fn nobody_works_on_without_the_first() {
        let (first, worker, _queues) = two();
        let thread = run(worker);
        drop(first);
        thread.join().unwrap();
    }
}
