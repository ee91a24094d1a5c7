//! Compaction (signatures first; bodies follow).

use crate::{
    engine::{
        cache::BlockCache,
        disk::{Disk, Lane},
        error::EngineError,
        table::{Cursor, Table, TableMeta},
        types::{EngineOptions, Stored, ValuePointer},
    },
    types::SliceId,
};
use bytes::Bytes;
use std::rc::Rc;

/// The tables of one slice, by level. A cheap clone to copy on write: the engine keeps an `Rc<TableSet<D>>` and changes
/// it with `Rc::make_mut(..).apply(..)`, so that a read in progress keeps the set that it began with.
///
/// Flushes of a slice are applied oldest first, and every record of a later flush has a higher sequence than every
/// record of an earlier one (a relocated record takes a new sequence too).
pub struct TableSet<D: Disk> {
    levels: Vec<Vec<Rc<Table<D>>>>,
}
impl<D: Disk> Clone for TableSet<D> {
    fn clone(&self) -> Self {
        TableSet { levels: self.levels.clone() }
    }
}
impl<D: Disk> Default for TableSet<D> {
    fn default() -> Self {
        TableSet { levels: Vec::new() }
    }
}
impl<D: Disk> TableSet<D> {
    pub fn new() -> TableSet<D> {
        TableSet::default()
    }
    /// Takes out `removed` (by id), then puts in `added` at the level of their meta.
    pub fn apply(&mut self, added: Vec<Rc<Table<D>>>, removed: &[TableMeta]) {
        let _ = (added, removed);
    }
    pub fn tables(&self) -> impl Iterator<Item = &Rc<Table<D>>> {
        self.levels.iter().flatten()
    }
    /// The newest record of a key in any table; `Stored::Delete` is a record.
    pub async fn get(&self, key: &[u8], cache: &BlockCache) -> Result<Option<(u64, Stored)>, EngineError> {
        let _ = (key, cache);
        Ok(None)
    }
    /// Tables that may hold keys in [from, to), newest first.
    pub fn overlapping(&self, from: &[u8], to: &[u8]) -> Vec<Rc<Table<D>>> {
        let _ = (from, to);
        Vec::new()
    }
    /// Sources for a [`MergeCursor`] over [from, to), newest first. They still have to be placed with
    /// [`Source::seek`].
    pub fn sources(&self, from: &[u8], to: &[u8], lane: Lane) -> Vec<RunCursor<D>> {
        let _ = (from, to, lane);
        Vec::new()
    }
    /// Bytes that compaction still has to move to bring every level within its bound.
    pub fn backlog_bytes(&self, options: &EngineOptions) -> u64 {
        let _ = options;
        0
    }
    /// How urgent this slice's compaction is: 1 and more means that [`choose`] finds something. For picking a slice.
    pub fn pressure(&self, options: &EngineOptions) -> f64 {
        let _ = options;
        0.0
    }
    pub fn bytes(&self) -> u64 {
        self.tables().map(|t| t.meta().bytes).sum()
    }
    pub fn memory_bytes(&self) -> u64 {
        self.tables().map(|t| t.memory_bytes()).sum()
    }
}

/// What compaction of a slice does next.
pub enum Choice<D: Disk> {
    /// Nothing to do.
    Rest,
    /// A table changes its level, its bytes stay: [`run`] gives the same id in `removed` and in `added`.
    Move {
        table: Rc<Table<D>>,
        to: u8,
    },
    Merge(Merge<D>),
}
/// Tables to be merged into one level.
pub struct Merge<D: Disk> {
    /// Runs of tables that do not overlap within the run, newest run first.
    pub runs: Vec<Vec<Rc<Table<D>>>>,
    pub to: u8,
    /// Tables of deeper levels that overlap: a delete record that covers one of their keys is kept.
    pub deeper: Vec<Vec<Rc<Table<D>>>>,
}

/// Pure: the same set and options give the same choice.
pub fn choose<D: Disk>(set: &TableSet<D>, options: &EngineOptions) -> Choice<D> {
    let _ = (set, options);
    Choice::Rest
}

/// What a compaction did. The order for the caller: sync the slice's directory, write the manifest durably, apply to
/// the [`TableSet`], then delete the files of [`Outcome::obsolete`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    pub added: Vec<TableMeta>,
    pub removed: Vec<TableMeta>,
    /// Values that no table of this slice refers to any more on account of this compaction; each once.
    pub dropped: Vec<ValuePointer>,
    pub read_bytes: u64,
    pub written_bytes: u64,
}
impl Outcome {
    /// Ids of tables whose files may be deleted after the manifest is durable: removed and not added again (moved).
    pub fn obsolete(&self) -> impl Iterator<Item = u64> {
        self.removed.iter().map(|t| t.id).filter(|id| !self.added.iter().any(|a| a.id == *id))
    }
}

/// Does what was chosen. One compaction of a slice at a time; flushes may go on meanwhile. Breathes by itself. After
/// an error its new files are removed as far as possible and nothing has changed; dropping the future leaves files
/// that no manifest names.
pub async fn run<D: Disk>(
    disk: &Rc<D>,
    slice: SliceId,
    choice: Choice<D>,
    options: &EngineOptions,
    next_id: impl FnMut() -> u64,
) -> Result<Outcome, EngineError> {
    let _ = (disk, slice, choice, options, next_id);
    Ok(Outcome::default())
}

/// A sorted stream of records with unique keys.
pub trait Source {
    /// Moves to the first record whose key is at least `from`.
    fn seek(&mut self, from: &[u8]) -> impl Future<Output = Result<(), EngineError>>;
    /// The key and sequence of the record that it stands on; nothing at the end.
    fn peek(&self) -> Option<(&[u8], u64)>;
    /// The record that it stands on, decoded. `None` at the end.
    fn stored(&self) -> Result<Option<Stored>, EngineError>;
    /// The head of the record that it stands on; `None` for a delete record or at the end.
    fn head(&self) -> Result<Option<Bytes>, EngineError>;
    /// Moves to the next record.
    fn advance(&mut self) -> impl Future<Output = Result<(), EngineError>>;
}

/// A run of tables that do not overlap, walked as one.
pub struct RunCursor<D: Disk> {
    tables: Vec<Rc<Table<D>>>,
    cursor: Option<Cursor<D>>,
}
impl<D: Disk> RunCursor<D> {
    pub fn new(tables: Vec<Rc<Table<D>>>, lane: Lane) -> RunCursor<D> {
        let cursor = tables.first().map(|t| t.cursor(lane));
        RunCursor { tables, cursor }
    }
    /// Tables in the run.
    pub fn tables(&self) -> usize {
        self.tables.len() + usize::from(self.cursor.is_none())
    }
}

/// Records of a memtable, copied out for one scan: ordered by key, keys unique.
pub struct MemorySource {
    pub records: Vec<(Bytes, u64, Stored)>,
}

/// One of the sources of a scan.
pub enum AnySource<D: Disk> {
    Memory(MemorySource),
    Run(RunCursor<D>),
}

/// Merges sources (newest first) into one stream: of each key, the record with the highest sequence.
pub struct MergeCursor<S> {
    sources: Vec<S>,
}
impl<S: Source> MergeCursor<S> {
    /// Places every source at `from`.
    pub async fn open(sources: Vec<S>, from: &[u8]) -> Result<MergeCursor<S>, EngineError> {
        let _ = from;
        Ok(MergeCursor { sources })
    }
    /// Moves to the next key and gives the source that stands on its newest record. Nothing at the end.
    pub async fn next(&mut self) -> Result<Option<&S>, EngineError> {
        Ok(self.sources.first())
    }
}
