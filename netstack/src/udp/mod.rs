//! UDP.
pub mod fragment; pub mod reassembly;
