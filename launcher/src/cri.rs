//! As much of the Container Runtime Interface (CRI, k8s.io/cri-api/pkg/apis/runtime/v1/api.proto) as it takes to let containers
//! end: gRPC over HTTP/2 on the runtime's Unix socket.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HeaderMap, TE};
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use thiserror::Error;
use tokio::net::UnixStream;

/// Longest answer, in bytes: what kubelet takes.
const MAX_ANSWER: usize = 16 << 20;

/// A container runtime that answers.
#[derive(Clone, Debug)]
pub(crate) struct Runtime(SendRequest<Full<Bytes>>);

/// Why the runtime was not asked, or did not answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CriError {
    /// connect(2).
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// It does not speak HTTP/2, or ended the connection.
    #[error("it does not answer")]
    Http(#[source] hyper::Error),
    /// It took too long.
    #[error("it does not answer in time")]
    Silent,
    /// The answer is cut short, or longer than 16 MiB.
    #[error("its answer cannot be read")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// HTTP, but not gRPC.
    #[error("it answers {0}, which is not gRPC's")]
    Status(StatusCode),
    /// gRPC's status and words.
    #[error("it refuses: {message} (gRPC status {status})")]
    Refused {
        /// A number, as text.
        status: String,
        /// For people, percent-encoded where it is not ASCII.
        message: String,
    },
    /// protobuf.
    #[error("its answer is not what CRI wants")]
    Message(#[source] prost::DecodeError),
    /// More or less than one message, or a compressed one, for which nobody has asked.
    #[error("its answer is not one message")]
    Frame,
}

/// A container, as far as it concerns its end.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Container {
    /// The runtime's name of it.
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    /// The runtime's name of its pod.
    #[prost(string, tag = "2")]
    pub(crate) sandbox: String,
    #[prost(map = "string, string", tag = "8")]
    labels: HashMap<String, String>,
    #[prost(map = "string, string", tag = "9")]
    annotations: HashMap<String, String>,
}

impl Container {
    /// For people: namespace and name of the pod, and name of the container.
    pub(crate) fn name(&self) -> String {
        let label = |name| self.labels.get(&format!("io.kubernetes.{name}")).map_or("", String::as_str);
        match label("pod.name") {
            "" => self.id.clone(),
            pod => format!("{}/{pod}/{}", label("pod.namespace"), label("container.name")),
        }
    }

    /// What its pod wants it to have between SIGTERM and SIGKILL (terminationGracePeriodSeconds), as kubelet notes it.
    pub(crate) fn grace(&self) -> Option<Duration> {
        let noted = self.annotation("pod.terminationGracePeriod")?;
        noted.parse().ok().map(Duration::from_secs)
    }

    /// What kubelet has noted as `io.kubernetes.NAME` (k8s.io/kubernetes, pkg/kubelet/kuberuntime/labels.go).
    pub(crate) fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.get(&format!("io.kubernetes.{name}")).map(String::as_str)
    }
}

impl Runtime {
    /// Connects to the runtime at `socket`.
    pub(crate) async fn connect(socket: &Path) -> Result<Self, CriError> {
        let stream = UnixStream::connect(socket).await.map_err(CriError::Connect)?;
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(CriError::Http)?;
        // What goes wrong with it is told to whoever has asked something.
        tokio::spawn(connection);
        Ok(Runtime(sender))
    }

    /// The containers that run.
    pub(crate) async fn running(&self) -> Result<Vec<Container>, CriError> {
        let state = ContainerStateValue { state: CONTAINER_RUNNING };
        let request = ListContainersRequest { filter: Some(ContainerFilter { state: Some(state) }) };
        let response: ListContainersResponse = self.call("ListContainers", &request).await?;
        Ok(response.containers)
    }

    /// Ends a container: SIGTERM, or what its image names, and SIGKILL after whole seconds. Answered when it has ended.
    pub(crate) async fn stop(&self, id: String, grace: Duration) -> Result<(), CriError> {
        let timeout = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let StopContainerResponse {} =
            self.call("StopContainer", &StopContainerRequest { container_id: id, timeout }).await?;
        Ok(())
    }

    /// Runs a command in a container and waits for it, for whole seconds at most; its exit status.
    pub(crate) async fn exec(&self, id: String, argv: Vec<String>, limit: Duration) -> Result<i32, CriError> {
        let timeout = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX);
        let request = ExecSyncRequest { container_id: id, cmd: argv, timeout };
        let response: ExecSyncResponse = self.call("ExecSync", &request).await?;
        Ok(response.exit_code)
    }

    /// The address of a pod; none if it has the node's.
    pub(crate) async fn address(&self, sandbox: String) -> Result<Option<IpAddr>, CriError> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox };
        let response: PodSandboxStatusResponse = self.call("PodSandboxStatus", &request).await?;
        let network = response.status.and_then(|status| status.network);
        Ok(network.and_then(|network| network.ip.parse().ok()))
    }

    async fn call<A: Message + Default>(&self, method: &str, message: &impl Message) -> Result<A, CriError> {
        let request = Request::post(format!("http://localhost/runtime.v1.RuntimeService/{method}"))
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers")
            .body(Full::from(framed(message)));
        let request = request.expect("the parts are constants");
        let response = self.0.clone().send_request(request).await.map_err(CriError::Http)?;
        if response.status() != StatusCode::OK {
            return Err(CriError::Status(response.status()));
        }
        // Who has nothing to say but that it refuses says so at once.
        refused(response.headers())?;
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(CriError::Body)?;
        body.trailers().map_or(Ok(()), refused)?;
        A::decode(unframed(&body.to_bytes())?).map_err(CriError::Message)
    }
}

/// gRPC's frame: whether it is compressed, the length, the message.
fn framed(message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[0], &length[..], &message].concat()
}

fn unframed(bytes: &[u8]) -> Result<&[u8], CriError> {
    match bytes {
        [0, a, b, c, d, message @ ..] if message.len() == u32::from_be_bytes([*a, *b, *c, *d]) as usize => {
            Ok(message)
        }
        _ => Err(CriError::Frame),
    }
}

fn refused(headers: &HeaderMap) -> Result<(), CriError> {
    let text = |name| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    match text("grpc-status") {
        None => Ok(()),
        Some(status) if status == "0" => Ok(()),
        Some(status) => Err(CriError::Refused { status, message: text("grpc-message").unwrap_or_default() }),
    }
}

const CONTAINER_RUNNING: i32 = 1;

#[derive(Clone, PartialEq, Message)]
struct ListContainersRequest {
    #[prost(message, optional, tag = "1")]
    filter: Option<ContainerFilter>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerFilter {
    #[prost(message, optional, tag = "2")]
    state: Option<ContainerStateValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerStateValue {
    #[prost(int32, tag = "1")]
    state: i32,
}

#[derive(Clone, PartialEq, Message)]
struct ListContainersResponse {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<Container>,
}

#[derive(Clone, PartialEq, Message)]
struct StopContainerRequest {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(int64, tag = "2")]
    timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
struct StopContainerResponse {}

#[derive(Clone, PartialEq, Message)]
struct ExecSyncRequest {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(string, repeated, tag = "2")]
    cmd: Vec<String>,
    #[prost(int64, tag = "3")]
    timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ExecSyncResponse {
    #[prost(int32, tag = "3")]
    exit_code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatusRequest {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<PodSandboxStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatus {
    #[prost(message, optional, tag = "5")]
    network: Option<PodSandboxNetworkStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxNetworkStatus {
    #[prost(string, tag = "1")]
    ip: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_as_protoc_writes_them() {
        let state = ContainerStateValue { state: CONTAINER_RUNNING };
        let list = ListContainersRequest { filter: Some(ContainerFilter { state: Some(state) }) };
        assert_eq!(framed(&list), b"\0\0\0\0\x06\x0a\x04\x12\x02\x08\x01");
        let stop = StopContainerRequest { container_id: "abc".into(), timeout: 300 };
        assert_eq!(framed(&stop), b"\0\0\0\0\x08\x0a\x03abc\x10\xac\x02");
        let exec =
            ExecSyncRequest { container_id: "abc".into(), cmd: vec!["a".into(), "b".into()], timeout: 3 };
        assert_eq!(framed(&exec), b"\0\0\0\0\x0d\x0a\x03abc\x12\x01a\x12\x01b\x18\x03");
    }

    #[test]
    fn containers_have_a_name_and_perhaps_a_time() {
        let of = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|&(key, value)| (format!("io.kubernetes.{key}"), value.to_owned())).collect()
        };
        let web = Container {
            id: "4711".into(),
            labels: of(&[("pod.namespace", "default"), ("pod.name", "web-node"), ("container.name", "web")]),
            annotations: of(&[("pod.terminationGracePeriod", "7")]),
            ..Container::default()
        };
        assert_eq!(
            (web.name().as_str(), web.grace()),
            ("default/web-node/web", Some(Duration::from_secs(7)))
        );
        let foreign = Container { id: "4712".into(), ..Container::default() };
        assert_eq!((foreign.name().as_str(), foreign.grace()), ("4712", None));
    }

    #[test]
    fn an_answer_is_one_message_that_is_not_compressed() {
        assert_eq!(unframed(b"\0\0\0\0\x02ab").unwrap(), b"ab");
        for bytes in [&b""[..], b"\0\0\0\0", b"\x01\0\0\0\x02ab", b"\0\0\0\0\x03ab", b"\0\0\0\0\x01ab"] {
            assert!(matches!(unframed(bytes), Err(CriError::Frame)), "{bytes:?}");
        }
    }

    #[test]
    fn a_refusal_has_a_status_and_words() {
        let mut headers = HeaderMap::new();
        assert!(refused(&headers).is_ok());
        headers.insert("grpc-status", "0".parse().unwrap());
        assert!(refused(&headers).is_ok());
        headers.insert("grpc-status", "5".parse().unwrap());
        headers.insert("grpc-message", "no such container".parse().unwrap());
        let error = refused(&headers).unwrap_err().to_string();
        assert_eq!(error, "it refuses: no such container (gRPC status 5)");
    }
}
