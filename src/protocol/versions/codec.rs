//! A head as bytes: in records on disk and in messages between nodes. The ruler is in `schema/record.md`.
//!
//! Two forms. In the first, all numbers have a fixed width and incarnations 16 bits; it is written wherever it says
//! all, so that earlier versions can read it. The second is compact ([`super::compact`]) and holds any incarnation.
//! Before either stands the life of the key's table as a [`mark`], if it is not 0.
//! Where checksums of superseded writes are known, a third version holds one of the two, and these after it.

use super::{Actor, Dot, Entry, Head, Superseded, VersionVector, compact};
use crate::{
    limits::{MERGED_SIBLINGS_MAX, NARROW_CLOCK_ENTRIES_MAX, RECENT_WRITES_MAX},
    types::{Media, WriteId, mark},
};
use bytes::{BufMut, Bytes, BytesMut};

/// `version u8 = 1, clock count u16, entry count u16, recent count u8`, then the clock (`actor u64, counter u64` each),
/// the entries (`actor u64, counter u64, write id u64, bytes u32, checksum u32, media length u8, media`), the recent
/// ones (`actor u64, counter u64, write id u64`). Little-endian. Media length 0 is JSON.
const NARROW: u8 = 1;
/// `version u8 = 2, entry count u16, recent count u8`, the clock, then entries and recent ones with compact dots.
const COMPACT: u8 = 2;

/// `version u8 = 3, a head in one of the two forms`, and for each of the recent ones `known u8, checksum u32`.
const CHECKSUMS: u8 = 3;

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeadError {
    #[error("the head has version {0}, this Dynarc reads up to {CHECKSUMS}")]
    Version(u8),
    #[error("the head is cut short or has bytes left over")]
    Length,
    #[error("the head holds more than its limits allow")]
    TooMany,
    #[error("the head is not in order, or holds a dot that its clock does not cover")]
    Invalid,
}

impl Head {
    /// Whether the first form can hold this head: it is the only one that the earliest versions of Dynarc read.
    pub fn is_narrow(&self) -> bool {
        self.clock.len() <= NARROW_CLOCK_ENTRIES_MAX
            && self.clock.is_narrow()
            && self.entries.iter().all(|e| e.dot.actor.narrow().is_some())
            && self.recent.iter().all(|s| s.dot.actor.narrow().is_some())
    }
    /// Encodes the head, in the first form if that can hold it.
    pub fn encode(&self) -> Bytes {
        self.encode_with(self.recent.iter().any(|s| s.checksum.is_some()))
    }
    /// Encodes the head in one of the first two forms, without checksums of superseded writes: for readers that do not
    /// know the third.
    pub fn encode_without_checksums(&self) -> Bytes {
        self.encode_with(false)
    }
    fn encode_with(&self, checksums: bool) -> Bytes {
        let narrow = self.is_narrow();
        let mut out = BytesMut::with_capacity(
            mark::BYTES + 6 + self.clock.len() * 16 + self.entries.len() * 40 + self.recent.len() * 29,
        );
        mark::put(&mut out, self.life);
        if checksums {
            out.put_u8(CHECKSUMS);
        }
        let put_dot = if narrow {
            out.put_u8(NARROW);
            out.put_u16_le(self.clock.len() as u16);
            narrow::put_dot as fn(&mut BytesMut, Dot)
        } else {
            out.put_u8(COMPACT);
            compact::put_dot
        };
        out.put_u16_le(self.entries.len() as u16);
        out.put_u8(self.recent.len() as u8);
        if narrow {
            self.clock.entries().iter().for_each(|&d| put_dot(&mut out, d));
        } else {
            compact::put_clock(&mut out, &self.clock);
        }
        for e in &self.entries {
            put_dot(&mut out, e.dot);
            out.put_u64_le(e.write_id.0);
            out.put_u32_le(e.bytes);
            out.put_u32_le(e.checksum);
            match &e.media {
                Media::Json => out.put_u8(0),
                Media::Raw(kind) => {
                    out.put_u8(kind.len() as u8);
                    out.put_slice(kind.as_bytes());
                }
            }
        }
        for s in &self.recent {
            put_dot(&mut out, s.dot);
            out.put_u64_le(s.write_id.0);
        }
        for s in self.recent.iter().filter(|_| checksums) {
            out.put_u8(u8::from(s.checksum.is_some()));
            out.put_u32_le(s.checksum.unwrap_or(0));
        }
        out.freeze()
    }

    /// Checks everything that the rest of the system relies on: limits, order, coverage.
    pub fn decode(bytes: &[u8]) -> Result<Head, HeadError> {
        let (life, bytes) = mark::take(bytes).ok_or(HeadError::Invalid)?;
        let mut reader = Reader(bytes);
        let version = reader.u8()?;
        let (checksums, version) = match version {
            CHECKSUMS => (true, reader.u8()?),
            plain => (false, plain),
        };
        let read_dot = match version {
            NARROW => Reader::dot,
            COMPACT => Reader::compact_dot,
            _ => return Err(HeadError::Version(version)),
        };
        let clock_count = if version == NARROW { reader.u16()? } else { 0 };
        let (entry_count, recent_count) = (reader.u16()?, reader.u8()?);
        let too_many = usize::from(clock_count) > NARROW_CLOCK_ENTRIES_MAX
            || usize::from(entry_count) > MERGED_SIBLINGS_MAX
            || usize::from(recent_count) > RECENT_WRITES_MAX;
        if too_many {
            return Err(HeadError::TooMany);
        }
        let clock = if version == NARROW { reader.clock(usize::from(clock_count))? } else { reader.compact_clock()? };
        let mut head = Head { clock, life, ..Head::default() };
        for _ in 0..entry_count {
            let dot = read_dot(&mut reader)?;
            let entry = reader.entry(dot)?;
            let ordered = head.entries.last().is_none_or(|l| l.dot < entry.dot);
            if !ordered || entry.dot.counter == 0 || !head.clock.covers(entry.dot) {
                return Err(HeadError::Invalid);
            }
            head.entries.push(entry);
        }
        for _ in 0..recent_count {
            let dot = read_dot(&mut reader)?;
            head.recent.push(Superseded { dot, write_id: WriteId(reader.u64()?), checksum: None });
        }
        for superseded in head.recent.iter_mut().filter(|_| checksums) {
            superseded.checksum = match (reader.u8()?, reader.u32()?) {
                (0, 0) => None,
                (1, checksum) => Some(checksum),
                _ => return Err(HeadError::Invalid),
            };
        }
        if reader.0.is_empty() { Ok(head) } else { Err(HeadError::Length) }
    }
}

/// Dots at a fixed width, as the first forms of heads and of contexts have them.
pub(super) mod narrow {
    use super::Dot;
    use bytes::{BufMut, BytesMut};

    pub fn put_dot(out: &mut BytesMut, dot: Dot) {
        let Some(actor) = dot.actor.narrow() else { unreachable!("whoever takes this form has looked: {dot:?}") };
        out.put_u64_le(actor);
        out.put_u64_le(dot.counter);
    }
}

pub(super) struct Reader<'a>(pub &'a [u8]);
impl<'a> Reader<'a> {
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], HeadError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(HeadError::Length)?;
        self.0 = rest;
        Ok(taken)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], HeadError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }
    pub fn u8(&mut self) -> Result<u8, HeadError> {
        Ok(self.array::<1>()?[0])
    }
    pub fn u16(&mut self) -> Result<u16, HeadError> {
        self.array().map(u16::from_le_bytes)
    }
    pub fn u32(&mut self) -> Result<u32, HeadError> {
        self.array().map(u32::from_le_bytes)
    }
    pub fn u64(&mut self) -> Result<u64, HeadError> {
        self.array().map(u64::from_le_bytes)
    }
    pub fn dot(&mut self) -> Result<Dot, HeadError> {
        Ok(Dot { actor: Actor::from_narrow(self.u64()?), counter: self.u64()? })
    }
    /// Reads a clock of `count` entries, which must be ascending by actor and without zeros.
    pub fn clock(&mut self, count: usize) -> Result<VersionVector, HeadError> {
        let (mut clock, mut last) = (VersionVector::new(), None);
        for _ in 0..count {
            let dot = self.dot()?;
            if last.is_some_and(|l| l >= dot.actor) || dot.counter == 0 {
                return Err(HeadError::Invalid);
            }
            last = Some(dot.actor);
            clock.record(dot);
        }
        Ok(clock)
    }
    fn entry(&mut self, dot: Dot) -> Result<Entry, HeadError> {
        let write_id = WriteId(self.u64()?);
        let (bytes, checksum, media_length) = (self.u32()?, self.u32()?, usize::from(self.u8()?));
        let media = match media_length {
            0 => Media::Json,
            n => {
                let text = std::str::from_utf8(self.take(n)?).map_err(|_| HeadError::Invalid)?;
                Media::raw(text).map_err(|_| HeadError::Invalid)?
            }
        };
        Ok(Entry { dot, write_id, media, bytes, checksum })
    }
}
