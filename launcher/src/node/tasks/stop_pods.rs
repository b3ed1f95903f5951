//! Asks all containers to end, before what runs them is stopped: their preStop hooks, SIGTERM, and SIGKILL after the time that their
//! pods want for both.
//!
//! kubelet leaves containers running when it ends, and could end pods itself only under a logind that it may hold up. It is dead by now, so
//! nobody starts them again.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::runtime;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::TaskError;
use super::pre_stop::Hook;
use crate::cri::{Container, CriError, Runtime};
use crate::error::with_causes;

/// What a container has if its pod says nothing (Kubernetes' own default), and at most.
pub(crate) const GRACE: Duration = Duration::from_secs(30);
/// What a container has at least after its hook (kubelet's own).
const AFTER_HOOK: Duration = Duration::from_secs(2);
/// How long the runtime may take beyond that.
pub(crate) const SLACK: Duration = Duration::from_secs(10);

/// Ends all that run at `socket`, and waits for it.
///
/// # Errors
/// The runtime does not tell what runs. One container that does not end keeps the others from nothing.
pub(super) fn run(socket: &Path) -> Result<(), TaskError> {
    let failed = |source| TaskError::Runtime { socket: socket.into(), source };
    let connect = |error: io::Error| failed(CriError::Connect(error));
    let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(connect)?;
    runtime.block_on(stop_all(socket)).map_err(failed)
}

async fn stop_all(socket: &Path) -> Result<(), CriError> {
    let listed = timeout(SLACK, async {
        let runtime = Runtime::connect(socket).await?;
        let containers = runtime.running().await?;
        Ok((runtime, containers))
    });
    let (runtime, containers) = listed.await.map_err(|_| CriError::Silent)??;
    let mut ends = JoinSet::new();
    for container in containers {
        ends.spawn(end(runtime.clone(), container));
    }
    while ends.join_next().await.is_some() {}
    Ok(())
}

async fn end(runtime: Runtime, container: Container) {
    let grace = container.grace().unwrap_or(GRACE).min(GRACE);
    let name = container.name();
    let begun = Instant::now();
    let mut left = grace;
    // As kubelet does it: who has no time has none for its hook, and after a hook there is always a little.
    if let Some(hook) = Hook::of(&container).filter(|_| !grace.is_zero()) {
        log::info!("container {name}: its preStop hook is run, {grace:?} at most");
        match timeout(grace, hook.run(&runtime, &container, grace)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                log::warn!("container {name}: its preStop hook failed: {}", with_causes(&error))
            }
            Err(_) => log::warn!("container {name}: its preStop hook has not ended within {grace:?}"),
        }
        left = grace.saturating_sub(begun.elapsed()).max(AFTER_HOOK);
    }
    log::info!("container {name} is asked to end within {left:.0?}");
    let ended = timeout(left + SLACK, runtime.stop(container.id, left)).await;
    match ended.unwrap_or(Err(CriError::Silent)) {
        Ok(()) => log::info!("container {name} has ended"),
        Err(error) => log::warn!("container {name} was not ended: {}", with_causes(&error)),
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
        assert!(error.contains("does not answer"), "{error}");
        server.join().unwrap();
        std::fs::remove_file(path).unwrap();
    }
}
