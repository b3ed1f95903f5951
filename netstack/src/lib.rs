#![cfg_attr(feature = "driver", doc = include_str!("../README.md"))]
#![cfg_attr(
    not(feature = "driver"),
    doc = "Usermode network engine, built without its driver: the pure [`Stack`]."
)]
//!
//! # The floors
//! From the bottom up; each knows only those below it.
//!
//! | floor | modules | |
//! |---|---|---|
//! | words | [`error`], [`stats`], [`time`], [`frame`], [`action`], [`config`] | what the others speak of |
//! | wire | [`packet`], [`offload`], [`icmp`] | bytes to fields and back |
//! | services | [`arp`], [`ndp`], [`dhcp`], [`dns`], [`neighbor`] | protocols that the engine answers itself |
//! | flows | [`flow`], [`timer`], [`tcp`], [`udp`], [`mod@forward`] | conversations that cross to the host |
//! | stack | [`mod@stack`] | [`Stack`]: dispatch, policy, and the contract of the run loop |
//! | observers | [`capture`] | see frames, change nothing |
//! | driver | `driver`, `sys` | everything impure; feature `driver` |
//!
//! # The run loop
//! Facts go in with one `now` ([`Stack::handle_frame`], [`Stack::handle_host`], [`Stack::handle_datagram`]), then
//! decisions come out until there are none ([`Stack::poll_action`], [`Stack::poll_frame`]), then
//! [`Stack::poll_timeout`] says when [`Stack::handle_timeout`] is due. The contract stands in [`mod@stack`], the
//! vocabulary between stack and sockets in [`action`].

pub mod action;
pub mod arp;
pub mod capture;
pub mod config;
pub mod dhcp;
pub mod dns;
pub mod error;
pub mod flow;
pub mod forward;
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
mod sys;
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
pub use sys::link::{Link, PacketSocket, PacketSocketError};
#[cfg(feature = "driver")]
pub use sys::tap::{Tap, TapError};
