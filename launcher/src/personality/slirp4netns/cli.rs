//! The command line of slirp4netns, read as it reads it. Pure.

use std::ffi::{OsStr, OsString};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;
use std::path::PathBuf;

use netstack::config::Ipv4Net;
use nix::unistd::Pid;
use thiserror::Error;

use crate::personality::getopt::{Getopt, GetoptError, Item, Opt, Value};

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

/// Everything that the command line says about a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is served.
    pub target: Target,
    /// `-c`: whether the interface is configured.
    pub configuration: Configuration,
    /// `-e`: a hang-up here ends the run.
    pub exit_fd: Option<RawFd>,
    /// `-r`: told when everything is ready.
    pub ready_fd: Option<RawFd>,
    /// `-m`, 1 to 65521.
    pub mtu: u32,
    /// `-6`.
    pub ipv6: Switch,
    /// `-a`.
    pub api_socket: Option<PathBuf>,
    /// `--cidr`.
    pub cidr: Ipv4Net,
    /// On unless `--disable-host-loopback`.
    pub host_loopback: Switch,
    /// On unless `--disable-dns`.
    pub dns: Switch,
    /// `--outbound-addr`.
    pub outbound: Option<Outbound<Ipv4Addr>>,
    /// `--outbound-addr6`.
    pub outbound6: Option<Outbound<Ipv6Addr>>,
    /// `--enable-sandbox`.
    pub sandbox: Switch,
    /// `--enable-seccomp`.
    pub seccomp: Switch,
}

/// What is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The network namespace of a process, entered through its user namespace unless another one is named.
    Process {
        /// The process.
        pid: Pid,
        /// `--userns-path`.
        userns: Option<PathBuf>,
        /// TAPNAME.
        tap: String,
    },
    /// A network namespace by its path.
    Path {
        /// Where it is.
        netns: PathBuf,
        /// `--userns-path`.
        userns: Option<PathBuf>,
        /// TAPNAME.
        tap: String,
    },
    /// A TAP that the caller has opened.
    TapFd(RawFd),
    /// Whoever connects to this socket.
    Bess(PathBuf),
}

/// Whether something is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// It is not.
    Off,
    /// It is.
    On,
}

/// What is done to the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Configuration {
    /// Nothing: the caller does it, or a DHCP client.
    Leave,
    /// Up, addressed, routed; with this MAC address if there is one.
    Apply(Option<[u8; 6]>),
}

/// Where connections to the world come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outbound<A> {
    /// An address of the host.
    Address(A),
    /// The address of an interface of the host.
    Interface(String),
}

/// A command line that cannot be followed. Three of these texts are searched for by others' tests.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CliError {
    /// A word that is no option of ours.
    #[error("{NAME}: {0}")]
    Getopt(#[from] GetoptError),
    /// Too few words; the usage says what is missing.
    #[error("a target and the name of the TAP are needed")]
    Missing,
    /// `-e` or `-r`.
    #[error("{0} must be a non-negative integer")]
    Fd(&'static str),
    /// `-m`.
    #[error("MTU must be a positive integer (< 65522)")]
    Mtu,
    /// PID.
    #[error("PID must be a positive integer")]
    Pid,
    /// FD.
    #[error("FD must be a non-negative integer when --netns-type=tapfd")]
    TapFd,
    /// TAPNAME.
    #[error("{0:?} is not the name of an interface: 1 to 15 bytes")]
    TapName(OsString),
    /// `--cidr`: not of the form.
    #[error("invalid CIDR: {0}")]
    CidrForm(String),
    /// `--cidr`: prefix.
    #[error("prefix length needs to be 1-25")]
    CidrPrefix,
    /// `--cidr`: numbers above 255.
    #[error("invalid network address: {0}")]
    CidrAddress(String),
    /// `--cidr`: host bits.
    #[error("CIDR needs to be a network address like {network}, not like {given}")]
    CidrHostBits {
        /// What it may have been meant to be.
        network: String,
        /// What it is.
        given: String,
    },
    /// `--macaddress` without `-c`.
    #[error("--macaddress cannot be specified when --configure or -c is not specified")]
    MacWithoutConfigure,
    /// `--macaddress`.
    #[error(
        "{0:?} is an invalid MAC address: it needs to be six bytes in hexadecimal, separated by ':', not a \
         multicast address"
    )]
    Mac(String),
    /// `--outbound-addr`, `--outbound-addr6`.
    #[error("{option} has to be a valid {family} address or interface name, not {value:?}")]
    Outbound {
        /// The option.
        option: &'static str,
        /// Its family.
        family: &'static str,
        /// Its value.
        value: OsString,
    },
    /// `--target-type`.
    #[error("--target-type must be either \"netns\" or \"bess\"")]
    TargetType,
    /// An option about namespaces, for a target that is none.
    #[error("{0} conflicts with --target-type=bess")]
    ConflictsWithBess(&'static str),
}

/// Reads the words behind the program's name. Sentences for stdout are added to `notices`, whatever the outcome.
///
/// # Errors
/// The first fault.
pub fn parse(words: Vec<OsString>, notices: &mut Vec<String>) -> Result<Call, CliError> {
    let mut given = Given::default();
    let mut positionals = Vec::new();
    for item in Getopt::new(OPTIONS, words) {
        match item? {
            Item::Positional(word) => positionals.push(word),
            Item::Flag(Code::Help) => return Ok(Call::Help),
            Item::Flag(Code::Version) => return Ok(Call::Version),
            Item::Flag(code) => given.flag(code, notices),
            Item::Valued(code, value) => given.value(code, value)?,
        }
    }
    given.finish(positionals, notices).map(|request| Call::Serve(Box::new(request)))
}

/// What the help says, whole.
pub const USAGE: &str = "\
Usage: slirp4netns [OPTION]... PID|PATH|FD [TAPNAME]
Network for a namespace of an unprivileged user, without privileges (rootless-launch as slirp4netns).

-c, --configure          set up the interface: addresses, default route, MTU
-e, --exit-fd=FD         end when FD is hung up
-r, --ready-fd=FD        write \"1\" to FD when everything is ready
-m, --mtu=MTU            MTU of the interface (1 to 65521, default=1500)
-6, --enable-ipv6        serve fd00::/64 too
-a, --api-socket=PATH    serve requests for port forwards on this Unix socket
--cidr=CIDR              network of the interface (default=10.0.2.0/24)
--disable-host-loopback  keep the namespace from 127.0.0.1 of the host
--netns-type=TYPE        how the namespace is named (pid, path or tapfd, default=pid)
--userns-path=PATH       user namespace to enter first
--enable-sandbox         give up the file system and all capabilities but CAP_NET_BIND_SERVICE
--enable-seccomp         allow only the system calls that are needed
--outbound-addr=ADDR     IPv4 address, or interface, that connections come from
--outbound-addr6=ADDR    IPv6 address, or interface, that connections come from
--disable-dns            do not answer DNS queries
--macaddress=MAC         MAC address of the interface (only with -c)
--target-type=TYPE       what is served (netns or bess, default=netns)
-h, --help               show this help and exit
-v, --version            show what this is and exit
";

const NAME: &str = "slirp4netns";
const MAX_MTU: u32 = 65521;
const DEFAULT_MTU: u32 = 1500;
const DEFAULT_CIDR: &str = "10.0.2.0/24";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    Configure,
    ExitFd,
    ReadyFd,
    Mtu,
    Ipv6,
    ApiSocket,
    Cidr,
    NoHostLoopback,
    NoHostLoopbackOld,
    NetnsType,
    UsernsPath,
    Sandbox,
    SandboxOld,
    Seccomp,
    Outbound,
    Outbound6,
    DisableDns,
    Mac,
    TargetType,
    Help,
    Version,
}

const OPTIONS: &[Opt<Code>] = &[
    flag("configure", Some(b'c'), Code::Configure),
    valued("exit-fd", Some(b'e'), Code::ExitFd),
    valued("ready-fd", Some(b'r'), Code::ReadyFd),
    valued("mtu", Some(b'm'), Code::Mtu),
    flag("enable-ipv6", Some(b'6'), Code::Ipv6),
    valued("api-socket", Some(b'a'), Code::ApiSocket),
    valued("cidr", None, Code::Cidr),
    flag("disable-host-loopback", None, Code::NoHostLoopback),
    flag("no-host-loopback", None, Code::NoHostLoopbackOld),
    valued("netns-type", None, Code::NetnsType),
    valued("userns-path", None, Code::UsernsPath),
    flag("enable-sandbox", None, Code::Sandbox),
    flag("create-sandbox", None, Code::SandboxOld),
    flag("enable-seccomp", None, Code::Seccomp),
    valued("outbound-addr", None, Code::Outbound),
    valued("outbound-addr6", None, Code::Outbound6),
    flag("disable-dns", None, Code::DisableDns),
    valued("macaddress", None, Code::Mac),
    valued("target-type", None, Code::TargetType),
    flag("help", Some(b'h'), Code::Help),
    flag("version", Some(b'v'), Code::Version),
];

const fn flag(long: &'static str, short: Option<u8>, code: Code) -> Opt<Code> {
    Opt { long, short, value: Value::None, code }
}

const fn valued(long: &'static str, short: Option<u8>, code: Code) -> Opt<Code> {
    Opt { long, short, value: Value::Required, code }
}

/// What has been read so far.
#[derive(Debug, Default)]
struct Given {
    flags: Vec<Code>,
    exit_fd: Option<RawFd>,
    ready_fd: Option<RawFd>,
    mtu: Option<u32>,
    api_socket: Option<PathBuf>,
    cidr: Option<OsString>,
    netns_type: Option<OsString>,
    userns: Option<PathBuf>,
    outbound: Option<OsString>,
    outbound6: Option<OsString>,
    mac: Option<OsString>,
    target_type: Option<OsString>,
}

impl Given {
    fn flag(&mut self, code: Code, notices: &mut Vec<String>) {
        let renamed = match code {
            Code::NoHostLoopbackOld => {
                Some((Code::NoHostLoopback, "--no-host-loopback", "--disable-host-loopback"))
            }
            Code::SandboxOld => Some((Code::Sandbox, "--create-sandbox", "--enable-sandbox")),
            _ => None,
        };
        if let Some((code, old, new)) = renamed {
            notices.push(format!("WARNING: {old} is deprecated, please use {new} instead."));
            return self.flags.push(code);
        }
        self.flags.push(code);
    }

    fn value(&mut self, code: Code, value: OsString) -> Result<(), CliError> {
        match code {
            Code::ExitFd => self.exit_fd = Some(fd(&value).ok_or(CliError::Fd("exit-fd"))?),
            Code::ReadyFd => self.ready_fd = Some(fd(&value).ok_or(CliError::Fd("ready-fd"))?),
            Code::Mtu => {
                let mtu = number(&value).filter(|mtu| (1..=MAX_MTU).contains(mtu));
                self.mtu = Some(mtu.ok_or(CliError::Mtu)?);
            }
            Code::ApiSocket => self.api_socket = Some(value.into()),
            Code::Cidr => self.cidr = Some(value),
            Code::NetnsType => self.netns_type = Some(value),
            Code::UsernsPath => self.userns = Some(value.into()),
            Code::Outbound => self.outbound = Some(value),
            Code::Outbound6 => self.outbound6 = Some(value),
            Code::Mac => self.mac = Some(value),
            Code::TargetType => self.target_type = Some(value),
            // The rest are flags.
            _ => {}
        }
        Ok(())
    }

    fn finish(self, positionals: Vec<OsString>, notices: &mut Vec<String>) -> Result<Request, CliError> {
        let bess = match self.target_type.as_ref().map(|kind| kind.as_encoded_bytes()) {
            None | Some(b"netns") => false,
            Some(b"bess") => true,
            Some(_) => return Err(CliError::TargetType),
        };
        for (what, given) in [
            ("IPv6", self.has(Code::Ipv6)),
            ("seccomp", self.has(Code::Seccomp)),
            ("--outbound-addr", self.outbound.is_some()),
            ("--outbound-addr6", self.outbound6.is_some()),
            ("--target-type=bess", bess),
        ] {
            if given {
                notices.push(format!("WARNING: Support for {what} is experimental"));
            }
        }
        let target = if bess { self.bess(positionals)? } else { self.namespace(positionals, notices)? };
        let configuration = match (self.has(Code::Configure), &self.mac) {
            (false, None) => Configuration::Leave,
            (false, Some(_)) => return Err(CliError::MacWithoutConfigure),
            (true, mac) => Configuration::Apply(mac.as_deref().map(parse_mac).transpose()?),
        };
        let cidr = self.cidr.as_deref().map(OsStr::to_string_lossy);
        Ok(Request {
            target,
            configuration,
            exit_fd: self.exit_fd,
            ready_fd: self.ready_fd,
            mtu: self.mtu.unwrap_or(DEFAULT_MTU),
            ipv6: self.switch(Code::Ipv6),
            api_socket: self.api_socket.clone(),
            cidr: parse_cidr(cidr.as_deref().unwrap_or(DEFAULT_CIDR))?,
            host_loopback: self.unless(Code::NoHostLoopback),
            dns: self.unless(Code::DisableDns),
            outbound: parse_outbound("--outbound-addr", "IPv4", self.outbound.as_deref())?,
            outbound6: parse_outbound("--outbound-addr6", "IPv6", self.outbound6.as_deref())?,
            sandbox: self.switch(Code::Sandbox),
            seccomp: self.switch(Code::Seccomp),
        })
    }

    fn bess(&self, positionals: Vec<OsString>) -> Result<Target, CliError> {
        let conflicts = [
            ("--configure", self.has(Code::Configure)),
            ("--netns-type", self.netns_type.is_some()),
            ("--userns-path", self.userns.is_some()),
        ];
        if let Some((option, _)) = conflicts.into_iter().find(|&(_, given)| given) {
            return Err(CliError::ConflictsWithBess(option));
        }
        positionals.into_iter().next().map(|path| Target::Bess(path.into())).ok_or(CliError::Missing)
    }

    fn namespace(&self, positionals: Vec<OsString>, notices: &mut Vec<String>) -> Result<Target, CliError> {
        let mut words = positionals.into_iter();
        let target = words.next().ok_or(CliError::Missing)?;
        let kind = self.netns_type.as_deref().unwrap_or(OsStr::new("pid"));
        if kind == "tapfd" {
            return fd(&target).map(Target::TapFd).ok_or(CliError::TapFd);
        }
        let tap = words.next().ok_or(CliError::Missing)?;
        if words.next().is_some() {
            notices.push("WARNING: too many arguments".to_owned());
        }
        let userns = self.userns.clone();
        if kind == "pid" {
            let pid = number(&target).and_then(|pid| i32::try_from(pid).ok()).filter(|&pid| pid > 0);
            let pid = Pid::from_raw(pid.ok_or(CliError::Pid)?);
            return Ok(Target::Process { pid, userns, tap: interface(tap)? });
        }
        Ok(Target::Path { netns: target.into(), userns, tap: interface(tap)? })
    }

    fn has(&self, code: Code) -> bool {
        self.flags.contains(&code)
    }

    fn switch(&self, code: Code) -> Switch {
        if self.has(code) { Switch::On } else { Switch::Off }
    }

    fn unless(&self, code: Code) -> Switch {
        if self.has(code) { Switch::Off } else { Switch::On }
    }
}

fn number(text: &OsStr) -> Option<u32> {
    text.to_str()?.parse().ok()
}

fn fd(text: &OsStr) -> Option<RawFd> {
    number(text).and_then(|fd| fd.try_into().ok())
}

fn interface(name: OsString) -> Result<String, CliError> {
    match name.to_str() {
        Some(text) if (1..libc::IFNAMSIZ).contains(&text.len()) => Ok(text.to_owned()),
        _ => Err(CliError::TapName(name)),
    }
}

/// Form first, then prefix, then address, then host bits.
fn parse_cidr(text: &str) -> Result<Ipv4Net, CliError> {
    let form = || CliError::CidrForm(text.to_owned());
    let (address, prefix) = text.split_once('/').ok_or_else(form)?;
    let digits = |part: &str, most: usize| {
        (1..=most).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
    };
    let parts: Vec<&str> = address.split('.').collect();
    if parts.len() != 4 || !parts.iter().all(|part| digits(part, 3)) || !digits(prefix, 2) {
        return Err(form());
    }
    let prefix: u8 = prefix.parse().map_err(|_| form())?;
    if !(1..=25).contains(&prefix) {
        return Err(CliError::CidrPrefix);
    }
    let network: Ipv4Addr = address.parse().map_err(|_| CliError::CidrAddress(address.to_owned()))?;
    Ipv4Net::new(network, prefix).map_err(|_| {
        let meant = u32::from(network) & (u32::MAX << (32 - u32::from(prefix)));
        CliError::CidrHostBits {
            network: format!("{}/{prefix}", Ipv4Addr::from(meant)),
            given: text.to_owned(),
        }
    })
}

fn parse_mac(value: &OsStr) -> Result<[u8; 6], CliError> {
    let text = value.to_string_lossy();
    let fault = || CliError::Mac(text.clone().into_owned());
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let is_byte = |part: &&str| part.len() <= 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
        let part = parts.next().filter(is_byte).ok_or_else(fault)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| fault())?;
    }
    let multicast = mac[0] & 1 != 0;
    if parts.next().is_some() || multicast || mac == [0; 6] { Err(fault()) } else { Ok(mac) }
}

fn parse_outbound<A: std::str::FromStr>(
    option: &'static str,
    family: &'static str,
    value: Option<&OsStr>,
) -> Result<Option<Outbound<A>>, CliError> {
    let Some(value) = value else { return Ok(None) };
    if let Some(address) = value.to_str().and_then(|text| text.parse().ok()) {
        return Ok(Some(Outbound::Address(address)));
    }
    match interface(value.to_owned()) {
        Ok(name) => Ok(Some(Outbound::Interface(name))),
        Err(_) => Err(CliError::Outbound { option, family, value: value.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> (Result<Call, String>, Vec<String>) {
        let mut notices = Vec::new();
        let words = words.iter().map(OsString::from).collect();
        let call = parse(words, &mut notices).map_err(|error| error.to_string());
        (call, notices)
    }

    #[track_caller]
    fn request(words: &[&str]) -> Request {
        match read(words).0 {
            Ok(Call::Serve(request)) => *request,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn fault(words: &[&str]) -> String {
        read(words).0.unwrap_err()
    }

    #[test]
    fn calls_of_others_are_understood() {
        // Podman.
        let podman = request(&[
            "--disable-host-loopback",
            "--mtu=65520",
            "--enable-sandbox",
            "--enable-seccomp",
            "--enable-ipv6",
            "-c",
            "-r",
            "3",
            "-e",
            "4",
            "--api-socket",
            "/run/x.net",
            "--netns-type=path",
            "/run/netns/a",
            "tap0",
        ]);
        assert_eq!((podman.ready_fd, podman.exit_fd, podman.mtu), (Some(3), Some(4), 65520));
        assert_eq!([podman.sandbox, podman.seccomp, podman.ipv6, podman.dns], [Switch::On; 4]);
        assert_eq!(podman.host_loopback, Switch::Off);
        let netns = PathBuf::from("/run/netns/a");
        assert_eq!(podman.target, Target::Path { netns, userns: None, tap: "tap0".into() });
        // RootlessKit with --detach-netns.
        let rootlesskit = request(&[
            "--mtu",
            "65520",
            "-r",
            "3",
            "--userns-path=/proc/7/ns/user",
            "--netns-type=path",
            "/run/user/1000/netns",
            "tap0",
        ]);
        let Target::Path { userns, .. } = rootlesskit.target else { panic!("{rootlesskit:?}") };
        assert_eq!(userns, Some(PathBuf::from("/proc/7/ns/user")));
        // k3s, options behind the positional words.
        let k3s = request(&["123", "tap0", "--cidr", "10.41.0.0/16", "--disable-host"]);
        assert_eq!(k3s.cidr, "10.41.0.0/16".parse().unwrap());
        assert_eq!(k3s.configuration, Configuration::Leave);
        assert_eq!(k3s.target, Target::Process { pid: Pid::from_raw(123), userns: None, tap: "tap0".into() });
    }

    #[test]
    fn any_word_but_pid_and_tapfd_means_a_path() {
        let target = |kind: &str| request(&[&format!("--netns-type={kind}"), "7", "tap0"]).target;
        assert!(matches!(target("pid"), Target::Process { .. }));
        assert!(matches!(target("path"), Target::Path { .. }));
        assert!(matches!(target("whatever"), Target::Path { .. }));
        assert_eq!(request(&["--netns-type=tapfd", "7"]).target, Target::TapFd(7));
        assert_eq!(target("tapfd"), Target::TapFd(7));
    }

    #[test]
    fn the_network_is_checked_for_form_then_prefix_then_host_bits() {
        for (cidr, wanted) in [
            ("24", "invalid CIDR: 24"),
            ("foo", "invalid CIDR: foo"),
            ("10.0.2.0", "invalid CIDR: 10.0.2.0"),
            ("10.0.2.0/240", "invalid CIDR: 10.0.2.0/240"),
            ("10.0.2/24", "invalid CIDR: 10.0.2/24"),
            ("", "invalid CIDR: "),
            ("10.0.2.0/26", "prefix length needs to be 1-25"),
            ("10.0.2.0/0", "prefix length needs to be 1-25"),
            ("10.0.2.100/26", "prefix length needs to be 1-25"),
            ("999.0.2.0/24", "invalid network address: 999.0.2.0"),
            ("10.0.2.100/24", "CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24"),
        ] {
            assert_eq!(fault(&[&format!("--cidr={cidr}"), "1", "tap0"]), wanted);
        }
        assert_eq!(request(&["1", "tap0"]).cidr, "10.0.2.0/24".parse().unwrap());
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for mtu in ["0", "-1", "65522", "x", "1500x", ""] {
            assert_eq!(
                fault(&["--mtu", mtu, "1", "tap0"]),
                "MTU must be a positive integer (< 65522)",
                "{mtu}"
            );
        }
        assert_eq!(request(&["-m65521", "1", "tap0"]).mtu, 65521);
        assert_eq!(fault(&["-e", "-1", "1", "tap0"]), "exit-fd must be a non-negative integer");
        assert_eq!(fault(&["-r", "x", "1", "tap0"]), "ready-fd must be a non-negative integer");
        assert_eq!(fault(&["0", "tap0"]), "PID must be a positive integer");
        assert_eq!(fault(&["--", "-1", "tap0"]), "PID must be a positive integer");
        assert!(fault(&["1", "a-name-too-long-for-linux"]).contains("name of an interface"));
        assert_eq!(fault(&["1"]), fault(&[]));
        assert_eq!(fault(&["--nonsense"]), "slirp4netns: unrecognized option '--nonsense'");
    }

    #[test]
    fn a_mac_address_needs_a_configured_interface() {
        let mac = |text: &str| request(&["-c", "--macaddress", text, "1", "tap0"]).configuration;
        assert_eq!(mac("52:55:0a:00:02:0F"), Configuration::Apply(Some([0x52, 0x55, 10, 0, 2, 15])));
        assert!(fault(&["--macaddress=52:55:0a:00:02:0f", "1", "tap0"]).contains("cannot be specified"));
        for text in ["xx", "52:55:0a:00:02", "52:55:0a:00:02:0f:1", "+2:55:0a:00:02:0f", "01:00:00:00:00:01"]
        {
            let fault = fault(&["-c", "--macaddress", text, "1", "tap0"]);
            assert!(fault.contains("is an invalid MAC address"), "{text}: {fault}");
        }
    }

    #[test]
    fn outbound_is_an_address_of_the_family_or_an_interface() {
        let request = request(&["--outbound-addr=192.0.2.1", "--outbound-addr6=eth0", "1", "tap0"]);
        assert_eq!(request.outbound, Some(Outbound::Address(Ipv4Addr::new(192, 0, 2, 1))));
        assert_eq!(request.outbound6, Some(Outbound::Interface("eth0".into())));
        assert!(fault(&["--outbound-addr6=", "1", "tap0"]).contains("IPv6"));
    }

    #[test]
    fn bess_needs_a_path_only_and_no_namespace() {
        assert_eq!(request(&["--target-type=bess", "/x"]).target, Target::Bess("/x".into()));
        for option in ["--configure", "--netns-type=path", "--userns-path=/x"] {
            let name = option.split('=').next().unwrap_or(option);
            assert_eq!(
                fault(&["--target-type=bess", option, "/x"]),
                format!("{name} conflicts with --target-type=bess")
            );
        }
        assert!(fault(&["--target-type=foo", "1", "tap0"]).contains("must be either"));
    }

    #[test]
    fn old_names_work_and_say_so() {
        let (call, notices) = read(&["--no-host-loopback", "--create-sandbox", "-6", "1", "tap0"]);
        let Ok(Call::Serve(request)) = call else { panic!("{call:?}") };
        assert_eq!((request.host_loopback, request.sandbox), (Switch::Off, Switch::On));
        let said = |text: &str| notices.iter().any(|line| line.contains(text));
        assert!(said("--no-host-loopback is deprecated") && said("--create-sandbox is deprecated"));
        assert!(said("Support for IPv6 is experimental"));
    }

    #[test]
    fn help_and_version_come_before_faults_behind_them() {
        assert_eq!(read(&["--help", "--nonsense"]).0, Ok(Call::Help));
        assert_eq!(read(&["-v"]).0, Ok(Call::Version));
        assert!(read(&["--nonsense", "--help"]).0.is_err());
    }

    #[test]
    fn help_names_what_callers_look_for() {
        for option in [
            "--netns-type",
            "--enable-ipv6",
            "--cidr",
            "--disable-host-loopback",
            "--api-socket",
            "--enable-sandbox",
            "--enable-seccomp",
            "--mtu",
            "--outbound-addr",
        ] {
            assert!(USAGE.contains(option), "{option}");
        }
        let told = OPTIONS.iter().filter(|option| !option.long.starts_with("no-host"));
        for option in told.filter(|option| option.long != "create-sandbox") {
            assert!(USAGE.contains(&format!("--{}", option.long)), "{}", option.long);
        }
    }
}
