//! Tells systemd how a service of `Type=notify` fares (sd_notify(3)).

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use log::debug;
use nix::unistd::Pid;

/// Longest wait for a service manager whose queue is full.
const PATIENCE: Duration = Duration::from_secs(1);

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
    /// Another process is the main one. It has to be in the service's cgroup.
    MainPid(Pid),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Ready => f.write_str("READY=1"),
            State::Stopping => f.write_str("STOPPING=1"),
            State::Status(text) => write!(f, "STATUS={}", text.replace('\n', " ")),
            State::MainPid(pid) => write!(f, "MAINPID={pid}"),
        }
    }
}

/// The way to the service manager.
#[derive(Clone, Debug)]
pub struct Notifier {
    address: SocketAddr,
}

impl Notifier {
    /// The one that `$NOTIFY_SOCKET` names; `None` if nobody wants to know.
    pub fn from_environment() -> Option<Self> {
        let name = env::var_os(VARIABLE)?;
        match Notifier::new(name) {
            Ok(notifier) => Some(notifier),
            Err(error) => {
                debug!("${VARIABLE}: {error}");
                None
            }
        }
    }

    /// By the socket's name: a path, or `@` and the name of an abstract one (unix(7)).
    ///
    /// # Errors
    /// It is too long, or neither of both (`vsock:`, which is for virtual machines).
    pub fn new(name: OsString) -> io::Result<Self> {
        let name = name.into_vec();
        let address = match name.split_first() {
            Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
            Some((b'/', _)) => SocketAddr::from_pathname(OsString::from_vec(name))?,
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        Ok(Notifier { address })
    }

    /// Tells all of it in one message. Whoever cannot be told has no bearing on what is told.
    pub fn tell(&self, states: &[State]) {
        let text = states.iter().map(|state| format!("{state}\n")).collect::<String>();
        let send = || {
            let socket = UnixDatagram::unbound()?;
            // Somebody who reads nothing holds nobody up for long.
            socket.set_write_timeout(Some(PATIENCE))?;
            socket.send_to_addr(text.as_bytes(), &self.address)
        };
        let sent = send();
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
        Notifier::new(name).expect("a name").tell(&[State::Ready, State::Status("two\nlines".into())]);
        let mut buffer = [0; 100];
        let count = manager.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    }

    #[test]
    fn states_are_lines_of_one_message() {
        const EXPECTED: &str = "READY=1\nSTATUS=two lines\n";
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
