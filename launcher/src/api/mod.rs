//! The control API: HTTP on a Unix socket in the state directory.
