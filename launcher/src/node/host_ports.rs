//! Which ports of pods are to be published on the host, read from what CNI's library remembers of each pod. Pure.
//!
//! # Theory of operation
//! libcni keeps a file for each pod and network in /var/lib/cni/results (`cniCacheV1`, CNI specification 1.0 section 2.2:
//! "result caching"): it appears when the network is set up and goes when the pod does. It holds what the runtime wanted
//! mapped (the capability `portMappings`) and the addresses that the pod got.
//!
//! A hostPort leads straight to the pod, from the client's own address. portmap's rules do the same for the
//! node's own address, and those are for clients inside: a rule for an address of the host (hostIP) would never match there.
//!
//! CRI-O maps ports itself and does not tell CNI. It writes what is wanted into the configuration of the pod's own container, when the
//! network is there already.
//!
//! Not handled: SCTP, IPv6 (pods have none), pods in the host's network (CNI does not hear of them).

use std::collections::BTreeSet;
use std::mem;
use std::net::{IpAddr, Ipv4Addr};

use forwarder::spec::{PortFields, PortSpec, Proto};
use serde::Deserialize;
use thiserror::Error;

use super::args::HostPorts;

/// What is published where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// At which addresses of the host.
    pub host_ports: HostPorts,
    /// The first port that an ordinary user may listen on.
    pub first_unprivileged: u16,
    /// Added to ports below that.
    pub low_port_offset: u16,
}

/// What a result says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// For people: namespace and name, or the container's id.
    pub name: String,
    address: Option<Ipv4Addr>,
    mappings: Vec<Mapping>,
}

/// Why a hostPort is not published.
#[derive(Clone, Debug, Error, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Unpublished {
    /// Only TCP and UDP can be forwarded.
    #[error("hostPort {port}/{protocol} of pod {pod} is not published: only TCP and UDP are")]
    Protocol {
        /// The pod.
        pod: String,
        /// The hostPort.
        port: u16,
        /// What it is.
        protocol: String,
    },
    /// It names an address that the policy keeps closed, or that is none of IPv4.
    #[error("hostPort {port} of pod {pod} is not published at {address:?}: {reason}")]
    Address {
        /// The pod.
        pod: String,
        /// The hostPort.
        port: u16,
        /// The hostIP.
        address: String,
        /// Why.
        reason: &'static str,
    },
    /// The low port plus the offset is no port.
    #[error(
        "hostPort {port} of pod {pod} is not published: with --low-port-offset={offset} it is above 65535"
    )]
    Offset {
        /// The pod.
        pod: String,
        /// The hostPort.
        port: u16,
        /// The offset.
        offset: u16,
    },
}

/// Reads a file of libcni's. `None` if it is not one, or not of a network with ports.
///
/// A file that is half written is `None` too: whoever watches hears when it is whole.
pub fn parse(text: &str) -> Option<Pod> {
    let mut cached = Cached::parse(text)?;
    let mappings = mem::take(&mut cached.capabilities.mappings);
    pod(&cached, mappings)
}

/// The same under CRI-O: `configuration` is asked for that of the container of this id.
pub fn parse_of_crio(text: &str, configuration: impl FnOnce(&str) -> Option<String>) -> Option<Pod> {
    let cached = Cached::parse(text)?;
    let configuration = configuration(&cached.container_id)?;
    let Configuration { annotations } = serde_json::from_str(&configuration).ok()?;
    // Where no port is wanted it is null.
    let mappings: Option<Vec<Mapping>> = serde_json::from_str(&annotations.mappings).ok()?;
    pod(&cached, mappings.unwrap_or_default())
}

fn pod(cached: &Cached, mappings: Vec<Mapping>) -> Option<Pod> {
    if mappings.is_empty() {
        return None;
    }
    let argument = |wanted: &str| {
        let mut arguments = cached.arguments.iter();
        arguments.find(|(name, _)| name == wanted).map(|(_, value)| value.as_str())
    };
    let name = match (argument("K8S_POD_NAMESPACE"), argument("K8S_POD_NAME")) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        _ => cached.container_id.clone(),
    };
    let addresses = cached.result.ips.iter().filter_map(|ip| ip.address.split('/').next()?.parse().ok());
    let address = addresses.filter_map(|address| match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    });
    Some(Pod { name, address: { address }.next(), mappings })
}

/// What is to be published for these pods, and what cannot be.
pub fn wanted(policy: &Policy, pods: &[Pod]) -> (BTreeSet<PortSpec>, BTreeSet<Unpublished>) {
    let (mut specs, mut unpublished) = (BTreeSet::new(), BTreeSet::new());
    for pod in pods {
        // A mapping without a host port is what the container says of itself.
        for mapping in pod.mappings.iter().filter(|mapping| mapping.host_port != 0) {
            match spec(policy, pod, mapping) {
                Ok(Some(spec)) => drop(specs.insert(spec)),
                Ok(None) => {}
                Err(reason) => drop(unpublished.insert(reason)),
            }
        }
    }
    (specs, unpublished)
}

fn spec(policy: &Policy, pod: &Pod, mapping: &Mapping) -> Result<Option<PortSpec>, Unpublished> {
    let (name, port) = (pod.name.clone(), mapping.host_port);
    let proto = match mapping.protocol.to_ascii_lowercase().as_str() {
        "tcp" => Proto::Tcp4,
        "udp" => Proto::Udp4,
        _ => return Err(Unpublished::Protocol { pod: name, port, protocol: mapping.protocol.clone() }),
    };
    let refuse = |pod, reason| Unpublished::Address { pod, port, address: mapping.host_ip.clone(), reason };
    let given = match mapping.host_ip.as_str() {
        "" => None,
        text => match text.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) => Some(address).filter(|address| !address.is_unspecified()),
            Ok(IpAddr::V6(_)) => return Err(refuse(name, "pods have no IPv6")),
            Err(_) => return Err(refuse(name, "it is no address")),
        },
    };
    let parent_ip = match (policy.host_ports, given) {
        (HostPorts::Off, _) => return Ok(None),
        (HostPorts::Loopback, Some(address)) if !address.is_loopback() => {
            return Err(refuse(name, "--host-ports=loopback keeps it closed"));
        }
        (HostPorts::Loopback, given) => Some(given.unwrap_or(Ipv4Addr::LOCALHOST)),
        (HostPorts::All, given) => given,
    };
    let host_port = match port < policy.first_unprivileged {
        true => port.checked_add(policy.low_port_offset).ok_or(Unpublished::Offset {
            pod: name,
            port,
            offset: policy.low_port_offset,
        })?,
        false => port,
    };
    let (child_ip, child_port) = match pod.address {
        Some(address) => (Some(IpAddr::V4(address)), mapping.container_port),
        // Nothing else is known; portmap will lead it on.
        None => (None, port),
    };
    let fields = PortFields {
        parent_ip: parent_ip.map(IpAddr::V4),
        child_ip,
        ..PortFields::new(proto, host_port, child_port)
    };
    // Ports of 0 are the only thing that could be wrong with it; nobody can serve there.
    Ok(fields.try_into().ok())
}

const CACHE_KIND: &str = "cniCacheV1";

/// What libcni writes. Go reads and writes names of fields in any case: containerd's begin with capitals, those of libcni's own examples do not.
#[derive(Debug, Deserialize)]
struct Cached {
    kind: String,
    #[serde(rename = "containerId", default)]
    container_id: String,
    #[serde(rename = "ifName", default)]
    interface: String,
    #[serde(rename = "cniArgs", default)]
    arguments: Vec<(String, String)>,
    #[serde(rename = "capabilityArgs", default)]
    capabilities: Capabilities,
    #[serde(default)]
    result: CachedResult,
}

impl Cached {
    /// If it is a file of libcni's about a network that ports can be mapped to.
    fn parse(text: &str) -> Option<Self> {
        let cached: Self = serde_json::from_str(text).ok()?;
        // Runtimes want the same of the pod's loopback, which is a network, too.
        (cached.kind == CACHE_KIND && cached.interface != "lo").then_some(cached)
    }
}

/// What CRI-O writes of a container, as the OCI runtime specification says.
#[derive(Debug, Deserialize)]
struct Configuration {
    annotations: CrioAnnotations,
}

#[derive(Debug, Deserialize)]
struct CrioAnnotations {
    #[serde(rename = "io.kubernetes.cri-o.PortMappings")]
    mappings: String,
}

#[derive(Debug, Default, Deserialize)]
struct Capabilities {
    #[serde(rename = "portMappings", default)]
    mappings: Vec<Mapping>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
struct Mapping {
    #[serde(rename = "HostPort", alias = "hostPort", default)]
    host_port: u16,
    #[serde(rename = "ContainerPort", alias = "containerPort", default)]
    container_port: u16,
    #[serde(rename = "Protocol", alias = "protocol", default)]
    protocol: String,
    #[serde(rename = "HostIP", alias = "hostIP", default)]
    host_ip: String,
}

#[derive(Debug, Default, Deserialize)]
struct CachedResult {
    #[serde(default)]
    ips: Vec<CachedAddress>,
}

#[derive(Debug, Deserialize)]
struct CachedAddress {
    address: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: Policy =
        Policy { host_ports: HostPorts::Loopback, first_unprivileged: 1024, low_port_offset: 0 };

    fn cached(mappings: &str) -> String {
        format!(
            r#"{{"kind":"cniCacheV1","containerId":"c0ffee","config":"e30=","ifName":"eth0","networkName":"pods",
            "cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","default"],["K8S_POD_NAME","web"]],
            "capabilityArgs":{{"dns":{{}},"io.kubernetes.cri.pod-annotations":null,"portMappings":{mappings}}},
            "result":{{"cniVersion":"1.0.0","dns":{{}},"interfaces":[{{"mac":"x","name":"cni0"}}],
            "ips":[{{"address":"fd00::5/64"}},{{"address":"10.244.0.5/24","gateway":"10.244.0.1","interface":2}}]}}}}"#
        )
    }

    fn published(policy: Policy, mappings: &str) -> Vec<String> {
        let (specs, unpublished) = wanted(&policy, &[parse(&cached(mappings)).unwrap()]);
        let specs = specs.iter().map(PortSpec::to_string);
        specs.chain(unpublished.iter().map(Unpublished::to_string)).collect()
    }

    #[test]
    fn ports_lead_to_the_pod() {
        let containerd = r#"[{"HostPort":8080,"ContainerPort":80,"Protocol":"tcp","HostIP":""}]"#;
        let small = r#"[{"hostPort":8080,"containerPort":80,"protocol":"TCP","hostIP":""}]"#;
        for mappings in [containerd, small] {
            assert_eq!(published(LOOPBACK, mappings), ["127.0.0.1:8080:10.244.0.5:80/tcp4"]);
            let all = Policy { host_ports: HostPorts::All, ..LOOPBACK };
            assert_eq!(published(all, mappings), ["8080:10.244.0.5:80/tcp4"]);
            let off = Policy { host_ports: HostPorts::Off, ..LOOPBACK };
            assert!(published(off, mappings).is_empty());
        }
    }

    #[test]
    fn a_port_may_have_an_address() {
        let mappings = r#"[{"HostPort":53,"ContainerPort":5353,"Protocol":"udp","HostIP":"127.0.0.2"},
            {"HostPort":8080,"ContainerPort":80,"Protocol":"tcp","HostIP":"192.0.2.1"}]"#;
        assert_eq!(
            published(LOOPBACK, mappings),
            [
                "127.0.0.2:53:10.244.0.5:5353/udp4",
                "hostPort 8080 of pod default/web is not published at \"192.0.2.1\": --host-ports=loopback keeps it closed",
            ]
        );
        let all = Policy { host_ports: HostPorts::All, ..LOOPBACK };
        assert_eq!(
            published(all, mappings),
            ["192.0.2.1:8080:10.244.0.5:80/tcp4", "127.0.0.2:53:10.244.0.5:5353/udp4"]
        );
    }

    #[test]
    fn crio_says_it_elsewhere() {
        let text = cached("[]");
        let of = |annotations: &str| {
            let configuration = format!(r#"{{"ociVersion":"1.2.0","annotations":{annotations}}}"#);
            let asked = |id: &str| (id == "c0ffee").then_some(configuration);
            let pod = parse_of_crio(&text, asked)?;
            Some(wanted(&LOOPBACK, &[pod]).0.iter().map(PortSpec::to_string).collect::<Vec<_>>())
        };
        let mappings = r#"[{\"HostPort\":8080,\"ContainerPort\":80,\"Protocol\":\"TCP\",\"HostIP\":\"\"}]"#;
        let annotations = format!(r#"{{"io.kubernetes.cri-o.PortMappings":"{mappings}","other":"x"}}"#);
        assert_eq!(of(&annotations).unwrap(), ["127.0.0.1:8080:10.244.0.5:80/tcp4"]);
        assert_eq!(of(r#"{"io.kubernetes.cri-o.PortMappings":"null"}"#), None);
        assert_eq!(of(r#"{"io.kubernetes.cri-o.PortMappings":"{"}"#), None);
        assert_eq!(of("{}"), None);
        assert_eq!(parse_of_crio(&text, |_| None), None);
        assert_eq!(parse_of_crio(&text.replace("eth0", "lo"), |_| Some(annotations)), None);
    }

    #[test]
    fn low_ports_are_moved_up() {
        let policy = Policy { low_port_offset: 10000, ..LOOPBACK };
        let mappings = r#"[{"HostPort":80,"ContainerPort":80,"Protocol":"tcp"},
            {"HostPort":8080,"ContainerPort":80,"Protocol":"tcp"}]"#;
        assert_eq!(
            published(policy, mappings),
            ["127.0.0.1:8080:10.244.0.5:80/tcp4", "127.0.0.1:10080:10.244.0.5:80/tcp4"]
        );
        let policy = Policy { low_port_offset: u16::MAX, ..LOOPBACK };
        let told =
            "hostPort 80 of pod default/web is not published: with --low-port-offset=65535 it is above 65535";
        assert_eq!(published(policy, mappings)[1], told);
    }

    #[test]
    fn what_cannot_be_published_is_told() {
        let mappings = r#"[{"HostPort":9,"ContainerPort":9,"Protocol":"sctp"},{"HostPort":0,"ContainerPort":9,"Protocol":"tcp"},
            {"HostPort":9,"ContainerPort":9,"Protocol":"tcp","HostIP":"::1"},{"HostPort":9,"ContainerPort":9,"Protocol":"tcp","HostIP":"x"}]"#;
        assert_eq!(
            published(LOOPBACK, mappings),
            [
                "hostPort 9/sctp of pod default/web is not published: only TCP and UDP are",
                "hostPort 9 of pod default/web is not published at \"::1\": pods have no IPv6",
                "hostPort 9 of pod default/web is not published at \"x\": it is no address",
            ]
        );
    }

    #[test]
    fn other_files_are_nothing() {
        for text in ["", "{", "[]", "{}", r#"{"kind":"cniCacheV2","capabilityArgs":{"portMappings":[]}}"#] {
            assert_eq!(parse(text), None, "{text}");
        }
        let text = cached(r#"[{"HostPort":1,"ContainerPort":1,"Protocol":"tcp"}]"#);
        for end in 0..text.len() {
            assert_eq!(text.get(..end).and_then(parse), None);
        }
        assert_eq!(parse(&cached("[]")), None);
        assert_eq!(parse(&text.replace("eth0", "lo")), None);
    }
}
