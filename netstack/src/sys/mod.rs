//! All `unsafe` of the crate. Each block states the invariant it rests on.

pub(crate) mod region;

#[cfg(feature = "driver")]
pub(crate) mod link;
#[cfg(feature = "driver")]
pub(crate) mod netlink;
#[cfg(feature = "driver")]
pub(crate) mod random;
#[cfg(feature = "driver")]
pub(crate) mod socket;
#[cfg(feature = "driver")]
pub(crate) mod tap;

/// Random bytes (getrandom(2)): needs no file, so that there may be none.
#[cfg(feature = "driver")]
pub(crate) fn random() -> std::io::Result<[u8; 8]> {
    let mut bytes = [0; 8];
    // SAFETY: the bytes are valid for writes of their length. So few are never cut short.
    match unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) } {
        8 => Ok(bytes),
        _ => Err(std::io::Error::last_os_error()),
    }
}
