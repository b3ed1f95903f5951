//! `openapi.yaml` and the server say the same.

use std::collections::BTreeSet;
use std::os::fd::AsFd;

use launcher::api::routes::Route;
use launcher::client::http::{self, Request};
use serde_json::{Map, Value, json};

use crate::support::{Bench, full_flow, full_statistics, wait_for};

fn document() -> Value {
    let text = include_str!("../../src/api/openapi.yaml");
    let lines: Vec<Line<'_>> = text.lines().filter_map(Line::of).collect();
    let (document, rest) = block(&lines, 0);
    assert!(rest.is_empty(), "not understood: {}", rest[0].text);
    document
}

/// A line of the part of YAML that the file keeps to: blocks, and scalars or lists of scalars at the end of a line.
#[derive(Clone, Copy)]
struct Line<'a> {
    indent: usize,
    text: &'a str,
}

impl<'a> Line<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let text = line.trim();
        let indent = line.len() - line.trim_start().len();
        (!text.is_empty() && !text.starts_with('#')).then_some(Line { indent, text })
    }
}

/// The block of lines at `indent`, and what follows it.
fn block<'l, 'a>(lines: &'l [Line<'a>], indent: usize) -> (Value, &'l [Line<'a>]) {
    let Some(first) = lines.first() else { return (Value::Null, lines) };
    let (mut list, mut map, mut rest) = (Vec::new(), Map::new(), lines);
    if first.text.starts_with("- ") {
        while let Some((line, following)) = rest.split_first().filter(|(line, _)| line.indent == indent) {
            let inner = following.iter().take_while(|line| line.indent > indent).count();
            // What follows the dash is a block of its own, two columns further in.
            let mut item = vec![Line { indent: indent + 2, text: &line.text[2..] }];
            item.extend_from_slice(&following[..inner]);
            list.push(block(&item, indent + 2).0);
            rest = &following[inner..];
        }
        return (Value::Array(list), rest);
    }
    while let Some((line, following)) = rest.split_first().filter(|(line, _)| line.indent == indent) {
        let (key, value) = line.text.split_once(':').unwrap_or_else(|| panic!("no key: {}", line.text));
        let (value, following) = match value.trim() {
            "" => block(following, following.first().map_or(0, |line| line.indent)),
            value => (scalar(value), following),
        };
        assert!(map.insert(key.trim_matches('"').to_owned(), value).is_none(), "twice: {key}");
        rest = following;
    }
    (Value::Object(map), rest)
}

fn scalar(text: &str) -> Value {
    if let Some(list) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        return list.split(',').map(|item| scalar(item.trim())).collect();
    }
    match text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        Some(quoted) => quoted.into(),
        None => text
            .parse::<i64>()
            .map(Value::from)
            .or_else(|_| text.parse::<bool>().map(Value::from))
            .unwrap_or(text.into()),
    }
}

/// What a `$ref` leads to, or the value itself.
fn resolve<'d>(document: &'d Value, value: &'d Value) -> &'d Value {
    match value["$ref"].as_str() {
        Some(path) => document.pointer(path.trim_start_matches('#')).unwrap_or_else(|| panic!("no {path}")),
        None => value,
    }
}

/// Compares a value with its schema: no field too many, none that is required missing, types right.
fn check(document: &Value, schema: &Value, value: &Value, place: &str) {
    let schema = resolve(document, schema);
    if let Some(allowed) = schema["enum"].as_array() {
        assert!(allowed.contains(value), "{place}: {value} is not one of {allowed:?}");
    }
    match schema["type"].as_str() {
        Some("object") => {
            let fields = value.as_object().unwrap_or_else(|| panic!("{place}: {value}"));
            for required in schema["required"].as_array().into_iter().flatten() {
                assert!(fields.contains_key(required.as_str().unwrap()), "{place} lacks {required}");
            }
            for (name, value) in fields {
                let known = &schema["properties"][name];
                assert!(!known.is_null(), "{place}.{name} is not described");
                check(document, known, value, &format!("{place}.{name}"));
            }
        }
        Some("array") => {
            for value in value.as_array().unwrap_or_else(|| panic!("{place}: {value}")) {
                check(document, &schema["items"], value, place);
            }
        }
        Some("string") => assert!(value.is_string(), "{place}: {value}"),
        Some("integer") => assert!(value.is_u64(), "{place}: {value}"),
        Some("boolean") => assert!(value.is_boolean(), "{place}: {value}"),
        other => panic!("{place}: type {other:?}"),
    }
}

/// Asks, and compares status and body with the description.
fn ask(document: &Value, bench: &Bench, route: &Route, target: &str, request: Request<'_>) {
    let response = http::send(&bench.socket(), &request).unwrap();
    let place = format!("{} {target}", route.method);
    assert_eq!(response.status, route.success, "{place}");
    let operation = &document["paths"][route.path][route.method.to_lowercase()];
    let described = &operation["responses"][response.status.to_string()];
    assert!(!described.is_null(), "{place} is not described");
    if route.path.ends_with("/watch") {
        return;
    }
    let body = response.read().unwrap();
    match described["content"]["application/json"].as_object() {
        Some(content) => {
            let body: Value = serde_json::from_slice(&body).unwrap();
            check(document, &content["schema"], &body, &place);
        }
        None if route.path == Route::METRICS => assert!(body.ends_with(b"# EOF\n")),
        None => assert!(body.is_empty(), "{place}"),
    }
}

#[test]
fn paths_verbs_and_statuses_are_the_servers() {
    let document = document();
    let described: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, verbs)| {
            verbs.as_object().unwrap().keys().map(move |verb| (path.clone(), verb.to_uppercase()))
        })
        .collect();
    let served = Route::ALL.iter().map(|route| (route.path.to_owned(), route.method.to_owned())).collect();
    assert_eq!(described, served);
    for route in Route::ALL {
        let operation = &document["paths"][route.path][route.method.to_lowercase()];
        let statuses: Vec<&String> = operation["responses"].as_object().unwrap().keys().collect();
        let success = route.success.to_string();
        assert_eq!(statuses.first(), Some(&&success), "{} {}", route.method, route.path);
        assert_eq!(
            !operation["requestBody"].is_null(),
            route.takes_body(),
            "{} {}",
            route.method,
            route.path
        );
    }
    assert_eq!(document["info"]["version"], launcher::api::VERSION);
}

#[test]
fn answers_are_as_described() {
    let (document, bench) = (document(), Bench::new());
    let path = std::env::temp_dir().join(format!("rootless-launch-openapi-{}.pcap", std::process::id()));
    let file = std::fs::File::create(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let spec = json!({"proto": "udp", "parentIP": "::1", "parentPort": 8000, "parentPortEnd": 8010,
        "childIP": "fd42::1", "childPort": 9000, "source": "gateway"});
    for route in Route::ALL {
        let target = route.path.replace("{id}", "1");
        let body = match (route.method, route.path) {
            ("POST", "/v1/ports") => spec.to_string(),
            (_, "/v1/policy") => json!({"rules": ["deny any:25"]}).to_string(),
            (_, "/v1/overlay") => json!({"peers": ["192.0.2.0/24"]}).to_string(),
            (_, "/v1/dns") => {
                json!({"servers": ["9.9.9.9:53"], "names": [{"name": "a.b", "address": "::1"}]}).to_string()
            }
            _ => String::new(),
        };
        let body = if route.takes_body() { body.as_bytes() } else { &[] };
        let file = (route.path == "/v1/capture").then_some(file.as_fd());
        let request = Request { method: route.method, target: &target, body, file };
        std::thread::scope(|scope| {
            if route.path == "/v1/flows" {
                scope.spawn(|| {
                    wait_for(|| !bench.fake.waiting.lock().unwrap().is_empty());
                    bench.fake.waiting.lock().unwrap().pop().unwrap().send(Ok(full_flow()));
                });
            }
            ask(&document, &bench, route, &target, request);
        });
    }
}

#[test]
fn every_field_is_described() {
    let document = document();
    let schema = |name: &str| document["components"]["schemas"][name].clone();
    check(&document, &schema("Statistics"), &serde_json::to_value(full_statistics()).unwrap(), "Statistics");
    check(&document, &schema("FlowList"), &serde_json::to_value(full_flow()).unwrap(), "FlowList");
    let (_, body) = Bench::new().ask("GET", "/v1/nothing", "");
    check(&document, &schema("Error"), &serde_json::from_str(&body).unwrap(), "Error");
}
