//! The probe: one program that speaks the test protocols from inside a child namespace, prints `key=value` words, and also holds the
//! helpers that need a process of their own (agents, entering namespaces, starting the peers).
//!
//! It ends with status 0 when it could do its job, whatever it observed; judging is the test's job.

use crate::{
    agent, forward,
    servers::{drain, pour, reset, verdict},
    stream::{Pattern, StreamHash},
    sys, talk,
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::CloneFlags,
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
        signal::Signal,
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, getsockopt, send, socket, sockopt,
        },
    },
    unistd::getppid,
};
use std::{
    fs,
    io::{self, BufRead, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

/// How long the probe waits for an answer that may never come, where that is an observation and not a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

const USAGE: &str = "\
probe tcp-send HOST PORT BYTES SEED        send, end our direction, read the verdict
probe tcp-recv HOST PORT                   read to the end
probe tcp-recv-then-send HOST PORT BYTES SEED   read to the end, then send and end
probe tcp-echo HOST PORT BYTES SEED        send and receive at the same time
probe tcp-reset HOST PORT BYTES            send, then reset the connection
probe tcp-urgent HOST PORT                 send `a`, urgent `!`, `b`, end, read the verdict
probe tcp-stall HOST PORT                  connect, print ready, read only after a line on stdin
probe tcp-flood HOST PORT                  write until nothing more is taken for a second, then wait for a line and send the end
probe connect HOST PORT                    connect, print the result
probe short N HOST PORT                    N connections, 16 at a time, each with an echoed byte and an end
probe many N HOST PORT BYTES SEED          N echoed connections at once
probe idle N HOST PORT                     open N, wait for a line, close them, wait for the end of stdin
probe half-open N HOST PORT                begin to connect N times, print ready, wait for a line, print what became of them
probe rr|crr|udp-rr HOST PORT SECONDS      transactions of one byte, one at a time
probe gate COMMAND...                      (benches) idle, rr, crr, udp-rr, or `rr-among N HOST HELD PORT SECONDS` (rr alone, then
                                           beside N idle connections to HELD): starts on a line, stays until stdin ends
probe udp-echo HOST PORT SEED SIZE...      one datagram of each size, there and back
probe udp-error HOST PORT                  send to where nobody listens, print the error that comes back
probe udp-from-one-socket HOST PORT...     one socket to many peers: print the replies and what else comes before stdin ends
probe udp-idle N HOST PORT                 N sockets, one echoed datagram each, then as `idle`
probe file PATH                            print a file
probe talk                                 do what the lines of stdin say (see the module `talk`)
probe wait                                 print ready and wait for the end of stdin
probe forward PID alone|auto|tap           publish ports of the network namespace of PID (see the module `forward`)
probe forward-agent PID                    (helper) its agent
probe in PID -- COMMAND                    (helper) run COMMAND in the namespaces of PID
probe without-nf-tables -- COMMAND         (helper) run COMMAND as if the kernel had no nf_tables
probe agent ...                            (helper) be a namespace
probe via-slirp4netns MTU -- COMMAND       (helper) run COMMAND behind slirp4netns
probe via-veth MTU -- COMMAND              (helper) run COMMAND behind a veth pair";

/// Runs the probe with the arguments after the program's name.
#[must_use]
pub fn main(args: Vec<String>) -> ExitCode {
    let words = args.iter().map(String::as_str).collect::<Vec<_>>();
    let result = match words[..] {
        ["tcp-send", host, port, bytes, seed] => tcp_send(host, port, bytes, seed),
        ["tcp-recv", host, port] => tcp_recv(host, port),
        ["tcp-recv-then-send", host, port, bytes, seed] => tcp_recv_then_send(host, port, bytes, seed),
        ["tcp-echo", host, port, bytes, seed] => tcp_echo(host, port, bytes, seed),
        ["tcp-reset", host, port, bytes] => tcp_reset(host, port, bytes),
        ["tcp-urgent", host, port] => tcp_urgent(host, port),
        ["tcp-stall", host, port] => tcp_stall(host, port),
        ["tcp-flood", host, port] => tcp_flood(host, port),
        ["connect", host, port] => connect(host, port),
        ["many", n, host, port, bytes, seed] => many(n, host, port, bytes, seed),
        ["short", n, host, port] => short(n, host, port),
        ["idle", n, host, port] => idle(n, host, port),
        ["half-open", n, host, port] => half_open(n, host, port),
        ["rr", host, port, seconds] => rr(host, port, seconds),
        ["crr", host, port, seconds] => crr(host, port, seconds),
        ["gate", ..] => gate(&words[1..]),
        ["udp-rr", host, port, seconds] => udp_rr(host, port, seconds),
        ["udp-echo", host, port, seed, ref sizes @ ..] => udp_echo(host, port, seed, sizes),
        ["udp-error", host, port] => udp_error(host, port),
        ["udp-from-one-socket", host, ref ports @ ..] => udp_from_one_socket(host, ports),
        ["udp-idle", n, host, port] => udp_idle(n, host, port),
        ["file", path] => fs::read_to_string(path).map(|text| print!("{text}")),
        ["talk"] => talk::serve(),
        ["wait"] => wait_for_end("ready=1"),
        ["forward", pid, how] => forward::serve(pid, how),
        ["forward-agent", pid] => forward::agent(pid),
        ["in", pid, "--", ..] => enter(pid, &args[3..]),
        ["without-nf-tables", "--", ..] => without_nf_tables(&args[2..]),
        ["agent", ..] => agent::serve(&args[1..]),
        ["via-slirp4netns", mtu, "--", ..] => via_slirp4netns(mtu, &args[3..]),
        ["start-slirp4netns", pid, mtu] => start_slirp4netns(pid, mtu),
        ["via-veth", mtu, "--", ..] => via_veth(mtu, &args[3..]),
        ["start-veth", pid, mtu] => start_veth(pid, mtu),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error={}", name_of(&error));
            eprintln!("probe {}: {error}", args.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn tcp_send(host: &str, port: &str, bytes: &str, seed: &str) -> io::Result<()> {
    send_for_verdict(tcp(host, port)?, number(bytes)?, number(seed)?)
}

fn send_for_verdict(mut stream: TcpStream, bytes: u64, seed: u64) -> io::Result<()> {
    pour(&mut stream, bytes, seed)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let sum = StreamHash::of_pattern(seed, bytes);
    println!("bytes={bytes} sum={sum:016x} intact={}", u8::from(answer == verdict(bytes, sum)));
    Ok(())
}

fn tcp_recv(host: &str, port: &str) -> io::Result<()> {
    print_drained(&mut tcp(host, port)?);
    Ok(())
}

fn print_drained(stream: &mut TcpStream) {
    let (hash, error) = drain(stream);
    let end = error.as_ref().map_or_else(|| "EOF".to_owned(), name_of);
    println!("bytes={} sum={:016x} end={end}", hash.bytes(), hash.sum());
}

fn tcp_recv_then_send(host: &str, port: &str, bytes: &str, seed: &str) -> io::Result<()> {
    let mut stream = tcp(host, port)?;
    let (hash, error) = drain(&mut stream);
    error.map_or(Ok(()), Err)?;
    println!("received={} received_sum={:016x}", hash.bytes(), hash.sum());
    pour(&mut stream, number(bytes)?, number(seed)?)?;
    stream.shutdown(std::net::Shutdown::Write)
}

fn tcp_echo(host: &str, port: &str, bytes: &str, seed: &str) -> io::Result<()> {
    let (bytes, seed) = (number(bytes)?, number(seed)?);
    let mut stream = tcp(host, port)?;
    let mut writer = stream.try_clone()?;
    let sender = thread::spawn(move || {
        pour(&mut writer, bytes, seed)?;
        writer.shutdown(std::net::Shutdown::Write)
    });
    let (hash, error) = drain(&mut stream);
    error.map_or(Ok(()), Err)?;
    sender.join().map_err(|_| io::Error::other("the sending thread panicked"))??;
    let intact = hash.bytes() == bytes && hash.sum() == StreamHash::of_pattern(seed, bytes);
    println!("bytes={} sum={:016x} intact={}", hash.bytes(), hash.sum(), u8::from(intact));
    Ok(())
}

fn tcp_reset(host: &str, port: &str, bytes: &str) -> io::Result<()> {
    let mut stream = tcp(host, port)?;
    pour(&mut stream, number(bytes)?, 1)?;
    reset(stream)?;
    println!("reset=1");
    Ok(())
}

fn tcp_urgent(host: &str, port: &str) -> io::Result<()> {
    let mut stream = tcp(host, port)?;
    stream.write_all(b"a")?;
    send(stream.as_raw_fd(), b"!", MsgFlags::MSG_OOB)?;
    stream.write_all(b"b")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    println!(
        "received_by_peer={}",
        answer.get(..8).map_or(0, |bytes| bytes.iter().fold(0u64, |n, b| n << 8 | u64::from(*b)))
    );
    Ok(())
}

fn tcp_stall(host: &str, port: &str) -> io::Result<()> {
    let mut stream = tcp(host, port)?;
    println!("ready=1");
    wait_for_line()?;
    print_drained(&mut stream);
    Ok(())
}

fn tcp_flood(host: &str, port: &str) -> io::Result<()> {
    let mut stream = tcp(host, port)?;
    // The kernel ends a write that gets nowhere for that long: this is the event "no more room".
    stream.set_write_timeout(Some(Duration::from_secs(1)))?;
    let (mut pattern, mut buffer, mut taken) = (Pattern::new(1), vec![0; 64 << 10], 0u64);
    let mut hash = StreamHash::default();
    loop {
        pattern.fill(&mut buffer);
        let mut offset = 0;
        while offset < buffer.len() {
            match stream.write(&buffer[offset..]) {
                Ok(n) => {
                    hash.update(&buffer[offset..offset + n]);
                    offset += n;
                    taken += n as u64;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    println!("taken={taken}");
                    wait_for_line()?;
                    stream.shutdown(std::net::Shutdown::Write)?;
                    let mut answer = Vec::new();
                    stream.read_to_end(&mut answer)?;
                    println!("intact={}", u8::from(answer == verdict(taken, hash.sum())));
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn connect(host: &str, port: &str) -> io::Result<()> {
    let begin = Instant::now();
    let result = TcpStream::connect_timeout(&resolve(host, port)?, PATIENCE);
    let name = result.as_ref().map_or_else(name_of, |_| "ok".to_owned());
    println!("result={name} ms={:.3}", begin.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

fn many(n: &str, host: &str, port: &str, bytes: &str, seed: &str) -> io::Result<()> {
    raise_descriptor_limit();
    let (bytes, seed) = (number::<usize>(bytes)?, number::<u64>(seed)?);
    let mut streams = open(number(n)?, host, port)?;
    // All are open before the first byte moves; each carries bytes of its own.
    for (i, stream) in streams.iter_mut().enumerate() {
        stream.write_all(&Pattern::bytes(seed + i as u64, bytes))?;
    }
    let mut intact = 0;
    for (i, stream) in streams.iter_mut().enumerate() {
        let mut back = vec![0; bytes];
        stream.read_exact(&mut back)?;
        intact += usize::from(back == Pattern::bytes(seed + i as u64, bytes));
    }
    println!("open={} intact={intact}", streams.len());
    Ok(())
}

fn short(n: &str, host: &str, port: &str) -> io::Result<()> {
    let (n, peer) = (number::<usize>(n)?, resolve(host, port)?);
    let one = move || -> io::Result<()> {
        let mut stream = TcpStream::connect(peer)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        stream.shutdown(std::net::Shutdown::Write)?;
        match stream.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(ErrorKind::InvalidData.into()),
        }
    };
    let workers = 16;
    let threads = (0..workers).map(|worker| {
        let share = n / workers + usize::from(worker < n % workers);
        thread::spawn(move || (0..share).map(|_| one()).collect::<Vec<_>>())
    });
    let mut answered = 0;
    for thread in threads.collect::<Vec<_>>() {
        for result in thread.join().map_err(|_| io::Error::other("a connecting thread panicked"))? {
            match result {
                Ok(()) => answered += 1,
                Err(error) => println!("failed={}", name_of(&error)),
            }
        }
    }
    println!("answered={answered}");
    Ok(())
}

fn idle(n: &str, host: &str, port: &str) -> io::Result<()> {
    raise_descriptor_limit();
    let begin = Instant::now();
    let streams = open(number(n)?, host, port)?;
    println!("open={} seconds={:.3}", streams.len(), begin.elapsed().as_secs_f64());
    wait_for_line()?;
    drop(streams);
    wait_for_end("closed=1")
}

fn half_open(n: &str, host: &str, port: &str) -> io::Result<()> {
    raise_descriptor_limit();
    let peer = resolve(host, port)?;
    let family = if peer.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let mut sockets = Vec::new();
    for _ in 0..number::<usize>(n)? {
        let socket = socket(family, SockType::Stream, flags, None)?;
        match nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(peer)) {
            Ok(()) | Err(Errno::EINPROGRESS) => sockets.push(socket),
            Err(error) => return Err(error.into()),
        }
    }
    println!("ready=1");
    wait_for_line()?;
    let (mut refused, mut other) = (0, 0);
    for socket in &sockets {
        let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
        let patience = PollTimeout::try_from(PATIENCE * 3).unwrap_or(PollTimeout::MAX);
        match (poll(&mut polled, patience)?, getsockopt(socket, sockopt::SocketError)?) {
            (1, libc::ECONNREFUSED) => refused += 1,
            _ => other += 1,
        }
    }
    println!("refused={refused} other={other}");
    Ok(())
}

fn udp_idle(n: &str, host: &str, port: &str) -> io::Result<()> {
    raise_descriptor_limit();
    let peer = resolve(host, port)?;
    let mut sockets = Vec::new();
    for _ in 0..number::<usize>(n)? {
        let socket = udp(peer)?;
        socket.send(b"x")?;
        socket.recv(&mut [0; 8])?;
        sockets.push(socket);
    }
    println!("open={}", sockets.len());
    wait_for_line()?;
    drop(sockets);
    wait_for_end("closed=1")
}

fn rr(host: &str, port: &str, seconds: &str) -> io::Result<()> {
    let mut stream = tcp(host, port)?;
    stream.set_nodelay(true)?;
    transactions(seconds, || {
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])
    })
}

/// Prints ready, waits for a line, prepares and runs one of the measured commands, and stays so that the engine can be looked at.
fn gate(words: &[&str]) -> io::Result<()> {
    match *words {
        ["rr-among", n, host, held, port, seconds] => {
            raise_descriptor_limit();
            println!("ready=1");
            wait_for_line()?;
            // Alone first: both on the same engine, or where its threads happen to run is what is compared.
            rr(host, port, seconds)?;
            let _held = open(number(n)?, host, held)?;
            println!("open={n}");
            wait_for_line()?;
            rr(host, port, seconds)?;
            wait_for_end("over=1")
        }
        ["idle", n, host, port] => {
            println!("ready=1");
            wait_for_line()?;
            idle(n, host, port)
        }
        [which @ ("rr" | "crr" | "udp-rr"), host, port, seconds] => {
            println!("ready=1");
            wait_for_line()?;
            match which {
                "rr" => rr(host, port, seconds)?,
                "crr" => crr(host, port, seconds)?,
                _ => udp_rr(host, port, seconds)?,
            }
            wait_for_end("over=1")
        }
        _ => Err(io::Error::from(ErrorKind::InvalidInput)),
    }
}

fn crr(host: &str, port: &str, seconds: &str) -> io::Result<()> {
    let peer = resolve(host, port)?;
    transactions(seconds, || {
        let mut stream = TcpStream::connect(peer)?;
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])
    })
}

fn udp_rr(host: &str, port: &str, seconds: &str) -> io::Result<()> {
    let socket = udp(resolve(host, port)?)?;
    let mut lost = 0;
    transactions(seconds, || {
        socket.send(b"x")?;
        match socket.recv(&mut [0; 8]) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock && lost < 3 => {
                lost += 1;
                Ok(())
            }
            Err(error) => Err(error),
        }
    })
}

fn transactions(seconds: &str, mut one: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let limit = Duration::from_secs_f64(number(seconds)?);
    let begin = Instant::now();
    let mut count = 0u64;
    while begin.elapsed() < limit {
        one()?;
        count += 1;
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!("transactions={count} seconds={seconds:.3} per_second={:.1}", count as f64 / seconds);
    Ok(())
}

fn udp_echo(host: &str, port: &str, seed: &str, sizes: &[&str]) -> io::Result<()> {
    let seed = number(seed)?;
    let socket = udp(resolve(host, port)?)?;
    let mut intact = 0;
    for size in sizes {
        let sent = Pattern::bytes(seed, number(size)?);
        let mut buffer = vec![0; 65536];
        let result = socket.send(&sent).and_then(|_| socket.recv(&mut buffer));
        match result {
            Ok(n) if buffer[..n] == sent => intact += 1,
            Ok(n) => println!("size={size} came_back={n}"),
            Err(error) => println!("size={size} failed={}", name_of(&error)),
        }
    }
    println!("intact={intact} of={}", sizes.len());
    Ok(())
}

fn udp_error(host: &str, port: &str) -> io::Result<()> {
    let socket = udp(resolve(host, port)?)?;
    let result = socket.send(b"anybody?").and_then(|_| socket.recv(&mut [0; 64]));
    println!("result={}", result.as_ref().map_or_else(name_of, |_| "answered".to_owned()));
    Ok(())
}

fn udp_from_one_socket(host: &str, ports: &[&str]) -> io::Result<()> {
    let peers = ports.iter().map(|port| resolve(host, port)).collect::<io::Result<Vec<_>>>()?;
    let any = if peers.first().is_some_and(SocketAddr::is_ipv6) { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = [0; 2048];
    for peer in &peers {
        socket.send_to(b"hello", peer)?;
        let (_, from) = socket.recv_from(&mut buffer)?;
        println!("reply_from={from}");
    }
    println!("ready=1");
    let reader = socket.try_clone()?;
    // Detached on purpose: it ends with the process.
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((n, from)) = reader.recv_from(&mut buffer) {
            println!("unasked_from={from} unasked={}", String::from_utf8_lossy(&buffer[..n]));
        }
    });
    wait_for_end("waiting=1")
}

/// Runs `argv` in the namespaces of `pid`.
fn enter(pid: &str, argv: &[String]) -> io::Result<()> {
    agent::join(pid, CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
    die_with_parent()?;
    become_command(argv)
}

fn without_nf_tables(argv: &[String]) -> io::Result<()> {
    sys::forbid_netlink(libc::NETLINK_NETFILTER)?;
    become_command(argv)
}

/// The namespaces are made here and this process becomes the command; slirp4netns is a child that dies with it.
fn via_slirp4netns(mtu: &str, argv: &[String]) -> io::Result<()> {
    let me = std::process::id().to_string();
    with_helper(&["start-slirp4netns", &me, mtu], || {
        let file = PathBuf::from(format!("/tmp/rootless-lab-resolv-{me}"));
        fs::write(&file, "nameserver 10.0.2.3\n")?;
        let mounted = agent::mount_resolv_conf(&file);
        fs::remove_file(&file)?;
        mounted
    })?;
    become_command(argv)
}

fn start_slirp4netns(pid: &str, mtu: &str) -> io::Result<()> {
    wait_for_line()?;
    die_with_parent()?;
    // Readiness is written to what is our standard output; its own words go to standard error.
    let ready = nix::unistd::dup(io::stdout())?;
    nix::unistd::dup2_stdout(io::stderr())?;
    let mut command = Command::new(crate::locate::program("slirp4netns"));
    command.args([
        "--configure",
        &format!("--mtu={mtu}"),
        "--disable-host-loopback",
        "--enable-ipv6",
        "--userns-path",
    ]);
    command.args([
        &format!("/proc/{pid}/ns/user"),
        &format!("--ready-fd={}", ready.as_raw_fd()),
        pid,
        "tap0",
    ]);
    command.stdin(Stdio::null());
    Err(command.exec())
}

/// The same with a veth pair; its far end in the child is `eth0`, 10.0.2.100.
fn via_veth(mtu: &str, argv: &[String]) -> io::Result<()> {
    with_helper(&["start-veth", &std::process::id().to_string(), mtu], || {
        let lines = "link set lo up\naddr add 10.0.2.100/24 dev eth0\naddr add fd00::100/64 dev eth0 nodad\nlink set eth0 up\n\
                     route add default via 10.0.2.2\nroute add default via fd00::2\n";
        ip(lines)
    })?;
    become_command(argv)
}

fn start_veth(pid: &str, mtu: &str) -> io::Result<()> {
    wait_for_line()?;
    ip(&format!(
        "link add v{pid} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {pid}\naddr add 10.0.2.2/24 dev v{pid}\n\
         addr add fd00::2/64 dev v{pid} nodad\nlink set v{pid} up\n"
    ))?;
    println!("1");
    io::stdout().flush()
}

/// Starts a helper in the old namespaces, moves this process to new ones, waits for the helper's readiness, then calls `configure`.
fn with_helper(args: &[&str], configure: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let mut helper = crate::locate::probe(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    agent::unshare_as_root()?;
    prctl::set_dumpable(true)?;
    die_with_parent()?;
    let mut pipe = helper.stdin.take().ok_or(ErrorKind::BrokenPipe)?;
    pipe.write_all(b"go\n")?;
    drop(pipe);
    let mut ready = helper.stdout.take().ok_or(ErrorKind::BrokenPipe)?;
    ready
        .read_exact(&mut [0])
        .map_err(|error| io::Error::new(error.kind(), format!("{args:?} did not become ready")))?;
    configure()
}

fn ip(lines: &str) -> io::Result<()> {
    let mut child =
        Command::new(crate::locate::program("ip")).args(["-batch", "-"]).stdin(Stdio::piped()).spawn()?;
    child.stdin.take().ok_or(ErrorKind::BrokenPipe)?.write_all(lines.as_bytes())?;
    let status = child.wait()?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("ip: {status}, signal {:?}", status.signal())))
    }
}

fn become_command(argv: &[String]) -> io::Result<()> {
    let (program, args) = argv.split_first().ok_or(ErrorKind::InvalidInput)?;
    Err(Command::new(program).args(args).exec())
}

/// Has the kernel kill us when our parent ends. Entering a user namespace may have undone an earlier wish.
fn die_with_parent() -> io::Result<()> {
    let parent = getppid();
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != parent { Err(io::Error::from(ErrorKind::BrokenPipe)) } else { Ok(()) }
}

/// Opens up to 64 connections at a time, so that a small backlog is no obstacle.
fn open(n: usize, host: &str, port: &str) -> io::Result<Vec<TcpStream>> {
    let peer = resolve(host, port)?;
    let workers = 16.min(n.max(1));
    let threads = (0..workers).map(|worker| {
        let share = n / workers + usize::from(worker < n % workers);
        thread::spawn(move || (0..share).map(|_| TcpStream::connect(peer)).collect::<io::Result<Vec<_>>>())
    });
    let mut streams = Vec::new();
    for thread in threads.collect::<Vec<_>>() {
        streams.extend(thread.join().map_err(|_| io::Error::other("a connecting thread panicked"))??);
    }
    Ok(streams)
}

/// As many descriptors as the hard limit allows. Without it the caller still works, with fewer.
pub fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn tcp(host: &str, port: &str) -> io::Result<TcpStream> {
    TcpStream::connect(resolve(host, port)?)
}

fn udp(peer: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(if peer.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" })?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(peer)?;
    Ok(socket)
}

pub(crate) fn resolve(host: &str, port: &str) -> io::Result<SocketAddr> {
    (host, number(port)?)
        .to_socket_addrs()?
        .next()
        .ok_or_else(|| io::Error::from(ErrorKind::AddrNotAvailable))
}

pub(crate) fn number<T: FromStr>(text: &str) -> io::Result<T> {
    text.parse().map_err(|_| io::Error::new(ErrorKind::InvalidInput, format!("{text} is no number")))
}

/// The name of an error: ECONNREFUSED and the like, TIMEOUT for our own patience.
pub(crate) fn name_of(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EAGAIN) => "TIMEOUT".to_owned(),
        Some(number) => format!("{:?}", Errno::from_raw(number)),
        None if error.kind() == ErrorKind::TimedOut => "TIMEOUT".to_owned(),
        None => format!("{:?}", error.kind()),
    }
}

fn wait_for_line() -> io::Result<()> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(())
}

fn wait_for_end(greeting: &str) -> io::Result<()> {
    println!("{greeting}");
    let mut rest = Vec::new();
    io::stdin().lock().read_to_end(&mut rest)?;
    Ok(())
}
