//! How much of the ring to the child a flow may fill: little at first, more as it proves to need it.

/// The bound of one flow: doubles each time the child has acknowledged a bound's worth while the queue was full.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SendWindow {
    bound: usize,
    max: usize,
    /// Bytes taken since the bound last grew.
    taken: usize,
}

impl SendWindow {
    /// First bound of a flow in bytes: two super-segments.
    const INITIAL: usize = 128 << 10;

    /// A window for a ring of `max` bytes.
    pub(crate) fn new(max: usize) -> Self {
        SendWindow { bound: Self::INITIAL.min(max), max, taken: 0 }
    }

    /// Further bytes that may be queued beside the `queued` ones.
    pub(crate) fn room(&self, queued: usize) -> usize {
        self.bound.saturating_sub(queued)
    }

    /// `bytes` were queued beside `queued` ones.
    pub(crate) fn handle_queued(&mut self, bytes: usize, queued: usize) {
        self.taken = self.taken.saturating_add(bytes);
        // Twice the bound went through and the queue is full again: the reader keeps up, the bound is what limits.
        if self.bound < self.max && queued + bytes >= self.bound && self.taken >= 2 * self.bound {
            self.bound = (self.bound * 2).min(self.max);
            self.taken = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stalled_reader_holds_no_more_than_the_first_bound() {
        let mut window = SendWindow::new(1 << 20);
        let mut queued = 0;
        while window.room(queued) > 0 {
            let bytes = window.room(queued).min(1000);
            window.handle_queued(bytes, queued);
            queued += bytes;
        }
        assert_eq!(queued, SendWindow::INITIAL);
    }

    #[test]
    fn a_fast_reader_gets_the_whole_ring() {
        let mut window = SendWindow::new(1 << 20);
        for _ in 0..20 {
            window.handle_queued(window.room(0), 0);
        }
        assert_eq!(window.room(0), 1 << 20);
    }

    #[test]
    fn a_small_ring_is_the_bound() {
        assert_eq!(SendWindow::new(16 << 10).room(0), 16 << 10);
    }
}
