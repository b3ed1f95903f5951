//! Which namespaces the child gets (namespaces(7)). Time is left alone.

use std::fmt;

use serde::Serialize;

use super::net::NetPlan;
use super::surroundings::Kind;
use crate::cli::{CgroupArg, Hostname, RunArgs};

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

/// The child's namespaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NamespacePlan {
    /// Those that are made with the child.
    pub new: Vec<Namespace>,
    /// The host name in a uts namespace, if another one than the host's.
    pub hostname: Option<String>,
}

impl NamespacePlan {
    /// What the options say, else what the surroundings want: for a node all, otherwise those that the network needs.
    pub fn new(args: &RunArgs, kind: Kind, net: &NetPlan) -> Self {
        let given = |option: Option<bool>| option.unwrap_or(kind == Kind::Node);
        let has_net = !matches!(net, NetPlan::Host) && !args.detach_netns;
        let wanted = [
            (Namespace::User, true),
            (Namespace::Mount, true),
            (Namespace::Net, has_net),
            (Namespace::Pid, given(args.pidns)),
            (Namespace::Ipc, given(args.ipcns)),
            (Namespace::Uts, given(args.utsns) || args.hostname.is_some()),
            (Namespace::Cgroup, given(args.cgroupns.or(args.cgroup.map(|mode| mode != CgroupArg::None)))),
        ];
        NamespacePlan {
            new: wanted.into_iter().filter_map(|(namespace, wanted)| wanted.then_some(namespace)).collect(),
            hostname: args.hostname.as_ref().map(Hostname::to_string),
        }
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
    use crate::plan::facts::HostFacts;

    fn plan(options: &[&str]) -> (String, Option<String>) {
        let args = ["rootless-launch"].iter().chain(options).chain(&["--", "true"]);
        let args = Cli::try_parse_from(args).unwrap().run;
        let net = NetPlan::new(&args, "", &HostFacts::default()).unwrap();
        let plan = NamespacePlan::new(&args, Kind::of(&args), &net);
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
    fn options_add_namespaces() {
        assert_eq!(plan(&["--pidns", "--cgroupns=true"]).0, "user mount net pid cgroup");
        assert_eq!(plan(&["--net=host", "--hostname=n1"]), ("user mount uts".into(), Some("n1".into())));
    }
}
