//! A node of real components (containerd, runc, CNI plugins, kubelet) without delegated cgroups.

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};
use tests::{
    agent::Ids,
    components::Components,
    node::{BUSYBOX, Site, announced},
    process::run,
    world::{HOST4, SERVICE4, World, WorldConfig},
};

/// How long a pod may take; the bar itself is for the benches.
const PATIENCE: Duration = Duration::from_secs(20);

/// What clients of the world's far end come from.
const CLIENT4: &str = "192.88.99.2";

fn world() -> World {
    World::with(&WorldConfig { ids: Ids::Subordinate, ..WorldConfig::default() })
}

fn listener(world: &World) -> (TcpListener, u16) {
    let listener = world.host.listen(&format!("{SERVICE4}:0"));
    let port = listener.local_addr().expect("it listens").port();
    (listener, port)
}

/// A pod that serves a file of its volume on `host_port`, and announces its name by DNS and TCP.
fn web(name: &str, host_port: u16, announce: u16) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  initContainers:
  - name: init
    image: {BUSYBOX}
    command: [sh, -c, "echo from the volume > /data/index.html"]
    volumeMounts: [{{name: data, mountPath: /data}}]
  containers:
  - name: {name}
    image: {BUSYBOX}
    command:
    - sh
    - -c
    - |
      echo begun
      [ -e /data/index.html ] || echo anew > /data/index.html
      httpd -f -v -p 8080 -h /data &
      until wget -q -O /dev/null http://127.0.0.1:8080/; do usleep 1000; done
      echo here is {name} | nc lab.example {announce}
      wait
    ports: [{{containerPort: 8080, hostPort: {host_port}}}]
    livenessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1, failureThreshold: 1}}
    volumeMounts: [{{name: data, mountPath: /data}}]
  volumes:
  - name: data
    emptyDir: {{}}
"#
    )
}

#[test]
fn a_static_pod_has_all_it_wants_and_goes() {
    let Ok(components) = Components::find() else { return };
    let world = world();
    let site = Site::new(&world, components);
    let (listener, port) = listener(&world);
    site.write_pod("web", &web("web", 18080, port));
    let name = format!("--dns-name=lab.example={SERVICE4}");
    let begun = Instant::now();
    let node = site.start(&["--host-ports=all", &name]);
    assert_eq!(announced(&listener, PATIENCE), "here is web");
    eprintln!("from nothing to a pod that runs: {:?}", begun.elapsed());
    let mut ports = node.log("host-ports");
    ports.wait_for_line("published 18080:10.244.0.2:8080/tcp4");

    // From far away, and the pod sees from where.
    let url = format!("http://{HOST4}:18080/");
    let far =
        run(world.far.program(&["curl", "--silent", "--show-error", "--max-time", "20", &url])).success();
    assert_eq!(far.stdout, "from the volume");
    let container = node.container("web");
    let logs = node.inside(&["crictl", "logs", &container]).success();
    assert_eq!(logs.stdout, "begun");
    assert!(logs.stderr.contains(&format!("[::ffff:{CLIENT4}]:")), "{}", logs.stderr);
    assert_eq!(node.crictl(&["exec", &container, "cat", "/data/index.html"]), "from the volume");

    let ours = node.ours();
    eprintln!("memory of ours: {} KiB in {ours:?}", ours.iter().map(|(_, size)| size).sum::<u64>());

    // The probe fails: kubelet starts it anew.
    node.crictl(&["exec", &container, "rm", "/data/index.html"]);
    assert_eq!(announced(&listener, PATIENCE), "here is web");

    site.remove_pod("web");
    ports.wait_for_line("no longer published: 18080:10.244.0.2:8080/tcp4");
    let refused = run(world.far.program(&["curl", "--silent", "--max-time", "20", &url]));
    assert_eq!(refused.status.code(), Some(7), "{}", refused.describe());
    node.stop();
}

#[test]
fn containerd_2_does_as_well() {
    let Ok(components) = Components::find() else { return };
    let world = world();
    let second = components.second_programs();
    let site = Site::new(&world, components);
    let (listener, port) = listener(&world);
    site.write_pod("web", &web("web", 18080, port));
    let name = format!("--dns-name=lab.example={SERVICE4}");
    let node = site.start_with(&second, &["--host-ports=off", &name]);
    assert_eq!(announced(&listener, PATIENCE), "here is web");
    let version = node.crictl(&["version"]);
    assert!(version.contains("RuntimeVersion:  v2"), "{version}");
    let container = node.container("web");
    assert_eq!(node.crictl(&["exec", &container, "cat", "/data/index.html"]), "from the volume");
    node.stop();
}
