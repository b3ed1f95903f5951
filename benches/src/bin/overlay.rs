//! Pod to pod over Flannel's VXLAN between two nodes: ours and none (the devices on the hosts themselves), and the bar.
//!
//! The hosts are two hops of veth apart. A veth pair hands super-segments of 64 KiB over as they are, which no wire does; the
//! rows `ethernet` have its ends cut them, so that what the hosts exchange are packets of 1500 bytes.

use benches::{
    bars::{Bars, ratio},
    comparison::{Comparison, Options, print_head},
    measure::Sample,
};
use clap::Parser;
use std::{
    io::{Read, Write},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};
use tests::{
    overlay::{Devices, PODS, make_devices, nodes},
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
    Ours,
}

impl benches::comparison::Column for Column {
    fn name(self) -> String {
        if self == Self::Hosts { "veth".to_owned() } else { "rootless-launch".to_owned() }
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
    print_head(&options, &[]);
    let rows = if options.smoke { &ROWS[..1] } else { &ROWS };
    let mut comparison = Comparison::new(&options, rows, &[Column::Hosts, Column::Ours]);
    comparison.run(&options, &mut Lab { seconds: options.seconds });
    comparison.print();
    let mut bars = Bars::default();
    for &row in comparison.rows() {
        let measured = ratio(comparison.value(row, Column::Ours), comparison.value(row, Column::Hosts));
        bars.at_least(&format!("ours / {}", benches::comparison::Row::name(row)), measured, 0.5);
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
        let world = World::new();
        if row.wire == Wire::Ethernet {
            for (netns, devices) in
                [(&world.host, &["up0"][..]), (&world.router, &["down0", "out0"]), (&world.far, &["in0"])]
            {
                for device in devices {
                    let features = ["tso", "off", "gso", "off", "tx-udp-segmentation", "off"];
                    let _ = netns.run(&[&["ethtool", "-K", device], &features[..]].concat()).success();
                }
            }
        }
        let value = match column {
            Column::Hosts => {
                let pods = [world.beside(), world.beside()];
                let hosts = [(&world.host, "up0"), (&world.far, "in0")];
                for (this, (host, uplink)) in hosts.into_iter().enumerate() {
                    make_devices(host, &pods[this], Devices::default(), this, uplink);
                    set_checksums(host, row);
                }
                self.throughput(&pods[0], &pods[1])
            }
            Column::Ours => {
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

fn set_checksums(netns: &Netns, row: Row) {
    if row.checksums == Checksums::Computed {
        let argv = ["ethtool", "-K", "flannel.1", "tx-checksum-ip-generic", "off"];
        let _ = netns.run(&argv).success();
    }
}
