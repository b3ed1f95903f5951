//! The forwarder on a thread of its own.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use forwarder::driver::{ChildLine, Config, DriverError, EgressEvents, ForwardDriver, Handle, TapPath};
use forwarder::store::{Inheritance, StoreLine};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::sandbox::{Confinement, SandboxError, ThreadRole};

/// A forwarder that has no thread yet.
#[derive(Debug)]
pub struct PreparedForwards {
    driver: ForwardDriver,
    stop: Arc<EventFd>,
}

/// A running one. Dropping it closes its ports and waits for the end of its thread.
#[derive(Debug)]
pub struct Forwards {
    handle: Handle,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl PreparedForwards {
    /// As [`ForwardDriver::new`].
    ///
    /// # Errors
    /// epoll_create1(2), eventfd(2).
    pub fn new(
        config: Config,
        child: Option<ChildLine>,
        tap: Option<Box<dyn TapPath>>,
    ) -> Result<Self, DriverError> {
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC);
        let stop = stop.map_err(|error| DriverError::CreateWaker(io::Error::from(error)))?;
        Ok(PreparedForwards { driver: ForwardDriver::new(config, child, tap)?, stop: Arc::new(stop) })
    }

    /// A way in.
    pub fn handle(&self) -> Handle {
        self.driver.handle()
    }

    /// As [`ForwardDriver::set_egress_events`].
    pub fn set_egress_events(&mut self, events: Box<dyn EgressEvents>) {
        self.driver.set_egress_events(events);
    }

    /// As [`ForwardDriver::set_store`].
    pub fn set_store(&mut self, line: StoreLine, inheritance: Inheritance) {
        self.driver.set_store(line, inheritance);
    }

    /// Readable when the forwarder is to end, for others who end with it. It is never read.
    pub fn stop(&self) -> Arc<EventFd> {
        Arc::clone(&self.stop)
    }

    /// Starts the thread. `complain` hears why it ended, if it ended by itself.
    ///
    /// # Errors
    /// clone(2), seccomp(2).
    pub fn start(
        self,
        confinement: &Confinement,
        complain: impl FnOnce(&DriverError) + Send + 'static,
    ) -> Result<Forwards, SandboxError> {
        let PreparedForwards { driver, stop } = self;
        let (handle, until) = (driver.handle(), Arc::clone(&stop));
        let thread = confinement.spawn("forwards", ThreadRole::Forwards, move || {
            if let Err(error) = driver.run_until(&*until) {
                complain(&error);
            }
        })?;
        Ok(Forwards { handle, stop, thread: Some(thread) })
    }
}

impl Forwards {
    /// A way in.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Has it end, and does not wait for that: what the child has left on the relay is delivered.
    pub fn close(&self) {
        // Fails only if the counter is full, and then it is readable.
        let _ = self.stop.write(1);
    }
}

impl Drop for Forwards {
    fn drop(&mut self) {
        self.close();
        // A thread that panicked has ended the process.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
