//! HTTP/1.1 on one thread: accepts, reads a request, has it done, writes the answer.
//!
//! Every connection is a task of its own; the thread sleeps while there is nothing to do. Once started it needs no
//! file and makes no socket but by accept4(2).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::thread::JoinHandle;
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::stat::{SFlag, fstat};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep, timeout};

use super::model::{ErrorBody, HealthStatus, PortChange, PortEvent, PortStatus};
use super::routes::{Command, Route};
use super::stream::{Impatient, PassedFile, Receiving};
use super::{Control, Refusal, Reply, metrics};

/// What a client may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at one time; further ones are answered 503 at once. 64.
    pub connections: usize,
    /// Bytes of a body; 413 beyond. 256 KiB: room for the longest policy there can be.
    pub body: usize,
    /// Bytes of a request's line and headers, at least 8192; 431 beyond. 16 KiB.
    pub headers: usize,
    /// For line and headers of a request, and between two requests; then the connection is closed. 10 s.
    pub header_read: Duration,
    /// For a body; 408 then. 10 s.
    pub body_read: Duration,
    /// For the next byte of an answer to be taken; then the connection is closed. 10 s.
    pub write: Duration,
    /// For the engine to do what was asked; 503 then. 10 s.
    pub answer: Duration,
    /// Ports are looked at this often while somebody watches: not every change is made by a request. 1 s.
    pub watch: Duration,
    /// An empty line goes to every watcher this often, so that one that has gone is noticed. 15 s.
    pub heartbeat: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 64,
            body: 256 << 10,
            headers: 16 << 10,
            header_read: Duration::from_secs(10),
            body_read: Duration::from_secs(10),
            write: Duration::from_secs(10),
            answer: Duration::from_secs(10),
            watch: Duration::from_secs(1),
            heartbeat: Duration::from_secs(15),
        }
    }
}

/// Pause after accept4(2) failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A running server. Dropping it ends it, whatever is under way.
#[derive(Debug)]
pub struct Server {
    /// Closed to stop.
    stop: Option<oneshot::Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

/// A server that does not run yet. It has all descriptors that it needs.
#[derive(Debug)]
pub struct Prepared {
    runtime: Runtime,
    listener: tokio::net::UnixListener,
    metrics: Option<tokio::net::TcpListener>,
    control: Arc<dyn Control>,
    limits: Limits,
}

/// Prepares to serve `listener`, and on `metrics`, if given, only the counters.
///
/// # Errors
/// epoll_create1(2), eventfd(2), epoll_ctl(2).
pub fn prepare(
    listener: UnixListener,
    control: Arc<dyn Control>,
    metrics: Option<TcpListener>,
) -> io::Result<Prepared> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let (listener, metrics) = {
        let _inside = runtime.enter();
        listener.set_nonblocking(true)?;
        let metrics = metrics.map(|metrics| {
            metrics.set_nonblocking(true)?;
            tokio::net::TcpListener::from_std(metrics)
        });
        (tokio::net::UnixListener::from_std(listener)?, metrics.transpose()?)
    };
    Ok(Prepared { runtime, listener, metrics, control, limits: Limits::default() })
}

impl Prepared {
    /// With limits of one's own.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Starts to serve, on the thread that `spawn` makes.
    ///
    /// # Errors
    /// Those of `spawn`.
    pub fn start<E>(
        self,
        spawn: impl FnOnce(Box<dyn FnOnce() + Send>) -> Result<JoinHandle<()>, E>,
    ) -> Result<Server, E> {
        let Prepared { runtime, listener, metrics, control, limits } = self;
        let (stop, stopped) = oneshot::channel();
        let limits = Arc::new(limits);
        let work = move || runtime.block_on(serve(listener, metrics, control, limits, stopped));
        Ok(Server { stop: Some(stop), thread: Some(spawn(Box::new(work))?) })
    }

    /// Starts to serve, on a thread called "api".
    ///
    /// # Errors
    /// clone3(2).
    pub fn spawn(self) -> io::Result<Server> {
        self.start(|work| std::thread::Builder::new().name("api".to_owned()).spawn(work))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop = None;
        // A panic there has been told already.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

async fn serve(
    listener: tokio::net::UnixListener,
    metrics: Option<tokio::net::TcpListener>,
    control: Arc<dyn Control>,
    limits: Arc<Limits>,
    mut stopped: oneshot::Receiver<Infallible>,
) {
    let places = Places::default();
    let (changes, _) = watch::channel(());
    loop {
        let Some(accepted) = until(&mut stopped, accept(&listener, metrics.as_ref())).await else { return };
        let place = places.take(limits.connections);
        let session = |file, scope| Session {
            control: control.clone(),
            limits: limits.clone(),
            changes: changes.clone(),
            file,
            scope,
        };
        match (accepted, place) {
            (Ok(Accepted::Control(stream)), Some(place)) => {
                let (stream, file) = Receiving::new(stream);
                tokio::spawn(session(file, Scope::Everything).run(stream, place));
            }
            (Ok(Accepted::Metrics(stream)), Some(place)) => {
                tokio::spawn(session(PassedFile::default(), Scope::Metrics).run(stream, place));
            }
            (Ok(Accepted::Control(stream)), None) => refuse(|bytes| stream.try_write(bytes)),
            (Ok(Accepted::Metrics(stream)), None) => refuse(|bytes| stream.try_write(bytes)),
            // The client went away again, or descriptors are out, which it is no use to ask for at once.
            (Err(error), _) => {
                log::debug!("api: accept: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

enum Accepted {
    Control(tokio::net::UnixStream),
    Metrics(tokio::net::TcpStream),
}

/// The next connection on either listener.
async fn accept(
    listener: &tokio::net::UnixListener,
    metrics: Option<&tokio::net::TcpListener>,
) -> io::Result<Accepted> {
    std::future::poll_fn(|context| {
        if let Poll::Ready(accepted) = listener.poll_accept(context) {
            return Poll::Ready(accepted.map(|(stream, _)| Accepted::Control(stream)));
        }
        match metrics.map(|metrics| metrics.poll_accept(context)) {
            Some(Poll::Ready(accepted)) => Poll::Ready(accepted.map(|(stream, _)| Accepted::Metrics(stream))),
            _ => Poll::Pending,
        }
    })
    .await
}

/// What `work` results in, or nothing if `end` comes first.
async fn until<T>(end: impl Future, work: impl Future<Output = T>) -> Option<T> {
    let (mut end, mut work) = (pin!(end), pin!(work));
    std::future::poll_fn(|context| match end.as_mut().poll(context) {
        Poll::Ready(_) => Poll::Ready(None),
        Poll::Pending => work.as_mut().poll(context).map(Some),
    })
    .await
}

/// Connections under way.
#[derive(Clone, Default)]
struct Places(Arc<AtomicUsize>);

impl Places {
    fn take(&self, limit: usize) -> Option<Place> {
        if self.0.load(Ordering::Relaxed) >= limit {
            return None;
        }
        self.0.fetch_add(1, Ordering::Relaxed);
        Some(Place(self.clone()))
    }
}

struct Place(Places);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Answers before anything was asked. The socket's buffer is empty, so nothing has to wait.
fn refuse(write: impl FnOnce(&[u8]) -> io::Result<usize>) {
    let body = r#"{"message":"too many connections"}"#;
    let head = "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-type: application/json\r\n";
    let answer = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    // A client that has gone does not miss it.
    let _ = write(answer.as_bytes());
}

/// What a connection may ask for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// All of it.
    Everything,
    /// The counters.
    Metrics,
}

#[derive(Clone)]
struct Session {
    control: Arc<dyn Control>,
    limits: Arc<Limits>,
    /// Touched when a request has changed the published ports.
    changes: watch::Sender<()>,
    file: PassedFile,
    scope: Scope,
}

type Answer = Result<Response<Payload>, Refusal>;

impl Session {
    async fn run(self, stream: impl AsyncRead + AsyncWrite + Unpin, _place: Place) {
        let service = service_fn(|request| {
            let session = self.clone();
            async move { Ok::<_, Infallible>(session.answer(request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_read)
            .max_buf_size(self.limits.headers)
            // Clients that shut down their side after the request still read the answer.
            .half_close(true)
            .serve_connection(TokioIo::new(Impatient::new(stream, self.limits.write)), service);
        if let Err(error) = connection.await {
            log::debug!("api: {error}");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Payload> {
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let answer = self.serve(request).await;
        if let Err(refusal) = &answer {
            log::debug!("api: {method} {path}: {refusal}");
        }
        answer.unwrap_or_else(|refusal| error(&refusal, &path))
    }

    async fn serve(&self, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        if self.scope == Scope::Metrics && path != Route::METRICS {
            return Err(Refusal::new(
                StatusCode::NOT_FOUND,
                format!("there is only {} here", Route::METRICS),
            ));
        }
        let (route, part) = Route::find(head.method.as_str(), path)?;
        let body = if route.takes_body() { self.read(body).await? } else { Bytes::new() };
        let command = route.command(part, head.uri.query(), &body)?;
        self.perform(route, command).await
    }

    async fn perform(&self, route: &Route, command: Command) -> Answer {
        let control = &self.control;
        match command {
            Command::Info => json(route, &self.ask(|reply| control.info(reply)).await?),
            Command::Health => {
                let health = self.ask(|reply| control.health(reply)).await?;
                let mut response = json(route, &health)?;
                if health.status != HealthStatus::Ready {
                    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                }
                Ok(response)
            }
            Command::Ports => json(route, &self.ask(|reply| control.ports(reply)).await?),
            Command::AddPort(spec) => {
                let port = self.ask(|reply| control.add_port(spec, reply)).await?;
                self.changes.send_modify(|_| {});
                json(route, &port)
            }
            Command::RemovePort(id) => {
                self.ask(|reply| control.remove_port(id, reply)).await?;
                self.changes.send_modify(|_| {});
                Ok(whole(route, Bytes::new(), None))
            }
            Command::WatchPorts => {
                let ports = self.ask(|reply| control.ports(reply)).await?;
                // What waits to be read is bounded; what changes meanwhile is told as one change.
                let (lines, receiver) = mpsc::channel(1);
                tokio::spawn(self.clone().watch(ports, lines));
                Ok(response(
                    route,
                    Payload::lines(receiver, self.limits.heartbeat),
                    Some("application/x-ndjson"),
                ))
            }
            Command::Statistics => json(route, &self.ask(|reply| control.statistics(reply)).await?),
            Command::Flows(query) => json(route, &self.ask(|reply| control.flows(query, reply)).await?),
            Command::Policy => json(route, &self.ask(|reply| control.policy(reply)).await?),
            Command::SetPolicy(policy) => {
                json(route, &self.ask(|reply| control.set_policy(policy, reply)).await?)
            }
            Command::AddPolicy(rules, position) => {
                json(route, &self.ask(|reply| control.add_policy(rules, position, reply)).await?)
            }
            Command::Overlay => json(route, &self.ask(|reply| control.overlay(reply)).await?),
            Command::AllowPeers(peers) => {
                json(route, &self.ask(|reply| control.allow_peers(peers, reply)).await?)
            }
            Command::ForbidPeers(peers) => {
                json(route, &self.ask(|reply| control.forbid_peers(peers, reply)).await?)
            }
            Command::Dns => json(route, &self.ask(|reply| control.dns(reply)).await?),
            Command::SetDns(change) => json(route, &self.ask(|reply| control.set_dns(change, reply)).await?),
            Command::Capture => json(route, &self.ask(|reply| control.capture(reply)).await?),
            Command::StartCapture => {
                let file = regular_file(&self.file)?;
                json(route, &self.ask(|reply| control.start_capture(file, reply)).await?)
            }
            Command::StopCapture => json(route, &self.ask(|reply| control.stop_capture(reply)).await?),
            Command::Metrics => {
                let statistics = self.ask(|reply| control.statistics(reply)).await?;
                let text = metrics::text(statistics, env!("CARGO_PKG_VERSION")).map_err(internal)?;
                Ok(whole(route, text.into(), Some(metrics::CONTENT_TYPE)))
            }
        }
    }

    /// Tells of `ports`, then of every change, until nobody reads any more.
    async fn watch(self, mut ports: Vec<PortStatus>, lines: mpsc::Sender<Bytes>) {
        let mut changes = self.changes.subscribe();
        let mut told = BTreeMap::new();
        loop {
            for event in news(&mut told, ports) {
                let Ok(mut line) = serde_json::to_vec(&event) else { return };
                line.push(b'\n');
                if lines.send(line.into()).await.is_err() {
                    return;
                }
            }
            let next = timeout(self.limits.watch, changes.changed());
            if until(lines.closed(), next).await.is_none() {
                return;
            }
            match self.ask(|reply| self.control.ports(reply)).await {
                Ok(now) => ports = now,
                Err(_) => return,
            }
        }
    }

    /// Has something done, and waits for the answer.
    async fn ask<T: Send + 'static>(&self, order: impl FnOnce(Reply<T>)) -> Result<T, Refusal> {
        let (reply, answer) = Reply::channel();
        order(reply);
        match timeout(self.limits.answer, answer).await {
            Ok(Ok(finish)) => finish(),
            Ok(Err(_)) => Err(Refusal::not_now("the engine has ended")),
            Err(_) => Err(Refusal::not_now("the engine does not answer")),
        }
    }

    /// Reads a body within its limits.
    async fn read(&self, body: Incoming) -> Result<Bytes, Refusal> {
        let most = self.limits.body;
        match timeout(self.limits.body_read, Limited::new(body, most).collect()).await {
            Ok(Ok(collected)) => Ok(collected.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Refusal::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the body is longer than {most} bytes"),
            )),
            Ok(Err(error)) => Err(Refusal::bad_request(format!("the body cannot be read: {error}"))),
            Err(_) => Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body takes too long")),
        }
    }
}

/// What has changed between what was told and `ports`, which is told then.
fn news(told: &mut BTreeMap<u64, PortStatus>, ports: Vec<PortStatus>) -> Vec<PortEvent> {
    let now: BTreeMap<u64, PortStatus> = ports.into_iter().map(|port| (port.id, port)).collect();
    let is_in = |known: &BTreeMap<_, _>, port: &PortStatus| known.get(&port.id) == Some(port);
    let removed = told.values().filter(|port| !is_in(&now, port));
    let added = now.values().filter(|port| !is_in(told, port));
    let event = |event| move |port: &PortStatus| PortEvent { event, port: port.clone() };
    let events = removed.map(event(PortChange::Removed)).chain(added.map(event(PortChange::Added))).collect();
    *told = now;
    events
}

/// The file that came with the request. A pipe or a socket would stop the network when nobody reads it.
fn regular_file(passed: &PassedFile) -> Result<OwnedFd, Refusal> {
    let file = passed.take().ok_or_else(|| {
        Refusal::bad_request("the descriptor of the file to write has to come with the request (SCM_RIGHTS)")
    })?;
    let kind = fstat(file.as_fd()).map_err(internal)?.st_mode & SFlag::S_IFMT.bits();
    if kind != SFlag::S_IFREG.bits() {
        return Err(Refusal::bad_request("the descriptor is not one of a regular file"));
    }
    Ok(file)
}

fn json(route: &Route, value: &impl Serialize) -> Answer {
    let body = serde_json::to_vec(value).map_err(internal)?;
    Ok(whole(route, body.into(), Some(JSON)))
}

const JSON: &str = "application/json";

fn whole(route: &Route, body: Bytes, kind: Option<&'static str>) -> Response<Payload> {
    response(route, Payload::Whole(Full::new(body)), kind)
}

fn response(route: &Route, payload: Payload, kind: Option<&'static str>) -> Response<Payload> {
    let mut response = Response::new(payload);
    *response.status_mut() = StatusCode::from_u16(route.success).unwrap_or(StatusCode::OK);
    if let Some(kind) = kind {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    response
}

fn error(refusal: &Refusal, path: &str) -> Response<Payload> {
    let body = ErrorBody { message: refusal.message.clone(), in_use: refusal.in_use };
    let body = serde_json::to_vec(&body).unwrap_or_default();
    let mut response = Response::new(Payload::Whole(Full::new(body.into())));
    *response.status_mut() = refusal.status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    if refusal.status == StatusCode::METHOD_NOT_ALLOWED
        && let Ok(verbs) = HeaderValue::from_str(&Route::verbs(path).join(", "))
    {
        response.headers_mut().insert(ALLOW, verbs);
    }
    response
}

fn internal(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

/// Body of an answer.
enum Payload {
    /// All of it.
    Whole(Full<Bytes>),
    /// Lines as they come.
    Lines { lines: mpsc::Receiver<Bytes>, heartbeat: Interval },
}

impl Payload {
    fn lines(lines: mpsc::Receiver<Bytes>, period: Duration) -> Self {
        let mut heartbeat = interval_at(Instant::now() + period, period);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Payload::Lines { lines, heartbeat }
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Payload::Whole(body) => Pin::new(body).poll_frame(context),
            Payload::Lines { lines, heartbeat } => {
                if let Poll::Ready(line) = lines.poll_recv(context) {
                    return Poll::Ready(line.map(|line| Ok(Frame::data(line))));
                }
                ready!(heartbeat.poll_tick(context));
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"\n")))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Payload::Whole(body) => body.is_end_stream(),
            Payload::Lines { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Payload::Whole(body) => body.size_hint(),
            Payload::Lines { .. } => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use forwarder::spec::Origin;

    use super::*;

    #[test]
    fn news_are_what_was_not_told() {
        let port = |id, text: &str| PortStatus { id, spec: text.parse().unwrap(), origin: Origin::Asked };
        let mut told = BTreeMap::new();
        let mut shown = |ports: &[PortStatus]| {
            let events = news(&mut told, ports.to_vec());
            events.iter().map(|event| (event.event, event.port.id)).collect::<Vec<_>>()
        };
        use PortChange::{Added, Removed};
        assert_eq!(shown(&[port(1, "1:1"), port(2, "2:2")]), [(Added, 1), (Added, 2)]);
        assert_eq!(shown(&[port(1, "1:1"), port(2, "2:2")]), []);
        // Taken back and given to another one between two looks.
        assert_eq!(
            shown(&[port(3, "3:3"), port(2, "4:4")]),
            [(Removed, 1), (Removed, 2), (Added, 2), (Added, 3)]
        );
    }
}
