//! What can go wrong in the cellar. Each variant says whether the shard may go on.

use super::disk::lacks_room;
use std::io;

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EngineError {
    /// A write or sync failed, or an earlier one did. The shard must stop; nothing more is acknowledged.
    #[error("storage failed: {0}")]
    Failed(String),
    /// No space: this write was not stored; reads, deletes and background work go on.
    #[error("the disk is full")]
    Full,
    /// Stored bytes failed their checksum or cannot be read. Only this record (or the named file) is affected; never
    /// served. The text begins with the file, and ` at ` and the first byte where that is known.
    #[error("damaged: {0}")]
    Damaged(String),
    /// The directory was written by a newer Dynarc.
    #[error("{file} has format {found}; this Dynarc reads up to {known}")]
    NewerFormat { file: String, found: u32, known: u32 },
}
impl EngineError {
    /// A failed read: what is there is as good as damaged, and all else goes on.
    pub fn unreadable(file: &str, offset: u64, error: &io::Error) -> EngineError {
        EngineError::Damaged(format!("{file} at {offset}: cannot be read: {error}"))
    }
}
impl From<io::Error> for EngineError {
    fn from(e: io::Error) -> EngineError {
        if lacks_room(&e) { EngineError::Full } else { EngineError::Failed(e.to_string()) }
    }
}
