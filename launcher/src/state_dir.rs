//! The state directory of an instance, laid out as RootlessKit lays it.
//!
//! # Theory of operation
//! | file | |
//! |---|---|
//! | `lock` | locked (flock(2), exclusive) by the launcher and its guard as long as one of them lives; holds the launcher's process id |
//! | `api.sock` | the control API, mode 0600; takes connections before the instance is ready |
//! | `child_pid` | CMD's process id in decimal; **appears, whole, when the instance is ready**: CMD is about to run, its network and its ports are served |
//! | `node.sock` | the supervisor's control, mode 0600, if the instance is a node |
//! | `netns` | with `--detach-netns`: the network namespace, as those see it who are in CMD's mount namespace |
//! | `resolv.conf`, `hosts` | with `--detach-netns`: how names are resolved in that network |
//! | `entered` | there since somebody joined the instance's namespaces: CMD's end is not the end of everybody inside |
//!
//! The lock is the truth about life: it ends with the launcher and the guard, however they die; a guard that is left
//! alone removes everything. Who finds a directory whose lock is free takes it over and removes what is left in it;
//! who finds it locked reads in `lock` by whom, and waits up to 5 s if that launcher is dead. Somebody who only wants to know whether an instance lives tries a shared lock for a moment, which a starter tells from a
//! living instance, because it can share it.
//!
//! The default place is `$XDG_RUNTIME_DIR/rootless-launch/NAME`, where NAME is the launcher's process id unless
//! given; without a usable `$XDG_RUNTIME_DIR` it is `/tmp/rootless-launch-UID/NAME`. At the end everything is
//! removed: the files, the directory, and the one above if it is the default one and empty. A directory that was
//! given and holds other files stays, with those.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Pid, getegid, geteuid};
use thiserror::Error;

use crate::plan::surroundings::DEFAULT_NODE_NAME;
use crate::sys::pidfd;

/// Why there is no state directory.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StateDirError {
    /// An instance lives there.
    #[error("{path:?} is in use by a running instance{}", by(.pid))]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Its launcher, if the lock file says.
        pid: Option<i32>,
    },
    /// sockaddr_un (unix(7)) is too small for the socket's path.
    #[error(
        "{path:?} is too long: a path of {length} bytes for the API's socket, at most {} fit; use a shorter --state-dir",
        MAX_SOCKET_PATH
    )]
    TooLong {
        /// The directory.
        path: PathBuf,
        /// Bytes of the socket's path.
        length: usize,
    },
    /// Somebody else could change what is in it.
    #[error("{path:?} is not safe: it has to be a directory of yours that nobody else may write to")]
    Unsafe {
        /// The directory.
        path: PathBuf,
    },
    /// mkdir(2).
    #[error("cannot create {path:?}")]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// open(2), flock(2) or write(2) of the lock file.
    #[error("cannot lock {path:?}")]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What a dead instance left cannot be removed.
    #[error("cannot remove {path:?}, which a dead instance left")]
    Clean {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// bind(2) or listen(2) of the API's socket.
    #[error("cannot listen on {path:?}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// child_pid cannot be written.
    #[error("cannot write {path:?}")]
    Publish {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn by(pid: &Option<i32>) -> String {
    pid.map_or_else(String::new, |pid| format!(", process {pid}"))
}

/// The lock's name.
pub const LOCK: &str = "lock";
/// The socket's name.
pub const SOCKET: &str = "api.sock";
/// The name of the socket of a node's supervisor.
pub const NODE_SOCKET: &str = "node.sock";
/// The name of the file that says that an instance is ready.
pub const CHILD_PID: &str = "child_pid";
const CHILD_PID_UNFINISHED: &str = ".child_pid";
const ENTERED: &str = "entered";
/// The name of the file to which a detached network namespace is bound.
pub const NETNS: &str = "netns";
/// What is written beside it.
const NAME_FILES: [&str; 2] = ["resolv.conf", "hosts"];

/// The environment variable that names the state directory to CMD and to clients.
pub const STATE_DIR_VARIABLE: &str = "ROOTLESSKIT_STATE_DIR";
const EUID_VARIABLE: &str = "ROOTLESSKIT_PARENT_EUID";
const EGID_VARIABLE: &str = "ROOTLESSKIT_PARENT_EGID";

/// Longest path of a socket, without the final NUL (unix(7)).
pub const MAX_SOCKET_PATH: usize = 107;

/// Name of an instance: 1 to 64 letters, digits, `-`, `_` and `.`, the first neither `-` nor `.`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceName(String);

impl InstanceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// That of a node which is not given one.
    pub fn node() -> Self {
        InstanceName(DEFAULT_NODE_NAME.to_owned())
    }
}

impl From<Pid> for InstanceName {
    fn from(pid: Pid) -> Self {
        InstanceName(pid.to_string())
    }
}

impl FromStr for InstanceName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let is_name =
            (1..=64).contains(&text.len()) && text.bytes().all(fits) && !text.starts_with(['-', '.']);
        match is_name {
            true => Ok(InstanceName(text.to_owned())),
            false => Err("1 to 64 letters, digits, - _ and . are allowed, and - or . not in front"),
        }
    }
}

/// Which directory an instance gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// This one.
    Given(PathBuf),
    /// The one of this name below [`base`].
    Named(InstanceName),
}

impl Place {
    /// From `--state-dir` and `--name`.
    pub fn new(directory: Option<&Path>, name: Option<&InstanceName>) -> Self {
        match (directory, name) {
            (Some(directory), _) => Place::Given(directory.to_owned()),
            (None, Some(name)) => Place::Named(name.clone()),
            (None, None) => Place::Named(Pid::this().into()),
        }
    }

    /// The directory's absolute path.
    pub fn path(&self) -> PathBuf {
        match self {
            // Fails only for an empty path or without a working directory; then opening it says so.
            Place::Given(path) => std::path::absolute(path).unwrap_or_else(|_| path.clone()),
            Place::Named(name) => base().join(name.as_str()),
        }
    }
}

/// The directory that holds the state directories of all instances that were not given one.
pub fn base() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    base_in(runtime.as_deref(), Path::new("/tmp"))
}

/// A runtime directory that is relative or somebody else's does not count (XDG Base Directory Specification).
fn base_in(runtime: Option<&Path>, temporary: &Path) -> PathBuf {
    let is_ours = |path: &&Path| {
        path.is_absolute() && path.metadata().is_ok_and(|found| found.is_dir() && found.uid() == uid())
    };
    match runtime.filter(is_ours) {
        Some(runtime) => runtime.join("rootless-launch"),
        None => temporary.join(format!("rootless-launch-{}", uid())),
    }
}

/// A state directory that is ours; dropping it removes it.
///
/// A process that was forked meanwhile and lets go of its copy by ending, not by dropping, changes nothing.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Removed at the end if it is empty.
    base: Option<PathBuf>,
    lock: Flock<File>,
    /// Of a node's data directory.
    data: Option<Flock<File>>,
}

impl StateDir {
    /// Makes the directory, or takes it over from a dead instance.
    ///
    /// # Errors
    /// An instance lives there, or the directory cannot be had.
    pub fn open(place: &Place) -> Result<Self, StateDirError> {
        let base = match place {
            Place::Given(_) => None,
            Place::Named(_) => Some(base()),
        };
        StateDir::open_at(place.path(), base)
    }

    fn open_at(path: PathBuf, base: Option<PathBuf>) -> Result<Self, StateDirError> {
        let length = path.join(SOCKET).as_os_str().len();
        if length > MAX_SOCKET_PATH {
            return Err(StateDirError::TooLong { path, length });
        }
        let lock = StateDir::make_and_lock(&path, base.as_deref())?;
        let directory = StateDir { path, base, lock, data: None };
        directory.clean()?;
        Ok(directory)
    }

    /// Locks the data directory of a node, which is made if it is missing, for as long as this lives: two instances would spoil each
    /// other's data.
    ///
    /// # Errors
    /// An instance uses it, or it cannot be had.
    pub fn lock_data(&mut self, path: &Path) -> Result<(), StateDirError> {
        self.data = Some(StateDir::make_and_lock(path, None)?);
        Ok(())
    }

    /// Its locks, which hold as long as any process has their descriptors.
    pub fn locks(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(&self.lock).chain(&self.data).map(|lock| lock.as_fd())
    }

    /// Begins anew as long as others end, or look, in the same moment.
    fn make_and_lock(path: &Path, base: Option<&Path>) -> Result<Flock<File>, StateDirError> {
        let (mut attempts, since) = (0, Instant::now());
        loop {
            attempts += 1;
            let above = match base {
                Some(base) => make(base),
                None => make_parents(path),
            };
            match above.and_then(|()| make(path)).and_then(|()| lock(path)) {
                Ok(Some(lock)) => return Ok(lock),
                Ok(None) if attempts < MAX_ATTEMPTS => {}
                Ok(None) => {
                    let source = io::ErrorKind::ResourceBusy.into();
                    return Err(StateDirError::Lock { path: path.join(LOCK), source });
                }
                // Its guard still tidies up; it does not take long, and tells nobody when it is done.
                Err(StateDirError::InUse { pid: Some(pid), .. })
                    if is_dead(Pid::from_raw(pid)) && since.elapsed() < MAX_TIDYING =>
                {
                    std::thread::sleep(TIDYING_LOOK);
                }
                Err(StateDirError::Create { source, .. })
                    if source.kind() == io::ErrorKind::NotFound && attempts < MAX_ATTEMPTS => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the API's socket, which takes connections from now on.
    ///
    /// # Errors
    /// socket(2), bind(2), listen(2).
    pub fn listen(&self) -> Result<UnixListener, StateDirError> {
        let path = self.path.join(SOCKET);
        listen_at(&path).map_err(|source| StateDirError::Listen { path, source })
    }

    /// Says that the instance is ready, and that CMD is this process.
    ///
    /// # Errors
    /// open(2), write(2), rename(2).
    pub fn publish(&self, child: Pid) -> Result<(), StateDirError> {
        let path = self.path.join(CHILD_PID);
        let unfinished = self.path.join(CHILD_PID_UNFINISHED);
        let written = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(&unfinished)?;
            file.write_all(child.to_string().as_bytes())?;
            fs::rename(&unfinished, &path)
        };
        written().map_err(|source| StateDirError::Publish { path: path.clone(), source })
    }

    /// Makes the file to which a detached network namespace is to be bound.
    ///
    /// # Errors
    /// open(2).
    pub fn make_netns(&self) -> Result<(), StateDirError> {
        let path = self.path.join(NETNS);
        let made = OpenOptions::new().write(true).create_new(true).mode(0o444).open(&path);
        made.map(drop).map_err(|source| StateDirError::Create { path, source })
    }

    /// The file that is there once somebody has joined the instance's namespaces.
    pub fn entered(&self) -> PathBuf {
        self.path.join(ENTERED)
    }

    /// What CMD's environment says about this directory and the caller, as RootlessKit does it.
    pub fn environment(&self) -> [(&'static str, std::ffi::OsString); 3] {
        environment(&self.path)
    }

    fn clean(&self) -> Result<(), StateDirError> {
        let ours = [CHILD_PID, CHILD_PID_UNFINISHED, ENTERED, SOCKET, NODE_SOCKET, NETNS];
        for name in ours.into_iter().chain(NAME_FILES) {
            let path = self.path.join(name);
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(StateDirError::Clean { path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// A Unix socket that takes connections of nobody but its owner; does not block.
///
/// # Errors
/// socket(2), bind(2), listen(2); `ENAMETOOLONG` for a path that does not fit.
pub(crate) fn listen_at(path: &Path) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // Linux makes the file with the mode that the socket has.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&socket, Backlog::MAXCONN)?;
    Ok(UnixListener::from(socket))
}

/// What CMD's environment says about a state directory and the caller.
pub fn environment(path: &Path) -> [(&'static str, std::ffi::OsString); 3] {
    [
        (STATE_DIR_VARIABLE, path.into()),
        (EUID_VARIABLE, geteuid().to_string().into()),
        (EGID_VARIABLE, getegid().to_string().into()),
    ]
}

impl StateDir {
    /// Removes it. For whoever is left when its owner is gone without dropping it.
    pub fn remove(&self) {
        if let Err(error) = self.clean() {
            log::warn!("{error}");
        }
        // The lock goes last, while it is held: whoever waits for it sees that it is not the one of this name.
        let _ = fs::remove_file(self.path.join(LOCK));
        // Stays if there are files of others.
        let _ = fs::remove_dir(&self.path);
        if let Some(base) = &self.base {
            let _ = fs::remove_dir(base);
        }
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        self.remove();
    }
}

/// An instance that lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Its name: the last part of its directory.
    pub name: String,
    /// Its directory.
    pub path: PathBuf,
    /// Its launcher.
    pub launcher: Option<Pid>,
    /// CMD; none while the instance is not ready.
    pub child: Option<Pid>,
}

impl Instance {
    /// The instance of a directory, if one lives there.
    pub fn at(path: &Path) -> Option<Instance> {
        let file = File::open(path.join(LOCK)).ok()?;
        let launcher = read_pid(&file);
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Err((_, Errno::EWOULDBLOCK)) => {}
            _ => return None,
        }
        let child = File::open(path.join(CHILD_PID)).ok().and_then(|file| read_pid(&file));
        let name = path.file_name()?.to_string_lossy().into_owned();
        Some(Instance { name, path: path.to_owned(), launcher, child })
    }

    /// Says that somebody is about to join its namespaces, who is to end with it.
    ///
    /// # Errors
    /// open(2).
    pub fn announce_entry(&self) -> io::Result<()> {
        let options = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).clone();
        options.open(self.path.join(ENTERED)).map(drop)
    }

    /// Every instance below [`base`], by name.
    pub fn all() -> Vec<Instance> {
        Instance::all_in(&base())
    }

    fn all_in(base: &Path) -> Vec<Instance> {
        // In /tmp anybody may have made it, and whoever enters an instance trusts it.
        if check(base).is_err() {
            return Vec::new();
        }
        let entries = fs::read_dir(base).into_iter().flatten().flatten();
        let mut found: Vec<_> = entries.filter_map(|entry| Instance::at(&entry.path())).collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    /// Its API's socket.
    pub fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }

    /// Its supervisor's socket; there if it is a node.
    pub fn node_socket(&self) -> PathBuf {
        self.path.join(NODE_SOCKET)
    }
}

const MAX_ATTEMPTS: u32 = 1000;
/// Longest wait for the processes that a launcher has left behind when it was killed.
const MAX_TIDYING: Duration = Duration::from_secs(5);
const TIDYING_LOOK: Duration = Duration::from_millis(5);

/// Whether a process runs no more; one that is not reaped yet does not.
fn is_dead(process: Pid) -> bool {
    match pidfd::open(process) {
        Err(error) => error.raw_os_error() == Some(libc::ESRCH),
        Ok(process) => pidfd::is_dead(process.as_fd()),
    }
}

fn make_parents(path: &Path) -> Result<(), StateDirError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    let made = DirBuilder::new().mode(0o700).recursive(true).create(parent);
    made.map_err(|source| StateDirError::Create { path: parent.to_owned(), source })
}

/// Makes a directory for its owner only, or checks that the one that is there belongs to us and to nobody else.
fn make(path: &Path) -> Result<(), StateDirError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => check(path),
        Err(source) => Err(StateDirError::Create { path: path.to_owned(), source }),
    }
}

fn check(path: &Path) -> Result<(), StateDirError> {
    let is_safe = |found: fs::Metadata| found.is_dir() && found.uid() == uid() && found.mode() & 0o022 == 0;
    match path.symlink_metadata() {
        Ok(found) if is_safe(found.clone()) => Ok(()),
        // It has gone: the next attempt makes it.
        Err(source) if source.kind() == io::ErrorKind::NotFound => {
            Err(StateDirError::Create { path: path.to_owned(), source })
        }
        _ => Err(StateDirError::Unsafe { path: path.to_owned() }),
    }
}

/// Locks the lock file of a directory. Nothing if it is removed meanwhile: then everything begins anew.
fn lock(directory: &Path) -> Result<Option<Flock<File>>, StateDirError> {
    let path = directory.join(LOCK);
    let failed = |source: io::Error| StateDirError::Lock { path: path.clone(), source };
    let opened =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let locked = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(locked) => locked,
        Err((file, Errno::EWOULDBLOCK)) => {
            let pid = read_pid(&file).map(Pid::as_raw);
            return match Flock::lock(file, FlockArg::LockSharedNonblock) {
                // Somebody only looks.
                Ok(_) => Ok(None),
                Err(_) => Err(StateDirError::InUse { path: directory.to_owned(), pid }),
            };
        }
        Err((_, error)) => return Err(failed(error.into())),
    };
    let (ours, named) = (locked.metadata().map_err(failed)?, path.symlink_metadata());
    if !named.is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino())) {
        return Ok(None);
    }
    locked.set_len(0).map_err(failed)?;
    (&*locked).write_all(format!("{}\n", std::process::id()).as_bytes()).map_err(failed)?;
    Ok(Some(locked))
}

fn read_pid(file: &File) -> Option<Pid> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok().filter(|&pid| pid > 0).map(Pid::from_raw)
}

fn uid() -> u32 {
    geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A directory that goes with the test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("rl-state-{}-{number}", std::process::id()));
            DirBuilder::new().mode(0o700).create(&path).unwrap();
            Scratch(path)
        }

        fn open(&self, name: &str) -> Result<StateDir, StateDirError> {
            let base = self.0.join("base");
            StateDir::open_at(base.join(name), Some(base))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn everything_is_private_and_goes_at_the_end() {
        let scratch = Scratch::new();
        let directory = scratch.open("a").unwrap();
        let listener = directory.listen().unwrap();
        let path = directory.path().to_owned();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o700, 0o700));
        assert_eq!(mode(&path.join(SOCKET)), 0o600);
        UnixStream::connect(path.join(SOCKET)).unwrap();
        assert!(!path.join(CHILD_PID).exists());
        directory.publish(Pid::from_raw(77)).unwrap();
        assert_eq!(fs::read_to_string(path.join(CHILD_PID)).unwrap(), "77");
        assert_eq!(mode(&path.join(CHILD_PID)), 0o444);
        drop((directory, listener));
        assert!(!scratch.0.join("base").exists());
    }

    #[test]
    fn a_living_instance_is_named_and_left_alone() {
        let scratch = Scratch::new();
        let first = scratch.open("a").unwrap();
        first.publish(Pid::from_raw(77)).unwrap();
        let error = scratch.open("a").unwrap_err();
        let expected = format!("in use by a running instance, process {}", std::process::id());
        assert!(error.to_string().ends_with(&expected), "{error}");
        let _second = scratch.open("b").unwrap();
        let all = Instance::all_in(&scratch.0.join("base"));
        let found: Vec<_> = all.iter().map(|found| (found.name.as_str(), found.child)).collect();
        assert_eq!(found, [("a", Some(Pid::from_raw(77))), ("b", None)]);
        assert_eq!(all[0].launcher, Some(Pid::this()));
    }

    #[test]
    fn what_a_dead_instance_left_is_taken_over() {
        let scratch = Scratch::new();
        let path = scratch.0.join("base/a");
        DirBuilder::new().mode(0o700).recursive(true).create(&path).unwrap();
        fs::write(path.join(LOCK), "1\n").unwrap();
        fs::write(path.join(CHILD_PID), "2").unwrap();
        drop(UnixListener::bind(path.join(SOCKET)).unwrap());
        assert_eq!(Instance::at(&path), None);
        let directory = scratch.open("a").unwrap();
        assert!(!path.join(CHILD_PID).exists());
        assert_eq!(fs::read_to_string(path.join(LOCK)).unwrap(), format!("{}\n", std::process::id()));
        directory.listen().unwrap();
    }

    #[test]
    fn a_given_directory_with_other_files_stays() {
        let scratch = Scratch::new();
        let path = scratch.0.join("deep/given");
        drop(StateDir::open_at(path.clone(), None).unwrap());
        assert!(!path.exists());
        fs::create_dir(&path).unwrap();
        fs::write(path.join("notes"), "").unwrap();
        drop(StateDir::open_at(path.clone(), None).unwrap());
        let left: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["notes"]);
    }

    #[test]
    fn what_others_may_write_to_is_refused() {
        let scratch = Scratch::new();
        let path = scratch.0.join("given");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        let opened = StateDir::open_at(path.clone(), None);
        assert!(matches!(opened, Err(StateDirError::Unsafe { .. })), "{opened:?}");
        let link = scratch.0.join("link");
        std::os::unix::fs::symlink(&scratch.0, &link).unwrap();
        let opened = StateDir::open_at(link.join("x"), Some(link));
        assert!(matches!(opened, Err(StateDirError::Unsafe { .. })), "{opened:?}");
    }

    #[test]
    fn instances_of_others_are_not_found() {
        let scratch = Scratch::new();
        let _instance = scratch.open("a").unwrap();
        let base = scratch.0.join("base");
        assert_eq!(Instance::all_in(&base).len(), 1);
        fs::set_permissions(&base, fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(Instance::all_in(&base), []);
        let link = scratch.0.join("link");
        std::os::unix::fs::symlink(&base, &link).unwrap();
        assert_eq!(Instance::all_in(&link), []);
    }

    #[test]
    fn paths_fit_the_sockets_address() {
        let scratch = Scratch::new();
        let room = MAX_SOCKET_PATH - scratch.0.as_os_str().len() - "/".len() - "/api.sock".len();
        let longest = StateDir::open_at(scratch.0.join("x".repeat(room)), None).unwrap();
        longest.listen().unwrap();
        let error = StateDir::open_at(scratch.0.join("x".repeat(room + 1)), None).unwrap_err();
        assert!(matches!(error, StateDirError::TooLong { length: 108, .. }), "{error}");
    }

    #[test]
    fn many_may_look_end_and_start_at_once() {
        let scratch = Scratch::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        match scratch.open("a") {
                            Ok(directory) => drop(directory.listen().unwrap()),
                            Err(StateDirError::InUse { .. }) => {}
                            Err(error) => panic!("{error:?}"),
                        }
                        Instance::all_in(&scratch.0.join("base"));
                    }
                });
            }
        });
        drop(scratch.open("a").unwrap());
    }

    #[test]
    fn only_a_runtime_directory_of_ours_counts() {
        let scratch = Scratch::new();
        let temporary = Path::new("/tmp");
        assert_eq!(base_in(Some(&scratch.0), temporary), scratch.0.join("rootless-launch"));
        let fallback = temporary.join(format!("rootless-launch-{}", uid()));
        assert_eq!(base_in(Some(Path::new("relative")), temporary), fallback);
        assert_eq!(base_in(Some(&scratch.0.join("gone")), temporary), fallback);
        assert_eq!(base_in(None, temporary), fallback);
    }

    #[test]
    fn names_are_parts_of_a_path() {
        for name in ["a", "k3s-1", "A_b.c", "1234"] {
            assert_eq!(name.parse::<InstanceName>().unwrap().as_str(), name);
        }
        for name in ["", ".", "..", "-a", ".a", "a/b", "a b", "\u{e4}", &"x".repeat(65)] {
            assert!(name.parse::<InstanceName>().is_err(), "{name}");
        }
    }
}
