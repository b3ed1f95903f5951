//! A netlink socket of the kind sock_diag(7).

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

use crate::sock_diag::{
    DPORT_OFFSET, EVERYTHING, Message, NLMSG_SEQ, Query, Socket, UNASKED, decode, encode_connected,
    encode_dump, encode_lookup,
};
use crate::spec::Transport;

/// Asks for sockets in the network namespace where it was opened, whichever process it is given to. Needs no privilege.
#[derive(Debug)]
pub struct DiagSocket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl DiagSocket {
    /// Opens one for the calling thread's network namespace.
    ///
    /// # Errors
    /// socket(2), bind(2).
    pub fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Datagram, flags, SockProtocol::NetlinkSockDiag)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(DiagSocket::adopt(fd))
    }

    /// Takes over a socket that [`open`](Self::open) made, perhaps in another process, which need not have left it as
    /// it was.
    pub fn adopt(fd: OwnedFd) -> Self {
        // Without it a read could wait for ever. It fails for no descriptor that is open.
        let _ = fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
        DiagSocket { fd, sequence: UNASKED, buffer: vec![0; RECEIVE_BUFFER] }
    }

    /// From now on the socket is readable when a TCP socket went that may have listened. The kernel's price is a message
    /// for each TCP socket of the namespace that goes, most of which are thrown away before they reach us.
    ///
    /// # Errors
    /// setsockopt(2).
    pub fn subscribe(&self) -> io::Result<()> {
        // The filter first: without it every connection's end would be told.
        attach_filter(self.fd.as_fd(), &NOTICES_OF_UNCONNECTED)?;
        DESTROY_GROUPS.into_iter().try_for_each(|group| join_group(self.fd.as_fd(), group))
    }

    /// All TCP that listens and all UDP that is bound and not connected, sorted, each address and port once.
    ///
    /// # Errors
    /// send(2), recv(2), or the kernel's refusal (`ENOENT` without INET_DIAG, INET_UDP_DIAG).
    pub fn listening(&mut self) -> io::Result<Vec<Socket>> {
        let mut sockets = Vec::new();
        for (transport, family) in EVERYTHING {
            self.dump(Query::listening(transport, family), &mut sockets)?;
        }
        sockets.sort_unstable();
        // SO_REUSEPORT: many sockets, one place.
        sockets.dedup_by_key(|socket| (socket.transport, socket.address, socket.reach, socket.interface));
        Ok(sockets)
    }

    /// Appends the sockets of one query.
    ///
    /// # Errors
    /// As [`listening`](Self::listening).
    pub fn dump(&mut self, query: Query, sockets: &mut Vec<Socket>) -> io::Result<()> {
        let sequence = self.next_sequence();
        send(self.fd.as_raw_fd(), &encode_dump(sequence, query), MsgFlags::empty())?;
        loop {
            let length = self.receive()?;
            for message in decode(self.buffer.get(..length).unwrap_or_default(), query.transport) {
                match message {
                    Message::Socket(number, socket) if number == sequence => sockets.push(socket),
                    Message::Done(number) if number == sequence => return Ok(()),
                    Message::Refused(number, errno) if number == sequence => {
                        return Err(io::Error::from_raw_os_error(errno));
                    }
                    // Notices, and what is left of a dump that was given up.
                    _ => {}
                }
            }
        }
    }

    /// The socket that hears new clients of `address`; `None` if nobody does.
    ///
    /// # Errors
    /// As [`listening`](Self::listening).
    pub fn listener(&mut self, transport: Transport, address: SocketAddr) -> io::Result<Option<Socket>> {
        let sequence = self.next_sequence();
        self.look_up(sequence, transport, &encode_lookup(sequence, transport, address))
    }

    /// Whether there is a TCP socket at `local` that is connected to `remote`, both of one family.
    ///
    /// # Errors
    /// As [`listening`](Self::listening).
    pub fn is_connected(&mut self, local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
        let sequence = self.next_sequence();
        let found = self.look_up(sequence, Transport::Tcp, &encode_connected(sequence, local, remote))?;
        // Failing the connection the kernel names the listener. The answer is the only message of its datagram.
        Ok(found.is_some() && self.buffer.get(ANSWER_STATE) != Some(&TCP_LISTEN))
    }

    fn look_up(&mut self, sequence: u32, transport: Transport, request: &[u8]) -> io::Result<Option<Socket>> {
        send(self.fd.as_raw_fd(), request, MsgFlags::empty())?;
        loop {
            let length = self.receive()?;
            for message in decode(self.buffer.get(..length).unwrap_or_default(), transport) {
                match message {
                    Message::Socket(number, socket) if number == sequence => return Ok(Some(socket)),
                    Message::Refused(number, libc::ENOENT) if number == sequence => return Ok(None),
                    Message::Refused(number, errno) if number == sequence => {
                        return Err(io::Error::from_raw_os_error(errno));
                    }
                    _ => {}
                }
            }
        }
    }

    /// Takes in what the kernel told unasked. Returns whether a socket went that may have listened.
    pub fn drain_notices(&mut self) -> bool {
        let mut gone = false;
        while let Ok(length) = self.receive() {
            let bytes = self.buffer.get(..length).unwrap_or_default();
            gone |= decode(bytes, Transport::Tcp).any(|message| message == Message::Destroyed);
        }
        gone
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(UNASKED + 1);
        self.sequence
    }

    fn receive(&mut self) -> io::Result<usize> {
        loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                // ENOBUFS: notices were lost. The timer of whoever follows the list makes good for it.
                Err(Errno::EINTR | Errno::ENOBUFS) => {}
                other => return Ok(other?),
            }
        }
    }
}

impl AsFd for DiagSocket {
    /// See [`subscribe`](DiagSocket::subscribe).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<DiagSocket> for OwnedFd {
    fn from(socket: DiagSocket) -> OwnedFd {
        socket.fd
    }
}

/// `idiag_state` of the `struct inet_diag_msg` behind the netlink header.
const ANSWER_STATE: usize = 17;
/// TCP_LISTEN (`net/tcp_states.h`).
const TCP_LISTEN: u8 = 10;
/// The kernel makes dumps of up to 32 KiB if the reader has room for them (`netlink_recvmsg`).
const RECEIVE_BUFFER: usize = 32 * 1024;

/// SKNLGRP_INET_TCP_DESTROY and SKNLGRP_INET6_TCP_DESTROY of `linux/sock_diag.h`. Not UDP: every look-up of a name would
/// wake us.
const DESTROY_GROUPS: [libc::c_int; 2] = [1, 3];

/// Keeps answers, and of the notices those about sockets without a peer. (The port it had is 0 by the time it goes.)
const NOTICES_OF_UNCONNECTED: [libc::sock_filter; 6] = [
    bpf(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, NLMSG_SEQ.start as u32),
    bpf(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 2, UNASKED),
    bpf(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, DPORT_OFFSET as u32),
    bpf(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, 0),
    bpf(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    bpf(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
];

const fn bpf(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

fn attach_filter(fd: BorrowedFd<'_>, filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: `program` and the filter it points to outlive the call, which only reads them; the length is theirs.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    Errno::result(result)?;
    Ok(())
}

fn join_group(fd: BorrowedFd<'_>, group: libc::c_int) -> io::Result<()> {
    // SAFETY: `group` outlives the call, which reads an int of it.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_ADD_MEMBERSHIP,
            (&raw const group).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    Errno::result(result)?;
    Ok(())
}
