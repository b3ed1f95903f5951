//! A socketpair that keeps message borders and carries descriptors (unix(7), SOCK_SEQPACKET, SCM_RIGHTS).

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};

use super::message::{MAX_MESSAGE, Message};
use crate::sys::scm;

/// One end of the line between two of our processes; closed by exec.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// A message with the descriptor that came along.
#[derive(Debug)]
pub struct Received {
    /// The message.
    pub message: Message,
    /// The descriptor.
    pub fd: Option<OwnedFd>,
    /// Those that came after it.
    pub more: Vec<OwnedFd>,
}

impl Channel {
    /// Both ends.
    ///
    /// # Errors
    /// socketpair(2).
    pub fn pair() -> io::Result<(Channel, Channel)> {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Channel(a), Channel(b)))
    }

    /// Another descriptor for this end.
    ///
    /// # Errors
    /// fcntl(2).
    pub fn try_clone(&self) -> io::Result<Channel> {
        self.0.try_clone().map(Channel)
    }

    /// Sends one message, with a descriptor if there is one. Does not raise SIGPIPE.
    ///
    /// # Errors
    /// sendmsg(2); `EPIPE` if the other process is gone.
    pub fn send(&self, message: &Message, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.send_all(message, fd.as_slice())
    }

    /// The same with several descriptors, at most `scm::MOST`.
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub fn send_all(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = message.encode();
        let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        loop {
            match sendmsg::<()>(
                self.0.as_raw_fd(),
                &[IoSlice::new(&bytes)],
                control,
                MsgFlags::MSG_NOSIGNAL,
                None,
            ) {
                Err(Errno::EINTR) => {}
                other => return Ok(other.map(drop)?),
            }
        }
    }

    /// Waits for a message; `None` when the other end is closed.
    ///
    /// # Errors
    /// recvmsg(2); `EBADMSG` for what is not a message.
    pub fn receive(&self) -> io::Result<Option<Received>> {
        let mut bytes = [0u8; MAX_MESSAGE];
        let (length, fds) = loop {
            match scm::receive(self.0.as_fd(), &mut bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The far side closed without reading everything. The kernel says so once, before it hands out
                // what the far side sent.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                other => break other?,
            }
        };
        if length == 0 {
            return Ok(None);
        }
        let message = Message::decode(&bytes[..length]).map_err(|_| Errno::EBADMSG)?;
        let mut fds = fds.into_iter();
        Ok(Some(Received { message, fd: fds.next(), more: fds.collect() }))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn messages_and_descriptors_arrive_in_order() {
        let (a, b) = Channel::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        a.send(&Message::TapReady, Some(writer.as_fd())).unwrap();
        a.send(&Message::NetworkReady, None).unwrap();
        drop((a, writer));

        let first = b.receive().unwrap().unwrap();
        assert_eq!(first.message, Message::TapReady);
        let mut writer = std::fs::File::from(first.fd.unwrap());
        writer.write_all(b"x").unwrap();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");

        let second = b.receive().unwrap().unwrap();
        assert_eq!(second.message, Message::NetworkReady);
        assert!(second.fd.is_none());
        assert!(b.receive().unwrap().is_none());
    }

    #[test]
    fn as_many_descriptors_arrive_as_a_tap_has_queues() {
        let (a, b) = Channel::pair().unwrap();
        a.send_all(&Message::TapReady, &[a.as_fd(); scm::MOST]).unwrap();
        let received = b.receive().unwrap().unwrap();
        assert_eq!(received.fd.iter().chain(&received.more).count(), scm::MOST);
    }

    #[test]
    fn last_words_arrive_even_from_a_side_that_does_not_listen() {
        let (a, b) = Channel::pair().unwrap();
        b.send(&Message::TapReady, None).unwrap();
        a.send(&Message::NetworkReady, None).unwrap();
        drop(a);
        assert_eq!(b.receive().unwrap().unwrap().message, Message::NetworkReady);
        assert!(b.receive().unwrap().is_none());
    }

    #[test]
    fn sending_to_nobody_is_an_error_and_no_signal() {
        let (a, b) = Channel::pair().unwrap();
        drop(b);
        assert_eq!(a.send(&Message::Execute, None).unwrap_err().raw_os_error(), Some(libc::EPIPE));
    }
}
