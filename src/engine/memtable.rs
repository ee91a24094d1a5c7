//! The records of one slice that are durable in the log and not yet in a table.
//!
//! One version a key, the one of the greatest sequence: so it does not matter in which order recovery reads segments.

use super::types::{Stored, StoredValue, ValuePointer};
use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;
use std::collections::BTreeMap;

/// Bytes of memory that an entry costs beside key and record, estimated: the tree's node, two or three reference
/// counts, the pointers.
pub const ENTRY_OVERHEAD: usize = 200;

/// Bytes of values that a record without large values is assumed to replace in tables, until somebody looks.
const UNKNOWN_BYTES: u64 = 4 << 10;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    pub sequence: u64,
    /// The segment of the log that its record lies in.
    pub segment: u64,
    pub stored: Stored,
}

/// The place of a record in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    pub segment: u64,
    /// The bytes of log that were written before the record.
    pub position: u64,
}

/// First bytes of a key, as a number that orders like them.
type Prefix = u128;
const PREFIX_BYTES: usize = size_of::<Prefix>();

fn prefix(key: &[u8]) -> Prefix {
    let mut bytes = [0; PREFIX_BYTES];
    let length = key.len().min(PREFIX_BYTES);
    bytes[..length].copy_from_slice(&key[..length]);
    Prefix::from_be_bytes(bytes)
}

/// The entries whose keys begin with the same bytes.
enum Slot {
    One(Bytes, Entry),
    Many(BTreeMap<Bytes, Entry>),
}
impl Slot {
    fn get(&self, key: &[u8]) -> Option<&Entry> {
        match self {
            Slot::One(only, entry) => (only == key).then_some(entry),
            Slot::Many(entries) => entries.get(key),
        }
    }
    fn get_mut(&mut self, key: &[u8]) -> Option<&mut Entry> {
        match self {
            Slot::One(only, entry) => (only == key).then_some(entry),
            Slot::Many(entries) => entries.get_mut(key),
        }
    }
    fn add(&mut self, key: Bytes, entry: Entry) {
        if let Slot::One(first, held) = self {
            let held = Entry { stored: std::mem::replace(&mut held.stored, Stored::Delete), ..*held };
            let entries = BTreeMap::from([(std::mem::take(first), held)]);
            *self = Slot::Many(entries);
        }
        if let Slot::Many(entries) = self {
            entries.insert(key, entry);
        }
    }
    fn iter(&self) -> impl Iterator<Item = (&Bytes, &Entry)> {
        let (one, many) = match self {
            Slot::One(key, entry) => (Some((key, entry)), None),
            Slot::Many(entries) => (None, Some(entries.iter())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

/// Keys are found by their first bytes, which lie in the tree itself: comparing whole keys means a cache miss for each,
/// and these first bytes (a space, a token) nearly always differ.
#[derive(Default)]
pub struct Memtable {
    slots: BTreeMap<Prefix, Slot>,
    length: usize,
    bytes: usize,
    /// Greatest sequence of any record that came in.
    last_sequence: u64,
    /// The log's position of the oldest record here: the bytes of log written before it.
    first_position: Option<u64>,
    /// Keys of which tables may hold a record that is replaced by the one here, and nobody has looked.
    unsettled: Vec<Bytes>,
    /// The bytes of values that the unsettled keys replace in tables, estimated.
    unsettled_bytes: u64,
}

impl Memtable {
    /// Takes the record unless a newer one of the same key is there. Returns the record that is now dead, which is the
    /// replaced one or the new one itself, and its segment. With `may_replace`, a key that was not here becomes
    /// unsettled: tables may hold a record that this one replaces.
    pub fn insert(
        &mut self,
        key: Bytes,
        sequence: u64,
        stored: Stored,
        place: Place,
        may_replace: bool,
    ) -> Option<(Stored, u64)> {
        use std::collections::btree_map::Entry::{Occupied, Vacant};
        let segment = place.segment;
        self.last_sequence = self.last_sequence.max(sequence);
        self.first_position.get_or_insert(place.position);
        let added = entry_bytes(&key, &stored);
        let fresh = |stored| Entry { sequence, segment, stored };
        let name = may_replace.then(|| (key.clone(), replaces_about(&stored)));
        match self.slots.entry(prefix(&key)) {
            Vacant(vacant) => drop(vacant.insert(Slot::One(key, fresh(stored)))),
            Occupied(mut occupied) => match occupied.get_mut().get_mut(&key) {
                Some(entry) if entry.sequence >= sequence => return Some((stored, segment)),
                Some(entry) => {
                    self.bytes = self.bytes + added - entry_bytes(&key, &entry.stored);
                    let replaced = std::mem::replace(entry, fresh(stored));
                    return Some((replaced.stored, replaced.segment));
                }
                None => occupied.get_mut().add(key, fresh(stored)),
            },
        }
        self.bytes += added;
        self.length += 1;
        if let Some((key, bytes)) = name {
            self.unsettled.push(key);
            self.unsettled_bytes += bytes;
        }
        None
    }
    /// Keys of which nobody has looked yet what they replace in tables.
    pub fn unsettled(&self) -> &[Bytes] {
        &self.unsettled
    }
    pub fn unsettled_bytes(&self) -> u64 {
        self.unsettled_bytes
    }
    /// Gives them to somebody who looks.
    pub fn take_unsettled(&mut self) -> Vec<Bytes> {
        self.unsettled_bytes = 0;
        std::mem::take(&mut self.unsettled)
    }
    pub fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.slots.get(&prefix(key))?.get(key)
    }
    /// Entries of `[from, to)` in order.
    pub fn range(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = (&Bytes, &Entry)> {
        let bounds = (from < to).then(|| prefix(from)..=prefix(to));
        let slots = bounds.into_iter().flat_map(|bounds| self.slots.range(bounds));
        slots.flat_map(|(_, slot)| slot.iter()).filter(move |(key, _)| from <= &key[..] && &key[..] < to)
    }
    pub fn iter(&self) -> impl Iterator<Item = (&Bytes, &Entry)> {
        self.slots.values().flat_map(Slot::iter)
    }
    pub fn len(&self) -> usize {
        self.length
    }
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
    pub fn bytes(&self) -> usize {
        self.bytes
    }
    pub fn last_sequence(&self) -> u64 {
        self.last_sequence
    }
    pub fn first_position(&self) -> Option<u64> {
        self.first_position
    }
}

/// Bytes of values that a record replaces in tables, if it replaces any: estimated as about as many as it has itself.
fn replaces_about(stored: &Stored) -> u64 {
    pointers(stored).map(|pointer| u64::from(pointer.length)).sum::<u64>().max(UNKNOWN_BYTES)
}

fn entry_bytes(key: &[u8], stored: &Stored) -> usize {
    let payload = match stored {
        Stored::Delete => 0,
        Stored::Put { head, values } => {
            let spilled = if values.spilled() { values.len() * size_of::<StoredValue>() } else { 0 };
            let inline: usize = values.iter().map(|v| if let StoredValue::Inline(b) = v { b.len() } else { 0 }).sum();
            head.len() + inline + spilled
        }
    };
    key.len() + payload + ENTRY_OVERHEAD
}

/// Pointers of a record.
pub fn pointers(stored: &Stored) -> impl Iterator<Item = &ValuePointer> {
    let values = match stored {
        Stored::Put { values, .. } => values.as_slice(),
        Stored::Delete => &[],
    };
    values.iter().filter_map(|v| if let StoredValue::Pointer(p) = v { Some(p) } else { None })
}

/// Copies key, head and small values into one allocation, so that a memtable never keeps a network buffer alive.
pub fn compact(key: &[u8], head: &[u8], values: SmallVec<[StoredValue; 1]>) -> (Bytes, Stored) {
    let inline: usize = values.iter().map(|v| if let StoredValue::Inline(b) = v { b.len() } else { 0 }).sum();
    let mut buffer = BytesMut::with_capacity(key.len() + head.len() + inline);
    buffer.extend_from_slice(key);
    buffer.extend_from_slice(head);
    for value in &values {
        if let StoredValue::Inline(bytes) = value {
            buffer.extend_from_slice(bytes);
        }
    }
    let buffer = buffer.freeze();
    let mut at = key.len() + head.len();
    let values = values
        .into_iter()
        .map(|value| match value {
            StoredValue::Inline(bytes) => {
                let from = at;
                at += bytes.len();
                StoredValue::Inline(buffer.slice(from..at))
            }
            pointer => pointer,
        })
        .collect();
    (buffer.slice(..key.len()), Stored::Put { head: buffer.slice(key.len()..key.len() + head.len()), values })
}

#[cfg(test)]
mod tests {
    use super::*;
    use smallvec::smallvec;

    fn put(text: &'static str) -> Stored {
        Stored::Put { head: Bytes::from_static(text.as_bytes()), values: SmallVec::new() }
    }

    fn place(position: u64) -> Place {
        Place { segment: 1, position }
    }

    #[test]
    fn the_greatest_sequence_wins_in_any_order() {
        let mut table = Memtable::default();
        assert_eq!(table.insert(Bytes::from_static(b"k"), 5, put("five"), place(100), false), None);
        assert_eq!(table.insert(Bytes::from_static(b"k"), 3, put("three"), place(50), false), Some((put("three"), 1)));
        assert_eq!(
            table.insert(Bytes::from_static(b"k"), 9, Stored::Delete, place(200), false),
            Some((put("five"), 1))
        );
        assert_eq!(table.get(b"k").map(|e| e.sequence), Some(9));
        assert_eq!(table.last_sequence(), 9);
        assert_eq!(table.first_position(), Some(100));
        assert_eq!(table.bytes(), 1 + ENTRY_OVERHEAD);
    }

    #[test]
    fn compact_keeps_every_byte_in_its_place() {
        let pointer = StoredValue::Pointer(ValuePointer { segment: 1, offset: 2, length: 3, checksum: 4 });
        let values = smallvec![
            StoredValue::Inline(Bytes::from_static(b"one")),
            pointer.clone(),
            StoredValue::Inline(Bytes::from_static(b"three")),
        ];
        let (key, stored) = compact(b"key", b"head", values.clone());
        assert_eq!(key, "key");
        assert_eq!(stored, Stored::Put { head: Bytes::from_static(b"head"), values });
    }

    #[test]
    fn keys_that_begin_alike_are_told_apart_and_ordered() {
        let mut table = Memtable::default();
        let long = b"sixteen bytes in".to_vec();
        let mut keys: Vec<Vec<u8>> = vec![vec![], vec![0], vec![0, 0], b"k".to_vec(), b"k\0".to_vec(), long.clone()];
        keys.extend((0..=255).map(|last| [&long[..], &[last]].concat()));
        keys.extend((0..=255).map(|last| [&long[..15], &[last]].concat()).filter(|key| *key != long));
        for (number, key) in keys.iter().enumerate().rev() {
            assert_eq!(table.insert(Bytes::from(key.clone()), number as u64, put("x"), place(0), false), None);
        }
        assert_eq!(table.len(), keys.len());
        assert!(keys.iter().enumerate().all(|(n, key)| table.get(key).map(|e| e.sequence) == Some(n as u64)));
        keys.sort();
        assert!(table.iter().map(|(key, _)| &key[..]).eq(keys.iter().map(|key| &key[..])));
        for (from, to) in [(0, 3), (2, 100), (5, keys.len() - 1), (100, 400)] {
            let found = table.range(&keys[from], &keys[to]).map(|(key, _)| &key[..]);
            assert!(found.eq(keys[from..to].iter().map(|key| &key[..])), "{from}..{to}");
        }
        assert_eq!(table.get(b"sixteen bytes"), None);
    }

    #[test]
    fn an_empty_range_is_empty() {
        let mut table = Memtable::default();
        table.insert(Bytes::from_static(b"b"), 1, put("x"), place(0), false);
        assert_eq!(table.range(b"z", b"a").count(), 0);
        assert_eq!(table.range(b"b", b"b").count(), 0);
        assert_eq!(table.range(b"a", b"c").count(), 1);
    }
}
