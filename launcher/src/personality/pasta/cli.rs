//! The command line of pasta, read as it reads it. Pure.

use std::ffi::{OsStr, OsString};
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use nix::unistd::Pid;
use thiserror::Error;

use super::ports::{Ports, PortsError};
use crate::personality::getopt::{Getopt, GetoptError, Item, Opt, Value};

/// Name in messages.
pub const NAME: &str = "pasta";

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// `--help`.
    Help,
    /// `--version`.
    Version,
    /// Serve a namespace.
    Serve(Box<Request>),
}

/// Whose namespace is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A namespace of ours, in which a command runs (a shell if there is none).
    Command(Vec<OsString>),
    /// That of a process; another user namespace if one is named.
    Process {
        /// The process.
        pid: Pid,
        /// `--userns`.
        userns: Option<PathBuf>,
    },
    /// One that has a path.
    Path {
        /// `--netns`, with `/run/netns/` before a bare name.
        netns: PathBuf,
        /// `--userns`.
        userns: Option<PathBuf>,
    },
}

/// Where messages go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Log {
    /// stderr while in the foreground.
    Stderr,
    /// A file of at most so many bytes.
    File(PathBuf, u64),
}

/// How the process stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// It leaves its caller once it is ready.
    Back,
    /// `-f`.
    Front,
}

/// Everything that the command line says about a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Whose namespace.
    pub target: Target,
    /// `-f`, and always with a command.
    pub ground: Ground,
    /// `-q`.
    pub quiet: bool,
    /// `-d` and `--trace`: how much more to say.
    pub verbose: u8,
    /// `-l`, `--log-size`.
    pub log: Log,
    /// `-p`.
    pub pcap: Option<PathBuf>,
    /// `-P`.
    pub pid_file: Option<PathBuf>,
    /// `-m`: bytes; 0 leaves the device's own.
    pub mtu: u16,
    /// `-a`, with the prefix if one was given.
    pub addresses: Vec<(IpAddr, Option<u8>)>,
    /// `-n`: prefix length of the IPv4 address.
    pub netmask: Option<u8>,
    /// `-g`.
    pub gateways: Vec<IpAddr>,
    /// `-M`: our MAC address.
    pub mac: Option<[u8; 6]>,
    /// `--ns-mac-addr`.
    pub ns_mac: Option<[u8; 6]>,
    /// `-i`: the host's interface to copy from.
    pub interface: Option<String>,
    /// `-o`.
    pub outbound: Vec<IpAddr>,
    /// `--outbound-if4`.
    pub outbound_if4: Option<String>,
    /// `--outbound-if6`.
    pub outbound_if6: Option<String>,
    /// `-D`: servers instead of the host's; `Some(empty)` after `-D none`.
    pub dns: Option<Vec<IpAddr>>,
    /// `-S`.
    pub search: Option<Vec<String>>,
    /// `--dns-forward`.
    pub dns_forward: Vec<IpAddr>,
    /// `--dns-host`.
    pub dns_host: Vec<IpAddr>,
    /// `--dhcp-dns`.
    pub dhcp_dns: bool,
    /// `--dhcp-search`.
    pub dhcp_search: bool,
    /// `--no-…`.
    pub without: Without,
    /// `--map-host-loopback`, by default the gateways; `Some(empty)` after `none` or `--no-map-gw`.
    pub map_host_loopback: Option<Vec<IpAddr>>,
    /// `--map-guest-addr`.
    pub map_guest_addr: Vec<IpAddr>,
    /// `-4`, `-6`.
    pub families: Families,
    /// `-I`.
    pub ns_ifname: Option<String>,
    /// `-t`; `None`: not given.
    pub tcp: Option<Vec<Ports>>,
    /// `-u`.
    pub udp: Option<Vec<Ports>>,
    /// `-T`.
    pub tcp_ns: Option<Vec<Ports>>,
    /// `-U`.
    pub udp_ns: Option<Vec<Ports>>,
    /// `--host-lo-to-ns-lo`: clients on the host's loopback reach the child's.
    pub host_lo_to_ns_lo: bool,
    /// `--config-net`.
    pub config_net: bool,
    /// `--no-netns-quit`.
    pub no_netns_quit: bool,
    /// Options that are understood and change nothing here, as they were given.
    pub ignored: Vec<&'static str>,
}

/// Protocols and services that are switched off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Without {
    /// `--no-tcp`.
    pub tcp: bool,
    /// `--no-udp`.
    pub udp: bool,
    /// `--no-icmp`.
    pub icmp: bool,
    /// `--no-dhcp`.
    pub dhcp: bool,
    /// `--no-ndp`.
    pub ndp: bool,
    /// `--no-dhcpv6`.
    pub dhcpv6: bool,
    /// `--no-ra`.
    pub ra: bool,
}

/// Which IP versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// Those that the host has.
    Both,
    /// `-4`.
    V4,
    /// `-6`.
    V6,
}

/// A command line that cannot be followed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CliError {
    /// A word that is no option of ours.
    #[error("{NAME}: {0}")]
    Getopt(GetoptError),
    /// A list of ports.
    #[error(transparent)]
    Ports(#[from] PortsError),
    /// A value of another option.
    #[error("Invalid {what}: {value}")]
    Value {
        /// What it should be.
        what: &'static str,
        /// What it is.
        value: String,
    },
    /// An option that belongs to virtual machines, or that cannot be done here.
    #[error("--{option}: {reason}")]
    Refused {
        /// Its name.
        option: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// Options that exclude each other.
    #[error("{0} and {1} cannot be given together")]
    Conflict(&'static str, &'static str),
    /// More than pasta takes.
    #[error("Multiple target namespaces or more than {0} of the option")]
    TooMany(usize),
}

// Not by thiserror: its text is part of ours, and no cause to be told again.
impl From<GetoptError> for CliError {
    fn from(error: GetoptError) -> Self {
        CliError::Getopt(error)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    Debug,
    Trace,
    Quiet,
    Foreground,
    Stderr,
    LogFile,
    LogSize,
    Runas,
    Help,
    Version,
    Pcap,
    PidFile,
    Mtu,
    Address,
    Netmask,
    Mac,
    Gateway,
    Interface,
    Outbound,
    OutboundIf4,
    OutboundIf6,
    Dns,
    DnsForward,
    DnsHost,
    Search,
    DhcpDns,
    NoDhcpDns,
    DhcpSearch,
    NoDhcpSearch,
    NoTcp,
    NoUdp,
    NoIcmp,
    NoDhcp,
    NoNdp,
    NoDhcpv6,
    NoRa,
    NoMapGw,
    MapHostLoopback,
    MapGuestAddr,
    V4,
    V6,
    NsIfname,
    Tcp,
    Udp,
    TcpNs,
    UdpNs,
    Userns,
    Netns,
    NetnsOnly,
    NoNetnsQuit,
    ConfigNet,
    NoCopyRoutes,
    NoCopyAddrs,
    NsMac,
    HostLoToNsLo,
    SpliceOnly,
    NoSplice,
    Freebind,
    Hostname,
    Fqdn,
    Passt,
    Control,
    Stats,
}

const fn flag(long: &'static str, short: Option<u8>, code: Code) -> Opt<Code> {
    Opt { long, short, value: Value::None, code }
}

const fn valued(long: &'static str, short: Option<u8>, code: Code) -> Opt<Code> {
    Opt { long, short, value: Value::Required, code }
}

const OPTIONS: &[Opt<Code>] = &[
    flag("debug", Some(b'd'), Code::Debug),
    flag("trace", None, Code::Trace),
    flag("quiet", Some(b'q'), Code::Quiet),
    flag("foreground", Some(b'f'), Code::Foreground),
    flag("stderr", Some(b'e'), Code::Stderr),
    valued("log-file", Some(b'l'), Code::LogFile),
    valued("log-size", None, Code::LogSize),
    valued("runas", None, Code::Runas),
    flag("help", Some(b'h'), Code::Help),
    flag("version", None, Code::Version),
    valued("pcap", Some(b'p'), Code::Pcap),
    valued("pid", Some(b'P'), Code::PidFile),
    valued("mtu", Some(b'm'), Code::Mtu),
    valued("address", Some(b'a'), Code::Address),
    valued("netmask", Some(b'n'), Code::Netmask),
    valued("mac-addr", Some(b'M'), Code::Mac),
    valued("gateway", Some(b'g'), Code::Gateway),
    valued("interface", Some(b'i'), Code::Interface),
    valued("outbound", Some(b'o'), Code::Outbound),
    valued("outbound-if4", None, Code::OutboundIf4),
    valued("outbound-if6", None, Code::OutboundIf6),
    valued("dns", Some(b'D'), Code::Dns),
    valued("dns-forward", None, Code::DnsForward),
    valued("dns-host", None, Code::DnsHost),
    valued("search", Some(b'S'), Code::Search),
    flag("dhcp-dns", None, Code::DhcpDns),
    flag("no-dhcp-dns", None, Code::NoDhcpDns),
    flag("dhcp-search", None, Code::DhcpSearch),
    flag("no-dhcp-search", None, Code::NoDhcpSearch),
    flag("no-tcp", None, Code::NoTcp),
    flag("no-udp", None, Code::NoUdp),
    flag("no-icmp", None, Code::NoIcmp),
    flag("no-dhcp", None, Code::NoDhcp),
    flag("no-ndp", None, Code::NoNdp),
    flag("no-dhcpv6", None, Code::NoDhcpv6),
    flag("no-ra", None, Code::NoRa),
    flag("no-map-gw", None, Code::NoMapGw),
    valued("map-host-loopback", None, Code::MapHostLoopback),
    valued("map-guest-addr", None, Code::MapGuestAddr),
    flag("ipv4-only", Some(b'4'), Code::V4),
    flag("ipv6-only", Some(b'6'), Code::V6),
    valued("ns-ifname", Some(b'I'), Code::NsIfname),
    valued("tcp-ports", Some(b't'), Code::Tcp),
    valued("udp-ports", Some(b'u'), Code::Udp),
    valued("tcp-ns", Some(b'T'), Code::TcpNs),
    valued("udp-ns", Some(b'U'), Code::UdpNs),
    valued("userns", None, Code::Userns),
    valued("netns", None, Code::Netns),
    flag("netns-only", None, Code::NetnsOnly),
    flag("no-netns-quit", None, Code::NoNetnsQuit),
    flag("config-net", None, Code::ConfigNet),
    flag("no-copy-routes", None, Code::NoCopyRoutes),
    flag("no-copy-addrs", None, Code::NoCopyAddrs),
    valued("ns-mac-addr", None, Code::NsMac),
    flag("host-lo-to-ns-lo", None, Code::HostLoToNsLo),
    flag("splice-only", None, Code::SpliceOnly),
    flag("no-splice", None, Code::NoSplice),
    flag("freebind", None, Code::Freebind),
    valued("hostname", Some(b'H'), Code::Hostname),
    valued("fqdn", None, Code::Fqdn),
    valued("control", Some(b'c'), Code::Control),
    valued("stats", None, Code::Stats),
    valued("socket", Some(b's'), Code::Passt),
    valued("fd", Some(b'F'), Code::Passt),
    flag("one-off", Some(b'1'), Code::Passt),
    flag("vhost-user", None, Code::Passt),
];

/// Reads the words behind the program's name.
///
/// # Errors
/// The first word that cannot be followed.
pub fn parse(words: Vec<OsString>) -> Result<Call, CliError> {
    let mut request = Request::default();
    let (mut userns, mut netns) = (None, None);
    let mut log_size = DEFAULT_LOG_SIZE;
    let mut positionals = Vec::new();
    let mut reader = Getopt::new(OPTIONS, words);
    while let Some(item) = reader.next() {
        match item? {
            Item::Flag(Code::Help) => return Ok(Call::Help),
            Item::Flag(Code::Version) => return Ok(Call::Version),
            Item::Flag(code) => set(&mut request, code)?,
            Item::Valued(Code::Userns, value) => userns = Some(PathBuf::from(value)),
            Item::Valued(Code::Netns, value) => netns = Some(netns_path(value)),
            Item::Valued(Code::LogSize, value) => log_size = number("log size", &value)?,
            Item::Valued(code, value) => set_value(&mut request, code, &value)?,
            // A command has options of its own: ours end where it begins.
            Item::Positional(word) => {
                positionals.push(word);
                positionals.extend(reader.rest());
            }
        }
    }
    if let Log::File(_, size) = &mut request.log {
        *size = log_size;
    }
    request.target = target(netns, userns, positionals)?;
    if matches!(request.target, Target::Command(_)) {
        request.ground = Ground::Front;
    }
    Ok(Call::Serve(Box::new(request)))
}

const DEFAULT_LOG_SIZE: u64 = 1 << 20;

impl Default for Request {
    fn default() -> Self {
        Request {
            target: Target::Command(Vec::new()),
            ground: Ground::Back,
            quiet: false,
            verbose: 0,
            log: Log::Stderr,
            pcap: None,
            pid_file: None,
            mtu: 65_520,
            addresses: Vec::new(),
            netmask: None,
            gateways: Vec::new(),
            mac: None,
            ns_mac: None,
            interface: None,
            outbound: Vec::new(),
            outbound_if4: None,
            outbound_if6: None,
            dns: None,
            search: None,
            dns_forward: Vec::new(),
            dns_host: Vec::new(),
            dhcp_dns: false,
            dhcp_search: false,
            without: Without::default(),
            map_host_loopback: None,
            map_guest_addr: Vec::new(),
            families: Families::Both,
            ns_ifname: None,
            tcp: None,
            udp: None,
            tcp_ns: None,
            udp_ns: None,
            host_lo_to_ns_lo: false,
            config_net: false,
            no_netns_quit: false,
            ignored: Vec::new(),
        }
    }
}

fn target(
    netns: Option<PathBuf>,
    userns: Option<PathBuf>,
    positionals: Vec<OsString>,
) -> Result<Target, CliError> {
    if let Some(netns) = netns {
        return match positionals.first() {
            None => Ok(Target::Path { netns, userns }),
            Some(_) => Err(CliError::Conflict("--netns", "PID or a command")),
        };
    }
    let pid = match positionals.as_slice() {
        [word] => word.to_str().and_then(|word| word.parse::<i32>().ok()).filter(|&pid| pid > 0),
        _ => None,
    };
    match pid {
        Some(pid) => Ok(Target::Process { pid: Pid::from_raw(pid), userns }),
        None if userns.is_some() => Err(CliError::Conflict("--userns", "a command")),
        None => Ok(Target::Command(positionals)),
    }
}

fn netns_path(value: OsString) -> PathBuf {
    let path = PathBuf::from(value);
    if path.components().count() == 1 && !path.is_absolute() {
        PathBuf::from("/run/netns").join(path)
    } else {
        path
    }
}

fn set(request: &mut Request, code: Code) -> Result<(), CliError> {
    match code {
        Code::Debug => request.verbose = request.verbose.max(1),
        Code::Trace => request.verbose = 2,
        Code::Quiet => request.quiet = true,
        Code::Foreground => request.ground = Ground::Front,
        Code::DhcpDns => request.dhcp_dns = true,
        Code::NoDhcpDns => request.dhcp_dns = false,
        Code::DhcpSearch => request.dhcp_search = true,
        Code::NoDhcpSearch => request.dhcp_search = false,
        Code::NoTcp => request.without.tcp = true,
        Code::NoUdp => request.without.udp = true,
        Code::NoIcmp => request.without.icmp = true,
        Code::NoDhcp => request.without.dhcp = true,
        Code::NoNdp => request.without.ndp = true,
        Code::NoDhcpv6 => request.without.dhcpv6 = true,
        Code::NoRa => request.without.ra = true,
        Code::NoMapGw => {
            request.map_host_loopback = Some(request.map_host_loopback.take().unwrap_or_default())
        }
        Code::V4 => request.families = family(request.families, Families::V4)?,
        Code::V6 => request.families = family(request.families, Families::V6)?,
        Code::NoNetnsQuit => request.no_netns_quit = true,
        Code::ConfigNet => request.config_net = true,
        Code::HostLoToNsLo => request.host_lo_to_ns_lo = true,
        Code::NetnsOnly => request.ignored.push("netns-only"),
        Code::Stderr => {}
        Code::NoCopyRoutes => request.ignored.push("no-copy-routes"),
        Code::NoCopyAddrs => request.ignored.push("no-copy-addrs"),
        Code::NoSplice => request.ignored.push("no-splice"),
        Code::Freebind => request.ignored.push("freebind"),
        Code::SpliceOnly => {
            return Err(CliError::Refused {
                option: "splice-only",
                reason: "a namespace without a device is not served",
            });
        }
        _ => return Err(passt()),
    }
    Ok(())
}

fn family(before: Families, wanted: Families) -> Result<Families, CliError> {
    if before == Families::Both || before == wanted {
        Ok(wanted)
    } else {
        Err(CliError::Conflict("--ipv4-only", "--ipv6-only"))
    }
}

fn passt() -> CliError {
    CliError::Refused {
        option: "socket, --fd, --one-off, --vhost-user",
        reason: "virtual machines are not served, only namespaces",
    }
}

fn set_value(request: &mut Request, code: Code, value: &OsStr) -> Result<(), CliError> {
    match code {
        Code::LogFile => request.log = Log::File(PathBuf::from(value), DEFAULT_LOG_SIZE),
        Code::Pcap => request.pcap = Some(PathBuf::from(value)),
        Code::PidFile => request.pid_file = Some(PathBuf::from(value)),
        Code::Mtu => {
            request.mtu = number("MTU", value).and_then(|mtu: u16| match mtu {
                0 | 68..=65_520 => Ok(mtu),
                _ => Err(fault("MTU", value)),
            })?
        }
        Code::Address => request.addresses.push(address_with_prefix(value)?),
        Code::Netmask => request.netmask = Some(netmask(value)?),
        Code::Gateway => request.gateways.push(number("gateway address", value)?),
        Code::Mac => request.mac = Some(mac(value)?),
        Code::NsMac => request.ns_mac = Some(mac(value)?),
        Code::Interface => request.interface = Some(text("interface name", value)?),
        Code::Outbound => request.outbound.push(number("outbound address", value)?),
        Code::OutboundIf4 => request.outbound_if4 = Some(text("interface name", value)?),
        Code::OutboundIf6 => request.outbound_if6 = Some(text("interface name", value)?),
        Code::Dns => {
            let servers = request.dns.get_or_insert_default();
            match value.to_str() {
                Some("none" | "") => servers.clear(),
                _ => servers.push(number("DNS address", value)?),
            }
        }
        Code::DnsForward => request.dns_forward.push(number("DNS forwarding address", value)?),
        Code::DnsHost => request.dns_host.push(number("host nameserver address", value)?),
        Code::Search => {
            let list = text("search list", value)?;
            let words = list.split_whitespace().filter(|&word| word != "none").map(str::to_owned);
            request.search.get_or_insert_default().extend(words);
        }
        Code::MapHostLoopback => maps(request.map_host_loopback.get_or_insert_default(), value)?,
        Code::MapGuestAddr => maps(&mut request.map_guest_addr, value)?,
        Code::NsIfname => request.ns_ifname = Some(text("interface name", value)?),
        Code::Tcp => ports(&mut request.tcp, value)?,
        Code::Udp => ports(&mut request.udp, value)?,
        Code::TcpNs => ports(&mut request.tcp_ns, value)?,
        Code::UdpNs => ports(&mut request.udp_ns, value)?,
        Code::Runas => request.ignored.push("runas"),
        Code::Hostname => request.ignored.push("hostname"),
        Code::Fqdn => request.ignored.push("fqdn"),
        Code::Stats => request.ignored.push("stats"),
        Code::Control => {
            return Err(CliError::Refused {
                option: "control",
                reason: "pesto's protocol is not spoken; rootless-launch has an API of its own",
            });
        }
        _ => return Err(passt()),
    }
    Ok(())
}

fn ports(list: &mut Option<Vec<Ports>>, value: &OsStr) -> Result<(), CliError> {
    list.get_or_insert_default().push(Ports::parse(&text("port specifier", value)?)?);
    Ok(())
}

fn maps(list: &mut Vec<IpAddr>, value: &OsStr) -> Result<(), CliError> {
    match value.to_str() {
        Some("none") => list.clear(),
        _ => list.push(number("address to remap", value)?),
    }
    Ok(())
}

fn address_with_prefix(value: &OsStr) -> Result<(IpAddr, Option<u8>), CliError> {
    let whole = text("address", value)?;
    let (address, prefix) = match whole.split_once('/') {
        Some((address, prefix)) => {
            (address.to_owned(), Some(prefix.parse().map_err(|_| fault("prefix length", value))?))
        }
        None => (whole, None),
    };
    let address: IpAddr = address.parse().map_err(|_| fault("address", value))?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    if prefix.is_some_and(|prefix| prefix == 0 || prefix > longest) {
        return Err(fault("prefix length", value));
    }
    Ok((address, prefix))
}

fn netmask(value: &OsStr) -> Result<u8, CliError> {
    if let Ok(mask) = number::<std::net::Ipv4Addr>("netmask", value) {
        let bits = u32::from(mask);
        let prefix = bits.leading_ones();
        return if bits.count_ones() == prefix && prefix > 0 {
            Ok(prefix as u8)
        } else {
            Err(fault("netmask", value))
        };
    }
    number("netmask", value).and_then(|prefix: u8| {
        if (1..=32).contains(&prefix) { Ok(prefix) } else { Err(fault("netmask", value)) }
    })
}

fn mac(value: &OsStr) -> Result<[u8; 6], CliError> {
    let whole = text("MAC address", value)?;
    let bytes: Option<Vec<u8>> =
        whole.split([':', '-']).map(|part| u8::from_str_radix(part, 16).ok()).collect();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .filter(|mac: &[u8; 6]| mac[0] & 1 == 0)
        .ok_or_else(|| fault("MAC address", value))
}

fn number<T: FromStr>(what: &'static str, value: &OsStr) -> Result<T, CliError> {
    value.to_str().and_then(|text| text.parse().ok()).ok_or_else(|| fault(what, value))
}

fn text(what: &'static str, value: &OsStr) -> Result<String, CliError> {
    value.to_str().map(str::to_owned).ok_or_else(|| fault(what, value))
}

fn fault(what: &'static str, value: &OsStr) -> CliError {
    CliError::Value { what, value: value.to_string_lossy().into_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(line: &str) -> Result<Call, String> {
        parse(line.split_whitespace().map(OsString::from).collect()).map_err(|error| error.to_string())
    }

    fn request(line: &str) -> Request {
        match call(line) {
            Ok(Call::Serve(request)) => *request,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn podmans_call_is_read() {
        let request = request(
            "--config-net -t 127.0.0.1/8080-8080:80-80 --dns-forward 169.254.1.1 -t none -u none -T none -U none \
             --no-map-gw --quiet --netns /run/user/1000/netns/netns-1 --map-guest-addr 169.254.1.2",
        );
        let netns = PathBuf::from("/run/user/1000/netns/netns-1");
        assert_eq!(request.target, Target::Path { netns, userns: None });
        assert!(request.config_net && request.quiet);
        assert_eq!(request.ground, Ground::Back);
        assert_eq!(request.tcp.as_ref().map(Vec::len), Some(2));
        assert_eq!(request.udp_ns, Some(vec![Ports::None]));
        assert_eq!(request.dns_forward, ["169.254.1.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(request.map_guest_addr, ["169.254.1.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(request.map_host_loopback, Some(vec![]));
    }

    #[test]
    fn rootlesskits_call_is_read() {
        let request = request(
            "--stderr --ns-ifname=tap0 --mtu=65520 --config-net --address=10.0.2.100 --netmask=24 --gateway=10.0.2.2 \
             --dns-forward=10.0.2.3 --ipv4-only --tcp-ports=auto --udp-ports=auto --host-lo-to-ns-lo 2777069",
        );
        assert_eq!(request.target, Target::Process { pid: Pid::from_raw(2_777_069), userns: None });
        assert_eq!((request.mtu, request.netmask, request.families), (65_520, Some(24), Families::V4));
        assert_eq!(request.tcp, Some(vec![Ports::Auto(vec![])]));
        assert_eq!(request.map_host_loopback, None);
        assert!(request.host_lo_to_ns_lo);
    }

    #[test]
    fn a_command_keeps_its_options() {
        let request = request("-4 --mtu 1500 sh -c true");
        assert_eq!(request.target, Target::Command(vec!["sh".into(), "-c".into(), "true".into()]));
        assert_eq!(request.ground, Ground::Front);
        assert_eq!(self::request("-- sh -f").target, Target::Command(vec!["sh".into(), "-f".into()]));
    }

    #[test]
    fn names_of_namespaces_are_paths() {
        let target = Target::Path { netns: "/run/netns/blue".into(), userns: None };
        assert_eq!(request("--netns blue").target, target);
        assert!(call("--netns blue 1").is_err());
    }

    #[test]
    fn masks_are_bits_or_dotted() {
        assert_eq!(request("-n 255.255.240.0").netmask, Some(20));
        assert_eq!(request("-n 31").netmask, Some(31));
        assert!(call("-n 255.0.255.0").is_err() && call("-n 33").is_err() && call("-n 0").is_err());
    }

    #[test]
    fn what_an_old_version_says_of_an_unknown_option_is_said() {
        assert_eq!(call("--nonsense").unwrap_err(), "pasta: unrecognized option '--nonsense'");
        assert!(call("--map-guest-addr 169.254.1.2").is_ok());
    }

    #[test]
    fn what_belongs_to_virtual_machines_is_refused_with_a_reason() {
        for line in ["--socket /x", "-F 3", "--one-off", "-c /run/pesto", "--splice-only"] {
            let said = call(line).unwrap_err();
            assert!(said.starts_with("--"), "{line}: {said}");
        }
    }
}
