//! Tables: sorted, immutable files of records of one slice. `schema/sstable.md` draws their bytes.
//!
//! A table is written once by a [`Builder`], from a flushed memtable or by a compaction, synced, and never changed. It
//! is blocks of records, then an index of the blocks, a filter over all keys, and a footer. All parts are whole pages
//! under a checksum that knows slice, table and offset.
//!
//! - An open [`Table`] keeps filter and index in memory, some two bytes a key; a read of one key costs at most one
//!   access to the device, and none for 99 % of the keys that are not there.
//! - Nothing read from a file is believed before its checksum holds; no length is used before that. What fails gives
//!   [`EngineError::Damaged`](super::error::EngineError::Damaged) with file and offset; a missing or short file too.
//! - A [`Cursor`] walks a table for scans and compaction and passes by the block cache.
//! - Values in the log are only pointed to. Tables neither read nor free them.

mod block;
mod builder;
mod cursor;
mod filter;
mod footer;
mod index;
pub mod inspect;
mod reader;
mod record;
mod section;

pub use builder::Builder;
pub use cursor::Cursor;
pub use filter::hash as filter_hash;
pub use footer::{FORMAT, MAGIC};
pub use reader::Table;
pub use record::RecordRef;
pub use section::Flaw;

use crate::types::SliceId;
use bytes::Bytes;

/// The level of a table that has been set aside: part of it cannot be read. Its keys are those in doubt: of these, only
/// records newer than its newest are believed. The file stays; nothing reads it.
pub const ASIDE: u8 = u8::MAX;

/// The facts about a table that the manifest keeps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableMeta {
    /// Unique among all tables that the slice has ever had.
    pub id: u64,
    pub slice: SliceId,
    /// 0: as flushed, may overlap others of level 0. 1 and more: tables of a level do not overlap.
    pub level: u8,
    pub smallest: Bytes,
    pub largest: Bytes,
    /// The number of records, delete records included.
    pub entries: u64,
    /// Delete records.
    pub deletes: u64,
    /// Bytes of the file.
    pub bytes: u64,
    pub max_sequence: u64,
    /// Bytes of the values in the log that the records point to.
    pub value_bytes: u64,
}

/// The directory of a slice's tables. The engine makes it (and syncs its parents) before the first table.
pub fn directory(slice: SliceId) -> String {
    format!("slices/{:04x}", slice.0)
}
/// The file of a table.
pub fn path(slice: SliceId, id: u64) -> String {
    format!("slices/{:04x}/{id:016x}.sst", slice.0)
}
/// The table id of a file name in a slice's directory; nothing for other files.
pub fn id_of(name: &str) -> Option<u64> {
    let stem = name.strip_suffix(".sst")?;
    (stem.len() == 16).then(|| u64::from_str_radix(stem, 16).ok()).flatten()
}
