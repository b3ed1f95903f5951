//! Doing what the plan says; one file per plan file, same name.

pub mod cgroup;
pub mod command;
pub mod facts;
pub mod idmap;
pub mod leftovers;
pub mod mounts;
pub mod net;
pub mod programs;
