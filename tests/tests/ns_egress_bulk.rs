//! Relayed connections that carry bulk: a routing rule of the child's for each.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
};

use forwarder::child::{CONNECTION_PRIORITY, TABLE};
use nix::sys::socket::{getsockopt, sockopt};
use tests::{
    client::{connect, ping},
    instance::eventually,
    outbound::Lab,
    servers::{Serve, Server},
    world::{Netns, SERVICE4, SERVICE6},
};

/// The rules of single connections.
fn routes(child: &Netns) -> Vec<String> {
    let show = |family| child.run(&["ip", family, "rule", "show"]).success().stdout;
    let priority = format!("{CONNECTION_PRIORITY}:");
    let all = show("-4") + &show("-6");
    all.lines().filter(|line| line.starts_with(&priority)).map(str::to_owned).collect()
}

/// Has a connection carry what it can, one way, until it is shut down.
fn carry(mut stream: TcpStream, to_host: bool) {
    let mut bytes = vec![0; 1 << 20];
    while match to_host {
        true => stream.write_all(&bytes).is_ok(),
        false => stream.read(&mut bytes).is_ok_and(|count| count > 0),
    } {}
}

#[test]
fn bulk_has_a_route_of_its_own_until_it_ends() {
    let lab = Lab::new("relay", &[]);
    for host in [SERVICE4.to_owned(), format!("[{SERVICE6}]")] {
        for to_host in [true, false] {
            let how = if to_host { Serve::Sink } else { Serve::Source(u64::MAX, 1) };
            let server = Server::start(lab.world.host.listen(&format!("{host}:0")), how);
            let stream = connect(&lab.child, &format!("{host}:{}", server.port()));
            let carrying = thread::spawn({
                let stream = stream.try_clone().unwrap();
                move || carry(stream, to_host)
            });
            let ports = format!("sport {} dport {}", stream.local_addr().unwrap().port(), server.port());
            eventually("a route", || routes(&lab.child).iter().any(|route| route.contains(&ports)));
            assert_eq!(routes(&lab.child).len(), 1);
            assert_eq!(lab.way_of(&stream), "relay");
            stream.shutdown(Shutdown::Both).unwrap();
            carrying.join().unwrap();
            eventually("no route", || routes(&lab.child).is_empty());
        }
    }
}

#[test]
fn a_route_goes_although_the_child_has_lost_its_address() {
    let lab = Lab::new("relay", &[]);
    let server = Server::start(lab.world.host.listen(&format!("{SERVICE4}:0")), Serve::Sink);
    let stream = connect(&lab.child, &format!("{SERVICE4}:{}", server.port()));
    let carrying = thread::spawn({
        let stream = stream.try_clone().unwrap();
        move || carry(stream, true)
    });
    eventually("a route", || !routes(&lab.child).is_empty());
    let address = stream.local_addr().unwrap().ip();
    lab.child.ip(&format!("addr del {address}/24 dev tap0\n"));
    stream.shutdown(Shutdown::Both).unwrap();
    carrying.join().unwrap();
    eventually("no route", || routes(&lab.child).is_empty());
}

/// A rule for what will be a connection between these addresses, as if one before it had left it.
fn leave_route(child: &Netns, from: SocketAddr, to: SocketAddr) {
    let family = if from.is_ipv4() { "-4" } else { "-6" };
    let rule = format!(
        "ip {family} rule add pref {CONNECTION_PRIORITY} from {} to {} fwmark 0/0xffffffff ipproto tcp sport {} dport {} table {TABLE}",
        from.ip(),
        to.ip(),
        from.port(),
        to.port()
    );
    let _ = child.run(&rule.split(' ').collect::<Vec<_>>()).success();
}

#[test]
fn a_route_that_outlived_its_connection_leads_nobody_astray_and_goes_with_the_next_agent() {
    let lab = Lab::new("relay", &[]);
    for host in [SERVICE4.to_owned(), format!("[{SERVICE6}]")] {
        let server = Server::start(lab.world.host.listen(&format!("{host}:0")), Serve::Echo);
        let to: SocketAddr = format!("{host}:{}", server.port()).parse().unwrap();
        let first = connect(&lab.child, &to.to_string());
        let mut from = first.local_addr().unwrap();
        from.set_port(4000);
        leave_route(&lab.child, from, to);
        let mut stream = lab.child.connect_from(&from.to_string(), &to.to_string()).unwrap();
        ping(&mut stream);
        assert_eq!(lab.way_of(&stream), "relay", "{host}");
        lab.instance.kill(lab.instance.pid_of("rl-engine"));
        eventually("a successor's agent", || {
            let _relayed = connect(&lab.child, &to.to_string());
            routes(&lab.child).is_empty()
        });
    }
}

#[test]
fn what_the_child_says_to_itself_keeps_no_mark() {
    let lab = Lab::new("relay", &[]);
    lab.goes_its_way(&lab.serve(Serve::Echo));
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let listener = lab.child.listen(address);
        let mut client = connect(&lab.child, &listener.local_addr().unwrap().to_string());
        let (mut server, _) = listener.accept().unwrap();
        assert_eq!(getsockopt(&server, sockopt::Mark).unwrap(), 0, "{address}");
        client.write_all(b"?").unwrap();
        server.read_exact(&mut [0]).unwrap();
    }
}
