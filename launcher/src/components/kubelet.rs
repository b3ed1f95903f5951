//! kubelet: its configuration from what a node needs and what the user changes, and how it is run. Pure.
//!
//! Sources: kubelet.config.k8s.io/v1beta1 (k8s.io/kubelet, types.go), the kubelet's reference page, KEP-2033.
//!
//! # The user's patch
//! A merge patch (RFC 7386) of KubeletConfiguration: what it names replaces ours, null takes ours away, maps are merged.
//! kubelet itself only warns of a key it does not know; here such a key, a value of the wrong kind, and a value with
//! which no rootless node works are errors that name the key.
//!
//! A file with a `kind` is nobody's wish but a whole configuration, such as kubeadm keeps for all nodes of a cluster (ConfigMap
//! kubelet-config): what in it is about a machine and not about the cluster is left out.

mod fields;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use thiserror::Error;

use self::fields::{FIELDS, Kind, NEWEST};
use super::kubeconfig::Identity;
use super::programs::Version;
use super::{Cgroups, layout};
use crate::supervisor::unit::{Readiness, Restart, Unit};

/// What kubelet is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubelet {
    /// Its file.
    pub program: PathBuf,
    /// Its version.
    pub version: Version,
    /// Name of the node.
    pub node_name: String,
    /// The CRI runtime's socket.
    pub runtime: &'static str,
    /// Whether limits can be enforced.
    pub cgroups: Cgroups,
    /// Whom it obeys.
    pub cluster: Cluster,
    /// Where the manifests of static pods are.
    pub static_pods: Option<PathBuf>,
    /// Arguments of the user, after ours.
    pub arguments: Vec<String>,
    /// Units that have to be ready before.
    pub after: Vec<String>,
}

/// Whom kubelet obeys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cluster {
    /// Nobody: it runs static pods.
    None,
    /// An API server that knows it.
    Joined(Membership),
    /// An API server that is asked for a certificate first.
    Bootstrap(Membership),
}

/// How a node is a part of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Address of the API server, and credentials.
    pub kubeconfig: PathBuf,
    /// What we are known by.
    pub identity: Identity,
    /// Whose clients kubelet lets in: those of the API server.
    pub client_authority: Option<PathBuf>,
    /// Where others find the node, at most one of each family: addresses of its devices.
    pub addresses: Vec<IpAddr>,
}

impl Cluster {
    /// How the node is a part of it, if it is.
    pub fn membership(&self) -> Option<&Membership> {
        match self {
            Cluster::None => None,
            Cluster::Joined(membership) | Cluster::Bootstrap(membership) => Some(membership),
        }
    }
}

/// Why the user's changes cannot be.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PatchError {
    /// It is neither YAML nor JSON.
    #[error("it is neither YAML nor JSON: {0}")]
    Syntax(String),
    /// It is a list or a word.
    #[error("it holds {0}, not keys with values")]
    NotAMap(&'static str),
    /// A key that kubelet does not know.
    #[error("key {key:?} is not known to kubelet {version}{}", .meant.map(|meant| format!("; did you mean {meant:?}?")).unwrap_or_default())]
    Unknown {
        /// With those above it, by dots.
        key: String,
        /// The kubelet's.
        version: Version,
        /// The known key that is most alike.
        meant: Option<&'static str>,
    },
    /// A value of the wrong kind.
    #[error("key {key:?} has {found}, and takes {wanted}")]
    Kind {
        /// With those above it, by dots.
        key: String,
        /// What it takes.
        wanted: &'static str,
        /// What it has.
        found: &'static str,
    },
    /// A value with which no rootless node works.
    #[error("key {key:?} cannot be {value}: {reason}")]
    Refused {
        /// With those above it, by dots.
        key: &'static str,
        /// As JSON.
        value: String,
        /// Why.
        reason: &'static str,
    },
}

/// A patch, checked against the version that it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch(Value);

impl Default for Patch {
    /// Changes nothing.
    fn default() -> Self {
        Patch(json!({}))
    }
}

impl Patch {
    /// Reads YAML or JSON (which is YAML). Nothing but comments is an empty patch.
    ///
    /// # Errors
    /// It cannot be parsed, or has keys or kinds of values that kubelet does not know.
    pub fn parse(text: &str, version: Version) -> Result<Self, PatchError> {
        let value: Value =
            yaml_serde::from_str(text).map_err(|error| PatchError::Syntax(error.to_string()))?;
        match value {
            Value::Null => Ok(Patch::default()),
            Value::Object(_) => {
                check(&value, FIELDS, "", version)?;
                Ok(Patch(value))
            }
            other => Err(PatchError::NotAMap(kind_of(&other))),
        }
    }
}

fn check(
    value: &Value,
    fields: &'static [(&'static str, Kind)],
    above: &str,
    version: Version,
) -> Result<(), PatchError> {
    for (name, value) in value.as_object().into_iter().flatten() {
        let key = format!("{above}{name}");
        let known = fields.iter().find(|(field, _)| field == name);
        let Some(&(_, kind)) = known else {
            // What newer kubelets know is theirs to judge.
            if version > NEWEST {
                continue;
            }
            let meant = nearest(name, fields.iter().map(|&(field, _)| field));
            return Err(PatchError::Unknown { key, version, meant });
        };
        if value.is_null() {
            continue;
        }
        if !kind.takes(value) {
            return Err(PatchError::Kind { key, wanted: kind.name(), found: kind_of(value) });
        }
        if let Kind::Table(fields) = kind {
            check(value, fields, &format!("{key}."), version)?;
        }
    }
    Ok(())
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "keys with values",
    }
}

/// The candidate that becomes `word` by the fewest changes of a letter, if few do.
fn nearest(word: &str, candidates: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let distances = candidates.map(|candidate| (distance(word, candidate), candidate));
    let (distance, candidate) = distances.min()?;
    (distance <= 1 + word.len() / 5).then_some(candidate)
}

/// Levenshtein's distance, capital letters being as good as small ones.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<u8> = right.bytes().map(|byte| byte.to_ascii_lowercase()).collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, letter) in left.bytes().enumerate() {
        let mut diagonal = index;
        let mut before = index + 1;
        let mut next = vec![before];
        for (&other, &above) in right.iter().zip(row.iter().skip(1)) {
            let changed = diagonal + usize::from(other != letter.to_ascii_lowercase());
            before = changed.min(above + 1).min(before + 1);
            diagonal = above;
            next.push(before);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

impl Kubelet {
    /// The configuration with the user's changes.
    ///
    /// # Errors
    /// A change with which no rootless node works.
    pub fn configuration(&self, patch: &Patch) -> Result<Configuration, PatchError> {
        let mut document = self.own();
        let mut patch = patch.0.clone();
        let left_out = match patch.get("kind") {
            Some(_) => self.leave_out(&mut patch, &document),
            None => Vec::new(),
        };
        merge(&mut document, &patch);
        self.refuse(&document)?;
        Ok(Configuration { document, left_out })
    }

    /// Takes out of a whole configuration what a machine decides. Told is what would have been another value.
    fn leave_out(&self, patch: &mut Value, own: &Value) -> Vec<&'static str> {
        let cgroups = (self.cgroups == Cgroups::Withheld).then_some(OF_CGROUPS).into_iter().flatten();
        let mut left_out = Vec::new();
        for key in OF_A_MACHINE.into_iter().chain(cgroups) {
            let path = format!("/{}", key.replace('.', "/"));
            let (above, name) = path.rsplit_once('/').unwrap_or_default();
            let Some(Value::Object(fields)) = patch.pointer_mut(above) else { continue };
            let Some(value) = fields.remove(name) else { continue };
            if value != "" && own.pointer(&path) != Some(&value) {
                left_out.push(key);
            }
        }
        left_out
    }

    fn own(&self) -> Value {
        let mut document = json!({
            "apiVersion": API_VERSION,
            "kind": KIND,
            "cgroupDriver": "cgroupfs",
            "containerRuntimeEndpoint": format!("unix://{}", self.runtime),
            // Nobody but root can turn swap off.
            "failSwapOn": false,
            "protectKernelDefaults": false,
            "readOnlyPort": 0,
            "resolvConf": "/etc/resolv.conf",
            "volumePluginDir": layout::KUBELET_VOLUME_PLUGINS,
            // The disk is the user's own: pods and images are not thrown away because of what else is on it.
            "evictionHard": {
                "imagefs.available": "3%", "memory.available": "100Mi", "nodefs.available": "3%", "nodefs.inodesFree": "3%",
            },
            "imageGCHighThresholdPercent": 97,
            "imageGCLowThresholdPercent": 95,
        });
        if self.version < Version::new(1, 37, 0) {
            document["featureGates"] = json!({ "KubeletInUserNamespace": true });
        }
        document["cgroupsPerQOS"] = json!(self.cgroups != Cgroups::Withheld);
        match self.cgroups {
            Cgroups::Delegated => document["enforceNodeAllocatable"] = json!(["pods"]),
            Cgroups::DelegatedWithoutCpu => {
                document["enforceNodeAllocatable"] = json!(["pods"]);
                document["cpuCFSQuota"] = json!(false);
            }
            Cgroups::Withheld => {
                document["enforceNodeAllocatable"] = json!([]);
                // Its figures come from cgroups.
                document["localStorageCapacityIsolation"] = json!(false);
                // Where the host has version 1 only; it is not used either.
                if self.version >= Version::new(1, 31, 0) {
                    document["failCgroupV1"] = json!(false);
                }
            }
        }
        let anonymous = json!({ "enabled": false });
        match &self.cluster {
            // Nobody can be asked who a client is: nobody is let in.
            Cluster::None => {
                document["authentication"] =
                    json!({ "anonymous": anonymous, "webhook": { "enabled": false } });
                document["authorization"] = json!({ "mode": "AlwaysAllow" });
                document["enableControllerAttachDetach"] = json!(false);
            }
            Cluster::Joined(membership) | Cluster::Bootstrap(membership) => {
                document["authentication"] =
                    json!({ "anonymous": anonymous, "webhook": { "enabled": true } });
                if let Some(authority) = &membership.client_authority {
                    document["authentication"]["x509"] = json!({ "clientCAFile": authority });
                }
                document["authorization"] = json!({ "mode": "Webhook" });
                // With this, kubelet uses a token for nothing but to ask for a certificate.
                let rotates = matches!(self.cluster, Cluster::Bootstrap(_))
                    || membership.identity == Identity::Certificate;
                document["rotateCertificates"] = json!(rotates);
                document["clusterDomain"] = json!("cluster.local");
            }
        }
        if let Some(directory) = &self.static_pods {
            document["staticPodPath"] = json!(directory);
        }
        document
    }

    /// Refuses what cannot work.
    fn refuse(&self, document: &Value) -> Result<(), PatchError> {
        let must_be = |key: &'static str, wanted: &Value, reason| {
            // A key that is away has kubelet's default, which is not ours.
            let value = document.get(key).unwrap_or(&Value::Null);
            match value == wanted {
                true => Ok(()),
                false => Err(PatchError::Refused { key, value: value.to_string(), reason }),
            }
        };
        let own = self.own();
        must_be("apiVersion", &own["apiVersion"], "this is the only version there is")?;
        must_be("kind", &own["kind"], "the file is for kubelet")?;
        must_be("cgroupDriver", &own["cgroupDriver"], "the other driver asks the system's service manager")?;
        must_be(
            "containerRuntimeEndpoint",
            &own["containerRuntimeEndpoint"],
            "--cri says which runtime it is",
        )?;
        must_be(
            "protectKernelDefaults",
            &own["protectKernelDefaults"],
            "only root can change the kernel's settings",
        )?;
        if self.static_pods.is_some() {
            must_be("staticPodPath", &own["staticPodPath"], "--static-pods says where they are")?;
        }
        if self.cgroups == Cgroups::Withheld {
            let reason = "no cgroup is delegated to this node, so it cannot enforce limits";
            must_be("cgroupsPerQOS", &own["cgroupsPerQOS"], reason)?;
            must_be("enforceNodeAllocatable", &own["enforceNodeAllocatable"], reason)?;
        }
        let gate = document.pointer("/featureGates/KubeletInUserNamespace").and_then(Value::as_bool);
        match gate {
            None if self.version >= Version::new(1, 37, 0) => Ok(()),
            Some(true) => Ok(()),
            gate => Err(PatchError::Refused {
                key: "featureGates.KubeletInUserNamespace",
                value: gate.map_or_else(|| "away".to_owned(), |gate| gate.to_string()),
                reason: "without it kubelet fails where only root may write",
            }),
        }
    }

    /// kubelet.
    pub fn unit(&self, configuration: &Configuration) -> Unit {
        let mut argv = vec![
            self.program.display().to_string(),
            format!("--config={}", layout::KUBELET_CONFIG),
            format!("--hostname-override={}", self.node_name),
            format!("--root-dir={}", layout::KUBELET_ROOT),
            format!("--cert-dir={}", layout::KUBELET_CERTIFICATES),
        ];
        match &self.cluster {
            Cluster::None => {}
            Cluster::Joined(Membership { kubeconfig, .. }) => {
                argv.push(format!("--kubeconfig={}", kubeconfig.display()));
            }
            Cluster::Bootstrap(Membership { kubeconfig, .. }) => {
                argv.push(format!("--bootstrap-kubeconfig={}", kubeconfig.display()));
                argv.push(format!("--kubeconfig={}", layout::KUBELET_KUBECONFIG));
            }
        }
        let addresses = self.cluster.membership().map_or(&[][..], |membership| &membership.addresses);
        if !addresses.is_empty() {
            let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
            argv.push(format!("--node-ip={}", addresses.join(",")));
        }
        argv.extend_from_slice(&self.arguments);
        let ready = match configuration.healthz() {
            Some(address) => Readiness::Http { address, path: "/healthz".to_owned() },
            None => Readiness::Notify,
        };
        Unit {
            name: NAME.to_owned(),
            argv,
            env: Vec::new(),
            after: self.after.clone(),
            ready,
            // A bootstrap waits for its certificate to be approved.
            start_timeout: Duration::from_secs(300),
            stop_timeout: Duration::from_secs(20),
            restart: Restart::Always,
        }
    }
}

/// A KubeletConfiguration that works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    document: Value,
    left_out: Vec<&'static str>,
}

impl Configuration {
    /// As the file that kubelet reads.
    pub fn yaml(&self) -> String {
        // JSON is YAML, too; that the emitter refuses a document of strings and numbers is not to be expected.
        yaml_serde::to_string(&self.document).unwrap_or_else(|_| self.document.to_string())
    }

    /// Keys of the user's that were not taken: a machine decides them, and this one does otherwise.
    pub fn left_out(&self) -> &[&'static str] {
        &self.left_out
    }

    /// Where it tells of its health, if it does.
    pub fn healthz(&self) -> Option<SocketAddr> {
        let port = self.number("healthzPort", 10248)?;
        let address = self.document.get("healthzBindAddress").and_then(Value::as_str);
        let address = address.and_then(|text| text.parse::<IpAddr>().ok());
        let address = address.filter(|address| !address.is_unspecified());
        Some(SocketAddr::new(address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), port))
    }

    /// Where it serves the API server, if it does.
    pub fn port(&self) -> Option<u16> {
        let serves = self.document.get("enableServer").and_then(Value::as_bool).unwrap_or(true);
        serves.then(|| self.number("port", 10250))?
    }

    /// Whether it makes its node known to the API server.
    pub fn registers(&self) -> bool {
        self.document.get("registerNode").and_then(Value::as_bool).unwrap_or(true)
    }

    /// Whether it asks the cluster for the certificate that it serves with.
    pub fn asks_for_serving(&self) -> bool {
        self.document.get("serverTLSBootstrap").and_then(Value::as_bool).unwrap_or(false)
    }

    /// A port; 0 is none.
    fn number(&self, key: &str, default: u16) -> Option<u16> {
        let number = self.document.get(key).and_then(Value::as_u64);
        let port = number.map_or(Some(default), |number| u16::try_from(number).ok());
        port.filter(|&port| port != 0)
    }
}

/// RFC 7386 section 2.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        match value {
            Value::Null => drop(target.remove(key)),
            value => merge(target.entry(key.clone()).or_insert(Value::Null), value),
        }
    }
}

/// Keys that are about the machine that kubelet runs on, by dots: how it is set up, and where its files are.
const OF_A_MACHINE: [&str; 17] = [
    "authentication.x509.clientCAFile",
    "cgroupDriver",
    "cgroupRoot",
    "containerRuntimeEndpoint",
    "failSwapOn",
    "imageServiceEndpoint",
    "kubeReservedCgroup",
    "kubeletCgroups",
    "podLogsDir",
    "protectKernelDefaults",
    "resolvConf",
    "staticPodPath",
    "systemCgroups",
    "systemReservedCgroup",
    "tlsCertFile",
    "tlsPrivateKeyFile",
    "volumePluginDir",
];
/// The same where no cgroup is delegated.
const OF_CGROUPS: [&str; 2] = ["cgroupsPerQOS", "enforceNodeAllocatable"];

/// The unit's name.
pub const NAME: &str = "kubelet";
const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
const KIND: &str = "KubeletConfiguration";

#[cfg(test)]
mod tests {
    use super::*;

    fn kubelet(version: &str) -> Kubelet {
        Kubelet {
            program: "/b/kubelet".into(),
            version: Version::parse(version).unwrap(),
            node_name: "one".to_owned(),
            runtime: layout::CONTAINERD_SOCKET,
            cgroups: Cgroups::Withheld,
            cluster: Cluster::None,
            static_pods: Some("/srv/pods".into()),
            arguments: Vec::new(),
            after: vec!["containerd".to_owned()],
        }
    }

    fn membership(identity: Identity) -> Membership {
        let addresses = vec![Ipv4Addr::new(192, 0, 2, 7).into()];
        let client_authority = Some("/ca.crt".into());
        Membership { kubeconfig: "/b.conf".into(), identity, client_authority, addresses }
    }

    fn patched(kubelet: &Kubelet, text: &str) -> Result<String, String> {
        let patch = Patch::parse(text, kubelet.version).map_err(|error| error.to_string())?;
        kubelet.configuration(&patch).map(|document| document.yaml()).map_err(|error| error.to_string())
    }

    #[test]
    fn standalone_without_delegation() {
        assert_eq!(
            patched(&kubelet("v1.36.4"), "").unwrap(),
            include_str!("snapshots/kubelet-standalone.yaml")
        );
    }

    #[test]
    fn joined_with_delegation() {
        let cluster = Cluster::Bootstrap(membership(Identity::Other));
        let kubelet =
            Kubelet { cluster, cgroups: Cgroups::Delegated, static_pods: None, ..kubelet("v1.37.0") };
        let document = kubelet.configuration(&Patch::default()).unwrap();
        assert_eq!(document.yaml(), include_str!("snapshots/kubelet-joined.yaml"));
        assert_eq!(
            kubelet.unit(&document).argv,
            [
                "/b/kubelet",
                "--config=/etc/kubernetes/kubelet.yaml",
                "--hostname-override=one",
                "--root-dir=/var/lib/kubelet",
                "--cert-dir=/var/lib/kubelet/pki",
                "--bootstrap-kubeconfig=/b.conf",
                "--kubeconfig=/var/lib/kubelet/kubeconfig",
                "--node-ip=192.0.2.7",
            ]
        );
    }

    #[test]
    fn a_token_is_not_taken_for_a_certificate() {
        let rotates = |identity| {
            let cluster = Cluster::Joined(membership(identity));
            patched(&Kubelet { cluster, ..kubelet("v1.36.4") }, "")
                .unwrap()
                .contains("rotateCertificates: true")
        };
        assert!(rotates(Identity::Certificate));
        assert!(!rotates(Identity::Other));
    }

    #[test]
    fn the_gate_is_named_until_it_is_the_default() {
        assert!(patched(&kubelet("v1.36.9"), "").unwrap().contains("KubeletInUserNamespace: true"));
        assert!(!patched(&kubelet("v1.37.0"), "").unwrap().contains("featureGates"));
    }

    #[test]
    fn cgroup_v1_is_allowed_where_it_would_be_refused() {
        assert!(patched(&kubelet("v1.35.0"), "").unwrap().contains("failCgroupV1: false"));
        assert!(!patched(&kubelet("v1.30.0"), "").unwrap().contains("failCgroupV1"));
    }

    #[test]
    fn without_cpu_there_is_no_quota() {
        let kubelet = Kubelet { cgroups: Cgroups::DelegatedWithoutCpu, ..kubelet("v1.36.4") };
        let yaml = patched(&kubelet, "").unwrap();
        assert!(yaml.contains("cpuCFSQuota: false\n") && yaml.contains("cgroupsPerQOS: true\n"), "{yaml}");
    }

    #[test]
    fn changes_are_merged() {
        let kubelet = kubelet("v1.36.4");
        let text = "# mine\nmaxPods: 20\nevictionHard: {nodefs.available: 1%, imagefs.available: null}\n\
                    featureGates: {Some: false}\nauthentication: {anonymous: {enabled: true}}\n";
        let yaml = patched(&kubelet, text).unwrap();
        assert!(yaml.contains("maxPods: 20\n"), "{yaml}");
        assert!(yaml.contains("  memory.available: 100Mi\n  nodefs.available: 1%\n"), "{yaml}");
        assert!(!yaml.contains("imagefs.available"), "{yaml}");
        assert!(yaml.contains("featureGates:\n  KubeletInUserNamespace: true\n  Some: false\n"), "{yaml}");
        assert!(yaml.contains("  anonymous:\n    enabled: true\n  webhook:\n    enabled: false\n"), "{yaml}");
        assert_eq!(patched(&kubelet, r#"{"maxPods": 20}"#), patched(&kubelet, "maxPods: 20"));
    }

    #[test]
    fn what_kubeadm_keeps_for_all_nodes_is_taken_as_far_as_it_concerns_them() {
        let cluster = Cluster::Bootstrap(membership(Identity::Other));
        let kubelet = Kubelet { cluster, ..kubelet("v1.36.4") };
        let patch = Patch::parse(include_str!("snapshots/kubelet-kubeadm.yaml"), kubelet.version).unwrap();
        let configuration = kubelet.configuration(&patch).unwrap();
        assert_eq!(
            configuration.left_out(),
            [
                "authentication.x509.clientCAFile",
                "cgroupDriver",
                "resolvConf",
                "staticPodPath",
                "cgroupsPerQOS"
            ]
        );
        let yaml = configuration.yaml();
        let own = ["cgroupDriver: cgroupfs", "clientCAFile: /ca.crt", "staticPodPath: /srv/pods"];
        for line in own.into_iter().chain(["clusterDNS:\n- 10.96.0.10", "serverTLSBootstrap: true"]) {
            assert!(yaml.contains(line), "{line}: {yaml}");
        }
        let told = patched(&kubelet, "cgroupsPerQOS: true").unwrap_err();
        assert!(told.starts_with("key \"cgroupsPerQOS\" cannot be true"), "who wishes is told: {told}");
    }

    #[test]
    fn faults_name_the_key() {
        let kubelet = kubelet("v1.36.4");
        for (text, told) in [
            (
                "evictonHard: {}",
                "key \"evictonHard\" is not known to kubelet 1.36.4; did you mean \"evictionHard\"?",
            ),
            (
                "authentication: {x509: {clientCaFile: /a}}",
                "key \"authentication.x509.clientCaFile\" is not known to kubelet 1.36.4; \
                 did you mean \"clientCAFile\"?",
            ),
            ("qqqqqq: 1", "key \"qqqqqq\" is not known to kubelet 1.36.4"),
            ("maxPods: many", "key \"maxPods\" has text, and takes a whole number"),
            ("evictionHard: [a]", "key \"evictionHard\" has a list, and takes keys with text"),
            ("syncFrequency: 5", "key \"syncFrequency\" has a number, and takes text such as 1m30s"),
            (
                "cgroupDriver: systemd",
                "key \"cgroupDriver\" cannot be \"systemd\": the other driver asks the system's service manager",
            ),
            (
                "cgroupDriver: null",
                "key \"cgroupDriver\" cannot be null: the other driver asks the system's service manager",
            ),
            (
                "cgroupsPerQOS: true",
                "key \"cgroupsPerQOS\" cannot be true: no cgroup is delegated to this node, so it cannot enforce limits",
            ),
            (
                "featureGates: {KubeletInUserNamespace: false}",
                "key \"featureGates.KubeletInUserNamespace\" cannot be false: without it kubelet fails where only root may write",
            ),
            (
                "staticPodPath: /else",
                "key \"staticPodPath\" cannot be \"/else\": --static-pods says where they are",
            ),
            ("kind: Pod", "key \"kind\" cannot be \"Pod\": the file is for kubelet"),
            ("- a", "it holds a list, not keys with values"),
        ] {
            assert_eq!(patched(&kubelet, text).unwrap_err(), told, "{text}");
        }
        assert!(patched(&kubelet, "a: [").unwrap_err().starts_with("it is neither YAML nor JSON: "));
    }

    #[test]
    fn newer_kubelets_judge_their_own_keys() {
        assert!(patched(&kubelet("v1.99.0"), "somethingNew: 1").unwrap().contains("somethingNew: 1\n"));
    }

    #[test]
    fn its_ports_follow_the_configuration() {
        let kubelet = kubelet("v1.36.4");
        let of = |text: &str| kubelet.configuration(&Patch::parse(text, kubelet.version).unwrap()).unwrap();
        assert_eq!(of("").healthz(), Some("127.0.0.1:10248".parse().unwrap()));
        assert_eq!(of("").port(), Some(10250));
        let other = of("{healthzPort: 1, healthzBindAddress: '::1', port: 2}");
        assert_eq!((other.healthz(), other.port()), (Some("[::1]:1".parse().unwrap()), Some(2)));
        let none = of("{healthzPort: 0, enableServer: false}");
        assert_eq!((none.healthz(), none.port()), (None, None));
        assert!(of("serverTLSBootstrap: true").asks_for_serving() && !of("").asks_for_serving());
        assert_eq!(kubelet.unit(&none).ready, Readiness::Notify);
    }

    #[test]
    fn keys_are_in_order_and_once() {
        fn sorted(fields: &[(&str, Kind)]) {
            assert!(
                fields.is_sorted_by(|left, right| left.0.to_lowercase() < right.0.to_lowercase()),
                "{fields:?}"
            );
            for (_, kind) in fields {
                if let Kind::Table(fields) = kind {
                    sorted(fields);
                }
            }
        }
        sorted(FIELDS);
    }
}
