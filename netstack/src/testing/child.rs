//! The child: a second smoltcp interface with its own TCP, ARP and neighbour discovery, on the other end of the
//! link. What it cannot play (odd flags, UDP, ICMP) tests build with [`frames`](super::frames).

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;

use smoltcp::iface::{Config as InterfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum as Caps, Device, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

use super::frames::{CHILD_MAC, Seen};
use super::link::InFlight;
use crate::config::Config;
use crate::frame::{Checksum, Gso, LinkCapabilities, Offload};
use crate::packet::ETHERNET_LEN;
use crate::time::{Duration, Instant};

/// Names a TCP socket of the child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChildTcp(SocketHandle);

/// What the child does with frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChildMode {
    /// Its TCP/IP reads them.
    #[default]
    Alive,
    /// They are only recorded in [`ChildStub::received`]; the test plays the child.
    Scripted,
}

/// The child.
pub struct ChildStub {
    /// What it does with frames. Default: [`ChildMode::Alive`].
    pub mode: ChildMode,
    /// Frames received in [`ChildMode::Scripted`], oldest first.
    pub received: VecDeque<InFlight>,
    interface: Interface,
    sockets: SocketSet<'static>,
    wire: Wire,
    next_port: u16,
    addresses: (IpAddr, IpAddr),
    rings: usize,
}

impl ChildStub {
    /// A child configured by hand as `config` would have it. With `link` capabilities it sends and takes
    /// super-segments and leaves checksums to the link, as Linux does on a TAP.
    pub fn new(config: &Config, link: LinkCapabilities, now: Instant) -> Self {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = usize::from(config.mtu()) + ETHERNET_LEN;
        if link.checksum {
            caps.checksum.tcp = Caps::None;
        }
        // smoltcp 0.14 loses the metadata of IPv6 super-segments.
        caps.segmentation.tcpv4 = NonZeroUsize::new(60_000).filter(|_| link.tso4);
        let mut wire = Wire { caps, sent: VecDeque::new(), arrived: VecDeque::new() };
        let address = HardwareAddress::Ethernet(EthernetAddress(CHILD_MAC));
        let mut interface_config = InterfaceConfig::new(address);
        interface_config.random_seed = 0x6368_696c_6400;
        let mut interface = Interface::new(interface_config, &mut wire, now);
        let (v4, v6) = (config.ipv4(), config.ipv6());
        interface.update_ip_addrs(|addresses| {
            let own = [
                IpCidr::new(v4.child.into(), v4.subnet.prefix()),
                IpCidr::new(v6.child.into(), v6.subnet.prefix()),
            ];
            for address in own {
                addresses.push(address).expect("smoltcp holds two addresses");
            }
        });
        interface.routes_mut().add_default_ipv4_route(v4.gateway).expect("room for a route");
        interface.routes_mut().add_default_ipv6_route(v6.gateway).expect("room for a route");
        ChildStub {
            mode: ChildMode::default(),
            received: VecDeque::new(),
            interface,
            sockets: SocketSet::new(Vec::new()),
            wire,
            next_port: 40_000,
            addresses: (v4.child.into(), v6.child.into()),
            rings: 128 << 10,
        }
    }

    /// Sets the size of both rings of sockets opened from now on, in bytes.
    pub fn set_rings(&mut self, bytes: usize) {
        self.rings = bytes;
    }

    /// Starts a connection from a fresh port.
    pub fn connect(&mut self, remote: SocketAddr) -> ChildTcp {
        self.next_port += 1;
        self.connect_from(self.next_port, remote)
    }

    /// Starts a connection from `port`.
    ///
    /// # Panics
    /// Where smoltcp refuses the addresses.
    pub fn connect_from(&mut self, port: u16, remote: SocketAddr) -> ChildTcp {
        let ring = || tcp::SocketBuffer::new(vec![0; self.rings]);
        let mut socket = tcp::Socket::new(ring(), ring());
        socket.set_nagle_enabled(false);
        let own = if remote.is_ipv4() { self.addresses.0 } else { self.addresses.1 };
        socket
            .connect(self.interface.context(), remote, SocketAddr::new(own, port))
            .expect("a usable address");
        ChildTcp(self.sockets.add(socket))
    }

    /// Listens for one connection to `port` of its IPv4 or IPv6 address.
    ///
    /// # Panics
    /// Where smoltcp refuses the port.
    pub fn listen(&mut self, ipv6: bool, port: u16) -> ChildTcp {
        let ring = || tcp::SocketBuffer::new(vec![0; self.rings]);
        let mut socket = tcp::Socket::new(ring(), ring());
        socket.set_nagle_enabled(false);
        let own = if ipv6 { self.addresses.1 } else { self.addresses.0 };
        socket.listen(SocketAddr::new(own, port)).expect("a usable port");
        ChildTcp(self.sockets.add(socket))
    }

    /// Queues bytes; says how many were taken.
    pub fn write(&mut self, socket: ChildTcp, bytes: &[u8]) -> usize {
        self.socket(socket).send_slice(bytes).unwrap_or(0)
    }

    /// Takes everything that has arrived.
    pub fn read(&mut self, socket: ChildTcp) -> Vec<u8> {
        self.read_some(socket, usize::MAX)
    }

    /// Takes at most `limit` bytes of what has arrived.
    pub fn read_some(&mut self, socket: ChildTcp, limit: usize) -> Vec<u8> {
        let socket = self.socket(socket);
        let mut bytes = vec![0; socket.recv_queue().min(limit)];
        let n = socket.recv_slice(&mut bytes).unwrap_or(0);
        bytes.truncate(n);
        bytes
    }

    /// Sends FIN after what is queued.
    pub fn close(&mut self, socket: ChildTcp) {
        self.socket(socket).close();
    }

    /// Sends RST.
    pub fn abort(&mut self, socket: ChildTcp) {
        self.socket(socket).abort();
    }

    /// Forgets a socket without a word, as a crashed machine would.
    pub fn forget(&mut self, socket: ChildTcp) {
        self.sockets.remove(socket.0);
    }

    /// State of a connection.
    pub fn state(&mut self, socket: ChildTcp) -> tcp::State {
        self.socket(socket).state()
    }

    /// Whether the far end has finished and everything was read.
    pub fn at_eof(&mut self, socket: ChildTcp) -> bool {
        !self.socket(socket).may_recv()
    }

    /// The socket itself, for what has no method here.
    pub fn socket(&mut self, socket: ChildTcp) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(socket.0)
    }

    /// Takes a frame off the link.
    pub fn handle_frame(&mut self, frame: InFlight) {
        match self.mode {
            ChildMode::Scripted => self.received.push_back(frame),
            ChildMode::Alive => self.wire.arrived.push_back(frame.bytes),
        }
    }

    /// Runs the child's TCP/IP; says whether anything changed.
    pub fn poll(&mut self, now: Instant) -> bool {
        if self.mode == ChildMode::Scripted {
            return false;
        }
        let waiting = self.wire.arrived.len();
        let changed = self.interface.poll(now, &mut self.wire, &mut self.sockets);
        changed == smoltcp::iface::PollResult::SocketStateChanged || waiting > 0 || !self.wire.sent.is_empty()
    }

    /// The next frame that the child has sent.
    pub fn poll_frame(&mut self) -> Option<InFlight> {
        self.wire.sent.pop_front()
    }

    /// When [`ChildStub::poll`] has something to do.
    pub fn poll_timeout(&mut self, now: Instant) -> Option<Instant> {
        if self.mode == ChildMode::Scripted {
            return None;
        }
        self.interface.poll_at(now, &self.sockets)
    }

    /// The frames recorded since the last call, read.
    #[track_caller]
    pub fn take_seen(&mut self) -> Vec<Seen> {
        self.received.drain(..).map(|frame| Seen::read(&frame.bytes)).collect()
    }
}

impl std::fmt::Debug for ChildStub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sockets: Vec<_> = self
            .sockets
            .iter()
            .map(|(_, socket)| {
                let smoltcp::socket::Socket::Tcp(tcp) = socket;
                format!("{} in {} out {}", tcp.state(), tcp.recv_queue(), tcp.send_queue())
            })
            .collect();
        f.debug_struct("ChildStub")
            .field("mode", &self.mode)
            .field("sockets", &sockets)
            .finish_non_exhaustive()
    }
}

/// The device that the child's smoltcp sees.
struct Wire {
    caps: DeviceCapabilities,
    arrived: VecDeque<Vec<u8>>,
    sent: VecDeque<InFlight>,
}

impl Device for Wire {
    type RxToken<'t> = Arrived;
    type TxToken<'t> = Sending<'t>;

    fn receive(&mut self, _: Instant) -> Option<(Arrived, Sending<'_>)> {
        let frame = self.arrived.pop_front()?;
        Some((
            Arrived(frame),
            Sending { wire: &mut self.sent, caps: &self.caps, meta: PacketMeta::default() },
        ))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending { wire: &mut self.sent, caps: &self.caps, meta: PacketMeta::default() })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.caps.clone()
    }
}

struct Arrived(Vec<u8>);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Sending<'a> {
    wire: &'a mut VecDeque<InFlight>,
    caps: &'a DeviceCapabilities,
    meta: PacketMeta,
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut bytes = vec![0; len];
        let result = f(&mut bytes);
        let partial = matches!(self.caps.checksum.tcp, Caps::None);
        let offload = Offload {
            checksum: if partial && is_tcp(&bytes) { Checksum::Partial } else { Checksum::Complete },
            gso: self.meta.segmentation_offload_size.map_or(Gso::None, |size| Gso::Tcp(size.get())),
        };
        self.wire.push_back(InFlight { bytes, offload });
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.meta = meta;
    }
}

fn is_tcp(frame: &[u8]) -> bool {
    match frame {
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x08, 0x00, rest @ ..] => rest.get(9) == Some(&6),
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x86, 0xdd, rest @ ..] => rest.get(6) == Some(&6),
        _ => false,
    }
}

/// Longest time that the child's own timers let pass between retransmissions.
pub const CHILD_MAX_RTO: Duration = Duration::from_secs(60);
