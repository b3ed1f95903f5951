//! The command line, sockets and messages of slirp4netns.
//!
//! # Theory of operation
//! One process, the one that was called, serves the whole time and stays in the caller's namespaces: it opens the TAP
//! through a short-lived child ([`join`](crate::join)), listens on the API socket, goes into the sandbox if one is
//! wanted, tells the ready descriptor, and runs the engine until the exit descriptor is hung up. SIGTERM and SIGKILL
//! end it as they end every program. It has one thread until everything about namespaces is done.

pub mod api;
pub mod cli;
pub mod plan;

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use log::warn;
use netstack::config::Config;
use netstack::error::ConfigError;
use netstack::{Driver, DriverError, Tap};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::signal::Signal;
use thiserror::Error;

use self::cli::{Call, CliError, Request, Target, USAGE};
use self::plan::Banner;
use crate::join::{self, JoinError};
use crate::logger;
use crate::sys::fd::take_inherited;
use crate::sys::signal::{Disposition, set_disposition};

/// The version of slirp4netns whose behaviour this is; others compare it with what they need.
const VERSION: &str = "1.3.3";

/// Runs with the arguments behind the program's name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    logger::install(0);
    set_disposition(Signal::SIGPIPE, Disposition::Ignore);
    let mut notices = Vec::new();
    let call = cli::parse(args, &mut notices);
    notices.iter().for_each(|line| say(format_args!("{line}\n")));
    let ran = match call {
        Ok(Call::Help) => {
            say(USAGE);
            return ExitCode::SUCCESS;
        }
        Ok(Call::Version) => {
            say(version());
            return ExitCode::SUCCESS;
        }
        Ok(Call::Serve(request)) => serve(&request),
        Err(fault) => Err(fault.into()),
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("{}\n", with_causes(&error)));
            if error.is_usage() {
                say(USAGE);
            }
            ExitCode::FAILURE
        }
    }
}

/// What ends a run; exit status 1 each.
#[derive(Debug, Error)]
enum RunError {
    #[error(transparent)]
    Usage(#[from] CliError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("existing path expected when --netns-type=path")]
    NetnsPath(#[source] JoinError),
    #[error("userns path doesn't exist")]
    UsernsPath(#[source] JoinError),
    #[error(transparent)]
    Join(JoinError),
    #[error("descriptor {fd} of {option} cannot be used")]
    Descriptor {
        option: &'static str,
        fd: i32,
        #[source]
        source: io::Error,
    },
    #[error("cannot wait for the end")]
    Watch(#[source] io::Error),
    #[error(transparent)]
    Engine(#[from] DriverError),
}

impl RunError {
    /// The target cannot be opened: because of the user namespace that the caller named, or for another reason.
    fn target(error: JoinError, userns: Option<&Path>, other: fn(JoinError) -> Self) -> Self {
        match &error {
            JoinError::Open { path, .. } if Some(path.as_path()) == userns => RunError::UsernsPath(error),
            _ => other(error),
        }
    }

    fn is_usage(&self) -> bool {
        matches!(self, RunError::Usage(_) | RunError::NetnsPath(_) | RunError::UsernsPath(_))
    }
}

/// Sets everything up, then serves until the end.
fn serve(request: &Request) -> Result<(), RunError> {
    let given = Given::take(request)?;
    let config = plan::config(request)?;
    let tap = open_tap(request, &config, given.tap)?;
    say(Banner { request, config: &config });
    let mut driver = Driver::new(Tap::from_fd(tap).map_err(DriverError::from)?, config)?;
    let end = End::watch(given.exit).map_err(RunError::Watch)?;
    if let Some(ready) = given.ready {
        tell_ready(ready);
    }
    driver.run_until(&end)?;
    Ok(driver.finish()?)
}

/// Descriptors that the command line names by number.
struct Given {
    tap: Option<OwnedFd>,
    ready: Option<OwnedFd>,
    exit: Option<OwnedFd>,
}

impl Given {
    /// Takes them over before anything else is opened.
    fn take(request: &Request) -> Result<Self, RunError> {
        let take =
            |option, fd| take_inherited(fd).map_err(|source| RunError::Descriptor { option, fd, source });
        let tap = match request.target {
            Target::TapFd(fd) => Some(take("--netns-type=tapfd", fd)?),
            _ => None,
        };
        let ready = request.ready_fd.map(|fd| take("--ready-fd", fd)).transpose()?;
        let exit = request.exit_fd.map(|fd| take("--exit-fd", fd)).transpose()?;
        Ok(Given { tap, ready, exit })
    }
}

/// The TAP of the target.
fn open_tap(request: &Request, config: &Config, given: Option<OwnedFd>) -> Result<OwnedFd, RunError> {
    let (target, name) = match &request.target {
        Target::Process { pid, userns, tap } => {
            let target = join::Target::of_process(*pid, userns.as_deref());
            (target.map_err(|error| RunError::target(error, userns.as_deref(), RunError::Join))?, tap)
        }
        Target::Path { netns, userns, tap } => {
            let target = join::Target::of_paths(netns, userns.as_deref());
            (target.map_err(|error| RunError::target(error, userns.as_deref(), RunError::NetnsPath))?, tap)
        }
        Target::TapFd(_) => return given.ok_or(RunError::Watch(Errno::EBADF.into())),
        Target::Bess(_) => return Err(RunError::Watch(Errno::EOPNOTSUPP.into())),
    };
    let setup = plan::tap(request, name, config);
    let tap = join::run_inside(&target, || {
        let tap = setup.open()?.into_fd();
        complain(format_args!("sent tapfd={} for {name}\n", tap.as_raw_fd()));
        Ok(tap)
    });
    let tap = tap.inspect_err(|_| complain("child failed(1)\n")).map_err(RunError::Join)?;
    complain(format_args!("received tapfd={}\n", tap.as_raw_fd()));
    Ok(tap)
}

/// Tells the caller that everything is ready.
fn tell_ready(fd: OwnedFd) {
    if let Err(error) = File::from(fd).write_all(b"1") {
        warn!("nobody hears that everything is ready: {error}");
    }
}

/// Readable when the run is to end.
#[derive(Debug)]
struct End {
    events: Epoll,
    _exit: Option<OwnedFd>,
}

impl End {
    /// Watches the exit descriptor for a hang-up. Data does not matter.
    fn watch(exit: Option<OwnedFd>) -> io::Result<Self> {
        let events = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        if let Some(exit) = &exit {
            // No event is asked for: hang-ups and errors are always told.
            match events.add(exit, EpollEvent::new(EpollFlags::empty(), 0)) {
                // A file never hangs up.
                Err(Errno::EPERM) => {}
                other => other?,
            }
        }
        Ok(End { events, _exit: exit })
    }
}

impl AsFd for End {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.events.0.as_fd()
    }
}

/// Five lines. Some callers take every line with the word "version" for it, hence only one has it.
fn version() -> String {
    format!(
        "slirp4netns version {VERSION}\n\
         commit: rootless-launch-{}\n\
         libslirp: 4.9.0 (netstack, compatible)\n\
         SLIRP_CONFIG_VERSION_MAX: 6\n\
         libseccomp: 2.6.0 (seccompiler, compatible)\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// To stdout. That nobody reads it is no reason to stop.
fn say(text: impl fmt::Display) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text.to_string().as_bytes()).and_then(|()| stdout.flush());
}

/// To stderr.
fn complain(text: impl fmt::Display) {
    let _ = io::stderr().write_all(text.to_string().as_bytes());
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_line_has_the_word_version() {
        let text = version();
        let with_version: Vec<_> = text.lines().filter(|line| line.contains("version")).collect();
        assert_eq!(with_version, ["slirp4netns version 1.3.3"]);
        let starts =
            ["slirp4netns version ", "commit: ", "libslirp: ", "SLIRP_CONFIG_VERSION_MAX: ", "libseccomp: "];
        assert_eq!(text.lines().count(), starts.len());
        assert!(text.lines().zip(starts).all(|(line, start)| line.starts_with(start)), "{text}");
    }
}
