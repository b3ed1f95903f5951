//! What systemd, the login and the machine give to a node.

use super::super::facts::{DataDirectory, Facts, FileSystem, NodeFacts, Port, PortState, RuntimeDirectory};
use super::super::finding::{Finding, Purpose, Remedy, State};
use super::{KUBELET_PORT, text};
use crate::plan::cgroup::{CgroupMode, Hierarchy};

/// Controllers without which kubelet does not manage cgroups.
const NEEDED_CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Controllers that some pods' settings want.
const WANTED_CONTROLLERS: [&str; 2] = ["cpuset", "io"];
/// Files that a container runtime wants to have open (kind's entry point asks for as many).
const OPEN_FILES: u64 = 64_000;
/// Processes below which a handful of pods is all that runs.
const PROCESSES: u64 = 1024;
/// inotify instances and watches as kind's documentation recommends ("Pod errors due to too many open files").
const INOTIFY: [(&str, u64); 2] =
    [("fs.inotify.max_user_instances", 512), ("fs.inotify.max_user_watches", 524_288)];
/// inotify instances that kubelet and containerd alone use.
const INOTIFY_LEAST: u64 = 32;
/// User namespaces that pods may want.
const USER_NAMESPACES: u64 = 1024;

/// What systemd and the login give.
pub(super) fn session(facts: &Facts, node: &NodeFacts) -> Vec<Finding> {
    const GROUP: Purpose = Purpose::Node;
    let user = facts.host.user.clone().unwrap_or_else(|| facts.host.uid.to_string());
    let mut findings = Vec::new();
    if facts.host.uid == 0 {
        findings.push(Finding::less(GROUP, "user", "this is root: what a node runs is confined to nothing"));
    }
    findings.push(match &node.runtime_directory {
        RuntimeDirectory::Good => Finding::good(GROUP, "XDG_RUNTIME_DIR", "set and ours"),
        RuntimeDirectory::Unset(path) => Finding::less(
            GROUP,
            "XDG_RUNTIME_DIR",
            format!("not set, as after su or sudo -u; export XDG_RUNTIME_DIR={}", path.display()),
        ),
        RuntimeDirectory::Missing if node.systemd => {
            let finding =
                "not set and not there (no session of this user, no lingering): state is kept below /tmp";
            Finding::less(GROUP, "XDG_RUNTIME_DIR", finding).mended_by([Remedy::Linger(user.clone())])
        }
        RuntimeDirectory::Missing => {
            Finding::less(GROUP, "XDG_RUNTIME_DIR", "not set; state is kept below /tmp instead")
        }
        RuntimeDirectory::Bad(path, why) => {
            Finding::stops(GROUP, "XDG_RUNTIME_DIR", format!("{}: {why}", path.display()))
        }
    });
    if let Some(lingers) = node.lingers {
        findings.push(match lingers {
            true => Finding::good(GROUP, "linger", "services go on after logout"),
            false => Finding::less(
                GROUP,
                "linger",
                "a node ends when its user logs out, and does not come back at boot",
            )
            .mended_by([Remedy::Linger(user.clone())]),
        });
    }
    if node.systemd && !node.bus {
        let finding =
            "no message bus of the user's session; systemctl --user and systemd-run --user may fail";
        findings.push(
            Finding::less(GROUP, "user bus", finding).mended_by([Remedy::Package("dbus-user-session")]),
        );
    }
    let mut cgroups = cgroups(node, &user);
    if node.cgroup != CgroupMode::Delegated && cgroups.state != State::Good {
        cgroups.state = State::Less;
    }
    findings.push(cgroups);
    findings
}

fn cgroups(node: &NodeFacts, user: &str) -> Finding {
    const NAME: &str = "cgroups";
    const WITHOUT: &str = "pods run, but no limits of theirs are enforced";
    let controllers = match (&node.delegation, node.cgroups) {
        (Ok(controllers), _) => controllers,
        (Err(_), Hierarchy::Hybrid | Hierarchy::Legacy) => {
            let finding = format!("cgroup v1, which cannot be delegated: {WITHOUT}");
            let boot = node.systemd.then_some(Remedy::Boot("systemd.unified_cgroup_hierarchy=1"));
            return Finding::stops(Purpose::Node, NAME, finding).mended_by(boot);
        }
        (Err(_), Hierarchy::Missing) => {
            let finding = format!("none are mounted on /sys/fs/cgroup: {WITHOUT}");
            return Finding::stops(Purpose::Node, NAME, finding);
        }
        (Err(why), Hierarchy::Unified) => {
            let linger = node.systemd.then(|| Remedy::Linger(user.to_owned()));
            return Finding::stops(Purpose::Node, NAME, format!("{WITHOUT}: {why}")).mended_by(linger);
        }
    };
    let lacks = |names: &[&'static str]| {
        let missing = names.iter().filter(|name| !controllers.iter().any(|controller| controller == *name));
        missing.copied().collect::<Vec<_>>().join(", ")
    };
    let delegate = node.systemd.then_some(Remedy::Delegate);
    let (missing, wanted) = (lacks(&NEEDED_CONTROLLERS), lacks(&WANTED_CONTROLLERS));
    if !missing.is_empty() {
        let finding = format!("one is delegated, without {missing}: {WITHOUT}");
        return Finding::stops(Purpose::Node, NAME, finding).mended_by(delegate);
    }
    if !wanted.is_empty() {
        let finding = format!("one is delegated, without {wanted}, which few pods ask for");
        return Finding::less(Purpose::Node, NAME, finding).mended_by(delegate);
    }
    Finding::good(Purpose::Node, NAME, format!("one is delegated, with {}", controllers.join(", ")))
}

pub(super) fn limits(node: &NodeFacts, uid: u32) -> Vec<Finding> {
    const GROUP: Purpose = Purpose::Node;
    let mut findings = Vec::new();
    let value = |name| node.sysctls.get(name).copied();
    let low: Vec<(&str, u64, u64)> = INOTIFY
        .into_iter()
        .filter_map(|(name, wanted)| Some((name, value(name)?, wanted)))
        .filter(|(_, there, wanted)| there < wanted)
        .collect();
    let remedies: Vec<Remedy> = low.iter().map(|(name, _, wanted)| Remedy::sysctl(name, wanted)).collect();
    let listed: Vec<String> = low.iter().map(|(name, there, _)| format!("{name} is {there}")).collect();
    let instances = value("fs.inotify.max_user_instances").unwrap_or(u64::MAX);
    findings.push(
        match (&low[..], instances < INOTIFY_LEAST) {
            ([], _) => Finding::good(GROUP, "inotify", "instances and watches suffice"),
            (_, true) => {
                Finding::stops(GROUP, "inotify", format!("{}: too few for kubelet", listed.join(", ")))
            }
            (_, false) => {
                Finding::less(GROUP, "inotify", format!("{}: many pods need more", listed.join(", ")))
            }
        }
        .mended_by(remedies),
    );
    if let Some(count) = value("user.max_user_namespaces").filter(|&count| count < USER_NAMESPACES) {
        let finding =
            format!("user.max_user_namespaces is {count}: few pods with one of their own (hostUsers: false)");
        findings.push(
            Finding::less(GROUP, "user namespaces", finding)
                .mended_by([Remedy::sysctl("user.max_user_namespaces", 28633)]),
        );
    }
    findings.push(if node.open_files < OPEN_FILES {
        let finding = format!("the hard limit is {}; containers want {OPEN_FILES}", node.open_files);
        let lines = "printf '* hard nofile 1048576\\n' > /etc/security/limits.d/rootless-launch.conf && \
                     mkdir -p /etc/systemd/system/user@.service.d && \
                     printf '[Service]\\nLimitNOFILE=1048576\\n' > /etc/systemd/system/user@.service.d/nofile.conf && \
                     systemctl daemon-reload";
        Finding::less(GROUP, "open files", finding).mended_by([Remedy::Command(lines.to_owned())])
    } else {
        Finding::good(GROUP, "open files", format!("up to {}", node.open_files))
    });
    findings.push(match node.processes {
        count @ ..PROCESSES => {
            let finding = format!("no more than {count} (RLIMIT_NPROC, or a cgroup's pids.max)");
            let slice = format!("systemctl set-property user-{uid}.slice TasksMax=infinity");
            Finding::less(GROUP, "processes", finding)
                .mended_by(node.systemd.then_some(Remedy::Command(slice)))
        }
        u64::MAX => Finding::good(GROUP, "processes", "no limit"),
        count => Finding::good(GROUP, "processes", format!("up to {count}")),
    });
    findings
}

pub(super) fn data(data: &DataDirectory) -> Finding {
    const NAME: &str = "data directory";
    let path = data.path.display();
    match &data.file_system {
        Ok(FileSystem::Local) => {
            Finding::good(Purpose::Node, NAME, format!("{path}, on a local file system"))
        }
        Ok(FileSystem::Memory) => Finding::less(
            Purpose::Node,
            NAME,
            format!("{path} is in memory: images fill it, and it is gone after a reboot (--data-dir)"),
        ),
        Ok(FileSystem::Network(kind)) => Finding::stops(
            Purpose::Node,
            NAME,
            format!(
                "{path} is on {kind}, which knows no subordinate ids; choose one on a local disk (--data-dir)"
            ),
        ),
        Err(why) => Finding::stops(Purpose::Node, NAME, format!("{path}: {why} (--data-dir)")),
    }
}

pub(super) fn port(port: &Port) -> Finding {
    let group = if port.name == KUBELET_PORT { Purpose::Node } else { Purpose::Cluster };
    match &port.state {
        PortState::Free => Finding::good(group, port.name, "free"),
        PortState::Ours => Finding::good(group, port.name, "in use by a running instance of ours"),
        PortState::Taken(Some(owner)) => Finding::stops(group, port.name, format!("taken by {owner}")),
        PortState::Taken(None) => {
            let (number, protocol) = port.name.split_once('/').unwrap_or_default();
            let flag = if protocol == "udp" { 'u' } else { 't' };
            let finding = format!(
                "taken by a process of another user; ss -{flag}lnp 'sport = :{number}' tells root by which"
            );
            Finding::stops(group, port.name, finding)
        }
        PortState::Refused(errno) => Finding::stops(group, port.name, text(*errno)),
    }
}

/// Settings of the machine that are as they are.
pub(super) fn settings(node: &NodeFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let value = |name| node.sysctls.get(name).copied();
    if let Some(first) = value("net.ipv4.ip_unprivileged_port_start") {
        let finding = format!(
            "from {first} up they can be published; lower ones need net.ipv4.ip_unprivileged_port_start"
        );
        findings.push(Finding::good(Purpose::Node, "low ports", finding));
    }
    findings.push(Finding::good(
        Purpose::Node,
        "swap",
        if node.swap { "on; kubelet is told to bear it" } else { "off" },
    ));
    if node.selinux {
        findings.push(Finding::good(Purpose::Node, "SELinux", "enforcing"));
    }
    findings.push(match node.bridge_netfilter {
        true => Finding::good(Purpose::Cluster, "br_netfilter", "bridged packets pass the rules of iptables"),
        // The kernel never loads it by itself.
        false => Finding::stops(
            Purpose::Cluster,
            "br_netfilter",
            "not loaded: flannel does not start, and Services are not reached from pods of the same node",
        )
        .mended_by([Remedy::Module("br_netfilter".to_owned())]),
    });
    if value("net.ipv4.conf.all.rp_filter") == Some(1) || value("net.ipv4.conf.default.rp_filter") == Some(1)
    {
        let finding =
            "strict: what comes from another node by another way than the answer would take is dropped";
        findings.push(Finding::less(Purpose::Cluster, "rp_filter", finding).mended_by([
            Remedy::sysctl("net.ipv4.conf.all.rp_filter", 2),
            Remedy::sysctl("net.ipv4.conf.default.rp_filter", 2),
        ]));
    }
    findings
}
