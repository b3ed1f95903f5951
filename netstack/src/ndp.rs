//! Neighbour discovery and router advertisements (RFC 4861, RFC 4862, RFC 8106).
//!
//! # Theory of operation
//! *Goal:* the child finds the Ethernet address of the gateway and of the DNS server, configures itself by
//! SLAAC while IPv6 is offered, and stops using IPv6 at once when it no longer is.
//!
//! With [`Addressing::Copied`] the link stands for a network of the host's: solicitations for others are answered
//! as well, but for the child's addresses, link-local ones and probes.
//!
//! *Not handled:* redirects, advertisements of other routers, SEND, and duplicate address
//! detection of our own addresses (they are fixed; a child that probes one is answered). The
//! randomisation of advertisement times is left out: it keeps several routers on one link apart, and this
//! link has one.
//!
//! *States* of the advertisement:
//!
//! | State     | Unsolicited advertisements            | Answer to a router solicitation |
//! |-----------|---------------------------------------|---------------------------------|
//! | silent    | none                                  | none                            |
//! | offered   | 3 at 16 s intervals, then every 600 s | router lifetime 1800 s          |
//! | withdrawn | 3 at 3 s intervals, then none         | all lifetimes 0                 |
//!
//! It starts silent. [`NdpResponder::set_offered`] moves to offered, and from there to withdrawn and back.
//! Neighbour solicitations for our addresses are answered in every state, so that the packets which follow
//! can be refused by a prompt ICMP error; the router flag of the answer tells the state.
//!
//! *Timers:* one, the next unsolicited advertisement. Multicast advertisements keep 3 s between them (RFC
//! 4861 section 6.2.6), but the first answer to a solicitation from :: does not wait for an unsolicited one
//! that went out before the child listened. Solicitations with a source address are answered one by one.
//!
//! *Data flow:* ICMPv6 from the child → [`NdpResponder::handle`] → [`NdpOutcome`]: who spoke, and the
//! answer. Timer → [`NdpResponder::poll`]. The caller wraps messages in IPv6 with hop limit 255.

use std::net::{IpAddr, Ipv6Addr};
use std::ops::Range;

use smoltcp::wire::Icmpv6Packet;

use crate::config::{Addressing, Config, Ipv6Plan};
use crate::dhcp::search_list;
use crate::error::DropReason;
use crate::time::{Duration, Instant};

/// Neighbour discovery of the engine.
#[derive(Clone, Debug)]
pub struct NdpResponder {
    mac: [u8; 6],
    plan: Ipv6Plan,
    own: Vec<Ipv6Addr>,
    /// DNS servers to tell of; at most [`RDNSS_MAX`].
    dns: Vec<Ipv6Addr>,
    addressing: Addressing,
    mtu: u16,
    /// Search domains as a DNSSL option carries them, padded; empty without any.
    search: Vec<u8>,
    state: State,
    /// The next unsolicited advertisement, before the minimum distance is applied.
    next: Option<Instant>,
    /// Unsolicited advertisements that are still sent at the short interval.
    burst: u8,
    last_multicast: Option<Instant>,
    last_solicited: Option<Instant>,
}

/// Whether the child is offered IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// The host has a way to the IPv6 internet (or the user insists).
    Yes,
    /// It has none.
    No,
}

/// What a neighbour discovery message asks the stack to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NdpOutcome {
    /// An address and its Ethernet address, to be learned.
    pub sender: Option<(Ipv6Addr, [u8; 6])>,
    /// The answer.
    pub reply: Option<NdpMessage>,
}

/// A message to the child; the hop limit is 255.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NdpMessage {
    /// IPv6 source.
    pub src: Ipv6Addr,
    /// IPv6 destination.
    pub dst: Ipv6Addr,
    /// Ethernet destination; `None`: by the multicast group, or from the neighbour table.
    pub dst_mac: Option<[u8; 6]>,
    /// The ICMPv6 message with its checksum.
    pub icmpv6: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Silent,
    Offered,
    Withdrawn,
}

impl NdpResponder {
    /// Answers with `mac` for the IPv6 addresses of `config`. Nothing is offered yet.
    pub fn new(mac: [u8; 6], config: &Config) -> Self {
        let mut search = search_list(&config.dns().search, DNSSL_NAMES_MAX);
        search.resize(search.len().next_multiple_of(8), 0);
        let v6 = |address| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => Some(v6),
        };
        NdpResponder {
            mac,
            plan: *config.ipv6(),
            own: config.own_addresses().filter_map(v6).chain([Ipv6Plan::GATEWAY_LINK_LOCAL]).collect(),
            dns: config.announced_dns().filter_map(v6).take(RDNSS_MAX).collect(),
            addressing: config.addressing(),
            mtu: config.mtu(),
            search,
            state: State::Silent,
            next: None,
            burst: 0,
            last_multicast: None,
            last_solicited: None,
        }
    }

    /// Offers IPv6 to the child or takes it away. A change is advertised at once, at most 3 s after the
    /// last advertisement.
    pub fn set_offered(&mut self, now: Instant, offered: Offered) {
        let state = match (offered, self.state) {
            (Offered::Yes, _) => State::Offered,
            (Offered::No, State::Offered) => State::Withdrawn,
            (Offered::No, unchanged) => unchanged,
        };
        if state != self.state {
            self.state = state;
            self.next = Some(now);
            self.burst = BURST;
        }
    }

    /// Takes an ICMPv6 message whose checksum the caller has verified.
    ///
    /// # Errors
    /// [`DropReason::Truncated`], [`DropReason::Malformed`] and [`DropReason::InvalidSource`] for what RFC
    /// 4861 sections 6.1.1, 7.1.1 and 7.1.2 tell to discard; [`DropReason::IcmpIgnored`] for router
    /// advertisements, redirects and all that is not neighbour discovery.
    pub fn handle(
        &mut self,
        now: Instant,
        src: Ipv6Addr,
        dst: Ipv6Addr,
        hop_limit: u8,
        icmpv6: &[u8],
    ) -> Result<NdpOutcome, DropReason> {
        let &[kind, code, ..] = icmpv6 else { return Err(DropReason::Truncated) };
        if !matches!(kind, ROUTER_SOLICITATION | NEIGHBOR_SOLICITATION | NEIGHBOR_ADVERTISEMENT) {
            return Err(DropReason::IcmpIgnored);
        }
        if hop_limit != 255 || code != 0 {
            return Err(DropReason::Malformed);
        }
        if src.is_multicast() || src.is_loopback() {
            return Err(DropReason::InvalidSource);
        }
        match kind {
            ROUTER_SOLICITATION => self.handle_router_solicitation(now, src, icmpv6),
            NEIGHBOR_SOLICITATION => self.handle_neighbor_solicitation(src, dst, icmpv6),
            _ => self.handle_neighbor_advertisement(src, dst, icmpv6),
        }
    }

    /// The unsolicited advertisement that is due.
    pub fn poll(&mut self, now: Instant) -> Option<NdpMessage> {
        if self.poll_timeout()? > now {
            return None;
        }
        self.burst = self.burst.saturating_sub(1);
        self.next = match (self.state, self.burst) {
            (State::Offered, 0) => Some(now + INTERVAL),
            (State::Offered, _) => Some(now + INITIAL_INTERVAL),
            (State::Withdrawn, 0) | (State::Silent, _) => None,
            (State::Withdrawn, _) => Some(now + MIN_DISTANCE),
        };
        Some(self.multicast_advertisement(now))
    }

    /// When [`poll`](Self::poll) has something to say next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let earliest = self.last_multicast.map(|last| last + MIN_DISTANCE);
        self.next.map(|next| earliest.map_or(next, |earliest| next.max(earliest)))
    }

    /// A neighbour solicitation that asks for the Ethernet address of `target`.
    pub fn solicit(&self, target: Ipv6Addr) -> NdpMessage {
        let src = Ipv6Plan::GATEWAY_LINK_LOCAL;
        let dst = solicited_node(target);
        let message = self.neighbor_message(NEIGHBOR_SOLICITATION, 0, target, SOURCE_LINK_LAYER);
        NdpMessage { src, dst, dst_mac: None, icmpv6: with_checksum(message, src, dst) }
    }

    fn handle_router_solicitation(
        &mut self,
        now: Instant,
        src: Ipv6Addr,
        icmpv6: &[u8],
    ) -> Result<NdpOutcome, DropReason> {
        let options = icmpv6.get(RS_OPTIONS..).ok_or(DropReason::Truncated)?;
        let link_layer = link_layer_option(options, SOURCE_LINK_LAYER)?;
        if src.is_unspecified() && link_layer.is_some() {
            return Err(DropReason::Malformed);
        }
        let reply = if self.state == State::Silent {
            None
        } else if src.is_unspecified() {
            self.solicited_multicast(now)
        } else {
            Some(self.advertisement(src, link_layer.and_then(|mac| self.usable_mac(mac))))
        };
        Ok(NdpOutcome { sender: self.learned(src, link_layer), reply })
    }

    fn handle_neighbor_solicitation(
        &self,
        src: Ipv6Addr,
        dst: Ipv6Addr,
        icmpv6: &[u8],
    ) -> Result<NdpOutcome, DropReason> {
        let (target, options) = target_and_options(icmpv6)?;
        let link_layer = link_layer_option(options, SOURCE_LINK_LAYER)?;
        let probe = src.is_unspecified();
        if probe && (link_layer.is_some() || dst != solicited_node(target)) {
            return Err(DropReason::Malformed);
        }
        let reply = self.answers_for(target, src).then(|| {
            let (dst, flags) = if probe { (ALL_NODES, OVERRIDE) } else { (src, OVERRIDE | SOLICITED) };
            let router = if self.state == State::Offered { ROUTER } else { 0 };
            let message =
                self.neighbor_message(NEIGHBOR_ADVERTISEMENT, flags | router, target, TARGET_LINK_LAYER);
            NdpMessage {
                src: target,
                dst,
                dst_mac: link_layer.and_then(|mac| self.usable_mac(mac)),
                icmpv6: with_checksum(message, target, dst),
            }
        });
        Ok(NdpOutcome { sender: self.learned(src, link_layer), reply })
    }

    fn handle_neighbor_advertisement(
        &self,
        src: Ipv6Addr,
        dst: Ipv6Addr,
        icmpv6: &[u8],
    ) -> Result<NdpOutcome, DropReason> {
        let (target, options) = target_and_options(icmpv6)?;
        let link_layer = link_layer_option(options, TARGET_LINK_LAYER)?;
        if src.is_unspecified() {
            return Err(DropReason::InvalidSource);
        }
        if dst.is_multicast() && icmpv6[FLAGS] & SOLICITED != 0 {
            return Err(DropReason::Malformed);
        }
        Ok(NdpOutcome { sender: self.learned(target, link_layer), reply: None })
    }

    /// The answer to a solicitation from ::, or a date for it when there was one just now.
    fn solicited_multicast(&mut self, now: Instant) -> Option<NdpMessage> {
        if self.last_solicited.is_some_and(|last| now < last + MIN_DISTANCE) {
            self.next = Some(self.next.map_or(now, |next| next.min(now)));
            return None;
        }
        self.last_solicited = Some(now);
        Some(self.multicast_advertisement(now))
    }

    fn multicast_advertisement(&mut self, now: Instant) -> NdpMessage {
        self.last_multicast = Some(now);
        self.advertisement(ALL_NODES, None)
    }

    /// RFC 4861 section 4.2. While withdrawn, the preferred lifetime 0 deprecates the child's address
    /// (its valid lifetime cannot be cut below two hours, RFC 4862 section 5.5.3 e) and the valid lifetime
    /// 0 keeps a child without one from forming it.
    fn advertisement(&self, dst: Ipv6Addr, dst_mac: Option<[u8; 6]>) -> NdpMessage {
        let offered = self.state == State::Offered;
        let lifetime = |seconds: u32| if offered { seconds } else { 0 }.to_be_bytes();
        let [_, _, router_lifetime @ ..] = lifetime(ROUTER_LIFETIME);

        let mut message = vec![ROUTER_ADVERTISEMENT, 0, 0, 0];
        message.extend([HOP_LIMIT, if offered { OTHER_CONFIGURATION } else { 0 }]);
        message.extend(router_lifetime);
        message.extend([0; 8]); // reachable time and retransmission timer: the child's own

        // SLAAC needs 64 bits for itself (RFC 4862 section 5.5.3 d).
        let autonomous = if self.plan.subnet.prefix() == 64 { AUTONOMOUS } else { 0 };
        message.extend([PREFIX_INFORMATION, 4, self.plan.subnet.prefix(), ON_LINK | autonomous]);
        message.extend(lifetime(PREFIX_VALID));
        message.extend(lifetime(PREFIX_PREFERRED));
        message.extend([0; 4]);
        message.extend(self.plan.subnet.network().octets());

        message.extend([MTU, 1, 0, 0]);
        message.extend(u32::from(self.mtu).to_be_bytes());

        if !self.dns.is_empty() {
            // At most RDNSS_MAX * 2 + 1 units, which fit a byte.
            message.extend([RDNSS, (1 + 2 * self.dns.len()) as u8, 0, 0]);
            message.extend(lifetime(DNS_LIFETIME));
            message.extend(self.dns.iter().flat_map(|server| server.octets()));
        }

        if !self.search.is_empty() {
            // At most DNSSL_NAMES_MAX / 8 + 1 units, which fit a byte.
            message.extend([DNSSL, (1 + self.search.len() / 8) as u8, 0, 0]);
            message.extend(lifetime(DNS_LIFETIME));
            message.extend(&self.search);
        }

        message.extend([SOURCE_LINK_LAYER, 1]);
        message.extend(self.mac);

        let src = Ipv6Plan::GATEWAY_LINK_LOCAL;
        NdpMessage { src, dst, dst_mac, icmpv6: with_checksum(message, src, dst) }
    }

    /// A solicitation or advertisement with our Ethernet address in `option`.
    fn neighbor_message(&self, kind: u8, flags: u8, target: Ipv6Addr, option: u8) -> Vec<u8> {
        let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
        message.extend(target.octets());
        message.extend([option, 1]);
        message.extend(self.mac);
        message
    }

    fn owns(&self, address: Ipv6Addr) -> bool {
        self.own.contains(&address)
    }

    fn answers_for(&self, target: Ipv6Addr, src: Ipv6Addr) -> bool {
        let proxy = self.addressing == Addressing::Copied && !src.is_unspecified() && src != target;
        let other = target != self.plan.child && !target.is_unicast_link_local() && !target.is_loopback();
        self.owns(target) || (proxy && other && !target.is_unspecified())
    }

    fn learned(&self, address: Ipv6Addr, link_layer: Option<[u8; 6]>) -> Option<(Ipv6Addr, [u8; 6])> {
        let mac = self.usable_mac(link_layer?)?;
        let invalid = address.is_unspecified() || address.is_loopback() || address.is_multicast();
        (!invalid && !self.owns(address)).then_some((address, mac))
    }

    fn usable_mac(&self, mac: [u8; 6]) -> Option<[u8; 6]> {
        (mac[0] & 1 == 0 && mac != [0; 6] && mac != self.mac).then_some(mac)
    }
}

/// The target of a solicitation or advertisement, and the options behind it.
fn target_and_options(icmpv6: &[u8]) -> Result<(Ipv6Addr, &[u8]), DropReason> {
    let (target, options) =
        icmpv6.get(TARGET..).and_then(<[u8]>::split_first_chunk::<16>).ok_or(DropReason::Truncated)?;
    let target = Ipv6Addr::from(*target);
    if target.is_multicast() {
        return Err(DropReason::Malformed);
    }
    Ok((target, options))
}

/// The Ethernet address in the first option `wanted`, after all options were found well-formed.
fn link_layer_option(mut options: &[u8], wanted: u8) -> Result<Option<[u8; 6]>, DropReason> {
    let mut found = None;
    while let &[kind, units, ..] = options {
        let length = usize::from(units) * 8;
        if length == 0 {
            return Err(DropReason::Malformed);
        }
        let (option, rest) = options.split_at_checked(length).ok_or(DropReason::Truncated)?;
        if kind == wanted && length == 8 && found.is_none() {
            found = option[LINK_LAYER].first_chunk().copied();
        }
        options = rest;
    }
    if options.is_empty() { Ok(found) } else { Err(DropReason::Truncated) }
}

/// RFC 4291 section 2.7.1.
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::from([0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

fn with_checksum(mut message: Vec<u8>, src: Ipv6Addr, dst: Ipv6Addr) -> Vec<u8> {
    Icmpv6Packet::new_unchecked(&mut message).fill_checksum(&src, &dst);
    message
}

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;

/// Where the options of a router solicitation begin.
const RS_OPTIONS: usize = 8;
/// Flags of a neighbour advertisement.
const FLAGS: usize = 4;
/// Where the target of a neighbour solicitation or advertisement begins.
const TARGET: usize = 8;
/// Ethernet address in a link-layer option.
const LINK_LAYER: Range<usize> = 2..8;

// Options.
const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;
const PREFIX_INFORMATION: u8 = 3;
const MTU: u8 = 5;
const RDNSS: u8 = 25;
const DNSSL: u8 = 31;

// Flags of neighbour advertisements, of router advertisements, of prefixes.
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
const OTHER_CONFIGURATION: u8 = 0x40;
const ON_LINK: u8 = 0x80;
const AUTONOMOUS: u8 = 0x40;

const HOP_LIMIT: u8 = 64;
/// Seconds; three intervals, RFC 4861 section 6.2.1.
const ROUTER_LIFETIME: u32 = 1800;
/// Seconds; RFC 9096 section 3.4 (ND_PREFERRED_LIMIT).
const PREFIX_PREFERRED: u32 = 2700;
/// Seconds; RFC 9096 section 3.4 (ND_VALID_LIMIT).
const PREFIX_VALID: u32 = 5400;
/// Seconds; RFC 8106 section 5.1.
const DNS_LIFETIME: u32 = 1800;
/// More DNS servers than resolvers look at (resolv.conf(5), MAXNS).
const RDNSS_MAX: usize = 8;
/// MaxRtrAdvInterval.
const INTERVAL: Duration = Duration::from_secs(600);
/// MAX_INITIAL_RTR_ADVERT_INTERVAL.
const INITIAL_INTERVAL: Duration = Duration::from_secs(16);
/// MIN_DELAY_BETWEEN_RAS.
const MIN_DISTANCE: Duration = Duration::from_secs(3);
/// MAX_INITIAL_RTR_ADVERTISEMENTS and MAX_FINAL_RTR_ADVERTISEMENTS.
const BURST: u8 = 3;
/// What the other parts of an advertisement (16 + 32 + 8 + 24 + 8 + 8 bytes) leave to search domains on a
/// link with the minimum MTU of 1280; a multiple of 8.
const DNSSL_NAMES_MAX: usize = 1144;

#[cfg(test)]
mod tests {
    use etherparse::{Icmpv6Slice, Icmpv6Type};
    use proptest::prelude::*;
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{
        EthernetAddress, Icmpv6Repr, NdiscNeighborFlags, NdiscPrefixInfoFlags, NdiscRepr, NdiscRouterFlags,
    };

    use super::*;
    use crate::config::{DnsConfig, DnsService};

    const ENGINE: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const CHILD: [u8; 6] = [2, 0, 0, 0, 0, 0x64];
    const CHILD_IP: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x64);
    const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfd42, 0x10, 0x42, 0, 0, 0, 0, 2);
    const DNS: Ipv6Addr = Ipv6Addr::new(0xfd42, 0x10, 0x42, 0, 0, 0, 0, 3);
    const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

    fn responder(search: &[&str]) -> NdpResponder {
        let dns = DnsConfig { search: search.iter().map(|&s| s.to_owned()).collect(), ..Default::default() };
        NdpResponder::new(ENGINE, &Config::builder().dns(dns).mtu(9000).build().unwrap())
    }

    fn offered() -> NdpResponder {
        let mut ndp = responder(&[]);
        ndp.set_offered(at(0), Offered::Yes);
        ndp
    }

    fn at(millis: i64) -> Instant {
        Instant::from_millis(millis)
    }

    fn bytes(repr: NdiscRepr<'_>, src: Ipv6Addr, dst: Ipv6Addr) -> Vec<u8> {
        let repr = Icmpv6Repr::Ndisc(repr);
        let mut bytes = vec![0; repr.buffer_len()];
        repr.emit(&src, &dst, &mut Icmpv6Packet::new_unchecked(&mut bytes), &ChecksumCapabilities::default());
        bytes
    }

    fn solicitation(target: Ipv6Addr, lladdr: Option<[u8; 6]>) -> Vec<u8> {
        let lladdr = lladdr.map(|mac| EthernetAddress(mac).into());
        bytes(NdiscRepr::NeighborSolicit { target_addr: target, lladdr }, CHILD_IP, solicited_node(target))
    }

    fn router_solicitation(lladdr: Option<[u8; 6]>) -> Vec<u8> {
        let lladdr = lladdr.map(|mac| EthernetAddress(mac).into());
        bytes(NdiscRepr::RouterSolicit { lladdr }, CHILD_IP, ALL_ROUTERS)
    }

    /// Judged by etherparse (checksum) and read by smoltcp.
    #[track_caller]
    fn parse(message: &NdpMessage) -> NdiscRepr<'_> {
        let slice = Icmpv6Slice::from_slice(&message.icmpv6).unwrap();
        assert!(slice.is_checksum_valid(message.src.octets(), message.dst.octets()));
        let packet = Icmpv6Packet::new_checked(&message.icmpv6[..]).unwrap();
        match Icmpv6Repr::parse(&message.src, &message.dst, &packet, &ChecksumCapabilities::default()) {
            Ok(Icmpv6Repr::Ndisc(repr)) => repr,
            other => panic!("not neighbour discovery: {other:?}"),
        }
    }

    #[track_caller]
    fn router_lifetime(message: &NdpMessage) -> u64 {
        match parse(message) {
            NdiscRepr::RouterAdvert { router_lifetime, .. } => router_lifetime.secs(),
            other => panic!("not a router advertisement: {other:?}"),
        }
    }

    #[test]
    fn solicitations_for_our_addresses_are_answered() {
        for target in [GATEWAY, DNS, Ipv6Plan::GATEWAY_LINK_LOCAL] {
            let message = solicitation(target, Some(CHILD));
            let outcome = offered().handle(at(0), CHILD_IP, solicited_node(target), 255, &message).unwrap();
            assert_eq!(outcome.sender, Some((CHILD_IP, CHILD)));
            let reply = outcome.reply.unwrap();
            assert_eq!((reply.src, reply.dst, reply.dst_mac), (target, CHILD_IP, Some(CHILD)));
            assert_eq!(
                parse(&reply),
                NdiscRepr::NeighborAdvert {
                    flags: NdiscNeighborFlags::ROUTER
                        | NdiscNeighborFlags::SOLICITED
                        | NdiscNeighborFlags::OVERRIDE,
                    target_addr: target,
                    lladdr: Some(EthernetAddress(ENGINE).into()),
                }
            );
        }
    }

    #[test]
    fn an_engine_that_does_not_offer_ipv6_is_no_router() {
        let message = solicitation(GATEWAY, None);
        let outcome = responder(&[]).handle(at(0), CHILD_IP, GATEWAY, 255, &message).unwrap();
        let reply = outcome.reply.unwrap();
        assert_eq!(reply.dst_mac, None);
        let NdiscRepr::NeighborAdvert { flags, .. } = parse(&reply) else { panic!() };
        assert!(!flags.contains(NdiscNeighborFlags::ROUTER));
    }

    #[test]
    fn solicitations_for_other_addresses_meet_silence() {
        let target = Ipv6Addr::new(0xfd42, 0x10, 0x42, 0, 0, 0, 0, 0x100);
        let message = solicitation(target, Some(CHILD));
        let outcome = offered().handle(at(0), CHILD_IP, solicited_node(target), 255, &message).unwrap();
        assert_eq!(outcome, NdpOutcome { sender: Some((CHILD_IP, CHILD)), reply: None });
    }

    #[test]
    fn a_copied_network_is_answered_for_but_for_the_child_and_the_link() {
        let config = Config::builder().addressing(Addressing::Copied).build().unwrap();
        let mut ndp = NdpResponder::new(ENGINE, &config);
        let mut answers = |src, target| {
            let message = solicitation(target, Some(CHILD).filter(|_| !Ipv6Addr::is_unspecified(&src)));
            ndp.handle(at(0), src, solicited_node(target), 255, &message).unwrap().reply.is_some()
        };
        let (other, none) = ("2001:db8::7".parse().unwrap(), Ipv6Addr::UNSPECIFIED);
        assert!(answers(CHILD_IP, other) && answers(CHILD_IP, GATEWAY));
        assert!(!answers(none, other), "a probe");
        assert!(!answers(CHILD_IP, config.ipv6().child));
        assert!(!answers(CHILD_IP, "fe80::99".parse().unwrap()));
    }

    #[test]
    fn what_is_advertised_follows_from_the_settings() {
        let advertised = |config: crate::config::ConfigBuilder| {
            let mut ndp = NdpResponder::new(ENGINE, &config.build().unwrap());
            ndp.set_offered(at(0), Offered::Yes);
            ndp.poll(at(0)).unwrap().icmpv6
        };
        // The option, its length in units of 8 bytes.
        let rdnss = |message: &[u8]| {
            let mut options = &message[16..];
            let mut found = None;
            while let [kind, units, ..] = *options {
                found = found.or(Some(units).filter(|_| kind == RDNSS));
                options = &options[usize::from(units) * 8..];
            }
            found
        };
        let dns = |service, addresses| DnsConfig { service, addresses, ..Default::default() };
        let further = vec!["fe80::53".parse().unwrap(), [169, 254, 1, 1].into()];
        let two = advertised(Config::builder().dns(dns(DnsService::On, further.clone())));
        assert_eq!(rdnss(&two), Some(5), "both IPv6 servers");
        assert_eq!(rdnss(&advertised(Config::builder().dns(dns(DnsService::Off, further)))), None);
        let plan = Ipv6Plan {
            subnet: "fd42:10:42::/48".parse().unwrap(),
            ..*Config::builder().build().unwrap().ipv6()
        };
        let wide = advertised(Config::builder().addressing(Addressing::Copied).ipv6(plan));
        assert_eq!((wide[16], wide[18], wide[19]), (PREFIX_INFORMATION, 48, ON_LINK), "no SLAAC");
    }

    #[test]
    fn probes_are_answered_for_our_addresses_only() {
        let probe = |target: Ipv6Addr| {
            let message = solicitation(target, None);
            offered().handle(at(0), Ipv6Addr::UNSPECIFIED, solicited_node(target), 255, &message).unwrap()
        };
        assert_eq!(probe(CHILD_IP), NdpOutcome::default());
        let outcome = probe(GATEWAY);
        assert_eq!(outcome.sender, None);
        let reply = outcome.reply.unwrap();
        assert_eq!(reply.dst, ALL_NODES);
        let NdiscRepr::NeighborAdvert { flags, .. } = parse(&reply) else { panic!() };
        assert!(!flags.contains(NdiscNeighborFlags::SOLICITED));
    }

    #[test]
    fn invalid_messages_are_discarded() {
        let message = solicitation(GATEWAY, Some(CHILD));
        let group = solicited_node(GATEWAY);
        let handle = |src, dst, hop_limit, message: &[u8]| {
            offered().handle(at(0), src, dst, hop_limit, message).map(drop)
        };
        let malformed = Err(DropReason::Malformed);
        assert_eq!(handle(CHILD_IP, group, 254, &message), malformed);
        assert_eq!(handle(ALL_NODES, group, 255, &message), Err(DropReason::InvalidSource));
        // A probe with a link-layer address, and one to a wrong group.
        assert_eq!(handle(Ipv6Addr::UNSPECIFIED, group, 255, &message), malformed);
        let probe = solicitation(GATEWAY, None);
        assert_eq!(handle(Ipv6Addr::UNSPECIFIED, GATEWAY, 255, &probe), malformed);
        let with = |index: usize, value: u8| {
            let mut changed = message.clone();
            changed[index] = value;
            handle(CHILD_IP, group, 255, &changed)
        };
        assert_eq!(with(1, 1), malformed);
        assert_eq!(with(8, 0xff), malformed);
        assert_eq!(with(25, 0), malformed);
        assert_eq!(with(25, 2), Err(DropReason::Truncated));
        assert_eq!(with(0, ROUTER_ADVERTISEMENT), Err(DropReason::IcmpIgnored));
        for length in [0, 1, 7, 23, 25, 31] {
            assert_eq!(handle(CHILD_IP, group, 255, &message[..length]), Err(DropReason::Truncated));
        }
        let from_nowhere = router_solicitation(Some(CHILD));
        assert_eq!(handle(Ipv6Addr::UNSPECIFIED, ALL_ROUTERS, 255, &from_nowhere), malformed);
    }

    #[test]
    fn advertisements_teach_the_neighbour_table() {
        let advertisement = |target_addr: Ipv6Addr, flags, mac: [u8; 6]| {
            let lladdr = Some(EthernetAddress(mac).into());
            bytes(NdiscRepr::NeighborAdvert { flags, target_addr, lladdr }, CHILD_IP, GATEWAY)
        };
        let handle = |dst, message: &[u8]| offered().handle(at(0), CHILD_IP, dst, 255, message);
        let solicited = advertisement(CHILD_IP, NdiscNeighborFlags::SOLICITED, CHILD);
        let learned = NdpOutcome { sender: Some((CHILD_IP, CHILD)), reply: None };
        assert_eq!(handle(GATEWAY, &solicited), Ok(learned.clone()));
        assert_eq!(handle(ALL_NODES, &solicited), Err(DropReason::Malformed));
        let unsolicited = advertisement(CHILD_IP, NdiscNeighborFlags::OVERRIDE, CHILD);
        assert_eq!(handle(ALL_NODES, &unsolicited), Ok(learned));
        for (address, mac) in [(GATEWAY, CHILD), (CHILD_IP, [0; 6]), (CHILD_IP, [1; 6]), (CHILD_IP, ENGINE)] {
            let refused = advertisement(address, NdiscNeighborFlags::OVERRIDE, mac);
            assert_eq!(handle(ALL_NODES, &refused), Ok(NdpOutcome::default()));
        }
    }

    #[test]
    fn the_advertisement_says_what_was_configured() {
        let mut ndp = responder(&["corp.example", "x.test."]);
        ndp.set_offered(at(0), Offered::Yes);
        let message = ndp.poll(at(0)).unwrap();
        assert_eq!((message.src, message.dst), (Ipv6Plan::GATEWAY_LINK_LOCAL, ALL_NODES));
        let NdiscRepr::RouterAdvert { hop_limit, flags, router_lifetime, lladdr, mtu, prefix_info, .. } =
            parse(&message)
        else {
            panic!()
        };
        assert_eq!((hop_limit, flags), (64, NdiscRouterFlags::OTHER));
        assert_eq!((router_lifetime.secs(), mtu), (1800, Some(9000)));
        assert_eq!(lladdr, Some(EthernetAddress(ENGINE).into()));
        let prefix = prefix_info.unwrap();
        assert_eq!(
            (prefix.prefix, prefix.prefix_len),
            (Ipv6Addr::new(0xfd42, 0x10, 0x42, 0, 0, 0, 0, 0), 64)
        );
        assert_eq!(prefix.flags, NdiscPrefixInfoFlags::ON_LINK | NdiscPrefixInfoFlags::ADDRCONF);
        assert_eq!((prefix.preferred_lifetime.secs(), prefix.valid_lifetime.secs()), (2700, 5400));

        // Hand-checked against RFC 4861, RFC 8106; the checksum has been judged above.
        #[rustfmt::skip]
        let expected = [
            &[134, 0][..],
            &[64, 0x40, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0],
            &[3, 4, 64, 0xc0, 0, 0, 0x15, 0x18, 0, 0, 0x0a, 0x8c, 0, 0, 0, 0,
              0xfd, 0x42, 0, 0x10, 0, 0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[5, 1, 0, 0, 0, 0, 0x23, 0x28],
            &[25, 3, 0, 0, 0, 0, 0x07, 0x08, 0xfd, 0x42, 0, 0x10, 0, 0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3],
            &[31, 4, 0, 0, 0, 0, 0x07, 0x08],
            b"\x04corp\x07example\0\x01x\x04test\0\0\0",
            &[1, 1, 2, 0, 0, 0, 0, 2],
        ].concat();
        assert_eq!([&message.icmpv6[..2], &message.icmpv6[4..]].concat(), expected);

        let slice = Icmpv6Slice::from_slice(&message.icmpv6).unwrap();
        let Icmpv6Type::RouterAdvertisement(header) = slice.icmp_type() else { panic!() };
        assert_eq!((header.cur_hop_limit, header.router_lifetime), (64, 1800));
        assert!(!header.managed_address_config && header.other_config);
    }

    #[test]
    fn the_longest_search_list_still_fits_the_smallest_mtu() {
        let names: Vec<String> = (0..60).map(|n| format!("{n:02}.{}.example", "a".repeat(40))).collect();
        let mut ndp = responder(&names.iter().map(String::as_str).collect::<Vec<_>>());
        ndp.set_offered(at(0), Offered::Yes);
        let message = ndp.poll(at(0)).unwrap();
        assert!((1100..=1240).contains(&message.icmpv6.len()), "{}", message.icmpv6.len());
        assert_eq!(router_lifetime(&message), 1800);
    }

    #[test]
    fn unsolicited_advertisements_keep_their_schedule() {
        let mut ndp = responder(&[]);
        assert_eq!(ndp.poll_timeout(), None);
        ndp.set_offered(at(500), Offered::Yes);
        ndp.set_offered(at(600), Offered::Yes);
        for due in [500, 16_500, 32_500, 632_500, 1_232_500] {
            assert_eq!(ndp.poll_timeout(), Some(at(due)));
            assert_eq!(ndp.poll(at(due - 1)), None);
            assert_eq!(router_lifetime(&ndp.poll(at(due)).unwrap()), 1800);
        }
    }

    #[test]
    fn withdrawal_is_told_three_times_and_then_only_on_request() {
        let mut ndp = offered();
        ndp.poll(at(0)).unwrap();
        ndp.set_offered(at(1_000), Offered::No);
        for due in [3_000, 6_000, 9_000] {
            assert_eq!(ndp.poll_timeout(), Some(at(due)));
            let message = ndp.poll(at(due)).unwrap();
            let NdiscRepr::RouterAdvert { flags, router_lifetime, prefix_info, .. } = parse(&message) else {
                panic!()
            };
            assert_eq!((flags, router_lifetime.secs()), (NdiscRouterFlags::empty(), 0));
            let prefix = prefix_info.unwrap();
            assert_eq!((prefix.preferred_lifetime.secs(), prefix.valid_lifetime.secs()), (0, 0));
            assert_eq!(message.icmpv6[56..64], [25, 3, 0, 0, 0, 0, 0, 0]);
        }
        assert_eq!(ndp.poll_timeout(), None);
        let outcome = ndp.handle(at(10_000), CHILD_IP, ALL_ROUTERS, 255, &router_solicitation(None)).unwrap();
        assert_eq!(router_lifetime(&outcome.reply.unwrap()), 0);
        ndp.set_offered(at(20_000), Offered::Yes);
        assert_eq!(router_lifetime(&ndp.poll(at(20_000)).unwrap()), 1800);
    }

    #[test]
    fn nothing_is_advertised_before_ipv6_is_offered() {
        let mut ndp = responder(&[]);
        ndp.set_offered(at(0), Offered::No);
        assert_eq!(ndp.poll(at(0)), None);
        let message = router_solicitation(Some(CHILD));
        let outcome = ndp.handle(at(0), CHILD_IP, ALL_ROUTERS, 255, &message).unwrap();
        assert_eq!(outcome, NdpOutcome { sender: Some((CHILD_IP, CHILD)), reply: None });
    }

    #[test]
    fn a_router_solicitation_with_an_address_is_answered_to_it_at_once() {
        let mut ndp = offered();
        ndp.poll(at(0)).unwrap();
        let message = router_solicitation(Some(CHILD));
        for now in [1, 2] {
            let outcome = ndp.handle(at(now), CHILD_IP, ALL_ROUTERS, 255, &message).unwrap();
            assert_eq!(outcome.sender, Some((CHILD_IP, CHILD)));
            let reply = outcome.reply.unwrap();
            assert_eq!((reply.dst, reply.dst_mac), (CHILD_IP, Some(CHILD)));
            assert_eq!(router_lifetime(&reply), 1800);
        }
        assert_eq!(ndp.poll_timeout(), Some(at(16_000)));
    }

    #[test]
    fn answers_to_solicitations_from_nowhere_are_multicast_and_bounded_in_rate() {
        let mut ndp = offered();
        ndp.poll(at(0)).unwrap();
        let message = router_solicitation(None);
        let solicit = |ndp: &mut NdpResponder, now| {
            ndp.handle(at(now), Ipv6Addr::UNSPECIFIED, ALL_ROUTERS, 255, &message).unwrap().reply
        };
        assert_eq!(solicit(&mut ndp, 100).unwrap().dst, ALL_NODES);
        for now in 101..200 {
            assert_eq!(solicit(&mut ndp, now), None);
        }
        assert_eq!(ndp.poll_timeout(), Some(at(3_100)));
        assert!(ndp.poll(at(3_100)).is_some());
    }

    #[test]
    fn the_engine_solicits_from_its_link_local_address() {
        let target = Ipv6Addr::new(0xfd42, 0x10, 0x42, 0, 0, 0, 0, 0x100);
        let message = offered().solicit(target);
        assert_eq!(message.src, Ipv6Plan::GATEWAY_LINK_LOCAL);
        assert_eq!(message.dst, "ff02::1:ff00:100".parse::<Ipv6Addr>().unwrap());
        assert_eq!(
            parse(&message),
            NdiscRepr::NeighborSolicit { target_addr: target, lladdr: Some(EthernetAddress(ENGINE).into()) }
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            kind in 130..140u8,
            bytes in proptest::collection::vec(any::<u8>(), 0..80),
            src in any::<u128>(), dst in any::<u128>(),
        ) {
            let mut ndp = offered();
            let (src, dst) = (Ipv6Addr::from(src), Ipv6Addr::from(dst));
            let _ = ndp.handle(at(0), src, dst, 255, &bytes);
            let mut typed = vec![kind, 0];
            typed.extend(&bytes);
            if let Ok(outcome) = ndp.handle(at(0), src, dst, 255, &typed)
                && let Some(reply) = outcome.reply
            {
                parse(&reply);
            }
        }
    }
}
