//! The launcher's signals: all that can be caught come through a descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getpid};

use crate::sys::clone::exit_now;
use crate::sys::signal::{Disposition, is_ignored, set_disposition};
use crate::sys::wait;

/// Signals that mean a fault of the launcher itself; they kill it as usual.
const FAULTS: [Signal; 7] = [
    Signal::SIGABRT,
    Signal::SIGBUS,
    Signal::SIGFPE,
    Signal::SIGILL,
    Signal::SIGSEGV,
    Signal::SIGSYS,
    Signal::SIGTRAP,
];

/// Signals that ask a program to end.
const REQUESTS: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

/// Blocked signals, read one by one.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
    inherited: SigSet,
}

/// One signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its number.
    pub signal: i32,
    /// Who sent it; 0 if not a process of this PID namespace.
    pub sender: Pid,
    /// Whether the kernel sent it (the terminal, for the signals that matter here), not a process.
    pub by_kernel: bool,
}

impl Signals {
    /// Blocks all signals but faults.
    ///
    /// # Errors
    /// sigprocmask(2), signalfd(2).
    pub fn block() -> io::Result<Self> {
        let mut wanted = SigSet::all();
        FAULTS.into_iter().for_each(|signal| wanted.remove(signal));
        let mut inherited = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&wanted), Some(&mut inherited))?;
        let fd = SignalFd::with_flags(&wanted, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Signals { fd, inherited })
    }

    /// The mask of the caller, which CMD gets.
    pub fn inherited_mask(&self) -> SigSet {
        self.inherited
    }

    /// Takes the next signal that has arrived.
    ///
    /// # Errors
    /// read(2).
    pub fn next(&self) -> io::Result<Option<Received>> {
        match self.fd.read_signal() {
            Ok(Some(info)) => Ok(Some(Received {
                signal: info.ssi_signo.cast_signed(),
                sender: Pid::from_raw(info.ssi_pid.cast_signed()),
                by_kernel: info.ssi_code > 0,
            })),
            Ok(None) => Ok(None),
            Err(Errno::EINTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The first of those that have arrived and ask a program to end, unless they are ignored. All others are lost.
    ///
    /// # Errors
    /// read(2).
    pub fn take_request_to_end(&self) -> io::Result<Option<i32>> {
        while let Some(Received { signal, .. }) = self.next()? {
            let asks = |asking: &Signal| *asking as i32 == signal && !is_ignored(*asking);
            if REQUESTS.iter().any(asks) {
                return Ok(Some(signal));
            }
        }
        Ok(None)
    }

    /// Stops this process by the signal that stopped CMD, so that the shell sees it; returns when it goes on.
    ///
    /// # Errors
    /// sigprocmask(2).
    pub fn stop_self(signal: i32) -> io::Result<()> {
        let mut set = SigSet::empty();
        if let Ok(signal) = Signal::try_from(signal) {
            set.add(signal);
        }
        wait::kill(getpid(), signal)?;
        sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&set), None)?;
        Ok(sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None)?)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Dies of the signal that CMD died of, without a second core dump.
pub fn die_of(signal: i32) -> ! {
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    if let Ok(name) = Signal::try_from(signal)
        && name != Signal::SIGKILL
    {
        set_disposition(name, Disposition::Default);
    }
    let _ = wait::kill(getpid(), signal);
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
    // Only a signal that this kernel does not deliver gets here.
    exit_now(128 + signal)
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::raise;

    use super::*;

    #[test]
    fn only_requests_to_end_count_before_there_is_a_command() {
        // The mask, and what is raised, are this thread's own.
        let signals = Signals::block().unwrap();
        for signal in [Signal::SIGUSR1, Signal::SIGWINCH] {
            raise(signal).unwrap();
        }
        assert_eq!(signals.take_request_to_end().unwrap(), None);
        for signal in [Signal::SIGUSR1, Signal::SIGTERM] {
            raise(signal).unwrap();
        }
        assert_eq!(signals.take_request_to_end().unwrap(), Some(libc::SIGTERM));
        assert_eq!(signals.next().unwrap(), None);
    }
}
