//! Verdicts from facts.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::super::facts::{
    DataDirectory, FileSystem, Inside, LaunchFacts, Mapped, Modules, NodeFacts, Port, PortState,
    RuntimeDirectory,
};
use super::super::finding::{Purpose, State, Verdict};
use super::super::report;
use super::*;
use crate::apply::programs::{Answer, Installed};
use crate::components::programs::{Program, Version};
use crate::error::{Failure, Step};
use crate::hint::Machine;
use crate::plan::cgroup::{CgroupMode, Hierarchy};
use crate::plan::facts::HostFacts;

/// A Debian 13 on which a node runs.
fn good() -> Facts {
    let fine = |names: &[&str]| names.iter().map(|&name| (name.to_owned(), Ok(()))).collect();
    let versions = [
        (Program::Containerd, Version::new(1, 7, 24)),
        (Program::ContainerdShim, Version::new(1, 7, 24)),
        (Program::Crun, Version::new(1, 21, 0)),
        (Program::Kubelet, Version::new(1, 36, 4)),
        (Program::CniBridge, Version::new(1, 1, 1)),
        (Program::CniHostLocal, Version::new(1, 1, 1)),
        (Program::CniLoopback, Version::new(1, 1, 1)),
        (Program::CniPortmap, Version::new(1, 1, 1)),
        (Program::CniFlannel, Version::new(1, 9, 1)),
        (Program::Iptables, Version::new(1, 8, 11)),
        (Program::Crictl, Version::new(1, 36, 0)),
        (Program::Flanneld, Version::new(0, 28, 9)),
        (Program::Conntrack, Version::new(1, 4, 8)),
        (Program::Etcd, Version::new(3, 5, 16)),
    ];
    let programs = versions.map(|(program, version)| {
        let path = PathBuf::from("/usr/bin").join(program.file_name());
        (program, Installed { path, answer: Answer::Version(version) })
    });
    let controllers = ["cpu", "cpuset", "io", "memory", "pids"].map(str::to_owned).to_vec();
    Facts {
        host: HostFacts {
            uid: 1000,
            gid: 1000,
            user: Some("ann".into()),
            subuid: "ann:100000:65536\n".into(),
            subgid: "ann:100000:65536\n".into(),
            newuidmap: Some("/usr/bin/newuidmap".into()),
            newgidmap: Some("/usr/bin/newgidmap".into()),
            resolv_conf: "nameserver 192.0.2.1\n".into(),
            ..HostFacts::default()
        },
        machine: Machine { program: "/opt/rl".into(), ..Machine::default() },
        launch: LaunchFacts {
            namespaces: Ok(()),
            tap: Ok(()),
            relay: Ok(()),
            mounts: Ok(()),
            mapped: Some(Ok(Mapped { users: 65537, groups: 65537 })),
            sandbox: Ok((0, "all".into())),
            ping: Ok(()),
            overlaps: Vec::new(),
            resolv_conf: true,
            no_new_privileges: false,
            linked: None,
        },
        node: Some(NodeFacts {
            inside: Ok(Inside {
                file_systems: fine(&["proc", "sysfs", "cgroup2"]),
                overlay: Ok(()),
                devices: fine(&["bridge", "veth", "vxlan"]),
                expressions: fine(&["ct", "masquerade"]),
                iptables: vec![("comment".into(), Ok(())), ("statistic".into(), Ok(()))],
            }),
            systemd: true,
            runtime_directory: RuntimeDirectory::Good,
            lingers: Some(true),
            bus: true,
            cgroups: Hierarchy::Unified,
            cgroup: CgroupMode::Delegated,
            delegation: Ok(controllers),
            fuse: Ok(()),
            modules: Modules::default(),
            bridge_netfilter: true,
            sysctls: BTreeMap::from([
                ("fs.inotify.max_user_instances", 512),
                ("fs.inotify.max_user_watches", 524_288),
                ("net.ipv4.ip_unprivileged_port_start", 1024),
                ("user.max_user_namespaces", 28633),
            ]),
            open_files: 524_288,
            processes: u64::MAX,
            ports: vec![
                Port { name: KUBELET_PORT, state: PortState::Free },
                Port { name: VXLAN_PORT, state: PortState::Free },
            ],
            programs: BTreeMap::from(programs),
            data: DataDirectory { path: "/home/ann/d".into(), file_system: Ok(FileSystem::Local) },
            swap: false,
            selinux: false,
        }),
    }
}

fn refusal(step: Step, errno: i32) -> Failure {
    Failure { step, value: "it".into(), errno }
}

/// The only finding that is not good after `change`.
#[track_caller]
fn bad(change: impl FnOnce(&mut Facts, fn(&mut Facts) -> &mut NodeFacts)) -> Finding {
    let mut facts = good();
    change(&mut facts, |facts| facts.node.as_mut().unwrap());
    let mut bad: Vec<_> =
        findings(&facts).into_iter().filter(|finding| finding.state != State::Good).collect();
    assert_eq!(bad.len(), 1, "{bad:#?}");
    bad.remove(0)
}

/// What `change` makes of the node's facts, as verdicts for a launch, a node and a cluster, its name and its fix.
#[track_caller]
fn told(change: impl FnOnce(&mut NodeFacts)) -> (String, &'static str, String) {
    let finding = bad(|facts, node| change(node(facts)));
    let verdicts = Purpose::ALL.map(|purpose| match finding.verdict(Some(purpose)) {
        Verdict::Pass => 'p',
        Verdict::Warn => 'w',
        Verdict::Fail => 'F',
    });
    (verdicts.iter().collect(), finding.name, finding.fix())
}

#[track_caller]
fn expect(told: (String, &'static str, String), verdicts: &str, name: &str, fix: &str) {
    assert_eq!((told.0.as_str(), told.1), (verdicts, name), "{told:?}");
    assert!(told.2.contains(fix) && told.2.is_empty() == fix.is_empty(), "{told:?}");
}

#[test]
fn a_good_machine_serves_everything() {
    let findings = findings(&good());
    let not_good: Vec<_> = findings.iter().filter(|finding| finding.state != State::Good).collect();
    assert!(not_good.is_empty(), "{not_good:#?}");
    assert!(report::mending(&findings, None).is_empty());
}

#[test]
fn for_a_launch_nothing_of_a_node_is_told() {
    let facts = Facts { node: None, ..good() };
    assert!(findings(&facts).iter().all(|finding| finding.group == Purpose::Launch));
}

#[test]
fn apparmor_is_told_by_both_errnos_at_clone_and_at_mount_with_a_profile_of_our_path() {
    for errno in [libc::EPERM, libc::EACCES] {
        for step in [Step::CloneNamespaces, Step::MapIds, Step::Mount] {
            let mut facts = Facts { node: None, ..good() };
            facts.machine.apparmor_restricts = Some(1);
            let failure = Err(refusal(step, errno));
            match step {
                Step::Mount => facts.launch.mounts = failure,
                _ => facts.launch.namespaces = failure,
            }
            let findings = findings(&facts);
            let lacks: Vec<_> = report::lacks(&findings, Purpose::Launch).collect();
            let [finding] = lacks[..] else { panic!("{lacks:#?}") };
            assert!(finding.finding.contains("AppArmor"), "{finding:?}");
            assert!(finding.fix().contains("\"/opt/rl\" flags=(unconfined)"), "{finding:?}");
            assert!(finding.fix().contains("/etc/apparmor.d/rootless-launch"), "{finding:?}");
        }
    }
}

#[test]
fn what_of_a_node_cannot_be_made_stops_a_node() {
    let refused = || Err(refusal(Step::Network, libc::EOPNOTSUPP));
    let inside = |node: &mut NodeFacts, change: fn(&mut Inside)| change(node.inside.as_mut().unwrap());
    expect(
        told(|node| node.inside = Err(refusal(Step::CloneNamespaces, libc::EPERM))),
        "wFF",
        "node namespaces",
        "",
    );
    expect(
        told(|node| inside(node, |inside| inside.file_systems[0].1 = Err(refusal(Step::Mount, libc::EPERM)))),
        "wFF",
        "proc",
        "",
    );
    expect(
        told(|node| inside(node, |inside| inside.overlay = Err(refusal(Step::Mount, libc::ENODEV)))),
        "www",
        "overlay",
        "",
    );
    expect(
        told(|node| {
            node.modules.available = "kernel/net/bridge/bridge.ko.xz:\n".into();
            node.inside.as_mut().unwrap().devices[0].1 = refused();
        }),
        "wFF",
        "bridge",
        "modprobe bridge",
    );
    expect(
        told(|node| node.inside.as_mut().unwrap().devices[2].1 = refused()),
        "wwF",
        "vxlan",
        "modprobe vxlan",
    );
    expect(told(|node| node.inside.as_mut().unwrap().expressions[1].1 = refused()), "wwF", "nf_tables", "");
    let no_match = || Err("iptables: No chain/target/match by that name.".to_owned());
    expect(
        told(|node| node.inside.as_mut().unwrap().iptables[0].1 = no_match()),
        "wFF",
        "iptables rules",
        "",
    );
    expect(
        told(|node| node.inside.as_mut().unwrap().iptables[1].1 = no_match()),
        "wwF",
        "iptables rules",
        "",
    );
}

#[test]
fn an_overlay_is_replaced_by_fuse_where_that_works() {
    let finding = bad(|facts, node| {
        let node = node(facts);
        node.inside.as_mut().unwrap().overlay = Err(refusal(Step::Mount, libc::EPERM));
        for program in [Program::FuseOverlayfs, Program::MountFuse3, Program::FuseOverlayfsSnapshotter] {
            node.programs.insert(program, Installed { path: "/f".into(), answer: Answer::Unknown });
        }
    });
    assert!(finding.finding.contains("fuse-overlayfs is used"), "{finding:?}");
    assert_eq!(finding.state, State::Less);
    let of_crio = bad(|facts, node| {
        let node = node(facts);
        node.inside.as_mut().unwrap().overlay = Err(refusal(Step::Mount, libc::EPERM));
        let installed = Installed { path: "/f".into(), answer: Answer::Unknown };
        node.programs.insert(Program::FuseOverlayfs, installed);
    });
    assert!(
        of_crio.finding.contains("CRI-O uses fuse-overlayfs") && of_crio.finding.contains("no mount.fuse3"),
        "{of_crio:?}"
    );
}

#[test]
fn subordinate_ids_are_a_nodes_need() {
    let few = |users, groups| bad(|facts, _| facts.launch.mapped = Some(Ok(Mapped { users, groups })));
    for finding in [few(1, 65537), few(65537, 1), few(65536, 65537)] {
        assert_eq!(
            (finding.name, finding.group, finding.state),
            ("subordinate ids", Purpose::Launch, State::Stops(Purpose::Node))
        );
    }
    assert_eq!(few(1, 1).fix(), "chmod u+s /usr/bin/newuidmap /usr/bin/newgidmap");
    assert!(
        few(1001, 1001).fix().starts_with("usermod --add-subuids 165536-231071"),
        "others' ids are theirs"
    );
    let missing = bad(|facts, _| facts.host.newuidmap = None);
    assert_eq!(missing.fix(), "apt-get install uidmap");
    let none = bad(|facts, _| facts.host.subgid.clear());
    assert!(none.fix().ends_with(" ann"), "{}", none.fix());
    let linked = bad(|facts, _| {
        facts.launch.mapped = Some(Ok(Mapped { users: 1, groups: 1 }));
        facts.launch.linked = Some("/etc/subuid");
    });
    assert!(linked.fix().contains("readlink -f /etc/subuid"), "{linked:?}");
}

#[test]
fn without_new_privileges_no_command_helps() {
    let mut facts = good();
    facts.launch.no_new_privileges = true;
    facts.launch.mapped = Some(Ok(Mapped { users: 1, groups: 1 }));
    let findings = findings(&facts);
    let lacks: Vec<_> = report::lacks(&findings, Purpose::Node).map(|finding| finding.name).collect();
    assert_eq!(lacks, ["subordinate ids", "no_new_privs"]);
    assert_eq!(report::lacks(&findings, Purpose::Launch).count(), 0);
    assert!(report::mending(&findings, None).is_empty());
}

#[test]
fn cgroups_are_judged_by_what_is_delegated() {
    let delegated = |controllers: &[&str]| Ok(controllers.iter().map(|&name| name.to_owned()).collect());
    let delegate = "Delegate=cpu cpuset io memory pids";
    expect(told(|node| node.delegation = delegated(&["memory", "pids"])), "wFF", "cgroups", delegate);
    expect(told(|node| node.delegation = delegated(&["cpu", "memory", "pids"])), "www", "cgroups", delegate);
    expect(told(|node| node.delegation = Err("no".into())), "wFF", "cgroups", "loginctl enable-linger ann");
    let v1 = |node: &mut NodeFacts, hierarchy| {
        node.cgroups = hierarchy;
        node.delegation = Err("no".into());
        node.programs.insert(Program::Runc, Installed { path: "/runc".into(), answer: Answer::Unknown });
    };
    expect(told(|node| v1(node, Hierarchy::Hybrid)), "wFF", "cgroups", "systemd.unified_cgroup_hierarchy=1");
    let bare = |node: &mut NodeFacts| {
        v1(node, Hierarchy::Legacy);
        node.systemd = false;
    };
    expect(told(bare), "wFF", "cgroups", "");
    let unwanted = |node: &mut NodeFacts| {
        bare(node);
        node.cgroup = CgroupMode::Auto;
    };
    expect(told(unwanted), "www", "cgroups", "");
}

#[test]
fn a_session_is_told_what_it_lacks() {
    expect(told(|node| node.lingers = Some(false)), "www", "linger", "loginctl enable-linger ann");
    expect(told(|node| node.bus = false), "www", "user bus", "apt-get install dbus-user-session");
    let directory = |directory| told(|node| node.runtime_directory = directory);
    expect(directory(RuntimeDirectory::Unset("/run/user/1000".into())), "www", "XDG_RUNTIME_DIR", "");
    expect(directory(RuntimeDirectory::Missing), "www", "XDG_RUNTIME_DIR", "loginctl enable-linger ann");
    expect(directory(RuntimeDirectory::Bad("/x".into(), "why")), "wFF", "XDG_RUNTIME_DIR", "");
    let finding = bad(|facts, _| facts.host.uid = 0);
    assert_eq!((finding.name, finding.state), ("user", State::Less));
}

#[test]
fn limits_that_are_low_are_raised() {
    let set = |name, value| told(|node| node.sysctls.extend([(name, value)]));
    expect(set("fs.inotify.max_user_instances", 128), "www", "inotify", "fs.inotify.max_user_instances=512");
    expect(set("fs.inotify.max_user_instances", 8), "wFF", "inotify", "fs.inotify.max_user_instances=512");
    expect(set("fs.inotify.max_user_watches", 8192), "www", "inotify", "fs.inotify.max_user_watches=524288");
    expect(set("user.max_user_namespaces", 100), "www", "user namespaces", "user.max_user_namespaces=28633");
    expect(set("net.ipv4.conf.all.rp_filter", 1), "www", "rp_filter", "net.ipv4.conf.all.rp_filter=2");
    expect(told(|node| node.open_files = 20_000), "www", "open files", "nofile");
    expect(told(|node| node.processes = 100), "www", "processes", "user-1000.slice TasksMax=infinity");
}

#[test]
fn ports_data_and_modules_have_their_groups() {
    let taken = |index: usize| told(move |node| node.ports[index].state = PortState::Taken(None));
    expect(taken(0), "wFF", "10250/tcp", "");
    expect(taken(1), "wwF", "8472/udp", "");
    expect(told(|node| node.bridge_netfilter = false), "wwF", "br_netfilter", "modprobe br_netfilter");
    let on = |file_system| told(|node| node.data.file_system = file_system);
    expect(on(Ok(FileSystem::Network("NFS"))), "wFF", "data directory", "");
    expect(on(Ok(FileSystem::Memory)), "www", "data directory", "");
    expect(on(Err("it is not there".into())), "wFF", "data directory", "");
}

#[test]
fn programs_are_missing_old_broken_or_faulty() {
    let without = |program: Program| told(move |node| drop(node.programs.remove(&program)));
    expect(without(Program::Containerd), "wFF", "container runtime", "apt-get install containerd");
    expect(without(Program::Crun), "wFF", "OCI runtime", "apt-get install crun");
    expect(without(Program::Kubelet), "wFF", "kubelet", "dl.k8s.io/release/v1.36.4/bin/linux/");
    expect(without(Program::CniPortmap), "wFF", "CNI plugins", "apt-get install containernetworking-plugins");
    expect(without(Program::Iptables), "wFF", "iptables", "apt-get install iptables");
    expect(without(Program::Flanneld), "wwF", "flannel", "/flanneld-");
    expect(without(Program::Conntrack), "www", "conntrack", "apt-get install conntrack");
    let says = |program, answer| {
        told(move |node| drop(node.programs.insert(program, Installed { path: "/x".into(), answer })))
    };
    let version = |version| Answer::Version(version);
    expect(says(Program::Containerd, version(Version::new(1, 6, 20))), "wFF", "container runtime", "");
    expect(says(Program::Kubelet, Answer::Failed("no libc".into())), "wFF", "kubelet", "");
    expect(says(Program::Flanneld, version(Version::new(0, 28, 0))), "www", "flannel", "");
}

#[test]
fn another_runtime_will_do() {
    let mut facts = good();
    let node = facts.node.as_mut().unwrap();
    for program in [Program::Containerd, Program::Crun] {
        node.programs.remove(&program);
    }
    for program in [Program::Crio, Program::Conmon, Program::Pinns, Program::Runc] {
        node.programs.insert(program, Installed { path: "/x".into(), answer: Answer::Unknown });
    }
    assert_eq!(report::lacks(&findings(&facts), Purpose::Cluster).count(), 0);
}
