//! Messages of D-Bus, little-endian.
//!
//! # Theory of operation
//! Goal: method calls to be sent, with the few argument types that units need; returns, errors and signals to be read as far as
//! one wants to know them. Not handled: descriptors, big-endian peers (ours are processes of this machine), nested answers.
//! A value begins at a multiple of its size, counted from the start of the message; header and body are padded to 8, so each
//! counts for itself.

use std::str;

/// Fixed part of a header: endianness, type, flags, version, body length, serial, length of the field array.
const FIXED: usize = 16;
const LITTLE_ENDIAN: u8 = b'l';
const VERSION: u8 = 1;
/// Largest message that is read. Ours are some hundred bytes; an error text is no longer.
pub const MAX_MESSAGE: usize = 64 * 1024;

const TYPE_CALL: u8 = 1;
const TYPE_RETURN: u8 = 2;
const TYPE_ERROR: u8 = 3;
const TYPE_SIGNAL: u8 = 4;

const FIELD_PATH: u8 = 1;
const FIELD_INTERFACE: u8 = 2;
const FIELD_MEMBER: u8 = 3;
const FIELD_ERROR_NAME: u8 = 4;
const FIELD_REPLY_SERIAL: u8 = 5;
const FIELD_DESTINATION: u8 = 6;
const FIELD_SIGNATURE: u8 = 8;

/// A method call without its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call<'a> {
    /// Whom; empty on a connection without a bus.
    pub destination: &'a str,
    /// Object.
    pub path: &'a str,
    /// Interface.
    pub interface: &'a str,
    /// Method.
    pub member: &'a str,
}

impl Call<'_> {
    /// The whole message. `signature` is that of the arguments in `body`.
    pub fn message(&self, serial: u32, signature: &str, body: &Writer) -> Vec<u8> {
        let mut fields = Writer::default();
        let strings = [
            (FIELD_PATH, "o", self.path),
            (FIELD_INTERFACE, "s", self.interface),
            (FIELD_MEMBER, "s", self.member),
            (FIELD_DESTINATION, "s", self.destination),
        ];
        for (code, kind, value) in strings.into_iter().filter(|(_, _, value)| !value.is_empty()) {
            fields.structure().byte(code).signature(kind).string(value);
        }
        if !signature.is_empty() {
            fields.structure().byte(FIELD_SIGNATURE).signature("g").signature(signature);
        }
        let mut message = Writer::default();
        message.byte(LITTLE_ENDIAN).byte(TYPE_CALL).byte(0).byte(VERSION);
        message.u32(length(&body.0)).u32(serial).u32(length(&fields.0));
        message.0.extend(&fields.0);
        message.align(8).0.extend(&body.0);
        message.0
    }
}

/// Puts values one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// `y`.
    pub fn byte(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    /// `u`, and `b` as 0 or 1.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.align(4).0.extend(value.to_le_bytes());
        self
    }

    /// `t`.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.align(8).0.extend(value.to_le_bytes());
        self
    }

    /// `s`, `o`.
    pub fn string(&mut self, value: &str) -> &mut Self {
        self.u32(length(value.as_bytes())).0.extend(value.bytes().chain([0]));
        self
    }

    /// `g`, and the type of a variant before its value; at most 255 bytes, which all of ours are.
    pub fn signature(&mut self, value: &str) -> &mut Self {
        self.0.push(u8::try_from(value.len()).unwrap_or(u8::MAX));
        self.0.extend(value.bytes().chain([0]));
        self
    }

    /// The start of a structure.
    pub fn structure(&mut self) -> &mut Self {
        self.align(8)
    }

    /// `a`: what `fill` puts, with its length before it; elements begin at multiples of `alignment`.
    pub fn array(&mut self, alignment: usize, fill: impl FnOnce(&mut Writer)) -> &mut Self {
        self.u32(0);
        let at = self.0.len() - 4;
        self.align(alignment);
        let start = self.0.len();
        fill(self);
        let filled = u32::try_from(self.0.len() - start).unwrap_or(u32::MAX);
        self.0[at..at + 4].copy_from_slice(&filled.to_le_bytes());
        self
    }

    fn align(&mut self, to: usize) -> &mut Self {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
        self
    }
}

/// A message that came.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Incoming {
    /// The answer to the call of that serial.
    Return {
        /// Serial of the call.
        serial: u32,
        /// What it returns.
        body: Body,
    },
    /// The refusal of the call of that serial.
    Error {
        /// Serial of the call.
        serial: u32,
        /// Name of the error, and its text if there is one.
        text: String,
    },
    /// A signal.
    Signal {
        /// Its name.
        member: String,
        /// Its arguments.
        body: Body,
    },
    /// Anything else.
    Other,
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Length of the message that `bytes` begin with, once there are enough to know.
///
/// # Errors
/// Bytes of something else, or of a message larger than [`MAX_MESSAGE`].
pub fn length_of(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    let Some(fixed) = bytes.get(..FIXED) else { return Ok(None) };
    if fixed[0] != LITTLE_ENDIAN || fixed[3] != VERSION {
        return Err(Malformed);
    }
    let mut reader = Reader { bytes: fixed, at: 4 };
    let body = reader.u32().ok_or(Malformed)? as usize;
    let fields = Reader { bytes: fixed, at: 12 }.u32().ok_or(Malformed)? as usize;
    let header = FIXED.checked_add(fields).ok_or(Malformed)?.next_multiple_of(8);
    let whole = header.checked_add(body).ok_or(Malformed)?;
    if whole > MAX_MESSAGE { Err(Malformed) } else { Ok(Some(whole)) }
}

/// Reads one whole message.
///
/// # Errors
/// It is none.
pub fn parse(bytes: &[u8]) -> Result<Incoming, Malformed> {
    let whole = length_of(bytes)?.ok_or(Malformed)?;
    let bytes = bytes.get(..whole).ok_or(Malformed)?;
    let end = FIXED + Reader { bytes, at: 12 }.u32().ok_or(Malformed)? as usize;
    let mut fields = Reader { bytes: bytes.get(..end).ok_or(Malformed)?, at: FIXED };
    let (mut serial, mut member, mut error) = (0, String::new(), String::new());
    while fields.at < end {
        fields.align(8);
        let code = fields.byte().ok_or(Malformed)?;
        let kind = fields.signature().ok_or(Malformed)?;
        match kind {
            "u" => {
                let value = fields.u32().ok_or(Malformed)?;
                if code == FIELD_REPLY_SERIAL {
                    serial = value;
                }
            }
            "s" | "o" => {
                let value = fields.string().ok_or(Malformed)?;
                match code {
                    FIELD_MEMBER => value.clone_into(&mut member),
                    FIELD_ERROR_NAME => value.clone_into(&mut error),
                    _ => {}
                }
            }
            "g" => drop(fields.signature().ok_or(Malformed)?),
            _ => return Err(Malformed),
        }
    }
    let body = Body(bytes.get(end.next_multiple_of(8)..).ok_or(Malformed)?.to_vec());
    Ok(match bytes[1] {
        TYPE_RETURN => Incoming::Return { serial, body },
        TYPE_ERROR => {
            let text = body.reader().string().unwrap_or_default();
            Incoming::Error { serial, text: if text.is_empty() { error } else { text.to_owned() } }
        }
        TYPE_SIGNAL => Incoming::Signal { member, body },
        _ => Incoming::Other,
    })
}

/// The arguments of a message that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body(Vec<u8>);

impl Body {
    /// Reads from the first argument on.
    pub fn reader(&self) -> Reader<'_> {
        Reader { bytes: &self.0, at: 0 }
    }
}

/// Takes values one after the other; `None` where there is none.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// `u`.
    pub fn u32(&mut self) -> Option<u32> {
        self.align(4);
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    /// `s`, `o`.
    pub fn string(&mut self) -> Option<&'a str> {
        let length = self.u32()? as usize;
        self.text(length)
    }

    fn signature(&mut self) -> Option<&'a str> {
        let length = self.byte()?.into();
        self.text(length)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    /// Text and the zero behind it.
    fn text(&mut self, length: usize) -> Option<&'a str> {
        let text = str::from_utf8(self.take(length)?).ok()?;
        (self.byte()? == 0).then_some(text)
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A return or signal as a peer would send it.
    fn incoming(kind: u8, fill: impl FnOnce(&mut Writer), body: &Writer) -> Vec<u8> {
        let mut message = Writer::default();
        message.byte(b'l').byte(kind).byte(0).byte(1).u32(length(&body.0)).u32(7).array(8, fill);
        message.align(8).0.extend(&body.0);
        message.0
    }

    #[test]
    fn a_call_is_laid_out_as_specified() {
        let call = Call { destination: "d.e", path: "/p", interface: "i.f", member: "M" };
        let mut body = Writer::default();
        body.string("x").u32(5);
        let message = call.message(2, "su", &body);
        // By hand, from the specification.
        let expected = [
            &b"l\x01\x00\x01\x0c\x00\x00\x00\x02\x00\x00\x00\x48\x00\x00\x00"[..],
            b"\x01\x01o\x00\x02\x00\x00\x00/p\x00\x00\x00\x00\x00\x00",
            b"\x02\x01s\x00\x03\x00\x00\x00i.f\x00\x00\x00\x00\x00",
            b"\x03\x01s\x00\x01\x00\x00\x00M\x00\x00\x00\x00\x00\x00\x00",
            b"\x06\x01s\x00\x03\x00\x00\x00d.e\x00\x00\x00\x00\x00",
            b"\x08\x01g\x00\x02su\x00",
            b"\x01\x00\x00\x00x\x00\x00\x00\x05\x00\x00\x00",
        ]
        .concat();
        assert_eq!(message, expected);
        assert_eq!(length_of(&message), Ok(Some(message.len())));
    }

    #[test]
    fn an_array_counts_its_elements_without_the_padding_before_them() {
        let mut writer = Writer::default();
        writer.array(8, |array| {
            array.structure().u32(1);
        });
        assert_eq!(writer.0, b"\x04\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00");
    }

    #[test]
    fn answers_errors_and_signals_are_told_apart() {
        let mut body = Writer::default();
        body.u32(3).string("/job/3").string("a.scope").string("done");
        let reply = |fields: &mut Writer| {
            fields.structure().byte(FIELD_REPLY_SERIAL).signature("u").u32(9);
        };
        let Ok(Incoming::Return { serial: 9, body: returned }) = parse(&incoming(TYPE_RETURN, reply, &body))
        else {
            panic!("no return")
        };
        let mut reader = returned.reader();
        assert_eq!(
            (reader.u32(), reader.string(), reader.string()),
            (Some(3), Some("/job/3"), Some("a.scope"))
        );
        assert_eq!((reader.string(), reader.string()), (Some("done"), None));

        let mut text = Writer::default();
        text.string("no such unit");
        let fields = |fields: &mut Writer| {
            reply(fields);
            fields.structure().byte(FIELD_ERROR_NAME).signature("s").string("org.x.No");
        };
        let expected = Incoming::Error { serial: 9, text: "no such unit".into() };
        assert_eq!(parse(&incoming(TYPE_ERROR, fields, &text)), Ok(expected));
        let expected = Incoming::Error { serial: 9, text: "org.x.No".into() };
        assert_eq!(parse(&incoming(TYPE_ERROR, fields, &Writer::default())), Ok(expected));

        let member = |fields: &mut Writer| {
            fields.structure().byte(FIELD_MEMBER).signature("s").string("JobRemoved");
        };
        let signal = parse(&incoming(TYPE_SIGNAL, member, &body));
        assert!(matches!(signal, Ok(Incoming::Signal { member, .. }) if member == "JobRemoved"));
    }

    #[test]
    fn torn_and_foreign_bytes_are_refused() {
        let body = Writer::default();
        let whole = incoming(TYPE_RETURN, |_| {}, &body);
        for length in 0..whole.len() {
            assert_ne!(length_of(&whole[..length]), Ok(Some(length)), "{length}");
            assert_eq!(parse(&whole[..length]), Err(Malformed), "{length}");
        }
        assert_eq!(length_of(b"HTTP/1.1 400 Bad"), Err(Malformed));
        let mut large = whole.clone();
        large[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(length_of(&large), Err(Malformed));
        // A field whose text is longer than the header.
        let long = incoming(
            TYPE_SIGNAL,
            |fields| {
                fields.structure().byte(3).signature("s").u32(1000);
            },
            &body,
        );
        assert_eq!(parse(&long), Err(Malformed));
    }
}
