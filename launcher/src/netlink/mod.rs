//! A small rtnetlink client: just the requests of a fresh network namespace.

pub mod message;
pub mod socket;
