//! A table: a name that keys begin with, and how the keys of it are kept.

use super::NodeId;
use crate::limits::{REPLICAS_MAX, TABLE_NAME_BYTES_MAX};
use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

/// When a write is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Durability {
    /// After the sync of its batch.
    #[default]
    Sync,
    /// Once the device has it, before its sync, which follows within
    /// [`SYNC_INTERVAL`](crate::limits::SYNC_INTERVAL): the last writes before a power cut may be lost, those before
    /// them not.
    Interval,
}
impl Durability {
    pub fn name(self) -> &'static str {
        match self {
            Durability::Sync => "sync",
            Durability::Interval => "interval",
        }
    }
    pub fn from_name(name: &str) -> Option<Durability> {
        [Durability::Sync, Durability::Interval].into_iter().find(|d| d.name() == name)
    }
}

/// What becomes of concurrent writes of one key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Conflict {
    /// All are kept, for a reader to merge.
    #[default]
    Siblings,
    /// The one with the greatest stamp is kept, the others are lost.
    LastWriteWins,
}
impl Conflict {
    pub fn name(self) -> &'static str {
        match self {
            Conflict::Siblings => "siblings",
            Conflict::LastWriteWins => "last_write_wins",
        }
    }
    pub fn from_name(name: &str) -> Option<Conflict> {
        [Conflict::Siblings, Conflict::LastWriteWins].into_iter().find(|c| c.name() == name)
    }
}

/// A table's name: 1 to [`TABLE_NAME_BYTES_MAX`] letters, digits, `-`, `_` and `.`, the first a letter or a digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TableName(Arc<str>);

impl TableName {
    /// The table of all keys that belong to no other. It always exists.
    pub const DEFAULT: &'static str = "default";

    pub fn as_str(&self) -> &str {
        &self.0
    }
    pub fn is_default(&self) -> bool {
        self.as_str() == TableName::DEFAULT
    }
    /// What stands before the first colon of a key, if that may be a table's name.
    pub fn of_key(key: &[u8]) -> Option<&str> {
        let end = key.iter().take(TABLE_NAME_BYTES_MAX + 1).position(|b| *b == b':')?;
        std::str::from_utf8(&key[..end]).ok()
    }
}
impl FromStr for TableName {
    type Err = TableError;
    fn from_str(text: &str) -> Result<TableName, TableError> {
        let sign = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let sound = (1..=TABLE_NAME_BYTES_MAX).contains(&text.len())
            && text.bytes().all(sign)
            && text.as_bytes()[0].is_ascii_alphanumeric();
        if sound { Ok(TableName(text.into())) } else { Err(TableError::Name) }
    }
}
impl Borrow<str> for TableName {
    fn borrow(&self) -> &str {
        &self.0
    }
}
impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How the keys of a table are kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TableSettings {
    /// Replicas of a key: 1 to [`REPLICAS_MAX`].
    pub n: u8,
    /// Answers of a get, acknowledgements of a write: 1 to `n`.
    pub r: u8,
    pub w: u8,
    pub conflict: Conflict,
    /// Whether stand-ins for absent replicas count.
    pub sloppy: bool,
    pub durability: Durability,
}
impl TableSettings {
    pub fn check(&self) -> Result<(), TableError> {
        let bound = |name, value: u8, most: u8| {
            if (1..=most).contains(&value) { Ok(()) } else { Err(TableError::Count { name, value, most }) }
        };
        bound("n", self.n, REPLICAS_MAX as u8)?;
        bound("r", self.r, self.n)?;
        bound("w", self.w, self.n)
    }
}

/// What is wrong with a table, or with a change of one. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TableError {
    #[error(
        "a table's name has 1 to {TABLE_NAME_BYTES_MAX} letters, digits, '-', '_' and '.', the first a letter or a digit"
    )]
    Name,
    #[error("{name} is 1 to {most}, not {value} (at most {REPLICAS_MAX} replicas; r and w at most n)")]
    Count { name: &'static str, value: u8, most: u8 },
    #[error("the table default cannot be dropped")]
    Default,
    #[error("how a table's conflicts end is said when it is made; drop it and make it again, or take another name")]
    ConflictChanged,
    #[error("there is no such table")]
    Absent,
    #[error("there are {0} tables already, dropped ones included; names of those can be used again")]
    TooMany(usize),
}

/// A change of one table that somebody asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableChange {
    pub name: TableName,
    pub kind: TableChangeKind,
}
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableChangeKind {
    /// Makes the table or alters it; what is not named stays, or is as in the table `default`.
    Set(TableWish),
    Drop,
}
/// Settings by name; `None`: not named.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TableWish {
    pub n: Option<u8>,
    pub r: Option<u8>,
    pub w: Option<u8>,
    pub conflict: Option<Conflict>,
    pub sloppy: Option<bool>,
    pub durability: Option<Durability>,
}
impl TableWish {
    pub fn upon(&self, settings: TableSettings) -> TableSettings {
        TableSettings {
            n: self.n.unwrap_or(settings.n),
            r: self.r.unwrap_or(settings.r),
            w: self.w.unwrap_or(settings.w),
            conflict: self.conflict.unwrap_or(settings.conflict),
            sloppy: self.sloppy.unwrap_or(settings.sloppy),
            durability: self.durability.unwrap_or(settings.durability),
        }
    }
}

/// What is known of a table: the newest word on it, and its latest drop.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TableEntry {
    pub name: TableName,
    /// Newer is the greater (version, node).
    pub version: u64,
    /// Who said it.
    pub node: NodeId,
    /// The version of the latest drop, 0: never. Records written before it are gone, whatever came after.
    pub dropped: u64,
    /// `None`: dropped, and kept as a marker so that nobody brings the table back.
    pub settings: Option<TableSettings>,
}
impl TableEntry {
    pub fn newer_than(&self, other: &TableEntry) -> bool {
        (self.version, self.node) > (other.version, other.node)
    }
}
