//! CNI: which plugins connect pods, as a list that the CRI runtime reads. Pure.
//!
//! Sources: CNI specification 1.0.0; the plugins' pages at cni.dev and flannel's cni-plugin README.

use netstack::config::Ipv4Net;
use serde_json::{Value, json};

use super::layout;

/// How pods are connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// One node: a bridge, addresses from `subnet`.
    Bridge {
        /// The pods' network.
        subnet: Ipv4Net,
        /// MTU of pods and bridge.
        mtu: u16,
    },
    /// Several nodes: a bridge as flanneld's file says.
    Flannel,
}

impl Network {
    /// The file of the list.
    pub fn path(&self) -> String {
        let name = match self {
            Network::Bridge { .. } => "10-bridge.conflist",
            Network::Flannel => "10-flannel.conflist",
        };
        format!("{}/{name}", layout::CNI_CONFIG_DIRECTORY)
    }

    /// The list, as JSON.
    pub fn conflist(&self) -> String {
        let (version, name, pods) = match self {
            Network::Bridge { subnet, mtu } => ("1.0.0", "pods", bridge(*subnet, *mtu)),
            Network::Flannel => {
                let delegate = json!({ "hairpinMode": true, "isDefaultGateway": true });
                // What flannel's own manifests say, and the most that its older plugins know.
                ("0.3.1", "cbr0", json!({ "type": "flannel", "delegate": delegate }))
            }
        };
        let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
        let list = json!({ "cniVersion": version, "name": name, "plugins": [pods, portmap] });
        format!("{list:#}\n")
    }
}

fn bridge(subnet: Ipv4Net, mtu: u16) -> Value {
    json!({
        "type": "bridge",
        "bridge": "cni0",
        "isDefaultGateway": true,
        "ipMasq": true,
        "hairpinMode": true,
        "mtu": mtu,
        "ipam": { "type": "host-local", "ranges": [[{ "subnet": subnet.to_string() }]] },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_node_has_a_bridge() {
        let network = Network::Bridge { subnet: "10.244.0.0/24".parse().unwrap(), mtu: 1500 };
        assert_eq!(network.path(), "/etc/cni/net.d/10-bridge.conflist");
        assert_eq!(network.conflist(), include_str!("snapshots/bridge.conflist"));
    }

    #[test]
    fn several_nodes_have_flannel() {
        assert_eq!(Network::Flannel.path(), "/etc/cni/net.d/10-flannel.conflist");
        assert_eq!(Network::Flannel.conflist(), include_str!("snapshots/flannel.conflist"));
    }
}
