//! Static records.
