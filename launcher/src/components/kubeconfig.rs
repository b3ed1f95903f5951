//! What a kubeconfig says of its cluster, as far as a node has to know. Pure.
//!
//! Source: k8s.io/client-go, tools/clientcmd/api/v1/types.go. Paths in it are relative to its directory. kubelet reads the
//! file itself; here is seen beforehand what it would complain of only in its log.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

/// The current context of a kubeconfig.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubeconfig {
    /// URL of the API server.
    pub server: String,
    /// Who signed the API server's certificate; nothing where the system's authorities are to know.
    pub authority: Option<Authority>,
    /// What the API server knows us by.
    pub identity: Identity,
    /// Other files that are needed.
    pub files: Vec<PathBuf>,
}

/// A certificate authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authority {
    /// PEM.
    Text(String),
    /// A file of PEM.
    File(PathBuf),
}

/// How we tell who we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// By a certificate, which kubelet can have renewed.
    Certificate,
    /// By something else, such as a token.
    Other,
}

/// Why it cannot be.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum KubeconfigError {
    /// It is not YAML, or has something else where a kubeconfig has text or lists.
    #[error("it is no kubeconfig: {0}")]
    Syntax(String),
    /// There is no `current-context`.
    #[error("it has no current-context, which says what to use; kubectl config use-context NAME sets it")]
    NoContext,
    /// A name that leads nowhere.
    #[error("it names the {kind} {name:?}, which it does not have")]
    NoSuch {
        /// What is missing.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// No API server, or none that kubelet takes.
    #[error("cluster {cluster:?} has the server {server:?}; it has to be an https:// URL")]
    Server {
        /// Name of the cluster.
        cluster: String,
        /// What it has.
        server: String,
    },
    /// An address that means another host inside a node.
    #[error(
        "the server {0} is the loopback of whoever reads this, and a node has its own; name the API server by an address \
         of its host, which its certificate has to list"
    )]
    Loopback(String),
    /// `certificate-authority-data` is not what it should be.
    #[error("certificate-authority-data of cluster {0:?} is not PEM in base64")]
    Authority(String),
    /// The API server would not know who we are.
    #[error("user {0:?} has neither a certificate with its key, nor a token, nor a program that gets one")]
    Nobody(String),
}

impl Kubeconfig {
    /// Reads YAML or JSON; `directory` is where the file is.
    ///
    /// # Errors
    /// kubelet cannot join a cluster by it.
    pub fn parse(text: &str, directory: &Path) -> Result<Self, KubeconfigError> {
        let document: Document =
            yaml_serde::from_str(text).map_err(|error| KubeconfigError::Syntax(error.to_string()))?;
        let context = document.current_context.filter(|name| !name.is_empty());
        let context = context.ok_or(KubeconfigError::NoContext)?;
        let Context { cluster: cluster_name, user: user_name } =
            find("context", &context, document.contexts.unwrap_or_default())?;
        let cluster = find("cluster", &cluster_name, document.clusters.unwrap_or_default())?;
        let user = find("user", &user_name, document.users.unwrap_or_default())?;
        let server = checked(cluster.server.unwrap_or_default(), &cluster_name)?;
        let data = |data: Option<String>| data.filter(|data| !data.is_empty());
        let path = |path: Option<PathBuf>| {
            path.filter(|path| !path.as_os_str().is_empty()).map(|path| directory.join(path))
        };
        // Data counts more than a file of the same.
        let authority = match (data(cluster.certificate_authority_data), path(cluster.certificate_authority))
        {
            (Some(data), _) => Some(Authority::Text(
                decoded(&data).ok_or_else(|| KubeconfigError::Authority(cluster_name.clone()))?,
            )),
            (None, file) => file.map(Authority::File),
        };
        let mut files: Vec<PathBuf> = Vec::new();
        let mut has = |data: Option<String>, file: Option<PathBuf>| {
            let is_there = data.is_some() || file.is_some();
            files.extend(file.filter(|_| data.is_none()));
            is_there
        };
        let certificate = has(data(user.client_certificate_data), path(user.client_certificate));
        let key = has(data(user.client_key_data), path(user.client_key));
        let token = has(data(user.token), path(user.token_file));
        let identity = match (certificate && key, token || user.exec.is_some()) {
            (true, _) => Identity::Certificate,
            (false, true) => Identity::Other,
            (false, false) => return Err(KubeconfigError::Nobody(user_name)),
        };
        files.extend(authority.iter().filter_map(|authority| match authority {
            Authority::File(path) => Some(path.clone()),
            Authority::Text(_) => None,
        }));
        Ok(Kubeconfig { server, authority, identity, files })
    }

    /// The API server's address; nothing where a name stands for it.
    pub fn server_address(&self) -> Option<IpAddr> {
        host_of(self.server.strip_prefix("https://")?).parse().ok()
    }
}

/// The one of this name.
fn find<T>(kind: &'static str, name: &str, all: Vec<Named<T>>) -> Result<T, KubeconfigError> {
    let found = all.into_iter().find(|entry| entry.name == name);
    found.map(|entry| entry.value).ok_or_else(|| KubeconfigError::NoSuch { kind, name: name.to_owned() })
}

/// A server that kubelet finds from inside a node.
fn checked(server: String, cluster: &str) -> Result<String, KubeconfigError> {
    let Some(rest) = server.strip_prefix("https://").filter(|rest| !rest.is_empty()) else {
        return Err(KubeconfigError::Server { cluster: cluster.to_owned(), server });
    };
    let host = host_of(rest);
    let is_loopback = host.parse().map_or(host == "localhost", |address: IpAddr| address.is_loopback());
    if is_loopback { Err(KubeconfigError::Loopback(server)) } else { Ok(server) }
}

/// The host in a URL after its scheme, without the brackets of an IPv6 address.
fn host_of(rest: &str) -> &str {
    let authority = rest.split('/').next().unwrap_or(rest);
    match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, _)) => host,
        None => authority.split(':').next().unwrap_or(authority),
    }
}

/// PEM that was put into base64 (RFC 4648 section 4) once more.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0);
    for letter in text.bytes().filter(|byte| !byte.is_ascii_whitespace() && *byte != b'=') {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            // The low eight of what is left.
            bytes.push((bits >> count) as u8);
        }
    }
    String::from_utf8(bytes).ok().filter(|text| text.contains("-----BEGIN CERTIFICATE-----"))
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", expecting = "a mapping with clusters and users")]
struct Document {
    current_context: Option<String>,
    clusters: Option<Vec<Named<Cluster>>>,
    contexts: Option<Vec<Named<Context>>>,
    users: Option<Vec<Named<User>>>,
}

#[derive(Deserialize)]
struct Named<T> {
    name: String,
    #[serde(alias = "cluster", alias = "context", alias = "user")]
    value: T,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: Option<String>,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    exec: Option<serde_json::Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(server: &str, cluster: &str, user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
             contexts: [{{name: here, context: {{cluster: lab, user: node}}}}]\n\
             clusters: [{{name: lab, cluster: {{server: '{server}', {cluster}}}}}]\n\
             users: [{{name: node, user: {{{user}}}}}]\n"
        )
    }

    fn parse(text: &str) -> Result<Kubeconfig, String> {
        Kubeconfig::parse(text, Path::new("/home/ann")).map_err(|error| error.to_string())
    }

    #[test]
    fn what_kubeadm_writes_is_read() {
        // base64 of "-----BEGIN CERTIFICATE-----\nYQ==\n"
        let ca = "certificate-authority-data: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCllRPT0K";
        let user = "client-certificate-data: YQ==, client-key-data: YQ==";
        let config = parse(&document("https://192.0.2.1:6443", ca, user)).unwrap();
        assert_eq!(config.server, "https://192.0.2.1:6443");
        assert_eq!(config.authority, Some(Authority::Text("-----BEGIN CERTIFICATE-----\nYQ==\n".to_owned())));
        assert_eq!((config.identity, config.files), (Identity::Certificate, Vec::new()));
    }

    #[test]
    fn files_are_relative_to_its_directory() {
        let user = "client-certificate: n.pem, client-key: /k/n.pem, tokenFile: ''";
        let config =
            parse(&document("https://a.example", "certificate-authority: pki/ca.crt", user)).unwrap();
        assert_eq!(config.authority, Some(Authority::File("/home/ann/pki/ca.crt".into())));
        assert_eq!(config.files, ["/home/ann/n.pem", "/k/n.pem", "/home/ann/pki/ca.crt"].map(PathBuf::from));
        let config = parse(&document("https://a.example", "", "token: abc")).unwrap();
        assert_eq!((config.authority, config.identity), (None, Identity::Other));
    }

    #[test]
    fn the_server_may_have_an_address() {
        let address = |server: &str| parse(&document(server, "", "token: a")).unwrap().server_address();
        assert_eq!(address("https://[2001:db8::1]:6443"), "2001:db8::1".parse().ok());
        assert_eq!(address("https://192.0.2.1/a"), "192.0.2.1".parse().ok());
        assert_eq!(address("https://a.example:6443"), None);
    }

    #[test]
    fn what_cannot_join_is_told() {
        let refused =
            |server: &str, cluster: &str, user: &str| parse(&document(server, cluster, user)).unwrap_err();
        for server in ["https://127.0.0.1:6443", "https://localhost", "https://[::1]:6443/a"] {
            let told = refused(server, "", "token: a");
            assert!(told.starts_with(&format!("the server {server} is the loopback of")), "{told}");
        }
        for server in ["", "http://a.example", "192.0.2.1:6443"] {
            let expected = format!("cluster \"lab\" has the server {server:?}; it has to be an https:// URL");
            assert_eq!(refused(server, "", "token: a"), expected);
        }
        assert_eq!(
            refused("https://a", "certificate-authority-data: YQ==", "token: a"),
            "certificate-authority-data of cluster \"lab\" is not PEM in base64"
        );
        assert_eq!(
            refused("https://a", "", "client-certificate: a"),
            "user \"node\" has neither a certificate with its key, nor a token, nor a program that gets one"
        );
        assert!(parse("a: [").unwrap_err().starts_with("it is no kubeconfig: "));
        assert!(parse("kind: Config").unwrap_err().starts_with("it has no current-context"));
        assert_eq!(
            parse("current-context: a\ncontexts: []").unwrap_err(),
            "it names the context \"a\", which it does not have"
        );
    }
}
