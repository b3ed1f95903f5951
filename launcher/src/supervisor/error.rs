//! Why a node ended, or never began.

use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::Why;
use super::unit::UnitError;

/// Why a node ended, or never began.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SupervisorError {
    /// The descriptor of the plan.
    #[error("cannot read the plan from descriptor {fd}")]
    ReadPlan {
        /// Its number.
        fd: RawFd,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The plan is not one.
    #[error("the plan is not the JSON that it should be")]
    ParsePlan(#[source] serde_json::Error),
    /// A unit of the plan is wrong.
    #[error("the plan cannot be done")]
    Unit(#[from] UnitError),
    /// A directory of the plan.
    #[error("cannot make the directory {path:?}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// mkdir(2), chmod(2).
        #[source]
        source: io::Error,
    },
    /// A file of the plan.
    #[error("cannot write the file {path:?}")]
    File {
        /// Which.
        path: PathBuf,
        /// open(2), write(2), chmod(2).
        #[source]
        source: io::Error,
    },
    /// Another supervisor has the directory of the logs.
    #[error("a supervisor runs already with the logs in {0:?}; stop it, or use another name")]
    Twice(PathBuf),
    /// The directory of the logs cannot be locked.
    #[error("cannot lock {path:?}")]
    Lock {
        /// The directory.
        path: PathBuf,
        /// open(2), fcntl(2).
        #[source]
        source: io::Error,
    },
    /// Somebody else listens where the control socket has to be.
    #[error("somebody else listens on {0:?}; stop that first")]
    ControlTaken(PathBuf),
    /// The control socket.
    #[error("cannot listen on {path:?}")]
    Control {
        /// The socket.
        path: PathBuf,
        /// unlink(2), bind(2), listen(2).
        #[source]
        source: io::Error,
    },
    /// Something that the loop is made of.
    #[error("cannot supervise: {step}")]
    Loop {
        /// What was to be done.
        step: &'static str,
        /// The system call's reason.
        #[source]
        source: io::Error,
    },
    /// A unit failed before all were ready.
    #[error(transparent)]
    Failed(Box<UnitFailure>),
}

/// A unit that kept a node from being ready.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("unit {unit} {why}\n{}", story(.lines, .log))]
pub struct UnitFailure {
    /// The unit.
    pub unit: String,
    /// Why.
    pub why: Why,
    /// The last lines of its log.
    pub lines: Vec<String>,
    /// Its log.
    pub log: PathBuf,
}

fn story(lines: &[String], log: &Path) -> String {
    let file = log.display();
    if lines.is_empty() {
        return format!("it has written nothing to its log, {file}");
    }
    let quoted: String = lines.iter().map(|line| format!("    {line}\n")).collect();
    format!("the last lines of its log, {file}:\n{}", quoted.trim_end())
}
