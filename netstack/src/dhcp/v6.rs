//! Stateless DHCPv6 (RFC 8415 section 6.1).
//!
//! # Theory of operation
//! *Goal:* a child that follows the "other configuration" flag of our router advertisements learns DNS
//! server and search list. Addresses come by SLAAC; a client that asks here for addresses or prefixes is
//! told that there are none, so that it goes on without them instead of asking forever.
//!
//! | Message             | Answer                                               |
//! |---------------------|------------------------------------------------------|
//! | INFORMATION-REQUEST | REPLY with the configuration                         |
//! | SOLICIT             | ADVERTISE, "none available" per address association  |
//! | REQUEST             | REPLY, the same                                      |
//! | RENEW               | REPLY, "no binding" per address association          |
//! | any other           | none: they concern leases, and there are none        |
//!
//! *Not handled:* relays, authentication, reconfiguration, rapid commit (it is for committed leases).
//!
//! *States and timers:* none.
//!
//! *Data flow:* UDP payload to port 547 → [`Dhcpv6Responder::handle`] → payload of the answer, which the
//! caller sends from the gateway's link-local address to the source address, port 546.

use std::net::IpAddr;

use super::search_list;
use crate::config::Config;
use crate::error::DropReason;

/// Answers with the configuration that needs no lease.
#[derive(Clone, Debug)]
pub struct Dhcpv6Responder {
    /// DUID-LL, RFC 8415 section 11.4.
    server_id: [u8; 10],
    /// As the option carries them; empty without any.
    dns: Vec<u8>,
    search: Vec<u8>,
}

impl Dhcpv6Responder {
    /// Serves the DNS settings of `config` as the engine with the Ethernet address `mac`.
    pub fn new(mac: [u8; 6], config: &Config) -> Self {
        let [a, b, c, d, e, f] = mac;
        Dhcpv6Responder {
            server_id: [0, 3, 0, 1, a, b, c, d, e, f],
            dns: config
                .announced_dns()
                .filter_map(|address| match address {
                    IpAddr::V4(_) => None,
                    IpAddr::V6(v6) => Some(v6.octets()),
                })
                .take(SERVERS_MAX)
                .flatten()
                .collect(),
            search: search_list(&config.dns().search, SEARCH_MAX),
        }
    }

    /// Takes the UDP payload of a datagram to port 547. `Ok(None)` is a message that wants no answer.
    ///
    /// # Errors
    /// [`DropReason::Truncated`] and [`DropReason::Malformed`] for broken messages;
    /// [`DropReason::DhcpIgnored`] for message types that are not served and for messages that RFC 8415
    /// section 16 tells to discard.
    pub fn handle(&self, payload: &[u8]) -> Result<Option<Vec<u8>>, DropReason> {
        let request = Request::parse(payload)?;
        if request.server.is_some_and(|server| server != self.server_id) {
            return Err(DropReason::DhcpIgnored);
        }
        let named = request.server.is_some();
        let known = request.client.is_some();
        let (kind, no_address, no_prefix) = match request.kind {
            INFORMATION_REQUEST if request.associations.is_empty() => (REPLY, 0, 0),
            SOLICIT if known && !named => (ADVERTISE, NO_ADDRS_AVAIL, NO_PREFIX_AVAIL),
            REQUEST if known && named => (REPLY, NO_ADDRS_AVAIL, NO_PREFIX_AVAIL),
            RENEW if known && named => (REPLY, NO_BINDING, NO_BINDING),
            _ => return Err(DropReason::DhcpIgnored),
        };
        if request.kind != INFORMATION_REQUEST && request.associations.is_empty() {
            return Ok(None);
        }

        let mut reply = vec![kind];
        reply.extend(request.transaction);
        put(&mut reply, SERVER_ID, &self.server_id);
        if let Some(client) = request.client {
            put(&mut reply, CLIENT_ID, client);
        }
        for &Association { code, header } in &request.associations {
            let status = if code == IA_PD { no_prefix } else { no_address };
            let mut value = header.to_vec();
            value.get_mut(IA_TIMERS..).unwrap_or_default().fill(0);
            put(&mut value, STATUS_CODE, &status.to_be_bytes());
            put(&mut reply, code, &value);
        }
        if request.wants(DNS_SERVERS) && !self.dns.is_empty() {
            put(&mut reply, DNS_SERVERS, &self.dns);
        }
        if request.wants(DOMAIN_LIST) && !self.search.is_empty() {
            put(&mut reply, DOMAIN_LIST, &self.search);
        }
        if request.kind == INFORMATION_REQUEST && request.wants(INFORMATION_REFRESH_TIME) {
            put(&mut reply, INFORMATION_REFRESH_TIME, &REFRESH_SECONDS.to_be_bytes());
        }
        Ok(Some(reply))
    }
}

/// A request, as far as the responder reads it.
struct Request<'a> {
    kind: u8,
    transaction: [u8; 3],
    client: Option<&'a [u8]>,
    server: Option<&'a [u8]>,
    /// Pairs of bytes.
    wanted: Option<&'a [u8]>,
    associations: Vec<Association<'a>>,
}

/// An IA_NA, IA_TA or IA_PD option.
struct Association<'a> {
    code: u16,
    /// Its fixed part: identity and, but for IA_TA, timers.
    header: &'a [u8],
}

impl<'a> Request<'a> {
    fn parse(payload: &'a [u8]) -> Result<Self, DropReason> {
        let (&[kind, a, b, c], mut options) = payload.split_first_chunk().ok_or(DropReason::Truncated)?;
        let mut request = Request {
            kind,
            transaction: [a, b, c],
            client: None,
            server: None,
            wanted: None,
            associations: Vec::new(),
        };
        if !matches!(kind, SOLICIT | REQUEST | RENEW | INFORMATION_REQUEST) {
            return Err(DropReason::DhcpIgnored);
        }
        while let Some((code, value)) = next_option(&mut options)? {
            match code {
                CLIENT_ID if !DUID_LENGTH.contains(&value.len()) => return Err(DropReason::Malformed),
                CLIENT_ID => request.client = Some(value),
                SERVER_ID => request.server = Some(value),
                OPTION_REQUEST if value.len() % 2 != 0 => return Err(DropReason::Malformed),
                OPTION_REQUEST => request.wanted = Some(value),
                IA_NA | IA_TA | IA_PD => {
                    let length = if code == IA_TA { IA_TIMERS } else { IA_HEADER };
                    let header = value.get(..length).ok_or(DropReason::Malformed)?;
                    if request.associations.len() == ASSOCIATIONS_MAX {
                        return Err(DropReason::DhcpIgnored);
                    }
                    request.associations.push(Association { code, header });
                }
                _ => {}
            }
        }
        Ok(request)
    }

    fn wants(&self, code: u16) -> bool {
        self.wanted.is_none_or(|list| list.chunks_exact(2).any(|wanted| wanted == code.to_be_bytes()))
    }
}

fn next_option<'a>(options: &mut &'a [u8]) -> Result<Option<(u16, &'a [u8])>, DropReason> {
    if options.is_empty() {
        return Ok(None);
    }
    let (&[a, b, c, d], rest) = options.split_first_chunk().ok_or(DropReason::Truncated)?;
    let length = usize::from(u16::from_be_bytes([c, d]));
    let (value, rest) = rest.split_at_checked(length).ok_or(DropReason::Truncated)?;
    *options = rest;
    Ok(Some((u16::from_be_bytes([a, b]), value)))
}

/// `value` is at most [`SEARCH_MAX`] bytes long.
fn put(message: &mut Vec<u8>, code: u16, value: &[u8]) {
    message.extend(code.to_be_bytes());
    message.extend((value.len() as u16).to_be_bytes());
    message.extend(value);
}

// Message types.
const SOLICIT: u8 = 1;
const ADVERTISE: u8 = 2;
const REQUEST: u8 = 3;
const RENEW: u8 = 5;
const REPLY: u8 = 7;
const INFORMATION_REQUEST: u8 = 11;

// Options.
const CLIENT_ID: u16 = 1;
const SERVER_ID: u16 = 2;
const IA_NA: u16 = 3;
const IA_TA: u16 = 4;
const OPTION_REQUEST: u16 = 6;
const STATUS_CODE: u16 = 13;
const DNS_SERVERS: u16 = 23;
const DOMAIN_LIST: u16 = 24;
const IA_PD: u16 = 25;
const INFORMATION_REFRESH_TIME: u16 = 32;

// Status codes.
const NO_ADDRS_AVAIL: u16 = 2;
const NO_BINDING: u16 = 3;
const NO_PREFIX_AVAIL: u16 = 6;

/// Bytes of an association's identity, where its timers begin.
const IA_TIMERS: usize = 4;
/// Bytes of identity and timers T1, T2.
const IA_HEADER: usize = 12;
/// Associations in one message; clients have one of each kind.
const ASSOCIATIONS_MAX: usize = 8;
/// RFC 8415 section 11.1: a type and 1 to 128 bytes.
const DUID_LENGTH: std::ops::RangeInclusive<usize> = 3..=130;
/// Bytes of search domains, so that every answer fits the minimum MTU of 1280: headers 48, identifiers
/// 4 + 14 + 134, associations 8 × 22, DNS server 20, refresh time 8, this option's header 4.
const SEARCH_MAX: usize = 872;
/// More DNS servers than resolvers look at.
const SERVERS_MAX: usize = 8;
/// IRT_DEFAULT.
const REFRESH_SECONDS: u32 = 86_400;

#[cfg(test)]
mod tests {
    use dhcproto::v6::{
        DhcpOption, IAAddr, IANA, IAPD, Message, MessageType, ORO, OptionCode, Status, StatusCode,
    };
    use dhcproto::{Decodable, Decoder, Encodable};
    use proptest::prelude::*;

    use super::*;
    use crate::config::DnsConfig;

    const ENGINE: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const SERVER_DUID: [u8; 10] = [0, 3, 0, 1, 2, 0, 0, 0, 0, 2];
    const CLIENT_DUID: [u8; 10] = [0, 3, 0, 1, 2, 0, 0, 0, 0, 0x64];

    fn responder(search: &[String]) -> Dhcpv6Responder {
        let dns = DnsConfig { search: search.to_vec(), ..Default::default() };
        Dhcpv6Responder::new(ENGINE, &Config::builder().dns(dns).build().unwrap())
    }

    fn client(kind: MessageType, options: Vec<DhcpOption>) -> Message {
        let mut message = Message::new_with_id(kind, [1, 2, 3]);
        for option in options {
            message.opts_mut().insert(option);
        }
        message
    }

    fn known() -> DhcpOption {
        DhcpOption::ClientId(CLIENT_DUID.to_vec())
    }

    fn ours() -> DhcpOption {
        DhcpOption::ServerId(SERVER_DUID.to_vec())
    }

    fn iana() -> DhcpOption {
        let address = IAAddr {
            addr: "fd42:10:42::77".parse().unwrap(),
            preferred_life: 1,
            valid_life: 2,
            opts: Default::default(),
        };
        let opts = [DhcpOption::IAAddr(address)].into_iter().collect();
        DhcpOption::IANA(IANA { id: 7, t1: 1, t2: 2, opts })
    }

    fn iapd() -> DhcpOption {
        DhcpOption::IAPD(IAPD { id: 8, t1: 1, t2: 2, opts: Default::default() })
    }

    fn send(message: &Message) -> Result<Option<Vec<u8>>, DropReason> {
        responder(&["corp.example.".to_owned(), "x.test".to_owned()]).handle(&message.to_vec().unwrap())
    }

    #[track_caller]
    fn answered(message: &Message) -> Message {
        let reply = Message::decode(&mut Decoder::new(&send(message).unwrap().unwrap())).unwrap();
        assert_eq!(reply.xid(), message.xid());
        assert_eq!(reply.opts().get(OptionCode::ServerId), Some(&ours()));
        assert_eq!(reply.opts().get(OptionCode::ClientId), message.opts().get(OptionCode::ClientId));
        reply
    }

    #[track_caller]
    fn status_of(options: &dhcproto::v6::DhcpOptions) -> Status {
        assert_eq!(options.iter().count(), 1);
        match options.get(OptionCode::StatusCode) {
            Some(DhcpOption::StatusCode(StatusCode { status, .. })) => *status,
            other => panic!("no status: {other:?}"),
        }
    }

    #[test]
    fn an_information_request_is_answered_with_the_dns_settings() {
        for identity in [vec![], vec![known()], vec![known(), ours()]] {
            let reply = answered(&client(MessageType::InformationRequest, identity));
            assert_eq!(reply.msg_type(), MessageType::Reply);
            assert_eq!(
                reply.opts().get(OptionCode::DomainNameServers),
                Some(&DhcpOption::DomainNameServers(vec!["fd42:10:42::3".parse().unwrap()]))
            );
            // dhcproto writes this option but does not read it.
            let refresh = reply.opts().iter().map(|option| option.to_vec().unwrap());
            assert!(refresh.into_iter().any(|option| option == [0, 32, 0, 4, 0, 1, 0x51, 0x80]));
            let Some(DhcpOption::DomainSearchList(names)) = reply.opts().get(OptionCode::DomainSearchList)
            else {
                panic!()
            };
            assert_eq!(
                names.iter().map(ToString::to_string).collect::<Vec<_>>(),
                ["corp.example.", "x.test."]
            );
        }
    }

    #[test]
    fn only_requested_options_are_sent() {
        let oro = DhcpOption::ORO(ORO { opts: vec![OptionCode::DomainNameServers, OptionCode::SntpServers] });
        let reply = answered(&client(MessageType::InformationRequest, vec![known(), oro]));
        let codes: Vec<u16> = reply.opts().iter().map(|option| OptionCode::from(option).into()).collect();
        assert_eq!(codes, [CLIENT_ID, SERVER_ID, DNS_SERVERS]);
    }

    #[test]
    fn a_client_that_wants_addresses_is_told_that_there_are_none() {
        for (kind, named, answer, no_address, no_prefix) in [
            (
                MessageType::Solicit,
                false,
                MessageType::Advertise,
                Status::NoAddrsAvail,
                Status::NoPrefixAvail,
            ),
            (MessageType::Request, true, MessageType::Reply, Status::NoAddrsAvail, Status::NoPrefixAvail),
            (MessageType::Renew, true, MessageType::Reply, Status::NoBinding, Status::NoBinding),
        ] {
            let mut options = vec![known(), iana(), iapd()];
            options.extend(named.then(ours));
            let reply = answered(&client(kind, options));
            assert_eq!(reply.msg_type(), answer);
            let Some(DhcpOption::IANA(iana)) = reply.opts().get(OptionCode::IANA) else { panic!() };
            assert_eq!((iana.id, iana.t1, iana.t2), (7, 0, 0));
            assert_eq!(status_of(&iana.opts), no_address);
            let Some(DhcpOption::IAPD(iapd)) = reply.opts().get(OptionCode::IAPD) else { panic!() };
            assert_eq!(iapd.id, 8);
            assert_eq!(status_of(&iapd.opts), no_prefix);
        }
    }

    #[test]
    fn a_solicitation_for_nothing_is_not_answered() {
        assert_eq!(send(&client(MessageType::Solicit, vec![known()])), Ok(None));
    }

    #[test]
    fn what_rfc_8415_section_16_tells_to_discard_is_discarded() {
        let other = DhcpOption::ServerId(vec![0, 3, 0, 1, 2, 9, 9, 9, 9, 9]);
        for message in [
            client(MessageType::InformationRequest, vec![known(), other.clone()]),
            client(MessageType::InformationRequest, vec![known(), iana()]),
            client(MessageType::Solicit, vec![iana()]),
            client(MessageType::Solicit, vec![known(), ours(), iana()]),
            client(MessageType::Request, vec![known(), iana()]),
            client(MessageType::Request, vec![known(), other, iana()]),
            client(MessageType::Renew, vec![known(), iana()]),
            client(MessageType::Rebind, vec![known(), iana()]),
            client(MessageType::Confirm, vec![known(), iana()]),
            client(MessageType::Release, vec![known(), ours(), iana()]),
            client(MessageType::Reply, vec![known(), ours()]),
        ] {
            assert_eq!(send(&message), Err(DropReason::DhcpIgnored), "{message:?}");
        }
    }

    #[test]
    fn malformed_messages_are_told_apart() {
        let handle = |bytes: &[u8]| responder(&[]).handle(bytes);
        assert_eq!(handle(&[11, 1, 2]), Err(DropReason::Truncated));
        assert_eq!(handle(&[11, 1, 2, 3, 0]), Err(DropReason::Truncated));
        assert_eq!(handle(&[11, 1, 2, 3, 0, 6, 0, 2, 0]), Err(DropReason::Truncated));
        assert_eq!(handle(&[11, 1, 2, 3, 0, 6, 0, 1, 0]), Err(DropReason::Malformed));
        assert_eq!(handle(&[11, 1, 2, 3, 0, 1, 0, 2, 0, 3]), Err(DropReason::Malformed));
        assert_eq!(handle(&[1, 1, 2, 3, 0, 3, 0, 2, 0, 3]), Err(DropReason::Malformed));
    }

    #[test]
    fn the_longest_answer_fits_the_smallest_mtu() {
        let search: Vec<String> = (0..60).map(|n| format!("{n:02}.{}.example", "a".repeat(40))).collect();
        let mut options = vec![DhcpOption::ClientId(vec![9; 130])];
        options.extend((0..8).map(|_| iana()));
        let message = client(MessageType::Solicit, options).to_vec().unwrap();
        let reply = responder(&search).handle(&message).unwrap().unwrap();
        assert!((1100..=1232).contains(&reply.len()), "{}", reply.len());
        Message::decode(&mut Decoder::new(&reply)).unwrap();
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            kind in 0..14u8,
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            code in 0..34u16,
            value in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let responder = responder(&[]);
            let _ = responder.handle(&bytes);
            let mut message = vec![kind, 1, 2, 3];
            put(&mut message, CLIENT_ID, &CLIENT_DUID);
            put(&mut message, code, &value);
            if let Ok(Some(reply)) = responder.handle(&message) {
                Message::decode(&mut Decoder::new(&reply)).unwrap();
            }
        }
    }
}
