//! CRI-O: its configuration, environment and command line. Pure.
//!
//! Sources: CRI-O's docs/crio.conf.5.md and server/rootless_linux.go of 1.36; containers-policy.json(5),
//! containers-registries.conf(5).
//!
//! `_CRIO_ROOTLESS` makes CRI-O leave out what a user namespace cannot have (the device cgroup, oom_score_adj, AppArmor), and
//! empties the cgroup path of every container: pods are not below kubelet's cgroups, have no metrics, and 1.36 crashes when it is
//! asked for those of a pod. So it is for where a controller is missing; elsewhere crun and runc do without the device cgroup
//! by themselves, and [`crate::personality::oci_runtime`] sees to oom_score_adj.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::containerd::OciRuntime;
use super::{Cgroups, layout, toml};
use crate::supervisor::unit::{Readiness, Restart, Unit};

/// What CRI-O is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crio {
    /// Its file.
    pub program: PathBuf,
    /// What it starts for each container.
    pub conmon: PathBuf,
    /// What keeps its namespaces.
    pub pinns: PathBuf,
    /// How layers of images become a file system.
    pub storage: Storage,
    /// What starts containers: one that does with what a user namespace may do.
    pub runtime: OciRuntime,
    /// Whether limits can be enforced.
    pub cgroups: Cgroups,
    /// The image of the container that holds a pod's namespaces.
    pub pause_image: String,
    /// What that container runs; empty: what the image says.
    pub pause_command: String,
    /// Where CNI plugins are.
    pub cni_bin_dir: PathBuf,
}

/// How layers of images become a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Overlayfs by the kernel.
    Overlay,
    /// Overlayfs by this program.
    FuseOverlayfs(PathBuf),
    /// Copies.
    Vfs,
}

impl Storage {
    /// What the library of CRI-O and skopeo calls it, and its options.
    fn driver(&self) -> (&'static str, Vec<String>) {
        match self {
            Storage::Overlay => ("overlay", Vec::new()),
            Storage::FuseOverlayfs(program) => {
                ("overlay", vec![format!("overlay.mount_program={}", program.display())])
            }
            Storage::Vfs => ("vfs", Vec::new()),
        }
    }

    /// Where CRI-O keeps, for each container, what it forgets when the node ends.
    pub fn run_directory(&self) -> PathBuf {
        PathBuf::from(layout::CRIO_RUN_ROOT).join(format!("{}-containers", self.driver().0))
    }

    /// CRI-O's images, as containers-transports(5) names them before an image's name.
    pub fn transport(&self) -> String {
        let (driver, options) = self.driver();
        let options = options.iter().map(|option| format!(":{option}")).collect::<String>();
        format!("containers-storage:[{driver}@{}+{}{options}]", layout::CRIO_ROOT, layout::CRIO_RUN_ROOT)
    }
}

impl Crio {
    /// crio.conf.
    pub fn config(&self) -> String {
        let (driver, options) = self.storage.driver();
        let runtime = json!({
            "cgroup_manager": "cgroupfs",
            "conmon_cgroup": "pod",
            "conmon": self.conmon,
            "pinns_path": self.pinns,
            "namespaces_dir": "/run/crio/ns",
            "container_exits_dir": "/run/crio/exits",
            "container_attach_socket_dir": "/run/crio/attach",
            "default_runtime": self.runtime.name,
            // A pod without a container of its own is given a cgroup instead.
            "drop_infra_ctr": self.cgroups != Cgroups::Withheld,
            "apparmor_profile": "unconfined",
            "runtimes": {
                self.runtime.name: {
                    "runtime_path": self.runtime.program,
                    "runtime_root": format!("/run/{}", self.runtime.name),
                },
            },
        });
        toml(&json!({
            "crio": {
                "root": layout::CRIO_ROOT,
                "runroot": layout::CRIO_RUN_ROOT,
                "version_file": "/run/crio/version",
                "version_file_persist": "/var/lib/containers/crio-version",
                "clean_shutdown_file": "/var/lib/containers/crio-clean-shutdown",
                "storage_driver": driver,
                "storage_option": options,
                "api": { "listen": layout::CRIO_SOCKET },
                "image": {
                    "signature_policy": layout::SIGNATURE_POLICY,
                    "pause_image": self.pause_image,
                    "pause_command": self.pause_command,
                },
                "network": {
                    "network_dir": layout::CNI_CONFIG_DIRECTORY,
                    "plugin_dirs": [self.cni_bin_dir],
                },
                "runtime": runtime,
            },
        }))
    }

    /// policy.json: every image is taken; who says otherwise writes a file of his own over it.
    pub fn signature_policy(&self) -> String {
        format!("{:#}\n", json!({ "default": [{ "type": "insecureAcceptAnything" }] }))
    }

    /// registries.conf.
    pub fn registries(&self) -> String {
        toml(&json!({ "unqualified-search-registries": ["docker.io"] }))
    }

    /// crio.
    pub fn unit(&self) -> Unit {
        let env = match self.cgroups {
            Cgroups::Delegated => Vec::new(),
            // It discards limits that have no controller, too.
            Cgroups::DelegatedWithoutCpu | Cgroups::Withheld => {
                vec![("_CRIO_ROOTLESS".to_owned(), "1".to_owned())]
            }
        };
        Unit {
            name: NAME.to_owned(),
            argv: vec![
                self.program.display().to_string(),
                format!("--config={}", layout::CRIO_CONFIG),
                format!("--config-dir={}", layout::CRIO_CONFIG_DIRECTORY),
            ],
            env,
            after: Vec::new(),
            ready: Readiness::UnixSocket { path: layout::CRIO_SOCKET.into() },
            start_timeout: Duration::from_secs(300),
            stop_timeout: Duration::from_secs(20),
            restart: Restart::Always,
        }
    }
}

/// The unit's name.
pub const NAME: &str = "crio";

#[cfg(test)]
mod tests {
    use super::*;

    fn crio(storage: Storage) -> Crio {
        Crio {
            program: "/b/crio".into(),
            conmon: "/usr/bin/conmon".into(),
            pinns: "/b/pinns".into(),
            storage,
            runtime: OciRuntime { name: "crun", program: "/usr/bin/crun".into() },
            cgroups: Cgroups::Delegated,
            pause_image: "localhost/pause:1".to_owned(),
            pause_command: String::new(),
            cni_bin_dir: "/opt/cni/bin".into(),
        }
    }

    #[test]
    fn everything_is_inside_the_node() {
        assert_eq!(crio(Storage::Overlay).config(), include_str!("snapshots/crio.conf"));
    }

    #[test]
    fn fuse_overlayfs_is_an_option_of_overlay() {
        let config = crio(Storage::FuseOverlayfs("/usr/bin/fuse-overlayfs".into())).config();
        let option = "storage_option = [\"overlay.mount_program=/usr/bin/fuse-overlayfs\"]\n";
        assert!(config.contains(option) && config.contains("storage_driver = \"overlay\"\n"), "{config}");
        let transport = Storage::FuseOverlayfs("/usr/bin/fuse-overlayfs".into()).transport();
        assert_eq!(
            transport,
            "containers-storage:[overlay@/var/lib/containers/storage+/run/containers/storage:overlay.mount_program=/usr/bin/fuse-overlayfs]"
        );
    }

    #[test]
    fn a_pod_without_cgroups_has_a_container_of_its_own() {
        let config = Crio { cgroups: Cgroups::Withheld, ..crio(Storage::Overlay) }.config();
        assert!(config.contains("\ndrop_infra_ctr = false\n"), "{config}");
    }

    #[test]
    fn pods_have_the_cgroups_that_kubelet_made_where_there_are_any() {
        assert_eq!(crio(Storage::Vfs).unit().env, []);
        for cgroups in [Cgroups::DelegatedWithoutCpu, Cgroups::Withheld] {
            let without = Crio { cgroups, ..crio(Storage::Vfs) };
            assert_eq!(without.unit().env, [("_CRIO_ROOTLESS".to_owned(), "1".to_owned())]);
        }
    }
}
