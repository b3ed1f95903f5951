//! Time as every pure module of this crate sees it: a parameter, never a question.
//!
//! smoltcp's integer-microsecond types are used throughout, so that no conversion happens on the packet
//! path. [`Instant`] counts from an epoch the caller chooses (the driver uses `CLOCK_MONOTONIC`).

pub use smoltcp::time::{Duration, Instant};
