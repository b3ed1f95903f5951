//! The command line, sockets and messages of slirp4netns.
//!
//! # Theory of operation
//! One process, the one that was called, serves the whole time and stays in the caller's namespaces: it opens the TAP
//! through a short-lived child ([`join`]), listens on the API socket, goes into the sandbox if one is
//! wanted, tells the ready descriptor, and runs the engine until the exit descriptor is hung up, or nobody is left in
//! the namespace of a target that is a process (which a sandbox would keep from being seen). SIGTERM and SIGKILL
//! end it as they end every program. It has one thread until everything about namespaces is done.
//!
//! The namespace is somebody else's, and the relay for outbound connections would add rules to it: they go by the TAP, unless the
//! environment says otherwise ([`egress::VARIABLE`]).

pub mod api;
pub mod cli;
pub mod plan;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use forwarder::error::PortError;
use forwarder::spec::{PortSpec, PortStatus};
use log::warn;
use netstack::config::Config;
use netstack::driver::DriverHandle;
use netstack::error::ConfigError;
use netstack::{Driver, DriverError, Link, PacketSocket, Tap};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::unistd::unlink;
use thiserror::Error;

use self::api::{Forwards, Server, Socket};
use self::cli::{Call, CliError, Request, Switch, Target, USAGE};
use self::plan::Banner;
use crate::carrier::TapCarrier;
use crate::egress::{self, EgressMode};
use crate::error::{Failure, with_causes};
use crate::forwards::{self, PreparedForwards};
use crate::join::{self, JoinError};
use crate::logger;
use crate::personality::{complain, say};
use crate::sandbox::root::RootPlan;
use crate::sandbox::{BindService, Confinement, Inspection, Mode, Sandbox, SandboxError, ThreadRole};
use crate::services::child_network;
use crate::sys::fd::{accept, take_inherited};
use crate::sys::pidfd;
use crate::sys::signal::{Disposition, set_disposition};

/// The version of slirp4netns whose behaviour this is; others compare it with what they need.
const VERSION: &str = "1.3.3";

/// Runs with the arguments behind the program's name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    logger::install(0);
    set_disposition(Signal::SIGPIPE, Disposition::Ignore);
    let mut notices = Vec::new();
    let call = cli::parse(args, &mut notices);
    notices.iter().for_each(|line| say(format_args!("{line}\n")));
    let ran = match call {
        Ok(Call::Help) => {
            say(USAGE);
            return ExitCode::SUCCESS;
        }
        Ok(Call::Version) => {
            say(version());
            return ExitCode::SUCCESS;
        }
        Ok(Call::Serve(request)) => serve(&request),
        Err(fault) => Err(fault.into()),
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("{}\n", with_causes(&error)));
            if let RunError::Join(_) = error {
                complain("child failed(1)\n");
            }
            if error.is_usage() {
                say(USAGE);
            }
            ExitCode::FAILURE
        }
    }
}

/// What ends a run; exit status 1 each.
#[derive(Debug, Error)]
enum RunError {
    #[error(transparent)]
    Usage(#[from] CliError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("existing path expected when --netns-type=path")]
    NetnsPath(#[source] JoinError),
    #[error("userns path doesn't exist")]
    UsernsPath(#[source] JoinError),
    #[error(transparent)]
    Join(JoinError),
    #[error("descriptor {fd} of {option} cannot be used")]
    Descriptor {
        option: &'static str,
        fd: i32,
        #[source]
        source: io::Error,
    },
    #[error("descriptor {0} is no TAP")]
    NoTap(i32),
    #[error("cannot serve the packet socket {}", .path.display())]
    Bess {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot listen on the API socket {}", .path.display())]
    ApiSocket {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot wait for the end")]
    Watch(#[source] io::Error),
    #[error(transparent)]
    EgressVariable(#[from] egress::VariableError),
    #[error("{}=relay: the target is a descriptor, and nobody says whose", egress::VARIABLE)]
    NoNamespace,
    #[error("cannot start the relay for outbound connections")]
    Relay(#[source] io::Error),
    #[error(transparent)]
    NoRelay(#[from] Failure),
    #[error("cannot set up the sandbox")]
    Sandbox(#[from] SandboxError),
    #[error("cannot forward ports")]
    Forwards(#[from] forwarder::driver::DriverError),
    #[error(transparent)]
    Engine(#[from] DriverError),
}

impl RunError {
    /// The target cannot be opened: because of the user namespace that the caller named, or for another reason.
    fn target(error: JoinError, userns: Option<&Path>, other: fn(JoinError) -> Self) -> Self {
        match &error {
            JoinError::Open { path, .. } if Some(path.as_path()) == userns => RunError::UsernsPath(error),
            _ => other(error),
        }
    }

    fn is_usage(&self) -> bool {
        matches!(self, RunError::Usage(_) | RunError::NetnsPath(_) | RunError::UsernsPath(_))
    }
}

/// Sets everything up, then serves until the end.
fn serve(request: &Request) -> Result<(), RunError> {
    let egress = EgressMode::of_environment()?;
    let given = Given::take(request)?;
    let config = plan::config(request)?;
    let Opened { link, target, process } = open_link(request, &config, given.link)?;
    say(Banner { request, config: &config });

    let mut driver = Driver::new(link, config.clone())?;
    let relay = match (egress, &target) {
        (EgressMode::Tap, _) | (EgressMode::Auto, None) => None,
        (EgressMode::Relay, None) => return Err(RunError::NoNamespace),
        (mode, Some(target)) => Some(egress::apart(&mut driver, target, mode).map_err(RunError::Relay)?),
    };
    let mut end = End::watch(given.exit, target.zip(process)).map_err(RunError::Watch)?;
    let api = match &request.api_socket {
        Some(path) => Some(Api::prepare(path, request, &config, driver.handle()?)?),
        None => None,
    };
    let confinement = confine(request)?;
    let api = api.map(|api| api.start(&confinement, config.ipv4().child)).transpose()?;
    let relay = relay.map(|relay| {
        relay.start(&confinement, |error| warn!("outbound connections go by the TAP: {}", with_causes(error)))
    });
    let relay = relay.transpose()?;
    if let (EgressMode::Relay, Some(relay)) = (egress, &relay) {
        egress::insist(relay.handle())?;
    }
    confinement.confine(ThreadRole::Driver)?;
    if let Some(ready) = given.ready {
        tell_ready(ready);
    }
    loop {
        driver.run_until(&end)?;
        if end.has_come().map_err(RunError::Watch)? {
            break;
        }
    }
    // Ports are free and nobody asks for more, while what the child has sent is still delivered.
    driver.close_handles();
    driver.set_relay(None);
    drop(api);
    relay.iter().for_each(forwards::Forwards::close);
    Ok(driver.finish()?)
}

/// Puts the process into the sandbox, as far as the options want one. Landlock is a gift of newer kernels.
fn confine(request: &Request) -> Result<Confinement, RunError> {
    let sandbox = Sandbox {
        files: (request.sandbox == Switch::On).then(|| RootPlan::collect(Path::new(RESOLV_CONF))),
        seccomp: request.seccomp == Switch::On,
        inspection: Inspection::Allowed,
        bind_service: BindService::Always,
        ..Sandbox::new(Mode::Off)
    };
    let sandbox = Sandbox { mode: Mode::Auto, ..sandbox };
    let mut confinement = sandbox.enter()?;
    match confinement.missing.iter().position(|error| !matches!(error, SandboxError::Landlock(_))) {
        Some(index) => Err(confinement.missing.swap_remove(index).into()),
        None => Ok(confinement),
    }
}

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The API socket and the forwards that are asked for there.
struct Api {
    socket: Socket,
    listener: UnixListener,
    forwards: PreparedForwards,
}

/// The same, served by two threads. Dropping it closes the forwards and removes the socket.
struct RunningApi {
    _forwards: forwards::Forwards,
    _socket: Socket,
}

impl Api {
    /// Opens everything.
    fn prepare(
        path: &Path,
        request: &Request,
        config: &Config,
        driver: DriverHandle,
    ) -> Result<Self, RunError> {
        let failed = |source| RunError::ApiSocket { path: path.to_owned(), source };
        let (mut socket, listener) = Socket::listen(path).map_err(failed)?;
        if [request.sandbox, request.seccomp].contains(&Switch::On) {
            socket.leave_removal().map_err(failed)?;
        }
        let settings = forwarder::driver::Config { child: child_network(config), ..Default::default() };
        let forwards = PreparedForwards::new(settings, None, Some(Box::new(TapCarrier::new(driver))))?;
        Ok(Api { socket, listener, forwards })
    }

    /// Serves. Forwards go to `child` if they name nobody.
    fn start(self, confinement: &Confinement, child: Ipv4Addr) -> Result<RunningApi, RunError> {
        let Api { socket, listener, forwards } = self;
        let server = Server::new(listener, child, forwards.handle());
        let forwards =
            forwards.start(confinement, |error| warn!("no more forwards: {}", with_causes(error)))?;
        confinement.spawn("slirp-api", ThreadRole::Api, || server.run())?;
        Ok(RunningApi { _forwards: forwards, _socket: socket })
    }
}

impl Forwards for forwarder::driver::Handle {
    fn add(&self, spec: PortSpec) -> Result<PortStatus, PortError> {
        self.add(spec)
    }

    fn remove(&self, id: u64) -> Result<(), PortError> {
        self.remove(id)
    }

    fn list(&self) -> Result<Vec<PortStatus>, PortError> {
        self.list()
    }
}

/// Descriptors that the command line names by number.
struct Given {
    link: Option<OwnedFd>,
    ready: Option<OwnedFd>,
    exit: Option<OwnedFd>,
}

impl Given {
    /// Takes them over before anything else is opened.
    fn take(request: &Request) -> Result<Self, RunError> {
        let take =
            |option, fd| take_inherited(fd).map_err(|source| RunError::Descriptor { option, fd, source });
        let link = match request.target {
            Target::TapFd(fd) => Some(take("--netns-type=tapfd", fd)?),
            _ => None,
        };
        let ready = request.ready_fd.map(|fd| take("--ready-fd", fd)).transpose()?;
        let exit = request.exit_fd.map(|fd| take("--exit-fd", fd)).transpose()?;
        Ok(Given { link, ready, exit })
    }
}

/// What there is of the target.
struct Opened {
    link: Link,
    /// Its namespaces, if they are known.
    target: Option<join::Target>,
    /// Its process, if the end of that can be watched.
    process: Option<OwnedFd>,
}

/// The link to the target.
fn open_link(request: &Request, config: &Config, given: Option<OwnedFd>) -> Result<Opened, RunError> {
    let alone = |link| Opened { link, target: None, process: None };
    let (target, name) = match &request.target {
        Target::Process { pid, userns, tap } => {
            let target = join::Target::of_process(*pid, userns.as_deref());
            (target.map_err(|error| RunError::target(error, userns.as_deref(), RunError::Join))?, tap)
        }
        Target::Path { netns, userns, tap } => {
            let target = join::Target::of_paths(netns, userns.as_deref());
            (target.map_err(|error| RunError::target(error, userns.as_deref(), RunError::NetnsPath))?, tap)
        }
        Target::TapFd(fd) => {
            let given = given.ok_or(RunError::NoTap(*fd))?;
            return Ok(alone(Link::Tap(Tap::from_fd(given).map_err(DriverError::from)?)));
        }
        Target::Bess(path) => {
            let peer = accept_one(path).map_err(|source| RunError::Bess { path: path.clone(), source })?;
            return Ok(alone(Link::Packet(PacketSocket::new(peer).map_err(DriverError::from)?)));
        }
    };
    let setup = plan::tap(request, name, config);
    let tap = join::run_inside(&target, || {
        let tap = setup.open()?.into_fd();
        complain(format_args!("sent tapfd={} for {name}\n", tap.as_raw_fd()));
        Ok(tap)
    });
    let tap = tap.map_err(RunError::Join)?;
    complain(format_args!("received tapfd={}\n", tap.as_raw_fd()));
    let link = Link::Tap(Tap::from_fd(tap).map_err(DriverError::from)?);
    // A process in a sandbox sees no others.
    let is_free = [request.sandbox, request.seccomp] == [Switch::Off; 2];
    let process = match request.target {
        Target::Process { pid, .. } if is_free => pidfd::open(pid).ok(),
        _ => None,
    };
    Ok(Opened { link, target: Some(target), process })
}

/// The first who connects to a packet socket at `path`, which takes the place of what is there.
fn accept_one(path: &Path) -> io::Result<OwnedFd> {
    let address = UnixAddr::new(path)?;
    match unlink(path) {
        Err(Errno::ENOENT) => {}
        other => other?,
    }
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    bind(listener.as_raw_fd(), &address)?;
    listen(&listener, Backlog::new(1)?)?;
    let peer = accept(listener.as_fd());
    // Nobody else can come.
    let _ = unlink(path);
    peer
}

/// Tells the caller that everything is ready.
fn tell_ready(fd: OwnedFd) {
    if let Err(error) = File::from(fd).write_all(b"1") {
        warn!("nobody hears that everything is ready: {error}");
    }
}

/// Readable when the run is to end, or when that is to be looked into.
#[derive(Debug)]
struct End {
    events: Epoll,
    _exit: Option<OwnedFd>,
    target: Option<(join::Target, OwnedFd)>,
}

const HANGUP: u64 = 0;
const TARGET: u64 = 1;

impl End {
    /// Watches the exit descriptor for a hang-up (data does not matter), and a target that is a process.
    fn watch(exit: Option<OwnedFd>, target: Option<(join::Target, OwnedFd)>) -> io::Result<Self> {
        let events = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        if let Some(exit) = &exit {
            // No event is asked for: hang-ups and errors are always told.
            match events.add(exit, EpollEvent::new(EpollFlags::empty(), HANGUP)) {
                // A file never hangs up.
                Err(Errno::EPERM) => {}
                other => other?,
            }
        }
        if let Some((_, process)) = &target {
            events.add(process, EpollEvent::new(EpollFlags::EPOLLIN, TARGET))?;
        }
        Ok(End { events, _exit: exit, target })
    }

    /// Whether it is over. When the process that is the target has ended, the namespace may live on with others: one
    /// of them is watched then.
    fn has_come(&mut self) -> io::Result<bool> {
        let mut events = [EpollEvent::empty(); 2];
        let count = self.events.wait(&mut events, EpollTimeout::ZERO)?;
        if events.iter().take(count).any(|event| event.data() == HANGUP) {
            return Ok(true);
        }
        let Some((target, process)) = self.target.take_if(|_| count > 0) else { return Ok(false) };
        self.events.delete(process)?;
        match target.somebody() {
            Ok(Some(process)) => {
                self.events.add(&process, EpollEvent::new(EpollFlags::EPOLLIN, TARGET))?;
                self.target = Some((target, process));
                Ok(false)
            }
            Ok(None) => Ok(true),
            // It cannot be known: whoever started us has other means.
            Err(_) => Ok(false),
        }
    }
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.0.as_fd()
    }
}

/// Five lines. Some callers take every line with the word "version" for it, hence only one has it.
fn version() -> String {
    format!(
        "slirp4netns version {VERSION}\n\
         commit: rootless-launch-{}\n\
         libslirp: 4.9.0 (netstack, compatible)\n\
         SLIRP_CONFIG_VERSION_MAX: 6\n\
         libseccomp: 2.6.0 (seccompiler, compatible)\n",
        env!("CARGO_PKG_VERSION")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_line_has_the_word_version() {
        let text = version();
        let with_version: Vec<_> = text.lines().filter(|line| line.contains("version")).collect();
        assert_eq!(with_version, ["slirp4netns version 1.3.3"]);
        let starts =
            ["slirp4netns version ", "commit: ", "libslirp: ", "SLIRP_CONFIG_VERSION_MAX: ", "libseccomp: "];
        assert_eq!(text.lines().count(), starts.len());
        assert!(text.lines().zip(starts).all(|(line, start)| line.starts_with(start)), "{text}");
    }
}
