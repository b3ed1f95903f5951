//! The tables of `forwarder`: two joined sockets, and UDP clients.

use super::{Run, Scenario};
use forwarder::{
    relay::{Action, Drained, Filled, Readiness, Relay, Side},
    udp_session::{Client, SessionTable},
};
use std::{hint::black_box, time::Duration};

pub(super) const ALL: &[Scenario] = &[
    Scenario::elements("forwarder/relay-bulk", TIMES, relay_bulk),
    Scenario::elements("forwarder/relay-echo", TIMES, relay_echo),
    Scenario::elements("forwarder/session-touch-10", TIMES, || touch(10)),
    Scenario::elements("forwarder/session-touch-1k", TIMES, || touch(1000)),
    Scenario::elements("forwarder/session-touch-16k", TIMES, || touch(16_000)),
    Scenario::elements("forwarder/session-replace-1k", TIMES, replace),
];

const TIMES: u64 = 10_000;
const READY: Readiness = Readiness { readable: true, writable: true, ended: false, failed: false };

fn joined() -> Relay {
    let mut relay = Relay::new();
    relay.handle_ready(Side::Opened, Readiness { readable: false, ..READY });
    relay.handle_ready(Side::Accepted, Readiness { readable: false, ..READY });
    while relay.poll_action().is_some() {}
    relay
}

/// A source that is never empty, a sink that takes half of it at a time.
fn relay_bulk() -> Run {
    let mut relay = joined();
    relay.handle_ready(Side::Accepted, READY);
    Box::new(move || {
        for _ in 0..TIMES {
            match black_box(&mut relay).poll_action() {
                Some(Action::Fill(from)) => relay.filled(from, Filled::Bytes(200_000)),
                Some(Action::Drain(from)) => relay.drained(from, Drained::Bytes(100_000)),
                other => panic!("{other:?}"),
            }
        }
    })
}

/// One small message each way.
fn relay_echo() -> Run {
    let mut relay = joined();
    Box::new(move || {
        for n in 0..TIMES {
            let from = if n % 2 == 0 { Side::Accepted } else { Side::Opened };
            black_box(&mut relay).handle_ready(from, READY);
            while let Some(action) = relay.poll_action() {
                match action {
                    Action::Fill(from) => relay.filled(from, Filled::Last(1)),
                    Action::Drain(from) => relay.drained(from, Drained::Bytes(1)),
                    other => panic!("{other:?}"),
                }
            }
        }
    })
}

fn client(n: u32) -> Client {
    let address = std::net::Ipv4Addr::from(0xc633_6400 + n / 50_000);
    Client { address: (address, 1024 + (n % 50_000) as u16).into(), local: [192, 0, 2, 2].into() }
}

fn table(sessions: u32) -> SessionTable {
    let mut table = SessionTable::new(sessions as usize, Duration::from_secs(300));
    for n in 0..sessions {
        table.insert(Duration::ZERO, client(n));
    }
    table
}

/// What every datagram does.
fn touch(sessions: u32) -> Run {
    let mut table = table(sessions);
    let (mut now, mut n) = (Duration::ZERO, 0);
    Box::new(move || {
        for _ in 0..TIMES {
            now += Duration::from_micros(10);
            n = (n + 7919) % sessions;
            let id = table.find(black_box(&client(n))).expect("has a session");
            table.touch(now, id);
            black_box(table.poll_expired(now));
        }
    })
}

/// A new client takes the place of the one idle for longest.
fn replace() -> Run {
    let mut table = table(1000);
    let (mut now, mut n) = (Duration::ZERO, 1000);
    Box::new(move || {
        for _ in 0..TIMES {
            now += Duration::from_micros(10);
            n = (n + 1) % 4000;
            black_box(table.insert(now, client(n)));
        }
    })
}
