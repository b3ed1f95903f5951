//! What is supervised: units, and the plan of a node they belong to.
//!
//! A [`NodePlan`] is what `--dry-run` shows of a node's inside and, word for word, what `node-supervisor` does. It
//! travels as JSON. [`Units`] is the checked form: names are unique, every dependency exists, nothing waits for
//! itself.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Everything that happens inside a node.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodePlan {
    /// Made first, in this order.
    pub directories: Vec<PlannedDirectory>,
    /// Written next; one that is there already is replaced.
    pub files: Vec<PlannedFile>,
    /// What runs. Order does not matter, [`Unit::after`] does.
    pub units: Vec<Unit>,
    /// Where `UNIT.log` files go; made if it is missing. One supervisor at a time has it.
    pub log_dir: PathBuf,
    /// The control socket (mode 0600).
    pub control: PathBuf,
    /// Whether lines also go to the journal.
    #[serde(default)]
    pub journal: Journal,
    /// What others wrote of what runs here, for those who ask.
    #[serde(default)]
    pub programs: Vec<PlannedProgram>,
}

/// A program of somebody else's that a node uses.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlannedProgram {
    /// What it is called.
    pub name: String,
    /// Its version, as it told when the node was planned; absent if it knows none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Where.
    pub file: PathBuf,
}

/// A directory to be made, with those above it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlannedDirectory {
    /// Where.
    pub path: PathBuf,
    /// Its permission bits, such as 0o755; also if it was there. Those above it get 0o755 if they are made.
    pub mode: u32,
}

/// A file to be written.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlannedFile {
    /// Where.
    pub path: PathBuf,
    /// Its permission bits, such as 0o600.
    pub mode: u32,
    /// What is in it.
    pub text: String,
}

/// Whether lines of units go to systemd's journal besides their files.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Journal {
    /// No.
    #[default]
    Off,
    /// Where there is one; for nodes that systemd starts.
    On,
}

/// One program that is kept running, or run once.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Unit {
    /// 1 to 64 letters, digits, `-`, `_` and `.`, the first a letter or digit; also the name of its log.
    pub name: String,
    /// Program and arguments. A program without `/` is looked for in `PATH`.
    pub argv: Vec<String>,
    /// Added to the supervisor's environment. `NOTIFY_SOCKET` is the supervisor's to set.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Units that have to be ready before this one is started, and that are stopped after it.
    #[serde(default)]
    pub after: Vec<String>,
    /// When it counts as ready.
    pub ready: Readiness,
    /// Longest time from its start until it is ready; more than 0.
    #[serde(rename = "startTimeoutMs", with = "milliseconds")]
    pub start_timeout: Duration,
    /// Longest time from SIGTERM to SIGKILL; of one that is run at the stop, from its start.
    #[serde(rename = "stopTimeoutMs", with = "milliseconds")]
    pub stop_timeout: Duration,
    /// What happens when it ends by itself.
    pub restart: Restart,
}

/// When a unit is ready.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(tag = "when", rename_all = "camelCase", deny_unknown_fields)]
pub enum Readiness {
    /// As soon as it runs.
    Started,
    /// When it has ended with status 0: it does one thing.
    Exited,
    /// At once: it is not run before it is its turn to be stopped, and then to its end, within [`Unit::stop_timeout`].
    AtStop,
    /// When it says `READY=1` (sd_notify(3)).
    Notify,
    /// When somebody accepts connections there.
    UnixSocket {
        /// The socket.
        path: PathBuf,
    },
    /// When a GET is answered with a status from 200 to 399.
    Http {
        /// Whom to ask.
        address: SocketAddr,
        /// For what; begins with `/`.
        path: String,
    },
    /// When this file is there; one that an earlier run has left counts too.
    File {
        /// The file.
        path: PathBuf,
    },
}

impl fmt::Display for Readiness {
    /// To follow "until".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Readiness::Started => f.write_str("it runs"),
            Readiness::Exited => f.write_str("it has ended"),
            Readiness::AtStop => f.write_str("the node stops; it is run then"),
            Readiness::Notify => f.write_str("it says READY=1"),
            Readiness::UnixSocket { path } => write!(f, "{} accepts connections", path.display()),
            Readiness::Http { address, path } => write!(f, "http://{address}{path} answers"),
            Readiness::File { path } => write!(f, "{} is there", path.display()),
        }
    }
}

/// Whether a unit that ended is started again.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Restart {
    /// However it ended.
    Always,
    /// Unless it exited with status 0.
    OnFailure,
    /// No.
    Never,
}

/// What is wrong with a unit; whoever wrote the plan has to act.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnitError {
    /// See [`Unit::name`].
    #[error("unit name {0:?}: 1 to 64 letters, digits, - _ and . are allowed, the first a letter or digit")]
    Name(String),
    /// Two units of one name.
    #[error("there are two units named {0}")]
    Twice(String),
    /// More than [`MAX_UNITS`].
    #[error("{0} units are more than {MAX_UNITS}")]
    TooMany(usize),
    /// There is nothing to run.
    #[error("unit {unit}: argv is empty; its first word is the program")]
    NoProgram {
        /// The unit.
        unit: String,
    },
    /// A word that exec(3) cannot pass.
    #[error("unit {unit}: {word:?} of argv or env holds a NUL byte, or = in a variable's name, or no name")]
    Word {
        /// The unit.
        unit: String,
        /// The word, or the variable's name.
        word: String,
    },
    /// A time-out of nothing.
    #[error("unit {unit}: its start time-out is 0; give it some time")]
    NoTime {
        /// The unit.
        unit: String,
    },
    /// A request line cannot hold this.
    #[error(
        "unit {unit}: HTTP path {path:?} has to begin with / and hold neither blanks nor control characters"
    )]
    HttpPath {
        /// The unit.
        unit: String,
        /// The path.
        path: String,
    },
    /// What ends when it is ready would be run for ever.
    #[error(
        "unit {unit}: it is ready when it has ended, so restart cannot be always; use onFailure or never"
    )]
    EndlessOneShot {
        /// The unit.
        unit: String,
    },
    /// A dependency that does not exist.
    #[error("unit {unit}: it comes after {after}, and there is no such unit")]
    NoSuchUnit {
        /// The unit.
        unit: String,
        /// What it waits for.
        after: String,
    },
    /// Units that wait for each other.
    #[error("units wait for each other: {}", .0.join(" after "))]
    Cycle(Vec<String>),
}

/// Most units of a node; their pipes and sockets fit the usual limit of descriptors.
pub const MAX_UNITS: usize = 128;

/// A unit of one [`Units`], by its place there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnitId(usize);

impl UnitId {
    /// Its place, from 0.
    pub fn index(self) -> usize {
        self.0
    }
}

/// Checked units, each after those it waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Units {
    units: Vec<Unit>,
    /// Of each unit, those in its `after`.
    after: Vec<Vec<UnitId>>,
    /// Of each unit, those that have it in their `after`.
    before: Vec<Vec<UnitId>>,
}

impl Units {
    /// Checks units and puts them in an order of starting; among equals the given one.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn new(units: Vec<Unit>) -> Result<Self, UnitError> {
        if units.len() > MAX_UNITS {
            return Err(UnitError::TooMany(units.len()));
        }
        units.iter().try_for_each(check)?;
        let units = ordered(units)?;
        let places: BTreeMap<&str, UnitId> =
            units.iter().enumerate().map(|(place, unit)| (unit.name.as_str(), UnitId(place))).collect();
        let known = |unit: &Unit| {
            let mut ids: Vec<UnitId> =
                unit.after.iter().filter_map(|name| places.get(name.as_str()).copied()).collect();
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        let after: Vec<Vec<UnitId>> = units.iter().map(known).collect();
        let waiting_for = |id: UnitId| {
            let waits = after.iter().enumerate().filter(move |(_, ids)| ids.contains(&id));
            waits.map(|(place, _)| UnitId(place)).collect()
        };
        let before = (0..units.len()).map(|place| waiting_for(UnitId(place))).collect();
        Ok(Units { units, after, before })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.units.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// All, in an order in which they can be started one after the other.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (UnitId, &Unit)> {
        self.units.iter().enumerate().map(|(place, unit)| (UnitId(place), unit))
    }

    /// The ids of all, in the same order.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = UnitId> + use<> {
        (0..self.units.len()).map(UnitId)
    }

    /// The unit of this name.
    pub fn find(&self, name: &str) -> Option<UnitId> {
        self.units.iter().position(|unit| unit.name == name).map(UnitId)
    }

    /// A unit, unless the id is of other units.
    pub fn get(&self, id: UnitId) -> Option<&Unit> {
        self.units.get(id.0)
    }

    /// Those that `id` waits for.
    pub fn after(&self, id: UnitId) -> &[UnitId] {
        self.after.get(id.0).map_or(&[], Vec::as_slice)
    }

    /// Those that wait for `id`.
    pub fn before(&self, id: UnitId) -> &[UnitId] {
        self.before.get(id.0).map_or(&[], Vec::as_slice)
    }
}

fn check(unit: &Unit) -> Result<(), UnitError> {
    if !is_name(&unit.name) {
        return Err(UnitError::Name(unit.name.clone()));
    }
    let named = || unit.name.clone();
    if unit.argv.first().is_none_or(String::is_empty) {
        return Err(UnitError::NoProgram { unit: named() });
    }
    let bad_name = |name: &str| name.is_empty() || name.contains(['=', '\0']);
    let mut words = unit.argv.iter().chain(unit.env.iter().map(|(_, value)| value));
    let bad_word = words.find(|word| word.contains('\0'));
    let bad_variable = unit.env.iter().map(|(name, _)| name).find(|name| bad_name(name));
    if let Some(word) = bad_word.or(bad_variable) {
        return Err(UnitError::Word { unit: named(), word: word.clone() });
    }
    if unit.start_timeout.is_zero() {
        return Err(UnitError::NoTime { unit: named() });
    }
    if let Readiness::Http { path, .. } = &unit.ready
        && (!path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()))
    {
        return Err(UnitError::HttpPath { unit: named(), path: path.clone() });
    }
    if unit.ready == Readiness::Exited && unit.restart == Restart::Always {
        return Err(UnitError::EndlessOneShot { unit: named() });
    }
    Ok(())
}

/// Whether a unit may have this name, see [`Unit::name`].
pub fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=64).contains(&name.len())
        && name.bytes().all(fits)
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
}

/// Takes, again and again, the first unit whose dependencies are taken.
fn ordered(units: Vec<Unit>) -> Result<Vec<Unit>, UnitError> {
    for (place, unit) in units.iter().enumerate() {
        if units.iter().take(place).any(|other| other.name == unit.name) {
            return Err(UnitError::Twice(unit.name.clone()));
        }
        if let Some(after) = unit.after.iter().find(|&name| units.iter().all(|other| other.name != *name)) {
            return Err(UnitError::NoSuchUnit { unit: unit.name.clone(), after: after.clone() });
        }
    }
    let mut left = units;
    let mut taken: Vec<Unit> = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let free = |unit: &Unit| unit.after.iter().all(|name| taken.iter().any(|other| other.name == *name));
        let Some(place) = left.iter().position(free) else { return Err(UnitError::Cycle(cycle(&left))) };
        taken.push(left.remove(place));
    }
    Ok(taken)
}

/// Units that wait for each other, the first one again at the end. Each of `left` waits for another one of `left`.
fn cycle(left: &[Unit]) -> Vec<String> {
    let mut path: Vec<String> = left.first().map(|unit| unit.name.clone()).into_iter().collect();
    while let Some(unit) = path.last().and_then(|last| left.iter().find(|unit| unit.name == *last)) {
        let among_left = |name: &&String| left.iter().any(|other| other.name == **name);
        let Some(next) = unit.after.iter().find(among_left) else { break };
        let seen = path.iter().position(|name| name == next);
        path.push(next.clone());
        if let Some(seen) = seen {
            return path.split_off(seen);
        }
    }
    path
}

/// Durations as whole milliseconds.
mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        // A month, so that sums of moments never overflow.
        const LONGEST: u64 = 31 * 24 * 3600 * 1000;
        u64::deserialize(deserializer).map(|value| Duration::from_millis(value.min(LONGEST)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(name: &str, after: &[&str]) -> Unit {
        Unit {
            name: name.into(),
            argv: vec!["true".into()],
            env: Vec::new(),
            after: after.iter().map(|&name| name.into()).collect(),
            ready: Readiness::Started,
            start_timeout: Duration::from_secs(1),
            stop_timeout: Duration::from_secs(1),
            restart: Restart::Always,
        }
    }

    fn fault(units: Vec<Unit>) -> String {
        Units::new(units).unwrap_err().to_string()
    }

    #[test]
    fn units_are_put_in_an_order_of_starting() {
        let units = Units::new(vec![
            unit("kubelet", &["containerd", "flanneld"]),
            unit("flanneld", &["etcd"]),
            unit("containerd", &[]),
            unit("etcd", &[]),
        ]);
        let units = units.unwrap();
        let names: Vec<_> = units.iter().map(|(_, unit)| unit.name.as_str()).collect();
        assert_eq!(names, ["containerd", "etcd", "flanneld", "kubelet"]);
        let [containerd, flanneld, kubelet] =
            ["containerd", "flanneld", "kubelet"].map(|name| units.find(name).unwrap());
        assert_eq!(units.after(kubelet), [containerd, flanneld]);
        assert_eq!(units.before(containerd), [kubelet]);
        assert_eq!(units.before(kubelet), []);
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(fault(vec![unit("a", &["b"])]), "unit a: it comes after b, and there is no such unit");
        assert_eq!(fault(vec![unit("a", &[]), unit("a", &[])]), "there are two units named a");
        let circle = vec![unit("x", &["a"]), unit("a", &["b"]), unit("b", &["c"]), unit("c", &["a"])];
        assert_eq!(fault(circle), "units wait for each other: a after b after c after a");
        assert_eq!(fault(vec![unit("a", &["a"])]), "units wait for each other: a after a");
        for name in ["", "a/b", "..", "-a", "ä"] {
            assert_eq!(Units::new(vec![unit(name, &[])]), Err(UnitError::Name(name.into())));
        }
        assert!(fault(vec![unit("a", &[]); MAX_UNITS + 1]).starts_with("129 units"));
        let wrong = |change: fn(&mut Unit)| {
            let mut unit = unit("a", &[]);
            change(&mut unit);
            fault(vec![unit])
        };
        assert!(wrong(|unit| unit.argv.clear()).contains("argv is empty"));
        assert!(wrong(|unit| unit.argv = vec![String::new()]).contains("argv is empty"));
        assert!(wrong(|unit| unit.argv.push("a\0".into())).contains("NUL"));
        assert!(wrong(|unit| unit.env.push(("A=B".into(), String::new()))).contains("\"A=B\""));
        assert!(wrong(|unit| unit.start_timeout = Duration::ZERO).contains("start time-out is 0"));
        assert!(wrong(|unit| unit.ready = Readiness::Exited).contains("onFailure or never"));
        let http = |path: &str| Readiness::Http { address: ([127, 0, 0, 1], 1).into(), path: path.into() };
        let mut ready = unit("a", &[]);
        for path in ["", "healthz", "/a b", "/a\r\nX: y"] {
            ready.ready = http(path);
            assert!(fault(vec![ready.clone()]).contains("HTTP path"), "{path:?}");
        }
        ready.ready = http("/healthz");
        assert!(Units::new(vec![ready]).is_ok());
    }

    #[test]
    fn a_plan_is_json_and_back() {
        let text = r#"{
            "directories": [{"path": "/var/lib/kubelet", "mode": 493}],
            "files": [{"path": "/etc/x", "mode": 384, "text": "y\n"}],
            "units": [{
                "name": "kubelet", "argv": ["kubelet", "--v=2"], "env": [["A", "b"]], "after": ["containerd"],
                "ready": {"when": "http", "address": "127.0.0.1:10248", "path": "/healthz"},
                "startTimeoutMs": 60000, "stopTimeoutMs": 1500, "restart": "always"
            }],
            "logDir": "/var/log/node", "control": "/run/node.sock"
        }"#;
        let plan: NodePlan = serde_json::from_str(text).unwrap();
        assert_eq!(plan.journal, Journal::Off);
        assert_eq!(plan.units[0].stop_timeout, Duration::from_millis(1500));
        assert_eq!(plan.units[0].ready.to_string(), "http://127.0.0.1:10248/healthz answers");
        let again: NodePlan = serde_json::from_str(&serde_json::to_string(&plan).unwrap()).unwrap();
        assert_eq!(again, plan);
        let unknown = text.replacen("logDir", "logdir", 1);
        assert!(serde_json::from_str::<NodePlan>(&unknown).unwrap_err().to_string().contains("logdir"));
        let misspelt = text.replacen("argv", "args", 1);
        assert!(serde_json::from_str::<NodePlan>(&misspelt).unwrap_err().to_string().contains("args"));
    }
}
