//! Collects [`HostFacts`].

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, User, access, getegid, geteuid};

use crate::plan::facts::HostFacts;
use crate::plan::surroundings::CNI_PLUGINS;

/// Reads what the plan needs to know. What cannot be read is as good as not there. `state_dir` is left empty.
pub fn collect() -> HostFacts {
    let home = env::home_dir().unwrap_or_default();
    let data_home = env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (uid, gid) = (geteuid(), getegid());
    HostFacts {
        uid: uid.as_raw(),
        gid: gid.as_raw(),
        user: login_name(uid.as_raw(), &read("/etc/passwd"))
            .or_else(|| User::from_uid(uid).ok().flatten().map(|user| user.name)),
        subuid: read("/etc/subuid"),
        subgid: read("/etc/subgid"),
        uid_map: read("/proc/self/uid_map"),
        gid_map: read("/proc/self/gid_map"),
        newuidmap: find_program("newuidmap"),
        newgidmap: find_program("newgidmap"),
        ipv4_routes: read("/proc/net/route"),
        ipv6_routes: read("/proc/net/ipv6_route"),
        resolv_conf: read("/etc/resolv.conf"),
        hosts: read("/etc/hosts"),
        name_files_exist: ["/etc/resolv.conf", "/etc/hosts"].iter().all(|path| Path::new(path).exists()),
        kmsg_opens: File::open("/dev/kmsg").is_ok(),
        cni_plugins_exist: Path::new(CNI_PLUGINS).is_dir(),
        data_home: data_home.unwrap_or_else(|| home.join(".local/share")),
        home,
        state_dir: PathBuf::new(),
    }
}

/// The name in /etc/passwd, passwd(5); spares most callers a question to the name service.
fn login_name(uid: u32, passwd: &str) -> Option<String> {
    let uid = uid.to_string();
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    })
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|file| access(file, AccessFlags::X_OK).is_ok() && file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn login_name_is_found_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\ntorn\nann:x:1000:100::/home/ann:/bin/sh\n";
        assert_eq!(login_name(1000, passwd), Some("ann".into()));
        assert_eq!(login_name(100, passwd), None);
    }
}
