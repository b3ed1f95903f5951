//! Observes a child: one line per frame on stderr, all frames in a pcap file.

use std::fs::File;
use std::process::ExitCode;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use examples::{AnyError, Child, become_namespace_root, command_line};
use netstack::capture::{FrameObserver, PcapWriter};
use netstack::frame::Offload;
use netstack::time::Instant;
use netstack::{Config, Driver, Tap};

fn main() -> Result<ExitCode, AnyError> {
    become_namespace_root()?;
    let mut command = command_line()?;
    let file = File::create(command.remove(0))?;
    if command.is_empty() {
        return Err("give a file and a command".into());
    }
    let config = Config::builder().build()?;
    let (tap, child) = Child::start(&config, Tap::open_in_current_netns, command)?;
    let mut driver = Driver::new(tap, config)?;
    let pcap = PcapWriter::new(file, driver.clock().unix_micros_at_zero());
    driver.set_observer(Box::new(Tcpdump { pcap }));
    driver.run_until(&child)?;
    driver.finish()?;
    child.exit_code()
}

struct Tcpdump {
    pcap: PcapWriter<File>,
}

impl FrameObserver for Tcpdump {
    fn from_child(&mut self, now: Instant, frame: &[u8], offload: Offload) {
        eprintln!("{now} > {}", describe(frame));
        self.pcap.from_child(now, frame, offload);
    }

    fn to_child(&mut self, now: Instant, frame: &[u8], offload: Offload) {
        eprintln!("{now} < {}", describe(frame));
        self.pcap.to_child(now, frame, offload);
    }
}

fn describe(frame: &[u8]) -> String {
    let Ok(packet) = SlicedPacket::from_ethernet(frame) else {
        return format!("malformed, {} bytes", frame.len());
    };
    let (from, to) = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            (ip.header().source_addr().to_string(), ip.header().destination_addr().to_string())
        }
        Some(NetSlice::Ipv6(ip)) => {
            (ip.header().source_addr().to_string(), ip.header().destination_addr().to_string())
        }
        Some(NetSlice::Arp(_)) => return "ARP".to_owned(),
        None => return format!("{:?}", packet.payload_ether_type()),
    };
    let transport = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let flags = [(tcp.syn(), "SYN "), (tcp.ack(), "ACK "), (tcp.fin(), "FIN "), (tcp.rst(), "RST ")];
            let flags: String = flags.into_iter().filter(|flag| flag.0).map(|flag| flag.1).collect();
            format!("TCP {} > {} {flags}", tcp.source_port(), tcp.destination_port())
        }
        Some(TransportSlice::Udp(udp)) => format!("UDP {} > {} ", udp.source_port(), udp.destination_port()),
        Some(TransportSlice::Icmpv4(icmp)) => format!("ICMP type {} ", icmp.type_u8()),
        Some(TransportSlice::Icmpv6(icmp)) => format!("ICMPv6 type {} ", icmp.type_u8()),
        Some(TransportSlice::Igmp(_)) => "IGMP ".to_owned(),
        None => String::new(),
    };
    format!("{from} > {to} {transport}({} bytes)", frame.len())
}
