//! Sockets in the form the data path needs them (socket(7), ip(7), ipv6(7), tcp(7), accept4(2)).

use std::io;
use std::mem::size_of;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::{check, length, owned};
use crate::spec::{Family, Transport};

/// Opens a non-blocking, close-on-exec socket.
pub(crate) fn open(transport: Transport, family: Family) -> io::Result<OwnedFd> {
    let domain = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    let kind = match transport {
        Transport::Tcp => libc::SOCK_STREAM,
        Transport::Udp => libc::SOCK_DGRAM,
    };
    // SAFETY: takes integers only; a non-negative result is a descriptor that nobody else owns.
    unsafe { owned(libc::socket(domain, kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0)) }
}

/// A socket bound to `address`, and listening if it is a TCP one; an IPv6 one is about IPv6 only.
pub(crate) fn listener(
    transport: Transport,
    address: SocketAddr,
    interface: Option<&str>,
) -> io::Result<OwnedFd> {
    let fd = open(transport, Family::of(address.ip()))?;
    if address.is_ipv6() {
        set_int(fd.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    if let Some(name) = interface {
        bind_to_device(fd.as_fd(), name)?;
    }
    match transport {
        Transport::Tcp => {
            set_reuse_address(fd.as_fd())?;
            // Accepted sockets inherit what the listener has.
            prepare_tcp(fd.as_fd());
            bind(fd.as_fd(), address)?;
            // The kernel's own limit (net.core.somaxconn) is the smaller one.
            listen(fd.as_fd(), i32::from(u16::MAX))?;
        }
        Transport::Udp => {
            prepare_udp(fd.as_fd());
            bind(fd.as_fd(), address)?;
        }
    }
    Ok(fd)
}

/// A UDP socket bound to `address`, whose port `there` has on all addresses: the kernel prefers the more exact one.
/// Nobody else can join them afterwards.
pub(crate) fn listener_beside(there: BorrowedFd<'_>, address: SocketAddr) -> io::Result<OwnedFd> {
    let fd = open(Transport::Udp, Family::of(address.ip()))?;
    if address.is_ipv6() {
        set_int(fd.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    prepare_udp(fd.as_fd());
    let share = |on| {
        [there, fd.as_fd()]
            .into_iter()
            .try_for_each(|fd| set_int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, on))
    };
    share(1)?;
    let bound = bind(fd.as_fd(), address);
    share(0)?;
    bound.map(|()| fd)
}

/// Takes one connection from a listener: the socket, non-blocking and close-on-exec, and who it is.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, SocketAddr)> {
    let mut address = Address::NONE;
    let mut len = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the address is valid for writes of the length given; a non-negative result is a descriptor that
    // nobody else owns.
    let fd =
        unsafe { owned(libc::accept4(listener.as_raw_fd(), address.as_mut_ptr(), &raw mut len, flags)) }?;
    let peer = address.to_std(len).ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))?;
    Ok((fd, peer))
}

/// Gives a socket its local address.
pub(crate) fn bind(fd: BorrowedFd<'_>, local: SocketAddr) -> io::Result<()> {
    let address = Address::from(local);
    // SAFETY: the address is valid for its length and outlives the call.
    check(unsafe { libc::bind(fd.as_raw_fd(), address.as_ptr(), address.len) })?;
    Ok(())
}

/// Starts connecting: `EINPROGRESS` while it is under way.
pub(crate) fn connect(fd: BorrowedFd<'_>, remote: SocketAddr) -> io::Result<()> {
    let address = Address::from(remote);
    // SAFETY: the address is valid for its length and outlives the call.
    check(unsafe { libc::connect(fd.as_raw_fd(), address.as_ptr(), address.len) })?;
    Ok(())
}

fn listen(fd: BorrowedFd<'_>, backlog: i32) -> io::Result<()> {
    // SAFETY: takes integers only.
    check(unsafe { libc::listen(fd.as_raw_fd(), backlog) })?;
    Ok(())
}

/// How many bytes have to have come before the socket counts as readable (SO_RCVLOWAT, tcp(7)); its end, its errors and a closing window
/// make it so with fewer.
pub(crate) fn set_receive_low_water(fd: BorrowedFd<'_>, bytes: i32) {
    // The worst that a refusal leads to is a wake-up more or less.
    let _ = set_int(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT, bytes);
}

/// The address a socket is bound to.
pub(crate) fn local_address(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let mut address = Address::NONE;
    let mut len = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
    // SAFETY: the address is valid for writes of the length given.
    check(unsafe { libc::getsockname(fd.as_raw_fd(), address.as_mut_ptr(), &raw mut len) })?;
    address.to_std(len).ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
}

/// Reads from a stream.
pub(crate) fn recv(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is valid for writes of its length.
    length(unsafe {
        libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
    })
}

/// Writes to a stream.
pub(crate) fn send(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the bytes are valid for reads of their length.
    length(unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) })
}

/// Whether the peer has ended or reset the connection.
pub(crate) fn has_ended(fd: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one entry, valid for the call.
    unsafe { libc::poll(&raw mut poll, 1, 0) > 0 }
}

/// Sends FIN.
pub(crate) fn shutdown_write(fd: BorrowedFd<'_>) {
    // SAFETY: takes integers only. A socket that is no longer connected has nothing to shut down.
    unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_WR) };
}

/// Makes the coming close send RST, be it by the end of the process.
pub(crate) fn reset_on_close(fd: BorrowedFd<'_>) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let _ = set(fd, libc::SOL_SOCKET, libc::SO_LINGER, &linger);
}

/// Makes the coming close an orderly one again.
pub(crate) fn finish_on_close(fd: BorrowedFd<'_>) {
    let linger = libc::linger { l_onoff: 0, l_linger: 0 };
    let _ = set(fd, libc::SOL_SOCKET, libc::SO_LINGER, &linger);
}

/// Whether clients of `transport` are heard of by this socket: it listens, or is one of datagrams.
pub(crate) fn hears(fd: BorrowedFd<'_>, transport: Transport) -> bool {
    use nix::sys::socket::{SockType, getsockopt, sockopt};
    match transport {
        Transport::Tcp => getsockopt(&fd, sockopt::AcceptConn) == Ok(true),
        Transport::Udp => getsockopt(&fd, sockopt::SockType) == Ok(SockType::Datagram),
    }
}

/// What TCP sockets of ours have: no Nagle (the ends have their own), keepalive, urgent bytes in their place in the stream. A
/// listener hands all of it down.
pub(crate) fn prepare_tcp(fd: BorrowedFd<'_>) {
    let _ = set_int(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
    let _ = set_int(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    let _ = set_int(fd, libc::SOL_SOCKET, libc::SO_OOBINLINE, 1);
}

/// Seconds of silence after which keepalive asks for the peer.
pub(crate) fn set_keepalive_idle(fd: BorrowedFd<'_>, seconds: i32) -> io::Result<()> {
    set_int(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, seconds)
}

/// What went wrong with a connection.
pub(crate) fn take_error(fd: BorrowedFd<'_>) -> io::Result<Option<io::Error>> {
    let errno = nix::sys::socket::getsockopt(&fd, nix::sys::socket::sockopt::SocketError)?;
    Ok((errno != 0).then(|| io::Error::from_raw_os_error(errno)))
}

/// Buffer asked for on datagram sockets, in bytes; the kernel grants at most `net.core.rmem_max` and `wmem_max`.
const DATAGRAM_BUFFER: i32 = 2 << 20;

/// What UDP sockets of ours have: larger buffers, datagrams joined on arrival, the address a client used.
pub(crate) fn prepare_udp(fd: BorrowedFd<'_>) {
    let _ = set_int(fd, libc::SOL_UDP, libc::UDP_GRO, 1);
    let _ = set_int(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, DATAGRAM_BUFFER);
    let _ = set_int(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, DATAGRAM_BUFFER);
    // Only one of the two applies.
    let _ = set_int(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1);
    let _ = set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1);
}

/// Whether addresses of connections that ended are free at once.
pub(crate) fn set_reuse_address(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)
}

/// Allows addresses that the namespace does not have. Needs CAP_NET_ADMIN there.
pub(crate) fn set_transparent(fd: BorrowedFd<'_>, family: Family) -> io::Result<()> {
    match family {
        Family::V4 => set_int(fd, libc::IPPROTO_IP, libc::IP_TRANSPARENT, 1),
        Family::V6 => set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT, 1),
    }
}

/// Marks what a socket sends. Needs CAP_NET_ADMIN.
pub(crate) fn set_mark(fd: BorrowedFd<'_>, mark: u32) -> io::Result<()> {
    set(fd, libc::SOL_SOCKET, libc::SO_MARK, &mark)
}

/// Chooses the source port when connecting, by the whole four-tuple.
pub(crate) fn set_bind_address_no_port(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_int(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

/// Ties a socket to a network interface.
pub(crate) fn bind_to_device(fd: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let bytes = name.as_bytes();
    let len = bytes.len() as libc::socklen_t;
    // SAFETY: the bytes are valid for reads of their length; the kernel ends the name itself.
    check(unsafe {
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE, bytes.as_ptr().cast(), len)
    })?;
    Ok(())
}

/// A socket address as the kernel reads and writes it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Address {
    /// `sockaddr_in6`, the larger of the two kinds; `sockaddr_in` shares its first bytes.
    storage: libc::sockaddr_in6,
    pub(super) len: libc::socklen_t,
}

impl Address {
    pub(super) const NONE: Address = Address {
        storage: libc::sockaddr_in6 {
            sin6_family: 0,
            sin6_port: 0,
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
            sin6_scope_id: 0,
        },
        len: 0,
    };

    pub(super) fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut libc::sockaddr {
        (&raw mut self.storage).cast()
    }

    pub(super) fn to_std(self, len: libc::socklen_t) -> Option<SocketAddr> {
        let port = u16::from_be(self.storage.sin6_port);
        match i32::from(self.storage.sin6_family) {
            libc::AF_INET if len as usize >= size_of::<libc::sockaddr_in>() => {
                // `sin_addr` lies where `sin6_flowinfo` does.
                let octets = self.storage.sin6_flowinfo.to_ne_bytes();
                Some(SocketAddrV4::new(octets.into(), port).into())
            }
            libc::AF_INET6 if len as usize >= size_of::<libc::sockaddr_in6>() => {
                let address = Ipv6Addr::from(self.storage.sin6_addr.s6_addr);
                Some(SocketAddrV6::new(address, port, 0, self.storage.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        let mut raw = Address::NONE;
        raw.storage.sin6_port = address.port().to_be();
        match address {
            SocketAddr::V4(v4) => {
                raw.storage.sin6_family = libc::AF_INET as _;
                raw.storage.sin6_flowinfo = u32::from_ne_bytes(v4.ip().octets());
                raw.len = size_of::<libc::sockaddr_in>() as _;
            }
            SocketAddr::V6(v6) => {
                raw.storage.sin6_family = libc::AF_INET6 as _;
                raw.storage.sin6_addr.s6_addr = v6.ip().octets();
                raw.storage.sin6_scope_id = v6.scope_id();
                raw.len = size_of::<libc::sockaddr_in6>() as _;
            }
        }
        raw
    }
}

const _: () = {
    use std::mem::offset_of;
    assert!(offset_of!(libc::sockaddr_in, sin_port) == offset_of!(libc::sockaddr_in6, sin6_port));
    assert!(offset_of!(libc::sockaddr_in, sin_addr) == offset_of!(libc::sockaddr_in6, sin6_flowinfo));
};

pub(super) fn set_int(fd: BorrowedFd<'_>, level: i32, option: i32, value: i32) -> io::Result<()> {
    set(fd, level, option, &value)
}

/// An option whose value is an int.
pub(super) fn int(fd: BorrowedFd<'_>, level: i32, option: i32) -> io::Result<i32> {
    let mut value = 0;
    let mut len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the value is valid for writes of its size.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut len) })?;
    Ok(value)
}

fn set<T>(fd: BorrowedFd<'_>, level: i32, option: i32, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the value is valid for reads of its size.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const *value).cast(), len) })?;
    Ok(())
}

/// Raises the soft limit of open files to the hard one; says what it is now.
pub(crate) fn raise_file_limit() -> io::Result<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}
