//! The programs of a node, which are other projects', and what they need to be told. Pure.

pub mod cni;
pub mod containerd;
pub mod crio;
pub mod flannel;
pub mod kubeconfig;
pub mod kubelet;
pub mod layout;
pub mod programs;

use serde_json::Value;

/// What the node may do with cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cgroups {
    /// A subtree of cgroup v2 is ours, with controllers for memory, processes and CPU time.
    Delegated,
    /// A subtree is ours, without the cpu controller.
    DelegatedWithoutCpu,
    /// None: no limit is enforced.
    Withheld,
}

/// A document without nulls as TOML.
fn toml(document: &Value) -> String {
    // Nulls, which TOML lacks, are the one thing that could fail.
    ::toml::to_string(document).unwrap_or_default()
}
