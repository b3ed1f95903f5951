//! Length prefix.
