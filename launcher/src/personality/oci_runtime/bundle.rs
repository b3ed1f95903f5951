//! What an OCI runtime is called to do, and the configuration of a container as a user namespace can have it. Pure.
//!
//! Sources: the OCI runtime specification, config.md ("process") and config-linux.md ("Control groups"); proc_pid_oom_score_adj(5);
//! runc(8) and crun(1) for the words.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use serde_json::{Map, Value};
use thiserror::Error;

/// The configuration's name in its bundle.
pub const CONFIG: &str = "config.json";

/// What the words after a runtime's name say, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// The bundle of a container to be made, if one is.
    pub bundle: Option<PathBuf>,
    /// Where the runtime's caller looks for what went wrong.
    pub log: Option<Log>,
}

/// `--log` and `--log-format`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The file.
    pub path: PathBuf,
    /// How lines look.
    pub format: LogFormat,
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// An object on each line.
    Json,
}

/// Options before the command that take the next word, of runc and crun.
const GLOBAL: [&str; 6] = ["--cgroup-manager", "--criu", "--log", "--log-format", "--root", "--rootless"];
/// The same of `create` and `run`, but for the bundle's.
const CREATE: [&str; 6] = ["--config", "--console-socket", "--id", "--pid-file", "--preserve-fds", "-f"];

impl Call {
    /// Reads the words. What is not known is the runtime's to judge.
    pub fn parse(words: &[OsString]) -> Self {
        let mut words = words.iter().map(OsString::as_os_str);
        let mut call = Call::default();
        let (mut log, mut format) = (None, LogFormat::Text);
        let command = loop {
            let Some(word) = words.next() else { return call };
            if !word.as_bytes().starts_with(b"-") {
                break word;
            }
            let (name, mut value) = split(word);
            if value.is_none() && GLOBAL.iter().any(|option| name == *option) {
                value = words.next();
            }
            match (name.to_str(), value) {
                (Some("--log"), Some(path)) => log = Some(PathBuf::from(path)),
                (Some("--log-format"), Some(word)) if word == "json" => format = LogFormat::Json,
                _ => {}
            }
        };
        call.log = log.map(|path| Log { path, format });
        if command == "create" || command == "run" {
            call.bundle = Some(bundle(words).unwrap_or_else(|| PathBuf::from(".")));
        }
        call
    }
}

/// crun takes options behind the container's name too.
fn bundle<'a>(mut words: impl Iterator<Item = &'a OsStr>) -> Option<PathBuf> {
    let mut bundle = None;
    while let Some(word) = words.next().filter(|word| *word != "--") {
        let (name, value) = split(word);
        if name == "--bundle" || name == "-b" {
            bundle = value.or_else(|| words.next()).map(PathBuf::from);
        } else if value.is_none() && CREATE.iter().any(|option| name == *option) {
            words.next();
        }
    }
    bundle
}

/// An option `name=value`, or the whole word.
fn split(word: &OsStr) -> (&OsStr, Option<&OsStr>) {
    let bytes = word.as_bytes();
    match bytes.iter().position(|&byte| byte == b'=') {
        Some(at) if bytes.starts_with(b"-") => {
            let (name, value) = (bytes.get(..at), bytes.get(at + 1..));
            (OsStr::from_bytes(name.unwrap_or_default()), value.map(OsStr::from_bytes))
        }
        _ => (word, None),
    }
}

/// Why a configuration cannot be changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// It is not JSON.
    #[error("it is not JSON")]
    Syntax(#[source] serde_json::Error),
    /// It is JSON, but no configuration.
    #[error("it is not an object, or its \"linux\" or \"process\" is not")]
    NoObject,
}

/// What becomes of a container's cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cgroup {
    /// It stays: cgroups are delegated.
    Kept,
    /// The container has none of its own.
    Removed,
}

/// The configuration with all but what a user namespace cannot have; `None` if there is nothing of that in it.
///
/// `linux.cgroupsPath` and `linux.resources` go with the cgroup. `process.oomScoreAdj` is raised to `lowest`, the caller's own:
/// lower ones are for CAP_SYS_RESOURCE outside.
///
/// # Errors
/// It is not a configuration.
pub fn adapted(config: &[u8], cgroup: Cgroup, lowest: Option<i64>) -> Result<Option<Vec<u8>>, ConfigError> {
    let mut config: Value = serde_json::from_slice(config).map_err(ConfigError::Syntax)?;
    let mut changed = false;
    if let (Some(linux), Cgroup::Removed) = (object(&mut config, "linux")?, cgroup) {
        changed = ["cgroupsPath", "resources"].map(|key| linux.remove(key).is_some()).contains(&true);
    }
    if let (Some(process), Some(lowest)) = (object(&mut config, "process")?, lowest)
        && let Some(score) = process.get_mut("oomScoreAdj")
        && score.as_i64().is_some_and(|score| score < lowest)
    {
        *score = lowest.into();
        changed = true;
    }
    // Nothing in a Value can fail to be written.
    Ok(changed.then(|| serde_json::to_vec(&config).unwrap_or_default()))
}

/// The object that has this name in the configuration.
fn object<'a>(config: &'a mut Value, key: &str) -> Result<Option<&'a mut Map<String, Value>>, ConfigError> {
    match config.as_object_mut().ok_or(ConfigError::NoObject)?.get_mut(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_object_mut().map(Some).ok_or(ConfigError::NoObject),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn call(words: &str) -> Call {
        Call::parse(&words.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_bundle_is_found_as_containerd_and_conmon_name_it() {
        for (words, bundle) in [
            (
                "--root /run/containerd/runc/k8s.io --log /b/log.json --log-format json create --bundle /b --pid-file /b/init.pid c1",
                "/b",
            ),
            (
                "--systemd-cgroup --root=/run/runc create --bundle /b --pid-file /p --no-new-keyring --preserve-fds 1 c1",
                "/b",
            ),
            ("run -b /b --console-socket --bundle c1", "/b"),
            ("run --bundle=/b c1", "/b"),
            ("create c1 -b /b", "/b"),
            ("--root create run c1", "."),
            ("create -- --bundle", "."),
            ("create --bundle", "."),
        ] {
            assert_eq!(call(words).bundle, Some(bundle.into()), "{words}");
        }
    }

    #[test]
    fn other_commands_make_nothing() {
        for words in [
            "",
            "--version",
            "--root create",
            "--root /r state c1",
            "exec --bundle /b c1",
            "delete --force create",
        ] {
            assert_eq!(call(words).bundle, None, "{words}");
        }
    }

    #[test]
    fn the_log_is_found() {
        let json = Log { path: "/l".into(), format: LogFormat::Json };
        assert_eq!(call("--log /l --log-format json create c1").log, Some(json.clone()));
        assert_eq!(call("--log-format=json --log=/l delete c1").log, Some(json));
        let text = Log { path: "/l".into(), format: LogFormat::Text };
        assert_eq!(call("--log /l kill --log /other c1").log, Some(text));
        assert_eq!(call("create --log /l c1").log, None);
    }

    #[test]
    fn only_the_cgroup_goes() {
        let config = json!({
            "ociVersion": "1.2.0",
            "process": { "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": u64::MAX }], "oomScoreAdj": -997 },
            "linux": {
                "cgroupsPath": "/kubepods/a",
                "resources": { "memory": { "limit": 1 } },
                "namespaces": [{ "type": "cgroup" }],
                "sysctl": { "resources": "kept" },
            },
            "resources": 1,
            "cgroupsPath": "kept",
        });
        let mut expected = config.clone();
        let linux = expected["linux"].as_object_mut().unwrap();
        linux.remove("cgroupsPath");
        linux.remove("resources");
        let text = config.to_string();
        let rewritten = adapted(text.as_bytes(), Cgroup::Removed, None).unwrap().unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&rewritten).unwrap(), expected);
        assert_eq!(adapted(&rewritten, Cgroup::Removed, None).unwrap(), None);
        assert_eq!(adapted(text.as_bytes(), Cgroup::Kept, None).unwrap(), None);
    }

    #[test]
    fn nobody_is_safer_from_the_oom_killer_than_we_are() {
        let of =
            |score: i64| json!({ "process": { "oomScoreAdj": score }, "linux": { "cgroupsPath": "/a" } });
        for (asked, own, given) in [(-997, 0, 0), (-998, 200, 200), (2, 100, 100)] {
            let rewritten = adapted(of(asked).to_string().as_bytes(), Cgroup::Kept, Some(own)).unwrap();
            assert_eq!(serde_json::from_slice::<Value>(&rewritten.unwrap()).unwrap(), of(given));
        }
        for (asked, own) in [(1000, 200), (0, 0), (-500, -997)] {
            assert_eq!(adapted(of(asked).to_string().as_bytes(), Cgroup::Kept, Some(own)).unwrap(), None);
        }
    }

    #[test]
    fn what_has_nothing_of_that_stays() {
        for config in [
            "{}",
            r#"{"linux": null, "process": null}"#,
            r#"{"linux": {"namespaces": []}, "process": {}}"#,
            r#"{"process": {"oomScoreAdj": null}}"#,
        ] {
            let adapted = adapted(config.as_bytes(), Cgroup::Removed, Some(0)).unwrap();
            assert_eq!(adapted, None, "{config}");
        }
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        for config in ["", "{", "{} {}", "\u{0}", &"[".repeat(10_000)] {
            let error = adapted(config.as_bytes(), Cgroup::Removed, Some(0)).unwrap_err();
            assert!(matches!(error, ConfigError::Syntax(_)), "{error}");
        }
        for config in ["[]", "1", r#"{"linux": []}"#, r#"{"linux": "x"}"#, r#"{"process": 1}"#] {
            let error = adapted(config.as_bytes(), Cgroup::Removed, Some(0)).unwrap_err();
            assert!(matches!(error, ConfigError::NoObject), "{config}: {error}");
        }
    }
}
