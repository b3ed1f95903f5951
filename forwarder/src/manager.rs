//! Which forwards there are, and what has to be listened on because of them.
//!
//! # Theory of operation
//! A forward becomes one listener for each host address and port; all of them listen, or none does and the forward is
//! refused. Two forwards conflict when one host address and port would belong to both: the same address or one of them
//! every address, the same interface or one of them every interface, same family and protocol. Not handled: who else on
//! the host has a port (the kernel knows).
//!
//! | forward | what leads in | what leads out |
//! |---|---|---|
//! | pending | [`add`](PortManager::add) | every listener listens: active; one fails: gone |
//! | active | as above | [`remove`](PortManager::remove): gone |

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::error::PortError;
use crate::spec::{Family, InterfaceName, Need, Origin, PortSpec, PortStatus, Source, Transport};

/// The forwards. Pure and deterministic: ids rise from 1, lists are in order of id, listeners in order of port.
///
/// 1. Call [`add`](Self::add), [`remove`](Self::remove) or a `handle_*`.
/// 2. Drain [`poll_action`](Self::poll_action) until `None`, performing each; every [`Action::Listen`] is answered by
///    [`handle_listening`](Self::handle_listening) or [`handle_listen_failed`](Self::handle_listen_failed).
/// 3. [`Action::Added`] or [`Action::Failed`] tells what became of a forward that was added.
#[derive(Debug, Default)]
pub struct PortManager {
    limits: Limits,
    forwards: BTreeMap<u64, Forward>,
    /// As asked for, and as it is once the system has picked a port.
    by_spec: BTreeMap<PortSpec, u64>,
    listeners: BTreeMap<ListenerId, Listener>,
    places: BTreeMap<Place, ListenerId>,
    actions: VecDeque<Action>,
    last_id: u64,
    last_listener: u64,
}

/// How much of everything there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Forwards, a range counting as one. Beyond: [`PortError::TooManyForwards`]. 1,024 by default: more than any
    /// deployment we know of, few enough to list.
    pub forwards: usize,
    /// Listening sockets, one for each port and family. Beyond: [`PortError::TooManyListeners`]. 16,384 by default: the
    /// whole NodePort range (2,768 ports) for both protocols and families, and half as much again.
    pub listeners: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { forwards: 1024, listeners: 16_384 }
    }
}

/// Number of a listener; none comes twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(u64);

/// A socket that listens on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its number.
    pub id: ListenerId,
    /// The forward it belongs to.
    pub forward: u64,
    /// TCP or UDP.
    pub transport: Transport,
    /// Where it listens; IPv6 alone if it is `::`. Port 0: the system picks. A link-local address gets the scope of
    /// `interface` from whoever makes the socket.
    pub address: SocketAddr,
    /// The one interface whose clients it hears (SO_BINDTODEVICE).
    pub interface: Option<InterfaceName>,
    /// The child's address; `None`: its own in the network between us.
    pub child_ip: Option<IpAddr>,
    /// The child's port.
    pub child_port: u16,
    /// Whom the child sees.
    pub source: Source,
}

/// What has to be done.
#[derive(Debug)]
#[non_exhaustive]
pub enum Action {
    /// Listen, and say whether it worked.
    Listen(Listener),
    /// Close a listener, or one that was about to be made.
    Unlisten(ListenerId),
    /// Nothing more to do: every listener of this new forward listens.
    Added {
        /// The forward.
        id: u64,
    },
    /// Nothing more to do: this new forward could not be, and is gone.
    Failed {
        /// The forward.
        id: u64,
        /// Why.
        error: PortError,
    },
}

/// What [`PortManager::add`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// A new forward; [`Action::Added`] or [`Action::Failed`] follows.
    New(u64),
    /// The same forward as one that exists.
    Same(u64),
}

impl Added {
    /// The forward.
    pub fn id(self) -> u64 {
        let (Added::New(id) | Added::Same(id)) = self;
        id
    }
}

/// A host address and port as conflicts see it. The order is what [`PortManager::conflict`] walks.
type Place = (Transport, u16, IpAddr, Option<InterfaceName>);

#[derive(Debug)]
struct Forward {
    asked: PortSpec,
    /// With the port that the system picked.
    spec: PortSpec,
    origin: Origin,
    /// What listens or is about to, and whether it does.
    listeners: BTreeMap<ListenerId, Progress>,
    pending: usize,
    /// Attempts at a port that is free for every family, where the system picks.
    attempts: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Asked(Need),
    Listening,
}

impl PortManager {
    /// No forwards yet.
    pub fn new(limits: Limits) -> Self {
        PortManager { limits, ..PortManager::default() }
    }

    /// Adds a forward. The same forward a second time is the same forward; if one of the two was asked for by somebody,
    /// it stays until it is removed.
    ///
    /// # Errors
    /// [`PortError::Conflict`] and the limits; nothing has changed then.
    pub fn add(&mut self, spec: PortSpec, origin: Origin) -> Result<Added, PortError> {
        if let Some(&id) = self.by_spec.get(&spec) {
            if let Some(forward) = self.forwards.get_mut(&id)
                && origin == Origin::Asked
            {
                forward.origin = Origin::Asked;
            }
            return Ok(Added::Same(id));
        }
        let id = self.last_id + 1;
        self.insert(id, spec, origin)?;
        Ok(Added::New(id))
    }

    /// Adds a forward that another manager had under this number, with what was [asked](Self::asked) of that one. Numbers of
    /// later ones are higher.
    ///
    /// # Errors
    /// As [`add`](Self::add); also [`PortError::Conflict`] if the number or the same forward is there.
    pub fn restore(&mut self, id: u64, spec: PortSpec, origin: Origin) -> Result<(), PortError> {
        let there = self.by_spec.get(&spec).copied();
        if let Some(id) = there.or(self.forwards.contains_key(&id).then_some(id)) {
            let address = SocketAddr::new(IpAddr::from([0; 4]), spec.fields().parent_port);
            return Err(PortError::Conflict { id, address, transport: spec.proto().transport() });
        }
        self.insert(id, spec, origin)
    }

    /// Numbers from now on are higher than `last`.
    pub fn skip_ids(&mut self, last: u64) {
        self.last_id = self.last_id.max(last);
    }

    /// Removes a forward and its listeners.
    ///
    /// # Errors
    /// [`PortError::NotFound`].
    pub fn remove(&mut self, id: u64) -> Result<(), PortError> {
        let pending = self.forwards.get(&id).ok_or(PortError::NotFound { id })?.pending;
        self.drop_forward(id);
        if pending != 0 {
            self.actions.push_back(Action::Failed { id, error: PortError::NotFound { id } });
        }
        Ok(())
    }

    /// Removes a forward that nobody asked for; leaves it if somebody did, or if it is gone.
    pub fn withdraw(&mut self, id: u64) {
        if self.forwards.get(&id).is_some_and(|forward| forward.origin == Origin::Auto) {
            let _ = self.remove(id);
        }
    }

    /// Removes every forward, the latest first.
    pub fn clear(&mut self) {
        while let Some((&id, _)) = self.forwards.last_key_value() {
            let _ = self.remove(id);
        }
    }

    /// A listener listens, on this port.
    pub fn handle_listening(&mut self, id: ListenerId, port: u16) {
        let Some(listener) = self.listeners.get_mut(&id) else {
            // Its forward went while the answer was under way.
            return self.actions.push_back(Action::Unlisten(id));
        };
        let picked = listener.address.port() == 0;
        if picked {
            listener.address.set_port(port);
            let place = place(listener);
            self.places.insert(place, id);
        }
        let forward_id = listener.forward;
        let Some(forward) = self.forwards.get_mut(&forward_id) else { return };
        if forward.listeners.insert(id, Progress::Listening) == Some(Progress::Listening) {
            return;
        }
        forward.pending = forward.pending.saturating_sub(1);
        if picked {
            forward.spec = forward.asked.with_parent_port(port);
            let spec = forward.spec.clone();
            // Exists already only if somebody added the port that the system then picked: impossible while both live.
            self.by_spec.entry(spec.clone()).or_insert(forward_id);
            self.listen(forward_id, &spec, 0, spec.parent_addresses().skip(1));
        }
        self.settle(forward_id);
    }

    /// A listener could not be made: its forward is not to be, unless it can do without.
    pub fn handle_listen_failed(&mut self, id: ListenerId, error: io::Error) {
        let Some(listener) = self.listeners.get(&id) else { return };
        let forward_id = listener.forward;
        let Some(forward) = self.forwards.get_mut(&forward_id) else { return };
        let need = match forward.listeners.get(&id) {
            Some(Progress::Asked(need)) => *need,
            Some(Progress::Listening) | None => Need::Required,
        };
        let family_missing = matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL));
        if need == Need::IfTheHostHasIt && family_missing {
            forward.listeners.remove(&id);
            forward.pending = forward.pending.saturating_sub(1);
            self.forget(id);
            return self.settle(forward_id);
        }
        // The port that the system picked for one family may be taken in the other.
        let picks = forward.asked.fields().parent_port == 0;
        if picks && need == Need::IfTheHostHasIt && forward.attempts < PICK_ATTEMPTS {
            forward.attempts += 1;
            let asked = forward.asked.clone();
            self.unlisten_all(forward_id);
            return self.listen(forward_id, &asked, 0, asked.parent_addresses().take(1));
        }
        let error = PortError::from_listen(listener, error);
        self.drop_forward(forward_id);
        self.actions.push_back(Action::Failed { id: forward_id, error });
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// One forward that exists.
    pub fn status(&self, id: u64) -> Option<PortStatus> {
        let forward = self.forwards.get(&id)?;
        Some(PortStatus { id, spec: forward.spec.clone(), origin: forward.origin })
    }

    /// What was asked for, with host port 0 where that was so, and by whom.
    pub fn asked(&self, id: u64) -> Option<(&PortSpec, Origin)> {
        self.forwards.get(&id).map(|forward| (&forward.asked, forward.origin))
    }

    /// Every active forward, by id.
    pub fn list(&self) -> Vec<PortStatus> {
        let active = self.forwards.iter().filter(|(_, forward)| forward.pending == 0);
        active.filter_map(|(&id, _)| self.status(id)).collect()
    }

    /// How many forwards there are.
    pub fn len(&self) -> usize {
        self.forwards.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.forwards.is_empty()
    }

    /// How many sockets listen or are about to.
    pub fn listeners(&self) -> usize {
        self.listeners.len()
    }

    /// Adds a forward that is new.
    fn insert(&mut self, id: u64, spec: PortSpec, origin: Origin) -> Result<(), PortError> {
        if self.forwards.len() >= self.limits.forwards {
            return Err(PortError::TooManyForwards { limit: self.limits.forwards });
        }
        let wanted = usize::from(spec.count()) * spec.parent_addresses().count();
        if self.listeners.len() + wanted > self.limits.listeners {
            return Err(PortError::TooManyListeners { wanted, limit: self.limits.listeners });
        }
        for port in spec.parent_ports().filter(|&port| port != 0) {
            for (address, _) in spec.parent_addresses() {
                let interface = spec.fields().parent_interface.as_ref();
                self.conflict(spec.proto().transport(), port, address, interface)?;
            }
        }
        self.skip_ids(id);
        self.by_spec.insert(spec.clone(), id);
        let forward = Forward {
            asked: spec.clone(),
            spec: spec.clone(),
            origin,
            listeners: BTreeMap::new(),
            pending: 0,
            attempts: 1,
        };
        self.forwards.insert(id, forward);
        if spec.fields().parent_port == 0 {
            // The other family follows, with the same port, once the first has one.
            self.listen(id, &spec, 0, spec.parent_addresses().take(1));
        } else {
            for offset in 0..spec.count() {
                self.listen(id, &spec, offset, spec.parent_addresses());
            }
        }
        Ok(())
    }

    /// Refuses a place that a forward has already.
    fn conflict(
        &self,
        transport: Transport,
        port: u16,
        address: IpAddr,
        interface: Option<&InterfaceName>,
    ) -> Result<(), PortError> {
        let any = match Family::of(address) {
            Family::V4 => IpAddr::from([0; 4]),
            Family::V6 => IpAddr::from([0; 16]),
        };
        let found = if address == any {
            // Every address of the family: all of them sort behind the unspecified one, and IPv4 before IPv6.
            let from = (transport, port, any, None);
            let places = self.places.range(from..);
            places
                .take_while(|((t, p, a, _), _)| {
                    (*t, *p, Family::of(*a)) == (transport, port, Family::of(any))
                })
                .find(|((.., other), _)| meets(interface, other.as_ref()))
        } else {
            [any, address].into_iter().find_map(|address| {
                let places = self.places.range((transport, port, address, None)..);
                places
                    .take_while(|((t, p, a, _), _)| (*t, *p, *a) == (transport, port, address))
                    .find(|((.., other), _)| meets(interface, other.as_ref()))
            })
        };
        let Some(((.., address, _), listener)) = found else { return Ok(()) };
        let id = self.listeners.get(listener).map_or(0, |listener| listener.forward);
        Err(PortError::Conflict { id, address: SocketAddr::new(*address, port), transport })
    }

    fn listen(
        &mut self,
        forward_id: u64,
        spec: &PortSpec,
        offset: u16,
        addresses: impl Iterator<Item = (IpAddr, Need)>,
    ) {
        let Some(forward) = self.forwards.get_mut(&forward_id) else { return };
        let fields = spec.fields();
        for (address, need) in addresses {
            self.last_listener += 1;
            let listener = Listener {
                id: ListenerId(self.last_listener),
                forward: forward_id,
                transport: fields.proto.transport(),
                address: SocketAddr::new(address, fields.parent_port + offset),
                interface: fields.parent_interface.clone(),
                child_ip: fields.child_ip,
                child_port: spec.child_port_at(offset),
                source: fields.source,
            };
            forward.listeners.insert(listener.id, Progress::Asked(need));
            forward.pending += 1;
            if listener.address.port() != 0 {
                self.places.insert(place(&listener), listener.id);
            }
            self.listeners.insert(listener.id, listener.clone());
            self.actions.push_back(Action::Listen(listener));
        }
    }

    fn settle(&mut self, forward_id: u64) {
        if self.forwards.get(&forward_id).is_some_and(|forward| forward.pending == 0) {
            self.actions.push_back(Action::Added { id: forward_id });
        }
    }

    fn drop_forward(&mut self, id: u64) {
        self.unlisten_all(id);
        let Some(forward) = self.forwards.remove(&id) else { return };
        self.by_spec.remove(&forward.asked);
        self.by_spec.remove(&forward.spec);
    }

    /// Closes what listens; what was not even tried is not tried any more.
    fn unlisten_all(&mut self, forward_id: u64) {
        let Some(forward) = self.forwards.get_mut(&forward_id) else { return };
        let listeners = std::mem::take(&mut forward.listeners);
        if forward.pending != 0 {
            self.actions.retain(|action| !matches!(action, Action::Listen(l) if l.forward == forward_id));
        }
        forward.pending = 0;
        if forward.spec != forward.asked {
            self.by_spec.remove(&forward.spec);
            forward.spec = forward.asked.clone();
        }
        for (&id, &progress) in &listeners {
            self.forget(id);
            if progress == Progress::Listening {
                self.actions.push_back(Action::Unlisten(id));
            }
        }
    }

    fn forget(&mut self, id: ListenerId) {
        let Some(listener) = self.listeners.remove(&id) else { return };
        if listener.address.port() != 0 {
            self.places.remove(&place(&listener));
        }
    }
}

/// Tries for a port that is free for both families. A host where 8 random ports in a row are taken in one family only
/// has other troubles.
const PICK_ATTEMPTS: u32 = 8;

fn place(listener: &Listener) -> Place {
    (listener.transport, listener.address.port(), listener.address.ip(), listener.interface.clone())
}

/// Whether a client could come to both: no interface is every interface.
fn meets(one: Option<&InterfaceName>, other: Option<&InterfaceName>) -> bool {
    one.is_none() || other.is_none() || one == other
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn spec(text: &str) -> PortSpec {
        text.parse().unwrap()
    }

    fn add(manager: &mut PortManager, text: &str) -> Result<Added, PortError> {
        manager.add(spec(text), Origin::Asked)
    }

    /// A host on which some ports are taken, and some families missing.
    #[derive(Default)]
    struct Host {
        taken: BTreeSet<SocketAddr>,
        no_ipv6: bool,
        picks: VecDeque<u16>,
        open: BTreeMap<ListenerId, SocketAddr>,
        results: Vec<(u64, Option<String>)>,
    }

    impl Host {
        fn drive(&mut self, manager: &mut PortManager) {
            for _ in 0..100_000 {
                match manager.poll_action() {
                    None => return,
                    Some(Action::Listen(listener)) => {
                        let mut address = listener.address;
                        if address.port() == 0 {
                            address.set_port(self.picks.pop_front().unwrap_or(40_000));
                        }
                        let fault = if self.no_ipv6 && address.is_ipv6() {
                            Some(libc::EAFNOSUPPORT)
                        } else if self.taken.contains(&address) {
                            Some(libc::EADDRINUSE)
                        } else {
                            None
                        };
                        match fault {
                            Some(errno) => {
                                manager
                                    .handle_listen_failed(listener.id, io::Error::from_raw_os_error(errno));
                            }
                            None => {
                                self.open.insert(listener.id, address);
                                manager.handle_listening(listener.id, address.port());
                            }
                        }
                    }
                    Some(Action::Unlisten(id)) => {
                        assert!(self.open.remove(&id).is_some(), "only what was opened is closed");
                    }
                    Some(Action::Added { id }) => self.results.push((id, None)),
                    Some(Action::Failed { id, error }) => self.results.push((id, Some(error.to_string()))),
                }
            }
            panic!("actions without end");
        }

        fn open(&self) -> Vec<String> {
            let mut open: Vec<_> = self.open.values().collect();
            open.sort();
            open.iter().map(ToString::to_string).collect()
        }
    }

    #[test]
    fn a_forward_of_both_families_listens_for_both() {
        let (mut manager, mut host) = (PortManager::default(), Host::default());
        assert_eq!(add(&mut manager, "8080:80").unwrap(), Added::New(1));
        assert!(manager.list().is_empty(), "not before it listens");
        host.drive(&mut manager);
        assert_eq!(host.open(), ["0.0.0.0:8080", "[::]:8080"]);
        assert_eq!(host.results, [(1, None)]);
        assert_eq!(manager.list()[0].spec.to_string(), "8080:80/tcp");
    }

    #[test]
    fn a_host_without_ipv6_is_served_all_the_same() {
        let (mut manager, mut host) = (PortManager::default(), Host { no_ipv6: true, ..Host::default() });
        add(&mut manager, "8080:80").unwrap();
        add(&mut manager, "0:81").unwrap();
        host.drive(&mut manager);
        assert_eq!(host.open(), ["0.0.0.0:8080", "0.0.0.0:40000"]);
        // Asked for by name it is another matter.
        add(&mut manager, "9000:80/tcp6").unwrap();
        host.drive(&mut manager);
        assert_eq!(host.results[2], (3, Some("[::]:9000/tcp: the host has no IPv6".to_owned())));
    }

    #[test]
    fn the_same_forward_twice_is_the_same_forward() {
        let (mut manager, mut host) = (PortManager::default(), Host::default());
        add(&mut manager, "127.0.0.1:8080:80").unwrap();
        host.drive(&mut manager);
        assert_eq!(add(&mut manager, "127.0.0.1:8080:80/tcp").unwrap(), Added::Same(1));
        host.drive(&mut manager);
        assert_eq!((host.open.len(), manager.len()), (1, 1));
    }

    #[test]
    fn an_automatic_forward_that_somebody_asks_for_becomes_theirs() {
        let mut manager = PortManager::default();
        manager.add(spec("8080:8080"), Origin::Auto).unwrap();
        assert_eq!(manager.status(1).unwrap().origin, Origin::Auto);
        assert_eq!(add(&mut manager, "8080:8080").unwrap(), Added::Same(1));
        assert_eq!(manager.status(1).unwrap().origin, Origin::Asked);
        manager.add(spec("8080:8080"), Origin::Auto).unwrap();
        assert_eq!(manager.status(1).unwrap().origin, Origin::Asked);
        manager.add(spec("8081:8081"), Origin::Auto).unwrap();
        manager.withdraw(1);
        manager.withdraw(2);
        assert_eq!((manager.status(1).is_some(), manager.status(2)), (true, None));
    }

    #[test]
    fn overlaps_conflict_and_name_the_other() {
        let mut manager = PortManager::default();
        add(&mut manager, "127.0.0.1:8000-8010:80").unwrap();
        let conflict = add(&mut manager, "8005:80").unwrap_err().to_string();
        assert_eq!(conflict, "conflict with ID 1: it forwards 127.0.0.1:8005/tcp already");
        assert!(add(&mut manager, "127.0.0.1:8010-8020:80").is_err());
        for fine in ["127.0.0.2:8005:80", "8005:80/tcp6", "8005:80/udp", "127.0.0.1:8011:80"] {
            add(&mut manager, fine).unwrap_or_else(|error| panic!("{fine}: {error}"));
        }
        add(&mut manager, "%eth0:9000:80/tcp4").unwrap();
        add(&mut manager, "%eth1:9000:81/tcp4").unwrap();
        assert!(add(&mut manager, "9000:82").is_err());
        assert!(add(&mut manager, "127.0.0.1%eth1:9000:82").is_err());
        assert!(add(&mut manager, "127.0.0.1%eth2:9000:82").is_ok());
    }

    #[test]
    fn one_port_in_use_undoes_the_whole_range() {
        let (mut manager, mut host) = (PortManager::default(), Host::default());
        host.taken.insert("127.0.0.1:8003".parse().unwrap());
        add(&mut manager, "127.0.0.1:8000-8005:80").unwrap();
        host.drive(&mut manager);
        assert_eq!(host.results, [(1, Some("127.0.0.1:8003/tcp is in use on the host".to_owned()))]);
        assert!(host.open.is_empty() && manager.is_empty() && manager.listeners() == 0);
        // Nothing is left that conflicts.
        host.taken.clear();
        assert_eq!(add(&mut manager, "127.0.0.1:8000-8005:80").unwrap(), Added::New(2));
        host.drive(&mut manager);
        assert_eq!(host.open.len(), 6);
        manager.remove(2).unwrap();
        host.drive(&mut manager);
        assert!(host.open.is_empty());
    }

    #[test]
    fn a_port_that_the_system_picks_is_told_and_serves_both_families() {
        let (mut manager, mut host) = (PortManager::default(), Host::default());
        host.picks = [40_001, 40_002].into();
        host.taken.insert("[::]:40001".parse().unwrap());
        add(&mut manager, "0:80").unwrap();
        host.drive(&mut manager);
        assert_eq!(
            host.open(),
            ["0.0.0.0:40002", "[::]:40002"],
            "a port that one family lacks is given back"
        );
        assert_eq!(manager.status(1).unwrap().spec.to_string(), "40002:80/tcp");
        assert_eq!(add(&mut manager, "0:80").unwrap(), Added::Same(1));
        assert_eq!(add(&mut manager, "40002:80").unwrap(), Added::Same(1));
        assert!(add(&mut manager, "40002:81").is_err());
        manager.remove(1).unwrap();
        host.drive(&mut manager);
        assert_eq!(add(&mut manager, "40002:80").unwrap(), Added::New(2));
    }

    #[test]
    fn ports_that_are_never_free_for_both_families_fail_in_the_end() {
        let (mut manager, mut host) = (PortManager::default(), Host::default());
        host.taken.insert("[::]:40000".parse().unwrap());
        add(&mut manager, "0:80").unwrap();
        host.drive(&mut manager);
        assert_eq!(host.results, [(1, Some("[::]:40000/tcp is in use on the host".to_owned()))]);
        assert!(host.open.is_empty());
    }

    #[test]
    fn an_answer_that_comes_too_late_closes_the_listener() {
        let mut manager = PortManager::default();
        add(&mut manager, "127.0.0.1:8080:80").unwrap();
        let Some(Action::Listen(listener)) = manager.poll_action() else { panic!("a listener") };
        manager.remove(1).unwrap();
        assert!(matches!(
            manager.poll_action(),
            Some(Action::Failed { id: 1, error: PortError::NotFound { .. } })
        ));
        manager.handle_listening(listener.id, 8080);
        assert!(matches!(manager.poll_action(), Some(Action::Unlisten(id)) if id == listener.id));
        assert!(manager.poll_action().is_none());
    }

    #[test]
    fn limits_refuse_and_say_so() {
        let mut manager = PortManager::new(Limits { forwards: 2, listeners: 10 });
        let full = add(&mut manager, "127.0.0.1:1-11:1").unwrap_err().to_string();
        assert_eq!(full, "11 more host ports would exceed the limit of 10 listening sockets");
        add(&mut manager, "1:1").unwrap();
        add(&mut manager, "2:2").unwrap();
        assert_eq!(
            add(&mut manager, "3:3").unwrap_err().to_string(),
            "there are 2 forwards already, the limit"
        );
        manager.clear();
        add(&mut manager, "3:3").unwrap();
        assert!(matches!(manager.remove(1), Err(PortError::NotFound { id: 1 })));
    }

    #[test]
    fn privileged_ports_name_the_sysctl() {
        let mut manager = PortManager::default();
        add(&mut manager, "0.0.0.0:80:8080").unwrap();
        let Some(Action::Listen(listener)) = manager.poll_action() else { panic!("a listener") };
        manager.handle_listen_failed(listener.id, io::Error::from_raw_os_error(libc::EACCES));
        let Some(Action::Failed { error, .. }) = manager.poll_action() else { panic!("refused") };
        assert!(
            error.to_string().ends_with("as root: sysctl -w net.ipv4.ip_unprivileged_port_start=80"),
            "{error}"
        );
    }

    proptest! {
        /// Against a naive model: two forwards conflict if any two of their places meet.
        #[test]
        fn conflicts_are_those_of_a_pairwise_comparison(texts in proptest::collection::vec(
            "(|127\\.0\\.0\\.[12]:|0\\.0\\.0\\.0:|%eth[01]:|127\\.0\\.0\\.1%eth0:|\\[::\\]:|\\[::1\\]:)1[0-9](-2[0-3])?:5[0-3]/(tcp|udp)",
            1..24,
        )) {
            let places = |spec: &PortSpec| -> Vec<Place> {
                spec.parent_ports()
                    .flat_map(|port| spec.parent_addresses().map(move |(address, _)| (port, address)))
                    .map(|(port, address)| {
                        (spec.proto().transport(), port, address, spec.fields().parent_interface.clone())
                    })
                    .collect()
            };
            let meet = |one: &Place, other: &Place| {
                (one.0, one.1) == (other.0, other.1)
                    && Family::of(one.2) == Family::of(other.2)
                    && (one.2 == other.2 || one.2.is_unspecified() || other.2.is_unspecified())
                    && meets(one.3.as_ref(), other.3.as_ref())
            };
            let mut manager = PortManager::default();
            let mut model: BTreeMap<u64, PortSpec> = BTreeMap::new();
            for text in texts {
                let wanted = spec(&text);
                let clashes = |(_, there): &(&u64, &PortSpec)| {
                    places(there).iter().any(|one| places(&wanted).iter().any(|other| meet(one, other)))
                };
                let same = model.iter().find(|(_, there)| **there == wanted).map(|(&id, _)| id);
                let expected: Vec<u64> = model.iter().filter(clashes).map(|(&id, _)| id).collect();
                match (manager.add(wanted.clone(), Origin::Asked), same) {
                    (Ok(Added::Same(id)), Some(same)) => prop_assert_eq!(id, same),
                    (Ok(Added::New(id)), None) => {
                        prop_assert!(expected.is_empty(), "{} meets {:?}", text, expected);
                        model.insert(id, wanted);
                    }
                    (Err(PortError::Conflict { id, .. }), None) => prop_assert!(expected.contains(&id)),
                    other => prop_assert!(false, "{}: {:?}", text, other),
                }
                if model.len() > 6 && let Some((id, _)) = model.pop_first() {
                    manager.remove(id).unwrap();
                }
            }
        }
    }
}
