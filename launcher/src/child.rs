//! The process in the namespaces, from its start to the exec of CMD.

use std::convert::Infallible;
use std::env;
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::{Pid, execvpe, getppid};

use crate::apply;
use crate::error::{Failure, Step};
use crate::handshake::channel::Channel;
use crate::handshake::message::Message;
use crate::plan::Plan;
use crate::plan::net::NetPlan;
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
    /// The line to the launcher.
    pub channel: &'a Channel,
    /// The launcher.
    pub parent: Pid,
    /// What to put back.
    pub inherited: Inherited,
}

/// Runs the child; ends in CMD or in an exit.
pub fn main(task: &ChildTask<'_>) -> ! {
    let failure = match run(task) {
        Err(Stop::Failed(failure)) => failure,
        Err(Stop::Orphaned) => exit_now(1),
    };
    // If nobody listens any more there is nobody to tell.
    let _ = task.channel.send(&Message::Failed(failure), None);
    exit_now(1)
}

enum Stop {
    Failed(Failure),
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
    let mut ipv6 = None;
    match &task.plan.net {
        NetPlan::Engine(plan) => {
            let link = apply::net::tap_link(plan)?;
            send(task, &Message::TapReady, Some(&link.tap))?;
            ipv6 = link.ipv6_routes.map(|events| (events, plan));
        }
        NetPlan::Loopback => apply::net::loopback()?,
        NetPlan::Host => {}
    }

    let Message::IdsMapped { last_gid } = receive(task)? else {
        return Err(unexpected());
    };
    apply::mounts::apply(&task.plan.mounts)?;
    if !matches!(task.plan.net, NetPlan::Host) {
        apply::net::allow_ping(last_gid);
    }
    if let Some((events, plan)) = ipv6 {
        apply::net::wait_ipv6(&events, plan)?;
    }
    send(task, &Message::NetworkReady, None::<&Channel>)?;

    let Message::Execute = receive(task)? else {
        return Err(unexpected());
    };
    set_disposition(Signal::SIGPIPE, task.inherited.sigpipe);
    set_disposition(Signal::SIGCHLD, task.inherited.sigchld);
    // A signal that came meanwhile strikes here, before CMD exists.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&task.inherited.mask), None)
        .map_err(|error| Failure::new(Step::Prepare, "signal mask", error))?;
    let program: &CStr = &task.cmd[0];
    let Err(error) = execvpe(program, task.cmd, task.environment);
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
    // Too late for a launcher that was dead already.
    if getppid() == parent { Ok(()) } else { Err(Stop::Orphaned) }
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
