//! The programs of a node, which are other projects', and what they need to be told. Pure.

pub mod programs;
