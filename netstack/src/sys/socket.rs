//! Host sockets: the system calls that nix does not offer in the form the packet path needs.
//!
//! Sources: socket(7), ip(7), ipv6(7), udp(7), tcp(7), icmp(7), recvmmsg(2), sendmmsg(2).

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::action::{DatagramError, DatagramErrorKind};

/// Datagrams per system call.
pub(crate) const BATCH: usize = 64;
/// Pieces of memory per system call when sending.
pub(crate) const PIECES: usize = 256;

/// Kinds of sockets the driver opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp,
    Udp,
    Ping,
}

/// Opens a non-blocking, close-on-exec socket.
pub(crate) fn open(kind: Kind, ipv6: bool) -> io::Result<OwnedFd> {
    let family = if ipv6 { libc::AF_INET6 } else { libc::AF_INET };
    let (socket_type, protocol) = match kind {
        Kind::Tcp => (libc::SOCK_STREAM, libc::IPPROTO_TCP),
        Kind::Udp => (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
        Kind::Ping if ipv6 => (libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6),
        Kind::Ping => (libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
    };
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: takes integers only; a non-negative result is a descriptor that nobody else owns.
    unsafe { owned(libc::socket(family, socket_type | flags, protocol)) }
}

/// Gives a socket its own address.
pub(crate) fn bind(fd: BorrowedFd<'_>, own: SocketAddr) -> io::Result<()> {
    let address = Address::from(own);
    // SAFETY: the address is valid for its length and outlives the call.
    check(unsafe { libc::bind(fd.as_raw_fd(), address.as_ptr(), address.len) })?;
    Ok(())
}

/// Starts, or goes on with, connecting: `Ok` when connected, `EINPROGRESS` or `EALREADY` while it is under way.
pub(crate) fn connect(fd: BorrowedFd<'_>, remote: SocketAddr) -> io::Result<()> {
    let address = Address::from(remote);
    // SAFETY: the address is valid for its length and outlives the call.
    check(unsafe { libc::connect(fd.as_raw_fd(), address.as_ptr(), address.len) })?;
    Ok(())
}

/// The pending error of a socket (`SO_ERROR`).
pub(crate) fn take_error(fd: BorrowedFd<'_>) -> io::Result<()> {
    match get_int(fd, libc::SOL_SOCKET, libc::SO_ERROR)? {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
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

/// Sets what every TCP socket of ours has: no Nagle (the child has its own), keepalive, urgent bytes in their place in the stream.
pub(crate) fn prepare_tcp(fd: BorrowedFd<'_>) {
    let _ = set_int(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
    let _ = set_int(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    let _ = set_int(fd, libc::SOL_SOCKET, libc::SO_OOBINLINE, 1);
}

/// Receive buffer asked for on datagram sockets, in bytes; the kernel grants at most `net.core.rmem_max`.
const DATAGRAM_BUFFER: i32 = 2 << 20;

/// Asks for more of it, for a socket that many peers share.
pub(crate) fn enlarge_buffers(fd: BorrowedFd<'_>) {
    let _ = set_int(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, 4 * DATAGRAM_BUFFER);
    let _ = set_int(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, 4 * DATAGRAM_BUFFER);
}

/// Sets what every datagram socket of ours has: errors in the error queue, GRO, a larger buffer.
pub(crate) fn prepare_datagram(fd: BorrowedFd<'_>, kind: Kind, ipv6: bool) {
    let (level, option) =
        if ipv6 { (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) } else { (libc::IPPROTO_IP, libc::IP_RECVERR) };
    let _ = set_int(fd, level, option, 1);
    if kind == Kind::Udp {
        let _ = set_int(fd, libc::SOL_UDP, libc::UDP_GRO, 1);
        let _ = set_int(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, DATAGRAM_BUFFER);
        let _ = set_int(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, DATAGRAM_BUFFER);
    }
    if ipv6 {
        let _ = set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1);
    }
}

/// The path MTU to `remote` that the kernel knows, in bytes with the IP header (ip(7), `IP_MTU`).
pub(crate) fn path_mtu(remote: SocketAddr) -> io::Result<u32> {
    let fd = open(Kind::Udp, remote.is_ipv6())?;
    let fd = std::os::fd::AsFd::as_fd(&fd);
    connect(fd, remote)?;
    let (level, option) = if remote.is_ipv6() {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU)
    };
    get_int(fd, level, option).map(|mtu| mtu.unsigned_abs())
}

/// Whether a socket is of `AF_INET6`.
pub(crate) fn is_ipv6(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(get_int(fd, libc::SOL_SOCKET, libc::SO_DOMAIN)? == libc::AF_INET6)
}

/// Has the kernel say which local address each datagram was sent to.
pub(crate) fn receive_local_address(fd: BorrowedFd<'_>, ipv6: bool) -> io::Result<()> {
    if ipv6 {
        set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)
    } else {
        set_int(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)
    }
}

/// Sets the TTL or hop limit of what is sent from now on.
pub(crate) fn set_ttl(fd: BorrowedFd<'_>, ttl: u8, ipv6: bool) {
    let (level, option) =
        if ipv6 { (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS) } else { (libc::IPPROTO_IP, libc::IP_TTL) };
    let _ = set_int(fd, level, option, i32::from(ttl));
}

/// Whether what is sent from now on may be fragmented. With "don't fragment" the kernel answers EMSGSIZE for
/// what exceeds the path's MTU, and notes the MTU in the error queue.
pub(crate) fn set_dont_fragment(fd: BorrowedFd<'_>, dont_fragment: bool, ipv6: bool) {
    let (level, option, on, off) = if ipv6 {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO, libc::IPV6_PMTUDISC_DONT)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO, libc::IP_PMTUDISC_DONT)
    };
    let _ = set_int(fd, level, option, if dont_fragment { on } else { off });
}

/// One datagram, or several equal ones, to send.
pub(crate) struct Outgoing<P> {
    /// Destination; `None` on a connected socket.
    pub(crate) remote: Option<SocketAddr>,
    /// Source address, in the form of the socket's family; `None`: the kernel chooses.
    pub(crate) local: Option<IpAddr>,
    /// Pieces of the payload, at most [`PIECES`].
    pub(crate) pieces: P,
    /// Bytes per datagram where there are several.
    pub(crate) segment: Option<u16>,
}

/// Memory for sendmmsg(2), made once.
pub(crate) struct SendBatch {
    addresses: Box<[Address; BATCH]>,
    controls: Box<[Control; BATCH]>,
    pieces: Box<[libc::iovec; PIECES]>,
    headers: Box<[libc::mmsghdr; BATCH]>,
}

// SAFETY: the raw pointers in the headers are written anew, to memory that is then alive, before each use.
unsafe impl Send for SendBatch {}

impl SendBatch {
    pub(crate) fn new() -> Self {
        SendBatch {
            addresses: Box::new([Address::NONE; BATCH]),
            controls: Box::new([Control::EMPTY; BATCH]),
            pieces: Box::new([libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; PIECES]),
            headers: zeroed_headers(),
        }
    }

    /// Sends as many of `datagrams` as fit one system call; says how many the kernel took.
    pub(crate) fn send<'a, P: Iterator<Item = &'a [u8]>>(
        &mut self,
        fd: BorrowedFd<'_>,
        datagrams: impl Iterator<Item = Outgoing<P>>,
    ) -> io::Result<usize> {
        let mut count = 0;
        let mut used = 0;
        for datagram in datagrams.take(BATCH) {
            let first = used;
            let mut pieces = datagram.pieces;
            while let Some(entry) = self.pieces.get_mut(used)
                && let Some(piece) = pieces.next()
            {
                *entry = libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() };
                used += 1;
            }
            // Half a datagram is none.
            if used == PIECES && pieces.next().is_some() {
                break;
            }
            let header = &mut self.headers[count].msg_hdr;
            (header.msg_name, header.msg_namelen) = match datagram.remote {
                Some(remote) => {
                    self.addresses[count] = Address::from(remote);
                    (self.addresses[count].as_mut_ptr(), self.addresses[count].len)
                }
                None => (std::ptr::null_mut(), 0),
            };
            header.msg_iov = self.pieces[first..].as_mut_ptr();
            header.msg_iovlen = (used - first) as _;
            let control = &mut self.controls[count];
            control.used = 0;
            if let Some(segment) = datagram.segment {
                control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
            }
            if let Some(local) = datagram.local {
                control.push_local_address(local);
            }
            (header.msg_control, header.msg_controllen) = match control.used {
                0 => (std::ptr::null_mut(), 0),
                used => (control.bytes.as_mut_ptr().cast(), used as _),
            };
            count += 1;
        }
        if count == 0 {
            return Ok(0);
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the first `count` headers were filled above; what they point to (our arrays, the callers'
        // payloads borrowed for 'a) is alive and the kernel only reads it.
        let sent =
            unsafe { libc::sendmmsg(fd.as_raw_fd(), self.headers.as_mut_ptr(), count as u32, flags as _) };
        check(sent).map(|sent| sent as usize)
    }
}

/// A received datagram, or several equal ones.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Incoming {
    pub(crate) from: SocketAddr,
    /// Index of the buffer.
    pub(crate) slot: usize,
    pub(crate) len: usize,
    /// Bytes per datagram where the kernel joined several (UDP_GRO).
    pub(crate) segment: Option<u16>,
    /// Which of our addresses it was sent to, after [`receive_local_address`].
    pub(crate) local: Option<IpAddr>,
}

/// Memory for recvmmsg(2), made once.
pub(crate) struct RecvBatch {
    addresses: Box<[Address; BATCH]>,
    controls: Box<[Control; BATCH]>,
    pieces: Box<[libc::iovec; BATCH]>,
    headers: Box<[libc::mmsghdr; BATCH]>,
}

// SAFETY: as for `SendBatch`.
unsafe impl Send for RecvBatch {}

impl RecvBatch {
    pub(crate) fn new() -> Self {
        RecvBatch {
            addresses: Box::new([Address::NONE; BATCH]),
            controls: Box::new([Control::EMPTY; BATCH]),
            pieces: Box::new([libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH]),
            headers: zeroed_headers(),
        }
    }

    /// Receives into `buffers` and appends to `out`; says how many datagrams came.
    pub(crate) fn recv<'a>(
        &mut self,
        fd: BorrowedFd<'_>,
        buffers: impl Iterator<Item = &'a mut [u8]>,
        out: &mut Vec<Incoming>,
    ) -> io::Result<usize> {
        let mut count = 0;
        for buffer in buffers.take(BATCH) {
            self.pieces[count] = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            let header = &mut self.headers[count].msg_hdr;
            header.msg_name = self.addresses[count].as_mut_ptr();
            header.msg_namelen = size_of::<libc::sockaddr_in6>() as _;
            header.msg_iov = &raw mut self.pieces[count];
            header.msg_iovlen = 1;
            header.msg_control = self.controls[count].bytes.as_mut_ptr().cast();
            header.msg_controllen = Control::ROOM as _;
            header.msg_flags = 0;
            count += 1;
        }
        // SAFETY: the first `count` headers point to our arrays and to the buffers, which are borrowed for the
        // duration of this call and valid for writes of the lengths given.
        let received = unsafe {
            libc::recvmmsg(
                fd.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count as u32,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        let received = check(received)? as usize;
        for (slot, header) in self.headers[..received].iter().enumerate() {
            let Some(from) = self.addresses[slot].to_std(header.msg_hdr.msg_namelen) else { continue };
            let len = header.msg_len as usize;
            let (mut segment, mut local) = (None, None);
            for message in ControlMessages::new(&header.msg_hdr) {
                match (message.level, message.kind) {
                    (libc::SOL_UDP, libc::UDP_GRO) => {
                        segment = message.data.first_chunk().map(|&bytes| i32::from_ne_bytes(bytes));
                    }
                    (libc::SOL_IP, libc::IP_PKTINFO) | (libc::SOL_IPV6, libc::IPV6_PKTINFO) => {
                        local = parse_local_address(message.level, message.data);
                    }
                    _ => {}
                }
            }
            let segment = segment
                .and_then(|segment| u16::try_from(segment).ok())
                .filter(|&segment| segment > 0 && usize::from(segment) < len);
            out.push(Incoming { from, slot, len, segment, local });
        }
        Ok(received)
    }
}

/// Reads a `struct in_pktinfo` or `struct in6_pktinfo`.
fn parse_local_address(level: i32, data: &[u8]) -> Option<IpAddr> {
    if level == libc::SOL_IP {
        // `ipi_spec_dst`: the destination, or one of ours where that is a broadcast.
        let octets: [u8; 4] = data.get(4..8)?.try_into().ok()?;
        return Some(Ipv4Addr::from(octets).into());
    }
    let address = Ipv6Addr::from(*data.first_chunk::<16>()?);
    (!address.is_multicast()).then_some(address.into())
}

/// An entry of a socket's error queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueuedError {
    /// Where the datagram was going.
    pub(crate) remote: SocketAddr,
    pub(crate) error: DatagramError,
    /// Bytes of the datagram's payload at the start of the buffer.
    pub(crate) quoted: usize,
}

/// Takes the next entry of the error queue (ip(7), `IP_RECVERR`). `Ok(None)` for an entry that says nothing to
/// the child; `WouldBlock` when the queue is empty.
pub(crate) fn recv_error(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<QueuedError>> {
    let mut address = Address::NONE;
    let mut control = [0u64; 64];
    let mut piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all-zero is a valid `msghdr`.
    let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_name = address.as_mut_ptr();
    header.msg_namelen = size_of::<libc::sockaddr_in6>() as _;
    header.msg_iov = &raw mut piece;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    // SAFETY: the header points to locals and the buffer, all valid for writes of the lengths given.
    let quoted = length(unsafe {
        libc::recvmsg(fd.as_raw_fd(), &raw mut header, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT)
    })?;
    let Some(remote) = address.to_std(header.msg_namelen) else { return Ok(None) };
    let error = ControlMessages::new(&header)
        .filter(|message| {
            matches!(
                (message.level, message.kind),
                (libc::SOL_IP, libc::IP_RECVERR) | (libc::SOL_IPV6, libc::IPV6_RECVERR)
            )
        })
        .find_map(|message| parse_extended_error(message.data));
    Ok(error.map(|error| QueuedError { remote, error, quoted }))
}

/// Reads a `struct sock_extended_err` and the offender's address behind it.
fn parse_extended_error(data: &[u8]) -> Option<DatagramError> {
    let (fixed, offender) = data.split_first_chunk::<16>()?;
    let errno = i32::from_ne_bytes([fixed[0], fixed[1], fixed[2], fixed[3]]);
    let [origin, icmp_type, code] = [fixed[4], fixed[5], fixed[6]];
    let info = u32::from_ne_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]);
    let from_network = matches!(origin, libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6);
    if !from_network && origin != libc::SO_EE_ORIGIN_LOCAL {
        return None;
    }
    let time_exceeded =
        matches!((origin, icmp_type), (libc::SO_EE_ORIGIN_ICMP, 11) | (libc::SO_EE_ORIGIN_ICMP6, 3));
    let kind = match errno {
        _ if time_exceeded => DatagramErrorKind::TimeExceeded,
        libc::EMSGSIZE => DatagramErrorKind::TooBig(info),
        libc::ECONNREFUSED => DatagramErrorKind::PortUnreachable,
        libc::EHOSTUNREACH | libc::EHOSTDOWN => DatagramErrorKind::HostUnreachable,
        libc::ENETUNREACH => DatagramErrorKind::NetUnreachable,
        libc::EACCES | libc::EPERM => DatagramErrorKind::Prohibited,
        _ if from_network => DatagramErrorKind::Other(icmp_type, code),
        _ => return None,
    };
    let offender = if from_network { parse_offender(offender) } else { None };
    Some(DatagramError { offender, kind })
}

fn parse_offender(data: &[u8]) -> Option<IpAddr> {
    let family = i32::from(u16::from_ne_bytes(*data.first_chunk()?));
    match family {
        libc::AF_INET => {
            let octets: [u8; 4] = data.get(4..8)?.try_into().ok()?;
            Some(Ipv4Addr::from(octets).into())
        }
        libc::AF_INET6 => {
            let octets: [u8; 16] = data.get(8..24)?.try_into().ok()?;
            Some(Ipv6Addr::from(octets).into())
        }
        _ => None,
    }
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

/// A socket address as the kernel reads and writes it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Address {
    /// `sockaddr_in6`, the larger of the two kinds; `sockaddr_in` shares its first bytes.
    storage: libc::sockaddr_in6,
    len: libc::socklen_t,
}

impl Address {
    const NONE: Address = Address {
        storage: libc::sockaddr_in6 {
            sin6_family: 0,
            sin6_port: 0,
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
            sin6_scope_id: 0,
        },
        len: 0,
    };

    fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    fn as_mut_ptr(&mut self) -> *mut libc::c_void {
        (&raw mut self.storage).cast()
    }

    fn to_std(self, len: libc::socklen_t) -> Option<SocketAddr> {
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

/// Room for the control messages of one datagram, aligned as `struct cmsghdr` wants it.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control {
    bytes: [u8; Control::ROOM],
    /// Bytes written by [`Control::push`].
    used: usize,
}

impl Control {
    /// Segment size and local address, in either direction; IPv6 has the longest.
    const ROOM: usize = Self::space(size_of::<i32>()) + Self::space(size_of::<libc::in6_pktinfo>());
    const EMPTY: Control = Control { bytes: [0; Self::ROOM], used: 0 };
    // SAFETY: CMSG_LEN computes with its argument only.
    const HEADER: usize = unsafe { libc::CMSG_LEN(0) } as usize;

    const fn space(len: usize) -> usize {
        // SAFETY: CMSG_SPACE computes with its argument only.
        unsafe { libc::CMSG_SPACE(len as u32) as usize }
    }

    fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let end = self.used + Self::space(data.len());
        let Some(message) = self.bytes.get_mut(self.used..end) else { return };
        message.fill(0);
        // SAFETY: all-zero is a valid `cmsghdr`.
        let mut header: libc::cmsghdr = unsafe { MaybeUninit::zeroed().assume_init() };
        header.cmsg_len = (Self::HEADER + data.len()) as _;
        header.cmsg_level = level;
        header.cmsg_type = kind;
        message[Self::HEADER..Self::HEADER + data.len()].copy_from_slice(data);
        // SAFETY: the message is at least as long as the header.
        unsafe { message.as_mut_ptr().cast::<libc::cmsghdr>().write_unaligned(header) };
        self.used = end;
    }

    /// `struct in_pktinfo` or `struct in6_pktinfo` with the address alone: the interface is for routing to choose.
    fn push_local_address(&mut self, local: IpAddr) {
        match local {
            IpAddr::V4(local) => {
                let mut info = [0; size_of::<libc::in_pktinfo>()];
                info[4..8].copy_from_slice(&local.octets());
                self.push(libc::SOL_IP, libc::IP_PKTINFO, &info);
            }
            IpAddr::V6(local) => {
                let mut info = [0; size_of::<libc::in6_pktinfo>()];
                info[..16].copy_from_slice(&local.octets());
                self.push(libc::SOL_IPV6, libc::IPV6_PKTINFO, &info);
            }
        }
    }
}

const _: () = assert!(std::mem::offset_of!(libc::in_pktinfo, ipi_spec_dst) == 4);

/// One control message.
struct ControlMessage<'a> {
    level: i32,
    kind: i32,
    data: &'a [u8],
}

/// Walks the control messages of a header that the kernel filled.
struct ControlMessages<'a> {
    header: &'a libc::msghdr,
    next: *const libc::cmsghdr,
}

impl<'a> ControlMessages<'a> {
    fn new(header: &'a libc::msghdr) -> Self {
        // SAFETY: the header's control pointer and length describe memory the kernel has written.
        let next = unsafe { libc::CMSG_FIRSTHDR(header) };
        ControlMessages { header, next }
    }
}

impl<'a> Iterator for ControlMessages<'a> {
    type Item = ControlMessage<'a>;

    fn next(&mut self) -> Option<ControlMessage<'a>> {
        if self.next.is_null() {
            return None;
        }
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return only messages that lie whole in the control buffer,
        // which outlives `header`; the data follows the message's header.
        unsafe {
            let message = self.next.read_unaligned();
            let start = libc::CMSG_DATA(self.next);
            let len = message.cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize);
            self.next = libc::CMSG_NXTHDR(self.header, self.next);
            let data = std::slice::from_raw_parts(start, len);
            Some(ControlMessage { level: message.cmsg_level, kind: message.cmsg_type, data })
        }
    }
}

fn zeroed_headers() -> Box<[libc::mmsghdr; BATCH]> {
    // SAFETY: all-zero is a valid `mmsghdr`: null pointers and zero lengths.
    Box::new(unsafe { MaybeUninit::zeroed().assume_init() })
}

fn set_int(fd: BorrowedFd<'_>, level: i32, option: i32, value: i32) -> io::Result<()> {
    set(fd, level, option, &value)
}

fn set<T>(fd: BorrowedFd<'_>, level: i32, option: i32, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the value is valid for reads of its size.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const *value).cast(), len) })?;
    Ok(())
}

fn get_int(fd: BorrowedFd<'_>, level: i32, option: i32) -> io::Result<i32> {
    let mut value = 0i32;
    let mut len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the value is valid for writes of the length given.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut len) })?;
    Ok(value)
}

/// # Safety
/// A non-negative `fd` must be a descriptor that nobody else owns.
unsafe fn owned(fd: i32) -> io::Result<OwnedFd> {
    let fd = check(fd)?;
    // SAFETY: the caller's promise.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn length(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn local(fd: &OwnedFd, ipv6: bool) -> SocketAddr {
        let loopback: SocketAddr = if ipv6 { "[::1]:0" } else { "127.0.0.1:0" }.parse().unwrap();
        let address = Address::from(loopback);
        // SAFETY: the address is valid for its length.
        check(unsafe { libc::bind(fd.as_raw_fd(), address.as_ptr(), address.len) }).unwrap();
        let mut address = Address::NONE;
        let mut len = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
        // SAFETY: the address is valid for writes of the length.
        check(unsafe { libc::getsockname(fd.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut len) })
            .unwrap();
        address.to_std(len).unwrap()
    }

    fn wait_readable(fd: &OwnedFd) {
        let mut fds = [nix::poll::PollFd::new(fd.as_fd(), nix::poll::PollFlags::POLLIN)];
        assert_eq!(nix::poll::poll(&mut fds, 5000u16).unwrap(), 1);
    }

    #[test]
    fn datagrams_travel_in_batches_and_segments() {
        for ipv6 in [false, true] {
            let Ok(a) = open(Kind::Udp, ipv6) else { continue };
            let b = open(Kind::Udp, ipv6).unwrap();
            prepare_datagram(b.as_fd(), Kind::Udp, ipv6);
            let to = local(&b, ipv6);
            let payload = [7u8; 2500];
            let pieces: [&[u8]; 2] = [&payload[..1300], &payload[1300..]];
            let small: [&[u8]; 1] = [b"x"];
            let outgoing = [
                Outgoing {
                    remote: Some(to),
                    local: None,
                    pieces: pieces.iter().copied(),
                    segment: Some(1000),
                },
                Outgoing { remote: Some(to), local: None, pieces: small.iter().copied(), segment: None },
            ];
            assert_eq!(SendBatch::new().send(a.as_fd(), outgoing.into_iter()).unwrap(), 2);
            let mut buffers = vec![vec![0u8; 65536]; BATCH];
            let mut batch = RecvBatch::new();
            let mut got = Vec::new();
            while got.iter().map(|i: &Incoming| i.len).sum::<usize>() < 2501 {
                wait_readable(&b);
                batch.recv(b.as_fd(), buffers.iter_mut().map(Vec::as_mut_slice), &mut got).unwrap();
            }
            assert_eq!(got[0].segment.map_or(got[0].len, usize::from), 1000);
            assert_eq!(got.last().unwrap().len, 1);
            assert!(got.iter().all(|i| i.from.is_ipv6() == ipv6));
        }
    }

    #[test]
    fn a_refused_datagram_is_reported_with_its_destination() {
        let target = open(Kind::Udp, false).unwrap();
        let to = local(&target, false);
        drop(target);
        let fd = open(Kind::Udp, false).unwrap();
        prepare_datagram(fd.as_fd(), Kind::Udp, false);
        let question: &[u8] = b"question";
        let one =
            Outgoing { remote: Some(to), local: None, pieces: std::iter::once(question), segment: None };
        SendBatch::new().send(fd.as_fd(), std::iter::once(one)).unwrap();
        let mut fds = [nix::poll::PollFd::new(fd.as_fd(), nix::poll::PollFlags::empty())];
        assert_eq!(nix::poll::poll(&mut fds, 5000u16).unwrap(), 1);
        let mut quoted = [0; 64];
        let error = recv_error(fd.as_fd(), &mut quoted).unwrap().unwrap();
        assert_eq!(error.remote, to);
        assert_eq!(error.error.kind, DatagramErrorKind::PortUnreachable);
        assert_eq!(error.error.offender, Some(to.ip()));
        assert_eq!(&quoted[..error.quoted], b"question");
        assert_eq!(recv_error(fd.as_fd(), &mut quoted).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
