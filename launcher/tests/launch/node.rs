//! Directories of the command's own, the surroundings of a node, and that a dry run tells what is done.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use crate::support::{Running, Scratch, has_namespaces, has_tap, launcher, run, stderr, stdout};
use serde_json::Value;

/// A launch whose state and data are below `scratch`.
fn command(scratch: &Scratch, options: &[&str], script: &str) -> Command {
    let runtime = scratch.path("run");
    fs::create_dir_all(&runtime).unwrap();
    let mut command = launcher(options, &["sh", "-ec", script]);
    command.env("XDG_RUNTIME_DIR", runtime).env("XDG_DATA_HOME", scratch.path("data"));
    command
}

fn text(scratch: &Scratch, options: &[&str], script: &str) -> String {
    stdout(&command(scratch, options, script).output().unwrap())
}

#[test]
fn a_copied_up_directory_is_the_same_and_can_be_written_to() {
    if !has_namespaces() {
        return;
    }
    let script =
        "ls -A /etc; touch /etc/new; rm /etc/new; cat /etc/passwd | head -1; readlink /etc/mtab || true";
    let host = Command::new("sh").args(["-c", &script.replace("touch /etc/new; rm /etc/new; ", "")]).output();
    assert_eq!(
        stdout(&run(&["--net=none", "--copy-up=/etc"], &["sh", "-ec", script])),
        stdout(&host.unwrap())
    );
}

#[test]
fn what_the_host_replaces_later_neither_goes_nor_uncovers() {
    if !has_namespaces() {
        return;
    }
    let scratch = Scratch::new();
    let at = |name: &str| scratch.path(name);
    fs::create_dir_all(at("up/dir")).unwrap();
    fs::write(at("up/file"), "old").unwrap();
    fs::write(at("up/dir/file"), "old").unwrap();
    symlink("dir/file", at("up/link")).unwrap();
    let fifo = scratch.fifo("go");
    let (up, copy_up) = (scratch.text("up"), format!("--copy-up={}", scratch.text("up")));
    let script = format!("cd {up}; echo mine >new; echo up; cat {fifo}; cat file link new; readlink link");
    let mut running = Running::start(&["--net=none", &copy_up], &script);
    assert_eq!(running.line(), "up");
    assert!(!at("up/new").exists());
    fs::write(at("other"), "new").unwrap();
    fs::rename(at("other"), at("up/file")).unwrap();
    fs::remove_file(at("up/link")).unwrap();
    fs::write(at("up/dir/file"), "changed\n").unwrap();
    fs::write(&fifo, "").unwrap();
    // The file is the one that was there; the directory lives.
    let lines = [(); 3].map(|()| running.line());
    assert_eq!(lines, ["oldchanged", "mine", "dir/file"]);
    assert!(running.end().0.success());
}

#[test]
fn an_etc_of_its_own_keeps_its_names_when_the_hosts_change() {
    if !has_tap() {
        return;
    }
    // /etc/resolv.conf is then a file of the command's, and no mount.
    let script = "cat /etc/resolv.conf; ! grep ' /etc/resolv.conf ' /proc/self/mountinfo";
    let text = stdout(&run(&["--ipv6=off", "--copy-up=/etc"], &["sh", "-ec", script]));
    assert!(text.starts_with("nameserver 10.0.42.3\n"), "{text}");
}

#[test]
fn mounts_spread_as_told() {
    if !has_namespaces() {
        return;
    }
    // Field 7 and on, up to the dash (proc_pid_mountinfo(5)).
    let script = "awk '$5 == \"/\" { for (i = 7; $i != \"-\"; i++) printf \"%s \", $i; print \"\" }' /proc/self/mountinfo";
    for (propagation, shared) in [("rprivate", false), ("rslave", false), ("rshared", true), ("shared", true)]
    {
        let option = format!("--propagation={propagation}");
        let text = stdout(&run(&["--net=none", &option], &["sh", "-c", script]));
        assert_eq!(text.contains("shared:"), shared, "{propagation}: {text}");
        assert!(propagation != "rprivate" || text.trim().is_empty(), "{text}");
    }
    assert_eq!(run(&["--propagation=everywhere"], &["true"]).status.code(), Some(2));
}

#[test]
fn a_command_stays_in_the_hosts_network_beside_its_own() {
    if !has_tap() {
        return;
    }
    let scratch = Scratch::new();
    for pidns in ["--pidns=false", "--pidns"] {
        let script = "readlink /proc/self/ns/net; cat /etc/resolv.conf >/dev/null
            cat $ROOTLESSKIT_STATE_DIR/resolv.conf
            nsenter --net=$ROOTLESSKIT_STATE_DIR/netns sh -c 'readlink /proc/self/ns/net; ip -o -4 addr show tap0'";
        let text = text(&scratch, &["--detach-netns", "--ipv6=off", pidns], script);
        let lines: Vec<&str> = text.lines().collect();
        let ours = fs::read_link("/proc/self/ns/net").unwrap();
        assert_eq!((Some(lines[0]), lines[1]), (ours.to_str(), "nameserver 10.0.42.3"), "{text}");
        assert_ne!(Some(lines[2]), ours.to_str(), "{text}");
        assert!(lines[3].contains("inet 10.0.42.100/24"), "{text}");
    }
    let output = run(&["--detach-netns", "--net=host"], &["true"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--detach-netns has no meaning with --net=host"), "{}", stderr(&output));
}

const NODE: [&str; 3] = ["--surroundings=node", "--ipv6=off", "--name=n1"];

#[test]
fn a_node_finds_what_it_needs() {
    if !has_tap() {
        return;
    }
    let scratch = Scratch::new();
    // Writes where a node writes, sees its own network and none of the host's runtimes.
    let script =
        "touch /etc/x /run/x /var/lib/x /opt/x /var/lib/kubelet/x /var/log/x /etc/cni/net.d/x /opt/cni/bin/x
        ls /run/containerd /run/netns /run/xtables.lock /run/runc 2>/dev/null | wc -l
        ls -d /sys/class/net/tap0
        cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/all/rp_filter
        grep -c ' shared:' /proc/self/mountinfo >/dev/null
        test -S $ROOTLESSKIT_STATE_DIR/api.sock
        head -c0 /dev/kmsg
        unshare --mount --pid --fork --mount-proc --propagation=slave true";
    assert_eq!(text(&scratch, &NODE, script), "0\n/sys/class/net/tap0\n1\n2\n");
}

#[test]
fn a_nodes_data_outlive_it_and_belong_to_one_at_a_time() {
    if !has_tap() {
        return;
    }
    let scratch = Scratch::new();
    let fifo = scratch.fifo("end");
    let script = format!("echo data >/var/lib/kubelet/kept; echo gone >/var/lib/lost; echo up; cat {fifo}");
    let mut running = Running::of(command(&scratch, &NODE, &script));
    assert_eq!(running.line(), "up");
    assert_eq!(
        fs::read_to_string(scratch.path("data/rootless-launch/n1/var/lib/kubelet/kept")).unwrap(),
        "data\n"
    );
    // By its name, and by its data under another name.
    let data = format!("--data-dir={}", scratch.text("data/rootless-launch/n1"));
    for options in [&NODE[..], &["--surroundings=node", "--net=none", "--name=n2", &data]] {
        let output = command(&scratch, options, "true").output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{options:?}");
        let wanted = format!("is in use by a running instance, process {}", running.launcher.id());
        assert!(stderr(&output).contains(&wanted), "{options:?}: {}", stderr(&output));
    }
    fs::write(&fifo, "").unwrap();
    assert!(running.end().0.success());
    assert_eq!(text(&scratch, &NODE, "cat /var/lib/kubelet/kept; test ! -e /var/lib/lost"), "data\n");
}

#[test]
fn a_kubelet_s_own_arguments_are_left_alone() {
    if !has_tap() {
        return;
    }
    let scratch = Scratch::new();
    let kubelet = scratch.path("kubelet");
    fs::write(&kubelet, "#!/bin/sh\necho \"$@\"; cat /proc/1/comm\n").unwrap();
    fs::set_permissions(&kubelet, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut launch = launcher(&["--ipv6=off", "-p", "0:10250"], &[kubelet.to_str().unwrap()]);
    launch.args(["--v=2", "--config=/a b", "--", "-x"]);
    launch.env("XDG_RUNTIME_DIR", scratch.path("")).env("XDG_DATA_HOME", scratch.path("data"));
    assert_eq!(stdout(&launch.output().unwrap()), "--v=2 --config=/a b -- -x\nrl-init\n");
}

#[test]
fn a_dry_run_does_nothing_and_tells_what_is_done() {
    if !has_tap() {
        return;
    }
    let scratch = Scratch::new();
    let mut dry = NODE.to_vec();
    dry.extend(["--copy-up=/media", "--dry-run=json"]);
    let plan: Value = serde_json::from_str(&text(&scratch, &dry, "exit 7")).unwrap();
    assert!(!scratch.path("data").exists());
    assert_eq!(fs::read_dir(scratch.path("run")).unwrap().count(), 0);

    let mut real = NODE.to_vec();
    real.push("--copy-up=/media");
    let script = "for kind in user mnt net pid ipc uts cgroup; do readlink /proc/self/ns/$kind; done
        cat /proc/self/mountinfo";
    let told = text(&scratch, &real, script);
    let mut lines = told.lines();
    for kind in ["user", "mnt", "net", "pid", "ipc", "uts", "cgroup"] {
        let ours = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        let name = if kind == "mnt" { "mount" } else { kind };
        let is_new = plan["namespaces"]["new"].as_array().unwrap().contains(&name.into());
        assert_eq!(lines.next() != ours.to_str(), is_new, "{kind}");
    }
    // Each step that mounts something has its mount, in the order of the plan.
    let mut mounts = lines.map(|line| line.split(' ').nth(4).unwrap());
    for step in plan["mounts"].as_array().unwrap() {
        let target = match step["step"].as_str().unwrap() {
            "proc" => "/proc",
            "sysfs" => "/sys",
            "copy-up" => step["directory"].as_str().unwrap(),
            "bind" => step["target"].as_str().unwrap(),
            _ => continue,
        };
        assert!(mounts.any(|mount| mount == target), "{step} is not done, or too early, in {told}");
    }

    let mut dry = NODE.to_vec();
    dry.push("--dry-run");
    let words = text(&scratch, &dry, "exit 7");
    for wanted in ["surroundings: node\n", "\ncopy up /run without ", "\nexecute sh -ec exit 7\n"] {
        assert!(words.contains(wanted), "{wanted} is missing in {words}");
    }
}
