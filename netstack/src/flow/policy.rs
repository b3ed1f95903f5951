//! Egress policy: which destinations the child may reach.
//!
//! # Theory of operation
//! Rules are tried in order, the first match wins, no match allows. A rule is written
//!
//! ```text
//! allow|deny [tcp|udp|icmp|any] TARGET[:PORT|:LOW-HIGH]
//! ```
//!
//! where TARGET is `any`, an address, or a network; IPv6 stands in brackets where ports follow:
//! `deny tcp 10.0.0.0/8:22`, `allow udp any:53`, `deny [fd00::/8]:443`, `deny any`. A rule with ports is
//! about TCP and UDP only. `icmp` means ICMP and ICMPv6.
//!
//! *No way around.* An IPv4 host can be addressed in IPv6 disguise. An IPv4-mapped address *is* its IPv4
//! address, the kernel sends IPv4. Behind translation (NAT64, SIIT) and tunnel addresses (6to4, Teredo,
//! ISATAP, IPv4-compatible) the packet may end at the IPv4 host, depending on routers we do not see.
//! Therefore `deny` rules match the embedded address too, `allow` rules never do. Translation prefixes that
//! an operator chose for himself (RFC 6052 section 2.2) look like any other; they need rules of their own.
//!
//! Matching is linear: it happens once per flow, and [`EgressPolicy::MAX_RULES`] bounds it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::config::{Ipv4Net, Ipv6Net};
use crate::error::ConfigError;
use crate::flow::Protocol;
use crate::time::{Duration, Instant};

/// Rules by destination, first match wins. The default allows everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EgressPolicy {
    rules: Vec<Rule>,
}

impl EgressPolicy {
    /// Most rules of one policy.
    pub const MAX_RULES: usize = 1024;

    /// A policy of these rules, in this order.
    pub fn from_rules(rules: Vec<Rule>) -> Result<Self, ConfigError> {
        match rules.len() {
            0..=Self::MAX_RULES => Ok(EgressPolicy { rules }),
            len => Err(ConfigError::PolicyTooLong(len, Self::MAX_RULES)),
        }
    }

    /// What becomes of a flow to `dst`. The port does not count for ICMP.
    pub fn decide(&self, protocol: Protocol, dst: SocketAddr) -> Verdict {
        self.verdict(self.deciding_rule(protocol, dst))
    }

    /// What the rule of that index says, or the absence of one.
    pub fn verdict(&self, rule: Option<usize>) -> Verdict {
        let deny = |&rule: &usize| self.rules.get(rule).is_some_and(|rule| rule.effect == Effect::Deny);
        rule.filter(deny).map_or(Verdict::Allow, |rule| Verdict::Deny { rule })
    }

    /// The index of the rule that decides about a flow to `dst`: the first that matches.
    pub fn deciding_rule(&self, protocol: Protocol, dst: SocketAddr) -> Option<usize> {
        let address = dst.ip().to_canonical();
        let embedded = match address {
            IpAddr::V4(_) => [None; 4],
            IpAddr::V6(v6) => embedded_v4(v6),
        };
        self.rules.iter().position(|rule| {
            let is_target = |address| rule.target.contains(address);
            let in_disguise = || embedded.iter().flatten().any(|&v4| is_target(IpAddr::V4(v4)));
            rule.covers(protocol, dst.port())
                && (is_target(address) || (rule.effect == Effect::Deny && in_disguise()))
        })
    }

    /// The rules, in order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
}

/// Reads one rule per line; empty lines and lines that begin with `#` are left out.
impl FromStr for EgressPolicy {
    type Err = ConfigError;

    fn from_str(s: &str) -> Result<Self, ConfigError> {
        let lines = s.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        EgressPolicy::from_rules(lines.map(str::parse).collect::<Result<_, _>>()?)
    }
}

/// Writes one rule per line, so that it can be read again.
impl fmt::Display for EgressPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rules.iter().try_for_each(|rule| writeln!(f, "{rule}"))
    }
}

/// What the policy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The flow may be opened.
    Allow,
    /// It may not.
    Deny {
        /// Index of the rule that says so.
        rule: usize,
    },
}

/// One rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    effect: Effect,
    protocol: RuleProtocol,
    target: Target,
    ports: Option<Ports>,
}

impl Rule {
    fn covers(&self, protocol: Protocol, port: u16) -> bool {
        let is_icmp = matches!(protocol, Protocol::Icmp | Protocol::Icmpv6);
        let protocol_matches = match self.protocol {
            RuleProtocol::Any => true,
            RuleProtocol::Tcp => protocol == Protocol::Tcp,
            RuleProtocol::Udp => protocol == Protocol::Udp,
            RuleProtocol::Icmp => is_icmp,
        };
        protocol_matches
            && self.ports.is_none_or(|ports| !is_icmp && (ports.low..=ports.high).contains(&port))
    }
}

impl FromStr for Rule {
    type Err = ConfigError;

    fn from_str(s: &str) -> Result<Self, ConfigError> {
        parse(s).map_err(|problem| ConfigError::PolicyRule { rule: s.to_owned(), problem })
    }
}

/// Writes the rule so that it can be read again; equal rules look the same.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.effect {
            Effect::Allow => "allow ",
            Effect::Deny => "deny ",
        })?;
        f.write_str(match self.protocol {
            RuleProtocol::Tcp => "tcp ",
            RuleProtocol::Udp => "udp ",
            RuleProtocol::Icmp => "icmp ",
            RuleProtocol::Any => "",
        })?;
        match (self.target, self.ports) {
            (Target::V6(_), Some(_)) => write!(f, "[{}]", self.target)?,
            _ => write!(f, "{}", self.target)?,
        }
        match self.ports {
            None => Ok(()),
            Some(Ports { low, high }) if low == high => write!(f, ":{low}"),
            Some(Ports { low, high }) => write!(f, ":{low}-{high}"),
        }
    }
}

/// Which refusals are worth a line in the log: each rule once a minute, with the number of those left out.
#[derive(Clone, Debug, Default)]
pub struct RefusalLog {
    /// By rule.
    rules: Vec<Option<Logged>>,
}

impl RefusalLog {
    /// For how long a rule stays silent after it was logged.
    pub const INTERVAL: Duration = Duration::from_secs(60);

    /// Counts a refusal by `rule` (an index of the policy). `Some` where it may be logged: how many were not
    /// since the last one that was.
    pub fn should_log(&mut self, now: Instant, rule: usize) -> Option<u64> {
        if rule >= EgressPolicy::MAX_RULES {
            return None;
        }
        if rule >= self.rules.len() {
            self.rules.resize(rule + 1, None);
        }
        match &mut self.rules[rule] {
            Some(logged) if now < logged.at + Self::INTERVAL => {
                logged.suppressed += 1;
                None
            }
            logged => {
                let before = logged.replace(Logged { at: now, suppressed: 0 });
                Some(before.map_or(0, |before| before.suppressed))
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Logged {
    at: Instant,
    suppressed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Allow,
    Deny,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RuleProtocol {
    Any,
    Tcp,
    Udp,
    Icmp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Any,
    V4(Ipv4Net),
    V6(Ipv6Net),
}

impl Target {
    fn contains(self, address: IpAddr) -> bool {
        match (self, address) {
            (Target::Any, _) => true,
            (Target::V4(net), IpAddr::V4(address)) => net.contains(address),
            (Target::V6(net), IpAddr::V6(address)) => net.contains(address),
            _ => false,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Any => f.write_str("any"),
            Target::V4(net) if net.prefix() == 32 => write!(f, "{}", net.network()),
            Target::V4(net) => write!(f, "{net}"),
            Target::V6(net) if net.prefix() == 128 => write!(f, "{}", net.network()),
            Target::V6(net) => write!(f, "{net}"),
        }
    }
}

/// Inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ports {
    low: u16,
    high: u16,
}

fn parse(s: &str) -> Result<Rule, &'static str> {
    let mut words = s.split_ascii_whitespace();
    let effect = match words.next() {
        Some("allow") => Effect::Allow,
        Some("deny") => Effect::Deny,
        _ => return Err("has to begin with allow or deny"),
    };
    let (protocol, destination) = match (words.next(), words.next(), words.next()) {
        (Some(destination), None, _) => (RuleProtocol::Any, destination),
        (Some("tcp"), Some(destination), None) => (RuleProtocol::Tcp, destination),
        (Some("udp"), Some(destination), None) => (RuleProtocol::Udp, destination),
        (Some("icmp"), Some(destination), None) => (RuleProtocol::Icmp, destination),
        (Some("any"), Some(destination), None) => (RuleProtocol::Any, destination),
        (None, ..) => return Err("the destination is missing"),
        (_, _, Some(_)) => return Err("there is more than protocol and destination"),
        _ => return Err("the protocol has to be tcp, udp, icmp or any"),
    };
    let (target, ports) = split_ports(destination)?;
    let (target, ports) = (parse_target(target)?, ports.map(parse_ports).transpose()?);
    if protocol == RuleProtocol::Icmp && ports.is_some() {
        return Err("ICMP has no ports");
    }
    Ok(Rule { effect, protocol, target, ports })
}

/// `[V6]:PORTS`, `[V6]`, `V6`, `OTHER:PORTS` or `OTHER`.
fn split_ports(destination: &str) -> Result<(&str, Option<&str>), &'static str> {
    if let Some(bracketed) = destination.strip_prefix('[') {
        let (target, rest) = bracketed.split_once(']').ok_or("the bracket is not closed")?;
        if !target.contains(':') {
            return Err("brackets are for IPv6");
        }
        return match rest.strip_prefix(':') {
            Some(ports) => Ok((target, Some(ports))),
            None if rest.is_empty() => Ok((target, None)),
            None => Err("a colon and ports have to follow the bracket"),
        };
    }
    match destination.split_once(':') {
        None => Ok((destination, None)),
        Some((_, rest)) if rest.contains(':') => Ok((destination, None)),
        Some((target, ports)) => Ok((target, Some(ports))),
    }
}

fn parse_target(s: &str) -> Result<Target, &'static str> {
    const SYNTAX: &str = "the destination has to be any, an address, or a network such as 10.0.0.0/8";
    const NET: &str = "the prefix is too long, or host bits are set";
    if s == "any" {
        return Ok(Target::Any);
    }
    let (address, prefix) = match s.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix.parse::<u8>().map_err(|_| SYNTAX)?)),
        None => (s, None),
    };
    match address.parse().map_err(|_| SYNTAX)? {
        IpAddr::V4(v4) => Ok(Target::V4(Ipv4Net::new(v4, prefix.unwrap_or(32)).map_err(|_| NET)?)),
        IpAddr::V6(v6) => {
            let net = Ipv6Net::new(v6, prefix.unwrap_or(128)).map_err(|_| NET)?;
            // Addresses are compared in canonical form, so the rule has to be as well.
            match (net.network().to_ipv4_mapped(), net.prefix().checked_sub(96)) {
                (Some(v4), Some(prefix)) => Ok(Target::V4(Ipv4Net::new(v4, prefix).map_err(|_| NET)?)),
                _ => Ok(Target::V6(net)),
            }
        }
    }
}

fn parse_ports(s: &str) -> Result<Ports, &'static str> {
    let port = |s: &str| match s.bytes().all(|byte| byte.is_ascii_digit()) {
        true => s.parse().map_err(|_| "a port is a number up to 65535"),
        false => Err("a port is a number up to 65535"),
    };
    let (low, high) = s.split_once('-').unwrap_or((s, s));
    let ports = Ports { low: port(low)?, high: port(high)? };
    if ports.low > ports.high {
        return Err("the lower port has to come first");
    }
    Ok(ports)
}

/// The IPv4 addresses that a packet to `address` may end up at.
fn embedded_v4(address: Ipv6Addr) -> [Option<Ipv4Addr>; 4] {
    let octets = address.octets();
    let at = |indices: [usize; 4]| Some(Ipv4Addr::from(indices.map(|index| octets[index])));
    let last = at([12, 13, 14, 15]);
    match address.segments() {
        // IPv4-compatible, RFC 4291 section 2.5.5.1; not :: and ::1.
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 || low > 1 => [last, None, None, None],
        // SIIT, RFC 2765 section 2.1.
        [0, 0, 0, 0, 0xffff, 0, ..] => [last, None, None, None],
        // NAT64's well-known prefix, RFC 6052 section 2.1.
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => [last, None, None, None],
        // NAT64 prefixes of local use, RFC 8215: any length that RFC 6052 section 2.2 allows inside.
        [0x64, 0xff9b, 1, ..] => [last, at([6, 7, 9, 10]), at([7, 9, 10, 11]), at([9, 10, 11, 12])],
        // 6to4, RFC 3056 section 2: the router of the site.
        [0x2002, ..] => [at([2, 3, 4, 5]), None, None, None],
        // Teredo, RFC 4380 section 4: server, and client with all bits inverted.
        [0x2001, 0, ..] => {
            let client = last.map(|client| Ipv4Addr::from(!u32::from(client)));
            [at([4, 5, 6, 7]), client, None, None]
        }
        // ISATAP, RFC 5214 section 6.1, in any prefix.
        [_, _, _, _, 0 | 0x200, 0x5efe, ..] => [last, None, None, None],
        _ => [None; 4],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(rules: &[&str]) -> EgressPolicy {
        EgressPolicy::from_rules(rules.iter().map(|rule| rule.parse().unwrap()).collect()).unwrap()
    }

    #[track_caller]
    fn expect(rules: &[&str], protocol: Protocol, dst: &str, rule: Option<usize>) {
        let verdict = rule.map_or(Verdict::Allow, |rule| Verdict::Deny { rule });
        assert_eq!(policy(rules).decide(protocol, dst.parse().unwrap()), verdict);
    }

    use Protocol::{Icmp, Icmpv6, Tcp, Udp};

    #[test]
    fn nothing_is_refused_by_default() {
        assert_eq!(EgressPolicy::default().decide(Tcp, "10.0.0.1:22".parse().unwrap()), Verdict::Allow);
        expect(&["deny 192.0.2.0/24"], Tcp, "10.0.0.1:22", None);
    }

    #[test]
    fn a_policy_is_read_and_written_line_by_line() {
        let text = "# who\n\n  deny tcp any:25 \nallow udp [2001:db8::]/32:53\n";
        let fault = text.parse::<EgressPolicy>().unwrap_err();
        assert!(matches!(fault, ConfigError::PolicyRule { .. }));
        let policy: EgressPolicy = "# who\n\n  deny tcp any:25 \nallow any 10.0.0.0/8".parse().unwrap();
        assert_eq!(policy.to_string(), "deny tcp any:25\nallow 10.0.0.0/8\n");
        assert_eq!(policy.to_string().parse(), Ok(policy));
        assert_eq!("".parse(), Ok(EgressPolicy::default()));
    }

    #[test]
    fn the_deciding_rule_is_named_for_allowing_ones_too() {
        let policy = policy(&["allow 10.1.0.0/16", "deny 10.0.0.0/8"]);
        let rule = |dst: &str| policy.deciding_rule(Tcp, dst.parse().unwrap());
        assert_eq!(rule("10.1.2.3:80"), Some(0));
        assert_eq!(rule("10.2.2.3:80"), Some(1));
        assert_eq!(rule("192.0.2.1:80"), None);
    }

    #[test]
    fn the_first_match_wins() {
        let rules = ["allow 10.1.0.0/16", "deny 10.0.0.0/8", "allow 10.2.0.0/16"];
        expect(&rules, Tcp, "10.1.2.3:80", None);
        expect(&rules, Tcp, "10.2.2.3:80", Some(1));
    }

    #[test]
    fn protocol_and_ports_narrow_a_rule() {
        let rules = ["deny tcp 10.0.0.0/8:22", "deny udp any:1000-2000", "deny any:7", "deny icmp 10.0.0.1"];
        expect(&rules, Tcp, "10.9.9.9:22", Some(0));
        expect(&rules, Tcp, "10.9.9.9:23", None);
        expect(&rules, Udp, "10.9.9.9:22", None);
        expect(&rules, Udp, "[2001:db8::1]:1000", Some(1));
        expect(&rules, Udp, "[2001:db8::1]:2000", Some(1));
        expect(&rules, Udp, "[2001:db8::1]:2001", None);
        expect(&rules, Tcp, "1.1.1.1:7", Some(2));
        expect(&rules, Icmp, "1.1.1.1:7", None);
        expect(&rules, Icmp, "10.0.0.1:7", Some(3));
        expect(&["deny icmp any"], Icmpv6, "[2001:db8::1]:0", Some(0));
    }

    #[test]
    fn any_is_both_families() {
        for dst in ["10.0.0.1:1", "[2001:db8::1]:1", "[::ffff:10.0.0.1]:1"] {
            expect(&["deny any"], Udp, dst, Some(0));
        }
        expect(&["deny ::/0"], Udp, "10.0.0.1:1", None);
        expect(&["deny 0.0.0.0/0"], Udp, "[2001:db8::1]:1", None);
    }

    #[test]
    fn an_ipv6_disguise_is_no_way_around_a_denial() {
        for dst in [
            "::ffff:10.1.2.3",
            "::10.1.2.3",
            "::ffff:0:10.1.2.3",
            "64:ff9b::10.1.2.3",
            "64:ff9b:1::10.1.2.3",
            "64:ff9b:1:a01:2:300::",
            "64:ff9b:1:a:1:203::",
            "64:ff9b:1::a:102:300:0",
            "2002:a01:203::1",
            "2001:0:a01:203::1",
            "2001::f5fe:fdfc",
            "fe80::5efe:10.1.2.3",
            "2001:db8::200:5efe:10.1.2.3",
        ] {
            expect(&["deny tcp 10.1.2.3:22"], Tcp, &format!("[{dst}]:22"), Some(0));
            expect(&["deny tcp 10.1.2.4:22"], Tcp, &format!("[{dst}]:22"), None);
        }
    }

    #[test]
    fn an_ipv6_disguise_is_no_way_into_a_permission() {
        let rules = ["allow 10.1.2.3", "deny any"];
        expect(&rules, Tcp, "10.1.2.3:80", None);
        expect(&rules, Tcp, "[::ffff:10.1.2.3]:80", None);
        expect(&rules, Tcp, "[64:ff9b::10.1.2.3]:80", Some(1));
        expect(&rules, Tcp, "[2002:a01:203::1]:80", Some(1));
    }

    #[test]
    fn rules_in_ipv6_disguise_are_ipv4_rules() {
        expect(&["deny [::ffff:10.0.0.0/104]:22"], Tcp, "10.1.2.3:22", Some(0));
        let rule: Rule = "deny ::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(rule.to_string(), "deny 10.0.0.1");
    }

    #[test]
    fn rules_are_shown_in_one_form() {
        for (given, shown) in [
            ("deny  any  any", "deny any"),
            ("allow udp any:53", "allow udp any:53"),
            ("allow udp any:53-53", "allow udp any:53"),
            ("deny tcp 10.0.0.0/8:22", "deny tcp 10.0.0.0/8:22"),
            ("deny [fd00::/8]:443", "deny [fd00::/8]:443"),
            ("deny [fd00::/8]", "deny fd00::/8"),
            ("deny any ::1/128", "deny ::1"),
            ("allow 192.0.2.1/32:0-1023", "allow 192.0.2.1:0-1023"),
        ] {
            assert_eq!(given.parse::<Rule>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_rule_is_refused_with_a_reason() {
        for (given, reason) in [
            ("", "has to begin with allow or deny"),
            ("block any", "has to begin with allow or deny"),
            ("deny", "the destination is missing"),
            ("deny sctp any", "the protocol has to be tcp, udp, icmp or any"),
            ("deny tcp any 22", "there is more than protocol and destination"),
            ("deny tcp", "the destination has to be any, an address, or a network such as 10.0.0.0/8"),
            ("deny 10.0.0/8", "the destination has to be any, an address, or a network such as 10.0.0.0/8"),
            ("deny 10.0.0.1/8", "the prefix is too long, or host bits are set"),
            ("deny 10.0.0.0/33", "the prefix is too long, or host bits are set"),
            ("deny icmp any:7", "ICMP has no ports"),
            ("deny any:65536", "a port is a number up to 65535"),
            ("deny any:", "a port is a number up to 65535"),
            ("deny any:+1", "a port is a number up to 65535"),
            ("deny any:9-1", "the lower port has to come first"),
            ("deny [fd00::/8", "the bracket is not closed"),
            ("deny [fd00::/8]443", "a colon and ports have to follow the bracket"),
            ("deny [10.0.0.1]:443", "brackets are for IPv6"),
        ] {
            let expected = ConfigError::PolicyRule { rule: given.to_owned(), problem: reason };
            assert_eq!(given.parse::<Rule>(), Err(expected));
        }
    }

    #[test]
    fn the_number_of_rules_is_bounded() {
        let rule: Rule = "deny any".parse().unwrap();
        assert!(EgressPolicy::from_rules(vec![rule; 1024]).is_ok());
        let error = EgressPolicy::from_rules(vec![rule; 1025]).unwrap_err();
        assert_eq!(error.to_string(), "1025 policy rules are more than 1024");
    }

    #[test]
    fn each_rule_is_logged_once_a_minute() {
        let mut log = RefusalLog::default();
        let at = Instant::from_secs;
        assert_eq!(log.should_log(at(0), 5), Some(0));
        assert_eq!(log.should_log(at(1), 5), None);
        assert_eq!(log.should_log(at(59), 5), None);
        assert_eq!(log.should_log(at(59), 2), Some(0));
        assert_eq!(log.should_log(at(60), 5), Some(2));
        assert_eq!(log.should_log(at(61), 5), None);
        assert_eq!(log.should_log(at(61), usize::MAX), None);
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let target = prop_oneof![
            Just(Target::Any),
            (any::<u32>(), 0..=32u8).prop_map(|(bits, prefix)| {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                Target::V4(Ipv4Net::new((bits & mask).into(), prefix).unwrap())
            }),
            (any::<u128>(), 0..=128u8).prop_map(|(bits, prefix)| {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                Target::V6(Ipv6Net::new((bits & mask).into(), prefix).unwrap())
            }),
        ];
        let ports = proptest::option::of(
            (any::<u16>(), any::<u16>()).prop_map(|(a, b)| Ports { low: a.min(b), high: a.max(b) }),
        );
        let effect = prop_oneof![Just(Effect::Allow), Just(Effect::Deny)];
        let protocol = prop_oneof![Just(RuleProtocol::Any), Just(RuleProtocol::Tcp), Just(RuleProtocol::Udp)];
        (effect, protocol, target, ports).prop_map(|(effect, protocol, target, ports)| Rule {
            effect,
            protocol,
            target,
            ports,
        })
    }

    proptest! {
        #[test]
        fn a_rule_survives_its_text(rule in rule()) {
            prop_assert_eq!(rule.to_string().parse(), Ok(rule));
        }

        #[test]
        fn no_text_makes_it_panic(text in "(allow|deny) ?(tcp )?[0-9a-f:./\\[\\] any-]{0,20}") {
            if let Ok(rule) = text.parse::<Rule>() {
                prop_assert_eq!(rule.to_string().parse(), Ok(rule));
            }
        }
    }
}
