//! RootlessKit as Debian packages it.

use crate::{
    process::Process,
    session::{HOME, RUNTIME_DIR, Session},
};

/// A RootlessKit of the user with slirp4netns for a network, its state in `$XDG_RUNTIME_DIR/rootlesskit`.
#[derive(Debug)]
pub struct RootlessKit<'s> {
    session: &'s Session,
    options: Vec<String>,
}

impl<'s> RootlessKit<'s> {
    /// With `options` besides.
    #[must_use]
    pub fn new(session: &'s Session, options: &[&str]) -> Self {
        let mut all = vec![
            format!("--state-dir={RUNTIME_DIR}/rootlesskit"),
            "--net=slirp4netns".to_owned(),
            format!("--slirp4netns-binary={HOME}/bin/slirp4netns"),
            "--copy-up=/etc".to_owned(),
            "--copy-up=/run".to_owned(),
        ];
        all.extend(options.iter().map(ToString::to_string));
        Self { session, options: all }
    }

    /// Starts `script` by sh(1) inside.
    #[track_caller]
    #[must_use]
    pub fn start(&self, script: &str) -> Process {
        let mut argv = vec!["rootlesskit"];
        argv.extend(self.options.iter().map(String::as_str));
        argv.extend(["sh", "-euc", script]);
        self.session.spawn(&argv)
    }

    /// Waits until its API lists so many ports: it answers only when those of the command line are published.
    #[track_caller]
    pub fn wait_for_ports(&self, count: usize) {
        let list = format!("rootlessctl --socket={} list-ports --json 2>&1", self.socket());
        let _ = self.session.shell(&format!(
            "until list=$({list}) && [ $(grep -c parentPort <<<\"$list\") = {count} ]; do :; done"
        ));
    }

    /// The socket of its API.
    #[must_use]
    pub fn socket(&self) -> String {
        format!("{RUNTIME_DIR}/rootlesskit/api.sock")
    }
}
