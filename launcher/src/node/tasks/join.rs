//! Is ready when the cluster has the node, and says in a sentence what is in the way: kubelet does so among much else.

use std::io::BufRead;
use std::path::Path;

use super::TaskError;
use crate::client::http::{self, HttpError, Request};
use crate::error::with_causes;
use crate::node::joining::{Joining, News};
use crate::notify::{Notifier, State};
use crate::state_dir::{NODE_SOCKET, STATE_DIR_VARIABLE};

/// kubelet's log from its first line that is remembered; it may have joined already.
const LOG: &str = "/v1/node/units/kubelet/log?lines=10000&follow=true";

/// Ends when the cluster has the node.
///
/// # Errors
/// The supervisor does not give us the log, or ends.
pub(super) fn run(mut joining: Joining) -> Result<(), TaskError> {
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
            match news {
                News::Joined => {
                    log::info!("{news}");
                    tell(&State::Ready);
                    return Ok(());
                }
                News::Trouble(_) => log::warn!("{news}"),
            }
        }
        line.clear();
    }
    Err(TaskError::Log("it ends before the node has joined".to_owned()))
}
