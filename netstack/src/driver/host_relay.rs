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
    /// The connection to the world, non-blocking; nothing was read from it or written to it. Closing it is a reset
    /// (`SO_LINGER`) until somebody says otherwise.
    pub stream: OwnedFd,
    /// The child's end, which waits in SYN-SENT.
    pub child: SocketAddr,
    /// The other end as the child named it: the address that a socket in its namespace has to have for it.
    pub destination: SocketAddr,
}

/// Who carries flows past this driver. Its methods are called on the driver's thread and must not wait.
pub trait HostRelay: Send {
    /// Which flows it is to be offered.
    fn wants(&self) -> Relaying {
        Relaying::All
    }

    /// Takes a flow, or gives it back at once. Who takes it answers within a few seconds, by [`Driver::relay_joined`]
    /// or [`Driver::relay_refused`], from another thread by [`DriverHandle::post_for`](super::DriverHandle::post_for).
    ///
    /// # Errors
    /// The offer itself, where it cannot be taken.
    fn offer(&mut self, offer: RelayOffer) -> Result<(), RelayOffer>;

    /// The child has given up, or the answer came too late: what was taken for `flow` is to be reset, whether joined
    /// or not. Told twice where the answer crosses it; flows that are not known (any more) are to be ignored.
    fn withdraw(&mut self, flow: FlowId);

    /// Frames of a joined flow come by the link: the child's connection tracking has forgotten it. Its socket in the child is to
    /// send something, which leads them back.
    fn recall(&mut self, flow: FlowId) {
        let _ = flow;
    }
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
        let relaying = match &self.relay {
            Some(relay) if !self.observers.are_watching() => relay.wants(),
            _ => Relaying::Off,
        };
        self.stack.set_relaying(relaying);
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

    pub(super) fn recall(&mut self, flow: FlowId) {
        if let Some(relay) = &mut self.relay {
            relay.recall(flow);
        }
    }

    pub(super) fn withdraw(&mut self, flow: FlowId) {
        if let Some(relay) = &mut self.relay {
            relay.withdraw(flow);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{self, Read, Write};
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;
    use std::sync::{Arc, Mutex, MutexGuard};

    use mio::Events;
    use nix::errno::Errno;
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socketpair};
    use nix::unistd::{read, write};

    use super::*;
    use crate::action::Action;
    use crate::capture::CaptureLimit;
    use crate::config::{Config, Ipv6Mode};
    use crate::frame::{Frame, Offload};
    use crate::packet::Tcp;
    use crate::sys::link::PacketSocket;
    use crate::testing::frames::{CHILD, Seen, Segment, WORLD};
    use crate::time::Duration;

    #[derive(Debug, Default)]
    struct Taken {
        offers: Vec<RelayOffer>,
        withdrawn: Vec<FlowId>,
        refuses: bool,
    }

    /// A relay that does what the test says.
    #[derive(Clone, Debug, Default)]
    struct Played(Arc<Mutex<Taken>>);

    impl Played {
        fn now(&self) -> MutexGuard<'_, Taken> {
            self.0.lock().unwrap()
        }
    }

    impl HostRelay for Played {
        fn offer(&mut self, offer: RelayOffer) -> Result<(), RelayOffer> {
            let mut taken = self.now();
            if taken.refuses {
                return Err(offer);
            }
            taken.offers.push(offer);
            Ok(())
        }

        fn withdraw(&mut self, flow: FlowId) {
            self.now().withdrawn.push(flow);
        }
    }

    struct Lab {
        driver: Driver,
        relay: Played,
        /// The link's other end.
        link: OwnedFd,
        listener: TcpListener,
    }

    fn lab() -> Lab {
        let (ours, link) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let config = Config::builder().ipv6_mode(Ipv6Mode::Off).build().unwrap();
        let mut driver = Driver::new(PacketSocket::new(ours).unwrap(), config).unwrap();
        let relay = Played::default();
        driver.set_relay(Some(Box::new(relay.clone())));
        Lab { driver, relay, link, listener: TcpListener::bind("127.0.0.1:0").unwrap() }
    }

    impl Lab {
        const REMOTE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(WORLD), 80);

        fn child(port: u16) -> SocketAddr {
            SocketAddr::new(CHILD.into(), port)
        }

        /// The child's SYN, and a connection to this test in place of one to the world; returns the far end.
        fn connect(&mut self, port: u16) -> (FlowId, File) {
            let now = self.driver.clock.now();
            let mut syn = Segment::syn(Self::child(port), Self::REMOTE, 1460).frame();
            let frame = Frame { bytes: &mut syn, offload: Offload::default(), slot: 0 };
            self.driver.stack.handle_frame(now, frame).unwrap();
            let Some(Action::Connect { flow, .. }) = self.driver.stack.poll_action() else {
                panic!("no connect")
            };
            let stream = socket::open(socket::Kind::Tcp, false).unwrap();
            let _ = socket::connect(stream.as_fd(), self.listener.local_addr().unwrap());
            let (far, _) = self.listener.accept().unwrap();
            self.driver.sockets.adopt(flow, stream).unwrap();
            self.driver.stack.handle_host(now, flow, HostEvent::Connected);
            self.driver.drain(now);
            (flow, File::from(OwnedFd::from(far)))
        }

        fn send(&mut self, segment: &Segment) {
            write(&self.link, &segment.frame()).unwrap();
            self.settle();
        }

        /// Takes what there is: on the loopback everything has arrived when a call returns.
        fn settle(&mut self) {
            self.driver.wait_at_most = Some(Duration::ZERO);
            for _ in 0..3 {
                self.driver.turn(&mut Events::with_capacity(16)).unwrap();
            }
        }

        /// The next segment to the child, if there is one.
        fn seen(&mut self) -> Option<Segment> {
            self.settle();
            let mut frame = vec![0; 70_000];
            match recv(self.link.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
                Ok(len) => Some(Seen::read(&frame[..len]).tcp()),
                Err(Errno::EAGAIN) => None,
                Err(error) => panic!("{error}"),
            }
        }

        /// The child acknowledges the SYN-ACK that it has got.
        fn establish(&mut self, port: u16) {
            let answer = self.seen().expect("a SYN-ACK");
            assert_eq!((answer.flags, answer.acknowledgement), (Tcp::SYN | Tcp::ACK, 1001));
            let ack = Segment {
                sequence: 1001,
                acknowledgement: answer.sequence.wrapping_add(1),
                ..Segment::new(Self::child(port), Self::REMOTE, Tcp::ACK)
            };
            self.send(&ack);
        }
    }

    #[test]
    fn a_socket_that_is_offered_is_the_relays_alone() {
        let mut lab = lab();
        let (flow, mut far) = lab.connect(1);
        far.write_all(b"greeting").unwrap();
        assert_eq!(lab.seen(), None);
        assert!(lab.driver.sockets.get(flow).is_none());
        let offer = lab.relay.now().offers.pop().unwrap();
        assert_eq!((offer.flow, offer.child, offer.destination), (flow, Lab::child(1), Lab::REMOTE));
        assert!(lab.driver.relay_joined(flow));
        assert_eq!(lab.seen(), None);
        let mut bytes = [0; 16];
        assert_eq!(read(&offer.stream, &mut bytes), Ok(8), "nobody else has read");
        drop(offer);
        let error = far.read(&mut bytes).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "it was the only descriptor");
        lab.driver.relay_ended(flow, RelayEnd { to_host: 0, from_host: 8 });
        assert_eq!(lab.driver.stats().relay.bytes_to_child, 8);
        assert_eq!(lab.driver.flows().count(), 0);
    }

    #[test]
    fn a_socket_that_is_given_back_is_served_by_frames() {
        for at_once in [true, false] {
            let mut lab = lab();
            lab.relay.now().refuses = at_once;
            let (flow, mut far) = lab.connect(1);
            far.write_all(b"greeting").unwrap();
            if !at_once {
                assert_eq!(lab.seen(), None);
                let offer = lab.relay.now().offers.pop().unwrap();
                assert!(lab.driver.relay_refused(flow, offer.stream));
            }
            lab.establish(1);
            assert_eq!(lab.seen().map(|segment| segment.payload), Some(b"greeting".to_vec()));
            assert_eq!(lab.driver.stats().relay.refused, 1);
        }
    }

    #[test]
    fn a_child_that_has_given_up_gets_nothing_any_more() {
        let mut lab = lab();
        let (flow, _far) = lab.connect(1);
        let (other, mut other_far) = lab.connect(2);
        for port in [1, 2] {
            lab.send(&Segment { sequence: 1001, ..Segment::new(Lab::child(port), Lab::REMOTE, Tcp::RST) });
        }
        assert_eq!(lab.relay.now().withdrawn, [flow, other]);
        assert!(!lab.driver.relay_joined(flow));
        assert_eq!(lab.relay.now().withdrawn, [flow, other, flow], "told again");
        let offer = lab.relay.now().offers.pop().unwrap();
        assert!(!lab.driver.relay_refused(other, offer.stream));
        let error = other_far.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(lab.seen(), None);
    }

    #[test]
    fn while_frames_are_looked_at_flows_stay_frames() {
        let mut lab = lab();
        let limit = CaptureLimit { frames: Some(3), bytes: None };
        lab.driver.start_capture(Box::new(io::sink()), limit).unwrap();
        lab.settle();
        let _far = lab.connect(1);
        lab.establish(1);
        assert_eq!(lab.relay.now().offers.len(), 0);
        // The capture ends by itself.
        lab.send(&Segment::new(Lab::child(3), Lab::REMOTE, Tcp::ACK));
        lab.settle();
        let _far = lab.connect(2);
        assert_eq!(lab.relay.now().offers.len(), 1);
        lab.driver.set_relay(None);
        let _far = lab.connect(4);
        assert_eq!(lab.relay.now().offers.len(), 1);
    }

    #[test]
    fn an_offer_that_is_withdrawn_before_it_was_made_is_both() {
        let mut lab = lab();
        let (flow, _far) = lab.connect(1);
        // As when the child's RST is read in the batch that the offer was decided in.
        let offer = lab.relay.now().offers.pop().unwrap();
        lab.driver.sockets.keep_stream(flow, offer.stream).unwrap();
        let mut reset =
            Segment { sequence: 1001, ..Segment::new(Lab::child(1), Lab::REMOTE, Tcp::RST) }.frame();
        let now = lab.driver.clock.now();
        let frame = Frame { bytes: &mut reset, offload: Offload::default(), slot: 0 };
        lab.driver.stack.handle_frame(now, frame).unwrap();
        lab.driver.offer(flow, Lab::child(1), Lab::REMOTE);
        lab.driver.drain(now);
        let taken = lab.relay.now();
        assert_eq!((taken.offers.len(), taken.withdrawn.as_slice()), (1, &[flow][..]));
    }
}
