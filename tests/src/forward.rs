//! The forwarder alone, as a program of the laboratory: `probe forward PID alone` publishes ports of the network namespace of process
//! PID in the one it was started in, as the lines of its stdin say.

use crate::{
    locate,
    process::{DEADLINE, Process},
    world::{Netns, World},
};
use forwarder::{
    child,
    driver::{Auto, ChildAddress, ChildLine, ChildNetwork, Config, ForwardDriver, Handle, TapPath, ToHost},
    spec::{PortSpec, Source, Transport},
};
use nix::sched::{CloneFlags, setns};
use std::{
    fs::File,
    io::{self, BufRead, Write},
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd, OwnedFd},
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
/// | `to-host tcp\|udp LISTEN CONNECT` | `ID ADDRESS` |
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
        Self::give_addresses(child);
        Self::start_as(world, child, "alone")
    }

    /// The same with a TAP path that says who comes by it: `tap SOURCE CHILD`, and the end.
    #[track_caller]
    #[must_use]
    pub fn start_with_tap(world: &World, child: &Netns) -> Self {
        Self::give_addresses(child);
        Self::start_as(world, child, "tap")
    }

    /// The same, publishing by itself what listens in the child.
    #[track_caller]
    #[must_use]
    pub fn start_auto(world: &World, child: &Netns) -> Self {
        Self::give_addresses(child);
        Self::start_as(world, child, "auto")
    }

    /// The same with no more than so many file descriptors.
    #[track_caller]
    #[must_use]
    pub fn start_with_descriptors(world: &World, child: &Netns, limit: u32) -> Self {
        Self::give_addresses(child);
        let argv = locate::probe_argv(&["forward", &child.pid().to_string(), "alone"]);
        let limit = format!("--nofile={limit}");
        let mut command = vec!["prlimit", &limit];
        command.extend(argv.iter().map(String::as_str));
        let mut process = Process::spawn(world.host.program(&command));
        let _ = process.wait_for_line("ready=1");
        Self { process }
    }

    fn give_addresses(child: &Netns) {
        child.ip(&format!(
            "link add tap0 type veth peer name tap1\naddr add {CHILD4}/24 dev tap0\naddr add {CHILD6}/64 dev tap0 nodad\n\
             link set tap1 up\nlink set tap0 up\nroute add default via {GATEWAY4}\nroute add default via {GATEWAY6}\n"
        ));
        child.wait_for_address6(CHILD6);
    }

    #[track_caller]
    fn start_as(world: &World, child: &Netns, how: &str) -> Self {
        let argv = locate::probe_argv(&["forward", &child.pid().to_string(), how]);
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
        self.answer()
    }

    /// The driver's end, when the child goes.
    #[track_caller]
    pub fn wait_for_end(&mut self) -> String {
        self.process.wait_for_line("ended=").trim_start_matches("ended=").to_owned()
    }

    #[track_caller]
    fn answer(&mut self) -> String {
        self.process.wait_for_line("answer=").trim_start_matches("answer=").to_owned()
    }

    /// Waits until no connection is left.
    ///
    /// # Panics
    /// When some stay.
    #[track_caller]
    pub fn wait_until_idle(&mut self) {
        self.wait_until_idle_but(0);
    }

    /// Waits until no more connections are left.
    ///
    /// # Panics
    /// When more stay.
    #[track_caller]
    pub fn wait_until_idle_but(&mut self, connections: usize) {
        let left = format!("total: Counters {{ connections: {connections},");
        let deadline = Instant::now() + DEADLINE;
        while !self.ask("stats").contains(&left) {
            assert!(Instant::now() < deadline, "{}", self.ask("stats"));
        }
    }

    /// Waits until the list of forwards is as wanted.
    ///
    /// # Panics
    /// When it is not to be.
    #[track_caller]
    pub fn wait_for_list(&mut self, wanted: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !wanted(&self.ask("list")) {
            assert!(Instant::now() < deadline, "{}", self.ask("list"));
        }
    }

    /// Ends the agent by force.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn kill_agent(&mut self) {
        let pid = self.ask("agent").parse().expect("the agent's process id");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
            .expect("the agent runs");
    }

    /// Lets it end.
    #[track_caller]
    pub fn finish(mut self) -> crate::process::Finished {
        self.process.close_stdin();
        self.process.finish()
    }
}

/// `probe forward PID alone|auto|tap`.
pub(crate) fn serve(pid: &str, how: &str) -> io::Result<()> {
    let (line, agent) = ChildLine::pair()?;
    let argv = locate::probe_argv(&["forward-agent", pid]);
    let mut agent = Command::new(&argv[0]).args(&argv[1..]).stdin(Stdio::from(agent)).spawn()?;
    let parse = |text: &str| text.parse().map_err(io::Error::other);
    let parse6 = |text: &str| text.parse().map_err(io::Error::other);
    let child = ChildNetwork {
        ipv4: Some(ChildAddress { address: parse(CHILD4)?, prefix: 24, gateway: parse(GATEWAY4)? }),
        ipv6: Some(ChildAddress { address: parse6(CHILD6)?, prefix: 64, gateway: parse6(GATEWAY6)? }),
    };
    let auto = (how == "auto").then(Auto::default);
    let config = Config { child, auto, ..Config::default() };
    let tap: Option<Box<dyn TapPath>> = if how == "tap" { Some(Box::new(Teller)) } else { None };
    let driver = ForwardDriver::new(config, Some(line), tap).map_err(io::Error::other)?;
    let handle = driver.handle();
    let (stop, stopper) = io::pipe()?;
    let runs = thread::spawn(move || {
        let ended = driver.run_until(stop);
        println!("ended={ended:?}");
    });
    println!("ready=1");
    for request in io::stdin().lock().lines() {
        let request = request?;
        let answer = if request == "agent" { agent.id().to_string() } else { answer(&handle, &request) };
        println!("answer={answer}");
        io::stdout().flush()?;
    }
    drop(stopper);
    runs.join().expect("the driver does not panic");
    agent.wait()?;
    Ok(())
}

/// `probe forward-agent PID`: the channel is stdin.
pub(crate) fn agent(pid: &str) -> io::Result<()> {
    setns(File::open(format!("/proc/{pid}/ns/net"))?, CloneFlags::CLONE_NEWNET)?;
    child::run(io::stdin().as_fd().try_clone_to_owned()?).map_err(io::Error::other)
}

/// Tells clients whom the engine would have shown to whom.
struct Teller;

impl TapPath for Teller {
    fn tcp(&self, stream: OwnedFd, source: SocketAddr, child: SocketAddr) -> io::Result<()> {
        let mut stream = TcpStream::from(stream);
        stream.set_nonblocking(false)?;
        write!(stream, "tap {source} {child}")
    }

    fn add_udp(&self, _: OwnedFd, _: SocketAddr, _: Source) -> io::Result<u64> {
        Ok(1)
    }

    fn remove_udp(&self, _: u64) {}
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
        ["to-host", transport, listen, connect] => {
            let transport = if transport == "tcp" { Transport::Tcp } else { Transport::Udp };
            match (listen.parse(), connect.parse()) {
                (Ok(listen), Ok(connect)) => handle
                    .add_to_host(ToHost { transport, listen, connect })
                    .map(|status| format!("{} {}", status.id, status.to_host.listen))
                    .map_err(|error| error.to_string()),
                _ => Err("addresses".to_owned()),
            }
        }
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
