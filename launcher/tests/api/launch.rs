//! The API of real instances.

use std::fs::{OpenOptions, read_to_string};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use launcher::sys::pidfd;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::skipped;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rootless-launch");

/// An instance whose command is a shell that reads commands from us.
struct Instance {
    launcher: Child,
    stdout: BufReader<ChildStdout>,
    directory: PathBuf,
}

impl Instance {
    /// Starts one in a directory of its own; nothing if this machine cannot.
    fn start(name: &str, options: &[&str]) -> Option<Self> {
        let directory = std::env::temp_dir().join(format!("rl-live-{name}-{}", std::process::id()));
        Instance::start_in(directory, options)
    }

    fn start_in(directory: PathBuf, options: &[&str]) -> Option<Self> {
        if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
            skipped(&format!("cannot open /dev/net/tun: {error}"));
            return None;
        }
        if Command::new("unshare").args(["-Urn", "true"]).status().is_ok_and(|status| !status.success()) {
            skipped("no user namespaces here");
            return None;
        }
        let mut command = Command::new(PROGRAM);
        command.arg("--state-dir").arg(&directory).args(options).args(["--", "sh"]);
        let mut launcher = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(launcher.stdout.take().unwrap());
        let mut instance = Instance { launcher, stdout, directory };
        assert_eq!(instance.line("echo ready"), "ready");
        Some(instance)
    }

    /// Has the shell run a command, and returns the first line of what it says.
    fn line(&mut self, command: &str) -> String {
        writeln!(self.launcher.stdin.as_mut().unwrap(), "{command}").unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn client(&self, program: &str, args: &[&str]) -> Output {
        let mut command = Command::new(program);
        command.args(args).env("ROOTLESSKIT_STATE_DIR", &self.directory).output().unwrap()
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        let output = self.client(PROGRAM, &[args, &["--json"]].concat());
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Ends the shell; everything is over when this returns.
    fn end(mut self) {
        drop(self.launcher.stdin.take());
        let launcher = pidfd::open(Pid::from_raw(self.launcher.id().cast_signed())).unwrap();
        let mut ended = [PollFd::new(launcher.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ended, PollTimeout::from(20_000u16)) != Ok(1) {
            self.kill();
            panic!("the launcher does not end");
        }
        assert!(self.launcher.wait().unwrap().success());
    }

    /// Kills the launcher, and waits until its processes are gone: they hold the pipe.
    fn kill(mut self) {
        kill(Pid::from_raw(self.launcher.id().cast_signed()), Signal::SIGKILL).unwrap();
        self.stdout.read_to_end(&mut Vec::new()).unwrap();
        self.launcher.wait().unwrap();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn an_instance_is_ready_when_its_command_runs_and_leaves_nothing() {
    let Some(mut instance) = Instance::start("ready", &[]) else { return };
    let directory = instance.directory.clone();
    let told = instance.line("echo $$ $(cat $ROOTLESSKIT_STATE_DIR/child_pid) $ROOTLESSKIT_STATE_DIR");
    let pid = instance.json(&["info"])["childPID"].to_string();
    assert_eq!(told, format!("{pid} {pid} {}", directory.display()));
    let told = instance.line("echo $ROOTLESSKIT_PARENT_EUID $ROOTLESSKIT_PARENT_EGID");
    assert_eq!(told, format!("{} {}", nix::unistd::geteuid(), nix::unistd::getegid()));
    instance.end();
    assert!(!directory.exists());
}

#[test]
fn rootlessctl_controls_a_running_instance() {
    let Some(instance) = Instance::start("rootlessctl", &[]) else { return };
    if let Err(error) = Command::new("rootlessctl").arg("--version").output() {
        return skipped(&format!("no rootlessctl: {error}"));
    }
    let port = free_port();
    let spec = format!("127.0.0.1:{port}:80/tcp");
    let rootlessctl = |args: &[&str]| {
        let output = instance.client("rootlessctl", args);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(rootlessctl(&["add-ports", &spec]), "1\n");
    assert!(rootlessctl(&["list-ports"]).contains(&port.to_string()));
    TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
    assert_eq!(rootlessctl(&["remove-ports", "1"]), "1\n");
    assert!(TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).is_err());
    let info: Value = serde_json::from_str(&rootlessctl(&["info", "--json"])).unwrap();
    assert_eq!(info["networkDriver"]["childIP"], "10.0.42.100");
    instance.end();
}

#[test]
fn the_command_itself_may_publish_ports() {
    let Some(mut instance) = Instance::start("inside", &[]) else { return };
    let port = free_port();
    let told = instance.line(&format!("{PROGRAM} port add 127.0.0.1:{port}:80"));
    assert_eq!(told, format!("1\t127.0.0.1:{port}:80/tcp"));
    assert_eq!(instance.json(&["port", "list"])[0]["spec"]["parentPort"], port);
    instance.end();
}

#[test]
fn settings_change_while_the_command_runs() {
    let Some(mut instance) = Instance::start("settings", &["--dns=192.0.2.53"]) else { return };
    instance.json(&["dns", "set", "--dns-name=name.test=192.0.2.7"]);
    assert!(instance.line("getent hosts name.test").starts_with("192.0.2.7 "));
    instance.json(&["policy", "add", "deny 192.0.2.7"]);
    assert_eq!(instance.line("ping -c1 -W1 192.0.2.7 >/dev/null 2>&1; echo $?").len(), 1);
    assert_eq!(instance.json(&["policy", "get"])["rules"][0], "deny 192.0.2.7");
    // The engine cannot see resolv.conf in its sandbox: it was started without.
    let refused = instance.client(PROGRAM, &["dns", "set", "--host-servers"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert_eq!(instance.json(&["dns", "get"])["servers"][0], "192.0.2.53:53");
    instance.end();
}

#[test]
fn a_running_instance_is_captured_and_entered() {
    let Some(instance) = Instance::start("enter", &[]) else { return };
    let file = instance.directory.with_extension("pcap");
    instance.json(&["capture", "start", file.to_str().unwrap()]);
    let ping = instance.client(PROGRAM, &["enter", "ping", "-c1", "10.0.42.2"]);
    assert!(ping.status.success(), "{ping:?}");
    let capture = instance.json(&["capture", "stop"]);
    assert!(capture["frames"].as_u64().unwrap() >= 2, "{capture}");
    assert_eq!(std::fs::metadata(&file).unwrap().len(), capture["bytes"].as_u64().unwrap());
    std::fs::remove_file(file).unwrap();
    assert!(instance.json(&["stats"])["icmp"]["packetsFromChild"].as_u64().unwrap() >= 1);
    instance.end();
}

#[test]
fn counters_are_served_to_prometheus() {
    let port = free_port();
    let Some(instance) = Instance::start("metrics", &["--metrics", &port.to_string()]) else { return };
    let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.contains("\nrootless_launch_frames") || answer.contains("\nrootless_launch_flows "),
        "{answer}"
    );
    instance.end();
}

#[test]
fn a_directory_is_for_one_instance_and_free_after_a_kill() {
    let Some(instance) = Instance::start("twice", &[]) else { return };
    let directory = instance.directory.clone();
    let mut second = Command::new(PROGRAM);
    let second = second.arg("--state-dir").arg(&directory).args(["--", "true"]).output().unwrap();
    let told = String::from_utf8_lossy(&second.stderr);
    let expected = format!("is in use by a running instance, process {}", instance.launcher.id());
    assert!(second.status.code() == Some(1) && told.contains(&expected), "{second:?}");
    assert!(Path::new(&directory).join("api.sock").exists(), "the first one's");
    instance.kill();
    let Some(again) = Instance::start_in(directory.clone(), &[]) else { return };
    assert_eq!(again.json(&["port", "list"]).as_array().unwrap().len(), 0);
    again.end();
    assert!(!directory.exists());
}

/// Runs a shell command with `$helper` for each helper of the instance whose name begins so; then says "done".
fn for_each_helper(name: &str, command: &str) -> String {
    format!(
        "for p in /proc/[0-9]*; do case $(cat $p/comm 2>&1) in {name}*) \
         if grep -q \"^PPid:[[:space:]]*$PPID$\" $p/status; then helper=${{p#/proc/}}; {command}; fi;; esac; done; \
         echo done"
    )
}

/// An instance with an agent that has joined the child's namespaces: a client was refused by it.
fn start_with_agent(name: &str) -> Option<Instance> {
    let port = free_port();
    let instance = Instance::start(name, &["-p", &format!("127.0.0.1:{port}:1/tcp")])?;
    let mut client = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
    assert!(client.read(&mut [0]).is_err(), "nothing listens");
    Some(instance)
}

#[test]
fn the_childs_root_cannot_look_into_the_helpers() {
    let Some(mut instance) = start_with_agent("look") else { return };
    let look = for_each_helper("rl-", "readlink /proc/$helper/root 2>/dev/null && echo seen");
    assert_eq!(instance.line(&look), "done");
    instance.end();
}

#[test]
fn helpers_that_somebody_has_stopped_do_not_stop_the_end() {
    let Some(mut instance) = start_with_agent("stopped") else { return };
    assert_eq!(instance.line(&for_each_helper("rl-", "kill -STOP $helper")), "done");
    instance.end();
}

#[test]
fn an_end_does_not_wait_for_ports_that_are_being_published() {
    let Some(mut instance) = Instance::start("publishing", &[]) else { return };
    // A thousand of them, each of which needs the thread that ends.
    let range = "127.0.0.1:21000-21999:21000-21999/udp";
    assert_eq!(instance.line(&format!("{PROGRAM} port add {range} >&2 & echo begun")), "begun");
    let first = format!(":{:04X} ", 21000);
    while !read_to_string("/proc/net/udp").unwrap().contains(&first) {}
    instance.end();
}
