//! What the supervisor tells whoever started it: sd_notify(3).

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

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

    /// Says assignments, such as `READY=1`, one per line.
    pub fn say(&self, text: &str) {
        let Some((socket, address)) = &self.to else { return };
        if let Err(error) = socket.send_to_addr(text.as_bytes(), address) {
            log::debug!("cannot notify: {error}");
        }
    }
}

fn open(name: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    // Whoever does not listen keeps nobody.
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}
