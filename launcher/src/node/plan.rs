//! What is written and run inside a node, decided from the command line and facts. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::args::{Cni, Cri, FlannelBackend, HostPorts, NodeArgs, PublicIps};
use super::joining::{Credentials, Serving};
use super::tasks::{ANNOTATION, GRACE, SLACK, Task};
use crate::apply::programs::{Answer, Installed};
use crate::components::cni::Network;
use crate::components::containerd::{self, Containerd, OciRuntime, Snapshotter};
use crate::components::crio::{self, Crio, Storage};
use crate::components::flannel::{EtcdTls, Flannel, Store};
use crate::components::kubeconfig::{Authority, Identity, Kubeconfig, KubeconfigError};
use crate::components::kubelet::{self, Cluster, Kubelet, Membership, Patch, PatchError};
use crate::components::programs::{Program, Suitability, Version};
use crate::components::{Cgroups, layout};
use crate::personality::oci_runtime::{self, bundle::Cgroup};
use crate::plan::net::TAP_NAME;
use crate::supervisor::unit::{
    Journal, NodePlan, PlannedDirectory, PlannedFile, PlannedProgram, Readiness, Restart, Unit,
};

/// What is known of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// This program's file.
    pub ourselves: PathBuf,
    /// Programs that are there.
    pub programs: BTreeMap<Program, Installed>,
    /// PATH for what runs inside.
    pub path: String,
    /// What the node may do with cgroups.
    pub cgroups: Cgroups,
    /// Whether /sys/fs/cgroup is version 2 alone.
    pub cgroup2_alone: bool,
    /// Whether the kernel's overlayfs works in a user namespace, on the file system of the data directory.
    pub overlayfs: Works,
    /// Whether /dev/fuse can be opened.
    pub fuse: Works,
    /// The host's name.
    pub host_name: String,
    /// Where other machines reach the host, by its default routes: at most one of each family, the better one first.
    pub public_ips: Vec<IpAddr>,
    /// The first port that an ordinary user may listen on.
    pub first_unprivileged: u16,
    /// The node's address behind the engine.
    pub address: Ipv4Addr,
    /// Directory of the node's sockets.
    pub state_dir: PathBuf,
    /// Directory of the programs' logs.
    pub log_dir: PathBuf,
    /// What is in the file of `--kubelet-config`.
    pub kubelet_patch: Option<String>,
    /// What is in the file of `--kubeconfig` or `--bootstrap-kubeconfig`.
    pub cluster: Option<Kubeconfig>,
}

/// Whether something works here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Works {
    /// It has been tried, and does.
    Yes,
    /// It has been tried, and does not.
    No,
}

/// Why there can be no such node.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NodeError {
    /// Programs that are not there, too old, or cannot be run.
    #[error("programs of the node are missing or do not fit:\n{}", .0.join("\n"))]
    Programs(Vec<String>),
    /// CNI plugins that are in several directories, of which the runtime knows one.
    #[error(
        "CNI plugin {plugin} is not in {directory:?} with the others; put all into one directory and name that by --cni-bin-dir"
    )]
    Scattered {
        /// The plugin.
        plugin: &'static str,
        /// Where others are.
        directory: PathBuf,
    },
    /// The file of `--kubelet-config`.
    #[error("--kubelet-config {path:?}")]
    Patch {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: PatchError,
    },
    /// flannel has no store.
    #[error(
        "--cni=flannel needs a cluster that keeps the nodes' subnets: give --kubeconfig, --bootstrap-kubeconfig, or --flannel-backend=etcd with --etcd-endpoint"
    )]
    NoStore,
    /// Nobody can be told where the node is.
    #[error(
        "the host has no default route for IPv4, so the address that other nodes send VXLAN to is not known: give it by --public-ip"
    )]
    NoPublicIp,
    /// A kubeconfig by which nobody can join.
    #[error("{option} {path:?}")]
    Kubeconfig {
        /// Which option names it.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: KubeconfigError,
    },
    /// A file that kubelet or flanneld will want.
    #[error("{option} {path:?}: {reason}")]
    File {
        /// Which option names it.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

/// The programs that such a node may use.
pub fn programs(args: &NodeArgs) -> Vec<Program> {
    let mut programs = vec![Program::Kubelet, Program::Crun, Program::Runc, Program::FuseOverlayfs];
    programs.extend(PLUGINS);
    programs.push(Program::Iptables);
    match args.cri {
        Cri::Containerd => programs.extend([
            Program::Containerd,
            Program::ContainerdShim,
            Program::Ctr,
            Program::FuseOverlayfsSnapshotter,
            Program::MountFuse3,
        ]),
        Cri::Crio => programs.extend([Program::Crio, Program::Conmon, Program::Pinns, Program::Skopeo]),
    }
    if args.cni == Cni::Flannel {
        programs.extend([Program::Flanneld, Program::CniFlannel, Program::Kubectl]);
    }
    programs
}

const PLUGINS: [Program; 4] =
    [Program::CniBridge, Program::CniHostLocal, Program::CniLoopback, Program::CniPortmap];

/// What the node will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Composition {
    /// What happens inside.
    pub plan: NodePlan,
    /// Where the API server finds kubelet, if there is one and kubelet serves it.
    pub kubelet_port: Option<u16>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Decides what the node will be.
///
/// # Errors
/// It cannot be.
pub fn compose(args: &NodeArgs, facts: &NodeFacts) -> Result<Composition, NodeError> {
    Composer::new(args, facts)?.compose()
}

struct Composer<'a> {
    args: &'a NodeArgs,
    facts: &'a NodeFacts,
    kubelet: &'a Installed,
    runtime: OciRuntime,
    cni_bin_dir: PathBuf,
    files: Vec<PlannedFile>,
    units: Vec<Unit>,
    kubelet_port: Option<u16>,
    /// The unit after which the node is as much in its cluster as it will be.
    in_cluster: &'static str,
    warnings: Vec<String>,
}

impl<'a> Composer<'a> {
    /// Finds everything that is missing at once.
    fn new(args: &'a NodeArgs, facts: &'a NodeFacts) -> Result<Self, NodeError> {
        let mut wanted = vec![Program::Kubelet, Program::Iptables];
        wanted.extend(PLUGINS);
        match args.cri {
            Cri::Containerd => wanted.extend([Program::Containerd, Program::ContainerdShim]),
            Cri::Crio => wanted.extend([Program::Crio, Program::Conmon, Program::Pinns]),
        }
        if !args.image_archive.is_empty() {
            wanted.push(match args.cri {
                Cri::Containerd => Program::Ctr,
                Cri::Crio => Program::Skopeo,
            });
        }
        if args.cni == Cni::Flannel {
            wanted.extend([Program::Flanneld, Program::CniFlannel]);
        }
        let mut faults: Vec<String> =
            wanted.iter().filter_map(|&program| fault(program, facts.programs.get(&program))).collect();
        // One of the two is enough. crun is the smaller and faster one; beside cgroup v1 runc has fewer surprises.
        let order = match facts.cgroup2_alone {
            true => [Program::Crun, Program::Runc],
            false => [Program::Runc, Program::Crun],
        };
        let fits = |program: &Program| fault(*program, facts.programs.get(program)).is_none();
        let runtime = order.into_iter().find(fits);
        if runtime.is_none() {
            faults
                .extend(order.into_iter().filter_map(|program| fault(program, facts.programs.get(&program))));
        }
        let (Some(runtime), Some(kubelet), true) =
            (runtime, facts.programs.get(&Program::Kubelet), faults.is_empty())
        else {
            return Err(NodeError::Programs(faults));
        };
        let runtime = OciRuntime { name: runtime.file_name(), program: path(facts, runtime) };
        let cni_bin_dir = plugins(args, facts)?;
        let (files, units, warnings) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Composer {
            args,
            facts,
            kubelet,
            runtime,
            cni_bin_dir,
            files,
            units,
            kubelet_port: None,
            in_cluster: kubelet::NAME,
            warnings,
        })
    }

    fn compose(mut self) -> Result<Composition, NodeError> {
        let (runtime, socket) = match self.args.cri {
            Cri::Containerd => (self.containerd(), layout::CONTAINERD_SOCKET),
            Cri::Crio => (self.crio(), layout::CRIO_SOCKET),
        };
        let endpoint = format!("unix://{socket}");
        self.file(
            layout::CRICTL_CONFIG,
            format!("runtime-endpoint: {endpoint}\nimage-endpoint: {endpoint}\n"),
        );
        self.network();
        if self.args.host_ports != HostPorts::Off {
            self.task("host-ports", &self.host_ports(), &[], Readiness::Started, Restart::Always);
        }
        let cluster = self.cluster();
        let mut before_kubelet = vec![runtime];
        if let Some(Membership { kubeconfig, addresses, .. }) = cluster.membership() {
            let credentials = Task::Credentials { kubeconfig: kubeconfig.clone() };
            let address = (NODE_ADDRESS, Task::NodeAddress { addresses: addresses.clone() });
            let address = Some(address).filter(|_| !addresses.is_empty());
            for (name, task) in [(CREDENTIALS, credentials)].into_iter().chain(address) {
                self.task(name, &task, &[], Readiness::Exited, Restart::OnFailure);
                before_kubelet.push(name);
            }
        }
        if !self.args.image_archive.is_empty() {
            let images = self.images();
            self.task("images", &images, &[runtime], Readiness::Exited, Restart::OnFailure);
            before_kubelet.push("images");
        }
        // kubelet comes after it, and has ended before it is run.
        let stop = Task::StopPods { socket: socket.into() };
        self.task(PODS, &stop, &[runtime], Readiness::AtStop, Restart::Never);
        before_kubelet.push(PODS);
        self.kubelet(socket, cluster, &before_kubelet)?;
        if self.args.cni == Cni::Flannel {
            self.flannel()?;
        }
        Ok(self.finish())
    }

    fn containerd(&mut self) -> &'static str {
        let facts = self.facts;
        let version = version(facts, Program::Containerd);
        // 1.7 can leave cgroups alone by itself.
        let runtime = match facts.cgroups {
            Cgroups::Withheld if version.major >= 2 => self.adapted_runtime(),
            _ => self.runtime.clone(),
        };
        let snapshotter = self.snapshotter();
        self.warn_of_copies(snapshotter == Snapshotter::Native);
        let containerd = Containerd {
            program: path(facts, Program::Containerd),
            version,
            snapshotter,
            runtime,
            cgroups: facts.cgroups,
            pause_image: self.args.pause_image.clone(),
            cni_bin_dir: self.cni_bin_dir.clone(),
        };
        self.file(layout::CONTAINERD_CONFIG, containerd.config());
        self.units.extend(containerd.units());
        containerd::NAME
    }

    fn snapshotter(&self) -> Snapshotter {
        let facts = self.facts;
        // containerd mounts by mount.fuse3.
        let fuse = [Program::FuseOverlayfs, Program::FuseOverlayfsSnapshotter, Program::MountFuse3];
        let has_fuse =
            facts.fuse == Works::Yes && fuse.iter().all(|program| facts.programs.contains_key(program));
        match facts.overlayfs {
            Works::Yes => Snapshotter::Overlayfs,
            Works::No if has_fuse => {
                Snapshotter::FuseOverlayfs(path(facts, Program::FuseOverlayfsSnapshotter))
            }
            Works::No => Snapshotter::Native,
        }
    }

    fn crio(&mut self) -> &'static str {
        let facts = self.facts;
        let storage = self.crio_storage();
        self.warn_of_copies(storage == Storage::Vfs);
        let crio = Crio {
            program: path(facts, Program::Crio),
            conmon: path(facts, Program::Conmon),
            pinns: path(facts, Program::Pinns),
            storage,
            runtime: self.adapted_runtime(),
            cgroups: facts.cgroups,
            pause_image: self.args.pause_image.clone(),
            pause_command: String::new(),
            cni_bin_dir: self.cni_bin_dir.clone(),
        };
        self.file(layout::CRIO_CONFIG, crio.config());
        self.file(layout::SIGNATURE_POLICY, crio.signature_policy());
        self.file(layout::REGISTRIES, crio.registries());
        self.units.push(crio.unit());
        crio::NAME
    }

    fn crio_storage(&self) -> Storage {
        let facts = self.facts;
        match facts.overlayfs {
            Works::Yes => Storage::Overlay,
            Works::No if facts.fuse == Works::Yes && facts.programs.contains_key(&Program::FuseOverlayfs) => {
                Storage::FuseOverlayfs(path(facts, Program::FuseOverlayfs))
            }
            Works::No => Storage::Vfs,
        }
    }

    /// What starts containers, behind a program of ours that leaves out what cannot be had here.
    fn adapted_runtime(&mut self) -> OciRuntime {
        let runtime = self.runtime.clone();
        let cgroup = match self.facts.cgroups {
            Cgroups::Withheld => Cgroup::Removed,
            Cgroups::Delegated | Cgroups::DelegatedWithoutCpu => Cgroup::Kept,
        };
        let program = PathBuf::from(layout::OCI_RUNTIME).join(runtime.name);
        let text = oci_runtime::script(&self.facts.ourselves, &runtime.program, cgroup);
        self.files.push(PlannedFile { path: program.clone(), mode: 0o755, text });
        OciRuntime { program, ..runtime }
    }

    fn warn_of_copies(&mut self, copies: bool) {
        if copies {
            let why = "neither the kernel's overlayfs nor fuse-overlayfs works in the data directory: each container gets a copy of \
                       its image";
            self.warnings.push(why.to_owned());
        }
    }

    fn network(&mut self) {
        let network = match self.args.cni {
            Cni::Bridge => Network::Bridge { subnet: self.args.pod_cidr, mtu: self.args.run.mtu },
            Cni::Flannel => Network::Flannel,
        };
        self.file(&network.path(), network.conflist());
    }

    fn host_ports(&self) -> Task {
        let sandboxes = (self.args.cri == Cri::Crio).then(|| self.crio_storage().run_directory());
        Task::HostPorts {
            sandboxes,
            at: self.args.host_ports,
            first_unprivileged: self.facts.first_unprivileged,
            low_port_offset: self.args.low_port_offset,
        }
    }

    fn images(&self) -> Task {
        let archives = self.args.image_archive.clone();
        match self.args.cri {
            Cri::Containerd => Task::Images {
                ctr: path(self.facts, Program::Ctr),
                snapshotter: self.snapshotter().to_string(),
                archives,
            },
            Cri::Crio => Task::CrioImages {
                skopeo: path(self.facts, Program::Skopeo),
                storage: self.crio_storage().transport(),
                archives,
            },
        }
    }

    /// Whom the node obeys, and where it will be found.
    fn cluster(&mut self) -> Cluster {
        let (args, facts) = (self.args, self.facts);
        let (kubeconfig, kind): (_, fn(Membership) -> Cluster) =
            match (&args.kubeconfig, &args.bootstrap_kubeconfig) {
                (Some(kubeconfig), _) => (kubeconfig.clone(), Cluster::Joined),
                (None, Some(kubeconfig)) => (kubeconfig.clone(), Cluster::Bootstrap),
                (None, None) => return Cluster::None,
            };
        let addresses = match args.public_ip {
            Some(PublicIps { first, second }) => [Some(first), second].into_iter().flatten().collect(),
            // Nobody has asked for a node of both families, and not every cluster is ready for one.
            None => facts.public_ips.iter().take(1).copied().collect(),
        };
        if Vec::is_empty(&addresses) {
            let why = "the host has no default route, so the API server is not told where to find this node, and has neither logs nor exec \
                       of its pods: give the address by --public-ip";
            self.warnings.push(why.to_owned());
        }
        let authority = facts.cluster.as_ref().and_then(|cluster| cluster.authority.clone());
        let client_authority = match authority {
            Some(Authority::Text(text)) => {
                self.file(layout::CLUSTER_AUTHORITY, text);
                Some(layout::CLUSTER_AUTHORITY.into())
            }
            Some(Authority::File(path)) => Some(path),
            None => None,
        };
        let identity = facts.cluster.as_ref().map_or(Identity::Certificate, |cluster| cluster.identity);
        kind(Membership { kubeconfig, identity, client_authority, addresses })
    }

    fn kubelet(&mut self, socket: &'static str, cluster: Cluster, after: &[&str]) -> Result<(), NodeError> {
        let version = version(self.facts, Program::Kubelet);
        let kubelet = Kubelet {
            program: self.kubelet.path.clone(),
            version,
            node_name: self.node_name(),
            runtime: socket,
            cgroups: self.facts.cgroups,
            cluster,
            static_pods: self.args.static_pods.clone(),
            arguments: self.args.run.cmd.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
            after: after.iter().map(|&name| name.to_owned()).collect(),
        };
        let patch = match (&self.args.kubelet_config, &self.facts.kubelet_patch) {
            (Some(path), Some(text)) => Some((path, Patch::parse(text, version))),
            _ => None,
        };
        let refused = |path: &Path| {
            let path = path.to_owned();
            move |source| NodeError::Patch { path, source }
        };
        let configuration = match patch {
            Some((path, patch)) => {
                patch.and_then(|patch| kubelet.configuration(&patch)).map_err(refused(path))?
            }
            None => kubelet.configuration(&Patch::default()).map_err(refused(Path::new("")))?,
        };
        if !configuration.left_out().is_empty() {
            self.warnings.push(format!(
                "--kubelet-config is a whole KubeletConfiguration; what a machine decides for itself is not taken from it: {} (of a file \
                 without kind it is)",
                configuration.left_out().join(", ")
            ));
        }
        self.file(layout::KUBELET_CONFIG, configuration.yaml());
        self.kubelet_port = configuration.port().filter(|_| kubelet.cluster != Cluster::None);
        self.units.push(kubelet.unit(&configuration));
        if configuration.registers() {
            let serving =
                if configuration.asks_for_serving() { Serving::AskedFor } else { Serving::OwnSigned };
            self.join(&kubelet.cluster, serving);
        }
        Ok(())
    }

    /// What needs the node in its cluster comes after this.
    fn join(&mut self, cluster: &Cluster, serving: Serving) {
        let (membership, credentials) = match cluster {
            Cluster::None => return,
            Cluster::Joined(membership) => (membership, Credentials::Given),
            Cluster::Bootstrap(membership) => (membership, Credentials::AskedFor),
        };
        let server = self.facts.cluster.as_ref().map(|cluster| cluster.server.clone()).unwrap_or_default();
        let task = Task::Join { server, kubeconfig: membership.kubeconfig.clone(), credentials, serving };
        self.task(CLUSTER, &task, &[kubelet::NAME], Readiness::Notify, Restart::OnFailure);
        self.wait_as_long_as_it_takes();
        self.in_cluster = CLUSTER;
    }

    /// The latest unit waits for what others do.
    fn wait_as_long_as_it_takes(&mut self) {
        const MONTH: Duration = Duration::from_secs(31 * 24 * 3600);
        self.units.iter_mut().last().into_iter().for_each(|unit| unit.start_timeout = MONTH);
    }

    fn flannel(&mut self) -> Result<(), NodeError> {
        let args = self.args;
        let public_ip = self.public_ipv4();
        let kubeconfig = match (&args.kubeconfig, &args.bootstrap_kubeconfig) {
            (Some(kubeconfig), _) => Some(kubeconfig.clone()),
            (None, Some(_)) => Some(layout::KUBELET_KUBECONFIG.into()),
            (None, None) => None,
        };
        let (store, local, after) = match args.flannel_backend {
            FlannelBackend::Kube => {
                let kubeconfig = kubeconfig.ok_or(NodeError::NoStore)?;
                let mut after = vec!["flannel-link", self.in_cluster];
                if self.annotate(kubeconfig.clone(), public_ip.ok_or(NodeError::NoPublicIp)?) {
                    after.push("annotate");
                }
                (Store::Kube { kubeconfig }, None, after)
            }
            FlannelBackend::Etcd if args.etcd_endpoint.is_empty() => return Err(NodeError::NoStore),
            FlannelBackend::Etcd => {
                let tls = match (&args.etcd_ca, &args.etcd_cert, &args.etcd_key) {
                    (Some(ca), Some(certificate), Some(key)) => {
                        Some(EtcdTls { ca: ca.clone(), certificate: certificate.clone(), key: key.clone() })
                    }
                    _ => None,
                };
                let public_ip = public_ip.ok_or(NodeError::NoPublicIp)?;
                let store = Store::Etcd { endpoints: args.etcd_endpoint.join(","), tls, public_ip };
                (store, Some(self.facts.address), vec!["flannel-link"])
            }
        };
        let flannel = Flannel {
            program: path(self.facts, Program::Flanneld),
            version: self.facts.programs.get(&Program::Flanneld).and_then(Installed::version),
            node_name: self.node_name(),
            store,
            network: args.pod_cidr,
            interface: TAP_NAME.to_owned(),
            after: after.into_iter().map(str::to_owned).collect(),
        };
        self.file(layout::FLANNEL_NETWORK, flannel.network());
        self.task("flannel-link", &Task::FlannelLink { local }, &[], Readiness::Started, Restart::Always);
        self.task("overlay-peers", &Task::OverlayPeers, &[], Readiness::Started, Restart::Always);
        self.units.push(flannel.unit());
        Ok(())
    }

    /// Peers learn by an annotation where the node is; it has to be there before flanneld is. False if somebody else has to do it.
    fn annotate(&mut self, kubeconfig: PathBuf, public_ip: Ipv4Addr) -> bool {
        let node = self.node_name();
        let Some(kubectl) = self.facts.programs.get(&Program::Kubectl) else {
            self.warnings.push(format!(
                "kubectl was not found: until somebody does kubectl annotate node {node} {ANNOTATION}={public_ip}, other nodes send \
                 to an address that only this one has"
            ));
            return false;
        };
        let task = Task::Annotate { kubectl: kubectl.path.clone(), kubeconfig, node, public_ip };
        self.task("annotate", &task, &[self.in_cluster], Readiness::Exited, Restart::OnFailure);
        self.wait_as_long_as_it_takes();
        true
    }

    /// The address that flannel's VXLAN goes to.
    fn public_ipv4(&self) -> Option<Ipv4Addr> {
        let given = self.args.public_ip.map(|PublicIps { first, second }| [Some(first), second]);
        let mut all = given.into_iter().flatten().flatten().chain(self.facts.public_ips.iter().copied());
        all.find_map(|address| match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        })
    }

    fn node_name(&self) -> String {
        self.args.node_name.clone().unwrap_or_else(|| self.facts.host_name.to_ascii_lowercase())
    }

    fn file(&mut self, path: &str, text: String) {
        self.files.push(PlannedFile { path: path.into(), mode: 0o644, text });
    }

    fn task(&mut self, name: &str, task: &Task, after: &[&str], ready: Readiness, restart: Restart) {
        let mut argv = vec![OURSELVES.to_owned()];
        argv.extend(task.arguments());
        let stop_timeout = match ready {
            Readiness::AtStop => GRACE + SLACK + SLACK,
            _ => Duration::from_secs(5),
        };
        self.units.push(Unit {
            name: name.to_owned(),
            argv,
            env: Vec::new(),
            after: after.iter().map(|&name| name.to_owned()).collect(),
            ready,
            start_timeout: Duration::from_secs(600),
            stop_timeout,
            restart,
        });
    }

    /// What is used of that which was found.
    fn programs(&self) -> Vec<PlannedProgram> {
        let is_used = |program: Program| match program {
            Program::Crun | Program::Runc => program.file_name() == self.runtime.name,
            Program::Ctr | Program::Skopeo => !self.args.image_archive.is_empty(),
            Program::FuseOverlayfs | Program::FuseOverlayfsSnapshotter | Program::MountFuse3 => {
                match self.args.cri {
                    Cri::Containerd => matches!(self.snapshotter(), Snapshotter::FuseOverlayfs(_)),
                    Cri::Crio => matches!(self.crio_storage(), Storage::FuseOverlayfs(_)),
                }
            }
            _ => true,
        };
        let used = self.facts.programs.iter().filter(|&(&program, _)| is_used(program));
        let planned = used.map(|(program, installed)| PlannedProgram {
            name: program.to_string(),
            version: installed.version().map(|version| version.to_string()),
            file: installed.path.clone(),
        });
        planned.collect()
    }

    fn finish(mut self) -> Composition {
        let path = ("PATH".to_owned(), self.facts.path.clone());
        for unit in &mut self.units {
            unit.env.push(path.clone());
            if let Some(seconds) = self.args.start_timeout {
                unit.start_timeout = Duration::from_secs(seconds.into());
            }
        }
        let mut directories: Vec<&Path> = self.files.iter().filter_map(|file| file.path.parent()).collect();
        directories.extend([layout::CNI_RESULTS, layout::KUBELET_ROOT].map(Path::new));
        directories.sort_unstable();
        directories.dedup();
        let directories =
            directories.into_iter().map(|path| PlannedDirectory { path: path.into(), mode: 0o755 });
        let programs = self.programs();
        let plan = NodePlan {
            directories: directories.collect(),
            programs,
            files: self.files,
            units: self.units,
            log_dir: self.facts.log_dir.clone(),
            control: self.facts.state_dir.join("node.sock"),
            journal: Journal::default(),
        };
        Composition { plan, kubelet_port: self.kubelet_port, warnings: self.warnings }
    }
}

/// The unit after which kubelet's certificates are of the cluster that is meant.
const CREDENTIALS: &str = "credentials";
/// The unit after which the cluster has the node.
const CLUSTER: &str = "cluster";
/// The unit after which the node has its host's address.
const NODE_ADDRESS: &str = "node-address";
/// The unit that ends pods.
const PODS: &str = "pods";
/// This program, for the supervisor that starts it again.
const OURSELVES: &str = "/proc/self/exe";

/// What is wrong with a program that has to be there, as a line for people.
fn fault(program: Program, installed: Option<&Installed>) -> Option<String> {
    let origin = program.origin();
    let Some(installed) = installed else {
        return Some(format!("  {program} was not found; get it from: {origin}"));
    };
    let file = installed.path.display();
    match (&installed.answer, installed.version().map(|version| (version, program.suitability(version)))) {
        (Answer::Failed(why), _) => Some(format!("  {file} does not run: {why}")),
        (_, Some((version, Suitability::TooOld { minimum, needed }))) => Some(format!(
            "  {file} is version {version}, too old: {minimum} brings {needed}; get it from: {origin}"
        )),
        (_, Some((version, Suitability::Faulty(what)))) => {
            Some(format!("  {file} is version {version}, in which {what}; get another from: {origin}"))
        }
        (_, Some((_, Suitability::Good)) | None) => None,
    }
}

/// The file of a program that has been found.
fn path(facts: &NodeFacts, program: Program) -> PathBuf {
    let found = facts.programs.get(&program);
    found.map_or_else(|| program.file_name().into(), |installed| installed.path.clone())
}

/// A version that is not known is the oldest that will do.
fn version(facts: &NodeFacts, program: Program) -> Version {
    let known = facts.programs.get(&program).and_then(Installed::version);
    known.or(program.minimum().map(|(version, _)| version)).unwrap_or_default()
}

/// The one directory of all plugins.
fn plugins(args: &NodeArgs, facts: &NodeFacts) -> Result<PathBuf, NodeError> {
    let flannel = (args.cni == Cni::Flannel).then_some(Program::CniFlannel);
    let mut found = PLUGINS.into_iter().chain(flannel).map(|program| (program, path(facts, program)));
    let directory = |path: &Path| path.parent().unwrap_or(Path::new("/")).to_owned();
    let Some((_, first)) = found.next() else { return Ok(PathBuf::new()) };
    let first = directory(&first);
    match found.find(|(_, path)| directory(path) != first) {
        Some((plugin, _)) => Err(NodeError::Scattered { plugin: plugin.file_name(), directory: first }),
        None => Ok(first),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::internal::Internal;
    use crate::supervisor::unit::Units;

    fn args(words: &[&str]) -> NodeArgs {
        let words = ["rootless-launch", "node"].iter().chain(words);
        match Cli::try_parse_from(words).unwrap().command {
            Some(Command::Node(node)) => *node,
            other => panic!("{other:?}"),
        }
    }

    fn facts(versions: &[(Program, &str)]) -> NodeFacts {
        let programs = versions.iter().map(|&(program, version)| {
            let directory = if program.is_cni() { "/opt/cni/bin" } else { "/usr/bin" };
            let path = Path::new(directory).join(program.file_name());
            let answer = Version::parse(version).map_or(Answer::Unknown, Answer::Version);
            (program, Installed { path, answer })
        });
        NodeFacts {
            programs: programs.collect(),
            ourselves: "/usr/bin/rootless-launch".into(),
            path: "/usr/bin:/usr/sbin".to_owned(),
            cgroups: Cgroups::Withheld,
            cgroup2_alone: true,
            overlayfs: Works::Yes,
            fuse: Works::No,
            host_name: "Box".to_owned(),
            public_ips: vec![Ipv4Addr::new(192, 0, 2, 7).into()],
            first_unprivileged: 1024,
            address: Ipv4Addr::new(10, 0, 42, 100),
            state_dir: "/run/user/1000/rootless-launch/node".into(),
            log_dir: "/home/ann/.local/state/rootless-launch/node/log".into(),
            kubelet_patch: None,
            cluster: None,
        }
    }

    const ALL: [(Program, &str); 11] = [
        (Program::Kubelet, "1.36.4"),
        (Program::Containerd, "1.7.24"),
        (Program::ContainerdShim, "1.7.24"),
        (Program::Ctr, "1.7.24"),
        (Program::Crun, "1.21"),
        (Program::Runc, "1.1.15"),
        (Program::Iptables, "1.8.9"),
        (Program::CniBridge, "1.1.1"),
        (Program::CniHostLocal, "1.1.1"),
        (Program::CniLoopback, "1.1.1"),
        (Program::CniPortmap, "1.1.1"),
    ];

    #[test]
    fn what_is_used_is_listed_with_its_version() {
        let mut facts = facts(&ALL);
        facts.programs.get_mut(&Program::CniBridge).unwrap().answer = Answer::Unknown;
        let listed = |words: &[&str]| {
            let programs = compose(&args(words), &facts).unwrap().plan.programs.into_iter();
            let line = |program: PlannedProgram| {
                let version = program.version.unwrap_or_else(|| "-".to_owned());
                format!("{} {version} {}", program.name, program.file.display())
            };
            programs.map(line).collect::<Vec<_>>()
        };
        let programs = listed(&[]);
        assert_eq!(programs[0], "containerd 1.7.24 /usr/bin/containerd");
        assert!(programs.contains(&"crun 1.21.0 /usr/bin/crun".to_owned()), "{programs:?}");
        assert!(programs.contains(&"CNI plugin bridge - /opt/cni/bin/bridge".to_owned()), "{programs:?}");
        let has = |programs: &[String], name: &str| programs.iter().any(|line| line.starts_with(name));
        assert!(!has(&programs, "runc ") && !has(&programs, "ctr "), "{programs:?}");
        assert!(has(&listed(&["--image-archive=/x"]), "ctr "));
    }

    fn names(plan: &NodePlan) -> Vec<String> {
        let unit = |unit: &Unit| [std::slice::from_ref(&unit.name), &unit.after[..]].concat().join(" < ");
        plan.units.iter().map(unit).collect()
    }

    /// As the process of the unit reads it.
    fn task(unit: &Unit) -> Task {
        match Internal::of(unit.argv.iter().map(OsString::from)) {
            Some(Ok(Internal::Task(task))) => task,
            other => panic!("{other:?}"),
        }
    }

    fn text<'a>(plan: &'a NodePlan, path: &str) -> &'a str {
        &plan.files.iter().find(|file| file.path == Path::new(path)).unwrap().text
    }

    #[test]
    fn images_are_there_before_kubelet_is() {
        let Composition { plan, warnings, .. } =
            compose(&args(&["--image-archive=/a.tar"]), &facts(&ALL)).unwrap();
        assert_eq!(
            names(&plan),
            [
                "containerd",
                "host-ports",
                "images < containerd",
                "pods < containerd",
                "kubelet < containerd < images < pods"
            ]
        );
        assert!(warnings.is_empty());
        assert!(Units::new(plan.units.clone()).is_ok());
        let files: Vec<_> = plan.files.iter().map(|file| file.path.to_str().unwrap()).collect();
        assert_eq!(
            files,
            [
                "/etc/containerd/config.toml",
                "/etc/crictl.yaml",
                "/etc/cni/net.d/10-bridge.conflist",
                "/etc/kubernetes/kubelet.yaml"
            ]
        );
        assert!(
            plan.units.iter().all(|unit| unit.env.contains(&("PATH".into(), "/usr/bin:/usr/sbin".into())))
        );
        assert_eq!(plan.units[4].argv[2], "--hostname-override=box");
    }

    #[test]
    fn everything_that_is_missing_is_told_at_once() {
        let old = [(Program::Containerd, "1.6.20"), (Program::Kubelet, "1.36.4")];
        let Err(error) = compose(&args(&[]), &facts(&old)) else { panic!("it cannot be") };
        let text = error.to_string();
        for told in [
            "iptables was not found; get it from: Debian package iptables",
            "CNI plugin bridge was not found; get it from: Debian package containernetworking-plugins",
            "containerd-shim-runc-v2 was not found",
            "/usr/bin/containerd is version 1.6.20, too old: 1.7.0 brings settings",
            "crun was not found",
            "runc was not found",
        ] {
            assert!(text.contains(told), "{told}: {text}");
        }
        assert!(!text.contains("kubelet"), "{text}");
    }

    #[test]
    fn one_oci_runtime_is_enough() {
        let with = |name: &str, alone| {
            let programs: Vec<_> =
                ALL.into_iter().filter(|(program, _)| program.file_name() != name).collect();
            let facts = NodeFacts { cgroup2_alone: alone, ..facts(&programs) };
            let Composition { plan, .. } = compose(&args(&[]), &facts).unwrap();
            let config = text(&plan, "/etc/containerd/config.toml");
            config.lines().find(|line| line.starts_with("BinaryName")).unwrap().to_owned()
        };
        assert_eq!(with("", true), "BinaryName = \"/usr/bin/crun\"");
        assert_eq!(with("", false), "BinaryName = \"/usr/bin/runc\"");
        assert_eq!(with("runc", false), "BinaryName = \"/usr/bin/crun\"");
    }

    #[test]
    fn what_cannot_be_run_is_told_with_its_complaint() {
        let mut facts = facts(&ALL);
        let kubelet = facts.programs.get_mut(&Program::Kubelet).unwrap();
        kubelet.answer = Answer::Failed("Exec format error".to_owned());
        let error = compose(&args(&[]), &facts).unwrap_err().to_string();
        assert!(error.ends_with("\n  /usr/bin/kubelet does not run: Exec format error"), "{error}");
    }

    #[test]
    fn plugins_are_in_one_place() {
        let mut facts = facts(&ALL);
        facts.programs.get_mut(&Program::CniPortmap).unwrap().path = "/else/portmap".into();
        assert!(matches!(compose(&args(&[]), &facts), Err(NodeError::Scattered { plugin: "portmap", .. })));
    }

    #[test]
    fn a_bad_patch_is_told_by_file_and_key() {
        let facts = NodeFacts { kubelet_patch: Some("maxPods: many".to_owned()), ..facts(&ALL) };
        let error = compose(&args(&["--kubelet-config=/p.yaml"]), &facts).unwrap_err();
        let told = crate::error::with_causes(&error);
        assert_eq!(told, "--kubelet-config \"/p.yaml\": key \"maxPods\" has text, and takes a whole number");
    }

    #[test]
    fn an_api_server_finds_kubelet_at_its_port() {
        let port = |words: &[&str], patch: Option<&str>| {
            let words = [&["--kubelet-config=/p"], words].concat();
            let facts = NodeFacts { kubelet_patch: patch.map(str::to_owned), ..facts(&ALL) };
            compose(&args(&words), &facts).unwrap().kubelet_port
        };
        assert_eq!(port(&[], None), None);
        assert_eq!(port(&["--kubeconfig=/k"], None), Some(10250));
        assert_eq!(port(&["--bootstrap-kubeconfig=/k"], Some("port: 10350")), Some(10350));
        assert_eq!(port(&["--kubeconfig=/k"], Some("enableServer: false")), None);
    }

    #[test]
    fn a_node_of_a_cluster_is_where_its_host_is() {
        let cluster = |authority| Kubeconfig {
            server: "https://192.0.2.1:6443".to_owned(),
            authority,
            identity: Identity::Certificate,
            files: Vec::new(),
        };
        let authority = Some(Authority::Text("PEM".to_owned()));
        let facts = NodeFacts { cluster: Some(cluster(authority)), ..facts(&ALL) };
        let Composition { plan, warnings, .. } = compose(&args(&["--kubeconfig=/k"]), &facts).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(
            names(&plan),
            [
                "containerd",
                "host-ports",
                "credentials",
                "node-address",
                "pods < containerd",
                "kubelet < containerd < credentials < node-address < pods",
                "cluster < kubelet"
            ]
        );
        assert_eq!(text(&plan, "/etc/kubernetes/ca.crt"), "PEM");
        assert!(text(&plan, "/etc/kubernetes/kubelet.yaml").contains("clientCAFile: /etc/kubernetes/ca.crt"));
        let node_ip = |plan: &NodePlan| {
            let mut words = plan.units.iter().flat_map(|unit| &unit.argv);
            words.find_map(|word| word.strip_prefix("--node-ip=")).map(str::to_owned)
        };
        assert_eq!(node_ip(&plan).as_deref(), Some("192.0.2.7"));
        let both = ["2001:db8::7", "192.0.2.7"].map(|address| address.parse().unwrap());
        let facts = NodeFacts { public_ips: both.into(), ..facts };
        let Composition { plan, .. } = compose(&args(&["--kubeconfig=/k"]), &facts).unwrap();
        assert_eq!(node_ip(&plan).as_deref(), Some("2001:db8::7"), "two have to be asked for");
        let asked = args(&["--kubeconfig=/k", "--public-ip=192.0.2.8,2001:db8::8"]);
        let Composition { plan, .. } = compose(&asked, &facts).unwrap();
        assert_eq!(node_ip(&plan).as_deref(), Some("192.0.2.8,2001:db8::8"));
        let addresses = ["192.0.2.8", "2001:db8::8"].map(|address| address.parse().unwrap()).into();
        assert_eq!(task(&plan.units[3]), Task::NodeAddress { addresses });

        let authority = Some(Authority::File("/home/ann/ca.crt".into()));
        let facts = NodeFacts {
            cluster: Some(cluster(authority)),
            public_ips: Vec::new(),
            kubelet_patch: Some("registerNode: false".to_owned()),
            ..facts
        };
        let words = ["--bootstrap-kubeconfig=/b", "--kubelet-config=/p"];
        let Composition { plan, warnings, .. } = compose(&args(&words), &facts).unwrap();
        assert!(warnings[0].ends_with("give the address by --public-ip"), "{warnings:?}");
        assert_eq!(
            names(&plan)[2..],
            ["credentials", "pods < containerd", "kubelet < containerd < credentials < pods"]
        );
        assert!(text(&plan, "/etc/kubernetes/kubelet.yaml").contains("clientCAFile: /home/ann/ca.crt"));
    }

    #[test]
    fn copies_are_the_last_resort() {
        let facts = NodeFacts { overlayfs: Works::No, ..facts(&ALL) };
        let Composition { plan, warnings, .. } = compose(&args(&[]), &facts).unwrap();
        assert!(text(&plan, "/etc/containerd/config.toml").contains("snapshotter = \"native\""));
        assert_eq!(warnings.len(), 1);
        let mut facts = NodeFacts { fuse: Works::Yes, ..facts };
        for program in [Program::FuseOverlayfs, Program::FuseOverlayfsSnapshotter, Program::MountFuse3] {
            let path = Path::new("/usr/bin").join(program.file_name());
            facts.programs.insert(program, Installed { path, answer: Answer::Unknown });
        }
        let Composition { plan, warnings, .. } = compose(&args(&["--image-archive=/a"]), &facts).unwrap();
        assert!(text(&plan, "/etc/containerd/config.toml").contains("snapshotter = \"fuse-overlayfs\""));
        assert!(warnings.is_empty());
        let images = plan.units.iter().find(|unit| unit.name == "images").unwrap();
        let task = task(images);
        assert!(
            matches!(task, Task::Images { snapshotter, .. } if snapshotter == "fuse-overlayfs"),
            "{images:?}"
        );
    }

    #[test]
    fn flannel_needs_somebody_who_keeps_the_subnets() {
        let more = [(Program::Flanneld, "0.28.9"), (Program::CniFlannel, "1.1.1")];
        let mut facts = facts(&[&ALL[..], &more].concat());
        let flannel = |more: &[&str]| args(&[&["--cni=flannel"], more].concat());
        assert!(matches!(compose(&flannel(&[]), &facts), Err(NodeError::NoStore)));
        assert!(matches!(compose(&flannel(&["--flannel-backend=etcd"]), &facts), Err(NodeError::NoStore)));
        let etcd = flannel(&["--flannel-backend=etcd", "--etcd-endpoint=http://a:2379"]);
        let Composition { plan, .. } = compose(&etcd, &facts).unwrap();
        let flanneld = plan.units.iter().find(|unit| unit.name == "flanneld").unwrap();
        assert!(flanneld.argv.contains(&"--public-ip=192.0.2.7".to_owned()));
        let link = plan.units.iter().find(|unit| unit.name == "flannel-link").unwrap();
        assert_eq!(task(link), Task::FlannelLink { local: Some(Ipv4Addr::new(10, 0, 42, 100)) });

        let Composition { plan, warnings, .. } = compose(&flannel(&["--kubeconfig=/k"]), &facts).unwrap();
        let link = plan.units.iter().find(|unit| unit.name == "flannel-link").unwrap();
        assert_eq!(task(link), Task::FlannelLink { local: None });
        assert!(
            warnings[0]
                .contains("kubectl annotate node box flannel.alpha.coreos.com/public-ip-overwrite=192.0.2.7")
        );
        let path = "/usr/bin/kubectl".into();
        facts.programs.insert(Program::Kubectl, Installed { path, answer: Answer::Unknown });
        let Composition { plan, warnings, .. } = compose(&flannel(&["--kubeconfig=/k"]), &facts).unwrap();
        assert!(warnings.is_empty());
        let flanneld = plan.units.iter().find(|unit| unit.name == "flanneld").unwrap();
        assert!(flanneld.after.contains(&"annotate".to_owned()));
    }

    #[test]
    fn what_cannot_leave_cgroups_alone_calls_us_for_containers() {
        const CONTAINERD: &str = "/etc/containerd/config.toml";
        const CRUN: &str = "/run/rootless-launch/oci-runtime/crun";
        let mut two = ALL;
        two[1].1 = "2.3.4";
        let runtime = |facts: &NodeFacts| {
            let Composition { plan, .. } = compose(&args(&[]), facts).unwrap();
            let config = text(&plan, CONTAINERD).to_owned();
            (config.contains(CRUN), plan.files.into_iter().find(|file| file.path == Path::new(CRUN)))
        };
        let (named, file) = runtime(&facts(&two));
        let file = file.unwrap();
        assert!(named && file.mode == 0o755);
        let call = "exec '/usr/bin/rootless-launch' oci-runtime '/usr/bin/crun' \"$@\"";
        assert!(file.text.contains(call), "{}", file.text);
        let delegated = NodeFacts { cgroups: Cgroups::Delegated, ..facts(&two) };
        assert_eq!(runtime(&delegated), (false, None));
        assert_eq!(runtime(&facts(&ALL)), (false, None));
    }

    #[test]
    fn crio_has_its_images_from_skopeo() {
        let more = [
            (Program::Crio, "1.36.3"),
            (Program::Conmon, "2.1.12"),
            (Program::Pinns, ""),
            (Program::Skopeo, "1.18.0"),
        ];
        let mut facts = facts(&[&ALL[..], &more].concat());
        let crio = args(&["--cri=crio", "--image-archive=/a"]);
        let Composition { plan, .. } = compose(&crio, &facts).unwrap();
        assert_eq!(
            names(&plan),
            ["crio", "host-ports", "images < crio", "pods < crio", "kubelet < crio < images < pods"]
        );
        assert!(text(&plan, "/etc/kubernetes/kubelet.yaml").contains("unix:///run/crio/crio.sock"));
        assert!(
            text(&plan, "/etc/crio/crio.conf")
                .contains("runtime_path = \"/run/rootless-launch/oci-runtime/crun\"")
        );
        let storage =
            "containers-storage:[overlay@/var/lib/containers/storage+/run/containers/storage]".to_owned();
        let images =
            Task::CrioImages { skopeo: "/usr/bin/skopeo".into(), storage, archives: vec!["/a".into()] };
        assert_eq!(task(&plan.units[2]), images);
        assert_eq!(task(&plan.units[3]), Task::StopPods { socket: layout::CRIO_SOCKET.into() });
        let wanted = Some(PathBuf::from("/run/containers/storage/overlay-containers"));
        let ports = task(&plan.units[1]);
        assert!(matches!(&ports, Task::HostPorts { sandboxes, .. } if *sandboxes == wanted), "{ports:?}");

        facts.programs.remove(&Program::Skopeo);
        let error = compose(&crio, &facts).unwrap_err().to_string();
        assert!(error.contains("skopeo was not found; get it from: Debian package skopeo"), "{error}");
        assert!(compose(&args(&["--cri=crio"]), &facts).is_ok());
    }
}
