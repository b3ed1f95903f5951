//! getxattr(2).

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::check;

/// An extended attribute of at most 64 bytes; `None` if there is none, or none that can be read.
pub fn get(path: &Path, name: &str) -> Option<Vec<u8>> {
    let (path, name) = (CString::new(path.as_os_str().as_bytes()).ok()?, CString::new(name).ok()?);
    let mut value = vec![0_u8; 64];
    // SAFETY: both strings end in a zero, and the kernel writes at most `value.len()` bytes to `value`.
    let length =
        check(
            unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) }
                as libc::c_long,
        )
        .ok()?;
    value.truncate(usize::try_from(length).ok()?);
    Some(value)
}
