//! The agent: a process that *is* a network namespace, and hands out sockets that live in it.
//!
//! A socket belongs to the namespace it was made in, whoever holds it. So a test keeps its servers as ordinary threads and asks the
//! agent for their sockets; requests and answers are single messages on a `SOCK_SEQPACKET` pair (the agent's standard input), the
//! socket itself comes by `SCM_RIGHTS`. When the test dies, however it dies, the agent reads end of file and exits.

use crate::{
    locate,
    process::{DEADLINE, Process, readable_before},
    sys,
};
use forwarder::sock_diag::DiagSocket;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::socket::{
        AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol,
        SockType, SockaddrStorage, bind, listen, recv, recvmsg, send, sendmsg, setsockopt, socket,
        socketpair, sockopt,
    },
    unistd::{Gid, Uid, getegid, geteuid},
};
use std::{
    env, fs,
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    process::Stdio,
    sync::Mutex,
    time::Instant,
};

/// The largest request or answer, in bytes.
const MESSAGE: usize = 1024;

/// How the ids of the world's user namespace are mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ids {
    /// The caller is root and nobody else exists: works everywhere.
    #[default]
    Single,
    /// The caller's subordinate ids as well, by newuidmap(1) and newgidmap(1).
    Subordinate,
}

/// The test's end of an agent.
#[derive(Debug)]
pub struct Agent {
    control: Mutex<OwnedFd>,
    process: Process,
}

impl Agent {
    /// An agent in new user, mount and network namespaces, with `resolv_conf` in place of `/etc/resolv.conf`.
    ///
    /// # Panics
    /// When user namespaces are not to be had here.
    #[must_use]
    pub fn found(ids: Ids, resolv_conf: &Path) -> Self {
        let ids = if ids == Ids::Single { "single" } else { "subordinate" };
        Self::start(&["agent", "found", ids, resolv_conf.to_str().expect("paths are UTF-8")])
    }

    /// An agent in a new network namespace of the same user namespace.
    ///
    /// # Panics
    /// When that namespace is gone.
    #[must_use]
    pub fn beside(&self) -> Self {
        Self::start(&["agent", "beside", &self.pid().to_string()])
    }

    /// An agent of the same user namespace in the network namespace of process `pid`, which belongs to that user namespace or to
    /// one below.
    ///
    /// # Panics
    /// When the process is gone.
    #[must_use]
    pub fn inside(&self, pid: u32) -> Self {
        Self::start(&["agent", "inside", &self.pid().to_string(), &pid.to_string()])
    }

    /// Its process id, which names the namespaces.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid().as_raw().unsigned_abs()
    }

    /// Asks for a thing by a line and receives the descriptor that comes with the answer.
    ///
    /// # Errors
    /// The agent's error, kind and number kept.
    pub fn ask(&self, request: &str) -> io::Result<Option<OwnedFd>> {
        let control = self.control.lock().expect("no holder panicked");
        send(control.as_raw_fd(), request.as_bytes(), MsgFlags::MSG_NOSIGNAL)?;
        receive(&control)
    }

    fn start(args: &[&str]) -> Self {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .expect("socketpair");
        let mut command = locate::probe(args);
        command.stdin(Stdio::from(theirs));
        let process = Process::spawn_with_stdin(command);
        let agent = Self { control: Mutex::new(ours), process };
        agent.greet();
        agent
    }

    fn greet(&self) {
        let control = self.control.lock().expect("no holder panicked");
        loop {
            let mut buffer = [0; MESSAGE];
            assert!(readable_before(control.as_fd(), Instant::now() + DEADLINE), "the agent says nothing");
            let n = recv(control.as_raw_fd(), &mut buffer, MsgFlags::empty()).expect("recv from the agent");
            match &buffer[..n] {
                b"ready" => return,
                b"map" => {
                    self.map_subordinate_ids();
                    send(control.as_raw_fd(), b"mapped", MsgFlags::MSG_NOSIGNAL).expect("the agent waits");
                }
                other => panic!("the agent failed: {}", String::from_utf8_lossy(other)),
            }
        }
    }

    fn map_subordinate_ids(&self) {
        let user =
            nix::unistd::User::from_uid(geteuid()).ok().flatten().expect("we have an entry in passwd").name;
        for (program, file, own) in [
            ("newuidmap", "/etc/subuid", geteuid().as_raw()),
            ("newgidmap", "/etc/subgid", getegid().as_raw()),
        ] {
            let (first, count) =
                subordinate_range(file, &user).unwrap_or_else(|| panic!("{user} is not in {file}"));
            let mut command = std::process::Command::new(locate::program(program));
            command.args([&self.pid().to_string(), "0", &own.to_string(), "1", "1", &first, &count]);
            let _ = crate::process::run(command).success();
        }
    }
}

/// Whether the caller has newuidmap(1) and subordinate ids.
#[must_use]
pub fn has_subordinate_ids() -> bool {
    let Some(user) = nix::unistd::User::from_uid(geteuid()).ok().flatten() else { return false };
    locate::find_program("newuidmap").is_some()
        && subordinate_range("/etc/subuid", &user.name).is_some()
        && subordinate_range("/etc/subgid", &user.name).is_some()
}

/// The agent itself: `found single|subordinate RESOLV_CONF`, `beside PID` or `inside PID OTHER`.
pub(crate) fn serve(args: &[String]) -> io::Result<()> {
    let control = io::stdin().as_fd().try_clone_to_owned()?;
    let words = args.iter().map(String::as_str).collect::<Vec<_>>();
    let prepared = match words[..] {
        ["found", ids, resolv_conf] => found(&control, ids, Path::new(resolv_conf)),
        ["beside", pid] => join(pid, CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
            .and_then(|()| Ok(unshare(CloneFlags::CLONE_NEWNET)?)),
        ["inside", pid, other] => File::open(format!("/proc/{other}/ns/net")).and_then(|net| {
            join(pid, CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
            Ok(setns(net, CloneFlags::CLONE_NEWNET)?)
        }),
        _ => Err(io::Error::from(io::ErrorKind::InvalidInput)),
    };
    // What the kernel forbade is told to the test, which knows how to fail.
    let greeting = prepared.map_or_else(|error| format!("{words:?}: {error}"), |()| "ready".to_owned());
    nix::sys::prctl::set_dumpable(true)?;
    send(control.as_raw_fd(), greeting.as_bytes(), MsgFlags::MSG_NOSIGNAL)?;
    let mut buffer = [0; MESSAGE];
    loop {
        let n = recv(control.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if n == 0 {
            return Ok(());
        }
        let answer = answer(&String::from_utf8_lossy(&buffer[..n]));
        let (text, fd) = match answer {
            Ok(fd) => ("ok".to_owned(), fd),
            Err(error) => (format!("{} {error}", error.raw_os_error().unwrap_or(0)), None),
        };
        let fds = fd.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>();
        let rights = [ControlMessage::ScmRights(&fds)];
        let rights = if fds.is_empty() { &[][..] } else { &rights };
        sendmsg::<()>(
            control.as_raw_fd(),
            &[IoSlice::new(text.as_bytes())],
            rights,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
    }
}

/// Enters the namespaces of process `pid`, the user namespace first.
pub(crate) fn join(pid: &str, which: CloneFlags) -> io::Result<()> {
    let dir = env::current_dir();
    let names = [
        ("user", CloneFlags::CLONE_NEWUSER),
        ("net", CloneFlags::CLONE_NEWNET),
        ("mnt", CloneFlags::CLONE_NEWNS),
    ];
    let wanted = names.iter().filter(|(_, flag)| which.contains(*flag));
    // All are opened before the first is entered: afterwards /proc is another one.
    let files = wanted
        .map(|(name, flag)| Ok((File::open(format!("/proc/{pid}/ns/{name}"))?, *flag)))
        .collect::<io::Result<Vec<_>>>()?;
    for (file, flag) in files {
        setns(file, flag)?;
    }
    // Entering a mount namespace moves us to its root. A directory that does not exist there is no reason to fail.
    if let Ok(dir) = dir {
        let _ = env::set_current_dir(dir);
    }
    Ok(())
}

/// New user, mount and network namespaces in which the caller is root.
pub(crate) fn unshare_as_root() -> io::Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER)?;
    map_single_id(uid, gid)?;
    unshare_mount_and_net()
}

/// Shows `file` in place of `/etc/resolv.conf` in our mount namespace.
pub(crate) fn mount_resolv_conf(file: &Path) -> io::Result<()> {
    let target = fs::canonicalize("/etc/resolv.conf")?;
    Ok(mount(Some(file), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

fn found(control: &OwnedFd, ids: &str, resolv_conf: &Path) -> io::Result<()> {
    if ids == "subordinate" {
        unshare(CloneFlags::CLONE_NEWUSER)?;
        send(control.as_raw_fd(), b"map", MsgFlags::MSG_NOSIGNAL)?;
        let mut buffer = [0; MESSAGE];
        recv(control.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        nix::unistd::setgid(Gid::from_raw(0))?;
        nix::unistd::setuid(Uid::from_raw(0))?;
        unshare_mount_and_net()?;
    } else {
        unshare_as_root()?;
    }
    mount_resolv_conf(resolv_conf)
}

fn map_single_id(uid: Uid, gid: Gid) -> io::Result<()> {
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

fn unshare_mount_and_net() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
    Ok(mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?)
}

fn subordinate_range(file: &str, user: &str) -> Option<(String, String)> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == user).then_some(())?;
        Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
    })
}

fn answer(request: &str) -> io::Result<Option<OwnedFd>> {
    let words = request.split(' ').collect::<Vec<_>>();
    let fd = match words[..] {
        ["listen", address] => listener(address)?.into(),
        ["connect", address] => TcpStream::connect(address)?.into(),
        ["connect-from", local, address] => connect_from(local, address)?.into(),
        ["connect-by", interface, address] => connect_by(interface, address)?.into(),
        ["forget-connections"] => {
            forget_connections()?;
            return Ok(None);
        }
        ["udp", address] => UdpSocket::bind(address)?.into(),
        ["diag"] => DiagSocket::open()?.into(),
        ["tap", name] => sys::open_tap(name, sys::TapHeader::None)?.into(),
        ["virtio-tap", name] => sys::open_tap(name, sys::TapHeader::Virtio)?.into(),
        ["sysctl", path, ..] => {
            fs::write(Path::new("/proc/sys").join(path), words[2..].join(" "))?;
            return Ok(None);
        }
        _ => return Err(io::Error::from(io::ErrorKind::InvalidInput)),
    };
    Ok(Some(fd))
}

fn receive(control: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    if !readable_before(control.as_fd(), Instant::now() + DEADLINE) {
        return Err(io::Error::from(io::ErrorKind::TimedOut));
    }
    let mut buffer = [0; MESSAGE];
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let message =
        recvmsg::<()>(control.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            fds.extend(sys::adopt_received(&numbers));
        }
    }
    let n = message.bytes;
    let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
    if text == "ok" {
        return Ok(fds.pop());
    }
    let (number, message) = text.split_once(' ').unwrap_or(("0", "the agent is gone"));
    Err(match number.parse() {
        Ok(0) | Err(_) => io::Error::other(message.to_owned()),
        Ok(number) => io::Error::from_raw_os_error(number),
    })
}

/// A connection from an address, also one whose last connection has only just ended.
fn connect_from(local: &str, address: &str) -> io::Result<TcpStream> {
    let local: SocketAddr = local.parse().map_err(|_| io::ErrorKind::InvalidInput)?;
    connect_prepared(address, |socket| {
        setsockopt(socket, sockopt::ReuseAddr, &true)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(local))
    })
}

/// A connection of a socket that is tied to an interface.
fn connect_by(interface: &str, address: &str) -> io::Result<TcpStream> {
    connect_prepared(address, |socket| setsockopt(socket, sockopt::BindToDevice, &interface.into()))
}

fn connect_prepared(
    address: &str,
    prepare: impl FnOnce(&OwnedFd) -> nix::Result<()>,
) -> io::Result<TcpStream> {
    let address: SocketAddr = address.parse().map_err(|_| io::ErrorKind::InvalidInput)?;
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    prepare(&socket)?;
    nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(socket.into())
}

/// Empties the table of connection tracking (nfnetlink: `IPCTNL_MSG_CT_DELETE` without a tuple).
fn forget_connections() -> io::Result<()> {
    const DELETE: u16 = 1 << 8 | 2;
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    // `struct nlmsghdr` (length, type, flags, number, port) and `struct nfgenmsg` (any family, version 0).
    let request = [&20u32.to_ne_bytes()[..], &DELETE.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 12]].concat();
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    send(netlink.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut answer = [0; 256];
    let n = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // `struct nlmsgerr` begins with the error, 0 or negative.
    match answer[..n].get(16..).and_then(<[u8]>::first_chunk) {
        Some(&error) if i32::from_ne_bytes(error) != 0 => {
            Err(io::Error::from_raw_os_error(-i32::from_ne_bytes(error)))
        }
        Some(_) => Ok(()),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// A listener that keeps a thousand clients waiting: the standard library's queue of 128 makes the kernel answer bursts by SYN
/// cookies, and when the queue is still full as their ACK arrives, by the occasional reset.
fn listener(address: &str) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listen(&listener, Backlog::MAXCONN)?;
    Ok(listener)
}
