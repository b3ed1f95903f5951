//! ssh from the child to an sshd on the host, both of an ordinary user.

use nix::unistd::{User, geteuid};
use std::{fs, io::Write, path::Path, process::Command};
use tests::{
    engine::Launch,
    locate,
    process::{Pipe, Process, run},
    stream::Pattern,
    world::{SERVICE4, World},
};

const PORT: &str = "2222";

/// An sshd and a key that opens it.
struct Sshd<'a> {
    world: &'a World,
    user: String,
    key: String,
    _process: Process,
}

impl<'a> Sshd<'a> {
    fn start(world: &'a World) -> Self {
        let me = User::from_uid(geteuid()).ok().flatten().expect("we have an entry in passwd");
        let file = |name: &str| world.dir().join(name).to_string_lossy().into_owned();
        for key in ["host_key", "user_key"] {
            let mut keygen = Command::new(locate::program("ssh-keygen"));
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f", &file(key)]);
            let _ = run(keygen).success();
        }
        let config = format!(
            "ListenAddress {SERVICE4}:{PORT}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\n",
            file("host_key"),
            file("user_key.pub")
        );
        fs::write(file("sshd_config"), config).expect("write in our directory");
        // The world's only user is its root, as whom sshd would change roots and users. Under his own id again it does not try.
        let id = format!("--map-user={}", me.uid);
        let sshd = locate::program("sshd").to_string_lossy().into_owned();
        let argv = ["unshare", "--user", &id, "--", &sshd, "-D", "-e", "-f", &file("sshd_config")];
        let mut process = Process::spawn(world.host.program(&argv));
        process.wait_for(Pipe::Stderr, "Server listening");
        Self { world, user: me.name, key: file("user_key"), _process: process }
    }

    /// ssh in a child, with the remote `command`.
    #[track_caller]
    fn log_in(&self, command: &str) -> Process {
        let login = format!("{}@{SERVICE4}", self.user);
        let mut argv = vec!["ssh", "-F", "/dev/null", "-T", "-p", PORT, "-i", &self.key];
        for option in [
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
        ] {
            argv.extend(["-o", option]);
        }
        argv.extend([login.as_str(), command]);
        self.world.launch(&Launch::under_test(), &argv)
    }
}

fn sha256_of(file: &Path) -> String {
    let mut sum = Command::new(locate::program("sha256sum"));
    sum.arg(file);
    run(sum).success().stdout.split(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn ssh_carries_five_megabytes_to_a_command_that_answers_at_the_end() {
    let world = World::new();
    let sshd = Sshd::start(&world);
    let bytes = Pattern::bytes(7, 5_000_000);
    let file = world.dir().join("bytes");
    fs::write(&file, &bytes).expect("write in our directory");
    let mut ssh = sshd.log_in("cat | sha256sum");
    let mut stdin = ssh.take_stdin().expect("stdin is piped");
    let writer = std::thread::spawn(move || stdin.write_all(&bytes));
    let done = ssh.finish().success();
    writer.join().expect("the writer").expect("ssh reads all");
    assert!(done.stdout.starts_with(&sha256_of(&file)), "{}", done.describe());
}

#[test]
fn ssh_answers_line_by_line_and_passes_the_exit_status_on() {
    let world = World::new();
    let sshd = Sshd::start(&world);
    let mut ssh = sshd.log_in("sh");
    for n in 0..20 {
        ssh.tell(&format!("echo $(({n} * {n}))."));
        assert_eq!(ssh.wait_for_line("."), format!("{}.", n * n));
    }
    ssh.tell("exit 7");
    let ended = ssh.finish();
    assert_eq!(ended.status.code(), Some(7), "{}", ended.describe());
}
