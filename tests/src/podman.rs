//! Podman as Debian packages it, with the configuration that a machine without systemd and with any kind of cgroups can use.

use crate::{
    locate,
    process::Process,
    session::{HOME, Session},
};
use std::process::Command;

/// The container's root: nothing of its own but directories. Programs come from the host's `/usr`, mounted read-only.
const ROOTFS: &str = r"
mkdir -p rootfs && cd rootfs
mkdir -p etc proc sys dev run tmp usr
ln -sfn usr/bin bin; ln -sfn usr/sbin sbin; ln -sfn usr/lib lib; ln -sfn usr/lib64 lib64
: >probe
";

/// A user's Podman whose slirp4netns and pasta are those of the session.
#[derive(Debug)]
pub struct Podman<'s> {
    session: &'s Session,
}

impl<'s> Podman<'s> {
    /// Writes the user's configuration.
    #[track_caller]
    #[must_use]
    pub fn new(session: &'s Session) -> Self {
        let bin = format!("{HOME}/bin");
        session.write(".config/containers/storage.conf", "[storage]\ndriver = \"vfs\"\n");
        // crun wants cgroup v2 or all of v1; runc does without either when it is not allowed to make any.
        session.write(
            ".config/containers/containers.conf",
            &format!(
                "[engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n\
                 network_cmd_path = \"{bin}/slirp4netns\"\nhelper_binaries_dir = [\"{bin}\", \"/usr/lib/podman\", \"/usr/libexec/podman\"]\n\
                 [containers]\nlog_driver = \"k8s-file\"\n"
            ),
        );
        let _ = session.shell(ROOTFS).success();
        Self { session }
    }

    /// `podman ARGS`.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        self.session.command(&[&["podman"], args].concat())
    }

    /// Starts `script` by sh(1) in a container with `options`; the probe is `/probe`.
    #[track_caller]
    pub fn container(&self, options: &[&str], script: &str) -> Process {
        let probe = format!("--volume={}:/probe:ro", locate::probe_argv(&[])[0]);
        let rootfs = format!("{HOME}/rootfs");
        let mut args = vec!["run", "--rm", "--interactive", "--volume=/usr:/usr:ro", &probe];
        args.extend(options);
        args.extend(["--rootfs", &rootfs, "/bin/sh", "-c", script]);
        Process::spawn(self.command(&args))
    }
}
