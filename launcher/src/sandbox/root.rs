//! An empty root: of the host's files the engine keeps sight of /etc and /run, read-only, for resolv.conf(5).
//!
//! # Theory of operation
//! Goal: nothing to read, nothing to write, nothing to execute; but changes of resolv.conf are still seen. The file
//! may be reached through symbolic links that leave /etc and /run, so the links are walked as the kernel does
//! ([`RootPlan`]): those outside are made again in the new root, and the real file comes along with its
//! directory, because managers rename a new file over the old one. Of a directory that is not root's only the
//! file: it may be somebody's home.
//!
//! Who has `CAP_SYS_ADMIN` in its user namespace makes a mount namespace there. Anybody else makes a user
//! namespace of its own as well, with a map of its own id only. Not the child's user namespace: a root in there
//! could trace us. The price is that all power over the child's user namespace is gone, so that somebody else
//! has to guard the child (see [`guard`](crate::guard)). Groups keep their meaning outside (ping sockets depend on
//! them), though they have no number inside.
//!
//! Of /run the runtime directories of users (/run/user) stay out of sight: credentials of other programs lie there.
//!
//! Mounts get propagation slave first: what the host unmounts below /run is unmounted here, and nothing that is
//! done here is seen by the host. There is no /proc and no /dev.

use std::collections::VecDeque;
use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use caps::{CapSet, Capability};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, fstatat, mkdirat};
use nix::unistd::{chdir, fchdir, getegid, geteuid, pivot_root, symlinkat};
use thiserror::Error;

use crate::sys::mount::{Extent, Programs, attach, clone_tree, make_read_only, new_tmpfs};

/// Why there is no empty root; one variant per system call.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RootError {
    /// An own user namespace would take the right to bind ports below 1024 away.
    #[error("CAP_NET_BIND_SERVICE would be lost in a user namespace of our own")]
    LosesBindService,
    /// unshare(2): forbidden, or the limit of namespaces is reached.
    #[error("no namespaces of our own")]
    Unshare(#[source] io::Error),
    /// uid_map, gid_map or setgroups.
    #[error("writing /proc/self/{file} failed")]
    MapIds {
        /// The file.
        file: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// MS_SLAVE.
    #[error("mounts cannot be made slaves")]
    Propagation(#[source] io::Error),
    /// The new root.
    #[error("no tmpfs")]
    Tmpfs(#[source] io::Error),
    /// A copy of a mount.
    #[error("{path:?} cannot be mounted again")]
    Bind {
        /// What was to be seen.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// mount_setattr(2): older than Linux 5.12.
    #[error("mounts cannot be made read-only")]
    ReadOnly(#[source] io::Error),
    /// A directory, file or link in the new root.
    #[error("{path:?} cannot be made in the new root")]
    Make {
        /// The name.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// pivot_root(2): in a chroot, or the root is the initial ramdisk.
    #[error("pivot_root failed")]
    PivotRoot(#[source] io::Error),
    /// The old root could not be detached.
    #[error("the old root cannot be detached")]
    Detach(#[source] io::Error),
}

/// What is there in the new root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootPlan {
    /// Files and directories of the host, read-only.
    pub binds: Vec<PathBuf>,
    /// Symbolic links to make: name and target.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// What is hidden by an empty directory, if it is there.
    pub hidden: Option<PathBuf>,
}

/// Always there.
const BASE: [&str; 2] = ["/etc", "/run"];
/// Runtime directories, which are hidden unless resolv.conf is there.
const PRIVATE: &str = "/run/user";
/// As many symbolic links as the kernel follows.
const MAX_LINKS: usize = 40;

impl RootPlan {
    /// The plan for this machine.
    pub fn collect(resolv_conf: &Path) -> Self {
        let is_roots = |path: &Path| {
            // In a user namespace without a map for it, root is the overflow id.
            fs::metadata(path).is_ok_and(|metadata| [0, 65_534].contains(&metadata.uid()))
        };
        RootPlan::new(resolv_conf, |path| fs::read_link(path).ok(), is_roots)
    }

    /// The plan by facts: where links lead, and whether a directory is root's.
    pub fn new(
        resolv_conf: &Path,
        read_link: impl Fn(&Path) -> Option<PathBuf>,
        is_roots: impl Fn(&Path) -> bool,
    ) -> Self {
        let mut plan = RootPlan {
            binds: BASE.map(PathBuf::from).to_vec(),
            hidden: Some(PRIVATE.into()),
            links: Vec::new(),
        };
        let Some((links, file)) = walk(resolv_conf, read_link) else { return plan };
        if file.starts_with(PRIVATE) {
            plan.hidden = None;
        }
        if !plan.covers(&file) {
            let directory = file.parent().filter(|parent| *parent != Path::new("/") && is_roots(parent));
            plan.binds.push(directory.unwrap_or(&file).to_owned());
        }
        plan.links = links.into_iter().filter(|(name, _)| !plan.covers(name)).collect();
        plan
    }

    fn covers(&self, path: &Path) -> bool {
        self.binds.iter().any(|bind| path.starts_with(bind))
    }
}

/// The symbolic links on the way to a file, and its real path; `None` if they go round.
fn walk(
    path: &Path,
    read_link: impl Fn(&Path) -> Option<PathBuf>,
) -> Option<(Vec<(PathBuf, PathBuf)>, PathBuf)> {
    let mut rest: VecDeque<OsString> = names(path);
    let mut at = PathBuf::from("/");
    let mut links = Vec::new();
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            at.pop();
            continue;
        }
        at.push(name);
        let Some(target) = read_link(&at) else { continue };
        if links.len() == MAX_LINKS {
            return None;
        }
        names(&target).into_iter().rev().for_each(|name| rest.push_front(name));
        links.push((at.clone(), target.clone()));
        match target.is_absolute() {
            true => at = PathBuf::from("/"),
            false => drop(at.pop()),
        }
    }
    Some((links, at))
}

fn names(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name),
        Component::ParentDir => Some(OsStr::new("..")),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    });
    names.map(OsStr::to_owned).collect()
}

/// Changes to the new root. The process has one thread. After a failure the old root is still there, perhaps in
/// namespaces of our own.
pub(super) fn enter(plan: &RootPlan) -> Result<(), RootError> {
    new_namespaces()?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .map_err(|error| RootError::Propagation(error.into()))?;
    let copies = plan.binds.iter().filter_map(|path| copy(path).transpose());
    let copies = copies.collect::<Result<Vec<Copy>, RootError>>()?;
    // On top of `/` no path leads there: were anything to fail, nothing has changed.
    let root = new_tmpfs(c"0755", Programs::Refuse).map_err(RootError::Tmpfs)?;
    attach(root.as_fd(), None, c"/").map_err(RootError::Tmpfs)?;
    copies.into_iter().try_for_each(|copy| copy.place(&root))?;
    plan.hidden.iter().try_for_each(|path| hide(&root, path))?;
    plan.links.iter().try_for_each(|(name, target)| {
        make_parents(&root, name)?;
        symlinkat(target, &root, relative(name)).map_err(make_error(name))
    })?;
    make_read_only(root.as_fd(), Extent::Mount).map_err(RootError::ReadOnly)?;
    fchdir(&root).and_then(|()| pivot_root(".", ".")).map_err(|error| RootError::PivotRoot(error.into()))?;
    // The old root lies on top of the new one now.
    umount2(".", MntFlags::MNT_DETACH)
        .and_then(|()| chdir("/"))
        .map_err(|error| RootError::Detach(error.into()))
}

fn new_namespaces() -> Result<(), RootError> {
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    if has(Capability::CAP_SYS_ADMIN) {
        return unshare(CloneFlags::CLONE_NEWNS).map_err(|error| RootError::Unshare(error.into()));
    }
    if has(Capability::CAP_NET_BIND_SERVICE) {
        return Err(RootError::LosesBindService);
    }
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
        .map_err(|error| RootError::Unshare(error.into()))?;
    let write = |file, text: &str| {
        fs::write(Path::new("/proc/self").join(file), text)
            .map_err(|source| RootError::MapIds { file, source })
    };
    write("setgroups", "deny")?;
    write("uid_map", &format!("{uid} {uid} 1"))?;
    write("gid_map", &format!("{gid} {gid} 1"))
}

/// A read-only copy of a mount, or of a part of it, that is to appear under its old name.
struct Copy {
    path: PathBuf,
    tree: OwnedFd,
    is_directory: bool,
}

/// `None` for what is not there.
fn copy(path: &Path) -> Result<Option<Copy>, RootError> {
    let failed = |source| RootError::Bind { path: path.to_owned(), source };
    let real = match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        real => real.map_err(failed)?,
    };
    let is_directory = real.is_dir();
    let name = CString::new(real.as_os_str().as_bytes()).map_err(|error| failed(error.into()))?;
    let tree = clone_tree(None, &name).map_err(failed)?;
    make_read_only(tree.as_fd(), Extent::Tree).map_err(RootError::ReadOnly)?;
    Ok(Some(Copy { path: path.to_owned(), tree, is_directory }))
}

impl Copy {
    fn place(self, root: &OwnedFd) -> Result<(), RootError> {
        let name = relative(&self.path);
        make_parents(root, &self.path)?;
        match self.is_directory {
            true => make_directory(root, name),
            false => {
                let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
                openat(root, name, flags, Mode::S_IRUSR).map(drop)
            }
        }
        .map_err(make_error(&self.path))?;
        let failed = |source| RootError::Bind { path: self.path.clone(), source };
        let name = CString::new(name.as_os_str().as_bytes()).map_err(|error| failed(error.into()))?;
        attach(self.tree.as_fd(), Some(root.as_fd()), &name).map_err(failed)
    }
}

/// Puts an empty directory in the place of another one, if that is there.
fn hide(root: &OwnedFd, path: &Path) -> Result<(), RootError> {
    let name = relative(path);
    let is_directory = fstatat(root, name, AtFlags::AT_SYMLINK_NOFOLLOW)
        .is_ok_and(|found| found.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits());
    if !is_directory {
        return Ok(());
    }
    let failed = |source| RootError::Bind { path: path.to_owned(), source };
    let empty = new_tmpfs(c"0555", Programs::Refuse).map_err(RootError::Tmpfs)?;
    make_read_only(empty.as_fd(), Extent::Mount).map_err(RootError::ReadOnly)?;
    let name = CString::new(name.as_os_str().as_bytes()).map_err(|error| failed(error.into()))?;
    attach(empty.as_fd(), Some(root.as_fd()), &name).map_err(failed)
}

fn make_parents(root: &OwnedFd, path: &Path) -> Result<(), RootError> {
    let parents: Vec<&Path> = relative(path).ancestors().skip(1).collect();
    let parents = parents.into_iter().rev().filter(|parent| *parent != Path::new(""));
    parents.into_iter().try_for_each(|parent| make_directory(root, parent).map_err(make_error(path)))
}

fn make_directory(root: &OwnedFd, path: &Path) -> nix::Result<()> {
    match mkdirat(root, path, Mode::from_bits_truncate(0o755)) {
        Err(Errno::EEXIST) => Ok(()),
        other => other,
    }
}

fn make_error(path: &Path) -> impl Fn(Errno) -> RootError {
    move |error| RootError::Make { path: path.to_owned(), source: error.into() }
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(links: &[(&str, &str)], homes: &[&str]) -> (Vec<String>, Vec<String>) {
        let read_link = |path: &Path| {
            links.iter().find(|(name, _)| Path::new(name) == path).map(|(_, target)| PathBuf::from(target))
        };
        let is_roots = |path: &Path| !homes.iter().any(|home| Path::new(home) == path);
        let RootPlan { binds, links, .. } = RootPlan::new(Path::new("/etc/resolv.conf"), read_link, is_roots);
        let text = |path: &Path| path.display().to_string();
        let links = links.iter().map(|(name, target)| format!("{} {}", text(name), text(target)));
        (binds.iter().skip(BASE.len()).map(|path| text(path)).collect(), links.collect())
    }

    fn none() -> Vec<String> {
        Vec::new()
    }

    #[test]
    fn a_file_in_etc_or_run_needs_nothing_more() {
        assert_eq!(plan(&[], &[]), (none(), none()));
        let systemd = [("/etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")];
        assert_eq!(plan(&systemd, &[]), (none(), none()));
    }

    #[test]
    fn links_outside_are_made_again() {
        let links = [("/etc/resolv.conf", "/var/run/NetworkManager/resolv.conf"), ("/var/run", "../run")];
        assert_eq!(plan(&links, &[]), (none(), vec!["/var/run ../run".into()]));
    }

    #[test]
    fn a_file_elsewhere_comes_with_its_directory() {
        let links = [("/etc/resolv.conf", "/mnt/wsl/resolv.conf")];
        assert_eq!(plan(&links, &[]), (vec!["/mnt/wsl".into()], none()));
        let through = [
            ("/etc/resolv.conf", "/opt/dns/current/resolv.conf"),
            ("/opt/dns/current", "releases/7"),
            ("/opt/dns/releases/7/resolv.conf", "real"),
        ];
        assert_eq!(
            plan(&through, &[]),
            (vec!["/opt/dns/releases/7".into()], vec!["/opt/dns/current releases/7".into()])
        );
    }

    #[test]
    fn of_a_home_and_of_the_root_only_the_file_comes() {
        let home = [("/etc/resolv.conf", "/home/me/resolv.conf")];
        assert_eq!(plan(&home, &["/home/me"]), (vec!["/home/me/resolv.conf".into()], none()));
        assert_eq!(plan(&[("/etc/resolv.conf", "/resolv.conf")], &[]), (vec!["/resolv.conf".into()], none()));
    }

    #[test]
    fn runtime_directories_are_hidden_unless_the_file_is_there() {
        let hidden = |target: &str| {
            let read_link = |path: &Path| (path == "/etc/resolv.conf").then(|| PathBuf::from(target));
            RootPlan::new(Path::new("/etc/resolv.conf"), read_link, |_| true).hidden
        };
        assert_eq!(hidden("/run/systemd/resolve/resolv.conf"), Some("/run/user".into()));
        assert_eq!(hidden("/run/user/1000/net/resolv.conf"), None);
    }

    #[test]
    fn links_that_go_round_end() {
        assert_eq!(plan(&[("/etc/resolv.conf", "resolv.conf")], &[]), (none(), none()));
    }
}
