//! The tables of one slice, by level.

use super::{
    merge::RunCursor,
    policy::{self, Shape},
};
use crate::engine::{
    cache::BlockCache,
    disk::{Disk, Lane},
    error::EngineError,
    table::{self, Table, TableMeta, filter_hash},
    types::{EngineOptions, Stored},
};
use bytes::Bytes;
use std::{cell::Cell, rc::Rc};

/// The tables of one slice, by level. To be copied on write: the engine keeps an `Rc<TableSet<D>>` and changes it with
/// `Rc::make_mut(..).apply(..)`, so that a read in progress keeps the set that it began with.
///
/// Flushes of a slice are applied oldest first, and every record of a later flush has a higher sequence than every
/// record of an earlier one (a relocated record takes a new sequence too).
///
/// A table of which some part cannot be read is set aside: it is on no level, and compaction goes on as if it were not
/// there, but keeps delete records of its keys. What is found of a key in its range counts only if it is newer than
/// the newest record of that table; anything else might be older than what it holds.
pub struct TableSet<D: Disk> {
    /// Level 0: newest first. The others: by key.
    levels: Vec<Vec<Rc<Table<D>>>>,
    /// Set aside. Those whose level is not [`ASIDE`](table::ASIDE) are not known to the manifest as such yet.
    aside: Vec<TableMeta>,
    /// The last answer of [`TableSet::pressure`], for which options; nothing after a change.
    pressure: Cell<Option<(Bounds, f64)>>,
}
/// The options that the policy goes by.
type Bounds = [usize; 3];

impl<D: Disk> Clone for TableSet<D> {
    fn clone(&self) -> Self {
        TableSet { levels: self.levels.clone(), aside: self.aside.clone(), pressure: self.pressure.clone() }
    }
}
impl<D: Disk> Default for TableSet<D> {
    fn default() -> Self {
        TableSet { levels: Vec::new(), aside: Vec::new(), pressure: Cell::new(None) }
    }
}

impl<D: Disk> TableSet<D> {
    pub fn new() -> TableSet<D> {
        TableSet::default()
    }
    /// Removes the tables `removed` (by id), then puts `added` in at the levels that their metas name: an
    /// [`Outcome`](super::Outcome) with its added tables opened, or one flushed table.
    pub fn apply(&mut self, added: Vec<Rc<Table<D>>>, removed: &[TableMeta]) {
        self.pressure.set(None);
        for level in &mut self.levels {
            level.retain(|table| !removed.iter().any(|gone| gone.id == table.meta().id));
        }
        for table in added {
            let level = usize::from(table.meta().level);
            if self.levels.len() <= level {
                self.levels.resize_with(level + 1, Vec::new);
            }
            self.levels[level].push(table);
        }
        for (number, level) in self.levels.iter_mut().enumerate() {
            if number == 0 {
                level.sort_by_key(|table| std::cmp::Reverse((table.meta().max_sequence, table.meta().id)));
            } else {
                level.sort_by(|a, b| a.meta().smallest.cmp(&b.meta().smallest));
                debug_assert!(level.windows(2).all(|w| w[0].meta().largest < w[1].meta().smallest));
            }
        }
    }

    /// Sets a table aside: the part of it that its meta's keys say. Takes the place of what was set aside of it before.
    pub fn set_aside(&mut self, meta: TableMeta) {
        self.pressure.set(None);
        self.aside.retain(|known| known.id != meta.id);
        self.aside.push(meta);
    }
    pub fn aside(&self) -> &[TableMeta] {
        &self.aside
    }
    /// An error if a table that is set aside may hold a record of this key that is newer than the one found.
    pub fn doubt(&self, key: &[u8], found: Option<u64>) -> Result<(), EngineError> {
        let hides = |table: &&TableMeta| {
            table.smallest <= *key && *key <= table.largest[..] && found.is_none_or(|found| found <= table.max_sequence)
        };
        match self.aside.iter().find(hides) {
            None => Ok(()),
            Some(table) => {
                let file = table::path(table.slice, table.id);
                Err(EngineError::Damaged(format!("{file} at 0: set aside; it may hold a newer record of this key")))
            }
        }
    }
    /// The first key of [from, to) that a table set aside may hold.
    pub fn first_doubt(&self, from: &[u8], to: &[u8]) -> Option<Bytes> {
        let overlapping = self.aside.iter().filter(|table| table.smallest < *to && *from <= table.largest[..]);
        overlapping.map(|table| table.smallest.clone()).min().map(|first| first.max(Bytes::copy_from_slice(from)))
    }

    /// The newest record of a key in any table. A delete record is an answer.
    pub async fn get(&self, key: &[u8], cache: &BlockCache) -> Result<Option<(u64, Stored)>, EngineError> {
        let found = self.find(key, cache).await?;
        self.doubt(key, found.as_ref().map(|(sequence, _)| *sequence))?;
        Ok(found)
    }
    /// False: no table holds a record of this key, for sure, and none that is set aside leaves that in doubt. Reads
    /// nothing.
    pub fn may_hold(&self, key: &[u8]) -> bool {
        let Some((recent, deeper)) = self.levels.split_first() else { return !self.aside.is_empty() };
        let hash = filter_hash(key);
        let surrounds = |table: &&Rc<Table<D>>| table.meta().smallest <= *key && *key <= table.meta().largest[..];
        let deeper = deeper.iter().filter_map(|level| table_of(level, key));
        let mut candidates = recent.iter().filter(surrounds).chain(deeper);
        !self.aside.is_empty() || candidates.any(|table| table.may_hold(hash))
    }
    async fn find(&self, key: &[u8], cache: &BlockCache) -> Result<Option<(u64, Stored)>, EngineError> {
        let Some((recent, deeper)) = self.levels.split_first() else { return Ok(None) };
        let hash = filter_hash(key);
        let mut found: Option<(u64, Stored)> = None;
        for table in recent {
            // Newest first: with disjoint flushes the first hit ends the search.
            let newest = found.as_ref().map(|(sequence, _)| *sequence);
            if newest.is_some_and(|sequence| table.meta().max_sequence <= sequence) {
                break;
            }
            let hit = table.get_hashed(key, hash, cache).await?;
            if hit.as_ref().map(|(sequence, _)| *sequence) > newest {
                found = hit;
            }
        }
        for level in deeper {
            if found.is_some() {
                break;
            }
            if let Some(table) = table_of(level, key) {
                found = table.get_hashed(key, hash, cache).await?;
            }
        }
        Ok(found)
    }

    pub fn tables(&self) -> impl Iterator<Item = &Rc<Table<D>>> {
        self.levels.iter().flatten()
    }
    /// Tables of each level, level 0 newest first, the others by key.
    pub fn levels(&self) -> &[Vec<Rc<Table<D>>>] {
        &self.levels
    }
    /// Tables that may hold keys in [from, to), newest level first.
    pub fn overlapping(&self, from: &[u8], to: &[u8]) -> Vec<Rc<Table<D>>> {
        self.tables().filter(|table| table.overlaps(from, to)).cloned().collect()
    }
    /// Sources for a [`MergeCursor`](super::MergeCursor) over [from, to), newest first: one a table of level 0, one a
    /// deeper level.
    pub fn sources(&self, from: &[u8], to: &[u8], lane: Lane) -> Vec<RunCursor<D>> {
        let within =
            |level: &[Rc<Table<D>>]| level.iter().filter(|t| t.overlaps(from, to)).cloned().collect::<Vec<_>>();
        let Some((recent, deeper)) = self.levels.split_first() else { return Vec::new() };
        let recent = within(recent).into_iter().map(|table| vec![table]);
        let runs = recent.chain(deeper.iter().map(|level| within(level))).filter(|run| !run.is_empty());
        runs.map(|run| RunCursor::new(run, lane)).collect()
    }

    /// Bytes that lie above the bound of their level and are still to be moved down.
    pub fn backlog_bytes(&self, options: &EngineOptions) -> u64 {
        policy::backlog_bytes(&self.shape(), options)
    }
    /// The urgency of this slice's compaction, by which a slice is picked: [`choose`](super::choose) finds something
    /// exactly when it is 1 or more. It is cheap to ask while the set does not change.
    pub fn pressure(&self, options: &EngineOptions) -> f64 {
        let bounds = [options.table_bytes, options.level0_tables, options.level_factor];
        match self.pressure.get() {
            Some((known, pressure)) if known == bounds => pressure,
            _ => {
                let pressure =
                    policy::plan_beside(&self.shape(), &self.aside, options).map_or(0.0, |plan| plan.pressure);
                self.pressure.set(Some((bounds, pressure)));
                pressure
            }
        }
    }
    /// Bytes of all files, those of tables set aside too.
    pub fn bytes(&self) -> u64 {
        self.tables().map(|table| table.meta()).chain(&self.aside).map(|meta| meta.bytes).sum()
    }
    /// Bytes of memory that the open tables take.
    pub fn memory_bytes(&self) -> u64 {
        self.tables().map(|table| table.memory_bytes()).sum()
    }
    pub(super) fn shape(&self) -> Shape<'_> {
        self.levels.iter().map(|level| level.iter().map(|table| table.meta()).collect()).collect()
    }
}

/// The only table of a level (not level 0) whose keys surround this one.
pub(super) fn table_of<'a, D: Disk>(level: &'a [Rc<Table<D>>], key: &[u8]) -> Option<&'a Rc<Table<D>>> {
    let table = level.get(level.partition_point(|table| &table.meta().largest[..] < key))?;
    (&table.meta().smallest[..] <= key).then_some(table)
}
