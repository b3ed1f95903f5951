//! What the user can do about an error: one sentence with the one command that mends it. Pure but for
//! [`Machine::read`].

use std::fs;

use crate::error::{Ending, Failure, LaunchError, Step};

/// Settings of the machine that forbid namespaces; `None` where the kernel does not have them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// kernel.unprivileged_userns_clone (Debian, Arch): 0 forbids.
    pub unprivileged_userns_clone: Option<u64>,
    /// kernel.apparmor_restrict_unprivileged_userns (Ubuntu): 1 forbids, unless a profile allows.
    pub apparmor_restricts: Option<u64>,
    /// user.max_user_namespaces.
    pub max_user_namespaces: Option<u64>,
    /// user.max_net_namespaces.
    pub max_net_namespaces: Option<u64>,
    /// user.max_mnt_namespaces.
    pub max_mnt_namespaces: Option<u64>,
    /// Path of this program, which an AppArmor profile has to name.
    pub program: String,
}

impl Machine {
    /// Reads the settings of this machine.
    pub fn read() -> Self {
        let number = |name: &str| fs::read_to_string(format!("/proc/sys/{name}")).ok()?.trim().parse().ok();
        let program = std::env::current_exe().map(|path| path.display().to_string());
        Machine {
            unprivileged_userns_clone: number("kernel/unprivileged_userns_clone"),
            apparmor_restricts: number("kernel/apparmor_restrict_unprivileged_userns"),
            max_user_namespaces: number("user/max_user_namespaces"),
            max_net_namespaces: number("user/max_net_namespaces"),
            max_mnt_namespaces: number("user/max_mnt_namespaces"),
            program: program.unwrap_or_else(|_| "/usr/bin/rootless-launch".to_owned()),
        }
    }

    /// Why namespaces are forbidden, and what mends it, if one of the settings is to blame.
    pub fn forbids_namespaces(&self) -> Option<Hint> {
        if self.unprivileged_userns_clone == Some(0) {
            return Some(Hint {
                cause: "the kernel forbids user namespaces to ordinary users".to_owned(),
                fix: "sysctl -w kernel.unprivileged_userns_clone=1".to_owned(),
            });
        }
        let limits = [
            ("user.max_user_namespaces", self.max_user_namespaces),
            ("user.max_net_namespaces", self.max_net_namespaces),
            ("user.max_mnt_namespaces", self.max_mnt_namespaces),
        ];
        if let Some((name, _)) = limits.into_iter().find(|&(_, limit)| limit == Some(0)) {
            return Some(Hint {
                cause: format!("{name} is 0, which forbids these namespaces"),
                fix: format!("sysctl -w {name}=28633"),
            });
        }
        if self.apparmor_restricts == Some(1) {
            return Some(self.apparmor());
        }
        None
    }

    /// A profile rather than the sysctl: it opens namespaces to this program only.
    fn apparmor(&self) -> Hint {
        let program = &self.program;
        Hint {
            cause: format!("AppArmor forbids user namespaces to {program}, which no profile names"),
            fix: format!(
                "printf 'abi <abi/4.0>,\\ninclude <tunables/global>\\n\"{program}\" flags=(unconfined) {{\\n  userns,\\n}}\\n' \
                 > /etc/apparmor.d/rootless-launch && apparmor_parser -r /etc/apparmor.d/rootless-launch"
            ),
        }
    }
}

/// A cause and its remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint {
    /// In plain words.
    pub cause: String,
    /// The command for root; empty if no command helps.
    pub fix: String,
}

impl Hint {
    /// One sentence.
    pub fn sentence(&self) -> String {
        match &*self.fix {
            "" => self.cause.clone(),
            fix => format!("{}; as root: {fix}", self.cause),
        }
    }
}

/// What to do about an error, if anything is known.
pub fn for_error(error: &LaunchError, machine: &Machine) -> Option<Hint> {
    match error {
        LaunchError::Failed(failure) => for_failure(failure, machine),
        LaunchError::EngineDied(Ending::Killed(libc::SIGSYS)) => Some(Hint {
            cause:
                "it made a system call that its sandbox forbids, which is a fault of ours worth a report; \
                    --sandbox=off helps meanwhile"
                    .to_owned(),
            fix: String::new(),
        }),
        _ => None,
    }
}

/// What to do about a failed step, if anything is known.
pub fn for_failure(failure: &Failure, machine: &Machine) -> Option<Hint> {
    let hint = |cause: &str, fix: &str| Some(Hint { cause: cause.to_owned(), fix: fix.to_owned() });
    match (failure.step, failure.errno) {
        (Step::OpenTun, libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            hint("the TUN/TAP driver is not loaded", "modprobe tun")
        }
        (Step::OpenTun, libc::EACCES | libc::EPERM) => {
            hint("the device is closed to this user", "chmod 0666 /dev/net/tun")
        }
        (Step::CloneNamespaces, libc::EINVAL) => {
            hint("the kernel is built without user or network namespaces (CONFIG_USER_NS, CONFIG_NET_NS)", "")
        }
        (Step::CloneNamespaces, libc::ENOSYS) => hint("the kernel is older than 5.3, or a seccomp filter forbids", ""),
        (Step::CloneNamespaces, libc::ENOSPC | libc::EUSERS) => machine.forbids_namespaces().or_else(|| {
            hint(
                "the limit of namespaces is reached, or they are nested too deep",
                "sysctl -w user.max_user_namespaces=28633 user.max_net_namespaces=28633 user.max_mnt_namespaces=28633",
            )
        }),
        (Step::CloneNamespaces, libc::EPERM | libc::EACCES) => machine.forbids_namespaces().or_else(|| {
            hint("namespaces are forbidden here: a container's seccomp filter, a chroot or a security module", "")
        }),
        // With AppArmor the namespace can be made, but nothing may be done in it.
        (Step::MapIds | Step::CreateTap | Step::Network | Step::Mount, libc::EPERM | libc::EACCES)
            if machine.apparmor_restricts == Some(1) =>
        {
            Some(machine.apparmor())
        }
        (Step::Relay, libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::ENOENT | libc::ENOPROTOOPT) => {
            hint("the kernel has no nf_tables, which --egress=auto does without", "modprobe nf_tables")
        }
        (Step::Relay, _) => hint("--egress=auto carries as packets what cannot be relayed", ""),
        (Step::Confine, _) => hint("--sandbox=auto does with what this kernel gives", ""),
        (Step::Mount, libc::EPERM | libc::EACCES) => {
            hint("mounts are forbidden here: a container's seccomp filter or a security module", "")
        }
        (Step::MountProc, _) => hint(
            "parts of /proc are hidden here, as in a container, and the kernel shows nobody more than he sees; \
             --pidns=false does without, outside of a container it works",
            "",
        ),
        (Step::CopyUp, libc::ENOSPC) => hint("fs.mount-max or the memory is used up", ""),
        (Step::MakeDirectory, libc::EACCES | libc::EPERM | libc::EROFS) => {
            hint("the data of a node have to be the user's own, which --data-dir or XDG_DATA_HOME chooses", "")
        }
        (Step::Mount, libc::ENOSYS) => hint("the kernel is older than 5.2, or a seccomp filter forbids", ""),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence(step: Step, errno: i32, machine: &Machine) -> String {
        let failure = Failure { step, value: String::new(), errno };
        for_error(&failure.into(), machine).map(|hint| hint.sentence()).unwrap_or_default()
    }

    #[test]
    fn missing_tun_names_the_command() {
        let machine = Machine::default();
        assert!(sentence(Step::OpenTun, libc::ENOENT, &machine).ends_with("as root: modprobe tun"));
        assert!(
            sentence(Step::OpenTun, libc::EACCES, &machine).ends_with("as root: chmod 0666 /dev/net/tun")
        );
    }

    #[test]
    fn forbidden_namespaces_name_the_setting() {
        for errno in [libc::EPERM, libc::EACCES] {
            let machine = Machine { unprivileged_userns_clone: Some(0), ..Machine::default() };
            assert!(
                sentence(Step::CloneNamespaces, errno, &machine)
                    .contains("kernel.unprivileged_userns_clone=1")
            );
            let machine =
                Machine { apparmor_restricts: Some(1), program: "/opt/rl".into(), ..Machine::default() };
            for step in [Step::CloneNamespaces, Step::CreateTap, Step::Mount, Step::MapIds] {
                assert!(
                    sentence(step, errno, &machine).contains("\"/opt/rl\" flags=(unconfined)"),
                    "{step:?}"
                );
            }
            assert!(sentence(Step::CloneNamespaces, errno, &Machine::default()).contains("chroot"));
        }
        let machine = Machine { max_net_namespaces: Some(0), ..Machine::default() };
        assert!(
            sentence(Step::CloneNamespaces, libc::ENOSPC, &machine)
                .contains("sysctl -w user.max_net_namespaces")
        );
        assert!(
            sentence(Step::CloneNamespaces, libc::ENOSPC, &Machine::default()).contains("nested too deep")
        );
    }

    #[test]
    fn a_forbidden_system_call_names_the_way_around() {
        let died = |signal| LaunchError::EngineDied(Ending::Killed(signal));
        let hint = |error| for_error(&error, &Machine::default()).map(|hint| hint.sentence());
        assert!(hint(died(libc::SIGSYS)).is_some_and(|text| text.contains("--sandbox=off")));
        assert_eq!(hint(died(libc::SIGKILL)), None);
    }

    #[test]
    fn a_relay_that_cannot_be_names_the_way_without() {
        for (errno, fix) in [(libc::EPROTONOSUPPORT, "modprobe nf_tables"), (libc::EPERM, "--egress=auto")] {
            let sentence = sentence(Step::Relay, errno, &Machine::default());
            assert!(sentence.contains(fix) && sentence.contains("--egress=auto"), "{sentence}");
        }
    }

    #[test]
    fn other_errors_have_no_hint() {
        assert_eq!(sentence(Step::Execute, libc::ENOENT, &Machine::default()), "");
    }
}
