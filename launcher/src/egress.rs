//! Outbound TCP connections on the forwarder's relay: what joins it with the engine on the TAP.
//!
//! # Theory of operation
//! Engine and forwarder are threads of one process that share nothing and never wait for each other. The engine connects on the host as
//! ever, and then offers the connection ([`HostRelay`]); the forwarder gets it under the flow's number; what becomes of it comes back as a
//! job for the engine's thread ([`EgressEvents`]). Whatever cannot be relayed is given back and goes by the TAP.
//!
//! The forwarder's agent is started by the first offer. [`EgressMode::Relay`] has it started beforehand and asks what it can.

use std::env;
use std::ffi::OsString;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How outbound TCP connections are carried.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EgressMode {
    /// By the relay where the child's kernel can do it, else by the TAP.
    #[default]
    Auto,
    /// By the relay, which has to be possible.
    Relay,
    /// By the TAP.
    Tap,
}

/// What tells the personalities, whose command lines are other programs', how to carry outbound connections.
pub const VARIABLE: &str = "ROOTLESS_LAUNCH_EGRESS";

/// [`VARIABLE`] has another value than [`EgressMode`] has names.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{VARIABLE}={0:?} is not auto, relay or tap")]
pub struct VariableError(OsString);

impl EgressMode {
    /// What the environment wants of a personality: the TAP unless it says otherwise, because the namespace is somebody else's and
    /// the relay adds rules to it.
    ///
    /// # Errors
    /// It names none of them.
    pub fn of_environment() -> Result<Self, VariableError> {
        let Some(value) = env::var_os(VARIABLE) else { return Ok(EgressMode::Tap) };
        value.to_str().and_then(|text| text.parse().ok()).ok_or(VariableError(value))
    }

    /// Whether there is a relay to be had.
    pub fn wants_relay(self) -> bool {
        self != EgressMode::Tap
    }
}

impl FromStr for EgressMode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "auto" => Ok(EgressMode::Auto),
            "relay" => Ok(EgressMode::Relay),
            "tap" => Ok(EgressMode::Tap),
            _ => Err(()),
        }
    }
}
