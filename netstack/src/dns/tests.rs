//! Scripts with explicit time. Queries are built and answers judged by hickory-proto.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::str::FromStr;

use hickory_proto::op::{
    Edns as HickoryEdns, Message as Judge, MessageType, OpCode, Query as JudgeQuery, ResponseCode,
};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record as JudgeRecord, RecordType};
use proptest::prelude::*;

use super::*;
use crate::config::{DnsConfig, Limits, Timeouts};

// === forwarding ===

#[test]
fn a_query_is_forwarded_raw_and_its_answer_comes_back_with_the_id_restored() {
    let mut t = Script::new(&["10.0.0.1:53"]);
    let types = [RecordType::HTTPS, RecordType::TXT, RecordType::DNSKEY, RecordType::Unknown(65432)];
    for (index, kind) in types.into_iter().enumerate() {
        let mut query = question("Www.Example.ORG.", kind);
        query.metadata.id = index as u16;
        query.metadata.checking_disabled = true;
        query.metadata.authentic_data = true;
        let mut edns = HickoryEdns::new();
        edns.set_max_payload(4096).set_dnssec_ok(true);
        query.set_edns(edns);
        let query = query.to_vec().unwrap();
        t.query(udp(1), &query).unwrap();
        let ask = t.expect_ask("10.0.0.1:53");
        assert_eq!((ask.transport, &ask.message[2..]), (DnsTransport::Udp, &query[2..]));

        let answer = answer_to(&ask.message, ResponseCode::NoError);
        t.answer(ask.query, &answer).unwrap();
        t.expect_abandon(ask.query);
        let message = t.expect_answer(udp(1), AnswerKind::Forwarded);
        assert_eq!((&message[..2], &message[2..]), (&query[..2], &answer[2..]));
        t.expect_idle();
    }
}

#[test]
fn a_tcp_query_is_asked_by_tcp_and_truncated_answers_pass() {
    let mut t = Script::new(&["10.0.0.1:53"]);
    t.query(tcp_flow(1), &a_query(1)).unwrap();
    let ask = t.expect_ask("10.0.0.1:53");
    assert_eq!(ask.transport, DnsTransport::Tcp);

    t.query(udp(1), &a_query(2)).unwrap();
    let ask = t.expect_ask("10.0.0.1:53");
    let mut answer = answer_to(&ask.message, ResponseCode::NoError);
    answer[2] |= 0x02;
    t.answer(ask.query, &answer).unwrap();
    t.expect_abandon(ask.query);
    assert!(judge(&t.expect_answer(udp(1), AnswerKind::Forwarded)).metadata.truncation);
}

#[test]
fn opcodes_nobody_knows_are_forwarded_too() {
    let mut t = Script::new(&["10.0.0.1:53"]);
    // Opcode 6 (DSO) without any section; opcode 9 with two "questions" that are none.
    for query in
        [vec![0, 1, 0x30, 0, 0, 0, 0, 0, 0, 0, 0, 0], vec![0, 2, 0x48, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0xff]]
    {
        t.query(udp(1), &query).unwrap();
        let ask = t.expect_ask("10.0.0.1:53");
        assert_eq!(ask.message[2..], query[2..]);
        let mut answer = ask.message.clone();
        answer[2] |= 0x80;
        t.answer(ask.query, &answer).unwrap();
        t.expect_abandon(ask.query);
        assert_eq!(t.expect_answer(udp(1), AnswerKind::Forwarded)[..2], query[..2]);
    }
}

#[test]
fn an_answer_to_update_needs_no_question() {
    let mut t = Script::new(&["10.0.0.1:53"]);
    let mut update = question("example.org.", RecordType::SOA);
    update.metadata.op_code = OpCode::Update;
    t.query(udp(1), &update.to_vec().unwrap()).unwrap();
    let ask = t.expect_ask("10.0.0.1:53");
    let answer = Judge::response(judge(&ask.message).metadata.id, OpCode::Update).to_vec().unwrap();
    t.answer(ask.query, &answer).unwrap();
    t.expect_abandon(ask.query);
    t.expect_answer(udp(1), AnswerKind::Forwarded);
}

#[test]
fn ids_differ_between_seeds_and_do_not_repeat_soon() {
    let ids = |seed| {
        let mut ids = IdGenerator { seed, counter: 0 };
        (0..1000).map(|_| ids.next()).collect::<Vec<_>>()
    };
    assert_eq!(ids(1), ids(1));
    assert_ne!(ids(1), ids(2));
    // A thousand of 65536 collide about 8 times by chance.
    assert!(ids(1).into_iter().collect::<BTreeSet<_>>().len() > 970);
}

#[test]
fn a_retransmission_does_not_ask_twice_but_another_question_does() {
    let mut t = Script::new(&["10.0.0.1:53"]);
    t.query(udp(1), &a_query(7)).unwrap();
    let ask = t.expect_ask("10.0.0.1:53");
    t.query(udp(1), &a_query(7)).unwrap();
    t.expect_idle();
    // Another id, question or port is another query.
    t.query(udp(1), &a_query(8)).unwrap();
    t.expect_ask("10.0.0.1:53");
    let mut other = question("example.org.", RecordType::AAAA);
    other.metadata.id = 7;
    t.query(udp(1), &other.to_vec().unwrap()).unwrap();
    t.expect_ask("10.0.0.1:53");
    t.query(udp(2), &a_query(7)).unwrap();
    t.expect_ask("10.0.0.1:53");
    // Once answered, the same may be asked again.
    t.answer(ask.query, &answer_to(&ask.message, ResponseCode::NoError)).unwrap();
    t.expect_abandon(ask.query);
    t.expect_answer(udp(1), AnswerKind::Forwarded);
    t.query(udp(1), &a_query(7)).unwrap();
    t.expect_ask("10.0.0.1:53");
}

// === answers that are none ===

#[test]
fn an_answer_that_does_not_match_is_dropped_and_the_ask_goes_on() {
    let mut t = Script::new(&["10.0.0.1:53"]);
    t.query(udp(1), &a_query(1)).unwrap();
    let ask = t.expect_ask("10.0.0.1:53");
    let good = answer_to(&ask.message, ResponseCode::NoError);

    let mut wrong_id = good.clone();
    wrong_id[1] ^= 1;
    let mut no_response = good.clone();
    no_response[2] &= !0x80;
    let mut wrong_opcode = good.clone();
    wrong_opcode[2] |= 0x10;
    let mut wrong_name = good.clone();
    wrong_name[HEADER_LEN + 1] ^= 1;
    let mut wrong_type = good.clone();
    wrong_type[HEADER_LEN + 14] ^= 4;
    // A header alone may say that something is wrong, but not that a name does not exist.
    let bare = |rcode: u8| [&good[..3], &[0x80 | rcode, 0, 0, 0, 0, 0, 0, 0, 0]].concat();
    for bad in [
        wrong_id,
        no_response,
        wrong_opcode,
        wrong_name,
        wrong_type,
        bare(0),
        bare(3),
        vec![],
        good[..11].to_vec(),
    ] {
        assert_eq!(t.answer(ask.query, &bad), Err(DropReason::DnsMismatch), "{bad:?}");
    }
    t.expect_idle();

    // The case of the question is the server's choice.
    let mut upper = good.clone();
    upper[HEADER_LEN + 1] = b'E';
    t.answer(ask.query, &upper).unwrap();
    t.expect_abandon(ask.query);
    assert_eq!(t.expect_answer(udp(1), AnswerKind::Forwarded)[HEADER_LEN + 1], b'E');
    assert_eq!(t.answer(ask.query, &good), Err(DropReason::DnsMismatch));
    t.expect_idle();
}

#[test]
fn an_error_without_question_is_an_answer() {
    let mut t = Script::new(&["10.0.0.1:53"]);
    t.query(udp(1), &a_query(1)).unwrap();
    let ask = t.expect_ask("10.0.0.1:53");
    let answer = [&ask.message[..2], &[0x81, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]].concat();
    t.answer(ask.query, &answer).unwrap();
    t.expect_abandon(ask.query);
    let message = judge(&t.expect_answer(udp(1), AnswerKind::Forwarded));
    assert_eq!(message.metadata.response_code, ResponseCode::FormErr);
}

// === the next server ===

#[test]
fn silent_servers_are_asked_in_turn_twice_and_servfail_ends_it() {
    let mut t = Script::new(&["10.0.0.1:53", "10.0.0.2:53"]);
    let mut query = question("example.org.", RecordType::A);
    query.set_edns(HickoryEdns::new());
    t.query(udp(1), &query.to_vec().unwrap()).unwrap();
    let mut asks = Vec::new();
    for server in ["10.0.0.1:53", "10.0.0.2:53", "10.0.0.1:53", "10.0.0.2:53"] {
        asks.push(t.expect_ask(server));
        t.expect_idle();
        t.pass_timeout();
    }
    assert_eq!(t.now, Instant::from_secs(8));
    assert_eq!(asks.iter().map(|ask| ask.query).collect::<BTreeSet<_>>().len(), 4);
    assert_ne!(asks[0].message[..2], asks[2].message[..2]);
    for ask in &asks {
        t.expect_abandon(ask.query);
    }
    let message = judge(&t.expect_answer(udp(1), AnswerKind::Servfail));
    assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(message.metadata.message_type, MessageType::Response);
    assert!(message.metadata.recursion_available && message.metadata.recursion_desired);
    assert!(!message.metadata.authoritative);
    assert_eq!((message.metadata.id, &message.queries), (query.metadata.id, &query.queries));
    assert!(message.edns.is_some());
    assert_eq!((t.dns.poll_timeout(), t.dns.pending()), (None, 0));
}

#[test]
fn a_slow_answer_is_good_after_the_next_server_was_asked() {
    let mut t = Script::new(&["10.0.0.1:53", "10.0.0.2:53"]);
    t.query(udp(1), &a_query(1)).unwrap();
    let slow = t.expect_ask("10.0.0.1:53");
    t.pass_timeout();
    let other = t.expect_ask("10.0.0.2:53");
    t.answer(slow.query, &answer_to(&slow.message, ResponseCode::NoError)).unwrap();
    t.expect_abandon(slow.query);
    t.expect_abandon(other.query);
    t.expect_answer(udp(1), AnswerKind::Forwarded);
    t.expect_idle();
    assert_eq!(t.dns.poll_timeout(), None);
}

#[test]
fn a_failed_socket_makes_the_next_server_due_at_once() {
    let mut t = Script::new(&["127.0.0.53:53", "10.0.0.2:53"]);
    t.query(udp(1), &a_query(1)).unwrap();
    let first = t.expect_ask("127.0.0.53:53");
    t.fail(first.query);
    t.expect_abandon(first.query);
    let second = t.expect_ask("10.0.0.2:53");
    t.fail(first.query);
    t.expect_idle();
    t.fail(second.query);
    t.expect_abandon(second.query);
    t.expect_answer(udp(1), AnswerKind::Servfail);
    // Refusals are quick: the order stays.
    t.query(udp(1), &a_query(2)).unwrap();
    t.expect_ask("127.0.0.53:53");
}

#[test]
fn tcp_asks_each_server_once() {
    let mut t = Script::new(&["10.0.0.1:53", "10.0.0.2:53"]);
    t.query(tcp_flow(1), &a_query(1)).unwrap();
    let first = t.expect_ask("10.0.0.1:53");
    t.pass_timeout();
    let second = t.expect_ask("10.0.0.2:53");
    t.pass_timeout();
    t.expect_abandon(first.query);
    t.expect_abandon(second.query);
    t.expect_answer(tcp_flow(1), AnswerKind::Servfail);
}

#[test]
fn a_server_that_declines_is_passed_over_and_its_answer_given_if_none_is_better() {
    for code in [ResponseCode::ServFail, ResponseCode::NotImp, ResponseCode::Refused] {
        let mut t = Script::new(&["10.0.0.1:53", "10.0.0.2:53"]);
        t.query(udp(1), &a_query(1)).unwrap();
        let first = t.expect_ask("10.0.0.1:53");
        t.answer(first.query, &answer_to(&first.message, code)).unwrap();
        t.expect_abandon(first.query);
        let second = t.expect_ask("10.0.0.2:53");
        t.pass_timeout();
        // Not the first again: it has said no.
        let again = t.expect_ask("10.0.0.2:53");
        t.pass_timeout();
        t.expect_abandon(second.query);
        t.expect_abandon(again.query);
        let message = judge(&t.expect_answer(udp(1), AnswerKind::Forwarded));
        assert_eq!((message.metadata.response_code, message.metadata.id), (code, 1));
    }
}

#[test]
fn nxdomain_is_an_answer() {
    let mut t = Script::new(&["10.0.0.1:53", "10.0.0.2:53"]);
    t.query(udp(1), &a_query(1)).unwrap();
    let ask = t.expect_ask("10.0.0.1:53");
    t.answer(ask.query, &answer_to(&ask.message, ResponseCode::NXDomain)).unwrap();
    t.expect_abandon(ask.query);
    t.expect_answer(udp(1), AnswerKind::Forwarded);
    t.expect_idle();
}

#[test]
fn an_old_ask_that_declines_does_not_hurry_the_younger_one() {
    let mut t = Script::new(&["10.0.0.1:53", "10.0.0.2:53"]);
    t.query(udp(1), &a_query(1)).unwrap();
    let first = t.expect_ask("10.0.0.1:53");
    t.pass_timeout();
    let second = t.expect_ask("10.0.0.2:53");
    t.answer(first.query, &answer_to(&first.message, ResponseCode::Refused)).unwrap();
    t.expect_abandon(first.query);
    t.expect_idle();
    t.fail(second.query);
    t.expect_abandon(second.query);
    t.expect_answer(udp(1), AnswerKind::Forwarded);
}

#[test]
fn a_silent_server_is_asked_last_for_a_while() {
    let mut t = Script::new(&["10.0.0.1:53", "10.0.0.2:53"]);
    t.query(udp(1), &a_query(1)).unwrap();
    t.expect_ask("10.0.0.1:53");
    t.pass_timeout();
    let second = t.expect_ask("10.0.0.2:53");
    t.answer(second.query, &answer_to(&second.message, ResponseCode::NoError)).unwrap();
    t.drain();
    t.now += SHUN_TIME - Duration::from_micros(1);
    t.query(udp(1), &a_query(2)).unwrap();
    t.expect_ask("10.0.0.2:53");
    t.now += Duration::from_micros(1);
    t.query(udp(1), &a_query(3)).unwrap();
    t.expect_ask("10.0.0.1:53");
}

#[test]
fn an_answer_ends_the_shunning() {
    let mut t = Script::new(&["10.0.0.1:53", "10.0.0.2:53"]);
    t.query(udp(1), &a_query(1)).unwrap();
    let first = t.expect_ask("10.0.0.1:53");
    t.pass_timeout();
    t.answer(first.query, &answer_to(&first.message, ResponseCode::NoError)).unwrap();
    t.drain();
    t.query(udp(1), &a_query(2)).unwrap();
    t.expect_ask("10.0.0.1:53");
}

#[test]
fn new_servers_serve_pending_queries() {
    let mut t = Script::new(&["10.0.0.1:53"]);
    t.query(udp(1), &a_query(1)).unwrap();
    t.expect_ask("10.0.0.1:53");
    t.dns.set_servers(&["10.9.0.1:53".parse().unwrap(), "10.9.0.1:53".parse().unwrap()]);
    t.expect_idle();
    t.pass_timeout();
    t.expect_ask("10.9.0.1:53");
    t.pass_timeout();
    t.expect_ask("10.9.0.1:53");
    t.pass_timeout();
    for _ in 0..3 {
        assert!(matches!(t.dns.poll_action(), Some(DnsAction::Abandon { .. })));
    }
    t.expect_answer(udp(1), AnswerKind::Servfail);
}

#[test]
fn servers_that_change_all_the_time_do_not_keep_a_query_alive() {
    let mut t = Script::new(&["10.0.0.1:53"]);
    t.query(udp(1), &a_query(1)).unwrap();
    for n in 0..MAX_ASKS as u8 {
        t.dns.set_servers(&[SocketAddr::from(([10, 9, 0, n], 53))]);
        t.pass_timeout();
    }
    assert_eq!(t.dns.pending(), 0);
}

#[test]
fn without_servers_the_answer_is_servfail_at_once() {
    let mut t = Script::new(&[]);
    t.query(udp(1), &a_query(1)).unwrap();
    let message = judge(&t.expect_answer(udp(1), AnswerKind::Servfail));
    assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
    assert!(message.edns.is_none());
    assert_eq!(t.dns.pending(), 0);
}

// === limits ===

#[test]
fn a_full_table_drops_the_query() {
    let mut t = Script::with_limit(&["10.0.0.1:53"], 2);
    t.query(udp(1), &a_query(1)).unwrap();
    let ask = t.expect_ask("10.0.0.1:53");
    t.query(udp(1), &a_query(2)).unwrap();
    t.expect_ask("10.0.0.1:53");
    assert_eq!(t.query(udp(1), &a_query(3)), Err(DropReason::DnsQueriesFull));
    // What needs no socket is served all the same.
    t.query(udp(1), &query_bytes("host.internal.", RecordType::A)).unwrap();
    t.expect_answer(udp(1), AnswerKind::Static);
    t.answer(ask.query, &answer_to(&ask.message, ResponseCode::NoError)).unwrap();
    t.drain();
    t.query(udp(1), &a_query(3)).unwrap();
    t.expect_ask("10.0.0.1:53");
}

#[test]
fn a_full_table_closes_the_older_ask_for_the_next_one() {
    let mut t = Script::with_limit(&["10.0.0.1:53", "10.0.0.2:53"], 1);
    t.query(udp(1), &a_query(1)).unwrap();
    let first = t.expect_ask("10.0.0.1:53");
    t.pass_timeout();
    t.expect_abandon(first.query);
    let second = t.expect_ask("10.0.0.2:53");
    let late = answer_to(&first.message, ResponseCode::NoError);
    assert_eq!(t.answer(first.query, &late), Err(DropReason::DnsMismatch));
    t.answer(second.query, &answer_to(&second.message, ResponseCode::NoError)).unwrap();
    t.expect_abandon(second.query);
    t.expect_answer(udp(1), AnswerKind::Forwarded);
}

#[test]
fn a_lost_connection_takes_its_queries_along() {
    let mut t = Script::new(&["10.0.0.1:53"]);
    t.query(tcp_flow(1), &a_query(1)).unwrap();
    let first = t.expect_ask("10.0.0.1:53");
    t.query(tcp_flow(1), &a_query(2)).unwrap();
    let second = t.expect_ask("10.0.0.1:53");
    t.query(tcp_flow(2), &a_query(1)).unwrap();
    t.expect_ask("10.0.0.1:53");
    t.dns.forget_origin(flow_id(1));
    t.expect_abandon(first.query);
    t.expect_abandon(second.query);
    t.expect_idle();
    assert_eq!(t.dns.pending(), 1);
}

// === queries that are none ===

#[test]
fn what_cannot_be_answered_safely_is_dropped() {
    let mut t = Script::new(&["10.0.0.1:53"]);
    let query = a_query(1);
    for end in 0..HEADER_LEN {
        assert_eq!(t.query(udp(1), &query[..end]), Err(DropReason::Truncated));
    }
    let mut response = query.clone();
    response[2] |= 0x80;
    assert_eq!(t.query(udp(1), &response), Err(DropReason::Malformed));
    t.expect_idle();
}

#[test]
fn a_query_that_is_not_well_formed_is_told_so() {
    let mut t = Script::new(&["10.0.0.1:53"]);
    let query = a_query(0x1234);
    let mut two = question("example.org.", RecordType::A);
    two.add_query(two.queries[0].clone());
    let mut pointer = query.clone();
    pointer[HEADER_LEN] = 0xc0;
    for bad in [&query[..query.len() - 1], &query[..HEADER_LEN], &two.to_vec().unwrap(), &pointer] {
        t.query(udp(1), bad).unwrap();
        let message = judge(&t.expect_answer(udp(1), AnswerKind::FormErr));
        assert_eq!(message.metadata.response_code, ResponseCode::FormErr);
        assert_eq!(message.metadata.id, u16::from_be_bytes([bad[0], bad[1]]));
        assert!(message.queries.is_empty());
        t.expect_idle();
    }
}

#[test]
fn a_query_without_question_is_forwarded() {
    let mut t = Script::new(&["10.0.0.1:53"]);
    let mut query = Judge::query();
    query.set_edns(HickoryEdns::new());
    t.query(udp(1), &query.to_vec().unwrap()).unwrap();
    let ask = t.expect_ask("10.0.0.1:53");
    t.answer(ask.query, &answer_to(&ask.message, ResponseCode::NoError)).unwrap();
    t.expect_abandon(ask.query);
    t.expect_answer(udp(1), AnswerKind::Forwarded);
}

// === static names ===

#[test]
fn built_in_names_have_their_addresses_of_both_families() {
    let mut t = Script::new(&[]);
    t.dns.set_ipv6_offered(Ipv6Offer::Offered);
    for (name, v4, v6) in [
        ("host.internal.", "10.0.42.2", "fd42:10:42::2"),
        ("Gateway.INTERNAL.", "10.0.42.2", "fd42:10:42::2"),
        ("dns.internal.", "10.0.42.3", "fd42:10:42::3"),
    ] {
        assert_eq!(t.static_data(name, RecordType::A), [v4]);
        assert_eq!(t.static_data(name, RecordType::AAAA), [v6]);
        assert_eq!(t.static_data(name, RecordType::ANY), [v4, v6]);
        assert!(t.static_data(name, RecordType::MX).is_empty());
    }
}

#[test]
fn aaaa_is_empty_while_the_child_is_not_offered_ipv6() {
    let mut t = Script::new(&[]);
    assert!(t.static_data("host.internal.", RecordType::AAAA).is_empty());
    assert_eq!(t.static_data("host.internal.", RecordType::ANY), ["10.0.42.2"]);
    t.dns.set_ipv6_offered(Ipv6Offer::Offered);
    assert_eq!(t.static_data("host.internal.", RecordType::AAAA), ["fd42:10:42::2"]);
    t.dns.set_ipv6_offered(Ipv6Offer::Withheld);
    assert!(t.static_data("host.internal.", RecordType::AAAA).is_empty());
}

#[test]
fn every_static_address_leads_back_to_its_names() {
    let mut t = Script::with_names(&[("Registry.Local.", "10.0.42.2"), ("db", "fd42:10:42::9")]);
    let gateway = ["host.internal.", "gateway.internal.", "registry.local."];
    assert_eq!(t.static_data("2.42.0.10.in-addr.arpa.", RecordType::PTR), gateway);
    let db = Name::from(IpAddr::from_str("fd42:10:42::9").unwrap()).to_string();
    assert_eq!(t.static_data(&db, RecordType::PTR), ["db."]);
}

#[test]
fn user_names_replace_built_in_ones_and_may_have_several_addresses() {
    let mut t = Script::with_names(&[("HOST.internal", "192.0.2.1"), ("HOST.internal", "192.0.2.2")]);
    assert_eq!(t.static_data("host.internal.", RecordType::A), ["192.0.2.1", "192.0.2.2"]);
    assert!(t.static_data("host.internal.", RecordType::AAAA).is_empty());
    assert_eq!(t.static_data("2.42.0.10.in-addr.arpa.", RecordType::PTR), ["gateway.internal."]);
}

#[test]
fn names_below_ours_and_other_classes_are_not_ours() {
    let mut t = Script::new(&["10.0.0.1:53"]);
    t.query(udp(1), &query_bytes("x.host.internal.", RecordType::A)).unwrap();
    t.expect_ask("10.0.0.1:53");
    let mut chaos = question("host.internal.", RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    t.query(udp(1), &chaos.to_vec().unwrap()).unwrap();
    t.expect_ask("10.0.0.1:53");
}

#[test]
fn static_answers_honour_edns() {
    let mut t = Script::new(&[]);
    let mut query = question("host.internal.", RecordType::A);
    query.metadata.recursion_desired = false;
    query.metadata.checking_disabled = true;
    assert!(t.static_answer(udp(1), &query).edns.is_none());

    query.set_edns(HickoryEdns::new().set_max_payload(4096).set_dnssec_ok(true).clone());
    let message = t.static_answer(udp(1), &query);
    assert!(!message.metadata.recursion_desired && message.metadata.checking_disabled);
    assert!(message.metadata.recursion_available && message.metadata.authoritative);
    let edns = message.edns.unwrap();
    assert_eq!((edns.version(), edns.flags().dnssec_ok, edns.max_payload()), (0, true, message::UDP_PAYLOAD));

    query.edns.as_mut().unwrap().set_version(1);
    let message = t.static_answer(udp(1), &query);
    assert_eq!(u16::from(message.metadata.response_code), 16, "BADVERS");
    assert!(message.answers.is_empty() && message.edns.unwrap().version() == 0);
}

#[test]
fn broken_records_behind_a_static_question_are_told_so() {
    let mut t = Script::new(&[]);
    let mut query = question("host.internal.", RecordType::A);
    query.set_edns(HickoryEdns::new());
    let one = query.to_vec().unwrap();
    let opt = one[one.len() - 11..].to_vec();
    let mut two = [one.clone(), opt].concat();
    two[11] = 2;
    // An OPT record of a name other than the root.
    let mut owned = one.clone();
    owned.splice(one.len() - 11..one.len() - 10, [1, b'a', 0]);
    for bad in [&one[..one.len() - 1], &two, &owned] {
        t.query(udp(1), bad).unwrap();
        let message = judge(&t.expect_answer(udp(1), AnswerKind::Static));
        assert_eq!(message.metadata.response_code, ResponseCode::FormErr);
    }
}

#[test]
fn long_static_answers_are_truncated_over_udp_and_whole_over_tcp() {
    let addresses: Vec<String> = (0..100).map(|n| format!("192.0.2.{n}")).collect();
    let names: Vec<_> = addresses.iter().map(|address| ("many", address.as_str())).collect();
    let mut t = Script::with_names(&names);
    let mut query = question("many.", RecordType::A);
    let plain = t.static_answer(udp(1), &query);
    assert!(plain.metadata.truncation && plain.to_vec().unwrap().len() <= 512);
    assert_eq!(t.static_answer(tcp_flow(1), &query).answers.len(), 100);

    query.set_edns(HickoryEdns::new().set_max_payload(65535).clone());
    t.query(udp(1), &query.to_vec().unwrap()).unwrap();
    let bytes = t.expect_answer(udp(1), AnswerKind::Static);
    assert!(bytes.len() <= usize::from(message::UDP_PAYLOAD) && bytes.len() > 1200);
    assert!(judge(&bytes).metadata.truncation);
}

// === any input ===

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_and_pending_stays_bounded(
        messages in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..80), 0..4u8), 1..40),
    ) {
        let mut t = Script::with_limit(&["10.0.0.1:53", "10.0.0.2:53"], 8);
        let mut asks = Vec::new();
        for (repair, mut bytes, port) in messages {
            if repair && bytes.len() >= HEADER_LEN {
                // Past the first checks.
                bytes[2] &= 0x07;
                bytes[4..6].copy_from_slice(&[0, 1]);
            }
            let _ = t.query(udp(port.into()), &bytes);
            for &ask in &asks {
                let _ = t.answer(ask, &bytes);
            }
            asks.extend(t.drain().into_iter().filter_map(|action| match action {
                DnsAction::Ask { query, .. } => Some(query),
                _ => None,
            }));
            prop_assert!(t.dns.pending() <= t.dns.open_asks && t.dns.open_asks <= 8);
            t.now += Duration::from_millis(300);
            t.dns.handle_timeout(t.now);
        }
    }

    /// Every accepted query gets exactly one answer, a repeated one none of its own, a lost connection's
    /// none; and every ask is abandoned exactly once.
    #[test]
    fn every_accepted_query_gets_exactly_one_answer(steps in prop::collection::vec(step(), 1..120)) {
        let mut t = Script::with_limit(&["10.0.0.1:53", "10.0.0.2:53", "10.0.0.3:53"], 6);
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Query { tcp, port, id } => {
                    let origin = if tcp { tcp_flow(port.into()) } else { udp(port.into()) };
                    if t.query(origin, &a_query(id)).is_ok() {
                        model.pending.insert((origin, id));
                    }
                }
                Step::Answer { which, code } => {
                    if let Some((&query, message)) = model.open.iter().nth(which) {
                        let code = ResponseCode::from(0, code);
                        prop_assert!(t.answer(query, &answer_to(message, code)).is_ok());
                    }
                }
                Step::Failure { which } => {
                    if let Some((&query, _)) = model.open.iter().nth(which) {
                        t.fail(query);
                    }
                }
                Step::Forget { port } => {
                    t.dns.forget_origin(flow_id(port.into()));
                    model.pending.retain(|&(origin, _)| origin != tcp_flow(port.into()));
                }
                Step::Servers { count } => {
                    t.dns.set_servers(&servers(&["10.0.0.1:53", "10.0.0.2:53", "10.0.0.3:53"][..count]));
                }
                Step::Wait { millis } => {
                    t.now += Duration::from_millis(millis);
                    t.dns.handle_timeout(t.now);
                }
            }
            model.take(t.drain());
            prop_assert_eq!((t.dns.pending(), t.dns.open_asks), (model.pending.len(), model.open.len()));
            prop_assert!(model.open.len() <= 6);
        }
        for _ in 0..=MAX_ASKS {
            let Some(deadline) = t.dns.poll_timeout() else { break };
            t.now = t.now.max(deadline) + Duration::from_secs(2);
            t.dns.handle_timeout(t.now);
            model.take(t.drain());
        }
        prop_assert!(model.pending.is_empty() && model.open.is_empty());
        prop_assert!(t.dns.by_origin.is_empty() && t.dns.deadlines.is_empty());
    }
}

#[derive(Clone, Debug)]
enum Step {
    Query { tcp: bool, port: u8, id: u16 },
    Answer { which: usize, code: u8 },
    Failure { which: usize },
    Forget { port: u8 },
    Servers { count: usize },
    Wait { millis: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any::<bool>(), 0..3u8, 0..3u16).prop_map(|(tcp, port, id)| Step::Query { tcp, port, id }),
        3 => (0..6usize, 0..6u8).prop_map(|(which, code)| Step::Answer { which, code }),
        2 => (0..6usize).prop_map(|which| Step::Failure { which }),
        1 => (0..3u8).prop_map(|port| Step::Forget { port }),
        1 => (0..4usize).prop_map(|count| Step::Servers { count }),
        3 => (0..3000u64).prop_map(|millis| Step::Wait { millis }),
    ]
}

#[derive(Default)]
struct Model {
    pending: BTreeSet<(QueryOrigin, u16)>,
    open: BTreeMap<QueryId, Vec<u8>>,
}

impl Model {
    fn take(&mut self, actions: Vec<DnsAction>) {
        for action in actions {
            match action {
                DnsAction::Ask { query, message, .. } => assert!(self.open.insert(query, message).is_none()),
                DnsAction::Abandon { query } => assert!(self.open.remove(&query).is_some()),
                DnsAction::Answer { origin, message, .. } => {
                    assert!(
                        self.pending.remove(&(origin, judge(&message).metadata.id)),
                        "an answer too many"
                    );
                }
            }
        }
    }
}

// === the script ===

struct Script {
    dns: DnsForwarder,
    now: Instant,
}

struct Asked {
    query: QueryId,
    transport: DnsTransport,
    message: Vec<u8>,
}

impl Script {
    fn new(addresses: &[&str]) -> Self {
        Script::with_limit(addresses, 100)
    }

    fn with_limit(addresses: &[&str], limit: usize) -> Self {
        let dns = DnsConfig { servers: servers(addresses), ..DnsConfig::default() };
        let limits = Limits { dns_queries: limit, ..Limits::default() };
        let timeouts = Timeouts { dns: Duration::from_secs(2), ..Timeouts::default() };
        let config = Config::builder().dns(dns).limits(limits).timeouts(timeouts).seed(42).build().unwrap();
        Script { dns: DnsForwarder::new(&config), now: Instant::ZERO }
    }

    fn with_names(names: &[(&str, &str)]) -> Self {
        let names =
            names.iter().map(|&(name, address)| (name.to_owned(), address.parse().unwrap())).collect();
        let dns = DnsConfig { names, ..DnsConfig::default() };
        let mut t = Script {
            dns: DnsForwarder::new(&Config::builder().dns(dns).build().unwrap()),
            now: Instant::ZERO,
        };
        t.dns.set_ipv6_offered(Ipv6Offer::Offered);
        t
    }

    fn query(&mut self, origin: QueryOrigin, message: &[u8]) -> Result<(), DropReason> {
        self.dns.handle_query(self.now, origin, message)
    }

    fn answer(&mut self, query: QueryId, message: &[u8]) -> Result<(), DropReason> {
        self.dns.handle_answer(self.now, query, message)
    }

    fn fail(&mut self, query: QueryId) {
        self.dns.handle_failure(self.now, query);
    }

    fn drain(&mut self) -> Vec<DnsAction> {
        std::iter::from_fn(|| self.dns.poll_action()).collect()
    }

    /// Goes to the next deadline; nothing happens a moment before it.
    #[track_caller]
    fn pass_timeout(&mut self) {
        let deadline = self.dns.poll_timeout().expect("a timer runs");
        self.dns.handle_timeout(deadline - Duration::from_micros(1));
        assert_eq!(self.dns.poll_timeout(), Some(deadline));
        self.now = deadline;
        self.dns.handle_timeout(self.now);
    }

    #[track_caller]
    fn expect_ask(&mut self, expected: &str) -> Asked {
        match self.dns.poll_action() {
            Some(DnsAction::Ask { query, server, transport, message }) => {
                assert_eq!(server.to_string(), expected);
                Asked { query, transport, message }
            }
            other => panic!("expected an ask of {expected}, got {other:?}"),
        }
    }

    #[track_caller]
    fn expect_abandon(&mut self, expected: QueryId) {
        assert_eq!(self.dns.poll_action(), Some(DnsAction::Abandon { query: expected }));
    }

    #[track_caller]
    fn expect_answer(&mut self, to: QueryOrigin, by: AnswerKind) -> Vec<u8> {
        match self.dns.poll_action() {
            Some(DnsAction::Answer { origin, message, kind }) if (origin, kind) == (to, by) => message,
            other => panic!("expected an answer to {to:?} by {by:?}, got {other:?}"),
        }
    }

    #[track_caller]
    fn expect_idle(&mut self) {
        assert_eq!(self.dns.poll_action(), None);
    }

    #[track_caller]
    fn static_answer(&mut self, origin: QueryOrigin, query: &Judge) -> Judge {
        self.query(origin, &query.to_vec().unwrap()).unwrap();
        let message = judge(&self.expect_answer(origin, AnswerKind::Static));
        assert_eq!(
            (message.metadata.id, message.metadata.message_type),
            (query.metadata.id, MessageType::Response)
        );
        assert_eq!(message.queries, query.queries);
        message
    }

    #[track_caller]
    fn static_data(&mut self, name: &str, kind: RecordType) -> Vec<String> {
        let query = question(name, kind);
        let message = self.static_answer(udp(1), &query);
        assert_eq!(message.metadata.response_code, ResponseCode::NoError);
        assert!(message.metadata.authoritative && !message.metadata.truncation);
        for record in &message.answers {
            assert_eq!((&record.name, record.ttl), (query.queries[0].name(), records::STATIC_TTL));
        }
        message.answers.iter().map(|record| record.data.to_string()).collect()
    }
}

fn servers(addresses: &[&str]) -> Vec<SocketAddr> {
    addresses.iter().map(|address| address.parse().unwrap()).collect()
}

fn udp(port: u16) -> QueryOrigin {
    QueryOrigin::Udp {
        child: SocketAddr::from(([10, 0, 42, 100], 40000 + port)),
        server: SocketAddr::from(([10, 0, 42, 3], 53)),
    }
}

fn flow_id(index: u32) -> FlowId {
    FlowId { index, generation: 1 }
}

fn tcp_flow(index: u32) -> QueryOrigin {
    QueryOrigin::Tcp { flow: flow_id(index) }
}

fn question(name: &str, kind: RecordType) -> Judge {
    let mut message = Judge::query();
    message.metadata.recursion_desired = true;
    message.add_query(JudgeQuery::query(Name::from_str(name).unwrap(), kind));
    message
}

fn query_bytes(name: &str, kind: RecordType) -> Vec<u8> {
    question(name, kind).to_vec().unwrap()
}

fn a_query(id: u16) -> Vec<u8> {
    let mut message = question("example.org.", RecordType::A);
    message.metadata.id = id;
    message.to_vec().unwrap()
}

#[track_caller]
fn judge(bytes: &[u8]) -> Judge {
    Judge::from_vec(bytes).expect("a message that others can read")
}

/// What a server would answer.
fn answer_to(asked: &[u8], code: ResponseCode) -> Vec<u8> {
    let asked = judge(asked);
    let mut answer = Judge::response(asked.metadata.id, asked.metadata.op_code);
    answer.metadata.response_code = code;
    answer.add_queries(asked.queries.clone());
    if let Some(query) = asked.queries.first() {
        let data = match query.query_type() {
            RecordType::TXT => RData::TXT(TXT::new(vec!["x".repeat(255); 4])),
            _ => RData::A(A::new(192, 0, 2, 1)),
        };
        answer.add_answer(JudgeRecord::from_rdata(query.name().clone(), 300, data));
    }
    answer.to_vec().unwrap()
}

const HEADER_LEN: usize = message::HEADER_LEN;
