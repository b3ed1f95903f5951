//! A TAP with several queues, each served by a worker of the engine (`--queues`): to everybody outside it is as with one.
//!
//! The kernel chooses the queue by a hash with a key of its own, so tests open so many flows that no worker is left out.

use nix::unistd::Pid;
use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    net::{TcpStream, UdpSocket},
};
use tests::{
    client::{ask, connect, ping},
    instance::{Instance, ask_who, eventually, udp_who},
    locate,
    process::{Process, run},
    servers::{Serve, Server, UdpServer, udp_echo},
    world::{FAR4, FAR6, HOST4, Netns, SERVICE4, SERVICE6, World},
};

/// So many flows leave no one of two workers out but once in 2^39 runs, and no one of four but once in 2^14.
const MANY: usize = 40;

struct Lab {
    instance: Instance,
    child: Netns,
    // Ends last.
    world: World,
}

fn lab(queues: usize, args: &[&str]) -> Lab {
    let world = World::new();
    let queues = format!("--queues={queues}");
    let args: Vec<_> = [queues.as_str()].iter().chain(args).copied().collect();
    let instance = Instance::start(&world, &args);
    let child = instance.child(&world);
    Lab { instance, child, world }
}

impl Lab {
    fn serve(&self, address: &str, how: Serve) -> Server {
        Server::start(self.world.host.listen(address), how)
    }

    /// Connections of the child that are open.
    fn connections(&self, to: &str) -> Vec<TcpStream> {
        let one = |_| {
            let mut stream = connect(&self.child, to);
            ping(&mut stream);
            stream
        };
        (0..MANY).map(one).collect()
    }

    /// Workers that have flows of that protocol, as their ids tell, and how many flows there are.
    fn spread(&self, protocol: &str) -> (BTreeSet<u64>, usize) {
        let protocol = format!("--protocol={protocol}");
        let flows = self.instance.client(&["flows", &protocol, "--limit=1000", "--json"]);
        let ids = flows
            .split("\"id\":")
            .skip(1)
            .map(|rest| rest.split([',', '}']).next().expect("a number").parse::<u64>().expect("a number"));
        let ids: Vec<_> = ids.collect();
        (ids.iter().map(|id| id >> 29 & 7).collect(), ids.len())
    }

    fn replace_engine(&self) {
        let engine = self.instance.pid_of("rl-engine");
        self.instance.kill(engine);
        self.instance.until(&["stats", "--json"], |stats| stats.contains("\"engineRestarts\":1"));
    }

    fn dig(&self, name: &str) -> String {
        let dig = self.child.run(&["dig", "+short", "+tries=1", "@10.0.42.3", name]).success();
        dig.stdout.trim().to_owned()
    }
}

/// Names of the threads of a process.
fn threads(process: Pid) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("it runs").flatten();
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    let mut names: Vec<_> = tasks.map(|task| name(task).trim().to_owned()).collect();
    names.sort();
    names
}

// Bytes.

#[test]
fn eight_streams_at_once_arrive_intact_in_both_directions_and_families() {
    for queues in [2, 4] {
        let lab = lab(queues, &["--egress=tap"]);
        for (address, listen) in [(SERVICE4, format!("{SERVICE4}:0")), (SERVICE6, format!("[{SERVICE6}]:0"))]
        {
            let server = lab.serve(&listen, Serve::Echo);
            let echo = |n: usize| {
                let seed = n.to_string();
                let argv = locate::probe_argv(&["tcp-echo", address, &server.port(), "20000000", &seed]);
                Process::spawn(lab.child.command(&argv))
            };
            let streams: Vec<_> = (0..8).map(echo).collect();
            for stream in streams {
                let echoed = stream.finish().success();
                assert_eq!(echoed.value("intact"), "1", "{queues} queues: {}", echoed.describe());
            }
        }
        let _ = lab.instance.finish().success();
    }
}

#[test]
fn connections_are_spread_and_listed_and_counted_from_all_workers() {
    let lab = lab(4, &["--egress=tap"]);
    let engine = lab.instance.pid_of("rl-engine");
    let workers = threads(engine).into_iter().filter(|name| name.starts_with("worker")).collect::<Vec<_>>();
    assert_eq!(workers, ["worker-1", "worker-2", "worker-3"]);
    let server = lab.serve(&format!("{SERVICE4}:0"), Serve::Echo);
    let streams = lab.connections(&format!("{SERVICE4}:{}", server.port()));
    let (workers, flows) = lab.spread("tcp");
    assert_eq!((workers, flows), ((0..4).collect(), MANY));
    let stats = lab.instance.client(&["stats", "--json"]);
    assert!(stats.contains(&format!("\"tcpOpened\":{MANY}")), "{stats}");
    assert!(stats.contains(&format!("\"flows\":{MANY}")), "{stats}");
    drop(streams);
    lab.instance.until(&["flows", "--protocol=tcp", "--json"], |flows| flows.contains("\"total\":0"));
}

#[test]
fn connections_on_the_relay_are_joined_whoever_has_them() {
    let lab = lab(2, &["--egress=relay"]);
    let server = lab.serve(&format!("{SERVICE4}:0"), Serve::Echo);
    let streams = lab.connections(&format!("{SERVICE4}:{}", server.port()));
    let joined = format!("\"connections\":{MANY},\"joined\":{MANY}");
    lab.instance.until(&["stats", "--json"], |stats| stats.contains(&joined));
    assert_eq!(lab.spread("tcp"), ((0..2).collect(), MANY));
    drop(streams);
    lab.instance.until(&["flows", "--protocol=tcp", "--json"], |flows| flows.contains("\"total\":0"));
}

// Datagrams.

#[test]
fn a_socket_of_the_child_is_one_socket_of_the_host_towards_everybody() {
    let lab = lab(2, &[]);
    let servers: Vec<UdpServer> =
        (0..MANY).map(|_| udp_who(lab.world.host.udp(&format!("{SERVICE4}:0")))).collect();
    let socket = lab.child.udp("0.0.0.0:0");
    let who = |server: &UdpServer| ask_who(&socket, &format!("{SERVICE4}:{}", server.port()));
    let seen: BTreeSet<_> = servers.iter().chain(&servers).map(who).collect();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(lab.spread("udp").1, 1);
}

#[test]
fn datagrams_from_many_sockets_come_back_long_ones_too() {
    let lab = lab(2, &[]);
    let server = udp_echo(lab.world.host.udp(&format!("{SERVICE4}:0")));
    let sockets: Vec<UdpSocket> = (0..MANY).map(|_| lab.child.udp("0.0.0.0:0")).collect();
    for socket in &sockets {
        socket.set_read_timeout(Some(tests::process::DEADLINE)).expect("a socket");
        // The second comes in fragments, by whichever queue.
        for size in [10, 20_000] {
            let datagram = vec![7; size];
            socket.send_to(&datagram, format!("{SERVICE4}:{}", server.port())).expect("sent");
            let mut answer = vec![0; 65536];
            assert_eq!(socket.recv(&mut answer).expect("an answer"), size);
        }
    }
    assert_eq!(lab.spread("udp"), ((0..2).collect(), MANY));
}

// What the host opens.

#[test]
fn clients_of_published_ports_are_answered_whichever_queue_the_answer_takes() {
    let lab = lab(2, &["--egress=tap"]);
    let nested = lab.world.child();
    lab.child.ip(&format!(
        "link add veth0 type veth peer name eth0 netns {}\naddr add 172.31.0.1/24 dev veth0\nlink set veth0 up\n",
        nested.pid()
    ));
    nested.ip("addr add 172.31.0.2/24 dev eth0\nlink set eth0 up\nroute add default via 172.31.0.1\n");
    lab.child.sysctl("net/ipv4/ip_forward", "1");
    lab.instance.publish("8080:172.31.0.2:80");
    lab.instance.publish("5300:53/udp");
    let _server = Server::start(nested.listen("0.0.0.0:80"), Serve::Echo);
    let _who = udp_who(lab.child.udp("0.0.0.0:53"));
    let clients: Vec<_> = (0..MANY)
        .map(|_| {
            let mut stream = connect(&lab.world.far, &format!("{HOST4}:8080"));
            ping(&mut stream);
            let client = lab.world.far.udp("0.0.0.0:0");
            let seen = ask_who(&client, &format!("{HOST4}:5300"));
            (stream, client, seen)
        })
        .collect();
    for protocol in ["tcp", "udp"] {
        let all = ([0].into(), MANY);
        assert_eq!(lab.spread(protocol), all, "{protocol}: the host's flows are the first worker's");
    }
    for (stream, client, seen) in clients {
        assert_eq!(ask(stream, b"question"), b"question");
        assert_eq!(ask_who(&client, &format!("{HOST4}:5300")), seen);
    }
}

// The rest.

#[test]
fn pings_and_names_are_answered() {
    let lab = lab(4, &["--dns-name=name.test=192.0.2.7"]);
    for address in [FAR4, FAR6, "10.0.42.2", "fd42:10:42::2"] {
        let _ = lab.child.run(&["ping", "-n", "-c2", "-i0.2", "-W5", address]).success();
    }
    for _ in 0..8 {
        assert_eq!(lab.dig("name.test"), "192.0.2.7");
    }
    let _ = lab.instance.finish().success();
}

#[test]
fn a_policy_that_is_set_holds_on_all_workers() {
    let lab = lab(4, &["--egress=tap"]);
    let server = lab.serve(&format!("{SERVICE4}:0"), Serve::Echo);
    let to = format!("{SERVICE4}:{}", server.port());
    lab.instance.client(&["policy", "add", "--first", &format!("deny tcp {to}")]);
    for _ in 0..MANY {
        let refused = lab.child.connect(&to).expect_err("the policy forbids it");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }
    let policy = lab.instance.client(&["policy", "get", "--json"]);
    assert!(policy.contains(&format!("\"hits\":[{MANY}]")), "{policy}");
}

#[test]
fn a_capture_sees_the_frames_of_all_workers() {
    let lab = lab(2, &["--egress=tap"]);
    let server = lab.serve(&format!("{SERVICE4}:0"), Serve::Echo);
    let port = server.port();
    let file = lab.world.dir().join("frames.pcap");
    let path = file.to_str().expect("a name");
    lab.instance.client(&["capture", "start", path]);
    drop(lab.connections(&format!("{SERVICE4}:{port}")));
    lab.instance.until(&["flows", "--protocol=tcp", "--json"], |flows| flows.contains("\"total\":0"));
    lab.instance.client(&["capture", "stop"]);
    let count = |filter: String| {
        let mut tcpdump = std::process::Command::new(locate::program("tcpdump"));
        tcpdump.args(["-n", "-r", path, &filter]);
        run(tcpdump).success().stdout.lines().count()
    };
    assert_eq!(count(format!("tcp[tcpflags] == tcp-syn and dst port {port}")), MANY);
    assert_eq!(count(format!("tcp[tcpflags] == tcp-syn|tcp-ack and src port {port}")), MANY);
}

#[test]
fn an_engine_that_takes_the_place_of_another_has_all_queues_and_settings() {
    let lab = lab(2, &["--egress=tap", "-p", "5300:53/udp"]);
    let server = lab.serve(&format!("{SERVICE4}:0"), Serve::Echo);
    let forbidden = lab.serve(&format!("{SERVICE4}:0"), Serve::Echo);
    let _who = udp_who(lab.child.udp("0.0.0.0:53"));
    let to = format!("{SERVICE4}:{}", server.port());
    lab.instance.client(&["policy", "add", &format!("deny tcp {SERVICE4}:{}", forbidden.port())]);
    let before = lab.connections(&to);
    lab.replace_engine();
    drop(before);
    let _streams = lab.connections(&to);
    assert_eq!(lab.spread("tcp").0, (0..2).collect());
    for _ in 0..MANY {
        let _ = lab.child.connect(&format!("{SERVICE4}:{}", forbidden.port())).expect_err("forbidden");
        let _ = ask_who(&lab.world.far.udp("0.0.0.0:0"), &format!("{HOST4}:5300"));
    }
    eventually("three threads drive", || {
        threads(lab.instance.pid_of("rl-engine")).iter().any(|name| name == "worker-1")
    });
}

#[test]
fn what_was_sent_last_is_delivered_by_every_worker() {
    let world = World::new();
    let server = Server::start(world.host.listen(&format!("{SERVICE4}:0")), Serve::Sink);
    let to = format!("/dev/tcp/{SERVICE4}/{}", server.port());
    // Processes that have ended leave bytes with their kernel.
    let script = format!("for i in $(seq 16); do head -c 200000 /dev/zero > {to} & done; wait");
    let state = world.dir().join("state");
    let args = ["--queues=4", "--egress=tap"];
    let instance = Instance::running(&world, &state, &args, &["bash", "-c", &script]);
    let _ = instance.finish().success();
    let bytes: u64 = (0..16).map(|_| server.served().bytes).sum();
    assert_eq!(bytes, 16 * 200_000);
}
