//! What an event of epoll is about, as the number that the kernel keeps.

use crate::relay::Side;
use crate::udp_session::SessionId;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Stop,
    Inbox,
    Agent,
    Addresses,
    Auto,
    Look,
    Store,
    Listener(usize),
    UdpListener(usize),
    UdpSession(usize, SessionId),
    Pair(usize, u32, Side),
}

/// Generations fit the token beside slot and side.
pub(super) const GENERATIONS: u32 = (1 << 28) - 1;

impl From<Token> for u64 {
    fn from(token: Token) -> u64 {
        let (kind, generation, key) = match token {
            Token::Stop => (0, 0, 0),
            Token::Inbox => (1, 0, 0),
            Token::Agent => (2, 0, 0),
            Token::Addresses => (3, 0, 0),
            Token::Listener(key) => (4, 0, key),
            Token::Pair(key, generation, Side::Accepted) => (5, generation, key),
            Token::Pair(key, generation, Side::Opened) => (6, generation, key),
            Token::UdpListener(key) => (7, 0, key),
            Token::UdpSession(key, id) => (8, key as u32 & GENERATIONS, id.0),
            Token::Auto => (9, 0, 0),
            Token::Look => (10, 0, 0),
            Token::Store => (11, 0, 0),
        };
        kind << 60 | u64::from(generation) << 32 | key as u64 & u64::from(u32::MAX)
    }
}

impl From<u64> for Token {
    fn from(data: u64) -> Self {
        let key = data as u32 as usize;
        let generation = (data >> 32) as u32 & GENERATIONS;
        match data >> 60 {
            0 => Token::Stop,
            1 => Token::Inbox,
            2 => Token::Agent,
            3 => Token::Addresses,
            4 => Token::Listener(key),
            5 => Token::Pair(key, generation, Side::Accepted),
            7 => Token::UdpListener(key),
            8 => Token::UdpSession(generation as usize, SessionId(key)),
            9 => Token::Auto,
            10 => Token::Look,
            11 => Token::Store,
            _ => Token::Pair(key, generation, Side::Opened),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        for token in [
            Token::Stop,
            Token::Inbox,
            Token::Agent,
            Token::Addresses,
            Token::Listener(7),
            Token::Pair(123_456, GENERATIONS, Side::Accepted),
            Token::Pair(0, 1, Side::Opened),
            Token::UdpListener(3),
            Token::UdpSession(5, SessionId(4095)),
            Token::Auto,
            Token::Look,
            Token::Store,
        ] {
            assert_eq!(Token::from(u64::from(token)), token);
        }
    }
}
