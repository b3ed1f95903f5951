//! Sets up the child's network, in the child.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use log::{info, warn};
use netstack::{Tap, TapError};
use nix::net::if_::if_nametoindex;

use crate::error::{Failure, Step};
use crate::netlink::message::{Batch, Interface, IpFamily, LOOPBACK, Reply};
use crate::netlink::socket::{Refused, Socket};
use crate::plan::net::{EnginePlan, Ipv6Offer, TAP_NAME, TAP_QUEUE};

/// The node that makes TAP devices.
pub const TUN_DEVICE: &str = "/dev/net/tun";
/// The most that the loopback device takes (linux/netdevice.h, `GSO_MAX_SIZE`).
const LOOPBACK_SEGMENT: u32 = 8 * 65_535;
/// What the child says that it takes: the relay sends by the loopback device, and a peer there that sends large segments is acknowledged
/// less often. The engine keeps to the MTU of the TAP anyway.
const ADVERTISED_MSS: u32 = 65_495;
/// How long the child waits for its IPv6 default route. The engine sends it at once; this bounds a fault.
const IPV6_PATIENCE_MS: u16 = 1000;

/// The child's TAP, up and addressed.
#[derive(Debug)]
pub struct TapLink {
    /// Descriptors of the TAP's queues, for the engine.
    pub queues: Vec<OwnedFd>,
    /// Hears of the IPv6 default route, if it comes at once.
    pub ipv6_routes: Option<Socket>,
}

/// Sets the loopback device up.
///
/// # Errors
/// netlink.
pub fn loopback() -> Result<(), Failure> {
    let mut batch = Batch::new();
    batch.link_up(LOOPBACK);
    perform(&open()?, &batch)
}

/// Creates the TAP, addresses and routes.
///
/// # Errors
/// The step that failed.
pub fn tap_link(plan: &EnginePlan) -> Result<TapLink, Failure> {
    let queues = open_tap(plan.queues.into())?;
    let index = if_nametoindex(TAP_NAME).map_err(|error| Failure::new(Step::CreateTap, TAP_NAME, error))?;
    let interface = Interface(index);
    let has_ipv6 = prepare_ipv6(plan.ipv6);
    let ipv6_routes = match (plan.ipv6, has_ipv6) {
        (Ipv6Offer::Now, true) => Some(
            Socket::subscribe_ipv6_routes()
                .map_err(|error| Failure::new(Step::Network, "route events", error))?,
        ),
        _ => None,
    };

    let ipv4 = plan.config.ipv4();
    let mut batch = Batch::new();
    batch.link_up(LOOPBACK);
    batch.link_up_with(interface, plan.config.mtu().into(), TAP_QUEUE);
    batch.add_ipv4(interface, ipv4.child, ipv4.subnet.prefix(), ipv4.subnet.broadcast());
    batch.add_default_route(interface, ipv4.gateway, ADVERTISED_MSS);
    if let Some((address, prefix)) = plan.ipv6_address().filter(|_| has_ipv6) {
        batch.add_ipv6(interface, address, prefix);
    }
    let socket = open()?;
    perform(&socket, &batch)?;
    enlarge_loopback_segments(&socket);
    Ok(TapLink { queues: queues.into_iter().map(Tap::into_fd).collect(), ipv6_routes })
}

/// Lets servers of the child hand the relay's sockets, which they reach by the loopback device, half a megabyte at
/// once. A kernel without it is only slower.
fn enlarge_loopback_segments(socket: &Socket) {
    let mut batch = Batch::new();
    batch.segment_sizes(LOOPBACK, LOOPBACK_SEGMENT);
    if let Err(Refused { request, error }) = socket.perform(&batch) {
        info!("{request} of the loopback device to {LOOPBACK_SEGMENT}: {error}");
    }
}

/// Creates the device with so many queues in this network namespace.
///
/// # Errors
/// The device node cannot be opened, or the device not be made.
pub fn open_tap(queues: usize) -> Result<Vec<Tap>, Failure> {
    Tap::open_queues_in_current_netns(TAP_NAME, queues).map_err(|error| match error {
        TapError::OpenTun(source) => Failure::new(Step::OpenTun, TUN_DEVICE, source),
        TapError::SetInterface { name, source } => Failure::new(Step::CreateTap, name, source),
        error => Failure::new(Step::CreateTap, TAP_NAME, io::Error::other(error)),
    })
}

/// Waits for the default route of the engine's first router advertisement, and until the child's address takes
/// packets: the kernel sees to that later, when it has time.
///
/// # Errors
/// netlink.
pub fn wait_ipv6(events: &Socket, plan: &EnginePlan) -> Result<(), Failure> {
    let mut wanted = vec![Reply::DefaultRoute(IpFamily::V6)];
    wanted.extend(plan.ipv6_address().map(|(address, _)| Reply::LocalAddress(address)));
    let missing = events.wait_for(wanted, IPV6_PATIENCE_MS);
    if !missing.map_err(|error| Failure::new(Step::Network, "route events", error))?.is_empty() {
        warn!("IPv6 is not ready; the command starts all the same");
    }
    Ok(())
}

/// Lets every group of the child use ping sockets, up to `last_gid`.
pub fn allow_ping(last_gid: u32) {
    // The kernel wants both ends mapped, and the highest it takes is 2^31 - 1.
    let last_gid = last_gid.min(i32::MAX.cast_unsigned());
    sysctl("net/ipv4/ping_group_range", &format!("0\t{last_gid}"));
}

/// Keeps an interface from making addresses of its own out of router advertisements.
pub fn no_autoconf(interface: &str) {
    sysctl(&format!("net/ipv6/conf/{interface}/autoconf"), "0");
}

/// Sets the TAP's IPv6 behaviour before it comes up; returns whether the kernel has IPv6.
fn prepare_ipv6(offer: Ipv6Offer) -> bool {
    if !fs::exists(format!("/proc/sys/net/ipv6/conf/{TAP_NAME}")).unwrap_or(false) {
        if offer != Ipv6Offer::Never {
            info!("the kernel has no IPv6; the child gets IPv4 only");
        }
        return false;
    }
    let set = |name: &str, value: &str| sysctl(&format!("net/ipv6/conf/{TAP_NAME}/{name}"), value);
    if offer == Ipv6Offer::Never {
        set("disable_ipv6", "1");
        return false;
    }
    // Nobody else is on this link: no duplicate can be there, and nothing has to be spread over time.
    set("accept_dad", "0");
    set("dad_transmits", "0");
    set("router_solicitation_delay", "0");
    // The address is set by hand; advertisements bring the route, also if the child becomes a router.
    set("autoconf", "0");
    set("accept_ra", "2");
    true
}

/// Writes a file below /proc/sys; what it concerns is the network namespace of the calling process. That it is not
/// there, or not to be written, is no error.
pub fn sysctl(name: &str, value: &str) {
    if let Err(error) = fs::write(format!("/proc/sys/{name}"), value) {
        info!("cannot write {value:?} to /proc/sys/{name}: {error}");
    }
}

fn open() -> Result<Socket, Failure> {
    Socket::open().map_err(|error: io::Error| Failure::new(Step::Network, "netlink", error))
}

fn perform(socket: &Socket, batch: &Batch) -> Result<(), Failure> {
    socket.perform(batch).map_err(|Refused { request, error }| Failure::new(Step::Network, request, error))
}
