//! Nodes of containerd 2 and of CRI-O, each with both OCI runtimes, without delegated cgroups.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
    time::Duration,
};
use tests::{
    agent::Ids,
    components::Components,
    node::{BUSYBOX, Node, Site, announced, reluctant},
    process::run,
    world::{HOST4, SERVICE4, World, WorldConfig},
};

/// How long a pod may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Where the node keeps what stands before an OCI runtime.
const ADAPTED: &str = "/run/rootless-launch/oci-runtime";

#[test]
fn containerd_2_runs_a_pod_with_runc() {
    a_pod_runs("containerd", "runc");
}

#[test]
fn containerd_2_runs_a_pod_with_crun() {
    a_pod_runs("containerd", "crun");
}

#[test]
fn crio_runs_a_pod_with_runc() {
    a_pod_runs("crio", "runc");
}

#[test]
fn crio_runs_a_pod_with_crun() {
    a_pod_runs("crio", "crun");
}

/// A runtime that is told the cgroup or the limits of this pod refuses to make it here.
#[track_caller]
fn a_pod_runs(cri: &str, runtime: &str) {
    let Ok(components) = Components::find() else { return };
    let world = World::with(&WorldConfig { ids: Ids::Subordinate, ..WorldConfig::default() });
    let programs = programs(&world, &components, runtime);
    let site = Site::new(&world, components);
    let listener = world.host.listen(&format!("{SERVICE4}:0"));
    site.write_pod("web", &web(listener.local_addr().expect("it listens").port()));

    let node = site.start_with(&programs, &[&format!("--cri={cri}"), "--host-ports=all"]);
    assert_eq!(announced(&listener, PATIENCE), "here is web");
    assert_eq!(node.crictl(&["ps", "--quiet"]).lines().count(), 1);
    assert_eq!(node.inside(&["busybox", "ls", ADAPTED]).success().stdout.trim(), runtime);
    let version = node.crictl(&["version"]);
    let wanted = if cri == "crio" { "RuntimeName:  cri-o" } else { "RuntimeVersion:  v2" };
    assert!(version.contains(wanted), "{version}");

    let mut ports = node.log("host-ports");
    ports.wait_for_line("published 18080:10.244.0.2:8080/tcp4");
    let url = format!("http://{HOST4}:18080/");
    let far = |options: &[&str]| {
        run(world.far.program(&[&["curl", "--silent", "--max-time", "20"], options, &[&url]].concat()))
    };
    assert_eq!(far(&["--show-error"]).success().stdout, "served");
    obeys(&node);

    // The probe fails: kubelet starts it anew.
    node.crictl(&["exec", &node.container("web"), "rm", "/tmp/index.html"]);
    assert_eq!(announced(&listener, PATIENCE), "here is web");
    site.remove_pod("web");
    ports.wait_for_line("no longer published: 18080:10.244.0.2:8080/tcp4");
    assert_eq!(far(&[]).status.code(), Some(7));

    // The last pod has its time when all is stopped.
    let out = world.dir().join("out");
    let port = listener.local_addr().expect("it listens").port();
    site.write_pod("last", &reluctant("announce last words; echo done >/out/note; exit", 20, port, &out));
    assert_eq!(announced(&listener, PATIENCE), "here is last");
    let stopping = node.stopping();
    assert_eq!(announced(&listener, PATIENCE), "last words");
    let _ = stopping.finish().success();
    assert_eq!(fs::read_to_string(out.join("note")).expect("the pod had its time"), "done\n");
    let _ = node.end();
}

/// What goes through the runtime while a container runs.
#[track_caller]
fn obeys(node: &Node<'_>) {
    let web = node.container("web");
    // crictl ends the line itself.
    assert_eq!(node.crictl(&["exec", "--sync", &web, "cat", "/tmp/index.html"]).trim_end(), "served");
    assert_eq!(node.crictl(&["exec", &web, "cat", "/tmp/index.html"]), "served");
    assert_eq!(node.inside(&["crictl", "logs", &web]).success().stdout, "begun");
}

/// containerd 2 and CRI-O, and in the way of the one runtime that is not wanted one that does not work.
fn programs(world: &World, components: &Components, runtime: &str) -> PathBuf {
    let directory = world.dir().join("programs");
    fs::create_dir(&directory).expect("the world's directory is writable");
    for entry in fs::read_dir(components.second_programs()).expect("it is there") {
        let entry = entry.expect("it can be read");
        symlink(entry.path(), directory.join(entry.file_name())).expect("a new directory");
    }
    let other = directory.join(if runtime == "runc" { "crun" } else { "runc" });
    fs::write(&other, "#!/bin/sh\nexit 1\n").expect("a new directory");
    fs::set_permissions(other, PermissionsExt::from_mode(0o755)).expect("it is ours");
    directory
}

/// A pod with limits, a probe and a hostPort, which announces itself.
fn web(announce: u16) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: web}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: web
    image: {BUSYBOX}
    command:
    - sh
    - -c
    - |
      echo begun
      printf served > /tmp/index.html
      httpd -f -p 8080 -h /tmp &
      until wget -q -O /dev/null http://127.0.0.1:8080/; do usleep 1000; done
      echo here is web | nc {SERVICE4} {announce}
      wait
    ports: [{{containerPort: 8080, hostPort: 18080}}]
    livenessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1, failureThreshold: 1}}
    resources: {{limits: {{memory: 64Mi, cpu: 500m}}}}
"#
    )
}
