//! DNS messages, as much of RFC 1035 as a forwarder reads: header, first question, presence of EDNS.
//!
//! # Theory of operation
//! [`Message`] and [`Question`] are views of bytes that somebody else wrote; nothing is copied and no record
//! data is interpreted. [`Reply`] writes the messages of the engine's own making. Not handled: name
//! compression in questions (there is nothing before a first question that a pointer could name, so such a
//! question is malformed), TSIG and SIG(0) (a reply of our own is never signed).

use std::ops::Range;

/// Header length in bytes, RFC 1035 section 4.1.1.
pub(crate) const HEADER_LEN: usize = 12;

/// What a responder of ours takes and gives over UDP: fits the IPv6 minimum MTU without fragments.
pub(crate) const UDP_PAYLOAD: u16 = 1232;

/// Message size over UDP without EDNS, RFC 1035 section 2.3.4.
const UDP_PAYLOAD_MIN: u16 = 512;

/// A message of at least [`HEADER_LEN`] bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a>(&'a [u8]);

impl<'a> Message<'a> {
    /// `None` if the bytes end within the header.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        (bytes.len() >= HEADER_LEN).then_some(Message(bytes))
    }

    pub(crate) fn id(self) -> u16 {
        self.word(field::ID)
    }

    pub(crate) fn is_response(self) -> bool {
        self.flags() & flag::RESPONSE != 0
    }

    pub(crate) fn opcode(self) -> u8 {
        (self.flags() >> 11) as u8 & 0x0f
    }

    pub(crate) fn rcode(self) -> u8 {
        self.flags() as u8 & 0x0f
    }

    pub(crate) fn question_count(self) -> u16 {
        self.word(field::QUESTIONS)
    }

    /// The first question; `None` if there is none or it does not parse.
    pub(crate) fn question(self) -> Option<Question<'a>> {
        if self.question_count() == 0 {
            return None;
        }
        let name_len = plain_name_len(self.0.get(HEADER_LEN..)?)?;
        let bytes = self.0.get(HEADER_LEN..HEADER_LEN + name_len + 4)?;
        Some(Question { bytes, name_len })
    }

    /// The OPT record (RFC 6891) of a message with one question. It has to be unique and owned by the root.
    pub(crate) fn edns(self) -> Result<Option<Edns>, BadRecords> {
        let question = self.question().ok_or(BadRecords)?;
        let mut rest = &self.0[HEADER_LEN + question.bytes.len()..];
        let before = u32::from(self.word(field::ANSWERS)) + u32::from(self.word(field::AUTHORITIES));
        let additional = u32::from(self.word(field::ADDITIONAL));
        let mut edns = None;
        for number in 0..before + additional {
            let (owner, fixed, after) = split_record(rest).ok_or(BadRecords)?;
            rest = after;
            if number < before || be16(&fixed[0..2]) != kind::OPT {
                continue;
            }
            if owner != [0] || edns.is_some() {
                return Err(BadRecords);
            }
            edns = Some(Edns { payload: be16(&fixed[2..4]), version: fixed[5], flags: be16(&fixed[6..8]) });
        }
        Ok(edns)
    }

    fn flags(self) -> u16 {
        self.word(field::FLAGS)
    }

    fn word(self, field: Range<usize>) -> u16 {
        be16(&self.0[field])
    }
}

/// The records behind the question contradict their lengths or RFC 6891 section 6.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadRecords;

/// A question: name, type, class.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question<'a> {
    bytes: &'a [u8],
    name_len: usize,
}

impl<'a> Question<'a> {
    /// The name in wire format, case as the sender wrote it.
    pub(crate) fn name(self) -> &'a [u8] {
        &self.bytes[..self.name_len]
    }

    /// QTYPE.
    pub(crate) fn kind(self) -> u16 {
        be16(&self.bytes[self.name_len..self.name_len + 2])
    }

    /// QCLASS.
    pub(crate) fn class(self) -> u16 {
        be16(&self.bytes[self.name_len + 2..self.name_len + 4])
    }

    /// Whether both ask the same; names compare without case (RFC 4343).
    pub(crate) fn matches(self, other: Question<'_>) -> bool {
        // Label lengths are below 'A', so folding case cannot confuse them.
        self.name().eq_ignore_ascii_case(other.name())
            && self.bytes[self.name_len..] == other.bytes[other.name_len..]
    }
}

/// What an OPT record says, RFC 6891 section 6.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edns {
    payload: u16,
    pub(crate) version: u8,
    flags: u16,
}

impl Edns {
    /// Longest message in bytes that its sender takes over UDP and we care to send.
    pub(crate) fn udp_limit(edns: Option<Edns>) -> usize {
        edns.map_or(UDP_PAYLOAD_MIN, |edns| edns.payload.clamp(UDP_PAYLOAD_MIN, UDP_PAYLOAD)).into()
    }
}

/// A message of the engine's own that answers `query`.
#[derive(Debug)]
pub(crate) struct Reply {
    bytes: Vec<u8>,
    rcode: u16,
    edns: Option<Edns>,
    limit: usize,
    answers: u16,
}

impl Reply {
    /// Copies id, opcode, RD, CD and `question`; RA is set, for the engine does recurse. The reply carries an
    /// OPT record exactly if the query did (RFC 6891 section 6.1.1) and grows to at most `limit` bytes.
    pub(crate) fn new(
        query: Message<'_>,
        question: Option<Question<'_>>,
        edns: Option<Edns>,
        rcode: u16,
        limit: usize,
    ) -> Self {
        let copied = query.flags() & (flag::OPCODE | flag::RECURSION_DESIRED | flag::CHECKING_DISABLED);
        let flags = copied | flag::RESPONSE | flag::RECURSION_AVAILABLE | (rcode & 0x0f);
        let mut bytes = Vec::with_capacity(HEADER_LEN + question.map_or(0, |q| q.bytes.len()) + 64);
        for word in [query.id(), flags, u16::from(question.is_some()), 0, 0, u16::from(edns.is_some())] {
            bytes.extend(word.to_be_bytes());
        }
        if let Some(question) = question {
            bytes.extend(question.bytes);
        }
        Reply { bytes, rcode, edns, limit, answers: 0 }
    }

    /// Marks the reply as authoritative.
    pub(crate) fn authoritative(&mut self) {
        self.set(flag::AUTHORITATIVE);
    }

    /// Adds an answer of class IN owned by the question's name. One that does not fit sets TC instead
    /// (RFC 2181 section 9).
    pub(crate) fn answer(&mut self, kind: u16, ttl: u32, data: &[u8]) {
        let Ok(data_len) = u16::try_from(data.len()) else { return };
        let opt_len = if self.edns.is_some() { OPT_LEN } else { 0 };
        if self.bytes.len() + RECORD_LEN + data.len() + opt_len > self.limit {
            self.set(flag::TRUNCATED);
            return;
        }
        self.bytes.extend(POINTER_TO_QUESTION);
        self.bytes.extend(kind.to_be_bytes());
        self.bytes.extend(class::IN.to_be_bytes());
        self.bytes.extend(ttl.to_be_bytes());
        self.bytes.extend(data_len.to_be_bytes());
        self.bytes.extend(data);
        self.answers += 1;
    }

    /// The finished message.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes[field::ANSWERS].copy_from_slice(&self.answers.to_be_bytes());
        if let Some(edns) = self.edns {
            self.bytes.push(0);
            self.bytes.extend(kind::OPT.to_be_bytes());
            self.bytes.extend(UDP_PAYLOAD.to_be_bytes());
            // Upper bits of the RCODE, version 0, and of the flags only DO, which RFC 3225 has copied.
            self.bytes.extend([(self.rcode >> 4) as u8, 0]);
            self.bytes.extend((edns.flags & EDNS_DNSSEC_OK).to_be_bytes());
            self.bytes.extend([0, 0]);
        }
        self.bytes
    }

    fn set(&mut self, flag: u16) {
        let flags = be16(&self.bytes[field::FLAGS]) | flag;
        self.bytes[field::FLAGS].copy_from_slice(&flags.to_be_bytes());
    }
}

/// `message` with its id replaced; the message has a header.
pub(crate) fn with_id(message: &[u8], id: u16) -> Vec<u8> {
    let mut message = message.to_vec();
    if let Some(field) = message.get_mut(field::ID) {
        field.copy_from_slice(&id.to_be_bytes());
    }
    message
}

/// `name` (dots between labels, final dot or not) in wire format and lower case; `None` unless its lengths
/// are those of RFC 1035 section 2.3.4.
pub(crate) fn wire_name(name: &str) -> Option<Vec<u8>> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let mut wire = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        let len = u8::try_from(label.len()).ok().filter(|len| (1..=LABEL_MAX).contains(len))?;
        wire.push(len);
        wire.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
    }
    wire.push(0);
    (wire.len() <= NAME_MAX).then_some(wire)
}

/// Length in bytes of the uncompressed name at the start of `bytes`.
fn plain_name_len(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let len = *bytes.get(at)?;
        at += 1 + usize::from(len);
        if len > LABEL_MAX || at > NAME_MAX {
            return None;
        }
        if len == 0 {
            return Some(at);
        }
    }
}

/// Splits a record off: owner name, then type, class, TTL and length, then what follows the record.
fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8; 10], &[u8])> {
    let mut at = 0;
    loop {
        let len = *bytes.get(at)?;
        match len {
            0 => at += 1,
            1..=LABEL_MAX => {
                at += 1 + usize::from(len);
                continue;
            }
            // A pointer ends the name; where it leads is nobody's business here.
            0xc0.. => at += 2,
            _ => return None,
        }
        break;
    }
    let (owner, rest) = bytes.split_at_checked(at)?;
    let (fixed, rest) = rest.split_first_chunk::<10>()?;
    let rest = rest.get(usize::from(be16(&fixed[8..10]))..)?;
    Some((owner, fixed, rest))
}

fn be16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

const LABEL_MAX: u8 = 63;
const NAME_MAX: usize = 255;
/// Pointer to the question's name, type, class, TTL, data length.
const RECORD_LEN: usize = 12;
const OPT_LEN: usize = 11;
const POINTER_TO_QUESTION: [u8; 2] = [0xc0, HEADER_LEN as u8];
const EDNS_DNSSEC_OK: u16 = 0x8000;

/// Header fields, RFC 1035 section 4.1.1.
mod field {
    use std::ops::Range;

    pub(super) const ID: Range<usize> = 0..2;
    pub(super) const FLAGS: Range<usize> = 2..4;
    pub(super) const QUESTIONS: Range<usize> = 4..6;
    pub(super) const ANSWERS: Range<usize> = 6..8;
    pub(super) const AUTHORITIES: Range<usize> = 8..10;
    pub(super) const ADDITIONAL: Range<usize> = 10..12;
}

/// Header flags, RFC 1035 section 4.1.1 and RFC 4035 section 3.2.2.
mod flag {
    pub(super) const RESPONSE: u16 = 0x8000;
    pub(super) const OPCODE: u16 = 0x7800;
    pub(super) const AUTHORITATIVE: u16 = 0x0400;
    pub(super) const TRUNCATED: u16 = 0x0200;
    pub(super) const RECURSION_DESIRED: u16 = 0x0100;
    pub(super) const RECURSION_AVAILABLE: u16 = 0x0080;
    pub(super) const CHECKING_DISABLED: u16 = 0x0010;
}

/// Operation codes.
pub(crate) mod opcode {
    pub(crate) const QUERY: u8 = 0;
}

/// Response codes; the upper bits of those above 15 travel in the OPT record.
pub(crate) mod rcode {
    pub(crate) const NO_ERROR: u8 = 0;
    pub(crate) const FORM_ERR: u8 = 1;
    pub(crate) const SERV_FAIL: u8 = 2;
    pub(crate) const NX_DOMAIN: u8 = 3;
    pub(crate) const NOT_IMP: u8 = 4;
    pub(crate) const REFUSED: u8 = 5;
    pub(crate) const BAD_VERS: u16 = 16;
}

/// Record types.
pub(crate) mod kind {
    pub(crate) const A: u16 = 1;
    pub(crate) const PTR: u16 = 12;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const ANY: u16 = 255;
}

/// Classes.
pub(crate) mod class {
    pub(crate) const IN: u16 = 1;
    pub(crate) const ANY: u16 = 255;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x12, 0x34, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend(name);
        bytes.extend([0, 65, 0, 1]);
        bytes
    }

    #[test]
    fn a_question_of_another_type_does_not_match_even_if_the_types_differ_by_case() {
        let https = query(b"\x01a\x00");
        let mut other = https.clone();
        other[HEADER_LEN + 4] = 97;
        let [https, other] = [&https, &other].map(|bytes| Message::parse(bytes).unwrap().question().unwrap());
        assert_eq!((https.kind(), other.kind()), (65, 97));
        assert!(!https.matches(other));
    }

    #[test]
    fn names_match_without_case() {
        let (lower, upper) = (query(b"\x03abc\x00"), query(b"\x03AbC\x00"));
        let [lower, upper] = [&lower, &upper].map(|bytes| Message::parse(bytes).unwrap().question().unwrap());
        assert!(lower.matches(upper));
    }

    #[test]
    fn compressed_overlong_and_cut_questions_do_not_parse() {
        let overlong: Vec<u8> = [&[63; 64][..]; 4].concat().into_iter().chain([0]).collect();
        for name in [&b"\xc0\x0c"[..], b"\x40a", &overlong] {
            assert!(Message::parse(&query(name)).unwrap().question().is_none());
        }
        let whole = query(b"\x03abc\x00");
        for end in HEADER_LEN..whole.len() {
            assert!(Message::parse(&whole[..end]).unwrap().question().is_none());
        }
    }

    #[test]
    fn wire_names_have_the_lengths_of_rfc_1035() {
        assert_eq!(wire_name("Ab.c.").unwrap(), b"\x02ab\x01c\x00");
        let label = "x".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}", "x".repeat(61));
        assert_eq!(wire_name(&longest).unwrap().len(), 255);
        for bad in ["", ".", "a..b", ".a", &format!("{longest}x"), &"x".repeat(64)] {
            assert_eq!(wire_name(bad), None, "{bad}");
        }
    }
}
