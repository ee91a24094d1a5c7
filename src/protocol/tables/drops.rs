//! Which drops of tables a shard's slices have carried out.
//!
//! Between the news of a drop and its end a shard does nothing with keys of that table: what has begun ends first, then
//! the records go, then it is made durable that they have gone. So each slice's records of a table come after one drop,
//! the table's *epoch* there, and what was begun before the drop is told from what was begun after it.

use super::Tables;
use crate::types::{SliceId, TableEntry, TableName};
use std::collections::BTreeMap;

/// A drop that this shard has still to carry out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Due {
    pub name: TableName,
    pub version: u64,
    /// Whether records go that do not say which life of the table they belong to: see [`TableEntry::whole`].
    pub whole: bool,
    pub slices: Vec<SliceId>,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Drops {
    slices: Vec<SliceId>,
    /// By table and slice the latest drop that was carried out and made durable; nothing: none.
    done: BTreeMap<TableName, BTreeMap<SliceId, u64>>,
}

impl Drops {
    /// `known`: what the slices' records say.
    pub fn new(slices: Vec<SliceId>, known: &[(SliceId, Vec<(TableEntry, u64)>)]) -> Drops {
        let mut drops = Drops { slices, done: BTreeMap::new() };
        for (slice, entries) in known {
            for (entry, done) in entries.iter().filter(|(_, done)| *done > 0) {
                drops.done.entry(entry.name.clone()).or_default().insert(*slice, *done);
            }
        }
        drops
    }
    pub fn slices(&self) -> &[SliceId] {
        &self.slices
    }
    /// The latest drop of the key's table that the slice has carried out.
    pub fn epoch(&self, slice: SliceId, key: &[u8]) -> u64 {
        if self.done.is_empty() {
            return 0;
        }
        TableName::of_key(key).map_or(0, |name| self.of(slice, name))
    }
    pub fn of(&self, slice: SliceId, name: &str) -> u64 {
        self.done.get(name).and_then(|by_slice| by_slice.get(&slice)).copied().unwrap_or(0)
    }
    /// The next drop to carry out.
    pub fn due(&self, tables: &Tables) -> Option<Due> {
        tables.entries().filter(|entry| entry.dropped > 0).find_map(|entry| {
            let behind = |slice: &SliceId| self.of(*slice, entry.name.as_str()) < entry.dropped;
            let slices: Vec<SliceId> = self.slices.iter().copied().filter(behind).collect();
            let whole = slices.iter().any(|slice| self.of(*slice, entry.name.as_str()) < entry.whole);
            (!slices.is_empty()).then(|| Due { name: entry.name.clone(), version: entry.dropped, whole, slices })
        })
    }
    /// The slices' records are lost, and with them which drops they had carried out: all that are known, it is taken,
    /// since to drop a table twice would lose what was written in between.
    pub fn assume(&mut self, slices: &[SliceId], tables: &Tables) {
        for entry in tables.entries().filter(|entry| entry.dropped > 0) {
            let by_slice = self.done.entry(entry.name.clone()).or_default();
            slices.iter().for_each(|slice| {
                by_slice.entry(*slice).or_insert(entry.dropped);
            });
        }
    }
    /// It is done, and durably known to be.
    pub fn carried_out(&mut self, due: &Due) {
        let by_slice = self.done.entry(due.name.clone()).or_default();
        by_slice.extend(due.slices.iter().map(|slice| (*slice, due.version)));
    }
}
