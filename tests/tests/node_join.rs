//! Nodes that join a real API server: by a certificate, by a bootstrap token, and two of them with flannel between.

use std::time::Instant;

use tests::{
    agent::Ids,
    components::Components,
    control_plane::{ControlPlane, EXPIRED, TOKEN},
    instance::eventually,
    node::{BUSYBOX, Site},
    process::run,
    world::{HOST4, ROUTER4, World, WorldConfig},
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

#[test]
fn a_node_runs_what_the_api_server_says() {
    let Ok(components) = Components::find() else { return };
    let world = world();
    let begun = Instant::now();
    let cluster = ControlPlane::start(&world, &world.router, ROUTER4, &components);
    eprintln!("a cluster: {:?}", begun.elapsed());
    let site = Site::new(&world, components.clone());
    let kubeconfig = cluster.kubeconfig("node", &cluster.node("lab"));
    let begun = Instant::now();
    let node = site.start(&["--host-ports=all", &format!("--kubeconfig={}", kubeconfig.display())]);
    cluster.wait_for_node("lab");
    eprintln!("from nothing to a node that is ready: {:?}", begun.elapsed());
    let address = "{.status.addresses[?(@.type=='InternalIP')].address}";
    assert_eq!(cluster.get("node/lab", address), HOST4);

    cluster.apply(&web("lab", 18080));
    cluster.wait_for_condition("pod/web-lab", "Ready");
    assert_eq!(cluster.get("pod/web-lab", "{.status.hostIP}"), HOST4);
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

    let nobody = cluster.kubeconfig_by("ca", &server(6444), "nobody", &cluster.node("lab"));
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

    let kubeconfig = cluster.kubeconfig("token", &token(TOKEN));
    let option = format!("--bootstrap-kubeconfig={}", kubeconfig.display());
    let node = site.start(&[&option]);
    cluster.wait_for_node("lab");
    assert_eq!(cluster.get("csr", "{.items[0].status.conditions[0].type}"), "Approved");
    cluster.apply(&web("lab", 18080));
    cluster.wait_for_condition("pod/web-lab", "Ready");
    assert_eq!(cluster.kubectl(&["logs", "web-lab"]).success().stdout, "begun");
    node.stop();

    // Nobody would sign for it now: it comes by what it has kept.
    let secret = format!("secret/bootstrap-token-{}", &TOKEN[..6]);
    let _ = cluster.kubectl(&["delete", "--namespace=kube-system", &secret]).success();
    let _ = cluster.kubectl(&["delete", "node/lab"]).success();
    let node = site.start(&[&option]);
    cluster.wait_for_node("lab");
    node.stop();
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
