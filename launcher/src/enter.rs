//! `enter`: a command in the namespaces of a running instance.
