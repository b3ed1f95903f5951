//! Cgroups: a directory is really made in ours, or in that of a transient unit of the user's service manager.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::statfs::{self, statfs};

use super::super::facts::{Delegation, DelegationSource, Hierarchy, RuntimeDirectory};
use super::host::{has_systemd, runtime_path};
use crate::apply::command::ask;
use crate::apply::programs::Installed;
use crate::components::programs::Program;

const ROOT: &str = "/sys/fs/cgroup";
/// How long the service manager may take for a unit; on an emulated processor it takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// Says the controllers of its cgroup if cgroups can be made there.
const SCRIPT: &str = "d=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup) && mkdir \"$d/rootless-launch-check\" && \
    rmdir \"$d/rootless-launch-check\" && echo controllers: $(cat \"$d/cgroup.controllers\")";
const ANSWER: &str = "controllers: ";

pub(super) fn hierarchy() -> Hierarchy {
    let is_v2 =
        |path: &str| statfs(path).is_ok_and(|found| found.filesystem_type() == statfs::CGROUP2_SUPER_MAGIC);
    if is_v2(ROOT) {
        return Hierarchy::Unified;
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // The type stands behind the dash that ends the optional fields (proc_pid_mountinfo(5)).
    let mut kinds = mounts.lines().filter_map(|line| line.split_once(" - ")?.1.split(' ').next());
    match (kinds.clone().any(|kind| kind == "cgroup"), kinds.any(|kind| kind == "cgroup2")) {
        (true, true) => Hierarchy::Hybrid,
        (true, false) => Hierarchy::Legacy,
        (false, _) => Hierarchy::None,
    }
}

/// Our own cgroup v2 as a directory.
pub(super) fn own() -> Option<PathBuf> {
    let path = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = path.lines().find_map(|line| line.strip_prefix("0::"))?.trim_start_matches('/').to_owned();
    Some(Path::new(ROOT).join(path))
}

/// A cgroup in which cgroups can be made.
///
/// # Errors
/// Why there is none.
pub(super) fn delegation(
    programs: &BTreeMap<Program, Installed>,
    runtime: &RuntimeDirectory,
) -> Result<Delegation, String> {
    let own = own().filter(|_| hierarchy() == Hierarchy::Unified);
    let Some(own) = own else { return Err("no cgroup v2 with controllers".to_owned()) };
    if may_divide(&own) {
        let controllers = fs::read_to_string(own.join("cgroup.controllers")).unwrap_or_default();
        return Ok(Delegation { source: DelegationSource::Own, controllers: words(&controllers) });
    }
    if !has_systemd() {
        return Err(format!("{} cannot be written to", own.display()));
    }
    let Some(program) = programs.get(&Program::SystemdRun) else { return Err("no systemd-run".to_owned()) };
    let Some(runtime) = runtime_path(runtime) else { return Err("no XDG_RUNTIME_DIR".to_owned()) };
    let mut command = Command::new(&program.path);
    command.args(["--user", "--quiet", "--collect", "--wait", "--pipe", "-p", "Delegate=yes", "--"]);
    command.args(["/bin/sh", "-ec", SCRIPT]).env("XDG_RUNTIME_DIR", runtime);
    let said =
        ask(&mut command, Instant::now() + PATIENCE).map_err(|error| format!("systemd-run: {error}"))?;
    match said.text.lines().find_map(|line| format!("{line} ").strip_prefix(ANSWER).map(words)) {
        Some(controllers) => Ok(Delegation { source: DelegationSource::Unit, controllers }),
        None => Err(format!("systemd-run: {}", said.first_line())),
    }
}

/// Whether cgroups can be made here and be given controllers.
fn may_divide(cgroup: &Path) -> bool {
    let trial = cgroup.join(format!("rootless-launch-check-{}", std::process::id()));
    let made = fs::create_dir(&trial).is_ok();
    let _ = fs::remove_dir(&trial);
    // Opened, not written to: that it is open says who may.
    made && fs::File::options().write(true).open(cgroup.join("cgroup.subtree_control")).is_ok()
}

fn words(text: &str) -> Vec<String> {
    text.split_ascii_whitespace().map(str::to_owned).collect()
}
