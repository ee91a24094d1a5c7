//! Reads a segment from front to back, batch by batch, and tells its end from damage.
//!
//! A crash can leave the last batches torn: they were never acknowledged, and reading ends before the first of them.
//! Damage is something else, and what follows it is still good. A bad place is damage if any of these holds:
//! - a whole batch of the same life of the file follows that says that this place was durable before it was sealed;
//! - the 512 bytes at its start are not a batch's and yet not blank: a drive writes such a unit whole or not at all,
//!   and the file was blank before;
//! - every such unit of the batch has been written, and the sums are wrong all the same;
//! - the batch would go beyond the end of the file, which had its length before the batch was written.
//!
//! The second and third need a file that was blank. In one that had another life before, what lies behind the last
//! batch is that life's bytes: there, damage to the last batches before a crash looks as if they were torn. Bytes of the
//! other life are never taken for batches of this one: those carry the epoch, a random number.

use super::format::{BatchHeader, LogRecord, SegmentHeader, decode_batch};
use crate::{
    engine::{
        disk::{DiskFile, Lane, PageBuffer},
        error::EngineError,
        types::ValuePointer,
    },
    limits::{MIB, PAGE},
};
use bytes::Bytes;
use std::rc::Rc;

/// What a drive writes whole or not at all.
const SECTOR: usize = 512;
/// Bytes read at once.
const WINDOW_BYTES: u64 = MIB as u64;

/// The next thing in a segment.
#[derive(Debug)]
pub enum Found {
    Batch(BatchHeader, Vec<LogRecord>),
    /// Bytes from here to there are lost; reading goes on after them.
    Damage {
        from: u64,
        to: u64,
    },
    /// No batch begins here.
    End {
        at: u64,
    },
}

pub struct BatchReader<F> {
    file: Rc<F>,
    segment: u64,
    epoch: u64,
    reused: bool,
    lane: Lane,
    offset: u64,
    limit: u64,
    window_start: u64,
    window: PageBuffer,
}

impl<F: DiskFile> BatchReader<F> {
    /// From `start` to `limit`, both on pages, the latter at most the file's length.
    pub fn new(file: Rc<F>, header: &SegmentHeader, start: u64, limit: u64, lane: Lane) -> BatchReader<F> {
        let limit = limit - limit % PAGE as u64;
        let window = PageBuffer::zeroed(0);
        let SegmentHeader { id: segment, epoch, reused, .. } = *header;
        BatchReader { file, segment, epoch, reused, lane, offset: start, limit, window_start: 0, window }
    }
    /// The bytes from `from`, at least `bytes` of them unless the segment ends before.
    async fn fill(&mut self, from: u64, bytes: u64) -> Result<&[u8], EngineError> {
        let window_end = self.window_start + self.window.len() as u64;
        if from < self.window_start || from + bytes > window_end {
            let wanted = bytes.max(WINDOW_BYTES).min(self.limit - from);
            self.window = self.file.read(from, wanted as usize, self.lane).await?;
            self.window_start = from;
        }
        Ok(&self.window.as_slice()[(from - self.window_start) as usize..])
    }
    pub async fn next(&mut self) -> Result<Found, EngineError> {
        let at = self.offset;
        if at >= self.limit {
            return Ok(Found::End { at });
        }
        let (segment, epoch, limit, reused) = (self.segment, self.epoch, self.limit, self.reused);
        let page = self.fill(at, PAGE as u64).await?;
        let suspicious = match BatchHeader::peek(page, segment, epoch, at) {
            Some(header) if at + header.padded() <= limit => {
                let bytes = self.fill(at, header.padded()).await?;
                if let Some(records) = decode_batch(&header, bytes) {
                    self.offset = at + header.padded();
                    return Ok(Found::Batch(header, records));
                }
                !reused && !has_blank_sector(&bytes[..header.length as usize])
            }
            Some(_) => true,
            None => !reused && page[..SECTOR].iter().any(|b| *b != 0),
        };
        match self.find_batch(at + PAGE as u64).await? {
            Some(header) if suspicious || header.durable > at => {
                self.offset = header.offset;
                Ok(Found::Damage { from: at, to: header.offset })
            }
            None if suspicious => {
                self.offset = self.limit;
                Ok(Found::Damage { from: at, to: self.limit })
            }
            _ => {
                self.offset = self.limit;
                Ok(Found::End { at })
            }
        }
    }
    /// A copy of a value of the batch that was read last.
    pub fn value(&self, pointer: &ValuePointer) -> Option<Bytes> {
        let from = pointer.offset.checked_sub(self.window_start)? as usize;
        let value = self.window.as_slice().get(from..from.checked_add(pointer.length as usize)?)?;
        (pointer.segment == self.segment).then(|| Bytes::copy_from_slice(value))
    }
    /// The first whole batch that begins at `from` or later.
    async fn find_batch(&mut self, from: u64) -> Result<Option<BatchHeader>, EngineError> {
        let (segment, epoch, limit) = (self.segment, self.epoch, self.limit);
        let mut at = from;
        while at < limit {
            let page = self.fill(at, PAGE as u64).await?;
            if let Some(header) = BatchHeader::peek(page, segment, epoch, at)
                && at + header.padded() <= limit
                && decode_batch(&header, self.fill(at, header.padded()).await?).is_some()
            {
                return Ok(Some(header));
            }
            at += PAGE as u64;
        }
        Ok(None)
    }
}

fn has_blank_sector(bytes: &[u8]) -> bool {
    bytes.chunks(SECTOR).any(|sector| sector.iter().all(|b| *b == 0))
}
