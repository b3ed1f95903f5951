//! What the facts mean. Pure.

use std::io;

use super::facts::{
    DataDirectory, Facts, FileSystem, LaunchFacts, ModulePlace, NodeFacts, Outcome, Port, PortState,
    RuntimeDirectory,
};
use super::finding::{Finding, Purpose, Remedy, State};
use crate::apply::programs::{Answer, Installed};
use crate::components::programs::{Origin, Program, Suitability};
use crate::hint;
use crate::plan::cgroup::{CgroupMode, Hierarchy};
use crate::plan::facts::HostFacts;
use crate::plan::idmap::{IdMapPlan, MapPlan, SingleReason};

/// Ids that the pods of a node need beside the caller's own: images have files of users up to nobody (65534).
const NODE_IDS: u64 = 65536;
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
/// Kubernetes whose kubelet is recommended.
const KUBERNETES: &str = "v1.36.4";
const FLANNEL: &str = "v0.28.9";
const FLANNEL_CNI: &str = "v1.9.1-flannel1";

/// Every finding, in the order of the report.
pub fn findings(facts: &Facts) -> Vec<Finding> {
    let mut findings = launch(facts);
    if let Some(node) = &facts.node {
        findings.extend(namespaces_of_a_node(facts, node));
        findings.extend(session(facts, node));
        findings.extend(limits(node, facts.host.uid));
        findings.push(data(&node.data));
        findings.extend(node.ports.iter().map(port));
        findings.extend(host(node));
        findings.extend(programs(node));
    }
    findings
}

fn launch(facts: &Facts) -> Vec<Finding> {
    const GROUP: Purpose = Purpose::Launch;
    let (launch, machine) = (&facts.launch, &facts.machine);
    let mut findings = Vec::new();
    let mut tried = |name, outcome: &Outcome, works| {
        findings.push(match outcome {
            Ok(()) => Finding::good(GROUP, name, works),
            Err(failure) => Finding::failed(GROUP, name, failure, machine),
        });
    };
    tried("namespaces", &launch.namespaces, "user, mount and network namespaces can be made");
    if launch.namespaces.is_ok() {
        tried("tap", &launch.tap, "a TAP device can be made in a network namespace");
        tried("mounts", &launch.mounts, "files can be mounted in a mount namespace");
        findings.insert(2, relay(facts));
        findings.push(subordinate_ids(&facts.host, launch));
    }
    if launch.no_new_privileges {
        let finding = "set: setuid programs such as newuidmap have no effect; start from a login without it (a unit's \
                       NoNewPrivileges=, a container's no-new-privileges, setpriv)";
        findings.push(Finding::stops(Purpose::Node, "no_new_privs", finding));
    }
    findings.push(sandbox(facts));
    findings.push(resolv_conf(facts));
    findings.push(match launch.ping {
        Ok(()) => Finding::good(GROUP, "ping", "ping sockets are allowed"),
        Err(errno) => {
            let finding = format!("ping to the outside does not work in the child: {}", text(errno));
            Finding::less(GROUP, "ping", finding)
                .mended_by([Remedy::sysctl("net.ipv4.ping_group_range", "0 2147483647")])
        }
    });
    match &launch.overlaps[..] {
        [] => findings.push(Finding::good(GROUP, "addresses", "the default networks are free here")),
        overlaps => findings.extend(overlaps.iter().map(|text| Finding::less(GROUP, "addresses", text))),
    }
    findings
}

fn relay(facts: &Facts) -> Finding {
    const NAME: &str = "relay";
    let Err(failure) = &facts.launch.relay else {
        return Finding::good(Purpose::Launch, NAME, "outbound TCP connections are joined in the kernel");
    };
    let fix = hint::for_failure(failure, &facts.machine).map(|hint| hint.fix).unwrap_or_default();
    Finding::less(Purpose::Launch, NAME, format!("{failure}; they go by the TAP, at a fraction of the speed"))
        .mended_by(Remedy::of_command(&fix))
}

fn sandbox(facts: &Facts) -> Finding {
    const NAME: &str = "sandbox";
    let less = |finding: String| {
        let fix = facts.machine.forbids_namespaces().map(|hint| hint.fix).unwrap_or_default();
        Finding::less(Purpose::Launch, NAME, finding).mended_by(Remedy::of_command(&fix))
    };
    match &facts.launch.sandbox {
        Ok((0, layers)) => {
            Finding::good(Purpose::Launch, NAME, format!("the engine keeps sockets only: {layers}"))
        }
        Ok((_, layers)) => less(format!("the engine keeps more than sockets: {layers}")),
        Err(error) => less(format!("it cannot be tried: {error}")),
    }
}

fn resolv_conf(facts: &Facts) -> Finding {
    const NAME: &str = "resolv.conf";
    if !facts.launch.resolv_conf {
        let finding = "/etc/resolv.conf is missing or a dangling link: the engine has no name server to ask (give one by --dns)";
        return Finding::less(Purpose::Launch, NAME, finding);
    }
    match facts.host.resolv_conf.lines().filter(|line| line.starts_with("nameserver")).count() {
        0 => Finding::less(Purpose::Launch, NAME, "/etc/resolv.conf names no server: give one by --dns"),
        count => Finding::good(Purpose::Launch, NAME, format!("{count} name servers")),
    }
}

/// Subordinate ids: as they were mapped, not as they are listed.
fn subordinate_ids(host: &HostFacts, launch: &LaunchFacts) -> Finding {
    const NAME: &str = "subordinate ids";
    const LESS: &str =
        "the child has one user id only; enough for most commands, not for those that change users";
    let less = |finding: String| Finding {
        state: State::Stops(Purpose::Node),
        ..Finding::less(Purpose::Launch, NAME, finding)
    };
    let user = host.user.clone().unwrap_or_else(|| host.uid.to_string());
    let grant = || {
        let range = "100000-165535";
        [Remedy::Command(format!("usermod --add-subuids {range} --add-subgids {range} {user}"))]
    };
    let plan = IdMapPlan::new(host);
    match &plan.users {
        MapPlan::Direct(_) => return Finding::good(Purpose::Launch, NAME, "not needed by root"),
        MapPlan::Single(SingleReason::NoHelper) => {
            return less(format!("newuidmap and newgidmap are not installed: {LESS}"))
                .mended_by([Remedy::Package("uidmap")]);
        }
        MapPlan::Single(SingleReason::NoRange) => {
            return less(format!("{user} has none in /etc/subuid and /etc/subgid: {LESS}"))
                .mended_by(grant());
        }
        MapPlan::Helper { .. } => {}
    }
    let mapped = match &launch.mapped {
        Some(Ok(mapped)) => *mapped,
        Some(Err(failure)) => return less(failure.to_string()),
        None => return less(format!("they could not be tried: {LESS}")),
    };
    if mapped.users <= 1 || mapped.groups <= 1 {
        let finding = format!("newuidmap or newgidmap is there but fails (run with -v to see why): {LESS}");
        if launch.no_new_privileges {
            return less(format!("{finding}; this session forbids setuid programs (NoNewPrivs)"));
        }
        if let Some(file) = launch.linked {
            let finding = format!("{finding}; {file} is a symbolic link, which they do not follow");
            let fix = format!("cp --remove-destination \"$(readlink -f {file})\" {file}");
            return less(finding).mended_by([Remedy::Command(fix)]);
        }
        let programs = host.newuidmap.iter().chain(&host.newgidmap);
        let programs: Vec<String> = programs.map(|path| path.display().to_string()).collect();
        return less(finding).mended_by([Remedy::Command(format!("chmod u+s {}", programs.join(" ")))]);
    }
    let count = mapped.users.min(mapped.groups) - 1;
    if count < NODE_IDS {
        let finding = format!(
            "only {count} beside the caller's own are mapped by newuidmap and newgidmap; a node wants {NODE_IDS}"
        );
        return less(finding).mended_by(grant());
    }
    Finding::good(Purpose::Launch, NAME, format!("{} user ids are mapped by newuidmap", mapped.users))
}

/// What was tried in the namespaces of a node.
fn namespaces_of_a_node(facts: &Facts, node: &NodeFacts) -> Vec<Finding> {
    const GROUP: Purpose = Purpose::Node;
    let inside = match &node.inside {
        Ok(inside) => inside,
        Err(failure) => {
            let finding = Finding::failed(GROUP, "node namespaces", failure, &facts.machine);
            return vec![finding];
        }
    };
    let mut findings = vec![Finding::good(
        GROUP,
        "node namespaces",
        "user, mount, network, pid, ipc, uts and cgroup namespaces can be made",
    )];
    for (name, outcome) in &inside.file_systems {
        let (label, why) = match name.as_str() {
            "proc" => (
                "proc",
                "the /proc here has parts covered, as in a container: start it with those open (systempaths=unconfined)",
            ),
            "sysfs" => ("sysfs", "the /sys here is read-only or has parts covered, as in a container"),
            _ => ("cgroup file system", "no cgroup v2 to be mounted"),
        };
        findings.push(match outcome {
            Ok(()) => Finding::good(GROUP, label, "can be mounted"),
            Err(failure) if label == "proc" => Finding::stops(GROUP, label, format!("{failure}: {why}")),
            // A node does with the host's.
            Err(failure) => Finding::less(GROUP, label, format!("{failure}: {why}")),
        });
    }
    findings.push(overlay(&inside.overlay, node));
    let devices = [
        ("bridge", "bridge", GROUP, "bridge"),
        ("veth", "veth", GROUP, "veth"),
        ("vxlan", "vxlan", Purpose::Cluster, "vxlan"),
    ];
    for (device, label, group, module) in devices {
        let Some((_, outcome)) = inside.devices.iter().find(|(name, _)| name == device) else { continue };
        findings.push(match outcome {
            Ok(()) => Finding::good(group, label, "devices can be made"),
            Err(failure) => without_module(node, group, label, &failure.to_string(), module),
        });
    }
    findings.push(expressions(node, &inside.expressions));
    findings.extend(iptables(node, &inside.iptables));
    findings
}

/// Something failed for which a kernel module is needed.
fn without_module(
    node: &NodeFacts,
    group: Purpose,
    label: &'static str,
    failure: &str,
    module: &str,
) -> Finding {
    match node.modules.place(module) {
        ModulePlace::Kernel => Finding::stops(group, label, failure),
        ModulePlace::Disk => {
            Finding::stops(group, label, format!("{failure}: the module {module} is not loaded"))
                .mended_by([Remedy::Module(module.to_owned())])
        }
        ModulePlace::Nowhere => {
            let finding = format!(
                "{failure}: the running kernel has no module {module} (after an upgrade of the kernel: reboot)"
            );
            Finding::stops(group, label, finding).mended_by([Remedy::Module(module.to_owned())])
        }
    }
}

fn overlay(outcome: &Outcome, node: &NodeFacts) -> Finding {
    const NAME: &str = "overlay";
    let Err(failure) = outcome else {
        return Finding::good(Purpose::Node, NAME, "the kernel's overlayfs works in the data directory");
    };
    let has = |program| node.programs.contains_key(&program);
    let mut lacks = Vec::new();
    if let Err(errno) = node.fuse {
        lacks.push(format!("/dev/fuse: {}", text(errno)));
    }
    for program in [Program::FuseOverlayfs, Program::MountFuse3, Program::FuseOverlayfsSnapshotter] {
        if !has(program) {
            lacks.push(missing(&[program]));
        }
    }
    let selinux = if node.selinux { "; SELinux enforces, which needs Linux 5.13 for this" } else { "" };
    if lacks.is_empty() {
        return Finding::less(
            Purpose::Node,
            NAME,
            format!("{failure}{selinux}; fuse-overlayfs is used, which is slower"),
        );
    }
    let remedies = match node.modules.place("overlay") {
        ModulePlace::Disk => vec![Remedy::Module("overlay".to_owned())],
        ModulePlace::Kernel | ModulePlace::Nowhere => Vec::new(),
    };
    let finding = format!(
        "{failure}{selinux}; nor can fuse-overlayfs be used ({}): every container gets a full copy of its image",
        lacks.join("; ")
    );
    Finding::less(Purpose::Node, NAME, finding).mended_by(remedies)
}

/// Expressions that only kube-proxy and flannel use in nf_tables of their own; iptables-nft brings its own.
fn expressions(node: &NodeFacts, outcomes: &[(String, Outcome)]) -> Finding {
    const NAME: &str = "nf_tables";
    let refused: Vec<&(String, Outcome)> = outcomes.iter().filter(|(_, outcome)| outcome.is_err()).collect();
    let module = |name: &str| match name {
        "masquerade" => "nft_masq",
        "dnat" => "nft_nat",
        "fib" => "nft_fib_ipv4",
        "ct" => "nft_ct",
        "numgen" => "nft_numgen",
        "reject" => "nft_reject_ipv4",
        _ => "nf_tables",
    };
    if refused.is_empty() {
        let names: Vec<&str> = outcomes.iter().map(|(name, _)| name.as_str()).collect();
        return Finding::good(Purpose::Node, NAME, format!("rules can be made with {}", names.join(", ")));
    }
    let why = refused.iter().filter_map(|(name, outcome)| {
        let errno = outcome.as_ref().err()?.errno;
        Some(format!("{name} ({})", text(errno)))
    });
    let on_disk = refused
        .iter()
        .map(|(name, _)| module(name))
        .filter(|module| node.modules.place(module) == ModulePlace::Disk);
    let remedies: Vec<Remedy> = on_disk.map(|module| Remedy::Module(module.to_owned())).collect();
    let finding = format!("the kernel refuses rules with {}", why.collect::<Vec<_>>().join(", "));
    // The CNI plugins' own rules go by iptables, which has a finding of its own.
    Finding::stops(Purpose::Cluster, NAME, finding).mended_by(remedies)
}

/// What rules of CNI plugins (a node) and of kube-proxy (a cluster) are made of.
fn iptables(node: &NodeFacts, outcomes: &[(String, Result<(), String>)]) -> Vec<Finding> {
    const NAME: &str = "iptables rules";
    if !node.programs.contains_key(&Program::Iptables) {
        // The program is missing, which is said there.
        return Vec::new();
    }
    let refused: Vec<(&str, &str)> = outcomes
        .iter()
        .filter_map(|(name, outcome)| Some((name.as_str(), outcome.as_ref().err()?.as_str())))
        .collect();
    if refused.is_empty() {
        let names: Vec<&str> = outcomes.iter().map(|(name, _)| name.as_str()).collect();
        return vec![Finding::good(Purpose::Node, NAME, format!("can be made with {}", names.join(", ")))];
    }
    let groups = [
        (Purpose::Node, refused.iter().filter(|(name, _)| !is_of_kube_proxy(name)).collect::<Vec<_>>()),
        (Purpose::Cluster, refused.iter().filter(|(name, _)| is_of_kube_proxy(name)).collect()),
    ];
    let findings = groups.into_iter().filter(|(_, refused)| !refused.is_empty()).map(|(group, refused)| {
        let why = refused.iter().map(|(name, why)| format!("{name} ({why})")).collect::<Vec<_>>();
        let modules = refused
            .iter()
            .map(|(name, _)| format!("xt_{name}"))
            .filter(|module| node.modules.place(module) == ModulePlace::Disk);
        Finding::stops(group, NAME, format!("cannot be made with {}", why.join(", ")))
            .mended_by(modules.map(Remedy::Module).collect::<Vec<_>>())
    });
    findings.collect()
}

fn is_of_kube_proxy(name: &str) -> bool {
    matches!(name, "conntrack" | "statistic" | "REDIRECT")
}

/// What systemd and the login give.
fn session(facts: &Facts, node: &NodeFacts) -> Vec<Finding> {
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

fn limits(node: &NodeFacts, uid: u32) -> Vec<Finding> {
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

fn data(data: &DataDirectory) -> Finding {
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

fn port(port: &Port) -> Finding {
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

/// kubelet's.
pub const KUBELET_PORT: &str = "10250/tcp";
/// flannel's.
pub const VXLAN_PORT: &str = "8472/udp";

/// Settings of the machine that are as they are.
fn host(node: &NodeFacts) -> Vec<Finding> {
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

fn programs(node: &NodeFacts) -> Vec<Finding> {
    const NODE: Purpose = Purpose::Node;
    const CLUSTER: Purpose = Purpose::Cluster;
    let containerd = [Program::Containerd, Program::ContainerdShim];
    let crio = [Program::Crio, Program::Conmon, Program::Pinns];
    let has = |programs: &[Program]| programs.iter().all(|program| node.programs.contains_key(program));
    let runtime: &[Program] = if !has(&containerd) && has(&crio) { &crio } else { &containerd };
    // crun is the smaller one, but starts nothing where cgroup v1 is in use.
    let (first, second) = match node.cgroups {
        Hierarchy::Unified => (Program::Crun, Program::Runc),
        _ => (Program::Runc, Program::Crun),
    };
    let oci = if !has(&[first]) && has(&[second]) { second } else { first };
    let cni = [Program::CniBridge, Program::CniHostLocal, Program::CniLoopback, Program::CniPortmap];
    vec![
        needed(node, NODE, "container runtime", runtime),
        needed(node, NODE, "OCI runtime", &[oci]),
        needed(node, NODE, "kubelet", &[Program::Kubelet]),
        needed(node, NODE, "CNI plugins", &cni),
        needed(node, NODE, "iptables", &[Program::Iptables]),
        useful(node, NODE, "crictl", Program::Crictl, "for looking into a node by hand"),
        needed(node, CLUSTER, "flannel", &[Program::Flanneld, Program::CniFlannel]),
        useful(
            node,
            CLUSTER,
            "conntrack",
            Program::Conntrack,
            "kube-proxy in iptables mode clears stale UDP flows by it",
        ),
        useful(
            node,
            CLUSTER,
            "etcd",
            Program::Etcd,
            "for flannel without an API server, and for a control plane",
        ),
    ]
}

/// Programs without which `group` cannot be served.
fn needed(node: &NodeFacts, group: Purpose, label: &'static str, programs: &[Program]) -> Finding {
    let (mut there, mut lacks, mut doubts) = (Vec::new(), Vec::new(), Vec::new());
    let absent: Vec<Program> =
        programs.iter().copied().filter(|program| !node.programs.contains_key(program)).collect();
    // Those of one package in one go.
    let packages = absent.chunk_by(|one, other| remedy(*one).is_some() && remedy(*one) == remedy(*other));
    lacks.extend(packages.map(missing));
    for &program in programs {
        let Some(installed) = node.programs.get(&program) else { continue };
        let name = named(program, installed);
        match (&installed.answer, installed.version().map(|version| program.suitability(version))) {
            (Answer::Failed(why), _) => lacks.push(format!("{name} does not run: {why}")),
            (_, Some(Suitability::TooOld { minimum, needed })) => {
                let origin = Origin::of_all(&[program]);
                lacks.push(format!("{name} is older than {minimum}, which has {needed} ({origin})"));
            }
            (_, Some(Suitability::Faulty(why))) => doubts.push(format!("{name}: {why}")),
            _ => there.push(name),
        }
    }
    if lacks.is_empty() {
        return match &doubts[..] {
            [] => Finding::good(group, label, there.join(", ")),
            doubts => Finding::less(group, label, doubts.join(", ")),
        };
    }
    lacks.append(&mut doubts);
    Finding::stops(group, label, lacks.join("; "))
        .mended_by(absent.into_iter().filter_map(remedy).collect::<Vec<_>>())
}

/// Which are missing, and where to get them.
fn missing(programs: &[Program]) -> String {
    let names: Vec<String> = programs.iter().map(Program::to_string).collect();
    format!("no {} ({})", names.join(", "), Origin::of_all(programs))
}

/// A program that one can do without.
fn useful(node: &NodeFacts, group: Purpose, label: &'static str, program: Program, why: &str) -> Finding {
    match node.programs.get(&program) {
        Some(installed) => Finding::good(group, label, named(program, installed)),
        None => {
            Finding::less(group, label, format!("{}; {why}", missing(&[program]))).mended_by(remedy(program))
        }
    }
}

fn named(program: Program, installed: &Installed) -> String {
    let path = installed.path.display();
    match installed.version() {
        Some(version) => format!("{} {version} ({path})", program.file_name()),
        None => path.to_string(),
    }
}

/// How root gets a program.
fn remedy(program: Program) -> Option<Remedy> {
    if let Some(package) = program.origin().debian {
        return Some(Remedy::Package(package));
    }
    let machine = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        _ => return None,
    };
    let (url, file) = match program {
        Program::Kubelet => (
            format!("https://dl.k8s.io/release/{KUBERNETES}/bin/linux/{machine}/kubelet"),
            "/usr/local/bin/kubelet",
        ),
        Program::Flanneld => (
            format!("https://github.com/flannel-io/flannel/releases/download/{FLANNEL}/flanneld-{machine}"),
            "/usr/local/bin/flanneld",
        ),
        Program::CniFlannel => (
            format!(
                "https://github.com/flannel-io/cni-plugin/releases/download/{FLANNEL_CNI}/flannel-{machine}"
            ),
            "/opt/cni/bin/flannel",
        ),
        _ => return None,
    };
    Some(Remedy::Download { url, file: file.to_owned() })
}

fn text(errno: i32) -> String {
    io::Error::from_raw_os_error(errno).to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use super::super::facts::{Inside, Mapped, Modules};
    use super::super::finding::Verdict;
    use super::super::report;
    use super::*;
    use crate::components::programs::Version;
    use crate::error::{Failure, Step};
    use crate::hint::Machine;

    /// A Debian 13 on which a node runs.
    fn good() -> Facts {
        let fine = |names: &[&str]| names.iter().map(|&name| (name.to_owned(), Ok(()))).collect();
        let versions = [
            (Program::Containerd, Version::new(1, 7, 24)),
            (Program::ContainerdShim, Version::new(1, 7, 24)),
            (Program::Crun, Version::new(1, 21, 0)),
            (Program::Kubelet, Version::new(1, 36, 4)),
            (Program::CniBridge, Version::new(1, 1, 1)),
            (Program::CniHostLocal, Version::new(1, 1, 1)),
            (Program::CniLoopback, Version::new(1, 1, 1)),
            (Program::CniPortmap, Version::new(1, 1, 1)),
            (Program::CniFlannel, Version::new(1, 9, 1)),
            (Program::Iptables, Version::new(1, 8, 11)),
            (Program::Crictl, Version::new(1, 36, 0)),
            (Program::Flanneld, Version::new(0, 28, 9)),
            (Program::Conntrack, Version::new(1, 4, 8)),
            (Program::Etcd, Version::new(3, 5, 16)),
        ];
        let programs = versions.map(|(program, version)| {
            let path = PathBuf::from("/usr/bin").join(program.file_name());
            (program, Installed { path, answer: Answer::Version(version) })
        });
        let controllers = ["cpu", "cpuset", "io", "memory", "pids"].map(str::to_owned).to_vec();
        Facts {
            host: HostFacts {
                uid: 1000,
                gid: 1000,
                user: Some("ann".into()),
                subuid: "ann:100000:65536\n".into(),
                subgid: "ann:100000:65536\n".into(),
                newuidmap: Some("/usr/bin/newuidmap".into()),
                newgidmap: Some("/usr/bin/newgidmap".into()),
                resolv_conf: "nameserver 192.0.2.1\n".into(),
                ..HostFacts::default()
            },
            machine: Machine { program: "/opt/rl".into(), ..Machine::default() },
            launch: LaunchFacts {
                namespaces: Ok(()),
                tap: Ok(()),
                relay: Ok(()),
                mounts: Ok(()),
                mapped: Some(Ok(Mapped { users: 65537, groups: 65537 })),
                sandbox: Ok((0, "all".into())),
                ping: Ok(()),
                overlaps: Vec::new(),
                resolv_conf: true,
                no_new_privileges: false,
                linked: None,
            },
            node: Some(NodeFacts {
                inside: Ok(Inside {
                    file_systems: fine(&["proc", "sysfs", "cgroup2"]),
                    overlay: Ok(()),
                    devices: fine(&["bridge", "veth", "vxlan"]),
                    expressions: fine(&["ct", "masquerade"]),
                    iptables: vec![("comment".into(), Ok(())), ("statistic".into(), Ok(()))],
                }),
                systemd: true,
                runtime_directory: RuntimeDirectory::Good,
                lingers: Some(true),
                bus: true,
                cgroups: Hierarchy::Unified,
                cgroup: CgroupMode::Delegated,
                delegation: Ok(controllers),
                fuse: Ok(()),
                modules: Modules::default(),
                bridge_netfilter: true,
                sysctls: BTreeMap::from([
                    ("fs.inotify.max_user_instances", 512),
                    ("fs.inotify.max_user_watches", 524_288),
                    ("net.ipv4.ip_unprivileged_port_start", 1024),
                    ("user.max_user_namespaces", 28633),
                ]),
                open_files: 524_288,
                processes: u64::MAX,
                ports: vec![
                    Port { name: KUBELET_PORT, state: PortState::Free },
                    Port { name: VXLAN_PORT, state: PortState::Free },
                ],
                programs: BTreeMap::from(programs),
                data: DataDirectory { path: "/home/ann/d".into(), file_system: Ok(FileSystem::Local) },
                swap: false,
                selinux: false,
            }),
        }
    }

    fn refusal(step: Step, errno: i32) -> Failure {
        Failure { step, value: "it".into(), errno }
    }

    /// The only finding that is not good after `change`.
    #[track_caller]
    fn bad(change: impl FnOnce(&mut Facts, fn(&mut Facts) -> &mut NodeFacts)) -> Finding {
        let mut facts = good();
        change(&mut facts, |facts| facts.node.as_mut().unwrap());
        let mut bad: Vec<_> =
            findings(&facts).into_iter().filter(|finding| finding.state != State::Good).collect();
        assert_eq!(bad.len(), 1, "{bad:#?}");
        bad.remove(0)
    }

    /// What `change` makes of the node's facts, as verdicts for a launch, a node and a cluster, its name and its fix.
    #[track_caller]
    fn told(change: impl FnOnce(&mut NodeFacts)) -> (String, &'static str, String) {
        let finding = bad(|facts, node| change(node(facts)));
        let verdicts = Purpose::ALL.map(|purpose| match finding.verdict(Some(purpose)) {
            Verdict::Pass => 'p',
            Verdict::Warn => 'w',
            Verdict::Fail => 'F',
        });
        (verdicts.iter().collect(), finding.name, finding.fix())
    }

    #[track_caller]
    fn expect(told: (String, &'static str, String), verdicts: &str, name: &str, fix: &str) {
        assert_eq!((told.0.as_str(), told.1), (verdicts, name), "{told:?}");
        assert!(told.2.contains(fix) && told.2.is_empty() == fix.is_empty(), "{told:?}");
    }

    #[test]
    fn a_good_machine_serves_everything() {
        let findings = findings(&good());
        let not_good: Vec<_> = findings.iter().filter(|finding| finding.state != State::Good).collect();
        assert!(not_good.is_empty(), "{not_good:#?}");
        assert!(report::mending(&findings, None).is_empty());
    }

    #[test]
    fn for_a_launch_nothing_of_a_node_is_told() {
        let facts = Facts { node: None, ..good() };
        assert!(findings(&facts).iter().all(|finding| finding.group == Purpose::Launch));
    }

    #[test]
    fn apparmor_is_told_by_both_errnos_at_clone_and_at_mount_with_a_profile_of_our_path() {
        for errno in [libc::EPERM, libc::EACCES] {
            for step in [Step::CloneNamespaces, Step::MapIds, Step::Mount] {
                let mut facts = Facts { node: None, ..good() };
                facts.machine.apparmor_restricts = Some(1);
                let failure = Err(refusal(step, errno));
                match step {
                    Step::Mount => facts.launch.mounts = failure,
                    _ => facts.launch.namespaces = failure,
                }
                let findings = findings(&facts);
                let lacks: Vec<_> = report::lacks(&findings, Purpose::Launch).collect();
                let [finding] = lacks[..] else { panic!("{lacks:#?}") };
                assert!(finding.finding.contains("AppArmor"), "{finding:?}");
                assert!(finding.fix().contains("\"/opt/rl\" flags=(unconfined)"), "{finding:?}");
                assert!(finding.fix().contains("/etc/apparmor.d/rootless-launch"), "{finding:?}");
            }
        }
    }

    #[test]
    fn what_of_a_node_cannot_be_made_stops_a_node() {
        let refused = || Err(refusal(Step::Network, libc::EOPNOTSUPP));
        let inside = |node: &mut NodeFacts, change: fn(&mut Inside)| change(node.inside.as_mut().unwrap());
        expect(
            told(|node| node.inside = Err(refusal(Step::CloneNamespaces, libc::EPERM))),
            "wFF",
            "node namespaces",
            "",
        );
        expect(
            told(|node| {
                inside(node, |inside| inside.file_systems[0].1 = Err(refusal(Step::Mount, libc::EPERM)))
            }),
            "wFF",
            "proc",
            "",
        );
        expect(
            told(|node| inside(node, |inside| inside.overlay = Err(refusal(Step::Mount, libc::ENODEV)))),
            "www",
            "overlay",
            "",
        );
        expect(
            told(|node| {
                node.modules.available = "kernel/net/bridge/bridge.ko.xz:\n".into();
                node.inside.as_mut().unwrap().devices[0].1 = refused();
            }),
            "wFF",
            "bridge",
            "modprobe bridge",
        );
        expect(
            told(|node| node.inside.as_mut().unwrap().devices[2].1 = refused()),
            "wwF",
            "vxlan",
            "modprobe vxlan",
        );
        expect(
            told(|node| node.inside.as_mut().unwrap().expressions[1].1 = refused()),
            "wwF",
            "nf_tables",
            "",
        );
        let no_match = || Err("iptables: No chain/target/match by that name.".to_owned());
        expect(
            told(|node| node.inside.as_mut().unwrap().iptables[0].1 = no_match()),
            "wFF",
            "iptables rules",
            "",
        );
        expect(
            told(|node| node.inside.as_mut().unwrap().iptables[1].1 = no_match()),
            "wwF",
            "iptables rules",
            "",
        );
    }

    #[test]
    fn an_overlay_is_replaced_by_fuse_where_that_works() {
        let finding = bad(|facts, node| {
            let node = node(facts);
            node.inside.as_mut().unwrap().overlay = Err(refusal(Step::Mount, libc::EPERM));
            for program in [Program::FuseOverlayfs, Program::MountFuse3, Program::FuseOverlayfsSnapshotter] {
                node.programs.insert(program, Installed { path: "/f".into(), answer: Answer::Unknown });
            }
        });
        assert!(finding.finding.contains("fuse-overlayfs is used"), "{finding:?}");
        assert_eq!(finding.state, State::Less);
    }

    #[test]
    fn subordinate_ids_are_a_nodes_need() {
        let few = |users, groups| bad(|facts, _| facts.launch.mapped = Some(Ok(Mapped { users, groups })));
        for finding in [few(1, 65537), few(65537, 1), few(65536, 65537)] {
            assert_eq!(
                (finding.name, finding.group, finding.state),
                ("subordinate ids", Purpose::Launch, State::Stops(Purpose::Node))
            );
        }
        assert_eq!(few(1, 1).fix(), "chmod u+s /usr/bin/newuidmap /usr/bin/newgidmap");
        assert!(few(1001, 1001).fix().starts_with("usermod --add-subuids 100000-165535"));
        let missing = bad(|facts, _| facts.host.newuidmap = None);
        assert_eq!(missing.fix(), "apt-get install uidmap");
        let none = bad(|facts, _| facts.host.subgid.clear());
        assert!(none.fix().ends_with(" ann"), "{}", none.fix());
        let linked = bad(|facts, _| {
            facts.launch.mapped = Some(Ok(Mapped { users: 1, groups: 1 }));
            facts.launch.linked = Some("/etc/subuid");
        });
        assert!(linked.fix().contains("readlink -f /etc/subuid"), "{linked:?}");
    }

    #[test]
    fn without_new_privileges_no_command_helps() {
        let mut facts = good();
        facts.launch.no_new_privileges = true;
        facts.launch.mapped = Some(Ok(Mapped { users: 1, groups: 1 }));
        let findings = findings(&facts);
        let lacks: Vec<_> = report::lacks(&findings, Purpose::Node).map(|finding| finding.name).collect();
        assert_eq!(lacks, ["subordinate ids", "no_new_privs"]);
        assert_eq!(report::lacks(&findings, Purpose::Launch).count(), 0);
        assert!(report::mending(&findings, None).is_empty());
    }

    #[test]
    fn cgroups_are_judged_by_what_is_delegated() {
        let delegated = |controllers: &[&str]| Ok(controllers.iter().map(|&name| name.to_owned()).collect());
        let delegate = "Delegate=cpu cpuset io memory pids";
        expect(told(|node| node.delegation = delegated(&["memory", "pids"])), "wFF", "cgroups", delegate);
        expect(
            told(|node| node.delegation = delegated(&["cpu", "memory", "pids"])),
            "www",
            "cgroups",
            delegate,
        );
        expect(
            told(|node| node.delegation = Err("no".into())),
            "wFF",
            "cgroups",
            "loginctl enable-linger ann",
        );
        let v1 = |node: &mut NodeFacts, hierarchy| {
            node.cgroups = hierarchy;
            node.delegation = Err("no".into());
            node.programs.insert(Program::Runc, Installed { path: "/runc".into(), answer: Answer::Unknown });
        };
        expect(
            told(|node| v1(node, Hierarchy::Hybrid)),
            "wFF",
            "cgroups",
            "systemd.unified_cgroup_hierarchy=1",
        );
        let bare = |node: &mut NodeFacts| {
            v1(node, Hierarchy::Legacy);
            node.systemd = false;
        };
        expect(told(bare), "wFF", "cgroups", "");
        let unwanted = |node: &mut NodeFacts| {
            bare(node);
            node.cgroup = CgroupMode::Auto;
        };
        expect(told(unwanted), "www", "cgroups", "");
    }

    #[test]
    fn a_session_is_told_what_it_lacks() {
        expect(told(|node| node.lingers = Some(false)), "www", "linger", "loginctl enable-linger ann");
        expect(told(|node| node.bus = false), "www", "user bus", "apt-get install dbus-user-session");
        let directory = |directory| told(|node| node.runtime_directory = directory);
        expect(directory(RuntimeDirectory::Unset("/run/user/1000".into())), "www", "XDG_RUNTIME_DIR", "");
        expect(directory(RuntimeDirectory::Missing), "www", "XDG_RUNTIME_DIR", "loginctl enable-linger ann");
        expect(directory(RuntimeDirectory::Bad("/x".into(), "why")), "wFF", "XDG_RUNTIME_DIR", "");
        let finding = bad(|facts, _| facts.host.uid = 0);
        assert_eq!((finding.name, finding.state), ("user", State::Less));
    }

    #[test]
    fn limits_that_are_low_are_raised() {
        let set = |name, value| told(|node| node.sysctls.extend([(name, value)]));
        expect(
            set("fs.inotify.max_user_instances", 128),
            "www",
            "inotify",
            "fs.inotify.max_user_instances=512",
        );
        expect(
            set("fs.inotify.max_user_instances", 8),
            "wFF",
            "inotify",
            "fs.inotify.max_user_instances=512",
        );
        expect(
            set("fs.inotify.max_user_watches", 8192),
            "www",
            "inotify",
            "fs.inotify.max_user_watches=524288",
        );
        expect(
            set("user.max_user_namespaces", 100),
            "www",
            "user namespaces",
            "user.max_user_namespaces=28633",
        );
        expect(set("net.ipv4.conf.all.rp_filter", 1), "www", "rp_filter", "net.ipv4.conf.all.rp_filter=2");
        expect(told(|node| node.open_files = 20_000), "www", "open files", "nofile");
        expect(told(|node| node.processes = 100), "www", "processes", "user-1000.slice TasksMax=infinity");
    }

    #[test]
    fn ports_data_and_modules_have_their_groups() {
        let taken = |index: usize| told(move |node| node.ports[index].state = PortState::Taken(None));
        expect(taken(0), "wFF", "10250/tcp", "");
        expect(taken(1), "wwF", "8472/udp", "");
        expect(told(|node| node.bridge_netfilter = false), "wwF", "br_netfilter", "modprobe br_netfilter");
        let on = |file_system| told(|node| node.data.file_system = file_system);
        expect(on(Ok(FileSystem::Network("NFS"))), "wFF", "data directory", "");
        expect(on(Ok(FileSystem::Memory)), "www", "data directory", "");
        expect(on(Err("it is not there".into())), "wFF", "data directory", "");
    }

    #[test]
    fn programs_are_missing_old_broken_or_faulty() {
        let without = |program: Program| told(move |node| drop(node.programs.remove(&program)));
        expect(without(Program::Containerd), "wFF", "container runtime", "apt-get install containerd");
        expect(without(Program::Crun), "wFF", "OCI runtime", "apt-get install crun");
        expect(without(Program::Kubelet), "wFF", "kubelet", "dl.k8s.io/release/v1.36.4/bin/linux/");
        expect(
            without(Program::CniPortmap),
            "wFF",
            "CNI plugins",
            "apt-get install containernetworking-plugins",
        );
        expect(without(Program::Iptables), "wFF", "iptables", "apt-get install iptables");
        expect(without(Program::Flanneld), "wwF", "flannel", "/flanneld-");
        expect(without(Program::Conntrack), "www", "conntrack", "apt-get install conntrack");
        let says = |program, answer| {
            told(move |node| drop(node.programs.insert(program, Installed { path: "/x".into(), answer })))
        };
        let version = |version| Answer::Version(version);
        expect(says(Program::Containerd, version(Version::new(1, 6, 20))), "wFF", "container runtime", "");
        expect(says(Program::Kubelet, Answer::Failed("no libc".into())), "wFF", "kubelet", "");
        expect(says(Program::Flanneld, version(Version::new(0, 28, 0))), "www", "flannel", "");
    }

    #[test]
    fn another_runtime_will_do() {
        let mut facts = good();
        let node = facts.node.as_mut().unwrap();
        for program in [Program::Containerd, Program::Crun] {
            node.programs.remove(&program);
        }
        for program in [Program::Crio, Program::Conmon, Program::Pinns, Program::Runc] {
            node.programs.insert(program, Installed { path: "/x".into(), answer: Answer::Unknown });
        }
        assert_eq!(report::lacks(&findings(&facts), Purpose::Cluster).count(), 0);
    }
}
