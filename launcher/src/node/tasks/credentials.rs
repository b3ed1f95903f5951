//! Forgets what kubelet has got by another kubeconfig.
//!
//! kubelet keeps the certificate that it was given, and prefers it to what a kubeconfig says as long as it is valid: a node that is
//! to join another cluster, or the same one made anew, would show it there and be sent away. So a copy of the kubeconfig is kept
//! beside the certificate; when they differ, what came by the former goes.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::TaskError;
use crate::components::layout;

/// The names of certificates that a cluster has signed begin so: what it knows kubelet by, and what kubelet serves with
/// (serverTLSBootstrap).
const CERTIFICATES: [&str; 2] = ["kubelet-client-", "kubelet-server-"];

/// Compares, forgets, and takes a copy.
///
/// # Errors
/// A file cannot be read, removed or written.
pub(super) fn run(kubeconfig: &Path) -> Result<(), TaskError> {
    let own = layout::KUBELET_KUBECONFIG;
    keep(kubeconfig, layout::JOINED_BY.as_ref(), own.as_ref(), layout::KUBELET_CERTIFICATES.as_ref())
}

fn keep(kubeconfig: &Path, copy: &Path, own: &Path, certificates: &Path) -> Result<(), TaskError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        |source| TaskError::Read { path, source }
    };
    let text = fs::read(kubeconfig).map_err(unreadable(kubeconfig))?;
    match fs::read(copy) {
        Ok(former) if former == text => return Ok(()),
        Ok(_) => forget(own, certificates)?,
        // A node that has not joined before.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(unreadable(copy)(error)),
    }
    // Whole or not at all.
    let new = copy.with_extension("new");
    let write = || {
        let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        fs::rename(&new, copy)
    };
    write().map_err(|source| TaskError::Write { path: copy.to_owned(), source })
}

fn forget(own: &Path, certificates: &Path) -> Result<(), TaskError> {
    let unreadable = |source| TaskError::Read { path: certificates.to_owned(), source };
    let mut found: Vec<PathBuf> = vec![own.to_owned()];
    match fs::read_dir(certificates) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry.map_err(unreadable)?;
                let name = entry.file_name();
                if CERTIFICATES.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                    found.push(entry.path());
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(unreadable(error)),
    }
    for path in found {
        match fs::remove_file(&path) {
            Ok(()) => log::info!("{path:?} is removed: it came by another kubeconfig"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(TaskError::Write { path, source }),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_stay_as_long_as_the_kubeconfig_does() {
        let directory = std::env::temp_dir().join(format!("credentials-{}", std::process::id()));
        let certificates = directory.join("pki");
        fs::create_dir_all(&certificates).unwrap();
        let [given, copy, own] = ["given", "joined-by", "kubeconfig"].map(|name| directory.join(name));
        let [client, current, server, own_signed] =
            ["kubelet-client-1.pem", "kubelet-client-current.pem", "kubelet-server-1.pem", "kubelet.crt"]
                .map(|name| certificates.join(name));
        for path in [&own, &client, &server, &own_signed] {
            fs::write(path, "").unwrap();
        }
        std::os::unix::fs::symlink(&client, &current).unwrap();
        let kept = |text: &str| {
            fs::write(&given, text).unwrap();
            keep(&given, &copy, &own, &certificates).unwrap();
            [&own, &client, &current, &server, &own_signed].map(|path| path.symlink_metadata().is_ok())
        };
        assert_eq!(kept("one"), [true; 5], "who knows what they came by");
        assert_eq!(kept("one"), [true; 5]);
        assert_eq!(kept("two"), [false, false, false, false, true]);
        assert_eq!(fs::read(&copy).unwrap(), b"two");
        fs::remove_dir_all(&directory).unwrap();
    }
}
