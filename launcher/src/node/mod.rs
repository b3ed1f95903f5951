//! A rootless node of Kubernetes: `rootless-launch node`.

pub mod install;
pub mod service;
