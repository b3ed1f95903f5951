//! How long the scheduler lets a thread run at a time.

use std::io;
use std::time::Duration;

use super::check;

/// Asks for slices of the processor of this length for the calling thread and those it starts (sched_setattr(2), `sched_runtime` of
/// SCHED_OTHER). Linux grants 0.1 to 100 ms, and before 6.12 ignores it. The share of the processor stays the same: shorter slices come
/// earlier.
///
/// # Errors
/// What the kernel says; nothing has changed then.
pub fn ask_for_slices(length: Duration) -> io::Result<()> {
    let size = size_of::<libc::sched_attr>() as u32;
    let mut attributes = libc::sched_attr {
        size,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the structure is valid for writes of the size given.
    check(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) })?;
    // Others have no slices: what somebody has chosen for the whole program stays.
    if attributes.sched_policy == libc::SCHED_OTHER.cast_unsigned() {
        attributes.sched_runtime = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        // SAFETY: the structure is valid for reads of the size in it.
        check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_may_be_asked_for() {
        ask_for_slices(Duration::from_micros(100)).unwrap();
    }
}
