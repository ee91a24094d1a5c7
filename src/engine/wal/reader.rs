//! Reads a segment from front to back, batch by batch, and tells its end from damage.
//!
//! A crash can leave the last batches torn: they were never acknowledged, and reading ends before the first of them.
//! Damage is something else, and what follows it is still good. A bad place is damage if any of these holds:
//! - a whole batch of the same life of the file follows that says that this place was durable before it was sealed;
//! - the 512 bytes at its start are not a batch's and yet not blank: a drive writes such a unit whole or not at all,
//!   and the file was blank before;
//! - every such unit of the batch has been written, and the sums are wrong all the same;
//! - the batch would go beyond the end of the file, which had its length before the batch was written;
//! - some of it cannot be read;
//! - the roll says that the segment was whole up to beyond it;
//! - one flipped bit is all that is wrong with it: a write that was cut short is wrong by whole units.
//!
//! If only values of such a batch are damaged, its records still hold: each value has a sum of its own.
//!
//! The second and third need a file that was blank. In one that had another life before, what lies behind the last
//! batch is that life's bytes: there, damage to the last batches before a crash looks as if they were torn. Bytes of
//! the other life are never taken for batches of this one: those carry the epoch, a random number.

use super::format::{BatchHeader, LogRecord, SegmentHeader, decode_batch, decode_checked, has_one_flipped_bit};
use crate::{
    engine::disk::{DiskFile, Lane, PageBuffer},
    limits::{MIB, PAGE},
};
use std::{collections::BTreeSet, ops::Range, rc::Rc};

/// Bytes that a drive writes whole or not at all.
const SECTOR: usize = 512;
/// Bytes of one read.
const WINDOW_BYTES: u64 = MIB as u64;

/// The next thing in a segment.
#[derive(Debug)]
pub enum Found {
    Batch(BatchHeader, Vec<LogRecord>),
    /// A batch whose records hold, and the ranges of its values that do not.
    Spoiled(BatchHeader, Vec<LogRecord>, Vec<Range<u64>>),
    /// Bytes of this range are lost; reading goes on after them.
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
    /// Batches that begin before are known to have been whole.
    proven: u64,
    /// The bytes of the file from `window_start` to `window_end` lie at the front of the buffer.
    window_start: u64,
    window_end: u64,
    window: PageBuffer,
    /// Pages that cannot be read. In the window they are neither blank nor a batch's.
    unreadable: BTreeSet<u64>,
}

impl<F: DiskFile> BatchReader<F> {
    /// Makes a reader of the batches from `start` to `limit`. Both are multiples of a page, and `limit` is at most the
    /// file's length.
    pub fn new(file: Rc<F>, header: &SegmentHeader, start: u64, limit: u64, lane: Lane) -> BatchReader<F> {
        let limit = limit - limit % PAGE as u64;
        let window = PageBuffer::zeroed(0);
        let SegmentHeader { id: segment, epoch, reused, .. } = *header;
        BatchReader {
            file,
            segment,
            epoch,
            reused,
            lane,
            offset: start,
            limit,
            proven: 0,
            window_start: 0,
            window_end: 0,
            window,
            unreadable: BTreeSet::new(),
        }
    }
    /// The same, for a segment that is known to have been whole up to `proven`.
    pub fn proven(self, proven: u64) -> BatchReader<F> {
        BatchReader { proven, ..self }
    }
    /// The bytes from `from`, at least `bytes` of them unless the segment ends before.
    async fn fill(&mut self, from: u64, bytes: u64) -> &[u8] {
        if from < self.window_start || from + bytes > self.window_end {
            self.slide(from, bytes).await;
        }
        let window = &self.window.as_slice()[..(self.window_end - self.window_start) as usize];
        &window[(from - self.window_start) as usize..]
    }
    /// The window begins at `from` now. What it had from there on stays, and is not read again: batches end anywhere.
    async fn slide(&mut self, from: u64, bytes: u64) {
        let mut window = std::mem::replace(&mut self.window, PageBuffer::zeroed(0));
        let kept = if from < self.window_start { 0 } else { self.window_end.saturating_sub(from) as usize };
        let end = (from + bytes).max(from + kept as u64 + WINDOW_BYTES).min(self.limit);
        let range = kept..(end - from) as usize;
        let start = from.saturating_sub(self.window_start) as usize;
        (self.window_start, self.window_end) = (from, from);
        if kept > 0 {
            window.as_mut_slice().copy_within(start..start + kept, 0);
        }
        if window.len() < range.end {
            window.resize(range.end);
        }
        let (back, result) = self.file.read_into(from + kept as u64, window, range.clone(), self.lane).await;
        self.window = back;
        self.window_end = end;
        if result.is_err() {
            self.read_page_by_page(range).await;
        }
    }
    /// Reads a part of the window of which some page cannot be read.
    async fn read_page_by_page(&mut self, range: Range<usize>) {
        for page in range.step_by(PAGE) {
            let at = self.window_start + page as u64;
            let read = self.file.read(at, PAGE, self.lane).await;
            let into = &mut self.window.as_mut_slice()[page..page + PAGE];
            match read {
                Ok(read) => into.copy_from_slice(read.as_slice()),
                Err(_) => {
                    into.fill(0xFF);
                    self.unreadable.insert(at);
                }
            }
        }
    }
    pub async fn next(&mut self) -> Found {
        let at = self.offset;
        if at >= self.limit {
            return Found::End { at };
        }
        let (segment, epoch, limit, reused) = (self.segment, self.epoch, self.limit, self.reused);
        let page = self.fill(at, PAGE as u64).await;
        let mut spoiled = None;
        let mut suspicious = match BatchHeader::peek(page, segment, epoch, at) {
            Some(header) if at + header.padded() <= limit => {
                let bytes = self.fill(at, header.padded()).await;
                match decode_checked(&header, bytes) {
                    Some((records, lost)) if lost.is_empty() => {
                        self.offset = at + header.padded();
                        return Found::Batch(header, records);
                    }
                    records => spoiled = records.map(|records| (header, records)),
                }
                let bytes = self.fill(at, header.padded()).await;
                let written = match reused {
                    true => has_one_flipped_bit(bytes, segment, epoch, at, spoiled.as_ref().map(|s| &s.1)),
                    false => !has_blank_sector(&bytes[..header.length as usize]),
                };
                written || self.unreadable.range(at..at + header.padded()).next().is_some()
            }
            Some(header) => {
                // The file has been cut: its records may still be there.
                let mut bytes = self.fill(at, limit - at).await.to_vec();
                bytes.resize(header.padded() as usize, 0);
                spoiled = decode_checked(&header, &bytes).map(|records| (header, records));
                true
            }
            None if reused => has_one_flipped_bit(page, segment, epoch, at, None),
            None => page[..SECTOR].iter().any(|b| *b != 0),
        };
        suspicious |= self.unreadable.contains(&at) || at < self.proven;
        let next = self.find_batch(at + PAGE as u64).await;
        if !suspicious && next.is_none_or(|next| next.durable <= at) {
            self.offset = self.limit;
            return Found::End { at };
        }
        if let Some((header, (records, lost))) = spoiled {
            self.offset = at + header.padded();
            return Found::Spoiled(header, records, lost);
        }
        let end = if at < self.proven { self.proven.min(self.limit) } else { self.limit };
        self.offset = next.map_or(end, |next| next.offset);
        Found::Damage { from: at, to: self.offset }
    }
    /// The first whole batch that begins at `from` or later.
    async fn find_batch(&mut self, from: u64) -> Option<BatchHeader> {
        let (segment, epoch, limit) = (self.segment, self.epoch, self.limit);
        let mut at = from;
        while at < limit {
            let page = self.fill(at, PAGE as u64).await;
            if let Some(header) = BatchHeader::peek(page, segment, epoch, at)
                && at + header.padded() <= limit
                && decode_batch(&header, self.fill(at, header.padded()).await).is_some()
            {
                return Some(header);
            }
            at += PAGE as u64;
        }
        None
    }
}

fn has_blank_sector(bytes: &[u8]) -> bool {
    bytes.chunks(SECTOR).any(|sector| sector.iter().all(|b| *b == 0))
}
