//! Static records: names the engine answers itself.
//!
//! # Theory of operation
//! Goal: the child finds the gateway, the host and what the user named, without a server. The table is built
//! once from the configuration, in wire format and lower case, so that a lookup is one comparison of bytes
//! (names have no case, RFC 4343; a final dot is the same name). It holds A, AAAA and, for every address, the
//! PTR records back to its names. A name that is ours is ours for all types: other types get an empty answer
//! (NODATA) and are never asked outside. A user's name replaces a built-in one of the same spelling.
//!
//! AAAA records are left out while the child is not offered IPv6: nothing should wait for a dead family.
//! Not handled: classes other than IN (forwarded), search lists (the child's resolver appends them), SOA in
//! empty answers (so they are not cached). State: none beyond the table; no timers.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Ipv6Offer;
use super::message::{Edns, Message, Question, Reply, class, kind, rcode, wire_name};
use crate::config::{Config, Ipv4Mode};

/// Time in seconds that the child may keep a static answer. Short, because AAAA records come and go with
/// the host's IPv6.
pub const STATIC_TTL: u32 = 10;

/// The table of names answered locally.
#[derive(Clone, Debug)]
pub struct StaticRecords {
    /// Wire format, lower case.
    names: BTreeMap<Vec<u8>, Vec<Record>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Record {
    Address(IpAddr),
    Pointer(Vec<u8>),
}

impl StaticRecords {
    /// `host.internal` and `gateway.internal` (the gateway), `dns.internal` (the DNS address) and the names
    /// of the configuration.
    pub fn new(config: &Config) -> Self {
        let (ipv4, ipv6) = (config.ipv4(), config.ipv6());
        let gateway = vec![IpAddr::V4(ipv4.gateway), IpAddr::V6(ipv6.gateway)];
        let dns = config.dns_addresses().collect();
        let built_in =
            [("host.internal", gateway.clone()), ("gateway.internal", gateway), ("dns.internal", dns)];
        let offered = |address: &IpAddr| address.is_ipv6() || config.ipv4_mode() == Ipv4Mode::On;

        let configured = &config.dns().names;
        let mut records = StaticRecords { names: BTreeMap::new() };
        for (name, addresses) in built_in {
            if configured.iter().any(|(other, _)| wire_name(other) == wire_name(name)) {
                continue;
            }
            for address in addresses.into_iter().filter(offered) {
                records.insert(name, address);
            }
        }
        for (name, address) in configured {
            records.insert(name, *address);
        }
        records
    }

    /// The answer to `question` of `query`, at most `limit` bytes with EDNS taken into account; `None` if the
    /// name is not one of ours.
    pub(super) fn answer(
        &self,
        query: Message<'_>,
        question: Question<'_>,
        ipv6: Ipv6Offer,
        limit: impl FnOnce(Option<Edns>) -> usize,
    ) -> Option<Vec<u8>> {
        if ![class::IN, class::ANY].contains(&question.class()) {
            return None;
        }
        let records = self.names.get(&question.name().to_ascii_lowercase())?;
        let reply = |edns, rcode| Reply::new(query, Some(question), edns, rcode, limit(edns));
        let edns = match query.edns() {
            Ok(edns) => edns,
            Err(_) => return Some(reply(None, rcode::FORM_ERR.into()).finish()),
        };
        if edns.is_some_and(|edns| edns.version > 0) {
            return Some(reply(edns, rcode::BAD_VERS).finish());
        }
        let mut reply = reply(edns, rcode::NO_ERROR.into());
        reply.authoritative();
        for record in records {
            let wanted = question.kind() == kind::ANY || question.kind() == record.kind();
            let dead = record.kind() == kind::AAAA && ipv6 == Ipv6Offer::Withheld;
            if !wanted || dead {
                continue;
            }
            match record {
                Record::Address(IpAddr::V4(address)) => reply.answer(kind::A, STATIC_TTL, &address.octets()),
                Record::Address(IpAddr::V6(address)) => {
                    reply.answer(kind::AAAA, STATIC_TTL, &address.octets())
                }
                Record::Pointer(name) => reply.answer(kind::PTR, STATIC_TTL, name),
            }
        }
        Some(reply.finish())
    }

    /// Adds `name` and the way back from `address`. Names are valid, for [`Config`] has checked them.
    fn insert(&mut self, name: &str, address: IpAddr) {
        let (Some(name), Some(reverse)) = (wire_name(name), wire_name(&reverse_name(address))) else {
            return;
        };
        self.insert_record(reverse, Record::Pointer(name.clone()));
        self.insert_record(name, Record::Address(address));
    }

    fn insert_record(&mut self, name: Vec<u8>, record: Record) {
        let records = self.names.entry(name).or_default();
        if !records.contains(&record) {
            records.push(record);
        }
    }
}

impl Record {
    fn kind(&self) -> u16 {
        match self {
            Record::Address(IpAddr::V4(_)) => kind::A,
            Record::Address(IpAddr::V6(_)) => kind::AAAA,
            Record::Pointer(_) => kind::PTR,
        }
    }
}

/// RFC 1035 section 3.5, RFC 3596 section 2.5.
fn reverse_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let nibbles =
                address.octets().into_iter().rev().map(|byte| format!("{:x}.{:x}.", byte & 15, byte >> 4));
            nibbles.chain(["ip6.arpa".to_owned()]).collect()
        }
    }
}
