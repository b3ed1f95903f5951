//! Names that the engine answers itself, beside `host.internal`, `gateway.internal` and `dns.internal`. Other
//! names go to the host's resolvers.

use std::process::ExitCode;

use examples::{AnyError, Child, become_namespace_root, command_line};
use netstack::config::DnsConfig;
use netstack::{Config, Driver, Tap};

fn main() -> Result<ExitCode, AnyError> {
    become_namespace_root()?;
    let mut dns = DnsConfig::default();
    dns.names.push(("registry.example".to_owned(), "192.0.2.1".parse()?));
    dns.names.push(("registry.example".to_owned(), "2001:db8::1".parse()?));
    let config = Config::builder().dns(dns).build()?;
    let (tap, child) = Child::start(&config, Tap::open_in_current_netns, command_line()?)?;
    let mut driver = Driver::new(tap, config)?;
    driver.run_until(&child)?;
    driver.finish()?;
    println!("{} queries were answered here", driver.stats().dns_static);
    child.exit_code()
}
