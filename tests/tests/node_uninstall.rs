//! `node install` and `node uninstall` where no service manager of the user's runs: what is there is written or removed all the same.

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf, process::Command};

use tests::{
    locate,
    process::{Finished, run},
};

/// A home of our own, gone at the end.
struct Home(PathBuf);

impl Home {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("rootless-home-{}-{name}", std::process::id()));
        fs::create_dir(&path).expect("the temporary directory is writable");
        Self(path)
    }

    fn launcher(&self, args: &[&str]) -> Finished {
        let mut command = Command::new(locate::rootless_launch().expect("rootless-launch is built"));
        for name in ["XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "DBUS_SESSION_BUS_ADDRESS"] {
            command.env_remove(name);
        }
        run({
            command.env("HOME", &self.0).env("XDG_RUNTIME_DIR", &self.0).args(args);
            command
        })
    }

    fn unit(&self) -> PathBuf {
        self.0.join(".config/systemd/user/rootless-launch-east.service")
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // A test that failed may have left files of the subordinate ids; they are in a temporary directory.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn install_writes_the_unit_and_says_who_is_missing() {
    let home = Home::new("install");
    let done = home.launcher(&["node", "install", "--name=east", "--", "--cidr=10.9.0.0/24"]);
    assert_eq!(done.status.code(), Some(1), "{}", done.describe());
    assert!(done.stderr.contains("systemctl --user daemon-reload"), "{}", done.describe());
    let unit = fs::read_to_string(home.unit()).expect("the unit");
    assert!(
        unit.contains(r#""node" "--name=east" "--cidr=10.9.0.0/24""#) && unit.contains("Delegate=yes"),
        "{unit}"
    );
    let _ = home.launcher(&["node", "uninstall", "--name=east"]).success();
    assert!(!home.unit().exists());
}

#[test]
fn uninstall_keeps_what_it_is_not_told_to_purge() {
    let home = Home::new("keep");
    let data = home.0.join(".local/share/rootless-launch/east");
    fs::create_dir_all(&data).expect("our own directory");
    let done = home.launcher(&["node", "uninstall", "--name=east"]).success();
    assert!(data.exists() && done.stdout.contains("--purge"), "{}", done.describe());
}

#[test]
fn purge_removes_files_of_subordinate_ids_and_leaves_other_nodes_alone() {
    const MAKE: &str = "mkdir -p $1/var/lib/x && echo y >$1/var/lib/x/file && chmod 0 $1/var/lib/x/file && chown -R 7:7 $1/var/lib \
        && chmod 0700 $1/var/lib/x";
    let home = Home::new("purge");
    let share = home.0.join(".local/share/rootless-launch");
    for name in ["east", "west"] {
        let data = share.join(name);
        let path = data.to_str().expect("UTF-8");
        let _ = home.launcher(&["--net=none", "--", "sh", "-euc", MAKE, "sh", path]).success();
        let owner = fs::metadata(data.join("var/lib")).expect("it was made").uid();
        assert_ne!(owner, nix::unistd::getuid().as_raw(), "a file of a subordinate id");
    }
    // As a power cut leaves it: a link without its unit, a state directory without a launcher.
    let links = home.0.join(".config/systemd/user/default.target.wants");
    fs::create_dir_all(&links).expect("our own directory");
    std::os::unix::fs::symlink("../nowhere", links.join("rootless-launch-east.service"))
        .expect("our own directory");
    let state = home.0.join("rootless-launch/east");
    fs::create_dir_all(&state).expect("our own directory");
    fs::write(state.join("lock"), "1\n").expect("our own directory");

    let done = home.launcher(&["node", "uninstall", "--name=east", "--purge"]).success();
    assert!(!share.join("east").exists() && !state.exists(), "{}", done.describe());
    assert!(fs::read_dir(&links).expect("it is there").next().is_none(), "{}", done.describe());
    assert!(share.join("west/var").exists(), "another node's");
    let _ = home.launcher(&["node", "uninstall", "--name=west", "--purge"]).success();
    assert!(!share.join("west").exists());
}

#[test]
fn a_home_directory_is_never_purged() {
    let home = Home::new("home");
    let path = home.0.to_str().expect("UTF-8");
    let done = home.launcher(&["node", "uninstall", "--name=east", "--purge", &format!("--data-dir={path}")]);
    assert!(!done.status.success() && done.stderr.contains("your home directory"), "{}", done.describe());
    assert!(home.0.exists());
}
