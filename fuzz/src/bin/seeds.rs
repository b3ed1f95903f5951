//! Writes the seeds of `corpus/` anew: `cargo run -p fuzz --bin seeds`. Files with other names are left alone.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use forwarder::protocol::{Abilities, Egress, Reach, Reply, Request, Rules, SocketKind};
use forwarder::spec::{Family, Transport};
use netstack::testing::frames::{self, CHILD, CHILD6, DNS, DNS6, GATEWAY, GATEWAY6, Segment, WORLD, WORLD6};

fn main() -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (harness, name, bytes) in seeds() {
        let directory = corpus.join(harness);
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join(name), bytes)?;
    }
    Ok(())
}

fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut seeds = Vec::new();
    let at = |address: IpAddr, port| SocketAddr::new(address, port);
    for (family, child, world, gateway, dns) in [
        ("4", IpAddr::from(CHILD), IpAddr::from(WORLD), IpAddr::from(GATEWAY), IpAddr::from(DNS)),
        ("6", CHILD6.into(), WORLD6.into(), GATEWAY6.into(), DNS6.into()),
    ] {
        let udp = frames::udp(at(child, 4000), at(world, 9), b"hello");
        let syn = Segment::syn(at(child, 4000), at(world, 80), 1400).frame();
        let mut add = |name: &str, frame: Vec<u8>| seeds.push(("frame", format!("{name}{family}"), frame));
        add("udp", udp.clone());
        add("syn", syn.clone());
        add("stray_ack", Segment::new(at(child, 4000), at(world, 80), 0x10).frame());
        add("port_zero", Segment::syn(at(child, 4000), at(world, 0), 1400).frame());
        add("echo", frames::echo_request(child, world, 1, 1, b"ping"));
        add("echo_gateway", frames::echo_request(child, gateway, 1, 1, b"ping"));
        add("dns_query", frames::udp(at(child, 4000), at(dns, 53), &query()));
        add("ttl_1", frames::ip_with_ttl(child, world, 17, 1, &[0x0f, 0xa0, 0, 9, 0, 8, 0, 0]));
        for (index, piece) in frames::fragments(&udp, 7, 8).into_iter().enumerate() {
            add(&format!("fragment{index}_"), piece);
        }
        for (name, flags, start, offset, gso, frame) in [
            ("udp_partial", 1u8, &udp, 6u16, 0u8, &udp),
            ("tcp_partial", 1, &syn, 16, 0, &syn),
            ("tcp_gso", 1, &syn, 16, if family == "4" { 1 } else { 4 }, &syn),
            ("contradiction", 0, &udp, 6, 5, &udp),
        ] {
            let csum_start: u16 = if start[12] == 8 { 34 } else { 54 };
            let mut bytes = vec![flags, gso];
            for field in [csum_start + 20, 1000, csum_start, offset] {
                bytes.extend_from_slice(&u16::to_le_bytes(field));
            }
            bytes.extend_from_slice(frame);
            seeds.push(("vnet_hdr", format!("{name}{family}"), bytes));
        }
        // Between pods: VXLAN with a segment, and with a super-segment of each kind.
        let segment = Segment { payload: vec![7; 250], ..Segment::new(at(child, 4000), at(world, 80), 0x18) };
        let vxlan = |inner: &[u8]| [&[8, 0, 0, 0, 0, 0, 1, 0][..], inner].concat();
        seeds.push(("tunnel", format!("datagram{family}"), vxlan(&segment.frame())));
        let (l4, tunnel) = if family == "4" { (34u16, 0x20u8) } else { (54, 0x40) };
        let inner_udp = frames::udp(at(child, 4000), at(world, 9), &[7; 250]);
        for (name, kind, offset, inner) in
            [("tcp", if family == "4" { 1 } else { 4 }, 16u16, segment.frame()), ("udp", 5, 6, inner_udp)]
        {
            let mut bytes = vec![1, kind | tunnel];
            for field in [0, 100, l4 + 8 + 8 + l4, offset, 0, 0, 0, 0, 0, l4, l4 + 8 + 8 + 14] {
                bytes.extend_from_slice(&u16::to_le_bytes(field));
            }
            bytes.extend_from_slice(&frames::udp(at(child, 40_000), at(world, 8472), &vxlan(&inner)));
            seeds.push(("tunnel", format!("{name}{family}"), bytes));
        }
    }
    let mut add = |name: &str, frame: Vec<u8>| seeds.push(("frame", name.to_owned(), frame));
    add("arp", frames::arp_request(CHILD, GATEWAY));
    add("neighbor_solicitation", frames::neighbor_solicitation(CHILD6, GATEWAY6));
    add("router_solicitation", frames::router_solicitation(CHILD6));
    add("dhcp", frames::udp(at([0; 4].into(), 68), at([255; 4].into(), 67), &discover(1)));
    let mut extension = vec![6, 0, 1, 4, 0, 0, 0, 0];
    extension
        .extend_from_slice(&Segment::syn(at(CHILD6.into(), 1), at(WORLD6.into(), 80), 1400).frame()[54..]);
    add("destination_options", frames::ip(CHILD6.into(), WORLD6.into(), 60, &extension));

    let mut session = Vec::new();
    for kind in [1, 3, 4, 7, 8] {
        session.extend(prefixed(&discover(kind)));
    }
    seeds.push(("dhcp", "session".into(), session));
    seeds.push(("dhcp", "discover".into(), prefixed(&discover(1))));
    seeds.push(("dhcp", "cut_options".into(), prefixed(&discover(1)[..242])));
    let mut information = vec![11, 1, 2, 3, 0, 1, 0, 10, 0, 3, 0, 1, 2, 0, 0, 0, 0, 0x64];
    information.extend_from_slice(&[0, 6, 0, 4, 0, 23, 0, 24, 0, 8, 0, 2, 0, 0]);
    seeds.push(("dhcpv6", "cut_option".into(), information[..information.len() - 3].to_vec()));
    seeds.push(("dhcpv6", "information_request".into(), information));
    let mut answer = query();
    answer[2] |= 0x80;
    let mut exchange = prefixed(&query());
    exchange.extend(prefixed(&answer));
    seeds.push(("dns", "exchange".into(), exchange));
    let mut looped = query();
    looped.splice(12.., [0xc0, 0x0c, 0, 1, 0, 1]);
    seeds.push(("dns", "compression_loop".into(), prefixed(&looped)));
    seeds.push(("dns", "no_question".into(), prefixed(&[0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0])));
    seeds.push(("reassembly", "in_order".into(), vec![0, 0, 0, 0, 16, 0, 0, 16, 1, 9]));
    seeds.push(("reassembly", "overlap".into(), vec![0, 0, 0, 0, 16, 0, 0, 8, 0, 16, 0, 0, 40, 1, 9]));
    seeds.push(("reassembly", "beyond".into(), vec![0, 0x1f, 0xff, 1, 255, 1, 0, 0, 0x80, 16]));
    let specs = "127.0.0.1:8080:10.0.2.100:80/tcp\n8080:80\n0:53/udp\n[fe80::1%eth0]:8000-8010:[fd00::1]:9000/tcp6,source=gateway\n\
                 10-63:10\n80:80/sctp\nauto,tcp,include=80,[::1]/udp,exclude=loopback,22-23,address=127.0.0.1%lo";
    seeds.push(("port_spec", "texts".into(), specs.into()));
    seeds.push(("agent_protocol", "messages".into(), agent_messages()));
    let json = r#"{"proto":"tcp","parentIP":"0.0.0.0","parentPort":8080,"childIP":"","childPort":80}
{"port":[{"proto":"udp4","parentPort":1,"parentPortEnd":9,"childPort":1,"parentInterface":"lo","source":"gateway"}]}"#;
    seeds.push(("port_spec", "json".into(), json.into()));
    let mut answer = diag_socket(2, &[0, 0, 0, 0], 80);
    answer.extend(diag_socket(10, &[0; 16], 81));
    answer.extend(diag_socket(2, &[127, 0, 0, 1], 82));
    let done: [u8; 20] = std::array::from_fn(|at| [20, 0, 0, 0, 3].get(at).copied().unwrap_or(0));
    answer.extend(done);
    seeds.push(("sock_diag", "dump".into(), answer));
    // Operations of `netstack::testing::model`.
    seeds.push((
        "stack_ops",
        "connections".into(),
        vec![0, 0, 0x30, 0, 0x31, 1, 99, 3, 99, 5, 0, 6, 1, 11, 50, 7, 1],
    ));
    seeds.push((
        "stack_ops",
        "datagrams".into(),
        vec![0x31, 9, 0, 10, 0, 9, 1, 10, 0x41, 15, 0, 12, 0, 11, 255],
    ));
    seeds.push((
        "stack_ops",
        "lossy".into(),
        vec![0x57, 0, 0x30, 1, 200, 3, 200, 3, 255, 13, 1, 5, 0, 11, 99, 6, 0],
    ));
    seeds.push((
        "stack_ops",
        "published".into(),
        vec![
            8, 0, 0x32, 0, 0x33, 0, 0x02, 3, 200, 1, 199, 10, 0x80, 10, 0x91, 9, 0, 9, 0x11, 5, 0, 6, 1, 11,
            50,
        ],
    ));
    // One joined, one that is to be answered, one refused; answers, also wrong ones; an end.
    seeds.push((
        "stack_ops",
        "relayed".into(),
        vec![
            0, 0, 0x38, 0, 0x3c, 0, 0x3d, 0, 0x34, 12, 0x12, 12, 0x26, 12, 0x02, 1, 99, 1, 3, 3, 3, 12, 0x0a,
            11, 255, 11, 255,
        ],
    ));
    seeds.push((
        "stack_ops",
        "stall_after_both_finished".into(),
        vec![0, 0, 48, 6, 48, 13, 48, 1, 88, 5, 48, 11, 255, 11, 255],
    ));
    seeds
}

/// A message of sock_diag(7) with IPV6_V6ONLY off, in little-endian.
fn diag_socket(family: u8, address: &[u8], port: u16) -> Vec<u8> {
    let mut message = vec![0; 96];
    message[0] = 96;
    message[4] = 20;
    message[8] = 1;
    message[16] = family;
    message[20..22].copy_from_slice(&port.to_be_bytes());
    message[24..24 + address.len()].copy_from_slice(address);
    message[84] = 1;
    message[88..96].copy_from_slice(&[5, 0, 11, 0, 0, 0, 0, 0]);
    message
}

/// One of each kind, with the length of two bytes before it that `fuzz::messages` wants.
fn agent_messages() -> Vec<u8> {
    let kind = SocketKind { transport: Transport::Tcp, family: Family::V6, reach: Reach::Transparent };
    let listen = Request::Listen { id: 7, transport: Transport::Udp, address: ([127, 0, 0, 1], 80).into() };
    let messages = [
        Request::Hello { rules: Rules::Add, egress: Egress::Prepare }.encode(),
        Request::Sockets { kind, count: 64 }.encode(),
        listen.encode(),
        Reply::Hello { abilities: Abilities { diag: true, ..Abilities::default() } }.encode(),
        Reply::Sockets { kind, count: 3, errno: 24 }.encode(),
        Reply::Listening { id: 7, errno: 98 }.encode(),
    ];
    let framed =
        messages.iter().map(|message| [&(message.len() as u16).to_be_bytes(), &message[..]].concat());
    framed.collect::<Vec<_>>().concat()
}

fn query() -> Vec<u8> {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    query.extend_from_slice(b"\x07example\x03org\x00\x00\x01\x00\x01");
    query
}

fn discover(kind: u8) -> Vec<u8> {
    let mut message = vec![0; 240];
    message[..3].copy_from_slice(&[1, 1, 6]);
    message[28..34].copy_from_slice(&frames::CHILD_MAC);
    message[236..240].copy_from_slice(&[99, 130, 83, 99]);
    message
        .extend_from_slice(&[53, 1, kind, 50, 4, 10, 0, 42, 100, 54, 4, 10, 0, 42, 2, 55, 3, 1, 3, 6, 255]);
    message
}

fn prefixed(message: &[u8]) -> Vec<u8> {
    let mut bytes = (message.len() as u16).to_be_bytes().to_vec();
    bytes.extend_from_slice(message);
    bytes
}
