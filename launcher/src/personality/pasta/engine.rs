//! The engine process of pasta: TAP, sandbox, ports.

use std::fs::File;
use std::io::{PipeWriter, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;

use forwarder::driver::{Auto, ChildLine, Handle};
use forwarder::error::PortError;
use forwarder::manager::Limits;
use forwarder::spec::PortSpec;
use log::{debug, info, warn};
use netstack::capture::PcapWriter;
use netstack::{Driver, DriverError, Tap};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{Resource, getrlimit};

use super::RunError;
use super::cli::Request;
use super::end::End;
use super::plan::{self, Forward, Forwards, Plan};
use super::ports::Strength;
use super::to_host::ToHostWatch;
use crate::agent::Agent;
use crate::apply;
use crate::carrier::TapCarrier;
use crate::egress::{self, EgressMode};
use crate::error::with_causes;
use crate::forwards::{Forwards as RunningForwards, PreparedForwards};
use crate::join::{self, Target};
use crate::sandbox::{Confinement, Mode, Sandbox, ThreadRole};

/// What the engine needs; made before its process is.
#[derive(Debug)]
pub(super) struct Engine<'a> {
    pub(super) request: &'a Request,
    pub(super) plan: &'a Plan,
    pub(super) target: &'a Target,
    pub(super) egress: EgressMode,
    pub(super) pcap: Option<File>,
}

/// Whom to tell that everything is ready.
#[derive(Debug)]
pub(super) struct Ready {
    pid: Option<File>,
    teller: Option<PipeWriter>,
}

impl Ready {
    /// Says on the pipe that all is well; anything else is an error's text.
    pub(super) const SIGN: u8 = 0;

    /// For an engine that is the process that was called.
    pub(super) fn in_front(pid: Option<File>) -> Self {
        Ready { pid, teller: None }
    }

    /// For an engine whose caller reads `teller`; the file gets the engine's id.
    pub(super) fn in_back(pid: Option<File>, teller: PipeWriter) -> Self {
        Ready { pid, teller: Some(teller) }
    }

    /// Its descriptors.
    pub(super) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.pid.iter().map(AsFd::as_fd).chain(self.teller.iter().map(AsFd::as_fd)).collect()
    }

    fn tell(&mut self) {
        if let Err(error) = super::write_pid(self.pid.take()) {
            warn!("the PID file cannot be written: {error}");
        }
        if let Some(mut teller) = self.teller.take()
            && let Err(error) = teller.write_all(&[Self::SIGN])
        {
            warn!("nobody hears that everything is ready: {error}");
        }
    }

    /// Says what failed, if nothing was said yet.
    pub(super) fn tell_failure(&mut self, text: &str) {
        if let Some(mut teller) = self.teller.take() {
            // A caller that is gone does not ask.
            let _ = teller.write_all(text.as_bytes());
        }
    }
}

impl Engine<'_> {
    /// Descriptors that it was given.
    pub(super) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let target = std::iter::once(self.target.net()).chain(self.target.user());
        target.chain(self.pcap.iter().map(AsFd::as_fd)).collect()
    }

    /// Serves until the end.
    pub(super) fn serve(self, end: End, mut ready: Ready) -> Result<(), RunError> {
        self.serve_telling(end, &mut ready)
    }

    /// The same; whoever calls tells of failures.
    pub(super) fn serve_telling(self, end: End, ready: &mut Ready) -> Result<(), RunError> {
        let Engine { request, plan, target, egress, pcap } = self;
        let tap = join::run_inside(target, || {
            apply::net::loopback()?;
            let tap = plan.tap.open()?;
            if request.config_net {
                // The address is a copy, and not to have others beside it.
                apply::net::no_autoconf(tap.name());
            }
            Ok(tap.into_fd())
        })?;
        let line = match plan.forwards.is_empty() && egress == EgressMode::Tap {
            true => None,
            false => Some(start_agent(target)?),
        };
        let mut driver = Driver::new(Tap::from_fd(tap)?, plan.config.clone())?;
        if let Some(file) = pcap {
            driver.set_observer(Box::new(PcapWriter::new(file, driver.clock().unix_micros_at_zero())));
        }
        let ports = match line {
            Some(line) => Some(Ports::prepare(request, plan, egress, line, &mut driver)?),
            None => None,
        };
        let published = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|error| RunError::Watch(error.into()))?;
        let published = Arc::new(published);
        end.also(&*published).map_err(RunError::Watch)?;

        let confinement = Sandbox::new(Mode::Auto).enter()?;
        debug!("sandbox: {confinement}");
        let mut ports =
            ports.map(|ports| ports.start(&confinement, &plan.forwards, &published)).transpose()?;
        confinement.confine(ThreadRole::Driver)?;
        if ports.is_none() {
            ready.tell();
        }
        let served = loop {
            match driver.run_until(&end) {
                Ok(()) => {}
                // With the interface everything is over.
                Err(DriverError::TapGone(_)) => break Ok(()),
                Err(error) => break Err(error.into()),
            }
            if published.read().is_ok()
                && let Some(ports) = &mut ports
            {
                match ports.result.recv() {
                    Ok(Ok(())) => ready.tell(),
                    Ok(Err(error)) => break Err(error),
                    Err(_) => break Ok(()),
                }
            }
            if end.has_come() {
                break Ok(());
            }
        };
        // Ports are free, while what the child has sent is still delivered. No thread of theirs is to wait for this one.
        driver.close_handles();
        driver.set_relay(None);
        ports.iter().for_each(RunningPorts::close);
        let served = served.and_then(|()| Ok(driver.finish()?));
        drop(ports);
        served
    }
}

/// Starts the forwarder's agent; returns the line to it.
fn start_agent(target: &Target) -> Result<OwnedFd, RunError> {
    let (line, agents_end) = ChildLine::pair().map_err(RunError::Prepare)?;
    let target = target.try_clone().map_err(RunError::Prepare)?;
    Agent::new(agents_end, target).start().map_err(RunError::Fork)?;
    Ok(line.into())
}

/// Forwarded ports, before there are threads.
struct Ports {
    forwards: PreparedForwards,
    to_host: Option<ToHostWatch>,
    /// Most ports that lead to the host.
    room: usize,
    egress: EgressMode,
}

/// The same, being served. Dropping it closes them.
struct RunningPorts {
    /// Goes first, with those who follow what listens; the other thread ends with it.
    forwards: Option<RunningForwards>,
    publish: Option<JoinHandle<()>>,
    result: Receiver<Result<(), RunError>>,
}

impl Ports {
    fn prepare(
        request: &Request,
        plan: &Plan,
        egress: EgressMode,
        line: OwnedFd,
        driver: &mut Driver,
    ) -> Result<Self, RunError> {
        let auto = plan.forwards.auto.clone().map(|rules| Auto { rules, pace: Default::default() });
        let limits = limits();
        let config = forwarder::driver::Config {
            child: plan.child_network(),
            manner: plan::manner(request),
            auto,
            egress: egress.of_forwarder(),
            limits: forwarder::driver::Limits { forwards: limits, ..Default::default() },
            ..Default::default()
        };
        let carrier = Box::new(TapCarrier::new(driver.handle()?));
        let mut forwards = PreparedForwards::new(config, Some(ChildLine::from(line)), Some(carrier))?;
        if egress != EgressMode::Tap {
            egress::join(driver, &mut [], &mut forwards, egress).map_err(RunError::Prepare)?;
        }
        let to_host = match &plan.forwards.auto_to_host {
            Some(rules) => Some(
                ToHostWatch::open(rules.clone(), forwards.handle(), forwards.stop())
                    .map_err(RunError::Watch)?,
            ),
            None => None,
        };
        Ok(Ports { forwards, to_host, room: limits.listeners, egress })
    }

    fn start(
        self,
        confinement: &Confinement,
        planned: &Forwards,
        published: &Arc<EventFd>,
    ) -> Result<RunningPorts, RunError> {
        let Ports { forwards, to_host, room, egress } = self;
        let handle = forwards.handle();
        let forwards = forwards.start(confinement, |error| match error {
            forwarder::driver::DriverError::ChildGone => info!("{error}"),
            error => warn!("no more forwarded ports: {}", with_causes(error)),
        })?;
        let (teller, result) = mpsc::sync_channel(1);
        let (planned, published) = (planned.clone(), Arc::clone(published));
        let publish = confinement.spawn("publish", ThreadRole::Forwards, move || {
            let relay = if egress == EgressMode::Relay { egress::insist(&handle) } else { Ok(()) };
            let published_all = relay.map_err(RunError::from).and_then(|()| publish(&handle, planned, room));
            let go_on = published_all.is_ok();
            // The engine may have ended meanwhile.
            let _ = teller.send(published_all);
            let _ = published.write(1);
            if let (true, Some(to_host)) = (go_on, to_host) {
                to_host.run();
            }
        })?;
        Ok(RunningPorts { forwards: Some(forwards), publish: Some(publish), result })
    }
}

impl RunningPorts {
    /// Has them end, and does not wait for that.
    fn close(&self) {
        self.forwards.iter().for_each(RunningForwards::close);
    }
}

impl Drop for RunningPorts {
    fn drop(&mut self) {
        self.forwards = None;
        // A thread that panicked has ended the process.
        let _ = self.publish.take().map(JoinHandle::join);
    }
}

/// Opens what is planned.
fn publish(handle: &Handle, planned: Forwards, room: usize) -> Result<(), RunError> {
    let mut go_on = true;
    for Forward { spec, strength } in planned.to_child {
        match strength {
            Strength::IfFree => go_on = go_on && publish_free(handle, spec),
            Strength::Wanted => {
                let text = spec.to_string();
                handle.add(spec).map_err(|source| RunError::Port { spec: text, source })?;
            }
        }
    }
    for (count, forward) in planned.to_host.into_iter().enumerate() {
        if count == room {
            warn!("{} and what comes after it is not forwarded: the limit is {room}", forward.spec.listen);
            break;
        }
        let text = forward.spec.listen.to_string();
        match (handle.add_to_host(forward.spec), forward.strength) {
            (Ok(_), _) => {}
            (Err(error), Strength::IfFree) => debug!("{text}: {}", with_causes(&error)),
            (Err(source), Strength::Wanted) => return Err(RunError::PortToHost { spec: text, source }),
        }
    }
    Ok(())
}

/// Opens those of the ports that can be had; says whether more can.
fn publish_free(handle: &Handle, ports: PortSpec) -> bool {
    let mut pieces = vec![ports];
    while let Some(piece) = pieces.pop() {
        let Err(error) = handle.add(piece.clone()) else { continue };
        let text = with_causes(&error);
        match error {
            PortError::InUse { address, .. }
            | PortError::Privileged { address, .. }
            | PortError::Conflict { address, .. } => {
                debug!("{text}");
                pieces.extend(plan::without_port(&piece, address.port()));
            }
            _ => {
                warn!("{piece} and what comes after it is not forwarded: {text}");
                return false;
            }
        }
    }
    true
}

/// "All" is some 30,000 ports of each family, in pieces. At least a quarter of the descriptors is left: a UDP port may
/// take three.
fn limits() -> Limits {
    let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard);
    let listeners = usize::try_from(descriptors / 4).unwrap_or(usize::MAX);
    Limits { forwards: 4096, listeners: listeners.clamp(Limits::default().listeners, 1 << 17) }
}
