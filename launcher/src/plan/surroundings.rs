//! What a command finds around it: as little as possible, or what a Kubernetes node needs.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};

use forwarder::spec::{PortFields, PortSpec, Proto};
use serde::Serialize;

use super::facts::HostFacts;
use super::mounts::MountStep;
use super::net::TAP_NAME;
use crate::cli::{NetArg, PropagationArg, RunArgs, SurroundingsArg};
use crate::error::UsageError;

/// Name of a node that is not given one.
pub const DEFAULT_NODE_NAME: &str = "node";

/// Programs that are parts of a node, and the TCP ports that they are to be found at.
const PROGRAMS: [(&str, &[u16]); 10] = [
    ("kubelet", &[KUBELET_PORT]),
    ("containerd", &[]),
    ("crio", &[]),
    ("cri-o", &[]),
    ("flanneld", &[]),
    ("dockerd", &[]),
    ("buildkitd", &[]),
    ("k3s", &[KUBELET_PORT]),
    ("rke2", &[KUBELET_PORT]),
    ("k0s", &[KUBELET_PORT]),
];

/// Where the API server finds the kubelet.
const KUBELET_PORT: u16 = 10250;

/// Directories that a node writes to, with what it must not see of the host's: sockets, locks and settings of the host's own
/// container runtimes.
const COPIED_UP: [(&str, &[&str]); 5] = [
    ("/etc", &["cni", "containerd", "containers", "crio", "kubernetes"]),
    ("/run", &["xtables.lock", "flannel", "netns", "runc", "crun", "containerd", "containers", "crio"]),
    // What CNI remembers is about this life of the network namespace.
    ("/var/lib", &["cni"]),
    ("/opt", &[]),
    ("/var/cache", &[]),
];

/// Directories that outlive the node, below its data directory. Those of /var/lib and /etc hide the host's.
const PERSISTENT: [&str; 10] = [
    "/var/lib/kubelet",
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/lib/docker",
    "/var/lib/etcd",
    "/var/lib/rancher",
    "/var/log",
    "/etc/cni/net.d",
    "/etc/containerd",
    "/etc/kubernetes",
];

/// Where container runtimes look for CNI plugins.
pub const CNI_PLUGINS: &str = "/opt/cni/bin";

/// Which surroundings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// User, mount and network namespaces, and the host's files.
    Plain,
    /// All namespaces, and directories of its own where a node writes.
    Node,
}

impl Kind {
    /// What is asked for, or, if nothing is, what the command's name says.
    pub fn of(args: &RunArgs) -> Self {
        match args.surroundings {
            SurroundingsArg::Plain => Kind::Plain,
            SurroundingsArg::Node => Kind::Node,
            SurroundingsArg::Auto => match program(args) {
                Some(_) => Kind::Node,
                None => Kind::Plain,
            },
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Plain => "plain",
            Kind::Node => "node",
        })
    }
}

/// A file below /proc/sys and what is written to it, in the child.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sysctl {
    /// Path below /proc/sys.
    pub name: String,
    /// What is written.
    pub value: &'static str,
}

impl fmt::Display for Sysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.name.replace('/', "."), self.value)
    }
}

/// What a command finds around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// Which.
    pub kind: Kind,
    /// How mounts spread, unless `--propagation` says.
    pub propagation: PropagationArg,
    /// Directories to copy up, each with the names to leave out.
    pub copy_up: Vec<(PathBuf, Vec<String>)>,
    /// What is mounted when they are.
    pub mounts: Vec<MountStep>,
    /// Settings of the child's network. One that the kernel does not have is no error.
    pub sysctls: Vec<Sysctl>,
    /// Ports that are published besides those asked for, unless these are about the same.
    pub published: Vec<PortSpec>,
    /// Where a node keeps what outlives it.
    pub data: Option<PathBuf>,
}

impl Surroundings {
    /// Decides by the options and the command's name.
    ///
    /// # Errors
    /// The data directory cannot be where it is.
    pub fn new(args: &RunArgs, facts: &HostFacts) -> Result<Self, UsageError> {
        match Kind::of(args) {
            Kind::Plain => Ok(Surroundings {
                kind: Kind::Plain,
                propagation: PropagationArg::Rslave,
                copy_up: Vec::new(),
                mounts: Vec::new(),
                sysctls: Vec::new(),
                published: Vec::new(),
                data: None,
            }),
            Kind::Node => Surroundings::node(args, facts),
        }
    }

    fn node(args: &RunArgs, facts: &HostFacts) -> Result<Self, UsageError> {
        let data = data_directory(args, facts);
        let hidden = PERSISTENT.iter().find(|target| data.starts_with(target));
        if let Some(target) = hidden {
            return Err(UsageError::HiddenData { path: data, target });
        }
        Ok(Surroundings {
            kind: Kind::Node,
            // Mounts of a pod's (Bidirectional) have to reach the kubelet and other pods.
            propagation: PropagationArg::Rshared,
            copy_up: copy_up(&data, facts),
            mounts: mounts(&data, facts),
            sysctls: sysctls(args),
            published: published(args),
            data: Some(data),
        })
    }
}

/// The one of `--data-dir`, else that of the instance's name.
fn data_directory(args: &RunArgs, facts: &HostFacts) -> PathBuf {
    let named = || {
        let name = facts.state_dir.file_name().unwrap_or(OsStr::new(DEFAULT_NODE_NAME));
        facts.data_home.join("rootless-launch").join(name)
    };
    args.data_dir.clone().unwrap_or_else(named)
}

/// The directory of a node's own that hides this path of the host's, if one does.
pub fn hiding(path: &Path) -> Option<PathBuf> {
    let left_out = COPIED_UP
        .iter()
        .flat_map(|(directory, names)| names.iter().map(move |name| Path::new(directory).join(name)));
    PERSISTENT.iter().map(PathBuf::from).chain(left_out).find(|hidden| path.starts_with(hidden))
}

/// Nothing that leads to a directory of ours or of the user's is left out.
fn copy_up(data: &Path, facts: &HostFacts) -> Vec<(PathBuf, Vec<String>)> {
    let kept = [data, &facts.state_dir, &facts.home];
    let made = Path::new(CNI_PLUGINS);
    let persistent = |directory: &Path| {
        let ours = PERSISTENT.iter().map(Path::new).chain((!facts.cni_plugins_exist).then_some(made));
        let names = ours.filter_map(move |target| {
            let rest = target.strip_prefix(directory).ok()?;
            rest.iter().next().map(|name| name.to_string_lossy().into_owned())
        });
        names.collect::<Vec<_>>()
    };
    COPIED_UP
        .iter()
        .map(|(directory, leave_out)| {
            let directory = PathBuf::from(directory);
            let mut names = persistent(&directory);
            names.extend(leave_out.iter().map(|&name| name.to_owned()));
            names.sort_unstable();
            names.dedup();
            names.retain(|name| !kept.iter().any(|path| path.starts_with(directory.join(name))));
            (directory, names)
        })
        .collect()
}

fn mounts(data: &Path, facts: &HostFacts) -> Vec<MountStep> {
    let mut steps = Vec::new();
    for target in PERSISTENT {
        let source = data.join(target.trim_start_matches('/'));
        steps.push(MountStep::Directory { path: source.clone() });
        // What is not copied up is there.
        if COPIED_UP.iter().any(|(directory, _)| Path::new(target).starts_with(directory)) {
            steps.push(MountStep::Directory { path: target.into() });
        }
        steps.push(MountStep::Bind { source, target: target.into() });
    }
    if !facts.cni_plugins_exist {
        steps.push(MountStep::Directory { path: CNI_PLUGINS.into() });
    }
    if !facts.kmsg_opens {
        // The kubelet before 1.37 ends when it cannot open this.
        steps.push(MountStep::Bind { source: "/dev/null".into(), target: "/dev/kmsg".into() });
    }
    steps
}

fn sysctls(args: &RunArgs) -> Vec<Sysctl> {
    if args.net == NetArg::Host {
        return Vec::new();
    }
    let sysctl = |name: &str, value| Sysctl { name: name.to_owned(), value };
    let mut sysctls = vec![
        sysctl("net/ipv4/ip_forward", "1"),
        // Else pods are not told of a path that is narrower than their network says.
        sysctl("net/ipv4/ip_forward_use_pmtu", "1"),
        sysctl("net/ipv6/conf/all/forwarding", "1"),
        sysctl("net/bridge/bridge-nf-call-iptables", "1"),
        sysctl("net/bridge/bridge-nf-call-ip6tables", "1"),
        // NodePorts at 127.0.0.1, which iptables leads elsewhere.
        sysctl("net/ipv4/conf/all/route_localnet", "1"),
        sysctl("net/ipv4/ip_unprivileged_port_start", "0"),
    ];
    // The overlay's datagrams come by the TAP, where their answers go, and pass a strict filter; pods with routes of their own
    // would not. Loose holds also where somebody sets strict for a device, because the larger of both counts.
    for device in ["all", "default", TAP_NAME] {
        if device != TAP_NAME || args.net == NetArg::Engine {
            sysctls.push(sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "2"));
        }
    }
    sysctls
}

/// Where the command is known to listen.
fn published(args: &RunArgs) -> Vec<PortSpec> {
    let ports = if args.net == NetArg::Engine { program(args).unwrap_or_default() } else { &[] };
    ports.iter().filter_map(|&port| PortFields::new(Proto::Tcp, port, port).try_into().ok()).collect()
}

/// The ports of the command, if it is known as part of a node.
fn program(args: &RunArgs) -> Option<&'static [u16]> {
    let name = Path::new(args.cmd.first()?).file_name()?;
    PROGRAMS.iter().find(|(program, _)| name == *program).map(|(_, ports)| *ports)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    fn args(options: &[&str], cmd: &str) -> RunArgs {
        let cmd = ["--", cmd, "--v=2"];
        let args = ["rootless-launch"].iter().chain(options).chain(&cmd);
        Cli::try_parse_from(args).unwrap().run
    }

    fn facts() -> HostFacts {
        HostFacts {
            home: "/home/ann".into(),
            data_home: "/home/ann/.local/share".into(),
            state_dir: "/run/user/1000/rootless-launch/node".into(),
            kmsg_opens: true,
            ..HostFacts::default()
        }
    }

    fn of(options: &[&str], cmd: &str) -> Surroundings {
        Surroundings::new(&args(options, cmd), &facts()).unwrap()
    }

    fn left_out(surroundings: &Surroundings, directory: &str) -> Vec<String> {
        let found = surroundings.copy_up.iter().find(|(path, _)| path == Path::new(directory));
        found.map(|(_, names)| names.clone()).unwrap_or_default()
    }

    #[test]
    fn the_command_s_name_chooses_unless_told() {
        assert_eq!(Kind::of(&args(&[], "/usr/bin/kubelet")), Kind::Node);
        assert_eq!(Kind::of(&args(&[], "kubelet-helper")), Kind::Plain);
        assert_eq!(Kind::of(&args(&["--surroundings=plain"], "kubelet")), Kind::Plain);
        assert_eq!(Kind::of(&args(&["--surroundings=node"], "sh")), Kind::Node);
    }

    #[test]
    fn the_hosts_runtimes_are_left_out() {
        let node = of(&[], "kubelet");
        assert_eq!(left_out(&node, "/etc"), ["cni", "containerd", "containers", "crio", "kubernetes"]);
        let run = ["containerd", "containers", "crio", "crun", "flannel", "netns", "runc", "xtables.lock"];
        assert_eq!(left_out(&node, "/run"), run);
        assert!(left_out(&node, "/var/lib").contains(&"kubelet".to_owned()));
        assert_eq!(left_out(&node, "/opt"), ["cni"]);
    }

    #[test]
    fn plugins_that_the_host_has_stay() {
        let facts = HostFacts { cni_plugins_exist: true, ..facts() };
        let node = Surroundings::new(&args(&[], "kubelet"), &facts).unwrap();
        assert!(left_out(&node, "/opt").is_empty());
        assert!(!node.mounts.contains(&MountStep::Directory { path: "/opt/cni/bin".into() }));
    }

    #[test]
    fn what_leads_to_our_own_directories_is_never_left_out() {
        let facts = HostFacts { home: "/var/lib/kubelet/home".into(), ..facts() };
        let node = Surroundings::new(&args(&[], "kubelet"), &facts).unwrap();
        assert!(!left_out(&node, "/var/lib").contains(&"kubelet".to_owned()));
        let facts = HostFacts { data_home: "/var/lib/kubelet/home/.local/share".into(), ..facts };
        let error = Surroundings::new(&args(&[], "kubelet"), &facts).unwrap_err().to_string();
        assert!(error.contains("--data-dir") && error.contains("/var/lib/kubelet"), "{error}");
    }

    #[test]
    fn what_outlives_the_node_is_named_after_it() {
        let bind =
            |source: &str, target: &str| MountStep::Bind { source: source.into(), target: target.into() };
        let node = of(&[], "kubelet");
        let kubelet = bind("/home/ann/.local/share/rootless-launch/node/var/lib/kubelet", "/var/lib/kubelet");
        assert!(node.mounts.contains(&kubelet));
        let chosen = of(&["--data-dir=/data/n1"], "kubelet");
        assert!(chosen.mounts.contains(&bind("/data/n1/var/log", "/var/log")));
        // There on every host, and not ours to write to.
        assert!(!chosen.mounts.contains(&MountStep::Directory { path: "/var/log".into() }));
    }

    #[test]
    fn the_kernel_log_is_masked_where_it_cannot_be_read() {
        let mask = MountStep::Bind { source: "/dev/null".into(), target: "/dev/kmsg".into() };
        assert!(!of(&[], "kubelet").mounts.contains(&mask));
        let closed = Surroundings::new(&args(&[], "kubelet"), &HostFacts { kmsg_opens: false, ..facts() });
        assert!(closed.unwrap().mounts.contains(&mask));
    }

    #[test]
    fn the_kubelet_is_published() {
        let ports = |options: &[&str], cmd: &str| -> Vec<String> {
            of(options, cmd).published.iter().map(ToString::to_string).collect()
        };
        assert_eq!(ports(&[], "kubelet"), ["10250:10250/tcp"]);
        assert!(ports(&["--net=none"], "kubelet").is_empty());
        assert!(ports(&[], "containerd").is_empty());
        assert!(ports(&["--surroundings=node"], "sh").is_empty());
    }

    #[test]
    fn sysctls_are_those_of_the_childs_own_network() {
        let names = |options: &[&str]| -> Vec<String> {
            of(options, "kubelet").sysctls.iter().map(ToString::to_string).collect()
        };
        assert!(names(&[]).contains(&"net.ipv4.ip_forward = 1".to_owned()));
        assert!(names(&[]).contains(&"net.ipv4.conf.tap0.rp_filter = 2".to_owned()));
        assert!(!names(&["--net=none"]).iter().any(|line| line.contains("tap0")));
        assert!(names(&["--net=host"]).is_empty());
    }
}
