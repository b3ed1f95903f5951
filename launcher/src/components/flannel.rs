//! flanneld as a process: VXLAN between nodes, its network, command line and environment. Pure.
//!
//! Sources: flannel's Documentation/{configuration,backends}.md and main.go of v0.28.
//!
//! `--public-ip` is given to flanneld only where etcd keeps the subnets, because nobody else tells peers the host's
//! address there. Since v0.27.4 flanneld also makes it the VXLAN device's own address, which the node does not have; the
//! task that watches flannel.1 puts the node's address there. With an API server the annotation
//! `flannel.alpha.coreos.com/public-ip-overwrite` changes what peers see and nothing else.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use netstack::config::Ipv4Net;
use serde_json::json;

use super::layout;
use super::programs::Version;
use crate::supervisor::unit::{Readiness, Restart, Unit};

/// What flanneld is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flannel {
    /// Its file.
    pub program: PathBuf,
    /// Its version, if it knows.
    pub version: Option<Version>,
    /// Name of the node.
    pub node_name: String,
    /// Where subnets are kept.
    pub store: Store,
    /// The network of all pods of all nodes.
    pub network: Ipv4Net,
    /// The node's device towards other nodes.
    pub interface: String,
    /// Units that have to be ready before.
    pub after: Vec<String>,
}

/// Where subnets of nodes are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    /// In the cluster's node objects.
    Kube {
        /// How to reach the API server.
        kubeconfig: PathBuf,
    },
    /// In etcd.
    Etcd {
        /// URLs, comma separated.
        endpoints: String,
        /// Certificates, for https.
        tls: Option<EtcdTls>,
        /// What peers send to.
        public_ip: Ipv4Addr,
    },
}

/// Certificates for etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdTls {
    /// Who signed etcd's certificate.
    pub ca: PathBuf,
    /// Our certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Flannel {
    /// net-conf.json: what the nodes have in common.
    pub fn network(&self) -> String {
        let backend = json!({ "Type": "vxlan", "VNI": VNI, "Port": PORT, "MTU": OUTER_MTU });
        let network = self.network.to_string();
        format!("{:#}\n", json!({ "Network": network, "EnableNFTables": false, "Backend": backend }))
    }

    /// flanneld.
    pub fn unit(&self) -> Unit {
        let mut argv = vec![
            self.program.display().to_string(),
            format!("--iface={}", self.interface),
            "--ip-masq".to_owned(),
            format!("--subnet-file={}", layout::FLANNEL_SUBNET),
            format!("--healthz-ip={}", HEALTHZ.ip()),
            format!("--healthz-port={}", HEALTHZ.port()),
        ];
        match &self.store {
            Store::Kube { kubeconfig } => {
                argv.push("--kube-subnet-mgr".to_owned());
                argv.push(format!("--kubeconfig-file={}", kubeconfig.display()));
                argv.push(format!("--net-config-path={}", layout::FLANNEL_NETWORK));
            }
            Store::Etcd { endpoints, tls, public_ip } => {
                argv.push(format!("--etcd-endpoints={endpoints}"));
                argv.push(format!("--public-ip={public_ip}"));
                if let Some(tls) = tls {
                    argv.push(format!("--etcd-cafile={}", tls.ca.display()));
                    argv.push(format!("--etcd-certfile={}", tls.certificate.display()));
                    argv.push(format!("--etcd-keyfile={}", tls.key.display()));
                }
            }
        }
        let ready = match self.version {
            Some(version) if version >= Version::new(0, 28, 0) => {
                Readiness::Http { address: HEALTHZ, path: "/readyz".to_owned() }
            }
            _ => Readiness::File { path: layout::FLANNEL_SUBNET.into() },
        };
        Unit {
            name: NAME.to_owned(),
            argv,
            env: vec![("NODE_NAME".to_owned(), self.node_name.clone())],
            after: self.after.clone(),
            ready,
            // It waits for the controller manager to give the node its subnet.
            start_timeout: Duration::from_secs(300),
            stop_timeout: Duration::from_secs(10),
            restart: Restart::Always,
        }
    }
}

/// The unit's name.
pub const NAME: &str = "flanneld";
/// flannel's device: "flannel." and the VNI.
pub const DEVICE: &str = "flannel.1";
/// UDP port of VXLAN, one for the cluster.
pub const PORT: u16 = 8472;
const VNI: u32 = 1;
/// Of what carries VXLAN between hosts: pods get 50 less, and nothing is cut into fragments on a link of 1500.
const OUTER_MTU: u16 = 1500;
const HEALTHZ: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 11259);

#[cfg(test)]
mod tests {
    use super::*;

    fn flannel(version: Option<&str>, store: Store) -> Flannel {
        Flannel {
            program: "/b/flanneld".into(),
            version: version.map(|text| Version::parse(text).unwrap()),
            node_name: "one".to_owned(),
            store,
            network: "10.244.0.0/16".parse().unwrap(),
            interface: "tap0".to_owned(),
            after: vec!["kubelet".to_owned()],
        }
    }

    #[test]
    fn nothing_is_cut_into_fragments() {
        let kube = Store::Kube { kubeconfig: "/k".into() };
        assert_eq!(flannel(None, kube).network(), include_str!("snapshots/net-conf.json"));
    }

    #[test]
    fn with_an_api_server_peers_are_told_by_annotation() {
        let kube = Store::Kube { kubeconfig: "/k".into() };
        let unit = flannel(Some("v0.28.9"), kube).unit();
        assert_eq!(
            unit.argv,
            [
                "/b/flanneld",
                "--iface=tap0",
                "--ip-masq",
                "--subnet-file=/run/flannel/subnet.env",
                "--healthz-ip=127.0.0.1",
                "--healthz-port=11259",
                "--kube-subnet-mgr",
                "--kubeconfig-file=/k",
                "--net-config-path=/etc/kube-flannel/net-conf.json",
            ]
        );
        assert_eq!(unit.env, [("NODE_NAME".to_owned(), "one".to_owned())]);
        assert!(matches!(unit.ready, Readiness::Http { path, .. } if path == "/readyz"));
    }

    #[test]
    fn with_etcd_peers_are_told_by_flanneld() {
        let tls = EtcdTls { ca: "/ca".into(), certificate: "/c".into(), key: "/key".into() };
        let endpoints = "https://a:2379,https://b:2379".to_owned();
        let store = Store::Etcd { endpoints, tls: Some(tls), public_ip: Ipv4Addr::new(192, 0, 2, 1) };
        let unit = flannel(None, store).unit();
        assert_eq!(
            unit.argv[6..],
            [
                "--etcd-endpoints=https://a:2379,https://b:2379",
                "--public-ip=192.0.2.1",
                "--etcd-cafile=/ca",
                "--etcd-certfile=/c",
                "--etcd-keyfile=/key",
            ]
        );
        assert_eq!(unit.ready, Readiness::File { path: "/run/flannel/subnet.env".into() });
    }
}
