//! Commands that no person gives: the supervisor of a node and its tasks, as the launcher and the supervisor start them.
//!
//! They are told by their first word, before clap sees it. They live as long as the node, and would carry the parser's
//! tables and code in their memory all the while.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::process::ExitCode;

use thiserror::Error;

use crate::error::with_causes;
use crate::logger;
use crate::node::tasks::{self, Task};
use crate::supervisor;

/// The first word of a supervisor's command line.
pub const SUPERVISOR: &str = "node-supervisor";
/// The first word of a task's.
pub const TASK: &str = "node-task";

/// A command of our own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Internal {
    /// Keep the programs of a node running, inside its namespaces: `node-supervisor --plan-fd=FD [-v]..`.
    Supervisor {
        /// The open descriptor that the plan (JSON) is read from.
        plan: RawFd,
        /// How many `-v` there were.
        verbosity: u8,
    },
    /// One of the programs that a node's supervisor runs: `node-task JSON`.
    Task(Task),
}

/// Somebody else than ourselves has given such a command.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InternalError {
    /// Of a supervisor.
    #[error("usage: rootless-launch {SUPERVISOR} --plan-fd=FD [-v]..; {0:?} is not understood")]
    Supervisor(OsString),
    /// It has no plan.
    #[error("usage: rootless-launch {SUPERVISOR} --plan-fd=FD [-v]..")]
    NoPlan,
    /// Of a task.
    #[error("usage: rootless-launch {TASK} JSON; {0:?} is not understood")]
    Task(String, #[source] serde_json::Error),
}

impl Internal {
    /// The command that these words are, the program's name being the first of them; `None` if it is none of ours.
    pub fn of(words: impl Iterator<Item = OsString>) -> Option<Result<Self, InternalError>> {
        let mut words = words.skip(1);
        match words.next()?.to_str()? {
            SUPERVISOR => Some(supervisor(words)),
            TASK => {
                let text = words.next().unwrap_or_default().to_string_lossy().into_owned();
                let task = serde_json::from_str(&text).map(Internal::Task);
                Some(task.map_err(|source| InternalError::Task(text, source)))
            }
            _ => None,
        }
    }

    /// Runs it. What it says goes to the log of a node, or to whoever started it.
    pub fn main(self) -> ExitCode {
        match self {
            Internal::Supervisor { plan, verbosity } => {
                logger::install(verbosity);
                supervisor::run::main(plan)
            }
            Internal::Task(task) => {
                logger::install(1);
                tasks::main(&task)
            }
        }
    }
}

/// Runs what [`Internal::of`] has found.
pub fn main(found: Result<Internal, InternalError>) -> ExitCode {
    match found {
        Ok(command) => command.main(),
        Err(error) => {
            logger::install(0);
            log::error!("{}", with_causes(&error));
            ExitCode::from(2)
        }
    }
}

fn supervisor(words: impl Iterator<Item = OsString>) -> Result<Internal, InternalError> {
    let (mut plan, mut verbosity) = (None, 0);
    for word in words {
        let text = word.to_str().unwrap_or_default();
        if text == "-v" {
            verbosity += 1;
            continue;
        }
        let number = text.strip_prefix("--plan-fd=").and_then(|number| number.parse().ok());
        plan = Some(number.ok_or(InternalError::Supervisor(word))?);
    }
    let plan = plan.ok_or(InternalError::NoPlan)?;
    Ok(Internal::Supervisor { plan, verbosity })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&str]) -> Option<Result<Internal, String>> {
        let found = Internal::of(words.iter().map(OsString::from))?;
        Some(found.map_err(|error| error.to_string()))
    }

    #[test]
    fn the_first_argument_chooses() {
        let supervisor = Internal::Supervisor { plan: 7, verbosity: 1 };
        assert_eq!(of(&["x", SUPERVISOR, "--plan-fd=7", "-v"]), Some(Ok(supervisor)));
        assert_eq!(of(&["x", TASK, "\"overlayPeers\""]), Some(Ok(Internal::Task(Task::OverlayPeers))));
        for others in [&["x"][..], &["x", "--", TASK], &["x", "node"], &["x", "status", SUPERVISOR]] {
            assert_eq!(of(others), None, "{others:?}");
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let fault = |words: &[&str]| of(words).unwrap().unwrap_err();
        assert!(fault(&["x", SUPERVISOR]).starts_with("usage: rootless-launch node-supervisor --plan-fd=FD"));
        assert!(fault(&["x", SUPERVISOR, "--plan-fd=a"]).contains("\"--plan-fd=a\" is not understood"));
        assert!(fault(&["x", SUPERVISOR, "--plan-fd=3", "--help"]).contains("\"--help\""));
        assert!(fault(&["x", TASK]).contains("\"\" is not understood"));
        assert!(fault(&["x", TASK, "\"others\""]).contains("others"));
    }
}
