//! Tells systemd how a service of `Type=notify` fares (sd_notify(3)).

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use log::{debug, warn};

/// Names the service manager's socket.
pub const VARIABLE: &str = "NOTIFY_SOCKET";

/// What can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Started, or reloaded.
    Ready,
    /// About to end.
    Stopping,
    /// One line for people, which `systemctl status` shows.
    Status(String),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Ready => f.write_str("READY=1"),
            State::Stopping => f.write_str("STOPPING=1"),
            State::Status(text) => write!(f, "STATUS={}", text.replace('\n', " ")),
        }
    }
}

/// The way to the service manager.
#[derive(Debug)]
pub struct Notifier {
    socket: UnixDatagram,
    address: SocketAddr,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Haste {
    Wait,
    NowOrNever,
}

/// Longest wait for a manager whose queue is full.
const MOMENT: Duration = Duration::from_secs(1);

impl Notifier {
    /// The one that `$NOTIFY_SOCKET` names; `None` if nobody wants to know.
    pub fn from_environment() -> Option<Self> {
        let name = env::var_os(VARIABLE).filter(|name| !name.is_empty())?;
        match Notifier::new(name) {
            Ok(notifier) => Some(notifier),
            Err(error) => {
                warn!("readiness is not told to {VARIABLE}: {error}");
                None
            }
        }
    }

    /// By the socket's name: a path, or `@` and the name of an abstract one (unix(7)).
    ///
    /// # Errors
    /// It is too long, or neither of both (`vsock:`, which is for virtual machines); or socket(2).
    pub fn new(name: OsString) -> io::Result<Self> {
        let name = name.into_vec();
        let address = match name.split_first() {
            Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
            Some((b'/', _)) => SocketAddr::from_pathname(OsString::from_vec(name))?,
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(MOMENT))?;
        Ok(Notifier { socket, address })
    }

    /// Tells what must not be missed; waits a moment for a manager that is busy. One that cannot be told changes nothing here.
    pub fn tell(&self, state: &State) {
        self.send(state, Haste::Wait);
    }

    /// Tells what the next such word replaces, and does not wait.
    pub fn mention(&self, state: &State) {
        self.send(state, Haste::NowOrNever);
    }

    fn send(&self, state: &State, haste: Haste) {
        let text = state.to_string();
        let sent = self
            .socket
            .set_nonblocking(haste == Haste::NowOrNever)
            .and_then(|()| self.socket.send_to_addr(text.as_bytes(), &self.address));
        if let Err(error) = sent {
            debug!("the service manager cannot be told {text:?}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(address: SocketAddr, name: OsString) -> String {
        let manager = UnixDatagram::bind_addr(&address).expect("a socket");
        Notifier::new(name).expect("a name").tell(&State::Status("two\nlines".into()));
        let mut buffer = [0; 100];
        let count = manager.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    }

    #[test]
    fn a_state_is_one_line() {
        const EXPECTED: &str = "STATUS=two lines";
        let name = format!("rootless-launch-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        assert_eq!(told(address, format!("@{name}").into()), EXPECTED);

        let path = env::temp_dir().join(name);
        let address = SocketAddr::from_pathname(&path).expect("a path");
        assert_eq!(told(address, path.clone().into()), EXPECTED);
        std::fs::remove_file(&path).expect("it is ours");
    }

    #[test]
    fn other_sockets_are_not_for_us() {
        for name in ["", "vsock:2:1", "relative"] {
            assert!(Notifier::new(name.into()).is_err(), "{name:?}");
        }
        assert!(Notifier::new(OsString::from_vec([b"/".to_vec(), vec![b'x'; 200]].concat())).is_err());
    }
}
