//! `rootless-launch`: parse, run, tell.

use std::panic;
use std::process::{self, ExitCode};

use clap::Parser;
use launcher::cli::{self, Cli, Command};
use launcher::error::{Ending, LaunchError, with_causes};
use launcher::internal::{self, Internal};
use launcher::node::{self, NodeFailure, install};
use launcher::personality::Personality;
use launcher::{check, client, hint, logger, manual, parent, signals};

fn main() -> ExitCode {
    abort_on_panic();
    if let Some((personality, args)) = Personality::of(std::env::args_os()) {
        return personality.main(args);
    }
    if let Some(found) = Internal::of(std::env::args_os()) {
        return internal::main(found);
    }
    let cli = Cli::try_parse().unwrap_or_else(|error| cli::explain(error).exit());
    logger::install(cli.verbosity());
    match cli.command {
        Some(Command::Check(args)) => return check::run(&args),
        Some(Command::Node(args)) => {
            if let Some(command) = &args.command {
                return install::main(command);
            }
            let words: Vec<_> = std::env::args_os().skip(2).collect();
            return match node::run(*args, &words) {
                Ok(ending) => end(ending),
                Err(NodeFailure::Launch(error)) => tell(&error),
                Err(error) => {
                    log::error!("{}", with_causes(&error));
                    ExitCode::from(error.exit_code())
                }
            };
        }
        Some(Command::Client(command)) => return client::main(&command),
        Some(Command::Completions { shell }) => return manual::completions(shell),
        Some(Command::Man { directory }) => return manual::pages(directory.as_deref()),
        None => {}
    }
    match parent::run(&cli.run) {
        Ok(ending) => end(ending),
        Err(error) => tell(&error),
    }
}

/// As the command has ended.
fn end(ending: Ending) -> ExitCode {
    match ending {
        Ending::Exited(status) => ExitCode::from(status as u8),
        Ending::Killed(signal) => signals::die_of(signal),
    }
}

/// A process that panics ends there and then: unwinding would go through what it copied from its parent, and undo
/// what is the parent's. The guard cleans up.
fn abort_on_panic() {
    let tell = panic::take_hook();
    panic::set_hook(Box::new(move |what| {
        tell(what);
        process::abort()
    }));
}

/// Prints the error, its causes and what to do about it.
fn tell(error: &LaunchError) -> ExitCode {
    log::error!("{}", with_causes(error));
    if let Some(hint) = hint::for_error(error, &hint::Machine::read()) {
        log::error!("{}", hint.sentence());
    }
    ExitCode::from(error.exit_code())
}
