//! Foreign programs in the child: they were not written with us in mind.

use tests::{
    engine::{Launch, ours},
    process::Process,
    servers::{Serve, Server},
    world::{FAR4, FAR6, ROUTER4, SERVICE4, World},
};

fn iperf3_server(world: &World) -> Process {
    let mut server = Process::spawn(world.host.program(&["iperf3", "-s", "-B", SERVICE4, "--forceflush"]));
    server.wait_for_line("Server listening");
    server
}

#[test]
fn iperf3_moves_tcp_and_udp_both_ways() {
    let (world, launch) = (World::new(), Launch::under_test());
    let _server = iperf3_server(&world);
    for how in ["-n2M", "-n2M -R", "-n2M -P4", "-u -b20M -n1M -l1000", "-u -b20M -n1M -l1000 -R"] {
        let argv = ["iperf3", "-c", SERVICE4].into_iter().chain(how.split(' ')).collect::<Vec<_>>();
        let done = world.launch(&launch, &argv).finish().success();
        assert!(done.stdout.contains("receiver"), "{how}: {}", done.describe());
    }
}

#[test]
fn curl_fetches_a_page_from_the_outer_namespace() {
    let (world, launch) = (World::new(), Launch::under_test());
    let root = world.dir().join("www");
    std::fs::create_dir(&root).expect("mkdir in our directory");
    std::fs::write(root.join("page"), tests::stream::Pattern::bytes(1, 1_000_000))
        .expect("write in our directory");
    let (listen, root) = (format!("{SERVICE4}:8080"), root.to_string_lossy().into_owned());
    let mut server =
        Process::spawn(world.host.program(&["busybox", "httpd", "-f", "-v", "-p", &listen, "-h", &root]));
    // It says nothing when it listens: curl tries again until it does.
    let url = format!("http://{listen}/page");
    let output = world.dir().join("got").to_string_lossy().into_owned();
    let argv =
        ["curl", "-sS", "--retry", "50", "--retry-connrefused", "--retry-delay", "1", "-o", &output, &url];
    let _ = world.launch(&launch, &argv).finish().success();
    assert_eq!(std::fs::read(&output).expect("curl wrote it"), tests::stream::Pattern::bytes(1, 1_000_000));
    server.close_stdin();
}

#[test]
fn socat_talks_on_after_a_half_close() {
    let (world, launch) = (World::new(), Launch::under_test());
    let server = Server::start(world.host.listen(&format!("{SERVICE4}:0")), Serve::Sink);
    let peer = format!("TCP:{SERVICE4}:{}", server.port());
    let mut child = world.launch(&launch, &["socat", "-t20", "-", &peer]);
    child.tell("hello");
    child.close_stdin();
    let _ = child.finish().success();
    assert_eq!(server.served().bytes, 6);
}

#[test]
fn tracepath_and_traceroute_see_the_way() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    let path = world.launch(&launch, &["tracepath", "-n", "-m8", FAR4]).finish().success();
    assert!(path.stdout.contains(ROUTER4) && path.stdout.contains("reached"), "{}", path.describe());
    for how in ["-U", "-I"] {
        let route =
            world.launch(&launch, &["traceroute", "-n", "-m5", "-q1", "-w5", how, FAR4]).finish().success();
        assert!(route.stdout.contains(ROUTER4) && route.stdout.contains(FAR4), "{how}: {}", route.describe());
    }
    let path = world.launch(&launch, &["tracepath", "-n", "-m8", FAR6]).finish().success();
    assert!(path.stdout.contains("reached"), "{}", path.describe());
}

#[test]
fn a_smaller_mtu_on_the_way_is_discovered() {
    let Ok(launch) = ours() else { return };
    let world = World::new();
    world.router.ip("link set out0 mtu 1300\n");
    let path = world.launch(&launch, &["tracepath", "-n", "-m8", FAR4]).finish().success();
    assert!(path.stdout.contains("pmtu 1300"), "{}", path.describe());
    let server = Server::start(world.far.listen(&format!("{FAR4}:0")), Serve::Sink);
    let sent = world.probe(&launch, &["tcp-send", FAR4, &server.port(), "300000", "1"]).finish().success();
    assert_eq!(sent.value("intact"), "1");
}
