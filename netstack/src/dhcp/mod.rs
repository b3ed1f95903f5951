//! DHCP.
pub mod lease; pub mod v6;
