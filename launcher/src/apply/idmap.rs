//! Writes uid_map and gid_map of the child (user_namespaces(7)).

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use log::info;
use nix::unistd::Pid;

use crate::error::{Failure, Step};
use crate::plan::idmap::{Extent, IdMapPlan, MapPlan};

/// Both maps on their way: the helpers run while the launcher does other work.
#[derive(Debug)]
pub struct Mapping<'a> {
    pid: Pid,
    plan: &'a IdMapPlan,
    users: Option<io::Result<Child>>,
    groups: Option<io::Result<Child>>,
}

#[derive(Clone, Copy)]
enum Kind {
    Users,
    Groups,
}

impl<'a> Mapping<'a> {
    /// Starts the helpers, if the plan has any.
    pub fn start(plan: &'a IdMapPlan, pid: Pid) -> Self {
        Mapping { pid, plan, users: start_helper(&plan.users, pid), groups: start_helper(&plan.groups, pid) }
    }

    /// Waits for the helpers and writes what they did not. Returns the highest group id in the child.
    ///
    /// # Errors
    /// Not even the single id could be mapped.
    pub fn finish(self) -> Result<u32, Failure> {
        finish(self.users, &self.plan.users, self.plan.uid, self.pid, Kind::Users)?;
        finish(self.groups, &self.plan.groups, self.plan.gid, self.pid, Kind::Groups)
    }
}

fn start_helper(plan: &MapPlan, pid: Pid) -> Option<io::Result<Child>> {
    let MapPlan::Helper { program, extents } = plan else { return None };
    let arguments = extents.iter().flat_map(|extent| [extent.inside, extent.outside, extent.count]);
    let mut command = Command::new(program);
    command.arg(pid.to_string()).args(arguments.map(|number| number.to_string()));
    Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn())
}

fn finish(
    helper: Option<io::Result<Child>>,
    plan: &MapPlan,
    own: u32,
    pid: Pid,
    kind: Kind,
) -> Result<u32, Failure> {
    let reason = match (plan, helper) {
        (MapPlan::Helper { program, .. }, Some(child)) => match helper_result(child) {
            Ok(()) => return Ok(plan.last_id()),
            Err(reason) => format!("{} failed: {reason}", program.display()),
        },
        (MapPlan::Direct(extents), _) => match write_map(pid, kind, extents) {
            Ok(()) => return Ok(plan.last_id()),
            Err(error) => error.to_string(),
        },
        (MapPlan::Single(reason), _) => reason.to_string(),
        (MapPlan::Helper { .. }, None) => String::new(),
    };
    let what = match kind {
        Kind::Users => "user",
        Kind::Groups => "group",
    };
    info!("the child has one {what} id only, 0, which is {own} outside: {reason}");
    write_map(pid, kind, &[Extent { inside: 0, outside: own, count: 1 }])
        .map(|()| 0)
        .map_err(|error| Failure::new(Step::MapIds, format!("{what} {own} to 0"), error))
}

/// What the helper said on stderr, in one line.
fn helper_result(child: io::Result<Child>) -> Result<(), String> {
    let output = child.and_then(Child::wait_with_output).map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.trim();
    Err(if line.is_empty() { output.status.to_string() } else { line.replace('\n', "; ") })
}

fn write_map(pid: Pid, kind: Kind, extents: &[Extent]) -> io::Result<()> {
    let directory = format!("/proc/{pid}");
    let file = match kind {
        Kind::Users => "uid_map",
        Kind::Groups => "gid_map",
    };
    let text: String = extents.iter().map(|extent| format!("{extent}\n")).collect();
    let path = Path::new(&directory).join(file);
    match fs::write(&path, &text) {
        // Whoever may not change groups at all may map his own (user_namespaces(7), CVE-2014-8989).
        Err(error) if matches!(kind, Kind::Groups) && error.kind() == io::ErrorKind::PermissionDenied => {
            fs::write(Path::new(&directory).join("setgroups"), "deny")?;
            fs::write(&path, &text)
        }
        other => other,
    }
}
