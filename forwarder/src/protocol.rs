//! The messages between driver and agent.
//!
//! # Theory of operation
//! Goal: sockets that live in the child's namespace reach the driver without a round trip per connection. Driver and
//! agent share a `SOCK_SEQPACKET` pair; one message is one packet, descriptors travel beside it (`SCM_RIGHTS`). The driver
//! opens with [`Request::Hello`], the agent answers each request once, in order. The first byte of every message
//! is the version: both ends are the same program, so a difference is an error and not a negotiation. No message is
//! longer than [`MAX_MESSAGE`].

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;

use crate::spec::{Family, Transport};

/// Version of these messages.
pub const VERSION: u8 = 4;
/// The longest message, in bytes.
pub const MAX_MESSAGE: usize = 48;
/// Sockets per [`Request::Sockets`]: what fits one message (`SCM_MAX_FD`).
pub const MAX_SOCKETS: u8 = 253;

/// What a socket can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Talks to the child itself over its loopback interface, from any address: transparent and marked.
    Transparent,
    /// An ordinary socket of the child.
    Plain,
    /// Stands for a machine of the world towards the child: transparent, with the mark that keeps its connection in the child.
    World,
    /// Talks to the child and to machines behind it, from any address: transparent, with the mark by which connection
    /// tracking knows what answers it, whatever rules of the child translate.
    Tracked,
}

/// Which sockets are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SocketKind {
    /// TCP or UDP.
    pub transport: Transport,
    /// IPv4 or IPv6.
    pub family: Family,
    /// What they can do.
    pub reach: Reach,
}

/// What becomes of the namespace's routing rules and sysctls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rules {
    /// Those are added and set that let clients keep their addresses: the namespace is ours.
    #[default]
    Add,
    /// They stay as they are: the namespace is somebody else's.
    Leave,
}

/// Whether the namespace is prepared for relaying the connections that begin in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Egress {
    /// No: they go by the TAP.
    #[default]
    Leave,
    /// A table of nftables, a routing rule and sysctls are put in.
    Prepare,
}

/// Whether connections that begin in the child can be relayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EgressAbility {
    /// Nobody has asked for it, or the agent has not answered yet.
    #[default]
    Unknown,
    /// They can.
    Possible,
    /// They cannot.
    Impossible {
        /// What the kernel refused.
        step: EgressStep,
        /// errno(3).
        errno: i32,
    },
}

/// What preparing the namespace for relaying consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EgressStep {
    /// A transparent socket (CAP_NET_ADMIN).
    Socket,
    /// The sysctls.
    Sysctl,
    /// The routing rule and its table.
    Route,
    /// The netlink socket of netfilter.
    Netlink,
    /// The table of nftables (the kernel has nf_tables).
    Table,
    /// A chain (type route in the family inet: Linux 5.2).
    Chain,
    /// A rule (the expressions meta, ct, payload, bitwise).
    Rule,
    /// All of it together.
    Commit,
    /// The agent itself: it never answered.
    Agent,
}

impl EgressStep {
    const ALL: [EgressStep; 9] = [
        EgressStep::Socket,
        EgressStep::Sysctl,
        EgressStep::Route,
        EgressStep::Netlink,
        EgressStep::Table,
        EgressStep::Chain,
        EgressStep::Rule,
        EgressStep::Commit,
        EgressStep::Agent,
    ];
}

impl fmt::Display for EgressStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EgressStep::Socket => "transparent socket",
            EgressStep::Sysctl => "sysctl",
            EgressStep::Route => "routing rule",
            EgressStep::Netlink => "netfilter's netlink socket",
            EgressStep::Table => "nftables table",
            EgressStep::Chain => "nftables chain",
            EgressStep::Rule => "nftables rule",
            EgressStep::Commit => "nftables transaction",
            EgressStep::Agent => "agent in the child's namespace",
        })
    }
}

impl fmt::Display for EgressAbility {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EgressAbility::Unknown => f.write_str("not asked for"),
            EgressAbility::Possible => f.write_str("possible"),
            EgressAbility::Impossible { step, errno } => {
                write!(f, "{step}: {}", std::io::Error::from_raw_os_error(*errno))
            }
        }
    }
}

/// What the driver asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Say what is possible in the namespace.
    Hello {
        /// Whether it may be prepared for clients that keep their addresses.
        rules: Rules,
        /// Whether it is to be prepared for relaying what begins in it.
        egress: Egress,
    },
    /// Unconnected sockets, 1 to [`MAX_SOCKETS`].
    Sockets {
        /// Which.
        kind: SocketKind,
        /// How many.
        count: u8,
    },
    /// A bound socket, which listens if it is a TCP one.
    Listen {
        /// The driver's name for it.
        id: u64,
        /// TCP or UDP.
        transport: Transport,
        /// Where; port 0 for any.
        address: SocketAddr,
    },
    /// A route of its own, or none any more, for a TCP connection that is relayed: its packets are made for the loopback device. Both
    /// addresses are of one family.
    Route {
        /// Whether it is to be.
        change: Change,
        /// The child's end.
        child: SocketAddr,
        /// Whereto the child has connected.
        destination: SocketAddr,
    },
}

/// What becomes of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is added.
    Add,
    /// It is removed.
    Remove,
}

/// What the agent answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The namespace is prepared, if it was to be. With it comes a netlink socket that hears of the child's addresses, if `addresses`,
    /// and two for sock_diag(7), if `diag`, in this order.
    Hello {
        /// What is possible.
        abilities: Abilities,
    },
    /// The sockets that were asked for, as many as could be made.
    Sockets {
        /// Which.
        kind: SocketKind,
        /// How many come with it.
        count: u8,
        /// Why there are not more; 0 if there are as many as wanted.
        errno: i32,
    },
    /// A bound socket comes with it, if `errno` is 0.
    Listening {
        /// The driver's name for it.
        id: u64,
        /// errno(3) or 0.
        errno: i32,
    },
    /// The route is as it was to be, if `errno` is 0.
    Routed {
        /// errno(3) or 0.
        errno: i32,
    },
}

/// What is possible in the child's namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// Sockets can have any IPv4 address and are answered.
    pub transparent_v4: bool,
    /// The same for IPv6.
    pub transparent_v6: bool,
    /// A socket came that hears of the child's addresses.
    pub addresses: bool,
    /// Sockets came that tell who listens.
    pub diag: bool,
    /// The ports that the child's kernel hands out by itself, first and last; both 0 if that is not known.
    pub ephemeral: (u16, u16),
    /// Whether IPv4 connections that begin in the child can be relayed.
    pub egress_v4: EgressAbility,
    /// The same for IPv6.
    pub egress_v6: EgressAbility,
    /// [`Reach::Tracked`] is there: the table for it is, and nobody else can flush it.
    pub tracked: bool,
}

impl Abilities {
    /// Whether sockets can have any address of a family.
    pub fn transparent(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.transparent_v4,
            Family::V6 => self.transparent_v6,
        }
    }

    /// Whether connections of a family that begin in the child can be relayed.
    pub fn egress(&self, family: Family) -> EgressAbility {
        match family {
            Family::V4 => self.egress_v4,
            Family::V6 => self.egress_v6,
        }
    }
}

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProtocolError {
    /// Too short, too long, or with a value that means nothing.
    #[error("a message of the forwarding agent cannot be understood")]
    Malformed,
    /// The other end is another program.
    #[error("the forwarding agent speaks version {0}, not {VERSION}")]
    Version(u8),
}

impl Request {
    /// The bytes of the message.
    pub fn encode(&self) -> Vec<u8> {
        match *self {
            Request::Hello { rules, egress } => vec![VERSION, 1, rules as u8, egress as u8],
            Request::Sockets { kind, count } => {
                let [transport, family, reach] = kind.encode();
                vec![VERSION, 2, transport, family, reach, count]
            }
            Request::Listen { id, transport, address } => {
                let mut bytes = vec![VERSION, 3, transport as u8];
                bytes.extend(id.to_be_bytes());
                encode_address(address, &mut bytes);
                bytes
            }
            Request::Route { change, child, destination } => {
                let mut bytes = vec![VERSION, 4, change as u8];
                encode_address(child, &mut bytes);
                encode_address(destination, &mut bytes);
                bytes
            }
        }
    }

    /// Reads a message.
    ///
    /// # Errors
    /// It is none.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProtocolError> {
        match *body(bytes)? {
            [1, rules @ 0..=1, egress @ 0..=1] => Ok(Request::Hello {
                rules: if rules == 0 { Rules::Add } else { Rules::Leave },
                egress: if egress == 0 { Egress::Leave } else { Egress::Prepare },
            }),
            [2, transport, family, reach, count] if (1..=MAX_SOCKETS).contains(&count) => {
                Ok(Request::Sockets { kind: SocketKind::decode(transport, family, reach)?, count })
            }
            [3, transport, ref rest @ ..] => {
                let (id, rest) = rest.split_first_chunk().ok_or(ProtocolError::Malformed)?;
                let address = decode_address(rest)?;
                let transport = decode_transport(transport)?;
                Ok(Request::Listen { id: u64::from_be_bytes(*id), transport, address })
            }
            [4, change @ 0..=1, ref rest @ ..] => {
                let (child, destination) = rest.split_at(rest.len() / 2);
                let change = if change == 0 { Change::Add } else { Change::Remove };
                let (child, destination) = (decode_address(child)?, decode_address(destination)?);
                Ok(Request::Route { change, child, destination })
            }
            _ => Err(ProtocolError::Malformed),
        }
    }
}

impl Reply {
    /// The bytes of the message.
    pub fn encode(&self) -> Vec<u8> {
        match *self {
            Reply::Hello { abilities } => {
                let Abilities {
                    transparent_v4,
                    transparent_v6,
                    addresses,
                    diag,
                    ephemeral,
                    egress_v4,
                    egress_v6,
                    tracked,
                } = abilities;
                let flags = [transparent_v4, transparent_v6, addresses, diag, tracked];
                let mut bytes = vec![VERSION, 1];
                bytes.extend(flags.map(u8::from));
                bytes.extend(ephemeral.0.to_be_bytes());
                bytes.extend(ephemeral.1.to_be_bytes());
                bytes.extend(egress_v4.encode());
                bytes.extend(egress_v6.encode());
                bytes
            }
            Reply::Sockets { kind, count, errno } => {
                let [transport, family, reach] = kind.encode();
                let mut bytes = vec![VERSION, 2, transport, family, reach, count];
                bytes.extend(errno.to_be_bytes());
                bytes
            }
            Reply::Listening { id, errno } => {
                let mut bytes = vec![VERSION, 3];
                bytes.extend(id.to_be_bytes());
                bytes.extend(errno.to_be_bytes());
                bytes
            }
            Reply::Routed { errno } => {
                let mut bytes = vec![VERSION, 4];
                bytes.extend(errno.to_be_bytes());
                bytes
            }
        }
    }

    /// Reads a message.
    ///
    /// # Errors
    /// It is none.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProtocolError> {
        match *body(bytes)? {
            [1, a @ 0..=1, b @ 0..=1, c @ 0..=1, d @ 0..=1, e @ 0..=1, f, g, h, i, ref rest @ ..] => {
                let flags = [a, b, c, d, e].map(|flag| flag == 1);
                let [transparent_v4, transparent_v6, addresses, diag, tracked] = flags;
                let ephemeral = (u16::from_be_bytes([f, g]), u16::from_be_bytes([h, i]));
                let (v4, v6) = rest.split_first_chunk().ok_or(ProtocolError::Malformed)?;
                let v6 = v6.try_into().map_err(|_| ProtocolError::Malformed)?;
                let abilities = Abilities {
                    transparent_v4,
                    transparent_v6,
                    addresses,
                    diag,
                    ephemeral,
                    egress_v4: EgressAbility::decode(*v4)?,
                    egress_v6: EgressAbility::decode(v6)?,
                    tracked,
                };
                Ok(Reply::Hello { abilities })
            }
            [2, transport, family, reach, count @ 0..=MAX_SOCKETS, ref errno @ ..] => {
                let kind = SocketKind::decode(transport, family, reach)?;
                Ok(Reply::Sockets { kind, count, errno: decode_errno(errno)? })
            }
            [3, ref rest @ ..] => {
                let (id, errno) = rest.split_first_chunk().ok_or(ProtocolError::Malformed)?;
                Ok(Reply::Listening { id: u64::from_be_bytes(*id), errno: decode_errno(errno)? })
            }
            [4, ref errno @ ..] => Ok(Reply::Routed { errno: decode_errno(errno)? }),
            _ => Err(ProtocolError::Malformed),
        }
    }
}

impl EgressAbility {
    /// 0, 1, or 2 and more for the step; errno.
    fn encode(self) -> [u8; 5] {
        let (kind, errno) = match self {
            EgressAbility::Unknown => (0, 0),
            EgressAbility::Possible => (1, 0),
            EgressAbility::Impossible { step, errno } => (2 + step as u8, errno),
        };
        let [a, b, c, d] = errno.to_be_bytes();
        [kind, a, b, c, d]
    }

    fn decode([kind, errno @ ..]: [u8; 5]) -> Result<Self, ProtocolError> {
        match (kind, i32::from_be_bytes(errno)) {
            (0, 0) => Ok(EgressAbility::Unknown),
            (1, 0) => Ok(EgressAbility::Possible),
            (2.., errno) => {
                let step = EgressStep::ALL.get(usize::from(kind - 2)).ok_or(ProtocolError::Malformed)?;
                Ok(EgressAbility::Impossible { step: *step, errno })
            }
            _ => Err(ProtocolError::Malformed),
        }
    }
}

impl SocketKind {
    fn encode(self) -> [u8; 3] {
        [self.transport as u8, self.family as u8, self.reach as u8]
    }

    fn decode(transport: u8, family: u8, reach: u8) -> Result<Self, ProtocolError> {
        let family = match family {
            0 => Family::V4,
            1 => Family::V6,
            _ => return Err(ProtocolError::Malformed),
        };
        let reach = match reach {
            0 => Reach::Transparent,
            1 => Reach::Plain,
            2 => Reach::World,
            3 => Reach::Tracked,
            _ => return Err(ProtocolError::Malformed),
        };
        Ok(SocketKind { transport: decode_transport(transport)?, family, reach })
    }
}

fn body(bytes: &[u8]) -> Result<&[u8], ProtocolError> {
    match bytes {
        [VERSION, body @ ..] if bytes.len() <= MAX_MESSAGE => Ok(body),
        [VERSION, ..] | [] => Err(ProtocolError::Malformed),
        [version, ..] => Err(ProtocolError::Version(*version)),
    }
}

/// Port and address, whose length tells the family.
fn encode_address(address: SocketAddr, bytes: &mut Vec<u8>) {
    bytes.extend(address.port().to_be_bytes());
    match address.ip() {
        IpAddr::V4(address) => bytes.extend(address.octets()),
        IpAddr::V6(address) => bytes.extend(address.octets()),
    }
}

fn decode_address(bytes: &[u8]) -> Result<SocketAddr, ProtocolError> {
    let (port, address) = bytes.split_first_chunk().ok_or(ProtocolError::Malformed)?;
    let address = if let Ok(v4) = <[u8; 4]>::try_from(address) {
        Ipv4Addr::from(v4).into()
    } else if let Ok(v6) = <[u8; 16]>::try_from(address) {
        Ipv6Addr::from(v6).into()
    } else {
        return Err(ProtocolError::Malformed);
    };
    Ok(SocketAddr::new(address, u16::from_be_bytes(*port)))
}

fn decode_transport(transport: u8) -> Result<Transport, ProtocolError> {
    match transport {
        0 => Ok(Transport::Tcp),
        1 => Ok(Transport::Udp),
        _ => Err(ProtocolError::Malformed),
    }
}

fn decode_errno(bytes: &[u8]) -> Result<i32, ProtocolError> {
    bytes.try_into().map(i32::from_be_bytes).map_err(|_| ProtocolError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: SocketKind =
        SocketKind { transport: Transport::Udp, family: Family::V6, reach: Reach::Plain };

    fn route(child: &str, destination: &str) -> Request {
        let (child, destination) = (child.parse().unwrap(), destination.parse().unwrap());
        Request::Route { change: Change::Remove, child, destination }
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        for request in [
            Request::Hello { rules: Rules::Add, egress: Egress::Prepare },
            Request::Hello { rules: Rules::Leave, egress: Egress::Leave },
            Request::Sockets { kind: KIND, count: 253 },
            Request::Listen { id: 7, transport: Transport::Tcp, address: "127.0.0.1:80".parse().unwrap() },
            Request::Listen { id: u64::MAX, transport: Transport::Udp, address: "[::1]:0".parse().unwrap() },
            route("10.0.2.100:40000", "198.51.100.1:80"),
            route("[fd00::64]:40000", "[2001:db8::1]:443"),
        ] {
            let bytes = request.encode();
            assert!(bytes.len() <= MAX_MESSAGE);
            assert_eq!(Request::decode(&bytes), Ok(request));
        }
        let abilities = Abilities {
            transparent_v4: true,
            diag: true,
            ephemeral: (32768, 60999),
            egress_v4: EgressAbility::Possible,
            tracked: true,
            ..Abilities::default()
        };
        let unable = EgressStep::ALL.map(|step| {
            let egress_v6 = EgressAbility::Impossible { step, errno: libc::EPERM };
            Reply::Hello { abilities: Abilities { egress_v6, ..abilities } }
        });
        for reply in [
            Reply::Hello { abilities },
            Reply::Sockets { kind: KIND, count: 0, errno: libc::EMFILE },
            Reply::Listening { id: 9, errno: 0 },
            Reply::Routed { errno: libc::EPERM },
        ]
        .into_iter()
        .chain(unable)
        {
            let bytes = reply.encode();
            assert!(bytes.len() <= MAX_MESSAGE);
            assert_eq!(Reply::decode(&bytes), Ok(reply));
        }
    }

    #[test]
    fn what_is_cut_short_or_too_long_is_refused() {
        let whole =
            Request::Listen { id: 1, transport: Transport::Tcp, address: "[::1]:80".parse().unwrap() };
        let whole = whole.encode();
        for len in 0..whole.len() {
            let cut = Request::decode(&whole[..len]);
            assert!(cut.is_err() || len == whole.len() - 12, "{len}: {cut:?}");
        }
        let ends = route("[fd00::64]:40000", "[2001:db8::1]:443").encode();
        for len in 0..ends.len() {
            let cut = Request::decode(&ends[..len]);
            assert!(cut.is_err() || len == ends.len() - 24, "{len}: {cut:?}");
        }
        let mut long = whole.clone();
        long.push(0);
        assert_eq!(Request::decode(&long), Err(ProtocolError::Malformed));
        assert_eq!(Request::decode(&[VERSION, 2, 0, 0, 0, 0]), Err(ProtocolError::Malformed), "none wanted");
        assert_eq!(Request::decode(&[VERSION, 2, 0, 0, 0, 254]), Err(ProtocolError::Malformed), "too many");
    }

    #[test]
    fn another_version_is_named() {
        assert_eq!(Reply::decode(&[9, 1]), Err(ProtocolError::Version(9)));
        assert_eq!(Reply::decode(&[]), Err(ProtocolError::Malformed));
    }
}
