//! `node`: a Kubernetes node of containerd or CRI-O, CNI or flannel, and kubelet.
//!
//! # Theory of operation
//! A node is an ordinary launch with the surroundings of a node, whose command is our own supervisor. [`args`] reads the
//! command line, `facts` asks the machine, [`plan`] decides what is written and run inside (pure), and the supervisor
//! does that. [`tasks`] are small programs of ours among what it runs.

pub mod args;
mod facts;
pub mod host_ports;
pub mod install;
pub mod joining;
pub mod plan;
pub mod service;
pub mod tasks;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use forwarder::spec::{PortFields, Proto, Transport};
use nix::sys::memfd::{MFdFlags, memfd_create};
use thiserror::Error;

use self::args::{Cni, ConfigFileError, NodeArgs};
use self::plan::{Composition, NodeError};
use crate::apply;
use crate::cli::{Publish, RunArgs, SdNotifyArg, SurroundingsArg};
use crate::components::flannel;
use crate::error::{Ending, LaunchError, UsageError};
use crate::internal::SUPERVISOR;
use crate::parent;
use crate::plan::cgroup::{CgroupMode, CgroupPlan, NoDelegation};
use crate::plan::facts::HostFacts;
use crate::plan::net::NetPlan;
use crate::plan::surroundings::Surroundings;
use crate::state_dir::{InstanceName, Place};
use crate::supervisor::unit::NodePlan;

/// Why there is no node.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NodeFailure {
    /// The file of `--config`.
    #[error(transparent)]
    Config(#[from] ConfigFileError),
    /// What is asked for, or what is missing.
    #[error(transparent)]
    Plan(#[from] NodeError),
    /// An option of the launch.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// `--cgroup=delegated` cannot be.
    #[error("--cgroup=delegated cannot be had")]
    Cgroup(#[from] NoDelegation),
    /// `--net` is something else.
    #[error("a node has a network of its own behind the engine: leave out --net")]
    Network,
    /// memfd_create(2) or write(2).
    #[error("cannot pass the plan to the supervisor")]
    Pass(#[source] io::Error),
    /// The launch.
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

impl NodeFailure {
    /// 2 where the command line or a file of the user's is wrong, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            NodeFailure::Config(_) | NodeFailure::Usage(_) | NodeFailure::Network => 2,
            NodeFailure::Plan(
                NodeError::Programs(_) | NodeError::Scattered { .. } | NodeError::NoPublicIp,
            ) => 1,
            NodeFailure::Plan(_) => 2,
            NodeFailure::Cgroup(_) | NodeFailure::Pass(_) => 1,
            NodeFailure::Launch(error) => error.exit_code(),
        }
    }
}

/// Runs a node until it is stopped. `words` are the command line's after `node`.
///
/// # Errors
/// It cannot be started, or its engine died.
pub fn run(args: NodeArgs, words: &[OsString]) -> Result<Ending, NodeFailure> {
    let mut args = args.with_file(words)?;
    make_absolute(&mut args);
    args.run.surroundings = SurroundingsArg::Node;
    // The supervisor knows when the node is ready.
    args.run.sdnotify = SdNotifyArg::Command;
    if args.run.name.is_none() && args.run.state_dir.is_none() {
        args.run.name = Some(InstanceName::node());
    }
    if args.cni == Cni::Flannel && args.run.overlay_port.is_none() {
        args.run.overlay_port = Some(flannel::PORT);
    }
    let Composition { plan, kubelet_port, warnings } = compose(&args)?;
    warnings.iter().for_each(|text| log::warn!("{text}"));
    args.run.publish.extend(kubelet_port.and_then(|port| published(port, &args.run.publish)));
    let file = passed(&plan).map_err(NodeFailure::Pass)?;
    let run = RunArgs { cmd: command(&file), ..args.run };
    Ok(parent::run_node(&run, Some(&plan))?)
}

fn compose(args: &NodeArgs) -> Result<Composition, NodeFailure> {
    let place = Place::new(args.run.state_dir.as_deref(), args.run.name.as_ref());
    let host = HostFacts { state_dir: place.path(), ..apply::facts::collect() };
    let NetPlan::Engine(net) = NetPlan::new(&args.run, "", &host)? else { return Err(NodeFailure::Network) };
    let data = Surroundings::new(&args.run, &host)?.data.unwrap_or_default();
    // Now, because what there is decides how kubelet is told to use it. The launch does the same again, to no effect.
    let mode = args.run.cgroup.map_or(CgroupMode::Auto, CgroupMode::from);
    let mut cgroup = CgroupPlan::new(mode, &apply::cgroup::facts())?;
    if args.run.dry_run.is_none() {
        cgroup = apply::cgroup::enter(cgroup)?;
    }
    let cgroup = (&cgroup, &apply::cgroup::facts());
    let facts = facts::collect(args, &host, &data, net.config.ipv4().child, cgroup)?;
    Ok(plan::compose(args, &facts)?)
}

/// The port at every address of the host, unless the user has published it otherwise.
fn published(port: u16, asked: &[Publish]) -> Option<Publish> {
    let is_it = |publish: &Publish| match publish {
        Publish::Port(spec) => spec.proto().transport() == Transport::Tcp && spec.fields().child_port == port,
        Publish::Auto(_) => false,
    };
    // Only port 0 could be wrong with it.
    let spec = PortFields::new(Proto::Tcp, port, port).try_into().ok();
    spec.map(Publish::Port).filter(|_| !asked.iter().any(is_it))
}

/// Programs have working directories of their own.
fn make_absolute(args: &mut NodeArgs) {
    let single = [
        &mut args.kubeconfig,
        &mut args.bootstrap_kubeconfig,
        &mut args.static_pods,
        &mut args.etcd_ca,
        &mut args.etcd_cert,
        &mut args.etcd_key,
    ];
    let several = [&mut args.image_archive, &mut args.bin_dir, &mut args.cni_bin_dir];
    let paths = single.into_iter().flatten().chain(several.into_iter().flatten());
    for path in paths {
        // Fails only for an empty path or without a working directory; then opening it says so.
        *path = std::path::absolute(&*path).unwrap_or_else(|_| PathBuf::from(&*path));
    }
}

/// The plan in a file without a name, which the supervisor inherits.
fn passed(plan: &NodePlan) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(c"rl-node-plan", MFdFlags::empty())?);
    file.write_all(&serde_json::to_vec(plan)?)?;
    file.rewind()?;
    Ok(file.into())
}

fn command(plan: &OwnedFd) -> Vec<OsString> {
    let plan = format!("--plan-fd={}", plan.as_raw_fd());
    ["/proc/self/exe", SUPERVISOR, &plan].map(OsString::from).into()
}
