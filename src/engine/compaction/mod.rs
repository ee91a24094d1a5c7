//! Compaction: keeps the tables of a slice few, sorted and without dead records.
//!
//! Level 0 holds tables as they were flushed, newest first; they overlap. The tables of each deeper level do not
//! overlap and are older than all above; a level is allowed [`level_factor`] times the bytes of the one before. Tables
//! are small fragments, so one compaction moves little and space is freed soon.
//!
//! - [`set`]: the tables of a slice and how a key is looked up in them.
//! - [`policy`]: [`choose`], a pure function from the tables to what is to be done.
//! - [`merge`]: sorted sources merged into one stream, for compactions and scans.
//! - [`job`]: [`run`], which does what was chosen and says what changed.
//!
//! - [`salvage`]: what can be read of a table with damaged blocks, written anew; the rest is set aside.
//!
//! Invariants: of a key, a newer record is never in a deeper level than an older one; a delete record goes only when no
//! older table can hold its key, one set aside included; every value pointer that goes is reported once. The caller
//! keeps the manifest: nothing here removes a table that was there before.
//!
//! [`level_factor`]: crate::engine::types::EngineOptions::level_factor

pub mod job;
pub mod merge;
pub mod policy;
pub mod salvage;
pub mod set;

pub use job::{Outcome, run};
pub use merge::{AnySource, MemorySource, MergeCursor, RunCursor, Source};
pub use policy::{Choice, Merge, choose, choose_for_drops, choose_for_space};
pub use set::TableSet;
