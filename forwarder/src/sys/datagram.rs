//! Datagrams in batches: recvmmsg(2), sendmmsg(2), UDP_SEGMENT and UDP_GRO (udp(7)), the address a datagram was sent to
//! (ip(7), `IP_PKTINFO`; ipv6(7), `IPV6_PKTINFO`).

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;
use super::socket::Address;

/// Datagrams, or joined ones, per system call.
const BATCH: usize = 32;
/// Bytes of the largest datagram, or of several joined ones.
const LARGEST: usize = 65_536;

/// A received datagram, or several equal ones.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Incoming {
    /// Who sent it; absent on a connected socket that did not say.
    pub(crate) from: Option<SocketAddr>,
    /// Our address that it was sent to.
    pub(crate) local: Option<IpAddr>,
    slot: usize,
    offset: usize,
    len: usize,
    /// Bytes per datagram where the kernel joined several.
    pub(crate) segment: Option<u16>,
}

impl Incoming {
    /// Bytes of all its datagrams.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// How many datagrams it is.
    pub(crate) fn count(&self) -> usize {
        self.segment.map_or(1, |segment| self.len.div_ceil(usize::from(segment)))
    }
}

/// Where a datagram goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum To {
    /// The peer of a connected socket.
    Peer,
    /// This address, from this one of ours.
    Address { remote: SocketAddr, local: IpAddr },
}

/// Memory for batches, made once and shared by all sockets.
pub(crate) struct Batch {
    bytes: Box<[u8]>,
    pub(crate) incoming: Vec<Incoming>,
    addresses: Box<[Address; BATCH]>,
    controls: Box<[Control; BATCH]>,
    pieces: Box<[libc::iovec; BATCH]>,
    headers: Box<[libc::mmsghdr; BATCH]>,
}

// SAFETY: the raw pointers inside are written anew, to memory that is then alive, before each use.
unsafe impl Send for Batch {}

impl Batch {
    pub(crate) fn new() -> Self {
        Batch {
            // Zeroed pages of the kernel's: touched where datagrams arrive.
            bytes: vec![0; BATCH * LARGEST].into_boxed_slice(),
            incoming: Vec::with_capacity(BATCH),
            addresses: Box::new([Address::NONE; BATCH]),
            controls: Box::new([Control::EMPTY; BATCH]),
            pieces: Box::new([libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH]),
            // SAFETY: all-zero is a valid `mmsghdr`: null pointers and zero lengths.
            headers: Box::new(unsafe { MaybeUninit::zeroed().assume_init() }),
        }
    }

    /// The payload of something received.
    pub(crate) fn bytes(&self, incoming: &Incoming) -> &[u8] {
        let start = incoming.slot * LARGEST + incoming.offset;
        self.bytes.get(start..start + incoming.len).unwrap_or_default()
    }

    /// Receives what waits, into `self.incoming`; says whether there may be more.
    pub(crate) fn receive(&mut self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        self.incoming.clear();
        for (slot, buffer) in self.bytes.chunks_exact_mut(LARGEST).enumerate() {
            self.pieces[slot] = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            let header = &mut self.headers[slot].msg_hdr;
            header.msg_name = self.addresses[slot].as_mut_ptr().cast();
            header.msg_namelen = size_of::<libc::sockaddr_in6>() as _;
            header.msg_iov = &raw mut self.pieces[slot];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut self.controls[slot]).cast();
            header.msg_controllen = size_of::<Control>() as _;
            header.msg_flags = 0;
        }
        // SAFETY: every header points to our arrays, alive and valid for writes of the lengths given.
        let received = unsafe {
            libc::recvmmsg(
                fd.as_raw_fd(),
                self.headers.as_mut_ptr(),
                BATCH as u32,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        let received = check(received)? as usize;
        for (slot, header) in self.headers.iter().take(received).enumerate() {
            let from = self.addresses[slot].to_std(header.msg_hdr.msg_namelen);
            let len = header.msg_len as usize;
            let mut incoming = Incoming { from, local: None, slot, offset: 0, len, segment: None };
            for (level, kind, data) in ControlMessages::new(&header.msg_hdr) {
                incoming.note(level, kind, data);
            }
            self.incoming.push(incoming);
        }
        Ok(received == BATCH)
    }

    /// Sends a joined payload datagram by datagram, for a way that takes no joined ones of this size; says how many of them
    /// the kernel took.
    pub(crate) fn send_split(&mut self, fd: BorrowedFd<'_>, index: usize, to: To) -> io::Result<usize> {
        let Some(&joined) = self.incoming.get(index) else { return Ok(0) };
        let segment = joined.segment.map_or(joined.len, usize::from).max(1);
        let mut sent = 0;
        for offset in (0..joined.len).step_by(segment) {
            let one = Incoming { offset, len: segment.min(joined.len - offset), segment: None, ..joined };
            self.incoming.push(one);
            let last = self.incoming.len() - 1;
            let result = self.send(fd, last..last + 1, to);
            self.incoming.pop();
            sent += result?;
        }
        Ok(sent)
    }

    /// Sends the payloads of a run of `self.incoming`; says how many of the run the kernel took.
    pub(crate) fn send(
        &mut self,
        fd: BorrowedFd<'_>,
        run: std::ops::Range<usize>,
        to: To,
    ) -> io::Result<usize> {
        let mut count = 0;
        for incoming in self.incoming.get(run).unwrap_or_default().iter().take(BATCH) {
            let start = incoming.slot * LARGEST + incoming.offset;
            let Some(bytes) = self.bytes.get_mut(start..start + incoming.len) else { break };
            self.pieces[count] = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
            let control = &mut self.controls[count];
            let used = control.write(to, incoming.segment);
            let header = &mut self.headers[count].msg_hdr;
            (header.msg_name, header.msg_namelen) = match to {
                To::Peer => (std::ptr::null_mut(), 0),
                To::Address { remote, .. } => {
                    self.addresses[count] = Address::from(remote);
                    (self.addresses[count].as_mut_ptr().cast(), self.addresses[count].len)
                }
            };
            header.msg_iov = &raw mut self.pieces[count];
            header.msg_iovlen = 1;
            header.msg_control = if used == 0 { std::ptr::null_mut() } else { (&raw mut *control).cast() };
            header.msg_controllen = used as _;
            count += 1;
        }
        if count == 0 {
            return Ok(0);
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the first `count` headers were filled above and point to our arrays.
        let sent =
            unsafe { libc::sendmmsg(fd.as_raw_fd(), self.headers.as_mut_ptr(), count as u32, flags as _) };
        check(sent).map(|sent| sent as usize)
    }
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").finish_non_exhaustive()
    }
}

impl Incoming {
    fn note(&mut self, level: i32, kind: i32, data: &[u8]) {
        match (level, kind) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                let segment = data.first_chunk().map(|&bytes| i32::from_ne_bytes(bytes));
                self.segment = segment
                    .and_then(|segment| u16::try_from(segment).ok())
                    .filter(|&segment| segment > 0 && usize::from(segment) < self.len);
            }
            // `struct in_pktinfo`: index, the local address, the header's destination.
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                self.local = data
                    .get(4..8)
                    .and_then(|octets| octets.first_chunk::<4>())
                    .map(|octets| Ipv4Addr::from(*octets).into());
            }
            // `struct in6_pktinfo`: the address, the index.
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                self.local = data.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).into());
            }
            _ => {}
        }
    }
}

/// Room for control messages, aligned as `struct cmsghdr` wants it.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; 128]);

impl Control {
    const EMPTY: Control = Control([0; 128]);

    /// Writes what a send needs; says how many bytes that is.
    fn write(&mut self, to: To, segment: Option<u16>) -> usize {
        let mut used = 0;
        if let Some(segment) = segment {
            used = self.push(used, libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
        }
        match to {
            To::Peer => {}
            To::Address { local: IpAddr::V4(local), .. } => {
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&local.octets());
                used = self.push(used, libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            To::Address { local: IpAddr::V6(local), .. } => {
                let mut info = [0; 20];
                info[..16].copy_from_slice(&local.octets());
                used = self.push(used, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
        }
        used
    }

    fn push(&mut self, at: usize, level: i32, kind: i32, data: &[u8]) -> usize {
        let header_len = cmsg_len(0);
        let space = cmsg_space(data.len());
        let Some(room) = self.0.get_mut(at..at + space) else { return at };
        room.fill(0);
        let len = cmsg_len(data.len()) as libc::size_t;
        room[..size_of::<libc::size_t>()].copy_from_slice(&len.to_ne_bytes());
        let fields = size_of::<libc::size_t>();
        room[fields..fields + 4].copy_from_slice(&level.to_ne_bytes());
        room[fields + 4..fields + 8].copy_from_slice(&kind.to_ne_bytes());
        room[header_len..header_len + data.len()].copy_from_slice(data);
        at + space
    }
}

fn cmsg_len(data: usize) -> usize {
    // SAFETY: computes with its argument only.
    unsafe { libc::CMSG_LEN(data as u32) as usize }
}

fn cmsg_space(data: usize) -> usize {
    // SAFETY: computes with its argument only.
    unsafe { libc::CMSG_SPACE(data as u32) as usize }
}

const _: () = {
    use std::mem::offset_of;
    // What `Control::push` writes is a `struct cmsghdr`, on glibc as well as on musl's little-endian targets.
    assert!(offset_of!(libc::cmsghdr, cmsg_len) == 0);
    assert!(offset_of!(libc::cmsghdr, cmsg_level) == size_of::<libc::size_t>());
    assert!(offset_of!(libc::cmsghdr, cmsg_type) == size_of::<libc::size_t>() + 4);
};

/// Walks the control messages of a header that the kernel filled: level, type, data.
pub(super) struct ControlMessages<'a> {
    header: &'a libc::msghdr,
    next: *const libc::cmsghdr,
}

impl<'a> ControlMessages<'a> {
    pub(super) fn new(header: &'a libc::msghdr) -> Self {
        // SAFETY: the header's control pointer and length describe memory the kernel has written.
        let next = unsafe { libc::CMSG_FIRSTHDR(header) };
        ControlMessages { header, next }
    }
}

impl<'a> Iterator for ControlMessages<'a> {
    type Item = (i32, i32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.next.is_null() {
            return None;
        }
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return only messages that lie whole in the control buffer,
        // which outlives `header`; the data follows the message's header.
        unsafe {
            let message = self.next.read_unaligned();
            let start = libc::CMSG_DATA(self.next);
            let len = message.cmsg_len.saturating_sub(cmsg_len(0));
            self.next = libc::CMSG_NXTHDR(self.header, self.next);
            Some((message.cmsg_level, message.cmsg_type, std::slice::from_raw_parts(start, len)))
        }
    }
}
