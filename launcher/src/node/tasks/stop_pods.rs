//! Asks all containers to end, before what runs them is stopped: SIGTERM, and SIGKILL after the time that their pods want.
//!
//! kubelet leaves containers running when it ends, and could end pods itself only under a logind that it may hold up. It is dead by now, so
//! nobody starts them again.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::TaskError;
use crate::cri::grpc::{Call, GrpcError};
use crate::cri::message::{self, LIST, STOP, list_running};
use crate::error::with_causes;

/// What a container has if its pod says nothing (Kubernetes' own default), and at most.
pub(crate) const GRACE: Duration = Duration::from_secs(30);
/// How long the runtime may take beyond that.
pub(crate) const SLACK: Duration = Duration::from_secs(10);

/// Why the runtime was not asked, or did not answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CriError {
    /// connect(2), write(2).
    #[error("cannot ask it")]
    Send(#[source] io::Error),
    /// read(2), or it took too long.
    #[error("it does not answer")]
    Receive(#[source] io::Error),
    /// HTTP/2 and gRPC.
    #[error(transparent)]
    Grpc(#[from] GrpcError),
    /// protobuf.
    #[error("its answer is not what CRI wants")]
    Message,
}

/// Ends all that run at `socket`, and waits for it.
///
/// # Errors
/// The runtime does not tell what runs. One container that does not end keeps the others from nothing.
pub(super) fn run(socket: &Path) -> Result<(), TaskError> {
    let failed = |source| TaskError::Runtime { socket: socket.into(), source };
    let listed =
        Asked::new(socket, LIST, &list_running()).and_then(|asked| asked.answer(Instant::now() + SLACK));
    let containers =
        listed.and_then(|answer| message::containers(&answer).ok_or(CriError::Message)).map_err(failed)?;
    let deadline = Instant::now() + GRACE + SLACK;
    // All at once, and then one after the other is waited for.
    let asked = containers.into_iter().map(|container| {
        let grace = container.grace.unwrap_or(GRACE).min(GRACE);
        log::info!("container {} is asked to end within {grace:?}", container.name);
        let asked = Asked::new(socket, STOP, &message::stop(&container.id, grace));
        (container.name, asked)
    });
    for (name, asked) in asked.collect::<Vec<_>>() {
        match asked.and_then(|asked| asked.answer(deadline)) {
            Ok(_) => log::info!("container {name} has ended"),
            Err(error) => log::warn!("container {name} was not ended: {}", with_causes(&error)),
        }
    }
    Ok(())
}

/// A call under way.
struct Asked {
    call: Call,
    stream: UnixStream,
}

impl Asked {
    fn new(socket: &Path, path: &str, request: &[u8]) -> Result<Self, CriError> {
        let mut call = Call::new(path, request)?;
        let mut stream = UnixStream::connect(socket).map_err(CriError::Send)?;
        stream.write_all(&call.poll_bytes()).map_err(CriError::Send)?;
        Ok(Asked { call, stream })
    }

    fn answer(mut self, deadline: Instant) -> Result<Vec<u8>, CriError> {
        let mut bytes = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // 0 would mean for ever.
            let left = left.max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(left)).map_err(CriError::Receive)?;
            let count = match self.stream.read(&mut bytes) {
                Ok(0) => return Err(CriError::Receive(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(CriError::Receive(error)),
            };
            if let Some(answer) = self.call.receive(bytes.get(..count).unwrap_or_default())? {
                return Ok(answer);
            }
            self.stream.write_all(&self.call.poll_bytes()).map_err(CriError::Send)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn who_hangs_up_or_is_not_there_is_told() {
        let path = std::env::temp_dir().join(format!("rl-stop-pods-{}", std::process::id()));
        let told = || run(&path).map_err(|error| with_causes(&error)).unwrap_err();
        assert!(told().contains("No such file"), "{}", told());
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || drop(listener.accept()));
        let error = told();
        assert!(error.contains("cannot ask") || error.contains("does not answer"), "{error}");
        server.join().unwrap();
        std::fs::remove_file(path).unwrap();
    }
}
