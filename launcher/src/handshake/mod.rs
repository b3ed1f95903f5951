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
//! An engine that takes the place of one that has died is told `Serve` by the launcher, which has kept the TAP, and after its
//! `EngineReady` that CMD is `Running`.
//!
//! `Failed` may come from child or engine at any time. A channel that closes means that its process is
//! dead, or, for the child after `Execute`, that CMD runs.

pub mod channel;
pub mod message;
pub mod state;
