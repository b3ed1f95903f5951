//! Two nodes with Flannel's devices: in each an instance with a VXLAN device, a bridge and a pod behind it.
//!
//! ```text
//!  pod0 -- cni0 - flannel.1 - tap0 -- engine -- host ------ router ------ far -- engine -- tap0 - flannel.1 - cni0 -- pod1
//!  10.244.0.5                                   192.0.2.2                 192.88.99.2                          10.244.1.5
//! ```
//! Every link between the hosts has an MTU of 1500.

use crate::{
    instance::Instance,
    process::{DEADLINE, Finished, run},
    stream::{Pattern, StreamHash},
    world::{HOST4, Netns, World},
};
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
};

/// Addresses of the hosts, which are those of the nodes' peers.
pub const HOSTS: [&str; 2] = [HOST4, "192.88.99.2"];
/// Addresses of the pods.
pub const PODS: [&str; 2] = ["10.244.0.5", "10.244.1.5"];

/// A node with one pod.
#[derive(Debug)]
pub struct Node {
    /// The launcher and its processes.
    pub instance: Instance,
    /// The instance's namespace.
    pub child: Netns,
    /// The pod's.
    pub pod: Netns,
}

/// Who decides what a node's devices are.
#[derive(Debug, Clone, Copy)]
pub struct Devices {
    /// MTU of the VXLAN device and of the pods.
    pub mtu: u16,
    /// More words for the VXLAN device.
    pub vxlan: &'static str,
}

impl Default for Devices {
    /// As Flannel makes them on an Ethernet.
    fn default() -> Self {
        Devices { mtu: 1450, vxlan: "" }
    }
}

/// Two nodes whose engines carry the overlay, each with the other for a peer unless `args` have peers.
///
/// # Panics
/// When they cannot be had.
#[track_caller]
#[must_use]
pub fn nodes(world: &World, devices: Devices, args: &[&str]) -> [Node; 2] {
    [0, 1].map(|this| node(world, devices, this, args))
}

/// One of the nodes, 0 or 1.
///
/// # Panics
/// When it cannot be had.
#[track_caller]
#[must_use]
pub fn node(world: &World, devices: Devices, this: usize, args: &[&str]) -> Node {
    let node = bare_node(world, this, args);
    make_devices(&node.child, &node.pod, devices, this, "tap0");
    node
}

/// One of the nodes without any device, for somebody else to make them.
///
/// # Panics
/// When it cannot be had.
#[track_caller]
#[must_use]
pub fn bare_node(world: &World, this: usize, args: &[&str]) -> Node {
    let peer = format!("--overlay-peer={}", HOSTS[1 - this]);
    let mut all = vec!["--overlay-port=8472"];
    all.extend(args);
    if !args.iter().any(|arg| arg.starts_with("--overlay-peer")) {
        all.push(&peer);
    }
    let host = if this == 0 { &world.host } else { &world.far };
    let instance = Instance::on(host, &world.dir().join(format!("node{this}")), &all);
    let child = instance.child(world);
    let pod = world.beside();
    Node { instance, child, pod }
}

/// Makes the devices of node `this` in `child`, whose way out is `uplink`, and a pod of `pod`.
pub fn make_devices(child: &Netns, pod: &Netns, devices: Devices, this: usize, uplink: &str) {
    let Devices { mtu, vxlan } = devices;
    let other = 1 - this;
    child.ip(&format!(
        "link add flannel.1 type vxlan id 1 dstport 8472 dev {uplink} nolearning {vxlan}\n\
         link set flannel.1 address 02:00:00:00:00:0{this} mtu {mtu} up\n\
         addr add 10.244.{this}.0/32 dev flannel.1\n\
         route add 10.244.{other}.0/24 via 10.244.{other}.0 dev flannel.1 onlink\n\
         neigh add 10.244.{other}.0 lladdr 02:00:00:00:00:0{other} dev flannel.1 nud permanent\n",
    ));
    let mac = format!("02:00:00:00:00:0{other}");
    let forward = ["bridge", "fdb", "add", &mac, "dst", HOSTS[other], "dev", "flannel.1"];
    let _ = child.run(&forward).success();
    make_pod(child, pod, mtu, &format!("10.244.{this}"));
}

/// Makes a bridge in `child` with the first address of the /24 `subnet`, and a pod with the fifth behind it.
pub fn make_pod(child: &Netns, pod: &Netns, mtu: u16, subnet: &str) {
    child.ip(&format!(
        "link add cni0 mtu {mtu} type bridge\naddr add {subnet}.1/24 dev cni0\nlink set cni0 up\n\
         link add vp mtu {mtu} type veth peer name eth0 netns {}\nlink set vp mtu {mtu} master cni0 up\n",
        pod.pid()
    ));
    child.sysctl("net/ipv4/ip_forward", "1");
    pod.ip(&format!(
        "link set eth0 mtu {mtu} up\naddr add {subnet}.5/24 dev eth0\nroute add default via {subnet}.1\n"
    ));
}

impl Node {
    /// Pings from the pod; `args` come before the address.
    #[track_caller]
    pub fn ping(&self, to: &str, args: &[&str]) -> Finished {
        let argv = [&["ping", "-n", "-W5", "-i0.2"], args, &[to]].concat();
        run(self.pod.program(&argv))
    }
}

/// Sends `total` bytes from one pod to the other and compares their sums.
///
/// # Panics
/// When they are not the same.
#[track_caller]
pub fn transfer(from: &Netns, to: &Netns, to_address: &str, total: usize) {
    let listener: TcpListener = to.listen(&format!("{to_address}:0"));
    let address = listener.local_addr().expect("a connection").to_string();
    let received = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.set_read_timeout(Some(DEADLINE)).expect("a connection");
        let (mut hash, mut buffer, mut len) = (StreamHash::default(), vec![0; 1 << 16], 0);
        loop {
            match stream.read(&mut buffer).expect("a connection") {
                0 => return (len, hash.sum()),
                n => {
                    hash.update(&buffer[..n]);
                    len += n;
                }
            }
        }
    });
    let mut stream: TcpStream = from.connect(&address).expect("a connection");
    stream.set_write_timeout(Some(DEADLINE)).expect("a connection");
    let (mut pattern, mut hash, mut buffer) = (Pattern::new(7), StreamHash::default(), vec![0; 1 << 16]);
    for _ in 0..total / buffer.len() {
        pattern.fill(&mut buffer);
        hash.update(&buffer);
        stream.write_all(&buffer).expect("a connection");
    }
    drop(stream);
    assert_eq!(received.join().expect("a connection"), (total, hash.sum()));
}
