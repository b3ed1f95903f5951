//! Egress policy. (Skeleton: rules follow.)

/// Rules by destination, first match wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EgressPolicy {}
