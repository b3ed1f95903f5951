//! Errors of the crate: a [`SpecError`] is a mistake in the text of a forward, a [`PortError`] a forward that cannot be.

use std::io;
use std::net::SocketAddr;

use thiserror::Error;

use crate::manager::Listener;
use crate::spec::Transport;

/// A forward that cannot be understood.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("port spec {text:?}: {fault}")]
pub struct SpecError {
    /// What was to be understood.
    pub text: String,
    /// What is wrong with it.
    pub fault: SpecFault,
}

/// What is wrong with the text or the fields of a forward.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpecFault {
    /// One port, or nothing.
    #[error(
        "needs a host port and a child port: 80:80 for the same on both sides, 0:80 for a host port that the system picks"
    )]
    OnePort,
    /// More than four parts between colons, or an IPv6 address without brackets.
    #[error("too many parts between colons (IPv6 addresses stand in brackets)")]
    TooManyParts,
    /// A bracket without its other half, or something right behind it.
    #[error("brackets do not match, or hold no address")]
    Brackets,
    /// Neither an IPv4 nor an IPv6 address.
    #[error("{0:?} is not an IP address (an IPv6 address stands in brackets)")]
    Address(String),
    /// Not a port number or range.
    #[error("{0:?} is not a port from 1 to 65535 or a range of them")]
    Port(String),
    /// The range ends before it starts.
    #[error("the range {0}-{1} ends before it starts")]
    RangeOrder(u16, u16),
    /// Host and child side differ in length.
    #[error("{host} ports of the host cannot go to {child} ports of the child")]
    RangeLength {
        /// Ports on the host.
        host: u32,
        /// Ports in the child.
        child: u32,
    },
    /// The child's ports would go past 65535.
    #[error("the child's ports, {count} from {first}, end beyond 65535")]
    RangeEnd {
        /// The first.
        first: u16,
        /// How many there should be.
        count: u32,
    },
    /// Host port 0 in a range.
    #[error("host port 0 (the system picks) cannot be part of a range")]
    ZeroInRange,
    /// Child port 0.
    #[error("the child's port cannot be 0")]
    ChildPortZero,
    /// SCTP.
    #[error("SCTP is not forwarded (tcp and udp are)")]
    Sctp,
    /// Not a protocol.
    #[error("unknown proto: {0:?} (tcp, tcp4, tcp6, udp, udp4, udp6)")]
    Proto(String),
    /// The protocol's family is not the host address's.
    #[error("{proto} does not go with the host address {address}")]
    Family {
        /// The protocol.
        proto: &'static str,
        /// The address.
        address: std::net::IpAddr,
    },
    /// An address that nothing in the child can have.
    #[error("{0} is no address to connect to in the child; leave it out for the child's own")]
    ChildAddress(std::net::IpAddr),
    /// Not a name of a network interface.
    #[error("{0:?} is not a name of a network interface")]
    Interface(String),
    /// Something unknown after a comma.
    #[error("unknown option {0:?} (source=client, source=gateway)")]
    Option(String),
    /// Something unknown in the rules of auto.
    #[error(
        "{0:?} is not an option of auto (tcp, udp, include=LIST, exclude=LIST, address=IP, source=client|gateway)"
    )]
    Auto(String),
    /// Something unknown in a list of auto.
    #[error("{0:?} is neither port, range, address nor loopback, with /tcp or /udp behind it or nothing")]
    Match(String),
}

/// A forward that cannot be added, removed or found.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PortError {
    /// Another forward has the host's port already.
    #[error("conflict with ID {id}: it forwards {address}/{transport} already")]
    Conflict {
        /// The other forward.
        id: u64,
        /// The host's address and port both want.
        address: SocketAddr,
        /// TCP or UDP.
        transport: Transport,
    },
    /// As many forwards as there may be.
    #[error("there are {limit} forwards already, the limit")]
    TooManyForwards {
        /// [`Limits::forwards`](crate::manager::Limits::forwards).
        limit: usize,
    },
    /// More listening sockets than there may be.
    #[error("{wanted} more host ports would exceed the limit of {limit} listening sockets")]
    TooManyListeners {
        /// How many the forward needs.
        wanted: usize,
        /// [`Limits::listeners`](crate::manager::Limits::listeners).
        limit: usize,
    },
    /// No forward of this id.
    #[error("no forward has ID {id}")]
    NotFound {
        /// The id.
        id: u64,
    },
    /// EADDRINUSE: somebody else on the host has the port.
    #[error("{address}/{transport} is in use on the host{}", held(.holder))]
    InUse {
        /// The host's address and port.
        address: SocketAddr,
        /// TCP or UDP.
        transport: Transport,
        /// Who has it ("held by PID 123 (nginx)"), where that can be known.
        holder: Option<String>,
    },
    /// EACCES below port 1024: the port is for the privileged.
    #[error(
        "{address}/{transport}: ordinary users may not listen on ports below the sysctl \
         net.ipv4.ip_unprivileged_port_start (1024 unless changed); as root: \
         sysctl -w net.ipv4.ip_unprivileged_port_start={}", .address.port()
    )]
    Privileged {
        /// The host's address and port.
        address: SocketAddr,
        /// TCP or UDP.
        transport: Transport,
    },
    /// EADDRNOTAVAIL: the host does not have the address.
    #[error("{address}/{transport}: the host does not have this address")]
    NoSuchAddress {
        /// The host's address and port.
        address: SocketAddr,
        /// TCP or UDP.
        transport: Transport,
    },
    /// EAFNOSUPPORT: the host is without this family.
    #[error("{address}/{transport}: the host has no {}", family(.address))]
    NoSuchFamily {
        /// The host's address and port.
        address: SocketAddr,
        /// TCP or UDP.
        transport: Transport,
    },
    /// ENODEV: the host does not have the network interface.
    #[error("the host has no network interface {interface:?}")]
    NoSuchInterface {
        /// Its name.
        interface: String,
    },
    /// EMFILE, ENFILE: no file descriptor left for a listening socket.
    #[error("no file descriptor is left for {address}/{transport}")]
    OutOfDescriptors {
        /// The host's address and port.
        address: SocketAddr,
        /// TCP or UDP.
        transport: Transport,
    },
    /// Listening failed in another way.
    #[error("cannot listen on {address}/{transport}")]
    Listen {
        /// The host's address and port.
        address: SocketAddr,
        /// TCP or UDP.
        transport: Transport,
        /// socket(2), setsockopt(2), bind(2) or listen(2).
        #[source]
        source: io::Error,
    },
    /// The event loop that owns the forwards has ended.
    #[error("the forwarder has stopped")]
    Stopped,
}

impl PortError {
    /// Why `listener` does not listen, from what socket(2), setsockopt(2), bind(2) or listen(2) said.
    pub fn from_listen(listener: &Listener, source: io::Error) -> Self {
        let (address, transport) = (listener.address, listener.transport);
        match source.raw_os_error() {
            Some(libc::EADDRINUSE) => PortError::InUse { address, transport, holder: None },
            Some(libc::EACCES) if address.port() < 1024 => PortError::Privileged { address, transport },
            Some(libc::EADDRNOTAVAIL) => PortError::NoSuchAddress { address, transport },
            Some(libc::EAFNOSUPPORT) => PortError::NoSuchFamily { address, transport },
            Some(libc::EMFILE | libc::ENFILE) => PortError::OutOfDescriptors { address, transport },
            Some(libc::ENODEV) if listener.interface.is_some() => PortError::NoSuchInterface {
                interface: listener.interface.as_ref().map_or_else(String::new, ToString::to_string),
            },
            _ => PortError::Listen { address, transport, source },
        }
    }
}

fn held(holder: &Option<String>) -> String {
    holder.as_ref().map_or_else(String::new, |holder| format!(", {holder}"))
}

fn family(address: &SocketAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}
