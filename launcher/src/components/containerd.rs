//! containerd: its configuration in the format of its version, and how it is run. Pure.
//!
//! Sources: containerd's docs/cri/config.md and docs/man/containerd-config.toml.5.md, of 1.7 and 2.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::layout;
use super::programs::Version;
use super::{Cgroups, toml};
use crate::supervisor::unit::{Readiness, Restart, Unit};

/// What containerd is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Containerd {
    /// Its file.
    pub program: PathBuf,
    /// Its version.
    pub version: Version,
    /// How layers of images become a file system.
    pub snapshotter: Snapshotter,
    /// What starts containers.
    pub runtime: OciRuntime,
    /// Whether limits can be enforced. Version 2 has no setting for that: its runtime is kept from cgroups by us.
    pub cgroups: Cgroups,
    /// The image of the container that holds a pod's namespaces.
    pub pause_image: String,
    /// Where CNI plugins are.
    pub cni_bin_dir: PathBuf,
}

/// How layers of images become a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Snapshotter {
    /// By the kernel.
    Overlayfs,
    /// By fuse-overlayfs; the program is its snapshotter for containerd.
    FuseOverlayfs(PathBuf),
    /// By copies: works everywhere, is slow and large.
    Native,
}

impl Snapshotter {
    /// What containerd calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Snapshotter::Overlayfs => "overlayfs",
            Snapshotter::FuseOverlayfs(_) => "fuse-overlayfs",
            Snapshotter::Native => "native",
        }
    }
}

impl fmt::Display for Snapshotter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What starts containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OciRuntime {
    /// crun or runc.
    pub name: &'static str,
    /// Its file.
    pub program: PathBuf,
}

impl Containerd {
    /// The configuration: `version = 3` from containerd 2 on, else `version = 2`.
    pub fn config(&self) -> String {
        let config = if self.version.major >= 2 { self.version_3() } else { self.version_2() };
        toml(&config)
    }

    fn version_2(&self) -> Value {
        let mut cri = self.cri();
        // 2.0 has lost it: there the runtime has to know by itself, see crate::personality::oci_runtime.
        cri["disable_cgroup"] = json!(self.cgroups == Cgroups::Withheld);
        cri["sandbox_image"] = json!(self.pause_image);
        cri["registry"] = json!({ "config_path": layout::CONTAINERD_REGISTRIES });
        cri["cni"] = json!({ "bin_dir": self.cni_bin_dir, "conf_dir": layout::CNI_CONFIG_DIRECTORY });
        cri["containerd"]["snapshotter"] = json!(self.snapshotter.name());
        self.around(2, json!({ "io.containerd.grpc.v1.cri": cri }))
    }

    fn version_3(&self) -> Value {
        let mut runtime = self.cri();
        // bin_dir is deprecated since 2.1, and the only one before.
        let bin_dir = match self.version >= Version::new(2, 1, 0) {
            true => json!({ "bin_dirs": [self.cni_bin_dir] }),
            false => json!({ "bin_dir": self.cni_bin_dir }),
        };
        runtime["cni"] = bin_dir;
        runtime["cni"]["conf_dir"] = json!(layout::CNI_CONFIG_DIRECTORY);
        let images = json!({
            "snapshotter": self.snapshotter.name(),
            "pinned_images": { "sandbox": self.pause_image },
            "registry": { "config_path": layout::CONTAINERD_REGISTRIES },
            // The transfer service, the default of newer versions, unpacks for overlayfs unless told at length.
            "use_local_image_pull": self.snapshotter != Snapshotter::Overlayfs,
        });
        let plugins =
            json!({ "io.containerd.cri.v1.images": images, "io.containerd.cri.v1.runtime": runtime });
        self.around(3, plugins)
    }

    /// What is the same in both formats, at another place.
    fn cri(&self) -> Value {
        json!({
            "disable_apparmor": true,
            "disable_hugetlb_controller": true,
            "restrict_oom_score_adj": true,
            "enable_unprivileged_icmp": true,
            "enable_unprivileged_ports": true,
            "containerd": {
                "default_runtime_name": self.runtime.name,
                "runtimes": {
                    self.runtime.name: {
                        "runtime_type": "io.containerd.runc.v2",
                        "options": { "BinaryName": self.runtime.program, "SystemdCgroup": false },
                    },
                },
            },
        })
    }

    fn around(&self, version: u32, plugins: Value) -> Value {
        let mut config = json!({
            "version": version,
            "root": layout::CONTAINERD_ROOT,
            "state": layout::CONTAINERD_STATE,
            "grpc": { "address": layout::CONTAINERD_SOCKET },
            "plugins": plugins,
        });
        if let Snapshotter::FuseOverlayfs(_) = self.snapshotter {
            let plugin = json!({ "type": "snapshot", "address": layout::FUSE_OVERLAYFS_SOCKET });
            config["proxy_plugins"] = json!({ "fuse-overlayfs": plugin });
        }
        config
    }

    /// containerd, and before it what it asks for snapshots.
    pub fn units(&self) -> Vec<Unit> {
        let mut units = Vec::new();
        if let Snapshotter::FuseOverlayfs(program) = &self.snapshotter {
            units.push(Unit {
                name: "fuse-overlayfs".to_owned(),
                argv: vec![
                    program.display().to_string(),
                    layout::FUSE_OVERLAYFS_SOCKET.to_owned(),
                    layout::FUSE_OVERLAYFS_ROOT.to_owned(),
                ],
                env: Vec::new(),
                after: Vec::new(),
                ready: Readiness::UnixSocket { path: layout::FUSE_OVERLAYFS_SOCKET.into() },
                start_timeout: Duration::from_secs(30),
                stop_timeout: Duration::from_secs(10),
                restart: Restart::Always,
            });
        }
        let after = units.iter().map(|unit| unit.name.clone()).collect();
        units.push(Unit {
            name: NAME.to_owned(),
            argv: vec![
                self.program.display().to_string(),
                "--config".to_owned(),
                layout::CONTAINERD_CONFIG.to_owned(),
            ],
            env: Vec::new(),
            after,
            // Its socket accepts before the CRI plugin serves there.
            ready: Readiness::Notify,
            start_timeout: START_TIMEOUT,
            stop_timeout: Duration::from_secs(20),
            restart: Restart::Always,
        });
        units
    }
}

/// The unit's name.
pub const NAME: &str = "containerd";
/// On an emulated processor that does nothing else it takes a minute.
const START_TIMEOUT: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    fn containerd(version: &str) -> Containerd {
        Containerd {
            program: "/usr/bin/containerd".into(),
            version: Version::parse(version).unwrap(),
            snapshotter: Snapshotter::Overlayfs,
            runtime: OciRuntime { name: "crun", program: "/usr/bin/crun".into() },
            cgroups: Cgroups::Delegated,
            pause_image: "localhost/pause:1".to_owned(),
            cni_bin_dir: "/opt/cni/bin".into(),
        }
    }

    #[test]
    fn version_1_7_gets_the_second_format() {
        let config = containerd("1.7.24").config();
        assert_eq!(config, include_str!("snapshots/containerd-1.7.toml"));
    }

    #[test]
    fn version_2_gets_the_third_format() {
        let config = containerd("2.3.4").config();
        assert_eq!(config, include_str!("snapshots/containerd-2.3.toml"));
    }

    #[test]
    fn version_2_0_has_one_directory_of_plugins() {
        let config = containerd("2.0.9").config();
        assert!(config.contains("bin_dir = \"/opt/cni/bin\"\n") && !config.contains("bin_dirs"), "{config}");
    }

    #[test]
    fn without_delegation_cgroups_are_left_alone() {
        let config = Containerd { cgroups: Cgroups::Withheld, ..containerd("1.7.24") }.config();
        assert!(config.contains("\ndisable_cgroup = true\n"), "{config}");
    }

    #[test]
    fn fuse_overlayfs_is_a_program_of_its_own() {
        let snapshotter = Snapshotter::FuseOverlayfs("/b/containerd-fuse-overlayfs-grpc".into());
        let containerd = Containerd { snapshotter, ..containerd("2.3.4") };
        let config = containerd.config();
        let proxy = "[proxy_plugins.fuse-overlayfs]\n\
                     address = \"/run/containerd-fuse-overlayfs.sock\"\n\
                     type = \"snapshot\"\n";
        assert!(config.contains(proxy), "{config}");
        assert!(
            config.contains("snapshotter = \"fuse-overlayfs\"\nuse_local_image_pull = true\n"),
            "{config}"
        );
        let units = containerd.units();
        assert_eq!(
            units[0].argv,
            [
                "/b/containerd-fuse-overlayfs-grpc",
                "/run/containerd-fuse-overlayfs.sock",
                "/var/lib/containerd/io.containerd.snapshotter.v1.fuse-overlayfs"
            ]
        );
        assert_eq!(
            (units[1].name.as_str(), &units[1].after),
            ("containerd", &vec!["fuse-overlayfs".to_owned()])
        );
    }

    #[test]
    fn native_needs_nothing() {
        let containerd = Containerd { snapshotter: Snapshotter::Native, ..containerd("1.7.24") };
        assert!(containerd.config().contains("snapshotter = \"native\"\n"));
        assert_eq!(containerd.units().len(), 1);
    }
}
