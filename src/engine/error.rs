//! What can go wrong in the cellar. Each variant says whether the shard may go on.

use std::io;

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EngineError {
    /// A read, write or sync failed, or an earlier one did. The shard must stop; nothing more is acknowledged.
    #[error("storage failed: {0}")]
    Failed(String),
    /// No space: this write was not stored; reads, deletes and background work go on.
    #[error("the disk is full")]
    Full,
    /// Stored bytes failed their checksum. Only this record (or the named file) is affected; never served.
    #[error("damaged: {0}")]
    Damaged(String),
    /// The directory was written by a newer Dynarc.
    #[error("{file} has format {found}; this Dynarc reads up to {known}")]
    NewerFormat { file: String, found: u32, known: u32 },
}
impl From<io::Error> for EngineError {
    fn from(e: io::Error) -> EngineError {
        match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => EngineError::Full,
            _ => EngineError::Failed(e.to_string()),
        }
    }
}
