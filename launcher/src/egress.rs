//! Outbound TCP connections on the forwarder's relay.

use serde::{Deserialize, Serialize};

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
