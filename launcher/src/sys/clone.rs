//! clone3(2) used like fork(2): the child goes on with a copy of the memory.

use std::io;

use nix::sched::CloneFlags;
use nix::unistd::Pid;

use super::check;

/// What a process sends to its parent when it dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitSignal {
    /// SIGCHLD, as after fork(2).
    Child,
    /// Nothing; only wait calls with `__WALL` or `__WCLONE` see it.
    None,
}

/// Which of the two processes goes on here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fork {
    /// The caller; this is the new process.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Starts a process in new namespaces (`flags`, may be empty) that goes on with a copy of everything.
///
/// The caller's process has a single thread: a copy made while another thread holds a lock could wait for
/// that lock for ever. The launcher starts no thread.
///
/// # Errors
/// clone3(2).
pub(crate) fn fork(flags: CloneFlags, exit_signal: ExitSignal) -> io::Result<Fork> {
    // SAFETY: all-zero is a valid `clone_args`: no flags, no pointers.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from(flags.bits().cast_unsigned());
    args.exit_signal = match exit_signal {
        ExitSignal::Child => u64::from(libc::SIGCHLD.cast_unsigned()),
        ExitSignal::None => 0,
    };
    // SAFETY: `args` outlives the call and its size is passed; no stack is given and CLONE_VM is not set, so
    // the child runs on its own copy of this stack.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of_val(&args)) })?;
    Ok(if pid == 0 { Fork::Child } else { Fork::Parent(Pid::from_raw(pid as libc::pid_t)) })
}

/// Leaves the process at once: no exit handlers, no destructors of memory that was copied from the parent.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) does not return and touches no memory.
    unsafe { libc::_exit(status) }
}
