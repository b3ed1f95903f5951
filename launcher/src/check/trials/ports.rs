//! Ports that a node publishes: bound for a moment.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use super::super::facts::{Port, PortState};
use super::super::judge::{KUBELET_PORT, VXLAN_PORT};
use crate::apply::facts::read_text;

pub(super) fn try_all() -> Vec<Port> {
    let any = Ipv4Addr::UNSPECIFIED;
    vec![
        Port { name: KUBELET_PORT, state: state(TcpListener::bind((any, 10250)).map(drop), "tcp", 10250) },
        Port { name: VXLAN_PORT, state: state(UdpSocket::bind((any, 8472)).map(drop), "udp", 8472) },
    ]
}

fn state(bound: io::Result<()>, protocol: &str, port: u16) -> PortState {
    let Err(error) = bound else { return PortState::Free };
    if error.kind() != io::ErrorKind::AddrInUse {
        return PortState::Refused(error.raw_os_error().unwrap_or_default());
    }
    let ours = fs::read_link("/proc/self/exe").ok();
    let Some((process, name)) = owner(protocol, port) else { return PortState::Taken(None) };
    if ours.is_some() && fs::read_link(format!("/proc/{process}/exe")).ok() == ours {
        return PortState::Ours;
    }
    PortState::Taken(Some(format!("{name} (process {process})")))
}

/// A process of this user that has a socket with this port; others' descriptors are not to be seen.
fn owner(protocol: &str, port: u16) -> Option<(String, String)> {
    let tables = [protocol.to_owned(), format!("{protocol}6")];
    let tables =
        tables.iter().map(|table| fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default());
    let sockets: Vec<String> =
        tables.flat_map(|table| inodes(&table, port)).map(|inode| format!("socket:[{inode}]")).collect();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut holders = processes.filter(|process| {
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { return false };
        let mut targets =
            descriptors.flatten().filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
        targets.any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
    });
    let process = holders.next()?;
    let name = read_text(process.path().join("comm"));
    Some((process.file_name().to_string_lossy().into_owned(), name.trim().to_owned()))
}

/// Inodes of the sockets bound to `port`, of a table as in /proc/net/tcp (proc_pid_net(5)); connections are none of them.
fn inodes(table: &str, port: u16) -> Vec<u64> {
    const INODE: usize = 9;
    let unconnected = |remote: &str| remote.ends_with(":0000");
    let rows = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let local = fields.get(1)?.rsplit_once(':')?.1;
        let bound = u16::from_str_radix(local, 16) == Ok(port) && unconnected(fields.get(2)?);
        bound.then(|| fields.get(INODE)?.parse().ok()).flatten()
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
   0: 00000000:280A 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 31337 1 0 100 0 0 10 0\n\
   1: 0100007F:280A 0100007F:9C40 01 00000000:00000000 00:00000000 00000000  1000        0 42 1 0 20 4 30 10 -1\n\
   2: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7 1 0 100 0 0 10 0\n torn\n";

    #[test]
    fn listening_sockets_are_found_by_their_port() {
        assert_eq!(inodes(TABLE, 10250), [31337]);
        assert_eq!(inodes(TABLE, 22), [7]);
        assert!(inodes(TABLE, 80).is_empty());
    }

    #[test]
    fn a_port_that_is_taken_names_whose_it_is() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let again = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map(drop);
        assert_eq!(state(again, "tcp", port), PortState::Ours);
        assert_eq!(state(Ok(()), "tcp", port), PortState::Free);
        assert_eq!(state(Err(io::ErrorKind::AddrInUse.into()), "tcp", 1), PortState::Taken(None));
        let denied = io::Error::from_raw_os_error(libc::EACCES);
        assert_eq!(state(Err(denied), "tcp", 1), PortState::Refused(libc::EACCES));
    }
}
