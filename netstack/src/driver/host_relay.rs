//! Connected host sockets go to a relay, which carries their flows past this driver; the theory is that of the stack's
//! `host_relay`.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use super::Driver;
use crate::action::HostEvent;
use crate::flow::FlowId;
use crate::stack::{RelayEnd, Relaying};
use crate::sys::socket;

/// A flow of the child whose host side has connected.
#[derive(Debug)]
pub struct RelayOffer {
    /// Names the flow in every answer.
    pub flow: FlowId,
    /// The connection to the world, non-blocking; nothing was read from it or written to it.
    pub stream: OwnedFd,
    /// The child's end, which waits in SYN-SENT.
    pub child: SocketAddr,
    /// The other end as the child named it: the address that a socket in its namespace has to have for it.
    pub destination: SocketAddr,
}

/// Who carries flows past this driver. Its methods are called on the driver's thread and must not wait.
pub trait HostRelay: Send {
    /// Takes a flow, or gives it back at once. Who takes it answers within a few seconds, by [`Driver::relay_joined`]
    /// or [`Driver::relay_refused`], from another thread by [`DriverHandle::post`](super::DriverHandle::post).
    ///
    /// # Errors
    /// The offer itself, where it cannot be taken.
    fn offer(&mut self, offer: RelayOffer) -> Result<(), RelayOffer>;

    /// The child has given up, or the answer came too late: what was taken for `flow` is to be reset, whether joined
    /// or not. Told twice where the answer crosses it; flows that are not known (any more) are to be ignored.
    fn withdraw(&mut self, flow: FlowId);
}

impl Driver {
    /// Offers the flows that the child opens from now on to `relay`; none where nobody is to have them. While an
    /// observer or a capture sees frames, new flows are not offered, so that it sees all of them.
    ///
    /// Flows that a former relay has taken stay its own: their ends are told as before.
    pub fn set_relay(&mut self, relay: Option<Box<dyn HostRelay>>) {
        self.relay = relay;
        self.choose_relaying();
    }

    /// The relay has joined `flow` with the child. `false` where it came too late; [`HostRelay::withdraw`] was called
    /// then.
    pub fn relay_joined(&mut self, flow: FlowId) -> bool {
        let joined = self.stack.relay_joined(self.clock.now(), flow);
        if !joined {
            self.withdraw(flow);
        }
        joined
    }

    /// The relay gives `stream` back, untouched: the child is answered by frames. `false` where it came too late;
    /// `stream` was reset then.
    pub fn relay_refused(&mut self, flow: FlowId, stream: OwnedFd) -> bool {
        let now = self.clock.now();
        if !self.stack.is_offered(flow) {
            socket::reset_on_close(stream.as_fd());
            return false;
        }
        match self.sockets.keep_stream(flow, stream) {
            Ok(()) => self.stack.relay_refused(now, flow),
            Err(error) => {
                log::debug!("watching a connection that the relay gave back failed: {error}");
                self.stack.handle_host(now, flow, HostEvent::Reset);
                true
            }
        }
    }

    /// A flow that was joined has ended, and has carried that much.
    pub fn relay_ended(&mut self, flow: FlowId, end: RelayEnd) {
        self.stack.relay_ended(self.clock.now(), flow, end);
    }

    /// Whether flows are offered at this moment.
    pub(super) fn choose_relaying(&mut self) {
        let on = self.relay.is_some() && !self.observers.are_watching();
        self.stack.set_relaying(if on { Relaying::On } else { Relaying::Off });
    }

    pub(super) fn offer(&mut self, flow: FlowId, child: SocketAddr, destination: SocketAddr) {
        // Without a socket the flow is over: its withdrawal follows.
        let Some(stream) = self.sockets.take_stream(flow) else { return };
        let offer = RelayOffer { flow, stream, child, destination };
        let refused = match &mut self.relay {
            Some(relay) => relay.offer(offer).err(),
            None => Some(offer),
        };
        if let Some(offer) = refused {
            self.relay_refused(flow, offer.stream);
        }
    }

    pub(super) fn withdraw(&mut self, flow: FlowId) {
        if let Some(relay) = &mut self.relay {
            relay.withdraw(flow);
        }
    }
}
