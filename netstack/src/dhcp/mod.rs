//! DHCP server (RFC 2131, RFC 2132).
//!
//! # Theory of operation
//! *Goal:* the child configures IPv4 with whatever client it has (udhcpc, dhclient, dhcpcd,
//! systemd-networkd). The engine is the only server on the link, so it is authoritative: a client that asks
//! for an address it cannot have is refused at once instead of left to time out.
//!
//! *Not handled:* BOOTP, relay agents (`giaddr`), option overload and split options in requests, rapid
//! commit, lease queries, forced renewal. Leases do not outlive the engine; a client that comes back keeps
//! its address if it is free.
//!
//! *States:* per address, in [`lease`]. The first address of the table is the child's of the configuration;
//! further clients get the pool's ([`DhcpOrder`] says whether the child's is given out at all; with
//! [`Addressing::Copied`] it is the only one). Per message (RFC 2131 section 4.3):
//!
//! | Message                            | Told apart by                    | Answer                       |
//! |------------------------------------|----------------------------------|------------------------------|
//! | DISCOVER                           |                                  | OFFER, held for 60 s         |
//! | REQUEST, selecting                 | server identifier                | ACK or NAK                   |
//! | REQUEST, init-reboot               | requested address, no `ciaddr`   | ACK or NAK                   |
//! | REQUEST, renewing or rebinding     | `ciaddr`                         | ACK or NAK                   |
//! | DECLINE                            |                                  | none; kept out for 10 min    |
//! | RELEASE                            |                                  | none                         |
//! | INFORM                             |                                  | ACK without address or lease |
//!
//! *Timers:* none; see [`lease`].
//!
//! *Data flow:* UDP payload from port 68 → [`DhcpServer::handle`] → [`DhcpReply`], which the caller sends
//! from the gateway's address, port 67, to port 68.

pub mod lease;
pub mod v6;

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;

use crate::config::{Addressing, Config, DhcpOrder, Ipv4Plan};
use crate::error::DropReason;
use crate::time::{Duration, Instant};
use lease::{ClientKey, LeaseTable};

/// Gives the child addresses and tells it how the link is set up.
#[derive(Clone, Debug)]
pub struct DhcpServer {
    mac: [u8; 6],
    plan: Ipv4Plan,
    /// As the option carries them; empty without any.
    dns: Vec<u8>,
    mtu: u16,
    /// First search domain, without the final dot; empty without any.
    domain: Vec<u8>,
    search: Vec<String>,
    leases: LeaseTable,
}

/// An answer to the child, from the gateway's address and port 67 to port 68.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DhcpReply {
    /// IPv4 destination.
    pub dst: Ipv4Addr,
    /// Ethernet destination: a client that has no address yet cannot answer ARP.
    pub dst_mac: [u8; 6],
    /// The UDP payload.
    pub payload: Vec<u8>,
}

impl DhcpServer {
    /// Serves the addresses of `config` as the engine with the Ethernet address `mac`.
    pub fn new(mac: [u8; 6], config: &Config) -> Self {
        let plan = *config.ipv4();
        let (first, last) = plan.dhcp_pool();
        let pool = (u32::from(first)..=u32::from(last))
            .map(Ipv4Addr::from)
            .filter(|&address| !config.own_addresses().any(|own| own == address));
        let leases = match (config.addressing(), config.dhcp_order()) {
            (Addressing::Copied, _) => LeaseTable::new([plan.child]),
            (Addressing::Subnet, DhcpOrder::Child) => LeaseTable::new([plan.child].into_iter().chain(pool)),
            (Addressing::Subnet, DhcpOrder::Pool) => LeaseTable::new(pool),
        };
        let dns = config.announced_dns().filter_map(|address| match address {
            IpAddr::V4(v4) => Some(v4.octets()),
            IpAddr::V6(_) => None,
        });
        let search = &config.dns().search;
        let domain = search.first().map_or("", |name| name.strip_suffix('.').unwrap_or(name));
        DhcpServer {
            mac,
            plan,
            dns: dns.take(SERVERS_MAX).flatten().collect(),
            mtu: config.mtu(),
            domain: domain.as_bytes().to_vec(),
            search: search.clone(),
            leases,
        }
    }

    /// Takes the UDP payload of a datagram to port 67. `Ok(None)` is a message that wants no answer.
    ///
    /// # Errors
    /// [`DropReason::Truncated`] and [`DropReason::Malformed`] for what is not a DHCP message;
    /// [`DropReason::DhcpIgnored`] for messages of BOOTP, relays and other servers' clients, for requests
    /// that lack a required field, and for a DISCOVER when all addresses are taken.
    pub fn handle(&mut self, now: Instant, payload: &[u8]) -> Result<Option<DhcpReply>, DropReason> {
        let request = Request::parse(payload)?;
        if request.mac == self.mac {
            return Err(DropReason::DhcpIgnored);
        }
        match request.kind {
            DISCOVER => self.discover(now, &request).map(Some),
            REQUEST => self.request(now, &request).map(Some),
            DECLINE => {
                self.require_server(&request)?;
                let address = request.requested.ok_or(DropReason::DhcpIgnored)?;
                self.leases.decline(now, &request.client, address, QUARANTINE);
                Ok(None)
            }
            RELEASE => {
                self.require_server(&request)?;
                self.leases.release(now, &request.client, request.ciaddr);
                Ok(None)
            }
            INFORM => self.inform(&request).map(Some),
            _ => Err(DropReason::DhcpIgnored),
        }
    }

    fn discover(&mut self, now: Instant, request: &Request<'_>) -> Result<DhcpReply, DropReason> {
        let address = self
            .leases
            .offer(now, &request.client, request.requested, OFFER_HOLD)
            .ok_or(DropReason::DhcpIgnored)?;
        Ok(self.grant(OFFER, request, address))
    }

    fn request(&mut self, now: Instant, request: &Request<'_>) -> Result<DhcpReply, DropReason> {
        if request.server.is_some_and(|server| server != self.plan.gateway) {
            // The client took another server's offer (RFC 2131 section 4.3.2).
            self.leases.withdraw_offer(now, &request.client);
            return Err(DropReason::DhcpIgnored);
        }
        let address = if request.ciaddr.is_unspecified() {
            request.requested.ok_or(DropReason::DhcpIgnored)?
        } else {
            request.ciaddr
        };
        match self.leases.bind(now, &request.client, address, request.lease_time()) {
            Ok(()) => Ok(self.grant(ACK, request, address)),
            Err(lease::NotAvailable) => Ok(self.refuse(request)),
        }
    }

    fn inform(&self, request: &Request<'_>) -> Result<DhcpReply, DropReason> {
        if request.ciaddr.is_unspecified() {
            return Err(DropReason::DhcpIgnored);
        }
        let mut reply = self.reply(ACK, request, Ipv4Addr::UNSPECIFIED);
        self.put_configuration(&mut reply, request);
        Ok(DhcpReply { dst: request.ciaddr, dst_mac: request.mac, payload: reply.finish() })
    }

    /// OFFER, or ACK of a REQUEST.
    fn grant(&self, kind: u8, request: &Request<'_>, address: Ipv4Addr) -> DhcpReply {
        let mut reply = self.reply(kind, request, address);
        let lease = request.lease_time().secs() as u32; // at most LEASE_MAX
        reply.put(LEASE_TIME, &lease.to_be_bytes());
        reply.put(RENEWAL_TIME, &(lease / 2).to_be_bytes());
        reply.put(REBINDING_TIME, &(lease / 8 * 7).to_be_bytes());
        self.put_configuration(&mut reply, request);
        // RFC 2131 section 4.1.
        let (dst, dst_mac) = if !request.ciaddr.is_unspecified() {
            (request.ciaddr, request.mac)
        } else if request.broadcast {
            (Ipv4Addr::BROADCAST, BROADCAST_MAC)
        } else {
            (address, request.mac)
        };
        DhcpReply { dst, dst_mac, payload: reply.finish() }
    }

    /// NAK: always broadcast, since the client's address is wrong (RFC 2131 section 4.1).
    fn refuse(&self, request: &Request<'_>) -> DhcpReply {
        let mut reply = self.reply(NAK, request, Ipv4Addr::UNSPECIFIED);
        reply.bytes[CIADDR].fill(0);
        reply.put(MESSAGE, b"address not available");
        DhcpReply { dst: Ipv4Addr::BROADCAST, dst_mac: BROADCAST_MAC, payload: reply.finish() }
    }

    /// Header and the options that every answer has (RFC 2131 table 3, RFC 6842).
    fn reply(&self, kind: u8, request: &Request<'_>, yiaddr: Ipv4Addr) -> ReplyBuilder {
        // The client's limit counts IP and UDP headers, and the link has one of its own.
        let room = request.max_size.min(self.mtu).min(MAX_MESSAGE) - IP_UDP_HEADERS;
        let mut bytes = vec![0; OPTIONS];
        bytes[OP] = BOOT_REPLY;
        bytes[HTYPE..=HLEN].copy_from_slice(&[ETHERNET, 6]);
        bytes[XID].copy_from_slice(request.xid);
        bytes[FLAGS].copy_from_slice(&[if request.broadcast { BROADCAST_FLAG } else { 0 }, 0]);
        if kind == ACK {
            bytes[CIADDR].copy_from_slice(&request.ciaddr.octets());
        }
        bytes[YIADDR].copy_from_slice(&yiaddr.octets());
        bytes[CHADDR].copy_from_slice(&request.mac);
        bytes[MAGIC].copy_from_slice(&MAGIC_COOKIE);
        let mut reply = ReplyBuilder { bytes, room: usize::from(room) };
        reply.put(MESSAGE_TYPE, &[kind]);
        reply.put(SERVER_IDENTIFIER, &self.plan.gateway.octets());
        if let ClientKey::Identifier(identifier) = &request.client {
            reply.put(CLIENT_IDENTIFIER, identifier);
        }
        reply
    }

    /// The options about the link that the client asked for, the most needed first.
    fn put_configuration(&self, reply: &mut ReplyBuilder, request: &Request<'_>) {
        // Without its netmask an address is of no use, so the mask is never left out.
        reply.put(SUBNET_MASK, &self.plan.subnet.mask().octets());
        let mut put_if_wanted = |code: u8, value: &[u8]| {
            if request.wants(code) {
                reply.put(code, value);
            }
        };
        let subnet = self.plan.subnet;
        if !subnet.contains(self.plan.gateway) {
            // Who asks for this option passes over the next one.
            put_if_wanted(CLASSLESS_ROUTES, &routes_to(self.plan.gateway));
        }
        put_if_wanted(ROUTER, &self.plan.gateway.octets());
        put_if_wanted(DNS_SERVER, &self.dns);
        put_if_wanted(INTERFACE_MTU, &self.mtu.to_be_bytes());
        if subnet.is_broadcast(subnet.broadcast()) {
            put_if_wanted(BROADCAST_ADDRESS, &subnet.broadcast().octets());
        }
        put_if_wanted(DOMAIN_NAME, &self.domain);
        if request.wants(DOMAIN_SEARCH) {
            reply.put(DOMAIN_SEARCH, &search_list(&self.search, reply.free()));
        }
    }

    /// DECLINE and RELEASE name the server they are for.
    fn require_server(&self, request: &Request<'_>) -> Result<(), DropReason> {
        (request.server == Some(self.plan.gateway)).then_some(()).ok_or(DropReason::DhcpIgnored)
    }
}

/// A request, as far as the server reads it.
struct Request<'a> {
    kind: u8,
    xid: &'a [u8],
    mac: [u8; 6],
    client: ClientKey,
    broadcast: bool,
    ciaddr: Ipv4Addr,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    /// Largest IP packet the client takes, at least [`MIN_MESSAGE`].
    max_size: u16,
    /// Seconds.
    lease: Option<u32>,
    parameters: Option<&'a [u8]>,
}

impl<'a> Request<'a> {
    fn parse(payload: &'a [u8]) -> Result<Self, DropReason> {
        let (header, options) = payload.split_at_checked(OPTIONS).ok_or(DropReason::Truncated)?;
        if header[OP] != BOOT_REQUEST || header[HTYPE] != ETHERNET || header[HLEN] != 6 {
            return Err(DropReason::Malformed);
        }
        if header[MAGIC] != MAGIC_COOKIE || header[GIADDR] != [0; 4] {
            return Err(DropReason::DhcpIgnored);
        }
        let mut mac = [0; 6];
        mac.copy_from_slice(&header[CHADDR]);
        let ciaddr = ipv4(&header[CIADDR])?;
        if mac[0] & 1 != 0 || mac == [0; 6] || ciaddr.is_multicast() || ciaddr.is_broadcast() {
            return Err(DropReason::Malformed);
        }
        let mut kind = None;
        let mut request = Request {
            kind: 0,
            xid: &header[XID],
            mac,
            client: ClientKey::Hardware(mac),
            broadcast: header[FLAGS][0] & BROADCAST_FLAG != 0,
            ciaddr,
            requested: None,
            server: None,
            max_size: MIN_MESSAGE,
            lease: None,
            parameters: None,
        };
        let mut options = options;
        while let Some((code, value)) = next_option(&mut options)? {
            match code {
                MESSAGE_TYPE => kind = Some(array::<1>(value)?[0]),
                // Not the minimum of two bytes: an identifier that identifies nobody.
                CLIENT_IDENTIFIER if value.len() < 2 => {}
                CLIENT_IDENTIFIER => request.client = ClientKey::Identifier(value.into()),
                REQUESTED_ADDRESS => request.requested = Some(ipv4(value)?),
                SERVER_IDENTIFIER => request.server = Some(ipv4(value)?),
                MAX_MESSAGE_SIZE => request.max_size = u16::from_be_bytes(array(value)?).max(MIN_MESSAGE),
                LEASE_TIME => request.lease = Some(u32::from_be_bytes(array(value)?)),
                PARAMETER_LIST => request.parameters = Some(value),
                _ => {}
            }
        }
        request.kind = kind.ok_or(DropReason::DhcpIgnored)?; // BOOTP has none
        Ok(request)
    }

    fn wants(&self, code: u8) -> bool {
        self.parameters.is_none_or(|list| list.contains(&code))
    }

    fn lease_time(&self) -> Duration {
        let seconds = self.lease.map_or(LEASE_MAX, |wish| wish.clamp(LEASE_MIN, LEASE_MAX));
        Duration::from_secs(u64::from(seconds))
    }
}

/// The next option before the end marker; clients that leave the marker out are forgiven.
fn next_option<'a>(options: &mut &'a [u8]) -> Result<Option<(u8, &'a [u8])>, DropReason> {
    loop {
        match **options {
            [] | [END, ..] => return Ok(None),
            [PAD, ..] => *options = &options[1..],
            [_] => return Err(DropReason::Truncated),
            [code, length, ..] => {
                let (value, rest) =
                    options[2..].split_at_checked(usize::from(length)).ok_or(DropReason::Truncated)?;
                *options = rest;
                return Ok(Some((code, value)));
            }
        }
    }
}

fn array<const N: usize>(value: &[u8]) -> Result<[u8; N], DropReason> {
    value.try_into().map_err(|_| DropReason::Malformed)
}

fn ipv4(value: &[u8]) -> Result<Ipv4Addr, DropReason> {
    array::<4>(value).map(Ipv4Addr::from)
}

struct ReplyBuilder {
    bytes: Vec<u8>,
    /// Largest message in bytes.
    room: usize,
}

impl ReplyBuilder {
    /// Adds an option, or several that belong together (RFC 3396); leaves it out if it does not fit
    /// or is empty.
    fn put(&mut self, code: u8, value: &[u8]) {
        if value.len() > self.free() {
            return;
        }
        for part in value.chunks(OPTION_MAX) {
            self.bytes.extend([code, part.len() as u8]); // at most 255
            self.bytes.extend(part);
        }
    }

    /// The longest value that still fits with the code and length of each part and the end marker.
    fn free(&self) -> usize {
        let free = self.room.saturating_sub(self.bytes.len() + 1);
        free.saturating_sub(2 * free.div_ceil(OPTION_MAX + 2))
    }

    fn finish(mut self) -> Vec<u8> {
        self.bytes.push(END);
        self.bytes.resize(self.bytes.len().max(BOOTP_MIN), PAD);
        self.bytes
    }
}

/// Routes for a gateway outside the subnet (RFC 3442): to it directly, by it to everybody.
fn routes_to(gateway: Ipv4Addr) -> [u8; 14] {
    let [a, b, c, d] = gateway.octets();
    [32, a, b, c, d, 0, 0, 0, 0, 0, a, b, c, d]
}

/// The first names of `names` that fit in `limit` bytes, in the wire format of RFC 1035 without compression.
/// A [`Config`] holds only names that have such a format.
pub(crate) fn search_list(names: &[String], limit: usize) -> Vec<u8> {
    let mut list = Vec::new();
    for name in names {
        let name = name.strip_suffix('.').unwrap_or(name);
        if list.len() + name.len() + 2 > limit {
            break;
        }
        for label in name.split('.') {
            list.push(label.len() as u8); // at most 63
            list.extend(label.as_bytes());
        }
        list.push(0);
    }
    list
}

// Header fields, RFC 2131 section 2.
const OP: usize = 0;
const HTYPE: usize = 1;
const HLEN: usize = 2;
const XID: Range<usize> = 4..8;
const FLAGS: Range<usize> = 10..12;
const CIADDR: Range<usize> = 12..16;
const YIADDR: Range<usize> = 16..20;
const GIADDR: Range<usize> = 24..28;
const CHADDR: Range<usize> = 28..34;
const MAGIC: Range<usize> = 236..240;
const OPTIONS: usize = 240;

const BOOT_REQUEST: u8 = 1;
const BOOT_REPLY: u8 = 2;
const ETHERNET: u8 = 1;
/// In the first byte of the flags.
const BROADCAST_FLAG: u8 = 0x80;
const MAGIC_COOKIE: [u8; 4] = [99, 130, 83, 99];
const BROADCAST_MAC: [u8; 6] = [0xff; 6];

// Message types.
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const DECLINE: u8 = 4;
const ACK: u8 = 5;
const NAK: u8 = 6;
const RELEASE: u8 = 7;
const INFORM: u8 = 8;

// Options.
const PAD: u8 = 0;
const SUBNET_MASK: u8 = 1;
const ROUTER: u8 = 3;
const DNS_SERVER: u8 = 6;
const DOMAIN_NAME: u8 = 15;
const INTERFACE_MTU: u8 = 26;
const BROADCAST_ADDRESS: u8 = 28;
const REQUESTED_ADDRESS: u8 = 50;
const LEASE_TIME: u8 = 51;
const MESSAGE_TYPE: u8 = 53;
const SERVER_IDENTIFIER: u8 = 54;
const PARAMETER_LIST: u8 = 55;
const MESSAGE: u8 = 56;
const MAX_MESSAGE_SIZE: u8 = 57;
const RENEWAL_TIME: u8 = 58;
const REBINDING_TIME: u8 = 59;
const CLIENT_IDENTIFIER: u8 = 61;
const DOMAIN_SEARCH: u8 = 119;
const CLASSLESS_ROUTES: u8 = 121;
const END: u8 = 255;

/// More DNS servers than resolvers look at.
const SERVERS_MAX: usize = 8;

/// Bytes that one option holds.
const OPTION_MAX: usize = 255;

/// Every client takes IP packets of this many bytes (RFC 2131 section 2).
const MIN_MESSAGE: u16 = 576;
/// No answer is longer, whatever the client takes: one that is needs fragments on an Ethernet of its own.
const MAX_MESSAGE: u16 = 1500;
const IP_UDP_HEADERS: u16 = 28;
/// Old clients discard shorter messages (RFC 1542 section 2.1).
const BOOTP_MIN: usize = 300;

/// Seconds; also the lease of clients that do not ask for a time.
const LEASE_MAX: u32 = 86_400;
/// Seconds.
const LEASE_MIN: u32 = 120;
const OFFER_HOLD: Duration = Duration::from_secs(60);
const QUARANTINE: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode};
    use dhcproto::{Decodable, Decoder, Encodable};
    use proptest::prelude::*;

    use super::*;
    use crate::config::DnsConfig;

    const ENGINE: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const CHILD: [u8; 6] = [2, 0, 0, 0, 0, 0x64];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 0x65];
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 42, 2);
    const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 42, 3);
    const CHILD_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 42, 100);
    const POOL_FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 42, 15);

    fn server_with(search: &[String]) -> DhcpServer {
        let dns = DnsConfig { search: search.to_vec(), ..Default::default() };
        DhcpServer::new(ENGINE, &Config::builder().dns(dns).build().unwrap())
    }

    fn server() -> DhcpServer {
        server_with(&["corp.example.".to_owned(), "x.test".to_owned()])
    }

    #[test]
    fn without_the_childs_address_the_first_client_gets_the_first_of_the_pool() {
        let config = Config::builder().dhcp_order(DhcpOrder::Pool).build().unwrap();
        let mut server = DhcpServer::new(ENGINE, &config);
        let (_, offer) = answered(&mut server, at(0), &client(MessageType::Discover, CHILD, &[]));
        assert_eq!(offer.yiaddr(), POOL_FIRST);
        let (_, offer) =
            answered(&mut server, at(0), &client(MessageType::Discover, OTHER, &[ask(CHILD_IP)]));
        assert_eq!(offer.yiaddr(), Ipv4Addr::new(10, 0, 42, 16));
    }

    #[test]
    fn a_copied_address_is_the_only_one_and_its_gateway_is_reached_directly() {
        let plan = Ipv4Plan {
            subnet: "203.0.113.7/32".parse().unwrap(),
            gateway: GATEWAY,
            dns: Ipv4Addr::UNSPECIFIED,
            child: Ipv4Addr::new(203, 0, 113, 7),
        };
        let dns = DnsConfig { addresses: vec![[169, 254, 1, 1].into()], ..Default::default() };
        let config = Config::builder().addressing(Addressing::Copied).ipv4(plan).dns(dns).build().unwrap();
        let mut server = DhcpServer::new(ENGINE, &config);
        let (_, offer) = answered(&mut server, at(0), &client(MessageType::Discover, CHILD, &[]));
        assert_eq!(offer.yiaddr(), plan.child);
        assert_eq!(option(&offer, OptionCode::SubnetMask), DhcpOption::SubnetMask([255; 4].into()));
        let dns = DhcpOption::DomainNameServer(vec![[169, 254, 1, 1].into()]);
        assert_eq!(option(&offer, OptionCode::DomainNameServer), dns);
        assert!(offer.opts().get(OptionCode::BroadcastAddr).is_none());
        let DhcpOption::ClasslessStaticRoute(routes) = option(&offer, OptionCode::ClasslessStaticRoute)
        else {
            panic!("no routes")
        };
        let routes: Vec<_> = routes.iter().map(|(net, by)| (net.to_string(), *by)).collect();
        let direct = ("10.0.42.2/32".to_owned(), Ipv4Addr::UNSPECIFIED);
        assert_eq!(routes, [direct, ("0.0.0.0/0".to_owned(), GATEWAY)]);
        assert_eq!(
            send(&mut server, at(0), &client(MessageType::Discover, OTHER, &[])),
            Err(DropReason::DhcpIgnored)
        );
    }

    fn at(seconds: i64) -> Instant {
        Instant::from_secs(seconds)
    }

    /// A client's message as dhcproto writes it.
    fn client(kind: MessageType, mac: [u8; 6], options: &[DhcpOption]) -> Message {
        let zero = Ipv4Addr::UNSPECIFIED;
        let mut message = Message::new_with_id(0x1234_5678, zero, zero, zero, zero, &mac);
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        for option in options {
            message.opts_mut().insert(option.clone());
        }
        message
    }

    fn send(
        server: &mut DhcpServer,
        now: Instant,
        message: &Message,
    ) -> Result<Option<DhcpReply>, DropReason> {
        server.handle(now, &message.to_vec().unwrap())
    }

    #[track_caller]
    fn answered(server: &mut DhcpServer, now: Instant, message: &Message) -> (DhcpReply, Message) {
        let reply = send(server, now, message).unwrap().unwrap();
        assert!(reply.payload.len() >= 300);
        let parsed = Message::decode(&mut Decoder::new(&reply.payload)).unwrap();
        assert_eq!(parsed.opcode(), Opcode::BootReply);
        assert_eq!((parsed.xid(), parsed.chaddr()), (message.xid(), message.chaddr()));
        assert_eq!(option(&parsed, OptionCode::ServerIdentifier), DhcpOption::ServerIdentifier(GATEWAY));
        (reply, parsed)
    }

    #[track_caller]
    fn option(message: &Message, code: OptionCode) -> DhcpOption {
        message.opts().get(code).unwrap_or_else(|| panic!("{code:?} missing")).clone()
    }

    fn kind(message: &Message) -> MessageType {
        message.opts().msg_type().unwrap()
    }

    fn ask(address: Ipv4Addr) -> DhcpOption {
        DhcpOption::RequestedIpAddress(address)
    }

    fn ours() -> DhcpOption {
        DhcpOption::ServerIdentifier(GATEWAY)
    }

    /// DISCOVER and REQUEST.
    #[track_caller]
    fn obtain(server: &mut DhcpServer, now: Instant, mac: [u8; 6]) -> Ipv4Addr {
        let (_, offer) = answered(server, now, &client(MessageType::Discover, mac, &[]));
        assert_eq!(kind(&offer), MessageType::Offer);
        let address = offer.yiaddr();
        let request = client(MessageType::Request, mac, &[ask(address), ours()]);
        let (_, ack) = answered(server, now, &request);
        assert_eq!((kind(&ack), ack.yiaddr()), (MessageType::Ack, address));
        address
    }

    #[test]
    fn an_offer_carries_the_whole_configuration() {
        let (reply, offer) = answered(&mut server(), at(0), &client(MessageType::Discover, CHILD, &[]));
        assert_eq!((reply.dst, reply.dst_mac), (CHILD_IP, CHILD));
        assert_eq!(kind(&offer), MessageType::Offer);
        assert_eq!(offer.yiaddr(), CHILD_IP);
        for zero in [offer.ciaddr(), offer.siaddr(), offer.giaddr()] {
            assert_eq!(zero, Ipv4Addr::UNSPECIFIED);
        }
        for expected in [
            DhcpOption::AddressLeaseTime(86_400),
            DhcpOption::Renewal(43_200),
            DhcpOption::Rebinding(75_600),
            DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)),
            DhcpOption::Router(vec![GATEWAY]),
            DhcpOption::DomainNameServer(vec![DNS]),
            DhcpOption::InterfaceMtu(1500),
            DhcpOption::BroadcastAddr(Ipv4Addr::new(10, 0, 42, 255)),
            DhcpOption::DomainName("corp.example".to_owned()),
        ] {
            assert_eq!(option(&offer, OptionCode::from(&expected)), expected);
        }
        let DhcpOption::DomainSearch(search) = option(&offer, OptionCode::DomainSearch) else { panic!() };
        assert_eq!(search.iter().map(ToString::to_string).collect::<Vec<_>>(), ["corp.example.", "x.test."]);
    }

    #[test]
    fn only_requested_parameters_are_sent_beside_the_lease() {
        let list = DhcpOption::ParameterRequestList(vec![OptionCode::Router, OptionCode::TimeServer]);
        let (_, offer) = answered(&mut server(), at(0), &client(MessageType::Discover, CHILD, &[list]));
        let mut codes: Vec<u8> = offer.opts().iter().map(|(&code, _)| code.into()).collect();
        codes.sort_unstable();
        assert_eq!(codes, [1, 3, 51, 53, 54, 58, 59]);
    }

    #[test]
    fn without_search_domains_there_are_no_domain_options() {
        let (_, offer) = answered(&mut server_with(&[]), at(0), &client(MessageType::Discover, CHILD, &[]));
        assert!(offer.opts().get(OptionCode::DomainName).is_none());
        assert!(offer.opts().get(OptionCode::DomainSearch).is_none());
    }

    #[test]
    fn a_client_that_cannot_take_unicast_is_answered_by_broadcast() {
        let mut discover = client(MessageType::Discover, CHILD, &[]);
        discover.set_flags(Flags::default().set_broadcast());
        let (reply, offer) = answered(&mut server(), at(0), &discover);
        assert_eq!((reply.dst, reply.dst_mac), (Ipv4Addr::BROADCAST, BROADCAST_MAC));
        assert!(offer.flags().broadcast());
    }

    #[test]
    fn the_first_client_gets_the_childs_address_and_others_the_pool() {
        let mut server = server();
        assert_eq!(obtain(&mut server, at(0), CHILD), CHILD_IP);
        for n in 15..=30 {
            assert_eq!(obtain(&mut server, at(1), [2, 1, 0, 0, 0, n]), Ipv4Addr::new(10, 0, 42, n));
        }
        let discover = client(MessageType::Discover, OTHER, &[]);
        assert_eq!(send(&mut server, at(2), &discover), Err(DropReason::DhcpIgnored));
        assert_eq!(obtain(&mut server, at(3), CHILD), CHILD_IP);
    }

    #[test]
    fn a_client_may_ask_for_an_address() {
        let mut server = server();
        let discover = client(MessageType::Discover, OTHER, &[ask(POOL_FIRST)]);
        assert_eq!(answered(&mut server, at(0), &discover).1.yiaddr(), POOL_FIRST);
        let discover = client(MessageType::Discover, CHILD, &[ask(CHILD_IP)]);
        assert_eq!(answered(&mut server, at(0), &discover).1.yiaddr(), CHILD_IP);
    }

    #[test]
    fn clients_are_told_apart_by_identifier_and_it_is_echoed() {
        let mut server = server();
        let identifier = |n: u8| DhcpOption::ClientIdentifier(vec![255, 0, 0, n]);
        for (n, address) in [(1, CHILD_IP), (2, POOL_FIRST), (1, CHILD_IP)] {
            let (_, offer) =
                answered(&mut server, at(0), &client(MessageType::Discover, CHILD, &[identifier(n)]));
            assert_eq!(offer.yiaddr(), address);
            assert_eq!(option(&offer, OptionCode::ClientIdentifier), identifier(n));
        }
        let nak = client(MessageType::Request, CHILD, &[identifier(3), ask(CHILD_IP)]);
        let (_, nak) = answered(&mut server, at(0), &nak);
        assert_eq!(option(&nak, OptionCode::ClientIdentifier), identifier(3));
    }

    #[test]
    fn renewing_prolongs_the_lease_and_is_answered_by_unicast() {
        let mut server = server();
        obtain(&mut server, at(0), CHILD);
        let mut renew = client(MessageType::Request, CHILD, &[]);
        renew.set_ciaddr(CHILD_IP);
        renew.set_flags(Flags::default().set_broadcast());
        let (reply, ack) = answered(&mut server, at(43_200), &renew);
        assert_eq!((reply.dst, reply.dst_mac), (CHILD_IP, CHILD));
        assert_eq!((kind(&ack), ack.ciaddr(), ack.yiaddr()), (MessageType::Ack, CHILD_IP, CHILD_IP));
        let other = client(MessageType::Discover, OTHER, &[ask(CHILD_IP)]);
        assert_eq!(answered(&mut server, at(43_200 + 86_399), &other).1.yiaddr(), POOL_FIRST);
    }

    #[test]
    fn a_client_from_before_a_restart_keeps_its_address() {
        let mut renew = client(MessageType::Request, CHILD, &[]);
        renew.set_ciaddr(CHILD_IP);
        assert_eq!(kind(&answered(&mut server(), at(0), &renew).1), MessageType::Ack);
        let reboot = client(MessageType::Request, CHILD, &[ask(CHILD_IP)]);
        assert_eq!(kind(&answered(&mut server(), at(0), &reboot).1), MessageType::Ack);
    }

    #[test]
    fn an_address_that_cannot_be_had_is_refused_by_broadcast() {
        let mut server = server();
        obtain(&mut server, at(0), CHILD);
        for address in [CHILD_IP, GATEWAY, Ipv4Addr::new(192, 168, 1, 7)] {
            let mut renew = client(MessageType::Request, OTHER, &[]);
            renew.set_ciaddr(address);
            let reboot = client(MessageType::Request, OTHER, &[ask(address)]);
            let selecting = client(MessageType::Request, OTHER, &[ask(address), ours()]);
            for request in [renew, reboot, selecting] {
                let (reply, nak) = answered(&mut server, at(1), &request);
                assert_eq!((reply.dst, reply.dst_mac), (Ipv4Addr::BROADCAST, BROADCAST_MAC));
                assert_eq!(kind(&nak), MessageType::Nak);
                assert_eq!((nak.ciaddr(), nak.yiaddr()), (Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED));
                assert!(nak.opts().get(OptionCode::AddressLeaseTime).is_none());
                assert!(nak.opts().get(OptionCode::SubnetMask).is_none());
            }
        }
    }

    #[test]
    fn an_offer_is_free_again_when_the_client_chose_another_server() {
        let mut server = server();
        answered(&mut server, at(0), &client(MessageType::Discover, CHILD, &[]));
        let elsewhere = DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 0, 42, 9));
        let request = client(MessageType::Request, CHILD, &[ask(CHILD_IP), elsewhere]);
        assert_eq!(send(&mut server, at(1), &request), Err(DropReason::DhcpIgnored));
        assert_eq!(obtain(&mut server, at(2), OTHER), CHILD_IP);
    }

    #[test]
    fn a_declined_address_is_not_given_again_for_a_while() {
        let mut server = server();
        obtain(&mut server, at(0), CHILD);
        let decline = client(MessageType::Decline, CHILD, &[ask(CHILD_IP), ours()]);
        assert_eq!(send(&mut server, at(1), &decline), Ok(None));
        assert_eq!(obtain(&mut server, at(2), CHILD), POOL_FIRST);
        assert_eq!(obtain(&mut server, at(602), OTHER), CHILD_IP);
    }

    #[test]
    fn a_released_address_is_free_at_once() {
        let mut server = server();
        obtain(&mut server, at(0), CHILD);
        let mut release = client(MessageType::Release, CHILD, &[ours()]);
        release.set_ciaddr(CHILD_IP);
        assert_eq!(send(&mut server, at(1), &release), Ok(None));
        assert_eq!(obtain(&mut server, at(2), OTHER), CHILD_IP);
    }

    #[test]
    fn inform_is_answered_without_address_and_lease() {
        let mut inform = client(MessageType::Inform, CHILD, &[]);
        assert_eq!(send(&mut server(), at(0), &inform), Err(DropReason::DhcpIgnored));
        inform.set_ciaddr(Ipv4Addr::new(10, 0, 42, 77));
        let (reply, ack) = answered(&mut server(), at(0), &inform);
        assert_eq!((reply.dst, reply.dst_mac), (Ipv4Addr::new(10, 0, 42, 77), CHILD));
        assert_eq!((kind(&ack), ack.yiaddr()), (MessageType::Ack, Ipv4Addr::UNSPECIFIED));
        assert_eq!(option(&ack, OptionCode::Router), DhcpOption::Router(vec![GATEWAY]));
        for code in [OptionCode::AddressLeaseTime, OptionCode::Renewal, OptionCode::Rebinding] {
            assert!(ack.opts().get(code).is_none());
        }
    }

    #[test]
    fn a_lease_time_is_granted_within_bounds() {
        for (wish, granted) in [(0, 120), (600, 600), (u32::MAX, 86_400)] {
            let discover = client(MessageType::Discover, CHILD, &[DhcpOption::AddressLeaseTime(wish)]);
            let (_, offer) = answered(&mut server(), at(0), &discover);
            let DhcpOption::AddressLeaseTime(lease) = option(&offer, OptionCode::AddressLeaseTime) else {
                panic!()
            };
            assert_eq!(lease, granted);
            assert_eq!(option(&offer, OptionCode::Renewal), DhcpOption::Renewal(granted / 2));
        }
    }

    #[test]
    fn what_the_client_cannot_take_is_left_out() {
        let search: Vec<String> = (0..60).map(|n| format!("{n:02}.{}.example", "a".repeat(20))).collect();
        let mut server = server_with(&search);
        // Longer than one option holds: split, and put together again by the reader.
        for (options, payload_max) in [(vec![], 548), (vec![DhcpOption::MaxMessageSize(9000)], 1472)] {
            let discover = client(MessageType::Discover, CHILD, &options);
            let (reply, offer) = answered(&mut server, at(0), &discover);
            // One more name takes 33 bytes.
            assert!(
                (payload_max - 37..=payload_max).contains(&reply.payload.len()),
                "{}",
                reply.payload.len()
            );
            let DhcpOption::DomainSearch(names) = option(&offer, OptionCode::DomainSearch) else { panic!() };
            let names: Vec<String> =
                names.iter().map(|name| name.to_string().trim_end_matches('.').to_owned()).collect();
            assert_eq!(names, search[..names.len()]);
        }
    }

    #[test]
    fn what_is_not_for_the_server_is_ignored() {
        let discover = client(MessageType::Discover, CHILD, &[]).to_vec().unwrap();
        let handle = |bytes: &[u8]| server().handle(at(0), bytes);
        let with = |index: usize, value: u8| {
            let mut bytes = discover.clone();
            bytes[index] = value;
            handle(&bytes)
        };
        assert_eq!(handle(&discover[..239]), Err(DropReason::Truncated));
        assert_eq!(handle(&discover[..240]), Err(DropReason::DhcpIgnored));
        assert_eq!(handle(&discover[..242]), Err(DropReason::Truncated));
        assert_eq!(with(0, 2), Err(DropReason::Malformed));
        assert_eq!(with(2, 16), Err(DropReason::Malformed));
        assert_eq!(with(28, 0xff), Err(DropReason::Malformed));
        assert_eq!(with(12, 0xe0), Err(DropReason::Malformed));
        assert_eq!(with(24, 10), Err(DropReason::DhcpIgnored));
        assert_eq!(with(236, 0), Err(DropReason::DhcpIgnored));
        assert_eq!(with(242, 99), Err(DropReason::DhcpIgnored));
        let engine = client(MessageType::Discover, ENGINE, &[]);
        assert_eq!(send(&mut server(), at(0), &engine), Err(DropReason::DhcpIgnored));
        let nothing = client(MessageType::Request, CHILD, &[]);
        assert_eq!(send(&mut server(), at(0), &nothing), Err(DropReason::DhcpIgnored));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            header in proptest::collection::vec(any::<u8>(), 0..300),
            kind in 0..10u8,
            options in proptest::collection::vec(any::<u8>(), 0..600),
        ) {
            let _ = server().handle(at(0), &header);
            let mut message = client(MessageType::Discover, CHILD, &[]).to_vec().unwrap();
            message.truncate(240);
            message.extend([MESSAGE_TYPE, 1, kind]);
            message.extend(&options);
            if let Ok(Some(reply)) = server().handle(at(0), &message) {
                Message::decode(&mut Decoder::new(&reply.payload)).unwrap();
            }
        }
    }
}
