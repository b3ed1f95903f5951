//! An OCI runtime for a user namespace: crun or runc, after what they cannot give a container there is taken out of its configuration.
//!
//! # Theory of operation
//! `rootless-launch oci-runtime [--keep-cgroup] RUNTIME WORDS..` is what a CRI runtime calls as `RUNTIME WORDS..`. For `create`
//! and `run` the bundle's config.json is replaced ([`bundle`]); then this process becomes the runtime, whose words, descriptors and
//! exit status are its caller's. When that cannot be, the complaint goes where the caller looks for the runtime's: to stderr and the
//! file of `--log`.
//!
//! What is taken out:
//! - the cgroup, unless `--keep-cgroup` says that some are delegated. Both runtimes run a container in the cgroup that they are in when
//!   they may not make another, but only where the configuration names none and limits nothing. containerd 2 always names one
//!   (1.7 has an option, `disable_cgroup`);
//! - an `oomScoreAdj` below our own. containerd has an option for that, CRI-O has `_CRIO_ROOTLESS`, which takes the cgroup too.
//!
//! Not handled: `update`, which the runtime then refuses, and a configuration elsewhere than in the bundle (`--config` of crun).

pub mod bundle;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, id};

use serde_json::json;
use thiserror::Error;

use self::bundle::{CONFIG, Call, Cgroup, ConfigError, Log, LogFormat, adapted};
use crate::error::with_causes;

/// The first word of a call.
pub const NAME: &str = "oci-runtime";
/// The option for where cgroups are delegated.
const KEEP_CGROUP: &str = "--keep-cgroup";
/// More than a CRI message, from which a configuration is made, may have (16 MiB).
const LONGEST: u64 = 32 << 20;

/// Why a runtime is not run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OciError {
    /// Somebody else than a CRI runtime calls.
    #[error("usage: rootless-launch {NAME} [{KEEP_CGROUP}] RUNTIME [ARGUMENT]..")]
    Usage,
    /// open(2) or read(2) of the configuration.
    #[error("cannot read {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody's configuration is that long.
    #[error("{path:?} has more than {LONGEST} bytes")]
    Long {
        /// The file.
        path: PathBuf,
    },
    /// The configuration is not one.
    #[error("cannot adapt {path:?}")]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ConfigError,
    },
    /// open(2), write(2) or rename(2) of the new configuration.
    #[error("cannot replace {path:?}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// execve(2).
    #[error("cannot run the OCI runtime {program:?}")]
    Exec {
        /// The runtime.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Becomes the runtime that the first word names, with the others.
pub fn main(mut words: Vec<OsString>) -> ExitCode {
    let cgroup = match words.first() {
        Some(word) if word == KEEP_CGROUP => {
            words.remove(0);
            Cgroup::Kept
        }
        _ => Cgroup::Removed,
    };
    let call = Call::parse(words.get(1..).unwrap_or_default());
    let error = match become_runtime(&words, &call, cgroup) {
        Ok(never) => match never {},
        Err(error) => with_causes(&error),
    };
    let complaint = format!("rootless-launch {NAME}: {error}");
    // Whoever does not listen does not hear.
    let _ = writeln!(io::stderr(), "{complaint}");
    let _ = call.log.map(|log| append(&log, &complaint));
    ExitCode::FAILURE
}

fn become_runtime(
    words: &[OsString],
    call: &Call,
    cgroup: Cgroup,
) -> Result<std::convert::Infallible, OciError> {
    let (program, arguments) = words.split_first().ok_or(OciError::Usage)?;
    if let Some(bundle) = &call.bundle {
        rewrite(&bundle.join(CONFIG), cgroup, own_oom_score())?;
    }
    let source = Command::new(program).args(arguments).exec();
    Err(OciError::Exec { program: program.into(), source })
}

/// What a container may not go below; `None` where nobody says.
fn own_oom_score() -> Option<i64> {
    fs::read_to_string("/proc/self/oom_score_adj").ok()?.trim().parse().ok()
}

/// Writes beside and renames: the runtime finds the old configuration or the new one.
fn rewrite(path: &Path, cgroup: Cgroup, lowest_oom_score: Option<i64>) -> Result<(), OciError> {
    let unreadable = |source| OciError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    let permissions = file.metadata().map_err(unreadable)?.permissions();
    let mut text = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut text).map_err(unreadable)?;
    if text.len() as u64 > LONGEST {
        return Err(OciError::Long { path: path.to_owned() });
    }
    let rewritten = adapted(&text, cgroup, lowest_oom_score)
        .map_err(|source| OciError::Config { path: path.to_owned(), source })?;
    let Some(rewritten) = rewritten else { return Ok(()) };
    let beside = path.with_file_name(format!(".{CONFIG}.{}", id()));
    let replaced =
        File::options().write(true).create_new(true).mode(0o600).open(&beside).and_then(|mut file| {
            file.write_all(&rewritten)?;
            file.set_permissions(permissions)?;
            fs::rename(&beside, path)
        });
    replaced.map_err(|source| {
        // It may not be there.
        let _ = fs::remove_file(&beside);
        OciError::Write { path: path.to_owned(), source }
    })
}

/// containerd reads the last line of level "error".
fn append(log: &Log, complaint: &str) -> io::Result<()> {
    let line = match log.format {
        LogFormat::Json => json!({ "level": "error", "msg": complaint }).to_string(),
        LogFormat::Text => format!("level=error msg={complaint:?}"),
    };
    let mut file = File::options().create(true).append(true).open(&log.path)?;
    file.write_all(format!("{line}\n").as_bytes())
}

/// A program for a CRI runtime, which names a file and no arguments: a script that calls this personality when a container is to be
/// made, and else the runtime.
///
/// `ourselves` is the file of this program, `runtime` that of crun or runc.
pub fn script(ourselves: &Path, runtime: &Path, cgroup: Cgroup) -> String {
    let (ourselves, runtime) = (quoted(ourselves), quoted(runtime));
    let (why, option) = match cgroup {
        Cgroup::Kept => ("Containers are made as a user namespace can have them.", "--keep-cgroup "),
        Cgroup::Removed => ("No cgroup is delegated to this node: containers are made without.", ""),
    };
    format!(
        "#!/bin/sh\n\
         # {why}\n\
         case \" $* \" in\n\
         *' create '* | *' run '*) exec {ourselves} {NAME} {option}{runtime} \"$@\" ;;\n\
         esac\n\
         exec {runtime} \"$@\"\n"
    )
}

/// A word of sh(1).
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A bundle of its own for each test.
    struct Bundle(PathBuf);

    impl Bundle {
        fn new(name: &str, config: &[u8]) -> Self {
            let path = std::env::temp_dir().join(format!("oci-runtime-{}-{name}", id()));
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join(CONFIG), config).unwrap();
            Bundle(path)
        }

        fn config(&self) -> PathBuf {
            self.0.join(CONFIG)
        }

        fn files(&self) -> usize {
            fs::read_dir(&self.0).unwrap().count()
        }
    }

    impl Drop for Bundle {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn the_configuration_is_replaced_whole_and_keeps_its_mode() {
        let bundle = Bundle::new("replaced", br#"{"linux": {"cgroupsPath": "/a"}, "hostname": "h"}"#);
        fs::set_permissions(bundle.config(), PermissionsExt::from_mode(0o640)).unwrap();
        rewrite(&bundle.config(), Cgroup::Removed, None).unwrap();
        assert_eq!(fs::read_to_string(bundle.config()).unwrap(), r#"{"hostname":"h","linux":{}}"#);
        assert_eq!(fs::metadata(bundle.config()).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(bundle.files(), 1);
    }

    #[test]
    fn what_cannot_be_changed_stays() {
        for (name, config, told) in [
            ("text", &b"text"[..], "cannot adapt"),
            ("long", &vec![b' '; LONGEST as usize + 1], "has more than 33554432 bytes"),
        ] {
            let bundle = Bundle::new(name, config);
            let error = rewrite(&bundle.config(), Cgroup::Removed, None).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
            assert_eq!(fs::read(bundle.config()).unwrap(), config);
            assert_eq!(bundle.files(), 1);
        }
        let none = rewrite(Path::new("/no/such/config.json"), Cgroup::Kept, None).unwrap_err();
        assert_eq!(none.to_string(), "cannot read \"/no/such/config.json\"");
    }

    #[test]
    fn complaints_go_where_the_caller_looks() {
        let bundle = Bundle::new("log", b"");
        let words = |format: &str| {
            let log = bundle.0.join(format).display().to_string();
            let bundle = bundle.0.display().to_string();
            let words = ["/bin/false", "--log", &log, "--log-format", format, "create", "-b", &bundle, "c"];
            words.map(OsString::from).to_vec()
        };
        assert_eq!(main(words("json")), ExitCode::FAILURE);
        let line: serde_json::Value =
            serde_json::from_slice(&fs::read(bundle.0.join("json")).unwrap()).unwrap();
        assert_eq!(line["level"], "error");
        assert!(
            line["msg"]
                .as_str()
                .unwrap()
                .ends_with("is not JSON: EOF while parsing a value at line 1 column 0")
        );
        assert_eq!(main(words("text")), ExitCode::FAILURE);
        assert!(
            fs::read_to_string(bundle.0.join("text"))
                .unwrap()
                .starts_with("level=error msg=\"rootless-launch")
        );
    }

    #[test]
    fn the_script_passes_words_on_as_they_are() {
        let said = |ourselves: &str, cgroup: Cgroup, runtime: &str, words: &[&str]| {
            let script = script(Path::new(ourselves), Path::new(runtime), cgroup);
            let output = Command::new("/bin/sh").args(["-c", &script, "sh"]).args(words).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        for (cgroup, option) in [(Cgroup::Removed, ""), (Cgroup::Kept, "--keep-cgroup ")] {
            for command in ["create", "run"] {
                assert_eq!(
                    said("/bin/echo", cgroup, "/it's here/crun", &["--root", "a  b", command, "$c", ""]),
                    format!("oci-runtime {option}/it's here/crun --root a  b {command} $c \n")
                );
            }
            assert_eq!(said("/no/such", cgroup, "/bin/echo", &["state", "a  b"]), "state a  b\n");
        }
    }
}
