//! Fragmenting.
