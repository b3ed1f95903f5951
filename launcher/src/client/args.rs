//! The command line of what concerns running instances.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use forwarder::spec::PortSpec;
use netstack::config::IpNet;

use crate::api::model::{Endpoint, FlowProtocol};
use crate::cli::{parse_name, parse_server};
use crate::state_dir::InstanceName;
use crate::supervisor::control::DEFAULT_LINES;
use crate::supervisor::unit::{UnitError, is_name};

/// Things to do with a running instance.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Publish ports of a running instance, list them, take them back
    #[command(subcommand, after_help = EXIT_STATUS)]
    Port(PortCommand),
    /// Show what an instance is
    #[command(after_help = EXIT_STATUS)]
    Info(Plain),
    /// List the connections and bindings of an instance, the latest active first
    #[command(after_help = EXIT_STATUS)]
    Flows(FlowArgs),
    /// Show the counters of an instance
    #[command(after_help = EXIT_STATUS)]
    Stats(Plain),
    /// Show or change which destinations the child may reach
    #[command(subcommand, after_help = EXIT_STATUS)]
    Policy(PolicyCommand),
    /// Show or change with whom an instance shares its overlay network (--overlay-port)
    #[command(subcommand, after_help = EXIT_STATUS)]
    Overlay(OverlayCommand),
    /// Show or change who answers the child's DNS questions
    #[command(subcommand, after_help = EXIT_STATUS)]
    Dns(DnsCommand),
    /// Record every frame of an instance to a file
    #[command(subcommand, after_help = EXIT_STATUS)]
    Capture(CaptureCommand),
    /// Run a command, or a shell, inside a running instance
    ///
    /// The command joins the user, mount and network namespaces of the instance (and its others, where it has any) and
    /// keeps the caller's terminal, environment and, if it exists there, directory. It ends with the instance. Exit
    /// status: the command's own; 1 if the instance cannot be entered, 2 if there is none, 126 or 127 if the command cannot
    /// be executed or was not found.
    Enter(EnterArgs),
    /// Show an instance in short: its processes, network, ports, and the units of a node
    #[command(after_help = EXIT_STATUS)]
    Status(Plain),
    /// Print the last lines that a unit of a node has written
    #[command(after_help = EXIT_STATUS)]
    Logs(LogsArgs),
    /// Stop a unit of a node and start it again; those that come after it are left running
    ///
    /// Waits until it is ready, or has failed.
    #[command(after_help = EXIT_STATUS)]
    Restart(RestartArgs),
    /// End an instance, and wait until it has ended
    ///
    /// Its launcher gets SIGTERM, which goes on to the command; a node asks its containers to end and gives them the time that their
    /// pods want, 30 seconds at most, then stops its units one after the other. What has not ended in time is killed. A second stop
    /// does not wait for containers.
    #[command(after_help = EXIT_STATUS)]
    Stop(StopArgs),
    /// List the running instances
    ///
    /// Those whose --state-dir is elsewhere are not found.
    Instances {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
}

const SPEC: &str = "[ADDRESS[%INTERFACE]:]PORTS:[CHILDADDRESS:]CHILDPORTS[/PROTO][,source=client|gateway]";
const EXIT_STATUS: &str = "Exit status: 0 if it was done; 1 if the instance refused, or does not answer; 2 for a wrong \
    command line, or if there is no such instance.";

/// Which instance is meant.
///
/// Without an option: $ROOTLESSKIT_STATE_DIR, which is set inside an instance, else the only one that runs.
#[derive(Clone, Debug, Default, Args)]
pub struct Which {
    /// The instance of this name [default: $ROOTLESSKIT_STATE_DIR, else the only one that runs]
    #[arg(long, value_name = "NAME", conflicts_with = "state_dir")]
    pub name: Option<InstanceName>,

    /// The instance that lives in this directory
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// An instance, and how to print.
#[derive(Clone, Debug, Default, Args)]
pub struct Plain {
    /// Which instance.
    #[command(flatten)]
    pub which: Which,

    /// Print the API's JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// `port`.
#[derive(Debug, Subcommand)]
pub enum PortCommand {
    /// Publish ports, as -p does; prints each with its id
    Add {
        /// What to publish.
        #[arg(required = true, value_name = "SPEC", help = SPEC)]
        specs: Vec<PortSpec>,
        /// Which instance, and how to print.
        #[command(flatten)]
        plain: Plain,
    },
    /// List published ports
    List(Plain),
    /// Take published ports back
    Remove {
        /// Ids, or specs as they are listed
        #[arg(required = true, value_name = "ID|SPEC")]
        ports: Vec<PortName>,
        /// Which instance, and how to print.
        #[command(flatten)]
        plain: Plain,
    },
    /// Print every published port, then every change, until the instance ends
    Watch(Plain),
}

/// A published port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortName {
    /// By its id.
    Id(u64),
    /// By what it forwards.
    Spec(Box<PortSpec>),
}

impl std::str::FromStr for PortName {
    type Err = forwarder::error::SpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let id = text.parse().map(PortName::Id);
        id.or_else(|_| text.parse().map(|spec| PortName::Spec(Box::new(spec))))
    }
}

/// `flows`.
#[derive(Debug, Args)]
pub struct FlowArgs {
    /// Only flows of this protocol: tcp, udp, icmp, icmpv6
    #[arg(long, value_name = "PROTOCOL")]
    pub protocol: Option<FlowProtocol>,

    /// Only flows from this address, or ADDRESS:PORT, of the child
    #[arg(long, value_name = "ADDRESS")]
    pub child: Option<Endpoint>,

    /// Only flows to this address, or ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS")]
    pub remote: Option<Endpoint>,

    /// Print at most so many
    #[arg(long, value_name = "N", default_value_t = crate::api::model::FlowQuery::DEFAULT_LIMIT)]
    pub limit: usize,

    /// Which instance, and how to print.
    #[command(flatten)]
    pub plain: Plain,
}

/// `policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Print the rules, each with how often it decided
    Get(Plain),
    /// Replace the rules by those of a file, one per line, or - for standard input
    Set {
        /// The file
        file: PathBuf,
        /// Which instance, and how to print.
        #[command(flatten)]
        plain: Plain,
    },
    /// Add rules
    Add {
        /// allow|deny [tcp|udp|icmp|any] TARGET[:PORT|:LOW-HIGH], as for --policy
        #[arg(required = true, value_name = "RULE")]
        rules: Vec<String>,
        /// Put them before the others, so that they win
        #[arg(long)]
        first: bool,
        /// Which instance, and how to print.
        #[command(flatten)]
        plain: Plain,
    },
}

/// `overlay`.
#[derive(Debug, Subcommand)]
pub enum OverlayCommand {
    /// Print who may send, and the traffic of every peer
    List(Plain),
    /// Let peers send to the child
    Add {
        /// Addresses or networks
        #[arg(required = true, value_name = "NET")]
        peers: Vec<IpNet>,
        /// Which instance, and how to print.
        #[command(flatten)]
        plain: Plain,
    },
    /// Let peers send no more; without any that are listed, those may send to whom the child sends
    Remove {
        /// Addresses or networks, as they are listed
        #[arg(required = true, value_name = "NET")]
        peers: Vec<IpNet>,
        /// Which instance, and how to print.
        #[command(flatten)]
        plain: Plain,
    },
}

/// `dns`.
#[derive(Debug, Subcommand)]
pub enum DnsCommand {
    /// Print servers and static names
    Get(Plain),
    /// Replace the servers, the static names, or both
    #[command(group = clap::ArgGroup::new("change").multiple(true).required(true))]
    Set {
        /// DNS server to ask, an address or ADDRESS:PORT; repeat for more
        #[arg(long, value_name = "SERVER", value_parser = parse_server, group = "change")]
        server: Vec<SocketAddr>,
        /// Ask the servers of the host's resolv.conf again
        #[arg(long, conflicts_with = "server", group = "change")]
        host_servers: bool,
        /// A name that the child resolves to an address; repeat for more
        #[arg(long, value_name = "NAME=IP", value_parser = parse_name, group = "change")]
        dns_name: Vec<(String, IpAddr)>,
        /// Forget all static names
        #[arg(long, conflicts_with = "dns_name", group = "change")]
        no_names: bool,
        /// Which instance, and how to print.
        #[command(flatten)]
        plain: Plain,
    },
}

/// `capture`.
#[derive(Debug, Subcommand)]
pub enum CaptureCommand {
    /// Begin to write frames to a file (pcap), which is overwritten
    Start {
        /// The file
        file: PathBuf,
        /// Which instance, and how to print.
        #[command(flatten)]
        plain: Plain,
    },
    /// End it
    Stop(Plain),
    /// Say whether it runs, and how much it has written
    Status(Plain),
}

fn parse_unit(text: &str) -> Result<String, UnitError> {
    if is_name(text) { Ok(text.to_owned()) } else { Err(UnitError::Name(text.to_owned())) }
}

/// `logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The unit, as `status` names it
    #[arg(value_parser = parse_unit)]
    pub unit: String,

    /// Go on with what it writes from now on
    #[arg(short, long)]
    pub follow: bool,

    /// How many lines, if the supervisor has so many in memory (at most 1000); older ones are in the file that `status` names
    #[arg(short = 'n', long, value_name = "N", default_value_t = DEFAULT_LINES)]
    pub lines: usize,

    /// Which instance.
    #[command(flatten)]
    pub which: Which,
}

/// `restart`.
#[derive(Debug, Args)]
pub struct RestartArgs {
    /// The unit, as `status` names it
    #[arg(value_parser = parse_unit)]
    pub unit: String,

    /// Which instance, and how to print.
    #[command(flatten)]
    pub plain: Plain,
}

/// `stop`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Seconds until it is killed [default: what the units of a node may take together, else 10]
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,

    /// Which instance.
    #[command(flatten)]
    pub which: Which,
}

/// `enter`.
#[derive(Debug, Args)]
pub struct EnterArgs {
    /// Which instance.
    #[command(flatten)]
    pub which: Which,

    /// The command and its arguments [default: $SHELL, else /bin/sh]
    #[arg(trailing_var_arg = true, value_name = "CMD")]
    pub cmd: Vec<OsString>,
}
