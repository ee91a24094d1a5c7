//! A block of records: the unit of reading. Records in key order, then where each begins.
//!
//! ```text
//! header (16) | record 0 | record 1 | ... | begins u16 x count | padding to a page
//! ```
//!
//! `begins` count from the end of the header. A block is closed before it outgrows the table's block size, so it is
//! read with one access of one page; a record that is larger has a block of its own.

use super::{
    record::{self, RecordRef},
    section::{self, Flaw, HEADER_BYTES, Kind, Place, Section},
};
use std::{cmp::Ordering, ops::Range};

/// Collects the records of one block.
pub struct BlockBuilder {
    block_bytes: usize,
    records: Vec<u8>,
    begins: Vec<u16>,
}
impl BlockBuilder {
    pub fn new(block_bytes: usize) -> BlockBuilder {
        BlockBuilder { block_bytes, records: Vec::with_capacity(block_bytes), begins: Vec::new() }
    }
    pub fn is_empty(&self) -> bool {
        self.begins.is_empty()
    }
    /// Bytes of the block so far, with its header, without padding.
    pub fn bytes(&self) -> usize {
        HEADER_BYTES + self.records.len() + 2 * self.begins.len()
    }
    /// Bytes of the block when it is closed.
    pub fn padded_bytes(&self) -> usize {
        section::padded_bytes(self.bytes() - HEADER_BYTES)
    }
    /// Whether a further record of so many bytes belongs into the next block.
    pub fn is_full_for(&self, record_bytes: usize) -> bool {
        !self.is_empty() && self.bytes() + record_bytes + 2 > self.block_bytes
    }
    /// The caller has asked [`BlockBuilder::is_full_for`], so the place fits 16 bits.
    pub fn add(&mut self, record: &[u8]) {
        self.begins.push(self.records.len() as u16);
        self.records.extend_from_slice(record);
    }
    /// Writes the block into whole pages of [`BlockBuilder::padded_bytes`] and starts the next.
    pub fn close(&mut self, pages: &mut [u8], place: Place) {
        let begins_at = HEADER_BYTES + self.records.len();
        pages[HEADER_BYTES..begins_at].copy_from_slice(&self.records);
        for (i, begin) in self.begins.iter().enumerate() {
            pages[begins_at + 2 * i..][..2].copy_from_slice(&begin.to_le_bytes());
        }
        let body = self.bytes() - HEADER_BYTES;
        section::seal(pages, body, self.begins.len() as u32, Kind::Records, place);
        self.records.clear();
        self.begins.clear();
    }
}

/// A block whose checksum held, for reading.
#[derive(Clone, Copy)]
pub struct Block<'a> {
    records: &'a [u8],
    begins: &'a [u8],
}
impl<'a> Block<'a> {
    pub fn new(section: Section<'a>) -> Result<Block<'a>, Flaw> {
        let begins_bytes = (section.count as usize).checked_mul(2).ok_or(Flaw("wrong count of records"))?;
        let split = section.body.len().checked_sub(begins_bytes).ok_or(Flaw("wrong count of records"))?;
        if section.count == 0 {
            return Err(Flaw("a block without records"));
        }
        let (records, begins) = section.body.split_at(split);
        Ok(Block { records, begins })
    }
    /// A block that was verified when it entered the cache.
    pub fn cached(bytes: &'a [u8]) -> Result<Block<'a>, Flaw> {
        Block::new(section::unsealed(bytes, Kind::Records)?)
    }
    /// The number of records, at least 1.
    pub fn count(&self) -> usize {
        self.begins.len() / 2
    }
    fn begin(&self, index: usize) -> usize {
        u16::from_le_bytes([self.begins[2 * index], self.begins[2 * index + 1]]).into()
    }
    /// The place of the record with this index (below the count), in bytes from the end of the header.
    pub fn range(&self, index: usize) -> Range<usize> {
        let end = if index + 1 < self.count() { self.begin(index + 1) } else { self.records.len() };
        self.begin(index)..end
    }
    fn record_bytes(&self, index: usize) -> Result<&'a [u8], Flaw> {
        self.records.get(self.range(index)).ok_or(Flaw("records out of place"))
    }
    /// The record of this index, which is below the count.
    pub fn record(&self, index: usize) -> Result<RecordRef<'a>, Flaw> {
        RecordRef::decode(self.record_bytes(index)?)
    }
    /// The index of the first record whose key is at least `key` (the count, if there is none), and whether it is that
    /// key.
    pub fn search(&self, key: &[u8]) -> Result<(usize, bool), Flaw> {
        let (mut low, mut high) = (0, self.count());
        while low < high {
            let middle = low.midpoint(high);
            match record::key_of(self.record_bytes(middle)?)?.cmp(key) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Ok((middle, true)),
                Ordering::Greater => high = middle,
            }
        }
        Ok((low, false))
    }
}
