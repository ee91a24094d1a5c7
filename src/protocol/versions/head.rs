//! The head of a key: a dotted version vector set without the values, and the rules of put, delete and merge.

use super::{Context, Dot, VersionVector};
use crate::{
    limits::RECENT_WRITES_MAX,
    types::{Media, Value, ValueError, WriteId},
};
use bytes::Bytes;
use smallvec::SmallVec;

/// The values of a key's siblings, in the order of the head's entries.
pub type Values = SmallVec<[Bytes; 1]>;

/// One sibling: its event and what is known of its value without reading it.
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

/// A write that has been superseded, remembered so that a late retry of it is recognised.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Superseded {
    pub dot: Dot,
    pub write_id: WriteId,
}

/// The state of a key without its values.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Head {
    /// Every event that this state knows.
    pub clock: VersionVector,
    /// The siblings, sorted by dot. Each dot is covered by the clock.
    pub entries: SmallVec<[Entry; 1]>,
    /// Writes superseded lately, sorted, at most [`RECENT_WRITES_MAX`]. A memory aid: not part of a state's identity.
    pub recent: SmallVec<[Superseded; 2]>,
}

/// Which of two merged states a sibling comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    Left,
    Right,
}
/// Where the value of a merged entry is found: the `index`-th value of that side.
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
    /// Same clock and same siblings: replicas that agree. What is remembered of old writes may differ.
    pub fn same_state(&self, other: &Head) -> bool {
        self.clock == other.clock
            && self.entries.len() == other.entries.len()
            && self.entries.iter().zip(&other.entries).all(|(a, b)| a.dot == b.dot)
    }
    /// Bytes of all values together.
    pub fn value_bytes(&self) -> usize {
        self.entries.iter().map(|e| e.bytes as usize).sum()
    }
    /// Whether this write is known: as a sibling or as one superseded lately.
    pub fn knows_write(&self, id: WriteId) -> bool {
        id != WriteId(0)
            && (self.entries.iter().any(|e| e.write_id == id) || self.recent.iter().any(|s| s.write_id == id))
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
    /// A dot of the context that this state has not seen stays unknown to it: the clock could not record it without
    /// covering events that nobody saw. At worst the value that it names appears as a sibling; nothing is lost.
    fn drop_covered(&self, context: &Context) -> Merged {
        let clock = self.clock.join(&context.clock);
        let mut head = Head { clock, entries: SmallVec::new(), recent: self.recent.clone() };
        let mut picks = SmallVec::new();
        for (index, entry) in self.entries.iter().enumerate() {
            if context.covers(entry.dot) {
                head.remember(entry);
            } else {
                head.entries.push(entry.clone());
                picks.push(Pick { side: Side::Left, index });
            }
        }
        head.trim_recent();
        Merged { head, picks }
    }

    /// Merges two states of one key. Commutative, associative, idempotent (but for which side a shared value is
    /// picked from: the left).
    pub fn sync(&self, other: &Head) -> Merged {
        let mut head = Head { clock: self.clock.join(&other.clock), entries: SmallVec::new(), recent: SmallVec::new() };
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
        let mut picks = SmallVec::new();
        for (entry, pick) in candidates {
            if !head.is_alias(entry) {
                head.entries.push(entry.clone());
                picks.push(pick);
            }
        }
        head.trim_recent();
        Merged { head, picks }
    }
    /// Whether this entry is another name of a write that has been superseded, or of a sibling already taken (the
    /// lesser dot comes first).
    fn is_alias(&self, entry: &Entry) -> bool {
        entry.write_id != WriteId(0)
            && (self.recent.iter().any(|s| s.write_id == entry.write_id)
                || self.entries.iter().any(|e| e.write_id == entry.write_id))
    }
    fn remember(&mut self, entry: &Entry) {
        if entry.write_id != WriteId(0) {
            self.recent.push(Superseded { dot: entry.dot, write_id: entry.write_id });
        }
    }
    /// Keeps the greatest few: a total order, so that replicas which merge in any order keep the same.
    fn trim_recent(&mut self) {
        self.recent.sort_by_key(|s| (s.dot.counter, s.dot.actor, s.write_id));
        self.recent.dedup();
        let excess = self.recent.len().saturating_sub(RECENT_WRITES_MAX);
        self.recent.drain(..excess);
    }
}

/// The whole state of a key: head and values.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Siblings {
    pub head: Head,
    /// One for each entry of the head.
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
    /// The values with their kinds, in the order of their dots.
    pub fn values(&self) -> impl Iterator<Item = Value> {
        self.head.entries.iter().zip(&self.values).map(|(entry, bytes)| Value {
            media: entry.media.clone(),
            bytes: bytes.clone(),
            checksum: entry.checksum,
        })
    }
    /// Checks that every entry has a value of the stated length and checksum.
    pub fn verify(&self) -> Result<(), ValueError> {
        let fits = self.head.entries.len() == self.values.len()
            && self.head.entries.iter().zip(&self.values).all(|(e, v)| e.bytes as usize == v.len());
        if fits { self.values().try_for_each(|v| v.verify()) } else { Err(ValueError::Checksum) }
    }
}
