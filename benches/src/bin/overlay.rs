//! Pod to pod over Flannel's VXLAN between two nodes: ours, none (the devices on the hosts themselves), and RootlessKit with
//! slirp4netns, which publishes the port by its builtin driver; and the bars.
//!
//! The hosts are two hops of veth apart. A veth pair hands super-segments of 64 KiB over as they are, which no wire does; the
//! rows `ethernet` have its ends cut them, so that what the hosts exchange are packets of 1500 bytes.

use benches::{
    bars::{Bars, ratio},
    comparison::{Column as _, Comparison, Options, Row as _, print_head},
    measure::Sample,
};
use clap::Parser;
use std::{
    fs,
    io::{Read, Write},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};
use tests::{
    agent::has_subordinate_ids,
    locate,
    overlay::{Devices, PODS, make_devices, nodes},
    process::{DEADLINE, Process},
    session::{RUNTIME_DIR, Session},
    world::{Netns, World},
};

/// Compare VXLAN between nodes through rootless-launch with VXLAN between hosts.
#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wire {
    /// Super-segments pass whole.
    Veth,
    /// Packets of 1500 bytes.
    Ethernet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    wire: Wire,
    checksums: Checksums,
}

/// `tx-checksum-ip-generic` of the VXLAN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Checksums {
    /// As Linux and Flannel have it.
    Offloaded,
    /// As other rootless nodes set it.
    Computed,
}

const ROWS: [Row; 4] = [
    Row { wire: Wire::Veth, checksums: Checksums::Offloaded },
    Row { wire: Wire::Veth, checksums: Checksums::Computed },
    Row { wire: Wire::Ethernet, checksums: Checksums::Offloaded },
    Row { wire: Wire::Ethernet, checksums: Checksums::Computed },
];

impl benches::comparison::Row for Row {
    fn name(self) -> String {
        let wire = if self.wire == Wire::Veth { "veth" } else { "ethernet" };
        let checksums = if self.checksums == Checksums::Offloaded { "" } else { ", flannel.1 tx off" };
        format!("tcp pod to pod, {wire}{checksums}, Gb/s")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Column {
    Hosts,
    Kit,
    Ours,
}

impl Column {
    const ALL: [Self; 3] = [Self::Hosts, Self::Kit, Self::Ours];

    fn is_present(self) -> bool {
        let all = |programs: &[&str]| programs.iter().all(|name| locate::find_program(name).is_some());
        self != Self::Kit || (has_subordinate_ids() && all(&["rootlesskit", "slirp4netns"]))
    }
}

impl benches::comparison::Column for Column {
    fn name(self) -> String {
        match self {
            Self::Hosts => "veth",
            Self::Kit => "rootlesskit, slirp4netns and builtin UDP",
            Self::Ours => "rootless-launch",
        }
        .to_owned()
    }

    fn is_ours(self) -> bool {
        self == Self::Ours
    }
}

fn main() -> ExitCode {
    if let Some(code) = benches::be_the_probe() {
        return code;
    }
    let options = Cli::parse().options.settled();
    let (columns, absent): (Vec<_>, Vec<_>) = Column::ALL.into_iter().partition(|column| column.is_present());
    print_head(&options, &absent.iter().map(|column| column.name()).collect::<Vec<_>>());
    let rows = if options.smoke { &ROWS[..1] } else { &ROWS };
    let mut comparison = Comparison::new(&options, rows, &columns);
    comparison.run(&options, &mut Lab { seconds: options.seconds });
    comparison.print();
    let mut bars = Bars::default();
    for &row in comparison.rows() {
        let name = row.name();
        let over = |other| ratio(comparison.value(row, Column::Ours), comparison.value(row, other));
        bars.at_least(&format!("ours / none, {name}"), over(Column::Hosts), 0.5);
        bars.at_least(&format!("ours / rootlesskit, {name}"), over(Column::Kit), 3.0);
    }
    let verdict = bars.print();
    comparison.exit_code(&options, verdict)
}

struct Lab {
    seconds: f64,
}

impl benches::comparison::Lab for Lab {
    type Row = Row;
    type Column = Column;

    fn measures(&self, _: Row, _: Column) -> bool {
        true
    }

    fn measure(&mut self, row: Row, column: Column) -> Vec<(Row, Sample)> {
        let value = match column {
            Column::Hosts => {
                let world = World::new();
                set_wire(&world, row.wire);
                let pods = [world.beside(), world.beside()];
                let hosts = [(&world.host, "up0"), (&world.far, "in0")];
                for (this, (host, uplink)) in hosts.into_iter().enumerate() {
                    make_devices(host, &pods[this], Devices::default(), this, uplink);
                    set_checksums(host, row);
                }
                self.throughput(&pods[0], &pods[1])
            }
            Column::Kit => {
                let session = Session::new().expect("there are subordinate ids");
                set_wire(session.world(), row.wire);
                let [a, b] = [0, 1].map(|this| KitNode::start(&session, this));
                for node in [&a, &b] {
                    set_checksums(&node.child, row);
                }
                a.wait_for(PODS[1]);
                self.throughput(&a.pod, &b.pod)
            }
            Column::Ours => {
                let world = World::new();
                set_wire(&world, row.wire);
                let [a, b] = nodes(&world, Devices::default(), &[]);
                for node in [&a, &b] {
                    set_checksums(&node.child, row);
                }
                self.throughput(&a.pod, &b.pod)
            }
        };
        vec![(row, Sample::plain(value))]
    }
}

impl Lab {
    /// Gb/s of one stream, counted where it arrives.
    fn throughput(&self, from: &Netns, to: &Netns) -> f64 {
        let listener = to.listen(&format!("{}:0", PODS[1]));
        let address = listener.local_addr().expect("a listener").to_string();
        let time = Duration::from_secs_f64(self.seconds);
        let receiver = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut buffer = vec![0; 128 << 10];
            let (begin, mut bytes) = (Instant::now(), 0);
            while begin.elapsed() < time {
                bytes += stream.read(&mut buffer).expect("bytes");
            }
            bytes as f64 * 8.0 / 1e9 / begin.elapsed().as_secs_f64()
        });
        let mut stream = from.connect(&address).expect("the other pod is reached");
        let buffer = vec![7; 128 << 10];
        while stream.write_all(&buffer).is_ok() {}
        receiver.join().expect("no panic")
    }
}

/// A node of RootlessKit, with Flannel's port published as rootless k3s does.
struct KitNode {
    _process: Process,
    child: Netns,
    pod: Netns,
}

impl KitNode {
    fn start(session: &Session, this: usize) -> Self {
        let world = session.world();
        let host = if this == 0 { &world.host } else { &world.far };
        let argv = [
            "rootlesskit",
            &format!("--state-dir={RUNTIME_DIR}/node{this}"),
            "--net=slirp4netns",
            // The first in the user's PATH is ours.
            &format!("--slirp4netns-binary={}", locate::program("slirp4netns").display()),
            "--mtu=1500",
            "--disable-host-loopback",
            "--port-driver=builtin",
            "--publish=0.0.0.0:8472:8472/udp",
            "--copy-up=/etc",
            "--copy-up=/run",
            "sh",
            "-c",
            "readlink /proc/self/ns/net; exec cat",
        ];
        let mut process = Process::spawn(session.command_on(host, &argv));
        let netns = process.wait_for_line("net:[");
        let child = world.inside(process_in(&netns).expect("cat waits"));
        let pod = world.beside();
        make_devices(&child, &pod, Devices::default(), this, "tap0");
        Self { _process: process, child, pod }
    }

    /// Waits until the pod reaches the other: RootlessKit publishes while the command runs already.
    fn wait_for(&self, other: &str) {
        let deadline = Instant::now() + DEADLINE;
        while !self.pod.run(&["ping", "-n", "-c1", "-W1", other]).status.success() {
            assert!(Instant::now() < deadline, "{other} does not answer");
        }
    }
}

/// A process of the network namespace that its link in /proc names so.
fn process_in(netns: &str) -> Option<u32> {
    let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.into_iter().find(|pid: &u32| {
        fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|link| link.as_os_str() == netns.trim())
    })
}

fn set_wire(world: &World, wire: Wire) {
    if wire == Wire::Veth {
        return;
    }
    for (netns, devices) in
        [(&world.host, &["up0"][..]), (&world.router, &["down0", "out0"]), (&world.far, &["in0"])]
    {
        for device in devices {
            let features = ["tso", "off", "gso", "off", "tx-udp-segmentation", "off"];
            let _ = netns.run(&[&["ethtool", "-K", device], &features[..]].concat()).success();
        }
    }
}

fn set_checksums(netns: &Netns, row: Row) {
    if row.checksums == Checksums::Computed {
        let argv = ["ethtool", "-K", "flannel.1", "tx-checksum-ip-generic", "off"];
        let _ = netns.run(&argv).success();
    }
}
