//! D-Bus, as much of it as starting a unit of systemd's takes (D-Bus Specification 0.43).

pub mod connection;
pub mod message;
