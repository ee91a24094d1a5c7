//! Sorted sources of records merged into one stream.

use crate::engine::{
    disk::{Disk, Lane},
    error::EngineError,
    table::{Cursor, RecordRef, Table},
    types::Stored,
};
use bytes::Bytes;
use smallvec::SmallVec;
use std::rc::Rc;

/// A sorted stream of records with unique keys.
pub trait Source {
    /// Moves to the first record whose key is at least `from`. What it stood on before does not matter.
    fn seek(&mut self, from: &[u8]) -> impl Future<Output = Result<(), EngineError>>;
    /// Key and sequence of the record that it stands on; nothing at the end.
    fn peek(&self) -> Option<(&[u8], u64)>;
    /// The record that it stands on, copied out; `None` at the end.
    fn stored(&self) -> Result<Option<Stored>, EngineError>;
    /// The head of the record that it stands on, copied out; `None` for a delete record and at the end.
    fn head(&self) -> Result<Option<Bytes>, EngineError>;
    /// The same in place.
    fn head_bytes(&self) -> Result<Option<&[u8]>, EngineError>;
    /// Moves to the next record.
    fn advance(&mut self) -> impl Future<Output = Result<(), EngineError>>;
}

/// A run of tables that follow each other without overlap, walked as one. One table is open to reading at a time.
pub struct RunCursor<D: Disk> {
    tables: Vec<Rc<Table<D>>>,
    lane: Lane,
    /// All of it is wanted: each table is read far ahead from the start.
    whole: bool,
    /// The table it stands in.
    table: usize,
    cursor: Option<Cursor<D>>,
}
impl<D: Disk> RunCursor<D> {
    /// `tables` in key order.
    pub fn new(tables: Vec<Rc<Table<D>>>, lane: Lane) -> RunCursor<D> {
        RunCursor { tables, lane, whole: false, table: 0, cursor: None }
    }
    /// A cursor for a reader that wants every record: it reads far ahead from the start.
    pub fn whole(tables: Vec<Rc<Table<D>>>, lane: Lane) -> RunCursor<D> {
        RunCursor { whole: true, ..RunCursor::new(tables, lane) }
    }
    /// The record that it stands on; nothing before the first seek and at the end.
    pub fn record(&self) -> Option<RecordRef<'_>> {
        self.cursor.as_ref()?.record()
    }
    /// Moves to the first record from `from` on in the table of this index, if there is such a table.
    async fn enter(&mut self, table: usize, from: &[u8]) -> Result<(), EngineError> {
        self.table = table;
        let cursor = self.tables.get(table).map(|table| table.cursor(self.lane));
        self.cursor = cursor.map(|cursor| if self.whole { cursor.whole() } else { cursor });
        match &mut self.cursor {
            Some(cursor) => cursor.seek(from).await,
            None => Ok(()),
        }
    }
    /// Goes on to the next table if this one has ended.
    async fn settle(&mut self) -> Result<(), EngineError> {
        while self.cursor.is_some() && self.record().is_none() {
            self.enter(self.table + 1, &[]).await?;
        }
        Ok(())
    }
    /// The error for a record in hand that cannot be read: its block is damaged.
    pub(super) fn damaged(&self, flaw: crate::engine::table::Flaw) -> EngineError {
        let meta = self.tables.get(self.table).map(|table| table.meta());
        let file = meta.map_or_else(String::new, |meta| crate::engine::table::path(meta.slice, meta.id));
        EngineError::Damaged(format!("{file}: a record: {}", flaw.0))
    }
}
impl<D: Disk> Source for RunCursor<D> {
    async fn seek(&mut self, from: &[u8]) -> Result<(), EngineError> {
        let table = self.tables.partition_point(|table| &table.meta().largest[..] < from);
        self.enter(table, from).await?;
        self.settle().await
    }
    fn peek(&self) -> Option<(&[u8], u64)> {
        self.record().map(|record| (record.key, record.sequence))
    }
    fn stored(&self) -> Result<Option<Stored>, EngineError> {
        self.record().map(|record| record.stored()).transpose().map_err(|flaw| self.damaged(flaw))
    }
    fn head(&self) -> Result<Option<Bytes>, EngineError> {
        Ok(self.head_bytes()?.map(Bytes::copy_from_slice))
    }
    fn head_bytes(&self) -> Result<Option<&[u8]>, EngineError> {
        let Some(record) = self.record() else { return Ok(None) };
        record.head().map_err(|flaw| self.damaged(flaw))
    }
    async fn advance(&mut self) -> Result<(), EngineError> {
        let Some(cursor) = &mut self.cursor else { return Ok(()) };
        cursor.advance().await?;
        self.settle().await
    }
}

/// Records of a memtable, copied out for one scan.
#[derive(Clone, Debug, Default)]
pub struct MemorySource {
    records: Vec<(Bytes, u64, Stored)>,
    at: usize,
}
impl MemorySource {
    /// Key, sequence, record; keys strictly increase.
    pub fn new(records: Vec<(Bytes, u64, Stored)>) -> MemorySource {
        MemorySource { records, at: 0 }
    }
}
impl Source for MemorySource {
    async fn seek(&mut self, from: &[u8]) -> Result<(), EngineError> {
        self.at = self.records.partition_point(|(key, ..)| &key[..] < from);
        Ok(())
    }
    fn peek(&self) -> Option<(&[u8], u64)> {
        self.records.get(self.at).map(|(key, sequence, _)| (&key[..], *sequence))
    }
    fn stored(&self) -> Result<Option<Stored>, EngineError> {
        Ok(self.records.get(self.at).map(|(.., stored)| stored.clone()))
    }
    fn head(&self) -> Result<Option<Bytes>, EngineError> {
        Ok(self.records.get(self.at).and_then(|(.., stored)| match stored {
            Stored::Put { head, .. } => Some(head.clone()),
            Stored::Delete => None,
        }))
    }
    fn head_bytes(&self) -> Result<Option<&[u8]>, EngineError> {
        Ok(self.records.get(self.at).and_then(|(.., stored)| match stored {
            Stored::Put { head, .. } => Some(&head[..]),
            Stored::Delete => None,
        }))
    }
    async fn advance(&mut self) -> Result<(), EngineError> {
        self.at = (self.at + 1).min(self.records.len());
        Ok(())
    }
}

/// A source of a scan: a table or a memtable.
pub enum AnySource<D: Disk> {
    Memory(MemorySource),
    Run(RunCursor<D>),
}
impl<D: Disk> From<MemorySource> for AnySource<D> {
    fn from(source: MemorySource) -> Self {
        AnySource::Memory(source)
    }
}
impl<D: Disk> From<RunCursor<D>> for AnySource<D> {
    fn from(source: RunCursor<D>) -> Self {
        AnySource::Run(source)
    }
}
impl<D: Disk> Source for AnySource<D> {
    async fn seek(&mut self, from: &[u8]) -> Result<(), EngineError> {
        match self {
            AnySource::Memory(source) => source.seek(from).await,
            AnySource::Run(source) => source.seek(from).await,
        }
    }
    fn peek(&self) -> Option<(&[u8], u64)> {
        match self {
            AnySource::Memory(source) => source.peek(),
            AnySource::Run(source) => source.peek(),
        }
    }
    fn stored(&self) -> Result<Option<Stored>, EngineError> {
        match self {
            AnySource::Memory(source) => source.stored(),
            AnySource::Run(source) => source.stored(),
        }
    }
    fn head(&self) -> Result<Option<Bytes>, EngineError> {
        match self {
            AnySource::Memory(source) => source.head(),
            AnySource::Run(source) => source.head(),
        }
    }
    fn head_bytes(&self) -> Result<Option<&[u8]>, EngineError> {
        match self {
            AnySource::Memory(source) => source.head_bytes(),
            AnySource::Run(source) => source.head_bytes(),
        }
    }
    async fn advance(&mut self) -> Result<(), EngineError> {
        match self {
            AnySource::Memory(source) => source.advance().await,
            AnySource::Run(source) => source.advance().await,
        }
    }
}

/// Merges sources into one stream: of each key, the record with the highest sequence; of equal sequences, that of the
/// first source.
pub struct MergeCursor<S> {
    sources: Vec<S>,
    /// The source whose record was given last and is to be left behind.
    current: Option<usize>,
}
impl<S: Source> MergeCursor<S> {
    /// Places every source at `from`. Sources are few (a level is one), so the next key is found by comparing them all.
    pub async fn open(mut sources: Vec<S>, from: &[u8]) -> Result<MergeCursor<S>, EngineError> {
        for source in &mut sources {
            source.seek(from).await?;
        }
        Ok(MergeCursor { sources, current: None })
    }
    /// Moves to the next key and gives the source that stands on its newest record; nothing at the end. Delete records
    /// are given too. Does not breathe: who calls it in a long loop does.
    pub async fn next(&mut self) -> Result<Option<&S>, EngineError> {
        self.next_and(|_| Ok(())).await
    }
    /// Does the same as [`MergeCursor::next`], and calls `older` for each source that stands on an older record of the
    /// key.
    pub async fn next_and(
        &mut self,
        mut older: impl FnMut(&S) -> Result<(), EngineError>,
    ) -> Result<Option<&S>, EngineError> {
        if let Some(current) = self.current.take() {
            self.sources[current].advance().await?;
        }
        let Some((newest, others)) = self.newest() else { return Ok(None) };
        for other in others {
            older(&self.sources[other])?;
            self.sources[other].advance().await?;
        }
        self.current = Some(newest);
        Ok(Some(&self.sources[newest]))
    }
    /// Finds the smallest key: the source that holds its newest record, and the sources that hold older ones.
    fn newest(&self) -> Option<(usize, SmallVec<[usize; 8]>)> {
        let mut best: Option<(usize, &[u8], u64)> = None;
        let mut others = SmallVec::new();
        for (index, source) in self.sources.iter().enumerate() {
            let Some((key, sequence)) = source.peek() else { continue };
            match best {
                Some((_, smallest, _)) if key > smallest => {}
                Some((before, smallest, highest)) if key == smallest => {
                    others.push(if sequence > highest { before } else { index });
                    if sequence > highest {
                        best = Some((index, key, sequence));
                    }
                }
                _ => {
                    others.clear();
                    best = Some((index, key, sequence));
                }
            }
        }
        best.map(|(newest, ..)| (newest, others))
    }
}
