//! What the examples share: a command in a network namespace of its own, behind a TAP.
//!
//! No fork and no passing of descriptors: a *thread* moves into the new network namespace, opens the TAP there,
//! hands it to its siblings, who stayed with the host's network, and starts the command, which inherits the
//! thread's namespaces.

use std::error::Error;
use std::io::{self, PipeReader, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::{env, fs};

use netstack::Config;
use netstack::config::Ipv4Plan;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

/// An error of any kind, from any thread.
pub type AnyError = Box<dyn Error + Send + Sync>;

/// Makes the process root of a user namespace of its own, with its own id as the only one in there. Only a
/// process with one thread may do that: call it first.
///
/// # Errors
/// Where user namespaces are forbidden: `EPERM`, `EACCES` or `ENOSPC`.
pub fn become_namespace_root() -> io::Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER)?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// The command that the example was given.
///
/// # Errors
/// When there is none.
pub fn command_line() -> Result<Vec<String>, AnyError> {
    let command: Vec<String> = env::args().skip(1).collect();
    if command.is_empty() { Err("give a command to run in the namespace".into()) } else { Ok(command) }
}

/// A command in network and mount namespaces of its own. As a descriptor, it is readable when the command ended.
#[derive(Debug)]
pub struct Child {
    ended: PipeReader,
    thread: JoinHandle<Result<ExitStatus, AnyError>>,
}

impl Child {
    /// Starts `command` behind the interface that `open` makes, with the addresses and DNS server of `config`.
    ///
    /// # Errors
    /// Of the system calls, of `open`, and of the program `ip`.
    pub fn start<T: Send + 'static, E: Into<AnyError>>(
        config: &Config,
        open: impl FnOnce(&str) -> Result<T, E> + Send + 'static,
        command: Vec<String>,
    ) -> Result<(T, Child), AnyError> {
        let (ended, until_ended) = io::pipe()?;
        let (to_us, from_thread) = mpsc::channel();
        let (plan, mtu) = (*config.ipv4(), config.mtu());
        let thread = std::thread::spawn(move || {
            let _until_ended = until_ended;
            let enter = || -> Result<T, AnyError> {
                unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
                let device = open("tap0").map_err(Into::into)?;
                configure(&plan, mtu)?;
                Ok(device)
            };
            let device = enter();
            let entered = device.is_ok();
            if to_us.send(device).is_err() || !entered {
                return Err("nobody is there to serve the namespace".into());
            }
            let status = Command::new(&command[0]).args(&command[1..]).status();
            status.map_err(|error| format!("running {} failed: {error}", command[0]).into())
        });
        Ok((from_thread.recv()??, Child { ended, thread }))
    }

    /// Waits for the command's end.
    ///
    /// # Errors
    /// When the command could not be run.
    pub fn exit_code(self) -> Result<ExitCode, AnyError> {
        let status = self.thread.join().map_err(|_| "the thread in the namespace panicked")??;
        Ok(status.code().map_or(ExitCode::FAILURE, |code| ExitCode::from(code as u8)))
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

/// Runs `ip` in the namespaces of the calling thread, with one command per line of `script`.
///
/// # Errors
/// When it cannot be run, or fails.
pub fn ip(script: &str) -> Result<(), AnyError> {
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .map_err(|error| format!("running ip failed: {error}"))?;
    if let Some(mut stdin) = ip.stdin.take() {
        stdin.write_all(script.as_bytes())?;
    }
    if ip.wait()?.success() { Ok(()) } else { Err("ip failed".into()) }
}

/// Gives the interface its addresses, and the mount namespace its own /etc/resolv.conf.
fn configure(plan: &Ipv4Plan, mtu: u16) -> Result<(), AnyError> {
    ip(&format!(
        "link set lo up\n\
         link set tap0 mtu {mtu} up\n\
         addr add {}/{} dev tap0\n\
         route add default via {}\n",
        plan.child,
        plan.subnet.prefix(),
        plan.gateway
    ))?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    // The file's tmpfs lives on beneath the file's own mount.
    mount(none, "/tmp", Some("tmpfs"), MsFlags::empty(), none)?;
    fs::write("/tmp/resolv.conf", format!("nameserver {}\n", plan.dns))?;
    mount(Some("/tmp/resolv.conf"), "/etc/resolv.conf", none, MsFlags::MS_BIND, none)?;
    umount2("/tmp", MntFlags::MNT_DETACH)?;
    Ok(())
}
