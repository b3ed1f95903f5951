//! The command line and behaviour of pasta.
//!
//! # Theory of operation
//! Everything about the host is looked at first ([`host`]), then planned ([`plan`]). What follows depends on the target:
//!
//! | target | process that was called | others |
//! |---|---|---|
//! | PID, `--netns` | leaves when all is ready | the engine, forked, whose id is in the PID file |
//! | the same, `-f` | is the engine | – |
//! | a command | waits for it (`command.rs`) | the engine, the guard, the command |
//!
//! The engine (`engine.rs`) makes the TAP through a short-lived child, starts the forwarder's agent if there are ports to
//! forward, goes into the sandbox, forwards ports, and says that it is ready. It ends with its namespace.
//!
//! The namespace is somebody else's, and the relay for outbound connections would add rules to it: they go by the TAP, unless the
//! environment says otherwise ([`VARIABLE`](crate::egress::VARIABLE)).

pub mod cli;
pub mod host;
pub mod plan;
pub mod ports;

mod command;
mod end;
mod engine;
mod to_host;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use forwarder::error::PortError;
use log::{info, warn};
use netstack::{DriverError, TapError};
use nix::fcntl::{OFlag, open};
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::Mode as FileMode;
use nix::unistd::{dup2_stderr, getpid};
use thiserror::Error;

use self::cli::{Call, CliError, Ground, Log, Request, Target};
use self::end::End;
use self::engine::{Engine, Ready};
use self::host::Host;
use self::plan::{Plan, PlanError};
use crate::egress::{EgressMode, VariableError};
use crate::engine::detach;
use crate::error::{Failure, with_causes};
use crate::join::{self, JoinError};
use crate::logger;
use crate::personality::{complain, say};
use crate::sandbox::SandboxError;
use crate::sys::clone::{self, ExitSignal, Fork, exit_now};
use crate::sys::signal::{Disposition, set_disposition};
use crate::sys::wait;

/// The version of pasta whose behaviour this is; others compare it with what they need.
const VERSION: &str = "2024_11_27";

/// Runs with the arguments behind the program's name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    set_disposition(Signal::SIGPIPE, Disposition::Ignore);
    let ran = match cli::parse(args) {
        Ok(Call::Help) => {
            say(USAGE);
            return ExitCode::SUCCESS;
        }
        Ok(Call::Version) => {
            say(format_args!("pasta {VERSION} (rootless-launch {})\n", env!("CARGO_PKG_VERSION")));
            return ExitCode::SUCCESS;
        }
        Ok(Call::Serve(request)) => run(&request),
        Err(fault) => Err(fault.into()),
    };
    match ran {
        Ok(status) => status,
        Err(error) => {
            complain(format_args!("{}\n", with_causes(&error)));
            if matches!(error, RunError::Usage(CliError::Getopt(_))) {
                complain(USAGE);
            }
            ExitCode::FAILURE
        }
    }
}

/// What ends a run; exit status 1 each.
#[derive(Debug, Error)]
#[non_exhaustive]
enum RunError {
    #[error(transparent)]
    Usage(#[from] CliError),
    #[error("cannot look at the host's network")]
    Host(#[source] io::Error),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("cannot open {} for {option}", .path.display())]
    Output {
        option: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot watch for the end of the namespace")]
    Watch(#[source] io::Error),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(transparent)]
    Step(#[from] Failure),
    #[error("cannot start a process")]
    Fork(#[source] io::Error),
    #[error(transparent)]
    Tap(#[from] TapError),
    #[error("cannot set up the sandbox")]
    Sandbox(#[from] SandboxError),
    #[error("cannot forward ports")]
    Forwards(#[from] forwarder::driver::DriverError),
    #[error("Failed to bind port for {spec}")]
    Port {
        spec: String,
        #[source]
        source: PortError,
    },
    #[error("the port of the namespace's own {spec}")]
    PortToHost {
        spec: String,
        #[source]
        source: PortError,
    },
    #[error(transparent)]
    Engine(#[from] DriverError),
    #[error("cannot prepare the command")]
    Prepare(#[source] io::Error),
    #[error(transparent)]
    EgressVariable(#[from] VariableError),
    #[error("the command's name has a zero byte")]
    CommandName,
    /// The engine's own words, from another process.
    #[error("{0}")]
    Told(String),
    #[error("the engine {0}")]
    Died(crate::error::Ending),
}

fn run(request: &Request) -> Result<ExitCode, RunError> {
    let egress = EgressMode::of_environment()?;
    let mut outputs = Outputs::open(request)?;
    let level = match request.verbose {
        _ if request.quiet => 0,
        0 => 1,
        verbose => verbose + 1,
    };
    match (&request.log, outputs.log.take()) {
        (Log::File(_, limit), Some(file)) => logger::install_to_file(level, file, *limit),
        _ => logger::install(level),
    }
    if !request.quiet {
        request.ignored.iter().for_each(|option| warn!("--{option} has no effect"));
    }
    let host = Host::look(plan::wanted(request)).map_err(RunError::Host)?;
    let plan = Plan::new(request, &host)?;
    if !request.quiet {
        plan.to_string().lines().for_each(|line| info!("{line}"));
    }
    let target = match &request.target {
        Target::Command(words) => return command::run(request, &plan, egress, words, outputs),
        Target::Process { pid, userns } => join::Target::of_process(*pid, userns.as_deref())?,
        Target::Path { netns, userns } => join::Target::of_paths(netns, userns.as_deref())?,
    };
    let end = End::of(request).map_err(RunError::Watch)?;
    let engine = Engine { request, plan: &plan, target: &target, egress, pcap: outputs.pcap };
    match request.ground {
        Ground::Front => engine.serve(end, Ready::in_front(outputs.pid))?,
        Ground::Back => leave(engine, end, outputs.pid)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Files that the command line names, opened while there are rights and the file system.
#[derive(Debug)]
struct Outputs {
    pid: Option<File>,
    pcap: Option<File>,
    log: Option<File>,
}

impl Outputs {
    fn open(request: &Request) -> Result<Self, RunError> {
        let create = |option, path: &Option<PathBuf>| {
            let create = |path: &PathBuf| {
                File::create(path).map_err(|source| RunError::Output { option, path: path.clone(), source })
            };
            path.as_ref().map(create).transpose()
        };
        let log = match &request.log {
            Log::File(path, _) => Some(path.clone()),
            Log::Stderr => None,
        };
        Ok(Outputs {
            pid: create("--pid", &request.pid_file)?,
            pcap: create("--pcap", &request.pcap)?,
            log: create("--log-file", &log)?,
        })
    }
}

/// Leaves the work to a process of its own, once that says that it is ready.
fn leave(engine: Engine<'_>, end: End, pid: Option<File>) -> Result<(), RunError> {
    let (told, teller) = io::pipe().map_err(RunError::Prepare)?;
    match clone::fork(CloneFlags::empty(), ExitSignal::Child).map_err(RunError::Fork)? {
        Fork::Parent(child) => {
            drop(teller);
            hear(told)
                .unwrap_or_else(|| Err(wait::wait_end(child).map_or_else(RunError::Fork, RunError::Died)))
        }
        Fork::Child => {
            drop(told);
            let mut ready = Ready::in_back(pid, teller);
            let logs = logger::file();
            let kept = [ready.fds(), end.fds(), engine.fds(), logs.iter().copied().collect()].concat();
            let served = detach(c"pasta", &kept, &SigSet::empty())
                .and_then(|()| forget_stderr())
                .map_err(RunError::Prepare)
                .and_then(|()| engine.serve_telling(end, &mut ready));
            exit_now(match served {
                Ok(()) => 0,
                Err(error) => {
                    ready.tell_failure(&with_causes(&error));
                    log::error!("{}", with_causes(&error));
                    1
                }
            })
        }
    }
}

/// What the engine says on its pipe: nothing for as long as it prepares, then that it is ready, or what failed; `None`
/// if it has died.
fn hear(mut told: PipeReader) -> Option<Result<(), RunError>> {
    let mut text = Vec::new();
    // Cut short is as good as dead.
    let _ = told.read_to_end(&mut text);
    match text.split_first()? {
        (&Ready::SIGN, _) => Some(Ok(())),
        _ => Some(Err(RunError::Told(String::from_utf8_lossy(&text).into_owned()))),
    }
}

/// Lets go of the caller's stderr, whose reader may wait for its end.
fn forget_stderr() -> io::Result<()> {
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, FileMode::empty())?;
    Ok(dup2_stderr(&null)?)
}

/// Writes this process's id.
fn write_pid(file: Option<File>) -> io::Result<()> {
    file.map_or(Ok(()), |mut file| writeln!(file, "{}", getpid()))
}

/// Callers look for the names of options here.
const USAGE: &str = "\
Usage: pasta [OPTION]... [COMMAND [ARG]...]
       pasta [OPTION]... PID
       pasta [OPTION]... --netns PATH|NAME

Connects a network namespace to the host's network without root: that of COMMAND
(by default a shell), which gets namespaces of its own, that of a process, or that
of a path or a name in /run/netns.

Process:
  -f, --foreground        stay in the foreground; always with COMMAND
  -q, --quiet             say nothing but errors
  -d, --debug, --trace    say more
  -e, --stderr            for compatibility: errors go to stderr anyway
  -l, --log-file PATH     log to a file
  --log-size BYTES        begin it anew at this size (1 MiB)
  -P, --pid FILE          write the engine's process id once everything is ready
  -p, --pcap FILE         record frames
  --netns PATH|NAME       network namespace to connect
  --userns PATH           user namespace to join for it
  --netns-only            for compatibility
  --no-netns-quit         stay when the namespace's path or process is gone
  --runas UID|LOGIN       for compatibility
  -h, --help              this text
  --version               version

Addresses:
  --config-net            configure the interface: address, routes, up
  -I, --ns-ifname NAME    its name (that of the host's interface)
  --ns-mac-addr ADDR      its MAC address
  -m, --mtu MTU           its MTU (65520)
  -a, --address ADDR[/N]  its address, one for each IP version (the host's)
  -n, --netmask MASK      IPv4 netmask
  -g, --gateway ADDR      gateway, one for each IP version (the host's)
  -M, --mac-addr ADDR     our own MAC address
  -i, --interface NAME    host interface to copy
  -4, --ipv4-only         IPv4 only
  -6, --ipv6-only         IPv6 only
  --no-copy-routes, --no-copy-addrs  for compatibility

Ways out:
  -o, --outbound ADDR     source address
  --outbound-if4 NAME     interface for IPv4
  --outbound-if6 NAME     interface for IPv6
  --no-map-gw             the gateway is not the host's loopback
  --map-host-loopback ADDR  address that is (the gateway), or none
  --map-guest-addr ADDR   address that is the host's own
  --no-tcp, --no-udp, --no-icmp  refuse a protocol

Names:
  --dns-forward ADDR      address at which questions are forwarded
  --dns-host ADDR         to whom (resolv.conf)
  -D, --dns ADDR          server to tell of by --dhcp-dns
  -S, --search LIST       search list to tell of by --dhcp-search
  --dhcp-dns, --no-dhcp-dns        tell of servers by DHCP, DHCPv6 and NDP, or do not
  --dhcp-search, --no-dhcp-search  the same for the search list
  --no-dhcp, --no-dhcpv6, --no-ndp, --no-ra  services that are not wanted
  -H, --hostname NAME, --fqdn NAME  for compatibility

Ports: none, auto, all, or a list such as 22,8000-8010:9000-9010,192.0.2.1%eth0/80,~8005
  -t, --tcp-ports SPEC    TCP from the host to the namespace (auto)
  -u, --udp-ports SPEC    UDP from the host to the namespace (auto)
  -T, --tcp-ns SPEC       TCP from the namespace's loopback to the host's (auto)
  -U, --udp-ns SPEC       UDP from the namespace's loopback to the host's (auto)
  --host-lo-to-ns-lo      clients on the host's loopback reach the namespace's
  --no-splice, --freebind, --stats  for compatibility
";
