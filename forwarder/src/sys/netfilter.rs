//! Sends our table to the kernel (nfnetlink) and hears what it says.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

use super::rtnetlink::acknowledgements;
use crate::netfilter::{Batch, Nat, Owner};
use crate::protocol::EgressStep;

/// A table of ours that is there, as long as this is where the kernel knows owners.
#[derive(Debug)]
pub(crate) struct Table {
    _socket: OwnedFd,
    owner: Owner,
}

impl Table {
    /// Makes or replaces the table in the caller's network namespace.
    ///
    /// # Errors
    /// Which step the kernel refused, and why.
    pub(crate) fn make() -> Result<Self, (EgressStep, io::Error)> {
        let socket = open().map_err(|error| (EgressStep::Netlink, error))?;
        let (mut owner, mut nat) = (Owner::Socket, Nat::Present);
        loop {
            match perform(&socket, &Batch::table(owner, nat)) {
                Ok(()) => return Ok(Table { _socket: socket, owner }),
                // Before Linux 5.12.
                Err((EgressStep::Table, _)) if owner == Owner::Socket => owner = Owner::Nobody,
                Err((EgressStep::Chain | EgressStep::Rule, _)) if nat == Nat::Present => nat = Nat::Absent,
                Err(refused) => return Err(refused),
            }
        }
    }

    /// Whether it stays until this is dropped, whoever else flushes tables.
    pub(crate) fn is_kept(&self) -> bool {
        self.owner == Owner::Socket
    }
}

fn open() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(fd)
}

/// The kernel works a batch off while it is being sent: all answers are there afterwards.
fn perform(socket: &OwnedFd, batch: &Batch) -> Result<(), (EgressStep, io::Error)> {
    let failed = |error: nix::Error| (EgressStep::Netlink, error.into());
    send(socket.as_raw_fd(), &batch.bytes, MsgFlags::empty()).map_err(failed)?;
    let mut buffer = vec![0; 16 << 10];
    let mut done = false;
    // To the end: what is left over would answer the next batch.
    let mut refused = None;
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(len) => {
                for (sequence, errno) in acknowledgements(buffer.get(..len).unwrap_or_default()) {
                    if errno != 0 && refused.is_none() {
                        refused = Some((batch.step(sequence), io::Error::from_raw_os_error(errno)));
                    }
                    done |= sequence == batch.last();
                }
            }
            Err(nix::Error::EINTR) => {}
            Err(nix::Error::EAGAIN) => break,
            Err(error) => return Err(failed(error)),
        }
    }
    match refused {
        Some(refused) => Err(refused),
        None if done => Ok(()),
        None => Err((EgressStep::Commit, io::Error::from_raw_os_error(libc::EPROTO))),
    }
}
