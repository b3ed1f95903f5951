//! What the supervisor tells whoever started it: sd_notify(3).

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use super::spawn::NOTIFY_SOCKET;

/// A way to whoever started us; may lead nowhere.
#[derive(Debug)]
pub struct Notifier {
    to: Option<(UnixDatagram, SocketAddr)>,
}

impl Notifier {
    /// The socket that `NOTIFY_SOCKET` names.
    pub fn from_environment() -> Self {
        let named = env::var_os(NOTIFY_SOCKET).filter(|name| !name.is_empty());
        let opened = named.map(|name| open(&name));
        if let Some(Err(error)) = &opened {
            log::warn!("readiness is not told to {NOTIFY_SOCKET}: {error}");
        }
        Notifier { to: opened.and_then(Result::ok) }
    }

    /// Says what must not be missed, such as `READY=1`; waits a moment for somebody who is busy.
    pub fn say(&self, text: &str) {
        self.send(text, Haste::Wait);
    }

    /// Says what the next such word replaces, such as `STATUS=...`.
    pub fn mention(&self, text: &str) {
        self.send(text, Haste::NowOrNever);
    }

    fn send(&self, text: &str, haste: Haste) {
        let Some((socket, address)) = &self.to else { return };
        let sent = socket
            .set_nonblocking(haste == Haste::NowOrNever)
            .and_then(|()| socket.send_to_addr(text.as_bytes(), address));
        if let Err(error) = sent {
            log::debug!("cannot say {text}: {error}");
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Haste {
    Wait,
    NowOrNever,
}

/// Longest wait for somebody whose queue is full.
const MOMENT: Duration = Duration::from_secs(1);

fn open(name: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(MOMENT))?;
    Ok((socket, address))
}
