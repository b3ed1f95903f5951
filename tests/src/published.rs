//! Published ports as their clients see them: servers made of socat(1) in the child, and clients anywhere.

use crate::{
    process::{DEADLINE, Pipe, Process},
    stream::Pattern,
};
use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

/// A script whose servers name their peer's address at TCP port 80 and UDP port 81 and return what they get at TCP port 82, until
/// standard input ends.
pub const SERVERS: &str = r"
socat -d -d TCP-LISTEN:80,fork SYSTEM:'echo $SOCAT_PEERADDR' &
socat -d -d UDP-RECVFROM:81,fork SYSTEM:'echo $SOCAT_PEERADDR' &
socat -d -d TCP-LISTEN:82,fork EXEC:cat &
while read -r line; do :; done
kill %1 %2 %3
";

/// Waits until all of the [`SERVERS`] that `child` runs are ready.
#[track_caller]
pub fn wait_for_servers(child: &mut Process) {
    for _ in 0..3 {
        child.wait_for(Pipe::Stderr, "ing on AF=2");
    }
}

/// Who we are for the server at TCP port 80.
///
/// # Panics
/// When it does not say.
#[track_caller]
#[must_use]
pub fn peer_by_tcp(mut stream: TcpStream) -> String {
    stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer and its end");
    answer.trim().to_owned()
}

/// Who we are for the server at UDP port 81. Asks again until an answer comes: datagrams may get lost.
///
/// # Panics
/// When none comes, or comes from elsewhere.
#[track_caller]
#[must_use]
pub fn peer_by_udp(socket: &UdpSocket, address: &str) -> String {
    let address = address.parse::<SocketAddr>().expect("an address");
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a socket");
    let mut buffer = [0; 100];
    for _ in 0..40 {
        socket.send_to(b"who am I", address).expect("send");
        if let Ok((n, from)) = socket.recv_from(&mut buffer) {
            assert_eq!(from, address, "the answer comes from where the question went");
            return String::from_utf8_lossy(&buffer[..n]).trim().to_owned();
        }
    }
    panic!("no answer from {address}");
}

/// Sends two megabytes to the server at TCP port 82, ends, and compares what comes back.
///
/// # Panics
/// When it differs.
#[track_caller]
pub fn expect_echo(mut stream: TcpStream) {
    let bytes = Pattern::bytes(5, 2_000_000);
    let mut writer = stream.try_clone().expect("descriptors are left");
    let sent = bytes.clone();
    let sender =
        thread::spawn(move || writer.write_all(&sent).and_then(|()| writer.shutdown(Shutdown::Write)));
    let mut back = Vec::new();
    stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
    stream.read_to_end(&mut back).expect("all of it comes back");
    sender.join().expect("the sender").expect("all of it was taken");
    assert!(back == bytes, "{} of {} bytes came back, or others", back.len(), bytes.len());
}
