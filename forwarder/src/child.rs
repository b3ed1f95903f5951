//! The agent inside the child's namespace: makes sockets there and hands them over.
