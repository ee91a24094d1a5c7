//! Walks a table in key order, reading ahead; passes by the block cache, so that a scan leaves it as it was.

use super::{
    block::Block,
    reader::{Position, Table},
    record::RecordRef,
    section::{self, Flaw, HEADER_BYTES, Kind},
};
use crate::{
    engine::{
        disk::{Disk, Lane, PageBuffer},
        error::EngineError,
    },
    limits::{TABLE_READ_AHEAD_BYTES, TABLE_READ_FIRST_BYTES},
};
use std::{ops::Range, rc::Rc};

/// Stands on a record of a table, or at its end. Holds one read buffer of at most [`TABLE_READ_AHEAD_BYTES`] or one
/// larger block.
pub struct Cursor<D: Disk> {
    table: Rc<Table<D>>,
    lane: Lane,
    /// Whole blocks, `blocks` of them; the current one is verified.
    buffer: PageBuffer,
    blocks: Range<u32>,
    /// Bytes of the next read.
    ahead: usize,
    /// The block it stands in, where that lies in the buffer, and its number of records.
    block: u32,
    begin: usize,
    count: usize,
    /// The record it stands on within the block.
    record: usize,
    /// Nothing before the first seek and at the end.
    position: Option<Position>,
}

impl<D: Disk> Cursor<D> {
    pub(super) fn new(table: Rc<Table<D>>, lane: Lane) -> Cursor<D> {
        Cursor {
            table,
            lane,
            buffer: PageBuffer::zeroed(0),
            blocks: 0..0,
            ahead: TABLE_READ_FIRST_BYTES,
            block: 0,
            begin: 0,
            count: 0,
            record: 0,
            position: None,
        }
    }
    /// Reads far ahead from the start: for who wants the whole table. Otherwise reading ahead grows with each read.
    pub fn whole(mut self) -> Cursor<D> {
        self.ahead = TABLE_READ_AHEAD_BYTES;
        self
    }
    pub fn table(&self) -> &Rc<Table<D>> {
        &self.table
    }
    /// The record it stands on; nothing before the first seek and at the end.
    pub fn record(&self) -> Option<RecordRef<'_>> {
        self.position.as_ref().map(|p| p.record(self.buffer.as_slice()))
    }

    /// Moves to the first record whose key is at least `from`.
    pub async fn seek(&mut self, from: &[u8]) -> Result<(), EngineError> {
        self.position = None;
        self.enter(self.table.index().block_of(from)).await?;
        let (record, _) = self.verified().and_then(|block| block.search(from)).map_err(|flaw| self.flawed(flaw))?;
        self.record = record;
        self.stand().await
    }
    /// Moves to the next record.
    pub async fn advance(&mut self) -> Result<(), EngineError> {
        if self.position.take().is_none() {
            return Ok(());
        }
        self.record += 1;
        self.stand().await
    }

    /// Moves to the record `self.record`, in the next block if this one ends before it.
    async fn stand(&mut self) -> Result<(), EngineError> {
        if self.record >= self.count {
            if self.block + 1 >= self.table.index().blocks() {
                return Ok(());
            }
            self.enter(self.block + 1).await?;
            self.record = 0;
        }
        self.position = Some(self.locate().map_err(|flaw| self.flawed(flaw))?);
        Ok(())
    }
    fn locate(&self) -> Result<Position, Flaw> {
        let records = self.begin + HEADER_BYTES;
        let range = self.verified()?.range(self.record);
        Position::of(self.buffer.as_slice(), records + range.start..records + range.end)
    }
    fn flawed(&self, flaw: Flaw) -> EngineError {
        self.table.damaged(self.block, flaw)
    }
    /// The current block, whose checksum held when it was entered.
    fn verified(&self) -> Result<Block<'_>, Flaw> {
        Block::cached(self.buffer.as_slice().get(self.begin..).ok_or(Flaw("a block out of place"))?)
    }

    /// Makes a block the current one: from the buffer, or with a read that takes the blocks after it along.
    async fn enter(&mut self, block: u32) -> Result<(), EngineError> {
        if !self.blocks.contains(&block) {
            self.read_from(block).await?;
        }
        let first = self.table.index().range(self.blocks.start).start;
        let range = self.table.index().range(block);
        let (begin, end) = ((range.start - first) as usize, (range.end - first) as usize);
        (self.block, self.begin) = (block, begin);
        let pages = self.buffer.as_slice().get(begin..end).ok_or(Flaw("a block out of place"));
        let opened = pages
            .and_then(|pages| section::open(pages, Kind::Records, self.table.place(range.start)))
            .and_then(Block::new)
            .map(|block| block.count());
        self.count = opened.map_err(|flaw| self.flawed(flaw))?;
        Ok(())
    }
    async fn read_from(&mut self, block: u32) -> Result<(), EngineError> {
        let index = self.table.index();
        let mut range = index.range(block);
        let mut end = block + 1;
        while end < index.blocks() && index.range(end).end - range.start <= self.ahead as u64 {
            range.end = index.range(end).end;
            end += 1;
        }
        self.ahead = (self.ahead * 2).min(TABLE_READ_AHEAD_BYTES);
        // The old buffer goes before the new one comes.
        (self.buffer, self.blocks) = (PageBuffer::zeroed(0), 0..0);
        self.buffer = self.table.read(range, self.lane).await?;
        self.blocks = block..end;
        Ok(())
    }
}
