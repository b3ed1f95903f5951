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
        let mut ids = Vec::new();
        let mut refusal = None;
        for to_host in self.wanted(spec) {
            match self.handle.add_to_host(to_host) {
                Ok(status) => ids.push(status.id),
                Err(error) => refusal = Some(error),
            }
        }
        let publisher = self.watch.publisher();
        match ids.first() {
            Some(&first) => {
                publisher.handle_added(now, spec, Added::New(first));
                self.active.insert(first, ids);
            }
            // The child has a server of its own there, or the port is one that we have published.
            None => {
                let error = refusal.unwrap_or(PortError::NotFound { id: 0 });
                debug!("{spec} of the host is not for the child: {}", with_causes(&error));
                publisher.handle_refused(now, spec, &error);
            }
        }
    }

    /// The ports of the child's that lead to the host's listener `spec`: none to what does not listen on the loopback,
    /// and none to what is the child's itself.
    fn wanted(&self, spec: &PortSpec) -> Vec<ToHost> {
        let fields = spec.fields();
        let transport = spec.proto().transport();
        let ours = self.handle.list().unwrap_or_default().iter().any(|status| {
            status.spec.proto().transport() == transport
                && status.spec.parent_ports().any(|port| port == fields.parent_port)
        });
        if ours {
            return Vec::new();
        }
        let ips: Vec<IpAddr> = match (fields.child_ip, spec.proto().family()) {
            (Some(ip), _) if ip.is_loopback() => vec![ip],
            (Some(_), _) => Vec::new(),
            (None, Some(Family::V4)) => vec![Ipv4Addr::LOCALHOST.into()],
            (None, Some(Family::V6)) => vec![Ipv6Addr::LOCALHOST.into()],
            (None, None) => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        };
        let to_host = |ip| {
            let address = (ip, fields.parent_port).into();
            ToHost { transport, listen: address, connect: address }
        };
        ips.into_iter().map(to_host).collect()
    }
}
