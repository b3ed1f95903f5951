//! A world: a "host" with an uplink, a router behind it and the far internet behind that, all inside one user namespace.
//!
//! ```text
//!  child --- engine --- host ------ up0/down0 ------ router ------ out0/in0 ------ far
//!                       192.0.2.2                    192.0.2.1                     198.51.100.1 (all of .0/24)
//!                       203.0.113.1 (service)        192.88.99.1                   192.88.99.2
//! ```
//! IPv6 likewise: `2001:db8:1::2`, `2001:db8:3::1` (service), `2001:db8:1::1`, `2001:db8:2::1` (all of `2001:db8:2::/64`).
//! The router answers `198.51.100.66` with "prohibited", `.67` with "host unreachable" and never answers for `.68`.

use crate::{
    agent::{Agent, Ids},
    engine::Launch,
    link::{LinkConfig, LinkEmulator},
    locate,
    process::{DEADLINE, Process, run},
};
use forwarder::sock_diag::DiagSocket;
use std::{
    fs::{self, File},
    io,
    net::{TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// The host's own address, the one an engine would copy.
pub const HOST4: &str = "192.0.2.2";
/// The same for IPv6.
pub const HOST6: &str = "2001:db8:1::2";
/// An address of the host where servers of tests listen.
pub const SERVICE4: &str = "203.0.113.1";
/// The same for IPv6.
pub const SERVICE6: &str = "2001:db8:3::1";
/// The router's address on the host's side.
pub const ROUTER4: &str = "192.0.2.1";
/// The same for IPv6.
pub const ROUTER6: &str = "2001:db8:1::1";
/// An address two hops away from the host.
pub const FAR4: &str = "198.51.100.1";
/// The same for IPv6.
pub const FAR6: &str = "2001:db8:2::1";
/// The router says "administratively prohibited" for this one.
pub const PROHIBITED4: &str = "198.51.100.66";
/// The router says "host unreachable" for this one.
pub const UNREACHABLE4: &str = "198.51.100.67";
/// Nobody ever answers for this one.
pub const SILENT4: &str = "198.51.100.68";

/// What joins host and router.
#[derive(Debug, Clone, Default)]
pub enum Uplink {
    /// A veth pair: fast, lossless.
    #[default]
    Veth,
    /// Two TAPs and a [`LinkEmulator`]: the first configuration is for frames from the host, the second for frames to it.
    Emulated(LinkConfig, LinkConfig),
    /// The host has nothing but its loopback and the service addresses.
    None,
}

/// Which families the host has addresses and routes for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Families {
    /// Both.
    #[default]
    Dual,
    /// Only IPv4.
    V4,
}

/// Whether the host's users may open ping sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PingSockets {
    /// `net.ipv4.ping_group_range` contains the caller's group.
    #[default]
    Allowed,
    /// It is empty, as the kernel makes it.
    Forbidden,
}

/// What a world is made of.
#[derive(Debug, Clone, Default)]
pub struct WorldConfig {
    /// How ids are mapped.
    pub ids: Ids,
    /// What joins host and router.
    pub uplink: Uplink,
    /// The families of the host.
    pub families: Families,
    /// Whether ping sockets may be opened.
    pub ping: PingSockets,
}

/// See the module.
#[derive(Debug)]
pub struct World {
    /// Where the program under test has its sockets.
    pub host: Netns,
    /// The first hop.
    pub router: Netns,
    /// Two hops away.
    pub far: Netns,
    link: Option<LinkEmulator>,
    dir: Directory,
}

/// One network namespace of a world.
#[derive(Debug)]
pub struct Netns {
    agent: Agent,
}

impl World {
    /// A world with veth uplink, both families and a single id.
    ///
    /// # Panics
    /// When namespaces are not to be had here.
    #[must_use]
    pub fn new() -> Self {
        Self::with(&WorldConfig::default())
    }

    /// A world to order.
    ///
    /// # Panics
    /// When namespaces are not to be had here.
    #[must_use]
    pub fn with(config: &WorldConfig) -> Self {
        let dir = Directory::new();
        fs::write(dir.path().join("resolv.conf"), format!("nameserver {SERVICE4}\n"))
            .expect("write in our directory");
        let host = Agent::found(config.ids, &dir.path().join("resolv.conf"));
        let (router, far) = (Netns { agent: host.beside() }, Netns { agent: host.beside() });
        let host = Netns { agent: host };
        for netns in [&host, &router, &far] {
            // Addresses are usable at once, and measurements do not depend on what the machine's default is.
            netns.sysctl("net/ipv6/conf/default/accept_dad", "0");
            netns.sysctl("net/ipv4/tcp_congestion_control", "reno");
            if config.ping == PingSockets::Allowed {
                netns.sysctl("net/ipv4/ping_group_range", "0 0");
            }
            netns.ip("link set lo up");
        }
        let mut world = Self { host, router, far, link: None, dir };
        world.host.ip(&format!("addr add {SERVICE4}/32 dev lo\naddr add 203.0.113.2/32 dev lo\n"));
        if config.families == Families::Dual {
            world.host.ip(&format!("addr add {SERVICE6}/128 dev lo nodad\n"));
        }
        world.connect(config);
        world
    }

    /// A network namespace beside the others, with nothing but its loopback.
    ///
    /// # Panics
    /// When namespaces are not to be had here.
    #[must_use]
    pub fn child(&self) -> Netns {
        let child = Netns { agent: self.host.agent.beside() };
        child.sysctl("net/ipv6/conf/default/accept_dad", "0");
        child.ip("link set lo up");
        child
    }

    /// Starts `command` in a child of the host, behind the engine that `launch` names.
    #[track_caller]
    pub fn launch(&self, launch: &Launch, command: &[&str]) -> Process {
        Process::spawn(self.host.command(&launch.argv(command)))
    }

    /// Starts the probe with `args` in a child of the host.
    #[track_caller]
    pub fn probe(&self, launch: &Launch, args: &[&str]) -> Process {
        let argv = locate::probe_argv(args);
        self.launch(launch, &argv.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// A further namespace, with a loopback and nothing else.
    #[must_use]
    pub fn beside(&self) -> Netns {
        let netns = Netns { agent: self.host.agent.beside() };
        netns.sysctl("net/ipv6/conf/default/accept_dad", "0");
        netns.ip("link set lo up");
        netns
    }

    /// The network namespace of a process that runs in the world.
    ///
    /// # Panics
    /// When the process is gone.
    #[must_use]
    pub fn inside(&self, pid: u32) -> Netns {
        Netns { agent: self.host.agent.inside(pid) }
    }

    /// A directory that lives as long as the world.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Replaces the contents of the host's `/etc/resolv.conf`.
    ///
    /// # Panics
    /// When our directory is not writable.
    pub fn set_resolv_conf(&self, text: &str) {
        fs::write(self.dir().join("resolv.conf"), text).expect("write in our directory");
    }

    /// The emulated uplink, where there is one.
    #[must_use]
    pub fn link(&self) -> Option<&LinkEmulator> {
        self.link.as_ref()
    }

    fn connect(&mut self, config: &WorldConfig) {
        let (router, far) = (self.router.agent.pid(), self.far.agent.pid());
        match &config.uplink {
            Uplink::None => return,
            Uplink::Veth => {
                self.host
                    .ip(&format!("link add up0 type veth peer name down0\nlink set down0 netns {router}\n"));
            }
            Uplink::Emulated(from_host, to_host) => {
                let ends = (self.host.virtio_tap("up0"), self.router.virtio_tap("down0"));
                self.link = Some(LinkEmulator::start(ends.0, ends.1, from_host.clone(), to_host.clone()));
            }
        }
        self.router.ip(&format!("link add out0 type veth peer name in0\nlink set in0 netns {far}\n"));
        self.host
            .ip(&format!("addr add {HOST4}/24 dev up0\nlink set up0 up\nroute add default via {ROUTER4}\n"));
        self.router.ip(&format!(
            "addr add {ROUTER4}/24 dev down0\naddr add 192.88.99.1/24 dev out0\nlink set down0 up\nlink set out0 up\n\
             route add 203.0.113.0/24 via {HOST4}\nroute add 198.51.100.0/24 via 192.88.99.2\n\
             route add prohibit {PROHIBITED4}\nroute add unreachable {UNREACHABLE4}\nroute add blackhole {SILENT4}\n"
        ));
        self.far.ip("addr add 192.88.99.2/24 dev in0\nlink set in0 up\nroute add default via 192.88.99.1\n\
             addr add 198.51.100.1/24 dev lo\n");
        self.router.sysctl("net/ipv4/ip_forward", "1");
        // Every error is wanted, at once: tests do not wait for token buckets.
        self.router.sysctl("net/ipv4/icmp_ratelimit", "0");
        self.far.sysctl("net/ipv4/icmp_ratelimit", "0");
        if config.families == Families::V4 {
            return;
        }
        self.host.ip("addr add 2001:db8:1::2/64 dev up0 nodad\nroute add default via 2001:db8:1::1\n");
        self.router.ip(
            "addr add 2001:db8:1::1/64 dev down0 nodad\naddr add 2001:db8:4::1/64 dev out0 nodad\n\
             route add 2001:db8:3::/64 via 2001:db8:1::2\nroute add 2001:db8:2::/64 via 2001:db8:4::2\n\
             route add prohibit 2001:db8:2::66\nroute add unreachable 2001:db8:2::67\n",
        );
        self.far.ip("addr add 2001:db8:4::2/64 dev in0 nodad\nroute add default via 2001:db8:4::1\n\
             route add local 2001:db8:2::/64 dev lo\naddr add 2001:db8:2::1/64 dev lo nodad\n");
        self.router.sysctl("net/ipv6/conf/all/forwarding", "1");
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl Netns {
    /// The process that names the namespace.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.agent.pid()
    }

    /// `argv` as a command inside; it is killed when the thread that starts it ends.
    #[must_use]
    pub fn command(&self, argv: &[String]) -> Command {
        let pid = self.pid().to_string();
        let mut command = locate::probe(&["in", &pid, "--"]);
        command.args(argv);
        command
    }

    /// A foreign program as a command inside.
    #[must_use]
    pub fn program(&self, argv: &[&str]) -> Command {
        let program = locate::program(argv[0]).to_string_lossy().into_owned();
        let argv = std::iter::once(program).chain(argv[1..].iter().map(ToString::to_string));
        self.command(&argv.collect::<Vec<_>>())
    }

    /// Runs lines of ip(8).
    ///
    /// # Panics
    /// When one fails.
    #[track_caller]
    pub fn ip(&self, lines: &str) {
        let mut ip = Process::spawn(self.program(&["ip", "-batch", "-"]));
        ip.tell(lines);
        ip.close_stdin();
        let _ = ip.finish().success();
    }

    /// Waits until the kernel has put an IPv6 address into service, which it does some time after it was added to a link that is up: until
    /// then packets to it leave for the link.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn wait_for_address6(&self, address: &str) {
        let deadline = Instant::now() + DEADLINE;
        let routes = ["ip", "-6", "route", "show", "table", "local", address];
        while self.run(&routes).success().stdout.is_empty() {
            assert!(Instant::now() < deadline, "{address} is not in service");
        }
    }

    /// Writes a file below `/proc/sys`.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[track_caller]
    pub fn sysctl(&self, path: &str, value: &str) {
        self.agent
            .ask(&format!("sysctl {path} {value}"))
            .unwrap_or_else(|error| panic!("sysctl {path}: {error}"));
    }

    /// A listening TCP socket (port 0: any).
    ///
    /// # Panics
    /// When the address cannot be bound.
    #[track_caller]
    #[must_use]
    pub fn listen(&self, address: &str) -> TcpListener {
        self.bound(&format!("listen {address}"))
            .map(TcpListener::from)
            .unwrap_or_else(|error| panic!("{address}: {error}"))
    }

    /// A UDP socket.
    ///
    /// # Panics
    /// When the address cannot be bound.
    #[track_caller]
    #[must_use]
    pub fn udp(&self, address: &str) -> UdpSocket {
        self.bound(&format!("udp {address}"))
            .map(UdpSocket::from)
            .unwrap_or_else(|error| panic!("{address}: {error}"))
    }

    /// A connection made from inside.
    ///
    /// # Errors
    /// Those of connect(2).
    pub fn connect(&self, address: &str) -> io::Result<TcpStream> {
        self.fd(&format!("connect {address}")).map(TcpStream::from)
    }

    /// A connection from a port of one's own, also if its last connection has only just ended.
    ///
    /// # Errors
    /// Those of bind(2) and connect(2).
    pub fn connect_from(&self, local: &str, address: &str) -> io::Result<TcpStream> {
        self.fd(&format!("connect-from {local} {address}")).map(TcpStream::from)
    }

    /// A connection of a socket that is tied to an interface (SO_BINDTODEVICE).
    ///
    /// # Errors
    /// Those of setsockopt(2) and connect(2).
    pub fn connect_by(&self, interface: &str, address: &str) -> io::Result<TcpStream> {
        self.fd(&format!("connect-by {interface} {address}")).map(TcpStream::from)
    }

    /// Has the kernel forget all connections that it tracks, as `conntrack -F` does.
    ///
    /// # Panics
    /// When it refuses.
    #[track_caller]
    pub fn forget_connections(&self) {
        self.agent.ask("forget-connections").unwrap_or_else(|error| panic!("nf_conntrack: {error}"));
    }

    /// A sock_diag(7) socket, which sees this namespace from anywhere.
    ///
    /// # Panics
    /// When the kernel has none.
    #[track_caller]
    #[must_use]
    pub fn diag(&self) -> DiagSocket {
        self.fd("diag").map(DiagSocket::adopt).unwrap_or_else(|error| panic!("sock_diag: {error}"))
    }

    /// A TAP interface, which lives as long as the file.
    ///
    /// # Panics
    /// When there is no usable `/dev/net/tun`.
    #[track_caller]
    #[must_use]
    pub fn tap(&self, name: &str) -> File {
        self.fd(&format!("tap {name}")).map(File::from).unwrap_or_else(|error| panic!("TAP {name}: {error}"))
    }

    /// A TAP interface with virtio-net headers, which lives as long as the file.
    ///
    /// # Panics
    /// When there is no usable `/dev/net/tun`.
    #[track_caller]
    #[must_use]
    pub fn virtio_tap(&self, name: &str) -> File {
        self.fd(&format!("virtio-tap {name}"))
            .map(File::from)
            .unwrap_or_else(|error| panic!("TAP {name}: {error}"))
    }

    /// Runs a foreign program inside, to its end.
    #[track_caller]
    pub fn run(&self, argv: &[&str]) -> crate::process::Finished {
        run(self.program(argv))
    }

    /// A process that is being started by another thread has copies of our sockets until it executes its program: a port that
    /// was given back just now may be in use for a moment.
    fn bound(&self, request: &str) -> io::Result<std::os::fd::OwnedFd> {
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            match self.fd(request) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                    std::thread::yield_now();
                }
                result => return result,
            }
        }
    }

    fn fd(&self, request: &str) -> io::Result<std::os::fd::OwnedFd> {
        self.agent.ask(request)?.ok_or_else(|| io::Error::other("no descriptor came with the answer"))
    }
}

/// A directory of our own, removed at the end.
#[derive(Debug)]
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("rootless-lab-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("the temporary directory is writable");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Leaving it behind would be untidy, not wrong.
        let _ = fs::remove_dir_all(&self.0);
    }
}
