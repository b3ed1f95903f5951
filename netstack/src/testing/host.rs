//! The host: sockets that exist in memory only, performed and observed exactly as the driver does it.
//!
//! Events are edge-triggered: a socket says "readable" when bytes come, not for as long as there are some; short
//! reads and writes say so.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use crate::action::{Action, ConnectError, DatagramError, DatagramKind, Hop, HostEvent, OpenError, Payload};
use crate::flow::FlowId;
use crate::forward::ForwardId;
use crate::frame::{Gso, Offload};
use crate::packet::MAX_HEADERS;
use crate::stack::{Datagram, HostIo, Stack, ToChild};
use crate::time::Instant;

/// What becomes of connections to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectPlan {
    /// They stand at once.
    Accept,
    /// They fail at once.
    Fail(ConnectError),
    /// The test decides, by [`HostStub::finish_connect`].
    Hold,
}

/// What the relay answers to offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayPlan {
    /// It joins at once.
    Join,
    /// It gives the socket back at once.
    Refuse,
    /// The test decides, by [`HostStub::join`] and [`HostStub::refuse`].
    Hold,
}

/// An offer to the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offered {
    /// The flow.
    pub flow: FlowId,
    /// The child's end.
    pub child: SocketAddr,
    /// The other end as the child named it.
    pub destination: SocketAddr,
}

/// A TCP socket of the host, seen from the far end.
#[derive(Debug, Default)]
pub struct HostTcp {
    /// Where it connected to.
    pub remote: Option<SocketAddr>,
    /// Whether the connection stands.
    pub connected: bool,
    /// Everything the child has sent.
    pub received: Vec<u8>,
    /// Further bytes that the far end takes before it stalls.
    pub appetite: usize,
    /// Most bytes that one write takes; shorter ones say "all taken".
    pub largest_write: usize,
    /// Whether everything received is sent back.
    pub echo: bool,
    /// Whether the child's end of file was passed on.
    pub shutdown: bool,
    /// Set when the stack has closed the socket: whether by RST.
    pub closed: Option<bool>,
    /// Whether the relay has the socket.
    pub away: bool,
    /// Most bytes that were ever offered to one read.
    pub largest_room: usize,
    to_send: VecDeque<u8>,
    finished: bool,
    reset: bool,
}

/// A datagram socket of the host.
#[derive(Debug)]
pub struct HostDatagram {
    /// Kind.
    pub kind: DatagramKind,
    /// Family.
    pub ipv6: bool,
    /// What was sent, oldest first.
    pub sent: Vec<SentDatagram>,
    /// Whether the stack has closed it.
    pub closed: bool,
}

/// A datagram that the child sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentDatagram {
    /// Destination.
    pub remote: SocketAddr,
    /// Payload or ICMP message.
    pub payload: Vec<u8>,
    /// Size of the datagrams in a super-datagram.
    pub gso: Gso,
    /// TTL and fragmentation.
    pub hop: Hop,
    /// Source address, where it is not the kernel's to choose.
    pub local: Option<IpAddr>,
}

/// The host.
#[derive(Debug)]
pub struct HostStub {
    /// TCP sockets, the closed ones too.
    pub tcp: BTreeMap<FlowId, HostTcp>,
    /// Datagram sockets, the closed ones too.
    pub datagram: BTreeMap<FlowId, HostDatagram>,
    /// What becomes of connections, by destination; others follow `default_plan`.
    pub plans: BTreeMap<SocketAddr, ConnectPlan>,
    /// What becomes of other connections. Default: [`ConnectPlan::Accept`].
    pub default_plan: ConnectPlan,
    /// Whether new sockets send everything back.
    pub echo: bool,
    /// Bytes that the far end of a new socket takes before it stalls. Default: all.
    pub appetite: usize,
    /// Most bytes that one write takes. Default: all.
    pub largest_write: usize,
    /// Why datagram sockets cannot be opened, if so.
    pub open_error: Option<OpenError>,
    /// What the relay answers to offers, by destination; to others, `relay_plan`.
    pub relay_plans: BTreeMap<SocketAddr, RelayPlan>,
    /// What the relay answers to other offers. Default: [`RelayPlan::Hold`].
    pub relay_plan: RelayPlan,
    /// What it was offered.
    pub offers: Vec<Offered>,
    /// What was withdrawn from it.
    pub withdrawn: Vec<FlowId>,
    /// Of which it was told that they go astray.
    pub recalled: Vec<FlowId>,
    /// Every action performed, where `record` is set.
    pub actions: Vec<Action>,
    /// Whether actions are recorded. Default: yes.
    pub record: bool,
    events: VecDeque<(FlowId, HostEvent)>,
    /// The latest flow that was opened.
    last: Option<FlowId>,
}

impl Default for HostStub {
    fn default() -> Self {
        HostStub {
            tcp: BTreeMap::new(),
            datagram: BTreeMap::new(),
            plans: BTreeMap::new(),
            default_plan: ConnectPlan::Accept,
            echo: false,
            appetite: usize::MAX,
            largest_write: usize::MAX,
            open_error: None,
            relay_plans: BTreeMap::new(),
            relay_plan: RelayPlan::Hold,
            offers: Vec::new(),
            withdrawn: Vec::new(),
            recalled: Vec::new(),
            actions: Vec::new(),
            record: true,
            events: VecDeque::new(),
            last: None,
        }
    }
}

impl HostStub {
    /// The flow whose socket was opened last.
    ///
    /// # Panics
    /// Where there was none.
    #[track_caller]
    pub fn last_flow(&self) -> FlowId {
        self.last.expect("no socket was opened")
    }

    /// The TCP socket of a flow.
    ///
    /// # Panics
    /// Where it has none.
    #[track_caller]
    pub fn tcp(&mut self, flow: FlowId) -> &mut HostTcp {
        self.tcp.get_mut(&flow).expect("a TCP socket")
    }

    /// The host has accepted a connection, which the stack took as `flow`: its far end is a client.
    pub fn accepted(&mut self, flow: FlowId) {
        self.last = Some(flow);
        let socket = HostTcp {
            connected: true,
            appetite: self.appetite,
            largest_write: self.largest_write,
            echo: self.echo,
            ..HostTcp::default()
        };
        assert!(self.tcp.insert(flow, socket).is_none(), "accepted twice");
    }

    /// Ends a connect that was held.
    #[track_caller]
    pub fn finish_connect(&mut self, flow: FlowId, result: Result<(), ConnectError>) {
        let socket = self.tcp(flow);
        socket.connected = result.is_ok();
        let event = match result {
            Ok(()) => HostEvent::Connected,
            Err(error) => HostEvent::ConnectFailed(error),
        };
        self.events.push_back((flow, event));
    }

    /// The far end sends bytes.
    #[track_caller]
    pub fn send(&mut self, flow: FlowId, bytes: &[u8]) {
        self.tcp(flow).to_send.extend(bytes);
        self.events.push_back((flow, HostEvent::Readable));
    }

    /// The far end finishes sending.
    #[track_caller]
    pub fn finish(&mut self, flow: FlowId) {
        self.tcp(flow).finished = true;
        self.events.push_back((flow, HostEvent::Readable));
    }

    /// The far end resets the connection.
    #[track_caller]
    pub fn reset(&mut self, flow: FlowId) {
        self.tcp(flow).reset = true;
        self.events.push_back((flow, HostEvent::Reset));
    }

    /// The far end takes `bytes` more before it stalls again.
    #[track_caller]
    pub fn feed_appetite(&mut self, flow: FlowId, bytes: usize) {
        let socket = self.tcp(flow);
        socket.appetite = socket.appetite.saturating_add(bytes);
        self.events.push_back((flow, HostEvent::Writable));
    }

    /// The relay joins a flow; says whether that was in time.
    pub fn join(&mut self, now: Instant, stack: &mut Stack, flow: FlowId) -> bool {
        stack.relay_joined(now, flow)
    }

    /// The relay gives a flow's socket back; says whether that was in time.
    #[track_caller]
    pub fn refuse(&mut self, now: Instant, stack: &mut Stack, flow: FlowId) -> bool {
        if !stack.relay_refused(now, flow) {
            return false;
        }
        let socket = self.tcp(flow);
        assert!(std::mem::take(&mut socket.away), "it was not given away");
        // Registered anew, it tells everything again.
        let readable = !socket.to_send.is_empty() || socket.finished;
        let event = if socket.reset { HostEvent::Reset } else { HostEvent::Writable };
        self.events.push_back((flow, event));
        self.events.extend(readable.then_some((flow, HostEvent::Readable)));
        true
    }

    /// Reports any event, also one that makes no sense.
    pub fn report(&mut self, flow: FlowId, event: HostEvent) {
        self.events.push_back((flow, event));
    }

    /// Bytes that the far end has sent and the stack has not read.
    #[track_caller]
    pub fn unread(&mut self, flow: FlowId) -> usize {
        self.tcp(flow).to_send.len()
    }

    /// Datagrams sent by all sockets that are open, oldest socket first; they are taken.
    pub fn take_sent(&mut self) -> Vec<SentDatagram> {
        self.datagram.values_mut().flat_map(|socket| std::mem::take(&mut socket.sent)).collect()
    }

    /// Tells the stack what happened; says whether anything did.
    pub fn deliver_events(&mut self, now: Instant, stack: &mut Stack) -> bool {
        let mut any = false;
        while let Some((flow, event)) = self.events.pop_front() {
            // Nobody watches a socket that is away.
            if self.tcp.get(&flow).is_some_and(|socket| socket.away) {
                continue;
            }
            any = true;
            stack.handle_host(now, flow, event);
        }
        any
    }

    /// Performs one action. `slots` are the frame buffers that payloads may name.
    pub fn perform(&mut self, now: Instant, stack: &mut Stack, action: Action, slots: &[Vec<u8>]) {
        if self.record {
            self.actions.push(action.clone());
        }
        match action {
            Action::Connect { flow, remote } => self.connect(flow, remote),
            Action::HostWrite { flow } => self.write(now, stack, flow),
            Action::HostRead { flow } => self.read(now, stack, flow),
            Action::OfferRelay { flow, child, destination } => {
                let socket = self.tcp(flow);
                assert!(
                    socket.connected && !socket.away && socket.closed.is_none(),
                    "offered once, connected"
                );
                assert!(socket.received.is_empty(), "nothing was written");
                socket.away = true;
                self.offers.push(Offered { flow, child, destination });
                match self.relay_plans.get(&destination).copied().unwrap_or(self.relay_plan) {
                    RelayPlan::Join => assert!(self.join(now, stack, flow), "at once is in time"),
                    RelayPlan::Refuse => assert!(self.refuse(now, stack, flow), "at once is in time"),
                    RelayPlan::Hold => {}
                }
            }
            Action::WithdrawRelay { flow } => {
                assert!(self.tcp(flow).away, "only what was offered is withdrawn");
                self.withdrawn.push(flow);
            }
            Action::RecallRelay { flow } => self.recalled.push(flow),
            Action::ShutdownWrite { flow } => {
                let Some(socket) = self.tcp.get_mut(&flow) else { return };
                assert!(!socket.away, "shut down while away");
                assert!(!socket.shutdown, "shut down twice");
                socket.shutdown = true;
                if socket.echo {
                    self.finish(flow);
                }
            }
            Action::Close { flow, abort } => {
                if let Some(socket) = self.tcp.get_mut(&flow) {
                    assert_eq!(socket.closed, None, "closed twice");
                    assert!(!socket.away, "closed while away");
                    socket.closed = Some(abort);
                }
                if let Some(socket) = self.datagram.get_mut(&flow) {
                    assert!(!socket.closed, "closed twice");
                    socket.closed = true;
                }
                self.events.retain(|&(other, _)| other != flow);
            }
            Action::OpenDatagram { flow, kind, ipv6 } => {
                self.last = Some(flow);
                if let Some(error) = self.open_error {
                    return self.events.push_back((flow, HostEvent::OpenFailed(error)));
                }
                let socket = HostDatagram { kind, ipv6, sent: Vec::new(), closed: false };
                assert!(self.datagram.insert(flow, socket).is_none(), "opened twice");
            }
            Action::SendDatagram { flow, remote, payload, gso, hop, local } => {
                let payload = match payload {
                    Payload::InFrame { slot, range } => {
                        slots[slot as usize][range.start as usize..range.end as usize].to_vec()
                    }
                    Payload::Owned(bytes) => bytes,
                };
                // A socket that could not be opened takes nothing.
                if let Some(socket) = self.datagram.get_mut(&flow) {
                    assert!(!socket.closed, "sent on a closed socket");
                    socket.sent.push(SentDatagram { remote, payload, gso, hop, local });
                }
            }
        }
    }

    /// The socket of a published UDP port, which the stack took as `forward`.
    pub fn published(&mut self, forward: ForwardId, ipv6: bool) {
        self.bound(forward.flow(), ipv6);
    }

    /// A bound UDP socket that was there before the flow sent anything.
    pub fn bound(&mut self, flow: FlowId, ipv6: bool) {
        self.last = Some(flow);
        let socket = HostDatagram { kind: DatagramKind::Udp, ipv6, sent: Vec::new(), closed: false };
        assert!(self.datagram.insert(flow, socket).is_none(), "bound twice");
    }

    /// A datagram from `from` arrives at the flow's socket; says what the stack made of it, and the frame where it
    /// is one.
    pub fn datagram(
        &mut self,
        now: Instant,
        stack: &mut Stack,
        flow: FlowId,
        from: SocketAddr,
        payload: &[u8],
        gso: Option<u16>,
    ) -> Result<Option<(Vec<u8>, Offload)>, crate::error::DropReason> {
        let mut headers = [0; MAX_HEADERS];
        match stack.handle_datagram(
            now,
            flow,
            Datagram { from, payload, total: payload.len(), gso: gso.map_or(Gso::None, Gso::Udp) },
            &mut headers,
        )? {
            ToChild::Queued => Ok(None),
            ToChild::Frame { start, offload } => {
                let mut frame = headers[start..].to_vec();
                frame.extend_from_slice(payload);
                stack.count_frame_to_child(frame.len());
                Ok(Some((frame, offload)))
            }
        }
    }

    /// An ICMP error about a datagram to `remote` arrives.
    pub fn datagram_error(
        &mut self,
        now: Instant,
        stack: &mut Stack,
        flow: FlowId,
        remote: SocketAddr,
        error: DatagramError,
        quoted: &[u8],
    ) {
        stack.handle_datagram_error(now, flow, remote, error, quoted);
    }

    fn connect(&mut self, flow: FlowId, remote: SocketAddr) {
        self.last = Some(flow);
        let socket = HostTcp {
            remote: Some(remote),
            appetite: self.appetite,
            largest_write: self.largest_write,
            echo: self.echo,
            ..HostTcp::default()
        };
        assert!(self.tcp.insert(flow, socket).is_none(), "connected twice");
        match self.plans.get(&remote).copied().unwrap_or(self.default_plan) {
            ConnectPlan::Accept => self.finish_connect(flow, Ok(())),
            ConnectPlan::Fail(error) => self.finish_connect(flow, Err(error)),
            ConnectPlan::Hold => {}
        }
    }

    fn write(&mut self, now: Instant, stack: &mut Stack, flow: FlowId) {
        let Some(socket) = self.tcp.get_mut(&flow) else { return };
        let mut echoed = false;
        stack.with_host_tx(now, flow, |bytes| {
            if socket.reset {
                return HostIo::Failed;
            }
            assert!(!bytes.is_empty(), "nothing to write");
            assert!(!socket.away, "written to while away");
            let n = bytes.len().min(socket.appetite).min(socket.largest_write);
            socket.appetite -= n;
            socket.received.extend_from_slice(&bytes[..n]);
            if socket.echo {
                socket.to_send.extend(&bytes[..n]);
                echoed |= n > 0;
            }
            match n {
                0 => HostIo::WouldBlock,
                n if n < bytes.len() => HostIo::MovedAll(n),
                n => HostIo::Moved(n),
            }
        });
        // A short write says that a new event will come; where only the single write was limited, it comes now.
        if socket.appetite > 0 && socket.largest_write < usize::MAX {
            self.events.push_back((flow, HostEvent::Writable));
        }
        if echoed {
            self.events.push_back((flow, HostEvent::Readable));
        }
    }

    fn read(&mut self, now: Instant, stack: &mut Stack, flow: FlowId) {
        let Some(socket) = self.tcp.get_mut(&flow) else { return };
        stack.with_host_rx(now, flow, |room| {
            if socket.reset {
                return HostIo::Failed;
            }
            assert!(!room.is_empty(), "no room to read into");
            assert!(!socket.away, "read from while away");
            socket.largest_room = socket.largest_room.max(room.len());
            let n = room.len().min(socket.to_send.len());
            for (to, from) in room.iter_mut().zip(socket.to_send.drain(..n)) {
                *to = from;
            }
            match n {
                0 if socket.finished => HostIo::Eof,
                0 => HostIo::WouldBlock,
                // After a FIN a short read is not the end of what there is.
                n if n < room.len() && !socket.finished => HostIo::MovedAll(n),
                n => HostIo::Moved(n),
            }
        });
    }
}
