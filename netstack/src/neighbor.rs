//! Child MACs.
