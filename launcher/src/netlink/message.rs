//! rtnetlink requests as bytes, and the answers read back (netlink(7), rtnetlink(7)). Pure.
//!
//! Integers are in host byte order, addresses in network byte order, attributes padded to 4 bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

const NLMSG_LEN: Range<usize> = 0..4;
const NLMSG_TYPE: Range<usize> = 4..6;
const NLMSG_SEQ: Range<usize> = 8..12;
const NLMSG_HEADER: usize = 16;
const ERROR_CODE: Range<usize> = 16..20;

/// linux/if_link.h
const IFLA_GSO_IPV4_MAX_SIZE: u16 = 63;

// linux/rtnetlink.h
const RTAX_ADVMSS: u16 = 8;
const RTM_FAMILY: usize = 16;
const RTM_DST_LEN: usize = 17;
const RTM_KIND: usize = 23;

/// Index of a network interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface(pub u32);

/// The loopback interface has this index in every network namespace.
pub const LOOPBACK: Interface = Interface(1);

/// A route through an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Network that it leads to; prefix 0 is everything.
    pub network: IpAddr,
    /// Length of its prefix in bits.
    pub prefix: u8,
    /// The next hop, of the same family; without one the network is on the link.
    pub gateway: Option<IpAddr>,
}

impl Route {
    /// Everything through `gateway`.
    pub fn default_through(gateway: IpAddr) -> Self {
        let network = match gateway {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Route { network, prefix: 0, gateway: Some(gateway) }
    }
}

/// Requests that are sent together; each is acknowledged.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    names: Vec<&'static str>,
    existing: Existing,
}

/// What becomes of an address or a route that is there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Existing {
    /// The request fails: in a fresh namespace nothing is there.
    #[default]
    Refuse,
    /// It is replaced: somebody else has been there before.
    Replace,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Batch::default()
    }

    /// An empty batch that does with what is there already as it is told.
    pub fn with(existing: Existing) -> Self {
        Batch { existing, ..Batch::default() }
    }

    /// Sets an interface up, changing nothing else.
    pub fn link_up(&mut self, interface: Interface) {
        let start = self.begin("setting the link up", libc::RTM_NEWLINK, 0);
        self.link_header(interface);
        self.end(start);
    }

    /// Sets MTU and queue length of an interface and then sets it up.
    pub fn link_up_with(&mut self, interface: Interface, mtu: u32, queue: u32) {
        let start = self.begin("setting MTU and queue length", libc::RTM_NEWLINK, 0);
        self.link_header(interface);
        self.attribute(libc::IFLA_MTU, &mtu.to_ne_bytes());
        self.attribute(libc::IFLA_TXQLEN, &queue.to_ne_bytes());
        self.end(start);
    }

    /// Sets how large the TCP segments may be, in bytes, that are handed to an interface, and sets it up: IPv6 with
    /// Linux 5.19, IPv4 with 6.3 and later. Kernels from before refuse it or ignore the part they do not know.
    pub fn segment_sizes(&mut self, interface: Interface, bytes: u32) {
        let start = self.begin("setting the size of segments", libc::RTM_NEWLINK, 0);
        self.link_header(interface);
        self.attribute(libc::IFLA_GSO_MAX_SIZE, &bytes.to_ne_bytes());
        self.attribute(IFLA_GSO_IPV4_MAX_SIZE, &bytes.to_ne_bytes());
        self.end(start);
    }

    /// Sets the MAC address of an interface and then sets it up.
    pub fn link_up_with_mac(&mut self, interface: Interface, mac: [u8; 6]) {
        let start = self.begin("setting the MAC address", libc::RTM_NEWLINK, 0);
        self.link_header(interface);
        self.attribute(libc::IFLA_ADDRESS, &mac);
        self.end(start);
    }

    /// Gives a VXLAN device the address that it sends from, changing nothing else.
    pub fn set_vxlan_local(&mut self, interface: Interface, local: Ipv4Addr) {
        // linux/if_link.h
        const IFLA_VXLAN_LOCAL: u16 = 4;
        let start = self.begin("setting the VXLAN device's address", libc::RTM_NEWLINK, 0);
        self.bytes.extend([0; 4]);
        self.bytes.extend(interface.0.to_ne_bytes());
        self.bytes.extend([0; 8]);
        self.nested(libc::IFLA_LINKINFO, |batch| {
            batch.attribute(libc::IFLA_INFO_KIND, b"vxlan");
            batch.nested(libc::IFLA_INFO_DATA, |batch| batch.attribute(IFLA_VXLAN_LOCAL, &local.octets()));
        });
        self.end(start);
    }

    /// Asks for the forwarding tables of all bridges and tunnels.
    pub fn list_forwarding(&mut self) {
        let start = self.begin("listing forwarding tables", libc::RTM_GETNEIGH, libc::NLM_F_DUMP);
        // `struct ndmsg`, linux/neighbour.h
        self.bytes.extend([libc::AF_BRIDGE as u8]);
        self.bytes.extend([0; 11]);
        self.end(start);
    }

    /// Makes a virtual device of this kind; `settings` are the attributes of its own.
    pub fn add_link(&mut self, name: &str, kind: &str, settings: &[(u16, &[u8])]) {
        let start = self.begin("making a device", libc::RTM_NEWLINK, self.create());
        self.bytes.extend([0; 16]);
        self.attribute(libc::IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
        self.nested(libc::IFLA_LINKINFO, |batch| {
            batch.attribute(libc::IFLA_INFO_KIND, kind.as_bytes());
            batch.nested(libc::IFLA_INFO_DATA, |batch| {
                settings.iter().for_each(|(kind, value)| batch.attribute(*kind, value));
            });
        });
        self.end(start);
    }

    /// Adds an IPv4 address with its broadcast address.
    pub fn add_ipv4(&mut self, interface: Interface, address: Ipv4Addr, prefix: u8, broadcast: Ipv4Addr) {
        let start = self.begin("adding the IPv4 address", libc::RTM_NEWADDR, self.create());
        self.address_header(libc::AF_INET, prefix, 0, interface);
        self.attribute(libc::IFA_LOCAL, &address.octets());
        self.attribute(libc::IFA_ADDRESS, &address.octets());
        self.attribute(libc::IFA_BROADCAST, &broadcast.octets());
        self.end(start);
    }

    /// Adds an IPv4 address of a device that leads nowhere: no network, no broadcast address.
    pub fn add_ipv4_alone(&mut self, interface: Interface, address: Ipv4Addr) {
        let start = self.begin("adding the address", libc::RTM_NEWADDR, self.create());
        self.address_header(libc::AF_INET, 32, 0, interface);
        self.attribute(libc::IFA_LOCAL, &address.octets());
        self.attribute(libc::IFA_ADDRESS, &address.octets());
        self.end(start);
    }

    /// Has packets to an address of a device's no longer delivered here. The kernel made the route with the address.
    pub fn forsake(&mut self, address: IpAddr) {
        let start = self.begin("taking the address out of the local routes", libc::RTM_DELROUTE, 0);
        // IPv6 knows no scopes of routes.
        let (family, prefix, scope) = match address {
            IpAddr::V4(_) => (libc::AF_INET, 32, libc::RT_SCOPE_HOST),
            IpAddr::V6(_) => (libc::AF_INET6, 128, libc::RT_SCOPE_UNIVERSE),
        };
        self.bytes.extend([family as u8, prefix, 0, 0]);
        self.bytes.extend([libc::RT_TABLE_LOCAL, libc::RTPROT_KERNEL, scope, libc::RTN_LOCAL]);
        self.bytes.extend([0; 4]);
        self.address(libc::RTA_DST, address);
        self.end(start);
    }

    /// Adds an IPv6 address without duplicate address detection, so that it can be used at once.
    pub fn add_ipv6(&mut self, interface: Interface, address: Ipv6Addr, prefix: u8) {
        let start = self.begin("adding the IPv6 address", libc::RTM_NEWADDR, self.create());
        self.address_header(libc::AF_INET6, prefix, libc::IFA_F_NODAD as u8, interface);
        self.attribute(libc::IFA_LOCAL, &address.octets());
        self.attribute(libc::IFA_ADDRESS, &address.octets());
        self.end(start);
    }

    /// Adds an IPv6 address of a device that leads nowhere: no network. It is usable, and has its route, some time later.
    pub fn add_ipv6_alone(&mut self, interface: Interface, address: Ipv6Addr) {
        let start = self.begin("adding the address", libc::RTM_NEWADDR, self.create());
        self.address_header(libc::AF_INET6, 128, 0, interface);
        self.attribute(libc::IFA_LOCAL, &address.octets());
        self.attribute(libc::IFA_ADDRESS, &address.octets());
        let flags = libc::IFA_F_NODAD | libc::IFA_F_NOPREFIXROUTE;
        self.attribute(libc::IFA_FLAGS, &flags.to_ne_bytes());
        self.end(start);
    }

    /// Adds the IPv4 default route. TCP connections by it tell their peers to send segments of up to `mss` bytes (RTAX_ADVMSS,
    /// ip-route(8)), whatever the interface's MTU.
    pub fn add_default_route(&mut self, interface: Interface, gateway: Ipv4Addr, mss: u32) {
        self.add_route_with(interface, &Route::default_through(gateway.into()), Some(mss));
    }

    /// Adds a route.
    pub fn add_route(&mut self, interface: Interface, route: &Route) {
        self.add_route_with(interface, route, None);
    }

    fn add_route_with(&mut self, interface: Interface, route: &Route, mss: Option<u32>) {
        let name = if route.prefix == 0 { "adding the default route" } else { "adding a route" };
        let start = self.begin(name, libc::RTM_NEWROUTE, self.create());
        let (family, scope) = match (route.network, route.gateway) {
            (IpAddr::V4(_), Some(_)) => (libc::AF_INET, libc::RT_SCOPE_UNIVERSE),
            (IpAddr::V4(_), None) => (libc::AF_INET, libc::RT_SCOPE_LINK),
            (IpAddr::V6(_), _) => (libc::AF_INET6, libc::RT_SCOPE_UNIVERSE),
        };
        self.bytes.extend([family as u8, route.prefix, 0, 0]);
        self.bytes.extend([libc::RT_TABLE_MAIN, libc::RTPROT_STATIC, scope, libc::RTN_UNICAST]);
        self.bytes.extend([0; 4]);
        if route.prefix > 0 {
            self.address(libc::RTA_DST, route.network);
        }
        if let Some(gateway) = route.gateway {
            self.address(libc::RTA_GATEWAY, gateway);
        }
        self.attribute(libc::RTA_OIF, &interface.0.to_ne_bytes());
        if let Some(mss) = mss {
            self.nested(libc::RTA_METRICS, |batch| batch.attribute(RTAX_ADVMSS, &mss.to_ne_bytes()));
        }
        self.end(start);
    }

    /// What goes over the socket.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many acknowledgements will come.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// What the request with this sequence number does.
    pub fn name(&self, sequence: u32) -> &'static str {
        self.names.get(sequence as usize).copied().unwrap_or("unknown request")
    }

    fn create(&self) -> libc::c_int {
        match self.existing {
            Existing::Refuse => libc::NLM_F_CREATE | libc::NLM_F_EXCL,
            Existing::Replace => libc::NLM_F_CREATE | libc::NLM_F_REPLACE,
        }
    }

    fn begin(&mut self, name: &'static str, kind: u16, flags: libc::c_int) -> usize {
        let start = self.bytes.len();
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16;
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend((self.names.len() as u32).to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.names.push(name);
        start
    }

    fn link_header(&mut self, interface: Interface) {
        let up = (libc::IFF_UP as u32).to_ne_bytes();
        self.bytes.extend([0; 4]);
        self.bytes.extend(interface.0.to_ne_bytes());
        self.bytes.extend(up);
        self.bytes.extend(up);
    }

    fn address_header(&mut self, family: libc::c_int, prefix: u8, flags: u8, interface: Interface) {
        self.bytes.extend([family as u8, prefix, flags, libc::RT_SCOPE_UNIVERSE]);
        self.bytes.extend(interface.0.to_ne_bytes());
    }

    fn address(&mut self, kind: u16, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.attribute(kind, &address.octets()),
            IpAddr::V6(address) => self.attribute(kind, &address.octets()),
        }
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.bytes.extend((4 + value.len() as u16).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn nested(&mut self, kind: u16, write: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_ne_bytes());
        write(self);
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn end(&mut self, start: usize) {
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..][NLMSG_LEN].copy_from_slice(&length.to_ne_bytes());
    }
}

/// What the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The request with this number was done (0) or failed (errno).
    Acknowledged {
        /// Number of the request in its batch.
        sequence: u32,
        /// 0 or errno(3).
        errno: i32,
    },
    /// A default route of this family appeared.
    DefaultRoute(IpFamily),
    /// Packets to this IPv6 address are delivered here from now on.
    LocalAddress(Ipv6Addr),
    /// A tunnel sends something to this host: its forwarding table says so.
    TunnelPeer(IpAddr),
    /// A list is complete.
    Done,
    /// Something else.
    Other,
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl From<IpAddr> for IpFamily {
    fn from(address: IpAddr) -> Self {
        if address.is_ipv4() { IpFamily::V4 } else { IpFamily::V6 }
    }
}

/// Reads every message of one datagram; what is cut short is left out.
pub fn replies(mut bytes: &[u8]) -> impl Iterator<Item = Reply> + '_ {
    std::iter::from_fn(move || {
        let length = read_u32(bytes, NLMSG_LEN)? as usize;
        if length < NLMSG_HEADER || length > bytes.len() {
            return None;
        }
        let (message, _) = bytes.split_at(length);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(reply(message))
    })
}

fn reply(message: &[u8]) -> Reply {
    let kind = message.get(NLMSG_TYPE).and_then(|kind| kind.try_into().ok()).map_or(0, u16::from_ne_bytes);
    if i32::from(kind) == libc::NLMSG_ERROR {
        let (Some(sequence), Some(code)) = (read_u32(message, NLMSG_SEQ), read_u32(message, ERROR_CODE))
        else {
            return Reply::Other;
        };
        return Reply::Acknowledged { sequence, errno: code.cast_signed().wrapping_neg() };
    }
    if i32::from(kind) == libc::NLMSG_DONE {
        return Reply::Done;
    }
    if kind == libc::RTM_NEWNEIGH {
        return tunnel_peer(message).map_or(Reply::Other, Reply::TunnelPeer);
    }
    if kind == libc::RTM_NEWROUTE
        && message.get(RTM_DST_LEN) == Some(&0)
        && message.get(RTM_KIND) == Some(&libc::RTN_UNICAST)
    {
        return match message.get(RTM_FAMILY).copied().map(libc::c_int::from) {
            Some(libc::AF_INET) => Reply::DefaultRoute(IpFamily::V4),
            Some(libc::AF_INET6) => Reply::DefaultRoute(IpFamily::V6),
            _ => Reply::Other,
        };
    }
    if kind == libc::RTM_NEWROUTE && message.get(RTM_KIND) == Some(&libc::RTN_LOCAL) {
        return destination_ipv6(message).map_or(Reply::Other, Reply::LocalAddress);
    }
    Reply::Other
}

/// `NDA_DST` of an entry of a forwarding table. Those of bridges have none.
fn tunnel_peer(message: &[u8]) -> Option<IpAddr> {
    // linux/neighbour.h
    const NDA_DST: u16 = 1;
    const ATTRIBUTES: usize = NLMSG_HEADER + 12;
    if message.get(NLMSG_HEADER) != Some(&(libc::AF_BRIDGE as u8)) {
        return None;
    }
    let mut rest = message.get(ATTRIBUTES..)?;
    loop {
        let [a, b, c, d, ..] = *rest else { return None };
        let (length, kind) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]));
        let value = rest.get(4..length)?;
        if kind == NDA_DST {
            let v4 = value.try_into().map(|octets: [u8; 4]| IpAddr::from(octets));
            return v4.or_else(|_| value.try_into().map(|octets: [u8; 16]| IpAddr::from(octets))).ok();
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

/// `RTA_DST` of a message about a route to one IPv6 address.
fn destination_ipv6(message: &[u8]) -> Option<Ipv6Addr> {
    const ATTRIBUTES: usize = NLMSG_HEADER + 12;
    let mut rest = message.get(ATTRIBUTES..)?;
    loop {
        let [a, b, c, d, ..] = *rest else { return None };
        let (length, kind) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]));
        let value = rest.get(4..length)?;
        if kind == libc::RTA_DST {
            return <[u8; 16]>::try_from(value).ok().map(Ipv6Addr::from);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

fn read_u32(bytes: &[u8], range: Range<usize>) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(range)?.try_into().ok()?))
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;

    // What iproute2 6.1 sends for the same purpose, as strace shows it, with our sequence numbers and, for the
    // route, our protocol (static) and interface.

    #[test]
    fn link_up_is_what_iproute2_sends() {
        let mut batch = Batch::new();
        batch.link_up(LOOPBACK);
        #[rustfmt::skip]
        let expected = [
            32, 0, 0, 0, 16, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0,
        ];
        assert_eq!(batch.bytes(), expected);
        assert_eq!(batch.len(), 1);
    }

    #[test]
    fn ipv4_address_is_what_iproute2_sends() {
        let mut batch = Batch::new();
        batch.add_ipv4(Interface(2), Ipv4Addr::new(10, 0, 42, 100), 24, Ipv4Addr::new(10, 0, 42, 255));
        #[rustfmt::skip]
        let expected = [
            48, 0, 0, 0, 20, 0, 5, 6, 0, 0, 0, 0, 0, 0, 0, 0,
            2, 24, 0, 0, 2, 0, 0, 0,
            8, 0, 2, 0, 10, 0, 42, 100,
            8, 0, 1, 0, 10, 0, 42, 100,
            8, 0, 4, 0, 10, 0, 42, 255,
        ];
        assert_eq!(batch.bytes(), expected);
    }

    #[test]
    fn an_address_alone_and_its_route_are_what_iproute2_sends() {
        let (address, mut batch) = (Ipv4Addr::new(192, 0, 2, 7), Batch::with(Existing::Replace));
        batch.add_ipv4_alone(LOOPBACK, address);
        batch.forsake(address.into());
        batch.add_ipv6_alone(LOOPBACK, Ipv6Addr::LOCALHOST);
        batch.forsake(Ipv6Addr::LOCALHOST.into());
        #[rustfmt::skip]
        let expected = [
            40, 0, 0, 0, 20, 0, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0,
            2, 32, 0, 0, 1, 0, 0, 0,
            8, 0, 2, 0, 192, 0, 2, 7,
            8, 0, 1, 0, 192, 0, 2, 7,
            36, 0, 0, 0, 25, 0, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0,
            2, 32, 0, 0, 255, 2, 254, 2, 0, 0, 0, 0,
            8, 0, 1, 0, 192, 0, 2, 7,
            72, 0, 0, 0, 20, 0, 5, 5, 2, 0, 0, 0, 0, 0, 0, 0,
            10, 128, 0, 0, 1, 0, 0, 0,
            20, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
            20, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
            8, 0, 8, 0, 2, 2, 0, 0,
            48, 0, 0, 0, 25, 0, 5, 0, 3, 0, 0, 0, 0, 0, 0, 0,
            10, 128, 0, 0, 255, 2, 0, 2, 0, 0, 0, 0,
            20, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
        ];
        assert_eq!(batch.bytes(), expected);
    }

    #[test]
    fn ipv6_address_carries_nodad() {
        let mut batch = Batch::new();
        batch.add_ipv6(Interface(2), "fd42:10:42::100".parse().unwrap(), 64);
        #[rustfmt::skip]
        let expected = [
            64, 0, 0, 0, 20, 0, 5, 6, 0, 0, 0, 0, 0, 0, 0, 0,
            10, 64, 2, 0, 2, 0, 0, 0,
            20, 0, 2, 0, 0xfd, 0x42, 0, 0x10, 0, 0x42, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0,
            20, 0, 1, 0, 0xfd, 0x42, 0, 0x10, 0, 0x42, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0,
        ];
        assert_eq!(batch.bytes(), expected);
    }

    #[test]
    fn default_route_is_what_iproute2_sends() {
        let mut batch = Batch::new();
        batch.link_up(Interface(2));
        batch.add_default_route(Interface(2), Ipv4Addr::new(10, 0, 42, 2), 1460);
        #[rustfmt::skip]
        let expected = [
            56, 0, 0, 0, 24, 0, 5, 6, 1, 0, 0, 0, 0, 0, 0, 0,
            2, 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0,
            8, 0, 5, 0, 10, 0, 42, 2,
            8, 0, 4, 0, 2, 0, 0, 0,
            12, 0, 8, 0, 8, 0, 8, 0, 0xb4, 5, 0, 0,
        ];
        assert_eq!(batch.bytes()[32..], expected);
        assert_eq!(batch.name(1), "adding the default route");
    }

    #[test]
    fn a_route_on_the_link_is_what_iproute2_sends() {
        let mut batch = Batch::with(Existing::Replace);
        let network = IpAddr::from([192, 0, 2, 0]);
        batch.add_route(Interface(2), &Route { network, prefix: 24, gateway: None });
        #[rustfmt::skip]
        let expected = [
            44, 0, 0, 0, 24, 0, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0,
            2, 24, 0, 0, 254, 4, 253, 1, 0, 0, 0, 0,
            8, 0, 1, 0, 192, 0, 2, 0,
            8, 0, 4, 0, 2, 0, 0, 0,
        ];
        assert_eq!(batch.bytes(), expected);
    }

    #[test]
    fn a_vxlan_address_is_in_two_nests() {
        let mut batch = Batch::new();
        batch.set_vxlan_local(Interface(7), Ipv4Addr::new(10, 0, 42, 100));
        #[rustfmt::skip]
        let expected = [
            60, 0, 0, 0, 16, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            28, 0, 18, 0, 9, 0, 1, 0, b'v', b'x', b'l', b'a', b'n', 0, 0, 0,
            12, 0, 2, 0, 8, 0, 4, 0, 10, 0, 42, 100,
        ];
        assert_eq!(batch.bytes(), expected);
    }

    #[test]
    fn hosts_that_tunnels_send_to_are_read() {
        #[rustfmt::skip]
        let entry = |family: u8, attribute: u8| [
            48, 0, 0, 0, 28, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            family, 0, 0, 0, 7, 0, 0, 0, 0x80, 0, 2, 0,
            10, 0, 2, 0, 2, 0, 0, 0, 0, 1, 0, 0,
            8, 0, attribute, 0, 192, 0, 2, 7,
        ];
        let peer = Reply::TunnelPeer([192, 0, 2, 7].into());
        assert_eq!(replies(&entry(7, 1)).collect::<Vec<_>>(), [peer]);
        assert_eq!(replies(&entry(7, 9)).collect::<Vec<_>>(), [Reply::Other], "of a bridge");
        assert_eq!(replies(&entry(2, 1)).collect::<Vec<_>>(), [Reply::Other], "of the neighbour table");
        let done = [20, 0, 0, 0, 3, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(replies(&done).collect::<Vec<_>>(), [Reply::Done]);
    }

    #[test]
    fn a_mac_address_is_padded() {
        let mut batch = Batch::new();
        batch.link_up_with_mac(Interface(2), [2, 0, 0, 0, 0, 7]);
        assert_eq!(batch.bytes()[32..], [10, 0, 1, 0, 2, 0, 0, 0, 0, 7, 0, 0]);
    }

    #[test]
    fn acknowledgements_are_read() {
        let mut bytes = vec![36, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend((-libc::EEXIST).to_ne_bytes());
        bytes.extend([0; 16]);
        let mut done = bytes.clone();
        done[16..20].fill(0);
        bytes.extend(&done);
        let replies: Vec<_> = replies(&bytes).collect();
        assert_eq!(
            replies,
            [
                Reply::Acknowledged { sequence: 7, errno: libc::EEXIST },
                Reply::Acknowledged { sequence: 7, errno: 0 }
            ]
        );
    }

    #[test]
    fn only_a_unicast_route_to_everywhere_is_a_default_route() {
        let route = |family: u8, prefix: u8, kind: u8| {
            let bytes = [
                28, 0, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, family, prefix, 0, 0, 254, 9, 0, kind, 0,
                0, 0, 0,
            ];
            replies(&bytes).collect::<Vec<_>>()
        };
        assert_eq!(route(10, 0, 1), [Reply::DefaultRoute(IpFamily::V6)]);
        assert_eq!(route(2, 0, 1), [Reply::DefaultRoute(IpFamily::V4)]);
        assert_eq!(route(10, 64, 1), [Reply::Other]);
        assert_eq!(route(10, 0, 7), [Reply::Other]);
    }

    #[test]
    fn a_route_to_an_address_of_ones_own_tells_that_it_is_there() {
        let address: Ipv6Addr = "fd42:10:42::100".parse().unwrap();
        let message = |kind: u8, cut: usize| {
            let mut bytes = vec![0; 16];
            bytes[4] = libc::RTM_NEWROUTE as u8;
            bytes.extend([10, 128, 0, 0, 255, 2, 0, kind, 0, 0, 0, 0]);
            // An attribute of an odd length comes first.
            bytes.extend([5, 0, 15, 0, 1, 0, 0, 0, 20, 0, 1, 0]);
            bytes.extend(address.octets());
            bytes.truncate(bytes.len() - cut);
            bytes[0] = bytes.len() as u8;
            replies(&bytes).collect::<Vec<_>>()
        };
        assert_eq!(message(libc::RTN_LOCAL, 0), [Reply::LocalAddress(address)]);
        assert_eq!(message(libc::RTN_UNICAST, 0), [Reply::Other]);
        assert_eq!(message(libc::RTN_LOCAL, 4), [Reply::Other]);
        assert_eq!(message(libc::RTN_LOCAL, 20), [Reply::Other]);
    }

    #[test]
    fn nonsense_is_left_out() {
        assert_eq!(replies(&[]).count(), 0);
        assert_eq!(replies(&[200, 0, 0, 0, 2, 0]).count(), 0);
        assert_eq!(replies(&[0; 16]).count(), 0);
        assert_eq!(
            replies(&[16, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).collect::<Vec<_>>(),
            [Reply::Other]
        );
    }
}
