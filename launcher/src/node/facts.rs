//! Collects [`NodeFacts`].

use std::env;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use nix::unistd::gethostname;

use super::args::NodeArgs;
use super::plan::{NodeError, NodeFacts, Works, programs};
use crate::apply::programs::survey;
use crate::check;
use crate::components::Cgroups;
use crate::components::kubeconfig::Kubeconfig;
use crate::components::programs::SearchPath;
use crate::plan::cgroup::{CgroupFacts, CgroupPlan, Hierarchy};
use crate::plan::facts::HostFacts;
use crate::plan::surroundings::{self, DEFAULT_NODE_NAME};

/// Where programs of the system are that PATH of an ordinary user often leaves out.
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const FIRST_UNPRIVILEGED: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// Asks the machine: finds programs and asks them for their versions, tries an overlay, reads the user's files.
///
/// `cgroup` is where the launcher is by now.
///
/// # Errors
/// A file that is named cannot be had inside a node.
pub(super) fn collect(
    args: &NodeArgs,
    host: &HostFacts,
    data: &Path,
    address: Ipv4Addr,
    cgroup: (&CgroupPlan, &CgroupFacts),
) -> Result<NodeFacts, NodeError> {
    let files = [
        ("--kubeconfig", &args.kubeconfig),
        ("--bootstrap-kubeconfig", &args.bootstrap_kubeconfig),
        ("--static-pods", &args.static_pods),
        ("--etcd-ca", &args.etcd_ca),
        ("--etcd-cert", &args.etcd_cert),
        ("--etcd-key", &args.etcd_key),
    ];
    let several = [
        ("--image-archive", &args.image_archive),
        ("--bin-dir", &args.bin_dir),
        ("--cni-bin-dir", &args.cni_bin_dir),
    ];
    let several =
        several.into_iter().flat_map(|(option, paths)| paths.iter().map(move |path| (option, path)));
    let files = files.into_iter().filter_map(|(option, path)| Some((option, path.as_ref()?)));
    files.chain(several).try_for_each(|(option, path)| readable(option, path))?;
    let kubelet_patch = args.kubelet_config.as_ref().map(|path| {
        fs::read_to_string(path).map_err(|error| unusable("--kubelet-config", path, &error.to_string()))
    });
    let cluster =
        [("--kubeconfig", &args.kubeconfig), ("--bootstrap-kubeconfig", &args.bootstrap_kubeconfig)];
    let cluster = cluster.into_iter().find_map(|(option, path)| Some(kubeconfig(option, path.as_ref()?)));
    let cluster = cluster.transpose()?;
    let path = env::var_os("PATH");
    let search = SearchPath::new(&args.bin_dir, &args.cni_bin_dir, path.as_deref());
    let own = args.bin_dir.iter().map(|directory| directory.display().to_string());
    let path =
        own.chain(path.map(|path| path.to_string_lossy().into_owned())).chain([SYSTEM_PATH.to_owned()]);
    let first_unprivileged = fs::read_to_string(FIRST_UNPRIVILEGED).ok();
    let host_name = gethostname().ok().and_then(|name| name.into_string().ok());
    let works = |works: bool| if works { Works::Yes } else { Works::No };
    let mut programs = survey(&programs(args), &search);
    // By PATH; nobody could write it into the plan.
    programs.retain(|_, installed| installed.path.to_str().is_some());
    Ok(NodeFacts {
        // Where /proc is not, nothing that follows works either.
        ourselves: env::current_exe().unwrap_or_default(),
        programs,
        path: path.collect::<Vec<_>>().join(":"),
        cgroups: cgroups(cgroup),
        cgroup2_alone: cgroup.1.hierarchy == Hierarchy::Unified,
        overlayfs: works(check::overlay(host, data).is_ok()),
        fuse: works(File::options().read(true).write(true).open("/dev/fuse").is_ok()),
        host_name: host_name.unwrap_or_else(|| DEFAULT_NODE_NAME.to_owned()),
        public_ips: public_ips(cluster.as_ref()),
        first_unprivileged: first_unprivileged.and_then(|text| text.trim().parse().ok()).unwrap_or(1024),
        address,
        state_dir: host.state_dir.clone(),
        log_dir: log_dir(host),
        kubelet_patch: kubelet_patch.transpose()?,
        cluster,
    })
}

/// Reads it and looks whether what it names is to be had inside.
fn kubeconfig(option: &'static str, path: &Path) -> Result<Kubeconfig, NodeError> {
    let text = fs::read_to_string(path).map_err(|error| unusable(option, path, &error.to_string()))?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    let config = Kubeconfig::parse(&text, directory).map_err(|source| NodeError::Kubeconfig {
        option,
        path: path.to_owned(),
        source,
    })?;
    for file in &config.files {
        readable(option, file).map_err(|error| match error {
            NodeError::File { path: file, reason, .. } => {
                unusable(option, path, &format!("it names {}: {reason}", file.display()))
            }
            other => other,
        })?;
    }
    Ok(config)
}

fn cgroups((plan, facts): (&CgroupPlan, &CgroupFacts)) -> Cgroups {
    match plan {
        CgroupPlan::Delegated(_) => match facts.missing()[..] {
            [] => Cgroups::Delegated,
            ["cpu"] => Cgroups::DelegatedWithoutCpu,
            // kubelet ends when it cannot limit memory or processes.
            _ => Cgroups::Withheld,
        },
        CgroupPlan::Untouched | CgroupPlan::Without(_) => Cgroups::Withheld,
    }
}

/// The addresses that the host would send from, that of the API server's family first; nothing is sent.
fn public_ips(cluster: Option<&Kubeconfig>) -> Vec<IpAddr> {
    // For documentation (RFC 5737, RFC 3849): by the default route, wherever that is.
    const ANYWHERE: [IpAddr; 2] =
        [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];
    let mut addresses: Vec<IpAddr> = ANYWHERE.into_iter().filter_map(source_towards).collect();
    if cluster.and_then(Kubeconfig::server_address).is_some_and(|server| server.is_ipv6()) {
        addresses.reverse();
    }
    addresses
}

fn source_towards(anywhere: IpAddr) -> Option<IpAddr> {
    let unspecified = match anywhere {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((unspecified, 0)).ok()?;
    socket.connect(SocketAddr::new(anywhere, 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    let leads_here = match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    };
    (leads_here && !address.is_loopback() && !address.is_unspecified()).then_some(address)
}

fn log_dir(host: &HostFacts) -> PathBuf {
    let given = env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let state = given.unwrap_or_else(|| host.home.join(".local/state"));
    let name = host.state_dir.file_name().unwrap_or(DEFAULT_NODE_NAME.as_ref());
    state.join("rootless-launch").join(name).join("log")
}

fn readable(option: &'static str, path: &Path) -> Result<(), NodeError> {
    if path.to_str().is_none() {
        return Err(unusable(option, path, "it is not UTF-8, as the plan of a node is; rename it"));
    }
    if let Some(hidden) = surroundings::hiding(path) {
        let reason = format!(
            "a node has a {} of its own and does not see the host's; put it elsewhere",
            hidden.display()
        );
        return Err(unusable(option, path, &reason));
    }
    let opened = if path.is_dir() { fs::read_dir(path).map(drop) } else { File::open(path).map(drop) };
    opened.map_err(|error| unusable(option, path, &error.to_string()))
}

fn unusable(option: &'static str, path: &Path, reason: &str) -> NodeError {
    NodeError::File { option, path: path.to_owned(), reason: reason.to_owned() }
}
