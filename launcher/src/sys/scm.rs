//! Receiving a message with descriptors (SCM_RIGHTS, unix(7)).

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// Most descriptors of one message.
pub(crate) const MOST: usize = 8;

/// Receives one message into `bytes`: its length and the descriptors that came along. Length 0: closed.
///
/// # Errors
/// recvmsg(2).
pub(crate) fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = nix::cmsg_space!([RawFd; MOST]);
    let mut slices = [IoSliceMut::new(bytes)];
    let received =
        recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut received_fds = Vec::new();
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = message {
            for raw in fds {
                // SAFETY: the kernel created this descriptor for this message and nobody else knows it.
                received_fds.push(unsafe { OwnedFd::from_raw_fd(raw) });
            }
        }
    }
    Ok((received.bytes, received_fds))
}
