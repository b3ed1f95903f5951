//! The supervisor of a node, as a process, with shell programs as units; and the client's commands about it.

#[cfg(test)]
mod client;
#[cfg(test)]
mod control;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod logs;
#[cfg(test)]
mod support;
#[cfg(test)]
mod units;
