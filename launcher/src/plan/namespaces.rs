//! Which namespaces the child gets (namespaces(7)). Time is left alone.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::facts::HostFacts;
use super::net::NetPlan;
use super::surroundings::Kind;
use crate::cli::{CgroupArg, Hostname, RunArgs};
use crate::error::UsageError;
use crate::state_dir::NETNS;

/// A kind of namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Namespace {
    /// Ids and rights; always.
    User,
    /// Mounts; always.
    Mount,
    /// Devices, addresses, ports.
    Net,
    /// Process ids. Process 1 is an init of ours, which starts CMD.
    Pid,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host name.
    Uts,
    /// Root of the cgroup tree.
    Cgroup,
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Namespace::User => "user",
            Namespace::Mount => "mount",
            Namespace::Net => "net",
            Namespace::Pid => "pid",
            Namespace::Ipc => "ipc",
            Namespace::Uts => "uts",
            Namespace::Cgroup => "cgroup",
        })
    }
}

impl fmt::Display for NamespacePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.new.iter().map(ToString::to_string).collect();
        f.write_str(&names.join(" "))?;
        if let Some(name) = &self.hostname {
            write!(f, ", host name {name}")?;
        }
        if let Some(path) = &self.detached_net {
            write!(f, ", net apart from the command at {}", path.display())?;
        }
        Ok(())
    }
}

/// The child's namespaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NamespacePlan {
    /// Those that are made with the child.
    pub new: Vec<Namespace>,
    /// The host name in a uts namespace, if another one than the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The file to which the network namespace is bound, if CMD is to stay in the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detached_net: Option<PathBuf>,
}

impl NamespacePlan {
    /// What the options say, else what the surroundings want: for a node all, otherwise those that the network needs.
    ///
    /// # Errors
    /// `--detach-netns` without a network namespace.
    pub fn new(args: &RunArgs, kind: Kind, net: &NetPlan, facts: &HostFacts) -> Result<Self, UsageError> {
        let given = |option: Option<bool>| option.unwrap_or(kind == Kind::Node);
        let has_net = !matches!(net, NetPlan::Host);
        if args.detach_netns && !has_net {
            return Err(UsageError::NothingToDetach);
        }
        let wanted = [
            (Namespace::User, true),
            (Namespace::Mount, true),
            (Namespace::Net, has_net && !args.detach_netns),
            (Namespace::Pid, given(args.pidns)),
            (Namespace::Ipc, given(args.ipcns)),
            (Namespace::Uts, given(args.utsns) || args.hostname.is_some()),
            (Namespace::Cgroup, given(args.cgroupns.or(args.cgroup.map(|mode| mode != CgroupArg::None)))),
        ];
        Ok(NamespacePlan {
            new: wanted.into_iter().filter_map(|(namespace, wanted)| wanted.then_some(namespace)).collect(),
            hostname: args.hostname.as_ref().map(Hostname::to_string),
            detached_net: args.detach_netns.then(|| facts.state_dir.join(NETNS)),
        })
    }

    /// Whether the child gets one of this kind.
    pub fn contains(&self, namespace: Namespace) -> bool {
        self.new.contains(&namespace)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    fn plan(options: &[&str]) -> (String, Option<String>) {
        let args = ["rootless-launch"].iter().chain(options).chain(&["--", "true"]);
        let args = Cli::try_parse_from(args).unwrap().run;
        let net = NetPlan::new(&args, "", &HostFacts::default()).unwrap();
        let plan = NamespacePlan::new(&args, Kind::of(&args), &net, &HostFacts::default()).unwrap();
        (plan.new.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "), plan.hostname)
    }

    #[test]
    fn plain_commands_get_what_the_network_needs() {
        assert_eq!(plan(&[]).0, "user mount net");
        assert_eq!(plan(&["--net=none"]).0, "user mount net");
        assert_eq!(plan(&["--net=host"]).0, "user mount");
    }

    #[test]
    fn nodes_get_all_but_what_is_switched_off() {
        assert_eq!(plan(&["--surroundings=node"]).0, "user mount net pid ipc uts cgroup");
        assert_eq!(
            plan(&["--surroundings=node", "--pidns=false", "--ipcns=false"]).0,
            "user mount net uts cgroup"
        );
    }

    #[test]
    fn a_detached_network_is_bound_in_the_state_directory() {
        assert_eq!(plan(&["--detach-netns"]).0, "user mount");
        let facts = HostFacts { state_dir: "/run/n".into(), ..HostFacts::default() };
        let of = |options: &[&str]| {
            let args = ["rootless-launch"].iter().chain(options).chain(&["--", "true"]);
            let args = Cli::try_parse_from(args).unwrap().run;
            let net = NetPlan::new(&args, "", &facts).unwrap();
            NamespacePlan::new(&args, Kind::Plain, &net, &facts)
        };
        assert_eq!(of(&["--detach-netns"]).unwrap().detached_net, Some("/run/n/netns".into()));
        assert!(of(&["--detach-netns", "--net=host"]).is_err());
    }

    #[test]
    fn options_add_namespaces() {
        assert_eq!(plan(&["--pidns", "--cgroupns=true"]).0, "user mount net pid cgroup");
        assert_eq!(plan(&["--net=host", "--hostname=n1"]), ("user mount uts".into(), Some("n1".into())));
    }
}
