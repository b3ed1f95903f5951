//! A whole stock machine with systemd and cgroup v2: see [`tests::vm`]. One machine for all of it, because it takes its time to boot.

use std::time::Instant;

use tests::{
    locate,
    skip::Skipped,
    vm::{Payload, Vm, image},
};

#[test]
fn a_stock_machine() {
    let Some(image) = image() else {
        let _skipped = Skipped::because("no image of tests/vm/build-image.sh in $ROOTLESS_LAUNCH_VM");
        return;
    };
    let program = locate::rootless_launch().expect("rootless-launch is built");
    let program = Payload { from: program, to: "usr/local/bin/rootless-launch" };
    let started = Instant::now();
    let vm = Vm::boot(&image, &[program]);
    let step = |name: &str, step: fn(&Vm)| {
        step(&vm);
        eprintln!("{:4} s: {name}", started.elapsed().as_secs());
    };
    step("limits are enforced in a scope of its own", limits_are_enforced_from_a_terminals_session);
    step("without a service manager", without_a_service_manager_it_runs_without_limits_and_says_so);
    step("modules are loaded on demand", modules_are_loaded_on_demand);
}

/// What systemd gives a session cannot be managed by its user.
fn limits_are_enforced_from_a_terminals_session(vm: &Vm) {
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
fn without_a_service_manager_it_runs_without_limits_and_says_so(vm: &Vm) {
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
fn modules_are_loaded_on_demand(vm: &Vm) {
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

fn quoted(script: &str) -> String {
    format!("'{}'", script.replace('\'', r"'\''"))
}
