//! Tables (signatures first; bodies follow).

use crate::{
    engine::{
        cache::BlockCache,
        disk::{Disk, Lane},
        error::EngineError,
        types::{EngineOptions, Stored},
    },
    types::SliceId,
};
use bytes::Bytes;
use std::rc::Rc;

/// What the manifest keeps of a table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableMeta {
    /// Unique among all tables that the slice has ever had.
    pub id: u64,
    pub slice: SliceId,
    /// 0: as flushed, may overlap others of level 0. 1 and more: tables of a level do not overlap.
    pub level: u8,
    pub smallest: Bytes,
    pub largest: Bytes,
    /// Records, delete records included.
    pub entries: u64,
    /// Delete records.
    pub deletes: u64,
    /// Bytes of the file.
    pub bytes: u64,
    pub max_sequence: u64,
    /// Bytes of the values in the log that the records point to.
    pub value_bytes: u64,
}

/// The directory of a slice's tables. The engine makes it (and syncs its parent) before the first table.
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

fn unbuilt<T>() -> Result<T, EngineError> {
    Err(EngineError::Failed("tables are not built yet".into()))
}

/// Writes one table. After an error: [`Builder::abandon`].
pub struct Builder<D: Disk> {
    disk: Rc<D>,
}
impl<D: Disk> Builder<D> {
    /// The file must not exist, its directory must.
    pub async fn create(
        disk: &Rc<D>,
        slice: SliceId,
        id: u64,
        level: u8,
        options: &EngineOptions,
    ) -> Result<Builder<D>, EngineError> {
        let _ = (disk, slice, id, level, options);
        unbuilt()
    }
    /// Keys strictly increase. Breathes by itself.
    pub async fn add(&mut self, key: &[u8], sequence: u64, stored: &Stored) -> Result<(), EngineError> {
        let _ = (&self.disk, key, sequence, stored);
        unbuilt()
    }
    /// Bytes of the file so far.
    pub fn bytes(&self) -> u64 {
        0
    }
    /// Writes what is left and syncs the file. At least one record must have been added. The caller syncs the
    /// directory before the manifest names the table.
    pub async fn finish(self) -> Result<TableMeta, EngineError> {
        unbuilt()
    }
    /// Removes the file.
    pub async fn abandon(self) -> Result<(), EngineError> {
        unbuilt()
    }
}

/// An open table: filter and index in memory, the file kept open.
pub struct Table<D: Disk> {
    meta: TableMeta,
    disk: Rc<D>,
}
impl<D: Disk> Table<D> {
    /// Reads and verifies footer, index and filter, and checks them against the manifest's view.
    pub async fn open(disk: &Rc<D>, meta: TableMeta) -> Result<Rc<Table<D>>, EngineError> {
        let _ = (disk, meta);
        unbuilt()
    }
    pub fn meta(&self) -> &TableMeta {
        &self.meta
    }
    /// Bytes of memory for filter and index.
    pub fn memory_bytes(&self) -> u64 {
        0
    }
    /// The record of a key. At most one device read, none for 99 % of the keys that are not there.
    pub async fn get(&self, key: &[u8], cache: &BlockCache) -> Result<Option<(u64, Stored)>, EngineError> {
        let _ = (&self.disk, key, cache);
        unbuilt()
    }
    /// A cursor that stands before the first record; [`Cursor::seek`] places it.
    pub fn cursor(self: &Rc<Self>, lane: Lane) -> Cursor<D> {
        Cursor { table: self.clone(), lane }
    }
}

/// Walks the records of a table in key order, reading ahead.
pub struct Cursor<D: Disk> {
    table: Rc<Table<D>>,
    lane: Lane,
}
impl<D: Disk> Cursor<D> {
    /// Moves to the first record whose key is at least `from`.
    pub async fn seek(&mut self, from: &[u8]) -> Result<(), EngineError> {
        let _ = (&self.table, self.lane, from);
        unbuilt()
    }
}
