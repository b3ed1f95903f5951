//! The engine process: stays in the host's network namespace, owns the TAP and the host's sockets, and gives up
//! everything else (see [`sandbox`](crate::sandbox)).
//!
//! It leaves when the launcher says so or is dead; the channel tells it in either case.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, IoSlice};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use forwarder::store::{Inheritance, StoreLine};
use netstack::capture::PcapWriter;
use netstack::{Driver, DriverError, Tap};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use nix::sys::stat::Mode as FileMode;
use nix::unistd::{Pid, chdir, dup2_stdin, dup2_stdout, setpgid, setsid};

use crate::egress::EgressMode;
use crate::error::{Failure, Step};
use crate::handshake::channel::{Channel, Received};
use crate::handshake::message::Message;
use crate::plan::forwards::ForwardPlan;
use crate::plan::net::EnginePlan;
use crate::sandbox::{Mode, Sandbox, ThreadRole};
use crate::services::{ServiceTask, Services};
use crate::settings::Page;
use crate::stats::{self, ReportRequests};
use crate::sys::clone::exit_now;
use crate::sys::fd::close_all_except;
use crate::sys::signal::{Disposition, set_disposition};
use crate::sys::{sched, spawn};

/// What the engine tells at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// Nothing.
    Quiet,
    /// Statistics on stderr.
    Statistics,
}

/// What the launcher opens for the engine, which has no files of its own.
#[derive(Debug, Default)]
pub struct EngineFiles {
    /// Where frames are recorded.
    pub pcap: Option<File>,
    /// Where the control API is asked.
    pub api: Option<UnixListener>,
    /// Where Prometheus asks besides.
    pub metrics: Option<TcpListener>,
}

impl EngineFiles {
    fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let EngineFiles { pcap, api, metrics } = self;
        let [pcap, api, metrics] = [
            pcap.as_ref().map(AsFd::as_fd),
            api.as_ref().map(AsFd::as_fd),
            metrics.as_ref().map(AsFd::as_fd),
        ];
        [pcap, api, metrics].into_iter().flatten()
    }
}

/// Everything the engine process needs; made before it is.
#[derive(Debug)]
pub struct EngineTask<'a> {
    /// Its settings.
    pub net: &'a EnginePlan,
    /// What it gives up once it is set up.
    pub sandbox: Mode,
    /// What is open for it.
    pub files: &'a EngineFiles,
    /// The state directory, for those who ask.
    pub state_dir: Option<&'a Path>,
    /// The process that becomes CMD.
    pub child: Pid,
    /// What is published from the start.
    pub forwards: &'a ForwardPlan,
    /// Leads to the forwarder's agent.
    pub agent: BorrowedFd<'a>,
    /// Where it leaves its settings, and finds those of the engine before it.
    pub settings: &'a Page,
    /// How many engines were there before it.
    pub restarts: u32,
    /// What to tell at the end.
    pub report: Report,
    /// The line to the launcher.
    pub channel: &'a Channel,
}

/// Runs the process; ends in an exit. Forwards and their sockets are kept at the other end of `store`.
pub fn main(task: &EngineTask<'_>, store: StoreLine, inheritance: Inheritance) -> ! {
    match run(task, store, inheritance) {
        Ok(()) => exit_now(0),
        Err(failure) => {
            // If the launcher is dead there is nobody to tell.
            let _ = task.channel.send(&Message::Failed(failure), None);
            exit_now(1)
        }
    }
}

fn run(task: &EngineTask<'_>, store: StoreLine, inheritance: Inheritance) -> Result<(), Failure> {
    let mut keep = vec![task.channel.as_fd(), task.agent, task.settings.as_fd(), store.as_fd()];
    keep.extend(task.files.descriptors());
    keep.extend(inheritance.descriptors());
    // What asks for a report is read from a descriptor.
    detach_within_session(c"rl-engine", &keep, &SigSet::from(stats::REQUEST))
        .map_err(|error| Failure::new(Step::ForkEngine, "", error))?;
    run_soon();
    serve(task, task.net, store, inheritance)
}

/// Has this thread and those it starts run in short slices: whoever they are woken for is served soon beside streams that take all the
/// processors, and whoever shares a processor with them, too (measured beside a stream: the longest hundredth of the waits of a client
/// that was woken went from 2.7 to 0.5 ms).
fn run_soon() {
    if let Err(error) = sched::ask_for_slices(SLICE) {
        log::debug!("sched_setattr failed: {error}");
    }
}

/// The shortest that Linux grants.
const SLICE: Duration = Duration::from_micros(100);

/// Runs the engine until the channel has something to say.
fn serve(
    task: &EngineTask<'_>,
    plan: &EnginePlan,
    store: StoreLine,
    inheritance: Inheritance,
) -> Result<(), Failure> {
    let talk = |error: io::Error| Failure::new(Step::Talk, "", error);
    let confined = |error| Failure::new(Step::Confine, "", io::Error::other(error));
    // While the child makes its TAP: namespaces take their time.
    let hidden = Sandbox::new(task.sandbox).hide().map_err(confined)?;
    let queues: Vec<OwnedFd> = match task.channel.receive().map_err(talk)? {
        Some(Received { message: Message::Serve, fd: Some(tap), more }) => {
            std::iter::once(tap).chain(more).collect()
        }
        Some(_) => return Err(talk(Errno::EBADMSG.into())),
        None => return Ok(()),
    };
    let failed = |source: io::Error| Failure::new(Step::Engine, "", source);
    let (mut driver, mut workers) = queues
        .into_iter()
        .map(|queue| {
            let mut tap = Tap::from_fd(queue)?;
            tap.limit_offloads(plan.link);
            Ok(tap)
        })
        .collect::<Result<_, DriverError>>()
        .and_then(|queues| Driver::with_queues(queues, plan.config.clone()))
        .map_err(|error| failed(io::Error::other(error)))?;
    if let Some(pcap) = &task.files.pcap {
        let (file, zero) = (pcap.try_clone().map_err(failed)?, driver.clock().unix_micros_at_zero());
        let writer =
            if task.restarts == 0 { PcapWriter::new(file, zero) } else { PcapWriter::resumed(file, zero) };
        driver.set_observer(Box::new(writer));
    }
    let settings = task.settings.load().and_then(|settings| match settings {
        Some(settings) => settings.apply(&mut driver),
        None => Ok(()),
    });
    settings.map_err(|error| failed(io::Error::other(error)))?;
    let requests = ReportRequests::or(task.channel).map_err(failed)?;
    // What was published is inherited, and may have changed.
    let ports = if task.restarts == 0 { &*task.forwards.ports } else { &[] };
    let service_task = ServiceTask {
        config: &plan.config,
        egress: plan.egress,
        driver: &mut driver,
        workers: &mut workers,
        line: task.agent.try_clone_to_owned().map_err(failed)?,
        forwards: task.forwards,
        store,
        inheritance,
        files: task.files,
        settings: task.settings,
        state_dir: task.state_dir,
        child: task.child,
        restarts: task.restarts,
    };
    let services = Services::prepare(service_task).map_err(failed)?;
    let confinement = hidden.seal().map_err(confined)?;
    let mut services = services.start(&confinement).map_err(confined)?;
    if task.restarts == 0 && task.forwards.is_empty() && plan.egress != EgressMode::Relay {
        task.channel.send(&Message::EngineReady, None).map_err(talk)?;
    } else {
        let channel = task.channel.try_clone().map_err(talk)?;
        services.publish(ports, plan.egress, &confinement, channel).map_err(confined)?;
    }
    for worker in workers {
        let name = format!("worker-{}", worker.id().index());
        confinement.spawn(&name, ThreadRole::Driver, move || worker.run()).map_err(confined)?;
    }
    confinement.confine(ThreadRole::Driver).map_err(confined)?;
    let served = serve_until_told(task, &mut driver, &requests, &services);
    // Ports are free, while what the child has sent is still delivered. No thread of theirs is to wait for this one.
    driver.close_handles();
    driver.set_relay(None);
    services.close();
    let served = served.and_then(|()| driver.finish()).map_err(|error| failed(io::Error::other(error)));
    drop(services);
    if task.report == Report::Statistics {
        stats::print(&driver);
    }
    let slow_close = SlowClose::prepare(&driver);
    drop(driver);
    drop(slow_close);
    served
}

/// Runs until the channel says that it is over, and reports as often as somebody wants it.
fn serve_until_told(
    task: &EngineTask<'_>,
    driver: &mut Driver,
    requests: &ReportRequests,
    services: &Services,
) -> Result<(), DriverError> {
    loop {
        driver.run_until(requests)?;
        if requests.take() {
            stats::print(driver);
        } else if let Ok(Some(Received { message: Message::Running, .. })) = task.channel.receive() {
            services.set_ready();
        } else {
            return Ok(());
        }
    }
}

/// Second references to descriptors whose last close is slow, left to the kernel's garbage collector.
///
/// Removing a TAP device or an inotify group waits some 10 to 20 ms for RCU, and whoever runs the command would
/// wait for that. A socket that is only referred to by a message in its own queue is collected by a kernel
/// thread, and so is what the message carries (unix(7); before Linux 6.9 the collector is the caller, and
/// nothing is won). If any of this fails, the descriptors are simply closed here.
struct SlowClose {
    /// Closed first: from then on only its own queue refers to it.
    _itself: OwnedFd,
    /// Closed second: this close makes the kernel look for garbage.
    _sender: OwnedFd,
}

impl SlowClose {
    /// Takes references to what the driver names.
    fn prepare(driver: &Driver) -> io::Result<Self> {
        let (sender, itself) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let slow = driver.slow_to_close().map(|fd| fd.as_raw_fd());
        let fds: Vec<RawFd> = std::iter::once(itself.as_raw_fd()).chain(slow).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(sender.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(SlowClose { _itself: itself, _sender: sender })
    }
}

/// Cuts everything that ties this process to the caller: terminal, directory, descriptors but `keep`, signals but
/// `blocked`.
pub(crate) fn detach(name: &CStr, keep: &[BorrowedFd<'_>], blocked: &SigSet) -> io::Result<()> {
    setsid()?;
    shed(name, keep)?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(blocked), None)?;
    Ok(())
}

/// The same, but in the caller's session, if without its terminal: the scheduler divides processors among sessions before it does among
/// their processes (`sched_autogroup_enabled`, sched(7)). Of a command that is busy on other processors, too, a session of the engine's
/// own left the reader of datagrams a quarter of the processor that both ran on, and half of what was carried was dropped in front of
/// it.
fn detach_within_session(name: &CStr, keep: &[BorrowedFd<'_>], blocked: &SigSet) -> io::Result<()> {
    match spawn::leave_terminal() {
        // No signal of the terminal comes to a group of its own.
        Ok(()) => setpgid(Pid::from_raw(0), Pid::from_raw(0))?,
        Err(_) => drop(setsid()?),
    }
    shed(name, keep)?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(blocked), None)?;
    Ok(())
}

/// Gives a process of ours its name, and up the caller's directory and descriptors but `keep`.
pub(crate) fn shed(name: &CStr, keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    prctl::set_name(name)?;
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, FileMode::empty())?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    drop(null);
    close_all_except(keep)?;
    chdir("/")?;
    // A reader of stderr that went away must not stop the network, nor the guard.
    set_disposition(Signal::SIGPIPE, Disposition::Ignore);
    Ok(())
}
