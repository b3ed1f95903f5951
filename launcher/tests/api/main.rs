//! The control API over real sockets, with a stand-in for the engine where that is enough.

#[cfg(test)]
mod commands;
#[cfg(test)]
mod engine;
#[cfg(test)]
mod launch;
#[cfg(test)]
mod openapi;
#[cfg(test)]
mod rootlessctl;
#[cfg(test)]
mod server;
#[cfg(test)]
mod support;
