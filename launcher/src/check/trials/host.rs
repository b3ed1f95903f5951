//! What is read of the host.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statfs::{self, FsType, statfs};
use nix::sys::utsname::uname;
use nix::unistd::{AccessFlags, access};

use super::super::facts::{DataDirectory, FileSystem, Modules, RuntimeDirectory};
use crate::plan::facts::HostFacts;

const SYSCTLS: [&str; 6] = [
    "fs.inotify.max_user_instances",
    "fs.inotify.max_user_watches",
    "net.ipv4.conf.all.rp_filter",
    "net.ipv4.conf.default.rp_filter",
    "net.ipv4.ip_unprivileged_port_start",
    "user.max_user_namespaces",
];

/// As sd_booted(3).
pub(super) fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

pub(super) fn runtime_directory(uid: u32) -> RuntimeDirectory {
    let usual = PathBuf::from(format!("/run/user/{uid}"));
    let usable = |path: &Path| match fs::metadata(path) {
        Err(_) => Err("it does not exist"),
        Ok(directory) if !directory.is_dir() => Err("it is no directory"),
        Ok(directory) if directory.uid() != uid => Err("it belongs to somebody else"),
        Ok(_) if access(path, AccessFlags::W_OK).is_err() => Err("it cannot be written to"),
        Ok(_) => Ok(()),
    };
    match env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty()).map(PathBuf::from) {
        Some(path) => match usable(&path) {
            Ok(()) => RuntimeDirectory::Good,
            Err(why) => RuntimeDirectory::Bad(path, why),
        },
        None if usable(&usual).is_ok() => RuntimeDirectory::Unset(usual),
        None => RuntimeDirectory::Missing,
    }
}

/// The directory that it is after all, if there is one.
pub(super) fn runtime_path(directory: &RuntimeDirectory) -> Option<PathBuf> {
    match directory {
        RuntimeDirectory::Good => env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from),
        RuntimeDirectory::Unset(path) => Some(path.clone()),
        RuntimeDirectory::Missing | RuntimeDirectory::Bad(..) => None,
    }
}

/// The user's message bus, dbus-daemon(1): at its usual place only, where a node without a session finds it too.
pub(super) fn has_bus(directory: &RuntimeDirectory) -> bool {
    runtime_path(directory).is_some_and(|path| UnixStream::connect(path.join("bus")).is_ok())
}

pub(super) fn lingers(host: &HostFacts) -> Option<bool> {
    let user = host.user.as_deref()?;
    // logind's own directory: without it nobody ends anything at logout.
    let logind = host.uid != 0 && has_systemd() && Path::new("/run/systemd/users").is_dir();
    logind.then(|| fs::exists(format!("/var/lib/systemd/linger/{user}")).unwrap_or(false))
}

pub(super) fn fuse() -> Result<(), i32> {
    let opened = File::options().read(true).write(true).open("/dev/fuse");
    opened.map(drop).map_err(|error| error.raw_os_error().unwrap_or_default())
}

pub(super) fn modules() -> Modules {
    let release = uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
    let read = |file: &str| fs::read_to_string(format!("/lib/modules/{release}/{file}")).unwrap_or_default();
    Modules {
        loaded: fs::read_to_string("/proc/modules").unwrap_or_default(),
        builtin: read("modules.builtin"),
        available: read("modules.dep"),
    }
}

pub(super) fn sysctls() -> BTreeMap<&'static str, u64> {
    let read = |name: &'static str| {
        let text = fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok()?;
        Some((name, text.trim().parse().ok()?))
    };
    SYSCTLS.into_iter().filter_map(read).collect()
}

pub(super) fn open_files() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(_, hard)| hard)
}

/// Of the user, and of every cgroup on the way to ours.
pub(super) fn processes() -> u64 {
    let own = getrlimit(Resource::RLIMIT_NPROC).map_or(u64::MAX, |(_, hard)| hard);
    super::cgroup::process_limits().fold(own, u64::min)
}

pub(super) fn has_swap() -> bool {
    fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1)
}

/// Where nodes keep their data, or are going to.
pub(super) fn data_directory(chosen: Option<&Path>, host: &HostFacts) -> DataDirectory {
    let path = chosen.map_or_else(|| host.data_home.join("rootless-launch"), Path::to_owned);
    let file_system = match existing(&path) {
        None => Err("no part of the path is there".to_owned()),
        Some(nearest) if access(nearest, AccessFlags::W_OK | AccessFlags::X_OK).is_err() => {
            Err(format!("{} cannot be written to", nearest.display()))
        }
        Some(nearest) => {
            statfs(nearest).map(|found| kind(found.filesystem_type())).map_err(|error| error.to_string())
        }
    };
    DataDirectory { path, file_system }
}

/// The nearest directory that is there already.
pub(super) fn existing(path: &Path) -> Option<&Path> {
    path.ancestors().find(|ancestor| ancestor.is_dir())
}

fn kind(magic: FsType) -> FileSystem {
    // linux/magic.h, and those of file systems that keep theirs to themselves.
    const CIFS: FsType = FsType(0xff53_4d42);
    const SMB2: FsType = FsType(0xfe53_4d42);
    const CEPH: FsType = FsType(0x00c3_6400);
    const RAMFS: FsType = FsType(0x8584_58f6);
    const V9FS: FsType = FsType(0x0102_1997);
    const AFS: FsType = FsType(0x5346_414f);
    match magic {
        statfs::NFS_SUPER_MAGIC => FileSystem::Network("NFS"),
        CIFS | SMB2 | statfs::SMB_SUPER_MAGIC => FileSystem::Network("CIFS"),
        CEPH => FileSystem::Network("Ceph"),
        V9FS => FileSystem::Network("9p"),
        AFS => FileSystem::Network("AFS"),
        statfs::TMPFS_MAGIC | RAMFS => FileSystem::Memory,
        _ => FileSystem::Local,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_known_by_their_numbers() {
        assert_eq!(kind(FsType(0x6969)), FileSystem::Network("NFS"));
        assert_eq!(kind(FsType(0x0102_1994)), FileSystem::Memory);
        assert_eq!(kind(FsType(0xef53)), FileSystem::Local);
    }

    #[test]
    fn a_data_directory_that_is_not_there_yet_is_judged_by_its_parent() {
        let directory = data_directory(Some(Path::new("/proc/nowhere/at/all")), &HostFacts::default());
        assert_eq!(directory.path, Path::new("/proc/nowhere/at/all"));
        assert_eq!(existing(&directory.path), Some(Path::new("/proc")));
    }
}
