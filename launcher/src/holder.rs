//! Who on the host has a port that somebody else wants.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;

use forwarder::error::PortError;
use forwarder::sock_diag::{DiagSocket, Query, Reach, Socket};
use forwarder::spec::{Family, Transport};
use nix::unistd::{Uid, User};
use serde::{Deserialize, Serialize};

/// A port of the host that somebody else has.
///
/// The engine is confined and cannot look for a holder: it names the port to whoever can.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct TakenPort {
    /// The host's address and port.
    pub address: SocketAddr,
    /// TCP or UDP.
    pub transport: Transport,
}

impl TakenPort {
    /// The port because of which `error` came about, if that is what it says.
    pub fn of(error: &PortError) -> Option<Self> {
        match *error {
            PortError::InUse { address, transport, .. } => Some(TakenPort { address, transport }),
            _ => None,
        }
    }

    /// `text` with who has the port, where that can be known.
    pub fn explain(&self, text: String) -> String {
        match holder(self.address, self.transport) {
            Some(holder) => format!("{text}, {holder}"),
            None => text,
        }
    }
}

/// Whoever keeps others from `address`: "held by PID 123 (nginx)", or "held by a process of user 33 (www-data)" where it
/// belongs to somebody whose processes we may not look into. `None` if nobody is found: it has gone by now, or the kernel
/// cannot be asked.
pub fn holder(address: SocketAddr, transport: Transport) -> Option<String> {
    let mut diag = DiagSocket::open().ok()?;
    let mut sockets = Vec::new();
    for family in [Family::V4, Family::V6] {
        // A kernel without IPv6 refuses; the other family may tell.
        let _ = diag.dump(Query::holding(transport, family), &mut sockets);
    }
    sockets.retain(|socket| holds(socket, address));
    let inodes: BTreeSet<u32> =
        sockets.iter().map(|socket| socket.inode).filter(|&inode| inode != 0).collect();
    if let Some((pid, command)) = process_with(&inodes) {
        return Some(format!("held by PID {pid} ({command})"));
    }
    sockets.first().map(|socket| {
        let uid = socket.uid;
        match User::from_uid(Uid::from_raw(uid)) {
            Ok(Some(user)) => format!("held by a process of user {uid} ({})", user.name),
            _ => format!("held by a process of user {uid}"),
        }
    })
}

/// Whether the kernel would refuse `wanted` because of `socket`.
fn holds(socket: &Socket, wanted: SocketAddr) -> bool {
    let (there, here) = (socket.address.ip().to_canonical(), wanted.ip().to_canonical());
    if socket.address.port() != wanted.port() {
        return false;
    }
    if Family::of(there) != Family::of(here) {
        return socket.reach == Reach::BothFamilies && there.is_unspecified();
    }
    there == here || there.is_unspecified() || here.is_unspecified()
}

/// The first process, by number, that has one of these sockets and lets us see so.
fn process_with(inodes: &BTreeSet<u32>) -> Option<(u32, String)> {
    if inodes.is_empty() {
        return None;
    }
    let names: BTreeSet<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut pids: Vec<u32> = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    let has = |pid: u32| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let mut targets = fds.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
        targets.any(|target| target.to_str().is_some_and(|target| names.contains(target))).then_some(())
    };
    pids.into_iter().find_map(|pid| {
        has(pid)?;
        let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Some((pid, command.trim().to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    fn ourselves() -> String {
        let command = fs::read_to_string("/proc/self/comm").unwrap();
        format!("held by PID {} ({})", std::process::id(), command.trim())
    }

    #[test]
    fn a_listener_is_traced_to_its_process() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(holder(address, Transport::Tcp), Some(ourselves()));
        let everywhere = SocketAddr::from(([0; 4], address.port()));
        assert_eq!(holder(everywhere, Transport::Tcp), Some(ourselves()));
        drop(listener);
        assert_eq!(holder(address, Transport::Tcp), None);
    }

    #[test]
    fn a_connected_udp_socket_holds_its_port_too() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect("127.0.0.1:9").unwrap();
        assert_eq!(holder(socket.local_addr().unwrap(), Transport::Udp), Some(ourselves()));
    }

    #[test]
    fn only_what_is_in_the_way_holds() {
        let socket = |address: &str, reach| Socket {
            transport: Transport::Tcp,
            address: address.parse().unwrap(),
            reach,
            interface: 0,
            uid: 0,
            inode: 1,
        };
        let held = |address, reach, wanted: &str| holds(&socket(address, reach), wanted.parse().unwrap());
        let (own, both) = (Reach::OwnFamily, Reach::BothFamilies);
        assert!(held("127.0.0.1:80", own, "0.0.0.0:80"));
        assert!(held("0.0.0.0:80", own, "127.0.0.1:80"));
        assert!(!held("127.0.0.1:80", own, "127.0.0.2:80"));
        assert!(!held("127.0.0.1:80", own, "127.0.0.1:81"));
        assert!(held("[::]:80", both, "127.0.0.1:80"));
        assert!(!held("[::]:80", own, "127.0.0.1:80"));
        assert!(!held("[::1]:80", both, "0.0.0.0:80"));
        assert!(!held("0.0.0.0:80", own, "[::]:80"));
    }
}
