//! A stand-in for the engine, and a server around it.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use forwarder::spec::Origin;
use launcher::api::model::*;
use launcher::api::server::{self, Limits, Server};
use launcher::api::{Control, Refusal, Reply};
use launcher::client::http::{self, Request};
use launcher::state_dir::{Place, StateDir};
use netstack::config::IpNet;
use netstack::flow::policy::{EgressPolicy, Rule};

/// Publishes nothing, but remembers.
#[derive(Debug, Default)]
pub(crate) struct Fake {
    ports: Mutex<(u64, Vec<PortStatus>)>,
    policy: Mutex<Vec<Rule>>,
    peers: Mutex<Vec<IpNet>>,
    dns: Mutex<Dns>,
    capture: Mutex<Option<File>>,
    /// Requests for flows are never answered, but kept here.
    pub(crate) waiting: Mutex<Vec<Reply<FlowList>>>,
}

impl Control for Fake {
    fn info(&self, reply: Reply<Info>) {
        reply.send(Ok(Info {
            api_version: launcher::api::VERSION.into(),
            version: "0.1.0".into(),
            state_dir: "/run/user/1000/rootless-launch/x".into(),
            child_pid: 42,
            engine_restarts: 0,
            network_driver: Some(NetworkDriver {
                driver: "rootless-launch".into(),
                dns: vec!["10.0.42.3".parse().unwrap()],
                child_ip: Some("10.0.42.100".parse().unwrap()),
                egress: Some(Egress {
                    mode: EgressMode::Auto,
                    ipv4: EgressPath { path: EgressState::Relay, reason: None },
                    ipv6: EgressPath { path: EgressState::Tap, reason: Some("nftables table: no".into()) },
                }),
                ..NetworkDriver::default()
            }),
            port_driver: Some(PortDriver {
                driver: "rootless-launch".into(),
                protos: ["tcp", "tcp4", "tcp6", "udp", "udp4", "udp6"].map(str::to_owned).into(),
                disallow_loopback_child_ip: false,
            }),
        }));
    }

    fn health(&self, reply: Reply<Health>) {
        reply.send(Ok(Health { status: HealthStatus::Ready }));
    }

    fn ports(&self, reply: Reply<Vec<PortStatus>>) {
        reply.send(Ok(self.ports.lock().unwrap().1.clone()));
    }

    fn add_port(&self, spec: PortSpec, reply: Reply<PortStatus>) {
        let mut ports = self.ports.lock().unwrap();
        if ports.1.iter().any(|port| port.spec.fields().parent_port == spec.fields().parent_port) {
            return reply.send(Err(Refusal::bad_request("the port is in use")));
        }
        ports.0 += 1;
        let port = PortStatus { id: ports.0, spec, origin: Origin::Asked };
        ports.1.push(port.clone());
        // As the engine: on another thread, later.
        std::thread::spawn(move || reply.send(Ok(port)));
    }

    fn remove_port(&self, id: u64, reply: Reply<()>) {
        let mut ports = self.ports.lock().unwrap();
        let Some(index) = ports.1.iter().position(|port| port.id == id) else {
            return reply.send(Err(Refusal::bad_request(format!("there is no port {id}"))));
        };
        ports.1.remove(index);
        reply.send(Ok(()));
    }

    fn statistics(&self, reply: Reply<Statistics>) {
        reply.send(Ok(full_statistics()));
    }

    fn flows(&self, query: FlowQuery, reply: Reply<FlowList>) {
        if query.limit == 0 {
            return reply.send(Ok(FlowList { total: 0, flows: Vec::new() }));
        }
        self.waiting.lock().unwrap().push(reply);
    }

    fn policy(&self, reply: Reply<Policy>) {
        let rules = self.policy.lock().unwrap().iter().map(Rule::to_string).collect();
        reply.send(Ok(Policy { rules, hits: Vec::new() }));
    }

    fn set_policy(&self, policy: EgressPolicy, reply: Reply<Policy>) {
        *self.policy.lock().unwrap() = policy.rules().to_vec();
        self.policy(reply);
    }

    fn add_policy(&self, added: Vec<Rule>, position: Position, reply: Reply<Policy>) {
        let mut rules = self.policy.lock().unwrap();
        let at = if position == Position::First { 0 } else { rules.len() };
        rules.splice(at..at, added);
        drop(rules);
        self.policy(reply);
    }

    fn overlay(&self, reply: Reply<Overlay>) {
        let allowed = self.peers.lock().unwrap().iter().map(IpNet::to_string).collect();
        reply.send(Ok(Overlay { allowed, ..full_overlay() }));
    }

    fn allow_peers(&self, peers: Vec<IpNet>, reply: Reply<Overlay>) {
        self.peers.lock().unwrap().extend(peers);
        self.overlay(reply);
    }

    fn forbid_peers(&self, peers: Vec<IpNet>, reply: Reply<Overlay>) {
        self.peers.lock().unwrap().retain(|peer| !peers.contains(peer));
        self.overlay(reply);
    }

    fn dns(&self, reply: Reply<Dns>) {
        reply.send(Ok(self.dns.lock().unwrap().clone()));
    }

    fn set_dns(&self, change: DnsChange, reply: Reply<Dns>) {
        let mut dns = self.dns.lock().unwrap();
        dns.servers = change.servers.unwrap_or_else(|| dns.servers.clone());
        dns.names = change.names.unwrap_or_else(|| dns.names.clone());
        reply.send(Ok(dns.clone()));
    }

    fn capture(&self, reply: Reply<Capture>) {
        let running = self.capture.lock().unwrap().is_some();
        reply.send(Ok(Capture { running, ..Capture::default() }));
    }

    fn start_capture(&self, file: OwnedFd, reply: Reply<Capture>) {
        let mut capture = self.capture.lock().unwrap();
        if capture.is_some() {
            return reply.send(Err(Refusal::conflict("a capture is running")));
        }
        let mut file = File::from(file);
        file.write_all(b"frames").unwrap();
        *capture = Some(file);
        reply.send(Ok(Capture { running: true, ..Capture::default() }));
    }

    fn stop_capture(&self, reply: Reply<Capture>) {
        match self.capture.lock().unwrap().take() {
            Some(_) => reply.send(Ok(Capture::default())),
            None => reply.send(Err(Refusal::conflict("no capture is running"))),
        }
    }
}

/// Counters, none of them absent.
pub(crate) fn full_statistics() -> Statistics {
    Statistics {
        flows: 3,
        relay: RelayStatistics {
            connections: 1,
            joined: 2,
            refused: 3,
            bytes_from_child: 4,
            bytes_to_child: 5,
        },
        drops: vec![Drops { reason: "bad checksum".into(), count: 1 }],
        forwards: Some(ForwardStatistics::default()),
        ..Statistics::default()
    }
}

/// A flow with all its fields.
pub(crate) fn full_flow() -> FlowList {
    let flow = Flow {
        id: 1,
        protocol: FlowProtocol::Tcp,
        child: "10.0.42.100:40000".parse().unwrap(),
        remote: Some("192.0.2.1:443".parse().unwrap()),
        opened_by: Side::Child,
        phase: Some("open".into()),
        path: FlowPath::Relay,
        bytes_from_child: 1536,
        bytes_to_child: 7,
        idle_seconds: 2,
    };
    FlowList { total: 1, flows: vec![flow] }
}

/// A server around a stand-in, in a state directory.
pub(crate) struct Bench {
    /// The stand-in.
    pub(crate) fake: Arc<Fake>,
    server: Option<Server>,
    directory: StateDir,
}

impl Bench {
    /// With the limits that everybody gets.
    pub(crate) fn new() -> Self {
        Bench::with(Limits::default(), None)
    }

    /// With limits of its own, and a listener for metrics.
    pub(crate) fn with(limits: Limits, metrics: Option<TcpListener>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("rootless-launch-api-{}-{number}", std::process::id());
        Bench::made(std::env::temp_dir().join(name), limits, metrics)
    }

    /// In this directory.
    pub(crate) fn at(directory: PathBuf) -> Self {
        Bench::made(directory, Limits::default(), None)
    }

    fn made(directory: PathBuf, limits: Limits, metrics: Option<TcpListener>) -> Self {
        let directory = StateDir::open(&Place::Given(directory)).unwrap();
        let fake = Arc::new(Fake::default());
        let server = server::prepare(directory.listen().unwrap(), fake.clone(), metrics).unwrap();
        let server = server.limits(limits).spawn().unwrap();
        Bench { fake, server: Some(server), directory }
    }

    /// The socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory().join("api.sock")
    }

    /// The state directory, as clients see it.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The state directory, as the launcher has it.
    pub(crate) fn state_dir(&self) -> &StateDir {
        &self.directory
    }

    /// A connection.
    pub(crate) fn connect(&self) -> UnixStream {
        UnixStream::connect(self.socket()).unwrap()
    }

    /// Status and body of an answer.
    #[track_caller]
    pub(crate) fn ask(&self, method: &str, target: &str, body: &str) -> (u16, String) {
        let request = Request { body: body.as_bytes(), ..Request::new(method, target) };
        let response = http::send(&self.socket(), &request).unwrap();
        (response.status, String::from_utf8(response.read().unwrap()).unwrap())
    }

    /// All that comes back for some bytes, after which our side is shut down.
    pub(crate) fn talk(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // A server that refuses early closes early; what it said is there all the same.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    /// Publishes a port without a request.
    pub(crate) fn publish(&self, text: &str) {
        let mut ports = self.fake.ports.lock().unwrap();
        ports.0 += 1;
        let port = PortStatus { id: ports.0, spec: text.parse().unwrap(), origin: Origin::Auto };
        ports.1.push(port);
    }

    /// Ends the server.
    pub(crate) fn stop(&mut self) {
        self.server = None;
    }
}

/// Says that the running test cannot run here, and why: past the capture of the test harness, so that CI counts it.
pub(crate) fn skipped(reason: &str) {
    let thread = std::thread::current();
    let line = format!("SKIPPED {}: {reason}\n", thread.name().unwrap_or("unnamed"));
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Waits until `condition` holds.
pub(crate) fn wait_for(condition: impl Fn() -> bool) {
    while !condition() {
        std::thread::yield_now();
    }
}

/// An overlay with nothing left out.
pub(crate) fn full_overlay() -> Overlay {
    let traffic =
        Traffic { packets_from_child: 3, bytes_from_child: 1536, packets_to_child: 2, bytes_to_child: 7 };
    Overlay {
        port: 8472,
        allowed: Vec::new(),
        peers: vec![OverlayPeer { address: [192, 0, 2, 7].into(), traffic, idle_seconds: 2 }],
        refused: 5,
        last_refused: Some([198, 51, 100, 1].into()),
    }
}
