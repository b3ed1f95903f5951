//! The TAP device in the network namespace of the calling process.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The device node.
pub const DEVICE: &str = "/dev/net/tun";

nix::ioctl_write_ptr_bad!(
    /// TUNSETIFF, netdevice(7).
    tun_set_iff,
    libc::TUNSETIFF,
    libc::ifreq
);

/// Opens the device node.
///
/// # Errors
/// open(2).
pub(crate) fn open_device() -> io::Result<OwnedFd> {
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(Path::new(DEVICE))?;
    Ok(file.into())
}

/// Creates the TAP `name` with a virtio-net header in front of each frame; it lives as long as `device`.
///
/// # Errors
/// TUNSETIFF, netdevice(7); `EINVAL` for a name of more than 15 bytes.
pub(crate) fn create(device: &OwnedFd, name: &str) -> io::Result<()> {
    // SAFETY: all-zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: `request` is a valid ifreq with a NUL-terminated name and outlives the call.
    unsafe { tun_set_iff(device.as_raw_fd(), &raw const request) }?;
    Ok(())
}
