//! What the engine process does besides driving the TAP: published ports, on a thread of their own.
//!
//! # Theory of operation
//! Everything that needs the host's files or rights is made by [`Services::prepare`], before the process goes into its
//! sandbox; [`Prepared::start`] starts the threads, each with the filter of its role. Forwards are opened while the
//! driver runs already, because some of them are the driver's to open.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use forwarder::driver::{ChildAddress, ChildLine, ChildNetwork, ForwardDriver, Handle};
use log::warn;
use netstack::config::{Config, Ipv4Mode, Ipv6Mode};
use netstack::driver::DriverHandle;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::carrier::TapCarrier;
use crate::error::{Failure, Step, with_causes};
use crate::handshake::channel::Channel;
use crate::handshake::message::Message;
use crate::plan::forwards::ForwardPlan;
use crate::sandbox::{Confinement, SandboxError, ThreadRole};

/// Threads of the engine process. Dropping it closes the published ports.
#[derive(Debug)]
pub struct Services {
    forwards: Handle,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

/// The same before the threads are there.
#[derive(Debug)]
pub struct Prepared {
    forwards: ForwardDriver,
    stop: EventFd,
}

impl Services {
    /// Makes everything for the child that `config` describes, which the engine behind `driver` serves. `line` leads
    /// to the agent in the child's namespaces; without one, everything goes through the TAP.
    ///
    /// # Errors
    /// epoll_create1(2), eventfd(2).
    pub fn prepare(config: &Config, driver: DriverHandle, line: Option<OwnedFd>) -> io::Result<Prepared> {
        let settings = forwarder::driver::Config { child: child_network(config), ..Default::default() };
        let tap = Box::new(TapCarrier::new(driver));
        let forwards =
            ForwardDriver::new(settings, line.map(ChildLine::from), Some(tap)).map_err(io::Error::other)?;
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
        Ok(Prepared { forwards, stop })
    }

    /// A way to the published ports.
    pub fn forwards(&self) -> Handle {
        self.forwards.clone()
    }

    /// Publishes what is planned, on a thread that ends when it is done, and says so on `channel`: ready, or what
    /// failed.
    ///
    /// # Errors
    /// clone(2), seccomp(2).
    pub fn publish(
        &self,
        plan: &ForwardPlan,
        confinement: &Confinement,
        channel: Channel,
    ) -> Result<(), SandboxError> {
        let (forwards, ports) = (self.forwards.clone(), plan.ports.clone());
        let work = move || {
            let failure = ports.into_iter().find_map(|spec| {
                let text = spec.to_string();
                forwards
                    .add(spec)
                    .err()
                    .map(|error| Failure::new(Step::Publish, text, io::Error::other(error)))
            });
            // A launcher that is gone is noticed by the engine.
            let _ = channel.send(&failure.map_or(Message::EngineReady, Message::Failed), None);
        };
        confinement.spawn("publish", ThreadRole::Forwards, work).map(drop)
    }
}

impl Prepared {
    /// Starts the threads.
    ///
    /// # Errors
    /// clone(2), seccomp(2).
    pub fn start(self, confinement: &Confinement) -> Result<Services, SandboxError> {
        let Prepared { forwards, stop } = self;
        let (handle, stop) = (forwards.handle(), Arc::new(stop));
        let until = Arc::clone(&stop);
        let thread = confinement.spawn("forwards", ThreadRole::Forwards, move || {
            if let Err(error) = forwards.run_until(&*until) {
                warn!("no more published ports: {}", with_causes(&error));
            }
        })?;
        Ok(Services { forwards: handle, stop, thread: Some(thread) })
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        // Fails only if the counter is full, and then it is readable.
        let _ = self.stop.write(1);
        // A panic was told already.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The child as the forwarder has to know it.
fn child_network(config: &Config) -> ChildNetwork {
    let (ipv4, ipv6) = (config.ipv4(), config.ipv6());
    ChildNetwork {
        ipv4: (config.ipv4_mode() == Ipv4Mode::On).then(|| ChildAddress {
            address: ipv4.child,
            prefix: ipv4.subnet.prefix(),
            gateway: ipv4.gateway,
        }),
        ipv6: (config.ipv6_mode() != Ipv6Mode::Off).then(|| ChildAddress {
            address: ipv6.child,
            prefix: ipv6.subnet.prefix(),
            gateway: ipv6.gateway,
        }),
    }
}
