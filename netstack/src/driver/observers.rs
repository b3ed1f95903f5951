//! Who sees the frames of a driver: an observer of the embedder's, and a capture that was started at run-time. Workers share them;
//! where nobody looks, a frame costs one look at a flag.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::capture::{CaptureStatus, FrameObserver, PcapWriter};
use crate::frame::Offload;
use crate::time::Instant;

/// See the module.
#[derive(Clone, Default)]
pub(super) struct Observers(Arc<Shared>);

#[derive(Default)]
struct Shared {
    any: AtomicBool,
    watching: AtomicBool,
    seats: Mutex<Seats>,
}

/// Who sits there.
#[derive(Default)]
pub(super) struct Seats {
    pub(super) embedder: Option<Box<dyn FrameObserver + Send>>,
    pub(super) capture: Option<PcapWriter<Box<dyn io::Write + Send>>>,
}

impl Observers {
    /// Whether anybody looks.
    pub(super) fn any(&self) -> bool {
        self.0.any.load(Ordering::Relaxed)
    }

    /// Whether somebody counts on seeing every frame: a capture that has ended by itself does not.
    pub(super) fn are_watching(&self) -> bool {
        self.0.watching.load(Ordering::Relaxed)
    }

    #[expect(clippy::wrong_self_convention, reason = "from names the direction, as everywhere in this crate")]
    pub(super) fn from_child(&self, now: Instant, frame: &[u8], offload: Offload) {
        if self.any() {
            self.show(|observer| observer.from_child(now, frame, offload));
        }
    }

    pub(super) fn to_child(&self, now: Instant, frame: &[u8], offload: Offload) {
        if self.any() {
            self.show(|observer| observer.to_child(now, frame, offload));
        }
    }

    /// Changes who looks.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut Seats) -> R) -> R {
        let mut seats = self.lock();
        let result = change(&mut seats);
        self.note(&seats);
        result
    }

    /// How far the capture is.
    pub(super) fn status(&self) -> Option<CaptureStatus> {
        self.lock().status()
    }

    fn show(&self, mut show: impl FnMut(&mut dyn FrameObserver)) {
        let mut seats = self.lock();
        if let Some(observer) = &mut seats.embedder {
            show(observer.as_mut());
        }
        if let Some(capture) = &mut seats.capture {
            show(capture);
            self.note(&seats);
        }
    }

    fn note(&self, seats: &Seats) {
        let running = seats.status().is_some_and(|status| status.is_running());
        self.0.watching.store(seats.embedder.is_some() || running, Ordering::Relaxed);
        self.0.any.store(seats.embedder.is_some() || seats.capture.is_some(), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Seats> {
        // An observer that panicked takes its driver with it.
        self.0.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seats {
    fn status(&self) -> Option<CaptureStatus> {
        self.capture.as_ref().map(PcapWriter::status)
    }
}
