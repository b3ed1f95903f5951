//! The laboratory: worlds made of network namespaces in which the programs of this workspace are judged from outside.
//!
//! Everything runs as an ordinary user and nothing leaves the machine. A [`World`](world::World) is a user namespace that holds three
//! network namespaces in a row: `host` (where the program under test has its sockets), `router` and `far` (the internet). Programs are
//! started inside by the [`probe`] binary, which is also the program that speaks the test protocols from inside the child namespace.
//!
//! Waiting is for events (a line, an exit, a readable descriptor) and bounded by a deadline; nothing sleeps. Functions of this crate
//! panic when the world does not obey: their callers are tests.

pub mod agent;
pub mod client;
pub mod components;
pub mod control_plane;
pub mod egress;
pub mod engine;
pub mod forward;
pub mod instance;
pub mod link;
pub mod locate;
pub mod node;
pub mod outbound;
pub mod overlay;
pub mod podman;
pub mod probe;
pub mod process;
pub mod published;
pub mod rootlesskit;
pub mod servers;
pub mod session;
pub mod skip;
pub mod stream;
pub mod sys;
pub mod talk;
pub mod unshared;
pub mod vm;
pub mod world;
