//! The server and clients that behave badly.

use std::io::{BufRead, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use launcher::api::model::{PortChange, PortEvent, PortStatus};
use launcher::api::server::Limits;
use launcher::client::http::{self, Request};

use crate::support::{Bench, wait_for};

/// So short that a test does not notice.
const SHORT: Duration = Duration::from_millis(20);

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

fn message(body: &str) -> String {
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    body["message"].as_str().unwrap().to_owned()
}

#[test]
fn what_cannot_be_understood_is_refused_with_a_reason() {
    let bench = Bench::new();
    let ask = |method, target, body| {
        let (status, body) = bench.ask(method, target, body);
        (status, message(&body))
    };
    assert_eq!(ask("GET", "/v1/nothing", ""), (404, "there is no /v1/nothing".into()));
    assert_eq!(ask("BREW", "/v1/info", "").0, 405);
    let (status, text) = ask("POST", "/v1/ports", "{\"proto\":");
    assert_eq!(status, 400);
    assert!(text.starts_with("bad JSON: EOF"), "{text}");
    assert_eq!(ask("POST", "/v1/ports", "{}").1, "bad JSON: missing field `proto` at line 1 column 2");
    assert_eq!(ask("DELETE", "/v1/ports/x", "").0, 400);
    assert_eq!(ask("DELETE", "/v1/ports/7", ""), (400, "there is no port 7".into()));
    let (status, text) = ask("POST", "/v1/ports", r#"{"proto":"sctp","parentPort":1,"childPort":1}"#);
    assert_eq!((status, text.starts_with("bad JSON: SCTP is not forwarded")), (400, true), "{text}");
    let long = format!("{{\"proto\":\"{}\"}}", "x".repeat(300 << 10));
    assert_eq!(ask("POST", "/v1/ports", &long).0, 413);
    assert_eq!(bench.ask("GET", "/v1/ports", ""), (200, "[]".into()));
}

#[test]
fn verbs_that_exist_are_named() {
    let answer = Bench::new().talk(b"PUT /v1/ports HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(status(&answer), "405");
    assert!(answer.contains("allow: GET, POST\r\n"), "{answer}");
    assert!(answer.contains("content-type: application/json\r\n"), "{answer}");
}

#[test]
fn what_is_not_http_is_refused() {
    let bench = Bench::new();
    assert_eq!(status(&bench.talk(b"\x16\x03\x01 hello\r\n\r\n")), "400");
    let long = format!("GET /v1/info HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(64 << 10));
    assert_eq!(status(&bench.talk(long.as_bytes())), "431");
    assert_eq!(bench.talk(b""), "");
    assert_eq!(bench.ask("GET", "/v1/health", ""), (200, "{\"status\":\"ready\"}".into()));
}

#[test]
fn a_client_that_shuts_its_side_down_gets_its_answer() {
    let bench = Bench::new();
    let body = r#"{"proto":"tcp","parentPort":8080,"childPort":80}"#;
    let request =
        format!("POST /v1/ports HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let answer = bench.talk(request.as_bytes());
    assert_eq!(status(&answer), "201");
    assert!(
        answer.ends_with(r#"{"id":1,"spec":{"proto":"tcp","parentPort":8080,"childPort":80}}"#),
        "{answer}"
    );
}

#[test]
fn requests_may_share_a_connection() {
    let bench = Bench::new();
    let request = "GET /v1/ports HTTP/1.1\r\nHost: x\r\n\r\n";
    let answer = bench.talk(request.repeat(3).as_bytes());
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 3);
}

#[test]
fn slow_clients_delay_nobody_and_are_given_up() {
    let limits = Limits { header_read: SHORT, body_read: SHORT, ..Limits::default() };
    let bench = Bench::with(limits, None);
    let mut slow_head = bench.connect();
    slow_head.write_all(b"GET /v1/in").unwrap();
    let mut slow_body = bench.connect();
    slow_body.write_all(b"POST /v1/ports HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{").unwrap();
    assert_eq!(bench.ask("GET", "/v1/ports", "").0, 200);
    let mut answer = String::new();
    slow_body.read_to_string(&mut answer).unwrap();
    assert_eq!(status(&answer), "408");
    assert!(answer.ends_with("{\"message\":\"the body takes too long\"}"), "{answer}");
    let mut answer = String::new();
    slow_head.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "");
}

#[test]
fn a_client_that_does_not_read_is_given_up() {
    let bench = Bench::with(Limits { write: SHORT, connections: 1, ..Limits::default() }, None);
    let mut deaf = bench.connect();
    let request = b"GET /v1/info HTTP/1.1\r\nHost: x\r\n\r\n";
    // Until the server has no room for answers, reads no further, and then closes.
    while deaf.write_all(request).is_ok() {}
    wait_for(|| bench.ask("GET", "/v1/ports", "").0 == 200);
}

#[test]
fn an_engine_that_does_not_answer_delays_only_who_asked_it() {
    let bench = Bench::with(Limits { answer: SHORT, ..Limits::default() }, None);
    let (status, body) = bench.ask("GET", "/v1/flows", "");
    assert_eq!((status, message(&body)), (503, "the engine does not answer".into()));
    assert_eq!(bench.fake.waiting.lock().unwrap().len(), 1);
    assert_eq!(bench.ask("GET", "/v1/ports", "").0, 200);
}

#[test]
fn an_engine_that_has_ended_is_told() {
    let bench = Bench::new();
    let asked = std::thread::scope(|scope| {
        let asked = scope.spawn(|| bench.ask("GET", "/v1/flows", ""));
        wait_for(|| !bench.fake.waiting.lock().unwrap().is_empty());
        // The others are served meanwhile.
        assert_eq!(bench.ask("GET", "/v1/ports", "").0, 200);
        bench.fake.waiting.lock().unwrap().clear();
        asked.join().unwrap()
    });
    assert_eq!((asked.0, message(&asked.1)), (503, "the engine has ended".into()));
}

#[test]
fn a_client_that_vanishes_harms_nobody() {
    let bench = Bench::new();
    let mut gone = bench.connect();
    gone.write_all(b"GET /v1/flows HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    wait_for(|| !bench.fake.waiting.lock().unwrap().is_empty());
    drop(gone);
    let reply = bench.fake.waiting.lock().unwrap().pop().unwrap();
    reply.send(Ok(launcher::api::model::FlowList { total: 0, flows: Vec::new() }));
    let mut gone = bench.connect();
    gone.write_all(b"POST /v1/ports HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{").unwrap();
    drop(gone);
    assert_eq!(bench.ask("GET", "/v1/ports", ""), (200, "[]".into()));
}

#[test]
fn many_clients_at_once_are_all_served() {
    let bench = Bench::new();
    std::thread::scope(|scope| {
        for thread in 0..16u16 {
            let bench = &bench;
            scope.spawn(move || {
                for turn in 0..20 {
                    let port = 1000 + thread * 100 + turn;
                    let body = format!("{{\"proto\":\"tcp\",\"parentPort\":{port},\"childPort\":80}}");
                    let (status, answer) = bench.ask("POST", "/v1/ports", &body);
                    assert_eq!(status, 201, "{answer}");
                    let id = serde_json::from_str::<PortStatus>(&answer).unwrap().id;
                    if turn % 2 == 0 {
                        assert_eq!(bench.ask("DELETE", &format!("/v1/ports/{id}"), ""), (200, String::new()));
                    }
                }
            });
        }
    });
    let (_, list) = bench.ask("GET", "/v1/ports", "");
    assert_eq!(serde_json::from_str::<Vec<PortStatus>>(&list).unwrap().len(), 160);
}

#[test]
fn connections_are_limited() {
    let bench = Bench::with(Limits { connections: 2, ..Limits::default() }, None);
    let (first, _second) = (bench.connect(), bench.connect());
    let (status, body) = bench.ask("GET", "/v1/ports", "");
    assert_eq!((status, message(&body)), (503, "too many connections".into()));
    drop(first);
    wait_for(|| bench.ask("GET", "/v1/ports", "").0 == 200);
}

#[test]
fn changes_of_ports_are_streamed() {
    let bench = Bench::with(Limits { watch: SHORT, ..Limits::default() }, None);
    let body = |port| format!("{{\"proto\":\"udp\",\"parentPort\":{port},\"childPort\":9}}");
    let add = |port| bench.ask("POST", "/v1/ports", &body(port));
    add(1);
    let mut watch = http::send(&bench.socket(), &Request::new("GET", "/v1/ports/watch")).unwrap();
    let mut next = || {
        let mut line = String::new();
        watch.body.read_line(&mut line).unwrap();
        let event: PortEvent = serde_json::from_str(&line).unwrap();
        (event.event, event.port.spec.fields().parent_port)
    };
    assert_eq!(next(), (PortChange::Added, 1));
    add(2);
    assert_eq!(next(), (PortChange::Added, 2));
    bench.ask("DELETE", "/v1/ports/1", "");
    assert_eq!(next(), (PortChange::Removed, 1));
    bench.publish("3:3");
    assert_eq!(next(), (PortChange::Added, 3));
}

#[test]
fn a_watcher_that_has_gone_is_noticed() {
    let bench = Bench::with(Limits { heartbeat: SHORT, connections: 1, ..Limits::default() }, None);
    let watch = http::send(&bench.socket(), &Request::new("GET", "/v1/ports/watch")).unwrap();
    drop(watch);
    wait_for(|| bench.ask("GET", "/v1/ports", "").0 == 200);
}

#[test]
fn a_watcher_that_does_not_read_is_given_up() {
    let limits = Limits { watch: SHORT, write: SHORT, heartbeat: SHORT, connections: 1, ..Limits::default() };
    let bench = Bench::with(limits, None);
    for port in 1..10_000 {
        bench.publish(&format!("[2001:db8::1]:{port}:[fd42:10:42::100]:9000"));
    }
    let _deaf = http::send(&bench.socket(), &Request::new("GET", "/v1/ports/watch")).unwrap();
    wait_for(|| bench.ask("GET", "/v1/health", "").0 == 200);
}

#[test]
fn the_file_of_a_capture_comes_with_the_request() {
    let bench = Bench::new();
    let path = std::env::temp_dir().join(format!("rootless-launch-api-{}.pcap", std::process::id()));
    let file = std::fs::File::create(&path).unwrap();
    let start = |file| http::send(&bench.socket(), &Request { file, ..Request::new("POST", "/v1/capture") });
    assert_eq!(start(None).unwrap().status, 400);
    let (_reader, writer) = std::io::pipe().unwrap();
    assert_eq!(start(Some(writer.as_fd())).unwrap().status, 400);
    assert_eq!(start(Some(file.as_fd())).unwrap().status, 201);
    assert_eq!(start(Some(file.as_fd())).unwrap().status, 409);
    assert_eq!(std::fs::read(&path).unwrap(), b"frames");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(bench.ask("DELETE", "/v1/capture", "").0, 200);
    assert_eq!(bench.ask("DELETE", "/v1/capture", "").0, 409);
}

#[test]
fn only_metrics_are_served_on_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let bench = Bench::with(Limits::default(), Some(listener));
    let ask = |target: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let metrics = ask("/metrics");
    assert_eq!(status(&metrics), "200");
    assert!(metrics.contains("\nrootless_launch_flows 3\n"), "{metrics}");
    assert_eq!(status(&ask("/v1/ports")), "404");
    assert_eq!(bench.ask("GET", "/metrics", "").0, 200);
}

#[test]
fn rules_and_names_are_changed() {
    let bench = Bench::new();
    let (status, body) = bench.ask("PUT", "/v1/policy", r#"{"rules":["deny tcp 10.0.0.0/8:22-22"]}"#);
    assert_eq!((status, body.as_str()), (200, r#"{"rules":["deny tcp 10.0.0.0/8:22"]}"#));
    let (_, body) = bench.ask("POST", "/v1/policy", r#"{"rules":["allow any"],"position":"first"}"#);
    assert_eq!(body, r#"{"rules":["allow any","deny tcp 10.0.0.0/8:22"]}"#);
    let change = r#"{"names":[{"name":"a.b","address":"::2"}]}"#;
    let (_, body) = bench.ask("PUT", "/v1/dns", change);
    assert_eq!(body, r#"{"servers":[],"followsHost":false,"names":[{"name":"a.b","address":"::2"}]}"#);
}

#[test]
fn a_server_that_is_dropped_lets_go_of_its_clients() {
    let mut bench = Bench::new();
    let mut idle = bench.connect();
    let mut watch = http::send(&bench.socket(), &Request::new("GET", "/v1/ports/watch")).unwrap();
    bench.stop();
    assert_eq!(idle.read(&mut [0]).unwrap_or(0), 0);
    assert_eq!(watch.body.read(&mut [0]).unwrap_or(0), 0);
    idle.shutdown(Shutdown::Both).unwrap();
    assert!(std::os::unix::net::UnixStream::connect(bench.socket()).is_err());
}
