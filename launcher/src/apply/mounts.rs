//! Mounts the child's own files, in the child. Nothing is written to a disk.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use log::{debug, info, warn};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::symlinkat;

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
    attach(tmpfs.as_fd(), None, c"/").map_err(|error| Failure::new(Step::Mount, "a tmpfs", error))?;
    let is_there = |file: &FileMount| fs::exists(format!("/etc/{}", file.name)).unwrap_or(false);
    let covered = if plan.files.iter().all(is_there) {
        plan.files.iter().try_for_each(|file| cover(&tmpfs, file))
    } else {
        info!("files of /etc are missing or dangling links; the child gets an /etc of its own");
        rebuild_etc(&tmpfs, plan)
    };
    if let Err((path, error)) = covered {
        warn!("cannot mount over {path}: {error}; names may not resolve in the child");
    }
    let path = format!("/proc/self/fd/{}", tmpfs.as_raw_fd());
    umount2(path.as_str(), MntFlags::MNT_DETACH).map_err(fail("the tmpfs away"))
}

/// A path and why it could not be covered.
type Uncovered = (String, io::Error);

/// Mounts one file over one that is there.
fn cover(tmpfs: &impl AsFd, file: &FileMount) -> Result<(), Uncovered> {
    let path = format!("/etc/{}", file.name);
    let mount = || {
        write_file(tmpfs, file)?;
        let clone = clone_tree(Some(tmpfs.as_fd()), &c_string(file.name)?)?;
        attach(clone.as_fd(), None, &c_string(&path)?)
    };
    mount().map_err(|error| (path.clone(), error))
}

/// Mounts a new directory over /etc: each entry of the old one is mounted there again, links are made anew, and
/// the files of the plan stand in it.
///
/// Links to the old entries would be shorter, but AppArmor knows files by their path.
fn rebuild_etc(tmpfs: &impl AsFd, plan: &MountPlan) -> Result<(), Uncovered> {
    let at = |path: &str| {
        let path = path.to_owned();
        move |error: io::Error| (path, error)
    };
    let new = new_directory(tmpfs, "etc").map_err(at("/etc"))?;
    for entry in fs::read_dir("/etc").map_err(at("/etc"))? {
        let entry = entry.map_err(at("/etc"))?;
        if plan.files.iter().any(|file| entry.file_name() == file.name) {
            continue;
        }
        let path = entry.path();
        // An entry that vanished or that nobody may see is left out.
        if let Err(error) = take_over(&new, &entry) {
            debug!("{} is not taken into the child: {error}", path.display());
        }
    }
    for file in &plan.files {
        write_file(&new, file).map_err(at(file.name))?;
    }
    let clone = clone_tree(Some(tmpfs.as_fd()), c"etc").map_err(at("/etc"))?;
    attach(clone.as_fd(), None, c"/etc").map_err(at("/etc"))
}

fn take_over(new: &OwnedFd, entry: &fs::DirEntry) -> io::Result<()> {
    let (kind, path, name) = (entry.file_type()?, entry.path(), entry.file_name());
    if kind.is_symlink() {
        return Ok(symlinkat(&fs::read_link(path)?, new, Path::new(&name))?);
    }
    if kind.is_dir() {
        mkdirat(new, Path::new(&name), Mode::from_bits_truncate(0o755))?;
    } else {
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        openat(new, Path::new(&name), flags, Mode::from_bits_truncate(0o644))?;
    }
    let clone = clone_tree(None, &CString::new(path.as_os_str().as_bytes())?)?;
    attach(clone.as_fd(), Some(new.as_fd()), &CString::new(name.as_bytes())?)
}

fn new_directory(parent: &impl AsFd, name: &str) -> io::Result<OwnedFd> {
    mkdirat(parent, name, Mode::from_bits_truncate(0o755))?;
    Ok(openat(parent, name, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

fn write_file(directory: &impl AsFd, file: &FileMount) -> io::Result<()> {
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let fd = openat(directory, file.name, flags, Mode::from_bits_truncate(0o644))?;
    // Whatever the umask: every user of the child reads these.
    fchmod(&fd, Mode::from_bits_truncate(0o644))?;
    File::from(fd).write_all(file.text.as_bytes())
}

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::ErrorKind::InvalidInput.into())
}
