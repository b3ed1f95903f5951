//! Asking a driver without waiting. What is to follow is called on the driver's thread, or dropped if the driver has
//! ended.

use super::{Handle, Job};
use crate::driver::{Connection, Engine, ForwardStats};
use crate::error::PortError;
use crate::spec::{Origin, PortSpec, PortStatus};

impl Handle {
    /// As [`Handle::add`], without waiting.
    pub fn add_then(
        &self,
        spec: PortSpec,
        then: impl FnOnce(Result<PortStatus, PortError>) + Send + 'static,
    ) {
        self.post(move |engine| then(engine.add(spec, Origin::Asked)));
    }

    /// As [`Handle::remove`], without waiting.
    pub fn remove_then(&self, id: u64, then: impl FnOnce(Result<(), PortError>) + Send + 'static) {
        self.post(move |engine| engine.remove(id, then));
    }

    /// As [`Handle::list`], without waiting.
    pub fn list_then(&self, then: impl FnOnce(Vec<PortStatus>) + Send + 'static) {
        self.post(move |engine| then(engine.list()));
    }

    /// As [`Handle::stats`], without waiting; with the number of forwards.
    pub fn stats_then(&self, then: impl FnOnce(ForwardStats, usize) + Send + 'static) {
        self.post(move |engine| then(engine.stats(), engine.list().len()));
    }

    /// As [`Handle::connections`], without waiting.
    pub fn connections_then(&self, then: impl FnOnce(Vec<Connection>) + Send + 'static) {
        self.post(move |engine| then(engine.connections()));
    }

    pub(super) fn post(&self, job: impl FnOnce(&mut Engine) + Send + 'static) {
        let job: Job = Box::new(job);
        if self.jobs.send(job).is_ok() {
            // Full means that a wake-up is pending already.
            let _ = self.waker.write(1);
        }
    }
}
