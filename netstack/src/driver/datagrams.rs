//! Datagrams between host sockets and the stack, many per system call.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::AsFd;

use super::host_sockets::{HostSocket, SocketKind};
use super::observers::Observers;
use super::{Driver, is_temporary, zeroed};
use crate::action::{DatagramError, DatagramErrorKind, Hop, HostEvent, OpenError};
use crate::error::DropReason;
use crate::flow::FlowId;
use crate::forward::ForwardId;
use crate::frame::{Gso, Offload};
use crate::offload::IpVersion;
use crate::offload::coalesce::{RunLimits, runs};
use crate::offload::tunnel::{self, Join};
use crate::offload::vnet_hdr;
use crate::packet::MAX_HEADERS;
use crate::stack::{Datagram, Session, Stack, ToChild};
use crate::sys::socket::{self, BATCH, Incoming, RecvBatch};
use crate::time::Instant;

/// Length of a buffer for one received datagram, or several joined by the kernel.
const DATAGRAM: usize = 65536;
/// Longest datagram that is joined with others on the host's side: what an Ethernet takes.
const HOST_MTU: u16 = 1500;
/// Bytes of memory kept for what is cut from super-segments; more is needed only for uncommonly short segments.
const CUT_KEPT: usize = 512 << 10;
/// Bytes of a datagram that an ICMP error quotes at most.
const QUOTE: usize = 1500;

/// A datagram to send, or several equal ones.
pub(super) struct Outgoing {
    pub(super) flow: FlowId,
    pub(super) remote: SocketAddr,
    pub(super) bytes: OutgoingBytes,
    pub(super) gso: Gso,
    pub(super) hop: Hop,
    pub(super) local: Option<IpAddr>,
}

/// Where its bytes are.
pub(super) enum OutgoingBytes {
    /// In that receive buffer of the TAP.
    Slot(usize, Range<usize>),
    Owned(Vec<u8>),
}

impl OutgoingBytes {
    fn slice<'a>(&'a self, slots: &'a [Box<[u8]>]) -> &'a [u8] {
        &self.buffer(slots)[self.range()]
    }

    /// What [`OutgoingBytes::range`] is in.
    fn buffer<'a>(&'a self, slots: &'a [Box<[u8]>]) -> &'a [u8] {
        match self {
            OutgoingBytes::Slot(slot, _) => &slots[*slot],
            OutgoingBytes::Owned(bytes) => bytes,
        }
    }

    fn range(&self) -> Range<usize> {
        match self {
            OutgoingBytes::Slot(_, range) => range.clone(),
            OutgoingBytes::Owned(bytes) => 0..bytes.len(),
        }
    }
}

/// What one group of outgoing datagrams is on the host's side.
#[derive(Default)]
pub(super) struct Parts {
    parts: Vec<Part>,
    /// Datagrams that were cut from super-segments, one behind the other; what follows the last is of old.
    cut: Vec<u8>,
    sizes: Vec<usize>,
}

/// One datagram, or several of the size `segment`.
struct Part {
    /// Its index in the group.
    owner: usize,
    place: Place,
    bytes: Range<usize>,
    segment: Option<u16>,
}

/// What the bytes of a [`Part`] are in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The owner's buffer.
    Owner,
    /// [`Parts::cut`].
    Cut,
}

/// Buffers for datagrams from the host.
pub(super) struct Receive {
    batch: RecvBatch,
    /// [`BATCH`] buffers of [`DATAGRAM`] bytes, touched only as far as datagrams are long.
    buffers: Box<[u8]>,
    /// Buffers offered to one system call: few while sockets hold few, for each costs time.
    width: usize,
    incoming: Vec<Incoming>,
    sizes: Vec<usize>,
    /// Where single datagrams are in the buffers.
    datagrams: Vec<Range<usize>>,
}

/// [`Receive::width`] while sockets hold little.
const NARROW: usize = 4;
/// Bytes of a message that make it several datagrams' worth.
const JOINED: usize = 16 << 10;

impl Receive {
    pub(super) fn new() -> Self {
        Receive {
            batch: RecvBatch::new(),
            buffers: zeroed(BATCH * DATAGRAM),
            width: NARROW,
            incoming: Vec::with_capacity(BATCH),
            sizes: Vec::with_capacity(BATCH),
            datagrams: Vec::new(),
        }
    }
}

impl Driver {
    /// Sends what waits in `outgoing`; says whether there was anything.
    pub(super) fn flush_datagrams(&mut self, now: Instant) -> bool {
        let outgoing = std::mem::take(&mut self.outgoing);
        let mut rest = outgoing.as_slice();
        while let Some(first) = rest.first() {
            let alike = |other: &&Outgoing| other.flow == first.flow && other.hop == first.hop;
            let (group, following) = rest.split_at(rest.iter().take_while(alike).count());
            self.send_group(now, group);
            rest = following;
        }
        let any = !outgoing.is_empty();
        self.courtesy.handle_datagrams(outgoing.len());
        // The allocation serves the next batch.
        self.outgoing = outgoing;
        self.outgoing.clear();
        self.stack.release_slots();
        any
    }

    /// Sends datagrams of one flow.
    fn send_group(&mut self, now: Instant, group: &[Outgoing]) {
        let Some(flow) = group.first().map(|first| first.flow) else { return };
        let beyond_loopback = group.iter().any(|datagram| !datagram.remote.ip().is_loopback());
        if beyond_loopback && let Err(error) = self.sockets.bind_to_interface(flow) {
            log::debug!("binding to the outbound interface failed: {error}");
            return self.stack.handle_host(now, flow, HostEvent::OpenFailed(OpenError::NoOutbound));
        }
        let Some(socket) = self.sockets.get_mut(flow) else { return };
        let hop = group[0].hop;
        socket.set_hop(hop);
        let shared = socket.is_shared();
        let overlay = socket.is_overlay();
        let mut parts = std::mem::take(&mut self.parts);
        self.cut(group, &mut parts);
        if overlay {
            self.tell_narrow_paths(now, group, &parts);
        }
        self.send_parts(now, flow, group, &mut parts);
        self.parts = parts;
        // What the way to one client does not take says nothing of the others.
        if shared && let Some(socket) = self.sockets.get_mut(flow) {
            socket.allow_segmentation();
        }
    }

    /// Cuts what the host's side does not take whole.
    fn cut(&mut self, group: &[Outgoing], into: &mut Parts) {
        into.parts.clear();
        into.cut.truncate(CUT_KEPT);
        into.cut.shrink_to(CUT_KEPT);
        let mut filled = 0;
        for (owner, datagram) in group.iter().enumerate() {
            let bytes = datagram.bytes.range();
            let Gso::Tunnel(gso) = datagram.gso else {
                let segment = if let Gso::Udp(size) = datagram.gso { Some(size) } else { None };
                into.parts.push(Part { owner, place: Place::Owner, bytes, segment });
                continue;
            };
            let Parts { parts, cut, .. } = into;
            let frame = datagram.bytes.buffer(&self.slots);
            let add = |bytes| parts.push(Part { owner, place: Place::Cut, bytes, segment: None });
            match tunnel::split(frame, bytes, gso, cut, filled, add) {
                Ok(end) => filled = end,
                Err(reason) => self.stack.count_drop(reason),
            }
        }
        into.sizes.clear();
        into.sizes.extend(into.parts.iter().map(|part| part.bytes.len()));
    }

    /// Tells the child of peers that its datagrams do not reach whole: "don't fragment" is not set on the overlay's
    /// socket, so nobody else does.
    fn tell_narrow_paths(&mut self, now: Instant, group: &[Outgoing], parts: &Parts) {
        let mut asked = None;
        for part in &parts.parts {
            let Some(datagram) = group.get(part.owner) else { continue };
            let len = part.segment.map_or(part.bytes.len(), usize::from);
            if asked.is_some_and(|(remote, longest)| remote == datagram.remote && longest >= len) {
                continue;
            }
            asked = Some((datagram.remote, len));
            if !self.paths.is_narrow(now, datagram.remote, len) {
                continue;
            }
            let Some(mtu) = self.paths.mtu(datagram.remote.ip()) else { continue };
            let error = DatagramError { offender: None, kind: DatagramErrorKind::TooBig(mtu) };
            let bytes = datagram.bytes.slice(&self.slots);
            let quoted = &bytes[..bytes.len().min(QUOTE)];
            self.stack.handle_datagram_error(now, datagram.flow, datagram.remote, error, quoted);
        }
    }

    /// Sends the parts of datagrams of one flow.
    fn send_parts(&mut self, now: Instant, flow: FlowId, group: &[Outgoing], parts: &mut Parts) {
        let Some(hop) = group.first().map(|first| first.hop) else { return };
        let mut whole = hop.dont_fragment;
        let mut tries = 0;
        let mut at = 0;
        while let Some(first) = parts.parts.get(at).and_then(|part| group.get(part.owner)) {
            match self.send_some(flow, group, parts, at) {
                Ok(sent) => {
                    at += sent.max(1);
                    tries = 0;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Too long for the path. The child is told, so that it sends shorter packets from now on; this one goes
                // in fragments, as from a program on the host itself: an interface of the child with a larger MTU than
                // the host's is no reason to lose it.
                Err(error) if whole && error.raw_os_error() == Some(libc::EMSGSIZE) => {
                    whole = false;
                    self.read_errors(now, flow);
                    if let Some(socket) = self.sockets.get_mut(flow) {
                        socket.set_hop(Hop { dont_fragment: false, ..hop });
                    }
                }
                // Once for the error of an earlier datagram, which the kernel reports instead of sending (the
                // error queue says which); once more without segmentation.
                Err(error) if tries < 2 && !is_temporary(&error) => {
                    tries += 1;
                    self.read_errors(now, flow);
                    self.give_up_segmentation(flow, &error);
                }
                Err(error) => {
                    let busy = is_temporary(&error);
                    self.stack.count_drop(if busy {
                        DropReason::HostBusy
                    } else {
                        DropReason::HostSendFailed
                    });
                    self.read_errors(now, flow);
                    self.tell_refusal(now, first, &error);
                    if error.raw_os_error() == Some(libc::ENODEV) {
                        // The interface that the socket is bound to is gone for good; one of the same name is another.
                        return self.stack.handle_host(
                            now,
                            flow,
                            HostEvent::OpenFailed(OpenError::NoOutbound),
                        );
                    }
                    at += 1;
                    tries = 0;
                }
            }
        }
    }

    /// Passes on that the host's kernel has no way for a datagram. Such an error comes from the system call alone,
    /// not by the error queue.
    fn tell_refusal(&mut self, now: Instant, datagram: &Outgoing, error: &io::Error) {
        let kind = match error.raw_os_error() {
            Some(libc::ENETUNREACH | libc::ENETDOWN | libc::ENODEV) => DatagramErrorKind::NetUnreachable,
            Some(libc::EHOSTUNREACH) => DatagramErrorKind::HostUnreachable,
            Some(libc::EACCES | libc::EPERM) => DatagramErrorKind::Prohibited,
            _ => return,
        };
        let error = DatagramError { offender: None, kind };
        let bytes = datagram.bytes.slice(&self.slots);
        let quoted = &bytes[..bytes.len().min(QUOTE)];
        self.stack.handle_datagram_error(now, datagram.flow, datagram.remote, error, quoted);
    }

    /// Sends as many of the parts from `start` on as one system call takes.
    fn send_some(
        &mut self,
        flow: FlowId,
        group: &[Outgoing],
        parts: &Parts,
        start: usize,
    ) -> io::Result<usize> {
        let Some(socket) = self.sockets.get(flow) else { return Ok(parts.parts.len()) };
        let SocketKind::Datagram { ipv6, connected, segmentation, .. } = socket.kind else {
            return Ok(parts.parts.len());
        };
        let slots = &self.slots;
        let to = |remote| if connected { None } else { Some(remote) };
        let (sizes, parts, cut) = (&parts.sizes[start..], &parts.parts[start..], &parts.cut);
        let owner = |part: &Part| &group[part.owner];
        let first = owner(&parts[0]);
        if let Some(segment) = parts[0].segment.filter(|_| !segmentation) {
            // A super-datagram of the child over a way that does not take it.
            let whole = first.bytes.slice(slots);
            let pieces = whole.chunks(usize::from(segment).max(1)).map(|piece| socket::Outgoing {
                remote: to(first.remote),
                local: first.local,
                pieces: std::iter::once(piece),
                segment: None,
            });
            self.send_batch.send(socket.fd.as_fd(), pieces)?;
            return Ok(1);
        }
        let version = if ipv6 { IpVersion::V6 } else { IpVersion::V4 };
        let mut limits = RunLimits::for_link(HOST_MTU, version);
        if !segmentation {
            limits.count = 1;
        }
        let mut at = 0;
        let mut ends = [0; BATCH];
        let mut count = 0;
        let datagrams = std::iter::from_fn(|| {
            let part = parts.get(at)?;
            let first = owner(part);
            let (len, segment) = match part.segment {
                Some(segment) => (1, Some(segment)),
                None => {
                    let same = |other: &&Part| {
                        let owned = owner(other);
                        other.segment.is_none()
                            && (other.owner == part.owner
                                || (owned.remote, owned.local) == (first.remote, first.local))
                    };
                    let extent = parts[at..].iter().take(limits.count).take_while(same).count();
                    let run = runs(&sizes[at..at + extent], limits).next()?;
                    (run.range.len(), run.gso)
                }
            };
            // What was cut lies one behind the other.
            let together = |one: &Part, next: &Part| (one.place, next.place) == (Place::Cut, Place::Cut);
            let pieces = parts[at..at + len].chunk_by(together).filter_map(|parts| {
                let (first, last) = (parts.first()?, parts.last()?);
                let buffer = match first.place {
                    Place::Owner => owner(first).bytes.buffer(slots),
                    Place::Cut => cut,
                };
                buffer.get(first.bytes.start..last.bytes.end)
            });
            at += len;
            *ends.get_mut(count)? = at;
            count += 1;
            Some(socket::Outgoing { remote: to(first.remote), local: first.local, pieces, segment })
        });
        let sent = self.send_batch.send(socket.fd.as_fd(), datagrams)?;
        Ok(sent.checked_sub(1).map_or(0, |last| ends[last]))
    }

    /// Notes that a socket's way out does not take `UDP_SEGMENT`: the datagrams exceed its MTU (EINVAL), or it
    /// computes no checksums (EIO).
    fn give_up_segmentation(&mut self, flow: FlowId, error: &io::Error) {
        if let Some(socket) = self.sockets.get_mut(flow)
            && let SocketKind::Datagram { segmentation, .. } = &mut socket.kind
            && matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIO | libc::EMSGSIZE))
        {
            *segmentation = false;
        }
    }

    /// Passes what the error queue of a socket holds on to the child.
    pub(super) fn read_errors(&mut self, now: Instant, flow: FlowId) {
        let mut quote = [0; QUOTE];
        // The queue is bounded by the socket's buffer.
        while let Some(socket) = self.sockets.get(flow) {
            match socket::recv_error(socket.fd.as_fd(), &mut quote) {
                Ok(Some(queued)) => {
                    let quoted = &quote[..queued.quoted.min(QUOTE)];
                    self.stack.handle_datagram_error(now, flow, queued.remote, queued.error, quoted);
                }
                Ok(None) => {}
                Err(_) => return,
            }
        }
    }

    /// Reads a batch from each socket that has datagrams.
    pub(super) fn read_datagrams(&mut self, now: Instant) {
        for _ in 0..self.readable.len() {
            let Some(flow) = self.readable.pop_front() else { return };
            if self.read_batch(now, flow) {
                self.readable.push_back(flow);
            }
        }
    }

    /// Reads one batch and passes it on; says whether there may be more.
    fn read_batch(&mut self, now: Instant, flow: FlowId) -> bool {
        let Some(socket) = self.sockets.get(flow) else { return false };
        let mut incoming = std::mem::take(&mut self.receive.incoming);
        let width = self.receive.width;
        let buffers = self.receive.buffers.chunks_exact_mut(DATAGRAM).take(width);
        let received = self.receive.batch.recv(socket.fd.as_fd(), buffers, &mut incoming);
        let more = match received {
            Ok(count) => {
                // Many that the kernel has joined are more than a cache holds.
                let joined = incoming.iter().any(|message| message.len > JOINED);
                self.receive.width = if count >= NARROW && !joined { BATCH } else { NARROW };
                count == width
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            // The error of a datagram that was sent: the error queue has it.
            Err(_) => {
                self.read_errors(now, flow);
                true
            }
        };
        self.courtesy.handle_datagrams(incoming.len());
        self.moved += incoming.iter().map(|datagram| datagram.len).sum::<usize>();
        let mut rest = incoming.as_slice();
        while !rest.is_empty() {
            let taken = self.pass_on(now, flow, rest);
            rest = &rest[taken..];
        }
        incoming.clear();
        self.receive.incoming = incoming;
        more && self.sockets.get(flow).is_some()
    }

    /// Passes the first datagrams of `incoming` on, as many as fit one frame; says how many.
    fn pass_on(&mut self, now: Instant, flow: FlowId, incoming: &[Incoming]) -> usize {
        let first = incoming[0];
        if self.sockets.get(flow).is_some_and(HostSocket::is_overlay) {
            return self.pass_on_overlay(now, incoming);
        }
        let Ok(Session { flow, version, ready }) = self.session_of(now, flow, &first) else { return 1 };
        let uso = ready && self.stack.link().uso;
        let limits = RunLimits::for_link(self.stack.config().mtu(), version);
        let (taken, gso) = match first.segment {
            Some(segment) if uso && usize::from(segment) <= limits.datagram => (1, Some(segment)),
            Some(segment) => {
                let range = first.slot * DATAGRAM..first.slot * DATAGRAM + first.len;
                let mut at = range.start;
                while at < range.end {
                    let end = range.end.min(at + usize::from(segment));
                    let range = at..end;
                    self.send_to_child(now, flow, version, first.from, std::slice::from_ref(&range), None);
                    at = end;
                }
                return 1;
            }
            None if uso => {
                let alike = |other: &&Incoming| {
                    (other.from, other.local, other.segment) == (first.from, first.local, None)
                };
                let extent = incoming.iter().take(limits.count).take_while(alike).count();
                let sizes = &mut self.receive.sizes;
                sizes.clear();
                sizes.extend(incoming[..extent].iter().map(|datagram| datagram.len));
                runs(sizes, limits).next().map_or((1, None), |run| (run.range.len(), run.gso))
            }
            None => (1, None),
        };
        let mut ranges = [const { 0..0 }; BATCH];
        for (range, datagram) in ranges.iter_mut().zip(&incoming[..taken]) {
            *range = datagram.slot * DATAGRAM..datagram.slot * DATAGRAM + datagram.len;
        }
        self.send_to_child(now, flow, version, first.from, &ranges[..taken], gso);
        taken
    }

    /// The flow that a datagram belongs to which came by the socket of `flow`.
    fn session_of(&mut self, now: Instant, flow: FlowId, first: &Incoming) -> Result<Session, DropReason> {
        if self.sockets.get(flow).is_some_and(HostSocket::is_published) {
            return self.stack.session(now, ForwardId(flow), first.from, first.local);
        }
        let version = if first.from.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 };
        Ok(Session { flow, version, ready: true })
    }

    /// Passes the first datagrams of `incoming` on, as many as one peer of the overlay has sent; says how many.
    fn pass_on_overlay(&mut self, now: Instant, incoming: &[Incoming]) -> usize {
        let from = incoming[0].from;
        let extent = incoming.iter().take_while(|other| other.from == from).count();
        let mut datagrams = std::mem::take(&mut self.receive.datagrams);
        datagrams.clear();
        for message in &incoming[..extent] {
            let segment = message.segment.map_or(message.len, usize::from);
            let mut at = message.slot * DATAGRAM;
            let end = at + message.len;
            loop {
                datagrams.push(at..end.min(at + segment));
                at += segment.max(1);
                if at >= end {
                    break;
                }
            }
        }
        match self.stack.overlay_session(now, from) {
            Ok(session) => self.join_and_send(now, session, from, &datagrams),
            Err(reason) => (1..datagrams.len()).for_each(|_| self.stack.count_drop(reason)),
        }
        self.receive.datagrams = datagrams;
        extent
    }

    /// Sends datagrams of one peer to the child, in as few frames as the link takes.
    fn join_and_send(
        &mut self,
        now: Instant,
        session: Session,
        from: SocketAddr,
        datagrams: &[Range<usize>],
    ) {
        let Session { flow, version, ready } = session;
        let link = self.stack.link();
        let mut limits = RunLimits::for_link(self.stack.config().mtu(), version);
        if !(ready && link.uso) {
            limits.count = 1;
        }
        let joins = ready && link.tunnel;
        let (mut plain, mut at) = (0, 0);
        while let Some(first) = datagrams.get(at) {
            let join = if joins && first.len() <= limits.datagram {
                Join::begin(&self.receive.buffers[first.clone()])
            } else {
                None
            };
            let Some(mut join) = join else {
                at += 1;
                continue;
            };
            let (mut end, mut filled) = (at + 1, first.end);
            while let Some(next) = datagrams.get(end).filter(|_| end - at < BATCH)
                && join.push(&self.receive.buffers[next.clone()])
            {
                let payload = next.start + join.header_len()..next.end;
                filled += payload.len();
                self.receive.buffers.copy_within(payload.clone(), filled - payload.len());
                end += 1;
            }
            if end - at > 1 {
                self.send_plain(now, session, from, &datagrams[plain..at], limits);
                self.send_joined(now, flow, version, from, first.start..filled, &mut join);
                plain = end;
            }
            at = end;
        }
        self.send_plain(now, session, from, &datagrams[plain..], limits);
    }

    /// Sends datagrams of one peer that nothing joins but their size.
    fn send_plain(
        &mut self,
        now: Instant,
        session: Session,
        from: SocketAddr,
        mut datagrams: &[Range<usize>],
        limits: RunLimits,
    ) {
        while !datagrams.is_empty() {
            let extent = datagrams.len().min(limits.count);
            let sizes = &mut self.receive.sizes;
            sizes.clear();
            sizes.extend(datagrams[..extent].iter().map(Range::len));
            let (len, gso) = runs(sizes, limits).next().map_or((1, None), |run| (run.range.len(), run.gso));
            let (now_sent, rest) = datagrams.split_at(len);
            self.send_to_child(now, session.flow, session.version, from, now_sent, gso);
            datagrams = rest;
        }
    }

    /// Sends segments as one super-segment in the tunnel: the headers of the first and the payload of all are at `range`
    /// of the receive buffers.
    fn send_joined(
        &mut self,
        now: Instant,
        flow: FlowId,
        version: IpVersion,
        from: SocketAddr,
        range: Range<usize>,
        join: &mut Join,
    ) {
        let header_len = join.header_len();
        let (inner, gso, inner_version) = join.finish();
        let mut headers = [0; MAX_HEADERS];
        let datagram = Datagram { from, payload: &[], total: range.len(), gso: Gso::Tunnel(gso) };
        let Ok(ToChild::Frame { start, offload }) =
            self.stack.handle_datagram(now, flow, datagram, &mut headers)
        else {
            return;
        };
        let Gso::Tunnel(gso) = offload.gso else { return };
        let vnet = vnet_hdr::emit_tunnel(gso, inner_version, version);
        let payload = &self.receive.buffers[range.start + header_len..range.end];
        let parts = [&vnet[..self.link.header_len()], &headers[start..], inner, payload].map(IoSlice::new);
        let written = self.link.write(&parts);
        note_written(&mut self.stack, &self.observers, now, written, &parts[1..], offload);
    }

    /// Sends the bytes at `ranges` of the receive buffers as one frame.
    fn send_to_child(
        &mut self,
        now: Instant,
        flow: FlowId,
        version: IpVersion,
        from: SocketAddr,
        ranges: &[Range<usize>],
        gso: Option<u16>,
    ) {
        let buffers = &self.receive.buffers;
        let total = ranges.iter().map(Range::len).sum();
        let mut headers = [0; MAX_HEADERS];
        let first = &buffers[ranges[0].clone()];
        let Ok(ToChild::Frame { start, offload }) = self.stack.handle_datagram(
            now,
            flow,
            Datagram { from, payload: first, total, gso: gso.map_or(Gso::None, Gso::Udp) },
            &mut headers,
        ) else {
            return;
        };
        let headers = &headers[start..];
        let offsets = crate::offload::HeaderOffsets {
            ip_version: version,
            transport: crate::offload::Transport::Udp,
            l4_start: (headers.len() - crate::packet::UDP_LEN) as u16,
            header_len: headers.len() as u16,
            l4_end: (headers.len() + total) as u32,
        };
        let vnet = vnet_hdr::padded(vnet_hdr::emit(offload, &offsets));
        let mut parts = [IoSlice::new(&[]); BATCH + 2];
        parts[0] = IoSlice::new(&vnet[..self.link.header_len()]);
        parts[1] = IoSlice::new(headers);
        for (part, range) in parts[2..].iter_mut().zip(ranges) {
            *part = IoSlice::new(&buffers[range.clone()]);
        }
        let parts = &parts[..2 + ranges.len()];
        let written = self.link.write(parts);
        note_written(&mut self.stack, &self.observers, now, written, &parts[1..], offload);
    }
}

/// Counts a frame of these parts that was written, or was not.
fn note_written(
    stack: &mut Stack,
    observers: &Observers,
    now: Instant,
    written: io::Result<usize>,
    parts: &[IoSlice<'_>],
    offload: Offload,
) {
    match written {
        Ok(_) => {
            stack.count_frame_to_child(parts.iter().map(|part| part.len()).sum());
            if observers.any() {
                let frame: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
                observers.to_child(now, &frame, offload);
            }
        }
        // Datagrams are not kept: the sender's loss is its own to notice (RFC 8085 section 3.1).
        Err(error) if is_temporary(&error) => stack.count_drop(DropReason::ToChildQueueFull),
        Err(_) => stack.count_drop(DropReason::TapWriteFailed),
    }
}
