//! Runs a command in its own namespaces, without root, behind a usermode network engine.
//!
//! Four processes: the launcher ([`parent`]) stays where it was called and waits; the engine ([`engine`]) owns the
//! TAP and the host's sockets and nothing else ([`sandbox`]); the guard ([`guard`]) sees to it that nothing outlives
//! the launcher; the child ([`child`]) sets up its namespaces and becomes CMD. [`plan`] decides,
//! [`apply`] does, [`handshake`] brings the three together.

pub mod agent;
pub mod api;
pub mod apply;
pub mod carrier;
pub mod check;
pub mod child;
pub mod cli;
pub mod client;
pub mod components;
pub mod cri;
pub mod dbus;
mod detached;
pub mod egress;
pub mod engine;
pub mod engine_process;
pub mod enter;
pub mod error;
pub mod forwards;
pub mod guard;
pub mod handshake;
pub mod hint;
pub mod holder;
mod init;
pub mod internal;
pub mod join;
pub mod logger;
pub mod manual;
pub mod netlink;
pub mod node;
pub mod notify;
pub mod parent;
pub mod personality;
pub mod plan;
pub mod restart;
pub mod sandbox;
pub mod services;
pub mod settings;
pub mod signals;
pub mod state_dir;
pub mod stats;
pub mod supervisor;
pub mod sweep;
#[expect(unsafe_code, reason = "system calls that no safe wrapper offers; every block states its invariant")]
pub mod sys;
