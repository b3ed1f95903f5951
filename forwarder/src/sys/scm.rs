//! Messages with descriptors over a `SOCK_SEQPACKET` socket (unix(7), cmsg(3)).

use std::io::{self, IoSlice};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};

use super::datagram::ControlMessages;
use super::length;

/// Descriptors per message: SCM_MAX_FD of the kernel.
pub(crate) const MAX_FDS: usize = 253;

/// A connected pair.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Sends one message with at most [`MAX_FDS`] descriptors.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    message: &[u8],
    fds: &[OwnedFd],
    flags: MsgFlags,
) -> io::Result<()> {
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let rights = if numbers.is_empty() { &[][..] } else { &rights };
    let flags = flags | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(message)], rights, flags, None)?;
    Ok(())
}

/// Receives one message; its descriptors are appended to `fds`, as many as this process has room for. 0 when the other end
/// is gone. A message that was cut short is an error.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    flags: MsgFlags,
) -> io::Result<usize> {
    // Of u64, for the alignment of `struct cmsghdr`.
    let mut space = [0u64; CONTROL_SPACE / 8];
    let mut piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all-zero is a valid `msghdr`.
    let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_iov = &raw mut piece;
    header.msg_iovlen = 1;
    header.msg_control = space.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&space) as _;
    let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
    // SAFETY: the header points to locals and the buffer, valid for writes of the lengths given.
    let received = length(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags.bits()) })?;
    for (level, kind, data) in ControlMessages::new(&header) {
        if (level, kind) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            let numbers = data.chunks_exact(size_of::<RawFd>()).filter_map(<[u8]>::first_chunk);
            // SAFETY: the kernel made these descriptors for this process just now and nobody else knows them.
            fds.extend(numbers.map(|&fd| unsafe { OwnedFd::from_raw_fd(RawFd::from_ne_bytes(fd)) }));
        }
    }
    if header.msg_flags & libc::MSG_TRUNC != 0 {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    Ok(received)
}

/// Room for [`MAX_FDS`], with some to spare.
const CONTROL_SPACE: usize = 1088;

const _: () = {
    // SAFETY: CMSG_SPACE computes with its argument only.
    assert!(unsafe { libc::CMSG_SPACE((MAX_FDS * size_of::<RawFd>()) as u32) } as usize <= CONTROL_SPACE);
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn descriptors_arrive_with_their_message() {
        let (a, b) = pair().unwrap();
        let sent: Vec<OwnedFd> = (0..MAX_FDS).map(|_| a.try_clone().unwrap()).collect();
        send(a.as_fd(), b"message", &sent, MsgFlags::empty()).unwrap();
        send(a.as_fd(), b"too long", &[], MsgFlags::empty()).unwrap();
        let (mut buffer, mut fds) = ([0; 7], Vec::new());
        assert_eq!(receive(b.as_fd(), &mut buffer, &mut fds, MsgFlags::empty()).unwrap(), 7);
        assert_eq!((&buffer, fds.len()), (b"message", MAX_FDS));
        let cut = receive(b.as_fd(), &mut buffer, &mut fds, MsgFlags::empty()).unwrap_err();
        assert_eq!(cut.raw_os_error(), Some(libc::EMSGSIZE));
        drop((a, sent, fds));
        assert_eq!(receive(b.as_fd(), &mut buffer, &mut Vec::new(), MsgFlags::empty()).unwrap(), 0);
    }
}
