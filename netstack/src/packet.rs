//! Building and reading frames.
