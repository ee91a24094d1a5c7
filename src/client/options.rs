//! What a caller says besides key and value, and what a read returns.

use crate::{
    limits::{REQUEST_TIMEOUT, REQUEST_TIMEOUT_MAX},
    protocol::versions::{Context, Siblings},
    types::{Consistency, Level, Value},
};
use std::time::Duration;

/// The choices of one request; the default is the table's settings, no context and
/// [`crate::limits::REQUEST_TIMEOUT`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    pub consistency: Consistency,
    /// Put and delete: what the writer has read.
    pub context: Option<Context>,
    /// Answered or given up by then, retries included; at most [`crate::limits::REQUEST_TIMEOUT_MAX`].
    pub timeout: Duration,
}
impl Default for Options {
    fn default() -> Options {
        Options { consistency: Consistency::default(), context: None, timeout: REQUEST_TIMEOUT }
    }
}
impl Options {
    /// The write supersedes what this context covers.
    pub fn context(mut self, context: Context) -> Options {
        self.context = Some(context);
        self
    }
    /// R of a get, W of a put or delete.
    pub fn level(mut self, level: Level) -> Options {
        self.consistency.level = Some(level);
        self
    }
    /// `false`: only home replicas count.
    pub fn sloppy(mut self, sloppy: bool) -> Options {
        self.consistency.sloppy = Some(sloppy);
        self
    }
    pub fn timeout(mut self, timeout: Duration) -> Options {
        self.timeout = timeout.min(REQUEST_TIMEOUT_MAX);
        self
    }
}

/// What a key holds: no sibling (never written, or deleted), one, or several that are concurrent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Got {
    /// The values in the order of their dots, checked against their checksums.
    pub siblings: Vec<Value>,
    /// Covers all of them; to be passed with the write that builds on them. It belongs to this key.
    pub context: Context,
}
impl From<Siblings> for Got {
    fn from(siblings: Siblings) -> Got {
        Got { siblings: siblings.values().collect(), context: Context::from(siblings.head.clock) }
    }
}
