//! What tests do at a client's end, within the deadline.

use crate::{process::DEADLINE, stream::Pattern, world::Netns};
use nix::sys::socket::{MsgFlags, send};
use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    os::fd::AsRawFd,
    thread,
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

/// So many bytes, an urgent one, as many again and the end: whether the other end gets all of them in their order.
///
/// # Panics
/// When the connection fails, or is silent until the deadline.
#[track_caller]
#[must_use]
pub fn urgent_stays_in_place(from: TcpStream, mut to: TcpStream, bytes: usize) -> bool {
    let half = Pattern::bytes(1, bytes);
    let whole = [&half[..], b"!", &half].concat();
    to.set_read_timeout(Some(DEADLINE)).expect("the socket works");
    let sender = thread::spawn(move || {
        (&from).write_all(&half).expect("it is taken");
        send(from.as_raw_fd(), b"!", MsgFlags::MSG_OOB).expect("it is taken");
        (&from).write_all(&half).expect("it is taken");
        from.shutdown(Shutdown::Write).expect("connected");
        from
    });
    let mut received = Vec::new();
    to.read_to_end(&mut received).expect("all of it, and the end");
    drop(sender.join().expect("it has sent everything"));
    received == whole
}
