//! The state directory of an instance.
