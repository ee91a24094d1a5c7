//! The bytes of a segment: header page, mark, batches. The byte rulers are in `schema/wal.md`.
//!
//! A batch's checksum covers its header and its records with heads and small values; each larger value has a checksum
//! of its own, mixed with where it lies, so that every byte is summed once and a value can be verified alone.
//! Decoding trusts nothing: every length is compared with what is there before it is used.

use crate::{
    engine::{
        error::EngineError,
        memtable::{compact, pointers},
        types::{Change, ENGINE_KEY_BYTES_MAX, Stored, StoredValue, ValuePointer, Write},
    },
    limits::{LOG_QUEUE_BYTES, MIB, PAGE, SLICES_MAX},
    types::SliceId,
};
use bytes::Bytes;
use smallvec::SmallVec;
use std::ops::Range;

/// Format number of segments. Raised when an older Dynarc could not read what is written, or would do wrong with it.
pub const FORMAT: u32 = 4;
/// The first format number whose segments are on the [roll](super::roll) of their core before they take a batch.
pub const FORMAT_ON_ROLL: u32 = 4;
pub const BATCH_HEADER_BYTES: usize = 88;
/// Bytes of a batch at most, padding included: what one call of write may hold, and its framing.
pub const BATCH_BYTES_LIMIT: usize = LOG_QUEUE_BYTES + 8 * MIB;

const SEGMENT_MAGIC: &[u8; 8] = b"DYNARCSG";
const MARK_MAGIC: &[u8; 8] = b"DYNARCFL";
const BATCH_MAGIC: &[u8; 4] = b"DYNB";
const HEADER_SUMMED: std::ops::Range<usize> = 16..64 + SLICES_MAX / 8;
const MARK_HEADER_BYTES: usize = 64;
const MARK_ENTRY_BYTES: usize = 10;
const RECORD_HEADER_BYTES: usize = 12;
const INLINE: u32 = 1 << 31;
/// The byte that fills the space between records and values. It is not zero, so that a sector of zeros is known never
/// to have been written.
const FILLER: u8 = b'.';
const KIND_PUT: u8 = 1;
const KIND_DELETE: u8 = 2;

const _: () = assert!(HEADER_SUMMED.end <= PAGE && BATCH_BYTES_LIMIT < INLINE as usize);

/// The first page of a segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    pub format: u32,
    pub id: u64,
    /// A number that the header, the mark and every batch of this life of the file bear: bytes of another life are
    /// never taken for this one's.
    pub epoch: u64,
    /// The opening of the directory that wrote this; later openings have greater numbers.
    pub generation: u64,
    /// No record in it has a smaller sequence.
    pub first_sequence: u64,
    pub shard: u16,
    /// The offset of the first batch; the mark lies between the first page and here.
    pub data_start: u32,
    /// The file grows by whole steps of so many bytes, so that a cut file is known from its length.
    pub step: u32,
    /// The file had another life before: what lies behind the last batch is not blank.
    pub reused: bool,
    /// The slices of the shard that writes it: no record belongs to any other.
    pub slices: Vec<SliceId>,
}

pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
pub fn pages(bytes: usize) -> usize {
    bytes.next_multiple_of(PAGE)
}

/// Pages kept for the mark of a segment whose shard owns so many slices.
pub fn mark_bytes(slices: usize) -> usize {
    pages(MARK_HEADER_BYTES + slices * MARK_ENTRY_BYTES)
}

/// The checksum of a header, format number included: a flipped bit of it is damage, and not taken for a newer format.
fn header_checksum(page: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&page[8..12]), &page[HEADER_SUMMED])
}

impl SegmentHeader {
    pub fn encode(&self, page: &mut [u8]) {
        page[..8].copy_from_slice(SEGMENT_MAGIC);
        page[8..12].copy_from_slice(&self.format.to_le_bytes());
        page[16..24].copy_from_slice(&self.id.to_le_bytes());
        page[24..32].copy_from_slice(&self.epoch.to_le_bytes());
        page[32..40].copy_from_slice(&self.generation.to_le_bytes());
        page[40..48].copy_from_slice(&self.first_sequence.to_le_bytes());
        page[48..50].copy_from_slice(&self.shard.to_le_bytes());
        page[52..56].copy_from_slice(&self.data_start.to_le_bytes());
        page[56..60].copy_from_slice(&self.step.to_le_bytes());
        page[60] = self.reused.into();
        for slice in &self.slices {
            page[64 + usize::from(slice.0) / 8] |= 1 << (slice.0 % 8);
        }
        let crc = header_checksum(page);
        page[12..16].copy_from_slice(&crc.to_le_bytes());
    }
    /// `None` when this is not a whole header: the crash came before the segment was used.
    pub fn decode(page: &[u8], file: &str) -> Result<Option<SegmentHeader>, EngineError> {
        if page.len() < PAGE || &page[..8] != SEGMENT_MAGIC {
            return Ok(None);
        }
        let found = u32_at(page, 8);
        if header_checksum(page) != u32_at(page, 12) {
            return Ok(None);
        }
        if found > FORMAT {
            return Err(EngineError::NewerFormat { file: file.into(), found, known: FORMAT });
        }
        let slices = (0..SLICES_MAX).filter(|&s| page[64 + s / 8] & (1 << (s % 8)) != 0);
        let header = SegmentHeader {
            format: found,
            id: u64_at(page, 16),
            epoch: u64_at(page, 24),
            generation: u64_at(page, 32),
            first_sequence: u64_at(page, 40),
            shard: u16_at(page, 48),
            data_start: u32_at(page, 52),
            step: u32_at(page, 56),
            reused: page[60] != 0,
            slices: slices.map(|s| SliceId(s as u16)).collect(),
        };
        let start = header.data_start as usize;
        let sane = start.is_multiple_of(PAGE) && start == PAGE + mark_bytes(header.slices.len());
        let step = header.step as usize;
        Ok((sane && found > 0 && step > 0 && step.is_multiple_of(PAGE)).then_some(header))
    }
}

/// Says that every record of a sealed segment is in tables: recovery need not read it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mark {
    pub id: u64,
    pub epoch: u64,
    /// The offset at which the segment's batches end.
    pub end: u64,
    /// Bytes of all large values of the segment, live or not.
    pub value_bytes: u64,
    /// Bytes of the records that those values belong to.
    pub record_bytes: u64,
    /// The greatest sequence of each slice that has records in it.
    pub last: Vec<(SliceId, u64)>,
    /// Written by one of several cores with records in it: it speaks for that core's slices only.
    pub partial: bool,
}
impl Mark {
    pub fn encode(&self, out: &mut [u8]) {
        let length = MARK_HEADER_BYTES + self.last.len() * MARK_ENTRY_BYTES;
        out[..8].copy_from_slice(MARK_MAGIC);
        out[12..16].copy_from_slice(&(length as u32).to_le_bytes());
        out[16..24].copy_from_slice(&self.id.to_le_bytes());
        out[24..32].copy_from_slice(&self.epoch.to_le_bytes());
        out[32..40].copy_from_slice(&self.end.to_le_bytes());
        out[40..48].copy_from_slice(&self.value_bytes.to_le_bytes());
        out[48..56].copy_from_slice(&self.record_bytes.to_le_bytes());
        out[56..60].copy_from_slice(&(self.last.len() as u32).to_le_bytes());
        out[60] = self.partial.into();
        for (entry, (slice, last)) in out[MARK_HEADER_BYTES..].chunks_exact_mut(MARK_ENTRY_BYTES).zip(&self.last) {
            entry[..2].copy_from_slice(&slice.0.to_le_bytes());
            entry[2..].copy_from_slice(&last.to_le_bytes());
        }
        let crc = crc32c::crc32c(&out[12..length]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
    }
    /// `None` when there is no whole mark of this segment: it is read again, which is always right.
    pub fn decode(bytes: &[u8], header: &SegmentHeader) -> Option<Mark> {
        let (length, count) = (u32_at(bytes, 12) as usize, u32_at(bytes, 56) as usize);
        let whole = bytes.get(..8)? == MARK_MAGIC
            && count <= SLICES_MAX
            && length == MARK_HEADER_BYTES + count * MARK_ENTRY_BYTES
            && crc32c::crc32c(bytes.get(12..length)?) == u32_at(bytes, 8)
            && (u64_at(bytes, 16), u64_at(bytes, 24)) == (header.id, header.epoch);
        let entries = bytes.get(MARK_HEADER_BYTES..length)?.chunks_exact(MARK_ENTRY_BYTES);
        whole.then(|| Mark {
            id: header.id,
            epoch: header.epoch,
            end: u64_at(bytes, 32),
            value_bytes: u64_at(bytes, 40),
            record_bytes: u64_at(bytes, 48),
            last: entries.map(|e| (SliceId(u16_at(e, 0)), u64_at(e, 2))).collect(),
            partial: bytes[60] != 0,
        })
    }
}

/// The header of a batch: what it says of itself and of the batches before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchHeader {
    pub segment: u64,
    pub epoch: u64,
    /// The offset of the batch in its segment.
    pub offset: u64,
    /// Sequence of its first record; the others follow one by one.
    pub first_sequence: u64,
    /// Every batch of this segment that begins before this offset was durable when this one was sealed: damage there
    /// is damage, never a torn tail.
    pub durable: u64,
    /// The segment that this shard wrote before, and where its batches end: all of it was durable. 0: none.
    pub previous: u64,
    pub previous_end: u64,
    /// Bytes that the file had, durably, when this batch was sealed: a shorter one has been cut.
    pub allocated: u64,
    pub count: u32,
    /// Bytes of header, records, filler and values, without the padding behind them.
    pub length: u32,
    /// Bytes of header, records and filler: where the values begin.
    pub records_end: u32,
}
impl BatchHeader {
    /// Reads the header of a batch that begins at this place. Its own checksum holds; the batch is still to be
    /// verified.
    pub fn peek(bytes: &[u8], segment: u64, epoch: u64, offset: u64) -> Option<BatchHeader> {
        if bytes.len() < BATCH_HEADER_BYTES
            || &bytes[..4] != BATCH_MAGIC
            || crc32c::crc32c(&bytes[8..84]) != u32_at(bytes, 84)
        {
            return None;
        }
        let header = BatchHeader {
            length: u32_at(bytes, 8),
            records_end: u32_at(bytes, 12),
            segment: u64_at(bytes, 16),
            epoch: u64_at(bytes, 24),
            offset: u64_at(bytes, 32),
            first_sequence: u64_at(bytes, 40),
            durable: u64_at(bytes, 48),
            previous: u64_at(bytes, 56),
            previous_end: u64_at(bytes, 64),
            allocated: u64_at(bytes, 72),
            count: u32_at(bytes, 80),
        };
        let sane = (header.segment, header.epoch, header.offset) == (segment, epoch, offset)
            && BATCH_HEADER_BYTES <= header.records_end as usize
            && header.records_end <= header.length
            && header.length as usize <= BATCH_BYTES_LIMIT
            && header.count as usize <= (header.records_end as usize - BATCH_HEADER_BYTES) / RECORD_HEADER_BYTES;
        sane.then_some(header)
    }
    /// Bytes that the batch takes in its segment.
    pub fn padded(&self) -> u64 {
        pages(self.length as usize) as u64
    }
    fn encode(&self, out: &mut [u8]) {
        out[..4].copy_from_slice(BATCH_MAGIC);
        out[8..12].copy_from_slice(&self.length.to_le_bytes());
        out[12..16].copy_from_slice(&self.records_end.to_le_bytes());
        for (at, word) in [
            (16, self.segment),
            (24, self.epoch),
            (32, self.offset),
            (40, self.first_sequence),
            (48, self.durable),
            (56, self.previous),
            (64, self.previous_end),
            (72, self.allocated),
        ] {
            out[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        out[80..84].copy_from_slice(&self.count.to_le_bytes());
        let crc = crc32c::crc32c(&out[8..84]);
        out[84..88].copy_from_slice(&crc.to_le_bytes());
    }
}

/// The checksum of a value that lies at `offset` of `segment`.
pub fn value_checksum(segment: u64, offset: u64, value: &[u8]) -> u32 {
    let mut place = [0; 16];
    place[..8].copy_from_slice(&segment.to_le_bytes());
    place[8..].copy_from_slice(&offset.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&place), value)
}

/// Table of CRC-32C: what a byte does to a sum of zero.
const CRC_OF_BYTE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u32, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};
/// The byte whose table entry has this top byte.
const BYTE_OF_TOP: [u8; 256] = {
    let mut bytes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        bytes[(CRC_OF_BYTE[byte] >> 24) as usize] = byte as u8;
        byte += 1;
    }
    bytes
};

/// Whether two sums of so many last bytes differ as if one bit of these, or of the sum, had flipped: what was written
/// half looks so once in four thousand million bits.
pub fn differ_by_one_bit(written: u32, found: u32, bytes: usize) -> bool {
    let mut difference = written ^ found;
    if difference.is_power_of_two() {
        return true;
    }
    // A flip that many bytes before the end has gone through the table for each of them: back, one by one.
    for _ in 0..bytes {
        let byte = BYTE_OF_TOP[(difference >> 24) as usize];
        if CRC_OF_BYTE[usize::from(byte)] == difference && byte.is_power_of_two() {
            return true;
        }
        difference = (difference ^ CRC_OF_BYTE[usize::from(byte)]) << 8 | u32::from(byte);
    }
    false
}

/// Whether one bit of a batch's header, or of its records, is all that is wrong with it; with `lost` of each of these
/// values, its records being as they were. A write that was cut short is wrong by whole sectors.
pub fn has_one_flipped_bit(bytes: &[u8], segment: u64, epoch: u64, offset: u64, lost: Option<&Records>) -> bool {
    let Some(header) = BatchHeader::peek(bytes, segment, epoch, offset) else {
        let Some(first) = bytes.get(..BATCH_HEADER_BYTES) else { return false };
        let mut first = first.to_vec();
        return (0..8 * BATCH_HEADER_BYTES).any(|bit| {
            first[bit / 8] ^= 1 << (bit % 8);
            let whole = BatchHeader::peek(&first, segment, epoch, offset).is_some();
            first[bit / 8] ^= 1 << (bit % 8);
            whole
        });
    };
    let Some((records, lost)) = lost else {
        let area = bytes.get(8..header.records_end as usize);
        return area.is_some_and(|area| differ_by_one_bit(u32_at(bytes, 4), crc32c::crc32c(area), area.len()));
    };
    let pointers = records.iter().flat_map(|record| pointers(&record.stored));
    let mut spoiled = pointers.filter(|pointer| lost.iter().any(|range| range.start == pointer.offset));
    spoiled.all(|pointer| {
        let from = (pointer.offset - offset) as usize;
        let value = bytes.get(from..from + pointer.length as usize);
        let found = value.map(|value| value_checksum(segment, pointer.offset, value));
        found.is_some_and(|found| differ_by_one_bit(pointer.checksum, found, pointer.length as usize))
    })
}

/// Bytes that a write takes in a batch: in the record area, and in the value area.
pub fn record_bytes(write: &Write, inline_below: usize) -> (usize, usize) {
    let fixed = RECORD_HEADER_BYTES + write.key.len();
    match &write.change {
        Change::Delete => (fixed, 0),
        Change::Put { head, values } => {
            values.iter().fold((fixed + head.len() + 8 * values.len(), 0), |(record, apart), value| {
                if value.len() < inline_below { (record + value.len(), apart) } else { (record, apart + value.len()) }
            })
        }
    }
}

/// Whether a write fits the format's fields.
pub fn check_write(write: &Write) -> Result<(), EngineError> {
    let too_large = |what: &str| Err(EngineError::Failed(format!("a record's {what} is too large for the log")));
    if write.key.len() > ENGINE_KEY_BYTES_MAX {
        return too_large("key");
    }
    if let Change::Put { head, values } = &write.change {
        if values.len() > usize::from(u16::MAX) {
            return too_large("number of values");
        }
        if head.len() + values.iter().map(Bytes::len).sum::<usize>() > LOG_QUEUE_BYTES {
            return too_large("size");
        }
    }
    Ok(())
}

/// A record of the log, and the places of its values.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogRecord {
    pub slice: SliceId,
    pub sequence: u64,
    pub key: Bytes,
    pub stored: Stored,
}

impl LogRecord {
    /// Bytes of the record's values that lie apart; and of the record itself, if it has such values.
    pub fn weight(&self) -> (u64, u64) {
        let Stored::Put { head, values } = &self.stored else { return (0, 0) };
        let (mut apart, mut record) =
            (0, (RECORD_HEADER_BYTES + self.key.len() + head.len() + 8 * values.len()) as u64);
        for value in values {
            match value {
                StoredValue::Inline(bytes) => record += bytes.len() as u64,
                StoredValue::Pointer(pointer) => apart += u64::from(pointer.length),
            }
        }
        if apart == 0 { (0, 0) } else { (apart, record) }
    }
}

/// Writes a batch into `out` (exactly the padded length): values copied once, summed once. Gives what memtables will
/// hold. `header.length`, `records_end` and `count` are set here.
///
/// Large values end where the last page does, and what is left of the pages lies before them: so values of two and a
/// half pages, the common size, are on three each and not on three or four, and cost a read that much less.
pub fn encode_batch(
    mut header: BatchHeader,
    writes: &[&Write],
    inline_below: usize,
    out: &mut [u8],
) -> (BatchHeader, Vec<LogRecord>) {
    let bytes = writes.iter().map(|w| record_bytes(w, inline_below));
    let (of_records, apart) = bytes.fold((BATCH_HEADER_BYTES, 0), |sum, bytes| (sum.0 + bytes.0, sum.1 + bytes.1));
    let records_end = if apart == 0 { of_records } else { pages(of_records + apart) - apart };
    out[of_records..records_end].fill(FILLER);
    let mut records = Vec::with_capacity(writes.len());
    let mut at = BATCH_HEADER_BYTES;
    let mut value_at = records_end;
    for (index, write) in writes.iter().enumerate() {
        let none = (&Bytes::new(), &SmallVec::new());
        let (kind, (head, values)) = match &write.change {
            Change::Put { head, values } => (KIND_PUT, (head, values)),
            Change::Delete => (KIND_DELETE, none),
        };
        let fixed = &mut out[at..at + RECORD_HEADER_BYTES];
        fixed[..2].copy_from_slice(&write.slice.0.to_le_bytes());
        fixed[2] = kind;
        fixed[3] = 0;
        fixed[4..6].copy_from_slice(&(write.key.len() as u16).to_le_bytes());
        fixed[6..8].copy_from_slice(&(values.len() as u16).to_le_bytes());
        fixed[8..12].copy_from_slice(&(head.len() as u32).to_le_bytes());
        at += RECORD_HEADER_BYTES;
        for part in [&write.key, head] {
            out[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        let mut table_at = at;
        at += 8 * values.len();
        let mut stored = SmallVec::with_capacity(values.len());
        for value in values {
            let (length, checksum) = if value.len() < inline_below {
                out[at..at + value.len()].copy_from_slice(value);
                at += value.len();
                stored.push(StoredValue::Inline(value.clone()));
                (value.len() as u32 | INLINE, 0)
            } else {
                let offset = header.offset + value_at as u64;
                let checksum = value_checksum(header.segment, offset, value);
                out[value_at..value_at + value.len()].copy_from_slice(value);
                value_at += value.len();
                let length = value.len() as u32;
                stored.push(StoredValue::Pointer(ValuePointer { segment: header.segment, offset, length, checksum }));
                (length, checksum)
            };
            out[table_at..table_at + 4].copy_from_slice(&length.to_le_bytes());
            out[table_at + 4..table_at + 8].copy_from_slice(&checksum.to_le_bytes());
            table_at += 8;
        }
        let (key, stored) = match write.change {
            Change::Put { .. } => compact(&write.key, head, stored),
            Change::Delete => (Bytes::copy_from_slice(&write.key), Stored::Delete),
        };
        records.push(LogRecord { slice: write.slice, sequence: header.first_sequence + index as u64, key, stored });
    }
    header.length = value_at as u32;
    header.records_end = records_end as u32;
    header.count = writes.len() as u32;
    header.encode(out);
    let crc = crc32c::crc32c(&out[8..records_end]);
    out[4..8].copy_from_slice(&crc.to_le_bytes());
    out[value_at..].fill(0);
    (header, records)
}

/// Reads a whole batch, every checksum verified; `None` if anything is not as it was written.
pub fn decode_batch(header: &BatchHeader, bytes: &[u8]) -> Option<Vec<LogRecord>> {
    decode_checked(header, bytes).and_then(|(records, lost)| lost.is_empty().then_some(records))
}

/// The records of a batch, and the places in the segment of values that are not as they were written.
pub type Records = (Vec<LogRecord>, Vec<Range<u64>>);

/// Reads the records of a batch, which hold, and checks its values, which may not. `None`: the records are damaged.
pub fn decode_checked(header: &BatchHeader, bytes: &[u8]) -> Option<Records> {
    let bytes = bytes.get(..header.length as usize)?;
    let records = decode_records(header, bytes)?;
    let verified = |pointer: &ValuePointer| {
        let from = pointer.offset.checked_sub(header.offset)? as usize;
        let value = bytes.get(from..from.checked_add(pointer.length as usize)?)?;
        (value_checksum(pointer.segment, pointer.offset, value) == pointer.checksum).then_some(())
    };
    let all = records.iter().flat_map(|record| pointers(&record.stored));
    let lost = all.filter(|pointer| verified(pointer).is_none());
    let lost = lost.map(|pointer| pointer.offset..pointer.offset + u64::from(pointer.length)).collect();
    Some((records, lost))
}

/// Reads the records of a batch, verified, from its first bytes; its large values are neither needed nor looked at.
/// Keys, heads and small values are copied out, so that nothing keeps `bytes` alive.
pub fn decode_records(header: &BatchHeader, bytes: &[u8]) -> Option<Vec<LogRecord>> {
    let area = bytes.get(..header.records_end as usize)?;
    if crc32c::crc32c(area.get(8..)?) != u32_at(area, 4) {
        return None;
    }
    let mut records = Vec::with_capacity(header.count as usize);
    let mut at = BATCH_HEADER_BYTES;
    let mut value_at = header.records_end as usize;
    for index in 0..u64::from(header.count) {
        let fixed = area.get(at..at + RECORD_HEADER_BYTES)?;
        let (kind, key_bytes) = (fixed[2], usize::from(u16_at(fixed, 4)));
        let (value_count, head_bytes) = (usize::from(u16_at(fixed, 6)), u32_at(fixed, 8) as usize);
        at += RECORD_HEADER_BYTES;
        let key = area.get(at..at.checked_add(key_bytes)?)?;
        at += key_bytes;
        let head = area.get(at..at.checked_add(head_bytes)?)?;
        at += head_bytes;
        let table = area.get(at..at + 8 * value_count)?;
        at += table.len();
        let mut values = SmallVec::with_capacity(value_count);
        for entry in table.chunks_exact(8) {
            let (length, checksum) = (u32_at(entry, 0), u32_at(entry, 4));
            if length & INLINE != 0 {
                let length = (length & !INLINE) as usize;
                values.push(StoredValue::Inline(Bytes::copy_from_slice(area.get(at..at.checked_add(length)?)?)));
                at += length;
                continue;
            }
            let offset = header.offset + value_at as u64;
            value_at = value_at.checked_add(length as usize)?;
            values.push(StoredValue::Pointer(ValuePointer { segment: header.segment, offset, length, checksum }));
        }
        let (key, stored) = match kind {
            KIND_PUT => compact(key, head, values),
            KIND_DELETE if value_count == 0 => (Bytes::copy_from_slice(key), Stored::Delete),
            _ => return None,
        };
        let sequence = header.first_sequence.checked_add(index)?;
        records.push(LogRecord { slice: SliceId(u16_at(fixed, 0)), sequence, key, stored });
    }
    (area[at..].iter().all(|byte| *byte == FILLER) && value_at == header.length as usize).then_some(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use smallvec::smallvec;

    fn writes() -> Vec<Write> {
        let put = |slice, key: &'static [u8], values| Write {
            slice: SliceId(slice),
            key: Bytes::from_static(key),
            change: Change::Put { head: Bytes::from_static(b"head"), values },
        };
        vec![
            put(1, b"small", smallvec![Bytes::from_static(b"tiny")]),
            put(
                2047,
                b"large",
                smallvec![Bytes::from(vec![7; 3000]), Bytes::from_static(b"x"), Bytes::from(vec![9; 5000])],
            ),
            put(0, b"", smallvec![]),
            Write { slice: SliceId(3), key: Bytes::from_static(b"gone"), change: Change::Delete },
        ]
    }
    fn batch() -> (BatchHeader, Vec<LogRecord>, Vec<u8>) {
        let writes = writes();
        let refs: Vec<&Write> = writes.iter().collect();
        let bytes: usize = refs.iter().map(|w| record_bytes(w, 1024)).map(|(a, b)| a + b).sum();
        let mut out = vec![0xAA; pages(BATCH_HEADER_BYTES + bytes)];
        let header = BatchHeader {
            segment: 42,
            epoch: 99,
            offset: 8192,
            first_sequence: 1000,
            durable: 8192,
            previous: 0,
            previous_end: 0,
            allocated: 65536,
            count: 0,
            length: 0,
            records_end: 0,
        };
        let (header, records) = encode_batch(header, &refs, 1024, &mut out);
        (header, records, out)
    }

    #[test]
    fn a_batch_comes_back_as_it_was_written() {
        let (header, records, bytes) = batch();
        let peeked = BatchHeader::peek(&bytes, 42, 99, 8192).expect("a header");
        assert_eq!(peeked, header);
        assert_eq!(decode_batch(&peeked, &bytes), Some(records));
        assert_eq!(BatchHeader::peek(&bytes, 42, 98, 8192), None);
        assert_eq!(BatchHeader::peek(&bytes, 42, 99, 4096), None);
    }

    #[test]
    fn values_of_two_and_a_half_pages_lie_on_three() {
        for count in 1..=20 {
            let key = |n: usize| Bytes::from(format!("key {n}"));
            let values = || smallvec![Bytes::from(vec![1; 10 * 1024])];
            let put = |n| Write {
                slice: SliceId(0),
                key: key(n),
                change: Change::Put { head: Bytes::from_static(b"head"), values: values() },
            };
            let writes: Vec<Write> = (0..count).map(put).collect();
            let refs: Vec<&Write> = writes.iter().collect();
            let bytes: usize = refs.iter().map(|w| record_bytes(w, 1024)).map(|(a, b)| a + b).sum();
            let mut out = vec![0; pages(BATCH_HEADER_BYTES + bytes)];
            let (header, records) = encode_batch(batch().0, &refs, 1024, &mut out);
            assert_eq!(header.padded(), out.len() as u64);
            assert_eq!(decode_batch(&header, &out).as_ref(), Some(&records));
            for pointer in records.iter().flat_map(|record| pointers(&record.stored)) {
                let page = PAGE as u64;
                assert_eq!(pointer.end().div_ceil(page) - pointer.offset / page, 3, "{count} values");
            }
        }
    }

    #[test]
    fn records_of_a_batch_of_format_2_are_read() {
        let (mut header, mut records, bytes) = batch();
        let area = &bytes[..header.records_end as usize];
        let of_records = area.len() - area.iter().rev().take_while(|byte| **byte == FILLER).count();
        // The values followed at once, and what was left of the pages came behind them.
        let moved = (area.len() - of_records) as u32;
        assert!(moved > 0);
        header.records_end -= moved;
        header.length -= moved;
        let mut old = bytes[..of_records].to_vec();
        header.encode(&mut old);
        let crc = crc32c::crc32c(&old[8..]);
        old[4..8].copy_from_slice(&crc.to_le_bytes());
        for record in &mut records {
            let Stored::Put { values, .. } = &mut record.stored else { continue };
            for value in values {
                if let StoredValue::Pointer(pointer) = value {
                    pointer.offset -= u64::from(moved);
                }
            }
        }
        assert_eq!(decode_records(&header, &old), Some(records));
    }

    #[test]
    fn no_flipped_bit_and_no_cut_goes_unseen() {
        let (header, _, bytes) = batch();
        for at in 0..header.length as usize {
            for bit in [0, 3, 7] {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                let read = BatchHeader::peek(&flipped, 42, 99, 8192).and_then(|h| decode_batch(&h, &flipped));
                assert_eq!(read, None, "byte {at} bit {bit}");
            }
            let cut = BatchHeader::peek(&bytes[..at], 42, 99, 8192).and_then(|h| decode_batch(&h, &bytes[..at]));
            assert_eq!(cut, None, "cut at {at}");
        }
    }

    #[test]
    fn headers_and_marks_come_back_and_flips_are_seen() {
        let slices = vec![SliceId(0), SliceId(9), SliceId(2047)];
        let data_start = (PAGE + mark_bytes(slices.len())) as u32;
        let header = SegmentHeader {
            format: FORMAT,
            id: 5,
            epoch: 6,
            generation: 7,
            first_sequence: 8,
            shard: 1,
            data_start,
            step: 8192,
            reused: true,
            slices,
        };
        let mut page = vec![0; PAGE];
        header.encode(&mut page);
        assert_eq!(SegmentHeader::decode(&page, "f"), Ok(Some(header.clone())));
        for at in 0..HEADER_SUMMED.end {
            let mut flipped = page.clone();
            flipped[at] ^= 4;
            assert_eq!(SegmentHeader::decode(&flipped, "f"), Ok(None), "byte {at}");
        }
        page[8] = FORMAT as u8 + 1;
        let sum = header_checksum(&page);
        page[12..16].copy_from_slice(&sum.to_le_bytes());
        assert!(matches!(SegmentHeader::decode(&page, "f"), Err(EngineError::NewerFormat { .. })));

        let mark = Mark {
            id: 5,
            epoch: 6,
            end: 12288,
            value_bytes: 70,
            record_bytes: 7,
            last: vec![(SliceId(0), 77), (SliceId(9), 78)],
            partial: true,
        };
        let mut bytes = vec![0; PAGE];
        mark.encode(&mut bytes);
        assert_eq!(Mark::decode(&bytes, &header), Some(mark));
        for at in 0..MARK_HEADER_BYTES + 2 * MARK_ENTRY_BYTES {
            let mut flipped = bytes.clone();
            flipped[at] ^= 16;
            assert_eq!(Mark::decode(&flipped, &header), None, "byte {at}");
        }
    }
}
