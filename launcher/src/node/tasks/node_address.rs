//! Lets kubelet say that the node is where its host is.
//!
//! The API server reaches kubelet by an address of the node object. kubelet takes for that, by `--node-ip`, only what it finds
//! on a device. A node's own address is behind the engine and leads others nowhere; its host's does, because kubelet's port is
//! published there. So the loopback device gets that address, and what the kernel makes of it is taken back: packets to the
//! host go on leaving by the TAP, those from it are no strangers, and nobody can send from it.

use std::net::Ipv4Addr;

use super::TaskError;
use crate::netlink::message::{Batch, Existing, LOOPBACK};
use crate::netlink::socket::{Refused, Socket};

/// Does it; again, to no effect.
///
/// # Errors
/// The kernel refuses.
pub(super) fn run(address: Ipv4Addr) -> Result<(), TaskError> {
    let socket = Socket::open().map_err(TaskError::Netlink)?;
    let refused =
        |refused: Refused| TaskError::Address { address, step: refused.request, source: refused.error };
    let mut batch = Batch::with(Existing::Replace);
    batch.add_ipv4_alone(LOOPBACK, address);
    socket.perform(&batch).map_err(refused)?;
    let mut batch = Batch::new();
    batch.forsake_ipv4(address);
    match socket.perform(&batch) {
        // Nothing leads there any more.
        Err(Refused { error, .. }) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        done => done.map_err(refused),
    }
}
