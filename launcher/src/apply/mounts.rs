//! Mounts the child's own files, in the child. Nothing is written to a disk but the directories of a node.

use std::ffi::CString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use log::{debug, info, warn};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::symlinkat;

use crate::cli::PropagationArg;
use crate::error::{Failure, Step};
use crate::plan::mounts::{MountPlan, MountStep};
use crate::sys::mount::{Programs, attach, clone_tree, new_tmpfs};

/// Where the cgroup tree is.
const CGROUP: &str = "/sys/fs/cgroup";

/// Makes the child's mounts its own and does the steps of the plan. `network` is the detached network namespace, if there is one.
///
/// # Errors
/// A mount that is needed failed. A file that cannot be covered is a warning.
pub fn apply(plan: &MountPlan, network: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
    let mut cover = None;
    for step in &plan.steps {
        perform(step, &mut cover, network)?;
    }
    cover.map_or(Ok(()), Cover::put_away)
}

fn perform(
    step: &MountStep,
    cover: &mut Option<Cover>,
    network: Option<BorrowedFd<'_>>,
) -> Result<(), Failure> {
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| Failure::new(Step::Mount, path, error)
    };
    let path_of = |path: &Path| c_string(path).map_err(failed(path));
    match step {
        MountStep::Propagation { propagation } => {
            let flags = propagation_flags(*propagation);
            mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
                .map_err(|error| Failure::new(Step::Mount, format!("/ as {propagation}"), error))
        }
        MountStep::Proc => {
            new_file_system("proc", "/proc").map_err(|error| Failure::new(Step::MountProc, "/proc", error))
        }
        MountStep::Sysfs => {
            if let Err(error) = sysfs() {
                info!("/sys stays the host's: {error}");
            }
            Ok(())
        }
        MountStep::Cgroup2 => {
            let mounted = new_file_system("cgroup2", CGROUP).or_else(|error| {
                // The same file system, with another root, is not mounted over itself.
                if error != Errno::EBUSY {
                    return Err(error);
                }
                umount2(CGROUP, MntFlags::MNT_DETACH)?;
                new_file_system("cgroup2", CGROUP)
            });
            if let Err(error) = mounted {
                info!("{CGROUP} stays the host's: {error}");
            }
            Ok(())
        }
        MountStep::CopyUp { directory, leave_out } => copy_up(directory, leave_out)
            .map_err(|error| Failure::new(Step::CopyUp, directory.display().to_string(), error)),
        MountStep::Directory { path } => DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
            .map_err(|error| Failure::new(Step::MakeDirectory, path.display().to_string(), error)),
        MountStep::Bind { source, target } => {
            let clone = clone_tree(None, &path_of(source)?).map_err(failed(source))?;
            attach(clone.as_fd(), None, &path_of(target)?).map_err(failed(target))
        }
        MountStep::Cover { path, text } => {
            let open = match cover.take() {
                Some(open) => open,
                None => Cover::open()?,
            };
            if let Err(error) = open.over(path, text) {
                warn!("cannot mount over {}: {error}; names may not resolve in the child", path.display());
            }
            *cover = Some(open);
            Ok(())
        }
        MountStep::NetworkNamespace { target } => {
            let bind = |network: BorrowedFd<'_>| {
                let source = format!("/proc/self/fd/{}", network.as_raw_fd());
                Ok(mount(Some(source.as_str()), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
            };
            network.map_or(Ok(()), bind).map_err(failed(target))
        }
        MountStep::File { path, text } => replace_file(path, text).map_err(failed(path)),
    }
}

fn propagation_flags(propagation: PropagationArg) -> MsFlags {
    match propagation {
        PropagationArg::Rprivate => MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        PropagationArg::Rslave => MsFlags::MS_REC | MsFlags::MS_SLAVE,
        PropagationArg::Rshared => MsFlags::MS_REC | MsFlags::MS_SHARED,
        PropagationArg::Private => MsFlags::MS_PRIVATE,
        PropagationArg::Slave => MsFlags::MS_SLAVE,
        PropagationArg::Shared => MsFlags::MS_SHARED,
    }
}

/// Mounts a file system of the kernel's; read-only where the one that is seen is so, because the kernel gives nobody more than
/// he sees.
fn new_file_system(kind: &str, target: &str) -> nix::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let make = |flags| mount(Some(kind), target, Some(kind), flags, None::<&str>);
    match make(flags) {
        Err(Errno::EPERM) => make(flags | MsFlags::MS_RDONLY),
        other => other,
    }
}

/// A new sysfs, and the host's cgroups in it.
fn sysfs() -> io::Result<()> {
    let cgroups = clone_tree(None, &c_string(Path::new(CGROUP))?);
    new_file_system("sysfs", "/sys")?;
    // Without cgroups there is nothing to take over.
    cgroups.and_then(|cgroups| attach(cgroups.as_fd(), None, &c_string(Path::new(CGROUP))?)).or_else(
        |error| {
            info!("{CGROUP} is not taken into the child: {error}");
            Ok(())
        },
    )
}

/// Mounts a new directory over an old one: each entry of the old one is mounted there again, and links are made anew.
fn copy_up(directory: &Path, leave_out: &[String]) -> io::Result<()> {
    let old = File::open(directory)?;
    let mode = format!("{:04o}", old.metadata()?.mode() & 0o7777);
    let entries: Vec<fs::DirEntry> = fs::read_dir(directory)?.collect::<Result<_, _>>()?;
    let kept =
        entries.into_iter().filter(|entry| leave_out.iter().all(|name| entry.file_name() != name.as_str()));
    // Looked at while they can be seen.
    let kept: Vec<_> = kept.map(|entry| (entry.file_name(), Entry::of(&entry))).collect();

    let tmpfs = new_tmpfs(&CString::new(mode)?, Programs::Run)?;
    // Entries can be mounted only in what is attached (before Linux 6.15). The old directory is reached by its descriptor.
    attach(tmpfs.as_fd(), None, &c_string(directory)?)?;
    for (name, entry) in kept {
        // An entry that vanished or that nobody may see is left out.
        if let Err(error) = entry.and_then(|entry| entry.take_over(Path::new(&name), &old, &tmpfs)) {
            debug!("{} is not taken into the child: {error}", directory.join(name).display());
        }
    }
    Ok(())
}

/// An entry of a directory that is copied up.
enum Entry {
    Link(PathBuf),
    Directory,
    Other,
}

impl Entry {
    fn of(entry: &fs::DirEntry) -> io::Result<Self> {
        let kind = entry.file_type()?;
        Ok(if kind.is_symlink() {
            Entry::Link(fs::read_link(entry.path())?)
        } else if kind.is_dir() {
            Entry::Directory
        } else {
            Entry::Other
        })
    }

    fn take_over(&self, name: &Path, old: &File, new: &OwnedFd) -> io::Result<()> {
        if let Entry::Link(target) = self {
            return Ok(symlinkat(target, new, name)?);
        }
        let path = c_string(name)?;
        let clone = clone_tree(Some(old.as_fd()), &path)?;
        if let Entry::Directory = self {
            mkdirat(new, name, Mode::from_bits_truncate(0o755))?;
        } else {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            openat(new, name, flags, Mode::from_bits_truncate(0o644))?;
        }
        attach(clone.as_fd(), Some(new.as_fd()), &path)
    }
}

/// A tmpfs that holds the files which cover others.
///
/// It is attached on top of `/` for a moment, because only an attached mount can be cloned (before Linux 6.15); no path leads
/// there. The clones keep it alive.
struct Cover(OwnedFd);

impl Cover {
    fn open() -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::new(Step::Mount, "a tmpfs", error);
        let tmpfs = new_tmpfs(c"0755", Programs::Refuse).map_err(failed)?;
        attach(tmpfs.as_fd(), None, c"/").map_err(failed)?;
        Ok(Cover(tmpfs))
    }

    fn over(&self, path: &Path, text: &str) -> io::Result<()> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        write_file(&self.0, Path::new(name), text)?;
        let clone = clone_tree(Some(self.0.as_fd()), &c_string(Path::new(name))?)?;
        attach(clone.as_fd(), None, &c_string(path)?)
    }

    fn put_away(self) -> Result<(), Failure> {
        let path = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        umount2(path.as_str(), MntFlags::MNT_DETACH)
            .map_err(|error| Failure::new(Step::Mount, "the tmpfs away", error))
    }
}

/// Writes a file that may be there as a link or as somebody else's.
fn replace_file(path: &Path, text: &str) -> io::Result<()> {
    let directory = File::open(path.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    write_file(&directory, Path::new(path.file_name().ok_or(io::ErrorKind::InvalidInput)?), text)
}

fn write_file(directory: &impl AsFd, name: &Path, text: &str) -> io::Result<()> {
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let fd = openat(directory, name, flags, Mode::from_bits_truncate(0o644))?;
    // Whatever the umask: every user of the child reads these.
    fchmod(&fd, Mode::from_bits_truncate(0o644))?;
    File::from(fd).write_all(text.as_bytes())
}

fn c_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}
