//! UDP clients by address, with idle timeout and a limit.
//!
//! # Theory of operation
//! UDP has no connections; a *session* is what stands for one: a client, the host's address it used, and the socket in the child
//! that speaks for it. A session begins with a client's first datagram and ends when neither side has sent anything for
//! a time (RFC 4787 section 4.3 wants two minutes at least), or when a new client needs its place: the one idle for longest goes.
//! Every operation is O(log sessions) or better.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use slab::Slab;

/// Who a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Client {
    /// The client.
    pub address: SocketAddr,
    /// Our address that it used; replies leave from it.
    pub local: IpAddr,
}

/// A session of a [`SessionTable`]; the number is free again when it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId(pub usize);

/// The sessions of one forward. Pure: `now` is the time since any fixed moment.
#[derive(Debug)]
pub struct SessionTable {
    by_client: BTreeMap<Client, usize>,
    sessions: Slab<Entry>,
    /// The one idle for longest, and the latest used.
    oldest: usize,
    latest: usize,
    limit: usize,
    idle: Duration,
}

#[derive(Debug)]
struct Entry {
    client: Client,
    used: Duration,
    older: usize,
    later: usize,
}

const NONE: usize = usize::MAX;

impl SessionTable {
    /// No sessions; there may be `limit` of them (at least one), each ends after `idle` without a datagram.
    pub fn new(limit: usize, idle: Duration) -> Self {
        SessionTable {
            by_client: BTreeMap::new(),
            sessions: Slab::new(),
            oldest: NONE,
            latest: NONE,
            limit: limit.max(1),
            idle,
        }
    }

    /// The session of a client, if it has one.
    pub fn find(&self, client: &Client) -> Option<SessionId> {
        self.by_client.get(client).copied().map(SessionId)
    }

    /// A datagram went either way.
    pub fn touch(&mut self, now: Duration, id: SessionId) {
        if self.latest != id.0 && self.sessions.contains(id.0) {
            self.unlink(id.0);
            self.link(id.0);
        }
        if let Some(entry) = self.sessions.get_mut(id.0) {
            entry.used = now;
        }
    }

    /// A session for a client that has none. The second value is the session that had to end for it.
    pub fn insert(&mut self, now: Duration, client: Client) -> (SessionId, Option<SessionId>) {
        if let Some(id) = self.find(&client) {
            self.touch(now, id);
            return (id, None);
        }
        let ended = (self.sessions.len() >= self.limit).then_some(SessionId(self.oldest));
        if let Some(id) = ended {
            self.remove(id);
        }
        let key = self.sessions.insert(Entry { client, used: now, older: NONE, later: NONE });
        self.by_client.insert(client, key);
        self.link(key);
        (SessionId(key), ended)
    }

    /// Ends a session.
    pub fn remove(&mut self, id: SessionId) {
        if self.sessions.contains(id.0) {
            self.unlink(id.0);
            let entry = self.sessions.remove(id.0);
            self.by_client.remove(&entry.client);
        }
    }

    /// Ends one session that was idle for too long; ask until `None`.
    pub fn poll_expired(&mut self, now: Duration) -> Option<SessionId> {
        let entry = self.sessions.get(self.oldest)?;
        if now < entry.used + self.idle {
            return None;
        }
        let id = SessionId(self.oldest);
        self.remove(id);
        Some(id)
    }

    /// Whose session it is.
    pub fn client(&self, id: SessionId) -> Option<Client> {
        self.sessions.get(id.0).map(|entry| entry.client)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    fn link(&mut self, key: usize) {
        let older = self.latest;
        if let Some(entry) = self.sessions.get_mut(key) {
            (entry.older, entry.later) = (older, NONE);
        }
        match self.sessions.get_mut(older) {
            Some(entry) => entry.later = key,
            None => self.oldest = key,
        }
        self.latest = key;
    }

    fn unlink(&mut self, key: usize) {
        let Some(&Entry { older, later, .. }) = self.sessions.get(key) else { return };
        match self.sessions.get_mut(older) {
            Some(entry) => entry.later = later,
            None => self.oldest = later,
        }
        match self.sessions.get_mut(later) {
            Some(entry) => entry.older = older,
            None => self.latest = older,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn client(port: u16) -> Client {
        Client { address: ([192, 0, 2, 1], port).into(), local: [192, 0, 2, 2].into() }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_session_idle_for_longest_makes_room() {
        let mut table = SessionTable::new(2, at(180));
        let (a, _) = table.insert(at(0), client(1));
        let (b, _) = table.insert(at(1), client(2));
        table.touch(at(2), a);
        let (_, ended) = table.insert(at(3), client(3));
        assert_eq!(ended, Some(b));
        assert_eq!(table.find(&client(2)), None);
        assert_eq!(table.find(&client(1)), Some(a));
    }

    #[test]
    fn idle_sessions_end_in_order() {
        let mut table = SessionTable::new(10, at(180));
        let (a, _) = table.insert(at(0), client(1));
        let (b, _) = table.insert(at(10), client(2));
        assert_eq!(table.poll_expired(at(179)), None);
        assert_eq!(table.poll_expired(at(180)), Some(a));
        assert_eq!(table.poll_expired(at(180)), None);
        assert_eq!(table.poll_expired(at(500)), Some(b));
        assert!(table.is_empty());
    }

    #[test]
    fn the_address_that_was_used_is_part_of_the_client() {
        let mut table = SessionTable::new(10, at(180));
        let other = Client { local: [192, 0, 2, 3].into(), ..client(1) };
        let (a, _) = table.insert(at(0), client(1));
        let (b, _) = table.insert(at(0), other);
        assert_ne!(a, b);
        assert_eq!(table.client(b), Some(other));
    }

    proptest! {
        /// Against a list in order of use.
        #[test]
        fn behaves_like_a_list(steps in prop::collection::vec((0u16..12, 0u8..4), 0..200)) {
            let mut table = SessionTable::new(5, at(40));
            let mut list: Vec<(u16, u64)> = Vec::new();
            for (now, (port, step)) in steps.into_iter().enumerate() {
                let now = now as u64 * 3;
                let known = list.iter().position(|(p, _)| *p == port);
                match step {
                    0 | 1 => {
                        let (id, _) = table.insert(at(now), client(port));
                        table.touch(at(now), id);
                        match known {
                            Some(index) => drop(list.remove(index)),
                            None if list.len() == 5 => drop(list.remove(0)),
                            None => {}
                        }
                        list.push((port, now));
                    }
                    2 => {
                        if let Some(id) = table.find(&client(port)) {
                            table.remove(id);
                        }
                        list.retain(|(p, _)| *p != port);
                    }
                    _ => {
                        while table.poll_expired(at(now)).is_some() {}
                        list.retain(|(_, used)| now < used + 40);
                    }
                }
                prop_assert_eq!(table.len(), list.len());
                for (port, _) in &list {
                    prop_assert!(table.find(&client(*port)).is_some());
                }
            }
        }
    }
}
