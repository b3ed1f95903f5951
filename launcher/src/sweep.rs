//! Kills everything that runs in a user namespace or in one below it.
//!
//! A process cannot leave its user namespace upwards, so this finds all that CMD started, whoever its parent is
//! by now, and nothing else.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid};

use crate::sys::pidfd;

/// A user namespace, held open: while it is, no other one can get its inode number.
#[derive(Debug)]
pub struct UserNamespace(File);

impl UserNamespace {
    /// The user namespace of a process.
    ///
    /// # Errors
    /// The process is gone, or may not be looked at.
    pub fn of(pid: Pid) -> io::Result<Self> {
        File::open(format!("/proc/{pid}/ns/user")).map(UserNamespace)
    }

    /// Kills with SIGKILL until nobody is left but `spared`, and waits until they are dead. Returns how many there
    /// were.
    ///
    /// # Errors
    /// /proc cannot be read. `EINVAL` if the caller itself is inside.
    pub fn kill_all(&self, spared: Option<Pid>) -> io::Result<usize> {
        let namespace = identity(&self.0)?;
        if is_inside(getpid(), namespace) {
            return Err(Errno::EINVAL.into());
        }
        let mut count = 0;
        loop {
            // Whoever is killed cannot fork any more, so that a round finds only what was forked meanwhile.
            let killed = kill_once(namespace, spared)?;
            if killed.is_empty() {
                return Ok(count);
            }
            count += killed.len();
            for process in killed {
                pidfd::wait_dead(process.as_fd())?;
            }
        }
    }
}

impl AsFd for UserNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for UserNamespace {
    fn from(fd: OwnedFd) -> Self {
        UserNamespace(fd.into())
    }
}

/// Device and inode of a namespace's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NamespaceId {
    device: u64,
    inode: u64,
}

fn kill_once(namespace: NamespaceId, spared: Option<Pid>) -> io::Result<Vec<OwnedFd>> {
    let mut killed = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()).map(Pid::from_raw)
        else {
            continue;
        };
        if Some(pid) == spared {
            continue;
        }
        // Opened first: what is looked at next is this process or nobody.
        let Ok(process) = pidfd::open(pid) else { continue };
        if is_inside(pid, namespace)
            && !pidfd::is_dead(process.as_fd())
            && pidfd::signal(process.as_fd(), Signal::SIGKILL).is_ok()
        {
            killed.push(process);
        }
    }
    Ok(killed)
}

/// Another user's process cannot be looked at, and is not inside.
fn is_inside(pid: Pid, namespace: NamespaceId) -> bool {
    let Ok(mut current) = File::open(format!("/proc/{pid}/ns/user")) else { return false };
    loop {
        if identity(&current).is_ok_and(|found| found == namespace) {
            return true;
        }
        match pidfd::parent_namespace(current.as_fd()) {
            Ok(parent) => current = File::from(parent),
            Err(_) => return false,
        }
    }
}

fn identity(file: &File) -> io::Result<NamespaceId> {
    let metadata = file.metadata()?;
    Ok(NamespaceId { device: metadata.dev(), inode: metadata.ino() })
}
