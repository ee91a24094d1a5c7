//! The head of a key: a dotted version vector set without the values, and the rules of put, delete and merge.

use super::{Context, Dot, VersionVector};
use crate::{
    limits::RECENT_WRITES_MAX,
    types::{Conflict, Media, Value, ValueError, WriteId},
};
use bytes::Bytes;
use smallvec::SmallVec;
use std::cmp::Reverse;

/// The values of a key's siblings, in the order of the head's entries.
pub type Values = SmallVec<[Bytes; 1]>;

/// A sibling: its event, and what is known of its value without reading it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    pub dot: Dot,
    pub write_id: WriteId,
    pub media: Media,
    /// Bytes of the value.
    pub bytes: u32,
    /// CRC-32C of the value, from the coordinator on.
    pub checksum: u32,
}

/// A write that has been superseded, remembered so that a late retry of it is recognised. Write id 0: known by its dot
/// only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Superseded {
    pub dot: Dot,
    pub write_id: WriteId,
    /// The checksum of the write's value; none if it was remembered by an earlier version of Dynarc, which kept no
    /// checksums.
    pub checksum: Option<u32>,
}
impl Superseded {
    fn names(&self, entry: &Entry) -> bool {
        self.dot == entry.dot || (self.write_id != WriteId(0) && self.write_id == entry.write_id)
    }
}

/// The state of a key without its values.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Head {
    /// Every event that this state knows.
    pub clock: VersionVector,
    /// The siblings, sorted by dot. Each dot is covered by the clock.
    pub entries: SmallVec<[Entry; 1]>,
    /// The life of the key's table that the state was written in, see
    /// [`TableEntry::life`](crate::types::TableEntry::life); 0: none, it belongs to the table `default`. Of merged
    /// states the greater.
    pub life: u64,
    /// Writes superseded lately, sorted, at most [`RECENT_WRITES_MAX`]. A memory aid: not part of a state's identity.
    pub recent: SmallVec<[Superseded; 2]>,
}

/// The one of two merged states that a sibling comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    Left,
    Right,
}
/// The place of a merged entry's value: it is the `index`-th value of that side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pick {
    pub side: Side,
    pub index: usize,
}
/// The outcome of a merge: the head, and for each of its entries where the value is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Merged {
    pub head: Head,
    pub picks: SmallVec<[Pick; 2]>,
}

impl Head {
    /// Whether nothing has ever been written (a tombstone is not empty: it has a clock).
    pub fn is_empty(&self) -> bool {
        self.clock.is_empty() && self.entries.is_empty()
    }
    /// Whether all that the context names is known here, as a value or as one that is gone.
    pub fn covers(&self, context: &Context, conflict: Conflict) -> bool {
        let knows = |dot: &Dot| self.clock.covers(*dot) || self.recent.iter().any(|superseded| superseded.dot == *dot);
        let named = || context.clock.entries().iter().chain(&context.dots);
        if conflict == Conflict::Siblings {
            return named().all(knows);
        }
        // Of states whose last write wins nothing is left but the greatest stamp, which is later than all without one.
        let order = |stamp: Dot| (stamp.counter, stamp.actor);
        match (self.stamp(), named().copied().filter(|dot| dot.is_stamp()).map(order).max()) {
            (Some(ours), theirs) => Some(order(ours)) >= theirs,
            (None, Some(_)) => false,
            (None, None) => named().all(knows),
        }
    }
    /// Whether both are the same state: the same clock, siblings and life, so that replicas agree. The superseded
    /// writes that they remember may differ. Where nothing has ever been written there is no life either, since a
    /// delete of nothing leaves no trace.
    pub fn same_state(&self, other: &Head) -> bool {
        self.clock == other.clock
            && (self.life == other.life || (self.is_empty() && other.is_empty()))
            && self.entries.len() == other.entries.len()
            && self.entries.iter().zip(&other.entries).all(|(a, b)| a.dot == b.dot)
    }
    /// Bytes of all values together.
    pub fn value_bytes(&self) -> usize {
        self.entries.iter().map(|e| e.bytes as usize).sum()
    }
    /// Whether this event is known, and not a sibling any more.
    pub fn supersedes(&self, dot: Dot) -> bool {
        self.clock.covers(dot) && self.entries.iter().all(|e| e.dot != dot)
    }
    /// Whether this write is known: as a sibling or as one superseded lately.
    pub fn knows_write(&self, id: WriteId) -> bool {
        id != WriteId(0)
            && (self.entries.iter().any(|e| e.write_id == id) || self.recent.iter().any(|s| s.write_id == id))
    }
    /// Whether the write that bears this id here is surely another one than this: of another value (`None`: a delete,
    /// which is never remembered), or seen by the writer, who would not send it again.
    pub fn is_other_write(&self, id: WriteId, value: Option<&Value>, context: Option<&Context>) -> bool {
        let seen = |dot| context.is_some_and(|context| context.covers(dot));
        let named = |other: WriteId| id != WriteId(0) && id == other;
        let live = self.entries.iter().filter(|e| named(e.write_id)).any(|e| {
            let same = |v: &Value| v.checksum == e.checksum && v.bytes.len() == e.bytes as usize && v.media == e.media;
            seen(e.dot) || !value.is_some_and(same)
        });
        let past = self.recent.iter().filter(|s| named(s.write_id)).any(|s| {
            let same = |v: &Value| s.checksum.is_none_or(|checksum| v.checksum == checksum);
            seen(s.dot) || !value.is_some_and(same)
        });
        live || past
    }
    /// Whether a write with this context leaves any sibling standing.
    pub fn has_survivors(&self, context: &Context) -> bool {
        self.entries.iter().any(|e| !context.covers(e.dot))
    }

    /// A new sibling that supersedes what its writer had read. `dot` must be new: neither this clock nor the context
    /// covers it. The picks of the survivors point into this head ([`Side::Left`]), the new entry is
    /// `Pick { Right, 0 }`.
    pub fn put(&self, context: &Context, new: Entry) -> Merged {
        assert!(!self.clock.covers(new.dot) && !context.covers(new.dot), "a dot is never used twice: {:?}", new.dot);
        let mut merged = self.drop_covered(context);
        merged.head.clock.record(new.dot);
        let at = merged.head.entries.partition_point(|e| e.dot < new.dot);
        merged.head.entries.insert(at, new);
        merged.picks.insert(at, Pick { side: Side::Right, index: 0 });
        merged
    }
    /// Drops the siblings that the context covers and knows all that it knows. All picks are [`Side::Left`].
    pub fn delete(&self, context: &Context) -> Merged {
        self.drop_covered(context)
    }
    /// Drops the siblings that the context covers, and takes its clock. A single dot of the context that this state has
    /// not seen stays out of the clock, which would cover events that nobody saw; it is remembered as superseded, so
    /// that the value it names is dropped when it comes. If it is forgotten before, that value appears as a sibling;
    /// nothing is lost.
    fn drop_covered(&self, context: &Context) -> Merged {
        let clock = self.clock.join(&context.clock);
        let mut head = Head { clock, entries: SmallVec::new(), life: self.life, recent: self.recent.clone() };
        let unseen = context.dots.iter().filter(|d| !self.clock.covers(**d) && !context.clock.covers(**d));
        head.recent.extend(unseen.map(|&dot| Superseded { dot, write_id: WriteId(0), checksum: None }));
        self.entries.iter().filter(|e| context.covers(e.dot)).for_each(|e| head.remember(e));
        let left = self.entries.iter().enumerate().filter(|(_, e)| !context.covers(e.dot));
        let picks = head.take(left.map(|(index, e)| (e, Pick { side: Side::Left, index })));
        head.trim_recent();
        Merged { head, picks }
    }

    /// Merges two states of one key. Commutative, associative, idempotent (but for which side a shared value is
    /// picked from: the left), as long as neither has had to forget a superseded write that is sent again.
    pub fn sync(&self, other: &Head) -> Merged {
        let life = self.life.max(other.life);
        let mut head = Head { clock: self.clock.join(&other.clock), life, ..Head::default() };
        head.recent.extend(self.recent.iter().chain(&other.recent).copied());
        let mut candidates: SmallVec<[(&Entry, Pick); 4]> = SmallVec::new();
        for (side, mine, theirs) in [(Side::Left, self, other), (Side::Right, other, self)] {
            for (index, entry) in mine.entries.iter().enumerate() {
                let shared = theirs.entries.iter().any(|e| e.dot == entry.dot);
                if shared && side == Side::Right {
                    continue;
                }
                if shared || !theirs.clock.covers(entry.dot) {
                    candidates.push((entry, Pick { side, index }));
                } else {
                    head.remember(entry);
                }
            }
        }
        candidates.sort_by_key(|(e, _)| e.dot);
        let picks = head.take(candidates.into_iter());
        head.trim_recent();
        Merged { head, picks }
    }
    /// Makes these entries the siblings of this head, in the order of their dots, and returns where their values are.
    /// An entry whose write was superseded under another dot (its write was sent twice) does not become a sibling: it
    /// is remembered as superseded, too.
    fn take<'a>(&mut self, entries: impl Iterator<Item = (&'a Entry, Pick)>) -> SmallVec<[Pick; 2]> {
        let superseded = self.recent.len();
        let mut picks = SmallVec::new();
        for (entry, pick) in entries {
            if self.recent[..superseded].iter().any(|s| s.names(entry)) {
                self.remember(entry);
            } else {
                self.entries.push(entry.clone());
                picks.push(pick);
            }
        }
        picks
    }
    fn remember(&mut self, entry: &Entry) {
        if entry.write_id != WriteId(0) {
            let checksum = Some(entry.checksum);
            self.recent.push(Superseded { dot: entry.dot, write_id: entry.write_id, checksum });
        }
    }
    /// Keeps the latest of each actor first, then the one before of each, and so on: counters of different actors
    /// say nothing about time. Replicas that merge in any order keep the same.
    fn trim_recent(&mut self) {
        // The one that knows more comes last.
        self.recent.sort_unstable_by_key(|s| Reverse(*s));
        self.recent.dedup_by_key(|s| (s.dot, s.write_id));
        self.recent.sort_unstable();
        if self.recent.len() <= RECENT_WRITES_MAX {
            return;
        }
        let later =
            |s: &Superseded| self.recent.iter().filter(|other| other.dot.actor == s.dot.actor && *other > s).count();
        let mut ranked: SmallVec<[_; 8]> =
            self.recent.iter().map(|s| (later(s), Reverse((s.dot.counter, *s)))).collect();
        ranked.sort_unstable();
        self.recent = ranked.into_iter().take(RECENT_WRITES_MAX).map(|(_, Reverse((_, s)))| s).collect();
        self.recent.sort_unstable();
    }
    /// The entries to show, by index: of a write that was taken twice only the first.
    fn shown(&self) -> impl Iterator<Item = usize> {
        (0..self.entries.len()).filter(|&index| {
            let id = self.entries[index].write_id;
            id == WriteId(0) || self.entries[..index].iter().all(|e| e.write_id != id)
        })
    }
}

/// The whole state of a key: head and values.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Siblings {
    pub head: Head,
    /// The values, one for each entry of the head.
    pub values: Values,
}
impl Siblings {
    /// Merges with another state of the same key.
    pub fn sync(&self, other: &Siblings) -> Siblings {
        let merged = self.head.sync(&other.head);
        let values = merged.picks.iter().map(|p| match p.side {
            Side::Left => self.values[p.index].clone(),
            Side::Right => other.values[p.index].clone(),
        });
        Siblings { values: values.collect(), head: merged.head }
    }
    /// Bytes of the values that are at hand.
    pub fn value_bytes(&self) -> usize {
        self.values.iter().map(bytes::Bytes::len).sum()
    }
    /// The values with their media types, in the order of their dots; a write that was taken twice appears once.
    pub fn values(&self) -> impl Iterator<Item = Value> {
        self.head.shown().map(|index| self.value(index))
    }
    fn value(&self, index: usize) -> Value {
        let entry = &self.head.entries[index];
        Value { media: entry.media.clone(), bytes: self.values[index].clone(), checksum: entry.checksum }
    }
    /// The state as a reader is shown it: a write that was taken twice, under two dots, appears once. It must not be
    /// merged into other states, because its clock covers the dot that it leaves out.
    pub fn into_shown(self) -> Siblings {
        let shown: SmallVec<[usize; 4]> = self.head.shown().collect();
        if shown.len() == self.head.entries.len() {
            return self;
        }
        let entries = shown.iter().map(|&i| self.head.entries[i].clone()).collect();
        let values = shown.iter().map(|&i| self.values[i].clone()).collect();
        Siblings { head: Head { entries, ..self.head }, values }
    }
    /// Checks that every entry has a value of the stated length and checksum.
    pub fn verify(&self) -> Result<(), ValueError> {
        let fits = self.head.entries.len() == self.values.len()
            && self.head.entries.iter().zip(&self.values).all(|(e, v)| e.bytes as usize == v.len());
        if fits { (0..self.values.len()).try_for_each(|i| self.value(i).verify()) } else { Err(ValueError::Checksum) }
    }
}
