//! Launches of the real binary, as the user who runs the tests.

#[cfg(test)]
mod check;
#[cfg(test)]
mod errors;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod namespaces;
#[cfg(test)]
mod node;
#[cfg(test)]
mod offload;
#[cfg(test)]
mod pidns;
#[cfg(test)]
mod sandbox;
#[cfg(test)]
mod stats;
#[cfg(test)]
mod support;
#[cfg(test)]
mod terminal;
