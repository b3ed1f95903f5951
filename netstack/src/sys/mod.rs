//! All `unsafe` of the crate. Each block states the invariant it rests on.

pub(crate) mod region;

#[cfg(feature = "driver")]
pub(crate) mod link;
#[cfg(feature = "driver")]
pub(crate) mod netlink;
#[cfg(feature = "driver")]
pub(crate) mod random;
#[cfg(feature = "driver")]
pub(crate) mod socket;
#[cfg(feature = "driver")]
pub(crate) mod tap;
