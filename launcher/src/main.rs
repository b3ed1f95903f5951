//! `rootless-launch`: parse, run, tell.

use std::process::ExitCode;

use clap::Parser;
use launcher::cli::{Cli, Command};
use launcher::error::{Ending, LaunchError};
use launcher::personality::Personality;
use launcher::{check, client, hint, logger, manual, parent, signals};

fn main() -> ExitCode {
    if let Some((personality, args)) = Personality::of(std::env::args_os()) {
        return personality.main(args);
    }
    let cli = Cli::parse();
    logger::install(cli.run.verbose);
    match cli.command {
        Some(Command::Check(args)) => return check::run(&args),
        Some(Command::Client(command)) => return client::main(&command),
        Some(Command::Completions { shell }) => return manual::completions(shell),
        Some(Command::Man { directory }) => return manual::pages(directory.as_deref()),
        None => {}
    }
    match parent::run(&cli.run) {
        Ok(Ending::Exited(status)) => ExitCode::from(status as u8),
        Ok(Ending::Killed(signal)) => signals::die_of(signal),
        Err(error) => tell(&error),
    }
}

/// Prints the error, its causes and what to do about it.
fn tell(error: &LaunchError) -> ExitCode {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    log::error!("{text}");
    if let Some(hint) = hint::for_error(error, &hint::Machine::read()) {
        log::error!("{}", hint.sentence());
    }
    ExitCode::from(error.exit_code())
}
