//! Collects [`HostFacts`].

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{AccessFlags, User, access, getegid, geteuid};

use crate::plan::facts::HostFacts;
use crate::plan::surroundings::CNI_PLUGINS;

/// Reads what the plan needs to know. What cannot be read is as good as not there. `state_dir` is left empty.
pub fn collect() -> HostFacts {
    let home = env::home_dir().unwrap_or_default();
    let data_home = env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let read = |path: &str| read_text(path);
    let (uid, gid) = (geteuid(), getegid());
    let user = login_name(uid.as_raw(), &read("/etc/passwd"))
        .or_else(|| User::from_uid(uid).ok().flatten().map(|user| user.name));
    let subids = |path: &str, options: &[&str]| {
        let file = read(path);
        let asked = || ask_subids(options, user.as_deref()?);
        match is_listed(&file, uid.as_raw(), user.as_deref()) {
            false if !uid.is_root() => asked().unwrap_or(file),
            _ => file,
        }
    };
    HostFacts {
        uid: uid.as_raw(),
        gid: gid.as_raw(),
        subuid: subids("/etc/subuid", &[]),
        subgid: subids("/etc/subgid", &["-g"]),
        user,
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

/// What a file says; nothing if it cannot be read. Bytes that are not UTF-8, in a comment or in the name of a process, spoil
/// themselves only.
pub(crate) fn read_text(path: impl AsRef<Path>) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
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

/// Whether a subuid(5) text has a line for this user.
fn is_listed(text: &str, uid: u32, user: Option<&str>) -> bool {
    let uid = uid.to_string();
    text.lines().filter_map(|line| line.split(':').next()).any(|owner| owner == uid || Some(owner) == user)
}

/// What getsubids(1) says, in the form of subuid(5): it asks the name service, where the files have nothing (nsswitch.conf, `subid`).
fn ask_subids(options: &[&str], user: &str) -> Option<String> {
    let output = Command::new(find_program("getsubids")?)
        .args(options)
        .arg(user)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(subid_lines(&String::from_utf8_lossy(&output.stdout)))
}

/// `0: ann 100000 65536` becomes `ann:100000:65536`.
fn subid_lines(output: &str) -> String {
    let fields =
        |line: &str| Some(line.split_once(": ")?.1.split_ascii_whitespace().collect::<Vec<_>>().join(":"));
    output.lines().filter_map(fields).map(|line| line + "\n").collect()
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

    #[test]
    fn a_comment_in_an_old_encoding_loses_nothing_else() {
        let path = env::temp_dir().join(format!("rl-facts-{}", std::process::id()));
        fs::write(&path, b"# f\xfcr\n192.0.2.1 a\n").unwrap();
        assert_eq!(read_text(&path).lines().nth(1), Some("192.0.2.1 a"));
        fs::remove_file(&path).unwrap();
        assert_eq!(read_text(&path), "");
    }

    #[test]
    fn users_are_listed_by_name_or_number() {
        let subuid = "bob:1:2\nann:5:6\n1001:7:8\n";
        assert!(is_listed(subuid, 1000, Some("ann")) && is_listed(subuid, 1001, None));
        assert!(!is_listed(subuid, 1000, Some("an")) && !is_listed("", 1000, Some("ann")));
    }

    #[test]
    fn what_getsubids_prints_reads_as_the_file() {
        let output = "0: ann 100000 65536\n1: ann  300000 10\nError\n";
        assert_eq!(subid_lines(output), "ann:100000:65536\nann:300000:10\n");
    }
}
