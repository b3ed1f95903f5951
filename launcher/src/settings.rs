//! What the control API changes about a running engine, kept for the next one.
//!
//! # Theory of operation
//! The launcher makes a file without a name ([`Page`], memfd_create(2)), which every engine gets by being forked. After each change
//! the engine writes all its settings there, and the next engine reads them before it serves. The launcher never looks into it.
//!
//! Whenever an engine is killed the page is whole: a text is written beside the one that counts, and then a head of 16 bytes says
//! which one counts.
//!
//! Not kept: captures, whose files the clients have opened.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use netstack::Driver;
use netstack::config::IpNet;
use netstack::driver::DnsUpstream;
use netstack::error::ConfigError;
use netstack::flow::policy::{EgressPolicy, Rule};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::api::control::replace_names;
use crate::api::model::StaticName;

/// The settings of an engine, as far as they change while it runs.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// The egress policy.
    pub policy: Vec<String>,
    /// DNS servers; empty: the host's.
    pub servers: Vec<SocketAddr>,
    /// Static names.
    pub names: Vec<StaticName>,
    /// Who may send by the overlay; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<Vec<String>>,
}

/// Why an engine cannot go on with the settings of the last.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// lseek(2), read(2), write(2).
    #[error("the page of settings")]
    Page(#[from] io::Error),
    /// It holds something else.
    #[error("the page of settings")]
    Text(#[from] serde_json::Error),
    /// A rule that was there is none.
    #[error("egress rule {0:?}")]
    Rule(String),
    /// The policy that was there is none.
    #[error("egress policy")]
    Policy(#[source] ConfigError),
    /// The overlay's peers that were there are none.
    #[error("peers of the overlay")]
    Peers(#[source] ConfigError),
    /// A name that was there is none.
    #[error("static names: {0}")]
    Names(String),
}

impl Settings {
    /// Those of this engine.
    pub fn of(driver: &Driver) -> Self {
        let stack = driver.stack();
        let servers = match driver.dns_upstream() {
            DnsUpstream::ResolvConf => Vec::new(),
            DnsUpstream::Servers(servers) => servers,
        };
        let names = stack.dns_names().iter();
        let peers = || stack.overlay_allowed().iter().map(IpNet::to_string).collect();
        Settings {
            policy: stack.policy().rules().iter().map(Rule::to_string).collect(),
            servers,
            names: names
                .map(|(name, address)| StaticName { name: name.clone(), address: *address })
                .collect(),
            peers: stack.overlay_port().map(|_| peers()),
        }
    }

    /// Gives them to an engine that does not serve yet.
    ///
    /// # Errors
    /// They cannot be those of an engine.
    pub fn apply(&self, driver: &mut Driver) -> Result<(), SettingsError> {
        let rule = |text: &String| text.parse().map_err(|_| SettingsError::Rule(text.clone()));
        let rules: Vec<Rule> = self.policy.iter().map(rule).collect::<Result<_, _>>()?;
        let policy = EgressPolicy::from_rules(rules).map_err(SettingsError::Policy)?;
        driver.set_policy(policy);
        let stack = driver.stack_mut();
        replace_names(stack, &self.names).map_err(|refusal| SettingsError::Names(refusal.message))?;
        if let Some(peers) = &self.peers {
            let peers = peers.iter().map(|peer| peer.parse()).collect::<Result<_, _>>();
            peers.and_then(|peers| stack.set_overlay_peers(peers)).map_err(SettingsError::Peers)?;
        }
        if !self.servers.is_empty() {
            driver.set_dns_upstream(DnsUpstream::Servers(self.servers.clone()))?;
        }
        Ok(())
    }
}

/// Where an engine leaves its settings. See the module.
#[derive(Debug)]
pub struct Page(File);

/// Where the text that counts begins, and its length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Head {
    start: u64,
    length: u64,
}

impl Head {
    const LEN: u64 = 16;

    fn read(mut file: &File) -> io::Result<Self> {
        let mut bytes = [0; Head::LEN as usize];
        file.seek(SeekFrom::Start(0))?;
        match file.read_exact(&mut bytes) {
            Ok(()) => {}
            // Nothing was written yet.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Head::default()),
            Err(error) => return Err(error),
        }
        let (start, length) = bytes.split_at(8);
        let number = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
        Ok(Head { start: number(start), length: number(length) })
    }

    fn write(self, mut file: &File) -> io::Result<()> {
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&[self.start.to_le_bytes(), self.length.to_le_bytes()].concat())
    }
}

impl Page {
    /// An empty one.
    ///
    /// # Errors
    /// memfd_create(2).
    pub fn create() -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL);
        let page = memfd_create(c"rl-settings", flags);
        // Linux before 6.3 does not know the second flag, newer ones may insist on it (vm.memfd_noexec).
        let page = page.or_else(|_| memfd_create(c"rl-settings", MFdFlags::MFD_CLOEXEC))?;
        Ok(Page(page.into()))
    }

    /// The same page.
    ///
    /// # Errors
    /// fcntl(2).
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Page)
    }

    /// Writes what counts from now on.
    ///
    /// # Errors
    /// lseek(2), write(2).
    pub fn save(&self, settings: &Settings) -> Result<(), SettingsError> {
        let text = serde_json::to_vec(settings)?;
        let before = Head::read(&self.0)?;
        let length = text.len() as u64;
        // In front of it if there is room, else behind it.
        let start = if Head::LEN + length <= before.start { Head::LEN } else { before.end().max(Head::LEN) };
        (&self.0).seek(SeekFrom::Start(start))?;
        (&self.0).write_all(&text)?;
        Ok(Head { start, length }.write(&self.0)?)
    }

    /// What was written last; `None` if nothing was.
    ///
    /// # Errors
    /// lseek(2), read(2); it is something else.
    pub fn load(&self) -> Result<Option<Settings>, SettingsError> {
        let head = Head::read(&self.0)?;
        if head == Head::default() {
            return Ok(None);
        }
        (&self.0).seek(SeekFrom::Start(head.start))?;
        let mut text = Vec::new();
        (&self.0).take(head.length).read_to_end(&mut text)?;
        Ok(Some(serde_json::from_slice(&text)?))
    }
}

impl Head {
    fn end(self) -> u64 {
        self.start.saturating_add(self.length)
    }
}

impl AsFd for Page {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(rules: usize) -> Settings {
        Settings {
            policy: (0..rules).map(|n| format!("deny tcp 10.0.0.{n}")).collect(),
            servers: vec!["192.0.2.53:53".parse().unwrap()],
            names: vec![StaticName { name: "a.test".into(), address: "192.0.2.7".parse().unwrap() }],
            peers: Some(vec!["192.0.2.0/24".into()]),
        }
    }

    #[test]
    fn the_latest_counts_however_long() {
        let page = Page::create().unwrap();
        assert_eq!(page.load().unwrap(), None);
        for rules in [3, 100, 1, 0, 50, 200, 2, 2] {
            page.save(&settings(rules)).unwrap();
            let other = page.try_clone().unwrap();
            assert_eq!(other.load().unwrap(), Some(settings(rules)));
        }
        let size = page.0.metadata().unwrap().len();
        let longest = serde_json::to_vec(&settings(200)).unwrap().len() as u64;
        assert!(size < 3 * longest, "{size}");
    }

    #[test]
    fn a_text_that_was_not_finished_does_not_count() {
        let page = Page::create().unwrap();
        page.save(&settings(1)).unwrap();
        let head = Head::read(&page.0).unwrap();
        page.save(&settings(2)).unwrap();
        // The writer was killed before the head.
        head.write(&page.0).unwrap();
        assert_eq!(page.load().unwrap(), Some(settings(1)));
    }

    #[test]
    fn nonsense_is_an_error() {
        let page = Page::create().unwrap();
        Head { start: 16, length: 9 }.write(&page.0).unwrap();
        (&page.0).write_all(b"nonsense!").unwrap();
        assert!(matches!(page.load(), Err(SettingsError::Text(_))));
    }
}
