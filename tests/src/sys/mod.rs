//! The system calls that need `unsafe`: four of them.
#![expect(
    unsafe_code,
    reason = "descriptors that arrive as numbers, and three calls that have no safe wrapper"
)]

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

/// Takes ownership of descriptors that the kernel has just installed in this process for an `SCM_RIGHTS` message.
///
/// Must be called once per received message with exactly the numbers of that message.
#[must_use]
pub fn adopt_received(fds: &[RawFd]) -> Vec<OwnedFd> {
    // SAFETY: the kernel made these descriptors for this process in recvmsg(2) and nobody else knows their numbers.
    fds.iter().map(|&fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect()
}

/// A descriptor that becomes readable when process `pid`, a child of ours that was not yet waited for, exits. See pidfd_open(2).
///
/// # Errors
/// What the kernel says, ESRCH when there is no such process.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given us this descriptor and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What stands before each frame of a TAP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TapHeader {
    /// Nothing: every frame is one packet, its checksums complete.
    None,
    /// A virtio-net header: the kernel leaves segmentation and checksums to us, and we to it.
    Virtio,
}

/// Makes (or attaches to) the TAP interface `name` in the network namespace of the caller.
///
/// # Errors
/// What the kernel says: EACCES or ENOENT for `/dev/net/tun`, EPERM without CAP_NET_ADMIN, EBUSY when attached already.
pub fn open_tap(name: &str, header: TapHeader) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: ifreq is plain old data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte.cast_signed() as libc::c_char;
    }
    let header = if header == TapHeader::Virtio { libc::IFF_VNET_HDR } else { 0 };
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | header) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives until the call returns.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

/// Makes the kernel leave checksums and the segmentation of TCP to the reader of a TAP with virtio-net headers.
///
/// # Errors
/// What the kernel says, EINVAL for a file that is no TAP.
pub fn take_super_segments(tap: &File) -> io::Result<()> {
    let flags = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    if unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(flags)) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
