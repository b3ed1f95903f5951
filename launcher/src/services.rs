//! What the engine process does besides driving the TAP: published ports and the control API, each on a thread of its
//! own.
//!
//! # Theory of operation
//! Everything that needs the host's files or rights is made by [`Services::prepare`], before the process goes into its
//! sandbox; [`Prepared::start`] starts the threads, each with the filter of its role. Forwards are opened while the
//! driver runs already, because some of them are the driver's to open.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use forwarder::driver::{Auto, ChildAddress, ChildLine, ChildNetwork};
use forwarder::error::PortError;
use forwarder::spec::PortSpec;
use forwarder::store::{Inheritance, StoreLine};
use log::warn;
use netstack::Driver;
use netstack::config::{Config, Ipv4Mode, Ipv6Mode};
use netstack::driver::Worker;
use nix::unistd::Pid;

use crate::api::control::{Engine, Facts, HostDns};
use crate::api::model::{NetworkDriver, PortDriver};
use crate::api::server::{self, Server};
use crate::carrier::TapCarrier;
use crate::egress::{self, EgressMode};
use crate::engine::EngineFiles;
use crate::error::{Failure, Step, with_causes};
use crate::forwards::{Forwards, PreparedForwards};
use crate::handshake::channel::Channel;
use crate::handshake::message::Message;
use crate::holder::TakenPort;
use crate::plan::forwards::ForwardPlan;
use crate::sandbox::{Confinement, SandboxError, ThreadRole};
use crate::settings::Page;

/// What the services work with.
#[derive(Debug)]
pub struct ServiceTask<'a> {
    /// The child's network.
    pub config: &'a Config,
    /// How outbound TCP connections are carried.
    pub egress: EgressMode,
    /// The engine that serves it.
    pub driver: &'a mut Driver,
    /// Its workers, which do not run yet.
    pub workers: &'a mut [Worker],
    /// Leads to the agent in the child's namespaces.
    pub line: OwnedFd,
    /// What is published from the start.
    pub forwards: &'a ForwardPlan,
    /// Leads to what outlives this engine.
    pub store: StoreLine,
    /// What another engine has left.
    pub inheritance: Inheritance,
    /// The sockets of the API.
    pub files: &'a EngineFiles,
    /// Where settings are left for the next engine.
    pub settings: &'a Page,
    /// The state directory, for those who ask.
    pub state_dir: Option<&'a Path>,
    /// The process that becomes CMD.
    pub child: Pid,
    /// How many engines were there before this one.
    pub restarts: u32,
}

/// Threads of the engine process. Dropping it closes the API, then the published ports.
#[derive(Debug)]
pub struct Services {
    control: Arc<Engine>,
    /// Goes first.
    server: Option<Server>,
    forwards: Forwards,
}

/// The same before the threads are there.
#[derive(Debug)]
pub struct Prepared {
    control: Arc<Engine>,
    api: Option<server::Prepared>,
    forwards: PreparedForwards,
}

impl Services {
    /// Makes everything that needs more than the sandbox gives.
    ///
    /// # Errors
    /// epoll_create1(2), eventfd(2), fcntl(2).
    pub fn prepare(task: ServiceTask<'_>) -> io::Result<Prepared> {
        let facts = facts(&task);
        let auto = task.forwards.auto.clone().map(|rules| Auto { rules, pace: Default::default() });
        let settings = forwarder::driver::Config {
            child: child_network(task.config),
            auto,
            egress: task.egress.of_forwarder(),
            ..Default::default()
        };
        let driver = task.driver.handle().map_err(io::Error::other)?;
        let tap = Box::new(TapCarrier::new(driver.clone()));
        let forwards = PreparedForwards::new(settings, Some(ChildLine::from(task.line)), Some(tap));
        let mut forwards = forwards.map_err(io::Error::other)?;
        forwards.set_store(task.store, task.inheritance);
        if task.egress != EgressMode::Tap {
            egress::join(task.driver, task.workers, &mut forwards, task.egress)?;
        }
        let control = Engine::new(facts, Some(driver), Some(forwards.handle()));
        let control = Arc::new(control.with_page(task.settings.try_clone()?));
        let metrics = task.files.metrics.as_ref().map(TcpListener::try_clone).transpose()?;
        let api = match &task.files.api {
            Some(listener) => Some(server::prepare(listener.try_clone()?, control.clone(), metrics)?),
            None => None,
        };
        Ok(Prepared { control, api, forwards })
    }

    /// Publishes these ports beside what is inherited, and makes sure of the relay if there has to be one; on a thread that ends when it is done,
    /// and says so on `channel`: ready, or what failed.
    ///
    /// # Errors
    /// clone(2), seccomp(2).
    pub fn publish(
        &self,
        ports: &[PortSpec],
        egress: EgressMode,
        confinement: &Confinement,
        channel: Channel,
    ) -> Result<(), SandboxError> {
        let (forwards, ports) = (self.forwards.handle().clone(), ports.to_vec());
        let work = move || {
            // It answers when it has taken over what is inherited.
            let _ = forwards.list();
            let relay = if egress == EgressMode::Relay { egress::insist(&forwards).err() } else { None };
            let failure = relay.map(Message::Failed).or_else(|| {
                ports.into_iter().find_map(|spec| {
                    let text = spec.to_string();
                    forwards.add(spec).err().map(|error| not_published(text, error))
                })
            });
            // A launcher that is gone is noticed by the engine.
            let _ = channel.send(&failure.unwrap_or(Message::EngineReady), None);
        };
        confinement.spawn("publish", ThreadRole::Forwards, work).map(drop)
    }

    /// CMD is about to run.
    pub fn set_ready(&self) {
        self.control.set_ready();
    }

    /// Closes the API and the published ports. What the child has left on the relay is delivered until this is dropped, and
    /// then as long as that takes.
    pub fn close(&mut self) {
        self.server = None;
        self.forwards.close();
    }
}

impl Prepared {
    /// Starts the threads.
    ///
    /// # Errors
    /// clone(2), seccomp(2), epoll_create1(2).
    pub fn start(self, confinement: &Confinement) -> Result<Services, SandboxError> {
        let Prepared { control, api, forwards } = self;
        let forwards = forwards.start(confinement, |error| {
            warn!("no more published ports, and outbound connections go by the TAP: {}", with_causes(error));
        })?;
        let mut services = Services { control, server: None, forwards };
        if let Some(api) = api {
            services.server = Some(api.start(|work| confinement.spawn("api", ThreadRole::Api, work))?);
        }
        Ok(services)
    }
}

fn not_published(spec: String, error: PortError) -> Message {
    let taken = TakenPort::of(&error);
    let failure = Failure::new(Step::Publish, spec, io::Error::other(error));
    match taken {
        Some(port) => Message::PortTaken(port, failure),
        None => Message::Failed(failure),
    }
}

/// The child as the forwarder has to know it.
pub(crate) fn child_network(config: &Config) -> ChildNetwork {
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

/// What the API says about the instance.
fn facts(task: &ServiceTask<'_>) -> Facts {
    let &ServiceTask { config, egress, state_dir, child, restarts, .. } = task;
    let ipv6 = (config.ipv6_mode() != Ipv6Mode::Off).then(|| config.ipv6().child.into());
    Facts {
        child_pid: child.as_raw(),
        restarts,
        state_dir: state_dir.map(|path| path.display().to_string()).unwrap_or_default(),
        network: Some(NetworkDriver {
            driver: "rootless-launch".to_owned(),
            dns: config.dns_addresses().collect(),
            child_ip: Some(config.ipv4().child.into()),
            dynamic_child_ip: false,
            child_ipv6: ipv6,
            gateways: [Some(config.ipv4().gateway.into()), ipv6.and(Some(config.ipv6().gateway.into()))]
                .into_iter()
                .flatten()
                .collect(),
            mtu: Some(config.mtu()),
            egress: None,
        }),
        ports: Some(PortDriver {
            driver: "rootless-launch".to_owned(),
            protos: ["tcp", "tcp4", "tcp6", "udp", "udp4", "udp6"].map(str::to_owned).to_vec(),
            disallow_loopback_child_ip: false,
        }),
        egress: Some(egress),
        host_dns: if config.dns().servers.is_empty() { HostDns::InReach } else { HostDns::OutOfReach },
    }
}
