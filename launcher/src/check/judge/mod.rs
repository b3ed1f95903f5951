//! What the facts mean. Pure.

mod host;
mod inside;
mod launch;
mod programs;
#[cfg(test)]
mod tests;

use std::io;

use super::facts::Facts;
use super::finding::Finding;

/// kubelet's.
pub const KUBELET_PORT: &str = "10250/tcp";
/// flannel's.
pub const VXLAN_PORT: &str = "8472/udp";

/// Every finding, in the order of the report.
pub fn findings(facts: &Facts) -> Vec<Finding> {
    let mut findings = launch::findings(facts);
    if let Some(node) = &facts.node {
        findings.extend(inside::findings(facts, node));
        findings.extend(host::session(facts, node));
        findings.extend(host::limits(node, facts.host.uid));
        findings.push(host::data(&node.data));
        findings.extend(node.ports.iter().map(host::port));
        findings.extend(host::settings(node));
        findings.extend(programs::findings(node));
    }
    findings
}

fn text(errno: i32) -> String {
    io::Error::from_raw_os_error(errno).to_string()
}
