//! Talking to a running driver from other threads.

mod later;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::egress::{Egress, Gate, Offered};
use super::{Connection, EgressAbility, Engine, ForwardStats, PortEvent, ToHost, ToHostStatus};
use crate::error::PortError;
use crate::spec::{Origin, PortSpec, PortStatus};

pub(super) type Job = Box<dyn FnOnce(&mut Engine) + Send>;

/// A way into a driver that runs on another thread.
#[derive(Clone)]
pub struct Handle {
    jobs: Sender<Job>,
    waker: Arc<EventFd>,
    gate: Arc<Gate>,
}

/// The driver's end.
#[derive(Debug)]
pub(super) struct Inbox {
    jobs: Receiver<Job>,
    waker: Arc<EventFd>,
}

impl Handle {
    /// Adds a forward that somebody asked for; the same twice is the same forward.
    ///
    /// # Errors
    /// It conflicts with another one, or the host does not let us listen there.
    pub fn add(&self, spec: PortSpec) -> Result<PortStatus, PortError> {
        self.call(move |engine| engine.add(spec, Origin::Asked))?
    }

    /// Removes a forward: nobody new gets in, and its ports are free. Connections live until they end.
    ///
    /// # Errors
    /// There is none of this id.
    pub fn remove(&self, id: u64) -> Result<(), PortError> {
        self.wait_for(move |engine, then| engine.remove(id, then))
    }

    /// Removes a forward and resets its connections.
    ///
    /// # Errors
    /// There is none of this id.
    pub fn remove_with_connections(&self, id: u64) -> Result<(), PortError> {
        self.wait_for(move |engine, then| {
            let exists = engine.manager.asked(id).is_some();
            engine.remove(id, then);
            if exists {
                engine.reset_connections(id);
            }
        })
    }

    /// The forwards, by id.
    ///
    /// # Errors
    /// The driver has ended.
    pub fn list(&self) -> Result<Vec<PortStatus>, PortError> {
        self.call(|engine| engine.list())
    }

    /// The forwards that exist now, and from then on what becomes of forwards. The channel ends with the driver.
    ///
    /// # Errors
    /// The driver has ended.
    pub fn watch(&self) -> Result<Receiver<PortEvent>, PortError> {
        self.call(Engine::watch)
    }

    /// What was done so far.
    ///
    /// # Errors
    /// The driver has ended.
    pub fn stats(&self) -> Result<ForwardStats, PortError> {
        self.call(|engine| engine.stats())
    }

    /// The connections of the relay, the oldest slot first. Connections handed to the TAP are the engine's.
    ///
    /// # Errors
    /// The driver has ended.
    pub fn connections(&self) -> Result<Vec<Connection>, PortError> {
        self.call(|engine| engine.connections())
    }

    /// Makes a port of the child's lead to the host.
    ///
    /// # Errors
    /// There is no agent, or the child's kernel does not let it listen there.
    pub fn add_to_host(&self, to_host: ToHost) -> Result<ToHostStatus, PortError> {
        let (asker, answer) = mpsc::sync_channel(1);
        self.call(move |engine| engine.add_to_host(to_host, asker))?;
        answer.recv().map_err(|_| PortError::Stopped)?
    }

    /// Takes such a port away; connections live until they end.
    ///
    /// # Errors
    /// There is none of this id.
    pub fn remove_to_host(&self, id: u64) -> Result<(), PortError> {
        self.call(move |engine| engine.remove_to_host(id))?
    }

    /// Offers a connection that began in the child to the egress relay, without waiting;
    /// [`EgressEvents`](super::EgressEvents) tells what becomes of it.
    ///
    /// # Errors
    /// It comes back at once: relaying is off or not possible.
    pub fn relay(&self, egress: Egress) -> Result<(), Egress> {
        match self.gate.offer(egress) {
            Offered::Queued => Ok(()),
            Offered::First => {
                // Full means that a wake-up is pending already.
                let _ = self.waker.write(1);
                Ok(())
            }
            Offered::Back(egress) => Err(egress),
        }
    }

    /// Resets what was offered under this name, joined or not, without waiting. Nothing is told but the end of what was joined;
    /// unknown names are ignored.
    pub fn withdraw(&self, id: u64) {
        self.post(move |engine| engine.withdraw_egress(id));
    }

    /// Packets of a joined connection do not come to the relay, because the child's connection tracking has forgotten it: its socket
    /// says something within a second, which leads them back. Unknown names are ignored.
    pub fn recall(&self, id: u64) {
        self.post(move |engine| engine.recall_egress(id));
    }

    /// Whether connections that begin in the child can be relayed, IPv4 and IPv6. Asks the agent inside the child if nobody has, and
    /// waits for it; [`ForwardStats::egress`] tells what is known.
    ///
    /// # Errors
    /// The driver has ended.
    pub fn egress_abilities(&self) -> Result<[EgressAbility; 2], PortError> {
        let (asker, answer) = mpsc::sync_channel(1);
        self.call(move |engine| engine.tell_egress_abilities(asker))?;
        answer.recv().map_err(|_| PortError::Stopped)
    }

    /// The child's ports that lead to the host, by id.
    ///
    /// # Errors
    /// The driver has ended.
    pub fn list_to_host(&self) -> Result<Vec<ToHostStatus>, PortError> {
        self.call(|engine| engine.list_to_host())
    }

    pub(super) fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.gate)
    }

    /// Has `job` done, and waits until it, or what it has begun, calls what it is given.
    fn wait_for(
        &self,
        job: impl FnOnce(&mut Engine, Box<dyn FnOnce(Result<(), PortError>) + Send>) + Send + 'static,
    ) -> Result<(), PortError> {
        let (reply, result) = mpsc::sync_channel(1);
        // Whoever asked may have gone.
        self.post(move |engine| job(engine, Box::new(move |answer| drop(reply.send(answer)))));
        result.recv().map_err(|_| PortError::Stopped)?
    }

    pub(super) fn call<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Engine) -> R + Send + 'static,
    ) -> Result<R, PortError> {
        let (reply, result) = mpsc::sync_channel(1);
        let job: Job = Box::new(move |engine| {
            // Whoever asked may have gone.
            let _ = reply.send(job(engine));
        });
        self.jobs.send(job).map_err(|_| PortError::Stopped)?;
        // Full means that a wake-up is pending already.
        let _ = self.waker.write(1);
        result.recv().map_err(|_| PortError::Stopped)
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

impl Inbox {
    pub(super) fn new() -> std::io::Result<(Handle, Self)> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let waker = Arc::new(EventFd::from_value_and_flags(0, flags)?);
        let (sender, jobs) = mpsc::channel();
        let handle = Handle { jobs: sender, waker: Arc::clone(&waker), gate: Arc::default() };
        Ok((handle, Inbox { jobs, waker }))
    }

    /// Forgets the wake-up; the jobs follow by [`Inbox::next`].
    pub(super) fn clear(&self) {
        let _ = self.waker.read();
    }

    pub(super) fn next(&self) -> Option<Job> {
        self.jobs.try_recv().ok()
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waker.as_fd()
    }
}
