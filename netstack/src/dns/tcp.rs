//! DNS over TCP: the two-byte length before each message (RFC 1035 section 4.2.2).
//!
//! # Theory of operation
//! A stream carries messages one after the other, each behind its length in network order. [`LengthPrefix`]
//! is fed the stream in pieces of any size and gives back whole messages; it holds at most one unfinished
//! message, so its memory is bounded by the prefix itself. Any stream is valid: a zero length is an empty
//! message, which the reader of messages refuses. No timers; the owner of the stream decides when to give up.

/// Longest message in bytes that the prefix can announce.
pub const MAX_MESSAGE: usize = u16::MAX as usize;

/// Incremental decoder of one direction of a stream.
#[derive(Clone, Debug, Default)]
pub struct LengthPrefix {
    /// Prefix and message so far, at most 2 + [`MAX_MESSAGE`] bytes.
    buffer: Vec<u8>,
}

impl LengthPrefix {
    /// A decoder at the start of a stream.
    pub fn new() -> Self {
        LengthPrefix::default()
    }

    /// Takes bytes off the front of `stream` up to the end of the next message and returns that message, or
    /// takes all of `stream` and returns `None` if the message is not complete yet. Call it until `None`.
    pub fn decode(&mut self, stream: &mut &[u8]) -> Option<Vec<u8>> {
        self.fill(stream, PREFIX_LEN)?;
        let announced = usize::from(u16::from_be_bytes([self.buffer[0], self.buffer[1]]));
        self.fill(stream, PREFIX_LEN + announced)?;
        let message = self.buffer.split_off(PREFIX_LEN);
        // A connection may stay open for long: it keeps no memory between messages.
        self.buffer = Vec::new();
        Some(message)
    }

    /// Grows the buffer to `len` bytes; `None` if the stream ends before.
    fn fill(&mut self, stream: &mut &[u8], len: usize) -> Option<()> {
        let wanted = len.saturating_sub(self.buffer.len());
        let (taken, rest) = stream.split_at(wanted.min(stream.len()));
        self.buffer.extend_from_slice(taken);
        *stream = rest;
        (self.buffer.len() >= len).then_some(())
    }
}

/// `message` behind its length. The message is at most [`MAX_MESSAGE`] bytes long, as every message is that
/// came by UDP or out of a [`LengthPrefix`]; of a longer one the excess is cut.
pub fn frame(message: &[u8]) -> Vec<u8> {
    debug_assert!(message.len() <= MAX_MESSAGE, "a DNS message has at most 65535 bytes");
    let len = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let mut framed = Vec::with_capacity(PREFIX_LEN + usize::from(len));
    framed.extend_from_slice(&len.to_be_bytes());
    framed.extend_from_slice(&message[..usize::from(len)]);
    framed
}

const PREFIX_LEN: usize = 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode_all(decoder: &mut LengthPrefix, mut piece: &[u8]) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| decoder.decode(&mut piece)).collect()
    }

    #[test]
    fn longest_and_empty_messages_pass() {
        let messages = [vec![], vec![7; MAX_MESSAGE], vec![]];
        let stream: Vec<u8> = messages.iter().flat_map(|message| frame(message)).collect();
        assert_eq!(decode_all(&mut LengthPrefix::new(), &stream), messages);
    }

    proptest! {
        #[test]
        fn a_stream_may_be_split_anywhere(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8),
            pieces in prop::collection::vec(1usize..64, 1..16),
        ) {
            let stream: Vec<u8> = messages.iter().flat_map(|message| frame(message)).collect();
            let (mut decoder, mut decoded, mut rest) = (LengthPrefix::new(), Vec::new(), &stream[..]);
            for &len in pieces.iter().cycle() {
                let (piece, after) = rest.split_at(len.min(rest.len()));
                decoded.extend(decode_all(&mut decoder, piece));
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(decoded, messages);
            prop_assert!(decoder.buffer.is_empty());
        }

        #[test]
        fn any_bytes_are_taken_within_the_bound(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..60),
        ) {
            let mut decoder = LengthPrefix::new();
            for piece in &pieces {
                decode_all(&mut decoder, piece);
                prop_assert!(decoder.buffer.len() < PREFIX_LEN + MAX_MESSAGE);
            }
        }
    }
}
