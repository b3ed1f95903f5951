//! Outbound TCP connections on the forwarder's relay: what joins it with the engine on the TAP.
//!
//! # Theory of operation
//! Engine and forwarder are threads of one process that share nothing and never wait for each other. The engine connects on the host as
//! ever, and then offers the connection ([`HostRelay`]); the forwarder gets it under the flow's number; what becomes of it comes back as a
//! job for the engine's thread ([`EgressEvents`]). Whatever cannot be relayed is given back and goes by the TAP.
//!
//! The forwarder's agent is started by the first offer, which waits for it. [`EgressMode::Relay`] has it started beforehand and asks what it can.

use std::cell::RefCell;
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::str::FromStr;

use forwarder::driver::{
    self as forwards, ChildLine, EgressAbility, EgressError, EgressEvents, Handle, LocalClients, Manner,
};
use netstack::Driver;
use netstack::driver::{DriverHandle, HostRelay, RelayOffer, Worker};
use netstack::flow::FlowId;
use netstack::stack::{RelayEnd, Relaying};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::agent::Agent;
use crate::error::{Failure, Step};
use crate::forwards::PreparedForwards;
use crate::join::Target;

/// How outbound TCP connections are carried.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EgressMode {
    /// By the relay where the child's kernel can do it and where it pays, else by the TAP.
    #[default]
    Auto,
    /// By the relay, which has to be possible, whether it pays or not.
    Relay,
    /// By the TAP.
    Tap,
}

impl fmt::Display for EgressMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EgressMode::Auto => "auto",
            EgressMode::Relay => "relay",
            EgressMode::Tap => "tap",
        })
    }
}

/// What tells the personalities, whose command lines are other programs', how to carry outbound connections.
pub const VARIABLE: &str = "ROOTLESS_LAUNCH_EGRESS";

/// [`VARIABLE`] has another value than [`EgressMode`] has names.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{VARIABLE}={0:?} is not auto, relay or tap")]
pub struct VariableError(OsString);

impl EgressMode {
    /// What the environment wants of a personality: the TAP unless it says otherwise, because the namespace is somebody else's and
    /// the relay adds rules to it.
    ///
    /// # Errors
    /// It names none of them.
    pub fn of_environment() -> Result<Self, VariableError> {
        let Some(value) = env::var_os(VARIABLE) else { return Ok(EgressMode::Tap) };
        value.to_str().and_then(|text| text.parse().ok()).ok_or(VariableError(value))
    }

    /// Which connections the relay is to be offered.
    fn of_engine(self) -> Relaying {
        match self {
            EgressMode::Auto => Relaying::Lasting,
            EgressMode::Relay => Relaying::All,
            EgressMode::Tap => Relaying::Off,
        }
    }

    /// The same as the forwarder has to know it.
    pub fn of_forwarder(self) -> forwards::EgressMode {
        match self {
            EgressMode::Auto => forwards::EgressMode::WhenOffered,
            EgressMode::Relay => forwards::EgressMode::AtOnce,
            EgressMode::Tap => forwards::EgressMode::Off,
        }
    }
}

impl FromStr for EgressMode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "auto" => Ok(EgressMode::Auto),
            "relay" => Ok(EgressMode::Relay),
            "tap" => Ok(EgressMode::Tap),
            _ => Err(()),
        }
    }
}

/// Offers what the child connects to from now on to a forwarder, which hears of it as soon as it runs.
///
/// # Errors
/// The engine gives no handle.
pub fn join(
    driver: &mut Driver,
    workers: &mut [Worker],
    forwards: &mut PreparedForwards,
    mode: EgressMode,
) -> io::Result<()> {
    let engine = driver.handle().map_err(io::Error::other)?;
    forwards.set_egress_events(Box::new(RelayNews { engine, news: RefCell::default() }));
    let relay = || Some(Box::new(ForwarderRelay(forwards.handle(), mode.of_engine())) as Box<dyn HostRelay>);
    driver.set_relay(relay());
    for worker in workers {
        worker.set_relay(relay());
    }
    Ok(())
}

/// Waits until it is known whether outbound connections can be relayed, which they have to be. A family that the kernel does not
/// have is no obstacle.
///
/// # Errors
/// What the kernel refused.
pub fn insist(forwards: &Handle) -> Result<(), Failure> {
    let abilities = forwards.egress_abilities();
    demand(abilities.map_err(|error| Failure::new(Step::Relay, "agent", io::Error::other(error)))?)
}

/// Makes a failure of what the kernel refused.
///
/// # Errors
/// As [`insist`].
pub fn demand(abilities: [EgressAbility; 2]) -> Result<(), Failure> {
    abilities.into_iter().try_for_each(|ability| match ability {
        EgressAbility::Possible | EgressAbility::Impossible { errno: libc::EAFNOSUPPORT, .. } => Ok(()),
        EgressAbility::Impossible { step, errno } => {
            Err(Failure::new(Step::Relay, step.to_string(), io::Error::from_raw_os_error(errno)))
        }
        EgressAbility::Unknown => Err(Failure::new(Step::Relay, "agent", io::ErrorKind::NotConnected)),
    })
}

/// A forwarder for outbound connections and nothing else, with an agent in somebody else's namespace, which is started. The calling
/// process has one thread.
///
/// # Errors
/// The agent or the forwarder cannot be made.
pub fn apart(driver: &mut Driver, target: &Target, mode: EgressMode) -> io::Result<PreparedForwards> {
    let (line, agents_end) = ChildLine::pair()?;
    Agent::new(agents_end, target.try_clone()?).start()?;
    let config = forwards::Config {
        manner: Manner::Apart(LocalClients::ToAddress),
        egress: mode.of_forwarder(),
        ..Default::default()
    };
    let mut forwards = PreparedForwards::new(config, Some(line), None).map_err(io::Error::other)?;
    join(driver, &mut [], &mut forwards, mode)?;
    Ok(forwards)
}

/// The forwarder as the engine sees it.
struct ForwarderRelay(Handle, Relaying);

impl HostRelay for ForwarderRelay {
    fn wants(&self) -> Relaying {
        self.1
    }

    fn offer(&mut self, offer: RelayOffer) -> Result<(), RelayOffer> {
        let RelayOffer { flow, stream, child, destination } = offer;
        let egress = forwards::Egress { id: flow.to_bits(), stream, child, destination };
        self.0.relay(egress).map_err(|egress| RelayOffer { flow, stream: egress.stream, child, destination })
    }

    fn withdraw(&mut self, flow: FlowId) {
        self.0.withdraw(flow.to_bits());
    }

    fn recall(&mut self, flow: FlowId) {
        self.0.recall(flow.to_bits());
    }
}

/// The engine as the forwarder sees it. What happens in one turn is told at its end.
struct RelayNews {
    engine: DriverHandle,
    news: RefCell<Vec<News>>,
}

enum News {
    Joined(FlowId),
    Refused(FlowId, OwnedFd),
    Ended(FlowId, RelayEnd),
}

impl EgressEvents for RelayNews {
    fn joined(&self, id: u64) {
        self.news.borrow_mut().push(News::Joined(FlowId::from_bits(id)));
    }

    fn refused(&self, id: u64, stream: OwnedFd, _why: EgressError) {
        self.news.borrow_mut().push(News::Refused(FlowId::from_bits(id), stream));
    }

    fn ended(&self, id: u64, to_host: u64, from_host: u64) {
        self.news.borrow_mut().push(News::Ended(FlowId::from_bits(id), RelayEnd { to_host, from_host }));
    }

    fn flush(&self) {
        let mut news = self.news.take();
        while let Some(flow) = news.first().map(News::flow) {
            let same = |news: &News| news.flow().worker() == flow.worker();
            let (told, later): (Vec<_>, Vec<_>) = news.into_iter().partition(same);
            // With the engine its flows have ended.
            let tell = move |driver: &mut Driver| told.into_iter().for_each(|news| news.tell(driver));
            let _ = self.engine.post_for(flow, tell);
            news = later;
        }
    }
}

impl News {
    fn flow(&self) -> FlowId {
        match self {
            News::Joined(flow) | News::Refused(flow, _) | News::Ended(flow, _) => *flow,
        }
    }

    fn tell(self, driver: &mut Driver) {
        match self {
            // Too late: the engine has withdrawn it, or resets it.
            News::Joined(flow) => drop(driver.relay_joined(flow)),
            News::Refused(flow, stream) => drop(driver.relay_refused(flow, stream)),
            News::Ended(flow, end) => driver.relay_ended(flow, end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_that_the_kernel_has_not_is_no_obstacle() {
        use forwarder::driver::EgressStep;
        let impossible = |step, errno| EgressAbility::Impossible { step, errno };
        let missing = impossible(EgressStep::Socket, libc::EAFNOSUPPORT);
        assert_eq!(demand([EgressAbility::Possible, missing]), Ok(()));
        let failure =
            demand([EgressAbility::Possible, impossible(EgressStep::Table, libc::EPERM)]).unwrap_err();
        let text = failure.to_string();
        assert!(
            text.starts_with("cannot carry outbound connections by the relay: nftables table: "),
            "{text}"
        );
        assert!(demand([EgressAbility::Unknown; 2]).is_err());
    }

    #[test]
    fn modes_have_their_names() {
        for (text, mode) in
            [("auto", EgressMode::Auto), ("relay", EgressMode::Relay), ("tap", EgressMode::Tap)]
        {
            assert_eq!(text.parse(), Ok(mode));
            assert_eq!(serde_json::to_value(mode).unwrap(), text);
        }
        assert_eq!("Relay".parse::<EgressMode>(), Err(()));
    }
}
