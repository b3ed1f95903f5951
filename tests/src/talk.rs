//! A child that does what it is told, step by step: `probe talk` reads requests, one a line, and answers each with `answer=…`.
//!
//! Connections and the UDP socket stay open between requests, so that a test can change the world around them.

use crate::{
    engine::Launch,
    locate,
    probe::{PATIENCE, name_of, number, resolve},
    process::{DEADLINE, Process, readable_before},
    world::World,
};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt,
        socket, sockopt,
    },
};
use std::{
    fs,
    io::{self, BufRead, ErrorKind, Read, Write},
    net::{TcpStream, UdpSocket},
    os::fd::AsRawFd,
    process::{Command, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// The test's end: a child of the host that waits for requests.
///
/// | Request | Answer |
/// |---|---|
/// | `connect HOST PORT MS` | `ok`, `TIMEOUT` after that many milliseconds, or the error; connections are numbered from 0 |
/// | `begin HOST PORT` | `ok` at once: the connect goes on for 30 s at most |
/// | `end` | how it ended; an `ok` takes the next number |
/// | `echo N` | `ok` when a byte came back over connection N |
/// | `close N` | `ok` |
/// | `udp HOST PORT` | `ok` when a datagram was answered; one socket serves all IPv4 peers |
/// | `default6 present\|absent` | `ok` as soon as there is, or is not, an IPv6 default route |
/// | `run COMMAND` | its exit status, of a shell |
#[derive(Debug)]
pub struct Talk {
    process: Process,
}

impl Talk {
    /// A child behind the engine that `launch` names.
    #[track_caller]
    #[must_use]
    pub fn start(world: &World, launch: &Launch) -> Self {
        Self::behind(world, launch, &[])
    }

    /// The same, the launcher being started by the foreign program `wrapper`.
    #[track_caller]
    #[must_use]
    pub fn behind(world: &World, launch: &Launch, wrapper: &[&str]) -> Self {
        let talk = locate::probe_argv(&["talk"]);
        let mut argv = wrapper.iter().map(ToString::to_string).collect::<Vec<_>>();
        if let Some(program) = argv.first_mut() {
            *program = locate::program(program).to_string_lossy().into_owned();
        }
        argv.extend(launch.argv(&talk.iter().map(String::as_str).collect::<Vec<_>>()));
        Self { process: Process::spawn(world.host.command(&argv)) }
    }

    /// Sends one request and returns the answer.
    ///
    /// # Panics
    /// When none comes in time.
    #[track_caller]
    pub fn ask(&mut self, request: &str) -> String {
        self.tell(request);
        self.answer()
    }

    /// Sends one request, for an [`answer`](Self::answer) that the test has to do something for.
    #[track_caller]
    pub fn tell(&mut self, request: &str) {
        self.process.tell(request);
    }

    /// The answer to the earliest request without one.
    ///
    /// # Panics
    /// When none comes in time.
    #[track_caller]
    pub fn answer(&mut self) -> String {
        self.process.wait_for_line("answer=").trim_start_matches("answer=").to_owned()
    }

    /// The engine's process.
    ///
    /// # Panics
    /// When the launcher has none.
    #[track_caller]
    #[must_use]
    pub fn engine(&self) -> EngineProcess {
        let launcher = self.process.pid();
        let children = fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children"))
            .expect("the launcher runs");
        let engine = children.split_whitespace().find(|pid| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "rl-engine")
        });
        EngineProcess { pid: engine.expect("the launcher has an engine").to_owned() }
    }

    /// Lets the child end, and the launcher with it.
    #[track_caller]
    pub fn finish(mut self) -> crate::process::Finished {
        self.process.close_stdin();
        self.process.finish()
    }
}

/// A running engine, looked at from outside.
#[derive(Debug)]
pub struct EngineProcess {
    pid: String,
}

impl EngineProcess {
    /// Processor time used so far, with the resolution of proc_pid_stat(5): 10 ms.
    ///
    /// # Panics
    /// When it is gone.
    #[track_caller]
    #[must_use]
    pub fn processor_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).expect("the engine runs");
        // The name, in parentheses, may hold anything; utime and stime are fields 14 and 15.
        let (_, fields) = stat.rsplit_once(") ").expect("the format of stat");
        let ticks = fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().expect("a number"));
        Duration::from_millis(10 * ticks.sum::<u64>())
    }
}

/// The child itself.
pub(crate) fn serve() -> io::Result<()> {
    let mut child = Child::default();
    for line in io::stdin().lock().lines() {
        let line = line?;
        let answer = child.perform(&line).unwrap_or_else(|error| name_of(&error));
        println!("answer={answer}");
        io::stdout().flush()?;
    }
    Ok(())
}

#[derive(Default)]
struct Child {
    streams: Vec<Option<TcpStream>>,
    beginning: Option<JoinHandle<io::Result<TcpStream>>>,
    udp: Option<UdpSocket>,
}

impl Child {
    fn perform(&mut self, request: &str) -> io::Result<String> {
        let words = request.split(' ').collect::<Vec<_>>();
        match words[..] {
            ["connect", host, port, ms] => {
                let patience = Duration::from_millis(number(ms)?);
                self.keep(TcpStream::connect_timeout(&resolve(host, port)?, patience)?);
            }
            ["begin", host, port] => {
                let peer = resolve(host, port)?;
                let patience = Duration::from_secs(30);
                self.beginning = Some(thread::spawn(move || TcpStream::connect_timeout(&peer, patience)));
            }
            ["end"] => {
                let beginning = self.beginning.take().ok_or(ErrorKind::InvalidInput)?;
                self.keep(beginning.join().map_err(|_| io::Error::other("the connecting thread panicked"))??);
            }
            ["echo", n] => {
                let stream = self.stream(n)?.as_mut().ok_or(ErrorKind::NotConnected)?;
                stream.write_all(b"x")?;
                stream.read_exact(&mut [0])?;
            }
            ["close", n] => *self.stream(n)? = None,
            ["udp", host, port] => self.udp(host, port)?,
            ["default6", wanted] => wait_default6(wanted == "present")?,
            ["run", ..] => {
                let command = words[1..].join(" ");
                let mut shell = Command::new("/bin/sh");
                shell.args(["-c", &command]).stdin(Stdio::null()).stdout(Stdio::null());
                return Ok(shell
                    .status()?
                    .code()
                    .map_or_else(|| "killed".to_owned(), |code| code.to_string()));
            }
            _ => return Err(ErrorKind::InvalidInput.into()),
        }
        Ok("ok".to_owned())
    }

    fn keep(&mut self, stream: TcpStream) {
        // Fails for no open socket.
        let _ = stream.set_read_timeout(Some(PATIENCE));
        self.streams.push(Some(stream));
    }

    fn stream(&mut self, n: &str) -> io::Result<&mut Option<TcpStream>> {
        let n = number::<usize>(n)?;
        self.streams.get_mut(n).ok_or_else(|| ErrorKind::NotConnected.into())
    }

    fn udp(&mut self, host: &str, port: &str) -> io::Result<()> {
        let peer = resolve(host, port)?;
        if self.udp.is_none() {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(PATIENCE))?;
            // Also errors that the kernel holds for passing ones (ip(7)).
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
            self.udp = Some(socket);
        }
        let socket = self.udp.as_ref().ok_or(ErrorKind::NotConnected)?;
        // Connected for this exchange, so that errors are heard.
        socket.connect(peer)?;
        socket.send(b"anybody?")?;
        socket.recv(&mut [0; 64]).map(drop)
    }
}

fn wait_default6(wanted: bool) -> io::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let events = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(events.as_raw_fd(), &NetlinkAddr::new(0, libc::RTMGRP_IPV6_ROUTE.cast_unsigned()))?;
    let deadline = Instant::now() + DEADLINE / 2;
    while has_default6()? != wanted {
        if !readable_before(&events, deadline) {
            return Err(ErrorKind::TimedOut.into());
        }
        match recv(events.as_raw_fd(), &mut [0; 4096], MsgFlags::empty()) {
            // Lost events are events.
            Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether there is a way out for `::/0`: not by the loopback, where the kernel has one that refuses, nor one that leads to the machine
/// itself (RTF_LOCAL), as in the relay's table.
fn has_default6() -> io::Result<bool> {
    const LOCAL: u32 = 0x8000_0000;
    let routes = fs::read_to_string("/proc/self/net/ipv6_route")?;
    Ok(routes.lines().any(|line| {
        let fields = line.split_whitespace().collect::<Vec<_>>();
        matches!(fields[..], [destination, "00", .., flags, interface]
            if destination.bytes().all(|digit| digit == b'0')
                && interface != "lo"
                && u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & LOCAL == 0))
    }))
}
