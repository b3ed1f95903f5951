//! Programs that others wrote: what each is called, how it tells its version, which one is old enough to fail, and
//! where it comes from. Pure; [`crate::apply::programs`] finds and asks them.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};

/// Where a system administrator's programs are, which the PATH of an ordinary user often leaves out.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
/// Where distributions and the CNI project put CNI plugins.
const CNI_DIRECTORIES: [&str; 3] = ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"];

macro_rules! programs {
    ($($(#[$doc:meta])* $name:ident = $file:literal,)*) => {
        /// A program that a launch or a node may use.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Program {
            $($(#[$doc])* $name,)*
        }

        impl Program {
            /// Every program.
            pub const ALL: &[Program] = &[$(Program::$name),*];

            /// Name of its file.
            pub fn file_name(self) -> &'static str {
                match self { $(Program::$name => $file,)* }
            }
        }
    };
}

programs! {
    /// The CRI runtime.
    Containerd = "containerd",
    /// What containerd starts for each pod.
    ContainerdShim = "containerd-shim-runc-v2",
    /// containerd's own client; imports images.
    Ctr = "ctr",
    /// The other CRI runtime.
    Crio = "crio",
    /// What CRI-O starts for each container.
    Conmon = "conmon",
    /// What CRI-O starts to keep namespaces.
    Pinns = "pinns",
    /// Brings images to where CRI-O keeps them.
    Skopeo = "skopeo",
    /// OCI runtime in C.
    Crun = "crun",
    /// OCI runtime in Go.
    Runc = "runc",
    /// The node's agent.
    Kubelet = "kubelet",
    /// Routes between nodes.
    Flanneld = "flanneld",
    /// flannel's store without an API server.
    Etcd = "etcd",
    /// Client of the API server.
    Kubectl = "kubectl",
    /// CRI client.
    Crictl = "crictl",
    /// Overlay file system without the kernel's.
    FuseOverlayfs = "fuse-overlayfs",
    /// containerd's snapshotter for it.
    FuseOverlayfsSnapshotter = "containerd-fuse-overlayfs-grpc",
    /// mount(8) helper that fuse-overlayfs is mounted by.
    MountFuse3 = "mount.fuse3",
    /// Rules of CNI plugins, kube-proxy and flanneld.
    Iptables = "iptables",
    /// The newer tool for the same.
    Nft = "nft",
    /// Flushes stale UDP flows for kube-proxy.
    Conntrack = "conntrack",
    /// CNI: pods on a bridge.
    CniBridge = "bridge",
    /// CNI: addresses from a range of this host.
    CniHostLocal = "host-local",
    /// CNI: the pod's loopback device.
    CniLoopback = "loopback",
    /// CNI: hostPort.
    CniPortmap = "portmap",
    /// CNI: hands over to bridge with what flanneld says.
    CniFlannel = "flannel",
    /// Maps subordinate user ids.
    Newuidmap = "newuidmap",
    /// Maps subordinate group ids.
    Newgidmap = "newgidmap",
    /// Lists subordinate ids of the name service too.
    Getsubids = "getsubids",
    /// Starts units of the user's service manager.
    SystemdRun = "systemd-run",
}

/// Where to get a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Package of Debian 13.
    pub debian: Option<&'static str>,
    /// Import path for `go build` (`go install` refuses k8s.io/kubernetes, whose go.mod replaces modules).
    pub go: Option<&'static str>,
    /// Page with released binaries.
    pub page: Option<&'static str>,
}

impl Origin {
    /// In words, of programs that come from the same place.
    pub fn of_all(programs: &[Program]) -> String {
        describe(&programs.iter().map(|program| program.origin()).collect::<Vec<_>>())
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&describe(&[*self]))
    }
}

fn describe(origins: &[Origin]) -> String {
    let list = |place: fn(&Origin) -> Option<&'static str>| {
        let mut places: Vec<&str> = origins.iter().filter_map(place).collect();
        places.dedup();
        (!places.is_empty()).then(|| places.join(" "))
    };
    let kinds = [
        ("Debian package", list(|origin| origin.debian)),
        ("Go import path", list(|origin| origin.go)),
        ("releases:", list(|origin| origin.page)),
    ];
    let named = kinds.into_iter().filter_map(|(kind, places)| Some(format!("{kind} {}", places?)));
    named.collect::<Vec<_>>().join(", ")
}

/// A version as far as it is compared. What follows (`~ds1`, `+unknown`, `-rc.1`) does not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number, 0 if there is none.
    pub minor: u32,
    /// Third number, 0 if there is none.
    pub patch: u32,
}

impl Version {
    /// These three numbers.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Version { major, minor, patch }
    }

    /// The version at the beginning of a word, with or without a `v` before it.
    pub fn parse(word: &str) -> Option<Self> {
        let word = word.strip_prefix('v').unwrap_or(word);
        let end = word.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(word.len());
        let (numbers, _) = word.split_at(end);
        let mut numbers = numbers.split('.');
        let major = numbers.next()?.parse().ok()?;
        let mut next = || numbers.next().and_then(|number| number.parse().ok()).unwrap_or(0);
        Some(Version { major, minor: next(), patch: next() })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Whether a version will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suitability {
    /// As far as is known.
    Good,
    /// It lacks what we need.
    TooOld {
        /// The first that has it.
        minimum: Version,
        /// What that is.
        needed: &'static str,
    },
    /// It has a known fault.
    Faulty(&'static str),
}

impl Program {
    /// Arguments that make it print its version; `None` if it has no such thing. CNI plugins tell when they are
    /// started without `CNI_COMMAND`.
    pub fn version_arguments(self) -> Option<&'static [&'static str]> {
        match self {
            Program::Newuidmap
            | Program::Newgidmap
            | Program::Getsubids
            | Program::Pinns
            | Program::Kubectl => None,
            Program::ContainerdShim => Some(&["-v"]),
            _ if self.is_cni() => Some(&[]),
            _ => Some(&["--version"]),
        }
    }

    /// Whether it is looked for among CNI plugins, not in PATH.
    pub fn is_cni(self) -> bool {
        matches!(
            self,
            Program::CniBridge
                | Program::CniHostLocal
                | Program::CniLoopback
                | Program::CniPortmap
                | Program::CniFlannel
        )
    }

    /// The version in what it printed; `None` if it does not know its own, as after a plain `go install`.
    pub fn parse_version(self, output: &str) -> Option<Version> {
        // What the line with the version begins with. Other lines have versions of libraries and specifications.
        let before = match self {
            Program::Containerd | Program::Ctr => "github.com/containerd/containerd",
            Program::ContainerdShim => "Version:",
            Program::Crio => "crio version",
            Program::Conmon => "conmon version",
            Program::Skopeo => "skopeo version",
            Program::Crun => "crun version",
            Program::Runc => "runc version",
            Program::Kubelet => "Kubernetes",
            Program::Etcd => "etcd Version:",
            Program::Crictl => "crictl version",
            Program::FuseOverlayfs => "fuse-overlayfs: version",
            Program::FuseOverlayfsSnapshotter => "containerd-fuse-overlayfs-grpc",
            Program::MountFuse3 => "fusermount3 version:",
            Program::Iptables => "iptables",
            Program::Nft => "nftables",
            Program::Conntrack => "conntrack",
            Program::SystemdRun => "systemd",
            Program::CniFlannel => "flannel",
            Program::CniBridge | Program::CniHostLocal | Program::CniLoopback | Program::CniPortmap => {
                "plugin"
            }
            _ => "",
        };
        let mut lines = output.lines().filter_map(|line| Some(line.split_once(before)?.1));
        let words = lines.next()?.split_ascii_whitespace();
        // "/v2" of a Go module sticks to what is before.
        words.filter(|word| !word.starts_with('/')).find_map(Version::parse)
    }

    /// The oldest that has what we use, and what that is.
    pub fn minimum(self) -> Option<(Version, &'static str)> {
        Some(match self {
            Program::Containerd | Program::ContainerdShim => {
                (Version::new(1, 7, 0), "settings of its version 2 configuration for user namespaces")
            }
            Program::Crio => (Version::new(1, 22, 0), "rootless operation (_CRIO_ROOTLESS)"),
            Program::Crun => (Version::new(1, 8, 0), "cgroup v2 in a user namespace"),
            Program::Runc => (Version::new(1, 1, 0), "cgroup v2 in a user namespace"),
            Program::Kubelet => {
                (Version::new(1, 27, 0), "containerRuntimeEndpoint in its configuration file")
            }
            Program::Flanneld => (Version::new(0, 25, 3), "the annotation public-ip-overwrite"),
            Program::Etcd => (Version::new(3, 4, 0), "the version 3 interface that flannel speaks"),
            Program::CniBridge | Program::CniHostLocal | Program::CniLoopback | Program::CniPortmap => {
                (Version::new(1, 0, 0), "version 1.0.0 of the CNI specification")
            }
            Program::SystemdRun => (Version::new(244, 0, 0), "delegation of the cpuset controller"),
            _ => return None,
        })
    }

    /// Whether this version will do.
    pub fn suitability(self, version: Version) -> Suitability {
        if let Some((minimum, needed)) = self.minimum().filter(|&(minimum, _)| version < minimum) {
            return Suitability::TooOld { minimum, needed };
        }
        if self == Program::Flanneld && (Version::new(0, 27, 4)..Version::new(0, 28, 5)).contains(&version) {
            return Suitability::Faulty(
                "it crashes without IPv6 when its network device goes away and comes back",
            );
        }
        Suitability::Good
    }

    /// Where to get it.
    pub fn origin(self) -> Origin {
        let of = |debian, go, page| Origin { debian, go, page };
        let debian = |package| of(Some(package), None, None);
        const CONTAINERD: &str = "https://github.com/containerd/containerd/releases";
        const CNI: &str = "https://github.com/containernetworking/plugins/releases";
        let cni = |go| of(Some("containernetworking-plugins"), Some(go), Some(CNI));
        match self {
            Program::Containerd => of(
                Some("containerd"),
                Some("github.com/containerd/containerd/v2/cmd/containerd"),
                Some(CONTAINERD),
            ),
            Program::ContainerdShim => of(
                Some("containerd"),
                Some("github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"),
                Some(CONTAINERD),
            ),
            Program::Ctr => {
                of(Some("containerd"), Some("github.com/containerd/containerd/v2/cmd/ctr"), Some(CONTAINERD))
            }
            Program::Crio => of(
                None,
                Some("github.com/cri-o/cri-o/cmd/crio"),
                Some("https://github.com/cri-o/cri-o/releases"),
            ),
            Program::Pinns => of(None, None, Some("https://github.com/cri-o/cri-o/releases")),
            Program::Conmon => debian("conmon"),
            Program::Skopeo => debian("skopeo"),
            Program::Crun => of(Some("crun"), None, Some("https://github.com/containers/crun/releases")),
            Program::Runc => of(
                Some("runc"),
                Some("github.com/opencontainers/runc"),
                Some("https://github.com/opencontainers/runc/releases"),
            ),
            Program::Kubelet => of(
                None,
                Some("k8s.io/kubernetes/cmd/kubelet"),
                Some("https://kubernetes.io/releases/download/"),
            ),
            Program::Flanneld => of(
                None,
                Some("github.com/flannel-io/flannel"),
                Some("https://github.com/flannel-io/flannel/releases"),
            ),
            Program::CniFlannel => of(
                None,
                Some("github.com/flannel-io/cni-plugin"),
                Some("https://github.com/flannel-io/cni-plugin/releases"),
            ),
            Program::Etcd => of(
                Some("etcd-server"),
                Some("go.etcd.io/etcd/server/v3"),
                Some("https://github.com/etcd-io/etcd/releases"),
            ),
            Program::Crictl => of(
                None,
                Some("sigs.k8s.io/cri-tools/cmd/crictl"),
                Some("https://github.com/kubernetes-sigs/cri-tools/releases"),
            ),
            Program::Kubectl => of(
                Some("kubernetes-client"),
                Some("k8s.io/kubernetes/cmd/kubectl"),
                Some("https://kubernetes.io/releases/download/"),
            ),
            Program::FuseOverlayfs => debian("fuse-overlayfs"),
            Program::FuseOverlayfsSnapshotter => of(
                None,
                Some(
                    "github.com/containerd/fuse-overlayfs-snapshotter/v2/cmd/containerd-fuse-overlayfs-grpc",
                ),
                Some("https://github.com/containerd/fuse-overlayfs-snapshotter/releases"),
            ),
            Program::MountFuse3 => debian("fuse3"),
            Program::Iptables => debian("iptables"),
            Program::Nft => debian("nftables"),
            Program::Conntrack => debian("conntrack"),
            Program::CniBridge => cni("github.com/containernetworking/plugins/plugins/main/bridge"),
            Program::CniHostLocal => cni("github.com/containernetworking/plugins/plugins/ipam/host-local"),
            Program::CniLoopback => cni("github.com/containernetworking/plugins/plugins/main/loopback"),
            Program::CniPortmap => cni("github.com/containernetworking/plugins/plugins/meta/portmap"),
            Program::Newuidmap | Program::Newgidmap => debian("uidmap"),
            Program::Getsubids => debian("uidmap"),
            Program::SystemdRun => debian("systemd"),
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_cni() {
            true => write!(f, "CNI plugin {}", self.file_name()),
            false => f.write_str(self.file_name()),
        }
    }
}

/// Where programs are looked for, the first place that has one wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SearchPath {
    /// `--bin-dir`: for programs and CNI plugins.
    pub bin_dirs: Vec<PathBuf>,
    /// `--cni-bin-dir`: for CNI plugins only.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// PATH, for programs only.
    pub path: Vec<PathBuf>,
}

impl SearchPath {
    /// These directories, and then the directories of PATH.
    pub fn new(bin_dirs: &[PathBuf], cni_bin_dirs: &[PathBuf], path: Option<&OsStr>) -> Self {
        SearchPath {
            bin_dirs: bin_dirs.to_vec(),
            cni_bin_dirs: cni_bin_dirs.to_vec(),
            path: path.map(|path| std::env::split_paths(path).collect()).unwrap_or_default(),
        }
    }

    /// Every file that would be this program, the most wanted first.
    pub fn candidates(&self, program: Program) -> impl Iterator<Item = PathBuf> + '_ {
        let (own, system): (&[PathBuf], &[&str]) = match program.is_cni() {
            true => (&self.cni_bin_dirs, &CNI_DIRECTORIES),
            false => (&self.path, &SYSTEM_DIRECTORIES),
        };
        // A directory for programs may keep its plugins beside them.
        let beside = self.bin_dirs.iter().filter_map(|directory| Some(directory.parent()?.join("cni")));
        let beside: Vec<PathBuf> = if program.is_cni() { beside.collect() } else { Vec::new() };
        let named = self.bin_dirs.iter().cloned().chain(beside).chain(own.iter().cloned());
        let all = named.chain(system.iter().map(PathBuf::from));
        // An empty entry of PATH means the working directory, which nobody wants here.
        all.filter(|directory| directory.as_path() != Path::new(""))
            .map(move |directory| directory.join(program.file_name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_programs_print() {
        let cases = [
            (
                Program::Containerd,
                "containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6+b4\n",
                "1.7.24",
            ),
            (Program::Containerd, "containerd github.com/containerd/containerd/v2 v2.3.4 9c1f2\n", "2.3.4"),
            (Program::Containerd, "containerd github.com/containerd/containerd/v2 2.3.4+unknown \n", "2.3.4"),
            (
                Program::ContainerdShim,
                "containerd-shim-runc-v2:\n  Version:  1.7.24~ds1\n  Revision: 1\n  Go version: go1.24.4\n",
                "1.7.24",
            ),
            (Program::Ctr, "ctr github.com/containerd/containerd 1.6.20~ds1\n", "1.6.20"),
            (Program::Crio, "crio version 1.36.3\n   GitCommit: 1.2.3\n", "1.36.3"),
            (Program::Conmon, "conmon version 2.1.12\ncommit: unknown\n", "2.1.12"),
            (Program::Crun, "crun version 1.21\ncommit: 10269840\nspec: 1.0.0\n", "1.21.0"),
            (Program::Runc, "runc version 1.1.15+ds1\ncommit: 1.1.15\nspec: 1.2.0\n", "1.1.15"),
            (Program::Kubelet, "Kubernetes v1.36.4\n", "1.36.4"),
            (Program::Kubelet, "W1122 some warning 1.2\nKubernetes v1.37.0-rc.1\n", "1.37.0"),
            (Program::Flanneld, "v0.28.9\n", "0.28.9"),
            (Program::Etcd, "etcd Version: 3.5.16\nGit SHA: Not provided\nGo Version: go1.24\n", "3.5.16"),
            (Program::Crictl, "crictl version v1.36.0\n", "1.36.0"),
            (Program::FuseOverlayfs, "fuse-overlayfs: version 1.14\nFUSE library version 3.17.2\n", "1.14.0"),
            (Program::MountFuse3, "fusermount3 version: 3.17.2\n", "3.17.2"),
            (Program::Iptables, "iptables v1.8.11 (nf_tables)\n", "1.8.11"),
            (Program::Nft, "nftables v1.1.3 (Commodore Bullmoose #4)\n", "1.1.3"),
            (Program::Conntrack, "conntrack v1.4.8 (conntrack-tools)\n", "1.4.8"),
            (
                Program::CniBridge,
                "CNI bridge plugin v1.1.1\nCNI protocol versions supported: 0.1.0\n",
                "1.1.1",
            ),
            (
                Program::CniFlannel,
                "CNI Plugin flannel version v1.9.1-flannel1 (linux/amd64) commit 1.2\n",
                "1.9.1",
            ),
            (Program::SystemdRun, "systemd 257 (257.8-1~deb13u2)\n+PAM +AUDIT\n", "257.0.0"),
        ];
        for (program, output, version) in cases {
            let parsed = program.parse_version(output).map(|version| version.to_string());
            assert_eq!(parsed.as_deref(), Some(version), "{program}: {output}");
        }
    }

    #[test]
    fn what_does_not_know_its_version_has_none() {
        let cases = [
            (Program::Runc, "runc version unknown\nspec: 1.2.0\ngo: go1.26\n"),
            (
                Program::CniBridge,
                "CNI bridge plugin version unknown\nCNI protocol versions supported: 0.1.0\n",
            ),
            (Program::Flanneld, "dev\n"),
            (Program::Crictl, "crictl version unknown\n"),
            (Program::Crun, ""),
            (Program::Kubelet, "Kubernetes v99999999999999999999\n"),
        ];
        for (program, output) in cases {
            assert_eq!(program.parse_version(output), None, "{program}: {output}");
        }
    }

    #[test]
    fn old_and_faulty_versions_are_told() {
        let judge = |program: Program, version| program.suitability(Version::parse(version).unwrap());
        assert!(matches!(
            judge(Program::Containerd, "1.6.20"),
            Suitability::TooOld { minimum: Version { major: 1, minor: 7, patch: 0 }, .. }
        ));
        assert_eq!(judge(Program::Containerd, "1.7.24~ds1"), Suitability::Good);
        assert!(matches!(judge(Program::Flanneld, "v0.28.4"), Suitability::Faulty(_)));
        assert_eq!(judge(Program::Flanneld, "v0.28.9"), Suitability::Good);
        assert_eq!(judge(Program::Nft, "0.0.1"), Suitability::Good);
    }

    #[test]
    fn every_program_comes_from_somewhere() {
        for &program in Program::ALL {
            assert_ne!(program.origin(), Origin::default(), "{program}");
        }
        assert_eq!(
            Origin::of_all(&[Program::Crun]),
            "Debian package crun, releases: https://github.com/containers/crun/releases"
        );
        let both = Origin::of_all(&[Program::Containerd, Program::Ctr]);
        assert!(both.starts_with("Debian package containerd, Go import path github.com/"), "{both}");
        assert_eq!(both.matches("/cmd/").count(), 2, "{both}");
    }

    #[test]
    fn own_directories_come_before_the_systems() {
        let path = SearchPath::new(&["/b/bin".into()], &["/c".into()], Some(OsStr::new("/usr/bin::/bin")));
        let of =
            |program| path.candidates(program).map(|file| file.display().to_string()).collect::<Vec<_>>();
        assert_eq!(
            of(Program::Runc),
            [
                "/b/bin/runc",
                "/usr/bin/runc",
                "/bin/runc",
                "/usr/local/sbin/runc",
                "/usr/sbin/runc",
                "/sbin/runc"
            ]
        );
        assert_eq!(
            of(Program::CniBridge),
            [
                "/b/bin/bridge",
                "/b/cni/bridge",
                "/c/bridge",
                "/opt/cni/bin/bridge",
                "/usr/lib/cni/bridge",
                "/usr/libexec/cni/bridge"
            ]
        );
    }
}
