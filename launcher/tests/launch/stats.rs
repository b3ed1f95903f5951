//! What the engine tells of itself.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, UdpSocket};

use crate::support::{Running, has_program, has_tap};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn a_signal_to_the_engine_lists_the_flows_and_the_network_goes_on() {
    if !has_tap() || !has_program("bash") {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let tcp = format!("10.0.42.2:{}", listener.local_addr().unwrap().port());
    let udp = format!("10.0.42.2/{}", datagrams.local_addr().unwrap().port());
    let script = format!(
        "exec bash -c 'exec 3<>/dev/tcp/{} 4<>/dev/udp/{udp}; printf four >&4; \
         while read -r line <&3; do echo \"$line\"; done'",
        tcp.replace(':', "/")
    );
    let mut running = Running::start(&["--ipv6=off", "--allow-host-loopback"], &script);
    let (mut connection, _) = listener.accept().unwrap();
    datagrams.recv(&mut [0; 16]).unwrap();

    let mut stderr = BufReader::new(running.launcher.stderr.take().unwrap());
    for round in ["one", "two", "three"] {
        // The line has come through: both flows are known.
        writeln!(connection, "{round}").unwrap();
        assert_eq!(running.line(), round);
        kill(Pid::from_raw(running.engine()), Signal::SIGUSR1).unwrap();
        let (mut tcp_seen, mut udp_seen) = (false, false);
        while !(tcp_seen && udp_seen) {
            let mut line = String::new();
            assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "{round}: the flows were not listed");
            let words: Vec<_> = line.split_whitespace().collect();
            tcp_seen |= matches!(words[..], ["tcp", _, remote, "open", ..] if remote == tcp);
            udp_seen |= matches!(words[..], ["udp", _, "any", "-", "4", "B", ..]);
        }
    }
    drop(connection);
    running.launcher.stderr = Some(stderr.into_inner());
    let (status, _) = running.end();
    assert_eq!(status.code(), Some(0));
}
