//! The control API over real sockets, with a stand-in for the engine.

mod commands;
mod openapi;
mod rootlessctl;
mod server;
mod support;
