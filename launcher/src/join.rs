//! Joining namespaces that somebody else made, and opening a TAP in them.
