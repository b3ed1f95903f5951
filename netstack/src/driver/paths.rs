//! How long datagrams may be on the way to a peer, as far as the host's kernel knows.
//!
//! The socket of an overlay sends without "don't fragment", so the kernel never says that something is too long. It is
//! asked instead, once a minute and peer, and only for what is longer than every IPv6 path takes.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::sys::socket;
use crate::time::{Duration, Instant};

/// Answers that are kept.
const MOST: usize = 1024;
/// For how long.
const FRESH: Duration = Duration::from_secs(60);
/// UDP payload that fits any path of either family: the IPv6 minimum without its headers (RFC 8200 section 5).
const SHORT: usize = 1280 - 48;

/// Path MTUs by address.
#[derive(Default)]
pub(super) struct Paths {
    known: BTreeMap<IpAddr, Path>,
}

#[derive(Clone, Copy)]
struct Path {
    /// With the IP header; `None` where the kernel has no way there.
    mtu: Option<u32>,
    until: Instant,
}

impl Paths {
    /// Whether a datagram with `len` bytes of payload does not reach `remote` in one piece.
    pub(super) fn is_narrow(&mut self, now: Instant, remote: SocketAddr, len: usize) -> bool {
        if len <= SHORT {
            return false;
        }
        let known = self.known.get(&remote.ip()).filter(|path| now < path.until);
        let mtu = known.copied().unwrap_or_else(|| self.ask(now, remote)).mtu;
        let headers = if remote.is_ipv4() { 28 } else { 48 };
        mtu.is_some_and(|mtu| headers + len > mtu as usize)
    }

    /// What is known of `address`.
    pub(super) fn mtu(&self, address: IpAddr) -> Option<u32> {
        self.known.get(&address)?.mtu
    }

    fn ask(&mut self, now: Instant, remote: SocketAddr) -> Path {
        if self.known.len() >= MOST {
            self.known.clear();
        }
        let path = Path { mtu: socket::path_mtu(remote).ok(), until: now + FRESH };
        self.known.insert(remote.ip(), path);
        path
    }
}
