//! DNS.
pub mod records; pub mod tcp;
