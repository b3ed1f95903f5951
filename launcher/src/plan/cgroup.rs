//! Which cgroup the launch gets, cgroups(7), so that limits of what runs inside can be enforced. Pure.
//!
//! # Theory of operation
//! Only cgroup v2 can be handed to a user safely, and only by whoever owns the tree: systemd marks with `user.delegate` what a unit with
//! `Delegate=` may manage by itself. A terminal's session is never such a unit, so a launch from there moves itself into a
//! transient scope of the user's service manager: the same process, with its terminal, environment and parent.
//!
//! | where the launcher is | what happens |
//! |---|---|
//! | a writable cgroup that is delegated | it is used |
//! | anywhere else, with a service manager of the user's | the launcher moves into a new delegated scope, and that is used |
//! | anywhere else | `auto`: no cgroup, limits are not enforced, one warning; `delegated`: an error |
//!
//! A cgroup that has processes cannot give controllers to those below it, so all of them move into one of those below (`evac`), once
//! the child has made its cgroup namespace, whose root is the delegated cgroup.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use thiserror::Error;

use crate::dbus::connection::Peer;

/// Where all processes of the delegated cgroup go.
pub const EVACUATION: &str = "evac";

/// What is asked for by `--cgroup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupMode {
    /// A delegated cgroup where there is one to be had.
    Auto,
    /// A delegated cgroup with the controllers that a node needs, or an error.
    Delegated,
    /// None.
    None,
}

/// What is mounted at /sys/fs/cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hierarchy {
    /// cgroup v2 only.
    Unified,
    /// cgroup v1 for the controllers, v2 for systemd's book-keeping.
    Hybrid,
    /// cgroup v1 only.
    Legacy,
    /// Nothing.
    #[default]
    Missing,
}

impl Hierarchy {
    /// From /proc/self/mountinfo (proc_pid_mountinfo(5)).
    pub fn of(mountinfo: &str) -> Self {
        let mut found = Hierarchy::Missing;
        for line in mountinfo.lines() {
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let (Some(place), Some(kind)) = (before.split(' ').nth(4), after.split(' ').next()) else {
                continue;
            };
            let is_below = Path::new(place).starts_with("/sys/fs/cgroup");
            match kind {
                "cgroup2" if place == "/sys/fs/cgroup" => return Hierarchy::Unified,
                "cgroup2" if is_below => return Hierarchy::Hybrid,
                "cgroup" if is_below => found = Hierarchy::Legacy,
                _ => {}
            }
        }
        found
    }
}

/// A way to talk to the service manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manager {
    /// Its socket.
    pub socket: PathBuf,
    /// Who is there.
    pub peer: Peer,
}

/// What is known of the launcher's cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupFacts {
    /// What is mounted.
    pub hierarchy: Hierarchy,
    /// The launcher's own cgroup, from the root of its cgroup namespace; empty if it has none of v2.
    pub own: String,
    /// Whether the caller may make cgroups in it and move processes.
    pub is_writable: bool,
    /// It or the nearest one above that systemd marks as delegated, from the same root.
    pub delegated: Option<String>,
    /// Whether systemd manages the tree.
    pub has_systemd: bool,
    /// cgroup.controllers of it.
    pub controllers: Vec<String>,
    /// The caller's service manager, by each way that is there, the best one first.
    pub managers: Vec<Manager>,
    /// The caller's user id.
    pub uid: u32,
    /// The launcher's process id.
    pub pid: i32,
}

impl CgroupFacts {
    /// Whether the launcher may manage its own cgroup.
    fn may_use_own(&self) -> bool {
        let is_of_the_manager =
            |cgroup: &str| cgroup.rsplit('/').next().is_some_and(|name| name.starts_with("user@"));
        let is_marked = self.delegated.as_deref().is_some_and(|cgroup| !is_of_the_manager(cgroup));
        // Whoever made a namespace whose root this is, or a service that it may write to, has meant it so. A scope is what a session
        // or an application runs in.
        let is_given = self.own == "/" || (self.own.ends_with(".service") && !is_of_the_manager(&self.own));
        // Moved already. A user's manager marks nothing.
        let is_ours = self.own.rsplit('/').next() == Some(&self.scope());
        self.hierarchy == Hierarchy::Unified
            && self.is_writable
            && (is_marked || is_given || is_ours || !self.has_systemd)
    }

    /// The name of a scope for this process.
    fn scope(&self) -> String {
        format!("rootless-launch-{}.scope", self.pid)
    }

    /// Controllers that a node cannot do without and that are not there.
    pub fn missing(&self) -> Vec<&'static str> {
        let is_there = |name: &str| self.controllers.iter().any(|controller| controller == name);
        NEEDED.into_iter().filter(|name| !is_there(name)).collect()
    }
}

/// Controllers without which limits of pods are not enforced.
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];

/// What is done about cgroups. `Display` is one line for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CgroupPlan {
    /// Nothing: nobody needs one.
    #[default]
    Untouched,
    /// There is none; limits are not enforced.
    Without(NoDelegation),
    /// A delegated one is used.
    Delegated(Delegation),
}

/// The delegated cgroup and how to get there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Delegation {
    /// Where it is.
    pub place: Place,
    /// Below it, where all its processes go.
    pub evacuation: &'static str,
    /// What was asked for.
    pub mode: CgroupMode,
}

/// Where the delegated cgroup is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// The launcher's own.
    Own(String),
    /// A scope that is yet to be started.
    NewScope {
        /// Its name.
        unit: String,
        /// The sockets by which to ask for it, one after the other until one answers.
        #[serde(skip)]
        managers: Vec<Manager>,
    },
}

/// Why there is no delegated cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Error)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NoDelegation {
    /// `--cgroup=none`.
    #[error("--cgroup=none")]
    Unwanted,
    /// cgroup v1.
    #[error(
        "this machine runs cgroup v1, which cannot be delegated; as root: add systemd.unified_cgroup_hierarchy=1 to the kernel's \
         command line and reboot"
    )]
    Legacy,
    /// Nothing is mounted.
    #[error("no cgroup v2 is mounted at /sys/fs/cgroup")]
    NotMounted,
    /// The own cgroup cannot be used and there is nobody who could give another.
    #[error(
        "{own} cannot be managed by uid {uid}, and no service manager of the user's is running that could give another; log in by ssh or \
         on a console (su and sudo do not start one), or as root: loginctl enable-linger {uid}"
    )]
    NoManager {
        /// The launcher's own.
        own: String,
        /// The caller's user id.
        uid: u32,
    },
    /// The service manager did not start the scope, or it is not what it should be.
    #[error("the service manager did not give a delegated scope: {0}")]
    Refused(String),
    /// Controllers that are needed are not delegated.
    #[error("{}", not_delegated(.0))]
    Controllers(Vec<&'static str>),
}

impl CgroupPlan {
    /// Decides.
    ///
    /// # Errors
    /// There is no delegated cgroup to be had, and one was demanded.
    pub fn new(mode: CgroupMode, facts: &CgroupFacts) -> Result<CgroupPlan, NoDelegation> {
        let why = match facts.hierarchy {
            _ if mode == CgroupMode::None => NoDelegation::Unwanted,
            Hierarchy::Hybrid | Hierarchy::Legacy => NoDelegation::Legacy,
            Hierarchy::Missing => NoDelegation::NotMounted,
            Hierarchy::Unified if facts.may_use_own() => {
                return CgroupPlan::own(mode, facts);
            }
            Hierarchy::Unified if facts.managers.is_empty() => {
                NoDelegation::NoManager { own: facts.own.clone(), uid: facts.uid }
            }
            Hierarchy::Unified => {
                let place = Place::NewScope { unit: facts.scope(), managers: facts.managers.clone() };
                return Ok(CgroupPlan::Delegated(Delegation { place, evacuation: EVACUATION, mode }));
            }
        };
        CgroupPlan::without(mode, why)
    }

    /// After the move into a new scope: what is there now is used, or there is none.
    ///
    /// # Errors
    /// As [`CgroupPlan::new`].
    pub fn after_move(mode: CgroupMode, facts: &CgroupFacts) -> Result<CgroupPlan, NoDelegation> {
        if facts.is_writable {
            CgroupPlan::own(mode, facts)
        } else {
            let why = NoDelegation::Refused(format!("{} cannot be written to", facts.own));
            CgroupPlan::without(mode, why)
        }
    }

    /// Without one, where that is allowed.
    ///
    /// # Errors
    /// `why`, where one was demanded.
    pub fn without(mode: CgroupMode, why: NoDelegation) -> Result<CgroupPlan, NoDelegation> {
        if mode == CgroupMode::Delegated { Err(why) } else { Ok(CgroupPlan::Without(why)) }
    }

    fn own(mode: CgroupMode, facts: &CgroupFacts) -> Result<CgroupPlan, NoDelegation> {
        let missing = facts.missing();
        if mode == CgroupMode::Delegated && !missing.is_empty() {
            return Err(NoDelegation::Controllers(missing));
        }
        let place = Place::Own(facts.own.clone());
        Ok(CgroupPlan::Delegated(Delegation { place, evacuation: EVACUATION, mode }))
    }

    /// Whether limits can be enforced.
    pub fn is_delegated(&self) -> bool {
        matches!(self, CgroupPlan::Delegated(_))
    }

    /// What the user should know.
    pub fn warning(&self) -> Option<String> {
        match self {
            CgroupPlan::Without(NoDelegation::Unwanted)
            | CgroupPlan::Untouched
            | CgroupPlan::Delegated(_) => None,
            CgroupPlan::Without(why) => {
                Some(format!("limits of memory, CPU and processes are not enforced: {why}"))
            }
        }
    }
}

impl fmt::Display for CgroupPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CgroupPlan::Untouched => f.write_str("the caller's cgroup, untouched"),
            CgroupPlan::Without(why) => {
                write!(f, "the caller's cgroup, untouched; limits are not enforced: {why}")
            }
            CgroupPlan::Delegated(Delegation { place, evacuation, .. }) => {
                match place {
                    Place::Own(path) => write!(f, "cgroup {path}")?,
                    Place::NewScope { unit, .. } => {
                        write!(f, "a new delegated scope of the user's service manager, {unit}")?
                    }
                }
                write!(f, "; its processes move to {evacuation} below it, its controllers are enabled")
            }
        }
    }
}

/// What root has to do so that all controllers are delegated; systemd.resource-control(5).
pub const DELEGATE_COMMAND: &str = "mkdir -p /etc/systemd/system/user@.service.d && printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n' \
     > /etc/systemd/system/user@.service.d/delegate.conf && systemctl daemon-reload";

/// That, and why, in a sentence.
pub fn not_delegated(missing: &[&str]) -> String {
    let (is, limits) = if missing.len() == 1 { ("is", "it is") } else { ("are", "they are") };
    let names = missing.join(", ");
    format!(
        "{names} {is} not delegated to you, so {limits} not limited; as root: {DELEGATE_COMMAND}, then log out of all sessions and in again"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str = "26 23 0:22 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "\
25 22 0:21 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
26 25 0:22 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
27 25 0:23 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";

    fn ssh() -> CgroupFacts {
        CgroupFacts {
            hierarchy: Hierarchy::Unified,
            own: "/user.slice/user-1000.slice/session-1.scope".into(),
            has_systemd: true,
            managers: vec![Manager { socket: "/run/user/1000/systemd/private".into(), peer: Peer::Service }],
            uid: 1000,
            pid: 7,
            ..CgroupFacts::default()
        }
    }

    const MANAGER: &str = "/user.slice/user-1000.slice/user@1000.service";

    fn unit() -> CgroupFacts {
        let own = "/system.slice/launch.service".to_owned();
        CgroupFacts {
            delegated: Some(own.clone()),
            own,
            is_writable: true,
            controllers: ["cpu", "memory", "pids"].map(str::to_owned).into(),
            ..ssh()
        }
    }

    fn place(facts: &CgroupFacts) -> Place {
        match CgroupPlan::new(CgroupMode::Auto, facts) {
            Ok(CgroupPlan::Delegated(Delegation { place, .. })) => place,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_hierarchy_is_read_from_the_mounts() {
        assert_eq!(Hierarchy::of(UNIFIED), Hierarchy::Unified);
        assert_eq!(Hierarchy::of(HYBRID), Hierarchy::Hybrid);
        let legacy: String = HYBRID.lines().take(2).map(|line| format!("{line}\n")).collect();
        assert_eq!(Hierarchy::of(&legacy), Hierarchy::Legacy);
        assert_eq!(Hierarchy::of("torn line\n1 2 - \n"), Hierarchy::Missing);
    }

    #[test]
    fn a_session_moves_into_a_scope() {
        assert!(matches!(place(&ssh()), Place::NewScope { unit, .. } if unit == "rootless-launch-7.scope"));
    }

    #[test]
    fn a_delegated_unit_is_used_and_so_is_a_cgroup_below_it() {
        assert_eq!(place(&unit()), Place::Own(unit().own));
        let below = CgroupFacts { own: format!("{}/evac", unit().own), ..unit() };
        assert_eq!(place(&below), Place::Own(below.own.clone()));
    }

    #[test]
    fn an_applications_scope_is_writable_and_still_not_ours() {
        for name in ["vte-spawn-1.scope", "rootless-launch-8.scope"] {
            let facts = CgroupFacts {
                own: format!("{MANAGER}/app.slice/{name}"),
                delegated: Some(MANAGER.to_owned()),
                ..unit()
            };
            assert!(matches!(place(&facts), Place::NewScope { .. }));
        }
    }

    #[test]
    fn who_has_moved_stays() {
        let own = format!("{MANAGER}/app.slice/rootless-launch-7.scope");
        let facts = CgroupFacts { own: own.clone(), delegated: Some(MANAGER.to_owned()), ..unit() };
        assert_eq!(place(&facts), Place::Own(own));
    }

    #[test]
    fn a_service_that_may_write_and_a_container_are_used() {
        // systemd before 251 does not mark what is delegated to users.
        let own = "/user.slice/user-1000.slice/user@1000.service/app.slice/node.service".to_owned();
        let service = CgroupFacts { own: own.clone(), delegated: None, ..unit() };
        assert_eq!(place(&service), Place::Own(own));
        let container = CgroupFacts {
            own: "/".into(),
            delegated: None,
            has_systemd: false,
            managers: Vec::new(),
            ..unit()
        };
        assert_eq!(place(&container), Place::Own("/".into()));
    }

    #[test]
    fn without_delegation_auto_warns_once_and_delegated_fails() {
        let legacy = CgroupFacts { hierarchy: Hierarchy::Hybrid, ..ssh() };
        let alone = CgroupFacts { managers: Vec::new(), ..ssh() };
        let unmounted = CgroupFacts::default();
        for (facts, fix) in
            [(legacy, "unified_cgroup"), (alone, "enable-linger 1000"), (unmounted, "no cgroup v2")]
        {
            let plan = CgroupPlan::new(CgroupMode::Auto, &facts).expect("auto does without");
            assert!(!plan.is_delegated());
            let warning = plan.warning().expect("it warns");
            assert!(warning.contains("not enforced") && warning.contains(fix), "{warning}");
            let error = CgroupPlan::new(CgroupMode::Delegated, &facts).expect_err("there is none");
            assert!(error.to_string().contains(fix), "{error}");
        }
    }

    #[test]
    fn none_is_silent() {
        let plan = CgroupPlan::new(CgroupMode::None, &unit()).expect("nothing is demanded");
        assert_eq!((plan.is_delegated(), plan.warning()), (false, None));
    }

    #[test]
    fn missing_controllers_name_the_drop_in() {
        let facts = CgroupFacts { controllers: vec!["memory".into(), "pids".into()], ..unit() };
        assert_eq!(facts.missing(), ["cpu"]);
        assert!(CgroupPlan::new(CgroupMode::Auto, &facts).is_ok_and(|plan| plan.is_delegated()));
        let error = CgroupPlan::new(CgroupMode::Delegated, &facts).expect_err("cpu is missing").to_string();
        assert!(error.starts_with("cpu is not delegated") && error.contains("delegate.conf"), "{error}");
    }

    #[test]
    fn a_scope_that_cannot_be_written_to_is_none() {
        let facts = CgroupFacts { is_writable: false, ..unit() };
        let plan = CgroupPlan::after_move(CgroupMode::Auto, &facts);
        assert!(matches!(plan, Ok(CgroupPlan::Without(NoDelegation::Refused(_)))));
        assert!(CgroupPlan::after_move(CgroupMode::Delegated, &facts).is_err());
    }
}
