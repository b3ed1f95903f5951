//! Cgroups: a process goes where a launch would go, and really makes one there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;

use super::thrown::{Ids, throw_away};
use crate::apply::cgroup::{enter, facts};
use crate::plan::cgroup::{CgroupMode, CgroupPlan, Delegation, Place};

const ROOT: &str = "/sys/fs/cgroup";

/// The controllers of a cgroup in which cgroups can be made.
///
/// # Errors
/// Why there is none.
pub(super) fn delegation() -> Result<Vec<String>, String> {
    // The process takes what it has started with it: a scope ends with its last process.
    throw_away(CloneFlags::empty(), Ids::Kept, delegated).unwrap_or_else(|failure| Err(failure.to_string()))
}

fn delegated() -> Result<Vec<String>, String> {
    let plan = CgroupPlan::new(CgroupMode::Auto, &facts()).and_then(enter).map_err(|why| why.to_string())?;
    match plan {
        CgroupPlan::Delegated(Delegation { place: Place::Own(own), .. }) => {
            let directory = directory(&own);
            divide(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
            let controllers = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
            Ok(controllers.split_ascii_whitespace().map(str::to_owned).collect())
        }
        CgroupPlan::Without(why) => Err(why.to_string()),
        other => Err(other.to_string()),
    }
}

fn divide(directory: &Path) -> io::Result<()> {
    let trial = directory.join(format!("rootless-launch-check-{}", std::process::id()));
    fs::create_dir(&trial)?;
    fs::remove_dir(&trial)
}

/// Limits of how many processes there may be, of our own cgroup and all above it.
pub(super) fn process_limits() -> impl Iterator<Item = u64> {
    let directory = directory(&facts().own);
    let ancestors: Vec<PathBuf> = directory.ancestors().map(Path::to_owned).collect();
    ancestors
        .into_iter()
        .filter_map(|directory| fs::read_to_string(directory.join("pids.max")).ok()?.trim().parse().ok())
}

fn directory(cgroup: &str) -> PathBuf {
    Path::new(ROOT).join(cgroup.trim_start_matches('/'))
}
