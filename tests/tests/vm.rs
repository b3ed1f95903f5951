//! A whole stock machine with systemd and cgroup v2: see [`tests::vm`].

use tests::skip::Skipped;
use tests::vm::{Vm, image};

#[test]
fn a_stock_machine() {
    let Some(image) = image() else {
        let _skipped = Skipped::because("no image of tests/vm/build-image.sh in $ROOTLESS_LAUNCH_VM");
        return;
    };
    let start = std::time::Instant::now();
    let mut vm = Vm::boot(&image, &[]);
    eprintln!("boot {:?}", start.elapsed());
    eprintln!("{}", vm.run("ann", "id; cat /proc/self/cgroup; systemctl --user show-environment | head; cat /sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/cgroup.controllers").describe());
    eprintln!("{:?}", start.elapsed());
    eprintln!("{}", vm.run("root", "systemd-analyze; systemd-analyze blame | head -20; systemd-analyze critical-chain vm-ready.service; systemctl --failed").describe());
    eprintln!("{:?}", start.elapsed());
    vm.reboot();
    eprintln!("reboot {:?}", start.elapsed());
}
