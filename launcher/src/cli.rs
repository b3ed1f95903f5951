//! The command line. Help texts are the manual.

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use forwarder::auto::AutoRules;
use forwarder::error::SpecError;
use forwarder::spec::PortSpec;
use netstack::LinkCapabilities;
use netstack::config::{IpNet, Ipv4Net, Ipv6Mode, Ipv6Net, UdpFiltering};
use serde::Serialize;

use crate::check::finding::Purpose;
use crate::client::args::ClientCommand;
use crate::egress::EgressMode;
use crate::engine_process::OnDeath;
use crate::node::args::NodeArgs;
use crate::plan::cgroup::CgroupMode;
use crate::sandbox::Mode;
use crate::state_dir::InstanceName;

/// Run a command in its own namespaces, without root, behind a usermode network engine.
///
/// CMD runs in new user, mount and network namespaces. It sees itself as root (uid 0); outside it is the
/// caller. Every packet it sends goes through an engine process of the caller, which opens ordinary
/// sockets: no privilege is needed. CMD and everything it starts end together with the launcher.
///
/// Exit status: CMD's own; if CMD died of a signal the launcher dies of the same. 2 for a wrong command line,
/// 1 if the launch or the engine failed, 126 if CMD cannot be executed, 127 if it was not found.
#[derive(Debug, Parser)]
#[command(
    name = "rootless-launch",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Cli {
    /// What to do instead of running a command.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to run the command.
    #[command(flatten)]
    pub run: RunArgs,
}

impl Cli {
    /// How much is to be said on stderr.
    pub fn verbosity(&self) -> u8 {
        match &self.command {
            Some(Command::Node(node)) => node.run.verbose,
            _ => self.run.verbose,
        }
    }
}

/// Adds to an error what is easily forgotten: `--` before the command.
pub fn explain(mut error: clap::Error) -> clap::Error {
    if error.kind() == ErrorKind::UnknownArgument
        && let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg)
        && let Some(ContextValue::StyledStr(usage)) = error.get(ContextKind::Usage)
        && !word.starts_with('-')
        && usage.to_string().contains("-- <CMD>")
    {
        let tip = format!("a command to run stands after --: rootless-launch -- {word}");
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

/// Things to do instead of running a command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say what this machine lacks, and the one command that mends each
    ///
    /// Tries everything for real in processes that are thrown away: what a launch needs, a Kubernetes node, several nodes.
    /// Exit status 0 if what --for names works (a launch, unless it is given), else 1. The block of commands at the end
    /// mends all that is said to fail; nothing is run by itself.
    Check(CheckArgs),
    /// Run a Kubernetes node: a container runtime, pod networking and kubelet
    ///
    /// Without a kubeconfig it runs static pods. Everything it keeps is in its data directory.
    Node(Box<NodeArgs>),
    /// What concerns running instances.
    #[command(flatten)]
    Client(ClientCommand),
    /// Print a completion script for a shell
    ///
    /// For example: rootless-launch completions bash > ~/.local/share/bash-completion/completions/rootless-launch
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write all of them to a directory
    Man {
        /// Where to; a page for each subcommand
        directory: Option<PathBuf>,
    },
}

/// Options of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// What the machine is wanted for; each has all needs of the ones before it
    ///
    /// Without this everything is shown, and the exit status is that of a launch.
    #[arg(long = "for", value_name = "PURPOSE", value_enum)]
    pub purpose: Option<Purpose>,

    /// Print a JSON array of {"name", "verdict", "finding", "fix", "group"} instead of text
    #[arg(long)]
    pub json: bool,

    /// Print only the commands that root has to run, as a script for sh
    #[arg(long, conflicts_with = "json")]
    pub commands: bool,

    /// A directory of programs, before those of PATH, and of CNI plugins, or these in a directory cni beside it; repeat for more
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Vec<PathBuf>,

    /// A directory of CNI plugins, before /opt/cni/bin and where distributions have them; repeat for more
    #[arg(long, value_name = "DIR")]
    pub cni_bin_dir: Vec<PathBuf>,

    /// Whether a node has to have a delegated cgroup, as for a launch
    ///
    /// Without one it runs, but no limits of its pods are enforced.
    #[arg(long, value_name = "MODE", value_enum, default_value_t = CgroupArg::Auto)]
    pub cgroup: CgroupArg,

    /// Where nodes keep their data [default: rootless-launch in $XDG_DATA_HOME, else in ~/.local/share]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// Options of a launch.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The child's IPv4 network, prefix 1 to 25: gateway .2, DNS .3, child .100
    #[arg(long, value_name = "NET", default_value = "10.0.42.0/24")]
    pub cidr: Ipv4Net,

    /// The child's IPv6 network, a /64: gateway ::2, DNS ::3, child ::100
    #[arg(long, value_name = "NET", default_value = "fd42:10:42::/64")]
    pub cidr6: Ipv6Net,

    /// The child's address in its network, where the default will not do; once for each family
    #[arg(long, value_name = "IP")]
    pub address: Vec<IpAddr>,

    /// The gateway's address in the child's network; once for each family
    #[arg(long, value_name = "IP")]
    pub gateway: Vec<IpAddr>,

    /// Where in the child's network DNS is answered (whom to ask is --dns); once for each family
    #[arg(long, value_name = "IP")]
    pub dns_address: Vec<IpAddr>,

    /// MTU of the child's network device, 576 to 65521 (at least 1280 with IPv6)
    ///
    /// The engine moves up to 64 KiB at once at any MTU; a larger one is not faster for TCP.
    #[arg(long, value_name = "N", default_value_t = 1500)]
    pub mtu: u16,

    /// Whether the child is offered IPv6
    #[arg(long, value_name = "MODE", value_enum, default_value_t = Ipv6Arg::Auto)]
    pub ipv6: Ipv6Arg,

    /// DNS server to ask, an address or ADDRESS:PORT; repeat for more [default: the host's resolv.conf]
    #[arg(long, value_name = "SERVER", value_parser = parse_server)]
    pub dns: Vec<SocketAddr>,

    /// A name that the child resolves to an address, in DNS and in /etc/hosts; repeat for more
    ///
    /// host.internal and gateway.internal (the gateway) and dns.internal are always there.
    #[arg(long, value_name = "NAME=IP", value_parser = parse_name)]
    pub dns_name: Vec<(String, IpAddr)>,

    /// Search domain of the child; repeat for more [default: the host's search list]
    #[arg(long, value_name = "DOMAIN")]
    pub dns_search: Vec<String>,

    /// Let the child reach the host's loopback (127.0.0.1, ::1) through the gateway address
    #[arg(long)]
    pub allow_host_loopback: bool,

    /// Let the child reach link-local addresses such as the cloud metadata service 169.254.169.254
    #[arg(long)]
    pub allow_link_local: bool,

    /// Publish a port of the child on the host, or a range, or whatever listens; repeat for more
    #[arg(short = 'p', long, value_name = "SPEC|auto", long_help = PUBLISH)]
    pub publish: Vec<Publish>,

    /// Publish the ports that a TOML or JSON file lists; repeat for more
    #[arg(long, value_name = "FILE", long_help = PUBLISH_FILE)]
    pub publish_file: Vec<PathBuf>,

    /// Egress rule, or @FILE with one rule per line; repeat for more, the first match wins
    ///
    /// allow|deny [tcp|udp|icmp|any] TARGET[:PORT|:LOW-HIGH], where TARGET is any, an address or a network, IPv6
    /// in brackets before a port: "deny tcp 10.0.0.0/8:22", "allow udp any:53", "deny [fd00::/8]:443". What no
    /// rule matches is allowed.
    #[arg(long, value_name = "RULE|@FILE")]
    pub policy: Vec<String>,

    /// Who may answer the child's UDP datagrams (RFC 4787 section 5)
    #[arg(long, value_name = "BEHAVIOUR", value_enum, default_value_t = UdpFilteringArg::Address)]
    pub udp_filtering: UdpFilteringArg,

    /// UDP port of an overlay network between nodes, carried by one socket on the host; Flannel's VXLAN has 8472
    ///
    /// What the child sends to that port of any host leaves from it, and what arrives there from a peer reaches the child
    /// at its own address.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub overlay_port: Option<u16>,

    /// Who may send to the child by the overlay, an address or a network; repeat for more
    ///
    /// Without any, those to whom the child itself has sent. `overlay add` and `overlay remove` change it later.
    #[arg(long, value_name = "NET", requires = "overlay_port")]
    pub overlay_peer: Vec<IpNet>,

    /// What the TAP device may do for the engine and the child; for debugging and comparison
    ///
    /// Less than auto costs much throughput and changes nothing else.
    #[arg(long, value_name = "MODE", value_enum, default_value_t = OffloadArg::Auto)]
    pub offload: OffloadArg,

    /// How the child's outbound TCP connections are carried
    ///
    /// On the relay a connection ends in the child's kernel, at a socket that has the destination's address, and is
    /// joined to one of the host's: its bytes never are packets of the engine's. What the child sees of it is the
    /// same on both ways. `info` says which one is taken, `flows` for each connection. While a capture runs, all take
    /// the TAP; with `auto`, so do those to a destination that has many brief ones, for which it is faster.
    #[arg(long, value_name = "WAY", value_enum, default_value_t = EgressArg::Auto)]
    pub egress: EgressArg,

    /// Queues of the TAP device, each served by a thread of the engine, 1 to 8
    ///
    /// For many flows at once that go by the TAP, where processors are idle; one thread and the command's keep two of them busy.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub queues: u8,

    /// Write every frame to this capture file (pcap)
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,

    /// What network the child gets
    #[arg(long, value_name = "KIND", value_enum, default_value_t = NetArg::Engine)]
    pub net: NetArg,

    /// What the engine gives up once it is set up: its view of the file system, all rights, most system calls
    #[arg(long, value_name = "MODE", value_enum, default_value_t = SandboxArg::Auto)]
    pub sandbox: SandboxArg,

    /// What follows from the death of the engine process while CMD runs
    ///
    /// Another one takes its place: published ports, their numbers and what was changed by the control API stay; connections are
    /// reset. Five deaths within a minute end the launch.
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = EngineRestartArg::Auto)]
    pub engine_restart: EngineRestartArg,

    /// Print the engine's statistics and flows to stderr at the end
    ///
    /// SIGUSR1 to the engine process (rl-engine) prints them at any time, without this option too.
    #[arg(long)]
    pub stats: bool,

    /// The directory of this instance: lock, API socket (api.sock), CMD's process id (child_pid, there once it is ready)
    ///
    /// Made if it is missing, removed at the end. [default: rootless-launch/NAME in $XDG_RUNTIME_DIR, else
    /// /tmp/rootless-launch-UID/NAME]
    #[arg(long, value_name = "DIR", conflicts_with = "name")]
    pub state_dir: Option<PathBuf>,

    /// What this instance is called by other commands [default: the launcher's process id]
    #[arg(long, value_name = "NAME")]
    pub name: Option<InstanceName>,

    /// What the command finds around it
    ///
    /// node: all namespaces, /etc, /run, /var/lib and /opt that can be written to, directories of its own where kubelet and
    /// container runtimes keep what outlives them (--data-dir), the network set up as a router, the kubelet's port published.
    #[arg(long, value_name = "KIND", value_enum, default_value_t = SurroundingsArg::Auto)]
    pub surroundings: SurroundingsArg,

    /// Where a node keeps what outlives it [default: rootless-launch/NAME in $XDG_DATA_HOME, else in ~/.local/share]
    #[arg(long, value_name = "DIR", value_parser = parse_directory)]
    pub data_dir: Option<PathBuf>,

    /// A pid namespace, where our init is process 1 [default: with the surroundings of a node]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub pidns: Option<bool>,

    /// An ipc namespace [default: with the surroundings of a node]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub ipcns: Option<bool>,

    /// A uts namespace [default: with the surroundings of a node, and with --hostname]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub utsns: Option<bool>,

    /// A cgroup namespace [default: with the surroundings of a node]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub cgroupns: Option<bool>,

    /// The command's host name, in a uts namespace
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<Hostname>,

    /// How mounts spread between the command's / and others [default: rslave; rshared for a node]
    ///
    /// With the slave kinds the host's later mounts arrive. With the shared kinds too, and those of the command spread among the
    /// mount namespaces that it makes. Nothing ever spreads to the host.
    #[arg(long, value_name = "KIND", value_enum)]
    pub propagation: Option<PropagationArg>,

    /// A directory that the command can write to, with the host's entries in it; repeat for more
    ///
    /// A tmpfs over it, in which each entry is mounted again and links are made anew. Nothing that is written or removed there
    /// reaches the host.
    #[arg(long, value_name = "DIR", value_parser = parse_directory)]
    pub copy_up: Vec<PathBuf>,

    /// Leave the command in the host's network; the new one is bound to the file netns in the state directory
    #[arg(long)]
    pub detach_netns: bool,

    /// The cgroup of the launch, so that limits inside can be enforced [default: auto with a cgroup namespace]
    ///
    /// From a session of a terminal the launcher moves itself into a new scope of the user's systemd (Delegate=yes). Its processes
    /// then go to the cgroup evac below that, and the command sees that as the root of all cgroups.
    #[arg(long, value_name = "MODE", value_enum)]
    pub cgroup: Option<CgroupArg>,

    /// Who tells systemd that a service of Type=notify is ready
    #[arg(long, value_name = "WHO", value_enum, default_value_t = SdNotifyArg::Launcher)]
    pub sdnotify: SdNotifyArg,

    /// Serve counters for Prometheus on this address too (http://ADDRESS:PORT/metrics); on 127.0.0.1 without ADDRESS
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = parse_metrics)]
    pub metrics: Option<SocketAddr>,

    /// Print what would be done, and do nothing
    ///
    /// The same plan is carried out without this option.
    #[arg(
        long,
        value_name = "FORMAT",
        value_enum,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "text"
    )]
    pub dry_run: Option<DryRunArg>,

    /// Say more on stderr; -vv and -vvv say still more
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,

    /// The command and its arguments, after --
    #[arg(last = true, required = true, value_name = "CMD")]
    pub cmd: Vec<OsString>,
}

// Brackets mean something else in documentation comments.
const PUBLISH: &str = "\
Publish a port of the child on the host, or a range, or whatever listens; repeat for more

[ADDRESS[%INTERFACE]:]PORTS:[CHILDADDRESS:]CHILDPORTS[/PROTO][,source=client|gateway], where PROTO is tcp (unless \
given), tcp4, tcp6, udp, udp4 or udp6: \"8080:80\", \"127.0.0.1:8000-8100:9000/udp\", \"[::1]:8080:80\", \
\"%eth0:8080:80\". Without ADDRESS every address of the host is listened on; port 0 is one that the system picks. \
Servers see the client's address, or the gateway's with source=gateway.

auto[,tcp|udp][,include=LIST][,exclude=LIST][,address=IP][,source=...] follows what listens in the child: the same \
port on every address of the host (or IP), and on the host's loopback what listens on the child's. LIST has ports, \
ranges, the child's addresses and \"loopback\": \"auto,tcp,exclude=22,8000-8100\".";
const PUBLISH_FILE: &str = "\
Publish the ports that a TOML or JSON file lists; repeat for more

For each a table [[port]] with proto, parentIP, parentPort, parentPortEnd, parentInterface, childIP, childPort and \
source, as in RootlessKit's API; as JSON, {\"port\": [...]}.";

/// `--publish`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Publish {
    /// A port or a range.
    Port(PortSpec),
    /// Whatever listens.
    Auto(AutoRules),
}

impl FromStr for Publish {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        match text.split(',').next() {
            Some("auto") => text.parse().map(Publish::Auto),
            _ => text.parse().map(Publish::Port),
        }
    }
}

/// `--ipv6`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Ipv6Arg {
    /// Only while the host itself has an IPv6 default route
    Auto,
    /// Always
    On,
    /// Never
    Off,
}

impl From<Ipv6Arg> for Ipv6Mode {
    fn from(arg: Ipv6Arg) -> Self {
        match arg {
            Ipv6Arg::Auto => Ipv6Mode::Auto,
            Ipv6Arg::On => Ipv6Mode::On,
            Ipv6Arg::Off => Ipv6Mode::Off,
        }
    }
}

/// `--udp-filtering`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UdpFilteringArg {
    /// Only hosts that the child has sent to
    Address,
    /// Anybody who knows the port
    Endpoint,
}

impl From<UdpFilteringArg> for UdpFiltering {
    fn from(arg: UdpFilteringArg) -> Self {
        match arg {
            UdpFilteringArg::Address => UdpFiltering::AddressDependent,
            UdpFilteringArg::Endpoint => UdpFiltering::EndpointIndependent,
        }
    }
}

/// `--offload`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OffloadArg {
    /// All that the kernel has: checksums, and segments of up to 64 KiB both ways
    Auto,
    /// Checksums only
    Checksum,
    /// Nothing: every frame is complete and fits the MTU
    None,
}

impl From<OffloadArg> for LinkCapabilities {
    fn from(arg: OffloadArg) -> Self {
        match arg {
            OffloadArg::Auto => {
                LinkCapabilities { checksum: true, tso4: true, tso6: true, uso: true, tunnel: true }
            }
            OffloadArg::Checksum => LinkCapabilities { checksum: true, ..LinkCapabilities::default() },
            OffloadArg::None => LinkCapabilities::default(),
        }
    }
}

/// `--egress`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EgressArg {
    /// By the relay where the child's kernel can do it and where it pays, else by the TAP
    Auto,
    /// By the relay, or the launch fails
    Relay,
    /// As packets, by the TAP
    Tap,
}

impl From<EgressArg> for EgressMode {
    fn from(arg: EgressArg) -> Self {
        match arg {
            EgressArg::Auto => EgressMode::Auto,
            EgressArg::Relay => EgressMode::Relay,
            EgressArg::Tap => EgressMode::Tap,
        }
    }
}

/// `--engine-restart`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineRestartArg {
    /// It is started again
    Auto,
    /// The launch ends
    Never,
}

impl From<EngineRestartArg> for OnDeath {
    fn from(arg: EngineRestartArg) -> Self {
        match arg {
            EngineRestartArg::Auto => OnDeath::Restart,
            EngineRestartArg::Never => OnDeath::End,
        }
    }
}

/// `--net`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NetArg {
    /// A network namespace behind our engine
    Engine,
    /// A network namespace with a loopback device only
    None,
    /// The host's own network
    Host,
}

/// `--surroundings`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SurroundingsArg {
    /// Those of a node if the command is kubelet, containerd, crio, flanneld, dockerd, buildkitd, k3s, rke2 or k0s
    Auto,
    /// The host's files
    Plain,
    /// What a Kubernetes node needs
    Node,
}

/// `--dry-run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DryRunArg {
    /// A line for each step
    Text,
    /// An object
    Json,
}

/// `--propagation`, in RootlessKit's words (mount_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum PropagationArg {
    /// Nothing spreads
    Rprivate,
    /// What is mounted on the host later arrives
    Rslave,
    /// As rslave, and what the command mounts spreads to the mount namespaces that it makes
    Rshared,
    /// As rprivate, for the mount at / only
    Private,
    /// As rslave, for the mount at / only
    Slave,
    /// As rshared, for the mount at / only
    Shared,
}

impl fmt::Display for PropagationArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PropagationArg::Rprivate => "rprivate",
            PropagationArg::Rslave => "rslave",
            PropagationArg::Rshared => "rshared",
            PropagationArg::Private => "private",
            PropagationArg::Slave => "slave",
            PropagationArg::Shared => "shared",
        })
    }
}

/// A host name: 1 to 64 bytes (sethostname(2)), letters, digits, `-` and `.`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hostname(String);

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Hostname {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
        match (1..=64).contains(&text.len()) && text.bytes().all(fits) {
            true => Ok(Hostname(text.to_owned())),
            false => Err("1 to 64 letters, digits, - and . are allowed"),
        }
    }
}

/// `--cgroup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CgroupArg {
    /// A delegated one if there is one to be had, else none, with a warning
    Auto,
    /// A delegated one with cpu, memory and pids, or the launch fails
    Delegated,
    /// That of the caller, untouched
    None,
}

impl From<CgroupArg> for CgroupMode {
    fn from(arg: CgroupArg) -> Self {
        match arg {
            CgroupArg::Auto => CgroupMode::Auto,
            CgroupArg::Delegated => CgroupMode::Delegated,
            CgroupArg::None => CgroupMode::None,
        }
    }
}

/// `--sdnotify`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SdNotifyArg {
    /// The launcher, when the command runs; the command does not see $NOTIFY_SOCKET
    Launcher,
    /// The command, by $NOTIFY_SOCKET; the unit needs NotifyAccess=all
    Command,
}

/// `--sandbox`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SandboxArg {
    /// As much as the kernel allows; -v says what it does not
    Auto,
    /// Everything, or the launch fails
    On,
    /// Nothing; for debugging
    Off,
}

impl From<SandboxArg> for Mode {
    fn from(arg: SandboxArg) -> Self {
        match arg {
            SandboxArg::Auto => Mode::Auto,
            SandboxArg::On => Mode::On,
            SandboxArg::Off => Mode::Off,
        }
    }
}

pub(crate) fn parse_server(text: &str) -> Result<SocketAddr, &'static str> {
    const DNS_PORT: u16 = 53;
    let bare = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, DNS_PORT));
    bare.or_else(|_| text.parse())
        .map_err(|_| "not an address or ADDRESS:PORT such as 9.9.9.9 or [fd00::1]:53")
}

fn parse_metrics(text: &str) -> Result<SocketAddr, &'static str> {
    let bare = text.parse::<u16>().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    bare.or_else(|_| text.parse()).map_err(|_| "not a port or ADDRESS:PORT such as 9100 or [::1]:9100")
}

/// Paths of the plan are compared by their parts.
pub(crate) fn parse_directory(text: &str) -> Result<PathBuf, &'static str> {
    let path: PathBuf = Path::new(text).components().collect();
    match path.is_absolute() && path.parent().is_some() && !path.iter().any(|part| part == "..") {
        true => Ok(path),
        false => Err("not an absolute path of a directory below /, without .."),
    }
}

pub(crate) fn parse_name(text: &str) -> Result<(String, IpAddr), &'static str> {
    let (name, address) = text.split_once('=').ok_or("not NAME=IP")?;
    Ok((name.to_owned(), address.parse().map_err(|_| "what follows = is not an IP address")?))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(["rootless-launch"].iter().chain(args))
    }

    fn fault(args: &[&str]) -> ErrorKind {
        parse(args).unwrap_err().kind()
    }

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn everything_after_the_dashes_belongs_to_the_command() {
        let cli = parse(&["-vv", "--", "sh", "-c", "--net=none"]).unwrap();
        assert_eq!(cli.run.cmd, ["sh", "-c", "--net=none"]);
        assert_eq!(cli.run.verbose, 2);
        assert_eq!(cli.run.net, NetArg::Engine);
    }

    #[test]
    fn a_command_without_dashes_is_explained() {
        let told = |args: &[&str]| explain(parse(args).unwrap_err()).to_string();
        assert!(told(&["-p", "8080:80", "python3", "-m", "x"]).contains("rootless-launch -- python3"));
        for args in [&["port", "list", "x"][..], &["--bogus"]] {
            assert!(!told(args).contains("a command to run"), "{}", told(args));
        }
    }

    #[test]
    fn a_command_may_be_called_check() {
        let cli = parse(&["--", "check"]).unwrap();
        assert!(cli.command.is_none());
        assert!(matches!(
            parse(&["check", "--json"]).unwrap().command,
            Some(Command::Check(CheckArgs { json: true, purpose: None, .. }))
        ));
    }

    #[test]
    fn servers_and_names_are_read() {
        let cli = parse(&["--dns=9.9.9.9", "--dns=[::1]:5353", "--dns-name=a.b=::2", "--", "true"]).unwrap();
        assert_eq!(cli.run.dns, ["9.9.9.9:53".parse().unwrap(), "[::1]:5353".parse::<SocketAddr>().unwrap()]);
        assert_eq!(cli.run.dns_name, [("a.b".to_owned(), "::2".parse::<IpAddr>().unwrap())]);
    }

    #[test]
    fn ports_are_read() {
        let cli =
            parse(&["-p8080:80", "--publish", "auto,exclude=22,23", "-p", "[::1]:1-9:1/udp", "--", "true"]);
        let texts = cli.unwrap().run.publish.into_iter().map(|publish| match publish {
            Publish::Port(spec) => spec.to_string(),
            Publish::Auto(rules) => rules.to_string(),
        });
        assert_eq!(texts.collect::<Vec<_>>(), ["8080:80/tcp", "auto,exclude=22,23", "[::1]:1-9:1/udp"]);
    }

    #[test]
    fn metrics_are_local_unless_told() {
        let metrics = |text: &str| parse(&["--metrics", text, "--", "true"]).unwrap().run.metrics.unwrap();
        assert_eq!(metrics("9100"), "127.0.0.1:9100".parse().unwrap());
        assert_eq!(metrics("[::]:9100"), "[::]:9100".parse().unwrap());
    }

    #[test]
    fn faults_are_refused() {
        assert_eq!(fault(&["--name=a/b", "--", "true"]), ErrorKind::ValueValidation);
        assert_eq!(fault(&["--name=a", "--state-dir=b", "--", "true"]), ErrorKind::ArgumentConflict);
        assert_eq!(fault(&["--metrics=x", "--", "true"]), ErrorKind::ValueValidation);
        assert_eq!(fault(&[]), ErrorKind::MissingRequiredArgument);
        assert_eq!(fault(&["--cidr=10.0.42.1/24", "--", "true"]), ErrorKind::ValueValidation);
        assert_eq!(fault(&["--cidr=nonsense", "--", "true"]), ErrorKind::ValueValidation);
        assert_eq!(fault(&["--dns=example.org", "--", "true"]), ErrorKind::ValueValidation);
        assert_eq!(fault(&["--dns-name=a", "--", "true"]), ErrorKind::ValueValidation);
        assert_eq!(fault(&["-p", "80", "--", "true"]), ErrorKind::ValueValidation);
        assert_eq!(fault(&["--publish=auto,22", "--", "true"]), ErrorKind::ValueValidation);
        assert_eq!(fault(&["--net=bridge", "--", "true"]), ErrorKind::InvalidValue);
        assert_eq!(fault(&["--mtu=70000", "--", "true"]), ErrorKind::ValueValidation);
        assert_eq!(fault(&["true"]), ErrorKind::UnknownArgument);
    }
}
