//! Imports images from archives, so that pods need no registry.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::TaskError;
use super::programs::output;
use crate::components::layout;

/// Where kubelet and CRI look for images.
const NAMESPACE: &str = "k8s.io";
/// What an archive's name ends in.
const ENDINGS: [&str; 4] = [".tar", ".tar.gz", ".tar.zst", ".tgz"];

/// Imports each archive, and those in each directory.
///
/// # Errors
/// One cannot be imported; those before it are.
pub(super) fn import(ctr: &Path, snapshotter: &str, archives: &[PathBuf]) -> Result<(), TaskError> {
    for archive in files(archives)? {
        let mut command = Command::new(ctr);
        command.args(["--address", layout::CONTAINERD_SOCKET, "--namespace", NAMESPACE, "images", "import"]);
        // The transfer service of containerd 2 unpacks for overlayfs only, unless told at length.
        command.args(["--local", "--snapshotter", snapshotter]).arg(&archive);
        let said = output(&mut command, || format!("importing {}", archive.display()))?;
        said.lines().for_each(|line| log::info!("{line}"));
    }
    Ok(())
}

/// Directories replaced by the archives in them, in order of their names.
///
/// # Errors
/// One cannot be read, or has none.
pub(super) fn files(archives: &[PathBuf]) -> Result<Vec<PathBuf>, TaskError> {
    let mut files = Vec::new();
    for path in archives {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let unreadable = |source| TaskError::Read { path: path.clone(), source };
        let mut inside = Vec::new();
        for entry in fs::read_dir(path).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?.path();
            if ENDINGS.iter().any(|ending| entry.to_string_lossy().ends_with(ending)) {
                inside.push(entry);
            }
        }
        if inside.is_empty() {
            return Err(TaskError::NoArchive(path.clone()));
        }
        inside.sort();
        files.extend(inside);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_stand_for_the_archives_in_them() {
        let directory = std::env::temp_dir().join(format!("images-{}", std::process::id()));
        fs::create_dir_all(directory.join("empty")).unwrap();
        for name in ["b.tar", "a.tar.gz", "notes.txt"] {
            fs::write(directory.join(name), "").unwrap();
        }
        let found = files(&["/x/c.tar".into(), directory.clone()]).unwrap();
        let expected = ["/x/c.tar".into(), directory.join("a.tar.gz"), directory.join("b.tar")];
        assert_eq!(found, expected);
        let empty = files(&[directory.join("empty")]).unwrap_err();
        assert!(matches!(empty, TaskError::NoArchive(_)));
        fs::remove_dir_all(directory).unwrap();
    }
}
