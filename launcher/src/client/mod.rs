//! Talking to a running instance.

pub mod http;
