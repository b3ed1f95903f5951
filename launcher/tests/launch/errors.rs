//! Machines that lack something. Each is made in a user namespace of the test's own.

use std::process::{Command, Output};

use crate::support::{LAUNCHER, has_tap, stderr, stdout};

/// Runs a shell script as root of new user and mount namespaces, with `$LAUNCHER` set.
fn on_machine(script: &str) -> Option<Output> {
    if !has_tap() {
        return None;
    }
    let output =
        Command::new("unshare").args(["-Urm", "sh", "-ec", script]).env("LAUNCHER", LAUNCHER).output();
    Some(output.unwrap())
}

#[track_caller]
fn assert_fails(script: &str, step: &str, fix: &str) {
    let Some(output) = on_machine(script) else { return };
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(step), "{step:?} is missing in {text}");
    assert!(text.contains(fix), "{fix:?} is missing in {text}");
}

#[test]
fn a_forbidden_network_namespace_is_explained() {
    assert_fails(
        "echo 0 > /proc/sys/user/max_net_namespaces; $LAUNCHER -- true",
        "cannot create the namespaces",
        "as root: sysctl -w user.max_net_namespaces=",
    );
}

#[test]
fn a_forbidden_user_namespace_is_explained() {
    assert_fails(
        "echo 0 > /proc/sys/user/max_user_namespaces; $LAUNCHER -- true",
        "cannot create the namespaces",
        "as root: sysctl -w user.max_user_namespaces=",
    );
}

#[test]
fn a_missing_tun_device_is_explained() {
    assert_fails(
        "mount -t tmpfs none /dev/net; $LAUNCHER -- true",
        "cannot open /dev/net/tun: No such file or directory",
        "as root: modprobe tun",
    );
}

#[test]
fn a_closed_tun_device_is_explained() {
    // A device node on a mount without devices cannot be opened by anybody.
    assert_fails(
        "mount --bind /dev/net /dev/net; mount -o remount,bind,nodev /dev/net; $LAUNCHER -- true",
        "cannot open /dev/net/tun: Permission denied",
        "as root: chmod 0666 /dev/net/tun",
    );
}

/// /etc of the test's own, with a resolv.conf that leads nowhere.
const DANGLING: &str = "mkdir -p $T/etc; trap 'rmdir $T/etc $T' EXIT; mount -t tmpfs none $T/etc; \
    cp /etc/passwd $T/etc/; mkdir $T/etc/sub; echo text > $T/etc/sub/file; ln -s sub/file $T/etc/link; \
    ln -s /nowhere/resolv.conf $T/etc/resolv.conf; mount --rbind $T/etc /etc; umount $T/etc;";

#[test]
fn a_dangling_resolv_conf_is_replaced() {
    let script = format!(
        "T=$(mktemp -d); {DANGLING} $LAUNCHER --ipv6=off -- sh -ec \
         'cat /etc/resolv.conf /etc/sub/file /etc/link; tail -1 /etc/hosts; cmp /etc/passwd /proc/self/root/etc/passwd'"
    );
    let Some(output) = on_machine(&script) else { return };
    assert_eq!(
        stdout(&output),
        "nameserver 10.0.42.3\ntext\ntext\n10.0.42.3 dns.internal\n",
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_resolv_conf_that_is_a_link_is_covered_where_it_leads() {
    let script = format!(
        "T=$(mktemp -d); {DANGLING} mount -t tmpfs none /mnt; echo nameserver 192.0.2.1 > /mnt/r; touch /etc/hosts; \
         ln -sf /mnt/r /etc/resolv.conf; $LAUNCHER --ipv6=off -- cat /etc/resolv.conf /mnt/r; cat /mnt/r"
    );
    let Some(output) = on_machine(&script) else { return };
    let inside = "nameserver 10.0.42.3\n";
    assert_eq!(stdout(&output), format!("{inside}{inside}nameserver 192.0.2.1\n"), "{}", stderr(&output));
}

#[test]
fn a_launch_inside_a_launch_works_and_warns_of_its_network() {
    if !has_tap() {
        return;
    }
    let output =
        crate::support::run(&["--ipv6=off"], &[LAUNCHER, "--ipv6=off", "--", "cat", "/etc/resolv.conf"]);
    assert_eq!(stdout(&output), "nameserver 10.0.42.3\n");
    let text = stderr(&output);
    assert!(text.contains("10.0.42.0/24 overlaps the host's 10.0.42.0/24 on tap0"), "{text}");
    assert!(text.contains("choose another --cidr"), "{text}");
}

#[test]
fn without_new_privileges_the_single_id_is_used() {
    if !has_tap() || !crate::support::has_program("setpriv") {
        return;
    }
    let mut command = Command::new("setpriv");
    let output = command.args(["--no-new-privs", LAUNCHER, "--net=none", "--", "id", "-u"]).output().unwrap();
    assert_eq!(stdout(&output), "0\n");
}
