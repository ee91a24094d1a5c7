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
    /// The latest drop that was carried out and made durable, by table and slice; no entry: none.
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
    /// What the slices' records say is in doubt: they may have lost drops that they had carried out, and what they had
    /// noted of those. A drop that takes all of a name is taken to be done, since done twice it would lose what was
    /// written in between. All others are done again: they take what was written in the lives that are over, and some
    /// of it may be there still.
    pub fn assume(&mut self, slices: &[SliceId], tables: &Tables) {
        for entry in tables.entries().filter(|entry| entry.dropped > 0) {
            let by_slice = self.done.entry(entry.name.clone()).or_default();
            by_slice.extend(slices.iter().map(|slice| (*slice, entry.whole)));
        }
    }
    /// It is done, and durably known to be.
    pub fn carried_out(&mut self, due: &Due) {
        let by_slice = self.done.entry(due.name.clone()).or_default();
        by_slice.extend(due.slices.iter().map(|slice| (*slice, due.version)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        protocol::message::Certainty,
        types::{Conflict, Durability, NodeId, TableChange, TableChangeKind, TableSettings, TableWish},
    };

    const SLICE: SliceId = SliceId(3);

    fn change(tables: &mut Tables, kind: TableChangeKind) {
        let change = TableChange { name: "cart".parse().expect("a name"), kind };
        tables.change(NodeId(1), change).expect("changed");
    }

    /// A slice of which some records may be lost had heard nothing of the drop: it has records of the dropped table.
    #[test]
    fn a_slice_in_doubt_drops_again_what_bears_its_life() {
        let usual = TableSettings {
            n: 3,
            r: 2,
            w: 2,
            conflict: Conflict::Siblings,
            sloppy: true,
            durability: Durability::Sync,
        };
        let mut tables = Tables::new(usual, Vec::new(), Certainty::Sure);
        change(&mut tables, TableChangeKind::Make(TableWish::default()));
        change(&mut tables, TableChangeKind::Drop);
        let mut drops = Drops::new(vec![SLICE], &[]);
        drops.assume(&[SLICE], &tables);
        let due = drops.due(&tables).expect("to be done, perhaps again");
        assert_eq!((due.version, due.whole, &due.slices[..]), (2, false, &[SLICE][..]));
        drops.carried_out(&due);
        assert_eq!((drops.due(&tables), drops.of(SLICE, "cart")), (None, 2));
        // That it was done is noted, and what did it may be lost.
        drops.assume(&[SLICE], &tables);
        assert_eq!(drops.due(&tables), Some(due));
        // One that takes all of the name would take what was written since.
        let whole = tables.entries().map(|entry| TableEntry { whole: entry.dropped, ..entry.clone() }).collect();
        let tables = Tables::new(usual, whole, Certainty::Sure);
        let mut drops = Drops::new(vec![SLICE], &[]);
        assert!(drops.due(&tables).is_some_and(|due| due.whole));
        drops.assume(&[SLICE], &tables);
        assert_eq!(drops.due(&tables), None);
    }
}
