//! The port specifications of pasta's `-t`, `-u`, `-T` and `-U`. Pure.
//!
//! ```text
//! none | auto | all | [ADDRESS][%INTERFACE]/LIST | LIST
//! LIST = PORTS[:PORTS] | ~PORTS | auto, separated by commas
//! ```
//! `~PORTS` takes ports out of the ranges beside it; exclusions alone mean everything else.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use thiserror::Error;

/// What a list of ports says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Nothing is forwarded.
    None,
    /// What listens on the other side, followed as it changes, but for these ports.
    Auto(Vec<RangeInclusive<u16>>),
    /// These.
    These(Vec<PortRule>),
}

/// Ports of one side that lead to ports of the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRule {
    /// Where to listen, if not everywhere.
    pub address: Option<IpAddr>,
    /// The one interface to listen on.
    pub interface: Option<String>,
    /// Ports that are listened on.
    pub listen: RangeInclusive<u16>,
    /// The port of the other side that belongs to the first of them.
    pub target: u16,
    /// What a port means that cannot be had.
    pub strength: Strength,
}

/// What a port means that cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strength {
    /// Failure: it was asked for by its number.
    Wanted,
    /// Nothing: it is one of "all".
    IfFree,
}

/// A list that cannot be read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("Invalid port specifier {0}")]
pub struct PortsError(pub String);

/// The ports that "all" means: those that programs do not get by themselves
/// (`net.ipv4.ip_local_port_range` by its default).
const ALL: RangeInclusive<u16> = 1..=32767;
/// Ports of a piece of "all".
const CHUNK: u16 = 256;

impl Ports {
    /// Reads a specification.
    ///
    /// # Errors
    /// Names the whole text.
    pub fn parse(text: &str) -> Result<Self, PortsError> {
        Self::read(text).ok_or_else(|| PortsError(text.to_owned()))
    }

    fn read(text: &str) -> Option<Self> {
        match text {
            "none" => return Some(Ports::None),
            "auto" => return Some(Ports::Auto(Vec::new())),
            "all" => return Some(Ports::These(vec![PortRule::everywhere(ALL)])),
            _ => {}
        }
        let (place, list) = match text.rsplit_once('/') {
            Some((place, list)) => (place, list),
            None => ("", text),
        };
        let (address, interface) = read_place(place)?;
        let mut wanted: Vec<(RangeInclusive<u16>, u16, Strength)> = Vec::new();
        let mut excluded = Vec::new();
        let mut auto = false;
        for part in list.split(',') {
            if part == "auto" {
                auto = true;
            } else if part == "all" {
                wanted.push((ALL, *ALL.start(), Strength::IfFree));
            } else if let Some(part) = part.strip_prefix('~') {
                excluded.push(read_range(part)?);
            } else {
                let (listen, target) = read_pair(part)?;
                wanted.push((listen, target, Strength::Wanted));
            }
        }
        if auto {
            // What follows by itself cannot be bound to one place, and needs no list beside it.
            return (wanted.is_empty() && place.is_empty()).then_some(Ports::Auto(excluded));
        }
        if wanted.is_empty() {
            wanted.push((ALL, *ALL.start(), Strength::IfFree));
        }
        let rules = wanted.into_iter().flat_map(|(listen, target, strength)| {
            without(listen.clone(), &excluded)
                .into_iter()
                .map(move |piece| (target + (piece.start() - listen.start()), piece, strength))
        });
        let rules = rules.map(|(target, listen, strength)| PortRule {
            address,
            interface: interface.clone(),
            listen,
            target,
            strength,
        });
        Some(Ports::These(rules.collect()))
    }
}

impl PortRule {
    fn everywhere(listen: RangeInclusive<u16>) -> Self {
        let target = *listen.start();
        PortRule { address: None, interface: None, listen, target, strength: Strength::IfFree }
    }

    /// Pieces of it that are opened as one: what is taken of "all" costs no more than its piece a second time.
    pub fn chunks(&self) -> impl Iterator<Item = PortRule> {
        let size = match self.strength {
            Strength::Wanted => u16::MAX,
            Strength::IfFree => CHUNK,
        };
        let last = *self.listen.end();
        let starts = self.listen.clone().step_by(size.into());
        starts.map(move |first| PortRule {
            listen: first..=last.min(first.saturating_add(size - 1)),
            target: self.target_of(first),
            ..self.clone()
        })
    }

    /// The port of the other side that belongs to `port` of these.
    pub fn target_of(&self, port: u16) -> u16 {
        self.target + (port - self.listen.start())
    }
}

fn read_place(text: &str) -> Option<(Option<IpAddr>, Option<String>)> {
    let (address, interface) = match text.split_once('%') {
        Some((address, interface)) => (address, Some(interface.to_owned())),
        None => (text, None),
    };
    if interface.as_ref().is_some_and(String::is_empty) {
        return None;
    }
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    match bare {
        "" => Some((None, interface)),
        bare => Some((Some(bare.parse().ok()?), interface)),
    }
}

fn read_pair(text: &str) -> Option<(RangeInclusive<u16>, u16)> {
    match text.split_once(':') {
        None => read_range(text).map(|listen| (listen.clone(), *listen.start())),
        Some((listen, target)) => {
            let (listen, target) = (read_range(listen)?, read_range(target)?);
            (listen.len() == target.len()).then_some((listen, *target.start()))
        }
    }
}

fn read_range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (read_port(first)?, read_port(last)?);
    (first <= last).then_some(first..=last)
}

fn read_port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok())?.filter(|&port| port != 0)
}

/// The pieces of `range` that are left when `holes` are taken out.
fn without(range: RangeInclusive<u16>, holes: &[RangeInclusive<u16>]) -> Vec<RangeInclusive<u16>> {
    let mut pieces = vec![range];
    for hole in holes {
        pieces = pieces
            .into_iter()
            .flat_map(|piece| {
                let before = (*piece.start(), (*piece.end()).min(hole.start().saturating_sub(1)));
                let behind = ((*piece.start()).max(hole.end().saturating_add(1)), *piece.end());
                let apart = hole.end() < piece.start() || hole.start() > piece.end();
                let pieces = if apart { vec![(*piece.start(), *piece.end())] } else { vec![before, behind] };
                pieces.into_iter().filter(|(first, last)| first <= last).map(|(first, last)| first..=last)
            })
            .collect();
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn these(text: &str) -> Vec<(RangeInclusive<u16>, u16)> {
        match Ports::parse(text) {
            Ok(Ports::These(rules)) => rules.into_iter().map(|rule| (rule.listen, rule.target)).collect(),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn words_are_read() {
        assert_eq!(Ports::parse("none"), Ok(Ports::None));
        assert_eq!(Ports::parse("auto"), Ok(Ports::Auto(vec![])));
        assert_eq!(Ports::parse("auto,~22,~8000-8010"), Ok(Ports::Auto(vec![22..=22, 8000..=8010])));
        assert_eq!(these("all"), [(ALL, 1)]);
    }

    #[test]
    fn the_examples_of_the_manual_are_read() {
        assert_eq!(these("22"), [(22..=22, 22)]);
        assert_eq!(these("22:23"), [(22..=22, 23)]);
        assert_eq!(these("22,25"), [(22..=22, 22), (25..=25, 25)]);
        assert_eq!(these("22-80"), [(22..=80, 22)]);
        assert_eq!(these("22-80:32-90"), [(22..=80, 32)]);
        assert_eq!(these("2000-5000,~3000-3010"), [(2000..=2999, 2000), (3011..=5000, 3011)]);
        assert_eq!(these("192.0.2.1/20-30,~25"), [(20..=24, 20), (26..=30, 26)]);
        assert_eq!(these("~20000-20010"), [(1..=19999, 1), (20011..=32767, 20011)]);
        assert_eq!(these("20-30:120-130,~25"), [(20..=24, 120), (26..=30, 126)]);
    }

    #[test]
    fn places_are_read() {
        let place = |text: &str| match Ports::parse(text) {
            Ok(Ports::These(rules)) => (rules[0].address, rules[0].interface.clone()),
            other => panic!("{text}: {other:?}"),
        };
        let address = "192.0.2.1".parse().ok();
        assert_eq!(place("192.0.2.1/22"), (address, None));
        assert_eq!(place("192.0.2.1%eth0/22"), (address, Some("eth0".into())));
        assert_eq!(place("%eth0/22"), (None, Some("eth0".into())));
        assert_eq!(place("::1/22").0, "::1".parse().ok());
        assert_eq!(place("[::1]/22").0, "::1".parse().ok());
    }

    #[test]
    fn all_ports_come_in_pieces_and_wanted_ones_in_one() {
        let chunks = |text: &str| match Ports::parse(text) {
            Ok(Ports::These(rules)) => rules.iter().flat_map(PortRule::chunks).collect::<Vec<_>>(),
            other => panic!("{text}: {other:?}"),
        };
        let all = chunks("all");
        assert_eq!((all.len(), &all[0].listen, &all[127].listen), (128, &(1..=256), &(32513..=32767)));
        assert_eq!(all[127].target, 32513);
        assert_eq!(chunks("1-60000:2-60001").len(), 1);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "0",
            "a",
            "22-",
            "80-22",
            "65536",
            "22:23-24",
            "1,,2",
            "192.0.2/22",
            "/",
            "%/22",
            "~",
            "auto,22",
            "::1/auto",
            "+22",
        ] {
            assert!(Ports::parse(text).is_err(), "{text}");
        }
    }
}
