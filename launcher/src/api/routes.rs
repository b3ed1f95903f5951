//! From a request to a [`Command`]. Pure.

use std::str::FromStr;

use hyper::StatusCode;
use netstack::config::IpNet;
use netstack::flow::policy::{EgressPolicy, Rule};
use serde::de::DeserializeOwned;

use super::Refusal;
use super::model::{DnsChange, FlowQuery, PeerList, Policy, PolicyAddition, PortSpec, Position};

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Tell what the instance is.
    Info,
    /// Tell whether it is ready.
    Health,
    /// List published ports.
    Ports,
    /// Publish a port.
    AddPort(PortSpec),
    /// Take a published port back.
    RemovePort(u64),
    /// Stream changes of the published ports.
    WatchPorts,
    /// Tell the counters.
    Statistics,
    /// List flows.
    Flows(FlowQuery),
    /// Tell the egress policy.
    Policy,
    /// Replace it.
    SetPolicy(EgressPolicy),
    /// Add to it.
    AddPolicy(Vec<Rule>, Position),
    /// Tell about the overlay.
    Overlay,
    /// Let these send by the overlay.
    AllowPeers(Vec<IpNet>),
    /// Let these send no more.
    ForbidPeers(Vec<IpNet>),
    /// Tell about DNS.
    Dns,
    /// Change DNS.
    SetDns(DnsChange),
    /// Tell whether frames are recorded.
    Capture,
    /// Write frames to the file whose descriptor came with the request.
    StartCapture,
    /// End that.
    StopCapture,
    /// Tell the counters as metrics.
    Metrics,
}

/// One verb of one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The verb.
    pub method: &'static str,
    /// The path; a part in braces stands for any.
    pub path: &'static str,
    /// Status of the answer when it went well.
    pub success: u16,
    kind: Kind,
}

impl Route {
    /// Everything there is.
    pub const ALL: &[Route] = &[
        Route { method: "GET", path: "/v1/info", success: 200, kind: Kind::Info },
        Route { method: "GET", path: "/v1/health", success: 200, kind: Kind::Health },
        Route { method: "GET", path: "/v1/ports", success: 200, kind: Kind::Ports },
        Route { method: "POST", path: "/v1/ports", success: 201, kind: Kind::AddPort },
        // Before the next one, which would take it.
        Route { method: "GET", path: "/v1/ports/watch", success: 200, kind: Kind::WatchPorts },
        Route { method: "DELETE", path: "/v1/ports/{id}", success: 200, kind: Kind::RemovePort },
        Route { method: "GET", path: "/v1/stats", success: 200, kind: Kind::Statistics },
        Route { method: "GET", path: "/v1/flows", success: 200, kind: Kind::Flows },
        Route { method: "GET", path: "/v1/policy", success: 200, kind: Kind::Policy },
        Route { method: "PUT", path: "/v1/policy", success: 200, kind: Kind::SetPolicy },
        Route { method: "POST", path: "/v1/policy", success: 200, kind: Kind::AddPolicy },
        Route { method: "GET", path: "/v1/overlay", success: 200, kind: Kind::Overlay },
        Route { method: "POST", path: "/v1/overlay", success: 200, kind: Kind::AllowPeers },
        Route { method: "DELETE", path: "/v1/overlay", success: 200, kind: Kind::ForbidPeers },
        Route { method: "GET", path: "/v1/dns", success: 200, kind: Kind::Dns },
        Route { method: "PUT", path: "/v1/dns", success: 200, kind: Kind::SetDns },
        Route { method: "GET", path: "/v1/capture", success: 200, kind: Kind::Capture },
        Route { method: "POST", path: "/v1/capture", success: 201, kind: Kind::StartCapture },
        Route { method: "DELETE", path: "/v1/capture", success: 200, kind: Kind::StopCapture },
        Route { method: "GET", path: Route::METRICS, success: 200, kind: Kind::Metrics },
    ];

    /// The path that is also served on a TCP address.
    pub const METRICS: &str = "/metrics";

    /// Finds the route of a request, with the part of `path` that the braces stand for.
    ///
    /// # Errors
    /// 404 for a path, 405 for a verb that does not exist.
    pub fn find<'p>(method: &str, path: &'p str) -> Result<(&'static Route, &'p str), Refusal> {
        let mut fitting = Route::ALL.iter().filter_map(|route| Some((route, matched(route.path, path)?)));
        if let Some(found) = fitting.find(|(route, _)| route.method == method) {
            return Ok(found);
        }
        let verbs = Route::verbs(path);
        if verbs.is_empty() {
            return Err(Refusal::new(StatusCode::NOT_FOUND, format!("there is no {path}")));
        }
        let message = format!("{path} has no {method}, only {}", verbs.join(", "));
        Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, message))
    }

    /// The verbs that a path has.
    pub fn verbs(path: &str) -> Vec<&'static str> {
        let fitting = Route::ALL.iter().filter(|route| matched(route.path, path).is_some());
        fitting.map(|route| route.method).collect()
    }

    /// Whether requests have a body that counts.
    pub fn takes_body(&self) -> bool {
        use Kind::{AddPolicy, AddPort, AllowPeers, ForbidPeers, SetDns, SetPolicy};
        matches!(self.kind, AddPort | SetPolicy | AddPolicy | AllowPeers | ForbidPeers | SetDns)
    }

    /// What a request of this route wants. `part` is what [`Route::find`] returned.
    ///
    /// # Errors
    /// 400 for parameters or a body that cannot be understood.
    pub fn command(&self, part: &str, query: Option<&str>, body: &[u8]) -> Result<Command, Refusal> {
        Ok(match self.kind {
            Kind::Info => Command::Info,
            Kind::Health => Command::Health,
            Kind::Ports => Command::Ports,
            Kind::AddPort => Command::AddPort(json(body)?),
            Kind::RemovePort => Command::RemovePort(
                part.parse().map_err(|error| Refusal::bad_request(format!("bad id {part}: {error}")))?,
            ),
            Kind::WatchPorts => Command::WatchPorts,
            Kind::Statistics => Command::Statistics,
            Kind::Flows => Command::Flows(flow_query(query.unwrap_or_default())?),
            Kind::Policy => Command::Policy,
            Kind::SetPolicy => {
                let policy = EgressPolicy::from_rules(rules(&json::<Policy>(body)?.rules)?);
                Command::SetPolicy(policy.map_err(|error| Refusal::bad_request(error.to_string()))?)
            }
            Kind::AddPolicy => {
                let PolicyAddition { rules: texts, position } = json(body)?;
                Command::AddPolicy(rules(&texts)?, position)
            }
            Kind::Overlay => Command::Overlay,
            Kind::AllowPeers => Command::AllowPeers(nets(body)?),
            Kind::ForbidPeers => Command::ForbidPeers(nets(body)?),
            Kind::Dns => Command::Dns,
            Kind::SetDns => Command::SetDns(json(body)?),
            Kind::Capture => Command::Capture,
            Kind::StartCapture => Command::StartCapture,
            Kind::StopCapture => Command::StopCapture,
            Kind::Metrics => Command::Metrics,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Info,
    Health,
    Ports,
    AddPort,
    RemovePort,
    WatchPorts,
    Statistics,
    Flows,
    Policy,
    SetPolicy,
    AddPolicy,
    Overlay,
    AllowPeers,
    ForbidPeers,
    Dns,
    SetDns,
    Capture,
    StartCapture,
    StopCapture,
    Metrics,
}

/// Whether `path` fits `template`, and what stands where the braces are (at most one pair, at the end).
fn matched<'p>(template: &str, path: &'p str) -> Option<&'p str> {
    match template.split_once('{') {
        None => (template == path).then_some(""),
        Some((head, _)) => path.strip_prefix(head).filter(|part| !part.is_empty() && !part.contains('/')),
    }
}

fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::bad_request(format!("bad JSON: {error}")))
}

fn rules(texts: &[String]) -> Result<Vec<Rule>, Refusal> {
    let read = |text: &String| Rule::from_str(text).map_err(|error| Refusal::bad_request(error.to_string()));
    texts.iter().map(read).collect()
}

fn nets(body: &[u8]) -> Result<Vec<IpNet>, Refusal> {
    let read = |text: &String| text.parse().map_err(|error| Refusal::bad_request(format!("{error}")));
    json::<PeerList>(body)?.peers.iter().map(read).collect()
}

fn flow_query(text: &str) -> Result<FlowQuery, Refusal> {
    let mut query = FlowQuery::default();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(value).ok_or_else(|| bad(key, value, "it is not percent-encoded UTF-8"))?;
        match key {
            "protocol" => query.protocol = Some(parse(key, &value)?),
            "child" => query.child = Some(parse(key, &value)?),
            "remote" => query.remote = Some(parse(key, &value)?),
            "limit" => query.limit = parse::<usize>(key, &value)?.min(FlowQuery::MAX_LIMIT),
            _ => return Err(Refusal::bad_request(format!("unknown parameter {key}"))),
        }
    }
    Ok(query)
}

fn parse<T: FromStr<Err: std::fmt::Display>>(key: &str, value: &str) -> Result<T, Refusal> {
    value.parse().map_err(|error| bad(key, value, error))
}

fn bad(key: &str, value: &str, problem: impl std::fmt::Display) -> Refusal {
    Refusal::bad_request(format!("bad {key} {value:?}: {problem}"))
}

/// Percent-decoding (RFC 3986 section 2.1).
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes().iter().copied();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                let digit = |byte: u8| char::from(byte).to_digit(16);
                (digit(digits[0])? * 16 + digit(digits[1])?) as u8
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::model::FlowProtocol;

    fn command(method: &str, target: &str, body: &str) -> Result<Command, Refusal> {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        let (route, part) = Route::find(method, path)?;
        route.command(part, query, body.as_bytes())
    }

    fn status(method: &str, target: &str, body: &str) -> u16 {
        command(method, target, body).unwrap_err().status.as_u16()
    }

    #[test]
    fn rootlesskits_requests_are_understood() {
        let body = r#"{"proto":"tcp","parentIP":"127.0.0.1","parentPort":8080,"childPort":80}"#;
        let Ok(Command::AddPort(spec)) = command("POST", "/v1/ports", body) else { panic!("not understood") };
        assert_eq!(spec.to_string(), "127.0.0.1:8080:80/tcp");
        assert_eq!(command("DELETE", "/v1/ports/7", ""), Ok(Command::RemovePort(7)));
        assert_eq!(command("GET", "/v1/ports", ""), Ok(Command::Ports));
        assert_eq!(command("GET", "/v1/ports/watch", ""), Ok(Command::WatchPorts));
        assert_eq!(command("GET", "/v1/info?x=y", ""), Ok(Command::Info));
    }

    #[test]
    fn unknown_paths_and_verbs_are_told_apart() {
        assert_eq!(status("GET", "/", ""), 404);
        assert_eq!(status("GET", "/v2/info", ""), 404);
        assert_eq!(status("GET", "/v1/info/", ""), 404);
        assert_eq!(status("DELETE", "/v1/ports/1/2", ""), 404);
        let refusal = command("PATCH", "/v1/policy", "").unwrap_err();
        assert_eq!(refusal.status.as_u16(), 405);
        assert_eq!(refusal.message, "/v1/policy has no PATCH, only GET, PUT, POST");
    }

    #[test]
    fn bad_parameters_and_bodies_are_the_clients_fault() {
        for (method, target, body) in [
            ("DELETE", "/v1/ports/x", ""),
            ("DELETE", "/v1/ports/-1", ""),
            ("DELETE", "/v1/ports/99999999999999999999", ""),
            ("POST", "/v1/ports", ""),
            ("POST", "/v1/ports", "{"),
            ("POST", "/v1/ports", "[]"),
            ("POST", "/v1/ports", r#"{"proto":"tcp","parentPort":70000}"#),
            ("PUT", "/v1/policy", r#"{"rules":["forbid any"]}"#),
            ("PUT", "/v1/dns", r#"{"servers":["example.org"]}"#),
            ("POST", "/v1/overlay", r#"{"peers":["192.0.2.1/24"]}"#),
            ("DELETE", "/v1/overlay", "{}"),
            ("GET", "/v1/flows?limit=many", ""),
            ("GET", "/v1/flows?protocol=sctp", ""),
            ("GET", "/v1/flows?child=%zz", ""),
            ("GET", "/v1/flows?colour=red", ""),
        ] {
            assert_eq!(status(method, target, body), 400, "{method} {target} {body}");
        }
    }

    #[test]
    fn flows_are_asked_for_by_parameters() {
        let target = "/v1/flows?protocol=udp&child=10.0.42.100&remote=%5Bfd00%3A%3A1%5D:53&limit=5&";
        let expected = FlowQuery {
            protocol: Some(FlowProtocol::Udp),
            child: Some("10.0.42.100".parse().unwrap()),
            remote: Some("[fd00::1]:53".parse().unwrap()),
            limit: 5,
        };
        assert_eq!(command("GET", target, ""), Ok(Command::Flows(expected)));
    }

    #[test]
    fn peers_are_addresses_or_networks() {
        let body = r#"{"peers":["192.0.2.0/24","2001:db8::7"]}"#;
        let peers = vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        assert_eq!(command("POST", "/v1/overlay", body), Ok(Command::AllowPeers(peers.clone())));
        assert_eq!(command("DELETE", "/v1/overlay", body), Ok(Command::ForbidPeers(peers)));
    }

    #[test]
    fn rules_are_read() {
        let body = r#"{"rules":["deny   any fd00::/8"],"position":"first"}"#;
        let expected = Command::AddPolicy(vec!["deny fd00::/8".parse().unwrap()], Position::First);
        assert_eq!(command("POST", "/v1/policy", body), Ok(expected));
    }
}
