//! Offloads of network devices (linux/ethtool.h).

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::check;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

const ETHTOOL_STXCSUM: u32 = 0x17;

/// Lets the kernel compute checksums of what is sent through `device`, before the device sees it.
///
/// # Errors
/// socket(2), `SIOCETHTOOL`; `ENODEV` if there is no such device, `EINVAL` if it is no name of one.
pub(crate) fn disable_tx_checksum(device: &str) -> io::Result<()> {
    // SAFETY: all-zero is a valid `ifreq`: an empty name, a null pointer.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let (last, room) = request.ifr_name.split_last_mut().ok_or(io::ErrorKind::InvalidInput)?;
    if device.len() > room.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    *last = 0;
    for (place, byte) in room.iter_mut().zip(device.bytes()) {
        *place = byte as libc::c_char;
    }
    let mut value = Value { command: ETHTOOL_STXCSUM, data: 0 };
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: `request` and the `value` that it points to outlive the call; this command reads one `ethtool_value`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) }.into()).map(drop)
}
