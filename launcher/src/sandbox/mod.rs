//! What the engine process gives up once it is set up.
//!
//! # Theory of operation
//! Goal: who takes over the engine by a packet has sockets, the descriptors that are open, and nothing else. Four
//! layers, each of which holds without the others: an empty [root], no [rights](caps), [`landlock`] and
//! [`seccomp`]. The engine calls [`Sandbox::enter`] once, when everything is open that it will ever open outside
//! of /etc and /run, and before its second thread; from then on every thread has the filter of the process.
//! Threads narrow it to their role by [`Confinement::confine`].
//!
//! Not handled: what the descriptors that are open already can do; memory that the threads of the process share, so
//! that a role is a hurdle and the process is the border; the number of sockets and bytes.
//!
//! | layer | needs | without it |
//! |---|---|---|
//! | empty root | user namespaces or `CAP_SYS_ADMIN`, Linux 5.12 | Landlock alone keeps the files away |
//! | no rights | nothing | – |
//! | Landlock | Linux 5.13; 6.12 for signals and abstract sockets | root and seccomp remain |
//! | seccomp | CONFIG_SECCOMP_FILTER | root and Landlock remain |

pub mod caps;
pub mod landlock;
pub mod root;
pub mod seccomp;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use log::info;
use thiserror::Error;

use self::root::RootPlan;
pub use self::seccomp::ThreadRole;

/// How much of the sandbox there has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As much as the kernel gives; the rest is logged.
    Auto,
    /// All of it, or it is an error.
    On,
    /// None of it.
    Off,
}

/// Whether processes of the same user may look into /proc/PID of this one, and trace it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inspection {
    /// They may, as into every other process of theirs.
    Allowed,
    /// Only root may.
    Refused,
}

/// What becomes of `CAP_NET_BIND_SERVICE`, the one capability that may remain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindService {
    /// It remains if the process has it where it was started, for published ports below 1024.
    IfHeld,
    /// It remains also in a user namespace of our own, where it is good for nothing: callers look for it.
    Always,
}

/// A layer that could not be put on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// No empty root.
    #[error("no empty root")]
    Root(#[from] root::RootError),
    /// Rights remain.
    #[error("not all rights are gone")]
    Rights(#[from] caps::RightsError),
    /// No Landlock.
    #[error("no Landlock")]
    Landlock(#[from] landlock::LandlockError),
    /// No seccomp.
    #[error("no system call filter")]
    Seccomp(#[from] seccomp::FilterError),
    /// No thread for the work inside: clone(2).
    #[error("no thread")]
    Thread(#[source] io::Error),
}

/// The sandbox as it is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// Whether missing layers are errors.
    pub mode: Mode,
    /// Empty root, no rights, Landlock; the files that are still needed are in the plan.
    pub files: Option<RootPlan>,
    /// The filter of system calls.
    pub seccomp: bool,
    /// Whether others may look.
    pub inspection: Inspection,
    /// The capability that may remain.
    pub bind_service: BindService,
}

impl Sandbox {
    /// Every layer, for an engine that reads the host's resolv.conf.
    pub fn new(mode: Mode) -> Self {
        let files = (mode != Mode::Off).then(|| RootPlan::collect(Path::new(RESOLV_CONF)));
        Sandbox {
            mode,
            files,
            seccomp: mode != Mode::Off,
            inspection: Inspection::Refused,
            bind_service: BindService::IfHeld,
        }
    }

    /// Puts the process into the sandbox, for good. It has one thread; what it will need of the host's files
    /// outside /etc and /run is open, what it is to bind or map is bound or mapped.
    ///
    /// # Errors
    /// A layer is missing, in [`Mode::On`]. The process should end then: others may be on already.
    pub fn enter(&self) -> Result<Confinement, SandboxError> {
        let mut confinement = Confinement { landlock: None, seccomp: false, missing: Vec::new() };
        if let Some(plan) = &self.files {
            let held = caps::kept();
            self.or_missing(&mut confinement, root::enter(plan))?;
            let kept = match self.bind_service {
                BindService::IfHeld => held,
                BindService::Always => caps::kept(),
            };
            let readable: &[PathBuf] = &plan.binds;
            confinement.landlock = self.or_missing(&mut confinement, landlock::restrict(readable))?;
            self.or_missing(&mut confinement, caps::drop_all(&kept, self.inspection))?;
        }
        if self.seccomp {
            confinement.seccomp = self.or_missing(&mut confinement, seccomp::confine_process())?.is_some();
        }
        Ok(confinement)
    }

    fn or_missing<T, E: Into<SandboxError>>(
        &self,
        confinement: &mut Confinement,
        result: Result<T, E>,
    ) -> Result<Option<T>, SandboxError> {
        match result.map_err(Into::into) {
            Ok(value) => Ok(Some(value)),
            Err(error) if self.mode == Mode::On => Err(error),
            Err(error) => {
                info!("sandbox: {}", text(&error));
                confinement.missing.push(error);
                Ok(None)
            }
        }
    }
}

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The sandbox as it is.
#[derive(Debug)]
pub struct Confinement {
    /// Version of Landlock's interface in use.
    pub landlock: Option<u32>,
    /// Whether system calls are filtered.
    pub seccomp: bool,
    /// Layers that the kernel did not give.
    pub missing: Vec<SandboxError>,
}

impl Confinement {
    /// Narrows the filter of the calling thread, and of those that it starts, to what its role needs. Does nothing
    /// where system calls are not filtered.
    ///
    /// # Errors
    /// seccomp(2).
    pub fn confine(&self, role: ThreadRole) -> Result<(), SandboxError> {
        if self.seccomp { Ok(seccomp::confine(role)?) } else { Ok(()) }
    }

    /// Starts a thread that does `work` with the filter of its role, which is on when this returns.
    ///
    /// # Errors
    /// clone(2), seccomp(2).
    pub fn spawn(
        &self,
        name: &str,
        role: ThreadRole,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<JoinHandle<()>, SandboxError> {
        let (told, confined) = mpsc::sync_channel(1);
        let filtered = self.seccomp;
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let result = if filtered { seccomp::confine(role) } else { Ok(()) };
            let go_on = result.is_ok();
            // Whoever asked waits for it.
            let _ = told.send(result);
            if go_on {
                work();
            }
        });
        let thread = thread.map_err(SandboxError::Thread)?;
        match confined.recv() {
            Ok(result) => Ok(result.map(|()| thread)?),
            Err(error) => Err(SandboxError::Thread(io::Error::other(error))),
        }
    }
}

/// An error and what led to it, parted by colons.
pub fn text(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
