//! Published ports: who a client of the host appears as to the child, and sessions of UDP.
//!
//! # Theory of operation
//! *Goal:* the child sees the client's own address wherever it can answer to it, and the gateway's where it cannot
//! ([`visible_source`], a pure rule). Everything else about published ports is in `stack/forward.rs`.
//!
//! *UDP* has no connections: the datagrams of one client to one address of the host are a *session*, which is a flow
//! like others, found from the child's side by its key and from the host's by `SessionIndex`.

use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr};

use hashbrown::HashTable;

use crate::config::{Addressing, Config, Ipv6Plan};
use crate::flow::FlowId;

/// Who clients appear as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ForwardSource {
    /// Themselves, where the child can answer to that. For logs and access rules by address.
    #[default]
    Client,
    /// Always the gateway. For servers that answer to nobody beyond their own network.
    Gateway,
}

/// A published UDP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UdpForward {
    /// Where datagrams go: an address in or behind the child's namespace.
    pub child: SocketAddr,
    /// Who they come from.
    pub source: ForwardSource,
}

/// Names a published UDP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ForwardId(pub(crate) FlowId);

impl ForwardId {
    /// The flow that its socket belongs to.
    pub fn flow(self) -> FlowId {
        self.0
    }

    /// The id as one integer.
    pub fn to_bits(self) -> u64 {
        self.0.to_bits()
    }

    /// The inverse of [`ForwardId::to_bits`].
    pub fn from_bits(bits: u64) -> Self {
        ForwardId(FlowId::from_bits(bits))
    }
}

/// Who `client` appears as to `child`: itself, or the gateway of the child's family with the client's port. The gateway
/// stands for the host's loopback, for clients of the other family, and for addresses that the child would not
/// answer to by way of us: those of its own subnet (with [`Addressing::Copied`], where the engine answers for the
/// neighbours, only the child's own), link-local ones of IPv6, the unspecified, groups, the engine's own.
pub fn visible_source(
    config: &Config,
    client: SocketAddr,
    child: IpAddr,
    source: ForwardSource,
) -> SocketAddr {
    let address = client.ip().to_canonical();
    let itself = source == ForwardSource::Client
        && address.is_ipv4() == child.is_ipv4()
        && may_be_source(config, address);
    SocketAddr::new(if itself { address } else { gateway_for(config, child) }, client.port())
}

/// The gateway's address of the family of `child`.
pub(crate) fn gateway_for(config: &Config, child: IpAddr) -> IpAddr {
    if child.is_ipv4() { config.ipv4.gateway.into() } else { config.ipv6.gateway.into() }
}

/// Whether the child answers to `address` by way of the gateway.
pub(crate) fn may_be_source(config: &Config, address: IpAddr) -> bool {
    let (in_subnet, is_child, link_local) = match address {
        IpAddr::V4(v4) => (config.ipv4.subnet.contains(v4), v4 == config.ipv4.child, false),
        IpAddr::V6(v6) => {
            (config.ipv6.subnet.contains(v6), v6 == config.ipv6.child, v6.is_unicast_link_local())
        }
    };
    let neighbors = config.addressing == Addressing::Copied;
    let beyond = !is_child && !link_local && (neighbors || !in_subnet) && !is_engine(config, address);
    address == gateway_for(config, address) || is_unicast(address) && beyond
}

/// Whether packets may be sent to `address` as one of the child's, or behind it.
pub(crate) fn may_be_child(config: &Config, address: IpAddr) -> bool {
    let reserved = match address {
        IpAddr::V4(v4) => config.ipv4.subnet.is_reserved(v4),
        IpAddr::V6(v6) => v6 == Ipv6Plan::GATEWAY_LINK_LOCAL,
    };
    is_unicast(address) && !reserved && !is_engine(config, address)
}

fn is_engine(config: &Config, address: IpAddr) -> bool {
    config.own_addresses().any(|own| own == address)
}

fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let reserved = v4.octets()[0] == 0 || v4.is_broadcast();
            !(reserved || v4.is_loopback() || v4.is_multicast())
        }
        IpAddr::V6(v6) => {
            // ::/96 and ::ffff:0:0/96, the unspecified address and the loopback among them.
            let holds_v4 = matches!(v6.segments(), [0, 0, 0, 0, 0, 0 | 0xffff, _, _]);
            !(holds_v4 || v6.is_multicast())
        }
    }
}

/// One client's conversation by a published UDP port, seen from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SessionEnds {
    pub(crate) forward: ForwardId,
    /// The client as the host knows it.
    pub(crate) client: SocketAddr,
    /// The address of the host that it sent to; answers leave from it.
    pub(crate) local: Option<IpAddr>,
}

/// Sessions by what the host knows of them.
#[derive(Debug)]
pub(crate) struct SessionIndex {
    table: HashTable<(SessionEnds, FlowId)>,
    hasher: foldhash::fast::FixedState,
}

impl SessionIndex {
    /// An empty index whose hash is keyed by `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        SessionIndex {
            table: HashTable::new(),
            hasher: foldhash::fast::FixedState::with_seed(seed.wrapping_add(1)),
        }
    }

    /// Adds a session, which must not be there.
    pub(crate) fn insert(&mut self, ends: SessionEnds, session: FlowId) {
        let hasher = &self.hasher;
        self.table.insert_unique(hash(hasher, &ends), (ends, session), |(ends, _)| hash(hasher, ends));
    }

    /// Removes a session.
    pub(crate) fn remove(&mut self, ends: &SessionEnds) {
        if let Ok(found) = self.table.find_entry(hash(&self.hasher, ends), |(other, _)| other == ends) {
            found.remove();
        }
    }

    /// The session with these ends.
    pub(crate) fn find(&self, ends: &SessionEnds) -> Option<FlowId> {
        let found = self.table.find(hash(&self.hasher, ends), |(other, _)| other == ends);
        found.map(|&(_, session)| session)
    }

    /// Some session of that client by that forward, whichever address of the host it sent to.
    pub(crate) fn find_client(&self, forward: ForwardId, client: SocketAddr) -> Option<FlowId> {
        let ends = SessionEnds { forward, client, local: None };
        let same = |other: &SessionEnds| (other.forward, other.client) == (forward, client);
        self.table.find(hash(&self.hasher, &ends), |(other, _)| same(other)).map(|&(_, session)| session)
    }

    /// Number of sessions.
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }
}

/// Of forward and client only, so that an error that names no more finds its session.
fn hash(hasher: &foldhash::fast::FixedState, ends: &SessionEnds) -> u64 {
    hasher.hash_one((ends.forward, ends.client))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_keep_their_address_where_the_child_can_answer_to_it() {
        let config = Config::builder().build().unwrap();
        let (v4, v6) = ("10.0.42.100", "fd42:10:42::100");
        for (client, child, visible) in [
            ("198.51.100.7:5", v4, "198.51.100.7:5"),
            ("[2001:db8::7]:5", v6, "[2001:db8::7]:5"),
            // Private networks other than the child's are as good as any.
            ("192.168.1.2:5", v4, "192.168.1.2:5"),
            ("169.254.3.4:5", v4, "169.254.3.4:5"),
            ("[::ffff:198.51.100.7]:5", v4, "198.51.100.7:5"),
            // The host's loopback.
            ("127.0.0.1:5", v4, "10.0.42.2:5"),
            ("127.5.5.5:5", v4, "10.0.42.2:5"),
            ("[::1]:5", v6, "[fd42:10:42::2]:5"),
            ("[::ffff:127.0.0.1]:5", v4, "10.0.42.2:5"),
            // The other family.
            ("198.51.100.7:5", v6, "[fd42:10:42::2]:5"),
            ("[2001:db8::7]:5", v4, "10.0.42.2:5"),
            ("[::ffff:198.51.100.7]:5", v6, "[fd42:10:42::2]:5"),
            // What the child would look for on its own link, or not answer at all.
            ("10.0.42.100:5", v4, "10.0.42.2:5"),
            ("10.0.42.3:5", v4, "10.0.42.2:5"),
            ("10.0.42.2:5", v4, "10.0.42.2:5"),
            ("[fd42:10:42::9]:5", v6, "[fd42:10:42::2]:5"),
            ("[fe80::9]:5", v6, "[fd42:10:42::2]:5"),
            ("0.0.0.0:5", v4, "10.0.42.2:5"),
            ("224.0.0.1:5", v4, "10.0.42.2:5"),
        ] {
            let (client, child): (SocketAddr, IpAddr) = (client.parse().unwrap(), child.parse().unwrap());
            let seen = visible_source(&config, client, child, ForwardSource::Client);
            assert_eq!(seen.to_string(), visible, "{client} to {child}");
            let seen = visible_source(&config, client, child, ForwardSource::Gateway);
            assert_eq!(seen, SocketAddr::new(gateway_for(&config, child), 5));
        }
    }

    #[test]
    fn neighbours_of_a_host_whose_addresses_are_copied_keep_theirs() {
        let ipv4 = crate::config::Ipv4Plan {
            subnet: "192.168.1.0/24".parse().unwrap(),
            gateway: [192, 168, 1, 1].into(),
            dns: [0; 4].into(),
            child: [192, 168, 1, 7].into(),
        };
        let config = Config::builder().addressing(Addressing::Copied).ipv4(ipv4).build().unwrap();
        for (client, visible) in [
            ("192.168.1.9:5", "192.168.1.9:5"),
            ("198.51.100.7:5", "198.51.100.7:5"),
            ("192.168.1.1:5", "192.168.1.1:5"),
            // The host itself has the child's address.
            ("192.168.1.7:5", "192.168.1.1:5"),
            ("127.0.0.1:5", "192.168.1.1:5"),
        ] {
            let client = client.parse().unwrap();
            let seen = visible_source(&config, client, ipv4.child.into(), ForwardSource::Client);
            assert_eq!(seen.to_string(), visible, "{client}");
        }
        assert!(may_be_child(&config, ipv4.child.into()));
        assert!(!may_be_child(&config, ipv4.gateway.into()));
    }

    #[test]
    fn sessions_are_found_with_and_without_the_local_address() {
        let mut index = SessionIndex::new(1);
        let id = |index| FlowId { index, generation: 1 };
        let ends = |local: [u8; 4]| SessionEnds {
            forward: ForwardId(id(0)),
            client: "198.51.100.7:5".parse().unwrap(),
            local: Some(local.into()),
        };
        index.insert(ends([192, 0, 2, 1]), id(1));
        index.insert(ends([192, 0, 2, 2]), id(2));
        assert_eq!(index.find(&ends([192, 0, 2, 1])), Some(id(1)));
        assert_eq!(index.find(&ends([192, 0, 2, 2])), Some(id(2)));
        assert_eq!(index.find(&ends([192, 0, 2, 3])), None);
        index.remove(&ends([192, 0, 2, 1]));
        assert_eq!(index.find_client(ForwardId(id(0)), ends([0; 4]).client), Some(id(2)));
        assert_eq!(index.find_client(ForwardId(id(9)), ends([0; 4]).client), None);
        assert_eq!(index.len(), 1);
    }
}
