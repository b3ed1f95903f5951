//! Our nftables table in the child's namespace, as the netlink messages that make it (nfnetlink, linux/netfilter/nf_tables.h).
//!
//! # Theory of operation
//! Goal: the child's packets of a connection that the relay has taken stay in the child. The relay's socket has the address
//! that the child connected to and *connects to the child*, which has sent its SYN: a simultaneous open (RFC 9293 section 3.5). Its
//! packets carry [`RELAY_MARK`] and are those of the connection that the child began, as connection tracking sees it; they set
//! [`CONNECTION_BIT`] there. What the child sends afterwards finds the bit and gets [`MARK`], for which a
//! routing rule makes every destination local.
//!
//! ```text
//! table inet rootless-launch {
//!   chain output { type route hook output priority mangle; policy accept;
//!     meta mark RELAY_MARK ct mark set ct mark | BIT accept                          # the relay's socket
//!     meta mark FORWARD_MARK ct mark set ct mark | FORWARD_BIT accept                # a forward's
//!     ct mark & BITS != 0 tcp flags & (syn | ack) != syn meta mark set MARK          # (1) the child's answers
//!     oif lo meta mark 0 fib daddr type != local meta mark set BEGINNING_MARK        # (7)
//!   }
//!   chain prerouting { type filter hook prerouting priority mangle; policy accept;
//!     iif lo meta mark RELAY_MARK meta mark set MARK                                 # (2)
//!     iif lo meta mark FORWARD_MARK meta mark set MARK                               # (5)
//!     iif lo accept
//!     ct mark & BIT == BIT ct direction reply tcp flags & (syn | rst) != 0 ct mark set ct mark & ~BIT accept   # (3)
//!     ct mark & FORWARD_BIT == FORWARD_BIT ct direction original ct mark set ct mark & ~FORWARD_BIT accept  # (3)
//!     ct mark & BITS != 0 tcp flags & (syn | ack) != syn meta mark set MARK          # (1) answers from behind the child
//!   }
//!   chain postrouting { type nat hook postrouting priority srcnat - 1; policy accept;
//!     fib saddr . oif type local snat to saddr                                       # (4) per family
//!   }
//! }
//! ```
//! 1. A SYN begins a connection, perhaps with the numbers of one that has ended: the TAP, and so the policy, decides.
//! 2. What the child's kernel answers without a socket (RST) reflects it (`fwmark_reflect`). Connection tracking has the last word on
//!    half of these answers otherwise: their sequence number is 0, and it calls that invalid or not by the number of the child's SYN.
//! 3. What comes by the TAP: the engine there answers, or asks, after all, and has the connection from now on.
//! 4. A rule of somebody else's that masquerades all that leaves by the TAP would do nothing to what has its address already,
//!    but tie the connection to that interface: connection tracking drops its packets on any other. (Without NAT in the kernel
//!    there is no such rule, and the chain is left out.)
//! 5. Servers inherit it (`tcp_fwmark_accept`): what they send is made for the loopback device, not for the TAP and its MTU.
//! 6. It has a route of its own ([`crate::protocol::Request::Route`]) or goes to the child itself: nothing more is to be done for it.
//! 7. Such a route has outlived its connection: what begins is routed once more, by a mark that no such route is for. (Left out with the
//!    chain of (4).)
//!
//! All rules are about TCP only. Other bits of the connection's mark are left alone.
//!
//! The table belongs to the socket that made it (`NFT_TABLE_F_OWNER`, Linux 5.12): it goes when that is closed, and others
//! cannot flush it. Older kernels: it is replaced by the next, and goes with the namespace.

use crate::child::{BEGINNING_MARK, FORWARD_MARK, MARK, RELAY_MARK};
use crate::protocol::EgressStep;
use crate::spec::Family;

/// The table's name, in the family `inet`.
pub const TABLE_NAME: &str = "rootless-launch";
/// The bit of the connection's mark that says: its packets stay in the child.
pub const CONNECTION_BIT: u32 = 0x0100_0000;
/// The bit that says: a forward began it, and what answers belongs to its socket.
pub const FORWARD_BIT: u32 = 0x0200_0000;

/// Whether the table is the socket's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// It goes with the socket.
    Socket,
    /// It stays: the kernel knows no owners.
    Nobody,
}

/// Whether the kernel has NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nat {
    /// The chain for it is made.
    Present,
    /// It is left out.
    Absent,
}

/// A batch of messages, which takes effect as a whole or not at all.
#[derive(Debug)]
pub(crate) struct Batch {
    /// All of them.
    pub(crate) bytes: Vec<u8>,
    /// What each one is for; its sequence number is its place here.
    steps: Vec<EgressStep>,
}

impl Batch {
    /// What replaces or makes the table.
    pub(crate) fn table(owner: Owner, nat: Nat) -> Self {
        let mut batch = Batch { bytes: Vec::new(), steps: Vec::new() };
        batch.control(NFNL_MSG_BATCH_BEGIN);
        // Deleting wants something that is there.
        for kind in [NFT_MSG_NEWTABLE, NFT_MSG_DELTABLE, NFT_MSG_NEWTABLE] {
            batch.message(EgressStep::Table, kind, |body| {
                body.string(NFTA_TABLE_NAME, TABLE_NAME);
                if owner == Owner::Socket && kind == NFT_MSG_NEWTABLE {
                    body.number(NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER);
                }
            });
        }
        let chains = [
            (OUTPUT, "route", NF_INET_LOCAL_OUT, NF_IP_PRI_MANGLE),
            (PREROUTING, "filter", NF_INET_PRE_ROUTING, NF_IP_PRI_MANGLE),
            (POSTROUTING, "nat", NF_INET_POST_ROUTING, NF_IP_PRI_NAT_SRC - 1),
        ];
        let made = |chain| chain != POSTROUTING || nat == Nat::Present;
        for (chain, kind, hook, priority) in chains.into_iter().filter(|chain| made(chain.0)) {
            batch.message(EgressStep::Chain, NFT_MSG_NEWCHAIN, |body| {
                body.string(NFTA_CHAIN_TABLE, TABLE_NAME);
                body.string(NFTA_CHAIN_NAME, chain);
                body.nested(NFTA_CHAIN_HOOK, |hooks| {
                    hooks.number(NFTA_HOOK_HOOKNUM, hook);
                    hooks.number(NFTA_HOOK_PRIORITY, priority.cast_unsigned());
                });
                body.number(NFTA_CHAIN_POLICY, NF_ACCEPT);
                body.string(NFTA_CHAIN_TYPE, kind);
            });
        }
        let possible = |rule: &[Term]| nat == Nat::Present || !rule.iter().any(|term| term.is_fib());
        for (chain, rule) in rules().into_iter().filter(|(_, rule)| possible(rule)) {
            batch.message(EgressStep::Rule, NFT_MSG_NEWRULE, |body| {
                body.string(NFTA_RULE_TABLE, TABLE_NAME);
                body.string(NFTA_RULE_CHAIN, chain);
                body.nested(NFTA_RULE_EXPRESSIONS, |list| {
                    rule.iter().for_each(|term| term.write(list));
                });
            });
        }
        batch.control(NFNL_MSG_BATCH_END);
        batch
    }

    /// What the message with this sequence number was for.
    pub(crate) fn step(&self, sequence: u32) -> EgressStep {
        self.steps.get(sequence as usize).copied().unwrap_or(EgressStep::Commit)
    }

    /// The number of the last message that is acknowledged.
    pub(crate) fn last(&self) -> u32 {
        // Without the end of the batch, whose acknowledgement is new in Linux 6.10.
        self.steps.len() as u32 - 2
    }

    fn control(&mut self, kind: u16) {
        self.put(EgressStep::Commit, kind, NLM_F_REQUEST, NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES, |_| {});
    }

    fn message(&mut self, step: EgressStep, kind: u16, write: impl FnOnce(&mut Body<'_>)) {
        let create = if kind == NFT_MSG_DELTABLE { 0 } else { NLM_F_CREATE | NLM_F_APPEND };
        let flags = NLM_F_REQUEST | NLM_F_ACK | create;
        self.put(step, NFNL_SUBSYS_NFTABLES << 8 | kind, flags, NFPROTO_INET, 0, write);
    }

    /// `struct nlmsghdr`, `struct nfgenmsg`, attributes.
    fn put(
        &mut self,
        step: EgressStep,
        kind: u16,
        flags: u16,
        family: u8,
        resource: u16,
        write: impl FnOnce(&mut Body<'_>),
    ) {
        let start = self.bytes.len();
        let sequence = self.steps.len() as u32;
        self.steps.push(step);
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend([family, NFNETLINK_V0]);
        self.bytes.extend(resource.to_be_bytes());
        write(&mut Body(&mut self.bytes));
        let len = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }
}

/// The rules and their chains, in order.
fn rules() -> [(&'static str, Vec<Term>); 13] {
    use Term::*;
    let tcp = [Meta(NFT_META_L4PROTO), Is(Value::Byte(libc::IPPROTO_TCP as u8))];
    let relay = [Meta(NFT_META_MARK), Is(Value::Word(RELAY_MARK))];
    let forward = [Meta(NFT_META_MARK), Is(Value::Word(FORWARD_MARK))];
    let with = |bit| [Ct(NFT_CT_MARK), Mask(bit, 0), Is(Value::Word(bit))];
    let taken = [Ct(NFT_CT_MARK), Mask(CONNECTION_BIT | FORWARD_BIT, 0), IsNot(Value::Word(0))];
    let loopback = [Meta(NFT_META_IIF), Is(Value::Word(LOOPBACK))];
    let no_beginning = [TcpFlags, MaskByte(SYN | ACK), IsNot(Value::Byte(SYN))];
    let direction = |direction| [Ct(NFT_CT_DIRECTION), Is(Value::Byte(direction))];
    let (asked, answered) = (direction(IP_CT_DIR_ORIGINAL), direction(IP_CT_DIR_REPLY));
    let unmarked = [Meta(NFT_META_OIF), Is(Value::Word(LOOPBACK)), Meta(NFT_META_MARK), Is(Value::Word(0))];
    let elsewhere = [DestinationType, IsNot(Value::Word(RTN_LOCAL))];
    let begins = [Put(Value::Word(BEGINNING_MARK)), SetMeta(NFT_META_MARK)];
    let stay = [Put(Value::Word(MARK)), SetMeta(NFT_META_MARK)];
    let set_bits = |keep, bits| [Ct(NFT_CT_MARK), Mask(keep, bits), SetCt(NFT_CT_MARK)];
    let clear = |bit: u32| [Ct(NFT_CT_MARK), Mask(!bit, 0), SetCt(NFT_CT_MARK), Accept];
    let as_it_is = [SourceType, Is(Value::Word(RTN_LOCAL))];
    let either = [TcpFlags, MaskByte(SYN | RST), IsNot(Value::Byte(0))];
    [
        (OUTPUT, [&unmarked[..], &tcp, &no_beginning, &[Accept]].concat()),
        (OUTPUT, [&tcp[..], &relay, &set_bits(!CONNECTION_BIT, CONNECTION_BIT), &[Accept]].concat()),
        (OUTPUT, [&tcp[..], &forward, &set_bits(!FORWARD_BIT, FORWARD_BIT), &[Accept]].concat()),
        (OUTPUT, [&tcp[..], &taken, &no_beginning, &stay].concat()),
        (OUTPUT, [&tcp[..], &unmarked, &elsewhere, &begins].concat()),
        (PREROUTING, [&loopback[..], &relay, &stay].concat()),
        (PREROUTING, [&loopback[..], &forward, &stay].concat()),
        (PREROUTING, [&loopback[..], &[Accept]].concat()),
        (PREROUTING, [&tcp[..], &with(CONNECTION_BIT), &answered, &either, &clear(CONNECTION_BIT)].concat()),
        (PREROUTING, [&tcp[..], &with(FORWARD_BIT), &asked, &clear(FORWARD_BIT)].concat()),
        (PREROUTING, [&tcp[..], &taken, &no_beginning, &stay].concat()),
        (POSTROUTING, [&tcp[..], &as_it_is, &[Source(Family::V4), SourceNat(Family::V4)]].concat()),
        (POSTROUTING, [&tcp[..], &as_it_is, &[Source(Family::V6), SourceNat(Family::V6)]].concat()),
    ]
}

/// A part of a rule. All of them work on one register; a rule ends at the first comparison that fails.
#[derive(Clone, Copy, Debug)]
enum Term {
    /// Takes something about the packet.
    Meta(u32),
    /// Takes something about the connection.
    Ct(u32),
    /// Takes the flags of the TCP header.
    TcpFlags,
    /// Takes what kind of address the source is, as seen from the interface the packet leaves by.
    SourceType,
    /// Takes what kind of address the destination is.
    DestinationType,
    /// Takes the source's address; ends the rule if the packet is of the other family.
    Source(Family),
    /// Takes a value.
    Put(Value),
    /// Keeps these bits, then flips those.
    Mask(u32, u32),
    /// Keeps these bits of a byte.
    MaskByte(u8),
    Is(Value),
    IsNot(Value),
    /// Gives the packet what is in the register.
    SetMeta(u32),
    /// Gives the connection what is in the register.
    SetCt(u32),
    /// Gives the connection the source's address in the register.
    SourceNat(Family),
    Accept,
}

/// What a register holds: bytes as on the wire, words as the host has them.
#[derive(Clone, Copy, Debug)]
enum Value {
    Byte(u8),
    Word(u32),
}

impl Term {
    /// Whether it may be missing where NAT is.
    fn is_fib(self) -> bool {
        matches!(self, Term::SourceType | Term::DestinationType)
    }

    /// The expressions in `list`.
    fn write(self, list: &mut Body<'_>) {
        if let Term::Source(family) = self {
            Term::Meta(NFT_META_NFPROTO).write(list);
            Term::Is(Value::Byte(protocol(family))).write(list);
        }
        list.nested(NFTA_LIST_ELEM, |element| self.write_expression(element));
    }

    fn write_expression(self, element: &mut Body<'_>) {
        let name = match self {
            Term::Meta(_) | Term::SetMeta(_) => "meta",
            Term::Ct(_) | Term::SetCt(_) => "ct",
            Term::TcpFlags | Term::Source(_) => "payload",
            Term::SourceType | Term::DestinationType => "fib",
            Term::SourceNat(_) => "nat",
            Term::Put(_) | Term::Accept => "immediate",
            Term::Mask(..) | Term::MaskByte(_) => "bitwise",
            Term::Is(_) | Term::IsNot(_) => "cmp",
        };
        element.string(NFTA_EXPR_NAME, name);
        element.nested(NFTA_EXPR_DATA, |data| match self {
            Term::Meta(key) => {
                data.number(NFTA_META_KEY, key);
                data.number(NFTA_META_DREG, NFT_REG_1);
            }
            Term::SetMeta(key) => {
                data.number(NFTA_META_KEY, key);
                data.number(NFTA_META_SREG, NFT_REG_1);
            }
            Term::Ct(key) => {
                data.number(NFTA_CT_KEY, key);
                data.number(NFTA_CT_DREG, NFT_REG_1);
            }
            Term::SetCt(key) => {
                data.number(NFTA_CT_KEY, key);
                data.number(NFTA_CT_SREG, NFT_REG_1);
            }
            Term::TcpFlags => data.payload(NFT_PAYLOAD_TRANSPORT_HEADER, TCP_FLAGS_OFFSET, 1),
            Term::Source(Family::V4) => data.payload(NFT_PAYLOAD_NETWORK_HEADER, 12, 4),
            Term::Source(Family::V6) => data.payload(NFT_PAYLOAD_NETWORK_HEADER, 8, 16),
            Term::SourceType => data.address_type(NFTA_FIB_F_SADDR | NFTA_FIB_F_OIF),
            Term::DestinationType => data.address_type(NFTA_FIB_F_DADDR),
            Term::SourceNat(family) => {
                data.number(NFTA_NAT_TYPE, NFT_NAT_SNAT);
                data.number(NFTA_NAT_FAMILY, protocol(family).into());
                data.number(NFTA_NAT_REG_ADDR_MIN, NFT_REG_1);
            }
            Term::Put(value) => {
                data.number(NFTA_IMMEDIATE_DREG, NFT_REG_1);
                data.value(NFTA_IMMEDIATE_DATA, value);
            }
            Term::Accept => {
                data.number(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
                data.nested(NFTA_IMMEDIATE_DATA, |data| {
                    data.nested(NFTA_DATA_VERDICT, |verdict| verdict.number(NFTA_VERDICT_CODE, NF_ACCEPT));
                });
            }
            Term::Mask(keep, flip) => data.bitwise(4, Value::Word(keep), Value::Word(flip)),
            Term::MaskByte(keep) => data.bitwise(1, Value::Byte(keep), Value::Byte(0)),
            Term::Is(value) => data.compare(NFT_CMP_EQ, value),
            Term::IsNot(value) => data.compare(NFT_CMP_NEQ, value),
        });
    }
}

/// The attributes of a message (`struct nlattr`), numbers in network order.
struct Body<'a>(&'a mut Vec<u8>);

impl Body<'_> {
    fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.0.extend((ATTRIBUTE_HEADER + value.len() as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    fn string(&mut self, kind: u16, value: &str) {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat());
    }

    fn nested(&mut self, kind: u16, write: impl FnOnce(&mut Body<'_>)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend((kind | NLA_F_NESTED).to_ne_bytes());
        write(&mut Body(self.0));
        let len = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }

    fn value(&mut self, kind: u16, value: Value) {
        self.nested(kind, |data| match value {
            Value::Byte(byte) => data.bytes(NFTA_DATA_VALUE, &[byte]),
            Value::Word(word) => data.bytes(NFTA_DATA_VALUE, &word.to_ne_bytes()),
        });
    }

    fn payload(&mut self, base: u32, offset: u32, len: u32) {
        self.number(NFTA_PAYLOAD_DREG, NFT_REG_1);
        self.number(NFTA_PAYLOAD_BASE, base);
        self.number(NFTA_PAYLOAD_OFFSET, offset);
        self.number(NFTA_PAYLOAD_LEN, len);
    }

    fn address_type(&mut self, flags: u32) {
        self.number(NFTA_FIB_DREG, NFT_REG_1);
        self.number(NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE);
        self.number(NFTA_FIB_FLAGS, flags);
    }

    fn compare(&mut self, how: u32, value: Value) {
        self.number(NFTA_CMP_SREG, NFT_REG_1);
        self.number(NFTA_CMP_OP, how);
        self.value(NFTA_CMP_DATA, value);
    }

    fn bitwise(&mut self, len: u32, keep: Value, flip: Value) {
        self.number(NFTA_BITWISE_SREG, NFT_REG_1);
        self.number(NFTA_BITWISE_DREG, NFT_REG_1);
        self.number(NFTA_BITWISE_LEN, len);
        self.value(NFTA_BITWISE_MASK, keep);
        self.value(NFTA_BITWISE_XOR, flip);
    }
}

fn protocol(family: Family) -> u8 {
    match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    }
}

const OUTPUT: &str = "output";
const PREROUTING: &str = "prerouting";
const POSTROUTING: &str = "postrouting";
/// Index of the loopback interface, in every namespace.
const LOOPBACK: u32 = 1;

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
const TCP_FLAGS_OFFSET: u32 = 13;

// linux/netlink.h
const NLM_F_REQUEST: u16 = 0x001;
const NLM_F_ACK: u16 = 0x004;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;
const ATTRIBUTE_HEADER: u16 = 4;

// linux/netfilter.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_conntrack_tuple_common.h, linux/netfilter_ipv4.h
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNETLINK_V0: u8 = 0;
const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NF_INET_PRE_ROUTING: u32 = 0;
const NF_INET_LOCAL_OUT: u32 = 3;
const NF_INET_POST_ROUTING: u32 = 4;
const NF_IP_PRI_MANGLE: i32 = -150;
const NF_IP_PRI_NAT_SRC: i32 = 100;
const NF_ACCEPT: u32 = 1;
const IP_CT_DIR_ORIGINAL: u8 = 0;
const IP_CT_DIR_REPLY: u8 = 1;
// linux/rtnetlink.h
const RTN_LOCAL: u32 = 2;

// linux/netfilter/nf_tables.h
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_TABLE_F_OWNER: u32 = 2;
const NFT_REG_VERDICT: u32 = 0;
const NFT_REG_1: u32 = 1;
const NFT_CMP_EQ: u32 = 0;
const NFT_CMP_NEQ: u32 = 1;
const NFT_META_MARK: u32 = 3;
const NFT_META_IIF: u32 = 4;
const NFT_META_OIF: u32 = 5;
const NFT_META_NFPROTO: u32 = 15;
const NFT_META_L4PROTO: u32 = 16;
const NFT_CT_DIRECTION: u32 = 1;
const NFT_CT_MARK: u32 = 3;
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
const NFT_NAT_SNAT: u32 = 0;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFTA_META_SREG: u16 = 3;
const NFTA_CT_DREG: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFTA_CT_SREG: u16 = 4;
const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFTA_FIB_DREG: u16 = 1;
const NFTA_FIB_RESULT: u16 = 2;
const NFTA_FIB_FLAGS: u16 = 3;
const NFTA_FIB_F_SADDR: u32 = 1;
const NFTA_FIB_F_DADDR: u32 = 2;
const NFTA_FIB_F_OIF: u32 = 16;
const NFTA_NAT_TYPE: u16 = 1;
const NFTA_NAT_FAMILY: u16 = 2;
const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFTA_BITWISE_SREG: u16 = 1;
const NFTA_BITWISE_DREG: u16 = 2;
const NFTA_BITWISE_LEN: u16 = 3;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_BITWISE_XOR: u16 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    /// The messages of a batch: sequence number, type, bytes.
    fn messages(mut bytes: &[u8]) -> Vec<(u32, u16, &[u8])> {
        let mut found = Vec::new();
        while let Some(header) = bytes.first_chunk::<12>() {
            let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
            let kind = u16::from_ne_bytes([header[4], header[5]]);
            let sequence = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
            found.push((sequence, kind, &bytes[..len]));
            bytes = &bytes[len..];
        }
        assert!(bytes.is_empty());
        found
    }

    #[test]
    fn a_batch_has_a_beginning_an_end_and_numbers() {
        let batch = Batch::table(Owner::Socket, Nat::Present);
        let messages = messages(&batch.bytes);
        let kinds: Vec<u16> = messages.iter().map(|message| message.1).collect();
        let of = |kind| NFNL_SUBSYS_NFTABLES << 8 | kind;
        let table = [NFT_MSG_NEWTABLE, NFT_MSG_DELTABLE, NFT_MSG_NEWTABLE].map(of);
        let chains = [of(NFT_MSG_NEWCHAIN); 3];
        let rules = [of(NFT_MSG_NEWRULE); 13];
        let expected = [&[NFNL_MSG_BATCH_BEGIN], &table[..], &chains, &rules, &[NFNL_MSG_BATCH_END]].concat();
        assert_eq!(kinds, expected);
        assert!((0..).zip(&messages).all(|(number, message)| message.0 == number));
        assert_eq!(batch.last() as usize, messages.len() - 2);
        let steps = [EgressStep::Commit, EgressStep::Table, EgressStep::Chain, EgressStep::Rule];
        assert_eq!([0, 3, 4, 7].map(|number| batch.step(number)), steps);
        assert_eq!(batch.step(99), EgressStep::Commit);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn table_and_chain_are_what_nft_would_send() {
        let batch = Batch::table(Owner::Nobody, Nat::Absent);
        let messages = messages(&batch.bytes);
        #[rustfmt::skip]
        assert_eq!(messages[1].2, [
            40, 0, 0, 0, 0, 10, 5, 12, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0,
            20, 0, 1, 0, b'r', b'o', b'o', b't', b'l', b'e', b's', b's', b'-', b'l', b'a', b'u', b'n', b'c', b'h', 0,
        ]);
        #[rustfmt::skip]
        assert_eq!(messages[4].2[40..], [
            11, 0, 3, 0, b'o', b'u', b't', b'p', b'u', b't', 0, 0,
            20, 0, 4, 128, 8, 0, 1, 0, 0, 0, 0, 3, 8, 0, 2, 0, 255, 255, 255, 106,
            8, 0, 5, 0, 0, 0, 0, 1,
            10, 0, 7, 0, b'r', b'o', b'u', b't', b'e', 0, 0, 0,
        ]);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_rule_is_what_nft_would_send() {
        let batch = Batch::table(Owner::Nobody, Nat::Absent);
        let messages = messages(&batch.bytes);
        // Behind the names of table and chain: `iif lo accept`.
        #[rustfmt::skip]
        assert_eq!(messages[12].2[56..], [
            132, 0, 4, 128,
            36, 0, 1, 128,
                9, 0, 1, 0, b'm', b'e', b't', b'a', 0, 0, 0, 0,
                20, 0, 2, 128, 8, 0, 2, 0, 0, 0, 0, 4, 8, 0, 1, 0, 0, 0, 0, 1,
            44, 0, 1, 128,
                8, 0, 1, 0, b'c', b'm', b'p', 0,
                32, 0, 2, 128, 8, 0, 1, 0, 0, 0, 0, 1, 8, 0, 2, 0, 0, 0, 0, 0,
                12, 0, 3, 128, 8, 0, 1, 0, 1, 0, 0, 0,
            48, 0, 1, 128,
                14, 0, 1, 0, b'i', b'm', b'm', b'e', b'd', b'i', b'a', b't', b'e', 0, 0, 0,
                28, 0, 2, 128, 8, 0, 1, 0, 0, 0, 0, 0,
                16, 0, 2, 128, 12, 0, 2, 128, 8, 0, 1, 0, 0, 0, 0, 1,
        ]);
    }
}
