//! What the engine serves on the link itself: ARP, neighbour discovery, DHCP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Received, Stack};
use crate::config::{Ipv6Mode, Ipv6Plan, LinkService};
use crate::dns::Ipv6Offer;
use crate::error::DropReason;
use crate::ndp::{NdpMessage, Offered};
use crate::packet::{self, ETHERNET_LEN, IpHeader, Mac, Udp, ethertype, protocol};
use crate::time::Instant;

const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
const DHCPV6_SERVER: u16 = 547;
/// All_DHCP_Relay_Agents_and_Servers, RFC 8415 section 7.1.
const DHCPV6_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

impl Stack {
    pub(super) fn handle_arp(&mut self, frame: &[u8]) -> Result<(), DropReason> {
        if self.is_arp_for_first(frame)? {
            return Ok(());
        }
        let outcome = self.arp.handle(&frame[ETHERNET_LEN..])?;
        if let Some((address, mac)) = outcome.sender {
            self.learn_neighbor(address.into(), mac);
        }
        if let Some(reply) = outcome.reply {
            let own = self.config.mac;
            let frame = packet::ethernet_frame(own, reply.dst_mac, ethertype::ARP, &reply.payload);
            self.send_control(frame);
        }
        Ok(())
    }

    pub(super) fn handle_ndp(&mut self, now: Instant, received: &Received<'_>) -> Result<(), DropReason> {
        let (IpAddr::V6(src), IpAddr::V6(dst)) = (received.ip.src, received.ip.dst) else {
            return Err(DropReason::Malformed);
        };
        if self.config.ipv6_mode == Ipv6Mode::Off {
            return Err(DropReason::Ipv6Off);
        }
        if !self.config.serves(LinkService::NeighborDiscovery) {
            return Err(DropReason::IcmpIgnored);
        }
        let outcome = self.ndp.handle(now, src, dst, received.ip.ttl, received.transport())?;
        if let Some((address, mac)) = outcome.sender {
            self.learn_neighbor(address.into(), mac);
        }
        if let Some(reply) = outcome.reply {
            self.send_ndp(reply);
        }
        Ok(())
    }

    pub(super) fn send_ndp(&mut self, message: NdpMessage) {
        let mac = message.dst_mac.unwrap_or_else(|| self.mac_of(message.dst));
        let ip = IpHeader {
            src: message.src.into(),
            dst: message.dst.into(),
            protocol: protocol::ICMPV6,
            ttl: 255,
        };
        let frame = packet::ip_frame(self.config.mac, mac, &ip, &message.icmpv6);
        self.send_control(frame);
    }

    /// Serves DHCP, which is spoken before there are addresses; `None` for every other datagram.
    pub(super) fn serve_link_local(
        &mut self,
        now: Instant,
        received: &Received<'_>,
        udp: &Udp,
        payload: &[u8],
    ) -> Option<Result<(), DropReason>> {
        match received.ip.dst {
            IpAddr::V4(dst) if udp.dst == DHCP_SERVER => {
                let plan = &self.config.ipv4;
                let ours = dst.is_broadcast() || dst == plan.gateway || plan.subnet.is_broadcast(dst);
                ours.then(|| self.handle_dhcp(now, received, payload))
            }
            IpAddr::V6(dst) if udp.dst == DHCPV6_SERVER && dst == DHCPV6_SERVERS => {
                Some(self.handle_dhcpv6(received, udp.src, payload))
            }
            _ => None,
        }
    }

    fn handle_dhcp(
        &mut self,
        now: Instant,
        received: &Received<'_>,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        if self.is_for_first(received)? {
            return Ok(());
        }
        if !self.config.serves(LinkService::Dhcp) {
            return Err(DropReason::DhcpIgnored);
        }
        self.stats.dhcp.packets_from_child += 1;
        let Some(reply) = self.dhcp.handle(now, payload)? else { return Ok(()) };
        let src = SocketAddr::new(self.config.ipv4.gateway.into(), DHCP_SERVER);
        let dst = SocketAddr::new(reply.dst.into(), DHCP_CLIENT);
        let mac = if reply.dst == Ipv4Addr::BROADCAST { packet::BROADCAST } else { reply.dst_mac };
        self.stats.dhcp.packets_to_child += 1;
        let frame = packet::udp_frame(self.config.mac, mac, src, dst, &reply.payload);
        self.send_control(frame);
        Ok(())
    }

    fn handle_dhcpv6(
        &mut self,
        received: &Received<'_>,
        port: u16,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        if self.is_for_first(received)? {
            return Ok(());
        }
        if !self.is_ipv6_offered() {
            return Err(DropReason::Ipv6Off);
        }
        if !self.config.serves(LinkService::Dhcpv6) {
            return Err(DropReason::DhcpIgnored);
        }
        self.stats.dhcp.packets_from_child += 1;
        let Some(reply) = self.dhcpv6.handle(payload)? else { return Ok(()) };
        let src = SocketAddr::new(Ipv6Plan::GATEWAY_LINK_LOCAL.into(), DHCPV6_SERVER);
        let dst = SocketAddr::new(received.ip.src, port);
        self.stats.dhcp.packets_to_child += 1;
        let frame = packet::udp_frame(self.config.mac, received.mac, src, dst, &reply);
        self.send_control(frame);
        Ok(())
    }

    /// Tells everybody concerned whether the child is offered IPv6.
    pub(super) fn apply_ipv6_offer(&mut self, now: Instant) {
        let offered = self.is_ipv6_offered();
        self.dns.set_ipv6_offered(if offered { Ipv6Offer::Offered } else { Ipv6Offer::Withheld });
        if self.config.ipv6_mode != Ipv6Mode::Off && self.config.serves(LinkService::RouterAdvertisement) {
            self.ndp.set_offered(now, if offered { Offered::Yes } else { Offered::No });
        }
    }

    /// Ethernet address of an IPv6 destination on the link (RFC 2464 section 7 for groups).
    fn mac_of(&self, dst: Ipv6Addr) -> Mac {
        if dst.is_multicast() {
            let [.., a, b, c, d] = dst.octets();
            [0x33, 0x33, a, b, c, d]
        } else {
            self.neighbors.lookup(dst.into())
        }
    }
}
