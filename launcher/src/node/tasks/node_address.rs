//! Lets kubelet say that the node is where its host is.
//!
//! The API server reaches kubelet by an address of the node object. kubelet takes for that, by `--node-ip`, only what it finds
//! on a device. A node's own address is behind the engine and leads others nowhere; its host's does, because kubelet's port is
//! published there. So the loopback device gets that address, and what the kernel makes of it is taken back: packets to the
//! host go on leaving by the TAP, those from it are no strangers, and nobody sends from it. For the latter IPv6, which likes to
//! answer an address from itself, is told to send by the TAP only from what the TAP has (RFC 6724, section 4).

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use super::TaskError;
use crate::netlink::message::{Batch, LOOPBACK, Reply};
use crate::netlink::socket::{Refused, Socket};
use crate::plan::net::TAP_NAME;

/// Does it; again, to no effect.
///
/// # Errors
/// The kernel refuses.
pub(super) fn run(addresses: &[IpAddr]) -> Result<(), TaskError> {
    if addresses.iter().any(IpAddr::is_ipv6) {
        let path = Path::new("/proc/sys/net/ipv6/conf").join(TAP_NAME).join("use_oif_addrs_only");
        fs::write(&path, "1").map_err(|source| TaskError::Write { path, source })?;
    }
    let socket = Socket::open().map_err(TaskError::Netlink)?;
    addresses.iter().try_for_each(|&address| put(&socket, address))
}

fn put(socket: &Socket, address: IpAddr) -> Result<(), TaskError> {
    let refused =
        |refused: Refused| TaskError::Address { address, step: refused.request, source: refused.error };
    let is = |error: &io::Error, errno| error.raw_os_error() == Some(errno);
    let routes = Socket::subscribe_ipv6_routes().map_err(TaskError::Netlink)?;
    let mut batch = Batch::new();
    match address {
        IpAddr::V4(address) => batch.add_ipv4_alone(LOOPBACK, address),
        IpAddr::V6(address) => batch.add_ipv6_alone(LOOPBACK, address),
    }
    let is_new = match socket.perform(&batch) {
        Err(Refused { error, .. }) if is(&error, libc::EEXIST) => false,
        done => done.map(|()| true).map_err(refused)?,
    };
    if let (IpAddr::V6(address), true) = (address, is_new) {
        let late = routes.wait_for(vec![Reply::LocalAddress(address)], PATIENCE_MILLISECONDS);
        late.map_err(TaskError::Netlink)?;
    }
    let mut batch = Batch::new();
    batch.forsake(address);
    match socket.perform(&batch) {
        // A predecessor has done that, too.
        Err(Refused { error, .. }) if is(&error, libc::ESRCH) && !is_new => Ok(()),
        done => done.map_err(refused),
    }
}

/// Until the kernel has put an IPv6 address into service.
const PATIENCE_MILLISECONDS: u16 = 5_000;
