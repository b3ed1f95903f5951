//! The guard: a process that waits for the launcher's end, then kills everything that runs in the child's user
//! namespace, waits for the engine's end and removes the state directory, because nobody else would. Whoever finds the
//! directory free finds the ports free as well.
//!
//! It is a process of its own because nobody else can do it: the child may do what it likes, and the engine has
//! given up its power over the child's user namespace together with everything else (see
//! [`sandbox`](crate::sandbox)). It reads nothing but its channel, so that it needs no sandbox. It has no
//! parent-death signal: the end of the channel tells it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use log::{debug, error};
use nix::sched::CloneFlags;
use nix::sys::signal::SigSet;
use nix::unistd::Pid;

use crate::engine::detach;
use crate::error::{Ending, Failure, Step};
use crate::handshake::channel::{Channel, Received};
use crate::handshake::message::Message;
use crate::state_dir::StateDir;
use crate::sweep::UserNamespace;
use crate::sys::clone::{self, ExitSignal, Fork, exit_now};
use crate::sys::{memory, pidfd, wait};

/// The guard of a child as the launcher holds it. Dropping it ends and reaps it; nothing is killed then.
#[derive(Debug)]
pub struct Guard {
    channel: Channel,
    process: Option<Pid>,
}

impl Guard {
    /// Starts to guard what runs in `child`, and the state directory of the instance.
    ///
    /// # Errors
    /// clone3(2), socketpair(2).
    pub fn start(child: &UserNamespace, state: Option<&StateDir>) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::new(Step::ForkGuard, "", error);
        let (channel, guards_end) = Channel::pair().map_err(failed)?;
        match clone::fork(CloneFlags::empty(), ExitSignal::None).map_err(failed)? {
            Fork::Parent(process) => Ok(Guard { channel, process: Some(process) }),
            Fork::Child => exit_now(main(&guards_end, child, state)),
        }
    }

    /// Waits until it has left the terminal and the process group of the caller, whose signals are not for it.
    ///
    /// # Errors
    /// It has failed.
    pub fn wait_ready(&self) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::new(Step::ForkGuard, "", error);
        match self.channel.receive().map_err(failed)?.map(|received| received.message) {
            Some(Message::GuardReady) => Ok(()),
            Some(Message::Failed(failure)) => Err(failure),
            _ => Err(failed(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// Shows it the engine, whose end it waits for once the launcher is gone.
    ///
    /// # Errors
    /// sendmsg(2).
    pub fn show_engine(&self, engine: &OwnedFd) -> io::Result<()> {
        self.channel.send(&Message::EngineStarted, Some(engine.as_fd()))
    }

    /// Tells it that there is nobody left to kill. Does not wait for its end.
    pub fn dismiss(&self) {
        // If it is dead it needs no telling.
        let _ = self.channel.send(&Message::Stop, None);
    }

    /// How it ended; waits for it.
    ///
    /// # Errors
    /// waitpid(2).
    pub fn wait_end(&mut self) -> io::Result<Option<Ending>> {
        self.process.take().map(wait::wait_end).transpose()
    }
}

/// Readable when it is dead.
impl AsFd for Guard {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Also one that somebody has stopped.
        if let Some(process) = self.process {
            let _ = wait::kill(process, libc::SIGKILL);
        }
        let _ = self.wait_end();
    }
}

/// The process; returns its exit status.
fn main(channel: &Channel, child: &UserNamespace, state: Option<&StateDir>) -> i32 {
    let kept: Vec<_> = [channel.as_fd(), child.as_fd()]
        .into_iter()
        .chain(state.into_iter().flat_map(StateDir::locks))
        .collect();
    let ready = match detach(c"rl-guard", &kept, &SigSet::empty()) {
        Ok(()) => Message::GuardReady,
        Err(error) => Message::Failed(Failure::new(Step::ForkGuard, "", error)),
    };
    // A launcher that is dead already is noticed below.
    let _ = channel.send(&ready, None);
    let mut engine = None;
    loop {
        memory::release_code();
        match channel.receive() {
            Ok(Some(Received { message: Message::EngineStarted, fd })) => engine = fd,
            Ok(Some(Received { message: Message::Stop, .. })) => return 0,
            _ => break,
        }
    }
    match child.kill_all(None) {
        Ok(count) => debug!("the launcher is gone; {count} processes killed"),
        Err(error) => error!("cannot kill what the launcher left: {error}"),
    }
    if let Some(Err(error)) = engine.map(|engine| pidfd::end(&engine)) {
        error!("cannot end the engine: {error}");
    }
    state.into_iter().for_each(StateDir::remove);
    0
}
