//! Driver.
pub mod resolver;
