//! Work in somebody else's namespaces: a short-lived child joins them, makes a descriptor and passes it back.
//!
//! A process that has joined a user namespace cannot leave it again, and only a process with one thread can join
//! one; hence the child. The caller stays where it is.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use log::debug;
use netstack::{Tap, TapError};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid, getppid};
use thiserror::Error;

use crate::apply::net::TUN_DEVICE;
use crate::error::{Ending, Failure, Step};
use crate::handshake::channel::{Channel, Received};
use crate::handshake::message::Message;
use crate::netlink::message::{Batch, Existing, Interface, LOOPBACK, Route};
use crate::netlink::socket::{Refused, Socket};
use crate::plan::net::TAP_QUEUE;
use crate::sweep::UserNamespace;
use crate::sys::clone::{self, ExitSignal, Fork, exit_now};
use crate::sys::{pidfd, wait};

/// What can go wrong.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum JoinError {
    /// A namespace cannot be looked at: nobody there, or not the caller's.
    #[error("{}", .path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The child could not be made, or not be talked to.
    #[error("cannot start a process for the namespace")]
    Start(#[source] io::Error),
    /// The child failed at a step, and said so.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The child ended and said nothing.
    #[error("the process for the namespace {0}")]
    Died(Ending),
}

/// A network namespace of somebody else, with the user namespace that gives rights there.
#[derive(Debug)]
pub struct Target {
    user: Option<File>,
    net: File,
}

impl Target {
    /// The namespaces of a process; another user namespace if one is named.
    ///
    /// # Errors
    /// There is no such process, or it is out of the caller's reach.
    pub fn of_process(pid: Pid, userns: Option<&Path>) -> Result<Self, JoinError> {
        let path = |kind: &str| PathBuf::from(format!("/proc/{pid}/ns/{kind}"));
        let named = userns.map(open).transpose()?;
        let net = open(&path("net"))?;
        let user = named.map_or_else(|| open(&path("user")), Ok)?;
        Ok(Target { user: Some(user), net })
    }

    /// A network namespace by its path. Without a user namespace the caller has to have `CAP_NET_ADMIN` there, and
    /// `CAP_SYS_ADMIN` in its own.
    ///
    /// # Errors
    /// open(2).
    pub fn of_paths(netns: &Path, userns: Option<&Path>) -> Result<Self, JoinError> {
        Ok(Target { net: open(netns)?, user: userns.map(open).transpose()? })
    }

    /// Namespaces that are open already.
    pub fn of_files(user: File, net: File) -> Self {
        Target { user: Some(user), net }
    }

    /// The network namespace that a process has now, and its user namespace.
    ///
    /// # Errors
    /// The process is gone.
    pub fn of_child(child: Pid, user: &UserNamespace) -> io::Result<Self> {
        let net = File::open(format!("/proc/{child}/ns/net"))?;
        Ok(Target::of_files(user.as_fd().try_clone_to_owned()?.into(), net))
    }

    /// Another reference to the same.
    ///
    /// # Errors
    /// fcntl(2).
    pub fn try_clone(&self) -> io::Result<Self> {
        let user = self.user.as_ref().map(File::try_clone).transpose()?;
        Ok(Target { user, net: self.net.try_clone()? })
    }

    /// The user namespace that is entered first.
    pub fn user(&self) -> Option<BorrowedFd<'_>> {
        self.user.as_ref().map(AsFd::as_fd)
    }

    /// The network namespace.
    pub fn net(&self) -> BorrowedFd<'_> {
        self.net.as_fd()
    }

    /// A process in the network namespace, as a descriptor that is readable when it ends; `None` if nobody is left
    /// who could be seen.
    ///
    /// # Errors
    /// `EBUSY` if a mount keeps the namespace, which then needs no process. /proc cannot be read.
    pub fn somebody(&self) -> io::Result<Option<OwnedFd>> {
        let wanted = self.net.metadata()?;
        let mount = format!(" net:[{}] ", wanted.ino());
        if fs::read_to_string("/proc/self/mountinfo")?.contains(&mount) {
            return Err(Errno::EBUSY.into());
        }
        let is_inside = |pid: i32| {
            let net = fs::metadata(format!("/proc/{pid}/ns/net"));
            net.is_ok_and(|net| (net.dev(), net.ino()) == (wanted.dev(), wanted.ino()))
        };
        let pids =
            fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        for pid in pids.filter(|&pid| is_inside(pid)) {
            match pidfd::open(Pid::from_raw(pid)) {
                // Else its number may be another's by now.
                Ok(process) if is_inside(pid) => return Ok(Some(process)),
                _ => {}
            }
        }
        Ok(None)
    }

    /// Joins both with the calling process, which has one thread and is not to be traced from inside: it has the caller's
    /// memory and files, and the child's root is of the same user.
    ///
    /// A user namespace that refuses is no obstacle by itself: whoever is in it already (`EINVAL`), or has the
    /// rights without it, joins the network namespace all the same.
    ///
    /// # Errors
    /// The network namespace refuses.
    pub fn join(&self) -> Result<(), Failure> {
        // The kernel does this by itself only for who does not own the user namespace (commit_creds).
        prctl::set_dumpable(false).map_err(|error| Failure::new(Step::Prepare, "PR_SET_DUMPABLE", error))?;
        if let Some(user) = &self.user
            && let Err(error) = setns(user, CloneFlags::CLONE_NEWUSER)
        {
            debug!("the user namespace cannot be joined: {error}");
        }
        setns(&self.net, CloneFlags::CLONE_NEWNET)
            .map_err(|error| Failure::new(Step::Join, "the network namespace", error))
    }
}

/// Runs `work` in the namespaces of `target` and returns the descriptor that it made.
///
/// The calling process has one thread.
///
/// # Errors
/// See [`JoinError`]; the child is gone in any case.
pub fn run_inside(
    target: &Target,
    work: impl FnOnce() -> Result<OwnedFd, Failure>,
) -> Result<OwnedFd, JoinError> {
    let (ours, theirs) = Channel::pair().map_err(JoinError::Start)?;
    let parent = getpid();
    match clone::fork(CloneFlags::empty(), ExitSignal::None).map_err(JoinError::Start)? {
        Fork::Child => {
            drop(ours);
            inside(target, work, &theirs, parent)
        }
        Fork::Parent(child) => {
            drop(theirs);
            let received = ours.receive();
            let ending = wait::wait_end(child).map_err(JoinError::Start)?;
            match received.map_err(JoinError::Start)? {
                Some(Received { message: Message::TapReady, fd: Some(fd), .. }) => Ok(fd),
                Some(Received { message: Message::Failed(failure), .. }) => Err(failure.into()),
                _ => Err(JoinError::Died(ending)),
            }
        }
    }
}

/// The child's part.
fn inside(
    target: &Target,
    work: impl FnOnce() -> Result<OwnedFd, Failure>,
    channel: &Channel,
    parent: Pid,
) -> ! {
    let run = || -> Result<Infallible, Failure> {
        target.join()?;
        // Joining has cancelled what was set before, because it changes capabilities.
        prctl::set_pdeathsig(Signal::SIGKILL).map_err(|error| Failure::new(Step::Guard, "", error))?;
        if getppid() != parent {
            exit_now(1);
        }
        let fd = work()?;
        let talk = |error: io::Error| Failure::new(Step::Talk, "", error);
        channel.send(&Message::TapReady, Some(fd.as_fd())).map_err(talk)?;
        exit_now(0)
    };
    let Err(failure) = run();
    // If nobody listens any more there is nobody to tell.
    let _ = channel.send(&Message::Failed(failure), None);
    exit_now(1)
}

/// A TAP and what is done to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapSetup {
    /// Its name; a device that is there already is attached to.
    pub name: String,
    /// What it gets; `None` leaves it to somebody else, down and without addresses if it is new.
    pub link: Option<LinkSetup>,
}

/// What an interface gets, beside being set up, as is the loopback device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkSetup {
    /// MTU in bytes; the kernel takes 68 to 65535 for a TAP.
    pub mtu: u32,
    /// MAC address, if not the kernel's choice.
    pub mac: Option<[u8; 6]>,
    /// Addresses with their prefix.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Routes through it, in their order.
    pub routes: Vec<Route>,
}

impl TapSetup {
    /// Makes the TAP, or attaches to it, in the network namespace of the calling process.
    ///
    /// # Errors
    /// The step that failed.
    pub fn open(&self) -> Result<Tap, Failure> {
        // A device that is there already, and up, begins to look for duplicates when it is attached to.
        skip_duplicate_detection(&self.name);
        let tap = Tap::open_in_current_netns(&self.name).map_err(|error| match error {
            TapError::OpenTun(source) => Failure::new(Step::OpenTun, TUN_DEVICE, source),
            TapError::SetInterface { name, source } => Failure::new(Step::CreateTap, name, source),
            error => Failure::new(Step::CreateTap, &self.name, io::Error::other(error)),
        })?;
        skip_duplicate_detection(tap.name());
        if let Some(link) = &self.link {
            link.apply(tap.name())?;
        }
        Ok(tap)
    }
}

/// Has the kernel use IPv6 addresses of `interface` at once. As long as it looks for duplicates, which cannot be on this link, it has
/// a route by our advertisement but no address for its packets: a connection would hang that could have been made by IPv4.
fn skip_duplicate_detection(interface: &str) {
    if !interface.contains('/') {
        // Without IPv6 in the kernel, or without the device yet, there is no such file.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/accept_dad"), "0");
    }
}

impl LinkSetup {
    fn apply(&self, name: &str) -> Result<(), Failure> {
        let index = if_nametoindex(name).map_err(|error| Failure::new(Step::CreateTap, name, error))?;
        let interface = Interface(index);
        let mut batch = Batch::with(Existing::Replace);
        batch.link_up(LOOPBACK);
        if let Some(mac) = self.mac {
            batch.link_up_with_mac(interface, mac);
        }
        batch.link_up_with(interface, self.mtu, TAP_QUEUE);
        for &(address, prefix) in &self.addresses {
            match address {
                IpAddr::V4(address) => {
                    let mask = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
                    batch.add_ipv4(interface, address, prefix, (u32::from(address) | mask).into());
                }
                IpAddr::V6(address) => batch.add_ipv6(interface, address, prefix),
            }
        }
        for route in &self.routes {
            batch.add_route(interface, route);
        }
        let refused = |Refused { request, error }| Failure::new(Step::Network, request, error);
        let socket = Socket::open().map_err(|error| Failure::new(Step::Network, "netlink", error))?;
        socket.perform(&batch).map_err(refused)
    }
}

fn open(path: &Path) -> Result<File, JoinError> {
    File::open(path).map_err(|source| JoinError::Open { path: path.to_owned(), source })
}
