//! The shortest embedding: a command in its own network namespace reaches the world through the driver.

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use examples::{AnyError, Child, become_namespace_root, command_line};
use netstack::{Config, Driver, Tap};

fn main() -> Result<ExitCode, AnyError> {
    become_namespace_root()?;
    let (tap, child) = Child::start(&config()?, Tap::open_in_current_netns, command_line()?)?;
    // Across processes, the descriptor comes as SCM_RIGHTS.
    serve(tap.into_fd(), &child)?;
    child.exit_code()
}

fn config() -> Result<Config, AnyError> {
    Ok(Config::builder()
        .subnet_v4("10.0.2.0/24".parse()?) // gateway .2, DNS .3, child .100
        .mtu(65_520)
        .build()?)
}

/// Gives the network namespace behind `tap_fd` an internet connection until `stop` is readable.
fn serve(tap_fd: OwnedFd, stop: impl AsFd) -> Result<(), AnyError> {
    let tap = Tap::from_fd(tap_fd)?;
    let mut driver = Driver::new(tap, config()?)?;
    driver.run_until(stop)?;
    driver.finish()?; // delivers what ended processes left with their kernel
    Ok(())
}
