//! `-T auto`, `-U auto`: what listens on the host is found at the same port of the child's loopback.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use forwarder::auto::{
    AutoPublisher, AutoRules, AutoWatch, Change, DEFAULT_LOCAL_PORT_RANGE, local_port_range,
};
use forwarder::driver::{Handle, ToHost};
use forwarder::error::PortError;
use forwarder::manager::Added;
use forwarder::sock_diag::DiagSocket;
use forwarder::spec::{Family, PortSpec};
use log::{debug, warn};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use crate::error::with_causes;

/// Follows the host's listeners.
pub(super) struct ToHostWatch {
    watch: AutoWatch,
    handle: Handle,
    stop: Arc<EventFd>,
    /// By the first of their numbers.
    active: BTreeMap<u64, Vec<u64>>,
}

impl ToHostWatch {
    /// Watches the network namespace of the calling process.
    ///
    /// # Errors
    /// sock_diag(7).
    pub(super) fn open(rules: AutoRules, handle: Handle, stop: Arc<EventFd>) -> io::Result<Self> {
        let ephemeral = local_port_range().unwrap_or(DEFAULT_LOCAL_PORT_RANGE);
        let publisher = AutoPublisher::new(rules, ephemeral);
        let watch = AutoWatch::new(DiagSocket::open()?, publisher, Default::default(), Instant::now());
        Ok(ToHostWatch { watch, handle, stop, active: BTreeMap::new() })
    }

    /// Runs until it is stopped.
    pub(super) fn run(mut self) {
        loop {
            for change in self.watch.poll(Instant::now()) {
                match change {
                    Change::Add(spec) => self.add(&spec),
                    Change::Withdraw(id) => {
                        for id in self.active.remove(&id).into_iter().flatten() {
                            // It ends with the driver as well.
                            let _ = self.handle.remove_to_host(id);
                        }
                    }
                }
            }
            // Rounded up, or it would be waited for in vain just before.
            let wait = self.watch.next_timeout().saturating_duration_since(Instant::now())
                + Duration::from_millis(1);
            let timeout = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
            let fds = [self.stop.as_fd(), self.watch.as_fd()];
            let mut fds = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => {
                    warn!("the host's listeners are not followed any more: {error}");
                    return;
                }
            }
            if fds[0].any() == Some(true) {
                return;
            }
        }
    }

    fn add(&mut self, spec: &PortSpec) {
        let now = Instant::now();
        match self.forward(spec) {
            Ok((first, ids)) => {
                self.watch.publisher().handle_added(now, spec, Added::New(first));
                self.active.insert(first, ids);
            }
            Err(error) => {
                debug!("{spec} of the host is not for the child: {}", with_causes(&error));
                // Nobody asked for this port by its number, and need be told.
                let _ = self.watch.publisher().handle_refused(now, spec, &error);
            }
        }
    }

    /// Opens the ports of the child's that lead to the host's listener `spec`; one will do, the first names them all.
    fn forward(&self, spec: &PortSpec) -> Result<(u64, Vec<u64>), PortError> {
        let transport = spec.proto().transport();
        let port = spec.fields().parent_port;
        let published = self.handle.list()?;
        let ours = published.iter().find(|status| {
            status.spec.proto().transport() == transport
                && status.spec.parent_ports().any(|other| other == port)
        });
        if let Some(status) = ours {
            let address = (Ipv4Addr::LOCALHOST, port).into();
            return Err(PortError::Conflict { id: status.id, address, transport });
        }
        let mut ids = Vec::new();
        let mut refusal = PortError::NoSuchAddress { address: (Ipv4Addr::LOCALHOST, port).into(), transport };
        for ip in loopbacks(spec) {
            let address = (ip, port).into();
            match self.handle.add_to_host(ToHost { transport, listen: address, connect: address }) {
                Ok(status) => ids.push(status.id),
                // The child has a server of its own there.
                Err(error) => refusal = error,
            }
        }
        ids.first().copied().map(|first| (first, ids)).ok_or(refusal)
    }
}

/// The addresses of the host's loopback at which the listener `spec` hears.
fn loopbacks(spec: &PortSpec) -> Vec<IpAddr> {
    let (v4, v6) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
    match (spec.fields().child_ip, spec.proto().family()) {
        (Some(ip), _) if ip.is_loopback() => vec![ip],
        (Some(_), _) => Vec::new(),
        (None, Some(Family::V4)) => vec![v4],
        (None, Some(Family::V6)) => vec![v6],
        (None, None) => vec![v4, v6],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_listens_on_the_loopback_is_reached_there() {
        let of = |text: &str| {
            loopbacks(&text.parse().unwrap()).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(of("80:80"), ["127.0.0.1", "::1"]);
        assert_eq!(of("80:80/tcp4"), ["127.0.0.1"]);
        assert_eq!(of("127.0.0.53:53:127.0.0.53:53/udp"), ["127.0.0.53"]);
        assert_eq!(of("80:192.0.2.2:80/tcp4"), Vec::<String>::new());
    }
}
