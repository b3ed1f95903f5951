//! `node`: a Kubernetes node of containerd or CRI-O, CNI or flannel, and kubelet.
//!
//! # Theory of operation
//! A node is an ordinary launch with the surroundings of a node, whose command is our own supervisor. [`args`] reads the
//! command line, [`facts`] asks the machine, [`plan`] decides what is written and run inside (pure), and the supervisor
//! does that. [`tasks`] are small programs of ours among what it runs.

pub mod args;
pub mod host_ports;
pub mod plan;
pub mod tasks;
