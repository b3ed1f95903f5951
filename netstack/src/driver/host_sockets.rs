//! The host's side of flows: performs [`Action`](crate::action::Action)s on sockets and reads them.
//!
//! Should the process die, the peers of its streams see RST: an end would look like the end of the data.

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::sys::socket::{SetSockOpt, sockopt};

use crate::action::{ConnectError, DatagramKind, Hop, OpenError};
use crate::config::Outbound;
use crate::flow::FlowId;
use crate::forward::ForwardId;
use crate::stack::HostIo;
use crate::sys::socket::{self, Kind};

/// What a stream tells of.
const STREAM: Interest = Interest::READABLE.add(Interest::WRITABLE).add(Interest::PRIORITY);

/// Sockets by flow.
#[derive(Debug)]
pub(super) struct HostSockets {
    /// By the flow's slot; an entry belongs to the flow only if the ids are equal.
    sockets: Vec<Option<HostSocket>>,
    registry: Registry,
    /// IPv4, IPv6.
    outbound: (Outbound, Outbound),
}

#[derive(Debug)]
pub(super) struct HostSocket {
    flow: FlowId,
    pub(super) fd: OwnedFd,
    pub(super) kind: SocketKind,
    /// A read waits for the next turn.
    pub(super) put_off: bool,
    /// Registered with epoll.
    watched: bool,
}

#[derive(Debug)]
pub(super) enum SocketKind {
    Stream {
        /// Set until the connect has an answer.
        connecting: Option<SocketAddr>,
        /// The peer has sent FIN, or urgent data, before which a read stops: a short read is not the end of what there is
        /// (epoll is edge-triggered).
        stops_short: bool,
    },
    Datagram {
        sessions: Sessions,
        ipv6: bool,
        connected: bool,
        /// What the socket is set to.
        hop: Option<Hop>,
        /// Whether the way out takes `UDP_SEGMENT`.
        segmentation: bool,
        /// It will be bound to the outbound interface when it sends beyond the host's loopback.
        unbound: bool,
    },
}

/// What the datagrams of one socket belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sessions {
    /// All to the socket's own flow.
    One,
    /// To a flow per client: the socket of a published port.
    OnePerClient,
    /// To the child's peers, whom the stack knows: the socket of an overlay.
    Overlay,
}

/// For whom a connection is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SocketUser {
    /// A flow of the child.
    Child,
    /// The engine's own DNS forwarder.
    Resolver,
}

/// Outcome of starting a connection.
pub(super) enum Connect {
    /// Nobody watches it yet: [`HostSockets::watch_stream`], unless it is given away.
    Connected,
    UnderWay,
    Failed(ConnectError),
}

impl HostSockets {
    pub(super) fn new(registry: Registry, outbound: (Outbound, Outbound)) -> Self {
        HostSockets { sockets: Vec::new(), registry, outbound }
    }

    pub(super) fn get(&self, flow: FlowId) -> Option<&HostSocket> {
        self.sockets.get(flow.index as usize)?.as_ref().filter(|socket| socket.flow == flow)
    }

    pub(super) fn get_mut(&mut self, flow: FlowId) -> Option<&mut HostSocket> {
        self.sockets.get_mut(flow.index as usize)?.as_mut().filter(|socket| socket.flow == flow)
    }

    /// Starts a TCP connection on behalf of `user`.
    pub(super) fn connect(&mut self, flow: FlowId, remote: SocketAddr, user: SocketUser) -> Connect {
        let fd = match socket::open(Kind::Tcp, remote.is_ipv6()) {
            Ok(fd) => fd,
            Err(error) => return Connect::Failed(connect_error(&error)),
        };
        socket::prepare_tcp(fd.as_fd());
        if let Err(error) = self.bind_stream(&fd, remote.ip(), user) {
            log::debug!("binding for {remote} failed: {error}");
            return Connect::Failed(ConnectError::NoOutbound);
        }
        let outcome = match start_connect(&fd, remote) {
            Ok(()) => Connect::Connected,
            Err(error) if is_under_way(&error) => Connect::UnderWay,
            Err(error) => return Connect::Failed(connect_error(&error)),
        };
        let connecting = matches!(outcome, Connect::UnderWay).then_some(remote);
        let watched = connecting.is_some();
        if watched && let Err(error) = self.watch(flow, &fd, STREAM) {
            return Connect::Failed(connect_error(&error));
        }
        let kind = SocketKind::Stream { connecting, stops_short: false };
        self.keep(HostSocket { flow, fd, kind, put_off: false, watched });
        outcome
    }

    /// Watches the stream of a flow that nobody watches yet.
    pub(super) fn watch_stream(&mut self, flow: FlowId) -> io::Result<()> {
        let Some(socket) = self.get(flow).filter(|socket| !socket.watched) else { return Ok(()) };
        self.watch(flow, &socket.fd, STREAM)?;
        if let Some(socket) = self.get_mut(flow) {
            socket.watched = true;
        }
        Ok(())
    }

    /// Takes a connection that stands. Where it cannot be watched it is reset.
    pub(super) fn adopt(&mut self, flow: FlowId, stream: OwnedFd) -> io::Result<()> {
        socket::prepare_tcp(stream.as_fd());
        self.keep_stream(flow, stream)
    }

    /// Takes a connected stream that is prepared. Where it cannot be watched it is reset.
    pub(super) fn keep_stream(&mut self, flow: FlowId, stream: OwnedFd) -> io::Result<()> {
        let watched = self.watch(flow, &stream, STREAM);
        if watched.is_err() {
            socket::reset_on_close(stream.as_fd());
        } else {
            let kind = SocketKind::Stream { connecting: None, stops_short: false };
            self.keep(HostSocket { flow, fd: stream, kind, put_off: false, watched: true });
        }
        watched
    }

    /// Gives a flow's stream away, which is not watched any more. As before, closing it is a reset.
    pub(super) fn take_stream(&mut self, flow: FlowId) -> Option<OwnedFd> {
        self.get(flow).filter(|socket| matches!(socket.kind, SocketKind::Stream { .. }))?;
        let socket = self.sockets.get_mut(flow.index as usize)?.take()?;
        if socket.watched {
            // Fails only for what is not registered.
            let _ = self.registry.deregister(&mut SourceFd(&socket.fd.as_raw_fd()));
        }
        Some(socket.fd)
    }

    /// Takes the bound UDP socket of a published port.
    pub(super) fn adopt_datagram(&mut self, forward: ForwardId, fd: OwnedFd) -> io::Result<()> {
        let ipv6 = socket::is_ipv6(fd.as_fd())?;
        socket::prepare_datagram(fd.as_fd(), Kind::Udp, ipv6);
        socket::receive_local_address(fd.as_fd(), ipv6)?;
        let sessions = Sessions::OnePerClient;
        let kind = SocketKind::Datagram {
            sessions,
            ipv6,
            connected: false,
            hop: None,
            segmentation: true,
            unbound: false,
        };
        self.insert(forward.flow(), fd, kind, Interest::READABLE)
    }

    /// Opens the overlay's socket of one family at `port`, bound as all sockets of the child's are. `None` where the host
    /// does not have the family.
    ///
    /// # Errors
    /// bind(2): the port is taken, or the address is not there.
    pub(super) fn open_overlay(
        &mut self,
        flow: FlowId,
        port: u16,
        ipv6: bool,
    ) -> io::Result<Option<SocketAddr>> {
        let fd = match socket::open(Kind::Udp, ipv6) {
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => return Ok(None),
            opened => opened?,
        };
        socket::prepare_datagram(fd.as_fd(), Kind::Udp, ipv6);
        socket::enlarge_buffers(fd.as_fd());
        let any: IpAddr = if ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let own = match self.outbound(ipv6) {
            Outbound::Any => any,
            Outbound::Address(address) => *address,
            Outbound::Interface(name) => {
                sockopt::BindToDevice.set(&fd, &OsString::from(name))?;
                any
            }
        };
        let own = SocketAddr::new(own, port);
        match socket::bind(fd.as_fd(), own) {
            Err(error) if ipv6 && error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => return Ok(None),
            bound => bound?,
        }
        let kind = SocketKind::Datagram {
            sessions: Sessions::Overlay,
            ipv6,
            connected: false,
            hop: None,
            segmentation: true,
            unbound: false,
        };
        self.insert(flow, fd, kind, Interest::READABLE)?;
        Ok(Some(own))
    }

    /// What became of a connection under way; `None` while it is.
    pub(super) fn finish_connect(&mut self, flow: FlowId) -> Option<Result<(), ConnectError>> {
        let socket = self.get_mut(flow)?;
        let SocketKind::Stream { connecting, .. } = &mut socket.kind else { return None };
        let remote = (*connecting)?;
        if let Err(error) = socket::take_error(socket.fd.as_fd()) {
            return Some(Err(connect_error(&error)));
        }
        match socket::connect(socket.fd.as_fd(), remote) {
            Err(error) if is_under_way(&error) => None,
            Err(error) if error.raw_os_error() != Some(libc::EISCONN) => Some(Err(connect_error(&error))),
            _ => {
                *connecting = None;
                Some(Ok(()))
            }
        }
    }

    /// Opens a datagram socket.
    pub(super) fn open_datagram(
        &mut self,
        flow: FlowId,
        kind: DatagramKind,
        ipv6: bool,
    ) -> Result<(), OpenError> {
        let socket_kind = if kind == DatagramKind::Ping { Kind::Ping } else { Kind::Udp };
        let fd = socket::open(socket_kind, ipv6).map_err(|error| match error.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) if kind == DatagramKind::Ping => OpenError::PingForbidden,
            Some(libc::EAFNOSUPPORT) => OpenError::Unreachable,
            _ => OpenError::Resources,
        })?;
        socket::prepare_datagram(fd.as_fd(), socket_kind, ipv6);
        let no_outbound = |error: io::Error| {
            log::debug!("binding a datagram socket failed: {error}");
            OpenError::NoOutbound
        };
        let mut connected = false;
        let mut unbound = matches!(self.outbound(ipv6), Outbound::Interface(_));
        if let DatagramKind::UdpConnected(server) = kind {
            unbound = false;
            self.bind_stream(&fd, server.ip(), SocketUser::Resolver).map_err(no_outbound)?;
            socket::connect(fd.as_fd(), server).map_err(|_| OpenError::Unreachable)?;
            connected = true;
        } else if let Outbound::Address(address) = self.outbound(ipv6) {
            socket::bind(fd.as_fd(), SocketAddr::new(*address, 0)).map_err(no_outbound)?;
        }
        let sessions = Sessions::One;
        let kind = SocketKind::Datagram { sessions, ipv6, connected, hop: None, segmentation: true, unbound };
        self.insert(flow, fd, kind, Interest::READABLE).map_err(|_| OpenError::Resources)
    }

    /// Binds a datagram socket to the outbound interface, where there is one and it is not done yet.
    pub(super) fn bind_to_interface(&mut self, flow: FlowId) -> io::Result<()> {
        let Some(HostSocket { fd, kind: SocketKind::Datagram { ipv6, unbound: unbound @ true, .. }, .. }) =
            self.sockets
                .get_mut(flow.index as usize)
                .and_then(Option::as_mut)
                .filter(|socket| socket.flow == flow)
        else {
            return Ok(());
        };
        let outbound = if *ipv6 { &self.outbound.1 } else { &self.outbound.0 };
        if let Outbound::Interface(name) = outbound {
            sockopt::BindToDevice.set(fd, &OsString::from(name))?;
        }
        *unbound = false;
        Ok(())
    }

    /// Closes the flow's socket, if it has one.
    pub(super) fn close(&mut self, flow: FlowId, abort: bool) {
        if self.get(flow).is_none() {
            return;
        }
        let Some(socket) = self.sockets[flow.index as usize].take() else { return };
        if socket.is_shared() {
            // Others may have copies. Of all the rest, closing the only descriptor takes it out of epoll.
            let _ = self.registry.deregister(&mut SourceFd(&socket.fd.as_raw_fd()));
        }
        if !abort {
            socket.finish();
        }
    }

    fn outbound(&self, ipv6: bool) -> &Outbound {
        if ipv6 { &self.outbound.1 } else { &self.outbound.0 }
    }

    /// Binds a socket that will be connected to `remote`.
    fn bind_stream(&self, fd: &OwnedFd, remote: IpAddr, user: SocketUser) -> io::Result<()> {
        match self.outbound(remote.is_ipv6()) {
            Outbound::Any => Ok(()),
            Outbound::Address(_) if remote.is_loopback() && user == SocketUser::Resolver => Ok(()),
            Outbound::Address(address) => {
                // Else the kernel chooses a port before it knows the destination, and runs out of them.
                let _ = sockopt::IpBindAddressNoPort.set(fd, &true);
                socket::bind(fd.as_fd(), SocketAddr::new(*address, 0))
            }
            Outbound::Interface(_) if remote.is_loopback() => Ok(()),
            Outbound::Interface(name) => Ok(sockopt::BindToDevice.set(fd, &OsString::from(name))?),
        }
    }

    fn insert(&mut self, flow: FlowId, fd: OwnedFd, kind: SocketKind, interest: Interest) -> io::Result<()> {
        self.watch(flow, &fd, interest)?;
        self.keep(HostSocket { flow, fd, kind, put_off: false, watched: true });
        Ok(())
    }

    fn watch(&self, flow: FlowId, fd: &OwnedFd, interest: Interest) -> io::Result<()> {
        let token = Token(flow.to_bits() as usize);
        self.registry.register(&mut SourceFd(&fd.as_raw_fd()), token, interest)
    }

    fn keep(&mut self, socket: HostSocket) {
        if matches!(socket.kind, SocketKind::Stream { .. }) {
            socket::reset_on_close(socket.fd.as_fd());
        }
        let index = socket.flow.index as usize;
        if index >= self.sockets.len() {
            self.sockets.resize_with(index + 1, || None);
        }
        self.sockets[index] = Some(socket);
    }
}

impl Drop for HostSockets {
    /// What was written goes its way.
    fn drop(&mut self) {
        self.sockets.iter().flatten().for_each(HostSocket::finish);
    }
}

impl HostSocket {
    /// Makes the coming close an orderly one.
    fn finish(&self) {
        if matches!(self.kind, SocketKind::Stream { .. }) {
            socket::finish_on_close(self.fd.as_fd());
        }
    }

    /// Reads into `room`.
    pub(super) fn read(&self, room: &mut [u8]) -> HostIo {
        let SocketKind::Stream { stops_short, .. } = self.kind else { return HostIo::Failed };
        if room.is_empty() {
            return HostIo::WouldBlock;
        }
        loop {
            return match socket::recv(self.fd.as_fd(), room) {
                Ok(0) => HostIo::Eof,
                Ok(n) if n < room.len() && !stops_short => HostIo::MovedAll(n),
                Ok(n) => HostIo::Moved(n),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => HostIo::WouldBlock,
                    io::ErrorKind::Interrupted => continue,
                    _ => HostIo::Failed,
                },
            };
        }
    }

    /// Writes `bytes`.
    pub(super) fn write(&self, bytes: &[u8]) -> HostIo {
        loop {
            return match socket::send(self.fd.as_fd(), bytes) {
                Ok(n) if n < bytes.len() => HostIo::MovedAll(n),
                Ok(n) => HostIo::Moved(n),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => HostIo::WouldBlock,
                    io::ErrorKind::Interrupted => continue,
                    _ => HostIo::Failed,
                },
            };
        }
    }

    /// Notes that the peer has finished, or sent urgent data.
    pub(super) fn handle_stop(&mut self) {
        if let SocketKind::Stream { stops_short, .. } = &mut self.kind {
            *stops_short = true;
        }
    }

    /// Whether a connect is under way.
    pub(super) fn is_connecting(&self) -> bool {
        matches!(self.kind, SocketKind::Stream { connecting: Some(_), .. })
    }

    /// Whether one peer's way out says nothing of another's.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self.kind, SocketKind::Datagram { sessions: Sessions::OnePerClient | Sessions::Overlay, .. })
    }

    /// Whether it is the socket of a published port.
    pub(super) fn is_published(&self) -> bool {
        matches!(self.kind, SocketKind::Datagram { sessions: Sessions::OnePerClient, .. })
    }

    /// Whether it is the overlay's.
    pub(super) fn is_overlay(&self) -> bool {
        matches!(self.kind, SocketKind::Datagram { sessions: Sessions::Overlay, .. })
    }

    /// Has `UDP_SEGMENT` tried again.
    pub(super) fn allow_segmentation(&mut self) {
        if let SocketKind::Datagram { segmentation, .. } = &mut self.kind {
            *segmentation = true;
        }
    }

    /// Sets TTL and fragmentation for what is sent next, where it is not set so already.
    pub(super) fn set_hop(&mut self, wanted: Hop) {
        let SocketKind::Datagram { ipv6, hop, .. } = &mut self.kind else { return };
        if hop.is_none_or(|hop| hop.ttl != wanted.ttl) {
            socket::set_ttl(self.fd.as_fd(), wanted.ttl, *ipv6);
        }
        if hop.is_none_or(|hop| hop.dont_fragment != wanted.dont_fragment) {
            socket::set_dont_fragment(self.fd.as_fd(), wanted.dont_fragment, *ipv6);
        }
        *hop = Some(wanted);
    }
}

/// Connects, and looks once more: a connection to an address of the host stands as soon as the call has returned,
/// and asking costs less than waiting for the event.
fn start_connect(fd: &OwnedFd, remote: SocketAddr) -> io::Result<()> {
    match socket::connect(fd.as_fd(), remote) {
        Err(error) if is_under_way(&error) => socket::connect(fd.as_fd(), remote),
        result => result,
    }
}

fn is_under_way(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINPROGRESS | libc::EALREADY))
}

fn connect_error(error: &io::Error) -> ConnectError {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED | libc::ECONNRESET) => ConnectError::Refused,
        Some(libc::ENETUNREACH | libc::EAFNOSUPPORT | libc::ENETDOWN) => ConnectError::NetUnreachable,
        Some(libc::ETIMEDOUT) => ConnectError::TimedOut,
        Some(libc::EACCES | libc::EPERM) => ConnectError::Forbidden,
        Some(
            libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL | libc::EAGAIN,
        ) => ConnectError::Resources,
        _ => ConnectError::HostUnreachable,
    }
}
