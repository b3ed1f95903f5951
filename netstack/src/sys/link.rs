//! What frames travel on: a TAP, or a socket whose other end is a virtual machine.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{GetSockOpt, MsgFlags, SockType, sendmsg, sockopt};
use thiserror::Error;

use super::tap::{Tap, set_nonblocking};
use crate::frame::LinkCapabilities;
use crate::offload::vnet_hdr;

/// A link to the child.
#[derive(Debug)]
#[non_exhaustive]
pub enum Link {
    /// A TAP device in the child's namespace.
    Tap(Tap),
    /// A socket with one Ethernet frame per message.
    Packet(PacketSocket),
}

/// A connected `SOCK_SEQPACKET` socket that carries one Ethernet frame per message, without any header before it:
/// the way of BESS and of User-Mode Linux's vector transport. Nothing is offloaded to it. The link is gone when the
/// peer closes its end.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
}

/// What can go wrong with a packet socket; one variant per system call.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PacketSocketError {
    /// The descriptor is not a socket.
    #[error("getsockopt(SO_TYPE) failed")]
    SocketType(#[source] io::Error),
    /// The socket does not keep the borders of messages in order.
    #[error("a socket of type SOCK_SEQPACKET is needed")]
    WrongType,
    /// The descriptor could not be made non-blocking.
    #[error("making the socket non-blocking failed")]
    NonBlocking(#[source] io::Error),
}

impl Link {
    /// What the link does for us.
    pub fn capabilities(&self) -> LinkCapabilities {
        match self {
            Link::Tap(tap) => tap.capabilities(),
            Link::Packet(_) => LinkCapabilities::default(),
        }
    }

    /// The interface's name in its namespace, or what stands for it.
    pub fn name(&self) -> &str {
        match self {
            Link::Tap(tap) => tap.name(),
            Link::Packet(_) => "packet socket",
        }
    }

    /// Has super-segments inside UDP tunnels travel whole, where that can be.
    pub(crate) fn offer_tunnels(&mut self) {
        match self {
            Link::Tap(tap) => tap.offer_tunnels(),
            Link::Packet(_) => {}
        }
    }

    /// Bytes of the virtio-net header.
    pub(crate) fn header_len(&self) -> usize {
        match self {
            Link::Tap(tap) => tap.header_len(),
            Link::Packet(_) => 0,
        }
    }

    /// Reads one frame; `WouldBlock` when there is none.
    pub(crate) fn read(
        &self,
        header: &mut [u8; vnet_hdr::TUNNEL_LEN],
        frame: &mut [u8],
    ) -> io::Result<usize> {
        match self {
            Link::Tap(tap) => tap.read(header, frame),
            Link::Packet(socket) => {
                header.fill(0);
                socket.read(frame)
            }
        }
    }

    /// Writes one frame that consists of `parts`, the first of which is the virtio-net header of
    /// [`Link::header_len`] bytes.
    pub(crate) fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Link::Tap(tap) => tap.write(parts),
            Link::Packet(socket) => socket.write(&parts[1..]),
        }
    }
}

impl PacketSocket {
    /// Adopts a connected socket.
    ///
    /// # Errors
    /// It is no `SOCK_SEQPACKET` socket.
    pub fn new(fd: OwnedFd) -> Result<Self, PacketSocketError> {
        let kind = sockopt::SockType.get(&fd).map_err(|error| PacketSocketError::SocketType(error.into()))?;
        if kind != SockType::SeqPacket {
            return Err(PacketSocketError::WrongType);
        }
        set_nonblocking(fd.as_fd()).map_err(PacketSocketError::NonBlocking)?;
        Ok(PacketSocket { fd })
    }

    /// Frames longer than the buffer are cut, and then dropped for their length.
    fn read(&self, frame: &mut [u8]) -> io::Result<usize> {
        match super::socket::recv(self.fd.as_fd(), frame)? {
            // There are no empty frames.
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            len => Ok(len),
        }
    }

    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        Ok(sendmsg::<()>(self.fd.as_raw_fd(), parts, &[], flags, None)?)
    }
}

impl From<Tap> for Link {
    fn from(tap: Tap) -> Self {
        Link::Tap(tap)
    }
}

impl From<PacketSocket> for Link {
    fn from(socket: PacketSocket) -> Self {
        Link::Packet(socket)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Link::Tap(tap) => tap.as_fd(),
            Link::Packet(socket) => socket.fd.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{AddressFamily, SockFlag, socketpair};

    use super::*;

    fn pair(kind: SockType) -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    #[test]
    fn one_message_is_one_frame_and_the_end_is_told() {
        let (ours, theirs) = pair(SockType::SeqPacket);
        let link = Link::from(PacketSocket::new(ours).unwrap());
        let (mut header, mut frame) = ([7; vnet_hdr::TUNNEL_LEN], [0; 64]);
        assert_eq!(link.read(&mut header, &mut frame).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        nix::unistd::write(&theirs, b"first").unwrap();
        nix::unistd::write(&theirs, b"second").unwrap();
        assert_eq!(link.read(&mut header, &mut frame).unwrap(), 5);
        assert_eq!((&frame[..5], header), (&b"first"[..], [0; vnet_hdr::TUNNEL_LEN]));
        assert_eq!(link.read(&mut header, &mut frame).unwrap(), 6);
        let parts = [&[][..], b"head", b"body"].map(IoSlice::new);
        assert_eq!(link.write(&parts).unwrap(), 8, "without the virtio-net header");
        assert_eq!(nix::unistd::read(&theirs, &mut frame).unwrap(), 8);
        drop(theirs);
        assert_eq!(link.read(&mut header, &mut frame).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(link.write(&parts).unwrap_err().raw_os_error(), Some(libc::EPIPE));
    }

    #[test]
    fn streams_are_refused() {
        let (stream, _other) = pair(SockType::Stream);
        assert!(matches!(PacketSocket::new(stream), Err(PacketSocketError::WrongType)));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(PacketSocket::new(file.into()), Err(PacketSocketError::SocketType(_))));
    }
}
