//! ARP responder.
