//! Publishing by itself what listens inside the child.
//!
//! # Theory of operation
//! The child's listening sockets are mirrored on the host, as if their servers ran there: the same port; IPv4 for IPv4 and
//! IPv6 for IPv6; who listens on every address or on one of the child's own is published on every address of the host (or
//! the one named by the rules); who listens on a loopback address is published on that loopback address only. UDP counts
//! as listening when it is bound outside the ports that the kernel hands out by itself (`ip_local_port_range`) and not
//! connected. Never published: DHCP clients, multicast and link-local addresses.
//!
//! [`AutoPublisher`] decides and is pure; [`AutoWatch`] asks the kernel: on a timer, quicker after a change and slower
//! when nothing happens, and at once when a TCP listener is gone (new ones are not announced by any kernel).
//!
//! | wanted forward | what leads in | what leads out |
//! |---|---|---|
//! | asked | a listener appears; a refusal is old enough | added: active; refused: refused |
//! | active | as above | the listener goes: withdrawn; somebody removes it: refused for good |
//! | refused | port in use, conflict, no permission | tried again after 2 s, or never; the listener goes |

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd};
use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::error::{PortError, SpecError, SpecFault};
use crate::manager::Added;
use crate::sock_diag::{DiagSocket, Reach, Socket};
use crate::spec::{Family, InterfaceName, PortFields, PortSpec, Proto, Source, Transport, range};

/// What may be published by itself.
///
/// As text: `auto[,tcp|udp][,include=LIST][,exclude=LIST][,address=IP[%INTERFACE]][,source=client|gateway]`, where LIST is
/// parted by commas too and has ports, ranges, addresses in the child (IPv6 in brackets) and `loopback`, each for both
/// protocols or followed by `/tcp` or `/udp`: `auto,tcp,exclude=22,8000-8100`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AutoRules {
    /// The only protocol; `None`: both.
    pub transport: Option<Transport>,
    /// If not empty, nothing else is published; UDP ports named here may be of those the kernel hands out.
    pub include: Vec<Match>,
    /// Never published.
    pub exclude: Vec<Match>,
    /// Where the host listens for what is not on the child's loopback; `None`: everywhere.
    pub address: Option<IpAddr>,
    /// The one interface of the host whose clients are heard.
    pub interface: Option<InterfaceName>,
    /// Whom the child sees.
    pub source: Source,
}

/// A member of a list of [`AutoRules`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// What listens.
    pub target: Target,
    /// By which protocol; `None`: both.
    pub transport: Option<Transport>,
}

/// What a [`Match`] fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// These ports.
    Ports(RangeInclusive<u16>),
    /// Sockets bound to this address of the child, which may be `0.0.0.0` or `::`.
    Address(IpAddr),
    /// Sockets bound to 127.0.0.0/8 or `::1`.
    Loopback,
}

impl AutoRules {
    fn allow(&self, socket: &Socket, ephemeral: &RangeInclusive<u16>) -> bool {
        let fits = |list: &[Match]| list.iter().any(|item| item.fits(socket));
        let transport = self.transport.is_none_or(|transport| transport == socket.transport);
        let named = !self.include.is_empty() && fits(&self.include);
        let port = socket.address.port();
        let service = match socket.transport {
            Transport::Tcp => true,
            Transport::Udp => !ephemeral.contains(&port) && !DHCP_CLIENTS.contains(&port),
        };
        port != 0 && transport && !fits(&self.exclude) && (named || self.include.is_empty() && service)
    }
}

impl Match {
    fn fits(&self, socket: &Socket) -> bool {
        let ip = socket.address.ip().to_canonical();
        self.transport.is_none_or(|transport| transport == socket.transport)
            && match &self.target {
                Target::Ports(ports) => ports.contains(&socket.address.port()),
                Target::Address(address) => *address == ip,
                Target::Loopback => ip.is_loopback(),
            }
    }
}

impl FromStr for AutoRules {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        parse(text).map_err(|fault| SpecError { text: text.to_owned(), fault })
    }
}

fn parse(text: &str) -> Result<AutoRules, SpecFault> {
    enum List {
        Include,
        Exclude,
    }
    let mut rules = AutoRules::default();
    let mut list = None;
    let mut words = text.split(',');
    if words.next() != Some("auto") {
        return Err(SpecFault::Auto(text.to_owned()));
    }
    for word in words {
        let item = match word.split_once('=') {
            Some(("include", item)) => {
                list = Some(List::Include);
                item
            }
            Some(("exclude", item)) => {
                list = Some(List::Exclude);
                item
            }
            Some(("address", address)) => {
                let (address, interface) = match address.split_once('%') {
                    Some((address, interface)) => (address, Some(interface.parse()?)),
                    None => (address, None),
                };
                rules.interface = interface;
                if rules.interface.is_none() || !address.is_empty() {
                    let bare =
                        address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
                    let address = bare.parse().map_err(|_| SpecFault::Address(address.to_owned()))?;
                    rules.address = Some(IpAddr::to_canonical(&address));
                }
                list = None;
                continue;
            }
            Some(("source", source)) => {
                rules.source = match source {
                    "client" => Source::Client,
                    "gateway" => Source::Gateway,
                    _ => return Err(SpecFault::Option(word.to_owned())),
                };
                list = None;
                continue;
            }
            Some(_) => return Err(SpecFault::Auto(word.to_owned())),
            None => match word {
                "tcp" | "udp" => {
                    let named = if word == "tcp" { Transport::Tcp } else { Transport::Udp };
                    // Both named is none excluded.
                    rules.transport = match rules.transport {
                        Some(other) if other != named => None,
                        _ => Some(named),
                    };
                    list = None;
                    continue;
                }
                _ => word,
            },
        };
        match list {
            Some(List::Include) => rules.include.push(item.parse()?),
            Some(List::Exclude) => rules.exclude.push(item.parse()?),
            None => return Err(SpecFault::Auto(word.to_owned())),
        }
    }
    Ok(rules)
}

impl FromStr for Match {
    type Err = SpecFault;

    fn from_str(text: &str) -> Result<Self, SpecFault> {
        let fault = || SpecFault::Match(text.to_owned());
        let (target, transport) = match text.rsplit_once('/') {
            Some((target, "tcp")) => (target, Some(Transport::Tcp)),
            Some((target, "udp")) => (target, Some(Transport::Udp)),
            Some(_) => return Err(fault()),
            None => (text, None),
        };
        let bracketed = target.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let target = if target == "loopback" {
            Target::Loopback
        } else if let Ok(address) = bracketed.unwrap_or(target).parse::<IpAddr>() {
            Target::Address(address.to_canonical())
        } else {
            let (first, last) = range(target).map_err(|_| fault())?;
            let last = last.unwrap_or(first);
            if first == 0 {
                return Err(fault());
            }
            if last < first {
                return Err(SpecFault::RangeOrder(first, last));
            }
            Target::Ports(first..=last)
        };
        Ok(Match { target, transport })
    }
}

impl fmt::Display for AutoRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("auto")?;
        if let Some(transport) = self.transport {
            write!(f, ",{transport}")?;
        }
        for (name, list) in [("include", &self.include), ("exclude", &self.exclude)] {
            for (n, item) in list.iter().enumerate() {
                match n {
                    0 => write!(f, ",{name}={item}")?,
                    _ => write!(f, ",{item}")?,
                }
            }
        }
        match (self.address, &self.interface) {
            (Some(address), Some(interface)) => write!(f, ",address={address}%{interface}")?,
            (Some(address), None) => write!(f, ",address={address}")?,
            (None, Some(interface)) => write!(f, ",address=%{interface}")?,
            (None, None) => {}
        }
        if self.source != Source::default() {
            write!(f, ",source={}", self.source)?;
        }
        Ok(())
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Ports(ports) if ports.start() == ports.end() => write!(f, "{}", ports.start())?,
            Target::Ports(ports) => write!(f, "{}-{}", ports.start(), ports.end())?,
            Target::Address(IpAddr::V6(address)) => write!(f, "[{address}]")?,
            Target::Address(address) => write!(f, "{address}")?,
            Target::Loopback => f.write_str("loopback")?,
        }
        self.transport.map_or(Ok(()), |transport| write!(f, "/{transport}"))
    }
}

/// What should change about the forwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Add this forward with [`Origin::Auto`](crate::spec::Origin::Auto), and say what came of it by
    /// [`handle_added`](AutoPublisher::handle_added) or [`handle_refused`](AutoPublisher::handle_refused).
    Add(PortSpec),
    /// [Withdraw](crate::manager::PortManager::withdraw) this forward: nothing listens behind it any more.
    Withdraw(u64),
}

/// Whether something is to be told to the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tell {
    /// For the first time.
    Yes,
    /// Told already, or of no interest.
    No,
}

/// Decides what to publish. Pure.
#[derive(Debug)]
pub struct AutoPublisher {
    rules: AutoRules,
    ephemeral: RangeInclusive<u16>,
    wanted: BTreeMap<PortSpec, State>,
    changes: VecDeque<Change>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Asked { told: bool },
    Active(u64),
    Refused { again: Option<Instant> },
}

impl AutoPublisher {
    /// Publishes by these rules; `ephemeral` are the ports that the child's kernel hands out by itself, see
    /// [`local_port_range`].
    pub fn new(rules: AutoRules, ephemeral: RangeInclusive<u16>) -> Self {
        AutoPublisher { rules, ephemeral, wanted: BTreeMap::new(), changes: VecDeque::new() }
    }

    /// These sockets listen in the child, and no others.
    pub fn handle_sockets(&mut self, now: Instant, sockets: &[Socket]) {
        let specs = self.specs(sockets);
        // First what goes: it may be in the way of what comes.
        self.wanted.retain(|spec, state| match *state {
            _ if specs.contains(spec) => true,
            State::Asked { .. } => true,
            State::Active(id) => {
                self.changes.push_back(Change::Withdraw(id));
                false
            }
            State::Refused { .. } => false,
        });
        for spec in specs {
            let told = match self.wanted.get(&spec) {
                None => false,
                Some(State::Refused { again: Some(again) }) if *again <= now => true,
                Some(_) => continue,
            };
            self.wanted.insert(spec.clone(), State::Asked { told });
            self.changes.push_back(Change::Add(spec));
        }
    }

    /// A forward that was to be added exists.
    pub fn handle_added(&mut self, now: Instant, spec: &PortSpec, added: Added) {
        if let Some(state) = self.wanted.get_mut(spec) {
            *state = match added {
                Added::New(id) => State::Active(id),
                // Somebody else's; should they remove it, it is ours to add.
                Added::Same(_) => State::Refused { again: Some(now + RETRY) },
            };
        }
    }

    /// A forward that another publisher had added is there still.
    pub fn handle_inherited(&mut self, spec: PortSpec, id: u64) {
        self.wanted.insert(spec, State::Active(id));
    }

    /// A forward that was to be added cannot be, for now or as long as its server lives. Says whether the user should be
    /// told.
    pub fn handle_refused(&mut self, now: Instant, spec: &PortSpec, error: &PortError) -> Tell {
        let Some(state) = self.wanted.get_mut(spec) else { return Tell::No };
        let told = matches!(state, State::Asked { told: true });
        let again = match error {
            PortError::Privileged { .. } => None,
            _ => Some(now + RETRY),
        };
        *state = State::Refused { again };
        if told || matches!(error, PortError::Conflict { .. }) { Tell::No } else { Tell::Yes }
    }

    /// Somebody removed this forward. It stays away until its server ends.
    pub fn handle_removed(&mut self, id: u64) {
        if let Some(state) =
            self.wanted.values_mut().find(|state| matches!(state, State::Active(active) if *active == id))
        {
            *state = State::Refused { again: None };
        }
    }

    /// The next change.
    pub fn poll_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    /// The forwards that mirror these sockets.
    fn specs(&self, sockets: &[Socket]) -> BTreeSet<PortSpec> {
        #[derive(Default)]
        struct Port {
            any4: bool,
            any6: bool,
            /// The lowest address of each family.
            one4: Option<IpAddr>,
            one6: Option<IpAddr>,
            loopback: Vec<IpAddr>,
        }
        let mut ports: BTreeMap<(Transport, u16), Port> = BTreeMap::new();
        for socket in sockets.iter().filter(|socket| self.rules.allow(socket, &self.ephemeral)) {
            let port = ports.entry((socket.transport, socket.address.port())).or_default();
            match socket.address.ip().to_canonical() {
                IpAddr::V4(ip) if ip.is_unspecified() => port.any4 = true,
                IpAddr::V6(ip) if ip.is_unspecified() => {
                    port.any6 = true;
                    port.any4 |= socket.reach == Reach::BothFamilies;
                }
                ip if ip.is_loopback() => port.loopback.push(ip),
                IpAddr::V6(ip) if ip.is_unicast_link_local() => {}
                ip if ip.is_multicast() => {}
                ip @ IpAddr::V4(_) => port.one4 = Some(port.one4.map_or(ip, |other| other.min(ip))),
                ip @ IpAddr::V6(_) => port.one6 = Some(port.one6.map_or(ip, |other| other.min(ip))),
            }
        }
        let mut specs = BTreeSet::new();
        for ((transport, number), port) in ports {
            let mut add = |family: Option<Family>, parent: Option<IpAddr>, child: Option<IpAddr>| {
                let fields = PortFields {
                    parent_ip: parent,
                    parent_interface: self.rules.interface.clone(),
                    child_ip: child,
                    source: self.rules.source,
                    ..PortFields::new(proto(transport, family), number, number)
                };
                specs.extend(PortSpec::try_from(fields));
            };
            let any = [(Family::V4, port.any4, port.one4), (Family::V6, port.any6, port.one6)];
            match self.rules.address {
                None if port.any4 && port.any6 => add(None, None, None),
                at => {
                    for (family, any, one) in any {
                        if at.is_none_or(|at| Family::of(at) == family) && (any || one.is_some()) {
                            add(Some(family), at, if any { None } else { one });
                        }
                    }
                }
            }
            for ip in port.loopback {
                let covered = any.iter().any(|&(family, any, _)| any && family == Family::of(ip));
                if !covered {
                    add(Some(Family::of(ip)), Some(ip), Some(ip));
                }
            }
        }
        specs
    }
}

/// How often to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// After a change. 250 ms by default: a server that just started is there before somebody reaches for it.
    pub shortest: Duration,
    /// When nothing has changed for long. 1 s by default.
    pub longest: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { shortest: Duration::from_millis(250), longest: Duration::from_secs(1) }
    }
}

impl Pace {
    /// How long to wait, after having waited `before` and having spent `cost` on looking.
    fn next(self, before: Duration, changed: bool, cost: Duration) -> Duration {
        let wait =
            if changed { self.shortest } else { before.mul_f32(1.5).clamp(self.shortest, self.longest) };
        // Never more than a hundredth of a core, whatever the child has.
        wait.max((cost * 100).min(DEAREST))
    }
}

/// An [`AutoPublisher`] with its eye on the child.
///
/// 1. Wait until [`as_fd`](Self::as_fd) is readable or [`next_timeout`](Self::next_timeout) has come.
/// 2. Call [`poll`](Self::poll) and perform each change; answer by the methods of [`publisher`](Self::publisher).
#[derive(Debug)]
pub struct AutoWatch {
    socket: DiagSocket,
    publisher: AutoPublisher,
    pace: Pace,
    wait: Duration,
    last: Option<Instant>,
    next: Instant,
    failing: bool,
}

impl AutoWatch {
    /// Watches by a socket that was opened in the child's network namespace. The first look is due at once.
    pub fn new(socket: DiagSocket, publisher: AutoPublisher, pace: Pace, now: Instant) -> Self {
        if let Err(error) = socket.subscribe() {
            log::debug!("the end of listeners is noticed by looking only: {error}");
        }
        AutoWatch { socket, publisher, pace, wait: pace.shortest, last: None, next: now, failing: false }
    }

    /// Takes in what the kernel told, looks if it is time to, and returns what should change.
    pub fn poll(&mut self, now: Instant) -> Vec<Change> {
        if self.socket.drain_notices() {
            // Not for each of many: a server that ends with all its sockets is one change.
            let soon = self.last.map_or(now, |last| last + self.pace.shortest / 8);
            self.next = self.next.min(soon);
        }
        if now < self.next {
            return Vec::new();
        }
        let start = Instant::now();
        match self.socket.listening() {
            Ok(sockets) => {
                self.failing = false;
                self.publisher.handle_sockets(now, &sockets);
            }
            Err(error) if !self.failing => {
                self.failing = true;
                log::warn!("cannot see what listens in the child: {error}");
            }
            Err(_) => {}
        }
        let changes: Vec<_> = std::iter::from_fn(|| self.publisher.poll_change()).collect();
        self.wait = self.pace.next(self.wait, !changes.is_empty(), start.elapsed());
        self.last = Some(now);
        self.next = now + self.wait;
        changes
    }

    /// Where the results of changes go.
    pub fn publisher(&mut self) -> &mut AutoPublisher {
        &mut self.publisher
    }

    /// When to call [`poll`](Self::poll) at the latest.
    pub fn next_timeout(&self) -> Instant {
        self.next
    }
}

impl AsFd for AutoWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The ports that the kernel hands out by itself in the calling thread's network namespace, ip(7).
///
/// # Errors
/// open(2), read(2); `InvalidData` if the file is not as it should be.
pub fn local_port_range() -> io::Result<RangeInclusive<u16>> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Ok(first..=last),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// What the kernel's range is unless somebody changed it.
pub const DEFAULT_LOCAL_PORT_RANGE: RangeInclusive<u16> = 32768..=60999;

/// However dear looking may be, or seem to be to a process that was kept waiting.
const DEAREST: Duration = Duration::from_secs(10);

/// How long a refused forward waits for its next attempt.
const RETRY: Duration = Duration::from_secs(2);

/// UDP ports at which clients of DHCP and DHCPv6 hear, RFC 2131 and RFC 8415: bound, but no services.
const DHCP_CLIENTS: [u16; 2] = [68, 546];

fn proto(transport: Transport, family: Option<Family>) -> Proto {
    match (transport, family) {
        (Transport::Tcp, None) => Proto::Tcp,
        (Transport::Tcp, Some(Family::V4)) => Proto::Tcp4,
        (Transport::Tcp, Some(Family::V6)) => Proto::Tcp6,
        (Transport::Udp, None) => Proto::Udp,
        (Transport::Udp, Some(Family::V4)) => Proto::Udp4,
        (Transport::Udp, Some(Family::V6)) => Proto::Udp6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(transport: Transport, address: &str) -> Socket {
        let address = address.parse().unwrap();
        Socket { transport, address, reach: Reach::OwnFamily, interface: 0, uid: 0, inode: 1 }
    }

    fn tcp(address: &str) -> Socket {
        socket(Transport::Tcp, address)
    }

    fn udp(address: &str) -> Socket {
        socket(Transport::Udp, address)
    }

    fn dual(port: u16) -> Socket {
        Socket { reach: Reach::BothFamilies, ..tcp(&format!("[::]:{port}")) }
    }

    fn publisher(rules: &str) -> AutoPublisher {
        AutoPublisher::new(rules.parse().unwrap(), DEFAULT_LOCAL_PORT_RANGE)
    }

    fn published(rules: &str, sockets: &[Socket]) -> Vec<String> {
        publisher(rules).specs(sockets).iter().map(ToString::to_string).collect()
    }

    fn changes(publisher: &mut AutoPublisher, now: Instant, sockets: &[Socket]) -> Vec<String> {
        publisher.handle_sockets(now, sockets);
        let changes = std::iter::from_fn(|| publisher.poll_change());
        changes
            .map(|change| match change {
                Change::Add(spec) => format!("+{spec}"),
                Change::Withdraw(id) => format!("-{id}"),
            })
            .collect()
    }

    #[test]
    fn servers_are_mirrored_as_if_they_ran_on_the_host() {
        let every = |socket: Socket| published("auto", &[socket]).join(" ");
        assert_eq!(every(tcp("0.0.0.0:80")), "80:80/tcp4");
        assert_eq!(every(tcp("[::]:80")), "80:80/tcp6");
        assert_eq!(every(dual(80)), "80:80/tcp");
        assert_eq!(published("auto", &[tcp("0.0.0.0:80"), tcp("[::]:80")]), ["80:80/tcp"]);
        assert_eq!(every(tcp("127.0.0.1:80")), "127.0.0.1:80:127.0.0.1:80/tcp4");
        assert_eq!(every(tcp("[::1]:80")), "[::1]:80:[::1]:80/tcp6");
        assert_eq!(every(tcp("10.0.42.100:80")), "80:10.0.42.100:80/tcp4");
        assert_eq!(every(tcp("[::ffff:10.0.42.100]:80")), "80:10.0.42.100:80/tcp4");
        assert_eq!(every(tcp("[fe80::1]:80")), "");
        assert_eq!(every(udp("224.0.0.251:5353")), "");
        // What would be in each other's way is one.
        let both = published("auto", &[tcp("10.0.42.100:80"), tcp("10.0.42.7:80"), tcp("127.0.0.1:80")]);
        assert_eq!(both, ["80:10.0.42.7:80/tcp4", "127.0.0.1:80:127.0.0.1:80/tcp4"]);
        assert_eq!(published("auto", &[tcp("0.0.0.0:80"), tcp("127.0.0.1:80")]), ["80:80/tcp4"]);
    }

    #[test]
    fn udp_of_clients_is_not_published() {
        let sockets = [udp("0.0.0.0:53"), udp("0.0.0.0:40000"), udp("0.0.0.0:68"), tcp("0.0.0.0:40000")];
        assert_eq!(published("auto", &sockets), ["40000:40000/tcp4", "53:53/udp4"]);
        assert_eq!(published("auto,include=40000/udp", &sockets), ["40000:40000/udp4"]);
    }

    #[test]
    fn rules_choose() {
        let sockets = [tcp("0.0.0.0:22"), tcp("0.0.0.0:8080"), udp("0.0.0.0:8080"), tcp("127.0.0.1:631")];
        assert_eq!(published("auto,tcp,exclude=22,600-700", &sockets), ["8080:8080/tcp4"]);
        assert_eq!(published("auto,exclude=loopback,22,8080/tcp", &sockets), ["8080:8080/udp4"]);
        assert_eq!(published("auto,include=127.0.0.1", &sockets), ["127.0.0.1:631:127.0.0.1:631/tcp4"]);
        assert_eq!(
            published(
                "auto,include=8000-9000,exclude=8080/udp,address=192.0.2.1%eth0,source=gateway",
                &sockets
            ),
            ["192.0.2.1%eth0:8080:8080/tcp4,source=gateway"]
        );
        assert_eq!(
            published("auto,tcp,udp,include=8080,address=%eth0", &sockets),
            ["%eth0:8080:8080/tcp4", "%eth0:8080:8080/udp4"]
        );
        assert!(published("auto,include=8080,address=[2001:db8::1]", &sockets).is_empty());
    }

    #[test]
    fn rules_survive_their_text() {
        for text in [
            "auto",
            "auto,tcp,exclude=22,8000-8100",
            "auto,include=80,[::1]/udp,10.0.0.1,loopback,exclude=81/tcp,address=127.0.0.1%lo,source=gateway",
            "auto,udp,address=%eth0",
        ] {
            assert_eq!(text.parse::<AutoRules>().unwrap().to_string(), text);
        }
        for (text, fault) in [
            ("automatic", "not an option of auto"),
            ("auto,8080", "not an option of auto"),
            ("auto,sctp", "not an option of auto"),
            ("auto,exclude=0", "neither port"),
            ("auto,exclude=ssh", "neither port"),
            ("auto,exclude=9-8", "ends before it starts"),
            ("auto,address=", "is not an IP address"),
            ("auto,address=1.2.3.4%", "network interface"),
            ("auto,source=me", "unknown option"),
        ] {
            let error = text.parse::<AutoRules>().unwrap_err().to_string();
            assert!(error.contains(fault) && error.contains(text), "{text}: {error}");
        }
    }

    #[test]
    fn forwards_come_and_go_with_their_servers() {
        let (mut publisher, now) = (publisher("auto"), Instant::now());
        assert_eq!(changes(&mut publisher, now, &[tcp("127.0.0.1:80")]), ["+127.0.0.1:80:127.0.0.1:80/tcp4"]);
        publisher.handle_added(now, &"127.0.0.1:80:127.0.0.1:80/tcp4".parse().unwrap(), Added::New(7));
        assert!(changes(&mut publisher, now, &[tcp("127.0.0.1:80")]).is_empty());
        // What goes makes room for what comes.
        assert_eq!(changes(&mut publisher, now, &[tcp("0.0.0.0:80")]), ["-7", "+80:80/tcp4"]);
        publisher.handle_added(now, &"80:80/tcp4".parse().unwrap(), Added::New(8));
        assert_eq!(changes(&mut publisher, now, &[]), ["-8"]);
        assert!(changes(&mut publisher, now, &[]).is_empty());
    }

    #[test]
    fn a_port_in_use_is_tried_again_and_told_once() {
        let (mut publisher, now) = (publisher("auto"), Instant::now());
        let spec: PortSpec = "80:80/tcp4".parse().unwrap();
        let address = "0.0.0.0:80".parse().unwrap();
        let in_use = PortError::InUse { address, transport: Transport::Tcp, holder: None };
        let sockets = [tcp("0.0.0.0:80")];
        assert_eq!(changes(&mut publisher, now, &sockets), ["+80:80/tcp4"]);
        assert_eq!(publisher.handle_refused(now, &spec, &in_use), Tell::Yes);
        assert!(changes(&mut publisher, now, &sockets).is_empty());
        let later = now + RETRY;
        assert_eq!(changes(&mut publisher, later, &sockets), ["+80:80/tcp4"]);
        assert_eq!(publisher.handle_refused(later, &spec, &in_use), Tell::No);
        // No permission will not come by waiting.
        let privileged = PortError::Privileged { address, transport: Transport::Tcp };
        let later = later + RETRY;
        assert_eq!(changes(&mut publisher, later, &sockets), ["+80:80/tcp4"]);
        publisher.handle_refused(later, &spec, &privileged);
        assert!(changes(&mut publisher, later + 100 * RETRY, &sockets).is_empty());
        // A server that comes back is a new one.
        assert!(changes(&mut publisher, later, &[]).is_empty());
        assert_eq!(changes(&mut publisher, later, &sockets), ["+80:80/tcp4"]);
    }

    #[test]
    fn what_somebody_removed_stays_away_while_its_server_lives() {
        let (mut publisher, now) = (publisher("auto"), Instant::now());
        let sockets = [tcp("0.0.0.0:80")];
        changes(&mut publisher, now, &sockets);
        publisher.handle_added(now, &"80:80/tcp4".parse().unwrap(), Added::New(1));
        publisher.handle_removed(1);
        assert!(changes(&mut publisher, now + 10 * RETRY, &sockets).is_empty());
        assert!(changes(&mut publisher, now, &[]).is_empty());
        assert_eq!(changes(&mut publisher, now, &sockets), ["+80:80/tcp4"]);
    }

    #[test]
    fn the_pace_slackens_and_never_costs_much() {
        let pace = Pace::default();
        let mut wait = pace.next(pace.longest, true, Duration::ZERO);
        assert_eq!(wait, pace.shortest);
        for _ in 0..10 {
            wait = pace.next(wait, false, Duration::ZERO);
        }
        assert_eq!(wait, pace.longest);
        assert_eq!(pace.next(wait, true, Duration::from_millis(20)), Duration::from_secs(2));
    }
}
