//! The driver's end of [`crate::store`]: what it hands over, and what it has inherited.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::socket::MsgFlags;

use super::Engine;
use super::agent::Agent;
use super::token::Token;
use crate::manager::{Listener, ListenerId};
use crate::spec::{Origin, PortSpec};
use crate::store::{ANSWER, Inheritance, InheritedForward, MAX_SOCKETS, Notice, StoreLine};
use crate::sys::{scm, socket};

/// Called when a forward that was removed has left nothing.
pub(super) type Then = Box<dyn FnOnce() + Send>;

/// See the module.
pub(super) struct Keeper {
    /// `None` when nobody keeps anything any more.
    line: Option<OwnedFd>,
    registered: bool,
    outbox: VecDeque<(Notice, Vec<OwnedFd>)>,
    /// Copies of sockets of the forward that is being added.
    made: Vec<(ListenerId, OwnedFd)>,
    /// Notices that want an answer and have none.
    unanswered: usize,
    waiting: BTreeMap<u64, Vec<Then>>,
    /// By forward, address and port.
    inherited: BTreeMap<(u64, IpAddr, u16), OwnedFd>,
    forwards: Vec<InheritedForward>,
    last_id: u64,
}

/// Answers that may be under way: as many fit the socket's buffer.
const MAX_UNANSWERED: usize = 64;

impl Keeper {
    pub(super) fn new(line: StoreLine, inheritance: Inheritance) -> Self {
        let Inheritance { last_id, mut forwards } = inheritance;
        let mut inherited = BTreeMap::new();
        for InheritedForward { id, spec, sockets, .. } in &mut forwards {
            let hears = |fd: &OwnedFd| socket::hears(fd.as_fd(), spec.proto().transport());
            for fd in sockets.drain(..).filter(hears) {
                if let Ok(address) = socket::local_address(fd.as_fd()) {
                    inherited.insert((*id, address.ip(), address.port()), fd);
                }
            }
        }
        Keeper {
            line: Some(line.0),
            registered: false,
            outbox: VecDeque::new(),
            made: Vec::new(),
            unanswered: 0,
            waiting: BTreeMap::new(),
            inherited,
            forwards,
            last_id,
        }
    }

    /// The socket that another driver had for this listener; port 0 stands for any.
    pub(super) fn inherit(&mut self, listener: &Listener) -> Option<OwnedFd> {
        let (forward, ip) = (listener.forward, listener.address.ip());
        let (first, last) = match listener.address.port() {
            0 => (1, u16::MAX),
            port => (port, port),
        };
        let key = *self.inherited.range((forward, ip, first)..=(forward, ip, last)).next()?.0;
        self.inherited.remove(&key)
    }

    /// A socket was made. Without a copy the next driver makes another.
    pub(super) fn handle_made(&mut self, listener: ListenerId, socket: &OwnedFd) {
        if self.line.is_some()
            && let Ok(copy) = socket.try_clone()
        {
            self.made.push((listener, copy));
        }
    }

    /// It is closed again.
    pub(super) fn handle_closed(&mut self, listener: ListenerId) {
        self.made.retain(|(made, _)| *made != listener);
    }

    /// The forward that the sockets were made for is not to be.
    pub(super) fn give_up(&mut self) {
        self.made.clear();
    }

    fn push(&mut self, notice: Notice, sockets: Vec<OwnedFd>) {
        if self.line.is_some() {
            self.outbox.push_back((notice, sockets));
        }
    }

    /// Sends what there is, as far as the store takes it.
    fn flush(&mut self) {
        while let Some((notice, sockets)) = self.outbox.front() {
            let asks = matches!(notice, Notice::Forget { .. });
            let Some(line) = self.line.as_ref().filter(|_| !asks || self.unanswered < MAX_UNANSWERED) else {
                return;
            };
            let bytes = notice.encode();
            let send = |fds: &[OwnedFd]| scm::send(line.as_fd(), &bytes, fds, MsgFlags::MSG_DONTWAIT);
            let sent = match send(sockets) {
                // Too many descriptors of this user are under way (unix(7)): the next driver makes the sockets anew.
                Err(error) if error.raw_os_error() == Some(libc::ETOOMANYREFS) => send(&[]),
                sent => sent,
            };
            match sent {
                Ok(()) => self.unanswered += usize::from(asks),
                // The line tells when there is room.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return self.lose(),
            }
            self.outbox.pop_front();
        }
    }

    /// The driver ends: nothing is left to another one.
    pub(super) fn clear(&mut self) {
        self.outbox.clear();
        self.push(Notice::Clear, Vec::new());
        self.flush();
        self.lose();
    }

    /// The next forward whose copies are closed.
    fn receive(&mut self) -> Option<u64> {
        let mut answer = [0; ANSWER];
        loop {
            let line = self.line.as_ref()?;
            match scm::receive(line.as_fd(), &mut answer, &mut Vec::new(), MsgFlags::MSG_DONTWAIT) {
                Ok(ANSWER) => {
                    self.unanswered = self.unanswered.saturating_sub(1);
                    return Some(u64::from_le_bytes(answer));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => self.lose(),
            }
        }
    }

    /// Nobody keeps anything any more.
    fn lose(&mut self) {
        self.line = None;
        self.outbox.clear();
        for (_, waiting) in std::mem::take(&mut self.waiting) {
            waiting.into_iter().for_each(|then| then());
        }
    }
}

impl Engine {
    /// Takes over what another driver had. What the host does not let us listen on any more is told and left out.
    pub(super) fn adopt(&mut self) {
        let Some(keeper) = &mut self.keeper else { return };
        let (forwards, last_id) = (std::mem::take(&mut keeper.forwards), keeper.last_id);
        for InheritedForward { id, spec, origin, .. } in forwards {
            self.agent.iter_mut().for_each(Agent::greet);
            let failure = match self.manager.restore(id, spec.clone(), origin) {
                Ok(()) => self.perform(id),
                Err(error) => Some(error),
            };
            match failure {
                None => {
                    self.forwards.entry(id).or_default();
                    if self.keeper.as_ref().is_some_and(|keeper| !keeper.made.is_empty()) {
                        self.keep(id);
                    }
                }
                Some(error) => {
                    log::warn!("forwards: {spec} is no longer published: {error}");
                    self.forget(id, Box::new(|| ()));
                }
            }
        }
        self.manager.skip_ids(last_id);
        if let Some(keeper) = &mut self.keeper {
            keeper.inherited.clear();
        }
    }

    /// What auto had published before it began anew.
    pub(super) fn inherited_by_auto(&self) -> Vec<(u64, PortSpec)> {
        let ids = self.manager.list().into_iter().filter(|status| status.origin == Origin::Auto);
        ids.filter_map(|status| Some((status.id, self.manager.asked(status.id)?.0.clone()))).collect()
    }

    /// Hands a forward with its new sockets to the store.
    pub(super) fn keep(&mut self, id: u64) {
        let (Some(keeper), Some((spec, origin))) = (&mut self.keeper, self.manager.asked(id)) else { return };
        let notice = Notice::Keep { id, origin, spec: spec.clone() };
        let mut made = std::mem::take(&mut keeper.made).into_iter().map(|(_, socket)| socket);
        loop {
            let sockets: Vec<OwnedFd> = made.by_ref().take(MAX_SOCKETS).collect();
            let last = sockets.len() < MAX_SOCKETS;
            keeper.push(notice.clone(), sockets);
            if last {
                break;
            }
        }
        self.talk_to_store();
    }

    /// Has the store forget a forward, and calls `then` when it has: the ports are free.
    pub(super) fn forget(&mut self, id: u64, then: Then) {
        match &mut self.keeper {
            Some(keeper) if keeper.line.is_some() => {
                keeper.push(Notice::Forget { id }, Vec::new());
                keeper.waiting.entry(id).or_default().push(then);
                self.talk_to_store();
            }
            _ => then(),
        }
    }

    /// The store has answered, or takes more.
    pub(super) fn hear_store(&mut self) {
        while let Some(keeper) = &mut self.keeper
            && let Some(id) = keeper.receive()
        {
            keeper.waiting.remove(&id).into_iter().flatten().for_each(|then| then());
        }
        self.talk_to_store();
    }

    fn talk_to_store(&mut self) {
        let Some(keeper) = &mut self.keeper else { return };
        keeper.flush();
        if let Some(line) = keeper.line.as_ref().filter(|_| !keeper.registered) {
            let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
            let event = EpollEvent::new(events, Token::Store.into());
            match self.epoll.add(line, event) {
                Ok(()) => keeper.registered = true,
                // Whoever waits for answers would wait for ever.
                Err(_) => keeper.lose(),
            }
        }
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("line", &self.line).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::sync::Arc;
    use std::thread::JoinHandle;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::eventfd::{EfdFlags, EventFd};

    use super::super::{Auto, Config, ForwardDriver, Handle};
    use super::*;
    use crate::spec::PortStatus;
    use crate::store::Store;

    struct Running {
        handle: Handle,
        stop: Arc<EventFd>,
        thread: JoinHandle<()>,
    }

    impl Running {
        /// A driver that keeps what it has in `store`, and takes over what it finds there.
        fn start(store: &mut Store) -> Self {
            let mut driver = ForwardDriver::new(Config::default(), None, None).unwrap();
            let line = store.connect().unwrap();
            driver.set_store(line, copy(store));
            let (handle, stop) =
                (driver.handle(), Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap()));
            let until = stop.clone();
            let thread = std::thread::spawn(move || driver.run_until(&*until).unwrap());
            Running { handle, stop, thread }
        }

        fn add(&self, spec: &str) -> PortStatus {
            self.handle.add(spec.parse().unwrap()).unwrap()
        }

        /// Ends in order.
        fn end(self) {
            self.stop.write(1).unwrap();
            self.thread.join().unwrap();
        }

        /// Ends as if killed: nothing is told any more.
        fn die(self) {
            self.handle.call(|engine| engine.keeper.iter_mut().for_each(Keeper::lose)).unwrap();
            self.end();
        }
    }

    /// What a forked process would have.
    fn copy(store: &mut Store) -> Inheritance {
        let line = store.line().map(|line| line.try_clone_to_owned().unwrap());
        let inheritance = store.bequeath();
        let copied = inheritance.forwards.iter().map(|forward| InheritedForward {
            id: forward.id,
            spec: forward.spec.clone(),
            origin: forward.origin,
            sockets: forward.sockets.iter().map(|fd| fd.try_clone().unwrap()).collect(),
        });
        let copied = Inheritance { last_id: inheritance.last_id, forwards: copied.collect() };
        store.restore(line, inheritance);
        copied
    }

    fn client(status: &PortStatus) -> std::io::Result<TcpStream> {
        TcpStream::connect(("127.0.0.1", status.spec.fields().parent_port))
    }

    /// Somebody accepted, and found no child.
    fn is_served(mut client: TcpStream) -> bool {
        client.read(&mut [0]).is_err()
    }

    #[test]
    fn ports_survive_their_driver_with_their_numbers() {
        let mut store = Store::default();
        let first = Running::start(&mut store);
        let gone = first.add("127.0.0.1:0:1/tcp4");
        let kept = first.add("127.0.0.1:0:80/tcp4");
        let datagrams = first.add("127.0.0.1:0:53/udp4");
        let last = first.add("127.0.0.1:0:2/tcp4");
        store.receive();
        assert_eq!(store.len(), 4);
        let removed: Vec<_> = [gone.id, last.id]
            .map(|id| {
                let handle = first.handle.clone();
                std::thread::spawn(move || handle.remove(id).unwrap())
            })
            .into_iter()
            .collect();
        // They wait for the store.
        while store.len() > 2 {
            let mut line = [PollFd::new(store.line().unwrap(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut line, PollTimeout::from(20_000u16)), Ok(1));
            store.receive();
        }
        removed.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(client(&gone).is_err(), "its port is free");
        first.die();
        store.receive();

        let waits = client(&kept).unwrap();
        let taken = TcpListener::bind(("127.0.0.1", kept.spec.fields().parent_port));
        assert!(taken.is_err(), "nobody else gets the port");
        let second = Running::start(&mut store);
        assert_eq!(second.handle.list().unwrap(), [kept.clone(), datagrams.clone()]);
        assert!(is_served(waits));
        assert!(is_served(client(&kept).unwrap()));
        assert!(UdpSocket::bind(("127.0.0.1", datagrams.spec.fields().parent_port)).is_err());
        let again = second.handle.add("127.0.0.1:0:80/tcp4".parse().unwrap()).unwrap();
        assert_eq!(again, kept, "the same forward is the same forward");
        assert_eq!(second.add("127.0.0.1:0:3/tcp4").id, last.id + 1, "no number comes twice");
        second.end();
    }

    #[test]
    fn without_a_store_a_removal_waits_for_nobody() {
        let mut store = Store::default();
        let running = Running::start(&mut store);
        let status = running.add("127.0.0.1:0:80/tcp4");
        drop(store);
        running.handle.remove(status.id).unwrap();
        assert!(client(&status).is_err());
        running.end();
    }

    #[test]
    fn a_socket_that_could_not_be_kept_is_made_anew_and_kept_then() {
        let mut store = Store::default();
        let first = Running::start(&mut store);
        let status = first.add("127.0.0.1:0:80/tcp4");
        first.die();
        store.receive();
        let port = status.spec.fields().parent_port;
        let spec: PortSpec = format!("127.0.0.1:{port}:80/tcp4").parse().unwrap();
        let bare = InheritedForward { id: 7, spec, origin: Origin::Asked, sockets: Vec::new() };
        store.bequeath();
        store.restore(None, Inheritance { last_id: 7, forwards: vec![bare] });
        let second = Running::start(&mut store);
        assert_eq!(second.handle.list().unwrap()[0].id, 7);
        store.receive();
        assert_eq!(store.len(), 1);
        second.die();
        store.receive();
        assert!(client(&status).is_ok(), "the copy listens");
    }

    #[test]
    fn a_driver_that_ends_leaves_nothing() {
        let mut store = Store::default();
        let running = Running::start(&mut store);
        let status = running.add("127.0.0.1:0:80/tcp4");
        running.end();
        store.receive();
        assert!(store.is_empty());
        assert!(client(&status).is_err());
    }

    #[test]
    fn auto_goes_on_where_it_was() {
        let mut store = Store::default();
        let line = store.connect().unwrap();
        let spec: PortSpec = "127.0.0.1:0:80/tcp4".parse().unwrap();
        let forward =
            InheritedForward { id: 3, spec: spec.clone(), origin: Origin::Auto, sockets: Vec::new() };
        let config = Config { auto: Some(Auto::default()), ..Config::default() };
        let mut driver = ForwardDriver::new(config, None, None).unwrap();
        driver.set_store(line, Inheritance { last_id: 3, forwards: vec![forward] });
        driver.engine.adopt();
        assert_eq!(driver.engine.inherited_by_auto(), [(3, spec)]);
    }
}
