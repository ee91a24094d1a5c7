//! The log of a core, which is also where values live: segments, the batches in them, the task that writes them.

pub mod format;
pub mod log;
pub mod reader;
pub mod roll;
pub mod segment;
