//! The stack.
