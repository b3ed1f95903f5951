//! What was tried and read, as it turned out. `trials` collects it, [`super::judge`] says what it means.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::apply::programs::Installed;
use crate::components::programs::Program;
use crate::error::Failure;
use crate::hint::Machine;
use crate::plan::cgroup::{CgroupMode, Hierarchy};
use crate::plan::facts::HostFacts;

/// How a trial went.
pub type Outcome = Result<(), Failure>;

/// All facts.
#[derive(Clone, Debug)]
pub struct Facts {
    /// What a launch asks about the host.
    pub host: HostFacts,
    /// Settings that forbid namespaces.
    pub machine: Machine,
    /// What a launch needs.
    pub launch: LaunchFacts,
    /// What a node needs; not asked for a launch.
    pub node: Option<NodeFacts>,
}

/// What a launch needs.
#[derive(Clone, Debug)]
pub struct LaunchFacts {
    /// User, mount and network namespaces; what follows is tried in them, if they can be made.
    pub namespaces: Outcome,
    /// The TAP device.
    pub tap: Outcome,
    /// The relay for outbound connections, with its rules (nf_tables: inet, chains of type route, meta, ct).
    pub relay: Outcome,
    /// A tmpfs and a file over another.
    pub mounts: Outcome,
    /// Ids that newuidmap and newgidmap have really mapped; `None` if the plan has no use for them.
    pub mapped: Option<Result<Mapped, Failure>>,
    /// How many layers of the engine's sandbox are missing, and which there are or are not.
    pub sandbox: Result<(i32, String), String>,
    /// A ping socket; errno(3).
    pub ping: Result<(), i32>,
    /// Overlaps of the default networks with the host's.
    pub overlaps: Vec<String>,
    /// /etc/resolv.conf is there.
    pub resolv_conf: bool,
    /// NoNewPrivs of this process.
    pub no_new_privileges: bool,
    /// /etc/subuid or /etc/subgid is a symbolic link, which newuidmap does not follow.
    pub linked: Option<&'static str>,
}

/// How many ids both maps have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// User ids, our own one included.
    pub users: u64,
    /// Group ids, our own one included.
    pub groups: u64,
}

/// What a node needs.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    /// What was tried in the namespaces of a node; or why they could not be made.
    pub inside: Result<Inside, Failure>,
    /// Whether systemd runs this machine.
    pub systemd: bool,
    /// XDG_RUNTIME_DIR.
    pub runtime_directory: RuntimeDirectory,
    /// Whether the user's services outlive his sessions; `None` without logind.
    pub lingers: Option<bool>,
    /// The user's message bus can be connected to.
    pub bus: bool,
    /// What is mounted on /sys/fs/cgroup.
    pub cgroups: Hierarchy,
    /// Whether that has to be there.
    pub cgroup: CgroupMode,
    /// The controllers of the cgroup that a launch gets; or why it gets none.
    pub delegation: Result<Vec<String>, String>,
    /// `/dev/fuse` can be opened; errno(3).
    pub fuse: Result<(), i32>,
    /// Kernel modules.
    pub modules: Modules,
    /// `net.bridge.bridge-nf-call-iptables` is there: br_netfilter is.
    pub bridge_netfilter: bool,
    /// Kernel parameters; those that are not there are not in it.
    pub sysctls: BTreeMap<&'static str, u64>,
    /// Hard limit of open files.
    pub open_files: u64,
    /// Hard limit of this user's processes, or of the cgroup's; the smaller.
    pub processes: u64,
    /// Ports that a node publishes.
    pub ports: Vec<Port>,
    /// What is installed.
    pub programs: BTreeMap<Program, Installed>,
    /// Where the data of nodes is.
    pub data: DataDirectory,
    /// Whether there is swap.
    pub swap: bool,
    /// SELinux enforces.
    pub selinux: bool,
}

/// What was tried in the namespaces of a node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Inside {
    /// File systems of its own that a node mounts: proc, sysfs, cgroup2.
    pub file_systems: Vec<(String, Outcome)>,
    /// An overlay in the data directory: mounted, written to, with a file of the lower layer changed and one deleted.
    pub overlay: Outcome,
    /// Network devices: bridge, veth, vxlan.
    pub devices: Vec<(String, Outcome)>,
    /// nf_tables expressions, each in a rule of its own.
    pub expressions: Vec<(String, Outcome)>,
    /// iptables matches and targets, and what the program complains of; empty without iptables.
    pub iptables: Vec<(String, Result<(), String>)>,
}

/// XDG_RUNTIME_DIR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeDirectory {
    /// It is set and ours.
    Good,
    /// It is not set, but there is the usual one.
    Unset(PathBuf),
    /// There is none.
    Missing,
    /// It is set to something that cannot be used; why.
    Bad(PathBuf, &'static str),
}

/// Kernel modules by name, as text.
#[derive(Clone, Debug, Default)]
pub struct Modules {
    /// /proc/modules.
    pub loaded: String,
    /// modules.builtin of the running kernel.
    pub builtin: String,
    /// modules.dep of the running kernel.
    pub available: String,
}

/// Where a kernel module is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModulePlace {
    /// In the kernel, loaded or built in.
    Kernel,
    /// On the disk.
    Disk,
    /// Nowhere that we see.
    Nowhere,
}

impl Modules {
    /// Where the module `name` is.
    pub fn place(&self, name: &str) -> ModulePlace {
        // File names have dashes or underscores as their authors liked; /proc/modules has underscores.
        let is = |candidate: &str| candidate.replace('-', "_") == name.replace('-', "_");
        let of_path = |line: &str| {
            let path = line.split(':').next().unwrap_or_default();
            let file = path.rsplit('/').next().unwrap_or_default();
            file.split_once(".ko").is_some_and(|(stem, _)| is(stem))
        };
        if self.loaded.lines().any(|line| line.split(' ').next().is_some_and(is))
            || self.builtin.lines().any(of_path)
        {
            return ModulePlace::Kernel;
        }
        if self.available.lines().any(of_path) { ModulePlace::Disk } else { ModulePlace::Nowhere }
    }
}

/// A port that a node publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// `10250/tcp`.
    pub name: &'static str,
    /// Whether it could be bound, and if not why.
    pub state: PortState,
}

/// Whether a port can be bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortState {
    /// Yes.
    Free,
    /// An instance of ours has it.
    Ours,
    /// Somebody else has it; who, if it is a process of the same user.
    Taken(Option<String>),
    /// bind(2) failed otherwise.
    Refused(i32),
}

/// Where the data of nodes is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDirectory {
    /// The directory; it need not be there yet.
    pub path: PathBuf,
    /// The file system of the nearest directory that is there, or why nothing can be written.
    pub file_system: Result<FileSystem, String>,
}

/// Kinds of file systems, as far as they matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// On a disk of this machine, as far as we know.
    Local,
    /// tmpfs, ramfs.
    Memory,
    /// NFS, CIFS, 9p and the like; name.
    Network(&'static str),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_found_whatever_their_dashes() {
        let modules = Modules {
            loaded: "br_netfilter 32768 0 - Live 0x0\nbridge 1 1 br_netfilter, Live 0x0\n".into(),
            builtin: "kernel/drivers/net/tun.ko\n".into(),
            available: "kernel/drivers/net/vxlan/vxlan.ko.xz: kernel/net/ipv4/udp_tunnel.ko.xz\n\
                        kernel/fs/nf-x.ko:\n"
                .into(),
        };
        for (name, place) in [
            ("br_netfilter", ModulePlace::Kernel),
            ("br-netfilter", ModulePlace::Kernel),
            ("tun", ModulePlace::Kernel),
            ("vxlan", ModulePlace::Disk),
            ("nf_x", ModulePlace::Disk),
            ("udp_tunnel", ModulePlace::Nowhere),
            ("br", ModulePlace::Nowhere),
        ] {
            assert_eq!(modules.place(name), place, "{name}");
        }
    }
}
