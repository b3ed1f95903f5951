//! The command line of `node`, and its file.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, ValueEnum};
use netstack::config::Ipv4Net;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use toml::Value;

use super::install::NodeCommand;
use crate::cli::{Cli, Command, RunArgs};

/// Options of `node`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
// What comes after -- is the kubelet's, and may be nothing.
#[command(mut_arg("cmd", |arg| arg.required(false).value_name("KUBELET ARGUMENT").help("More arguments for kubelet, after --")))]
pub struct NodeArgs {
    /// What to do with it instead of running it.
    #[command(subcommand)]
    pub command: Option<NodeCommand>,

    /// Read options from this TOML file too; what the command line says counts more
    ///
    /// Keys are the names of options without the dashes before them. An option that may be repeated takes a list too, one
    /// without a value takes true.
    #[arg(long, value_name = "FILE", help_heading = NODE)]
    pub config: Option<PathBuf>,

    /// The container runtime
    #[arg(long, value_name = "RUNTIME", value_enum, default_value_t = Cri::Containerd, help_heading = NODE)]
    pub cri: Cri,

    /// How pods are connected
    #[arg(long, value_name = "NETWORK", value_enum, default_value_t = Cni::Bridge, help_heading = NODE)]
    pub cni: Cni,

    /// The pods' network: this node's with bridge, all nodes' with flannel, where the default is 10.244.0.0/16
    #[arg(
        long,
        value_name = "NET",
        default_value = "10.244.0.0/24",
        default_value_if("cni", "flannel", "10.244.0.0/16"),
        help_heading = NODE
    )]
    pub pod_cidr: Ipv4Net,

    /// Changes to the KubeletConfiguration, YAML or JSON: what it names replaces ours, null takes ours away
    #[arg(long, value_name = "FILE", help_heading = NODE)]
    pub kubelet_config: Option<PathBuf>,

    /// Join the cluster that this kubeconfig names, with its credentials [default: no cluster, static pods only]
    #[arg(long, value_name = "FILE", conflicts_with = "bootstrap_kubeconfig", help_heading = NODE)]
    pub kubeconfig: Option<PathBuf>,

    /// Join the cluster that this kubeconfig names, after asking it for a certificate with its token
    #[arg(long, value_name = "FILE", help_heading = NODE)]
    pub bootstrap_kubeconfig: Option<PathBuf>,

    /// Run the pods whose manifests are in this directory
    #[arg(long, value_name = "DIR", help_heading = NODE)]
    pub static_pods: Option<PathBuf>,

    /// Import images from this archive, or from all in this directory, before pods start; repeat for more
    ///
    /// CRI-O takes OCI archives that name their images; skopeo copies them.
    #[arg(long, value_name = "FILE|DIR", help_heading = NODE)]
    pub image_archive: Vec<PathBuf>,

    /// Look for programs here before PATH; repeat for more
    #[arg(long, value_name = "DIR", help_heading = NODE)]
    pub bin_dir: Vec<PathBuf>,

    /// Look for CNI plugins here first; repeat for more [default: /opt/cni/bin, /usr/lib/cni, /usr/libexec/cni]
    #[arg(long, value_name = "DIR", help_heading = NODE)]
    pub cni_bin_dir: Vec<PathBuf>,

    /// The image of the container that holds a pod's namespaces
    #[arg(long, value_name = "IMAGE", default_value = PAUSE_IMAGE, help_heading = NODE)]
    pub pause_image: String,

    /// Name of the node in its cluster [default: the host's name]
    #[arg(long, value_name = "NAME", value_parser = parse_node_name, help_heading = NODE)]
    pub node_name: Option<String>,

    /// Where flannel keeps the nodes' subnets: kube needs --kubeconfig
    #[arg(long, value_name = "STORE", value_enum, default_value_t = FlannelBackend::Kube, help_heading = NODE)]
    pub flannel_backend: FlannelBackend,

    /// etcd's URLs, for --flannel-backend=etcd; repeat for more
    #[arg(long, value_name = "URL", help_heading = NODE)]
    pub etcd_endpoint: Vec<String>,

    /// Who signed etcd's certificate
    #[arg(long, value_name = "FILE", requires_all = ["etcd_cert", "etcd_key"], help_heading = NODE)]
    pub etcd_ca: Option<PathBuf>,

    /// The certificate that etcd knows us by
    #[arg(long, value_name = "FILE", requires = "etcd_ca", help_heading = NODE)]
    pub etcd_cert: Option<PathBuf>,

    /// Its key
    #[arg(long, value_name = "FILE", requires = "etcd_ca", help_heading = NODE)]
    pub etcd_key: Option<PathBuf>,

    /// Where others reach this node: one address of the host, or one of each family, the more important first [default: that of
    /// the host's default route; of IPv6's if the API server has an IPv6 address or there is no other]
    #[arg(long, value_name = "IP[,IP]", help_heading = NODE)]
    pub public_ip: Option<PublicIps>,

    /// Where hostPorts of pods appear on the host
    #[arg(long, value_name = "WHERE", value_enum, default_value_t = HostPorts::Loopback, help_heading = NODE)]
    pub host_ports: HostPorts,

    /// Added to hostPorts that an ordinary user may not listen on (net.ipv4.ip_unprivileged_port_start)
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = NODE)]
    pub low_port_offset: u16,

    /// Seconds that a component may take until it is ready [default: 5 to 10 minutes, for slow machines]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400), help_heading = NODE)]
    pub start_timeout: Option<u32>,

    /// Options of the launch.
    #[command(flatten)]
    pub run: RunArgs,
}

const NODE: &str = "Node";
/// What kubeadm 1.36 uses.
const PAUSE_IMAGE: &str = "registry.k8s.io/pause:3.10.1";

/// `--cri`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Cri {
    /// containerd 1.7 or 2
    Containerd,
    /// CRI-O
    Crio,
}

/// `--cni`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Cni {
    /// One node: a bridge
    Bridge,
    /// Several nodes: flanneld with VXLAN
    Flannel,
}

/// `--flannel-backend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FlannelBackend {
    /// With the API server
    Kube,
    /// In etcd
    Etcd,
}

/// `--host-ports`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum HostPorts {
    /// Nowhere
    Off,
    /// At 127.0.0.1
    Loopback,
    /// At every address of the host, or at the one that the pod names
    All,
}

/// `--public-ip`: addresses of different families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicIps {
    /// What others use first.
    pub first: IpAddr,
    /// Of the other family.
    pub second: Option<IpAddr>,
}

impl FromStr for PublicIps {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_link_local = |address: IpAddr| match address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        // What kubelet does not take for an address of its node.
        let leads_nowhere = |address: IpAddr| {
            address.is_unspecified()
                || address.is_loopback()
                || address.is_multicast()
                || is_link_local(address)
        };
        let parse = |text: &str| match text.trim().parse::<IpAddr>() {
            Ok(address) if leads_nowhere(address) => Err("others reach nobody there"),
            Ok(address) => Ok(address),
            Err(_) => Err("an IPv4 or IPv6 address is wanted, or one of each with a comma between"),
        };
        let (first, second) = match text.split_once(',') {
            Some((first, second)) => (parse(first)?, Some(parse(second)?)),
            None => (parse(text)?, None),
        };
        match second {
            Some(second) if second.is_ipv4() == first.is_ipv4() => {
                Err("two addresses are one of each family")
            }
            second => Ok(PublicIps { first, second }),
        }
    }
}

/// What is wrong with a file of options.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigFileError {
    /// open(2) or read(2).
    #[error("cannot read --config {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not TOML.
    #[error("--config {path:?} is not TOML")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value that no option takes.
    #[error(
        "--config {path:?}: key {key:?} has {found}; an option takes text, a number, true, or a list of text and numbers"
    )]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What it has.
        found: &'static str,
    },
    /// A key that names another file, or the kubelet's arguments.
    #[error("--config {path:?}: key {key:?} is for the command line only")]
    Key {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// The options are wrong.
    #[error("--config {path:?}: {text}")]
    Options {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        text: String,
    },
}

impl NodeArgs {
    /// These options, with those of their file before them.
    ///
    /// `words` are the words that these options were parsed from, after `node`.
    ///
    /// # Errors
    /// The file cannot be read, or says what no option takes.
    pub fn with_file(self, words: &[OsString]) -> Result<Self, ConfigFileError> {
        let Some(path) = self.config.clone() else { return Ok(self) };
        let text = fs::read_to_string(&path)
            .map_err(|source| ConfigFileError::Read { path: path.clone(), source })?;
        let first = options(&text, &path)?;
        parse(first.iter().chain(words))
            .map_err(|error| ConfigFileError::Options { path, text: plain(&error) })
    }
}

/// Parses the words after `node`. An option that is given twice counts the second time.
fn parse<'a>(words: impl Iterator<Item = &'a OsString>) -> Result<NodeArgs, clap::Error> {
    use clap::{CommandFactory, FromArgMatches};

    let command = Cli::command().mut_subcommand("node", |node| node.args_override_self(true));
    let all = ["rootless-launch", "node"].map(OsString::from).into_iter().chain(words.cloned());
    let cli = Cli::from_arg_matches(&command.try_get_matches_from(all)?)?;
    match cli.command {
        Some(Command::Node(node)) => Ok(*node),
        _ => Err(clap::Error::new(clap::error::ErrorKind::InvalidSubcommand)),
    }
}

/// The first paragraph of what the parser says.
fn plain(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    text.split("\n\n").next().unwrap_or(text).trim().replace('\n', " ")
}

/// The options of a file, as words of a command line.
fn options(text: &str, path: &Path) -> Result<Vec<OsString>, ConfigFileError> {
    let table: toml::Table = toml::from_str(text)
        .map_err(|source| ConfigFileError::Syntax { path: path.to_owned(), source: Box::new(source) })?;
    let mut words = Vec::new();
    for (key, value) in table {
        if key == "config" || key == "cmd" {
            return Err(ConfigFileError::Key { path: path.to_owned(), key });
        }
        let values = match value {
            Value::Array(values) => values,
            value => vec![value],
        };
        for value in values {
            let word = match value {
                Value::String(text) => format!("--{key}={text}"),
                Value::Integer(number) => format!("--{key}={number}"),
                Value::Boolean(true) => format!("--{key}"),
                Value::Boolean(false) => continue,
                other => {
                    let found = match other {
                        Value::Table(_) => "a table",
                        Value::Array(_) => "a list in a list",
                        Value::Float(_) => "a fraction",
                        _ => "a date",
                    };
                    return Err(ConfigFileError::Value { path: path.to_owned(), key, found });
                }
            };
            words.push(word.into());
        }
    }
    Ok(words)
}

/// A name of a node: DNS subdomain of RFC 1123, as Kubernetes wants it.
fn parse_node_name(text: &str) -> Result<String, &'static str> {
    let label = |label: &str| {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty() && label.bytes().all(fits) && !label.starts_with('-') && !label.ends_with('-')
    };
    match text.len() <= 253 && text.split('.').all(label) {
        true => Ok(text.to_owned()),
        false => {
            Err("small letters, digits, - and . are allowed, and - not at the ends of what the dots part")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(words: &[&str]) -> Result<NodeArgs, clap::Error> {
        let words = words.iter().map(OsString::from).collect::<Vec<_>>();
        parse(words.iter())
    }

    fn from_file(text: &str, words: &[&str]) -> Result<NodeArgs, String> {
        let path = std::env::temp_dir().join(format!("node-args-{}-{:p}", std::process::id(), text));
        fs::write(&path, text).unwrap();
        let mut words = words.to_vec();
        let config = format!("--config={}", path.display());
        words.insert(0, &config);
        let args = node(&words).unwrap();
        let words = words.iter().map(OsString::from).collect::<Vec<_>>();
        let result = args.with_file(&words);
        fs::remove_file(&path).unwrap();
        result.map_err(|error| error.to_string().replace(&format!("{path:?}"), "FILE"))
    }

    #[test]
    fn nothing_is_needed() {
        let args = node(&[]).unwrap();
        assert_eq!(
            (args.cri, args.cni, args.host_ports),
            (Cri::Containerd, Cni::Bridge, HostPorts::Loopback)
        );
        assert!(args.run.cmd.is_empty());
        assert_eq!(args.pod_cidr.to_string(), "10.244.0.0/24");
        assert_eq!(node(&["--cni=flannel"]).unwrap().pod_cidr.to_string(), "10.244.0.0/16");
    }

    #[test]
    fn launch_options_and_kubelet_arguments_are_taken() {
        let args = node(&["--cidr=10.9.0.0/24", "--cri", "crio", "-p", "80:80", "--", "--v=4"]).unwrap();
        assert_eq!(args.run.cidr, "10.9.0.0/24".parse().unwrap());
        assert_eq!(args.cri, Cri::Crio);
        assert_eq!(args.run.cmd, ["--v=4"]);
    }

    #[test]
    fn a_node_is_at_an_address_of_each_family() {
        let args = node(&["--public-ip=2001:db8::1,192.0.2.1"]).unwrap();
        let (first, second) = ("2001:db8::1".parse().unwrap(), "192.0.2.1".parse().ok());
        assert_eq!(args.public_ip, Some(PublicIps { first, second }));
    }

    #[test]
    fn faults_are_refused() {
        for words in [
            &["--kubeconfig=a", "--bootstrap-kubeconfig=b"][..],
            &["--node-name=Big"],
            &["--node-name=a..b"],
            &["--etcd-ca=a"],
            &["--pod-cidr=10.244.0.1/24"],
            &["--cri=docker"],
            &["--public-ip=127.0.0.1"],
            &["--public-ip=fe80::1"],
            &["--public-ip=192.0.2.1,192.0.2.2"],
            &["--public-ip=2001:db8::1,"],
            &["kubelet"],
        ] {
            assert!(node(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn the_command_line_counts_more_than_the_file() {
        let file = "cni = \"flannel\"\nlow-port-offset = 10000\nbin-dir = [\"/a\", \"/b\"]\nstats = true\n";
        let args = from_file(file, &["--low-port-offset=20000", "--bin-dir=/c", "--", "--v=4"]).unwrap();
        assert_eq!((args.cni, args.low_port_offset), (Cni::Flannel, 20000));
        assert_eq!(args.bin_dir, ["/a", "/b", "/c"].map(PathBuf::from));
        assert!(args.run.stats);
        assert_eq!(args.run.cmd, ["--v=4"]);
    }

    #[test]
    fn faults_of_the_file_are_named() {
        for (text, told) in [
            ("cni = [", "--config FILE is not TOML"),
            (
                "[cni]\na = 1",
                "--config FILE: key \"cni\" has a table; an option takes text, a number, true, or a list of text and numbers",
            ),
            ("config = \"a\"", "--config FILE: key \"config\" is for the command line only"),
            ("cin = \"bridge\"", "--config FILE: unexpected argument '--cin' found"),
            (
                "cni = \"calico\"",
                "--config FILE: invalid value 'calico' for '--cni <NETWORK>'   [possible values: bridge, flannel]",
            ),
        ] {
            assert_eq!(from_file(text, &[]).unwrap_err(), told, "{text}");
        }
    }
}
