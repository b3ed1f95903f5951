//! rtnetlink(7), as much as is needed to follow the host's IPv6 default route, and to notice that its addresses change.

use std::io;
use std::mem::size_of;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket};

const NLMSG_HDRLEN: usize = size_of::<libc::nlmsghdr>();
const RTMSG_LEN: usize = 12;
const IFADDRMSG_LEN: usize = 8;
/// Of `lo`, in every network namespace.
const LOOPBACK_INDEX: u32 = 1;
const RTMGRP_IPV4_IFADDR: u32 = 0x10;
const RTMGRP_IPV4_ROUTE: u32 = 0x40;
const RTMGRP_IPV6_IFADDR: u32 = 0x100;
const RTMGRP_IPV6_ROUTE: u32 = 0x400;

/// Notices changes of addresses and routes, and lists addresses.
#[derive(Debug)]
pub(crate) struct AddressWatch {
    events: OwnedFd,
    /// Open all the time: a sandbox may forbid to open another.
    questions: OwnedFd,
}

impl AddressWatch {
    /// Subscribes to changes in the current network namespace.
    pub(crate) fn new() -> io::Result<Self> {
        let addresses = RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR;
        let events = route_socket(addresses | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE)?;
        Ok(AddressWatch { events, questions: route_socket(0)? })
    }

    /// Takes the events that are waiting; says whether there were any. Lost events count as some.
    pub(crate) fn read_changes(&mut self) -> io::Result<bool> {
        drain(self.events.as_fd())
    }

    /// The addresses of global scope, in the kernel's order, without those of the loopback interface.
    pub(crate) fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        let mut found = Vec::new();
        dump(self.questions.as_fd(), libc::RTM_GETADDR, libc::AF_UNSPEC, |kind, message| {
            if kind == libc::RTM_NEWADDR {
                found.extend(global_address(message));
            }
        })?;
        Ok(found)
    }
}

impl AsRawFd for AddressWatch {
    fn as_raw_fd(&self) -> i32 {
        self.events.as_raw_fd()
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
        let mut found = false;
        dump(self.questions.as_fd(), libc::RTM_GETROUTE, libc::AF_INET6, |kind, message| {
            found |= kind == libc::RTM_NEWROUTE && is_default_route(message);
        })?;
        Ok(found)
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

/// Asks for everything of one kind and family, and shows each message of the answer: its type and what follows the
/// header.
fn dump(socket: BorrowedFd<'_>, ask: u16, family: i32, mut see: impl FnMut(u16, &[u8])) -> io::Result<()> {
    // The rest of an answer that could not be read.
    drain(socket)?;
    super::socket::send(socket, &dump_request(ask, family))?;
    let mut buffer = vec![0; 32 << 10];
    loop {
        let len = match super::socket::recv(socket, &mut buffer) {
            Ok(len) => len,
            // A dump is made while it is asked for: there is nothing to wait for.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        if read_dump(&buffer[..len], &mut see) == Dump::Done {
            return Ok(());
        }
    }
}

/// Whether more of a dump will come.
#[derive(Debug, PartialEq, Eq)]
enum Dump {
    More,
    Done,
}

fn read_dump(mut bytes: &[u8], see: &mut impl FnMut(u16, &[u8])) -> Dump {
    while let Some(header) = bytes.first_chunk::<NLMSG_HDRLEN>() {
        let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        if len < NLMSG_HDRLEN || len > bytes.len() {
            break;
        }
        if matches!(i32::from(kind), libc::NLMSG_DONE | libc::NLMSG_ERROR) {
            return Dump::Done;
        }
        see(kind, &bytes[NLMSG_HDRLEN..len]);
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Dump::More
}

/// The address in a `struct ifaddrmsg` and its attributes, if it is of global scope and not the loopback's.
fn global_address(message: &[u8]) -> Option<IpAddr> {
    let (&[family, _, _, scope, index @ ..], mut attributes) =
        message.split_first_chunk::<IFADDRMSG_LEN>()?;
    if scope != libc::RT_SCOPE_UNIVERSE || u32::from_ne_bytes(index) == LOOPBACK_INDEX {
        return None;
    }
    let mut found = None;
    while let Some(header) = attributes.first_chunk::<4>() {
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = attributes.get(4..len)?;
        let address = match i32::from(family) {
            libc::AF_INET => value.try_into().ok().map(|octets: [u8; 4]| IpAddr::from(octets)),
            _ => value.try_into().ok().map(|octets: [u8; 16]| IpAddr::from(octets)),
        };
        match u16::from_ne_bytes([header[2], header[3]]) {
            // Of a point-to-point link, the other attribute is the peer's.
            libc::IFA_LOCAL => return address,
            libc::IFA_ADDRESS => found = address,
            _ => {}
        }
        attributes = attributes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// Whether a `struct rtmsg` is a unicast route for everything, in a table that is looked at.
fn is_default_route(message: &[u8]) -> bool {
    let Some(&[family, dst_len, .., kind, _, _, _, _]) = message.first_chunk::<RTMSG_LEN>() else {
        return false;
    };
    i32::from(family) == libc::AF_INET6 && dst_len == 0 && kind == libc::RTN_UNICAST
}

fn dump_request(ask: u16, family: i32) -> [u8; NLMSG_HDRLEN + RTMSG_LEN] {
    let mut request = [0; NLMSG_HDRLEN + RTMSG_LEN];
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    request[0..4].copy_from_slice(&((NLMSG_HDRLEN + RTMSG_LEN) as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&ask.to_ne_bytes());
    request[6..8].copy_from_slice(&flags.to_ne_bytes());
    request[NLMSG_HDRLEN] = family as u8;
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

    /// Whether there is a default route, and whether more will come.
    fn default_in(bytes: &[u8]) -> (bool, Dump) {
        let mut found = false;
        let dump = read_dump(bytes, &mut |kind, message| {
            found |= kind == libc::RTM_NEWROUTE && is_default_route(message);
        });
        (found, dump)
    }

    #[test]
    fn only_a_unicast_route_to_everything_counts() {
        assert_eq!(default_in(&route(10, 0, 1)), (true, Dump::More));
        assert_eq!(default_in(&route(10, 64, 1)), (false, Dump::More));
        assert_eq!(default_in(&route(10, 0, 7)), (false, Dump::More), "unreachable");
        assert_eq!(default_in(&route(2, 0, 1)), (false, Dump::More), "IPv4");
    }

    #[test]
    fn a_dump_ends_where_the_kernel_says() {
        let mut bytes = route(10, 0, 1);
        let mut done = vec![0; NLMSG_HDRLEN];
        done[0] = 16;
        done[4] = libc::NLMSG_DONE as u8;
        bytes.extend(done);
        assert_eq!(default_in(&bytes), (true, Dump::Done));
        assert_eq!(default_in(&[1, 0, 0]), (false, Dump::More));
    }

    #[test]
    fn global_addresses_are_told_from_others() {
        let address = |scope, index, attributes: &[(u16, [u8; 4])]| {
            let mut message = vec![2, 24, 0, scope, index, 0, 0, 0];
            for (kind, octets) in attributes {
                message.extend(8u16.to_ne_bytes().into_iter().chain(kind.to_ne_bytes()).chain(*octets));
            }
            global_address(&message)
        };
        let [own, peer] = [[192, 0, 2, 1], [192, 0, 2, 2]];
        assert_eq!(address(0, 2, &[(libc::IFA_ADDRESS, peer), (libc::IFA_LOCAL, own)]), Some(own.into()));
        assert_eq!(address(0, 2, &[(libc::IFA_ADDRESS, own)]), Some(own.into()));
        assert_eq!(address(253, 2, &[(libc::IFA_ADDRESS, own)]), None, "of the link only");
        assert_eq!(address(0, 1, &[(libc::IFA_ADDRESS, own)]), None, "of the loopback interface");
        assert_eq!(global_address(&[2, 24, 0, 0, 2, 0, 0, 0, 200, 0, 1, 0]), None, "cut off");
        assert!(AddressWatch::new().unwrap().addresses().is_ok());
    }

    #[test]
    fn the_kernel_answers() {
        let mut watch = RouteWatch::new().unwrap();
        assert!(!watch.read_changes().unwrap());
        watch.has_ipv6_default_route().unwrap();
    }
}
