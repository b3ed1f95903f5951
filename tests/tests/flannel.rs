//! The real flanneld on two nodes whose VXLAN the engines carry, with etcd between them.

use std::{fs, path::Path};

use tests::{
    components::Components,
    instance::eventually,
    locate,
    overlay::{HOSTS, Node, bare_node, make_pod, transfer},
    process::{Process, run},
    world::{Netns, ROUTER4, World},
};

const MIB: usize = 1 << 20;
const TAP: &str = "10.0.42.100";

/// Programs of a test, killed with it.
struct Flannel {
    components: Components,
    _etcd: Process,
    daemons: Vec<Process>,
}

impl Flannel {
    /// etcd on the router, with Flannel's network.
    fn start(world: &World, components: Components) -> Self {
        let program = |name: &str| components.programs().join(name).display().to_string();
        let url = |port| format!("http://{ROUTER4}:{port}");
        let data = world.dir().join("etcd").display().to_string();
        let mut etcd = Process::spawn(world.router.command(&[
            program("etcd"),
            format!("--data-dir={data}"),
            format!("--listen-client-urls={}", url(2379)),
            format!("--advertise-client-urls={}", url(2379)),
            format!("--listen-peer-urls={}", url(2380)),
            format!("--initial-advertise-peer-urls={}", url(2380)),
            format!("--initial-cluster=default={}", url(2380)),
        ]));
        etcd.close_stdin();
        let network = r#"{"Network": "10.244.0.0/16", "EnableNFTables": true,
            "Backend": {"Type": "vxlan", "VNI": 1, "Port": 8472, "MTU": 1500}}"#;
        let etcdctl = [
            program("etcdctl"),
            format!("--endpoints={}", url(2379)),
            "put".into(),
            "/coreos.com/network/config".into(),
            network.into(),
        ];
        eventually("etcd takes Flannel's network", || run(world.router.command(&etcdctl)).status.success());
        Flannel { components, _etcd: etcd, daemons: Vec::new() }
    }

    /// flanneld in a node; its pods' subnet, as far as the last dot.
    fn join(&mut self, world: &World, node: &Node, this: usize) -> String {
        let file = world.dir().join(format!("subnet{this}.env"));
        let mut flanneld = Process::spawn(node.child.command(&[
            self.components.programs().join("flanneld").display().to_string(),
            "--iface=tap0".into(),
            format!("--public-ip={}", HOSTS[this]),
            format!("--etcd-endpoints=http://{ROUTER4}:2379"),
            format!("--subnet-file={}", file.display()),
            "--iptables-forward-rules=false".into(),
        ]));
        flanneld.close_stdin();
        self.daemons.push(flanneld);
        eventually("flanneld has a subnet", || subnet(&file).is_some());
        subnet(&file).expect("just seen")
    }
}

/// `10.244.7` of `FLANNEL_SUBNET=10.244.7.1/24`, when the whole file is there.
fn subnet(file: &Path) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    assert!(!text.contains("FLANNEL_MTU=") || text.contains("FLANNEL_MTU=1450\n"), "{text}");
    let line = text.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET="))?;
    text.contains("FLANNEL_IPMASQ=").then(|| line.rsplit_once('.').map(|(subnet, _)| subnet.to_owned()))?
}

/// The task of a node that keeps the list of peers what flanneld says.
fn follow_peers(node: &Node) -> Process {
    let program = locate::rootless_launch().expect("rootless-launch is built").display().to_string();
    let mut command = node.child.command(&[program, "node-task".into(), "\"overlayPeers\"".into()]);
    command.env("ROOTLESSKIT_STATE_DIR", node.instance.directory());
    let mut task = Process::spawn(command);
    task.close_stdin();
    task
}

/// What ethtool says of the VXLAN device's checksums.
fn checksums(child: &Netns) -> String {
    let features = child.run(&["ethtool", "-k", "flannel.1"]).success().stdout;
    let line = features.lines().find(|line| line.contains("tx-checksum-ip-generic:"));
    line.and_then(|line| line.split_whitespace().nth(1)).expect("a feature").to_owned()
}

#[test]
fn pods_of_two_nodes_reach_each_other_by_the_real_flanneld() {
    let Ok(components) = Components::find() else { return };
    let world = World::new();
    // Nobody has listed the other node; flanneld will.
    let nodes = [0, 1].map(|this| bare_node(&world, this, &["--overlay-peer=203.0.113.99"]));
    let followers = nodes.each_ref().map(follow_peers);
    let mut flannel = Flannel::start(&world, components);
    let subnets = [0, 1].map(|this| flannel.join(&world, &nodes[this], this));
    for (node, subnet) in nodes.iter().zip(&subnets) {
        make_pod(&node.child, &node.pod, 1450, subnet);
    }
    let pods = subnets.map(|subnet| format!("{subnet}.5"));
    let [a, b] = &nodes;

    // flanneld (since 0.27.4) has made the public address the device's own. The child does not have it, and its kernel
    // finds no route from there.
    let device = a.child.run(&["ip", "-d", "link", "show", "flannel.1"]).success().stdout;
    assert!(device.contains(&format!("local {} ", HOSTS[0])), "{device}");
    assert!(!a.ping(&pods[1], &["-c1", "-W1"]).status.success(), "sent from an address of somebody else's");
    for node in &nodes {
        node.child.ip(&format!("link set flannel.1 type vxlan id 1 local {TAP}\n"));
    }
    eventually("flanneld knows the other node", || a.ping(&pods[1], &["-c1", "-W1"]).status.success());
    let _ = b.ping(&pods[0], &["-c3"]).success();
    let listed = a.instance.client(&["overlay", "list"]);
    assert!(listed.contains(&format!("may send: 203.0.113.99, {}\n", HOSTS[1])), "{listed}");

    // Nobody has to complete checksums: they are offloaded, and the engine is the one to whom.
    assert_eq!(checksums(&a.child), "on");
    transfer(&a.pod, &b.pod, &pods[1], 100 * MIB);
    for child in [&a.child, &b.child] {
        let _ = child.run(&["ethtool", "-K", "flannel.1", "tx-checksum-ip-generic", "off"]).success();
    }
    transfer(&b.pod, &a.pod, &pods[0], 10 * MIB);

    // What comes by the TAP comes from where the answer would go: even strict filtering lets it pass.
    for child in [&a.child, &b.child] {
        for device in ["all", "default", "tap0", "flannel.1"] {
            child.sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "1");
        }
    }
    let _ = a.ping(&pods[1], &["-c3"]).success();
    let _ = b.ping(&pods[0], &["-c3"]).success();

    // A node that leaves may send no more.
    let table = a.child.run(&["bridge", "fdb", "show", "dev", "flannel.1"]).success().stdout;
    let entry = table.lines().find(|line| line.contains(HOSTS[1])).expect("flanneld's entry");
    let mac = entry.split_whitespace().next().expect("an address");
    drop(flannel);
    let _ = a.child.run(&["bridge", "fdb", "del", mac, "dst", HOSTS[1], "dev", "flannel.1"]).success();
    a.instance.until(&["overlay", "list"], |listed| listed.contains("may send: 203.0.113.99\n"));
    drop(followers);
}
