//! The event loop that owns file descriptors: everything impure around a [`Stack`].
//!
//! # Theory of operation
//! One thread, one mio `Poll`, edge-triggered. A turn of the loop:
//!
//! 1. wait for events, or not at all while work is left over from the last turn;
//! 2. tell the stack about each event;
//! 3. read a batch of frames from the TAP (`TAP_BATCH`, `TAP_BATCH_BYTES`), perform actions and write frames until
//!    neither is left, and again while the TAP has more (`Turns`). Datagrams of one batch leave together.
//!
//! Batches are small: what the child sends next finds room while the host is written to.
//!
//! What a batch leaves unread is remembered (`tap_readable`, `readable`), because no new edge will tell.
//!
//! A TCP frame is copied into its flow's ring before the next one is read, so all of them share one buffer, which
//! stays in the cache; a datagram keeps its buffer until it is sent, and the next frame gets another.
//!
//! A frame that the TAP does not take for want of memory is kept and tried again: TCP would need a second to
//! notice its loss. Out of file descriptors, connections fail one by one and are counted; nothing spins,
//! because nothing is accepted here: connections for published ports are handed in (`forwards`).
//!
//! A socket that a relay takes (`host_relay`) leaves epoll and this driver's tables before it is handed over; one that
//! comes back is registered anew, which brings its events again.

pub mod clock;
mod datagrams;
mod forwards;
mod handle;
mod host_addresses;
mod host_relay;
mod host_sockets;
mod observers;
mod paths;
mod polling;
pub mod resolver;
mod settings;
mod workers;

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::time::Duration as StdDuration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use thiserror::Error;

use self::clock::MonotonicClock;
use self::datagrams::{Outgoing, OutgoingBytes, Parts, Receive};
pub use self::forwards::AdoptError;
use self::handle::Job;
pub use self::handle::{DriverHandle, Ended};
pub use self::host_relay::{HostRelay, RelayOffer};
use self::host_sockets::{Connect, HostSockets, SocketKind, SocketUser};
use self::observers::Observers;
use self::paths::Paths;
use self::polling::{Courtesy, PAUSE, Polling, Turns};
use self::resolver::{ResolverWatch, read_resolv_conf};
pub use self::settings::{CaptureRunning, DnsUpstream};
use self::workers::Crew;
pub use self::workers::Worker;
use crate::action::{Action, HostEvent, Payload};
use crate::config::{Config, DnsService, Ipv4Mode, Ipv6Mode, MapTarget};
use crate::error::DropReason;
use crate::flow::FlowId;
use crate::frame::{Frame, Gso, Offload};
use crate::offload::{IpVersion, vnet_hdr};
use crate::stack::{FRAME_BUFFER, HostIo, Stack};
use crate::sys::link::{Link, PacketSocketError};
use crate::sys::netlink::{AddressWatch, RouteWatch};
use crate::sys::random;
use crate::sys::region::{self, Region};
use crate::sys::socket::{self, SendBatch};
use crate::sys::tap::TapError;
use crate::tcp::Memory;
use crate::time::{Duration, Instant};

/// Frames read from the TAP before they are acted upon.
const TAP_BATCH: usize = 64;
/// Bytes of them: what the child sends next has to find room while these are written to the host.
const TAP_BATCH_BYTES: usize = 64 << 10;
/// The same where tunnels' super-segments are among them: with its headers one is more than `UDP_SEGMENT` takes at once, and
/// what two of them hold leaves in three portions instead of four.
const TUNNEL_BATCH_BYTES: usize = 128 << 10;
/// Actions performed before frames are written again: bytes go on while they are in the cache.
const ACTION_BATCH: usize = 4;
/// A pause before a frame is tried again that the TAP had no memory for.
const RETRY: StdDuration = StdDuration::from_millis(1);

/// How long [`Driver::finish`] waits for something to happen.
const LINGER: Duration = Duration::from_millis(500);
/// How long it lasts at most.
const LINGER_MAX: Duration = Duration::from_secs(10);

const TAP: Token = Token(usize::MAX);
const STOP: Token = Token(usize::MAX - 1);
const RESOLV_CONF: Token = Token(usize::MAX - 2);
const ROUTES: Token = Token(usize::MAX - 3);
const JOBS: Token = Token(usize::MAX - 4);
const ADDRESSES: Token = Token(usize::MAX - 5);

/// What ends a driver; one variant per system call.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DriverError {
    /// The TAP cannot be used.
    #[error("the TAP cannot be used")]
    Tap(#[from] TapError),
    /// The packet socket cannot be used.
    #[error("the packet socket cannot be used")]
    PacketSocket(#[from] PacketSocketError),
    /// epoll failed.
    #[error("waiting for events failed")]
    Poll(#[source] io::Error),
    /// A descriptor could not be watched.
    #[error("watching the {what} failed")]
    Register {
        /// Which one.
        what: &'static str,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// The overlay's port cannot be used.
    #[error(
        "UDP port {port} of the host cannot be bound for the overlay: another program or node may have it"
    )]
    Overlay {
        /// The port.
        port: u16,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// Not the queues of one TAP.
    #[error("{count} queues cannot be served, of a TAP that {}", if *.multi { "has several: 1 to 8 are needed" } else { "has one" })]
    Queues {
        /// So many.
        count: usize,
        /// Whether each is of a TAP that may have several.
        multi: bool,
    },
    /// No randomness for sequence numbers and DNS ids.
    #[error("reading randomness failed")]
    Random(#[source] io::Error),
    /// The link is gone: the TAP's network namespace has ended or the interface was deleted, or the peer of a packet
    /// socket has closed it.
    #[error("reading from the link failed: the TAP's namespace or interface, or the socket's peer, is gone")]
    TapGone(#[source] io::Error),
}

/// A stack with everything it needs: link, host sockets, clock, the host's resolvers and routes.
pub struct Driver {
    stack: Stack,
    link: Link,
    poll: Poll,
    clock: MonotonicClock,
    sockets: HostSockets,
    resolver: Option<ResolverWatch>,
    resolv_conf: PathBuf,
    routes: Option<RouteWatch>,
    addresses: Option<AddressWatch>,
    observers: Observers,
    relay: Option<Box<dyn HostRelay>>,
    slots: Vec<Box<[u8]>>,
    frame: Box<[u8]>,
    /// A frame that the TAP did not take: its length in `frame`, and what the link owes it.
    unwritten: Option<(usize, Offload)>,
    tap_readable: bool,
    polling: Polling,
    courtesy: Courtesy,
    /// Bytes moved since the last wait.
    moved: usize,
    /// Set while finishing.
    wait_at_most: Option<Duration>,
    readable: VecDeque<FlowId>,
    turns: Turns,
    /// What is left of this turn's share ([`Turns::share`]), and the streams that have to wait for the next.
    share: usize,
    put_off: VecDeque<FlowId>,
    outgoing: Vec<Outgoing>,
    parts: Parts,
    paths: Paths,
    send_batch: SendBatch,
    receive: Receive,
    jobs: Option<Receiver<Job>>,
    handle: Option<DriverHandle>,
    /// Where other workers serve the same child.
    crew: Option<Crew>,
    /// What another worker has ended by.
    failed: Option<DriverError>,
}

/// What a driver does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Duties {
    /// Everything.
    All,
    /// Flows of the child; DNS, overlay and the services of the link are another's.
    Flows,
}

impl Driver {
    /// Serves the child behind `link` as `config` says. The host's side is the network namespace of the calling
    /// thread.
    ///
    /// What it needs of the file system afterwards is resolv.conf with its symbolic links, at the same paths
    /// ([`resolver::directories`]), and only while its servers are asked: the process may go into an empty root. No
    /// socket of another kind than IP's is opened later, and no event source.
    ///
    /// The process's soft limit of open files is raised to the hard one: every flow has a socket.
    ///
    /// # Errors
    /// When the link or one of the kernel's event sources cannot be used.
    pub fn new(link: impl Into<Link>, config: Config) -> Result<Self, DriverError> {
        Self::build(link.into(), config, MonotonicClock::new(), Duties::All)
    }

    fn build(
        mut link: Link,
        mut config: Config,
        clock: MonotonicClock,
        duties: Duties,
    ) -> Result<Self, DriverError> {
        if duties == Duties::All && config.overlay().is_some() {
            link.offer_tunnels();
        }
        if config.seed == 0 {
            config.seed = random::seed().map_err(DriverError::Random)?;
        }
        match socket::raise_file_limit() {
            Ok(limit) => log::debug!("up to {limit} open files"),
            Err(error) => log::warn!("the limit of open files cannot be raised: {error}"),
        }
        let poll = Poll::new().map_err(DriverError::Poll)?;
        let registry = poll.registry().try_clone().map_err(DriverError::Poll)?;
        let watch_ipv6 = config.ipv6_mode() == Ipv6Mode::Auto;
        let polling = Polling::new(config.busy_poll());
        // Also where the configuration names servers: a sandbox may forbid to begin with it later.
        let follow_dns = duties == Duties::All && config.dns().service == DnsService::On;
        let follow_addresses = config.maps().iter().any(|map| map.host == MapTarget::HostAddress);
        let outbound = (config.outbound().0.clone(), config.outbound().1.clone());
        let memory = Memory { region: Region::mapped, trim: region::trim_heap };
        let stack = Stack::with_memory(config, link.capabilities(), clock.now(), memory);
        let mut driver = Driver {
            stack,
            link,
            poll,
            clock,
            sockets: HostSockets::new(registry, outbound),
            resolver: None,
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            routes: None,
            addresses: None,
            observers: Observers::default(),
            relay: None,
            slots: vec![zeroed(FRAME_BUFFER)],
            frame: zeroed(FRAME_BUFFER),
            unwritten: None,
            tap_readable: true,
            polling,
            courtesy: Courtesy::new(),
            moved: 0,
            wait_at_most: None,
            readable: VecDeque::new(),
            turns: Turns::new(),
            share: 0,
            put_off: VecDeque::new(),
            outgoing: Vec::new(),
            parts: Parts::default(),
            paths: Paths::default(),
            send_batch: SendBatch::new(),
            receive: Receive::new(),
            jobs: None,
            handle: None,
            crew: None,
            failed: None,
        };
        // Not for writing: a TAP is always writable, what it may lack is memory.
        driver.watch("link", driver.link.as_fd().as_raw_fd(), TAP, Interest::READABLE)?;
        if duties == Duties::All {
            driver.open_overlay()?;
        }
        if follow_dns {
            driver.follow_resolv_conf()?;
        }
        if watch_ipv6 {
            driver.follow_routes()?;
        }
        if follow_addresses {
            driver.follow_addresses()?;
        }
        Ok(driver)
    }

    /// The clock that timestamps come from.
    pub fn clock(&self) -> &MonotonicClock {
        &self.clock
    }

    /// The stack, for settings; of several workers the first's, which alone answers DNS and has the overlay.
    pub fn stack_mut(&mut self) -> &mut Stack {
        &mut self.stack
    }

    /// A way into this driver for other threads.
    ///
    /// # Errors
    /// eventfd(2), epoll_ctl(2).
    pub fn handle(&mut self) -> Result<DriverHandle, DriverError> {
        if let Some(handle) = &self.handle {
            return Ok(handle.clone());
        }
        let waker = Waker::new(self.poll.registry(), JOBS)
            .map_err(|source| DriverError::Register { what: "other threads' requests", source })?;
        let (handle, jobs) = DriverHandle::new(waker);
        self.jobs = Some(jobs);
        Ok(self.handle.insert(handle).clone())
    }

    /// Tells all handles that this driver has ended, now and ever after, whether it runs on or not. Whoever is about to
    /// wait for a thread that may be in [`DriverHandle::call`] does this first: nobody would do what that thread waits
    /// for. Descriptors in jobs that were not done are closed.
    pub fn close_handles(&mut self) {
        // Takes the jobs along that are in it.
        self.jobs = None;
    }

    /// The stack, to look at; of several workers the first's.
    pub fn stack(&self) -> &Stack {
        &self.stack
    }

    /// Whether an observer or a capture sees every frame at this moment; flows are not offered to a relay then.
    pub fn is_observed(&self) -> bool {
        self.observers.are_watching()
    }

    /// The link, with what it does for us.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Descriptors whose last close waits for all processors (RCU), some 10 to 20 ms: who ends may want somebody
    /// else to close them.
    pub fn slow_to_close(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let own = [Some(self.link.as_fd()), self.resolver.as_ref().map(|watch| watch.as_fd())];
        own.into_iter().flatten().chain(self.ended_others().iter().map(|driver| driver.link.as_fd()))
    }

    /// Serves until `stop` is readable or closed by its other end. May be called again to go on.
    ///
    /// # Errors
    /// When waiting fails, or the TAP is gone.
    pub fn run_until(&mut self, stop: impl AsFd) -> Result<(), DriverError> {
        self.watch("stop descriptor", stop.as_fd().as_raw_fd(), STOP, Interest::READABLE)?;
        // What was left when the last run was stopped brings no event.
        self.drain(self.clock.now());
        let mut events = Events::with_capacity(256);
        let result = loop {
            match self.turn(&mut events) {
                Ok(false) => {}
                Ok(true) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        let _ = self.poll.registry().deregister(&mut SourceFd(&stop.as_fd().as_raw_fd()));
        result
    }

    /// Serves on until what the child has sent is delivered: processes that have ended may leave bytes with
    /// their kernel, which it goes on sending. Ends at once where there are none, and in any case after
    /// 500 ms without progress or 10 s in all. Other workers do the same and end.
    ///
    /// # Errors
    /// When waiting fails. That the TAP is gone is no error here: the kernel has given up as well.
    pub fn finish(&mut self) -> Result<(), DriverError> {
        self.dismiss_others();
        self.finish_alone()?;
        self.await_others()
    }

    fn finish_alone(&mut self) -> Result<(), DriverError> {
        let mut events = Events::with_capacity(256);
        let start = self.clock.now();
        let mut progress = (start, self.stack.stats().frames);
        // The first turn takes only what is there.
        let mut patience = Duration::ZERO;
        loop {
            self.wait_at_most = Some(patience);
            patience = LINGER;
            match self.turn(&mut events) {
                Ok(_) => {}
                Err(DriverError::TapGone(_)) => return Ok(()),
                Err(error) => return Err(error),
            }
            let now = self.clock.now();
            if self.stack.stats().frames != progress.1 {
                progress = (now, self.stack.stats().frames);
            }
            let delivered = !self.tap_readable && !self.stack.has_undelivered();
            if delivered || now >= progress.0 + LINGER || now >= start + LINGER_MAX {
                return Ok(());
            }
        }
    }

    /// Opens the overlay's sockets, where there is an overlay.
    fn open_overlay(&mut self) -> Result<(), DriverError> {
        let Some(port) = self.stack.overlay_port() else { return Ok(()) };
        let config = self.stack.config();
        let families = [
            (IpVersion::V4, config.ipv4_mode() == Ipv4Mode::On),
            (IpVersion::V6, config.ipv6_mode() != Ipv6Mode::Off),
        ];
        for (version, _) in families.into_iter().filter(|&(_, offered)| offered) {
            let Some(flow) = self.stack.overlay_flow(version) else { continue };
            match self.sockets.open_overlay(flow, port, version == IpVersion::V6) {
                Ok(Some(own)) => log::debug!("overlay at {own}"),
                Ok(None) => log::debug!("the host has no {version:?} for the overlay"),
                Err(source) => return Err(DriverError::Overlay { port, source }),
            }
        }
        Ok(())
    }

    /// One turn of the loop; says whether to stop.
    fn turn(&mut self, events: &mut Events) -> Result<bool, DriverError> {
        let now = match self.wait(events) {
            Ok(now) => now,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(false),
            Err(error) => return Err(DriverError::Poll(error)),
        };
        self.choose_relaying();
        let mut stop = false;
        for event in events.iter() {
            match event.token() {
                TAP => self.tap_readable |= event.is_readable() || event.is_error(),
                STOP => stop = true,
                RESOLV_CONF => self.handle_resolv_conf(),
                ROUTES => self.handle_routes(now),
                ADDRESSES => self.handle_addresses(),
                JOBS => self.handle_jobs(now),
                token => self.handle_socket(now, FlowId::from_bits(token.0 as u64), event),
            }
        }
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if stop {
            return Ok(true);
        }
        if self.stack.poll_timeout().is_some_and(|at| at <= now) {
            self.stack.handle_timeout(now);
        }
        self.read_datagrams(now);
        self.give_way();
        self.share = self.turns.share(now);
        self.resume_streams(now);
        for _ in 0..self.turns.tap_batches(now) {
            self.read_tap(now)?;
            self.drain(now);
            self.give_way();
            if !self.tap_readable {
                break;
            }
        }
        Ok(false)
    }

    /// Lets others run, after many datagrams.
    fn give_way(&mut self) {
        if !self.courtesy.is_bulk() {
            return;
        }
        let start = self.clock.now();
        if self.courtesy.take_yield(start) {
            clock::yield_now();
            self.courtesy.handle_yield(start, self.clock.now());
        }
    }

    /// Waits for events or until something is due; says when that was.
    fn wait(&mut self, events: &mut Events) -> io::Result<Instant> {
        let start = self.clock.now();
        let patience = self.patience(start);
        let moved = std::mem::take(&mut self.moved);
        if patience == Some(StdDuration::ZERO) {
            self.poll.poll(events, patience)?;
            return Ok(start);
        }
        if self.courtesy.take_pause() {
            clock::pause(PAUSE);
        }
        let until = start + self.polling.budget(moved);
        let mut now = start;
        while now < until {
            self.poll.poll(events, Some(StdDuration::ZERO))?;
            if !events.is_empty() {
                break;
            }
            clock::yield_now();
            now = self.clock.now();
        }
        if now >= until {
            self.poll.poll(events, patience)?;
        }
        now = self.clock.now();
        self.polling.handle_wait(now - start);
        Ok(now)
    }

    /// How long the loop may sleep.
    fn patience(&self, now: Instant) -> Option<StdDuration> {
        if self.tap_readable || !self.readable.is_empty() || !self.put_off.is_empty() {
            return Some(StdDuration::ZERO);
        }
        let timer = self.stack.poll_timeout().map(|at| {
            // Rounded up: epoll counts milliseconds, and waking early means waking twice.
            let micros = u64::try_from(at.total_micros() - now.total_micros()).unwrap_or(0);
            StdDuration::from_millis(micros.div_ceil(1000))
        });
        let retry = self.unwritten.is_some().then_some(RETRY);
        let linger = self.wait_at_most.map(StdDuration::from);
        [timer, retry, linger].into_iter().flatten().min()
    }

    fn read_tap(&mut self, now: Instant) -> Result<(), DriverError> {
        let mut slot = 0;
        let mut bytes_read = 0;
        let mut most = TAP_BATCH_BYTES;
        for _ in 0..TAP_BATCH {
            if !self.tap_readable || bytes_read >= most {
                break;
            }
            let mut header = [0; vnet_hdr::TUNNEL_LEN];
            let len = match self.link.read(&mut header, &mut self.slots[slot]) {
                Ok(len) => len,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => {
                        self.tap_readable = false;
                        break;
                    }
                    Some(libc::EINTR) => continue,
                    // EBADFD: the device is gone, with its namespace or by deletion.
                    _ => return Err(DriverError::TapGone(error)),
                },
            };
            bytes_read += len;
            self.moved += len;
            let bytes = &mut self.slots[slot][..len];
            let offload = match vnet_hdr::accept_tunnel(&header, bytes) {
                Ok(offload) => offload,
                Err(reason) => {
                    self.stack.count_drop(reason);
                    continue;
                }
            };
            if matches!(offload.gso, Gso::Tunnel(_)) {
                most = TUNNEL_BATCH_BYTES;
            }
            self.observers.from_child(now, bytes, offload);
            // The reason is counted; nothing else is to be done about it here.
            let _ = self.stack.handle_frame(now, Frame { bytes, offload, slot: slot as u32 });
            if self.stack.refers_to_slot(slot as u32) {
                slot += 1;
                if slot == self.slots.len() {
                    self.slots.push(zeroed(FRAME_BUFFER));
                }
            }
        }
        self.pass_handovers();
        Ok(())
    }

    /// Performs actions and writes frames until there are none.
    fn drain(&mut self, now: Instant) {
        if !self.retry_frame(now) {
            return self.perform_all(now);
        }
        loop {
            let mut idle = true;
            for _ in 0..ACTION_BATCH {
                let Some(action) = self.stack.poll_action() else { break };
                idle = false;
                self.perform(now, action);
            }
            if idle {
                idle = !self.flush_datagrams(now);
            }
            while let Some(frame) = self.stack.poll_frame(now, &mut self.frame) {
                idle = false;
                if !self.write_frame(now, frame.len, frame.offload) {
                    return self.perform_all(now);
                }
            }
            if idle {
                return;
            }
        }
    }

    /// Performs all actions: datagrams among them refer to buffers that the next turn reads into.
    fn perform_all(&mut self, now: Instant) {
        while let Some(action) = self.stack.poll_action() {
            self.perform(now, action);
        }
        self.flush_datagrams(now);
    }

    /// Tries the frame again that the TAP did not take; says whether the way is free.
    fn retry_frame(&mut self, now: Instant) -> bool {
        match self.unwritten.take() {
            Some((len, offload)) => self.write_frame(now, len, offload),
            None => true,
        }
    }

    /// Writes the frame in `self.frame`; `false` if the TAP has no memory for it now.
    fn write_frame(&mut self, now: Instant, len: usize, offload: Offload) -> bool {
        let frame = &self.frame[..len];
        let header = vnet_hdr::padded(vnet_hdr::emit_for_frame(offload, frame));
        let header = &header[..self.link.header_len()];
        match self.link.write(&[IoSlice::new(header), IoSlice::new(frame)]) {
            Ok(_) => {
                self.observers.to_child(now, frame, offload);
                true
            }
            Err(error) if is_temporary(&error) => {
                self.unwritten = Some((len, offload));
                false
            }
            Err(_) => {
                self.stack.count_drop(DropReason::TapWriteFailed);
                true
            }
        }
    }

    /// Reads from streams that had to wait for their turn.
    fn resume_streams(&mut self, now: Instant) {
        for _ in 0..self.put_off.len() {
            let Some(flow) = self.put_off.pop_front() else { break };
            if let Some(socket) = self.sockets.get_mut(flow) {
                socket.put_off = false;
                self.read_stream(now, flow);
            }
        }
    }

    fn read_stream(&mut self, now: Instant, flow: FlowId) {
        let Some(socket) = self.sockets.get_mut(flow) else { return };
        if self.share == 0 {
            if !std::mem::replace(&mut socket.put_off, true) {
                self.put_off.push_back(flow);
            }
            return;
        }
        self.courtesy.handle_stream();
        let share = &mut self.share;
        let before = *share;
        let turns = &mut self.turns;
        self.stack.with_host_rx(now, flow, |room| {
            let len = room.len().min(*share);
            let read = socket.read(&mut room[..len]);
            *share -= read.bytes();
            // What was cut by the room or the share is no message, however short.
            if let HostIo::MovedAll(bytes) = read {
                turns.handle_message(now, bytes);
            }
            read
        });
        self.moved += before - self.share;
    }

    fn perform(&mut self, now: Instant, action: Action) {
        match action {
            Action::Connect { flow, remote } => {
                let user =
                    if self.stack.is_question(flow) { SocketUser::Resolver } else { SocketUser::Child };
                match self.sockets.connect(flow, remote, user) {
                    Connect::Connected => self.connected_at_once(now, flow),
                    Connect::UnderWay => {}
                    Connect::Failed(error) => {
                        self.stack.handle_host(now, flow, HostEvent::ConnectFailed(error));
                    }
                }
            }
            Action::HostWrite { flow } => {
                if let Some(socket) = self.sockets.get(flow) {
                    self.courtesy.handle_stream();
                    let mut written = 0;
                    self.stack.with_host_tx(now, flow, |bytes| {
                        let write = socket.write(bytes);
                        written += write.bytes();
                        write
                    });
                    self.turns.handle_message(now, written);
                }
            }
            Action::HostRead { flow } => self.read_stream(now, flow),
            Action::OfferRelay { flow, child, destination } => self.offer(flow, child, destination),
            Action::WithdrawRelay { flow } => self.withdraw(flow),
            Action::RecallRelay { flow } => self.recall(flow),
            Action::ShutdownWrite { flow } => {
                if let Some(socket) = self.sockets.get(flow) {
                    socket::shutdown_write(socket.fd.as_fd());
                }
            }
            Action::Close { flow, abort } => {
                // What was sent before the close has to leave before it.
                if self.outgoing.iter().any(|datagram| datagram.flow == flow) {
                    self.flush_datagrams(now);
                }
                self.sockets.close(flow, abort);
            }
            Action::OpenDatagram { flow, kind, ipv6 } => {
                if let Err(error) = self.sockets.open_datagram(flow, kind, ipv6) {
                    self.stack.handle_host(now, flow, HostEvent::OpenFailed(error));
                }
            }
            Action::SendDatagram { flow, remote, payload, gso, hop, local } => {
                let bytes = match payload {
                    Payload::InFrame { slot, range } => {
                        OutgoingBytes::Slot(slot as usize, range.start as usize..range.end as usize)
                    }
                    Payload::Owned(bytes) => OutgoingBytes::Owned(bytes),
                };
                self.outgoing.push(Outgoing { flow, remote, bytes, gso, hop, local });
            }
        }
    }

    /// What is about to be given away is not watched before.
    fn connected_at_once(&mut self, now: Instant, flow: FlowId) {
        self.stack.handle_host(now, flow, HostEvent::Connected);
        if !self.stack.is_offered(flow)
            && let Err(error) = self.sockets.watch_stream(flow)
        {
            log::debug!("watching a connection failed: {error}");
            self.stack.handle_host(now, flow, HostEvent::Reset);
        }
    }

    fn handle_socket(&mut self, now: Instant, flow: FlowId, event: &mio::event::Event) {
        let Some(socket) = self.sockets.get_mut(flow) else { return };
        if matches!(socket.kind, SocketKind::Datagram { .. }) {
            if event.is_error() {
                self.read_errors(now, flow);
            }
            if event.is_readable() {
                self.readable.push_back(flow);
            }
            return;
        }
        if event.is_read_closed() || event.is_priority() {
            socket.handle_stop();
        }
        if socket.is_connecting() {
            match self.sockets.finish_connect(flow) {
                // The same event may tell of bytes that came with the connection.
                Some(Ok(())) => self.stack.handle_host(now, flow, HostEvent::Connected),
                Some(Err(error)) => {
                    return self.stack.handle_host(now, flow, HostEvent::ConnectFailed(error));
                }
                None => return,
            }
        } else if event.is_error() && socket::take_error(socket.fd.as_fd()).is_err() {
            return self.stack.handle_host(now, flow, HostEvent::Reset);
        }
        if event.is_readable() || event.is_read_closed() {
            self.stack.handle_host(now, flow, HostEvent::Readable);
        }
        if event.is_writable() {
            self.stack.handle_host(now, flow, HostEvent::Writable);
        }
    }

    /// Starts to follow resolv.conf.
    fn follow_resolv_conf(&mut self) -> Result<(), DriverError> {
        match ResolverWatch::new(&self.resolv_conf) {
            Ok(watch) => {
                self.watch("resolv.conf", watch.as_fd().as_raw_fd(), RESOLV_CONF, Interest::READABLE)?;
                self.resolver = Some(watch);
            }
            Err(error) => log::warn!("changes of {} are not noticed: {error}", self.resolv_conf.display()),
        }
        self.read_resolvers();
        Ok(())
    }

    fn handle_resolv_conf(&mut self) {
        let Some(watch) = &mut self.resolver else { return };
        match watch.read_changes() {
            Ok(false) => {}
            Ok(true) => self.read_resolvers(),
            Err(error) => {
                log::warn!("changes of {} are no longer noticed: {error}", self.resolv_conf.display());
                self.resolver = None;
            }
        }
    }

    fn read_resolvers(&mut self) {
        match read_resolv_conf(&self.resolv_conf) {
            Ok(conf) => {
                log::debug!("resolvers: {:?}", conf.servers);
                self.stack.set_dns_servers(&conf.servers);
            }
            Err(error) => log::warn!("reading {} failed: {error}", self.resolv_conf.display()),
        }
    }

    /// Starts to follow the host's IPv6 default route.
    fn follow_routes(&mut self) -> Result<(), DriverError> {
        match RouteWatch::new() {
            Ok(watch) => {
                self.watch("routes", watch.as_raw_fd(), ROUTES, Interest::READABLE)?;
                self.routes = Some(watch);
                self.read_routes(self.clock.now());
            }
            Err(error) => log::warn!("the host's IPv6 routes cannot be followed, IPv6 is off: {error}"),
        }
        Ok(())
    }

    fn handle_routes(&mut self, now: Instant) {
        match self.routes.as_mut().map(RouteWatch::read_changes) {
            Some(Ok(true)) => self.read_routes(now),
            Some(Err(error)) => log::warn!("the host's IPv6 routes are no longer followed: {error}"),
            Some(Ok(false)) | None => {}
        }
    }

    fn read_routes(&mut self, now: Instant) {
        match self.routes.as_ref().map(RouteWatch::has_ipv6_default_route) {
            Some(Ok(available)) => self.stack.set_host_ipv6(now, available),
            Some(Err(error)) => log::warn!("asking for the host's IPv6 default route failed: {error}"),
            None => {}
        }
    }

    /// Starts to follow the host's own addresses.
    fn follow_addresses(&mut self) -> Result<(), DriverError> {
        match AddressWatch::new() {
            Ok(watch) => {
                self.watch("addresses", watch.as_raw_fd(), ADDRESSES, Interest::READABLE)?;
                self.stack.set_host_addresses(host_addresses::read(&watch));
                self.addresses = Some(watch);
            }
            Err(error) => log::warn!("the host's own addresses cannot be known: {error}"),
        }
        Ok(())
    }

    fn handle_addresses(&mut self) {
        let Some(watch) = &mut self.addresses else { return };
        match watch.read_changes() {
            Ok(true) => self.stack.set_host_addresses(host_addresses::read(watch)),
            Ok(false) => {}
            Err(error) => log::warn!("the host's addresses are no longer followed: {error}"),
        }
    }

    fn handle_jobs(&mut self, now: Instant) {
        self.take_handovers(now);
        while let Some(job) = self.jobs.as_ref().and_then(|jobs| jobs.try_recv().ok()) {
            job(self);
        }
        // A capture may have been started.
        self.choose_relaying();
    }

    fn watch(
        &self,
        what: &'static str,
        fd: i32,
        token: Token,
        interest: Interest,
    ) -> Result<(), DriverError> {
        self.poll
            .registry()
            .register(&mut SourceFd(&fd), token, interest)
            .map_err(|source| DriverError::Register { what, source })
    }
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("link", &self.link).field("stack", &self.stack).finish_non_exhaustive()
    }
}

/// Memory whose pages cost nothing until they are touched.
fn zeroed(len: usize) -> Box<[u8]> {
    vec![0; len].into_boxed_slice()
}

/// Whether a system call failed for want of memory or room that will be there again.
fn is_temporary(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM))
}
