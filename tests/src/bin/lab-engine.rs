//! An engine whose settings are all chosen by the test, for what no personality of ours offers in that combination:
//! `lab-engine KEY=VALUE... -- COMMAND`. Runs in the namespaces of a world's host, as root of its user namespace.
//!
//! | Key | Value |
//! |---|---|
//! | `link` | `tap` (default), `plain` (a TAP of somebody else's, without virtio-net header), `persistent` (made by ip(8) first), `packet` (a socket, joined to a plain TAP by two threads) |
//! | `root` | `same` (default), `empty`: nothing but /etc and /run, read-only, once the engine is ready |
//! | `resolv` | `host` (default), `linked`: /etc/resolv.conf links to /run/systemd/resolve/stub-resolv.conf, both in memory |
//! | `loopback` | `allow` |
//! | `refusal` | `unreachable` |
//! | `dns` | `off`, or a server |
//! | `dns-at` | a further address of the engine as DNS server |
//! | `map` | `CHILD=loopback`, `CHILD=host` or `CHILD=ADDRESS` |
//! | `out4`, `out6` | an address or an interface |
//! | `dhcp` | `pool` |
//! | `ipv4`, `ipv6` | `off`; `slaac` for IPv6 without a static address |
//! | `mtu` | bytes |
//! | `copied` | `ADDRESS/PREFIX,GATEWAY`: addresses of the host's |

use std::{
    error::Error,
    fs,
    io::{self, PipeReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::{fd::OwnedFd, unix::fs::symlink},
    process::{Command, ExitCode, ExitStatus, Stdio},
    sync::mpsc,
    thread,
};

use netstack::config::{
    Access, AddressMap, Addressing, Config, DhcpOrder, DnsConfig, DnsService, Ipv4Mode, Ipv4Net, Ipv4Plan,
    Ipv6Mode, Ipv6Net, Ipv6Plan, MapTarget, Outbound, Refusal,
};
use netstack::{Driver, DriverError, Link, PacketSocket, Tap};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::socket::{AddressFamily, SockFlag, SockType, socketpair},
    unistd::{chdir, pivot_root, read, write},
};
use tests::{locate, sys};

type AnyError = Box<dyn Error + Send + Sync>;

#[derive(Default)]
struct Settings {
    link: String,
    empty_root: bool,
    linked_resolv_conf: bool,
    slaac: bool,
}

fn main() -> Result<ExitCode, AnyError> {
    let args = std::env::args().skip(1).collect::<Vec<_>>();
    let end = args.iter().position(|arg| arg == "--").ok_or("no command")?;
    let (settings, config) = parse(&args[..end])?;
    if settings.linked_resolv_conf {
        link_resolv_conf()?;
    }
    let (link, ended, child) = start(&settings, &config, args[end + 1..].to_vec())?;
    let mut driver = Driver::new(link, config)?;
    eprintln!("link {} {:?}", driver.link().name(), driver.link().capabilities());
    if settings.empty_root {
        enter_empty_root()?;
    }
    match driver.run_until(&ended) {
        Ok(()) | Err(DriverError::TapGone(_)) => {}
        Err(error) => return Err(error.into()),
    }
    driver.finish()?;
    for (reason, count) in driver.stats().all_drops() {
        eprintln!("dropped: {count} {reason}");
    }
    let status = child.join().map_err(|_| "the child's thread panicked")??;
    Ok(status.code().map_or(ExitCode::FAILURE, |code| ExitCode::from(code as u8)))
}

fn parse(args: &[String]) -> Result<(Settings, Config), AnyError> {
    let mut settings = Settings::default();
    let (mut dns, mut maps) = (DnsConfig::default(), Vec::new());
    let mut config = Config::builder().ipv6_mode(Ipv6Mode::On);
    for arg in args {
        let (key, value) = arg.split_once('=').ok_or("KEY=VALUE")?;
        match (key, value) {
            ("link", link) => settings.link = link.to_owned(),
            ("root", "empty") => settings.empty_root = true,
            ("resolv", "linked") => settings.linked_resolv_conf = true,
            ("loopback", "allow") => config = config.host_loopback(Access::Allow),
            ("refusal", "unreachable") => config = config.loopback_refusal(Refusal::NetUnreachable),
            ("dns", "off") => dns.service = DnsService::Off,
            ("dns", server) => dns.servers.push(server.parse()?),
            ("dns-at", address) => dns.addresses.push(address.parse()?),
            ("map", map) => {
                let (child, host) = map.split_once('=').ok_or("map=CHILD=HOST")?;
                let host = match host {
                    "loopback" => MapTarget::Loopback,
                    "host" => MapTarget::HostAddress,
                    address => MapTarget::Address(address.parse()?),
                };
                maps.push(AddressMap { child: child.parse()?, host });
            }
            ("out4", value) => config = config.outbound_v4(outbound(value)),
            ("out6", value) => config = config.outbound_v6(outbound(value)),
            ("dhcp", "pool") => config = config.dhcp_order(DhcpOrder::Pool),
            ("ipv4", "off") => config = config.ipv4_mode(Ipv4Mode::Off),
            ("ipv6", "off") => config = config.ipv6_mode(Ipv6Mode::Off),
            ("ipv6", "slaac") => settings.slaac = true,
            ("mtu", mtu) => config = config.mtu(mtu.parse()?),
            ("copied", value) => {
                config = config.addressing(Addressing::Copied);
                let (address, gateway) = value.split_once(',').ok_or("ADDRESS/PREFIX,GATEWAY")?;
                let (address, prefix) = address.split_once('/').ok_or("ADDRESS/PREFIX")?;
                let prefix = prefix.parse::<u8>()?;
                match address.parse()? {
                    IpAddr::V4(child) => {
                        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                        let subnet = Ipv4Net::new(Ipv4Addr::from(u32::from(child) & mask), prefix)?;
                        let (gateway, dns) = (gateway.parse()?, Ipv4Addr::UNSPECIFIED);
                        config = config.ipv4(Ipv4Plan { subnet, gateway, dns, child });
                    }
                    IpAddr::V6(child) => {
                        let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                        let subnet = Ipv6Net::new(Ipv6Addr::from(u128::from(child) & mask), prefix)?;
                        let (gateway, dns) = (gateway.parse()?, Ipv6Addr::UNSPECIFIED);
                        config = config.ipv6(Ipv6Plan { subnet, gateway, dns, child });
                    }
                }
            }
            _ => return Err(format!("{arg} is not a setting").into()),
        }
    }
    Ok((settings, config.dns(dns).maps(maps).build()?))
}

fn outbound(value: &str) -> Outbound {
    value.parse().map_or_else(|_| Outbound::Interface(value.to_owned()), Outbound::Address)
}

type Started = (Link, PipeReader, thread::JoinHandle<Result<ExitStatus, AnyError>>);

/// A thread moves into new network and mount namespaces, makes the link there and starts the command.
fn start(settings: &Settings, config: &Config, command: Vec<String>) -> Result<Started, AnyError> {
    let (ended, until_ended) = io::pipe()?;
    let (to_us, from_thread) = mpsc::channel();
    let lines = addresses(settings, config);
    let kind = settings.link.clone();
    let child = thread::spawn(move || {
        let _until_ended = until_ended;
        let enter = || -> Result<Link, AnyError> {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
            let link = open(&kind)?;
            // As Podman does it: an address that is still tested for duplicates is of no use to the command.
            fs::write("/proc/sys/net/ipv6/conf/tap0/accept_dad", "0")?;
            ip(&lines)?;
            Ok(link)
        };
        let link = enter();
        let entered = link.is_ok();
        to_us.send(link)?;
        if !entered {
            return Err("no link".into());
        }
        Ok(Command::new(&command[0]).args(&command[1..]).status()?)
    });
    Ok((from_thread.recv()??, ended, child))
}

fn open(kind: &str) -> Result<Link, AnyError> {
    let plain = || -> Result<OwnedFd, AnyError> { Ok(sys::open_tap("tap0", sys::TapHeader::None)?.into()) };
    Ok(match kind {
        "plain" => Tap::from_fd(plain()?)?.into(),
        "persistent" => {
            // As RootlessKit does it.
            let mut make = Command::new(locate::program("ip"));
            assert!(make.args(["tuntap", "add", "name", "tap0", "mode", "tap"]).status()?.success());
            ip("link set tap0 up\n")?;
            Tap::open_in_current_netns("tap0")?.into()
        }
        "packet" => {
            let (ours, theirs) =
                socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
            let tap = plain()?;
            copy_frames(tap.try_clone()?, theirs.try_clone()?);
            copy_frames(theirs, tap);
            PacketSocket::new(ours)?.into()
        }
        _ => Tap::open_in_current_netns("tap0")?.into(),
    })
}

/// One frame is one read and one write on both.
fn copy_frames(from: OwnedFd, to: OwnedFd) {
    thread::spawn(move || {
        let mut frame = vec![0; 1 << 16];
        while let Ok(len @ 1..) = read(&from, &mut frame) {
            // A frame that the other end does not take is a frame lost.
            let _ = write(&to, &frame[..len]);
        }
    });
}

fn addresses(settings: &Settings, config: &Config) -> String {
    let (v4, v6) = (config.ipv4(), config.ipv6());
    let mut lines = format!("link set lo up\nlink set tap0 mtu {}\nlink set tap0 up\n", config.mtu());
    if config.ipv4_mode() == Ipv4Mode::On {
        lines += &format!(
            "addr add {}/{} dev tap0\nroute replace {} dev tap0\nroute add default via {}\n",
            v4.child,
            v4.subnet.prefix(),
            v4.gateway,
            v4.gateway
        );
    }
    if config.ipv6_mode() == Ipv6Mode::On && !settings.slaac {
        lines += &format!(
            "addr add {}/{} dev tap0 nodad\nroute add default via {} dev tap0\n",
            v6.child,
            v6.subnet.prefix(),
            v6.gateway
        );
    }
    lines
}

fn ip(lines: &str) -> Result<(), AnyError> {
    let mut child =
        Command::new(locate::program("ip")).args(["-batch", "-"]).stdin(Stdio::piped()).spawn()?;
    io::Write::write_all(&mut child.stdin.take().ok_or("no pipe")?, lines.as_bytes())?;
    if child.wait()?.success() { Ok(()) } else { Err("ip failed".into()) }
}

const NONE: Option<&str> = None;

/// A host as systemd-resolved sets it up.
fn link_resolv_conf() -> Result<(), AnyError> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE)?;
    let text = fs::read("/etc/resolv.conf")?;
    for directory in ["/run", "/etc"] {
        mount(NONE, directory, Some("tmpfs"), MsFlags::empty(), NONE)?;
    }
    fs::create_dir_all("/run/systemd/resolve")?;
    fs::write("/run/systemd/resolve/stub-resolv.conf", text)?;
    symlink("../run/systemd/resolve/stub-resolv.conf", "/etc/resolv.conf")?;
    Ok(())
}

/// What a sandbox does: a root that holds /etc and /run only, and those read-only.
fn enter_empty_root() -> Result<(), AnyError> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE)?;
    mount(NONE, "/tmp", Some("tmpfs"), MsFlags::empty(), NONE)?;
    for directory in ["/etc", "/run"] {
        let there = format!("/tmp{directory}");
        fs::create_dir(&there)?;
        mount(Some(directory), there.as_str(), NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?;
        // In a user namespace the flags of the mount must not be weakened.
        let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        let kept = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(NONE, there.as_str(), NONE, read_only, NONE)
            .or_else(|_| mount(NONE, there.as_str(), NONE, read_only | kept, NONE))?;
    }
    chdir("/tmp")?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    assert!(fs::metadata("/proc").is_err() && fs::metadata("/dev").is_err(), "the root is not empty");
    Ok(())
}
