//! The engine as a way to the child for published ports: its connections and datagrams go through the TAP.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use forwarder::driver::TapPath;
use forwarder::spec::Source;
use log::debug;
use netstack::driver::{DriverHandle, Ended};
use netstack::forward::{ForwardId, ForwardSource, UdpForward};

/// Hands sockets to an engine that runs on another thread.
#[derive(Clone, Debug)]
pub struct TapCarrier {
    driver: DriverHandle,
}

impl TapCarrier {
    /// The engine behind `driver`.
    pub fn new(driver: DriverHandle) -> Self {
        TapCarrier { driver }
    }
}

impl TapPath for TapCarrier {
    fn tcp(&self, stream: OwnedFd, source: SocketAddr, child: SocketAddr) -> io::Result<()> {
        let adopt = move |driver: &mut netstack::Driver| {
            // The client has been told by a reset.
            if let Err(error) = driver.adopt_stream(stream, source, child) {
                debug!("a connection for {child} is not carried: {error}");
            }
        };
        self.driver.post(adopt).map_err(ended)
    }

    fn add_udp(&self, socket: OwnedFd, child: SocketAddr, source: Source) -> io::Result<u64> {
        let source = match source {
            Source::Client => ForwardSource::Client,
            Source::Gateway => ForwardSource::Gateway,
        };
        let forward = UdpForward { child, source };
        let added = self.driver.call(move |driver| driver.add_udp_forward(socket, forward));
        added.map_err(ended)?.map(ForwardId::to_bits).map_err(io::Error::other)
    }

    fn remove_udp(&self, id: u64) {
        // With the engine its sockets have ended.
        let _ = self.driver.call(move |driver| driver.remove_udp_forward(ForwardId::from_bits(id)));
    }
}

fn ended(error: Ended) -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, error)
}
