//! Where things are inside a node. The paths are the programs' own defaults wherever they have one, so that `ctr`,
//! `crictl` and their like need no options there.

/// containerd's configuration.
pub const CONTAINERD_CONFIG: &str = "/etc/containerd/config.toml";
/// containerd's socket.
pub const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
/// containerd's images and containers.
pub const CONTAINERD_ROOT: &str = "/var/lib/containerd";
/// What containerd forgets when the node ends.
pub const CONTAINERD_STATE: &str = "/run/containerd";
/// Hosts files of registries, see hosts.toml of containerd.
pub const CONTAINERD_REGISTRIES: &str = "/etc/containerd/certs.d";

/// Socket of the fuse-overlayfs snapshotter.
pub const FUSE_OVERLAYFS_SOCKET: &str = "/run/containerd-fuse-overlayfs.sock";
/// What the fuse-overlayfs snapshotter keeps: where containerd takes every snapshotter's to be that says nothing of it.
pub const FUSE_OVERLAYFS_ROOT: &str = "/var/lib/containerd/io.containerd.snapshotter.v1.fuse-overlayfs";

/// CRI-O's configuration.
pub const CRIO_CONFIG: &str = "/etc/crio/crio.conf";
/// CRI-O's directory for more of it, which a node leaves empty.
pub const CRIO_CONFIG_DIRECTORY: &str = "/etc/crio/crio.conf.d";
/// CRI-O's socket.
pub const CRIO_SOCKET: &str = "/run/crio/crio.sock";
/// Which images CRI-O trusts.
pub const SIGNATURE_POLICY: &str = "/etc/containers/policy.json";
/// Where CRI-O looks for images without a registry's name.
pub const REGISTRIES: &str = "/etc/containers/registries.conf";

/// CRI-O's images and containers.
pub const CRIO_ROOT: &str = "/var/lib/containers/storage";
/// What CRI-O's storage forgets when the node ends.
pub const CRIO_RUN_ROOT: &str = "/run/containers/storage";

/// Directory of a program that runs crun or runc as a user namespace wants it, and has its name.
pub const OCI_RUNTIME: &str = "/run/rootless-launch/oci-runtime";

/// CNI's configuration.
pub const CNI_CONFIG_DIRECTORY: &str = "/etc/cni/net.d";
/// What CNI's library and host-local remember: about pods of this life of the node only.
pub const CNI_STATE: &str = "/var/lib/cni";
/// The results of CNI's library, one file for each pod and network.
pub const CNI_RESULTS: &str = "/var/lib/cni/results";

/// kubelet's configuration.
pub const KUBELET_CONFIG: &str = "/etc/kubernetes/kubelet.yaml";
/// The authority of the cluster that the node has joined.
pub const CLUSTER_AUTHORITY: &str = "/etc/kubernetes/ca.crt";
/// kubelet's pods.
pub const KUBELET_ROOT: &str = "/var/lib/kubelet";
/// kubelet's certificates.
pub const KUBELET_CERTIFICATES: &str = "/var/lib/kubelet/pki";
/// The one that kubelet serves with, if its cluster has given it one.
pub const KUBELET_SERVING: &str = "kubelet-server-current.pem";
/// The kubeconfig that kubelet writes when it has bootstrapped.
pub const KUBELET_KUBECONFIG: &str = "/var/lib/kubelet/kubeconfig";
/// The kubeconfig that kubelet's certificate came by.
pub const JOINED_BY: &str = "/var/lib/kubelet/joined-by";
/// Flexvolume plugins; kubelet's default is below /usr.
pub const KUBELET_VOLUME_PLUGINS: &str = "/var/lib/kubelet/volumeplugins";

/// flanneld's network.
pub const FLANNEL_NETWORK: &str = "/etc/kube-flannel/net-conf.json";
/// What flanneld tells the CNI plugin.
pub const FLANNEL_SUBNET: &str = "/run/flannel/subnet.env";

/// crictl's configuration.
pub const CRICTL_CONFIG: &str = "/etc/crictl.yaml";
