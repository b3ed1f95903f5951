//! A process that does one thing, in namespaces of its own or not, tells how it went, and ends.

use std::io::{self, Read as _, Write as _};

use nix::sched::CloneFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::apply::idmap::Mapping;
use crate::error::{Failure, Step};
use crate::plan::facts::HostFacts;
use crate::plan::idmap::{Extent, IdMapPlan, MapPlan};
use crate::sys::clone::{self, ExitSignal, Fork, exit_now};
use crate::sys::wait;

/// Who the process is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ids<'a> {
    /// Root of a new user namespace, and nobody else.
    Root(&'a HostFacts),
    /// As we are.
    Kept,
}

/// What `trial` says in a new process.
///
/// # Errors
/// The namespaces cannot be made, or the process died.
pub(super) fn throw_away<T: Serialize + DeserializeOwned>(
    namespaces: CloneFlags,
    ids: Ids<'_>,
    trial: impl FnOnce() -> T,
) -> Result<T, Failure> {
    let talk = |error| Failure::new(Step::Talk, "", error);
    let (mut wait_mapped, mut tell_mapped) = io::pipe().map_err(talk)?;
    let (mut hear, mut say) = io::pipe().map_err(talk)?;
    let fork = clone::fork(namespaces, ExitSignal::Child);
    let child = match fork.map_err(|error| Failure::new(Step::CloneNamespaces, "", error))? {
        Fork::Parent(child) => child,
        Fork::Child => {
            drop((hear, tell_mapped));
            // Without its ids there is nothing to try; the end of the pipe is the end of this.
            if !matches!(wait_mapped.read(&mut [0]), Ok(1)) {
                exit_now(1);
            }
            let said = serde_json::to_vec(&trial()).map_err(io::Error::other);
            exit_now(said.and_then(|said| say.write_all(&said)).is_err().into())
        }
    };
    drop((wait_mapped, say));
    let mapped = match ids {
        Ids::Root(host) => Mapping::start(&single(host), child).finish().map(drop),
        Ids::Kept => Ok(()),
    };
    let mapped = mapped.and_then(|()| tell_mapped.write_all(&[1]).map_err(talk));
    drop(tell_mapped);
    let mut said = Vec::new();
    let heard = hear.read_to_end(&mut said);
    let ending = wait::wait_end(child).map_err(talk)?;
    mapped?;
    heard.map_err(talk)?;
    serde_json::from_slice(&said)
        .map_err(|_| talk(io::Error::other(format!("the process of the trial {ending}"))))
}

/// One id, because more are not needed: nothing of the caller's lacks, and nothing is said.
fn single(host: &HostFacts) -> IdMapPlan {
    let root = |outside| MapPlan::Direct(vec![Extent { inside: 0, outside, count: 1 }]);
    IdMapPlan { uid: host.uid, gid: host.gid, users: root(host.uid), groups: root(host.gid) }
}
