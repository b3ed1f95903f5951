//! Talking to a running driver from other threads.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use mio::Waker;
use thiserror::Error;

use super::Driver;
use crate::flow::FlowId;

/// The driver has ended.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the engine has ended")]
pub struct Ended;

pub(super) type Job = Box<dyn FnOnce(&mut Driver) + Send>;

/// A way into a driver that runs on another thread.
#[derive(Clone)]
pub struct DriverHandle {
    jobs: Sender<Job>,
    waker: Arc<Waker>,
    /// All workers, this one first; none where there is only one.
    workers: Arc<[DriverHandle]>,
}

impl DriverHandle {
    pub(super) fn new(waker: Waker) -> (Self, Receiver<Job>) {
        let (jobs, receiver) = mpsc::channel();
        (DriverHandle { jobs, waker: Arc::new(waker), workers: [].into() }, receiver)
    }

    /// The same as the first of these.
    pub(super) fn among(self, workers: Arc<[DriverHandle]>) -> Self {
        DriverHandle { workers, ..self }
    }

    /// Has the driver look around.
    pub(super) fn wake(&self) {
        // Fails only without memory for an event counter that is there already.
        let _ = self.waker.wake();
    }

    /// Runs `job` on the driver's thread, between two turns of its loop, and waits for the result.
    ///
    /// # Errors
    /// The driver has ended, before or while the job waited.
    pub fn call<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Driver) -> R + Send + 'static,
    ) -> Result<R, Ended> {
        let (reply, result) = mpsc::sync_channel(1);
        self.post(move |driver| {
            // Whoever asked may have gone.
            let _ = reply.send(job(driver));
        })?;
        result.recv().map_err(|_| Ended)
    }

    /// As [`DriverHandle::post`], on the thread of the worker that has `flow`, where there are several.
    ///
    /// # Errors
    /// It has ended.
    pub fn post_for(
        &self,
        flow: FlowId,
        job: impl FnOnce(&mut Driver) + Send + 'static,
    ) -> Result<(), Ended> {
        self.workers.get(flow.worker().index()).unwrap_or(self).post(job)
    }

    /// Runs `job` on the driver's thread, and does not wait.
    ///
    /// # Errors
    /// The driver has ended.
    pub fn post(&self, job: impl FnOnce(&mut Driver) + Send + 'static) -> Result<(), Ended> {
        self.jobs.send(Box::new(job)).map_err(|_| Ended)?;
        // Fails only without memory for an event counter that is there already.
        self.waker.wake().map_err(|_| Ended)
    }
}

impl std::fmt::Debug for DriverHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DriverHandle").finish_non_exhaustive()
    }
}
