//! getrandom(2): needs no file, so it works where there is no /dev.

use std::io;

/// A number that nobody can guess, never 0. Waits, at boot only, until the kernel has collected enough.
pub(crate) fn seed() -> io::Result<u64> {
    let mut seed = [0u8; 8];
    // SAFETY: the buffer is valid for writes of its length. Up to 256 bytes come whole.
    let len = unsafe { libc::getrandom(seed.as_mut_ptr().cast(), seed.len(), 0) };
    if len != seed.len() as isize {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::from_ne_bytes(seed).max(1))
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_differ() {
        assert_ne!(super::seed().unwrap(), super::seed().unwrap());
    }
}
