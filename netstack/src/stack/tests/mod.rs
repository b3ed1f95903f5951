//! Whole conversations through the stack: frames in, frames and actions out, no kernel.

mod dns;
mod forward;
mod hostile;
mod icmp;
mod link;
mod lossy;
mod model;
mod options;
mod overlay;
mod policy;
mod relay;
mod sharing;
mod tcp;
mod tcp_script;
mod udp;

use std::net::{IpAddr, SocketAddr};

use crate::frame::{LinkCapabilities, Offload};
use crate::testing::frames::{self, CHILD, CHILD6, WORLD, WORLD6};
use crate::testing::{ALL_OFFLOADS, NO_OFFLOADS};

/// Both ends of a conversation with the world, IPv4 and IPv6.
fn families(port: u16) -> [(SocketAddr, SocketAddr); 2] {
    [
        (SocketAddr::new(CHILD.into(), 40_000), SocketAddr::new(WORLD.into(), port)),
        (SocketAddr::new(CHILD6.into(), 40_000), SocketAddr::new(WORLD6.into(), port)),
    ]
}

fn socket(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

const CAPABILITIES: [LinkCapabilities; 2] = [ALL_OFFLOADS, NO_OFFLOADS];
