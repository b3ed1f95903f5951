//! Is ready when the cluster has the node, and says in a sentence what is in the way: kubelet does so among much else.

use std::io::BufRead;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::TaskError;
use crate::client::http::{self, HttpError, Request};
use crate::components::layout;
use crate::error::with_causes;
use crate::node::joining::{Joining, News, Serving};
use crate::notify::{Notifier, State};
use crate::state_dir::{NODE_SOCKET, STATE_DIR_VARIABLE};
use crate::sys::memory;

/// kubelet's log from its first line that is remembered; it may have joined already.
const LOG: &str = "/v1/node/units/kubelet/log?lines=10000&follow=true";

/// Ends when the cluster has the node and has given it what it needs.
///
/// # Errors
/// The supervisor does not give us the log, or ends.
pub(super) fn run(mut joining: Joining, serving: Serving) -> Result<(), TaskError> {
    let state_dir = std::env::var_os(STATE_DIR_VARIABLE).ok_or(TaskError::NoInstance)?;
    let failed = |error: HttpError| TaskError::Log(with_causes(&error));
    let socket = Path::new(&state_dir).join(NODE_SOCKET);
    let mut response = http::send(&socket, &Request::new("GET", LOG)).map_err(failed)?;
    if response.status != 200 {
        return Err(TaskError::Log(format!("HTTP status {}", response.status)));
    }
    let receive = |error| failed(HttpError::Receive(error));
    response.body.get_ref().set_read_timeout(None).map_err(receive)?;
    let notifier = Notifier::from_environment();
    let tell = |state: &State| notifier.iter().for_each(|notifier| notifier.tell(state));
    let mut line = Vec::new();
    while response.body.read_until(b'\n', &mut line).map_err(receive)? > 0 {
        if let Some(news) = joining.handle_line(String::from_utf8_lossy(&line).trim_end()) {
            tell(&State::Status(news.to_string()));
            if news == News::Joined {
                log::info!("{news}");
                tell(&State::Ready);
                drop(response);
                return match serving {
                    Serving::OwnSigned => Ok(()),
                    Serving::AskedFor => wait_for_certificate(&tell),
                };
            }
            log::warn!("{news}");
        }
        line.clear();
    }
    Err(TaskError::Log("it ends before the node has joined".to_owned()))
}

/// What waits for the node in its cluster does not wait for this.
fn wait_for_certificate(tell: &impl Fn(&State)) -> Result<(), TaskError> {
    let directory = Path::new(layout::KUBELET_CERTIFICATES);
    let failed = |errno: Errno| TaskError::Watch { path: directory.into(), source: errno.into() };
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).map_err(failed)?;
    let came = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
    inotify.add_watch(directory, came | AddWatchFlags::IN_ONLYDIR).map_err(failed)?;
    let certificate = directory.join(layout::KUBELET_SERVING);
    if certificate.exists() {
        return Ok(());
    }
    log::warn!("{}", News::JoinedUnapproved);
    tell(&State::Status(News::JoinedUnapproved.to_string()));
    while !certificate.exists() {
        memory::release_code();
        inotify.read_events().map_err(failed)?;
    }
    log::info!("kubelet has the certificate that it serves with");
    tell(&State::Status(News::Joined.to_string()));
    Ok(())
}
