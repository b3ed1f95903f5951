//! The command line, sockets and messages of slirp4netns.

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs with the arguments behind the program's name.
pub fn main(_args: Vec<OsString>) -> ExitCode {
    ExitCode::FAILURE
}
