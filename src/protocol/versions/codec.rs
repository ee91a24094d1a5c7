//! A head as bytes: in records on disk and in messages between nodes. The ruler is in `schema/record.md`.
//!
//! Little-endian. `version u8 = 1, clock count u16, entry count u16, recent count u8`, then the clock
//! (`actor u64, counter u64` each), the entries (`actor u64, counter u64, write id u64, bytes u32, checksum u32,
//! media length u8, media`), the recent ones (`actor u64, counter u64, write id u64`). Media length 0 is JSON.

use super::{Actor, Dot, Entry, Head, Superseded};
use crate::{
    limits::{MERGED_CLOCK_ENTRIES_MAX, MERGED_SIBLINGS_MAX, RECENT_WRITES_MAX},
    types::{Media, WriteId},
};
use bytes::{BufMut, Bytes, BytesMut};

const VERSION: u8 = 1;

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeadError {
    #[error("the head has version {0}, this Dynarc reads {VERSION}")]
    Version(u8),
    #[error("the head is cut short or has bytes left over")]
    Length,
    #[error("the head holds more than its limits allow")]
    TooMany,
    #[error("the head is not in order, or holds a dot that its clock does not cover")]
    Invalid,
}

impl Head {
    pub fn encode(&self) -> Bytes {
        let mut out =
            BytesMut::with_capacity(6 + self.clock.len() * 16 + self.entries.len() * 40 + self.recent.len() * 24);
        out.put_u8(VERSION);
        out.put_u16_le(self.clock.len() as u16);
        out.put_u16_le(self.entries.len() as u16);
        out.put_u8(self.recent.len() as u8);
        self.clock.entries().iter().for_each(|&d| put_dot(&mut out, d));
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
        out.freeze()
    }

    /// Checks everything that the rest of the system relies on: limits, order, coverage.
    pub fn decode(bytes: &[u8]) -> Result<Head, HeadError> {
        let mut reader = Reader(bytes);
        let version = reader.u8()?;
        if version != VERSION {
            return Err(HeadError::Version(version));
        }
        let (clock_count, entry_count, recent_count) = (reader.u16()?, reader.u16()?, reader.u8()?);
        let too_many = usize::from(clock_count) > MERGED_CLOCK_ENTRIES_MAX
            || usize::from(entry_count) > MERGED_SIBLINGS_MAX
            || usize::from(recent_count) > RECENT_WRITES_MAX;
        if too_many {
            return Err(HeadError::TooMany);
        }
        let mut head = Head::default();
        let mut last = None;
        for _ in 0..clock_count {
            let dot = reader.dot()?;
            if last.is_some_and(|l| l >= dot.actor) || dot.counter == 0 {
                return Err(HeadError::Invalid);
            }
            last = Some(dot.actor);
            head.clock.record(dot);
        }
        for _ in 0..entry_count {
            let entry = reader.entry()?;
            let ordered = head.entries.last().is_none_or(|l| l.dot < entry.dot);
            if !ordered || entry.dot.counter == 0 || !head.clock.covers(entry.dot) {
                return Err(HeadError::Invalid);
            }
            head.entries.push(entry);
        }
        for _ in 0..recent_count {
            let dot = reader.dot()?;
            head.recent.push(Superseded { dot, write_id: WriteId(reader.u64()?) });
        }
        if reader.0.is_empty() { Ok(head) } else { Err(HeadError::Length) }
    }
}

pub(super) fn put_dot(out: &mut BytesMut, dot: Dot) {
    out.put_u64_le(dot.actor.0);
    out.put_u64_le(dot.counter);
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
        Ok(Dot { actor: Actor(self.u64()?), counter: self.u64()? })
    }
    fn entry(&mut self) -> Result<Entry, HeadError> {
        let (dot, write_id) = (self.dot()?, WriteId(self.u64()?));
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
