//! A cluster for nodes to join: etcd, kube-apiserver and kube-controller-manager as they are, in one namespace of a world. What kubeadm
//! makes of a cluster besides running it, it has made: certificates, kubeconfigs, the bootstrap token and what it may, and the ConfigMaps
//! `cluster-info` and `kubelet-config`.

use crate::{
    components::Components,
    instance::eventually,
    process::{Finished, Pipe, Process, run},
    world::{HOST6, Netns, ROUTER6, World},
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The controllers without which no node joins and no pod is admitted.
const CONTROLLERS: &str = "--controllers=certificatesigningrequest-signing-controller,\
     certificatesigningrequest-approving-controller,node-ipam-controller,node-lifecycle-controller,\
     serviceaccount-controller,root-ca-certificate-publisher-controller";

/// What kubeadm does for its administrators, whom the API server is to kubelet; and nodes are such, so that flannel runs as them: it
/// reads all nodes and tells of itself in its own.
const RULES: &str = r#"
apiVersion: v1
kind: List
items:
- apiVersion: rbac.authorization.k8s.io/v1
  kind: ClusterRoleBinding
  metadata: {name: "kubeadm:cluster-admins"}
  roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
  subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "kubeadm:cluster-admins"}]
- apiVersion: rbac.authorization.k8s.io/v1
  kind: ClusterRole
  metadata: {name: flannel}
  rules:
  - {apiGroups: [""], resources: [nodes], verbs: [get, list, watch]}
- apiVersion: rbac.authorization.k8s.io/v1
  kind: ClusterRoleBinding
  metadata: {name: flannel}
  roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: flannel}
  subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "system:nodes"}]
"#;

/// A bootstrap token that is good.
pub const TOKEN: &str = "abcdef.0123456789abcdef";
/// Who may do everything.
const ADMIN: &str = "super-admin.conf";
/// One that was good once.
pub const EXPIRED: &str = "fedcba.0123456789abcdef";

/// For [`ControlPlane::kubeconfig_by`]: the cluster's own authority.
pub const AUTHORITY: &str = "pki/ca";
/// For kubeadm, which would ask the internet for the newest.
const VERSION: &str = "v1.36.0";

/// A cluster without nodes.
#[derive(Debug)]
pub struct ControlPlane<'a> {
    host: &'a Netns,
    address: &'a str,
    components: &'a Components,
    dir: PathBuf,
    programs: Vec<Process>,
}

impl<'a> ControlPlane<'a> {
    /// Starts it at `address` of `host`, and waits until pods may be made.
    ///
    /// # Panics
    /// When it does not come up.
    #[track_caller]
    #[must_use]
    pub fn start(world: &World, host: &'a Netns, address: &'a str, components: &'a Components) -> Self {
        let dir = world.dir().join("cluster");
        fs::create_dir(&dir).expect("the world's directory is writable");
        let mut cluster = Self { host, address, components, dir, programs: Vec::new() };
        fs::write(cluster.dir.join("kubeadm.yaml"), cluster.settings()).expect("it is writable");
        cluster.make_authority("other");
        cluster.kubeadm(&["init", "phase", "certs", "all"]);
        let directory = format!("--kubeconfig-dir={}", cluster.dir.display());
        cluster.kubeadm(&["init", "phase", "kubeconfig", "all", &directory]);
        cluster.start_etcd();
        cluster.start_api_server();
        let server = cluster.programs.last_mut().expect("just started");
        server.wait_for(Pipe::Stderr, "Serving securely on");
        eventually("the API server is ready", || cluster.kubectl(&["get", "--raw=/readyz"]).status.success());
        cluster.start_controllers();
        cluster.apply(RULES);
        let admin = format!("--kubeconfig={}", cluster.file(ADMIN));
        cluster.kubeadm(&["init", "phase", "bootstrap-token", "--skip-token-print", &admin]);
        cluster.kubeadm(&["init", "phase", "upload-config", "kubelet", &admin]);
        cluster.apply(&token(EXPIRED, "2001-01-01T00:00:00Z"));
        // What every pod has a volume of.
        for object in ["serviceaccount/default", "configmap/kube-root-ca.crt"] {
            cluster.wait_for(object, &["create"]);
        }
        cluster
    }

    /// Runs kubectl as the cluster's administrator.
    #[track_caller]
    pub fn kubectl(&self, args: &[&str]) -> Finished {
        run(self.client(args))
    }

    /// The same, to be run by the caller.
    #[must_use]
    pub fn client(&self, args: &[&str]) -> Command {
        let kubeconfig = format!("--kubeconfig={}", self.file(ADMIN));
        self.program_here("kubectl", &[&[kubeconfig.as_str()], args].concat())
    }

    /// Makes, or changes, what a manifest says.
    ///
    /// # Panics
    /// When the API server does not want it.
    #[track_caller]
    pub fn apply(&self, manifest: &str) {
        let file = self.dir.join("manifest.yaml");
        fs::write(&file, manifest).expect("the world's directory is writable");
        // Without asking what is there: the schema of everything takes kubectl a second.
        let _ =
            self.kubectl(&["apply", "--validate=false", "--filename", &file.display().to_string()]).success();
    }

    /// What the API server says of an object, by a JSONPath.
    #[track_caller]
    pub fn get(&self, object: &str, path: &str) -> String {
        self.kubectl(&["get", object, &format!("--output=jsonpath={path}")]).stdout
    }

    /// Waits until the node is ready.
    ///
    /// # Panics
    /// When it is not in time.
    #[track_caller]
    pub fn wait_for_node(&self, name: &str) {
        self.wait_for_condition(&format!("node/{name}"), "Ready");
    }

    /// Waits until the object is there and its condition true.
    ///
    /// # Panics
    /// When it is not in time.
    #[track_caller]
    pub fn wait_for_condition(&self, object: &str, condition: &str) {
        self.wait_for(object, &["create", &format!("condition={condition}")]);
    }

    /// One after the other: kubectl does not wait for a condition of what does not exist.
    #[track_caller]
    fn wait_for(&self, object: &str, what: &[&str]) {
        for what in what {
            let what = format!("--for={what}");
            let _ = self.kubectl(&["wait", &what, "--timeout=60s", object]).success();
        }
    }

    /// The kubeconfig `NAME.conf` by which a node joins with a token, as README has it made.
    ///
    /// # Panics
    /// When kubeadm or kubectl does not do its part.
    #[track_caller]
    #[must_use]
    pub fn bootstrap_kubeconfig(&self, name: &str) -> PathBuf {
        let file = self.dir.join(name).with_extension("conf");
        self.write_entry(&file, "kube-public", "cluster-info", "kubeconfig");
        let admin = format!("--kubeconfig={}", self.file(ADMIN));
        let token = run(self.program_here("kubeadm", &["token", "create", &admin])).success().stdout;
        let config = |words: &[&str]| {
            let kubeconfig = format!("--kubeconfig={}", file.display());
            let words = [&["config", &kubeconfig][..], words].concat();
            let _ = run(self.program_here("kubectl", &words)).success();
        };
        config(&["set-credentials", "node", "--token", token.trim()]);
        config(&["set-context", "node", "--cluster=", "--user=node"]);
        config(&["use-context", "node"]);
        file
    }

    /// `NAME.yaml` with the KubeletConfiguration that kubeadm keeps for all nodes.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    #[must_use]
    pub fn kubelet_config(&self, name: &str) -> PathBuf {
        let file = self.dir.join(name).with_extension("yaml");
        self.write_entry(&file, "kube-system", "kubelet-config", "kubelet");
        file
    }

    /// Writes what a ConfigMap has under a key.
    fn write_entry(&self, file: &Path, namespace: &str, map: &str, key: &str) {
        let (namespace, map) = (format!("--namespace={namespace}"), format!("configmap/{map}"));
        let output = format!("--output=jsonpath={{.data.{key}}}");
        let text = self.kubectl(&["get", &namespace, &map, &output]).success().stdout;
        fs::write(file, text).expect("the world's directory is writable");
    }

    /// The certificate of the cluster's authority.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.dir.join("pki/ca.crt")
    }

    /// A kubeconfig `NAME.conf` with this user.
    #[must_use]
    pub fn kubeconfig(&self, name: &str, user: &str) -> PathBuf {
        self.kubeconfig_by(AUTHORITY, &format!("https://{}:6443", self.address), name, user)
    }

    /// The same that trusts another authority, or names another server.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn kubeconfig_by(&self, authority: &str, server: &str, name: &str, user: &str) -> PathBuf {
        let file = self.dir.join(name).with_extension("conf");
        let authority = self.base64(authority, "crt");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: lab\n\
             contexts: [{{name: lab, context: {{cluster: lab, user: lab}}}}]\n\
             clusters: [{{name: lab, cluster: {{server: '{server}', certificate-authority-data: {authority}}}}}]\n\
             users: [{{name: lab, user: {{{user}}}}}]\n"
        );
        fs::write(&file, text).expect("the world's directory is writable");
        file
    }

    /// Credentials of a node, for [`Self::kubeconfig`].
    #[track_caller]
    #[must_use]
    pub fn node(&self, name: &str) -> String {
        self.certify(name, &format!("/O=system:nodes/CN=system:node:{name}"), &format!("DNS:{name}"));
        self.certificate(name)
    }

    fn certificate(&self, name: &str) -> String {
        let (certificate, key) = (self.base64(name, "crt"), self.base64(name, "key"));
        format!("client-certificate-data: {certificate}, client-key-data: {key}")
    }

    /// What kubeadm is told. Node names, and sockets that it would look for, are of no account.
    fn settings(&self) -> String {
        let Self { address, dir, .. } = self;
        let dir = dir.display();
        format!(
            "apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\n\
             localAPIEndpoint: {{advertiseAddress: {address}}}\n\
             nodeRegistration: {{name: control, criSocket: 'unix:///none'}}\n\
             bootstrapTokens: [{{token: {TOKEN}}}]\n\
             ---\n\
             apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\n\
             kubernetesVersion: {VERSION}\ncertificatesDir: {dir}/pki\nencryptionAlgorithm: ECDSA-P256\n\
             apiServer: {{certSANs: ['{HOST6}', '{ROUTER6}']}}\n\
             networking: {{serviceSubnet: 10.96.0.0/16, podSubnet: 10.244.0.0/16}}\n"
        )
    }

    #[track_caller]
    fn kubeadm(&self, args: &[&str]) {
        let config = format!("--config={}", self.file("kubeadm.yaml"));
        let _ = run(self.program_here("kubeadm", &[args, &[&config]].concat())).success();
    }

    /// A program of the components, on the cluster's host.
    fn program_here(&self, name: &str, args: &[&str]) -> Command {
        let argv = std::iter::once(self.program(name)).chain(args.iter().map(ToString::to_string));
        let mut command = self.host.command(&argv.collect::<Vec<_>>());
        // kubectl keeps what it has learnt of the API there.
        command.env("HOME", &self.dir);
        command
    }

    fn start_etcd(&mut self) {
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        self.spawn(&[
            self.program("etcd"),
            format!("--data-dir={}", self.file("etcd")),
            format!("--listen-client-urls={}", url(2379)),
            format!("--advertise-client-urls={}", url(2379)),
            format!("--listen-peer-urls={}", url(2380)),
            format!("--initial-advertise-peer-urls={}", url(2380)),
            format!("--initial-cluster=default={}", url(2380)),
            "--unsafe-no-fsync".to_owned(),
        ]);
    }

    fn start_api_server(&mut self) {
        let flag = |name: &str, file: &str| format!("--{name}={}", self.file(file));
        self.spawn(&[
            self.program("kube-apiserver"),
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--enable-bootstrap-token-auth=true".to_owned(),
            "--allow-privileged=true".to_owned(),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            // As kubeadm has it.
            "--kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname".to_owned(),
            format!("--advertise-address={}", self.address),
            flag("client-ca-file", "pki/ca.crt"),
            flag("tls-cert-file", "pki/apiserver.crt"),
            flag("tls-private-key-file", "pki/apiserver.key"),
            flag("kubelet-client-certificate", "pki/apiserver-kubelet-client.crt"),
            flag("kubelet-client-key", "pki/apiserver-kubelet-client.key"),
            flag("service-account-key-file", "pki/sa.pub"),
            flag("service-account-signing-key-file", "pki/sa.key"),
            flag("cert-dir", "run"),
        ]);
    }

    fn start_controllers(&mut self) {
        let flag = |name: &str, file: &str| format!("--{name}={}", self.file(file));
        self.spawn(&[
            self.program("kube-controller-manager"),
            CONTROLLERS.to_owned(),
            "--leader-elect=false".to_owned(),
            "--use-service-account-credentials=true".to_owned(),
            "--allocate-node-cidrs=true".to_owned(),
            "--cluster-cidr=10.244.0.0/16".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            flag("kubeconfig", "controller-manager.conf"),
            flag("cluster-signing-cert-file", "pki/ca.crt"),
            flag("cluster-signing-key-file", "pki/ca.key"),
            flag("root-ca-file", "pki/ca.crt"),
            flag("service-account-private-key-file", "pki/sa.key"),
            flag("cert-dir", "run"),
        ]);
    }

    fn spawn(&mut self, argv: &[String]) {
        let mut process = Process::spawn(self.host.command(argv));
        process.close_stdin();
        self.programs.push(process);
    }

    fn make_authority(&self, name: &str) {
        self.openssl(&[
            "-subj",
            "/CN=lab",
            "-keyout",
            &self.file(&format!("{name}.key")),
            "-out",
            &self.file(&format!("{name}.crt")),
        ]);
    }

    /// `NAME.crt` and `NAME.key` of the cluster's authority.
    fn certify(&self, name: &str, subject: &str, alternatives: &str) {
        let (key, certificate) = (self.file(&format!("{name}.key")), self.file(&format!("{name}.crt")));
        let (ca, ca_key) = (self.file("pki/ca.crt"), self.file("pki/ca.key"));
        let alternatives = format!("subjectAltName={alternatives}");
        let args = ["-CA", &ca, "-CAkey", &ca_key, "-subj", subject, "-addext", &alternatives];
        let more = ["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", &key, "-out", &certificate];
        self.openssl(&[&args[..], &more].concat());
    }

    fn openssl(&self, args: &[&str]) {
        let mut command = Command::new(crate::locate::program("openssl"));
        command.args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ]);
        command.args(args);
        let _ = run(command).success();
    }

    fn base64(&self, name: &str, kind: &str) -> String {
        let file = self.file(&format!("{name}.{kind}"));
        let mut command = Command::new("base64");
        command.args(["--wrap=0", &file]);
        run(command).success().stdout
    }

    fn program(&self, name: &str) -> String {
        self.components.programs().join(name).display().to_string()
    }

    fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}

impl Drop for ControlPlane<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for process in &mut self.programs {
            let said = process.said();
            let lines: Vec<&str> = said.lines().collect();
            eprintln!(
                "--- of the cluster\n{}",
                lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n")
            );
        }
    }
}

/// The Secret of a bootstrap token.
fn token(token: &str, expiration: &str) -> String {
    let (id, secret) = token.split_once('.').expect("a token has two parts");
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: bootstrap-token-{id}, namespace: kube-system}}\n\
         type: bootstrap.kubernetes.io/token\nstringData:\n  token-id: {id}\n  token-secret: '{secret}'\n  \
         expiration: '{expiration}'\n  usage-bootstrap-authentication: 'true'\n"
    )
}
