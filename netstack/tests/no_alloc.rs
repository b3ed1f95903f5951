//! The established path allocates nothing: a counting allocator around every call into the stack.
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;

use netstack::action::{Action, HostEvent};
use netstack::forward::{ForwardSource, UdpForward};
use netstack::frame::{Frame, Offload};
use netstack::packet::{MAX_HEADERS, Tcp};
use netstack::stack::{Datagram, FRAME_BUFFER, HostIo, Stack};
use netstack::testing::frames::{self, CHILD, CHILD6, Seen, Segment, WORLD, WORLD6};
use netstack::testing::{ALL_OFFLOADS, NO_OFFLOADS, config};
use netstack::time::{Duration, Instant};

struct Counting;

thread_local! {
    static COUNTED: Cell<Option<usize>> = const { Cell::new(None) };
}

#[expect(unsafe_code, reason = "a global allocator is unsafe to implement")]
// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() {
    COUNTED.with(|counted| counted.set(counted.get().map(|n| n + 1)));
}

/// Allocations of this thread while `work` runs.
fn allocations(work: impl FnOnce()) -> usize {
    COUNTED.with(|counted| counted.set(Some(0)));
    work();
    COUNTED.with(|counted| counted.replace(None)).unwrap_or(0)
}

fn stack(offloads: bool) -> Stack {
    let link = if offloads { ALL_OFFLOADS } else { NO_OFFLOADS };
    Stack::new(config().build().expect("a configuration"), link, Instant::from_secs(1000))
}

fn ends() -> [(SocketAddr, SocketAddr); 2] {
    [
        (SocketAddr::new(CHILD.into(), 40_000), SocketAddr::new(WORLD.into(), 80)),
        (SocketAddr::new(CHILD6.into(), 40_000), SocketAddr::new(WORLD6.into(), 80)),
    ]
}

/// One request, its echo, and the child's ACK of it; panics with what went wrong.
struct TcpEcho {
    stack: Stack,
    buffer: Vec<u8>,
    now: Instant,
    segment: Segment,
    payload: Vec<u8>,
}

impl TcpEcho {
    fn open(mut stack: Stack, child: SocketAddr, remote: SocketAddr, payload: usize) -> Self {
        let now = Instant::from_secs(1000);
        let mut buffer = vec![0; FRAME_BUFFER];
        while stack.poll_frame(now, &mut buffer).is_some() {}
        let mut syn = Segment::syn(child, remote, 1440).frame();
        stack
            .handle_frame(now, Frame { bytes: &mut syn, offload: Offload::default(), slot: 0 })
            .expect("a flow");
        let Some(Action::Connect { flow, .. }) = stack.poll_action() else { panic!("no connect") };
        stack.handle_host(now, flow, HostEvent::Connected);
        let out = stack.poll_frame(now, &mut buffer).expect("a SYN-ACK");
        let syn_ack = Seen::read(&buffer[..out.len]).tcp();
        let segment = Segment {
            sequence: 1001,
            acknowledgement: syn_ack.sequence.wrapping_add(1),
            ..Segment::new(child, remote, Tcp::ACK)
        };
        TcpEcho { stack, buffer, now, segment, payload: vec![7; payload] }
    }

    /// The same, opened from the host's side: `remote` is the client.
    fn publish(mut stack: Stack, child: SocketAddr, remote: SocketAddr, payload: usize) -> Self {
        let now = Instant::from_secs(1000);
        let mut buffer = vec![0; FRAME_BUFFER];
        introduce(&mut stack, &mut buffer, child, remote);
        let flow = stack.open_to_child(now, remote, child).expect("a flow");
        let out = stack.poll_frame(now, &mut buffer).expect("a SYN");
        let syn = Seen::read(&buffer[..out.len]).tcp();
        let acknowledgement = syn.sequence.wrapping_add(1);
        let mut syn_ack = Segment {
            acknowledgement,
            options: vec![2, 4, 5, 0xa0],
            ..Segment::new(child, remote, Tcp::SYN | Tcp::ACK)
        }
        .frame();
        let frame = Frame { bytes: &mut syn_ack, offload: Offload::default(), slot: 0 };
        stack.handle_frame(now, frame).expect("the flow's");
        assert!(stack.flows().any(|info| info.id == flow));
        while stack.poll_frame(now, &mut buffer).is_some() {}
        let segment = Segment { sequence: 1001, acknowledgement, ..Segment::new(child, remote, Tcp::ACK) };
        TcpEcho { stack, buffer, now, segment, payload: vec![7; payload] }
    }

    fn round(&mut self) -> usize {
        let TcpEcho { stack, buffer, now, segment, payload } = self;
        *now += Duration::from_micros(100);
        segment.payload.clone_from(payload);
        let mut frame = segment.frame();
        segment.sequence = segment.sequence.wrapping_add(payload.len() as u32);
        let mut echoed = 0;
        let mut counted = allocations(|| {
            let _ =
                stack.handle_frame(*now, Frame { bytes: &mut frame, offload: Offload::default(), slot: 0 });
            loop {
                let mut idle = true;
                while let Some(action) = stack.poll_action() {
                    idle = false;
                    match action {
                        Action::HostWrite { flow } => {
                            stack.with_host_tx(*now, flow, |bytes| HostIo::Moved(bytes.len()));
                            stack.handle_host(*now, flow, HostEvent::Readable);
                        }
                        Action::HostRead { flow } => stack.with_host_rx(*now, flow, |room| {
                            let n = payload.len() - echoed;
                            assert!(room.len() >= n);
                            room[..n].fill(8);
                            echoed += n;
                            if n == 0 { HostIo::WouldBlock } else { HostIo::MovedAll(n) }
                        }),
                        other => panic!("{other:?}"),
                    }
                }
                while let Some(_out) = stack.poll_frame(*now, buffer) {
                    idle = false;
                }
                if idle {
                    break;
                }
            }
            stack.poll_timeout();
        });
        assert_eq!(echoed, payload.len());
        segment.acknowledgement = segment.acknowledgement.wrapping_add(payload.len() as u32);
        segment.payload.clear();
        let mut ack = segment.frame();
        counted += allocations(|| {
            let _ = stack.handle_frame(*now, Frame { bytes: &mut ack, offload: Offload::default(), slot: 0 });
            while stack.poll_action().is_some() {}
            while stack.poll_frame(*now, buffer).is_some() {}
            if stack.poll_timeout().is_some_and(|at| at <= *now) {
                stack.handle_timeout(*now);
            }
        });
        counted
    }
}

/// The child speaks, so that the stack knows where it lives.
fn introduce(stack: &mut Stack, buffer: &mut [u8], child: SocketAddr, remote: SocketAddr) {
    let now = Instant::from_secs(1000);
    let mut frame = frames::udp(SocketAddr::new(child.ip(), 9), remote, b"hello");
    let frame = Frame { bytes: &mut frame, offload: Offload::default(), slot: 0 };
    stack.handle_frame(now, frame).expect("a binding");
    while stack.poll_action().is_some() {}
    stack.release_slots();
    while stack.poll_frame(now, buffer).is_some() {}
}

#[test]
fn a_tcp_echo_allocates_nothing() {
    for offloads in [true, false] {
        for (child, remote) in ends() {
            for payload in [1, 1000, 9000] {
                for open in [TcpEcho::open, TcpEcho::publish] {
                    let mut echo = open(stack(offloads), child, remote, payload);
                    for _ in 0..50 {
                        echo.round();
                    }
                    let counted: usize = (0..500).map(|_| echo.round()).sum();
                    assert_eq!(counted, 0, "{remote}, {payload} bytes, offloads: {offloads}");
                }
            }
        }
    }
}

#[test]
fn a_session_of_a_published_udp_port_allocates_nothing() {
    for offloads in [true, false] {
        for (child, client) in ends() {
            let mut stack = stack(offloads);
            let mut buffer = vec![0; FRAME_BUFFER];
            introduce(&mut stack, &mut buffer, child, client);
            let forward = UdpForward { child, source: ForwardSource::Client };
            let forward = stack.add_udp_forward(forward).expect("an address of the child");
            let mut frame = frames::udp(child, client, &[1; 1000]);
            let mut headers = [0; MAX_HEADERS];
            let mut now = Instant::from_secs(1000);
            let mut round = |stack: &mut Stack| {
                now += Duration::from_micros(100);
                allocations(|| {
                    let session = stack.session(now, forward, client, None).expect("a session");
                    let datagram = Datagram {
                        from: client,
                        payload: &[2; 1000],
                        total: 1000,
                        gso: netstack::frame::Gso::None,
                    };
                    let question = stack.handle_datagram(now, session.flow, datagram, &mut headers);
                    assert!(question.is_ok());
                    let frame = Frame { bytes: &mut frame, offload: Offload::default(), slot: 0 };
                    stack.handle_frame(now, frame).expect("the session's");
                    let answer = stack.poll_action();
                    assert!(matches!(answer, Some(Action::SendDatagram { remote, .. }) if remote == client));
                    stack.release_slots();
                    stack.poll_timeout();
                })
            };
            for _ in 0..20 {
                round(&mut stack);
            }
            let counted: usize = (0..500).map(|_| round(&mut stack)).sum();
            assert_eq!(counted, 0, "{client}, offloads: {offloads}");
        }
    }
}

#[test]
fn a_udp_exchange_allocates_nothing_but_the_remotes_it_remembers() {
    for offloads in [true, false] {
        for (child, remote) in ends() {
            let mut stack = stack(offloads);
            let mut buffer = vec![0; FRAME_BUFFER];
            let mut now = Instant::from_secs(1000);
            let mut flow_id = None;
            let mut frame = frames::udp(child, remote, &[1; 1000]);
            let mut headers = [0; MAX_HEADERS];
            let mut round = |stack: &mut Stack| {
                now += Duration::from_micros(100);
                allocations(|| {
                    let frame = Frame { bytes: &mut frame, offload: Offload::default(), slot: 0 };
                    let _ = stack.handle_frame(now, frame);
                    while let Some(action) = stack.poll_action() {
                        match action {
                            Action::OpenDatagram { flow, .. } => flow_id = Some(flow),
                            Action::SendDatagram { .. } => {}
                            other => panic!("{other:?}"),
                        }
                    }
                    stack.release_slots();
                    let flow = flow_id.expect("a binding");
                    let datagram = Datagram {
                        from: remote,
                        payload: &[2; 1000],
                        total: 1000,
                        gso: netstack::frame::Gso::None,
                    };
                    let answer = stack.handle_datagram(now, flow, datagram, &mut headers);
                    assert!(answer.is_ok());
                    while stack.poll_frame(now, &mut buffer).is_some() {}
                    stack.poll_timeout();
                })
            };
            for _ in 0..20 {
                round(&mut stack);
            }
            let counted: usize = (0..500).map(|_| round(&mut stack)).sum();
            assert_eq!(counted, 0, "{remote}, offloads: {offloads}");
        }
    }
}

#[cfg(feature = "driver")]
#[expect(clippy::disallowed_types, reason = "somebody on the host's side")]
#[test]
fn datagrams_pass_a_driver_in_both_directions_without_an_allocation() {
    use netstack::config::{Access, Ipv6Mode};
    use netstack::{Driver, PacketSocket};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use nix::unistd::{read, write};

    const BATCH: usize = 12;
    /// Turns that a batch takes at most, and the list of events that each call of `finish` makes for itself.
    const CALLS: usize = 4;

    let host = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let port = host.local_addr().expect("it is bound").port();
    host.set_nonblocking(true).expect("a socket");
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (link, child) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).expect("a pair of sockets");
    let config = config().ipv6_mode(Ipv6Mode::Off).host_loopback(Access::Allow).build().expect("valid");
    let mut driver =
        Driver::new(PacketSocket::new(link).expect("a packet socket"), config).expect("a driver");
    let remote = SocketAddr::new(frames::GATEWAY.into(), port);
    let frame = frames::udp(SocketAddr::new(CHILD.into(), 40_000), remote, &[1; 1000]);
    let mut buffer = vec![0; FRAME_BUFFER];
    let mut round = || {
        let serve = |driver: &mut Driver| {
            allocations(|| (0..CALLS).for_each(|_| driver.finish().expect("the link is there")))
        };
        for _ in 0..BATCH {
            write(&child, &frame).expect("room");
        }
        let mut counted = serve(&mut driver);
        for _ in 0..BATCH {
            let (len, from) = host.recv_from(&mut buffer).expect("what the child sent");
            host.send_to(&buffer[..len], from).expect("an answer");
        }
        counted += serve(&mut driver);
        for _ in 0..BATCH {
            assert_eq!(read(&child, &mut buffer).expect("the answer"), frame.len());
        }
        counted
    };
    for _ in 0..20 {
        round();
    }
    let counted: usize = (0..100).map(|_| round()).sum();
    assert_eq!(counted, 100 * 2 * CALLS);
}
