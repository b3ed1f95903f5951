//! A whole stock machine: Debian trixie of `tests/vm/build-image.sh` under QEMU, driven by ssh over its forwarded port.
//!
//! The machine is thrown away afterwards; what is in the image stays as it was. Where KVM cannot run it (no /dev/kvm, or one that
//! cannot do with an ordinary kernel) it is emulated, which takes 20 to 60 times as long: deadlines are generous.

use std::{
    io::{BufRead, BufReader},
    net::Ipv4Addr,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    locate,
    process::{self, Finished, Pipe, Process, readable_before},
    skip::Skipped,
    world::Directory,
};

/// How long the machine may take from power to logins.
pub const BOOT: Duration = Duration::from_secs(300);
/// How long one command in the machine may take.
pub const COMMAND: Duration = Duration::from_secs(240);

/// ssh's own exit status, ssh(1).
const NO_CONNECTION: i32 = 255;

/// How long KVM gets until the machine's first sign of life; one that works needs a few seconds for all of it.
const KVM_PATIENCE: Duration = Duration::from_secs(30);

/// A file to be in the machine.
#[derive(Debug, Clone)]
pub struct Payload {
    /// Where it is here; a directory with all that is in it.
    pub from: PathBuf,
    /// Where it is to be there, from the root.
    pub to: &'static str,
}

/// A running machine.
#[derive(Debug)]
pub struct Vm {
    qemu: Process,
    ready: BufReader<UnixStream>,
    address: Ipv4Addr,
    key: PathBuf,
    _directory: Directory,
}

impl Vm {
    /// Boots the image in `image`, with files of the test's and logins for root and the ordinary user `ann`.
    ///
    /// # Panics
    /// When it does not come up within [`BOOT`].
    #[track_caller]
    #[must_use]
    pub fn boot(image: &Path, payload: &[Payload]) -> Self {
        let directory = Directory::new();
        let key = make_key(directory.path());
        let archive = pack(directory.path(), payload);
        let accelerated = std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
        let first = accelerated.then_some(("kvm", "host", KVM_PATIENCE)).into_iter();
        // QEMU 7.2 emulates cmpxchg16b wrongly.
        let mut ways = first.chain([("tcg,thread=multi", "max,-cx16", BOOT)]).peekable();
        loop {
            let (accelerator, cpu, patience) = ways.next().expect("the last way panics");
            let socket = directory.path().join(accelerator.split(',').next().unwrap_or(accelerator));
            let listener = UnixListener::bind(&socket).expect("a socket in our own directory");
            let address = loopback_of_our_own();
            let mut command = Command::new(locate::program("qemu-system-x86_64"));
            command.args(["-accel", accelerator, "-cpu", cpu, "-smp", "2", "-m", "2048"]);
            command.args(["-nodefaults", "-display", "none", "-serial", "stdio"]);
            command.arg("-kernel").arg(image.join("vmlinuz")).arg("-initrd").arg(image.join("initrd.img"));
            command.args(["-append", "root=LABEL=root rw console=ttyS0 quiet mitigations=off"]);
            command.arg("-drive").arg(disk(&image.join("disk.ext4"), "snapshot=on"));
            command.arg("-drive").arg(disk(&archive, "readonly=on"));
            command.args(["-netdev", &format!("user,id=lan,restrict=on,hostfwd=tcp:{address}:2222-:22")]);
            command.args(["-device", "virtio-net-pci,netdev=lan", "-device", "virtio-rng-pci"]);
            command.args([
                "-device",
                "virtio-serial-pci",
                "-device",
                "virtserialport,chardev=ready,name=ready",
            ]);
            command.args(["-chardev", &format!("socket,id=ready,path={}", socket.display())]);
            let mut qemu = Process::spawn(command).within(patience);
            let deadline = Instant::now() + patience;
            assert!(readable_before(&listener, deadline), "QEMU does not open the serial port");
            let (stream, _) = listener.accept().expect("it waits already");
            let ready = BufReader::new(stream);
            let is_up = readable_before(ready.get_ref(), deadline);
            if !is_up && ways.peek().is_some() {
                continue;
            }
            if !is_up {
                // Shows all that the console said.
                qemu.wait_for(Pipe::Stdout, "no line of a console has this");
            }
            let mut vm = Self {
                qemu: qemu.within(Duration::from_secs(3600)),
                ready,
                address,
                key,
                _directory: directory,
            };
            vm.wait_ready();
            return vm;
        }
    }

    /// A command that logs `user` in and runs `script` in a shell there: a session of its own, as that of anybody who uses ssh.
    #[must_use]
    pub fn login(&self, user: &str, script: &str) -> Command {
        let mut ssh = Command::new(locate::program("ssh"));
        ssh.args([
            "-o",
            "LogLevel=ERROR",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "BatchMode=yes",
        ]);
        ssh.args(["-F", "none", "-p", "2222", "-i"])
            .arg(&self.key)
            .arg(format!("{user}@{}", self.address))
            .arg(script);
        ssh
    }

    /// Runs `script` in a login of `user`.
    ///
    /// # Panics
    /// When it takes longer than [`COMMAND`], or nobody can log in.
    #[track_caller]
    pub fn run(&self, user: &str, script: &str) -> Finished {
        let done = self.try_run(user, script);
        if done.status.code() == Some(NO_CONNECTION) {
            let qemu = if self.qemu.ends_before(Instant::now()) { "has ended" } else { "runs" };
            panic!("no login (QEMU {qemu}): {}", done.describe());
        }
        done
    }

    #[track_caller]
    fn try_run(&self, user: &str, script: &str) -> Finished {
        let mut process = Process::spawn(self.login(user, script)).within(COMMAND);
        process.close_stdin();
        process.finish()
    }

    /// Runs `script` again and again until it succeeds; logging in takes long enough to be no busy loop.
    ///
    /// # Panics
    /// When it does not within [`COMMAND`].
    #[track_caller]
    pub fn wait_until(&self, user: &str, script: &str) -> Finished {
        let deadline = Instant::now() + COMMAND;
        loop {
            let done = self.run(user, script);
            if done.status.success() {
                return done;
            }
            assert!(Instant::now() < deadline, "not in time: {}", done.describe());
        }
    }

    /// Reboots, and waits until logins are possible again.
    ///
    /// # Panics
    /// When that takes longer than [`BOOT`].
    #[track_caller]
    pub fn reboot(&mut self) {
        // All of it is there, and stays. Unpacked once more it would be gone for a moment, under services that look for it.
        let _ =
            self.run("root", "rm /etc/systemd/system/multi-user.target.wants/vm-payload.service").success();
        // The connection may be cut before it can say how it ended.
        let _ = self.try_run("root", "systemctl reboot");
        self.wait_ready();
    }

    #[track_caller]
    fn wait_ready(&mut self) {
        let is_readable = readable_before(self.ready.get_ref(), Instant::now() + BOOT);
        assert!(is_readable, "the machine does not come up");
        let mut line = String::new();
        self.ready.read_line(&mut line).expect("our own socket");
        assert!(!line.is_empty(), "the machine is gone (QEMU {})", self.qemu.pid());
    }
}

/// Where `tests/vm/build-image.sh` has put the image. It answers at once and builds nothing.
///
/// # Errors
/// The test is to be skipped where it has not been built, which `.ci/setup.sh` does.
///
/// # Panics
/// When the working directory is not that of this package.
pub fn image() -> Result<PathBuf, Skipped> {
    let output = Command::new("vm/build-image.sh")
        .arg("--print-dir")
        .output()
        .expect("tests run in the directory of their package");
    if !output.status.success() {
        return Err(Skipped::because(String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8(output.stdout).expect("paths are UTF-8").trim_end().into())
}

fn disk(path: &Path, mode: &str) -> String {
    format!("file={},format=raw,if=virtio,{mode}", path.display())
}

/// An address of 127.0.0.0/8 that no other test has: QEMU cannot be asked for a free port.
fn loopback_of_our_own() -> Ipv4Addr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 | high, middle, low)
}

fn make_key(directory: &Path) -> PathBuf {
    let key = directory.join("key");
    let mut keygen = Command::new(locate::program("ssh-keygen"));
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key);
    let _ = process::run(keygen).success();
    key
}

/// All files of the payload and the key, as a tar archive: the machine unpacks its second disk at /.
fn pack(directory: &Path, payload: &[Payload]) -> PathBuf {
    let archive = directory.join("payload.tar");
    let add = |from: &Path, to: &str, owner: &str| {
        let (parent, name) = (from.parent().expect("a file"), from.file_name().expect("a file"));
        let mut tar = Command::new("tar");
        tar.arg("-rhf").arg(&archive).args(["--numeric-owner", owner, "--mode=go-w"]);
        // The name there, for it and for all below it.
        let (name, to) = (name.to_str().expect("UTF-8"), to.trim_start_matches('/'));
        tar.arg(format!("--transform=s,^{name},{to},")).arg("-C").arg(parent).arg(name);
        let _ = process::run(tar).success();
    };
    for Payload { from, to } in payload {
        add(from, to, "--owner=0");
    }
    let public = directory.join("key.pub");
    add(&public, "root/.ssh/authorized_keys", "--owner=0");
    add(&public, "home/ann/.ssh/authorized_keys", "--owner=1000");
    archive
}
