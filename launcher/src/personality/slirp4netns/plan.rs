//! What a command line of slirp4netns means for our engine. Pure.

use std::fmt;
use std::net::IpAddr;

use netstack::config::{
    Access, Config, DhcpOrder, DnsConfig, DnsService, Ipv4Plan, Ipv6Mode, Ipv6Net, MAX_MTU, MIN_MTU,
    MIN_MTU_IPV6, Outbound, Refusal, UdpFiltering,
};
use netstack::error::ConfigError;

use super::cli::{self, Configuration, Request, Switch};
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
    let mut dns = DnsConfig::default();
    dns.service = if request.dns == Switch::On { DnsService::On } else { DnsService::Off };
    Config::builder()
        .mac([0x52, 0x55, gateway[0], gateway[1], gateway[2], gateway[3]])
        .mtu(mtu)
        .ipv4(ipv4)
        .subnet_v6(subnet_v6()?)
        .ipv6_mode(ipv6)
        .host_loopback(access(request.host_loopback))
        .loopback_refusal(Refusal::NetUnreachable)
        .dns(dns)
        .dhcp_order(DhcpOrder::Pool)
        .outbound_v4(outbound(request.outbound.as_ref()))
        .outbound_v6(outbound(request.outbound6.as_ref()))
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

fn outbound<A: Into<IpAddr> + Copy>(given: Option<&cli::Outbound<A>>) -> Outbound {
    match given {
        None => Outbound::Any,
        Some(cli::Outbound::Address(address)) => Outbound::Address((*address).into()),
        Some(cli::Outbound::Interface(name)) => Outbound::Interface(name.clone()),
    }
}

/// The one network that slirp4netns serves, with gateway ::2 and DNS ::3.
fn subnet_v6() -> Result<Ipv6Net, ConfigError> {
    Ipv6Net::new([0xfd00, 0, 0, 0, 0, 0, 0, 0].into(), 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::personality::slirp4netns::cli::{Call, parse};

    fn request(words: &str) -> Request {
        let words = words.split(' ').map(Into::into).collect();
        match parse(words, &mut Vec::new()) {
            Ok(Call::Serve(request)) => *request,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn addresses_are_those_that_callers_assume() {
        let request = request("-c -6 --cidr=10.41.0.0/16 1 tap0");
        let config = config(&request).unwrap();
        let (ipv4, ipv6) = (config.ipv4(), config.ipv6());
        let texts =
            [ipv4.gateway, ipv4.dns, ipv4.child, ipv4.dhcp_pool().0].map(|address| address.to_string());
        assert_eq!(texts, ["10.41.0.2", "10.41.0.3", "10.41.0.100", "10.41.0.15"]);
        assert_eq!([ipv6.gateway.to_string(), ipv6.dns.to_string()], ["fd00::2", "fd00::3"]);
        let setup = tap(&request, "tap0", &config).link.unwrap();
        assert_eq!(setup.addresses, [("10.41.0.100".parse().unwrap(), 16)]);
        assert_eq!(setup.routes, [Route::default_through("10.41.0.2".parse().unwrap())]);
    }

    #[test]
    fn any_mtu_that_is_allowed_can_be_served() {
        for (mtu, served) in [("1", 576), ("1500", 1500), ("65520", 65520), ("65521", 65521)] {
            let request = request(&format!("-c --mtu={mtu} 1 tap0"));
            let config = config(&request).unwrap();
            assert_eq!(config.mtu(), served);
            assert_eq!(tap(&request, "tap0", &config).link.unwrap().mtu.to_string(), mtu);
        }
        assert_eq!(config(&request("-6 --mtu=1000 1 tap0")).unwrap().mtu(), 1280);
    }

    #[test]
    fn every_prefix_that_is_allowed_can_be_served() {
        for prefix in 1..=25 {
            let request = request(&format!("--cidr=128.0.0.0/{prefix} 1 tap0"));
            assert!(config(&request).is_ok(), "{prefix}");
        }
    }

    #[test]
    fn nothing_is_configured_unless_asked_for() {
        let request = request("1 tap0");
        assert_eq!(tap(&request, "tap0", &config(&request).unwrap()).link, None);
    }

    #[test]
    fn the_banner_warns_of_the_open_loopback_only() {
        let banner = |words: &str| {
            let request = request(words);
            Banner { request: &request, config: &config(&request).unwrap() }.to_string()
        };
        assert!(banner("1 tap0").contains("WARNING: 127.0.0.1:* on the host is accessible as 10.0.2.2"));
        assert!(!banner("--disable-host-loopback 1 tap0").contains("WARNING"));
        assert!(banner("1 tap0").contains("* MTU:             1500\n"));
    }
}
