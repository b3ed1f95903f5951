//! Gets the launch its delegated cgroup, as [`crate::plan::cgroup`] says.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use log::{debug, info};
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access, geteuid, getpid};

use crate::dbus::connection::{Connection, Peer};
use crate::dbus::message::{Call, Writer};
use crate::error::{Failure, Step};
use crate::plan::cgroup::{
    CgroupFacts, CgroupPlan, Delegation, Hierarchy, Manager, NoDelegation, Place, not_delegated,
};
use crate::sys::xattr;

const MOUNT: &str = "/sys/fs/cgroup";
/// Set to 1 by systemd (251 and later) for units with `Delegate=`; readable by everybody.
const MARK: &str = "user.delegate";
/// How often processes are moved before whoever forks faster than that is left where he is.
const ROUNDS: usize = 100;

/// Reads what the plan needs to know. What cannot be read is as good as not there.
pub fn facts() -> CgroupFacts {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let own = own(&read("/proc/self/cgroup"));
    let directory = directory(&own);
    let (uid, pid) = (geteuid().as_raw(), getpid().as_raw());
    let is_writable = !own.is_empty()
        && ["", "cgroup.procs", "cgroup.subtree_control"]
            .iter()
            .all(|file| access(&directory.join(file), AccessFlags::W_OK).is_ok());
    let controllers = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
    CgroupFacts {
        hierarchy: Hierarchy::of(&read("/proc/self/mountinfo")),
        is_writable,
        delegated: marked(&own),
        has_systemd: Path::new("/run/systemd/system").is_dir(),
        controllers: controllers.split_ascii_whitespace().map(str::to_owned).collect(),
        managers: managers(uid),
        uid,
        pid,
        own,
    }
}

/// The line of v2 in /proc/self/cgroup.
fn own(text: &str) -> String {
    text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned()
}

fn directory(cgroup: &str) -> PathBuf {
    Path::new(MOUNT).join(cgroup.trim_start_matches('/'))
}

fn marked(own: &str) -> Option<String> {
    let is_marked = |cgroup: &&Path| {
        cgroup
            .to_str()
            .is_some_and(|cgroup| xattr::get(&directory(cgroup), MARK).is_some_and(|value| value == b"1"))
    };
    Path::new(own).ancestors().find(is_marked)?.to_str().map(str::to_owned)
}

fn managers(uid: u32) -> Vec<Manager> {
    let ways = if uid == 0 {
        [("/run/systemd/private".into(), Peer::Service), ("/run/dbus/system_bus_socket".into(), Peer::Bus)]
    } else {
        let default = || format!("/run/user/{uid}").into();
        let runtime = env::var_os("XDG_RUNTIME_DIR").map_or_else(default, PathBuf::from);
        [(runtime.join("systemd/private"), Peer::Service), (runtime.join("bus"), Peer::Bus)]
    };
    let managers = ways.map(|(socket, peer)| Manager { socket, peer });
    managers.into_iter().filter(|manager| manager.socket.exists()).collect()
}

/// The delegated cgroup that the launcher is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    directory: PathBuf,
    evacuation: &'static str,
}

/// Moves the launcher to where the plan says, if that is elsewhere, and returns what is to be done now: a plan without a scope that is
/// yet to be started. Done again it does nothing more.
///
/// # Errors
/// There is no delegated cgroup, and one was demanded.
pub fn enter(plan: CgroupPlan) -> Result<CgroupPlan, NoDelegation> {
    let CgroupPlan::Delegated(Delegation { place: Place::NewScope { unit, managers }, mode, .. }) = &plan
    else {
        return Ok(plan);
    };
    match start_scope(unit, managers) {
        Ok(()) => {
            let facts = facts();
            info!("moved into the delegated scope {unit} of the user's service manager: {}", facts.own);
            CgroupPlan::after_move(*mode, &facts)
        }
        Err(error) => CgroupPlan::without(*mode, NoDelegation::Refused(error.to_string())),
    }
}

impl Cgroup {
    /// The one of a plan that [`enter`] has returned.
    pub fn of(plan: &CgroupPlan) -> Option<Self> {
        match plan {
            CgroupPlan::Delegated(Delegation { place: Place::Own(own), evacuation, .. }) => {
                Some(Cgroup { directory: directory(own), evacuation })
            }
            _ => None,
        }
    }

    /// Makes it ready for cgroups below it: all its processes leave it, its controllers are enabled. The child is to have made its
    /// cgroup namespace before. Returns what the user should know.
    ///
    /// # Errors
    /// The processes cannot leave.
    pub fn evacuate(&self) -> Result<Option<String>, Failure> {
        let failed =
            |path: &Path, error: io::Error| Failure::new(Step::Cgroup, path.display().to_string(), error);
        let refuge = self.directory.join(self.evacuation);
        match fs::create_dir(&refuge) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(&refuge, error)),
            _ => {}
        }
        let (from, to) = (self.directory.join("cgroup.procs"), refuge.join("cgroup.procs"));
        for _ in 0..ROUNDS {
            let processes = fs::read_to_string(&from).map_err(|error| failed(&from, error))?;
            // 0 is a process outside of our pid namespace.
            let processes: Vec<&str> = processes.lines().filter(|&pid| pid != "0").collect();
            if processes.is_empty() {
                break;
            }
            for pid in processes {
                match fs::write(&to, pid) {
                    // It is dead, or a zombie.
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                    other => other.map_err(|error| failed(&to, error))?,
                }
            }
        }
        self.enable_controllers()
    }

    fn enable_controllers(&self) -> Result<Option<String>, Failure> {
        let (available, enabled) =
            (self.directory.join("cgroup.controllers"), self.directory.join("cgroup.subtree_control"));
        let failed = |error| Failure::new(Step::Cgroup, available.display().to_string(), error);
        let controllers = fs::read_to_string(&available).map_err(failed)?;
        for controller in controllers.split_ascii_whitespace() {
            // Each for itself: one that cannot be enabled (cpu, while a realtime process is inside) is not to cost the others.
            if let Err(error) = fs::write(&enabled, format!("+{controller}")) {
                info!("the cgroup controller {controller} cannot be enabled: {error}");
            }
        }
        let enabled = fs::read_to_string(&enabled).unwrap_or_default();
        let controllers = enabled.split_ascii_whitespace().map(str::to_owned).collect();
        debug!("cgroup {} has {}", self.directory.display(), enabled.trim());
        let missing = CgroupFacts { controllers, ..CgroupFacts::default() }.missing();
        Ok((!missing.is_empty()).then(|| not_delegated(&missing)))
    }
}

/// Starts a scope of systemd's with this process in it and waits until it has (org.freedesktop.systemd1(5)): what
/// `systemd-run --user --scope --property=Delegate=yes` does, without starting anything.
fn start_scope(unit: &str, managers: &[Manager]) -> io::Result<()> {
    let mut last = io::Error::from(Errno::ENOENT);
    for manager in managers {
        match start_scope_by(unit, manager) {
            Ok(()) => return Ok(()),
            Err(error) => {
                debug!("{}: {error}", manager.socket.display());
                last = error;
            }
        }
    }
    Err(last)
}

fn start_scope_by(unit: &str, manager: &Manager) -> io::Result<()> {
    let mut connection = Connection::open(&manager.socket, manager.peer)?;
    if manager.peer == Peer::Bus {
        connection
            .subscribe("type='signal',interface='org.freedesktop.systemd1.Manager',member='JobRemoved'")?;
    }
    let call = Call {
        destination: "org.freedesktop.systemd1",
        path: "/org/freedesktop/systemd1",
        interface: "org.freedesktop.systemd1.Manager",
        member: "StartTransientUnit",
    };
    let mut body = Writer::default();
    body.string(unit).string("fail");
    body.array(8, |properties| {
        properties.structure().string("Description").signature("s").string("rootless-launch");
        properties.structure().string("Delegate").signature("b").u32(1);
        properties.structure().string("TasksMax").signature("t").u64(u64::MAX);
        properties.structure().string("CollectMode").signature("s").string("inactive-or-failed");
        properties.structure().string("PIDs").signature("au").array(4, |pids| {
            pids.u32(getpid().as_raw().cast_unsigned());
        });
    });
    body.array(8, |_| {});
    let answer = connection.call(&call, "ssa(sv)a(sa(sv))", &body)?;
    let job = answer.reader().string().unwrap_or_default().to_owned();
    let result = connection.wait_for("JobRemoved", |body| {
        let mut reader = body.reader();
        let (_, path, _, result) = (reader.u32()?, reader.string()?, reader.string()?, reader.string()?);
        (path == job).then(|| result.to_owned())
    })?;
    if result == "done" { Ok(()) } else { Err(io::Error::other(format!("its job ended with {result:?}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_v2_counts() {
        assert_eq!(own("12:memory:/a\n0::/b c\n"), "/b c");
        assert_eq!(own("12:memory:/a\n"), "");
        assert_eq!(directory("/a/b"), Path::new("/sys/fs/cgroup/a/b"));
    }
}
