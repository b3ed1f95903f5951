//! DNS through whole frames, over UDP and TCP; hickory-proto writes and reads the messages.

use std::net::Ipv4Addr;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType, rdata::A};
use hickory_proto::serialize::binary::BinDecodable;

use super::*;
use crate::action::{ConnectError, DatagramKind};
use crate::config::DnsConfig;
use crate::error::DropReason;
use crate::testing::child::ChildTcp;
use crate::testing::frames::{DNS, DNS6, Seen};
use crate::testing::host::ConnectPlan;
use crate::testing::{Harness, config};
use crate::time::Duration;

fn servers() -> [SocketAddr; 2] {
    [socket([192, 0, 2, 1], 53), socket([192, 0, 2, 2], 53)]
}

fn dns_config() -> DnsConfig {
    DnsConfig {
        servers: servers().to_vec(),
        names: vec![("db.test".into(), [10, 9, 8, 7].into())],
        ..DnsConfig::default()
    }
}

fn scripted() -> Harness {
    Harness::scripted(config().dns(dns_config()), ALL_OFFLOADS)
}

fn query(id: u16, name: &str) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message.to_vec().unwrap()
}

fn answer(question: &[u8], address: [u8; 4]) -> Vec<u8> {
    let mut message = Message::from_bytes(question).unwrap();
    message.metadata.message_type = MessageType::Response;
    let name = message.queries[0].name().clone();
    message.add_answer(Record::from_rdata(name, 60, RData::A(A(Ipv4Addr::from(address)))));
    message.to_vec().unwrap()
}

fn address_in(message: &[u8]) -> Option<Ipv4Addr> {
    let message = Message::from_bytes(message).unwrap();
    message.answers.iter().find_map(|record| match record.data {
        RData::A(A(address)) => Some(address),
        _ => None,
    })
}

#[track_caller]
fn payload(seen: Seen) -> Vec<u8> {
    match seen {
        Seen::Udp { payload, .. } => payload,
        other => panic!("not UDP: {other:?}"),
    }
}

#[test]
fn a_query_is_forwarded_with_another_id_and_answered_with_its_own() {
    for (child, server) in [(CHILD.into(), DNS.into()), (IpAddr::from(CHILD6), IpAddr::from(DNS6))] {
        let mut h = scripted();
        let (child, server) = (socket(child, 40_000), socket(server, 53));
        let question = query(0x1234, "example.org.");
        h.inject(&frames::udp(child, server, &question)).unwrap();
        let flow = h.host.last_flow();
        assert_eq!(h.host.datagram[&flow].kind, DatagramKind::UdpConnected(servers()[0]));
        let forwarded = h.host.take_sent().remove(0).payload;
        assert_eq!(forwarded[2..], question[2..]);
        let reply = answer(&forwarded, [1, 2, 3, 4]);
        h.datagram(flow, servers()[0], &reply, None).unwrap();
        let Seen::Udp { src, dst, payload } = h.seen_one() else { panic!() };
        assert_eq!((src, dst), (server, child));
        assert_eq!(Message::from_bytes(&payload).unwrap().metadata.id, 0x1234);
        assert_eq!(address_in(&payload), Some([1, 2, 3, 4].into()));
        assert!(h.host.datagram[&flow].closed);
        let stats = h.stack.stats();
        assert_eq!((stats.dns.packets_from_child, stats.dns.packets_to_child), (1, 1));
        assert_eq!(stats.udp.packets_from_child, 0, "counted once");
        // A second answer to the same question finds nobody.
        assert_eq!(h.datagram(flow, servers()[0], &reply, None), Err(DropReason::NoFlow));
    }
}

#[test]
fn an_answer_with_another_id_or_question_is_dropped() {
    let mut h = scripted();
    h.inject(&frames::udp(socket(CHILD, 1), socket(DNS, 53), &query(7, "example.org."))).unwrap();
    let flow = h.host.last_flow();
    let forwarded = h.host.take_sent().remove(0).payload;
    let mut wrong_id = answer(&forwarded, [6, 6, 6, 6]);
    wrong_id[1] ^= 1;
    let id = u16::from_be_bytes([forwarded[0], forwarded[1]]);
    let wrong_name = answer(&query(id, "example.com."), [6, 6, 6, 6]);
    for wrong in [wrong_id, wrong_name, forwarded.clone()] {
        assert_eq!(h.datagram(flow, servers()[0], &wrong, None), Err(DropReason::DnsMismatch));
    }
    assert_eq!(h.seen(), []);
    h.datagram(flow, servers()[0], &answer(&forwarded, [1, 1, 1, 1]), None).unwrap();
    assert_eq!(address_in(&payload(h.seen_one())), Some([1, 1, 1, 1].into()));
}

#[test]
fn a_silent_server_is_followed_by_the_next_and_by_servfail() {
    let mut h = scripted();
    h.inject(&frames::udp(socket(CHILD, 1), socket(DNS, 53), &query(7, "example.org."))).unwrap();
    assert_eq!(h.host.take_sent()[0].remote, servers()[0]);
    h.drive_for(Duration::from_millis(2100));
    let second = h.host.last_flow();
    assert_eq!(h.host.datagram[&second].kind, DatagramKind::UdpConnected(servers()[1]));
    h.drive_for(Duration::from_secs(30));
    // Router advertisements come, too.
    let failure = h.seen().into_iter().find(|seen| matches!(seen, Seen::Udp { .. })).expect("an answer");
    let failure = Message::from_bytes(&payload(failure)).unwrap();
    assert_eq!((failure.metadata.id, failure.metadata.response_code), (7, ResponseCode::ServFail));
    assert_eq!(h.stack.stats().dns_servfail, 1);
    assert!(h.host.datagram.values().all(|socket| socket.closed));
}

#[test]
fn static_names_are_answered_without_a_server() {
    let mut h = scripted();
    for (name, address) in [("db.test.", [10, 9, 8, 7]), ("HOST.internal.", [10, 0, 42, 2])] {
        h.inject(&frames::udp(socket(CHILD, 1), socket(DNS, 53), &query(9, name))).unwrap();
        assert_eq!(address_in(&payload(h.seen_one())), Some(address.into()), "{name}");
    }
    assert_eq!(h.host.actions, []);
    assert_eq!(h.stack.stats().dns_static, 2);
}

#[test]
fn servers_that_change_are_used_from_the_next_query_on() {
    let mut h = Harness::scripted(config(), ALL_OFFLOADS);
    h.stack.set_dns_servers(&servers()[..1]);
    h.inject(&frames::udp(socket(CHILD, 1), socket(DNS, 53), &query(1, "a.test."))).unwrap();
    h.stack.set_dns_servers(&servers()[1..]);
    h.inject(&frames::udp(socket(CHILD, 2), socket(DNS, 53), &query(2, "b.test."))).unwrap();
    let remotes: Vec<_> = h.host.take_sent().iter().map(|sent| sent.remote).collect();
    assert_eq!(remotes[1], servers()[1]);
}

#[test]
fn a_large_answer_is_fragmented() {
    let mut h = scripted();
    h.inject(&frames::udp(socket(CHILD, 1), socket(DNS, 53), &edns_query())).unwrap();
    let flow = h.host.last_flow();
    let mut reply = h.host.take_sent().remove(0).payload;
    reply[2] |= 0x80;
    reply.resize(3000, 0);
    h.datagram(flow, servers()[0], &reply, None).unwrap();
    let seen = h.seen();
    assert!(seen.len() >= 2 && seen.iter().all(|seen| matches!(seen, Seen::Fragment(_))), "{seen:?}");
}

fn edns_query() -> Vec<u8> {
    let mut message = Message::from_bytes(&query(5, "big.test.")).unwrap();
    let mut edns = hickory_proto::op::Edns::new();
    edns.set_max_payload(4096);
    message.set_edns(edns);
    message.to_vec().unwrap()
}

// TCP.

fn open(h: &mut Harness) -> ChildTcp {
    let child = h.child.connect(socket(DNS, 53));
    h.drive();
    child
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut framed = (message.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    framed
}

#[test]
fn queries_over_tcp_come_in_pieces_and_pipelined() {
    let mut h = Harness::new(config().dns(dns_config()), ALL_OFFLOADS);
    let child = open(&mut h);
    let mut stream = framed(&query(1, "db.test."));
    stream.extend(framed(&query(2, "db.test.")));
    stream.extend(framed(&query(3, "host.internal.")));
    for byte in &stream {
        h.child.write(child, &[*byte]);
        h.drive();
    }
    let mut got = h.child.read(child);
    let mut ids = Vec::new();
    while !got.is_empty() {
        let len = usize::from(u16::from_be_bytes([got[0], got[1]]));
        ids.push(Message::from_bytes(&got[2..2 + len]).unwrap().metadata.id);
        got.drain(..2 + len);
    }
    assert_eq!(ids, [1, 2, 3]);
    // All at once.
    h.child.write(child, &stream);
    h.drive();
    assert!(!h.child.read(child).is_empty());
    h.child.close(child);
    h.drive();
    assert!(h.child.at_eof(child));
    assert_eq!(h.stack.flows().count(), 0);
    assert_eq!(h.stack.buffer_bytes(), 0);
}

#[test]
fn a_query_over_tcp_is_asked_over_tcp() {
    let mut h = Harness::new(config().dns(dns_config()), ALL_OFFLOADS);
    let child = open(&mut h);
    h.child.write(child, &framed(&query(77, "example.org.")));
    h.child.close(child);
    h.drive();
    let flow = h.host.last_flow();
    assert_eq!(h.host.tcp(flow).remote, Some(servers()[0]));
    let forwarded = h.host.tcp(flow).received.clone();
    let reply = framed(&answer(&forwarded[2..], [4, 3, 2, 1]));
    let (first, second) = reply.split_at(9);
    h.host.send(flow, first);
    h.drive();
    h.host.send(flow, second);
    h.drive();
    let got = h.child.read(child);
    assert_eq!(address_in(&got[2..]), Some([4, 3, 2, 1].into()));
    assert!(h.child.at_eof(child), "a child that finished is answered and closed");
    assert!(h.host.tcp(flow).closed.is_some());
    assert_eq!(h.stack.flows().count(), 0);
}

#[test]
fn a_server_that_refuses_tcp_is_followed_by_the_next() {
    let mut h = Harness::new(config().dns(dns_config()), ALL_OFFLOADS);
    h.host.plans.insert(servers()[0], ConnectPlan::Fail(ConnectError::Refused));
    let child = open(&mut h);
    h.child.write(child, &framed(&query(77, "example.org.")));
    h.drive();
    let flow = h.host.last_flow();
    assert_eq!(h.host.tcp(flow).remote, Some(servers()[1]));
    // It goes away in the middle of its answer.
    h.host.send(flow, &[0, 50, 1, 2]);
    h.host.finish(flow);
    h.drive_for(Duration::from_secs(30));
    let got = h.child.read(child);
    assert_eq!(Message::from_bytes(&got[2..]).unwrap().metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn nonsense_over_tcp_resets_the_connection() {
    let mut h = Harness::new(config().dns(dns_config()), ALL_OFFLOADS);
    for nonsense in [vec![0, 0], framed(&[1, 2, 3]), framed(&[0xff; 300])] {
        let child = open(&mut h);
        h.child.write(child, &nonsense);
        h.drive();
        assert!(!h.child.socket(child).is_open(), "{nonsense:02x?}");
        assert_eq!(h.stack.flows().count(), 0);
    }
}

#[test]
fn a_child_that_goes_away_takes_its_queries_with_it() {
    let mut h = Harness::new(config().dns(dns_config()), ALL_OFFLOADS);
    let child = open(&mut h);
    h.child.write(child, &framed(&query(77, "example.org.")));
    h.drive();
    let flow = h.host.last_flow();
    h.child.abort(child);
    h.drive();
    let forwarded = h.host.tcp(flow).received.clone();
    h.host.send(flow, &framed(&answer(&forwarded[2..], [4, 3, 2, 1])));
    h.drive_for(Duration::from_secs(60));
    assert_eq!(h.stack.flows().count(), 0);
    assert!(h.host.tcp(flow).closed.is_some());
}
