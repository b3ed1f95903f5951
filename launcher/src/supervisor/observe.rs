//! Looks whether units that start are ready; what is seen is judged elsewhere ([`probe`](super::probe)).
//!
//! Nothing here waits: connections and answers that take time are looked at again when poll(2) says so.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::sockopt::SocketError;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, UnixAddr, connect, getsockopt, socket,
};

use super::Moment;
use super::probe::{ENOUGH, Observation, PATIENCE};
use super::unit::{Readiness, UnitId};

/// A look that takes longer than a moment.
#[derive(Debug)]
pub struct Look {
    /// The unit.
    pub unit: UnitId,
    /// The start it is about.
    pub run: u32,
    /// After that it has seen nothing.
    pub deadline: Moment,
    stream: TcpStream,
    /// What is still to be sent; nothing is sent before the connection stands.
    request: Vec<u8>,
    answer: Vec<u8>,
}

/// What came of looking.
#[derive(Debug)]
pub enum Seen {
    /// This.
    Now(Observation),
    /// It takes a while.
    Later(Look),
}

/// Looks at a unit.
pub fn look(unit: UnitId, run: u32, readiness: &Readiness, now: Moment) -> Seen {
    let seen = match readiness {
        Readiness::UnixSocket { path } => connect_unix(path),
        Readiness::File { path } => match fs::metadata(path) {
            Ok(_) => Observation::Present,
            Err(error) => Observation::Absent { errno: error.raw_os_error().unwrap_or(0) },
        },
        Readiness::Http { address, path } => match connect_tcp(*address) {
            Ok(socket) => {
                let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
                return Seen::Later(Look {
                    unit,
                    run,
                    deadline: now.saturating_add(PATIENCE),
                    stream: socket.into(),
                    request: request.into_bytes(),
                    answer: Vec::new(),
                });
            }
            Err(errno) => Observation::NotConnected { errno: errno as i32 },
        },
        // Nobody asks.
        Readiness::Started | Readiness::Exited | Readiness::AtStop | Readiness::Notify => Observation::Silent,
    };
    Seen::Now(seen)
}

impl Look {
    /// What to wait for.
    pub fn interest(&self) -> PollFlags {
        if self.request.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLOUT }
    }

    /// Goes on as far as it can; what was seen, when that is known.
    pub fn go_on(&mut self) -> Option<Observation> {
        match self.exchange() {
            Ok(true) => Some(Observation::Answered(std::mem::take(&mut self.answer))),
            Ok(false) => None,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => Some(match error.raw_os_error() {
                Some(errno) => Observation::NotConnected { errno },
                None => Observation::Silent,
            }),
        }
    }

    /// Whether enough of the answer is there.
    fn exchange(&mut self) -> io::Result<bool> {
        if !self.request.is_empty() {
            match getsockopt(&self.stream, SocketError)? {
                0 => {}
                errno => return Err(io::Error::from_raw_os_error(errno)),
            }
        }
        while !self.request.is_empty() {
            let count = self.stream.write(&self.request)?;
            self.request.drain(..count);
        }
        let mut bytes = [0; 256];
        loop {
            match self.stream.read(&mut bytes)? {
                0 if self.answer.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
                0 => return Ok(true),
                count => self.answer.extend_from_slice(bytes.get(..count).unwrap_or_default()),
            }
            if self.answer.len() >= ENOUGH {
                return Ok(true);
            }
        }
    }
}

impl AsFd for Look {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// A connection to a Unix socket stands at once or not at all.
fn connect_unix(path: &Path) -> Observation {
    let connected = || {
        let socket = stream_socket(AddressFamily::Unix)?;
        connect(socket.as_raw_fd(), &UnixAddr::new(path)?)
    };
    match connected() {
        Ok(()) => Observation::Connected,
        Err(errno) => Observation::NotConnected { errno: errno as i32 },
    }
}

fn connect_tcp(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = stream_socket(family)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

fn stream_socket(family: AddressFamily) -> Result<OwnedFd, Errno> {
    socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    use nix::poll::{PollFd, PollTimeout, poll};

    use super::super::unit::{Restart, Unit, Units};
    use super::*;

    fn some_unit() -> UnitId {
        let unit = Unit {
            name: "a".into(),
            argv: vec!["true".into()],
            env: Vec::new(),
            after: Vec::new(),
            ready: Readiness::Started,
            start_timeout: Duration::from_secs(1),
            stop_timeout: Duration::from_secs(1),
            restart: Restart::Never,
        };
        Units::new(vec![unit]).unwrap().ids().next().unwrap()
    }

    fn seen(readiness: &Readiness) -> Observation {
        match look(some_unit(), 1, readiness, Moment::ZERO) {
            Seen::Now(observation) => observation,
            Seen::Later(mut look) => loop {
                let mut fds = [PollFd::new(look.as_fd(), look.interest())];
                assert_eq!(poll(&mut fds, PollTimeout::from(10_000u16)), Ok(1));
                if let Some(observation) = look.go_on() {
                    return observation;
                }
            },
        }
    }

    /// What is seen of a server that says this to the first request and closes.
    fn seen_of_http(answer: &'static [u8]) -> (Observation, String) {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let serve = std::thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut request = [0; 1000];
            let length = stream.read(&mut request).unwrap();
            stream.write_all(answer).unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let observation = seen(&Readiness::Http { address, path: "/healthz".into() });
        (observation, serve.join().unwrap())
    }

    #[test]
    fn http_is_asked_for_its_status() {
        let (observation, request) = seen_of_http(b"HTTP/1.1 200 OK\r\n\r\nok");
        let Observation::Answered(head) = observation else { panic!("{observation:?}") };
        assert!(head.starts_with(b"HTTP/1.1 200"));
        assert!(request.starts_with("GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:"), "{request}");
        assert_eq!(seen_of_http(b"").0, Observation::Silent);
        assert_eq!(seen_of_http(b"no").0, Observation::Answered(b"no".to_vec()));
    }

    #[test]
    fn nobody_there_is_seen_as_such() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        drop(server);
        let observation = seen(&Readiness::Http { address, path: "/".into() });
        assert_eq!(observation, Observation::NotConnected { errno: libc::ECONNREFUSED });
    }

    #[test]
    fn unix_sockets_and_files_are_seen_at_once() {
        let path = std::env::temp_dir().join(format!("rl-observe-{}", std::process::id()));
        let (socket, file) =
            (Readiness::UnixSocket { path: path.clone() }, Readiness::File { path: path.clone() });
        assert_eq!(seen(&socket), Observation::NotConnected { errno: libc::ENOENT });
        assert_eq!(seen(&file), Observation::Absent { errno: libc::ENOENT });
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(seen(&socket), Observation::Connected);
        assert_eq!(seen(&file), Observation::Present);
        drop(listener);
        assert_eq!(seen(&socket), Observation::NotConnected { errno: libc::ECONNREFUSED });
        std::fs::remove_file(path).unwrap();
    }
}
