//! DNS as the stack sees it: the forwarder's queries are flows of the engine's own.
//!
//! # Theory of operation
//! Each question to a host resolver has a socket of its own, connected to that server, so that the kernel
//! drops answers from elsewhere and the port is as random as the kernel makes it (RFC 5452 section 9.2). Over
//! TCP the length-prefixed question is written as the socket takes it and the answer collected until whole.

use std::net::SocketAddr;

use super::tcp::HostIo;
use super::udp::ToChild;
use super::{FlowKind, FlowState, Stack};
use crate::action::{Action, DatagramKind, Hop, HostEvent, Payload};
use crate::dns::tcp::{LengthPrefix, frame};
use crate::dns::{AnswerKind, DnsAction, DnsTransport, QueryId, QueryOrigin};
use crate::error::DropReason;
use crate::flow::{FlowId, FlowKey, Protocol};
use crate::frame::Gso;
use crate::packet;
use crate::time::Instant;

/// A question to a host resolver.
#[derive(Debug)]
pub(super) struct Upstream {
    query: QueryId,
    /// Over TCP: bytes of the question that are not written yet.
    unsent: Vec<u8>,
    answer: LengthPrefix,
    connected: bool,
}

impl Stack {
    pub(super) fn dns_datagram_from_child(
        &mut self,
        now: Instant,
        child: SocketAddr,
        server: SocketAddr,
        message: &[u8],
    ) -> Result<(), DropReason> {
        self.handle_dns_query(now, QueryOrigin::Udp { child, server }, message)
    }

    pub(super) fn handle_dns_query(
        &mut self,
        now: Instant,
        origin: QueryOrigin,
        message: &[u8],
    ) -> Result<(), DropReason> {
        self.stats.dns.packets_from_child += 1;
        self.stats.dns.bytes_from_child += message.len() as u64;
        let result = self.dns.handle_query(now, origin, message);
        self.drain_dns();
        result
    }

    /// Carries out what the forwarder decided.
    pub(super) fn drain_dns(&mut self) {
        while let Some(action) = self.dns.poll_action() {
            match action {
                DnsAction::Ask { query, server, transport, message } => {
                    self.ask_resolver(query, server, transport, &message);
                }
                DnsAction::Abandon { query } => self.close_dns_flow(query),
                DnsAction::Answer { origin, message, kind } => {
                    match kind {
                        AnswerKind::Static => self.stats.dns_static += 1,
                        AnswerKind::Servfail => self.stats.dns_servfail += 1,
                        _ => {}
                    }
                    self.answer_child(origin, &message);
                }
            }
        }
    }

    fn ask_resolver(&mut self, query: QueryId, server: SocketAddr, transport: DnsTransport, message: &[u8]) {
        self.close_dns_flow(query);
        let key = FlowKey {
            protocol: if transport == DnsTransport::Udp { Protocol::Udp } else { Protocol::Tcp },
            child: SocketAddr::new(self.config.ipv4.dns.into(), 0),
            remote: server,
        };
        let unsent = if transport == DnsTransport::Tcp { frame(message) } else { Vec::new() };
        let upstream = Upstream { query, unsent, answer: LengthPrefix::new(), connected: false };
        let state = FlowState::new(FlowKind::DnsQuery(Box::new(upstream)), packet::BROADCAST);
        let flow = self.flows.insert_hidden(key, state);
        self.dns_flows.insert(query, flow);
        match transport {
            DnsTransport::Udp => {
                let kind = DatagramKind::UdpConnected(server);
                self.actions.push_back(Action::OpenDatagram { flow, kind, ipv6: server.is_ipv6() });
                self.actions.push_back(Action::SendDatagram {
                    flow,
                    remote: server,
                    payload: Payload::Owned(message.to_vec()),
                    gso: Gso::None,
                    hop: Hop { ttl: packet::DEFAULT_TTL, dont_fragment: false },
                    local: None,
                });
            }
            DnsTransport::Tcp => self.actions.push_back(Action::Connect { flow, remote: server }),
        }
    }

    fn answer_child(&mut self, origin: QueryOrigin, message: &[u8]) {
        self.stats.dns.packets_to_child += 1;
        self.stats.dns.bytes_to_child += message.len() as u64;
        match origin {
            QueryOrigin::Udp { child, server } => self.answer_dns_datagram(child, server, message),
            QueryOrigin::Tcp { flow } => self.answer_dns_stream(flow, message),
        }
    }

    fn answer_dns_datagram(&mut self, child: SocketAddr, server: SocketAddr, message: &[u8]) {
        let mac = self.neighbors.lookup(child.ip());
        let header = packet::IpHeader {
            src: server.ip(),
            dst: child.ip(),
            protocol: packet::protocol::UDP,
            ttl: packet::DEFAULT_TTL,
        };
        if header.header_len() + packet::UDP_LEN + message.len() > usize::from(self.config.mtu) {
            self.send_fragments(&header, (server.port(), child.port()), message, mac);
        } else {
            let frame = packet::udp_frame(self.config.mac, mac, server, child, message);
            self.send_control(frame);
        }
    }

    /// Takes a datagram from a resolver.
    pub(super) fn handle_dns_answer(
        &mut self,
        now: Instant,
        flow: FlowId,
        message: &[u8],
    ) -> Result<ToChild, DropReason> {
        let Some(query) = self.upstream(flow).map(|upstream| upstream.query) else {
            return Err(DropReason::NoFlow);
        };
        let result = self.dns.handle_answer(now, query, message);
        self.drain_dns();
        result.map(|()| ToChild::Queued)
    }

    pub(super) fn handle_dns_host(&mut self, now: Instant, flow: FlowId, event: HostEvent) {
        match event {
            HostEvent::Connected => {
                if let Some(upstream) = self.upstream(flow) {
                    upstream.connected = true;
                }
                self.actions.push_back(Action::HostWrite { flow });
            }
            HostEvent::Readable => self.actions.push_back(Action::HostRead { flow }),
            HostEvent::Writable => self.actions.push_back(Action::HostWrite { flow }),
            HostEvent::ConnectFailed(_) | HostEvent::Reset | HostEvent::OpenFailed(_) => {
                self.handle_dns_failure(now, flow);
            }
        }
    }

    /// The server did not answer and never will.
    pub(super) fn handle_dns_failure(&mut self, now: Instant, flow: FlowId) {
        let Some(query) = self.upstream(flow).map(|upstream| upstream.query) else { return };
        self.close_dns_flow(query);
        self.dns.handle_failure(now, query);
        self.drain_dns();
    }

    pub(super) fn with_dns_tx(&mut self, flow: FlowId, mut write: impl FnMut(&[u8]) -> HostIo) {
        let now = self.now;
        let Some(upstream) = self.upstream(flow) else { return };
        while upstream.connected && !upstream.unsent.is_empty() {
            match write(&upstream.unsent) {
                HostIo::Moved(n) | HostIo::MovedAll(n) if n > 0 => drop(upstream.unsent.drain(..n)),
                HostIo::Failed | HostIo::Eof => return self.handle_dns_failure(now, flow),
                HostIo::Moved(_) | HostIo::MovedAll(_) | HostIo::WouldBlock => return,
            }
        }
    }

    pub(super) fn with_dns_rx(&mut self, now: Instant, flow: FlowId, read: impl FnOnce(&mut [u8]) -> HostIo) {
        let mut buffer = [0; 4096];
        let io = read(&mut buffer);
        let Some(upstream) = self.upstream(flow) else { return };
        let query = upstream.query;
        let (n, more) = match io {
            HostIo::Moved(n) => (n, true),
            HostIo::MovedAll(n) => (n, false),
            HostIo::WouldBlock => return,
            HostIo::Eof | HostIo::Failed => return self.handle_dns_failure(now, flow),
        };
        let mut bytes = &buffer[..n.min(buffer.len())];
        while let Some(message) = self.upstream(flow).and_then(|upstream| upstream.answer.decode(&mut bytes))
        {
            let result = self.dns.handle_answer(now, query, &message);
            let _ = self.counted(result);
            self.drain_dns();
        }
        if more && self.upstream(flow).is_some() {
            self.actions.push_back(Action::HostRead { flow });
        }
    }

    /// Whether a flow is a question of the engine's own.
    #[cfg(feature = "driver")]
    pub(crate) fn is_question(&self, flow: FlowId) -> bool {
        self.flows.get(flow).is_some_and(|entry| matches!(entry.value.kind, FlowKind::DnsQuery(_)))
    }

    fn close_dns_flow(&mut self, query: QueryId) {
        let Some(flow) = self.dns_flows.remove(&query) else { return };
        if self.forget(flow).is_some() {
            self.actions.push_back(Action::Close { flow, abort: false });
        }
    }

    fn upstream(&mut self, flow: FlowId) -> Option<&mut Upstream> {
        match &mut self.flows.get_mut(flow)?.value.kind {
            FlowKind::DnsQuery(upstream) => Some(upstream),
            _ => None,
        }
    }
}
