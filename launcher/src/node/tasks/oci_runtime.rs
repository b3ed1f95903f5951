//! Stands before the OCI runtime where no cgroup is delegated: takes out of a container's configuration what nobody may set up.
//!
//! containerd 1.7 does this itself (`disable_cgroup`); version 2 has dropped that, and runc then fails to make the cgroup that it
//! is told. Without one it goes on without.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::TaskError;

/// Becomes `program` with `arguments`, after having mended the bundle that they name.
///
/// # Errors
/// The configuration cannot be read or written, or the program cannot be executed.
pub(super) fn run(program: &Path, arguments: &[OsString]) -> Result<(), TaskError> {
    let path = bundle(arguments).join("config.json");
    let text = fs::read_to_string(&path).map_err(|source| TaskError::Read { path: path.clone(), source })?;
    if let Some(text) = without_cgroups(&text) {
        fs::write(&path, text).map_err(|source| TaskError::Write { path, source })?;
    }
    let source = Command::new(program).args(arguments).exec();
    Err(TaskError::Start { program: program.into(), source })
}

/// What stands after --bundle, or the working directory (runc-create(8)).
fn bundle(arguments: &[OsString]) -> PathBuf {
    let mut words = arguments.iter().map(|word| word.to_string_lossy());
    while let Some(word) = words.next() {
        if let Some(path) = word.strip_prefix("--bundle=") {
            return path.into();
        }
        if word == "--bundle" || word == "-b" {
            return words.next().map(|path| PathBuf::from(path.as_ref())).unwrap_or_default();
        }
    }
    PathBuf::new()
}

/// The configuration (OCI runtime specification, config-linux.md) without path and limits of cgroups. `None` if it cannot be
/// understood: the runtime will say what is wrong with it.
fn without_cgroups(text: &str) -> Option<String> {
    let mut config: Value = serde_json::from_str(text).ok()?;
    let linux = config.get_mut("linux")?.as_object_mut()?;
    linux.remove("cgroupsPath");
    linux.remove("resources");
    Some(config.to_string())
}

/// The script that containerd calls in place of the runtime: only the making of a container takes the way over us.
pub(crate) fn script(ourselves: &Path, program: &Path) -> String {
    let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', r"'\''"));
    let (ourselves, program) = (quoted(ourselves), quoted(program));
    format!(
        "#!/bin/sh\n\
         # No cgroup is delegated to this node: containers are made without.\n\
         case \" $* \" in\n\
         *' create '*) exec {ourselves} node-task oci-runtime {program} -- \"$@\" ;;\n\
         esac\n\
         exec {program} \"$@\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundle_is_found() {
        let of = |words: &[&str]| bundle(&words.iter().map(OsString::from).collect::<Vec<_>>());
        let usual = [
            "--root",
            "/run/runc",
            "--log-format",
            "json",
            "create",
            "--bundle",
            "/b",
            "--pid-file",
            "/p",
            "id",
        ];
        assert_eq!(of(&usual), Path::new("/b"));
        assert_eq!(of(&["create", "-b", "/b", "id"]), Path::new("/b"));
        assert_eq!(of(&["create", "--bundle=/b", "id"]), Path::new("/b"));
        assert_eq!(of(&["create", "id"]), Path::new(""));
        assert_eq!(of(&["create", "--bundle"]), Path::new(""));
    }

    #[test]
    fn only_cgroups_are_taken_out() {
        let text = r#"{"linux":{"cgroupsPath":"/k8s.io/x","namespaces":[{"type":"pid"}],"resources":{"cpu":{}}},"ociVersion":"1.2.0"}"#;
        let expected = r#"{"linux":{"namespaces":[{"type":"pid"}]},"ociVersion":"1.2.0"}"#;
        assert_eq!(without_cgroups(text).as_deref(), Some(expected));
        for text in ["", "[]", "{}", r#"{"linux":1}"#] {
            assert_eq!(without_cgroups(text), None, "{text}");
        }
    }

    #[test]
    fn paths_of_the_script_are_quoted() {
        let script = script(Path::new("/a b/rootless-launch"), Path::new("/it's/runc"));
        assert!(
            script.contains(r"exec '/a b/rootless-launch' node-task oci-runtime '/it'\''s/runc' -- "),
            "{script}"
        );
    }
}
