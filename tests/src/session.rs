//! An ordinary user's login in a world, for foreign programs that expect one: an entry in passwd, subordinate ids with a working
//! newuidmap(1), a home, a runtime directory, and processes that all end with the login.
//!
//! The user is one of the world's own, so that the world's addresses are the host's addresses of whatever he starts. His home is a tmpfs
//! in the session's mount namespace and his processes are in its PID namespace: nothing is left when the session is dropped. In `~/bin`,
//! first in his PATH, are `slirp4netns` and `pasta`: ours, or the originals when `$LAB_ENGINE` names one of them.

use crate::{
    agent::Ids,
    engine::Engine,
    locate,
    process::{Finished, Pipe, Process, run},
    skip::Skipped,
    world::{Netns, SERVICE4, SERVICE6, World, WorldConfig},
};
use std::{fs, path::PathBuf, process::Command};

/// The user's home, which only his session sees. Short, because paths of sockets are bounded.
pub const HOME: &str = "/mnt/home";
/// His `XDG_RUNTIME_DIR`.
pub const RUNTIME_DIR: &str = "/mnt/run";

/// Makes the session, with `$1` as slirp4netns and `$2` as pasta, and waits for the end of its standard input. Programs that
/// are set-user-ID root outside have nobody's rights in the world: their copies belong to the world's root.
const SETUP: &str = r#"
set -e
mount --make-rshared /
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /mnt
cd /mnt
printf '%s\n' root:x:0:0::/root:/bin/sh tester:x:1000:1000::/mnt/home:/bin/sh >passwd
printf '%s\n' root:x:0: tester:x:1000: >group
echo tester:10000:50000 >subuid
cp subuid subgid
for file in passwd group subuid subgid; do mount --bind $file /etc/$file; done
for program in newuidmap newgidmap; do
    install -m 4755 "$(command -v $program)" $program
    mount --bind $program "$(command -v $program)"
done
mkdir -p home/bin
mkdir -m 700 run
ln -s "$1" home/bin/slirp4netns
ln -s "$2" home/bin/pasta
chown -R 1000:1000 home run
echo ready
while read -r line; do :; done
"#;

/// See the module.
#[derive(Debug)]
pub struct Session {
    // Ends before the world it is in.
    init: Process,
    pid: String,
    world: World,
}

impl Session {
    /// A login in a new world with a resolver, or the reason why there cannot be one.
    ///
    /// # Errors
    /// [`Skipped`] without subordinate ids.
    ///
    /// # Panics
    /// When the session cannot be made although there are.
    #[track_caller]
    pub fn new() -> Result<Self, Skipped> {
        if !crate::agent::has_subordinate_ids() {
            return Err(Skipped::because("the caller has no subordinate ids"));
        }
        let world = World::with(&WorldConfig { ids: Ids::Subordinate, ..WorldConfig::default() });
        let (slirp4netns, pasta) = (program_under_test("slirp4netns"), program_under_test("pasta"));
        let (slirp4netns, pasta) = (slirp4netns.to_string_lossy(), pasta.to_string_lossy());
        let mut argv = vec!["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"];
        argv.extend(["/bin/bash", "-c", SETUP, "session", &slirp4netns, &pasta]);
        let mut init = Process::spawn(world.host.program(&argv));
        init.wait_for_line("ready");
        let parent = init.pid();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))
            .expect("unshare waits for its child");
        Ok(Self { init, pid: children.trim().to_owned(), world })
    }

    /// The world that the user is in.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// A foreign program as a command of the user, in his home.
    #[must_use]
    pub fn command(&self, argv: &[&str]) -> Command {
        self.command_on(&self.world.host, argv)
    }

    /// The same on another host of the world, which shares all but the network.
    #[must_use]
    pub fn command_on(&self, host: &Netns, argv: &[&str]) -> Command {
        let mut words =
            ["nsenter", "--target", &self.pid, "--mount", "--pid", "--"].map(String::from).to_vec();
        words.extend(["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"].map(String::from));
        words.extend(["env", "-i", "-C", HOME, "LANG=C.UTF-8", "USER=tester"].map(String::from));
        words.extend([
            format!("HOME={HOME}"),
            format!("XDG_RUNTIME_DIR={RUNTIME_DIR}"),
            format!("PATH={HOME}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ]);
        words.extend(argv.iter().map(ToString::to_string));
        host.program(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Starts a program of the user.
    #[track_caller]
    pub fn spawn(&self, argv: &[&str]) -> Process {
        Process::spawn(self.command(argv))
    }

    /// Runs a program of the user to its end.
    #[track_caller]
    pub fn run(&self, argv: &[&str]) -> Finished {
        run(self.command(argv))
    }

    /// Runs lines of a shell, which stops at the first that fails.
    #[track_caller]
    pub fn shell(&self, script: &str) -> Finished {
        self.run(&["bash", "-euc", script])
    }

    /// Writes a file below the user's home, with its directories.
    ///
    /// # Panics
    /// When the user may not.
    #[track_caller]
    pub fn write(&self, path: &str, text: &str) {
        let script = r#"mkdir -p "$(dirname "$1")" && cat >"$1""#;
        let mut cat = self.spawn(&["sh", "-c", script, "write", path]);
        cat.tell(text);
        cat.close_stdin();
        let _ = cat.finish().success();
    }

    /// dnsmasq where the world's resolv.conf says; it knows `a.test`: `192.0.2.77` and `2001:db8::77`.
    #[track_caller]
    #[must_use]
    pub fn resolver(&self) -> Process {
        let listen = [format!("--listen-address={SERVICE4}"), format!("--listen-address={SERVICE6}")];
        let mut argv = vec!["dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"];
        argv.extend(["--log-facility=-", "--user=", "--bind-interfaces", "--except-interface=nonexistent"]);
        argv.extend(["--local=/test/", "--pid-file=", "--host-record=a.test,192.0.2.77,2001:db8::77"]);
        argv.extend(listen.iter().map(String::as_str));
        let mut process = Process::spawn(self.world.host.program(&argv));
        process.wait_for(Pipe::Stderr, "started");
        process
    }

    /// Ends the login and everything that it started.
    pub fn close(mut self) {
        self.init.close_stdin();
    }
}

/// The original called `name` while a peer is under test, else ours.
fn program_under_test(name: &str) -> PathBuf {
    match Engine::under_test() {
        Engine::Ours => {
            locate::rootless_launch().expect("rootless-launch is built, or $ROOTLESS_LAUNCH names it")
        }
        _ => locate::program(name),
    }
}
