//! The egress relay: the forwarder alone between real kernels.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use forwarder::driver::{EgressAbility, EgressError};
use tests::{
    egress::{CHILD4, EgressLab, Outcome},
    locate,
    process::{DEADLINE, Process},
    servers::{Serve, Server, drain, pour, reset, verdict},
    stream::StreamHash,
    world::{HOST4, Netns, SERVICE4, SERVICE6, World},
};

fn lab() -> (World, Netns, EgressLab) {
    let world = World::new();
    let child = world.child();
    let lab = EgressLab::start(&world, &child);
    assert_eq!(lab.handle.egress_abilities().unwrap(), [EgressAbility::Possible; 2]);
    (world, child, lab)
}

#[track_caller]
fn connect(from: &Netns, address: &str) -> TcpStream {
    let stream = from.connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
    stream.set_read_timeout(Some(DEADLINE)).expect("the socket works");
    stream.set_write_timeout(Some(DEADLINE)).expect("the socket works");
    stream
}

/// A server's two names.
fn addresses(server: &Server) -> [String; 2] {
    [format!("{SERVICE4}:{}", server.port()), format!("[{SERVICE6}]:{}", server.port())]
}

const MUCH: u64 = 100 << 20;

#[test]
fn a_hundred_megabytes_arrive_whole_in_both_directions() {
    let (world, child, lab) = lab();
    let sink = Server::start(world.host.listen("[::]:0"), Serve::Sink);
    let source = Server::start(world.host.listen("[::]:0"), Serve::Source(MUCH, 7));
    for address in addresses(&sink) {
        let mut stream = connect(&child, &address);
        assert_eq!(stream.peer_addr().unwrap().to_string(), address);
        pour(&mut stream, MUCH, 5).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, verdict(MUCH, StreamHash::of_pattern(5, MUCH)));
        lab.joined();
        assert_eq!(lab.ended(), (MUCH, 16));
    }
    for address in addresses(&source) {
        let (hash, error) = drain(&mut connect(&child, &address));
        assert!(error.is_none(), "{error:?}");
        assert_eq!((hash.bytes(), hash.sum()), (MUCH, StreamHash::of_pattern(7, MUCH)));
        lab.joined();
        assert_eq!(lab.ended(), (0, MUCH));
    }
    assert_eq!(lab.strays(), 0, "nothing but handshakes leaves by the TAP");
}
