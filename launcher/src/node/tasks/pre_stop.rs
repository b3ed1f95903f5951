//! What a pod wants done before its container is asked to end (`lifecycle.preStop`), as kubelet has noted it with the container, and
//! as kubelet would do it: by the runtime in the container, or by an HTTP request to the pod (k8s.io/kubernetes,
//! pkg/kubelet/lifecycle/handlers.go).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use http_body_util::Empty;
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::cri::{Container, CriError, Runtime};

/// A hook, and what else it takes to know where an HTTP request goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hook {
    handler: Handler,
    /// By their names.
    ports: HashMap<String, u16>,
}

/// Why a hook has not done what it should.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(super) enum HookError {
    /// CRI.
    #[error("the container runtime")]
    Runtime(#[from] CriError),
    /// The command's exit status.
    #[error("its command ended with status {0}")]
    Status(i32),
    /// A port of no such name.
    #[error("the pod has no port {0:?}")]
    Port(String),
    /// There is no TLS in here.
    #[error("it wants https, by which `stop` asks nobody")]
    Https,
    /// connect(2).
    #[error("cannot connect to {0}")]
    Connect(String, #[source] io::Error),
    /// A path or a header that cannot be sent.
    #[error("its request cannot be made")]
    Request(#[source] hyper::http::Error),
    /// The other side does not speak HTTP, or has hung up.
    #[error("there is no answer")]
    Http(#[source] hyper::Error),
    /// Something that kubelet would not do either.
    #[error("it is of a kind that is not known")]
    Unknown,
}

/// A LifecycleHandler (k8s.io/api/core/v1).
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
struct Handler {
    exec: Option<Exec>,
    http_get: Option<HttpGet>,
    sleep: Option<Sleep>,
}

#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
struct Exec {
    command: Vec<String>,
}

#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
struct HttpGet {
    path: String,
    port: Port,
    host: String,
    scheme: String,
    http_headers: Vec<Header>,
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(untagged)]
enum Port {
    Number(u16),
    Name(String),
}

impl Default for Port {
    fn default() -> Self {
        Port::Number(80)
    }
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Header {
    name: String,
    #[serde(default)]
    value: String,
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Sleep {
    seconds: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerPort {
    #[serde(default)]
    name: String,
    container_port: u16,
}

impl Hook {
    /// The hook of a container, if it has one.
    pub(super) fn of(container: &Container) -> Option<Self> {
        Hook::parse(
            container.annotation("container.preStopHandler")?,
            container.annotation("container.ports").unwrap_or("[]"),
        )
    }

    /// `ports` is a list of ContainerPort; what cannot be read is not there.
    fn parse(handler: &str, ports: &str) -> Option<Self> {
        let ports: Vec<ContainerPort> = serde_json::from_str(ports).unwrap_or_default();
        let ports = ports.into_iter().map(|port| (port.name, port.container_port)).collect();
        Some(Hook { handler: serde_json::from_str(handler).ok()?, ports })
    }

    /// Runs it to its end. Whoever has no more than `limit` for it stops waiting; a command is then killed by the runtime.
    pub(super) async fn run(
        self,
        runtime: &Runtime,
        container: &Container,
        limit: Duration,
    ) -> Result<(), HookError> {
        let Hook { handler, ports } = self;
        match handler {
            Handler { exec: Some(Exec { command }), .. } => {
                match runtime.exec(container.id.clone(), command, limit).await? {
                    0 => Ok(()),
                    status => Err(HookError::Status(status)),
                }
            }
            Handler { http_get: Some(get), .. } => {
                let pod = match get.host.is_empty() {
                    true => runtime.address(container.sandbox.clone()).await?,
                    false => None,
                };
                ask(get.request(pod, &ports)?).await
            }
            Handler { sleep: Some(Sleep { seconds }), .. } => {
                sleep(Duration::from_secs(seconds)).await;
                Ok(())
            }
            Handler { exec: None, http_get: None, sleep: None } => Err(HookError::Unknown),
        }
    }
}

impl HttpGet {
    /// Whom to ask, and what. A pod without an address of its own has the node's.
    fn request(
        self,
        pod: Option<IpAddr>,
        ports: &HashMap<String, u16>,
    ) -> Result<(String, Request<Empty<Bytes>>), HookError> {
        if self.scheme.eq_ignore_ascii_case("https") {
            return Err(HookError::Https);
        }
        let port = match self.port {
            Port::Number(number) => number,
            Port::Name(name) => *ports.get(&name).ok_or(HookError::Port(name))?,
        };
        let pod = pod.unwrap_or(Ipv4Addr::LOCALHOST.into());
        let peer = match pod {
            _ if !self.host.is_empty() => format!("{}:{port}", self.host),
            IpAddr::V4(address) => format!("{address}:{port}"),
            IpAddr::V6(address) => format!("[{address}]:{port}"),
        };
        let path = self.path.strip_prefix('/').unwrap_or(&self.path);
        let mut request = Request::get(format!("/{path}"));
        let has = |name: &str| self.http_headers.iter().any(|header| header.name.eq_ignore_ascii_case(name));
        if !has(HOST.as_str()) {
            request = request.header(HOST, &peer);
        }
        for Header { name, value } in self.http_headers {
            request = request.header(name, value);
        }
        Ok((peer, request.body(Empty::new()).map_err(HookError::Request)?))
    }
}

/// Any answer is one.
async fn ask((peer, request): (String, Request<Empty<Bytes>>)) -> Result<(), HookError> {
    let stream = TcpStream::connect(&peer).await.map_err(|source| HookError::Connect(peer, source))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(HookError::Http)?;
    // What goes wrong with it is told to whoever has asked something.
    tokio::spawn(connection);
    sender.send_request(request).await.map(drop).map_err(HookError::Http)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 0, 7));

    fn asked(get: &str, pod: Option<IpAddr>) -> Result<(String, Request<Empty<Bytes>>), String> {
        let ports = r#"[{"name": "web", "hostPort": 80, "containerPort": 8080, "protocol": "TCP"}]"#;
        let hook = Hook::parse(&format!(r#"{{"httpGet": {get}}}"#), ports).unwrap();
        hook.handler.http_get.unwrap().request(pod, &hook.ports).map_err(|error| error.to_string())
    }

    #[test]
    fn hooks_are_read_as_kubelet_notes_them() {
        let handler = |text| Hook::parse(text, "").map(|hook| hook.handler);
        let exec = Exec { command: vec!["sh".to_owned(), "-c".to_owned(), "exit".to_owned()] };
        assert_eq!(
            handler(r#"{"exec":{"command":["sh","-c","exit"]}}"#),
            Some(Handler { exec: Some(exec), ..Handler::default() })
        );
        let sleep = Some(Sleep { seconds: 5 });
        assert_eq!(handler(r#"{"sleep":{"seconds":5}}"#), Some(Handler { sleep, ..Handler::default() }));
        assert_eq!(handler(r#"{"tcpSocket":{"port":80}}"#), Some(Handler::default()));
        assert_eq!(handler("1"), None);
    }

    #[test]
    fn a_request_goes_to_the_pod() {
        let (peer, request) =
            asked(r#"{"path":"/bye?now","port":"web","scheme":"HTTP"}"#, Some(POD)).unwrap();
        assert_eq!((peer.as_str(), request.uri().to_string().as_str()), ("10.244.0.7:8080", "/bye?now"));
        assert_eq!(request.headers()["host"], "10.244.0.7:8080");
        let headers = r#"{"port":1,"httpHeaders":[{"name":"Host","value":"a"},{"name":"X","value":""}]}"#;
        let (peer, request) = asked(headers, None).unwrap();
        assert_eq!((peer.as_str(), request.uri().to_string().as_str()), ("127.0.0.1:1", "/"));
        assert_eq!(request.headers()["host"], "a");
        assert_eq!(asked(r#"{"port":1}"#, Some("fd00::7".parse().unwrap())).unwrap().0, "[fd00::7]:1");
        assert_eq!(asked(r#"{"port":1,"host":"a.example"}"#, None).unwrap().0, "a.example:1");
    }

    #[test]
    fn what_cannot_be_asked_is_told() {
        assert_eq!(asked(r#"{"port":"wbe"}"#, None).unwrap_err(), "the pod has no port \"wbe\"");
        assert!(asked(r#"{"port":1,"scheme":"HTTPS"}"#, None).unwrap_err().starts_with("it wants https"));
        let header = r#"{"port":1,"httpHeaders":[{"name":"a b"}]}"#;
        assert_eq!(asked(header, None).unwrap_err(), "its request cannot be made");
    }

    #[test]
    fn the_pod_has_to_answer() {
        use std::io::{BufRead, BufReader, Write};
        use tokio::runtime::Builder;

        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let get = format!(r#"{{"port":{}}}"#, listener.local_addr().unwrap().port());
        let server = std::thread::spawn(move || {
            for answer in ["HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", ""] {
                let (stream, _) = listener.accept().unwrap();
                let head = BufReader::new(&stream).lines().map_while(Result::ok);
                let head: Vec<String> = head.take_while(|line| !line.is_empty()).collect();
                assert_eq!(head[0], "GET / HTTP/1.1");
                (&stream).write_all(answer.as_bytes()).unwrap();
            }
        });
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let ask = || runtime.block_on(ask(asked(&get, None).unwrap()));
        assert!(ask().is_ok());
        assert!(matches!(ask(), Err(HookError::Http(_))));
        server.join().unwrap();
        assert!(matches!(ask(), Err(HookError::Connect(..))));
    }
}
