//! What is mounted in the child, step by step.

use std::fmt::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::facts::HostFacts;
use super::namespaces::{Namespace, NamespacePlan};
use super::net::NetPlan;
use super::surroundings::Surroundings;
use crate::cli::{PropagationArg, RunArgs};

/// One step; they are done in their order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum MountStep {
    /// How mounts and unmounts spread between / and others (mount_namespaces(7)).
    Propagation {
        /// In RootlessKit's words.
        propagation: PropagationArg,
    },
    /// A new proc on /proc, which shows the processes of the child's pid namespace.
    Proc,
    /// A new sysfs on /sys, which shows the devices of the child's network namespace. /sys/fs/cgroup stays the host's. Where it
    /// cannot be had, /sys stays the host's.
    Sysfs,
    /// The unified hierarchy of cgroups, as the child's cgroup namespace has it, on /sys/fs/cgroup. Where it cannot be
    /// had, what is there stays.
    Cgroup2,
    /// A tmpfs over a directory, whose entries are mounted there again; links are made anew.
    ///
    /// Links to the old entries would be shorter, but AppArmor knows files by their path. A file that the host replaces later
    /// stays what it was.
    CopyUp {
        /// The directory.
        directory: PathBuf,
        /// Names that the new one does not have.
        leave_out: Vec<String>,
    },
    /// A directory and those above it, where they are missing (mkdir -p), mode 0755.
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// A file or a directory, with all that is mounted below it, also at another place.
    Bind {
        /// What.
        source: PathBuf,
        /// Where; has to be there.
        target: PathBuf,
    },
    /// A file mounted over one of the host's. The host's has to be there; its mount goes when the host replaces the file.
    Cover {
        /// The file, or a link to it.
        path: PathBuf,
        /// Content.
        text: String,
    },
    /// The detached network namespace, bound to a file.
    NetworkNamespace {
        /// The file; has to be there.
        target: PathBuf,
    },
    /// A file in a directory that is the child's own.
    File {
        /// The file.
        path: PathBuf,
        /// Content.
        text: String,
    },
}

impl fmt::Display for MountStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MountStep::Propagation { propagation } => write!(f, "make / {propagation}"),
            MountStep::Proc => f.write_str("mount a new proc on /proc"),
            MountStep::Sysfs => f.write_str("mount a new sysfs on /sys, with the host's /sys/fs/cgroup"),
            MountStep::Cgroup2 => f.write_str("mount cgroup2 on /sys/fs/cgroup"),
            MountStep::CopyUp { directory, leave_out } => {
                write!(f, "copy up {}", directory.display())?;
                if !leave_out.is_empty() {
                    write!(f, " without {}", leave_out.join(" "))?;
                }
                Ok(())
            }
            MountStep::Directory { path } => write!(f, "make the directory {}", path.display()),
            MountStep::Bind { source, target } => {
                write!(f, "bind {} to {}", source.display(), target.display())
            }
            MountStep::Cover { path, text } => {
                write!(f, "mount a file of {} bytes over {}", text.len(), path.display())
            }
            MountStep::NetworkNamespace { target } => {
                write!(f, "bind the new network namespace to {}", target.display())
            }
            MountStep::File { path, text } => {
                write!(f, "write {}, {} bytes", path.display(), text.len())
            }
        }
    }
}

/// What is mounted in the child.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct MountPlan {
    /// In this order.
    pub steps: Vec<MountStep>,
}

impl MountPlan {
    /// With the engine the child resolves names through it; otherwise its files are the host's.
    pub fn new(
        net: &NetPlan,
        namespaces: &NamespacePlan,
        surroundings: &Surroundings,
        args: &RunArgs,
        facts: &HostFacts,
    ) -> Self {
        let propagation = args.propagation.unwrap_or(surroundings.propagation);
        // Sharing comes last: what is mounted before would be copied to and fro.
        let (first, last) = match propagation {
            PropagationArg::Rshared | PropagationArg::Shared => (PropagationArg::Rslave, Some(propagation)),
            other => (other, None),
        };
        let mut steps = vec![MountStep::Propagation { propagation: first }];
        if namespaces.contains(Namespace::Pid) {
            steps.push(MountStep::Proc);
        }
        // The kernel mounts it only for who owns the network namespace.
        let is_wanted = namespaces.contains(Namespace::Cgroup) || namespaces.contains(Namespace::Pid);
        if namespaces.contains(Namespace::Net) && is_wanted {
            steps.push(MountStep::Sysfs);
        }
        if namespaces.contains(Namespace::Cgroup) {
            steps.push(MountStep::Cgroup2);
        }

        let names = name_files(net, args, facts);
        // A command in the host's network resolves names as the host does; these are for what it starts elsewhere.
        let (files, beside) = match &namespaces.detached_net {
            Some(_) => (Vec::new(), names),
            None => (names, Vec::new()),
        };
        let mut copied = copied_up(surroundings, args);
        let etc = Path::new("/etc");
        if !files.is_empty() && !facts.name_files_exist && !copied.iter().any(|(path, _)| path == etc) {
            copied.push((etc.to_owned(), Vec::new()));
        }
        let is_ours = copied.iter().any(|(path, _)| path == etc);
        steps.extend(copied.into_iter().map(|(directory, mut leave_out)| {
            if directory == etc && !files.is_empty() {
                leave_out.extend(files.iter().map(|(name, _)| (*name).to_owned()));
            }
            MountStep::CopyUp { directory, leave_out }
        }));
        steps.extend(files.into_iter().map(|(name, text)| {
            let path = etc.join(name);
            if is_ours { MountStep::File { path, text } } else { MountStep::Cover { path, text } }
        }));
        steps.extend_from_slice(&surroundings.mounts);
        let state = &facts.state_dir;
        steps.extend(beside.into_iter().map(|(name, text)| MountStep::File { path: state.join(name), text }));
        let target = namespaces.detached_net.clone();
        steps.extend(target.map(|target| MountStep::NetworkNamespace { target }));
        steps.extend(last.map(|propagation| MountStep::Propagation { propagation }));
        MountPlan { steps }
    }
}

/// The directories of the surroundings and of `--copy-up`, each once, with the names that are left out.
fn copied_up(surroundings: &Surroundings, args: &RunArgs) -> Vec<(PathBuf, Vec<String>)> {
    let mut copied = surroundings.copy_up.clone();
    for directory in &args.copy_up {
        if copied.iter().all(|(path, _)| path != directory) {
            copied.push((directory.clone(), Vec::new()));
        }
    }
    copied
}

/// Names in /etc, with the text of each, by which the child finds the engine's names.
pub fn name_files(net: &NetPlan, args: &RunArgs, facts: &HostFacts) -> Vec<(&'static str, String)> {
    let NetPlan::Engine(plan) = net else { return Vec::new() };
    let (ipv4, search) = (plan.config.ipv4(), &plan.config.dns().search);

    let mut resolv_conf = format!("nameserver {}\n", ipv4.dns);
    if !search.is_empty() {
        let _ = writeln!(resolv_conf, "search {}", search.join(" "));
    }
    for options in facts.resolv_conf.lines().filter(|line| line.starts_with("options")) {
        let _ = writeln!(resolv_conf, "{options}");
    }

    let mut hosts = facts.hosts.trim_end().to_owned();
    if hosts.is_empty() {
        hosts.push_str("127.0.0.1 localhost\n::1 localhost");
    }
    let _ = write!(
        hosts,
        "\n# rootless-launch\n{} host.internal gateway.internal\n{} dns.internal\n",
        ipv4.gateway, ipv4.dns
    );
    for (name, address) in &args.dns_name {
        let _ = writeln!(hosts, "{address} {name}");
    }
    vec![("resolv.conf", resolv_conf), ("hosts", hosts)]
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;
    use crate::plan::surroundings::Kind;

    fn facts() -> HostFacts {
        HostFacts { name_files_exist: true, ..HostFacts::default() }
    }

    fn steps(options: &[&str], facts: &HostFacts) -> Vec<MountStep> {
        let args = ["rootless-launch"].iter().chain(options).chain(&["--", "true"]);
        let args = Cli::try_parse_from(args).unwrap().run;
        let net = NetPlan::new(&args, "", facts).unwrap();
        let namespaces = NamespacePlan::new(&args, Kind::of(&args), &net, facts).unwrap();
        let surroundings = Surroundings::new(&args, facts).unwrap();
        MountPlan::new(&net, &namespaces, &surroundings, &args, facts).steps
    }

    fn lines(options: &[&str], facts: &HostFacts) -> Vec<String> {
        steps(options, facts).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_engine_is_the_only_name_server() {
        let resolv_conf = "nameserver 127.0.0.53\noptions edns0\nsearch lan\n".into();
        let steps = steps(&[], &HostFacts { resolv_conf, ..facts() });
        let text = "nameserver 10.0.42.3\nsearch lan\noptions edns0\n".to_owned();
        assert_eq!(steps[1], MountStep::Cover { path: "/etc/resolv.conf".into(), text });
    }

    #[test]
    fn names_are_added_to_the_hosts_own() {
        let facts = HostFacts { hosts: "127.0.0.1 localhost box\n\n".into(), ..facts() };
        let steps = steps(&["--dns-name=db=192.0.2.7", "--cidr=10.9.0.0/24"], &facts);
        let text = "127.0.0.1 localhost box\n# rootless-launch\n10.9.0.2 host.internal gateway.internal\n\
             10.9.0.3 dns.internal\n192.0.2.7 db\n"
            .to_owned();
        assert_eq!(steps[2], MountStep::Cover { path: "/etc/hosts".into(), text });
    }

    #[test]
    fn without_engine_no_file_is_covered() {
        assert_eq!(lines(&["--net=none"], &facts()), ["make / rslave"]);
    }

    #[test]
    fn what_cannot_be_covered_is_written_into_an_etc_of_its_own() {
        let lines = lines(&[], &HostFacts { name_files_exist: false, ..facts() });
        assert_eq!(lines[1], "copy up /etc without resolv.conf hosts");
        assert!(lines[2].starts_with("write /etc/resolv.conf, "), "{lines:?}");
    }

    #[test]
    fn directories_are_copied_up_once_and_before_files_are_written() {
        let lines = lines(&["--copy-up=/run", "--copy-up=/etc", "--copy-up=/run"], &facts());
        assert_eq!(lines[1..3], ["copy up /run", "copy up /etc without resolv.conf hosts"]);
        assert!(lines[3].starts_with("write /etc/resolv.conf, "), "{lines:?}");
    }

    #[test]
    fn each_namespace_has_its_file_system() {
        assert_eq!(
            lines(&["--net=none", "--pidns", "--cgroupns"], &facts()),
            [
                "make / rslave",
                "mount a new proc on /proc",
                "mount a new sysfs on /sys, with the host's /sys/fs/cgroup",
                "mount cgroup2 on /sys/fs/cgroup"
            ]
        );
        // Its devices are not ours.
        assert_eq!(
            lines(&["--net=host", "--pidns"], &facts()),
            ["make / rslave", "mount a new proc on /proc"]
        );
    }

    #[test]
    fn a_command_beside_its_network_keeps_the_hosts_names() {
        let facts = HostFacts { state_dir: "/run/n".into(), ..facts() };
        let lines = lines(&["--detach-netns"], &facts);
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert!(lines[1].starts_with("write /run/n/resolv.conf, "), "{lines:?}");
        assert_eq!(lines[3], "bind the new network namespace to /run/n/netns");
    }

    #[test]
    fn sharing_comes_last() {
        let lines = lines(&["--net=none", "--copy-up=/opt", "--propagation=rshared"], &facts());
        assert_eq!(lines, ["make / rslave", "copy up /opt", "make / rshared"]);
        assert_eq!(
            steps(&["--net=none", "--propagation=rprivate"], &facts()),
            [MountStep::Propagation { propagation: PropagationArg::Rprivate }]
        );
    }
}
