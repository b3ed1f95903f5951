//! Agents that do not do what they should: somebody in the child may have stopped one, or speak for it.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::eventfd::EventFd;
use nix::sys::socket::MsgFlags;

use super::{
    ChildAddress, ChildLine, ChildNetwork, Config, DriverError, Egress, EgressAbility, EgressError,
    EgressEvents, EgressMode, EgressStep, ForwardDriver, Handle, TapPath, Timeouts, WAITING,
};
use crate::protocol::{self, Abilities, MAX_MESSAGE, Reply, Request};
use crate::spec::Source;
use crate::sys::scm;

/// The agent's end of the line, played by the test.
struct FakeAgent(OwnedFd);

impl FakeAgent {
    fn hear(&self) -> Option<Request> {
        let mut buffer = [0; MAX_MESSAGE];
        let length = scm::receive(self.0.as_fd(), &mut buffer, &mut Vec::new(), MsgFlags::empty()).ok()?;
        Request::decode(&buffer[..length]).ok()
    }

    fn say(&self, reply: Reply, fds: &[OwnedFd]) {
        scm::send(self.0.as_fd(), &reply.encode(), fds, MsgFlags::empty()).unwrap();
    }

    fn greet(&self) {
        assert!(matches!(self.hear(), Some(Request::Hello { .. })));
        let abilities = Abilities { transparent_v4: true, transparent_v6: true, ..Abilities::default() };
        self.say(Reply::Hello { abilities }, &[]);
    }
}

/// A driver that runs until its agent goes, and the port that it publishes.
struct Driver {
    thread: JoinHandle<Result<(), DriverError>>,
    address: SocketAddr,
}

impl Driver {
    fn start(timeouts: Timeouts) -> (Self, FakeAgent) {
        let (line, agent) = ChildLine::pair().unwrap();
        let side =
            ChildAddress { address: [10, 0, 2, 100].into(), prefix: 24, gateway: [10, 0, 2, 2].into() };
        let child = ChildNetwork { ipv4: Some(side), ipv6: None };
        let driver = ForwardDriver::new(Config { child, timeouts, ..Config::default() }, Some(line), None);
        let driver = driver.unwrap();
        let handle = driver.handle();
        let thread = thread::spawn(move || driver.run_until(EventFd::new().unwrap()));
        let port = handle.add("127.0.0.1:0:80/tcp".parse().unwrap()).unwrap().spec.fields().parent_port;
        (Driver { thread, address: SocketAddr::from(([127, 0, 0, 1], port)) }, FakeAgent(agent))
    }

    fn connect(&self) -> TcpStream {
        let client = TcpStream::connect(self.address).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client
    }

    fn end(self) -> DriverError {
        self.thread.join().unwrap().unwrap_err()
    }
}

#[track_caller]
fn assert_refused(mut client: TcpStream) {
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn accepting_goes_on_when_an_agent_has_no_sockets() {
    let (driver, agent) = Driver::start(Timeouts::default());
    agent.greet();
    let clients: Vec<TcpStream> = (0..WAITING + 100).map(|_| driver.connect()).collect();
    let agent = thread::spawn(move || {
        let none = |kind| Reply::Sockets { kind, count: 0, errno: libc::EPERM };
        while let Some(Request::Sockets { kind, .. }) = agent.hear() {
            // Fails when the driver has gone with the test.
            let _ = scm::send(agent.0.as_fd(), &none(kind).encode(), &[], MsgFlags::empty());
        }
    });
    clients.into_iter().for_each(assert_refused);
    drop(driver.connect());
    drop(agent);
}

#[test]
fn clients_of_an_agent_that_says_nothing_do_not_wait_for_ever() {
    let (driver, agent) = Driver::start(Timeouts { connect: Duration::from_secs(1), ..Timeouts::default() });
    assert_refused(driver.connect());
    drop(agent);
    assert!(matches!(driver.end(), DriverError::ChildGone));
}

#[test]
fn sockets_that_nobody_has_asked_for_end_the_driver() {
    let (driver, agent) = Driver::start(Timeouts::default());
    agent.greet();
    let _client = driver.connect();
    let Some(Request::Sockets { kind, count }) = agent.hear() else { panic!("no request") };
    let sockets: Vec<OwnedFd> = (0..=count).map(|_| agent.0.try_clone().unwrap()).collect();
    agent.say(Reply::Sockets { kind, count, errno: 0 }, &sockets);
    assert!(matches!(driver.end(), DriverError::Protocol(_)));
}

/// Passes on what comes back.
struct Refusals(mpsc::Sender<(u64, OwnedFd, EgressError)>);

impl EgressEvents for Refusals {
    fn joined(&self, _: u64) {}

    fn refused(&self, id: u64, stream: OwnedFd, why: EgressError) {
        // Fails when the test is over.
        let _ = self.0.send((id, stream, why));
    }

    fn ended(&self, _: u64, _: u64, _: u64) {}
}

/// A driver that relays, as far as its agent lets it.
fn relaying() -> (Handle, mpsc::Receiver<(u64, OwnedFd, EgressError)>, FakeAgent) {
    let (line, agent) = ChildLine::pair().unwrap();
    let config = Config { egress: EgressMode::WhenOffered, ..Config::default() };
    let mut driver = ForwardDriver::new(config, Some(line), None).unwrap();
    let (sender, refusals) = mpsc::channel();
    driver.set_egress_events(Box::new(Refusals(sender)));
    let handle = driver.handle();
    thread::spawn(move || driver.run_until(EventFd::new().unwrap()));
    (handle, refusals, FakeAgent(agent))
}

fn offer(id: u64) -> Egress {
    let (stream, _) = scm::pair().unwrap();
    Egress { stream, child: ([10, 0, 2, 100], 4000).into(), destination: ([192, 0, 2, 1], 443).into(), id }
}

#[test]
fn the_first_offers_wait_for_what_the_agent_says() {
    let (handle, refusals, agent) = relaying();
    handle.relay(offer(1)).unwrap();
    let request = agent.hear();
    assert!(matches!(request, Some(Request::Hello { egress: protocol::Egress::Prepare, .. })), "{request:?}");
    let ipv6 = |id| Egress {
        child: "[fd00::100]:1".parse().unwrap(),
        destination: "[2001:db8::1]:443".parse().unwrap(),
        ..offer(id)
    };
    handle.relay(ipv6(2)).unwrap();
    let egress_v6 = EgressAbility::Impossible { step: EgressStep::Route, errno: libc::EPERM };
    let abilities = Abilities { egress_v4: EgressAbility::Possible, egress_v6, ..Abilities::default() };
    agent.say(Reply::Hello { abilities }, &[]);
    let (id, _, why) = refusals.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(
        id == 2 && matches!(why, EgressError::NotPrepared(ability) if ability == egress_v6),
        "{id} {why:?}"
    );
    assert_eq!(handle.egress_abilities().unwrap(), [EgressAbility::Possible, egress_v6]);
    assert_eq!(handle.relay(ipv6(3)).unwrap_err().id, 3, "the families differ");
    let request = agent.hear();
    assert!(matches!(request, Some(Request::Sockets { .. })), "the first one still waits: {request:?}");
}

#[test]
fn offers_come_back_when_the_agent_has_no_sockets() {
    let (handle, refusals, agent) = relaying();
    handle.relay(offer(1)).unwrap();
    agent.hear();
    let abilities = Abilities { egress_v4: EgressAbility::Possible, ..Abilities::default() };
    agent.say(Reply::Hello { abilities }, &[]);
    let Some(Request::Sockets { kind, .. }) = agent.hear() else { panic!("no request") };
    handle.relay(offer(2)).unwrap();
    agent.say(Reply::Sockets { kind, count: 0, errno: libc::EMFILE }, &[]);
    for expected in [1, 2] {
        let (id, _, why) = refusals.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(id == expected && matches!(why, EgressError::NoSocket(_)), "{id} {why:?}");
    }
}

#[test]
fn offers_come_back_when_the_agent_says_nothing() {
    let (handle, refusals, _agent) = relaying();
    handle.relay(offer(1)).unwrap();
    let (id, _, why) = refusals.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(id == 1 && matches!(why, EgressError::NoSocket(_)), "{id} {why:?}");
}

#[test]
fn offers_come_back_when_the_agent_goes() {
    let (handle, refusals, agent) = relaying();
    handle.relay(offer(1)).unwrap();
    agent.hear();
    drop(agent);
    let (id, _, why) = refusals.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(id == 1 && matches!(why, EgressError::Stopped), "{id} {why:?}");
    assert_eq!(handle.relay(offer(3)).unwrap_err().id, 3);
}

/// Takes connections and forgets them.
struct Sink;

impl TapPath for Sink {
    fn tcp(&self, _: OwnedFd, _: SocketAddr, _: SocketAddr) -> io::Result<()> {
        Ok(())
    }

    fn add_udp(&self, _: OwnedFd, _: SocketAddr, _: Source) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn remove_udp(&self, _: u64) {}
}

#[test]
fn an_agent_that_cannot_be_started_is_done_without() {
    let (line, agent) = ChildLine::pair().unwrap();
    let config = Config { egress: EgressMode::WhenOffered, ..Config::default() };
    let mut driver = ForwardDriver::new(config, Some(line), Some(Box::new(Sink))).unwrap();
    let (sender, refusals) = mpsc::channel();
    driver.set_egress_events(Box::new(Refusals(sender)));
    let handle = driver.handle();
    thread::spawn(move || driver.run_until(EventFd::new().unwrap()));
    handle.relay(offer(1)).unwrap();
    drop(agent);
    let agentless = EgressAbility::Impossible { step: EgressStep::Agent, errno: libc::ESRCH };
    assert_eq!(handle.egress_abilities().unwrap(), [agentless; 2]);
    let (id, _, why) = refusals.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(id == 1 && matches!(why, EgressError::NotPrepared(_)), "{id} {why:?}");
    assert_eq!(handle.relay(offer(2)).unwrap_err().id, 2);
    assert_eq!(handle.list().unwrap(), []);
}
