//! TCP with a living child: its own smoltcp opens, sends, closes.

use smoltcp::socket::tcp::State;

use super::*;
use crate::action::{Action, ConnectError};
use crate::error::DropReason;
use crate::packet::Tcp;
use crate::stack::tcp::HostIo;
use crate::tcp::Phase;
use crate::testing::child::ChildTcp;
use crate::testing::frames::Segment;
use crate::testing::host::ConnectPlan;
use crate::testing::link::Random;
use crate::testing::{Harness, config};
use crate::time::Duration;

/// Opens a connection; returns the child's socket and the flow.
fn open(harness: &mut Harness, remote: SocketAddr) -> (ChildTcp, crate::flow::FlowId) {
    let socket = harness.child.connect(remote);
    harness.drive_until(|h| h.child.state(socket) == State::Established);
    harness.drive();
    (socket, harness.host.last_flow())
}

fn on_every_link(test: impl Fn(Harness, SocketAddr)) {
    for capabilities in CAPABILITIES {
        for (_, remote) in families(80) {
            test(Harness::new(config(), capabilities), remote);
        }
    }
}

// Opening.

#[test]
fn the_syn_is_not_answered_before_the_host_is_connected() {
    on_every_link(|mut h, remote| {
        h.host.default_plan = ConnectPlan::Hold;
        let socket = h.child.connect(remote);
        h.drive_for(Duration::from_secs(5));
        assert_eq!(h.child.state(socket), State::SynSent);
        let flow = h.host.last_flow();
        assert_eq!(h.host.tcp(flow).remote, Some(remote));
        h.host.finish_connect(flow, Ok(()));
        h.drive();
        assert_eq!(h.child.state(socket), State::Established);
        assert_eq!(h.host.tcp.len(), 1, "repeated SYNs open nothing");
    });
}

#[test]
fn a_refused_connection_is_reset_at_once() {
    on_every_link(|mut h, remote| {
        h.host.plans.insert(remote, ConnectPlan::Fail(ConnectError::Refused));
        let began = h.now;
        let socket = h.child.connect(remote);
        h.drive();
        assert_eq!(h.child.state(socket), State::Closed);
        assert!(h.now - began < Duration::from_millis(300));
        assert_eq!(h.stack.flows().count(), 0);
        assert_eq!(h.stack.stats().tcp_connect_failed, 1);
        assert_eq!(h.stack.buffer_bytes(), 0);
    });
}

// Data.

#[test]
fn an_echo_comes_back_whole() {
    on_every_link(|mut h, remote| {
        h.host.echo = true;
        let (socket, flow) = open(&mut h, remote);
        let sent = Random::new(1).bytes(300_000);
        let (mut at, mut back) = (0, Vec::new());
        h.drive_until(|h| {
            at += h.child.write(socket, &sent[at..]);
            back.extend(h.child.read(socket));
            back.len() == sent.len()
        });
        assert!(back == sent && h.host.tcp(flow).received == sent);
        let stats = h.stack.stats();
        assert_eq!((stats.tcp.bytes_from_child, stats.tcp.bytes_to_child), (300_000, 300_000));
        assert_eq!(stats.all_drops().count(), 0, "{stats:?}");
    });
}

#[test]
fn short_writes_of_the_host_lose_nothing() {
    let mut h = Harness::default();
    h.host.largest_write = 7;
    let (socket, flow) = open(&mut h, families(80)[0].1);
    let sent = Random::new(2).bytes(5_000);
    h.child.write(socket, &sent);
    h.drive();
    assert_eq!(h.host.tcp(flow).received, sent);
}

// Half-close.

#[test]
fn a_child_that_finished_still_receives() {
    on_every_link(|mut h, remote| {
        let (socket, flow) = open(&mut h, remote);
        h.child.write(socket, b"request");
        h.child.close(socket);
        h.drive();
        assert!(h.host.tcp(flow).shutdown);
        assert_eq!(h.host.tcp(flow).received, b"request");
        let answer = Random::new(3).bytes(500_000);
        h.host.send(flow, &answer);
        let mut got = Vec::new();
        h.drive_until(|h| {
            got.extend(h.child.read(socket));
            got.len() == answer.len()
        });
        assert_eq!(got, answer);
        h.host.finish(flow);
        h.drive();
        assert!(h.child.at_eof(socket));
        assert_eq!(h.host.tcp(flow).closed, Some(false));
        assert_eq!(h.stack.flows().count(), 0);
        assert_eq!(h.stack.buffer_bytes(), 0);
    });
}

#[test]
fn a_host_that_finished_still_receives() {
    on_every_link(|mut h, remote| {
        let (socket, flow) = open(&mut h, remote);
        h.host.send(flow, b"greeting");
        h.host.finish(flow);
        h.drive();
        assert_eq!(h.child.read(socket), b"greeting");
        assert!(h.child.at_eof(socket));
        let sent = Random::new(4).bytes(500_000);
        let mut at = 0;
        h.drive_until(|h| {
            at += h.child.write(socket, &sent[at..]);
            h.host.tcp(flow).received.len() == sent.len()
        });
        assert_eq!(h.host.tcp(flow).received, sent);
        assert!(!h.host.tcp(flow).shutdown);
        h.child.close(socket);
        h.drive();
        assert!(h.host.tcp(flow).shutdown);
        assert_eq!(h.host.tcp(flow).closed, Some(false));
        assert_eq!(h.stack.flows().count(), 0);
    });
}

#[test]
fn both_sides_may_finish_at_once() {
    on_every_link(|mut h, remote| {
        let (socket, flow) = open(&mut h, remote);
        h.child.write(socket, b"last words");
        h.child.close(socket);
        h.host.send(flow, b"mine too");
        h.host.finish(flow);
        let mut got = Vec::new();
        h.drive_until(|h| {
            got.extend(h.child.read(socket));
            h.host.tcp(flow).closed.is_some()
        });
        assert_eq!(got, b"mine too");
        assert_eq!(h.host.tcp(flow).received, b"last words");
        assert_eq!(h.host.tcp(flow).closed, Some(false));
        assert_eq!(h.stack.flows().count(), 0);
    });
}

#[test]
fn an_end_of_file_before_any_byte_passes_both_ways() {
    let mut h = Harness::default();
    let (socket, flow) = open(&mut h, families(80)[0].1);
    h.host.finish(flow);
    h.drive();
    assert!(h.child.at_eof(socket));
    h.child.close(socket);
    h.drive();
    assert_eq!(h.host.tcp(flow).closed, Some(false));
}

// Resets.

#[test]
fn a_reset_of_the_child_resets_the_host() {
    on_every_link(|mut h, remote| {
        let (socket, flow) = open(&mut h, remote);
        h.child.abort(socket);
        h.drive();
        assert_eq!(h.host.tcp(flow).closed, Some(true));
        assert_eq!(h.stack.flows().count(), 0);
        assert_eq!(h.stack.stats().tcp_reset, 1);
    });
}

#[test]
fn a_reset_of_the_host_resets_the_child() {
    on_every_link(|mut h, remote| {
        let (socket, flow) = open(&mut h, remote);
        h.host.reset(flow);
        h.drive();
        assert_eq!(h.child.state(socket), State::Closed);
        assert_eq!(h.host.tcp(flow).closed, Some(true));
        assert_eq!(h.stack.stats().tcp_reset, 1);
    });
}

#[test]
fn a_crashed_child_that_connects_anew_gets_a_new_connection() {
    let mut h = Harness::default();
    let remote = families(80)[0].1;
    let old = h.child.connect_from(5555, remote);
    h.drive();
    let old_flow = h.host.last_flow();
    h.child.forget(old);
    let new = h.child.connect_from(5555, remote);
    h.drive_until(|h| h.child.state(new) == State::Established);
    assert_ne!(h.host.last_flow(), old_flow);
    assert_eq!(h.host.tcp(old_flow).closed, Some(true));
}

// TIME-WAIT.

#[test]
fn the_same_four_tuple_connects_again_at_once() {
    on_every_link(|mut h, remote| {
        for round in 0..20u8 {
            let socket = h.child.connect_from(7777, remote);
            h.drive_until(|h| h.child.state(socket) == State::Established);
            h.drive();
            let flow = h.host.last_flow();
            // The host finishes first, so the engine's side is the one that would wait.
            h.host.send(flow, &[round]);
            h.host.finish(flow);
            h.drive();
            assert_eq!(h.child.read(socket), [round]);
            h.child.close(socket);
            h.drive();
            assert_eq!(h.child.state(socket), State::Closed, "the last ACK has come");
            assert_eq!(h.host.tcp(flow).closed, Some(false));
            h.child.forget(socket);
        }
        assert_eq!(h.host.tcp.len(), 20);
        assert_eq!(h.stack.stats().all_drops().count(), 0);
    });
}

/// In one batch: nobody has looked at the end yet when the next beginning comes.
#[test]
fn the_ports_of_a_connection_that_was_reset_are_the_nexts_at_once() {
    for (child, remote) in families(80) {
        let mut h = Harness::scripted(config(), CAPABILITIES[0]);
        h.inject(&Segment::syn(child, remote, 1460).frame()).unwrap();
        let answer = h.seen_one().tcp();
        let (sequence, acknowledgement) = (answer.acknowledgement, answer.sequence.wrapping_add(1));
        let ack = Segment { sequence, acknowledgement, ..Segment::new(child, remote, Tcp::ACK) };
        h.inject(&ack.frame()).unwrap();
        let old = h.host.last_flow();
        let reset = Segment { flags: Tcp::RST | Tcp::ACK, ..ack };
        let syn = Segment { sequence: 77_000, ..Segment::syn(child, remote, 1460) };
        for segment in [&reset, &syn] {
            let mut bytes = segment.frame();
            let frame = crate::Frame { bytes: &mut bytes, offload: Offload::default(), slot: 0 };
            h.stack.handle_frame(h.now, frame).unwrap();
        }
        let answer = h.seen_one().tcp();
        assert_eq!((answer.flags, answer.acknowledgement), (Tcp::SYN | Tcp::ACK, 77_001), "{remote}");
        assert_eq!(h.host.tcp(old).closed, Some(true));
        assert_ne!(h.host.last_flow(), old);
        assert_eq!(h.stack.flows().count(), 1);
    }
}

// Back-pressure.

#[test]
fn a_stalled_host_stops_the_child_after_one_ring() {
    on_every_link(|mut h, remote| {
        h.host.appetite = 1000;
        let (socket, flow) = open(&mut h, remote);
        let memory = h.stack.buffer_bytes();
        let data = Random::new(5).bytes(2 << 20);
        let mut sent = 0;
        let end = h.now + Duration::from_secs(20);
        h.drive_until(|h| {
            sent += h.child.write(socket, &data[sent..]);
            h.now >= end
        });
        assert_eq!(h.host.tcp(flow).received.len(), 1000);
        // The engine's ring, the child's own, and what was written.
        assert!(sent <= (256 << 10) + (128 << 10) + 1000, "{sent} bytes were taken");
        assert_eq!(h.stack.buffer_bytes(), memory);
        h.host.feed_appetite(flow, usize::MAX);
        h.drive_until(|h| {
            sent += h.child.write(socket, &data[sent..]);
            h.host.tcp(flow).received.len() == data.len()
        });
        assert!(h.host.tcp(flow).received == data);
    });
}

#[test]
fn a_stalled_child_stops_reading_from_the_host() {
    on_every_link(|mut h, remote| {
        let (socket, flow) = open(&mut h, remote);
        let data = Random::new(6).bytes(2 << 20);
        h.host.send(flow, &data);
        h.drive_for(Duration::from_secs(20));
        let taken = data.len() - h.host.unread(flow);
        // The child's ring, and what the window allows after as much was acknowledged.
        assert!(taken <= (128 << 10) + (256 << 10), "{taken} bytes were read");
        let mut got = Vec::new();
        h.drive_until(|h| {
            got.extend(h.child.read(socket));
            got.len() == data.len()
        });
        assert!(got == data);
    });
}

#[test]
fn a_window_that_reopens_goes_on_at_once() {
    on_every_link(|mut h, remote| {
        let (socket, flow) = open(&mut h, remote);
        h.host.send(flow, &Random::new(7).bytes(600_000));
        h.drive_for(Duration::from_secs(3));
        let stalled = h.now;
        let mut got = 0;
        h.drive_until(|h| {
            got += h.child.read(socket).len();
            got == 600_000
        });
        assert!(h.now - stalled < Duration::from_millis(500), "waited for a probe: {}", h.now - stalled);
    });
}

/// smoltcp 0.14 ignores window updates in LAST-ACK; see `tcp/relay.rs`.
#[test]
fn a_child_that_half_closed_and_stalled_goes_on_at_once() {
    on_every_link(|mut h, remote| {
        let (socket, flow) = open(&mut h, remote);
        h.child.close(socket);
        h.drive();
        h.host.send(flow, &Random::new(8).bytes(400_000));
        h.host.finish(flow);
        h.drive_for(Duration::from_secs(3));
        let stalled = h.now;
        let mut got = 0;
        h.drive_until(|h| {
            got += h.child.read(socket).len();
            got == 400_000 && h.child.at_eof(socket)
        });
        assert!(h.now - stalled < Duration::from_millis(500), "waited for a probe: {}", h.now - stalled);
        h.drive();
        assert_eq!(h.host.tcp(flow).closed, Some(false));
    });
}

#[test]
fn many_small_reads_of_the_child_deliver_everything() {
    let mut h = Harness::default();
    h.child.set_rings(4096);
    let (socket, flow) = open(&mut h, families(80)[1].1);
    let data = Random::new(9).bytes(100_000);
    h.host.send(flow, &data);
    h.host.finish(flow);
    let mut got = Vec::new();
    h.drive_until(|h| {
        got.extend(h.child.read_some(socket, 777));
        h.child.at_eof(socket)
    });
    assert!(got == data);
}

/// smoltcp throws away what was not read when TIME-WAIT ends, after 10 s.
#[test]
fn a_host_that_stalls_after_both_have_finished_gets_the_rest() {
    on_every_link(|mut h, remote| {
        h.host.appetite = 0;
        let (socket, flow) = open(&mut h, remote);
        h.host.finish(flow);
        h.drive();
        h.child.write(socket, b"the end of a long story");
        h.child.close(socket);
        h.drive_for(Duration::from_secs(100));
        assert_eq!(h.host.tcp(flow).closed, None);
        h.host.feed_appetite(flow, usize::MAX);
        h.drive();
        assert_eq!(h.host.tcp(flow).received, b"the end of a long story");
        assert_eq!(h.host.tcp(flow).closed, Some(false));
        assert_eq!(h.stack.flows().count(), 0);
    });
}

#[test]
fn a_host_that_stalls_after_the_child_was_first_to_finish_gets_the_rest() {
    on_every_link(|mut h, remote| {
        h.host.appetite = 0;
        let (socket, flow) = open(&mut h, remote);
        h.child.write(socket, b"the end of a long story");
        h.child.close(socket);
        h.drive();
        h.host.finish(flow);
        h.drive_for(Duration::from_secs(100));
        assert_eq!(h.host.tcp(flow).closed, None);
        h.host.feed_appetite(flow, usize::MAX);
        h.drive();
        assert_eq!(h.host.tcp(flow).received, b"the end of a long story");
        assert_eq!(h.host.tcp(flow).closed, Some(false));
    });
}

// Limits.

#[test]
fn a_full_flow_table_resets_further_connections() {
    let limits = crate::config::Limits { flows: 2, ..crate::config::Limits::default() };
    let mut h = Harness::new(config().limits(limits), ALL_OFFLOADS);
    let remote = families(80)[0].1;
    let first = h.child.connect(remote);
    h.child.connect(remote);
    h.drive();
    let third = h.child.connect(remote);
    h.drive();
    assert_eq!(h.child.state(third), State::Closed);
    assert_eq!(h.stack.stats().drops(DropReason::FlowTableFull), 1);
    h.child.abort(first);
    h.drive();
    let fourth = h.child.connect(remote);
    h.drive();
    assert_eq!(h.child.state(fourth), State::Established);
}

#[test]
fn too_many_half_open_connections_wait_for_their_turn() {
    let limits = crate::config::Limits { half_open: 1, ..crate::config::Limits::default() };
    let mut h = Harness::new(config().limits(limits), ALL_OFFLOADS);
    h.host.default_plan = ConnectPlan::Hold;
    let remote = families(80)[0].1;
    let first = h.child.connect(remote);
    h.drive();
    let second = h.child.connect(remote);
    h.drive();
    assert_eq!(h.stack.stats().drops(DropReason::HalfOpenFull), 1);
    assert_eq!(h.child.state(second), State::SynSent);
    let flow = h.host.last_flow();
    h.host.finish_connect(flow, Ok(()));
    h.drive();
    assert_eq!(h.child.state(first), State::Established);
    h.host.default_plan = ConnectPlan::Accept;
    h.drive_until(|h| h.child.state(second) == State::Established);
}

#[test]
fn memory_that_is_used_up_resets_further_connections_and_comes_back() {
    let limits = crate::config::Limits { buffer_bytes: 1 << 20, ..crate::config::Limits::default() };
    let mut h = Harness::new(config().limits(limits), ALL_OFFLOADS);
    h.child.set_rings(4096);
    let remote = families(80)[0].1;
    let mut sockets = Vec::new();
    while h.stack.stats().drops(DropReason::BufferMemoryFull) == 0 {
        sockets.push(h.child.connect(remote));
        h.drive();
        assert!(h.stack.buffer_bytes() <= 1 << 20);
        assert!(sockets.len() < 100);
    }
    let refused = sockets.pop().unwrap();
    assert_eq!(h.child.state(refused), State::Closed);
    for socket in sockets {
        h.child.abort(socket);
    }
    h.drive();
    assert_eq!(h.stack.buffer_bytes(), 0);
}

// Timers.

#[test]
fn a_silent_half_closed_flow_ends() {
    let mut h = Harness::default();
    let (socket, flow) = open(&mut h, families(80)[0].1);
    h.child.close(socket);
    h.drive();
    h.child.forget(socket);
    h.drive_for(h.stack.config().timeouts().tcp_half_closed + Duration::from_secs(100));
    assert_eq!(h.host.tcp(flow).closed, Some(true));
    assert_eq!(h.stack.flows().count(), 0);
}

#[test]
fn a_child_that_never_acknowledges_the_last_fin_is_given_up() {
    let mut h = Harness::scripted(config(), ALL_OFFLOADS);
    let (child, remote) = families(80)[0];
    let mut peer = super::tcp_script::Peer::open(&mut h, child, remote);
    h.inject(&peer.segment(crate::packet::Tcp::FIN | crate::packet::Tcp::ACK, b"").frame()).unwrap();
    h.host.finish(peer.flow);
    h.settle();
    assert_eq!(h.stack.flows().count(), 1);
    peer.sequence += 1;
    h.drive_for(h.stack.config().timeouts().tcp_closing + Duration::from_secs(5));
    assert_eq!(h.stack.flows().count(), 0);
    assert!(h.host.tcp(peer.flow).closed.is_some());
}

#[test]
fn keepalive_finds_a_child_that_is_gone() {
    let timeouts = crate::config::Timeouts {
        tcp_keepalive: Duration::from_secs(45),
        ..crate::config::Timeouts::default()
    };
    let mut h = Harness::new(config().timeouts(timeouts), ALL_OFFLOADS);
    let (socket, flow) = open(&mut h, families(80)[0].1);
    h.drive_for(Duration::from_secs(1000));
    assert_eq!(h.stack.flows().count(), 1, "a child that answers probes is kept");
    h.child.forget(socket);
    // Its kernel answers a probe with a RST; smoltcp forgets neighbours and may miss one for that.
    h.drive_for(Duration::from_secs(100));
    assert_eq!(h.stack.flows().count(), 0);
    assert_eq!(h.host.tcp(flow).closed, Some(true));
}

#[test]
fn an_idle_flow_wakes_nobody() {
    let mut h = Harness::default();
    open(&mut h, families(80)[0].1);
    h.drive_for(Duration::from_secs(10));
    let end = h.now + Duration::from_secs(3600);
    let mut wakeups = 0;
    h.drive_until(|h| {
        wakeups += usize::from(h.stack.poll_timeout().is_some_and(|at| at <= h.now));
        h.now >= end
    });
    // Router advertisements, and the timer wheel's levels.
    assert!(wakeups <= 24, "{wakeups} in an hour");
}

// Bookkeeping.

#[test]
fn flows_are_listed_with_their_bytes() {
    let mut h = Harness::default();
    let remote = families(80)[0].1;
    let (socket, flow) = open(&mut h, remote);
    h.child.write(socket, b"12345");
    h.host.send(flow, b"123");
    h.drive();
    let info = h.stack.flows().next().unwrap();
    assert_eq!((info.id, info.key.remote, info.phase), (flow, remote, Some(Phase::Open)));
    assert_eq!((info.bytes_from_child, info.bytes_to_child), (5, 3));
}

#[test]
fn events_of_flows_that_are_gone_are_ignored() {
    let mut h = Harness::default();
    let (socket, flow) = open(&mut h, families(80)[0].1);
    h.child.abort(socket);
    h.drive();
    for event in [
        crate::action::HostEvent::Readable,
        crate::action::HostEvent::Connected,
        crate::action::HostEvent::Reset,
        crate::action::HostEvent::ConnectFailed(ConnectError::Refused),
    ] {
        h.host.report(flow, event);
    }
    h.drive();
    h.stack.with_host_tx(h.now, flow, |_| HostIo::Failed);
    h.stack.with_host_rx(h.now, flow, |_| HostIo::Failed);
    assert_eq!(h.stack.poll_action(), None);
}

#[test]
fn a_hundred_flows_do_not_mix() {
    let mut h = Harness::default();
    h.host.echo = true;
    h.child.set_rings(8192);
    let sockets: Vec<_> =
        (0..100).map(|n| h.child.connect(families(1000 + n)[usize::from(n) % 2].1)).collect();
    // smoltcp asks for a neighbour once a second.
    h.drive_for(Duration::from_secs(3));
    for (n, &socket) in sockets.iter().enumerate() {
        h.child.write(socket, &[n as u8; 50]);
    }
    h.drive();
    for (n, &socket) in sockets.iter().enumerate() {
        assert_eq!(h.child.read(socket), [n as u8; 50]);
        h.child.close(socket);
    }
    h.drive();
    assert_eq!(h.stack.flows().count(), 0);
    let closes = h.host.actions.iter().filter(|a| matches!(a, Action::Close { abort: false, .. })).count();
    assert_eq!(closes, 100);
}
