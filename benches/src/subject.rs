//! Whose way out of the child is measured: one column each.

use crate::comparison;
use tests::engine::{Engine, Launch};

/// An engine on one of its paths, with its default MTU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A veth pair: no engine.
    Veth,
    /// slirp4netns.
    Slirp4netns,
    /// pasta.
    Pasta,
    /// Ours, every packet by the TAP.
    Tap,
    /// The same with two queues, each with a thread.
    TapQueues,
    /// Ours, TCP by sockets.
    Relay,
    /// Ours as it is by default: by sockets where that pays.
    Auto,
}

impl Subject {
    /// All of them but [`Subject::TapQueues`], which has a place where there are several streams, and [`Subject::Auto`], which has one
    /// where there are many connections one after the other; ours last.
    pub const ALL: [Self; 5] = [Self::Veth, Self::Slirp4netns, Self::Pasta, Self::Tap, Self::Relay];

    /// How a command is put behind it.
    #[must_use]
    pub fn launch(self) -> Launch {
        let launch = self.engine().launch();
        match self {
            Self::Tap => launch.args(&["--egress=tap"]),
            Self::TapQueues => launch.args(&["--egress=tap", "--queues=2"]),
            Self::Relay => launch.args(&["--egress=relay"]),
            _ => launch,
        }
    }

    /// Whether it is to be had here.
    #[must_use]
    pub fn is_present(self) -> bool {
        self.engine().is_present()
    }

    /// Whether something in user space carries the packets, or the bytes.
    #[must_use]
    pub fn is_engine(self) -> bool {
        self != Self::Veth
    }

    fn engine(self) -> Engine {
        match self {
            Self::Veth => Engine::Veth,
            Self::Slirp4netns => Engine::Slirp4netns,
            Self::Pasta => Engine::Pasta,
            Self::Tap | Self::TapQueues | Self::Relay | Self::Auto => Engine::Ours,
        }
    }
}

impl comparison::Column for Subject {
    fn name(self) -> String {
        match self {
            Self::Tap => "rootless-launch, TAP".to_owned(),
            Self::TapQueues => "rootless-launch, 2 queues".to_owned(),
            Self::Relay => "rootless-launch, relay".to_owned(),
            Self::Auto => "rootless-launch by default".to_owned(),
            peer => peer.engine().name().to_owned(),
        }
    }

    fn is_ours(self) -> bool {
        self.engine() == Engine::Ours
    }
}
