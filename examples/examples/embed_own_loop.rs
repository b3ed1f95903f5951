//! The pure stack in a loop of one's own: an island. The child gets its address by DHCP, finds the gateway by ARP
//! and can ping it, resolves the names that the engine knows itself, and is refused everything beyond: whatever
//! needs a socket of the host comes out as an [`Action`], and this loop has none to offer.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::process::ExitCode;

use examples::{AnyError, Child, become_namespace_root, command_line};
use netstack::action::{Action, ConnectError, HostEvent, OpenError};
use netstack::driver::clock::MonotonicClock;
use netstack::{Config, DropReason, Stack, Tap, stack::FRAME_BUFFER, time::Instant};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

fn main() -> Result<ExitCode, AnyError> {
    become_namespace_root()?;
    let clock = MonotonicClock::new();
    // A seed that can be guessed will do: nothing outside is reachable.
    let config = Config::builder().seed(clock.unix_micros_at_zero() as u64).build()?;
    let (tap, child) = Child::start(&config, Tap::open_in_current_netns, command_line()?)?;
    let mut stack = Stack::new(config, tap.capabilities(), clock.now());
    let (mut buffer, mut out) = (vec![0; FRAME_BUFFER], vec![0; FRAME_BUFFER]);
    while wait(&tap, &child, stack.poll_timeout(), clock.now())? {
        let now = clock.now();
        if stack.poll_timeout().is_some_and(|at| at <= now) {
            stack.handle_timeout(now);
        }
        loop {
            drain(&mut stack, &tap, now, &mut out);
            match tap.recv(&mut buffer, 0) {
                Ok(frame) => drop(stack.handle_frame(now, frame)), // the stack counts what it drops
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => break,
                    ErrorKind::InvalidData => stack.count_drop(DropReason::BadVnetHeader),
                    _ => return Err(error.into()),
                },
            }
        }
    }
    println!("{:#?}", stack.stats().frames);
    child.exit_code()
}

/// Sleeps until there are frames or the time has come; `false` when the child has ended.
fn wait(tap: &Tap, child: &Child, until: Option<Instant>, now: Instant) -> nix::Result<bool> {
    let millis = until.map(|at| at.total_micros().saturating_sub(now.total_micros()).max(0) / 1000 + 1);
    let timeout = millis.and_then(|ms| PollTimeout::try_from(ms).ok()).unwrap_or(PollTimeout::MAX);
    let mut fds = [tap.as_fd(), child.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(fds[1].any() != Some(true)),
        Err(error) => Err(error),
    }
}

/// Performs actions and writes frames until there are none.
fn drain(stack: &mut Stack, tap: &Tap, now: Instant, out: &mut [u8]) {
    loop {
        let mut idle = true;
        while let Some(action) = stack.poll_action() {
            idle = false;
            let (flow, event) = match action {
                Action::Connect { flow, .. } => (flow, HostEvent::ConnectFailed(ConnectError::Refused)),
                Action::OpenDatagram { flow, .. } => (flow, HostEvent::OpenFailed(OpenError::Unreachable)),
                _ => continue, // about sockets that were never opened
            };
            stack.handle_host(now, flow, event);
        }
        while let Some(frame) = stack.poll_frame(now, out) {
            idle = false;
            if tap.send(&out[..frame.len], frame.offload).is_err() {
                stack.count_drop(DropReason::TapWriteFailed);
            }
        }
        if idle {
            return stack.release_slots();
        }
    }
}
