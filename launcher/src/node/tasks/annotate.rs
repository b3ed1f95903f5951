//! Tells flannel on other nodes where this one is, by an annotation of its node object.
//!
//! It fails until kubelet has registered the node; the supervisor tries again.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use super::TaskError;
use super::programs::output;

/// flannel, Documentation/kubernetes.md: what peers send to, and nothing else.
pub(crate) const ANNOTATION: &str = "flannel.alpha.coreos.com/public-ip-overwrite";

/// Sets the annotation.
///
/// # Errors
/// The API server does not take it (yet).
pub(super) fn run(
    kubectl: &Path,
    kubeconfig: &Path,
    node: &str,
    public_ip: Ipv4Addr,
) -> Result<(), TaskError> {
    let mut command = Command::new(kubectl);
    command.arg("--kubeconfig").arg(kubeconfig).args(["annotate", "--overwrite", "node", node]);
    command.arg(format!("{ANNOTATION}={public_ip}"));
    output(&mut command, || format!("annotating node {node}")).map(drop)
}
