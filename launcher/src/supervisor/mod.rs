//! Keeps the programs of a node running.

pub mod unit;
