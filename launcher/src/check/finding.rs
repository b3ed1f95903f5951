//! What is found, how bad that is for what, and what root does about it. Pure.

use std::collections::BTreeSet;
use std::fmt;

use clap::ValueEnum;

use crate::error::Failure;
use crate::hint::{self, Machine};
use crate::plan::cgroup::DELEGATE_COMMAND;

/// What the machine is wanted for. Each has all needs of the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub enum Purpose {
    /// Running a command behind our engine
    Launch,
    /// A Kubernetes node by itself: container runtime, CNI, kubelet
    Node,
    /// Several nodes: flannel's VXLAN between them
    Cluster,
}

impl Purpose {
    /// All of them, the least demanding first.
    pub const ALL: [Purpose; 3] = [Purpose::Launch, Purpose::Node, Purpose::Cluster];

    /// As on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Purpose::Launch => "launch",
            Purpose::Node => "node",
            Purpose::Cluster => "cluster",
        }
    }
}

/// How good or bad a finding is for a purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Works.
    Pass,
    /// Works with less.
    Warn,
    /// Does not work.
    Fail,
}

impl Verdict {
    /// As it is printed.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        }
    }
}

/// What a finding means, whatever the purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// As it should be.
    Good,
    /// Less than there could be.
    Less,
    /// This purpose and those after it cannot be served; those before it are served with less.
    Stops(Purpose),
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was tried.
    pub name: &'static str,
    /// The least purpose that this is about.
    pub group: Purpose,
    /// How it went.
    pub state: State,
    /// In plain words.
    pub finding: String,
    /// What mends it; empty if root has no command for it.
    pub remedies: Vec<Remedy>,
}

impl Finding {
    /// Works.
    pub fn good(group: Purpose, name: &'static str, finding: impl Into<String>) -> Self {
        Finding { name, group, state: State::Good, finding: finding.into(), remedies: Vec::new() }
    }

    /// Works with less.
    pub fn less(group: Purpose, name: &'static str, finding: impl Into<String>) -> Self {
        Finding { state: State::Less, ..Finding::good(group, name, finding) }
    }

    /// Does not work for its group.
    pub fn stops(group: Purpose, name: &'static str, finding: impl Into<String>) -> Self {
        Finding { state: State::Stops(group), ..Finding::good(group, name, finding) }
    }

    /// A step failed on which its group depends.
    pub fn failed(group: Purpose, name: &'static str, failure: &Failure, machine: &Machine) -> Self {
        let Some(hint) = hint::for_failure(failure, machine) else {
            return Finding::stops(group, name, failure.to_string());
        };
        let finding = format!("{failure}: {}", hint.cause);
        Finding::stops(group, name, finding).mended_by(Remedy::of_command(&hint.fix))
    }

    /// With what mends it.
    #[must_use]
    pub fn mended_by(mut self, remedies: impl IntoIterator<Item = Remedy>) -> Self {
        self.remedies.extend(remedies);
        self
    }

    /// How good or bad it is for `purpose`; `None` means for whatever it is worst for.
    pub fn verdict(&self, purpose: Option<Purpose>) -> Verdict {
        match self.state {
            State::Good => Verdict::Pass,
            State::Stops(stopped) if purpose.is_none_or(|purpose| purpose >= stopped) => Verdict::Fail,
            State::Less | State::Stops(_) => Verdict::Warn,
        }
    }

    /// What root does about it, in one line; empty if there is nothing.
    pub fn fix(&self) -> String {
        let distinct: BTreeSet<&Remedy> = self.remedies.iter().collect();
        distinct.into_iter().map(Remedy::to_string).collect::<Vec<_>>().join(" && ")
    }
}

/// What root does, once. In the order in which it is done.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Remedy {
    /// Installs a package of Debian's.
    Package(&'static str),
    /// Fetches a released program that Debian has no package of.
    Download {
        /// From where.
        url: String,
        /// To where.
        file: String,
    },
    /// Another command.
    Command(String),
    /// Loads a kernel module, now and after every boot.
    Module(String),
    /// Sets a kernel parameter, now and after every boot.
    Sysctl {
        /// Its name, with dots.
        name: String,
        /// Its value.
        value: String,
    },
    /// Gives the users' service managers all controllers that a node uses.
    Delegate,
    /// Keeps a user's services running while he is logged out.
    Linger(String),
    /// Adds to the kernel's command line; works after the next boot.
    Boot(&'static str),
}

impl Remedy {
    /// What a command of [`hint`] does; nothing if there is none.
    pub fn of_command(command: &str) -> Vec<Remedy> {
        if let Some(module) = command.strip_prefix("modprobe ") {
            return vec![Remedy::Module(module.to_owned())];
        }
        if let Some(settings) = command.strip_prefix("sysctl -w ").filter(|text| !text.contains('\'')) {
            let setting = |text: &str| {
                let (name, value) = text.split_once('=')?;
                Some(Remedy::Sysctl { name: name.to_owned(), value: value.to_owned() })
            };
            return settings.split(' ').filter_map(setting).collect();
        }
        if command.is_empty() { Vec::new() } else { vec![Remedy::Command(command.to_owned())] }
    }

    /// A kernel parameter.
    pub fn sysctl(name: &str, value: impl ToString) -> Remedy {
        Remedy::Sysctl { name: name.to_owned(), value: value.to_string() }
    }
}

/// All at once, for one finding.
impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remedy::Package(package) => write!(f, "apt-get install {package}"),
            Remedy::Download { url, file } => {
                let sum = format!("echo \"$(wget -qO- {url}.sha256)  {file}\" | sha256sum -c");
                // flannel publishes no sums.
                let sum = if url.contains("//dl.k8s.io/") { format!(" && {sum}") } else { String::new() };
                let directory = file.rsplit_once('/').map_or("/", |(directory, _)| directory);
                write!(f, "mkdir -p {directory} && wget -O {file} {url}{sum} && chmod 0755 {file}")
            }
            Remedy::Command(command) => f.write_str(command),
            Remedy::Module(module) => write!(f, "modprobe {module}"),
            Remedy::Sysctl { name, value } if value.contains(' ') => write!(f, "sysctl -w {name}='{value}'"),
            Remedy::Sysctl { name, value } => write!(f, "sysctl -w {name}={value}"),
            Remedy::Delegate => f.write_str(DELEGATE_COMMAND),
            Remedy::Linger(user) => write!(f, "loginctl enable-linger {user}"),
            Remedy::Boot(parameter) => write!(
                f,
                "mkdir -p /etc/default/grub.d && \
                 printf 'GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX {parameter}\"\\n' > /etc/default/grub.d/rootless-launch.cfg && \
                 update-grub && echo 'Please reboot.'"
            ),
        }
    }
}

/// The commands that do all of this, one per line, each as lasting as it can be. Files are added to: an earlier run may
/// have written there.
pub fn commands<'a>(remedies: impl IntoIterator<Item = &'a Remedy>) -> Vec<String> {
    let remedies: BTreeSet<&Remedy> = remedies.into_iter().collect();
    let (mut packages, mut modules, mut settings) = (Vec::new(), Vec::new(), Vec::new());
    let mut commands = Vec::new();
    let mut last = Vec::new();
    for remedy in remedies {
        match remedy {
            Remedy::Package(package) => packages.push(*package),
            Remedy::Module(module) => modules.push(module.as_str()),
            Remedy::Sysctl { name, value } => settings.push(format!("{name} = {value}")),
            Remedy::Download { .. } | Remedy::Command(_) => commands.push(remedy.to_string()),
            Remedy::Delegate | Remedy::Linger(_) | Remedy::Boot(_) => last.push(remedy.to_string()),
        }
    }
    if !packages.is_empty() {
        commands.insert(0, format!("apt-get install -y {}", packages.join(" ")));
    }
    if !modules.is_empty() {
        commands.push(format!(
            "printf '{}\\n' >> /etc/modules-load.d/rootless-launch.conf && modprobe -a {}",
            modules.join("\\n"),
            modules.join(" ")
        ));
    }
    if !settings.is_empty() {
        commands.push(format!(
            "printf '{}\\n' >> /etc/sysctl.d/99-rootless-launch.conf && sysctl -p /etc/sysctl.d/99-rootless-launch.conf",
            settings.join("\\n")
        ));
    }
    if last.iter().any(|command| command == DELEGATE_COMMAND) {
        last.push(
            "# What is delegated changes for sessions that begin later: log out of all, and in again."
                .to_owned(),
        );
    }
    commands.append(&mut last);
    commands
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stops_a_node_is_a_warning_to_a_launch() {
        let finding =
            Finding { state: State::Stops(Purpose::Node), ..Finding::less(Purpose::Launch, "a", "") };
        assert_eq!(finding.verdict(Some(Purpose::Launch)), Verdict::Warn);
        assert_eq!(finding.verdict(Some(Purpose::Node)), Verdict::Fail);
        assert_eq!(finding.verdict(Some(Purpose::Cluster)), Verdict::Fail);
        assert_eq!(finding.verdict(None), Verdict::Fail);
    }

    #[test]
    fn hints_become_lasting() {
        assert_eq!(Remedy::of_command(""), []);
        assert_eq!(Remedy::of_command("modprobe tun"), [Remedy::Module("tun".into())]);
        assert_eq!(
            Remedy::of_command("sysctl -w user.a=1 user.b=2"),
            [Remedy::sysctl("user.a", 1), Remedy::sysctl("user.b", 2)]
        );
        assert_eq!(
            Remedy::of_command("chmod 0666 /dev/net/tun"),
            [Remedy::Command("chmod 0666 /dev/net/tun".into())]
        );
    }

    #[test]
    fn commands_are_joined_and_in_order() {
        let remedies = [
            Remedy::Linger("ann".into()),
            Remedy::Module("vxlan".into()),
            Remedy::Package("uidmap"),
            Remedy::sysctl("net.ipv4.ping_group_range", "0 2147483647"),
            Remedy::Module("br_netfilter".into()),
            Remedy::Package("crun"),
            Remedy::Package("uidmap"),
        ];
        assert_eq!(
            commands(&remedies),
            [
                "apt-get install -y crun uidmap",
                "printf 'br_netfilter\\nvxlan\\n' >> /etc/modules-load.d/rootless-launch.conf && modprobe -a br_netfilter vxlan",
                "printf 'net.ipv4.ping_group_range = 0 2147483647\\n' >> /etc/sysctl.d/99-rootless-launch.conf && \
                 sysctl -p /etc/sysctl.d/99-rootless-launch.conf",
                "loginctl enable-linger ann",
            ]
        );
        assert!(commands([]).is_empty());
    }
}
