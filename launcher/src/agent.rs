//! The forwarder's agent: a process that joins the child's namespaces and makes sockets there.
