//! The mount calls of Linux 5.2: file systems and mounts as descriptors (fsopen(2), open_tree(2), move_mount(2)).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use super::check;

const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
const MOVE_MOUNT_T_SYMLINKS: libc::c_uint = 0x10;

/// What becomes of programs in a new file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Programs {
    /// They can be executed.
    Run,
    /// They cannot: nobody is to bring any.
    Refuse,
}

/// Makes a new tmpfs that is not attached anywhere yet; its root has this mode.
///
/// # Errors
/// fsopen(2), fsconfig(2), fsmount(2).
pub(crate) fn new_tmpfs(mode: &CStr, programs: Programs) -> io::Result<OwnedFd> {
    // SAFETY: a NUL-terminated string and flags; returns a new descriptor.
    let context = own(unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), FSOPEN_CLOEXEC) })?;
    fsconfig(context.as_fd(), FSCONFIG_SET_STRING, Some((c"mode", mode)))?;
    fsconfig(context.as_fd(), FSCONFIG_CMD_CREATE, None)?;
    let attributes = libc::MOUNT_ATTR_NOSUID
        | libc::MOUNT_ATTR_NODEV
        | match programs {
            Programs::Run => 0,
            Programs::Refuse => libc::MOUNT_ATTR_NOEXEC,
        };
    let attributes = attributes as libc::c_uint;
    // SAFETY: a descriptor and two integers; returns a new descriptor.
    own(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, attributes) })
}

/// A copy of the mount at `path`, relative to `directory` if one is given, with what is mounted below it; to be
/// attached elsewhere. Nothing is mounted by automount(8) for that.
///
/// # Errors
/// open_tree(2).
pub(crate) fn clone_tree(directory: Option<BorrowedFd<'_>>, path: &CStr) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE
        | libc::OPEN_TREE_CLOEXEC
        | libc::AT_RECURSIVE as libc::c_uint
        | libc::AT_NO_AUTOMOUNT as libc::c_uint
        | libc::AT_SYMLINK_NOFOLLOW as libc::c_uint;
    // SAFETY: a descriptor, a NUL-terminated string and flags; returns a new descriptor.
    own(unsafe { libc::syscall(libc::SYS_open_tree, raw(directory), path.as_ptr(), flags) })
}

/// Attaches `mount` at `target`, relative to `directory` if one is given, following a symbolic link there.
///
/// # Errors
/// move_mount(2); `ENOENT` if the target does not exist or is a dangling link.
pub(crate) fn attach(
    mount: BorrowedFd<'_>,
    directory: Option<BorrowedFd<'_>>,
    target: &CStr,
) -> io::Result<()> {
    // SAFETY: descriptors, NUL-terminated strings and flags only.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            raw(directory),
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_SYMLINKS,
        )
    })
    .map(drop)
}

/// How far a change of mount attributes goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// This mount only.
    Mount,
    /// It and all below.
    Tree,
}

/// Makes a mount read-only, without devices, setuid programs or programs at all.
///
/// # Errors
/// mount_setattr(2); `ENOSYS` before Linux 5.12.
pub(crate) fn make_read_only(mount: BorrowedFd<'_>, extent: Extent) -> io::Result<()> {
    // SAFETY: all-zero is a valid `mount_attr`: no change.
    let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
    attributes.attr_set =
        libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    let recursive = match extent {
        Extent::Mount => 0,
        Extent::Tree => libc::AT_RECURSIVE,
    };
    // SAFETY: a descriptor, a NUL-terminated string, flags, and `attributes`, which outlives the call, with its
    // size.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            &raw const attributes,
            size_of_val(&attributes),
        )
    })
    .map(drop)
}

fn raw(directory: Option<BorrowedFd<'_>>) -> libc::c_int {
    directory.map_or(libc::AT_FDCWD, |directory| directory.as_raw_fd())
}

fn fsconfig(context: BorrowedFd<'_>, command: libc::c_uint, pair: Option<(&CStr, &CStr)>) -> io::Result<()> {
    let (key, value) = pair.map_or((ptr::null(), ptr::null()), |(key, value)| (key.as_ptr(), value.as_ptr()));
    // SAFETY: key and value are null or NUL-terminated strings that outlive the call, as the command wants.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key, value, 0) }).map(drop)
}

fn own(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = check(result)? as libc::c_int;
    // SAFETY: the system call has just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
