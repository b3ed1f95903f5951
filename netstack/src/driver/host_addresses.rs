//! The host's own addresses, followed as they change.
//!
//! # Theory of operation
//! What is asked is the kernel's own choice: the source address of a socket that is connected by the default route
//! (nothing is sent for that). Destinations that nobody has a route of its own for stand in for "the world". Where
//! there is no default route, it is the first global address of an interface other than the loopback. Asked again
//! after every change of addresses or routes, before frames are read, so each flow gets what is true when it begins.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{SockaddrStorage, getsockname};

use crate::stack::HostAddresses;
use crate::sys::netlink::AddressWatch;
use crate::sys::socket::{self, Kind};

/// 240.0.0.0/4 is reserved (RFC 1112 section 4) and 3fff::/20 for documentation (RFC 9637): only a default route
/// leads there.
const WORLD: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(240, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0x3fff, 0xfff, 0xffff, 0, 0, 0, 0, 1)),
];

/// Asks the kernel for the addresses of the current network namespace.
pub(super) fn read(watch: &AddressWatch) -> HostAddresses {
    let mut addresses = HostAddresses::default();
    let by_route = WORLD.into_iter().filter_map(|world| source_towards(world).ok());
    let of_interfaces = watch.addresses().unwrap_or_else(|error| {
        log::debug!("listing addresses failed: {error}");
        Vec::new()
    });
    for address in by_route.chain(of_interfaces).filter(is_global) {
        match address {
            IpAddr::V4(v4) => drop(addresses.v4.get_or_insert(v4)),
            IpAddr::V6(v6) => drop(addresses.v6.get_or_insert(v6)),
        }
    }
    addresses
}

fn source_towards(world: IpAddr) -> io::Result<IpAddr> {
    let fd = socket::open(Kind::Udp, world.is_ipv6())?;
    // The port does not matter, but has to be one.
    socket::connect(fd.as_fd(), SocketAddr::new(world, 9))?;
    let name: SockaddrStorage = getsockname(fd.as_raw_fd())?;
    address_of(&name).ok_or(io::ErrorKind::AddrNotAvailable.into())
}

fn address_of(name: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = name.as_sockaddr_in().map(|v4| v4.ip().into());
    v4.or_else(|| name.as_sockaddr_in6().map(|v6| v6.ip().into()))
}

fn is_global(address: &IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(address.is_unspecified() || address.is_loopback() || link_local)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_others_can_reach_count() {
        let addresses = read(&AddressWatch::new().unwrap());
        let both = [addresses.v4.map(IpAddr::from), addresses.v6.map(IpAddr::from)];
        assert!(both.iter().flatten().all(is_global), "{addresses:?}");
    }
}
