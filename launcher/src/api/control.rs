//! [`Control`] of a real engine.
//!
//! Everything is asked of the thread that owns it; nothing waits here. A flow list is gathered on the driver's thread
//! and sorted on the server's.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::error::Error;
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use forwarder::driver::{Connection, EgressAbility, ForwardStats, Handle};
use forwarder::error::PortError;
use forwarder::spec::Family;
use log::warn;
use netstack::DropReason;
use netstack::capture::{CaptureLimit, CaptureState, CaptureStatus};
use netstack::config::IpNet;
use netstack::driver::{DnsUpstream, DriverHandle};
use netstack::flow::policy::{EgressPolicy, Rule};
use netstack::flow::{OpenedBy, Protocol};
use netstack::stack::FlowInfo;
use netstack::tcp::Phase;
use netstack::time::{Duration, Instant};
use netstack::{Driver, Stack};

use super::model::{
    Capture, CaptureEnd, Dns, DnsChange, Drops, Egress, EgressMode, EgressPath, EgressState, Flow, FlowList,
    FlowPath, FlowProtocol, FlowQuery, ForwardStatistics, Health, HealthStatus, Info, NetworkDriver, Overlay,
    OverlayPeer, Policy, PortDriver, PortSpec, PortStatus, Position, RelayStatistics, Side, StaticName,
    Statistics,
};
use super::{Control, Refusal, Reply, VERSION};
use crate::error::with_causes;
use crate::holder::TakenPort;
use crate::settings::{Page, Settings};

/// What is known of an instance from the start.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Its state directory.
    pub state_dir: String,
    /// The process that is CMD or will be, in the host's numbers.
    pub child_pid: i32,
    /// How many engines were there before this one.
    pub restarts: u32,
    /// The child's network; none with the host's own.
    pub network: Option<NetworkDriver>,
    /// Who publishes ports; none if nobody does.
    pub ports: Option<PortDriver>,
    /// How outbound TCP connections are to be carried; none without an engine.
    pub egress: Option<EgressMode>,
    /// Whether the engine may read the host's resolv.conf: it was started with the host's DNS servers.
    pub host_dns: HostDns,
}

/// Whether the engine can ask the host's DNS servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostDns {
    /// It follows resolv.conf, or did so at the start.
    #[default]
    InReach,
    /// It was started with servers of its own, in a sandbox without resolv.conf.
    OutOfReach,
}

/// The engine process as its API sees it.
#[derive(Debug)]
pub struct Engine {
    facts: Facts,
    is_ready: AtomicBool,
    driver: Option<DriverHandle>,
    forwards: Option<Handle>,
    page: Option<Arc<Page>>,
}

impl Engine {
    /// An instance that is not ready. Without `driver` there is no network engine, without `forwards` nobody
    /// publishes ports.
    pub fn new(facts: Facts, driver: Option<DriverHandle>, forwards: Option<Handle>) -> Self {
        Engine { facts, is_ready: AtomicBool::new(false), driver, forwards, page: None }
    }

    /// The same with a page where settings are left for the next engine.
    pub fn with_page(self, page: Page) -> Self {
        Engine { page: Some(Arc::new(page)), ..self }
    }

    /// CMD is about to run.
    pub fn set_ready(&self) {
        self.is_ready.store(true, Ordering::Release);
    }

    /// Has the driver's thread change its settings, and remembers them for the next engine.
    fn change<T: Send + 'static>(
        &self,
        reply: Reply<T>,
        change: impl FnOnce(&mut Driver) -> Result<T, Refusal> + Send + 'static,
    ) {
        let page = self.page.clone();
        self.post(reply, move |driver, reply| {
            let changed = change(driver);
            if let Some(page) = page
                && let Err(error) = page.save(&Settings::of(driver))
            {
                warn!(
                    "an engine that takes this one's place will not have its settings: {}",
                    with_causes(&error)
                );
            }
            reply.send(changed);
        });
    }

    /// Has the driver's thread do `job`.
    fn post<T: Send + 'static>(
        &self,
        reply: Reply<T>,
        job: impl FnOnce(&mut Driver, Reply<T>) + Send + 'static,
    ) {
        match &self.driver {
            None => reply.send(Err(Refusal::not_here("this instance has no network engine"))),
            // If it has ended, the reply is dropped, which says so.
            Some(driver) => {
                let _ = driver.post(|driver| job(driver, reply));
            }
        }
    }
}

impl Control for Engine {
    fn info(&self, reply: Reply<Info>) {
        let mut info = Info {
            api_version: VERSION.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state_dir: self.facts.state_dir.clone(),
            child_pid: self.facts.child_pid,
            engine_restarts: self.facts.restarts.into(),
            network_driver: self.facts.network.clone(),
            port_driver: self.facts.ports.clone(),
        };
        let Some(mode) = self.facts.egress else { return reply.send(Ok(info)) };
        let Some(forwards) = self.forwards.clone().filter(|_| mode != EgressMode::Tap) else {
            set_egress(&mut info, mode, |_| by_tap("--egress=tap"));
            return reply.send(Ok(info));
        };
        self.post(reply, move |driver, reply| {
            if driver.is_observed() {
                set_egress(&mut info, mode, |_| by_tap("a capture is running"));
                return reply.send(Ok(info));
            }
            set_egress(&mut info, mode, |_| by_tap("the relay's agent has ended"));
            let draft = Draft::new(info, reply);
            forwards.stats_then(move |stats, _| {
                let able = |family| match family {
                    Family::V4 => stats.egress.ipv4,
                    Family::V6 => stats.egress.ipv6,
                };
                draft.finish(|info| set_egress(info, mode, |family| way_of(able(family))));
            });
        });
    }

    fn health(&self, reply: Reply<Health>) {
        let status = match self.is_ready.load(Ordering::Acquire) {
            false => HealthStatus::Starting,
            true => HealthStatus::Ready,
        };
        reply.send(Ok(Health { status }));
    }

    fn ports(&self, reply: Reply<Vec<PortStatus>>) {
        match &self.forwards {
            None => reply.send(Err(nobody_publishes())),
            Some(forwards) => forwards.list_then(|list| reply.send(Ok(list))),
        }
    }

    fn add_port(&self, spec: PortSpec, reply: Reply<PortStatus>) {
        match &self.forwards {
            None => reply.send(Err(nobody_publishes())),
            Some(forwards) => {
                forwards.add_then(spec, |added| reply.send(added.map_err(|error| refused(&error))))
            }
        }
    }

    fn remove_port(&self, id: u64, reply: Reply<()>) {
        match &self.forwards {
            None => reply.send(Err(nobody_publishes())),
            Some(forwards) => {
                forwards.remove_then(id, |gone| reply.send(gone.map_err(|error| refused(&error))))
            }
        }
    }

    fn statistics(&self, reply: Reply<Statistics>) {
        let restarts = self.facts.restarts;
        let Some(forwards) = self.forwards.clone() else {
            return self.post(reply, move |driver, reply| reply.send(Ok(statistics(driver, restarts))));
        };
        let Some(driver) = &self.driver else {
            return forwards.stats_then(|stats, count| {
                let forwards = Some(forward_statistics(&stats, count));
                reply.send(Ok(Statistics { forwards, ..Statistics::default() }));
            });
        };
        // One after the other. Who has ended drops the reply.
        let _ = driver.post(move |driver| {
            let draft = Draft::new(statistics(driver, restarts), reply);
            forwards.stats_then(move |stats, count| {
                draft.finish(|statistics| {
                    statistics.forwards = Some(forward_statistics(&stats, count));
                    statistics.relay.bytes_from_child = stats.egress.bytes_to_host;
                    statistics.relay.bytes_to_child = stats.egress.bytes_from_host;
                });
            });
        });
    }

    fn flows(&self, query: FlowQuery, reply: Reply<FlowList>) {
        let forwards = self.forwards.clone();
        self.post(reply, move |driver, reply| {
            let covers =
                |flow: &FlowInfo| query.covers(protocol(flow.key.protocol), flow.key.child, flow.key.remote);
            let mut flows: Vec<FlowInfo> = driver.flows().filter(covers).collect();
            let now = driver.clock().now();
            let is_relayed = flows.iter().any(|flow| flow.path == netstack::flow::FlowPath::Relay);
            let Some(forwards) = forwards.filter(|_| is_relayed) else {
                return reply.finish_later(move || Ok(flow_list(flows, now, query.limit)));
            };
            forwards.connections_then(move |connections| {
                reply.finish_later(move || {
                    add_relayed(&mut flows, &connections, now);
                    Ok(flow_list(flows, now, query.limit))
                });
            });
        });
    }

    fn policy(&self, reply: Reply<Policy>) {
        self.post(reply, |driver, reply| reply.send(Ok(policy(driver))));
    }

    fn set_policy(&self, new: EgressPolicy, reply: Reply<Policy>) {
        self.change(reply, |driver| {
            driver.set_policy(new);
            Ok(policy(driver))
        });
    }

    fn add_policy(&self, added: Vec<Rule>, position: Position, reply: Reply<Policy>) {
        self.change(reply, move |driver| {
            let mut rules = driver.stack().policy().rules().to_vec();
            let at = match position {
                Position::First => 0,
                Position::Last => rules.len(),
            };
            rules.splice(at..at, added);
            let new = EgressPolicy::from_rules(rules);
            driver.set_policy(new.map_err(|error| Refusal::bad_request(error.to_string()))?);
            Ok(policy(driver))
        });
    }

    fn overlay(&self, reply: Reply<Overlay>) {
        self.post(reply, |driver, reply| reply.send(overlay(driver)));
    }

    fn allow_peers(&self, peers: Vec<IpNet>, reply: Reply<Overlay>) {
        self.change(reply, move |driver| {
            let mut allow = |peer| driver.stack_mut().allow_overlay_peers(peer).map(drop);
            let allowed = peers.into_iter().try_for_each(&mut allow);
            allowed.map_err(|error| Refusal::bad_request(error.to_string()))?;
            overlay(driver)
        });
    }

    fn forbid_peers(&self, peers: Vec<IpNet>, reply: Reply<Overlay>) {
        self.change(reply, move |driver| {
            let stack = driver.stack_mut();
            if let Some(peer) = peers.iter().find(|peer| !stack.overlay_allowed().contains(peer)) {
                return Err(Refusal::bad_request(format!("{peer} is not listed")));
            }
            for peer in peers {
                stack.forbid_overlay_peers(peer);
            }
            overlay(driver)
        });
    }

    fn dns(&self, reply: Reply<Dns>) {
        self.post(reply, |driver, reply| reply.send(Ok(dns(driver.stack_mut()))));
    }

    fn set_dns(&self, change: DnsChange, reply: Reply<Dns>) {
        let host_dns = self.facts.host_dns;
        self.change(reply, move |driver| change_dns(driver, change, host_dns));
    }

    fn capture(&self, reply: Reply<Capture>) {
        self.post(reply, |driver, reply| reply.send(Ok(driver.capture().map(capture).unwrap_or_default())));
    }

    fn start_capture(&self, file: OwnedFd, reply: Reply<Capture>) {
        self.post(reply, |driver, reply| reply.send(start_capture(driver, file)));
    }

    fn stop_capture(&self, reply: Reply<Capture>) {
        self.post(reply, |driver, reply| reply.send(stop_capture(driver)));
    }
}

/// An answer that can be sent as it is. Whoever was to add to it may have ended.
struct Draft<T: Send + 'static>(Option<(T, Reply<T>)>);

impl<T: Send> Draft<T> {
    fn new(answer: T, reply: Reply<T>) -> Self {
        Draft(Some((answer, reply)))
    }

    fn finish(mut self, add: impl FnOnce(&mut T)) {
        if let Some((answer, _)) = &mut self.0 {
            add(answer);
        }
    }
}

impl<T: Send> Drop for Draft<T> {
    fn drop(&mut self) {
        if let Some((answer, reply)) = self.0.take() {
            reply.send(Ok(answer));
        }
    }
}

fn set_egress(info: &mut Info, mode: EgressMode, way: impl Fn(Family) -> EgressPath) {
    if let Some(network) = &mut info.network_driver {
        network.egress = Some(Egress { mode, ipv4: way(Family::V4), ipv6: way(Family::V6) });
    }
}

fn by_tap(reason: impl ToString) -> EgressPath {
    EgressPath { path: EgressState::Tap, reason: Some(reason.to_string()) }
}

fn way_of(ability: EgressAbility) -> EgressPath {
    match ability {
        EgressAbility::Possible => EgressPath { path: EgressState::Relay, reason: None },
        EgressAbility::Unknown => EgressPath { path: EgressState::Untried, reason: None },
        EgressAbility::Impossible { .. } => by_tap(ability),
    }
}

/// Puts in what the relay knows about its connections.
fn add_relayed(flows: &mut [FlowInfo], connections: &[Connection], now: Instant) {
    let relayed: HashMap<u64, &Connection> =
        connections.iter().filter_map(|connection| Some((connection.egress?, connection))).collect();
    for flow in flows {
        if let Some(connection) = relayed.get(&flow.id.to_bits()) {
            flow.bytes_from_child = connection.bytes_to_server;
            flow.bytes_to_child = connection.bytes_to_client;
            flow.last_active = now - Duration::from_secs(connection.idle.into());
        }
    }
}

/// In RootlessKit's words.
fn nobody_publishes() -> Refusal {
    Refusal::bad_request("no PortDriver is available")
}

/// The error with what led to it; 400 whatever it is, as RootlessKit.
fn refused(error: &PortError) -> Refusal {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    Refusal { in_use: TakenPort::of(error), ..Refusal::bad_request(text) }
}

fn forward_statistics(stats: &ForwardStats, forwards: usize) -> ForwardStatistics {
    let total = &stats.total;
    ForwardStatistics {
        forwards: forwards as u64,
        connections: total.connections,
        sessions: total.sessions,
        accepted: total.connections_total,
        refused: total.refused,
        limited: total.limited,
        bytes_from_child: total.bytes_to_client,
        bytes_to_child: total.bytes_to_server,
    }
}

fn statistics(driver: &Driver, restarts: u32) -> Statistics {
    let stats = driver.stats();
    Statistics {
        frames: stats.frames.into(),
        tcp: stats.tcp.into(),
        udp: stats.udp.into(),
        icmp: stats.icmp.into(),
        dns: stats.dns.into(),
        dhcp: stats.dhcp.into(),
        overlay: stats.overlay.into(),
        tcp_opened: stats.tcp_opened,
        tcp_connect_failed: stats.tcp_connect_failed,
        tcp_reset: stats.tcp_reset,
        dns_static: stats.dns_static,
        dns_servfail: stats.dns_servfail,
        flows: driver.flows().count() as u64,
        buffer_bytes: driver.stack().buffer_bytes() as u64,
        drops: stats.all_drops().map(|(reason, count)| Drops { reason: reason.to_string(), count }).collect(),
        relay: RelayStatistics {
            connections: stats.relay.active,
            joined: stats.relay.joined,
            refused: stats.relay.refused,
            bytes_from_child: stats.relay.bytes_from_child,
            bytes_to_child: stats.relay.bytes_to_child,
        },
        engine_restarts: restarts.into(),
        forwards: None,
    }
}

fn overlay(driver: &Driver) -> Result<Overlay, Refusal> {
    let (stack, now) = (driver.stack(), driver.clock().now());
    let none = || Refusal::not_here("this instance has no overlay (--overlay-port)");
    let port = stack.overlay_port().ok_or_else(none)?;
    let mut peers: Vec<_> = stack.overlay_peers().collect();
    peers.sort_unstable_by_key(|peer| (Reverse(peer.last_active), peer.address));
    let peer = |peer: netstack::stack::OverlayPeer| OverlayPeer {
        address: peer.address,
        traffic: peer.traffic.into(),
        idle_seconds: (now - peer.last_active).secs(),
    };
    Ok(Overlay {
        port,
        allowed: stack.overlay_allowed().iter().map(IpNet::to_string).collect(),
        peers: peers.into_iter().map(peer).collect(),
        refused: driver.stats().drops(DropReason::OverlayStranger),
        last_refused: stack.overlay_stranger(),
    })
}

fn flow_list(mut flows: Vec<FlowInfo>, now: Instant, limit: usize) -> FlowList {
    let total = flows.len() as u64;
    flows.sort_unstable_by_key(|flow| (Reverse(flow.last_active), flow.id));
    flows.truncate(limit);
    let flow = |flow: FlowInfo| Flow {
        id: flow.id.to_bits(),
        protocol: protocol(flow.key.protocol),
        child: flow.key.child,
        remote: is_one_host(flow.key.remote).then_some(flow.key.remote),
        opened_by: match flow.opened_by {
            OpenedBy::Child => Side::Child,
            OpenedBy::Host => Side::Host,
        },
        phase: flow.phase.map(|phase| phase_name(phase).to_owned()),
        path: match flow.path {
            netstack::flow::FlowPath::Tap => FlowPath::Tap,
            netstack::flow::FlowPath::Relay => FlowPath::Relay,
        },
        bytes_from_child: flow.bytes_from_child,
        bytes_to_child: flow.bytes_to_child,
        idle_seconds: (now - flow.last_active).secs(),
    };
    FlowList { total, flows: flows.into_iter().map(flow).collect() }
}

fn is_one_host(remote: SocketAddr) -> bool {
    !remote.ip().is_unspecified()
}

fn protocol(protocol: Protocol) -> FlowProtocol {
    match protocol {
        Protocol::Tcp => FlowProtocol::Tcp,
        Protocol::Udp => FlowProtocol::Udp,
        Protocol::Icmp => FlowProtocol::Icmp,
        Protocol::Icmpv6 => FlowProtocol::Icmpv6,
    }
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Connecting => "connecting",
        Phase::Offered => "offered",
        Phase::Open => "open",
        Phase::Resetting => "resetting",
        Phase::Finishing => "finishing",
    }
}

fn policy(driver: &Driver) -> Policy {
    Policy {
        rules: driver.stack().policy().rules().iter().map(Rule::to_string).collect(),
        hits: driver.policy_hits(),
    }
}

fn dns(stack: &Stack) -> Dns {
    Dns {
        servers: stack.dns_servers().collect(),
        follows_host: stack.config().dns().servers.is_empty(),
        names: stack
            .dns_names()
            .iter()
            .map(|(name, address)| StaticName { name: name.clone(), address: *address })
            .collect(),
    }
}

/// All of a change or nothing of it.
fn change_dns(driver: &mut Driver, change: DnsChange, host_dns: HostDns) -> Result<Dns, Refusal> {
    let servers = change.servers.map(|servers| match servers.is_empty() {
        true => DnsUpstream::ResolvConf,
        false => DnsUpstream::Servers(servers),
    });
    if servers == Some(DnsUpstream::ResolvConf) && host_dns == HostDns::OutOfReach {
        return Err(Refusal::conflict(
            "the host's DNS servers are out of reach: others were given at the start",
        ));
    }
    if let Some(names) = change.names {
        let stack = driver.stack_mut();
        let before = stack.dns_names().to_vec();
        if let Err(refusal) = replace_names(stack, &names) {
            let before = before.into_iter().map(|(name, address)| StaticName { name, address });
            // They were there already, so they fit.
            replace_names(stack, &before.collect::<Vec<_>>())?;
            return Err(refusal);
        }
    }
    if let Some(servers) = servers {
        driver.set_dns_upstream(servers).map_err(|error| Refusal::conflict(error.to_string()))?;
    }
    Ok(dns(driver.stack()))
}

/// All static names from now on.
pub(crate) fn replace_names(stack: &mut Stack, names: &[StaticName]) -> Result<(), Refusal> {
    for (name, _) in stack.dns_names().to_vec() {
        stack.remove_dns_name(&name, None);
    }
    names.iter().try_for_each(|StaticName { name, address }| {
        stack.add_dns_name(name, *address).map_err(|error| Refusal::bad_request(error.to_string()))
    })
}

fn start_capture(driver: &mut Driver, file: OwnedFd) -> Result<Capture, Refusal> {
    let started = driver.start_capture(Box::new(File::from(file)), CaptureLimit::default());
    started.map_err(|error| Refusal::conflict(error.to_string()))?;
    Ok(driver.capture().map(capture).unwrap_or_default())
}

fn stop_capture(driver: &mut Driver) -> Result<Capture, Refusal> {
    let ended = driver.stop_capture().ok_or_else(|| Refusal::conflict("no capture is running"))?;
    Ok(Capture { running: false, ..capture(ended) })
}

fn capture(status: CaptureStatus) -> Capture {
    let ended = match status.state {
        CaptureState::LimitReached => Some(CaptureEnd::Limit),
        CaptureState::Failed => Some(CaptureEnd::WriteFailed),
        _ => None,
    };
    Capture { running: status.is_running(), frames: status.frames, bytes: status.bytes, ended }
}

#[cfg(test)]
mod tests {
    use netstack::flow::{FlowId, FlowKey, FlowPath};

    use super::*;

    fn flow(index: u64, active: i64) -> FlowInfo {
        FlowInfo {
            id: FlowId::from_bits(index),
            key: FlowKey {
                protocol: Protocol::Udp,
                child: SocketAddr::from(([10, 0, 42, 100], 40_000)),
                remote: SocketAddr::from(([0; 4], 0)),
            },
            opened_by: OpenedBy::Child,
            path: FlowPath::Tap,
            phase: None,
            bytes_from_child: 1,
            bytes_to_child: 2,
            last_active: Instant::from_secs(active),
        }
    }

    #[test]
    fn the_latest_active_flows_are_kept() {
        let list = flow_list(vec![flow(1, 5), flow(2, 9), flow(3, 7)], Instant::from_secs(10), 2);
        assert_eq!(list.total, 3);
        let kept: Vec<_> = list.flows.iter().map(|flow| (flow.id, flow.idle_seconds)).collect();
        assert_eq!(kept, [(2, 1), (3, 3)]);
        assert_eq!(list.flows[0].remote, None, "a UDP flow is open to anybody");
    }
}
