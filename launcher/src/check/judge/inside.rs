//! What was tried in the namespaces of a node.

use super::super::facts::{Facts, ModulePlace, NodeFacts, Outcome};
use super::super::finding::{Finding, Purpose, Remedy};
use super::programs::missing;
use super::text;
use crate::components::programs::Program;

pub(super) fn findings(facts: &Facts, node: &NodeFacts) -> Vec<Finding> {
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
    let lacking = |programs: &[Program]| {
        let not_there = programs.iter().filter(|program| !node.programs.contains_key(program));
        not_there.map(|&program| missing(&[program])).collect::<Vec<_>>()
    };
    let mut lacks = lacking(&[Program::FuseOverlayfs]);
    if let Err(errno) = node.fuse {
        lacks.insert(0, format!("/dev/fuse: {}", text(errno)));
    }
    let containerd_lacks = lacking(&[Program::MountFuse3, Program::FuseOverlayfsSnapshotter]);
    let selinux = if node.selinux { "; SELinux enforces, which needs Linux 5.13 for this" } else { "" };
    let instead = match (&lacks[..], &containerd_lacks[..]) {
        ([], []) => {
            let finding = format!("{failure}{selinux}; fuse-overlayfs is used, which is slower");
            return Finding::less(Purpose::Node, NAME, finding);
        }
        ([], _) => format!(
            "CRI-O uses fuse-overlayfs, which is slower; containerd cannot ({}): every container gets a full copy of its image there",
            containerd_lacks.join("; ")
        ),
        _ => format!(
            "nor can fuse-overlayfs be used ({}): every container gets a full copy of its image",
            [lacks, containerd_lacks].concat().join("; ")
        ),
    };
    let remedies = match node.modules.place("overlay") {
        ModulePlace::Disk => vec![Remedy::Module("overlay".to_owned())],
        ModulePlace::Kernel | ModulePlace::Nowhere => Vec::new(),
    };
    Finding::less(Purpose::Node, NAME, format!("{failure}{selinux}; {instead}")).mended_by(remedies)
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
