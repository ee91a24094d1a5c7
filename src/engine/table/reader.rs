//! An open table: its filter and index in memory, its blocks behind one read each.

use super::{
    TableMeta,
    block::Block,
    cursor::Cursor,
    filter::{self, Filter},
    footer::Footer,
    index::Index,
    path,
    record::RecordRef,
    section::{self, Flaw, Kind, Place},
};
use crate::{
    engine::{
        cache::BlockCache,
        disk::{Disk, DiskFile, Lane, OpenMode, PageBuffer},
        error::EngineError,
        types::Stored,
    },
    limits::PAGE,
    types::SliceId,
};
use bytes::Bytes;
use std::{cell::RefCell, io, ops::Range, rc::Rc};

/// An open table. The file stays open as long as someone holds it, so a read in progress outlives its removal.
pub struct Table<D: Disk> {
    meta: TableMeta,
    file: Rc<D::File>,
    /// None when memory was short.
    filter: RefCell<Option<Filter>>,
    index: Index,
}

/// The error that readers of a table see: what is wrong with it, and where.
pub(super) fn damaged(slice: SliceId, id: u64, offset: u64, flaw: Flaw) -> EngineError {
    EngineError::Damaged(format!("{} at {offset}: {}", path(slice, id), flaw.0))
}

/// A missing file is damage; one that cannot be opened for other reasons says nothing of what is in it.
fn open_failed(slice: SliceId, id: u64, error: io::Error) -> EngineError {
    match error.kind() {
        io::ErrorKind::NotFound => damaged(slice, id, 0, Flaw("the file is missing")),
        _ => EngineError::Failed(format!("{}: {error}", path(slice, id))),
    }
}

/// A read that fails is damage to this table, whatever the reason.
pub(super) fn read_failed(slice: SliceId, id: u64, offset: u64, error: io::Error) -> EngineError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged(slice, id, offset, Flaw("the file ends early")),
        _ => EngineError::unreadable(&path(slice, id), offset, &error),
    }
}

/// Everything of a table but its blocks, verified.
pub(super) struct Parts<F> {
    pub file: Rc<F>,
    pub footer: Footer,
    pub filter: Filter,
    pub index: Index,
}

/// Opens the file of a table and reads what is behind its blocks.
pub(super) async fn read_parts<D: Disk>(disk: &D, slice: SliceId, id: u64) -> Result<Parts<D::File>, EngineError> {
    let failed = |offset| move |e| read_failed(slice, id, offset, e);
    let file = disk.open(&path(slice, id), OpenMode::Read).await.map_err(|e| open_failed(slice, id, e))?;
    let bytes = file.len().map_err(failed(0))?;
    if !bytes.is_multiple_of(PAGE as u64) || bytes < 4 * PAGE as u64 {
        return Err(damaged(slice, id, bytes, Flaw("a wrong file length")));
    }
    let offset = bytes - PAGE as u64;
    let page = file.read(offset, PAGE, Lane::Foreground).await.map_err(failed(offset))?;
    let footer = Footer::decode(page.as_slice(), slice, id, bytes)?;
    let (index, filter) = (footer.index(), footer.filter());
    // The footer is verified and its parts fit the file, so this length is bounded by the file's.
    let length = (filter.end - index.start) as usize;
    let parts = file.read(index.start, length, Lane::Foreground).await.map_err(failed(index.start))?;
    let (index_pages, filter_pages) = parts.as_slice().split_at((index.end - index.start) as usize);
    let at = |offset| (Place { slice, table: id, offset }, move |flaw| damaged(slice, id, offset, flaw));

    let (place, flaw) = at(index.start);
    let section = section::open(index_pages, Kind::Index, place).map_err(flaw)?;
    if section.count != footer.blocks {
        return Err(flaw(Flaw("wrong count of blocks")));
    }
    let index = Index::decode(section.count, section.body, index.start).map_err(flaw)?;
    let (place, flaw) = at(filter.start);
    let section = section::open(filter_pages, Kind::Filter, place).map_err(flaw)?;
    let filter = Filter::decode(section.count, section.body).map_err(flaw)?;
    Ok(Parts { file, footer, filter, index })
}

impl<D: Disk> Table<D> {
    /// Reads and verifies footer, index and filter, and checks them against what the manifest says.
    pub async fn open(disk: &Rc<D>, meta: TableMeta) -> Result<Rc<Table<D>>, EngineError> {
        let parts = read_parts(&**disk, meta.slice, meta.id).await?;
        // A table keeps its bytes when it changes its level.
        let written = TableMeta { level: meta.level, ..parts.footer.meta };
        if written != meta {
            return Err(damaged(meta.slice, meta.id, meta.bytes, Flaw("not the table that the manifest names")));
        }
        Ok(Rc::new(Table { meta, file: parts.file, filter: RefCell::new(Some(parts.filter)), index: parts.index }))
    }

    pub fn meta(&self) -> &TableMeta {
        &self.meta
    }
    /// Bytes of memory for filter, index and the two keys.
    pub fn memory_bytes(&self) -> u64 {
        let keys = self.meta.smallest.len() + self.meta.largest.len();
        (size_of::<Self>() + self.filter_bytes() + self.index.memory_bytes() + keys) as u64
    }
    /// Bytes of memory for the filter; 0 without one.
    pub fn filter_bytes(&self) -> usize {
        self.filter.borrow().as_ref().map_or(0, Filter::memory_bytes)
    }
    /// Gives up the filter: from now on every look at this table costs a block.
    pub fn forgo_filter(&self) {
        self.filter.replace(None);
    }
    /// Whether some key in [from, to) may be there, by the first and last key.
    pub fn overlaps(&self, from: &[u8], to: &[u8]) -> bool {
        self.meta.smallest < to && from <= &self.meta.largest[..]
    }
    /// False: the key with this [`filter::hash`] is not there, for sure.
    pub fn may_hold(&self, hash: u64) -> bool {
        self.filter.borrow().as_ref().is_none_or(|filter| filter.may_hold(hash))
    }

    /// The record of a key: its sequence and what is stored. At most one device read; none for 99 % of the keys that
    /// are not there. What is returned is a copy.
    pub async fn get(&self, key: &[u8], cache: &BlockCache) -> Result<Option<(u64, Stored)>, EngineError> {
        self.get_hashed(key, filter::hash(key), cache).await
    }

    /// Does the same as [`Table::get`], with the key's [`filter::hash`] given, so that it is computed once for several
    /// tables.
    pub async fn get_hashed(
        &self,
        key: &[u8],
        hash: u64,
        cache: &BlockCache,
    ) -> Result<Option<(u64, Stored)>, EngineError> {
        if !self.may_hold(hash) {
            return Ok(None);
        }
        let block = self.index.block_of(key);
        let bytes = match cache.get(self.meta.slice, self.meta.id, block) {
            Some(bytes) => bytes,
            None => self.read_block(block, cache).await?,
        };
        Self::find(&bytes, key).map_err(|flaw| self.damaged(block, flaw))
    }

    fn find(block: &[u8], key: &[u8]) -> Result<Option<(u64, Stored)>, Flaw> {
        let block = Block::cached(block)?;
        let (index, found) = block.search(key)?;
        if !found {
            return Ok(None);
        }
        let record = block.record(index)?;
        Ok(Some((record.sequence, record.stored()?)))
    }

    /// Reads, verifies and caches a block; gives it without its padding.
    async fn read_block(&self, block: u32, cache: &BlockCache) -> Result<Bytes, EngineError> {
        let range = self.index.range(block);
        let pages = self.read(range.clone(), Lane::Foreground).await?;
        section::open(pages.as_slice(), Kind::Records, self.place(range.start))
            .map_err(|flaw| self.damaged(block, flaw))?;
        let bytes = Bytes::copy_from_slice(section::unpadded(pages.as_slice()));
        cache.insert(self.meta.slice, self.meta.id, block, bytes.clone());
        Ok(bytes)
    }

    /// Blocks of records, at least 1.
    pub fn blocks(&self) -> u32 {
        self.index.blocks()
    }
    /// The records of one block, verified and copied out: for who saves what can be read.
    pub async fn records(&self, block: u32, lane: Lane) -> Result<Vec<(Bytes, u64, Stored)>, EngineError> {
        let range = self.index.range(block);
        let pages = self.read(range.clone(), lane).await?;
        let copied = section::open(pages.as_slice(), Kind::Records, self.place(range.start))
            .and_then(Block::new)
            .and_then(|block| {
                let record = |index| {
                    let record = block.record(index)?;
                    Ok((Bytes::copy_from_slice(record.key), record.sequence, record.stored()?))
                };
                (0..block.count()).map(record).collect()
            });
        copied.map_err(|flaw| self.damaged(block, flaw))
    }
    /// Bounds of the keys that a block may hold: no key outside of them is in it.
    pub fn keys_of(&self, block: u32) -> (Bytes, Bytes) {
        let bound = |block| Bytes::copy_from_slice(self.index.separator(block));
        let smallest = if block == 0 { self.meta.smallest.clone() } else { bound(block) };
        let last = block + 1 >= self.index.blocks();
        (smallest, if last { self.meta.largest.clone() } else { bound(block + 1) })
    }

    /// A cursor that stands nowhere yet: [`Cursor::seek`] places it.
    pub fn cursor(self: &Rc<Self>, lane: Lane) -> Cursor<D> {
        Cursor::new(self.clone(), lane)
    }

    pub(super) fn index(&self) -> &Index {
        &self.index
    }
    pub(super) fn place(&self, offset: u64) -> Place {
        Place { slice: self.meta.slice, table: self.meta.id, offset }
    }
    pub(super) fn damaged(&self, block: u32, flaw: Flaw) -> EngineError {
        damaged(self.meta.slice, self.meta.id, self.index.range(block).start, flaw)
    }
    /// Reads a range of the file that the index has named.
    pub(super) async fn read(&self, range: Range<u64>, lane: Lane) -> Result<PageBuffer, EngineError> {
        let bytes = (range.end - range.start) as usize;
        let read = self.file.read(range.start, bytes, lane).await;
        read.map_err(|e| read_failed(self.meta.slice, self.meta.id, range.start, e))
    }
}

/// A place in a block: the record's key, sequence and body by their positions.
#[derive(Clone, Debug, Default)]
pub(super) struct Position {
    key: Range<u32>,
    sequence: u64,
    body_end: u32,
    body: u32,
}
impl Position {
    /// `record` lies within `buffer`.
    pub fn of(buffer: &[u8], record: Range<usize>) -> Result<Position, Flaw> {
        let bytes = buffer.get(record.clone()).ok_or(Flaw("records out of place"))?;
        let decoded = RecordRef::decode(bytes)?;
        let key = record.start as u32 + 2;
        Ok(Position {
            key: key..key + decoded.key.len() as u32,
            sequence: decoded.sequence,
            body_end: record.end as u32,
            body: (record.end - decoded.body.len()) as u32,
        })
    }
    pub fn record<'a>(&self, buffer: &'a [u8]) -> RecordRef<'a> {
        RecordRef {
            key: &buffer[self.key.start as usize..self.key.end as usize],
            sequence: self.sequence,
            body: &buffer[self.body as usize..self.body_end as usize],
        }
    }
}
