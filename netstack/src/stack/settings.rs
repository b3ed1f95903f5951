//! Settings that change while the stack runs, and what they are now.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Stack;
use crate::config::{DnsConfig, is_dns_name};
use crate::error::ConfigError;
use crate::flow::policy::{EgressPolicy, RefusalLog};

/// The host's own addresses, for [`MapTarget::HostAddress`](crate::config::MapTarget::HostAddress).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostAddresses {
    /// IPv4, if it has one.
    pub v4: Option<Ipv4Addr>,
    /// IPv6, if it has one.
    pub v6: Option<Ipv6Addr>,
}

impl Stack {
    /// Replaces the egress rules and begins to count their hits anew. TCP connections that stand, or wait for the
    /// host, are kept whatever the new rules say: a rule decides when a connection is opened. Datagrams and pings
    /// are asked about one by one, so the new rules concern the next one.
    pub fn set_policy(&mut self, policy: EgressPolicy) {
        self.policy_hits = vec![0; policy.rules().len()];
        self.refusals = RefusalLog::default();
        self.config.policy = policy;
    }

    /// Replaces the DNS servers that the configuration names, first choice first. With none, those of
    /// [`Stack::set_dns_servers`] count again, once they are set.
    pub fn replace_dns_servers(&mut self, servers: Vec<SocketAddr>) {
        self.dns.set_servers(&servers);
        self.config.dns.servers = servers;
    }

    /// Adds a static name; one that is there already with this address is the same. A name that is added replaces a
    /// built-in one.
    ///
    /// # Errors
    /// Not a DNS name, or too many of them.
    pub fn add_dns_name(&mut self, name: &str, address: IpAddr) -> Result<(), ConfigError> {
        if !is_dns_name(name) {
            return Err(ConfigError::DnsName(name.to_owned()));
        }
        let names = &mut self.config.dns.names;
        if names.iter().any(|(known, with)| is_same_name(known, name) && *with == address) {
            return Ok(());
        }
        if names.len() >= DnsConfig::MAX_NAMES {
            return Err(ConfigError::TooManyNames(DnsConfig::MAX_NAMES));
        }
        names.push((name.to_owned(), address));
        self.dns.set_records(&self.config);
        Ok(())
    }

    /// Removes a static name that was configured or added, with this address or with all of them; says how many
    /// records that were. Built-in names cannot be removed, but come back when the name that replaced them goes.
    pub fn remove_dns_name(&mut self, name: &str, address: Option<IpAddr>) -> usize {
        let names = &mut self.config.dns.names;
        let before = names.len();
        names.retain(|(known, with)| {
            !is_same_name(known, name) || address.is_some_and(|address| address != *with)
        });
        let removed = before - names.len();
        self.dns.set_records(&self.config);
        removed
    }

    /// Says what the host's own addresses are now; matters where a map means them.
    pub fn set_host_addresses(&mut self, addresses: HostAddresses) {
        self.host_addresses = addresses;
    }

    /// The egress rules.
    pub fn policy(&self) -> &EgressPolicy {
        &self.config.policy
    }

    /// How often each rule, in order, decided since the rules were set: a TCP connection counts once, datagrams and
    /// pings one by one.
    pub fn policy_hits(&self) -> &[u64] {
        &self.policy_hits
    }

    /// The DNS servers asked at the moment, first choice first.
    pub fn dns_servers(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.dns.servers()
    }

    /// Static names that were configured or added, without the built-in ones.
    pub fn dns_names(&self) -> &[(String, IpAddr)] {
        &self.config.dns.names
    }

    /// The address in the IPv6 subnet that the child spoke from first: with SLAAC it is the child that chooses.
    pub fn child_ipv6(&self) -> Option<Ipv6Addr> {
        let subnet = self.config.ipv6.subnet;
        self.neighbors.addresses().find_map(|address| match address {
            IpAddr::V6(v6) if subnet.contains(v6) => Some(v6),
            _ => None,
        })
    }
}

/// Names have no case, and a final dot changes nothing (RFC 4343).
fn is_same_name(a: &str, b: &str) -> bool {
    let bare = |name: &str| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    bare(a) == bare(b)
}
