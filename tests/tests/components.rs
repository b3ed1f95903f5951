//! The components that other tests build on are what they should be, seen as the user who runs them.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use tests::components::Components;

#[test]
fn every_program_runs() {
    let Ok(components) = Components::find() else { return };
    for (program, argument) in [
        ("containerd", "--version"),
        ("containerd-shim-runc-v2", "-v"),
        ("ctr", "--version"),
        ("runc", "--version"),
        ("crun", "--version"),
        ("etcd", "--version"),
        ("etcdctl", "version"),
        ("conmon", "--version"),
        ("fuse-overlayfs", "--version"),
        ("skopeo", "--version"),
        ("busybox", "--help"),
        ("kubelet", "--version"),
        ("kube-apiserver", "--version"),
        ("kubeadm", "version"),
        ("kube-controller-manager", "--version"),
        ("kubectl", "--help"),
        ("flanneld", "--version"),
        ("crictl", "--version"),
    ] {
        runs(&components.programs().join(program), argument);
    }
    for (program, argument) in [
        ("containerd", "--version"),
        ("containerd-shim-runc-v2", "-v"),
        ("ctr", "--version"),
        ("crio", "--version"),
    ] {
        runs(&components.second_programs().join(program), argument);
    }
}

/// 0.4.0 is the only version that flannel and firewall have in common.
#[test]
fn every_plugin_speaks_0_4_0() {
    let Ok(components) = Components::find() else { return };
    for plugin in ["bridge", "host-local", "portmap", "loopback", "flannel", "firewall", "tuning"] {
        let mut command = Command::new(components.cni_plugins().join(plugin));
        let output = command.env("CNI_COMMAND", "VERSION").stdin(Stdio::null()).output().expect("it starts");
        let versions = String::from_utf8_lossy(&output.stdout);
        assert!(versions.contains("\"0.4.0\""), "{plugin}: {versions}");
    }
}

/// skopeo is the judge.
#[test]
fn the_images_are_images() {
    let Ok(components) = Components::find() else { return };
    for image in ["pause", "busybox"] {
        let output = Command::new(components.programs().join("skopeo"))
            .args(["inspect", "--format", "{{.Os}} {{len .LayersData}}"])
            .arg(format!("oci-archive:{}", components.image(image).display()))
            .output()
            .expect("skopeo starts");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "linux 1", "{image}: {output:?}");
    }
}

fn runs(program: &Path, argument: &str) {
    // crun looks for its state before its arguments.
    let output = Command::new(program).arg(argument).env("XDG_RUNTIME_DIR", "/tmp").output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    assert!(output.status.success(), "{}: {output:?}", program.display());
}
