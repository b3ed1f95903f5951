//! What is done before the first unit starts.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::error::SupervisorError;
use super::unit::{PlannedDirectory, PlannedFile};
use crate::state_dir::listen_at;

/// Makes a directory and those above it.
pub(super) fn make_directory(directory: &PlannedDirectory) -> Result<(), SupervisorError> {
    let PlannedDirectory { path, mode } = directory;
    let made = DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.and_then(|()| fs::set_permissions(path, Permissions::from_mode(*mode)))
        .map_err(|source| SupervisorError::Directory { path: path.clone(), source })
}

/// Writes a file.
pub(super) fn write_file(file: &PlannedFile) -> Result<(), SupervisorError> {
    let PlannedFile { path, mode, text } = file;
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(*mode).open(path)?;
        // One that was there has its own mode still, and the umask has its say otherwise.
        file.set_permissions(Permissions::from_mode(*mode))?;
        file.write_all(text.as_bytes())
    };
    write().map_err(|source| SupervisorError::File { path: path.clone(), source })
}

/// Locks the directory of the logs. Holds as long as this process lives, however it ends; units do not inherit it.
pub(super) fn lock(directory: &Path) -> Result<Flock<File>, SupervisorError> {
    let failed = |source| SupervisorError::Lock { path: directory.to_owned(), source };
    let file = File::open(directory).map_err(failed)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => SupervisorError::Twice(directory.to_owned()),
        errno => failed(errno.into()),
    })
}

/// Listens on the control socket.
pub(super) fn listen(path: &Path) -> Result<UnixListener, SupervisorError> {
    let failed = |source| SupervisorError::Control { path: path.to_owned(), source };
    if UnixStream::connect(path).is_ok() {
        return Err(SupervisorError::ControlTaken(path.to_owned()));
    }
    // What a killed supervisor left.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    listen_at(path).map_err(failed)
}
