//! The forwarder alone, as a program of the laboratory: `probe forward PID` publishes ports of the network namespace of process
//! PID in the one it was started in, as the lines of its stdin say.

use crate::{
    locate,
    process::{DEADLINE, Process},
    world::{Netns, World},
};
use forwarder::{
    child,
    driver::{ChildAddress, ChildLine, ChildNetwork, Config, ForwardDriver, Handle},
    spec::PortSpec,
};
use nix::sched::{CloneFlags, setns};
use std::{
    fs::File,
    io::{self, BufRead, Write},
    os::fd::AsFd,
    process::{Command, Stdio},
    thread,
    time::Instant,
};

/// The child's addresses, and the gateway's.
pub const CHILD4: &str = "10.0.2.100";
/// As [`CHILD4`].
pub const CHILD6: &str = "fd00::100";
/// As [`CHILD4`].
pub const GATEWAY4: &str = "10.0.2.2";
/// As [`CHILD4`].
pub const GATEWAY6: &str = "fd00::2";

/// The test's end: a forwarder in the world's host, whose child is a namespace with a TAP that nobody reads.
///
/// | Request | Answer |
/// |---|---|
/// | `add SPEC` | `ID ADDRESSES` |
/// | `remove ID`, `cut ID` | `ok`; `cut` resets the connections too |
/// | `list` | the specs |
/// | `stats` | counters |
/// | `connections` | client and server of each |
/// | `fds` | how many descriptors are open |
#[derive(Debug)]
pub struct Forwarder {
    process: Process,
}

impl Forwarder {
    /// Gives `child` its addresses and starts a forwarder for it.
    #[track_caller]
    #[must_use]
    pub fn start(world: &World, child: &Netns) -> Self {
        child.ip(&format!(
            "link add tap0 type veth peer name tap1\naddr add {CHILD4}/24 dev tap0\naddr add {CHILD6}/64 dev tap0 nodad\n\
             link set tap1 up\nlink set tap0 up\nroute add default via {GATEWAY4}\nroute add default via {GATEWAY6}\n"
        ));
        let argv = locate::probe_argv(&["forward", &child.pid().to_string()]);
        let mut process = Process::spawn(world.host.command(&argv));
        let _ = process.wait_for_line("ready=1");
        Self { process }
    }

    /// Adds a forward that must be possible; returns its id.
    #[track_caller]
    pub fn add(&mut self, spec: &str) -> String {
        let answer = self.ask(&format!("add {spec}"));
        let (id, _) = answer.split_once(' ').unwrap_or_else(|| panic!("{spec}: {answer}"));
        id.to_owned()
    }

    /// Asks and returns the answer.
    #[track_caller]
    pub fn ask(&mut self, request: &str) -> String {
        self.process.tell(request);
        self.process.wait_for_line("answer=").trim_start_matches("answer=").to_owned()
    }

    /// Waits until no connection is left.
    ///
    /// # Panics
    /// When some stay.
    #[track_caller]
    pub fn wait_until_idle(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        while !self.ask("stats").contains("connections: 0") {
            assert!(Instant::now() < deadline, "{}", self.ask("stats"));
        }
    }

    /// Lets it end.
    #[track_caller]
    pub fn finish(mut self) -> crate::process::Finished {
        self.process.close_stdin();
        self.process.finish()
    }
}

/// `probe forward PID`.
pub(crate) fn serve(pid: &str) -> io::Result<()> {
    let (line, agent) = ChildLine::pair()?;
    let argv = locate::probe_argv(&["forward-agent", pid]);
    let mut agent = Command::new(&argv[0]).args(&argv[1..]).stdin(Stdio::from(agent)).spawn()?;
    let parse = |text: &str| text.parse().map_err(io::Error::other);
    let parse6 = |text: &str| text.parse().map_err(io::Error::other);
    let child = ChildNetwork {
        ipv4: Some(ChildAddress { address: parse(CHILD4)?, prefix: 24, gateway: parse(GATEWAY4)? }),
        ipv6: Some(ChildAddress { address: parse6(CHILD6)?, prefix: 64, gateway: parse6(GATEWAY6)? }),
    };
    let config = Config { child, ..Config::default() };
    let driver = ForwardDriver::new(config, Some(line), None).map_err(io::Error::other)?;
    let handle = driver.handle();
    let (stop, stopper) = io::pipe()?;
    let runs = thread::spawn(move || driver.run_until(stop));
    println!("ready=1");
    for request in io::stdin().lock().lines() {
        println!("answer={}", answer(&handle, &request?));
        io::stdout().flush()?;
    }
    drop(stopper);
    let ended = runs.join().expect("the driver does not panic");
    println!("ended={ended:?}");
    agent.wait()?;
    Ok(())
}

/// `probe forward-agent PID`: the channel is stdin.
pub(crate) fn agent(pid: &str) -> io::Result<()> {
    setns(File::open(format!("/proc/{pid}/ns/net"))?, CloneFlags::CLONE_NEWNET)?;
    child::run(io::stdin().as_fd().try_clone_to_owned()?).map_err(io::Error::other)
}

fn answer(handle: &Handle, request: &str) -> String {
    let words = request.split(' ').collect::<Vec<_>>();
    let result = match words[..] {
        ["add", spec] => spec
            .parse::<PortSpec>()
            .map_err(|error| error.to_string())
            .and_then(|spec| handle.add(spec).map_err(|error| error.to_string()))
            .map(|status| format!("{} {}", status.id, status.spec)),
        ["remove", id] => {
            handle.remove(id.parse().unwrap_or(0)).map(|()| "ok".to_owned()).map_err(|e| e.to_string())
        }
        ["cut", id] => handle
            .remove_with_connections(id.parse().unwrap_or(0))
            .map(|()| "ok".to_owned())
            .map_err(|e| e.to_string()),
        ["list"] => handle
            .list()
            .map(|list| list.iter().map(|status| status.spec.to_string()).collect::<Vec<_>>().join(" "))
            .map_err(|error| error.to_string()),
        ["stats"] => handle.stats().map(|stats| format!("{stats:?}")).map_err(|error| error.to_string()),
        ["connections"] => handle
            .connections()
            .map(|list| {
                list.iter().map(|c| format!("{}>{}", c.client, c.server)).collect::<Vec<_>>().join(" ")
            })
            .map_err(|error| error.to_string()),
        ["fds"] => std::fs::read_dir("/proc/self/fd")
            .map(|fds| fds.count().to_string())
            .map_err(|error| error.to_string()),
        _ => Err(format!("what is {request}?")),
    };
    result.unwrap_or_else(|error| format!("error {error}"))
}
