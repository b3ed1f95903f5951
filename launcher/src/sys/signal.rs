//! Signal dispositions: what the caller gave us is what CMD gets.
//!
//! Rust's runtime ignores SIGPIPE before `main`, so the caller's choice is read earlier, by a function in
//! `.init_array`.

use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{self, SaFlags, SigAction, SigHandler, SigSet, Signal};

static SIGPIPE_WAS_IGNORED: AtomicBool = AtomicBool::new(false);

#[used]
#[unsafe(link_section = ".init_array")]
static RECORD_SIGPIPE: extern "C" fn() = record_sigpipe;

extern "C" fn record_sigpipe() {
    SIGPIPE_WAS_IGNORED.store(is_ignored(Signal::SIGPIPE), Ordering::Relaxed);
}

/// What happens on a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// The kernel's default.
    Default,
    /// Nothing.
    Ignore,
}

/// What the caller of this program wants to happen on SIGPIPE.
pub(crate) fn inherited_sigpipe() -> Disposition {
    if SIGPIPE_WAS_IGNORED.load(Ordering::Relaxed) { Disposition::Ignore } else { Disposition::Default }
}

/// Sets what happens on `signal`; returns what happened before.
pub(crate) fn set_disposition(signal: Signal, disposition: Disposition) -> Disposition {
    let handler = match disposition {
        Disposition::Default => SigHandler::SigDfl,
        Disposition::Ignore => SigHandler::SigIgn,
    };
    // SAFETY: default and ignore run no code of ours.
    let before =
        unsafe { signal::sigaction(signal, &SigAction::new(handler, SaFlags::empty(), SigSet::empty())) };
    match before.map(|action| action.handler()) {
        Ok(SigHandler::SigIgn) => Disposition::Ignore,
        _ => Disposition::Default,
    }
}

/// Whether the caller of this program, or this program, wants nothing to happen on `signal`.
pub(crate) fn is_ignored(signal: Signal) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null new action only reads; `action` is large enough and all-zero is a valid value of it.
    unsafe {
        libc::sigaction(signal as libc::c_int, std::ptr::null(), action.as_mut_ptr());
        action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}
