//! The rtnetlink socket.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

use super::message::{Batch, Reply, replies};

/// Room for the answers of one batch: each repeats the request's header only, or the request after an error.
const RECEIVE_BUFFER: usize = 16 * 1024;

/// A request that the kernel refused.
#[derive(Debug)]
pub struct Refused {
    /// What it should have done.
    pub request: &'static str,
    /// Why not.
    pub error: io::Error,
}

/// A socket in the network namespace of the process that opened it.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// Opens a socket for requests.
    ///
    /// # Errors
    /// socket(2).
    pub fn open() -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        Ok(Socket(fd))
    }

    /// Opens a socket that hears of new IPv6 routes from now on.
    ///
    /// # Errors
    /// socket(2), bind(2).
    pub fn subscribe_ipv6_routes() -> io::Result<Self> {
        let socket = Socket::open()?;
        bind(socket.0.as_raw_fd(), &NetlinkAddr::new(0, libc::RTMGRP_IPV6_ROUTE as u32))?;
        Ok(socket)
    }

    /// Opens a socket that hears of every change of an interface from now on.
    ///
    /// # Errors
    /// socket(2), bind(2).
    pub fn subscribe_links() -> io::Result<Self> {
        let socket = Socket::open()?;
        bind(socket.0.as_raw_fd(), &NetlinkAddr::new(0, libc::RTMGRP_LINK as u32))?;
        Ok(socket)
    }

    /// Opens a socket that hears of every change of neighbour and forwarding tables from now on.
    ///
    /// # Errors
    /// socket(2), bind(2).
    pub fn subscribe_neighbors() -> io::Result<Self> {
        let socket = Socket::open()?;
        bind(socket.0.as_raw_fd(), &NetlinkAddr::new(0, libc::RTMGRP_NEIGH as u32))?;
        Ok(socket)
    }

    /// The hosts that tunnels of this namespace send to.
    ///
    /// # Errors
    /// send(2), recv(2).
    pub fn tunnel_peers(&self) -> io::Result<BTreeSet<IpAddr>> {
        let mut batch = Batch::new();
        batch.list_forwarding();
        send(self.0.as_raw_fd(), batch.bytes(), MsgFlags::empty())?;
        let (mut buffer, mut peers) = (vec![0; RECEIVE_BUFFER], BTreeSet::new());
        loop {
            let length = self.receive(&mut buffer)?;
            for reply in replies(&buffer[..length]) {
                match reply {
                    Reply::TunnelPeer(peer) => drop(peers.insert(peer)),
                    Reply::Done | Reply::Acknowledged { .. } => return Ok(peers),
                    _ => {}
                }
            }
        }
    }

    /// Takes what has been told, after at most `milliseconds`, whatever it is.
    ///
    /// # Errors
    /// poll(2), recv(2).
    pub fn wait_any_for(&self, milliseconds: u16) -> io::Result<()> {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(milliseconds)) {
            Ok(0) | Err(Errno::EINTR) => Ok(()),
            Ok(_) => self.wait_any(),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until something has been told, whatever it is. That something was lost counts too.
    ///
    /// # Errors
    /// recv(2).
    pub fn wait_any(&self) -> io::Result<()> {
        match self.receive(&mut vec![0; RECEIVE_BUFFER]) {
            Ok(_) | Err(Errno::ENOBUFS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Performs every request of the batch, in order; goes on after a refusal.
    ///
    /// # Errors
    /// The first refusal.
    pub fn perform(&self, batch: &Batch) -> Result<(), Refused> {
        let io = |error: Errno| Refused { request: "talking to the kernel", error: error.into() };
        send(self.0.as_raw_fd(), batch.bytes(), MsgFlags::empty()).map_err(io)?;
        let mut buffer = vec![0; RECEIVE_BUFFER];
        let mut refused = None;
        let mut missing = batch.len();
        while missing > 0 {
            let length = self.receive(&mut buffer).map_err(io)?;
            for reply in replies(&buffer[..length]) {
                let Reply::Acknowledged { sequence, errno } = reply else { continue };
                missing = missing.saturating_sub(1);
                if errno != 0 && refused.is_none() {
                    let error = io::Error::from_raw_os_error(errno);
                    refused = Some(Refused { request: batch.name(sequence), error });
                }
            }
        }
        refused.map_or(Ok(()), Err)
    }

    /// Waits until all of `wanted` has been told, at most `milliseconds`. Returns what has not.
    ///
    /// # Errors
    /// poll(2), recv(2).
    pub fn wait_for(&self, mut wanted: Vec<Reply>, milliseconds: u16) -> io::Result<Vec<Reply>> {
        let mut buffer = vec![0; RECEIVE_BUFFER];
        while !wanted.is_empty() {
            // A further event starts the wait again; a fresh namespace has a handful of them.
            match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], PollTimeout::from(milliseconds))
            {
                Ok(0) => break,
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            let length = self.receive(&mut buffer)?;
            for told in replies(&buffer[..length]) {
                wanted.retain(|reply| *reply != told);
            }
        }
        Ok(wanted)
    }

    fn receive(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        loop {
            match recv(self.0.as_raw_fd(), buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                other => return other,
            }
        }
    }
}
