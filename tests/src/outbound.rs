//! Outbound TCP of the real program in a world: an instance whose connections go one way, its child's namespace, what `flows` and `stats`
//! say of them.

use crate::{
    client::{connect, ping},
    instance::Instance,
    locate,
    process::{Finished, run},
    servers::{Serve, Server},
    world::{Netns, SERVICE4, World},
};
use std::net::TcpStream;

/// What `--egress` and the column of `flows` call them.
pub const BOTH_WAYS: [&str; 2] = ["relay", "tap"];

/// A world, an instance in it whose outbound connections go `way`, and the instance's network namespace.
#[derive(Debug)]
pub struct Lab {
    /// One of [`BOTH_WAYS`], or `auto`.
    pub way: &'static str,
    /// The instance.
    pub instance: Instance,
    /// The namespace of its command.
    pub child: Netns,
    /// The world, which ends last.
    pub world: World,
}

impl Lab {
    /// In a new world.
    #[track_caller]
    #[must_use]
    pub fn new(way: &'static str, args: &[&str]) -> Self {
        let world = World::new();
        Self::inside(world, way, args)
    }

    /// In `world`.
    #[track_caller]
    #[must_use]
    pub fn inside(world: World, way: &'static str, args: &[&str]) -> Self {
        let egress = format!("--egress={way}");
        let args: Vec<_> = [egress.as_str()].iter().chain(args).copied().collect();
        let instance = Instance::start(&world, &args);
        let child = instance.child(&world);
        Self { way, instance, child, world }
    }

    /// A server of the host's on its service address.
    #[track_caller]
    #[must_use]
    pub fn serve(&self, how: Serve) -> Server {
        Server::start(self.world.host.listen(&format!("{SERVICE4}:0")), how)
    }

    /// The probe with `args` in the child, to its end.
    #[track_caller]
    pub fn probe(&self, args: &[&str]) -> Finished {
        probe_in(&self.child, args)
    }

    /// A connection from the child to a server on the service address.
    #[track_caller]
    #[must_use]
    pub fn connect(&self, server: &Server) -> TcpStream {
        connect(&self.child, &format!("{SERVICE4}:{}", server.port()))
    }

    /// By which way a connection of the child's goes.
    ///
    /// # Panics
    /// When it is not listed in time.
    #[track_caller]
    #[must_use]
    pub fn way_of(&self, stream: &TcpStream) -> String {
        let child = stream.local_addr().expect("a socket").to_string();
        way_to(&self.instance, &child)
    }

    /// Proves that a connection works and takes the way that was asked for.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn goes_its_way(&self, server: &Server) {
        let mut stream = self.connect(server);
        ping(&mut stream);
        assert_eq!(self.way_of(&stream), self.way);
    }
}

/// The probe with `args` in `netns`, to its end.
#[track_caller]
pub fn probe_in(netns: &Netns, args: &[&str]) -> Finished {
    run(netns.command(&locate::probe_argv(args)))
}

/// By which way the open connection goes that has this address, on either side.
///
/// # Panics
/// When there is none in time.
#[track_caller]
#[must_use]
pub fn way_to(instance: &Instance, address: &str) -> String {
    let row = |text: &str| {
        let rows = text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        rows.into_iter().find(|words| words.iter().any(|word| word == address) && words[4] == "open")
    };
    let flows = instance.until(&["flows"], |text| row(text).is_some());
    row(&flows).expect("it was there")[5].clone()
}

/// A number of `stats --json`, among the relay's.
///
/// # Panics
/// When it is not there.
#[track_caller]
#[must_use]
pub fn relayed(instance: &Instance, key: &str) -> u64 {
    let stats = instance.client(&["stats", "--json"]);
    let (_, relay) = stats.split_once("\"relay\":{").unwrap_or_else(|| panic!("{stats}"));
    let (_, rest) = relay.split_once(&format!("\"{key}\":")).unwrap_or_else(|| panic!("{key}: {stats}"));
    rest.split([',', '}']).next().expect("a number").parse().expect("a number")
}

/// What `info` says of outbound connections.
///
/// # Panics
/// When it says nothing.
#[track_caller]
#[must_use]
pub fn outbound(instance: &Instance) -> String {
    let info = instance.client(&["info"]);
    let line = info.lines().find(|line| line.contains("outbound TCP"));
    line.unwrap_or_else(|| panic!("{info}")).to_owned()
}

/// A container behind a bridge in the child: its namespace.
#[track_caller]
#[must_use]
pub fn pod(lab: &Lab, masquerade: bool) -> Netns {
    let pod = lab.world.beside();
    lab.child.ip(&format!(
        "link add br0 type bridge\naddr add 172.30.0.1/24 dev br0\nlink set br0 up\n\
         link add pod0 type veth peer name eth0\nlink set pod0 master br0\nlink set pod0 up\nlink set eth0 netns {}\n",
        pod.pid()
    ));
    pod.ip("addr add 172.30.0.2/24 dev eth0\nlink set eth0 up\nroute add default via 172.30.0.1\n");
    lab.child.sysctl("net/ipv4/ip_forward", "1");
    if masquerade {
        nft(
            &lab.child,
            "add table ip cni; add chain ip cni post { type nat hook postrouting priority 100; }; \
             add rule ip cni post ip saddr 172.30.0.0/24 oifname != br0 masquerade",
        );
    }
    pod
}

/// Runs nft(8) with `rules`; its output.
#[track_caller]
pub fn nft(netns: &Netns, rules: &str) -> String {
    netns.run(&["nft", rules]).success().stdout
}
