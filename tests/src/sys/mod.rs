//! The system calls that need `unsafe`.
#![expect(unsafe_code, reason = "descriptors that arrive as numbers, and calls that have no safe wrapper")]

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

/// From now on this process and its children cannot open netlink sockets of a `protocol`: EPROTONOSUPPORT, as from a kernel without it.
///
/// # Errors
/// What the kernel says.
pub fn forbid_netlink(protocol: i32) -> io::Result<()> {
    let (load, equal) =
        (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K);
    let answer = libc::BPF_RET | libc::BPF_K;
    // seccomp_data: the number of the call at 0, the arguments from 16 on, low halves first.
    let arguments = |index: u32| 16 + 8 * index + if cfg!(target_endian = "big") { 4 } else { 0 };
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        step(load, 0, 0, 0),
        step(equal, 0, 5, libc::SYS_socket as u32),
        step(load, 0, 0, arguments(0)),
        step(equal, 0, 3, libc::AF_NETLINK.cast_unsigned()),
        step(load, 0, 0, arguments(2)),
        step(equal, 0, 1, protocol.cast_unsigned()),
        step(answer, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPROTONOSUPPORT.cast_unsigned()),
        step(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the kernel reads the program, which lives until both calls have returned; numbers otherwise.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            | libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
