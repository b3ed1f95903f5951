//! The egress relay alone: the forwarder in the test's process, and a stand-in for the engine on the TAP, which connects on the host
//! for every SYN that the child sends and offers the connection.

use crate::{
    locate,
    process::DEADLINE,
    world::{Netns, World},
};
use forwarder::driver::{
    ChildLine, Config, Egress, EgressError, EgressEvents, EgressMode, ForwardDriver, Handle,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, PipeReader, PipeWriter, Read},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    os::fd::{AsFd, OwnedFd},
    process::{Child, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
};

/// The child's addresses.
pub const CHILD4: &str = "10.0.2.100";
/// As [`CHILD4`].
pub const CHILD6: &str = "fd00::100";

/// What became of an offer.
#[derive(Debug)]
pub enum Outcome {
    /// It is joined.
    Joined(u64),
    /// It came back.
    Refused(u64, TcpStream, EgressError),
    /// It has ended, after so many bytes to the host and from it.
    Ended(u64, u64, u64),
}

/// See the module.
#[derive(Debug)]
pub struct EgressLab {
    /// The driver.
    pub handle: Handle,
    outcomes: Receiver<Outcome>,
    strays: Arc<AtomicUsize>,
    stopper: Option<PipeWriter>,
    threads: Vec<JoinHandle<()>>,
    agent: Child,
}

impl EgressLab {
    /// Gives `child` a TAP that leads to the world and relays what it connects to.
    ///
    /// # Panics
    /// When a part cannot be started.
    #[track_caller]
    #[must_use]
    pub fn start(world: &World, child: &Netns) -> Self {
        Self::start_with(world, child, Config { egress: EgressMode::AtOnce, ..Config::default() })
    }

    /// The same with a configuration of one's own.
    ///
    /// # Panics
    /// When a part cannot be started.
    #[track_caller]
    #[must_use]
    pub fn start_with(world: &World, child: &Netns, config: Config) -> Self {
        let tap = child.tap("tap0");
        let gateway = "lladdr 02:00:00:00:00:01 dev tap0 nud permanent";
        child.ip(&format!(
            "addr add {CHILD4}/24 dev tap0\naddr add {CHILD6}/64 dev tap0 nodad\nlink set tap0 up\n\
             neigh add 10.0.2.2 {gateway}\nneigh add fd00::2 {gateway}\n\
             route add default via 10.0.2.2\nroute add default via fd00::2\n"
        ));
        child.wait_for_address6(CHILD6);
        let (line, theirs) = ChildLine::pair().expect("socketpair");
        let argv = locate::probe_argv(&["forward-agent", &child.pid().to_string()]);
        let agent = world.host.command(&argv).stdin(Stdio::from(theirs)).spawn().expect("the probe starts");
        let mut driver = ForwardDriver::new(config, Some(line), None).expect("a driver");
        let (sender, outcomes) = channel();
        let offered = Arc::new(Mutex::new(BTreeMap::new()));
        driver.set_egress_events(Box::new(Teller { sender, offered: Arc::clone(&offered) }));
        let handle = driver.handle();
        let (stop, stopper) = io::pipe().expect("a pipe");
        let strays = Arc::new(AtomicUsize::new(0));
        let engine = StandIn {
            tap,
            host: world.inside(world.host.pid()),
            handle: handle.clone(),
            offered,
            strays: Arc::clone(&strays),
            last: 0,
        };
        let stop_engine = stop.try_clone().expect("descriptors are left");
        let threads = vec![
            thread::spawn(move || driver.run_until(stop).expect("the child lives")),
            thread::spawn(move || engine.run(&stop_engine)),
        ];
        Self { handle, outcomes, strays, stopper: Some(stopper), threads, agent }
    }

    /// Segments that left by the TAP and belong to no handshake.
    #[must_use]
    pub fn strays(&self) -> usize {
        self.strays.load(Ordering::Relaxed)
    }

    /// What was told next.
    ///
    /// # Panics
    /// When nothing is told in time.
    #[track_caller]
    pub fn outcome(&self) -> Outcome {
        self.outcomes.recv_timeout(DEADLINE).expect("an outcome within the deadline")
    }

    /// The next outcome, which has to be a joined connection.
    ///
    /// # Panics
    /// When it is another.
    #[track_caller]
    pub fn joined(&self) -> u64 {
        match self.outcome() {
            Outcome::Joined(id) => id,
            other => panic!("joined was expected, not {other:?}"),
        }
    }

    /// The next outcome, which has to be an end: bytes to the host and from it.
    ///
    /// # Panics
    /// When it is another.
    #[track_caller]
    pub fn ended(&self) -> (u64, u64) {
        match self.outcome() {
            Outcome::Ended(_, to_host, from_host) => (to_host, from_host),
            other => panic!("an end was expected, not {other:?}"),
        }
    }

    /// The next outcome, which has to be an offer that came back.
    ///
    /// # Panics
    /// When it is another.
    #[track_caller]
    pub fn refused(&self) -> (TcpStream, EgressError) {
        match self.outcome() {
            Outcome::Refused(_, stream, why) => (stream, why),
            other => panic!("a refusal was expected, not {other:?}"),
        }
    }
}

impl Drop for EgressLab {
    fn drop(&mut self) {
        drop(self.stopper.take());
        for thread in self.threads.drain(..) {
            // A panic there was told already.
            let _ = thread.join();
        }
        // It ends when the driver's end of its line does.
        let _ = self.agent.wait();
    }
}

struct Teller {
    sender: Sender<Outcome>,
    offered: Arc<Mutex<BTreeMap<(SocketAddr, SocketAddr), u64>>>,
}

impl Teller {
    fn over(&self, over: u64) {
        self.offered.lock().expect("no holder panicked").retain(|_, id| *id != over);
    }
}

impl EgressEvents for Teller {
    fn joined(&self, id: u64) {
        let _ = self.sender.send(Outcome::Joined(id));
    }

    fn refused(&self, id: u64, stream: OwnedFd, why: EgressError) {
        self.over(id);
        let _ = self.sender.send(Outcome::Refused(id, stream.into(), why));
    }

    fn ended(&self, id: u64, to_host: u64, from_host: u64) {
        self.over(id);
        let _ = self.sender.send(Outcome::Ended(id, to_host, from_host));
    }
}

/// The engine as far as it is needed here.
struct StandIn {
    tap: File,
    host: Netns,
    handle: Handle,
    offered: Arc<Mutex<BTreeMap<(SocketAddr, SocketAddr), u64>>>,
    strays: Arc<AtomicUsize>,
    last: u64,
}

impl StandIn {
    fn run(mut self, stop: &PipeReader) {
        let mut frame = vec![0; 65536];
        loop {
            let mut fds = [
                PollFd::new(self.tap.as_fd(), PollFlags::POLLIN),
                PollFd::new(stop.as_fd(), PollFlags::POLLIN),
            ];
            poll(&mut fds, PollTimeout::NONE).expect("poll");
            if fds[1].revents().is_some_and(|events| !events.is_empty()) {
                return;
            }
            let Ok(len) = self.tap.read(&mut frame) else { return };
            if let Some(segment) = Segment::parse(&frame[..len]) {
                self.handle(segment);
            }
        }
    }

    fn handle(&mut self, segment: Segment) {
        let Segment { source, destination, flags } = segment;
        if flags & (SYN | ACK) != SYN {
            self.strays.fetch_add(1, Ordering::Relaxed);
            return;
        }
        {
            let mut offered = self.offered.lock().expect("no holder panicked");
            if offered.contains_key(&(source, destination)) {
                return;
            }
            self.last += 1;
            offered.insert((source, destination), self.last);
        }
        let Ok(stream) = self.host.connect(&destination.to_string()) else { return };
        stream.set_nonblocking(true).expect("the socket works");
        let offer = Egress { stream: stream.into(), child: source, destination, id: self.last };
        if self.handle.relay(offer).is_err() {
            self.offered.lock().expect("no holder panicked").remove(&(source, destination));
        }
    }
}

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// What is of interest in a frame.
struct Segment {
    source: SocketAddr,
    destination: SocketAddr,
    flags: u8,
}

impl Segment {
    fn parse(frame: &[u8]) -> Option<Self> {
        let packet = frame.get(14..)?;
        let (addresses, tcp) = match frame.get(12..14)? {
            [0x08, 0x00] if packet.get(9) == Some(&6) => {
                let address = |at| Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?).into());
                ([address(12)?, address(16)?], packet.get(usize::from(packet[0] & 15) * 4..)?)
            }
            [0x86, 0xdd] if packet.get(6) == Some(&6) => {
                let address = |at| Some(Ipv6Addr::from(*packet.get(at..)?.first_chunk::<16>()?).into());
                ([address(8)?, address(24)?], packet.get(40..)?)
            }
            _ => return None,
        };
        let port = |at| Some(u16::from_be_bytes(*tcp.get(at..)?.first_chunk()?));
        Some(Segment {
            source: SocketAddr::new(addresses[0], port(0)?),
            destination: SocketAddr::new(addresses[1], port(2)?),
            flags: *tcp.get(13)?,
        })
    }
}
