//! Statistics and flows of the engine as people read them, at the end or on SIGUSR1.

use std::cmp::Reverse;
use std::fmt;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use netstack::Driver;
use netstack::flow::{FlowPath, Protocol};
use netstack::stack::FlowInfo;
use netstack::stats::Traffic;
use netstack::tcp::Phase;
use netstack::time::Instant;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Asks the engine for a report.
pub const REQUEST: Signal = Signal::SIGUSR1;

/// Flows in a report; of the others only the number is told.
const MAX_FLOWS: usize = 1000;

/// Writes a report to stderr. The engine waits while a pipe there is full; that nobody reads it any more is no
/// reason to stop.
pub fn print(driver: &Driver) {
    let _ = io::stderr().write_all(StatsReport(driver).to_string().as_bytes());
}

/// Readable when a report is wanted, or when another descriptor is.
#[derive(Debug)]
pub struct ReportRequests {
    both: Epoll,
    requests: SignalFd,
}

impl ReportRequests {
    /// Takes requests from now on, or rather since [`REQUEST`] is blocked, which the caller sees to.
    ///
    /// # Errors
    /// signalfd(2), epoll_create1(2), epoll_ctl(2).
    pub fn or(other: impl AsFd) -> io::Result<Self> {
        let requests =
            SignalFd::with_flags(&SigSet::from(REQUEST), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let both = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        both.add(&requests, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        both.add(other, EpollEvent::new(EpollFlags::EPOLLIN, 1))?;
        Ok(ReportRequests { both, requests })
    }

    /// Takes the request that has arrived, if there is one.
    pub fn take(&self) -> bool {
        matches!(self.requests.read_signal(), Ok(Some(_)))
    }
}

impl AsFd for ReportRequests {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.both.0.as_fd()
    }
}

/// Counters, drops by reason, what the TAP does for us, and the flows.
#[derive(Debug)]
struct StatsReport<'a>(&'a Driver);

impl fmt::Display for StatsReport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = self.0.stats();
        let link = self.0.link().capabilities();
        let on = |on: bool| if on { "on" } else { "off" };
        writeln!(
            f,
            "tap {}: checksum {}, tso4 {}, tso6 {}, uso {}",
            self.0.link().name(),
            on(link.checksum),
            on(link.tso4),
            on(link.tso6),
            on(link.uso)
        )?;
        let rows = [
            ("frames", stats.frames),
            ("tcp", stats.tcp),
            ("udp", stats.udp),
            ("icmp", stats.icmp),
            ("dns", stats.dns),
            ("dhcp", stats.dhcp),
        ];
        writeln!(f, "{:8} {:>24} {:>28}", "", "from child", "to child")?;
        for (name, Traffic { packets_from_child, bytes_from_child, packets_to_child, bytes_to_child }) in rows
        {
            writeln!(
                f,
                "{name:8} {packets_from_child:>10} {bytes_from_child:>13} B {packets_to_child:>12} {bytes_to_child:>13} B"
            )?;
        }
        writeln!(
            f,
            "tcp connections: {} opened, {} failed to connect, {} reset",
            stats.tcp_opened, stats.tcp_connect_failed, stats.tcp_reset
        )?;
        let relay = stats.relay;
        if relay.joined + relay.refused > 0 {
            // What the others have carried so far the relay tells at their end.
            writeln!(
                f,
                "on the relay: {} connections, {} since the start, of which those that have ended carried {} B from child and {} B \
                 to child; {} took the TAP instead, {} brief ones were left to it",
                relay.active,
                relay.joined,
                relay.bytes_from_child,
                relay.bytes_to_child,
                relay.refused,
                relay.brief
            )?;
        }
        writeln!(f, "dns answers: {} static, {} SERVFAIL", stats.dns_static, stats.dns_servfail)?;
        for (reason, count) in stats.all_drops() {
            writeln!(f, "dropped {count:>10}: {reason}")?;
        }
        FlowList::new(self.0.flows(), self.0.clock().now()).fmt(f)
    }
}

/// Flows, the latest active first.
#[derive(Debug)]
struct FlowList {
    flows: Vec<FlowInfo>,
    now: Instant,
}

impl FlowList {
    fn new(flows: impl Iterator<Item = FlowInfo>, now: Instant) -> Self {
        let mut flows: Vec<FlowInfo> = flows.collect();
        flows.sort_by_key(|flow| Reverse(flow.last_active));
        FlowList { flows, now }
    }
}

impl fmt::Display for FlowList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "flows: {}", self.flows.len())?;
        for flow in self.flows.iter().take(MAX_FLOWS) {
            write!(
                f,
                "{:6} {:23} {:23} {:10} ",
                protocol(flow.key.protocol),
                // Padding is for text.
                flow.key.child.to_string(),
                remote(flow.key.remote),
                flow.phase.map_or("-", phase),
            )?;
            let seconds = (self.now - flow.last_active).secs();
            match flow.path {
                FlowPath::Tap => writeln!(
                    f,
                    "{:>13} B from child {:>13} B to child, idle {seconds} s",
                    flow.bytes_from_child, flow.bytes_to_child
                )?,
                FlowPath::Relay => writeln!(f, "on the relay since {seconds} s")?,
            }
        }
        match self.flows.len().saturating_sub(MAX_FLOWS) {
            0 => Ok(()),
            more => writeln!(f, "... and {more} more"),
        }
    }
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Icmp => "icmp",
        Protocol::Icmpv6 => "icmpv6",
    }
}

/// A UDP socket has no one remote address.
fn remote(address: SocketAddr) -> String {
    if address.ip().is_unspecified() { "any".to_owned() } else { address.to_string() }
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Connecting => "connecting",
        Phase::Offered => "offered",
        Phase::Open => "open",
        Phase::Resetting => "resetting",
        Phase::Finishing => "finishing",
    }
}

#[cfg(test)]
mod tests {
    use netstack::flow::{FlowId, FlowKey, OpenedBy};

    use super::*;

    fn flow(index: u64) -> FlowInfo {
        FlowInfo {
            id: FlowId::from_bits(index),
            key: FlowKey {
                protocol: Protocol::Tcp,
                child: SocketAddr::from(([10, 0, 42, 100], 40_000)),
                remote: SocketAddr::from(([192, 0, 2, 1], 443)),
            },
            opened_by: OpenedBy::Child,
            path: FlowPath::Tap,
            phase: Some(Phase::Open),
            bytes_from_child: 1234,
            bytes_to_child: 56,
            last_active: Instant::from_secs(index as i64),
        }
    }

    fn words(line: &str) -> Vec<&str> {
        line.split_whitespace().collect()
    }

    #[test]
    fn a_flow_is_one_line_and_the_latest_active_comes_first() {
        let mut udp = flow(8);
        udp.key.protocol = Protocol::Udp;
        udp.key.remote = SocketAddr::from(([0; 16], 0));
        udp.phase = None;
        let text = FlowList::new([flow(3), udp].into_iter(), Instant::from_secs(10)).to_string();
        let lines: Vec<_> = text.lines().collect();
        let counts = "1234 B from child 56 B to child, idle";
        assert_eq!(lines[0], "flows: 2");
        assert_eq!(words(lines[1]).join(" "), format!("udp 10.0.42.100:40000 any - {counts} 2 s"));
        assert_eq!(
            words(lines[2]).join(" "),
            format!("tcp 10.0.42.100:40000 192.0.2.1:443 open {counts} 7 s")
        );
        assert_eq!(lines.len(), 3);
        let relayed = FlowInfo { path: FlowPath::Relay, ..flow(3) };
        let text = FlowList::new([relayed].into_iter(), Instant::from_secs(10)).to_string();
        let expected = "tcp 10.0.42.100:40000 192.0.2.1:443 open on the relay since 7 s";
        assert_eq!(text.lines().nth(1).map(|line| words(line).join(" ")).as_deref(), Some(expected));
    }

    #[test]
    fn long_lists_are_cut() {
        let list = |flows| FlowList::new((0..flows).map(flow), Instant::from_secs(9999)).to_string();
        assert_eq!(list(1000).lines().count(), 1001);
        let cut = list(1042);
        assert_eq!((cut.lines().count(), cut.lines().last()), (1002, Some("... and 42 more")));
        assert!(cut.starts_with("flows: 1042\n"));
    }
}
