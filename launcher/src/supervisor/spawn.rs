//! Processes of units: how they are started, what they inherit, how their end is learnt.
//!
//! # Theory of operation
//! A unit's process leads a session and a process group of its own and gets SIGKILL if the supervisor dies. Standard
//! input is empty; output and errors share one pipe, which the unit has from its first start to the end of the
//! supervisor, so that whoever inherited it (containerd's shims) can write to it although the unit was restarted.
//! When the process ends, what is left of its group is killed before it is reaped: until then nobody else can get
//! the group's number. Those that left the group (a container's shim) go on.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, killpg};
use nix::sys::socket::sockopt::PassCred;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, UnixCredentials, bind,
    getsockname, recvmsg, setsockopt, socket,
};
use nix::unistd::{Pid, geteuid, pipe2};

use super::unit::Unit;
use crate::apply::facts::read_text;
use crate::error::Ending;
use crate::notify;
use crate::sys::{spawn, wait};

/// Where a unit's output goes, and where it says that it is ready.
#[derive(Debug)]
pub struct Lines {
    /// The end that is read; does not block.
    read: File,
    /// The end that processes get.
    write: OwnedFd,
}

impl Lines {
    /// A new pipe.
    ///
    /// # Errors
    /// pipe2(2), fcntl(2).
    pub fn new() -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        // Only our end: a program need not expect that its output is full for a moment.
        let flags = nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK);
        nix::fcntl::fcntl(&read, flags)?;
        Ok(Lines { read: read.into(), write })
    }

    /// The end to read from.
    pub fn reader(&self) -> &File {
        &self.read
    }
}

/// A socket for sd_notify(3). Its name is abstract: it needs no directory, and vanishes with the supervisor.
#[derive(Debug)]
pub struct NotifySocket {
    socket: OwnedFd,
    /// As `NOTIFY_SOCKET` has it.
    address: String,
}

/// What a unit has said of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// That it is ready.
    pub ready: bool,
    /// How it fares, for people.
    pub status: Option<String>,
}

/// Longer messages are cut.
const MAX_MESSAGE: usize = 4096;

impl NotifySocket {
    /// A socket with a name that the kernel finds.
    ///
    /// # Errors
    /// socket(2), bind(2), setsockopt(2).
    pub fn new() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        setsockopt(&socket, PassCred, &true)?;
        bind(socket.as_raw_fd(), &UnixAddr::new_unnamed())?;
        let bound: UnixAddr = getsockname(socket.as_raw_fd())?;
        let name = bound.as_abstract().and_then(|name| std::str::from_utf8(name).ok());
        let address = format!("@{}", name.ok_or(Errno::EAFNOSUPPORT)?);
        Ok(NotifySocket { socket, address })
    }

    /// What `NOTIFY_SOCKET` has to be.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Takes the messages that have come. Only processes of our own user count: anybody in this network namespace can
    /// send.
    ///
    /// # Errors
    /// recvmsg(2).
    pub fn receive(&self) -> io::Result<Told> {
        let mut told = Told::default();
        let mut bytes = [0; MAX_MESSAGE];
        loop {
            let mut control = cmsg_space!(UnixCredentials);
            let mut slices = [io::IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
            let (length, is_ours) =
                match recvmsg::<()>(self.socket.as_raw_fd(), &mut slices, Some(&mut control), flags) {
                    // Messages with descriptors are cut short there and count for nothing.
                    Ok(received) => (received.bytes, received.cmsgs().is_ok_and(|mut all| all.any(is_ours))),
                    Err(Errno::EAGAIN) => return Ok(told),
                    Err(Errno::EINTR) => continue,
                    Err(error) => return Err(error.into()),
                };
            let text = bytes.get(..length).unwrap_or_default();
            for line in text.split(|byte| *byte == b'\n').filter(|_| is_ours) {
                told.ready |= line == b"READY=1";
                if let Some(status) = line.strip_prefix(b"STATUS=") {
                    told.status = Some(String::from_utf8_lossy(status).into_owned());
                }
            }
        }
    }
}

fn is_ours(message: ControlMessageOwned) -> bool {
    matches!(message, ControlMessageOwned::ScmCredentials(sender) if sender.uid() == geteuid().as_raw())
}

impl AsFd for NotifySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Starts a unit's process.
///
/// # Errors
/// pipe(2), fork(2), exec(3): what the program's name cannot be executed for is an error here too.
pub fn spawn(unit: &Unit, lines: &Lines, socket: Option<&NotifySocket>) -> io::Result<Pid> {
    let (program, arguments) = unit.argv.split_first().ok_or(Errno::ENOENT)?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .envs(unit.env.iter().map(|(name, value)| (name, value)))
        .env_remove(notify::VARIABLE)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(lines.write.try_clone()?)
        .stderr(lines.write.try_clone()?);
    if let Some(socket) = socket {
        command.env(notify::VARIABLE, socket.address());
    }
    spawn::detach(&mut command);
    // What is dropped here is a number; the process goes on and is reaped by `reap`.
    let process = command.spawn()?;
    Ok(Pid::from_raw(process.id().cast_signed()))
}

/// Reaps one dead child, a unit's or an orphan that became ours.
///
/// # Errors
/// waitid(2).
pub fn reap(is_unit: impl Fn(Pid) -> bool) -> io::Result<Option<(Pid, Ending)>> {
    let Some(pid) = wait::peek_ended()? else { return Ok(None) };
    if is_unit(pid) {
        // There may be nobody else.
        let _ = killpg(pid, Signal::SIGKILL);
    }
    Ok(Some((pid, wait::wait_end(pid)?)))
}

/// Kills every child that is left, orphans of orphans too, and reaps them. Returns how many there were.
///
/// # Errors
/// /proc cannot be read; waitpid(2).
pub fn kill_orphans() -> io::Result<usize> {
    let mut count = 0;
    for _ in 0..MAX_GENERATIONS {
        let orphans = children()?;
        if orphans.is_empty() {
            break;
        }
        for orphan in orphans {
            // Ours and not reaped, so the number is its own.
            if wait::kill(orphan, libc::SIGKILL).is_ok() {
                wait::wait_end(orphan)?;
                count += 1;
            }
        }
    }
    Ok(count)
}

/// Each round finds those whose parents died in the one before.
const MAX_GENERATIONS: usize = 1000;

/// Our children, whoever forked them.
fn children() -> io::Result<Vec<Pid>> {
    let ours = Pid::this().to_string();
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that has vanished meanwhile is nobody's child.
        let stat = read_text(entry.path().join("stat"));
        // The name before it may hold anything, a closing parenthesis too.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(1));
        if parent == Some(ours.as_str()) {
            children.push(Pid::from_raw(pid));
        }
    }
    Ok(children)
}
