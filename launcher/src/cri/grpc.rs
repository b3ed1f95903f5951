//! gRPC over HTTP/2 (RFC 9113), one call without streaming on a connection of its own.
//!
//! # Theory of operation
//! Everything that is to be said is said at once: preface, settings, a window large enough for any answer, headers as literals
//! (RFC 7541 section 6.2.2), the message. Of what comes, the data of the stream are the answer. Headers are not read: an answer
//! with a message is a good one, and one without is a refusal, whose words stay in the server's log.
//!
//! Not handled: requests above [`MAX_REQUEST`], compressed answers (none is asked for), a server that wants smaller windows than RFC
//! 9113 begins with.

use std::mem;

use thiserror::Error;

/// Longest message to a server, in bytes: what fits into a frame of any server.
pub const MAX_REQUEST: usize = 16_000;
/// Longest answer, in bytes; gRPC for CRI allows 16 MiB.
pub const MAX_ANSWER: usize = 16 << 20;

/// One call.
#[derive(Debug)]
pub struct Call {
    to_send: Vec<u8>,
    /// The beginning of a frame.
    received: Vec<u8>,
    /// What came of the answer.
    answer: Vec<u8>,
    is_ended: bool,
}

/// Why there is no answer.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum GrpcError {
    /// [`MAX_REQUEST`].
    #[error("a request of {0} bytes is too long")]
    Request(usize),
    /// It says something else than HTTP/2.
    #[error("what answers there does not speak gRPC")]
    NotGrpc,
    /// RST_STREAM.
    #[error("the server broke off the call (HTTP/2 error {0})")]
    Reset(u32),
    /// GOAWAY.
    #[error("the server ends the connection (HTTP/2 error {0})")]
    Gone(u32),
    /// It ended without a message.
    #[error("the server refused the call; its log tells why")]
    Refused,
    /// [`MAX_ANSWER`].
    #[error("the answer is longer than {MAX_ANSWER} bytes")]
    Answer,
}

impl Call {
    /// A call of `path`, such as `/runtime.v1.RuntimeService/ListContainers`.
    ///
    /// # Errors
    /// The request is too long.
    pub fn new(path: &str, message: &[u8]) -> Result<Self, GrpcError> {
        let length = u8::try_from(path.len()).ok().filter(|&length| length < LITERAL_MAX);
        let (Some(length), true) = (length, message.len() <= MAX_REQUEST) else {
            return Err(GrpcError::Request(path.len() + message.len()));
        };
        let window = u32::try_from(MAX_ANSWER + PREFIX).unwrap_or(u32::MAX / 2).to_be_bytes();
        let mut to_send = PREFACE.to_vec();
        frame(
            &mut to_send,
            SETTINGS,
            0,
            0,
            &[&SETTINGS_INITIAL_WINDOW_SIZE.to_be_bytes()[..], &window].concat(),
        );
        frame(&mut to_send, WINDOW_UPDATE, 0, 0, &window);
        // Static table (RFC 7541 appendix A): 3 is ":method: POST", 6 ":scheme: http", 4 the name ":path", 1 ":authority".
        let mut headers = vec![0x83, 0x86, 0x04, length];
        headers.extend_from_slice(path.as_bytes());
        headers.push(0x01);
        literal(&mut headers, "localhost");
        for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
            headers.push(0);
            literal(&mut headers, name);
            literal(&mut headers, value);
        }
        frame(&mut to_send, HEADERS, END_HEADERS, STREAM, &headers);
        let length = u32::try_from(message.len()).unwrap_or(0).to_be_bytes();
        frame(&mut to_send, DATA, END_STREAM, STREAM, &[&[0], &length[..], message].concat());
        Ok(Call { to_send, received: Vec::new(), answer: Vec::new(), is_ended: false })
    }

    /// Takes bytes from the server. The answer once it is whole.
    ///
    /// # Errors
    /// There will be none.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<Option<Vec<u8>>, GrpcError> {
        self.received.extend_from_slice(bytes);
        let received = mem::take(&mut self.received);
        let mut rest = &received[..];
        while let Some((head, after)) = rest.split_first_chunk::<HEAD>() {
            let [high, middle, low, kind, flags, stream @ ..] = *head;
            let length = u32::from_be_bytes([0, high, middle, low]) as usize;
            if length > MAX_FRAME {
                return Err(GrpcError::NotGrpc);
            }
            let Some((payload, after)) = after.split_at_checked(length) else { break };
            rest = after;
            self.handle(kind, flags, u32::from_be_bytes(stream) & !RESERVED, payload)?;
        }
        self.received = rest.to_vec();
        if !self.is_ended {
            return Ok(None);
        }
        let (prefix, message) = self.answer.split_first_chunk::<PREFIX>().ok_or(GrpcError::Refused)?;
        let [0, length @ ..] = *prefix else { return Err(GrpcError::NotGrpc) };
        match message.len() == u32::from_be_bytes(length) as usize {
            true => Ok(Some(message.to_vec())),
            false => Err(GrpcError::NotGrpc),
        }
    }

    /// What is to be sent now.
    pub fn poll_bytes(&mut self) -> Vec<u8> {
        mem::take(&mut self.to_send)
    }

    fn handle(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<(), GrpcError> {
        let code = |bytes: Option<&[u8; 4]>| bytes.map_or(0, |&code| u32::from_be_bytes(code));
        match (kind, stream) {
            (DATA, STREAM) => {
                let data = unpadded(flags, payload).ok_or(GrpcError::NotGrpc)?;
                if self.answer.len() + data.len() > MAX_ANSWER + PREFIX {
                    return Err(GrpcError::Answer);
                }
                self.answer.extend_from_slice(data);
                self.is_ended |= flags & END_STREAM != 0;
            }
            (HEADERS, STREAM) => self.is_ended |= flags & END_STREAM != 0,
            (RST_STREAM, STREAM) => return Err(GrpcError::Reset(code(payload.first_chunk()))),
            (GOAWAY, _) => {
                // The last stream that is served, and why.
                let last = code(payload.first_chunk()) & !RESERVED;
                if last < STREAM {
                    return Err(GrpcError::Gone(code(payload.get(4..).and_then(<[u8]>::first_chunk))));
                }
            }
            (SETTINGS, _) if flags & ACK == 0 => frame(&mut self.to_send, SETTINGS, ACK, 0, &[]),
            (PING, _) if flags & ACK == 0 => frame(&mut self.to_send, PING, ACK, 0, payload),
            _ => {}
        }
        Ok(())
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Of a frame's head (RFC 9113 section 4.1).
const HEAD: usize = 9;
/// Of a frame's payload, as long as we do not allow more (SETTINGS_MAX_FRAME_SIZE).
const MAX_FRAME: usize = 16_384;
/// Before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// Longer literals have a length of several bytes (RFC 7541 section 5.1).
const LITERAL_MAX: u8 = 0x7f;
/// The first stream of a client.
const STREAM: u32 = 1;
/// The bit before a stream's number.
const RESERVED: u32 = 1 << 31;
const SETTINGS_INITIAL_WINDOW_SIZE: u16 = 4;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const ACK: u8 = 0x1;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let [_, length @ ..] = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    out.extend_from_slice(&length);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// A string of fewer than [`LITERAL_MAX`] bytes.
fn literal(out: &mut Vec<u8>, text: &str) {
    out.extend(u8::try_from(text.len()));
    out.extend_from_slice(text.as_bytes());
}

fn unpadded(flags: u8, payload: &[u8]) -> Option<&[u8]> {
    if flags & PADDED == 0 {
        return Some(payload);
    }
    let (&padding, data) = payload.split_first()?;
    data.get(..data.len().checked_sub(padding.into())?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn call() -> Call {
        let mut call = Call::new("/a/B", b"xyz").unwrap();
        assert!(call.poll_bytes().starts_with(PREFACE));
        call
    }

    fn framed(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame(&mut bytes, kind, flags, stream, payload);
        bytes
    }

    fn answer(message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[0], &length[..], message].concat()
    }

    /// A server's words until the answer is whole.
    fn good() -> Vec<u8> {
        let data = answer(b"hello");
        let (first, second) = data.split_at(7);
        let padded = [&[2], second, &[0, 0]].concat();
        [
            framed(SETTINGS, 0, 0, &[]),
            framed(SETTINGS, ACK, 0, &[]),
            framed(PING, 0, 0, b"12345678"),
            framed(HEADERS, END_HEADERS, STREAM, &[0x88]),
            framed(DATA, 0, STREAM, first),
            framed(DATA, PADDED, STREAM, &padded),
            framed(HEADERS, END_HEADERS | END_STREAM, STREAM, &[0x88]),
        ]
        .concat()
    }

    #[test]
    fn a_request_is_said_at_once() {
        let said = Call::new("/a/B", b"xyz").unwrap().poll_bytes();
        let headers = b"\x83\x86\x04\x04/a/B\x01\x09localhost\x00\x0ccontent-type\x10application/grpc\x00\x02te\x08trailers";
        let rest =
            [framed(HEADERS, END_HEADERS, 1, headers), framed(DATA, END_STREAM, 1, b"\0\0\0\0\x03xyz")]
                .concat();
        assert!(said.ends_with(&rest), "{said:?}");
    }

    #[test]
    fn an_answer_comes_in_any_pieces() {
        let mut call = call();
        for byte in &good()[..good().len() - 1] {
            assert_eq!(call.receive(&[*byte]), Ok(None));
        }
        assert_eq!(call.receive(&good()[good().len() - 1..]), Ok(Some(b"hello".to_vec())));
        let said = call.poll_bytes();
        assert_eq!(said, [framed(SETTINGS, ACK, 0, &[]), framed(PING, ACK, 0, b"12345678")].concat());
    }

    #[test]
    fn an_empty_message_is_an_answer_and_none_is_a_refusal() {
        assert_eq!(call().receive(&framed(DATA, END_STREAM, 1, &answer(b""))), Ok(Some(Vec::new())));
        assert_eq!(call().receive(&framed(HEADERS, END_STREAM, 1, &[0x88])), Err(GrpcError::Refused));
    }

    #[test]
    fn what_ends_a_call_is_told() {
        let code = 8u32.to_be_bytes();
        assert_eq!(call().receive(&framed(RST_STREAM, 0, 1, &code)), Err(GrpcError::Reset(8)));
        let gone = |last: u32| [last.to_be_bytes(), code].concat();
        assert_eq!(call().receive(&framed(GOAWAY, 0, 0, &gone(0))), Err(GrpcError::Gone(8)));
        assert_eq!(call().receive(&framed(GOAWAY, 0, 0, &gone(1))), Ok(None));
        assert_eq!(call().receive(b"HTTP/1.1 400 Bad Request\r\n\r\n"), Err(GrpcError::NotGrpc));
        let compressed = framed(DATA, END_STREAM, 1, &[1, 0, 0, 0, 0]);
        assert_eq!(call().receive(&compressed), Err(GrpcError::NotGrpc));
        assert_eq!(Call::new("/a", &[0; MAX_REQUEST + 1]).unwrap_err(), GrpcError::Request(MAX_REQUEST + 3));
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..120) {
            let _ = call().receive(&bytes);
            let mut call = call();
            let begun = call.receive(&good()[..cut.min(good().len())]);
            if begun == Ok(None) {
                let _ = call.receive(&bytes);
            }
        }
    }
}
