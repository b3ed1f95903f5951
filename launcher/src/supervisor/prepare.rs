//! What is done before the first unit starts.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

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

/// Locks the directory of the logs. Holds as long as this process lives and the file is open.
///
/// It is a lock of fcntl(2) because fork(2) does not hand it down: a unit that is just being started when its supervisor
/// is killed does not hold it for a moment longer.
pub(super) fn lock(directory: &Path) -> Result<File, SupervisorError> {
    let failed = |source| SupervisorError::Lock { path: directory.to_owned(), source };
    let options = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).clone();
    let file = options.open(directory.join(LOCK)).map_err(failed)?;
    let whole = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(&file, FcntlArg::F_SETLK(&whole)) {
        Ok(_) => Ok(file),
        Err(Errno::EAGAIN | Errno::EACCES) => Err(SupervisorError::Twice(directory.to_owned())),
        Err(errno) => Err(failed(errno.into())),
    }
}

/// Listens on the control socket.
pub(super) fn listen(path: &Path) -> Result<UnixListener, SupervisorError> {
    let failed = |source| SupervisorError::Control { path: path.to_owned(), source };
    if is_served(path) {
        return Err(SupervisorError::ControlTaken(path.to_owned()));
    }
    // What a killed supervisor left.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    listen_at(path).map_err(failed)
}

/// Name of the lock, which no unit's log can have.
const LOCK: &str = ".lock";
/// Longest wait for a word of somebody who listens already.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether somebody listens there who goes on living. A killed supervisor's socket is open until the unit that it was just
/// starting has become its program; whoever asked there is then hung up on.
fn is_served(path: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(path) else { return false };
    let asked = stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.write_all(b"GET /v1/node HTTP/1.0\r\n\r\n"))
        .and_then(|()| stream.read(&mut [0]));
    match asked {
        Ok(count) => count > 0,
        Err(error) => !matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe),
    }
}
