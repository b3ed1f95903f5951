//! Settings that change while the driver runs; those of the stack are in [`Driver::stack_mut`].

use std::io;
use std::net::SocketAddr;

use thiserror::Error;

use super::{Driver, DriverError};
use crate::capture::{CaptureLimit, CaptureStatus, FrameObserver, PcapWriter};

/// Whom DNS questions are forwarded to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsUpstream {
    /// The servers of the host's resolv.conf, followed as it changes.
    ResolvConf,
    /// These, first choice first; at least one.
    Servers(Vec<SocketAddr>),
}

/// A capture is running already.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("frames are being captured already")]
pub struct CaptureRunning;

impl Driver {
    /// Chooses the DNS servers from now on; questions under way are not asked again. No servers mean
    /// [`DnsUpstream::ResolvConf`].
    ///
    /// # Errors
    /// When resolv.conf cannot be watched.
    pub fn set_dns_upstream(&mut self, upstream: DnsUpstream) -> Result<(), DriverError> {
        let servers = match upstream {
            DnsUpstream::ResolvConf => Vec::new(),
            DnsUpstream::Servers(servers) => servers,
        };
        let follow = servers.is_empty();
        self.stack.replace_dns_servers(servers);
        match (follow, &self.resolver) {
            (false, _) => Ok(()),
            (true, Some(_)) => {
                self.read_resolvers();
                Ok(())
            }
            (true, None) => self.follow_resolv_conf(),
        }
    }

    /// Whom DNS questions are forwarded to.
    pub fn dns_upstream(&self) -> DnsUpstream {
        match self.stack.config().dns().servers.as_slice() {
            [] => DnsUpstream::ResolvConf,
            servers => DnsUpstream::Servers(servers.to_vec()),
        }
    }

    /// Shows every frame to `observer` from now on, instead of an earlier one.
    pub fn set_observer(&mut self, observer: Box<dyn FrameObserver + Send>) {
        self.observers.embedder = Some(observer);
    }

    /// Shows no frames to the observer any more, and gives it back.
    pub fn clear_observer(&mut self) -> Option<Box<dyn FrameObserver + Send>> {
        self.observers.embedder.take()
    }

    /// Writes all frames to `out` as pcap from now on, beside what an observer does. Writes happen between frames: a
    /// slow `out` slows the child down.
    ///
    /// # Errors
    /// One is running. A capture that ended by itself makes room.
    pub fn start_capture(
        &mut self,
        out: Box<dyn io::Write + Send>,
        limit: CaptureLimit,
    ) -> Result<(), CaptureRunning> {
        if self.observers.status().is_some_and(|status| status.is_running()) {
            return Err(CaptureRunning);
        }
        let zero = self.clock.unix_micros_at_zero();
        self.observers.capture = Some(PcapWriter::with_limit(out, zero, limit));
        Ok(())
    }

    /// Ends the capture and closes its output; says how far it came. `None` where there was none.
    pub fn stop_capture(&mut self) -> Option<CaptureStatus> {
        let mut capture = self.observers.capture.take()?;
        capture.flush();
        Some(capture.status())
    }

    /// How far the capture is, or was when it ended by itself.
    pub fn capture(&self) -> Option<CaptureStatus> {
        self.observers.status()
    }
}
