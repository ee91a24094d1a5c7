//! THE CELLAR: one LSM tree a slice, one value log a core, asynchronous over [`disk::Disk`].
//!
//! The engine stores records: an opaque key (at most [`ENGINE_KEY_BYTES_MAX`] bytes, ordered by its bytes), a small
//! opaque head, and 0..n values. It knows nothing of versions, replicas or tokens. The append that makes a write
//! durable is also its values' home: memtables and tables hold heads, small values and pointers into the log.

pub mod cache;
pub mod compaction;
pub mod disk;
pub mod error;
pub mod table;
pub mod types;

mod memory;
pub use memory::{Background, Engine, Opened};
