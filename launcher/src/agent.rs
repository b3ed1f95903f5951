//! The forwarder's agent: a process that joins the child's namespaces and makes sockets there.
//!
//! It is started when the engine first asks for it: because of published ports, or of the child's first outbound TCP connection. It
//! belongs to the launcher and not to the child: it has the launcher's file system and memory, joined namespaces only for what the sockets need, and
//! other processes of the child's user namespace cannot trace it. It ends with the engine.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use log::error;
use nix::sched::CloneFlags;
use nix::sys::signal::SigSet;
use nix::unistd::Pid;

use crate::engine::detach;
use crate::error::with_causes;
use crate::join::Target;
use crate::sys::clone::{self, ExitSignal, Fork, exit_now};
use crate::sys::memory;

/// The child's namespaces and the agent's end of its line, held until the agent is wanted.
#[derive(Debug)]
pub struct Agent {
    line: OwnedFd,
    target: Target,
}

impl Agent {
    /// An agent in these namespaces.
    pub fn new(line: OwnedFd, target: Target) -> Self {
        Agent { line, target }
    }

    /// Starts it. Its end is not reported by SIGCHLD.
    ///
    /// # Errors
    /// clone3(2).
    pub fn start(self) -> io::Result<Pid> {
        match clone::fork(CloneFlags::empty(), ExitSignal::None)? {
            Fork::Parent(agent) => Ok(agent),
            Fork::Child => exit_now(self.run()),
        }
    }

    /// The process; returns its exit status.
    fn run(self) -> i32 {
        let kept = [self.line.as_fd(), self.target.net()];
        let kept: Vec<_> = kept.into_iter().chain(self.target.user()).collect();
        if let Err(error) = detach(c"rl-agent", &kept, &SigSet::empty()) {
            error!("published ports and outbound connections: the agent cannot start: {error}");
            return 1;
        }
        if let Err(failure) = self.target.join() {
            error!("published ports and outbound connections: {}", with_causes(&failure));
            return 1;
        }
        let Agent { line, target } = self;
        drop(target);
        memory::release_code();
        match forwarder::child::run(line) {
            Ok(()) => 0,
            Err(error) => {
                error!("published ports and outbound connections: {}", with_causes(&error));
                1
            }
        }
    }
}

/// Readable when the agent is wanted, or when it never will be.
impl AsFd for Agent {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.line.as_fd()
    }
}
