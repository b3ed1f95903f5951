//! What runs in the child: connections, messages, and what they took. Every step waits for a line on standard input, so that the engine
//! can be looked at between them.

use crate::echo::{drain, pour};
use std::{
    fs,
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Nothing may take longer, or it counts as failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Opening the connections of one step.
const OPENING: Duration = Duration::from_secs(60);

/// Runs the client with the arguments after `client`.
pub(crate) fn main(words: &[&str]) -> io::Result<()> {
    match *words {
        ["ramp", host, port, seconds, ref steps @ ..] => {
            let steps = steps.iter().map(|step| number(step)).collect::<io::Result<Vec<_>>>()?;
            ramp(address(host, port)?, Duration::from_secs_f64(number(seconds)?), &steps)
        }
        ["connects", host, seconds, ref ports @ ..] => {
            let peers = ports.iter().map(|port| address(host, port)).collect::<io::Result<Vec<_>>>()?;
            connects(&peers, Duration::from_secs_f64(number(seconds)?))
        }
        ["fair", host, echo, sink, source, seconds] => fair(
            address(host, echo)?,
            address(host, sink)?,
            address(host, source)?,
            Duration::from_secs_f64(number(seconds)?),
        ),
        _ => Err(ErrorKind::InvalidInput.into()),
    }
}

/// For each of `steps`: opens connections until there are so many, then sends a byte by each in turn and waits for it.
fn ramp(peer: SocketAddr, length: Duration, steps: &[usize]) -> io::Result<()> {
    println!("ready=1");
    let mut streams = Vec::new();
    for step in steps {
        wait_for_line()?;
        let deadline = Instant::now() + OPENING;
        while streams.len() < *step {
            match connect(peer) {
                Ok(_) if Instant::now() > deadline => return stop(streams.len(), ErrorKind::TimedOut.into()),
                Ok(stream) => streams.push(stream),
                Err(error) => return stop(streams.len(), error),
            }
        }
        println!("open={step}");
        wait_for_line()?;
        // The first message of a flow is another matter.
        for stream in &mut streams {
            if let Err(error) = exchange(stream) {
                return stop(*step, error);
            }
        }
        println!("warm={step}");
        wait_for_line()?;
        let before = packets()?;
        let begin = Instant::now();
        let (mut count, mut next) = (0u64, 0);
        while begin.elapsed() < length {
            // Not in the order in which they were made; no step is divided by it.
            next = (next + 7919) % streams.len();
            if let Err(error) = exchange(&mut streams[next]) {
                return stop(*step, error);
            }
            count += 1;
        }
        let seconds = begin.elapsed().as_secs_f64();
        let packets = packets()?.saturating_sub(before);
        println!(
            "transactions={count} packets={packets} seconds={seconds:.3} per_second={:.1}",
            count as f64 / seconds
        );
    }
    wait_for_end()
}

/// That have gone through the namespace's devices so far, either way; those of relayed connections by its loopback. Where a flow's turn
/// comes seldom, its ACKs are packets of their own.
fn packets() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/self/net/dev")?;
    let devices = text.lines().filter_map(|line| line.split_once(':'));
    // The second and the tenth column: packets received and sent.
    let counts = devices.flat_map(|(_, counts)| {
        let counts = counts.split_whitespace().collect::<Vec<_>>();
        [1, 9].map(|index| counts.get(index).and_then(|count| count.parse::<u64>().ok()).unwrap_or(0))
    });
    Ok(counts.sum())
}

/// As far as it went.
fn stop(flows: usize, error: io::Error) -> io::Result<()> {
    println!("stopped={flows} why={}", error.to_string().replace(' ', "_"));
    wait_for_end()
}

/// Connection, byte, answer, end, by several at a time, for `length`; the ports of the server in turn, because no pair of ports is free
/// again before a minute has passed.
fn connects(peers: &[SocketAddr], length: Duration) -> io::Result<()> {
    const WORKERS: usize = 8;
    println!("ready=1");
    wait_for_line()?;
    let tenths = [const { AtomicU64::new(0) }; 10];
    let (next, failed) = (AtomicUsize::new(0), AtomicU64::new(0));
    let begin = Instant::now();
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while begin.elapsed() < length {
                    let peer = peers[next.fetch_add(1, Ordering::Relaxed) % peers.len()];
                    let done = connect(peer).and_then(|mut stream| exchange(&mut stream));
                    let tenth = begin.elapsed().as_secs_f64() / length.as_secs_f64() * 10.0;
                    match (done, tenths.get(tenth as usize)) {
                        (Ok(()), Some(tenth)) => drop(tenth.fetch_add(1, Ordering::Relaxed)),
                        (Ok(()), None) => {}
                        (Err(_), _) => drop(failed.fetch_add(1, Ordering::Relaxed)),
                    }
                }
            });
        }
    });
    let counts = tenths.map(AtomicU64::into_inner);
    let (count, failed) = (counts.iter().sum::<u64>(), failed.into_inner());
    let rate = |count: u64, part: f64| count as f64 / (length.as_secs_f64() * part);
    println!(
        "transactions={count} failed={failed} first={:.1} last={:.1} per_second={:.1}",
        rate(counts[0], 0.1),
        rate(counts[9], 0.1),
        rate(count, 1.0)
    );
    wait_for_end()
}

/// The 99th percentile of a round trip alone, beside a stream to the host, and beside one from it; and beside the same streams that of a
/// round trip on this namespace's loopback, which the engine has no part in: what the lack of processors does.
fn fair(echo: SocketAddr, sink: SocketAddr, source: SocketAddr, length: Duration) -> io::Result<()> {
    println!("ready=1");
    wait_for_line()?;
    let mut stream = connect(echo)?;
    let mut aside = loopback_echo()?;
    println!("alone={:.1}", percentile_99(&mut stream, length)?);
    println!("aside_alone={:.1}", percentile_99(&mut aside, length)?);
    for (name, peer, work) in
        [("to_host", sink, pour as fn(TcpStream) -> io::Result<()>), ("to_child", source, drain)]
    {
        let bulk = connect(peer)?;
        let (handle, moving) = (bulk.try_clone()?, AtomicBool::new(true));
        let values = thread::scope(|scope| {
            // Ends when the connection is shut down.
            scope.spawn(|| {
                let _ = work(bulk);
                moving.store(false, Ordering::Relaxed);
            });
            let values = percentile_99(&mut stream, length)
                .and_then(|value| Ok((value, percentile_99(&mut aside, length)?)))
                .and_then(|values| {
                    let error = || io::Error::other("the stream ended before");
                    if moving.load(Ordering::Relaxed) { Ok(values) } else { Err(error()) }
                });
            handle.shutdown(Shutdown::Both)?;
            values
        })?;
        println!("{name}={:.1}\naside_{name}={:.1}", values.0, values.1);
    }
    wait_for_end()
}

/// A connection to somebody in this namespace who returns every byte.
fn loopback_echo() -> io::Result<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let stream = connect(listener.local_addr()?)?;
    let (mut peer, _) = listener.accept()?;
    peer.set_nodelay(true)?;
    // Detached: it ends with the connection.
    thread::spawn(move || {
        let mut byte = [0];
        while peer.read_exact(&mut byte).and_then(|()| peer.write_all(&byte)).is_ok() {}
    });
    Ok(stream)
}

/// In microseconds.
fn percentile_99(stream: &mut TcpStream, length: Duration) -> io::Result<f64> {
    let mut times = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < length {
        let one = Instant::now();
        exchange(stream)?;
        times.push(one.elapsed());
    }
    times.sort_unstable();
    let at = times.len() * 99 / 100;
    Ok(times.get(at).ok_or(ErrorKind::TimedOut)?.as_secs_f64() * 1e6)
}

fn connect(peer: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&peer, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

fn wait_for_line() -> io::Result<()> {
    io::stdin().read_line(&mut String::new()).map(drop)
}

fn wait_for_end() -> io::Result<()> {
    io::stdin().lock().read_to_end(&mut Vec::new()).map(drop)
}

fn address(host: &str, port: &str) -> io::Result<SocketAddr> {
    Ok(SocketAddr::new(number(host)?, number(port)?))
}

fn number<T: std::str::FromStr>(text: &str) -> io::Result<T> {
    text.parse().map_err(|_| io::Error::new(ErrorKind::InvalidInput, format!("{text} is no number")))
}
