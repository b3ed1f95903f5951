//! Messages of CRI as bytes (protobuf encoding, k8s.io/cri-api/pkg/apis/runtime/v1/api.proto).

use std::time::Duration;

/// Lists containers.
pub const LIST: &str = "/runtime.v1.RuntimeService/ListContainers";
/// Ends one.
pub const STOP: &str = "/runtime.v1.RuntimeService/StopContainer";

/// A container, as far as it concerns its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// The runtime's name of it.
    pub id: String,
    /// For people: namespace and name of the pod, and name of the container.
    pub name: String,
    /// What its pod wants it to have between SIGTERM and SIGKILL (terminationGracePeriodSeconds).
    pub grace: Option<Duration>,
}

/// A `ListContainersRequest` for those that run.
pub fn list_running() -> Vec<u8> {
    // ContainerFilter { state: ContainerStateValue { state: CONTAINER_RUNNING } }
    field(1, &field(2, &[number_key(1), 1]))
}

/// A `StopContainerRequest`: SIGTERM, or what the image names, and SIGKILL after whole seconds.
pub fn stop(id: &str, grace: Duration) -> Vec<u8> {
    let mut request = field(1, id.as_bytes());
    request.push(number_key(2));
    varint(&mut request, grace.as_secs());
    request
}

/// Reads a `ListContainersResponse`. `None` if it is none.
pub fn containers(answer: &[u8]) -> Option<Vec<Container>> {
    let mut containers = Vec::new();
    for_each(answer, |number, value| {
        if let (1, Value::Bytes(bytes)) = (number, value) {
            containers.push(container(bytes)?);
        }
        Some(())
    })?;
    Some(containers)
}

fn container(bytes: &[u8]) -> Option<Container> {
    let mut found = Container::default();
    let (mut namespace, mut pod, mut name) = ("", "", "");
    for_each(bytes, |number, value| {
        match (number, value) {
            (1, Value::Bytes(id)) => found.id = std::str::from_utf8(id).ok()?.to_owned(),
            // Labels and annotations, which kubelet has given it.
            (8 | 9, Value::Bytes(pair)) => match entry(pair)? {
                ("io.kubernetes.pod.namespace", text) => namespace = text,
                ("io.kubernetes.pod.name", text) => pod = text,
                ("io.kubernetes.container.name", text) => name = text,
                ("io.kubernetes.pod.terminationGracePeriod", text) => {
                    found.grace = text.parse().ok().map(Duration::from_secs);
                }
                _ => {}
            },
            _ => {}
        }
        Some(())
    })?;
    found.name = match pod {
        "" => found.id.clone(),
        _ => format!("{namespace}/{pod}/{name}"),
    };
    Some(found)
}

/// Of a map of strings.
fn entry(pair: &[u8]) -> Option<(&str, &str)> {
    let (mut key, mut text) = ("", "");
    for_each(pair, |number, value| {
        match (number, value) {
            (1, Value::Bytes(bytes)) => key = std::str::from_utf8(bytes).ok()?,
            (2, Value::Bytes(bytes)) => text = std::str::from_utf8(bytes).ok()?,
            _ => {}
        }
        Some(())
    })?;
    Some((key, text))
}

/// The value of a field.
#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    Bytes(&'a [u8]),
    /// Something that none of our fields is.
    Other,
}

/// Calls `take` with the number and value of each field. `None` if it is no message, or `take` says so.
fn for_each<'a>(mut bytes: &'a [u8], mut take: impl FnMut(u64, Value<'a>) -> Option<()>) -> Option<()> {
    while !bytes.is_empty() {
        let key = read_varint(&mut bytes)?;
        let length = match key & 7 {
            0 => {
                read_varint(&mut bytes)?;
                take(key >> 3, Value::Other)?;
                continue;
            }
            1 => 8,
            LENGTH => usize::try_from(read_varint(&mut bytes)?).ok()?,
            5 => 4,
            _ => return None,
        };
        let (value, rest) = bytes.split_at_checked(length)?;
        bytes = rest;
        take(key >> 3, if key & 7 == LENGTH { Value::Bytes(value) } else { Value::Other })?;
    }
    Some(())
}

/// Wire type of what begins with its length.
const LENGTH: u64 = 2;

fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// The key of a number. Numbers of our fields are below 16, so that a key is one byte.
fn number_key(number: u8) -> u8 {
    number << 3
}

/// A field that begins with its length.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    varint(&mut bytes, value.len() as u64);
    bytes.extend_from_slice(value);
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair(number: u8, key: &str, text: &str) -> Vec<u8> {
        field(number, &[field(1, key.as_bytes()), field(2, text.as_bytes())].concat())
    }

    #[test]
    fn requests_are_as_protoc_writes_them() {
        assert_eq!(list_running(), b"\x0a\x04\x12\x02\x08\x01");
        assert_eq!(stop("abc", Duration::from_secs(300)), b"\x0a\x03abc\x10\xac\x02");
        assert_eq!(stop("", Duration::ZERO), b"\x0a\x00\x10\x00");
    }

    #[test]
    fn containers_are_read() {
        let web = [
            field(1, b"4711"),
            field(2, b"sandbox"),
            // State and time of creation.
            vec![number_key(6), 1, number_key(7), 0xff, 0xff, 0x03],
            pair(8, "io.kubernetes.pod.namespace", "default"),
            pair(8, "io.kubernetes.pod.name", "web-node"),
            pair(8, "io.kubernetes.container.name", "web"),
            pair(9, "io.kubernetes.pod.terminationGracePeriod", "7"),
        ]
        .concat();
        let answer = [field(1, &web), field(1, &field(1, b"foreign"))].concat();
        let [web, foreign] = &containers(&answer).unwrap()[..] else { panic!("two") };
        let expected = Container {
            id: "4711".into(),
            name: "default/web-node/web".into(),
            grace: Some(Duration::from_secs(7)),
        };
        assert_eq!(*web, expected);
        assert_eq!((foreign.name.as_str(), foreign.grace), ("foreign", None));
        assert_eq!(containers(b""), Some(Vec::new()));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bytes in [
            &b"\x0a\x05abc"[..],
            b"\x0b",
            b"\x0a",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x0a\x02\x0a\x09",
        ] {
            assert_eq!(containers(bytes), None, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = containers(&bytes);
        }
    }
}
