//! A scripted child and a scripted host around a [`Stack`], in virtual time: tests of whole conversations without
//! a kernel (feature `testing`).
//!
//! # Theory of operation
//! [`ChildStub`] ⇄ [`Link`] ⇄ [`Stack`] ⇄ [`HostStub`]. [`Harness::step`] moves everything that can move at `now`,
//! in the driver's order; [`Harness::drive`] repeats it, and lets time jump to the next event, until nothing is
//! going to happen soon. Every frame to the child is checked ([`frames::check`]). Nothing depends on a clock: a
//! run is repeated by its seeds.

pub mod child;
pub mod frames;
pub mod host;
pub mod link;
pub mod model;

use std::net::{IpAddr, SocketAddr};

use self::child::{ChildMode, ChildStub};
use self::frames::Seen;
use self::host::HostStub;
use self::link::{InFlight, Link, LinkConfig};
use crate::action::DatagramError;
use crate::config::{Config, ConfigBuilder, Ipv6Mode};
use crate::error::{DropReason, ForwardError};
use crate::flow::FlowId;
use crate::forward::{ForwardId, UdpForward};
use crate::frame::{Frame, LinkCapabilities, Offload};
use crate::offload::IpVersion;
use crate::stack::{FRAME_BUFFER, Stack};
use crate::time::{Duration, Instant};

/// Frames handed to the stack per step, as the driver reads them.
const BATCH: usize = 64;
/// Steps that [`Harness::drive`] takes before it gives up.
const MANY_STEPS: usize = 200_000;

/// Every offload that a link can have.
pub const ALL_OFFLOADS: LinkCapabilities =
    LinkCapabilities { checksum: true, tso4: true, tso6: true, uso: true, tunnel: true };
/// None.
pub const NO_OFFLOADS: LinkCapabilities =
    LinkCapabilities { checksum: false, tso4: false, tso6: false, uso: false, tunnel: false };

/// A stack with a child and a host.
#[derive(Debug)]
pub struct Harness {
    /// The stack under test.
    pub stack: Stack,
    /// The child.
    pub child: ChildStub,
    /// The host.
    pub host: HostStub,
    /// The wire between child and stack.
    pub link: Link,
    /// Virtual time.
    pub now: Instant,
    slots: Vec<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Default for Harness {
    fn default() -> Self {
        Harness::new(config(), ALL_OFFLOADS)
    }
}

/// The configuration that most tests begin with: defaults, IPv6 on, a fixed seed.
pub fn config() -> ConfigBuilder {
    Config::builder().ipv6_mode(Ipv6Mode::On).seed(0x7365_6564)
}

impl Harness {
    /// A harness over a perfect link.
    ///
    /// # Panics
    /// Where the configuration is not valid.
    pub fn new(config: ConfigBuilder, capabilities: LinkCapabilities) -> Self {
        let config = config.build().expect("a valid configuration");
        let now = Instant::from_secs(1000);
        let child = ChildStub::new(&config, capabilities, now);
        let mut harness = Harness {
            stack: Stack::new(config, capabilities, now),
            child,
            host: HostStub::default(),
            link: Link::new(LinkConfig::default()),
            now,
            slots: vec![Vec::new()],
            buffer: vec![0; FRAME_BUFFER],
        };
        for (version, ipv6) in [(IpVersion::V4, false), (IpVersion::V6, true)] {
            if let Some(flow) = harness.stack.overlay_flow(version) {
                harness.host.bound(flow, ipv6);
            }
        }
        // The first router advertisements are over before a test begins.
        harness.drive();
        harness.child.received.clear();
        harness
    }

    /// A harness whose child the test plays by frames.
    ///
    /// # Panics
    /// Where the configuration is not valid.
    pub fn scripted(config: ConfigBuilder, capabilities: LinkCapabilities) -> Self {
        let mut harness = Harness::new(config, capabilities);
        harness.child.mode = ChildMode::Scripted;
        harness
    }

    /// Hands a frame of the child to the stack past the link, and settles.
    ///
    /// # Errors
    /// Why the stack dropped it.
    pub fn inject(&mut self, frame: &[u8]) -> Result<(), DropReason> {
        self.inject_with(frame, Offload::default())
    }

    /// Like [`Harness::inject`], with metadata.
    ///
    /// # Errors
    /// Why the stack dropped it.
    pub fn inject_with(&mut self, frame: &[u8], offload: Offload) -> Result<(), DropReason> {
        let result = self.handle_frame(0, InFlight { bytes: frame.to_vec(), offload });
        // Actions may refer to the buffer that the next frame comes in.
        self.drain();
        self.settle();
        result
    }

    /// A client of the host that appears as `source` connects to `child`.
    ///
    /// # Errors
    /// Why the stack does not take it.
    pub fn open_to_child(&mut self, source: SocketAddr, child: SocketAddr) -> Result<FlowId, ForwardError> {
        let flow = self.stack.open_to_child(self.now, source, child)?;
        self.host.accepted(flow);
        Ok(flow)
    }

    /// A UDP port is published.
    ///
    /// # Errors
    /// Why the stack does not take it.
    pub fn publish_udp(&mut self, forward: UdpForward) -> Result<ForwardId, ForwardError> {
        let id = self.stack.add_udp_forward(forward)?;
        self.host.published(id, forward.child.is_ipv6());
        Ok(id)
    }

    /// A datagram of `client` to the address `local` of the host arrives at the socket of a published port.
    ///
    /// # Errors
    /// Why the stack dropped it.
    pub fn client_datagram(
        &mut self,
        forward: ForwardId,
        client: SocketAddr,
        local: Option<IpAddr>,
        payload: &[u8],
    ) -> Result<FlowId, DropReason> {
        let session = self.stack.session(self.now, forward, client, local)?;
        self.datagram(session.flow, client, payload, None)?;
        Ok(session.flow)
    }

    /// A datagram arrives at the overlay's socket, and everything settles.
    ///
    /// # Errors
    /// Why the stack dropped it.
    pub fn overlay_datagram(&mut self, from: SocketAddr, payload: &[u8]) -> Result<(), DropReason> {
        let session = self.stack.overlay_session(self.now, from)?;
        self.datagram(session.flow, from, payload, None)
    }

    /// A datagram arrives at the socket of `flow`, and everything settles.
    ///
    /// # Errors
    /// Why the stack dropped it.
    pub fn datagram(
        &mut self,
        flow: FlowId,
        from: SocketAddr,
        payload: &[u8],
        gso: Option<u16>,
    ) -> Result<(), DropReason> {
        let frame = self.host.datagram(self.now, &mut self.stack, flow, from, payload, gso)?;
        if let Some((bytes, offload)) = frame {
            self.send_to_child(bytes, offload);
        }
        self.settle();
        Ok(())
    }

    /// An ICMP error arrives at the socket of `flow`, and everything settles.
    pub fn datagram_error(&mut self, flow: FlowId, remote: SocketAddr, error: DatagramError, quoted: &[u8]) {
        self.host.datagram_error(self.now, &mut self.stack, flow, remote, error, quoted);
        self.settle();
    }

    /// Moves everything that can move without time passing.
    pub fn settle(&mut self) {
        let mut steps = 0;
        while self.step() {
            steps += 1;
            assert!(steps < MANY_STEPS, "never settled: {self:?}");
        }
    }

    /// The frames that the scripted child got since the last call, read.
    #[track_caller]
    pub fn seen(&mut self) -> Vec<Seen> {
        self.settle();
        self.child.take_seen()
    }

    /// The only frame that the scripted child got since the last call.
    ///
    /// # Panics
    /// Where it is not one.
    #[track_caller]
    pub fn seen_one(&mut self) -> Seen {
        let mut seen = self.seen();
        assert_eq!(seen.len(), 1, "one frame expected: {seen:?}");
        seen.remove(0)
    }

    /// One turn at `now`; says whether anything moved.
    pub fn step(&mut self) -> bool {
        let mut moved = self.child.poll(self.now);
        while let Some(frame) = self.child.poll_frame() {
            moved = true;
            self.link.send_from_child(self.now, frame);
        }
        moved |= self.host.deliver_events(self.now, &mut self.stack);
        if self.stack.poll_timeout().is_some_and(|at| at <= self.now) {
            moved = true;
            self.stack.handle_timeout(self.now);
        }
        let mut slot = 0;
        for _ in 0..BATCH {
            let Some(frame) = self.link.receive_from_child(self.now) else { break };
            moved = true;
            // The reason is counted.
            let _ = self.handle_frame(slot, frame);
            slot += usize::from(self.stack.refers_to_slot(slot as u32));
        }
        moved |= self.drain();
        while let Some(frame) = self.link.receive_to_child(self.now) {
            moved = true;
            self.child.handle_frame(frame);
        }
        moved
    }

    /// Lets everything happen that happens without a pause of [`Harness::PATIENCE`].
    pub fn drive(&mut self) {
        self.drive_bounded(MANY_STEPS);
    }

    /// Like [`Harness::drive`].
    ///
    /// # Panics
    /// After `steps` steps that did not come to rest.
    pub fn drive_bounded(&mut self, steps: usize) {
        for _ in 0..steps {
            if self.step() {
                continue;
            }
            match self.next_event() {
                Some(at) if at <= self.now + Self::PATIENCE => self.jump(at),
                _ => return,
            }
        }
        panic!("{steps} steps and no rest: {self:#?}");
    }

    /// Lets everything happen until `done` says so; time may pass as far as it must.
    ///
    /// # Panics
    /// Where it never does.
    #[track_caller]
    pub fn drive_until(&mut self, mut done: impl FnMut(&mut Harness) -> bool) {
        for _ in 0..MANY_STEPS {
            if done(self) {
                return;
            }
            if !self.step() {
                let at = self.next_event().unwrap_or_else(|| panic!("nothing will ever happen: {self:#?}"));
                self.jump(at);
            }
        }
        panic!("{MANY_STEPS} steps and not done: {self:#?}");
    }

    /// Lets `duration` pass, with everything that happens in it.
    pub fn drive_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        for _ in 0..MANY_STEPS {
            if self.step() {
                continue;
            }
            match self.next_event() {
                Some(at) if at <= end => self.jump(at),
                _ => {
                    self.now = end;
                    return;
                }
            }
        }
        panic!("{MANY_STEPS} steps within {duration}: {self:#?}");
    }

    /// A pause after which [`Harness::drive`] takes everything for done: longer than a delayed ACK, shorter than a
    /// retransmission.
    pub const PATIENCE: Duration = Duration::from_millis(200);

    fn next_event(&mut self) -> Option<Instant> {
        let child = self.child.poll_timeout(self.now);
        [self.link.next_arrival(), child, self.stack.poll_timeout()].into_iter().flatten().min()
    }

    /// Time jumps; an event that is due already is given a moment, as epoll's milliseconds would.
    fn jump(&mut self, at: Instant) {
        self.now = at.max(self.now + Duration::from_micros(1));
    }

    fn handle_frame(&mut self, slot: usize, frame: InFlight) -> Result<(), DropReason> {
        if slot == self.slots.len() {
            self.slots.push(Vec::new());
        }
        let bytes = &mut self.slots[slot];
        *bytes = frame.bytes;
        self.stack.handle_frame(self.now, Frame { bytes, offload: frame.offload, slot: slot as u32 })
    }

    fn drain(&mut self) -> bool {
        let mut any = false;
        loop {
            let mut idle = true;
            while let Some(action) = self.stack.poll_action() {
                idle = false;
                self.host.perform(self.now, &mut self.stack, action, &self.slots);
            }
            self.stack.release_slots();
            while let Some(frame) = self.stack.poll_frame(self.now, &mut self.buffer) {
                idle = false;
                let bytes = self.buffer[..frame.len].to_vec();
                self.send_to_child(bytes, frame.offload);
            }
            if idle {
                return any;
            }
            any = true;
        }
    }

    fn send_to_child(&mut self, bytes: Vec<u8>, offload: Offload) {
        frames::check(&bytes, offload, self.stack.config().mtu());
        #[cfg(test)]
        judge(&bytes, offload);
        self.link.send_to_child(self.now, InFlight { bytes, offload });
    }
}

/// Somebody else's parser reads every frame to the child, and computes its checksums.
#[cfg(test)]
fn judge(frame: &[u8], offload: Offload) {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    let packet = SlicedPacket::from_ethernet(frame).expect("etherparse reads it");
    if offload.checksum != crate::frame::Checksum::Complete {
        return;
    }
    let (Some(net), Some(transport)) = (&packet.net, &packet.transport) else { return };
    let ok = match (net, transport) {
        (NetSlice::Ipv4(ip), TransportSlice::Tcp(tcp)) => {
            let (header, ip) = (tcp.to_header(), ip.header().to_header());
            header.calc_checksum_ipv4(&ip, tcp.payload()).expect("a length") == header.checksum
        }
        (NetSlice::Ipv6(ip), TransportSlice::Tcp(tcp)) => {
            let (header, ip) = (tcp.to_header(), ip.header().to_header());
            header.calc_checksum_ipv6(&ip, tcp.payload()).expect("a length") == header.checksum
        }
        (NetSlice::Ipv4(ip), TransportSlice::Udp(udp)) => {
            let (header, ip) = (udp.to_header(), ip.header().to_header());
            header.calc_checksum_ipv4(&ip, udp.payload()).expect("a length") == header.checksum
        }
        (NetSlice::Ipv6(ip), TransportSlice::Udp(udp)) => {
            let (header, ip) = (udp.to_header(), ip.header().to_header());
            header.calc_checksum_ipv6(&ip, udp.payload()).expect("a length") == header.checksum
        }
        _ => true,
    };
    assert!(ok, "etherparse computes another checksum: {frame:02x?}");
}
