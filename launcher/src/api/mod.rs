//! Control of a running instance: RootlessKit's REST API version 1 with paths and fields of our own, over HTTP on a
//! Unix socket.
//!
//! # Theory of operation
//! [`server`] owns the sockets and one thread; [`routes`] turns a request into a [`routes::Command`] without doing
//! anything; [`Control`] does it. Whoever does it answers through a [`Reply`] when it is done, on whatever thread,
//! so that no request waits for another one's. [`model`] is what travels, `openapi.yaml` beside this file says so
//! for others and is tested against the server.
//!
//! Not handled: TLS, users (whoever may open the socket may do everything), requests that travel in pieces for
//! longer than [`server::Limits`] allow.

pub mod control;
pub mod metrics;
pub mod model;
pub mod routes;
pub mod server;
mod stream;

use std::fmt;
use std::os::fd::OwnedFd;

use hyper::StatusCode;
use netstack::config::IpNet;
use netstack::flow::policy::{EgressPolicy, Rule};
use tokio::sync::oneshot;

use self::model::{
    Capture, Dns, DnsChange, FlowList, FlowQuery, Health, Info, Overlay, Policy, PortSpec, PortStatus,
    Position, Statistics,
};
use crate::holder::TakenPort;

/// The API's version, as RootlessKit counts it: ours adds to 1.1.1 and changes nothing.
pub const VERSION: &str = "1.1.1";

/// What a running instance can be asked and told.
///
/// No method may wait: each answers through its reply, at once or later. A reply that is dropped tells the client
/// that the engine has ended.
pub trait Control: fmt::Debug + Send + Sync {
    /// What this instance is.
    fn info(&self, reply: Reply<Info>);
    /// Whether it is ready.
    fn health(&self, reply: Reply<Health>);
    /// Published ports, by id.
    fn ports(&self, reply: Reply<Vec<PortStatus>>);
    /// Publishes a port.
    fn add_port(&self, spec: PortSpec, reply: Reply<PortStatus>);
    /// Takes a published port back.
    fn remove_port(&self, id: u64, reply: Reply<()>);
    /// Counters.
    fn statistics(&self, reply: Reply<Statistics>);
    /// Flows of the child.
    fn flows(&self, query: FlowQuery, reply: Reply<FlowList>);
    /// The egress policy.
    fn policy(&self, reply: Reply<Policy>);
    /// Replaces the egress policy.
    fn set_policy(&self, policy: EgressPolicy, reply: Reply<Policy>);
    /// Adds rules to the egress policy.
    fn add_policy(&self, rules: Vec<Rule>, position: Position, reply: Reply<Policy>);
    /// The overlay: whom it is shared with, and their traffic.
    fn overlay(&self, reply: Reply<Overlay>);
    /// Lets networks send by the overlay.
    fn allow_peers(&self, peers: Vec<IpNet>, reply: Reply<Overlay>);
    /// Lets networks send no more.
    fn forbid_peers(&self, peers: Vec<IpNet>, reply: Reply<Overlay>);
    /// Servers and static names.
    fn dns(&self, reply: Reply<Dns>);
    /// Changes servers or static names.
    fn set_dns(&self, change: DnsChange, reply: Reply<Dns>);
    /// Whether frames are recorded.
    fn capture(&self, reply: Reply<Capture>);
    /// Writes every frame to `file`, a regular one, from now on.
    fn start_capture(&self, file: OwnedFd, reply: Reply<Capture>);
    /// Ends the capture.
    fn stop_capture(&self, reply: Reply<Capture>);
}

/// Why a request is not served: the status and the message of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// 4xx or 5xx.
    pub status: StatusCode,
    /// A sentence for people.
    pub message: String,
    /// The host's port that somebody else has, if it is because of that.
    pub in_use: Option<TakenPort>,
}

impl Refusal {
    /// A refusal of any status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Refusal { status, message: message.into(), in_use: None }
    }

    /// 400: the request cannot be served as it is. RootlessKit says this also of ports in use and of unknown ids.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Refusal::new(StatusCode::BAD_REQUEST, message)
    }

    /// 409: not in this state.
    pub fn conflict(message: impl Into<String>) -> Self {
        Refusal::new(StatusCode::CONFLICT, message)
    }

    /// 503: not now.
    pub fn not_now(message: impl Into<String>) -> Self {
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// 501: this instance has nothing that could do it.
    pub fn not_here(message: impl Into<String>) -> Self {
        Refusal::new(StatusCode::NOT_IMPLEMENTED, message)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

type Finish<T> = Box<dyn FnOnce() -> Result<T, Refusal> + Send>;

/// The way back of one answer.
pub struct Reply<T>(oneshot::Sender<Finish<T>>);

impl<T: Send + 'static> Reply<T> {
    fn channel() -> (Self, oneshot::Receiver<Finish<T>>) {
        let (sender, receiver) = oneshot::channel();
        (Reply(sender), receiver)
    }

    /// Answers.
    pub fn send(self, answer: Result<T, Refusal>) {
        self.finish_later(move || answer);
    }

    /// Answers with what `finish` returns. It runs on the server's thread: what costs time delays no packet.
    pub fn finish_later(self, finish: impl FnOnce() -> Result<T, Refusal> + Send + 'static) {
        // Whoever asked may have gone.
        let _ = self.0.send(Box::new(finish));
    }
}

impl<T> fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}
