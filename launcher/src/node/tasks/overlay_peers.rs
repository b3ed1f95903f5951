//! Keeps the list of the overlay's peers what flannel says: those hosts may send that the VXLAN device sends to.
//!
//! flanneld writes every other node into the device's forwarding table, and takes out those that leave. What is on the list
//! for another reason stays there.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::TaskError;
use crate::api::model::{ErrorBody, Overlay, PeerList};
use crate::client::http::{self, HttpError, Request};
use crate::error::with_causes;
use crate::netlink::socket::Socket;
use crate::state_dir::{SOCKET, STATE_DIR_VARIABLE};
use crate::sys::memory;

/// The list is compared again after so long: the engine may have been started anew, without it.
const LOOK_AGAIN_MILLISECONDS: u16 = 10_000;

/// Runs until it is killed.
///
/// # Errors
/// The kernel cannot be asked.
pub(super) fn run() -> Result<(), TaskError> {
    let state_dir = std::env::var_os(STATE_DIR_VARIABLE).ok_or(TaskError::NoInstance)?;
    let mut list =
        List { socket: Path::new(&state_dir).join(SOCKET), ours: BTreeSet::new(), complaint: None };
    let events = Socket::subscribe_neighbors().map_err(TaskError::Netlink)?;
    let requests = Socket::open().map_err(TaskError::Netlink)?;
    loop {
        let peers = requests.tunnel_peers().map_err(TaskError::Netlink)?;
        let complaint = list.follow(&peers).err();
        if complaint != list.complaint {
            if let Some(reason) = &complaint {
                log::warn!("the overlay's peers are not what flannel says, this is tried again: {reason}");
            }
            list.complaint = complaint;
        }
        memory::release_code();
        events.wait_any_for(LOOK_AGAIN_MILLISECONDS).map_err(TaskError::Netlink)?;
    }
}

struct List {
    socket: PathBuf,
    /// What this task has put there.
    ours: BTreeSet<IpAddr>,
    /// Told once.
    complaint: Option<String>,
}

impl List {
    fn follow(&mut self, peers: &BTreeSet<IpAddr>) -> Result<(), String> {
        let overlay: Overlay = self.ask("GET", &[])?;
        let listed = |peer: &IpAddr| overlay.allowed.iter().any(|net| *net == peer.to_string());
        let missing: Vec<_> = peers.iter().copied().filter(|peer| !listed(peer)).collect();
        let stale: Vec<_> = self.ours.difference(peers).copied().filter(listed).collect();
        // First what comes: a list that is empty for a moment means something else.
        self.change("POST", &missing)?;
        self.ours.extend(missing);
        self.change("DELETE", &stale)?;
        self.ours.retain(|peer| peers.contains(peer));
        Ok(())
    }

    fn change(&self, method: &str, peers: &[IpAddr]) -> Result<(), String> {
        if peers.is_empty() {
            return Ok(());
        }
        let list = PeerList { peers: peers.iter().map(IpAddr::to_string).collect() };
        let body = serde_json::to_vec(&list).map_err(|error| error.to_string())?;
        let _: Overlay = self.ask(method, &body)?;
        let done = if method == "POST" { "may send" } else { "may send no more" };
        log::info!("{} {done}", list.peers.join(", "));
        Ok(())
    }

    fn ask(&self, method: &str, body: &[u8]) -> Result<Overlay, String> {
        let request = Request { body, ..Request::new(method, "/v1/overlay") };
        let told = |error: HttpError| with_causes(&error);
        let response = http::send(&self.socket, &request).map_err(told)?;
        let status = response.status;
        let answer = response.read().map_err(told)?;
        if (200..300).contains(&status) {
            return serde_json::from_slice(&answer).map_err(|error| error.to_string());
        }
        let body = serde_json::from_slice::<ErrorBody>(&answer);
        Err(body.map_or_else(|_| format!("HTTP status {status}"), |body| body.message))
    }
}
