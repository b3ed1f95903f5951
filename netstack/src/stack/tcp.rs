//! TCP as the stack sees it: flows from SYN to the last ACK. The theory stands in [`crate::tcp`].

use std::net::SocketAddr;

use super::{Destination, FlowKind, FlowState, Received, Refusal, Stack};
use crate::action::{Action, ConnectError, HostEvent};
use crate::dns::QueryOrigin;
use crate::error::DropReason;
use crate::flow::{FlowId, FlowKey, OpenedBy, Protocol};
use crate::frame::FrameOut;
use crate::icmp::IcmpErrorKind;
use crate::packet::{self, ETHERNET_LEN, Tcp, ethertype, protocol};
use crate::tcp::endpoint::{ACK_DELAY, ChildSide, Endpoint};
use crate::tcp::relay::{Relay, Step};
use crate::tcp::{DnsStream, Peer, Phase, TcpFlow};
use crate::time::{Duration, Instant};

/// Outcome of one attempt to move bytes between a flow and its host socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostIo {
    /// That many bytes were moved; there may be room, or bytes, for more.
    Moved(usize),
    /// That many bytes were moved and the socket has none, or no room, left: a new event will come.
    MovedAll(usize),
    /// Nothing can be moved now: a new event will come.
    WouldBlock,
    /// End of file (reading only).
    Eof,
    /// The socket failed or was reset.
    Failed,
}

impl HostIo {
    /// Bytes moved.
    #[cfg(feature = "driver")]
    pub(crate) fn bytes(self) -> usize {
        match self {
            HostIo::Moved(bytes) | HostIo::MovedAll(bytes) => bytes,
            HostIo::WouldBlock | HostIo::Eof | HostIo::Failed => 0,
        }
    }
}

/// Shortest time to a repeated look at a flow, against busy loops.
const MIN_WAIT: Duration = Duration::from_millis(1);

impl Stack {
    /// Lends bytes of the child to `write`, which writes them to the flow's host socket. Called for
    /// [`Action::HostWrite`]; `write` is called with one contiguous piece at a time until it stops.
    pub fn with_host_tx(&mut self, now: Instant, flow: FlowId, mut write: impl FnMut(&[u8]) -> HostIo) {
        self.now = now;
        let Some(tcp) = self.tcp_mut(flow) else { return self.with_dns_tx(flow, write) };
        tcp.last_active = now;
        tcp.touched = true;
        // At most twice: the ring has two contiguous pieces.
        while tcp.endpoint.recv_queue() > 0 {
            let outcome = tcp.endpoint.recv(|bytes| match write(bytes) {
                io @ (HostIo::Moved(n) | HostIo::MovedAll(n)) => (n, io),
                io => (0, io),
            });
            match outcome {
                Some(HostIo::Moved(n)) if n > 0 => tcp.bytes_from_child += n as u64,
                Some(HostIo::MovedAll(n)) => {
                    tcp.bytes_from_child += n as u64;
                    tcp.relay.handle_write_blocked();
                    break;
                }
                Some(HostIo::WouldBlock | HostIo::Moved(_)) => {
                    tcp.relay.handle_write_blocked();
                    break;
                }
                Some(HostIo::Failed | HostIo::Eof) => return self.reset_to_child(now, flow),
                None => break,
            }
        }
        self.queue_relay(flow);
        self.queue_egress(flow);
    }

    /// Lends room for the child's bytes to `read`, which fills it from the flow's host socket. Called for
    /// [`Action::HostRead`].
    pub fn with_host_rx(&mut self, now: Instant, flow: FlowId, read: impl FnOnce(&mut [u8]) -> HostIo) {
        self.now = now;
        let Some(tcp) = self.tcp_mut(flow) else { return self.with_dns_rx(now, flow, read) };
        tcp.last_active = now;
        tcp.touched = true;
        let queued = tcp.endpoint.send_queue();
        let room = tcp.window.room(queued);
        let outcome = tcp.endpoint.send(room, |room| match read(room) {
            io @ (HostIo::Moved(n) | HostIo::MovedAll(n)) => (n, io),
            io => (0, io),
        });
        let moved = match outcome {
            Some(HostIo::Moved(n)) => n,
            Some(HostIo::MovedAll(n)) => {
                tcp.relay.handle_read_blocked();
                n
            }
            Some(HostIo::WouldBlock) => {
                tcp.relay.handle_read_blocked();
                0
            }
            Some(HostIo::Eof) => {
                tcp.relay.handle_eof();
                0
            }
            Some(HostIo::Failed) => return self.reset_to_child(now, flow),
            None => 0,
        };
        if moved > 0 {
            tcp.window.handle_queued(moved, queued);
            tcp.bytes_to_child += moved as u64;
            self.stats.tcp.bytes_to_child += moved as u64;
            self.queue_egress(flow);
        }
        self.queue_relay(flow);
    }

    pub(super) fn tcp_from_child(&mut self, now: Instant, received: &Received<'_>) -> Result<(), DropReason> {
        let ip = &received.ip;
        let tcp = Tcp::parse(received.transport())?;
        if tcp.src == 0 || tcp.dst == 0 {
            return Err(DropReason::Malformed);
        }
        let key = FlowKey {
            protocol: Protocol::Tcp,
            child: SocketAddr::new(ip.src, tcp.src),
            remote: SocketAddr::new(ip.dst, tcp.dst),
        };
        let payload_len = received.transport().len() - tcp.header_len;
        let is_first = tcp.flags & (Tcp::SYN | Tcp::ACK | Tcp::RST | Tcp::FIN) == Tcp::SYN;
        if let Some(id) = self.flows.find(&key)
            && !(is_first && self.yields_key(id, tcp.sequence))
        {
            self.count_segment(payload_len);
            return self.segment_from_child(now, id, received, &tcp, payload_len);
        }
        if self.is_segment_elsewhere(key, is_first, received)? {
            return Ok(());
        }
        self.count_segment(payload_len);
        if is_first {
            return self.open_tcp(now, key, received, &tcp);
        }
        self.reject_segment(now, received);
        Err(DropReason::NoFlow)
    }

    fn count_segment(&mut self, payload_len: usize) {
        self.stats.tcp.packets_from_child += 1;
        self.stats.tcp.bytes_from_child += payload_len as u64;
    }

    fn segment_from_child(
        &mut self,
        now: Instant,
        id: FlowId,
        received: &Received<'_>,
        tcp: &Tcp,
        payload_len: usize,
    ) -> Result<(), DropReason> {
        let Some(entry) = self.flows.get_mut(id) else { return Err(DropReason::NoFlow) };
        entry.value.mac = received.mac;
        let flow = match &mut entry.value.kind {
            FlowKind::Tcp(flow) => flow,
            FlowKind::Relayed(relayed) => {
                if relayed.handle_stray(now, tcp.flags) {
                    self.actions.push_back(Action::RecallRelay { flow: id });
                }
                return Err(DropReason::RelayedFlow);
            }
            _ => return Err(DropReason::RelayedFlow),
        };
        // A socket of the relay answers, or is about to; a RST says that the child has given up.
        if flow.phase == Phase::Offered && tcp.flags & Tcp::RST == 0 {
            return Err(DropReason::RelayedFlow);
        }
        if !flow.awaits_child() {
            flow.last_active = now;
        }
        flow.touched |= payload_len > 0;
        let reply = flow.endpoint.ingress(&mut self.network, now, received.packet(), tcp, payload_len);
        let offered = flow.phase == Phase::Offered;
        let ended_early = flow.is_half_open() && flow.endpoint.child_side() == ChildSide::Gone;
        let answered = flow.awaits_child() && flow.endpoint.is_established();
        if let Some(reply) = reply.filter(|_| !offered) {
            self.send_packet(&reply, received.mac);
        }
        if ended_early {
            // The child gave up (RST) before it was answered, or refuses the host's connection.
            self.close_tcp(now, id, true);
            return Ok(());
        }
        if answered {
            self.handle_answered(now, id);
        }
        self.queue_relay(id);
        self.queue_egress(id);
        Ok(())
    }

    fn open_tcp(
        &mut self,
        now: Instant,
        key: FlowKey,
        received: &Received<'_>,
        syn: &Tcp,
    ) -> Result<(), DropReason> {
        let ip = &received.ip;
        let peer = match self.destination_at(key.remote) {
            Ok(Destination::Host(address)) => {
                if ip.ttl <= 1 {
                    self.tell(now, IcmpErrorKind::TimeExceeded, received.packet(), received.mac);
                    return Err(DropReason::TimeExceeded);
                }
                if let Err(reason) = self.check_policy(now, Protocol::Tcp, key.remote) {
                    self.reject_segment(now, received);
                    return Err(reason);
                }
                Peer::Host(SocketAddr::new(address, syn.dst))
            }
            Ok(Destination::Dns) if syn.dst == 53 => Peer::Dns(Box::default()),
            Ok(Destination::Dns) => {
                self.reject_segment(now, received);
                return Err(DropReason::NoSuchService);
            }
            Ok(Destination::Gateway) => return Err(self.refuse(now, self.gateway_refusal(), received)),
            Err(refusal) => return Err(self.refuse(now, refusal, received)),
        };
        if self.tcp_flows() >= self.config.limits.flows {
            self.reject_segment(now, received);
            return Err(DropReason::FlowTableFull);
        }
        if self.counts.half_open >= self.config.limits.half_open {
            return Err(DropReason::HalfOpenFull);
        }
        let Some((region, size)) = self.rings.lend() else {
            self.reject_segment(now, received);
            return Err(DropReason::BufferMemoryFull);
        };
        let keepalive = self.config.timeouts.tcp_keepalive;
        let mut endpoint =
            Endpoint::new(&self.network, region, size, key.remote, received.transport(), keepalive);
        endpoint.ingress(&mut self.network, now, received.packet(), syn, 0);
        if endpoint.child_side() == ChildSide::Gone {
            // The endpoint did not take the SYN (contradicting options).
            self.rings.give_back(endpoint.into_region());
            return Err(DropReason::Malformed);
        }
        if !self.claim(key) {
            self.rings.give_back(endpoint.into_region());
            return Err(DropReason::WorkerBusy);
        }
        let mut flow = TcpFlow::new(now, endpoint, peer, syn.sequence);
        flow.multipath = syn.offers_multipath(received.transport());
        let remote = match flow.peer {
            Peer::Host(remote) => Some(remote),
            Peer::Dns(_) => None,
        };
        let id = self.flows.insert(key, FlowState::new(FlowKind::Tcp(Box::new(flow)), received.mac));
        self.counts.tcp += 1;
        self.counts.half_open += 1;
        match remote {
            Some(remote) => {
                self.stats.tcp_opened += 1;
                self.actions.push_back(Action::Connect { flow: id, remote });
            }
            None => self.accept_from_child(id),
        }
        Ok(())
    }

    /// Says what the child should hear about a destination that is out of reach as such.
    fn refuse(&mut self, now: Instant, refusal: Refusal, received: &Received<'_>) -> DropReason {
        match refusal {
            Refusal::Prohibited(reason) => {
                self.reject_segment(now, received);
                reason
            }
            Refusal::Silent(_) | Refusal::Unreachable(_) => self.refuse_datagram(now, refusal, received),
        }
    }

    pub(super) fn handle_tcp_host(&mut self, now: Instant, id: FlowId, event: HostEvent) {
        let Some(tcp) = self.tcp_mut(id) else { return };
        match (event, tcp.phase) {
            (HostEvent::Connected, Phase::Connecting) => self.handle_connected(now, id),
            (HostEvent::ConnectFailed(error), Phase::Connecting) => self.connect_failed(now, id, error),
            (HostEvent::Readable, _) => {
                tcp.relay.handle_readable();
                self.queue_relay(id);
            }
            (HostEvent::Writable, _) => {
                tcp.relay.handle_writable();
                self.queue_relay(id);
            }
            (HostEvent::Reset, _) => self.reset_to_child(now, id),
            _ => {}
        }
    }

    pub(super) fn accept_from_child(&mut self, id: FlowId) {
        let Some(tcp) = self.tcp_mut(id) else { return };
        // What was heard of the host's socket before a relay refused it holds on.
        if tcp.phase == Phase::Connecting {
            tcp.relay = Relay::connected();
        }
        tcp.phase = Phase::Open;
        tcp.endpoint.accept();
        self.counts.half_open -= 1;
        self.queue_egress(id);
        self.queue_relay(id);
    }

    /// Passes the host's failure on as what it is.
    fn connect_failed(&mut self, now: Instant, id: FlowId, error: ConnectError) {
        self.stats.tcp_connect_failed += 1;
        let kind = match error {
            ConnectError::Refused => return self.reset_to_child(now, id),
            ConnectError::HostUnreachable => Some(IcmpErrorKind::HostUnreachable),
            ConnectError::NetUnreachable => Some(IcmpErrorKind::NetUnreachable),
            ConnectError::NoOutbound => {
                self.stats.count_drop(DropReason::NoOutbound);
                Some(IcmpErrorKind::NetUnreachable)
            }
            ConnectError::Forbidden => Some(IcmpErrorKind::AdminProhibited),
            // The child's own timer says the same, later: it goes on repeating its SYN until then.
            ConnectError::TimedOut => None,
            ConnectError::Resources => {
                self.stats.count_drop(DropReason::HostResources);
                None
            }
        };
        if let (Some(kind), Some(entry)) = (kind, self.flows.get(id)) {
            let mac = entry.value.mac;
            if let FlowKind::Tcp(tcp) = &entry.value.kind {
                let syn = syn_packet(&entry.key, tcp.syn);
                self.tell(now, kind, &syn, mac);
            }
        }
        self.close_tcp(now, id, true);
    }

    /// The host's side is gone: RST to the child.
    fn reset_to_child(&mut self, now: Instant, id: FlowId) {
        let Some(tcp) = self.tcp_mut(id) else { return };
        if tcp.phase == Phase::Resetting {
            return;
        }
        if tcp.awaits_child() {
            // Whatever answer comes finds no flow, and is reset then.
            return self.close_tcp(now, id, true);
        }
        let was_connecting = tcp.is_half_open();
        tcp.phase = Phase::Resetting;
        tcp.last_active = now;
        tcp.endpoint.abort();
        if was_connecting {
            self.counts.half_open -= 1;
        } else {
            self.stats.tcp_reset += 1;
        }
        self.queue_egress(id);
    }

    pub(super) fn handle_tcp_timeout(&mut self, now: Instant, id: FlowId) {
        let timeouts = self.config.timeouts;
        let Some(tcp) = self.tcp_mut(id) else { return };
        if tcp.is_overdue(now, &timeouts) {
            match tcp.phase {
                Phase::Open => self.reset_to_child(now, id),
                phase => {
                    self.stats.relay.unanswered += u64::from(phase == Phase::Offered);
                    self.close_tcp(now, id, true);
                }
            }
            return;
        }
        if tcp.awaits_child() {
            self.refresh_neighbor(id);
        }
        let Some(tcp) = self.tcp_mut(id) else { return };
        if tcp.touched && now >= tcp.last_active + crate::tcp::TRIM_AFTER {
            // Rings with bytes that nobody fetches keep their pages until something moves again.
            tcp.endpoint.release_pages();
            tcp.touched = false;
        }
        self.queue_egress(id);
    }

    /// Runs the relay of one flow as far as it comes without the driver.
    pub(super) fn run_relay(&mut self, id: FlowId) {
        let Some(entry) = self.flows.get_mut(id) else { return };
        entry.value.in_relay_queue = false;
        let FlowKind::Tcp(tcp) = &mut entry.value.kind else { return };
        if tcp.phase != Phase::Open {
            return;
        }
        if matches!(tcp.peer, Peer::Dns(_)) {
            return self.run_dns_stream(id);
        }
        loop {
            let view = tcp.view();
            match tcp.relay.next(view) {
                Some(Step::Write) => return self.actions.push_back(Action::HostWrite { flow: id }),
                Some(Step::Read) => return self.actions.push_back(Action::HostRead { flow: id }),
                Some(Step::Shutdown) => self.actions.push_back(Action::ShutdownWrite { flow: id }),
                Some(Step::CloseToChild) => {
                    tcp.endpoint.close();
                    if !entry.value.in_egress_queue {
                        entry.value.in_egress_queue = true;
                        self.egress_queue.push_back(id);
                    }
                }
                Some(Step::Abort) => {
                    self.stats.tcp_reset += 1;
                    return self.close_tcp(self.now, id, true);
                }
                Some(Step::Finish) => {
                    tcp.phase = Phase::Finishing;
                    return self.queue_egress(id);
                }
                None => return,
            }
        }
    }

    /// The next frame of a TCP flow, in turn.
    pub(super) fn poll_tcp_frame(&mut self, now: Instant, out: &mut [u8]) -> Option<FrameOut> {
        while let Some(&id) = self.egress_queue.front() {
            let Some(entry) = self.flows.get_mut(id) else {
                self.egress_queue.pop_front();
                continue;
            };
            let mac = entry.value.mac;
            let FlowKind::Tcp(tcp) = &mut entry.value.kind else {
                self.egress_queue.pop_front();
                continue;
            };
            // A flow about to be forgotten cannot come back for its delayed ACK.
            let at = if tcp.phase == Phase::Finishing { now + ACK_DELAY } else { now };
            let Some((len, offload)) = tcp.endpoint.egress(&mut self.network, at, &mut out[ETHERNET_LEN..])
            else {
                entry.value.in_egress_queue = false;
                self.egress_queue.pop_front();
                self.after_egress(now, id);
                continue;
            };
            self.egress_queue.rotate_left(1);
            self.stats.tcp.packets_to_child += 1;
            let ethertype = if entry.key.child.is_ipv4() { ethertype::IPV4 } else { ethertype::IPV6 };
            packet::emit_ethernet(out, self.config.mac, mac, ethertype);
            return Some(FrameOut { len: ETHERNET_LEN + len, offload });
        }
        None
    }

    /// Everything that could be sent is sent: end the flow, or set its timer.
    fn after_egress(&mut self, now: Instant, id: FlowId) {
        let timeouts = self.config.timeouts;
        let Some(entry) = self.flows.get_mut(id) else { return };
        let FlowKind::Tcp(tcp) = &mut entry.value.kind else { return };
        match tcp.phase {
            Phase::Resetting => return self.close_tcp(now, id, true),
            Phase::Finishing => return self.close_tcp(now, id, false),
            Phase::Open if tcp.endpoint.child_side() == ChildSide::Gone => self.queue_relay(id),
            // smoltcp's own patience has ended.
            Phase::Connecting | Phase::Offered if tcp.endpoint.child_side() == ChildSide::Gone => {
                return self.close_tcp(now, id, true);
            }
            Phase::Open | Phase::Connecting | Phase::Offered => {}
        }
        let Some(tcp) = self.tcp(id) else { return };
        let own = tcp.deadline(&timeouts);
        let polled = match self.flows.get(id).map(|entry| &entry.value.kind) {
            Some(FlowKind::Tcp(tcp)) => tcp.endpoint.poll_at(&mut self.network, now),
            _ => None,
        };
        if let Some(at) = [own, polled].into_iter().flatten().min() {
            self.wake_flow_at(id, at.max(now + MIN_WAIT));
        }
    }

    /// Ends a flow and closes its host socket.
    pub(super) fn close_tcp(&mut self, now: Instant, id: FlowId, abort: bool) {
        let destination = self.flows.get(id).map(|entry| entry.key.remote);
        let Some(FlowKind::Tcp(tcp)) = self.forget(id) else { return };
        self.counts.tcp -= 1;
        if let (Some(destination), Peer::Host(_), OpenedBy::Child) = (destination, &tcp.peer, tcp.opened_by)
            && !tcp.is_half_open()
        {
            self.handle_carried(now, destination, tcp.bytes_from_child + tcp.bytes_to_child);
        }
        if tcp.is_half_open() {
            self.counts.half_open -= 1;
            self.stats.tcp_unanswered += u64::from(tcp.opened_by == OpenedBy::Host);
        }
        match tcp.peer {
            Peer::Host(_) if tcp.phase == Phase::Offered => {
                self.actions.push_back(Action::WithdrawRelay { flow: id });
            }
            Peer::Host(_) => self.actions.push_back(Action::Close { flow: id, abort }),
            Peer::Dns(_) => self.dns.forget_origin(id),
        }
        self.rings.give_back(tcp.endpoint.into_region());
        self.trim_rings_later(now);
    }

    /// Answers a segment as a closed port would.
    fn reject_segment(&mut self, now: Instant, received: &Received<'_>) {
        if let Some(reply) = self.network.reject(now, received.packet()) {
            self.send_packet(&reply, received.mac);
        }
    }

    /// Queues an IP packet for the child.
    fn send_packet(&mut self, packet: &[u8], mac: packet::Mac) {
        let v4 = packet.first().is_some_and(|first| first >> 4 == 4);
        let ethertype = if v4 { ethertype::IPV4 } else { ethertype::IPV6 };
        self.stats.tcp.packets_to_child += 1;
        let frame = packet::ethernet_frame(self.config.mac, mac, ethertype, packet);
        self.send_control(frame);
    }

    /// Moves bytes between a child's DNS connection and the forwarder.
    fn run_dns_stream(&mut self, id: FlowId) {
        let Some(FlowKind::Tcp(tcp)) = self.flows.get_mut(id).map(|entry| &mut entry.value.kind) else {
            return;
        };
        let mut queries = Vec::new();
        let Peer::Dns(stream) = &mut tcp.peer else { return };
        while tcp.endpoint.recv_queue() > 0 && stream.pending + queries.len() < DnsStream::MAX_PENDING {
            let taken = tcp.endpoint.recv(|bytes| {
                let mut rest = bytes;
                match stream.decoder.decode(&mut rest) {
                    Some(message) => queries.push(message),
                    None => debug_assert!(rest.is_empty()),
                }
                (bytes.len() - rest.len(), bytes.len() - rest.len())
            });
            if taken.is_none_or(|taken| taken == 0) {
                break;
            }
        }
        while !stream.answers.is_empty() {
            let answers = &stream.answers;
            let sent = tcp.endpoint.send(answers.len(), |room| {
                let n = room.len().min(answers.len());
                room[..n].copy_from_slice(&answers[..n]);
                (n, n)
            });
            match sent {
                Some(n) if n > 0 => drop(stream.answers.drain(..n)),
                _ => break,
            }
        }
        stream.pending += queries.len();
        let idle = stream.pending == 0 && stream.answers.is_empty();
        match tcp.endpoint.child_side() {
            ChildSide::Gone => return self.close_tcp(self.now, id, true),
            ChildSide::Done => tcp.phase = Phase::Finishing,
            ChildSide::Finished
                if idle && tcp.endpoint.recv_queue() == 0 && tcp.endpoint.send_queue() == 0 =>
            {
                tcp.endpoint.close();
            }
            ChildSide::Finished | ChildSide::Open => {}
        }
        self.queue_egress(id);
        for query in queries {
            let result = self.handle_dns_query(self.now, QueryOrigin::Tcp { flow: id }, &query);
            if self.counted(result).is_err() {
                // No answer will come; the stream would wait for it for ever.
                return self.abort_dns_stream(id);
            }
        }
    }

    fn abort_dns_stream(&mut self, id: FlowId) {
        self.dns.forget_origin(id);
        self.reset_to_child(self.now, id);
    }

    /// Queues a framed answer on a child's DNS connection.
    pub(super) fn answer_dns_stream(&mut self, id: FlowId, message: &[u8]) {
        let Some(tcp) = self.tcp_mut(id) else { return };
        let Peer::Dns(stream) = &mut tcp.peer else { return };
        stream.pending = stream.pending.saturating_sub(1);
        stream.answers.extend_from_slice(&crate::dns::tcp::frame(message));
        self.queue_relay(id);
    }

    pub(super) fn queue_relay(&mut self, id: FlowId) {
        let Some(entry) = self.flows.get_mut(id) else { return };
        if !entry.value.in_relay_queue {
            entry.value.in_relay_queue = true;
            self.relay_queue.push_back(id);
        }
    }

    pub(super) fn queue_egress(&mut self, id: FlowId) {
        let Some(entry) = self.flows.get_mut(id) else { return };
        if !entry.value.in_egress_queue {
            entry.value.in_egress_queue = true;
            self.egress_queue.push_back(id);
        }
    }

    pub(super) fn tcp(&self, id: FlowId) -> Option<&TcpFlow> {
        match &self.flows.get(id)?.value.kind {
            FlowKind::Tcp(tcp) => Some(tcp),
            _ => None,
        }
    }

    pub(super) fn tcp_mut(&mut self, id: FlowId) -> Option<&mut TcpFlow> {
        match &mut self.flows.get_mut(id)?.value.kind {
            FlowKind::Tcp(tcp) => Some(tcp),
            _ => None,
        }
    }
}

/// The child's SYN rebuilt as far as an ICMP error quotes it.
fn syn_packet(key: &FlowKey, sequence: u32) -> Vec<u8> {
    let ip = packet::IpHeader {
        src: key.child.ip(),
        dst: key.remote.ip(),
        protocol: protocol::TCP,
        ttl: packet::DEFAULT_TTL,
    };
    let mut syn = vec![0; ip.header_len() + 20];
    ip.emit(20, &mut syn);
    let tcp = &mut syn[ip.header_len()..];
    tcp[0..2].copy_from_slice(&key.child.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&key.remote.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    tcp[12] = 5 << 4;
    tcp[13] = Tcp::SYN;
    syn
}
