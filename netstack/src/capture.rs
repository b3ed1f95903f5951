//! Watching frames, and writing them as pcap.
//!
//! # Theory of operation
//! A stack that is observed is the same stack: an observer sees frames and cannot change, delay or fail
//! anything. [`PcapWriter`] therefore keeps its first write error to itself until asked.
//!
//! Super-segments are written as they travel, longer than the MTU, as a capture on any offloading card
//! shows. Checksums left to the link are finished in the copy, so that readers do not report them as wrong.
//! The classic format says nothing about a frame's direction; the Ethernet addresses do.

use std::io;

use crate::frame::{Checksum, Offload};
use crate::offload::checksum;
use crate::time::Instant;

/// Sees all frames of a stack.
#[expect(
    clippy::wrong_self_convention,
    reason = "from and to name the direction, as everywhere in this crate"
)]
pub trait FrameObserver {
    /// A frame that the child sent, before anything was done about it.
    fn from_child(&mut self, now: Instant, frame: &[u8], offload: Offload);

    /// A frame on its way to the child.
    fn to_child(&mut self, now: Instant, frame: &[u8], offload: Offload);
}

/// When a capture ends by itself; the default is never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CaptureLimit {
    /// Most frames.
    pub frames: Option<u64>,
    /// Most bytes of the file. The frame that does not fit any more ends the capture.
    pub bytes: Option<u64>,
}

/// How far a capture is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptureStatus {
    /// Frames written.
    pub frames: u64,
    /// Bytes written, with all headers.
    pub bytes: u64,
    /// Whether more will come.
    pub state: CaptureState,
}

impl CaptureStatus {
    /// Whether more frames will be written.
    pub fn is_running(&self) -> bool {
        self.state == CaptureState::Running
    }
}

/// Whether a capture goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CaptureState {
    /// Frames are written.
    Running,
    /// The limit ended it.
    LimitReached,
    /// A write failed.
    Failed,
}

/// Writes frames as classic pcap with nanosecond timestamps (draft-ietf-opsawg-pcap), in the machine's byte
/// order, one write per frame.
#[derive(Debug)]
pub struct PcapWriter<W> {
    out: W,
    unix_micros_at_zero: i64,
    limit: CaptureLimit,
    frames: u64,
    bytes: u64,
    state: State,
    /// One record; reused.
    record: Vec<u8>,
}

impl<W: io::Write> PcapWriter<W> {
    /// Longest frame that is written whole: Ethernet header and 64 KiB, with room to spare.
    pub const SNAPLEN: usize = 65550;

    /// Writes the file header to `out`. `unix_micros_at_zero` is the wall clock at [`Instant::ZERO`], in
    /// microseconds since 1970.
    pub fn new(out: W, unix_micros_at_zero: i64) -> Self {
        Self::with_limit(out, unix_micros_at_zero, CaptureLimit::default())
    }

    /// Like [`PcapWriter::new`]; ends by itself at `limit`.
    pub fn with_limit(out: W, unix_micros_at_zero: i64, limit: CaptureLimit) -> Self {
        let mut writer = PcapWriter { limit, ..Self::resumed(out, unix_micros_at_zero) };
        writer.record.extend_from_slice(&MAGIC_NANOSECONDS.to_ne_bytes());
        for version in [2u16, 4] {
            writer.record.extend_from_slice(&version.to_ne_bytes());
        }
        // Time zone and accuracy: always zero.
        for word in [0, 0, Self::SNAPLEN as u32, LINKTYPE_ETHERNET] {
            writer.record.extend_from_slice(&word.to_ne_bytes());
        }
        writer.write_record();
        writer
    }

    /// Goes on with what another writer began: without a header of its own.
    pub fn resumed(out: W, unix_micros_at_zero: i64) -> Self {
        PcapWriter {
            out,
            unix_micros_at_zero,
            limit: CaptureLimit::default(),
            frames: 0,
            bytes: 0,
            state: State::Writing,
            record: Vec::with_capacity(2048),
        }
    }

    /// The error that ended writing, once; later frames are not written either way.
    pub fn take_error(&mut self) -> Option<io::Error> {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Failed(error) => Some(error),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// Flushes `out`; an error is remembered like any other.
    pub fn flush(&mut self) {
        if matches!(self.state, State::Writing)
            && let Err(error) = self.out.flush()
        {
            self.state = State::Failed(error);
        }
    }

    /// How far it is.
    pub fn status(&self) -> CaptureStatus {
        let state = match self.state {
            State::Writing => CaptureState::Running,
            State::Full => CaptureState::LimitReached,
            State::Failed(_) | State::Ended => CaptureState::Failed,
        };
        CaptureStatus { frames: self.frames, bytes: self.bytes, state }
    }

    /// Gives `out` back.
    pub fn into_inner(self) -> W {
        self.out
    }

    fn write(&mut self, now: Instant, frame: &[u8], offload: Offload) {
        if !matches!(self.state, State::Writing) {
            return;
        }
        let micros = u64::try_from(now.total_micros().saturating_add(self.unix_micros_at_zero)).unwrap_or(0);
        let captured = frame.get(..Self::SNAPLEN).unwrap_or(frame);
        self.record.clear();
        for word in [
            (micros / 1_000_000) as u32,
            (micros % 1_000_000) as u32 * 1000,
            captured.len() as u32,
            frame.len() as u32,
        ] {
            self.record.extend_from_slice(&word.to_ne_bytes());
        }
        self.record.extend_from_slice(captured);
        if offload.checksum == Checksum::Partial
            && let Some(copy) = self.record.get_mut(RECORD_HEADER..)
        {
            // A frame without a transport header we know stays as it is.
            let _ = checksum::complete_partial(copy);
        }
        if self.limit.bytes.is_some_and(|limit| self.bytes + self.record.len() as u64 > limit) {
            return self.end_at_limit();
        }
        if self.write_record() {
            self.frames += 1;
        }
        if self.limit.frames.is_some_and(|limit| self.frames >= limit) {
            self.end_at_limit();
        }
    }

    fn end_at_limit(&mut self) {
        self.flush();
        if matches!(self.state, State::Writing) {
            self.state = State::Full;
        }
    }

    fn write_record(&mut self) -> bool {
        match self.out.write_all(&self.record) {
            Ok(()) => self.bytes += self.record.len() as u64,
            Err(error) => self.state = State::Failed(error),
        }
        matches!(self.state, State::Writing)
    }
}

impl<W: io::Write> FrameObserver for PcapWriter<W> {
    fn from_child(&mut self, now: Instant, frame: &[u8], offload: Offload) {
        self.write(now, frame, offload);
    }

    fn to_child(&mut self, now: Instant, frame: &[u8], offload: Offload) {
        self.write(now, frame, offload);
    }
}

#[derive(Debug)]
enum State {
    Writing,
    /// The limit is reached.
    Full,
    /// An error that nobody has asked for yet. A record may be half written, so no other follows.
    Failed(io::Error),
    Ended,
}

const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
const LINKTYPE_ETHERNET: u32 = 1;
const RECORD_HEADER: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Gso;
    use crate::offload::tests::{tcp4, udp4};

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn frames_follow_the_file_header() {
        let frame = udp4(b"hello");
        let mut pcap = PcapWriter::new(Vec::new(), 1_700_000_000_000_000);
        pcap.from_child(Instant::from_micros(2_000_007), &frame, Offload::default());
        pcap.to_child(Instant::from_micros(3_000_000), b"short", Offload::default());
        pcap.flush();
        assert!(pcap.take_error().is_none());
        let file = pcap.into_inner();
        assert_eq!(word(&file, 0), 0xa1b2_3c4d);
        assert_eq!((word(&file, 16), word(&file, 20)), (65550, 1));
        let record = &file[24..];
        assert_eq!((word(record, 0), word(record, 4)), (1_700_000_002, 7000));
        assert_eq!((word(record, 8), word(record, 12)), (frame.len() as u32, frame.len() as u32));
        assert_eq!(record[16..16 + frame.len()], frame);
        let record = &record[16 + frame.len()..];
        assert_eq!((word(record, 0), word(record, 8)), (1_700_000_003, 5));
        assert_eq!(&record[16..], b"short");
    }

    #[test]
    fn partial_checksums_are_finished_in_the_copy() {
        let whole = tcp4(&[5; 3000]);
        let mut frame = whole.clone();
        let pseudo = checksum::pseudo_header_sum(
            [10, 0, 42, 100].into(),
            [192, 0, 2, 1].into(),
            6,
            (whole.len() - 34) as u32,
        );
        frame[50..52].copy_from_slice(&pseudo.to_be_bytes());
        let mut pcap = PcapWriter::new(Vec::new(), 0);
        pcap.to_child(Instant::ZERO, &frame, Offload { checksum: Checksum::Partial, gso: Gso::Tcp(1448) });
        // Neither TCP nor UDP: left alone.
        pcap.to_child(Instant::ZERO, b"x", Offload { checksum: Checksum::Partial, gso: Gso::None });
        assert_eq!(pcap.into_inner()[40..40 + whole.len()], whole);
    }

    #[test]
    fn overlong_frames_are_cut_and_say_so() {
        let mut pcap = PcapWriter::new(Vec::new(), 0);
        pcap.from_child(Instant::ZERO, &[0; 70_000], Offload::default());
        let file = pcap.into_inner();
        assert_eq!((word(&file, 32), word(&file, 36)), (65550, 70_000));
        assert_eq!(file.len(), 24 + 16 + 65550);
    }

    #[test]
    fn a_limit_ends_the_capture_before_it_is_passed() {
        let mut pcap = PcapWriter::with_limit(Vec::new(), 0, CaptureLimit { frames: Some(2), bytes: None });
        assert!(pcap.status().is_running());
        (0..3).for_each(|_| pcap.from_child(Instant::ZERO, &[0; 60], Offload::default()));
        let status = CaptureStatus { frames: 2, bytes: 24 + 2 * 76, state: CaptureState::LimitReached };
        assert_eq!(pcap.status(), status);
        assert_eq!(pcap.into_inner().len() as u64, status.bytes);
        let mut pcap = PcapWriter::with_limit(Vec::new(), 0, CaptureLimit { frames: None, bytes: Some(150) });
        (0..3).for_each(|_| pcap.from_child(Instant::ZERO, &[0; 60], Offload::default()));
        assert_eq!(pcap.status(), CaptureStatus { frames: 1, bytes: 100, state: CaptureState::LimitReached });
        assert!(pcap.take_error().is_none());
    }

    #[test]
    fn times_before_1970_do_not_wrap() {
        let mut pcap = PcapWriter::new(Vec::new(), -5);
        pcap.from_child(Instant::from_micros(3), &[], Offload::default());
        assert_eq!(word(&pcap.into_inner(), 24), 0);
    }

    /// Takes so many bytes, then fails.
    struct Full(usize);

    impl io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_first_error_is_told_once_and_ends_writing() {
        let mut pcap = PcapWriter::new(Full(50), 0);
        assert!(pcap.take_error().is_none());
        pcap.from_child(Instant::ZERO, &[0; 60], Offload::default());
        pcap.from_child(Instant::ZERO, &[], Offload::default());
        pcap.flush();
        assert_eq!(pcap.take_error().map(|error| error.kind()), Some(io::ErrorKind::StorageFull));
        assert!(pcap.take_error().is_none());
        pcap.from_child(Instant::ZERO, &[], Offload::default());
        assert!(pcap.take_error().is_none());
        assert_eq!(pcap.status(), CaptureStatus { frames: 0, bytes: 24, state: CaptureState::Failed });
        assert_eq!(pcap.into_inner().0, 26);
    }
}
