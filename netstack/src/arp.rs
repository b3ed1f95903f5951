//! ARP responder (RFC 826, RFC 5227).
//!
//! # Theory of operation
//! *Goal:* the child finds the Ethernet address of the gateway and of the DNS server, and the engine learns
//! the child's. Nothing else lives on the link, so requests for any other address stay unanswered: an answer
//! would look like an address conflict to a child that probes its own address before use.
//!
//! With [`Addressing::Copied`] the link stands for a network of the host's: requests for others are answered as
//! well (proxy ARP), but for the child's address, probes and announcements.
//!
//! *Not handled:* RARP, hardware other than Ethernet, announcements of our own addresses (they are fixed
//! and nobody can hold an older mapping).
//!
//! *States and timers:* none. The caller keeps what was learned in its neighbour table.
//!
//! *Data flow:* ARP payload from the child → [`ArpResponder::handle`] → [`ArpOutcome`]: who spoke, and the
//! answer if there is one. To find a child's address, [`ArpResponder::request`] goes to Ethernet broadcast.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;

use crate::config::{Addressing, Config, Ipv4Plan};
use crate::error::DropReason;

/// Answers for the gateway and the engine's other addresses.
#[derive(Clone, Debug)]
pub struct ArpResponder {
    mac: [u8; 6],
    plan: Ipv4Plan,
    own: Vec<Ipv4Addr>,
    addressing: Addressing,
}

/// What an ARP message asks the stack to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArpOutcome {
    /// The sender's addresses, to be learned. `None` for probes (sender 0.0.0.0) and for addresses that no
    /// child may use, the engine's own among them.
    pub sender: Option<(Ipv4Addr, [u8; 6])>,
    /// The answer, for requests that concern the engine.
    pub reply: Option<ArpReply>,
}

/// An ARP answer to the child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArpReply {
    /// Ethernet destination.
    pub dst_mac: [u8; 6],
    /// The ARP message.
    pub payload: [u8; MESSAGE_LEN],
}

impl ArpResponder {
    /// Answers with `mac` for the addresses that `config` gives the engine.
    pub fn new(mac: [u8; 6], config: &Config) -> Self {
        let own = config.own_addresses().filter_map(|address| match address {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        });
        ArpResponder { mac, plan: *config.ipv4(), own: own.collect(), addressing: config.addressing() }
    }

    /// Takes the payload of an ARP frame; bytes after the message are Ethernet padding.
    ///
    /// # Errors
    /// [`DropReason::Truncated`]; [`DropReason::Malformed`] for anything but IPv4 on Ethernet and for
    /// sender hardware addresses that are zero or multicast; [`DropReason::ArpIgnored`] for operations
    /// other than request and reply, and for the engine's own hardware address as sender.
    pub fn handle(&self, payload: &[u8]) -> Result<ArpOutcome, DropReason> {
        let message: &[u8; MESSAGE_LEN] = payload.first_chunk().ok_or(DropReason::Truncated)?;
        if message[FORMAT] != ETHERNET_IPV4 {
            return Err(DropReason::Malformed);
        }
        let sender_mac = mac_at(message, SENDER_MAC);
        let sender_ip = ip_at(message, SENDER_IP);
        let target_ip = ip_at(message, TARGET_IP);
        if sender_mac[0] & 1 != 0 || sender_mac == [0; 6] {
            return Err(DropReason::Malformed);
        }
        if sender_mac == self.mac {
            return Err(DropReason::ArpIgnored);
        }
        let reply = match [message[OPERATION.start], message[OPERATION.start + 1]] {
            REQUEST if self.answers_for(target_ip, sender_ip) => Some(ArpReply {
                dst_mac: sender_mac,
                payload: self.message(REPLY, target_ip, sender_mac, sender_ip),
            }),
            REQUEST | REPLY => None,
            _ => return Err(DropReason::ArpIgnored),
        };
        let sender = self.may_be_child(sender_ip).then_some((sender_ip, sender_mac));
        Ok(ArpOutcome { sender, reply })
    }

    /// "Who has `target`", asked by the gateway. The Ethernet destination is broadcast.
    pub fn request(&self, target: Ipv4Addr) -> [u8; MESSAGE_LEN] {
        self.message(REQUEST, self.plan.gateway, [0; 6], target)
    }

    fn owns(&self, address: Ipv4Addr) -> bool {
        self.own.contains(&address)
    }

    fn answers_for(&self, target: Ipv4Addr, sender: Ipv4Addr) -> bool {
        let probe_or_announcement = sender.is_unspecified() || sender == target;
        let proxy = self.addressing == Addressing::Copied && !probe_or_announcement;
        self.owns(target) || (proxy && target != self.plan.child && self.may_be_host(target))
    }

    /// Addresses outside the subnet are welcome: the child may route for networks of its own.
    fn may_be_child(&self, address: Ipv4Addr) -> bool {
        self.may_be_host(address) && !self.owns(address)
    }

    fn may_be_host(&self, address: Ipv4Addr) -> bool {
        !(address.octets()[0] == 0
            || address.is_loopback()
            || address.is_multicast()
            || address.is_broadcast()
            || self.plan.subnet.is_reserved(address))
    }

    fn message(
        &self,
        operation: [u8; 2],
        sender_ip: Ipv4Addr,
        target_mac: [u8; 6],
        target_ip: Ipv4Addr,
    ) -> [u8; MESSAGE_LEN] {
        let mut message = [0; MESSAGE_LEN];
        message[FORMAT].copy_from_slice(&ETHERNET_IPV4);
        message[OPERATION].copy_from_slice(&operation);
        message[SENDER_MAC].copy_from_slice(&self.mac);
        message[SENDER_IP].copy_from_slice(&sender_ip.octets());
        message[TARGET_MAC].copy_from_slice(&target_mac);
        message[TARGET_IP].copy_from_slice(&target_ip.octets());
        message
    }
}

fn mac_at(message: &[u8; MESSAGE_LEN], range: Range<usize>) -> [u8; 6] {
    let mut mac = [0; 6];
    mac.copy_from_slice(&message[range]);
    mac
}

fn ip_at(message: &[u8; MESSAGE_LEN], range: Range<usize>) -> Ipv4Addr {
    let mut octets = [0; 4];
    octets.copy_from_slice(&message[range]);
    octets.into()
}

/// Length of an ARP message for IPv4 on Ethernet, in bytes.
pub const MESSAGE_LEN: usize = 28;
const FORMAT: Range<usize> = 0..6;
const OPERATION: Range<usize> = 6..8;
const SENDER_MAC: Range<usize> = 8..14;
const SENDER_IP: Range<usize> = 14..18;
const TARGET_MAC: Range<usize> = 18..24;
const TARGET_IP: Range<usize> = 24..28;

/// Hardware type 1, protocol 0x0800, address lengths 6 and 4.
const ETHERNET_IPV4: [u8; 6] = [0, 1, 0x08, 0, 6, 4];
const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];

#[cfg(test)]
mod tests {
    use etherparse::{ArpOperation, ArpPacketSlice};
    use proptest::prelude::*;
    use smoltcp::wire::{ArpPacket, ArpRepr, EthernetAddress};

    use super::*;

    const ENGINE: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const CHILD: [u8; 6] = [2, 0, 0, 0, 0, 0x64];
    const CHILD_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 42, 100);
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 42, 2);
    const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 42, 3);

    fn responder() -> ArpResponder {
        ArpResponder::new(ENGINE, &Config::builder().build().unwrap())
    }

    /// The responder on a link that stands for the host's network.
    fn proxy() -> ArpResponder {
        let config = Config::builder().addressing(Addressing::Copied);
        ArpResponder::new(ENGINE, &config.build().unwrap())
    }

    fn message(
        operation: smoltcp::wire::ArpOperation,
        mac: [u8; 6],
        sender: Ipv4Addr,
        target: Ipv4Addr,
    ) -> [u8; 28] {
        let mut bytes = [0; 28];
        ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: EthernetAddress(mac),
            source_protocol_addr: sender,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: target,
        }
        .emit(&mut ArpPacket::new_unchecked(&mut bytes[..]));
        bytes
    }

    fn request(sender: Ipv4Addr, target: Ipv4Addr) -> [u8; 28] {
        message(smoltcp::wire::ArpOperation::Request, CHILD, sender, target)
    }

    #[test]
    fn requests_for_gateway_and_dns_are_answered() {
        for target in [GATEWAY, DNS] {
            let outcome = responder().handle(&request(CHILD_IP, target)).unwrap();
            assert_eq!(outcome.sender, Some((CHILD_IP, CHILD)));
            let reply = outcome.reply.unwrap();
            assert_eq!(reply.dst_mac, CHILD);
            let arp = ArpPacketSlice::from_slice(&reply.payload).unwrap();
            assert_eq!(arp.operation(), ArpOperation::REPLY);
            assert_eq!(arp.sender_hw_addr(), ENGINE);
            assert_eq!(arp.sender_protocol_addr(), target.octets());
            assert_eq!(arp.target_hw_addr(), CHILD);
            assert_eq!(arp.target_protocol_addr(), CHILD_IP.octets());
        }
    }

    #[test]
    fn requests_for_other_addresses_are_only_learned_from() {
        for target in [CHILD_IP, Ipv4Addr::new(10, 0, 42, 1), Ipv4Addr::new(8, 8, 8, 8)] {
            let outcome = responder().handle(&request(CHILD_IP, target)).unwrap();
            assert_eq!(outcome, ArpOutcome { sender: Some((CHILD_IP, CHILD)), reply: None });
        }
    }

    #[test]
    fn a_copied_network_is_answered_for_but_for_the_child() {
        let other = Ipv4Addr::new(10, 0, 42, 77);
        let outside = Ipv4Addr::new(192, 0, 2, 1);
        let answers = |sender, target| proxy().handle(&request(sender, target)).unwrap().reply.is_some();
        assert!(answers(CHILD_IP, other) && answers(CHILD_IP, outside) && answers(CHILD_IP, GATEWAY));
        assert!(!answers(other, CHILD_IP), "the child's own address");
        assert!(!answers(Ipv4Addr::UNSPECIFIED, other), "a probe");
        assert!(!answers(other, other), "an announcement");
        assert!(!answers(CHILD_IP, Ipv4Addr::new(10, 0, 42, 255)));
    }

    #[test]
    fn a_probe_of_the_childs_address_meets_silence_and_teaches_nothing() {
        let outcome = responder().handle(&request(Ipv4Addr::UNSPECIFIED, CHILD_IP)).unwrap();
        assert_eq!(outcome, ArpOutcome { sender: None, reply: None });
    }

    #[test]
    fn a_probe_of_the_gateway_is_defended() {
        let outcome = responder().handle(&request(Ipv4Addr::UNSPECIFIED, GATEWAY)).unwrap();
        assert_eq!(outcome.sender, None);
        assert_eq!(outcome.reply.unwrap().dst_mac, CHILD);
    }

    #[test]
    fn replies_and_announcements_are_learned_from() {
        let reply = message(smoltcp::wire::ArpOperation::Reply, CHILD, CHILD_IP, GATEWAY);
        let learned = ArpOutcome { sender: Some((CHILD_IP, CHILD)), reply: None };
        assert_eq!(responder().handle(&reply), Ok(learned));
        assert_eq!(responder().handle(&request(CHILD_IP, CHILD_IP)), Ok(learned));
    }

    #[test]
    fn senders_that_no_child_may_be_are_not_learned() {
        for sender in [
            GATEWAY,
            DNS,
            Ipv4Addr::LOCALHOST,
            Ipv4Addr::BROADCAST,
            Ipv4Addr::new(224, 0, 0, 1),
            Ipv4Addr::new(10, 0, 42, 0),
            Ipv4Addr::new(10, 0, 42, 255),
        ] {
            assert_eq!(responder().handle(&request(sender, GATEWAY)).unwrap().sender, None);
        }
    }

    #[test]
    fn padding_is_ignored() {
        let mut padded = request(CHILD_IP, GATEWAY).to_vec();
        padded.resize(46, 0);
        assert!(responder().handle(&padded).unwrap().reply.is_some());
    }

    #[test]
    fn malformed_messages_are_told_apart() {
        let good = request(CHILD_IP, GATEWAY);
        let with = |index: usize, value: u8| {
            let mut bytes = good;
            bytes[index] = value;
            responder().handle(&bytes)
        };
        assert_eq!(responder().handle(&good[..27]), Err(DropReason::Truncated));
        assert_eq!(with(1, 6), Err(DropReason::Malformed));
        assert_eq!(with(2, 0x86), Err(DropReason::Malformed));
        assert_eq!(with(4, 8), Err(DropReason::Malformed));
        assert_eq!(with(7, 3), Err(DropReason::ArpIgnored));
        assert_eq!(with(8, 0x33), Err(DropReason::Malformed));
        let own = message(smoltcp::wire::ArpOperation::Request, ENGINE, CHILD_IP, GATEWAY);
        assert_eq!(responder().handle(&own), Err(DropReason::ArpIgnored));
    }

    #[test]
    fn the_engine_asks_from_the_gateway_address() {
        let bytes = responder().request(CHILD_IP);
        let arp = ArpPacketSlice::from_slice(&bytes).unwrap();
        assert_eq!(arp.operation(), ArpOperation::REQUEST);
        assert_eq!(arp.sender_hw_addr(), ENGINE);
        assert_eq!(arp.sender_protocol_addr(), GATEWAY.octets());
        assert_eq!(arp.target_hw_addr(), [0; 6]);
        assert_eq!(arp.target_protocol_addr(), CHILD_IP.octets());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = responder().handle(&bytes);
            let mut framed = ETHERNET_IPV4.to_vec();
            framed.extend(&bytes);
            let _ = responder().handle(&framed);
        }
    }
}
