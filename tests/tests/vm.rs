//! A whole stock machine with systemd and cgroup v2: see [`tests::vm`]. One machine for all of it, because it takes its time to boot.

use std::{collections::BTreeSet, time::Instant};

use tests::{
    components::Components,
    locate,
    vm::{Payload, Vm, image},
};

#[test]
fn a_stock_machine() {
    let (Ok(image), Ok(components)) = (image(), Components::find()) else { return };
    let program = locate::rootless_launch().expect("rootless-launch is built");
    let of = |name: &str| components.programs().join(name);
    let second = |name: &str| components.second_programs().join(name);
    let payload = [
        (program, "usr/local/bin/rootless-launch"),
        (of("kubelet"), "usr/local/bin/kubelet"),
        (of("crictl"), "usr/local/bin/crictl"),
        (of("containerd-fuse-overlayfs-grpc"), "usr/local/bin/containerd-fuse-overlayfs-grpc"),
        // Where `check` does not look.
        (second("crio"), "opt/crio/crio"),
        (second("pinns"), "opt/crio/pinns"),
        (components.image("pause"), "opt/images/pause.tar"),
        (components.image("busybox"), "opt/images/busybox.tar"),
    ];
    let payload = payload.map(|(from, to)| Payload { from, to });
    let started = Instant::now();
    let mut vm = Vm::boot(&image, &payload);
    let mut step = |name: &str, step: fn(&mut Vm)| {
        step(&mut vm);
        eprintln!("{:4} s: {name}", started.elapsed().as_secs());
    };
    step("limits in a scope", limits_are_enforced_from_a_terminals_session);
    step("no service manager", without_a_service_manager_it_runs_without_limits_and_says_so);
    step("modules on demand", modules_are_loaded_on_demand);
    step("check", check_finds_what_is_lacking_and_its_commands_mend_it);
    step("a node of CRI-O", a_node_from_a_terminal_runs_pods_of_crio_within_their_limits);
    step("a node as a service", an_installed_node_runs_a_pod_within_its_limits);
    step("logout and reboot", with_lingering_the_node_survives_logout_and_reboot);
    step("uninstall", uninstall_leaves_nothing);
}

/// Everything that root can have forgotten, on a machine with Debian's packages at hand. (skopeo, for the node of CRI-O, goes with them: it
/// is kept beside CRI-O.)
fn check_finds_what_is_lacking_and_its_commands_mend_it(vm: &mut Vm) {
    const SPOIL: &str = "usermod --del-subuids 100000-165535 --del-subgids 100000-165535 ann
        chmod 0600 /dev/net/tun
        sysctl -q -w user.max_user_namespaces=0 kernel.unprivileged_userns_clone=0
        rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*
        cp /etc/apt/debs.list /etc/apt/sources.list.d/
        apt-get -q update
        cp /usr/bin/skopeo /opt/crio/
        DEBIAN_FRONTEND=noninteractive apt-get -q -y purge uidmap containerd runc crun iptables containernetworking-plugins";
    let check =
        |vm: &Vm, options: &str| vm.run("ann", &format!("rootless-launch check --for=node {options}"));
    assert!(check(vm, "").status.success(), "{}", check(vm, "").describe());
    let _ = vm.run("root", SPOIL).success();
    let mut found = BTreeSet::new();
    let mut rounds = 0;
    loop {
        let report = check(vm, "");
        if report.status.success() {
            break;
        }
        rounds += 1;
        // What cannot be looked at before something else is mended shows up in the next round.
        assert!(rounds <= 3, "{}", report.describe());
        let fails = report.stdout.lines().filter_map(|line| line.strip_prefix("fail  ")?.split(':').next());
        found.extend(fails.map(str::to_owned));
        let commands = check(vm, "--commands").stdout;
        let _ = vm.run("root", &format!("export DEBIAN_FRONTEND=noninteractive\n{commands}")).success();
    }
    for lack in [
        "namespaces",
        "tap",
        "subordinate ids",
        "container runtime",
        "OCI runtime",
        "CNI plugins",
        "iptables",
    ] {
        assert!(found.contains(lack), "{lack} is not in {found:?}");
    }
}

/// What systemd gives a session cannot be managed by its user.
fn limits_are_enforced_from_a_terminals_session(vm: &mut Vm) {
    const SCRIPT: &str = r#"
        cd /sys/fs/cgroup
        echo own=$(sed -n s/^0:://p /proc/self/cgroup) left=$(cat cgroup.procs | wc -l)
        mkdir limited
        echo 32M >limited/memory.max
        echo 0 >limited/memory.swap.max
        sh -c 'echo $$ >limited/cgroup.procs; exec dd if=/dev/zero of=/dev/null bs=200M count=1'
        echo memory=$? $(sed -n "s/^oom_kill /killed=/p" limited/memory.events)
        echo "5000 100000" >limited/cpu.max
        sh -c 'echo $$ >limited/cgroup.procs
            until grep -q "nr_throttled [1-9]" limited/cpu.stat; do :; done'
        echo throttled=$?
        echo 1 >limited/pids.max
        sh -c 'echo $$ >limited/cgroup.procs; /bin/true; echo forked=yes'
        echo pids=$?
    "#;
    let done = vm
        .run("ann", &format!("rootless-launch -v --cgroup=delegated -- sh -c {}", quoted(SCRIPT)))
        .success();
    assert_eq!((done.value("own"), done.value("left")), ("/evac".into(), "0".into()), "{}", done.describe());
    assert_eq!(
        (done.value("memory"), done.value("killed")),
        ("137".into(), "1".into()),
        "{}",
        done.describe()
    );
    assert_eq!(
        (done.value("throttled"), done.value("pids")),
        ("0".into(), "2".into()),
        "{}",
        done.describe()
    );
    assert!(done.stderr.contains("moved into the delegated scope rootless-launch-"), "{}", done.describe());
    // Status, terminal and environment are those of an ordinary launch, because it is the same process.
    let done = vm.run(
        "ann",
        "A=b rootless-launch --cgroup=delegated -- sh -c 'echo a=$A; kill -TERM $$'; echo status=$?",
    );
    assert_eq!((done.value("a"), done.value("status")), ("b".into(), "143".into()), "{}", done.describe());
    let left = vm.run("ann", "systemctl --user list-units --all --no-legend 'rootless-launch-*'").success();
    assert_eq!(left.stdout, "", "the scopes end with what ran in them");
}

/// As from cron, or by su.
fn without_a_service_manager_it_runs_without_limits_and_says_so(vm: &mut Vm) {
    const AS_BOB: &str = "id bob >/dev/null 2>&1 || useradd --create-home bob
        cd /home/bob && setpriv --reuid=bob --regid=bob --init-groups env -i PATH=$PATH HOME=/home/bob";
    let auto = vm.run("root", &format!("{AS_BOB} rootless-launch --cgroup=auto -- true")).success();
    let warnings = auto.stderr.lines().filter(|line| line.contains("warning")).count();
    assert!(warnings == 1 && auto.stderr.contains("loginctl enable-linger"), "{}", auto.describe());
    let delegated = vm.run("root", &format!("{AS_BOB} rootless-launch --cgroup=delegated -- true"));
    assert_eq!(delegated.status.code(), Some(1), "{}", delegated.describe());
    assert!(delegated.stderr.contains("loginctl enable-linger"), "{}", delegated.describe());
    let fixed = vm.run(
        "root",
        &format!("loginctl enable-linger bob; systemctl start user@$(id -u bob); {AS_BOB} rootless-launch --cgroup=delegated -- true"),
    );
    let _ = fixed.success();
}

/// The kernel loads them for whoever asks for them by name, in a user namespace too.
fn modules_are_loaded_on_demand(vm: &mut Vm) {
    // An ordinary user's PATH has no sbin.
    const SCRIPT: &str = "
        PATH=$PATH:/usr/sbin
        ip link add vx0 type vxlan id 1 dstport 8472 local 10.0.42.100 dev tap0 && ip link add br0 type bridge && ip link add v0 type veth
        iptables -t nat -A POSTROUTING -m comment --comment x -m addrtype ! --dst-type LOCAL -m conntrack --ctstate NEW -j MASQUERADE
        cd /tmp && mkdir l u w m && mount -t tmpfs t u && mkdir u/u u/w && mount -t overlay -o userxattr,lowerdir=l,upperdir=u/u,workdir=u/w o m
    ";
    let before = vm.run("root", "lsmod").success();
    for module in ["vxlan", "overlay", "nf_tables"] {
        assert!(
            !before.stdout.lines().any(|line| line.starts_with(&format!("{module} "))),
            "{module} is loaded already"
        );
    }
    let _ = vm
        .run("ann", &format!("rootless-launch --surroundings=node -- sh -euc {}", quoted(SCRIPT)))
        .success();
    let after = vm.run("root", "lsmod").success();
    for module in [
        "tun",
        "vxlan",
        "bridge",
        "veth",
        "overlay",
        "nf_tables",
        "nft_compat",
        "xt_MASQUERADE",
        "nf_conntrack",
    ] {
        assert!(
            after.stdout.lines().any(|line| line.starts_with(&format!("{module} "))),
            "{module}: {}",
            after.describe()
        );
    }
}

/// One pod serves within limits, and is reached at the host; the other is guaranteed its memory, and wants more of it.
const PODS: &str = r#"
        mkdir -p pods
        cat >pods/web.yaml <<END
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: default}
spec: {terminationGracePeriodSeconds: 1, containers: [
  {name: web, image: "rootless-launch.test/busybox:1", imagePullPolicy: Never, ports: [{containerPort: 80, hostPort: 8080}],
   command: [sh, -c, "mkdir /www; echo it works >/www/index.html; exec httpd -f -p 80 -h /www"],
   resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {cpu: 100m, memory: 48Mi}}}]}
END
        cat >pods/hog.yaml <<END
apiVersion: v1
kind: Pod
metadata: {name: hog, namespace: default}
spec: {restartPolicy: Never, containers: [
  {name: hog, image: "rootless-launch.test/busybox:1", imagePullPolicy: Never, command: [dd, if=/dev/zero, of=/dev/null, bs=200M, count=1],
   resources: {limits: {cpu: "1", memory: 32Mi}}}]}
END
"#;
const OPTIONS: &str =
    "--static-pods=$HOME/pods --image-archive=/opt/images --pause-image=rootless-launch.test/pause:1";

/// Without the kernel's overlayfs, from here on.
fn a_node_from_a_terminal_runs_pods_of_crio_within_their_limits(vm: &mut Vm) {
    const NO_OVERLAYFS: &str = "! grep -q '^overlay ' /proc/modules || rmmod overlay
        echo install overlay /bin/false >/etc/modprobe.d/no-overlay.conf";
    // Nobody is logged in between two commands.
    const LINGER: &str = "loginctl enable-linger ann && systemctl start user@$(id -u ann)";
    let _ = vm.run("root", &format!("{NO_OVERLAYFS}\n{LINGER}")).success();
    let start = format!(
        "{PODS} rootless-launch node --cri=crio --bin-dir=/opt/crio {OPTIONS} >crio.log 2>&1 </dev/null &"
    );
    let _ = vm.run("ann", &start).success();
    let _ = vm.wait_until("ann", REACH);
    let said = vm.run("ann", "cat crio.log");
    assert_eq!(said.stdout, "", "nothing is amiss");
    obeys_limits(vm);
    let _ =
        vm.run("ann", "rootless-launch stop --name=node && rootless-launch node uninstall --purge").success();
}

fn an_installed_node_runs_a_pod_within_its_limits(vm: &mut Vm) {
    let installed = vm.run("ann", &format!("{PODS} rootless-launch node install -- {OPTIONS}")).success();
    assert!(!installed.stdout.contains("enable-linger"), "{}", installed.describe());
    let unit = vm
        .run("ann", "systemctl --user show rootless-launch-node -p ActiveState,StatusText,TasksMax")
        .success();
    assert_eq!(unit.value("ActiveState"), "active", "started is ready: {}", unit.describe());
    assert!(unit.stdout.contains("StatusText=every unit is ready"), "{}", unit.describe());
    let _ = vm.wait_until("ann", REACH);
    obeys_limits(vm);
}

/// The pods' containers are in cgroups below kubelet's, have figures, and a root directory by fuse-overlayfs.
#[track_caller]
fn obeys_limits(vm: &Vm) {
    const LOOK: &str = r"
        pid=$(crictl inspect -o go-template --template '{{.info.pid}}' $(crictl ps -q --name web))
        group=$(sed -n s/^0:://p /proc/$pid/cgroup)
        echo group=$group memory=$(cat /sys/fs/cgroup$group/memory.max)
        echo cpu=$(cat /sys/fs/cgroup$group/cpu.max | tr ' ' /)
        echo root=$(sed -n 's,^[^ ]* / \([^ ]*\) .*,\1,p' /proc/$pid/mounts)
        echo working_set=$(crictl --timeout=60s stats -o json $(crictl ps -q --name web) | grep -c workingSetBytes)";
    let look = vm.run("ann", &inside(LOOK)).success();
    assert!(look.value("group").starts_with("/kubepods/burstable/pod"), "{}", look.describe());
    assert_eq!(look.value("memory"), (48 << 20).to_string(), "{}", look.describe());
    assert_eq!(look.value("cpu"), "10000/100000", "{}", look.describe());
    assert_eq!(look.value("root"), "fuse.fuse-overlayfs", "{}", look.describe());
    assert_eq!(look.value("working_set"), "1", "{}", look.describe());
    let killed = "crictl inspect $(crictl ps -a -q --name hog) | grep OOMKilled";
    let _ = vm.wait_until("ann", &inside(killed));
}

fn with_lingering_the_node_survives_logout_and_reboot(vm: &mut Vm) {
    // Every command so far was a login of its own. Now no session of the user's is left at all.
    let _ = vm.run("root", "loginctl terminate-session $(loginctl list-sessions --no-legend | awk '$3 == \"ann\" && $6 != \"manager\" {print $1}') || true");
    let _ = vm.wait_until("root", REACH);
    vm.reboot();
    let _ = vm.wait_until("root", REACH);
    let shown =
        vm.run("ann", "systemctl --user show rootless-launch-node -p ActiveState,NRestarts").success();
    let journal = vm.run("ann", "journalctl --user -b -u rootless-launch-node --no-pager | tail -20").stdout;
    assert_eq!(
        (shown.value("ActiveState"), shown.value("NRestarts")),
        ("active".into(), "0".into()),
        "{journal}"
    );
}

fn uninstall_leaves_nothing(vm: &mut Vm) {
    let foreign = "touch /var/lib/kubelet/foreign && chown 7:7 /var/lib/kubelet/foreign";
    let _ = vm.run("ann", &inside(foreign)).success();
    let purged = vm.run("ann", "rootless-launch node uninstall --purge").success();
    let left = "systemctl --user list-units --all --no-legend '*rootless-launch*'; ls -d .config/systemd/user/*rootless* \
        .config/systemd/user/*/*rootless* .local/share/rootless-launch/* .local/state/rootless-launch/* $XDG_RUNTIME_DIR/rootless-launch/* \
        2>/dev/null; find /sys/fs/cgroup/user.slice -name '*rootless*' -o -name kubepods; pgrep -u ann -l 'rl-|containerd|crio|conmon|fuse|kubelet'";
    let left = vm.run("ann", left);
    assert_eq!(left.stdout, "", "{}\n{}", left.describe(), purged.describe());
    // Again, with nothing there: done is done.
    let _ = vm.run("ann", "rootless-launch node uninstall --purge").success();
}

/// The pod by its port on the host.
const REACH: &str = "printf 'GET / HTTP/1.0\r\n\r\n' | busybox nc -w 20 127.0.0.1 8080 | grep 'it works'";

fn inside(script: &str) -> String {
    format!("rootless-launch enter -- sh -c {}", quoted(script))
}

fn quoted(script: &str) -> String {
    format!("'{}'", script.replace('\'', r"'\''"))
}
