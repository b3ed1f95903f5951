//! What the host hands in for the child: connections, and sockets that datagrams come by.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use thiserror::Error;

use super::Driver;
use crate::action::HostEvent;
use crate::error::ForwardError;
use crate::flow::FlowId;
use crate::forward::{ForwardId, UdpForward};
use crate::sys::socket;

/// Why a descriptor of the host was not taken over. A connection has been reset then.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// The stack does not take it.
    #[error("it cannot be carried to the child")]
    Refused(#[from] ForwardError),
    /// The descriptor cannot be watched.
    #[error("watching it failed")]
    Register(#[source] io::Error),
}

impl Driver {
    /// Takes over `stream`, a connection that was accepted on the host, and opens one to `child` for it, an address in
    /// or behind the child's namespace. The child sees it come from `source`, of the same family: the client's own
    /// address, or the gateway's where the child could not answer to that; another port of it if that one is taken.
    ///
    /// Nothing is read from `stream` until the child has accepted. If the child refuses, cannot be reached or does not
    /// answer, `stream` is reset.
    ///
    /// # Errors
    /// Why it cannot be; `stream` has been reset.
    pub fn adopt_stream(
        &mut self,
        stream: OwnedFd,
        source: SocketAddr,
        child: SocketAddr,
    ) -> Result<FlowId, AdoptError> {
        let now = self.clock.now();
        let flow = match self.stack.open_to_child(now, source, child) {
            Ok(flow) => flow,
            Err(error) => {
                socket::reset_on_close(stream.as_fd());
                return Err(error.into());
            }
        };
        if let Err(error) = self.sockets.adopt(flow, stream) {
            self.stack.handle_host(now, flow, HostEvent::Reset);
            return Err(AdoptError::Register(error));
        }
        Ok(flow)
    }

    /// Takes over `socket`, a bound, unconnected UDP socket of the host, and carries each client's datagrams to
    /// `forward.child`, and the answers back, from the address that the client has sent to.
    ///
    /// What a client hears of a port on which nothing listens is silence: an unconnected socket cannot refuse.
    ///
    /// # Errors
    /// Why it cannot be; `socket` is closed.
    pub fn add_udp_forward(&mut self, socket: OwnedFd, forward: UdpForward) -> Result<ForwardId, AdoptError> {
        let id = self.stack.add_udp_forward(forward)?;
        if let Err(error) = self.sockets.adopt_datagram(id, socket) {
            self.stack.remove_udp_forward(id);
            return Err(AdoptError::Register(error));
        }
        self.tell_published();
        Ok(id)
    }

    /// Closes the socket of a forward, and ends its sessions; says whether there was one of that name. When the call
    /// returns, the host's port is free.
    pub fn remove_udp_forward(&mut self, id: ForwardId) -> bool {
        let removed = self.stack.remove_udp_forward(id);
        self.tell_published();
        self.drain(self.clock.now());
        removed
    }
}
