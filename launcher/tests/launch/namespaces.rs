//! What the command sees: ids, network, files.

use std::fs;

use crate::support::{has_namespaces, has_program, has_tap, launcher, run, skipped, stderr, stdout};
use nix::unistd::getuid;

#[test]
fn the_command_is_root_in_its_own_namespaces() {
    if !has_namespaces() {
        return;
    }
    let script = "id -u; id -g; readlink /proc/self/ns/user /proc/self/ns/net /proc/self/ns/mnt";
    let text = stdout(&run(&["--net=none"], &["sh", "-c", script]));
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("0"));
    assert_eq!(lines.next(), Some("0"));
    for name in ["user", "net", "mnt"] {
        let ours = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_ne!(lines.next(), ours.to_str());
    }
}

#[test]
fn without_helpers_the_callers_id_is_mapped_alone() {
    if !has_namespaces() {
        return;
    }
    if getuid().is_root() {
        skipped("root needs no helpers");
        return;
    }
    let mut command =
        launcher(&["--net=none", "-v"], &["/bin/cat", "/proc/self/uid_map", "/proc/self/setgroups"]);
    let output = command.env("PATH", "/nonexistent").output().unwrap();
    let text = stdout(&output);
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words, ["0", &getuid().to_string(), "1", "deny"]);
    assert!(stderr(&output).contains("newuidmap and newgidmap are not installed"), "{}", stderr(&output));
    // Quiet without -v.
    let mut command = launcher(&["--net=none"], &["/bin/true"]);
    assert_eq!(stderr(&command.env("PATH", "/nonexistent").output().unwrap()), "");
}

#[test]
fn a_helper_that_fails_leads_to_the_single_id() {
    if !has_namespaces() {
        return;
    }
    if !has_subordinate_ids() {
        skipped("no subordinate ids for this user");
        return;
    }
    let directory = tempdir("helper");
    for name in ["newuidmap", "newgidmap"] {
        let path = format!("{directory}/{name}");
        fs::write(&path, "#!/bin/sh\necho out of order >&2\nexit 1\n").unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let mut command = launcher(&["--net=none", "-v"], &["cat", "/proc/self/gid_map"]);
    let output = command.env("PATH", format!("{directory}:/usr/bin:/bin")).output().unwrap();
    fs::remove_dir_all(directory).unwrap();
    assert_eq!(stdout(&output).lines().count(), 1);
    assert!(stderr(&output).contains("out of order"), "{}", stderr(&output));
}

#[test]
fn subordinate_ids_are_mapped_by_the_helpers() {
    if !has_namespaces() || !has_program("newuidmap") {
        return;
    }
    if !has_subordinate_ids() {
        skipped("no subordinate ids for this user");
        return;
    }
    let text = stdout(&run(&["--net=none"], &["cat", "/proc/self/uid_map"]));
    assert!(text.lines().count() >= 2, "{text}");
    // Ids that exist can be used.
    stdout(&run(&["--net=none"], &["setpriv", "--reuid=1", "--regid=1", "--clear-groups", "true"]));
}

#[test]
fn the_engines_network_is_ready_when_the_command_starts() {
    if !has_tap() {
        return;
    }
    let script = "cat /sys/class/net/lo/operstate >/dev/null; ip -o addr; ip route; ip -o link show tap0";
    let text = stdout(&run(&["--ipv6=off", "--cidr=10.77.0.0/24", "--mtu=9000"], &["sh", "-c", script]));
    for wanted in [
        "inet 127.0.0.1/8",
        "inet 10.77.0.100/24 brd 10.77.0.255",
        "default via 10.77.0.2 dev tap0",
        "mtu 9000",
        "qlen 4096",
        "LOWER_UP",
    ] {
        assert!(text.contains(wanted), "{wanted} is missing in {text}");
    }
    assert!(!text.contains("inet6 f"), "{text}");
}

#[test]
fn the_loopback_device_takes_the_largest_segments_that_it_can() {
    if !has_tap() {
        return;
    }
    let text = stdout(&run(&[], &["ip", "-details", "link", "show", "lo"]));
    let value = |name| text.split_whitespace().skip_while(|word| *word != name).nth(1);
    // Not told before Linux 5.19.
    if let Some(most) = value("tso_max_size") {
        assert_eq!(value("gso_max_size"), Some(most), "{text}");
    }
}

#[test]
fn chosen_addresses_are_the_commands_and_the_engines() {
    if !has_tap() {
        return;
    }
    let options = [
        "--ipv6=on",
        "--address=10.0.42.7",
        "--address=fd42:10:42::7",
        "--gateway=10.0.42.1",
        "--dns-address=10.0.42.53",
        "--dns-name=db=192.0.2.7",
    ];
    // Resolved by a question to the engine: getent would find the name in /etc/hosts.
    let script = "ip -o addr show tap0; ip route; grep internal /etc/hosts; cat /etc/resolv.conf; \
        mount --bind /dev/null /etc/hosts; getent ahostsv4 db";
    let text = stdout(&run(&options, &["sh", "-c", script]));
    for wanted in [
        "inet 10.0.42.7/24",
        "inet6 fd42:10:42::7/64",
        "default via 10.0.42.1 dev tap0",
        "10.0.42.1 host.internal gateway.internal\n10.0.42.53 dns.internal\n",
        "nameserver 10.0.42.53\n",
        "192.0.2.7 ",
    ] {
        assert!(text.contains(wanted), "{wanted} is missing in {text}");
    }
}

#[test]
fn ipv6_address_is_usable_at_once() {
    if !has_tap() || !fs::exists("/proc/sys/net/ipv6").unwrap() {
        return;
    }
    let text = stdout(&run(&["--ipv6=on"], &["ip", "-o", "-6", "addr", "show", "dev", "tap0"]));
    assert!(text.contains("inet6 fd42:10:42::100/64"), "{text}");
    assert!(!text.contains("tentative"), "{text}");
}

#[test]
fn names_resolve_through_the_engine() {
    if !has_tap() {
        return;
    }
    let options = ["--ipv6=off", "--dns-search=example.org", "--dns-name=db=192.0.2.7"];
    let text = stdout(&run(&options, &["cat", "/etc/resolv.conf", "/etc/hosts"]));
    assert!(text.starts_with("nameserver 10.0.42.3\nsearch example.org\n"), "{text}");
    for wanted in ["10.0.42.2 host.internal gateway.internal\n", "192.0.2.7 db\n"] {
        assert!(text.contains(wanted), "{wanted} is missing in {text}");
    }
    assert!(fs::read_to_string("/etc/resolv.conf").unwrap_or_default() != text);
}

#[test]
fn without_network_there_is_loopback_only() {
    if !has_namespaces() {
        return;
    }
    let text = stdout(&run(&["--net=none"], &["sh", "-c", "cat /proc/net/dev; ip -o addr"]));
    assert_eq!(
        text.lines().filter(|line| line.contains(": ")).filter(|line| !line.contains("lo")).count(),
        0,
        "{text}"
    );
    assert!(text.contains("inet 127.0.0.1/8"), "{text}");
    assert_eq!(
        stdout(&run(&["--net=none"], &["cat", "/etc/hosts"])),
        fs::read_to_string("/etc/hosts").unwrap()
    );
}

#[test]
fn the_hosts_network_is_the_hosts() {
    if !has_namespaces() {
        return;
    }
    let text = stdout(&run(&["--net=host"], &["readlink", "/proc/self/ns/net"]));
    assert_eq!(text.trim(), fs::read_link("/proc/self/ns/net").unwrap().to_str().unwrap());
}

#[test]
fn ping_sockets_are_allowed_in_the_child() {
    if !has_namespaces() {
        return;
    }
    let text = stdout(&run(&["--net=none"], &["cat", "/proc/sys/net/ipv4/ping_group_range"]));
    assert!(text.starts_with("0\t"), "{text}");
}

#[test]
fn wrong_command_lines_end_with_status_2() {
    for (options, wanted) in [
        (&["--cidr=10.0.42.0/30"][..], "from 1 to 25"),
        (&["--cidr=10.0.42.1/24"], "host bits"),
        (&["--mtu=1000"], "1280"),
        (&["--gateway=10.9.9.9"], "10.9.9.9 is not a host address of 10.0.42.0/24"),
        (&["--address=10.0.42.2"], "10.0.42.2 has more than one role"),
        (&["--address=10.0.42.8", "--address=10.0.42.9"], "--address 10.0.42.9"),
        (&["--net=none", "--dns=9.9.9.9"], "--dns has no meaning with --net=none"),
        (&["--policy=@/no/such/file"], "/no/such/file"),
        (&["--pcap=/no/such/dir/x"], "/no/such/dir/x"),
        (&["--dns-name=x"], "NAME=IP"),
    ] {
        let output = run(options, &["true"]);
        assert_eq!(output.status.code(), Some(2), "{options:?}");
        assert!(stderr(&output).contains(wanted), "{options:?}: {}", stderr(&output));
    }
}

fn tempdir(name: &str) -> String {
    let path = format!("{}/{name}-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    let path = if fs::create_dir_all(&path).is_ok() {
        path
    } else {
        format!("/tmp/rl-{name}-{}", std::process::id())
    };
    fs::create_dir_all(&path).unwrap();
    path
}

/// Whether this user, who is not root, has subordinate ids.
fn has_subordinate_ids() -> bool {
    let subordinate = fs::read_to_string("/etc/subuid").unwrap_or_default();
    let name = nix::unistd::User::from_uid(getuid()).unwrap().unwrap().name;
    !getuid().is_root() && subordinate.lines().any(|line| line.starts_with(&format!("{name}:")))
}
