//! What other projects' programs a node needs.

use super::super::facts::NodeFacts;
use super::super::finding::{Finding, Purpose, Remedy};
use crate::apply::programs::{Answer, Installed};
use crate::components::programs::{Origin, Program, Suitability};
use crate::plan::cgroup::Hierarchy;

/// Kubernetes whose kubelet is recommended.
const KUBERNETES: &str = "v1.36.4";
const FLANNEL: &str = "v0.28.9";
const FLANNEL_CNI: &str = "v1.9.1-flannel1";

pub(super) fn findings(node: &NodeFacts) -> Vec<Finding> {
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
pub(super) fn missing(programs: &[Program]) -> String {
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
