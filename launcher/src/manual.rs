//! Completion scripts and manual pages, made from the command line's definition.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;

const PROGRAM: &str = "rootless-launch";
const STDOUT: &str = "standard output";

/// Prints the completion script of a shell.
pub fn completions(shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), PROGRAM, &mut script);
    told(io::stdout().write_all(&script), STDOUT)
}

/// Prints the manual page, or writes it and one for each subcommand to a directory.
pub fn pages(directory: Option<&Path>) -> ExitCode {
    match directory {
        None => told(clap_mangen::Man::new(Cli::command()).render(&mut io::stdout()), STDOUT),
        Some(directory) => {
            let written = clap_mangen::generate_to(Cli::command(), directory);
            told(written, &format!("{directory:?}, which has to be a directory"))
        }
    }
}

fn told(result: io::Result<()>, to: &str) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read it has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("cannot write to {to}: {error}");
            ExitCode::FAILURE
        }
    }
}
