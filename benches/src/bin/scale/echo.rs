//! Servers for many connections: one thread and epoll(7), because a thread for each would be what is measured.

use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    socket::{Shutdown, shutdown},
};
use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsFd, AsRawFd},
        unix::net::UnixStream,
    },
    thread,
};

/// Returns what comes to any of its listeners, until it is dropped; its connections end then.
#[derive(Debug)]
pub(crate) struct EchoServer {
    ports: Vec<String>,
    /// Closed first: wakes the thread.
    stop: Option<UnixStream>,
    thread: Option<thread::JoinHandle<io::Result<()>>>,
}

impl EchoServer {
    pub(crate) fn start(listeners: Vec<TcpListener>) -> Self {
        let port = |listener: &TcpListener| listener.local_addr().expect("a bound socket").port().to_string();
        let ports = listeners.iter().map(port).collect();
        let (stop, stopped) = UnixStream::pair().expect("descriptors are left");
        let thread = thread::spawn(move || echo(&listeners, &stopped));
        Self { ports, stop: Some(stop), thread: Some(thread) }
    }

    /// Its ports, in the order of the listeners.
    pub(crate) fn ports(&self) -> &[String] {
        &self.ports
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(Ok(Err(error))) = self.thread.take().map(thread::JoinHandle::join) {
            eprintln!("echo server: {error}");
        }
    }
}

fn echo(listeners: &[TcpListener], stopped: &UnixStream) -> io::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    // Listeners and the end have the numbers behind all descriptors.
    epoll.add(stopped, EpollEvent::new(EpollFlags::EPOLLIN, u64::MAX))?;
    for (listener, token) in listeners.iter().zip(FIRST_LISTENER..) {
        listener.set_nonblocking(true)?;
        epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
    }
    let mut streams: Vec<Option<TcpStream>> = Vec::new();
    let mut buffer = [0; 4096];
    let mut events = [EpollEvent::empty(); 256];
    loop {
        let ready = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => 0,
            result => result?,
        };
        for event in &events[..ready] {
            match event.data() {
                u64::MAX => return Ok(()),
                token @ FIRST_LISTENER.. => {
                    // Who gave up meanwhile is nobody's concern.
                    let Ok((stream, _)) = listeners[(token - FIRST_LISTENER) as usize].accept() else {
                        continue;
                    };
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    let index = stream.as_raw_fd() as usize;
                    epoll.add(stream.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
                    streams.resize_with(streams.len().max(index + 1), || None);
                    streams[index] = Some(stream);
                }
                index => {
                    let place = &mut streams[index as usize];
                    if place.as_mut().is_some_and(|stream| answer(stream, &mut buffer).is_err()) {
                        *place = None;
                    }
                }
            }
        }
    }
}

const FIRST_LISTENER: u64 = 1 << 32;

fn answer(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    match stream.read(buffer) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(n) => stream.write_all(&buffer[..n]),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error),
    }
}

/// Does something with each connection, on a thread of its own; accepts until it is dropped.
#[derive(Debug)]
pub(crate) struct BulkServer(TcpListener);

impl BulkServer {
    /// `each` ends when its peer does.
    pub(crate) fn start(listener: TcpListener, each: fn(TcpStream) -> io::Result<()>) -> Self {
        let accepting = listener.try_clone().expect("descriptors are left");
        thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                thread::spawn(move || each(stream));
            }
        });
        Self(listener)
    }

    pub(crate) fn port(&self) -> String {
        self.0.local_addr().expect("a bound socket").port().to_string()
    }
}

impl Drop for BulkServer {
    fn drop(&mut self) {
        // Wakes the thread in accept(2).
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }
}

/// Writes until nobody takes it.
pub(crate) fn pour(mut stream: TcpStream) -> io::Result<()> {
    let zeros = vec![0; 256 << 10];
    loop {
        stream.write_all(&zeros)?;
    }
}

/// Reads to the end.
pub(crate) fn drain(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    while stream.read(&mut buffer)? > 0 {}
    Ok(())
}
