//! What the driver has to know, and its limits.

use std::time::Duration;

use super::egress::EgressMode;
use super::publishing::Auto;
use super::target::{ChildNetwork, Manner};
use crate::manager;

/// What the driver has to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The child's addresses.
    pub child: ChildNetwork,
    /// Which ways clients are led.
    pub manner: Manner,
    /// How much of everything there may be.
    pub limits: Limits,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// What listens in the child is published by itself, if so.
    pub auto: Option<Auto>,
    /// Whether connections that begin in the child are relayed; wants [`ForwardDriver::set_egress_events`](super::ForwardDriver::set_egress_events).
    pub egress: EgressMode,
}

/// How much of everything there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Forwards and listeners.
    pub forwards: manager::Limits,
    /// TCP connections of all forwards and of the egress relay that are joined here, 20,000 by default: 40,000 descriptors. Further
    /// clients see RST, further offers come back, as they do when half of the descriptors are theirs. It is lowered to what the descriptors of the process (RLIMIT_NOFILE) allow. What the TAP takes over counts
    /// among the engine's flows instead.
    pub connections: usize,
    /// TCP connections of one forward, unlimited by default. Further clients see RST.
    pub connections_per_forward: usize,
    /// Pipes (2 descriptors and up to 256 KiB of kernel memory each) of busy bulk streams, 512 by default. Further streams are
    /// copied instead of spliced.
    pub pipes: usize,
    /// UDP sessions of one forward, 4,096 by default; the one idle for longest makes room.
    pub udp_sessions: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            forwards: manager::Limits::default(),
            connections: 20_000,
            connections_per_forward: usize::MAX,
            pipes: 512,
            udp_sessions: 4096,
        }
    }
}

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Until the child's kernel has to have answered a connect, 10 s by default: its server does not accept.
    pub connect: Duration,
    /// Without a byte after one end has finished, 7,440 s by default, as for the TAP's connections (RFC 5382 section 5).
    pub half_closed: Duration,
    /// Waited for the next event without sleeping, at most, while messages go to and fro; 50 us by default, as the engine on the TAP.
    pub busy_poll: Duration,
    /// After the end, without progress in delivering what the child has sent on the egress relay; 500 ms by default, as the engine
    /// on the TAP.
    pub linger: Duration,
    /// The same in all, 10 s by default.
    pub linger_in_all: Duration,
    /// UDP sessions without a datagram, 180 s by default (RFC 4787 section 4.3: 120 s at least).
    pub udp: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            connect: Duration::from_secs(10),
            half_closed: Duration::from_secs(7440),
            linger: Duration::from_millis(500),
            linger_in_all: Duration::from_secs(10),
            udp: Duration::from_secs(180),
            busy_poll: Duration::from_micros(50),
        }
    }
}
