//! Mounts the child's own files, in the child. Nothing is written to a disk.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use log::warn;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;

use crate::error::{Failure, Step};
use crate::plan::mounts::{FileMount, MountPlan};
use crate::sys::mount::{attach, clone_tree, new_tmpfs};

/// Makes the child's mounts its own and covers the files of the plan.
///
/// The files live in a tmpfs that is attached on top of `/` for a moment, because only an attached mount can be
/// cloned (before Linux 6.15); no path leads there. The clones keep it alive.
///
/// # Errors
/// A mount that is needed failed. A file that cannot be covered is a warning.
pub fn apply(plan: &MountPlan) -> Result<(), Failure> {
    let fail = |what: &'static str| move |error: Errno| Failure::new(Step::Mount, what, error);
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .map_err(fail("/ as slave"))?;
    if plan.files.is_empty() {
        return Ok(());
    }
    let tmpfs = new_tmpfs(c"0755").map_err(|error| Failure::new(Step::Mount, "a tmpfs", error))?;
    attach(tmpfs.as_fd(), c"/").map_err(|error| Failure::new(Step::Mount, "a tmpfs", error))?;
    for file in &plan.files {
        if let Err(error) = cover(&tmpfs, file) {
            let consequence = match file.name {
                "resolv.conf" => {
                    "names will not resolve in the child unless it uses another way than this file"
                }
                _ => "the child sees the host's file",
            };
            warn!("cannot mount over /etc/{}: {error}; {consequence}", file.name);
        }
    }
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&tmpfs));
    umount2(path.as_str(), MntFlags::MNT_DETACH).map_err(fail("the tmpfs away"))
}

fn cover(tmpfs: &impl AsFd, file: &FileMount) -> io::Result<()> {
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let fd = openat(tmpfs, file.name, flags, Mode::from_bits_truncate(0o644))?;
    File::from(fd).write_all(file.text.as_bytes())?;
    let clone = clone_tree(tmpfs.as_fd(), &c_string(file.name)?)?;
    attach(clone.as_fd(), &c_string(&format!("/etc/{}", file.name))?)
}

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::ErrorKind::InvalidInput.into())
}
