//! Tells flannel on other nodes where this one is, by an annotation of its node object, and waits until the cluster has given the
//! node a subnet: flanneld asks for it once, and ends when there is none.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use super::TaskError;
use super::programs::output;

/// flannel, Documentation/kubernetes.md: what peers send to, and nothing else.
pub(crate) const ANNOTATION: &str = "flannel.alpha.coreos.com/public-ip-overwrite";
/// Between attempts: others have to do something.
const PAUSE: Duration = Duration::from_secs(1);

/// Sets the annotation and sees a subnet, however long it takes. What is in the way is told once.
///
/// # Errors
/// kubectl cannot be started.
pub(super) fn run(
    kubectl: &Path,
    kubeconfig: &Path,
    node: &str,
    public_ip: Ipv4Addr,
) -> Result<(), TaskError> {
    let kubectl = |words: &[&str]| {
        let mut command = Command::new(kubectl);
        command.arg("--kubeconfig").arg(kubeconfig).args(words);
        output(&mut command, || words.join(" "))
    };
    let annotation = format!("{ANNOTATION}={public_ip}");
    let subnet = || {
        kubectl(&["annotate", "--overwrite", "node", node, &annotation])?;
        kubectl(&["get", "node", node, "--output=jsonpath={.spec.podCIDR}"])
    };
    let mut told = String::new();
    loop {
        let trouble = match subnet() {
            Ok(subnet) if !subnet.is_empty() => {
                log::info!("others find {node} at {public_ip}; its pods are in {subnet}");
                return Ok(());
            }
            Ok(_) => format!(
                "the cluster has not given {node} a subnet for its pods; kube-controller-manager does so with --allocate-node-cidrs \
                 and --cluster-cidr"
            ),
            Err(error @ TaskError::Failed { .. }) => error.to_string(),
            Err(error) => return Err(error),
        };
        if trouble != told {
            log::warn!("{trouble}; it is tried again");
            told = trouble;
        }
        thread::sleep(PAUSE);
    }
}
