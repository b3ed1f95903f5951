//! Process 1 of a pid namespace: starts CMD, reaps whatever becomes its child, passes signals on and tells the launcher
//! what becomes of CMD.
//!
//! # Theory of operation
//! The child becomes the init when everything is set up. CMD is forked from it, in the launcher's process group, so that the terminal
//! reaches it; the init leaves that group, so that what is sent to the group is not passed on a second time. It ends with CMD;
//! the kernel then kills what is left in the namespace, as it does when the init is killed, or dies with the launcher.
//!
//! | CMD | the init tells | the launcher |
//! |---|---|---|
//! | is stopped, for the n-th time | `Stopped { n }` | stops itself by the same signal, and says `Resume { n }` when it goes on |
//! | goes on | `Continued` | |
//! | stands still since its n-th stop when `Resume { n }` comes | | the init continues it |
//! | is dead | `Ended` | reaps the init |

use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::unistd::{Pid, setpgid};

use crate::child::{self, ChildTask, Stop};
use crate::engine::shed;
use crate::error::{Failure, Step};
use crate::handshake::message::Message;
use crate::signals::{Received, Signals};
use crate::sys::clone::{self, ExitSignal, Fork, exit_now};
use crate::sys::memory;
use crate::sys::pidfd;
use crate::sys::wait::{self, Event};

/// Starts CMD and looks after the namespace until CMD is dead. The launcher has said `Execute`; all signals are blocked.
pub(crate) fn run(task: &ChildTask<'_>) -> Result<Infallible, Stop> {
    let failed = |what: &'static str| move |error: io::Error| Failure::new(Step::StartCommand, what, error);
    let signals = Signals::block().map_err(failed("signalfd"))?;
    prctl::set_name(c"rl-init").map_err(|error| failed("")(error.into()))?;
    // Here before CMD is, and meant for it.
    let mut early = Vec::new();
    while let Some(Received { signal, .. }) = signals.next().map_err(failed("signalfd"))? {
        early.push(signal);
    }
    // Goes on here when CMD is executed, or could not be and has said so.
    let command = match clone::fork(CloneFlags::CLONE_VFORK, ExitSignal::Child).map_err(failed(""))? {
        Fork::Child => child::execute(task),
        Fork::Parent(command) => command,
    };
    let process = pidfd::open(command).map_err(failed("pidfd"))?;
    task.channel.send(&Message::Started, Some(process.as_fd())).map_err(failed(""))?;
    for signal in early.into_iter().filter(|&signal| signal != libc::SIGCHLD) {
        // Fails only for a process that is dead already.
        let _ = wait::kill(command, signal);
    }
    setpgid(Pid::from_raw(0), Pid::from_raw(0)).map_err(|error| failed("")(error.into()))?;
    shed(c"rl-init", &[task.channel.as_fd(), signals.as_fd()]).map_err(failed(""))?;
    memory::release_code();
    Init { task, signals, command, stops: 0, is_stopped: false }
        .run()
        .map_err(|error| failed("")(error).into())
}

struct Init<'a> {
    task: &'a ChildTask<'a>,
    signals: Signals,
    command: Pid,
    /// How often CMD has been stopped.
    stops: u32,
    is_stopped: bool,
}

impl Init<'_> {
    fn run(mut self) -> io::Result<Infallible> {
        loop {
            let channel = self.task.channel;
            let mut fds =
                [channel.as_fd(), self.signals.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                other => drop(other?),
            }
            let is_told = fds[0].any().unwrap_or(false);
            // What became of CMD before comes first: the launcher's word is about it.
            self.handle_signals()?;
            if is_told {
                match channel.receive()?.map(|received| received.message) {
                    Some(Message::Resume { count }) => self.resume(count),
                    // The launcher is gone.
                    _ => exit_now(1),
                }
            }
        }
    }

    /// Hands to CMD what was sent to the init; what CMD itself sends it need not get back.
    fn handle_signals(&mut self) -> io::Result<()> {
        while let Some(Received { signal, sender, by_kernel }) = self.signals.next()? {
            if signal != libc::SIGCHLD && !by_kernel && sender != self.command {
                // Fails only for a process that is dead already.
                let _ = wait::kill(self.command, signal);
            }
        }
        self.handle_children()
    }

    fn handle_children(&mut self) -> io::Result<()> {
        loop {
            match wait::next_change_or_continue()? {
                Event::Ended(pid, ending) if pid == self.command => {
                    // A launcher that is gone needs no telling.
                    let _ = self.task.channel.send(&Message::Ended(ending), None);
                    exit_now(0)
                }
                Event::Stopped(pid, signal) if pid == self.command => {
                    self.is_stopped = true;
                    self.stops = self.stops.wrapping_add(1);
                    self.tell(&Message::Stopped { signal, count: self.stops })?;
                }
                Event::Continued(pid) if pid == self.command => {
                    self.is_stopped = false;
                    self.tell(&Message::Continued)?;
                }
                Event::Ended(..) | Event::Stopped(..) | Event::Continued(_) => {}
                Event::Nothing | Event::NoChild => return Ok(()),
            }
        }
    }

    fn resume(&self, count: u32) {
        if self.is_stopped && self.stops == count {
            let _ = wait::kill(self.command, libc::SIGCONT);
        }
    }

    fn tell(&self, message: &Message) -> io::Result<()> {
        self.task.channel.send(message, None)
    }
}
