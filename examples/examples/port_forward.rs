//! A command in a network namespace that has no way out, and ports of it published on the host: the forwarder alone, no TAP.
//!
//! `port_forward 8080:80 COMMAND…`; clients' addresses are kept, although the namespace has only its loopback.

use std::io;
use std::net::Ipv4Addr;
use std::process::{Command, ExitCode};

use examples::{AnyError, become_namespace_root, command_line, ip};
use forwarder::child;
use forwarder::driver::{ChildAddress, ChildLine, ChildNetwork, Config, ForwardDriver};
use forwarder::spec::PortSpec;
use nix::sched::{CloneFlags, unshare};

const CHILD: Ipv4Addr = Ipv4Addr::new(10, 0, 42, 100);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 42, 2);

fn main() -> Result<ExitCode, AnyError> {
    let words = command_line()?;
    let [spec, program, args @ ..] = &words[..] else { return Err("give a port spec and a command".into()) };
    let spec: PortSpec = spec.parse()?;
    become_namespace_root()?;

    // The agent: a thread inside the namespace. The command inherits the namespace from another one.
    let (line, channel) = ChildLine::pair()?;
    let (stop, ended) = io::pipe()?;
    let mut command = Command::new(program);
    command.args(args);
    let child = std::thread::spawn(move || -> Result<_, AnyError> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        ip(&format!("link set lo up\naddr add {CHILD}/32 dev lo\n"))?;
        let mut running = command.spawn()?;
        std::thread::spawn(move || child::run(channel));
        let status = running.wait()?;
        drop(ended);
        Ok(status)
    });

    let ipv4 = Some(ChildAddress { address: CHILD, prefix: 24, gateway: GATEWAY });
    let config = Config { child: ChildNetwork { ipv4, ipv6: None }, ..Config::default() };
    let driver = ForwardDriver::new(config, Some(line), None)?;
    let handle = driver.handle();
    let forwards = std::thread::spawn(move || driver.run_until(stop));
    println!("published: {}", handle.add(spec)?.spec);

    let status = child.join().map_err(|_| "the child's thread panicked")??;
    forwards.join().map_err(|_| "the driver panicked")??;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
