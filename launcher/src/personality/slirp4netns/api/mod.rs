//! The API socket: one request per connection, one reply, in the order of arrival.
//!
//! # Theory of operation
//! One thread of its own, so that no client can hold up the engine. Connections wait side by side for their single
//! read; a request is answered before the next is looked at. A client that says nothing, or does not take its reply,
//! is cut off after [`PATIENCE`]; when there are [`MAX_CLIENTS`], the one that waits for longest makes room.
//!
//! | a client's state | comes by | goes by |
//! |---|---|---|
//! | asking | accept | its first bytes, or their end: one read, the reply is made |
//! | answering | a reply | the reply is sent: our half is closed |
//! | leaving | our half is closed | its half is closed; up to [`MAX_REST`] bytes are thrown away till then: closing earlier would take the reply back |

pub mod request;

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use forwarder::error::PortError;
use forwarder::spec::{PortSpec, PortStatus};
use log::{debug, warn};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::signal::SigSet;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket as new_socket,
};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{UnlinkatFlags, unlinkat};

use self::request::{ApiError, Done, MAX_REQUEST, Request};
use crate::engine::detach;
use crate::sys::clone::{self, ExitSignal, Fork, exit_now};

/// Clients that are served at a time.
pub const MAX_CLIENTS: usize = 64;
/// Clients that may wait to be let in.
const WAITING: i32 = 128;
/// How long a client may take for its request, for our reply, and for going.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes that a client may send behind its request.
pub const MAX_REST: usize = 1 << 20;
/// How long nobody is let in when no descriptor is left.
const PAUSE: Duration = Duration::from_millis(100);

/// Who has the forwards. Numbers start at 1, rise, and are never used again.
pub trait Forwards {
    /// Adds one.
    ///
    /// # Errors
    /// It cannot be.
    fn add(&self, spec: PortSpec) -> Result<PortStatus, PortError>;
    /// Removes one.
    ///
    /// # Errors
    /// There is none of this number.
    fn remove(&self, id: u64) -> Result<(), PortError>;
    /// All of them, by number.
    ///
    /// # Errors
    /// It has stopped.
    fn list(&self) -> Result<Vec<PortStatus>, PortError>;
}

/// Does what a request wants. Forwards go to `child` if it names nobody.
pub fn answer(bytes: &[u8], child: Ipv4Addr, forwards: &impl Forwards) -> String {
    let done = Request::parse(bytes, child).and_then(|request| perform(request, forwards));
    done.map_or_else(|error| error.to_json(), |done| done.to_json())
}

fn perform(request: Request, forwards: &impl Forwards) -> Result<Done, ApiError> {
    let failed = |error| ApiError::Add(Some(error));
    match request {
        Request::Add(spec) => {
            let chosen = spec.fields().parent_port == 0;
            // To the forwarder the same forward twice is one; here it is a mistake.
            if !chosen && forwards.list().map_err(failed)?.iter().any(|known| known.spec == spec) {
                return Err(ApiError::Add(None));
            }
            let status = forwards.add(spec).map_err(failed)?;
            let host_port = chosen.then_some(status.spec.fields().parent_port);
            Ok(Done::Added { id: status.id, host_port })
        }
        Request::List => Ok(Done::Listed(forwards.list().map_err(failed)?)),
        Request::Remove(id) => match forwards.remove(id) {
            Ok(()) => Ok(Done::Removed),
            Err(PortError::NotFound { .. }) => {
                Err(ApiError::Argument { verb: "remove_hostfwd", argument: "id" })
            }
            Err(error) => Err(ApiError::Remove(error)),
        },
    }
}

/// The name of the listening socket. Dropping this removes it.
#[derive(Debug)]
pub struct Socket {
    directory: OwnedFd,
    name: OsString,
    /// Who removes it for a process that may not.
    remover: Option<UnixStream>,
}

impl Socket {
    /// Listens at `path`, in place of what is there; the listener is for [`Server`]. Only the same user may connect.
    ///
    /// # Errors
    /// open(2) of the directory, unlinkat(2), bind(2), listen(2); the path is too long for `sockaddr_un`.
    pub fn listen(path: &Path) -> io::Result<(Self, UnixListener)> {
        let name = path.file_name().ok_or(Errno::EISDIR)?.to_owned();
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = open(parent.unwrap_or(Path::new(".")), flags, Mode::empty())?;
        let socket = Socket { directory, name, remover: None };
        match socket.unlink() {
            Err(Errno::ENOENT) => {}
            other => other?,
        }
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = new_socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        // bind(2) gives the name this mode: it is never open to others, and the umask, which all threads share, stays as it is.
        fchmod(&listener, Mode::S_IRUSR | Mode::S_IWUSR)?;
        bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
        listen(&listener, Backlog::new(WAITING)?)?;
        Ok((socket, listener.into()))
    }

    /// Leaves the removal to another process, for one that goes into a sandbox and will not be allowed to. That
    /// process does nothing if this one dies without dropping this: another may listen there by then.
    ///
    /// The calling process has one thread.
    ///
    /// # Errors
    /// socketpair(2), clone3(2).
    pub fn leave_removal(&mut self) -> io::Result<()> {
        let (ours, theirs) = UnixStream::pair()?;
        match clone::fork(CloneFlags::empty(), ExitSignal::None)? {
            Fork::Parent(_) => self.remover = Some(ours),
            Fork::Child => {
                drop(ours);
                self.wait_and_remove(&theirs)
            }
        }
        Ok(())
    }

    fn wait_and_remove(&self, mut line: &UnixStream) -> ! {
        let keep = [line.as_fd(), self.directory.as_fd()];
        if detach(c"rl-remover", &keep, &SigSet::empty()).is_ok() && line.read_exact(&mut [0]).is_ok() {
            // Nobody is left to be told.
            let _ = self.unlink();
        }
        exit_now(0)
    }

    fn unlink(&self) -> nix::Result<()> {
        unlinkat(&self.directory, Path::new(&self.name), UnlinkatFlags::NoRemoveDir)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let removed = match &mut self.remover {
            None => self.unlink().map_err(io::Error::from),
            // It is done when the other end is closed.
            Some(line) => line.write_all(b"x").and_then(|()| line.read(&mut [0]).map(drop)),
        };
        if let Err(error) = removed {
            debug!("the API socket stays: {error}");
        }
    }
}

/// Serves clients until the process ends, or nothing can be waited for.
#[derive(Debug)]
pub struct Server<F> {
    listener: UnixListener,
    child: Ipv4Addr,
    forwards: F,
    /// In the order of arrival.
    clients: Vec<Client>,
    /// Set while nobody can be let in for want of descriptors.
    closed_until: Option<Instant>,
}

impl<F: Forwards> Server<F> {
    /// Serves those who connect to `listener`, which does not block. Forwards go to `child` if they name nobody.
    pub fn new(listener: UnixListener, child: Ipv4Addr, forwards: F) -> Self {
        Server { listener, child, forwards, clients: Vec::new(), closed_until: None }
    }

    /// Serves.
    pub fn run(mut self) {
        loop {
            if let Err(error) = self.turn() {
                return warn!("the API socket is served no more: {error}");
            }
        }
    }

    fn turn(&mut self) -> io::Result<()> {
        let ready = self.wait()?;
        let now = Instant::now();
        let Server { child, forwards, clients, .. } = self;
        let mut ready = ready.into_iter();
        let newcomers = ready.next().unwrap_or(false);
        clients.retain_mut(|client| {
            let is_ready = ready.next().unwrap_or(false);
            let stays = !is_ready || client.go_on(now, |bytes| answer(bytes, *child, forwards));
            stays && now < client.deadline
        });
        self.closed_until = self.closed_until.filter(|&until| now < until);
        if newcomers {
            self.accept(now);
        }
        Ok(())
    }

    /// Waits; says for the listener and each client whether there is something to do.
    fn wait(&self) -> io::Result<Vec<bool>> {
        let newcomers = if self.closed_until.is_some() { PollFlags::empty() } else { PollFlags::POLLIN };
        let mut fds = vec![PollFd::new(self.listener.as_fd(), newcomers)];
        fds.extend(self.clients.iter().map(|client| PollFd::new(client.stream.as_fd(), client.interest())));
        let deadlines = self.clients.iter().map(|client| client.deadline);
        let deadline = deadlines.chain(self.closed_until).min();
        let patience = deadline.map_or(PollTimeout::NONE, |deadline| {
            // Rounded up, so that the deadline has passed then.
            let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, patience) {
            Err(Errno::EINTR) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
            Ok(_) => Ok(fds.iter().map(|fd| fd.any().unwrap_or(true)).collect()),
        }
    }

    fn accept(&mut self, now: Instant) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if stream.set_nonblocking(true).is_err() {
                        continue;
                    }
                    if self.clients.len() == MAX_CLIENTS {
                        self.clients.remove(0);
                    }
                    let (state, deadline) = (State::Asking, now + PATIENCE);
                    self.clients.push(Client { stream, state, deadline });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The listener stays ready: looking again at once would only spin.
                Err(error) => {
                    debug!("a client of the API socket cannot be accepted: {error}");
                    self.closed_until = Some(now + PAUSE);
                    return;
                }
            }
        }
    }
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    state: State,
    deadline: Instant,
}

#[derive(Debug)]
enum State {
    Asking,
    Answering { reply: Vec<u8>, sent: usize },
    Leaving { thrown_away: usize },
}

impl Client {
    fn interest(&self) -> PollFlags {
        match self.state {
            State::Asking | State::Leaving { .. } => PollFlags::POLLIN,
            State::Answering { .. } => PollFlags::POLLOUT,
        }
    }

    /// Does what can be done without waiting; says whether there is more to come.
    fn go_on(&mut self, now: Instant, answer: impl FnOnce(&[u8]) -> String) -> bool {
        match self.try_go_on(now, answer) {
            Ok(more) => more,
            Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        }
    }

    fn try_go_on(&mut self, now: Instant, answer: impl FnOnce(&[u8]) -> String) -> io::Result<bool> {
        if let State::Asking = self.state {
            let mut bytes = [0; MAX_REQUEST + 1];
            let length = self.stream.read(&mut bytes)?;
            self.state = State::Answering { reply: answer(&bytes[..length]).into_bytes(), sent: 0 };
            self.deadline = now + PATIENCE;
        }
        if let State::Answering { reply, sent } = &mut self.state {
            while *sent < reply.len() {
                *sent += self.stream.write(&reply[*sent..])?;
            }
            self.stream.shutdown(Shutdown::Write)?;
            self.state = State::Leaving { thrown_away: 0 };
            self.deadline = now + PATIENCE;
        }
        let State::Leaving { thrown_away } = &mut self.state else { return Ok(true) };
        let mut rest = [0; MAX_REQUEST + 1];
        let length = self.stream.read(&mut rest)?;
        *thrown_away += length;
        Ok(length > 0 && *thrown_away < MAX_REST)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Mutex;
    use std::thread;

    use super::*;

    /// Forwards that forward nothing; host port 7 is taken.
    #[derive(Debug, Default)]
    struct Paper(Mutex<(u64, Vec<PortStatus>)>);

    impl Forwards for Paper {
        fn add(&self, spec: PortSpec) -> Result<PortStatus, PortError> {
            let mut all = self.0.lock().unwrap();
            let mut fields = spec.into_fields();
            let address = ([0, 0, 0, 0], fields.parent_port).into();
            if fields.parent_port == 7 {
                let transport = fields.proto.transport();
                return Err(PortError::InUse { address, transport, holder: None });
            }
            if fields.parent_port == 0 {
                fields.parent_port = 40_000;
            }
            all.0 += 1;
            let status = PortStatus {
                id: all.0,
                spec: PortSpec::try_from(fields).unwrap(),
                origin: Default::default(),
            };
            all.1.push(status.clone());
            Ok(status)
        }

        fn remove(&self, id: u64) -> Result<(), PortError> {
            let mut all = self.0.lock().unwrap();
            let index = all.1.iter().position(|status| status.id == id);
            index.map(|index| drop(all.1.remove(index))).ok_or(PortError::NotFound { id })
        }

        fn list(&self) -> Result<Vec<PortStatus>, PortError> {
            Ok(self.0.lock().unwrap().1.clone())
        }
    }

    const CHILD: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);

    fn add(port: u16) -> String {
        let arguments = format!(r#"{{"proto":"tcp","host_port":{port},"guest_port":80}}"#);
        format!(r#"{{"execute":"add_hostfwd","arguments":{arguments}}}"#)
    }

    #[test]
    fn forwards_come_and_go() {
        let forwards = Paper::default();
        let ask = |request: &str| answer(request.as_bytes(), CHILD, &forwards);
        let remove = |id: u64| ask(&format!(r#"{{"execute":"remove_hostfwd","arguments":{{"id":{id}}}}}"#));
        assert_eq!(ask(&add(8080)), r#"{"return":{"id":1}}"#);
        let failed = r#"{"error":{"desc":"bad request: add_hostfwd: slirp_add_hostfwd failed""#;
        assert_eq!(ask(&add(8080)), format!("{failed}}}}}"), "twice is once too often");
        let taken = format!(r#"{failed},"reason":"0.0.0.0:7/tcp is in use on the host"}}}}"#);
        assert_eq!(ask(&add(7)), taken);
        assert_eq!(ask(&add(0)), r#"{"return":{"id":2,"host_port":40000}}"#);
        assert_eq!(remove(1), r#"{"return":{}}"#);
        assert_eq!(remove(1), r#"{"error":{"desc":"bad request: remove_hostfwd: bad arguments.id"}}"#);
        assert!(ask(r#"{"execute":"list_hostfwd"}"#).contains(r#""entries":[{"id":2,"#));
        assert_eq!(ask(&add(8080)), r#"{"return":{"id":3}}"#, "numbers are not used again");
    }

    /// A server on a thread, and where it listens.
    fn serve(name: &str) -> (Socket, std::path::PathBuf) {
        let path = std::env::temp_dir().join(format!("slirp-api-{}-{name}", std::process::id()));
        let (socket, listener) = Socket::listen(&path).unwrap();
        thread::spawn(|| Server::new(listener, CHILD, Paper::default()).run());
        (socket, path)
    }

    fn ask(path: &Path, request: &[u8]) -> String {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.write_all(request).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    }

    #[test]
    fn clients_that_are_silent_or_gone_delay_nobody() {
        let (socket, path) = serve("silent");
        let silent = RefCell::new(Vec::new());
        // More than there is room for: the oldest make it.
        for _ in 0..MAX_CLIENTS + 10 {
            silent.borrow_mut().push(UnixStream::connect(&path).unwrap());
            drop(UnixStream::connect(&path).unwrap());
        }
        assert_eq!(ask(&path, add(8080).as_bytes()), r#"{"return":{"id":1}}"#);
        let mut oldest = silent.borrow_mut().remove(0);
        assert_eq!(oldest.read(&mut [0; 1]).unwrap(), 0, "it was cut off");
        drop(socket);
        assert!(!path.exists(), "the socket's file is gone");
    }

    #[test]
    fn a_request_too_large_is_answered_all_the_same() {
        let (_socket, path) = serve("large");
        let large = r#"{"error":{"desc":"bad request: too large message"}}"#;
        assert_eq!(ask(&path, &[b' '; 4096]), large);
        assert_eq!(ask(&path, &[b' '; 100_000]), large);
        assert_eq!(ask(&path, &[b' '; 4095]), r#"{"error":{"desc":"bad request: cannot parse JSON"}}"#);
    }

    #[test]
    fn the_socket_is_its_owners_alone() {
        let (_socket, path) = serve("mode");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_long_path_refused() {
        let (first, path) = serve("stale");
        std::mem::forget(first);
        let _second = Socket::listen(&path).unwrap();
        let long = std::env::temp_dir().join("x".repeat(110));
        assert!(Socket::listen(&long).is_err());
        assert!(!long.exists());
    }
}
