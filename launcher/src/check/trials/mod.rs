//! Tries everything for real, in processes that are thrown away, and reads what cannot be tried.

mod cgroup;
mod host;
mod inside;
mod nftables;
mod ports;
mod thrown;

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use clap::Parser as _;
use nix::sched::CloneFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use self::thrown::{Ids, throw_away};
use super::facts::{Facts, LaunchFacts, Mapped, NodeFacts, Outcome};
use super::finding::Purpose;
use crate::apply;
use crate::apply::idmap::Mapping;
use crate::apply::programs::survey;
use crate::cli::{CheckArgs, Cli, PropagationArg};
use crate::components::programs::{Program, SearchPath};
use crate::egress;
use crate::error::{Ending, Failure, Step};
use crate::hint::Machine;
use crate::plan::facts::HostFacts;
use crate::plan::idmap::{IdMapPlan, MapPlan};
use crate::plan::mounts::{MountPlan, MountStep};
use crate::plan::net::NetPlan;
use crate::sandbox::{Mode, Sandbox};
use crate::sys::clone::{self, ExitSignal, Fork, exit_now};
use crate::sys::wait;

/// Namespaces of a launch.
const LAUNCH: CloneFlags =
    CloneFlags::CLONE_NEWUSER.union(CloneFlags::CLONE_NEWNS).union(CloneFlags::CLONE_NEWNET);
/// Namespaces of a node.
const NODE: CloneFlags = LAUNCH
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWCGROUP);

/// Tries all that `purpose` needs, or all.
pub(super) fn collect(args: &CheckArgs) -> Facts {
    let host = apply::facts::collect();
    let launch = launch(&host);
    let node = (args.purpose != Some(Purpose::Launch)).then(|| node(args, &host));
    Facts { machine: Machine::read(), launch, node, host }
}

/// Only the overlay, in the directory where a node keeps its data or will.
pub(crate) fn overlay(host: &HostFacts, data: &Path) -> Outcome {
    inside::try_overlay(host, data)
}

fn launch(host: &HostFacts) -> LaunchFacts {
    let tried =
        |trial: fn() -> Outcome| throw_away(LAUNCH, Ids::Root(host), trial).and_then(|outcome| outcome);
    LaunchFacts {
        namespaces: tried(apply::net::loopback),
        tap: tried(|| apply::net::open_tap(1).map(drop)),
        relay: tried(|| apply::net::loopback().and_then(|()| egress::demand(forwarder::child::try_egress()))),
        mounts: tried(|| {
            apply::mounts::apply(
                &MountPlan {
                    steps: vec![
                        MountStep::Propagation { propagation: PropagationArg::Rslave },
                        MountStep::Cover { path: "/etc/hosts".into(), text: String::new() },
                    ],
                },
                None,
            )
        }),
        mapped: mapped(host),
        sandbox: enter_sandbox().map_err(|error| error.to_string()),
        ping: ping(),
        overlaps: overlaps(host),
        resolv_conf: fs::exists("/etc/resolv.conf").unwrap_or(false),
        no_new_privileges: nix::sys::prctl::get_no_new_privs().unwrap_or(false),
        linked: ["/etc/subuid", "/etc/subgid"]
            .into_iter()
            .find(|file| fs::symlink_metadata(file).is_ok_and(|file| file.is_symlink())),
    }
}

fn node(args: &CheckArgs, host: &HostFacts) -> NodeFacts {
    let search = SearchPath::new(&args.bin_dir, &args.cni_bin_dir, std::env::var_os("PATH").as_deref());
    let programs = survey(Program::ALL, &search);
    let data = host::data_directory(args.data_dir.as_deref(), host);
    let runtime_directory = host::runtime_directory(host.uid);
    NodeFacts {
        inside: inside::try_all(host, &data, programs.get(&Program::Iptables)),
        systemd: host::has_systemd(),
        bus: host::has_bus(&runtime_directory),
        lingers: host::lingers(host),
        cgroups: apply::cgroup::facts().hierarchy,
        cgroup: args.cgroup.into(),
        delegation: cgroup::delegation(),
        runtime_directory,
        fuse: host::fuse(),
        modules: host::modules(),
        bridge_netfilter: fs::exists("/proc/sys/net/bridge/bridge-nf-call-iptables").unwrap_or(false),
        sysctls: host::sysctls(),
        open_files: host::open_files(),
        processes: host::processes(),
        ports: ports::try_all(),
        data,
        swap: host::has_swap(),
        selinux: fs::read_to_string("/sys/fs/selinux/enforce").is_ok_and(|text| text.trim() == "1"),
        programs,
    }
}

/// How many ids the helpers map for real. The plan falls back to a single one where they fail.
fn mapped(host: &HostFacts) -> Option<Result<Mapped, Failure>> {
    let plan = IdMapPlan::new(host);
    let MapPlan::Helper { .. } = plan.users else { return None };
    Some(map_for_real(&plan))
}

fn map_for_real(plan: &IdMapPlan) -> Result<Mapped, Failure> {
    let talk = |error| Failure::new(Step::Talk, "", error);
    let (mut go, start) = io::pipe().map_err(talk)?;
    let fork = clone::fork(CloneFlags::CLONE_NEWUSER, ExitSignal::Child);
    let child = match fork.map_err(|error| Failure::new(Step::CloneNamespaces, "", error))? {
        Fork::Parent(child) => child,
        Fork::Child => {
            drop(start);
            let _ = go.read(&mut [0]);
            exit_now(0)
        }
    };
    let _ = Mapping::start(plan, child).finish();
    let count = |file: &str| {
        let map = fs::read_to_string(format!("/proc/{child}/{file}")).unwrap_or_default();
        let counts = map.lines().filter_map(|line| line.split_ascii_whitespace().nth(2)?.parse::<u64>().ok());
        counts.sum()
    };
    let mapped = Mapped { users: count("uid_map"), groups: count("gid_map") };
    drop((go, start));
    wait::wait_end(child).map_err(talk)?;
    Ok(mapped)
}

/// How many layers are missing, and which there are or are not.
fn enter_sandbox() -> io::Result<(i32, String)> {
    let (mut reader, mut writer) = io::pipe()?;
    let child = match clone::fork(CloneFlags::empty(), ExitSignal::Child)? {
        Fork::Parent(child) => child,
        Fork::Child => {
            let (missing, layers) = match Sandbox::new(Mode::Auto).enter() {
                Ok(confinement) => (confinement.missing.len(), confinement.to_string()),
                Err(error) => (1, error.to_string()),
            };
            let written = writer.write_all(layers.as_bytes());
            exit_now(if written.is_ok() { missing as i32 } else { -1 })
        }
    };
    drop(writer);
    let mut layers = String::new();
    let read = reader.read_to_string(&mut layers);
    match (wait::wait_end(child)?, read?) {
        (Ending::Exited(missing), 1..) => Ok((missing, layers)),
        (ending, _) => Err(io::Error::other(format!("the process {ending}"))),
    }
}

/// The engine pings through ping sockets, which the host has to allow.
fn ping() -> Result<(), i32> {
    let made = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp);
    made.map(drop).map_err(|error| error as i32)
}

/// Overlap of the default networks with the host's.
fn overlaps(host: &HostFacts) -> Vec<String> {
    let Ok(cli) = Cli::try_parse_from(["rootless-launch", "--", "true"]) else { return Vec::new() };
    NetPlan::new(&cli.run, "", host).map(|net| net.overlaps(host)).unwrap_or_default()
}
