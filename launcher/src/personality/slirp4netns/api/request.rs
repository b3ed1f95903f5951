//! Requests and replies of the API socket. Pure.
//!
//! # Theory of operation
//! A request is a JSON object with the string `execute` and, where the verb needs them, `arguments`; what follows the
//! object is ignored. A reply is `{"return":…}` or `{"error":{"desc":"bad request: …"}}` without a line feed; callers
//! look for the key `error`, for `return.id`, and some for the texts.
//!
//! Beyond the original: IPv6 addresses, the protocols `tcp4`, `tcp6`, `udp4` and `udp6`; `host_port` 0 lets the system
//! pick, and the reply then has `return.host_port`; `error.reason` says why a forward was refused. `list_hostfwd`
//! answers in the documented shape and in the one that the original really sends, both in one object.
//!
//! Stricter than the original: a missing `proto` is an error (it crashes there), and so are numbers that are no ports
//! and addresses that are no strings.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use forwarder::error::PortError;
use forwarder::spec::{Family, PortFields, PortSpec, PortStatus, Proto};
use serde::Serialize;
use serde_json::{Map, Value};
use thiserror::Error;

/// Most bytes of a request.
pub const MAX_REQUEST: usize = 4095;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// `add_hostfwd`.
    Add(PortSpec),
    /// `list_hostfwd`.
    List,
    /// `remove_hostfwd`.
    Remove(u64),
}

/// A request that cannot be followed, in the words that callers know.
#[derive(Debug, Error)]
pub enum ApiError {
    /// More than [`MAX_REQUEST`] bytes.
    #[error("too large message")]
    TooLarge,
    /// Not JSON.
    #[error("cannot parse JSON")]
    Json,
    /// JSON, but not an object.
    #[error("json_object() failed")]
    NotAnObject,
    /// `execute` is not there, or no string.
    #[error("no execute found")]
    NoExecute,
    /// A verb that is none.
    #[error("unknown execute")]
    UnknownExecute,
    /// An argument that is missing or wrong.
    #[error("{verb}: bad arguments.{argument}")]
    Argument {
        /// The verb.
        verb: &'static str,
        /// The argument.
        argument: &'static str,
    },
    /// The forward cannot be.
    #[error("add_hostfwd: slirp_add_hostfwd failed")]
    Add(#[source] Option<PortError>),
    /// The forward cannot be removed.
    #[error("remove_hostfwd: slirp_remove_hostfwd failed")]
    Remove(#[source] PortError),
}

impl Request {
    /// Reads a request; forwards go to `child` if it names nobody.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn parse(bytes: &[u8], child: Ipv4Addr) -> Result<Self, ApiError> {
        if bytes.len() > MAX_REQUEST {
            return Err(ApiError::TooLarge);
        }
        let value = serde_json::Deserializer::from_slice(bytes).into_iter::<Value>().next();
        let Some(Ok(value)) = value else { return Err(ApiError::Json) };
        let Value::Object(request) = value else { return Err(ApiError::NotAnObject) };
        let verb = request.get("execute").and_then(Value::as_str).ok_or(ApiError::NoExecute)?;
        let none = Map::new();
        let arguments = request.get("arguments").and_then(Value::as_object).unwrap_or(&none);
        match verb {
            "add_hostfwd" => add(arguments, child)
                .map(Request::Add)
                .map_err(|argument| ApiError::Argument { verb: "add_hostfwd", argument }),
            "list_hostfwd" => Ok(Request::List),
            "remove_hostfwd" => arguments
                .get("id")
                .and_then(whole_number)
                .map(Request::Remove)
                .ok_or(ApiError::Argument { verb: "remove_hostfwd", argument: "id" }),
            _ => Err(ApiError::UnknownExecute),
        }
    }
}

/// The forward; else the name of the argument that is wrong.
fn add(arguments: &Map<String, Value>, child: Ipv4Addr) -> Result<PortSpec, &'static str> {
    let text = |name: &'static str| match arguments.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
        Some(_) => Err(name),
    };
    let address = |name| {
        let text = text(name)?;
        text.map(|text| text.parse::<IpAddr>().map_err(|_| name)).transpose()
    };
    let port = |name| {
        let number = arguments.get(name).and_then(whole_number);
        number.and_then(|number| u16::try_from(number).ok()).ok_or(name)
    };
    let proto: Proto = text("proto")?.and_then(|name| name.parse().ok()).ok_or("proto")?;
    let everywhere = match proto.family() {
        Some(Family::V6) => Ipv6Addr::UNSPECIFIED.into(),
        Some(Family::V4) | None => Ipv4Addr::UNSPECIFIED.into(),
    };
    let host = address("host_addr")?.unwrap_or(everywhere);
    let host_port = port("host_port")?;
    let guest = address("guest_addr")?.filter(|guest| !guest.is_unspecified()).unwrap_or(child.into());
    let guest_port = port("guest_port")?;
    let fields = PortFields {
        parent_ip: Some(host),
        child_ip: Some(guest),
        ..PortFields::new(proto, host_port, guest_port)
    };
    if proto.family().is_some_and(|family| family != Family::of(host)) {
        return Err("host_addr");
    }
    // What else can be wrong with such a forward is the child's side.
    PortSpec::try_from(fields).map_err(|_| if guest_port == 0 { "guest_port" } else { "guest_addr" })
}

/// JSON knows no integers: 80.0 is 80.
fn whole_number(value: &Value) -> Option<u64> {
    let whole = |number: f64| number.fract() == 0.0 && (0.0..=MAX_EXACT).contains(&number);
    value.as_u64().or_else(|| value.as_f64().filter(|&number| whole(number)).map(|number| number as u64))
}

/// Up to here every whole number has a floating-point number of its own.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// The outcome of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// This forward is there now; the port is told if it was the system's choice.
    Added {
        /// Its number.
        id: u64,
        /// The host's port, if it was left open.
        host_port: Option<u16>,
    },
    /// All forwards.
    Listed(Vec<PortStatus>),
    /// It is gone.
    Removed,
}

impl Done {
    /// As it is sent.
    pub fn to_json(&self) -> String {
        match self {
            Done::Added { id, host_port } => {
                json(&Reply { r#return: Added { id: *id, host_port: *host_port } })
            }
            Done::Listed(forwards) => {
                let entries: Vec<Entry<'_>> = forwards.iter().map(Entry::from).collect();
                json(&List { r#return: Entries { entries: &entries }, entries: &entries })
            }
            Done::Removed => json(&Reply { r#return: Map::new() }),
        }
    }
}

impl ApiError {
    /// As it is sent.
    pub fn to_json(&self) -> String {
        let causes = std::iter::successors(std::error::Error::source(self), |cause| cause.source());
        let reason = causes.map(ToString::to_string).reduce(|text, cause| format!("{text}: {cause}"));
        json(&Failed { error: Description { desc: format!("bad request: {self}"), reason } })
    }
}

fn json(reply: &impl Serialize) -> String {
    serde_json::to_string(reply).expect("texts and numbers under text keys")
}

#[derive(Serialize)]
struct Reply<T> {
    r#return: T,
}

#[derive(Serialize)]
struct Added {
    id: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_port: Option<u16>,
}

#[derive(Serialize)]
struct List<'a> {
    r#return: Entries<'a>,
    entries: &'a [Entry<'a>],
}

#[derive(Serialize)]
struct Entries<'a> {
    entries: &'a [Entry<'a>],
}

#[derive(Serialize)]
struct Entry<'a> {
    id: u64,
    proto: &'a str,
    host_addr: Option<IpAddr>,
    host_port: u16,
    guest_addr: Option<IpAddr>,
    guest_port: u16,
}

impl From<&PortStatus> for Entry<'_> {
    fn from(status: &PortStatus) -> Self {
        let fields = status.spec.fields();
        Entry {
            id: status.id,
            proto: fields.proto.name(),
            host_addr: fields.parent_ip,
            host_port: fields.parent_port,
            guest_addr: fields.child_ip,
            guest_port: fields.child_port,
        }
    }
}

#[derive(Serialize)]
struct Failed {
    error: Description,
}

#[derive(Serialize)]
struct Description {
    desc: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHILD: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);

    fn fault(request: &str) -> String {
        Request::parse(request.as_bytes(), CHILD).unwrap_err().to_string()
    }

    fn add(arguments: &str) -> Result<PortSpec, String> {
        let request = format!(r#"{{"execute":"add_hostfwd","arguments":{{{arguments}}}}}"#);
        match Request::parse(request.as_bytes(), CHILD) {
            Ok(Request::Add(spec)) => Ok(spec),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn faults_have_the_texts_that_callers_know() {
        for text in ["", "x", "{", "{]", " "] {
            assert_eq!(fault(text), "cannot parse JSON", "{text:?}");
        }
        for text in ["[]", "\"a\"", "1 ", "null "] {
            assert_eq!(fault(text), "json_object() failed", "{text:?}");
        }
        assert_eq!(fault("{}"), "no execute found");
        assert_eq!(fault(r#"{"execute":1}"#), "no execute found");
        assert_eq!(fault(r#"{"execute":"foo"}"#), "unknown execute");
        assert_eq!(fault(r#"{"execute":"remove_hostfwd"}"#), "remove_hostfwd: bad arguments.id");
        let text_id = r#"{"execute":"remove_hostfwd","arguments":{"id":"1"}}"#;
        assert_eq!(fault(text_id), "remove_hostfwd: bad arguments.id");
        let list = r#"{"execute":"list_hostfwd"}"#;
        let padded = |length| format!("{list:length$}");
        assert_eq!(Request::parse(padded(4095).as_bytes(), CHILD).unwrap(), Request::List);
        assert_eq!(fault(&padded(4096)), "too large message");
    }

    #[test]
    fn what_follows_the_object_is_ignored() {
        for tail in ["\n", "\0\0", "{}", " trailing"] {
            let text = format!(r#"{{"execute":"list_hostfwd"}}{tail}"#);
            assert_eq!(Request::parse(text.as_bytes(), CHILD).unwrap(), Request::List, "{tail:?}");
        }
    }

    #[test]
    fn the_first_wrong_argument_is_named() {
        for (arguments, wrong) in [
            ("", "proto"),
            (r#""proto":"sctp""#, "proto"),
            (r#""proto":"TCP","host_port":1,"guest_port":1"#, "proto"),
            (r#""proto":1,"host_port":1,"guest_port":1"#, "proto"),
            (r#""proto":"tcp""#, "host_port"),
            (r#""proto":"tcp","host_addr":"zz""#, "host_addr"),
            (r#""proto":"tcp","host_addr":7,"host_port":1,"guest_port":1"#, "host_addr"),
            (r#""proto":"tcp6","host_addr":"0.0.0.0","host_port":1,"guest_port":1"#, "host_addr"),
            (r#""proto":"tcp","host_port":"80","guest_port":1"#, "host_port"),
            (r#""proto":"tcp","host_port":70000,"guest_port":1"#, "host_port"),
            (r#""proto":"tcp","host_port":-1,"guest_port":1"#, "host_port"),
            (r#""proto":"tcp","host_port":80.5,"guest_port":1"#, "host_port"),
            (r#""proto":"tcp","host_port":80"#, "guest_port"),
            (r#""proto":"tcp","host_port":80,"guest_port":0"#, "guest_port"),
            (r#""proto":"tcp","host_port":80,"guest_port":"80""#, "guest_port"),
            (r#""proto":"tcp","host_port":80,"guest_addr":"zz","guest_port":80"#, "guest_addr"),
            (r#""proto":"tcp","host_port":80,"guest_addr":"224.0.0.1","guest_port":80"#, "guest_addr"),
        ] {
            assert_eq!(
                add(arguments).unwrap_err(),
                format!("add_hostfwd: bad arguments.{wrong}"),
                "{arguments}"
            );
        }
    }

    #[test]
    fn nobody_named_is_everybody_on_the_host_and_the_child() {
        for addresses in
            ["", r#""host_addr":"","guest_addr":"","#, r#""host_addr":null,"guest_addr":"0.0.0.0","#]
        {
            let spec =
                add(&format!(r#""proto":"tcp",{addresses}"host_port":8080.0,"guest_port":80"#)).unwrap();
            assert_eq!(spec, "0.0.0.0:8080:10.0.2.100:80/tcp".parse().unwrap(), "{addresses}");
        }
        let spec = add(r#""proto":"udp6","host_port":0,"guest_addr":"fd00::7","guest_port":53"#).unwrap();
        assert_eq!(spec, "[::]:0:[fd00::7]:53/udp6".parse().unwrap());
    }

    #[test]
    fn replies_are_those_of_the_original() {
        assert_eq!(Done::Added { id: 7, host_port: None }.to_json(), r#"{"return":{"id":7}}"#);
        assert_eq!(
            Done::Added { id: 7, host_port: Some(40_000) }.to_json(),
            r#"{"return":{"id":7,"host_port":40000}}"#
        );
        assert_eq!(Done::Removed.to_json(), r#"{"return":{}}"#);
        assert_eq!(Done::Listed(Vec::new()).to_json(), r#"{"return":{"entries":[]},"entries":[]}"#);
        let spec = "127.0.0.1:8080:10.0.2.100:80/tcp".parse().unwrap();
        let entry = concat!(
            r#"[{"id":2,"proto":"tcp","host_addr":"127.0.0.1","host_port":8080,"#,
            r#""guest_addr":"10.0.2.100","guest_port":80}]"#
        );
        assert_eq!(
            Done::Listed(vec![PortStatus { id: 2, spec, origin: Default::default() }]).to_json(),
            format!(r#"{{"return":{{"entries":{entry}}},"entries":{entry}}}"#)
        );
    }

    #[test]
    fn errors_say_why_where_the_original_is_silent() {
        assert_eq!(
            ApiError::UnknownExecute.to_json(),
            r#"{"error":{"desc":"bad request: unknown execute"}}"#
        );
        assert_eq!(
            ApiError::Remove(PortError::NotFound { id: 9 }).to_json(),
            concat!(
                r#"{"error":{"desc":"bad request: remove_hostfwd: slirp_remove_hostfwd failed","#,
                r#""reason":"no forward has ID 9"}}"#
            )
        );
    }
}
