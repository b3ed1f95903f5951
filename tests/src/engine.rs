//! Ways to put a command behind a network engine: the program under test and its peers, all as `prefix -- COMMAND`.

use crate::{locate, skip::Skipped};

/// An engine, or the kernel's own veth for comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Engine {
    /// The program under test.
    Ours,
    /// slirp4netns, started the way RootlessKit starts it.
    Slirp4netns,
    /// pasta, without port forwarding.
    Pasta,
    /// No engine: a veth pair between the child and the host.
    Veth,
}

/// An engine with its options.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Which engine.
    pub engine: Engine,
    /// MTU of the child's interface in bytes; `None`: the engine's default.
    pub mtu: Option<u32>,
    /// Further options, only for [`Engine::Ours`].
    pub args: Vec<String>,
}

impl Engine {
    /// All of them, ours last.
    pub const ALL: [Self; 4] = [Self::Veth, Self::Slirp4netns, Self::Pasta, Self::Ours];

    /// The engine that `$LAB_ENGINE` names, ours without it. The tests were proven against the peers where behaviour is equal.
    ///
    /// # Panics
    /// When it names none.
    #[must_use]
    pub fn under_test() -> Self {
        match std::env::var("LAB_ENGINE").as_deref() {
            Err(_) | Ok("ours") => Self::Ours,
            Ok("slirp4netns") => Self::Slirp4netns,
            Ok("pasta") => Self::Pasta,
            Ok("veth") => Self::Veth,
            Ok(other) => panic!("LAB_ENGINE={other}: not one of ours, slirp4netns, pasta, veth"),
        }
    }

    /// Whether its program is there.
    #[must_use]
    pub fn is_present(self) -> bool {
        match self {
            Self::Ours => locate::rootless_launch().is_some(),
            Self::Slirp4netns => locate::find_program("slirp4netns").is_some(),
            Self::Pasta => locate::find_program("pasta").is_some(),
            Self::Veth => true,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "rootless-launch",
            Self::Slirp4netns => "slirp4netns",
            Self::Pasta => "pasta",
            Self::Veth => "veth",
        }
    }

    /// With default options.
    #[must_use]
    pub fn launch(self) -> Launch {
        Launch { engine: self, mtu: None, args: Vec::new() }
    }
}

impl Launch {
    /// The engine under test with its defaults.
    #[must_use]
    pub fn under_test() -> Self {
        Engine::under_test().launch()
    }

    /// The same with an MTU.
    #[must_use]
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = Some(mtu);
        self
    }

    /// The same with more options (of ours).
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(ToString::to_string));
        self
    }

    /// The command line, to be run in the namespace of the host.
    ///
    /// # Panics
    /// When the engine is not there.
    #[must_use]
    pub fn argv(&self, command: &[&str]) -> Vec<String> {
        let mtu = self.mtu.map(|mtu| mtu.to_string());
        let mut argv = match self.engine {
            Engine::Ours => {
                let program = locate::rootless_launch()
                    .expect("rootless-launch is built, or $ROOTLESS_LAUNCH names it");
                let mut argv = vec![program.to_string_lossy().into_owned()];
                argv.extend(mtu.map(|mtu| format!("--mtu={mtu}")));
                argv
            }
            Engine::Slirp4netns => {
                locate::probe_argv(&["via-slirp4netns", mtu.as_deref().unwrap_or("65520")])
            }
            Engine::Pasta => {
                let mut argv = vec![locate::program("pasta").to_string_lossy().into_owned()];
                argv.extend(["--quiet", "--config-net"].map(String::from));
                argv.extend(["-t", "none", "-u", "none", "-T", "none", "-U", "none"].map(String::from));
                argv.extend(mtu.into_iter().flat_map(|mtu| ["--mtu".to_owned(), mtu]));
                argv
            }
            Engine::Veth => locate::probe_argv(&["via-veth", mtu.as_deref().unwrap_or("1500")]),
        };
        if self.engine == Engine::Ours {
            argv.extend(self.args.iter().cloned());
        }
        argv.push("--".to_owned());
        argv.extend(command.iter().map(ToString::to_string));
        argv
    }
}

/// Ours with its defaults, or the reason why a test of what only ours does cannot run.
///
/// # Errors
/// [`Skipped`] while `$LAB_ENGINE` names a peer.
pub fn ours() -> Result<Launch, Skipped> {
    match Engine::under_test() {
        Engine::Ours => Ok(Engine::Ours.launch()),
        peer => Err(Skipped::because(&format!("{} does not do this", peer.name()))),
    }
}
