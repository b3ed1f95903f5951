#![doc = include_str!("../README.md")]
//!
//! ## Modules
//! | module | |
//! |---|---|
//! | [`spec`], [`manager`], [`relay`], [`udp_session`], [`protocol`] | pure: what is wanted, and what follows from an event |
//! | [`driver`] | the event loop that owns listeners, connections and pipes |
//! | [`child`] | the agent inside the child's namespace, which makes sockets there |
//! | [`netfilter`] | the rules by which the child's connections to the world stay in the child |
//! | [`auto`], [`sock_diag`] | follow what listens inside the child |
//! | [`store`] | keeps forwards and their sockets while one driver dies and the next begins |
//! | `sys` | system calls |

pub mod auto;
pub mod child;
pub mod driver;
pub mod error;
pub mod manager;
pub mod netfilter;
pub mod protocol;
pub mod relay;
pub mod sock_diag;
pub mod spec;
pub mod store;
#[expect(unsafe_code, reason = "system calls that no safe wrapper offers; every block states its invariant")]
mod sys;
pub mod udp_session;
