//! The real control behind the API, with a forwarder that has no child.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use forwarder::driver::{Config, ForwardDriver};
use launcher::api::control::{Engine, Facts};
use launcher::api::model::{Info, NetworkDriver, PortDriver, PortStatus, Statistics};
use launcher::api::server::{self, Server};
use launcher::client::http::{self, Request};
use launcher::state_dir::{Place, StateDir};
use nix::sys::eventfd::{EfdFlags, EventFd};

struct Running {
    engine: Arc<Engine>,
    directory: StateDir,
    _server: Server,
    stop: Arc<EventFd>,
    forwards: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    fn start(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("rootless-launch-engine-{name}-{}", std::process::id()));
        let directory = StateDir::open(&Place::Given(path)).unwrap();
        let driver = ForwardDriver::new(Config::default(), None, None).unwrap();
        let facts = Facts {
            child_pid: 42,
            state_dir: directory.path().display().to_string(),
            network: Some(NetworkDriver { driver: "rootless-launch".into(), ..NetworkDriver::default() }),
            ports: Some(PortDriver { driver: "rootless-launch".into(), ..PortDriver::default() }),
            ..Facts::default()
        };
        let engine = Arc::new(Engine::new(facts, None, Some(driver.handle())));
        let server =
            server::prepare(directory.listen().unwrap(), engine.clone(), None).unwrap().spawn().unwrap();
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap());
        let stopped = stop.clone();
        let forwards = std::thread::spawn(move || driver.run_until(stopped).unwrap());
        Running { engine, directory, _server: server, stop, forwards: Some(forwards) }
    }

    #[track_caller]
    fn ask(&self, method: &str, target: &str, body: &str) -> (u16, String) {
        let request = Request { body: body.as_bytes(), ..Request::new(method, target) };
        let response = http::send(&self.directory.path().join("api.sock"), &request).unwrap();
        (response.status, String::from_utf8(response.read().unwrap()).unwrap())
    }

    fn end_forwards(&mut self) {
        self.stop.write(1).unwrap();
        if let Some(forwards) = self.forwards.take() {
            forwards.join().unwrap();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end_forwards();
    }
}

#[test]
fn ports_are_really_published() {
    let running = Running::start("ports");
    let body = r#"{"proto":"tcp4","parentIP":"127.0.0.1","childPort":80}"#;
    let (status, added) = running.ask("POST", "/v1/ports", body);
    assert_eq!(status, 201, "{added}");
    let added: PortStatus = serde_json::from_str(&added).unwrap();
    let port = added.spec.fields().parent_port;
    assert_ne!(port, 0, "the port that the host picked");
    // There is no child that could answer: a reset.
    let mut client = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
    assert!(client.write_all(b"x").is_err() || client.read(&mut [0]).is_err());
    let (_, statistics) = running.ask("GET", "/v1/stats", "");
    let statistics: Statistics = serde_json::from_str(&statistics).unwrap();
    let forwards = statistics.forwards.unwrap();
    assert_eq!((forwards.forwards, forwards.accepted), (1, 1));
    assert_eq!(running.ask("DELETE", &format!("/v1/ports/{}", added.id), "").0, 200);
    assert_eq!(running.ask("GET", "/v1/ports", ""), (200, "[]".into()));
}

#[test]
fn a_port_in_use_is_refused_with_the_reason() {
    let running = Running::start("in-use");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let body = format!(r#"{{"proto":"tcp4","parentIP":"127.0.0.1","parentPort":{port},"childPort":80}}"#);
    let (status, told) = running.ask("POST", "/v1/ports", &body);
    assert_eq!(status, 400);
    assert!(told.contains(&format!("127.0.0.1:{port}/tcp is in use on the host")), "{told}");
    let (status, told) = running.ask("DELETE", "/v1/ports/7", "");
    assert_eq!((status, told.as_str()), (400, r#"{"message":"no forward has ID 7"}"#));
}

#[test]
fn a_forwarder_that_has_ended_is_told() {
    let mut running = Running::start("ended");
    running.end_forwards();
    let (status, told) = running.ask("GET", "/v1/ports", "");
    assert_eq!((status, told.as_str()), (503, r#"{"message":"the engine has ended"}"#));
}

#[test]
fn an_instance_says_when_it_is_ready_and_what_it_has_not() {
    let running = Running::start("ready");
    assert_eq!(running.ask("GET", "/v1/health", ""), (503, r#"{"status":"starting"}"#.into()));
    running.engine.set_ready();
    assert_eq!(running.ask("GET", "/v1/health", ""), (200, r#"{"status":"ready"}"#.into()));
    let info: Info = serde_json::from_str(&running.ask("GET", "/v1/info", "").1).unwrap();
    assert_eq!((info.child_pid, info.network_driver.unwrap().driver.as_str()), (42, "rootless-launch"));
    assert_eq!(running.ask("GET", "/v1/flows", "").0, 501);
}
