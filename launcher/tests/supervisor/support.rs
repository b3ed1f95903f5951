//! A supervisor under test.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use launcher::client::http::{self, Request};
use launcher::supervisor::control::{NodeStatus, UnitStatus};
use launcher::supervisor::unit::{Journal, NodePlan, Readiness, Restart, Unit};
use launcher::sys::pidfd;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The program under test.
pub(crate) const LAUNCHER: &str = env!("CARGO_BIN_EXE_rootless-launch");

/// Longest wait for anything; a machine may be slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Says that the running test cannot run here, and why: past the capture of the test harness, so that CI counts it.
pub(crate) fn skipped(reason: &str) {
    let thread = thread::current();
    let line = format!("SKIPPED {}: {reason}\n", thread.name().unwrap_or("unnamed"));
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Whether this machine lets an ordinary user make namespaces; says SKIPPED and why if not.
pub(crate) fn has_namespaces() -> bool {
    let Ok(output) = Command::new("unshare").args(["-Urm", "true"]).output() else { return true };
    if !output.status.success() {
        skipped(&format!("no user namespaces here: {}", String::from_utf8_lossy(&output.stderr)));
    }
    output.status.success()
}

/// A directory that is gone at the end.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("rl-supervisor-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A shell script that is ready when it runs, and is started again always; `$D` is the scratch directory.
pub(crate) fn unit(scratch: &Scratch, name: &str, script: &str) -> Unit {
    Unit {
        name: name.into(),
        argv: ["sh", "-c", script].map(String::from).into(),
        env: vec![("D".into(), scratch.0.to_str().unwrap().into())],
        after: Vec::new(),
        ready: Readiness::Started,
        start_timeout: PATIENCE,
        stop_timeout: PATIENCE,
        restart: Restart::Always,
    }
}

/// As [`unit`], ready when it has made a file `NAME.ready`.
pub(crate) fn daemon(scratch: &Scratch, name: &str, script: &str) -> Unit {
    let path = scratch.path(&format!("{name}.ready"));
    Unit { ready: Readiness::File { path }, ..unit(scratch, name, script) }
}

/// The same after another one.
pub(crate) fn after(other: &str, unit: Unit) -> Unit {
    Unit { after: vec![other.into()], ..unit }
}

/// A plan of these units in a scratch directory.
pub(crate) fn plan(scratch: &Scratch, units: Vec<Unit>) -> NodePlan {
    NodePlan {
        directories: Vec::new(),
        files: Vec::new(),
        units,
        log_dir: scratch.path("log"),
        control: scratch.path("node.sock"),
        journal: Journal::Off,
        programs: Vec::new(),
    }
}

/// A supervisor that runs.
pub(crate) struct Node {
    pub(crate) process: Child,
    control: PathBuf,
    told: Receiver<String>,
}

impl Node {
    /// Starts the supervisor of some units.
    pub(crate) fn start(scratch: &Scratch, units: Vec<Unit>) -> Self {
        Node::start_plan(scratch, &plan(scratch, units), Command::new(LAUNCHER))
    }

    /// Starts the supervisor by a command that is or execs the launcher.
    pub(crate) fn start_plan(scratch: &Scratch, plan: &NodePlan, mut command: Command) -> Self {
        let path = scratch.path("notify");
        let _ = fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).unwrap();
        let (sender, told) = mpsc::channel();
        // Ends when nobody listens to it any more, or with the tests.
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length) = socket.recv(&mut bytes) {
                if sender.send(String::from_utf8_lossy(&bytes[..length]).into_owned()).is_err() {
                    break;
                }
            }
        });
        fs::write(scratch.path("plan.json"), serde_json::to_vec(plan).unwrap()).unwrap();
        let process = command
            .args(["node-supervisor", "--plan-fd=0"])
            .env("NOTIFY_SOCKET", &path)
            .stdin(File::open(scratch.path("plan.json")).unwrap())
            .stderr(Stdio::piped())
            .spawn();
        Node { process: process.unwrap(), control: plan.control.clone(), told }
    }

    /// Waits until the supervisor tells something.
    #[track_caller]
    pub(crate) fn wait_told(&self, text: &str) {
        loop {
            match self.told.recv_timeout(PATIENCE) {
                Ok(told) if told.split('\n').any(|line| line == text) => return,
                Ok(_) => {}
                Err(error) => panic!("never told {text}: {error}"),
            }
        }
    }

    /// Waits until the supervisor tells anything.
    #[track_caller]
    pub(crate) fn wait_any(&self) {
        self.told.recv_timeout(PATIENCE).expect("something is told");
    }

    #[track_caller]
    pub(crate) fn wait_ready(&self) {
        self.wait_told("READY=1");
    }

    /// Status and body of an answer.
    #[track_caller]
    pub(crate) fn ask(&self, method: &str, target: &str) -> (u16, String) {
        let response = http::send(&self.control, &Request::new(method, target)).unwrap();
        (response.status, String::from_utf8_lossy(&response.read().unwrap()).into_owned())
    }

    #[track_caller]
    pub(crate) fn status(&self) -> NodeStatus {
        serde_json::from_str(&self.ask("GET", "/v1/node").1).unwrap()
    }

    #[track_caller]
    pub(crate) fn unit(&self, name: &str) -> UnitStatus {
        self.status().units.into_iter().find(|unit| unit.name == name).unwrap()
    }

    /// The process of a unit.
    #[track_caller]
    pub(crate) fn pid(&self, name: &str) -> i32 {
        self.unit(name).pid.unwrap()
    }

    pub(crate) fn control(&self) -> &Path {
        &self.control
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id().cast_signed()), signal).unwrap();
    }

    /// Tells it to stop, and waits until it and all that it started have closed our pipe.
    pub(crate) fn stop(self) -> (ExitStatus, String) {
        self.signal(Signal::SIGTERM);
        self.end()
    }

    /// Waits for its end; how that was, and what it said.
    pub(crate) fn end(mut self) -> (ExitStatus, String) {
        let mut text = String::new();
        self.process.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        (self.process.wait().unwrap(), text)
    }
}

/// A test that fails leaves nobody.
impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A process whose end is waited for.
pub(crate) struct Watched(OwnedFd);

impl Watched {
    /// A process that runs.
    #[track_caller]
    pub(crate) fn new(pid: i32) -> Self {
        Watched(pidfd::open(Pid::from_raw(pid)).unwrap())
    }

    /// The process whose id a script has written to a file.
    #[track_caller]
    pub(crate) fn named_by(scratch: &Scratch, name: &str) -> Self {
        Watched::new(scratch.read(name).trim().parse().unwrap())
    }

    /// Waits for its end; fails if it does not come.
    #[track_caller]
    pub(crate) fn assert_dies(&self) {
        let patience = PollTimeout::try_from(PATIENCE).unwrap();
        assert_eq!(poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], patience), Ok(1), "it lives");
    }

    /// Whether it runs now.
    pub(crate) fn is_alive(&self) -> bool {
        poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(0)
    }
}
