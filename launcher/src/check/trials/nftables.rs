//! nf_tables rules with one expression each, as the netlink messages that make them (linux/netfilter/nf_tables.h), and
//! what the kernel says.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use super::super::facts::Outcome;
use crate::error::{Failure, Step};
use crate::netlink::message::{Reply, replies};

/// An expression, the chain that it can stand in, and its attributes.
struct Trial {
    name: &'static str,
    /// What the kernel calls the expression, and its attributes.
    expressions: &'static [(&'static str, &'static [Attribute])],
    kind: &'static str,
    hook: u32,
    priority: i32,
}

/// A number in network order, or bytes in a value of their own.
enum Attribute {
    Number(u16, u32),
    Value(u16, [u8; 4]),
}

use Attribute::{Number, Value};

const PREROUTING: u32 = 0;
const LOCAL_IN: u32 = 1;
const POSTROUTING: u32 = 4;

const TRIALS: [Trial; 6] = [
    Trial {
        name: "ct",
        // Its state, to register 1.
        expressions: &[("ct", &[Number(1, 1), Number(2, 0)])],
        kind: "filter",
        hook: LOCAL_IN,
        priority: 0,
    },
    Trial {
        name: "fib",
        // The type of the destination's address, to register 1.
        expressions: &[("fib", &[Number(1, 1), Number(2, 3), Number(3, 2)])],
        kind: "filter",
        hook: PREROUTING,
        priority: 0,
    },
    Trial {
        name: "numgen",
        // One of two at random, to register 1.
        expressions: &[("numgen", &[Number(1, 1), Number(2, 2), Number(3, 1)])],
        kind: "filter",
        hook: LOCAL_IN,
        priority: 0,
    },
    Trial {
        name: "reject",
        // ICMP port unreachable: a type and, in one byte, a code, which 0 stands for.
        expressions: &[("reject", &[Number(1, 1)])],
        kind: "filter",
        hook: LOCAL_IN,
        priority: 0,
    },
    Trial {
        name: "masquerade",
        expressions: &[("masq", &[])],
        kind: "nat",
        hook: POSTROUTING,
        priority: 100,
    },
    Trial {
        name: "dnat",
        // 192.0.2.1 to register 1; the destination from there, IPv4.
        expressions: &[
            ("immediate", &[Number(1, 1), Value(2, [192, 0, 2, 1])]),
            ("nat", &[Number(1, 1), Number(2, NFPROTO_IPV4 as u32), Number(3, 1)]),
        ],
        kind: "nat",
        hook: PREROUTING,
        priority: -100,
    },
];

/// Each expression in a table of its own, in this process's network namespace.
pub(super) fn try_all() -> Vec<(String, Outcome)> {
    let tried = TRIALS.iter().map(|trial| {
        let made = make(trial);
        (trial.name.to_owned(), made.map_err(|error| Failure::new(Step::Network, trial.name, error)))
    });
    tried.collect()
}

/// The kernel works a batch off while it is being sent: all answers are there afterwards.
fn make(trial: &Trial) -> io::Result<()> {
    let socket: OwnedFd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    let batch = batch(trial);
    send(socket.as_raw_fd(), &batch.bytes, MsgFlags::empty())?;
    let mut buffer = vec![0; 16 << 10];
    let mut done = 0;
    loop {
        let length = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => length,
            Err(nix::Error::EINTR) => continue,
            Err(nix::Error::EAGAIN) => break,
            Err(error) => return Err(error.into()),
        };
        for reply in replies(buffer.get(..length).unwrap_or_default()) {
            match reply {
                Reply::Acknowledged { errno: 0, .. } => done += 1,
                Reply::Acknowledged { errno, .. } => return Err(io::Error::from_raw_os_error(errno)),
                _ => {}
            }
        }
    }
    if done >= batch.acknowledged { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPROTO)) }
}

struct Batch {
    bytes: Vec<u8>,
    acknowledged: usize,
}

fn batch(trial: &Trial) -> Batch {
    const CHAIN: &[u8] = b"chain\0";
    let table = &[trial.name.as_bytes(), &[0]].concat();
    let mut batch = Batch { bytes: Vec::new(), acknowledged: 0 };
    batch.control(NFNL_MSG_BATCH_BEGIN);
    batch.message(NFT_MSG_NEWTABLE, |bytes| attribute(bytes, NFTA_TABLE_NAME, table));
    batch.message(NFT_MSG_NEWCHAIN, |bytes| {
        attribute(bytes, NFTA_CHAIN_TABLE, table);
        attribute(bytes, NFTA_CHAIN_NAME, CHAIN);
        nested(bytes, NFTA_CHAIN_HOOK, |bytes| {
            attribute(bytes, NFTA_HOOK_HOOKNUM, &trial.hook.to_be_bytes());
            attribute(bytes, NFTA_HOOK_PRIORITY, &trial.priority.to_be_bytes());
        });
        attribute(bytes, NFTA_CHAIN_TYPE, &[trial.kind.as_bytes(), &[0]].concat());
    });
    batch.message(NFT_MSG_NEWRULE, |bytes| {
        attribute(bytes, NFTA_RULE_TABLE, table);
        attribute(bytes, NFTA_RULE_CHAIN, CHAIN);
        nested(bytes, NFTA_RULE_EXPRESSIONS, |bytes| {
            trial.expressions.iter().for_each(|(name, attributes)| expression(bytes, name, attributes));
        });
    });
    batch.control(NFNL_MSG_BATCH_END);
    batch
}

fn expression(bytes: &mut Vec<u8>, name: &str, attributes: &[Attribute]) {
    nested(bytes, NFTA_LIST_ELEM, |bytes| {
        attribute(bytes, NFTA_EXPR_NAME, &[name.as_bytes(), &[0]].concat());
        nested(bytes, NFTA_EXPR_DATA, |bytes| {
            attributes.iter().for_each(|one| match one {
                Number(kind, number) => attribute(bytes, *kind, &number.to_be_bytes()),
                Value(kind, value) => nested(bytes, *kind, |bytes| attribute(bytes, NFTA_DATA_VALUE, value)),
            });
        });
    });
}

impl Batch {
    fn control(&mut self, kind: u16) {
        self.put(kind, libc::NLM_F_REQUEST, 0, NFNL_SUBSYS_NFTABLES, |_| {});
    }

    fn message(&mut self, kind: u16, write: impl FnOnce(&mut Vec<u8>)) {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_APPEND;
        self.put(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, NFPROTO_IPV4, 0, write);
        self.acknowledged += 1;
    }

    /// `struct nlmsghdr`, `struct nfgenmsg`, attributes.
    fn put(
        &mut self,
        kind: u16,
        flags: libc::c_int,
        family: u8,
        resource: u16,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let start = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags as u16).to_ne_bytes());
        self.bytes.extend([0; 8]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        write(&mut self.bytes);
        let length = (self.bytes.len() - start) as u32;
        self.bytes.splice(start..start + 4, length.to_ne_bytes());
    }
}

fn attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    bytes.extend((4 + value.len() as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

fn nested(bytes: &mut Vec<u8>, kind: u16, write: impl FnOnce(&mut Vec<u8>)) {
    let start = bytes.len();
    bytes.extend([0; 2]);
    bytes.extend((kind | NLA_F_NESTED).to_ne_bytes());
    write(bytes);
    let length = (bytes.len() - start) as u16;
    bytes.splice(start..start + 2, length.to_ne_bytes());
}

const NLA_F_NESTED: u16 = 1 << 15;
const NFPROTO_IPV4: u8 = 2;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
