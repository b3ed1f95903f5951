//! Publishing by itself what listens inside the child.
