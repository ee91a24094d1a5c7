//! The heads of one slice as they were at one moment, to be walked while writes, flushes, compactions and collections
//! go on: in pages, or as one fold over a range, which copies nothing out of the tables.
//!
//! A snapshot holds the tables of its moment (their files stay open after they are removed) and a copy of what was in
//! memory: at most a memtable's budget, keys and heads shared with it. It never touches the log, so it keeps no
//! segment. Records that were not durable at its moment are not in it.

use super::{
    compaction::{AnySource, MemorySource, MergeCursor, Source, TableSet},
    disk::{Disk, Lane},
    drops::Drops,
    error::EngineError,
    memtable::Memtable,
    store::{Slice, Store},
    types::Stored,
};
use bytes::Bytes;
use std::{cmp::Ordering, rc::Rc};

/// Records that a scan walks before it lets other work of the core have its turn.
const RECORDS_PER_BREATH: usize = 256;

/// Keys and heads of a slice at one moment. Cheap to clone.
pub struct Snapshot<D: Disk> {
    store: Rc<Store<D>>,
    memory: Rc<Vec<(Bytes, u64, Stored)>>,
    tables: Rc<TableSet<D>>,
    drops: Rc<Drops>,
}
impl<D: Disk> Clone for Snapshot<D> {
    fn clone(&self) -> Snapshot<D> {
        let (store, memory) = (self.store.clone(), self.memory.clone());
        Snapshot { store, memory, tables: self.tables.clone(), drops: self.drops.clone() }
    }
}

impl<D: Disk> Snapshot<D> {
    pub(super) fn new(store: &Rc<Store<D>>, slice: &Slice<D>) -> Snapshot<D> {
        let sealed = slice.sealed.borrow().clone().unwrap_or_default();
        let all = [u8::MAX; super::types::ENGINE_KEY_BYTES_MAX + 1];
        let drops = Rc::new(slice.drops.borrow().clone());
        let memory = Rc::new(recent(&drops, &slice.active.borrow(), &sealed, &[], &all, usize::MAX));
        Snapshot { store: store.clone(), memory, tables: slice.tables.borrow().clone(), drops }
    }
    /// Keys and heads of `[from, to)` in order, at most `limit`, deleted keys left out. For the next page begin right
    /// after the last key.
    pub async fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let begin = self.memory.partition_point(|(key, ..)| &key[..] < from);
        let end = self.memory.partition_point(|(key, ..)| &key[..] < to);
        let mut memory = Vec::new();
        let mut live = 0;
        for record in &self.memory[begin..end] {
            if live >= limit {
                break;
            }
            live += usize::from(record.2 != Stored::Delete && !self.drops.hides(&record.0, record.1, record.2.head()));
            memory.push(record.clone());
        }
        walk(&self.store, memory, &self.tables, &self.drops, from, to, limit).await
    }
}

/// Merges records in memory with tables.
pub(super) async fn walk<D: Disk>(
    store: &Store<D>,
    memory: Vec<(Bytes, u64, Stored)>,
    tables: &TableSet<D>,
    drops: &Drops,
    from: &[u8],
    to: &[u8],
    limit: usize,
) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
    store.check()?;
    let mut found = Vec::new();
    if from >= to || limit == 0 {
        return Ok(found);
    }
    let mut sources = vec![AnySource::Memory(MemorySource::new(memory))];
    sources.extend(tables.sources(from, to, Lane::Background).into_iter().map(AnySource::Run));
    // Nothing from here on is known to be complete.
    let doubt = tables.first_doubt(from, to);
    let mut cursor = MergeCursor::open(sources, from).await?;
    let mut steps = 0usize;
    while found.len() < limit {
        let next = cursor.next().await?.and_then(|source| Some((source, source.peek()?)));
        let next = next.filter(|(_, (key, _))| *key < to);
        if let Some(doubt) = &doubt
            && next.as_ref().is_none_or(|(_, (key, _))| *key >= &doubt[..])
        {
            tables.doubt(doubt, None)?;
        }
        let Some((source, (key, sequence))) = next else { break };
        if let Some(head) = source.head()?.filter(|head| !drops.hides(key, sequence, head)) {
            found.push((Bytes::copy_from_slice(key), head));
        }
        steps += 1;
        if steps.is_multiple_of(RECORDS_PER_BREATH) {
            store.disk.breathe().await;
        }
    }
    Ok(found)
}

/// Shows a visitor keys and heads of `[from, to)`, in order and in place; gives how many there were. `memory`: the
/// records in memory of that range. Holds the tables of its moment open until it ends.
pub(super) async fn fold<D: Disk>(
    store: &Store<D>,
    memory: Vec<(Bytes, u64, Stored)>,
    tables: &TableSet<D>,
    drops: &Drops,
    (from, to): (&[u8], &[u8]),
    mut visitor: impl FnMut(&[u8], &[u8]),
) -> Result<u64, EngineError> {
    store.check()?;
    if from >= to {
        return Ok(0);
    }
    if let Some(doubt) = tables.first_doubt(from, to) {
        tables.doubt(&doubt, None)?;
    }
    let mut sources = vec![AnySource::Memory(MemorySource::new(memory))];
    sources.extend(tables.sources(from, to, Lane::Background).into_iter().map(AnySource::Run));
    let mut cursor = MergeCursor::open(sources, from).await?;
    let (mut visited, mut steps) = (0, 0usize);
    while let Some(source) = cursor.next().await? {
        let Some((key, sequence)) = source.peek().filter(|(key, _)| *key < to) else { break };
        if let Some(head) = source.head_bytes()?.filter(|head| !drops.hides(key, sequence, head)) {
            visitor(key, head);
            visited += 1;
        }
        steps += 1;
        if steps.is_multiple_of(RECORDS_PER_BREATH) {
            store.disk.breathe().await;
            store.check()?;
        }
    }
    Ok(visited)
}

/// The records of both memtables, the active one's first, up to the `limit`-th that is neither a delete record nor
/// hidden: a scan ends there at the latest.
pub(super) fn recent(
    drops: &Drops,
    active: &Memtable,
    sealed: &Memtable,
    from: &[u8],
    to: &[u8],
    limit: usize,
) -> Vec<(Bytes, u64, Stored)> {
    let (mut active, mut sealed) = (active.range(from, to).peekable(), sealed.range(from, to).peekable());
    let mut records = Vec::new();
    let mut live = 0;
    while live < limit {
        let order = match (active.peek(), sealed.peek()) {
            (Some((newer, _)), Some((older, _))) => newer.cmp(older),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => break,
        };
        let next = if order == Ordering::Greater { sealed.next() } else { active.next() };
        if order == Ordering::Equal {
            sealed.next();
        }
        let Some((key, entry)) = next else { break };
        live += usize::from(entry.stored != Stored::Delete && !drops.hides(key, entry.sequence, entry.stored.head()));
        records.push((key.clone(), entry.sequence, entry.stored.clone()));
    }
    records
}
