//! All `unsafe` of the crate. Each block states the invariant it rests on.

pub(crate) mod region;

#[cfg(feature = "driver")]
pub mod netlink;
#[cfg(feature = "driver")]
pub mod socket;
#[cfg(feature = "driver")]
pub mod tap;
