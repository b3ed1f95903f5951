//! What a command line of slirp4netns means for our engine. Pure.

use std::fmt;

use netstack::config::{
    Access, Config, Ipv4Plan, Ipv6Mode, Ipv6Net, MAX_MTU, MIN_MTU, MIN_MTU_IPV6, UdpFiltering,
};
use netstack::error::ConfigError;

use super::cli::{Configuration, Request, Switch};
use crate::join::{LinkSetup, TapSetup};
use crate::netlink::message::Route;

/// The engine's settings.
///
/// # Errors
/// A network that cannot be served, such as 127.0.0.0/8.
pub fn config(request: &Request) -> Result<Config, ConfigError> {
    let access = |switch| if switch == Switch::On { Access::Allow } else { Access::Deny };
    let ipv4 = Ipv4Plan::for_subnet(request.cidr);
    let gateway = ipv4.gateway.octets();
    let (ipv6, min_mtu) = match request.ipv6 {
        Switch::On => (Ipv6Mode::On, MIN_MTU_IPV6),
        Switch::Off => (Ipv6Mode::Off, MIN_MTU),
    };
    // The interface gets what was asked for; the engine has a floor and a ceiling.
    let mtu = u16::try_from(request.mtu).unwrap_or(MAX_MTU).clamp(min_mtu, MAX_MTU);
    Config::builder()
        .mac([0x52, 0x55, gateway[0], gateway[1], gateway[2], gateway[3]])
        .mtu(mtu)
        .ipv4(ipv4)
        .subnet_v6(subnet_v6()?)
        .ipv6_mode(ipv6)
        .host_loopback(access(request.host_loopback))
        // Other addresses are connected as they are, and anybody may answer.
        .link_local(Access::Allow)
        .udp_filtering(UdpFiltering::EndpointIndependent)
        .build()
}

/// The TAP. No IPv6 address: the child makes one from the engine's router advertisements.
pub fn tap(request: &Request, name: &str, config: &Config) -> TapSetup {
    let link = match request.configuration {
        Configuration::Leave => None,
        Configuration::Apply(mac) => Some(LinkSetup {
            mtu: request.mtu,
            mac,
            addresses: vec![(config.ipv4().child.into(), config.ipv4().subnet.prefix())],
            routes: vec![Route::default_through(config.ipv4().gateway.into())],
        }),
    };
    TapSetup { name: name.to_owned(), link }
}

/// What people read at the start.
#[derive(Debug)]
pub struct Banner<'a> {
    /// What was asked for.
    pub request: &'a Request,
    /// What it means.
    pub config: &'a Config,
}

impl fmt::Display for Banner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (request, ipv4, ipv6) = (self.request, self.config.ipv4(), self.config.ipv6());
        let (first, last) = ipv4.dhcp_pool();
        writeln!(f, "Starting slirp (rootless-launch {})", env!("CARGO_PKG_VERSION"))?;
        let mut row =
            |name: &str, value: &dyn fmt::Display| writeln!(f, "* {:<17}{value}", format!("{name}:"));
        row("MTU", &request.mtu)?;
        row("Network", &ipv4.subnet.network())?;
        row("Netmask", &ipv4.subnet.mask())?;
        row("Gateway", &ipv4.gateway)?;
        row("DNS", if request.dns == Switch::On { &ipv4.dns } else { &"disabled" })?;
        row("DHCP begin", &first)?;
        row("DHCP end", &last)?;
        row("Recommended IP", &ipv4.child)?;
        if request.ipv6 == Switch::On {
            row("IPv6 network", &ipv6.subnet)?;
            row("IPv6 gateway", &ipv6.gateway)?;
            row("IPv6 DNS", &ipv6.dns)?;
        }
        if let Some(path) = &request.api_socket {
            row("API socket", &path.display())?;
        }
        if request.host_loopback == Switch::On {
            writeln!(
                f,
                "WARNING: 127.0.0.1:* on the host is accessible as {} (set --disable-host-loopback to prohibit it)",
                ipv4.gateway
            )?;
        }
        Ok(())
    }
}

/// The one network that slirp4netns serves, with gateway ::2 and DNS ::3.
fn subnet_v6() -> Result<Ipv6Net, ConfigError> {
    Ipv6Net::new([0xfd00, 0, 0, 0, 0, 0, 0, 0].into(), 64)
}
