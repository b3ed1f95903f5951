//! Nodes that join a real API server: by a certificate, over IPv6; by a bootstrap token, with either runtime; and two of them with flannel
//! between.

use std::{fs, path::Path, time::Instant};

use tests::{
    agent::Ids,
    components::Components,
    control_plane::{AUTHORITY, ControlPlane, EXPIRED, TOKEN},
    instance::eventually,
    node::{BUSYBOX, Site},
    process::run,
    world::{HOST4, HOST6, ROUTER4, ROUTER6, World, WorldConfig},
};

fn world() -> World {
    World::with(&WorldConfig { ids: Ids::Subordinate, ..WorldConfig::default() })
}

/// A pod of `node` that serves its name, at `host_port` too.
fn web(node: &str, host_port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web-{node}}}\nspec:\n  nodeName: {node}\n  terminationGracePeriodSeconds: 0\n  \
         containers:\n  - name: web\n    image: {BUSYBOX}\n    command: [sh, -c, 'echo begun; echo {node} > /tmp/index.html; \
         exec httpd -f -p 8080 -h /tmp']\n    ports: [{{containerPort: 8080, hostPort: {host_port}}}]\n    \
         readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}\n"
    )
}

/// The same pod, which has a word to say before it is asked to end, and says when it is, into `out` of the host.
fn with_last_words(node: &str, out: &Path) -> String {
    let out = out.display();
    let manifest =
        web(node, 18080).replace("terminationGracePeriodSeconds: 0", "terminationGracePeriodSeconds: 20");
    let manifest =
        manifest.replace("exec httpd", r#"trap "echo term >> /out/said; exit" TERM; httpd"#) + "    ";
    let manifest = manifest.replace("-h /tmp'", "-h /tmp & wait'");
    format!(
        "{manifest}lifecycle: {{preStop: {{exec: {{command: [sh, -c, 'echo hook >> /out/said']}}}}}}\n    \
         volumeMounts: [{{name: out, mountPath: /out}}]\n  \
         volumes: [{{name: out, hostPath: {{path: {out}, type: DirectoryOrCreate}}}}]\n"
    )
}

/// The certificates that nodes have asked for to serve with, and that nobody has looked at yet.
fn asked_for_serving(cluster: &ControlPlane<'_>) -> String {
    let new = "{range .items[?(@.spec.signerName=='kubernetes.io/kubelet-serving')]}{.metadata.name}{end}";
    cluster.get("csr", new)
}

/// A node that joins over IPv6 and is found by it first, and serves with a certificate of the cluster's.
#[test]
fn a_node_runs_what_the_api_server_says() {
    let Ok(components) = Components::find() else { return };
    let world = world();
    let begun = Instant::now();
    let cluster = ControlPlane::start(&world, &world.router, ROUTER4, &components);
    eprintln!("a cluster: {:?}", begun.elapsed());
    let site = Site::new(&world, components.clone());
    let server = format!("https://[{ROUTER6}]:6443");
    let kubeconfig = cluster.kubeconfig_by(AUTHORITY, &server, "node", &cluster.node("lab"));
    let patch = world.dir().join("kubelet.yaml");
    fs::write(&patch, "serverTLSBootstrap: true\n").expect("the world's directory is writable");
    let begun = Instant::now();
    let node = site.start(&[
        "--host-ports=all",
        &format!("--public-ip={HOST6},{HOST4}"),
        &format!("--kubelet-config={}", patch.display()),
        &format!("--kubeconfig={}", kubeconfig.display()),
    ]);
    cluster.wait_for_node("lab");
    eprintln!("from nothing to a node that is ready: {:?}", begun.elapsed());
    let addresses = "{.status.addresses[?(@.type=='InternalIP')].address}";
    assert_eq!(cluster.get("node/lab", addresses), format!("{HOST6} {HOST4}"));

    let out = world.dir().join("out");
    cluster.apply(&with_last_words("lab", &out));
    cluster.wait_for_condition("pod/web-lab", "Ready");
    assert_eq!(cluster.get("pod/web-lab", "{.status.hostIPs[*].ip}"), format!("{HOST6} {HOST4}"));
    // Without a certificate kubelet serves nobody.
    let refused = cluster.kubectl(&["logs", "web-lab"]);
    assert!(refused.stderr.contains("tls: internal error"), "{}", refused.stderr);
    eventually("kubelet has asked for a certificate", || !asked_for_serving(&cluster).is_empty());
    let unapproved = "only when somebody has approved the certificate";
    let says = || run(node.client(&["status"])).stdout;
    eventually(unapproved, || says().contains(unapproved));
    let _ = cluster.kubectl(&["certificate", "approve", &asked_for_serving(&cluster)]).success();
    eventually("kubelet has the certificate", || cluster.kubectl(&["logs", "web-lab"]).status.success());
    eventually("nothing is left to be approved", || !says().contains(unapproved));
    let authority = cluster.authority().display().to_string();
    for host in [HOST4.to_owned(), format!("[{HOST6}]")] {
        let url = format!("https://{host}:10250/pods");
        let asked = ["curl", "--silent", "--show-error", "--max-time", "20", "--cacert", &authority, &url];
        // Who has no certificate is nobody to it.
        assert_eq!(run(world.far.program(&asked)).success().stdout, "Unauthorized");
    }
    let url = format!("http://{HOST4}:18080/");
    let far =
        run(world.far.program(&["curl", "--silent", "--show-error", "--max-time", "20", &url])).success();
    assert_eq!(far.stdout, "lab");
    // By the API server, which finds kubelet at the host's address.
    assert_eq!(cluster.kubectl(&["logs", "web-lab"]).success().stdout, "begun");
    let token = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
    let inside = cluster.kubectl(&["exec", "web-lab", "--", "head", "-n1", token]).success().stdout;
    assert_eq!(inside, "-----BEGIN CERTIFICATE-----");
    node.stop();
    assert_eq!(fs::read_to_string(out.join("said")).expect("the pod had its time"), "hook\nterm\n");
}

/// The API server is on the node's own host: whatever has the host's address inside must not be in its way.
#[test]
fn a_token_is_enough_and_what_is_wrong_is_said() {
    let Ok(components) = Components::find() else { return };
    let world = world();
    let cluster = ControlPlane::start(&world, &world.host, HOST4, &components);
    let site = Site::new(&world, components.clone());
    let server = |port| format!("https://{HOST4}:{port}");
    let token = |token: &str| format!("token: {token}");

    let nobody = cluster.kubeconfig_by(AUTHORITY, &server(6444), "nobody", &cluster.node("lab"));
    let stranger = cluster.kubeconfig_by("other", &server(6443), "stranger", &token(TOKEN));
    let expired = cluster.kubeconfig("expired", &token(EXPIRED));
    for (option, kubeconfig, sentence) in [
        ("kubeconfig", &nobody, format!("{} cannot be reached", server(6444))),
        (
            "bootstrap-kubeconfig",
            &stranger,
            format!("that the certificate-authority of {} has not signed", stranger.display()),
        ),
        (
            "bootstrap-kubeconfig",
            &expired,
            format!("{} does not take the token of {}", server(6443), expired.display()),
        ),
    ] {
        let node = site.start(&[&format!("--{option}={}", kubeconfig.display())]);
        let status = || run(node.client(&["status"])).stdout;
        eventually(&sentence, || status().contains(&sentence));
        eprintln!("{}", node.log("cluster").wait_for_line(&sentence));
        node.stop();
    }

    // As README says.
    let bootstrap = format!("--bootstrap-kubeconfig={}", cluster.bootstrap_kubeconfig("bootstrap").display());
    let config = format!("--kubelet-config={}", cluster.kubelet_config("kubelet").display());
    let options = [bootstrap.as_str(), &config];
    let node = site.start(&options);
    cluster.wait_for_node("lab");
    assert_eq!(cluster.get("csr", "{.items[0].status.conditions[0].type}"), "Approved");
    assert_eq!(
        cluster.get("node/lab", "{.status.addresses[?(@.type=='InternalIP')].address}"),
        HOST4,
        "one address unless more are asked for"
    );
    cluster.apply(&web("lab", 18080));
    cluster.wait_for_condition("pod/web-lab", "Ready");
    assert_eq!(cluster.kubectl(&["logs", "web-lab"]).success().stdout, "begun");
    node.stop();

    // Nobody would sign for it now: it comes by what it has kept. Its runtime may be another.
    let tokens = ["secrets", "--field-selector=type=bootstrap.kubernetes.io/token"];
    let _ = cluster.kubectl(&[&["delete", "--namespace=kube-system"][..], &tokens].concat()).success();
    let _ = cluster.kubectl(&["delete", "pod/web-lab", "node/lab", "--force"]).success();
    let public = format!("--public-ip={HOST6},{HOST4}");
    let options = [&options[..], &["--cri=crio", &public]].concat();
    let node = site.start_with(&components.second_programs(), &options);
    cluster.wait_for_node("lab");
    for host in [HOST4.to_owned(), format!("[{HOST6}]")] {
        let server = format!("--server=https://{host}:6443");
        let words = ["kubectl", "--kubeconfig=/var/lib/kubelet/kubeconfig", &server, "get", "--raw=/livez"];
        assert_eq!(node.inside(&words).success().stdout, "ok");
    }
    assert!(cluster.get("node/lab", "{.status.nodeInfo.containerRuntimeVersion}").starts_with("cri-o://"));
    let out = world.dir().join("out");
    cluster.apply(&with_last_words("lab", &out));
    cluster.wait_for_condition("pod/web-lab", "Ready");
    assert_eq!(cluster.kubectl(&["logs", "web-lab"]).success().stdout, "begun");
    let inside = cluster.kubectl(&["exec", "web-lab", "--", "cat", "/tmp/index.html"]).success().stdout;
    assert_eq!(inside, "lab");
    node.stop();
    assert_eq!(fs::read_to_string(out.join("said")).expect("the pod had its time"), "hook\nterm\n");
}

#[test]
fn pods_of_two_nodes_reach_each_other_by_flannel_of_the_api_server() {
    let Ok(components) = Components::find() else { return };
    let world = world();
    let cluster = ControlPlane::start(&world, &world.router, ROUTER4, &components);
    let names = ["a", "b"];
    let sites = [&world.host, &world.far];
    let sites: Vec<_> = names
        .iter()
        .zip(sites)
        .map(|(name, host)| Site::on(&world, host, name, components.clone()))
        .collect();
    let nodes: Vec<_> = names
        .iter()
        .zip(&sites)
        .map(|(name, site)| {
            // One by a certificate, the other by a token: flannel uses what kubelet has.
            let (option, user) = match *name {
                "a" => ("kubeconfig", cluster.node(name)),
                _ => ("bootstrap-kubeconfig", format!("token: {TOKEN}")),
            };
            let kubeconfig = cluster.kubeconfig(&format!("{name}-node"), &user);
            site.start(&["--cni=flannel", &format!("--{option}={}", kubeconfig.display())])
        })
        .collect();
    for name in names {
        cluster.wait_for_node(name);
        cluster.apply(&web(name, 18080));
    }
    for name in names {
        cluster.wait_for_condition(&format!("pod/web-{name}"), "Ready");
    }
    for (name, peer) in [("a", "b"), ("b", "a")] {
        let address = cluster.get(&format!("pod/web-{peer}"), "{.status.podIP}");
        let pod = format!("web-{name}");
        let _ = cluster.kubectl(&["exec", &pod, "--", "ping", "-c2", "-W5", &address]).success();
        let url = format!("http://{address}:8080/");
        let page = cluster.kubectl(&["exec", &pod, "--", "wget", "-q", "-O-", "-T20", &url]).success();
        assert_eq!(page.stdout, peer);
    }
    nodes.into_iter().for_each(tests::node::Node::stop);
}
