//! The process in the namespaces, from its start to the exec of CMD.

use std::convert::Infallible;
use std::env;
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::{Pid, execvpe, getpid, getppid, sethostname};

use crate::apply;
use crate::detached::DetachedNet;
use crate::error::{Failure, Step};
use crate::handshake::channel::Channel;
use crate::handshake::message::Message;
use crate::init;
use crate::netlink::socket::Socket;
use crate::plan::Plan;
use crate::plan::namespaces::Namespace;
use crate::plan::net::{EnginePlan, NetPlan};
use crate::sys::clone::exit_now;
use crate::sys::signal::{Disposition, set_disposition};

/// What the child has to put back before CMD runs.
#[derive(Clone, Copy, Debug)]
pub struct Inherited {
    /// The caller's signal mask.
    pub mask: SigSet,
    /// What the caller wants on SIGPIPE.
    pub sigpipe: Disposition,
    /// What the caller wants on SIGCHLD.
    pub sigchld: Disposition,
}

/// Everything the child needs; made before it is.
#[derive(Debug)]
pub struct ChildTask<'a> {
    /// What to set up.
    pub plan: &'a Plan,
    /// CMD and its arguments.
    pub cmd: &'a [CString],
    /// The environment of CMD, `NAME=VALUE` each.
    pub environment: &'a [CString],
    /// What CMD learns of descriptors that its caller has passed.
    pub activation: Activation,
    /// The line to the launcher.
    pub channel: &'a Channel,
    /// The launcher.
    pub parent: Pid,
    /// What to put back.
    pub inherited: Inherited,
}

/// Runs the child; ends in CMD or in an exit.
pub fn main(task: &ChildTask<'_>) -> ! {
    let Err(stop) = run(task);
    leave(task, stop)
}

fn leave(task: &ChildTask<'_>, stop: Stop) -> ! {
    if let Stop::Failed(failure) = stop {
        // If nobody listens any more there is nobody to tell.
        let _ = task.channel.send(&Message::Failed(failure), None);
    }
    exit_now(1)
}

/// Whether the caller has passed listening sockets (sd_listen_fds(3)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// To the launcher: CMD gets them, with its own process id as `LISTEN_PID`.
    ForCommand,
    /// No, or to somebody else.
    None,
}

/// Why the child has come to its end.
pub(crate) enum Stop {
    /// A step failed.
    Failed(Failure),
    /// The launcher is gone.
    Orphaned,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Stop::Failed(failure)
    }
}

fn run(task: &ChildTask<'_>) -> Result<Infallible, Stop> {
    die_with_parent(task.parent)?;

    // All of this works before any id is mapped, so it runs beside newuidmap.
    let detached =
        task.plan.namespaces.detached_net.as_ref().map(|_| DetachedNet::start(task)).transpose()?;
    let network = match detached {
        Some(_) => None,
        None => Some(set_up_network(task, None)?),
    };

    let Message::IdsMapped { last_gid } = receive(task)? else {
        return Err(unexpected());
    };
    if let Some(name) = &task.plan.namespaces.hostname {
        sethostname(name).map_err(|error| Failure::new(Step::Hostname, name, error))?;
    }
    let namespace = detached.map(|detached| detached.finish(last_gid)).transpose()?;
    apply::mounts::apply(&task.plan.mounts, namespace.as_ref().map(AsFd::as_fd))?;
    if let Some(network) = network {
        network.finish(last_gid)?;
    }
    send(task, &Message::NetworkReady, None::<&Channel>)?;

    let Message::Execute = receive(task)? else {
        return Err(unexpected());
    };
    if task.plan.namespaces.contains(Namespace::Pid) {
        return init::run(task);
    }
    become_command(task)
}

/// Sets up the network namespace of the calling process, as far as that works before ids are mapped. The launcher gets the TAP, and before
/// it `namespace` if that is not the child's own.
pub(crate) fn set_up_network<'a>(
    task: &'a ChildTask<'_>,
    namespace: Option<BorrowedFd<'_>>,
) -> Result<HalfNetwork<'a>, Stop> {
    let plan = &task.plan.net;
    let mut ipv6 = None;
    match plan {
        NetPlan::Engine(plan) => {
            let link = apply::net::tap_link(plan)?;
            if let Some(namespace) = namespace {
                task.channel.send(&Message::NetworkNamespace, Some(namespace)).map_err(talk)?;
            }
            let queues: Vec<_> = link.queues.iter().map(AsFd::as_fd).collect();
            task.channel.send_all(&Message::TapReady, &queues).map_err(talk)?;
            ipv6 = link.ipv6_routes.map(|events| (events, &**plan));
        }
        NetPlan::Loopback => apply::net::loopback()?,
        NetPlan::Host => {}
    }
    task.plan.surroundings.sysctls.iter().for_each(|sysctl| apply::net::sysctl(&sysctl.name, sysctl.value));
    Ok(HalfNetwork { plan, ipv6 })
}

/// A network namespace that waits for the child's ids.
pub(crate) struct HalfNetwork<'a> {
    plan: &'a NetPlan,
    ipv6: Option<(Socket, &'a EnginePlan)>,
}

impl HalfNetwork<'_> {
    /// Does the rest; returns when CMD can use the network.
    pub(crate) fn finish(self, last_gid: u32) -> Result<(), Failure> {
        if !matches!(self.plan, NetPlan::Host) {
            apply::net::allow_ping(last_gid);
        }
        match self.ipv6 {
            Some((events, plan)) => apply::net::wait_ipv6(&events, plan),
            None => Ok(()),
        }
    }
}

/// Becomes CMD, or says why not and ends.
pub(crate) fn execute(task: &ChildTask<'_>) -> ! {
    let Err(stop) = become_command(task);
    leave(task, stop)
}

fn become_command(task: &ChildTask<'_>) -> Result<Infallible, Stop> {
    set_disposition(Signal::SIGPIPE, task.inherited.sigpipe);
    set_disposition(Signal::SIGCHLD, task.inherited.sigchld);
    let mut environment = task.environment.to_vec();
    if task.activation == Activation::ForCommand {
        environment.extend(CString::new(format!("LISTEN_PID={}", getpid())).ok());
    }
    // A signal that came meanwhile strikes here, before CMD exists.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&task.inherited.mask), None)
        .map_err(|error| Failure::new(Step::Prepare, "signal mask", error))?;
    let program: &CStr = &task.cmd[0];
    let Err(error) = execvpe(program, task.cmd, &environment);
    let error = if error == Errno::EACCES && !is_anywhere(program) { Errno::ENOENT } else { error };
    Err(Failure::new(Step::Execute, program.to_string_lossy(), error).into())
}

/// Whether a program can be seen at all. A directory of PATH that is closed to the caller makes execvp(3) say
/// `EACCES` for a program that is nowhere.
pub(crate) fn is_anywhere(program: &CStr) -> bool {
    let program = Path::new(OsStr::from_bytes(program.to_bytes()));
    let path = env::var_os("PATH").unwrap_or_default();
    program.components().count() > 1
        || program.is_absolute()
        || env::split_paths(&path).any(|directory| directory.join(program).symlink_metadata().is_ok())
}

/// From here on the kernel kills this process, and then CMD, when the launcher dies. The caller's ids do not
/// change on the way to CMD (only their names do, by the map), which would cancel this.
fn die_with_parent(parent: Pid) -> Result<(), Stop> {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|error| Failure::new(Step::Guard, "", error))?;
    // Too late for a launcher that was dead already. From inside a pid namespace it is nobody, dead or alive: then the end of the
    // channel tells.
    let found = getppid();
    if found == parent || found.as_raw() == 0 { Ok(()) } else { Err(Stop::Orphaned) }
}

fn send(task: &ChildTask<'_>, message: &Message, fd: Option<&impl AsFd>) -> Result<(), Stop> {
    task.channel.send(message, fd.map(AsFd::as_fd)).map_err(talk)
}

fn receive(task: &ChildTask<'_>) -> Result<Message, Stop> {
    Ok(task.channel.receive().map_err(talk)?.ok_or(Stop::Orphaned)?.message)
}

fn talk(error: io::Error) -> Stop {
    Failure::new(Step::Talk, "", error).into()
}

fn unexpected() -> Stop {
    talk(Errno::EBADMSG.into())
}
