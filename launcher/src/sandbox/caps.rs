//! Capabilities and the other rights of a process that a namespace does not take away.

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use thiserror::Error;

use super::Inspection;

/// Why rights could not be given up; one variant per system call.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RightsError {
    /// capget(2), capset(2), prctl(2).
    #[error("capabilities cannot be dropped")]
    Capabilities(#[source] CapsError),
    /// PR_SET_NO_NEW_PRIVS.
    #[error("PR_SET_NO_NEW_PRIVS failed")]
    NoNewPrivileges(#[source] nix::Error),
    /// PR_SET_DUMPABLE.
    #[error("PR_SET_DUMPABLE failed")]
    Dumpable(#[source] nix::Error),
    /// RLIMIT_CORE.
    #[error("core dumps cannot be switched off")]
    CoreLimit(#[source] nix::Error),
}

/// The capabilities that this process keeps: `CAP_NET_BIND_SERVICE` if it has it now, for published ports below
/// 1024. To be asked before a user namespace of its own gives it all.
pub(super) fn kept() -> CapsHashSet {
    let bind = Capability::CAP_NET_BIND_SERVICE;
    match caps::has_cap(None, CapSet::Effective, bind) {
        Ok(true) => CapsHashSet::from([bind]),
        _ => CapsHashSet::new(),
    }
}

/// Gives up every capability but `kept`, for good, and the possibility to get others by execve(2); nobody of the
/// same user may trace the process (unless `inspection` says so), and it leaves no core file.
pub(super) fn drop_all(kept: &CapsHashSet, inspection: Inspection) -> Result<(), RightsError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(RightsError::CoreLimit)?;
    drop_capabilities(kept).map_err(RightsError::Capabilities)?;
    prctl::set_no_new_privs().map_err(RightsError::NoNewPrivileges)?;
    match inspection {
        Inspection::Allowed => Ok(()),
        Inspection::Refused => prctl::set_dumpable(false).map_err(RightsError::Dumpable),
    }
}

fn drop_capabilities(kept: &CapsHashSet) -> Result<(), CapsError> {
    // Only who has CAP_SETPCAP may; without any capability the bounding set bounds nothing, for no_new_privs
    // forbids to gain one.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        for capability in caps::read(None, CapSet::Bounding)?.difference(kept) {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
    }
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, kept)?;
    caps::set(None, CapSet::Permitted, kept)
}
