//! Keeps flannel's device as a node behind a TAP needs it, from the moment it appears. udev, which does this elsewhere, does
//! not run in a namespace.
//!
//! Its own address is the node's, where flanneld has made it the host's (see [`crate::components::flannel`]): a kernel sends
//! nothing from an address that it does not have. Checksum offload stays on: the engine completes what the kernel leaves, and
//! without it the device gives up segmentation, too, at a fraction of the speed.

use std::io;
use std::net::Ipv4Addr;

use nix::net::if_::if_nametoindex;

use super::TaskError;
use crate::components::flannel::DEVICE;
use crate::netlink::message::{Batch, Interface};
use crate::netlink::socket::Socket;
use crate::sys::memory;

/// Waits for the device, again and again.
///
/// # Errors
/// The kernel cannot be asked.
pub(super) fn run(local: Option<Ipv4Addr>) -> Result<(), TaskError> {
    let events = Socket::subscribe_links().map_err(TaskError::Netlink)?;
    let requests = Socket::open().map_err(TaskError::Netlink)?;
    let mut settled = None;
    loop {
        // A device that was made anew has another index. None is there before flanneld is.
        let found = if_nametoindex(DEVICE).ok();
        if let Some(index) = found.filter(|_| found != settled) {
            settle(&requests, index, local);
        }
        settled = found;
        memory::release_code();
        events.wait_any().map_err(TaskError::Netlink)?;
    }
}

/// What cannot be done is told; the next device may be another matter.
fn settle(requests: &Socket, index: u32, local: Option<Ipv4Addr>) {
    let Some(local) = local else { return };
    let mut batch = Batch::new();
    batch.set_vxlan_local(Interface(index), local);
    match requests.perform(&batch).map_err(|refused| refused.error) {
        Ok(()) => log::info!("{DEVICE}: sends from {local}"),
        Err(error) => told(&error, local),
    }
}

fn told(error: &io::Error, local: Ipv4Addr) {
    log::warn!("{DEVICE}: its address cannot be {local}: {error}; peers may not be reached");
}
