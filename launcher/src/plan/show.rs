//! A plan as `--dry-run` shows it: what will be done, in its order.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use forwarder::spec::PortSpec;
use serde::Serialize;

use super::Plan;
use super::cgroup::CgroupPlan;
use super::idmap::IdMapPlan;
use super::mounts::MountStep;
use super::namespaces::NamespacePlan;
use super::net::{EnginePlan, NetPlan, TAP_NAME};
use super::surroundings::{Kind, Sysctl};
use crate::cli::RunArgs;
use crate::egress::EgressMode;
use crate::sandbox::Mode;
use crate::supervisor::unit::{NodePlan, Readiness};

/// What a launch will do.
#[derive(Debug, Serialize)]
pub struct Shown<'a> {
    surroundings: Kind,
    state_dir: &'a Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_dir: Option<&'a Path>,
    namespaces: &'a NamespacePlan,
    ids: &'a IdMapPlan,
    network: Network<'a>,
    sysctls: &'a [Sysctl],
    cgroup: &'a CgroupPlan,
    mounts: &'a [MountStep],
    publish: Publish<'a>,
    command: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a NodePlan>,
    warnings: &'a [String],
}

#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Network<'a> {
    Engine {
        device: &'static str,
        mtu: u16,
        ipv4: Addresses,
        #[serde(skip_serializing_if = "Option::is_none")]
        ipv6: Option<Addresses>,
        search: &'a [String],
        egress: EgressMode,
        #[serde(skip_serializing_if = "Option::is_none")]
        overlay: Option<Overlay>,
        sandbox: Mode,
    },
    Loopback,
    Host,
}

#[derive(Debug, Serialize)]
struct Overlay {
    port: u16,
    /// None: those to whom the child has sent.
    peers: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Addresses {
    child: IpAddr,
    prefix: u8,
    gateway: IpAddr,
    dns: IpAddr,
}

#[derive(Debug, Serialize)]
struct Publish<'a> {
    ports: &'a [PortSpec],
    #[serde(skip_serializing_if = "Option::is_none")]
    auto: Option<String>,
}

impl<'a> Shown<'a> {
    /// The plan of a launch of these options, whose state directory is `state_dir`.
    pub fn new(plan: &'a Plan, args: &RunArgs, state_dir: &'a Path) -> Self {
        Shown {
            surroundings: plan.surroundings.kind,
            state_dir,
            data_dir: plan.surroundings.data.as_deref(),
            namespaces: &plan.namespaces,
            ids: &plan.ids,
            network: Network::of(&plan.net, args.sandbox.into()),
            sysctls: &plan.surroundings.sysctls,
            cgroup: &plan.cgroup,
            mounts: &plan.mounts.steps,
            publish: Publish {
                ports: &plan.forwards.ports,
                auto: plan.forwards.auto.as_ref().map(ToString::to_string),
            },
            command: args.cmd.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
            node: None,
            warnings: &plan.warnings,
        }
    }

    /// The same with what the command, a supervisor, will do.
    pub fn with(self, node: Option<&'a NodePlan>) -> Self {
        Shown { node, ..self }
    }
}

impl<'a> Network<'a> {
    fn of(plan: &'a NetPlan, sandbox: Mode) -> Self {
        match plan {
            NetPlan::Loopback => Network::Loopback,
            NetPlan::Host => Network::Host,
            NetPlan::Engine(plan) => Network::engine(plan, sandbox),
        }
    }

    fn engine(plan: &'a EnginePlan, sandbox: Mode) -> Self {
        let (ipv4, ipv6) = (plan.config.ipv4(), plan.config.ipv6());
        Network::Engine {
            device: TAP_NAME,
            mtu: plan.config.mtu(),
            ipv4: Addresses {
                child: ipv4.child.into(),
                prefix: ipv4.subnet.prefix(),
                gateway: ipv4.gateway.into(),
                dns: ipv4.dns.into(),
            },
            ipv6: plan.ipv6_address().map(|(child, prefix)| Addresses {
                child: child.into(),
                prefix,
                gateway: ipv6.gateway.into(),
                dns: ipv6.dns.into(),
            }),
            search: &plan.config.dns().search,
            egress: plan.egress,
            overlay: plan.config.overlay().map(|overlay| Overlay {
                port: overlay.port,
                peers: overlay.peers.iter().map(ToString::to_string).collect(),
            }),
            sandbox,
        }
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.warnings.iter().try_for_each(|text| writeln!(f, "warning: {text}"))?;
        writeln!(f, "surroundings: {}", self.surroundings)?;
        writeln!(f, "state directory: {}", self.state_dir.display())?;
        if let Some(path) = self.data_dir {
            writeln!(f, "data directory: {}", path.display())?;
        }
        writeln!(f, "new namespaces: {}", self.namespaces)?;
        writeln!(f, "user ids (inside outside count): {}", self.ids.users)?;
        writeln!(f, "group ids: {}", self.ids.groups)?;
        writeln!(f, "network: {}", self.network)?;
        if *self.cgroup != CgroupPlan::Untouched {
            writeln!(f, "in {}", self.cgroup)?;
        }
        self.sysctls.iter().try_for_each(|sysctl| writeln!(f, "set {sysctl}"))?;
        self.mounts.iter().try_for_each(|step| writeln!(f, "{step}"))?;
        self.publish.ports.iter().try_for_each(|port| writeln!(f, "publish {port}"))?;
        self.publish.auto.iter().try_for_each(|rules| writeln!(f, "publish {rules}"))?;
        writeln!(f, "execute {}", self.command.join(" "))?;
        self.node.map_or(Ok(()), |node| inside(f, node))
    }
}

fn inside(f: &mut fmt::Formatter<'_>, node: &NodePlan) -> fmt::Result {
    let directories = node.directories.iter();
    directories.map(|made| &made.path).try_for_each(|path| writeln!(f, "inside: make {}", path.display()))?;
    for file in &node.files {
        writeln!(f, "inside: write {}", file.path.display())?;
        file.text.lines().try_for_each(|line| writeln!(f, "    {line}"))?;
    }
    for unit in &node.units {
        if unit.ready == Readiness::AtStop {
            let (name, before) = (&unit.name, unit.after.join(" and "));
            writeln!(
                f,
                "inside: at the stop run {name} before {before} is stopped\n    {}",
                unit.argv.join(" ")
            )?;
            continue;
        }
        write!(f, "inside: start {}", unit.name)?;
        if !unit.after.is_empty() {
            write!(f, " after {}", unit.after.join(" and "))?;
        }
        writeln!(f, ", and wait until {}\n    {}", unit.ready, unit.argv.join(" "))?;
    }
    writeln!(f, "inside: keep logs in {}", node.log_dir.display())
}

impl fmt::Display for Network<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Network::Loopback => f.write_str("loopback only"),
            Network::Host => f.write_str("the host's"),
            Network::Engine { device, mtu, ipv4, ipv6, search, egress, overlay, sandbox } => {
                write!(f, "{device}, MTU {mtu}, {ipv4}")?;
                if let Some(ipv6) = ipv6 {
                    write!(f, ", {ipv6}")?;
                }
                if !search.is_empty() {
                    write!(f, ", search {}", search.join(" "))?;
                }
                if let Some(Overlay { port, peers }) = overlay {
                    write!(f, ", overlay at UDP {port}")?;
                    if !peers.is_empty() {
                        write!(f, " with {}", peers.join(" "))?;
                    }
                }
                write!(f, ", egress {egress}, sandbox {sandbox}")
            }
        }
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Addresses { child, prefix, gateway, dns } = self;
        write!(f, "{child}/{prefix} gateway {gateway} DNS {dns}")
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;
    use crate::cli::Cli;
    use crate::plan::facts::HostFacts;

    fn facts() -> HostFacts {
        HostFacts {
            uid: 1000,
            gid: 100,
            user: Some("ann".into()),
            subuid: "ann:100000:65536\n".into(),
            subgid: "ann:100000:65536\n".into(),
            newuidmap: Some("/usr/bin/newuidmap".into()),
            newgidmap: Some("/usr/bin/newgidmap".into()),
            name_files_exist: true,
            kmsg_opens: true,
            home: "/home/ann".into(),
            data_home: "/home/ann/.local/share".into(),
            state_dir: "/run/user/1000/rootless-launch/n1".into(),
            ..HostFacts::default()
        }
    }

    fn shown<T>(options: &[&str], cmd: &[&str], see: impl FnOnce(&Shown<'_>) -> T) -> T {
        let words = ["rootless-launch"].iter().chain(options).chain(&["--"]).chain(cmd);
        let args = Cli::try_parse_from(words).unwrap().run;
        let facts = facts();
        let plan = Plan::new(&args, "", &[], &facts).unwrap();
        see(&Shown::new(&plan, &args, &facts.state_dir))
    }

    #[test]
    fn a_plain_launch_in_words() {
        let text =
            shown(&["--ipv6=off", "-p", "8080:80", "-p", "auto,udp"], &["sh", "-c", "x"], |s| s.to_string());
        assert_eq!(
            text,
            "\
surroundings: plain
state directory: /run/user/1000/rootless-launch/n1
new namespaces: user mount net
user ids (inside outside count): 0 1000 1, 1 100000 65536 by /usr/bin/newuidmap
group ids: 0 100 1, 1 100000 65536 by /usr/bin/newgidmap
network: tap0, MTU 1500, 10.0.42.100/24 gateway 10.0.42.2 DNS 10.0.42.3, egress auto, sandbox auto
make / rslave
mount a file of 21 bytes over /etc/resolv.conf
mount a file of 116 bytes over /etc/hosts
publish 8080:80/tcp
publish auto,udp
execute sh -c x
"
        );
    }

    #[test]
    fn a_node_as_json() {
        let value =
            shown(&["--hostname=n1"], &["/usr/bin/kubelet", "--v=2"], |s| serde_json::to_value(s).unwrap());
        assert_eq!(value["surroundings"], "node");
        assert_eq!(value["data_dir"], "/home/ann/.local/share/rootless-launch/n1");
        assert_eq!(
            value["namespaces"],
            json!({"new": ["user", "mount", "net", "pid", "ipc", "uts", "cgroup"], "hostname": "n1"})
        );
        assert_eq!(
            value["ids"]["users"]["helper"]["extents"][1],
            json!({"inside": 1, "outside": 100000, "count": 65536})
        );
        assert_eq!(value["cgroup"], "untouched");
        assert_eq!(value["sysctls"][0], json!({"name": "net/ipv4/ip_forward", "value": "1"}));
        let mounts = value["mounts"].as_array().unwrap();
        assert_eq!(mounts[0], json!({"step": "propagation", "propagation": "rslave"}));
        assert_eq!(mounts[1], json!({"step": "proc"}));
        assert_eq!(mounts.last().unwrap()["propagation"], "rshared");
        let run = mounts.iter().find(|step| step["directory"] == "/run").unwrap();
        assert_eq!(run["step"], "copy-up");
        assert!(run["leave_out"].as_array().unwrap().contains(&"xtables.lock".into()));
        assert_eq!(value["publish"]["ports"][0]["parentPort"], 10250);
        assert_eq!(value["command"], json!(["/usr/bin/kubelet", "--v=2"]));
    }
}
