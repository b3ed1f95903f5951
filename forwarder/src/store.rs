//! What outlives a driver: the forwards, and the sockets by which the host hears of their clients.
//!
//! # Theory of operation
//! A driver that dies takes its connections along, but need not take its ports. Whoever supervises it holds a [`Store`]; the driver
//! hands it a copy of every such socket before it says that a forward exists, and tells to which one it belongs. The next driver
//! gets all of it as an [`Inheritance`] and uses the sockets instead of making new ones. The ports are never free in between:
//! clients who connect wait in the kernel's queue, datagrams in the socket's buffer, and numbers stay what they are.
//!
//! A port is free when its last copy is closed. So a driver says that a forward is gone when the store has answered.
//!
//! | driver | store |
//! |---|---|
//! | [`Notice::Keep`] with sockets, several times for many | – |
//! | [`Notice::Forget`] | the number, when the copies are closed |
//! | [`Notice::Clear`] | – |
//!
//! Both share a `SOCK_SEQPACKET` pair, a new one for every driver. A store trusts no driver: it takes as many forwards and sockets as
//! there may be, and looks into none.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::socket::MsgFlags;

use crate::manager::Limits;
use crate::protocol::ProtocolError;
use crate::spec::{Origin, PortSpec};
use crate::sys::{scm, socket};

/// Sockets of one notice: what fits one message (`SCM_MAX_FD`).
pub const MAX_SOCKETS: usize = scm::MAX_FDS;
/// The longest notice, in bytes.
pub const MAX_NOTICE: usize = 512;
/// Notices that are taken at a time: more than the line holds.
const MAX_NOTICES: usize = 4096;
/// Length of an answer, in bytes.
pub(crate) const ANSWER: usize = 8;

/// What a driver tells its store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// This forward exists; sockets that come along are added to those that are kept for it.
    Keep {
        /// Its number.
        id: u64,
        /// Who asked for it.
        origin: Origin,
        /// What was asked for: host port 0 stands for itself.
        spec: PortSpec,
    },
    /// This forward is gone.
    Forget {
        /// Its number.
        id: u64,
    },
    /// All are gone: the driver ends, and has not died.
    Clear,
}

impl Notice {
    /// The bytes of one message: kind, number in little endian, and for [`Keep`](Notice::Keep) origin and text.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Notice::Keep { id, origin, spec } => {
                let mut bytes = vec![KEEP];
                bytes.extend(id.to_le_bytes());
                bytes.push(u8::from(*origin == Origin::Auto));
                bytes.extend(spec.to_string().into_bytes());
                bytes
            }
            Notice::Forget { id } => [&[FORGET][..], &id.to_le_bytes()].concat(),
            Notice::Clear => vec![CLEAR],
        }
    }

    /// Reads what [`encode`](Notice::encode) wrote.
    ///
    /// # Errors
    /// It is something else.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let malformed = ProtocolError::Malformed;
        if bytes == [CLEAR] {
            return Ok(Notice::Clear);
        }
        let (&kind, rest) = bytes.split_first().ok_or(malformed)?;
        let (id, rest) = rest.split_first_chunk().ok_or(malformed)?;
        let id = u64::from_le_bytes(*id);
        match (kind, rest) {
            (FORGET, []) => Ok(Notice::Forget { id }),
            (KEEP, [origin @ 0..=1, text @ ..]) => {
                let origin = if *origin == 0 { Origin::Asked } else { Origin::Auto };
                let text = std::str::from_utf8(text).map_err(|_| malformed)?;
                Ok(Notice::Keep { id, origin, spec: text.parse().map_err(|_| malformed)? })
            }
            _ => Err(malformed),
        }
    }
}

const KEEP: u8 = 1;
const FORGET: u8 = 2;
const CLEAR: u8 = 3;

/// Keeps what a driver hands over. See the module.
///
/// 1. [`connect`](Self::connect) makes the line for a driver, which gets it by
///    [`ForwardDriver::set_store`](crate::driver::ForwardDriver::set_store).
/// 2. Whenever the store is readable: [`receive`](Self::receive).
/// 3. When the driver has died: `receive` once more, `connect` for the next one, and [`bequeath`](Self::bequeath) in the process that
///    will run it.
#[derive(Debug, Default)]
pub struct Store {
    limits: Limits,
    line: Option<OwnedFd>,
    forwards: BTreeMap<u64, Kept>,
    sockets: usize,
    last_id: u64,
}

#[derive(Debug)]
struct Kept {
    spec: PortSpec,
    origin: Origin,
    sockets: Vec<OwnedFd>,
}

/// A driver's end of the line to its store.
#[derive(Debug)]
pub struct StoreLine(pub(crate) OwnedFd);

impl AsFd for StoreLine {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What a driver has left to the next.
#[derive(Debug, Default)]
pub struct Inheritance {
    /// The highest number of a forward so far: none comes twice.
    pub last_id: u64,
    /// By number.
    pub forwards: Vec<InheritedForward>,
}

/// One forward of an [`Inheritance`].
#[derive(Debug)]
pub struct InheritedForward {
    /// Its number.
    pub id: u64,
    /// As it was asked for.
    pub spec: PortSpec,
    /// Who asked for it.
    pub origin: Origin,
    /// Its sockets, as many as could be kept. Others are made anew.
    pub sockets: Vec<OwnedFd>,
}

impl Inheritance {
    /// All sockets.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.forwards.iter().flat_map(|forward| forward.sockets.iter().map(AsFd::as_fd))
    }
}

impl Store {
    /// An empty store that keeps so many forwards and sockets. What is beyond is not kept; the next driver makes it anew.
    pub fn new(limits: Limits) -> Self {
        Store { limits, ..Store::default() }
    }

    /// Makes the line for the next driver, and forgets the last one's.
    ///
    /// # Errors
    /// socketpair(2).
    pub fn connect(&mut self) -> io::Result<StoreLine> {
        let (ours, theirs) = scm::pair()?;
        self.line = Some(ours);
        Ok(StoreLine(theirs))
    }

    /// Takes what the driver has told; does not wait. A driver that talks nonsense is not listened to any more, and one that talks
    /// without end holds nobody up.
    pub fn receive(&mut self) {
        for _ in 0..MAX_NOTICES {
            let Some(line) = &self.line else { return };
            let (mut bytes, mut fds) = ([0; MAX_NOTICE], Vec::new());
            let notice = match scm::receive(line.as_fd(), &mut bytes, &mut fds, MsgFlags::MSG_DONTWAIT) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // The kernel says so once, before it hands out what was sent: the driver died with answers unread.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => continue,
                Ok(length) if length > 0 => Notice::decode(bytes.get(..length).unwrap_or_default()).ok(),
                _ => None,
            };
            match notice {
                Some(Notice::Keep { id, origin, spec }) => self.keep(id, origin, spec, fds),
                Some(Notice::Forget { id }) => self.forget(id),
                Some(Notice::Clear) => self.clear(),
                None => self.line = None,
            }
        }
    }

    /// Closes all sockets that are kept, and forgets what they were for.
    pub fn clear(&mut self) {
        self.forwards.clear();
        self.sockets = 0;
    }

    /// Takes everything out, for the process that runs the next driver.
    pub fn bequeath(&mut self) -> Inheritance {
        self.line = None;
        self.sockets = 0;
        let forwards = std::mem::take(&mut self.forwards).into_iter();
        let forwards = forwards.map(|(id, Kept { spec, origin, sockets })| InheritedForward {
            id,
            spec,
            origin,
            sockets,
        });
        Inheritance { last_id: self.last_id, forwards: forwards.collect() }
    }

    /// How many sockets are kept.
    pub fn len(&self) -> usize {
        self.sockets
    }

    /// Whether no socket is kept.
    pub fn is_empty(&self) -> bool {
        self.sockets == 0
    }

    /// Readable when [`receive`](Self::receive) is to be called; `None` where nobody can tell anything.
    pub fn line(&self) -> Option<BorrowedFd<'_>> {
        self.line.as_ref().map(AsFd::as_fd)
    }

    /// Undoes [`bequeath`](Self::bequeath).
    #[cfg(test)]
    pub(crate) fn restore(&mut self, line: Option<OwnedFd>, inheritance: Inheritance) {
        self.line = line;
        for InheritedForward { id, spec, origin, sockets } in inheritance.forwards {
            self.keep(id, origin, spec, sockets);
        }
        self.last_id = inheritance.last_id;
    }

    fn keep(&mut self, id: u64, origin: Origin, spec: PortSpec, mut sockets: Vec<OwnedFd>) {
        if self.sockets == 0 && !sockets.is_empty() {
            // They may be many. Where it cannot be raised fewer arrive.
            let _ = socket::raise_file_limit();
        }
        let room = self.limits.listeners.saturating_sub(self.sockets);
        sockets.truncate(room);
        let full = self.forwards.len() >= self.limits.forwards;
        let kept = match self.forwards.get_mut(&id) {
            Some(kept) => kept,
            None if full => return,
            None => self.forwards.entry(id).or_insert(Kept { spec, origin, sockets: Vec::new() }),
        };
        kept.origin = origin;
        self.sockets += sockets.len();
        kept.sockets.append(&mut sockets);
        self.last_id = self.last_id.max(id);
    }

    fn forget(&mut self, id: u64) {
        if let Some(kept) = self.forwards.remove(&id) {
            self.sockets -= kept.sockets.len();
        }
        if let Some(line) = &self.line {
            // A driver has few questions open at a time, so there is room; if it is gone it needs no answer.
            let _ = scm::send(line.as_fd(), &id.to_le_bytes(), &[], MsgFlags::MSG_DONTWAIT);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn keep(id: u64, spec: &str) -> Notice {
        Notice::Keep { id, origin: Origin::Asked, spec: spec.parse().unwrap() }
    }

    fn tell(line: &StoreLine, notice: &Notice, sockets: &[OwnedFd]) {
        scm::send(line.as_fd(), &notice.encode(), sockets, MsgFlags::MSG_DONTWAIT).unwrap();
    }

    fn socket() -> OwnedFd {
        TcpListener::bind("127.0.0.1:0").unwrap().into()
    }

    #[test]
    fn notices_survive_the_wire() {
        let all = "[fe80::1%eth0]:8000-8009:[fd00::7]:80-89/tcp6,source=gateway";
        let auto = Notice::Keep { id: u64::MAX, origin: Origin::Auto, spec: all.parse().unwrap() };
        for notice in [keep(1, "0:80/udp"), auto, Notice::Forget { id: 7 }, Notice::Clear] {
            let bytes = notice.encode();
            assert!(bytes.len() <= MAX_NOTICE);
            assert_eq!(Notice::decode(&bytes), Ok(notice));
        }
        for wrong in [&[][..], &[1; 9], &[2; 8], &[2; 10], &[4; 20], &[3; 2], b"\x01........\x00not a spec"] {
            assert_eq!(Notice::decode(wrong), Err(ProtocolError::Malformed), "{wrong:?}");
        }
    }

    #[test]
    fn what_a_driver_leaves_is_what_exists() {
        let mut store = Store::default();
        let line = store.connect().unwrap();
        tell(&line, &keep(1, "80:80"), &[socket()]);
        tell(&line, &keep(2, "81:81"), &[socket(), socket()]);
        tell(&line, &keep(2, "81:81"), &[socket()]);
        tell(&line, &keep(3, "82:82"), &[socket()]);
        tell(&line, &Notice::Forget { id: 1 }, &[]);
        tell(&line, &Notice::Forget { id: 3 }, &[]);
        // It dies, and has not even heard the answers.
        drop(line);
        store.receive();
        assert_eq!((store.len(), store.line().is_none()), (3, true));
        let Inheritance { last_id, forwards } = store.bequeath();
        assert_eq!(last_id, 3);
        let [forward] = &forwards[..] else { panic!("{forwards:?}") };
        assert_eq!((forward.id, forward.sockets.len()), (2, 3));
        assert!(store.is_empty());
    }

    #[test]
    fn a_port_is_free_when_the_store_has_answered() {
        let mut store = Store::default();
        let line = store.connect().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        tell(&line, &keep(1, "80:80"), &[listener.into()]);
        store.receive();
        assert!(std::net::TcpStream::connect(address).is_ok(), "the copy listens");
        tell(&line, &Notice::Forget { id: 1 }, &[]);
        store.receive();
        let (mut answer, mut fds) = ([0; ANSWER], Vec::new());
        scm::receive(line.as_fd(), &mut answer, &mut fds, MsgFlags::MSG_DONTWAIT).unwrap();
        assert_eq!(u64::from_le_bytes(answer), 1);
        assert!(std::net::TcpStream::connect(address).is_err());
    }

    #[test]
    fn limits_and_nonsense_are_survived() {
        let mut store = Store::new(Limits { forwards: 1, listeners: 2 });
        let line = store.connect().unwrap();
        tell(&line, &keep(1, "80:80"), &[socket(), socket(), socket()]);
        tell(&line, &keep(2, "81:81"), &[]);
        store.receive();
        assert_eq!((store.len(), store.forwards.len()), (2, 1));
        scm::send(line.as_fd(), b"nonsense", &[], MsgFlags::empty()).unwrap();
        store.receive();
        assert!(store.line().is_none());
        assert_eq!(store.len(), 2, "what was kept stays");
    }
}
