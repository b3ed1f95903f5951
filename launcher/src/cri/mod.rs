//! As much of the Container Runtime Interface (CRI, k8s.io/cri-api, runtime.v1) as it takes to ask containers to end. Pure.
//!
//! # Theory of operation
//! CRI is gRPC, that is HTTP/2, over a Unix socket. A [`grpc::Call`] is one call on a connection of its own: bytes go out, bytes come
//! in, until there is an answer. [`message`] is what the calls carry. A library would bring an asynchronous runtime, HPACK and a
//! generator of code for three messages of two fields each.

pub mod grpc;
pub mod message;
