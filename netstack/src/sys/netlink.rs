//! rtnetlink(7), as much as is needed to follow the host's IPv6 default route, and to notice that its addresses change.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket};

const NLMSG_HDRLEN: usize = size_of::<libc::nlmsghdr>();
const RTMSG_LEN: usize = 12;
const RTMGRP_IPV4_IFADDR: u32 = 0x10;
const RTMGRP_IPV4_ROUTE: u32 = 0x40;
const RTMGRP_IPV6_IFADDR: u32 = 0x100;
const RTMGRP_IPV6_ROUTE: u32 = 0x400;

/// Notices changes of addresses and routes.
#[derive(Debug)]
pub(crate) struct AddressWatch(OwnedFd);

impl AddressWatch {
    /// Subscribes to changes in the current network namespace.
    pub(crate) fn new() -> io::Result<Self> {
        let addresses = RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR;
        route_socket(addresses | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE).map(AddressWatch)
    }

    /// Takes the events that are waiting; says whether there were any. Lost events count as some.
    pub(crate) fn read_changes(&mut self) -> io::Result<bool> {
        drain(self.0.as_fd())
    }
}

impl AsRawFd for AddressWatch {
    fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

/// Follows whether the host has an IPv6 default route.
#[derive(Debug)]
pub(crate) struct RouteWatch {
    events: OwnedFd,
    /// Open all the time: an event may come when no descriptor is left.
    questions: OwnedFd,
}

impl RouteWatch {
    /// Subscribes to changes of IPv6 routes in the current network namespace.
    pub(crate) fn new() -> io::Result<Self> {
        let events = route_socket(RTMGRP_IPV6_ROUTE)?;
        Ok(RouteWatch { events, questions: route_socket(0)? })
    }

    /// Takes the events that are waiting; says whether there were any. Lost events (ENOBUFS) count as some.
    pub(crate) fn read_changes(&mut self) -> io::Result<bool> {
        drain(self.events.as_fd())
    }

    /// Asks the kernel whether there is a unicast route to `::/0`.
    pub(crate) fn has_ipv6_default_route(&self) -> io::Result<bool> {
        let socket = self.questions.as_fd();
        // The rest of an answer that could not be read.
        drain(socket)?;
        super::socket::send(socket, &dump_request())?;
        let mut buffer = vec![0; 32 << 10];
        let mut found = false;
        loop {
            let len = match super::socket::recv(socket, &mut buffer) {
                Ok(len) => len,
                // A dump is made while it is asked for: there is nothing to wait for.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(found),
                Err(error) => return Err(error),
            };
            match read_dump(&buffer[..len]) {
                Dump::More(default) => found |= default,
                Dump::Done(default) => return Ok(found | default),
            }
        }
    }
}

impl AsFd for RouteWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

impl AsRawFd for RouteWatch {
    fn as_raw_fd(&self) -> i32 {
        self.events.as_raw_fd()
    }
}

/// Takes what waits in a socket; says whether there was anything.
fn drain(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut any = false;
    let mut buffer = [0; 4096];
    loop {
        match super::socket::recv(socket, &mut buffer) {
            Ok(_) => any = true,
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => any = true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(any),
            Err(error) => return Err(error),
        }
    }
}

/// What one datagram of a dump says: whether it names a default route, and whether more will come.
#[derive(Debug, PartialEq, Eq)]
enum Dump {
    More(bool),
    Done(bool),
}

fn read_dump(mut bytes: &[u8]) -> Dump {
    let mut found = false;
    while let Some(header) = bytes.first_chunk::<NLMSG_HDRLEN>() {
        let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        if len < NLMSG_HDRLEN || len > bytes.len() {
            break;
        }
        match i32::from(kind) {
            libc::NLMSG_DONE | libc::NLMSG_ERROR => return Dump::Done(found),
            _ if kind == libc::RTM_NEWROUTE => found |= is_default_route(&bytes[NLMSG_HDRLEN..len]),
            _ => {}
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Dump::More(found)
}

/// Whether a `struct rtmsg` is a unicast route for everything, in a table that is looked at.
fn is_default_route(message: &[u8]) -> bool {
    let Some(&[family, dst_len, .., kind, _, _, _, _]) = message.first_chunk::<RTMSG_LEN>() else {
        return false;
    };
    i32::from(family) == libc::AF_INET6 && dst_len == 0 && kind == libc::RTN_UNICAST
}

fn dump_request() -> [u8; NLMSG_HDRLEN + RTMSG_LEN] {
    let mut request = [0; NLMSG_HDRLEN + RTMSG_LEN];
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    request[0..4].copy_from_slice(&((NLMSG_HDRLEN + RTMSG_LEN) as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&libc::RTM_GETROUTE.to_ne_bytes());
    request[6..8].copy_from_slice(&flags.to_ne_bytes());
    request[NLMSG_HDRLEN] = libc::AF_INET6 as u8;
    request
}

fn route_socket(groups: u32) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(family: u8, dst_len: u8, kind: u8) -> Vec<u8> {
        let mut message = vec![0; NLMSG_HDRLEN + RTMSG_LEN];
        message[0..4].copy_from_slice(&28u32.to_ne_bytes());
        message[4..6].copy_from_slice(&libc::RTM_NEWROUTE.to_ne_bytes());
        message[NLMSG_HDRLEN] = family;
        message[NLMSG_HDRLEN + 1] = dst_len;
        message[NLMSG_HDRLEN + 7] = kind;
        message
    }

    #[test]
    fn only_a_unicast_route_to_everything_counts() {
        assert_eq!(read_dump(&route(10, 0, 1)), Dump::More(true));
        assert_eq!(read_dump(&route(10, 64, 1)), Dump::More(false));
        assert_eq!(read_dump(&route(10, 0, 7)), Dump::More(false), "unreachable");
        assert_eq!(read_dump(&route(2, 0, 1)), Dump::More(false), "IPv4");
    }

    #[test]
    fn a_dump_ends_where_the_kernel_says() {
        let mut bytes = route(10, 0, 1);
        let mut done = vec![0; NLMSG_HDRLEN];
        done[0] = 16;
        done[4] = libc::NLMSG_DONE as u8;
        bytes.extend(done);
        assert_eq!(read_dump(&bytes), Dump::Done(true));
        assert_eq!(read_dump(&[1, 0, 0]), Dump::More(false));
    }

    #[test]
    fn the_kernel_answers() {
        let mut watch = RouteWatch::new().unwrap();
        assert!(!watch.read_changes().unwrap());
        watch.has_ipv6_default_route().unwrap();
    }
}
