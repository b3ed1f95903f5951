//! What to forward: the text and serialised forms of a published port.
//!
//! # Text
//! ```text
//! [ADDRESS[%INTERFACE]:]PORTS:[CHILDADDRESS:]CHILDPORTS[/PROTO][,source=client|gateway]
//! ```
//! That is RootlessKit's syntax (`127.0.0.1:8080:80/tcp`, `[::1]:8080:[fd00::100]:80/tcp6`) with everything optional that
//! can be: PROTO is tcp unless given, no ADDRESS means every address of the host. New are ranges
//! (`127.0.0.1:8000-8100:9000/udp`, the child's end follows from the host's), interfaces (`%eth0:8080:80`,
//! `[fe80::1%eth0]:8080:80`), host port 0 (the system picks one) and the option `source`.
//!
//! # JSON and TOML
//! RootlessKit's object, `{"proto":"tcp","parentIP":"0.0.0.0","parentPort":8080,"childIP":"","childPort":80}`, where an empty
//! text is as good as none; new are the optional `parentPortEnd`, `parentInterface` and `source`. [`PortSpec`] ignores unknown
//! fields, as RootlessKit does; a [`PortFile`] refuses them.
//!
//! # Families
//! `tcp` and `udp` without an address listen for both families (IPv6 where the host has it); with an address, and with
//! `tcp4`, `tcp6` and so on, for one. `0.0.0.0` is IPv4 only, `::` IPv6 only. The child's side may be of either family.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{SpecError, SpecFault};

/// A forward as asked for. One that exists makes sense: its ranges are in order and of equal length, its addresses of
/// the family that the protocol names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortSpec {
    fields: PortFields,
}

/// The parts of a [`PortSpec`], which is made from them by `PortSpec::try_from`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortFields {
    /// Protocol, and family of the host's side.
    pub proto: Proto,
    /// Where the host listens; `None`: everywhere.
    pub parent_ip: Option<IpAddr>,
    /// The one interface of the host on which clients are heard.
    pub parent_interface: Option<InterfaceName>,
    /// The host's port or the first of several; 0: the system picks.
    pub parent_port: u16,
    /// The last of the host's ports, if there are several.
    pub parent_port_end: Option<u16>,
    /// The child's address; `None`: its own in the network between us.
    pub child_ip: Option<IpAddr>,
    /// The child's port or the first of several.
    pub child_port: u16,
    /// Whom the child sees.
    pub source: Source,
}

impl PortFields {
    /// One port of every address of the host, with the client's address kept.
    pub fn new(proto: Proto, parent_port: u16, child_port: u16) -> Self {
        PortFields {
            proto,
            parent_ip: None,
            parent_interface: None,
            parent_port,
            parent_port_end: None,
            child_ip: None,
            child_port,
            source: Source::Client,
        }
    }

    /// Host ports of the range.
    fn count(&self) -> u32 {
        u32::from(self.parent_port_end.unwrap_or(self.parent_port).saturating_sub(self.parent_port)) + 1
    }
}

impl TryFrom<PortFields> for PortSpec {
    type Error = SpecError;

    fn try_from(mut fields: PortFields) -> Result<Self, SpecError> {
        fields.parent_ip = fields.parent_ip.map(|address| address.to_canonical());
        fields.child_ip = fields.child_ip.map(|address| address.to_canonical());
        if fields.parent_port_end == Some(fields.parent_port) {
            fields.parent_port_end = None;
        }
        match fault(&fields) {
            None => Ok(PortSpec { fields }),
            Some(fault) => Err(SpecError { text: fields.to_string(), fault }),
        }
    }
}

fn fault(fields: &PortFields) -> Option<SpecFault> {
    if let Some(end) = fields.parent_port_end {
        if fields.parent_port == 0 {
            return Some(SpecFault::ZeroInRange);
        }
        if end < fields.parent_port {
            return Some(SpecFault::RangeOrder(fields.parent_port, end));
        }
    }
    if fields.child_port == 0 {
        return Some(SpecFault::ChildPortZero);
    }
    let count = fields.count();
    if u32::from(fields.child_port) + (count - 1) > u32::from(u16::MAX) {
        return Some(SpecFault::RangeEnd { first: fields.child_port, count });
    }
    let proto = fields.proto;
    if let Some(address) = fields.parent_ip
        && proto.family().is_some_and(|family| family != Family::of(address))
    {
        return Some(SpecFault::Family { proto: proto.name(), address });
    }
    let broadcast = IpAddr::V4(Ipv4Addr::BROADCAST);
    fields
        .child_ip
        .filter(|&address| address.is_unspecified() || address.is_multicast() || address == broadcast)
        .map(SpecFault::ChildAddress)
}

impl PortSpec {
    /// The parts.
    pub fn fields(&self) -> &PortFields {
        &self.fields
    }

    /// The parts, to change some and make another.
    pub fn into_fields(self) -> PortFields {
        self.fields
    }

    /// Protocol, and family of the host's side.
    pub fn proto(&self) -> Proto {
        self.fields.proto
    }

    /// The host's ports: 0 alone if the system picks.
    pub fn parent_ports(&self) -> impl ExactSizeIterator<Item = u16> + DoubleEndedIterator + use<> {
        let first = self.fields.parent_port;
        (0..self.count()).map(move |offset| first + offset)
    }

    /// How many host ports there are, at least 1. (65536 would need port 0.)
    pub fn count(&self) -> u16 {
        u16::try_from(self.fields.count()).unwrap_or(u16::MAX)
    }

    /// The child's port that belongs to the host port at `offset` from the first.
    pub fn child_port_at(&self, offset: u16) -> u16 {
        self.fields.child_port.saturating_add(offset)
    }

    /// The addresses to listen on, and whether the forward can do without them.
    pub fn parent_addresses(&self) -> impl Iterator<Item = (IpAddr, Need)> + use<> {
        let any4 = IpAddr::from([0; 4]);
        let any6 = IpAddr::from([0; 16]);
        let (first, second) = match (self.fields.parent_ip, self.fields.proto.family()) {
            (Some(address), _) => (address, None),
            (None, Some(Family::V4)) => (any4, None),
            (None, Some(Family::V6)) => (any6, None),
            (None, None) => (any4, Some((any6, Need::IfTheHostHasIt))),
        };
        std::iter::once((first, Need::Required)).chain(second)
    }

    /// The same with another host port.
    #[must_use]
    pub(crate) fn with_parent_port(&self, port: u16) -> PortSpec {
        PortSpec { fields: PortFields { parent_port: port, ..self.fields.clone() } }
    }
}

/// Whether a forward can do without one of its listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Without it there is no forward.
    Required,
    /// Left out where the host has no such family.
    IfTheHostHasIt,
}

/// RootlessKit's protocols but SCTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Proto {
    /// TCP of every family that the address allows.
    Tcp,
    /// TCP, IPv4 on the host's side.
    Tcp4,
    /// TCP, IPv6 on the host's side.
    Tcp6,
    /// UDP of every family that the address allows.
    Udp,
    /// UDP, IPv4 on the host's side.
    Udp4,
    /// UDP, IPv6 on the host's side.
    Udp6,
}

impl Proto {
    /// Every protocol.
    pub const ALL: [Proto; 6] = [Proto::Tcp, Proto::Tcp4, Proto::Tcp6, Proto::Udp, Proto::Udp4, Proto::Udp6];

    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Proto::Tcp => "tcp",
            Proto::Tcp4 => "tcp4",
            Proto::Tcp6 => "tcp6",
            Proto::Udp => "udp",
            Proto::Udp4 => "udp4",
            Proto::Udp6 => "udp6",
        }
    }

    /// TCP or UDP.
    pub const fn transport(self) -> Transport {
        match self {
            Proto::Tcp | Proto::Tcp4 | Proto::Tcp6 => Transport::Tcp,
            Proto::Udp | Proto::Udp4 | Proto::Udp6 => Transport::Udp,
        }
    }

    /// The only family of the host's side, if there is only one.
    pub const fn family(self) -> Option<Family> {
        match self {
            Proto::Tcp | Proto::Udp => None,
            Proto::Tcp4 | Proto::Udp4 => Some(Family::V4),
            Proto::Tcp6 | Proto::Udp6 => Some(Family::V6),
        }
    }
}

impl FromStr for Proto {
    type Err = SpecFault;

    fn from_str(text: &str) -> Result<Self, SpecFault> {
        match text {
            "sctp" | "sctp4" | "sctp6" => Err(SpecFault::Sctp),
            _ => Proto::ALL
                .into_iter()
                .find(|proto| proto.name() == text)
                .ok_or_else(|| SpecFault::Proto(text.to_owned())),
        }
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// TCP or UDP.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub const fn of(address: IpAddr) -> Family {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }
}

/// Whom the child sees as its peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The client's own address wherever it can be shown, otherwise the gateway's.
    #[default]
    Client,
    /// The gateway's address, always: for servers that trust or answer their own network only.
    Gateway,
}

impl Source {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Source::Client => "client",
            Source::Gateway => "gateway",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that a network interface can have: 1 to 15 bytes without white space and what parts a port spec.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = SpecFault;

    fn from_str(text: &str) -> Result<Self, SpecFault> {
        const IFNAMSIZ: usize = 16;
        let odd = |c: char| c.is_whitespace() || c.is_control() || "/:%,[]".contains(c);
        if text.is_empty() || text.len() >= IFNAMSIZ || matches!(text, "." | "..") || text.contains(odd) {
            return Err(SpecFault::Interface(text.to_owned()));
        }
        Ok(InterfaceName(text.to_owned()))
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for PortSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let error = |fault| SpecError { text: text.to_owned(), fault };
        let fields = parse(text).map_err(error)?;
        PortSpec::try_from(fields).map_err(|fault| error(fault.fault))
    }
}

fn parse(text: &str) -> Result<PortFields, SpecFault> {
    let mut options = text.split(',');
    let ports = options.next().unwrap_or_default();
    let (ports, proto) = match ports.rsplit_once('/') {
        Some((ports, proto)) => (ports, proto.parse()?),
        None => (ports, Proto::Tcp),
    };
    let parts = parts(ports)?;
    let (host, host_ports, child, child_ports) = match parts[..] {
        [] | [_] => return Err(SpecFault::OnePort),
        [ports, child_ports] => ("", ports, "", child_ports),
        // An address never looks like a port; RootlessKit writes nothing before the colon for no address.
        [ports, child, child_ports] if is_ports(ports) => ("", ports, child, child_ports),
        [host, ports, child_ports] => (host, ports, "", child_ports),
        [host, ports, child, child_ports] => (host, ports, child, child_ports),
        _ => return Err(SpecFault::TooManyParts),
    };
    let (host, interface) = match host.split_once('%') {
        Some((host, interface)) => (host, Some(interface.parse()?)),
        None => (host, None),
    };
    let (first, last) = range(host_ports)?;
    let (child_first, child_last) = range(child_ports)?;
    let mut fields = PortFields {
        parent_ip: address(host)?,
        parent_interface: interface,
        parent_port_end: last,
        child_ip: address(child)?,
        ..PortFields::new(proto, first, child_first)
    };
    if let Some(child_last) = child_last {
        let child = u32::from(
            child_last.checked_sub(child_first).ok_or(SpecFault::RangeOrder(child_first, child_last))?,
        ) + 1;
        let host = fields.count();
        if child != host {
            return Err(SpecFault::RangeLength { host, child });
        }
    }
    for option in options {
        fields.source = match option {
            "source=client" => Source::Client,
            "source=gateway" => Source::Gateway,
            _ => return Err(SpecFault::Option(option.to_owned())),
        };
    }
    Ok(fields)
}

/// Splits at colons outside brackets, and takes the brackets away.
fn parts(mut text: &str) -> Result<Vec<&str>, SpecFault> {
    let mut parts = Vec::new();
    loop {
        let (part, rest) = match text.strip_prefix('[') {
            Some(bracketed) => {
                let (inside, behind) = bracketed.split_once(']').ok_or(SpecFault::Brackets)?;
                if inside.is_empty() {
                    return Err(SpecFault::Brackets);
                }
                match behind.strip_prefix(':') {
                    Some(rest) => (inside, Some(rest)),
                    None if behind.is_empty() => (inside, None),
                    None => return Err(SpecFault::Brackets),
                }
            }
            None => match text.split_once(':') {
                Some((part, rest)) => (part, Some(rest)),
                None => (text, None),
            },
        };
        parts.push(part);
        match rest {
            Some(rest) => text = rest,
            None => return Ok(parts),
        }
    }
}

fn is_ports(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-')
}

/// A port, or the first and the last of several.
pub(crate) fn range(text: &str) -> Result<(u16, Option<u16>), SpecFault> {
    let port = |part: &str| -> Result<u16, SpecFault> {
        // u16's own parser takes a leading "+".
        let digits = part.bytes().all(|byte| byte.is_ascii_digit());
        part.parse().ok().filter(|_| digits).ok_or_else(|| SpecFault::Port(text.to_owned()))
    };
    match text.split_once('-') {
        Some((first, last)) => Ok((port(first)?, Some(port(last)?))),
        None => Ok((port(text)?, None)),
    }
}

fn address(text: &str) -> Result<Option<IpAddr>, SpecFault> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| SpecFault::Address(text.to_owned()))
}

impl fmt::Display for PortSpec {
    /// The shortest text that is read as the same forward, but always with the protocol.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fields.fmt(f)
    }
}

impl fmt::Display for PortFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let interface = self.parent_interface.as_ref().map(|name| format!("%{name}")).unwrap_or_default();
        match self.parent_ip {
            Some(IpAddr::V4(address)) => write!(f, "{address}{interface}:")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}{interface}]:")?,
            None if !interface.is_empty() => write!(f, "{interface}:")?,
            None => {}
        }
        write!(f, "{}", self.parent_port)?;
        if let Some(end) = self.parent_port_end {
            write!(f, "-{end}")?;
        }
        match self.child_ip {
            Some(IpAddr::V4(address)) => write!(f, ":{address}")?,
            Some(IpAddr::V6(address)) => write!(f, ":[{address}]")?,
            None => {}
        }
        write!(f, ":{}/{}", self.child_port, self.proto)?;
        if self.source != Source::default() {
            write!(f, ",source={}", self.source)?;
        }
        Ok(())
    }
}

/// A forward that exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStatus {
    /// Its number; the first is 1, and no number comes twice.
    pub id: u64,
    /// What is forwarded. A host port that the system picked stands here in place of 0.
    pub spec: PortSpec,
    /// Who asked for it.
    #[serde(default, skip_serializing_if = "Origin::is_asked")]
    pub origin: Origin,
}

/// Who asked for a forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Somebody, by command line or API: it stays until it is removed.
    #[default]
    Asked,
    /// [`AutoPublisher`](crate::auto::AutoPublisher): it goes when nothing listens in the child any more.
    Auto,
}

impl Origin {
    fn is_asked(&self) -> bool {
        *self == Origin::Asked
    }
}

/// The forwards of a file, a list `[[port]]` in TOML. Unknown fields are refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortFile {
    /// In the file's order.
    pub ports: Vec<PortSpec>,
}

impl<'de> Deserialize<'de> for PortFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            #[serde(default)]
            port: Vec<StrictFields>,
        }
        let ports = File::deserialize(deserializer)?
            .port
            .into_iter()
            .map(|StrictFields(fields)| PortSpec::try_from(fields).map_err(D::Error::custom));
        Ok(PortFile { ports: ports.collect::<Result<_, _>>()? })
    }
}

impl<'de> Deserialize<'de> for PortSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let LenientFields(fields) = LenientFields::deserialize(deserializer)?;
        PortSpec::try_from(fields).map_err(D::Error::custom)
    }
}

/// The same fields twice: with unknown ones ignored, and with unknown ones refused.
macro_rules! serialised_fields {
    ($name:ident $(, $strict:meta)?) => {
        struct $name(PortFields);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                #[derive(Deserialize)]
                #[serde(rename_all = "camelCase", expecting = "a port: proto, parentPort, childPort" $(, $strict)?)]
                struct Fields {
                    #[serde(deserialize_with = "text_of")]
                    proto: Proto,
                    #[serde(rename = "parentIP", default, deserialize_with = "optional")]
                    parent_ip: Option<Address>,
                    #[serde(default, deserialize_with = "optional")]
                    parent_interface: Option<InterfaceName>,
                    // Go leaves out a 0.
                    #[serde(default)]
                    parent_port: u16,
                    #[serde(default)]
                    parent_port_end: Option<u16>,
                    #[serde(rename = "childIP", default, deserialize_with = "optional")]
                    child_ip: Option<Address>,
                    #[serde(default)]
                    child_port: u16,
                    #[serde(default)]
                    source: Source,
                }
                let fields = Fields::deserialize(deserializer)?;
                Ok($name(PortFields {
                    proto: fields.proto,
                    parent_ip: fields.parent_ip.map(|Address(address)| address),
                    parent_interface: fields.parent_interface,
                    parent_port: fields.parent_port,
                    parent_port_end: fields.parent_port_end.filter(|&end| end != 0),
                    child_ip: fields.child_ip.map(|Address(address)| address),
                    child_port: fields.child_port,
                    source: fields.source,
                }))
            }
        }
    };
}

serialised_fields!(LenientFields);
serialised_fields!(StrictFields, deny_unknown_fields);

struct Address(IpAddr);

impl FromStr for Address {
    type Err = SpecFault;

    fn from_str(text: &str) -> Result<Self, SpecFault> {
        text.parse().map(Address).map_err(|_| SpecFault::Address(text.to_owned()))
    }
}

fn text_of<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: FromStr<Err = SpecFault>,
    D: Deserializer<'de>,
{
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

/// Nothing, `null` and an empty text are all the same.
fn optional<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: FromStr<Err = SpecFault>,
    D: Deserializer<'de>,
{
    let text = Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty());
    text.map(|text| text.parse()).transpose().map_err(D::Error::custom)
}

impl Serialize for PortSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Fields<'a> {
            proto: &'static str,
            #[serde(rename = "parentIP", skip_serializing_if = "Option::is_none")]
            parent_ip: Option<IpAddr>,
            #[serde(skip_serializing_if = "Option::is_none")]
            parent_interface: Option<&'a str>,
            parent_port: u16,
            #[serde(skip_serializing_if = "Option::is_none")]
            parent_port_end: Option<u16>,
            #[serde(rename = "childIP", skip_serializing_if = "Option::is_none")]
            child_ip: Option<IpAddr>,
            child_port: u16,
            #[serde(skip_serializing_if = "is_default")]
            source: Source,
        }
        let fields = &self.fields;
        Fields {
            proto: fields.proto.name(),
            parent_ip: fields.parent_ip,
            parent_interface: fields.parent_interface.as_ref().map(InterfaceName::as_str),
            parent_port: fields.parent_port,
            parent_port_end: fields.parent_port_end,
            child_ip: fields.child_ip,
            child_port: fields.child_port,
            source: fields.source,
        }
        .serialize(serializer)
    }
}

fn is_default(source: &Source) -> bool {
    *source == Source::default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> String {
        text.parse::<PortSpec>().map_or_else(|error| error.to_string(), |spec| spec.to_string())
    }

    #[test]
    fn texts_are_read_and_written_in_their_shortest_form() {
        for (text, canonical) in [
            ("8080:80", "8080:80/tcp"),
            ("0.0.0.0:8080:80/tcp", "0.0.0.0:8080:80/tcp"),
            ("127.0.0.1:8080:10.0.2.100:80/tcp", "127.0.0.1:8080:10.0.2.100:80/tcp"),
            ("127.0.0.1:8080::80/tcp", "127.0.0.1:8080:80/tcp"),
            (":8080:80/udp", "8080:80/udp"),
            ("8080:10.0.2.100:80/udp4", "8080:10.0.2.100:80/udp4"),
            ("8080:[fd00::100]:80", "8080:[fd00::100]:80/tcp"),
            ("[::1]:8080:[fd00::100]:80/tcp6", "[::1]:8080:[fd00::100]:80/tcp6"),
            ("[::ffff:127.0.0.1]:8080:80/tcp", "127.0.0.1:8080:80/tcp"),
            ("127.0.0.1:8000-8100:9000/udp", "127.0.0.1:8000-8100:9000/udp"),
            ("8000-8100:9000-9100", "8000-8100:9000/tcp"),
            ("8000-8000:9000", "8000:9000/tcp"),
            ("0:80", "0:80/tcp"),
            ("%eth0:8080:80", "%eth0:8080:80/tcp"),
            ("192.0.2.1%eth0:8080:80", "192.0.2.1%eth0:8080:80/tcp"),
            ("[fe80::1%eth0]:8080:80", "[fe80::1%eth0]:8080:80/tcp"),
            ("8080:80,source=gateway", "8080:80/tcp,source=gateway"),
            ("8080:80/udp,source=client", "8080:80/udp"),
        ] {
            assert_eq!(shown(text), canonical, "{text}");
            assert_eq!(shown(canonical), canonical);
        }
    }

    #[test]
    fn faults_name_the_text_and_what_is_wrong() {
        for (text, fault) in [
            ("", SpecFault::OnePort),
            ("80/tcp", SpecFault::OnePort),
            ("80:80/sctp", SpecFault::Sctp),
            ("80:80/TCP", SpecFault::Proto("TCP".into())),
            ("80:80/", SpecFault::Proto(String::new())),
            ("::1:80:80", SpecFault::TooManyParts),
            ("[::1:80:80", SpecFault::Brackets),
            ("[]:80:80", SpecFault::Brackets),
            ("[::1]80:80", SpecFault::Brackets),
            ("localhost:80:80", SpecFault::Address("localhost".into())),
            ("http:80", SpecFault::Port("http".into())),
            ("80:", SpecFault::Port(String::new())),
            ("+80:80", SpecFault::Port("+80".into())),
            ("70000:80", SpecFault::Port("70000".into())),
            ("1-2-3:80", SpecFault::Port("1-2-3".into())),
            ("9-8:80", SpecFault::RangeOrder(9, 8)),
            ("80:9-8", SpecFault::RangeOrder(9, 8)),
            ("80-89:80-90", SpecFault::RangeLength { host: 10, child: 11 }),
            ("80:80-90", SpecFault::RangeLength { host: 1, child: 11 }),
            ("80-90:65530", SpecFault::RangeEnd { first: 65530, count: 11 }),
            ("0-5:80", SpecFault::ZeroInRange),
            ("80:0", SpecFault::ChildPortZero),
            ("127.0.0.1:80:80/tcp6", SpecFault::Family { proto: "tcp6", address: [127, 0, 0, 1].into() }),
            ("80:0.0.0.0:80", SpecFault::ChildAddress([0; 4].into())),
            ("80:224.0.0.1:80", SpecFault::ChildAddress([224, 0, 0, 1].into())),
            ("%:80:80", SpecFault::Interface(String::new())),
            ("%a_name_too_long_:80:80", SpecFault::Interface("a_name_too_long_".into())),
            ("80:80,sauce=client", SpecFault::Option("sauce=client".into())),
        ] {
            assert_eq!(text.parse::<PortSpec>(), Err(SpecError { text: text.into(), fault }));
        }
        let error = "80-89:80-90/tcp".parse::<PortSpec>().unwrap_err().to_string();
        assert_eq!(
            error,
            r#"port spec "80-89:80-90/tcp": 10 ports of the host cannot go to 11 ports of the child"#
        );
    }

    #[test]
    fn ranges_keep_their_offset() {
        let spec: PortSpec = "65000-65535:1".parse().unwrap();
        let pairs: Vec<_> =
            spec.parent_ports().zip(0..).map(|(port, n)| (port, spec.child_port_at(n))).collect();
        assert_eq!((pairs.len(), pairs[0], pairs[535]), (536, (65000, 1), (65535, 536)));
        assert_eq!("1-65535:1".parse::<PortSpec>().unwrap().count(), 65535);
    }

    #[test]
    fn json_is_rootlesskits() {
        let rootlesskit =
            r#"{"proto":"tcp","parentIP":"0.0.0.0","parentPort":8080,"childIP":"","childPort":80}"#;
        let spec: PortSpec = serde_json::from_str(rootlesskit).unwrap();
        assert_eq!(spec.to_string(), "0.0.0.0:8080:80/tcp");
        let status = PortStatus { id: 1, spec, origin: Origin::Asked };
        assert_eq!(
            serde_json::to_string(&status).unwrap(),
            r#"{"id":1,"spec":{"proto":"tcp","parentIP":"0.0.0.0","parentPort":8080,"childPort":80}}"#
        );
        // As Go leaves out zeros, and with a field of a later version.
        let picked: PortSpec =
            serde_json::from_str(r#"{"proto":"udp","childPort":53,"childIP":null,"later":[1]}"#).unwrap();
        assert_eq!(picked.to_string(), "0:53/udp");
        let all = r#"{"proto":"tcp6","parentIP":"::1","parentInterface":"eth0","parentPort":1,"parentPortEnd":9,"childIP":"fd00::1","childPort":2,"source":"gateway"}"#;
        let spec: PortSpec = serde_json::from_str(all).unwrap();
        assert_eq!(spec.to_string(), "[::1%eth0]:1-9:[fd00::1]:2/tcp6,source=gateway");
        assert_eq!(serde_json::to_string(&spec).unwrap(), all);
    }

    #[test]
    fn faulty_json_says_what_is_wrong() {
        let fault = |text| serde_json::from_str::<PortSpec>(text).unwrap_err().to_string();
        let no_proto = fault(r#"{"parentPort":80,"childPort":80}"#);
        assert!(no_proto.contains("missing field `proto`"), "{no_proto}");
        let sctp = fault(r#"{"proto":"sctp","parentPort":80,"childPort":80}"#);
        assert!(sctp.contains("SCTP is not forwarded"), "{sctp}");
        let address = fault(r#"{"proto":"tcp","parentIP":"x","parentPort":80,"childPort":80}"#);
        assert!(address.contains(r#""x" is not an IP address"#), "{address}");
        let no_child_port = fault(r#"{"proto":"tcp","parentPort":80}"#);
        assert!(no_child_port.contains("child's port cannot be 0"), "{no_child_port}");
        let port = fault(r#"{"proto":"tcp","parentPort":70000,"childPort":80}"#);
        assert!(port.contains("70000"), "{port}");
    }

    #[test]
    fn a_file_lists_forwards_and_tolerates_nothing_unknown() {
        let file: PortFile = toml::from_str(
            "[[port]]\nproto = \"tcp\"\nparentPort = 8080\nchildPort = 80\n\
             [[port]]\nproto = \"udp\"\nparentIP = \"127.0.0.1\"\nparentPort = 8000\nparentPortEnd = 8009\nchildPort = 9000\n",
        )
        .unwrap();
        let texts: Vec<_> = file.ports.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["8080:80/tcp", "127.0.0.1:8000-8009:9000/udp"]);
        let fault = |text| toml::from_str::<PortFile>(text).unwrap_err().to_string();
        assert!(
            fault("[[port]]\nproto='tcp'\nchildPort=1\nparentport=1").contains("unknown field `parentport`")
        );
        assert!(fault("[[ports]]\nproto='tcp'\nchildPort=1").contains("unknown field `ports`"));
        assert!(fault("[[port]]\nproto='tcp'\nparentPort=1").contains("child's port cannot be 0"));
        assert_eq!(serde_json::from_str::<PortFile>("{}").unwrap(), PortFile::default());
    }

    fn any_fields() -> impl Strategy<Value = PortFields> {
        let address = || proptest::option::of(any::<IpAddr>());
        let ports = (any::<u16>(), any::<u16>(), 0u16..300);
        let interface = proptest::option::of("[a-z0-9._@-]{1,17}");
        (0usize..6, address(), interface, ports, address(), any::<bool>()).prop_map(
            |(proto, parent_ip, interface, (port, child_port, more), child_ip, gateway)| PortFields {
                proto: Proto::ALL[proto],
                parent_ip,
                parent_interface: interface.and_then(|name| name.parse().ok()),
                parent_port: port,
                parent_port_end: (more != 0).then(|| port.wrapping_add(more)),
                child_ip,
                child_port,
                source: if gateway { Source::Gateway } else { Source::Client },
            },
        )
    }

    proptest! {
        #[test]
        fn a_spec_survives_text_json_and_toml(fields in any_fields()) {
            let Ok(spec) = PortSpec::try_from(fields) else { return Ok(()) };
            prop_assert_eq!(&spec.to_string().parse::<PortSpec>().unwrap(), &spec);
            let json = serde_json::to_string(&spec).unwrap();
            prop_assert_eq!(&serde_json::from_str::<PortSpec>(&json).unwrap(), &spec);
            let toml = format!("[[port]]\n{}", toml::to_string(&spec).unwrap());
            prop_assert_eq!(&toml::from_str::<PortFile>(&toml).unwrap().ports, &[spec]);
        }

        #[test]
        fn any_text_is_a_spec_or_an_error(text in "[-0-9.:%/,\\[\\]a-f]{0,40}(/tcp|/udp6)?") {
            if let Ok(spec) = text.parse::<PortSpec>() {
                prop_assert_eq!(&spec.to_string().parse::<PortSpec>().unwrap(), &spec);
            }
        }
    }
}
