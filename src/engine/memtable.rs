//! The records of one slice that are durable in the log and not yet in a table.
//!
//! One version a key, the one of the greatest sequence: so it does not matter in which order recovery reads segments.

use super::types::{Stored, StoredValue, ValuePointer};
use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;
use std::collections::BTreeMap;

/// What an entry costs beside its bytes: the tree's node, two or three counted references, the pointers.
const ENTRY_OVERHEAD: usize = 200;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    pub sequence: u64,
    pub stored: Stored,
}

#[derive(Default)]
pub struct Memtable {
    entries: BTreeMap<Bytes, Entry>,
    bytes: usize,
    /// Greatest sequence of any record that came in.
    last_sequence: u64,
    /// Where in the log its oldest record lies (bytes of log written before it).
    first_position: Option<u64>,
}

impl Memtable {
    /// Takes the record unless a newer one of the same key is there. Gives back the record that is now dead: the one
    /// replaced, or the new one itself.
    pub fn insert(&mut self, key: Bytes, sequence: u64, stored: Stored, position: u64) -> Option<Stored> {
        self.last_sequence = self.last_sequence.max(sequence);
        self.first_position.get_or_insert(position);
        let added = entry_bytes(&key, &stored);
        if let Some(entry) = self.entries.get_mut(&key) {
            if entry.sequence >= sequence {
                return Some(stored);
            }
            self.bytes = self.bytes + added - entry_bytes(&key, &entry.stored);
            entry.sequence = sequence;
            return Some(std::mem::replace(&mut entry.stored, stored));
        }
        self.bytes += added;
        self.entries.insert(key, Entry { sequence, stored });
        None
    }
    pub fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.entries.get(key)
    }
    /// Entries of `[from, to)` in order.
    pub fn range(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = (&Bytes, &Entry)> {
        use std::ops::Bound::{Excluded, Included};
        let bounds = (from < to).then_some((Included(from), Excluded(to)));
        bounds.into_iter().flat_map(|bounds| self.entries.range::<[u8], _>(bounds))
    }
    pub fn iter(&self) -> impl Iterator<Item = (&Bytes, &Entry)> {
        self.entries.iter()
    }
    pub fn len(&self) -> usize {
        self.entries.len()
    }
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
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

    #[test]
    fn the_greatest_sequence_wins_in_any_order() {
        let mut table = Memtable::default();
        assert_eq!(table.insert(Bytes::from_static(b"k"), 5, put("five"), 100), None);
        assert_eq!(table.insert(Bytes::from_static(b"k"), 3, put("three"), 50), Some(put("three")));
        assert_eq!(table.insert(Bytes::from_static(b"k"), 9, Stored::Delete, 200), Some(put("five")));
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
    fn an_empty_range_is_empty() {
        let mut table = Memtable::default();
        table.insert(Bytes::from_static(b"b"), 1, put("x"), 0);
        assert_eq!(table.range(b"z", b"a").count(), 0);
        assert_eq!(table.range(b"b", b"b").count(), 0);
        assert_eq!(table.range(b"a", b"c").count(), 1);
    }
}
