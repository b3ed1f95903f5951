//! On which processor the relay runs while it carries bulk: the sender's.
//!
//! # Theory of operation
//! The kernel gives pages back to the processor that sent them last, which for relayed bytes is the relay's; a sender takes its pages
//! from its own processor. Where both are one, the sender writes into pages that are still in that processor's cache, and the receiver
//! has another one for itself. Elsewhere the sender's copy takes up to three times as long, and left alone the scheduler changes
//! between the two: on two processors one stream had 10 to 58 Gb/s, 55 to 59 beside its sender and 44 beside its receiver.
//!
//! A packet from this machine is handled where it is sent: by its sender (SO_INCOMING_CPU tells where that is), or, when the sender
//! waits for room, by whoever acknowledges, which is the relay. So what comes from another processor says more
//! ([`ELSEWHERE`]). What a network device brings says nothing.
//!
//! | streams that gather | the relay runs |
//! |---|---|
//! | two thirds of their bytes come from one processor | beside that sender |
//! | fewer, or none gathers | wherever it may |
//! | nothing has come from this machine for 0.1 s | wherever it may |
//! | messages came beside them in the last 0.1 s | wherever it may: they would wait for a processor that is always busy |

use std::collections::BTreeMap;
use std::io;

use crate::sys::processor::Affinity;

/// How much more a read counts whose packet another processor has handled. Measured: they are a fifth to a third of the reads where
/// relay and sender are apart, and up to a tenth where they are together.
const ELSEWHERE: u64 = 8;

/// Where the bytes of one stream come from, by the majority vote of Boyer and Moore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sender {
    processor: usize,
    votes: u64,
    bytes: u64,
}

impl Sender {
    /// Learns that `count` bytes were read by a relay that runs on `here`, the latest of which were handled on `processor`.
    pub(super) fn handle_read(&mut self, count: u64, processor: usize, here: usize) {
        self.bytes += count;
        let votes = if processor == here { count } else { count * ELSEWHERE };
        if processor == self.processor {
            self.votes += votes;
        } else if votes <= self.votes {
            self.votes -= votes;
        } else {
            (self.processor, self.votes) = (processor, votes - self.votes);
        }
    }

    /// What was learnt since the last time.
    pub(super) fn take(&mut self) -> Option<Seen> {
        let Sender { processor, bytes, .. } = std::mem::take(self);
        (bytes > 0).then_some(Seen { processor, bytes })
    }
}

/// What a stream carried between two looks, and from where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) processor: usize,
    pub(super) bytes: u64,
}

/// Where the relay is to run for what its streams carried; `None` if that was nothing.
fn place(streams: &[Seen]) -> Option<Place> {
    let mut from = BTreeMap::new();
    for seen in streams {
        *from.entry(seen.processor).or_insert(0) += seen.bytes;
    }
    let all: u64 = from.values().sum();
    let (processor, most) = from.into_iter().max_by_key(|&(_, bytes)| bytes)?;
    Some(if most * 3 >= all * 2 { Place::Beside(processor) } else { Place::Anywhere })
}

/// Messages between two looks from which on they matter.
const MESSAGES: u32 = 2;
/// Looks without messages after which they do not.
const CALM: u8 = 10;

/// Where the relay runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Anywhere,
    /// On one processor.
    Beside(usize),
}

/// The calling thread's place.
#[derive(Debug, Default)]
pub(super) struct Placing {
    place: Place,
    /// Looks until messages that came are forgotten, [`CALM`] at first.
    restless: u8,
    /// Looks since anything was seen, up to [`CALM`].
    blind: u8,
    /// What the thread may use otherwise.
    before: Option<Affinity>,
}

impl Placing {
    /// A look at `streams`, and how many `messages` came beside them since the last one.
    pub(super) fn look(&mut self, streams: &[Seen], messages: u32) {
        self.restless = if messages < MESSAGES { self.restless.saturating_sub(1) } else { CALM };
        self.blind = if streams.is_empty() { (self.blind + 1).min(CALM) } else { 0 };
        if self.restless > 0 || self.blind == CALM {
            self.move_to(Place::Anywhere);
        } else if let Some(place) = place(streams) {
            self.move_to(place);
        }
    }

    /// No stream gathers any more.
    pub(super) fn end(&mut self) {
        (self.restless, self.blind) = (0, 0);
        self.move_to(Place::Anywhere);
    }

    /// Moves the calling thread, or lets it run where it may, if it may not run there.
    fn move_to(&mut self, place: Place) {
        if place == self.place {
            return;
        }
        if let Err(error) = self.apply(place) {
            log::debug!("forwards: cannot move to {place:?}: {error}");
        }
        self.place = place;
    }

    fn apply(&mut self, place: Place) -> io::Result<()> {
        let Place::Beside(processor) = place else {
            return self.before.take().map_or(Ok(()), |before| before.apply());
        };
        let before = match self.before.take() {
            Some(before) => before,
            None => Affinity::own_limit()?,
        };
        let result = match before.contains(processor) {
            // Its cpuset may not have that one.
            true => Affinity::one(processor).and_then(|one| one.apply()).or_else(|_| before.apply()),
            false => before.apply(),
        };
        self.before = Some(before);
        result
    }
}

impl Drop for Placing {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::processor;

    /// More than there are.
    const MANY: usize = 1023;

    fn sender(reads: &[(u64, usize, usize)]) -> Sender {
        let mut sender = Sender::default();
        for &(count, processor, here) in reads {
            sender.handle_read(count, processor, here);
        }
        sender
    }

    #[test]
    fn what_the_relay_acknowledges_itself_does_not_outweigh_where_the_sender_is() {
        let mut apart = sender(&[(3, 1, 1), (1, 0, 1), (3, 1, 1), (1, 0, 1)]);
        assert_eq!(apart.take(), Some(Seen { processor: 0, bytes: 8 }));
        assert_eq!(apart.take(), None, "nothing since");
    }

    #[test]
    fn a_sender_that_is_elsewhere_for_a_moment_is_not_followed() {
        assert_eq!(
            sender(&[(20, 1, 1), (1, 0, 1), (20, 1, 1)]).take(),
            Some(Seen { processor: 1, bytes: 41 })
        );
    }

    #[test]
    fn the_relay_runs_where_most_bytes_come_from_or_anywhere() {
        let seen = |processor, bytes| Seen { processor, bytes };
        assert_eq!(place(&[]), None);
        assert_eq!(place(&[seen(3, 1)]), Some(Place::Beside(3)));
        assert_eq!(place(&[seen(3, 1), seen(0, 2), seen(3, 3)]), Some(Place::Beside(3)));
        assert_eq!(place(&[seen(3, 1), seen(0, 1)]), Some(Place::Anywhere));
    }

    #[test]
    fn beside_messages_the_relay_runs_anywhere_until_they_have_ended() {
        let here = processor::current().unwrap();
        let streams = [Seen { processor: here, bytes: 1 }];
        let mut placing = Placing::default();
        let mut place_after = |messages| {
            placing.look(&streams, messages);
            placing.place
        };
        assert_eq!(place_after(MESSAGES - 1), Place::Beside(here));
        for messages in std::iter::once(MESSAGES).chain([0; CALM as usize - 1]) {
            assert_eq!(place_after(messages), Place::Anywhere);
        }
        assert_eq!(place_after(0), Place::Beside(here));
    }

    #[test]
    fn what_a_device_brings_does_not_keep_the_relay_where_a_sender_was() {
        let here = processor::current().unwrap();
        let mut placing = Placing::default();
        placing.look(&[Seen { processor: here, bytes: 1 }], 0);
        for _ in 1..CALM {
            placing.look(&[], 0);
            assert_eq!(placing.place, Place::Beside(here));
        }
        placing.look(&[], 0);
        assert_eq!(placing.place, Place::Anywhere);
    }

    #[test]
    fn a_limit_of_somebody_else_is_kept_and_none_is_made() {
        Affinity::all().unwrap().apply().unwrap();
        let usable = Affinity::usable().unwrap();
        assert_eq!(
            Affinity::own_limit().unwrap(),
            Affinity::all().unwrap(),
            "only the cpuset limits this thread"
        );
        assert_eq!(Affinity::usable().unwrap(), usable);
        let last = (0..MANY).rev().find(|&processor| usable.contains(processor)).unwrap();
        let one = Affinity::one(last).unwrap();
        one.apply().unwrap();
        if one != usable {
            assert_eq!(Affinity::own_limit().unwrap(), one);
        }
        assert_eq!(Affinity::usable().unwrap(), one);
    }

    #[test]
    fn a_thread_is_moved_and_gets_back_what_it_had() {
        let had = Affinity::usable().unwrap();
        let has_all = || Affinity::usable().unwrap() == had;
        let last = (0..MANY).rev().find(|&processor| had.contains(processor)).unwrap();
        let mut placing = Placing::default();
        placing.move_to(Place::Beside(last));
        assert_eq!(processor::current(), Some(last));
        placing.move_to(Place::Beside(MANY));
        assert!(has_all(), "that one may not be had");
        placing.move_to(Place::Beside(last));
        drop(placing);
        assert!(has_all());
    }
}
