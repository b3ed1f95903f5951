//! A stack between a scripted child and a host that takes and gives without a limit: what is left is the stack's own work.

use netstack::{
    Stack,
    action::{Action, HostEvent},
    flow::FlowId,
    frame::{Checksum, Frame, LinkCapabilities, Offload},
    offload::checksum,
    packet::{Ethernet, IpPacket, MAX_HEADERS, Tcp},
    stack::{Datagram, FRAME_BUFFER, HostIo},
    testing::{
        config,
        frames::{CHILD, L4_V4, Segment, WORLD},
    },
    time::{Duration, Instant},
};
use std::net::SocketAddr;

/// See the module.
#[derive(Debug)]
pub(super) struct Player {
    stack: Stack,
    now: Instant,
    buffer: Vec<u8>,
    /// Bytes that the host has for the child.
    pub(super) give: usize,
    /// The host ends its stream when it has nothing to give.
    finished: bool,
    /// The TCP socket that was opened last.
    opened: Option<FlowId>,
    /// The datagram socket that was opened last.
    pub(super) socket: Option<FlowId>,
    /// Payload bytes that reached the host.
    pub(super) to_host: usize,
    /// TCP payload bytes that reached the child since it last acknowledged.
    to_child: u32,
    /// Of the latest TCP frame to the child.
    sequence: u32,
}

/// The child's end of a TCP connection.
#[derive(Debug)]
pub(super) struct Peer {
    flow: FlowId,
    child: SocketAddr,
    remote: SocketAddr,
    sequence: u32,
    acknowledgement: u32,
    ack: Vec<u8>,
}

impl Player {
    pub(super) fn new(link: LinkCapabilities) -> Self {
        let now = Instant::from_secs(1000);
        let stack = Stack::new(config().build().expect("a configuration"), link, now);
        let mut player = Self {
            stack,
            now,
            buffer: vec![0; FRAME_BUFFER],
            give: 0,
            finished: false,
            opened: None,
            socket: None,
            to_host: 0,
            to_child: 0,
            sequence: 0,
        };
        player.settle();
        player
    }

    /// Opens connection `n` of the child.
    pub(super) fn open(&mut self, n: u16) -> Peer {
        let (child, remote) = (SocketAddr::new(CHILD.into(), 10_000 + n), SocketAddr::new(WORLD.into(), 80));
        // A window of 8 MiB: nobody waits for it.
        let mut syn = Segment::syn(child, remote, 1460);
        syn.options.extend([1, 3, 3, 7]);
        self.give(&mut syn.frame(), Offload::default());
        self.settle();
        let flow = self.opened.take().expect("a connection");
        let acknowledgement = self.sequence.wrapping_add(1);
        let ack =
            Segment { sequence: 1001, acknowledgement, ..Segment::new(child, remote, Tcp::ACK) }.frame();
        let mut peer = Peer { flow, child, remote, sequence: 1001, acknowledgement, ack };
        self.acknowledge(&mut peer);
        peer
    }

    /// The child sends `frame` of `payload` bytes, which has to be made by [`Peer::data`], as the next of its connection.
    pub(super) fn send(&mut self, peer: &mut Peer, frame: &mut [u8], payload: usize, offload: Offload) {
        set(frame, 4, peer.sequence);
        set(frame, 8, peer.acknowledgement);
        peer.sequence = peer.sequence.wrapping_add(payload as u32);
        self.give(frame, offload);
    }

    /// The host sends `bytes`, the child acknowledges after every batch.
    pub(super) fn receive(&mut self, peer: &mut Peer, bytes: usize) {
        self.give = bytes;
        self.stack.handle_host(self.now, peer.flow, HostEvent::Readable);
        let mut left = bytes as u32;
        while left > 0 {
            self.settle();
            assert_ne!(self.to_child, 0, "{left} bytes never came");
            left -= self.to_child;
            self.acknowledge(peer);
        }
    }

    /// One byte to the host and back, all ACKs included.
    pub(super) fn echo(&mut self, peer: &mut Peer, frame: &mut [u8], offload: Offload) {
        self.send(peer, frame, 1, offload);
        self.settle();
        self.receive(peer, 1);
    }

    /// The child ends the connection, the host does so too.
    pub(super) fn close(&mut self, mut peer: Peer) {
        let mut fin = Segment {
            sequence: peer.sequence,
            acknowledgement: peer.acknowledgement,
            ..Segment::new(peer.child, peer.remote, Tcp::FIN | Tcp::ACK)
        }
        .frame();
        peer.sequence = peer.sequence.wrapping_add(1);
        self.finished = true;
        self.give(&mut fin, Offload::default());
        self.settle();
        self.finished = false;
        peer.acknowledgement = peer.acknowledgement.wrapping_add(1);
        self.acknowledge(&mut peer);
        assert_eq!(self.stack.flows().count(), 0, "the flow is over");
    }

    /// A frame of the child.
    pub(super) fn give(&mut self, frame: &mut [u8], offload: Offload) {
        self.now += Duration::from_micros(10);
        let frame = Frame { bytes: frame, offload, slot: 0 };
        self.stack.handle_frame(self.now, frame).expect("a frame that is taken");
    }

    /// A datagram of the host for the child.
    pub(super) fn datagram(&mut self, flow: FlowId, datagram: Datagram<'_>, headers: &mut [u8; MAX_HEADERS]) {
        self.now += Duration::from_micros(10);
        self.stack.handle_datagram(self.now, flow, datagram, headers).expect("a datagram that is taken");
    }

    /// Performs what the stack wants, in the driver's order, until it wants nothing.
    pub(super) fn settle(&mut self) {
        let mut idle = false;
        while !idle {
            idle = true;
            while let Some(action) = self.stack.poll_action() {
                idle = false;
                self.perform(action);
            }
            self.stack.release_slots();
            while let Some(out) = self.stack.poll_frame(self.now, &mut self.buffer) {
                idle = false;
                self.note(out.len);
            }
        }
        if self.stack.poll_timeout().is_some_and(|at| at <= self.now) {
            self.stack.handle_timeout(self.now);
        }
    }

    fn perform(&mut self, action: Action) {
        let Self { stack, now, give, finished, to_host, .. } = self;
        match action {
            Action::Connect { flow, .. } => {
                self.opened = Some(flow);
                stack.handle_host(*now, flow, HostEvent::Connected);
            }
            Action::HostWrite { flow } => stack.with_host_tx(*now, flow, |bytes| {
                *to_host += bytes.len();
                HostIo::Moved(bytes.len())
            }),
            Action::HostRead { flow } => stack.with_host_rx(*now, flow, |room| {
                let n = room.len().min(*give);
                *give -= n;
                match n {
                    0 if *finished => HostIo::Eof,
                    0 => HostIo::WouldBlock,
                    n if *give == 0 => HostIo::MovedAll(n),
                    n => HostIo::Moved(n),
                }
            }),
            Action::ShutdownWrite { flow } => stack.handle_host(*now, flow, HostEvent::Readable),
            Action::OpenDatagram { flow, .. } => self.socket = Some(flow),
            Action::SendDatagram { .. } => *to_host += 1,
            Action::Close { .. } => {}
            other => panic!("{other:?}"),
        }
    }

    fn acknowledge(&mut self, peer: &mut Peer) {
        peer.acknowledgement = peer.acknowledgement.wrapping_add(std::mem::take(&mut self.to_child));
        set(&mut peer.ack, 4, peer.sequence);
        set(&mut peer.ack, 8, peer.acknowledgement);
        let mut ack = std::mem::take(&mut peer.ack);
        self.give(&mut ack, Offload::default());
        self.settle();
        peer.ack = ack;
    }

    /// The child reads a frame, as far as it has to.
    fn note(&mut self, len: usize) {
        let frame = &self.buffer[..len];
        let Ok(ethernet) = Ethernet::parse(frame) else { return };
        let Ok(ip) = IpPacket::parse(frame, ethernet.ethertype) else { return };
        let Ok(tcp) = Tcp::parse(&frame[ip.transport.clone()]) else { return };
        self.sequence = tcp.sequence;
        self.to_child += (ip.transport.len() - tcp.header_len) as u32;
    }
}

impl Peer {
    /// A frame of `payload` bytes for [`Player::send`].
    pub(super) fn data(&self, payload: usize) -> Vec<u8> {
        Segment {
            sequence: self.sequence,
            acknowledgement: self.acknowledgement,
            payload: vec![7; payload],
            ..Segment::new(self.child, self.remote, Tcp::ACK)
        }
        .frame()
    }
}

/// What the child's kernel leaves to a link with offloads.
pub(super) const PARTIAL: Offload = Offload { checksum: Checksum::Partial, gso: netstack::frame::Gso::None };

/// Writes 32 bits of a TCP header and keeps the checksum right.
fn set(frame: &mut [u8], at: usize, value: u32) {
    let tcp = &mut frame[L4_V4..];
    let (old, new) = ([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]], value.to_be_bytes());
    let sum = checksum::update(u16::from_be_bytes([tcp[16], tcp[17]]), &old, &new);
    tcp[at..at + 4].copy_from_slice(&new);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
}
