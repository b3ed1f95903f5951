//! What travels: RootlessKit's shapes as they are (`Info`, `PortSpec`, `PortStatus`, the error), and ours.
//!
//! Names follow RootlessKit's habit (`childIP`, `parentPort`). Unknown fields of a request are ignored, as there.

use std::net::{IpAddr, SocketAddr};

pub use forwarder::spec::{PortSpec, PortStatus};
use serde::{Deserialize, Serialize};

pub use crate::egress::EgressMode;
use crate::holder::TakenPort;

/// Answer of every request that failed.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct ErrorBody {
    /// Why.
    pub message: String,
    /// The host's port that somebody else has, if it is because of that (ours).
    #[serde(rename = "inUse", default, skip_serializing_if = "Option::is_none")]
    pub in_use: Option<TakenPort>,
}

/// What an instance is.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Info {
    /// [`super::VERSION`].
    pub api_version: String,
    /// This program's version.
    pub version: String,
    /// Directory of this socket.
    pub state_dir: String,
    /// The process that is CMD or will be, in the host's numbers.
    #[serde(rename = "childPID")]
    pub child_pid: i32,
    /// How often an engine has died and another taken its place.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub engine_restarts: u64,
    /// The child's network; absent with the host's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_driver: Option<NetworkDriver>,
    /// Who publishes ports; absent if nobody does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_driver: Option<PortDriver>,
}

/// The child's network.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkDriver {
    /// Its kind.
    pub driver: String,
    /// Where the child's DNS is answered.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<IpAddr>,
    /// The child's IPv4 address.
    #[serde(rename = "childIP", skip_serializing_if = "Option::is_none")]
    pub child_ip: Option<IpAddr>,
    /// Whether that address may change.
    #[serde(rename = "dynamicChildIP", skip_serializing_if = "is_false")]
    pub dynamic_child_ip: bool,
    /// The child's IPv6 address (ours).
    #[serde(rename = "childIPv6", skip_serializing_if = "Option::is_none")]
    pub child_ipv6: Option<IpAddr>,
    /// The gateway's addresses (ours).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<IpAddr>,
    /// MTU of the child's device (ours).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// How outbound TCP connections are carried (ours).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Egress>,
}

/// How new outbound TCP connections are carried.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Egress {
    /// What was asked for by `--egress`.
    pub mode: EgressMode,
    /// Those to IPv4 destinations.
    pub ipv4: EgressPath,
    /// Those to IPv6 destinations.
    pub ipv6: EgressPath,
}

/// The way of new outbound TCP connections of one family.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct EgressPath {
    /// Which.
    pub path: EgressState,
    /// Why it is not the relay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What is known of the way of new connections.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EgressState {
    /// Joined in the kernel.
    Relay,
    /// As packets.
    Tap,
    /// The relay, if the child's kernel can do it: the first connection will tell.
    Untried,
}

/// Who publishes ports.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortDriver {
    /// Its kind.
    pub driver: String,
    /// What `proto` of a port may be.
    pub protos: Vec<String>,
    /// Whether a port cannot lead to the child's loopback.
    #[serde(rename = "disallowLoopbackChildIP", skip_serializing_if = "is_false")]
    pub disallow_loopback_child_ip: bool,
}

/// Whether an instance is ready.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Health {
    /// How far it is.
    pub status: HealthStatus,
}

/// How far an instance is.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum HealthStatus {
    /// CMD does not run yet.
    Starting,
    /// CMD runs, its network and its ports are served.
    Ready,
}

/// A change of the published ports.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct PortEvent {
    /// What happened.
    pub event: PortChange,
    /// To which port.
    pub port: PortStatus,
}

/// What can happen to a port.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PortChange {
    /// It was there when the watch began, or was published since.
    Added,
    /// It is published no more.
    Removed,
}

/// Counters since the start.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Statistics {
    /// Frames of any kind.
    pub frames: Traffic,
    /// TCP segments and payload.
    pub tcp: Traffic,
    /// UDP datagrams and payload.
    pub udp: Traffic,
    /// ICMP and ICMPv6 echo.
    pub icmp: Traffic,
    /// DNS messages.
    pub dns: Traffic,
    /// DHCPv4 and DHCPv6 messages.
    pub dhcp: Traffic,
    /// Datagrams of the overlay; among `udp`, too.
    pub overlay: Traffic,
    /// TCP connections of the child whose host side was asked to connect.
    pub tcp_opened: u64,
    /// Those that the host could not connect.
    pub tcp_connect_failed: u64,
    /// Those that ended by a RST.
    pub tcp_reset: u64,
    /// DNS answers from static names.
    pub dns_static: u64,
    /// DNS queries that no server answered.
    pub dns_servfail: u64,
    /// Flows at this moment.
    pub flows: u64,
    /// Bytes of ring memory that TCP flows may use at this moment.
    pub buffer_bytes: u64,
    /// Dropped packets; reasons that never struck are left out.
    pub drops: Vec<Drops>,
    /// Outbound TCP connections on the relay, which are no packets and not among `tcp`.
    pub relay: RelayStatistics,
    /// How often an engine has died and another taken its place; the other counters begin anew with each.
    pub engine_restarts: u64,
    /// Published ports; absent if nobody publishes any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forwards: Option<ForwardStatistics>,
}

/// Counters of outbound connections on the relay.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RelayStatistics {
    /// Connections at this moment.
    pub connections: u64,
    /// Connections since the start.
    pub joined: u64,
    /// Those that were offered to it and took the TAP.
    pub refused: u64,
    /// Payload bytes from the child.
    pub bytes_from_child: u64,
    /// Payload bytes to the child.
    pub bytes_to_child: u64,
}

/// Traffic in both directions.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Traffic {
    /// Packets received from the child.
    pub packets_from_child: u64,
    /// Payload bytes received from the child.
    pub bytes_from_child: u64,
    /// Packets sent to the child.
    pub packets_to_child: u64,
    /// Payload bytes sent to the child.
    pub bytes_to_child: u64,
}

impl From<netstack::stats::Traffic> for Traffic {
    fn from(traffic: netstack::stats::Traffic) -> Self {
        Traffic {
            packets_from_child: traffic.packets_from_child,
            bytes_from_child: traffic.bytes_from_child,
            packets_to_child: traffic.packets_to_child,
            bytes_to_child: traffic.bytes_to_child,
        }
    }
}

/// Packets dropped for one reason.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Drops {
    /// Why.
    pub reason: String,
    /// How many.
    pub count: u64,
}

/// Counters of published ports.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ForwardStatistics {
    /// Published ports at this moment.
    pub forwards: u64,
    /// Connections at this moment.
    pub connections: u64,
    /// UDP sessions at this moment.
    pub sessions: u64,
    /// Connections since the start.
    pub accepted: u64,
    /// Those that the child did not take.
    pub refused: u64,
    /// Those beyond a limit.
    pub limited: u64,
    /// Payload bytes from the child.
    pub bytes_from_child: u64,
    /// Payload bytes to the child.
    pub bytes_to_child: u64,
}

/// Which flows are wanted. What is absent is not asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowQuery {
    /// Of this protocol.
    pub protocol: Option<FlowProtocol>,
    /// Whose child side has this address.
    pub child: Option<Endpoint>,
    /// Whose remote side has this address.
    pub remote: Option<Endpoint>,
    /// At most so many, the latest active.
    pub limit: usize,
}

impl FlowQuery {
    /// Flows in an answer if the request does not say.
    pub const DEFAULT_LIMIT: usize = 1000;
    /// Most flows in an answer.
    pub const MAX_LIMIT: usize = 200_000;

    /// Whether a flow is wanted.
    pub fn covers(&self, protocol: FlowProtocol, child: SocketAddr, remote: SocketAddr) -> bool {
        self.protocol.is_none_or(|wanted| wanted == protocol)
            && self.child.is_none_or(|wanted| wanted.covers(child))
            && self.remote.is_none_or(|wanted| wanted.covers(remote))
    }
}

impl Default for FlowQuery {
    fn default() -> Self {
        FlowQuery { protocol: None, child: None, remote: None, limit: FlowQuery::DEFAULT_LIMIT }
    }
}

/// An address, with or without a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Any port of it.
    Address(IpAddr),
    /// That port of it.
    Socket(SocketAddr),
}

impl Endpoint {
    fn covers(self, address: SocketAddr) -> bool {
        match self {
            Endpoint::Address(ip) => ip == address.ip(),
            Endpoint::Socket(socket) => socket == address,
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Endpoint::Address(ip) => ip.fmt(f),
            Endpoint::Socket(socket) => socket.fmt(f),
        }
    }
}

impl std::str::FromStr for Endpoint {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Endpoint::Address).or_else(|_| text.parse().map(Endpoint::Socket))
    }
}

/// Protocol of a flow.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP echo.
    Icmp,
    /// ICMPv6 echo.
    Icmpv6,
}

impl FlowProtocol {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            FlowProtocol::Tcp => "tcp",
            FlowProtocol::Udp => "udp",
            FlowProtocol::Icmp => "icmp",
            FlowProtocol::Icmpv6 => "icmpv6",
        }
    }
}

impl std::str::FromStr for FlowProtocol {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = [FlowProtocol::Tcp, FlowProtocol::Udp, FlowProtocol::Icmp, FlowProtocol::Icmpv6];
        all.into_iter()
            .find(|protocol| protocol.name() == text)
            .ok_or("it has to be tcp, udp, icmp or icmpv6")
    }
}

/// Flows, the latest active first.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct FlowList {
    /// How many there are of those that were asked for, also beyond the limit.
    pub total: u64,
    /// They.
    pub flows: Vec<Flow>,
}

/// One conversation.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Flow {
    /// Names it while it lasts.
    pub id: u64,
    /// Its protocol.
    pub protocol: FlowProtocol,
    /// The child's address and port.
    pub child: SocketAddr,
    /// The other side's; absent for UDP and ICMP, which are open to several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<SocketAddr>,
    /// Which side has opened it.
    pub opened_by: Side,
    /// How far a TCP flow is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// How it is carried.
    pub path: FlowPath,
    /// Payload bytes from the child.
    pub bytes_from_child: u64,
    /// Payload bytes to the child.
    pub bytes_to_child: u64,
    /// Seconds since the last packet.
    pub idle_seconds: u64,
}

/// How a flow is carried.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowPath {
    /// As packets.
    #[default]
    Tap,
    /// Joined in the kernel: what is moved are bytes.
    Relay,
}

impl FlowPath {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            FlowPath::Tap => "tap",
            FlowPath::Relay => "relay",
        }
    }
}

/// A side of the border.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The namespace that is served.
    Child,
    /// The one with the real network.
    Host,
}

/// The egress policy: the first rule that matches decides, what none matches is allowed.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// As on the command line: `deny tcp 10.0.0.0/8:22`.
    pub rules: Vec<String>,
    /// How often each of them decided, since the policy was set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hits: Vec<u64>,
}

/// Rules to add.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct PolicyAddition {
    /// As in [`Policy`].
    pub rules: Vec<String>,
    /// Where they go.
    #[serde(default)]
    pub position: Position,
}

/// Where added rules go.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Position {
    /// Before all others: they win.
    First,
    /// After all others.
    #[default]
    Last,
}

/// An overlay between nodes, such as Flannel's VXLAN.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Overlay {
    /// Its UDP port, on the host and in the child.
    pub port: u16,
    /// Addresses and networks that may send to the child; none: those to whom it has sent.
    pub allowed: Vec<String>,
    /// Nodes that were heard of, the latest active first.
    pub peers: Vec<OverlayPeer>,
    /// Datagrams that were dropped because their sender may not send.
    pub refused: u64,
    /// The latest of those senders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_refused: Option<IpAddr>,
}

/// A node of the overlay.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OverlayPeer {
    /// Its address.
    pub address: IpAddr,
    /// What was exchanged with it.
    #[serde(flatten)]
    pub traffic: Traffic,
    /// Seconds since the last datagram.
    pub idle_seconds: u64,
}

/// Addresses and networks of nodes.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct PeerList {
    /// They.
    pub peers: Vec<String>,
}

/// Who answers the child's questions.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Dns {
    /// Servers that are asked; of the host's resolv.conf if `follows_host`.
    pub servers: Vec<SocketAddr>,
    /// Whether the servers follow the host's resolv.conf.
    #[serde(rename = "followsHost")]
    pub follows_host: bool,
    /// Names that are answered here.
    pub names: Vec<StaticName>,
}

/// A change of [`Dns`]: what is absent stays.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct DnsChange {
    /// Servers from now on; an empty list means those of the host's resolv.conf.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub servers: Option<Vec<SocketAddr>>,
    /// All static names from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<Vec<StaticName>>,
}

/// A name that is answered here.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct StaticName {
    /// The name.
    pub name: String,
    /// Its address; a name may have several entries.
    pub address: IpAddr,
}

/// Whether frames are recorded.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default)]
pub struct Capture {
    /// Whether more will come.
    pub running: bool,
    /// Frames written by this capture, or the last one.
    pub frames: u64,
    /// Bytes written, with all headers.
    pub bytes: u64,
    /// Why it ended by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<CaptureEnd>,
}

/// Why a capture ended by itself.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum CaptureEnd {
    /// It is as long as it may be.
    Limit,
    /// The file cannot be written any more.
    WriteFailed,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde wants")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde wants")]
fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn shapes_are_those_of_rootlesskit() {
        let info = Info {
            api_version: "1.1.1".into(),
            version: "0.1.0".into(),
            state_dir: "/run/user/1000/x".into(),
            child_pid: 42,
            engine_restarts: 0,
            network_driver: Some(NetworkDriver {
                driver: "rootless-launch".into(),
                dns: vec!["10.0.42.3".parse().unwrap()],
                child_ip: Some("10.0.42.100".parse().unwrap()),
                ..NetworkDriver::default()
            }),
            port_driver: Some(PortDriver {
                driver: "rootless-launch".into(),
                protos: vec!["tcp".into()],
                disallow_loopback_child_ip: true,
            }),
        };
        let expected = json!({
            "apiVersion": "1.1.1", "version": "0.1.0", "stateDir": "/run/user/1000/x", "childPID": 42,
            "networkDriver": {"driver": "rootless-launch", "dns": ["10.0.42.3"], "childIP": "10.0.42.100"},
            "portDriver": {"driver": "rootless-launch", "protos": ["tcp"], "disallowLoopbackChildIP": true},
        });
        assert_eq!(serde_json::to_value(&info).unwrap(), expected);
        assert_eq!(serde_json::from_value::<Info>(expected).unwrap(), info);
    }

    #[test]
    fn queries_cover_what_they_name() {
        let child = "10.0.42.100:4000".parse().unwrap();
        let remote = "192.0.2.1:443".parse().unwrap();
        let covers = |query: FlowQuery| query.covers(FlowProtocol::Tcp, child, remote);
        assert!(covers(FlowQuery::default()));
        assert!(covers(FlowQuery { remote: Some("192.0.2.1".parse().unwrap()), ..FlowQuery::default() }));
        assert!(!covers(FlowQuery { remote: Some("192.0.2.1:80".parse().unwrap()), ..FlowQuery::default() }));
        assert!(!covers(FlowQuery { protocol: Some(FlowProtocol::Udp), ..FlowQuery::default() }));
    }
}
