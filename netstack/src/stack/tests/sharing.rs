//! Several stacks for one child; the test is the kernel that chooses the queue.

use std::sync::Arc;

use super::*;
use crate::config::{Config, Limits};
use crate::error::DropReason;
use crate::flow::WorkerId;
use crate::forward::{ForwardSource, UdpForward};
use crate::packet::Tcp;
use crate::stack::{Claims, Stack};
use crate::testing::frames::{
    CHILD_MAC, DNS, DNS6, GATEWAY, Seen, Segment, arp_request, echo_request, fragments, udp,
};
use crate::testing::{Harness, config};
use crate::time::Duration;

/// Workers, each with a scripted child that is the same one.
struct Crew(Vec<Harness>);

impl Crew {
    fn new(workers: usize) -> Self {
        Self::with(workers, Limits::default())
    }

    fn with(workers: usize, limits: Limits) -> Self {
        let claims = Arc::new(Claims::new(workers, 7));
        let worker = |index: usize| {
            let mut harness = Harness::scripted(config().limits(limits), ALL_OFFLOADS);
            harness.stack.share(WorkerId(index as u8), claims.clone());
            harness
        };
        Crew((0..workers).map(worker).collect())
    }

    /// A frame of the child comes by a queue; it is handled by whoever is to handle it.
    fn arrive(&mut self, queue: usize, frame: &[u8]) -> Result<(), DropReason> {
        let mut result = self.0[queue].inject(frame);
        for hops in 0.. {
            let mut handed = Vec::new();
            for harness in &mut self.0 {
                handed.extend(std::iter::from_fn(|| harness.stack.poll_handover()));
            }
            if handed.is_empty() {
                return result;
            }
            assert!(hops < 3, "handed on for ever: {handed:?}");
            for handover in handed {
                let harness = &mut self.0[handover.to.index()];
                result = harness.stack.handle_handover(harness.now, handover);
                harness.settle();
            }
        }
        result
    }

    /// Who has sent the child something since the last call, and what.
    fn seen(&mut self) -> Vec<(usize, Seen)> {
        let seen = |(index, harness): (usize, &mut Harness)| {
            harness.seen().into_iter().map(move |seen| (index, seen)).collect::<Vec<_>>()
        };
        self.0.iter_mut().enumerate().flat_map(seen).collect()
    }

    #[track_caller]
    fn seen_one(&mut self) -> (usize, Seen) {
        let mut seen = self.seen();
        assert_eq!(seen.len(), 1, "one frame expected: {seen:?}");
        seen.remove(0)
    }

    fn flows(&self) -> Vec<usize> {
        self.0.iter().map(|harness| harness.stack.flows().count()).collect()
    }

    /// The child opens a connection, whose SYN comes by `queue`; the next sequence numbers of child and host.
    fn connect(&mut self, queue: usize, child: SocketAddr, remote: SocketAddr) -> (u32, u32) {
        let syn = Segment::syn(child, remote, 1460);
        self.arrive(queue, &syn.frame()).unwrap();
        let (worker, seen) = self.seen_one();
        let answer = seen.tcp();
        assert_eq!((worker, answer.flags), (queue, Tcp::SYN | Tcp::ACK));
        let next = (syn.sequence.wrapping_add(1), answer.sequence.wrapping_add(1));
        self.arrive(queue, &segment(child, remote, next, Tcp::ACK, b"").frame()).unwrap();
        next
    }
}

fn segment(src: SocketAddr, dst: SocketAddr, next: (u32, u32), flags: u8, payload: &[u8]) -> Segment {
    let (sequence, acknowledgement) = next;
    Segment { sequence, acknowledgement, payload: payload.to_vec(), ..Segment::new(src, dst, flags) }
}

fn dns(child: SocketAddr) -> IpAddr {
    if child.is_ipv4() { DNS.into() } else { DNS6.into() }
}

#[test]
fn a_connection_stays_where_it_began_whatever_queue_its_segments_come_by() {
    for (child, remote) in families(80) {
        let mut crew = Crew::new(3);
        let (sequence, acknowledgement) = crew.connect(1, child, remote);
        assert_eq!(crew.flows(), [0, 1, 0]);
        let flow = crew.0[1].stack.flows().next().unwrap().id;
        assert_eq!(flow.worker(), WorkerId(1));
        for (queue, bytes) in [(1, b"one"), (2, b"two"), (0, b"six")] {
            let at = (sequence + 3 * (crew.0[1].host.tcp(flow).received.len() as u32 / 3), acknowledgement);
            crew.arrive(queue, &segment(child, remote, at, Tcp::ACK, bytes).frame()).unwrap();
        }
        assert_eq!(crew.0[1].host.tcp(flow).received, b"onetwosix");
        assert_eq!(crew.flows(), [0, 1, 0]);
        let segments = crew.0.iter().map(|harness| harness.stack.stats().tcp.packets_from_child);
        assert_eq!(segments.collect::<Vec<_>>(), [0, 5, 0], "counted where they are handled");
        // Its end leaves the key to whoever sees the next SYN.
        let reset = (sequence + 9, acknowledgement);
        crew.arrive(0, &segment(child, remote, reset, Tcp::RST | Tcp::ACK, b"").frame()).unwrap();
        assert_eq!(crew.flows(), [0, 0, 0]);
        crew.seen();
        crew.connect(2, child, remote);
    }
}

#[test]
fn a_segment_of_no_flow_is_reset_by_the_first() {
    let (child, remote) = families(80)[0];
    let mut crew = Crew::new(2);
    let stray = segment(child, remote, (1, 1), Tcp::ACK, b"?").frame();
    assert_eq!(crew.arrive(1, &stray), Err(DropReason::NoFlow));
    let (worker, seen) = crew.seen_one();
    assert_eq!((worker, seen.tcp().flags & Tcp::RST), (0, Tcp::RST));
    assert_eq!(crew.0[0].stack.stats().drops(DropReason::NoFlow), 1);
    assert_eq!(crew.0[1].stack.stats().all_drops().count(), 0);
}

#[test]
fn what_is_no_flow_is_the_firsts() {
    let mut crew = Crew::new(2);
    crew.arrive(1, &arp_request(CHILD, GATEWAY)).unwrap();
    assert!(matches!(crew.seen_one(), (0, Seen::Arp(_))));
    crew.arrive(1, &echo_request(CHILD.into(), GATEWAY.into(), 1, 1, b"ping")).unwrap();
    assert!(matches!(crew.seen_one(), (0, Seen::Icmp { kind: (0, 0), .. })));
    crew.arrive(1, &echo_request(CHILD.into(), WORLD.into(), 1, 1, b"ping")).unwrap();
    assert_eq!(crew.flows(), [1, 0]);
    let question = udp(socket(CHILD, 40_000), socket(DNS, 53), b"not even a question");
    let _ = crew.arrive(1, &question);
    assert_eq!(crew.0[0].stack.stats().dns.packets_from_child, 1);
    crew.arrive(1, &Segment::syn(socket(CHILD, 40_000), socket(DNS, 53), 1460).frame()).unwrap();
    assert_eq!(crew.flows(), [2, 0]);
}

#[test]
fn a_socket_of_the_child_is_one_socket_of_the_host_whatever_queues_its_datagrams_come_by() {
    for (child, remote) in families(9) {
        let mut crew = Crew::new(2);
        let other = SocketAddr::new(remote.ip(), 10);
        crew.arrive(1, &udp(child, remote, b"a")).unwrap();
        crew.arrive(0, &udp(child, other, b"b")).unwrap();
        assert_eq!(crew.flows(), [0, 1]);
        let sent: Vec<_> = crew.0[1].host.take_sent().into_iter().map(|sent| sent.payload).collect();
        assert_eq!(sent, [b"a", b"b"]);
        // What is not carried by it goes its own way.
        crew.arrive(0, &udp(child, SocketAddr::new(dns(child), 53), b"?")).map_or_else(drop, drop);
        crew.arrive(1, &udp(child, SocketAddr::new(dns(child), 53), b"?")).map_or_else(drop, drop);
        assert_eq!(crew.0[0].stack.stats().dns.packets_from_child, 2);
        // Silent for long enough, it may begin elsewhere.
        crew.0[1].drive_for(Duration::from_secs(301));
        assert_eq!(crew.flows(), [0, 0]);
        crew.arrive(0, &udp(child, other, b"c")).unwrap();
        assert_eq!(crew.flows(), [1, 0]);
    }
}

#[test]
fn fragments_meet_at_the_first_and_go_on_to_the_flows_worker() {
    let (child, remote) = families(9)[0];
    let mut crew = Crew::new(2);
    crew.arrive(1, &udp(child, remote, b"a")).unwrap();
    crew.0[1].host.take_sent();
    let long = udp(child, remote, &[7; 4000]);
    for fragment in fragments(&long, 1, 1400) {
        crew.arrive(1, &fragment).unwrap();
    }
    let sent = crew.0[1].host.take_sent();
    assert_eq!((sent.len(), sent[0].payload.len(), sent[0].hop.dont_fragment), (1, 4000, false));
    assert_eq!(crew.flows(), [0, 1]);
}

#[test]
fn answers_of_the_child_reach_connections_of_the_host() {
    for (source, child) in families(80).map(|(child, remote)| (remote, child)) {
        let mut crew = Crew::new(2);
        crew.0[0].stack.learn_neighbor(child.ip(), CHILD_MAC);
        let flow = crew.0[0].open_to_child(source, child).unwrap();
        let (_, syn) = crew.seen_one();
        let next = (5000, syn.tcp().sequence.wrapping_add(1));
        crew.arrive(1, &segment(child, source, next, Tcp::SYN | Tcp::ACK, b"").frame()).unwrap();
        crew.arrive(1, &segment(child, source, (5001, next.1), Tcp::ACK, b"hello").frame()).unwrap();
        assert_eq!(crew.0[0].host.tcp(flow).received, b"hello");
        assert_eq!(crew.flows(), [1, 0]);
    }
}

#[test]
fn a_connection_of_the_host_does_not_take_the_key_of_one_of_the_childs() {
    let (child, remote) = families(80)[0];
    let mut crew = Crew::new(2);
    crew.connect(1, child, remote);
    crew.0[0].stack.learn_neighbor(child.ip(), CHILD_MAC);
    crew.0[0].open_to_child(remote, child).unwrap();
    let (_, syn) = crew.seen_one();
    assert_ne!(syn.tcp().src, remote, "another port");
}

#[test]
fn answers_of_a_published_udp_port_leave_by_its_socket() {
    let (child, client) = families(9)[0];
    let mut crew = Crew::new(2);
    crew.0[0].stack.learn_neighbor(child.ip(), CHILD_MAC);
    // The server has asked somebody before.
    let somebody = SocketAddr::new(WORLD.into(), 53);
    crew.arrive(1, &udp(child, somebody, b"question")).unwrap();
    assert_eq!(crew.flows(), [0, 1]);
    let forward = UdpForward { child, source: ForwardSource::Client };
    let id = crew.0[0].publish_udp(forward).unwrap();
    let published = crew.0[0].stack.published();
    assert_eq!(published, [child].into());
    crew.0.iter_mut().for_each(|harness| harness.stack.set_published(published.clone()));
    crew.0[1].settle();
    assert_eq!(crew.flows(), [0, 0], "its socket is the first's from now on");
    crew.0[0].client_datagram(id, client, None, b"request").unwrap();
    crew.seen();
    crew.arrive(1, &udp(child, client, b"answer")).unwrap();
    crew.arrive(1, &udp(child, somebody, b"question")).unwrap();
    let sent: Vec<_> = crew.0[0].host.take_sent().into_iter().map(|sent| sent.remote).collect();
    assert_eq!(sent, [client, somebody]);
    assert_eq!(crew.flows(), [2, 0]);
}

#[test]
fn limits_hold_for_all_together() {
    let limits = Limits { flows: 3, half_open: 4, udp_bindings: 4, ..Limits::default() };
    let mut crew = Crew::with(2, limits);
    let remote = socket(WORLD, 80);
    for (port, queue) in [(1, 0), (2, 1), (3, 1)] {
        crew.connect(queue, socket(CHILD, port), remote);
    }
    for queue in [0, 1] {
        let syn = Segment::syn(socket(CHILD, 4), remote, 1460).frame();
        assert_eq!(crew.arrive(queue, &syn), Err(DropReason::FlowTableFull));
    }
    assert_eq!(crew.0[0].stack.buffer_bytes(), crew.0[1].stack.buffer_bytes(), "memory is counted together");
    for port in 10..20 {
        crew.arrive(usize::from(port % 2), &udp(socket(CHILD, port), remote, b"x")).unwrap();
    }
    assert_eq!(crew.flows(), [1 + 2, 2 + 2]);
}

#[test]
fn a_frame_that_nobody_takes_for_its_own_is_dropped() {
    let (child, remote) = families(9)[0];
    let mut crew = Crew::new(3);
    crew.arrive(1, &udp(child, remote, b"a")).unwrap();
    crew.0[2].inject(&udp(child, remote, b"b")).unwrap();
    let handover = crew.0[2].stack.poll_handover().unwrap();
    assert_eq!(handover.to, WorkerId(1));
    // As if the flow had moved on: the wrong one gets it.
    let harness = &mut crew.0[2];
    let result = harness.stack.handle_handover(harness.now, handover);
    assert_eq!((result, harness.stack.poll_handover()), (Err(DropReason::WorkerBusy), None));
}

#[test]
fn the_others_do_not_announce_a_router() {
    let (config, now) = (config().build().unwrap(), crate::time::Instant::from_secs(1));
    let mut out = vec![0; crate::stack::FRAME_BUFFER];
    let mut frames =
        |config: Config| Stack::new(config, ALL_OFFLOADS, now).poll_frame(now, &mut out).is_some();
    assert!(!frames(Stack::config_of_others(config)));
}
