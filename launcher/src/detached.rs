//! A network namespace that CMD is not in (`--detach-netns`).
//!
//! Who has left the host's network namespace cannot come back: it belongs to another user namespace. Therefore a process of its own
//! makes the new one and sets it up; then the child binds it to a file.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid};

use crate::child::{ChildTask, Stop, set_up_network};
use crate::error::{Failure, Step};
use crate::handshake::channel::{Channel, Received};
use crate::handshake::message::Message;
use crate::sys::clone::{self, ExitSignal, Fork, exit_now};
use crate::sys::{pidfd, wait};

/// The process in the namespace.
#[derive(Debug)]
pub(crate) struct DetachedNet {
    channel: Channel,
    process: Pid,
}

impl DetachedNet {
    /// Starts to make it. The launcher gets the TAP by `task`'s channel.
    pub(crate) fn start(task: &ChildTask<'_>) -> Result<Self, Stop> {
        let failed = |error: io::Error| Failure::new(Step::DetachNetwork, "", error);
        let (channel, theirs) = Channel::pair().map_err(failed)?;
        let child = pidfd::open(getpid()).map_err(failed)?;
        match clone::fork(CloneFlags::CLONE_NEWNET, ExitSignal::None).map_err(failed)? {
            Fork::Child => {
                drop(channel);
                exit_now(run(task, &theirs, child.as_fd()))
            }
            Fork::Parent(process) => Ok(DetachedNet { channel, process }),
        }
    }

    /// Waits until everything in it is set up; returns the namespace.
    pub(crate) fn finish(self, last_gid: u32) -> Result<OwnedFd, Stop> {
        let failed = |error: io::Error| Failure::new(Step::DetachNetwork, "", error);
        // One that failed before has said why.
        let _ = self.channel.send(&Message::IdsMapped { last_gid }, None);
        match self.channel.receive().map_err(failed)? {
            Some(Received { message: Message::NetworkNamespace, fd: Some(namespace), .. }) => Ok(namespace),
            Some(Received { message: Message::Failed(failure), .. }) => Err(failure.into()),
            _ => Err(failed(io::ErrorKind::UnexpectedEof.into()).into()),
        }
    }
}

/// Ends the process.
impl Drop for DetachedNet {
    fn drop(&mut self) {
        let _ = wait::kill(self.process, libc::SIGKILL);
        let _ = wait::wait_end(self.process);
    }
}

/// The process; returns its exit status.
fn run(task: &ChildTask<'_>, channel: &Channel, child: BorrowedFd<'_>) -> i32 {
    if let Err(Stop::Failed(failure)) = make(task, channel, child) {
        // A child that is gone needs no telling.
        let _ = channel.send(&Message::Failed(failure), None);
    }
    0
}

fn make(task: &ChildTask<'_>, channel: &Channel, child: BorrowedFd<'_>) -> Result<(), Stop> {
    let failed = |error: io::Error| Failure::new(Step::DetachNetwork, "", error);
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|error| failed(error.into()))?;
    if pidfd::is_dead(child) {
        return Err(Stop::Orphaned);
    }
    prctl::set_name(c"rl-netns").map_err(|error| failed(error.into()))?;
    let namespace = File::open("/proc/thread-self/ns/net").map_err(failed)?;
    let network = set_up_network(task, Some(namespace.as_fd()))?;
    let Some(Message::IdsMapped { last_gid }) =
        channel.receive().map_err(failed)?.map(|received| received.message)
    else {
        return Err(Stop::Orphaned);
    };
    network.finish(last_gid)?;
    channel.send(&Message::NetworkNamespace, Some(namespace.as_fd())).map_err(failed)?;
    Ok(())
}
