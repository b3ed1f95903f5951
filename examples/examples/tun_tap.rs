//! The driver on a plain `tun_tap::Iface`: no virtio-net header, so the stack does checksums and segmentation.

use std::process::ExitCode;

use examples::{AnyError, Child, become_namespace_root, command_line};
use netstack::{Config, Driver, LinkCapabilities, Tap};
use tun_tap::{Iface, Mode};

fn main() -> Result<ExitCode, AnyError> {
    become_namespace_root()?;
    let config = Config::builder().build()?;
    let open = |name: &str| Iface::without_packet_info(name, Mode::Tap);
    let (iface, child) = Child::start(&config, open, command_line()?)?;
    let tap = Tap::try_from(iface)?;
    assert_eq!(tap.capabilities(), LinkCapabilities::default());
    let mut driver = Driver::new(tap, config)?;
    driver.run_until(&child)?;
    driver.finish()?;
    child.exit_code()
}
