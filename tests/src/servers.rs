//! Servers for tests: threads on sockets that an agent made in some namespace.

use crate::{
    process::DEADLINE,
    stream::{Pattern, StreamHash},
};
use nix::{
    errno::Errno,
    sys::socket::{Shutdown, SockaddrStorage, recvfrom, setsockopt, shutdown, sockopt},
};
use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
};

/// What a TCP server does with each connection.
#[derive(Debug, Clone, Copy)]
pub enum Serve {
    /// Read to the end, then answer with count and sum (see [`verdict`]): proves that a half-closed connection still carries data.
    Sink,
    /// Send so many bytes of the pattern with this seed, then close.
    Source(u64, u64),
    /// Send so many bytes, end our direction, then read to the end.
    SourceThenSink(u64, u64),
    /// Return every byte, end when the peer ends.
    Echo,
    /// Read one byte, then reset the connection.
    ResetAfterByte,
    /// Accept, read nothing and hold until the server is dropped.
    Hold,
    /// Accept, wait for [`Server::resume`], then do what [`Serve::Sink`] does.
    StalledSink,
}

/// What happened to one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// Who came, as the host sees it.
    pub peer: SocketAddr,
    /// Bytes that came.
    pub bytes: u64,
    /// Their [`StreamHash`].
    pub sum: u64,
    /// How the peer's direction ended: `None` for a proper end.
    pub error: Option<ErrorKind>,
}

/// A TCP server; it stops accepting when dropped.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    accepted: Receiver<SocketAddr>,
    served: Receiver<Served>,
    resume: Vec<Sender<()>>,
}

impl Server {
    /// Starts to serve.
    ///
    /// # Panics
    /// When the descriptor cannot be cloned.
    #[must_use]
    pub fn start(listener: TcpListener, how: Serve) -> Self {
        let (accepted_sender, accepted) = channel();
        let (served_sender, served) = channel();
        let (resume, resumed) = channel::<()>();
        let accepting = listener.try_clone().expect("descriptors are left");
        thread::spawn(move || {
            let mut resumed = Some(resumed);
            let mut held = Vec::new();
            while let Ok((stream, peer)) = accepting.accept() {
                // Nobody need listen to these events.
                let _ = accepted_sender.send(peer);
                match how {
                    Serve::Hold => held.push(stream),
                    Serve::StalledSink => {
                        if let (Some(resumed), sender) = (resumed.take(), served_sender.clone()) {
                            thread::spawn(move || {
                                let _ = resumed.recv();
                                let _ = sender.send(serve(stream, peer, Serve::Sink));
                            });
                        }
                    }
                    how => {
                        let sender = served_sender.clone();
                        thread::spawn(move || sender.send(serve(stream, peer, how)));
                    }
                }
            }
        });
        Self { listener, accepted, served, resume: vec![resume] }
    }

    /// The port it listens on.
    ///
    /// # Panics
    /// When the socket has no address.
    #[must_use]
    pub fn port(&self) -> String {
        self.listener.local_addr().expect("a bound socket").port().to_string()
    }

    /// The next connection that was accepted.
    ///
    /// # Panics
    /// When none comes in time.
    #[track_caller]
    #[must_use]
    pub fn accepted(&self) -> SocketAddr {
        self.accepted.recv_timeout(DEADLINE).expect("a connection within the deadline")
    }

    /// The next connection that was served to its end.
    ///
    /// # Panics
    /// When none comes in time.
    #[track_caller]
    #[must_use]
    pub fn served(&self) -> Served {
        self.served.recv_timeout(DEADLINE).expect("a served connection within the deadline")
    }

    /// Lets a [`Serve::StalledSink`] read.
    pub fn resume(&mut self) {
        self.resume.clear();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Wakes the thread in accept(2); it may have ended by itself.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
    }
}

/// Returns every datagram to its sender until the returned guard is dropped.
///
/// # Panics
/// When the descriptor cannot be cloned.
#[must_use]
pub fn udp_echo(socket: UdpSocket) -> UdpServer {
    udp_server(socket, |_, datagram| datagram.to_vec())
}

/// Answers every datagram as `answer` says until the returned guard is dropped.
///
/// # Panics
/// When the descriptor cannot be cloned.
#[must_use]
pub fn udp_server(
    socket: UdpSocket,
    answer: impl Fn(SocketAddr, &[u8]) -> Vec<u8> + Send + 'static,
) -> UdpServer {
    let echo = socket.try_clone().expect("descriptors are left");
    let thread = thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        // An ICMP error that a reply earned is no reason to stop.
        loop {
            // Not std's recv_from, which panics at what has no sender: that is how the guard's end shows.
            match recvfrom::<SockaddrStorage>(echo.as_raw_fd(), &mut buffer) {
                Ok((n, peer)) => {
                    let Some(peer) = peer.as_ref().and_then(to_std) else { return };
                    // A peer that is gone is no reason to stop.
                    let _ = echo.send_to(&answer(peer, &buffer[..n]), peer);
                }
                Err(Errno::ECONNREFUSED) => {}
                Err(_) => return,
            }
        }
    });
    UdpServer { socket, thread: Some(thread) }
}

/// A running UDP server.
#[derive(Debug)]
pub struct UdpServer {
    socket: UdpSocket,
    thread: Option<thread::JoinHandle<()>>,
}

impl UdpServer {
    /// The port it listens on.
    ///
    /// # Panics
    /// When the socket has no address.
    #[must_use]
    pub fn port(&self) -> String {
        self.socket.local_addr().expect("a bound socket").port().to_string()
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        // Says ENOTCONN and wakes the thread all the same: what it gets then has no sender.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        // A panic was told already. The address is free from here on.
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

fn to_std(address: &SockaddrStorage) -> Option<SocketAddr> {
    let ipv4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
    ipv4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
}

/// Count and sum as they go over the wire.
#[must_use]
pub fn verdict(bytes: u64, sum: u64) -> [u8; 16] {
    let mut wire = [0; 16];
    wire[..8].copy_from_slice(&bytes.to_be_bytes());
    wire[8..].copy_from_slice(&sum.to_be_bytes());
    wire
}

/// Reads to the end: count, sum, and how it ended.
pub fn drain(stream: &mut impl Read) -> (StreamHash, Option<io::Error>) {
    let mut hash = StreamHash::default();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (hash, None),
            Ok(n) => hash.update(&buffer[..n]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return (hash, Some(error)),
        }
    }
}

/// Writes `bytes` bytes of the pattern.
///
/// # Errors
/// Those of write(2).
pub fn pour(stream: &mut impl Write, bytes: u64, seed: u64) -> io::Result<()> {
    let mut pattern = Pattern::new(seed);
    let mut buffer = vec![0; 256 << 10];
    let mut left = bytes;
    while left > 0 {
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        pattern.fill(&mut buffer[..n]);
        stream.write_all(&buffer[..n])?;
        left -= n as u64;
    }
    Ok(())
}

/// Closes with a reset instead of an end.
///
/// # Errors
/// Those of setsockopt(2).
pub fn reset(stream: TcpStream) -> io::Result<()> {
    setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    drop(stream);
    Ok(())
}

fn serve(mut stream: TcpStream, peer: SocketAddr, how: Serve) -> Served {
    let mut hash = StreamHash::default();
    let result = match how {
        Serve::Source(bytes, seed) => pour(&mut stream, bytes, seed),
        Serve::SourceThenSink(bytes, seed) => pour(&mut stream, bytes, seed)
            .and_then(|()| stream.shutdown(std::net::Shutdown::Write))
            .and_then(|()| swallow(&mut stream, &mut hash)),
        Serve::Sink | Serve::StalledSink => sink(&mut stream, &mut hash),
        Serve::Echo => echo(&mut stream, &mut hash),
        Serve::ResetAfterByte => stream.read(&mut [0]).and_then(|_| reset(stream)),
        Serve::Hold => unreachable!("held by the accepting thread"),
    };
    Served { peer, bytes: hash.bytes(), sum: hash.sum(), error: result.err().map(|error| error.kind()) }
}

fn swallow(stream: &mut TcpStream, hash: &mut StreamHash) -> io::Result<()> {
    let (got, error) = drain(stream);
    *hash = got;
    error.map_or(Ok(()), Err)
}

fn sink(stream: &mut TcpStream, hash: &mut StreamHash) -> io::Result<()> {
    swallow(stream, hash)?;
    stream.write_all(&verdict(hash.bytes(), hash.sum()))
}

fn echo(stream: &mut TcpStream, hash: &mut StreamHash) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        hash.update(&buffer[..n]);
        stream.write_all(&buffer[..n])?;
    }
}
