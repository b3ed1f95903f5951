//! The messages between driver and agent.
