//! What kubelet's log says of how it joins its cluster, as sentences for people. Pure.
//!
//! kubelet runs, and says that it is healthy, whether or not an API server knows it; what is wrong stands in its log, in the words of
//! Go's libraries. These lines are looked for (k8s.io/kubernetes, pkg/kubelet/kubelet_node_status.go; k8s.io/client-go,
//! util/certificate/certificate_manager.go; the same words since 1.20), the rest is not for us:
//!
//! | line | means |
//! |---|---|
//! | Successfully registered node | the cluster has the node |
//! | Unable to register node with API server | not yet, and why |
//! | Failed while requesting a signed certificate | no certificate yet, and why |
//! | Certificate request was not signed | nobody has approved it in time |

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How a node comes to its credentials.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Credentials {
    /// They are in the kubeconfig.
    Given,
    /// It asks for them with what is in the kubeconfig.
    AskedFor,
}

/// What kubelet shows those who ask it for something.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Serving {
    /// A certificate of its own making.
    OwnSigned,
    /// One that it has asked its cluster for (serverTLSBootstrap). Until somebody approves it, there are neither logs nor exec.
    AskedFor,
}

/// What has become known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// The cluster has the node.
    Joined,
    /// The same, but it does not give kubelet the certificate to serve with that it has asked for.
    JoinedUnapproved,
    /// Something is in the way.
    Trouble(String),
}

/// Follows kubelet's log.
#[derive(Debug)]
pub struct Joining {
    server: String,
    kubeconfig: PathBuf,
    credentials: Credentials,
    /// Why there is no certificate; it counts more than what follows from that.
    refused: bool,
    known: Option<News>,
}

impl Joining {
    /// A node that wants to join the cluster of `server` by `kubeconfig`.
    pub fn new(server: String, kubeconfig: PathBuf, credentials: Credentials) -> Self {
        Joining { server, kubeconfig, credentials, refused: false, known: None }
    }

    /// Takes a line; what is new by it.
    pub fn handle_line(&mut self, line: &str) -> Option<News> {
        let news = self.judge(line)?;
        let is_new = self.known.as_ref() != Some(&news);
        self.known = Some(news.clone());
        is_new.then_some(news)
    }

    fn judge(&mut self, line: &str) -> Option<News> {
        if line.contains("Successfully registered node") {
            return Some(News::Joined);
        }
        for words in ["Failed while requesting a signed certificate", "Certificate request was not signed"] {
            if line.contains(words) {
                self.refused = true;
                return Some(News::Trouble(self.explain(&reason(line, words), true)));
            }
        }
        let words = "Unable to register node with API server";
        let reason = line.contains(words).then(|| reason(line, words))?;
        let follows = self.credentials == Credentials::AskedFor && is_about_us(&reason);
        let is_news = !(follows && self.refused);
        is_news.then(|| News::Trouble(self.explain(&reason, false)))
    }

    fn explain(&self, reason: &str, of_request: bool) -> String {
        let Joining { server, kubeconfig, .. } = self;
        let file = kubeconfig.display();
        let has = |words: &[&str]| words.iter().any(|words| reason.contains(words));
        if has(&["certificate signed by unknown authority", "certificate is not trusted"]) {
            return format!(
                "{server} shows a certificate that the certificate-authority of {file} has not signed: it is another cluster's, or an old one"
            );
        }
        if has(&[
            "certificate is valid for",
            "doesn't contain any IP SANs",
            "certificate is not valid for any names",
        ]) {
            return format!(
                "the certificate of {server} does not name that address; name the API server otherwise in {file}, or have the address put \
                 into its certificate ({})",
                last(reason)
            );
        }
        if has(&["certificate has expired or is not yet valid"]) {
            return format!(
                "the certificate of {server} is not valid now ({}); is the clock right?",
                last(reason)
            );
        }
        if has(&[
            "connection refused",
            "no route to host",
            "network is unreachable",
            "i/o timeout",
            "context deadline exceeded",
            "Client.Timeout",
            "TLS handshake timeout",
            "connection reset by peer",
            "EOF",
        ]) {
            return format!(
                "{server} cannot be reached ({}); it is tried again. Does it run, and is it reached from this host?",
                last(reason)
            );
        }
        if has(&["no such host", "server misbehaving"]) {
            return format!("the name in {server} is not found by DNS ({}); it is tried again", last(reason));
        }
        match (self.credentials, of_request) {
            (Credentials::AskedFor, true) if has(&["Unauthorized"]) => format!(
                "{server} does not take the token of {file}: it has expired, was deleted, or is another cluster's; a new one is made by \
                 kubeadm token create"
            ),
            (Credentials::AskedFor, true) if has(&["forbidden"]) => format!(
                "the token of {file} may not ask for a certificate; its group lacks the role system:node-bootstrapper ({})",
                last(reason)
            ),
            (Credentials::AskedFor, true) if has(&["timed out"]) => {
                let why = "nobody has approved this node's request for a certificate in time, and it asks again: kubectl get csr, \
                           kubectl certificate approve NAME";
                why.to_owned()
            }
            (Credentials::AskedFor, false) if is_about_us(reason) => format!(
                "the node has no certificate yet: it has asked {server} for one, which has to be approved (kubectl get csr, \
                 kubectl certificate approve NAME, unless the cluster does so by itself)"
            ),
            (Credentials::Given, _) if has(&["Unauthorized"]) => format!(
                "{server} does not take the credentials of {file}: they have expired or are another cluster's"
            ),
            (Credentials::Given, _) if has(&["forbidden"]) => format!(
                "{server} does not let the user of {file} be this node: it has to be system:node:NAME, NAME being the node's name, in the \
                 group system:nodes ({})",
                last(reason)
            ),
            _ => format!("{server}: {reason}"),
        }
    }
}

/// Whether the API server did not know us, or only as nobody.
fn is_about_us(reason: &str) -> bool {
    reason.contains("Unauthorized") || reason.contains("system:anonymous")
}

/// The value of `err`, else what follows the words.
fn reason(line: &str, words: &str) -> String {
    if let Some((_, quoted)) = line.split_once(" err=\"") {
        let mut text = String::new();
        let mut letters = quoted.chars();
        while let Some(letter) = letters.next() {
            match letter {
                '"' => break,
                '\\' => text.extend(letters.next()),
                letter => text.push(letter),
            }
        }
        return text;
    }
    let rest = line.split_once(words).map_or(line, |(_, rest)| rest);
    rest.split_once(": ").map_or(rest, |(_, reason)| reason).trim().to_owned()
}

/// The last of Go's nested reasons.
fn last(reason: &str) -> &str {
    let known = ["dial tcp ", "x509: ", "forbidden: "];
    let start = known.iter().filter_map(|words| reason.find(words)).max();
    start.and_then(|start| reason.get(start..)).unwrap_or(reason)
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            News::Joined => f.write_str("the cluster has this node"),
            News::JoinedUnapproved => f.write_str(
                "the cluster has this node, but logs and exec of its pods only when somebody has approved the certificate that kubelet \
                 asks for (serverTLSBootstrap): kubectl get csr, kubectl certificate approve NAME",
            ),
            News::Trouble(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joining(credentials: Credentials) -> Joining {
        Joining::new("https://192.0.2.1:6443".to_owned(), "/home/ann/c.conf".into(), credentials)
    }

    fn registering(reason: &str) -> String {
        format!(
            "E1122 19:00:00.000000      42 kubelet_node_status.go:108] \"Unable to register node with API server\" \
             err=\"{reason}\" logger=\"kubelet\" node=\"one\""
        )
    }

    fn asking(reason: &str) -> String {
        format!(
            "E1122 19:00:00.000000      42 certificate_manager.go:596] \"Failed while requesting a signed certificate from the control \
             plane\" err=\"cannot create certificate signing request: {reason}\" logger=\"UnhandledError\""
        )
    }

    fn told(joining: &mut Joining, line: &str) -> String {
        joining.handle_line(line).expect("news").to_string()
    }

    #[test]
    fn each_trouble_is_one_sentence() {
        let post = "Post \\\"https://192.0.2.1:6443/api/v1/nodes\\\": ";
        for (reason, sentence) in [
            (
                "dial tcp 192.0.2.1:6443: connect: connection refused",
                "https://192.0.2.1:6443 cannot be reached (dial tcp 192.0.2.1:6443: connect: connection refused); it is tried again. \
                 Does it run, and is it reached from this host?",
            ),
            (
                "tls: failed to verify certificate: x509: certificate signed by unknown authority (possibly because of \\\"x509: ECDSA \
                 verification failure\\\" while trying to verify candidate authority certificate \\\"lab\\\")",
                "https://192.0.2.1:6443 shows a certificate that the certificate-authority of /home/ann/c.conf has not signed: \
                 it is another cluster's, or an old one",
            ),
            (
                "tls: failed to verify certificate: x509: certificate is valid for 192.0.2.9, not 192.0.2.1",
                "the certificate of https://192.0.2.1:6443 does not name that address; name the API server otherwise in \
                 /home/ann/c.conf, or have the address put into its certificate (x509: certificate is valid for 192.0.2.9, not 192.0.2.1)",
            ),
        ] {
            let line = registering(&format!("{post}{reason}"));
            assert_eq!(told(&mut joining(Credentials::Given), &line), sentence);
            let line = asking(&format!("{post}{reason}"));
            assert_eq!(told(&mut joining(Credentials::AskedFor), &line), sentence);
        }
        assert_eq!(
            told(&mut joining(Credentials::Given), &registering("Unauthorized")),
            "https://192.0.2.1:6443 does not take the credentials of /home/ann/c.conf: they have expired or are another cluster's"
        );
        let forbidden =
            "nodes \\\"one\\\" is forbidden: node \\\"two\\\" is not allowed to modify node \\\"one\\\"";
        let sentence = told(&mut joining(Credentials::Given), &registering(forbidden));
        assert!(
            sentence.ends_with("(forbidden: node \"two\" is not allowed to modify node \"one\")"),
            "{sentence}"
        );
        let sentence = told(&mut joining(Credentials::Given), &registering("etcdserver: no leader"));
        assert_eq!(sentence, "https://192.0.2.1:6443: etcdserver: no leader");
    }

    #[test]
    fn what_follows_from_a_bad_token_is_no_news() {
        let mut joining = joining(Credentials::AskedFor);
        let nobody = registering("nodes is forbidden: User \\\"system:anonymous\\\" cannot create resource");
        assert!(
            told(&mut joining, &nobody)
                .starts_with("the node has no certificate yet: it has asked https://192")
        );
        assert_eq!(joining.handle_line(&nobody), None, "told once");
        let refused = told(&mut joining, &asking("Unauthorized"));
        assert!(refused.starts_with(
            "https://192.0.2.1:6443 does not take the token of /home/ann/c.conf: it has expired"
        ));
        assert_eq!(joining.handle_line(&nobody), None);
        let late = "E1122 certificate_manager.go:613] \"Certificate request was not signed\" err=\"timed out waiting for the condition\"";
        assert!(told(&mut joining, late).starts_with("nobody has approved this node's request"));
        let done = "I1122 19:00:00.000000 42 kubelet_node_status.go:78] \"Successfully registered node\" node=\"one\"";
        assert_eq!(joining.handle_line(done), Some(News::Joined));
        assert_eq!(joining.handle_line("I1122 \"Starting to sync pod status with apiserver\""), None);
    }

    #[test]
    fn older_kubelets_do_not_quote_their_reasons() {
        let line = "E0101 00:00:00.000000 1 certificate_manager.go:562] kubernetes.io/kube-apiserver-client-kubelet: Failed while \
                    requesting a signed certificate from the control plane: cannot create certificate signing request: Unauthorized";
        assert!(told(&mut joining(Credentials::AskedFor), line).contains("does not take the token"));
    }
}
