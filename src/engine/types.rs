//! What goes into the engine and what comes out.

use crate::{
    limits::{self, KEY_BYTES_MAX},
    types::SliceId,
};
use bytes::Bytes;
use smallvec::SmallVec;

pub use crate::types::Durability;

/// Bytes of an engine key at most: a space byte, an owner, a token and a user's key.
pub const ENGINE_KEY_BYTES_MAX: usize = KEY_BYTES_MAX + 24;

/// The values of a record, in the order of the head's entries.
pub type Values = SmallVec<[Bytes; 1]>;

/// A change of one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Write {
    pub slice: SliceId,
    pub key: Bytes,
    pub change: Change,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Replaces the record whole: the head and every value.
    Put { head: Bytes, values: Values },
    /// Removes the record (a delete record in the LSM, not a replicated tombstone).
    Delete,
}

impl Write {
    /// Whether it adds a value: such writes are refused first when space is short. A record without values (a
    /// replicated tombstone, a lease, a marker) is as small as a delete record, and what it replaces can be collected.
    pub fn adds_values(&self) -> bool {
        matches!(&self.change, Change::Put { values, .. } if !values.is_empty())
    }
}

/// The part of a record that a read wants.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Want {
    /// Only the head; the value log is not read.
    Head,
    /// Head and values, every checksum verified.
    Full,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    pub head: Bytes,
    /// Empty when only the head was wanted, or when the record has no values.
    pub values: Values,
}

/// A record as memtables and tables keep it: large values are pointers into the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stored {
    Put { head: Bytes, values: SmallVec<[StoredValue; 1]> },
    Delete,
}
impl Stored {
    /// Nothing for a delete record.
    pub fn head(&self) -> &[u8] {
        match self {
            Stored::Put { head, .. } => head,
            Stored::Delete => &[],
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoredValue {
    Inline(Bytes),
    Pointer(ValuePointer),
}

/// The place of a value in the value log, and the CRC-32C of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ValuePointer {
    pub segment: u64,
    pub offset: u64,
    pub length: u32,
    pub checksum: u32,
}
impl ValuePointer {
    /// The offset in the segment at which the value ends.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.length))
    }
}

/// Sizes of one core's engine. Defaults are those of [`crate::limits`]; the simulator shrinks them.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    pub segment_bytes: usize,
    pub memtable_bytes: usize,
    pub log_replay_bytes: usize,
    pub block_bytes: usize,
    pub table_bytes: usize,
    pub level0_tables: usize,
    pub level_factor: usize,
    pub block_cache_bytes: usize,
    pub value_cache_bytes: usize,
    pub table_memory_bytes: usize,
    pub inline_value_bytes: usize,
    pub segment_dead_percent: u64,
    pub space_percent_start: u64,
    pub space_percent_max: u64,
    pub disk_full_percent: u64,
    /// Unlike that of any other opening, and not to be guessed: it makes the bytes of a segment's life known from those
    /// of another.
    pub seed: u64,
}
impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            segment_bytes: limits::SEGMENT_BYTES,
            memtable_bytes: limits::MEMTABLE_BYTES,
            log_replay_bytes: limits::LOG_REPLAY_BYTES,
            block_bytes: limits::BLOCK_BYTES,
            table_bytes: limits::TABLE_BYTES,
            level0_tables: limits::LEVEL0_TABLES,
            level_factor: limits::LEVEL_FACTOR,
            block_cache_bytes: limits::BLOCK_CACHE_BYTES,
            value_cache_bytes: limits::VALUE_CACHE_BYTES,
            table_memory_bytes: limits::TABLE_MEMORY_BYTES,
            inline_value_bytes: limits::INLINE_VALUE_BYTES,
            segment_dead_percent: limits::SEGMENT_DEAD_PERCENT,
            space_percent_start: limits::SPACE_PERCENT_START,
            space_percent_max: limits::SPACE_PERCENT_MAX,
            disk_full_percent: limits::DISK_FULL_PERCENT,
            seed: 0,
        }
    }
}

impl EngineOptions {
    /// Adapts the options to a file system of so many bytes. A small one gets small segments, so that some can be
    /// collected while others are written; and memtables are flushed sooner, since less log is kept.
    pub fn fitting(mut self, total_bytes: u64) -> EngineOptions {
        let share = |parts: u64, least: usize| {
            usize::try_from(total_bytes / parts).unwrap_or(usize::MAX).max(least) / limits::PAGE * limits::PAGE
        };
        let segment_bytes = share(limits::SEGMENT_SHARE, limits::SEGMENT_BYTES_MIN);
        let replay_bytes = share(limits::REPLAY_SHARE, 2 * limits::SEGMENT_BYTES_MIN);
        self.segment_bytes = self.segment_bytes.min(segment_bytes);
        self.log_replay_bytes = self.log_replay_bytes.min(replay_bytes);
        self.memtable_bytes = self.memtable_bytes.min(replay_bytes);
        self.table_bytes = self.table_bytes.min(segment_bytes);
        self
    }
}

/// Counters and gauges of one core's engine. Bytes unless the name says otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EngineStats {
    /// Durable batches of the log (each one sync).
    pub syncs: u64,
    /// Writes acknowledged after their sync.
    pub durable_writes: u64,
    pub user_bytes_written: u64,
    pub device_bytes_written: u64,
    pub device_reads: u64,
    pub memtable_bytes: u64,
    pub table_bytes: u64,
    pub tables: u64,
    pub segments: u64,
    pub segment_bytes: u64,
    pub segment_live_bytes: u64,
    pub compaction_backlog_bytes: u64,
    /// Bytes that segments take beyond the point where collection begins.
    pub collection_backlog_bytes: u64,
    pub flushes: u64,
    pub compactions: u64,
    pub collections: u64,
    /// Bytes of tables that flushes have written.
    pub flushed_bytes: u64,
    /// Segments of the log that took the file of a collected one.
    pub reuses: u64,
    /// Reads, of clients and of background work, that met damage.
    pub damaged_reads: u64,
    /// Places known to be damaged: see `Engine::damage`.
    pub damaged_places: u64,
    pub memory_bytes: u64,
    /// What the caches may take at most.
    pub value_cache_bytes: u64,
    pub block_cache_bytes: u64,
    /// Filters and indexes of tables; part of `memory_bytes`.
    pub table_memory_bytes: u64,
    /// Batches of the log that were read at the opening, those of other shards' records included.
    pub replayed_bytes: u64,
    /// 1 when writes are refused because the disk is full.
    pub read_only: u64,
}
