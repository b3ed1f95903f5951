//! ICMP and ICMPv6 as the stack sees them: echo through ping sockets, never answered on behalf of others.
//!
//! # Theory of operation
//! An echo request of the child opens a *binding* for its identifier (RFC 5508 section 3.1): one unprivileged
//! ping socket, which picks an identifier of its own on the host's side. Requests are sent as they are (the
//! kernel rewrites identifier and checksum), replies get the child's identifier back. Errors come from the
//! socket's error queue, quoting the request. The gateway and DNS addresses are the engine's own and answer.

use std::net::{IpAddr, SocketAddr};

use super::udp::{ToChild, unspecified};
use super::{Destination, FlowKind, PingBinding, Received, Stack};
use crate::action::{Action, DatagramError, Payload};
use crate::error::DropReason;
use crate::flow::{FlowId, FlowKey, Protocol};
use crate::frame::Gso;
use crate::icmp as icmp_wire;
use crate::icmp::IcmpErrorKind;
use crate::offload::checksum;
use crate::packet::{self, IpHeader, protocol};
use crate::time::Instant;
use crate::udp::Aliases;

const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REPLY_V4: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
/// Type, code, checksum, identifier, sequence number.
const ECHO_LEN: usize = 8;

impl Stack {
    pub(super) fn icmp_from_child(
        &mut self,
        now: Instant,
        received: &Received<'_>,
    ) -> Result<(), DropReason> {
        if self.is_for_first(received)? {
            return Ok(());
        }
        self.check_source(received)?;
        match received.transport().first_chunk::<ECHO_LEN>() {
            None => Err(DropReason::Truncated),
            Some(header) if header[..2] == [ECHO_REQUEST_V4, 0] => {
                self.echo_from_child(now, received, u16::from_be_bytes([header[4], header[5]]))
            }
            Some(_) => self.icmp_error_from_child(now, received),
        }
    }

    pub(super) fn icmpv6_from_child(
        &mut self,
        now: Instant,
        received: &Received<'_>,
    ) -> Result<(), DropReason> {
        if self.is_for_first(received)? {
            return Ok(());
        }
        let Some(&[icmp_type, code]) = received.transport().first_chunk() else {
            return Err(DropReason::Truncated);
        };
        if (133..=137).contains(&icmp_type) {
            return self.handle_ndp(now, received);
        }
        self.check_source(received)?;
        match received.transport().first_chunk::<ECHO_LEN>() {
            Some(header) if (icmp_type, code) == (ECHO_REQUEST_V6, 0) => {
                self.echo_from_child(now, received, u16::from_be_bytes([header[4], header[5]]))
            }
            _ => self.icmp_error_from_child(now, received),
        }
    }

    fn echo_from_child(
        &mut self,
        now: Instant,
        received: &Received<'_>,
        ident: u16,
    ) -> Result<(), DropReason> {
        let ip = &received.ip;
        let message = received.transport();
        self.stats.icmp.packets_from_child += 1;
        self.stats.icmp.bytes_from_child += (message.len() - ECHO_LEN) as u64;
        let address = match self.destination(ip.dst) {
            Ok(Destination::Dns | Destination::Gateway) => return self.answer_echo(received),
            _ if self.answers_echo(ip.dst) => return self.answer_echo(received),
            Ok(Destination::Host(address)) => address,
            Err(refusal) => return Err(self.refuse_datagram(now, refusal, received)),
        };
        let protocol = if ip.src.is_ipv4() { Protocol::Icmp } else { Protocol::Icmpv6 };
        if let Err(reason) = self.check_policy(now, protocol, SocketAddr::new(ip.dst, 0)) {
            self.tell(now, IcmpErrorKind::AdminProhibited, received.packet(), received.mac);
            return Err(reason);
        }
        let hop = self.next_hop(now, received)?;
        if self.ping_forbidden_told {
            self.tell(now, IcmpErrorKind::AdminProhibited, received.packet(), received.mac);
            return Err(DropReason::PingForbidden);
        }
        let key = FlowKey { protocol, child: SocketAddr::new(ip.src, ident), remote: unspecified(ip.src) };
        let id = match self.flows.find(&key) {
            Some(id) => id,
            None => {
                let binding = PingBinding {
                    last_active: now,
                    aliases: Aliases::default(),
                    bytes_from_child: 0,
                    bytes_to_child: 0,
                };
                self.open_binding(key, received.mac, FlowKind::Ping(Box::new(binding)))?
            }
        };
        if let Some(FlowKind::Ping(binding)) = self.flows.get_mut(id).map(|entry| &mut entry.value.kind) {
            binding.bytes_from_child += (message.len() - ECHO_LEN) as u64;
            binding.aliases.handle_sent(address, ip.dst);
        }
        let range = received.ip.transport.start as u32..received.ip.transport.end as u32;
        self.actions.push_back(Action::SendDatagram {
            flow: id,
            remote: SocketAddr::new(address, 0),
            payload: match received.slot {
                Some(slot) => Payload::InFrame { slot, range },
                None => Payload::Owned(message.to_vec()),
            },
            gso: Gso::None,
            hop,
            local: None,
        });
        self.slot_in_use = received.slot.or(self.slot_in_use);
        self.refresh_binding(now, id);
        Ok(())
    }

    /// The engine is the destination, and alive.
    fn answer_echo(&mut self, received: &Received<'_>) -> Result<(), DropReason> {
        let ip = &received.ip;
        let mut message = received.transport().to_vec();
        message[0] = if ip.src.is_ipv4() { ECHO_REPLY_V4 } else { ECHO_REPLY_V6 };
        self.send_icmp(ip.dst, ip.src, &mut message, received.mac);
        Ok(())
    }

    /// Takes an ICMP message from a ping socket.
    pub(super) fn echo_to_child(
        &mut self,
        now: Instant,
        id: FlowId,
        from: SocketAddr,
        message: &[u8],
    ) -> Result<ToChild, DropReason> {
        let source = self.name_of(id, from.ip());
        let Some(entry) = self.flows.get_mut(id) else { return Err(DropReason::NoFlow) };
        let (child, mac) = (entry.key.child, entry.value.mac);
        let FlowKind::Ping(binding) = &mut entry.value.kind else { return Err(DropReason::NoFlow) };
        let expected = if child.is_ipv4() { ECHO_REPLY_V4 } else { ECHO_REPLY_V6 };
        if message.len() < ECHO_LEN || message[..2] != [expected, 0] {
            return Err(DropReason::IcmpIgnored);
        }
        binding.bytes_to_child += (message.len() - ECHO_LEN) as u64;
        let mut message = message.to_vec();
        message[4..6].copy_from_slice(&child.port().to_be_bytes());
        self.refresh_binding(now, id);
        self.send_icmp(source, child.ip(), &mut message, mac);
        Ok(ToChild::Queued)
    }

    pub(super) fn ping_error_to_child(
        &mut self,
        now: Instant,
        id: FlowId,
        remote: SocketAddr,
        error: DatagramError,
        quoted: &[u8],
    ) -> Result<(), DropReason> {
        let Some(entry) = self.flows.get(id) else { return Err(DropReason::NoFlow) };
        let (child, mac) = (entry.key.child, entry.value.mac);
        if quoted.len() < ECHO_LEN {
            return Err(DropReason::Truncated);
        }
        let mut message = quoted.to_vec();
        message[4..6].copy_from_slice(&child.port().to_be_bytes());
        let written = self.name_of(id, remote.ip());
        let original =
            icmp_wire::echo_original(child.ip(), written, packet::DEFAULT_TTL, &message, message.len());
        let from = self.error_source(id, error, child.is_ipv4());
        self.tell_from(now, error.kind.into(), from, &original, mac);
        Ok(())
    }

    /// Completes and queues an ICMP message for the child, in fragments where it exceeds the MTU.
    fn send_icmp(&mut self, src: IpAddr, dst: IpAddr, message: &mut [u8], mac: packet::Mac) {
        let protocol = if dst.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 };
        message[2..4].fill(0);
        let pseudo = match protocol {
            protocol::ICMP => 0,
            _ => checksum::pseudo_header_sum(src, dst, protocol, message.len() as u32),
        };
        let sum = checksum::checksum(message, pseudo);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        self.stats.icmp.packets_to_child += 1;
        self.stats.icmp.bytes_to_child += (message.len() - ECHO_LEN) as u64;
        let ip = IpHeader { src, dst, protocol, ttl: packet::DEFAULT_TTL };
        if ip.header_len() + message.len() > usize::from(self.config.mtu) {
            self.send_ip_fragments(&ip, message, mac);
        } else {
            let frame = packet::ip_frame(self.config.mac, mac, &ip, message);
            self.send_control(frame);
        }
    }
}
