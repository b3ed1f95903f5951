//! The messages between our processes: one byte of kind, then fixed fields in little endian, then text.

use std::net::{Ipv6Addr, SocketAddr};

use forwarder::spec::Transport;
use thiserror::Error;

use crate::error::{Ending, Failure, Step};
use crate::holder::TakenPort;

/// Longest message in bytes; longer texts are cut.
pub const MAX_MESSAGE: usize = 4096;

/// What our processes tell each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Child: the TAP is up; its descriptor comes along.
    TapReady,
    /// Launcher to engine: serve the TAP whose descriptor comes along.
    Serve,
    /// Launcher to child: uid_map and gid_map are written; group ids from 0 up to this one exist.
    IdsMapped {
        /// Highest group id in the child's user namespace.
        last_gid: u32,
    },
    /// Child: addresses, routes and mounts are done.
    NetworkReady,
    /// Engine: frames are handled from now on.
    EngineReady,
    /// Guard: nothing outlives the launcher from now on.
    GuardReady,
    /// Launcher to child: run CMD.
    Execute,
    /// Launcher to guard: this is the engine, whose pidfd comes along.
    EngineStarted,
    /// Launcher to engine: CMD is about to run.
    Running,
    /// Launcher to engine and guard: CMD is dead and so is everything it started; leave.
    Stop,
    /// Init: CMD has been executed, or has failed to and has said so; its pidfd comes along.
    Started,
    /// Init: CMD was stopped by this signal.
    Stopped {
        /// The signal's number.
        signal: i32,
        /// How often it has been stopped, this time included.
        count: u32,
    },
    /// Init: CMD goes on.
    Continued,
    /// Launcher to init: goes on after it stopped for the stop of this count; if CMD has not gone on since, it is to.
    Resume {
        /// As in `Stopped`.
        count: u32,
    },
    /// Init: CMD is dead.
    Ended(Ending),
    /// Child: this is the network namespace that it made, of which the descriptor comes along.
    NetworkNamespace,
    /// Child or engine: the launch is over.
    Failed(Failure),
    /// Engine: the launch is over because somebody has this port of the host.
    PortTaken(TakenPort, Failure),
}

/// Bytes that are not a message.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("malformed message")]
pub struct MalformedMessage;

impl Message {
    /// The bytes of one packet, at most [`MAX_MESSAGE`].
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.kind()];
        match self {
            Message::IdsMapped { last_gid } => bytes.extend(last_gid.to_le_bytes()),
            Message::Stopped { signal, count } => {
                bytes.extend(signal.to_le_bytes());
                bytes.extend(count.to_le_bytes());
            }
            Message::Resume { count } => bytes.extend(count.to_le_bytes()),
            Message::Ended(ending) => {
                let (kind, number) = match ending {
                    Ending::Exited(status) => (0, status),
                    Ending::Killed(signal) => (1, signal),
                };
                bytes.push(kind);
                bytes.extend(number.to_le_bytes());
            }
            Message::Failed(failure) => encode_failure(failure, &mut bytes),
            Message::PortTaken(TakenPort { address, transport }, failure) => {
                bytes.push(u8::from(*transport == Transport::Udp));
                bytes.extend(address.port().to_le_bytes());
                let ip = match address {
                    SocketAddr::V4(address) => address.ip().to_ipv6_mapped(),
                    SocketAddr::V6(address) => *address.ip(),
                };
                bytes.extend(ip.octets());
                encode_failure(failure, &mut bytes);
            }
            _ => {}
        }
        bytes
    }

    /// Reads what [`encode`](Message::encode) wrote.
    ///
    /// # Errors
    /// Unknown kind, or too short or too long for it.
    pub fn decode(bytes: &[u8]) -> Result<Message, MalformedMessage> {
        let (&kind, rest) = bytes.split_first().ok_or(MalformedMessage)?;
        let (message, rest) = match kind {
            1 => (Message::TapReady, rest),
            2 => (Message::Serve, rest),
            3 => {
                let (last_gid, rest) = take(rest)?;
                (Message::IdsMapped { last_gid: u32::from_le_bytes(last_gid) }, rest)
            }
            4 => (Message::NetworkReady, rest),
            5 => (Message::EngineReady, rest),
            9 => (Message::GuardReady, rest),
            10 => (Message::Running, rest),
            12 => (Message::EngineStarted, rest),
            13 => (Message::Started, rest),
            14 => {
                let (signal, rest) = take(rest)?;
                let (count, rest) = take(rest)?;
                let (signal, count) = (i32::from_le_bytes(signal), u32::from_le_bytes(count));
                (Message::Stopped { signal, count }, rest)
            }
            15 => (Message::Continued, rest),
            16 => {
                let (count, rest) = take(rest)?;
                (Message::Resume { count: u32::from_le_bytes(count) }, rest)
            }
            17 => {
                let ([kind], rest) = take(rest)?;
                let (number, rest) = take(rest)?;
                let number = i32::from_le_bytes(number);
                let ending = match kind {
                    0 => Ending::Exited(number),
                    1 => Ending::Killed(number),
                    _ => return Err(MalformedMessage),
                };
                (Message::Ended(ending), rest)
            }
            18 => (Message::NetworkNamespace, rest),
            6 => (Message::Execute, rest),
            7 => (Message::Stop, rest),
            8 => (Message::Failed(decode_failure(rest)?), &[][..]),
            11 => {
                let ([transport], rest) = take(rest)?;
                let (port, rest) = take(rest)?;
                let (ip, rest) = take(rest)?;
                let transport = match transport {
                    0 => Transport::Tcp,
                    1 => Transport::Udp,
                    _ => return Err(MalformedMessage),
                };
                let ip = Ipv6Addr::from_octets(ip).to_canonical();
                let address = SocketAddr::new(ip, u16::from_le_bytes(port));
                (Message::PortTaken(TakenPort { address, transport }, decode_failure(rest)?), &[][..])
            }
            _ => return Err(MalformedMessage),
        };
        if rest.is_empty() { Ok(message) } else { Err(MalformedMessage) }
    }

    fn kind(&self) -> u8 {
        match self {
            Message::TapReady => 1,
            Message::Serve => 2,
            Message::IdsMapped { .. } => 3,
            Message::NetworkReady => 4,
            Message::EngineReady => 5,
            Message::GuardReady => 9,
            Message::Running => 10,
            Message::EngineStarted => 12,
            Message::Execute => 6,
            Message::Stop => 7,
            Message::Failed(_) => 8,
            Message::PortTaken(..) => 11,
            Message::Started => 13,
            Message::Stopped { .. } => 14,
            Message::Continued => 15,
            Message::Resume { .. } => 16,
            Message::Ended(_) => 17,
            Message::NetworkNamespace => 18,
        }
    }
}

fn encode_failure(failure: &Failure, bytes: &mut Vec<u8>) {
    bytes.push(failure.step as u8);
    bytes.extend(failure.errno.to_le_bytes());
    let room = MAX_MESSAGE - bytes.len();
    bytes.extend(&failure.value.as_bytes()[..failure.value.floor_char_boundary(room)]);
}

fn decode_failure(bytes: &[u8]) -> Result<Failure, MalformedMessage> {
    let ([step], rest) = take(bytes)?;
    let (errno, text) = take(rest)?;
    Ok(Failure {
        step: Step::from_code(step).ok_or(MalformedMessage)?,
        value: String::from_utf8(text.to_vec()).map_err(|_| MalformedMessage)?,
        errno: i32::from_le_bytes(errno),
    })
}

fn take<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8]), MalformedMessage> {
    bytes.split_first_chunk().map(|(head, rest)| (*head, rest)).ok_or(MalformedMessage)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Message> {
        vec![
            Message::TapReady,
            Message::Serve,
            Message::IdsMapped { last_gid: 65536 },
            Message::NetworkReady,
            Message::EngineReady,
            Message::GuardReady,
            Message::EngineStarted,
            Message::Running,
            Message::Execute,
            Message::Stop,
            Message::Started,
            Message::Stopped { signal: 20, count: 7 },
            Message::Continued,
            Message::Resume { count: 7 },
            Message::Ended(Ending::Exited(3)),
            Message::Ended(Ending::Killed(40)),
            Message::NetworkNamespace,
            Message::Failed(Failure { step: Step::Network, value: "route".into(), errno: libc::EPERM }),
            taken("192.0.2.1:80", Transport::Tcp),
            taken("[2001:db8::1]:53", Transport::Udp),
        ]
    }

    fn taken(address: &str, transport: Transport) -> Message {
        let port = TakenPort { address: address.parse().unwrap(), transport };
        Message::PortTaken(port, Failure { step: Step::Publish, value: "80:80".into(), errno: 0 })
    }

    #[test]
    fn messages_survive_the_wire() {
        for message in samples() {
            assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn every_shorter_or_longer_form_is_refused() {
        for message in samples() {
            let mut bytes = message.encode();
            let fixed = match message {
                Message::Failed(_) => 6,
                Message::PortTaken(..) => 25,
                _ => bytes.len(),
            };
            for end in 0..fixed {
                assert_eq!(Message::decode(&bytes[..end]), Err(MalformedMessage), "{message:?} cut to {end}");
            }
            if !matches!(message, Message::Failed(_) | Message::PortTaken(..)) {
                bytes.push(0);
                assert_eq!(Message::decode(&bytes), Err(MalformedMessage), "{message:?}");
            }
        }
        assert_eq!(Message::decode(&[99]), Err(MalformedMessage));
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let failure = Failure { step: Step::Mount, value: "ä".repeat(MAX_MESSAGE), errno: 0 };
        let bytes = Message::Failed(failure).encode();
        assert!(bytes.len() <= MAX_MESSAGE);
        assert!(matches!(Message::decode(&bytes), Ok(Message::Failed(_))));
    }
}
