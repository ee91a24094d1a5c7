//! THE CELLAR: one LSM tree a slice, one value log a core, asynchronous over [`disk::Disk`].
//!
//! The engine stores records: an opaque key (at most [`types::ENGINE_KEY_BYTES_MAX`] bytes, ordered by its bytes), a
//! small opaque head, and 0..n values. It knows nothing of versions, replicas or tokens. The append that makes a write
//! durable is also its values' home: memtables and tables hold heads, small values and pointers into the log.
//!
//! Reading order: [`types`], [`disk`] (the seam), [`open`] (what users call), [`store`] (what the futures share),
//! [`wal`] (the log), [`memtable`], [`flush`], [`settle`] (what is dead), [`manifest`], [`table`], [`compaction`],
//! [`compact`], [`collect`], [`reserve`], [`drops`], [`recover`], [`leftovers`], [`damage`]; [`admission`] slows writes
//! down, `snapshot` serves who walks many records.
//!
//! Invariants:
//! - nothing is acknowledged, nor shown to a read, before its batch and all before it are durable;
//! - sequences of a slice's records only ever grow, over restarts too, and the greatest wins;
//! - a file is written, synced, renamed, its directory synced, in that order; no log byte is ever written twice;
//! - after a failed write or sync nothing more is acknowledged; it is never tried again;
//! - a segment goes only when no record in it is needed: each is in a table or a newer one of its key is durable, and
//!   the live ones are copied durably;
//! - what is damaged or cannot be read is set aside and named; a read that may concern it gives `Damaged`, never "not
//!   found" and never an older record of a table; all else goes on. Only failed writes and syncs stop the shard.
#![forbid(unsafe_code)]

pub mod admission;
pub mod cache;
pub mod collect;
pub mod compact;
pub mod compaction;
pub mod damage;
pub mod disk;
pub mod drops;
pub mod error;
pub mod flush;
pub mod inspect;
pub mod leftovers;
pub mod manifest;
pub mod memtable;
pub mod notify;
pub mod open;
pub mod recover;
pub mod reserve;
pub mod settle;
mod snapshot;
pub mod store;
pub mod table;
pub mod types;
pub mod wal;

pub use open::{Background, Engine, Opened};
pub use snapshot::Snapshot;
