//! How launcher, child and engine come to an understanding before CMD runs.
//!
//! ```text
//! child                     launcher                     engine
//!   |-- TapReady + fd --------->|-- Serve + fd ------------->|
//!   |<-- IdsMapped -------------|                            |
//!   |   (mounts, waits for its IPv6 route)                   |
//!   |-- NetworkReady ---------->|<-- EngineReady ------------|
//!   |<-- Execute ---------------|                            |
//!   |   execs CMD: its end closes, there is no message for it
//!                               |-- Stop ------------------->|   CMD is dead
//! ```
//! `Failed` may come from child or engine at any time. A channel that closes means that its process is
//! dead, or, for the child after `Execute`, that CMD runs.

pub mod channel;
pub mod message;
pub mod state;
