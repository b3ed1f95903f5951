//! Finding a flow, at sizes that fit every cache and none.

use super::{Run, Scenario};
use netstack::{
    flow::{FlowKey, Protocol, table::FlowTable},
    testing::frames::{CHILD, WORLD},
};
use std::hint::black_box;

pub(super) const ALL: &[Scenario] = &[
    Scenario::elements("flow_table/find-10", TIMES, || find(10)),
    Scenario::elements("flow_table/find-1k", TIMES, || find(1000)),
    Scenario::elements("flow_table/find-100k", TIMES, || find(100_000)),
    Scenario::elements("flow_table/miss-1k", TIMES, || miss(1000)),
    Scenario::elements("flow_table/replace-10", TIMES, || replace(10)),
    Scenario::elements("flow_table/replace-1k", TIMES, || replace(1000)),
    Scenario::elements("flow_table/replace-100k", TIMES, || replace(100_000)),
];

const TIMES: u64 = 10_000;
/// Coprime to all sizes: goes through the keys in an order that no cache foresees.
const STRIDE: u32 = 7919;

fn key(n: u32) -> FlowKey {
    let [_, high, middle, low] = n.to_be_bytes();
    let remote = (WORLD.to_bits() + u32::from(high)).into();
    FlowKey {
        protocol: Protocol::Tcp,
        child: (CHILD, u16::from_be_bytes([middle, low])).into(),
        remote: (std::net::IpAddr::V4(remote), 443).into(),
    }
}

fn table(size: u32) -> FlowTable<u32> {
    let mut table = FlowTable::new(0x7365_6564);
    for n in 0..size {
        table.insert(key(n), n);
    }
    table
}

fn find(size: u32) -> Run {
    let table = table(size);
    let mut n = 0;
    Box::new(move || {
        for _ in 0..TIMES {
            n = (n + STRIDE) % size;
            let id = table.find(black_box(&key(n))).expect("is in the table");
            black_box(table.get(id));
        }
    })
}

fn miss(size: u32) -> Run {
    let table = table(size);
    let mut n = 0;
    Box::new(move || {
        for _ in 0..TIMES {
            n = (n + STRIDE) % size;
            assert!(table.find(black_box(&key(size + n))).is_none());
        }
    })
}

/// One goes, another one comes.
fn replace(size: u32) -> Run {
    let mut table = table(size);
    let mut n = 0;
    Box::new(move || {
        for _ in 0..TIMES {
            n = (n + STRIDE) % size;
            let id = table.find(&key(n)).expect("is in the table");
            black_box(table.remove(id));
            black_box(table.insert(key(n), n));
        }
    })
}
