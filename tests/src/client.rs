//! What tests do at a client's end, within the deadline.

use crate::{process::DEADLINE, world::Netns};
use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
};

/// A connection that gives up at the deadline.
///
/// # Panics
/// When it is refused.
#[track_caller]
#[must_use]
pub fn connect(from: &Netns, address: &str) -> TcpStream {
    let stream = from.connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
    stream.set_read_timeout(Some(DEADLINE)).expect("the socket works");
    stream.set_write_timeout(Some(DEADLINE)).expect("the socket works");
    stream
}

/// Sends, ends, reads the answer; returns it.
///
/// # Panics
/// When the connection fails.
#[track_caller]
#[must_use]
pub fn ask(mut stream: TcpStream, question: &[u8]) -> Vec<u8> {
    stream.write_all(question).expect("it is taken");
    stream.shutdown(Shutdown::Write).expect("connected");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer and its end");
    answer
}

/// A byte there and back.
///
/// # Panics
/// When it does not come.
#[track_caller]
pub fn ping(stream: &mut TcpStream) {
    stream.write_all(b"x").expect("it is taken");
    stream.read_exact(&mut [0]).expect("an answer");
}
