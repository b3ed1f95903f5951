//! Small programs of ours that run inside a node, started by its supervisor: `rootless-launch node-task JSON`.

mod annotate;
mod credentials;
mod crio_images;
mod flannel_link;
mod host_ports;
mod images;
mod join;
mod node_address;
mod overlay_peers;
mod pre_stop;
mod programs;
mod stop_pods;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::ExitCode;

use nix::sys::prctl;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub(super) use self::annotate::ANNOTATION;
use self::crio_images::ArchiveError;
pub(super) use self::stop_pods::{GRACE, SLACK};
use super::args::HostPorts;
use super::host_ports::Policy;
use super::joining::{Credentials, Joining, Serving};
use crate::cri::CriError;
use crate::error::with_causes;
use crate::internal::TASK;

/// A program of ours inside a node. Its command line is the name of the command and this as JSON.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Task {
    /// Publish hostPorts of pods on the host.
    HostPorts {
        /// Where.
        at: HostPorts,
        /// The first port of the host that an ordinary user may listen on.
        first_unprivileged: u16,
        /// What is added to ports below that.
        low_port_offset: u16,
        /// Where CRI-O keeps what it knows of pods; other runtimes tell CNI of ports.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sandboxes: Option<PathBuf>,
    },
    /// Import images.
    Images {
        /// containerd's client.
        ctr: PathBuf,
        /// How layers become a file system.
        snapshotter: String,
        /// Archives, and directories of archives.
        archives: Vec<PathBuf>,
    },
    /// Bring images to where CRI-O keeps them.
    CrioImages {
        /// What copies images.
        skopeo: PathBuf,
        /// Where to, as containers-transports(5) says, without the image's name.
        storage: String,
        /// OCI archives, and directories of such.
        archives: Vec<PathBuf>,
    },
    /// Ask containers to end, before their runtime is stopped.
    StopPods {
        /// Where the runtime serves CRI.
        socket: PathBuf,
    },
    /// Keep flannel's device as it has to be.
    FlannelLink {
        /// Its own address.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        local: Option<Ipv4Addr>,
    },
    /// Let those send by the overlay that flannel sends to.
    OverlayPeers,
    /// Let the node be where its host is.
    NodeAddress {
        /// Where.
        addresses: Vec<IpAddr>,
    },
    /// Forget what came by another kubeconfig.
    Credentials {
        /// The one that counts now.
        kubeconfig: PathBuf,
    },
    /// Wait until the cluster has the node.
    Join {
        /// URL of the API server.
        server: String,
        /// How to reach it.
        kubeconfig: PathBuf,
        /// Whether the node is known there.
        credentials: Credentials,
        /// Whether kubelet needs something more from there.
        serving: Serving,
    },
    /// Tell other nodes where this one is.
    Annotate {
        /// The cluster's client.
        kubectl: PathBuf,
        /// How to reach the API server.
        kubeconfig: PathBuf,
        /// The node.
        node: String,
        /// Where it is.
        public_ip: Ipv4Addr,
    },
}

impl Task {
    /// The arguments after the program's name, as the supervisor starts it.
    pub fn arguments(&self) -> Vec<String> {
        // Only paths that are not UTF-8 cannot be written, and none comes into a plan.
        [TASK.to_owned(), serde_json::to_string(self).unwrap_or_default()].into()
    }
}

/// Why a task has ended.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TaskError {
    /// There is no instance around us.
    #[error("$ROOTLESSKIT_STATE_DIR is not set; this runs inside a node")]
    NoInstance,
    /// inotify(7) or poll(2).
    #[error("cannot watch {path:?}")]
    Watch {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory or a file.
    #[error("cannot read {path:?}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file.
    #[error("cannot write {path:?}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory that should hold images holds none.
    #[error("no image archive (*.tar, *.tar.gz, *.tar.zst, *.tgz) is in --image-archive {0:?}")]
    NoArchive(PathBuf),
    /// An archive that skopeo would not know how to call.
    #[error("{archive:?} cannot be given to CRI-O")]
    Archive {
        /// Which.
        archive: PathBuf,
        /// Why.
        #[source]
        source: ArchiveError,
    },
    /// A program could not be started.
    #[error("cannot start {program:?}")]
    Start {
        /// Which.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program failed.
    #[error("{what} failed: {said}")]
    Failed {
        /// What it should have done.
        what: String,
        /// The last line of what it said.
        said: String,
    },
    /// An address of the loopback device.
    #[error("{step} {address} failed on the loopback device")]
    Address {
        /// The address.
        address: IpAddr,
        /// What the kernel was asked for.
        step: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The supervisor's answer, or none.
    #[error("the log of kubelet cannot be read: {0}")]
    Log(String),
    /// CRI.
    #[error("the container runtime at {socket:?} cannot be asked to end containers")]
    Runtime {
        /// Where it serves.
        socket: PathBuf,
        /// Why.
        #[source]
        source: CriError,
    },
    /// rtnetlink(7).
    #[error("cannot talk to the kernel about network devices")]
    Netlink(#[source] io::Error),
}

/// Runs it; it ends when its work is done, or never.
pub fn main(task: &Task) -> ExitCode {
    let name = match task {
        Task::HostPorts { .. } => c"rl-host-ports",
        Task::Images { .. } | Task::CrioImages { .. } => c"rl-images",
        Task::StopPods { .. } => c"rl-stop-pods",
        Task::FlannelLink { .. } => c"rl-flannel-link",
        Task::OverlayPeers => c"rl-peers",
        Task::NodeAddress { .. } => c"rl-node-address",
        Task::Credentials { .. } => c"rl-credentials",
        Task::Join { .. } => c"rl-join",
        Task::Annotate { .. } => c"rl-annotate",
    };
    // For people only.
    let _ = prctl::set_name(name);
    let result = match task {
        &Task::HostPorts { at: host_ports, first_unprivileged, low_port_offset, ref sandboxes } => {
            let policy = Policy { host_ports, first_unprivileged, low_port_offset };
            host_ports::run(&policy, sandboxes.as_deref())
        }
        Task::Images { ctr, snapshotter, archives } => images::import(ctr, snapshotter, archives),
        Task::CrioImages { skopeo, storage, archives } => crio_images::copy(skopeo, storage, archives),
        Task::StopPods { socket } => stop_pods::run(socket),
        Task::FlannelLink { local } => flannel_link::run(*local),
        Task::OverlayPeers => overlay_peers::run(),
        Task::NodeAddress { addresses } => node_address::run(addresses),
        Task::Credentials { kubeconfig } => credentials::run(kubeconfig),
        Task::Join { server, kubeconfig, credentials, serving } => {
            join::run(Joining::new(server.clone(), kubeconfig.clone(), *credentials), *serving)
        }
        Task::Annotate { kubectl, kubeconfig, node, public_ip } => {
            annotate::run(kubectl, kubeconfig, node, *public_ip)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{}", with_causes(&error));
            ExitCode::FAILURE
        }
    }
}
