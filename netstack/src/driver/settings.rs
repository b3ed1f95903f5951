//! Settings that change while the driver runs; those of the stack are in [`Driver::stack_mut`].

use std::io;
use std::net::SocketAddr;

use thiserror::Error;

use super::Driver;
use super::resolver::read_resolv_conf;
use crate::capture::{CaptureLimit, CaptureStatus, FrameObserver, PcapWriter};

/// Whom DNS questions are forwarded to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsUpstream {
    /// The servers of the host's resolv.conf, followed as it changes.
    ResolvConf,
    /// These, first choice first; at least one.
    Servers(Vec<SocketAddr>),
}

/// A capture is running already.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("frames are being captured already")]
pub struct CaptureRunning;

impl Driver {
    /// Chooses the DNS servers from now on; questions under way are not asked again. No servers mean
    /// [`DnsUpstream::ResolvConf`].
    ///
    /// # Errors
    /// resolv.conf cannot be read: the servers stay what they were.
    pub fn set_dns_upstream(&mut self, upstream: DnsUpstream) -> io::Result<()> {
        match upstream {
            DnsUpstream::Servers(servers) if !servers.is_empty() => self.stack.replace_dns_servers(servers),
            DnsUpstream::ResolvConf | DnsUpstream::Servers(_) => {
                let conf = read_resolv_conf(&self.resolv_conf)?;
                self.stack.replace_dns_servers(Vec::new());
                self.stack.set_dns_servers(&conf.servers);
            }
        }
        Ok(())
    }

    /// Whom DNS questions are forwarded to.
    pub fn dns_upstream(&self) -> DnsUpstream {
        match self.stack.config().dns().servers.as_slice() {
            [] => DnsUpstream::ResolvConf,
            servers => DnsUpstream::Servers(servers.to_vec()),
        }
    }

    /// Shows every frame to `observer` from now on, instead of an earlier one.
    pub fn set_observer(&mut self, observer: Box<dyn FrameObserver + Send>) {
        self.observers.change(|seats| seats.embedder = Some(observer));
    }

    /// Shows no frames to the observer any more, and gives it back.
    pub fn clear_observer(&mut self) -> Option<Box<dyn FrameObserver + Send>> {
        self.observers.change(|seats| seats.embedder.take())
    }

    /// Writes all frames to `out` as pcap from now on, beside what an observer does. Writes happen between frames: a
    /// slow `out` slows the child down.
    ///
    /// # Errors
    /// One is running. A capture that ended by itself makes room.
    pub fn start_capture(
        &mut self,
        out: Box<dyn io::Write + Send>,
        limit: CaptureLimit,
    ) -> Result<(), CaptureRunning> {
        let zero = self.clock.unix_micros_at_zero();
        self.observers.change(|seats| {
            if seats.capture.as_ref().is_some_and(|capture| capture.status().is_running()) {
                return Err(CaptureRunning);
            }
            seats.capture = Some(PcapWriter::with_limit(out, zero, limit));
            Ok(())
        })
    }

    /// Ends the capture and closes its output; says how far it came. `None` where there was none.
    pub fn stop_capture(&mut self) -> Option<CaptureStatus> {
        let mut capture = self.observers.change(|seats| seats.capture.take())?;
        capture.flush();
        Some(capture.status())
    }

    /// How far the capture is, or was when it ended by itself.
    pub fn capture(&self) -> Option<CaptureStatus> {
        self.observers.status()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::sync::{Arc, Mutex};

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use nix::unistd::{read, write};

    use super::*;
    use crate::capture::CaptureState;
    use crate::config::{Config, Ipv6Mode};
    use crate::driver::{DriverError, Ended};
    use crate::sys::link::PacketSocket;
    use crate::testing::frames::{CHILD, GATEWAY, arp_request};

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn driver() -> (Driver, OwnedFd) {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let config = Config::builder().ipv6_mode(Ipv6Mode::Off).build().unwrap();
        (Driver::new(PacketSocket::new(ours).unwrap(), config).unwrap(), theirs)
    }

    /// The child asks who the gateway is, and is told.
    fn exchange(driver: &mut Driver, child: &OwnedFd) {
        write(child, &arp_request(CHILD, GATEWAY)).unwrap();
        driver.finish().unwrap();
        assert_eq!(read(child, &mut [0; 2048]).unwrap(), 42);
    }

    #[test]
    fn captures_start_and_stop_while_frames_pass() {
        let (mut driver, child) = driver();
        exchange(&mut driver, &child);
        assert_eq!((driver.capture(), driver.stop_capture()), (None, None));
        let file = Shared::default();
        let limit = CaptureLimit { frames: Some(3), bytes: None };
        driver.start_capture(Box::new(file.clone()), limit).unwrap();
        exchange(&mut driver, &child);
        assert_eq!(driver.start_capture(Box::new(io::sink()), limit), Err(CaptureRunning));
        assert_eq!(driver.capture().map(|status| status.frames), Some(2));
        exchange(&mut driver, &child);
        let ended = CaptureStatus { frames: 3, bytes: 24 + 3 * (16 + 42), state: CaptureState::LimitReached };
        assert_eq!(driver.capture(), Some(ended));
        assert_eq!(file.0.lock().unwrap().len() as u64, ended.bytes);
        driver.start_capture(Box::new(io::sink()), CaptureLimit::default()).unwrap();
        assert_eq!(driver.stop_capture().map(|status| status.frames), Some(0));
        assert_eq!(driver.capture(), None);
    }

    #[test]
    fn dns_servers_come_from_resolv_conf_or_the_user() {
        let (mut driver, _child) = driver();
        assert_eq!(driver.dns_upstream(), DnsUpstream::ResolvConf);
        let of_the_host: Vec<SocketAddr> = driver.stack().dns_servers().collect();
        let ours = DnsUpstream::Servers(vec!["192.0.2.1:5353".parse().unwrap()]);
        driver.set_dns_upstream(ours.clone()).unwrap();
        assert_eq!(driver.dns_upstream(), ours);
        assert_eq!(driver.stack().dns_servers().count(), 1);
        driver.set_dns_upstream(DnsUpstream::ResolvConf).unwrap();
        assert_eq!(driver.stack().dns_servers().collect::<Vec<_>>(), of_the_host);
    }

    #[expect(clippy::disallowed_methods, reason = "handles are for other threads")]
    #[test]
    fn who_calls_a_driver_that_nobody_runs_any_more_is_told() {
        let (mut driver, _child) = driver();
        let handle = driver.handle().unwrap();
        let other = handle.clone();
        let waits = std::thread::spawn(move || other.call(|_| ()));
        // Before or after the call, whichever comes first.
        driver.close_handles();
        assert_eq!(waits.join().unwrap(), Err(Ended));
        assert_eq!(handle.post(|_| ()), Err(Ended));
    }

    #[test]
    fn a_peer_that_closes_ends_the_link() {
        let (mut driver, child) = driver();
        let (stop, _never) = io::pipe().unwrap();
        drop(child);
        assert!(matches!(driver.run_until(&stop), Err(DriverError::TapGone(_))));
    }
}
