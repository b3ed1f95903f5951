//! rtnetlink(7), as much as the agent needs to set a rule and a route, and the driver to know the child's addresses.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::net::if_::if_nameindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

use crate::protocol::Change;
use crate::spec::Family;

const NLMSG_HDRLEN: usize = 16;
const LOOPBACK: u32 = 1;
const FR_ACT_TO_TBL: u8 = 1;
const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_IP_PROTO: u16 = 22;
const FRA_SPORT_RANGE: u16 = 23;
const FRA_DPORT_RANGE: u16 = 24;
/// Metric of routes that come after those without one (1024 for IPv6).
const LEAST: u32 = 2048;
const RTMGRP_IPV4_IFADDR: u32 = 0x10;
const RTMGRP_IPV6_IFADDR: u32 = 0x100;

/// A route socket in the caller's network namespace, which hears of changes of addresses if `groups` says so.
fn open(groups: u32, flags: SockFlag) -> io::Result<OwnedFd> {
    let flags = flags | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(fd)
}

/// A route socket for [`LocalAddresses`], made by the agent.
pub(crate) fn address_socket() -> io::Result<OwnedFd> {
    open(RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR, SockFlag::SOCK_NONBLOCK)
}

/// Makes every destination of packets with `mark` a local one, by a rule and a table of its own. What is there
/// already is fine.
pub(crate) fn deliver_marked_locally(family: Family, mark: u32, table: u32, priority: u32) -> io::Result<()> {
    let socket = open(0, SockFlag::empty())?;
    perform(&socket, &route(family, table, LOOPBACK))?;
    perform(&socket, &rule(family, mark, table, priority))?;
    // Sockets that are tied to an interface (SO_BINDTODEVICE) look for a route by that one only.
    let Ok(interfaces) = if_nameindex() else { return Ok(()) };
    for interface in interfaces.iter().map(|found| found.index()).filter(|&index| index != LOOPBACK) {
        if let Err(error) = perform(&socket, &route(family, table, interface)) {
            log::debug!("sockets tied to interface {interface} are not served: {error}");
        }
    }
    Ok(())
}

/// Has unmarked TCP packets from one address and port to another looked up in `table`, or not any more. What is so already is fine.
pub(crate) fn route_connection(
    change: Change,
    (from, to): (SocketAddr, SocketAddr),
    table: u32,
    priority: u32,
) -> io::Result<()> {
    let socket = open(0, SockFlag::empty())?;
    match exchange(&socket, &connection_rule(change, (from, to), table, priority))? {
        0 | libc::EEXIST | libc::ENOENT => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Removes the rules of [`route_connection`] that somebody has left.
pub(crate) fn forget_connections(family: Family, table: u32, priority: u32) -> io::Result<()> {
    let socket = open(0, SockFlag::empty())?;
    let mut request = begin(libc::RTM_DELRULE, 0);
    request.extend([domain(family), 0, 0, 0, libc::RT_TABLE_UNSPEC, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0]);
    attribute(&mut request, FRA_PRIORITY, priority);
    attribute(&mut request, FRA_TABLE, table);
    let request = end(request);
    loop {
        match exchange(&socket, &request)? {
            0 => {}
            libc::ENOENT => return Ok(()),
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

fn perform(socket: &OwnedFd, request: &[u8]) -> io::Result<()> {
    match exchange(socket, request)? {
        0 | libc::EEXIST => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// What the kernel says to a request: errno(3), or 0.
fn exchange(socket: &OwnedFd, request: &[u8]) -> io::Result<i32> {
    send(socket.as_raw_fd(), request, MsgFlags::empty())?;
    let mut answer = [0; 1024];
    let len = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let errno = acknowledgement(&answer[..len.min(answer.len())]);
    errno.ok_or_else(|| io::Error::from_raw_os_error(libc::EPROTO))
}

fn rule(family: Family, mark: u32, table: u32, priority: u32) -> Vec<u8> {
    let mut request = begin(libc::RTM_NEWRULE, ADD);
    request.extend([domain(family), 0, 0, 0, libc::RT_TABLE_UNSPEC, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0]);
    attribute(&mut request, FRA_PRIORITY, priority);
    attribute(&mut request, FRA_FWMARK, mark);
    attribute(&mut request, FRA_FWMASK, u32::MAX);
    attribute(&mut request, FRA_TABLE, table);
    end(request)
}

fn connection_rule(
    change: Change,
    (from, to): (SocketAddr, SocketAddr),
    table: u32,
    priority: u32,
) -> Vec<u8> {
    let octets = |address| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let (source, destination) = (octets(from.ip()), octets(to.ip()));
    let bits = |octets: &[u8]| octets.len() as u8 * 8;
    let mut request = match change {
        Change::Add => begin(libc::RTM_NEWRULE, ADD),
        Change::Remove => begin(libc::RTM_DELRULE, 0),
    };
    request.extend([domain(Family::of(to.ip())), bits(&destination), bits(&source), 0]);
    request.extend([libc::RT_TABLE_UNSPEC, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0]);
    attribute_bytes(&mut request, FRA_DST, &destination);
    attribute_bytes(&mut request, FRA_SRC, &source);
    attribute_bytes(&mut request, FRA_IP_PROTO, &[libc::IPPROTO_TCP as u8]);
    for (kind, port) in [(FRA_SPORT_RANGE, from.port()), (FRA_DPORT_RANGE, to.port())] {
        attribute_bytes(&mut request, kind, &[port.to_ne_bytes(), port.to_ne_bytes()].concat());
    }
    attribute(&mut request, FRA_PRIORITY, priority);
    attribute(&mut request, FRA_FWMARK, 0);
    attribute(&mut request, FRA_FWMASK, u32::MAX);
    attribute(&mut request, FRA_TABLE, table);
    end(request)
}

/// Whatever its interface, what goes to a local destination takes the loopback device.
fn route(family: Family, table: u32, interface: u32) -> Vec<u8> {
    let scope = match family {
        Family::V4 => libc::RT_SCOPE_HOST,
        Family::V6 => libc::RT_SCOPE_UNIVERSE,
    };
    let mut request = begin(libc::RTM_NEWROUTE, ADD);
    request.extend([domain(family), 0, 0, 0, libc::RT_TABLE_UNSPEC, libc::RTPROT_STATIC, scope]);
    request.extend([libc::RTN_LOCAL, 0, 0, 0, 0]);
    attribute(&mut request, libc::RTA_OIF, interface);
    attribute(&mut request, libc::RTA_TABLE, table);
    if interface != LOOPBACK {
        attribute(&mut request, libc::RTA_PRIORITY, LEAST + interface);
    }
    end(request)
}

fn domain(family: Family) -> u8 {
    match family {
        Family::V4 => libc::AF_INET as u8,
        Family::V6 => libc::AF_INET6 as u8,
    }
}

const ADD: i32 = libc::NLM_F_CREATE | libc::NLM_F_EXCL;

fn begin(kind: u16, flags: i32) -> Vec<u8> {
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags;
    let mut request = vec![0; 4];
    request.extend(kind.to_ne_bytes());
    request.extend((flags as u16).to_ne_bytes());
    request.extend([0; 8]);
    request
}

fn attribute(request: &mut Vec<u8>, kind: u16, value: u32) {
    attribute_bytes(request, kind, &value.to_ne_bytes());
}

fn attribute_bytes(request: &mut Vec<u8>, kind: u16, value: &[u8]) {
    request.extend((4 + value.len() as u16).to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(value);
    request.resize(request.len().next_multiple_of(4), 0);
}

fn end(mut request: Vec<u8>) -> Vec<u8> {
    let len = request.len() as u32;
    request[..4].copy_from_slice(&len.to_ne_bytes());
    request
}

/// The errno of an acknowledgement, 0 for success.
fn acknowledgement(answer: &[u8]) -> Option<i32> {
    let (kind, body) = messages(answer).next()?;
    (i32::from(kind) == libc::NLMSG_ERROR).then_some(())?;
    Some(i32::from_ne_bytes(*body.first_chunk()?).wrapping_neg())
}

/// The sequence number and errno of each acknowledgement, 0 for success.
pub(super) fn acknowledgements(bytes: &[u8]) -> impl Iterator<Item = (u32, i32)> {
    messages(bytes).filter(|(kind, _)| i32::from(*kind) == libc::NLMSG_ERROR).filter_map(|(_, body)| {
        let errno = i32::from_ne_bytes(*body.first_chunk()?).wrapping_neg();
        // The header of the message that is acknowledged follows.
        let sequence = u32::from_ne_bytes(*body.get(12..)?.first_chunk()?);
        Some((sequence, errno))
    })
}

/// Walks netlink messages: type and body; stops at the first that is cut short.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<NLMSG_HDRLEN>()?;
        let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let body = bytes.get(NLMSG_HDRLEN..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// The addresses of a namespace, followed as they come and go.
#[derive(Debug)]
pub(crate) struct LocalAddresses {
    socket: OwnedFd,
    addresses: BTreeSet<IpAddr>,
}

impl LocalAddresses {
    /// Follows the namespace that `socket` (of [`address_socket`]) was made in.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        let mut local = LocalAddresses { socket, addresses: BTreeSet::new() };
        local.ask()?;
        local.read_changes()?;
        Ok(local)
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.addresses.contains(&address)
    }

    /// Takes what the kernel says; call when the socket is readable.
    pub(crate) fn read_changes(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; 32 << 10];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(len) => self.take(buffer.get(..len).unwrap_or_default()),
                Err(nix::errno::Errno::EAGAIN) => return Ok(()),
                // Something was lost: ask for everything.
                Err(nix::errno::Errno::ENOBUFS) => {
                    self.addresses.clear();
                    self.ask()?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn ask(&self) -> io::Result<()> {
        let mut request = vec![0; 4];
        request.extend(libc::RTM_GETADDR.to_ne_bytes());
        request.extend(((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
        request.extend([0; 16]);
        send(self.socket.as_raw_fd(), &end(request), MsgFlags::MSG_DONTWAIT)?;
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) {
        for (kind, body) in messages(bytes) {
            let Some(address) = interface_address(body) else { continue };
            match kind {
                libc::RTM_NEWADDR => drop(self.addresses.insert(address)),
                libc::RTM_DELADDR => drop(self.addresses.remove(&address)),
                _ => {}
            }
        }
    }
}

impl AsFd for LocalAddresses {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The address in a `struct ifaddrmsg` and its attributes: `IFA_LOCAL`, or `IFA_ADDRESS` where there is none.
fn interface_address(body: &[u8]) -> Option<IpAddr> {
    let family = i32::from(*body.first()?);
    let mut rest = body.get(8..)?;
    let mut found = None;
    while let Some(header) = rest.first_chunk::<4>() {
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]);
        let value = rest.get(4..len)?;
        let address = || match family {
            libc::AF_INET => Some(IpAddr::from(Ipv4Addr::from(*value.first_chunk::<4>()?))),
            libc::AF_INET6 => Some(IpAddr::from(Ipv6Addr::from(*value.first_chunk::<16>()?))),
            _ => None,
        };
        match kind {
            libc::IFA_LOCAL => return address(),
            libc::IFA_ADDRESS => found = address(),
            _ => {}
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn rule_and_route_are_what_iproute2_would_send() {
        #[rustfmt::skip]
        assert_eq!(rule(Family::V4, 0x0102, 77, 100), [
            60, 0, 0, 0, 32, 0, 5, 6, 0, 0, 0, 0, 0, 0, 0, 0,
            2, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0,
            8, 0, 6, 0, 100, 0, 0, 0, 8, 0, 10, 0, 2, 1, 0, 0,
            8, 0, 16, 0, 255, 255, 255, 255, 8, 0, 15, 0, 77, 0, 0, 0,
        ]);
        let ends = ("10.0.2.100:258".parse().unwrap(), "198.51.100.1:80".parse().unwrap());
        #[rustfmt::skip]
        assert_eq!(connection_rule(Change::Remove, ends, 77, 2), [
            100, 0, 0, 0, 33, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            2, 32, 32, 0, 0, 0, 0, 1, 0, 0, 0, 0,
            8, 0, 1, 0, 198, 51, 100, 1, 8, 0, 2, 0, 10, 0, 2, 100,
            5, 0, 22, 0, 6, 0, 0, 0, 8, 0, 23, 0, 2, 1, 2, 1, 8, 0, 24, 0, 80, 0, 80, 0,
            8, 0, 6, 0, 2, 0, 0, 0, 8, 0, 10, 0, 0, 0, 0, 0,
            8, 0, 16, 0, 255, 255, 255, 255, 8, 0, 15, 0, 77, 0, 0, 0,
        ]);
        #[rustfmt::skip]
        assert_eq!(route(Family::V6, 77, LOOPBACK), [
            44, 0, 0, 0, 24, 0, 5, 6, 0, 0, 0, 0, 0, 0, 0, 0,
            10, 0, 0, 0, 0, 4, 0, 2, 0, 0, 0, 0,
            8, 0, 4, 0, 1, 0, 0, 0, 8, 0, 15, 0, 77, 0, 0, 0,
        ]);
    }

    #[test]
    fn addresses_of_this_namespace_are_found() {
        let local = LocalAddresses::new(address_socket().unwrap()).unwrap();
        assert!(local.contains("127.0.0.1".parse().unwrap()));
        assert!(!local.contains("198.51.100.77".parse().unwrap()));
    }

    #[test]
    fn attributes_that_lie_about_their_length_are_left_out() {
        let mut body = vec![2, 0, 0, 0, 0, 0, 0, 0];
        body.extend([200, 0, 2, 0, 10, 0, 0, 1]);
        assert_eq!(interface_address(&body), None);
        body[8] = 0;
        assert_eq!(interface_address(&body), None);
        body[8] = 8;
        assert_eq!(interface_address(&body), Some([10, 0, 0, 1].into()));
    }
}
