//! Drops: all records of a group vanish at once, however many they are.
//!
//! A group is the keys that hold some bytes at some place: a table of users is one, its records lie spread over all
//! tokens. To drop it, one small record a slice is written, under a reserved key; every record of the group with a
//! smaller sequence is hidden from then on, by reads, scans and snapshots alike. Records that are written later are
//! not.
//!
//! A drop may name marks ([`mark`]): then it hides only records that bear one of 1 to that mark, and those that bear
//! none stay. A hidden record goes on hiding older ones of its key, whatever they bear: it is as if it had been
//! deleted.
//!
//! The record of a drop is like any other: durable with its batch, flushed, compacted, and it moves with its slice.
//! Records that a drop hides go when compaction rewrites the tables that were there: [`Drops::settle`] says from which
//! table on nothing hidden can be, and when no older table is left the drop itself is forgotten.

use super::{
    compaction::{MergeCursor, Source, TableSet},
    disk::{Disk, Lane},
    error::EngineError,
    types::{ENGINE_KEY_BYTES_MAX, Stored},
};
use crate::types::mark;
use bytes::{BufMut, Bytes, BytesMut};

/// First byte of the keys that are the engine's own: greater than that of any other.
pub const RESERVED: u8 = 0xFF;
const FIXED: usize = 4;
/// A bit of the second byte of a drop's key, beside the space: set for a drop that hides records by their marks, clear
/// for one that hides all records of the group.
const BY_MARK: u8 = 0x80;
/// Bytes of a group's name.
pub const NAME_BYTES_MAX: usize = ENGINE_KEY_BYTES_MAX - FIXED;

/// Keys that begin with `space` and have `name` at `skip`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Group {
    pub space: u8,
    pub skip: u16,
    /// The bytes that the keys have at `skip`; at most [`NAME_BYTES_MAX`] of them.
    pub name: Bytes,
}

impl Group {
    pub fn holds(&self, key: &[u8]) -> bool {
        let rest = key.get(usize::from(self.skip)..);
        key.first() == Some(&self.space) && rest.is_some_and(|rest| rest.starts_with(&self.name))
    }
    /// The key of the record of a drop, of one that goes by marks or of one that takes all: each counts by itself.
    pub fn key(&self, by_mark: bool) -> Bytes {
        let mut key = BytesMut::with_capacity(FIXED + self.name.len());
        key.put_u8(RESERVED);
        key.put_u8(self.space | if by_mark { BY_MARK } else { 0 });
        key.put_u16(self.skip);
        key.put_slice(&self.name);
        key.freeze()
    }
    /// The group, and whether the drop goes by marks.
    fn of_key(key: &[u8]) -> Option<(Group, bool)> {
        let (fixed, name) = key.split_at_checked(FIXED)?;
        let group = Group {
            space: fixed[1] & !BY_MARK,
            skip: u16::from_be_bytes([fixed[2], fixed[3]]),
            name: Bytes::copy_from_slice(name),
        };
        (fixed[0] == RESERVED).then_some((group, fixed[1] & BY_MARK != 0))
    }
    /// Whether such a group can be dropped.
    pub fn is_sound(&self) -> bool {
        self.space < BY_MARK && self.name.len() <= NAME_BYTES_MAX
    }
}

/// The head of the record of a drop that goes by marks.
pub fn marks_head(marks: u64) -> Bytes {
    Bytes::copy_from_slice(&marks.to_le_bytes())
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Dropped {
    group: Group,
    /// The greatest mark that is hidden; `None`: all records are, whatever they bear.
    marks: Option<u64>,
    /// The sequence of the drop's own record: records of the group with a smaller one are hidden.
    sequence: u64,
    /// Whether the drop has been forgotten: it hides nothing any more, and stays in the list only so that an older
    /// record of the same drop is not taken for news.
    forgotten: bool,
    /// No table with this id or a greater one holds anything hidden. Known once the drop itself is in a table.
    floor: Option<u64>,
}

/// The drops of one slice.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Drops {
    dropped: Vec<Dropped>,
    /// Changes so far: whoever acts on what was visible before must look again.
    version: u64,
}

impl Drops {
    /// Whether nothing is hidden.
    pub fn is_empty(&self) -> bool {
        self.dropped.iter().all(|drop| drop.forgotten)
    }
    pub fn version(&self) -> u64 {
        self.version
    }
    /// Whether a record is as if it were not there.
    pub fn hides(&self, key: &[u8], sequence: u64, head: &[u8]) -> bool {
        let bears = |marks: Option<u64>| marks.is_none_or(|marks| (1..=marks).contains(&mark::of(head)));
        let hidden =
            |drop: &Dropped| !drop.forgotten && sequence < drop.sequence && drop.group.holds(key) && bears(drop.marks);
        self.dropped.iter().any(hidden)
    }
    /// Takes note of a record under a reserved key that is now visible. Of each group the one with the greatest
    /// sequence counts, in whatever order they come: recovery reads segments as they lie.
    pub fn note(&mut self, key: &[u8], sequence: u64, stored: &Stored) {
        let Some((group, by_mark)) = Group::of_key(key) else { return };
        let same = |known: &Dropped| known.group == group && known.marks.is_some() == by_mark;
        if self.dropped.iter().any(|known| same(known) && known.sequence >= sequence) {
            return;
        }
        self.version += 1;
        self.dropped.retain(|known| !same(known));
        let (forgotten, marks) = match stored {
            Stored::Delete => (true, by_mark.then_some(0)),
            // A head that is none hides all that bear a mark: what was dropped does not come back.
            Stored::Put { head, .. } => {
                let marks = || head[..].try_into().map_or(u64::MAX, u64::from_le_bytes);
                (false, by_mark.then(marks))
            }
        };
        self.dropped.push(Dropped { group, marks, sequence, forgotten, floor: None });
    }
    /// Learns that records up to this sequence are in tables, and that all tables are older than `next_table`: so is
    /// all that these drops hide.
    pub fn settle(&mut self, flushed_sequence: u64, next_table: u64) {
        let settled = self
            .dropped
            .iter_mut()
            .filter(|drop| !drop.forgotten && drop.floor.is_none() && drop.sequence <= flushed_sequence);
        settled.for_each(|drop| drop.floor = Some(next_table));
    }
    /// Tables with a smaller id may hold what is hidden; nothing when none need be rewritten.
    pub fn rewrite_below(&self) -> Option<u64> {
        self.dropped.iter().filter_map(|drop| drop.floor).max()
    }
    /// Takes out the drops that hide nothing any more, given that the slice's oldest table has the id `oldest_table`;
    /// returns the keys of their records.
    pub fn take_spent(&mut self, oldest_table: u64) -> Vec<Bytes> {
        let spent = self.dropped.extract_if(.., |drop| drop.floor.is_some_and(|floor| floor <= oldest_table));
        spent.map(|drop| drop.group.key(drop.marks.is_some())).collect()
    }
}

/// The drops that a slice's tables hold. `Damaged` if one may be in a damaged place: what it hides would come back.
pub async fn load<D: Disk>(tables: &TableSet<D>) -> Result<Drops, EngineError> {
    let mut drops = Drops::default();
    let (from, to) = ([RESERVED], [u8::MAX; ENGINE_KEY_BYTES_MAX + 1]);
    if let Some(doubt) = tables.first_doubt(&from, &to) {
        tables.doubt(&doubt, None)?;
    }
    let sources = tables.sources(&from, &to, Lane::Foreground);
    if sources.is_empty() {
        return Ok(drops);
    }
    let mut cursor = MergeCursor::open(sources, &from).await?;
    while let Some(source) = cursor.next().await? {
        let (Some((key, sequence)), Some(stored)) = (source.peek(), source.stored()?) else { break };
        drops.note(key, sequence, &stored);
    }
    Ok(drops)
}

#[cfg(test)]
mod tests {
    use super::*;
    use smallvec::SmallVec;

    fn group(name: &'static str) -> Group {
        Group { space: 7, skip: 3, name: Bytes::from_static(name.as_bytes()) }
    }
    fn put() -> Stored {
        Stored::Put { head: Bytes::new(), values: SmallVec::new() }
    }

    #[test]
    fn a_group_is_told_by_its_place() {
        let cart = group("cart:");
        assert!(cart.holds(b"\x07..cart:1") && cart.holds(b"\x07..cart:"));
        for other in [&b"\x07.cart:1"[..], b"\x08..cart:1", b"\x07..car", b"\x07", b""] {
            assert!(!cart.holds(other), "{other:?}");
        }
        assert_eq!(Group::of_key(&cart.key(false)), Some((cart.clone(), false)));
        assert_eq!(Group::of_key(&cart.key(true)), Some((cart, true)));
        assert_eq!(Group::of_key(b"\xFF\x01\x00"), None);
        assert_eq!(Group::of_key(b"\x07\x01\x00\x00x"), None);
    }

    #[test]
    fn older_records_are_hidden_and_newer_are_not() {
        let mut drops = Drops::default();
        drops.note(&group("a").key(false), 10, &put());
        let hides = |drops: &Drops, key: &[u8], sequence| drops.hides(key, sequence, b"");
        assert!(hides(&drops, b"\x07..abc", 9) && !hides(&drops, b"\x07..abc", 11) && !hides(&drops, b"\x07..bc", 9));
        let before = drops.version();
        drops.note(&group("a").key(false), 20, &put());
        assert!(drops.hides(b"\x07..abc", 11, b"") && drops.version() > before);
        drops.note(&group("a").key(false), 30, &Stored::Delete);
        assert!(drops.is_empty() && !drops.hides(b"\x07..abc", 11, b""));
    }

    #[test]
    fn a_drop_by_marks_leaves_what_bears_none() {
        let mut drops = Drops::default();
        let head = |life| {
            let mut head = Vec::new();
            mark::put(&mut head, life);
            head
        };
        let by_marks = |marks| Stored::Put { head: marks_head(marks), values: SmallVec::new() };
        drops.note(&group("a").key(true), 10, &by_marks(4));
        let hidden = |drops: &Drops| [0, 1, 4, 5].map(|life| drops.hides(b"\x07..abc", 9, &head(life)));
        assert_eq!(hidden(&drops), [false, true, true, false]);
        // Beside one that takes all, and over a newer one: each counts by itself.
        drops.note(&group("a").key(false), 8, &put());
        assert!(drops.hides(b"\x07..abc", 7, b"") && !drops.hides(b"\x07..abc", 9, b""));
        drops.note(&group("a").key(true), 20, &by_marks(5));
        assert_eq!(hidden(&drops), [false, true, true, true]);
        assert!(drops.hides(b"\x07..abc", 7, b""));
        drops.settle(20, 3);
        let mut spent = drops.take_spent(3);
        spent.sort();
        assert_eq!(spent, [group("a").key(false), group("a").key(true)]);
    }

    #[test]
    fn the_newest_word_on_a_group_counts_in_any_order() {
        let words = [(10, put()), (20, Stored::Delete), (30, put())];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut drops = Drops::default();
            order.iter().for_each(|at| drops.note(&group("a").key(false), words[*at].0, &words[*at].1));
            assert!(drops.hides(b"\x07..abc", 29, b"") && !drops.hides(b"\x07..abc", 31, b""), "{order:?}");
        }
        let mut drops = Drops::default();
        drops.note(&group("a").key(false), 20, &Stored::Delete);
        drops.note(&group("a").key(false), 10, &put());
        assert!(drops.is_empty() && !drops.hides(b"\x07..abc", 9, b""));
    }

    #[test]
    fn a_drop_is_spent_when_the_older_tables_are_gone() {
        let mut drops = Drops::default();
        drops.note(&group("a").key(false), 10, &put());
        drops.settle(9, 5);
        assert_eq!(drops.rewrite_below(), None);
        drops.settle(10, 6);
        drops.settle(12, 8);
        assert_eq!(drops.rewrite_below(), Some(6));
        assert!(drops.take_spent(5).is_empty());
        assert_eq!(drops.take_spent(6), [group("a").key(false)]);
    }
}
