//! Publishes hostPorts of pods on the host and takes them back when the pods go.
//!
//! It compares what pods want with what it has published, whenever CNI's results change, or what CRI-O writes of a pod. What it has published is kept in a
//! file of the node's /run, so that it takes back after a crash what belongs to pods that have gone meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use forwarder::spec::{PortSpec, PortStatus};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::TaskError;
use crate::api::model::ErrorBody;
use crate::client::http::{self, HttpError, Request};
use crate::components::layout;
use crate::error::with_causes;
use crate::node::host_ports::{Pod, Policy, Unpublished, parse, parse_of_crio, wanted};
use crate::state_dir::{SOCKET, STATE_DIR_VARIABLE};
use crate::sys::memory;

/// What this task has published, as JSON.
const MEMORY: &str = "/run/rootless-launch-host-ports.json";
/// When a port that could not be published, or taken back, is tried again: it may have become free.
const RETRY_MILLISECONDS: u16 = 5_000;

/// Runs until it is killed. `sandboxes` is where CRI-O keeps what it knows of pods, if it is the runtime.
///
/// # Errors
/// CNI's results cannot be watched.
pub(super) fn run(policy: &Policy, sandboxes: Option<&Path>) -> Result<(), TaskError> {
    let state_dir = std::env::var_os(STATE_DIR_VARIABLE).ok_or(TaskError::NoInstance)?;
    let results = Path::new(layout::CNI_RESULTS);
    let watcher = Watcher::new(results, sandboxes)
        .map_err(|source| TaskError::Watch { path: results.into(), source })?;
    let mut ports = Ports::recall(Path::new(&state_dir).join(SOCKET));
    loop {
        let complete = ports.follow(policy, &watcher.pods()?)?;
        let timeout = if complete { PollTimeout::NONE } else { PollTimeout::from(RETRY_MILLISECONDS) };
        memory::release_code();
        watcher.wait(timeout).map_err(|source| TaskError::Watch { path: results.into(), source })?;
    }
}

/// What pods there are, and word of changes.
struct Watcher<'a> {
    inotify: Inotify,
    results: &'a Path,
    sandboxes: Option<&'a Path>,
}

impl<'a> Watcher<'a> {
    fn new(results: &'a Path, sandboxes: Option<&'a Path>) -> io::Result<Self> {
        fs::create_dir_all(results)?;
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let gone = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM;
        inotify.add_watch(results, WRITTEN | gone | AddWatchFlags::IN_ONLYDIR)?;
        Ok(Watcher { inotify, results, sandboxes })
    }

    /// Until something happens; what, the directories themselves will tell.
    fn wait(&self, timeout: PollTimeout) -> io::Result<()> {
        match poll(&mut [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        loop {
            match self.inotify.read_events() {
                Ok(_) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Every pod with a result that wants ports.
    fn pods(&self) -> Result<Vec<Pod>, TaskError> {
        let unreadable = |source| TaskError::Read { path: self.results.into(), source };
        let mut pods = Vec::new();
        for entry in fs::read_dir(self.results).map_err(unreadable)? {
            // One that goes in this moment is announced.
            let Ok(text) = fs::read_to_string(entry.map_err(unreadable)?.path()) else { continue };
            pods.extend(match self.sandboxes {
                None => parse(&text),
                Some(sandboxes) => parse_of_crio(&text, |id| self.configuration(sandboxes, id)),
            });
        }
        Ok(pods)
    }

    /// The configuration of a container of CRI-O's, whose coming is watched for.
    fn configuration(&self, sandboxes: &Path, id: &str) -> Option<String> {
        // CRI-O makes it before the network. The kernel has one watch for a directory, and forgets it with that.
        let directory = sandboxes.join(id).join("userdata");
        let _ = self.inotify.add_watch(&directory, WRITTEN | AddWatchFlags::IN_ONLYDIR);
        fs::read_to_string(directory.join("config.json")).ok()
    }
}

/// A file is there, whole.
const WRITTEN: AddWatchFlags = AddWatchFlags::IN_CLOSE_WRITE.union(AddWatchFlags::IN_MOVED_TO);

/// What is published, and what could not be.
struct Ports {
    socket: PathBuf,
    memory: PathBuf,
    published: BTreeMap<PortSpec, u64>,
    /// Told once.
    refused: BTreeMap<PortSpec, String>,
    unpublished: BTreeSet<Unpublished>,
}

impl Ports {
    /// With what a predecessor has published, as far as it still is.
    fn recall(socket: PathBuf) -> Self {
        let memory = PathBuf::from(MEMORY);
        let known = fs::read(&memory).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let known: Vec<PortStatus> = known.unwrap_or_default();
        let mut ports = Ports {
            socket,
            memory,
            published: known.into_iter().map(|port| (port.spec, port.id)).collect(),
            refused: BTreeMap::new(),
            unpublished: BTreeSet::new(),
        };
        if let Ok(all) = ports.all() {
            ports
                .published
                .retain(|spec, &mut id| all.iter().any(|port| port.id == id && port.spec == *spec));
        }
        ports
    }

    /// Makes what is published what the pods want. False if something is to be tried again.
    fn follow(&mut self, policy: &Policy, pods: &[Pod]) -> Result<bool, TaskError> {
        let (specs, unpublished) = wanted(policy, pods);
        for reason in unpublished.difference(&self.unpublished) {
            log::warn!("{reason}");
        }
        self.unpublished = unpublished;
        self.refused.retain(|spec, _| specs.contains(spec));

        let stale: Vec<_> = self.published.keys().filter(|spec| !specs.contains(spec)).cloned().collect();
        let missing: Vec<_> = specs.into_iter().filter(|spec| !self.published.contains_key(spec)).collect();
        let changes = !stale.is_empty() || !missing.is_empty();
        let mut complete = true;
        // First what goes, because it may be in the way of what comes.
        for spec in stale {
            complete &= self.withdraw(&spec);
        }
        for spec in missing {
            complete &= self.publish(spec);
        }
        if changes {
            self.remember()?;
        }
        Ok(complete)
    }

    fn publish(&mut self, spec: PortSpec) -> bool {
        match self.ask("POST", "/v1/ports", &serde_json::to_vec(&spec).unwrap_or_default()) {
            Ok(answer) => match serde_json::from_slice::<PortStatus>(&answer) {
                Ok(status) => {
                    log::info!("published {spec}");
                    self.refused.remove(&spec);
                    self.published.insert(spec, status.id);
                    true
                }
                Err(error) => self.refuse(spec, error.to_string()),
            },
            Err(reason) => self.refuse(spec, reason),
        }
    }

    fn refuse(&mut self, spec: PortSpec, reason: String) -> bool {
        if self.refused.get(&spec) != Some(&reason) {
            log::warn!("hostPort {spec} is not published, and will be tried again: {reason}");
            self.refused.insert(spec, reason);
        }
        false
    }

    /// A port that somebody else has taken back is as good as taken back by us.
    fn withdraw(&mut self, spec: &PortSpec) -> bool {
        let Some(&id) = self.published.get(spec) else { return true };
        let taken_back = self.ask("DELETE", &format!("/v1/ports/{id}"), &[]).map(drop);
        let is_there = |all: Vec<PortStatus>| all.iter().any(|port| port.id == id);
        match taken_back.or_else(|reason| if self.all().is_ok_and(is_there) { Err(reason) } else { Ok(()) }) {
            Ok(()) => {
                log::info!("no longer published: {spec}");
                self.published.remove(spec);
                true
            }
            Err(reason) => {
                log::warn!("hostPort {spec} stays published, and will be tried again: {reason}");
                false
            }
        }
    }

    /// Everything that is published, by whomever.
    fn all(&self) -> Result<Vec<PortStatus>, String> {
        let answer = self.ask("GET", "/v1/ports", &[])?;
        serde_json::from_slice(&answer).map_err(|error| error.to_string())
    }

    fn ask(&self, method: &str, target: &str, body: &[u8]) -> Result<Vec<u8>, String> {
        let request = Request { body, ..Request::new(method, target) };
        let told = |error: HttpError| with_causes(&error);
        let response = http::send(&self.socket, &request).map_err(told)?;
        let status = response.status;
        let answer = response.read().map_err(told)?;
        if (200..300).contains(&status) {
            return Ok(answer);
        }
        let body = serde_json::from_slice::<ErrorBody>(&answer);
        Err(body.map_or_else(|_| format!("HTTP status {status}"), |body| body.message))
    }

    /// Writes it beside and renames: a crash leaves the old file or the new one.
    fn remember(&self) -> Result<(), TaskError> {
        let published: Vec<_> = self
            .published
            .iter()
            .map(|(spec, &id)| PortStatus { id, spec: spec.clone(), origin: Default::default() })
            .collect();
        let unfinished = self.memory.with_extension("new");
        let written = fs::write(&unfinished, serde_json::to_vec(&published).unwrap_or_default())
            .and_then(|()| fs::rename(&unfinished, &self.memory));
        written.map_err(|source| TaskError::Write { path: self.memory.clone(), source })
    }
}
