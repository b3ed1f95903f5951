//! A namespace for programs that serve one: a process in user and network namespaces of its own, which does nothing.

use crate::{
    locate,
    process::{DEADLINE, Finished, Process},
    world::World,
};
use std::time::Instant;

/// See the module.
#[derive(Debug)]
pub struct Child<'a> {
    world: &'a World,
    process: Process,
}

impl<'a> Child<'a> {
    /// A child of the world's host.
    #[track_caller]
    #[must_use]
    pub fn new(world: &'a World) -> Self {
        let holder = ["unshare", "-Urn", "sh", "-c", "echo ready; exec cat"];
        let mut process = Process::spawn(world.host.program(&holder));
        process.wait_for_line("ready");
        Child { world, process }
    }

    /// The world.
    #[must_use]
    pub fn world(&self) -> &'a World {
        self.world
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> String {
        self.process.pid().to_string()
    }

    /// Lets its process end, and waits for it.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn end(mut self) {
        self.process.close_stdin();
        assert!(self.process.ends_before(Instant::now() + DEADLINE));
    }

    /// A program inside.
    #[track_caller]
    #[must_use]
    pub fn start(&self, argv: &[&str]) -> Process {
        let pid = self.pid();
        let enter = ["nsenter", "-t", &pid, "-U", "--preserve-credentials", "-n", "--"];
        let program = locate::program(argv[0]).to_string_lossy().into_owned();
        let words: Vec<&str> =
            enter.into_iter().chain([program.as_str()]).chain(argv[1..].iter().copied()).collect();
        Process::spawn(self.world.host.program(&words))
    }

    /// Runs a program inside to its end.
    #[track_caller]
    #[must_use]
    pub fn run(&self, argv: &[&str]) -> Finished {
        let mut process = self.start(argv);
        process.close_stdin();
        process.finish()
    }

    /// What a program inside prints, which has to succeed.
    #[track_caller]
    pub fn stdout(&self, argv: &[&str]) -> String {
        self.run(argv).success().stdout
    }

    /// What a TCP connection from inside comes to: "ok", the name of an error, "TIMEOUT".
    #[track_caller]
    #[must_use]
    pub fn connecting(&self, host: &str, port: &str) -> String {
        let probe = locate::probe_argv(&["connect", host, port]);
        let probe: Vec<&str> = probe.iter().map(String::as_str).collect();
        self.run(&probe).success().value("result")
    }
}
