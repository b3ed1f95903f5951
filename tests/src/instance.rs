//! Running instances of the program under test, as their callers and clients see them: options, a state directory, processes by name.

use crate::{
    engine::Launch,
    locate,
    process::{DEADLINE, Finished, Process, run},
    world::{Netns, World},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Instant,
};

/// The child's addresses and the gateway's, with default options.
pub const CHILD4: &str = "10.0.42.100";
/// As [`CHILD4`].
pub const CHILD6: &str = "fd42:10:42::100";
/// As [`CHILD4`].
pub const GATEWAY4: &str = "10.0.42.2";
/// As [`CHILD4`].
pub const GATEWAY6: &str = "fd42:10:42::2";

/// A launcher in a world's host, and everything that it started.
#[derive(Debug)]
pub struct Instance {
    /// The launcher; its standard input is that of the command.
    pub process: Process,
    directory: PathBuf,
    host: u32,
}

impl Instance {
    /// With `args`, a state directory of its own, and a command that waits for the end of its standard input.
    #[track_caller]
    #[must_use]
    pub fn start(world: &World, args: &[&str]) -> Self {
        Self::at(world, &world.dir().join("state"), args)
    }

    /// The same with a state directory to order.
    #[track_caller]
    #[must_use]
    pub fn at(world: &World, directory: &Path, args: &[&str]) -> Self {
        let wait = locate::probe_argv(&["wait"]);
        let mut instance =
            Self::running(world, directory, args, &wait.iter().map(String::as_str).collect::<Vec<_>>());
        instance.process.wait_for_line("ready=1");
        instance
    }

    /// The same with a command of the caller's, which need not run yet.
    #[track_caller]
    #[must_use]
    pub fn running(world: &World, directory: &Path, args: &[&str], command: &[&str]) -> Self {
        Self::behind(world, directory, &[], args, command)
    }

    /// The same, the launcher being started by the foreign program `wrapper`.
    #[track_caller]
    #[must_use]
    pub fn behind(
        world: &World,
        directory: &Path,
        wrapper: &[&str],
        args: &[&str],
        command: &[&str],
    ) -> Self {
        let state = format!("--state-dir={}", directory.display());
        let argv = launch(&state).args(args).argv(command);
        Self::begin(&world.host, directory, wrapper, argv)
    }

    /// On another host of the world, with a command that waits for the end of its standard input.
    #[track_caller]
    #[must_use]
    pub fn on(host: &Netns, directory: &Path, args: &[&str]) -> Self {
        let state = format!("--state-dir={}", directory.display());
        let wait = locate::probe_argv(&["wait"]);
        let wait = wait.iter().map(String::as_str).collect::<Vec<_>>();
        let mut instance = Self::begin(host, directory, &[], launch(&state).args(args).argv(&wait));
        instance.process.wait_for_line("ready=1");
        instance
    }

    fn begin(host: &Netns, directory: &Path, wrapper: &[&str], argv: Vec<String>) -> Self {
        let mut words = wrapper.iter().map(ToString::to_string).collect::<Vec<_>>();
        if let Some(program) = words.first_mut() {
            *program = locate::program(program).to_string_lossy().into_owned();
        }
        words.extend(argv);
        let process = Process::spawn(host.command(&words));
        Self { process, directory: directory.to_owned(), host: host.pid() }
    }

    /// The state directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The command's process.
    ///
    /// # Panics
    /// When the instance is not ready.
    #[track_caller]
    #[must_use]
    pub fn child_pid(&self) -> u32 {
        let text = fs::read_to_string(self.directory.join("child_pid")).expect("the instance is ready");
        text.parse().expect("a process id")
    }

    /// The network namespace of the command. Sockets that come from there keep it alive.
    #[track_caller]
    #[must_use]
    pub fn child(&self, world: &World) -> Netns {
        world.inside(self.child_pid())
    }

    /// The processes that the launcher started and that live, with their names. Some are there only when they are needed.
    #[must_use]
    pub fn processes(&self) -> Vec<(String, Pid)> {
        let launcher = self.process.pid();
        let children =
            fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).unwrap_or_default();
        let name = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).ok();
        let named = |pid: &str| Some((name(pid)?.trim().to_owned(), Pid::from_raw(pid.parse().ok()?)));
        children.split_whitespace().filter_map(named).collect()
    }

    /// The process of this name, for example `rl-engine`.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    #[must_use]
    pub fn pid_of(&self, name: &str) -> Pid {
        let found = self.processes().into_iter().find(|(other, _)| other == name);
        found.unwrap_or_else(|| panic!("{name} is not among {:?}", self.processes())).1
    }

    /// Ends a process by force.
    ///
    /// # Panics
    /// When it does not run.
    #[track_caller]
    pub fn kill(&self, pid: Pid) {
        kill(pid, Signal::SIGKILL).expect("it runs");
    }

    /// A command of the program under test that concerns this instance, run beside the launcher.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let program = locate::rootless_launch().expect("rootless-launch is built");
        self.beside(&program, args)
    }

    /// A foreign program, run beside the launcher and told of the state directory as RootlessKit's are.
    #[must_use]
    pub fn foreign(&self, argv: &[&str]) -> Command {
        self.beside(&locate::program(argv[0]), &argv[1..])
    }

    /// The output of a command that succeeds.
    #[track_caller]
    pub fn client(&self, args: &[&str]) -> String {
        run(self.command(args)).success().stdout
    }

    /// The complaint of a command that fails.
    ///
    /// # Panics
    /// When it succeeds.
    #[track_caller]
    pub fn refusal(&self, args: &[&str]) -> String {
        let finished = run(self.command(args));
        assert!(!finished.status.success(), "{}", finished.describe());
        finished.stderr
    }

    /// Publishes a port; its id.
    ///
    /// # Panics
    /// When it cannot be published.
    #[track_caller]
    pub fn publish(&self, spec: &str) -> String {
        let line = self.client(&["port", "add", spec]);
        line.split_whitespace().next().expect("an id").to_owned()
    }

    /// Asks until the output of a command is as wanted.
    ///
    /// # Panics
    /// When it is not to be.
    #[track_caller]
    pub fn until(&self, args: &[&str], wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let output = self.client(args);
            if wanted(&output) {
                return output;
            }
            assert!(Instant::now() < deadline, "{args:?}: {output}");
        }
    }

    /// Lets the command end, and the launcher with it.
    #[track_caller]
    pub fn finish(mut self) -> Finished {
        self.process.close_stdin();
        self.process.finish()
    }

    fn beside(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = locate::probe(&["in", &self.host.to_string(), "--"]);
        command.arg(program).args(args).env("ROOTLESSKIT_STATE_DIR", &self.directory);
        command
    }
}

/// A UDP server that tells each client who it is, until the returned guard is dropped.
#[must_use]
pub fn udp_who(socket: UdpSocket) -> crate::servers::UdpServer {
    crate::servers::udp_server(socket, |peer, _| peer.to_string().into_bytes())
}

/// Who we are for the [`udp_who`] at `to`.
///
/// # Panics
/// When no answer comes, or one from elsewhere.
#[track_caller]
#[must_use]
pub fn ask_who(socket: &UdpSocket, to: &str) -> SocketAddr {
    socket.set_read_timeout(Some(DEADLINE)).expect("a socket");
    socket.send_to(b"who am I", to).unwrap_or_else(|error| panic!("{to}: {error}"));
    let mut buffer = [0; 100];
    let (n, from) = socket.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{to}: {error}"));
    assert_eq!(from, to.parse().expect("an address"), "the answer comes from where the question went");
    String::from_utf8_lossy(&buffer[..n]).parse().expect("an address")
}

/// Waits until `done`; there is no event for what the test looks at.
///
/// # Panics
/// When it is not to be.
#[track_caller]
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        thread::yield_now();
    }
}

fn launch(state: &str) -> Launch {
    crate::engine::Engine::Ours.launch().args(&[state, "--ipv6=on"])
}
