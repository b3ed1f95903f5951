//! `stop`.

use std::io;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use log::warn;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::args::StopArgs;
use super::{ClientError, node, select};
use crate::state_dir::Instance;
use crate::sys::pidfd;

/// For an instance that is no node.
const PATIENCE: Duration = Duration::from_secs(10);
/// Added to what a node says it may take: the launcher has to tidy up too.
const TIDYING: Duration = Duration::from_secs(5);
/// Between two looks at an instance that was killed; its end tells nobody.
const LOOK: Duration = Duration::from_millis(5);

/// Ends an instance and waits for it.
pub(super) fn stop(args: &StopArgs) -> Result<(), ClientError> {
    let instance = select(&args.which)?;
    let gone = || ClientError::NotRunning(instance.path.clone());
    let pid = instance.launcher.ok_or_else(gone)?;
    // One that does not answer may still hear SIGTERM.
    let node = node::node(&instance).ok().flatten();
    if node.as_ref().is_some_and(|node| node.stopping) {
        node::hurry(&instance);
    }
    let patience = match (args.timeout, node) {
        (Some(seconds), _) => Duration::from_secs(seconds),
        (None, Some(node)) => Duration::from_secs(node.stop_seconds).saturating_add(TIDYING),
        (None, None) => PATIENCE,
    };
    let failed = |source: io::Error| ClientError::Stop { pid: pid.as_raw(), source };
    let launcher = match pidfd::open(pid) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Err(gone()),
        other => other.map_err(failed)?,
    };
    // The lock is held still and names it, so this is the launcher and no later process.
    if Instance::at(&instance.path).and_then(|instance| instance.launcher) != Some(pid) {
        return Err(gone());
    }
    for signal in [Signal::SIGTERM, Signal::SIGCONT] {
        match pidfd::signal(launcher.as_fd(), signal) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(failed(error)),
            _ => {}
        }
    }
    if is_dead_within(&launcher, patience).map_err(failed)? {
        return Ok(());
    }
    warn!("{} did not end within {} s: it is killed", instance.name, patience.as_secs());
    match pidfd::signal(launcher.as_fd(), Signal::SIGKILL) {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(failed(error)),
        _ => {}
    }
    // Its guard kills what runs inside and tidies up.
    let since = Instant::now();
    while Instance::at(&instance.path).is_some_and(|now| now.launcher == Some(pid)) {
        if since.elapsed() > PATIENCE {
            return Err(ClientError::Lingers(instance.name));
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

fn is_dead_within(process: &impl AsFd, patience: Duration) -> io::Result<bool> {
    let since = Instant::now();
    loop {
        let left = patience.saturating_sub(since.elapsed());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) if !left.is_zero() => {}
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
