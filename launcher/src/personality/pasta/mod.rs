//! The command line and behaviour of pasta.

pub mod cli;
pub mod ports;

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs with the arguments behind the program's name.
pub fn main(_args: Vec<OsString>) -> ExitCode {
    ExitCode::FAILURE
}
