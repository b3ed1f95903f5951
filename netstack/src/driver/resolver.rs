//! The host's DNS servers: reads resolv.conf(5) and notices when it changes.
//!
//! # Theory of operation
//! Goal: the child asks the servers that the host asks now, whatever manager rewrites the file. Managers do
//! it in three ways: write in place (dhclient, Docker), rename a new file over the old one (NetworkManager),
//! or swap the symlink (`/etc/resolv.conf` -> `../run/systemd/resolve/stub-resolv.conf`). A watch on a file
//! sees the first only, for it follows the inode. So [`ResolverWatch`] walks the path as the kernel does and
//! watches, with inotify(7), each directory that holds a symlink of the path, the directory of the file, and
//! the file itself (of a bind-mounted file the directory sees nothing). Where a part of the path is missing,
//! the directory that would hold it is watched. After each change the path is walked again.
//!
//! The paths are walked anew after each change, from the root of the process. A process that goes into an empty root
//! afterwards has to have the [`directories`] at the same places there, as bind mounts: what is watched is inodes, and
//! those are the same. Descriptors of the directories are not kept for that: they would lead out of the new root.
//!
//! Not handled: the move of a directory further up a path; `ndots` and the other options, which are the
//! child's own business; `/etc/nsswitch.conf`.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::{fs, io};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use crate::dns::message::wire_name;

/// What a forwarder wants to know of resolv.conf(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvConf {
    /// The servers in order, without repetition, 1..=[`MAX_SERVERS`], port 53.
    pub servers: Vec<SocketAddr>,
    /// The search list; each entry is a DNS name without final dot.
    pub search: Vec<String>,
}

/// Servers that are taken from the file. glibc asks the first three, but others know more of them.
pub const MAX_SERVERS: usize = 8;

/// Reads `path`. A missing file is an empty one, as resolv.conf(5) says: the server is 127.0.0.1.
///
/// # Errors
/// Whatever else reading the file gives.
pub fn read_resolv_conf(path: &Path) -> io::Result<ResolvConf> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        result => result?,
    };
    Ok(parse_resolv_conf(&String::from_utf8_lossy(&bytes), interface_index))
}

/// Reads the text of a resolv.conf. Lines and values that make no sense are passed over, as resolvers do;
/// `scope_id` gives the index of an interface, for `nameserver fe80::1%eth0`.
pub fn parse_resolv_conf(text: &str, scope_id: impl Fn(&str) -> Option<u32>) -> ResolvConf {
    let mut servers = Vec::new();
    let mut search = Vec::new();
    for line in text.lines() {
        // The keyword starts the line; a comment ends it.
        let line = line.split([';', '#']).next().unwrap_or_default();
        if line.starts_with([' ', '\t']) {
            continue;
        }
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("nameserver") => {
                let Some(server) = words.next().and_then(|word| parse_server(word, &scope_id)) else {
                    continue;
                };
                if servers.len() < MAX_SERVERS && !servers.contains(&server) {
                    servers.push(server);
                }
            }
            // The two exclude each other, the last one counts.
            Some("search") => search = words.filter_map(search_domain).collect(),
            Some("domain") => search = words.take(1).filter_map(search_domain).collect(),
            _ => {}
        }
    }
    if servers.is_empty() {
        servers.push(SocketAddr::from((Ipv4Addr::LOCALHOST, DNS_PORT)));
    }
    ResolvConf { servers, search }
}

/// The directories that `path` and the symlinks of its last parts lead through: where a change of the file shows,
/// and what has to stay in reach for it to be read again. In the order of the walk, each once.
///
/// # Errors
/// The path is empty, or there is no current directory.
pub fn directories(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut directories = Vec::new();
    for point in watch_points(&std::path::absolute(path)?) {
        if let WatchPoint::Entry { directory, .. } = point
            && !directories.contains(&directory)
        {
            directories.push(directory);
        }
    }
    Ok(directories)
}

/// Watches a resolv.conf for change. Never blocks.
#[derive(Debug)]
pub struct ResolverWatch {
    path: PathBuf,
    inotify: Inotify,
    watches: Vec<(WatchDescriptor, WatchPoint)>,
}

/// What is watched for one part of the path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum WatchPoint {
    /// An entry of a directory, existing or not.
    Entry { directory: PathBuf, name: OsString },
    /// The file at the end of the path.
    File(PathBuf),
}

impl ResolverWatch {
    /// Watches `path` and what its symlinks lead to. Nothing needs to exist yet.
    ///
    /// # Errors
    /// No inotify instance or watch is left (`fs.inotify.max_user_instances`, `max_user_watches`).
    pub fn new(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let mut watch = ResolverWatch { path, inotify, watches: Vec::new() };
        watch.arm()?;
        Ok(watch)
    }

    /// Takes all events; `true` asks to read the file again. May be `true` without need, never `false` after
    /// a change. With edge-triggered polling one call per edge is enough.
    ///
    /// # Errors
    /// As [`new`](Self::new); the watch stays usable.
    pub fn read_changes(&mut self) -> io::Result<bool> {
        let mut changed = false;
        loop {
            match self.inotify.read_events() {
                Ok(events) => changed |= events.iter().any(|event| self.concerns_us(event)),
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if changed {
            self.arm()?;
        }
        Ok(changed)
    }

    fn concerns_us(&self, event: &InotifyEvent) -> bool {
        // The queue overflowed: anything may have happened.
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return true;
        }
        self.watches.iter().filter(|(descriptor, _)| *descriptor == event.wd).any(|(_, point)| match point {
            // No name: the directory itself was deleted or moved.
            WatchPoint::Entry { name, .. } => event.name.as_ref().is_none_or(|changed| changed == name),
            WatchPoint::File(_) => true,
        })
    }

    /// Walks the path and watches what it finds. A change between walk and watch would go unseen, so the
    /// walk is repeated until the watches were there before it.
    fn arm(&mut self) -> io::Result<()> {
        let mut stale: Vec<WatchDescriptor> =
            self.watches.iter().map(|&(descriptor, _)| descriptor).collect();
        let mut points = watch_points(&self.path);
        for _ in 0..ARM_ATTEMPTS {
            stale.extend(self.watches.drain(..).map(|(descriptor, _)| descriptor));
            for point in &points {
                match self.inotify.add_watch(point.path(), point.mask()) {
                    Ok(descriptor) => self.watches.push((descriptor, point.clone())),
                    // Gone again, or not for our eyes: the other watches still help.
                    Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES | Errno::ELOOP) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            let walked = std::mem::replace(&mut points, watch_points(&self.path));
            if walked == points {
                break;
            }
        }
        stale.sort_unstable();
        stale.dedup();
        for descriptor in stale {
            if self.watches.iter().all(|&(used, _)| used != descriptor) {
                // It fails where the watched inode is gone, and the watch with it.
                let _ = self.inotify.rm_watch(descriptor);
            }
        }
        Ok(())
    }
}

impl AsFd for ResolverWatch {
    /// Readable when [`read_changes`](ResolverWatch::read_changes) has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

impl WatchPoint {
    fn path(&self) -> &Path {
        match self {
            WatchPoint::Entry { directory, .. } => directory,
            WatchPoint::File(path) => path,
        }
    }

    fn mask(&self) -> AddWatchFlags {
        let content = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_ATTRIB;
        let itself = AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF;
        let entries = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVE;
        match self {
            WatchPoint::Entry { .. } => content | itself | entries | AddWatchFlags::IN_ONLYDIR,
            WatchPoint::File(_) => content | itself | AddWatchFlags::IN_DONT_FOLLOW,
        }
    }
}

/// Walks an absolute path as path_resolution(7) does and says where a change of its outcome would show.
fn watch_points(path: &Path) -> Vec<WatchPoint> {
    let parts =
        |path: &Path| path.components().map(|part| part.as_os_str().to_owned()).collect::<VecDeque<_>>();
    let mut points = Vec::new();
    let mut links = 0;
    let mut directory = PathBuf::from("/");
    let mut rest = parts(path);
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            directory.pop();
            continue;
        }
        // An absolute target starts anew, for joining "/" gives "/".
        let entry = directory.join(&name);
        let metadata = fs::symlink_metadata(&entry).ok();
        if metadata.as_ref().is_some_and(fs::Metadata::is_dir) {
            directory = entry;
            continue;
        }
        points.push(WatchPoint::Entry { directory: directory.clone(), name });
        let is_link = metadata.as_ref().is_some_and(fs::Metadata::is_symlink);
        match fs::read_link(&entry) {
            Ok(target) if is_link && links < MAX_LINKS => {
                links += 1;
                let mut walk = parts(&target);
                walk.append(&mut rest);
                rest = walk;
            }
            _ => {
                points.extend(metadata.filter(fs::Metadata::is_file).map(|_| WatchPoint::File(entry)));
                break;
            }
        }
    }
    points
}

/// An address, for IPv6 with `%interface` or `%index` where it needs one.
fn parse_server(word: &str, scope_id: impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    let Some((address, scope)) = word.split_once('%') else {
        return Some(SocketAddr::new(word.parse::<IpAddr>().ok()?, DNS_PORT));
    };
    let address: Ipv6Addr = address.parse().ok()?;
    let scope = scope.parse().ok().or_else(|| scope_id(scope))?;
    Some(SocketAddrV6::new(address, DNS_PORT, 0, scope).into())
}

/// `None` for the root and for what is not a DNS name.
fn search_domain(word: &str) -> Option<String> {
    wire_name(word)?;
    Some(word.strip_suffix('.').unwrap_or(word).to_owned())
}

fn interface_index(name: &str) -> Option<u32> {
    if_nametoindex(name).ok()
}

const DNS_PORT: u16 = 53;
/// As the kernel's MAXSYMLINKS.
const MAX_LINKS: usize = 40;
/// Walks until the path holds still; who swaps it faster than that gets an event anyway.
const ARM_ATTEMPTS: usize = 8;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn parse(text: &str) -> ResolvConf {
        parse_resolv_conf(text, |name| (name == "eth0").then_some(7))
    }

    fn servers(text: &str) -> Vec<String> {
        parse(text).servers.iter().map(SocketAddr::to_string).collect()
    }

    // === the text ===

    #[test]
    fn servers_are_read_in_order_with_tabs_comments_and_repetitions() {
        let text = "# by hand\n; also a comment\nnameserver\t10.0.0.1\nnameserver 10.0.0.2 # second\r\n\
                    nameserver 10.0.0.1\nnameserver   2001:db8::1;x\nNAMESERVER 10.0.0.9\n nameserver 10.0.0.8\n\
                    nameserver nonsense\nnameserver\nnameserverx 10.0.0.7\noptions ndots:5\n";
        assert_eq!(servers(text), ["10.0.0.1:53", "10.0.0.2:53", "[2001:db8::1]:53"]);
    }

    #[test]
    fn link_local_servers_keep_their_interface() {
        let text = "nameserver fe80::1%eth0\nnameserver fe80::2%3\nnameserver fe80::3%gone\nnameserver 10.0.0.1%eth0";
        assert_eq!(servers(text), ["[fe80::1%7]:53", "[fe80::2%3]:53"]);
    }

    #[test]
    fn without_servers_the_local_machine_is_asked() {
        assert_eq!(servers(""), ["127.0.0.1:53"]);
        assert_eq!(servers("search example.org\nnameserver x"), ["127.0.0.1:53"]);
    }

    #[test]
    fn at_most_eight_servers_are_taken() {
        let text: String = (1..=20).map(|n| format!("nameserver 10.0.0.{n}\n")).collect();
        assert_eq!(servers(&text).len(), MAX_SERVERS);
    }

    #[test]
    fn the_last_of_search_and_domain_counts() {
        assert_eq!(parse("domain a.org\nsearch b.org\tc.org. . x..y").search, ["b.org", "c.org"]);
        assert_eq!(parse("search b.org c.org\ndomain a.org ignored").search, ["a.org"]);
    }

    #[test]
    fn a_missing_file_is_an_empty_one() {
        let dir = TempDir::new();
        assert_eq!(read_resolv_conf(&dir.path("none")).unwrap(), parse(""));
    }

    #[test]
    fn the_directories_are_those_of_the_links_and_of_the_file() {
        let dir = TempDir::new();
        for name in ["etc", "run", "run/resolve", "mnt"] {
            fs::create_dir(dir.path(name)).unwrap();
        }
        symlink("../run/resolv.conf", dir.path("etc/resolv.conf")).unwrap();
        symlink(dir.path("mnt/conf"), dir.path("run/resolv.conf")).unwrap();
        fs::write(dir.path("mnt/conf"), "").unwrap();
        let found = directories(&dir.path("etc/resolv.conf")).unwrap();
        assert_eq!(found, ["etc", "run", "mnt"].map(|name| dir.path(name)));
    }

    // === the watch ===

    #[test]
    fn writing_in_place_is_seen() {
        let dir = TempDir::new();
        let mut host = Host::with_file(&dir);
        host.expect_change("nameserver 10.0.0.2", |path| fs::write(path, "nameserver 10.0.0.2").unwrap());
    }

    #[test]
    fn atomic_renames_are_seen_again_and_again() {
        let dir = TempDir::new();
        let mut host = Host::with_file(&dir);
        for text in ["nameserver 10.0.0.2", "nameserver 10.0.0.3", "nameserver 10.0.0.4"] {
            host.expect_change(text, |path| replace(path, text));
        }
    }

    #[test]
    fn a_swapped_symlink_is_seen_and_its_target_followed() {
        let dir = TempDir::new();
        fs::create_dir_all(dir.path("run/resolve")).unwrap();
        fs::write(dir.path("run/resolve/stub.conf"), "nameserver 127.0.0.53").unwrap();
        let mut host = Host::with_file(&dir);
        // From file to symlink, relative and across directories.
        host.expect_change("nameserver 127.0.0.53", |path| {
            symlink("../run/resolve/stub.conf", dir.path("etc/new")).unwrap();
            fs::rename(dir.path("etc/new"), path).unwrap();
        });
        // The target changes behind the symlink.
        host.expect_change("nameserver 10.1.1.1", |_| {
            replace(&dir.path("run/resolve/stub.conf"), "nameserver 10.1.1.1")
        });
        // From one symlink to another one.
        fs::write(dir.path("run/other.conf"), "nameserver 10.2.2.2").unwrap();
        host.expect_change("nameserver 10.2.2.2", |path| {
            symlink(dir.path("run/other.conf"), dir.path("etc/new")).unwrap();
            fs::rename(dir.path("etc/new"), path).unwrap();
        });
        // And back to a file.
        host.expect_change("nameserver 10.3.3.3", |path| replace(path, "nameserver 10.3.3.3"));
        host.expect_change("nameserver 10.4.4.4", |path| replace(path, "nameserver 10.4.4.4"));
    }

    #[test]
    fn a_symlinked_directory_may_be_swapped() {
        let dir = TempDir::new();
        for (name, text) in [("a", "nameserver 10.0.0.1"), ("b", "nameserver 10.0.0.2")] {
            fs::create_dir(dir.path(name)).unwrap();
            fs::write(dir.path(name).join("resolv.conf"), text).unwrap();
        }
        symlink("a", dir.path("current")).unwrap();
        let mut host = Host::new(dir.path("current/resolv.conf"));
        host.expect_change("nameserver 10.0.0.2", |_| {
            symlink("b", dir.path("new")).unwrap();
            fs::rename(dir.path("new"), dir.path("current")).unwrap();
        });
    }

    #[test]
    fn a_path_that_does_not_exist_yet_is_seen_to_come() {
        let dir = TempDir::new();
        let mut host = Host::new(dir.path("etc/deep/resolv.conf"));
        host.expect_change("nameserver 10.0.0.1", |path| {
            fs::create_dir_all(dir.path("etc/deep")).unwrap();
            fs::write(path, "nameserver 10.0.0.1").unwrap();
        });
        host.expect_change("", |_| fs::remove_dir_all(dir.path("etc")).unwrap());
        host.expect_change("nameserver 10.0.0.2", |path| {
            fs::create_dir_all(dir.path("etc/deep")).unwrap();
            fs::write(path, "nameserver 10.0.0.2").unwrap();
        });
    }

    #[test]
    fn a_directory_that_is_moved_away_is_seen_to_go() {
        let dir = TempDir::new();
        let mut host = Host::with_file(&dir);
        host.expect_change("", |_| fs::rename(dir.path("etc"), dir.path("old")).unwrap());
        host.expect_change("nameserver 10.0.0.2", |path| {
            fs::create_dir(dir.path("etc")).unwrap();
            fs::write(path, "nameserver 10.0.0.2").unwrap();
        });
    }

    #[test]
    fn a_file_written_through_another_name_is_seen() {
        // As through the source of a bind mount: no event in the directory of the path.
        let dir = TempDir::new();
        let mut host = Host::with_file(&dir);
        fs::create_dir(dir.path("elsewhere")).unwrap();
        fs::hard_link(&host.path, dir.path("elsewhere/name")).unwrap();
        host.settle();
        host.expect_change("nameserver 10.0.0.2", |_| {
            fs::write(dir.path("elsewhere/name"), "nameserver 10.0.0.2").unwrap();
        });
    }

    #[test]
    fn other_files_of_the_directory_are_no_change() {
        let dir = TempDir::new();
        let mut host = Host::with_file(&dir);
        fs::write(dir.path("etc/passwd"), "x").unwrap();
        assert!(host.is_readable(PollTimeout::from(5000u16)));
        assert!(!host.watch.read_changes().unwrap());
        assert!(!host.is_readable(PollTimeout::ZERO));
    }

    #[test]
    fn a_loop_of_symlinks_ends() {
        let dir = TempDir::new();
        symlink("loop", dir.path("loop")).unwrap();
        let mut host = Host::new(dir.path("loop"));
        host.expect_change("nameserver 10.0.0.1", |path| {
            fs::remove_file(path).unwrap();
            fs::write(path, "nameserver 10.0.0.1").unwrap();
        });
    }

    struct Host {
        path: PathBuf,
        watch: ResolverWatch,
    }

    impl Host {
        fn new(path: PathBuf) -> Self {
            Host { watch: ResolverWatch::new(&path).unwrap(), path }
        }

        fn with_file(dir: &TempDir) -> Self {
            fs::create_dir(dir.path("etc")).unwrap();
            fs::write(dir.path("etc/resolv.conf"), "nameserver 10.0.0.1").unwrap();
            Host::new(dir.path("etc/resolv.conf"))
        }

        /// After `change`, whoever reads the file when told to ends up with `text`.
        #[track_caller]
        fn expect_change(&mut self, text: &str, change: impl FnOnce(&Path)) {
            self.settle();
            change(&self.path);
            let mut read = None;
            for _ in 0..100 {
                if !self.is_readable(PollTimeout::from(5000u16)) {
                    break;
                }
                if self.watch.read_changes().unwrap() {
                    read = Some(fs::read_to_string(&self.path).unwrap_or_default());
                }
                if read.as_deref() == Some(text) {
                    return;
                }
            }
            panic!("expected {text:?}, last read {read:?}");
        }

        /// Takes what earlier changes left.
        fn settle(&mut self) {
            while self.is_readable(PollTimeout::ZERO) {
                self.watch.read_changes().unwrap();
            }
        }

        fn is_readable(&self, timeout: PollTimeout) -> bool {
            poll(&mut [PollFd::new(self.watch.as_fd(), PollFlags::POLLIN)], timeout).unwrap() > 0
        }
    }

    fn replace(path: &Path, text: &str) {
        let new = path.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, path).unwrap();
    }

    struct TempDir(PathBuf);

    impl TempDir {
        fn new() -> Self {
            static NUMBER: AtomicUsize = AtomicUsize::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path =
                std::env::temp_dir().join(format!("netstack-resolver-{}-{number}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            TempDir(path)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for TempDir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}
