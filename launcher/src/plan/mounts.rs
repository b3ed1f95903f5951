//! The files that the child sees instead of the host's.

use std::fmt::Write;

use super::facts::HostFacts;
use super::net::NetPlan;
use crate::cli::RunArgs;

/// A file that is mounted over one of the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileMount {
    /// Name in /etc.
    pub name: &'static str,
    /// Content.
    pub text: String,
}

/// What is mounted in the child.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountPlan {
    /// Files of /etc.
    pub files: Vec<FileMount>,
}

impl MountPlan {
    /// With the engine the child resolves names through it; otherwise its files are the host's.
    pub fn new(net: &NetPlan, args: &RunArgs, facts: &HostFacts) -> Self {
        let NetPlan::Engine(plan) = net else { return MountPlan::default() };
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

        MountPlan {
            files: vec![
                FileMount { name: "resolv.conf", text: resolv_conf },
                FileMount { name: "hosts", text: hosts },
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    fn files(options: &[&str], facts: &HostFacts) -> Vec<FileMount> {
        let args = ["rootless-launch"].iter().chain(options).chain(&["--", "true"]);
        let args = Cli::try_parse_from(args).unwrap().run;
        MountPlan::new(&NetPlan::new(&args, "", facts).unwrap(), &args, facts).files
    }

    #[test]
    fn the_engine_is_the_only_name_server() {
        let facts = HostFacts {
            resolv_conf: "nameserver 127.0.0.53\noptions edns0\nsearch lan\n".into(),
            ..HostFacts::default()
        };
        let files = files(&[], &facts);
        assert_eq!(files[0].name, "resolv.conf");
        assert_eq!(files[0].text, "nameserver 10.0.42.3\nsearch lan\noptions edns0\n");
    }

    #[test]
    fn names_are_added_to_the_hosts_own() {
        let facts = HostFacts { hosts: "127.0.0.1 localhost box\n\n".into(), ..HostFacts::default() };
        let files = files(&["--dns-name=db=192.0.2.7", "--cidr=10.9.0.0/24"], &facts);
        assert_eq!(
            files[1].text,
            "127.0.0.1 localhost box\n# rootless-launch\n10.9.0.2 host.internal gateway.internal\n\
             10.9.0.3 dns.internal\n192.0.2.7 db\n"
        );
    }

    #[test]
    fn without_engine_nothing_is_mounted() {
        assert!(files(&["--net=none"], &HostFacts::default()).is_empty());
    }
}
