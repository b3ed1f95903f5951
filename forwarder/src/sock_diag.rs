//! The kernel's list of sockets by netlink: sock_diag(7), `linux/inet_diag.h`. The messages are pure; [`DiagSocket`] talks.
//!
//! # Theory of operation
//! A question names family, protocol and states; the kernel answers with one message for each socket and "done", or, if
//! one socket was asked for, with that one or an error. It also tells, unasked, of TCP sockets that were destroyed; what
//! it does not tell of is new ones, so whoever follows the list has to ask again. A netlink socket sees the network
//! namespace in which it was made, whoever holds it. Not handled: SCTP and raw sockets, extensions but IPV6_V6ONLY.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use crate::spec::{Family, Transport};
pub use crate::sys::sock_diag::DiagSocket;

/// A socket of the kernel's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Socket {
    /// TCP or UDP.
    pub transport: Transport,
    /// What it is bound to.
    pub address: SocketAddr,
    /// Whom it hears.
    pub reach: Reach,
    /// Index of the interface it is bound to; 0: all.
    pub interface: u32,
    /// The user who made it, as the asker's user namespace numbers users.
    pub uid: u32,
    /// Its inode, as in `/proc/PID/fd`; 0: no process holds it.
    pub inode: u32,
}

/// Whether an IPv6 socket hears IPv4 clients too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Its own family.
    OwnFamily,
    /// Both: IPv6 without IPV6_V6ONLY.
    BothFamilies,
}

/// Which sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// TCP or UDP.
    pub transport: Transport,
    /// IPv4 or IPv6.
    pub family: Family,
    /// A bit for each state, see [`LISTENING`] and [`HOLDING_A_PORT`].
    states: u32,
}

impl Query {
    /// TCP that listens, UDP that is bound and hears everybody.
    pub fn listening(transport: Transport, family: Family) -> Self {
        let states = match transport {
            Transport::Tcp => 1 << TCP_LISTEN,
            Transport::Udp => 1 << TCP_CLOSE,
        };
        Query { transport, family, states }
    }

    /// Besides those, connected UDP, which keeps others from its port as well.
    pub fn holding(transport: Transport, family: Family) -> Self {
        let mut query = Query::listening(transport, family);
        if transport == Transport::Udp {
            query.states |= 1 << TCP_ESTABLISHED;
        }
        query
    }
}

/// The four questions for all that listens.
pub const EVERYTHING: [(Transport, Family); 4] = [
    (Transport::Tcp, Family::V4),
    (Transport::Tcp, Family::V6),
    (Transport::Udp, Family::V4),
    (Transport::Udp, Family::V6),
];

/// A request for the whole list.
pub fn encode_dump(sequence: u32, query: Query) -> [u8; REQUEST] {
    encode(sequence, libc::NLM_F_DUMP, query, None)
}

/// A request for the socket that would hear a client of `address`.
pub fn encode_lookup(sequence: u32, transport: Transport, address: SocketAddr) -> [u8; REQUEST] {
    let query = Query::listening(transport, Family::of(address.ip()));
    encode(sequence, 0, query, Some(address))
}

/// A request for the TCP socket at `local` that is connected to `remote`, both of one family; failing it the kernel names
/// the one that listens there.
pub fn encode_connected(sequence: u32, local: SocketAddr, remote: SocketAddr) -> [u8; REQUEST] {
    let mut bytes = encode_lookup(sequence, Transport::Tcp, local);
    bytes[REQ_DPORT].copy_from_slice(&remote.port().to_be_bytes());
    write_ip(&mut bytes[REQ_DST], remote.ip());
    bytes
}

/// What the kernel said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// A socket of the answer with this number.
    Socket(u32, Socket),
    /// The end of the answer with this number.
    Done(u32),
    /// The question with this number was refused: errno(3).
    Refused(u32, i32),
    /// Unasked: a TCP socket that was not connected is no more.
    Destroyed,
    /// Something else.
    Other,
}

/// Reads every message of one datagram that answers questions about `transport`; what is cut short is left out.
pub fn decode(mut bytes: &[u8], transport: Transport) -> impl Iterator<Item = Message> + '_ {
    std::iter::from_fn(move || {
        let length = usize::try_from(read_u32(bytes, NLMSG_LEN)?).ok()?;
        if length < HEADER || length > bytes.len() {
            return None;
        }
        let (message, _) = bytes.split_at(length);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(decode_one(message, transport).unwrap_or(Message::Other))
    })
}

fn decode_one(message: &[u8], transport: Transport) -> Option<Message> {
    let kind = u16::from_ne_bytes(message.get(NLMSG_TYPE)?.try_into().ok()?);
    let sequence = read_u32(message, NLMSG_SEQ)?;
    match i32::from(kind) {
        libc::NLMSG_DONE => Some(Message::Done(sequence)),
        libc::NLMSG_ERROR => {
            let errno = read_u32(message, ERROR_CODE)?.cast_signed().wrapping_neg();
            Some(Message::Refused(sequence, errno))
        }
        SOCK_DIAG_BY_FAMILY if sequence == UNASKED => Some(Message::Destroyed),
        SOCK_DIAG_BY_FAMILY => Some(Message::Socket(sequence, socket(message.get(HEADER..)?, transport)?)),
        _ => None,
    }
}

/// `struct inet_diag_msg` and its attributes.
fn socket(message: &[u8], transport: Transport) -> Option<Socket> {
    let port = u16::from_be_bytes(message.get(MSG_SPORT)?.try_into().ok()?);
    let source: [u8; 16] = message.get(MSG_SRC)?.try_into().ok()?;
    let ip = match i32::from(*message.first()?) {
        libc::AF_INET => {
            let [a, b, c, d, ..] = source;
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::from(source)),
        _ => return None,
    };
    let v6only = attribute(message.get(MSG_LEN..)?, INET_DIAG_SKV6ONLY).and_then(|value| value.first());
    Some(Socket {
        transport,
        address: SocketAddr::new(ip, port),
        reach: if ip.is_ipv6() && v6only == Some(&0) { Reach::BothFamilies } else { Reach::OwnFamily },
        interface: read_u32(message, MSG_IF)?,
        uid: read_u32(message, MSG_UID)?,
        inode: read_u32(message, MSG_INODE)?,
    })
}

fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

fn encode(sequence: u32, flags: libc::c_int, query: Query, one: Option<SocketAddr>) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    let flags = (libc::NLM_F_REQUEST | flags) as u16;
    bytes[NLMSG_LEN].copy_from_slice(&(REQUEST as u32).to_ne_bytes());
    bytes[NLMSG_TYPE].copy_from_slice(&(SOCK_DIAG_BY_FAMILY as u16).to_ne_bytes());
    bytes[NLMSG_FLAGS].copy_from_slice(&flags.to_ne_bytes());
    bytes[NLMSG_SEQ].copy_from_slice(&sequence.to_ne_bytes());
    bytes[REQ_FAMILY] = match query.family {
        Family::V4 => libc::AF_INET as u8,
        Family::V6 => libc::AF_INET6 as u8,
    };
    bytes[REQ_PROTOCOL] = match query.transport {
        Transport::Tcp => libc::IPPROTO_TCP as u8,
        Transport::Udp => libc::IPPROTO_UDP as u8,
    };
    bytes[REQ_STATES].copy_from_slice(&query.states.to_ne_bytes());
    if let Some(address) = one {
        // UDP takes the two ends the other way round ("for historical reasons", udp_diag.c).
        let (port, ip) = match query.transport {
            Transport::Tcp => (REQ_SPORT, REQ_SRC),
            Transport::Udp => (REQ_DPORT, REQ_DST),
        };
        bytes[port].copy_from_slice(&address.port().to_be_bytes());
        write_ip(&mut bytes[ip], address.ip());
    }
    bytes[REQ_COOKIE].fill(0xff);
    bytes
}

fn write_ip(field: &mut [u8], ip: IpAddr) {
    match ip {
        IpAddr::V4(v4) => field[..4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => field.copy_from_slice(&v6.octets()),
    }
}

fn read_u32(bytes: &[u8], range: Range<usize>) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(range)?.try_into().ok()?))
}

/// Bytes of a request.
pub const REQUEST: usize = 72;

/// The number that no question may have.
pub(crate) const UNASKED: u32 = 0;

// struct nlmsghdr, struct nlmsgerr
const HEADER: usize = 16;
const NLMSG_LEN: Range<usize> = 0..4;
const NLMSG_TYPE: Range<usize> = 4..6;
const NLMSG_FLAGS: Range<usize> = 6..8;
pub(crate) const NLMSG_SEQ: Range<usize> = 8..12;
const ERROR_CODE: Range<usize> = 16..20;

// struct inet_diag_req_v2, behind the header
const REQ_FAMILY: usize = 16;
const REQ_PROTOCOL: usize = 17;
const REQ_STATES: Range<usize> = 20..24;
const REQ_SPORT: Range<usize> = 24..26;
const REQ_DPORT: Range<usize> = 26..28;
const REQ_SRC: Range<usize> = 28..44;
const REQ_DST: Range<usize> = 44..60;
const REQ_COOKIE: Range<usize> = 64..72;

// struct inet_diag_msg, from its start
const MSG_SPORT: Range<usize> = 4..6;
const MSG_SRC: Range<usize> = 8..24;
const MSG_IF: Range<usize> = 40..44;
const MSG_UID: Range<usize> = 64..68;
const MSG_INODE: Range<usize> = 68..72;
const MSG_LEN: usize = 72;
/// The peer's port, from the start of the whole message.
pub(crate) const DPORT_OFFSET: usize = HEADER + 6;

// linux/sock_diag.h, linux/inet_diag.h, net/tcp_states.h
const SOCK_DIAG_BY_FAMILY: i32 = 20;
const INET_DIAG_SKV6ONLY: u16 = 11;
const TCP_ESTABLISHED: u32 = 1;
const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_what_iproute2_asks() {
        // ss -4tln: as strace shows it, with our number and without its extensions.
        let mut expected = vec![72, 0, 0, 0, 20, 0, 1, 3, 7, 0, 0, 0, 0, 0, 0, 0, 2, 6, 0, 0, 0, 4, 0, 0];
        expected.extend([0; 40]);
        expected.extend([0xff; 8]);
        assert_eq!(encode_dump(7, Query::listening(Transport::Tcp, Family::V4))[..], expected);
        let lookup = encode_lookup(8, Transport::Udp, "[::1]:53".parse().unwrap());
        assert_eq!(lookup[16..28], [10, 17, 0, 0, 128, 0, 0, 0, 0, 0, 0, 53]);
        assert_eq!(lookup[44..60], Ipv6Addr::LOCALHOST.octets());
    }

    fn answer(sequence: u32, family: i32, v6only: Option<u8>) -> Vec<u8> {
        let mut bytes = vec![0; 88];
        bytes[4] = 20;
        bytes[NLMSG_SEQ].copy_from_slice(&sequence.to_ne_bytes());
        bytes[16] = family as u8;
        bytes[20..22].copy_from_slice(&8080u16.to_be_bytes());
        bytes[24..28].copy_from_slice(&[127, 0, 0, 1]);
        bytes[80..84].copy_from_slice(&1000u32.to_ne_bytes());
        bytes[84..88].copy_from_slice(&4711u32.to_ne_bytes());
        bytes.extend([5, 0, 5, 0, 9, 0, 0, 0]);
        if let Some(v6only) = v6only {
            bytes.extend([5, 0, 11, 0, v6only, 0, 0, 0]);
        }
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes
    }

    #[test]
    fn answers_are_read() {
        let mut bytes = answer(7, libc::AF_INET, None);
        bytes.extend(answer(7, libc::AF_INET6, Some(0)));
        bytes.extend(answer(7, libc::AF_INET6, Some(1)));
        bytes.extend(answer(7, libc::AF_UNIX, None));
        bytes.extend(answer(UNASKED, libc::AF_INET, None));
        bytes.extend([20, 0, 0, 0, 3, 0, 2, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([20, 0, 0, 0, 2, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff]);
        let messages: Vec<_> = decode(&bytes, Transport::Tcp).collect();
        let v4 = Socket {
            transport: Transport::Tcp,
            address: "127.0.0.1:8080".parse().unwrap(),
            reach: Reach::OwnFamily,
            interface: 0,
            uid: 1000,
            inode: 4711,
        };
        let v6 = Socket { address: "[7f00:1::]:8080".parse().unwrap(), ..v4 };
        assert_eq!(
            messages,
            [
                Message::Socket(7, v4),
                Message::Socket(7, Socket { reach: Reach::BothFamilies, ..v6 }),
                Message::Socket(7, v6),
                Message::Other,
                Message::Destroyed,
                Message::Done(7),
                Message::Refused(9, libc::ENOENT),
            ]
        );
    }

    #[test]
    fn nonsense_is_left_out() {
        assert_eq!(decode(&[], Transport::Tcp).count(), 0);
        assert_eq!(decode(&[0; 16], Transport::Tcp).count(), 0);
        let whole = answer(1, libc::AF_INET6, Some(0));
        for cut in 0..whole.len() {
            assert_eq!(decode(&whole[..cut], Transport::Tcp).count(), 0, "cut at {cut}");
        }
        let mut endless = whole;
        endless[88..90].fill(0);
        assert!(matches!(decode(&endless, Transport::Tcp).next(), Some(Message::Socket(1, _))));
    }
}
