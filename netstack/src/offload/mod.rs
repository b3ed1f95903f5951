//! Offloads.
pub mod checksum; pub mod coalesce; pub mod segment; pub mod vnet_hdr;
