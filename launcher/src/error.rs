//! What went wrong, at which step, and what the user can do about it.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use crate::plan::cgroup::NoDelegation;
use crate::state_dir::StateDirError;
use forwarder::error::PortError;
use netstack::error::ConfigError;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A mistake in the command line; exit status 2.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum UsageError {
    /// The engine's settings contradict each other or are out of range.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `--metrics`: nobody can listen there.
    #[error("--metrics {address}")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// socket(2), bind(2), listen(2).
        #[source]
        source: io::Error,
    },
    /// A role in the child's network got two addresses of one family.
    #[error("{option} {second}: the {family} one is {first} already")]
    AddressTwice {
        /// The option.
        option: &'static str,
        /// IPv4 or IPv6.
        family: &'static str,
        /// The address that came first.
        first: IpAddr,
        /// The one too many.
        second: IpAddr,
    },
    /// A file of `--policy @FILE` could not be read.
    #[error("cannot read the policy file {path:?}")]
    PolicyFile {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file of `--pcap` could not be created.
    #[error("cannot create the capture file {path:?}")]
    PcapFile {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of `--publish-file` could not be read.
    #[error("cannot read the ports in {path:?}")]
    PublishFile {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: PortFileError,
    },
    /// A port that cannot be published.
    #[error("cannot publish {spec}")]
    Publish {
        /// The forward.
        spec: String,
        /// Why.
        #[source]
        source: PortError,
    },
    /// Two forwards want the same port of the host.
    #[error("{spec} and {other} both want the host's {place}")]
    PublishedTwice {
        /// The one that came second.
        spec: String,
        /// The one that came first.
        other: String,
        /// What both want.
        place: String,
    },
    /// `--publish auto` more than once.
    #[error("--publish auto is given twice")]
    AutoTwice,
    /// `--pcap` with `--egress=relay`.
    #[error(
        "--pcap records packets, and connections on the relay have none: use --egress=auto or tap with it"
    )]
    RelayWithCapture,
    /// `--detach-netns` without a network namespace.
    #[error("--detach-netns has no meaning with --net=host: there is no network namespace")]
    NothingToDetach,
    /// The data directory of a node would not be seen inside.
    #[error(
        "the data directory {path:?} lies below {target}, where the node gets a directory of its own; choose another by --data-dir"
    )]
    HiddenData {
        /// The directory.
        path: PathBuf,
        /// What hides it.
        target: &'static str,
    },
    /// An option that needs the engine, without the engine.
    #[error("{option} has no meaning with --net={net}: there is no engine")]
    NeedsEngine {
        /// The option.
        option: &'static str,
        /// The value of `--net`.
        net: &'static str,
    },
}

/// What is wrong with a file that lists ports.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PortFileError {
    /// open(2), read(2), or not UTF-8.
    #[error(transparent)]
    Read(io::Error),
    /// It is not TOML, or not a list of ports.
    #[error(transparent)]
    Toml(toml::de::Error),
    /// It begins with a brace and is not JSON, or not a list of ports.
    #[error(transparent)]
    Json(serde_json::Error),
}

/// A launch that did not come to its end; exit status 1, or 126 and 127 as a shell does if CMD cannot run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The command line.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// A step of the launch failed.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The state directory.
    #[error("state directory")]
    State(#[from] StateDirError),
    /// `--cgroup=delegated`, and there is none.
    #[error("no delegated cgroup")]
    Cgroup(#[from] NoDelegation),
    /// The engine process ended before CMD; CMD was killed.
    #[error("the engine process {0}; the command was killed")]
    EngineDied(Ending),
    /// The engine process has ended so often within a minute that it is not started again; CMD was killed.
    #[error("the engine process {ending}, the {times}th within a minute; the command was killed")]
    EngineKeepsDying {
        /// How the last one ended.
        ending: Ending,
        /// How many have ended.
        times: usize,
    },
    /// The process that guards the child ended before CMD; CMD was killed.
    #[error("the guard process {0}; the command was killed")]
    GuardDied(Ending),
    /// The child ended before it could run CMD and said nothing.
    #[error("the child process {0} before it could run the command")]
    ChildDied(Ending),
    /// A message came out of order between our own processes.
    #[error("handshake: {0}")]
    Handshake(#[from] crate::handshake::state::HandshakeError),
}

impl LaunchError {
    /// Exit status of the launcher.
    pub fn exit_code(&self) -> u8 {
        match self {
            LaunchError::Usage(_) => 2,
            LaunchError::Failed(Failure { step: Step::Execute, errno, .. }) => match *errno {
                libc::ENOENT | libc::ENOTDIR => 127,
                _ => 126,
            },
            _ => 1,
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// exit(2) with this status.
    Exited(i32),
    /// Killed by the signal of this number.
    Killed(i32),
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::Exited(status) => write!(f, "exited with status {status}"),
            Ending::Killed(signal) => match Signal::try_from(*signal) {
                Ok(name) => write!(f, "was killed by {name}"),
                Err(_) => write!(f, "was killed by signal {signal}"),
            },
        }
    }
}

/// A step that failed, with the value it worked on. Travels between our processes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Failure {
    /// What was being done.
    pub step: Step,
    /// The value it was done with; may be empty.
    pub value: String,
    /// Why it failed, errno(3); 0 if `value` says all.
    pub errno: i32,
}

impl Failure {
    /// `step` on `value` failed with `error`.
    pub fn new(step: Step, value: impl Into<String>, error: impl Into<io::Error>) -> Self {
        let error = error.into();
        match error.raw_os_error() {
            Some(errno) => Failure { step, value: value.into(), errno },
            None => {
                let (value, why) = (value.into(), with_causes(&error));
                let value = if value.is_empty() { why } else { format!("{value}: {why}") };
                Failure { step, value, errno: 0 }
            }
        }
    }
}

/// An error and what led to it, parted by colons.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step = self.step.description();
        match self.value.as_str() {
            // An empty command is one, too.
            "" if self.step == Step::Execute => write!(f, "cannot {step} \"\"")?,
            "" => write!(f, "cannot {}", step.trim_end_matches(':'))?,
            value => write!(f, "cannot {step} {value}")?,
        }
        if self.errno != 0 {
            write!(f, ": {}", io::Error::from_raw_os_error(self.errno))?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident = $code:literal: $text:literal,)*) => {
        /// The steps of a launch.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum Step {
            $($(#[$doc])* $name = $code,)*
        }

        impl Step {
            /// Every step.
            pub const ALL: &[Step] = &[$(Step::$name),*];

            /// In words, to follow "cannot".
            pub fn description(self) -> &'static str {
                match self { $(Step::$name => $text,)* }
            }

            /// The step of a code, as it travels in a message.
            pub fn from_code(code: u8) -> Option<Step> {
                Step::ALL.iter().copied().find(|&step| step as u8 == code)
            }
        }
    };
}

steps! {
    /// Signal mask, signalfd, socketpairs of the launcher itself.
    Prepare = 1: "prepare the launch:",
    /// clone3(2) with namespaces.
    CloneNamespaces = 2: "create the namespaces",
    /// clone3(2) of the engine process.
    ForkEngine = 3: "start the engine process",
    /// uid_map and gid_map.
    MapIds = 4: "map user and group ids:",
    /// A message between our processes.
    Talk = 5: "talk to our own process:",
    /// open(2) of /dev/net/tun.
    OpenTun = 6: "open",
    /// TUNSETIFF.
    CreateTap = 7: "create the TAP device",
    /// A netlink request in the child.
    Network = 8: "set up the child's network:",
    /// A mount in the child.
    Mount = 9: "mount",
    /// exec of CMD.
    Execute = 10: "execute",
    /// The engine could not start or stopped with an error.
    Engine = 11: "run the network engine:",
    /// PR_SET_PDEATHSIG and the like.
    Guard = 12: "guard the child against orphanage:",
    /// clone3(2) of the guard process.
    ForkGuard = 13: "start the guard process",
    /// The sandbox of the engine, with `--sandbox=on`.
    Confine = 14: "confine the engine:",
    /// setns(2).
    Join = 15: "join",
    /// A published port could not be opened.
    Publish = 16: "publish",
    /// The relay for outbound connections, with `--egress=relay`.
    Relay = 17: "carry outbound connections by the relay:",
    /// A new proc for a pid namespace.
    MountProc = 18: "mount a new proc on",
    /// A directory of `--copy-up`, or of a node.
    CopyUp = 19: "copy up",
    /// mkdir(2).
    MakeDirectory = 20: "make the directory",
    /// sethostname(2).
    Hostname = 21: "set the host name",
    /// clone3(2) of CMD by the init of a pid namespace.
    StartCommand = 22: "start the command's process",
    /// Processes and controllers of the delegated cgroup.
    Cgroup = 24: "prepare the cgroup",
    /// The process that makes a detached network namespace.
    DetachNetwork = 23: "make a network namespace apart from the command",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_survive_their_code() {
        for &step in Step::ALL {
            assert_eq!(Step::from_code(step as u8), Some(step));
        }
        assert_eq!(Step::from_code(0), None);
    }

    #[test]
    fn a_command_that_cannot_run_ends_as_in_a_shell() {
        let failed = |errno| LaunchError::from(Failure { step: Step::Execute, value: "x".into(), errno });
        assert_eq!(failed(libc::ENOENT).exit_code(), 127);
        assert_eq!(failed(libc::EACCES).exit_code(), 126);
        assert_eq!(failed(libc::ENOEXEC).exit_code(), 126);
    }

    #[test]
    fn a_failure_names_step_value_and_reason() {
        let failure = Failure { step: Step::OpenTun, value: "/dev/net/tun".into(), errno: libc::EACCES };
        assert_eq!(failure.to_string(), "cannot open /dev/net/tun: Permission denied (os error 13)");
        let failure = Failure { step: Step::Engine, value: String::new(), errno: libc::EMFILE };
        assert_eq!(failure.to_string(), "cannot run the network engine: Too many open files (os error 24)");
        let failure = Failure { step: Step::Execute, value: String::new(), errno: libc::ENOENT };
        assert_eq!(failure.to_string(), "cannot execute \"\": No such file or directory (os error 2)");
    }
}
