//! Usermode NAT engine. (The crate page is written last.)

pub mod action;
pub mod arp;
pub mod capture;
pub mod config;
pub mod dhcp;
pub mod dns;
pub mod error;
pub mod flow;
pub mod frame;
pub mod icmp;
pub mod ndp;
pub mod neighbor;
pub mod offload;
pub mod packet;
pub mod stack;
pub mod stats;
pub mod tcp;
pub mod time;
pub mod timer;
pub mod udp;

#[cfg(feature = "driver")]
pub mod driver;
#[expect(unsafe_code, reason = "system calls that no safe wrapper offers; every block states its invariant")]
pub mod sys;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use config::{Config, ConfigBuilder};
#[cfg(feature = "driver")]
pub use driver::{Driver, DriverError};
pub use error::{ConfigError, DropReason};
pub use frame::{Frame, FrameOut, LinkCapabilities};
pub use stack::Stack;
pub use stats::Stats;
#[cfg(feature = "driver")]
pub use sys::tap::{Tap, TapError};
