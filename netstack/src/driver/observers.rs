//! Who sees the frames of a driver: an observer of the embedder's, and a capture that was started at run-time.

use std::io;

use crate::capture::{CaptureStatus, FrameObserver, PcapWriter};
use crate::frame::Offload;
use crate::time::Instant;

/// See the module.
#[derive(Default)]
pub(super) struct Observers {
    pub(super) embedder: Option<Box<dyn FrameObserver + Send>>,
    pub(super) capture: Option<PcapWriter<Box<dyn io::Write + Send>>>,
}

impl Observers {
    /// Whether anybody looks.
    pub(super) fn any(&self) -> bool {
        self.embedder.is_some() || self.capture.is_some()
    }

    /// Whether somebody counts on seeing every frame: a capture that has ended by itself does not.
    pub(super) fn are_watching(&self) -> bool {
        self.embedder.is_some() || self.status().is_some_and(|status| status.is_running())
    }

    #[expect(clippy::wrong_self_convention, reason = "from names the direction, as everywhere in this crate")]
    pub(super) fn from_child(&mut self, now: Instant, frame: &[u8], offload: Offload) {
        if let Some(observer) = &mut self.embedder {
            observer.from_child(now, frame, offload);
        }
        if let Some(capture) = &mut self.capture {
            capture.from_child(now, frame, offload);
        }
    }

    #[expect(clippy::wrong_self_convention, reason = "to names the direction, as everywhere in this crate")]
    pub(super) fn to_child(&mut self, now: Instant, frame: &[u8], offload: Offload) {
        if let Some(observer) = &mut self.embedder {
            observer.to_child(now, frame, offload);
        }
        if let Some(capture) = &mut self.capture {
            capture.to_child(now, frame, offload);
        }
    }

    /// How far the capture is.
    pub(super) fn status(&self) -> Option<CaptureStatus> {
        self.capture.as_ref().map(PcapWriter::status)
    }
}
