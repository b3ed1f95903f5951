//! What the engine process gives up once it is set up.
//!
//! # Theory of operation
//! Goal: who takes over the engine by a packet has sockets, the descriptors that are open, and nothing else. Four
//! layers, each of which holds without the others: an empty [root], no [rights](caps), [`landlock`] and
//! [`seccomp`]. The engine calls [`Sandbox::enter`] (or its two halves) once, when everything is open that it will
//! ever open outside of /etc and /run, and before its second thread; from then on every thread has the filter of
//! the process. Threads narrow it to their role by [`Confinement::confine`].
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

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use ::caps::CapsHashSet;
use log::info;
use serde::Serialize;
use thiserror::Error;

use self::root::RootPlan;
pub use self::seccomp::ThreadRole;
use crate::error::with_causes;

/// How much of the sandbox there has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// As much as the kernel gives; the rest is logged.
    Auto,
    /// All of it, or it is an error.
    On,
    /// None of it.
    Off,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Auto => "auto",
            Mode::On => "on",
            Mode::Off => "off",
        })
    }
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

    /// Puts the process into the sandbox, for good: [`hide`](Self::hide) and [`seal`](Hidden::seal).
    ///
    /// # Errors
    /// As those two.
    pub fn enter(self) -> Result<Confinement, SandboxError> {
        self.hide()?.seal()
    }

    /// The first half: changes to the empty root, in namespaces of its own. The process has one thread. What it
    /// will need of the host's files outside /etc and /run is open.
    ///
    /// It takes a millisecond, more where many processors are busy: best done while there is something to wait for.
    ///
    /// # Errors
    /// A layer is missing, in [`Mode::On`]. The process should end then.
    pub fn hide(self) -> Result<Hidden, SandboxError> {
        let kept = caps::kept();
        let mut hidden = Hidden {
            confinement: Confinement { landlock: None, seccomp: false, missing: Vec::new() },
            kept,
            sandbox: self,
        };
        if let Some(plan) = &hidden.sandbox.files {
            let entered = root::enter(plan);
            hidden.or_missing(entered)?;
        }
        Ok(hidden)
    }
}

/// A process in the empty root that has all its rights still.
#[derive(Debug)]
#[must_use = "the rights are not given up yet"]
pub struct Hidden {
    sandbox: Sandbox,
    kept: CapsHashSet,
    confinement: Confinement,
}

impl Hidden {
    /// The second half: gives up the rights. The process has one thread. What it is to open, bind or set up
    /// and what is not a socket of IP is open, bound and set up.
    ///
    /// # Errors
    /// A layer is missing, in [`Mode::On`]. The process should end then: others may be on already.
    pub fn seal(mut self) -> Result<Confinement, SandboxError> {
        if let Some(plan) = &self.sandbox.files {
            let restricted = landlock::restrict(&plan.binds);
            self.confinement.landlock = self.or_missing(restricted)?;
            let kept = match self.sandbox.bind_service {
                BindService::IfHeld => self.kept.clone(),
                BindService::Always => caps::kept(),
            };
            let dropped = caps::drop_all(&kept, self.sandbox.inspection);
            self.or_missing(dropped)?;
        }
        if self.sandbox.seccomp {
            self.confinement.seccomp = self.or_missing(seccomp::confine_process())?.is_some();
        }
        Ok(self.confinement)
    }

    fn or_missing<T, E: Into<SandboxError>>(
        &mut self,
        result: Result<T, E>,
    ) -> Result<Option<T>, SandboxError> {
        match result.map_err(Into::into) {
            Ok(value) => Ok(Some(value)),
            Err(error) if self.sandbox.mode == Mode::On => Err(error),
            Err(error) => {
                info!("sandbox: {}", with_causes(&error));
                self.confinement.missing.push(error);
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

    /// Starts a thread that does `work` with the filter of its role, which is on when this returns. Should it panic, the
    /// process ends: half of an engine is worse than none, for nobody would know.
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
                let _fuse = Fuse;
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

/// Aborts the process when a panic comes by.
struct Fuse;

impl Drop for Fuse {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

/// What is given up and what is not, in words.
impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_missing = |kind: fn(&SandboxError) -> bool| self.missing.iter().any(kind);
        let mut layers = Vec::new();
        if !is_missing(|error| matches!(error, SandboxError::Root(_))) {
            layers.push("an empty root".to_owned());
        }
        if !is_missing(|error| matches!(error, SandboxError::Rights(_))) {
            layers.push("no rights".to_owned());
        }
        layers.extend(self.landlock.map(|version| format!("Landlock {version}")));
        if self.seccomp {
            layers.push("a filter of system calls".to_owned());
        }
        layers.extend(self.missing.iter().map(|error| with_causes(error)));
        f.write_str(&layers.join(", "))
    }
}
