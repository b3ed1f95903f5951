//! Two children in one process, a driver and a thread for each. They have the same addresses and know nothing of
//! each other.

use std::process::ExitCode;
use std::thread;

use examples::{AnyError, Child, become_namespace_root, command_line};
use netstack::{Config, Driver, Stats, Tap};

fn main() -> Result<ExitCode, AnyError> {
    become_namespace_root()?;
    let command = command_line()?;
    let results = thread::scope(|scope| {
        let threads = [0, 1].map(|_| scope.spawn(|| serve(command.clone())));
        threads.map(|thread| thread.join().unwrap_or_else(|_| Err("a driver panicked".into())))
    });
    let mut code = ExitCode::SUCCESS;
    for (number, result) in results.into_iter().enumerate() {
        let (child_code, stats) = result?;
        println!("child {number}: {} TCP connections", stats.tcp_opened);
        if child_code != ExitCode::SUCCESS {
            code = child_code;
        }
    }
    Ok(code)
}

/// Runs `command` in namespaces of its own and serves it until it ends.
fn serve(command: Vec<String>) -> Result<(ExitCode, Stats), AnyError> {
    let config = Config::builder().build()?;
    let (tap, child) = Child::start(&config, Tap::open_in_current_netns, command)?;
    let mut driver = Driver::new(tap, config)?;
    driver.run_until(&child)?;
    driver.finish()?;
    Ok((child.exit_code()?, driver.stats()))
}
