//! rootless-launch.
fn main() {}
