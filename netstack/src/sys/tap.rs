//! TAP devices: opened or adopted, with every offload the kernel gives.
//!
//! Sources: `Documentation/networking/tuntap.rst` and `include/uapi/linux/if_tun.h` of Linux.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind::InvalidData, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::sys::uio::{readv, writev};
use thiserror::Error;

use crate::frame::{Frame, LinkCapabilities, Offload};
use crate::offload::vnet_hdr::{self, VirtioNetHdr};

/// What can go wrong with a TAP; one variant per system call.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TapError {
    /// `/dev/net/tun` is missing or closed to this user.
    #[error("opening /dev/net/tun failed")]
    OpenTun(#[source] io::Error),
    /// The name is too long or empty.
    #[error("interface name {0:?} is not between 1 and 15 bytes long")]
    Name(String),
    /// The device could not be made or attached to.
    #[error("TUNSETIFF for {name} failed")]
    SetInterface {
        /// Interface name.
        name: String,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// The descriptor is not a TAP's.
    #[error("TUNGETIFF failed: the descriptor is not attached to a TAP device")]
    GetInterface(#[source] io::Error),
    /// The descriptor belongs to a TUN device, or one with packet information.
    #[error("the device has flags {0:#x}: a TAP without packet information (IFF_TAP | IFF_NO_PI) is needed")]
    Flags(i32),
    /// The length of the virtio-net header could not be set.
    #[error("TUNSETVNETHDRSZ failed")]
    SetHeaderSize(#[source] io::Error),
    /// The descriptor could not be made non-blocking.
    #[error("making the TAP non-blocking failed")]
    NonBlocking(#[source] io::Error),
}

/// An Ethernet device whose frames we read and write.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    name: String,
    multi_queue: bool,
    vnet_header: bool,
    /// Bytes of it.
    header_len: usize,
    capabilities: LinkCapabilities,
}

impl Tap {
    /// Makes (or attaches to) the TAP `name` in the network namespace of the calling thread. Needs
    /// `CAP_NET_ADMIN` there.
    pub fn open_in_current_netns(name: &str) -> Result<Self, TapError> {
        Self::open(name, 0)
    }

    /// Makes the TAP `name` with so many queues, at least one, between which the kernel spreads the child's flows. Needs
    /// `CAP_NET_ADMIN`, as [`Tap::open_in_current_netns`]; one queue is what that makes.
    pub fn open_queues_in_current_netns(name: &str, queues: usize) -> Result<Vec<Self>, TapError> {
        if queues <= 1 {
            return Ok(vec![Self::open_in_current_netns(name)?]);
        }
        (0..queues).map(|_| Self::open(name, libc::IFF_MULTI_QUEUE)).collect()
    }

    fn open(name: &str, queue: libc::c_int) -> Result<Self, TapError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(TapError::OpenTun)?;
        let fd = OwnedFd::from(file);
        let mut request = InterfaceRequest::named(name)?;
        let with_header = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queue) as i16;
        let plain = (libc::IFF_TAP | libc::IFF_NO_PI | queue) as i16;
        request.flags = with_header;
        let attached = set_interface(fd.as_fd(), &mut request).or_else(|error| {
            // Kernels without virtio-net headers on TAPs say EINVAL.
            if error.raw_os_error() != Some(libc::EINVAL) {
                return Err(error);
            }
            request.flags = plain;
            set_interface(fd.as_fd(), &mut request)
        });
        attached.map_err(|source| TapError::SetInterface { name: name.to_owned(), source })?;
        Self::from_fd(fd)
    }

    /// Adopts an attached descriptor, whoever made it. Offloads are tried from all to none.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, TapError> {
        let mut request = InterfaceRequest::default();
        get_interface(fd.as_fd(), &mut request).map_err(TapError::GetInterface)?;
        let flags = i32::from(request.flags);
        if flags & libc::IFF_TAP == 0 || flags & libc::IFF_NO_PI == 0 {
            return Err(TapError::Flags(flags));
        }
        let vnet_header = flags & libc::IFF_VNET_HDR != 0;
        set_nonblocking(fd.as_fd()).map_err(TapError::NonBlocking)?;
        let mut tap = Tap {
            fd,
            name: request.name(),
            multi_queue: flags & libc::IFF_MULTI_QUEUE != 0,
            vnet_header,
            header_len: 0,
            capabilities: LinkCapabilities::default(),
        };
        if vnet_header {
            set_header_size(tap.fd.as_fd(), VirtioNetHdr::LEN as i32).map_err(TapError::SetHeaderSize)?;
            tap.header_len = VirtioNetHdr::LEN;
            tap.capabilities = tap.probe_offloads(LinkCapabilities {
                checksum: true,
                tso4: true,
                tso6: true,
                uso: true,
                tunnel: false,
            });
        }
        Ok(tap)
    }

    /// Switches off what `wanted` does not name.
    pub fn limit_offloads(&mut self, wanted: LinkCapabilities) {
        if self.vnet_header {
            self.capabilities = self.probe_offloads(wanted);
        }
    }

    /// Has super-segments inside UDP tunnels travel whole, where the device offers it (Linux 6.17) and nothing else was
    /// switched off.
    pub fn offer_tunnels(&mut self) {
        let LinkCapabilities { checksum, tso4, tso6, uso, .. } = self.capabilities;
        if !(checksum && tso4 && tso6 && uso)
            || set_header_size(self.fd.as_fd(), vnet_hdr::TUNNEL_LEN as i32).is_err()
        {
            return;
        }
        let wanted = LinkCapabilities { tunnel: true, ..self.capabilities };
        if set_offload(self.fd.as_fd(), offload_flags(wanted)).is_ok() {
            (self.capabilities, self.header_len) = (wanted, vnet_hdr::TUNNEL_LEN);
        } else {
            // As it was; the offloads are, too.
            let _ = set_header_size(self.fd.as_fd(), self.header_len as i32);
        }
    }

    /// Takes the form of frames over from another queue of the same device, which is the device's.
    pub(crate) fn adopt_header_of(&mut self, other: &Tap) {
        self.header_len = other.header_len;
        self.capabilities = other.capabilities;
    }

    /// Whether the device may have other queues than this one.
    pub fn is_multi_queue(&self) -> bool {
        self.multi_queue
    }

    /// What the device does for us.
    pub fn capabilities(&self) -> LinkCapabilities {
        self.capabilities
    }

    /// Name of the interface in its namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the descriptor.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Reads one frame into `buffer`, of at least [`FRAME_BUFFER`](crate::stack::FRAME_BUFFER) bytes, for
    /// [`Stack::handle_frame`](crate::stack::Stack::handle_frame); `slot` names the buffer.
    ///
    /// # Errors
    /// `WouldBlock` when there is none now; `InvalidData` for a frame that its virtio-net header contradicts
    /// ([`DropReason::BadVnetHeader`](crate::error::DropReason::BadVnetHeader)): go on with the next. Any other
    /// means that the device is gone.
    pub fn recv<'a>(&self, buffer: &'a mut [u8], slot: u32) -> io::Result<Frame<'a>> {
        let mut header = [0; vnet_hdr::TUNNEL_LEN];
        let len = self.read(&mut header, buffer)?;
        let bytes = &mut buffer[..len];
        let offload =
            vnet_hdr::accept_tunnel(&header, bytes).map_err(|reason| io::Error::new(InvalidData, reason))?;
        Ok(Frame { bytes, offload, slot })
    }

    /// Writes one frame, as [`Stack::poll_frame`](crate::stack::Stack::poll_frame) gave it.
    ///
    /// # Errors
    /// `WouldBlock` or `ENOBUFS` while the device has no room; others when it is down or gone.
    pub fn send(&self, frame: &[u8], offload: Offload) -> io::Result<()> {
        let header = vnet_hdr::padded(vnet_hdr::emit_for_frame(offload, frame));
        self.write(&[IoSlice::new(&header[..self.header_len]), IoSlice::new(frame)])?;
        Ok(())
    }

    /// Bytes of the virtio-net header; 0 where there is none.
    pub(crate) fn header_len(&self) -> usize {
        self.header_len
    }

    /// Reads one frame; `WouldBlock` when there is none. Of the header the first [`Tap::header_len`] bytes are written,
    /// or the first ten zeroed.
    pub(crate) fn read(
        &self,
        header: &mut [u8; vnet_hdr::TUNNEL_LEN],
        frame: &mut [u8],
    ) -> io::Result<usize> {
        if !self.vnet_header {
            header.fill(0);
            return Ok(nix::unistd::read(&self.fd, frame)?);
        }
        let header = &mut header[..self.header_len];
        let read = readv(&self.fd, &mut [IoSliceMut::new(header), IoSliceMut::new(frame)])?;
        Ok(read.saturating_sub(self.header_len))
    }

    /// Writes one frame that consists of `parts`, the first of which is the virtio-net header of
    /// [`Tap::header_len`] bytes.
    pub(crate) fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let parts = if self.vnet_header { parts } else { &parts[1..] };
        Ok(writev(&self.fd, parts)?)
    }

    fn probe_offloads(&self, wanted: LinkCapabilities) -> LinkCapabilities {
        let tso = wanted.checksum && wanted.tso4 && wanted.tso6;
        let steps = [
            LinkCapabilities {
                checksum: true,
                tso4: true,
                tso6: true,
                uso: wanted.uso && tso,
                tunnel: false,
            },
            LinkCapabilities { checksum: true, tso4: true, tso6: true, uso: false, tunnel: false },
            LinkCapabilities { checksum: true, tso4: true, ..LinkCapabilities::default() },
            LinkCapabilities { checksum: true, ..LinkCapabilities::default() },
        ];
        let allowed = |step: &&LinkCapabilities| {
            (wanted.checksum || !step.checksum) && (wanted.tso4 || !step.tso4) && (wanted.tso6 || !step.tso6)
        };
        let works = |step: &&LinkCapabilities| set_offload(self.fd.as_fd(), offload_flags(**step)).is_ok();
        match steps.iter().filter(allowed).find(works) {
            Some(&step) => step,
            None => {
                // Nothing is offloaded then; that this is accepted cannot be doubted.
                let _ = set_offload(self.fd.as_fd(), 0);
                LinkCapabilities::default()
            }
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Adopts a TAP of the crate `tun-tap`, made by `Iface::without_packet_info`. It has no virtio-net header, so
/// nothing is offloaded to it.
#[cfg(feature = "tun-tap")]
impl TryFrom<tun_tap::Iface> for Tap {
    type Error = TapError;

    fn try_from(iface: tun_tap::Iface) -> Result<Self, TapError> {
        use std::os::fd::{FromRawFd, IntoRawFd};
        // SAFETY: the descriptor is open, and `into_raw_fd` gave up its ownership.
        Self::from_fd(unsafe { OwnedFd::from_raw_fd(iface.into_raw_fd()) })
    }
}

fn offload_flags(capabilities: LinkCapabilities) -> libc::c_uint {
    const TUN_F_CSUM: libc::c_uint = 0x01;
    const TUN_F_TSO4: libc::c_uint = 0x02;
    const TUN_F_TSO6: libc::c_uint = 0x04;
    const TUN_F_TSO_ECN: libc::c_uint = 0x08;
    const TUN_F_USO4: libc::c_uint = 0x20;
    const TUN_F_USO6: libc::c_uint = 0x40;
    const TUN_F_UDP_TUNNEL_GSO: libc::c_uint = 0x80;
    const TUN_F_UDP_TUNNEL_GSO_CSUM: libc::c_uint = 0x100;
    let flag = |on: bool, flags: libc::c_uint| if on { flags } else { 0 };
    flag(capabilities.checksum, TUN_F_CSUM)
        | flag(capabilities.tso4, TUN_F_TSO4)
        | flag(capabilities.tso6, TUN_F_TSO6)
        | flag(capabilities.tso4 || capabilities.tso6, TUN_F_TSO_ECN)
        | flag(capabilities.uso, TUN_F_USO4 | TUN_F_USO6)
        | flag(capabilities.tunnel, TUN_F_UDP_TUNNEL_GSO | TUN_F_UDP_TUNNEL_GSO_CSUM)
}

/// `struct ifreq` as the TUN ioctls use it: name and flags.
#[repr(C)]
#[derive(Default)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: i16,
    /// The rest of the union.
    padding: [u8; 22],
}

impl InterfaceRequest {
    fn named(name: &str) -> Result<Self, TapError> {
        let mut request = InterfaceRequest::default();
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
            return Err(TapError::Name(name.to_owned()));
        }
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        Ok(request)
    }

    fn name(&self) -> String {
        let len = self.name.iter().position(|&b| b == 0).unwrap_or(self.name.len());
        String::from_utf8_lossy(&self.name[..len]).into_owned()
    }
}

const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

mod ioctl {
    use super::InterfaceRequest;

    nix::ioctl_write_ptr_bad!(
        tunsetiff,
        nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
        InterfaceRequest
    );
    nix::ioctl_read_bad!(
        tungetiff,
        nix::request_code_read!(b'T', 210, size_of::<libc::c_uint>()),
        InterfaceRequest
    );
    nix::ioctl_write_int_bad!(tunsetoffload, nix::request_code_write!(b'T', 208, size_of::<libc::c_uint>()));
    nix::ioctl_write_ptr_bad!(
        tunsetvnethdrsz,
        nix::request_code_write!(b'T', 216, size_of::<libc::c_int>()),
        libc::c_int
    );
}

fn set_interface(fd: BorrowedFd<'_>, request: &mut InterfaceRequest) -> io::Result<()> {
    // SAFETY: the request has the size of `struct ifreq`, checked above, and outlives the call.
    unsafe { ioctl::tunsetiff(fd.as_raw_fd(), request)? };
    Ok(())
}

fn get_interface(fd: BorrowedFd<'_>, request: &mut InterfaceRequest) -> io::Result<()> {
    // SAFETY: the kernel writes a `struct ifreq`, whose size the request has.
    unsafe { ioctl::tungetiff(fd.as_raw_fd(), request)? };
    Ok(())
}

fn set_offload(fd: BorrowedFd<'_>, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    unsafe { ioctl::tunsetoffload(fd.as_raw_fd(), flags as libc::c_int)? };
    Ok(())
}

fn set_header_size(fd: BorrowedFd<'_>, size: libc::c_int) -> io::Result<()> {
    // SAFETY: the kernel reads one int, which outlives the call.
    unsafe { ioctl::tunsetvnethdrsz(fd.as_raw_fd(), &size)? };
    Ok(())
}

pub(super) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = nix::fcntl::OFlag::from_bits_retain(nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFL)?);
    nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFL(flags | nix::fcntl::OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_the_kernel_sees_them() {
        assert!(matches!(InterfaceRequest::named(""), Err(TapError::Name(_))));
        assert!(matches!(InterfaceRequest::named("0123456789abcdef"), Err(TapError::Name(_))));
        assert_eq!(InterfaceRequest::named("tap0").unwrap().name(), "tap0");
    }

    #[test]
    fn a_descriptor_that_is_no_tap_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(Tap::from_fd(file.into()), Err(TapError::GetInterface(_))));
    }
}
