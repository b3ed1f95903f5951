//! The agent inside the child's namespace: makes sockets there and hands them over.
//!
//! # Theory of operation
//! A socket belongs to the network namespace it was made in, for life, whoever holds it. So the agent makes sockets and sends them
//! (`SCM_RIGHTS`); the driver, in the host's namespace, binds and connects them by itself. The agent does nothing else: it reads a
//! request, answers it, and ends when the driver does.
//!
//! *The client's address is kept* without netfilter, if need be: a transparent socket can be bound to any address. What it sends to the child
//! goes over the child's loopback interface, because the destination is local; the server's answer to the client's address would
//! leave by the default route. Therefore the sockets are marked ([`MARK`]), `net.ipv4.tcp_fwmark_accept` makes accepted sockets
//! inherit the mark of the SYN, `fwmark_reflect` gives it to answers that no socket sends (RST), and a rule with a
//! table of its own makes every destination of marked packets a local one. Packets with other marks see no difference in routing;
//! that servers' sockets inherit *their* marks is the one effect on others. Where the table for the next paragraph is there, such
//! sockets have a mark of their own ([`FORWARD_MARK`]) and follow the child's rules and routes, to machines behind it, too.
//!
//! *What begins in the child* is relayed, if the driver wants it so ([`Egress::Prepare`]): [`crate::netfilter`] says how its
//! packets are kept in the child, the same routing rule delivers them. The sockets for it have a mark of their own
//! ([`RELAY_MARK`]), for which no rule exists, because some of their packets go to machines behind the child. The driver binds
//! them to the addresses of the world's servers without any privilege, so `net.ipv4.ip_unprivileged_port_start` is 0 then, and
//! `tcp_tw_reuse` is 1 because they are tied to no interface; connection tracking forgets connections that were reset at once, and
//! those that have ended soon (`TRACKED_AFTER`).
//!
//! Of such a connection that carries bulk, the child's own packets are made for the loopback device, too: a rule of its own
//! ([`CONNECTION_PRIORITY`]) leads to the same table. It goes when the bulk ends, and with the agent.
//!
//! Where the namespace is somebody else's ([`Rules::Leave`]) nothing of this is done, and sockets are ordinary ones.
//!
//! The sockets are tied to `lo`, for which the kernel allows a port whose last connection ended a second ago
//! (`net.ipv4.tcp_tw_reuse`, 2 by default) to be used again.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::socket::MsgFlags;
use thiserror::Error;

use crate::auto::local_port_range;
use crate::protocol::{
    Abilities, Change, Egress, EgressAbility, EgressStep, MAX_MESSAGE, ProtocolError, Reach, Reply, Request,
    Rules, SocketKind,
};
use crate::sock_diag::DiagSocket;
use crate::spec::{Family, Transport};
use crate::sys::netfilter::Table;
use crate::sys::{rtnetlink, scm, socket};

/// Mark of what our sockets in the child send and what answers it: "rl", 1.
pub const MARK: u32 = 0x726c_0001;
/// Mark of what relaying sockets send to the child and to machines behind it: "rl", 2.
pub const RELAY_MARK: u32 = 0x726c_0002;
/// Mark of what forwarding sockets send to the child and to machines behind it: "rl", 3.
pub const FORWARD_MARK: u32 = 0x726c_0003;
/// Seconds of silence after which a relaying socket looks for its peer. Connection tracking forgets a connection in which one side
/// has not spoken, or has ended, after a minute.
pub(crate) const RELAY_KEEPALIVE: i32 = 45;
/// Routing table in which everything is local.
pub const TABLE: u32 = 0x726c;
/// Priority of the rule that leads there: before anything an administrator would write, after `local`.
pub const RULE_PRIORITY: u32 = 1;

/// Priority of the rules of single connections ([`Request::Route`]).
pub const CONNECTION_PRIORITY: u32 = 2;
/// Mark of what begins in the child and would find such a rule that is not for it: "rl", 4.
pub const BEGINNING_MARK: u32 = 0x726c_0004;

/// Why the agent ended.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AgentError {
    /// recvmsg(2) failed.
    #[error("cannot receive from the driver")]
    Receive(#[source] io::Error),
    /// sendmsg(2) failed.
    #[error("cannot answer the driver")]
    Send(#[source] io::Error),
    /// The driver sent something else.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

/// Serves the driver at the other end of `channel` (of [`ChildLine::pair`](crate::driver::ChildLine::pair)) until it goes. The
/// caller has joined the child's user and network namespaces, and keeps CAP_NET_ADMIN there if clients' addresses are to be kept.
///
/// # Errors
/// The channel is broken, or the other end is another program.
pub fn run(channel: OwnedFd) -> Result<(), AgentError> {
    let mut buffer = [0; MAX_MESSAGE];
    let mut prepared = Prepared::default();
    loop {
        let mut fds = Vec::new();
        let len = match scm::receive(channel.as_fd(), &mut buffer, &mut fds, MsgFlags::empty()) {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(AgentError::Receive(error)),
        };
        let (reply, fds) = answer(Request::decode(buffer.get(..len).unwrap_or_default())?, &mut prepared);
        match scm::send(channel.as_fd(), &reply.encode(), &fds, MsgFlags::empty()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            // Other programs of this user have too many descriptors under way (unix(7)).
            Err(error) if error.raw_os_error() == Some(libc::ETOOMANYREFS) => {
                drop(fds);
                let reply = without_descriptors(reply, libc::ETOOMANYREFS);
                scm::send(channel.as_fd(), &reply.encode(), &[], MsgFlags::empty())
                    .map_err(AgentError::Send)?;
            }
            Err(error) => return Err(AgentError::Send(error)),
        }
    }
}

/// The same answer of somebody who had nothing to send along, for this reason.
fn without_descriptors(reply: Reply, errno: i32) -> Reply {
    match reply {
        Reply::Hello { abilities } => {
            Reply::Hello { abilities: Abilities { addresses: false, diag: false, ..abilities } }
        }
        Reply::Sockets { kind, .. } => Reply::Sockets { kind, count: 0, errno },
        Reply::Listening { id, .. } => Reply::Listening { id, errno },
        Reply::Routed { .. } => reply,
    }
}

/// What goes with the agent.
#[derive(Debug, Default)]
struct Prepared {
    table: Option<Table>,
    routed: Vec<(SocketAddr, SocketAddr)>,
}

impl Prepared {
    fn route(&mut self, change: Change, ends: (SocketAddr, SocketAddr)) -> io::Result<()> {
        rtnetlink::route_connection(change, ends, TABLE, CONNECTION_PRIORITY)?;
        match change {
            Change::Add => self.routed.push(ends),
            Change::Remove => self.routed.retain(|&routed| routed != ends),
        }
        Ok(())
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        for ends in std::mem::take(&mut self.routed) {
            // Of a namespace that is going, or for the next agent.
            let _ = self.route(Change::Remove, ends);
        }
    }
}

fn answer(request: Request, prepared: &mut Prepared) -> (Reply, Vec<OwnedFd>) {
    match request {
        Request::Hello { rules, egress } => {
            let egress = match egress {
                Egress::Leave => Default::default(),
                Egress::Prepare => prepare_egress(&mut prepared.table),
            };
            let tracked = rules == Rules::Add && prepared.table.as_ref().is_some_and(Table::is_kept);
            hello(rules, egress, tracked)
        }
        Request::Sockets { kind, count } => {
            let mut fds = Vec::new();
            let mut errno = 0;
            for _ in 0..count {
                match make(kind) {
                    Ok(fd) => fds.push(fd),
                    Err(error) => {
                        errno = number(&error);
                        break;
                    }
                }
            }
            (Reply::Sockets { kind, count: fds.len() as u8, errno }, fds)
        }
        Request::Listen { id, transport, address } => match listen(transport, address) {
            Ok(fd) => (Reply::Listening { id, errno: 0 }, vec![fd]),
            Err(error) => (Reply::Listening { id, errno: number(&error) }, Vec::new()),
        },
        Request::Route { change, child, destination } => {
            let errno =
                prepared.route(change, (child, destination)).map_or_else(|error| number(&error), |()| 0);
            (Reply::Routed { errno }, Vec::new())
        }
    }
}

fn hello(
    rules: Rules,
    (egress_v4, egress_v6): (EgressAbility, EgressAbility),
    tracked: bool,
) -> (Reply, Vec<OwnedFd>) {
    let possible = |family| match keep_addresses(family) {
        Ok(()) => true,
        Err(error) => {
            log::warn!(
                "forwards: the addresses of {family:?} clients cannot be kept on the fast path: {error}"
            );
            false
        }
    };
    let mut fds = Vec::new();
    let addresses = rtnetlink::address_socket();
    let diag = DiagSocket::open().and_then(|one| Ok([one, DiagSocket::open()?]));
    let abilities = Abilities {
        transparent_v4: rules == Rules::Add && possible(Family::V4),
        transparent_v6: rules == Rules::Add && possible(Family::V6),
        addresses: addresses.is_ok(),
        diag: diag.is_ok(),
        ephemeral: local_port_range().map_or((0, 0), RangeInclusive::into_inner),
        egress_v4,
        egress_v6,
        tracked,
    };
    fds.extend(addresses);
    fds.extend(diag.into_iter().flatten().map(OwnedFd::from));
    (Reply::Hello { abilities }, fds)
}

/// Makes the child answer sockets of ours, whatever address they have.
fn keep_addresses(family: Family) -> io::Result<()> {
    let reflect = match family {
        Family::V4 => "/proc/sys/net/ipv4/fwmark_reflect",
        Family::V6 => "/proc/sys/net/ipv6/fwmark_reflect",
    };
    // Proves the capability before anything is changed.
    make(SocketKind { transport: Transport::Tcp, family, reach: Reach::Transparent })?;
    fs::write("/proc/sys/net/ipv4/tcp_fwmark_accept", "1")?;
    fs::write(reflect, "1")?;
    rtnetlink::deliver_marked_locally(family, MARK, TABLE, RULE_PRIORITY)
}

/// Tries in the caller's network namespace, whose loopback is up, whether what begins there can be relayed: IPv4, IPv6. For namespaces
/// that are thrown away.
pub fn try_egress() -> [EgressAbility; 2] {
    let (v4, v6) = prepare_egress(&mut None);
    [v4, v6]
}

/// Puts in what keeps relayed connections in the child; says for IPv4 and IPv6 whether that is so.
fn prepare_egress(table: &mut Option<Table>) -> (EgressAbility, EgressAbility) {
    let mut common = || {
        // Proves the capability before anything is changed.
        make(world(Family::V4)).map_err(|error| (EgressStep::Socket, error))?;
        for (name, value) in [("ip_unprivileged_port_start", "0"), ("tcp_tw_reuse", "1")] {
            fs::write(format!("/proc/sys/net/ipv4/{name}"), value)
                .map_err(|error| (EgressStep::Sysctl, error))?;
        }
        *table = Some(Table::make()?);
        for (name, seconds) in TRACKED_AFTER {
            // Only the rules bring these files into being.
            if let Err(error) =
                fs::write(format!("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_{name}"), seconds)
            {
                log::debug!("egress: connections that have ended stay tracked for a while: {name}: {error}");
            }
        }
        Ok(())
    };
    let able = |result: Result<(), (EgressStep, io::Error)>| match result {
        Ok(()) => EgressAbility::Possible,
        Err((step, error)) => EgressAbility::Impossible { step, errno: number(&error) },
    };
    if let Err(error) = common() {
        let unable = able(Err(error));
        return (unable, unable);
    }
    let family = |family| {
        make(world(family)).map_err(|error| (EgressStep::Socket, error))?;
        rtnetlink::forget_connections(family, TABLE, CONNECTION_PRIORITY)
            .map_err(|error| (EgressStep::Route, error))?;
        rtnetlink::deliver_marked_locally(family, MARK, TABLE, RULE_PRIORITY)
            .map_err(|error| (EgressStep::Route, error))
    };
    (able(family(Family::V4)), able(family(Family::V6)))
}

/// Seconds for which connection tracking remembers what has ended.
const TRACKED_AFTER: [(&str, &str); 2] = [
    // Or a port could not be used again for ten seconds after a reset that came from us: until then connection tracking takes
    // the SYN of our socket for an invalid one.
    ("close", "0"),
    // By default two minutes: some thousand connections a second fill the kernel's table (nf_conntrack_max) in a fraction of that, and
    // then it drops all that begins. Both ends of what the child connects to are on this machine: nothing comes late.
    ("time_wait", "2"),
];

fn world(family: Family) -> SocketKind {
    SocketKind { transport: Transport::Tcp, family, reach: Reach::World }
}

fn make(kind: SocketKind) -> io::Result<OwnedFd> {
    let fd = socket::open(kind.transport, kind.family)?;
    match kind.reach {
        Reach::Plain => {}
        Reach::Transparent => {
            socket::set_transparent(fd.as_fd(), kind.family)?;
            socket::set_mark(fd.as_fd(), MARK)?;
            socket::bind_to_device(fd.as_fd(), "lo")?;
        }
        Reach::World => {
            socket::set_transparent(fd.as_fd(), kind.family)?;
            socket::set_mark(fd.as_fd(), RELAY_MARK)?;
            socket::set_keepalive_idle(fd.as_fd(), RELAY_KEEPALIVE)?;
        }
        Reach::Tracked => {
            socket::set_transparent(fd.as_fd(), kind.family)?;
            socket::set_mark(fd.as_fd(), FORWARD_MARK)?;
            socket::set_keepalive_idle(fd.as_fd(), RELAY_KEEPALIVE)?;
        }
    }
    match kind.transport {
        Transport::Tcp => {
            socket::set_reuse_address(fd.as_fd())?;
            if kind.reach != Reach::World {
                socket::set_bind_address_no_port(fd.as_fd())?;
            }
            socket::prepare_tcp(fd.as_fd());
        }
        Transport::Udp => socket::prepare_udp(fd.as_fd()),
    }
    Ok(fd)
}

fn listen(transport: Transport, address: SocketAddr) -> io::Result<OwnedFd> {
    socket::listener(transport, address, None)
}

fn number(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}
