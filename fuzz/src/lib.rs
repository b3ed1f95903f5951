//! Fuzz harnesses as ordinary functions of bytes.
//!
//! `cargo test -p fuzz` replays `corpus/` on stable; `fuzz_targets/` wraps the same functions for `cargo fuzz`. Every
//! function panics where a promise is broken: of not panicking, of bounded memory, of parsing what was emitted.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;

use forwarder::auto::{AutoPublisher, AutoRules, Change, DEFAULT_LOCAL_PORT_RANGE};
use forwarder::error::PortError;
use forwarder::manager::{Action, PortManager};
use forwarder::protocol::{Reply, Request};
use forwarder::sock_diag::{self, Message};
use forwarder::spec::{Origin, PortFile, PortSpec, PortStatus, Transport};
use launcher::api::routes::{Command, Route};
use launcher::personality::slirp4netns;
use netstack::dhcp::DhcpServer;
use netstack::dhcp::v6::Dhcpv6Responder;
use netstack::dns::{DnsAction, DnsForwarder, Ipv6Offer, QueryOrigin};
use netstack::frame::{Checksum, Frame, Gso, Offload};
use netstack::offload::tunnel::{self, Join};
use netstack::offload::vnet_hdr::{self, VirtioNetHdr};
use netstack::testing::{ALL_OFFLOADS, Harness, NO_OFFLOADS, config};
use netstack::time::{Duration, Instant};
use netstack::udp::reassembly::{FragmentKey, MoreFragments, Reassembly};

const NOW: Instant = Instant::from_micros_const(1_000_000_000);

/// A harness: it panics where a promise is broken.
pub type Harnessed = fn(&[u8]);

/// Every harness with the name of its corpus.
pub const ALL: [(&str, Harnessed); 13] = [
    ("agent_protocol", agent_protocol),
    ("api_request", api_request),
    ("dhcp", dhcp),
    ("dhcpv6", dhcpv6),
    ("dns", dns),
    ("frame", frame),
    ("port_spec", port_spec),
    ("reassembly", reassembly),
    ("slirp_api", slirp_api),
    ("sock_diag", sock_diag),
    ("stack_ops", stack_ops),
    ("tunnel", tunnel),
    ("vnet_hdr", vnet_hdr),
];

/// A request to the control API: verb, blank and target in the first line, then the body.
pub fn api_request(data: &[u8]) {
    let (head, body) = match data.iter().position(|&byte| byte == b'\n') {
        Some(end) => (&data[..end], &data[end + 1..]),
        None => (data, &[][..]),
    };
    let head = String::from_utf8_lossy(head);
    let (method, target) = head.split_once(' ').unwrap_or((&head, ""));
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    match Route::find(method, path).and_then(|(route, part)| route.command(part, query, body)) {
        Err(refusal) => {
            assert!(refusal.status.is_client_error(), "{}", refusal.status);
            assert!(!refusal.message.is_empty());
        }
        Ok(Command::AddPort(spec)) => {
            let json = serde_json::to_vec(&spec).expect("fields and nothing else");
            assert_eq!(serde_json::from_slice::<PortSpec>(&json).ok(), Some(spec));
        }
        Ok(Command::SetPolicy(policy)) => assert_eq!(policy.to_string().parse(), Ok(policy)),
        Ok(_) => {}
    }
}

/// Requests to the API socket of slirp4netns, split at line feeds, to one server.
pub fn slirp_api(data: &[u8]) {
    let forwards = Paper::default();
    for request in data.split(|&byte| byte == b'\n') {
        let reply = slirp4netns::api::answer(request, [10, 0, 2, 100].into(), &forwards);
        assert!(!reply.contains('\n'), "one line at most");
        let reply: serde_json::Value = serde_json::from_str(&reply).expect("a reply is JSON");
        let reply = reply.as_object().expect("a reply is an object");
        assert_ne!(reply.contains_key("return"), reply.contains_key("error"), "one of the two");
    }
    assert!(forwards.0.borrow().len() <= data.len());
}

/// Forwards that forward nothing.
#[derive(Default)]
struct Paper(RefCell<Vec<PortStatus>>);

impl slirp4netns::api::Forwards for Paper {
    fn add(&self, spec: PortSpec) -> Result<PortStatus, PortError> {
        let mut all = self.0.borrow_mut();
        let status = PortStatus { id: all.len() as u64 + 1, spec, origin: Origin::Asked };
        all.push(status.clone());
        Ok(status)
    }

    fn remove(&self, id: u64) -> Result<(), PortError> {
        let mut all = self.0.borrow_mut();
        let index = all.iter().position(|status| status.id == id);
        index.map(|index| drop(all.remove(index))).ok_or(PortError::NotFound { id })
    }

    fn list(&self) -> Result<Vec<PortStatus>, PortError> {
        Ok(self.0.borrow().clone())
    }
}

/// One frame of the child, with every kind of metadata; then time passes.
pub fn frame(data: &[u8]) {
    for capabilities in [ALL_OFFLOADS, NO_OFFLOADS] {
        let mut harness = Harness::scripted(config(), capabilities);
        harness.host.record = false;
        for offload in [
            Offload::default(),
            Offload { checksum: Checksum::Partial, gso: Gso::None },
            Offload { checksum: Checksum::Partial, gso: Gso::Tcp(1000) },
            Offload { checksum: Checksum::Partial, gso: Gso::Udp(1000) },
            Offload { checksum: Checksum::Verified, gso: Gso::None },
        ] {
            let _ = harness.inject_with(data, offload);
        }
        harness.drive_for(Duration::from_secs(2));
    }
}

/// A virtio-net header and the frame behind it, as read from the TAP.
pub fn vnet_hdr(data: &[u8]) {
    let Some((header, rest)) = data.split_first_chunk::<{ VirtioNetHdr::LEN }>() else { return };
    let mut bytes = rest.to_vec();
    let Ok(offload) = vnet_hdr::accept(header, &mut bytes) else { return };
    // What was accepted can be emitted, and is accepted again.
    if offload.checksum == Checksum::Partial {
        let emitted = vnet_hdr::emit_for_frame(offload, &bytes);
        assert_eq!(vnet_hdr::accept(&emitted, &mut bytes), Ok(offload));
    }
    let mut harness = Harness::scripted(config(), ALL_OFFLOADS);
    let _ = harness.stack.handle_frame(harness.now, Frame { bytes: &mut bytes, offload, slot: 0 });
    while harness.stack.poll_action().is_some() {}
}

/// The longer header that speaks of tunnels, and the frame behind it: what is accepted can be cut, and what was cut can
/// be joined; and any datagram of a tunnel.
pub fn tunnel(data: &[u8]) {
    if let Some(mut join) = Join::begin(data) {
        let _ = join.push(data);
        assert!(join.finish().0.len() < data.len(), "there is payload");
    }
    let Some((header, frame)) = data.split_first_chunk::<{ vnet_hdr::TUNNEL_LEN }>() else { return };
    let mut frame = frame.to_vec();
    let Ok(Offload { gso: Gso::Tunnel(gso), .. }) = vnet_hdr::accept_tunnel(header, &mut frame) else {
        return;
    };
    let (mut out, mut cuts) = (Vec::new(), Vec::new());
    let range = usize::from(gso.payload)..frame.len();
    let Ok(end) = tunnel::split(&frame, range, gso, &mut out, 0, |cut| cuts.push(cut)) else { return };
    assert_eq!(cuts.iter().map(ExactSizeIterator::len).sum::<usize>(), end, "one lies behind the other");
    let mut datagrams = cuts.into_iter().map(|cut| &out[cut]);
    let Some(mut join) = datagrams.next().and_then(Join::begin) else { return };
    // Sizes and sequence follow; only a super-segment that asks for an end midway, or is too long, stops it.
    let joined = datagrams.take_while(|datagram| join.push(datagram)).count() + 1;
    assert_eq!(joined, join.count());
}

/// DHCP messages of clients, split at length bytes.
pub fn dhcp(data: &[u8]) {
    let config = config().build().expect("the default configuration");
    let mut server = DhcpServer::new(config.mac(), &config);
    for (turn, message) in messages(data).enumerate() {
        let now = NOW + Duration::from_secs(turn as u64 * 7);
        if let Ok(Some(reply)) = server.handle(now, message) {
            assert!(reply.payload.len() >= 240, "a BOOTP header and the cookie");
            let given = u32::from_be_bytes([
                reply.payload[16],
                reply.payload[17],
                reply.payload[18],
                reply.payload[19],
            ]);
            assert!(given == 0 || config.ipv4().subnet.contains(given.into()), "an address of ours");
        }
    }
}

/// DHCPv6 messages.
pub fn dhcpv6(data: &[u8]) {
    let config = config().build().expect("the default configuration");
    if let Ok(Some(reply)) = Dhcpv6Responder::new(config.mac(), &config).handle(data) {
        assert_eq!(reply[1..4], data[1..4], "the client's transaction");
    }
}

/// Queries of the child and answers of servers.
pub fn dns(data: &[u8]) {
    let config = config().build().expect("the default configuration");
    let mut forwarder = DnsForwarder::new(&config);
    let servers = [([192, 0, 2, 1], 53).into(), ([192, 0, 2, 2], 53).into()];
    forwarder.set_servers(&servers);
    forwarder.set_ipv6_offered(Ipv6Offer::Offered);
    let origin =
        QueryOrigin::Udp { child: ([10, 0, 42, 100], 4000).into(), server: ([10, 0, 42, 3], 53).into() };
    let mut asked: Vec<(_, [u8; 2])> = Vec::new();
    let mut now = NOW;
    for (turn, message) in messages(data).enumerate() {
        now += Duration::from_millis(300);
        if turn % 2 == 0 {
            let _ = forwarder.handle_query(now, origin, message);
        } else if let Some((query, id)) = asked.pop() {
            // With the right id, or nothing would ever get through.
            let mut answer = message.to_vec();
            if let Some(field) = answer.get_mut(..2) {
                field.copy_from_slice(&id);
            }
            let _ = forwarder.handle_answer(now, query, &answer);
        }
        forwarder.handle_timeout(now);
        while let Some(action) = forwarder.poll_action() {
            match action {
                DnsAction::Ask { query, message, .. } => {
                    asked.push((query, [message[0], message[1]]));
                }
                DnsAction::Answer { message, .. } => assert!(message.len() >= 12, "a header at least"),
                _ => {}
            }
        }
        assert!(forwarder.pending() <= 1024);
    }
    for _ in 0..20 {
        now += Duration::from_secs(5);
        forwarder.handle_timeout(now);
        while forwarder.poll_action().is_some() {}
    }
    assert_eq!(forwarder.pending(), 0, "every query ends");
}

/// Fragments of a few datagrams: memory stays bounded, and what comes out is as long as the fragments say.
pub fn reassembly(data: &[u8]) {
    const LIMIT: usize = 1 << 16;
    let mut store = Reassembly::new(LIMIT, Duration::from_secs(30));
    let mut now = NOW;
    for step in data.chunks_exact(5) {
        let key = FragmentKey {
            src: [10, 0, 42, 100].into(),
            dst: [198, 51, 100, step[0] & 3].into(),
            id: u32::from(step[0] >> 2 & 3),
            protocol: 17,
        };
        let offset = usize::from(u16::from_be_bytes([step[1], step[2]]) & 0x1fff) * 8;
        let more = if step[3] & 1 == 0 { MoreFragments::More } else { MoreFragments::Last };
        let piece = vec![step[4]; usize::from(step[4]) * if step[3] & 2 == 0 { 8 } else { 1 }];
        if let Ok(Some(whole)) = store.insert(now, key, offset, more, &piece) {
            assert!(whole.len() <= 65535);
        }
        assert!(store.bytes() <= LIMIT, "{} bytes are held", store.bytes());
        if step[3] & 0x80 != 0 {
            now += Duration::from_secs(u64::from(step[3] >> 2));
            store.handle_timeout(now);
        }
    }
    store.handle_timeout(now + Duration::from_secs(60));
    assert_eq!(store.bytes(), 0, "everything is given up in the end");
}

/// Messages between the forwarding driver and its agent. What is understood is written again as the same bytes.
pub fn agent_protocol(data: &[u8]) {
    for message in messages(data) {
        if let Ok(request) = Request::decode(message) {
            assert_eq!(request.encode(), message);
        }
        if let Ok(reply) = Reply::decode(message) {
            assert_eq!(reply.encode(), message);
        }
    }
}

/// Lines of port specs, rules of auto and JSON. What is read is written and read again as the same; all of it goes to a
/// manager, on a host where some ports are taken, and leaves nothing behind.
pub fn port_spec(data: &[u8]) {
    let mut manager = PortManager::default();
    let mut open = BTreeMap::new();
    for line in data.split(|&byte| byte == b'\n') {
        let text = String::from_utf8_lossy(line);
        if let Ok(rules) = text.parse::<AutoRules>() {
            assert_eq!(rules.to_string().parse().as_ref(), Ok(&rules));
        }
        let file = serde_json::from_slice::<PortFile>(line).unwrap_or_default().ports;
        let specs = serde_json::from_slice(line).ok().or_else(|| text.parse::<PortSpec>().ok());
        for spec in specs.into_iter().chain(file) {
            assert_eq!(spec.to_string().parse().as_ref(), Ok(&spec));
            let json = serde_json::to_string(&spec).expect("fields and nothing else");
            assert_eq!(serde_json::from_str::<PortSpec>(&json).expect("our own JSON"), spec);
            let _ = manager.add(spec, Origin::Asked);
            while let Some(action) = manager.poll_action() {
                match action {
                    Action::Listen(listener) if listener.address.port() % 64 == 63 => {
                        manager.handle_listen_failed(listener.id, io::ErrorKind::AddrInUse.into());
                    }
                    Action::Listen(listener) => {
                        let port = listener.address.port();
                        let before = open.insert(listener.id, listener.address);
                        assert_eq!(before, None, "no number comes twice");
                        manager.handle_listening(listener.id, if port == 0 { 40_000 } else { port });
                    }
                    Action::Unlisten(id) => assert!(open.remove(&id).is_some(), "it was open"),
                    _ => {}
                }
            }
            assert_eq!(manager.listeners(), open.len());
            assert_eq!(manager.list().len(), manager.len());
        }
    }
    manager.clear();
    while let Some(action) = manager.poll_action() {
        if let Action::Unlisten(id) = action {
            open.remove(&id);
        }
    }
    assert!(open.is_empty() && manager.is_empty() && manager.listeners() == 0);
}

/// What a sock_diag socket gives, published by itself.
pub fn sock_diag(data: &[u8]) {
    let now = std::time::Instant::now();
    let mut publisher = AutoPublisher::new(AutoRules::default(), DEFAULT_LOCAL_PORT_RANGE);
    for transport in [Transport::Tcp, Transport::Udp] {
        let messages: Vec<_> = sock_diag::decode(data, transport).collect();
        assert!(messages.len() <= data.len() / 16, "each has a header");
        let sockets: Vec<_> = messages
            .into_iter()
            .filter_map(|message| match message {
                Message::Socket(_, socket) => Some(socket),
                _ => None,
            })
            .collect();
        publisher.handle_sockets(now, &sockets);
        while let Some(change) = publisher.poll_change() {
            let Change::Add(spec) = change else { continue };
            assert_eq!(spec.proto().transport(), transport);
            assert_eq!(spec.to_string().parse().as_ref(), Ok(&spec));
        }
    }
}

/// Operations on a whole stack, against the reference NAT.
pub fn stack_ops(data: &[u8]) {
    netstack::testing::model::run(data);
}

/// Cuts `data` into messages: a big-endian length of two bytes before each; the last one may be cut short.
fn messages(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = data;
    std::iter::from_fn(move || {
        let (&len, following) = rest.split_first_chunk::<2>()?;
        let len = usize::from(u16::from_be_bytes(len)).min(following.len());
        let (message, following) = following.split_at(len);
        rest = following;
        Some(message)
    })
}
