//! Neighbour discovery.
