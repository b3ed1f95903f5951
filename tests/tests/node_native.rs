//! A node of real components (containerd, runc, CNI plugins, kubelet) without delegated cgroups.

use std::{
    fs,
    net::TcpListener,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};
use tests::{
    agent::Ids,
    components::Components,
    instance::eventually,
    node::{BUSYBOX, Node, Site, announced, reluctant},
    process::{Pipe, run},
    world::{HOST4, SERVICE4, World, WorldConfig},
};

/// How long a pod may take; the bar itself is for the benches.
const PATIENCE: Duration = Duration::from_secs(120);

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

    let status = run(node.client(&["status"])).success().stdout;
    let (_, programs) = status.split_once("\nPROGRAM ").expect("they are a table of their own");
    for (program, version) in
        [("containerd", "1.7."), ("kubelet", "1."), ("runc", "1."), ("CNI plugin bridge", "-")]
    {
        let mut lines = programs.lines().filter_map(|line| line.strip_prefix(program)?.strip_prefix("  "));
        assert!(lines.any(|line| line.trim_start().starts_with(version)), "{program}: {status}");
    }
    let json = run(node.client(&["status", "--json"])).success().stdout;
    assert!(json.contains("\"programs\":[{\"name\":\"containerd\",\"version\":\"1.7."), "{json}");

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

/// A directory with one program, a script.
fn fake(site: &Site<'_>, name: &str, script: &str) -> PathBuf {
    let directory = site.world.dir().join("fake");
    fs::create_dir_all(&directory).expect("the world's directory is writable");
    // Another process writes it: what is open for writing in any copy of ours cannot be executed.
    let write = "printf '#!/bin/sh\n%s\n' \"$2\" > \"$1\"; chmod 755 \"$1\"";
    let mut shell = Command::new("sh");
    shell.args(["-c", write, "sh"]).arg(directory.join(name)).arg(script);
    assert!(shell.status().expect("there is a shell").success());
    directory
}

#[test]
fn what_is_missing_or_wrong_is_told_before_anything_starts() {
    let Ok(components) = Components::find() else { return };
    let world = world();
    let site = Site::new(&world, components);
    let refused = |node: Node<'_>, status: i32, told: &[&str]| {
        let finished = node.end();
        assert_eq!(finished.status.code(), Some(status), "{}", finished.describe());
        for text in told {
            assert!(finished.stderr.contains(text), "{text}: {}", finished.describe());
        }
        assert!(!site.data().exists(), "nothing has been started");
    };

    let node = Node::of(&site, &["node", &format!("--bin-dir={}", site.pods().display())]);
    refused(node, 1, &["kubelet was not found; get it from: Go import path k8s.io/kubernetes/cmd/kubelet"]);

    let old = fake(&site, "containerd", "echo containerd github.com/containerd/containerd 1.6.20");
    refused(site.start_with(&old, &[]), 1, &["fake/containerd is version 1.6.20, too old: 1.7.0 brings"]);

    let patch = world.dir().join("patch.yaml");
    fs::write(&patch, "evictonHard: {}\n").expect("the world's directory is writable");
    let patch = format!("--kubelet-config={}", patch.display());
    refused(
        site.start(&[&patch]),
        2,
        &["patch.yaml", "key \"evictonHard\"", "did you mean \"evictionHard\"?"],
    );

    refused(site.start(&["--kubeconfig=/etc/kubernetes/x"]), 2, &["a node has a /etc/kubernetes of its own"]);
    refused(site.start(&["--cni=flannel"]), 2, &["--flannel-backend=etcd"]);
}

#[test]
fn a_program_that_crashes_is_named_with_its_last_words() {
    let Ok(components) = Components::find() else { return };
    let world = world();
    let site = Site::new(&world, components);
    let script = "[ \"$1\" = --version ] && exec echo containerd github.com/containerd/containerd 1.7.24\n\
                  echo broken on purpose >&2; exit 3";
    let broken = fake(&site, "containerd", script);
    let finished = site.start_with(&broken, &["--verbose"]).end();
    assert!(!finished.status.success(), "{}", finished.describe());
    assert!(finished.stderr.contains("containerd"), "{}", finished.stderr);
    assert!(finished.stderr.contains("broken on purpose"), "{}", finished.stderr);
    // The trials before have one id, and say nothing of those that they do not need.
    assert!(!finished.stderr.contains("one user id only"), "{}", finished.stderr);
}

#[test]
fn a_program_that_is_never_ready_is_named_with_its_last_words() {
    let Ok(components) = Components::find() else { return };
    let world = world();
    let site = Site::new(&world, components);
    // The real one, which has nobody to tell that it is ready.
    let containerd = site.components.programs().join("containerd");
    let hanging =
        fake(&site, "containerd", &format!("exec env -u NOTIFY_SOCKET {} \"$@\"", containerd.display()));
    let finished = site.start_with(&hanging, &["--start-timeout=5"]).end();
    assert_eq!(finished.status.code(), Some(1), "{}", finished.describe());
    let told = "unit containerd was not ready within 5s (it is ready when it says READY=1)";
    for text in [told, "level=info", "containerd.log"] {
        assert!(finished.stderr.contains(text), "{text}: {}", finished.describe());
    }
}

#[test]
fn what_was_last_seen_of_a_program_is_told() {
    let Ok(components) = Components::find() else { return };
    let world = world();
    let site = Site::new(&world, components);
    let script =
        "[ \"$1\" = --version ] && exec echo Kubernetes v1.36.4\necho not listening >&2; exec sleep 1000";
    let deaf = fake(&site, "kubelet", script);
    let finished = site.start_with(&deaf, &["--start-timeout=3"]).end();
    assert_eq!(finished.status.code(), Some(1), "{}", finished.describe());
    for text in [
        "unit kubelet was not ready within 3s",
        "last seen: 127.0.0.1:10248: Connection refused",
        "not listening",
    ] {
        assert!(finished.stderr.contains(text), "{text}: {}", finished.describe());
    }
}

#[test]
fn pods_have_their_time_when_the_node_stops() {
    let Ok(components) = Components::find() else { return };
    let world = world();
    let site = Site::new(&world, components);
    let (listener, port) = listener(&world);
    let out = world.dir().join("out");
    // Its network is still there, and it is waited for: until the test has heard it.
    let last = reluctant("announce last words; echo done >/out/note; exit", 20, port, &out);
    site.write_pod("last", &last);
    let node = site.start(&[]);
    assert_eq!(announced(&listener, PATIENCE), "here is last");
    let mut pods = node.log("pods");
    let stopping = node.stopping();
    assert_eq!(announced(&listener, PATIENCE), "last words");
    pods.wait_for(Pipe::Stdout, "container default/last-lab/last is asked to end within 20s");
    pods.wait_for(Pipe::Stdout, "container default/last-lab/last has ended");
    let _ = stopping.finish().success();
    assert_eq!(fs::read_to_string(out.join("note")).expect("the pod had its time"), "done\n");
    assert!(node.end().status.success(), "a node that is stopped has not failed");

    // One that does not listen is not waited for a second time.
    site.write_pod("last", &reluctant("", 86400, port, &out));
    let node = site.start(&[]);
    assert_eq!(announced(&listener, PATIENCE), "here is last");
    let mut pods = node.log("pods");
    let first = node.stopping();
    pods.wait_for(Pipe::Stdout, "is asked to end within 30s");
    let _ = node.stopping().finish().success();
    let _ = first.finish().success();
    pods.wait_for(Pipe::Stdout, "killed by SIGKILL");
    let _ = node.end();
}

#[test]
fn a_taken_host_port_is_had_when_it_is_free() {
    let Ok(components) = Components::find() else { return };
    let world = world();
    let site = Site::new(&world, components);
    let (listener, port) = listener(&world);
    let taken = world.host.listen("127.0.0.1:18080");
    site.write_pod("web", &web("web", 18080, port));
    let node = site.start(&[&format!("--dns-name=lab.example={SERVICE4}")]);
    assert_eq!(announced(&listener, PATIENCE), "here is web");
    let mut ports = node.log("host-ports");
    let refusal = ports.wait_for_line("is not published, and will be tried again");
    assert!(refusal.contains("18080"), "{refusal}");
    drop(taken);
    ports.wait_for_line("published 127.0.0.1:18080:");
    node.stop();
}

#[test]
fn killed_at_any_step_it_starts_again_and_never_twice() {
    let Ok(components) = Components::find() else { return };
    let world = world();
    let site = Site::new(&world, components);
    let (listener, port) = listener(&world);
    site.write_pod("web", &web("web", 18080, port));
    let name = format!("--dns-name=lab.example={SERVICE4}");
    let steps = [
        site.state(),
        site.state().join("child_pid"),
        site.data().join("var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db"),
        site.data().join("var/lib/kubelet/pki/kubelet.crt"),
    ];
    for step in steps {
        let node = site.start(&[&name]);
        eventually(&format!("{step:?} is there"), || step.exists());
        drop(node);
    }
    let node = site.start(&[&name]);
    assert_eq!(announced(&listener, PATIENCE), "here is web");
    let second = site.start(&[&name]).end();
    assert_eq!(second.status.code(), Some(1), "{}", second.describe());
    assert!(second.stderr.contains("in use by a running instance"), "{}", second.stderr);
    // Killed while the pod runs.
    drop(node);
    let node = site.start(&[&name]);
    assert_eq!(announced(&listener, PATIENCE), "here is web");
    let url = "http://127.0.0.1:18080/";
    let local =
        run(world.host.program(&["curl", "--silent", "--show-error", "--max-time", "20", url])).success();
    assert!(!local.stdout.is_empty());
    node.stop();
}
